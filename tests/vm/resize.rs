//! Disks that grow while they are used, and disks with the same content.

use super::harness::{A, GIB, VmHarness, Vol};
use crate::sim::qmp::{Bus, Disk};
use crate::support::client::{Volume, new_volume, restored};
use crate::support::story::{StepResult, ensure};

/// The kernel is told of the new size.
pub fn told(yard: &mut VmHarness) -> StepResult<()> {
    let mut vol = yard.volume("grows", "xfs")?;
    yard.up(A, &mut vol)?;
    let bytes = i64::try_from(2 * GIB)?;
    yard.client(A)?.expand(&vol.csi.id, bytes)?;
    grows(yard, &vol)?;
    yard.down(A, &vol)
}

/// The kernel is not told, and the plugin has to ask.
pub fn asked(yard: &mut VmHarness) -> StepResult<()> {
    let (vol, disk) = (yard.told("asks", "ext4")?, yard.disk("asks")?);
    let disk = Disk { bus: Bus::Silent, ..disk };
    yard.plug(A, &disk)?;
    yard.stage(A, &vol)??;
    yard.publish(A, &vol)?;
    yard.monitor(A).resize(&disk.id, 2 * GIB)?;
    let size = yard.sh(A, &format!("blockdev --getsize64 {}", vol.link()))?;
    ensure(size.trim() == GIB.to_string(), || format!("the kernel was told of the new size: {size}"))?;
    grows(yard, &vol)?;
    yard.off(A, &vol)
}

fn grows(yard: &mut VmHarness, vol: &Vol) -> StepResult<()> {
    let target = yard.target(A, vol);
    yard.client(A)?.node_expand(&vol.csi.id, &target, i64::try_from(2 * GIB)?)?;
    let bytes = yard.machine(A).droplet.file_system_size(&target)?;
    // Its log and its tables take a part of the disk.
    ensure(bytes > 19 * GIB / 10, || format!("the file system of {} has {bytes} bytes", vol.name))
}

/// A volume and what was made from its snapshot, mounted side by side.
pub fn snapshot(yard: &mut VmHarness) -> StepResult<()> {
    let mut source = yard.volume("source", "xfs")?;
    yard.up(A, &mut source)?;
    yard.put(A, &source, "file", "as it was")?;
    let client = yard.client(A)?;
    let snapshot = client.create_snapshot("snapshot", &source.csi.id)?;
    yard.put(A, &source, "file", "as it is")?;
    let made = client.create(&restored(new_volume("restored", i64::try_from(GIB)?), &snapshot.snapshot_id))?;
    let mut copy = Vol { csi: Volume::mounted(&made.volume_id, "xfs"), name: "restored".to_owned() };
    yard.up(A, &mut copy)?;
    yard.says(A, &copy, "file", "as it was")?;
    yard.says(A, &source, "file", "as it is")?;
    yard.down(A, &copy)?;
    yard.down(A, &source)
}
