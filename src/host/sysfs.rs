//! Attributes of devices, as sysfs shows them.
//!
//! Owns what it means that an attribute is not there. It knows no attribute by name.

use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, Result};

/// Reads a one-line attribute without its line end; `None` where the device has none.
pub(super) fn read_attribute(file: &Path) -> Result<Option<String>> {
    Ok(read_bytes(file)?.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

/// Reads an attribute; `None` where the device has none, or is just going away.
pub(super) fn read_bytes(file: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        // What sysfs answers for an attribute without a value (EINVAL) and for a device on its way out (ENODEV, ENXIO).
        Err(error)
            if matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::ENODEV | nix::libc::ENXIO)) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::io("reading", file)(error)),
    }
}
