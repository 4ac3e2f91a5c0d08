//! What a node call has to do, decided from what was seen.
//!
//! Owns the decisions for staging and publishing. Pure: no disk, no clock, no log; the caller has already looked. A
//! disk whose content is unknown never counts as blank, and only the volume itself is ever unmounted to make room.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::fs::FsKind;
use crate::host::device::Device;
use crate::host::mount_health::Health;
use crate::host::probe::content::Content;
use crate::id::VolumeName;
use crate::request::capability::AccessMode;

/// What is mounted at a path, seen from a volume's disk and from what is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MountPointState {
    /// Nothing.
    Free,
    /// The volume, alive and as asked.
    AsRequested,
    /// The volume, alive, but not as requested; the difference, as a phrase.
    Mismatched(String),
    /// The volume, but read-only because the kernel has seen errors in it.
    ReadOnlyAfterError,
    /// Something else that is alive.
    Foreign {
        /// What it is, for the message.
        what: String,
    },
    /// A mount that answers only with errors, or whose disk is gone; nothing can be written to it any more.
    Dead(Health),
}

/// What to do with a place where the volume should be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MountPointPlan {
    /// It is there already, as asked.
    Keep,
    /// Mount it.
    Mount,
    /// Remove the dead mount first, which is in this state; then mount it.
    ClearThenMount(Health),
}

/// Decides about a place. `place` names it in messages.
///
/// # Errors
/// [`Error::MountedOtherwise`] when the volume is mounted there, but not as requested, [`Error::TargetTaken`] when
/// something else is mounted there, [`Error::MountBroken`] when the volume is mounted there and its mount is broken.
pub(super) fn plan_mount_point(place: &Path, at: &MountPointState) -> Result<MountPointPlan> {
    match at {
        MountPointState::Free => Ok(MountPointPlan::Mount),
        MountPointState::AsRequested => Ok(MountPointPlan::Keep),
        MountPointState::Dead(health) => Ok(MountPointPlan::ClearThenMount(*health)),
        MountPointState::Foreign { what } => Err(Error::TargetTaken { path: place.to_owned(), by: what.clone() }),
        MountPointState::Mismatched(how) => Err(Error::MountedOtherwise { path: place.to_owned(), how: how.clone() }),
        MountPointState::ReadOnlyAfterError => {
            Err(Error::MountBroken(format!("the mount at {} {BROKEN}", place.display())))
        }
    }
}

/// Judges a place right after the volume was mounted there.
///
/// # Errors
/// [`Error::MountBroken`] when anything but the volume as asked, and alive, is seen there.
pub(super) fn plan_mounted(place: &Path, at: &MountPointState) -> Result<()> {
    let seen = match at {
        MountPointState::AsRequested => return Ok(()),
        MountPointState::Free => "nothing is there",
        MountPointState::Mismatched(how) => how,
        MountPointState::ReadOnlyAfterError => BROKEN,
        MountPointState::Foreign { what } => what,
        // As long as anything uses a file system that was shut down, a new mount shows that same dead file system.
        MountPointState::Dead(_) => "it is dead; something still uses an older mount of it that died, stop that first",
    };
    Err(Error::MountBroken(format!("the volume was mounted at {}, but: {seen}", place.display())))
}

const BROKEN: &str = "is read-only because the kernel has seen errors in its file system; stop all that uses the volume on \
                      this droplet, and it is checked when it is staged next";

/// How the file system of a disk is mounted already. All its mounts share one state in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Superblock {
    /// It is mounted nowhere.
    Unmounted,
    /// It is mounted and can be written to.
    Writable {
        /// Where.
        at: PathBuf,
        /// Its kind, as the kernel names it.
        fstype: String,
    },
    /// It is mounted, and every mount of it was asked to be read-only.
    ReadOnly {
        /// Where.
        at: PathBuf,
        /// Its kind, as the kernel names it.
        fstype: String,
    },
    /// It is mounted and became read-only by an error.
    Broken {
        /// Where.
        at: PathBuf,
    },
    /// It is mounted and answers only with errors.
    Dead {
        /// Where.
        at: PathBuf,
        /// What is wrong with it.
        health: Health,
    },
}

