//! cryptsetup and dmsetup: making, opening, growing and closing an encrypted volume, and seeing what it is.
//!
//! Owns their command lines and the meaning of their exit codes. The key goes to standard input and nowhere else.
//! `header.rs` decides which headers and tables are accepted, and `mapper.rs` sees what is open and on which disk.

use std::time::Duration;

use crate::error::command::{CommandError, Exit};
use crate::error::{Error, Result};
use crate::host::command::{Cmd, Output, Runner, Tool};
use crate::host::device::Device;
use crate::host::luks::header::{CIPHER, why_not_header, why_not_table};
use crate::host::luks::layout::{DATA_AT, SUBSYSTEM, SUBSYSTEM_NEW};
use crate::host::luks::passphrase::Key;
use crate::id::VolumeName;
use crate::sync::semaphore::Permit;
use crate::sync::volume_lock::VolumeGuard;

/// How long cryptsetup may take for what needs no key: it reads and writes 32 KiB.
const BUDGET: Duration = Duration::from_secs(10);
/// How long it may take with a key: making one from it is meant to take time, most of it on a small and busy droplet.
const KEY_BUDGET: Duration = Duration::from_secs(60);

/// The memory that making a key takes, in KiB, each time the volume is opened. cryptsetup's own choice is up to 1 GiB, for
/// which a container with the memory of a plugin is killed.
const KEY_MEMORY: &str = "32768";
/// For how long, in milliseconds, making a key is to take on the droplet on which the volume is made.
const KEY_TIME: &str = "1000";
/// The length of the key that data is encrypted with: AES-256, as XTS has two.
const KEY_BITS: &str = "512";

/// Sees that this kernel can open encrypted volumes, before a disk is made one. cryptsetup is asked for the state of a name
/// that there is not, for which it needs the device mapper as it does for opening, and has the kernel load its module. dmsetup
/// is asked for the version of what encrypts (dm-crypt), which has the kernel load that too.
///
/// # Errors
/// [`Error::HostUnfit`] when the kernel has no device mapper or no dm-crypt, [`Error::Command`] when cryptsetup does not answer.
/// Source: `action_status` in cryptsetup's `src/cryptsetup.c`; `__list_versions` in the kernel's `drivers/md/dm-ioctl.c`.
pub fn check_has_mapper(runner: &dyn Runner, disk: &Device) -> Result<()> {
    let cmd = Cmd::new(Tool::Cryptsetup, BUDGET).args(["status", NO_NAME]);
    let doing = || format!("asking for the device mapper before volume {} is encrypted", disk.volume());
    let failed = |source| Error::Command { doing: doing(), source };
    let out = runner.run(&cmd).map_err(failed)?;
    plan_has_mapper(out, &cmd, disk.volume(), doing)?;
    let cmd = Cmd::new(Tool::Dmsetup, BUDGET).args(["target-version", "crypt"]);
    let out = runner.run(&cmd).map_err(failed)?;
    if lacks_crypt(&out) { Err(no_mapper(disk.volume(), &out.into_error(&cmd))) } else { Ok(()) }
}

/// A name under which nothing is ever open: those of volumes go on otherwise.
const NO_NAME: &str = "do-csi-.asks";

/// What the end of cryptsetup means that was asked for the state of a name. Pure.
///
/// Source: cryptsetup(8), "RETURN CODES"; 4 is a device that does not exist, 1 is what it ends with without a device mapper.
fn plan_has_mapper(out: Output, cmd: &Cmd, volume: &VolumeName, doing: impl Fn() -> String) -> Result<()> {
    match out.exit {
        Exit::Code(0 | 4) => Ok(()),
        Exit::Code(1) => Err(no_mapper(volume, &out.into_error(cmd))),
        Exit::Code(_) | Exit::Signal(_) | Exit::TimedOut | Exit::Stuck => {
            Err(Error::Command { doing: doing(), source: out.into_error(cmd) })
        }
    }
}

