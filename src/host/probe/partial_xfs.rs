//! Proof that nothing is stored in half an XFS.
//!
//! Owns one question. mkfs.xfs writes the superblock first, with a byte in it that says "in progress", and clears that byte
//! last. The byte alone proves nothing: every copy of the superblock in a healthy file system has it too, and counts no
//! inodes, and a copy is what people put at the start of a disk by hand when the superblock there is damaged. So three things
//! must agree: the superblock is one of the two that mkfs.xfs itself leaves there, with the right checksum; every group's
//! headers and the log are as mkfs.xfs writes them, or still zero; and whatever else is looked at is zero.
//!
//! Source: `main`, `prepare_devices` and `finish_superblock_setup` of xfsprogs' `mkfs/xfs_mkfs.c`, for what is written and in
//! which order; `struct xfs_dsb`, `xfs_agf`, `xfs_agi` and `xfs_agfl` in the kernel's `fs/xfs/libxfs/xfs_format.h`, for where
//! it lies. All numbers are big-endian, but for the checksums.

use crate::error::Result;
use crate::host::probe::superblock::bytes_at;
use crate::host::probe::{Disk, crc32c, first_non_zero};

/// The largest sector, and so all of the superblock that is read.
const LARGEST_SECTOR: u64 = 4096;
/// How many groups are followed: mkfs.xfs makes 4 on one disk, and 17 on the largest volume.
const MOST_GROUPS: u64 = 4096;
/// How much of a group mkfs.xfs may write to: its headers and first trees, and in the first group three inodes.
const HEAD_OF_GROUP: u64 = 1024 * 1024;
/// How many blocks of a group the headers and first trees take at most.
const MOST_BLOCKS_OF_HEAD: u64 = 64;
/// How much of the log is read. A log that the kernel has written to is not zero there, also when it has gone round.
const HEAD_OF_LOG: u64 = 64 * 1024;
/// The one record that mkfs.xfs writes to the log: its header and its data, each a sector of this size, and then as many
/// more as a write to the log has at least, each with the cycle's number in front.
const LOG_SECTOR: usize = 512;
/// The inodes that are made together, and those of them that mkfs.xfs leaves free: it uses three.
const INODES: (u64, u64) = (64, 61);

/// Whether this disk holds the beginning of an XFS, and certainly nothing else.
pub(super) fn is_there(disk: &Disk<'_>) -> Result<bool> {
    let head = disk.read_head(LARGEST_SECTOR)?;
    let Some(xfs) = Begun::parse(&head).filter(|xfs| xfs.fits(disk.size())) else { return Ok(false) };
    for number in 0..xfs.groups {
        let headers = disk.read(xfs.group_at(number), xfs.sector * 4)?;
        if !xfs.is_untouched_group(number, &headers) {
            return Ok(false);
        }
    }
    let log = disk.read(xfs.log_at, HEAD_OF_LOG.min(xfs.log_length()))?;
    if !xfs.is_unwritten_log(&log) {
        return Ok(false);
    }
    disk.is_explained(|at, _| Ok(xfs.is_written_by_mkfs(at)))
}

/// An XFS whose superblock is one of those that mkfs.xfs leaves at the start of a disk when it is cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Begun {
    sector: u64,
    block: u64,
    blocks: u64,
    group_blocks: u64,
    groups: u64,
    log_at: u64,
    log_group: u64,
    log_blocks: u64,
    log_record: usize,
    inode: u64,
    /// What its copies have in common with it: sizes and identity.
    shape: [u8; 72],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u16::from_be_bytes).map(u64::from)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u32::from_be_bytes).map(u64::from)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_be_bytes)
}

fn log_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at::<1>(bytes, at).map(|[log]| u32::from(log))
}

/// Whether a header has its name, and a checksum of all of it that is right.
fn is_sealed(bytes: &[u8], magic: [u8; 4], checksum_at: usize) -> bool {
    let Some((before, rest)) = bytes.split_at_checked(checksum_at) else { return false };
    let Some((stored, after)) = rest.split_first_chunk::<4>() else { return false };
    bytes_at(bytes, 0) == Some(magic) && u32::from_le_bytes(*stored) == crc32c([before, &[0; 4], after])
}

