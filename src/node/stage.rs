//! Staging: the volume's disk is found, formatted when it is certainly blank, and mounted once for all its users.
//!
//! Owns the order of these steps and their repetition. A second call finds the mount and does nothing; a call that was cut
//! off anywhere is completed by the next. A second staging path, as Nomad has one for readers and one for writers, gets a
//! mount of its own of the same file system.

use std::path::{Path, PathBuf};

use log::{info, warn};

use crate::config::{DEVICE_BUDGET, MOUNT_BUDGET};
use crate::error::{Chain, Error, Result};
use crate::fs::FsKind;
use crate::host::CLAIM_BUDGET;
use crate::host::device::Device;
use crate::host::device::lookup::await_device;
use crate::host::fsck::{apply_check, observe_check_need};
use crate::host::grow::{ensure_grown, observe_is_smaller};
use crate::host::mkfs::apply_format;
use crate::host::mount::{Unmount, apply_mount, apply_unmount, apply_writable, observe_mounts};
use crate::host::mount_options::{MountOptions, NO_UUID};
use crate::host::mountable::{observe_mountable, plan_mountable};
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::presence::observe_is_there;
use crate::host::probe::content::{Content, observe_content};
use crate::host::propagation::check_reaches_host;
use crate::node::block::check_staged_raw;
use crate::node::luks::open::Unlocked;
use crate::node::mount_point;
use crate::node::mount_point::Shape;
use crate::node::mount_state::{fs_difference, used_otherwise};
use crate::node::ownership::{Root, ensure_root};
use crate::node::plan::{
    DiskPlan, Formatting, MountPlan, MountPointPlan, plan_disk, plan_exclusive_use, plan_mount, plan_mount_point,
    plan_mounted,
};
use crate::node::scratch_mount;
use crate::node::scratch_mount::{Copied, ScratchMount, apply_copied};
use crate::node::take_down::apply_clear;
use crate::node::{Arrival, Node, NodeCall};
use crate::request::capability::Access;
use crate::request::node::Stage;

/// A volume that is to be mounted at its staging path.
struct Wanted<'a> {
    device: &'a Device,
    /// The disk of an encrypted volume that nobody was given yet.
    new_on: Option<&'a Device>,
    stage: &'a Stage,
    fs: Option<FsKind>,
    options: MountOptions,
    staging: &'a Path,
}

impl Wanted<'_> {
    /// How a mount of the volume is not as asked, as a phrase.
    fn difference(&self, mount: &Mount) -> Option<String> {
        fs_difference(self.fs, mount).or_else(|| self.options.differs_from(mount))
    }

    fn formatting(&self) -> Formatting {
        formatting(self.stage, &self.options)
    }
}

fn formatting(stage: &Stage, options: &MountOptions) -> Formatting {
    match (stage.settings.is_never_formatted, options.is_read_only()) {
        (true, _) => Formatting::Never,
        (false, true) => Formatting::ReadOnly,
        (false, false) => Formatting::Allowed,
    }
}

impl Node {
    /// Makes a volume ready on this droplet.
    ///
    /// A raw block volume is only looked for: there is nothing to mount yet. So is an encrypted one whose key the call does
    /// not have: it is staged when it is published, with the key that comes then.
    ///
    /// # Errors
    /// Everything that can be wrong with the disk or the path, each with its own variant; nothing stays half mounted.
    pub fn stage(&self, want: &Stage, arrival: Arrival) -> Result<()> {
        let call = self.begin(arrival, &want.volume, Some(&want.attached.name), &[&want.staging])?;
        match (self.ensure_staged(&call, want)?, &want.capability.access) {
            (Some(device), Access::Block) => check_staged_raw(self, &call, &device, &want.staging),
            (Some(_), Access::Mount { .. }) => Ok(()),
            (None, Access::Block | Access::Mount { .. }) => {
                info!(
                    "an encrypted volume waits for its key, which may come with NodePublishVolume volume={}",
                    want.volume
                );
                Ok(())
            }
        }
    }

    /// As [`Node::stage`], with the lock held; returns the device with the volume's content, which is its disk, or `None` for
    /// an encrypted volume that waits for its key.
    pub(super) fn ensure_staged(&self, call: &NodeCall<'_>, want: &Stage) -> Result<Option<Device>> {
        let (name, size) = (&want.attached.name, want.attached.size);
        let device = await_device(&call.guard, &self.places, name, size, call.cap(DEVICE_BUDGET))?;
        self.remember(call, &want.volume, name);
        match &want.capability.access {
            Access::Block => Ok(Some(device)),
            Access::Mount { fs, flags } => {
                let staging = ensure_staging_place(call, &want.staging)?;
                check_reaches_host(&observe_mounts()?, &staging)?;
                let options = self.with_selinux_label(flags, want)?;
                let opened = self.ensure_unlocked(call, want, formatting(want, &options), device)?;
                let Some(Unlocked { device, new_on, .. }) = &opened else { return Ok(None) };
                let new_on = new_on.as_ref();
                let wanted = Wanted { device, new_on, stage: want, fs: *fs, options, staging: &staging };
                self.ensure_mounted(call, &wanted)?;
                Ok(Some(device.clone()))
            }
        }
    }

