//! One change at a time for each volume, and for each path.
//!
//! Owns what can be locked, the order in which several are locked, and the guard: the permission that every changing function
//! takes as its first argument, so that an unlocked change does not compile. It does not know what a change is.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::activity::{Waiting, wait_for};
use crate::sync::fifo_lock::{FifoGuard, FifoLocks, NoLock};

/// What is locked: the volume's name while it is being created, its id afterwards.
///
/// On a node the id is whatever the orchestrator sends; old Nomads send their own id there, so two ids may be one disk's. What
/// is open of an encrypted volume, and left, is known by the name of its device alone.
///
/// A call on a node takes the id of its volume first, for which it is in line since it came, and no other id. The rest is taken
/// in the order in which it is listed here, so no two calls wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VolumeKey {
    /// A place on this node at which something is mounted or unmounted, without links on the way.
    Path(PathBuf),
    /// A volume (or snapshot) that exists, by the id in the request.
    Id(String),
    /// A volume (or snapshot) that may not exist yet, by its CSI name; on a node a disk, by the name that it carries.
    Name(String),
}

impl fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VolumeKey::Path(path) => write!(f, "the path {}", path.display()),
            VolumeKey::Id(id) => write!(f, "volume {id}"),
            VolumeKey::Name(name) => write!(f, "volume named {name}"),
        }
    }
}

/// Why a volume could not be locked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another call for {key} is still running{detail}{for_whom}")]
pub struct VolumeBusy {
    key: VolumeKey,
    detail: &'static str,
    for_whom: String,
}

impl VolumeBusy {
    /// Tells of a volume that there is no place in the line for it.
    #[must_use]
    pub fn new(key: VolumeKey, why: NoLock) -> VolumeBusy {
        let detail = match why {
            NoLock::Full => ", and others wait for it",
            NoLock::TooLate => " after a wait",
        };
        VolumeBusy { key, detail, for_whom: String::new() }
    }

    /// Says which volume was asked for, where what is locked does not say it.
    #[must_use]
    pub fn asked_for(self, volume: &str) -> VolumeBusy {
        match self.key {
            VolumeKey::Id(_) => self,
            VolumeKey::Path(_) | VolumeKey::Name(_) => {
                VolumeBusy { for_whom: format!("; nothing was done to volume {volume}"), ..self }
            }
        }
    }
}

/// The volumes that are being changed now.
#[derive(Debug, Clone, Default)]
pub struct VolumeLocks(FifoLocks<VolumeKey>);

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
    /// [`VolumeBusy`] when another caller waits already, or when the wait ran out.
    pub fn hold(&self, key: VolumeKey, patience: Duration) -> Result<VolumeGuard, VolumeBusy> {
        self.acquire_queued(key, 1, Instant::now() + patience)
    }

    /// Locks a volume, waiting until the deadline in a line of those who want it, with at most `max_queue` ahead.
    ///
    /// # Errors
    /// [`VolumeBusy`] at once when there are more, or when the deadline came first.
    pub fn acquire_queued(
        &self,
        key: VolumeKey,
        max_queue: usize,
        deadline: Instant,
    ) -> Result<VolumeGuard, VolumeBusy> {
        self.hold_all([key], max_queue, deadline)
    }

    /// Locks all of these, each as [`VolumeLocks::acquire_queued`] does, whatever their order. While it waits for one it holds
    /// those before it.
    ///
    /// # Errors
    /// As [`VolumeLocks::acquire_queued`], for the first that could not be locked; then none is.
    pub fn hold_all(
        &self,
        keys: impl IntoIterator<Item = VolumeKey>,
        max_queue: usize,
        deadline: Instant,
    ) -> Result<VolumeGuard, VolumeBusy> {
        Ok(VolumeGuard(Arc::new(self.places(keys, max_queue, deadline)?)))
    }

    fn places(
        &self,
        keys: impl IntoIterator<Item = VolumeKey>,
        max_queue: usize,
        deadline: Instant,
    ) -> Result<Vec<FifoGuard<VolumeKey>>, VolumeBusy> {
        let keys: BTreeSet<VolumeKey> = keys.into_iter().collect();
        let hold = |key: VolumeKey| {
            let _waiting = waiting(&key);
            self.0.wait(key.clone(), max_queue, deadline).map_err(|why| VolumeBusy::new(key, why))
        };
        keys.into_iter().map(hold).collect()
    }

    /// Takes a place in the line of those who want a volume, with at most `max_queue` ahead, and does not wait.
    ///
    /// # Errors
    /// [`VolumeBusy`] when there are more.
    pub fn queue(&self, key: VolumeKey, max_queue: usize) -> Result<Queued, VolumeBusy> {
        match self.0.enter(key.clone(), max_queue) {
            Ok(place) => Ok(Queued { locks: self.clone(), place, key }),
            Err(why) => Err(VolumeBusy::new(key, why)),
        }
    }
}

