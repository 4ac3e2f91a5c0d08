//! How many volumes a droplet is said to take, with volumes on it that are none of CSI's.

use std::path::Path;

use crate::harness::{NodeHarness, Vol};

/// Mounts a volume without the plugin, as an operator does.
fn mount_by_hand(rig: &NodeHarness, vol: &Vol, at: &Path) {
    rig.run("mkdir", &["-p", &at.to_string_lossy()]);
    rig.run("mount", &[&rig.node(vol).to_string_lossy(), &at.to_string_lossy()]);
}

fn limit(rig: &NodeHarness) -> i64 {
    rig.client().node_info().unwrap().max_volumes_per_node
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_volumes_in_use_outside_csi_when_the_plugin_starts_are_taken_off_the_limit_and_others_are_not() {
    let mut rig = NodeHarness::start();
    let rig_limit = |rig: &mut NodeHarness| {
        rig.restart();
        crate::support::single_plugin::until("the droplet is known", || rig.client().node_info().is_ok());
        limit(rig)
    };
    assert_eq!(rig_limit(&mut rig), 15);

    let database = rig.volume("database", "xfs");
    // Attached and not used: whether CSI is going to use it cannot be seen.
    assert_eq!(rig_limit(&mut rig), 15);
    let manual_access = rig.machine().home().join("database");
    mount_by_hand(&rig, &database, &manual_access);
    // The number is read once, as orchestrators do.
    assert_eq!(limit(&rig), 15);
    assert_eq!(rig_limit(&mut rig), 14);

    // A second one, at a path that only looks like CSI's; btrfs, whose mounts have a device number of their own.
    let backup = rig.volume("backup", "").fs("btrfs");
    rig.run("mkfs.btrfs", &["-q", &rig.node(&backup).to_string_lossy()]);
    let csi_backup = rig.machine().home().join("csi-backup");
    mount_by_hand(&rig, &backup, &csi_backup);
    assert_eq!(rig_limit(&mut rig), 13);

    // CSI's own do not count, with a file system or raw, for one task or several.
    let blog = rig.volume("blog", "").fs("btrfs");
    rig.stage(&blog).unwrap();
    for alloc in ["one", "two"] {
        rig.publish(&blog, alloc).unwrap();
    }
    let raw = rig.volume("raw", "").block();
    rig.stage(&raw).unwrap();
    rig.publish(&raw, "one").unwrap();
    assert_eq!(rig_limit(&mut rig), 13);

    rig.unpublish(&raw, "one").unwrap();
    rig.unstage(&raw).unwrap();
    for alloc in ["one", "two"] {
        rig.unpublish(&blog, alloc).unwrap();
    }
    rig.unstage(&blog).unwrap();
    for at in [&manual_access, &csi_backup] {
        rig.run("umount", &[&at.to_string_lossy()]);
    }
    assert_eq!(rig_limit(&mut rig), 15);
    rig.close();
}
