//! What is on a disk: nothing at all, a file system, one whose making was cut off, or something that must be left alone.
//!
//! Owns the rule that an unknown is never blank. A disk counts as blank only if reading it worked, blkid knows nothing on
//! it, and its first 4 MiB, the 4 MiB from 16 MiB on, its last 4 MiB and 64 samples spread between are all zero. It decides
//! nothing about what is then done with the disk, and writes to none.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::blkid::{Signature, parse_export};
use super::device::Device;
use super::run::{Cmd, Exit, Runner, Tool};
use super::superblock::{is_unfinished_btrfs, is_unfinished_xfs};
use super::{PROBE_BUDGET, ext_unfinished, marker};
use crate::error::{Error, Result};

/// How much is read at either end of a disk.
pub(super) const EDGE: u64 = 4 * 1024 * 1024;
/// Where the data of an encrypted volume begins, as cryptsetup makes them: as much as at the ends is read there, for a
/// volume whose head was lost is certainly not zero there, if anything was ever stored in it.
const INNER: u64 = super::container::DATA_AT;
/// How many places between the ends are looked at, and how much of each.
const SAMPLES: u64 = 64;
const SAMPLE: u64 = 4096;
/// Reads and comparisons are done in pieces of this size.
const PIECE: usize = 64 * 1024;
static ZEROS: [u8; PIECE] = [0; PIECE];

/// A file system that this plugin makes and mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FsKind {
    /// XFS.
    Xfs,
    /// ext4.
    Ext4,
    /// ext3.
    Ext3,
    /// btrfs.
    Btrfs,
}

impl FsKind {
    /// Every kind.
    pub const ALL: [FsKind; 4] = [FsKind::Xfs, FsKind::Ext4, FsKind::Ext3, FsKind::Btrfs];

    /// Reads the name that mount(8), blkid and a CSI request use.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        FsKind::ALL.into_iter().find(|kind| kind.name() == text)
    }

    /// The name for mount(2), as blkid prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FsKind::Xfs => "xfs",
            FsKind::Ext4 => "ext4",
            FsKind::Ext3 => "ext3",
            FsKind::Btrfs => "btrfs",
        }
    }
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A file system on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Its kind.
    pub kind: FsKind,
    /// Its UUID in lower case.
    pub uuid: Option<String>,
    /// Its label.
    pub label: Option<String>,
}

/// The head of an encrypted volume, as far as blkid reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Luks {
    /// The version of its format: 1 or 2.
    pub version: Option<u32>,
    /// What its maker wrote into it; only version 2 has room for that.
    pub subsystem: Option<String>,
}

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing: every place looked at is zero, and blkid knows nothing.
    AllZero,
    /// A file system that can be mounted, or checked first.
    Filesystem(Filesystem),
    /// The beginning of a file system, whose making was cut off: certainly nothing was ever stored in it.
    Unfinished(FsKind),
    /// The head of an encrypted volume; what is in it is not seen from outside.
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
    /// Bytes that nothing known explains.
    Unrecognised {
        /// Where the first one was seen, in bytes from the start of the disk.
        at: u64,
    },
}

impl Content {
    /// The head of an encrypted volume, if that is what is there.
    pub(super) fn luks(&self) -> Option<&Luks> {
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
            Content::Unrecognised { at } => write!(f, "unknown data (seen at byte {at})"),
        }
    }
}

/// Looks at what is on a disk. Writes nothing, and reads the disk itself, not memory.
///
/// # Errors
/// [`Error::Io`] when any part that must be looked at cannot be read, [`Error::Command`] when blkid does not answer,
/// [`Error::WrongDevice`] when the disk was replaced since it was found.
/// Source: blkid(8), "EXIT STATUS": 2 stands for "nothing found" and for "cannot be read" alike, which is why the disk is
/// then read here too.
pub fn observe_content(runner: &dyn Runner, device: &Device) -> Result<Content> {
    let disk = Disk::open(device)?;
    let cmd = Cmd::new(Tool::Blkid, PROBE_BUDGET).args(["-p", "-o", "export"]).arg(device.path());
    let failed =
        |source| Error::Command { doing: format!("looking for signatures on {}", device.path().display()), source };
    let out = runner.run(&cmd).map_err(failed)?;
    match out.exit {
        Exit::Code(0) => {
            let is_begun = is_unfinished_xfs(&disk.read(0, device.size().0.min(SAMPLE))?);
            Ok(plan_known(is_begun, parse_export(&String::from_utf8_lossy(&out.stdout))))
        }
        Exit::Code(2) => Ok(plan_unknown(&Probe::read(&disk)?)),
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
    let disk = Disk::open(device)?;
    let head = disk.read(0, device.size().0.min(EDGE))?;
    find_unfinished(&head, device.size().0, |at, length| disk.read(at, length))
}

/// A disk that is read, with nothing of it left in memory from before.
pub(super) struct Disk<'a> {
    file: File,
    device: &'a Device,
}

