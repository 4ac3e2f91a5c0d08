//! The states of a mount, one test for each row: what is there already, and what comes of asking for it again.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use do_csi_plugin::proto::csi::volume_capability::access_mode::Mode;
use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Sysfs, Vol, may_grow_ext, refused};
use crate::support::wait_for;

const PRECONDITION: RpcStatusCode = RpcStatusCode::FAILED_PRECONDITION;
const EXISTS: RpcStatusCode = RpcStatusCode::ALREADY_EXISTS;

fn count_at(rig: &NodeHarness, path: &Path) -> usize {
    let lines = rig.machine().droplet.mounts();
    lines.iter().filter(|line| line.split(' ').nth(4) == path.to_str()).count()
}

/// All that is mounted on the droplet, but for what it has of other tests' directories: those vanish when their test ends.
fn mounts_of(rig: &NodeHarness) -> Vec<String> {
    let home = rig.machine().home().to_string_lossy().into_owned();
    let is_own = |line: &String| !line.contains("/do-csi-") || line.contains(&home);
    rig.machine().droplet.mounts().into_iter().filter(is_own).collect()
}

fn is_read_only(rig: &NodeHarness, path: &Path) -> bool {
    let line = rig.mount_at(path).unwrap_or_else(|| panic!("nothing is mounted at {}", path.display()));
    line.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro")
}

