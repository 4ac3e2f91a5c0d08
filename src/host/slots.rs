//! How many heavy programs run at once.
//!
//! Owns a counting semaphore. A node that comes back after a power cut stages all its volumes together; fifteen checks of
//! file systems at once would take more memory than a small droplet has.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Room for a fixed number of heavy programs.
#[derive(Debug)]
pub struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
    /// What holds them, as a phrase for who finds none free.
    held_by: &'static str,
}

/// Permission to run one heavy program, given back when dropped.
#[derive(Debug)]
#[must_use = "the slot is free again as soon as this is dropped"]
pub struct Slot<'a> {
    slots: &'a Slots,
}

impl Slots {
    /// Makes room for `count` programs at once; `held_by` is what holds the slots when there are none: "other volumes are still
    /// being formatted".
    #[must_use]
    pub fn new(count: usize, held_by: &'static str) -> Self {
        Slots { free: Mutex::new(count), freed: Condvar::new(), held_by }
    }

    /// Waits for a slot, as long as `budget` allows. `doing` is for the error: "formatting /dev/sda".
    ///
    /// # Errors
    /// [`Error::OutOfTime`] when none became free.
    pub fn take(&self, doing: &str, budget: Duration) -> Result<Slot<'_>> {
        let deadline = Instant::now() + budget;
        let mut free = self.lock();
        loop {
            if let Some(rest) = free.checked_sub(1) {
                *free = rest;
                return Ok(Slot { slots: self });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::OutOfTime {
                    doing: doing.to_owned(),
                    waited_s: budget.as_secs(),
                    waited_for: self.held_by.to_owned(),
                });
            }
            free = self.freed.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A panic while the count was locked leaves it whole: it is changed in one step.
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.slots.lock() += 1;
        self.slots.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_run_at_once_than_there_is_room_for() {
        let (slots, now, most) = (Slots::new(2, "others"), AtomicUsize::new(0), AtomicUsize::new(0));
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
        let slots = Slots::new(1, "others run");
        let slot = slots.take("testing", Duration::ZERO).unwrap();
        let full = slots.take("formatting /dev/sda", Duration::from_millis(1)).unwrap_err();
        assert!(full.to_string().contains("formatting /dev/sda") && full.to_string().contains("others run"), "{full}");
        drop(slot);
        drop(slots.take("testing", Duration::ZERO).unwrap());
    }
}
