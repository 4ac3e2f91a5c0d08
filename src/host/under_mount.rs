//! Which device is under a mount.
//!
//! Owns the one answer to that question, in both directions: from a mount to its device, and whether a mount shows a device that
//! is known already. Which volume the disk belongs to is in `owner.rs`, and whether it still works in `mount_health.rs`.

use std::path::Path;

use crate::error::Result;
use crate::host::device::number::{DeviceNumber, observe_node};
use crate::host::device::sysfs::read_number;
use crate::host::device::{Device, DevicePlaces};
use crate::host::luks::mapper::{LuksMapping, observe_mapped, observe_mapping};
use crate::host::mountinfo::{Mount, MountTable};

/// What lies under a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnderMount {
    /// This disk; below an encrypted volume the one that it lies on.
    Disk(DeviceNumber),
    /// An encrypted volume whose disk is gone.
    Gone,
    /// No disk, or an unknown one.
    NoDisk,
}

/// Finds the disk under a mount: the disk of the device node, or of the file system.
///
/// # Errors
/// [`crate::error::Error::Io`] when that cannot be seen.
pub(crate) fn observe_disk(places: &DevicePlaces, mount: &Mount) -> Result<UnderMount> {
    if let Some(encrypted) = observe_mapping_under(places, mount)? {
        return Ok(encrypted.disk.map_or(UnderMount::Gone, UnderMount::Disk));
    }
    Ok(observe_device(places, mount)?.map_or(UnderMount::NoDisk, UnderMount::Disk))
}

/// The device that a mount shows: the one with the file system, or the one whose node is bound. Of an encrypted volume this is
/// the device mapper's, not the disk.
///
/// # Errors
/// [`crate::error::Error::Io`] when that cannot be seen.
pub(crate) fn observe_device(places: &DevicePlaces, mount: &Mount) -> Result<Option<DeviceNumber>> {
    if mount.is_node() {
        // The mount may be hidden by one that never answers, so its path is asked only where the name does not tell.
        let named = mount.root.strip_prefix("/").ok().filter(|_| !mount.is_removed_node());
        let listed = named.map_or(Ok(None), |name| read_number(&places.sysfs_named(name)))?;
        return listed.map_or_else(|| observe_node(&mount.target), |number| Ok(Some(number)));
    }
    let source = Path::new(&mount.source);
    match observe_listed(places, mount)? {
        // Somebody may have mounted it by a path of their own; another one than of `/dev` may lead to what never answers.
        None if mount.fstype == "btrfs" && source.starts_with(&places.nodes) => observe_node(source),
        listed => Ok(listed),
    }
}

/// The device under a file system, as far as the mount table and sysfs tell without a look at any node. btrfs has numbers of its
/// own and is found by the device that it was mounted from, by the kernel's name for it or by the device mapper's.
///
/// # Errors
/// [`crate::error::Error::Io`] when sysfs cannot be read.
pub(crate) fn observe_listed(places: &DevicePlaces, mount: &Mount) -> Result<Option<DeviceNumber>> {
    if mount.device.major != 0 {
        return Ok(Some(mount.device));
    }
    let source = Path::new(&mount.source);
    match (source.parent(), source.file_name()) {
        (Some(directory), Some(name)) if mount.fstype == "btrfs" => {
            if directory == places.nodes {
                read_number(&places.sysfs_named(name))
            } else if directory == places.nodes.join("mapper") {
                observe_mapped(places, name)
            } else {
                Ok(None)
            }
        }
        (Some(_) | None, Some(_) | None) => Ok(None),
    }
}

/// The open encrypted volume on which a mounted file system lies; `None`: it lies on none.
///
/// # Errors
/// [`crate::error::Error::Io`] when sysfs cannot be read.
pub(crate) fn observe_mapping_under(places: &DevicePlaces, mount: &Mount) -> Result<Option<LuksMapping>> {
    observe_listed(places, mount)?.map_or(Ok(None), |number| observe_mapping(places, number))
}

impl Mount {
    /// Whether this mount shows the file system on the device with this number, which the kernel calls by certain paths.
    ///
    /// btrfs gives its mounts numbers that belong to no disk; there, and only there, the source decides.
    #[must_use]
    pub(crate) fn shows(&self, number: DeviceNumber, is_called: impl Fn(&Path) -> bool) -> bool {
        self.device == number || (self.fstype == "btrfs" && is_called(Path::new(&self.source)))
    }

    /// Whether this mount shows the file system on the device.
    #[must_use]
    pub fn is_of(&self, device: &Device) -> bool {
        self.shows(device.number(), |source| device.is_called(source))
    }

    /// Whether this is the device's node in `/dev`, bound to some other place: a published raw block volume.
    #[must_use]
    pub fn is_node_of(&self, device: &Device) -> bool {
        device.path().file_name().is_some_and(|name| self.is_node_named(name))
    }

    /// Whether this is of the device's file system, or its node.
    #[must_use]
    pub fn shows_device(&self, device: &Device) -> bool {
        self.is_of(device) || self.is_node_of(device)
    }
}

impl MountTable {
    /// Every mount of this device's file system, or of its node, wherever it is.
    pub fn of_device<'a>(&'a self, device: &'a Device) -> impl Iterator<Item = &'a Mount> {
        self.iter().filter(move |mount| mount.shows_device(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_a_bound_node_is_told_without_a_look_at_its_path() {
        // Another mount may hide it that never answers.
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("class/block/sda")).unwrap();
        std::fs::write(dir.path().join("class/block/sda/dev"), "8:0\n").unwrap();
        let places = DevicePlaces { sysfs: dir.path().to_owned(), ..DevicePlaces::default() };
        let table = MountTable::parse(b"9 1 0:5 /sda /not/there rw - devtmpfs udev rw\n").unwrap();
        let disk = observe_device(&places, table.iter().next().unwrap()).unwrap();
        assert_eq!(disk, Some(DeviceNumber { major: 8, minor: 0 }));
    }
}
