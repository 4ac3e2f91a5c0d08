//! When to look whether an action is done: just before it is due, then in short, growing steps.
//!
//! Owns a running estimate of how long each kind of action takes, learned from the actions that this process saw through.
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
//!
//! A look costs a call of the token's quota; a late look costs waiting. One estimate and one doubt per kind keep both
//! small: the doubt is the width in which the end was last seen, it is the step between looks, and it widens again when
//! actions become slower or faster than they were. Where there is next to no doubt, most actions get one look, just after
//! their end.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
}

/// What is expected of an attach and of a detach as long as none was seen: what others measured.
const ATTACH: Duration = Duration::from_secs(4);
const DETACH: Duration = Duration::from_millis(3500);

/// The shortest step between two looks, and the doubt that always remains.
const LEAST_DOUBT: Duration = Duration::from_millis(25);

/// The longest step between two looks.
const LONGEST_STEP: Duration = Duration::from_secs(2);

/// Up to here an action counts as quick, and its end is looked for more closely.
const QUICK: Duration = Duration::from_millis(300);

/// How many actions of a kind a process has to see until one more does not count for more than the estimate.
const FEW: u32 = 4;

/// How many actions in a row are looked at only when they should be over, before one is looked at earlier again: whoever always
/// comes afterwards does not learn that actions have become faster.
const SURE: u32 = 2;

/// Bounds of an estimate: a reply alone takes some of the first, and the second is as long as a call may last.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(100);

/// What a process learned about the durations of actions; shared by all threads.
#[derive(Debug)]
pub struct Pace(Mutex<Estimates>);

#[derive(Debug)]
struct Estimates {
    attach: Estimate,
    detach: Estimate,
    resize: Estimate,
}

/// How long one kind of action takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Estimate {
    expected: Duration,
    doubt: Duration,
    /// Whether `expected` comes from an action that was seen, not from this file.
    is_learned: bool,
    /// How many actions it was learned from, beginning anew with one that was much slower than the others. As long as they
    /// are few, an end that was seen more sharply than the estimate is counts for more.
    seen: u32,
    /// How many times in a row the first look came too late to tell when the action ended, although it was to be before that.
    late_in_a_row: u32,
    /// How many times in a row the first look was meant to find the action done, and did.
    confirmed: u32,
    /// How often it has changed.
    version: u32,
}

/// The looks at one action.
#[derive(Debug, Clone)]
pub struct Looks {
    kind: ActionKind,
    /// The version of the estimate that they were planned with.
    version: u32,
    due: Duration,
    step: Step,
    seen_running: Option<Duration>,
    /// Whether some look told nothing, so that the end cannot be placed between two others.
    is_blurred: bool,
}

/// How far the next look is from the last.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// So much; each time half as much again.
    Growing(Duration),
    /// So far nothing is known: a part of the time that has passed, so that any duration is found in few looks and with an
    /// error in proportion.
    Proportional,
}

/// When one action ended: after the last look that saw it running, and before the look that saw it done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    kind: ActionKind,
    version: u32,
    after: Option<Duration>,
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
        Pace(Mutex::new(Estimates {
            attach: Estimate::guess(ATTACH),
            detach: Estimate::guess(DETACH),
            resize: Estimate::guess(Duration::from_secs(4)),
        }))
    }

    /// Plans the looks at an action that starts now. The first detach of a process is expected to take a little less time
    /// than its attaches do, and the other way round.
    #[must_use]
    pub fn begin(&self, kind: ActionKind) -> Looks {
        let (alike, ratio) = match kind {
            ActionKind::Attach => (ActionKind::Detach, ATTACH.as_secs_f64() / DETACH.as_secs_f64()),
            ActionKind::Detach => (ActionKind::Attach, DETACH.as_secs_f64() / ATTACH.as_secs_f64()),
            ActionKind::Resize => return self.with(kind, |estimate| estimate.looks(kind)),
        };
        let alike = self.with(alike, |estimate| *estimate);
        self.with(kind, |estimate| {
            if alike.is_learned && estimate.is_untouched() {
                estimate.borrow(alike.expected, ratio);
            }
            estimate.looks(kind)
        })
    }

    /// Plans the looks at an action that somebody else began, nobody knows when; nothing can be learned from them.
    #[must_use]
    pub fn join(&self, kind: ActionKind) -> Looks {
        self.with(kind, |estimate| Estimate { is_learned: false, ..*estimate }.looks(kind)).blurred()
    }

    /// Takes in how long an action took. Only for actions that completed: what errored took no typical time.
    pub fn learn(&self, sample: Sample) {
        self.with(sample.kind, |estimate| estimate.learn(&sample));
    }

    fn with<T>(&self, kind: ActionKind, with: impl FnOnce(&mut Estimate) -> T) -> T {
        let mut estimates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        with(match kind {
            ActionKind::Attach => &mut estimates.attach,
            ActionKind::Detach => &mut estimates.detach,
            ActionKind::Resize => &mut estimates.resize,
        })
    }
}

