//! Which id belongs to which volume's name, as far as calls on this droplet have said.
//!
//! Owns a link beside udev's for each volume that was staged here: `do-csi-id-<id>`, which leads to udev's link with the volume's
//! name. A disk carries its volume's name, and most node calls bring the id alone: without the link nobody could say whether the
//! disk under a path is the volume that is meant. The link lies in `/dev`, which is memory of the kernel's and as old as the
//! mounts themselves; an older or newer process of this program finds it, and it is gone after a reboot.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::device::{DevicePlaces, LINK_PREFIX};
use crate::host::presence::{observe_entry, observe_is_there, observe_link, observe_metadata, observe_names};
use crate::id::{VolumeName, plain_or_hash};
use crate::sync::volume_lock::VolumeGuard;

/// What the names of these links begin with; the volume's id follows.
const PREFIX: &str = "do-csi-id-";
/// Longest id that is written out.
const MOST_OF_ID: usize = 64;

fn file_name(id: &str) -> String {
    format!("{PREFIX}{}", plain_or_hash(id, MOST_OF_ID))
}

fn link(places: &DevicePlaces, id: &str) -> PathBuf {
    places.links.join(file_name(id))
}

/// The name of the volume with this id; `None` when no call has said it yet.
///
/// # Errors
/// [`Error::Io`] when the link is there and cannot be read.
pub(crate) fn observe_name_of(places: &DevicePlaces, id: &str) -> Result<Option<VolumeName>> {
    observe_name_at(&link(places, id))
}

fn observe_name_at(link: &Path) -> Result<Option<VolumeName>> {
    let to = match observe_link(link) {
        Ok(to) => to,
        // This program makes only links.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::InvalidInput => None,
        Err(err) => return Err(err),
    };
    let name = to.as_deref().and_then(Path::to_str).and_then(|to| to.strip_prefix(LINK_PREFIX));
    Ok(name.and_then(|name| VolumeName::parse(name).ok()))
}

/// All ids that were given to the volume with this name since its disk was attached; more than one where an orchestrator sends
/// ids of its own. A volume that was deleted while it was staged has left its id, and another one may have its name.
///
/// # Errors
/// [`Error::Io`] when the links cannot be listed.
pub(crate) fn observe_ids_of(places: &DevicePlaces, name: &VolumeName) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for file in observe_names(&places.links)?.unwrap_or_default() {
        let Some(id) = file.to_str().and_then(|file| file.strip_prefix(PREFIX)) else { continue };
        let link = places.links.join(&file);
        if observe_name_at(&link)?.as_ref() == Some(name) && !is_outdated(places, &link, name)? {
            ids.push(id.to_owned());
        }
    }
    Ok(ids)
}

/// Whether a link was made before the disk with this name was attached: then it may be of an earlier volume of this name. Where
/// the kernel does not say when a node was made, as older ones do not (before 5.18), no link is.
///
/// A node's other times change with each event that udev sees of the disk.
/// Source: statx(2), `stx_btime`; `udev_node_apply_permissions` in systemd's `src/udev/udev-node.c`.
fn is_outdated(places: &DevicePlaces, link: &Path, name: &VolumeName) -> Result<bool> {
    let made = observe_entry(link)?.and_then(|link| link.modified().ok());
    let attached = observe_metadata(&places.link(name))?.and_then(|node| node.created().ok());
    Ok(made.zip(attached).is_some_and(|(made, attached)| made < attached))
}

/// Remembers that the volume with this id has this name.
///
/// A second call changes nothing; another name takes the place of the old one, and a new link that of one that was made before
/// the disk was attached.
///
/// # Errors
/// [`Error::Io`] when the link cannot be made.
pub(crate) fn ensure_known(_guard: &VolumeGuard, places: &DevicePlaces, id: &str, name: &VolumeName) -> Result<()> {
    let link = link(places, id);
    if observe_name_at(&link)?.as_ref() == Some(name) && !is_outdated(places, &link, name)? {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .create(&places.links)
        .map_err(Error::io("making the directory", &places.links))?;
    // Renamed into its place, so that there is no moment without one.
    let fresh = places.links.join(format!(".{}", file_name(id)));
    forget(&fresh)?;
    std::os::unix::fs::symlink(format!("{LINK_PREFIX}{name}"), &fresh).map_err(Error::io("making the link", &fresh))?;
    fs::rename(&fresh, &link).map_err(Error::io("making the link", &link))
}

/// Forgets the name of a volume that is not used here any more.
///
/// A second call does nothing.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn apply_forget(_guard: &VolumeGuard, places: &DevicePlaces, id: &str) -> Result<()> {
    forget(&link(places, id))
}

fn forget(link: &Path) -> Result<()> {
    match fs::remove_file(link) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == ErrorKind::NotFound && !observe_is_there(link)? => Ok(()),
        Err(err) => Err(Error::io("removing the link", link)(err)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::volume_lock::{VolumeKey, VolumeLocks};
    use std::time::Duration;

    #[test]
    fn a_name_is_kept_for_each_id_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let places = DevicePlaces { links: dir.path().join("by-id"), ..DevicePlaces::default() };
        let guard = VolumeLocks::new().hold(VolumeKey::Id("v".into()), Duration::ZERO).unwrap();
        let name = |text: &str| VolumeName::parse(text).unwrap();
        let (uuid, odd) = ("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2", "../sda".repeat(100));
        for id in [uuid, &odd] {
            assert_eq!(observe_name_of(&places, id).unwrap(), None);
            for _ in 0..2 {
                ensure_known(&guard, &places, id, &name("blog")).unwrap();
                assert_eq!(observe_name_of(&places, id).unwrap(), Some(name("blog")));
            }
        }
        assert_eq!(fs::read_dir(&places.links).unwrap().count(), 2);
        assert_eq!(observe_ids_of(&places, &name("blog")).unwrap().len(), 2);
        ensure_known(&guard, &places, &odd, &name("other")).unwrap();
        assert_eq!(observe_ids_of(&places, &name("blog")).unwrap(), [uuid]);
        for id in [uuid, &odd, uuid] {
            apply_forget(&guard, &places, id).unwrap();
            assert_eq!(observe_name_of(&places, id).unwrap(), None);
        }
        assert_eq!(fs::read_dir(&places.links).unwrap().count(), 0);
        // A disk that was attached since says nothing of whose ids are from before, until one of them is told again.
        ensure_known(&guard, &places, uuid, &name("blog")).unwrap();
        let node = dir.path().join("node");
        while fs::metadata(&node)
            .and_then(|node| node.created())
            .map_or(true, |at| fs::symlink_metadata(link(&places, uuid)).unwrap().modified().unwrap() >= at)
        {
            fs::remove_file(&node).ok();
            fs::write(&node, "").unwrap();
        }
        std::os::unix::fs::symlink(&node, places.link(&name("blog"))).unwrap();
        assert_eq!(observe_ids_of(&places, &name("blog")).unwrap(), [""; 0]);
        assert_eq!(observe_name_of(&places, uuid).unwrap(), Some(name("blog")));
        ensure_known(&guard, &places, uuid, &name("blog")).unwrap();
        assert_eq!(observe_ids_of(&places, &name("blog")).unwrap(), [uuid]);
        apply_forget(&guard, &places, uuid).unwrap();
        fs::write(link(&places, uuid), "a file of somebody's").unwrap();
        assert_eq!(observe_name_of(&places, uuid).unwrap(), None);
    }
}
