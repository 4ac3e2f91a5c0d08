//! The volumes on this droplet: their disks, and where each is mounted.
//!
//! Owns the list, for everything that shows or judges what is here. The list comes from sysfs, udev's links and the
//! mount table, none of which waits for a disk. What waits, the question how a mount is, is asked by threads of its
//! own with a limit of time: a dead mount holds up nobody but its own thread, of which there is never a second one.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Chain, Error, Result};
use crate::host::device::DevicePlaces;
use crate::host::device::links::observe_linked_disks;
use crate::host::device::number::DeviceNumber;
use crate::host::device::sysfs::read_attribute;
use crate::host::external_volumes::is_csi_place;
use crate::host::id_link::observe_ids_of;
use crate::host::mount_health::observe_health;
use crate::host::mount_report::{MountReport, observe_report};
use crate::host::mount_table::observe_mounts;
use crate::host::mountinfo::{Mount, MountKey, MountTable};
use crate::host::owner::{Owner, observe_owner};
use crate::host::presence::{observe_is_there, observe_metadata, observe_names, observe_real};
use crate::host::under_mount::{UnderMount, observe_disk};
use crate::id::{VolumeId, VolumeName};
use crate::sync::looks::{Looks, Seen};

/// How long the mounts may take to answer, all together.
pub const LOOK_BUDGET: Duration = Duration::from_secs(2);
/// The unit of a disk's size in sysfs. Source: `Documentation/ABI/stable/sysfs-block`, `size`.
const SECTOR: u64 = 512;

/// One volume on this droplet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeHere {
    /// Its id, as far as it was staged or published here; DigitalOcean's where there are several.
    pub id: Option<String>,
    /// Its name at DigitalOcean.
    pub name: Option<VolumeName>,
    /// Its disk; `None`: it is gone, and the mounts are left.
    pub disk: Option<DiskHere>,
    /// The file system that is mounted, in the kernel's word; `None`: it is raw or not mounted.
    pub fs: Option<String>,
    /// Where it is mounted, or bound as a raw disk.
    pub mounts: Vec<MountHere>,
    /// How it is.
    pub state: VolumeState,
}

/// A volume's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskHere {
    /// Its node, such as `/dev/sda`.
    pub node: PathBuf,
    /// Its directory in sysfs, with `stat` for its input and output.
    pub sysfs: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Whether the kernel refuses every write to it.
    pub is_read_only: bool,
    /// What the kernel says of a SCSI disk, such as `running`.
    pub state: Option<String>,
    /// For how long it has been here, where the kernel tells (Linux 5.18).
    pub age: Option<Duration>,
    /// Whether it is encrypted and open.
    pub is_encrypted: bool,
}

/// A place where a volume is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountHere {
    /// The path, as this process sees it.
    pub path: PathBuf,
    /// Whether nothing can be written through it.
    pub is_read_only: bool,
    /// Who uses it there: the allocation's id in Nomad, or the pod's in Kubernetes.
    pub user: Option<String>,
}

/// How a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeState {
    /// It is not mounted where this process sees it.
    NotMounted {
        /// Something that is not seen here has the disk: a mount in another mount namespace, LVM.
        is_taken: bool,
    },
    /// Its mount has answered.
    Answered(MountReport),
    /// It has not answered in time, for so long by now.
    Silent(Duration),
    /// It could not be looked at, for this reason.
    Unknown(String),
}

/// The volumes here, looked at as often as somebody wants to know.
#[derive(Debug)]
pub struct Inventory {
    places: DevicePlaces,
    budget: Duration,
    /// Looks that have not ended yet, by the mount that they are about.
    looks: Looks<MountKey, VolumeState>,
}

/// A volume before its mount was asked.
#[derive(Debug)]
struct Found {
    volume: VolumeHere,
    /// The mount that is asked.
    asked: Option<Mount>,
}

impl Inventory {
    /// Looks at nothing yet; `budget` is how long the mounts may take to answer, all together.
    #[must_use]
    pub fn new(places: DevicePlaces, budget: Duration) -> Inventory {
        Inventory { places, budget, looks: Looks::default() }
    }

    /// The volumes here, by their names. It takes no longer than the budget, whatever the disks do.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] when the mount table or the directory of links cannot be read.
    pub fn observe(&self) -> Result<Vec<VolumeHere>> {
        let mounts = observe_mounts()?;
        let found = observe_found(&self.places, &mounts)?;
        let there: HashSet<MountKey> = mounts.iter().map(Mount::key).collect();
        // How a mount was that is gone tells nothing of what is there now.
        drop(self.looks.take_ended(|key| there.contains(key)));
        let give_up = Instant::now() + self.budget;
        let asked: Vec<(VolumeHere, Option<MountKey>)> =
            found.into_iter().map(|found| self.ask(found, &mounts)).collect();
        let wait = |(volume, key): (VolumeHere, Option<MountKey>)| match key {
            Some(key) => VolumeHere { state: self.wait(&key, give_up), ..volume },
            None => volume,
        };
        Ok(asked.into_iter().map(wait).collect())
    }

