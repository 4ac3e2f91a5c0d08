//! Errors that the kernel has recorded in a mounted ext4 or ext3.
//!
//! Owns the reading of their count and of the first error. Tasks may go on writing to a file system with such errors,
//! and only the kernel's log shows them. The file system is checked when it is staged next.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::host::device::DevicePlaces;
use crate::host::device::sysfs::read_attribute;
use crate::host::mountinfo::Mount;
use crate::host::presence::observe_real;

/// What the kernel has recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedErrors {
    /// How many errors there were since the file system was checked last.
    pub count: u64,
    /// When the first one was.
    pub first_at: Option<SystemTime>,
    /// The kernel's function that found the first one, and its line: `ext4_lookup:1855`.
    pub first_in: String,
}

impl fmt::Display for RecordedErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = if self.count == 1 { "error" } else { "errors" };
        write!(f, "{} {errors} recorded in its file system", self.count)?;
        let Some(at) = self.first_at.and_then(|at| Timestamp::try_from(at).ok()) else { return Ok(()) };
        write!(f, ", the first one at {at} in {}", self.first_in)
    }
}

/// Looks whether errors are recorded in the file system of a mount; `None`: there are none, or it is no ext4 or ext3.
///
/// # Errors
/// [`Error::Io`] when sysfs cannot be read.
/// Source: `Documentation/ABI/testing/sysfs-fs-ext4` of the kernel; the directory has the kernel's name of the disk.
pub(crate) fn observe_recorded_errors(places: &DevicePlaces, mount: &Mount) -> Result<Option<RecordedErrors>> {
    if !mount.fstype.starts_with("ext") {
        return Ok(None);
    }
    let Some(disk) = observe_real(&places.sysfs_of(mount.device))? else { return Ok(None) };
    let own = places.sysfs.join("fs/ext4").join(disk.file_name().unwrap_or_default());
    read_errors(&own)
}

fn read_errors(own: &Path) -> Result<Option<RecordedErrors>> {
    let attribute = |name: &str| read_attribute(&own.join(name));
    let number = |name: &str| Ok::<_, Error>(attribute(name)?.and_then(|text| text.parse::<u64>().ok()));
    let Some(count) = number("errors_count")?.filter(|count| *count > 0) else { return Ok(None) };
    let seconds = number("first_error_time")?.filter(|seconds| *seconds > 0);
    let first_at = seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let function = attribute("first_error_func")?.unwrap_or_default();
    let line = attribute("first_error_line")?.unwrap_or_default();
    Ok(Some(RecordedErrors { count, first_at, first_in: format!("{function}:{line}") }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mountinfo::MountTable;
    use std::fs;

    #[test]
    fn the_errors_of_an_ext_are_counted_and_the_first_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("fs/ext4/sda");
        fs::create_dir_all(&own).unwrap();
        fs::create_dir_all(dir.path().join("devices/sda")).unwrap();
        fs::create_dir_all(dir.path().join("dev/block")).unwrap();
        std::os::unix::fs::symlink("../../devices/sda", dir.path().join("dev/block/8:0")).unwrap();
        let places = DevicePlaces { sysfs: dir.path().to_owned(), ..DevicePlaces::default() };
        let seen = |kind: &str| {
            let table = MountTable::parse(format!("9 1 8:0 / /m rw - {kind} /dev/sda rw\n").as_bytes()).unwrap();
            observe_recorded_errors(&places, table.iter().next().unwrap()).unwrap()
        };
        assert_eq!(seen("ext4"), None);
        fs::write(own.join("errors_count"), "0\n").unwrap();
        assert_eq!(seen("ext4"), None);
        fs::write(own.join("errors_count"), "1\n").unwrap();
        assert_eq!(seen("ext4").unwrap().to_string(), "1 error recorded in its file system");
        for (name, value) in [
            ("errors_count", "3\n"),
            ("first_error_time", "1795801171\n"),
            ("first_error_func", "ext4_lookup\n"),
            ("first_error_line", "1855\n"),
        ] {
            fs::write(own.join(name), value).unwrap();
        }
        let told = "3 errors recorded in its file system, the first one at 2026-11-27T17:39:31Z in ext4_lookup:1855";
        assert_eq!(seen("ext3").unwrap().to_string(), told);
        assert_eq!(seen("xfs"), None);
    }
}
