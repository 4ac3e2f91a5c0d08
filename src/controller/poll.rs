//! When to look whether an action is done.
//!
//! A look costs a call of the token's quota, the more of which is used the dearer; not having looked costs the caller's time. The plan weighs the two with what is
//! known of how long such actions take:
//!
//! > A look is due when the wait that is to be expected from not having looked reaches the price of a look.
//!
//! What is known is a weight for each duration. At first it is what others measured, and that any duration may come. Each action
//! that was seen through adds weight between the last look that saw it running and the look that saw it done, and lets older
//! weight fade. So the first action, steady actions, those of two speeds and a change of speed need no rules of their own.
//! `poll/simulation.rs` plays them, and other plans beside this one.
//!
//! It neither asks DigitalOcean nor sleeps; the caller's waiting loop does both and reports what it saw:
//!
//! ```text
//! let mut looks = pace.begin(ActionKind::Attach);
//! loop {
//!     sleep until the start of the action + looks.due();
//!     match the action's status {
//!         in progress => looks.still_running(time since the start),
//!         completed => return looks.finished(time since the start).map(|sample| pace.learn(sample)),
//!         no answer => looks.told_nothing(time since the start),
//!         errored => return,
//!     }
//! }
//! ```

use std::iter;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[cfg(test)]
mod simulation;

/// What an action does, as far as its duration depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionKind {
    /// Attaching a volume; 4 to 5 s when others measured it.
    Attach,
    /// Detaching a volume; 3 to 4 s when others measured it.
    Detach,
    /// Growing a volume.
    Resize,
}

impl ActionKind {
    /// The word for it in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            ActionKind::Attach => "attach",
            ActionKind::Detach => "detach",
            ActionKind::Resize => "resize",
        }
    }

    /// What is expected as long as none was seen, in seconds: what others measured.
    fn guess(self) -> f64 {
        match self {
            ActionKind::Attach | ActionKind::Resize => 4.0,
            ActionKind::Detach => 3.5,
        }
    }
}

/// The price of a look in seconds of waiting, and the part of the time since the start that is added to it: nobody minds a tenth
/// of a second after ten.
const PRICE: f64 = 0.008;
const PRICE_OF_TIME: f64 = 0.012;

/// How many times the price a look costs when all calls of a minute are used: then it keeps other work waiting.
const DEAREST: f64 = 30.0;

/// How many times as long as it is known to run, or as long as others measured, an action is looked at at the latest.
const LATEST: f64 = 1.8;
const MEASURED_AT_MOST: f64 = 4.5;

/// The cells of the scale: they begin at the first duration, and each is a little longer than the one before, up to 110 s.
const CELLS: u16 = 268;
const SHORTEST: f64 = 0.04;
const RATIO: f64 = 1.03;

/// The part of the first guess that lies about what others measured; the rest lies evenly on the scale.
const MEASURED: f64 = 0.2;
/// How far durations lie from what others measured, as a part of them.
const SPREAD: f64 = 0.35;
/// The weight of the first guess beside that of one action that was seen. It never fades, so that a change is noticed.
const FIRST_GUESS: f64 = 0.25;
/// What remains of older weight with each action.
const KEPT: f64 = 0.7;
/// How much an attach tells about detaches, and a detach about attaches.
const ALIKE: f64 = 0.8;
/// The part of an action's weight that lies evenly where it may have ended; the rest lies where actions were seen to end.
const EVEN: f64 = 0.2;

/// What a process learned about the durations of actions; shared by all threads.
#[derive(Debug)]
pub struct Pace(Mutex<Learned>);

#[derive(Debug)]
struct Learned {
    attach: Durations,
    detach: Durations,
    resize: Durations,
}

/// How likely each duration is, as a weight for each cell of the scale.
#[derive(Debug, Clone)]
struct Durations {
    guess: Box<[f64]>,
    seen: Box<[f64]>,
}

/// The looks at one action.
#[derive(Debug, Clone)]
pub struct Looks {
    kind: ActionKind,
    expected: Durations,
    /// How many times the price a look costs.
    dearness: f64,
    due: Duration,
    /// The last look, whatever it told.
    looked: Duration,
    seen_running: Duration,
    /// Whether some look told nothing, so that the end cannot be placed between two others.
    is_blurred: bool,
}

/// When one action ended: after the last look that saw it running, and before the look that saw it done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    kind: ActionKind,
    after: Duration,
    by: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace::new()
    }
}

impl Pace {
    /// A pace that has seen no action yet.
    #[must_use]
    pub fn new() -> Pace {
        let durations = |kind: ActionKind| Durations::guess(kind.guess());
        Pace(Mutex::new(Learned {
            attach: durations(ActionKind::Attach),
            detach: durations(ActionKind::Detach),
            resize: durations(ActionKind::Resize),
        }))
    }

    /// Plans the looks at an action that starts now; `used` is the part of the quota that is used, from 0 to 1.
    #[must_use]
    pub fn begin(&self, kind: ActionKind, used: f64) -> Looks {
        Looks::new(kind, self.lock().of(kind).clone(), used)
    }

    /// Plans the looks at an action that somebody else began, nobody knows when; nothing can be learned from them.
    #[must_use]
    pub fn join(&self, kind: ActionKind, used: f64) -> Looks {
        Looks { is_blurred: true, ..Looks::new(kind, Durations::guess(kind.guess()), used) }
    }

