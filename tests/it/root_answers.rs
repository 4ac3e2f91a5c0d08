//! System calls that fail or lie while the node side asks what is there: what could not be read is never taken for absent.
//!
//! Owns strace, which is attached to the plugin and answers in the kernel's place for some paths. A task has the volume open
//! all the time, so that taking its mount away in a hurry would be seen.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use grpcio::RpcStatusCode;
use nix::sys::signal::Signal;
use nix::sys::stat::{major, minor};
use tempfile::NamedTempFile;

use crate::harness::{NodeHarness, Vol, refused};
use crate::support::plugin::send;
use crate::support::wait_for;

/// A plugin whose system calls fail as told, until this is taken back.
pub struct Fault {
    strace: Child,
    log: NamedTempFile,
}

impl Fault {
    /// `inject` in strace's words, as `statx:error=ENOMEM`, for these paths.
    pub fn begin(rig: &NodeHarness, inject: &str, paths: &[PathBuf]) -> Fault {
        let (pid, log) = (rig.plugin().pid(), NamedTempFile::new().unwrap());
        let mut strace = Command::new("strace");
        strace.args(["-f", &format!("--attach={pid}"), &format!("--inject={inject}"), "--output"]).arg(log.path());
        for path in paths {
            strace.arg("--trace-path").arg(path);
        }
        let mut strace = strace.stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(strace.stderr.take().unwrap());
        let is_traced = |thread: fs::DirEntry| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        };
        let all_traced = || fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().all(is_traced).then_some(());
        wait_for(Duration::from_secs(20), all_traced).unwrap();
        thread::spawn(move || said.lines().for_each(drop));
        Fault { strace, log }
    }

    /// Ends it, and sees that it has happened.
    fn end(self) {
        let log = self.stop();
        assert!(log.contains("(INJECTED)"), "nothing was asked that could have failed: {log}");
    }

    /// Ends it; gives what strace has said.
    pub fn stop(mut self) -> String {
        send(self.strace.id(), Signal::SIGINT).unwrap();
        self.strace.wait().unwrap();
        fs::read_to_string(self.log.path()).unwrap()
    }
}

/// A volume that is staged and published, and a task that writes to it.
struct Used {
    vol: Vol,
    node: PathBuf,
    task: File,
}

impl Used {
    fn new(rig: &NodeHarness, name: &str, fs: &str) -> Used {
        let vol = rig.volume(name, "");
        let vol = if fs == "raw" { vol.block() } else { vol.fs(fs) };
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        let target = rig.target(&vol, "alloc");
        let path = rig.machine().droplet.path(&if fs == "raw" { target } else { target.join("file") });
        let task = File::options().write(true).read(true).create(fs != "raw").truncate(false).open(path).unwrap();
        Used { node: rig.node(&vol), vol, task }
    }

    /// The paths by which sysfs knows the disk.
    fn in_sysfs(&self) -> [PathBuf; 2] {
        let number = fs::metadata(&self.node).unwrap().rdev();
        let by_number = format!("/sys/dev/block/{}:{}", major(number), minor(number));
        [by_number.into(), Path::new("/sys/class/block").join(self.node.file_name().unwrap())]
    }

    /// Its mounts are where they were, and the task goes on.
    fn assert_in_use(&self, rig: &NodeHarness, what: &str) {
        let target = rig.target(&self.vol, "alloc");
        assert!(rig.mount_at(&target).is_some(), "{what}: the mount of {} was taken away", self.vol.name);
        self.task.write_all_at(b"still there", 0).unwrap();
        self.task.sync_all().unwrap();
    }

