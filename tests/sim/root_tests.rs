//! The loop back end with real devices, file systems and a killed process. Needs root.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use tempfile::TempDir;

use super::tests::wait_for;
use super::*;

const DROPLET: u64 = 3_164_444;
const GIB: u64 = 1 << 30;

fn started(dir: &Path) -> Sim {
    let backing = Backing::Loop { dir: dir.to_owned() };
    Sim::start(SimConfig { backing, ..SimConfig::default() }).expect("the simulator starts")
}

fn scratch() -> TempDir {
    TempDir::new().expect("a scratch directory")
}

fn formatted(sim: &Sim, name: &str) -> String {
    sim.add_volume(&NewVolume::new(name, 1, "fra1").formatted("ext4")).expect("a good volume")
}

/// Attaches and waits for the device.
fn device_of(sim: &Sim, volume: &str) -> PathBuf {
    sim.attach(volume, DROPLET).expect("the attach is accepted");
    let name = sim.volume(volume).expect("it exists").name;
    let link = sim.device_dir(DROPLET).join(format!("scsi-0DO_Volume_{name}"));
    wait_for(|| fs::canonicalize(&link).ok())
}

fn detach(sim: &Sim, volume: &str) {
    sim.detach(volume, DROPLET).expect("the detach is accepted");
    wait_for(|| sim.attached_to(volume).is_none().then_some(()));
    sim.settle().expect("the device work succeeds");
}

fn size_of(device: &Path) -> u64 {
    File::open(device).and_then(|mut file| file.seek(SeekFrom::End(0))).expect("it opens")
}

fn loops_below(dir: &Path) -> Vec<String> {
    let listed = Command::new("losetup").args(["-l", "-n", "-O", "NAME,BACK-FILE"]).output();
    String::from_utf8_lossy(&listed.expect("losetup runs").stdout)
        .lines()
        .filter(|line| line.contains(&dir.display().to_string()))
        .map(str::to_owned)
        .collect()
}

/// A mounted file system that is unmounted when the test is over, however it ends.
struct Mounted(TempDir);

