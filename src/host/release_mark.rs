//! Which volume this droplet is about to let go of by itself, kept in `/dev` beside the links to the disks.
//!
//! Owns these marks. One is made before DigitalOcean is told to detach the volume and taken away when its disk has gone, or when
//! it certainly stays. A plugin that is killed in between leaves it, and the next one, or another one on the droplet, knows by it
//! that the disk may go at any moment. After a boot there is none.

use std::io::ErrorKind;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::host::device::{DevicePlaces, LINK_PREFIX};
use crate::host::presence::observe_is_there;
use crate::id::VolumeName;
use crate::sync::volume_lock::VolumeGuard;

/// What the names of the marks begin with; the volume's name follows.
const PREFIX: &str = "do-csi-release-";

fn mark(places: &DevicePlaces, name: &VolumeName) -> PathBuf {
    places.links.join(format!("{PREFIX}{name}"))
}

/// Whether a volume was about to be let go of.
///
/// # Errors
/// [`Error::Io`] when that cannot be seen.
pub(crate) fn observe_is_marked(places: &DevicePlaces, name: &VolumeName) -> Result<bool> {
    observe_is_there(&mark(places, name))
}

/// Marks a volume.
///
/// A second call changes nothing.
///
/// # Errors
/// [`Error::Io`]: then nobody would know, and the volume must not be let go of.
pub(crate) fn ensure_marked(_guard: &VolumeGuard, places: &DevicePlaces, name: &VolumeName) -> Result<()> {
    let mark = mark(places, name);
    match std::os::unix::fs::symlink(format!("{LINK_PREFIX}{name}"), &mark) {
        Err(err) if err.kind() != ErrorKind::AlreadyExists => Err(Error::io("making the link", &mark)(err)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes a mark away.
///
/// A second call does nothing.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn apply_unmark(_guard: &VolumeGuard, places: &DevicePlaces, name: &VolumeName) -> Result<()> {
    let mark = mark(places, name);
    match std::fs::remove_file(&mark) {
        Err(err) if err.kind() != ErrorKind::NotFound => Err(Error::io("removing", &mark)(err)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sync::volume_lock::{VolumeKey, VolumeLocks};

    #[test]
    fn a_mark_stays_until_it_is_taken_away_and_is_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let places = DevicePlaces { links: dir.path().to_owned(), ..DevicePlaces::default() };
        let name = VolumeName::parse("blog").unwrap();
        let guard = VolumeLocks::new().hold(VolumeKey::Name("blog".to_owned()), Duration::ZERO).unwrap();
        assert!(!observe_is_marked(&places, &name).unwrap());
        for _ in 0..2 {
            ensure_marked(&guard, &places, &name).unwrap();
            assert!(observe_is_marked(&places, &name).unwrap());
        }
        assert!(!observe_is_marked(&places, &VolumeName::parse("blo").unwrap()).unwrap());
        for _ in 0..2 {
            apply_unmark(&guard, &places, &name).unwrap();
            assert!(!observe_is_marked(&places, &name).unwrap());
        }
        let places = DevicePlaces { links: dir.path().join("none"), ..places };
        assert!(ensure_marked(&guard, &places, &name).is_err() && !observe_is_marked(&places, &name).unwrap());
    }
}
