//! Whether the kernel has released a disk after its last mount was removed.
//!
//! Owns what must be remembered of the disk under a mount to examine it when the mount is gone, and that examination:
//! the kernel lets a disk be opened exclusively only if no file system, no device made of it and no swap space has it,
//! in any mount namespace. `holders` finds out who has it.

use std::fs::{Metadata, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::libc;

use crate::error::{Error, Result};
use crate::host::device::DevicePlaces;
use crate::host::device::number::DeviceNumber;
use crate::host::device::sysfs::{read_attribute, read_number};
use crate::host::holders::Sought;
use crate::host::mountinfo::Mount;
use crate::host::presence::{observe_names, observe_real};
use crate::host::under_mount::observe_device;

/// The disk under a mount, as it was while it was mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskUnder {
    number: DeviceNumber,
    /// The kernel's name for it.
    name: PathBuf,
    /// The device mapper's path to it, for what is no disk itself but an open encrypted volume.
    alias: Option<PathBuf>,
    node: PathBuf,
    /// Its directory in sysfs, without links.
    sysfs: PathBuf,
    /// The directory of sysfs with all block devices.
    all: PathBuf,
    /// A number that no other disk gets until the next boot; since Linux 5.15.
    sequence: Option<String>,
}

/// How the kernel has a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nothing has it.
    Free,
    /// Something has it.
    Taken,
    /// It is gone, or has become another disk.
    Gone,
}

impl DiskUnder {
    /// The disks under a mount: the device that is mounted, or whose node is bound, and those that this is made of, as the disk
    /// of an encrypted volume. None when the disk is certainly gone.
    ///
    /// # Errors
    /// [`Error::Io`] when sysfs cannot be read.
    pub(crate) fn all_under(places: &DevicePlaces, mount: &Mount) -> Result<Vec<DiskUnder>> {
        // The number of a removed node may be another disk's by now.
        let number = if mount.is_removed_node() { None } else { observe_device(places, mount)? };
        number.map_or_else(|| Ok(Vec::new()), |number| DiskUnder::all_of(places, number))
    }

    /// The device with this number and those that it is made of. None when it is certainly gone.
    ///
    /// # Errors
    /// [`Error::Io`] when sysfs cannot be read.
    pub(crate) fn all_of(places: &DevicePlaces, number: DeviceNumber) -> Result<Vec<DiskUnder>> {
        let mut disks = Vec::new();
        let mut to_see = vec![places.sysfs_of(number)];
        while let Some(link) = to_see.pop() {
            let Some(disk) = DiskUnder::read(places, &link)? else { continue };
            let slaves = disk.sysfs.join("slaves");
            to_see.extend(observe_names(&slaves)?.unwrap_or_default().into_iter().map(|slave| slaves.join(slave)));
            if !disks.contains(&disk) {
                disks.push(disk);
            }
        }
        Ok(disks)
    }

    fn read(places: &DevicePlaces, link: &Path) -> Result<Option<DiskUnder>> {
        let Some(sysfs) = observe_real(link)? else { return Ok(None) };
        let number = read_number(&sysfs)?;
        let (Some(name), Some(number)) = (sysfs.file_name().map(PathBuf::from), number) else {
            if observe_real(link)?.is_none() {
                return Ok(None);
            }
            let unclear = "it says no number: cannot tell which disk this is";
            return Err(Error::io("examining", sysfs)(std::io::Error::other(unclear)));
        };
        let mapped = read_attribute(&sysfs.join("dm/name"))?;
        Ok(Some(DiskUnder {
            number,
            node: places.nodes.join(&name),
            name,
            alias: mapped.map(|name| places.nodes.join("mapper").join(name)),
            sequence: read_attribute(&sysfs.join("diskseq"))?,
            all: places.sysfs.join("class/block"),
            sysfs,
        }))
    }

    /// Its node.
    #[must_use]
    pub(crate) fn node(&self) -> &Path {
        &self.node
    }

    /// Whether a mount shows this disk's file system, or its node.
    #[must_use]
    pub(crate) fn is_under(&self, mount: &Mount) -> bool {
        let is_called = |source: &Path| self.node == source || self.alias.as_deref() == Some(source);
        mount.is_node_named(&self.name) || mount.shows(self.number, is_called)
    }

    /// What to look for to find out who has it.
    #[must_use]
    pub(crate) fn sought(&self) -> Sought {
        let nodes = self.node.parent().unwrap_or(&self.node);
        Sought::read(&self.sysfs, nodes, &self.all)
    }

    /// Finds out whether anything has it.
    ///
    /// # Errors
    /// [`Error::Io`] when that cannot be seen.
    /// Source: open(2), `O_EXCL` without `O_CREAT` on a block device; `bd_prepare_to_claim` in the kernel's `block/bdev.c`.
    pub(crate) fn observe_claim(&self) -> Result<Claim> {
        if self.is_gone()? {
            return Ok(Claim::Gone);
        }
        // One answer that it does not work proves nothing.
        let opened = self.open_alone().or_else(|err| if is_no_disk(&err) { self.open_alone() } else { Err(err) });
        let found = match opened {
            Ok(found) => found,
            Err(err) if err.raw_os_error() == Some(libc::EBUSY) => {
                // It may have gone, and another one come, in between.
                return Ok(if self.is_gone()? { Claim::Gone } else { Claim::Taken });
            }
            // What the kernel answers for a disk that does not work any more, and to which nothing can be written.
            Err(err) if is_no_disk(&err) => return Ok(Claim::Gone),
            Err(err) => return Err(Error::io("opening", &self.node)(err)),
        };
        let is_it = DeviceNumber::of_node(&found) == Some(self.number);
        match (is_it, self.is_gone()?) {
            (true, false) => Ok(Claim::Free),
            (true | false, true) => Ok(Claim::Gone),
            (false, false) => Err(Error::HostUnfit(format!(
                "{} is not the disk {}; run the plugin with the host's /dev",
                self.node.display(),
                self.number
            ))),
        }
    }

    /// Opens it exclusively, and returns the open file.
    fn open_alone(&self) -> std::io::Result<Metadata> {
        let flags = OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        OpenOptions::new().read(true).custom_flags(flags.bits()).open(&self.node)?.metadata()
    }

    /// Whether sysfs no longer shows it, or shows another disk in its place.
    ///
    /// # Errors
    /// [`Error::Io`] when sysfs cannot be read.
    pub(crate) fn is_gone(&self) -> Result<bool> {
        Ok(read_number(&self.sysfs)? != Some(self.number)
            || read_attribute(&self.sysfs.join("diskseq"))? != self.sequence)
    }
}

/// Whether the kernel has answered that there is no disk that works behind a node.
fn is_no_disk(err: &std::io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::ENXIO | libc::ENODEV))
}
