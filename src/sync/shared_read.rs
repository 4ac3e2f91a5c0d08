//! One reading for all who ask for the same at the same time.
//!
//! Owns who reads and who waits for what is read. A caller never gets what was read before it came: a list that is older
//! than the question may lack what the caller has just made. So those who come while somebody reads share the next reading,
//! and there are two at most for any number of callers that come together.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::activity::wait_for;

/// Readings by what is read.
#[derive(Debug)]
pub struct SharedReads<K, V>(Arc<Shared<K, V>>);

#[derive(Debug)]
struct Shared<K, V> {
    state: Mutex<State<K, V>>,
    ended: Condvar,
}

#[derive(Debug)]
struct State<K, V> {
    /// How many readings have begun.
    begun: u64,
    /// How many callers are there; with the last of them, what was read is forgotten.
    callers: usize,
    reads: HashMap<K, Read<V>>,
}

#[derive(Debug)]
struct Read<V> {
    is_running: bool,
    /// The last one that succeeded, with its number.
    last: Option<(u64, Arc<V>)>,
}

/// A caller that has come, and may still be waiting for a thread. What it is given is read later than that.
#[derive(Debug)]
pub struct Caller<K: Eq + Hash, V> {
    shared: Arc<Shared<K, V>>,
    /// The readings that had begun before.
    before: u64,
}

impl<K, V> Default for SharedReads<K, V> {
    fn default() -> Self {
        let state = Mutex::new(State { begun: 0, callers: 0, reads: HashMap::new() });
        SharedReads(Arc::new(Shared { state, ended: Condvar::new() }))
    }
}

impl<K, V> Shared<K, V> {
    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        // Each change of the state is a single one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone, V> SharedReads<K, V> {
    /// Takes notice of a caller.
    #[must_use]
    pub fn arrive(&self) -> Caller<K, V> {
        let mut state = self.0.lock();
        state.callers = state.callers.saturating_add(1);
        Caller { shared: Arc::clone(&self.0), before: state.begun }
    }
}

impl<K: Eq + Hash + Clone, V> Caller<K, V> {
    /// What another has read since this caller came.
    #[must_use]
    pub fn found(&self, key: &K) -> Option<Arc<V>> {
        let state = self.shared.lock();
        let (number, found) = state.reads.get(key)?.last.as_ref()?;
        (*number > self.before).then(|| Arc::clone(found))
    }

    /// What a reading brings that began after this caller came: its own, or that of another who asks for the same.
    ///
    /// One at a time reads the same. When that fails, it fails for who has read alone, and the next one reads. `Ok(None)`:
    /// the deadline came while another was reading.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(
        &self,
        key: &K,
        deadline: Instant,
        read: impl FnOnce() -> Result<V, E>,
    ) -> Result<Option<Arc<V>>, E> {
        let mut state = self.shared.lock();
        let number = loop {
            let this = state.reads.entry(key.clone()).or_insert(Read { is_running: false, last: None });
            if let Some((number, found)) = &this.last
                && *number > self.before
            {
                return Ok(Some(Arc::clone(found)));
            }
            if !this.is_running {
                this.is_running = true;
                state.begun = state.begun.saturating_add(1);
                break state.begun;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Ok(None);
            }
            let _waiting = wait_for("waiting for a list of DigitalOcean's", "another call reads it");
            state = self.shared.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(state);
        let running = Running { shared: &self.shared, key };
        let found = Arc::new(read()?);
        if let Some(this) = self.shared.lock().reads.get_mut(key) {
            this.last = Some((number, Arc::clone(&found)));
        }
        drop(running);
        Ok(Some(found))
    }
}

impl<K: Eq + Hash, V> Drop for Caller<K, V> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.callers = state.callers.saturating_sub(1);
        if state.callers == 0 {
            state.reads = HashMap::new();
        }
    }
}

/// A reading under way, however it ends.
struct Running<'a, K: Eq + Hash, V> {
    shared: &'a Shared<K, V>,
    key: &'a K,
}

impl<K: Eq + Hash, V> Drop for Running<'_, K, V> {
    fn drop(&mut self) {
        if let Some(this) = self.shared.lock().reads.get_mut(self.key) {
            this.is_running = false;
        }
        self.shared.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::bounded;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn those_who_come_while_somebody_reads_share_the_next_reading() {
        let reads: SharedReads<&str, u32> = SharedReads::default();
        let count = AtomicU32::new(0);
        let read = || Ok::<_, ()>(count.fetch_add(1, Ordering::SeqCst) + 1);
        let first = reads.arrive();
        let (reading, is_reading) = bounded(1);
        let (others, have_come) = bounded(1);
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                first.read(&"list", soon(), || {
                    reading.send(()).unwrap();
                    have_come.recv().unwrap();
                    read()
                })
            });
            is_reading.recv().unwrap();
            let callers: Vec<_> = (0..20).map(|_| reads.arrive()).collect();
            let late: Vec<_> = callers
                .into_iter()
                .map(|caller| scope.spawn(move || caller.read(&"list", soon(), read).unwrap().map(|found| *found)))
                .collect();
            // One who asks for something else does not wait.
            assert_eq!(*reads.arrive().read(&"other", soon(), || Ok::<_, ()>(77)).unwrap().unwrap(), 77);
            // A deadline ends the wait.
            assert_eq!(reads.arrive().read(&"list", Instant::now(), read), Ok(None));
            others.send(()).unwrap();
            assert_eq!(first.join().unwrap().unwrap().map(|found| *found), Some(1));
            for caller in late {
                assert_eq!(caller.join().unwrap(), Some(2), "what was read before it came is too old for it");
            }
        });
        drop(first);
        assert_eq!(count.load(Ordering::SeqCst), 2);
        assert!(reads.0.lock().reads.is_empty(), "nothing is kept when all have gone");
    }

    #[test]
    fn who_waited_for_a_thread_is_served_by_what_was_read_meanwhile() {
        let reads: SharedReads<(), u32> = SharedReads::default();
        let queued: Vec<_> = (0..3).map(|_| reads.arrive()).collect();
        let mut count = 0;
        for caller in &queued {
            let found = caller.read(&(), soon(), || {
                count += 1;
                Ok::<_, ()>(count)
            });
            assert_eq!(found.unwrap().map(|found| *found), Some(1));
        }
        assert_eq!(reads.arrive().read(&(), soon(), || Ok::<_, ()>(2)).unwrap().map(|found| *found), Some(2));
    }

    #[test]
    fn a_failed_reading_is_the_readers_alone() {
        let reads: SharedReads<(), u32> = SharedReads::default();
        let (one, two) = (reads.arrive(), reads.arrive());
        assert_eq!(one.read(&(), soon(), || Err("no")), Err("no"));
        assert_eq!(two.read(&(), soon(), || Ok::<_, ()>(5)).unwrap().map(|found| *found), Some(5));
    }
}
