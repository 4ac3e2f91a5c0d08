//! Pauses between calls that keep failing.
//!
//! Owns what is remembered of detaches that failed: when the next one may be tried, and how long. Nomad repeats a failed
//! detach in a hot loop, and each try costs calls of the account's quota; and since 1.6.1 it sends a plugin one call at a
//! time, so that every other volume waits behind each. Forgetting it all, as a restart does, is harmless.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::id::{DropletId, VolumeId};

/// A volume and the droplet that it cannot be taken from; none: from wherever it is.
pub type Pair = (VolumeId, Option<DropletId>);

/// What a failure means for the call that repeats it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repeat {
    /// Nothing: none failed, or so long ago that this is no hot loop.
    Whole,
    /// It may be tried, for a short time.
    Short,
    /// It is too early.
    Early {
        /// For how long yet.
        left: Duration,
        /// Why the last one failed.
        why: String,
    },
}

#[derive(Debug, Clone)]
struct Setback {
    pause: Duration,
    until: Instant,
    why: String,
}

/// Decides about the call that repeats a failed one. A hot loop comes back as soon as it may. Who lets the longest pause
/// pass besides is slow enough by itself, as Nomad before 1.3 with its five minutes, and is not to wait for a second call.
fn plan_repeat(setback: Option<&Setback>, longest_pause: Duration, now: Instant) -> Repeat {
    match setback {
        None => Repeat::Whole,
        Some(setback) if now < setback.until => {
            Repeat::Early { left: setback.until.saturating_duration_since(now), why: setback.why.clone() }
        }
        Some(setback) if now < setback.until + longest_pause => Repeat::Short,
        Some(_) => Repeat::Whole,
    }
}

/// The pairs whose last try failed.
#[derive(Debug)]
pub struct Setbacks {
    first_pause: Duration,
    longest_pause: Duration,
    table: Mutex<HashMap<Pair, Setback>>,
}

impl Setbacks {
    /// Remembers nothing yet; `pauses` are the one after the first failure, and the longest one.
    #[must_use]
    pub fn new(pauses: (Duration, Duration)) -> Setbacks {
        Setbacks { first_pause: pauses.0, longest_pause: pauses.1, table: Mutex::default() }
    }

    /// What earlier failures mean for a call that comes now.
    #[must_use]
    pub fn repeat(&self, pair: &Pair, now: Instant) -> Repeat {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        plan_repeat(table.get(pair), self.longest_pause, now)
    }

    /// Whether a setback is young enough to make the next pause longer; after a long while, what failed is finished business.
    fn counts(&self, setback: &Setback, now: Instant) -> bool {
        now < setback.until + self.longest_pause * 10
    }

    /// A try failed, for this reason: the next pause is twice as long as the last.
    pub fn failed(&self, pair: Pair, why: String, now: Instant) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, setback| self.counts(setback, now));
        let pause = table.get(&pair).map_or(self.first_pause, |last| (last.pause * 2).min(self.longest_pause));
        table.insert(pair, Setback { pause, until: now + pause, why });
    }

    /// A try succeeded: the next one need not wait.
    pub fn succeeded(&self, pair: &Pair) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(pair);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setbacks() -> Setbacks {
        Setbacks::new((Duration::from_secs(1), Duration::from_secs(60)))
    }

    fn pair(droplet: u64) -> Pair {
        (VolumeId::parse("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2").unwrap(), DropletId::new(droplet))
    }

    fn fail(setbacks: &Setbacks, droplet: u64, now: Instant) {
        setbacks.failed(pair(droplet), "no".to_owned(), now);
    }

    fn early(seconds: u64) -> Repeat {
        Repeat::Early { left: Duration::from_secs(seconds), why: "no".to_owned() }
    }

    #[test]
    fn pauses_double_to_a_bound_and_end_with_success() {
        let setbacks = setbacks();
        let now = Instant::now();
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            fail(&setbacks, 1, now);
            assert_eq!(setbacks.repeat(&pair(1), now), early(pause));
        }
        assert_eq!(setbacks.repeat(&pair(2), now), Repeat::Whole);
        setbacks.succeeded(&pair(1));
        assert_eq!(setbacks.repeat(&pair(1), now), Repeat::Whole);
    }

    #[test]
    fn a_hot_loop_gets_short_tries_and_who_comes_back_late_has_the_whole_time() {
        let longest = Duration::from_secs(60);
        let failed_at = Instant::now();
        let pause = Duration::from_secs(8);
        let setback = Setback { pause, until: failed_at + pause, why: "no".to_owned() };
        let table = [
            (0, early(8)),
            (7, early(1)),
            (8, Repeat::Short),
            (67, Repeat::Short),
            (68, Repeat::Whole),
            (300, Repeat::Whole),
        ];
        for (after, want) in table {
            let now = failed_at + Duration::from_secs(after);
            assert_eq!(plan_repeat(Some(&setback), longest, now), want, "{after} s");
        }
        assert_eq!(plan_repeat(None, longest, failed_at), Repeat::Whole);
    }

    #[test]
    fn old_setbacks_are_forgotten() {
        let setbacks = setbacks();
        let now = Instant::now();
        let minutes = |minutes| now + Duration::from_secs(60) * minutes;
        (0..2).for_each(|_| fail(&setbacks, 1, now));
        fail(&setbacks, 2, minutes(5));
        fail(&setbacks, 1, minutes(9));
        assert_eq!(setbacks.repeat(&pair(1), minutes(9)), early(4), "failures some minutes apart are of one story");
        fail(&setbacks, 3, minutes(20));
        assert_eq!(setbacks.table.lock().unwrap().len(), 1);
    }
}
