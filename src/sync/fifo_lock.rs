//! Standing in line: one at a time for each key, in the order in which they came.
//!
//! Owns the lines and nothing of what is done by whoever is first. The locks of volumes and the turns of droplets are
//! such lines; other processes are not known here.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The lines of all keys that something is being done to; a clone is another way to the same lines.
#[derive(Debug)]
pub struct FifoLocks<K>(Arc<Shared<K>>);

#[derive(Debug)]
struct Shared<K> {
    state: Mutex<State<K>>,
    moved: Condvar,
}

#[derive(Debug)]
struct State<K> {
    lines: HashMap<K, VecDeque<u64>>,
    next_ticket: u64,
}

/// A place in a line; who is behind moves up when this is dropped.
#[derive(Debug)]
pub struct FifoGuard<K: Eq + Hash> {
    shared: Arc<Shared<K>>,
    key: K,
    ticket: u64,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLock {
    /// Too many were in the line already.
    Full,
    /// The deadline came before the turn.
    TooLate,
}

impl<K> Default for FifoLocks<K> {
    fn default() -> Self {
        let state = Mutex::new(State { lines: HashMap::new(), next_ticket: 0 });
        FifoLocks(Arc::new(Shared { state, moved: Condvar::new() }))
    }
}

impl<K> Clone for FifoLocks<K> {
    fn clone(&self) -> Self {
        FifoLocks(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash + Clone> FifoLocks<K> {
    /// Takes the last place in the line of `key`, and does not wait.
    ///
    /// # Errors
    /// [`NoLock::Full`] when more than `max_queue` are ahead.
    pub fn enter(&self, key: K, max_queue: usize) -> Result<FifoGuard<K>, NoLock> {
        let mut state = self.0.lock();
        if state.lines.get(&key).map_or(0, VecDeque::len) > max_queue {
            return Err(NoLock::Full);
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.lines.entry(key.clone()).or_default().push_back(ticket);
        // From here on the place's Drop takes the ticket out again, however this ends.
        Ok(FifoGuard { shared: Arc::clone(&self.0), key, ticket })
    }

    /// Waits until nobody is ahead in the line of `key`.
    ///
    /// # Errors
    /// [`NoLock::Full`] at once when more than `max_queue` are ahead, [`NoLock::TooLate`] when the deadline came first.
    pub fn wait(&self, key: K, max_queue: usize, deadline: Instant) -> Result<FifoGuard<K>, NoLock> {
        let place = self.enter(key, max_queue)?;
        place.wait(deadline)?;
        Ok(place)
    }

    #[cfg(test)]
    pub(crate) fn len(&self, key: &K) -> usize {
        self.0.lock().lines.get(key).map_or(0, VecDeque::len)
    }
}

impl<K> Shared<K> {
    /// A panic while the lines were locked leaves them whole, as every change to them is a single one.
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> State<K> {
    fn first(&self, key: &K) -> Option<u64> {
        self.lines.get(key).and_then(VecDeque::front).copied()
    }
}

impl<K: Eq + Hash> FifoGuard<K> {
    /// Waits until this is the first place.
    ///
    /// # Errors
    /// [`NoLock::TooLate`] when the deadline came first.
    pub fn wait(&self, deadline: Instant) -> Result<(), NoLock> {
        let mut state = self.shared.lock();
        while state.first(&self.key) != Some(self.ticket) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Err(NoLock::TooLate);
            }
            state = self.shared.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl<K: Eq + Hash + Clone> FifoGuard<K> {
    /// A place behind those that are in the line by now; none: nobody is behind this one.
    #[must_use]
    pub fn behind_others(&self) -> Option<FifoGuard<K>> {
        let is_awaited = self.shared.lock().lines.get(&self.key).is_some_and(|line| line.len() > 1);
        is_awaited.then(|| FifoLocks(Arc::clone(&self.shared)).enter(self.key.clone(), usize::MAX).ok()).flatten()
    }
}

impl<K: Eq + Hash> Drop for FifoGuard<K> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(line) = state.lines.get_mut(&self.key) {
            line.retain(|ticket| *ticket != self.ticket);
            if line.is_empty() {
                state.lines.remove(&self.key);
            }
        }
        self.shared.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const ANY: usize = usize::MAX;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn those_in_one_line_come_in_order() {
        let lines = FifoLocks::default();
        let done = Arc::new(Mutex::new(Vec::new()));
        let first = lines.wait(1, ANY, soon()).unwrap();
        let mut waiting = Vec::new();
        for number in 0..5 {
            let before = lines.len(&1);
            waiting.push(thread::spawn({
                let (lines, done) = (lines.clone(), Arc::clone(&done));
                move || {
                    let _place = lines.wait(1, ANY, soon()).unwrap();
                    done.lock().unwrap().push(number);
                }
            }));
            while lines.len(&1) == before {
                thread::yield_now();
            }
        }
        drop(first);
        for thread in waiting {
            thread.join().unwrap();
        }
        assert_eq!(*done.lock().unwrap(), [0, 1, 2, 3, 4]);
        assert!(lines.0.lock().lines.is_empty());
    }

    #[test]
    fn a_place_counts_from_when_it_was_taken_and_not_from_when_it_is_waited_for() {
        let lines = FifoLocks::default();
        let (first, second) = (lines.enter(1, ANY).unwrap(), lines.enter(1, ANY).unwrap());
        assert_eq!(second.wait(Instant::now()), Err(NoLock::TooLate));
        assert_eq!(first.wait(Instant::now()), Ok(()));
        drop(first);
        assert_eq!(second.wait(Instant::now()), Ok(()));
        assert_eq!(lines.enter(1, 0).unwrap_err(), NoLock::Full);
    }

    #[test]
    fn lines_do_not_wait_for_each_other_and_a_deadline_ends_the_wait() {
        let lines = FifoLocks::default();
        let _first = lines.wait(1, ANY, soon()).unwrap();
        assert!(lines.wait(2, ANY, Instant::now()).is_ok());
        assert_eq!(lines.wait(1, ANY, Instant::now() + Duration::from_millis(5)).unwrap_err(), NoLock::TooLate);
        assert_eq!(lines.len(&1), 1);
    }

    #[test]
    fn a_line_that_is_long_enough_takes_nobody_more() {
        let lines = FifoLocks::default();
        let _first = lines.wait(1, 0, soon()).unwrap();
        assert_eq!(lines.wait(1, 0, soon()).unwrap_err(), NoLock::Full);
        assert_eq!(lines.len(&1), 1);
    }
}