    /// Has a thread look at a volume, unless an earlier one is at it still.
    fn ask(&self, found: Found, mounts: &MountTable) -> (VolumeHere, Option<MountKey>) {
        let Found { volume, asked: Some(mount) } = found else { return (found.volume, None) };
        let (key, places, mounts) = (mount.key(), self.places.clone(), mounts.clone());
        match self.looks.begin(key.clone(), move || observe_state(&places, &mounts, &mount)) {
            Ok(_) => (volume, Some(key)),
            Err(err) => {
                let state = VolumeState::Unknown(format!("the system gives no thread to look at it: {err}"));
                (VolumeHere { state, ..volume }, None)
            }
        }
    }

    fn wait(&self, key: &MountKey, give_up: Instant) -> VolumeState {
        match self.looks.wait(key, give_up) {
            Seen::Ended(state) => state,
            Seen::Silent(time) => VolumeState::Silent(time),
            Seen::Nothing(why) => VolumeState::Unknown(why.to_owned()),
        }
    }
}

/// How the volume at a mount is. It waits for the disk.
fn observe_state(places: &DevicePlaces, mounts: &MountTable, mount: &Mount) -> VolumeState {
    let report = || observe_report(places, mounts, mount, observe_health(places, mount)?);
    report().map_or_else(|err| VolumeState::Unknown(Chain(&err).to_string()), VolumeState::Answered)
}