impl Mounted {
    fn new(device: &Path) -> Mounted {
        let at = scratch();
        mount(Some(device), at.path(), Some("ext4"), MsFlags::empty(), None::<&str>)
            .unwrap_or_else(|error| panic!("mount {}: {error}", device.display()));
        Mounted(at)
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).expect("the file system takes a file");
    }

    fn read(&self) -> String {
        fs::read_to_string(self.file()).expect("the file is there")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount(self.0.path()).expect("nobody else uses the mount point");
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_snapshot_restores_the_bytes_of_its_time() {
    let dir = scratch();
    let sim = started(dir.path());
    let volume = formatted(&sim, "original");
    let device = device_of(&sim, &volume);
    Mounted::new(&device).write("before");
    let snapshot = sim.create_snapshot(&volume, "snap").expect("the snapshot is accepted");
    Mounted::new(&device).write("after");

    let restored = sim
        .add_volume(&NewVolume { snapshot_id: Some(snapshot), ..NewVolume::new("copy", 5, "fra1") })
        .expect("the restore is accepted");
    assert_eq!(sim.volume("copy").map(|volume| volume.size_gigabytes), Some(1));
    let copy = device_of(&sim, &restored);
    assert_eq!(Mounted::new(&copy).read(), "before");
    assert_eq!(Mounted::new(&device).read(), "after");
    sim.close().expect("nobody uses the devices");
    assert!(loops_below(dir.path()).is_empty());
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_resize_reaches_the_attached_device_and_detach_removes_it() {
    let dir = scratch();
    let sim = started(dir.path());
    let volume = sim.add_volume(&NewVolume::new("growing", 1, "fra1")).expect("a good volume");
    let device = device_of(&sim, &volume);
    assert_eq!(size_of(&device), GIB);
    sim.resize(&volume, 3).expect("it grows");
    wait_for(|| (size_of(&device) == 3 * GIB).then_some(()));
    detach(&sim, &volume);
    assert!(fs::read_dir(sim.device_dir(DROPLET)).expect("it exists").next().is_none());
    wait_for(|| loops_below(dir.path()).is_empty().then_some(()));
    sim.close().expect("nobody uses the devices");
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_writes_after_a_detach_under_a_mount_reach_nothing() {
    let dir = scratch();
    let sim = started(dir.path());
    let volume = formatted(&sim, "torn");
    let device = device_of(&sim, &volume);
    Mounted::new(&device).write("kept");
    let orphan = Mounted::new(&device);
    detach(&sim, &volume);
    orphan.write("lost");
    drop(orphan);
    assert_eq!(Mounted::new(&device_of(&sim, &volume)).read(), "kept");
    sim.close().expect("nobody uses the devices");
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_device_comes_late_or_half_as_scripted() {
    let dir = scratch();
    let sim = started(dir.path());
    let hour = Duration::from_secs(3600);
    let late = sim.add_volume(&NewVolume::new("late", 1, "fra1")).expect("a good volume");
    sim.faults().add_action(ActionFault::device_late(hour));
    sim.attach(&late, DROPLET).expect("the attach is accepted");
    wait_for(|| sim.attached_to("late"));
    sim.settle().expect("the device work succeeds");
    let link = sim.device_dir(DROPLET).join("scsi-0DO_Volume_late");
    assert!(!link.exists());
    sim.advance(hour);
    sim.settle().expect("the device work succeeds");
    assert_eq!(size_of(&link), GIB);

    let half = sim.add_volume(&NewVolume::new("half", 1, "fra1")).expect("a good volume");
    sim.faults().add_action(ActionFault::half_attached(hour));
    assert_eq!(size_of(&device_of(&sim, &half)), 0);
    sim.advance(hour);
    sim.settle().expect("the device work succeeds");
    assert_eq!(size_of(&sim.device_dir(DROPLET).join("scsi-0DO_Volume_half")), GIB);
    sim.close().expect("nobody uses the devices");
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_stale_link_outlives_its_device_until_the_next_attach() {
    let dir = scratch();
    let sim = started(dir.path());
    let volume = sim.add_volume(&NewVolume::new("stale", 1, "fra1")).expect("a good volume");
    device_of(&sim, &volume);
    sim.faults().add_action(ActionFault::stale_link().of(ActionKind::Detach));
    detach(&sim, &volume);
    let link = sim.device_dir(DROPLET).join("scsi-0DO_Volume_stale");
    assert!(link.is_symlink());
    wait_for(|| loops_below(dir.path()).is_empty().then_some(()));
    sim.attach(&volume, DROPLET).expect("the attach is accepted");
    wait_for(|| (size_of(&link) == GIB).then_some(()));
    sim.close().expect("nobody uses the devices");
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_closing_tells_of_a_device_that_is_still_mounted() {
    let dir = scratch();
    let sim = started(dir.path());
    let volume = formatted(&sim, "held");
    let _mounted = Mounted::new(&device_of(&sim, &volume));
    let told = sim.close().expect_err("the device is mounted").to_string();
    assert!(told.contains("still in use"), "{told}");
}

/// Set for the copy of this program that is going to be killed; its value is the directory to use.
const VICTIM: &str = "DO_SIM_VICTIM";

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_killed_simulator_leaves_no_loop_device() {
    if let Some(dir) = std::env::var_os(VICTIM) {
        let sim = started(Path::new(&dir));
        device_of(&sim, &formatted(&sim, "doomed"));
        fs::write(Path::new(&dir).join("ready"), "").expect("the directory is writable");
        loop {
            std::thread::park();
        }
    }
    let dir = scratch();
    let (_, module) = module_path!().split_once("::").expect("a module of a crate");
    let mut victim = Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", "--ignored"])
        .arg(format!("{module}::root_a_killed_simulator_leaves_no_loop_device"))
        .env(VICTIM, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("this program starts again");
    wait_for(|| dir.path().join("ready").exists().then_some(()));
    assert_eq!(loops_below(dir.path()).len(), 1);
    victim.kill().expect("it can be killed");
    victim.wait().expect("it is ours");
    wait_for(|| loops_below(dir.path()).is_empty().then_some(()));
}
