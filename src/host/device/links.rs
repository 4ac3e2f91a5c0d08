//! The links in `/dev` by which udev names volumes' disks.
//!
//! Owns which links there are and which disks they lead to. A link is only a hint: what a disk says of itself counts more
//! (`owner.rs`, `lookup.rs`).

use std::ffi::OsString;

use crate::error::Result;
use crate::host::device::number::{DeviceNumber, observe_node};
use crate::host::device::{DevicePlaces, LINK_PREFIX};
use crate::host::presence::{observe_is_there, observe_names};
use crate::id::VolumeName;

/// The names of all volumes that have a link, whatever is behind it. There are none as long as no disk has a name.
///
/// # Errors
/// [`crate::error::Error::Io`] when the links cannot be listed.
pub(crate) fn observe_linked_names(places: &DevicePlaces) -> Result<Vec<VolumeName>> {
    Ok(names(places)?.iter().filter_map(|name| VolumeName::parse(name).ok()).collect())
}

/// What follows the prefix in the links' names.
fn names(places: &DevicePlaces) -> Result<Vec<String>> {
    let files = observe_names(&places.links)?.unwrap_or_default();
    let name = |file: &OsString| Some(file.to_str()?.strip_prefix(LINK_PREFIX)?.to_owned());
    Ok(files.iter().filter_map(name).collect())
}

/// The devices to which the links lead, with the names of the links. A link that leads nowhere is left out.
///
/// # Errors
/// [`crate::error::Error::Io`] when the links cannot be looked at.
pub(crate) fn observe_linked_devices(places: &DevicePlaces) -> Result<Vec<(DeviceNumber, String)>> {
    let mut devices = Vec::new();
    for name in names(places)? {
        let number = observe_node(&places.links.join(format!("{LINK_PREFIX}{name}")))?;
        devices.extend(number.map(|number| (number, name)));
    }
    Ok(devices)
}

/// The same of whole disks only: partitions have links of their own.
///
/// # Errors
/// As [`observe_linked_devices`].
pub(crate) fn observe_linked_disks(places: &DevicePlaces) -> Result<Vec<(DeviceNumber, String)>> {
    let mut disks = Vec::new();
    for (number, name) in observe_linked_devices(places)? {
        let sysfs = places.sysfs_of(number);
        if observe_is_there(&sysfs)? && !observe_is_there(&sysfs.join("partition"))? {
            disks.push((number, name));
        }
    }
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_leads_nowhere_is_no_volume_and_one_that_cannot_be_followed_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let places = DevicePlaces { links: dir.path().join("by-id"), ..DevicePlaces::default() };
        assert_eq!(observe_linked_disks(&places).unwrap(), []);
        std::fs::create_dir(&places.links).unwrap();
        let link = |name: &str, to: &str| std::os::unix::fs::symlink(to, places.links.join(name)).unwrap();
        link("scsi-0DO_Volume_stale", "../sdz");
        link("other-ring", "other-ring");
        assert_eq!(observe_linked_disks(&places).unwrap(), []);
        link("scsi-0DO_Volume_ring", "scsi-0DO_Volume_ring");
        assert!(observe_linked_disks(&places).is_err());
    }
}
