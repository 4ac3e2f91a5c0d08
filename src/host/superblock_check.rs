//! What a file system on a disk asks of the kernel by its own superblock, and which of it is refused.
//!
//! Owns the list. An attacker who could write to the detached disk has chosen what is in the superblock: another device
//! as journal, log or member, mount options of its own, and what the kernel does on an error. What a mount option can
//! override is overridden (`ext_options`). Everything else is refused by name before anything reads further, e2fsck
//! included.

use std::os::unix::fs::FileExt;

use crate::error::{Error, Result};
use crate::fs::FsKind;
use crate::host::device::Device;
use crate::host::probe::superblock::{BTRFS_SUPERBLOCK, EXT_SUPERBLOCK, bytes_at};

/// How much of a superblock is judged.
const LENGTH: usize = 1024;

/// Refuses a disk with a file system that asks for something that no volume may have. Reads one block and writes
/// nothing.
///
/// # Errors
/// [`Error::Unfinished`] with what was found and what to do, [`Error::Io`] when the disk cannot be read.
pub(crate) fn check_superblock(device: &Device, fs: FsKind) -> Result<()> {
    let place = match fs {
        FsKind::Ext4 | FsKind::Ext3 => EXT_SUPERBLOCK.0,
        FsKind::Xfs => 0,
        FsKind::Btrfs => u64::try_from(BTRFS_SUPERBLOCK).unwrap_or(u64::MAX),
    };
    let mut bytes = vec![0; LENGTH];
    device.open()?.read_exact_at(&mut bytes, place).map_err(Error::io("reading", device.path()))?;
    plan_superblock(fs, &bytes).map_or(Ok(()), |Refused { what, cure }| {
        let access = device.manual_access();
        Err(Error::Unfinished(format!(
            "{fs} of volume {} on {} is not mounted, because by its superblock {what}; nothing was changed, and whoever could write to \
             the disk while it was detached can have made it so; {}{}",
            device.volume(),
            device.path().display(),
            access.first,
            cure.replace("DISK", &access.path.to_string())
        )))
    })
}

/// Why a superblock is refused, and what helps if it is meant so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused {
    what: String,
    cure: &'static str,
}

/// What of a superblock is refused. Pure.
fn plan_superblock(fs: FsKind, superblock: &[u8]) -> Option<Refused> {
    match fs {
        FsKind::Ext4 | FsKind::Ext3 => plan_ext(superblock),
        FsKind::Xfs => plan_xfs(superblock),
        FsKind::Btrfs => plan_btrfs(superblock),
    }
}

/// Source: `struct ext4_super_block` in the kernel's `fs/ext4/ext4.h`; `ext4_load_journal` and `parse_apply_sb_mount_options` in its
/// `fs/ext4/super.c`. All numbers are little-endian.
fn plan_ext(superblock: &[u8]) -> Option<Refused> {
    const HAS_JOURNAL: u32 = 4;
    const UID16: u32 = 0x10;
    const OPTIONS: std::ops::Range<usize> = 512..576;
    let u32_at = |at| bytes_at(superblock, at).map_or(0, u32::from_le_bytes);
    let (journal_inode, journal_device) = (u32_at(224), u32_at(228));
    if u32_at(92) & HAS_JOURNAL != 0 && (journal_inode == 0 || journal_device != 0) {
        return Some(Refused {
            what: "its journal is on another device".to_owned(),
            cure: "give it one of its own with `tune2fs -O ^has_journal DISK` and `tune2fs -j DISK`",
        });
    }
    if u32_at(256) & UID16 != 0 {
        return Some(Refused {
            what: "owners are cut to 16 bits, which makes files of user 65536 root's (uid16)".to_owned(),
            cure: "take that away with `tune2fs -o ^uid16 DISK`",
        });
    }
    let text: Vec<u8> = superblock.get(OPTIONS)?.iter().copied().take_while(|byte| *byte != 0).collect();
    let text = String::from_utf8_lossy(&text).into_owned();
    let odd = text.split(',').find(|word| !word.is_empty() && !is_harmless(word))?;
    Some(Refused {
        what: format!("it wants to be mounted with {odd:?}"),
        cure: "take that away with `tune2fs -E mount_opts= DISK`",
    })
}

/// Whether a mount option that an ext has in its superblock changes nothing but how fast it is.
fn is_harmless(word: &str) -> bool {
    const HARMLESS: [&str; 10] = [
        "acl",
        "user_xattr",
        "discard",
        "nodiscard",
        "delalloc",
        "nodelalloc",
        "auto_da_alloc",
        "block_validity",
        "noinit_itable",
        "lazytime",
    ];
    HARMLESS.contains(&word)
}

