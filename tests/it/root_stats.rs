//! What NodeGetVolumeStats says of a volume: figures that are true, and errors that the kernel has recorded.

use std::fs;
use std::time::Duration;

use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Vol, may_grow_ext, refused};
use crate::support::wait_for;

/// Has the kernel record an error in a mounted ext4 or ext3, which goes on being writable.
fn record_an_error(rig: &NodeHarness, vol: &Vol) {
    let own = std::path::Path::new("/sys/fs/ext4").join(rig.node(vol).file_name().unwrap());
    fs::write(own.join("trigger_fs_error"), "a test").unwrap();
    let count = || fs::read_to_string(own.join("errors_count")).ok().filter(|count| count.trim() == "1");
    wait_for(Duration::from_secs(10), count).unwrap();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_nothing_is_told_of_a_volume_that_is_not_known() {
    let rig = NodeHarness::start();
    // How much of a raw disk is used nobody knows; "all of it" is an alarm for every raw volume.
    let raw = rig.volume("raw", "").block();
    rig.stage(&raw).unwrap();
    rig.publish(&raw, "alloc").unwrap();
    let stats = rig.client().stats(&raw.csi.id, &rig.target(&raw, "alloc")).unwrap();
    let usage = &stats.usage[0];
    assert_eq!((stats.usage.len(), usage.total, usage.used, usage.available), (1, 1 << 30, 0, 0), "{stats:?}");
    rig.unpublish(&raw, "alloc").unwrap();
    rig.unstage(&raw).unwrap();
    // btrfs has inodes as long as it has space.
    let btrfs = rig.volume("btrfs", "").fs("btrfs");
    rig.stage(&btrfs).unwrap();
    let stats = rig.client().stats(&btrfs.csi.id, &rig.staging(&btrfs)).unwrap();
    assert!(stats.usage.iter().all(|usage| usage.total > 0) && stats.usage.len() == 1, "{stats:?}");
    rig.unstage(&btrfs).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_recorded_errors_make_a_volume_abnormal_and_are_why_it_does_not_grow() {
    let rig = NodeHarness::start();
    for fs in ["ext4", "ext3"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs).flags(&["errors=continue"]);
        let staging = rig.staging(&vol);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        record_an_error(&rig, &vol);
        for path in [&staging, &rig.target(&vol, "alloc")] {
            let stats = rig.client().stats(&vol.csi.id, path).unwrap();
            let (condition, usage) = (&stats.volume_condition, &stats.usage);
            assert!(condition.abnormal && usage.len() == 2, "{stats:?}");
            let words = ["1 error recorded", "the first one at 2", "trigger_test_error:", "staged next"];
            words.iter().for_each(|word| assert!(condition.message.contains(word), "{word}: {condition:?}"));
        }
        rig.resize(&vol, 3);
        let expand = rig.client().node_expand(&vol.csi.id, &staging, 3 << 30);
        let words = ["recorded errors", "checked and grown when it is staged next", &vol.name];
        refused(expand, RpcStatusCode::FAILED_PRECONDITION, &words);
        rig.write(&staging, "file", "kept").unwrap();
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
        // What the message advises.
        rig.stage(&vol).unwrap();
        assert_eq!(rig.read(&staging, "file").unwrap(), "kept");
        let stats = rig.client().stats(&vol.csi.id, &staging).unwrap();
        assert!(!stats.volume_condition.abnormal, "{stats:?}");
        assert_eq!(rig.fs_size(&staging) > 2 << 30, may_grow_ext());
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_after_an_error_a_volume_can_only_be_read_until_it_was_checked() {
    let rig = NodeHarness::start();
    for fs in ["ext4", "ext3"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        let staging = rig.staging(&vol);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        rig.write(&staging, "file", "kept").unwrap();
        record_an_error(&rig, &vol);
        for path in [&staging, &rig.target(&vol, "alloc")] {
            let condition = rig.client().stats(&vol.csi.id, path).unwrap().volume_condition;
            let words = ["read-only because of errors", "1 error recorded", "trigger_test_error:", "staged next"];
            words.iter().for_each(|word| assert!(condition.message.contains(word), "{word}: {condition:?}"));
            assert!(condition.abnormal);
        }
        rig.write(&staging, "other", "lost").unwrap_err();
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
        rig.stage(&vol).unwrap();
        assert_eq!(rig.read(&staging, "file").unwrap(), "kept");
        rig.write(&staging, "other", "written").unwrap();
        assert!(!rig.client().stats(&vol.csi.id, &staging).unwrap().volume_condition.abnormal);
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}