    /// Everything is let go of without a fault.
    fn end(self, rig: &NodeHarness) {
        drop(self.task);
        rig.unpublish(&self.vol, "alloc").unwrap();
        rig.unstage(&self.vol).unwrap();
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_of_which_sysfs_cannot_be_asked_is_not_gone() {
    let play = |errno: &str| {
        let rig = NodeHarness::start();
        let used = ["xfs", "ext4", "btrfs", "raw"].map(|fs| Used::new(&rig, &format!("vol-{fs}"), fs));
        let paths: Vec<PathBuf> = used.iter().flat_map(Used::in_sysfs).collect();
        let fault = Fault::begin(&rig, &format!("statx:error={errno}"), &paths);
        thread::scope(|scope| {
            for one in &used {
                let rig = &rig;
                scope.spawn(move || {
                    // The mount is in use, so it can only be refused, and that at the end of the time for it.
                    rig.unpublish(&one.vol, "alloc").unwrap_err();
                    one.assert_in_use(rig, errno);
                    // Whether it is there as asked cannot be told either, unless sysfs is not asked that way.
                    let _either = rig.publish(&one.vol, "alloc");
                    one.assert_in_use(rig, errno);
                });
            }
        });
        fault.end();
        used.into_iter().for_each(|one| one.end(&rig));
        rig.close();
    };
    thread::scope(|scope| {
        for errno in ["ENOMEM", "EACCES", "ENOENT"] {
            scope.spawn(move || play(errno));
        }
    });
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_that_answers_once_with_an_error_is_not_dead() {
    let rig = NodeHarness::start();
    for (fs, call) in [("xfs", "statx"), ("ext4", "openat")] {
        let used = Used::new(&rig, &format!("vol-{fs}"), fs);
        let target = rig.target(&used.vol, "alloc");
        let fault = Fault::begin(&rig, &format!("{call}:error=EIO:when=1"), &[target]);
        refused(rig.publish(&used.vol, "alloc"), RpcStatusCode::FAILED_PRECONDITION, &["cannot tell", "answered once"]);
        fault.end();
        used.assert_in_use(&rig, fs);
        rig.publish(&used.vol, "alloc").unwrap();
        used.end(&rig);
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_way_that_is_said_to_be_missing_while_its_folder_lists_it_is_not_missing() {
    let rig = NodeHarness::start();
    let used = Used::new(&rig, "vol", "xfs");
    let (target, staging) = (rig.target(&used.vol, "alloc"), rig.staging(&used.vol));
    drop(used.task);
    for path in [&target, &staging] {
        let fault = Fault::begin(&rig, "readlink:error=ENOENT", &[path.parent().unwrap().to_owned()]);
        let outcome = if path == &target { rig.unpublish(&used.vol, "alloc") } else { rig.unstage(&used.vol) };
        assert!(outcome.is_err(), "OK was said of {}, which is still there", path.display());
        assert!(rig.mount_at(path).is_some());
        fault.end();
        if path == &target { rig.unpublish(&used.vol, "alloc") } else { rig.unstage(&used.vol) }.unwrap();
        assert_eq!(rig.mount_at(path), None);
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_does_not_open_for_want_of_memory_is_not_let_go_of_by_a_plugin_started_since() {
    let mut rig = NodeHarness::start();
    let used = Used::new(&rig, "vol", "raw");
    let node = used.node.clone();
    let writer = File::options().write(true).open(&node).unwrap();
    drop(used.task);
    rig.unpublish(&used.vol, "alloc").unwrap_err();
    assert_eq!(rig.mount_at(&rig.target(&used.vol, "alloc")), None);
    rig.restart();
    let fault = Fault::begin(&rig, "openat:error=ENOMEM", &[node]);
    let outcomes = [rig.unpublish(&used.vol, "alloc"), rig.unstage(&used.vol)];
    fault.end();
    assert!(outcomes.iter().all(Result::is_err), "OK was said while the disk is written to: {outcomes:?}");
    // What is known of the volume is kept, so the repeat is as strict.
    refused(rig.unstage(&used.vol), RpcStatusCode::FAILED_PRECONDITION, &["has", "open"]);
    drop(writer);
    rig.unpublish(&used.vol, "alloc").unwrap();
    rig.unstage(&used.vol).unwrap();
    rig.close();
}
