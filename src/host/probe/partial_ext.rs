//! Proof that nothing is stored in half an ext4 or ext3.
//!
//! Owns one question. mke2fs writes everything but the superblock, waits until it is on the disk, and writes the
//! superblock last: cut off while it waits, it leaves a disk that looks like a file system full of data whose superblock
//! was destroyed. The two are told apart by everything else: the copy of the superblock fits the disk, the group
//! descriptors count no inode but those that mke2fs makes, the journal has never held anything, and whatever else is looked
//! at is zero or what mke2fs writes. Files that were synced to the disk are in the one or in the other.

use crate::error::Result;
use crate::fs::FsKind;
use crate::host::probe::superblock::{ExtSuper, MapStart, bytes_at, map_start};
use crate::host::probe::{BLOCK, Disk, first_non_zero};

/// The first copy of the superblock is at the start of the second group. The proof is tried for the usual block size only;
/// the copies of the superblock have other places with others.
const GROUP_BLOCKS: u64 = 32768;
/// Inodes 1 to 10 are reserved, and 11 is `lost+found`.
const INODES_OF_MKE2FS: u64 = 11;
/// The root directory and `lost+found`.
const DIRECTORIES_OF_MKE2FS: u64 = 2;
/// The longest descriptor of a group.
const DESCRIPTOR: u64 = 64;
/// What follows the descriptors in a group: blocks kept for more of them, the bitmaps of 16 groups, and the first inodes.
/// Source: mke2fs(8), `resize` and `flex_bg`.
const BLOCKS_AFTER_DESCRIPTORS: u64 = 1024 + 2 * 16 + 2;

/// Says which file system was begun on a disk, if it certainly was one, and certainly nothing was ever stored in it.
///
/// # Errors
/// What cannot be read proves nothing.
pub(super) fn find(disk: &Disk<'_>) -> Result<Option<FsKind>> {
    let copy_at = GROUP_BLOCKS * BLOCK;
    if disk.size() <= copy_at + BLOCK || first_non_zero(&disk.read(0, BLOCK)?).is_some() {
        return Ok(None);
    }
    let copy = disk.read(copy_at, 1024)?;
    let unused = ExtSuper::parse(&copy).filter(|copy| copy.is_unused_copy(disk.size()));
    let Some(superblock) = unused else { return Ok(None) };
    let descriptors = disk.read(BLOCK, superblock.descriptors_length())?;
    if !has_only_own_inodes(&superblock, &descriptors) {
        return Ok(None);
    }
    let Some(journal) = find_journal(&superblock, disk)? else { return Ok(None) };
    let is_unused = is_unwritten_journal(&journal) && is_nothing_else_there(disk)?;
    Ok(is_unused.then(|| superblock.kind()))
}

/// Whether all that is seen of a disk is zero or may have been written by mke2fs with the usual block size.
pub(super) fn is_nothing_else_there(disk: &Disk<'_>) -> Result<bool> {
    let size = disk.size();
    disk.is_explained(|at, block| Ok(is_of_mke2fs(size, at, block)))
}

/// Whether mke2fs may have written this block to this place of a disk.
fn is_of_mke2fs(size: u64, at: u64, block: &[u8]) -> bool {
    let groups = size.div_ceil(GROUP_BLOCKS * BLOCK);
    let descriptors = (groups * DESCRIPTOR).div_ceil(BLOCK);
    let in_group = at % (GROUP_BLOCKS * BLOCK) / BLOCK;
    let is_head_of_group = in_group < 1 + descriptors + BLOCKS_AFTER_DESCRIPTORS;
    is_head_of_group || is_unwritten_journal(block) || is_own_folder(block) || is_map(block)
}

/// Whether this is the first block of a directory that mke2fs makes, or one of `lost+found` that is empty.
///
/// Source: `struct ext4_dir_entry_2` in the kernel's `fs/ext4/ext4.h`.
fn is_own_folder(block: &[u8]) -> bool {
    const ITSELF: [u8; 5] = [12, 0, 1, 2, b'.'];
    const ROOT: u32 = 2;
    const LOST_AND_FOUND: u32 = 11;
    let Some(inode) = bytes_at(block, 0).map(u32::from_le_bytes) else { return false };
    let length = bytes_at(block, 4).map_or(0, u16::from_le_bytes);
    let is_empty = inode == 0 && u64::from(length) >= BLOCK - 12 && bytes_at(block, 6) == Some([0; 2]);
    is_empty || (matches!(inode, ROOT | LOST_AND_FOUND) && bytes_at(block, 4) == Some(ITSELF))
}