/// How a file system is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MountPlan {
    /// For the first time, after the disk was examined.
    First,
    /// Once more, as it is mounted already.
    Again(FsKind),
    /// Once more, read-only, while it stays writable elsewhere.
    AgainReadOnly {
        /// Where it is mounted already.
        at: PathBuf,
    },
    /// Once more, writable, while its other mounts stay read-only.
    AgainWritable(FsKind),
}

/// Decides how a file system is mounted beside its other mounts.
///
/// # Errors
/// [`Error::MountBroken`] when it was shut down and has to be unmounted everywhere first, or when it is mounted as a
/// file system that this plugin does not mount; [`Error::WrongFilesystem`] when another kind is requested.
pub(super) fn plan_mount(
    device: &Device,
    asked: Option<FsKind>,
    is_read_only: bool,
    superblock: &Superblock,
) -> Result<MountPlan> {
    match superblock {
        Superblock::Unmounted => Ok(MountPlan::First),
        Superblock::Writable { at, fstype } => {
            let kind = known_kind(device, asked, at, fstype)?;
            Ok(if is_read_only { MountPlan::AgainReadOnly { at: at.clone() } } else { MountPlan::Again(kind) })
        }
        Superblock::ReadOnly { at, fstype } => {
            let kind = known_kind(device, asked, at, fstype)?;
            Ok(if is_read_only { MountPlan::Again(kind) } else { MountPlan::AgainWritable(kind) })
        }
        Superblock::Broken { at } => Err(in_the_way(device, at, BROKEN)),
        Superblock::Dead { at, health } => {
            Err(in_the_way(device, at, &format!("is dead ({health}); stop what uses it there, and stage again")))
        }
    }
}

fn in_the_way(device: &Device, at: &Path, how: &str) -> Error {
    Error::MountBroken(format!("the mount of volume {} at {} {how}", device.volume(), at.display()))
}

fn known_kind(device: &Device, asked: Option<FsKind>, at: &Path, fstype: &str) -> Result<FsKind> {
    let Some(kind) = FsKind::parse(fstype) else {
        return Err(in_the_way(device, at, &format!("is of type {fstype}; unmount it first")));
    };
    match asked {
        Some(fs) if fs != kind => Err(wrong_filesystem(device, kind, fs)),
        Some(_) | None => Ok(kind),
    }
}

/// What has to happen to a disk before its file system can be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskPlan {
    /// Nothing: mount this file system.
    Mount(FsKind),
    /// Make this file system, then mount it: the disk is blank, or holds only the beginning of a format of ours.
    FormatThenMount(FsKind),
}

/// Whether a disk may be formatted if it is blank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Formatting {
    /// Yes.
    Allowed,
    /// No: the volume's own settings say so.
    Never,
    /// No: the volume is requested for reading only.
    ReadOnly,
}

/// Decides about a disk that is mounted nowhere. `asked` is the requested file system; `None`: the one on the disk, or
/// `default` on a blank disk.
///
/// # Errors
/// [`Error::WrongFilesystem`] when the disk holds another file system than the requested one, [`Error::WillNotFormat`]
/// when the disk is not certainly blank and holds no file system that we know, or when it must not be formatted.
pub(super) fn plan_disk(
    device: &Device,
    asked: Option<FsKind>,
    default: FsKind,
    formatting: Formatting,
    content: &Content,
) -> Result<DiskPlan> {
    match content {
        Content::Filesystem(found) => match asked {
            Some(fs) if fs != found.kind => Err(wrong_filesystem(device, found.kind, fs)),
            Some(_) | None => Ok(DiskPlan::Mount(found.kind)),
        },
        Content::AllZero => format_if_allowed(device, content, formatting, asked.unwrap_or(default)),
        Content::Unfinished(kind) => match asked {
            Some(fs) if fs != *kind => Err(will_not_format(device, content, LOOK)),
            Some(_) | None => format_if_allowed(device, content, formatting, *kind),
        },
        Content::Encrypted(_) => Err(will_not_format(device, content, ENCRYPTED)),
        Content::OtherSignature { .. } | Content::Ambivalent { .. } | Content::Unrecognised { .. } => {
            Err(will_not_format(device, content, LOOK))
        }
    }
}

