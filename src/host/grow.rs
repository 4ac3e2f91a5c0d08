//! Making a file system as large as its disk.
//!
//! Owns the comparison of the two sizes and the programs that grow a mounted file system. That the disk has its new size
//! is `device.rs`'s to wait for. Nothing here ever makes a file system smaller.

use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::sys::statfs::statfs;

use crate::activity::{About, Change, tell_change};
use crate::error::command::Exit;
use crate::error::{Error, Result};
use crate::fs::FsKind;
use crate::host::command::{Cmd, Runner, Tool};
use crate::host::device::Device;
use crate::host::probe::superblock::{EXT_SUPERBLOCK, btrfs_size, ext_size, has_ext_errors, xfs_size};
use crate::host::{CALL_BUDGET, GROW_BUDGET};
use crate::size::Bytes;
use crate::sync::semaphore::Semaphore;
use crate::sync::volume_lock::VolumeGuard;

/// How much of a disk a full-grown file system may leave unused: the last group of blocks is left out when it is too
/// small to hold its own tables. Volumes grow by whole GiB, so a disk that has grown is beyond this at once.
const SLACK: u64 = 64 * 1024 * 1024;
/// Where this process' capabilities are told.
const OWN_STATUS: &str = "/proc/self/status";
/// How much of a disk's head holds the superblocks of all kinds: btrfs has its own at 64 KiB.
const HEAD: usize = 68 * 1024;

/// Whether a file system that is not mounted is smaller than its disk.
///
/// # Errors
/// [`Error::Io`] when the disk cannot be read, [`Error::NotAsReported`] when there is no such file system on it.
pub fn observe_is_smaller(device: &Device, fs: FsKind) -> Result<bool> {
    Ok(is_smaller(size_on_disk(device, fs)?, device))
}

/// Grows a mounted file system to the size of its disk if it is smaller, and sees that it has become so. Says whether
/// there was anything to do.
///
/// A second call finds nothing to do.
///
/// # Errors
/// [`Error::Command`] when the program fails, [`Error::NotAsReported`] when the file system is still smaller after it
/// reported success, [`Error::CannotGrow`] when the kernel does not let it, [`Error::TimedOut`] when too many others are at work.
pub fn ensure_grown(
    guard: &VolumeGuard,
    tool_permits: &Semaphore,
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
    let slot = tool_permits.take_within_call(&doing, runner.cap(CALL_BUDGET))?;
    let cmd = command(device, fs, mounted_at).holding(guard).with_permit(&slot);
    let out = runner.run(&cmd).map_err(|source| Error::Command { doing: doing.clone(), source })?;
    match out.exit {
        Exit::Code(0) => {}
        Exit::Code(_) if is_forbidden(fs, &out.stderr) => {
            let seen = Forbidden { has_errors: observe_has_errors(device)?, has_capability: observe_has_capability() };
            return Err(plan_forbidden(device, fs, seen));
        }
        Exit::Code(_) | Exit::Signal(_) | Exit::TimedOut | Exit::Stuck => {
            return Err(Error::Command { doing, source: out.into_error(&cmd) });
        }
    }
    let after = observe_mounted_size(runner, device, fs, mounted_at)?;
    if is_smaller(after, device) {
        let (have, disk) = (after, device.size());
        return Err(Error::NotAsReported(format!("`{cmd}` reported success, but {fs} has {have} on a disk of {disk}")));
    }
    tell_change(
        Change::FileSystemGrown,
        "grown the file system",
        About::default()
            .with("name", device.volume())
            .with("device", device.path().display())
            .with("fs", fs)
            .with("from", before)
            .with("to", after),
    );
    Ok(true)
}

/// What decides why the kernel forbids an ext4 or ext3 to grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Forbidden {
    /// Errors are recorded in the file system.
    has_errors: bool,
    /// The program may do what needs CAP_SYS_RESOURCE; `None`: that is not known.
    has_capability: Option<bool>,
}

/// Whether resize2fs says that the kernel answered EPERM.
///
/// Source: `online_resize_fs` in e2fsprogs' `resize/online.c`.
fn is_forbidden(fs: FsKind, stderr: &str) -> bool {
    match fs {
        FsKind::Ext4 | FsKind::Ext3 => stderr.contains("Permission denied to resize"),
        FsKind::Xfs | FsKind::Btrfs => false,
    }
}

fn observe_has_errors(device: &Device) -> Result<bool> {
    let (place, length) = EXT_SUPERBLOCK;
    let mut bytes = vec![0; length];
    device.open()?.read_exact_at(&mut bytes, place).map_err(Error::io("reading", device.path()))?;
    Ok(has_ext_errors(&bytes))
}

fn observe_has_capability() -> Option<bool> {
    has_capability(&std::fs::read_to_string(OWN_STATUS).ok()?)
}

