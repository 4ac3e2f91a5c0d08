//! What the mount table means for one volume.
//!
//! Owns the reading of single mounts: to which volume they belong, whether they are as requested, whether they still
//! work. It changes nothing; `plan.rs` decides what follows.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::fs::FsKind;
use crate::host::device::{Device, DevicePlaces};
use crate::host::mount_health::{Health, observe_health};
use crate::host::mountinfo::{Mount, MountTable};
use crate::node::plan::{MountPointState, Superblock};

/// Sees the mount at a path from a volume's disk. `difference` says how a mount of the volume is not as asked.
pub(super) fn observe_at(
    places: &DevicePlaces,
    mounts: &MountTable,
    path: &Path,
    device: &Device,
    difference: impl Fn(&Mount) -> Option<String>,
) -> Result<MountPointState> {
    let Some(mount) = mounts.at(path) else { return Ok(MountPointState::Free) };
    // A foreign mount is never touched, not even to see whether it answers: NFS may never answer.
    let health = if mount.is_of_our_making() { observe_health(places, mount)? } else { Health::Alive };
    Ok(plan_mount_state(mount, health, device, difference))
}

/// Sees what the kernel has of a disk's file system already, not counting what is mounted at `apart`.
///
/// # Errors
/// As [`observe_health`].
pub(super) fn observe_superblock(
    places: &DevicePlaces,
    mounts: &MountTable,
    device: &Device,
    apart: &[&Path],
) -> Result<Superblock> {
    let others = elsewhere(mounts, device, apart).filter(|mount| !mount.is_node());
    let seen = others.map(|mount| Ok((mount, observe_health(places, mount)?)));
    Ok(plan_superblock(&seen.collect::<Result<Vec<_>>>()?))
}

/// Every place where a volume is seen, by its file system or raw, except those in `apart`.
pub(super) fn elsewhere<'a>(
    mounts: &'a MountTable,
    device: &'a Device,
    apart: &'a [&Path],
) -> impl Iterator<Item = &'a Mount> {
    mounts.of_device(device).filter(|mount| !apart.contains(&mount.target.as_path()))
}

/// A place where a volume is used raw while it is asked for with a file system, or the other way round.
pub(super) fn used_otherwise<'a>(mounts: &'a MountTable, device: &'a Device, is_raw: bool) -> Option<&'a Path> {
    mounts.of_device(device).find(|mount| mount.is_node() != is_raw).map(|mount| mount.target.as_path())
}

fn plan_mount_state(
    mount: &Mount,
    health: Health,
    device: &Device,
    difference: impl Fn(&Mount) -> Option<String>,
) -> MountPointState {
    let is_volume = mount.is_node_of(device) || (mount.is_of(device) && mount.is_whole());
    match (health, is_volume) {
        // A mount whose disk is there is only taken from the volume's own tasks.
        (Health::DiskGone | Health::NodeGone, _) if mount.is_of_our_making() => MountPointState::Dead(health),
        (Health::ShutDown, _) if mount.is_of(device) => MountPointState::Dead(health),
        (Health::Alive | Health::DiskGone | Health::ShutDown | Health::NodeGone, false)
        | (Health::DiskGone | Health::ShutDown | Health::NodeGone, true) => {
            let what = format!("{} ({}) is mounted there", mount.source.to_string_lossy(), mount.fstype);
            MountPointState::Foreign { what }
        }
        (Health::Alive, true) if mount.is_read_only_by_error() => MountPointState::ReadOnlyAfterError,
        (Health::Alive, true) => difference(mount).map_or(MountPointState::AsRequested, MountPointState::Mismatched),
    }
}

/// How a mount has another file system than asked for, as a phrase.
pub(super) fn fs_difference(asked: Option<FsKind>, mount: &Mount) -> Option<String> {
    if mount.is_node() {
        return Some("shows the raw disk, and a file system was asked for".to_owned());
    }
    let other = asked.filter(|fs| fs.name() != mount.fstype);
    other.map(|fs| format!("holds {}, and {fs} was asked for", mount.fstype))
}

/// How a mount is not the volume's raw disk, as a phrase.
pub(super) fn raw_difference(mount: &Mount) -> Option<String> {
    (!mount.is_node()).then(|| format!("shows its file system ({}), and the raw disk was asked for", mount.fstype))
}

