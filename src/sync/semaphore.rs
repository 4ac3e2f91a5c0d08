//! How many heavy programs run at once.
//!
//! Owns a counting semaphore. A node that comes back after a power cut stages all its volumes together; fifteen checks of
//! file systems at once would take more memory than a small droplet has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::activity::wait_for;

/// How much of a call's time is left to who gets a slot: a program that is started later would not come to its end.
const FINISH_TIME: Duration = Duration::from_secs(15);

/// Room for a fixed number of heavy programs.
#[derive(Debug)]
pub struct Semaphore {
    room: Arc<Room>,
    /// What holds them, as a phrase for who finds none free.
    held_by: &'static str,
}

#[derive(Debug)]
struct Room {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Permission to run one heavy program. The slot is free again when the last clone is dropped, or once somebody has given it
/// back, as is done for a program that hangs.
#[derive(Debug, Clone)]
#[must_use = "the slot is free again as soon as this is dropped"]
pub struct Permit(Arc<Held>);

#[derive(Debug)]
struct Held {
    room: Arc<Room>,
    is_given_back: AtomicBool,
}

/// None became free in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gave up waiting after {waited_s} s while {doing}: {held_by}")]
pub struct NoPermit {
    /// What it was wanted for.
    pub doing: String,
    /// How long was waited, in seconds.
    pub waited_s: u64,
    /// What holds them.
    pub held_by: &'static str,
}

impl Semaphore {
    /// Makes room for `count` programs at once; `held_by` is what holds the slots when there are none: "other volumes are still
    /// being formatted".
    #[must_use]
    pub fn new(count: usize, held_by: &'static str) -> Self {
        Semaphore { room: Arc::new(Room { free: Mutex::new(count), freed: Condvar::new() }), held_by }
    }

    /// Waits for a slot as long as a call with so much time left can still finish. `doing` is for the error: "formatting
    /// /dev/sda".
    ///
    /// # Errors
    /// [`NoPermit`] when none became free.
    pub fn take_within_call(&self, doing: &str, left: Duration) -> Result<Permit, NoPermit> {
        self.take(doing, left.saturating_sub(FINISH_TIME))
    }

    /// Waits for a slot, as long as `budget` allows. `doing` is for the error: "formatting /dev/sda".
    ///
    /// # Errors
    /// [`NoPermit`] when none became free.
    pub fn take(&self, doing: &str, budget: Duration) -> Result<Permit, NoPermit> {
        let deadline = Instant::now() + budget;
        let _waiting = wait_for(doing, self.held_by);
        let mut free = self.room.lock();
        loop {
            if let Some(rest) = free.checked_sub(1) {
                *free = rest;
                return Ok(Permit(Arc::new(Held {
                    room: Arc::clone(&self.room),
                    is_given_back: AtomicBool::new(false),
                })));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoPermit { doing: doing.to_owned(), waited_s: budget.as_secs(), held_by: self.held_by });
            }
            free = self.room.freed.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Permit {
    /// Lets somebody else have the slot, although what it was taken for goes on. A second call does nothing.
    pub fn give_back(&self) {
        self.0.give_back();
    }
}

impl Held {
    fn give_back(&self) {
        if !self.is_given_back.swap(true, Ordering::SeqCst) {
            *self.room.lock() += 1;
            self.room.freed.notify_one();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Room {
    /// A panic while the count was locked leaves it whole: it is changed in one step.
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_run_at_once_than_there_is_room_for() {
        let (slots, now, most) = (Semaphore::new(2, "others"), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _slot = slots.take("testing", Duration::from_secs(60)).unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
    }

    #[test]
    fn who_finds_no_room_is_told_and_finds_some_later() {
        let slots = Semaphore::new(1, "others run");
        let slot = slots.take("testing", Duration::ZERO).unwrap();
        let full = slots.take("formatting /dev/sda", Duration::from_millis(1)).unwrap_err();
        assert!(full.to_string().contains("formatting /dev/sda") && full.to_string().contains("others run"), "{full}");
        drop(slot);
        drop(slots.take("testing", Duration::ZERO).unwrap());
    }

    #[test]
    fn a_slot_that_was_given_back_is_free_once() {
        let slots = Semaphore::new(1, "others run");
        let slot = slots.take("testing", Duration::ZERO).unwrap();
        let clone = slot.clone();
        drop(slot);
        assert!(slots.take("testing", Duration::ZERO).is_err());
        clone.give_back();
        clone.give_back();
        let next = slots.take("testing", Duration::ZERO).unwrap();
        drop(clone);
        assert!(slots.take("testing", Duration::ZERO).is_err());
        drop(next);
    }

    #[test]
    fn who_waits_in_a_call_leaves_time_to_finish() {
        let slots = Semaphore::new(1, "others run");
        let _slot = slots.take_within_call("testing", Duration::ZERO).unwrap();
        for (left, waits) in [(Duration::ZERO, 0), (FINISH_TIME, 0), (FINISH_TIME + Duration::from_millis(30), 30)] {
            let asked = Instant::now();
            assert!(slots.take_within_call("testing", left).is_err());
            assert!(asked.elapsed() >= Duration::from_millis(waits), "{left:?}");
        }
    }
}
