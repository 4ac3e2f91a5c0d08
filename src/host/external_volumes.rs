//! Volumes on this droplet that something other than CSI uses, such as a database's disk that the operator attached.
//!
//! Owns the guess which volumes these are. DigitalOcean counts them against the droplet's limit, an orchestrator does not.
//! A volume that nothing uses is not counted: whether CSI is going to use it cannot be seen.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

use crate::error::Result;
use crate::host::device::DevicePlaces;
use crate::host::device::links::observe_linked_disks;
use crate::host::device::number::DeviceNumber;
use crate::host::mountinfo::MountTable;
use crate::host::presence::{observe_if_there, observe_is_there, observe_real};
use crate::host::under_mount::observe_device;

/// What was seen of one volume's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It is mounted where orchestrators mount CSI volumes, or bound there as a raw block device.
    ByCsi,
    /// It is mounted somewhere else.
    Elsewhere,
    /// Nothing is mounted that this process sees, yet the kernel says that somebody has it.
    Hidden,
    /// Nothing uses it.
    Free,
}

/// Counts the volumes that something other than CSI uses.
///
/// # Errors
/// [`crate::error::Error::Io`] when the devices cannot be looked at.
pub(crate) fn observe_foreign(places: &DevicePlaces, mounts: &MountTable) -> Result<u32> {
    let mut count = 0;
    // Two links may lead to one disk.
    let disks: BTreeSet<DeviceNumber> = observe_linked_disks(places)?.into_iter().map(|(number, _)| number).collect();
    for disk in disks {
        match observe_use(places, mounts, disk)? {
            Seen::Elsewhere | Seen::Hidden => count += 1,
            Seen::ByCsi | Seen::Free => {}
        }
    }
    Ok(count)
}

fn observe_use(places: &DevicePlaces, mounts: &MountTable, disk: DeviceNumber) -> Result<Seen> {
    // Below a disk's directory in sysfs are its partitions'. A disk that is gone by now uses nothing.
    let directory = |number: DeviceNumber| observe_real(&places.sysfs_of(number));
    let Some(own) = directory(disk)? else { return Ok(Seen::Free) };
    let mut targets = Vec::new();
    for mount in mounts.iter() {
        let of_mount = observe_device(places, mount)?.map(directory).transpose()?.flatten();
        if let Some(of_mount) = of_mount
            && (of_mount.starts_with(&own) || observe_is_upon(&own, &of_mount)?)
        {
            targets.push(mount.target.as_path());
        }
    }
    match plan_use(&targets) {
        Seen::Free if is_taken(places, &own)? => Ok(Seen::Hidden),
        seen @ (Seen::Free | Seen::ByCsi | Seen::Elsewhere | Seen::Hidden) => Ok(seen),
    }
}

/// Whether a device lies on a disk, as an encrypted volume that is open: then it is in the directory of the disk's holders.
fn observe_is_upon(disk: &Path, device: &Path) -> Result<bool> {
    device.file_name().map_or(Ok(false), |name| observe_is_there(&disk.join("holders").join(name)))
}

/// Decides by where a disk is mounted.
fn plan_use(targets: &[&Path]) -> Seen {
    match targets {
        [] => Seen::Free,
        some if some.iter().any(|target| is_csi_place(target)) => Seen::ByCsi,
        [..] => Seen::Elsewhere,
    }
}

/// Whether it is a path at which an orchestrator has CSI volumes mounted. Pure.
#[must_use]
pub(crate) fn is_csi_place(target: &Path) -> bool {
    is_of_nomad(target) || is_of_kubernetes(target)
}

/// Whether it is one of Nomad's paths, outside the plugin's container or inside, where its beginning is the job's to
/// choose: `.../staging/[NAMESPACE/]VOLUME/USAGE` and `.../per-alloc/ALLOCATION/VOLUME/USAGE`.
///
/// Source: `client/pluginmanager/csimanager/volume.go` and `UsageOptions.ToFS` in Nomad.
fn is_of_nomad(target: &Path) -> bool {
    let directories = target.iter().skip_while(|part| *part != "staging" && *part != "per-alloc");
    directories.skip(1).any(|part| is_usage(&part.to_string_lossy()))
}

