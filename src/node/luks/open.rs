//! Encrypted volumes: from a disk to the device on which the file system is.
//!
//! Owns the order of making, opening and growing them. The kernel closes an open volume as soon as nothing uses it any
//! more: it gets that instruction while the volume is being opened, and until the volume is mounted this program holds
//! it open. So neither a killed call nor an unmount leaves a volume open, with its key in the kernel's memory.
//! `luks/close.rs` closes what is left anyway.

use std::fs::File;
use std::time::Duration;

use log::{info, warn};

use crate::config::{LOCK_PATIENCE, NODE_BUDGET};
use crate::error::{Chain, Error, Result};
use crate::host::device::{Device, DevicePlaces};
use crate::host::luks::cryptsetup::{
    apply_close, apply_mark_used, apply_open, apply_resize, check_has_mapper, check_is_encrypting,
};
use crate::host::luks::format::{
    LuksState, apply_blank, apply_luks_format, described, observe_has_grown_blank, observe_luks_state, will_not,
};
use crate::host::luks::mapper::{DiskHolder, is_short, observe_holder_of, observe_names, observe_open_as};
use crate::host::luks::passphrase::Key;
use crate::host::mount::observe_mounts;
use crate::host::mountable::{observe_mountable, plan_mountable};
use crate::host::mountinfo::MountTable;
use crate::node::block::ensure_protection;
use crate::node::luks::close::{ensure_closed_before, held, observe_settled};
use crate::node::mount_state::{observe_at, used_otherwise};
use crate::node::plan::{Formatting, MountPointPlan, plan_exclusive_use, plan_mount_point};
use crate::node::{Node, NodeCall, mount_point};
use crate::request::capability::Access;
use crate::request::node::Stage;
use crate::request::volume_context::CONTEXT;
use crate::sync::semaphore::Permit;

/// The device on which a volume's file system is or will be.
#[derive(Debug)]
pub(in crate::node) struct Unlocked {
    /// The disk itself, or, of an encrypted volume, what is in it.
    pub(in crate::node) device: Device,
    /// The disk of an encrypted volume that no caller has received yet.
    pub(in crate::node) new_on: Option<Device>,
    /// Keeps an encrypted volume open until it is mounted.
    _pin: Option<File>,
    /// Until then, keeps others from writing something else to its disk.
    _lock: Option<File>,
}

impl Unlocked {
    /// A volume that is not encrypted.
    pub(in crate::node) fn plain(device: Device) -> Self {
        Unlocked { device, new_on: None, _pin: None, _lock: None }
    }
}

/// What to do with the disk of a volume that should be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum UnlockPlan {
    /// Open it.
    Open,
    /// Open it; what is inside was never used.
    OpenNew,
    /// Make it an encrypted volume, then open it.
    MakeThenOpen,
}

/// Decides about the disk of a volume that should be encrypted. Pure; the match names everything that can be on the
/// disk.
///
/// # Errors
/// [`Error::WillNotFormat`] when it holds anything except an intact encrypted volume, or must not become one.
pub(in crate::node) fn plan_unlock(disk: &Device, formatting: Formatting, found: &LuksState) -> Result<UnlockPlan> {
    match (found, formatting) {
        (LuksState::Ready, _) => Ok(UnlockPlan::Open),
        (LuksState::Unused, _) => Ok(UnlockPlan::OpenNew),
        (LuksState::Blank | LuksState::Interrupted, Formatting::Allowed) => Ok(UnlockPlan::MakeThenOpen),
        (LuksState::Blank | LuksState::Interrupted, Formatting::Never | Formatting::ReadOnly) => {
            Err(Error::WillNotFormat {
                volume: disk.volume().clone(),
                device: disk.path().to_owned(),
                found: format!("it holds {}", described(found)),
                cure: match formatting {
                    Formatting::Never => {
                        "its volume context says noformat: if it is meant to be new, take that setting away"
                    }
                    Formatting::ReadOnly | Formatting::Allowed => {
                        "it is asked for read-only: use it once for writing, which makes it an encrypted volume"
                    }
                }
                .to_owned(),
            })
        }
        (LuksState::Damaged | LuksState::Luks1 | LuksState::Refused(_) | LuksState::Other(_), _) => {
            Err(will_not(disk, found))
        }
    }
}

