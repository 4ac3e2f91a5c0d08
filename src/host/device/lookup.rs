//! From a volume's name to the disk that certainly is that volume.
//!
//! Owns the search for the disk, by its link and by the name that the disks carry, the checks it must pass before it counts
//! as found, and the wait for it.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;

use crate::activity::wait_for;
use crate::backoff::{Backoff, look_until};
use crate::error::{Chain, Error, Result};
use crate::host::device::named::{Named, disks_named};
use crate::host::device::number::DeviceNumber;
use crate::host::device::scsi_id::NameMatch;
use crate::host::device::sysfs::{is_going, read_number};
use crate::host::device::{Device, DevicePlaces, DiskFingerprint};
use crate::host::presence::{observe_if_there, observe_is_there, observe_metadata, observe_real};
use crate::id::VolumeName;
use crate::size::{Bytes, Gib};
use crate::sync::volume_lock::VolumeGuard;

/// The pauses between two looks for a disk.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));

/// What was seen when looking for a volume's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupResult {
    /// No link and no disk carries the name.
    Missing {
        /// The link looked for.
        link: PathBuf,
    },
    /// There is something under the name that is no disk.
    NotABlockDevice {
        /// Where the link leads.
        path: PathBuf,
    },
    /// The kernel does not let the disk work, or it does not open.
    NotRunning {
        /// The device node.
        path: PathBuf,
        /// The state that sysfs shows, or the system's answer to opening it.
        state: String,
    },
    /// The disk is there, and for a reason that says nothing of it, as a lack of memory, it does not open.
    DoesNotOpen {
        /// The device node.
        path: PathBuf,
        /// The system's answer.
        why: String,
    },
    /// The link leads to a disk that is certainly not this volume.
    OtherVolume {
        /// The device node.
        path: PathBuf,
        /// What the disk says it is.
        found: String,
    },
    /// Several disks carry the name, and none can be told to be the right one.
    Several {
        /// The link looked for.
        link: PathBuf,
    },
    /// No disk that could be read carries the name, and one could not be read.
    Unread {
        /// Why not.
        why: String,
    },
    /// The disk is there, but has no size yet.
    ZeroSize {
        /// The device node.
        path: PathBuf,
    },
    /// The disk is smaller than the volume should be.
    TooSmall {
        /// The disk, right but for its size.
        device: Device,
        /// The size it should have.
        want: Gib,
    },
    /// The disk is the volume's and can be used.
    Ready(Device),
}

impl fmt::Display for LookupResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LookupResult::Missing { link } => {
                write!(f, "neither {} nor a disk in sysfs that carries the name is there", link.display())
            }
            LookupResult::NotABlockDevice { path } => write!(f, "{} is not a block device", path.display()),
            LookupResult::NotRunning { path, state } => write!(f, "{} is not running but {state:?}", path.display()),
            LookupResult::DoesNotOpen { path, why } => write!(f, "{} does not open: {why}", path.display()),
            LookupResult::OtherVolume { path, found } => write!(f, "{} is another disk: {found}", path.display()),
            LookupResult::Several { link } => {
                write!(f, "{}: several disks carry the name, and none can be told to be the right one", link.display())
            }
            LookupResult::Unread { why } => write!(f, "a disk that may be the volume's cannot be read: {why}"),
            LookupResult::ZeroSize { path } => write!(f, "{} has no size", path.display()),
            LookupResult::TooSmall { device, want } => {
                write!(f, "{} has {}, which is less than {want}", device.path().display(), device.size())
            }
            LookupResult::Ready(device) => write!(f, "{} is ready", device.path().display()),
        }
    }
}

