//! What is on a disk: nothing at all, a file system, an unfinished one, or something that must be left alone.
//!
//! Owns the rule that unknown content is never blank. A disk counts as blank only if reading it worked, every place
//! that `probe/places.rs` lists is zero, and, before anything is written, blkid finds nothing on it either. It does not
//! decide what to do with the disk, and never writes to it.

use std::fmt;

use crate::error::command::Exit;
use crate::error::{Error, Result};
use crate::fs::FsKind;
use crate::host::PROBE_BUDGET;
use crate::host::command::{Cmd, Runner, Tool};
use crate::host::device::Device;
use crate::host::probe::blkid::{Filesystem, Luks, Signature, parse_export};
use crate::host::probe::{Disk, Probe, Trace, find_unfinished, is_unfinished_xfs};

/// What is read first of all: in it is the head of every file system that this plugin makes.
const HEAD: u64 = 128 * 1024;

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing: every place looked at is zero, and blkid knows nothing.
    AllZero,
    /// A file system that can be mounted, or checked first.
    Filesystem(Filesystem),
    /// An unfinished file system: its mkfs was cut off, and certainly nothing was ever stored in it.
    Unfinished(FsKind),
    /// The header of an encrypted volume; its content cannot be seen from outside.
    Encrypted(Luks),
    /// A known signature of something else: a partition table, LVM, RAID, swap, another file system.
    OtherSignature {
        /// What it is, as a phrase.
        what: String,
    },
    /// Signatures that contradict each other.
    Ambivalent {
        /// Which ones, as far as blkid tells.
        what: String,
    },
    /// Bytes that nothing known explains, or a part of something whose beginning is missing.
    Unrecognised {
        /// Where they were seen, in bytes from the start of the disk.
        at: u64,
        /// What they are a part of, as far as they have a name.
        what: Option<&'static str>,
    },
}

impl Content {
    /// The head of an encrypted volume, if that is what is there.
    pub(in crate::host) fn luks(&self) -> Option<&Luks> {
        match self {
            Content::Encrypted(luks) => Some(luks),
            Content::AllZero
            | Content::Unrecognised { .. }
            | Content::Filesystem(_)
            | Content::Unfinished(_)
            | Content::OtherSignature { .. }
            | Content::Ambivalent { .. } => None,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::AllZero => f.write_str("nothing"),
            Content::Filesystem(found) => write!(f, "{}", found.kind),
            Content::Unfinished(kind) => write!(f, "the beginning of {kind}, whose making was cut off"),
            Content::Encrypted(_) => f.write_str("an encrypted volume (LUKS)"),
            Content::OtherSignature { what } => f.write_str(what),
            Content::Ambivalent { what } => write!(f, "contradicting signatures ({what})"),
            Content::Unrecognised { at, what: Some(what) } => {
                write!(
                    f,
                    "{what} at byte {at}, but nothing that blkid knows at its beginning, which may have been overwritten"
                )
            }
            Content::Unrecognised { at, what: None } => write!(f, "unknown data (seen at byte {at})"),
        }
    }
}

/// Looks at what is on a disk. Writes nothing, and reads the disk itself, not memory. For a disk that is about to be written
/// to there is [`confirm_content`].
///
/// # Errors
/// [`Error::Io`] when any part that must be looked at cannot be read, [`Error::Command`] when blkid does not answer,
/// [`Error::WrongDevice`] when the disk was replaced since it was found.
/// Source: blkid(8), "EXIT STATUS": 2 stands for "nothing found" and for "cannot be read" alike, which is why the disk is
/// then read here too.
pub fn observe_content(runner: &dyn Runner, device: &Device) -> Result<Content> {
    look(runner, device, Asked::Unless)
}

/// As [`observe_content`], and asks blkid even if everything that was read is zero: before the first write to a disk,
/// two independent answers are needed.
///
/// # Errors
/// As [`observe_content`].
pub fn confirm_content(runner: &dyn Runner, device: &Device) -> Result<Content> {
    look(runner, device, Asked::Always)
}

/// When blkid is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Always.
    Always,
    /// Unless the disk is blank as it is.
    Unless,
}

fn look(runner: &dyn Runner, device: &Device, asked: Asked) -> Result<Content> {
    let disk = Disk::open(device)?;
    // A disk in use has its header in the right place. The rest of the disk need not be read.
    let is_headless = disk.is_zero_before(HEAD.min(disk.size()))?;
    let early = if is_headless { Some(Probe::read(&disk)?) } else { None };
    if asked == Asked::Unless && early.as_ref().is_some_and(|probe| probe.first_non_zero.is_none()) {
        return Ok(Content::AllZero);
    }
    let cmd = Cmd::new(Tool::Blkid, PROBE_BUDGET).args(["-p", "-o", "export"]).arg(device.path());
    let failed =
        |source| Error::Command { doing: format!("looking for signatures on {}", device.path().display()), source };
    let out = runner.run(&cmd).map_err(failed)?;
    match out.exit {
        Exit::Code(0) => {
            let seen_at = early.and_then(|probe| probe.first_non_zero);
            plan_known(parse_export(&String::from_utf8_lossy(&out.stdout)), seen_at, || is_unfinished_xfs(&disk))
        }
        Exit::Code(2) => Ok(plan_unknown(match early {
            Some(probe) => probe,
            None => Probe::read(&disk)?,
        })),
        Exit::Code(8) => Ok(Content::Ambivalent { what: "blkid finds several, equally likely".into() }),
        Exit::Code(_) | Exit::Signal(_) | Exit::TimedOut | Exit::Stuck => Err(failed(out.into_error(&cmd))),
    }
}

