//! Which volume this droplet is about to let go of by itself, kept in `/dev` beside the links to the disks.
//!
//! Owns these marks. One is made before DigitalOcean is told to detach the volume and taken away when its disk has gone, or when
//! it certainly stays. A plugin that is killed in between leaves it, and the next one, or another one on the droplet, knows by it
//! that the disk may go at any moment, and for how long that is so: since the mark was made. After a boot there is none.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::host::device::{DevicePlaces, LINK_PREFIX};
use crate::host::presence::observe_entry;
use crate::id::VolumeName;
use crate::sync::volume_lock::VolumeGuard;

/// What the names of the marks begin with; the volume's name follows.
const PREFIX: &str = "do-csi-release-";

fn mark(places: &DevicePlaces, name: &VolumeName) -> PathBuf {
    places.links.join(format!("{PREFIX}{name}"))
}

/// How long ago a volume was about to be let go of; `None`: it was not. A clock that went back makes a mark as young as can be.
///
/// # Errors
/// [`Error::Io`] when that cannot be seen.
pub(crate) fn observe_mark(places: &DevicePlaces, name: &VolumeName) -> Result<Option<Duration>> {
    let mark = mark(places, name);
    let Some(seen) = observe_entry(&mark)? else { return Ok(None) };
    let made = seen.modified().map_err(Error::io("examining", &mark))?;
    Ok(Some(SystemTime::now().duration_since(made).unwrap_or_default()))
}

/// Marks a volume.
///
/// A second call makes the mark as young as if there had been none.
///
/// # Errors
/// [`Error::Io`]: then nobody would know, and the volume must not be let go of.
pub(crate) fn ensure_marked(guard: &VolumeGuard, places: &DevicePlaces, name: &VolumeName) -> Result<()> {
    apply_unmark(guard, places, name)?;
    let mark = mark(places, name);
    std::os::unix::fs::symlink(format!("{LINK_PREFIX}{name}"), &mark).map_err(Error::io("making the link", &mark))
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
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::sync::volume_lock::{VolumeKey, VolumeLocks};

    #[test]
    fn a_mark_stays_until_it_is_taken_away_and_is_as_old_as_it_was_made_last() {
        let dir = tempfile::tempdir().unwrap();
        let places = DevicePlaces { links: dir.path().to_owned(), ..DevicePlaces::default() };
        let name = VolumeName::parse("blog").unwrap();
        let guard = VolumeLocks::new().hold(VolumeKey::Name("blog".to_owned()), Duration::ZERO).unwrap();
        assert_eq!(observe_mark(&places, &name).unwrap(), None);
        let (first, pause) = (Instant::now(), Duration::from_millis(300));
        ensure_marked(&guard, &places, &name).unwrap();
        thread::sleep(pause);
        assert!(observe_mark(&places, &name).unwrap().unwrap() >= pause);
        ensure_marked(&guard, &places, &name).unwrap();
        // The kernel's times of files are behind by some milliseconds.
        assert!(observe_mark(&places, &name).unwrap().unwrap() + pause / 2 < first.elapsed());
        assert_eq!(observe_mark(&places, &VolumeName::parse("blo").unwrap()).unwrap(), None);
        for _ in 0..2 {
            apply_unmark(&guard, &places, &name).unwrap();
            assert_eq!(observe_mark(&places, &name).unwrap(), None);
        }
        let places = DevicePlaces { links: dir.path().join("none"), ..places };
        assert!(ensure_marked(&guard, &places, &name).is_err() && observe_mark(&places, &name).unwrap().is_none());
    }
}
