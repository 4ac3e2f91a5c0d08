//! Encrypted volumes that are open: the device-mapper devices that lie on their disks, as sysfs shows them.
//!
//! Owns the names of these devices and the proof that a device lies on a certain disk and on no other. A name alone is
//! never enough: a device counts only if the disk itself lists it as its holder. `cryptsetup.rs` opens and closes them.

use std::ffi::OsStr;
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::device::number::DeviceNumber;
use crate::host::device::sysfs::{is_going, read_attribute, read_number};
use crate::host::device::{Device, DevicePlaces, DiskFingerprint, Mapped};
use crate::host::presence;
use crate::id::{VolumeName, plain_or_hash};
use crate::size::Bytes;

/// What the names of our devices begin with.
const PREFIX: &str = "do-csi-";
/// What the kernel's names for the device mapper's devices begin with.
const MAPPED: &str = "dm-";
/// What the UUID of a device begins with that cryptsetup has made from LUKS2. Source: `dm_prepare_uuid` in cryptsetup's
/// `lib/libdevmapper.c`.
const UUID_PREFIX: &str = "CRYPT-LUKS2-";
/// What the UUID of a device begins with that cryptsetup makes for a moment, to read a key slot with, where the kernel lends
/// it no ciphers. Source: `LUKS_endec_template` in cryptsetup's `lib/luks1/keyencryption.c`.
const TEMPORARY_UUID_PREFIX: &str = "CRYPT-TEMP-temporary-cryptsetup-";
/// Longest part of a device's name that is made from the volume's: the kernel takes 127 bytes for all of it.
const MOST_OF_NAME: usize = 64;
/// How many devices of one volume may be in use at once: those before the last are on disks that are gone.
const MOST_NAMES: usize = 100;
/// How much a volume grows at least. The header of an encrypted volume takes less, whoever has made it. Source:
/// `LUKS2_HDR_OFFSET_MAX` and `LUKS2_MAX_KEYSLOTS_SIZE`, 4 and 128 MiB, in cryptsetup's `lib/luks2/luks2.h`.
const LEAST_GROWTH: u64 = 1024 * 1024 * 1024;

/// What lies on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskHolder {
    /// Nothing.
    Nothing,
    /// The volume, open, and nothing else.
    Open(Box<Device>),
    /// What a cryptsetup that was killed while it looked at the key slots has left, by its device's name.
    Temporary(String),
    /// A device that the kernel is taking away: it has no name any more, and still lies on the disk for a moment.
    Closing(String),
    /// Something that this plugin has not made, by the kernel's name for it.
    Other(String),
}

/// Looks what lies on a volume's disk.
///
/// # Errors
/// [`Error::Io`] when sysfs cannot be read.
/// Source: `bd_link_disk_holder` in the kernel's `block/holder.c`; `Documentation/ABI/testing/sysfs-block-dm`.
pub fn observe_holder_of(places: &DevicePlaces, disk: &Device) -> Result<DiskHolder> {
    let holders = names_in(&disk.sysfs.join("holders"))?;
    match holders.as_slice() {
        [] => Ok(DiskHolder::Nothing),
        [one] => {
            match observe_holder(places, disk, one, |name| is_name_of(disk.volume(), name)) {
                Ok(Some(open)) => return Ok(DiskHolder::Open(Box::new(open))),
                Ok(None) => {}
                // It was taken away between two looks.
                Err(err) if is_going(&err) => return Ok(DiskHolder::Closing(one.clone())),
                Err(err) => return Err(err),
            }
            let sysfs = places.sysfs_named(one);
            if let Some(name) = observe_name(&sysfs, TEMPORARY_UUID_PREFIX)? {
                return Ok(DiskHolder::Temporary(name));
            }
            let is_closing = one.starts_with(MAPPED) && observe_uuid(&sysfs)?.is_none();
            Ok(if is_closing { DiskHolder::Closing(one.clone()) } else { DiskHolder::Other(one.clone()) })
        }
        [_, _, ..] => Ok(DiskHolder::Other(holders.join(" and "))),
    }
}

/// The device of this name, when it lies on a disk and nothing else does; for a disk of which is known whose it is, but not
/// its volume's name.
///
/// # Errors
/// [`Error::Io`] when sysfs cannot be read.
pub fn observe_open_as(places: &DevicePlaces, disk: &Device, name: &str) -> Result<Option<Device>> {
    match names_in(&disk.sysfs.join("holders"))?.as_slice() {
        [one] => observe_holder(places, disk, one, |have| have == name),
        [] | [_, _, ..] => Ok(None),
    }
}

