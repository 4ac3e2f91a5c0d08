//! The programs that this plugin needs, and where they are.
//!
//! Owns their names, their packages and the fixed directories they are looked for in. It runs none of them.

use std::path::{Path, PathBuf};

use crate::error::command::MissingTool;

/// Where programs are looked for, in this order, and the child's `PATH`.
///
/// `/usr` comes first: where `/sbin` is a link to it, both are the same file.
const TOOL_DIRS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
pub(super) const CHILD_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that this plugin runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `blkid`: what is on a disk, by its signatures.
    Blkid,
    /// `blockdev`, which makes a disk refuse writes, and take them again.
    Blockdev,
    /// `fsfreeze`, which thaws a file system.
    Fsfreeze,
    /// `mkfs.xfs`.
    MkfsXfs,
    /// `mke2fs`, which makes ext4 and ext3.
    Mke2fs,
    /// `mkfs.btrfs`.
    MkfsBtrfs,
    /// `e2fsck`, which checks ext4 and ext3.
    E2fsck,
    /// `xfs_growfs`.
    XfsGrowfs,
    /// `resize2fs`, which grows ext4 and ext3.
    Resize2fs,
    /// `btrfs`, which grows btrfs.
    Btrfs,
    /// `sync`, which writes what is in memory to one file system.
    Sync,
    /// `cryptsetup`, for encrypted volumes; whoever has none can do without it.
    Cryptsetup,
    /// `dmsetup`, which shows what the kernel was told of an encrypted volume; it comes with cryptsetup.
    Dmsetup,
}

impl Tool {
    /// Every program that must be there, in the order in which they are looked for.
    pub const NEEDED: [Tool; 11] = [
        Tool::Blkid,
        Tool::Blockdev,
        Tool::Fsfreeze,
        Tool::MkfsXfs,
        Tool::Mke2fs,
        Tool::MkfsBtrfs,
        Tool::E2fsck,
        Tool::XfsGrowfs,
        Tool::Resize2fs,
        Tool::Btrfs,
        Tool::Sync,
    ];

    /// The program's file name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tool::Blkid => "blkid",
            Tool::Blockdev => "blockdev",
            Tool::Fsfreeze => "fsfreeze",
            Tool::MkfsXfs => "mkfs.xfs",
            Tool::Mke2fs => "mke2fs",
            Tool::MkfsBtrfs => "mkfs.btrfs",
            Tool::E2fsck => "e2fsck",
            Tool::XfsGrowfs => "xfs_growfs",
            Tool::Resize2fs => "resize2fs",
            Tool::Btrfs => "btrfs",
            Tool::Sync => "sync",
            Tool::Cryptsetup => "cryptsetup",
            Tool::Dmsetup => "dmsetup",
        }
    }

    /// The error for a machine that does not have it.
    fn missing(self) -> MissingTool {
        MissingTool { name: self.name(), package: self.package(), searched: CHILD_PATH }
    }

    /// The Debian package that has it.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Tool::Blkid | Tool::Blockdev | Tool::Fsfreeze => "util-linux",
            Tool::MkfsXfs | Tool::XfsGrowfs => "xfsprogs",
            Tool::Mke2fs | Tool::E2fsck | Tool::Resize2fs => "e2fsprogs",
            Tool::MkfsBtrfs | Tool::Btrfs => "btrfs-progs",
            Tool::Sync => "coreutils",
            Tool::Cryptsetup => "cryptsetup-bin",
            Tool::Dmsetup => "dmsetup",
        }
    }

    /// What a program must find in its environment.
    pub(super) fn environment(self) -> Option<(&'static str, &'static str)> {
        match self {
            // In a container it would wait for ever for the host's udev, which answers in the host's own semaphores.
            // Source: `dm_udev_wait` in LVM2's `libdm/libdm-common.c`.
            Tool::Cryptsetup | Tool::Dmsetup => Some(("DM_DISABLE_UDEV", "1")),
            Tool::Blkid
            | Tool::Blockdev
            | Tool::Fsfreeze
            | Tool::MkfsXfs
            | Tool::Mke2fs
            | Tool::MkfsBtrfs
            | Tool::E2fsck
            | Tool::XfsGrowfs
            | Tool::Resize2fs
            | Tool::Btrfs
            | Tool::Sync => None,
        }
    }
}

/// The programs' absolute paths, found once.
#[derive(Debug, Clone)]
pub struct Tools {
    found: Vec<(Tool, PathBuf)>,
}

/// Looks for every program in the fixed directories; the environment's `PATH` does not matter. One that a droplet without
/// encrypted volumes does not need may be missing.
///
/// # Errors
/// [`MissingTool`] for the first one that is not there and must be, naming the package to install.
pub fn find_tools() -> Result<Tools, MissingTool> {
    let locate = |tool: Tool| {
        let found = TOOL_DIRS.iter().map(|dir| Path::new(dir).join(tool.name())).find(|path| path.is_file());
        found.map(|path| (tool, path)).ok_or(tool.missing())
    };
    let mut found = Tool::NEEDED.into_iter().map(locate).collect::<Result<Vec<_>, _>>()?;
    found.extend([Tool::Cryptsetup, Tool::Dmsetup].into_iter().filter_map(|tool| locate(tool).ok()));
    Ok(Tools { found })
}

impl Tools {
    /// Whether encrypted volumes can be used, as far as programs go.
    #[must_use]
    pub fn can_encrypt(&self) -> bool {
        self.path(Tool::Cryptsetup).is_ok() && self.path(Tool::Dmsetup).is_ok()
    }

    /// Where a program is.
    pub(super) fn path(&self, tool: Tool) -> Result<&Path, MissingTool> {
        let found = self.found.iter().find(|(have, _)| *have == tool);
        found.map(|(_, path)| path.as_path()).ok_or(tool.missing())
    }

    #[cfg(test)]
    pub(super) fn fake(found: Vec<(Tool, PathBuf)>) -> Self {
        Tools { found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let message = Tool::MkfsXfs.missing().to_string();
        assert_eq!(message, format!("mkfs.xfs is missing in {CHILD_PATH}; install the Debian package xfsprogs"));
    }

    #[test]
    fn the_childs_path_is_where_programs_are_looked_for() {
        assert_eq!(TOOL_DIRS.join(":"), CHILD_PATH);
    }
}
