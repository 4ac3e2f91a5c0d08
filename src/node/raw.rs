//! A volume as a raw block device, without a file system of ours.
//!
//! Owns what is particular to that: whether the disk takes writes, and that a format which was cut off is never taken up
//! again once the disk has been used for something else.

use std::path::Path;

use log::warn;

use super::plan::{ProtectionPlan, plan_protection};
use super::see::elsewhere;
use super::{Call, Node};
use crate::error::{Chain, Error, Result};
use crate::host::content::observe_unfinished;
use crate::host::device::Device;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::protect::{Flagged, apply_protection, observe_is_protected};

impl Node {
    /// Makes the disk refuse writes, or take them, as the one asks who is about to use it at `target`.
    pub(super) fn ensure_protection(
        &self,
        call: &Call<'_>,
        mounts: &MountTable,
        device: &Device,
        target: &Path,
        is_read_only: bool,
    ) -> Result<()> {
        let disk = Flagged::from(device);
        let apart = [target];
        let other = elsewhere(mounts, device, &apart).map(|mount| mount.target.as_path()).next();
        match plan_protection(device.volume(), is_read_only, observe_is_protected(&disk)?, other)? {
            ProtectionPlan::Keep => Ok(()),
            ProtectionPlan::Protect => apply_protection(&call.guard, &call.runner, &disk, true),
            ProtectionPlan::Unprotect => apply_protection(&call.guard, &call.runner, &disk, false),
        }
    }

    /// Makes a disk take writes again when the last place where it was shown is gone. Whoever uses it next asks for what
    /// it needs; this is for people who work on the disk by hand.
    pub(super) fn apply_unprotect(&self, call: &Call<'_>, mounts: &MountTable, was: &Mount) {
        let is_used = mounts.iter().any(|mount| mount.is_node() && mount.root == was.root);
        let Some(disk) = Flagged::bound_at(&self.places, was).filter(|_| !is_used) else { return };
        let freed = match observe_is_protected(&disk) {
            Ok(true) => apply_protection(&call.guard, &call.runner, &disk, false),
            Ok(false) => Ok(()),
            Err(err) => Err(err),
        };
        if let Err(err) = freed {
            warn!("the disk still refuses writes: {}", Chain(&err));
        }
    }
}

/// Refuses a disk on which a file system was begun and not finished. As a raw disk it would get other content, and the
/// signs of the unfinished file system might outlast it: staged for a file system later, the disk would be formatted.
pub(super) fn refuse_unfinished(device: &Device) -> Result<()> {
    let Some(fs) = observe_unfinished(device)? else { return Ok(()) };
    let path = device.path().display();
    Err(Error::Precondition(format!(
        "volume {} on {path} holds the beginning of {fs}, whose making was cut off, and is not given out as a raw disk; \
         stage it with a file system once, which completes it, or clear it with `blkdiscard --zeroout {path}`",
        device.volume()
    )))
}