/// How the name of the hidden place ends in which a mount is prepared beside its path. The name begins with a dot.
pub(crate) const SCRATCH_END: &str = ".do-csi";

/// The name of the path beside which a hidden place of this name was made; `None` for any other name. Pure.
pub(crate) fn plan_prepared(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(SCRATCH_END)
}

/// Whether it is what Nomad calls a way of using a volume, such as `rw-file-system-single-node-writer`, or the hidden place
/// beside it.
pub(crate) fn is_usage(part: &str) -> bool {
    let part = plan_prepared(part).unwrap_or(part);
    let rest = part.strip_prefix("rw-").or_else(|| part.strip_prefix("ro-"));
    rest.is_some_and(|rest| rest.starts_with("file-system-") || rest.starts_with("block-device-"))
}

/// Whether it is one of Kubernetes' paths: `.../kubernetes.io/csi/...` or `.../kubernetes.io~csi/...`.
///
/// Source: `pkg/volume/csi/csi_plugin.go` and `csi_block.go` in Kubernetes.
fn is_of_kubernetes(target: &Path) -> bool {
    let follows = |(one, next)| one == "kubernetes.io" && next == "csi";
    target.iter().any(|part| part == "kubernetes.io~csi") || target.iter().zip(target.iter().skip(1)).any(follows)
}

/// Whether the kernel has given the disk, or a partition of it, to somebody: to a mount in another container, to LVM.
///
/// Source: open(2), `O_EXCL` without `O_CREAT` on a block device.
fn is_taken(places: &DevicePlaces, directory: &Path) -> Result<bool> {
    let Some(name) = directory.file_name() else { return Ok(false) };
    let node = places.nodes.join(name);
    let flags = OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let claim = || match OpenOptions::new().read(true).custom_flags(flags.bits()).open(&node) {
        Ok(_) => Ok(false),
        Err(err) if err.kind() == ErrorKind::ResourceBusy => Ok(true),
        Err(err) => Err(err),
    };
    Ok(observe_if_there("opening", &node, claim)?.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_csis_where_orchestrators_mount_it() {
        let table: [(&[&str], Seen); 18] = [
            (&[], Seen::Free),
            (&["/csi/staging/default/blog/rw-file-system-single-node-writer"], Seen::ByCsi),
            (&["/local/csi/staging/blog/ro-file-system-single-node-reader-only"], Seen::ByCsi),
            (&["/any/where/per-alloc/1/redis[0]/rw-block-device-single-node-writer"], Seen::ByCsi),
            (&["/opt/nomad/data/client/csi/node/do/per-alloc/1/blog/rw-file-system-single-node-writer"], Seen::ByCsi),
            (&["/var/lib/kubelet/plugins/kubernetes.io/csi/pv/pvc-1/globalmount"], Seen::ByCsi),
            (&["/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/pvc-1/mount"], Seen::ByCsi),
            (&["/mnt/look", "/csi/staging/default/blog/rw-file-system-single-node-writer"], Seen::ByCsi),
            (&["/csi/per-alloc/1/blog/.rw-file-system-single-node-writer.do-csi"], Seen::ByCsi),
            (&["/csi/per-alloc/1/blog/.rw-file-system-single-node-writer"], Seen::Elsewhere),
            (&["/mnt/database"], Seen::Elsewhere),
            (&["/mnt/csi-backup"], Seen::Elsewhere),
            (&["/mnt/csi"], Seen::Elsewhere),
            (&["/home/ccsid/MCSI"], Seen::Elsewhere),
            (&["/mnt/staging/database"], Seen::Elsewhere),
            (&["/mnt/rw-file-system-single-node-writer"], Seen::Elsewhere),
            (&["/mnt/staging/rw-archive"], Seen::Elsewhere),
            (&["/mnt/csi/kubernetes.io"], Seen::Elsewhere),
        ];
        for (targets, want) in table {
            let targets: Vec<&Path> = targets.iter().map(Path::new).collect();
            assert_eq!(plan_use(&targets), want, "{targets:?}");
        }
    }
}
