//! Volumes without a file system, and a plugin that is killed while volumes are in use.

use super::harness::{A, B, GIB, VmHarness, Vol};
use crate::support::client::Volume;
use crate::support::story::{StepResult, ensure};

/// Written on one machine, read and grown on the other, and protected from writes for a reader, whatever the kernel reads
/// anew of the disk meanwhile.
pub fn moves(yard: &mut VmHarness) -> StepResult<()> {
    let Vol { csi, name } = yard.volume("raw", "")?;
    let mut vol = Vol { csi: Volume { publish_context: csi.publish_context, ..Volume::block(&csi.id) }, name };
    let (on_a, on_b) = (yard.target(A, &vol), yard.target(B, &vol));
    yard.up(A, &mut vol)?;
    yard.sh(A, &format!("printf 'raw bytes' | dd of={} conv=notrunc,fsync status=none", on_a.display()))?;
    yard.down(A, &vol)?;
    yard.up(B, &mut vol)?;
    starts_with(yard, B, &vol, "raw bytes")?;
    grows(yard, &vol, 2)?;
    yard.off(B, &vol)?;

    yard.stage(B, &vol)??;
    let (client, staging) = (yard.client(B)?, yard.staging(B, &vol));
    client.publish(&vol.csi, &staging, &on_b, true)?;
    refuses_writes(yard, &vol)?;
    grows(yard, &vol, 3)?;
    refuses_writes(yard, &vol)?;
    starts_with(yard, B, &vol, "raw bytes")?;
    yard.off(B, &vol)?;
    // Whoever comes next may write.
    yard.stage(B, &vol)??;
    yard.publish(B, &vol)?;
    yard.sh(B, &format!("printf 'new bytes' | dd of={} conv=notrunc,fsync status=none", on_b.display()))?;
    starts_with(yard, B, &vol, "new bytes")?;
    yard.down(B, &vol)
}

fn starts_with(yard: &VmHarness, at: usize, vol: &Vol, want: &str) -> StepResult<()> {
    let text = yard.sh(at, &format!("head -c {} {}", want.len(), yard.target(at, vol).display()))?;
    ensure(text == want, || format!("it starts with {text:?} and not {want:?}"))
}

fn refuses_writes(yard: &VmHarness, vol: &Vol) -> StepResult<()> {
    let target = yard.target(B, vol).display().to_string();
    yard.sh(B, &format!("! dd if=/dev/zero of={target} count=1 conv=notrunc,fsync")).map(drop)
}

fn grows(yard: &mut VmHarness, vol: &Vol, gib: u64) -> StepResult<()> {
    let (client, target, bytes) = (yard.client(B)?, yard.target(B, vol), i64::try_from(gib * GIB)?);
    client.expand(&vol.csi.id, bytes)?;
    client.node_expand(&vol.csi.id, &target, bytes)?;
    let size = yard.sh(B, &format!("blockdev --getsize64 {}", target.display()))?;
    ensure(size.trim() == bytes.to_string(), || format!("it has {size} bytes and not {bytes}"))
}

/// Killed while volumes are in use: they stay in use, and its successor takes them down.
pub fn outlives_the_plugin(yard: &mut VmHarness) -> StepResult<()> {
    let (mut files, raw) = (yard.volume("files", "xfs")?, yard.volume("raw-too", "")?);
    let mut raw = Vol { csi: Volume::block(&raw.csi.id), name: raw.name };
    yard.up(A, &mut files)?;
    yard.up(A, &mut raw)?;
    yard.put(A, &files, "file", "before")?;
    yard.kill(A)?;
    yard.says(A, &files, "file", "before")?;
    yard.put(A, &files, "file", "without it")?;
    yard.restart(A)?;
    yard.stage(A, &files)??;
    yard.publish(A, &files)?;
    yard.says(A, &files, "file", "without it")?;
    yard.down(A, &raw)?;
    yard.down(A, &files)?;
    yard.up(B, &mut files)?;
    yard.says(B, &files, "file", "without it")?;
    yard.down(B, &files)
}
