//! Pauses between calls that keep failing.
//!
//! Owns what is remembered of detaches that failed: when the next one may be tried. Nomad repeats a failed detach in a hot
//! loop, and each try costs calls of the account's quota. Forgetting it all, as a restart does, is harmless.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::id::{DropletId, VolumeId};

/// A volume and the droplet that it cannot be taken from; none: from wherever it is.
pub type Pair = (VolumeId, Option<DropletId>);

#[derive(Debug, Clone, Copy)]
struct Setback {
    pause: Duration,
    until: Instant,
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

    /// How long to wait before the next try; none: the last one did not fail.
    pub fn pause_before(&self, pair: &Pair, now: Instant) -> Option<Duration> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let setback = table.get(pair).filter(|setback| self.counts(setback, now))?;
        Some(setback.until.saturating_duration_since(now))
    }

    /// Whether a setback is young enough to say something; after a long while, what failed is finished business.
    fn counts(&self, setback: &Setback, now: Instant) -> bool {
        now < setback.until + self.longest_pause * 10
    }

    /// A try failed: the next pause is twice as long as the last.
    pub fn failed(&self, pair: Pair, now: Instant) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, setback| self.counts(setback, now));
        let pause = table.get(&pair).map_or(self.first_pause, |last| (last.pause * 2).min(self.longest_pause));
        table.insert(pair, Setback { pause, until: now + pause });
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

    #[test]
    fn pauses_double_to_a_bound_and_end_with_success() {
        let setbacks = setbacks();
        let now = Instant::now();
        let mut seen = Vec::new();
        for _ in 0..8 {
            setbacks.failed(pair(1), now);
            seen.push(setbacks.pause_before(&pair(1), now).unwrap().as_secs());
        }
        assert_eq!(seen, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(setbacks.pause_before(&pair(1), now + Duration::from_secs(60)), Some(Duration::ZERO));
        assert_eq!(setbacks.pause_before(&pair(2), now), None);
        setbacks.succeeded(&pair(1));
        assert_eq!(setbacks.pause_before(&pair(1), now), None);
    }

    #[test]
    fn old_setbacks_are_forgotten() {
        let setbacks = setbacks();
        let now = Instant::now();
        setbacks.failed(pair(1), now);
        setbacks.failed(pair(2), now + Duration::from_secs(60) * 20);
        assert_eq!(setbacks.table.lock().unwrap().len(), 1);
        let later = |minutes| now + Duration::from_secs(60) * minutes;
        assert_eq!(setbacks.pause_before(&pair(2), later(29)), Some(Duration::ZERO));
        assert_eq!(setbacks.pause_before(&pair(2), later(31)), None, "the next try has its whole time");
    }
}
