//! Growing a volume that is in use, from the controller's call to the last byte of the file system.

use std::path::Path;

use do_csi_plugin::proto::csi;
use do_csi_plugin::proto::csi::volume_capability::access_mode::Mode;
use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Vol, may_grow_ext, refused};
use crate::support::client::{Client, Outcome, option};

const GIB: i64 = 1 << 30;

/// The size of the disk whose node is at a path on the droplet, in bytes.
fn disk_size(rig: &NodeHarness, node: &Path) -> i64 {
    rig.run("blockdev", &["--getsize64", &node.to_string_lossy()]).trim().parse().unwrap()
}

/// Asks the controller and then the node, as an orchestrator does.
fn grow(rig: &NodeHarness, vol: &Vol, path: &Path, bytes: i64) -> Outcome<i64> {
    let grown = rig.client().expand(&vol.csi.id, bytes).unwrap();
    assert!(grown.node_expansion_required);
    assert_eq!(grown.capacity_bytes, bytes);
    rig.client().node_expand(&vol.csi.id, path, bytes)
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_in_use_grows_with_its_file_system_and_keeps_its_files() {
    let rig = NodeHarness::start();
    for fs in ["xfs", "btrfs", "ext4"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        let target = rig.target(&vol, "alloc");
        rig.write(&target, "file", "kept").unwrap();
        let before = rig.fs_size(&target);
        // Nothing has grown: nothing is done.
        assert_eq!(rig.client().node_expand(&vol.csi.id, &target, GIB).unwrap(), GIB, "{fs}");
        // Twice: a repetition finds everything grown.
        for _ in 0..2 {
            match grow(&rig, &vol, &target, 3 * GIB) {
                Ok(capacity) => {
                    assert_eq!(capacity, 3 * GIB, "{fs}");
                    assert!(rig.fs_size(&target) > before * 5 / 2, "{fs}: {before} and {}", rig.fs_size(&target));
                }
                // ext4 grows online only with a capability that containers of tests often lack.
                Err(refusal) if fs == "ext4" && !may_grow_ext() => {
                    assert!(refusal.message.contains("lacks the capability CAP_SYS_RESOURCE"), "{refusal}");
                }
                Err(refusal) => panic!("{fs}: {refusal}"),
            }
            assert_eq!(disk_size(&rig, &rig.node(&vol)), 3 * GIB, "{fs}");
            assert_eq!(rig.cloud.sim.volume(&vol.csi.id).unwrap().size_gigabytes, 3, "{fs}");
            assert_eq!(rig.read(&target, "file").unwrap(), "kept", "{fs}");
        }
        // By the staging path too, which is what some orchestrators name.
        if fs != "ext4" {
            assert_eq!(grow(&rig, &vol, &rig.staging(&vol), 4 * GIB).unwrap(), 4 * GIB);
            assert!(rig.fs_size(&target) > before * 7 / 2, "{fs}");
            // Smaller than it is: as large as it is, since nothing ever shrinks.
            assert_eq!(rig.client().node_expand(&vol.csi.id, &target, GIB).unwrap(), 4 * GIB, "{fs}");
            rig.write(&target, "more", "x").unwrap();
        }
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

fn node_expand(client: &Client, request: &csi::NodeExpandVolumeRequest) -> Outcome<i64> {
    Ok(client.node.node_expand_volume_opt(request, option())?.capacity_bytes)
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_cannot_grow_is_refused_by_the_code_that_says_why() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    let at = |path: &Path| csi::NodeExpandVolumeRequest {
        volume_id: vol.csi.id.clone(),
        volume_path: path.display().to_string(),
        ..Default::default()
    };
    let several = csi::NodeExpandVolumeRequest {
        volume_capability: Some(vol.mode(Mode::MULTI_NODE_MULTI_WRITER).csi.capability).into(),
        ..at(&rig.staging(&vol))
    };
    refused(node_expand(rig.client(), &several), RpcStatusCode::INVALID_ARGUMENT, &["MULTI_NODE_MULTI_WRITER"]);
    let range = csi::CapacityRange { limit_bytes: GIB / 2, ..Default::default() };
    let smaller = csi::NodeExpandVolumeRequest { capacity_range: Some(range).into(), ..at(&rig.staging(&vol)) };
    refused(node_expand(rig.client(), &smaller), RpcStatusCode::OUT_OF_RANGE, &["the disk has"]);
    assert_eq!(node_expand(rig.client(), &at(&rig.staging(&vol))), Ok(GIB));
    rig.unstage(&vol).unwrap();

    let reader = vol.flags(&["ro"]);
    rig.stage(&reader).unwrap();
    rig.client().expand(&vol.csi.id, 2 * GIB).unwrap();
    refused(node_expand(rig.client(), &at(&rig.staging(&vol))), RpcStatusCode::FAILED_PRECONDITION, &["read-only"]);
    rig.unstage(&reader).unwrap();
    rig.close();
}