impl Looks {
    /// When the next look is due, counted from the start of the action.
    #[must_use]
    pub fn due(&self) -> Duration {
        self.due
    }

    /// A look, so long after the start, saw the action running.
    pub fn still_running(&mut self, at: Duration) {
        self.seen_running = Some(at);
        self.go_on(at);
    }

    /// A look, so long after the start, told nothing: the reply was lost, or DigitalOcean did not know the action yet.
    pub fn told_nothing(&mut self, at: Duration) {
        self.is_blurred = true;
        self.go_on(at);
    }

    fn blurred(self) -> Looks {
        Looks { is_blurred: true, ..self }
    }

    fn go_on(&mut self, at: Duration) {
        let step = match &mut self.step {
            Step::Growing(step) => {
                let this = *step;
                *step = half_as_much_again(this).min(LONGEST_STEP);
                this
            }
            Step::Proportional if at < QUICK => (at.saturating_mul(2) / 5).max(LEAST_DOUBT),
            Step::Proportional => (at.saturating_mul(4) / 5).min(LONGEST_STEP),
        };
        self.due = at.saturating_add(step);
    }

    /// A look, so long after the start, saw the action completed; none: that teaches nothing.
    #[must_use]
    pub fn finished(self, at: Duration) -> Option<Sample> {
        let Looks { kind, version, seen_running: after, .. } = self;
        (!self.is_blurred).then_some(Sample { kind, version, after, by: at })
    }
}

impl Estimate {
    fn guess(expected: Duration) -> Estimate {
        let doubt = expected / 4;
        Estimate { expected, doubt, is_learned: false, seen: 0, late_in_a_row: 0, confirmed: 0, version: 0 }
    }

    /// Whether no action of this kind was seen yet, as opposed to one that has become too fast for what was learned.
    fn is_untouched(&self) -> bool {
        !self.is_learned && self.late_in_a_row == 0
    }

    /// Takes over how long actions of a like kind take, changed as the guesses of the two differ.
    fn borrow(&mut self, expected: Duration, ratio: f64) {
        self.expected = expected.mul_f64(ratio);
        self.doubt = expected / 8;
        self.is_learned = true;
    }

    /// Whether actions end so much on time that one look, just afterwards, is most likely enough.
    fn is_sure(&self) -> bool {
        self.doubt <= LEAST_DOUBT && self.late_in_a_row == 0 && self.confirmed < SURE
    }

    fn looks(&self, kind: ActionKind) -> Looks {
        let step = Step::Growing((self.doubt / 2).max(LEAST_DOUBT));
        let (due, step) = match (self.is_learned, self.is_sure()) {
            // A guess may be far off either way; the first action is looked at early and then at growing distances.
            (false, _) => (self.expected / 16, Step::Proportional),
            (true, true) => (self.expected.saturating_add(self.doubt / 2), step),
            (true, false) => (self.expected.saturating_sub(self.doubt * 3 / 8), step),
        };
        Looks { kind, version: self.version, due, step, seen_running: None, is_blurred: false }
    }

    fn learn(&mut self, sample: &Sample) {
        let by = sample.by;
        match sample.after {
            Some(after) => self.learn_between(after, by),
            // Planned with another estimate, as of several actions at once, it does not tell that this one is late.
            None if sample.version != self.version => self.expected = self.expected.min(by),
            None if self.is_learned && self.is_sure() => {
                self.confirmed = self.confirmed.saturating_add(1);
                self.expected = self.expected.min(by);
            }
            None if self.is_learned => self.learn_late(by),
            None => self.learn_between(Duration::ZERO, by),
        }
        self.expected = self.expected.clamp(SHORTEST, LONGEST);
        self.version = self.version.wrapping_add(1);
        // SHORTEST is twice LEAST_DOUBT, so the bounds are in order.
        self.doubt = self.doubt.clamp(LEAST_DOUBT, LONGEST_STEP.min(self.expected / 2));
    }

