//! Publishing: a staged volume is shown to one workload.
//!
//! Owns the bind mounts at target paths. For a file system that was staged to the end no program is run here: every step is a
//! system call.

use std::path::{Path, PathBuf};

use log::warn;

use crate::activity::{About, Change, tell_change};
use crate::config::LOCK_PATIENCE;
use crate::error::{Chain, Error, Result};
use crate::fs::FsKind;
use crate::host::device::Device;
use crate::host::device::lookup::{LookupResult, observe_device};
use crate::host::mount::observe_mounts;
use crate::host::mount_options::MountOptions;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::propagation::check_reaches_host;
use crate::host::read_only::Flagged;
use crate::node::block::{apply_unprotect, check_protection, check_raw, ensure_protection};
use crate::node::luks::open::observe_opened;
use crate::node::mount_point;
use crate::node::mount_point::Shape;
use crate::node::mount_state::{elsewhere, fs_difference, observe_at, raw_difference, used_otherwise};
use crate::node::plan::{MountPointPlan, MountPointState, plan_exclusive_use, plan_mount_point, plan_target};
use crate::node::scratch_mount::{Copied, apply_copied, ensure_none_of};
use crate::node::take_down::{apply_clear, ensure_not_dead};
use crate::node::whose::remember;
use crate::node::{Arrival, Node, NodeCall};
use crate::request::capability::Access;
use crate::request::node::{Publish, Stage};
use crate::request::secrets::NAMES;

/// What is to be shown at a target.
struct PublishedMount<'a> {
    device: &'a Device,
    want: &'a Publish,
    /// The target as the mount table shows it; `None` as long as the way there does not exist.
    target: Option<PathBuf>,
    /// The staged directory, or the device's node.
    source: PathBuf,
    shape: Shape,
    /// The flags of the mount; none for a device node, on which they would do nothing.
    options: Option<MountOptions>,
}

impl PublishedMount<'_> {
    fn difference(&self, mount: &Mount) -> Option<String> {
        match self.shape {
            Shape::File => raw_difference(mount),
            Shape::Directory => fs_difference(None, mount)
                .or_else(|| self.options.as_ref().and_then(|options| options.differs_at(mount))),
        }
    }
}

impl Node {
    /// Shows a staged volume at a target path.
    ///
    /// A second call finds the mount and does nothing.
    ///
    /// # Errors
    /// [`Error::NotStaged`]; [`Error::UsedOtherwise`] when it is shown elsewhere while its access mode allows one place;
    /// [`Error::MountedOtherwise`] when it is staged or published there otherwise, [`Error::TargetTaken`] when something
    /// else is there.
    pub fn publish(&self, want: &Publish, arrival: Arrival) -> Result<()> {
        let stage = &want.stage;
        let paths: [&Path; 2] = [&stage.staging, &want.target];
        let call = self.begin(arrival, &stage.volume, Some(&stage.attached.name), &paths)?;
        check_apart(stage, &want.target)?;
        // A dead mount at the target would keep the file system below it dead, however often that is mounted anew.
        let target = mount_point::observe_real_path(&want.target)?;
        let mounts = match &target {
            Some(target) => ensure_not_dead(&call, &stage.volume, target)?,
            None => observe_mounts()?,
        };
        match &stage.capability.access {
            Access::Block => {
                let device = self.await_disk(&call, stage)?;
                let source = device.path().to_owned();
                let mounts = ensure_none_of(&call, mounts, LOCK_PATIENCE, |mount| mount.shows_device(&device))?;
                let shown = PublishedMount { device: &device, want, target, source, shape: Shape::File, options: None };
                ensure_shown(&call, &mounts, &shown)
            }
            Access::Mount { fs, flags } => {
                let flags = self.mount_options(flags, &want.stage)?;
                let (device, source, mounts) = self.ensure_staging(&call, want, *fs, &flags, mounts)?;
                remember(&call, &stage.volume, &stage.attached.name);
                let mounts = ensure_none_of(&call, mounts, LOCK_PATIENCE, |mount| mount.shows_device(&device))?;
                let options = if want.is_read_only { flags.read_only() } else { flags };
                let shown = PublishedMount {
                    device: &device,
                    want,
                    target,
                    source,
                    shape: Shape::Directory,
                    options: Some(options),
                };
                ensure_shown(&call, &mounts, &shown)
            }
        }
    }

