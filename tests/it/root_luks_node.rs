//! Encrypted volumes through the plugin's socket: their whole life where the kernel has a device mapper, and what the
//! plugin says where it has none.
//!
//! Needs root, and is meant to run in a private mount namespace: `make test-root` does both.

use std::fs;
use std::path::Path;

use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Vol, refused};

const KEY: &str = "correct horse battery staple";
const GIB: i64 = 1 << 30;

/// Whether this kernel can open encrypted volumes.
fn has_device_mapper() -> bool {
    Path::new("/sys/class/misc/device-mapper").exists()
}

/// The names of the open encrypted volumes on a volume's disk.
fn open_on(rig: &NodeHarness, vol: &Vol) -> Vec<String> {
    let disk = rig.node(vol);
    let holders = Path::new("/sys/class/block").join(disk.file_name().unwrap()).join("holders");
    let holders = fs::read_dir(holders).unwrap().map(|entry| entry.unwrap().path());
    holders.map(|holder| fs::read_to_string(holder.join("dm/name")).unwrap().trim().to_owned()).collect()
}

/// What there is to see where the kernel opens no encrypted volume: that is said, and the disk stays as it is.
fn refuses_to_open(rig: NodeHarness, vol: &Vol) {
    let before = rig.bytes(vol);
    refused(rig.stage(vol), RpcStatusCode::FAILED_PRECONDITION, &["device-mapper", "disk is as it was"]);
    assert!(rig.mount_at(&rig.staging(vol)).is_none() && before.are_still_there());
    close(rig);
}

