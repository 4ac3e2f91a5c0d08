//! The file systems that volumes can have.
//!
//! Owns their names; what can be done with each is `host/`'s.

use std::fmt;

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