impl Node {
    /// The device with a volume's file system. An encrypted volume is opened, and made if its disk is blank; `None` when that
    /// needs a key and none was given.
    pub(in crate::node) fn ensure_unlocked(
        &self,
        call: &NodeCall<'_>,
        mounts: &MountTable,
        want: &Stage,
        formatting: Formatting,
        disk: Device,
    ) -> Result<Option<Unlocked>> {
        if !want.settings.is_encrypted {
            return Ok(Some(Unlocked::plain(disk)));
        }
        check_not_clear(mounts, &disk)?;
        if let Some(opened) = self.observe_in_use(call, mounts, want, &disk)? {
            return Ok(Some(opened));
        }
        let Some(key) = &want.key else { return Ok(None) };
        let lock = disk.lock(call.cap(LOCK_PATIENCE))?;
        // The call that had the lock may have opened the volume and mounted it.
        let mounts = observe_mounts()?;
        if let Some(opened) = self.observe_in_use(call, &mounts, want, &disk)? {
            return Ok(Some(opened));
        }
        let opened = match ensure_closed_before(call, &disk)? {
            None => self.apply_opened(call, &mounts, want, formatting, &disk, key)?,
            // Something that this process cannot see keeps it open, most likely a container with a mount of its own.
            Some(device) => {
                device.check_is_free("the opening", Duration::ZERO)?;
                return Err(held(&disk, device.mapper_name().unwrap_or_default()));
            }
        };
        Ok(Some(Unlocked { _lock: Some(lock), ..opened }))
    }

    /// An encrypted volume that is open and mounted.
    fn observe_in_use(
        &self,
        call: &NodeCall<'_>,
        mounts: &MountTable,
        want: &Stage,
        disk: &Device,
    ) -> Result<Option<Unlocked>> {
        match observe_settled(call, disk)? {
            DiskHolder::Open(device) if mounts.of_device(&device).next().is_some() => {
                check_is_encrypting(&call.runner, disk, device.mapper_name().unwrap_or_default())?;
                let device = self.ensure_full(call, want, disk, *device);
                let pin = device.open()?;
                Ok(Some(Unlocked { device, new_on: None, _pin: Some(pin), _lock: None }))
            }
            DiskHolder::Closing(holder) | DiskHolder::Other(holder) => Err(held(disk, &holder)),
            DiskHolder::Open(_) | DiskHolder::Temporary(_) | DiskHolder::Nothing => Ok(None),
        }
    }

    fn apply_opened(
        &self,
        call: &NodeCall<'_>,
        mounts: &MountTable,
        want: &Stage,
        formatting: Formatting,
        disk: &Device,
        key: &Key,
    ) -> Result<Unlocked> {
        plan_exclusive_use(disk.volume(), false, used_otherwise(mounts, disk, false))?;
        let plan = plan_unlock(disk, formatting, &observe_luks_state(&call.runner, disk)?)?;
        match plan {
            UnlockPlan::MakeThenOpen => self.check_before_encrypting(call, mounts, want, disk)?,
            UnlockPlan::Open | UnlockPlan::OpenNew => {}
        }
        if formatting != Formatting::ReadOnly {
            ensure_protection(call, mounts, disk, false)?;
        }
        let opened = self.apply_in_turn(call, plan, disk, key);
        let (device, pin) = opened.inspect_err(|_| tell_of_no_loss(plan, disk))?;
        if observe_is_to_blank(call, plan, formatting, &device)? {
            apply_blank(&call.guard, &call.runner, &device)?;
        }
        let is_new = match plan {
            UnlockPlan::Open => false,
            UnlockPlan::OpenNew | UnlockPlan::MakeThenOpen => true,
        };
        Ok(Unlocked { device, new_on: is_new.then(|| disk.clone()), _pin: Some(pin), _lock: None })
    }

    /// Sees, while the disk is blank, that it can be opened and mounted as asked when it is encrypted and formatted.
    fn check_before_encrypting(
        &self,
        call: &NodeCall<'_>,
        mounts: &MountTable,
        want: &Stage,
        disk: &Device,
    ) -> Result<()> {
        if let Some(staging) = mount_point::observe_real_path(&want.staging)? {
            // Nothing of a blank disk can be mounted there.
            let at = observe_at(call.places, mounts, &staging, disk, |_| None)?;
            match plan_mount_point(&staging, &at)? {
                MountPointPlan::Mount => mount_point::check_is_empty(&staging)?,
                MountPointPlan::Keep | MountPointPlan::ClearThenMount(_) => {}
            }
        }
        if let Access::Mount { fs, flags } = &want.capability.access {
            let (fs, options) = (fs.unwrap_or(self.fs_tools.default_fs()), self.mount_options(flags, want)?);
            want.settings.format.check_for(fs).map_err(|bad| Error::invalid(CONTEXT, bad))?;
            plan_mountable(fs, &options, &observe_mountable(fs, &options, &want.staging), true)?;
        }
        check_has_mapper(&call.runner, disk)
    }