    /// Finds the mount at the staging path. Nomad does not stage again while anything is mounted there, so a mount that
    /// is dead, or not as asked, is put right or refused here. Gives the mount table as it is then.
    fn ensure_staging(
        &self,
        call: &NodeCall<'_>,
        want: &Publish,
        fs: Option<FsKind>,
        flags: &MountOptions,
        mounts: MountTable,
    ) -> Result<(Device, PathBuf, MountTable)> {
        let stage = &want.stage;
        let staging =
            match mount_point::observe_real_path(&stage.staging)?.filter(|staging| mounts.at(staging).is_some()) {
                Some(staging) => staging,
                // The key may come only now. And what nobody used this program unstages: Nomad may have seen it staged just before.
                None if self.attach.is_some() || stage.settings.is_encrypted && stage.key.is_some() => {
                    mount_point::ensure_place(&call.guard, &stage.staging, Shape::Directory)?
                }
                None => return Err(not_staged(stage)),
            };
        let disk = observe_device(call.places, &stage.attached.name, stage.attached.size)?;
        if let LookupResult::Ready(disk) = disk
            && let Some(device) = observe_opened(call.places, stage, disk)?
        {
            let is_too_read_only = |mount: &Mount| !want.is_read_only && mount.is_read_only();
            let difference = |mount: &Mount| {
                let how = fs_difference(fs, mount).or_else(|| flags.differs_below(mount));
                how.or_else(|| is_too_read_only(mount).then(|| "is read-only".to_owned()))
            };
            if observe_at(call.places, &mounts, &staging, &device, difference)? == MountPointState::AsRequested {
                if let Some(mount) = mounts.at(&staging).filter(|mount| !mount.is_read_only()) {
                    self.ensure_finished(call, &device, stage, mount)?;
                }
                return Ok((device, staging, mounts));
            }
        }
        let disk = self.await_disk(call, stage)?;
        let Access::Mount { fs, flags } = &stage.capability.access else { return Err(not_staged(stage)) };
        let device = self.ensure_staged(call, stage, *fs, flags, disk)?.ok_or_else(|| not_staged(stage))?;
        // Staging may have taken minutes.
        Ok((device, staging, observe_mounts()?))
    }
}

fn ensure_shown(call: &NodeCall<'_>, mounts: &MountTable, shown: &PublishedMount<'_>) -> Result<()> {
    let target = shown.target.as_deref();
    check_reaches_host(mounts, target.unwrap_or(&shown.want.target), &call.warned.of_mounts)?;
    let at = match target {
        Some(target) => observe_at(call.places, mounts, target, shown.device, |mount| shown.difference(mount))?,
        None => MountPointState::Free,
    };
    match plan_mount_point(&shown.want.target, &at)? {
        MountPointPlan::Keep => check_shown(mounts, shown, target.unwrap_or(&shown.want.target)),
        MountPointPlan::Mount => apply_show(call, mounts, shown),
        MountPointPlan::ClearThenMount(health) => {
            apply_clear(call, target.unwrap_or(&shown.want.target), health)?;
            // What was hidden below is looked at in turn.
            ensure_shown(call, &observe_mounts()?, shown)
        }
    }
}

fn apply_show(call: &NodeCall<'_>, mounts: &MountTable, shown: &PublishedMount<'_>) -> Result<()> {
    call.check_caller()?;
    match shown.shape {
        Shape::Directory => apply_show_once(call, mounts, shown),
        Shape::File => {
            // Whether a disk takes writes is one for all its targets, and another plugin knows none of this one's locks. While the
            // disk is held open no other disk gets its name, so what is bound is the disk that was found.
            let lock = shown.device.lock(call.cap(LOCK_PATIENCE))?;
            let mounts = observe_mounts()?;
            if shown.target.as_deref().is_some_and(|target| mounts.at(target).is_some()) {
                drop(lock);
                return ensure_shown(call, &mounts, shown);
            }
            apply_show_once(call, &mounts, shown)
        }
    }
}

