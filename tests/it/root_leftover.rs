//! Mounts that nobody takes away, and what is in memory when the plugin ends: both are looked after without a call.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use do_csi_plugin::proto::csi::volume_capability::access_mode::Mode;
use tempfile::TempDir;

use crate::debug_server::{free_address, get};
use crate::harness::{NodeHarness, Sysfs, Vol};
use crate::root_answers::Fault;
use crate::support::client::option;
use crate::support::wait_for;

const LIMIT: Duration = Duration::from_secs(60);

/// A volume in use on the droplet, with a file that is on its disk.
fn used(rig: &NodeHarness, sysfs: &Sysfs, name: &str) -> Vol {
    let vol = rig.volume(name, "xfs");
    sysfs.show_scsi(&rig.node(&vol), name, "running\n");
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "task").unwrap();
    rig.write(&rig.target(&vol, "task"), "file", name).unwrap();
    vol
}

fn await_log(rig: &NodeHarness, words: &[&str]) {
    let has_all = |line: &str| words.iter().all(|word| line.contains(word));
    let said = wait_for(LIMIT, || rig.plugin().log().lines().any(has_all).then_some(()));
    assert!(said.is_some(), "{words:?} is not said: {}", rig.plugin().log());
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_mounts_whose_disk_has_gone_are_taken_away_where_they_are_certainly_the_plugins_own() {
    let sysfs = Sysfs::new();
    let mut rig = NodeHarness::start_with(&[&sysfs.flag()]);
    let (gone, alive) = (used(&rig, &sysfs, "gone"), used(&rig, &sysfs, "alive"));
    let node = rig.node(&gone);
    sysfs.hide(&node);
    rig.hide_node(&node);
    rig.restart();
    let paths = [rig.staging(&gone), rig.target(&gone, "task")];
    let is_clear = || paths.iter().all(|path| rig.mount_at(path).is_none()).then_some(());
    assert!(wait_for(LIMIT, is_clear).is_some(), "{}", rig.plugin().log());
    await_log(&rig, &["taking away a mount that was left behind", &paths[1].to_string_lossy()]);
    await_log(&rig, &["mounted here", "alive"]);
    assert_eq!(rig.read(&rig.target(&alive, "task"), "file").unwrap(), "alive");
    // What is alone with its disk gone may be another plugin's: it is named, and stays.
    let other = rig.machine().home().join("other/staging/x/rw-file-system-single-node-writer");
    fs::create_dir_all(&other).unwrap();
    let odd = rig.volume("odd", "xfs");
    let disk = rig.node(&odd);
    rig.run("mount", &[&disk.to_string_lossy(), &other.to_string_lossy()]);
    sysfs.hide(&disk);
    rig.hide_node(&disk);
    rig.restart();
    await_log(&rig, &["was left behind", "its disk is gone", &other.to_string_lossy()]);
    assert!(rig.mount_at(&other).is_some());
    rig.run("umount", &[&other.to_string_lossy()]);
    for disk in [node, disk] {
        rig.show_node(&disk);
    }
    rig.unpublish(&alive, "task").unwrap();
    rig.unstage(&alive).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_whose_allocation_has_gone_is_taken_away_unless_something_uses_it() {
    let allocations = TempDir::new().unwrap();
    for name in ["own", "kept"] {
        fs::create_dir(allocations.path().join(name)).unwrap();
    }
    let directory = format!("DO_CSI_NOMAD_ALLOCATIONS={}", allocations.path().display());
    let sysfs = Sysfs::new();
    let mut rig = NodeHarness::start_within(&["env", "NOMAD_ALLOC_ID=own", &directory]);
    let address = free_address();
    rig.restart_with(&[&sysfs.flag(), &format!("--debug-addr={address}")]);
    let publish = |name: &str, alloc: &str| {
        let vol = rig.volume(name, "xfs");
        sysfs.show_scsi(&rig.node(&vol), name, "running\n");
        rig.stage(&vol).unwrap();
        rig.publish(&vol, alloc).unwrap();
        (rig.target(&vol, alloc), vol)
    };
    let (gone, first) = publish("gone", "ended");
    let (kept, second) = publish("kept", "kept");
    let (busy, third) = publish("busy", "ended-too");
    rig.write(&busy, "file", "x").unwrap();
    let user = File::open(rig.file(&busy, "file")).unwrap();
    rig.restart();
    assert!(wait_for(LIMIT, || rig.mount_at(&gone).is_none().then_some(())).is_some(), "{}", rig.plugin().log());
    await_log(&rig, &["cannot be taken away", &busy.to_string_lossy(), "in use"]);
    assert!(rig.mount_at(&kept).is_some() && rig.mount_at(&busy).is_some(), "{}", rig.plugin().log());
    // Who looks sees it without the log.
    let metric = "do_csi_findings{reason=\"MountLeftBehind\",severity=\"warning\"} 1";
    let is_counted = || get(&address, "/metrics").1.contains(metric).then_some(());
    assert!(wait_for(LIMIT, is_counted).is_some(), "{}", get(&address, "/metrics").1);
    let page = get(&address, "/").1;
    assert!(page.contains("MountLeftBehind") && page.contains(&*busy.to_string_lossy()), "{page}");
    let health = rig.client().node.node_get_storage_health_opt(&Default::default(), option()).unwrap();
    let told: Vec<&str> = health.backend_health.iter().map(|entry| entry.reason.as_str()).collect();
    assert_eq!(told, ["MountLeftBehind"], "{health:?}");
    drop(user);
    for (vol, alloc) in [(&first, "ended"), (&second, "kept"), (&third, "ended-too")] {
        rig.unpublish(vol, alloc).unwrap();
        rig.unstage(vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_all_that_is_left_of_a_volume_is_taken_away_at_once_and_what_takes_long_is_not_called_silent() {
    let allocations = TempDir::new().unwrap();
    fs::create_dir(allocations.path().join("own")).unwrap();
    let directory = format!("DO_CSI_NOMAD_ALLOCATIONS={}", allocations.path().display());
    let mut rig = NodeHarness::start_within(&["env", "NOMAD_ALLOC_ID=own", &directory]);
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    let targets = ["one", "two", "three", "four"].map(|alloc| {
        rig.publish(&vol, alloc).unwrap();
        rig.target(&vol, alloc)
    });
    // Each is tried for 10 s, so both take longer than is waited for.
    let users = [0, 2].map(|busy| File::open(rig.file(&targets[busy], "")).unwrap());
    rig.restart();
    await_log(&rig, &["cannot be taken away", "has not ended yet", &targets[2].to_string_lossy()]);
    let is_clear = || [1, 3].iter().all(|free| rig.mount_at(&targets[*free]).is_none()).then_some(());
    assert!(wait_for(LIMIT, is_clear).is_some(), "{}", rig.plugin().log());
    assert!(rig.mount_at(&targets[0]).is_some() && rig.mount_at(&targets[2]).is_some());
    assert!(!rig.plugin().log().contains("does not answer"), "{}", rig.plugin().log());
    drop(users);
    for alloc in ["one", "three"] {
        rig.unpublish(&vol, alloc).unwrap();
    }
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_somebody_else_takes_away_meanwhile_is_not_said_to_be_taken_away() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "ext4");
    rig.stage(&vol).unwrap();
    await_log(&rig, &["mounted here", "vol"]);
    let target = rig.target(&vol, "killed");
    let place = target.with_file_name(format!(".{}.do-csi", target.file_name().unwrap().to_string_lossy()));
    let lock = PathBuf::from(format!("{}-lock", place.display()));
    let slow = Fault::begin(&rig, "flock:delay_enter=10000000", std::slice::from_ref(&lock));
    assert_eq!(begin_to_show(&rig, &vol, &rig.staging(&vol)), place);
    assert!(wait_for(LIMIT, || lock.exists().then_some(())).is_some(), "{}", rig.plugin().log());
    rig.run("umount", &[&place.to_string_lossy()]);
    assert!(wait_for(LIMIT, || (!lock.exists()).then_some(())).is_some(), "{}", rig.plugin().log());
    assert!(slow.stop().contains("(DELAYED)"));
    rig.unstage(&vol).unwrap();
    assert!(!place.exists() && !rig.plugin().log().contains("took away"), "{}", rig.plugin().log());
    rig.close();
}

/// What a call leaves that is killed while it prepares a mount of a volume for an allocation.
pub fn begin_to_show(rig: &NodeHarness, vol: &Vol, source: &Path) -> PathBuf {
    let target = rig.target(vol, "killed");
    let place = target.with_file_name(format!(".{}.do-csi", target.file_name().unwrap().to_string_lossy()));
    if source.is_dir() {
        fs::create_dir_all(&place).unwrap();
    } else {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        File::create(&place).unwrap();
    }
    rig.run("mount", &["--bind", &source.to_string_lossy(), &place.to_string_lossy()]);
    place
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_a_killed_call_has_left_is_nobodys_place_and_is_taken_away() {
    let mut rig = NodeHarness::start();
    let vol = rig.volume("vol", "ext4");
    let single = vol.mode(Mode::SINGLE_NODE_SINGLE_WRITER);
    let is_clear = |rig: &NodeHarness, place: &Path| rig.mount_at(place).is_none() && !place.exists();
    // By the calls for the volume, whatever path they name.
    rig.stage(&single).unwrap();
    let place = begin_to_show(&rig, &vol, &rig.staging(&vol));
    rig.publish(&single, "one").unwrap();
    assert!(is_clear(&rig, &place));
    let place = begin_to_show(&rig, &vol, &rig.staging(&vol));
    rig.unpublish(&single, "one").unwrap();
    assert!(is_clear(&rig, &place));
    let place = begin_to_show(&rig, &vol, &rig.staging(&vol));
    rig.unstage(&single).unwrap();
    assert!(is_clear(&rig, &place));
    let raw = single.block();
    for _ in 0..2 {
        let place = begin_to_show(&rig, &vol, &rig.node(&vol));
        rig.publish(&raw, "one").unwrap();
        assert!(is_clear(&rig, &place));
        let place = begin_to_show(&rig, &vol, &rig.node(&vol));
        rig.unpublish(&raw, "one").unwrap();
        assert!(is_clear(&rig, &place));
    }
    let place = begin_to_show(&rig, &vol, &rig.node(&vol));
    rig.stage(&single).unwrap();
    assert!(is_clear(&rig, &place));
    // And without any call. What another plugin prepares, which has the place locked, stays.
    rig.publish(&single, "one").unwrap();
    let place = begin_to_show(&rig, &vol, &rig.staging(&vol));
    let lock = File::create(format!("{}-lock", place.display())).unwrap();
    lock.lock().unwrap();
    rig.restart();
    await_log(&rig, &["mounted here", "vol"]);
    assert!(rig.mount_at(&place).is_some());
    drop(lock);
    rig.restart();
    await_log(&rig, &["took away what a call that was killed has left", &place.to_string_lossy()]);
    assert!(is_clear(&rig, &place));
    rig.write(&rig.target(&vol, "one"), "file", "kept").unwrap();
    rig.unpublish(&single, "one").unwrap();
    rig.unstage(&single).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_is_in_memory_is_on_the_disk_when_the_plugin_has_ended_and_when_it_has_started() {
    let mut rig = NodeHarness::start();
    let vol = rig.volume("blog", "ext4");
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "task").unwrap();
    let target = rig.target(&vol, "task");
    fs::write(rig.file(&target, "file"), "written before the end").unwrap();
    assert!(rig.stop().success());
    assert!(rig.is_on_disk(&vol, "written before the end"));
    fs::write(rig.file(&target, "file"), "written while no plugin ran").unwrap();
    rig.restart();
    assert!(wait_for(LIMIT, || rig.is_on_disk(&vol, "written while no plugin ran").then_some(())).is_some());
    rig.unpublish(&vol, "task").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

/// A file system whose disk does not answer, as no signal ends who waits for it: its disk is a file on a file system that is
/// frozen.
#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_does_not_answer_does_not_keep_the_program_from_ending() {
    let mut rig = NodeHarness::start();
    let staging = rig.machine().staging("hung");
    fs::create_dir_all(&staging).unwrap();
    let home = rig.machine().home().to_string_lossy().into_owned();
    let script = r#"
        set -e
        cd "$1"
        mkdir lower
        truncate -s 256M image && mkfs.ext4 -q image && mount -o loop image lower
        truncate -s 64M lower/disk && mkfs.ext4 -q lower/disk && mount -o loop lower/disk "$2"
        sync
        echo "not on the disk" >"$2/file"
        fsfreeze -f lower
    "#;
    rig.run("sh", &["-c", script, "sh", &home, &staging.to_string_lossy()]);
    let asked = Instant::now();
    let ended = rig.stop();
    let took = asked.elapsed();
    // The program that was given up holds the mount for a moment yet.
    let script = r#"
        fsfreeze -u "$1/lower"
        for try in $(seq 300); do umount "$2" && break; sleep 0.1; done
        umount "$1/lower"
    "#;
    rig.run("sh", &["-c", script, "sh", &home, &staging.to_string_lossy()]);
    assert!(ended.success(), "{ended}");
    assert!(took > Duration::from_secs(5), "the disk answered after {took:?}, so this shows nothing");
    assert!(took < Duration::from_secs(60), "{took:?}");
    let log = fs::read_to_string(Path::new(&home).join("plugin.log")).unwrap();
    assert!(log.contains("a disk does not answer"), "{log}");
    rig.restart();
    rig.close();
}
