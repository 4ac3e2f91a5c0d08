//! One change at a time for each volume.
//!
//! Owns what can be locked, and the guard: the permission that every changing function takes as its first argument, so
//! that an unlocked change does not compile. It does not know what a change is.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::line::{Lines, NoPlace, Place};

/// What is locked: the volume's name while it is being created, its id afterwards.
///
/// On a node the id is whatever the orchestrator sends; old Nomads send their own id there. What is open of an encrypted
/// volume, and left, is known by the name of its device alone.
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

impl Locked {
    /// Tells of a volume that there is no place in the line for it.
    #[must_use]
    pub fn new(key: VolumeKey, why: NoPlace) -> Locked {
        let detail = match why {
            NoPlace::Full => ", and others wait for it",
            NoPlace::TooLate => " after a wait",
        };
        Locked { key, detail }
    }
}

/// The volumes that are being changed now.
#[derive(Debug, Clone, Default)]
pub struct VolumeLocks(Lines<VolumeKey>);

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
        self.hold_in_line(key, 1, Instant::now() + patience)
    }

    /// Locks a volume, waiting until the deadline in a line of those who want it, with at most `most_ahead` ahead.
    ///
    /// # Errors
    /// [`Locked`] at once when there are more, or when the deadline came first.
    pub fn hold_in_line(&self, key: VolumeKey, most_ahead: usize, deadline: Instant) -> Result<VolumeGuard, Locked> {
        match self.0.wait(key.clone(), most_ahead, deadline) {
            Ok(place) => Ok(VolumeGuard(Arc::new(place))),
            Err(why) => Err(Locked::new(key, why)),
        }
    }
}

/// Permission to change one volume. The volume is free again when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct VolumeGuard(#[expect(dead_code, reason = "held for its Drop")] Arc<Place<VolumeKey>>);

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