/// Whether the kernel certainly has no dm-crypt. Before Linux 5.5, and by a dmsetup of before 2019, it cannot be asked: then the
/// first opening shows it.
///
/// Source: `get_target_version` in the kernel's `drivers/md/dm-ioctl.c` answers EINVAL; dmsetup ends with 1 for everything.
fn lacks_crypt(out: &Output) -> bool {
    out.exit == Exit::Code(1) && out.stderr.contains("Invalid argument")
}

fn no_mapper(volume: &VolumeName, said: &CommandError) -> Error {
    Error::HostUnfit(format!(
        "the encrypted volume {volume} is neither made nor opened and its disk is as it was, because the kernel of this droplet \
         could not open it: {said}; it needs the modules dm-mod and dm-crypt (`modprobe dm-crypt` must work on the droplet)"
    ))
}

/// Makes an encrypted volume on a disk, which is known to be blank. What is made is marked as not yet used.
///
/// # Errors
/// [`Error::Command`] when cryptsetup fails, [`Error::HostUnfit`] for a reason with a cure.
/// Source: cryptsetup-luksFormat(8).
pub(in crate::host) fn apply_format(
    guard: &VolumeGuard,
    runner: &dyn Runner,
    turn: &Permit,
    disk: &Device,
    key: &Key,
) -> Result<()> {
    let sectors = (DATA_AT / 512).to_string();
    let cmd = Cmd::new(Tool::Cryptsetup, KEY_BUDGET)
        .args(["luksFormat", "--type", "luks2", "--batch-mode", "--key-file=-", "--offset", &sectors])
        .args(["--pbkdf", "argon2id", "--pbkdf-memory", KEY_MEMORY, "--pbkdf-parallel", "1", "--iter-time", KEY_TIME])
        .args(["--cipher", CIPHER, "--key-size", KEY_BITS, "--hash", "sha256"])
        .args(["--subsystem", SUBSYSTEM_NEW])
        .arg(disk.path())
        .reading(key)
        .holding(guard)
        .with_permit(turn);
    let doing = format!("making volume {} an encrypted one on {}", disk.volume(), disk.path().display());
    run(runner, &cmd, disk.volume(), doing)
}

/// Opens an encrypted volume under a name that is free. It may be open also after this failed: cryptsetup can be cut off at
/// any moment.
///
/// # Errors
/// [`Error::Invalid`] when the key does not fit, [`Error::Command`] when cryptsetup fails, [`Error::HostUnfit`] for a reason
/// with a cure.
/// Source: cryptsetup-open(8).
pub fn apply_open(
    guard: &VolumeGuard,
    runner: &dyn Runner,
    turn: &Permit,
    disk: &Device,
    name: &str,
    key: &Key,
) -> Result<()> {
    let cmd = Cmd::new(Tool::Cryptsetup, KEY_BUDGET)
        .args(["open", "--type", "luks2", "--batch-mode", "--key-file=-"])
        .arg(disk.path())
        .arg(name)
        .reading(key)
        .holding(guard)
        .with_permit(turn);
    let doing = format!("opening the encrypted volume {} on {}", disk.volume(), disk.path().display());
    run(runner, &cmd, disk.volume(), doing).map_err(|failed| or_no_mapper(runner, disk, failed))?;
    log::info!(name:% = disk.volume(), device:% = disk.path().display(), mapper:% = name; "opened the encrypted volume");
    Ok(())
}

/// The error for a volume that could not be opened: that this kernel opens none, when that is why. cryptsetup ends then as with
/// anything that it does not know.
fn or_no_mapper(runner: &dyn Runner, disk: &Device, failed: Error) -> Error {
    let is_its_end = matches!(&failed, Error::Command { source: CommandError::Failed { exit: Exit::Code(_), .. }, .. });
    let unfit = if is_its_end { check_has_mapper(runner, disk).err() } else { None };
    unfit.filter(|unfit| matches!(unfit, Error::HostUnfit(_))).unwrap_or(failed)
}

