//! What is wrong with a volume on its droplet: each finding is played on a real kernel, and told by
//! NodeGetVolumeHealth, by `volumes` and by `doctor`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use do_csi_plugin::proto::csi;
use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::harness::{NodeHarness, Sysfs, Vol};
use crate::sim::{Fault, Gate};
use crate::support::client::option;
use crate::support::fake_nomad::{FakeNomad, Registration};
use crate::support::wait_for;

/// The reasons that are told of a volume.
fn reasons(rig: &NodeHarness, vol: &Vol) -> Vec<String> {
    rig.client().node_health(&vol.csi.id).unwrap().into_iter().map(|(reason, _)| reason).collect()
}

/// Sees that the commands for people, run on the droplet beside the plugin, tell the same.
fn told_by_commands(rig: &NodeHarness, flags: &[&str], reason: &str) {
    for command in ["volumes", "doctor"] {
        let launch = rig.machine().launch(Path::new(PROGRAM));
        let endpoint = format!("--endpoint={}", launch.socket.display());
        let mut run = launch.command;
        let output = run.args([command, "--json", &endpoint]).args(&launch.args).args(flags).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(text.contains(&format!("\"{reason}\"")), "{command} does not tell {reason}: {text}");
    }
}

/// What is told of the way to all volumes.
fn storage(rig: &NodeHarness) -> Vec<String> {
    let reply = rig.client().node.node_get_storage_health_opt(&Default::default(), option()).unwrap();
    reply.backend_health.into_iter().map(|entry| entry.reason).collect()
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let chunk = vec![0x5a; 1 << 20];
    while file.write_all(&chunk).is_ok() {}
    while file.write_all(&[0x5a]).is_ok() {}
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_full_file_system_is_told_and_is_well_again_when_there_is_space() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").fs("ext4");
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    assert!(reasons(&rig, &vol).is_empty() && storage(&rig).is_empty());
    let file = rig.file(&rig.staging(&vol), "large");
    fill(&file);
    let health = rig.client().node_health(&vol.csi.id).unwrap();
    let (reason, message) = &health[0];
    assert!(reason.starts_with("FileSystem") && reason.ends_with("Full"), "{health:?}");
    assert!(message.contains("volume vol (") && message.contains("capacity_min"), "{message}");
    told_by_commands(&rig, &[], reason);
    // Who asks as before 1.13 is told the same.
    let stats = rig.client().stats(&vol.csi.id, &rig.staging(&vol)).unwrap();
    assert!(stats.volume_condition.abnormal, "{stats:?}");
    assert!(storage(&rig).is_empty(), "a full volume is its own trouble");
    fs::remove_file(&file).unwrap();
    assert!(wait_for(Duration::from_secs(20), || reasons(&rig, &vol).is_empty().then_some(())).is_some());
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_errors_of_the_file_system_are_told_by_whether_it_can_still_be_written() {
    let rig = NodeHarness::start();
    for (flags, want) in [(&[][..], "FileSystemReadOnlyByErrors"), (&["errors=continue"], "FileSystemErrorsRecorded")] {
        let vol = rig.volume(&format!("vol-{}", flags.len()), "").fs("ext4").flags(flags);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        assert!(reasons(&rig, &vol).is_empty());
        let own = Path::new("/sys/fs/ext4").join(rig.node(&vol).file_name().unwrap());
        fs::write(own.join("trigger_fs_error"), "a test").unwrap();
        let told = || reasons(&rig, &vol).first().cloned();
        assert_eq!(wait_for(Duration::from_secs(10), told).as_deref(), Some(want));
        told_by_commands(&rig, &[], want);
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
        // The next stage checks it.
        rig.stage(&vol).unwrap();
        assert!(reasons(&rig, &vol).is_empty());
        rig.unstage(&vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_file_system_that_was_shut_down_is_told() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").fs("xfs");
    rig.stage(&vol).unwrap();
    rig.shut_down(&rig.staging(&vol));
    assert_eq!(reasons(&rig, &vol), ["FileSystemShutDown"]);
    told_by_commands(&rig, &[], "FileSystemShutDown");
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_whose_disk_is_gone_is_told_and_holds_up_no_answer_about_others() {
    let sysfs = Sysfs::new();
    let flag = sysfs.flag();
    let rig = NodeHarness::start_with(&[&flag]);
    let (vol, well) = (rig.volume("vol", "").fs("ext4"), rig.volume("well", "").fs("ext4"));
    let node = rig.node(&vol);
    for volume in [&vol, &well] {
        sysfs.show(&rig.node(volume));
        rig.stage(volume).unwrap();
    }
    rig.publish(&vol, "alloc").unwrap();
    rig.detach(&vol);
    sysfs.hide(&node);
    rig.hide_node(&node);
    // Its link is gone with the disk, and with that the name that belongs to the id: the path says which volume is
    // meant.
    let request = csi::NodeGetVolumeHealthRequest {
        volume_id: vol.csi.id.clone(),
        staging_target_path: rig.staging(&vol).to_string_lossy().into_owned(),
        ..Default::default()
    };
    let reply = rig.client().node.node_get_volume_health_opt(&request, option()).unwrap().volume_health.unwrap();
    let told: Vec<&str> = reply.health_statuses.iter().map(|entry| entry.reason.as_str()).collect();
    assert_eq!(told, ["MountedButDetached"], "{reply:?}");
    told_by_commands(&rig, &[&flag], "MountedButDetached");
    assert!(reasons(&rig, &well).is_empty());
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    rig.show_node(&node);
    rig.unstage(&well).unwrap();
    sysfs.hide(&rig.node(&well));
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_health_is_told_of_volumes_that_are_here() {
    let rig = NodeHarness::start();
    for (id, code) in [("", RpcStatusCode::INVALID_ARGUMENT), ("not here", RpcStatusCode::NOT_FOUND)] {
        assert_eq!(rig.client().node_health(id).unwrap_err().code, code, "{id}");
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_doctor_is_about_to_detach_is_staged_by_nobody_before_that_is_over() {
    let rig = NodeHarness::start();
    let nomad = FakeNomad::start(rig.machine().id);
    let vol = rig.volume("vol", "").fs("ext4");
    nomad.register(&[Registration {
        id: "blog",
        namespace: "default",
        external_id: &vol.csi.id,
        provider: "dobs.csi.digitalocean.com",
        claims: &[],
    }]);
    // A disk without a file system may be written to by a process that is not seen.
    rig.stage(&vol).unwrap();
    rig.unstage(&vol).unwrap();
    let gate = Gate::default();
    rig.cloud.sim.faults().add(Fault::held(&gate).on("POST", "/v2/volumes/{id}/actions").about(&vol.csi.id));
    let launch = rig.machine().launch(Path::new(PROGRAM));
    let mut run = launch.command;
    run.env("NOMAD_ADDR", nomad.url()).args(["doctor", "--fix", "--yes", "--call-budget=10"]).args(&launch.args);
    let child = run.stdout(Stdio::piped()).spawn().unwrap();
    assert!(gate.is_reached_within(Duration::from_secs(60)), "no detach is sent");
    thread::scope(|scope| {
        // A task is placed, and its volume is still here.
        let staged = scope.spawn(|| rig.stage(&vol));
        let is_mounted = wait_for(Duration::from_secs(2), || rig.mount_at(&rig.staging(&vol)));
        gate.open();
        assert_eq!(is_mounted, None, "its disk is about to go");
        let shown = String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned();
        assert!(shown.contains("Done: detach volume vol"), "{shown}");
        rig.cloud.sim.settle().unwrap();
        // Its orchestrator attaches it anew.
        rig.attach(&vol.csi.id, "vol");
        staged.join().unwrap().unwrap();
    });
    rig.write(&rig.staging(&vol), "file", "on its disk").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_leaked_attachment_is_repaired_only_where_every_claim_and_the_free_disk_are_seen() {
    let rig = NodeHarness::start();
    let nomad = FakeNomad::start(rig.machine().id);
    let (vol, foreign) = (rig.volume("vol", "").fs("ext4"), rig.volume("foreign", ""));
    nomad.register(&[Registration {
        id: "blog",
        namespace: "default",
        external_id: &vol.csi.id,
        provider: "dobs.csi.digitalocean.com",
        claims: &[],
    }]);
    let fix = || {
        let launch = rig.machine().launch(Path::new(PROGRAM));
        let mut run = launch.command;
        run.env("NOMAD_ADDR", nomad.url()).args(["doctor", "--fix", "--yes", "--call-budget=10"]).args(&launch.args);
        let output = run.output().unwrap();
        rig.cloud.sim.settle().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let is_attached = || rig.cloud.sim.attached_to(&vol.csi.id) == Some(rig.machine().id);
    // It is staged and written to, and no claim says so.
    rig.stage(&vol).unwrap();
    let shown = fix();
    assert!(shown.contains("AttachedWithoutClaim") && is_attached(), "{shown}");
    rig.write(&rig.staging(&vol), "file", "still there").unwrap();
    rig.unstage(&vol).unwrap();
    // No mount has it, and a process writes to the raw disk.
    let writer = OpenOptions::new().write(true).open(rig.node(&vol)).unwrap();
    let shown = fix();
    assert!(shown.contains("Not done, as something has its disk") && is_attached(), "{shown}");
    drop(writer);
    // Nothing has it, but the token may not see all claims.
    nomad.set("/v1/acl/token/self", 200, serde_json::json!({ "Type": "client" }));
    let shown = fix();
    assert!(is_attached(), "{shown}");
    nomad.set("/v1/acl/token/self", 200, serde_json::json!({ "Type": "management" }));
    let shown = fix();
    assert!(shown.contains("Done: detach volume vol") && !is_attached(), "{shown}");
    // What is attached and not registered is nothing of Nomad's.
    assert_eq!(rig.cloud.sim.attached_to(&foreign.csi.id), Some(rig.machine().id));
    rig.close();
}
