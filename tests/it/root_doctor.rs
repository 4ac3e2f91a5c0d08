//! What `doctor`, and nothing else, says of a droplet on which something is broken: each breakage is played on a real kernel, and
//! ends when it is undone.
//!
//! Needs root, and strace for a mount that does not answer.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::PROGRAM;
use crate::harness::NodeHarness;
use crate::root_checks::Tampered;
use crate::support::wait_for;

/// What runs the command: nothing, or a program with its arguments.
type Within<'a> = &'a [&'a str];

/// What strace does to every look at a file system: it takes longer than anybody waits.
const HUNG: [&str; 4] = ["-e", "trace=statfs,fstatfs", "-e", "inject=statfs,fstatfs:delay_enter=6s"];

/// Runs a command for people on the droplet, and gives what it prints and its exit code.
fn run(rig: &NodeHarness, within: Within<'_>, args: &[&str]) -> (String, Option<i32>) {
    let mut words = within.iter().copied().chain([PROGRAM]);
    let launch = rig.machine().launch(Path::new(words.next().unwrap()));
    let endpoint = format!("--endpoint={}", launch.socket.display());
    let mut command = launch.command;
    command.args(words).args(args).arg(endpoint).args(&launch.args).stdin(Stdio::null());
    let output = command.output().unwrap();
    (String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(), output.status.code())
}

/// The reasons that somebody has to look at, each with its cure, and the exit code.
fn doctor(rig: &NodeHarness, within: Within<'_>, flags: &[&str]) -> (Vec<String>, Option<i32>) {
    let (text, code) = run(rig, within, &[&["doctor", "--json"], flags].concat());
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|err| panic!("{err}: {text}"));
    let findings = json["findings"].as_array().unwrap().iter().filter(|finding| finding["severity"] != "notice");
    let reason = |finding: &Value| {
        assert!(!finding["cure"].as_str().unwrap().is_empty(), "{finding}");
        finding["reason"].as_str().unwrap().to_owned()
    };
    (findings.map(reason).collect(), code)
}

#[track_caller]
fn is_well(rig: &NodeHarness) {
    assert_eq!(doctor(rig, &[], &[]), (vec![], Some(0)));
}

#[track_caller]
fn finds(rig: &NodeHarness, within: Within<'_>, flags: &[&str], want: &str) {
    assert_eq!(doctor(rig, within, flags), (vec![want.to_owned()], Some(1)));
    let (shown, _) = run(rig, within, &[&["doctor"], flags].concat());
    assert!(shown.contains(want) && shown.contains("Begin with this: "), "{shown}");
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_doctor_names_what_the_plugins_process_lacks() {
    let rig = NodeHarness::start();
    is_well(&rig);
    finds(&rig, &["unshare", "--mount", "--propagation", "private"], &[], "MountsDoNotReachTheDroplet");
    finds(&rig, &["setpriv", "--bounding-set=-sys_admin"], &[], "NotPrivileged");
    let tool = ["/usr/sbin/mkfs.xfs", "/sbin/mkfs.xfs"].into_iter().find(|tool| Path::new(tool).is_file()).unwrap();
    rig.run("mount", &["--bind", "/dev/null", tool]);
    finds(&rig, &[], &[], "ToolMissing");
    let (shown, _) = run(&rig, &[], &["doctor"]);
    assert!(shown.contains("mkfs.xfs") && shown.contains("xfsprogs"), "{shown}");
    rig.run("umount", &[tool]);
    is_well(&rig);
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_doctor_names_a_plugin_and_a_metadata_service_that_do_not_answer() {
    let rig = NodeHarness::start();
    let plugin = Pid::from_raw(i32::try_from(rig.plugin().pid()).unwrap());
    kill(plugin, Signal::SIGSTOP).unwrap();
    finds(&rig, &[], &[], "PluginDoesNotAnswer");
    kill(plugin, Signal::SIGCONT).unwrap();
    is_well(&rig);
    rig.cloud.sim.metadata_down(rig.machine().id, Duration::from_secs(3600));
    finds(&rig, &[], &[], "MetadataUnreachable");
    rig.cloud.sim.metadata_down(rig.machine().id, Duration::ZERO);
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_that_does_not_answer_is_named_by_everybody_and_holds_up_nobody() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").fs("ext4");
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    is_well(&rig);
    let path = rig.staging(&vol).display().to_string();
    let strace: Vec<&str> = ["strace", "-f", "-o", "/dev/null"].into_iter().chain(HUNG).collect();
    finds(&rig, &strace, &[], "MountDoesNotAnswer");
    let (shown, _) = run(&rig, &strace, &["volumes"]);
    assert!(shown.contains("MountDoesNotAnswer") && shown.contains(&path), "{shown}");
    let tampered = Tampered::with(&rig, &HUNG);
    let reasons = || rig.client().node_health(&vol.csi.id).unwrap();
    let told = wait_for(Duration::from_secs(20), || reasons().first().map(|(reason, _)| reason.clone()));
    assert_eq!(told.as_deref(), Some("MountDoesNotAnswer"));
    drop(tampered);
    let is_over = wait_for(Duration::from_secs(30), || reasons().is_empty().then_some(()));
    assert!(is_over.is_some(), "{:?}", reasons());
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}
