//! Many mounts, many volumes and many callers: one odd thing must not stop all the others.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Vol, refused};
use crate::root_faults::tracer::Tracer;
use crate::support::client::Volume;
use crate::support::crowd::make_mounts;
use crate::support::plugin::send;
use crate::support::wait_for;

/// A type of file system that is no UTF-8: the kernel lets a FUSE file system add any bytes to its own.
const ODD_TYPE: &str = r#""$(printf 'fuse.\377\376')""#;

/// Mounts a file system of an odd type, whose server is gone at once.
fn mount_odd(rig: &NodeHarness, at: &Path) {
    let options = "fd=3,rootmode=40000,user_id=0,group_id=0";
    let script = format!(
        "mkdir -p {at} && exec 3<>/dev/fuse && mount -i -t {ODD_TYPE} -o {options} odd {at}",
        at = at.display()
    );
    rig.run("sh", &["-c", &script]);
}

fn live(rig: &NodeHarness, vol: &Vol) {
    rig.stage(vol).unwrap();
    rig.publish(vol, "alloc").unwrap();
    rig.write(&rig.target(vol, "alloc"), "file", "x").unwrap();
    rig.client().stats(&vol.csi.id, &rig.target(vol, "alloc")).unwrap();
    rig.unpublish(vol, "alloc").unwrap();
    rig.unstage(vol).unwrap();
    assert_eq!(rig.mount_at(&rig.staging(vol)), None);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_of_an_odd_type_stops_no_call_and_is_not_overlooked() {
    let rig = NodeHarness::start();
    let vols = ["xfs", "ext4", "btrfs"].map(|fs| rig.volume(&format!("vol-{fs}"), "").fs(fs));
    let apart = rig.machine().home().join("odd");
    mount_odd(&rig, &apart);
    for vol in &vols {
        live(&rig, vol);
    }
    // In a volume's way it is as foreign as any other mount.
    let target = rig.target(&vols[0], "alloc");
    mount_odd(&rig, &target);
    rig.stage(&vols[0]).unwrap();
    refused(rig.publish(&vols[0], "alloc"), RpcStatusCode::FAILED_PRECONDITION, &["fuse."]);
    refused(rig.unpublish(&vols[0], "alloc"), RpcStatusCode::FAILED_PRECONDITION, &["fuse."]);
    for at in [&target, &apart] {
        rig.run("umount", &["-l", &at.to_string_lossy()]);
    }
    rig.publish(&vols[0], "alloc").unwrap();
    rig.unpublish(&vols[0], "alloc").unwrap();
    rig.unstage(&vols[0]).unwrap();
    rig.close();
}

/// Something on the droplet that mounts and unmounts all the time, until it is dropped.
struct Restless(Vec<Child>);

impl Restless {
    fn start(rig: &NodeHarness) -> Restless {
        let start = |number: u32| {
            let at = rig.machine().home().join(format!("restless-{number}"));
            fs::create_dir_all(&at).unwrap();
            let script = format!("while :; do mount --bind {at} {at}; umount {at}; done", at = at.display());
            let mut command = rig.machine().droplet.command(Path::new("sh"));
            command.args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap()
        };
        Restless((0..3).map(start).collect())
    }
}

impl Drop for Restless {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_five_thousand_mounts_of_which_some_come_and_go_all_the_time_stop_no_call() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "ext4");
    make_mounts(rig.machine(), 5000).unwrap();
    let restless = Restless::start(&rig);
    for _ in 0..5 {
        live(&rig, &vol);
    }
    drop(restless);
    rig.close();
}

/// A stand-in for e2fsck on the droplet, which does `first` for some disks and then what e2fsck does.
fn slow_check(rig: &NodeHarness, vols: &[Vol], first: &str) -> PathBuf {
    let [real, stand_in, pids] = ["e2fsck-real", "e2fsck", "pids"].map(|name| rig.machine().home().join(name));
    fs::copy("/usr/sbin/e2fsck", &real).unwrap();
    let nodes: String = vols.iter().map(|vol| format!(" {} ", rig.node(vol).display())).collect();
    let script = format!(
        "#!/bin/sh\ncase '{nodes}' in *\" $2 \"*) echo $$ >>{}; {first};; esac\nexec {} \"$@\"\n",
        pids.display(),
        real.display()
    );
    fs::write(&stand_in, script).unwrap();
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    rig.run("mount", &["--bind", &stand_in.to_string_lossy(), "/usr/sbin/e2fsck"]);
    pids
}