/// The length of the record that mkfs.xfs writes to the log: two sectors, or all that is written to the log in one go, of
/// which a size of 1 stands for a sector of the log.
///
/// Source: `libxfs_log_clear` in xfsprogs' `libxfs/rdwr.c`.
fn log_record(log_sector: u64, log_unit: u64) -> Option<usize> {
    let unit = if log_unit == 1 { log_sector } else { log_unit };
    usize::try_from(unit).ok().map(|unit| unit.max(2 * LOG_SECTOR)).filter(|record| *record <= 32 * 1024)
}

/// The parts of a superblock that are the same in all its copies.
fn shape(bytes: &[u8]) -> Option<[u8; 72]> {
    let mut shape = [0; 72];
    // Sizes up to the identifier and the log's place, then those of groups, log, sectors and inodes.
    let parts = bytes.get(4..56)?.iter().chain(bytes.get(84..104)?);
    shape.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
    Some(shape)
}

impl Begun {
    /// Reads the superblock; `None` for any that mkfs.xfs does not leave when it is cut off.
    fn parse(head: &[u8]) -> Option<Self> {
        const FIVE: u64 = 5;
        let sector = u16_at(head, 102)?;
        let bytes = head.get(..usize::try_from(sector).ok()?)?;
        let (block, blocks) = (u32_at(bytes, 4)?, u64_at(bytes, 8)?);
        let (group_blocks, groups) = (u32_at(bytes, 84)?, u32_at(bytes, 88)?);
        let (log_start, log_blocks) = (u64_at(bytes, 48)?, u32_at(bytes, 96)?);
        let is_sized = |size: u64, log: Option<u32>| log.and_then(|log| 1_u64.checked_shl(log)) == Some(size);
        let is_sound = is_sized(block, log_at(bytes, 120))
            && is_sized(sector, log_at(bytes, 121))
            && (512..=LARGEST_SECTOR).contains(&sector)
            && (1024..=65536).contains(&block)
            && group_blocks > 0
            && (1..=MOST_GROUPS).contains(&groups)
            && blocks.div_ceil(group_blocks) == groups;
        // Where the log begins is said as a group and a block in it.
        let in_group = log_at(bytes, 124).filter(|log| *log < 64)?;
        let (log_group, log_block) = (log_start >> in_group, log_start & ((1 << in_group) - 1));
        let has_log = log_start > 0 && log_blocks > 0 && log_group < groups && log_block + log_blocks <= group_blocks;
        let is_begun = u16_at(bytes, 100)? & 0xf == FIVE
            && log_at(bytes, 126) == Some(1)
            && is_sealed(bytes, *b"XFSB", 224)
            // No real-time part, and no change by a kernel.
            && (u64_at(bytes, 16)?, u64_at(bytes, 240)?) == (0, 0);
        let inodes = (u64_at(bytes, 128)?, u64_at(bytes, 136)?);
        let is_left_by_mkfs = match u64_at(bytes, 56)? {
            u64::MAX => inodes == (0, 0),
            _ => inodes == INODES,
        };
        let log_at = log_group.checked_mul(group_blocks)?.checked_add(log_block)?.checked_mul(block)?;
        (is_sound && has_log && is_begun && is_left_by_mkfs).then_some(Begun {
            sector,
            block,
            blocks,
            group_blocks,
            groups,
            log_at,
            log_group,
            log_blocks,
            log_record: log_record(u16_at(bytes, 194)?, u32_at(bytes, 196)?)?,
            inode: u16_at(bytes, 104)?,
            shape: shape(bytes)?,
        })
    }

    /// Whether it lies wholly on a disk of this size.
    fn fits(&self, size: u64) -> bool {
        self.blocks.checked_mul(self.block).is_some_and(|own| own <= size)
            && self.log_at.checked_add(self.log_length()).is_some_and(|end| end <= size)
            && self.group_at(self.groups - 1).checked_add(self.sector * 4).is_some_and(|end| end <= size)
    }

    fn group_at(&self, number: u64) -> u64 {
        number.saturating_mul(self.group_blocks).saturating_mul(self.block)
    }

    fn log_length(&self) -> u64 {
        self.log_blocks.saturating_mul(self.block)
    }

    /// Whether the four headers of a group are as mkfs.xfs writes them, each on its own: it may have been cut off before any,
    /// and an earlier mkfs.xfs, that was cut off too, may have left those with another identity.
    fn is_untouched_group(&self, number: u64, headers: &[u8]) -> bool {
        let Ok(sector) = usize::try_from(self.sector) else { return false };
        let mut sectors = headers.chunks_exact(sector);
        let mut next_is = |is_as_made: &dyn Fn(&[u8]) -> bool| {
            sectors.next().is_some_and(|header| first_non_zero(header).is_none() || is_as_made(header))
        };
        next_is(&|header| self.is_copy(number, header))
            && next_is(&|header| self.has_free_space(number, header))
            && next_is(&|header| self.has_no_inodes(number, header))
            && next_is(&|header| is_free_list(number, header))
    }

