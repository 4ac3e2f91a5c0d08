//! Making a file system on a disk that is blank.
//!
//! Owns the last look before a disk is written to, the command lines of the mkfs programs, and the look afterwards. Which
//! parameters exist is `format_options.rs`'s. There is no way to force a file system onto a disk that holds anything.

use std::fs::File;

use crate::activity::{About, Change};
use crate::error::command::{CommandError, Exit};
use crate::error::{Error, Result};
use crate::fs::FsKind;
use crate::host::command::{Cmd, Runner, Tool};
use crate::host::device::busy::is_busy;
use crate::host::device::{Device, ManualAccess};
use crate::host::holders::{Sought, observe_holders};
use crate::host::mkfs_options::FormatOptions;
use crate::host::probe::content::{Content, confirm_content, observe_content};
use crate::host::probe::format_marker;
use crate::host::{CALL_BUDGET, CLAIM_BUDGET, FORMAT_BUDGET, xfs_features};
use crate::metrics::events::{EventKind, record_change};
use crate::sync::semaphore::Semaphore;
use crate::sync::volume_lock::VolumeGuard;

/// How often mkfs is started when it fails and the disk is as blank as before. It refuses a disk that something looks at
/// in the moment it starts, as udev rules do that mount a volume for a short look when it is attached.
const TRIES: u32 = 3;

/// The features of an ext4, whatever the mke2fs.conf of this system adds: since Debian 13 that is `orphan_file`, which makes one
/// inode more than the proof for half an ext4 knows (`partial_ext.rs`), and which kernels before 5.15 do not mount for writing
/// after a power cut. These are the defaults of mke2fs 1.43 to 1.47.0, and all kernels from 4.4 on mount them.
const EXT4_FEATURES: &str = "none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,\
                             has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize";
/// The same of an ext3.
const EXT3_FEATURES: &str = "none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,has_journal";

/// How a file system is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FormatPlan {
    /// On a blank disk.
    Fresh,
    /// Over the beginning of the same, whose making was cut off.
    Again,
}

/// Makes a file system on a disk, after one more look that it is blank and in nobody's use, and sees that it is there.
///
/// A second call is refused, as the disk is no longer blank then. A call after one that was cut off finishes the work.
///
/// # Errors
/// [`Error::WillNotFormat`] when the disk holds anything or is in use, [`Error::Invalid`] when the options do not fit the
/// file system, [`Error::Command`] when mkfs fails, [`Error::TimedOut`] when too many others are formatting.
pub fn apply_format(
    guard: &VolumeGuard,
    tool_permits: &Semaphore,
    runner: &dyn Runner,
    device: &Device,
    fs: FsKind,
    options: &FormatOptions,
) -> Result<()> {
    options.check_for(fs).map_err(|bad| Error::invalid("volume_context", bad))?;
    // A slot is not for waiting until somebody else lets go of the disk.
    drop(device.open_exclusively(runner.cap(CLAIM_BUDGET)).map_err(|error| in_use(device, error))?);
    let slot =
        tool_permits.take_within_call(&format!("formatting {}", device.path().display()), runner.cap(CALL_BUDGET))?;
    let _pin = device.open()?;
    let mut failed = None;
    for _ in 0..TRIES {
        let ready = prepare(guard, runner, device, fs, options);
        let cmd = ready.map_err(|refused| failed.take().unwrap_or(refused))?.with_permit(&slot);
        match runner.run(&cmd).and_then(|out| out.success(&cmd)) {
            Ok(_) => return see_formatted(runner, device, fs, &cmd),
            Err(source) => {
                let doing = format!("making {fs} on {} for volume {}", device.path().display(), device.volume());
                let is_over = !matches!(&source, CommandError::Failed { exit: Exit::Code(_), .. });
                let error = Error::Command { doing, source };
                if is_over {
                    return Err(error);
                }
                failed = Some(error);
            }
        }
    }
    Err(failed.unwrap_or_else(|| Error::Bug("mkfs was never tried".to_owned())))
}

/// Makes sure that the disk is blank and in nobody's use, and gives the command to run right after.
fn prepare(
    guard: &VolumeGuard,
    runner: &dyn Runner,
    device: &Device,
    fs: FsKind,
    options: &FormatOptions,
) -> Result<Cmd> {
    // mkfs claims the disk as this does, so the claim ends before mkfs starts; then mkfs's own claim holds.
    let claim = device.open_exclusively(runner.cap(CLAIM_BUDGET)).map_err(|error| in_use(device, error))?;
    let plan = plan_format(&confirm_content(runner, device)?, fs).map_err(|found| will_not(device, &found))?;
    let features = match fs {
        FsKind::Xfs => xfs_features::observe_arguments(runner)?,
        FsKind::Ext4 => vec!["-O", EXT4_FEATURES],
        FsKind::Ext3 => vec!["-O", EXT3_FEATURES],
        FsKind::Btrfs => Vec::new(),
    };
    leave_note(&claim, device, fs, options)?;
    Ok(command(device, fs, plan, &features, options).holding(guard))
}

fn see_formatted(runner: &dyn Runner, device: &Device, fs: FsKind, cmd: &Cmd) -> Result<()> {
    let seen = observe_content(runner, device)?;
    let path = device.path().display();
    if !matches!(&seen, Content::Filesystem(found) if found.kind == fs) {
        return Err(Error::NotAsReported(format!("`{cmd}` reported success, but {path} now holds {seen}")));
    }
    record_change(
        EventKind::Formatted,
        format_args!("volume {} with {fs}, disk {path}", device.volume()),
        Change::Formatted,
        "formatted",
        About::default().with("name", device.volume()).with("device", device.path().display()).with("fs", fs),
    );
    Ok(())
}