/// Makes an open encrypted volume as large as its disk. The kernel keeps the key to itself, so cryptsetup needs it again.
///
/// A second call changes nothing.
///
/// # Errors
/// As [`apply_open`].
/// Source: cryptsetup-resize(8).
pub fn apply_resize(
    guard: &VolumeGuard,
    runner: &dyn Runner,
    turn: &Permit,
    volume: &VolumeName,
    name: &str,
    key: &Key,
) -> Result<()> {
    let cmd = Cmd::new(Tool::Cryptsetup, KEY_BUDGET)
        .args(["resize", "--batch-mode", "--key-file=-"])
        .arg(name)
        .reading(key)
        .holding(guard)
        .with_permit(turn);
    run(runner, &cmd, volume, format!("growing the encrypted volume {volume}"))?;
    log::info!(name:% = volume, mapper:% = name; "grown the encrypted volume");
    Ok(())
}

/// Closes an open encrypted volume as soon as nothing uses it any more, which may be at once: then the kernel forgets the
/// key, also when this program has ended by then. Until then it can be used as before.
///
/// A second call changes nothing, nor does one for a device that does not exist: the kernel may just have closed it.
///
/// # Errors
/// [`Error::Command`] when cryptsetup fails.
/// Source: cryptsetup-close(8), `--deferred`; `dm_lock_for_deletion` and `dm_blk_close` in the kernel's `drivers/md/dm.c`.
pub fn apply_close(guard: &VolumeGuard, runner: &dyn Runner, name: &str) -> Result<()> {
    let cmd = Cmd::new(Tool::Cryptsetup, BUDGET).args(["close", "--deferred"]).arg(name).holding(guard);
    let failed = |source| Error::Command { doing: format!("closing the open encrypted volume {name}"), source };
    let out = runner.run(&cmd).map_err(failed)?;
    match out.exit {
        // "The device does not exist or access is denied."
        Exit::Code(0 | 4) => Ok(()),
        Exit::Code(_) | Exit::Signal(_) | Exit::TimedOut | Exit::Stuck => Err(failed(out.into_error(&cmd))),
    }
}

/// Takes the mark off an encrypted volume that says that it was not used yet.
///
/// A second call changes nothing.
///
/// # Errors
/// [`Error::Command`] when cryptsetup fails.
/// Source: cryptsetup-config(8).
pub fn apply_mark_used(guard: &VolumeGuard, runner: &dyn Runner, disk: &Device) -> Result<()> {
    let _pin = disk.open()?;
    let cmd =
        Cmd::new(Tool::Cryptsetup, BUDGET).args(["config", "--subsystem", SUBSYSTEM]).arg(disk.path()).holding(guard);
    run(runner, &cmd, disk.volume(), format!("marking the encrypted volume {} as used", disk.volume()))
}

/// Whether the header of an encrypted volume is whole, by its checksums. Of its two copies one is enough: cryptsetup then
/// writes the other one anew.
///
/// # Errors
/// [`Error::Command`] when cryptsetup does not answer.
/// Source: cryptsetup-isLuks(8); `LUKS2_disk_hdr_read` in cryptsetup's `lib/luks2/luks2_disk_metadata.c`.
pub(in crate::host) fn observe_is_whole(runner: &dyn Runner, disk: &Device) -> Result<bool> {
    let cmd = Cmd::new(Tool::Cryptsetup, BUDGET).args(["isLuks", "--type", "luks2"]).arg(disk.path());
    let doing = || format!("looking at the header of the encrypted volume {}", disk.volume());
    let out = runner.run(&cmd).map_err(|source| Error::Command { doing: doing(), source })?;
    plan_is_whole(out, &cmd, doing)
}

/// What the header of an encrypted volume, which is whole, asks for that is not taken, as a phrase; `None` when all of it is.
/// Nothing is opened, and nothing is written to the disk.
///
/// # Errors
/// [`Error::Command`] when cryptsetup does not answer.
pub(in crate::host) fn observe_why_not_header(runner: &dyn Runner, disk: &Device) -> Result<Option<String>> {
    let cmd = Cmd::new(Tool::Cryptsetup, BUDGET).args(["luksDump", "--dump-json-metadata"]).arg(disk.path());
    let doing = || format!("reading the header of the encrypted volume {}", disk.volume());
    let failed = |source| Error::Command { doing: doing(), source };
    let printed = runner.run(&cmd).and_then(|out| out.success(&cmd)).map_err(failed)?;
    Ok(why_not_header(&printed))
}

