//! What CSI 1.13's health calls of the controller say of volumes with which something is wrong, and that callers of
//! 1.12 are told the same in their words.

use std::path::Path;
use std::time::Duration;

use do_csi_plugin::proto::csi;
use do_csi_plugin::proto::csi::VolumeHealthErrorType;
use grpcio::RpcStatusCode;
use protobuf::Message;

use crate::PROGRAM;
use crate::sim::state::ActionKind;
use crate::sim::{ActionFault, DropletStatus, Fault, Refusal};
use crate::support::client::{publish, unpublish};
use crate::support::controllers::{A, B, ControllerHarness};
use crate::support::plugin::Plugin;

fn controller(fleet: &ControllerHarness) -> Plugin {
    fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=20"])
}

fn reasons(plugin: &Plugin, id: &str) -> Vec<String> {
    plugin.client.volume_health(id).unwrap().into_iter().map(|(reason, _)| reason).collect()
}

/// All that are listed as not well, in pages of a size: the id and the reasons of each.
fn listed(plugin: &Plugin, size: i32) -> Vec<(String, Vec<String>)> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let page = plugin.client.list_health(size, &token).unwrap();
        assert!(size == 0 || page.entries.len() <= usize::try_from(size).unwrap(), "{page:?}");
        all.extend(page.entries.into_iter().map(|entry| {
            let reasons = entry.health_statuses.into_iter().map(|status| status.reason).collect();
            (entry.volume_id, reasons)
        }));
        token = page.next_token;
        if token.is_empty() {
            return all;
        }
    }
}

#[test]
fn a_volume_on_a_dead_droplet_is_told_by_every_call_with_the_command_that_frees_it() {
    let fleet = ControllerHarness::with_actions(Duration::from_millis(20));
    let plugin = controller(&fleet);
    let (held, well) = (fleet.volume_on("held", A), fleet.volume_on("well", B));
    let free = fleet.volume("free");
    assert_eq!(listed(&plugin, 0), []);
    for id in [&held, &well, &free] {
        assert!(reasons(&plugin, id).is_empty());
    }
    for status in [DropletStatus::Off, DropletStatus::Archive] {
        fleet.sim.set_droplet_status(A, status);
        let health = plugin.client.volume_health(&held).unwrap();
        assert_eq!(health.len(), 1, "{health:?}");
        let (reason, message) = &health[0];
        assert_eq!(reason, "AttachedToDeadDroplet");
        assert!(message.contains(&format!("doctl compute volume-action detach {held} {A}")), "{message}");
        assert_eq!(listed(&plugin, 0), [(held.clone(), vec!["AttachedToDeadDroplet".to_owned()])]);
        // Callers of 1.12 get the same sentence.
        let got = plugin.client.get_volume(&held).unwrap().status.unwrap().volume_condition.unwrap();
        assert!(got.abnormal && &got.message == message, "{got:?}");
        for id in [&well, &free] {
            assert!(reasons(&plugin, id).is_empty());
        }
    }
    fleet.sim.set_droplet_status(A, DropletStatus::Active);
    assert_eq!(listed(&plugin, 0), []);
    assert!(reasons(&plugin, &held).is_empty());
}

#[test]
fn volumes_that_are_not_well_are_listed_in_pages_without_those_that_are() {
    let fleet = ControllerHarness::with_actions(Duration::from_millis(20));
    let plugin = controller(&fleet);
    let mut want: Vec<String> = Vec::new();
    for number in 0..5 {
        want.push(fleet.volume_on(&format!("held-{number}"), A));
        fleet.volume(&format!("free-{number}"));
    }
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    want.sort();
    for size in [0, 1, 2, 5, 100] {
        let mut found: Vec<String> = listed(&plugin, size).into_iter().map(|(id, _)| id).collect();
        found.sort();
        assert_eq!(found, want, "in pages of {size}");
    }
    // A token that may not read droplets still lists, and says of no droplet that it is dead.
    fleet.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on("GET", "/v2/droplets").always());
    assert_eq!(listed(&plugin, 0), []);
}

#[test]
fn detaches_that_keep_failing_are_told() {
    let fleet = ControllerHarness::with_actions(Duration::from_millis(20));
    let plugin = controller(&fleet);
    let id = fleet.volume("blog");
    publish(&plugin.client, &id, A).unwrap();
    fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach).times(1000));
    unpublish(&plugin.client, &id, A).unwrap_err();
    let health = plugin.client.volume_health(&id).unwrap();
    assert_eq!(health.len(), 1, "{health:?}");
    assert_eq!(health[0].0, "DetachKeepsFailing");
    assert!(health[0].1.contains("--action-id"), "{health:?}");
    fleet.sim.faults().clear();
    fleet.rest();
    unpublish(&plugin.client, &id, A).unwrap();
    assert!(reasons(&plugin, &id).is_empty());
}

