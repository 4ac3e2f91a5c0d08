//! Which disk is a volume's: by udev's links, and by what disks say of themselves.

use std::thread;

use grpcio::RpcStatusCode;

use super::harness::{A, GIB, VmHarness, refused};
use crate::sim::qmp::Disk;
use crate::support::story::{StepResult, ensure};

/// Names from the shortest to the longest that DigitalOcean takes.
pub fn names(yard: &mut VmHarness) -> StepResult<()> {
    for length in [1, 40, 63, 64] {
        let name: String = "n-0123456789abcdef".chars().cycle().take(length).collect();
        let (vol, disk) = (yard.told(&name, "ext4")?, yard.disk(&name)?);
        yard.plug(A, &disk)?;
        yard.until(A, &format!("test -b {}", vol.link()))?;
        let page = yard.sh(A, &format!("cat /sys/block/$(basename $(realpath {}))/device/vpd_pg80", vol.link()))?;
        let serial: String = name.chars().take(36).collect();
        ensure(page.contains(&serial), || format!("page 0x80 of {name} says {page:?}"))?;
        yard.stage(A, &vol)??;
        yard.is_on_its_disk(A, &vol)?;
        yard.unstage(A, &vol)?;
        yard.pull(&disk)?;
    }
    Ok(())
}

/// A disk without a link, and two disks whose links are exchanged.
pub fn links(yard: &mut VmHarness) -> StepResult<()> {
    let (lonely, one, other) = (yard.told("lonely", "ext4")?, yard.told("one", "ext4")?, yard.told("other", "ext4")?);
    for vol in [&lonely, &one, &other] {
        let disk = yard.disk(&vol.name)?;
        yard.plug(A, &disk)?;
        yard.until(A, &format!("test -b {}", vol.link()))?;
    }
    let (a, b) = (one.link(), other.link());
    let swap = format!("x=$(readlink {a}) y=$(readlink {b}); ln -sfn $y {a}; ln -sfn $x {b}");
    yard.sh(A, &format!("rm {}; {swap}", lonely.link()))?;
    for vol in [&lonely, &one, &other] {
        yard.stage(A, vol)??;
        yard.is_on_its_disk(A, vol)?;
    }
    for vol in [&lonely, &one, &other] {
        yard.unstage(A, vol)?;
    }
    Ok(())
}

/// A stale link to a disk that is another volume's by now, and another maker's disk of the same name.
pub fn strangers(yard: &mut VmHarness) -> StepResult<()> {
    let (gone, forged) = (yard.told("gone", "ext4")?, yard.told("forged", "ext4")?);
    let (taken_over, foreign) =
        (yard.disk("somebody-elses")?, Disk { vendor: "QEMU".to_owned(), ..yard.disk("forged")? });
    for (vol, disk) in [(&gone, &taken_over), (&forged, &foreign)] {
        yard.plug(A, disk)?;
        let node = "/dev/$(basename $(dirname $(dirname $(grep -lF NAME /sys/block/sd*/device/vpd_pg83))))";
        yard.sh(A, &format!("ln -sfn {} {}", node.replace("NAME", &disk.name), vol.link()))?;
    }
    // Each is waited for, so both are asked for at once.
    let client = yard.client(A)?;
    let (gone_at, forged_at) = (yard.staging(A, &gone), yard.staging(A, &forged));
    yard.machine(A).prepare(&gone_at, &forged_at)?;
    yard.machine(A).prepare(&forged_at, &gone_at)?;
    let (first, second) = thread::scope(|scope| {
        let other = scope.spawn(|| client.stage(&forged.csi, &forged_at));
        (client.stage(&gone.csi, &gone_at), other.join())
    });
    let second = second.map_err(|_| "the call panicked")?;
    refused(first, RpcStatusCode::FAILED_PRECONDITION, &["somebody-elses"])?;
    refused(second, RpcStatusCode::FAILED_PRECONDITION, &["QEMU"])?;
    for disk in [&taken_over, &foreign] {
        ensure(is_blank(disk)?, || format!("the disk named {} was written to", disk.name))?;
    }
    yard.sh(A, &format!("rm {} {}", gone.link(), forged.link())).map(drop)
}

/// Whether nothing was ever written to a disk: its file has no block of its own.
fn is_blank(disk: &Disk) -> StepResult<bool> {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(&disk.file)?;
    Ok(file.len() == GIB && file.blocks() == 0)
}