    /// The superblock of a group: in the first that which was read already, in the others a copy.
    fn is_copy(&self, number: u64, header: &[u8]) -> bool {
        let is_in_progress = log_at(header, 126) == Some(1);
        let counts = [u64_at(header, 128), u64_at(header, 136), u64_at(header, 240)];
        let is_alike = is_sealed(header, *b"XFSB", 224) && shape(header) == Some(self.shape) && is_in_progress;
        is_alike && (number == 0 || counts == [Some(0); 3])
    }

    /// The header of the free space: nothing is used but what the headers, the log and the first inodes take.
    fn has_free_space(&self, number: u64, header: &[u8]) -> bool {
        let is_own =
            is_sealed(header, *b"XAGF", 216) && u32_at(header, 8) == Some(number) && u64_at(header, 208) == Some(0);
        let log = if number == self.log_group { self.log_blocks } else { 0 };
        let inodes = if number == 0 { (INODES.0 * self.inode).div_ceil(self.block) } else { 0 };
        let used = u32_at(header, 12)
            .zip(u32_at(header, 52))
            .zip(u32_at(header, 48))
            .and_then(|((all, free), list)| all.checked_sub(free)?.checked_sub(list));
        is_own && used.is_some_and(|used| used <= MOST_BLOCKS_OF_HEAD + log + inodes)
    }

    /// The header of the inodes: none, and in the first group those that mkfs.xfs makes.
    fn has_no_inodes(&self, number: u64, header: &[u8]) -> bool {
        let is_own =
            is_sealed(header, *b"XAGI", 312) && u32_at(header, 8) == Some(number) && u64_at(header, 320) == Some(0);
        let is_as_made = match (u32_at(header, 16), u32_at(header, 28)) {
            (Some(0), Some(0)) => true,
            (Some(all), Some(free)) => number == 0 && all == INODES.0 && (INODES.1..=INODES.0).contains(&free),
            (Some(_) | None, None) | (None, Some(_)) => false,
        };
        is_own && is_as_made
    }

    /// Whether the log is zero, or has the one record that mkfs.xfs writes, and nothing behind it. Every mount writes more.
    ///
    /// Source: `struct xlog_rec_header` in the kernel's `fs/xfs/libxfs/xfs_log_format.h`.
    fn is_unwritten_log(&self, log: &[u8]) -> bool {
        const FIRST_CYCLE: u64 = 1;
        let Some((record, rest)) = log.split_at_checked(self.log_record) else { return false };
        let is_first = bytes_at(record, 0) == Some([0xfe, 0xed, 0xba, 0xbe]) && u32_at(record, 4) == Some(FIRST_CYCLE);
        let has_no_more = record.chunks(LOG_SECTOR).skip(2).all(|sector| {
            let is_marked = u32_at(sector, 0).is_some_and(|cycle| cycle <= FIRST_CYCLE);
            is_marked && sector.get(4..).is_some_and(|more| first_non_zero(more).is_none())
        });
        first_non_zero(rest).is_none() && (first_non_zero(record).is_none() || is_first && has_no_more)
    }

    /// Whether the block at this place is one that mkfs.xfs may write to.
    fn is_written_by_mkfs(&self, at: u64) -> bool {
        let in_group = at.checked_rem(self.group_blocks.saturating_mul(self.block));
        let is_in_log = at.checked_sub(self.log_at).is_some_and(|within| within < HEAD_OF_LOG);
        is_in_log || in_group.is_some_and(|within| within < HEAD_OF_GROUP)
    }
}