/// The device that holds a disk, when it is of ours and has the right name.
fn observe_holder(
    places: &DevicePlaces,
    disk: &Device,
    holder: &str,
    is_right: impl Fn(&str) -> bool,
) -> Result<Option<Device>> {
    let sysfs = places.sysfs_named(holder);
    let Some(name) = observe_our_name(&sysfs)?.filter(|name| is_right(name)) else { return Ok(None) };
    let disk_name = disk.path.file_name().unwrap_or_default();
    if names_in(&sysfs.join("slaves"))?.iter().any(|below| below.as_str() != disk_name) {
        return Ok(None);
    }
    let (Some(number), Some(size)) = (read_number(&sysfs)?, observe_size(&sysfs)?) else { return Ok(None) };
    Ok(Some(Device {
        volume: disk.volume.clone(),
        path: places.nodes.join(holder),
        mapped: Some(Mapped { alias: places.nodes.join("mapper").join(name), below: disk.path.clone() }),
        number,
        size,
        fingerprint: DiskFingerprint::read(&sysfs)?,
        sysfs,
    }))
}

/// The name of a device of ours.
fn observe_our_name(sysfs: &Path) -> Result<Option<String>> {
    Ok(observe_name(sysfs, UUID_PREFIX)?.filter(|name| name.starts_with(PREFIX)))
}

/// The name of a device whose UUID begins like this.
fn observe_name(sysfs: &Path, uuid_prefix: &str) -> Result<Option<String>> {
    match observe_uuid(sysfs)? {
        Some(uuid) if uuid.starts_with(uuid_prefix) => observe_while_there(&sysfs.join("dm/name")),
        Some(_) | None => Ok(None),
    }
}

fn observe_uuid(sysfs: &Path) -> Result<Option<String>> {
    observe_while_there(&sysfs.join("dm/uuid"))
}

/// An attribute of a device that may be taken away while it is read; then it has none any more.
///
/// Source: `kernfs_seq_start` in the kernel's `fs/kernfs/file.c`: ENODEV, when what was opened has been removed.
fn observe_while_there(attribute: &Path) -> Result<Option<String>> {
    match read_attribute(attribute) {
        Err(err) if is_going(&err) => Ok(None),
        read => read,
    }
}

fn observe_size(sysfs: &Path) -> Result<Option<Bytes>> {
    let sectors = read_attribute(&sysfs.join("size"))?.and_then(|text| text.parse::<u64>().ok());
    Ok(sectors.and_then(|sectors| sectors.checked_mul(512)).map(Bytes))
}

/// An open encrypted volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksMapping {
    /// Its device's name at the device mapper.
    pub name: String,
    /// Its device's number.
    pub number: DeviceNumber,
    /// The number of the disk below; `None` when that is gone.
    pub disk: Option<DeviceNumber>,
}

/// All encrypted volumes that this plugin has opened and that are open, by their devices' names and numbers.
///
/// # Errors
/// [`Error::Io`] when sysfs cannot be read.
pub fn observe_all_open(places: &DevicePlaces) -> Result<Vec<(String, DeviceNumber)>> {
    let all = places.sysfs.join("class/block");
    let mut open = Vec::new();
    for device in mapped_in(&all)? {
        let sysfs = all.join(device);
        let number = observe_while_there(&sysfs.join("dev"))?.and_then(|text| DeviceNumber::parse(&text));
        if let (Some(name), Some(number)) = (observe_our_name(&sysfs)?, number) {
            open.push((name, number));
        }
    }
    Ok(open)
}

/// Looks whether a device is an open encrypted volume of ours.
///
/// # Errors
/// [`Error::Io`] when sysfs cannot be read.
pub fn observe_mapping(places: &DevicePlaces, number: DeviceNumber) -> Result<Option<LuksMapping>> {
    let sysfs = places.sysfs_of(number);
    let Some(name) = observe_our_name(&sysfs)? else { return Ok(None) };
    let below = names_in(&sysfs.join("slaves"))?;
    let disk = match below.as_slice() {
        [one] if observe_lost(places, number)?.is_none() => read_number(&sysfs.join("slaves").join(one))?,
        [] | [_, ..] => None,
    };
    Ok(Some(LuksMapping { name, number, disk }))
}

