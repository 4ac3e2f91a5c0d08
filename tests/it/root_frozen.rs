//! File systems that a backup tool has frozen and never thawed.

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Vol, refused};
use crate::root_leftover::begin_to_show;

const FILESYSTEMS: [&str; 4] = ["xfs", "ext4", "ext3", "btrfs"];

/// Writes to a volume within some seconds, which a frozen one does not let anybody do.
fn takes_writes(rig: &NodeHarness, vol: &Vol) -> bool {
    let file = rig.staging(vol).join("file");
    let script = "echo kept >\"$1\" && sync \"$1\"";
    let write = ["--signal=KILL", "5", "sh", "-c", script, "sh"];
    let droplet = &rig.machine().droplet;
    droplet.command("timeout".as_ref()).args(write).arg(file).status().unwrap().success()
}

/// A file system that is frozen. When the test ends before it was thawed, even if the test is killed, a process that outlives it
/// thaws it all the same: nothing else would ever free its loop device.
struct Frozen {
    thawed: Option<ChildStdin>,
    ended: ChildStdout,
}

impl Frozen {
    fn new(rig: &NodeHarness, vol: &Vol) -> Frozen {
        let script = "fsfreeze -f \"$1\" && echo frozen || exit
            read -r _thawed && exit
            at=$(mktemp -d) && mount \"$2\" \"$at\" && fsfreeze -u \"$at\"
            umount \"$at\" && rmdir \"$at\"";
        // What the droplet runs ends with the test; what it forks does not.
        let mut command = rig.machine().droplet.command("setsid".as_ref());
        command.args(["--fork", "sh", "-c", script, "sh"]).arg(rig.staging(vol)).arg(rig.node(vol));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (thawed, mut ended) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut told = [0; 7];
        ended.read_exact(&mut told).unwrap();
        assert_eq!(&told, b"frozen\n");
        assert!(child.wait().unwrap().success());
        Frozen { thawed, ended }
    }

    /// Leaves the file system alone, which has been thawed.
    fn was_thawed(mut self) {
        self.thawed.as_mut().unwrap().write_all(b"thawed\n").unwrap();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.thawed.take());
        // Until nobody can write there any more, which is when the process has ended.
        let _all = self.ended.read_to_end(&mut Vec::new());
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_file_system_that_was_left_frozen_is_thawed_before_it_is_unmounted() {
    let rig = NodeHarness::start();
    let thaws = || rig.plugin().log().matches("is thawed as").count();
    for fs in FILESYSTEMS {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        assert!(takes_writes(&rig, &vol));
        let frozen = Frozen::new(&rig, &vol);
        let before = thaws();
        let started = Instant::now();
        // It is staged yet: whoever has frozen it may still be at work.
        rig.unpublish(&vol, "alloc").unwrap();
        // The next allocation gets it as it is: its writes wait for whoever has frozen it.
        rig.publish(&vol, "next").unwrap();
        rig.publish(&vol, "next").unwrap();
        rig.unpublish(&vol, "next").unwrap();
        assert_eq!(thaws(), before);
        rig.unstage(&vol).unwrap();
        assert!(started.elapsed() < Duration::from_secs(5), "{fs}: {:?}", started.elapsed());
        assert_eq!(thaws(), before + 1, "{fs}: {}", rig.plugin().log());
        rig.stage(&vol).unwrap();
        assert!(takes_writes(&rig, &vol), "{fs} is frozen yet");
        frozen.was_thawed();
        rig.unstage(&vol).unwrap();
        assert_eq!(thaws(), before + 1, "{fs}: {}", rig.plugin().log());
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_a_killed_call_has_left_does_not_pass_for_a_user_when_the_last_mount_is_taken_down() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "ext4");
    rig.stage(&vol).unwrap();
    let frozen = Frozen::new(&rig, &vol);
    begin_to_show(&rig, &vol, &rig.staging(&vol));
    rig.unstage(&vol).unwrap();
    rig.stage(&vol).unwrap();
    assert!(takes_writes(&rig, &vol), "it is frozen yet");
    frozen.was_thawed();
    rig.unstage(&vol).unwrap();
    let raw = rig.volume("raw", "").block();
    let node = rig.node(&raw);
    rig.publish_as(&raw, "reader", true).unwrap();
    begin_to_show(&rig, &raw, &node);
    rig.unpublish(&raw, "reader").unwrap();
    assert_eq!(rig.run("blockdev", &["--getro", &node.to_string_lossy()]).trim(), "0", "nobody reads it any more");
    rig.unstage(&raw).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_frozen_file_system_that_is_mounted_nowhere_is_not_given_out() {
    let rig = NodeHarness::start();
    for fs in FILESYSTEMS {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        rig.stage(&vol).unwrap();
        let frozen = Frozen::new(&rig, &vol);
        // By hand, so not by the plugin, which would have thawed it.
        rig.run("umount", &[&rig.staging(&vol).to_string_lossy()]);
        refused(rig.stage(&vol), RpcStatusCode::FAILED_PRECONDITION, &["is in use", "fsfreeze -u", &vol.name]);
        // What the message advises.
        let node = rig.node(&vol);
        rig.run("mount", &[&node.to_string_lossy(), "/mnt"]);
        rig.run("fsfreeze", &["-u", "/mnt"]);
        rig.run("umount", &["/mnt"]);
        rig.stage(&vol).unwrap();
        assert!(takes_writes(&rig, &vol));
        frozen.was_thawed();
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}
