//! Trying again while something is in use.
//!
//! A disk or a mount is often busy for a moment only: udev looks at a new disk, and droplet
//! images carry a rule that mounts a volume for a short look when it is attached.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::activity::wait_for;
use crate::backoff::{Backoff, look_until};
use crate::error::{Error, Result};

/// The pauses between two tries: mostly something has a disk for a moment only.
pub const BUSY_PAUSES: Backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(250));

/// Whether an error is the kernel's "Device or resource busy".
#[must_use]
pub fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.raw_os_error() == Some(nix::libc::EBUSY))
}

/// Does something, again and again while it answers "busy", for as long as the budget lasts; gives the last answer.
pub(in crate::host) fn retry_while_busy<T>(budget: Duration, attempt: impl Fn() -> Result<T>) -> Result<T> {
    let _waiting = wait_for("waiting until nothing else uses the disk or its mount", "");
    look_until(Instant::now() + budget, BUSY_PAUSES, attempt, |outcome| !outcome.as_ref().is_err_and(is_busy))
}

/// Takes the lock of an open file alone, at once: "busy" when somebody has it. The lock is let go of when the file is closed, of
/// which the kernel makes no error.
///
/// # Errors
/// [`Error::Io`] with the kernel's answer. Source: flock(2).
pub(in crate::host) fn lock_or_busy(file: File, path: &Path) -> Result<File> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::errno("locking", path)(Errno::EBUSY)),
        Err(TryLockError::Error(err)) => Err(Error::io("locking", path)(err)),
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
