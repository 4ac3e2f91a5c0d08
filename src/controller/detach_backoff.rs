//! Pauses between calls that keep failing.
//!
//! Owns what is remembered of detaches that failed: when the next one may be tried, and how long. Nomad repeats a failed
//! detach in a hot loop, and each try costs calls of the account's quota; and since 1.6.1 it sends a plugin one call at a
//! time, so that every other volume waits behind each. Forgetting it all, as a restart does, is harmless.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::controller::recent::Recent;
use crate::id::{DropletId, VolumeId};

/// A volume and the droplet that it cannot be taken from; none: from wherever it is.
pub(super) type Pair = (VolumeId, Option<DropletId>);

/// What a failure means for the call that repeats it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Admission {
    /// Nothing: none failed, or so long ago that this is no hot loop.
    Normal,
    /// It may be tried, for a short time.
    Shortened,
    /// It is too early.
    Deferred {
        /// For how long yet.
        left: Duration,
        /// Why the last one failed.
        why: String,
    },
}

#[derive(Debug, Clone)]
struct FailedDetach {
    pause: Duration,
    until: Instant,
    why: String,
}

/// Decides about the call that repeats a failed one. A hot loop comes back as soon as it may. Who lets the longest pause
/// pass besides is slow enough by itself, as Nomad before 1.3 with its five minutes, and is not to wait for a second call.
fn plan_admission(failed_detach: Option<&FailedDetach>, longest_pause: Duration, now: Instant) -> Admission {
    match failed_detach {
        None => Admission::Normal,
        Some(failed_detach) if now < failed_detach.until => Admission::Deferred {
            left: failed_detach.until.saturating_duration_since(now),
            why: failed_detach.why.clone(),
        },
        Some(failed_detach) if now < failed_detach.until + longest_pause => Admission::Shortened,
        Some(_) => Admission::Normal,
    }
}

/// The pairs whose last try failed.
#[derive(Debug)]
pub(super) struct DetachBackoff {
    first_pause: Duration,
    longest_pause: Duration,
    table: Mutex<Recent<Pair, FailedDetach>>,
}

impl DetachBackoff {
    /// Remembers nothing yet; `pauses` are the one after the first failure, and the longest one.
    #[must_use]
    pub(super) fn new(pauses: (Duration, Duration)) -> DetachBackoff {
        DetachBackoff { first_pause: pauses.0, longest_pause: pauses.1, table: Mutex::default() }
    }

    /// What earlier failures mean for a call that comes now.
    #[must_use]
    pub(super) fn repeat(&self, pair: &Pair, now: Instant) -> Admission {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        plan_admission(table.get(pair), self.longest_pause, now)
    }

    /// Whether a failed detach is young enough to make the next pause longer; after a long while, what failed is finished business.
    fn counts(&self, failed_detach: &FailedDetach, now: Instant) -> bool {
        now < failed_detach.until + self.longest_pause * 10
    }

    /// The volumes whose last detach has failed lately, in the order of their ids and no more than so many.
    pub(super) fn failing(&self, most: usize, now: Instant) -> BTreeSet<VolumeId> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let failing: BTreeSet<VolumeId> =
            table.iter().filter(|(_, last)| self.counts(last, now)).map(|((id, _), _)| id.clone()).collect();
        failing.into_iter().take(most).collect()
    }

    /// A try failed, for this reason: the next pause is twice as long as the last.
    pub(super) fn failed(&self, pair: Pair, why: String, now: Instant) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let last = table.get(&pair).filter(|last| self.counts(last, now));
        let pause = last.map_or(self.first_pause, |last| (last.pause * 2).min(self.longest_pause));
        table.insert(pair, FailedDetach { pause, until: now + pause, why });
    }

    /// A try succeeded: the next one need not wait.
    pub(super) fn succeeded(&self, pair: &Pair) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(pair);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detach_backoff() -> DetachBackoff {
        DetachBackoff::new((Duration::from_secs(1), Duration::from_secs(60)))
    }

    fn pair(droplet: u64) -> Pair {
        (VolumeId::parse("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2").unwrap(), DropletId::new(droplet))
    }

    fn fail(detach_backoff: &DetachBackoff, droplet: u64, now: Instant) {
        detach_backoff.failed(pair(droplet), "no".to_owned(), now);
    }

    fn early(seconds: u64) -> Admission {
        Admission::Deferred { left: Duration::from_secs(seconds), why: "no".to_owned() }
    }

    #[test]
    fn pauses_double_to_a_bound_and_end_with_success() {
        let detach_backoff = detach_backoff();
        let now = Instant::now();
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            fail(&detach_backoff, 1, now);
            assert_eq!(detach_backoff.repeat(&pair(1), now), early(pause));
        }
        assert_eq!(detach_backoff.repeat(&pair(2), now), Admission::Normal);
        detach_backoff.succeeded(&pair(1));
        assert_eq!(detach_backoff.repeat(&pair(1), now), Admission::Normal);
    }

    #[test]
    fn a_hot_loop_gets_short_tries_and_who_comes_back_late_has_the_whole_time() {
        let longest = Duration::from_secs(60);
        let failed_at = Instant::now();
        let pause = Duration::from_secs(8);
        let failed_detach = FailedDetach { pause, until: failed_at + pause, why: "no".to_owned() };
        let table = [
            (0, early(8)),
            (7, early(1)),
            (8, Admission::Shortened),
            (67, Admission::Shortened),
            (68, Admission::Normal),
            (300, Admission::Normal),
        ];
        for (after, want) in table {
            let now = failed_at + Duration::from_secs(after);
            assert_eq!(plan_admission(Some(&failed_detach), longest, now), want, "{after} s");
        }
        assert_eq!(plan_admission(None, longest, failed_at), Admission::Normal);
    }

    #[test]
    fn old_setbacks_are_forgotten() {
        let detach_backoff = detach_backoff();
        let now = Instant::now();
        let minutes = |minutes| now + Duration::from_secs(60) * minutes;
        (0..2).for_each(|_| fail(&detach_backoff, 1, now));
        fail(&detach_backoff, 2, minutes(5));
        fail(&detach_backoff, 1, minutes(9));
        assert_eq!(
            detach_backoff.repeat(&pair(1), minutes(9)),
            early(4),
            "failures some minutes apart are of one story"
        );
        fail(&detach_backoff, 1, minutes(40));
        assert_eq!(detach_backoff.repeat(&pair(1), minutes(40)), early(1), "this is another story");
    }
}
