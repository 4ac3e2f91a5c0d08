//! Making what is at one place appear at another: bind mounts.
//!
//! Owns the bind mount, and the open handles of its two ends. A path may lead elsewhere a moment later, when somebody
//! mounts, unmounts or puts a link there. So each end is opened first, examined, and then used through the handle.
//! Otherwise a mount could go in between, and the bind would show the host's own files to a task.

use std::fs::{self, File, Metadata, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};

use crate::error::{Error, Result};
use crate::host::mountinfo::{Mount, MountTable};
use crate::sync::volume_lock::VolumeGuard;

/// A directory or file that is held open without being used: what is mounted there cannot be unmounted, and something
/// else that appears at the same path is not confused with it.
#[derive(Debug)]
pub struct Held {
    file: File,
    path: PathBuf,
}

impl Held {
    /// Opens what is at a path: the topmost mount there, or what lies below.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::TargetTaken`] when a link is at the path or on the way.
    /// Source: open(2), `O_PATH`; proc_pid_fd(5).
    pub fn open(path: &Path) -> Result<Held> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
        let held = Held { file: file.map_err(Error::io("opening", path))?, path: path.to_owned() };
        let leads_to = fs::read_link(held.by_number()).map_err(Error::io("resolving", path))?;
        if leads_to != path || held.metadata()?.is_symlink() {
            let by = format!("it is, or leads over, a link (to {}); nothing was done there", leads_to.display());
            return Err(Error::TargetTaken { path: path.to_owned(), by });
        }
        Ok(held)
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of file it is, and of which device.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn metadata(&self) -> Result<Metadata> {
        self.file.metadata().map_err(Error::io("examining", &self.path))
    }

    /// The mount that it lies in, even if something was mounted over it since; `None` when that mount is gone.
    ///
    /// # Errors
    /// [`Error::Io`] when the system does not say which that is.
    /// Source: proc_pid_fdinfo(5), `mnt_id`.
    pub fn mount<'a>(&self, mounts: &'a MountTable) -> Result<Option<&'a Mount>> {
        let file = PathBuf::from(format!("/proc/self/fdinfo/{}", self.file.as_raw_fd()));
        let text = fs::read_to_string(&file).map_err(Error::io("reading", &file))?;
        let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
        let id = id.ok_or_else(|| Error::Bug(format!("{} names no mount", file.display())))?;
        Ok(mounts.iter().find(|mount| mount.id == id))
    }

    /// A path that leads to exactly what is held open, no matter what is at the original path now.
    fn by_number(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// Makes what is held as `source`, a directory or a device node, appear at `target` too, which is of the same sort.
///
/// A second call puts a second mount on top: the caller looks first.
///
/// # Errors
/// [`Error::Io`] with the kernel's answer.
/// Source: mount(2), "Creating a bind mount".
pub fn apply_bind(_guard: &VolumeGuard, source: &Held, target: &Held) -> Result<()> {
    mount(Some(&source.by_number()), &target.by_number(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(Error::errno("bind-mounting at", target.path()))?;
    log::info!(source:% = source.path().display(), path:% = target.path().display(); "bound");
    Ok(())
}

/// Takes a mount out of its peer group, the mounts that show each other what is mounted inside them. A mount that is bound
/// from it then begins a group of its own, with its copies in other mount namespaces.
///
/// A second call changes nothing.
///
/// # Errors
/// [`Error::Io`] with the kernel's answer.
/// Source: mount(2), "Changing the propagation type of an existing mount"; `attach_recursive_mnt` in the kernel's
/// `fs/namespace.c`, which gives a mount without a group a new one where it is attached to a shared mount.
pub fn apply_alone(_guard: &VolumeGuard, mounted: &Held) -> Result<()> {
    mount(None::<&str>, &mounted.by_number(), None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(Error::errno("changing the propagation of the mount at", mounted.path()))
}
