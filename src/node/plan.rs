//! What a node call has to do, decided from what was seen.
//!
//! Owns the decisions for staging and publishing. Pure: no disk, no clock, no log; whoever calls has looked already. An
//! unknown is never taken for blank, and nothing that is not the volume is ever unmounted to make room.

use crate::error::{Error, Result};
use crate::host::content::{Content, FsKind};
use crate::host::device::Device;
use crate::host::mountinfo::Mount;

/// What is mounted at a path, seen from a volume's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountAt {
    /// Nothing.
    Free,
    /// The volume.
    Volume {
        /// The file system's name as the kernel has it.
        fstype: String,
        /// Whether nothing can be written through it.
        is_read_only: bool,
    },
    /// Something else, whose disk is alive.
    Other {
        /// What it is, for the message.
        what: String,
    },
    /// A mount whose disk is gone; nothing can be written to it any more.
    Dead,
}

/// How a file system is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedMount {
    /// The file system; none: whatever is on the disk.
    pub fs: Option<FsKind>,
    /// Whether it is to be mounted read-only.
    pub is_read_only: bool,
}

/// What to do with a place where the volume should be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacePlan {
    /// It is there already, as asked.
    Keep,
    /// Mount it.
    Mount,
    /// Take the dead mount away first, then mount it.
    ClearThenMount,
}

/// Decides about a place. `place` names it in messages.
///
/// # Errors
/// [`Error::Mismatch`] when the volume is mounted there otherwise than asked, [`Error::TargetTaken`] when something else is.
pub fn plan_place(place: &std::path::Path, want: WantedMount, at: &MountAt) -> Result<PlacePlan> {
    match at {
        MountAt::Free => Ok(PlacePlan::Mount),
        MountAt::Dead => Ok(PlacePlan::ClearThenMount),
        MountAt::Other { what } => Err(Error::TargetTaken { path: place.to_owned(), by: what.clone() }),
        MountAt::Volume { fstype, is_read_only } => {
            let mismatch = |have: &str, want: &str| Error::Mismatch {
                thing: format!("the mount at {}", place.display()),
                have: have.to_owned(),
                want: want.to_owned(),
            };
            match want.fs {
                Some(fs) if fs.name() != fstype => return Err(mismatch(fstype, fs.name())),
                Some(_) | None => {}
            }
            if *is_read_only == want.is_read_only {
                Ok(PlacePlan::Keep)
            } else {
                Err(mismatch(access(*is_read_only), access(want.is_read_only)))
            }
        }
    }
}

fn access(is_read_only: bool) -> &'static str {
    if is_read_only { "read-only access" } else { "read and write access" }
}

/// What has to happen to a disk before its file system can be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskPlan {
    /// Nothing: mount this file system.
    Mount(FsKind),
    /// Make this file system, then mount it: the disk is blank, or holds only the beginning of a format of ours.
    FormatThenMount(FsKind),
}

/// Decides about a disk.
///
/// # Errors
/// [`Error::WrongFilesystem`] when the disk holds another file system than asked, [`Error::WillNotFormat`] when it holds
/// anything that is neither a file system we know nor certainly nothing.
pub fn plan_disk(device: &Device, fs: Option<FsKind>, default: FsKind, content: &Content) -> Result<DiskPlan> {
    let asked = fs.unwrap_or(default);
    match content {
        Content::AllZero => Ok(DiskPlan::FormatThenMount(asked)),
        Content::Filesystem(found) => match fs {
            Some(fs) if fs != found.kind => Err(wrong_filesystem(device, found.kind, fs)),
            Some(_) | None => Ok(DiskPlan::Mount(found.kind)),
        },
        Content::Unfinished(kind) => match fs {
            Some(fs) if fs != *kind => Err(will_not_format(device, content)),
            Some(_) | None => Ok(DiskPlan::FormatThenMount(*kind)),
        },
        Content::OtherSignature { .. } | Content::Ambivalent { .. } | Content::Unrecognised { .. } => {
            Err(will_not_format(device, content))
        }
    }
}

fn wrong_filesystem(device: &Device, have: FsKind, want: FsKind) -> Error {
    Error::WrongFilesystem {
        volume: device.volume().clone(),
        device: device.path().to_owned(),
        have: have.to_string(),
        want: want.to_string(),
    }
}

fn will_not_format(device: &Device, content: &Content) -> Error {
    let path = device.path().display();
    Error::WillNotFormat {
        volume: device.volume().clone(),
        device: device.path().to_owned(),
        found: format!("it holds {content}"),
        cure: format!(
            "look at it with `blkid -p {path}` and `wipefs {path}`; if the data is of no use, clear it by hand"
        ),
    }
}

/// Sees a mount from a volume's disk. `is_alive` says whether the disk under the mount still works.
#[must_use]
pub fn plan_mount_at(mount: Option<&Mount>, device: &Device, is_alive: bool) -> MountAt {
    let Some(mount) = mount else { return MountAt::Free };
    let is_whole = mount.root == std::path::Path::new("/") || mount.is_node_of(device);
    if (mount.is_of(device) && is_whole) || mount.is_node_of(device) {
        return MountAt::Volume { fstype: mount.fstype.clone(), is_read_only: mount.is_read_only() };
    }
    if is_alive {
        let what = format!("{} ({}) is mounted there", mount.source.to_string_lossy(), mount.fstype);
        MountAt::Other { what }
    } else {
        MountAt::Dead
    }
}