#[test]
fn health_is_asked_of_volumes_that_exist() {
    let fleet = ControllerHarness::with_actions(Duration::from_millis(20));
    let plugin = controller(&fleet);
    for (id, code) in [
        ("", RpcStatusCode::INVALID_ARGUMENT),
        ("no-uuid", RpcStatusCode::NOT_FOUND),
        ("00000000-8f00-11f0-9a11-0a58ac14d1e2", RpcStatusCode::NOT_FOUND),
    ] {
        assert_eq!(plugin.client.volume_health(id).unwrap_err().code, code, "{id}");
    }
    assert_eq!(plugin.client.list_health(-1, "").unwrap_err().code, RpcStatusCode::INVALID_ARGUMENT);
    assert_eq!(plugin.client.list_health(0, "no token").unwrap_err().code, RpcStatusCode::ABORTED);
}

#[test]
fn a_snapshot_says_where_it_can_be_used_and_is_taken_only_where_it_is_wanted() {
    let fleet = ControllerHarness::with_actions(Duration::from_millis(20));
    let plugin = controller(&fleet);
    let id = fleet.volume("blog");
    let topology = |region: &str| csi::Topology {
        segments: [("region".to_owned(), region.to_owned())].into(),
        ..Default::default()
    };
    let take = |regions: &[&str]| {
        let requisite = regions.iter().map(|region| topology(region)).collect();
        let requirement = csi::TopologyRequirement { requisite, ..Default::default() };
        let request = csi::CreateSnapshotRequest {
            source_volume_id: id.clone(),
            name: "nightly".to_owned(),
            accessibility_requirements: Some(requirement).into(),
            ..Default::default()
        };
        plugin.client.controller.create_snapshot_opt(&request, crate::support::client::option())
    };
    let refusal: crate::support::client::Refusal = take(&["nyc1"]).unwrap_err().into();
    assert_eq!(refusal.code, RpcStatusCode::RESOURCE_EXHAUSTED, "{refusal}");
    assert!(refusal.message.contains("nyc1") && fleet.sim.snapshots().is_empty(), "{refusal}");
    let taken = take(&["nyc1", "fra1"]).unwrap().snapshot.unwrap();
    assert_eq!(taken.accessible_topology, [topology("fra1")]);
    // Without a wish it is taken where the volume is, and the repeat finds the same one.
    assert_eq!(take(&[]).unwrap().snapshot.unwrap(), taken);
    let reply =
        plugin.client.identity.get_plugin_capabilities_opt(&Default::default(), crate::support::client::option());
    let numbers: Vec<i32> =
        reply.unwrap().capabilities.iter().map(|capability| capability.service().type_.value()).collect();
    assert!(numbers.contains(&5), "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS is not among {numbers:?}");
}

/// Bytes as a caller of 1.12 reads them, by the numbers of its interface.
#[test]
fn on_the_wire_callers_of_1_12_find_the_condition_where_it_was() {
    let condition = csi::VolumeCondition { abnormal: true, message: "x".to_owned(), ..Default::default() };
    // Field 2 with the message {1: true, 2: "x"}.
    let bytes = [0x12, 5, 0x08, 1, 0x12, 1, b'x'];
    let stats =
        csi::NodeGetVolumeStatsResponse { volume_condition: Some(condition.clone()).into(), ..Default::default() };
    assert_eq!(stats.write_to_bytes().unwrap(), bytes);
    let status = csi::list_volumes_response::VolumeStatus {
        volume_condition: Some(condition.clone()).into(),
        ..Default::default()
    };
    assert_eq!(status.write_to_bytes().unwrap(), bytes);
    let status = csi::controller_get_volume_response::VolumeStatus {
        volume_condition: Some(condition).into(),
        ..Default::default()
    };
    assert_eq!(status.write_to_bytes().unwrap(), bytes);
    assert_eq!(VolumeHealthErrorType::INACCESSIBLE as i32, 2);
    // And the capability is promised by its old number: Nomad and Kubernetes ask by it.
    let fleet = ControllerHarness::with_actions(Duration::from_millis(20));
    let plugin = controller(&fleet);
    let option = crate::support::client::option();
    let reply = plugin.client.controller.controller_get_capabilities_opt(&Default::default(), option).unwrap();
    let numbers: Vec<i32> = reply.capabilities.iter().map(|capability| capability.rpc().type_.value()).collect();
    for number in [11, 16, 17] {
        assert!(numbers.contains(&number), "{numbers:?}");
    }
}