    /// Takes in how long an action took. Only for actions that completed: what errored took no typical time.
    pub fn learn(&self, sample: Sample) {
        let mut learned = self.lock();
        learned.of(sample.kind).learn(&sample, 1.0);
        match sample.kind {
            ActionKind::Attach => learned.detach.learn(&sample, ALIKE),
            ActionKind::Detach => learned.attach.learn(&sample, ALIKE),
            ActionKind::Resize => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Learned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Learned {
    fn of(&mut self, kind: ActionKind) -> &mut Durations {
        match kind {
            ActionKind::Attach => &mut self.attach,
            ActionKind::Detach => &mut self.detach,
            ActionKind::Resize => &mut self.resize,
        }
    }
}

impl Looks {
    fn new(kind: ActionKind, expected: Durations, used: f64) -> Looks {
        let dearness = dearness(used);
        let due = expected.due_after(Duration::ZERO, dearness);
        Looks { kind, expected, dearness, due, looked: Duration::ZERO, seen_running: Duration::ZERO, is_blurred: false }
    }

    /// Takes notice of the part of the quota that is used now, and plans the next look anew.
    pub fn reprice(&mut self, used: f64) {
        self.dearness = dearness(used);
        self.plan_next(self.looked);
    }

    /// When the next look is due, counted from the start of the action.
    #[must_use]
    pub fn due(&self) -> Duration {
        self.due
    }

    /// A look, so long after the start, saw the action running.
    pub fn still_running(&mut self, at: Duration) {
        self.seen_running = at;
        self.plan_next(at);
    }

    /// A look, so long after the start, told nothing: the reply was lost, or DigitalOcean did not know the action yet.
    pub fn told_nothing(&mut self, at: Duration) {
        self.is_blurred = true;
        self.plan_next(at);
    }

    fn plan_next(&mut self, looked: Duration) {
        self.looked = looked;
        self.due = self.expected.due_after(looked, self.dearness);
    }

    /// A look, so long after the start, saw the action completed; none: that teaches nothing.
    #[must_use]
    pub fn finished(self, at: Duration) -> Option<Sample> {
        let Looks { kind, seen_running: after, .. } = self;
        (!self.is_blurred).then_some(Sample { kind, after, by: at })
    }
}

fn dearness(used: f64) -> f64 {
    1.0 + (DEAREST - 1.0) * used.powi(2)
}

impl Durations {
    /// As long as nothing was seen; `measured` is in seconds.
    fn guess(measured: f64) -> Durations {
        let bell = |(from, to): (f64, f64)| (-(((from * to).sqrt() / measured).ln() / SPREAD).powi(2) / 2.0).exp();
        let area: f64 = cells().map(bell).sum();
        let even = (1.0 - MEASURED) / f64::from(CELLS);
        let guess = cells().map(|cell| FIRST_GUESS * (even + MEASURED * bell(cell) / area)).collect();
        Durations { guess, seen: vec![0.0; CELLS.into()].into() }
    }

    /// The cells from the shortest to the longest: where each begins and ends, in seconds, and the weight in it.
    fn weights(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        let weights = self.guess.iter().zip(&self.seen).map(|(guess, seen)| guess + seen);
        cells().zip(weights).map(|((from, to), weight)| (from, to, weight))
    }

    /// When a look is due at an action that was seen running so long after its start.
    fn due_after(&self, seen_running: Duration, dearness: f64) -> Duration {
        let after = seen_running.as_secs_f64();
        let left = || self.weights().filter(|(_, to, _)| *to > after);
        let all: f64 = left().map(|(_, _, weight)| weight).sum();
        let (mut ended, mut wait, mut now) = (0.0, 0.0, after);
        for (_, to, weight) in left() {
            let share = weight / all;
            wait += (ended + share / 2.0) * (to - now);
            ended += share;
            now = to;
            if wait >= dearness * (PRICE + PRICE_OF_TIME * to) {
                break;
            }
        }
        // However dear looks are, an action that takes long is not looked at too late for its caller.
        let latest = LATEST * after.max(MEASURED_AT_MOST);
        // Beyond the scale: such steps as its end has.
        Duration::from_secs_f64(now.min(latest).max(after * 1.1))
    }

    /// Takes in one action; `weight` is at most 1.
    fn learn(&mut self, sample: &Sample, weight: f64) {
        let half_a_cell = RATIO.sqrt();
        let (after, by) = (sample.after.as_secs_f64() / half_a_cell, sample.by.as_secs_f64() * half_a_cell);
        let is_possible = |from: f64, to: f64| to > after && from < by;
        let possible = || self.weights().filter(|(from, to, _)| is_possible(*from, *to));
        let all: f64 = possible().map(|(_, _, weight)| weight).sum();
        let many: f64 = possible().map(|_| 1.0).sum();
        let added: Box<[f64]> = self
            .weights()
            .map(|(from, to, here)| {
                let share = EVEN / many + (1.0 - EVEN) * here / all;
                if is_possible(from, to) { share } else { 0.0 }
            })
            .collect();
        let kept = 1.0 - (1.0 - KEPT) * weight;
        self.seen.iter_mut().zip(added).for_each(|(seen, added)| *seen = *seen * kept + added * weight);
    }
}

/// Where each cell of the scale begins and ends, in seconds. The first takes in what is shorter.
fn cells() -> impl Iterator<Item = (f64, f64)> {
    let bounds = || iter::successors(Some(SHORTEST), |bound| Some(bound * RATIO));
    iter::once(0.0).chain(bounds()).zip(bounds()).take(CELLS.into())
}
