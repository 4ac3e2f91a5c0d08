//! How full the volume at a mount is, and whether it still works.
//!
//! Owns the reading of a file system's or a device's size at a mount, and of its state. It changes nothing and takes no
//! lock. A mount that does not answer keeps its caller waiting in the kernel.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::error::{Error, Result};
use crate::host::device::DevicePlaces;
use crate::host::ext_errors::{RecordedErrors, observe_recorded_errors};
use crate::host::mount_health::Health;
use crate::host::mountinfo::{Mount, MountTable};

/// A total and how it is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// All there is.
    pub total: u64,
    /// What is taken.
    pub used: u64,
    /// What an ordinary user can still take.
    pub available: u64,
}

/// The use of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// The size of a raw disk, in bytes. Only its user knows how much of it is used.
    Size(u64),
    /// Space, in bytes.
    Bytes(Counts),
    /// Files and directories.
    Inodes(Counts),
}

/// Whether a volume works, as far as its mount tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It does.
    Normal,
    /// Its disk is gone, or its file system was shut down.
    Dead(Health),
    /// It is read-only although it was mounted for writing: the kernel has found errors and recorded them.
    ReadOnlyByError(Option<RecordedErrors>),
    /// It can be written, but the kernel has recorded errors.
    WithErrors(RecordedErrors),
}

/// What there is to say of the volume at a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountReport {
    /// How full it is; nothing when it does not answer any more.
    pub usage: Vec<Usage>,
    /// Whether it works.
    pub condition: Condition,
}

/// Returns how full the volume at a mount is, and whether it works. The caller has already examined its health. `mount`
/// is the topmost mount that `mounts` shows at its target.
///
/// # Errors
/// [`Error::Io`] when it does not answer for an unknown reason.
pub(crate) fn observe_report(
    places: &DevicePlaces,
    mounts: &MountTable,
    mount: &Mount,
    health: Health,
) -> Result<MountReport> {
    let errors = match health {
        Health::Alive => observe_recorded_errors(places, mount)?,
        Health::DiskGone | Health::ShutDown | Health::NodeGone => None,
    };
    let condition = plan_condition(mount, health, errors, mounts);
    let usage = match &condition {
        Condition::Dead(_) => Vec::new(),
        Condition::Normal | Condition::ReadOnlyByError(_) | Condition::WithErrors(_) => {
            if mount.is_node() {
                vec![observe_device_size(&mount.target)?]
            } else {
                observe_fs_usage(&mount.target)?
            }
        }
    };
    Ok(MountReport { usage, condition })
}

/// Decides what a mount's state means. A read-only mount of a broken file system is told by the mounts beside it. Pure.
fn plan_condition(mount: &Mount, health: Health, errors: Option<RecordedErrors>, mounts: &MountTable) -> Condition {
    match health {
        Health::DiskGone | Health::ShutDown | Health::NodeGone => Condition::Dead(health),
        Health::Alive => {
            let is_same = |other: &&Mount| other.device == mount.device && !other.is_node();
            let is_read_only = !mount.is_node() && mounts.iter().filter(is_same).any(Mount::is_read_only_by_error);
            if is_read_only {
                return Condition::ReadOnlyByError(errors);
            }
            errors.map_or(Condition::Normal, Condition::WithErrors)
        }
    }
}

fn observe_device_size(node: &Path) -> Result<Usage> {
    let size = File::open(node).and_then(|mut file| file.seek(SeekFrom::End(0)));
    size.map(Usage::Size).map_err(Error::io("measuring", node))
}

fn observe_fs_usage(mounted_at: &Path) -> Result<Vec<Usage>> {
    let fs = statvfs(mounted_at).map_err(Error::errno("measuring", mounted_at))?;
    let bytes = |blocks: u64| blocks.saturating_mul(fs.fragment_size());
    let space = Usage::Bytes(Counts {
        total: bytes(fs.blocks()),
        used: bytes(fs.blocks().saturating_sub(fs.blocks_free())),
        available: bytes(fs.blocks_available()),
    });
    let inodes = Usage::Inodes(Counts {
        total: fs.files(),
        used: fs.files().saturating_sub(fs.files_free()),
        available: fs.files_available(),
    });
    // btrfs makes inodes as it needs them, and says that it has none.
    Ok(if fs.files() == 0 { vec![space] } else { vec![space, inodes] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_abnormal_when_it_is_dead_or_cannot_be_written_where_it_should_be() {
        let table = |lines: &str| MountTable::parse(lines.as_bytes()).unwrap();
        let condition = |lines: &str, health, errors| {
            let mounts = table(lines);
            plan_condition(mounts.iter().next().unwrap(), health, errors, &mounts)
        };
        let recorded = || RecordedErrors { count: 1, first_at: None, first_in: "ext4_lookup:1".to_owned() };
        let (rw, ro) = ("9 1 8:0 / /a rw - xfs /dev/sda rw\n", "9 1 8:0 / /a ro - xfs /dev/sda ro\n");
        let broken = "10 1 8:0 / /b rw - xfs /dev/sda ro\n";
        let broken_other = "10 1 8:16 / /b rw - xfs /dev/sdb ro\n";
        let node = "9 1 0:5 /sda /n rw - devtmpfs udev ro\n";
        for (lines, want) in [
            (rw.to_owned(), Condition::Normal),
            (ro.to_owned(), Condition::Normal),
            (broken.to_owned(), Condition::ReadOnlyByError(None)),
            (format!("{ro}{broken}"), Condition::ReadOnlyByError(None)),
            (format!("{ro}{broken_other}"), Condition::Normal),
            (node.to_owned(), Condition::Normal),
        ] {
            assert_eq!(condition(&lines, Health::Alive, None), want, "{lines}");
            let with_errors = match want {
                Condition::ReadOnlyByError(_) => Condition::ReadOnlyByError(Some(recorded())),
                Condition::Normal | Condition::Dead(_) | Condition::WithErrors(_) => Condition::WithErrors(recorded()),
            };
            assert_eq!(condition(&lines, Health::Alive, Some(recorded())), with_errors, "{lines}");
            for health in [Health::DiskGone, Health::ShutDown] {
                assert_eq!(condition(&lines, health, Some(recorded())), Condition::Dead(health), "{lines}");
            }
        }
    }
}
