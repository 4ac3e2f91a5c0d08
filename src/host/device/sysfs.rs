//! Attributes of devices, as sysfs shows them.
//!
//! Owns the meaning of a missing attribute, and the check that a directory is a sysfs. It knows no attribute by name but a device's number.

use std::path::Path;

use nix::sys::statfs::{FsType, statfs};

use crate::error::{Error, Result};
use crate::host::device::number::DeviceNumber;
use crate::host::presence::observe_if_there;

/// What statfs(2) gives as the type of a sysfs. Source: `SYSFS_MAGIC` in the kernel's `include/uapi/linux/magic.h`.
const MAGIC: FsType = FsType(0x6265_6572);

/// Checks that a directory is the root of a sysfs. In any other directory no disk would be found, and a disk that is
/// not found counts as gone.
///
/// # Errors
/// [`Error::Io`] when it cannot be examined, [`Error::HostUnfit`] when it is something else.
pub fn check_is_sysfs(root: &Path) -> Result<()> {
    let found = statfs(root).map_err(Error::errno("examining", root))?;
    if found.filesystem_type() == MAGIC {
        return Ok(());
    }
    Err(Error::HostUnfit(format!(
        "no sysfs is mounted at {}; in a container, give the plugin the host's /sys",
        root.display()
    )))
}

/// Reads a one-line attribute without its line end; `None` where the device has none.
///
/// # Errors
/// As [`read_bytes`].
pub(in crate::host) fn read_attribute(file: &Path) -> Result<Option<String>> {
    Ok(read_bytes(file)?.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

/// Reads the number of the device with this directory; `None` where there is no such device.
///
/// # Errors
/// As [`read_bytes`].
pub(in crate::host) fn read_number(directory: &Path) -> Result<Option<DeviceNumber>> {
    Ok(read_attribute(&directory.join("dev"))?.and_then(|text| DeviceNumber::parse(&text)))
}

/// Reads an attribute; `None` where the device has none.
///
/// # Errors
/// [`Error::Io`]; [`is_going`] tells whether that means a device which is going away: it has the attribute, and its value
/// is not known any more, which is not the same as having none.
pub(in crate::host) fn read_bytes(file: &Path) -> Result<Option<Vec<u8>>> {
    let read = || match std::fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        // What sysfs answers for an attribute without a value.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
    };
    Ok(observe_if_there("reading", file, read)?.flatten())
}

/// Whether an attribute could not be read because its device is just going away.
pub(in crate::host) fn is_going(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::ENXIO))
}