/// Whether something that this process sees no mount of has a disk: a device that lies on it or on a partition, or a
/// file system in another mount namespace. The disk is not opened for that: whoever claims it, if only to see, is in
/// others' way.
///
/// Source: `Documentation/ABI/testing/sysfs-fs-ext4`, `sysfs-fs-xfs` and, for btrfs, `fs/btrfs/sysfs.c`.
fn observe_is_taken(places: &DevicePlaces, disk: &Path) -> Result<bool> {
    let Some(name) = disk.file_name() else { return Ok(false) };
    let names = |directory: &Path| Ok::<_, Error>(observe_names(directory)?.unwrap_or_default());
    let has_holders = |device: &Path| Ok::<_, Error>(!names(&device.join("holders"))?.is_empty());
    let mut devices = vec![name.to_owned()];
    for below in names(disk)? {
        if observe_is_there(&disk.join(&below).join("partition"))? {
            devices.push(below);
        }
    }
    let systems = names(&places.sysfs.join("fs/btrfs"))?;
    for device in devices {
        let own = if device == name { disk.to_owned() } else { disk.join(&device) };
        let of_kernel = ["ext4", "xfs"].map(|fs| places.sysfs.join("fs").join(fs).join(&device));
        let of_btrfs = systems.iter().map(|id| places.sysfs.join("fs/btrfs").join(id).join("devices").join(&device));
        for sign in of_kernel.into_iter().chain(of_btrfs) {
            if observe_is_there(&sign)? {
                return Ok(true);
            }
        }
        if has_holders(&own)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The volumes by their disks and mounts. It waits for no disk.
fn observe_found(places: &DevicePlaces, mounts: &MountTable) -> Result<Vec<Found>> {
    let named = |(number, name): (DeviceNumber, String)| Some((number, (VolumeName::parse(&name).ok()?, Vec::new())));
    let mut by_disk: BTreeMap<DeviceNumber, (VolumeName, Vec<&Mount>)> =
        observe_linked_disks(places)?.into_iter().filter_map(named).collect();
    let mut others: BTreeMap<(DeviceNumber, bool), Vec<&Mount>> = BTreeMap::new();
    for mount in mounts.iter().filter(|mount| mount.is_of_our_making()) {
        // One whose disk cannot be told is shown by itself where orchestrators mount volumes, and else is no volume's.
        let (number, is_disk) = match observe_disk(places, mount) {
            Ok(UnderMount::Disk(number)) => (number, true),
            Ok(UnderMount::Gone | UnderMount::NoDisk) | Err(_) => (mount.device, false),
        };
        match by_disk.get_mut(&number).filter(|_| is_disk) {
            Some((_, found)) => found.push(mount),
            None if is_csi_place(&mount.target) => others.entry((number, is_disk)).or_default().push(mount),
            None => {}
        }
    }
    let named = by_disk.into_iter().map(|(number, (name, found))| {
        let id = plan_id(observe_ids_of(places, &name).unwrap_or_default());
        assemble(places, mounts, id, Some(name), Some(number), &found)
    });
    let unnamed = others.into_iter().map(|((number, is_disk), found)| {
        let name = observe_carried(places, number).filter(|_| is_disk);
        let id = name.as_ref().and_then(|name| plan_id(observe_ids_of(places, name).unwrap_or_default()));
        assemble(places, mounts, id, name, is_disk.then_some(number), &found)
    });
    let mut all: Vec<Found> = named.chain(unnamed).collect();
    all.sort_by(|a, b| a.volume.name.cmp(&b.volume.name));
    Ok(all)
}

/// The name that a disk without a link carries.
fn observe_carried(places: &DevicePlaces, disk: DeviceNumber) -> Option<VolumeName> {
    match observe_owner(places, disk, None) {
        Ok(Owner::Some(names)) => names.first().and_then(|name| VolumeName::parse(name).ok()),
        Ok(Owner::This | Owner::Other(_) | Owner::Nameless) | Err(_) => None,
    }
}

/// DigitalOcean's id goes before one that an orchestrator has made. Pure.
fn plan_id(ids: Vec<String>) -> Option<String> {
    let own = ids.iter().find(|id| VolumeId::parse(id).is_ok()).cloned();
    own.or_else(|| ids.into_iter().next())
}

fn assemble(
    places: &DevicePlaces,
    mounts: &MountTable,
    id: Option<String>,
    name: Option<VolumeName>,
    disk: Option<DeviceNumber>,
    found: &[&Mount],
) -> Found {
    let disk = disk.and_then(|number| observe_disk_here(places, number, name.as_ref()));
    let is_seen = |mount: &&&Mount| mounts.at(&mount.target).is_some_and(|seen| seen.id == mount.id);
    let of_fs = found.iter().find(|mount| !mount.is_node() && is_seen(mount));
    let asked = of_fs.or_else(|| found.iter().find(is_seen)).map(|mount| (*mount).clone());
    let is_taken = disk.as_ref().map_or(Ok(false), |disk| observe_is_taken(places, &disk.sysfs));
    let volume = VolumeHere {
        id,
        name,
        disk,
        fs: found.iter().find(|mount| !mount.is_node()).map(|mount| mount.fstype.clone()),
        mounts: found.iter().map(|mount| mount_here(mount)).collect(),
        state: match is_taken {
            Ok(is_taken) => VolumeState::NotMounted { is_taken },
            Err(err) => VolumeState::Unknown(Chain(&err).to_string()),
        },
    };
    Found { volume, asked }
}

fn observe_disk_here(places: &DevicePlaces, number: DeviceNumber, name: Option<&VolumeName>) -> Option<DiskHere> {
    let sysfs = observe_real(&places.sysfs_of(number)).ok().flatten()?;
    let attribute = |name: &str| read_attribute(&sysfs.join(name)).ok().flatten();
    let link = name.and_then(|name| observe_metadata(&places.link(name)).ok().flatten());
    let holders = observe_names(&sysfs.join("holders")).ok().flatten().unwrap_or_default();
    Some(DiskHere {
        node: places.nodes.join(sysfs.file_name()?),
        size: attribute("size").and_then(|sectors| sectors.parse::<u64>().ok()).unwrap_or(0).saturating_mul(SECTOR),
        is_read_only: attribute("ro").is_some_and(|value| value == "1"),
        state: attribute("device/state"),
        age: link.and_then(|link| link.created().ok()).and_then(|at| SystemTime::now().duration_since(at).ok()),
        is_encrypted: holders.iter().any(|holder| holder.to_string_lossy().starts_with("dm-")),
        sysfs,
    })
}

fn mount_here(mount: &Mount) -> MountHere {
    MountHere {
        path: mount.target.clone(),
        is_read_only: mount.is_read_only(),
        user: plan_user(&mount.target).map(str::to_owned),
    }
}

/// Who uses a volume at a path: `.../per-alloc/ALLOCATION/VOLUME/USAGE` in Nomad,
/// `.../pods/POD/volumes/kubernetes.io~csi/...` in Kubernetes. Pure.
///
/// Source: `client/pluginmanager/csimanager/volume.go` in Nomad; `pkg/volume/csi/csi_mounter.go` in Kubernetes.
fn plan_user(target: &Path) -> Option<&str> {
    if !is_csi_place(target) {
        return None;
    }
    let after = |word: &str| target.iter().skip_while(|part| *part != word).nth(1).and_then(std::ffi::OsStr::to_str);
    after("per-alloc").or_else(|| after("pods"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uses_a_volume_is_in_the_path_of_its_mount() {
        let usage = "rw-file-system-single-node-writer";
        for (path, want) in [
            (format!("/csi/per-alloc/7b1e/blog/{usage}"), Some("7b1e")),
            (format!("/opt/nomad/client/csi/node/do/per-alloc/7b1e/blog[0]/{usage}"), Some("7b1e")),
            (format!("/csi/staging/default/blog/{usage}"), None),
            ("/var/lib/kubelet/pods/9c/volumes/kubernetes.io~csi/pvc-1/mount".to_owned(), Some("9c")),
            ("/mnt/per-alloc/7b1e".to_owned(), None),
            ("/srv/pods/9c".to_owned(), None),
        ] {
            assert_eq!(plan_user(Path::new(&path)), want, "{path}");
        }
    }

    #[test]
    fn digitaloceans_id_is_shown_before_an_orchestrators() {
        let uuid = "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        assert_eq!(plan_id(ids(&["blog", uuid])).as_deref(), Some(uuid));
        assert_eq!(plan_id(ids(&["blog"])).as_deref(), Some("blog"));
        assert_eq!(plan_id(ids(&[])), None);
    }
}
