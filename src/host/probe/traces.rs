//! The names of what lies on a disk that should be blank.
//!
//! Owns the marks by which formats are known wherever a copy of their head lies, for the message to whoever has to find out
//! what is on the disk. Pure. Nothing is decided by it but that the disk is not blank, and it is not blank without a name too.

use crate::host::probe::superblock::bytes_at;

/// Something that was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) struct Trace {
    /// Where it begins, in bytes from the start of the disk.
    pub(in crate::host) at: u64,
    /// What it is, as a phrase.
    pub(in crate::host) what: &'static str,
}

/// All marks lie at a fixed distance from the start of a sector.
const SECTOR: usize = 512;

/// Marks of up to this many bytes.
type Mark = (usize, &'static [u8], &'static str);

/// Source: the `idmag` tables of util-linux's `libblkid/src/superblocks`, and the specifications of LUKS2 and GPT.
const MARKS: [Mark; 24] = [
    (0, b"XFSB", "a superblock of xfs"),
    (0, b"XAGF", "a group header of xfs"),
    (0, b"XAGI", "a group header of xfs"),
    (64, b"_BHRfS_M", "a superblock of btrfs"),
    (0, b"LUKS\xba\xbe", "a header of an encrypted volume (LUKS)"),
    (0, b"SKUL\xba\xbe", "the second header of an encrypted volume (LUKS2)"),
    (0, b"EFI PART", "a partition table (GPT)"),
    (0, b"LABELONE", "a label of LVM"),
    (4, b" LVM2 x[5A%r0N*>", "metadata of LVM"),
    (0, b"\xfc\x4e\x2b\xa9", "a superblock of a RAID array (md)"),
    (0, b"\x0c\xb1\xba\0\0\0\0\0", "a label of ZFS"),
    (3, b"NTFS    ", "a boot sector of NTFS"),
    (0, b"FILE0\0", "the table of files of NTFS"),
    (3, b"EXFAT   ", "a boot sector of exFAT"),
    (82, b"FAT32   ", "a boot sector of FAT"),
    (54, b"FAT16   ", "a boot sector of FAT"),
    (502, b"SWAPSPACE2", "swap space"),
    (24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a superblock of bcache"),
    (0, b"\x10\x20\xf5\xf2", "a superblock of f2fs"),
    (0, b"JFS1", "a superblock of jfs"),
    (52, b"ReIsEr", "a superblock of reiserfs"),
    (0, b"OCFSV2", "a superblock of ocfs2"),
    (0, b"bluestore block device", "a label of Ceph"),
    (0, b"\xc0\x3b\x39\x98\0\0\0", "a journal of ext3 or ext4"),
];

/// Finds the first thing with a name among bytes that were read at an offset.
pub(super) fn find(at: u64, bytes: &[u8]) -> Option<Trace> {
    (0..bytes.len()).step_by(SECTOR).find_map(|start| {
        let sector = bytes.get(start..)?;
        let what = named(sector)?;
        Some(Trace { at: at.saturating_add(u64::try_from(start).ok()?), what })
    })
}

fn named(sector: &[u8]) -> Option<&'static str> {
    let marked =
        MARKS.iter().find(|(offset, mark, _)| sector.get(*offset..).is_some_and(|rest| rest.starts_with(mark)));
    marked.map(|(_, _, what)| *what).or_else(|| is_ext(sector).then_some("a superblock of ext4, ext3 or ext2"))
}

/// The name of ext is two bytes long, so some more must be right.
///
/// Source: `struct ext4_super_block` in the kernel's `fs/ext4/ext4.h`; all numbers are little-endian.
fn is_ext(bytes: &[u8]) -> bool {
    let u16_at = |at| bytes_at(bytes, at).map(u16::from_le_bytes);
    let u32_at = |at| bytes_at(bytes, at).map(u32::from_le_bytes);
    let is_named = u16_at(56) == Some(0xef53);
    let has_size = u32_at(0).is_some_and(|inodes| inodes > 0) && u32_at(4).is_some_and(|blocks| blocks > 0);
    let has_blocks = u32_at(24).is_some_and(|log| log <= 6);
    is_named && has_size && has_blocks && u32_at(76).is_some_and(|revision| revision <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_somewhere_in_a_piece_is_named_with_its_place() {
        let ext = include_bytes!("../../../tests/fixtures/superblock/ext4-copy.bin");
        let xfs = include_bytes!("../../../tests/fixtures/superblock/xfs.bin");
        let btrfs = include_bytes!("../../../tests/fixtures/superblock/btrfs.bin");
        for (bytes, word) in [(&ext[..], "ext4"), (&xfs[..], "xfs"), (&btrfs[..], "btrfs"), (b"SKUL\xba\xbe", "LUKS2")]
        {
            let mut piece = vec![0; 64 * 1024];
            assert_eq!(find(1 << 30, &piece), None);
            piece[3072..3072 + bytes.len()].copy_from_slice(bytes);
            let found = find(1 << 30, &piece).unwrap();
            assert_eq!(found.at, (1 << 30) + 3072);
            assert!(found.what.contains(word), "{found:?}");
        }
        let mut page = vec![0; 4096];
        page[4086..].copy_from_slice(b"SWAPSPACE2");
        assert_eq!(find(0, &page).map(|trace| trace.what), Some("swap space"));
    }

    #[test]
    fn what_only_resembles_a_name_has_none() {
        for bytes in [&[][..], b"XFS", b"text XFSB", &[0x53, 0xef].repeat(512)] {
            assert_eq!(find(0, bytes), None, "{bytes:?}");
        }
        assert!(MARKS.iter().all(|(offset, mark, _)| offset + mark.len() <= SECTOR));
    }
}