impl<'a> Disk<'a> {
    pub(super) fn open(device: &'a Device) -> Result<Self> {
        let file = device.open()?;
        let advise = |advice| posix_fadvise(&file, 0, 0, advice).map_err(Error::errno("reading", device.path()));
        // Pages still in memory from an earlier use would prove nothing about the disk.
        advise(PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        // The samples lie far apart: reading ahead of each would only cost time.
        advise(PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
        Ok(Disk { file, device })
    }

    pub(super) fn read(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        read_exactly(&self.file, at, length).map_err(Error::io("reading", self.device.path()))
    }
}

/// What was read from a disk, besides blkid's opinion.
#[derive(Debug)]
struct Probe {
    first_non_zero: Option<u64>,
    unfinished: Option<FsKind>,
}

impl Probe {
    fn read(disk: &Disk<'_>) -> Result<Self> {
        let size = disk.device.size().0;
        let read = |at, length| disk.read(at, length);
        let head = read(0, size.min(EDGE))?;
        let mut first_non_zero = first_non_zero(&head);
        for (at, length) in places_between(size) {
            // Every place is read even when the answer is known: a disk that cannot be read is not to be written to.
            let found = self::first_non_zero(&read(at, length)?).map(|offset| at.saturating_add(offset));
            first_non_zero = first_non_zero.or(found);
        }
        Ok(Probe { first_non_zero, unfinished: find_unfinished(&head, size, read)? })
    }
}

/// The file system whose making was cut off on this disk, where that is certain. It may have been begun anew since: what
/// blkid finds goes first, except for the superblock that says so itself.
fn find_unfinished(head: &[u8], size: u64, read: impl Fn(u64, u64) -> Result<Vec<u8>>) -> Result<Option<FsKind>> {
    if is_unfinished_xfs(head) {
        return Ok(Some(FsKind::Xfs));
    }
    if is_unfinished_btrfs(head) {
        return Ok(Some(FsKind::Btrfs));
    }
    match marker::find(head) {
        Some(kind) => Ok(Some(kind)),
        None => ext_unfinished::find(head, size, read),
    }
}

/// Reads exactly this range; the end of the disk before its end is an error, never fewer bytes.
fn read_exactly(file: &File, at: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// Where a disk of this size is looked at before it counts as blank, as offset and length, from its beginning to its end.
pub(super) fn places(size: u64) -> impl DoubleEndedIterator<Item = (u64, u64)> {
    let between: Vec<_> = places_between(size).collect();
    std::iter::once((0, size.min(EDGE))).chain(between)
}

/// Where a disk of this size is looked at after its head, as offset and length, in order: where the data of an encrypted
/// volume begins, 64 samples, and the last 4 MiB.
fn places_between(size: u64) -> impl Iterator<Item = (u64, u64)> {
    let tail = size.saturating_sub(EDGE).max(size.min(EDGE));
    let span = tail.saturating_sub(EDGE);
    let step = span / SAMPLES;
    let samples = (0..SAMPLES).filter(move |_| span >= SAMPLE).map(move |i| {
        let middle = EDGE + step * i + step / 2;
        let at = (middle - middle % SAMPLE).min(tail.saturating_sub(SAMPLE));
        (at, SAMPLE)
    });
    let inner = (INNER < tail).then(|| (INNER, EDGE.min(tail - INNER)));
    let mut between: Vec<_> = samples.chain(inner).collect();
    between.sort_unstable();
    between.into_iter().chain(std::iter::once((tail, size - tail)))
}

/// The offset of the first byte that is not zero.
pub(super) fn first_non_zero(bytes: &[u8]) -> Option<u64> {
    let mut start = 0;
    for piece in bytes.chunks(PIECE) {
        if Some(piece) != ZEROS.get(..piece.len()) {
            let within = piece.iter().position(|byte| *byte != 0)?;
            return u64::try_from(start + within).ok();
        }
        start += piece.len();
    }
    None
}

/// What a disk is on which blkid finds something. Pure.
fn plan_known(is_begun_xfs: bool, signature: Signature) -> Content {
    match signature {
        // Only XFS has its name on the disk before it is finished.
        Signature::Filesystem(found) if found.kind == FsKind::Xfs && is_begun_xfs => Content::Unfinished(FsKind::Xfs),
        Signature::Filesystem(found) => Content::Filesystem(found),
        Signature::Encrypted(luks) => Content::Encrypted(luks),
        Signature::Other { what } => Content::OtherSignature { what },
        Signature::Several { what } => Content::Ambivalent { what },
    }
}

/// What a disk is on which blkid finds nothing. Pure.
fn plan_unknown(probe: &Probe) -> Content {
    match (probe.first_non_zero, probe.unfinished) {
        (None, _) => Content::AllZero,
        // An XFS superblock that blkid does not believe in is not certain.
        (Some(_), Some(kind @ (FsKind::Ext4 | FsKind::Ext3 | FsKind::Btrfs))) => Content::Unfinished(kind),
        (Some(at), Some(FsKind::Xfs) | None) => Content::Unrecognised { at },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(kind: FsKind) -> Signature {
        Signature::Filesystem(Filesystem { kind, uuid: None, label: None })
    }

    #[test]
    fn the_decision_table_in_full() {
        use FsKind::{Btrfs, Ext3, Ext4, Xfs};
        let unfinished = [None, Some(Xfs), Some(Ext4), Some(Ext3), Some(Btrfs)];
        for first_non_zero in [None, Some(7)] {
            for unfinished in unfinished {
                let probe = Probe { first_non_zero, unfinished };
                let unknown = match (first_non_zero, unfinished) {
                    (None, _) => Content::AllZero,
                    (Some(_), Some(kind)) if kind != Xfs => Content::Unfinished(kind),
                    (Some(at), _) => Content::Unrecognised { at },
                };
                assert_eq!(plan_unknown(&probe), unknown, "{probe:?}");
            }
        }
        for is_begun_xfs in [false, true] {
            for kind in FsKind::ALL {
                let whole = Content::Filesystem(Filesystem { kind, uuid: None, label: None });
                let want = if kind == Xfs && is_begun_xfs { Content::Unfinished(Xfs) } else { whole };
                assert_eq!(plan_known(is_begun_xfs, found(kind)), want, "{kind} {is_begun_xfs}");
            }
            let luks = Luks { version: Some(2), subsystem: None };
            let encrypted = plan_known(is_begun_xfs, Signature::Encrypted(luks.clone()));
            assert_eq!(encrypted, Content::Encrypted(luks));
            let what = "LVM".to_owned();
            let other = plan_known(is_begun_xfs, Signature::Other { what: what.clone() });
            assert_eq!(other, Content::OtherSignature { what: what.clone() });
            let several = plan_known(is_begun_xfs, Signature::Several { what: what.clone() });
            assert_eq!(several, Content::Ambivalent { what });
        }
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

    proptest! {
        #[test]
        fn what_is_looked_at_lies_on_the_disk_and_its_last_byte_is_in_it(sectors in 1_u64..(1 << 35)) {
            let size = sectors * 512;
            let places: Vec<_> = places_between(size).collect();
            prop_assert!(places.iter().all(|(at, length)| at + length <= size));
            let (tail, length) = *places.last().unwrap();
            prop_assert_eq!(tail + length, size);
            prop_assert!(size <= EDGE || tail <= EDGE || length == EDGE);
            let samples = if size >= 2 * EDGE + SAMPLE { 64 } else { 0 };
            let has_inner = size > INNER + EDGE;
            prop_assert_eq!(places.len(), samples + usize::from(has_inner) + 1);
            prop_assert!(places.is_sorted());
            if has_inner {
                let inner = places.iter().find(|(at, length)| (*at, *length) == (INNER, EDGE.min(tail - INNER)));
                prop_assert!(inner.is_some());
            }
            // No two neighbours are further apart than a 64th of what lies between the ends, and one sample.
            let gap = size / SAMPLES + 2 * SAMPLE;
            let mut end = size.min(EDGE);
            for (at, length) in places {
                prop_assert!(at <= end + gap);
                end = end.max(at + length);
            }
        }

        #[test]
        fn any_byte_that_is_not_zero_is_found(length in 1_usize..200_000, at in any::<prop::sample::Index>(), byte in 1_u8..) {
            let mut bytes = vec![0; length];
            prop_assert_eq!(first_non_zero(&bytes), None);
            bytes[at.index(length)] = byte;
            prop_assert_eq!(first_non_zero(&bytes), Some(u64::try_from(at.index(length)).unwrap()));
        }
    }
}
