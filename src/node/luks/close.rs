//! Closing encrypted volumes: after their last mount is gone, before they are opened again, and when a killed call has
//! left them open.
//!
//! Owns the wait for the kernel, which closes a volume when nothing uses it any more. The plugin gives that instruction
//! for each volume that it opens. So it does no harm to give it again, even for a volume whose name is not known.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::backoff::{Backoff, look_until};
use crate::config::NODE_BUDGET;
use crate::error::{Chain, Error, Result};
use crate::host::command::{Runner, Until};
use crate::host::device::number::DeviceNumber;
use crate::host::device::{Device, DevicePlaces};
use crate::host::luks::cryptsetup::apply_close;
use crate::host::luks::mapper::{DiskHolder, LuksMapping, observe_all_open, observe_holder_of, observe_is_open};
use crate::host::mount::observe_mounts;
use crate::host::mountinfo::MountTable;
use crate::host::under_mount::observe_listed;
use crate::node::{Node, NodeCall};
use crate::sync::volume_lock::VolumeKey;

/// How long the kernel may take to close a device that nothing uses any more; it takes milliseconds.
const CLOSE_BUDGET: Duration = Duration::from_secs(5);
const CLOSE_PAUSE: Duration = Duration::from_millis(20);

/// How far the closing of an encrypted volume has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// It is closed.
    Done,
    /// It will be when its last mount goes.
    WithLastMount,
    /// It will be when something else lets go of it.
    Late,
}

impl Node {
    /// Closes what an earlier run of the program has left open, on a thread of its own.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn close_left_open(self: &Arc<Self>) -> std::io::Result<()> {
        let node = Arc::clone(self);
        let close = move || node.ensure_none_left_open(&Until::new(node.runner.as_ref(), Instant::now() + NODE_BUDGET));
        thread::Builder::new().name("closing".to_owned()).spawn(close)?;
        Ok(())
    }

    /// Closes every encrypted volume that is open and mounted nowhere. A volume that cannot be closed stays for the
    /// next time: no call should fail because of it.
    ///
    /// A second call finds none.
    pub(in crate::node) fn ensure_none_left_open(&self, runner: &dyn Runner) {
        if let Err(err) = self.apply_close_all(runner) {
            warn!("cannot close the encrypted volumes that a killed call has left open: {}", Chain(&err));
        }
    }

    fn apply_close_all(&self, runner: &dyn Runner) -> Result<()> {
        if observe_all_open(&self.places)?.is_empty() {
            return Ok(());
        }
        // Between its opening and its first use a volume looks like one that was left open. A call that opens one waits
        // here.
        let Ok(_turn) = self.key_permit.take("closing encrypted volumes", Duration::ZERO) else { return Ok(()) };
        for name in self.observe_left_open()? {
            info!(mapper:% = name; "an encrypted volume that is mounted nowhere is closed as soon as nothing uses it");
            let guard = self.locks.hold(VolumeKey::Name(name.clone()), Duration::ZERO)?;
            apply_close(&guard, runner, &name)?;
        }
        Ok(())
    }

    /// The names of the devices that are open and nowhere mounted.
    fn observe_left_open(&self) -> Result<Vec<String>> {
        let open = observe_all_open(&self.places)?;
        // Read after the open ones were listed: what was mounted meanwhile is in use.
        let mounted = observe_mounted(&self.places, &observe_mounts()?)?;
        Ok(open.into_iter().filter(|(_, number)| !mounted.contains(number)).map(|(name, _)| name).collect())
    }
}

/// Waits until an encrypted volume is closed after one of its mounts was removed, unless it is still mounted elsewhere.
/// `mounts` is the table that was read after that. A volume that stays open for another reason is released all the
/// same.
///
/// # Errors
/// It cannot be told whether it is closed.
pub(in crate::node) fn ensure_closed_after(
    call: &NodeCall<'_>,
    mounts: &MountTable,
    volume: &str,
    under: &LuksMapping,
) -> Result<()> {
    match ensure_closed(call, mounts, under)? {
        Closing::Done => info!(mapper:% = under.name, volume:%; "closed the encrypted volume"),
        Closing::WithLastMount => {
            info!(mapper:% = under.name, volume:%; "the encrypted volume is mounted elsewhere and stays open")
        }
        Closing::Late => {
            warn!(mapper:% = under.name, volume:%; "an encrypted volume stays open until something that is not seen from here lets go of it")
        }
    }
    Ok(())
}