/// Whether an open encrypted volume is still there, or lies on its disk yet while the kernel takes it away: then its name is
/// gone, and its number not yet.
///
/// # Errors
/// [`Error::Io`] when sysfs cannot be read.
pub fn observe_is_open(places: &DevicePlaces, under: &LuksMapping) -> Result<bool> {
    let sysfs = places.sysfs_of(under.number);
    let is_named = observe_uuid(&sysfs)?.is_some();
    Ok(if is_named {
        observe_our_name(&sysfs)?.as_ref() == Some(&under.name)
    } else {
        presence::observe_is_there(&sysfs)?
    })
}

/// The kernel's name of the disk below an open encrypted volume, when that is gone. The volume's device stays as long as
/// anything uses it, and goes on naming the disk; but a disk that came in the place of the old one does not name the device.
///
/// # Errors
/// [`Error::Io`] when sysfs cannot be read.
pub(in crate::host) fn observe_lost(places: &DevicePlaces, number: DeviceNumber) -> Result<Option<String>> {
    let sysfs = places.sysfs_of(number);
    if observe_our_name(&sysfs)?.is_none() {
        return Ok(None);
    }
    // A device that goes away itself has lost nothing.
    let Some(directory) = presence::observe_real(&sysfs)? else { return Ok(None) };
    let own = directory.file_name().unwrap_or_default();
    for disk in names_in(&directory.join("slaves"))? {
        if !presence::observe_is_there(&directory.join("slaves").join(&disk).join("holders").join(own))? {
            return Ok(Some(disk));
        }
    }
    Ok(None)
}

/// The number of the device that the device mapper calls so; `None` when there is none of this name.
///
/// # Errors
/// [`Error::Io`] when sysfs cannot be read.
pub(in crate::host) fn observe_mapped(places: &DevicePlaces, name: &OsStr) -> Result<Option<DeviceNumber>> {
    let all = places.sysfs.join("class/block");
    for device in mapped_in(&all)? {
        if observe_while_there(&all.join(&device).join("dm/name"))?.is_some_and(|have| have.as_str() == name) {
            return read_number(&all.join(&device));
        }
    }
    Ok(None)
}

/// The names under which a volume may be opened: one that is free, and those that are taken by devices of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// A name that no device has.
    pub free: String,
    /// Names of devices that were the volume, open, on a disk that is another by now.
    pub taken: Vec<String>,
}

/// Looks for a name under which a volume, which is not open, can be opened.
///
/// # Errors
/// [`Error::Io`] when sysfs cannot be read, [`Error::UsedOtherwise`] when there is none.
pub fn observe_names(places: &DevicePlaces, volume: &VolumeName) -> Result<Names> {
    let all = places.sysfs.join("class/block");
    let mut taken = Vec::new();
    for device in mapped_in(&all)? {
        taken.extend(observe_while_there(&all.join(device).join("dm/name"))?.filter(|name| is_name_of(volume, name)));
    }
    let free = (1..=MOST_NAMES).map(|number| name_of(volume, number)).find(|name| !taken.contains(name));
    let none = || {
        let found = taken.join(", ");
        Error::UsedOtherwise(format!("volume {volume} has too many open devices whose disks are gone: {found}; reboot"))
    };
    Ok(Names { free: free.ok_or_else(none)?, taken })
}

/// Whether an open encrypted volume is smaller than the disk below it, because that has grown.
#[must_use]
pub fn is_short(open: &Device, disk: &Device) -> bool {
    disk.size().0.saturating_sub(open.size().0) >= LEAST_GROWTH
}

/// The name of a volume's device. What DigitalOcean takes for a volume's name the device mapper takes too; any other name,
/// of which there should be none, becomes a hash. Pure.
fn name_of(volume: &VolumeName, number: usize) -> String {
    let own = plain_or_hash(volume.as_str(), MOST_OF_NAME);
    match number {
        1 => format!("{PREFIX}{own}"),
        _ => format!("{PREFIX}{own}.{number}"),
    }
}

/// Whether a device's name is one of a volume's. Pure.
fn is_name_of(volume: &VolumeName, name: &str) -> bool {
    let rest = name.strip_prefix(name_of(volume, 1).as_str());
    rest.is_some_and(|rest| {
        let number = rest.strip_prefix('.');
        rest.is_empty()
            || number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// The device mapper's devices among all.
fn mapped_in(all: &Path) -> Result<impl Iterator<Item = String>> {
    Ok(names_in(all)?.into_iter().filter(|device| device.starts_with(MAPPED)))
}

/// The names in a directory of sysfs, in order; none when there is no such directory.
fn names_in(directory: &Path) -> Result<Vec<String>> {
    let names = presence::observe_names(directory)?.unwrap_or_default();
    Ok(names.into_iter().map(|name| name.to_string_lossy().into_owned()).collect())
}

#[cfg(test)]
mod tests;
