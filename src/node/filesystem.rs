//! From a disk to a file system that can be mounted: made if the disk is certainly blank, checked if that is due, grown
//! if its disk is larger.
//!
//! Owns the limit of programs that do this at once: each of them needs memory and the bandwidth of the disks. `plan.rs`
//! decides which file system to make.

use std::path::Path;

use log::{info, warn};

use crate::config::{Config, MAX_HEAVY_TOOLS};
use crate::error::{Chain, Error, Result};
use crate::fs::FsKind;
use crate::host::CLAIM_BUDGET;
use crate::host::device::Device;
use crate::host::fsck::{apply_check, observe_check_need};
use crate::host::grow::{ensure_grown, observe_is_smaller};
use crate::host::mkfs::apply_format;
use crate::host::mount_options::MountOptions;
use crate::host::mountable::{observe_mountable, plan_mountable};
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::probe::content::{Content, observe_content};
use crate::host::superblock_check::check_superblock;
use crate::node::NodeCall;
use crate::node::block::ensure_protection;
use crate::node::mount_state::fs_difference;
use crate::node::plan::{DiskPlan, Formatting, plan_disk};
use crate::request::node::Stage;
use crate::sync::semaphore::Semaphore;

/// How a volume's file system should be mounted at its staging path.
#[derive(Debug)]
pub(super) struct WantedFs<'a> {
    pub(super) device: &'a Device,
    /// The disk of an encrypted volume that no caller has received yet.
    pub(super) new_on: Option<&'a Device>,
    pub(super) stage: &'a Stage,
    /// `None`: the file system on the disk, or the default on a blank disk.
    pub(super) fs: Option<FsKind>,
    pub(super) options: MountOptions,
    /// The staging path as the mount table shows it.
    pub(super) staging: &'a Path,
}

impl WantedFs<'_> {
    /// How a mount of the volume differs from the request, as a phrase.
    pub(super) fn difference(&self, mount: &Mount) -> Option<String> {
        fs_difference(self.fs, mount).or_else(|| self.options.differs_from(mount))
    }

    /// Checks, before anything is written to the disk, that the kernel can mount this file system with the requested
    /// options.
    fn check_mountable(&self, fs: FsKind, is_to_be_made: bool) -> Result<()> {
        plan_mountable(fs, &self.options, &observe_mountable(fs, &self.options, self.staging), is_to_be_made)
    }
}

/// Whether a volume that is staged like this may be formatted.
pub(super) fn formatting(stage: &Stage, options: &MountOptions) -> Formatting {
    match (stage.settings.is_never_formatted, options.is_read_only()) {
        (true, _) => Formatting::Never,
        (false, true) => Formatting::ReadOnly,
        (false, false) => Formatting::Allowed,
    }
}

/// The limits for programs that make, check and grow file systems. Each kind has its own: no kind waits for another.
#[derive(Debug)]
pub(super) struct FsTools {
    format: Semaphore,
    check: Semaphore,
    grow: Semaphore,
    default_fs: FsKind,
}

impl FsTools {
    pub(super) fn new(config: &Config) -> FsTools {
        let room = |held_by| Semaphore::new(MAX_HEAVY_TOOLS, held_by);
        FsTools {
            format: room("other volumes are still being formatted"),
            check: room("the file systems of other volumes are still being checked"),
            grow: room("the file systems of other volumes are still being grown"),
            default_fs: config.default_fs_type,
        }
    }

    /// The file system that a blank disk gets when none is asked for.
    pub(super) fn default_fs(&self) -> FsKind {
        self.default_fs
    }

