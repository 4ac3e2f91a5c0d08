//! A disk that was found to be a certain volume's, and that it still is whenever it is opened.
//!
//! Owns what makes a disk this one and no other, as sysfs shows it. How a volume's disk is found is `lookup.rs`'s; what is on
//! it is `probe/content.rs`'s; the disk's own statement of its name is read in `scsi_id.rs`.

pub mod busy;
pub(crate) mod links;
pub mod lookup;
mod named;
pub mod number;
pub mod scsi_id;
pub mod sysfs;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use crate::host::device::busy::{is_busy, lock_or_busy, retry_while_busy};
use crate::host::device::number::DeviceNumber;
use crate::host::device::scsi_id::Identity;
use crate::host::device::sysfs::{is_going, read_attribute};
use crate::host::holders::{Sought, observe_holders};
use crate::host::presence::observe_is_there;
use crate::id::VolumeName;
use crate::size::Bytes;

/// What the names of volumes' links begin with; the volume's name follows.
pub(in crate::host) const LINK_PREFIX: &str = "scsi-0DO_Volume_";

/// Where the machine shows its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlaces {
    /// The directory with udev's links, `/dev/disk/by-id`.
    pub links: PathBuf,
    /// The directory with the device nodes, `/dev`.
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
    /// The usual places, but for the links and sysfs.
    #[must_use]
    pub fn with(links: &Path, sysfs: &Path) -> DevicePlaces {
        DevicePlaces { links: links.to_owned(), sysfs: sysfs.to_owned(), ..DevicePlaces::default() }
    }

    /// The link that udev makes for a volume's disk.
    ///
    /// Source: `scsi_id` of systemd makes `0<vendor>_<model>_<device id>` from a vendor-specific designator of VPD page
    /// 0x83, and `60-persistent-storage.rules` puts `scsi-` before it.
    #[must_use]
    pub fn link(&self, volume: &VolumeName) -> PathBuf {
        self.links.join(format!("{LINK_PREFIX}{volume}"))
    }

    /// The directory in sysfs, by way of a link, of the device with this number.
    #[must_use]
    pub fn sysfs_of(&self, number: DeviceNumber) -> PathBuf {
        self.sysfs.join(format!("dev/block/{number}"))
    }

    /// The same of the device that the kernel calls so.
    #[must_use]
    pub fn sysfs_named(&self, name: impl AsRef<Path>) -> PathBuf {
        self.sysfs.join("class/block").join(name)
    }
}

/// An open encrypted volume at the device mapper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) struct Mapped {
    /// Another path by which the kernel may call it: that in the device mapper's directory.
    pub(in crate::host) alias: PathBuf,
    /// The node of the disk below.
    pub(in crate::host) below: PathBuf,
}

/// A disk that was found to be a certain volume's, ready for use at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub(in crate::host) volume: VolumeName,
    pub(in crate::host) path: PathBuf,
    /// What an open encrypted volume is besides.
    pub(in crate::host) mapped: Option<Mapped>,
    pub(in crate::host) number: DeviceNumber,
    pub(in crate::host) size: Bytes,
    /// Its directory in sysfs.
    pub(in crate::host) sysfs: PathBuf,
    pub(in crate::host) fingerprint: DiskFingerprint,
}

/// What makes a disk this one and no other, as far as sysfs shows it. Read while the disk's node is held open it is about
/// the disk that was opened: the kernel gives its number to no other disk as long as anybody has it open.
///
/// Source: `sd_release` and `scsi_disk_free_disk` (before 5.15 `scsi_disk_release`) in the kernel's `drivers/scsi/sd.c`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::host) struct DiskFingerprint {
    pub(in crate::host) identity: Identity,
    pub(in crate::host) is_partition: bool,
    /// What the kernel says of a SCSI disk: `running`, `offline`.
    pub(in crate::host) state: Option<String>,
    /// A number that no other disk gets until the next boot, even one of the same name; since Linux 5.15.
    sequence: Option<String>,
}

