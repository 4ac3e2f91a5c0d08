//! Staging: the volume's disk is found, formatted when it is certainly blank, and mounted once for all its users.
//!
//! Owns the order of these steps and their repetition. A second call finds the mount and does nothing; a call that was cut
//! off anywhere is completed by the next. A second staging path, as Nomad has one for readers and one for writers, gets a
//! mount of its own of the same file system.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::activity::wait_for;
use crate::backoff::{Backoff, look_until};
use crate::config::{ATTACH_BUDGET, DETACH_IN_FLIGHT, DEVICE_BUDGET, LOCK_PATIENCE, MOUNT_BUDGET};
use crate::error::{Chain, Error, Result};
use crate::fs::FsKind;
use crate::host::CLAIM_BUDGET;
use crate::host::bind::Held;
use crate::host::device::Device;
use crate::host::device::lookup::await_device;
use crate::host::mount::{apply_mount, apply_writable, observe_mounts};
use crate::host::mount_options::{MountOptions, NO_UUID};
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::presence::observe_is_there;
use crate::host::propagation::check_reaches_host;
use crate::host::release_mark::{apply_unmark, observe_mark};
use crate::id::VolumeName;
use crate::node::block::{check_staged_raw, ensure_protection};
use crate::node::filesystem::{WantedFs, formatting};
use crate::node::luks::open::{Unlocked, ensure_marked_used};
use crate::node::mount_point;
use crate::node::mount_point::Shape;
use crate::node::mount_state::{observe_at, observe_superblock, used_otherwise};
use crate::node::ownership::{Root, ensure_root};
use crate::node::plan::{MountPlan, MountPointPlan, plan_exclusive_use, plan_mount, plan_mount_point};
use crate::node::scratch_mount;
use crate::node::scratch_mount::{Copied, ScratchMount, apply_copied, check_mounted, observe_is_there_by_now};
use crate::node::take_down::apply_clear;
use crate::node::whose::remember;
use crate::node::{Arrival, Node, NodeCall};
use crate::request::capability::Access;
use crate::request::node::Stage;

