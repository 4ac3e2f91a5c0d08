//! Growing a volume's disk and file system on the droplet after the volume has grown at DigitalOcean.
//!
//! Owns the order: the disk is asked for its size until it has the new one, then the file system is grown while it is
//! mounted. A raw block device needs no more than its disk. A second call finds everything grown and changes nothing.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::config::DEVICE_BUDGET;
use crate::error::{Error, Result, Thing};
use crate::fs::FsKind;
use crate::host::device::Device;
use crate::host::device::lookup::{await_numbered, rescan_or_warn};
use crate::host::luks::mapper::{LuksMapping, is_short};
use crate::host::luks::passphrase::Key;
use crate::host::mount::observe_mounts;
use crate::host::mount_health::{Health, observe_health};
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::under_mount::{UnderMount, observe_disk, observe_mapping_under};
use crate::id::VolumeName;
use crate::node::luks::open::observe_its_device;
use crate::node::mount_point;
use crate::node::whose::{Whose, observe_whose};
use crate::node::{Arrival, Node, NodeCall};
use crate::request::node::Expand;
use crate::request::secrets::NAMES;
use crate::size::Bytes;

impl Node {
    /// Makes the volume at a path as large as its disk, which is waited for; returns the disk's size.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no volume is at the path, [`Error::DeviceMissing`] when the disk does not become as large
    /// as asked, [`Error::SizeOutOfRange`] when it is larger, [`Error::MountBroken`] when the mount is dead,
    /// [`Error::CannotGrow`] when the file system is mounted read-only or of a kind that cannot be grown, or when growing an encrypted volume needs its key.
    pub fn expand(&self, want: &Expand, arrival: Arrival) -> Result<Bytes> {
        let call = self.begin(arrival, &want.volume, None, &[&want.path])?;
        let (place, mount) = observe_volume_at(&want.path)?;
        let health = observe_health(call.places, &mount)?;
        if health != Health::Alive {
            // If the raw disk is gone, its node may belong to another disk by now.
            return Err(Error::MountBroken(format!("the volume at {} is dead: {health}", want.path.display())));
        }
        let name = match observe_whose(call.places, &want.volume, &mount)? {
            Whose::Ours(name) => name.map_or_else(|| VolumeName::parse(&want.volume), Ok),
            Whose::NotOurs(found) => return Err(Whose::not_there(&want.volume, &mount, &found)),
            Whose::Gone => return Err(not_at(&want.path)),
        };
        let name = name.map_err(|bad| Error::invalid("volume_id", bad))?;
        let under = observe_mapping_under(call.places, &mount)?;
        let number = match observe_disk(call.places, &mount)? {
            UnderMount::Disk(number) => number,
            UnderMount::Gone | UnderMount::NoDisk => return Err(not_at(&want.path)),
        };
        let await_size =
            |least| await_numbered(&call.guard, call.places, &name, number, least, call.cap(DEVICE_BUDGET));
        // The kernel may have missed that the disk has grown, even if it is already large enough for the request.
        rescan_or_warn(&call.guard, &await_size(None)?);
        let device = await_size(want.range.least())?;
        if !want.range.holds(device.size().rounded_up()) {
            return Err(Error::SizeOutOfRange(format!("{} asked, but the disk has {}", want.range, device.size())));
        }
        if !is_block(&place)? {
            let fs = plan_fs(&want.path, &mount)?;
            let grow = |under: LuksMapping| self.ensure_inner_grown(&call, &device, &under.name, want.key.as_ref());
            let inner = under.map(grow).transpose()?;
            // Read again: the wait for the disk may have taken long, and a mount that was there may be gone.
            let through = plan_through(&observe_mounts()?, &mount);
            self.fs_tools.ensure_grown(&call, inner.as_ref().unwrap_or(&device), fs, &through)?;
        }
        Ok(device.size())
    }

