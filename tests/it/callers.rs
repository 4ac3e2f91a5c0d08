//! The caller's own time: how long he waits, and what is done when he has gone.

use std::thread;
use std::time::{Duration, Instant};

use do_csi_plugin::proto::csi::{ControllerPublishVolumeRequest, ListVolumesRequest};
use grpcio::{CallOption, RpcStatusCode};

use crate::PROGRAM;
use crate::sim::{Fault, Limits, NewVolume, Rules, SimConfig};
use crate::support::client::{Client, Outcome, Volume};
use crate::support::single_plugin::{DROPLET, SinglePlugin, until};

/// More than the plugin has threads and room for.
const CALLERS: usize = 200;
const PATIENCE: Duration = Duration::from_secs(4);

fn publish(client: &Client, id: &str, patience: Duration) -> Outcome<()> {
    let request = ControllerPublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: DROPLET.to_string(),
        volume_capability: Some(Volume::mounted(id, "ext4").capability).into(),
        ..Default::default()
    };
    Ok(client.controller.controller_publish_volume_opt(&request, CallOption::default().timeout(patience)).map(drop)?)
}

#[test]
fn every_caller_of_a_crowd_learns_why_and_nothing_is_left_to_do_for_them() {
    let rules = Rules { limits: Limits { volumes: CALLERS, ..Limits::default() }, ..Rules::default() };
    let solo = SinglePlugin::with(PROGRAM, SimConfig { rules, ..SimConfig::default() });
    let ids: Vec<String> =
        (0..CALLERS).map(|n| solo.sim.add_volume(&NewVolume::new(&format!("crowd-{n}"), 1, "fra1")).unwrap()).collect();
    let plugin = solo.launch(&["--mode=controller", "--region=fra1"]).start().unwrap();
    solo.sim.faults().add(Fault::unavailable().always());
    let began = Instant::now();
    let refusals: Vec<_> = thread::scope(|scope| {
        let call = |id: &String| {
            let client = plugin.client.clone();
            let id = id.clone();
            scope.spawn(move || publish(&client, &id, PATIENCE).unwrap_err())
        };
        let calls: Vec<_> = ids.iter().map(call).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(began.elapsed() < PATIENCE * 5, "{:?}", began.elapsed());
    for refusal in &refusals {
        // gRPC's own answer at the end of the time would say no more than that.
        assert_ne!(refusal.code, RpcStatusCode::DEADLINE_EXCEEDED, "{refusal}");
        let reasons = ["503", "no reply from DigitalOcean", "held back", "calls are waiting already"];
        assert!(reasons.iter().any(|reason| refusal.message.contains(reason)), "{refusal}");
    }
    solo.sim.faults().clear();
    let back = Instant::now();
    let list = CallOption::default().timeout(Duration::from_secs(60));
    plugin.client.controller.list_volumes_opt(&ListVolumesRequest::default(), list).unwrap();
    publish(&plugin.client, &ids[0], Duration::from_secs(60)).unwrap();
    assert!(back.elapsed() < Duration::from_secs(20), "{:?}", back.elapsed());
    assert!(solo.sim.attached_to("crowd-1").is_none() && solo.sim.actions().len() == 1);
}

#[test]
fn nothing_is_begun_for_a_caller_who_hangs_up() {
    let solo = SinglePlugin::new(PROGRAM);
    let id = solo.sim.add_volume(&NewVolume::new("left", 1, "fra1")).unwrap();
    let plugin = solo.launch(&["--mode=controller", "--region=fra1"]).start().unwrap();
    solo.sim.faults().add(Fault::unavailable().always());
    let request = ControllerPublishVolumeRequest {
        volume_id: id.clone(),
        node_id: DROPLET.to_string(),
        volume_capability: Some(Volume::mounted(&id, "ext4").capability).into(),
        ..Default::default()
    };
    let mut call = plugin.client.controller.controller_publish_volume_async(&request).unwrap();
    until("it asks", || plugin.log().contains("asking again"));
    call.cancel();
    until("the call is over", || plugin.log().contains("DEADLINE_EXCEEDED"));
    solo.sim.faults().clear();
    publish(&plugin.client, &id, Duration::from_secs(60)).unwrap();
    assert_eq!(solo.sim.actions().len(), 1);
}