fn close(rig: NodeHarness) {
    let log = rig.plugin().log();
    assert!(!log.contains(KEY), "{log}");
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_an_encrypted_volume_lives_as_any_other() {
    let rig = NodeHarness::start();
    for fs in ["ext4", "xfs", "btrfs", "ext3"] {
        let vol = rig.volume(&format!("secret-{fs}"), "").fs(fs).encrypted(KEY);
        if !has_device_mapper() {
            return refuses_to_open(rig, &vol);
        }
        rig.stage(&vol).unwrap();
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "a").unwrap();
        let target = rig.target(&vol, "a");
        rig.write(&target, "file", "for nobody's eyes").unwrap();
        assert_eq!(open_on(&rig, &vol), [format!("do-csi-{}", vol.name)]);
        // A second task on the droplet, and one that only reads.
        rig.publish(&vol.keyless(), "b").unwrap();
        rig.publish_as(&vol, "c", true).unwrap();
        assert_eq!(rig.read(&rig.target(&vol, "c"), "file").unwrap(), "for nobody's eyes");
        for alloc in ["a", "b", "c"] {
            rig.unpublish(&vol, alloc).unwrap();
        }
        rig.unstage(&vol).unwrap();
        rig.unstage(&vol).unwrap();
        assert!(open_on(&rig, &vol).is_empty(), "{fs}");
        nix::unistd::sync();
        assert!(!rig.is_on_disk(&vol, "for nobody's eyes") && !rig.is_on_disk(&vol, KEY), "{fs}");

        rig.stage(&vol.fs("")).unwrap();
        assert_eq!(rig.read(&rig.staging(&vol), "file").unwrap(), "for nobody's eyes");
        rig.unstage(&vol).unwrap();
        assert!(open_on(&rig, &vol).is_empty(), "{fs}");
    }
    close(rig);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_the_beginning_of_an_encrypted_volume_is_not_given_out_as_a_raw_disk() {
    let rig = NodeHarness::start();
    let vol = rig.volume("begun", "").block();
    let node = rig.node(&vol).display().to_string();
    let format = |subsystem: &str| {
        let args = "--batch-mode luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000";
        rig.run("sh", &["-c", &format!("printf key | cryptsetup {args} --subsystem {subsystem} --key-file=- {node}")]);
    };
    format("do-csi-plugin:new");
    let before = rig.bytes(&vol);
    let words = ["the beginning of an encrypted volume", "completes it"];
    refused(rig.stage(&vol), RpcStatusCode::FAILED_PRECONDITION, &words);
    refused(rig.publish(&vol, "raw"), RpcStatusCode::FAILED_PRECONDITION, &words);
    assert!(before.are_still_there());
    // One that is somebody's own may be used raw.
    format("do-csi-plugin");
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "raw").unwrap();
    rig.unpublish(&vol, "raw").unwrap();
    close(rig);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_an_encrypted_volume_that_was_made_elsewhere_is_refused_where_the_kernel_opens_none() {
    let rig = NodeHarness::start();
    let vol = rig.volume("elsewhere", "").fs("ext4").encrypted(KEY);
    let args = "--batch-mode luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file=-";
    rig.run("sh", &["-c", &format!("printf '{KEY}' | cryptsetup {args} {}", rig.node(&vol).display())]);
    if has_device_mapper() {
        return close(rig);
    }
    refuses_to_open(rig, &vol);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_the_key_may_come_with_either_call_and_must_be_right() {
    let rig = NodeHarness::start();
    let vol = rig.volume("secret", "").fs("ext4").encrypted(KEY);
    // Without the key nothing happens to the disk.
    let before = rig.bytes(&vol);
    rig.stage(&vol.keyless()).unwrap();
    assert!(rig.mount_at(&rig.staging(&vol)).is_none() && before.are_still_there());
    let names = ["secret", "encryption-passphrase", "encryptionPassphrase", "luksKey"];
    refused(rig.publish(&vol.keyless(), "a"), RpcStatusCode::FAILED_PRECONDITION, &names);
    let mut open = vol.clone();
    open.csi.context.clear();
    refused(rig.stage(&open), RpcStatusCode::INVALID_ARGUMENT, &["secrets", "encrypted = \"true\""]);
    refused(rig.stage(&vol.block()), RpcStatusCode::INVALID_ARGUMENT, &["raw block volume"]);
    assert!(before.are_still_there());
    if !has_device_mapper() {
        return close(rig);
    }
    rig.publish(&vol, "a").unwrap();
    rig.write(&rig.target(&vol, "a"), "file", "kept").unwrap();
    rig.stage(&vol.keyless()).unwrap();
    rig.unpublish(&vol, "a").unwrap();
    rig.unstage(&vol).unwrap();
    assert!(open_on(&rig, &vol).is_empty());

    let before = rig.bytes(&vol);
    let wrong = vol.encrypted("wrong");
    refused(rig.stage(&wrong), RpcStatusCode::INVALID_ARGUMENT, &["secret", "does not open", "key slots"]);
    refused(rig.publish(&wrong, "a"), RpcStatusCode::INVALID_ARGUMENT, &["does not open"]);
    // Asked for without encryption it is refused, with the word that is missing.
    let mut plain = vol.keyless();
    plain.csi.context.clear();
    refused(rig.stage(&plain), RpcStatusCode::FAILED_PRECONDITION, &["LUKS", "`encrypted = \"true\"`"]);
    assert!(before.are_still_there() && open_on(&rig, &vol).is_empty());
    rig.stage(&vol).unwrap();
    assert_eq!(rig.read(&rig.staging(&vol), "file").unwrap(), "kept");
    rig.unstage(&vol).unwrap();
    close(rig);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_is_not_encrypted_is_never_made_so() {
    let rig = NodeHarness::start();
    for fs in ["ext4", "xfs"] {
        let vol = rig.volume(&format!("plain-{fs}"), fs);
        let before = rig.bytes(&vol);
        let code = RpcStatusCode::FAILED_PRECONDITION;
        refused(rig.stage(&vol.encrypted(KEY)), code, &[fs, "which is not encrypted", "take `encrypted` away"]);
        assert!(before.are_still_there(), "{fs}");
    }
    let vol = rig.volume("blank", "").encrypted(KEY);
    let before = rig.bytes(&vol);
    let never = vol.context("dobs.csi.digitalocean.com/noformat", "true");
    refused(rig.stage(&never), RpcStatusCode::FAILED_PRECONDITION, &["blank", "noformat"]);
    refused(rig.stage(&vol.flags(&["ro"])), RpcStatusCode::FAILED_PRECONDITION, &["blank", "read-only"]);
    assert!(before.are_still_there());
    close(rig);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_an_encrypted_volume_outlives_the_plugin_and_what_was_left_open_is_closed() {
    let mut rig = NodeHarness::start();
    let vol = rig.volume("secret", "").fs("ext4").encrypted(KEY);
    if !has_device_mapper() {
        rig.restart();
        return refuses_to_open(rig, &vol);
    }
    rig.stage(&vol).unwrap();
    rig.write(&rig.staging(&vol), "file", "kept").unwrap();
    rig.restart();
    rig.stage(&vol.keyless()).unwrap();
    rig.publish(&vol.keyless(), "a").unwrap();
    assert_eq!(rig.read(&rig.target(&vol, "a"), "file").unwrap(), "kept");
    // The path for readers has a mount of its own, and each closes it only with the last one.
    let readers = rig.staging(&vol).with_extension("ro");
    rig.stage_at(&vol.flags(&["ro"]), &readers).unwrap();
    rig.unpublish(&vol, "a").unwrap();
    rig.unstage(&vol).unwrap();
    assert_eq!(open_on(&rig, &vol), ["do-csi-secret"]);
    rig.client().unstage(&vol.csi.id, &readers).unwrap();
    assert!(open_on(&rig, &vol).is_empty());

    // Somebody, or a call that was killed at the wrong moment, has left it open.
    let disk = rig.node(&vol);
    let open = format!("printf %s '{KEY}' | cryptsetup open --key-file=- {} do-csi-secret", disk.display());
    rig.run("sh", &["-c", &open]);
    rig.stage(&vol.keyless()).unwrap();
    refused(rig.publish(&vol.keyless(), "a"), RpcStatusCode::FAILED_PRECONDITION, &["key"]);
    rig.stage(&vol).unwrap();
    assert_eq!(rig.read(&rig.staging(&vol), "file").unwrap(), "kept");
    rig.unstage(&vol).unwrap();
    assert!(open_on(&rig, &vol).is_empty());
    // Under another name it is somebody's, and left to them.
    rig.run("sh", &["-c", &open.replace("do-csi-secret", "somebodys")]);
    refused(rig.stage(&vol), RpcStatusCode::FAILED_PRECONDITION, &["secret", "dm-", "lsblk"]);
    assert_eq!(open_on(&rig, &vol), ["somebodys"]);
    rig.run("cryptsetup", &["close", "somebodys"]);
    close(rig);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_an_encrypted_volume_grows_with_its_key_or_when_it_is_staged_next() {
    let rig = NodeHarness::start();
    for fs in ["ext4", "xfs", "btrfs"] {
        let vol = rig.volume(&format!("growing-{fs}"), "").fs(fs).encrypted(KEY);
        if !has_device_mapper() {
            rig.resize(&vol, 2);
            return refuses_to_open(rig, &vol);
        }
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "a").unwrap();
        let target = rig.target(&vol, "a");
        rig.resize(&vol, 2);
        let id = &vol.csi.id;
        let without = rig.client().node_expand(id, &target, 2 * GIB);
        refused(without, RpcStatusCode::FAILED_PRECONDITION, &["without its key", "staged next"]);
        let wrong = rig.client().node_expand_with(id, &target, 2 * GIB, &[("luksKey", "wrong")]);
        refused(wrong, RpcStatusCode::INVALID_ARGUMENT, &["does not open"]);
        let secrets = [("encryption-passphrase", KEY)];
        assert_eq!(rig.client().node_expand_with(id, &target, 2 * GIB, &secrets).unwrap(), 2 * GIB);
        assert!(rig.fs_size(&target) > 1_800_000_000, "{fs}");
        // Nothing is left to do, for which no key is needed.
        assert_eq!(rig.client().node_expand(id, &target, 2 * GIB).unwrap(), 2 * GIB);

        rig.unpublish(&vol, "a").unwrap();
        rig.unstage(&vol).unwrap();
        rig.resize(&vol, 3);
        rig.stage(&vol).unwrap();
        assert!(rig.fs_size(&rig.staging(&vol)) > 2_800_000_000, "{fs}");
        rig.unstage(&vol).unwrap();
        assert!(open_on(&rig, &vol).is_empty(), "{fs}");
    }
    close(rig);
}
