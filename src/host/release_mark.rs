//! Which volume this droplet is about to let go of by itself, kept in `/dev` beside the links to the disks.
//!
//! Owns these marks. One is made before DigitalOcean is told to detach the volume and taken away when its disk has gone, or when
//! it certainly stays. A plugin that is killed in between leaves it, and the next one, or another one on the droplet, knows by it
//! that the disk may go at any moment, and for how long that is so: since the mark was made, which is what the link leads to. After
//! a boot there is none.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::error::{Error, Result};
use crate::host::device::DevicePlaces;
use crate::host::presence::observe_entry;
use crate::id::VolumeName;
use crate::sync::volume_lock::VolumeGuard;

/// What the names of the marks begin with; the volume's name follows.
const PREFIX: &str = "do-csi-release-";

fn mark(places: &DevicePlaces, name: &VolumeName) -> PathBuf {
    places.links.join(format!("{PREFIX}{name}"))
}

/// What a mark leads to, before the time since the boot at which it was made, in milliseconds. Somebody may set the droplet's clock,
/// as does the first answer of a time server, and that must not shorten a wait.
const MADE_AT: &str = "boot+";

/// The time since the boot, with that in which the droplet slept. Source: clock_gettime(2), `CLOCK_BOOTTIME`.
fn since_boot() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(Error::errno("reading", "the clock"))?;
    Ok(Duration::from(now))
}

/// When a mark was made, by what it leads to; `None`: an older plugin has made it. Pure.
fn parse_made(leads_to: &Path) -> Option<Duration> {
    let millis = leads_to.to_str()?.strip_prefix(MADE_AT)?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// How long ago a volume was about to be let go of; `None`: it was not. Of the mark of an older plugin only the droplet's clock
/// tells; one that went back makes it as young as can be.
///
/// # Errors
/// [`Error::Io`] when that cannot be seen.
pub(crate) fn observe_mark(places: &DevicePlaces, name: &VolumeName) -> Result<Option<Duration>> {
    let mark = mark(places, name);
    let Some(seen) = observe_entry(&mark)? else { return Ok(None) };
    let made = match std::fs::read_link(&mark) {
        Ok(leads_to) => parse_made(&leads_to),
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(Error::io("reading", &mark)(err)),
    };
    if let Some(made) = made {
        return Ok(Some(since_boot()?.saturating_sub(made)));
    }
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
    let made = format!("{MADE_AT}{}", since_boot()?.as_millis());
    std::os::unix::fs::symlink(made, &mark).map_err(Error::io("making the link", &mark))
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
    use std::process::Command;
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
        assert!(observe_mark(&places, &name).unwrap().unwrap() + pause / 2 < first.elapsed());
        assert_eq!(observe_mark(&places, &VolumeName::parse("blo").unwrap()).unwrap(), None);
        // The droplet's clock was an hour behind when the mark was made, and is right now.
        let mark = mark(&places, &name);
        let touched = Command::new("touch").args(["--no-dereference", "--date=-1 hour"]).arg(&mark).status().unwrap();
        assert!(touched.success());
        assert!(observe_mark(&places, &name).unwrap().unwrap() <= first.elapsed());
        // An older plugin has made it.
        std::fs::remove_file(&mark).unwrap();
        std::os::unix::fs::symlink("scsi-0DO_Volume_blog", &mark).unwrap();
        let touched = Command::new("touch").args(["--no-dereference", "--date=-1 hour"]).arg(&mark).status().unwrap();
        assert!(touched.success());
        assert!(observe_mark(&places, &name).unwrap().unwrap() >= Duration::from_secs(3600));
        for _ in 0..2 {
            apply_unmark(&guard, &places, &name).unwrap();
            assert_eq!(observe_mark(&places, &name).unwrap(), None);
        }
        let places = DevicePlaces { links: dir.path().join("none"), ..places };
        assert!(ensure_marked(&guard, &places, &name).is_err() && observe_mark(&places, &name).unwrap().is_none());
    }
}