    /// Does what takes the memory of a key, when it is this volume's turn.
    fn apply_in_turn(&self, call: &NodeCall<'_>, plan: UnlockPlan, disk: &Device, key: &Key) -> Result<(Device, File)> {
        let doing = format!("opening the encrypted volume {}", disk.volume());
        let turn = self.key_permit.take_within_call(&doing, call.cap(NODE_BUDGET))?;
        match plan {
            UnlockPlan::Open | UnlockPlan::OpenNew => {}
            UnlockPlan::MakeThenOpen => {
                info!(name:% = disk.volume(), device:% = disk.path().display(); "encrypting");
                apply_luks_format(&call.guard, &call.runner, &turn, disk, key)?;
            }
        }
        self.apply_open_pinned(call, &turn, disk, key)
    }

    /// Opens an encrypted volume, sees that what is open encrypts and lies on the very disk, and has it closed when nothing uses it.
    fn apply_open_pinned(
        &self,
        call: &NodeCall<'_>,
        turn: &Permit,
        disk: &Device,
        key: &Key,
    ) -> Result<(Device, File)> {
        let names = observe_names(&self.places, disk.volume())?;
        for stale in &names.taken {
            warn!(name:% = disk.volume(), mapper:% = stale; "closing what is left of an earlier disk");
            // The volume gets another name here, so the old device does no harm if it stays.
            if let Err(err) = apply_close(&call.guard, &call.runner, stale) {
                warn!(name:% = disk.volume(), mapper:% = stale; "what is left of an earlier disk stays open: {}", Chain(&err));
            }
        }
        let _disk_pin = disk.open()?;
        let seen =
            apply_open(&call.guard, &call.runner, turn, disk, &names.free, key).and_then(|()| match observe_holder_of(
                &self.places,
                disk,
            )? {
                DiskHolder::Open(device) if device.mapper_name() == Some(names.free.as_str()) => {
                    check_is_encrypting(&call.runner, disk, &names.free)?;
                    Ok((device.open()?, *device))
                }
                DiskHolder::Open(_)
                | DiskHolder::Nothing
                | DiskHolder::Temporary(_)
                | DiskHolder::Closing(_)
                | DiskHolder::Other(_) => Err(Error::WrongDevice {
                    volume: disk.volume().clone(),
                    found: format!("it was opened as {}, which does not lie on {}", names.free, disk.path().display()),
                }),
            });
        // Also if something is wrong: then the kernel closes it at once. This must happen even if the call has no time
        // left.
        let closed = apply_close(&call.guard, self.runner.as_ref(), &names.free);
        let (pin, device) = seen?;
        closed.map(|()| (device, pin))
    }

    /// Grows an encrypted volume that is in use after its disk has grown. Without the key it stays as it is, and
    /// NodeExpandVolume says why.
    fn ensure_full(&self, call: &NodeCall<'_>, want: &Stage, disk: &Device, device: Device) -> Device {
        let Some(key) = want.key.as_ref().filter(|_| is_short(&device, disk)) else { return device };
        match self.apply_full(call, disk, &device, key) {
            Ok(grown) => grown,
            Err(err) => {
                warn!("the encrypted volume is smaller than its disk and stays so: {}", Chain(&err));
                device
            }
        }
    }

    /// Makes an encrypted volume that is in use as large as its disk, and sees that it is.
    pub(in crate::node) fn apply_full(
        &self,
        call: &NodeCall<'_>,
        disk: &Device,
        open: &Device,
        key: &Key,
    ) -> Result<Device> {
        let volume = disk.volume();
        let turn = self
            .key_permit
            .take_within_call(&format!("growing the encrypted volume {volume}"), call.cap(NODE_BUDGET))?;
        let name = open.mapper_name().unwrap_or_default();
        apply_resize(&call.guard, &call.runner, &turn, volume, name, key)?;
        let grown = observe_its_device(call.places, disk, name)?;
        if is_short(&grown, disk) {
            let (have, all) = (grown.size(), disk.size());
            return Err(Error::NotAsReported(format!(
                "cryptsetup reported success, but the encrypted volume {volume} has {have} on a disk of {all}"
            )));
        }
        Ok(grown)
    }
}

/// The device with a volume's file system, as far as it can be seen; `None` while an encrypted volume is not open.
pub(in crate::node) fn observe_opened(places: &DevicePlaces, want: &Stage, disk: Device) -> Result<Option<Device>> {
    if !want.settings.is_encrypted {
        return Ok(Some(disk));
    }
    match observe_holder_of(places, &disk)? {
        DiskHolder::Open(device) => Ok(Some(*device)),
        DiskHolder::Nothing | DiskHolder::Temporary(_) | DiskHolder::Closing(_) | DiskHolder::Other(_) => Ok(None),
    }
}

