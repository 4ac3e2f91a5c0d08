//! Staging: the volume's disk is found, formatted when it is certainly blank, and mounted once for all its users.
//!
//! Owns the order of these steps and their repetition. A second call finds the mount and does nothing.

use std::path::Path;

use log::{info, warn};

use super::Node;
use super::place::{self, Shape};
use super::plan::{DiskPlan, PlacePlan, WantedMount, plan_disk, plan_mount_at, plan_place};
use crate::config::{DEVICE_BUDGET, MOUNT_BUDGET, UNMOUNT_BUDGET};
use crate::error::{Chain, Result};
use crate::host::content::{FsKind, observe_content};
use crate::host::device::{Device, await_device};
use crate::host::flags::MountOptions;
use crate::host::format_options::FormatOptions;
use crate::host::fsck::{apply_check, observe_check_need};
use crate::host::grow::{ensure_grown, observe_is_smaller};
use crate::host::mkfs::apply_format;
use crate::host::mount::{Unmount, apply_flush, apply_mount, apply_unmount, apply_unmount_within, observe_mounts};
use crate::lock::VolumeGuard;
use crate::request::capability::Access;
use crate::request::node::{Stage, Unstage};

impl Node {
    /// Makes a volume ready on this droplet.
    ///
    /// A raw block volume is only looked for: there is nothing to mount yet.
    ///
    /// # Errors
    /// Everything that can be wrong with the disk or the path, each with its own variant; nothing stays half mounted.
    pub fn stage(&self, want: &Stage) -> Result<()> {
        let guard = self.hold(&want.volume)?;
        self.ensure_staged(&guard, want).map(drop)
    }

    /// As [`Node::stage`], with the lock held; returns the volume's disk.
    pub(super) fn ensure_staged(&self, guard: &VolumeGuard, want: &Stage) -> Result<Device> {
        let device = await_device(guard, &self.places, &want.attached.name, want.attached.size, DEVICE_BUDGET)?;
        match &want.capability.access {
            Access::Block => {}
            Access::Mount { fs, flags } => self.ensure_mounted(guard, want, &device, *fs, flags)?,
        }
        Ok(device)
    }

    fn ensure_mounted(
        &self,
        guard: &VolumeGuard,
        want: &Stage,
        device: &Device,
        fs: Option<FsKind>,
        flags: &MountOptions,
    ) -> Result<()> {
        let staging = place::ensure_place(guard, &want.staging, Shape::Folder)?;
        let mounts = observe_mounts()?;
        let here = mounts.at(&staging);
        let at = plan_mount_at(here, device, here.is_none_or(|mount| self.is_alive(mount.device)));
        match plan_place(&staging, WantedMount { fs, is_read_only: flags.is_read_only() }, &at)? {
            PlacePlan::Keep => return Ok(()),
            PlacePlan::Mount => {}
            PlacePlan::ClearThenMount => {
                warn!("clearing a mount whose disk is gone staging={}", staging.display());
                apply_unmount(guard, &staging, Unmount::DiskGone)?;
            }
        }
        self.apply_mount_checked(guard, device, fs, flags, &staging)
    }

    fn apply_mount_checked(
        &self,
        guard: &VolumeGuard,
        device: &Device,
        fs: Option<FsKind>,
        flags: &MountOptions,
        staging: &Path,
    ) -> Result<()> {
        let runner = self.runner.as_ref();
        let fs = self.ensure_formatted(guard, device, fs)?;
        if let Some(why) = observe_check_need(device, fs)? {
            info!("checking volume={} device={} fs={fs}: {why}", device.volume(), device.path().display());
            apply_check(guard, &self.slots, runner, device, fs)?;
        }
        let is_smaller = observe_is_smaller(device, fs)?;
        let options = match fs {
            // A restored snapshot has its source's UUID, and both may be mounted on one droplet.
            FsKind::Xfs => flags.clone().with_data("nouuid"),
            FsKind::Ext4 | FsKind::Ext3 | FsKind::Btrfs => flags.clone(),
        };
        apply_mount(guard, device, fs, staging, &options, MOUNT_BUDGET)?;
        if is_smaller && !flags.is_read_only() {
            ensure_grown(guard, &self.slots, runner, device, fs, staging)?;
        }
        Ok(())
    }

    fn ensure_formatted(&self, guard: &VolumeGuard, device: &Device, fs: Option<FsKind>) -> Result<FsKind> {
        let content = observe_content(self.runner.as_ref(), device)?;
        match plan_disk(device, fs, FsKind::Ext4, &content)? {
            DiskPlan::Mount(fs) => Ok(fs),
            DiskPlan::FormatThenMount(fs) => {
                info!("formatting volume={} device={} fs={fs}", device.volume(), device.path().display());
                apply_format(guard, &self.slots, self.runner.as_ref(), device, fs, &FormatOptions::default())?;
                Ok(fs)
            }
        }
    }

    /// Lets go of a volume on this droplet: what is still in memory is written, then the staging path is unmounted.
    ///
    /// Other mounts of the same volume stay: a task may still use them.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] when it stays in use, or cannot be unmounted.
    pub fn unstage(&self, want: &Unstage) -> Result<()> {
        let guard = self.hold(&want.volume)?;
        let Some(staging) = place::observe_real_path(&want.staging)? else { return Ok(()) };
        while let Some(mount) = observe_mounts()?.at(&staging) {
            if self.is_alive(mount.device) {
                if let Err(err) = apply_flush(&guard, &staging) {
                    warn!("could not flush before unmounting: {}", Chain(&err));
                }
                apply_unmount_within(&guard, &staging, UNMOUNT_BUDGET)?;
            } else {
                apply_unmount(&guard, &staging, Unmount::DiskGone)?;
            }
        }
        Ok(())
    }

    /// Whether the disk with this number still exists. File systems on no single disk (major 0, as btrfs) count as alive.
    pub(super) fn is_alive(&self, number: crate::host::mountinfo::DeviceNumber) -> bool {
        number.major == 0 || self.places.sysfs.join(format!("dev/block/{number}")).exists()
    }
}
