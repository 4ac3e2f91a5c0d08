//! Making a whole disk refuse writes.
//!
//! Owns the kernel's read-only flag of a disk, which is the only thing that keeps a task from writing to a raw block device
//! it was given: a read-only mount of the device node does not. The flag holds for all users of the disk and lasts until it
//! is taken back or the disk goes.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::command::{Cmd, Runner, Tool};
use crate::host::device::busy::{lock_or_busy, retry_while_busy};
use crate::host::device::sysfs::read_attribute;
use crate::host::device::{Device, DevicePlaces};
use crate::host::mountinfo::Mount;
use crate::host::presence::observe_is_there;
use crate::sync::volume_lock::VolumeGuard;

/// It is one ioctl.
const BUDGET: Duration = Duration::from_secs(5);

/// What is needed for a disk's read-only flag: its node, and its directory in sysfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flagged {
    node: PathBuf,
    sysfs: PathBuf,
}

impl From<&Device> for Flagged {
    fn from(device: &Device) -> Self {
        Flagged { node: device.path().to_owned(), sysfs: device.sysfs.clone() }
    }
}

impl Flagged {
    /// The disk whose node is bound at some place; `None` for any other mount, and when the node is gone.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be told whether the disk is there.
    pub(crate) fn observe_bound_at(places: &DevicePlaces, mount: &Mount) -> Result<Option<Self>> {
        let Some(name) = mount.root.strip_prefix("/").ok().filter(|_| mount.is_node()) else { return Ok(None) };
        let (node, sysfs) = (places.nodes.join(name), places.sysfs_named(name));
        let is_there = observe_is_there(&node)? && observe_is_there(&sysfs)?;
        Ok(is_there.then_some(Flagged { node, sysfs }))
    }

    /// Takes the lock of [`Device::lock`], by the node.
    ///
    /// # Errors
    /// [`Error::Io`] when the node does not open, and "Device or resource busy" when somebody has the lock for longer than the
    /// budget.
    pub(crate) fn lock(&self, budget: Duration) -> Result<File> {
        let open = || File::open(&self.node).map_err(Error::io("opening", &self.node));
        retry_while_busy(budget, || lock_or_busy(open()?, &self.node))
    }
}

/// Whether a disk refuses writes.
///
/// # Errors
/// [`Error::Io`] when sysfs cannot be read, or does not say.
pub(crate) fn observe_is_protected(disk: &Flagged) -> Result<bool> {
    let file = disk.sysfs.join("ro");
    // Every disk has this attribute. A disk without it is no longer there.
    let unsaid = || Error::io("reading", &file)(std::io::ErrorKind::NotFound.into());
    read_attribute(&file)?.map(|text| text != "0").ok_or_else(unsaid)
}

/// Makes a disk read-only or writable again, and checks the result.
///
/// A second call changes nothing.
///
/// # Errors
/// [`Error::Command`] when blockdev fails, [`Error::NotAsReported`] when the disk is not as asked afterwards.
/// Source: blockdev(8), `--setro`; `BLKROSET` in the kernel's `block/ioctl.c`.
pub(crate) fn apply_protection(
    guard: &VolumeGuard,
    runner: &dyn Runner,
    disk: &Flagged,
    is_protected: bool,
) -> Result<()> {
    let how = if is_protected { "--setro" } else { "--setrw" };
    let cmd = Cmd::new(Tool::Blockdev, BUDGET).arg(how).arg(&disk.node).holding(guard);
    let doing = || format!("changing whether {} takes writes", disk.node.display());
    let out = runner.run(&cmd).and_then(|out| out.success(&cmd));
    out.map_err(|source| Error::Command { doing: doing(), source })?;
    if observe_is_protected(disk)? == is_protected {
        log::info!(device:% = disk.node.display(); "{how}");
        return Ok(());
    }
    Err(Error::NotAsReported(format!("`{cmd}` reported success, but changed nothing")))
}