fn apply_show_once(call: &NodeCall<'_>, mounts: &MountTable, shown: &PublishedMount<'_>) -> Result<()> {
    // A raw disk is not mounted at its staging path, so none of its places has to be left out.
    check_company(mounts, shown, &[&shown.source])?;
    if shown.shape == Shape::File {
        check_raw(call, mounts, shown.device)?;
    }
    let target = match &shown.target {
        Some(target) => mount_point::ensure_real_place(&call.guard, target.clone(), shown.shape)?,
        None => mount_point::ensure_place(&call.guard, &shown.want.target, shown.shape)?,
    };
    let outcome = apply_show_at(call, mounts, shown, &target);
    if outcome.is_ok() {
        let about = About::default().with("name", &shown.want.stage.attached.name);
        tell_change(Change::Published, "published", about.with("path", target.display()));
    }
    outcome.inspect_err(|_| {
        if let Err(err) = apply_hide(call, shown, &target) {
            warn!("could not undo what was done at {}: {}", target.display(), Chain(&err));
        }
    })
}

fn apply_show_at(call: &NodeCall<'_>, mounts: &MountTable, shown: &PublishedMount<'_>, target: &Path) -> Result<()> {
    let (device, source, shape, options) = (shown.device, &shown.source, shown.shape, shown.options.as_ref());
    let difference = &|mount: &Mount| shown.difference(mount);
    let copied = Copied { device, source, shape, options, difference };
    match shape {
        Shape::Directory => apply_copied(call, &copied, target).map(drop),
        Shape::File => {
            // A raw disk is as writable as asked, for which its mounts do not matter.
            ensure_protection(call, mounts, device, shown.want.is_read_only)?;
            apply_copied(call, &copied, target).map(drop)
        }
    }
}

/// Takes back what showing a volume has done before it failed: this call has nothing mounted there any more. What another plugin
/// has mounted is in use.
fn apply_hide(call: &NodeCall<'_>, shown: &PublishedMount<'_>, target: &Path) -> Result<()> {
    let mounts = observe_mounts()?;
    if shown.shape == Shape::File && !mounts.of_device(shown.device).any(Mount::is_node) {
        apply_unprotect(call, &Flagged::from(shown.device));
    }
    if mounts.at(target).is_some() {
        return Ok(());
    }
    mount_point::apply_remove_place(&call.guard, target)
}

/// Refuses a target inside the staging path, or the other way round, also where links hide that.
fn check_apart(stage: &Stage, target: &Path) -> Result<()> {
    let (staging, target) =
        (mount_point::observe_whole_path(&stage.staging)?, mount_point::observe_whole_path(target)?);
    if !target.starts_with(&staging) && !staging.starts_with(&target) {
        return Ok(());
    }
    let why = format!(
        "is {}, which lies inside staging_target_path ({}) or the other way round",
        target.display(),
        staging.display()
    );
    Err(Error::invalid("target_path", why))
}

/// Asks of a volume that is shown at a target already all that would be asked if it were shown there only now. It changes
/// nothing: a disk's read-only flag would change under the task that uses it.
fn check_shown(mounts: &MountTable, shown: &PublishedMount<'_>, target: &Path) -> Result<()> {
    check_company(mounts, shown, &[&shown.source, target])?;
    match shown.shape {
        Shape::Directory => Ok(()),
        Shape::File => check_protection(shown.device, target, shown.want.is_read_only),
    }
}

/// Sees that a volume may be shown at one more place beside those where it is used, not counting those `apart`.
fn check_company(mounts: &MountTable, shown: &PublishedMount<'_>, apart: &[&Path]) -> Result<()> {
    let (volume, is_raw) = (shown.device.volume(), shown.shape == Shape::File);
    plan_exclusive_use(volume, is_raw, used_otherwise(mounts, shown.device, is_raw))?;
    let other = elsewhere(mounts, shown.device, apart).next();
    plan_target(volume, shown.want.stage.capability.mode, other.map(|mount| mount.target.as_path()))
}

fn not_staged(stage: &Stage) -> Error {
    let (volume, staging) = (&stage.volume, stage.staging.display());
    if stage.settings.is_encrypted {
        return Error::NotStaged(format!(
            "volume {volume} is encrypted and not open, and neither NodeStageVolume nor NodePublishVolume was given its key; \
             put it into the volume's secrets, under one of the names {NAMES:?}"
        ));
    }
    Error::NotStaged(format!("volume {volume} is not staged at {staging}"))
}