/// Sees that what is written to an open encrypted volume is encrypted, and on its own disk, by what the kernel says of it: the
/// header was looked at before it was opened, and this is what came of it.
///
/// # Errors
/// [`Error::NotAsReported`] when it is not so, [`Error::Command`] when dmsetup does not answer or is missing.
pub fn check_is_encrypting(runner: &dyn Runner, disk: &Device, name: &str) -> Result<()> {
    let cmd = Cmd::new(Tool::Dmsetup, BUDGET).args(["table", name]);
    let doing = || format!("looking how the open encrypted volume {} is encrypted", disk.volume());
    let failed = |source| Error::Command { doing: doing(), source };
    let printed = runner.run(&cmd).and_then(|out| out.success(&cmd)).map_err(failed)?;
    why_not_table(&String::from_utf8_lossy(&printed), disk.number).map_or(Ok(()), |why| {
        Err(Error::NotAsReported(format!(
            "the open encrypted volume {} ({name}) on {} is not encrypted as it should be: {why}; see `dmsetup table {name}`; whoever \
             could write to its disk while it was detached may have changed its header, so let nothing write to it until it is \
             known who did",
            disk.volume(),
            disk.path().display()
        )))
    })
}

/// What the end of cryptsetup means that was asked whether a header is whole. Pure.
///
/// Source: cryptsetup(8), "RETURN CODES"; 5 is what 2.6.1 ends with when it cannot make its lock, without a word.
fn plan_is_whole(out: Output, cmd: &Cmd, doing: impl Fn() -> String) -> Result<bool> {
    match out.exit {
        Exit::Code(0) => Ok(true),
        Exit::Code(1) => Ok(false),
        Exit::Code(5) => Err(Error::HostUnfit(format!(
            "{}: {}; it makes a lock in /run/cryptsetup, so see that the plugin can write there",
            doing(),
            out.into_error(cmd)
        ))),
        Exit::Code(_) | Exit::Signal(_) | Exit::TimedOut | Exit::Stuck => {
            Err(Error::Command { doing: doing(), source: out.into_error(cmd) })
        }
    }
}

fn run(runner: &dyn Runner, cmd: &Cmd, volume: &VolumeName, doing: String) -> Result<()> {
    match runner.run(cmd) {
        Ok(out) => plan_outcome(out, cmd, volume, doing),
        Err(source) => Err(Error::Command { doing, source }),
    }
}

/// What an end of cryptsetup means. Pure.
///
/// Source: cryptsetup(8), "RETURN CODES".
fn plan_outcome(out: Output, cmd: &Cmd, volume: &VolumeName, doing: String) -> Result<()> {
    match out.exit {
        Exit::Code(0) => Ok(()),
        Exit::Code(2) => Err(Error::invalid(
            "secrets",
            format!(
                "the key does not open the encrypted volume {volume}, whose header is whole: it is not this volume's key (every \
                 byte counts, a line end at the end too), or the key slots on its disk are damaged; nothing was changed"
            ),
        )),
        Exit::Code(3) | Exit::Signal(9) => Err(out_of_memory(out.into_error(cmd), &doing)),
        Exit::Code(_) | Exit::Signal(_) | Exit::TimedOut | Exit::Stuck => {
            Err(Error::Command { doing, source: out.into_error(cmd) })
        }
    }
}