/// Decides whether a disk may be formatted. Pure; every content is named.
fn plan_format(content: &Content, fs: FsKind) -> Result<FormatPlan, String> {
    match content {
        Content::AllZero => Ok(FormatPlan::Fresh),
        Content::Unfinished(kind) if *kind == fs => Ok(FormatPlan::Again),
        Content::Unfinished(_)
        | Content::Filesystem(_)
        | Content::Encrypted(_)
        | Content::OtherSignature { .. }
        | Content::Ambivalent { .. }
        | Content::Unrecognised { .. } => Err(format!("it holds {content}")),
    }
}

fn leave_note(claim: &File, device: &Device, fs: FsKind, options: &FormatOptions) -> Result<()> {
    match fs {
        FsKind::Ext4 | FsKind::Ext3 if options.block_size() == format_marker::BLOCK => {
            format_marker::write(claim, fs).map_err(Error::io("preparing", device.path()))
        }
        // mkfs.xfs and mkfs.btrfs mark their own work as unfinished, and clear the place of the note before all else.
        FsKind::Ext4 | FsKind::Ext3 | FsKind::Xfs | FsKind::Btrfs => Ok(()),
    }
}

/// The command line. Nothing is discarded first: the disk is blank, and discarding 16 TiB would use up the budget.
fn command(device: &Device, fs: FsKind, plan: FormatPlan, features: &[&str], options: &FormatOptions) -> Cmd {
    let cmd = match fs {
        FsKind::Xfs => Cmd::new(Tool::MkfsXfs, FORMAT_BUDGET).args(["-q", "-K"]),
        // mke2fs has no refusal of its own to rely on: without a terminal it overwrites whatever it finds.
        FsKind::Ext4 | FsKind::Ext3 => {
            Cmd::new(Tool::Mke2fs, FORMAT_BUDGET).args(["-q", "-t", fs.name(), "-E", "nodiscard"])
        }
        FsKind::Btrfs => Cmd::new(Tool::MkfsBtrfs, FORMAT_BUDGET).args(["-q", "-K"]),
    };
    let force = match (fs, plan) {
        // mkfs.xfs refuses a disk with an XFS superblock, also one that it did not finish itself.
        (FsKind::Xfs, FormatPlan::Again) => Some("-f"),
        (FsKind::Xfs | FsKind::Ext4 | FsKind::Ext3 | FsKind::Btrfs, FormatPlan::Fresh | FormatPlan::Again) => None,
    };
    cmd.args(force).args(features).args(options.arguments(fs)).arg(device.path())
}

fn in_use(device: &Device, error: Error) -> Error {
    if !is_busy(&error) {
        return error;
    }
    Error::WillNotFormat {
        volume: device.volume().clone(),
        device: device.path().to_owned(),
        found: format!("it is in use on this droplet: {}", observe_holders(&Sought::from(device))),
        cure: "nothing was changed; what uses it has to end first".to_owned(),
    }
}

fn will_not(device: &Device, found: &str) -> Error {
    let ManualAccess { first, path } = device.manual_access();
    Error::WillNotFormat {
        volume: device.volume().clone(),
        device: device.path().to_owned(),
        found: found.to_owned(),
        cure: format!(
            "nothing was changed; {first}see what is on it with `blkid -p {path}` and `wipefs {path}`, which change nothing \
             either; if an empty volume is needed, create another one"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::probe::blkid::{Filesystem, Luks};

    #[test]
    fn the_last_decision_before_a_disk_is_written_to_in_full() {
        for fs in FsKind::ALL {
            assert_eq!(plan_format(&Content::AllZero, fs), Ok(FormatPlan::Fresh));
            let mut refused = vec![
                Content::Encrypted(Luks::default()),
                Content::OtherSignature { what: "LVM".into() },
                Content::Ambivalent { what: "xfs and ext4".into() },
                Content::Unrecognised { at: 512, what: None },
            ];
            for kind in FsKind::ALL {
                refused.push(Content::Filesystem(Filesystem { kind, uuid: None, label: None }));
                match plan_format(&Content::Unfinished(kind), fs) {
                    Ok(plan) => assert_eq!((plan, kind), (FormatPlan::Again, fs)),
                    Err(_) => assert_ne!(kind, fs),
                }
            }
            for content in refused {
                let found = plan_format(&content, fs).unwrap_err();
                assert!(found.contains(&content.to_string()), "{fs}: {found}");
            }
        }
    }

    #[test]
    fn force_is_used_for_nothing_but_an_xfs_that_was_begun() {
        let device =
            Device::fake("/dev/sda", crate::host::device::number::DeviceNumber { major: 8, minor: 0 }, 1 << 30);
        for fs in FsKind::ALL {
            for plan in [FormatPlan::Fresh, FormatPlan::Again] {
                let line = command(&device, fs, plan, &[], &FormatOptions::default()).to_string();
                let has_force = line.split(' ').any(|word| word == "-f" || word == "-F" || word == "--force");
                assert_eq!(has_force, fs == FsKind::Xfs && plan == FormatPlan::Again, "{line}");
            }
        }
    }
}
