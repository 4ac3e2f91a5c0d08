//! The few fields of file systems' superblocks that matter here.
//!
//! Owns their offsets. Everything is pure: bytes in, numbers out; a superblock that is not whole gives `None` or `false`.

use crate::fs::FsKind;

/// Reads `N` bytes at an offset.
pub(in crate::host) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// Where ext4 and ext3 have their superblock, and its length.
pub(in crate::host) const EXT_SUPERBLOCK: (u64, usize) = (1024, 1024);

/// Why an ext4 or ext3 with this superblock should be checked, as a phrase.
///
/// A check after some time (`s_checkinterval`) or a number of mounts (`s_max_mnt_count`) is no reason: it is meant for
/// the boot, where it may take any time, not for a call with a deadline.
/// Source: `struct ext4_super_block` in the kernel's `fs/ext4/ext4.h`, at 90 `s_block_group_nr`; all numbers are little-endian.
pub(in crate::host) fn why_ext_needs_check(superblock: &[u8]) -> Option<&'static str> {
    const VALID: u16 = 1;
    const NEEDS_RECOVERY: u32 = 4;
    let u16_at = |at| bytes_at(superblock, at).map_or(0, u16::from_le_bytes);
    let u32_at = |at| bytes_at(superblock, at).map_or(0, u32::from_le_bytes);
    if has_ext_errors(superblock) {
        return Some("the kernel has seen errors in it");
    }
    if u16_at(58) & VALID == 0 {
        return Some("it was not unmounted cleanly");
    }
    if u16_at(90) != 0 {
        // It says nothing of the journal, which a mount would then empty.
        return Some("its superblock is the copy of another group, put back by hand");
    }
    (u32_at(96) & NEEDS_RECOVERY != 0).then_some("its journal has to be replayed")
}

/// Whether the kernel has recorded errors in an ext4 or ext3 with this superblock, which it keeps up to date on the disk also
/// while the file system is mounted.
///
/// Source: `s_state` and `s_error_count` of `struct ext4_super_block` in the kernel's `fs/ext4/ext4.h`.
pub(in crate::host) fn has_ext_errors(superblock: &[u8]) -> bool {
    const ERRORS: u16 = 2;
    let state = bytes_at(superblock, 58).map_or(0, u16::from_le_bytes);
    let count = bytes_at(superblock, 404).map_or(0, u32::from_le_bytes);
    state & ERRORS != 0 || count > 0
}

/// The size of an XFS by its superblock, in bytes. A log that was not replayed may hold a larger one.
pub(in crate::host) fn xfs_size(head: &[u8]) -> Option<u64> {
    let is_xfs = bytes_at(head, 0)? == *b"XFSB";
    let block_size = u64::from(u32::from_be_bytes(bytes_at(head, 4)?));
    let blocks = u64::from_be_bytes(bytes_at(head, 8)?);
    is_xfs.then(|| blocks.checked_mul(block_size)).flatten()
}

/// The size of an ext4 or ext3 by its superblock, in bytes.
pub(in crate::host) fn ext_size(head: &[u8]) -> Option<u64> {
    ExtSuper::parse(head.get(1024..)?)?.size()
}

/// The size of a btrfs by its superblock at 64 KiB, in bytes: that of all its disks, of which there is one here.
///
/// Source: `struct btrfs_super_block` in the kernel's `include/uapi/linux/btrfs_tree.h`; little-endian.
pub(in crate::host) fn btrfs_size(head: &[u8]) -> Option<u64> {
    let superblock = head.get(BTRFS_SUPERBLOCK..)?;
    let is_btrfs = bytes_at(superblock, 64)? == *b"_BHRfS_M";
    is_btrfs.then(|| bytes_at(superblock, 112).map(u64::from_le_bytes)).flatten()
}

/// Where btrfs has its superblock.
pub(in crate::host) const BTRFS_SUPERBLOCK: usize = 64 * 1024;

/// The fields of an ext4 or ext3 superblock that matter here.
///
/// Source: `struct ext4_super_block` in the kernel's `fs/ext4/ext4.h`; all numbers are little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) struct ExtSuper {
    inodes: u64,
    blocks: u64,
    block_size: u64,
    blocks_per_group: u64,
    descriptor_size: usize,
    mounts: u16,
    in_group: u16,
    has_extents: bool,
    has_journal: bool,
    /// The beginning of a copy of the block map in the journal's inode.
    journal_map: [u8; 24],
}