/// How soon the disk of a volume that was attached is there; it takes one or two seconds.
const SOON: Duration = Duration::from_secs(5);
/// The pauses between two looks whether a detach may still come.
const DETACH_PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

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
        let disk = self.await_disk(&call, want)?;
        match &want.capability.access {
            Access::Block => check_staged_raw(&call, &disk, &want.staging),
            Access::Mount { fs, flags } => {
                if self.ensure_staged(&call, want, *fs, flags, disk)?.is_none() {
                    info!("an encrypted volume waits for its key, which may come with NodePublishVolume");
                }
                Ok(())
            }
        }
    }

    /// Waits for the volume's disk, and keeps in mind which volume it is. Where this program may have detached it, it is asked
    /// for: at once when that is known, otherwise when the disk does not come as soon as it mostly does.
    pub(super) fn await_disk(&self, call: &NodeCall<'_>, want: &Stage) -> Result<Device> {
        let (name, size) = (&want.attached.name, want.attached.size);
        let may_have_gone = await_detach_over(call, &want.volume, name)?;
        let wait = |budget| await_device(&call.guard, call.places, name, size, call.cap(budget));
        let disk = match &self.attach {
            None => wait(DEVICE_BUDGET)?,
            Some(attach) if self.released().remove(name) || may_have_gone => {
                info!(volume:% = want.volume; "it is asked for anew, as it was to be detached for being used by nobody");
                attach.ensure_attached(name, call.cap(ATTACH_BUDGET))?;
                apply_unmark(&call.guard, call.places, name)?;
                wait(DEVICE_BUDGET)?
            }
            Some(attach) => match wait(SOON) {
                Err(Error::DeviceMissing { .. }) => {
                    match attach.ensure_attached(name, call.cap(ATTACH_BUDGET)) {
                        Ok(()) => {}
                        Err(err @ (Error::AttachedElsewhere { .. } | Error::NotFound(_))) => return Err(err),
                        Err(err) => {
                            warn!(volume:% = want.volume; "it has no disk here, and asking for it failed: {}", Chain(&err));
                        }
                    }
                    wait(DEVICE_BUDGET)?
                }
                disk => disk?,
            },
        };
        remember(call, &want.volume, name);
        Ok(disk)
    }

    /// The steps of staging a file system, with the lock held and the disk there. The mount table is read once, and once more
    /// after a mount; an encrypted volume that had to be opened needs fresh looks, as that takes time.
    ///
    /// Gives the device with the file system: the disk, or what is in an encrypted one; `None` for an encrypted volume that
    /// waits for its key.
    pub(super) fn ensure_staged(
        &self,
        call: &NodeCall<'_>,
        want: &Stage,
        fs: Option<FsKind>,
        flags: &MountOptions,
        disk: Device,
    ) -> Result<Option<Device>> {
        let mounts = ensure_no_scratch(call, &want.staging, &disk)?;
        let staging = ensure_staging_directory(call, &mounts, &want.staging)?;
        check_reaches_host(&mounts, &staging, &call.warned.of_mounts)?;
        let options = self.mount_options(flags, want)?;
        let opened = self.ensure_unlocked(call, &mounts, want, formatting(want, &options), disk)?;
        let Some(Unlocked { device, new_on, .. }) = &opened else { return Ok(None) };
        // Since the table was read others may have mounted what is in it: its device was there to see.
        let mounts = if want.settings.is_encrypted { observe_mounts()? } else { mounts };
        let wanted = WantedFs { device, new_on: new_on.as_ref(), stage: want, fs, options, staging: &staging };
        let mounts = self.ensure_mounted(call, mounts, &wanted)?;
        self.finish(call, &mounts, &wanted)?;
        Ok(Some(device.clone()))
    }

    /// Sees that the file system is mounted as asked; gives the mount table as it is then.
    fn ensure_mounted(&self, call: &NodeCall<'_>, mounts: MountTable, want: &WantedFs<'_>) -> Result<MountTable> {
        let mut mounts = mounts;
        loop {
            let at = observe_at(call.places, &mounts, want.staging, want.device, |mount| want.difference(mount))?;
            match plan_mount_point(want.staging, &at)? {
                MountPointPlan::Keep => return Ok(mounts),
                MountPointPlan::Mount => return self.apply_mount_seen(call, &mounts, want),
                MountPointPlan::ClearThenMount(health) => apply_clear(call, want.staging, health)?,
            }
            // What was hidden below is looked at in turn.
            mounts = observe_mounts()?;
        }
    }

    /// Mounts the volume and sees that it is there as asked, and alive: a file system that was shut down and is still in
    /// use somewhere comes back as dead as it was.
    fn apply_mount_seen(&self, call: &NodeCall<'_>, before: &MountTable, want: &WantedFs<'_>) -> Result<MountTable> {
        mount_point::check_is_empty(want.staging)?;
        plan_exclusive_use(want.device.volume(), false, used_otherwise(before, want.device, false))?;
        let superblock = observe_superblock(call.places, before, want.device, &[want.staging])?;
        call.check_caller()?;
        match plan_mount(want.device, want.fs, want.options.is_read_only(), &superblock)? {
            MountPlan::First => {
                // Nothing is made on a disk, checked or changed that somebody has.
                want.device.check_is_free("the mount", call.cap(CLAIM_BUDGET))?;
                if !want.options.is_read_only() {
                    ensure_protection(call, before, want.device, false)?;
                }
                let fs = self.fs_tools.ensure_filesystem(call, before, want)?;
                ensure_marked_used(call, want.new_on)?;
                // No mount that is seen from here explains a use. If both mounts are for writing, the kernel lets them share
                // the file system, frozen or not, and the other one loses its disk when this one is done with it.
                want.device.check_is_free("the mount", call.cap(CLAIM_BUDGET))?;
                apply_mount_alone(call, before, want, fs)
            }
            MountPlan::Again(fs) => apply_mount_alone(call, before, want, fs),
            MountPlan::AgainReadOnly { at } => {
                let (device, options) = (want.device, Some(&want.options));
                let difference = &|mount: &Mount| want.difference(mount);
                let copied = Copied { device, source: &at, shape: Shape::Directory, options, difference };
                apply_copied(call, &copied, want.staging)
            }
            MountPlan::AgainWritable(fs) => {
                let scratch_mount = ScratchMount::open(call, want.staging, Shape::Directory)?;
                let read_only = want.options.clone().read_only();
                apply_mount_of(call, want.device, fs, scratch_mount.path(), &read_only)?;
                apply_writable(&call.guard, scratch_mount.path(), &want.options)?;
                // The place's lock is the path's, too.
                apply_mount_if_free(call, before, want, fs)
            }
        }
    }

    fn finish(&self, call: &NodeCall<'_>, mounts: &MountTable, want: &WantedFs<'_>) -> Result<()> {
        let Some(mount) = mounts.at(want.staging).filter(|_| !want.options.is_read_only()) else { return Ok(()) };
        match self.ensure_finished(call, want.device, want.stage, mount)? {
            Root::AsAsked => {}
            Root::LeftAlone { owner, group, mode } => info!(
                "the root directory keeps its owner and mode, as the volume was used before: it has {owner}:{group} {mode:04o}, {} was asked for; with the setting owner-policy=always it is changed",
                want.stage.settings.root
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
        mount: &Mount,
    ) -> Result<Root> {
        self.fs_tools.ensure_full_size(call, device, mount);
        ensure_root(&call.guard, &mount.target, stage.settings.root)
    }

    /// The mount options with the flags that every volume gets, and with the volume's SELinux label, or else the plugin's. On a
    /// droplet without SELinux labels mean nothing and the kernel would refuse them, so mount(8) leaves them out there, and so does
    /// this.
    pub(super) fn mount_options(&self, flags: &MountOptions, want: &Stage) -> Result<MountOptions> {
        let options = flags.clone().with_defaults(&self.default_flags);
        match want.settings.label.as_ref().or(self.label.as_ref()) {
            Some(label) if observe_is_there(&self.places.sysfs.join("fs/selinux"))? => Ok(options.with_label(label)),
            Some(_) | None => Ok(options),
        }
    }
}

/// Waits until no detach that this program sent can still be carried out; gives whether there may have been one. Its answer was
/// lost, or the program was killed before it came. Until then neither a disk that is here nor a detach that was seen means
/// anything: the one that was seen may be another's, and the disk of a volume that was attached again would be taken from its user.
fn await_detach_over(call: &NodeCall<'_>, volume: &str, name: &VolumeName) -> Result<bool> {
    let look = || {
        call.check_caller()?;
        observe_mark(call.places, name)
    };
    let may_come = |seen: &Option<Duration>| seen.is_some_and(|age| age < DETACH_IN_FLIGHT);
    let first = look()?;
    if !may_come(&first) {
        return Ok(first.is_some());
    }
    let why = "a detach of it was sent for being used by nobody, and it is not known what came of it";
    info!(volume; "it is not used before it is certain that it stays: {why}");
    let _wait = wait_for(format!("waiting until no detach of volume {name} can come any more"), why);
    let (began, budget) = (Instant::now(), call.cap(DETACH_IN_FLIGHT));
    let seen = look_until(began + budget, DETACH_PAUSES, look, |seen| !seen.as_ref().is_ok_and(may_come))?;
    // Whatever the clock was set to meanwhile, the whole time has passed.
    if may_come(&seen) && budget < DETACH_IN_FLIGHT {
        let (doing, waited_s) = (format!("bringing volume {name} back"), began.elapsed().as_secs());
        return Err(Error::TimedOut { doing, waited_s, waited_for: why.to_owned() });
    }
    Ok(true)
}

/// Sees that nothing is left of calls that were killed, beside a path and of a disk: it would pass for a mount of somebody who
/// uses the volume. Gives the mount table as it is then.
fn ensure_no_scratch(call: &NodeCall<'_>, path: &Path, disk: &Device) -> Result<MountTable> {
    if let Some(real) = mount_point::observe_real_path(path)? {
        scratch_mount::apply_clean(call, &real)?;
    }
    scratch_mount::ensure_none_of(call, observe_mounts()?, LOCK_PATIENCE, |mount| mount.shows_device(disk))
}

/// Makes the staging directory, unless something is mounted there: a dead mount cannot even be examined.
fn ensure_staging_directory(call: &NodeCall<'_>, mounts: &MountTable, staging: &Path) -> Result<PathBuf> {
    let real = mount_point::observe_real_path(staging)?.filter(|real| mounts.at(real).is_some());
    real.map_or_else(|| mount_point::ensure_place(&call.guard, staging, Shape::Directory), Ok)
}

/// Mounts the volume at its staging path while no other plugin mounts anything there: of two volumes, or two mounts of one, the
/// second would lie on the first, and both calls would be answered OK.
fn apply_mount_alone(call: &NodeCall<'_>, before: &MountTable, want: &WantedFs<'_>, fs: FsKind) -> Result<MountTable> {
    let _alone = scratch_mount::acquire_lock(call, want.staging)?;
    apply_mount_if_free(call, before, want, fs)
}

/// Mounts the volume at its staging path, with the path's lock held. What another plugin has mounted there since the call looked
/// is used if it is the volume as asked. Only when something may be there is the whole table read again.
fn apply_mount_if_free(
    call: &NodeCall<'_>,
    before: &MountTable,
    want: &WantedFs<'_>,
    fs: FsKind,
) -> Result<MountTable> {
    let is_known = |mount: &Mount| mount.target != want.staging;
    // A file system may have been made, which takes a while.
    call.check_caller()?;
    if !Held::open(want.staging)?.mount(before)?.is_some_and(is_known) {
        let mounts = observe_mounts()?;
        if observe_is_there_by_now(call, &mounts, want.staging, want.device, |mount| want.difference(mount))? {
            return Ok(mounts);
        }
    }
    let mounts = apply_mount_of(call, want.device, fs, want.staging, &want.options)?;
    check_mounted(call, Ok(mounts), want.staging, want.device, |mount| want.difference(mount))
}

fn apply_mount_of(
    call: &NodeCall<'_>,
    device: &Device,
    fs: FsKind,
    at: &Path,
    options: &MountOptions,
) -> Result<MountTable> {
    let budget = call.cap(MOUNT_BUDGET);
    match fs {
        // A restored snapshot has its source's UUID, and both may be mounted on one droplet.
        FsKind::Xfs => apply_mount(&call.guard, device, fs, at, &options.clone().with_data(NO_UUID), budget),
        FsKind::Ext4 | FsKind::Ext3 | FsKind::Btrfs => {
            apply_mount(&call.guard, device, fs, at, &options.clone().against_superblock(fs), budget)
        }
    }
}
