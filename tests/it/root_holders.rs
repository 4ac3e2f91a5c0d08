//! A volume that is let go of while something that the plugin does not see, or that does not end, still uses it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Sysfs, Vol, ok, refused};
use crate::support::droplet::Droplet;

const PRECONDITION: RpcStatusCode = RpcStatusCode::FAILED_PRECONDITION;

/// A program on the droplet that has said that it is ready; it ends when this is dropped.
#[derive(Debug)]
pub struct Bystander(Child);

impl Bystander {
    /// Runs a shell script, which may take what it works on from its arguments, and then waits.
    fn start(droplet: &Droplet, before: &[&str], script: &str, args: &[&Path]) -> Bystander {
        let script = format!("{script}; echo ready; read -r _");
        let mut words = before.iter().chain(&["sh"]);
        let mut command = droplet.command(Path::new(words.next().unwrap()));
        command.args(words).args(["-c", &script, "sh"]).args(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Bystander(child)
    }

    /// In a mount namespace of its own with a private copy of all mounts, as of a container with `-v /:/host`.
    pub fn apart(rig: &NodeHarness, script: &str, args: &[&Path]) -> Bystander {
        Bystander::start(&rig.machine().droplet, &["unshare", "--mount", "--propagation", "private"], script, args)
    }

    /// In the droplet's own mount namespace.
    fn beside(rig: &NodeHarness, script: &str, args: &[&Path]) -> Bystander {
        Bystander::start(&rig.machine().droplet, &[], script, args)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

/// A control group with the name that Docker gives that of a container, and a process in it.
struct ContainerGroup(PathBuf);

impl ContainerGroup {
    const ID: &str = "4f5e6d7c8b9a0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293";

    /// `None` where this machine has no control groups that can be made.
    fn with(pid: u32) -> Option<ContainerGroup> {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"].map(PathBuf::from);
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists())?;
        let group = ContainerGroup(root.join(format!("docker-{}.scope", ContainerGroup::ID)));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join("cgroup.procs"), pid.to_string()).unwrap();
        Some(group)
    }
}

impl Drop for ContainerGroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

/// Unstages a volume without a wait for anybody to let go of its disk.
fn is_unstaged_at_once(rig: &NodeHarness, vol: &Vol) {
    let started = Instant::now();
    rig.unstage(vol).unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_that_another_mount_namespace_still_has_is_not_said_to_be_let_go_of() {
    let rig = NodeHarness::start();
    for fs in ["xfs", "ext4", "btrfs"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        let staging = rig.staging(&vol);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        rig.write(&staging, "file", "kept").unwrap();
        let other = Bystander::apart(&rig, "true", &[]);
        let (pid, node) = (other.pid(), rig.node(&vol));
        let umount = format!("nsenter -t {pid} -m umount {}", staging.display());
        let words = [&format!("process {pid} (sh)"), &umount, &node.display().to_string(), "is detached is lost"];
        // The volume is staged yet, and so in use where everybody sees it.
        rig.unpublish(&vol, "alloc").unwrap();
        // The repetition is as strict as the first call.
        for _ in 0..2 {
            let started = Instant::now();
            refused(rig.unstage(&vol), PRECONDITION, &words);
            let took = started.elapsed();
            assert!(took > Duration::from_secs(4) && took < Duration::from_secs(20), "{took:?}");
            assert_eq!(rig.mount_at(&staging), None);
        }
        assert!(rig.plugin().log().lines().any(|line| line.contains("ERROR") && line.contains(&umount)));
        // Nor is it given to a task whose writes would go to a disk that somebody else has.
        refused(rig.stage(&vol), PRECONDITION, &[&format!("process {pid} (sh)"), "the mount of volume", "in use"]);
        // The cure that is named.
        let args = ["-t", &pid.to_string(), "-m", "umount", &staging.to_string_lossy()].map(std::ffi::OsString::from);
        ok("nsenter", &args.each_ref().map(|arg| arg.as_os_str()));
        rig.unstage(&vol).unwrap();
        rig.stage(&vol).unwrap();
        assert_eq!(rig.read(&staging, "file").unwrap(), "kept");
        // Or the other one ends while it is waited for.
        let other = Bystander::apart(&rig, "true", &[]);
        let end = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            other.end();
        });
        let started = Instant::now();
        rig.unstage(&vol).unwrap();
        assert!(started.elapsed() > Duration::from_millis(500), "nothing was waited for");
        end.join().unwrap();
        // What nobody else has is let go of at once.
        rig.stage(&vol).unwrap();
        is_unstaged_at_once(&rig, &vol);
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_is_gone_is_not_waited_for() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    let other = Bystander::apart(&rig, "true", &[]);
    refused(rig.unstage(&vol), PRECONDITION, &["process"]);
    // As Nomad does it all the same.
    other.end();
    rig.detach(&vol);
    is_unstaged_at_once(&rig, &vol);
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_raw_volume_that_is_open_for_writing_is_not_said_to_be_let_go_of() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").block();
    rig.stage(&vol).unwrap();
    for alloc in ["one", "two"] {
        rig.publish(&vol, alloc).unwrap();
    }
    let node = rig.node(&vol);
    // Who only reads loses nothing, and disks are read by many: udev, multipath, monitoring.
    let reader = Bystander::beside(&rig, "exec 9<\"$1\"", &[&node]);
    let writer = Bystander::beside(&rig, "exec 9>\"$1\"", &[&node]);
    // The volume is published yet at the other target.
    rig.unpublish(&vol, "one").unwrap();
    let words = [&format!("process {} (sh) has {} open", writer.pid(), node.display()), "vol"];
    refused(rig.unpublish(&vol, "two"), PRECONDITION, &words);
    assert!(rig.mount_at(&rig.target(&vol, "two")).is_none() && !rig.target(&vol, "two").exists());
    for call in [rig.unpublish(&vol, "two"), rig.unstage(&vol)] {
        refused(call, PRECONDITION, &words);
    }
    writer.end();
    rig.unpublish(&vol, "two").unwrap();
    rig.unstage(&vol).unwrap();
    // A lazy unmount hides the mount from every table, and the writer goes on.
    rig.publish(&vol, "one").unwrap();
    let target = rig.target(&vol, "one");
    let writer = Bystander::beside(&rig, "exec 9>\"$1\"", &[&target]);
    rig.run("umount", &["--lazy", &target.to_string_lossy()]);
    refused(rig.unpublish(&vol, "one"), PRECONDITION, &[&format!("process {} (sh) has", writer.pid()), "vol"]);
    writer.end();
    rig.unpublish(&vol, "one").unwrap();
    // What the kernel itself has made of it: swap space, and another disk.
    rig.publish(&vol, "one").unwrap();
    rig.run("mkswap", &[&node.to_string_lossy()]);
    rig.run("swapon", &[&node.to_string_lossy()]);
    let outcome = rig.unpublish(&vol, "one");
    rig.run("swapoff", &[&node.to_string_lossy()]);
    refused(outcome, PRECONDITION, &[&format!("`swapoff {}`", node.display())]);
    rig.unpublish(&vol, "one").unwrap();
    rig.publish(&vol, "one").unwrap();
    let shown = rig.run("losetup", &["--find", "--show", &node.to_string_lossy()]);
    let outcome = rig.unpublish(&vol, "one");
    rig.run("losetup", &["-d", shown.trim()]);
    refused(outcome, PRECONDITION, &[&format!("losetup -d {}", shown.trim())]);
    rig.unpublish(&vol, "one").unwrap();
    drop(reader);
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_keeps_a_volume_from_being_unmounted_is_named() {
    let rig = NodeHarness::start();
    for fs in ["xfs", "btrfs"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        let target = rig.target(&vol, "alloc");
        rig.write(&target, "file", "kept").unwrap();
        let below = target.join("below");
        let here = target.display().to_string();
        let is_refused = |words: &[&str]| {
            refused(rig.unpublish(&vol, "alloc"), PRECONDITION, &[&[&*here, "in use"], words].concat())
        };

        let user = Bystander::beside(&rig, "cd \"$1\"", &[&target]);
        is_refused(&[&format!("process {} (sh) has its working directory at {here}", user.pid())]);
        drop(user);
        let user = Bystander::beside(&rig, "exec 9<\"$1/file\"", &[&target]);
        is_refused(&[&format!("process {} (sh) has {here}/file open", user.pid())]);
        let container = ContainerGroup::with(user.pid());
        match &container {
            Some(_) => is_refused(&[&format!("process {} (sh) of container 4f5e6d7c8b9a has {here}/file", user.pid())]),
            None => eprintln!("NOT TESTED: that a container is named, as no control group can be made here"),
        }
        drop(user);
        drop(container);
        fs::create_dir(rig.file(&target, "below")).unwrap();
        rig.run("mount", &["-t", "tmpfs", "none", &below.to_string_lossy()]);
        is_refused(&[&format!("tmpfs is mounted below it, at {}", below.display())]);
        rig.run("umount", &[&below.to_string_lossy()]);
        rig.run("truncate", &["-s", "1M", &target.join("image").to_string_lossy()]);
        let shown = rig.run("losetup", &["--find", "--show", &target.join("image").to_string_lossy()]);
        let outcome = rig.unpublish(&vol, "alloc");
        rig.run("losetup", &["-d", shown.trim()]);
        refused(outcome, PRECONDITION, &[&format!("losetup -d {}", shown.trim())]);

        // It is written to the disk all the same, stays where it is, and goes when nothing uses it any more.
        assert!(rig.mount_at(&target).is_some() && rig.is_on_disk(&vol, "kept"));
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_plugin_that_sees_only_its_own_processes_says_so() {
    // As in a container: a PID namespace of its own, and a /proc that shows it.
    let rig = NodeHarness::start_within(&[
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc=/proc",
        "--propagation",
        "unchanged",
    ]);
    let vol = rig.volume("vol", "ext4");
    rig.stage(&vol).unwrap();
    let other = Bystander::apart(&rig, "true", &[]);
    let number =
        fs::read_to_string(format!("/sys/class/block/{}/dev", rig.node(&vol).file_name().unwrap().to_string_lossy()))
            .unwrap();
    let words = [
        "only the processes of its own container",
        &format!("grep -lE ' {} ", number.trim()),
        "/proc/[0-9]*/mountinfo",
    ];
    let refusal = rig.unstage(&vol).unwrap_err();
    refused::<()>(Err(refusal.clone()), PRECONDITION, &words);
    // The command that is named shows the process.
    let command = refusal.message.split('`').nth(1).unwrap();
    let found = ok("sh", &["-c".as_ref(), format!("{command} || true").as_ref()]);
    assert!(found.contains(&format!("/proc/{}/mountinfo", other.pid())), "{command}: {found}");
    drop(other);
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_call_that_failed_after_an_unmount_is_repeated_as_strictly() {
    let rig = NodeHarness::start();
    // Which volume it is may be forgotten meanwhile; what was under the mount is not.
    for (name, fs, is_forgotten) in
        [("vol-xfs", "xfs", false), ("vol-btrfs", "btrfs", false), ("forgotten", "xfs", true)]
    {
        let vol = rig.volume(name, "").fs(fs);
        let (staging, target) = (rig.staging(&vol), rig.target(&vol, "alloc"));
        let at = target.to_string_lossy();
        rig.stage(&vol).unwrap();
        // The volume lies on top of something else, which nobody may take away.
        rig.run("mkdir", &["-p", &at]);
        rig.run("mount", &["-t", "tmpfs", "none", &at]);
        rig.run("mount", &["--bind", &staging.to_string_lossy(), &at]);
        let other = Bystander::apart(&rig, "true", &[]);
        rig.unstage(&vol).unwrap();
        refused(rig.unpublish(&vol, "alloc"), PRECONDITION, &["tmpfs", "no volume"]);
        assert!(rig.mount_at(&target).unwrap().contains(" tmpfs "));
        rig.run("umount", &[&at]);
        if is_forgotten {
            fs::remove_file(rig.link(name).with_file_name(format!("do-csi-id-{}", vol.csi.id))).unwrap();
        }
        for call in [rig.unpublish(&vol, "alloc"), rig.unpublish(&vol, "alloc"), rig.unstage(&vol)] {
            refused(call, PRECONDITION, &[&format!("process {} (sh)", other.pid())]);
        }
        other.end();
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_plugin_that_was_started_since_is_as_strict() {
    let mut rig = NodeHarness::start();
    for is_raw in [false, true] {
        let vol = rig.volume(if is_raw { "raw" } else { "vol" }, "");
        let vol = if is_raw { vol.block() } else { vol.fs("xfs") };
        let node = rig.node(&vol);
        rig.stage(&vol).unwrap();
        let other = if is_raw {
            Bystander::beside(&rig, "exec 9>\"$1\"", &[&node])
        } else {
            Bystander::apart(&rig, "true", &[])
        };
        let words = [format!("process {} (sh)", other.pid())];
        for _ in 0..2 {
            for _ in 0..2 {
                refused(rig.unstage(&vol), PRECONDITION, &[&words[0]]);
            }
            rig.restart();
        }
        other.end();
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_does_not_work_for_now_is_not_taken_for_one_that_is_gone() {
    let sysfs = Sysfs::new();
    let mut rig = NodeHarness::start_with(&[&sysfs.flag()]);
    let vol = rig.volume("vol", "xfs");
    let device = sysfs.show_scsi(&rig.node(&vol), "vol", "running\n");
    rig.stage(&vol).unwrap();
    let other = Bystander::apart(&rig, "true", &[]);
    let has_it = format!("process {} (sh)", other.pid());
    refused(rig.unstage(&vol), PRECONDITION, &[&has_it]);
    rig.restart();
    // The kernel blocks a disk whose host answers late.
    fs::write(device.join("state"), "blocked\n").unwrap();
    refused(rig.unstage(&vol), PRECONDITION, &[&has_it]);
    // Of two disks that carry one name nobody can say which of them was meant.
    fs::write(device.join("state"), "running\n").unwrap();
    let twin = rig.volume("twin", "xfs");
    sysfs.show_scsi(&rig.node(&twin), "vol", "running\n");
    refused(rig.unstage(&vol), PRECONDITION, &["cannot tell", "several disks"]);
    sysfs.hide(&rig.node(&twin));
    other.end();
    fs::write(device.join("state"), "blocked\n").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_that_somebody_else_has_made_does_not_pass_for_one_of_the_volume() {
    let mut rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    let own = rig.machine().home().join("mnt");
    let at = own.to_string_lossy().into_owned();
    rig.run("mkdir", &["-p", &at]);
    rig.run("mount", &[&rig.node(&vol).to_string_lossy(), &at]);
    rig.unpublish(&vol, "alloc").unwrap();
    for _ in 0..2 {
        refused(rig.unstage(&vol), PRECONDITION, &[&format!("`umount {at}`"), "is detached is lost"]);
        rig.restart();
    }
    rig.run("umount", &[&at]);
    rig.unstage(&vol).unwrap();
    rig.close();
}
