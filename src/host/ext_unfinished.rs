//! Proof that nothing is stored in half an ext4 or ext3.
//!
//! Owns one question. mke2fs writes everything but the superblock, waits until it is on the disk, and writes the
//! superblock last: cut off while it waits, it leaves a disk that looks like a file system full of data whose superblock
//! was destroyed. The two are told apart by everything else: the copy of the superblock fits the disk, the group
//! descriptors count no inode but those that mke2fs makes, and the journal has never held anything. Files that were synced
//! to the disk are in the one or in the other.

use super::content::FsKind;
use super::superblock::{ExtSuper, MapStart, bytes_at, map_start};

/// The only block size for which the proof is tried; the copies of the superblock have other places with others.
const BLOCK: u64 = 4096;
/// The first copy of the superblock is at the start of the second group.
const GROUP_BLOCKS: u64 = 32768;
/// Inodes 1 to 10 are reserved, and 11 is `lost+found`.
const INODES_OF_MKE2FS: u64 = 11;
/// The root folder and `lost+found`.
const FOLDERS_OF_MKE2FS: u64 = 2;

/// Says which file system was begun on a disk, if it certainly was one, and certainly nothing was ever stored in it.
///
/// `read` reads that many bytes at an offset.
///
/// # Errors
/// Whatever `read` answers: what cannot be read proves nothing.
pub(super) fn find<E>(
    head: &[u8],
    size: u64,
    read: impl Fn(u64, u64) -> Result<Vec<u8>, E>,
) -> Result<Option<FsKind>, E> {
    let begins_empty = head.get(..4096).is_some_and(|block| block.iter().all(|byte| *byte == 0));
    let copy_at = GROUP_BLOCKS * BLOCK;
    if !begins_empty || size <= copy_at + BLOCK {
        return Ok(None);
    }
    let copy = read(copy_at, 1024)?;
    let Some(superblock) = ExtSuper::parse(&copy).filter(|copy| copy.is_unused_copy(size)) else { return Ok(None) };
    let descriptors = read(BLOCK, superblock.descriptors_length())?;
    if !has_only_own_inodes(&superblock, &descriptors) {
        return Ok(None);
    }
    let Some(journal) = find_journal(&superblock, size, &read)? else { return Ok(None) };
    Ok(is_unwritten_journal(&journal).then(|| superblock.kind()))
}

/// Reads the journal's first block. Its map has one level more when the journal is large; a longer way is not followed.
fn find_journal<E>(
    superblock: &ExtSuper,
    size: u64,
    read: impl Fn(u64, u64) -> Result<Vec<u8>, E>,
) -> Result<Option<Vec<u8>>, E> {
    let read_block = |block: u64| match block.checked_mul(BLOCK) {
        Some(at) if at.saturating_add(BLOCK) <= size => read(at, BLOCK).map(Some),
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
    let (mut free, mut folders, mut groups) = (0, 0, 0);
    for descriptor in descriptors.chunks_exact(superblock.descriptor_size()) {
        let low = |at| bytes_at(descriptor, at).map_or(0, |bytes| u64::from(u16::from_le_bytes(bytes)));
        // Descriptors of 64 bytes have the upper halves behind; shorter ones have none.
        free += low(14) + (low(46) << 16);
        folders += low(16) + (low(48) << 16);
        groups += 1;
    }
    groups == superblock.groups()
        && folders == FOLDERS_OF_MKE2FS
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
