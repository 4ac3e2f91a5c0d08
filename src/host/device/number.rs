//! The major and minor number of a device.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::error::Result;
use crate::host::presence::observe_metadata;

/// A device's major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// The driver's number; 0 for file systems that are on no single device.
    pub major: u64,
    /// The device's number within the driver.
    pub minor: u64,
}

impl DeviceNumber {
    /// Splits the number that stat(2) gives.
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        DeviceNumber { major: nix::sys::stat::major(raw), minor: nix::sys::stat::minor(raw) }
    }

    /// The number of a disk by its node; `None` when that is no node of a disk.
    #[must_use]
    pub fn of_node(node: &Metadata) -> Option<Self> {
        node.file_type().is_block_device().then(|| DeviceNumber::from_raw(node.rdev()))
    }

    /// Reads `8:16`, as mountinfo and sysfs print it, with or without a line end.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim_end().split_once(':')?;
        Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The number of the disk whose node is at a path; `None` when there is no such node.
///
/// # Errors
/// [`crate::error::Error::Io`] when that cannot be seen.
pub(crate) fn observe_node(path: &Path) -> Result<Option<DeviceNumber>> {
    Ok(observe_metadata(path)?.as_ref().and_then(DeviceNumber::of_node))
}
