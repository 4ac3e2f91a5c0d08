//! Proof that nothing is stored in half a btrfs.
//!
//! Owns one question. mkfs.btrfs gives its superblock and all copies of it another name until it has finished. So does
//! btrfs-convert, on file systems that are full; and a superblock with that name may lie before the body of something else.
//! So the superblock must account for no more than the trees of an empty file system, its copies must be zero or have that
//! name too, and whatever else is looked at must be zero or a tree of the same file system.
//!
//! Source: `BTRFS_MAGIC_TEMPORARY` and `mkfs/main.c` of btrfs-progs; `struct btrfs_super_block` and `btrfs_header` in the
//! kernel's `include/uapi/linux/btrfs_tree.h`. All numbers are little-endian.

use crate::error::Result;
use crate::host::probe::superblock::{BTRFS_SUPERBLOCK, bytes_at};
use crate::host::probe::{Disk, crc32c, first_non_zero};

const LENGTH: u64 = 4096;
/// Where its copies are. Source: `btrfs_sb_offset` in the kernel's `fs/btrfs/disk-io.c`.
const COPIES: [u64; 2] = [64 << 20, 256 << 30];
const UNFINISHED: [u8; 8] = *b"!BHRfS_M";
const MOST_BYTES_OF_MKFS: u64 = 1024 * 1024;
/// mkfs.btrfs commits half a dozen times.
const MOST_GENERATIONS_OF_MKFS: u64 = 64;

/// Whether this disk holds the beginning of a btrfs, and certainly nothing else.
pub(super) fn is_there(disk: &Disk<'_>) -> Result<bool> {
    let at = u64::try_from(BTRFS_SUPERBLOCK).unwrap_or(u64::MAX);
    if disk.size() < at + LENGTH {
        return Ok(false);
    }
    let superblock = disk.read(at, LENGTH)?;
    let Some(btrfs) = Begun::parse(&superblock, at).filter(|btrfs| btrfs.size <= disk.size()) else {
        return Ok(false);
    };
    // What btrfs-convert works on has its own superblock before that.
    if !disk.is_zero_before(at)? {
        return Ok(false);
    }
    for at in COPIES.into_iter().filter(|at| at + LENGTH <= disk.size()) {
        let copy = disk.read(at, LENGTH)?;
        let is_own = Begun::parse(&copy, at).is_some_and(|copy| copy.uuid == btrfs.uuid);
        if !is_own && first_non_zero(&copy).is_some() {
            return Ok(false);
        }
    }
    disk.is_explained(|block_at, _| {
        if block_at == at || COPIES.contains(&block_at) {
            return Ok(true);
        }
        let node_at = block_at - block_at.checked_rem(btrfs.node).unwrap_or(0);
        Ok(btrfs.is_own_tree(&disk.read(node_at, LENGTH)?))
    })
}

/// A btrfs that mkfs.btrfs has not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Begun {
    uuid: [u8; 16],
    size: u64,
    node: u64,
    generation: u64,
}

impl Begun {
    /// Reads the superblock at a place; `None` for any that mkfs.btrfs does not leave when it is cut off.
    fn parse(bytes: &[u8], at: u64) -> Option<Self> {
        const CRC32C: [u8; 2] = [0, 0];
        let u64_at = |at| bytes_at(bytes, at).map(u64::from_le_bytes);
        let sum = bytes_at(bytes, 0).map(u32::from_le_bytes)?;
        let node = u64::from(bytes_at(bytes, 148).map(u32::from_le_bytes)?);
        let generation = u64_at(72)?;
        let is_whole = bytes_at(bytes, 196)? == CRC32C && sum == crc32c([bytes.get(32..4096)?]);
        let is_begun =
            bytes_at(bytes, 64)? == UNFINISHED && u64_at(48)? == at && generation <= MOST_GENERATIONS_OF_MKFS;
        // Bytes in use, disks, and the root of a log: what an fsync leaves.
        let is_empty = u64_at(120)? <= MOST_BYTES_OF_MKFS && u64_at(136)? == 1 && u64_at(96)? == 0;
        (is_whole && is_begun && is_empty && (LENGTH..=65536).contains(&node)).then_some(Begun {
            uuid: bytes_at(bytes, 32)?,
            size: u64_at(112)?,
            node,
            generation,
        })
    }

    /// Whether this is the beginning of a tree that mkfs.btrfs wrote: it is one of this file system, and has no level below.
    fn is_own_tree(&self, node: &[u8]) -> bool {
        const LEAF: [u8; 1] = [0];
        bytes_at(node, 32) == Some(self.uuid)
            && bytes_at(node, 80).is_some_and(|generation| u64::from_le_bytes(generation) <= self.generation + 1)
            && bytes_at(node, 100) == Some(LEAF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 65536;

    fn with(at: usize, patch: &[u8]) -> Vec<u8> {
        let mut bytes = begun().to_vec();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        let sum = crc32c([&bytes[32..4096]]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn begun() -> &'static [u8] {
        include_bytes!("../../../tests/fixtures/superblock/btrfs-unfinished.bin")
    }

    #[test]
    fn only_a_superblock_that_says_so_itself_and_can_hold_no_file_is_unfinished() {
        assert!(Begun::parse(begun(), AT).is_some());
        assert_eq!(Begun::parse(include_bytes!("../../../tests/fixtures/superblock/btrfs.bin"), AT), None);
        assert!(Begun::parse(&with(0, &[]), AT).is_some());
        let refused = [
            ("another place", with(48, &[1])),
            ("the final name", with(64, b"_")),
            ("many generations", with(72, &[200, 1])),
            ("a log", with(96, &[1])),
            ("more than an empty one holds", with(124, &[1])),
            ("two disks", with(136, &[2])),
            ("no size for a node", with(148, &[0; 4])),
            ("another checksum", with(196, &[1])),
        ];
        for (what, bytes) in refused {
            assert_eq!(Begun::parse(&bytes, AT), None, "{what}");
        }
        let mut spoiled = begun().to_vec();
        spoiled[1000] ^= 1;
        assert_eq!(Begun::parse(&spoiled, AT), None, "a wrong checksum");
        assert_eq!(Begun::parse(&begun()[..200], AT), None);
    }

    #[test]
    fn a_tree_is_the_file_systems_own_or_proves_nothing() {
        let btrfs = Begun::parse(begun(), AT).unwrap();
        let mut node = vec![0; 4096];
        node[32..48].copy_from_slice(&btrfs.uuid);
        assert!(btrfs.is_own_tree(&node));
        for at in [32, 47, 83, 100] {
            let mut other = node.clone();
            other[at] ^= 1;
            assert!(!btrfs.is_own_tree(&other), "{at}");
        }
        assert!(!btrfs.is_own_tree(&[]));
    }
}
