//! Whether a mount still works.
//!
//! Owns the signs of a mount whose disk was pulled or whose file system was shut down. It changes nothing, and it does not
//! say what is to be done with such a mount.

use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::libc;

use super::device::DevicePlaces;
use super::mapper::{is_lower_gone, number_under};
use super::mountinfo::{DeviceNumber, Mount};
use crate::error::{Error, Result};

/// How a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Alive,
    /// Its disk is gone: nothing can be read or written any more.
    DiskGone,
    /// Its disk is there, but the file system was shut down after an error and answers with nothing but errors.
    ShutDown,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Health::Alive => "it works",
            Health::DiskGone => "its disk is gone",
            Health::ShutDown => "its file system was shut down after errors",
        })
    }
}

/// Looks how a mount is. `mount` is what the table shows at its target, topmost.
///
/// A file system that is merely read-only after an error is alive. Nothing is written to find out, and nothing is read
/// from the disk that the kernel does not have in memory.
///
/// # Errors
/// [`Error::Io`] when the mount point cannot be examined for another reason.
/// Source: `xfs_is_shutdown` (EIO for everything) and `ext4_forced_shutdown` (the word `shutdown` among the options in the
/// mount table) in the kernel; sysfs(5), `dev/block`.
pub fn observe_health(places: &DevicePlaces, mount: &Mount) -> Result<Health> {
    if is_disk_gone(places, mount)? {
        return Ok(Health::DiskGone);
    }
    if mount.super_options.iter().any(|option| option == "shutdown") {
        return Ok(Health::ShutDown);
    }
    let answer = std::fs::metadata(&mount.target)
        .and_then(|found| if found.is_dir() { File::open(&mount.target).map(drop) } else { Ok(()) });
    match answer {
        Ok(()) => Ok(Health::Alive),
        Err(error) if is_dead(&error) => Ok(Health::ShutDown),
        Err(error) => Err(Error::io("examining", &mount.target)(error)),
    }
}

fn is_dead(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::ESHUTDOWN | libc::ENXIO | libc::ENODEV))
}

fn is_disk_gone(places: &DevicePlaces, mount: &Mount) -> Result<bool> {
    if mount.is_node() {
        return is_node_orphaned(places, mount);
    }
    if mount.device.major != 0 {
        return Ok(!has_disk(places, mount.device) || is_lower_gone(places, mount.device)?);
    }
    if mount.fstype != "btrfs" {
        return Ok(false);
    }
    // btrfs gives numbers of its own; there the name of the disk has to do, where it is one that the kernel gave.
    let source = Path::new(&mount.source);
    let under = number_under(places, mount)?;
    if source.parent() == Some(places.nodes.join("mapper").as_path()) && under.is_none() {
        return Ok(true);
    }
    let is_node = source.parent() == Some(places.nodes.as_path());
    let is_unknown = source.file_name().is_some_and(|name| !places.sysfs.join("class/block").join(name).exists());
    Ok((is_node && is_unknown) || under.map_or(Ok(false), |number| is_lower_gone(places, number))?)
}

/// A device node that was bound somewhere stays there when its disk goes, and then leads to nothing or, later, to another
/// disk that got the same number.
fn is_node_orphaned(places: &DevicePlaces, mount: &Mount) -> Result<bool> {
    if mount.root.as_os_str().as_bytes().ends_with(b"//deleted") {
        return Ok(true);
    }
    let node = std::fs::metadata(&mount.target).map_err(Error::io("examining", &mount.target))?;
    let is_device = node.file_type().is_block_device();
    Ok(is_device && !has_disk(places, DeviceNumber::from_raw(node.rdev())))
}

fn has_disk(places: &DevicePlaces, number: DeviceNumber) -> bool {
    places.sysfs.join(format!("dev/block/{number}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mountinfo::MountTable;
    use std::path::PathBuf;

    /// A line of the mount table for a mount at this test's own folder, and a sysfs that knows disk 8:0 named sda.
    fn health(dir: &Path, device: &str, root: &str, kind: &str) -> Health {
        let sysfs = dir.join("sys");
        for disk in ["dev/block/8:0", "class/block/sda"] {
            std::fs::create_dir_all(sysfs.join(disk)).unwrap();
        }
        let line = format!("9 1 {device} {root} {} rw - {kind}\n", dir.display());
        let table = MountTable::parse(line.as_bytes()).unwrap();
        let places = DevicePlaces { sysfs, nodes: PathBuf::from("/dev"), ..DevicePlaces::default() };
        observe_health(&places, table.iter().next().unwrap()).unwrap()
    }

    #[test]
    fn a_mount_whose_disk_sysfs_no_longer_shows_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            ("8:0", "/", "xfs /dev/sda rw", Health::Alive),
            ("8:16", "/", "xfs /dev/sda rw", Health::DiskGone),
            ("8:0", "/", "ext4 /dev/sda rw,shutdown", Health::ShutDown),
            ("8:0", "/", "ext4 /dev/sda rw,noshutdown", Health::Alive),
            ("0:41", "/", "btrfs /dev/sda rw", Health::Alive),
            ("0:41", "/", "btrfs /dev/sdb rw", Health::DiskGone),
            ("0:41", "/", "btrfs /dev/disk/by-id/x rw", Health::Alive),
            ("0:5", "/sdb//deleted", "devtmpfs udev rw", Health::DiskGone),
            ("0:5", "/sda", "devtmpfs udev rw", Health::Alive),
        ];
        for (device, root, kind, want) in cases {
            assert_eq!(health(dir.path(), device, root, kind), want, "{device} {root} {kind}");
        }
    }

    #[test]
    fn only_the_errors_of_a_dead_disk_make_a_mount_dead() {
        for errno in [libc::EIO, libc::ESHUTDOWN, libc::ENXIO, libc::ENODEV] {
            assert!(is_dead(&std::io::Error::from_raw_os_error(errno)));
        }
        for errno in [libc::EACCES, libc::ENOENT, libc::EUCLEAN, libc::ENOMEM, libc::EINTR] {
            assert!(!is_dead(&std::io::Error::from_raw_os_error(errno)));
        }
    }
}
