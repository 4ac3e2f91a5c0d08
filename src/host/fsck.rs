//! Whether a file system is sound: the check before a mount, and what a refused mount means.
//!
//! Owns the decision that a check is needed, the meaning of e2fsck's exit code, and the command for a person to run. It
//! repairs only what e2fsck repairs without a question (`-p`). xfs and btrfs need no check: their mount replays the
//! log.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::errno::Errno;

use crate::activity::{About, Change, tell_change};
use crate::error::command::Exit;
use crate::error::{Error, Result};
use crate::fs::FsKind;
use crate::host::command::{Cmd, Runner, Tool};
use crate::host::device::or_in_use;
use crate::host::device::{Device, ManualAccess};
use crate::host::probe::superblock::{EXT_SUPERBLOCK, why_ext_needs_check};
use crate::host::{CALL_BUDGET, CHECK_BUDGET, CLAIM_BUDGET, LOOK_BUDGET};
use crate::sync::semaphore::Semaphore;
use crate::sync::volume_lock::VolumeGuard;

/// How much time a check must have had for the file system to be called too large for one.
const ENOUGH: Duration = Duration::from_secs(60);

/// Why a file system should be checked before it is mounted, as a phrase; `None` when it need not be.
///
/// # Errors
/// [`Error::Io`] when the disk cannot be read, [`Error::WrongDevice`] when it was replaced.
pub fn observe_check_need(device: &Device, fs: FsKind) -> Result<Option<&'static str>> {
    match fs {
        FsKind::Xfs | FsKind::Btrfs => Ok(None),
        FsKind::Ext4 | FsKind::Ext3 => {
            let (place, length) = EXT_SUPERBLOCK;
            let mut bytes = vec![0; length];
            device.open()?.read_exact_at(&mut bytes, place).map_err(Error::io("reading", device.path()))?;
            Ok(why_ext_needs_check(&bytes))
        }
    }
}

/// Checks a file system that is not mounted, and repairs what is safe to repair. Does nothing for xfs and btrfs.
///
/// A second call finds a clean file system and changes nothing.
///
/// # Errors
/// [`Error::DamagedFilesystem`] when a person has to decide, [`Error::Command`] when the check itself failed,
/// [`Error::InUse`] when the disk is in use, [`Error::HostUnfit`] when the file system is newer than the program that checks
/// it, [`Error::Unfinished`] when the check takes too long for a call, [`Error::TimedOut`] when too many others are checking.
/// Source: e2fsck(8), "EXIT CODE".
pub fn apply_check(
    guard: &VolumeGuard,
    tool_permits: &Semaphore,
    runner: &dyn Runner,
    device: &Device,
    fs: FsKind,
) -> Result<()> {
    match fs {
        FsKind::Xfs | FsKind::Btrfs => return Ok(()),
        FsKind::Ext4 | FsKind::Ext3 => {}
    }
    let doing = format!("checking {} of volume {}", device.path().display(), device.volume());
    let ensure_free = |budget| {
        let claim = device.open_exclusively(runner.cap(budget));
        claim.map(drop).map_err(or_in_use(device, "the check"))
    };
    // Wait for the disk before a slot is taken: others should not wait for it too.
    ensure_free(CLAIM_BUDGET)?;
    let slot = tool_permits.take_within_call(&doing, runner.cap(CALL_BUDGET))?;
    let _pin = device.open()?;
    ensure_free(LOOK_BUDGET)?;
    let left = runner.cap(CHECK_BUDGET);
    let cmd = Cmd::new(Tool::E2fsck, CHECK_BUDGET).arg("-p").arg(device.path()).holding(guard).with_permit(&slot);
    let out = runner.run(&cmd).map_err(|source| Error::Command { doing: doing.clone(), source })?;
    match verdict(out.exit) {
        Verdict::Sound => Ok(()),
        Verdict::Repaired => {
            tell_change(
                Change::Repaired,
                "repaired",
                About::default().with("name", device.volume()).with("device", device.path().display()).with("fs", fs),
            );
            Ok(())
        }
        Verdict::Damaged => {
            let said = String::from_utf8_lossy(&out.stdout);
            let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("e2fsck gives no reason");
            Err(damaged(device, fs, last.trim()))
        }
        Verdict::Unfinished if left < ENOUGH => Err(Error::TimedOut {
            doing,
            waited_s: left.as_secs(),
            waited_for:
                "too little of the call's time was left when it was this volume's turn; it lost nothing, ask again"
                    .to_owned(),
        }),
        Verdict::Unfinished => Err(unfinished(device, fs)),
        Verdict::Failed if is_too_old(&out.stderr) => Err(too_old(device, fs, &out.stderr)),
        Verdict::Failed => Err(Error::Command { doing, source: out.into_error(&cmd) }),
    }
}

/// Whether e2fsck says that it does not know a feature of the file system, for which it has no exit code of its own.
///
/// Source: `main` in e2fsprogs' `e2fsck/unix.c`.
fn is_too_old(stderr: &str) -> bool {
    stderr.contains("Get a newer version of e2fsck!")
}