/// Volumes of which a power cut has left the file systems in need of a check.
fn dirty(rig: &NodeHarness, count: usize) -> Vec<Vol> {
    let make = |number| {
        let vol = rig.volume(&format!("vol-{number}"), "ext4");
        rig.run("debugfs", &["-w", "-R", "set_super_value state 2", &rig.node(&vol).to_string_lossy()]);
        vol
    };
    (0..count).map(make).collect()
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_after_a_power_cut_all_volumes_are_checked_however_long_they_wait_for_it() {
    let rig = NodeHarness::start();
    let vols = dirty(&rig, 15);
    // Three at a time, so that the last ones have waited for longer than any fixed time shorter than a call would allow.
    slow_check(&rig, &vols, "sleep 7");
    thread::scope(|scope| {
        let stage = |vol| {
            let rig = &rig;
            scope.spawn(move || rig.stage(vol))
        };
        let calls: Vec<_> = vols.iter().map(stage).collect();
        for call in calls {
            call.join().unwrap().unwrap();
        }
    });
    vols.iter().for_each(|vol| rig.unstage(vol).unwrap());
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_checks_that_hang_do_not_keep_other_volumes_from_theirs() {
    let rig = NodeHarness::start();
    let vols = dirty(&rig, 5);
    let (hung, others) = vols.split_at(3);
    let pids = slow_check(&rig, hung, "exec sleep 1000");
    let running = || fs::read_to_string(&pids).unwrap_or_default().lines().count();
    thread::scope(|scope| {
        let stage = |vol| {
            let rig = &rig;
            scope.spawn(move || rig.stage(vol))
        };
        let stuck: Vec<_> = hung.iter().map(stage).collect();
        wait_for(Duration::from_secs(20), || (running() == hung.len()).then_some(())).unwrap();
        let asked = Instant::now();
        let calls: Vec<_> = others.iter().map(stage).collect();
        for call in calls {
            call.join().unwrap().unwrap();
        }
        // A hung check has most of its call's time.
        assert!(asked.elapsed() < Duration::from_secs(40), "{:?}", asked.elapsed());
        assert!(stuck.iter().all(|call| !call.is_finished()));
        for pid in fs::read_to_string(&pids).unwrap().lines() {
            send(pid.parse().unwrap(), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        for call in stuck {
            call.join().unwrap().unwrap_err();
        }
    });
    others.iter().for_each(|vol| rig.unstage(vol).unwrap());
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_callers_that_wait_for_missing_disks_keep_nobody_from_letting_go_of_a_volume() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "ext4");
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    let (_, before) = rig.plugin().files_and_threads().unwrap();
    let wait = |number: usize| {
        let (name, client) = (format!("missing-{number}"), rig.client().clone());
        let mut missing = Volume::mounted(&name, "ext4");
        missing.publish_context = rig.context(&name, 1);
        let staging = rig.machine().staging(&name);
        thread::spawn(move || client.stage(&missing, &staging))
    };
    let waiting: Vec<_> = (0..36).map(wait).collect();
    let all_wait = || (rig.plugin().files_and_threads()?.1 >= before + 30).then_some(());
    wait_for(Duration::from_secs(20), all_wait).unwrap();
    let asked = Instant::now();
    rig.client().stats(&vol.csi.id, &rig.target(&vol, "alloc")).unwrap();
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert!(waiting.iter().all(|call| !call.is_finished()));
    // Their disks never come.
    rig.close();
    for call in waiting {
        call.join().unwrap().unwrap_err();
    }
}

/// How often each call reads the mount table, in the order in which they are made.
fn readings(rig: &NodeHarness, vol: &Vol) -> Vec<(&'static str, usize)> {
    let tracer = Tracer::new();
    let count = |name, call: &dyn Fn()| {
        let ((), events) = tracer.record(rig.plugin().pid(), call);
        let is_reading = |text: &str| text.contains(r#""/proc/self/mountinfo""#);
        (name, events.iter().filter(|event| event.name == "openat" && is_reading(&event.text)).count())
    };
    let (stage, publish) = (|| rig.stage(vol).unwrap(), || rig.publish(vol, "alloc").unwrap());
    let (unpublish, unstage) = (|| rig.unpublish(vol, "alloc").unwrap(), || rig.unstage(vol).unwrap());
    // The calls find their threads: strace follows none that is started later.
    for call in [&stage as &dyn Fn(), &publish, &unpublish, &unstage] {
        call();
    }
    vec![
        count("stage", &stage),
        count("stage again", &stage),
        count("publish", &publish),
        count("publish again", &publish),
        count("unpublish", &unpublish),
        count("unpublish again", &unpublish),
        count("unstage", &unstage),
        count("unstage again", &unstage),
    ]
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_call_reads_the_mount_table_as_often_as_it_decides_by_it_and_no_more() {
    let rig = NodeHarness::start();
    // Before and after; and a copy is looked at before it is shown to anybody. Nothing is mounted for a raw volume that is staged;
    // where it is published and unpublished, who else has it is read once more while no other plugin can change that.
    let fs = [2, 1, 3, 1, 2, 1, 2, 1];
    let raw = [1, 1, 4, 1, 3, 1, 1, 1];
    for (vol, most) in [
        (rig.volume("vol-xfs", "").fs("xfs"), fs),
        (rig.volume("vol-btrfs", "").fs("btrfs"), fs),
        (rig.volume("vol-raw", "").block(), raw),
    ] {
        let seen = readings(&rig, &vol);
        println!("{}: {seen:?}", vol.csi.id);
        let counts: Vec<usize> = seen.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, most, "{seen:?}");
    }
}