/// Source: `struct xfs_dsb` in the kernel's `fs/xfs/libxfs/xfs_format.h`; `xfs_validate_sb_common` in its `xfs_sb.c`. All numbers are
/// big-endian.
fn plan_xfs(superblock: &[u8]) -> Option<Refused> {
    let u64_at = |at| bytes_at(superblock, at).map_or(0, u64::from_be_bytes);
    let (realtime_blocks, log_start) = (u64_at(16), u64_at(48));
    let what = match (realtime_blocks, log_start) {
        (0, 1..) => return None,
        (1.., _) => "it has a realtime part on another device",
        (0, 0) => "its log is on another device",
    };
    Some(Refused { what: what.to_owned(), cure: "mount it by hand with that device and copy it to a new volume" })
}

/// Source: `struct btrfs_super_block` in the kernel's `include/uapi/linux/btrfs_tree.h`. All numbers are little-endian.
fn plan_btrfs(superblock: &[u8]) -> Option<Refused> {
    let devices = bytes_at(superblock, 136).map_or(0, u64::from_le_bytes);
    (devices != 1).then(|| Refused {
        what: format!("it lies on {devices} devices"),
        cure: "mount it by hand with all of them, and take the others away with `btrfs device remove`",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/fixtures/superblock/", $name, ".bin")).as_slice()
        };
    }

    #[test]
    fn what_mkfs_makes_is_taken() {
        assert_eq!(plan_superblock(FsKind::Ext4, fixture!("ext4")), None);
        assert_eq!(plan_superblock(FsKind::Ext3, fixture!("ext3")), None);
        assert_eq!(plan_superblock(FsKind::Xfs, fixture!("xfs")), None);
        assert_eq!(plan_superblock(FsKind::Btrfs, fixture!("btrfs")), None);
    }

    #[test]
    fn what_reaches_for_another_device_or_weakens_a_mount_is_refused_by_name() {
        let (ext, xfs, btrfs) = (fixture!("ext4"), fixture!("xfs"), fixture!("btrfs"));
        type Case<'a> = (FsKind, &'a [u8], usize, &'a [u8], &'a str);
        let cases: [Case<'_>; 11] = [
            (FsKind::Ext4, ext, 224, &[0; 4], "journal"),
            (FsKind::Ext4, ext, 228, &[0, 8, 0, 0], "journal"),
            (FsKind::Ext3, ext, 256, &[0x1c], "uid16"),
            (FsKind::Ext4, ext, 512, b"errors=panic\0", "\"errors=panic\""),
            (FsKind::Ext4, ext, 512, b"acl,journal_path=/dev/sda\0", "journal_path"),
            (FsKind::Ext4, ext, 512, &[0xff; 64], "wants to be mounted with"),
            (FsKind::Xfs, xfs, 16, &[0, 0, 0, 0, 0, 0, 1, 0], "realtime"),
            (FsKind::Xfs, xfs, 48, &[0; 8], "log"),
            (FsKind::Btrfs, btrfs, 136, &[2], "2 devices"),
            (FsKind::Btrfs, btrfs, 136, &[0], "0 devices"),
            (FsKind::Btrfs, btrfs, 143, &[255], "devices"),
        ];
        for (fs, good, at, patch, words) in cases {
            let mut bytes = good.to_vec();
            bytes[at..at + patch.len()].copy_from_slice(patch);
            let found = plan_superblock(fs, &bytes).map(|refused| refused.what).unwrap_or_default();
            assert!(found.contains(words), "{fs} {at}: {found:?}");
        }
        let mut harmless = ext.to_vec();
        harmless[512..527].copy_from_slice(b"acl,discard\0x,y");
        assert_eq!(plan_superblock(FsKind::Ext4, &harmless), None);
    }

    #[test]
    fn fuzz_no_superblock_is_taken_that_names_another_device() {
        let seeds = [fixture!("ext4"), fixture!("ext3"), fixture!("xfs"), fixture!("btrfs")];
        crate::fuzz::fuzz(
            "superblock-wishes",
            &seeds,
            &[b"errors=panic", b",", b"journal_path=/dev/sda", b"acl"],
            |bytes| {
                if plan_superblock(FsKind::Btrfs, bytes).is_none() {
                    assert_eq!(bytes[136..144], 1_u64.to_le_bytes());
                }
                if plan_superblock(FsKind::Xfs, bytes).is_none() {
                    assert!(bytes[16..24] == [0; 8] && bytes[48..56] != [0; 8]);
                }
                for fs in [FsKind::Ext4, FsKind::Ext3] {
                    let found = plan_superblock(fs, bytes).map(|refused| refused.what).unwrap_or_default();
                    assert!(found.chars().all(|c| !c.is_control()), "{found:?}");
                }
            },
        );
    }
}