/// Reads the line `CapEff:` of a process' status.
///
/// Source: proc_pid_status(5); `CAP_SYS_RESOURCE` in the kernel's `include/uapi/linux/capability.h`.
fn has_capability(status: &str) -> Option<bool> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(u64::from_str_radix(bits.trim(), 16).ok()? & CAP_SYS_RESOURCE != 0)
}

/// Says why the kernel forbids an ext4 or ext3 to grow. Pure.
///
/// Source: `ext4_resize_begin` in the kernel's `fs/ext4/resize.c`.
fn plan_forbidden(device: &Device, fs: FsKind, seen: Forbidden) -> Error {
    const CAPABILITY: &str = "the plugin lacks the capability CAP_SYS_RESOURCE, which a privileged container has; run it with \
                              that, or stop all that uses the volume on this droplet and grow it by hand";
    const ERRORS: &str = "the kernel has recorded errors in it and lets none with errors grow; stop all that uses the volume \
                          on this droplet, and it is checked and grown when it is staged next";
    const OTHER: &str = "the kernel forbids it, for a reason that `dmesg` tells";
    let why = match (seen.has_errors, seen.has_capability) {
        (true, Some(false)) => format!("{ERRORS}; besides, {CAPABILITY}"),
        (true, Some(true) | None) => ERRORS.to_owned(),
        (false, Some(false)) => CAPABILITY.to_owned(),
        (false, Some(true) | None) => OTHER.to_owned(),
    };
    let (volume, path) = (device.volume(), device.path().display());
    Error::CannotGrow(format!("{fs} of volume {volume} on {path} does not grow, because {why}; nothing was changed"))
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
                .ok_or_else(|| Error::NotAsReported(format!("the output of `{cmd}` is not understood")))
        }
        FsKind::Btrfs => {
            let stat = statfs(mounted_at).map_err(Error::errno("examining the file system at", mounted_at))?;
            let size = u64::try_from(stat.block_size()).ok().and_then(|block| block.checked_mul(stat.blocks()));
            size.map(Bytes).ok_or_else(|| Error::NotAsReported(format!("no size for {}", mounted_at.display())))
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
    size.map(Bytes).ok_or_else(|| Error::NotAsReported(format!("{} holds no {fs}", device.path().display())))
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
    use crate::host::device::number::DeviceNumber;

    #[test]
    fn the_geometry_of_an_xfs_is_read() {
        let text = include_str!("../../tests/fixtures/grow/xfs_growfs-n.txt");
        assert_eq!(parse_geometry(text), Some(Bytes(512 << 20)));
        for bad in ["", "data", "data     = bsize=4096", "naming = bsize=4096 blocks=7", "data = bsize=x blocks=7"] {
            assert_eq!(parse_geometry(bad), None, "{bad}");
        }
    }

    #[test]
    fn why_the_kernel_forbids_an_ext_to_grow_is_told_with_the_cure() {
        let device = Device::fake("/dev/sda", DeviceNumber { major: 8, minor: 0 }, 1 << 30);
        for (has_errors, has_capability, words, not) in [
            (true, Some(false), &["recorded errors", "staged next", "CAP_SYS_RESOURCE"][..], "dmesg"),
            (true, Some(true), &["recorded errors", "staged next"], "CAP_SYS_RESOURCE"),
            (true, None, &["recorded errors"], "CAP_SYS_RESOURCE"),
            (false, Some(false), &["CAP_SYS_RESOURCE", "privileged"], "recorded errors"),
            (false, Some(true), &["dmesg"], "CAP_SYS_RESOURCE"),
            (false, None, &["dmesg"], "recorded errors"),
        ] {
            let err = plan_forbidden(&device, FsKind::Ext4, Forbidden { has_errors, has_capability });
            let text = err.to_string();
            assert!(matches!(err, Error::CannotGrow(_)) && !text.contains(not), "{text}");
            words.iter().chain(&["volume vol", "/dev/sda"]).for_each(|word| assert!(text.contains(word), "{text}"));
        }
    }

    #[test]
    fn a_capability_is_read_from_a_process_status() {
        assert_eq!(has_capability("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(true));
        assert_eq!(has_capability("CapEff:\t000001fffeffffff\n"), Some(false));
        assert_eq!((has_capability("CapEff:\tx\n"), has_capability("")), (None, None));
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

    #[test]
    fn fuzz_a_geometry_is_one_that_is_written_there() {
        let seed = include_bytes!("../../tests/fixtures/grow/xfs_growfs-n.txt").as_slice();
        crate::fuzz::fuzz("xfs-geometry", &[seed], &[b"data ", b"bsize=", b"blocks=", b"\n", b","], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let (size, status) = (parse_geometry(&text), has_capability(&text));
            assert!(size.is_none() || text.contains("data ") && text.contains("bsize"), "{text}");
            assert_eq!(status, None, "{text}");
        });
    }
}
