//! The words that each file system reads as mount options, for kernels that do not tell before they mount.
//!
//! Owns the lists. They are asked only before a file system is made, and only for a file system that reads its options at
//! the mount: xfs before Linux 5.6, ext4 and ext3 before 5.17, btrfs before 6.8. What those kernels know does not grow any
//! more, so the lists can be complete, which they could not be for kernels to come. Where the kernel tells, it is asked.

use crate::fs::FsKind;
use crate::host::mount_options::KNOWN;
use crate::spelling::distance;

/// Source: `tokens` in the kernel's `fs/ext4/super.c` of Linux 5.16 and before.
const EXT: [&str; 78] = [
    "bsddf",
    "minixdf",
    "grpid",
    "bsdgroups",
    "nogrpid",
    "sysvgroups",
    "resgid",
    "resuid",
    "errors",
    "nouid32",
    "debug",
    "user_xattr",
    "nouser_xattr",
    "acl",
    "noacl",
    "noload",
    "norecovery",
    "bh",
    "nobh",
    "commit",
    "min_batch_time",
    "max_batch_time",
    "journal_checksum",
    "nojournal_checksum",
    "journal_async_commit",
    "abort",
    "data",
    "data_err",
    "usrjquota",
    "grpjquota",
    "jqfmt",
    "grpquota",
    "noquota",
    "quota",
    "usrquota",
    "prjquota",
    "barrier",
    "nobarrier",
    "i_version",
    "dax",
    "stripe",
    "delalloc",
    "nodelalloc",
    "warn_on_error",
    "nowarn_on_error",
    "debug_want_extra_isize",
    "mblk_io_submit",
    "nomblk_io_submit",
    "block_validity",
    "noblock_validity",
    "inode_readahead_blks",
    "journal_ioprio",
    "auto_da_alloc",
    "noauto_da_alloc",
    "dioread_nolock",
    "nodioread_nolock",
    "dioread_lock",
    "discard",
    "nodiscard",
    "init_itable",
    "noinit_itable",
    "max_dir_size_kb",
    "test_dummy_encryption",
    "inlinecrypt",
    "nombcache",
    "no_mbcache",
    "prefetch_block_bitmaps",
    "no_prefetch_block_bitmaps",
    "mb_optimize_scan",
    "oldalloc",
    "orlov",
    "check",
    "nocheck",
    "reservation",
    "noreservation",
    "journal",
    "fc_debug_force",
    "fc_debug_max_replay",
];

/// Source: `tokens` in the kernel's `fs/xfs/xfs_super.c` of Linux 5.5 and before.
const XFS: [&str; 40] = [
    "logbufs",
    "logbsize",
    "wsync",
    "noalign",
    "swalloc",
    "sunit",
    "swidth",
    "nouuid",
    "grpid",
    "nogrpid",
    "bsdgroups",
    "sysvgroups",
    "allocsize",
    "norecovery",
    "inode64",
    "inode32",
    "ikeep",
    "noikeep",
    "largeio",
    "nolargeio",
    "attr2",
    "noattr2",
    "filestreams",
    "quota",
    "noquota",
    "usrquota",
    "grpquota",
    "prjquota",
    "uquota",
    "gquota",
    "pquota",
    "uqnoenforce",
    "gqnoenforce",
    "pqnoenforce",
    "qnoenforce",
    "discard",
    "nodiscard",
    "dax",
    "barrier",
    "nobarrier",
];

/// Source: `tokens` in the kernel's `fs/btrfs/super.c` of Linux 6.7 and before.
const BTRFS: [&str; 52] = [
    "acl",
    "noacl",
    "alloc_start",
    "autodefrag",
    "noautodefrag",
    "barrier",
    "nobarrier",
    "clear_cache",
    "commit",
    "compress",
    "compress-force",
    "datacow",
    "nodatacow",
    "datasum",
    "nodatasum",
    "degraded",
    "discard",
    "nodiscard",
    "enospc_debug",
    "noenospc_debug",
    "fatal_errors",
    "flushoncommit",
    "noflushoncommit",
    "fragment",
    "inode_cache",
    "noinode_cache",
    "check_int",
    "check_int_data",
    "check_int_print_mask",
    "max_inline",
    "metadata_ratio",
    "nologreplay",
    "norecovery",
    "treelog",
    "notreelog",
    "recovery",
    "rescan_uuid_tree",
    "rescue",
    "skip_balance",
    "space_cache",
    "nospace_cache",
    "ssd",
    "nossd",
    "ssd_spread",
    "nossd_spread",
    "subvol",
    "subvolid",
    "subvolrootid",
    "thread_pool",
    "usebackuproot",
    "user_subvol_rm_allowed",
    "ref_verify",
];

/// What a file system reads on kernels that do not tell before they mount.
fn words(fs: FsKind) -> &'static [&'static str] {
    match fs {
        FsKind::Ext4 | FsKind::Ext3 => &EXT,
        FsKind::Xfs => &XFS,
        FsKind::Btrfs => &BTRFS,
    }
}

/// Whether a file system is known to have an option of this name, on a kernel that does not tell itself.
pub(super) fn is_known(fs: FsKind, key: &str) -> bool {
    words(fs).contains(&key)
}

/// The option that was probably meant by one that does not exist.
pub(super) fn nearest(fs: FsKind, key: &str) -> Option<&'static str> {
    let all = words(fs).iter().copied().chain(KNOWN.iter().map(|(word, ..)| *word));
    let near =
        all.map(|word| (distance(word, key), word)).filter(|(far, word)| *far <= if word.len() > 5 { 2 } else { 1 });
    near.min().map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_probably_meant_is_named() {
        let cases = [
            (FsKind::Xfs, "noatim", Some("noatime")),
            (FsKind::Ext4, "nodscard", Some("nodiscard")),
            (FsKind::Btrfs, "compres", Some("compress")),
            (FsKind::Xfs, "compress", None),
            (FsKind::Ext4, "x", None),
        ];
        for (fs, key, meant) in cases {
            assert_eq!(nearest(fs, key), meant, "{fs} {key}");
        }
        assert!(is_known(FsKind::Ext3, "data") && !is_known(FsKind::Btrfs, "data"));
    }
}
