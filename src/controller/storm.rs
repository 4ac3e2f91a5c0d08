//! Many attaches at once, as when a cluster comes back: its plugins share a quota and know nothing of each other.
//!
//! Owns what this process sees of it: how many of its own calls attach volumes, and how many came together. Where several
//! came together here, they did so elsewhere too, most likely; so each process begins a random while later. A call that comes
//! alone never waits.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cloud::rate_limit::Expected;

/// Calls that come closer after each other came together.
const TOGETHER: Duration = Duration::from_secs(1);

/// How many that come together wait the longest.
const MANY: u32 = 6;

/// How many requests an attach takes.
const OF_AN_ATTACH: u32 = 4;
/// How many others do the same, for each call that is not alone here.
const LIKE_US: u32 = 3;

/// The calls that attach volumes.
#[derive(Debug, Default)]
pub(super) struct Storm(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    running: u32,
    burst: Option<Burst>,
}

/// Calls that came together.
#[derive(Debug, Clone, Copy)]
struct Burst {
    begun: Instant,
    last: Instant,
    count: u32,
    /// From 0 to 1, and for all the same.
    chance: f64,
}

/// A call that attaches a volume.
#[derive(Debug)]
pub(super) struct Attaching<'a>(&'a Storm);

impl Storm {
    /// Takes notice of a call, until it ends.
    pub(super) fn enter(&self) -> Attaching<'_> {
        self.enter_at(Instant::now(), fastrand::f64())
    }

    fn enter_at(&self, now: Instant, chance: f64) -> Attaching<'_> {
        let mut state = self.lock();
        state.running = state.running.saturating_add(1);
        state.burst = Some(match state.burst {
            Some(burst) if now.saturating_duration_since(burst.last) < TOGETHER => {
                Burst { last: now, count: burst.count.saturating_add(1), ..burst }
            }
            Some(_) | None => Burst { begun: now, last: now, count: 1, chance },
        });
        Attaching(self)
    }

    /// How many calls attach volumes.
    pub(super) fn calls(&self) -> u32 {
        self.lock().running
    }

    /// How long a call has to wait before it asks DigitalOcean; `longest` is the longest of such waits.
    pub(super) fn pause(&self, longest: Duration, now: Instant) -> Duration {
        let state = self.lock();
        let Some(burst) = state.burst else { return Duration::ZERO };
        // Those that came one after the other, each when the last one had ended, did not come together.
        let spread = plan_spread(burst.count.min(state.running), longest);
        spread.mul_f64(burst.chance.clamp(0.0, 1.0)).saturating_sub(now.saturating_duration_since(burst.begun))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running = state.running.saturating_sub(1);
    }
}

/// In which time the processes begin to which so many calls came together.
fn plan_spread(calls: u32, longest: Duration) -> Duration {
    let others = calls.min(MANY).saturating_sub(1);
    longest * others.pow(2) / (MANY - 1).pow(2)
}

/// How many requests so many attaches still need, and others if they do the same.
pub(super) fn plan_expected(calls: u32) -> Expected {
    let own = calls.saturating_mul(OF_AN_ATTACH);
    let others = calls.saturating_sub(1).saturating_mul(LIKE_US);
    Expected { own, others: own.saturating_mul(others) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(25);

    #[test]
    fn the_more_come_together_the_longer_they_spread_and_one_alone_never_waits() {
        let table = [(0, 0), (1, 0), (2, 1), (3, 4), (4, 9), (5, 16), (6, 25), (1000, 25)];
        for (calls, seconds) in table {
            assert_eq!(plan_spread(calls, LONGEST), Duration::from_secs(seconds), "{calls}");
        }
    }

    #[test]
    fn one_attach_expects_no_others_and_many_expect_some() {
        let table = [(0, 0, 0), (1, 4, 0), (2, 8, 24), (3, 12, 72), (5, 20, 240), (u32::MAX, u32::MAX, u32::MAX)];
        for (calls, own, others) in table {
            assert_eq!(plan_expected(calls), Expected { own, others }, "{calls}");
        }
    }

    #[test]
    fn calls_that_come_together_begin_together_at_a_random_time() {
        let (storm, begun) = (Storm::default(), Instant::now());
        let at = |ms| begun + Duration::from_millis(ms);
        let first = storm.enter_at(at(0), 0.5);
        assert_eq!(storm.pause(LONGEST, at(0)), Duration::ZERO);
        let second = storm.enter_at(at(100), 1.0);
        assert_eq!(storm.pause(LONGEST, at(100)), Duration::from_millis(400));
        assert_eq!(storm.pause(LONGEST, at(600)), Duration::ZERO);
        drop(second);
        // One after the other: they are as many, and none is with another.
        for number in 2..10 {
            drop(first_alone(&storm, at(number * 500)));
        }
        drop(first);
        assert_eq!(storm.calls(), 0);
        let alone = storm.enter_at(at(60_000), 1.0);
        assert_eq!((storm.calls(), storm.pause(LONGEST, at(60_000))), (1, Duration::ZERO));
        drop(alone);
    }

    fn first_alone(storm: &Storm, at: Instant) -> Attaching<'_> {
        let call = storm.enter_at(at, 1.0);
        assert!(storm.pause(LONGEST, at) <= Duration::from_millis(500));
        call
    }
}