    /// Makes the file system if the disk is blank, and checks it if that is due; says which one it is.
    ///
    /// # Errors
    /// As [`plan_disk`]; what the programs say; [`Error::InUse`] when somebody has the disk.
    pub(super) fn ensure_filesystem(
        &self,
        call: &NodeCall<'_>,
        mounts: &MountTable,
        want: &WantedFs<'_>,
    ) -> Result<FsKind> {
        let fs = self.ensure_made(call, want)?;
        let device = want.device;
        check_superblock(device, fs)?;
        if let Some(why) = observe_check_need(device, fs)? {
            info!(name:% = device.volume(), device:% = device.path().display(), fs:%; "checking the file system: {why}");
            // The check also writes for a reader. With a read-only flag that a killed call has left, it would always
            // fail.
            ensure_protection(call, mounts, device, false)?;
            apply_check(&call.guard, &self.check, &call.runner, device, fs)?;
        }
        Ok(fs)
    }

    fn ensure_made(&self, call: &NodeCall<'_>, want: &WantedFs<'_>) -> Result<FsKind> {
        let device = want.device;
        let formatting = formatting(want.stage, &want.options);
        let plan = |content: &Content| plan_disk(device, want.fs, self.default_fs, formatting, content);
        let content = observe_settled(call, device)?;
        let fs = match plan(&content)? {
            DiskPlan::Mount(fs) => {
                want.check_mountable(fs, false)?;
                return Ok(fs);
            }
            DiskPlan::FormatThenMount(fs) => fs,
        };
        want.check_mountable(fs, true)?;
        info!(name:% = device.volume(), device:% = device.path().display(), fs:%; "formatting");
        let options = &want.stage.settings.format;
        match apply_format(&call.guard, &self.format, &call.runner, device, fs, options) {
            Ok(()) => Ok(fs),
            Err(refused @ Error::WillNotFormat { .. }) => match plan(&observe_content(&call.runner, device)?)? {
                // Somebody else made it meanwhile.
                DiskPlan::Mount(fs) => Ok(fs),
                DiskPlan::FormatThenMount(_) => Err(refused),
            },
            Err(other) => Err(other),
        }
    }

    /// Grows a file system that is smaller than its disk, such as a restored snapshot's, through a mount of it. If it
    /// cannot be grown, it is used as it is: nothing is lost, and NodeExpandVolume says why.
    pub(super) fn ensure_full_size(&self, call: &NodeCall<'_>, device: &Device, mount: &Mount) {
        let Some(fs) = FsKind::parse(&mount.fstype) else { return };
        let grown = observe_is_smaller(device, fs).and_then(|is_smaller| {
            if is_smaller { self.ensure_grown(call, device, fs, &mount.target) } else { Ok(false) }
        });
        if let Err(err) = grown {
            warn!("the file system is smaller than its disk and stays so: {}", Chain(&err));
        }
    }

    /// Grows a file system to its disk's size through one of its mounts; says whether it was smaller.
    ///
    /// # Errors
    /// As [`ensure_grown`].
    pub(super) fn ensure_grown(&self, call: &NodeCall<'_>, device: &Device, fs: FsKind, at: &Path) -> Result<bool> {
        ensure_grown(&call.guard, &self.grow, &call.runner, device, fs, at)
    }
}

/// Reads what is on a disk. If that is not clear, it reads again when nobody else uses the disk any more: the mkfs of a
/// killed plugin goes on, and its result counts, not what was on the disk halfway.
fn observe_settled(call: &NodeCall<'_>, device: &Device) -> Result<Content> {
    let content = observe_content(&call.runner, device)?;
    match content {
        Content::AllZero | Content::Filesystem(_) | Content::Encrypted(_) => return Ok(content),
        Content::Unfinished(_)
        | Content::OtherSignature { .. }
        | Content::Ambivalent { .. }
        | Content::Unrecognised { .. } => {}
    }
    device.check_is_free("the mount", call.cap(CLAIM_BUDGET)).map_err(or_wait)?;
    observe_content(&call.runner, device)
}

/// For a disk in use with unclear content: the error adds that a program may still be making the file system.
fn or_wait(err: Error) -> Error {
    let cure = "if that is a program that still makes its file system (mkfs, cryptsetup), do not end it, and try again when it \
                has ended; anything else may be ended first";
    if let Error::InUse { doing, found, cure: _ } = err { Error::InUse { doing, found, cure } } else { err }
}
