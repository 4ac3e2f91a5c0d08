//! The note that is left on a blank disk while a file system is made on it.
//!
//! Owns its bytes and its place. mke2fs writes the group descriptors second to last and the superblock last. If it is
//! cut off before, the disk looks like a damaged file system full of data. The note tells the two apart: it is written
//! only to a disk that was just seen to be blank, and it lies where mke2fs will write the group descriptors. So it is
//! overwritten before there could be any data to lose. It could only come back with a copy of the disk's beginning, so
//! the reader of the note also checks the rest of the disk. `probe/partial_ext.rs` judges what mke2fs leaves after it
//! has overwritten the note.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::fs::FsKind;

/// Where the note lies: in the second block of 4096 bytes.
///
/// mke2fs clears the first block at once, and writes the first group descriptors over the second one as a whole.
const PLACE: u64 = 4096;
/// The length of the note; the block size that the file system must have for the note to be overwritten.
pub(in crate::host) const BLOCK: usize = 4096;
/// Where the note ends: what has to be read of a disk to find it.
pub(in crate::host) const END: u64 = 2 * PLACE;

const TEXT: &str = "do-csi-plugin: this disk was blank when making a file system on it began, which has not finished: ";

fn note(kind: FsKind) -> Vec<u8> {
    let mut bytes = format!("{TEXT}{kind}\n").into_bytes();
    bytes.resize(BLOCK, 0);
    bytes
}

/// Leaves the note and makes sure that it is on the disk before anything else can be.
pub(in crate::host) fn write(disk: &File, kind: FsKind) -> std::io::Result<()> {
    disk.write_all_at(&note(kind), PLACE)?;
    disk.sync_data()
}

/// Finds the note at the head of a disk: all of it, with nothing before it, and which file system was begun.
pub(in crate::host) fn find(head: &[u8]) -> Option<FsKind> {
    let (before, rest) = head.split_at_checked(usize::try_from(PLACE).ok()?)?;
    let block = rest.get(..BLOCK)?;
    let is_first = before.iter().all(|byte| *byte == 0);
    [FsKind::Ext4, FsKind::Ext3].into_iter().find(|kind| is_first && block == note(*kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: FsKind) -> Vec<u8> {
        [vec![0; 4096], note(kind), vec![7; 100]].concat()
    }

    #[test]
    fn the_note_is_found_whole_or_not_at_all() {
        for kind in [FsKind::Ext4, FsKind::Ext3] {
            assert_eq!(find(&head(kind)), Some(kind));
            for at in [0, 1024, 1080, 4095, 4096, 4150, 4096 + TEXT.len(), 8191] {
                let mut spoiled = head(kind);
                spoiled[at] ^= 1;
                assert_eq!(find(&spoiled), None, "{at}");
            }
        }
        for short in [Vec::new(), vec![0; 4096], head(FsKind::Ext4)[..8191].to_vec(), vec![0; 10_000]] {
            assert_eq!(find(&short), None);
        }
        assert_eq!(find(&head(FsKind::Xfs)), None);
    }
}