/// Where Nomad stages a volume for readers.
fn readers_staging(rig: &NodeHarness, vol: &Vol) -> PathBuf {
    rig.staging(vol).with_file_name("ro-file-system-single-node-reader-only")
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_every_call_may_be_repeated() {
    let rig = NodeHarness::start();
    for fs in ["xfs", "ext4", "ext3", "btrfs"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs).flags(&["noatime", "nodev", "discard"]);
        let (staging, target) = (rig.staging(&vol), rig.target(&vol, "alloc"));
        refused(rig.publish(&vol, "alloc"), PRECONDITION, &["not staged"]);
        for _ in 0..3 {
            rig.stage(&vol).unwrap();
            assert_eq!(count_at(&rig, &staging), 1, "{fs}");
        }
        for _ in 0..3 {
            rig.publish(&vol, "alloc").unwrap();
            assert_eq!(count_at(&rig, &target), 1, "{fs}");
        }
        for path in [&staging, &target] {
            let line = rig.mount_at(path).unwrap();
            assert!(line.contains("noatime") && line.contains("nodev"), "{line}");
        }
        for _ in 0..3 {
            rig.unpublish(&vol, "alloc").unwrap();
            assert!(!rig.file(&target, ".").exists(), "{fs}");
        }
        for _ in 0..3 {
            rig.unstage(&vol).unwrap();
            assert_eq!(count_at(&rig, &staging), 0, "{fs}");
        }
        refused(rig.publish(&vol, "alloc"), PRECONDITION, &["not staged"]);
        fs::remove_dir(&staging).unwrap();
        refused(rig.publish(&vol, "alloc"), PRECONDITION, &["not staged"]);
        rig.unstage(&vol).unwrap();
        rig.client().unpublish(&vol.csi.id, Path::new("/no/such/path")).unwrap();
        rig.client().unstage(&vol.csi.id, Path::new("/no/such/path")).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_that_is_not_as_asked_is_named_and_kept() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs").flags(&["noexec"]);
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    let mounts = mounts_of(&rig);
    let others = [
        (vol.flags(&[]), "with noexec"),
        (vol.flags(&["noexec", "nosuid"]), "without nosuid"),
        (vol.flags(&["noexec", "ro"]), "should be read-only"),
        (vol.mode(Mode::SINGLE_NODE_READER_ONLY), "should be read-only"),
        (vol.flags(&["noexec", "sync"]), "without sync"),
        (vol.fs("ext4"), "holds xfs, and ext4 was asked for"),
    ];
    for (other, words) in &others {
        refused(rig.stage(other), EXISTS, &[words, "unstage"]);
    }
    refused(rig.publish_as(&vol, "alloc", true), EXISTS, &["should be read-only"]);
    for alloc in ["alloc", "other"] {
        refused(rig.publish(&vol.fs("ext4"), alloc), EXISTS, &["holds xfs, and ext4 was asked for"]);
    }
    refused(rig.publish(&vol.flags(&["noexec", "strictatime"]), "alloc"), EXISTS, &["without strictatime"]);
    refused(rig.publish(&vol.flags(&["noexec", "nosuid"]), "alloc"), EXISTS, &["without nosuid"]);
    refused(rig.publish(&vol.flags(&["noexec", "sync"]), "other"), EXISTS, &["without sync"]);
    assert_eq!(mounts_of(&rig), mounts);
    // Flags that belong to one mount are given to each as asked, whatever the staged one has.
    let stricter = vol.flags(&["noexec", "nosuid", "noatime"]);
    rig.publish(&stricter, "stricter").unwrap();
    rig.publish(&stricter, "stricter").unwrap();
    let line = rig.mount_at(&rig.target(&vol, "stricter")).unwrap();
    assert!(line.contains("nosuid,noexec,noatime"), "{line}");
    assert_eq!(fs::read_dir(rig.target(&vol, "stricter").parent().unwrap()).unwrap().count(), 1);
    for alloc in ["alloc", "stricter"] {
        rig.unpublish(&vol, alloc).unwrap();
    }
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_another_volume_or_anything_else_at_a_path_is_left_alone() {
    let rig = NodeHarness::start();
    let (vol, other) = (rig.volume("vol", "xfs"), rig.volume("other", "xfs"));
    rig.stage(&other).unwrap();
    rig.publish(&other, "alloc").unwrap();
    refused(rig.stage_at(&vol, &rig.staging(&other)), PRECONDITION, &["is mounted there"]);
    refused(
        rig.client().publish(&vol.csi, &rig.staging(&other), &rig.target(&vol, "a"), false),
        PRECONDITION,
        &["is mounted there"],
    );
    rig.stage(&vol).unwrap();
    refused(
        rig.client().publish(&vol.csi, &rig.staging(&vol), &rig.target(&other, "alloc"), false),
        PRECONDITION,
        &["is mounted there"],
    );
    // A directory of the volume is not the volume.
    fs::create_dir(rig.file(&rig.staging(&vol), "directory")).unwrap();
    let part = rig.target(&vol, "part");
    fs::create_dir_all(&part).unwrap();
    let directory = rig.staging(&vol).join("directory");
    rig.run("mount", &["--bind", &directory.to_string_lossy(), &part.to_string_lossy()]);
    refused(rig.publish(&vol, "part"), PRECONDITION, &["is mounted there"]);
    rig.run("umount", &[&part.to_string_lossy()]);
    let tree = rig.volume("tree", "").fs("btrfs");
    rig.stage(&tree).unwrap();
    fs::create_dir(rig.file(&rig.staging(&tree), "directory")).unwrap();
    let directory = rig.staging(&tree).join("directory");
    let part = rig.target(&tree, "part");
    fs::create_dir_all(&part).unwrap();
    rig.run("mount", &["--bind", &directory.to_string_lossy(), &part.to_string_lossy()]);
    refused(rig.publish(&tree, "part"), PRECONDITION, &["is mounted there"]);
    rig.run("umount", &[&part.to_string_lossy()]);
    rig.unstage(&tree).unwrap();
    // Something that is no volume at all is neither covered nor taken away.
    let foreign = rig.target(&vol, "foreign");
    fs::create_dir_all(&foreign).unwrap();
    rig.run("mount", &["-t", "tmpfs", "tmpfs", &foreign.to_string_lossy()]);
    refused(rig.publish(&vol, "foreign"), PRECONDITION, &["tmpfs"]);
    refused(rig.stage_at(&vol, &foreign), PRECONDITION, &["tmpfs"]);
    refused(rig.unpublish(&vol, "foreign"), PRECONDITION, &["tmpfs"]);
    refused(rig.client().unstage(&vol.csi.id, &foreign), PRECONDITION, &["tmpfs"]);
    refused(rig.client().stats(&vol.csi.id, &foreign), RpcStatusCode::NOT_FOUND, &["foreign"]);
    assert_eq!(count_at(&rig, &foreign), 1);
    rig.run("umount", &[&foreign.to_string_lossy()]);
    // Nor are files that are there.
    for at in [rig.target(&vol, "full"), readers_staging(&rig, &vol)] {
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join("mine"), "mine").unwrap();
    }
    refused(rig.publish(&vol, "full"), PRECONDITION, &["content of its own"]);
    refused(rig.stage_at(&vol, &readers_staging(&rig, &vol)), PRECONDITION, &["content of its own"]);
    rig.unpublish(&vol, "full").unwrap();
    assert_eq!(fs::read_to_string(rig.target(&vol, "full").join("mine")).unwrap(), "mine");
    fs::write(rig.target(&vol, "file"), "mine").unwrap_err();
    fs::create_dir_all(rig.target(&vol, "file").parent().unwrap()).unwrap();
    fs::write(rig.target(&vol, "file"), "mine").unwrap();
    refused(rig.publish(&vol, "file"), PRECONDITION, &["not a directory"]);
    rig.unpublish(&vol, "file").unwrap();
    assert_eq!(fs::read_to_string(rig.target(&vol, "file")).unwrap(), "mine");
    rig.unpublish(&other, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    rig.unstage(&other).unwrap();
    rig.close();
}

/// What DigitalOcean's official driver leaves when it is exchanged in place: mount(8) through the link, without `nouuid` as
/// its older versions have it, bind mounts for the tasks, and a publish context that names the volume and nothing else.
#[test]
#[ignore = "needs root: make test-root"]
fn root_what_the_official_driver_has_staged_is_gone_on_with() {
    for fs in ["xfs", "ext4", "btrfs"] {
        let rig = NodeHarness::start();
        // DigitalOcean makes no btrfs: the driver has done it itself.
        let mut vol = rig.volume("vol", if fs == "btrfs" { "" } else { fs });
        if fs == "btrfs" {
            rig.run("mkfs.btrfs", &["-q", &rig.node(&vol).to_string_lossy()]);
        }
        vol.csi.publish_context.retain(|key, _| key == "dobs.csi.digitalocean.com/volume-name");
        assert_eq!(vol.csi.publish_context.len(), 1);
        let (staging, old) = (rig.staging(&vol), rig.target(&vol, "old"));
        for directory in [&staging, &old] {
            fs::create_dir_all(directory).unwrap();
        }
        rig.run("mount", &["-t", fs, &rig.link("vol").to_string_lossy(), &staging.to_string_lossy()]);
        rig.run("mount", &["-o", "bind", &staging.to_string_lossy(), &old.to_string_lossy()]);
        rig.write(&old, "file", "kept").unwrap();
        let mounts = mounts_of(&rig);
        // Asked for again, with the file system named or not, it is there.
        for again in [&vol, &vol.fs(fs)] {
            rig.stage(again).unwrap();
            rig.publish(again, "old").unwrap();
        }
        assert_eq!(mounts_of(&rig), mounts, "{fs}");
        rig.publish(&vol, "new").unwrap();
        rig.publish_as(&vol, "reader", true).unwrap();
        assert_eq!(rig.read(&rig.target(&vol, "reader"), "file").unwrap(), "kept", "{fs}");
        assert!(is_read_only(&rig, &rig.target(&vol, "reader")) && !is_read_only(&rig, &old), "{fs}");
        let stats = rig.client().stats(&vol.csi.id, &old).unwrap();
        assert!(stats.usage[0].total > 0 && !stats.volume_condition.abnormal, "{fs}: {stats:?}");
        rig.resize(&vol, 2);
        let before = rig.fs_size(&old);
        match rig.client().node_expand(&vol.csi.id, &old, 2 << 30) {
            Ok(size) => assert!(size == 2 << 30 && rig.fs_size(&old) > before, "{fs}"),
            Err(refusal) => assert!(fs == "ext4" && !may_grow_ext(), "{fs}: {refusal}"),
        }
        for alloc in ["old", "new", "reader"] {
            rig.unpublish(&vol, alloc).unwrap();
        }
        rig.unstage(&vol).unwrap();
        assert!(rig.machine().droplet.mounts().iter().all(|line| !line.contains("vol")), "{fs}");
        rig.stage(&vol).unwrap();
        assert_eq!(rig.read(&staging, "file").unwrap(), "kept", "{fs}");
        rig.unstage(&vol).unwrap();
        rig.close();
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_empty_leftovers_at_a_path_are_used() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    // Old Nomads make the target themselves.
    fs::create_dir_all(rig.target(&vol, "alloc")).unwrap();
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    let block = vol.block();
    fs::create_dir_all(rig.target(&vol, "block").parent().unwrap()).unwrap();
    fs::write(rig.target(&vol, "block"), "").unwrap();
    rig.stage(&block).unwrap();
    rig.publish(&block, "block").unwrap();
    rig.unpublish(&block, "block").unwrap();
    assert!(!rig.target(&vol, "block").exists());
    // Nomad 0.11 makes a directory for a device node too; and a file may be left from a job that wanted one.
    fs::create_dir_all(rig.target(&vol, "block")).unwrap();
    rig.publish(&block, "block").unwrap();
    let shown = fs::metadata(rig.file(&rig.target(&vol, "block"), "").components().as_path()).unwrap();
    assert!(std::os::unix::fs::FileTypeExt::is_block_device(&shown.file_type()));
    rig.unpublish(&block, "block").unwrap();
    fs::write(rig.target(&vol, "block"), "").unwrap();
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "block").unwrap();
    assert!(rig.mount_at(&rig.target(&vol, "block")).unwrap().contains("- xfs "));
    rig.unpublish(&vol, "block").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_another_task_uses_outlives_the_unstage() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "ext4");
    rig.stage(&vol).unwrap();
    for alloc in ["one", "two"] {
        rig.publish(&vol, alloc).unwrap();
    }
    // Nomad does so when it has forgotten who uses it, and does not detach it then.
    for _ in 0..2 {
        rig.unstage(&vol).unwrap();
    }
    assert!(rig.plugin().log().contains("unstaged while it is still in use at"), "{}", rig.plugin().log());
    assert_eq!(count_at(&rig, &rig.staging(&vol)), 0);
    rig.write(&rig.target(&vol, "one"), "file", "kept").unwrap();
    rig.unpublish(&vol, "one").unwrap();
    assert_eq!(rig.read(&rig.target(&vol, "two"), "file").unwrap(), "kept");
    // Staged again beside the one that still runs, it is the same file system.
    rig.stage(&vol).unwrap();
    assert_eq!(rig.read(&rig.staging(&vol), "file").unwrap(), "kept");
    rig.unstage(&vol).unwrap();
    rig.unpublish(&vol, "two").unwrap();
    assert!(rig.machine().droplet.mounts().iter().all(|line| !line.contains("vol")));
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_no_disk_is_encrypted_for_a_staging_path_that_is_taken() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").fs("ext4").encrypted("sesame");
    let (staging, before) = (rig.staging(&vol), rig.bytes(&vol));
    fs::create_dir_all(&staging).unwrap();
    rig.write(&staging, "file", "somebody's").unwrap();
    refused(rig.stage(&vol), PRECONDITION, &["is taken", "content of its own"]);
    fs::remove_file(staging.join("file")).unwrap();
    let other = rig.volume("other", "ext4");
    rig.client().stage(&other.csi, &staging).unwrap();
    refused(rig.stage(&vol), PRECONDITION, &["is taken", "is mounted there"]);
    assert!(before.are_still_there());
    rig.client().unstage(&other.csi.id, &staging).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_in_use_is_not_torn_away() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    let user = fs::File::create(rig.file(&rig.staging(&vol), "user")).unwrap();
    let user_is_named = format!("process {} ", std::process::id());
    refused(rig.unstage(&vol), PRECONDITION, &["because it is in use", &user_is_named, "user open"]);
    assert_eq!(count_at(&rig, &rig.staging(&vol)), 1);
    rig.write(&rig.staging(&vol), "file", "kept").unwrap();
    drop(user);
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_cannot_be_unpublished_is_written_to_its_disk() {
    // Nomad has the disk detached then all the same.
    let rig = NodeHarness::start();
    let told = ["xfs", "ext4", ""].map(|fs| {
        let vol = rig.volume(&format!("vol-{fs}"), fs);
        if fs.is_empty() { vol.block() } else { vol }
    });
    std::thread::scope(|scope| {
        for vol in &told {
            let rig = &rig;
            scope.spawn(move || {
                rig.stage(vol).unwrap();
                rig.publish(vol, "alloc").unwrap();
                let target = rig.target(vol, "alloc");
                let is_raw = vol.name == "vol-";
                let path = if is_raw { rig.file(&target, "") } else { rig.file(&target, "file") };
                let text = format!("in memory of {}", vol.name);
                let mut user = fs::OpenOptions::new().write(true).create(!is_raw).truncate(false).open(path).unwrap();
                user.write_all(text.as_bytes()).unwrap();
                let user_is_named = format!("process {} ", std::process::id());
                refused(rig.unpublish(vol, "alloc"), PRECONDITION, &["because it is in use", &user_is_named]);
                assert!(rig.is_on_disk(vol, &text), "{}", vol.name);
                drop(user);
                rig.unpublish(vol, "alloc").unwrap();
                rig.unstage(vol).unwrap();
            });
        }
    });
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_readers_and_writers_have_a_staging_path_each_in_either_order() {
    let rig = NodeHarness::start();
    for fs in ["xfs", "ext4", "ext3", "btrfs"] {
        let writer = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        let reader = writer.mode(Mode::SINGLE_NODE_READER_ONLY);
        let (rw, ro) = (rig.staging(&writer), readers_staging(&rig, &writer));
        rig.stage(&writer).unwrap();
        rig.write(&rw, "file", "kept").unwrap();
        for writer_first in [true, false] {
            if !writer_first {
                rig.unstage(&writer).unwrap();
                rig.client().unstage(&writer.csi.id, &ro).unwrap();
            }
            for _ in 0..2 {
                rig.stage_at(&reader, &ro).unwrap();
                rig.stage(&writer).unwrap();
            }
            assert!(is_read_only(&rig, &ro) && !is_read_only(&rig, &rw), "{fs} {writer_first}");
            rig.write(&rw, "file", if writer_first { "first" } else { "second" }).unwrap();
            assert!(rig.write(&ro, "file", "x").is_err(), "{fs} {writer_first}");
            assert_eq!(rig.read(&ro, "file").unwrap(), if writer_first { "first" } else { "second" });
            // What is published from either is as the one asks who publishes.
            let target = rig.target(&writer, "reader");
            rig.client().publish(&reader.csi, &ro, &target, false).unwrap();
            assert!(is_read_only(&rig, &target));
            refused(rig.client().publish(&writer.csi, &ro, &rig.target(&writer, "w"), false), EXISTS, &["read-only"]);
            rig.unpublish(&writer, "reader").unwrap();
            assert_eq!(fs::read_dir(rw.parent().unwrap()).unwrap().count(), 2, "something was left beside");
        }
        rig.client().unstage(&writer.csi.id, &ro).unwrap();
        rig.write(&rw, "file", "third").unwrap();
        rig.unstage(&writer).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_writer_after_readers_keeps_the_flags_that_all_mounts_have_in_common() {
    let rig = NodeHarness::start();
    for (fs, flag) in [("xfs", "sync"), ("ext4", "sync"), ("ext4", "lazytime"), ("btrfs", "lazytime")] {
        let writer = rig.volume(&format!("vol-{fs}-{flag}"), "").fs(fs).flags(&[flag, "noatime"]);
        let (reader, ro) = (writer.mode(Mode::SINGLE_NODE_READER_ONLY), readers_staging(&rig, &writer));
        rig.stage(&writer).unwrap();
        rig.unstage(&writer).unwrap();
        rig.stage_at(&reader, &ro).unwrap();
        for _ in 0..2 {
            rig.stage(&writer).unwrap();
            rig.stage_at(&reader, &ro).unwrap();
        }
        assert!(rig.mount_at(&rig.staging(&writer)).unwrap().contains(flag), "{fs} {flag}");
        assert!(is_read_only(&rig, &ro) && !is_read_only(&rig, &rig.staging(&writer)), "{fs} {flag}");
        rig.unstage(&writer).unwrap();
        rig.client().unstage(&writer.csi.id, &ro).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_read_only_holds_end_to_end() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    rig.write(&rig.staging(&vol), "file", "kept").unwrap();
    let target = rig.target(&vol, "reader");
    for _ in 0..2 {
        rig.publish_as(&vol, "reader", true).unwrap();
    }
    assert!(is_read_only(&rig, &target));
    assert!(rig.write(&target, "file", "x").is_err());
    assert_eq!(rig.read(&target, "file").unwrap(), "kept");
    rig.publish(&vol, "writer").unwrap();
    rig.write(&rig.target(&vol, "writer"), "file", "new").unwrap();
    assert_eq!(rig.read(&target, "file").unwrap(), "new");
    for alloc in ["reader", "writer"] {
        rig.unpublish(&vol, alloc).unwrap();
    }
    rig.unstage(&vol).unwrap();
    for only_read in [vol.mode(Mode::SINGLE_NODE_READER_ONLY), vol.flags(&["ro"])] {
        for _ in 0..2 {
            rig.stage(&only_read).unwrap();
            rig.publish(&only_read, "alloc").unwrap();
        }
        for path in [rig.staging(&vol), rig.target(&vol, "alloc")] {
            assert!(is_read_only(&rig, &path));
            assert!(rig.write(&path, "file", "x").is_err());
        }
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_read_only_target_is_read_only_in_the_hosts_namespace_too() {
    // As with a plugin in a container: its mount namespace is another than the host's, to which its mounts are copied.
    // Tasks get the copy.
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    let home = rig.staging(&vol).ancestors().nth(3).unwrap().to_owned();
    rig.run("mount", &["--bind", &home.to_string_lossy(), &home.to_string_lossy()]);
    rig.run("mount", &["--make-shared", &home.to_string_lossy()]);
    let mut holder = rig
        .machine()
        .droplet
        .command(Path::new("unshare"))
        .args(["--mount", "--propagation", "unchanged", "sh", "-c", "echo up && exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let host = |path: &Path| {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", holder.id())).unwrap_or_default();
        table.lines().rev().find(|line| line.split(' ').nth(4) == path.to_str()).map(str::to_owned)
    };
    wait_for(std::time::Duration::from_secs(10), || host(&home).is_some().then_some(())).unwrap();
    rig.stage(&vol).unwrap();
    rig.publish_as(&vol, "reader", true).unwrap();
    rig.publish(&vol.flags(&["noexec"]), "noexec").unwrap();
    let seen = host(&rig.target(&vol, "reader")).unwrap();
    assert!(seen.contains(" ro,"), "{seen}");
    let seen = host(&rig.target(&vol, "noexec")).unwrap();
    assert!(seen.contains("noexec"), "{seen}");
    for alloc in ["reader", "noexec"] {
        rig.unpublish(&vol, alloc).unwrap();
    }
    rig.unstage(&vol).unwrap();
    let left = fs::read_to_string(format!("/proc/{}/mountinfo", holder.id())).unwrap();
    assert!(!left.contains("/vol/"), "{left}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    rig.run("umount", &[&home.to_string_lossy()]);
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_one_writer_has_one_target_and_the_other_modes_have_several() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    for mode in [Mode::SINGLE_NODE_WRITER, Mode::SINGLE_NODE_MULTI_WRITER, Mode::SINGLE_NODE_READER_ONLY] {
        let vol = vol.mode(mode);
        rig.stage(&vol).unwrap();
        for alloc in ["one", "two"] {
            rig.publish(&vol, alloc).unwrap();
        }
        let third = rig.publish_as(&vol.mode(Mode::SINGLE_NODE_SINGLE_WRITER), "three", true);
        refused(third, PRECONDITION, &["one", "no second"]);
        for alloc in ["one", "two"] {
            rig.unpublish(&vol, alloc).unwrap();
        }
        rig.unstage(&vol).unwrap();
    }
    let single = vol.mode(Mode::SINGLE_NODE_SINGLE_WRITER);
    rig.stage(&single).unwrap();
    for _ in 0..2 {
        rig.publish(&single, "one").unwrap();
        refused(rig.publish(&single, "two"), PRECONDITION, &["one"]);
    }
    assert!(!rig.target(&vol, "two").exists());
    rig.unpublish(&single, "one").unwrap();
    rig.publish(&single, "two").unwrap();
    rig.unpublish(&single, "two").unwrap();
    rig.unstage(&single).unwrap();
    // A call was killed between the two binds that make a mount with flags of its own: what it has left is nobody's place.
    let target = rig.target(&vol, "one");
    for (path, is_target) in [(&rig.staging(&vol), false), (&target, true)] {
        let aside = path.with_file_name(format!(".{}.do-csi", path.file_name().unwrap().to_string_lossy()));
        rig.stage(&single).unwrap();
        fs::create_dir_all(&aside).unwrap();
        rig.run("mount", &["--bind", &rig.staging(&vol).to_string_lossy(), &aside.to_string_lossy()]);
        if !is_target {
            rig.unstage(&single).unwrap();
        }
        rig.stage(&single).unwrap();
        rig.publish(&single, "one").unwrap();
        assert_eq!((count_at(&rig, &aside), aside.exists()), (0, false));
        rig.unpublish(&single, "one").unwrap();
        rig.unstage(&single).unwrap();
    }
    let raw = single.block();
    let raw = raw.mode(Mode::SINGLE_NODE_SINGLE_WRITER);
    rig.publish(&raw, "one").unwrap();
    refused(rig.publish(&raw, "two"), PRECONDITION, &["one"]);
    rig.unpublish(&raw, "one").unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_whose_disk_was_pulled_is_cleared_and_redone_and_nothing_synced_is_lost() {
    for fs in ["xfs", "ext4", "btrfs"] {
        let sysfs = Sysfs::new();
        let flag = sysfs.flag();
        let rig = NodeHarness::start_with(&[&flag]);
        let vol = rig.volume("vol", "").fs(fs);
        let first = rig.node(&vol);
        sysfs.show(&first);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        rig.write(&rig.target(&vol, "alloc"), "file", "kept").unwrap();
        // The cloud takes the disk away under the mounts, and gives it back as another device.
        rig.detach(&vol);
        sysfs.hide(&first);
        // As long as only one place says that the disk is gone, the mounts stay, and no call says that all is well.
        let mounts = mounts_of(&rig);
        refused(rig.client().stats(&vol.csi.id, &rig.target(&vol, "alloc")), PRECONDITION, &["cannot tell"]);
        refused(rig.publish(&vol, "alloc"), PRECONDITION, &["cannot tell"]);
        assert_eq!(mounts_of(&rig), mounts, "{fs}");
        rig.hide_node(&first);
        let dead = rig.client().stats(&vol.csi.id, &rig.target(&vol, "alloc")).unwrap();
        assert!(
            dead.volume_condition.abnormal && dead.volume_condition.message.contains("gone") && dead.usage.is_empty()
        );
        rig.attach(&vol.csi.id, &vol.name);
        assert_ne!(rig.node(&vol), first);
        rig.show_node(&rig.node(&vol));
        sysfs.show(&rig.node(&vol));
        // Nomad does not stage again while anything is mounted there, so publish alone has to put it right.
        rig.publish(&vol, "alloc").unwrap();
        let second = rig.node(&vol).to_string_lossy().into_owned();
        for path in [rig.staging(&vol), rig.target(&vol, "alloc")] {
            assert!(rig.mount_at(&path).unwrap().contains(&format!(" {second} ")), "{fs}");
            assert_eq!(count_at(&rig, &path), 1, "{fs}");
            assert_eq!(rig.read(&path, "file").unwrap(), "kept", "{fs}");
        }
        rig.write(&rig.target(&vol, "alloc"), "file", "more").unwrap();
        // Pulled again, and everything is let go of in the usual order.
        let node = rig.node(&vol);
        rig.detach(&vol);
        sysfs.hide(&node);
        rig.hide_node(&node);
        for _ in 0..2 {
            rig.unpublish(&vol, "alloc").unwrap();
            rig.unstage(&vol).unwrap();
        }
        assert!(rig.machine().droplet.mounts().iter().all(|line| !line.contains("/vol/")), "{fs}");
        rig.attach(&vol.csi.id, &vol.name);
        rig.show_node(&rig.node(&vol));
        sysfs.show(&rig.node(&vol));
        rig.stage(&vol).unwrap();
        assert_eq!(rig.read(&rig.staging(&vol), "file").unwrap(), "more", "{fs}");
        rig.unstage(&vol).unwrap();
        sysfs.hide(&rig.node(&vol));
        rig.close();
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_file_system_that_was_shut_down_is_mounted_anew_when_nobody_uses_it_any_more() {
    let rig = NodeHarness::start();
    for fs in ["xfs", "ext4"] {
        let vol = rig.volume(&format!("vol-{fs}"), fs);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        rig.publish(&vol, "other").unwrap();
        rig.write(&rig.target(&vol, "alloc"), "file", "kept").unwrap();
        rig.shut_down(&rig.staging(&vol));
        let stats = rig.client().stats(&vol.csi.id, &rig.staging(&vol)).unwrap();
        assert!(stats.volume_condition.abnormal && stats.volume_condition.message.contains("shut down"), "{stats:?}");
        // While another task has it, the kernel gives out the dead file system again; that must not pass for success.
        refused(rig.stage(&vol), PRECONDITION, &["shut down", "per-alloc"]);
        refused(rig.publish(&vol, "third"), PRECONDITION, &[]);
        assert_eq!(count_at(&rig, &rig.staging(&vol)), 0, "{fs}");
        for alloc in ["alloc", "other"] {
            rig.unpublish(&vol, alloc).unwrap();
        }
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        assert_eq!(rig.read(&rig.target(&vol, "alloc"), "file").unwrap(), "kept", "{fs}");
        // The last one that uses it needs nobody's help.
        rig.shut_down(&rig.staging(&vol));
        rig.publish(&vol, "alloc").unwrap();
        assert_eq!(rig.read(&rig.target(&vol, "alloc"), "file").unwrap(), "kept", "{fs}");
        rig.shut_down(&rig.staging(&vol));
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
        rig.stage(&vol).unwrap();
        assert_eq!(rig.read(&rig.staging(&vol), "file").unwrap(), "kept", "{fs}");
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_dead_file_system_that_only_an_open_file_holds_is_refused() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    rig.write(&rig.staging(&vol), "file", "kept").unwrap();
    let open = fs::File::open(rig.file(&rig.staging(&vol), "file")).unwrap();
    rig.shut_down(&rig.staging(&vol));
    rig.unstage(&vol).unwrap();
    // Nothing in the mount table tells of it; only that the disk is not free, and that the file is in a mount of no table.
    let user = format!("process {} ", std::process::id());
    refused(rig.stage(&vol), PRECONDITION, &[&user, "open in a mount that was taken away lazily"]);
    assert_eq!(count_at(&rig, &rig.staging(&vol)), 0);
    drop(open);
    rig.stage(&vol).unwrap();
    assert_eq!(rig.read(&rig.staging(&vol), "file").unwrap(), "kept");
    rig.unstage(&vol).unwrap();
    rig.close();
}

/// Makes the kernel find an error in an ext4, which it then makes read-only.
fn break_ext4(rig: &NodeHarness, vol: &Vol) {
    let staging = rig.staging(vol);
    rig.run("mount", &["-o", "remount,errors=remount-ro", &staging.to_string_lossy()]);
    let name = rig.node(vol).file_name().unwrap().to_string_lossy().into_owned();
    fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").unwrap();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_file_system_that_errors_made_read_only_is_told_and_not_passed_off_as_right() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "ext4");
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    rig.publish_as(&vol, "reader", true).unwrap();
    rig.write(&rig.target(&vol, "alloc"), "file", "kept").unwrap();
    for alloc in ["alloc", "reader"] {
        let stats = rig.client().stats(&vol.csi.id, &rig.target(&vol, alloc)).unwrap();
        assert!(!stats.volume_condition.abnormal, "{stats:?}");
    }
    break_ext4(&rig, &vol);
    for alloc in ["alloc", "reader"] {
        let stats = rig.client().stats(&vol.csi.id, &rig.target(&vol, alloc)).unwrap();
        assert!(stats.volume_condition.abnormal && stats.volume_condition.message.contains("read-only"), "{stats:?}");
        assert_eq!(stats.usage.len(), 2);
    }
    refused(rig.stage(&vol), PRECONDITION, &["seen errors"]);
    refused(rig.publish(&vol, "alloc"), PRECONDITION, &["seen errors"]);
    refused(rig.publish(&vol, "new"), PRECONDITION, &["seen errors"]);
    refused(rig.stage_at(&vol, &readers_staging(&rig, &vol)), PRECONDITION, &["seen errors"]);
    for alloc in ["alloc", "reader"] {
        rig.unpublish(&vol, alloc).unwrap();
    }
    rig.unstage(&vol).unwrap();
    // With nobody using it, it is checked and put right.
    rig.stage(&vol).unwrap();
    assert!(rig.plugin().log().contains("errors"), "no check was made");
    rig.write(&rig.staging(&vol), "file", "more").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_raw_disk_is_shown_as_often_as_asked_and_as_writable_as_asked() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").block();
    let target =
        |alloc: &str| rig.file(&rig.target(&vol, alloc), "").to_string_lossy().trim_end_matches('/').to_owned();
    let write = |alloc: &str| {
        let file = fs::OpenOptions::new().read(true).write(true).open(target(alloc))?;
        file.write_all_at(b"raw", 4096)?;
        file.sync_all()
    };
    for _ in 0..2 {
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "one").unwrap();
        rig.publish(&vol, "two").unwrap();
        assert_eq!(count_at(&rig, &rig.target(&vol, "one")), 1);
    }
    write("one").unwrap();
    let mut bytes = [0; 3];
    fs::File::open(target("two")).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(&bytes, b"raw");
    let stats = rig.client().stats(&vol.csi.id, &rig.target(&vol, "one")).unwrap();
    assert_eq!((stats.usage.len(), stats.usage[0].total), (1, 1 << 30));
    // The disk cannot be read-only for one task and writable for another.
    refused(rig.publish_as(&vol, "three", true), PRECONDITION, &["used otherwise", "vol"]);
    refused(rig.publish_as(&vol, "one", true), EXISTS, &["takes writes", "vol"]);
    write("one").unwrap();
    for alloc in ["one", "two"] {
        rig.unpublish(&vol, alloc).unwrap();
        rig.unpublish(&vol, alloc).unwrap();
    }
    for alloc in ["one", "two", "one"] {
        rig.publish_as(&vol, alloc, true).unwrap();
        assert_eq!(write(alloc).unwrap_err().raw_os_error(), Some(nix::libc::EPERM));
    }
    refused(rig.publish(&vol, "three"), PRECONDITION, &["used otherwise"]);
    rig.unpublish(&vol, "one").unwrap();
    assert!(write("two").is_err());
    rig.unpublish(&vol, "two").unwrap();
    // Nobody uses it any more, so it takes writes again, from a person or from the next task.
    rig.publish(&vol, "one").unwrap();
    write("one").unwrap();
    rig.unpublish(&vol, "one").unwrap();
    rig.publish_as(&vol, "one", true).unwrap();
    rig.unpublish(&vol, "one").unwrap();
    let flag = rig.run("blockdev", &["--getro", &rig.node(&vol).to_string_lossy()]);
    assert_eq!(flag.trim(), "0");
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_repeat_is_as_strict_as_the_first_call() {
    let rig = NodeHarness::start();
    let plain = rig.volume("raw", "");
    let raw = plain.block();
    let is_protected = || rig.run("blockdev", &["--getro", &rig.node(&raw).to_string_lossy()]).trim() == "1";
    // The flag of a raw disk stays as the one who uses it has asked for.
    for (first, words) in [(false, "takes writes"), (true, "refuses writes")] {
        rig.publish_as(&raw, "one", first).unwrap();
        for _ in 0..2 {
            refused(rig.publish_as(&raw, "one", !first), EXISTS, &[words, "/raw", "unpublish"]);
            refused(rig.publish_as(&raw, "two", !first), PRECONDITION, &["used otherwise"]);
            assert_eq!(is_protected(), first);
            rig.publish_as(&raw, "one", first).unwrap();
        }
        assert!(!rig.target(&raw, "two").exists());
        rig.unpublish(&raw, "one").unwrap();
    }
    // A raw disk is no encrypted volume whose key is waited for.
    rig.publish(&raw, "one").unwrap();
    refused(rig.stage(&plain.encrypted("a key").keyless()), PRECONDITION, &["a raw disk at"]);
    rig.unpublish(&raw, "one").unwrap();
    // What is staged or shown with a file system is not there raw, nor encrypted.
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    let mounts = mounts_of(&rig);
    refused(rig.publish(&vol.block(), "alloc"), EXISTS, &["its file system (xfs)", "raw disk"]);
    refused(rig.stage(&vol.block()), EXISTS, &["its file system (xfs)", "raw disk"]);
    refused(rig.stage_at(&vol.block(), &readers_staging(&rig, &vol)), PRECONDITION, &["a file system at"]);
    for encrypted in [vol.encrypted("a key"), vol.encrypted("a key").keyless()] {
        refused(rig.stage(&encrypted), EXISTS, &["in clear"]);
        refused(rig.publish(&encrypted, "alloc"), EXISTS, &["in clear"]);
    }
    // Nor does a place that was one of several become the only one.
    let single = vol.mode(Mode::SINGLE_NODE_SINGLE_WRITER);
    rig.publish(&single, "alloc").unwrap();
    rig.publish(&vol, "second").unwrap();
    refused(rig.publish(&single, "alloc"), PRECONDITION, &["second"]);
    rig.unpublish(&vol, "second").unwrap();
    assert_eq!(mounts_of(&rig), mounts);
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_refused_publish_leaves_nothing_behind() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").block();
    let is_protected = || rig.run("blockdev", &["--getro", &rig.node(&vol).to_string_lossy()]).trim() == "1";
    let full = rig.target(&vol, "full");
    fs::create_dir_all(full.parent().unwrap()).unwrap();
    fs::write(&full, "mine").unwrap();
    let mounts = mounts_of(&rig);
    refused(rig.publish_as(&vol, "full", true), PRECONDITION, &["not an empty file"]);
    assert!(!is_protected());
    // A node that is in no devtmpfs would not be known again, and so could never be taken down.
    let node = rig.node(&vol).to_string_lossy().into_owned();
    let hide = format!("cp -a {node} /mnt && mount -t tmpfs dev /dev && cp -a /mnt/{} /dev && rm /mnt/{0}", &node[5..]);
    rig.run("sh", &["-c", &hide]);
    refused(rig.publish_as(&vol, "raw", true), PRECONDITION, &["volume vol", "devtmpfs"]);
    rig.run("umount", &["/dev"]);
    assert!(!is_protected() && !rig.target(&vol, "raw").exists());
    assert_eq!(mounts_of(&rig), mounts);
    // A disk that a person has made read-only is made writable for who asks for that, and the log tells.
    rig.run("blockdev", &["--setro", &node]);
    rig.publish(&vol, "raw").unwrap();
    assert!(!is_protected() && rig.plugin().log().contains("refuses writes, which ends"));
    rig.unpublish(&vol, "raw").unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_that_never_answers_holds_nobody_up() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    // A FUSE file system whose server has never begun: whoever examines it waits for ever.
    let hung = rig.target(&vol, "hung");
    fs::create_dir_all(&hung).unwrap();
    let serve =
        "exec 3<>/dev/fuse; mount -i -n -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hung \"$0\"; exec cat";
    let mut server = rig.machine().droplet.command(Path::new("sh"));
    let mut server = server.args(["-c", serve]).arg(&hung).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    wait_for(std::time::Duration::from_secs(10), || rig.mount_at(&hung)).unwrap();
    let started = std::time::Instant::now();
    refused(rig.publish(&vol, "hung"), PRECONDITION, &["hung (fuse)"]);
    refused(rig.unpublish(&vol, "hung"), PRECONDITION, &["fuse"]);
    refused(rig.client().stage(&vol.csi, &hung), PRECONDITION, &["hung (fuse)"]);
    refused(rig.client().stats(&vol.csi.id, &hung), RpcStatusCode::NOT_FOUND, &["hung"]);
    assert!(started.elapsed().as_secs() < 10);
    drop(server.stdin.take());
    server.wait().unwrap();
    rig.run("umount", &["-l", &hung.to_string_lossy()]);
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_target_with_the_longest_name_is_used_and_taken_away() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    let directory = rig.target(&vol, "alloc").parent().unwrap().to_owned();
    fs::create_dir_all(&directory).unwrap();
    for length in [247, 248, 255] {
        let target = directory.join("t".repeat(length));
        for readonly in [true, false] {
            rig.client().publish(&vol.csi, &rig.staging(&vol), &target, readonly).unwrap();
            assert_eq!(is_read_only(&rig, &target), readonly);
            rig.client().unpublish(&vol.csi.id, &target).unwrap();
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        }
    }
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_is_not_used_raw_and_with_a_file_system_at_once() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    refused(rig.publish(&vol.block(), "raw"), PRECONDITION, &["a file system at"]);
    refused(rig.publish_as(&vol.block(), "raw", true), PRECONDITION, &["a file system at"]);
    rig.unstage(&vol).unwrap();
    rig.publish(&vol.block(), "raw").unwrap();
    refused(rig.stage(&vol), PRECONDITION, &["a raw disk at"]);
    rig.unpublish(&vol, "raw").unwrap();
    rig.stage(&vol).unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_the_beginning_of_a_file_system_is_not_given_out_as_a_raw_disk() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").fs("ext4");
    rig.stage(&vol).unwrap();
    rig.unstage(&vol).unwrap();
    // As mke2fs leaves it when it is killed just before its last write.
    rig.run("dd", &["if=/dev/zero", &format!("of={}", rig.node(&vol).display()), "bs=4096", "count=1", "conv=fsync"]);
    let before = rig.bytes(&vol);
    refused(rig.stage(&vol.block()), PRECONDITION, &["the beginning of ext4", "completes it"]);
    refused(rig.publish(&vol.block(), "raw"), PRECONDITION, &["the beginning of ext4", "completes it"]);
    assert!(before.are_still_there());
    rig.stage(&vol).unwrap();
    rig.unstage(&vol).unwrap();
    rig.stage(&vol.block()).unwrap();
    rig.publish(&vol.block(), "raw").unwrap();
    rig.unpublish(&vol, "raw").unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_capacity_and_condition_are_told_for_staged_and_published_volumes() {
    use do_csi_plugin::proto::csi::node_service_capability::rpc::Type;
    use do_csi_plugin::proto::csi::{NodeGetCapabilitiesRequest, node_service_capability};

    let rig = NodeHarness::start();
    let reply = rig.client().node.node_get_capabilities(&NodeGetCapabilitiesRequest::default()).unwrap();
    let has = |want: Type| {
        let is = |rpc: &node_service_capability::RPC| rpc.type_.enum_value() == Ok(want);
        reply
            .capabilities
            .iter()
            .any(|one| matches!(&one.type_, Some(node_service_capability::Type::Rpc(rpc)) if is(rpc)))
    };
    for want in
        [Type::STAGE_UNSTAGE_VOLUME, Type::GET_VOLUME_STATS, Type::VOLUME_CONDITION, Type::SINGLE_NODE_MULTI_WRITER]
    {
        assert!(has(want), "{want:?}");
    }
    let vol = rig.volume("vol", "xfs");
    refused(rig.client().stats(&vol.csi.id, &rig.staging(&vol)), RpcStatusCode::NOT_FOUND, &["vol"]);
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    for path in [rig.staging(&vol), rig.target(&vol, "alloc")] {
        let stats = rig.client().stats(&vol.csi.id, &path).unwrap();
        assert!(!stats.volume_condition.abnormal && stats.usage.len() == 2);
        assert!(stats.usage.iter().all(|usage| usage.total >= usage.used && usage.available > 0), "{stats:?}");
    }
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_pulled_while_its_unmount_is_waited_for_ends_the_wait() {
    let sysfs = Sysfs::new();
    let flag = sysfs.flag();
    let rig = NodeHarness::start_with(&[&flag]);
    let vol = rig.volume("vol", "xfs");
    let node = rig.node(&vol);
    sysfs.show(&node);
    rig.stage(&vol).unwrap();
    rig.write(&rig.staging(&vol), "file", "kept").unwrap();
    let user = fs::File::open(rig.file(&rig.staging(&vol), "file")).unwrap();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| rig.unstage(&vol));
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!call.is_finished());
        sysfs.hide(&node);
        rig.hide_node(&node);
        call.join().unwrap().unwrap();
    });
    assert_eq!(count_at(&rig, &rig.staging(&vol)), 0);
    drop(user);
    rig.close();
}
