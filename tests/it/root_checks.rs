//! What is looked at before a disk is written to, and what is said when a kernel or a program cannot do what is asked.
//!
//! Needs root, and strace for kernels that are older, or lack something.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use do_csi_plugin::host::FORMAT_BUDGET;
use do_csi_plugin::host::command::{Cmd, Runner, SystemRunner, Tool, find_tools};
use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Vol, refused};
use crate::support::wait_for;

const FILESYSTEMS: [&str; 4] = ["xfs", "ext4", "ext3", "btrfs"];
const MIB: u64 = 1 << 20;
const KEY: &str = "correct horse battery staple";

/// A plugin whose system calls are tampered with, until this is dropped.
pub struct Tampered(Child);

impl Tampered {
    /// Tampers with the plugin's calls, and those of the programs that it runs, as these arguments of strace say.
    pub fn with(rig: &NodeHarness, args: &[&str]) -> Tampered {
        let pid = rig.plugin().pid().to_string();
        let mut child = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-p", &pid])
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace, from the Debian package of that name");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(first.contains("attached"), "{first}");
        // Nobody reads the rest, but who writes it must not end by that.
        std::thread::spawn(move || lines.for_each(drop));
        Tampered(child)
    }
}

impl Tampered {
    /// Waits until the plugin has ended, as strace does; asked to let go of a process that is dying it would wait for ever.
    fn until_the_end(mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Tampered {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_some() {
            return;
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).ok();
        self.0.wait().ok();
    }
}

fn ours(name: &str) -> String {
    format!("dobs.csi.digitalocean.com/{name}")
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_flag_that_the_file_system_does_not_have_is_named_before_anything_is_written() {
    let rig = NodeHarness::start();
    for fs in FILESYSTEMS {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        let before = rig.bytes(&vol);
        let bad: [(&[&str], &[&str]); 4] = [
            (&["noatim"], &["mount_flags", "\"noatim\"", fs, "did you mean \"noatime\""]),
            (&["nodev", "discard", "noatim"], &["\"noatim\""]),
            (&["password=hunter2"], &["\"password\"", fs]),
            (&["nosuchword,nodev"], &["\"nosuchword\""]),
        ];
        for (flags, words) in bad {
            let outcome = rig.stage(&vol.flags(flags));
            let refusal = outcome.as_ref().unwrap_err().to_string();
            assert!(!refusal.contains("hunter2"), "{refusal}");
            refused(outcome, RpcStatusCode::INVALID_ARGUMENT, words);
        }
        assert!(before.are_still_there(), "{fs}");
        assert!(!rig.plugin().log().contains("hunter2"));
        rig.stage(&vol.flags(&["noatime", "nodev", "discard"])).unwrap();
        rig.unstage(&vol).unwrap();
        // What is formatted already keeps its files, and the flag is named all the same.
        refused(rig.stage(&vol.flags(&["noatim"])), RpcStatusCode::INVALID_ARGUMENT, &["\"noatim\"", fs]);
        assert!(rig.mount_at(&rig.staging(&vol)).is_none());
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_value_that_only_the_mount_refuses_is_told_from_a_kernel_that_is_too_old() {
    let rig = NodeHarness::start();
    let vol = rig.volume("value", "").fs("xfs");
    let words = ["xfs of volume value cannot be mounted", "logb", "correct the mount flag"];
    refused(rig.stage(&vol.flags(&["logbsize=7777"])), RpcStatusCode::FAILED_PRECONDITION, &words);
    rig.stage(&vol).unwrap();
    rig.unstage(&vol).unwrap();

    // Features that no kernel has yet.
    let newer = rig.volume("newer", "").fs("xfs");
    rig.stage(&newer).unwrap();
    rig.unstage(&newer).unwrap();
    let node = rig.node(&newer).display().to_string();
    rig.run("xfs_db", &["-x", "-c", "sb 0", "-c", "write -d features_incompat 0x40000003", &node]);
    let outcome = rig.stage(&newer);
    let refusal = outcome.as_ref().unwrap_err().to_string();
    assert!(!refusal.contains("flag"), "{refusal}");
    refused(outcome, RpcStatusCode::FAILED_PRECONDITION, &["newer", "unknown incompatible features", "too old"]);

    for is_clean in [true, false] {
        let newer = rig.volume(&format!("newer-{is_clean}"), "ext4").fs("ext4");
        let node = rig.node(&newer).display().to_string();
        if !is_clean {
            rig.run("debugfs", &["-w", "-R", "set_super_value state 2", &node]);
        }
        rig.run("debugfs", &["-w", "-R", "feature FEATURE_I27", &node]);
        let before = rig.bytes(&newer);
        let outcome = rig.stage(&newer);
        let refusal = outcome.as_ref().unwrap_err().to_string();
        assert!(!refusal.contains("repair"), "{refusal}");
        let who: &[&str] = if is_clean { &["unsupported optional features"] } else { &["e2fsck", "FEATURE_I27"] };
        refused(outcome, RpcStatusCode::FAILED_PRECONDITION, &[who, &["too old", &newer.name]].concat());
        assert!(before.are_still_there());
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_is_not_formatted_for_a_kernel_that_cannot_mount_it() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "");
    let before = rig.bytes(&vol);
    // A kernel without the file system, as it answers by the new calls, and by the old one where it has no new ones.
    let kernels: [&[&str]; 2] = [
        &["-e", "trace=fsopen", "-e", "inject=fsopen:error=ENODEV"],
        &["-e", "trace=fsopen,mount", "-e", "inject=fsopen:error=ENOSYS", "-e", "inject=mount:error=ENODEV"],
    ];
    for kernel in kernels {
        let _tampered = Tampered::with(&rig, kernel);
        for fs in ["xfs", "btrfs", ""] {
            let named = if fs.is_empty() { "ext4" } else { fs };
            let words = ["cannot mount", named, "modprobe"];
            refused(rig.stage(&vol.fs(fs)), RpcStatusCode::FAILED_PRECONDITION, &words);
        }
        assert!(before.are_still_there());
    }
    // An old kernel takes what its file systems are known to read, and what they are not would format the disk in vain.
    let tampered = Tampered::with(&rig, &["-e", "trace=fsopen", "-e", "inject=fsopen:error=ENOSYS"]);
    for fs in FILESYSTEMS {
        refused(rig.stage(&vol.fs(fs).flags(&["noatim"])), RpcStatusCode::INVALID_ARGUMENT, &["\"noatim\"", fs]);
    }
    assert!(before.are_still_there());
    rig.stage(&vol.fs("ext4").flags(&["noatime", "commit=7", "data=ordered"])).unwrap();
    drop(tampered);
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_is_not_encrypted_when_it_could_not_be_used_then() {
    let rig = NodeHarness::start();
    let vol = rig.volume("secret", "").fs("xfs").encrypted(KEY);
    let before = rig.bytes(&vol);
    let code = RpcStatusCode::INVALID_ARGUMENT;
    refused(rig.stage(&vol.flags(&["noatim"])), code, &["\"noatim\""]);
    // It is published with its key, for want of which it was not staged.
    refused(rig.publish(&vol.flags(&["noatim"]), "a"), code, &["\"noatim\""]);
    refused(rig.stage(&vol.fs("").context(&ours("reflink"), "true")), code, &["reflink"]);
    let no_mapper = ["-P", "/dev/mapper/control", "-e", "trace=openat", "-e", "inject=openat:error=ENXIO"];
    let tampered = Tampered::with(&rig, &no_mapper);
    refused(rig.stage(&vol), RpcStatusCode::FAILED_PRECONDITION, &["secret", "device-mapper", "modprobe dm-crypt"]);
    drop(tampered);
    let tampered = Tampered::with(&rig, &["-e", "trace=fsopen", "-e", "inject=fsopen:error=ENODEV"]);
    refused(rig.stage(&vol), RpcStatusCode::FAILED_PRECONDITION, &["cannot mount xfs"]);
    drop(tampered);
    assert!(before.are_still_there());
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_setting_without_its_prefix_is_refused_and_the_disk_stays_blank() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").fs("ext4");
    let before = rig.bytes(&vol);
    for name in ["noformat", "NOFORMAT", "no-format", "no_format", "nofromat", "owner", "mode", "block_size"] {
        let misspelt = vol.context(name, "true");
        refused(rig.stage(&misspelt), RpcStatusCode::INVALID_ARGUMENT, &[name, "did you mean", &ours("")]);
        refused(rig.publish(&misspelt, "a"), RpcStatusCode::INVALID_ARGUMENT, &[name, "did you mean"]);
    }
    assert!(before.are_still_there());
    let others = vol.context("csi.storage.k8s.io/pod.name", "blog").context("colour", "blue");
    for alloc in ["a", "b"] {
        rig.stage(&others).unwrap();
        rig.publish(&others, alloc).unwrap();
        rig.unpublish(&others, alloc).unwrap();
    }
    let log = rig.plugin().log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("has no effect")).collect();
    assert!(told.len() == 1 && told[0].contains("colour"), "{told:?}");
    rig.unstage(&vol).unwrap();
    rig.close();
}

fn root_folder(rig: &NodeHarness, vol: &Vol) -> (u32, u32, u32) {
    let found = fs::metadata(rig.file(&rig.staging(vol), ".")).unwrap();
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_owner_and_mode_of_a_used_volume_are_changed_when_that_is_asked_for_and_else_it_is_said() {
    let rig = NodeHarness::start();
    for fs in FILESYSTEMS {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        rig.stage(&vol).unwrap();
        rig.write(&rig.staging(&vol), "file", "mine").unwrap();
        rig.unstage(&vol).unwrap();
        let asked = vol.context(&ours("owner"), "1000").context(&ours("mode"), "02770");
        rig.stage(&asked).unwrap();
        assert_eq!(root_folder(&rig, &vol), (0, 0, 0o755), "{fs}");
        let said = "it has 0:0 0755, 1000:- 2770 was asked for; with the setting owner-policy=always";
        let log = rig.plugin().log();
        assert!(log.lines().any(|line| line.contains(said) && line.contains(&vol.csi.id)), "{log}");
        rig.unstage(&vol).unwrap();
        for _ in 0..2 {
            rig.stage(&asked.context(&ours("owner-policy"), "always")).unwrap();
            assert_eq!(root_folder(&rig, &vol), (1000, 0, 0o2770), "{fs}");
        }
        // What is in it stays as it is.
        let file = fs::metadata(rig.file(&rig.staging(&vol), "file")).unwrap();
        assert_eq!((file.uid(), file.gid()), (0, 0), "{fs}");
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_a_killed_stage_still_owes_is_done_when_the_volume_is_published() {
    let mut rig = NodeHarness::start();
    for (fs, call) in FILESYSTEMS.into_iter().zip(["fchown", "fchmod", "fchown", "fchmod"]) {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        let vol = vol.context(&ours("owner"), "1000").context(&ours("group"), "2000").context(&ours("mode"), "02770");
        // The mount is there, and the plugin is killed before the next step.
        let tampered =
            Tampered::with(&rig, &["-e", &format!("trace={call}"), "-e", &format!("inject={call}:signal=KILL")]);
        rig.stage(&vol).unwrap_err();
        tampered.until_the_end();
        rig.restart();
        assert!(rig.mount_at(&rig.staging(&vol)).is_some(), "{fs}");
        assert_ne!(root_folder(&rig, &vol), (1000, 2000, 0o2770), "{fs}");
        // Nomad sees the mount, and goes on with this.
        rig.publish(&vol, "a").unwrap();
        assert_eq!(root_folder(&rig, &vol), (1000, 2000, 0o2770), "{fs}");
        rig.unpublish(&vol, "a").unwrap();
        rig.unstage(&vol).unwrap();
    }
    // As it is left by a kill between the mount and the growth of a volume that has become larger.
    for fs in ["xfs", "btrfs"] {
        let vol = rig.volume(&format!("small-{fs}"), "").fs(fs);
        rig.stage(&vol).unwrap();
        rig.unstage(&vol).unwrap();
        rig.resize(&vol, 2);
        let mut vol = vol;
        vol.csi.publish_context = rig.context(&vol.name, 2);
        let (staging, node) = (rig.staging(&vol), rig.node(&vol));
        rig.run("mount", &["-t", fs, &node.to_string_lossy(), &staging.to_string_lossy()]);
        assert!(rig.fs_size(&staging) < 1100 * MIB);
        rig.publish(&vol, "a").unwrap();
        assert!(rig.fs_size(&rig.target(&vol, "a")) > 1900 * MIB, "{fs}");
        rig.unpublish(&vol, "a").unwrap();
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_the_reason_of_a_program_that_prints_how_it_is_used_is_kept() {
    let runner = SystemRunner::new(find_tools().unwrap());
    let cmd = Cmd::new(Tool::MkfsXfs, FORMAT_BUDGET).args(["-m", "bogus=1", "/dev/null"]);
    let failed = runner.run(&cmd).unwrap().success(&cmd).unwrap_err().to_string();
    assert!(failed.contains("unknown option -m bogus=1"), "{failed}");
}