impl DiskFingerprint {
    /// Reads them from a disk's directory in sysfs.
    pub(in crate::host) fn read(sysfs: &Path) -> Result<DiskFingerprint> {
        Ok(DiskFingerprint {
            identity: Identity::read(sysfs)?,
            is_partition: read_attribute(&sysfs.join("partition"))?.is_some(),
            state: read_attribute(&sysfs.join("device/state"))?,
            sequence: read_attribute(&sysfs.join("diskseq"))?,
        })
    }

    /// How a disk that has these now is not the one that had `was`, as a phrase; `None` when it is the same. Pure.
    fn difference(&self, was: &DiskFingerprint) -> Option<String> {
        let DiskFingerprint { identity, is_partition, state, sequence } = self;
        if *sequence != was.sequence {
            return Some("the disk was replaced since it was found (its disk sequence number changed)".to_owned());
        }
        if *identity != was.identity || *is_partition != was.is_partition {
            return Some("the disk was replaced since it was found (it says now that it is another one)".to_owned());
        }
        match (state.as_deref(), was.state.as_deref()) {
            (Some("running"), Some(_) | None) | (None, None) => None,
            (Some(other), Some(_) | None) => Some(format!("its state is now {other:?}, not running")),
            (None, Some(_)) => Some("it has no state any more, so it is on its way out".to_owned()),
        }
    }
}

/// How a person gets at a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManualAccess {
    /// What has to be done first, as the beginning of a sentence; empty: nothing.
    pub first: String,
    /// Its path then.
    pub path: String,
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

    /// Whether the kernel names it so in the mount table.
    #[must_use]
    pub fn is_called(&self, path: &Path) -> bool {
        self.path == path || self.mapped.as_ref().is_some_and(|mapped| mapped.alias == path)
    }

    /// Its name at the device mapper, when it is an open encrypted volume.
    #[must_use]
    pub fn mapper_name(&self) -> Option<&str> {
        self.mapped.as_ref()?.alias.file_name()?.to_str()
    }

    /// How a person gets at it when this program has let go of it: what has to be done first, and where it is then. An
    /// encrypted volume is open only while it is used.
    #[must_use]
    pub fn manual_access(&self) -> ManualAccess {
        match &self.mapped {
            None => ManualAccess { first: String::new(), path: self.path.display().to_string() },
            Some(mapped) => ManualAccess {
                first: format!("open it with `cryptsetup open {} by-hand`, ", mapped.below.display()),
                path: "/dev/mapper/by-hand".to_owned(),
            },
        }
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
    /// What the disk says of itself is read once more after it was opened, so that a disk which came in its place in
    /// between is noticed on every kernel. For as long as it is kept open no other disk gets this one's name or number, even
    /// when this one is pulled: a program that is given the path then finds this disk or none. Source:
    /// `scsi_disk_free_disk` in the kernel's `drivers/scsi/sd.c`; `loop_clr_fd` in `drivers/block/loop.c`.
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

    /// Takes the lock on it by which programs that make something else of a disk keep out of each other's way, this plugin's
    /// own that is about to end among them; udev looks at no disk that is locked. It is held until what this gives is dropped.
    ///
    /// # Errors
    /// As [`Device::open`]; [`Error::InUse`] when somebody has it for longer than the budget.
    /// Source: flock(2); systemd's "Locking Block Device Access".
    pub fn lock(&self, budget: Duration) -> Result<File> {
        let lock = || lock_or_busy(self.open()?, &self.path);
        retry_while_busy(budget, lock).map_err(or_in_use(self, "the opening"))
    }

    /// Opens it as somebody would who wants it alone, lets go of it again, and so sees that nothing uses it: no mount in
    /// this or another mount namespace, no LVM. While it is in use it is tried again for as long as the budget lasts. `what`
    /// is what it is wanted for.
    ///
    /// # Errors
    /// As [`Device::open`]; [`Error::InUse`] when it stays in use.
    pub fn check_is_free(&self, what: &str, budget: Duration) -> Result<()> {
        retry_while_busy(budget, || self.claim_for_reading().map(drop)).map_err(or_in_use(self, what))
    }

    /// Opens it as one who wants it alone, at once: nothing can mount it before what this gives is dropped.
    ///
    /// # Errors
    /// As [`Device::open`]; "Device or resource busy" when it is in use.
    pub fn claim_for_reading(&self) -> Result<File> {
        self.open_with(OpenOptions::new().read(true), OFlag::O_EXCL)
    }

    fn open_with(&self, options: &mut OpenOptions, flags: OFlag) -> Result<File> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let file = options.custom_flags(flags.bits()).open(&self.path).map_err(Error::io("opening", &self.path))?;
        let opened = file.metadata().map_err(Error::io("examining", &self.path))?;
        if DeviceNumber::of_node(&opened) != Some(self.number) {
            return Err(self.changed("its device node now belongs to another disk"));
        }
        if !observe_is_there(&self.sysfs)? {
            return Err(self.changed("sysfs does not show it any more"));
        }
        let now = DiskFingerprint::read(&self.sysfs)
            .map_err(|err| if is_going(&err) { self.changed("it is on its way out") } else { err })?;
        match now.difference(&self.fingerprint) {
            Some(how) => Err(self.changed(&how)),
            None => Ok(file),
        }
    }

    #[cfg(test)]
    pub(crate) fn fake(path: &str, number: DeviceNumber, size: u64) -> Device {
        let volume = VolumeName::parse("vol").expect("a name");
        let (path, size) = (path.into(), Bytes(size));
        Device {
            volume,
            path,
            mapped: None,
            number,
            size,
            sysfs: PathBuf::new(),
            fingerprint: DiskFingerprint::default(),
        }
    }

    fn changed(&self, what: &str) -> Error {
        Error::WrongDevice {
            volume: self.volume.clone(),
            found: format!("{}: {what}; nothing was done to it, try again", self.path.display()),
        }
    }
}