fn ensure_closed(call: &NodeCall<'_>, mounts: &MountTable, under: &LuksMapping) -> Result<Closing> {
    if observe_mounted(call.places, mounts)?.contains(&under.number) {
        return Ok(Closing::WithLastMount);
    }
    let is_closed = || Ok(!observe_is_open(call.places, under)?);
    if await_true(CLOSE_PAUSE * 5, is_closed)? {
        return Ok(Closing::Done);
    }
    apply_close(&call.guard, &call.runner, &under.name)?;
    let is_done = await_true(call.cap(CLOSE_BUDGET), is_closed)?;
    Ok(if is_done { Closing::Done } else { Closing::Late })
}

/// The numbers of all devices that are mounted somewhere.
fn observe_mounted(places: &DevicePlaces, mounts: &MountTable) -> Result<Vec<DeviceNumber>> {
    mounts.iter().filter_map(|mount| observe_listed(places, mount).transpose()).collect()
}

/// Closes what a killed call has left open on a disk, and what is mounted nowhere. Returns what cannot be closed
/// because something that this process cannot see uses it.
pub(in crate::node) fn ensure_closed_before(call: &NodeCall<'_>, disk: &Device) -> Result<Option<Device>> {
    let upon = observe_holder_of(call.places, disk)?;
    let name = match &upon {
        DiskHolder::Open(device) => device.mapper_name().unwrap_or_default(),
        DiskHolder::Temporary(name) => name,
        DiskHolder::Nothing | DiskHolder::Closing(_) | DiskHolder::Other(_) => return Ok(None),
    };
    warn!(name:% = disk.volume(), mapper:% = name; "closing what a call that was killed has left open");
    apply_close(&call.guard, &call.runner, name)?;
    let is_closed = || Ok(observe_holder_of(call.places, disk)? == DiskHolder::Nothing);
    if await_true(call.cap(CLOSE_BUDGET), is_closed)? {
        return Ok(None);
    }
    match upon {
        DiskHolder::Open(device) => Ok(Some(*device)),
        DiskHolder::Nothing | DiskHolder::Temporary(_) | DiskHolder::Closing(_) | DiskHolder::Other(_) => {
            Err(held(disk, name))
        }
    }
}

/// What lies on a disk, after the kernel has finished removing devices.
pub(in crate::node) fn observe_settled(call: &NodeCall<'_>, disk: &Device) -> Result<DiskHolder> {
    let upon = observe_holder_of(call.places, disk)?;
    let is_closing = |upon: &DiskHolder| matches!(upon, DiskHolder::Closing(_));
    if !is_closing(&upon) {
        return Ok(upon);
    }
    await_true(call.cap(CLOSE_BUDGET), || Ok(!is_closing(&observe_holder_of(call.places, disk)?)))?;
    observe_holder_of(call.places, disk)
}

/// Looks again and again whether something has become true, until it has or the budget is used up.
fn await_true(budget: Duration, look: impl Fn() -> Result<bool>) -> Result<bool> {
    look_until(Instant::now() + budget, Backoff::new(CLOSE_PAUSE, CLOSE_PAUSE), look, |seen| !matches!(seen, Ok(false)))
}

/// The refusal of an encrypted volume whose disk somebody has.
pub(in crate::node) fn held(disk: &Device, holder: &str) -> Error {
    let path = disk.path().display();
    Error::UsedOtherwise(format!(
        "the encrypted volume {} cannot be used, because {holder} has its disk {path}; `lsblk {path}` shows what that is, and \
         `dmsetup remove` or `cryptsetup close` ends it",
        disk.volume()
    ))
}
