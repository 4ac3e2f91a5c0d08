//! Whether what is mounted at a path is the volume that a call means.
//!
//! Owns that question for the calls that bring only a volume's id and a path: unpublish, unstage, expand and
//! statistics. A call with a wrong path or a wrong id must not take another volume, or the droplet's own disk, away
//! from its users.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use log::{Level, log, warn};

use crate::error::{Chain, Error, Result, Thing};
use crate::host::device::lookup::{LookupResult, observe_device};
use crate::host::device::number::DeviceNumber;
use crate::host::device::{Device, DevicePlaces};
use crate::host::id_link::{apply_forget, ensure_known, observe_ids_of, observe_name_of};
use crate::host::luks::mapper::{DiskHolder, observe_holder_of};
use crate::host::mount_health::Health;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::owner::{Owner, observe_owner};
use crate::host::under_mount::{UnderMount, observe_disk};
use crate::id::{VolumeId, VolumeName};
use crate::node::NodeCall;

/// Whether a mount belongs to the requested volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whose {
    /// It belongs to the volume. If the volume's name is not known: it belongs to a volume that is known by no other
    /// id.
    Ours(Option<VolumeName>),
    /// Its disk is gone. So nobody can say which volume it was, and nothing can be written to it any more.
    Gone,
    /// It belongs to something else; the text says to what.
    NotOurs(String),
}

impl Whose {
    /// The message for the caller who requested the volume there.
    pub(super) fn not_there(volume: &str, mount: &Mount, found: &str) -> Error {
        let found = format!("{} ({}) is mounted there, from {found}", mount.source.display(), mount.fstype);
        Error::NotFound(Thing::VolumeNotAt { volume: volume.to_owned(), path: mount.target.clone(), found })
    }
}

/// Remembers the name of the volume with this id, for the calls that bring only the id.
pub(super) fn remember(call: &NodeCall<'_>, volume: &str, name: &VolumeName) {
    if let Err(err) = ensure_known(&call.guard, call.places, volume, name) {
        // Without the link a wrong path may go unnoticed. That is no reason to refuse the volume to its task. If `/dev`
        // is read-only, every call gets here, so the warning is logged once.
        let level = if call.warned.of_ids.swap(true, Ordering::Relaxed) { Level::Debug } else { Level::Warn };
        log!(level, volume, name:%; "cannot keep in mind which volume has this id: {}", Chain(&err));
    }
}

/// Forgets the name of a volume that is used nowhere on this droplet any more.
pub(super) fn forget_unused(call: &NodeCall<'_>, mounts: &MountTable, volume: &str) {
    let forget = || match observe_name_of(call.places, volume)? {
        Some(name) if !observe_is_used(call.places, mounts, &name)? => apply_forget(&call.guard, call.places, volume),
        Some(_) | None => Ok(()),
    };
    if let Err(err) = forget() {
        warn!(volume; "cannot forget which volume has this id: {}", Chain(&err));
    }
}

/// What is found under a volume's name.
#[derive(Debug)]
pub(super) enum Named {
    /// Certainly no disk: none carries the name, and the link leads nowhere or to another volume's.
    Gone,
    /// A disk that works, and what lies on it.
    Works(Box<Device>, DiskHolder),
    /// A disk that does not work, as one that the kernel has blocked, or something of which nobody can say what it is.
    Unusable {
        /// Its node, where there is one.
        node: Option<PathBuf>,
        /// What was seen.
        seen: String,
    },
}

impl Named {
    /// The disk, for one who can do nothing with one that does not work.
    ///
    /// # Errors
    /// [`Error::HostUnfit`] for such a disk.
    pub(super) fn working(self, name: &VolumeName) -> Result<Option<(Device, DiskHolder)>> {
        match self {
            Named::Gone => Ok(None),
            Named::Works(disk, upon) => Ok(Some((*disk, upon))),
            Named::Unusable { seen, .. } => Err(unclear(name, &seen)),
        }
    }
}

/// The error for a disk of which nobody can say whether it is in use.
pub(super) fn unclear(name: &VolumeName, seen: &str) -> Error {
    Error::HostUnfit(format!("cannot tell whether volume {name} is used: {seen}"))
}

/// Looks for the disk of the volume with this name.
///
/// # Errors
/// [`Error::Io`] when that cannot be seen.
pub(super) fn observe_named(places: &DevicePlaces, name: &VolumeName) -> Result<Named> {
    let looked = observe_device(places, name, None)?;
    let seen = looked.to_string();
    match looked {
        LookupResult::Ready(disk) | LookupResult::TooSmall { device: disk, .. } => {
            let upon = observe_holder_of(places, &disk)?;
            Ok(Named::Works(Box::new(disk), upon))
        }
        LookupResult::Missing { .. } | LookupResult::OtherVolume { .. } => Ok(Named::Gone),
        LookupResult::NotRunning { path, .. } | LookupResult::ZeroSize { path } => {
            Ok(Named::Unusable { node: Some(path), seen })
        }
        LookupResult::NotABlockDevice { .. }
        | LookupResult::DoesNotOpen { .. }
        | LookupResult::Several { .. }
        | LookupResult::Unread { .. } => Ok(Named::Unusable { node: None, seen }),
    }
}