fn out_of_memory(failed: CommandError, doing: &str) -> Error {
    Error::HostUnfit(format!(
        "{doing}: there is not enough memory for making the key ({failed}); it takes 32 MiB for a volume that this plugin has \
         made, and up to 1 GiB for others, so give the plugin's job that much"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_of_cryptsetup_has_a_meaning() {
        let cmd = Cmd::new(Tool::Cryptsetup, BUDGET).arg("open");
        let volume = VolumeName::parse("blog").unwrap();
        let end = |exit| {
            let out = Output { exit, stdout: Vec::new(), stderr: "No key available".into() };
            plan_outcome(out, &cmd, &volume, "opening".into())
        };
        assert!(end(Exit::Code(0)).is_ok());
        let wrong = end(Exit::Code(2)).unwrap_err();
        assert!(matches!(&wrong, Error::Invalid { field, .. } if field == "secrets"), "{wrong}");
        assert!(wrong.to_string().contains("blog"), "{wrong}");
        for exit in [Exit::Code(3), Exit::Signal(9)] {
            let err = end(exit).unwrap_err();
            assert!(matches!(&err, Error::HostUnfit(why) if why.contains("memory")), "{err}");
        }
        for exit in [Exit::Code(1), Exit::Code(4), Exit::Code(5), Exit::Signal(11), Exit::TimedOut, Exit::Stuck] {
            assert!(matches!(end(exit), Err(Error::Command { .. })), "{exit}");
        }
    }

    #[test]
    fn only_one_end_of_cryptsetup_says_that_there_is_no_device_mapper() {
        let cmd = Cmd::new(Tool::Cryptsetup, BUDGET).arg("status");
        let volume = VolumeName::parse("blog").unwrap();
        let end = |exit| {
            let stderr = "Cannot initialize device-mapper.".into();
            plan_has_mapper(Output { exit, stdout: Vec::new(), stderr }, &cmd, &volume, || "asking".into())
        };
        assert!(end(Exit::Code(4)).is_ok() && end(Exit::Code(0)).is_ok());
        let none = end(Exit::Code(1)).unwrap_err();
        assert!(matches!(&none, Error::HostUnfit(why) if why.contains("device-mapper")), "{none}");
        for exit in [Exit::Code(2), Exit::Code(3), Exit::Code(5), Exit::Signal(9), Exit::TimedOut, Exit::Stuck] {
            assert!(matches!(end(exit), Err(Error::Command { .. })), "{exit}");
        }
    }

    #[test]
    fn dm_crypt_is_missing_only_when_the_kernel_says_so() {
        let end = |exit, stderr: &str| Output { exit, stdout: Vec::new(), stderr: stderr.to_owned() };
        let missing = "device-mapper: target-version ioctl on crypt  failed: Invalid argument\nCommand failed.\n";
        assert!(lacks_crypt(&end(Exit::Code(1), missing)));
        for (exit, said) in [
            (Exit::Code(0), ""),
            (Exit::Code(1), "device-mapper: target-version ioctl on crypt  failed: Inappropriate ioctl for device"),
            (Exit::Code(2), "Unknown command."),
            (Exit::Signal(9), missing),
            (Exit::TimedOut, ""),
        ] {
            assert!(!lacks_crypt(&end(exit, said)), "{exit} {said}");
        }
        let told = no_mapper(
            &VolumeName::parse("blog").unwrap(),
            &end(Exit::Code(1), missing).into_error(&Cmd::new(Tool::Dmsetup, BUDGET)),
        );
        assert!(
            told.to_string().contains("its disk is as it was") && told.to_string().contains("modprobe dm-crypt"),
            "{told}"
        );
    }

    #[test]
    fn only_one_end_of_cryptsetup_says_that_a_head_is_damaged() {
        let cmd = Cmd::new(Tool::Cryptsetup, BUDGET).arg("isLuks");
        let end = |exit| {
            let out = Output { exit, stdout: Vec::new(), stderr: String::new() };
            plan_is_whole(out, &cmd, || "looking".into())
        };
        assert!(end(Exit::Code(0)).unwrap() && !end(Exit::Code(1)).unwrap());
        let unlocked = end(Exit::Code(5)).unwrap_err();
        assert!(matches!(&unlocked, Error::HostUnfit(why) if why.contains("/run/cryptsetup")), "{unlocked}");
        for exit in [Exit::Code(2), Exit::Code(3), Exit::Code(4), Exit::Signal(9), Exit::TimedOut, Exit::Stuck] {
            assert!(matches!(end(exit), Err(Error::Command { .. })), "{exit}");
        }
    }
}