    /// Lets an encrypted volume follow its disk; gives the device that is in it.
    fn ensure_inner_grown(&self, call: &NodeCall<'_>, disk: &Device, name: &str, key: Option<&Key>) -> Result<Device> {
        let open = observe_its_device(call.places, disk, name)?;
        match key {
            _ if !is_short(&open, disk) => Ok(open),
            Some(key) => self.apply_full(call, disk, &open, key),
            None => Err(Error::CannotGrow(format!(
                "the encrypted volume {} cannot grow on {} without its key, which is not among the secrets of \
                 NodeExpandVolume (one of {NAMES:?}); it grows by itself when it is staged next, so stop all that uses it on \
                 this droplet and start it again",
                disk.volume(),
                disk.path().display()
            ))),
        }
    }
}

fn not_at(path: &Path) -> Error {
    Error::NotFound(Thing::VolumeAt(path.to_owned()))
}

/// What is mounted at the path.
fn observe_volume_at(path: &Path) -> Result<(PathBuf, Mount)> {
    let not_there = || not_at(path);
    let real = mount_point::observe_real_path(path)?.ok_or_else(not_there)?;
    // What is somebody else's is not even examined: it may not answer.
    let mount = observe_mounts()?.at(&real).filter(|mount| mount.is_of_our_making()).cloned().ok_or_else(not_there)?;
    Ok((real, mount))
}

/// Through which mount a file system is grown: one for reading only, as a reader has it, takes no change, but another of the
/// same file system may that no other mount hides. Pure.
fn plan_through(mounts: &MountTable, asked: &Mount) -> PathBuf {
    let is_same = |mount: &&Mount| mount.device == asked.device && mount.fstype == asked.fstype && mount.is_whole();
    let is_seen = |mount: &Mount| mounts.at(&mount.target).is_some_and(|seen| seen.id == mount.id);
    let writable = mounts.iter().filter(is_same).find(|mount| !mount.is_read_only() && is_seen(mount));
    let through = if asked.is_read_only() { writable.unwrap_or(asked) } else { asked };
    through.target.clone()
}

fn is_block(place: &Path) -> Result<bool> {
    Ok(fs::metadata(place).map_err(Error::io("examining", place))?.file_type().is_block_device())
}

fn plan_fs(path: &Path, mount: &Mount) -> Result<FsKind> {
    let refuse = |why: String| Err(Error::CannotGrow(format!("the volume at {} {why}", path.display())));
    if mount.is_super_read_only() {
        return refuse("is mounted read-only and cannot grow; it grows when it is staged for writing".to_owned());
    }
    match FsKind::parse(&mount.fstype) {
        Some(fs) => Ok(fs),
        None => refuse(format!("has the file system {:?}, which cannot be grown", mount.fstype)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_has_its_volume_grown_through_a_writer_of_the_same() {
        let writer = "6 1 8:0 / /writer rw - xfs /dev/sda rw\n";
        let part = "7 1 8:0 /part /part rw - xfs /dev/sda rw\n";
        let other = "8 1 8:16 / /other rw - xfs /dev/sdb rw\n";
        let hides_writer = "10 6 8:16 / /writer rw - xfs /dev/sdb rw\n";
        let reader = "9 1 8:0 / /reader ro - xfs /dev/sda rw\n";
        for (others, want) in [
            (vec![writer], "/writer"),
            (vec![part, other, writer], "/writer"),
            (vec![part, other], "/reader"),
            (vec![writer, hides_writer], "/reader"),
            (vec![], "/reader"),
        ] {
            let table = MountTable::parse([others.concat().as_str(), reader].concat().as_bytes()).unwrap();
            let asked = table.at(Path::new("/reader")).unwrap();
            assert_eq!(plan_through(&table, asked), Path::new(want));
        }
        let table = MountTable::parse([writer, "9 1 8:0 / /asked rw - xfs /dev/sda rw\n"].concat().as_bytes()).unwrap();
        assert_eq!(plan_through(&table, table.at(Path::new("/asked")).unwrap()), Path::new("/asked"));
    }
}
