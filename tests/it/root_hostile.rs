//! Disks whose superblock asks the kernel for what no volume may have, and the flags that keep one task's files from another.
//!
//! Needs root, and is meant to run in a private mount namespace: `make test-root` does both.

use std::path::Path;

use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Vol, refused};

const PRECONDITION: RpcStatusCode = RpcStatusCode::FAILED_PRECONDITION;

/// A volume on which a program has made something.
fn made(rig: &NodeHarness, name: &str, program: &str, args: &[&str]) -> Vol {
    let vol = rig.volume(name, "");
    let node = rig.node(&vol).to_string_lossy().into_owned();
    let args: Vec<_> = args.iter().copied().chain([node.as_str()]).collect();
    rig.run(program, &args);
    vol
}

/// The options of a mount and of its file system.
fn options(rig: &NodeHarness, path: &Path) -> Vec<String> {
    let line = rig.mount_at(path).unwrap_or_else(|| panic!("nothing is mounted at {}", path.display()));
    let fields: Vec<_> = line.split(' ').collect();
    [fields[5], fields[fields.len() - 1]].iter().flat_map(|part| part.split(',')).map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_an_ext_is_not_mounted_as_its_superblock_alone_would_have_it() {
    let rig = NodeHarness::start();
    for fs in ["ext4", "ext3"] {
        let vol = made(&rig, &format!("vol-{fs}"), "mke2fs", &["-q", "-t", fs, "-e", "panic"]);
        rig.run("tune2fs", &["-o", "nobarrier", &rig.node(&vol).to_string_lossy()]);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        for path in [rig.staging(&vol), rig.target(&vol, "alloc")] {
            let have = options(&rig, &path);
            assert!(have.iter().any(|option| option == "errors=remount-ro"), "{fs}: {have:?}");
            // The kernel shows what is not as the superblock has it.
            assert!(have.iter().any(|option| option == "barrier"), "{fs}: {have:?}");
        }
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
        // Whoever asks for something else gets it.
        let own = made(&rig, &format!("own-{fs}"), "mke2fs", &["-q", "-t", fs, "-e", "panic"]);
        let own = own.flags(&["errors=continue", "nobarrier"]);
        rig.stage(&own).unwrap();
        let have = options(&rig, &rig.staging(&own));
        assert!(have.iter().any(|option| option == "nobarrier"), "{fs}: {have:?}");
        assert!(have.iter().any(|option| option == "errors=continue"), "{fs}: {have:?}");
        rig.unstage(&own).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_file_system_that_reaches_beyond_its_disk_is_refused_by_name_and_not_touched() {
    let rig = NodeHarness::start();
    let other = rig.volume("other", "");
    let elsewhere = rig.node(&other).to_string_lossy().into_owned();
    let refuses = |vol: &Vol, words: &str| {
        let before = rig.bytes(vol);
        refused(rig.stage(vol), PRECONDITION, &[words, "nothing was changed"]);
        assert!(before.are_still_there(), "{words}");
        assert_eq!(rig.mount_at(&rig.staging(vol)), None);
    };
    let wants = |name: &str, option: &str| {
        let vol = made(&rig, name, "mke2fs", &["-q", "-t", "ext4"]);
        rig.run("tune2fs", &["-E", &format!("mount_opts={option}"), &rig.node(&vol).to_string_lossy()]);
        vol
    };
    refuses(&wants("panics", "errors=panic"), "\"errors=panic\"");
    refuses(&wants("aborts", "abort"), "\"abort\"");
    let old = made(&rig, "old", "mke2fs", &["-q", "-t", "ext4"]);
    rig.run("tune2fs", &["-o", "uid16", &rig.node(&old).to_string_lossy()]);
    refuses(&old, "uid16");

    rig.run("mke2fs", &["-q", "-O", "journal_dev", &elsewhere]);
    let journal = format!("device={elsewhere}");
    refuses(&made(&rig, "journal", "mke2fs", &["-q", "-t", "ext4", "-J", &journal]), "journal is on another device");
    refuses(
        &made(&rig, "log", "mkfs.xfs", &["-q", "-f", "-l", &format!("logdev={elsewhere},size=64m")]),
        "log is on another device",
    );
    rig.run("mkfs.btrfs", &["-q", "-f", &elsewhere]);
    refuses(&made(&rig, "two", "mkfs.btrfs", &["-q", "-f", &elsewhere]), "2 devices");
    // What helps is in the message, and helps.
    let vol = wants("cured", "noload");
    refuses(&vol, "tune2fs -E mount_opts= ");
    rig.run("tune2fs", &["-E", "mount_opts=", &rig.node(&vol).to_string_lossy()]);
    rig.stage(&vol).unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_every_volume_gets_the_default_mount_flags_unless_its_own_say_otherwise() {
    let flag = "--default-mount-flags=nosuid,nodev";
    let mut rig = NodeHarness::start();
    let early = rig.volume("early", "xfs");
    rig.stage(&early).unwrap();
    rig.restart_with(&[flag]);
    for fs in ["ext4", "xfs", "btrfs"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        let trusted = rig.volume(&format!("trusted-{fs}"), "").fs(fs).flags(&["suid"]);
        for (vol, has_nosuid) in [(&vol, true), (&trusted, false)] {
            for _ in 0..2 {
                rig.stage(vol).unwrap();
                rig.publish(vol, "alloc").unwrap();
            }
            for path in [rig.staging(vol), rig.target(vol, "alloc")] {
                let have = options(&rig, &path);
                assert_eq!(have.iter().any(|option| option == "nosuid"), has_nosuid, "{fs}: {have:?}");
                assert!(have.iter().any(|option| option == "nodev"), "{fs}: {have:?}");
            }
            rig.unpublish(vol, "alloc").unwrap();
            rig.unstage(vol).unwrap();
        }
    }
    // What was staged before the flag was given is as asked, and what it is published with has the flags.
    rig.stage(&early).unwrap();
    rig.publish(&early, "alloc").unwrap();
    let have = options(&rig, &rig.target(&early, "alloc"));
    assert!(have.iter().any(|option| option == "nosuid"), "{have:?}");
    rig.unpublish(&early, "alloc").unwrap();
    rig.unstage(&early).unwrap();
    rig.close();
}