    /// The mount options with the volume's SELinux label, or else the plugin's. On a droplet without SELinux labels mean
    /// nothing and the kernel would refuse them, so mount(8) leaves them out there, and so does this.
    pub(super) fn with_selinux_label(&self, flags: &MountOptions, want: &Stage) -> Result<MountOptions> {
        match want.settings.label.as_ref().or(self.label.as_ref()) {
            Some(label) if observe_is_there(&self.places.sysfs.join("fs/selinux"))? => {
                Ok(flags.clone().with_label(label))
            }
            Some(_) | None => Ok(flags.clone()),
        }
    }

    fn ensure_mounted(&self, call: &NodeCall<'_>, want: &Wanted<'_>) -> Result<()> {
        let at = self.observe_at(&observe_mounts()?, want.staging, want.device, |mount| want.difference(mount))?;
        match plan_mount_point(want.staging, &at)? {
            MountPointPlan::Keep => {}
            MountPointPlan::Mount => self.apply_mount_seen(call, want)?,
            MountPointPlan::ClearThenMount(health) => {
                apply_clear(call, want.staging, health)?;
                // What was hidden below is looked at in turn.
                return self.ensure_mounted(call, want);
            }
        }
        if want.options.is_read_only() {
            return Ok(());
        }
        match self.ensure_finished(call, want.device, want.stage, want.staging)? {
            Root::AsAsked => {}
            Root::LeftAlone { owner, group, mode } => info!(
                "the root directory keeps its owner and mode, as the volume was used before: it has {owner}:{group} {mode:04o}, \
                 asked was {}; with the setting owner-policy=always it is changed volume={}",
                want.stage.settings.root, want.stage.volume
            ),
        }
        Ok(())
    }

    /// Does what a volume that is mounted for writing is still owed: its disk's full size, and owner and mode of its root
    /// directory. A call that was killed after the mount has left it undone, and Nomad does not stage again what it sees mounted,
    /// so publishing does it too.
    ///
    /// A second call changes nothing.
    pub(super) fn ensure_finished(
        &self,
        call: &NodeCall<'_>,
        device: &Device,
        stage: &Stage,
        staging: &Path,
    ) -> Result<Root> {
        self.ensure_full_size(call, device, staging);
        ensure_root(&call.guard, staging, stage.settings.root)
    }

    /// Mounts the volume and sees that it is there as asked, and alive: a file system that was shut down and is still in
    /// use somewhere comes back as dead as it was.
    fn apply_mount_seen(&self, call: &NodeCall<'_>, want: &Wanted<'_>) -> Result<()> {
        if !mount_point::observe_is_empty(want.staging)? {
            let by = "it has content of its own".to_owned();
            return Err(Error::TargetTaken { path: want.staging.to_owned(), by });
        }
        self.apply_mount_as_planned(call, want)?;
        let seen = observe_mounts()
            .and_then(|mounts| self.observe_at(&mounts, want.staging, want.device, |mount| want.difference(mount)))
            .and_then(|at| plan_mounted(want.staging, &at));
        seen.inspect_err(|_| {
            if let Err(err) = apply_unmount(&call.guard, want.staging, Unmount::WhenFree) {
                warn!("could not undo the mount at {}: {}", want.staging.display(), Chain(&err));
            }
        })
    }

    fn apply_mount_as_planned(&self, call: &NodeCall<'_>, want: &Wanted<'_>) -> Result<()> {
        // What a killed call has left beside the path would pass for a mount of somebody who uses the volume.
        scratch_mount::apply_clean(&call.guard, want.staging)?;
        let mounts = observe_mounts()?;
        plan_exclusive_use(want.device.volume(), false, used_otherwise(&mounts, want.device, false))?;
        let superblock = self.observe_superblock(&mounts, want.device, &[want.staging])?;
        match plan_mount(want.device, want.fs, want.options.is_read_only(), &superblock)? {
            MountPlan::First => {
                // Nothing is made on a disk, checked or changed that somebody has.
                want.device.check_is_free("the mount", call.cap(CLAIM_BUDGET))?;
                if !want.options.is_read_only() {
                    self.ensure_protection(call, &mounts, want.device, want.staging, false)?;
                }
                let fs = self.format_and_check(call, &mounts, want)?;
                self.ensure_marked_used(call, want.new_on)?;
                // No mount that is seen from here explains a use. If both mounts are for writing, the kernel lets them share
                // the file system, frozen or not, and the other one loses its disk when this one is done with it.
                want.device.check_is_free("the mount", call.cap(CLAIM_BUDGET))?;
                apply_mount_of(call, want.device, fs, want.staging, &want.options)
            }
            MountPlan::Again(fs) => apply_mount_of(call, want.device, fs, want.staging, &want.options),
            MountPlan::AgainReadOnly { at } => {
                let (device, options) = (want.device, Some(&want.options));
                let copied = Copied { device, source: &at, shape: Shape::Directory, options };
                apply_copied(&call.guard, &copied, want.staging)
            }
            MountPlan::AgainWritable(fs) => {
                let scratch_mount = ScratchMount::open(&call.guard, want.staging, Shape::Directory)?;
                let read_only = want.options.clone().read_only();
                apply_mount_of(call, want.device, fs, scratch_mount.path(), &read_only)?;
                apply_writable(&call.guard, scratch_mount.path(), &want.options)?;
                apply_mount_of(call, want.device, fs, want.staging, &want.options)
            }
        }
    }