/// Looks for a volume's disk once: by its link, and always by the names of all disks too. A disk that carries the name
/// counts more than the link. If two disks carry the name, neither is used.
///
/// `size` is what the cloud says, if known. A larger disk is right too, because it may have been resized since.
///
/// # Errors
/// [`Error::Io`] when something that is there cannot be read, and the choice could depend on it.
pub fn observe_device(places: &DevicePlaces, volume: &VolumeName, size: Option<Gib>) -> Result<LookupResult> {
    let look = Candidate { places, volume, size };
    let Named { mut names, unread } = disks_named(places, volume)?;
    let linked = match look.by_link() {
        Ok(linked) => linked,
        // The link may be stale, and then what it leads to has nothing to do with the volume.
        Err(err) if !names.is_empty() => {
            log::warn!("passed over the link of volume {volume}: {}", Chain(&err));
            let link = places.link(volume);
            Look::nowhere(link.clone(), LookupResult::Missing { link })
        }
        Err(err) => return Err(err),
    };
    let is_linked =
        |name: &str| -> Result<bool> { Ok(linked.number.is_some() && linked.number == look.listed_number(name)?) };
    let by_name = match (names.as_slice(), &unread) {
        ([], None) => ByName::Nobody,
        ([], Some(_)) => ByName::Unread,
        ([one], _) if is_linked(one)? => ByName::TheLinks,
        ([_], _) => ByName::Another,
        ([_, _, ..], _) => ByName::Several,
    };
    match (plan_choice(linked.by_link, by_name), names.pop(), unread) {
        (Choice::ByName, Some(name), _) => Ok(look.by_name(&name)?.sighting),
        (Choice::Unclear, _, Some(err)) => Err(err),
        (Choice::Unread, _, Some(err)) => Ok(LookupResult::Unread { why: Chain(&err).to_string() }),
        (Choice::ByLink, _, _) | (Choice::ByName, None, _) => Ok(linked.sighting),
        (Choice::Neither, _, _) | (Choice::Unclear | Choice::Unread, _, None) => {
            Ok(LookupResult::Several { link: places.link(volume) })
        }
    }
}

/// What a volume's link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByLink {
    /// To nothing, or to no disk.
    Nowhere,
    /// To a disk that is certainly another one.
    Other,
    /// To a disk that says nothing of itself.
    Silent,
    /// To a disk that carries a name which was cut, and fits as far as it goes.
    Compatible,
    /// To a disk that carries the volume's name.
    Same,
}

/// Which disks carry a volume's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByName {
    /// None.
    Nobody,
    /// The one that the link leads to, and no other.
    TheLinks,
    /// One that the link does not lead to.
    Another,
    /// More than one.
    Several,
    /// None of those that could be read, and one could not be.
    Unread,
}

/// Which disk is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// The one that the link leads to.
    ByLink,
    /// The one that carries the name.
    ByName,
    /// None: the link and the names contradict each other.
    Neither,
    /// None: a disk that cannot be read may be the volume, and the one that the link leads to need not be.
    Unclear,
    /// None: a disk that cannot be read may be the volume, and the link leads to none that may be it.
    Unread,
}

/// Decides between the disk that udev linked and the one that carries the name. Pure.
///
/// A link may be stale. So it counts only if no other disk carries the name or could carry it. The caller has already
/// examined a linked disk that carries the name.
fn plan_choice(by_link: ByLink, by_name: ByName) -> Choice {
    match (by_link, by_name) {
        (ByLink::Nowhere | ByLink::Other | ByLink::Silent | ByLink::Compatible | ByLink::Same, ByName::Several)
        | (ByLink::Same, ByName::Another) => Choice::Neither,
        (ByLink::Nowhere | ByLink::Other | ByLink::Silent | ByLink::Compatible, ByName::Another | ByName::TheLinks) => {
            Choice::ByName
        }
        (ByLink::Silent | ByLink::Compatible, ByName::Unread) => Choice::Unclear,
        (ByLink::Nowhere | ByLink::Other, ByName::Unread) => Choice::Unread,
        (ByLink::Same, ByName::TheLinks | ByName::Unread)
        | (ByLink::Nowhere | ByLink::Other | ByLink::Silent | ByLink::Compatible | ByLink::Same, ByName::Nobody) => {
            Choice::ByLink
        }
    }
}

