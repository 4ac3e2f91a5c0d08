//! Making a file system as large as its disk.
//!
//! Owns the comparison of the two sizes and the programs that grow a mounted file system. That the disk has its new size
//! is `device.rs`'s to wait for. Nothing here ever makes a file system smaller.

use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::sys::statfs::statfs;

use super::content::FsKind;
use super::device::Device;
use super::run::{Cmd, Runner, Tool};
use super::slots::Slots;
use super::superblock::{btrfs_size, ext_size, xfs_size};
use super::{CALL_BUDGET, GROW_BUDGET};
use crate::error::{Error, Result};
use crate::lock::VolumeGuard;
use crate::size::Bytes;

/// How much of a disk a full-grown file system may leave unused: the last group of blocks is left out when it is too
/// small to hold its own tables. Volumes grow by whole GiB, so a disk that has grown is beyond this at once.
const SLACK: u64 = 64 * 1024 * 1024;
/// How much of a disk's head holds the superblocks of all kinds: btrfs has its own at 64 KiB.
const HEAD: usize = 68 * 1024;

/// Whether a file system that is not mounted is smaller than its disk.
///
/// # Errors
/// [`Error::Io`] when the disk cannot be read, [`Error::Precondition`] when there is no such file system on it.
pub fn observe_is_smaller(device: &Device, fs: FsKind) -> Result<bool> {
    Ok(is_smaller(size_on_disk(device, fs)?, device))
}

/// Grows a mounted file system to the size of its disk if it is smaller, and sees that it has become so. Says whether
/// there was anything to do.
///
/// A second call finds nothing to do.
///
/// # Errors
/// [`Error::Command`] when the program fails, [`Error::Precondition`] when the file system is still smaller after it
/// reported success, [`Error::OutOfTime`] when too many others are at work.
pub fn ensure_grown(
    guard: &VolumeGuard,
    slots: &Slots,
    runner: &dyn Runner,
    device: &Device,
    fs: FsKind,
    mounted_at: &Path,
) -> Result<bool> {
    let before = observe_mounted_size(runner, device, fs, mounted_at)?;
    if !is_smaller(before, device) {
        return Ok(false);
    }
    let doing = format!("growing {fs} of volume {} at {}", device.volume(), mounted_at.display());
    let slot = slots.take_in_call(&doing, runner.cap(CALL_BUDGET))?;
    let cmd = command(device, fs, mounted_at).holding(guard).in_slot(&slot);
    let out = runner.run(&cmd).and_then(|out| out.success(&cmd));
    out.map_err(|source| Error::Command { doing, source })?;
    let after = observe_mounted_size(runner, device, fs, mounted_at)?;
    if is_smaller(after, device) {
        let (have, disk) = (after, device.size());
        return Err(Error::Precondition(format!("`{cmd}` reported success, but {fs} has {have} on a disk of {disk}")));
    }
    log::info!("grown device={} fs={fs} from=\"{before}\" to=\"{after}\"", device.path().display());
    Ok(true)
}

/// The size of a mounted file system with all that belongs to it: data, tables and log.
///
/// statfs(2) leaves out what ext and xfs need for themselves, so ext is asked on disk, where the kernel keeps its
/// superblock up to date, and xfs through its own program.
fn observe_mounted_size(runner: &dyn Runner, device: &Device, fs: FsKind, mounted_at: &Path) -> Result<Bytes> {
    match fs {
        FsKind::Ext4 | FsKind::Ext3 => size_on_disk(device, fs),
        FsKind::Xfs => {
            let cmd = Cmd::new(Tool::XfsGrowfs, GROW_BUDGET).arg("-n").arg(mounted_at);
            let out = runner.run(&cmd).and_then(|out| out.success(&cmd));
            let doing = || format!("asking for the size of xfs at {}", mounted_at.display());
            let text = out.map_err(|source| Error::Command { doing: doing(), source })?;
            parse_geometry(&String::from_utf8_lossy(&text))
                .ok_or_else(|| Error::Precondition(format!("the output of `{cmd}` is not understood")))
        }
        FsKind::Btrfs => {
            let stat = statfs(mounted_at).map_err(Error::errno("examining the file system at", mounted_at))?;
            let size = u64::try_from(stat.block_size()).ok().and_then(|block| block.checked_mul(stat.blocks()));
            size.map(Bytes).ok_or_else(|| Error::Precondition(format!("no size for {}", mounted_at.display())))
        }
    }
}

fn size_on_disk(device: &Device, fs: FsKind) -> Result<Bytes> {
    let mut head = vec![0; HEAD];
    device.open()?.read_exact_at(&mut head, 0).map_err(Error::io("reading", device.path()))?;
    let size = match fs {
        FsKind::Xfs => xfs_size(&head),
        FsKind::Ext4 | FsKind::Ext3 => ext_size(&head),
        FsKind::Btrfs => btrfs_size(&head),
    };
    size.map(Bytes).ok_or_else(|| Error::Precondition(format!("{} holds no {fs}", device.path().display())))
}

fn is_smaller(size: Bytes, device: &Device) -> bool {
    device.size().0.saturating_sub(size.0) >= SLACK
}

/// Source: xfs_growfs(8), resize2fs(8), btrfs-filesystem(8); each grows to the size of the disk when none is named.
fn command(device: &Device, fs: FsKind, mounted_at: &Path) -> Cmd {
    match fs {
        FsKind::Xfs => Cmd::new(Tool::XfsGrowfs, GROW_BUDGET).arg("-d").arg(mounted_at),
        FsKind::Ext4 | FsKind::Ext3 => Cmd::new(Tool::Resize2fs, GROW_BUDGET).arg(device.path()),
        FsKind::Btrfs => Cmd::new(Tool::Btrfs, GROW_BUDGET).args(["filesystem", "resize", "max"]).arg(mounted_at),
    }
}

/// Reads the line of `xfs_growfs -n` about the data section: `data     =   bsize=4096   blocks=153600, imaxpct=25`.
///
/// Source: `xfs_report_geom` of xfsprogs' `libfrog/fsgeom.c`.
fn parse_geometry(text: &str) -> Option<Bytes> {
    let line = text.lines().find(|line| line.starts_with("data "))?;
    let value = |key: &str| {
        let field = line.split([' ', ',', '=']).skip_while(|word| *word != key).nth(1)?;
        field.parse::<u64>().ok()
    };
    value("bsize")?.checked_mul(value("blocks")?).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mountinfo::DeviceNumber;

    #[test]
    fn the_geometry_of_an_xfs_is_read() {
        let text = include_str!("../../tests/fixtures/grow/xfs_growfs-n.txt");
        assert_eq!(parse_geometry(text), Some(Bytes(512 << 20)));
        for bad in ["", "data", "data     = bsize=4096", "naming = bsize=4096 blocks=7", "data = bsize=x blocks=7"] {
            assert_eq!(parse_geometry(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_file_system_is_smaller_than_its_disk_from_the_slack_on() {
        let device = Device::fake("/dev/sda", DeviceNumber { major: 8, minor: 0 }, 1 << 30);
        let cases =
            [(0, true), ((1 << 30) - SLACK, true), ((1 << 30) - SLACK + 1, false), (1 << 30, false), (1 << 31, false)];
        for (size, want) in cases {
            assert_eq!(is_smaller(Bytes(size), &device), want, "{size}");
        }
    }
}
