//! Attributes of devices, as sysfs shows them.
//!
//! Owns what it means that an attribute is not there. It knows no attribute by name.

use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, Result};

/// Reads a one-line attribute without its line end; `None` where the device has none.
///
/// # Errors
/// As [`read_bytes`].
pub(super) fn read_attribute(file: &Path) -> Result<Option<String>> {
    Ok(read_bytes(file)?.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

/// Reads an attribute; `None` where the device has none.
///
/// # Errors
/// [`Error::Io`]; [`is_going`] tells whether that means a device which is going away: it has the attribute, and its value
/// is not known any more, which is not the same as having none.
pub(super) fn read_bytes(file: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        // What sysfs answers for an attribute without a value.
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(None),
        Err(error) => Err(Error::io("reading", file)(error)),
    }
}

/// Whether an attribute could not be read because its device is just going away.
pub(super) fn is_going(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::ENXIO))
}