/// Waits until a volume's disk is ready, looking at growing intervals. A disk that is too small is asked to tell its size
/// anew each time.
///
/// # Errors
/// [`Error::DeviceMissing`] when the budget is used up, or [`Error::WrongDevice`] when what was seen last is not this
/// volume's disk.
pub fn await_device(
    guard: &VolumeGuard,
    places: &DevicePlaces,
    volume: &VolumeName,
    size: Option<Gib>,
    budget: Duration,
) -> Result<Device> {
    await_ready(guard, volume, budget, || observe_device(places, volume, size))
}

/// As [`await_device`], for a disk that is known to be the volume's, by the number under which it is in use.
///
/// # Errors
/// As [`await_device`].
pub fn await_numbered(
    guard: &VolumeGuard,
    places: &DevicePlaces,
    volume: &VolumeName,
    number: DeviceNumber,
    size: Option<Gib>,
    budget: Duration,
) -> Result<Device> {
    let look = Candidate { places, volume, size };
    await_ready(guard, volume, budget, || look.by_number(number))
}

fn await_ready(
    guard: &VolumeGuard,
    volume: &VolumeName,
    budget: Duration,
    look: impl Fn() -> Result<LookupResult>,
) -> Result<Device> {
    let look = || {
        let seen = look();
        if let Ok(LookupResult::TooSmall { device, .. }) = &seen {
            rescan_or_warn(guard, device);
        }
        seen
    };
    let is_enough = |seen: &Result<LookupResult>| matches!(seen, Ok(LookupResult::Ready(_)) | Err(_));
    let wait = wait_for(format!("waiting for the disk of volume {volume}"), "it is not usable on this droplet yet");
    let seen = look_until(Instant::now() + budget, PAUSES, look, is_enough)?;
    drop(wait);
    match seen {
        LookupResult::Ready(device) => Ok(device),
        LookupResult::OtherVolume { .. } | LookupResult::Several { .. } | LookupResult::NotABlockDevice { .. } => {
            Err(Error::WrongDevice { volume: volume.clone(), found: seen.to_string() })
        }
        LookupResult::Missing { .. }
        | LookupResult::Unread { .. }
        | LookupResult::NotRunning { .. }
        | LookupResult::DoesNotOpen { .. }
        | LookupResult::ZeroSize { .. }
        | LookupResult::TooSmall { .. } => {
            let waited_s = budget.as_secs();
            Err(Error::DeviceMissing { volume: volume.clone(), waited_s, found: seen.to_string() })
        }
    }
}

/// Asks a disk for its size again, and goes on when the kernel refuses: the size may be right already, or become so.
pub fn rescan_or_warn(guard: &VolumeGuard, device: &Device) {
    if let Err(err) = apply_rescan(guard, device) {
        log::warn!("the disk of volume {} was not asked for its size: {}", device.volume(), Chain(&err));
    }
}

/// Asks a disk for its size again. Does nothing for a disk whose driver has no such question, as loop devices.
///
/// # Errors
/// [`Error::Io`] when the kernel refuses.
/// Source: `store_rescan_field` in the kernel's `drivers/scsi/scsi_sysfs.c`.
fn apply_rescan(_guard: &VolumeGuard, device: &Device) -> Result<()> {
    let file = device.sysfs.join("device/rescan");
    observe_if_there("rescanning", &file, || std::fs::write(&file, "1")).map(|_| ())
}

/// What was seen of one disk.
struct Look {
    path: PathBuf,
    /// The number of the disk that was opened: one disk may have several paths.
    number: Option<DeviceNumber>,
    by_link: ByLink,
    sighting: LookupResult,
}

impl Look {
    fn nowhere(path: PathBuf, sighting: LookupResult) -> Look {
        Look { path, number: None, by_link: ByLink::Nowhere, sighting }
    }
}

/// Looks at single disks for one volume.
struct Candidate<'a> {
    places: &'a DevicePlaces,
    volume: &'a VolumeName,
    size: Option<Gib>,
}