/// The file system of which a disk holds only the beginning, as far as the disk's own bytes say so. What blkid finds is
/// not asked for; for a disk that is going to be used without a file system.
///
/// # Errors
/// As [`observe_content`].
pub fn observe_unfinished(device: &Device) -> Result<Option<FsKind>> {
    find_unfinished(&Disk::open(device)?)
}

/// What a disk is on which blkid finds something. `seen_at` is where the first byte was seen of a disk whose head is zero.
fn plan_known(
    signature: Signature,
    seen_at: Option<u64>,
    is_unfinished_xfs: impl FnOnce() -> Result<bool>,
) -> Result<Content> {
    Ok(match signature {
        // Only XFS has its name on the disk before it is finished.
        Signature::Filesystem(found) if found.kind == FsKind::Xfs && is_unfinished_xfs()? => {
            Content::Unfinished(FsKind::Xfs)
        }
        Signature::Filesystem(found) => Content::Filesystem(found),
        Signature::Encrypted(luks) => Content::Encrypted(luks),
        Signature::Other { what } => Content::OtherSignature {
            what: seen_at.map_or_else(|| what.clone(), |at| format!("{what} (seen at byte {at})")),
        },
        Signature::Several { what } => Content::Ambivalent { what },
    })
}

/// What a disk is on which blkid finds nothing. Pure.
fn plan_unknown(probe: Probe) -> Content {
    match (probe.first_non_zero, probe.unfinished, probe.trace) {
        (None, _, _) => Content::AllZero,
        (Some(_), Some(kind), _) => Content::Unfinished(kind),
        (Some(_), None, Some(Trace { at, what })) => Content::Unrecognised { at, what: Some(what) },
        (Some(at), None, None) => Content::Unrecognised { at, what: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: FsKind) -> Signature {
        Signature::Filesystem(Filesystem { kind, uuid: None, label: None })
    }

    #[test]
    fn the_decision_table_in_full() {
        use FsKind::{Btrfs, Ext3, Ext4, Xfs};
        let (trace, what) = (Trace { at: 9, what: "a label" }, Some("a label"));
        for unfinished in [None, Some(Ext4), Some(Ext3), Some(Btrfs)] {
            for trace in [None, Some(trace)] {
                let blank = Probe { first_non_zero: None, trace, unfinished };
                assert_eq!(plan_unknown(blank), Content::AllZero);
                let want = match (unfinished, trace) {
                    (Some(kind), _) => Content::Unfinished(kind),
                    (None, Some(_)) => Content::Unrecognised { at: 9, what },
                    (None, None) => Content::Unrecognised { at: 7, what: None },
                };
                assert_eq!(plan_unknown(Probe { first_non_zero: Some(7), trace, unfinished }), want);
            }
        }
        for is_begun_xfs in [false, true] {
            let plan = |signature, seen_at| plan_known(signature, seen_at, || Ok(is_begun_xfs)).unwrap();
            for kind in FsKind::ALL {
                let whole = Content::Filesystem(Filesystem { kind, uuid: None, label: None });
                let want = if kind == Xfs && is_begun_xfs { Content::Unfinished(Xfs) } else { whole };
                assert_eq!(plan(found(kind), None), want, "{kind} {is_begun_xfs}");
            }
            let luks = Luks { version: Some(2), subsystem: None };
            assert_eq!(plan(Signature::Encrypted(luks.clone()), None), Content::Encrypted(luks));
            let other = |what: &str| Content::OtherSignature { what: what.to_owned() };
            let lvm = || Signature::Other { what: "LVM".to_owned() };
            assert_eq!(plan(lvm(), None), other("LVM"));
            assert_eq!(plan(lvm(), Some(7)), other("LVM (seen at byte 7)"));
            let what = "LVM".to_owned();
            assert_eq!(plan(Signature::Several { what: what.clone() }, None), Content::Ambivalent { what });
        }
        let unreadable = || Err(Error::Bug("it cannot be read".to_owned()));
        assert!(plan_known(found(Xfs), None, unreadable).is_err());
        assert!(plan_known(found(Ext4), None, unreadable).is_ok());
    }

    #[test]
    fn file_systems_are_known_by_their_names_only() {
        for kind in FsKind::ALL {
            assert_eq!(FsKind::parse(kind.name()), Some(kind));
        }
        for other in ["", "ext2", "XFS", "xfs ", "ntfs", "vfat"] {
            assert_eq!(FsKind::parse(other), None, "{other}");
        }
    }
}
