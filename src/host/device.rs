//! From a volume's name to the disk that certainly is that volume.
//!
//! Owns the search for the disk, the checks it must pass before it counts as found, and the wait for it. What is on the
//! disk is `content.rs`'s; the disk's own statement of its name is read in `identity.rs`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use super::busy::retry_while_busy;
use super::identity::{Identity, Proof};
use super::mountinfo::DeviceNumber;
use super::sysfs::read_attribute;
use crate::error::{Error, Result};
use crate::id::VolumeName;
use crate::lock::VolumeGuard;
use crate::size::{Bytes, Gib};

/// The first and the longest pause between two looks for a disk.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What the names of volumes' links begin with; the volume's name follows.
pub(super) const LINK_PREFIX: &str = "scsi-0DO_Volume_";

/// Where the machine shows its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlaces {
    /// The folder with udev's links, `/dev/disk/by-id`.
    pub links: PathBuf,
    /// The folder with the device nodes, `/dev`.
    pub nodes: PathBuf,
    /// The mount point of sysfs, `/sys`.
    pub sysfs: PathBuf,
}

impl Default for DevicePlaces {
    fn default() -> Self {
        DevicePlaces { links: "/dev/disk/by-id".into(), nodes: "/dev".into(), sysfs: "/sys".into() }
    }
}

impl DevicePlaces {
    /// The link that udev makes for a volume's disk.
    ///
    /// Source: `scsi_id` of systemd makes `0<vendor>_<model>_<device id>` from a vendor-specific designator of VPD page
    /// 0x83, and `60-persistent-storage.rules` puts `scsi-` before it.
    #[must_use]
    pub fn link(&self, volume: &VolumeName) -> PathBuf {
        self.links.join(format!("{LINK_PREFIX}{volume}"))
    }
}

/// A disk that was found to be a certain volume's, ready for use at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    volume: VolumeName,
    path: PathBuf,
    number: DeviceNumber,
    size: Bytes,
    sysfs: PathBuf,
    sequence: Option<u64>,
}

impl Device {
    /// The volume it belongs to.
    #[must_use]
    pub fn volume(&self) -> &VolumeName {
        &self.volume
    }

    /// Its node, as the kernel names it: `/dev/sda`, never a link.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its major and minor number.
    #[must_use]
    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// Its size when it was found.
    #[must_use]
    pub fn size(&self) -> Bytes {
        self.size
    }

    /// Opens it for reading, anew, and makes sure that what was opened is the same disk as when it was found.
    ///
    /// For as long as it is kept open no other disk gets this one's name or number, even when this one is pulled: a program
    /// that is given the path then finds this disk or none. Source: `scsi_disk_free_disk` in the kernel's
    /// `drivers/scsi/sd.c`; `loop_clr_fd` in `drivers/block/loop.c`.
    ///
    /// # Errors
    /// [`Error::Io`] when it does not open, [`Error::WrongDevice`] when another disk has its name by now.
    pub fn open(&self) -> Result<File> {
        self.open_with(OpenOptions::new().read(true), OFlag::empty())
    }

    /// Opens it for reading and writing and for nobody else: fails while anything has it mounted or otherwise claimed,
    /// and tries again for as long as the budget lasts.
    ///
    /// # Errors
    /// As [`Device::open`]; "Device or resource busy" when it is in use.
    /// Source: open(2), `O_EXCL` without `O_CREAT` on a block device.
    pub fn open_exclusively(&self, budget: Duration) -> Result<File> {
        retry_while_busy(budget, || self.open_with(OpenOptions::new().read(true).write(true), OFlag::O_EXCL))
    }

    fn open_with(&self, options: &mut OpenOptions, flags: OFlag) -> Result<File> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let file = options.custom_flags(flags.bits()).open(&self.path).map_err(Error::io("opening", &self.path))?;
        let opened = file.metadata().map_err(Error::io("examining", &self.path))?;
        if !opened.file_type().is_block_device() || DeviceNumber::from_raw(opened.rdev()) != self.number {
            return Err(self.changed("its device node now belongs to another disk"));
        }
        if read_sequence(&self.sysfs)? != self.sequence {
            return Err(self.changed("the disk was replaced since it was found (its disk sequence number changed)"));
        }
        match read_attribute(&self.sysfs.join("device/state"))? {
            Some(state) if state != "running" => Err(self.changed(&format!("its state is now {state:?}, not running"))),
            Some(_) | None => Ok(file),
        }
    }

    /// Its folder in sysfs.
    pub(super) fn sysfs(&self) -> &Path {
        &self.sysfs
    }

    #[cfg(test)]
    pub(crate) fn fake(path: &str, number: DeviceNumber, size: u64) -> Device {
        let volume = VolumeName::parse("vol").expect("a name");
        Device { volume, path: path.into(), number, size: Bytes(size), sysfs: PathBuf::new(), sequence: None }
    }

    fn changed(&self, what: &str) -> Error {
        Error::WrongDevice {
            volume: self.volume.clone(),
            found: format!("{}: {what}; nothing was done to it, try again", self.path.display()),
        }
    }
}