impl Candidate<'_> {
    fn by_link(&self) -> Result<Look> {
        let link = self.places.link(self.volume);
        let missing = |link: PathBuf| Ok(Look::nowhere(link.clone(), LookupResult::Missing { link }));
        match observe_real(&link) {
            Ok(Some(path)) => self.at(path),
            Ok(None) => missing(link),
            // A name too long for a file name is a link that cannot exist; the disk may.
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::InvalidFilename => missing(link),
            Err(err) => Err(err),
        }
    }

    /// Looks at the disk that sysfs calls by a name; its node of that name must be the same disk's.
    fn by_name(&self, kernel_name: &str) -> Result<Look> {
        let look = self.at(self.places.nodes.join(kernel_name))?;
        let listed = self.listed_number(kernel_name)?;
        let node = observe_metadata(&look.path)?;
        let is_same = node.as_ref().and_then(DeviceNumber::of_node).is_some_and(|number| listed == Some(number));
        let state = match (&look.sighting, look.by_link, is_same) {
            (_, ByLink::Same, true) => return Ok(look),
            (LookupResult::Missing { .. }, _, _) => "in sysfs, but without a device node",
            (_, _, false) => "in sysfs, but its device node belongs to another disk",
            (_, _, true) => "another disk than a moment ago",
        };
        let sighting = LookupResult::NotRunning { path: look.path.clone(), state: state.to_owned() };
        Ok(Look { sighting, ..look })
    }

    /// The number that sysfs lists for a disk; `None` also while the disk goes away.
    fn listed_number(&self, kernel_name: &str) -> Result<Option<DeviceNumber>> {
        match read_number(&self.places.sysfs.join("block").join(kernel_name)) {
            Err(err) if is_going(&err) => Ok(None),
            listed => listed,
        }
    }

    fn by_number(&self, number: DeviceNumber) -> Result<LookupResult> {
        let link = self.places.sysfs_of(number);
        let directory = observe_real(&link)?;
        let Some(name) = directory.as_deref().and_then(Path::file_name) else {
            return Ok(LookupResult::Missing { link });
        };
        let path = self.places.nodes.join(name);
        match AtNode::open(self.places, &path)? {
            AtNode::Disk(disk) if disk.number == number => match DiskFingerprint::read(&disk.sysfs) {
                Ok(fingerprint) => Ok(self.judge(disk, fingerprint)),
                Err(err) => going(path, err),
            },
            AtNode::Disk(_) | AtNode::Nothing | AtNode::NoDisk => Ok(LookupResult::Missing { link }),
        }
    }

    /// Looks at the disk of a device node: it is opened first, and what it says is read while it is held open.
    fn at(&self, path: PathBuf) -> Result<Look> {
        let nowhere = |sighting| Ok(Look::nowhere(path.clone(), sighting));
        let disk = match AtNode::open(self.places, &path)? {
            AtNode::Disk(disk) => disk,
            AtNode::Nothing => return nowhere(LookupResult::Missing { link: path.clone() }),
            AtNode::NoDisk => return nowhere(LookupResult::NotABlockDevice { path: path.clone() }),
        };
        if !observe_is_there(&disk.sysfs)? {
            // Every disk has its place there. Where it cannot be seen, nor can what the disk says of itself.
            let state = format!("without a place in {}", self.places.sysfs.display());
            return Ok(Look::nowhere(path.clone(), LookupResult::NotRunning { path, state }));
        }
        let fingerprint = match DiskFingerprint::read(&disk.sysfs) {
            Ok(fingerprint) => fingerprint,
            Err(err) => return going(path.clone(), err).map(|sighting| Look::nowhere(path, sighting)),
        };
        let number = Some(disk.number);
        let by_link = match fingerprint.identity.proves(self.volume) {
            NameMatch::Other(found) => {
                let sighting = LookupResult::OtherVolume { path: path.clone(), found };
                return Ok(Look { path, number, by_link: ByLink::Other, sighting });
            }
            NameMatch::Silent => ByLink::Silent,
            NameMatch::Compatible => ByLink::Compatible,
            NameMatch::Same => ByLink::Same,
        };
        Ok(Look { path, number, by_link, sighting: self.judge(disk, fingerprint) })
    }

    /// Judges a disk that is this volume's by all it says.
    fn judge(&self, disk: OpenedDisk, fingerprint: DiskFingerprint) -> LookupResult {
        let OpenedDisk { path, number, sysfs, file } = disk;
        if fingerprint.is_partition {
            return LookupResult::OtherVolume { path, found: "a partition, not a whole disk".into() };
        }
        if let Some(state) = fingerprint.state.as_deref().filter(|state| *state != "running") {
            return LookupResult::NotRunning { path, state: state.to_owned() };
        }
        let size = match file.and_then(|mut file| file.seek(SeekFrom::End(0))) {
            Ok(size) => Bytes(size),
            Err(error) if is_dead(&error) => {
                return LookupResult::NotRunning { path, state: format!("does not open: {error}") };
            }
            Err(error) => return LookupResult::DoesNotOpen { path, why: error.to_string() },
        };
        if size == Bytes(0) {
            return LookupResult::ZeroSize { path };
        }
        let device = Device { volume: self.volume.clone(), path, mapped: None, number, size, sysfs, fingerprint };
        match self.size {
            Some(want) if size < want.bytes() => LookupResult::TooSmall { device, want },
            Some(_) | None => LookupResult::Ready(device),
        }
    }
}

