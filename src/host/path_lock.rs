//! One change at a time at a path, also when two plugins run.
//!
//! Owns the lock file beside a path. While a job is updated, two plugins run on one droplet. Neither sees the locks in
//! the other's memory, and they only share the directories in which they mount. The kernel frees the lock when its
//! holder ends, also when it is killed. The next plugin locks and removes the file that a killed one has left.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::warn;
use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use crate::host::device::busy::{is_busy, lock_or_busy, retry_while_busy};
use crate::host::presence::observe_metadata;
use crate::sync::fifo_lock::NoLock;
use crate::sync::volume_lock::{VolumeBusy, VolumeGuard, VolumeKey};

/// A lock on a path, held until it is dropped.
#[derive(Debug)]
pub(crate) struct PathLock {
    #[expect(dead_code, reason = "held for its Drop")]
    file: File,
    path: PathBuf,
}

impl PathLock {
    /// Locks the file at `path`, which is made if it is not there, and waits up to `budget` while another plugin holds it.
    /// `locked` is what the lock is about. A second lock of the same file waits for the first, in this process as well.
    ///
    /// # Errors
    /// [`Error::VolumeBusy`] when it is held for longer, [`Error::Io`] when the file cannot be made or locked.
    /// Source: flock(2).
    pub(crate) fn acquire(_guard: &VolumeGuard, path: PathBuf, locked: &Path, budget: Duration) -> Result<PathLock> {
        let file = retry_while_busy(budget, || try_lock(&path)).map_err(|err| {
            if is_busy(&err) {
                return VolumeBusy::new(VolumeKey::Path(locked.to_owned()), NoLock::TooLate).into();
            }
            err
        })?;
        Ok(PathLock { file, path })
    }
}

impl Drop for PathLock {
    fn drop(&mut self) {
        // Before the lock is freed: the next holder of the removed file sees that it is no longer at its path.
        if let Err(err) = fs::remove_file(&self.path) {
            warn!("left the lock file {}, to be removed by the next call: {err}", self.path.display());
        }
    }
}

/// Locks the file that is at the path when it is locked. Busy also when another file has come to the path meanwhile.
fn try_lock(path: &Path) -> Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags.bits());
    let file = options.open(path).map_err(Error::io("opening the lock file", path))?;
    let file = lock_or_busy(file, path)?;
    let held = file.metadata().map_err(Error::io("examining", path))?;
    let is_same = |there: fs::Metadata| (there.dev(), there.ino()) == (held.dev(), held.ino());
    if !observe_metadata(path)?.is_some_and(is_same) {
        return Err(Error::errno("locking", path)(Errno::EBUSY));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::volume_lock::VolumeLocks;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    fn guard(id: usize) -> VolumeGuard {
        VolumeLocks::new().hold(VolumeKey::Id(id.to_string()), Duration::ZERO).unwrap()
    }

    #[test]
    fn one_at_a_time_holds_a_path_and_no_file_stays() {
        let home = tempfile::tempdir().unwrap();
        let (path, inside) = (home.path().join("lock"), AtomicUsize::new(0));
        thread::scope(|scope| {
            for id in 0..4 {
                let (path, inside) = (&path, &inside);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let lock = PathLock::acquire(&guard(id), path.clone(), path, Duration::from_secs(60)).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_path_that_stays_locked_is_busy_and_a_file_left_behind_locks_nothing() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("lock");
        let acquire = || PathLock::acquire(&guard(0), path.clone(), Path::new("/target"), Duration::from_millis(5));
        fs::write(&path, "").unwrap();
        let lock = acquire().unwrap();
        let busy = acquire().unwrap_err();
        assert!(matches!(busy, Error::VolumeBusy(_)) && busy.to_string().contains("/target"), "{busy}");
        drop(lock);
        assert!(!path.exists());
    }
}
