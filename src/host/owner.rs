//! Which volume a disk belongs to.
//!
//! Owns the decision whether a disk belongs to a certain volume, or to any volume at all. It relies on what the disk carries and
//! on udev's links, never on what the caller says. It opens no disk.

use crate::error::Result;
use crate::host::device::links::observe_linked_devices;
use crate::host::device::number::DeviceNumber;
use crate::host::device::scsi_id::{Identity, Make, NameMatch};
use crate::host::device::{DevicePlaces, DiskFingerprint};
use crate::id::VolumeName;

/// Whose a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The volume that was asked for by its name.
    This,
    /// A volume, but it is not known whether it is the requested one; its names, if it carries any.
    Some(Vec<String>),
    /// Certainly not the requested one; the text says what it is.
    Other(String),
    /// Unknown: it carries no name, and no volume's link leads to it.
    Nameless,
}

/// Decides whether a disk belongs to the volume with this name, or, if the name is not known, to any volume.
///
/// # Errors
/// [`crate::error::Error::Io`] when the disk or the links cannot be looked at.
pub(crate) fn observe_owner(places: &DevicePlaces, disk: DeviceNumber, name: Option<&VolumeName>) -> Result<Owner> {
    let fingerprint = DiskFingerprint::read(&places.sysfs_of(disk))?;
    if fingerprint.is_partition {
        return Ok(Owner::Other("a partition, and volumes are used whole".to_owned()));
    }
    let linked = observe_linked(places, disk)?;
    Ok(match name {
        Some(name) => judge(&fingerprint.identity, &linked, name),
        None => judge_any(&fingerprint.identity, linked),
    })
}

/// The names of the volumes whose links lead to a disk.
fn observe_linked(places: &DevicePlaces, disk: DeviceNumber) -> Result<Vec<String>> {
    let devices = observe_linked_devices(places)?;
    Ok(devices.into_iter().filter(|(number, _)| *number == disk).map(|(_, name)| name).collect())
}

/// Decides by the name. The name that the disk carries counts more than its links. Pure.
fn judge(identity: &Identity, linked: &[String], name: &VolumeName) -> Owner {
    match identity.proves(name) {
        NameMatch::Same => Owner::This,
        NameMatch::Other(found) => Owner::Other(found),
        NameMatch::Compatible | NameMatch::Silent => match (linked, identity.make()) {
            (linked, _) if linked.iter().any(|linked| linked == name.as_str()) => Owner::This,
            // Its link is not there, or not yet.
            ([], Make::Volume) => Owner::This,
            ([], Make::Unknown | Make::Other(_)) => Owner::Nameless,
            ([_, ..], _) => Owner::Other(format!("the volume named {}, by its link", linked.join(" or "))),
        },
    }
}

/// Decides without a name. Pure.
fn judge_any(identity: &Identity, linked: Vec<String>) -> Owner {
    match (identity.make(), linked.as_slice()) {
        (Make::Other(found), _) => Owner::Other(found),
        (Make::Unknown, []) => Owner::Nameless,
        (Make::Unknown, [_, ..]) => Owner::Some(linked),
        (Make::Volume, _) => {
            let carried = identity.names();
            Owner::Some(if carried.is_empty() { linked } else { carried })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_disk_is_the_volumes_by_what_it_carries_or_else_by_its_link() {
        let sysfs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sysfs");
        let identity = |tree: &str| Identity::read(&sysfs.join(tree)).unwrap();
        let (blog, silent, loop_disk, other) =
            (identity("volume"), identity("volume-without-pages"), identity("no such disk"), identity("virtio-disk"));
        let name = VolumeName::parse("blog").unwrap();
        let not = |text: &str| Owner::Other(text.to_owned());
        let some = |text: &str| Owner::Some(vec![text.to_owned()]);
        // (disk, its links, judged for the volume named blog, judged for a volume of unknown name)
        let table: [(&Identity, &[&str], Owner, Owner); 10] = [
            (&blog, &[], Owner::This, some("blog")),
            (&blog, &["shop"], Owner::This, some("blog")),
            (&silent, &[], Owner::This, Owner::Some(Vec::new())),
            (&silent, &["blog"], Owner::This, some("blog")),
            (&silent, &["shop"], not("the volume named shop, by its link"), some("shop")),
            (&loop_disk, &[], Owner::Nameless, Owner::Nameless),
            (&loop_disk, &["blog"], Owner::This, some("blog")),
            (&loop_disk, &["shop"], not("the volume named shop, by its link"), some("shop")),
            (&other, &[], not(VIRTIO), not(VIRTIO)),
            (&other, &["blog"], not(VIRTIO), not(VIRTIO)),
        ];
        for (identity, linked, named, any) in table {
            let linked: Vec<String> = linked.iter().map(|link| (*link).to_owned()).collect();
            assert_eq!(judge(identity, &linked, &name), named, "{identity:?} {linked:?}");
            assert_eq!(judge_any(identity, linked.clone()), any, "{identity:?} {linked:?}");
        }
        let shop = VolumeName::parse("shop").unwrap();
        assert_eq!(judge(&blog, &["shop".to_owned()], &shop), not("the volume named \"blog\""));
    }

    const VIRTIO: &str = "a disk of unnamed make, which is no DigitalOcean volume";
}
