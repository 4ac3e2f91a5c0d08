//! What is not the volume's is left alone: calls that name a path and an id that do not belong together.

use std::fs;
use std::path::Path;

use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Sysfs, refused};

const PRECONDITION: RpcStatusCode = RpcStatusCode::FAILED_PRECONDITION;
const NOT_FOUND: RpcStatusCode = RpcStatusCode::NOT_FOUND;

/// Nobody has ever staged a volume with this id.
const UNKNOWN: &str = "00000000-0000-4000-8000-000000000000";

/// The link by which the volume of that id would be known.
const STALE: &str = "do-csi-id-00000000-0000-4000-8000-000000000000";

/// Asserts that every call which names a path refuses it for this id, and that nothing is mounted otherwise afterwards.
#[track_caller]
fn is_left_alone(rig: &NodeHarness, id: &str, path: &Path, words: &[&str]) {
    let before = rig.machine().mounts();
    let client = rig.client();
    refused(client.unpublish(id, path), PRECONDITION, words);
    refused(client.unstage(id, path), PRECONDITION, words);
    refused(client.stats(id, path), NOT_FOUND, words);
    refused(client.node_expand(id, path, 0), NOT_FOUND, words);
    assert_eq!(rig.machine().mounts(), before, "{}", path.display());
}