    /// The end was seen between two looks.
    fn learn_between(&mut self, after: Duration, by: Duration) {
        let middle = after.saturating_add(by) / 2;
        let half_width = by.saturating_sub(after) / 2;
        (self.late_in_a_row, self.confirmed) = (0, 0);
        if !self.is_learned {
            *self = Estimate { expected: middle, doubt: half_width, is_learned: true, seen: 1, ..*self };
            return;
        }
        // An action that hangs says little about the next one, so one sample doubles the estimate at most. But the
        // next one tells whether it hung or actions have become slower.
        let most = self.expected.saturating_mul(2);
        self.seen = if middle > most { 0 } else { self.seen.saturating_add(1) };
        let middle = middle.min(most);
        let off = middle.abs_diff(self.expected);
        if self.seen <= FEW && half_width < self.doubt {
            (self.expected, self.doubt) = (middle, half_width.max(off / 4));
        } else {
            self.expected = self.expected.saturating_add(middle) / 2;
            self.doubt = self.doubt.saturating_add(half_width.max(off)) / 2;
        }
    }

    /// The first look found it done: it took less than expected, and how much less is not known.
    fn learn_late(&mut self, by: Duration) {
        self.late_in_a_row = self.late_in_a_row.saturating_add(1);
        if self.late_in_a_row == 1 && (1..=FEW).contains(&self.seen) {
            // What little was seen of this kind still bounds it from below.
            let least = self.expected.saturating_sub(self.doubt);
            (self.expected, self.doubt) = (least.saturating_add(by) / 2, by.saturating_sub(least) / 2);
            return;
        }
        self.expected = self.expected.min(by).saturating_sub(self.doubt * 3 / 8);
        match self.late_in_a_row {
            // As likely as not: the end was just before.
            1 => self.doubt = self.doubt * 3 / 4,
            2 => {}
            3 | 4 => self.doubt = self.doubt.saturating_mul(2),
            // Actions have become much faster: look early again, as if nothing were known.
            _ => self.is_learned = false,
        }
    }
}