impl ExtSuper {
    /// Reads a superblock or a copy of one; `None` when these bytes are none.
    pub(in crate::host) fn parse(bytes: &[u8]) -> Option<Self> {
        const HAS_JOURNAL: u32 = 4;
        const HAS_EXTENTS: u32 = 0x40;
        const HAS_64_BITS: u32 = 0x80;
        const MAP_IS_A_COPY: [u8; 1] = [1];
        let u16_at = |at| bytes_at(bytes, at).map(u16::from_le_bytes);
        let u32_at = |at| bytes_at(bytes, at).map(u32::from_le_bytes);
        if u16_at(56)? != 0xef53 {
            return None;
        }
        let (compatible, incompatible) = (u32_at(92)?, u32_at(96)?);
        let is_wide = incompatible & HAS_64_BITS != 0;
        let upper = if is_wide { u64::from(u32_at(336)?) << 32 } else { 0 };
        let map_is_there = bytes_at(bytes, 253)? == MAP_IS_A_COPY;
        Some(ExtSuper {
            inodes: u32_at(0)?.into(),
            blocks: u64::from(u32_at(4)?) | upper,
            block_size: 1024_u64.checked_shl(u32_at(24)?)?,
            blocks_per_group: u32_at(32)?.into(),
            descriptor_size: if is_wide { u16_at(254)?.into() } else { 32 },
            mounts: u16_at(52)?,
            in_group: u16_at(90)?,
            has_extents: incompatible & HAS_EXTENTS != 0,
            has_journal: compatible & HAS_JOURNAL != 0 && map_is_there,
            journal_map: bytes_at(bytes, 268)?,
        })
    }

    /// The size of the file system in bytes.
    pub(in crate::host) fn size(&self) -> Option<u64> {
        self.blocks.checked_mul(self.block_size)
    }

    /// Whether this is the copy in the second group of a file system of the usual shape that fills a disk of this size,
    /// and no resize or repair after a mount has written it anew. A mount alone leaves it as it is.
    pub(in crate::host) fn is_unused_copy(&self, size: u64) -> bool {
        let unused = self.size().and_then(|own| size.checked_sub(own));
        let fills_disk = unused.is_some_and(|unused| unused < 64 * 1024 * 1024);
        let is_usual = self.block_size == 4096 && self.blocks_per_group == 32768 && self.in_group == 1;
        fills_disk && is_usual && self.mounts == 0 && matches!(self.descriptor_size, 32 | 64)
    }

    /// The number of groups of blocks; not called for a superblock without any.
    pub(in crate::host) fn groups(&self) -> u64 {
        self.blocks
            .checked_div(self.blocks_per_group)
            .map_or(0, |whole| whole + u64::from(!self.blocks.is_multiple_of(self.blocks_per_group)))
    }

    /// The number of inodes, free or not.
    pub(in crate::host) fn inodes(&self) -> u64 {
        self.inodes
    }

    /// The size of one group descriptor in bytes, never 0 for what [`ExtSuper::is_unused_copy`] accepts.
    pub(in crate::host) fn descriptor_size(&self) -> usize {
        self.descriptor_size
    }

    /// The length of all group descriptors in bytes.
    pub(in crate::host) fn descriptors_length(&self) -> u64 {
        self.groups().saturating_mul(u64::try_from(self.descriptor_size).unwrap_or(u64::MAX))
    }

    /// Which of the two it is: ext3 has no extents.
    pub(in crate::host) fn kind(&self) -> FsKind {
        if self.has_extents { FsKind::Ext4 } else { FsKind::Ext3 }
    }

    /// Where the journal's first block is to be found; `None` when there is no journal or its map is not understood.
    pub(in crate::host) fn journal_start(&self) -> Option<MapStart> {
        if !self.has_journal {
            return None;
        }
        if self.has_extents {
            return map_start(&self.journal_map);
        }
        bytes_at(&self.journal_map, 0).map(|block| MapStart::Block(u32::from_le_bytes(block).into()))
    }
}

/// The first entry of a map from a file's blocks to the disk's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum MapStart {
    /// The file begins at this block.
    Block(u64),
    /// This block holds the next level of the map.
    Map(u64),
}