/// The error for a disk that stayed in use, which names who uses it; `what` is what could not be done. Any other error stays what it is.
pub(in crate::host) fn or_in_use(device: &Device, what: &str) -> impl FnOnce(Error) -> Error {
    move |error| {
        if !is_busy(&error) {
            return error;
        }
        let (path, volume) = (device.path().display(), device.volume());
        Error::InUse {
            doing: format!(
                "{what} of volume {volume} is not possible, because its disk {path} is in use on this droplet:"
            ),
            found: observe_holders(&Sought::from(device)).to_string(),
            cure: "end that first; if it comes back, an automount rule of the distribution does it (see docs/troubleshooting.md)",
        }
    }
}

impl From<&Device> for Sought {
    fn from(device: &Device) -> Self {
        let parent = |path: &Path| path.parent().unwrap_or(path).to_owned();
        Sought::read(&device.sysfs, &parent(&device.path), &parent(&device.sysfs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_the_same_while_all_that_makes_it_that_disk_is() {
        let text = |text: &str| Some(text.to_owned());
        let was = DiskFingerprint { state: text("running"), sequence: text("7"), ..DiskFingerprint::default() };
        assert_eq!(was.difference(&was), None);
        let changed = [
            (DiskFingerprint { sequence: text("8"), ..was.clone() }, "sequence"),
            (DiskFingerprint { sequence: None, ..was.clone() }, "sequence"),
            (DiskFingerprint { is_partition: true, ..was.clone() }, "another one"),
            (DiskFingerprint { identity: Identity::fake("other"), ..was.clone() }, "another one"),
            (DiskFingerprint { state: text("offline"), ..was.clone() }, "offline"),
            (DiskFingerprint { state: None, ..was.clone() }, "no state any more"),
        ];
        for (now, words) in changed {
            assert!(now.difference(&was).is_some_and(|how| how.contains(words)), "{now:?}");
        }
        // A loop device has no state and no identity; one that gets a state is still judged by it.
        let bare = DiskFingerprint::default();
        assert_eq!(bare.difference(&bare), None);
        assert!(DiskFingerprint { state: text("blocked"), ..bare.clone() }.difference(&bare).is_some());
    }
}