fn observe_is_used(places: &DevicePlaces, mounts: &MountTable, name: &VolumeName) -> Result<bool> {
    let Some((disk, upon)) = observe_named(places, name)?.working(name)? else { return Ok(false) };
    Ok(match upon {
        DiskHolder::Nothing | DiskHolder::Temporary(_) => mounts.of_device(&disk).next().is_some(),
        DiskHolder::Open(open) => mounts.of_device(&open).next().is_some(),
        DiskHolder::Closing(_) | DiskHolder::Other(_) => true,
    })
}

/// Finds out whether a mount with this health belongs to the volume. A mount whose disk is gone belongs to nobody.
/// Neither does the node of such a disk, unless its number now belongs to the disk of another volume.
///
/// # Errors
/// As [`observe_whose`].
pub(super) fn observe_whose_at(places: &DevicePlaces, volume: &str, mount: &Mount, health: Health) -> Result<Whose> {
    match health {
        Health::DiskGone => Ok(Whose::Gone),
        Health::Alive | Health::ShutDown => observe_whose(places, volume, mount),
        Health::NodeGone => {
            let known = (observe_disk(places, mount)?, observe_name_of(places, volume)?);
            let (UnderMount::Disk(disk), Some(name)) = known else { return Ok(Whose::Gone) };
            Ok(match observe_owner(places, disk, Some(&name))? {
                Owner::Other(found) => Whose::NotOurs(found),
                Owner::This | Owner::Some(_) | Owner::Nameless => Whose::Gone,
            })
        }
    }
}

/// Finds out whether the disk under a mount is the volume's: by the name that belongs to the id. If that name is not
/// known, the disk must be a volume that is known by no other id.
///
/// # Errors
/// [`Error::Io`] when that cannot be read. Then the mount must be left alone.
pub(super) fn observe_whose(places: &DevicePlaces, volume: &str, mount: &Mount) -> Result<Whose> {
    if is_root(mount)? {
        return Ok(Whose::NotOurs("the disk with the root file system".to_owned()));
    }
    let disk = match observe_disk(places, mount)? {
        UnderMount::Disk(disk) => disk,
        UnderMount::Gone => return Ok(Whose::Gone),
        UnderMount::NoDisk => return Ok(Whose::NotOurs("no disk that can be told".to_owned())),
    };
    let name = observe_name_of(places, volume)?;
    match observe_owner(places, disk, name.as_ref())? {
        Owner::This => Ok(Whose::Ours(name)),
        Owner::Other(found) => Ok(Whose::NotOurs(found)),
        Owner::Nameless => {
            Ok(Whose::NotOurs("a disk that carries no name and to which no volume's link leads".to_owned()))
        }
        Owner::Some(names) => {
            let names: Vec<VolumeName> = names.iter().filter_map(|name| VolumeName::parse(name).ok()).collect();
            let known = names.iter().map(|name| observe_ids_of(places, name)).collect::<Result<Vec<_>>>()?;
            Ok(plan_unnamed(volume, &names, &known.concat()))
        }
    }
}

/// Whether this is of the file system on which the program itself lives.
fn is_root(mount: &Mount) -> Result<bool> {
    let root = std::fs::metadata("/").map_err(Error::io("examining", "/"))?;
    Ok(mount.device == DeviceNumber::from_raw(std::os::unix::fs::MetadataExt::dev(&root)))
}

/// Decides about a volume's disk when no name is known for the requested id. `known` are the ids by which the disk's
/// volume is known. DigitalOcean gives each volume one id. Old Nomads send their own id in some calls and
/// DigitalOcean's in others. Pure.
fn plan_unnamed(asked: &str, names: &[VolumeName], known: &[String]) -> Whose {
    let is_own = |id: &str| VolumeId::parse(id).is_ok();
    let another = known.iter().find(|id| is_own(id)).filter(|_| is_own(asked) && !known.iter().any(|id| id == asked));
    match another {
        Some(id) => {
            let names: Vec<&str> = names.iter().map(VolumeName::as_str).collect();
            Whose::NotOurs(format!("volume {}, which was staged as {id}", names.join(" or ")))
        }
        None => Whose::Ours(names.first().cloned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_unknown_name_is_believed_unless_the_disk_is_known_by_another_one() {
        let (uuid, other) = ("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2", "00000000-8f00-11f0-9a11-0a58ac14d1e2");
        let name = VolumeName::parse("blog").unwrap();
        let ours = Whose::Ours(Some(name.clone()));
        let not = Whose::NotOurs(format!("volume blog, which was staged as {other}"));
        for (asked, known, want) in [
            (uuid, vec![], &ours),
            (uuid, vec![other], &not),
            (uuid, vec![uuid, other], &ours),
            // A Nomad before 0.11.1 calls the volume by its own id, and after an update by DigitalOcean's.
            (uuid, vec!["blog"], &ours),
            ("blog", vec![other], &ours),
            (uuid, vec!["blog", other], &not),
        ] {
            let known: Vec<String> = known.into_iter().map(str::to_owned).collect();
            assert_eq!(&plan_unnamed(asked, std::slice::from_ref(&name), &known), want, "{asked} {known:?}");
        }
        assert_eq!(plan_unnamed(uuid, &[], &[]), Whose::Ours(None));
    }
}