    /// Formats the disk if it is blank and checks its file system if it needs it; says which one it is.
    fn format_and_check(&self, call: &NodeCall<'_>, mounts: &MountTable, want: &Wanted<'_>) -> Result<FsKind> {
        let device = want.device;
        let content = observe_settled(call, device)?;
        let plan = |content| plan_disk(device, want.fs, self.default_fs, want.formatting(), content);
        let fs = match plan(&content)? {
            DiskPlan::Mount(fs) => {
                check_mountable(want, fs, false)?;
                fs
            }
            DiskPlan::FormatThenMount(fs) => {
                check_mountable(want, fs, true)?;
                info!("formatting volume={} device={} fs={fs}", device.volume(), device.path().display());
                let options = &want.stage.settings.format;
                match apply_format(&call.guard, &self.tool_permits.format, &call.runner, device, fs, options) {
                    Ok(()) => fs,
                    Err(refused @ Error::WillNotFormat { .. }) => {
                        match plan(&observe_content(&call.runner, device)?)? {
                            // Somebody else made it meanwhile.
                            DiskPlan::Mount(fs) => fs,
                            DiskPlan::FormatThenMount(_) => return Err(refused),
                        }
                    }
                    Err(other) => return Err(other),
                }
            }
        };
        if let Some(why) = observe_check_need(device, fs)? {
            info!("checking volume={} device={} fs={fs}: {why}", device.volume(), device.path().display());
            // The check writes also for a reader, and a flag that a killed call has left would make it fail for ever.
            self.ensure_protection(call, mounts, device, want.staging, false)?;
            apply_check(&call.guard, &self.tool_permits.check, &call.runner, device, fs)?;
        }
        Ok(fs)
    }

    /// Grows a file system that is smaller than its disk, as that of a restored snapshot. One that cannot be grown is used
    /// as it is: nothing is lost by that, and NodeExpandVolume says why.
    fn ensure_full_size(&self, call: &NodeCall<'_>, device: &Device, staging: &Path) {
        let grown = observe_mounts().and_then(|mounts| {
            let fs = mounts.at(staging).and_then(|mount| FsKind::parse(&mount.fstype));
            match fs {
                Some(fs) if observe_is_smaller(device, fs)? => {
                    ensure_grown(&call.guard, &self.tool_permits.grow, &call.runner, device, fs, staging)
                }
                Some(_) | None => Ok(false),
            }
        });
        if let Err(err) = grown {
            warn!("the file system is smaller than its disk and stays so: {}", Chain(&err));
        }
    }
}

/// Looks at what is on a disk, and once more when it is nothing clear and nobody else uses the disk any more: a mkfs whose
/// plugin was killed goes on, and what it has left halfway is no reason to refuse what it leaves in the end.
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

/// Says of a disk on which is nothing clear, and which somebody has, that this may be the program that still makes it.
fn or_wait(err: Error) -> Error {
    let cure = "if that is a program that still makes its file system (mkfs, cryptsetup), do not end it, and try again when it \
                has ended; anything else may be ended first";
    if let Error::InUse { doing, found, cure: _ } = err { Error::InUse { doing, found, cure } } else { err }
}

/// Makes the staging directory, unless something is mounted there: a dead mount cannot even be examined.
fn ensure_staging_place(call: &NodeCall<'_>, staging: &Path) -> Result<PathBuf> {
    if let Some(real) = mount_point::observe_real_path(staging)?
        && observe_mounts()?.at(&real).is_some()
    {
        return Ok(real);
    }
    mount_point::ensure_place(&call.guard, staging, Shape::Directory)
}

/// Sees, before anything is written to the disk, that the kernel can mount this file system with the options asked for.
fn check_mountable(want: &Wanted<'_>, fs: FsKind, is_to_be_made: bool) -> Result<()> {
    plan_mountable(fs, &want.options, &observe_mountable(fs, &want.options, want.staging), is_to_be_made)
}

fn apply_mount_of(call: &NodeCall<'_>, device: &Device, fs: FsKind, at: &Path, options: &MountOptions) -> Result<()> {
    let budget = call.cap(MOUNT_BUDGET);
    match fs {
        // A restored snapshot has its source's UUID, and both may be mounted on one droplet.
        FsKind::Xfs => apply_mount(&call.guard, device, fs, at, &options.clone().with_data(NO_UUID), budget),
        FsKind::Ext4 | FsKind::Ext3 | FsKind::Btrfs => apply_mount(&call.guard, device, fs, at, options, budget),
    }
}
