//! Loop devices as disks, with a link for each where udev would make one: what droplets have that are no machines.
//!
//! Owns loop devices and links. They survive no crash: each device is marked "autoclear" as soon as it exists, and an open
//! file keeps it alive, so the kernel frees it when its last user is gone, even if that user was killed (losetup(8),
//! `--detach`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::device::{Paths, Plug, Slots, copy, lengthen, remove, run};
use super::{Result, SimError};

/// A loop device that some droplet sees.
#[derive(Debug)]
struct Attached {
    link: PathBuf,
    device: PathBuf,
    is_half: bool,
    /// Keeps the device alive; it is free once this is closed and nobody else has it open.
    keeper: File,
}

/// All loop devices of a simulator.
#[derive(Debug)]
pub struct Loops {
    paths: Paths,
    attached: BTreeMap<String, Attached>,
}

impl Loops {
    /// None yet.
    pub fn new(paths: Paths) -> Loops {
        Loops { paths, attached: BTreeMap::new() }
    }

    fn attach(&mut self, volume: &str, link: &Path, is_half: bool) -> Result<()> {
        let file = self.paths.volume(volume);
        let backing = if is_half { file.with_extension("empty") } else { file };
        if is_half {
            lengthen(&backing, 0)?;
        }
        let (device, keeper) = make_device(&backing)?;
        if is_half {
            remove(&backing)?;
        }
        // A stale link of the same name gives way, as udev does it.
        remove(link)?;
        symlink(&device, link).map_err(|error| SimError::io("link", link, &error))?;
        let attached = Attached { link: link.to_owned(), device, is_half, keeper };
        self.attached.insert(volume.to_owned(), attached);
        Ok(())
    }
}

impl Slots for Loops {
    fn plug(&mut self, plug: &Plug<'_>) -> Result<()> {
        let is_whole = self.attached.get(plug.volume).is_some_and(|attached| !attached.is_half);
        if is_whole {
            return Ok(());
        }
        self.pull(plug.volume, false)?;
        self.attach(plug.volume, &self.paths.device_dir(plug.droplet).join(plug.link), plug.is_half)
    }

    fn pull(&mut self, volume: &str, keeps_link: bool) -> Result<Option<PathBuf>> {
        let Some(attached) = self.attached.remove(volume) else { return Ok(None) };
        let Attached { link, device, is_half: _, keeper } = attached;
        if !keeps_link {
            remove(&link)?;
        }
        drop(keeper);
        let is_used = stays_backed_by(&device, &self.paths.volume(volume));
        Ok(is_used.then_some(device))
    }

    fn grow(&mut self, volume: &str, _bytes: u64) -> Result<()> {
        self.attached
            .get(volume)
            .map_or(Ok(()), |attached| run("losetup", &["-c".as_ref(), attached.device.as_ref()]).map(drop))
    }

    fn part(&self, volume: &str) -> Result<()> {
        freeze(&self.paths.volume(volume))
    }

    fn plugged(&self) -> Vec<String> {
        self.attached.keys().cloned().collect()
    }
}

/// Makes a loop device of a file. It is there until the file that this gives is closed and nobody else has it open.
pub fn make_device(backing: &Path) -> Result<(PathBuf, File)> {
    // Of two losetups that look for a free device at once, the slower one claims the faster one's for a moment, and an
    // mkfs that starts right then finds its disk in use. Whoever makes loop devices takes this lock around it.
    let control = Path::new("/dev/loop-control");
    let turn = File::open(control).map_err(|error| SimError::io("open", control, &error))?;
    turn.lock().map_err(|error| SimError::io("lock", control, &error))?;
    let printed = run("losetup", &["--find".as_ref(), "--show".as_ref(), backing.as_ref()])?;
    let device = PathBuf::from(printed.trim());
    let keeper = File::open(&device).map_err(|error| SimError::io("open", &device, &error))?;
    run("losetup", &["--detach".as_ref(), device.as_ref()])?;
    // A new disk takes writes; a loop device refuses them if the one that had its number before did.
    run("blockdev", &["--setrw".as_ref(), device.as_ref()])?;
    Ok((device, keeper))
}

/// Whether a loop device keeps this file behind it although we have let go of it.
///
/// Tools that look at all block devices open each for a moment, so a little patience tells them from a mount. Nothing in
/// sysfs can be waited for here, hence the polling.
fn stays_backed_by(device: &Path, file: &Path) -> bool {
    let Some(name) = device.file_name() else { return false };
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    (0..50).all(|round| {
        if round > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::read_to_string(&backing).is_ok_and(|path| Path::new(path.trim()) == file)
    })
}

/// Cuts the volume's bytes off from a device that is detached but still mounted.
///
/// A real device is gone then, and what its file system writes later reaches nothing. The loop device can not be taken
/// from its user, so it keeps the old file and the volume goes on with a copy.
fn freeze(file: &Path) -> Result<()> {
    let copied = file.with_extension("frozen");
    copy(file, &copied)?;
    fs::rename(&copied, file).map_err(|error| SimError::io("replace", file, &error))
}
