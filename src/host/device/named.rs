//! The disks that carry a volume's name.
//!
//! Owns the search through all disks that sysfs lists, and what is said of those that cannot be read.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Chain, Error, Result};
use crate::host::device::DevicePlaces;
use crate::host::device::scsi_id::{Identity, NameMatch};
use crate::host::device::sysfs::is_going;
use crate::host::presence::observe_names;
use crate::id::VolumeName;

/// The kernel names of the disks without hardware, as loop devices and LVM: such a disk carries no name. Where sysfs does not
/// list them, none is taken for one.
///
/// Source: `virtual_device_parent` in the kernel's `drivers/base/core.c`.
fn virtual_disks(sysfs: &Path) -> Result<HashSet<OsString>> {
    let listed = observe_names(&sysfs.join("devices/virtual/block"))?;
    Ok(listed.unwrap_or_default().into_iter().collect())
}

/// The disks that carry a volume's name.
pub(super) struct Named {
    /// Their kernel names, in order.
    pub(super) names: Vec<String>,
    /// Why a disk could not be read that may be one of them.
    pub(super) unread: Option<Error>,
}

/// Looks at the names of all disks.
///
/// # Errors
/// [`Error::Io`] when the disks cannot be listed.
pub(super) fn disks_named(places: &DevicePlaces, volume: &VolumeName) -> Result<Named> {
    let directory = places.sysfs.join("block");
    let without_hardware = virtual_disks(&places.sysfs)?;
    let mut found = Named { names: Vec::new(), unread: None };
    let not_there = || Error::io("listing", &directory)(ErrorKind::NotFound.into());
    for name in observe_names(&directory)?.ok_or_else(not_there)? {
        if without_hardware.contains(&name) {
            continue;
        }
        match Identity::read(&directory.join(&name)).map(|identity| identity.proves(volume)) {
            Ok(NameMatch::Same) => found.names.push(name.to_string_lossy().into_owned()),
            Ok(NameMatch::Other(_) | NameMatch::Compatible | NameMatch::Silent) => {}
            // A disk that goes away is not the one that is looked for.
            Err(err) if is_going(&err) => {}
            // One disk that cannot be read says nothing of the others.
            Err(err) => {
                log::debug!("passed over in the search for volume {volume}: {}", Chain(&err));
                found.unread = Some(err);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_that_sysfs_lists_as_virtual_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        assert!(virtual_disks(dir.path()).unwrap().is_empty());
        for disk in ["devices/virtual/block/loop0", "block/loop0", "block/sda"] {
            std::fs::create_dir_all(dir.path().join(disk)).unwrap();
        }
        assert_eq!(virtual_disks(dir.path()).unwrap(), HashSet::from([OsString::from("loop0")]));
    }
}
