//! Changing the mount table: mount, read-only, unmount, flush. Bind mounts are `bind.rs`'s.
//!
//! Owns the calls to mount(2), umount2(2) and syncfs(2), and reads back the result. Other modules decide what should be
//! mounted where; `mount_health.rs` says whether a mount still works. Everything here goes to the kernel directly: no
//! program is run.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::activity::{About, Change, tell_change};
use crate::error::{Error, Result};
use crate::fs::FsKind;
use crate::host::device::Device;
use crate::host::device::busy::retry_while_busy;
use crate::host::device::or_in_use;
use crate::host::kernel_log::KernelLog;
use crate::host::mount_options::{MountOptions, NO_UUID};
pub use crate::host::mount_table::observe_mounts;
use crate::host::mountable::{kernel_release, no_filesystem, observe_mountable, plan_mountable};
use crate::host::mountinfo::MountTable;
use crate::host::presence::observe_is_there;
use crate::host::read_only::{Flagged, observe_is_protected};
use crate::sync::volume_lock::VolumeGuard;

/// Mounts a disk's file system at an existing directory, and checks that it is there. Returns the mount table read
/// after that. While somebody else uses the disk, it tries again until the budget is used up. If the mount cannot be
/// seen afterwards, it is unmounted again.
///
/// A second call puts a second mount on top: the caller looks first.
///
/// # Errors
/// [`Error::DamagedFilesystem`] when the file system says so itself, [`Error::Invalid`] for an option that it does not take,
/// [`Error::HostUnfit`] when the kernel is too old for it, [`Error::Io`] for any other refusal, [`Error::WrongDevice`] when
/// the disk is no longer the one that was found.
/// Source: mount(2).
pub fn apply_mount(
    _guard: &VolumeGuard,
    device: &Device,
    fs: FsKind,
    target: &Path,
    options: &MountOptions,
    budget: Duration,
) -> Result<MountTable> {
    let data = options.data();
    retry_while_busy(budget, || {
        let _pin = device.open()?;
        let log = KernelLog::observe_from_now();
        mount(Some(device.path()), target, Some(fs.name()), options.flags(), Some(data.as_str()))
            .map_err(|errno| refused(device, fs, target, options, errno, log))
    })
    .map_err(or_in_use(device, "the mount"))?;
    let mounts = observe_mounted(device, target).inspect_err(|_| take_back(target))?;
    tell_change(
        Change::Mounted,
        "mounted",
        About::default()
            .with("name", device.volume())
            .with("device", device.path().display())
            .with("fs", fs)
            .with("path", target.display()),
    );
    Ok(mounts)
}

fn observe_mounted(device: &Device, target: &Path) -> Result<MountTable> {
    let mounts = observe_mounts()?;
    match mounts.at(target) {
        Some(found) if found.is_of(device) => Ok(mounts),
        Some(found) => Err(not_seen(device, target, &format!("device {} is there", found.device))),
        None => Err(not_seen(device, target, "nothing is there")),
    }
}

/// Unmounts what was just mounted: a caller that gets an error knows of no mount, and would leave it.
pub(crate) fn take_back(target: &Path) {
    if let Err(errno) = umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        log::warn!("could not undo the mount at {}: {errno}", target.display());
    }
}

/// Sets the flags that belong to one mount, not to its file system: read-only, nosuid, nodev, noexec, and how access
/// times are kept. Copies of the mount in other mount namespaces stay as they are. The caller checks the result in the
/// mount table that it reads when the mount is at its final place.
///
/// A second call changes nothing.
///
/// # Errors
/// [`Error::Io`] with the kernel's answer.
/// Source: mount(2), "Remounting an existing mount": flags that are not named are cleared.
pub fn apply_own_flags(_guard: &VolumeGuard, target: &Path, options: &MountOptions) -> Result<()> {
    remount(target, options.own_flags() | MsFlags::MS_REMOUNT | MsFlags::MS_BIND)
}

/// Makes a read-only file system writable through one of its mounts, which becomes writable too. Its other mounts stay
/// read-only. `options` are those of the mount: a remount clears every option that it does not name. Options of the
/// file system, such as `sync` and `lazytime`, are then cleared for all of its mounts.
///
/// A second call changes nothing.
///
/// # Errors
/// [`Error::Io`] with the kernel's answer, [`Error::NotAsReported`] when it did not become writable.
/// Source: `do_remount` in the kernel's `fs/namespace.c`.
pub fn apply_writable(_guard: &VolumeGuard, target: &Path, options: &MountOptions) -> Result<()> {
    remount(target, MsFlags::MS_REMOUNT | options.flags().difference(MsFlags::MS_RDONLY))?;
    match observe_mounts()?.at(target) {
        Some(seen) if !seen.is_read_only() => Ok(()),
        Some(_) | None => Err(Error::NotAsReported(format!("{} did not become writable", target.display()))),
    }
}

fn remount(target: &Path, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .map_err(Error::errno("changing the flags of the mount at", target))
}

/// How an unmount treats a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// It is refused: something may still be written.
    WhenFree,
    /// The disk is gone, so nothing can be written any more: the mount disappears from its path at once, and ends with
    /// its last user.
    DiskGone,
}

