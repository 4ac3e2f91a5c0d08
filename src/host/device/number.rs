//! The major and minor number of a device.

use std::fmt;

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