/// A place in the line of those who want a volume; who is behind moves up when this is dropped.
#[derive(Debug)]
pub struct Queued {
    locks: VolumeLocks,
    place: FifoGuard<VolumeKey>,
    key: VolumeKey,
}

impl Queued {
    /// Locks the volume, and then all of `others`, which are no ids of volumes, as [`VolumeLocks::hold_all`] does; waits until the
    /// deadline while other calls are ahead.
    ///
    /// # Errors
    /// [`VolumeBusy`] when the deadline came first, or when more than `max_queue` are in the line for one of the others.
    pub fn hold_with(
        self,
        others: impl IntoIterator<Item = VolumeKey>,
        max_queue: usize,
        deadline: Instant,
    ) -> Result<VolumeGuard, VolumeBusy> {
        let Queued { locks, place, key } = self;
        let waits = waiting(&key);
        place.wait(deadline).map_err(|why| VolumeBusy::new(key, why))?;
        drop(waits);
        let mut places = vec![place];
        places.extend(locks.places(others, max_queue, deadline)?);
        Ok(VolumeGuard(Arc::new(places)))
    }
}

/// Says that a call waits for others.
fn waiting(key: &VolumeKey) -> Waiting {
    wait_for(format!("waiting for {key}"), "another call works on it")
}

/// Permission to change one volume, at the paths that were locked with it. They are free again when the last clone is
/// dropped.
#[derive(Debug, Clone)]
pub struct VolumeGuard(#[expect(dead_code, reason = "held for its Drop")] Arc<Vec<FifoGuard<VolumeKey>>>);

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
        while locks.0.len(&key()) < 2 {
            thread::yield_now();
        }
        let asked = Instant::now();
        assert!(locks.hold(key(), Duration::from_secs(10)).is_err());
        assert!(asked.elapsed() < Duration::from_secs(5));
        drop(first);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    }

    #[test]
    fn several_are_locked_as_one_and_in_whatever_order_they_are_named_nobody_waits_for_ever() {
        let key = |number: usize| match number {
            0 | 1 => VolumeKey::Path(format!("/{number}").into()),
            2 | 3 => VolumeKey::Id(number.to_string()),
            _ => VolumeKey::Name(number.to_string()),
        };
        let locks = VolumeLocks::new();
        let inside = Arc::new([const { std::sync::atomic::AtomicBool::new(false) }; 6]);
        let threads: Vec<_> = (0..8)
            .map(|seed| {
                let (locks, inside) = (locks.clone(), Arc::clone(&inside));
                thread::spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(seed);
                    for _ in 0..200 {
                        let wanted: Vec<usize> = (0..3).map(|_| rng.usize(..6)).collect();
                        let deadline = Instant::now() + Duration::from_secs(60);
                        let _guard = locks.hold_all(wanted.iter().map(|one| key(*one)), 100, deadline).unwrap();
                        let once: BTreeSet<usize> = wanted.into_iter().collect();
                        for one in &once {
                            assert!(!inside[*one].swap(true, std::sync::atomic::Ordering::SeqCst));
                        }
                        thread::yield_now();
                        for one in &once {
                            inside[*one].store(false, std::sync::atomic::Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // What could not be had leaves nothing locked.
        let last = locks.hold(key(5), Duration::ZERO).unwrap();
        assert!(locks.hold_all([key(5), key(0)], 1, Instant::now()).is_err());
        assert!(locks.hold(key(0), Duration::ZERO).is_ok());
        drop(last);
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
