//! Disks that are pulled out at the worst moment.

use std::thread;

use super::harness::{A, B, VmHarness, Vol};
use crate::sim::qmp::Disk;
use crate::support::client::Outcome;
use crate::support::story::{StepResult, ensure};

/// How many requests a disk answers in a second that is so slow that whoever works with it is still at it when it goes.
const SLOW: u64 = 20;

/// Pulled out under mkfs: nothing is staged, and the disk, which has never held anything, is formatted the next time.
pub fn mkfs(yard: &mut VmHarness) -> StepResult<()> {
    let (vol, disk) = (yard.told("half-made", "ext4")?, yard.disk("half-made")?);
    let pulled = Disk { requests: Some(SLOW), ..disk.clone() };
    let outcome = stage_and_pull(yard, &vol, &pulled, "pgrep -x 'mkfs.ext4|mke2fs'")?;
    ensure(outcome.is_err(), || "a disk that is gone was staged".to_owned())?;
    works_again(yard, &vol, &disk)?;
    yard.off(A, &vol)
}

/// Pulled out under mount(2): nothing is staged, and what was on the disk is still there.
pub fn mount(yard: &mut VmHarness) -> StepResult<()> {
    let (vol, disk) = (yard.told("half-mounted", "xfs")?, yard.disk("half-mounted")?);
    yard.plug(A, &disk)?;
    yard.stage(A, &vol)??;
    yard.publish(A, &vol)?;
    yard.put(A, &vol, "file", "content")?;
    yard.off(A, &vol)?;
    yard.pull(&disk)?;
    let pulled = Disk { requests: Some(SLOW), ..disk.clone() };
    // The number of mount(2) on amd64.
    let is_mounting = format!("grep -h '^165 ' /proc/{}/task/*/syscall", yard.plugin_pid(A)?);
    let outcome = stage_and_pull(yard, &vol, &pulled, &is_mounting)?;
    ensure(outcome.is_err(), || "a disk that is gone was staged".to_owned())?;
    works_again(yard, &vol, &disk)?;
    yard.says(A, &vol, "file", "content")?;
    yard.off(A, &vol)
}

/// Pulled out by the cloud while a task writes: reads fail, the plugin says so and cleans up, and the next machine has what
/// was synced.
pub fn written(yard: &mut VmHarness) -> StepResult<()> {
    let mut vol = yard.volume("written", "xfs")?;
    yard.up(A, &mut vol)?;
    yard.put(A, &vol, "synced", "for good")?;
    let target = yard.target(A, &vol);
    let writer = format!("cd {} && while dd if=/dev/urandom of=noise bs=64k count=64; do :; done", target.display());
    yard.sh(A, &format!("setsid sh -c '{writer}' >/dev/null 2>&1 &"))?;
    yard.until(A, &format!("test -s {}/noise", target.display()))?;
    yard.cloud.sim.detach(&vol.csi.id, yard.machine(A).id)?;
    // The writer ends by the error that it gets.
    yard.until(A, "! pgrep -x dd")?;
    yard.sh(A, &format!("! dd if={}/noise of=/dev/null iflag=direct", target.display()))?;
    let condition = yard.client(A)?.stats(&vol.csi.id, &target)?.volume_condition.unwrap_or_default();
    ensure(condition.abnormal, || format!("the volume is said to be well: {}", condition.message))?;
    yard.down(A, &vol)?;
    yard.has_no_mounts(A)?;
    yard.up(B, &mut vol)?;
    yard.says(B, &vol, "synced", "for good")?;
    yard.down(B, &vol)
}

/// Stages a volume on a slow disk and pulls the disk out as soon as a script succeeds.
fn stage_and_pull(yard: &mut VmHarness, vol: &Vol, disk: &Disk, script: &str) -> StepResult<Outcome<()>> {
    yard.plug(A, disk)?;
    let (client, staging) = (yard.client(A)?, yard.staging(A, vol));
    yard.machine(A).prepare(&staging, &yard.target(A, vol))?;
    let outcome = thread::scope(|scope| -> StepResult<_> {
        let stage = scope.spawn(|| client.stage(&vol.csi, &staging));
        let moment = yard.until(A, script);
        yard.pull(disk)?;
        let outcome = stage.join().map_err(|_| "the call panicked")?;
        moment.map(|_| outcome)
    })?;
    yard.has_no_mounts(A)?;
    Ok(outcome)
}

/// Plugs a disk in again and uses it.
fn works_again(yard: &mut VmHarness, vol: &Vol, disk: &Disk) -> StepResult<()> {
    // QEMU may still know the other one's limits by its name.
    let again = Disk { id: format!("{}-again", disk.id), ..disk.clone() };
    yard.plug(A, &again)?;
    yard.stage(A, vol)??;
    yard.is_on_its_disk(A, vol)?;
    yard.publish(A, vol)
}