/// What was seen when looking for a volume's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sighting {
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
    /// The link leads to a disk that is certainly not this volume.
    OtherVolume {
        /// The device node.
        path: PathBuf,
        /// What the disk says it is.
        found: String,
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

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sighting::Missing { link } => {
                write!(f, "neither {} nor a disk in sysfs that carries the name is there", link.display())
            }
            Sighting::NotABlockDevice { path } => write!(f, "{} is not a block device", path.display()),
            Sighting::NotRunning { path, state } => write!(f, "{} is not running but {state:?}", path.display()),
            Sighting::OtherVolume { path, found } => write!(f, "{} is another disk: {found}", path.display()),
            Sighting::ZeroSize { path } => write!(f, "{} has no size", path.display()),
            Sighting::TooSmall { device, want } => {
                write!(f, "{} has {}, which is less than {want}", device.path.display(), device.size)
            }
            Sighting::Ready(device) => write!(f, "{} is ready", device.path.display()),
        }
    }
}

/// Looks for a volume's disk, once: by its link, and if that leads nowhere good, among all disks by the name they carry.
///
/// `size` is what the cloud says, when known; a larger disk is right too, as it may have been resized since.
///
/// # Errors
/// [`Error::Io`] when something that is there cannot be read.
pub fn observe_device(places: &DevicePlaces, volume: &VolumeName, size: Option<Gib>) -> Result<Sighting> {
    let by_link = judge_link(places, volume, size)?;
    if matches!(by_link, Sighting::Ready(_)) {
        return Ok(by_link);
    }
    // The link is missing, stale or cut. The disk itself knows its name, so it is looked for among all of them.
    let mut by_name = Vec::new();
    for disk in disks_named(places, volume)? {
        by_name.push(judge_disk(places, volume, size, &disk)?);
    }
    let is_link_lost =
        matches!(by_link, Sighting::Missing { .. } | Sighting::OtherVolume { .. } | Sighting::NotABlockDevice { .. });
    match (by_name.len(), by_name.pop()) {
        (1, Some(found)) if is_link_lost || matches!(found, Sighting::Ready(_)) => Ok(found),
        (0 | 1, _) => Ok(by_link),
        (many, _) => Ok(Sighting::OtherVolume {
            path: places.link(volume),
            found: format!("{many} disks carry the name {volume}, and none can be told to be the right one"),
        }),
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

/// As [`await_device`], for a disk of which is known that it is the volume's, by the number under which it is in use.
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
    await_ready(guard, volume, budget, || judge_number(places, volume, number, size))
}

fn await_ready(
    guard: &VolumeGuard,
    volume: &VolumeName,
    budget: Duration,
    look: impl Fn() -> Result<Sighting>,
) -> Result<Device> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let seen = look()?;
        let left = budget.saturating_sub(started.elapsed());
        match seen {
            Sighting::Ready(device) => return Ok(device),
            Sighting::TooSmall { device, .. } if !left.is_zero() => apply_rescan(guard, &device)?,
            Sighting::OtherVolume { .. } | Sighting::NotABlockDevice { .. } if left.is_zero() => {
                return Err(Error::WrongDevice { volume: volume.clone(), found: seen.to_string() });
            }
            Sighting::Missing { .. }
            | Sighting::NotRunning { .. }
            | Sighting::ZeroSize { .. }
            | Sighting::TooSmall { .. }
                if left.is_zero() =>
            {
                let waited_s = budget.as_secs();
                return Err(Error::DeviceMissing { volume: volume.clone(), waited_s, found: seen.to_string() });
            }
            Sighting::Missing { .. }
            | Sighting::NotRunning { .. }
            | Sighting::ZeroSize { .. }
            | Sighting::TooSmall { .. }
            | Sighting::OtherVolume { .. }
            | Sighting::NotABlockDevice { .. } => {}
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Asks a disk for its size again. Does nothing for a disk whose driver has no such question, as loop devices.
///
/// # Errors
/// [`Error::Io`] when the kernel refuses.
/// Source: `store_rescan_field` in the kernel's `drivers/scsi/scsi_sysfs.c`.
pub fn apply_rescan(_guard: &VolumeGuard, device: &Device) -> Result<()> {
    let file = device.sysfs.join("device/rescan");
    match std::fs::write(&file, "1") {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("rescanning", file)(error)),
    }
}

fn judge_link(places: &DevicePlaces, volume: &VolumeName, size: Option<Gib>) -> Result<Sighting> {
    let link = places.link(volume);
    let path = match std::fs::canonicalize(&link) {
        Ok(path) => path,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Sighting::Missing { link }),
        // A name too long for a file name is a link that cannot exist; the disk may.
        Err(error) if error.kind() == ErrorKind::InvalidFilename => return Ok(Sighting::Missing { link }),
        Err(error) => return Err(Error::io("resolving", link)(error)),
    };
    let node = match std::fs::metadata(&path) {
        Ok(node) => node,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Sighting::Missing { link }),
        Err(error) => return Err(Error::io("examining", path)(error)),
    };
    if !node.file_type().is_block_device() {
        return Ok(Sighting::NotABlockDevice { path });
    }
    let number = DeviceNumber::from_raw(node.rdev());
    let sysfs = places.sysfs.join(format!("dev/block/{number}"));
    if !sysfs.exists() {
        // Every disk has its place there. Where it cannot be seen, nor can what the disk says of itself.
        return Ok(Sighting::NotRunning { path, state: format!("without a place in {}", places.sysfs.display()) });
    }
    match Identity::read(&sysfs)?.proves(volume) {
        Proof::Other(found) => Ok(Sighting::OtherVolume { path, found }),
        // A disk that says nothing of itself can only be believed to be what udev linked it as.
        Proof::Silent | Proof::Same => judge_ready(Candidate { volume, path, number, sysfs }, size),
    }
}