const LOOK: &str = "nothing was changed; FIRSTsee what is on it with `blkid -p DEVICE` and `wipefs DEVICE`, which change \
                    nothing either, and make a snapshot before you repair anything; if an empty volume is needed, create \
                    another one";

const ENCRYPTED: &str = "nothing was changed; if it is to be used as an encrypted volume, say `encrypted = \"true\"` among \
                         its parameters, or in the context of one that is registered, and give its key among its \
                         secrets; FIRST`cryptsetup luksDump DEVICE` shows more of it";

fn format_if_allowed(device: &Device, content: &Content, formatting: Formatting, fs: FsKind) -> Result<DiskPlan> {
    match formatting {
        Formatting::Allowed => Ok(DiskPlan::FormatThenMount(fs)),
        Formatting::Never => {
            let cure = "its volume context says noformat: if it is meant to be new, take that setting away";
            Err(will_not_format(device, content, cure))
        }
        Formatting::ReadOnly => {
            let cure = "it is asked for read-only: use it once for writing, which formats it";
            Err(will_not_format(device, content, cure))
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

fn will_not_format(device: &Device, content: &Content, cure: &str) -> Error {
    Error::WillNotFormat {
        volume: device.volume().clone(),
        device: device.path().to_owned(),
        found: format!("it holds {content}"),
        cure: cure.replace("FIRST", &device.manual_access().first).replace("DEVICE", &device.manual_access().path),
    }
}

/// Decides whether a volume may be used raw, or through a file system, together with its present users. `other` is a
/// place where it is used in the other way.
///
/// # Errors
/// [`Error::UsedOtherwise`] when there is one: writing to the raw disk below a mounted file system destroys the file
/// system.
pub(super) fn plan_exclusive_use(volume: &VolumeName, is_raw: bool, other: Option<&Path>) -> Result<()> {
    let (one, another) = if is_raw { ("a raw disk", "a file system") } else { ("a file system", "a raw disk") };
    other.map_or(Ok(()), |other| {
        Err(Error::UsedOtherwise(format!(
            "volume {volume} is used as {another} at {} and cannot be used as {one} at the same time",
            other.display()
        )))
    })
}

/// Decides whether one more target may show a volume. `other` is a place where it is shown already.
///
/// # Errors
/// [`Error::UsedOtherwise`] when the access mode allows a single target.
/// Source: CSI specification, NodePublishVolume, "volume published at another target_path".
pub(super) fn plan_target(volume: &VolumeName, mode: AccessMode, other: Option<&Path>) -> Result<()> {
    match (mode, other) {
        (AccessMode::SingleNodeSingleWriter, Some(other)) => Err(Error::UsedOtherwise(format!(
            "volume {volume} is in use at {}, and its access mode SINGLE_NODE_SINGLE_WRITER allows no second place",
            other.display()
        ))),
        (AccessMode::SingleNodeSingleWriter, None)
        | (
            AccessMode::SingleNodeWriter | AccessMode::SingleNodeReaderOnly | AccessMode::SingleNodeMultiWriter,
            Some(_) | None,
        ) => Ok(()),
    }
}

/// What to do with a disk's read-only flag before it is shown as a raw block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProtectionPlan {
    /// It is right.
    Keep,
    /// Make the disk refuse writes.
    Protect,
    /// Make it take writes again.
    Unprotect,
}

/// Decides about a disk's read-only flag, which holds for all users of the disk or for none. `other` is a place where
/// somebody else uses the disk.
///
/// # Errors
/// [`Error::UsedOtherwise`] when the disk would have to be both.
pub(super) fn plan_protection(
    volume: &VolumeName,
    is_read_only: bool,
    is_protected: bool,
    other: Option<&Path>,
) -> Result<ProtectionPlan> {
    match (is_read_only, is_protected, other) {
        (true, true, _) | (false, false, _) => Ok(ProtectionPlan::Keep),
        (true, false, None) => Ok(ProtectionPlan::Protect),
        (false, true, None) => Ok(ProtectionPlan::Unprotect),
        (_, _, Some(other)) => Err(Error::UsedOtherwise(format!(
            "volume {volume} is used otherwise at {}; a raw disk is read-only for all of a droplet or for nobody",
            other.display()
        ))),
    }
}

#[cfg(test)]
mod tests;