/// Whether this is a block of a map that mke2fs makes, of numbers that follow each other: of a journal without extents, or of
/// the blocks that are kept for more descriptors.
fn is_map(block: &[u8]) -> bool {
    let numbers = || block.chunks_exact(4).map(|bytes| bytes_at(bytes, 0).map_or(0, u32::from_le_bytes));
    let used = || numbers().skip_while(|number| *number == 0);
    let follows = used().zip(used().skip(1)).take_while(|(number, next)| number.checked_add(1) == Some(*next)).count();
    let is_rest_zero = used().skip(follows + 1).all(|number| number == 0);
    let is_list = follows >= 2 && is_rest_zero;
    is_list || matches!(map_start(block), Some(MapStart::Block(_)))
}

/// Reads the journal's first block. Its map has one level more when the journal is large; a longer way is not followed.
fn find_journal(superblock: &ExtSuper, disk: &Disk<'_>) -> Result<Option<Vec<u8>>> {
    let read_block = |block: u64| match block.checked_mul(BLOCK) {
        Some(at) if at.saturating_add(BLOCK) <= disk.size() => disk.read(at, BLOCK).map(Some),
        Some(_) | None => Ok(None),
    };
    match superblock.journal_start() {
        Some(MapStart::Block(block)) => read_block(block),
        Some(MapStart::Map(block)) => match read_block(block)?.as_deref().and_then(map_start) {
            Some(MapStart::Block(block)) => read_block(block),
            Some(MapStart::Map(_)) | None => Ok(None),
        },
        None => Ok(None),
    }
}

/// Whether the group descriptors leave no inode in use but those that mke2fs makes.
///
/// Source: `struct ext4_group_desc` in the kernel's `fs/ext4/ext4.h`.
fn has_only_own_inodes(superblock: &ExtSuper, descriptors: &[u8]) -> bool {
    let (mut free, mut directories, mut groups) = (0, 0, 0);
    for descriptor in descriptors.chunks_exact(superblock.descriptor_size()) {
        let low = |at| bytes_at(descriptor, at).map_or(0, |bytes| u64::from(u16::from_le_bytes(bytes)));
        // Descriptors of 64 bytes have the upper halves behind; shorter ones have none.
        free += low(14) + (low(46) << 16);
        directories += low(16) + (low(48) << 16);
        groups += 1;
    }
    groups == superblock.groups()
        && directories == DIRECTORIES_OF_MKE2FS
        && free.checked_add(INODES_OF_MKE2FS) == Some(superblock.inodes())
}

/// Whether this is a journal that no kernel has written to: empty, and to begin with the first number.
///
/// Source: `struct journal_superblock_s` in the kernel's `include/linux/jbd2.h`; all numbers are big-endian.
fn is_unwritten_journal(bytes: &[u8]) -> bool {
    let number = |at| bytes_at(bytes, at).map(u32::from_be_bytes);
    let is_journal = number(0) == Some(0xc03b_3998) && matches!(number(4), Some(3 | 4));
    is_journal && number(24) == Some(1) && number(28) == Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;
    /// A place that is neither the head of a group nor anything else in particular.
    const ANYWHERE: u64 = 96 << 20;

    fn block(start: &[u8]) -> Vec<u8> {
        let mut block = start.to_vec();
        block.resize(4096, 0);
        block
    }

    fn numbers(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
        block(&numbers.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>())
    }

    #[test]
    fn what_mke2fs_writes_is_told_from_what_others_do() {
        let journal: Vec<u8> = [0xc03b_3998_u32, 4, 0, 4096, 16384, 1, 1, 0].map(u32::to_be_bytes).concat();
        let own = [
            ("an empty journal", block(&journal)),
            ("the root directory", block(b"\x02\0\0\0\x0c\0\x01\x02.\0\0\0")),
            ("lost+found", block(b"\x0b\0\0\0\x0c\0\x01\x02.\0\0\0")),
            ("the rest of lost+found", block(b"\0\0\0\0\xf4\x0f\0\0")),
            ("the map of a journal", numbers(40_000..41_024)),
            ("the map of blocks kept for descriptors", numbers([0, 0, 0].into_iter().chain(9..1000))),
        ];
        for (what, block) in &own {
            assert!(is_of_mke2fs(SIZE, ANYWHERE, block), "{what}");
        }
        let mut used_journal = journal;
        used_journal[27] = 7;
        for (what, block) in [
            ("a journal that was used", block(&used_journal)),
            ("another directory", block(b"\x0c\0\0\0\x0c\0\x01\x02.\0\0\0")),
            ("text", block(b"my data")),
            ("numbers that do not follow each other", numbers([1, 2, 3, 5])),
            ("one number", numbers([7])),
            ("a sector of text after the numbers", [numbers(1..100)[..2048].to_vec(), vec![7; 2048]].concat()),
        ] {
            assert!(!is_of_mke2fs(SIZE, ANYWHERE, &block), "{what}");
            assert!(is_of_mke2fs(SIZE, 129 << 20, &block), "the bitmaps of a group are not judged");
        }
    }
}
