//! A plugin whose mounts do not reach the droplet, as in a container that was given its directories without propagation.

use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, refused};

const PRECONDITION: RpcStatusCode = RpcStatusCode::FAILED_PRECONDITION;

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_that_no_task_would_see_is_refused() {
    for propagation in ["private", "slave"] {
        let rig = NodeHarness::start_within(&["unshare", "--mount", "--propagation", propagation]);
        let start = rig.plugin().log();
        assert!(start.lines().any(|line| line.contains("ERROR") && line.contains("no task would see")), "{start}");
        let (vol, raw) = (rig.volume("vol", "").fs("xfs"), rig.volume("raw", "").block());
        let before = rig.bytes(&vol);
        for _ in 0..2 {
            let staging = rig.staging(&vol).display().to_string();
            refused(rig.stage(&vol), PRECONDITION, &["would not reach the droplet", &staging, "rshared"]);
            let target = rig.target(&raw, "alloc").display().to_string();
            refused(rig.publish(&raw, "alloc"), PRECONDITION, &["would not reach the droplet", &target, "rshared"]);
        }
        // A disk is not formatted for nobody.
        assert!(before.are_still_there());
        assert!(!rig.target(&raw, "alloc").exists());
        rig.close();
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_publish_is_refused_when_only_the_staging_path_is_shared() {
    // As from a container that was given one of two directories with propagation.
    let script = "mount --bind \"$1\" \"$1\" && mount --make-private \"$1\" && shift && exec \"$@\"";
    let rig = NodeHarness::start_in(|home| {
        let apart = home.join("per-alloc");
        std::fs::create_dir_all(&apart).unwrap();
        ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, "sh", &apart.to_string_lossy()]
            .map(str::to_owned)
            .into()
    });
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    assert!(rig.mount_at(&rig.staging(&vol)).is_some());
    refused(rig.publish(&vol, "alloc"), PRECONDITION, &["would not reach the droplet", "/per-alloc is not shared"]);
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_mounts_that_only_the_plugins_directories_share_reach_the_droplet() {
    // As Docker does it for Nomad: everything is private but what was given with "rshared".
    let script = "mount --bind \"$1\" \"$1\" && mount --make-private / && shift && exec \"$@\"";
    let rig = NodeHarness::start_in(|home| {
        ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, "sh", &home.to_string_lossy()]
            .map(str::to_owned)
            .into()
    });
    assert!(!rig.plugin().log().contains("no task would see"), "{}", rig.plugin().log());
    let (vol, raw) = (rig.volume("vol", "xfs"), rig.volume("raw", "").block());
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    rig.publish(&raw, "alloc").unwrap();
    // As the droplet sees it.
    for path in [rig.staging(&vol), rig.target(&vol, "alloc"), rig.target(&raw, "alloc")] {
        assert!(rig.mount_at(&path).is_some(), "{}", path.display());
    }
    rig.unpublish(&raw, "alloc").unwrap();
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_plugin_in_the_mount_namespace_of_its_nomad_is_warned_and_works() {
    // As by the driver raw_exec under a Nomad whose unit has a mount namespace of its own: its tasks see what it sees.
    let rig = NodeHarness::start_within(&["unshare", "--mount", "--propagation", "slave", "--fork", "--kill-child"]);
    let vol = rig.volume("vol", "xfs");
    for _ in 0..2 {
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
    }
    let log = rig.plugin().log();
    let warnings =
        log.lines().filter(|line| line.contains("WARN") && line.contains("cannot tell whether all tasks see"));
    assert_eq!(warnings.count(), 1, "{log}");
    rig.close();
}
