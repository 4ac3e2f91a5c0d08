//! The caller's own time on a droplet: how long he waits, and what is done when he has gone.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use do_csi_plugin::proto::csi::NodeUnstageVolumeRequest;
use grpcio::{CallOption, RpcStatusCode};

use crate::harness::{NodeHarness, Vol, ok, refused};
use crate::sim::NewVolume;
use crate::support::client::{Outcome, Volume, stage_request};
use crate::support::wait_for;

const LIMIT: Duration = Duration::from_secs(60);

/// Shorter than what the calls would wait for by themselves.
const PATIENCE: Duration = Duration::from_secs(5);

/// A volume whose disk is not attached yet.
fn unattached(rig: &NodeHarness, name: &str) -> Vol {
    let id = rig.cloud.sim.add_volume(&NewVolume::new(name, 1, "fra1")).unwrap();
    let mut csi = Volume::mounted(&id, "ext4");
    csi.publish_context = rig.context(name, 1);
    Vol { csi, name: name.to_owned() }
}

/// Waits until a call of this name has ended, and gives how often that is so.
fn ended(rig: &NodeHarness, call: &str) -> usize {
    let is_end = |line: &&str| line.contains(call) && line.contains(" code=") && line.contains(" ms=");
    rig.plugin().log().lines().filter(is_end).count()
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_call_is_answered_with_its_reason_before_its_caller_gives_up() {
    let rig = NodeHarness::start();
    let missing = unattached(&rig, "missing");
    let (asked, staging) = (Instant::now(), rig.staging(&missing));
    thread::scope(|scope| {
        let first = scope.spawn(|| rig.client().stage_within(&missing.csi, &staging, PATIENCE));
        // It waits for the first, which waits for the disk.
        let second = scope.spawn(|| rig.client().stage_within(&missing.csi, &staging, PATIENCE));
        let answers: [Outcome<()>; 2] = [first.join().unwrap(), second.join().unwrap()];
        for answer in answers {
            let refusal = answer.unwrap_err();
            assert_ne!(refusal.code, RpcStatusCode::DEADLINE_EXCEEDED, "{refusal}");
            assert!(refusal.message.contains(&missing.name) || refusal.message.contains("still running"), "{refusal}");
        }
    });
    assert!(asked.elapsed() < PATIENCE * 2);
    let vol = rig.volume("vol", "ext4");
    rig.stage(&vol).unwrap();
    let open = File::create(rig.file(&rig.staging(&vol), "open")).unwrap();
    let request = NodeUnstageVolumeRequest {
        volume_id: vol.csi.id.clone(),
        staging_target_path: rig.staging(&vol).to_string_lossy().into_owned(),
        ..Default::default()
    };
    let option = CallOption::default().timeout(PATIENCE);
    let refusal: Outcome<()> =
        rig.client().node.node_unstage_volume_opt(&request, option).map(drop).map_err(Into::into);
    refused(refusal, RpcStatusCode::FAILED_PRECONDITION, &["in use"]);
    drop(open);
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_format_that_was_begun_is_finished_and_nothing_more_is_begun_for_a_caller_who_has_gone() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "").fs("ext4");
    let [real, stand_in] = ["mkfs-real", "mkfs"].map(|name| rig.machine().home().join(name));
    fs::copy("/usr/sbin/mkfs.ext4", &real).unwrap();
    fs::write(
        &stand_in,
        format!("#!/bin/sh\nsleep 12\nexec -a mkfs.ext4 {} \"$@\"\n", real.display())
            .replace("#!/bin/sh", "#!/bin/bash"),
    )
    .unwrap();
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    rig.run("mount", &["--bind", &stand_in.to_string_lossy(), "/usr/sbin/mkfs.ext4"]);
    let refusal = rig.client().stage_within(&vol.csi, &rig.staging(&vol), Duration::from_secs(10)).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::DEADLINE_EXCEEDED, "{refusal}");
    wait_for(LIMIT, || (ended(&rig, "NodeStageVolume") == 1).then_some(())).unwrap();
    assert_eq!(rig.mount_at(&rig.staging(&vol)), None);
    let made = ok("blkid", &["-p".as_ref(), "-o".as_ref(), "export".as_ref(), rig.node(&vol).as_os_str()]);
    assert!(made.contains("TYPE=ext4"), "{made}");
    rig.stage(&vol).unwrap();
    let log = rig.plugin().log();
    assert_eq!(log.matches("formatting name=").count(), 1, "{log}");
    rig.unstage(&vol).unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_comes_after_its_caller_has_hung_up_is_not_touched_for_him() {
    let rig = NodeHarness::start();
    let vol = unattached(&rig, "late");
    let (_, threads) = rig.plugin().files_and_threads().unwrap();
    let request = stage_request(&vol.csi, &rig.staging(&vol));
    let mut call = rig.client().node.node_stage_volume_async(&request).unwrap();
    wait_for(LIMIT, || (rig.plugin().files_and_threads()?.1 > threads).then_some(())).unwrap();
    call.cancel();
    // Probe goes over the same connection, after the cancellation.
    rig.client().probe().unwrap();
    rig.attach(&vol.csi.id, &vol.name);
    let before = rig.bytes(&vol);
    wait_for(LIMIT, || (ended(&rig, "NodeStageVolume") == 1).then_some(())).unwrap();
    assert!(before.are_still_there());
    assert_eq!(rig.mount_at(&rig.staging(&vol)), None);
    rig.stage(&vol).unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}