fn plan_superblock(mounts: &[(&Mount, Health)]) -> Superblock {
    let place = |mount: &Mount| -> (PathBuf, String) { (mount.target.clone(), mount.fstype.clone()) };
    if let Some((mount, health)) = mounts.iter().find(|(_, health)| *health != Health::Alive) {
        return Superblock::Dead { at: mount.target.clone(), health: *health };
    }
    if let Some((mount, _)) = mounts.iter().find(|(mount, _)| mount.is_read_only_by_error()) {
        return Superblock::Broken { at: mount.target.clone() };
    }
    // One that shows the whole file system goes first: others can be made from it.
    let best = mounts.iter().map(|(mount, _)| *mount).min_by_key(|mount| mount.root.as_os_str().len());
    match best.map(|mount| (mount.is_super_read_only(), place(mount))) {
        None => Superblock::Unmounted,
        Some((true, (at, fstype))) => Superblock::ReadOnly { at, fstype },
        Some((false, (at, fstype))) => Superblock::Writable { at, fstype },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::device::number::DeviceNumber;

    fn device() -> Device {
        Device::fake("/dev/sda", DeviceNumber { major: 8, minor: 0 }, 1 << 30)
    }

    fn mount(line: &str) -> Mount {
        MountTable::parse(format!("9 1 {line}\n").as_bytes()).unwrap().iter().next().unwrap().clone()
    }

    #[test]
    fn a_mount_is_seen_from_the_volumes_disk() {
        let other = |what: &str| MountPointState::Foreign { what: format!("{what} is mounted there") };
        let (alive, gone, shut) = (Health::Alive, Health::DiskGone, Health::ShutDown);
        let cases = [
            ("8:0 / /s rw - xfs /dev/sda rw", alive, MountPointState::AsRequested),
            ("8:0 / /s ro - xfs /dev/sda ro", alive, MountPointState::Mismatched("ro".into())),
            ("8:0 / /s ro - xfs /dev/sda rw", alive, MountPointState::Mismatched("ro".into())),
            ("8:0 / /s rw - ext4 /dev/sda ro", alive, MountPointState::ReadOnlyAfterError),
            ("8:0 / /s rw - ext4 /dev/sda rw,emergency_ro", alive, MountPointState::ReadOnlyAfterError),
            ("8:0 / /s rw - xfs /dev/sda rw", gone, MountPointState::Dead(gone)),
            ("8:0 / /s rw - xfs /dev/sda rw", shut, MountPointState::Dead(shut)),
            ("8:16 / /s rw - xfs /dev/sdb rw", gone, MountPointState::Dead(gone)),
            ("8:16 / /s rw - xfs /dev/sdb rw", shut, other("/dev/sdb (xfs)")),
            ("8:16 / /s rw - xfs /dev/sdb rw", alive, other("/dev/sdb (xfs)")),
            ("8:0 /directory /s rw - xfs /dev/sda rw", alive, other("/dev/sda (xfs)")),
            ("0:40 / /s rw - btrfs /dev/sda rw", alive, MountPointState::AsRequested),
            ("0:40 /@ /s rw - btrfs /dev/sda rw,subvol=/@", alive, MountPointState::AsRequested),
            ("0:40 /@/directory /s rw - btrfs /dev/sda rw,subvol=/@", alive, other("/dev/sda (btrfs)")),
            ("0:41 / /s rw - btrfs /dev/sdb rw", alive, other("/dev/sdb (btrfs)")),
            ("0:5 /sda /s rw - devtmpfs udev rw", alive, MountPointState::AsRequested),
            ("0:5 /sdb /s rw - devtmpfs udev rw", alive, other("udev (devtmpfs)")),
            ("0:5 /sda//deleted /s rw - devtmpfs udev rw", gone, MountPointState::Dead(gone)),
            ("0:5 / /s rw - devtmpfs udev rw", alive, other("udev (devtmpfs)")),
            ("0:44 / /s rw - tmpfs tmpfs rw", alive, other("tmpfs (tmpfs)")),
            // A foreign mount is never removed, dead or not.
            ("0:50 / /s rw - nfs4 server:/x rw", gone, other("server:/x (nfs4)")),
            ("0:50 / /s rw - fuse.x x rw", shut, other("x (fuse.x)")),
        ];
        for (line, health, want) in cases {
            let differs = |mount: &Mount| mount.has_option("ro").then(|| "ro".to_owned());
            assert_eq!(plan_mount_state(&mount(line), health, &device(), differs), want, "{line} {health:?}");
        }
    }

    #[test]
    fn all_mounts_of_a_file_system_together_say_how_it_is() {
        let at = PathBuf::from;
        let (rw, ro) = ("8:0 / /rw rw - xfs /dev/sda rw", "8:0 / /ro ro - xfs /dev/sda ro");
        let (ro_of_rw, part) = ("8:0 / /both ro - xfs /dev/sda rw", "8:0 /x /part rw - xfs /dev/sda rw");
        let broken = "8:0 / /broken rw - xfs /dev/sda ro";
        let fstype = || "xfs".to_owned();
        let cases = [
            (vec![], Superblock::Unmounted),
            (vec![rw], Superblock::Writable { at: at("/rw"), fstype: fstype() }),
            (vec![ro_of_rw], Superblock::Writable { at: at("/both"), fstype: fstype() }),
            (vec![part, rw], Superblock::Writable { at: at("/rw"), fstype: fstype() }),
            (vec![ro], Superblock::ReadOnly { at: at("/ro"), fstype: fstype() }),
            (vec![ro, broken], Superblock::Broken { at: at("/broken") }),
        ];
        for (lines, want) in cases {
            let mounts: Vec<Mount> = lines.iter().map(|line| mount(line)).collect();
            let seen: Vec<_> = mounts.iter().map(|mount| (mount, Health::Alive)).collect();
            assert_eq!(plan_superblock(&seen), want, "{lines:?}");
            for health in [Health::DiskGone, Health::ShutDown] {
                let seen: Vec<_> = mounts.iter().map(|mount| (mount, health)).collect();
                assert_eq!(matches!(plan_superblock(&seen), Superblock::Dead { .. }), !mounts.is_empty());
            }
        }
    }
}