fn judge_number(
    places: &DevicePlaces,
    volume: &VolumeName,
    number: DeviceNumber,
    size: Option<Gib>,
) -> Result<Sighting> {
    let link = places.sysfs.join(format!("dev/block/{number}"));
    let folder = match std::fs::canonicalize(&link) {
        Ok(folder) => folder,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Sighting::Missing { link }),
        Err(error) => return Err(Error::io("resolving", link)(error)),
    };
    match folder.file_name().and_then(|name| name.to_str()) {
        Some(kernel_name) => judge_disk(places, volume, size, kernel_name),
        None => Ok(Sighting::Missing { link }),
    }
}

fn judge_disk(places: &DevicePlaces, volume: &VolumeName, size: Option<Gib>, kernel_name: &str) -> Result<Sighting> {
    let path = places.nodes.join(kernel_name);
    let sysfs = places.sysfs.join("block").join(kernel_name);
    let node = match std::fs::metadata(&path) {
        Ok(node) => node,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Sighting::NotRunning { path, state: "in sysfs, but without a device node".into() });
        }
        Err(error) => return Err(Error::io("examining", path)(error)),
    };
    let number = DeviceNumber::from_raw(node.rdev());
    let is_same_disk = read_attribute(&sysfs.join("dev"))?.and_then(|text| DeviceNumber::parse(&text)) == Some(number);
    if !node.file_type().is_block_device() || !is_same_disk {
        let state = "in sysfs, but its device node belongs to another disk".into();
        return Ok(Sighting::NotRunning { path, state });
    }
    judge_ready(Candidate { volume, path, number, sysfs }, size)
}

/// A block device that is this volume's by all it says, before it is known whether it can be used.
struct Candidate<'a> {
    volume: &'a VolumeName,
    path: PathBuf,
    number: DeviceNumber,
    sysfs: PathBuf,
}

fn judge_ready(found: Candidate<'_>, want: Option<Gib>) -> Result<Sighting> {
    let Candidate { volume, path, number, sysfs } = found;
    if read_attribute(&sysfs.join("partition"))?.is_some() {
        return Ok(Sighting::OtherVolume { path, found: "a partition, not a whole disk".into() });
    }
    if let Some(state) = read_attribute(&sysfs.join("device/state"))?
        && state != "running"
    {
        return Ok(Sighting::NotRunning { path, state });
    }
    let sequence = read_sequence(&sysfs)?;
    let size = match File::open(&path).and_then(|mut file| file.seek(SeekFrom::End(0))) {
        Ok(size) => Bytes(size),
        Err(error) => return Ok(Sighting::NotRunning { path, state: format!("does not open: {error}") }),
    };
    if size == Bytes(0) {
        return Ok(Sighting::ZeroSize { path });
    }
    let device = Device { volume: volume.clone(), path, number, size, sysfs, sequence };
    match want {
        Some(want) if size < want.bytes() => Ok(Sighting::TooSmall { device, want }),
        Some(_) | None => Ok(Sighting::Ready(device)),
    }
}

/// The kernel names of all disks that carry this volume's name, in order.
fn disks_named(places: &DevicePlaces, volume: &VolumeName) -> Result<Vec<String>> {
    let folder = places.sysfs.join("block");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(Error::io("listing", &folder))? {
        let name = entry.map_err(Error::io("listing", &folder))?.file_name();
        match Identity::read(&folder.join(&name))?.proves(volume) {
            Proof::Same => found.extend(name.into_string().ok()),
            Proof::Other(_) | Proof::Silent => {}
        }
    }
    found.sort();
    Ok(found)
}

/// A number that no other disk gets until the next boot, even one of the same name; since Linux 5.15.
fn read_sequence(sysfs: &Path) -> Result<Option<u64>> {
    Ok(read_attribute(&sysfs.join("diskseq"))?.and_then(|text| text.parse().ok()))
}
