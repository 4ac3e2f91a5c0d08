//! Machines that lose their power.

use super::harness::{A, B, VmHarness};
use crate::sim::DropletStatus;
use crate::support::story::StepResult;

/// A machine that is cut off with a volume in use: the cloud frees it, and the other machine has what was synced.
pub fn cut(yard: &mut VmHarness) -> StepResult<()> {
    let mut vol = yard.volume("cut-off", "ext4")?;
    yard.up(A, &mut vol)?;
    yard.put(A, &vol, "synced", "for good")?;
    // As a task that is in the middle of something.
    yard.machine(A).droplet.write(&yard.target(A, &vol).join("unsynced"), "perhaps")?;
    let droplet = yard.machine(A).id;
    yard.cut_power(A);
    yard.cloud.sim.set_droplet_status(droplet, DropletStatus::Off);
    yard.up(B, &mut vol)?;
    yard.says(B, &vol, "synced", "for good")?;
    yard.down(B, &vol)?;
    yard.cloud.sim.set_droplet_status(droplet, DropletStatus::Active);
    yard.boot(A, "")
}
