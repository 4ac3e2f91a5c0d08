//! What is read of the node that this runs on, to say what is wrong with it.
//!
//! Owns these looks; none of them changes anything. `diagnosis::machine` says what follows.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::config::Config;
use crate::error::{Chain, Error};
use crate::fs::FsKind;
use crate::host::command::find_tools;
use crate::host::device::sysfs::check_is_sysfs;
use crate::host::external_volumes::is_usage;
use crate::host::inventory::VolumeHere;
use crate::host::mount_table::observe_mounts;
use crate::host::mountable::observe_missing_file_systems;
use crate::host::mountinfo::MountTable;
use crate::host::presence::observe_names;
use crate::ops::diagnosis::machine::{LeftDirectory, Machine};

/// The capability that mounting takes. Source: capabilities(7), `CAP_SYS_ADMIN`.
const CAP_SYS_ADMIN: u64 = 21;
/// The rule of DigitalOcean's images.
const AUTOMOUNT_RULE: &str = "/etc/udev/rules.d/99-digitalocean-automount.rules";
/// How long a directory is without a mount before it counts as left: a volume is mounted within the time of a call.
const LEFT_AFTER: Duration = Duration::from_secs(300);
/// The directories in which Nomad makes those for mounts, and how deep these may be: `NAMESPACE/VOLUME/USAGE`.
const WITH_MOUNTS: [&str; 2] = ["staging", "per-alloc"];
const DEPTH: usize = 3;
/// How many directories are told of at most.
const MOST_LEFT: usize = 50;

/// Reads what can be known of this node. `silent_plugin` says why the plugin at the socket does not answer, `metadata` why
/// nothing tells which droplet this is.
#[must_use]
pub fn observe_machine(
    config: &Config,
    here: &[&VolumeHere],
    silent_plugin: Option<String>,
    metadata: Option<String>,
) -> Machine {
    let mounts = observe_mounts().ok();
    Machine {
        may_mount: observe_may_mount(),
        sysfs: check_is_sysfs(&config.sys_dir).err().map(|err: Error| Chain(&err).to_string()),
        has_devices: mounts
            .as_ref()
            .map(|mounts| mounts.holding(Path::new("/dev")).is_some_and(|mount| mount.fstype == "devtmpfs")),
        missing_tool: find_tools().err().map(|missing| missing.to_string()),
        missing_file_systems: observe_missing_file_systems().into_iter().map(FsKind::name).collect(),
        is_selinux_enforced: fs::read_to_string(config.sys_dir.join("fs/selinux/enforce"))
            .is_ok_and(|text| text.trim() == "1"),
        has_label: config.selinux_label.is_some(),
        automount_rule: Some(PathBuf::from(AUTOMOUNT_RULE)).filter(|rule| rule.exists()),
        has_device_mapper: Path::new("/dev/mapper/control").exists(),
        volumes: here.len(),
        silent_plugin,
        metadata,
        left_directories: mounts.map_or_else(Vec::new, |mounts| observe_left_directories(config, here, &mounts)),
    }
}

/// Whether this process has the capability that mounting takes; `None`: the system does not tell.
fn observe_may_mount() -> Option<bool> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let set = u64::from_str_radix(set.trim(), 16).ok()?;
    Some(set & (1 << CAP_SYS_ADMIN) != 0)
}

/// The directories for mounts that have none, where Nomad makes them for this plugin: beside its socket, and where volumes are
/// mounted.
fn observe_left_directories(config: &Config, here: &[&VolumeHere], mounts: &MountTable) -> Vec<LeftDirectory> {
    let of_mount = |path: &Path| {
        let is_base = |above: &&Path| above.file_name().is_some_and(|name| WITH_MOUNTS.iter().any(|one| name == *one));
        path.ancestors().find(is_base).and_then(Path::parent).map(Path::to_owned)
    };
    let mounted = here.iter().flat_map(|volume| &volume.mounts).filter_map(|mount| of_mount(&mount.path));
    let bases: BTreeSet<PathBuf> = mounted.chain(config.socket.parent().map(Path::to_owned)).collect();
    let mut left = Vec::new();
    for directory in bases.iter().flat_map(|base| WITH_MOUNTS.map(|name| base.join(name))) {
        collect_left(&directory, DEPTH, mounts, &mut left);
    }
    left
}

fn collect_left(directory: &Path, depth: usize, mounts: &MountTable, left: &mut Vec<LeftDirectory>) {
    // What is mounted is not entered: a dead disk would answer no question about it.
    let names = observe_names(directory).ok().flatten().unwrap_or_default();
    for name in names {
        let path = directory.join(&name);
        if left.len() >= MOST_LEFT || mounts.at(&path).is_some() {
            continue;
        }
        if is_usage_directory(&name) {
            left.extend(observe_left(path));
        } else if depth > 1 {
            collect_left(&path, depth - 1, mounts, left);
        }
    }
}

fn is_usage_directory(name: &OsStr) -> bool {
    is_usage(&name.to_string_lossy())
}

/// The directory, if it has been without a mount for a while. A node for a raw volume that has none is a file, and counts as
/// empty.
fn observe_left(path: PathBuf) -> Option<LeftDirectory> {
    let metadata = fs::symlink_metadata(&path).ok()?;
    let age = SystemTime::now().duration_since(metadata.modified().ok()?).ok()?;
    if age < LEFT_AFTER {
        return None;
    }
    let is_empty = !metadata.is_dir() || observe_names(&path).ok().flatten()?.is_empty();
    Some(LeftDirectory { path, is_empty })
}
