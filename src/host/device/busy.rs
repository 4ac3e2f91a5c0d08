//! Trying again while something is in use.
//!
//! Owns the rhythm of the tries. A disk or a mount is often busy for a moment only: udev looks at a new disk, and droplet
//! images carry a rule that mounts a volume for a short look when it is attached.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The first and the longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Whether an error is the kernel's "Device or resource busy".
#[must_use]
pub fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.raw_os_error() == Some(nix::libc::EBUSY))
}

/// Does something, again and again while it answers "busy", for as long as the budget lasts; gives the last answer.
pub(in crate::host) fn retry_while_busy<T>(budget: Duration, attempt: impl Fn() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let outcome = attempt();
        let left = budget.saturating_sub(started.elapsed());
        match &outcome {
            Err(error) if is_busy(error) && !left.is_zero() => std::thread::sleep(pause.min(left)),
            Ok(_) | Err(_) => return outcome,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn answer(errno: i32) -> Result<()> {
        Err(Error::io("opening", "/dev/sda")(std::io::Error::from_raw_os_error(errno)))
    }

    #[test]
    fn only_busy_is_tried_again_and_only_within_the_budget() {
        let tries = Cell::new(0);
        let outcome = retry_while_busy(Duration::from_secs(60), || {
            tries.set(tries.get() + 1);
            if tries.get() < 3 { answer(nix::libc::EBUSY) } else { Ok(()) }
        });
        assert!(outcome.is_ok() && tries.get() == 3);
        let tries = Cell::new(0);
        let outcome = retry_while_busy(Duration::from_secs(60), || {
            tries.set(tries.get() + 1);
            answer(nix::libc::EIO)
        });
        assert!(outcome.is_err() && tries.get() == 1);
        assert!(is_busy(&retry_while_busy(Duration::from_millis(5), || answer(nix::libc::EBUSY)).unwrap_err()));
    }
}