/// Reads the first entry of a node of an extent tree.
///
/// Source: `struct ext4_extent_header`, `ext4_extent` and `ext4_extent_idx` in the kernel's `fs/ext4/ext4_extents.h`.
pub(in crate::host) fn map_start(node: &[u8]) -> Option<MapStart> {
    let u16_at = |at| bytes_at(node, at).map(u16::from_le_bytes);
    let u32_at = |at| bytes_at(node, at).map(u32::from_le_bytes);
    let block = |high: u16, low: u32| (u64::from(high) << 32) | u64::from(low);
    let (magic, entries, depth) = (u16_at(0)?, u16_at(2)?, u16_at(6)?);
    if magic != 0xf30a || entries == 0 {
        return None;
    }
    match depth {
        0 => Some(MapStart::Block(block(u16_at(18)?, u32_at(20)?))),
        1..=5 => Some(MapStart::Map(block(u16_at(20)?, u32_at(16)?))),
        6..=u16::MAX => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../../../tests/fixtures/superblock/", $name, ".bin")).as_slice()
        };
    }
    const SIZE: u64 = 512 << 20;

    fn with(bytes: &[u8], at: usize, patch: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        bytes
    }

    fn btrfs_head(superblock: &[u8]) -> Vec<u8> {
        let mut head = vec![0; BTRFS_SUPERBLOCK];
        head.extend(superblock);
        head
    }

    #[test]
    fn sizes_are_read_from_superblocks() {
        assert_eq!(xfs_size(fixture!("xfs")), Some(SIZE));
        assert_eq!(ext_size(&[&[0; 1024], fixture!("ext4")].concat()), Some(SIZE));
        assert_eq!(ext_size(&[&[0; 1024], fixture!("ext3")].concat()), Some(SIZE));
        assert_eq!(btrfs_size(&btrfs_head(fixture!("btrfs"))), Some(SIZE));
        for head in [vec![0; 70_000], vec![0xff; 70_000], Vec::new()] {
            assert_eq!((xfs_size(&head), ext_size(&head), btrfs_size(&head)), (None, None, None));
        }
    }

    #[test]
    fn an_ext_is_checked_when_its_superblock_gives_a_reason() {
        let clean = fixture!("ext4");
        assert_eq!(why_ext_needs_check(clean), None);
        let reasons = [
            (58, vec![2, 0], "the kernel has seen errors in it"),
            (58, vec![3, 0], "the kernel has seen errors in it"),
            (404, vec![1], "the kernel has seen errors in it"),
            (58, vec![0, 0], "it was not unmounted cleanly"),
            (58, vec![4, 0], "it was not unmounted cleanly"),
            (90, vec![1, 0], "its superblock is the copy of another group, put back by hand"),
            (96, vec![clean[96] | 4], "its journal has to be replayed"),
        ];
        for (at, patch, why) in reasons {
            assert_eq!(why_ext_needs_check(&with(clean, at, &patch)), Some(why));
        }
        for often in [vec![20, 0, 255, 255], vec![20, 0, 0, 0], vec![20, 0, 20, 0]] {
            assert_eq!(why_ext_needs_check(&with(clean, 52, &often)), None);
        }
    }

    #[test]
    fn the_copy_of_a_superblock_proves_nothing_once_the_file_system_was_mounted_or_does_not_fit_its_disk() {
        let copy = fixture!("ext4-copy");
        let is_unused = |bytes: &[u8], size| ExtSuper::parse(bytes).is_some_and(|copy| copy.is_unused_copy(size));
        assert!(is_unused(copy, SIZE));
        assert!(!is_unused(copy, SIZE - 4096) && !is_unused(copy, SIZE * 2));
        assert!(!is_unused(fixture!("ext4"), SIZE));
        for (at, patch) in [(52, 1), (56, 0), (24, 0), (32, 1), (90, 0), (254, 63)] {
            assert!(!is_unused(&with(copy, at, &[patch]), SIZE), "{at}");
        }
        let copy = ExtSuper::parse(copy).unwrap();
        assert_eq!((copy.kind(), copy.groups(), copy.descriptors_length()), (FsKind::Ext4, 4, 256));
        assert!(matches!(copy.journal_start(), Some(MapStart::Block(1..=131_072))));
    }

    #[test]
    fn a_map_is_followed_only_where_it_is_one() {
        let node = |depth: u8| [0x0a, 0xf3, 1, 0, 4, 0, depth, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 2, 0, 9, 0, 0, 0];
        assert_eq!(map_start(&node(0)), Some(MapStart::Block((2 << 32) + 9)));
        assert_eq!(map_start(&node(1)), Some(MapStart::Map((9 << 32) + 7 + (2 << 16))));
        assert_eq!(map_start(&node(6)), None);
        assert_eq!(map_start(&[0; 24]), None);
        assert_eq!(map_start(&[]), None);
    }

    #[test]
    fn fuzz_superblocks_are_judged_without_harm() {
        let seeds: [&[u8]; 6] = [
            include_bytes!("../../../tests/fixtures/superblock/ext4.bin"),
            include_bytes!("../../../tests/fixtures/superblock/ext3.bin"),
            include_bytes!("../../../tests/fixtures/superblock/ext4-copy.bin"),
            include_bytes!("../../../tests/fixtures/superblock/xfs.bin"),
            include_bytes!("../../../tests/fixtures/superblock/xfs-unfinished.bin"),
            include_bytes!("../../../tests/fixtures/superblock/btrfs.bin"),
        ];
        crate::fuzz::fuzz("superblocks", &seeds, &[b"XFSB", b"\x53\xef", b"_BHRfS_M"], |bytes| {
            let placed = [&[0; 1024], bytes].concat();
            let sizes = [xfs_size(bytes), ext_size(&placed), ext_size(bytes), btrfs_size(&btrfs_head(bytes))];
            assert!(sizes[0].is_none() || bytes.starts_with(b"XFSB"));
            let _judged = (why_ext_needs_check(bytes), has_ext_errors(bytes), map_start(bytes));
            if let Some(found) = ExtSuper::parse(bytes) {
                let _size = found.size();
            }
        });
    }
}