/// Says that there is a file system in a new encrypted volume now, before anybody is given it.
pub(in crate::node) fn ensure_marked_used(call: &NodeCall<'_>, new_on: Option<&Device>) -> Result<()> {
    let Some(disk) = new_on else { return Ok(()) };
    apply_mark_used(&call.guard, &call.runner, disk)?;
    match observe_luks_state(&call.runner, disk)? {
        LuksState::Ready => Ok(()),
        other @ (LuksState::Blank
        | LuksState::Interrupted
        | LuksState::Unused
        | LuksState::Damaged
        | LuksState::Luks1
        | LuksState::Refused(_)
        | LuksState::Other(_)) => Err(will_not(disk, &other)),
    }
}

/// The device of this name, which must lie on the disk.
pub(in crate::node) fn observe_its_device(places: &DevicePlaces, disk: &Device, name: &str) -> Result<Device> {
    observe_open_as(places, disk, name)?.ok_or_else(|| Error::WrongDevice {
        volume: disk.volume().clone(),
        found: format!("the open encrypted volume {name} does not lie on {}", disk.path().display()),
    })
}

/// Refuses a volume that is to be used encrypted and is in use in clear, also while its key is still waited for.
fn check_not_clear(mounts: &MountTable, disk: &Device) -> Result<()> {
    plan_exclusive_use(disk.volume(), false, used_otherwise(mounts, disk, false))?;
    mounts.of_device(disk).next().map_or(Ok(()), |mount| {
        let how = "is mounted in clear, and an encrypted one was asked for".to_owned();
        Err(Error::MountedOtherwise { path: mount.target.clone(), how })
    })
}

/// Whether what is inside an encrypted volume is to be made blank.
fn observe_is_to_blank(call: &NodeCall<'_>, plan: UnlockPlan, formatting: Formatting, open: &Device) -> Result<bool> {
    match (plan, formatting) {
        (UnlockPlan::MakeThenOpen, _) => Ok(true),
        (UnlockPlan::OpenNew, Formatting::Allowed) => observe_has_grown_blank(&call.runner, open),
        (UnlockPlan::OpenNew, Formatting::Never | Formatting::ReadOnly) | (UnlockPlan::Open, _) => Ok(false),
    }
}

/// Says of an encrypted volume that could not be opened when nothing was given out yet, as far as its header says.
fn tell_of_no_loss(plan: UnlockPlan, disk: &Device) {
    match plan {
        UnlockPlan::OpenNew => {
            warn!(name:% = disk.volume(), device:% = disk.path().display(); "this encrypted volume was made and, as its header says, never given out: if the key that it was made with is \
             lost, use another volume")
        }
        UnlockPlan::Open | UnlockPlan::MakeThenOpen => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::device::number::DeviceNumber;
    use crate::host::probe::content::Content;

    #[test]
    fn the_decision_about_the_disk_of_an_encrypted_volume_in_full() {
        let disk = Device::fake("/dev/sda", DeviceNumber { major: 8, minor: 0 }, 1 << 30);
        let found = [
            (LuksState::Blank, "make"),
            (LuksState::Interrupted, "make"),
            (LuksState::Unused, "open new"),
            (LuksState::Ready, "open"),
            (LuksState::Damaged, "damaged"),
            (LuksState::Luks1, "LUKS1"),
            (LuksState::Refused("segment 0 is encrypted by cipher_null-ecb".to_owned()), "cipher_null"),
            (LuksState::Other(Content::Unrecognised { at: 7, what: None }), "not encrypted"),
        ];
        for (found, want) in found {
            for formatting in [Formatting::Allowed, Formatting::Never, Formatting::ReadOnly] {
                let outcome = match plan_unlock(&disk, formatting, &found) {
                    Ok(UnlockPlan::Open) => "open".to_owned(),
                    Ok(UnlockPlan::OpenNew) => "open new".to_owned(),
                    Ok(UnlockPlan::MakeThenOpen) => "make".to_owned(),
                    Err(err) => err.to_string(),
                };
                let want = match (want, formatting) {
                    ("make", Formatting::Never) => "noformat",
                    ("make", Formatting::ReadOnly) => "read-only",
                    (other, Formatting::Allowed | Formatting::Never | Formatting::ReadOnly) => other,
                };
                assert!(outcome.contains(want), "{found:?} {formatting:?}: {outcome}");
            }
        }
    }
}