/// The list of blocks that are kept for the trees of a group's free space.
fn is_free_list(number: u64, header: &[u8]) -> bool {
    is_sealed(header, *b"XAFL", 32) && u32_at(header, 4) == Some(number) && u64_at(header, 24) == Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(bytes: &[u8], sector: usize, checksum_at: usize) -> Vec<u8> {
        let mut bytes = bytes[..sector].to_vec();
        bytes[checksum_at..checksum_at + 4].fill(0);
        let sum = crc32c([bytes.as_slice()]);
        bytes[checksum_at..checksum_at + 4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn with(bytes: &[u8], at: usize, patch: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        sealed(&bytes, bytes.len(), 224)
    }

    fn begun() -> &'static [u8] {
        &include_bytes!("../../../tests/fixtures/superblock/xfs-unfinished.bin")[..512]
    }

    fn finished() -> &'static [u8] {
        &include_bytes!("../../../tests/fixtures/superblock/xfs.bin")[..512]
    }

    #[test]
    fn only_the_two_superblocks_that_mkfs_leaves_are_accepted() {
        let head = Begun::parse(begun()).unwrap();
        assert_eq!((head.sector, head.block, head.groups), (512, 4096, 4));
        assert_eq!(Begun::parse(finished()), None);
        let inodes = |all: u64, free: u64| [all.to_be_bytes(), free.to_be_bytes()].concat();
        let second = with(&with(begun(), 56, &128_u64.to_be_bytes()), 128, &inodes(64, 61));
        assert!(Begun::parse(&second).is_some());
        assert!(Begun::parse(&with(finished(), 126, &[1])).is_some());
        let refused = [
            // The last copy of the superblock in a healthy file system: a root directory, and no inodes.
            ("a copy with a root directory", with(begun(), 56, &128_u64.to_be_bytes())),
            ("no root directory, but inodes", with(begun(), 128, &inodes(64, 61))),
            ("a file", with(&second, 128, &inodes(64, 60))),
            ("many files", with(&second, 128, &inodes(128, 100))),
            ("every inode free", with(&second, 128, &inodes(64, 64))),
            ("another name", with(begun(), 0, b"XFSC")),
            ("another block size", with(begun(), 4, &[0, 0, 2, 0])),
            ("no blocks", with(begun(), 8, &[0; 8])),
            ("a real-time part", with(begun(), 16, &[0, 0, 0, 0, 0, 0, 0, 1])),
            ("a log elsewhere", with(begun(), 48, &[0; 8])),
            ("a log beyond its group", with(begun(), 96, &[0, 255, 255, 255])),
            ("no groups", with(begun(), 88, &[0; 4])),
            ("too many groups", with(begun(), 88, &[0, 0, 0, 5])),
            ("an older format", with(begun(), 100, &[0xb4, 0xa4])),
            ("a sector of 100 bytes", with(begun(), 102, &[0, 100])),
            ("a wide block", with(begun(), 120, &[200])),
            ("a wide group", with(begun(), 124, &[200])),
            ("not in progress", with(begun(), 126, &[0])),
            ("2 for in progress", with(begun(), 126, &[2])),
            ("a change by a kernel", with(begun(), 240, &[0, 0, 0, 1, 0, 0, 0, 2])),
        ];
        for (what, head) in refused {
            assert_eq!(Begun::parse(&head), None, "{what}");
        }
        for (at, length) in [(8, 512), (0, 100), (0, 0)] {
            let mut spoiled = begun().to_vec();
            spoiled[at] ^= 1;
            assert_eq!(Begun::parse(&spoiled[..length]), None, "a wrong checksum, or too short");
        }
    }

    #[test]
    fn a_log_that_a_kernel_has_written_to_is_none_of_mkfs() {
        let mut xfs = Begun::parse(begun()).unwrap();
        for record in [1024, 4096] {
            xfs.log_record = record;
            let mut log = vec![0; 65536];
            assert!(xfs.is_unwritten_log(&log));
            log[..8].copy_from_slice(&[0xfe, 0xed, 0xba, 0xbe, 0, 0, 0, 1]);
            for sector in 1..record / 512 {
                log[sector * 512 + 3] = 1;
            }
            log[700] = 8;
            assert!(xfs.is_unwritten_log(&log), "{record}");
            // A cycle more, what the first mount writes behind, and the end of what is read.
            for (at, byte) in [(7, 2), (record, 0xfe), (65535, 1)] {
                let mut used = log.clone();
                used[at] = byte;
                assert!(!xfs.is_unwritten_log(&used), "{record} {at}");
            }
            assert!(!xfs.is_unwritten_log(&log[..1000]));
        }
        assert_eq!(
            (log_record(0, 1), log_record(4096, 1), log_record(0, 32768)),
            (Some(1024), Some(4096), Some(32768))
        );
        assert_eq!(log_record(0, 65536), None);
    }

    #[test]
    fn it_must_lie_on_the_disk() {
        let xfs = Begun::parse(begun()).unwrap();
        let size = xfs.blocks * xfs.block;
        assert!(xfs.fits(size) && xfs.fits(2 * size) && !xfs.fits(size - 4096));
    }
}