/// The links by which ids are known.
fn known_ids(rig: &NodeHarness) -> Vec<String> {
    let links = fs::read_dir(rig.link("any").parent().unwrap()).unwrap();
    let names = links.map(|link| link.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("do-csi-id")).collect()
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_no_call_acts_on_another_volume_whatever_path_it_names() {
    let mut rig = NodeHarness::start();
    for fs in ["xfs", "ext4", "btrfs"] {
        let (vol, other) = (rig.volume(&format!("vol-{fs}"), "").fs(fs), rig.volume(&format!("other-{fs}"), "").fs(fs));
        for vol in [&vol, &other] {
            rig.stage(vol).unwrap();
            rig.publish(vol, "alloc").unwrap();
        }
        let raw = rig.volume(&format!("raw-{fs}"), "").block();
        rig.publish(&raw, "alloc").unwrap();
        // Also a plugin that was started since knows which volume is which.
        for _ in 0..2 {
            for path in [rig.staging(&other), rig.target(&other, "alloc"), rig.target(&raw, "alloc")] {
                is_left_alone(&rig, &vol.csi.id, &path, &["is mounted there", &vol.csi.id]);
                is_left_alone(&rig, UNKNOWN, &path, &["is mounted there", "staged as"]);
            }
            is_left_alone(&rig, &raw.csi.id, &rig.target(&vol, "alloc"), &["is mounted there", &vol.name]);
            rig.restart();
        }
        rig.write(&rig.target(&other, "alloc"), "file", "kept").unwrap();
        for vol in [&vol, &other, &raw] {
            rig.client().stats(&vol.csi.id, &rig.target(vol, "alloc")).unwrap();
            rig.client().node_expand(&vol.csi.id, &rig.target(vol, "alloc"), 0).unwrap();
            rig.unpublish(vol, "alloc").unwrap();
            rig.unstage(vol).unwrap();
        }
        assert_eq!(known_ids(&rig), [""; 0]);
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_no_call_acts_on_a_disk_that_is_no_volume() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    let own = rig.volume("own", "ext4");
    let (node, home) = (rig.node(&own), rig.machine().home().to_owned());
    // A disk of the droplet's own, at a path of its own and where a volume might be.
    fs::remove_file(rig.link(&own.name)).unwrap();
    for path in [home.join("database"), rig.target(&vol, "alloc")] {
        fs::create_dir_all(&path).unwrap();
        rig.run("mount", &[&node.to_string_lossy(), &path.to_string_lossy()]);
        for id in [vol.csi.id.as_str(), own.csi.id.as_str(), UNKNOWN, "blog"] {
            is_left_alone(&rig, id, &path, &["is mounted there", "carries no name"]);
        }
        rig.run("umount", &[&path.to_string_lossy()]);
    }
    // A node of `/dev` that is no disk, as Docker hides files with.
    let hidden = home.join("hidden");
    fs::write(&hidden, "").unwrap();
    rig.run("mount", &["--bind", "/dev/null", &hidden.to_string_lossy()]);
    is_left_alone(&rig, &vol.csi.id, &hidden, &["is mounted there", "no disk"]);
    rig.run("umount", &[&hidden.to_string_lossy()]);
    // The droplet's root file system, whatever links say of its disk.
    let root = home.join("root");
    fs::create_dir_all(&root).unwrap();
    rig.run("mount", &["--bind", "/usr", &root.to_string_lossy()]);
    let before = rig.machine().mounts();
    for id in [vol.csi.id.as_str(), UNKNOWN] {
        assert!(rig.client().unpublish(id, &root).is_err() && rig.client().unstage(id, &root).is_err());
        assert!(rig.client().stats(id, &root).is_err() && rig.client().node_expand(id, &root, 0).is_err());
    }
    assert_eq!(rig.machine().mounts(), before);
    rig.run("umount", &[&root.to_string_lossy()]);
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_is_let_go_of_by_any_plugin_that_comes_later() {
    // What an older plugin or the official driver has staged has no id that is known, and its disk is a volume all the same.
    let sysfs = Sysfs::new();
    let mut rig = NodeHarness::start_with(&[&sysfs.flag()]);
    let vol = rig.volume("vol", "xfs");
    let device = sysfs.show_scsi(&rig.node(&vol), "vol", "running\n");
    let forget = |rig: &NodeHarness| {
        for link in known_ids(rig) {
            fs::remove_file(rig.link("any").with_file_name(link)).unwrap();
        }
    };
    for id in [vol.csi.id.as_str(), UNKNOWN, "blog"] {
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        assert_eq!(known_ids(&rig), [format!("do-csi-id-{}", vol.csi.id)]);
        forget(&rig);
        rig.restart();
        rig.client().stats(id, &rig.target(&vol, "alloc")).unwrap();
        rig.client().unpublish(id, &rig.target(&vol, "alloc")).unwrap();
        rig.client().unstage(id, &rig.staging(&vol)).unwrap();
        assert_eq!(rig.mount_at(&rig.staging(&vol)), None);
    }
    // The disk says that it is another volume, or none of DigitalOcean's: then it is not what was staged.
    rig.stage(&vol).unwrap();
    for (file, text, words) in
        [("vpd_pg83", "\0\u{83}\0\t\u{2}\0\0\u{5}other", "\"other\""), ("vendor", "QEMU", "no DigitalOcean volume")]
    {
        let was = fs::read(device.join(file)).unwrap();
        let bytes: Vec<u8> = text.chars().map(|byte| u8::try_from(u32::from(byte)).unwrap()).collect();
        fs::write(device.join(file), bytes).unwrap();
        is_left_alone(&rig, &vol.csi.id, &rig.staging(&vol), &["is mounted there", words]);
        fs::write(device.join(file), was).unwrap();
    }
    // A disk that is gone is nobody's any more, and its mount is in everybody's way.
    let node = rig.node(&vol);
    sysfs.hide(&node);
    rig.hide_node(&node);
    rig.client().unstage(UNKNOWN, &rig.staging(&vol)).unwrap();
    assert_eq!(rig.mount_at(&rig.staging(&vol)), None);
    rig.show_node(&node);
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_shut_down_file_system_of_another_volume_is_not_torn_away() {
    let rig = NodeHarness::start();
    let (vol, other) = (rig.volume("vol", "xfs"), rig.volume("other", "xfs"));
    rig.stage(&other).unwrap();
    rig.publish(&other, "alloc").unwrap();
    rig.stage(&vol).unwrap();
    rig.shut_down(&rig.staging(&other));
    let before = rig.machine().mounts();
    let client = rig.client();
    refused(
        client.publish(&vol.csi, &rig.staging(&vol), &rig.target(&other, "alloc"), false),
        PRECONDITION,
        &["other"],
    );
    refused(
        client.publish(&vol.csi, &rig.staging(&other), &rig.target(&vol, "alloc"), false),
        PRECONDITION,
        &["other"],
    );
    refused(client.stage(&vol.csi, &rig.staging(&other)), PRECONDITION, &["other"]);
    refused(client.unstage(&vol.csi.id, &rig.staging(&other)), PRECONDITION, &["other"]);
    refused(client.unpublish(&vol.csi.id, &rig.target(&other, "alloc")), PRECONDITION, &["other"]);
    assert_eq!(rig.machine().mounts(), before);
    rig.unpublish(&other, "alloc").unwrap();
    rig.unstage(&other).unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_an_id_from_before_the_disk_was_attached_keeps_nobody_from_the_volume() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    let (link, node) = (rig.link("vol"), rig.node(&vol));
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    // An earlier volume of this name, which was deleted while it was staged, and a driver that leaves no id.
    fs::rename(link.with_file_name(format!("do-csi-id-{}", vol.csi.id)), link.with_file_name(STALE)).unwrap();
    is_left_alone(&rig, &vol.csi.id, &rig.target(&vol, "alloc"), &["is mounted there", "staged as", UNKNOWN]);
    refused(
        rig.unpublish(&vol, "alloc"),
        PRECONDITION,
        &[&format!("`umount {}`", rig.target(&vol, "alloc").display())],
    );
    // The kernel makes a node when a disk is attached.
    let again = rig.machine().home().join("node");
    let number = rig.run("stat", &["-c", "%Hr %Lr", &node.to_string_lossy()]);
    let number: Vec<&str> = number.split_whitespace().collect();
    rig.run("mknod", &[&again.to_string_lossy(), "b", number[0], number[1]]);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(rig.machine().droplet.path(&again), &link).unwrap();
    rig.client().stats(&vol.csi.id, &rig.target(&vol, "alloc")).unwrap();
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    fs::remove_file(link.with_file_name(STALE)).unwrap();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&node, &link).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_node_whose_number_is_another_volumes_by_now_is_left_alone() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").block();
    let (link, node, target) = (rig.link("vol"), rig.node(&vol), rig.target(&vol, "alloc"));
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    // The kernel takes the node away with the disk, and makes another one for the next disk that gets the number.
    let at = node.to_string_lossy();
    let number = rig.run("stat", &["-c", "%Hr %Lr", &at]);
    let number: Vec<&str> = number.split_whitespace().collect();
    rig.run("rm", &[&at]);
    rig.run("mknod", &["-m", "660", &at, "b", number[0], number[1]]);
    let other = link.with_file_name("scsi-0DO_Volume_other");
    fs::rename(&link, &other).unwrap();
    refused(rig.unpublish(&vol, "alloc"), PRECONDITION, &["is mounted there", "volume named other"]);
    refused(rig.client().unstage(&vol.csi.id, &target), PRECONDITION, &["is mounted there", "volume named other"]);
    refused(rig.client().stats(&vol.csi.id, &target), NOT_FOUND, &["is mounted there", "volume named other"]);
    assert!(rig.mount_at(&target).is_some());
    // Of a disk of which nobody can say whose it is the mount is taken away as before.
    fs::remove_file(&other).unwrap();
    rig.client().stats(&vol.csi.id, &target).unwrap();
    rig.unpublish(&vol, "alloc").unwrap();
    assert_eq!(rig.mount_at(&target), None);
    std::os::unix::fs::symlink(&node, &link).unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}
