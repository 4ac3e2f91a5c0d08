//! One change at a time for each volume.
//!
//! Owns the table of volumes that some call is changing now. It does not know what a change is; the guard it hands out
//! is the permission that every changing function takes as its first argument, so that an unlocked change does not compile.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is locked: the volume's name while it is being created, its id afterwards.
///
/// On a node the id is whatever the orchestrator sends; old Nomads send their own id there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum VolumeKey {
    /// A volume (or snapshot) that may not exist yet, by its CSI name.
    Name(String),
    /// A volume (or snapshot) that exists, by the id in the request.
    Id(String),
}

impl fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VolumeKey::Name(name) => write!(f, "volume named {name}"),
            VolumeKey::Id(id) => write!(f, "volume {id}"),
        }
    }
}

/// Why a volume could not be locked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another call for {key} is still running{detail}")]
pub struct Locked {
    key: VolumeKey,
    detail: &'static str,
}

/// The volumes that are being changed now.
#[derive(Debug, Clone, Default)]
pub struct VolumeLocks {
    table: Arc<Table>,
}

#[derive(Debug, Default)]
struct Table {
    held: Mutex<HashMap<VolumeKey, Entry>>,
    freed: Condvar,
}

/// Who has to do with a locked volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// One caller holds it.
    Held,
    /// One caller holds it and one waits.
    Awaited,
    /// Nobody holds it; it is kept for the one that waits, so that a newcomer cannot overtake.
    Handed,
}

impl VolumeLocks {
    /// Makes an empty table.
    #[must_use]
    pub fn new() -> Self {
        VolumeLocks::default()
    }

    /// Locks a volume, waiting up to `patience` while another call holds it.
    ///
    /// One caller holds a volume and at most one waits: an orchestrator's retry then finds the work done, while a
    /// storm of retries cannot take all workers.
    ///
    /// # Errors
    /// [`Locked`] when another caller waits already, or when the wait ran out.
    pub fn hold(&self, key: VolumeKey, patience: Duration) -> Result<VolumeGuard, Locked> {
        let deadline = Instant::now() + patience;
        let mut held = self.table.lock();
        match held.get(&key) {
            None => return Ok(self.take(&mut held, key)),
            Some(Entry::Awaited | Entry::Handed) => {
                return Err(Locked { key, detail: ", and one more waits for it" });
            }
            Some(Entry::Held) => held.insert(key.clone(), Entry::Awaited),
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (guard, _) = self.table.freed.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner);
            held = guard;
            match held.get(&key) {
                None | Some(Entry::Handed) => return Ok(self.take(&mut held, key)),
                Some(Entry::Held | Entry::Awaited) if left.is_zero() => {
                    held.insert(key.clone(), Entry::Held);
                    return Err(Locked { key, detail: " after a wait" });
                }
                Some(Entry::Held | Entry::Awaited) => {}
            }
        }
    }

    fn take(&self, held: &mut HashMap<VolumeKey, Entry>, key: VolumeKey) -> VolumeGuard {
        held.insert(key.clone(), Entry::Held);
        VolumeGuard { _lease: Arc::new(Lease { table: Arc::clone(&self.table), key }) }
    }
}

impl Table {
    /// A panic while the table was locked leaves it whole, as every change to it is a single insert or remove.
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeKey, Entry>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Permission to change one volume. The volume is free again when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct VolumeGuard {
    _lease: Arc<Lease>,
}

#[derive(Debug)]
struct Lease {
    table: Arc<Table>,
    key: VolumeKey,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut held = self.table.lock();
        match held.remove(&self.key) {
            Some(Entry::Awaited) => {
                held.insert(self.key.clone(), Entry::Handed);
                self.table.freed.notify_all();
            }
            Some(Entry::Held | Entry::Handed) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn key() -> VolumeKey {
        VolumeKey::Id("v".into())
    }

    #[test]
    fn a_waiter_gets_the_volume_when_the_last_clone_of_the_guard_is_dropped() {
        let locks = VolumeLocks::new();
        let first = locks.hold(key(), Duration::ZERO).unwrap();
        let clone = first.clone();
        let waiter = thread::spawn({
            let locks = locks.clone();
            move || locks.hold(key(), Duration::from_secs(10)).map(drop)
        });
        drop(first);
        assert!(!waiter.is_finished());
        drop(clone);
        assert_eq!(waiter.join().unwrap(), Ok(()));
        assert!(locks.hold(key(), Duration::ZERO).is_ok());
    }

    #[test]
    fn a_wait_ends_with_its_patience_and_leaves_room_for_the_next_waiter() {
        let locks = VolumeLocks::new();
        let _first = locks.hold(key(), Duration::ZERO).unwrap();
        for _ in 0..2 {
            assert!(locks.hold(key(), Duration::from_millis(1)).is_err());
        }
    }

    #[test]
    fn a_third_caller_is_refused_at_once() {
        let locks = VolumeLocks::new();
        let first = locks.hold(key(), Duration::ZERO).unwrap();
        let waiter = thread::spawn({
            let locks = locks.clone();
            move || locks.hold(key(), Duration::from_secs(10)).map(drop)
        });
        while locks.table.lock().get(&key()) != Some(&Entry::Awaited) {
            thread::yield_now();
        }
        let asked = Instant::now();
        assert!(locks.hold(key(), Duration::from_secs(10)).is_err());
        assert!(asked.elapsed() < Duration::from_secs(5));
        drop(first);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    }

    #[test]
    fn volumes_do_not_wait_for_each_other_and_a_panic_frees_its_volume() {
        let locks = VolumeLocks::new();
        let _other = locks.hold(VolumeKey::Name("v".into()), Duration::ZERO).unwrap();
        let panicked = thread::spawn({
            let locks = locks.clone();
            move || {
                let _guard = locks.hold(key(), Duration::ZERO).unwrap();
                panic!("on purpose");
            }
        });
        assert!(panicked.join().is_err());
        assert!(locks.hold(key(), Duration::ZERO).is_ok());
    }
}
