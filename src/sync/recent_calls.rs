//! Which volumes calls are about, and when the last one ended.
//!
//! Owns that memory, for who wants to know whether anybody has had to do with a volume lately. It is bounded, and it is not
//! needed for being right about anything that a lock is there for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::volume_lock::VolumeKey;

/// A droplet has 15 volumes at most, each with a name and an id or two; what has ended longest ago makes room.
const MOST: usize = 1024;

/// What is known of one volume's calls.
#[derive(Debug, Clone, Copy)]
struct Calls {
    running: usize,
    /// When the last one began or ended.
    last: Instant,
}

/// The calls of this process, by what they are about.
#[derive(Debug, Clone, Default)]
pub struct RecentCalls(Arc<Mutex<HashMap<VolumeKey, Calls>>>);

/// A call that runs, until this is dropped.
#[derive(Debug)]
pub struct RunningCall {
    recent_calls: RecentCalls,
    keys: Vec<VolumeKey>,
}

impl RecentCalls {
    /// Counts a call as running for all of these until what this gives is dropped.
    #[must_use]
    pub fn enter(&self, keys: impl IntoIterator<Item = VolumeKey>) -> RunningCall {
        let keys: Vec<VolumeKey> = keys.into_iter().collect();
        let mut table = self.lock();
        for key in &keys {
            let now = Instant::now();
            let calls = table.entry(key.clone()).or_insert(Calls { running: 0, last: now });
            *calls = Calls { running: calls.running.saturating_add(1), last: now };
        }
        drop(table);
        RunningCall { recent_calls: self.clone(), keys }
    }

    /// Whether a call for this runs, or has ended within this time.
    #[must_use]
    pub fn is_recent(&self, key: &VolumeKey, within: Duration) -> bool {
        self.lock().get(key).is_some_and(|calls| calls.running > 0 || calls.last.elapsed() < within)
    }

    fn end(&self, key: &VolumeKey) {
        let mut table = self.lock();
        if let Some(calls) = table.get_mut(key) {
            *calls = Calls { running: calls.running.saturating_sub(1), last: Instant::now() };
        }
        if table.len() > MOST {
            let ended = table.iter().filter(|(_, calls)| calls.running == 0);
            let oldest = ended.min_by_key(|(_, calls)| calls.last).map(|(key, _)| key.clone());
            oldest.map(|key| table.remove(&key));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeKey, Calls>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.keys.iter().for_each(|key| self.recent_calls.end(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> VolumeKey {
        VolumeKey::Name(name.to_owned())
    }

    #[test]
    fn a_call_counts_while_it_runs_and_for_a_while_after_it_has_ended() {
        let recent_calls = RecentCalls::default();
        assert!(!recent_calls.is_recent(&key("a"), Duration::MAX));
        let (first, second) = (recent_calls.enter([key("a"), key("b")]), recent_calls.enter([key("a")]));
        drop(first);
        assert!(recent_calls.is_recent(&key("a"), Duration::ZERO), "one of two runs");
        assert!(!recent_calls.is_recent(&key("b"), Duration::ZERO) && recent_calls.is_recent(&key("b"), Duration::MAX));
        drop(second);
        assert!(!recent_calls.is_recent(&key("a"), Duration::ZERO));
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_no_call_that_runs() {
        let recent_calls = RecentCalls::default();
        let _running = recent_calls.enter([key("first")]);
        for number in 0..2 * MOST {
            drop(recent_calls.enter([key(&number.to_string())]));
        }
        assert!(recent_calls.lock().len() <= MOST + 1);
        assert!(recent_calls.is_recent(&key("first"), Duration::ZERO));
    }
}
