//! A volume as a raw block device, without a file system of ours.
//!
//! Owns what is special about that: whether the disk accepts writes, and that an interrupted format is never continued
//! once the disk has been used for something else.

use std::path::Path;

use log::warn;

use crate::error::{Chain, Error, Result};
use crate::host::CLAIM_BUDGET;
use crate::host::device::Device;
use crate::host::luks::format::observe_is_begun;
use crate::host::mount::observe_mounts;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::probe::content::observe_unfinished;
use crate::host::read_only::{Flagged, apply_protection, observe_is_protected};
use crate::node::NodeCall;
use crate::node::mount_point;
use crate::node::mount_state::{observe_at, raw_difference, used_otherwise};
use crate::node::plan::{ProtectionPlan, plan_exclusive_use, plan_mount_point, plan_protection};

/// Makes the disk read-only or writable, as the caller requests who is about to use it at one more place.
pub(super) fn ensure_protection(
    call: &NodeCall<'_>,
    mounts: &MountTable,
    device: &Device,
    is_read_only: bool,
) -> Result<()> {
    // While the disk is held open, no other disk gets its name. So the flag is set on this disk.
    let _pin = device.open()?;
    let disk = Flagged::from(device);
    let other = mounts.of_device(device).map(|mount| mount.target.as_path()).next();
    match plan_protection(device.volume(), is_read_only, observe_is_protected(&disk)?, other)? {
        ProtectionPlan::Keep => Ok(()),
        ProtectionPlan::Protect => apply_protection(&call.guard, &call.runner, &disk, true),
        ProtectionPlan::Unprotect => {
            // A killed call has left the flag, or a person has set it. The two look the same, and a refusal would make
            // the volume unusable after a killed call.
            let (volume, path) = (device.volume(), device.path().display());
            warn!(name:% = volume, device:% = path; "the disk refuses writes, which ends as it is now used for writing");
            apply_protection(&call.guard, &call.runner, &disk, false)
        }
    }
}

/// Makes a disk writable again after the last place where it was shown is gone. Another plugin may be about to show it read-only
/// somewhere else, so its places are looked at with the disk's lock held.
pub(super) fn apply_unprotect_after(call: &NodeCall<'_>, was: &Mount) {
    let apply = || -> Result<()> {
        let Some(disk) = Flagged::observe_bound_at(call.places, was)? else { return Ok(()) };
        let _lock = disk.lock(call.cap(CLAIM_BUDGET))?;
        if !observe_mounts()?.iter().any(|mount| mount.is_node() && mount.root == was.root) {
            apply_unprotect(call, &disk);
        }
        Ok(())
    };
    if let Err(err) = apply() {
        warn!("cannot tell whether the disk is used elsewhere, and leave its read-only flag: {}", Chain(&err));
    }
}

/// Makes a disk writable again. The next call sets what it needs; this is for people who work on the disk by hand.
pub(super) fn apply_unprotect(call: &NodeCall<'_>, disk: &Flagged) {
    let freed = match observe_is_protected(disk) {
        Ok(true) => apply_protection(&call.guard, &call.runner, disk, false),
        Ok(false) => Ok(()),
        Err(err) => Err(err),
    };
    if let Err(err) = freed {
        warn!("the disk still refuses writes: {}", Chain(&err));
    }
}

/// Checks that a disk which is already shown raw at `target` is read-only or writable as requested.
///
/// # Errors
/// [`Error::MountedOtherwise`] when it does not.
pub(super) fn check_protection(device: &Device, target: &Path, is_read_only: bool) -> Result<()> {
    // While the disk is held open, no other disk gets its name. So the flag is read from this disk.
    let _pin = device.open()?;
    let how = match (is_read_only, observe_is_protected(&Flagged::from(device))?) {
        (true, true) | (false, false) => return Ok(()),
        (true, false) => "shows a raw disk that takes writes, and it was asked for read-only",
        (false, true) => "shows a raw disk that refuses writes, and it was asked for writing",
    };
    Err(Error::MountedOtherwise { path: target.to_owned(), how: how.to_owned() })
}

/// Checks that a volume may be staged as a raw disk: nothing is mounted at its staging path, its file system is mounted
/// nowhere, and no unfinished format is on it.
///
/// # Errors
/// [`Error::MountedOtherwise`], [`Error::TargetTaken`], [`Error::UsedOtherwise`] or [`Error::Unfinished`], by what is in the way.
pub(super) fn check_staged_raw(call: &NodeCall<'_>, device: &Device, staging: &Path) -> Result<()> {
    let mounts = observe_mounts()?;
    if let Some(real) = mount_point::observe_real_path(staging)? {
        // It is the volume's raw disk only at a target.
        let difference = |mount: &Mount| raw_difference(mount).or_else(|| Some("shows its raw disk".to_owned()));
        // A dead mount does no harm: nothing will be mounted here.
        plan_mount_point(staging, &observe_at(call.places, &mounts, &real, device, difference)?)?;
    }
    plan_exclusive_use(device.volume(), true, used_otherwise(&mounts, device, true))?;
    refuse_unfinished(call, device)
}

/// Checks that a disk may be given out raw, unless it is already: the kernel does not use it, not even in a mount
/// namespace that this process cannot see, and no unfinished format is on it.
pub(super) fn check_raw(call: &NodeCall<'_>, mounts: &MountTable, device: &Device) -> Result<()> {
    check_nodes(mounts, device)?;
    if mounts.of_device(device).any(Mount::is_node) {
        return Ok(());
    }
    device.check_is_free("the use as a raw disk", call.cap(CLAIM_BUDGET))?;
    refuse_unfinished(call, device)
}

/// As [`refuse_unfinished`], for an encrypted volume that no caller has received yet.
fn refuse_begun(call: &NodeCall<'_>, device: &Device) -> Result<()> {
    if !observe_is_begun(&call.runner, device)? {
        return Ok(());
    }
    let path = device.path().display();
    Err(Error::Unfinished(format!(
        "volume {} on {path} holds the beginning of an encrypted volume, whose making was cut off, and is not given out as a raw \
         disk; stage it as an encrypted volume once, which completes it, or use another volume",
        device.volume()
    )))
}

/// In the mount table a raw volume is recognized by its source, a devtmpfs. One from elsewhere could never be removed
/// again.
fn check_nodes(mounts: &MountTable, device: &Device) -> Result<()> {
    match mounts.holding(device.path()) {
        Some(mount) if mount.fstype == "devtmpfs" => Ok(()),
        Some(_) | None => Err(Error::HostUnfit(format!(
            "volume {} cannot be given out as a raw disk, because its node {} is not in a devtmpfs; run the plugin with the \
             host's /dev",
            device.volume(),
            device.path().display()
        ))),
    }
}

/// Refuses a disk with an unfinished file system or an unfinished encrypted volume. As a raw disk it would get other
/// content, and the signs of the unfinished format might stay: when the disk is later staged for a file system, it
/// would be formatted.
fn refuse_unfinished(call: &NodeCall<'_>, device: &Device) -> Result<()> {
    let Some(fs) = observe_unfinished(device)? else { return refuse_begun(call, device) };
    let path = device.path().display();
    Err(Error::Unfinished(format!(
        "volume {} on {path} holds the beginning of {fs}, whose making was cut off, and is not given out as a raw disk; \
         stage it with a file system once, which completes it, or use another volume",
        device.volume()
    )))
}