/// Whether the system's answer to opening a disk says that the disk does not work.
fn is_dead(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM))
}

/// What is at the path of a device node.
enum AtNode {
    /// Nothing.
    Nothing,
    /// Something that is no block device.
    NoDisk,
    /// A block device.
    Disk(OpenedDisk),
}

/// A block device with its node held open, so that its number stays its own; or the reason why it does not open.
struct OpenedDisk {
    path: PathBuf,
    number: DeviceNumber,
    sysfs: PathBuf,
    file: std::io::Result<File>,
}

impl AtNode {
    fn open(places: &DevicePlaces, path: &Path) -> Result<AtNode> {
        let Some(node) = observe_metadata(path)? else { return Ok(AtNode::Nothing) };
        let Some(number) = DeviceNumber::of_node(&node) else { return Ok(AtNode::NoDisk) };
        let file = File::open(path);
        // By what was opened, not by what was there before.
        let opened = file.as_ref().ok().map(File::metadata).transpose().map_err(Error::io("examining", path))?;
        let number = opened.as_ref().and_then(DeviceNumber::of_node).unwrap_or(number);
        let sysfs = places.sysfs_of(number);
        Ok(AtNode::Disk(OpenedDisk { path: path.to_owned(), number, sysfs, file }))
    }
}

/// A disk that goes away while it is looked at is not running; any other error stays one.
fn going(path: PathBuf, err: Error) -> Result<LookupResult> {
    if is_going(&err) { Ok(LookupResult::NotRunning { path, state: "going away".to_owned() }) } else { Err(err) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_between_the_link_and_the_name_in_full() {
        use ByLink::{Compatible, Nowhere, Other, Same, Silent};
        use ByName::{Another, Nobody, Several, TheLinks, Unread};
        let (link, name, neither) = (Choice::ByLink, Choice::ByName, Choice::Neither);
        let (unclear, unread) = (Choice::Unclear, Choice::Unread);
        let by_name = [Nobody, TheLinks, Another, Several, Unread];
        let table = [
            (Nowhere, [link, name, name, neither, unread]),
            (Other, [link, name, name, neither, unread]),
            (Silent, [link, name, name, neither, unclear]),
            (Compatible, [link, name, name, neither, unclear]),
            (Same, [link, link, neither, neither, link]),
        ];
        for (by_link, wants) in table {
            for (by_name, want) in by_name.into_iter().zip(wants) {
                assert_eq!(plan_choice(by_link, by_name), want, "{by_link:?} {by_name:?}");
            }
        }
    }
}