/// Nothing is wrong with the file system, and nothing was changed.
fn too_old(device: &Device, fs: FsKind, said: &str) -> Error {
    let (ManualAccess { first, path }, volume) = (device.manual_access(), device.volume());
    let said = said.lines().find(|line| line.contains("feature")).unwrap_or_default().trim();
    Error::HostUnfit(format!(
        "the plugin's e2fsck is too old for {fs} of volume {volume}, which a newer system has made ({said}); nothing was \
         changed: use an image of the plugin with newer e2fsprogs, or {first}run a newer `e2fsck -p {path}` while nothing has \
         it mounted"
    ))
}

/// An interrupted check loses nothing: e2fsck ends in an orderly way, and starts from the beginning the next time. If
/// every call started it again, it would never finish. So a person has to let it run once.
fn unfinished(device: &Device, fs: FsKind) -> Error {
    let (ManualAccess { first, path }, volume) = (device.manual_access(), device.volume());
    Error::Unfinished(format!(
        "the check of {fs} of volume {volume} takes longer than a call may last and was ended; {first}run `e2fsck -p {path}` \
         on this droplet while nothing has it mounted, then try again"
    ))
}

/// What e2fsck's end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Sound,
    Repaired,
    Damaged,
    Unfinished,
    Failed,
}

/// Reads e2fsck's exit code, a sum: 1 and 2 repaired, 4 errors are left, 8 could not work, 16 wrong usage, 32 cancelled,
/// 128 a library is missing.
fn verdict(exit: Exit) -> Verdict {
    const REPAIRED: i32 = 1 | 2;
    const LEFT: i32 = 4;
    match exit {
        Exit::Code(0) => Verdict::Sound,
        Exit::Code(code) if code & !REPAIRED == 0 => Verdict::Repaired,
        Exit::Code(code) if code & LEFT != 0 && (0..256).contains(&code) => Verdict::Damaged,
        Exit::TimedOut => Verdict::Unfinished,
        Exit::Code(_) | Exit::Signal(_) | Exit::Stuck => Verdict::Failed,
    }
}

/// The error for a mount that was refused because the file system is damaged; `None` for another refusal.
///
/// Source: the kernel's `EFSCORRUPTED` is EUCLEAN ("Structure needs cleaning"), `EFSBADCRC` is EBADMSG.
pub(super) fn damage(device: &Device, fs: FsKind, errno: Errno) -> Option<Error> {
    let is_damage = matches!(errno, Errno::EUCLEAN | Errno::EBADMSG);
    is_damage.then(|| damaged(device, fs, &format!("mount: {}", errno.desc())))
}

fn damaged(device: &Device, fs: FsKind, found: &str) -> Error {
    let ManualAccess { first, path } = device.manual_access();
    let repair = match fs {
        FsKind::Ext4 | FsKind::Ext3 => format!("e2fsck -f {path}"),
        FsKind::Xfs => format!("xfs_repair {path}"),
        FsKind::Btrfs => format!("btrfs check {path}"),
    };
    Error::DamagedFilesystem {
        volume: device.volume().clone(),
        device: device.path().to_owned(),
        found: found.to_owned(),
        cure: format!(
            "take a snapshot of the volume, then {first}run `{repair}` on this droplet while nothing has it mounted"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_of_e2fsck_has_one_meaning() {
        for code in 0..256 {
            let want = match code {
                0 => Verdict::Sound,
                1..=3 => Verdict::Repaired,
                _ if code & 4 != 0 => Verdict::Damaged,
                _ => Verdict::Failed,
            };
            assert_eq!(verdict(Exit::Code(code)), want, "{code}");
        }
        assert_eq!(verdict(Exit::TimedOut), Verdict::Unfinished);
        for other in [Exit::Code(-1), Exit::Code(260), Exit::Code(i32::MAX), Exit::Signal(9), Exit::Stuck] {
            assert_eq!(verdict(other), Verdict::Failed, "{other:?}");
        }
    }

    #[test]
    fn a_program_that_is_too_old_is_told_from_one_that_fails() {
        // As e2fsck 1.47.0 printed it.
        let old = "/dev/sda has unsupported feature(s): FEATURE_I27\ne2fsck: Get a newer version of e2fsck!\n";
        let other =
            "e2fsck: Permission denied while trying to open /dev/sda\nYou must have r/w access to the filesystem";
        assert!(is_too_old(old) && !is_too_old(other) && !is_too_old(""));
        let device = Device::fake("/dev/sda", crate::host::device::number::DeviceNumber { major: 8, minor: 0 }, 1);
        let told = too_old(&device, FsKind::Ext4, old).to_string();
        assert!(told.contains("FEATURE_I27") && told.contains("too old") && !told.contains("repair"), "{told}");
    }

    #[test]
    fn only_what_the_kernel_calls_damage_is_damage() {
        let device = Device::fake("/dev/sda", crate::host::device::number::DeviceNumber { major: 8, minor: 0 }, 1);
        for fs in FsKind::ALL {
            for errno in [Errno::EUCLEAN, Errno::EBADMSG] {
                assert!(damage(&device, fs, errno).unwrap().to_string().contains("/dev/sda"));
            }
            for errno in [Errno::EINVAL, Errno::EBUSY, Errno::EIO, Errno::ENODEV, Errno::EPERM, Errno::ENOENT] {
                assert!(damage(&device, fs, errno).is_none());
            }
        }
    }
}