fn half_as_much_again(step: Duration) -> Duration {
    step.saturating_mul(3) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: Duration = Duration::from_millis(10);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Looks at one action until it has ended; gives the number of looks, how late the end was noticed, and what was seen.
    fn follow(mut looks: Looks, took: Duration) -> (u32, Duration, Sample) {
        let mut count = 0;
        loop {
            count += 1;
            assert!(count < 200, "endless: {looks:?}");
            let at = looks.due();
            if at >= took {
                return (count, at - took, looks.finished(at + REPLY).unwrap());
            }
            looks.still_running(at + REPLY);
        }
    }

    /// Sees one action through; gives the number of looks and how late the end was noticed.
    fn watch(pace: &Pace, kind: ActionKind, took: Duration) -> (u32, Duration) {
        let (count, late, sample) = follow(pace.begin(kind), took);
        pace.learn(sample);
        (count, late)
    }

    /// A fixed sequence of numbers between -1 and 1.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from(u32::try_from(self.0 >> 33).unwrap()) / f64::from(1_u32 << 30) - 1.0
        }
    }

    /// Mean looks, median and mean lateness of 200 actions after ten to learn from.
    fn judge(mean: Duration, spread: f64) -> (f64, Duration, Duration) {
        let pace = Pace::new();
        let mut noise = Noise(42);
        let mut next = || mean.mul_f64(1.0 + spread * noise.next());
        for _ in 0..10 {
            watch(&pace, ActionKind::Attach, next());
        }
        let seen: Vec<_> = (0..200).map(|_| watch(&pace, ActionKind::Attach, next())).collect();
        let mut late: Vec<_> = seen.iter().map(|(_, late)| *late).collect();
        late.sort();
        let looks = f64::from(seen.iter().map(|(count, _)| count).sum::<u32>()) / 200.0;
        (looks, late[100], late.iter().sum::<Duration>() / 200)
    }

    #[test]
    fn steady_actions_are_noticed_at_once_and_with_few_looks() {
        for mean in [300, 1300, 3500, 5000] {
            let (looks, median, average) = judge(ms(mean), 0.0);
            assert!(looks <= 2.0 && median <= ms(40) && average <= ms(40), "{mean}: {looks} {median:?} {average:?}");
        }
    }

    #[test]
    fn actions_that_end_on_time_get_one_look_mostly_and_two_now_and_then() {
        for mean in [1300, 3500, 5000] {
            let (looks, median, _) = judge(ms(mean), 0.0);
            assert!(looks <= 1.5 && median <= ms(40), "{mean}: {looks} {median:?}");
        }
    }

    #[test]
    fn unsteady_actions_cost_two_or_three_looks_and_little_waiting() {
        for (mean, spread) in [(300, 0.1), (1300, 0.1), (4000, 0.05), (4000, 0.1), (4000, 0.2), (4500, 0.3)] {
            let (looks, _, average) = judge(ms(mean), spread);
            assert!(looks < 2.6, "{mean} +-{spread}: {looks} looks");
            assert!(average < ms(mean).mul_f64(0.12).max(ms(40)), "{mean} +-{spread}: {average:?} late");
        }
    }

    #[test]
    fn the_first_action_of_a_process_is_not_waited_for_blindly() {
        for took in [10, 300, 1300, 5000, 20_000] {
            let (looks, late) = watch(&Pace::new(), ActionKind::Detach, ms(took));
            assert!(late <= ms(220).max(ms(took) * 3 / 5), "{took}: {late:?}");
            assert!(looks <= 20, "{took}: {looks}");
        }
    }

    #[test]
    fn a_change_of_speed_is_followed_in_a_few_actions() {
        for (before, after) in [(5000, 300), (300, 5000), (4000, 1300)] {
            let pace = Pace::new();
            for _ in 0..20 {
                watch(&pace, ActionKind::Attach, ms(before));
            }
            for _ in 0..9 {
                watch(&pace, ActionKind::Attach, ms(after));
            }
            let (looks, late) = watch(&pace, ActionKind::Attach, ms(after));
            assert!(looks <= 5 && late <= ms(after) / 8, "{before} to {after}: {looks} looks, {late:?} late");
        }
    }

    #[test]
    fn kinds_are_learned_apart_but_the_first_detach_is_expected_to_be_like_an_attach() {
        let pace = Pace::new();
        watch(&pace, ActionKind::Attach, ms(5000));
        assert_eq!(pace.begin(ActionKind::Resize).due(), ms(4000) / 16);
        let (looks, late) = watch(&pace, ActionKind::Detach, ms(5000));
        assert!(looks <= 4 && late < ms(1000), "{looks} looks, {late:?} late");
        for _ in 0..10 {
            watch(&pace, ActionKind::Detach, ms(2000));
        }
        let (looks, late) = watch(&pace, ActionKind::Detach, ms(2000));
        assert!(looks <= 2 && late < ms(50), "{looks} looks, {late:?} late");
        assert!(pace.begin(ActionKind::Attach).due() > ms(4000));
    }

    #[test]
    fn detaches_that_take_less_than_attaches_are_known_after_a_few() {
        for (attach, detach) in [(4500, 3500), (5000, 3000), (4000, 4000)] {
            let pace = Pace::new();
            watch(&pace, ActionKind::Attach, ms(attach));
            let late: Vec<_> = (0..6).map(|_| watch(&pace, ActionKind::Detach, ms(detach)).1).collect();
            assert!(late[0] < ms(1300) && late[3] < ms(400) && late[5] < ms(100), "{attach}, {detach}: {late:?}");
        }
    }

    #[test]
    fn many_actions_at_once_are_noticed_as_soon_as_one() {
        for many in [2, 7, 15] {
            let pace = Pace::new();
            for _ in 0..20 {
                watch(&pace, ActionKind::Attach, ms(5000));
            }
            let (mut looks, mut late) = (0, Vec::new());
            for _ in 0..20 {
                let begun: Vec<_> = (0..many).map(|_| pace.begin(ActionKind::Attach)).collect();
                for (count, by, sample) in begun.into_iter().map(|looks| follow(looks, ms(5000))) {
                    pace.learn(sample);
                    looks += count;
                    late.push(by);
                }
            }
            let worst = late.iter().max().unwrap();
            assert!(looks <= many * 20 * 2 && *worst <= ms(60), "{many}: {looks} looks, {worst:?}");
        }
    }

    #[test]
    fn looks_that_told_nothing_teach_nothing() {
        let pace = Pace::new();
        watch(&pace, ActionKind::Attach, ms(300));
        let mut looks = pace.begin(ActionKind::Attach);
        looks.told_nothing(ms(300));
        assert!(looks.due() > ms(300));
        assert_eq!(looks.finished(ms(90_000)), None);
        let joined = pace.join(ActionKind::Attach);
        assert!(joined.due() < ms(100), "it may be about to end: {:?}", joined.due());
        assert_eq!(joined.finished(ms(100)), None);
    }

    #[test]
    fn one_endless_action_does_not_spoil_the_rest() {
        let pace = Pace::new();
        for _ in 0..20 {
            watch(&pace, ActionKind::Attach, ms(4000));
        }
        let (looks, _) = watch(&pace, ActionKind::Attach, Duration::from_secs(90));
        assert!(looks < 60, "{looks}");
        let (_, late) = watch(&pace, ActionKind::Attach, ms(4000));
        assert!(late < ms(2500), "right after: {late:?}");
        for _ in 0..12 {
            watch(&pace, ActionKind::Attach, ms(4000));
        }
        let (_, late) = watch(&pace, ActionKind::Attach, ms(4000));
        assert!(late < ms(300), "{late:?}");
    }
}
