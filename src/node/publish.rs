//! Publishing: a staged volume is shown to one workload, and taken away from it again.
//!
//! Owns the bind mounts at target paths. No program is run here: every step is a system call.

use std::path::{Path, PathBuf};

use super::Node;
use super::place::{self, Shape};
use super::plan::{PlacePlan, WantedMount, plan_mount_at, plan_place};
use crate::config::UNMOUNT_BUDGET;
use crate::error::{Error, Result};
use crate::host::device::{Device, Sighting, observe_device};
use crate::host::mount::{Unmount, apply_bind, apply_read_only, apply_unmount, apply_unmount_within, observe_mounts};
use crate::lock::VolumeGuard;
use crate::request::node::{Publish, Unpublish};

impl Node {
    /// Shows a staged volume at a target path.
    ///
    /// A second call finds the mount and does nothing.
    ///
    /// # Errors
    /// [`Error::Precondition`] when the volume is not staged, [`Error::Mismatch`] when it is published there otherwise,
    /// [`Error::TargetTaken`] when something else is there.
    pub fn publish(&self, want: &Publish) -> Result<()> {
        let guard = self.hold(&want.stage.volume)?;
        if want.is_block() {
            let device = self.ensure_staged(&guard, &want.stage)?;
            let source = device.path().to_owned();
            self.ensure_bound(&guard, &device, &source, want, Shape::File)
        } else {
            let (device, staging) = self.observe_staged(&guard, want)?;
            self.ensure_bound(&guard, &device, &staging, want, Shape::Folder)
        }
    }

    /// Finds the mount at the staging path. Nomad does not stage again while anything is mounted there, so a mount that
    /// is dead, or of another disk, is put right here.
    fn observe_staged(&self, guard: &VolumeGuard, want: &Publish) -> Result<(Device, PathBuf)> {
        let not_staged = || {
            Error::Precondition(format!(
                "volume {} is not staged at {}",
                want.stage.volume,
                want.stage.staging.display()
            ))
        };
        let staging = place::observe_real_path(&want.stage.staging)?.ok_or_else(not_staged)?;
        let mounts = observe_mounts()?;
        let mount = mounts.at(&staging).ok_or_else(not_staged)?;
        match observe_device(&self.places, &want.stage.attached.name, want.stage.attached.size)? {
            Sighting::Ready(device) if mount.is_of(&device) => Ok((device, staging)),
            Sighting::Ready(_)
            | Sighting::Missing { .. }
            | Sighting::NotABlockDevice { .. }
            | Sighting::NotRunning { .. }
            | Sighting::OtherVolume { .. }
            | Sighting::ZeroSize { .. }
            | Sighting::TooSmall { .. } => Ok((self.ensure_staged(guard, &want.stage)?, staging)),
        }
    }

    fn ensure_bound(
        &self,
        guard: &VolumeGuard,
        device: &Device,
        source: &Path,
        want: &Publish,
        shape: Shape,
    ) -> Result<()> {
        let mounts = observe_mounts()?;
        let target = place::observe_real_path(&want.target)?;
        let here = target.as_ref().and_then(|target| mounts.at(target));
        let at = plan_mount_at(here, device, here.is_none_or(|mount| self.is_alive(mount.device)));
        match plan_place(&want.target, WantedMount { fs: None, is_read_only: want.is_read_only }, &at)? {
            PlacePlan::Keep => return Ok(()),
            PlacePlan::Mount => {}
            PlacePlan::ClearThenMount => {
                if let Some(target) = &target {
                    apply_unmount(guard, target, Unmount::DiskGone)?;
                }
            }
        }
        let target = place::ensure_place(guard, &want.target, shape)?;
        if !place::observe_is_empty(&target)? {
            return Err(Error::TargetTaken { path: target, by: "it has content of its own".to_owned() });
        }
        apply_bind(guard, source, &target)?;
        if !want.is_read_only {
            return Ok(());
        }
        apply_read_only(guard, &target).inspect_err(|_| {
            // A workload must not get a writable volume where it asked for a read-only one.
            if let Err(err) = apply_unmount(guard, &target, Unmount::WhenFree) {
                log::warn!("could not undo the mount at {}: {err}", target.display());
            }
        })
    }

    /// Takes a volume away from a target path: unmounts it and removes the empty folder or file.
    ///
    /// A second call finds nothing and does nothing.
    ///
    /// # Errors
    /// [`Error::Io`] when it stays in use, or cannot be unmounted.
    pub fn unpublish(&self, want: &Unpublish) -> Result<()> {
        let guard = self.hold(&want.volume)?;
        let Some(target) = place::observe_real_path(&want.target)? else { return Ok(()) };
        while let Some(mount) = observe_mounts()?.at(&target) {
            if self.is_alive(mount.device) {
                apply_unmount_within(&guard, &target, UNMOUNT_BUDGET)?;
            } else {
                apply_unmount(&guard, &target, Unmount::DiskGone)?;
            }
        }
        place::apply_remove_place(&guard, &target)
    }
}
