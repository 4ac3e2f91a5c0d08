//! Disks that take their time to come.

use std::fs::File;
use std::thread;
use std::time::Duration;

use super::harness::{A, GIB, VmHarness};
use crate::sim::ActionFault;
use crate::support::story::{StepResult, ensure};

/// A disk that the machine sees only some seconds after the cloud has called it attached.
pub fn late(yard: &mut VmHarness) -> StepResult<()> {
    attached_with(yard, "late", ActionFault::device_late(Duration::from_secs(5)))
}

/// A disk that is there without a size, and goes for one that has its size.
pub fn half(yard: &mut VmHarness) -> StepResult<()> {
    attached_with(yard, "half", ActionFault::half_attached(Duration::from_secs(3)))
}

fn attached_with(yard: &mut VmHarness, name: &str, fault: ActionFault) -> StepResult<()> {
    yard.cloud.sim.faults().add_action(fault);
    let mut vol = yard.volume(name, "xfs")?;
    yard.up(A, &mut vol)?;
    yard.is_on_its_disk(A, &vol)?;
    yard.down(A, &vol)
}

/// A disk that is there without a size, and has one a moment later.
pub fn empty(yard: &mut VmHarness) -> StepResult<()> {
    let (vol, disk) = (yard.told("empty", "ext4")?, yard.disk("empty")?);
    File::create(&disk.file)?.set_len(0)?;
    yard.plug(A, &disk)?;
    yard.until(A, &format!("test -b {0} && test $(blockdev --getsize64 {0}) = 0", vol.link()))?;
    let (client, staging) = (yard.client(A)?, yard.staging(A, &vol));
    yard.machine(A).prepare(&staging, &staging)?;
    let monitor = yard.monitor(A);
    let staged = thread::scope(|scope| -> StepResult<_> {
        let stage = scope.spawn(|| client.stage(&vol.csi, &staging));
        // It is certainly looking at the disk by then.
        thread::sleep(Duration::from_secs(2));
        let is_waiting = !stage.is_finished();
        monitor.resize(&disk.id, GIB)?;
        let staged = stage.join().map_err(|_| "the call panicked")?;
        ensure(is_waiting, || format!("it did not wait: {staged:?}"))?;
        Ok(staged)
    })?;
    staged?;
    yard.is_on_its_disk(A, &vol)?;
    yard.unstage(A, &vol)
}
