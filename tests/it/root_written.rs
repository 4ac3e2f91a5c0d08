//! What reaches a disk and when, seen by the plugin's own system calls; and what a publish that fails has taken back.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, symlink};
use std::path::Path;
use std::time::Duration;

use grpcio::RpcStatusCode;

use crate::harness::{Bytes, NodeHarness, refused};
use crate::root_faults::tracer::{Event, Tracer};
use crate::support::wait_for;

const PRECONDITION: RpcStatusCode = RpcStatusCode::FAILED_PRECONDITION;

/// The system calls among these that write what is in memory, and those that unmount what is at a path, in order.
fn written_and_unmounted<'a>(events: &'a [Event], path: &Path) -> Vec<&'a str> {
    let path = format!("{}\"", path.display());
    let is_unmount = |event: &Event| event.name == "umount2" && event.text.contains(&path);
    let is_told = |event: &&Event| ["syncfs", "fsync"].contains(&event.name.as_str()) || is_unmount(event);
    let mut names: Vec<&str> = events.iter().filter(is_told).map(|event| event.name.as_str()).collect();
    // How often a busy mount is tried is a matter of time.
    names.dedup();
    names
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_is_in_memory_is_written_before_the_last_unmount_and_after_one_that_failed() {
    let (rig, tracer) = (NodeHarness::start(), Tracer::new());
    let pid = rig.plugin().pid();
    // A thread that does not work yet is not seen.
    rig.client().unpublish("none", &rig.machine().target("alloc", "none")).unwrap();
    for fs in ["xfs", "ext4", "btrfs"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        let (staging, target) = (rig.staging(&vol), rig.target(&vol, "alloc"));
        let user = File::create(rig.file(&target, "file")).unwrap();
        // Nomad has the disk detached after this, too.
        let (outcome, events) = tracer.record(pid, || rig.unpublish(&vol, "alloc"));
        refused(outcome, PRECONDITION, &["in use"]);
        assert_eq!(written_and_unmounted(&events, &target), ["umount2", "syncfs"], "{fs}");
        drop(user);
        rig.unpublish(&vol, "alloc").unwrap();
        let user = File::create(rig.file(&staging, "file")).unwrap();
        let (outcome, events) = tracer.record(pid, || rig.unstage(&vol));
        refused(outcome, PRECONDITION, &["in use"]);
        assert_eq!(written_and_unmounted(&events, &staging), ["syncfs", "umount2", "syncfs"], "{fs}");
        drop(user);
        let (outcome, events) = tracer.record(pid, || rig.unstage(&vol));
        outcome.unwrap();
        assert_eq!(written_and_unmounted(&events, &staging), ["syncfs", "umount2"], "{fs}");
    }
    let raw = rig.volume("vol-raw", "").block();
    rig.stage(&raw).unwrap();
    rig.publish(&raw, "alloc").unwrap();
    let target = rig.target(&raw, "alloc");
    let (outcome, events) = tracer.record(pid, || rig.unpublish(&raw, "alloc"));
    outcome.unwrap();
    assert_eq!(written_and_unmounted(&events, &target), ["fsync", "umount2"]);
    rig.unstage(&raw).unwrap();
    rig.close();
}

/// The system calls after a volume was bound at its target, each of which may be what fails then.
fn after_bind<'a>(events: &'a [Event], target: &Path) -> impl Iterator<Item = &'a Event> {
    let is_bind = |event: &&Event| event.name == "mount" && event.text.contains("MS_BIND");
    // The last one is at the target: the others prepare it beside that.
    let bound = events.iter().rfind(is_bind).unwrap_or_else(|| panic!("no bind at {}", target.display())).clone();
    events.iter().skip_while(move |event| **event != bound).skip(1).filter(|event| event.is_played())
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_publish_that_fails_after_its_bind_takes_the_bind_back() {
    let (rig, tracer) = (NodeHarness::start(), Tracer::new());
    let pid = rig.plugin().pid();
    for vol in [rig.volume("vol-xfs", "").fs("xfs"), rig.volume("vol-raw", "").block()] {
        rig.stage(&vol).unwrap();
        let target = rig.target(&vol, "alloc");
        let (outcome, events) = tracer.record(pid, || rig.publish(&vol, "alloc"));
        outcome.unwrap();
        rig.unpublish(&vol, "alloc").unwrap();
        let mut failed = 0;
        for event in after_bind(&events, &target) {
            let (outcome, _) = tracer.inject(pid, event, "EIO", || rig.publish(&vol, "alloc"));
            if outcome.is_err() {
                failed += 1;
                assert_eq!(rig.mount_at(&target), None, "{event:?}");
                assert!(fs::symlink_metadata(rig.file(&target, "").components().as_path()).is_err(), "{event:?}");
            }
            rig.publish(&vol, "alloc").unwrap();
            rig.unpublish(&vol, "alloc").unwrap();
        }
        assert!(failed > 0, "nothing failed after the bind: {events:#?}");
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_partition_is_not_taken_for_the_volume_whatever_the_link_says() {
    let rig = NodeHarness::start();
    let (vol, link) = (rig.volume("vol", ""), rig.link("vol"));
    let whole = rig.node(&vol);
    let mut table = vec![0; 512];
    // One partition, from the second MiB on, of half a GiB.
    table[446..462].copy_from_slice(&[0, 32, 33, 0, 0x83, 254, 255, 255, 0, 8, 0, 0, 0, 0, 16, 0]);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let disk = File::options().write(true).open(&whole).unwrap();
    disk.write_all_at(&table, 0).and_then(|()| disk.sync_all()).unwrap();
    drop(disk);
    rig.run("partx", &["--add", &whole.to_string_lossy()]);
    let part = whole.with_file_name(format!("{}p1", whole.file_name().unwrap().to_string_lossy()));
    wait_for(Duration::from_secs(20), || fs::metadata(&part).ok()?.file_type().is_block_device().then_some(()))
        .unwrap();
    fs::remove_file(&link).unwrap();
    symlink(&part, &link).unwrap();
    let before = Bytes::of(&part, &part);
    for vol in [vol.fs("xfs"), vol.fs("ext4"), vol.block()] {
        // As small as the partition, so that only what it is speaks against it.
        let mut vol = vol;
        vol.csi.publish_context.retain(|key, _| !key.contains("size"));
        let refusal = rig.client().stage_within(&vol.csi, &rig.staging(&vol), Duration::from_secs(4)).unwrap_err();
        assert!(refusal.message.contains("a partition, not a whole disk"), "{refusal}");
        assert_eq!(rig.mount_at(&rig.staging(&vol)), None);
    }
    assert!(before.are_still_there());
    fs::remove_file(&link).unwrap();
    symlink(&whole, &link).unwrap();
    // Neither is the file system that somebody has in a partition.
    refused(rig.stage(&vol.fs("ext4")), PRECONDITION, &["partition table"]);
    assert!(before.are_still_there());
    rig.run("partx", &["--delete", &whole.to_string_lossy()]);
    rig.close();
}