/// Unmounts the topmost mount at a path. Says whether there was one.
///
/// A second call finds nothing and does nothing.
///
/// # Errors
/// [`Error::Io`]; "Device or resource busy" when it is in use.
/// Source: umount2(2), `MNT_DETACH` and `UMOUNT_NOFOLLOW`.
pub fn apply_unmount(_guard: &VolumeGuard, target: &Path, how: Unmount) -> Result<bool> {
    let flags = match how {
        Unmount::WhenFree => MntFlags::UMOUNT_NOFOLLOW,
        Unmount::DiskGone => MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH,
    };
    match umount2(target, flags) {
        Ok(()) => {
            tell_change(Change::Unmounted, "unmounted", About::default().with("path", target.display()));
            Ok(true)
        }
        Err(Errno::ENOENT) if !observe_is_there(target)? => Ok(false),
        // Not a mount point, or one that the kernel keeps locked. A locked one must not count as gone.
        Err(Errno::EINVAL) if observe_mounts()?.at(target).is_none() => Ok(false),
        Err(errno) => Err(Error::errno("unmounting", target)(errno)),
    }
}

/// Unmounts as [`Unmount::WhenFree`] does, and tries again for as long as the budget lasts while the mount is in use.
///
/// # Errors
/// As [`apply_unmount`].
pub fn apply_unmount_within(guard: &VolumeGuard, target: &Path, budget: Duration) -> Result<bool> {
    retry_while_busy(budget, || apply_unmount(guard, target, Unmount::WhenFree))
}

/// Writes everything that is still in memory to the file system at a path, or to the raw disk that is there.
///
/// # Errors
/// [`Error::Io`] when something could not be written: then it is lost.
/// Source: syncfs(2); fsync(2) on a block device.
pub fn apply_flush(_guard: &VolumeGuard, target: &Path) -> Result<()> {
    let opened = File::open(target).map_err(Error::io("opening", target))?;
    let is_disk = opened.metadata().map_err(Error::io("examining", target))?.file_type().is_block_device();
    if is_disk {
        return opened.sync_all().map_err(Error::io("flushing", target));
    }
    nix::unistd::syncfs(&opened).map_err(Error::errno("flushing", target))
}

fn not_seen(device: &Device, target: &Path, what: &str) -> Error {
    Error::WrongDevice {
        volume: device.volume().clone(),
        found: format!("{} was mounted at {}, but {what}", device.path().display(), target.display()),
    }
}

fn refused(device: &Device, fs: FsKind, target: &Path, options: &MountOptions, errno: Errno, log: KernelLog) -> Error {
    let is_protected = || observe_is_protected(&Flagged::from(device)).unwrap_or(false);
    match crate::host::fsck::damage(device, fs, errno) {
        Some(damaged) => damaged,
        // A log is replayed also for a reader. Where it cannot be, btrfs says "Input/output error".
        None if matches!((errno, fs), (Errno::EROFS, _) | (Errno::EIO, FsKind::Btrfs)) && is_protected() => {
            Error::Unfinished(format!(
                "{fs} of volume {} cannot be mounted ({errno}): it was probably not unmounted cleanly, so its log has to be \
                 written back first, but its disk {path} refuses writes; stage it for writing once, or make the disk take \
                 them with `blockdev --setrw {path}`",
                device.volume(),
                path = device.path().display()
            ))
        }
        None if errno == Errno::ENODEV => no_filesystem(fs),
        None if errno == Errno::EINVAL => {
            match plan_mountable(fs, options, &observe_mountable(fs, options, target), false) {
                Err(named) => named,
                Ok(()) => not_mountable(device, fs, options, &log.about(device)),
            }
        }
        None => Error::errno("mounting at", target)(errno),
    }
}

/// The error for a file system that is refused although it knows every option: it refuses a value, a combination of
/// options, or a feature of the file system on the disk. The kernel's log says which.
fn not_mountable(device: &Device, fs: FsKind, options: &MountOptions, said: &[String]) -> Error {
    let has_options = options.words().any(|word| word != NO_UUID);
    let reason = match (said, has_options) {
        ([], false) => {
            "it is too old for a feature of this file system, which a newer one has made; `dmesg` says which"
        }
        ([], true) => {
            "it does not take the value of a mount flag, or is too old for a feature of this file system, which a newer one \
             has made; `dmesg` says which"
        }
        ([..], false) => "so it is too old for this file system, which a newer one has made",
        ([..], true) => {
            "so correct the mount flag that it names; if it names a feature, it is too old for this file system, which a \
             newer one has made"
        }
    };
    let said = match said {
        [] => String::new(),
        lines => format!(" says: {}", options.without_values(&lines.join("; "))),
    };
    Error::HostUnfit(format!(
        "{fs} of volume {} cannot be mounted from {} (EINVAL): the kernel ({}){said}; {reason}",
        device.volume(),
        device.path().display(),
        kernel_release()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_told_from_an_old_kernel_as_far_as_the_kernel_says() {
        let device = Device::fake("/dev/sda", crate::host::device::number::DeviceNumber { major: 8, minor: 0 }, 1);
        let options = |flags: &[&str]| MountOptions::parse(flags.iter().copied()).unwrap();
        let told = |flags: &[&str], said: &[&str]| {
            let said: Vec<String> = said.iter().map(|line| (*line).to_owned()).collect();
            not_mountable(&device, FsKind::Xfs, &options(flags), &said).to_string()
        };
        let feature = "XFS (sda): Superblock has unknown incompatible features (0x80) enabled.";
        let old = told(&[NO_UUID], &[feature]);
        assert!(old.contains(feature) && old.contains("too old") && !old.contains("flag"), "{old}");
        let silent = told(&[], &[]);
        assert!(silent.contains("too old") && silent.contains("dmesg") && !silent.contains("flag"), "{silent}");
        let both = told(&["logbsize=7k"], &[]);
        assert!(both.contains("too old") && both.contains("dmesg") && both.contains("flag"), "{both}");
        let value = told(&["logbsize=7k"], &["XFS (sda): logbsize=7k is wrong"]);
        assert!(value.contains("correct the mount flag") && !value.contains("7k"), "{value}");
    }
}
