//! Growing through the real program: the disk first, then the file system on it.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use do_csi_plugin::proto::csi::volume_capability::access_mode::Mode;
use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Sysfs, Vol, may_grow_ext, refused};

const GIB: i64 = 1 << 30;

/// Whether a file system fills a disk of so many GiB, but for its own tables.
fn fills(rig: &NodeHarness, path: &Path, gib: u64) -> bool {
    rig.fs_size(path) > gib * (1 << 30) / 10 * 9
}

fn expand(rig: &NodeHarness, vol: &Vol, path: &Path, gib: i64) -> crate::support::client::Outcome<i64> {
    rig.client().node_expand(&vol.csi.id, path, gib * GIB)
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_ext_grows_where_the_kernel_lets_it_and_stays_whole_where_not() {
    let rig = NodeHarness::start();
    for fs in ["ext4", "ext3"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        let staging = rig.staging(&vol);
        rig.stage(&vol).unwrap();
        rig.write(&staging, "file", "kept").unwrap();
        rig.resize(&vol, 3);
        match expand(&rig, &vol, &staging, 3) {
            Ok(size) => assert_eq!((size, may_grow_ext(), fills(&rig, &staging, 3)), (3 * GIB, true, true), "{fs}"),
            Err(refusal) => {
                assert!(!may_grow_ext() && refusal.code == RpcStatusCode::FAILED_PRECONDITION, "{refusal}");
                assert!(refusal.message.contains("lacks the capability CAP_SYS_RESOURCE"), "{refusal}");
            }
        }
        assert_eq!(rig.read(&staging, "file").unwrap(), "kept");
        rig.write(&staging, "file", "more").unwrap();
        rig.unstage(&vol).unwrap();
        // The same when it is staged: grown if that is possible, and used as it is if not.
        rig.stage(&vol).unwrap();
        assert_eq!(rig.read(&staging, "file").unwrap(), "more");
        assert_eq!(fills(&rig, &staging, 3), may_grow_ext());
        assert_eq!(rig.plugin().log().contains("smaller than its disk and stays so"), !may_grow_ext());
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_grows_late_is_waited_for() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| expand(&rig, &vol, &rig.staging(&vol), 2));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!call.is_finished());
        rig.resize(&vol, 2);
        assert_eq!(call.join().unwrap().unwrap(), 2 * GIB);
    });
    assert!(fills(&rig, &rig.staging(&vol), 2));
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_grows_also_when_a_reader_of_it_is_asked_first() {
    let rig = NodeHarness::start();
    for fs in ["xfs", "btrfs"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        rig.stage(&vol).unwrap();
        rig.publish_as(&vol, "reader", true).unwrap();
        rig.resize(&vol, 2);
        for path in [rig.target(&vol, "reader"), rig.staging(&vol)] {
            assert_eq!(expand(&rig, &vol, &path, 2).unwrap(), 2 * GIB, "{fs}");
            assert!(fills(&rig, &path, 2), "{fs}");
        }
        rig.unpublish(&vol, "reader").unwrap();
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_raw_disk_grows_by_itself() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").block();
    let target = rig.target(&vol, "alloc");
    rig.publish(&vol, "alloc").unwrap();
    rig.resize(&vol, 3);
    for _ in 0..2 {
        assert_eq!(expand(&rig, &vol, &target, 3).unwrap(), 3 * GIB);
    }
    let node = rig.file(target.parent().unwrap(), &target.file_name().unwrap().to_string_lossy());
    assert_eq!(File::open(node).unwrap().seek(SeekFrom::End(0)).unwrap(), 3 << 30);
    assert_eq!(rig.client().stats(&vol.csi.id, &target).unwrap().usage[0].total, 3 * GIB);
    // What is bound there is the node of a disk that is gone; another disk may have its number by now.
    rig.renew_node(&rig.node(&vol));
    refused(expand(&rig, &vol, &target, 3), RpcStatusCode::FAILED_PRECONDITION, &["dead", "gone"]);
    rig.publish(&vol, "alloc").unwrap();
    assert_eq!(expand(&rig, &vol, &target, 3).unwrap(), 3 * GIB);
    rig.unpublish(&vol, "alloc").unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_is_read_only_or_not_there_does_not_grow() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    let staging = rig.staging(&vol);
    refused(expand(&rig, &vol, &staging, 2), RpcStatusCode::NOT_FOUND, &["vol"]);
    let reader = vol.mode(Mode::SINGLE_NODE_READER_ONLY);
    rig.stage(&reader).unwrap();
    rig.resize(&vol, 2);
    let before = rig.fs_size(&staging);
    refused(expand(&rig, &vol, &staging, 2), RpcStatusCode::FAILED_PRECONDITION, &["read-only"]);
    assert_eq!(rig.fs_size(&staging), before);
    rig.unstage(&vol).unwrap();
    refused(expand(&rig, &vol, &staging, 2), RpcStatusCode::NOT_FOUND, &["vol"]);
    // Staged for writing it grows by itself.
    rig.stage(&vol).unwrap();
    assert!(fills(&rig, &staging, 2));
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_the_disk_is_asked_for_its_size_and_a_refusal_is_no_failure() {
    let sysfs = Sysfs::new();
    let rig = NodeHarness::start_with(&[&sysfs.flag()]);
    let vol = rig.volume("vol", "xfs");
    let rescan = sysfs.show_scsi(&rig.node(&vol), "vol", "running\n").join("rescan");
    rig.stage(&vol).unwrap();
    assert_eq!(fs::read_to_string(&rescan).unwrap(), "");
    // Asked also when nothing is said of the size that the disk should have.
    assert_eq!(expand(&rig, &vol, &rig.staging(&vol), 0).unwrap(), GIB);
    assert_eq!(fs::read_to_string(&rescan).unwrap(), "1");
    fs::remove_file(&rescan).unwrap();
    fs::create_dir(&rescan).unwrap();
    rig.resize(&vol, 2);
    assert_eq!(expand(&rig, &vol, &rig.staging(&vol), 2).unwrap(), 2 * GIB);
    assert!(fills(&rig, &rig.staging(&vol), 2));
    assert!(rig.plugin().log().contains("was not asked for its size"));
    rig.unstage(&vol).unwrap();
    rig.close();
}
