//! Controller calls on a cloud that works: what they answer, what they leave behind, what they cost.

use std::path::Path;
use std::time::{Duration, Instant};

use do_csi_plugin::proto::csi;
use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{DropletSpec, Fault, NewVolume, Refusal as Said, Rules, Times};
use crate::support::client::{Client, Refusal, Volume, new_volume, option, text_map};
use crate::support::controllers::{A, ACTION, B, ControllerHarness, no_rate_limit};
use crate::support::plugin::Plugin;

const NOWHERE: &str = "ffffffff-8f00-11f0-9a11-0a58ac14d1e2";

fn started() -> (ControllerHarness, Plugin) {
    started_with(&["--call-budget=10"])
}

fn started_with(args: &[&str]) -> (ControllerHarness, Plugin) {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", args);
    (fleet, plugin)
}

fn publish(client: &Client, id: &str, droplet: u64) -> Result<(), (RpcStatusCode, String)> {
    let mut volume = Volume::mounted(id, "ext4");
    client.controller_publish(&mut volume, &droplet.to_string()).map_err(|refusal| (refusal.code, refusal.message))
}

#[test]
fn unpublish_is_done_wherever_the_volume_is_not() {
    let (fleet, plugin) = started();
    let free = fleet.volume("free");
    let elsewhere = fleet.volume_on("elsewhere", B);
    let actions = fleet.sim.actions().len();
    let a = A.to_string();
    for (volume, node) in [
        (NOWHERE, a.as_str()),
        (NOWHERE, ""),
        ("no-uuid-at-all", a.as_str()),
        (free.as_str(), a.as_str()),
        (free.as_str(), "999"),
        (free.as_str(), "not-a-number"),
        (free.as_str(), ""),
        (elsewhere.as_str(), a.as_str()),
        (elsewhere.as_str(), "not-a-number"),
    ] {
        assert_eq!(plugin.client.controller_unpublish(volume, node), Ok(()), "{volume} {node}");
    }
    assert_eq!(fleet.sim.attached_to("elsewhere"), Some(B));
    assert_eq!(fleet.sim.actions().len(), actions, "something was detached");
}

#[test]
fn unpublish_without_a_node_detaches_from_wherever_it_is() {
    let (fleet, plugin) = started();
    let id = fleet.volume_on("one", B);
    assert_eq!(plugin.client.controller_unpublish(&id, ""), Ok(()));
    assert_eq!(fleet.sim.attached_to("one"), None);
    // Also one whose attach is still running and does not show yet.
    fleet.sim.change_rules(|rules| rules.times.attach = Duration::from_millis(300));
    fleet.sim.attach(&id, A).unwrap();
    assert_eq!(plugin.client.controller_unpublish(&id, ""), Ok(()));
    fleet.rest();
    assert_eq!(fleet.sim.attached_to("one"), None);
}

#[test]
fn unpublish_is_done_when_the_droplet_is_destroyed() {
    let (fleet, plugin) = started();
    let id = fleet.volume_on("one", A);
    fleet.sim.change_rules(|rules| rules.times.detach = Duration::from_millis(500));
    fleet.sim.destroy_droplet(A);
    assert_eq!(plugin.client.controller_unpublish(&id, &A.to_string()), Ok(()));
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
    assert_eq!(fleet.sim.attached_to("one"), Some(B));
}

#[test]
fn an_attached_volume_is_not_deleted_and_a_missing_one_is_deleted_already() {
    let (fleet, plugin) = started();
    let id = fleet.volume_on("one", A);
    let refusal = plugin.client.delete_volume(&id).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::FAILED_PRECONDITION);
    assert!(refusal.message.contains(&id) && refusal.message.contains(&A.to_string()), "{refusal}");
    assert!(fleet.sim.volume("one").is_some());
    for gone in [NOWHERE, "no-uuid-at-all"] {
        assert_eq!(plugin.client.delete_volume(gone), Ok(()), "{gone}");
    }
    plugin.client.controller_unpublish(&id, &A.to_string()).unwrap();
    for _ in 0..2 {
        assert_eq!(plugin.client.delete_volume(&id), Ok(()));
    }
    assert!(fleet.sim.volume("one").is_none());
}

#[test]
fn publish_says_what_does_not_exist_and_what_is_full() {
    let (fleet, plugin) = started();
    let id = fleet.volume("one");
    for (volume, droplet) in [(NOWHERE, A), (id.as_str(), 999)] {
        let (code, message) = publish(&plugin.client, volume, droplet).unwrap_err();
        assert_eq!(code, RpcStatusCode::NOT_FOUND, "{message}");
    }
    fleet.sim.change_rules(|rules| rules.switches.unknown_droplet_is_422 = true);
    assert_eq!(publish(&plugin.client, &id, 999).unwrap_err().0, RpcStatusCode::NOT_FOUND);
    fleet.sim.change_rules(|rules| rules.limits.attach = 1);
    fleet.volume_on("other", A);
    let (code, message) = publish(&plugin.client, &id, A).unwrap_err();
    assert_eq!(code, RpcStatusCode::RESOURCE_EXHAUSTED, "{message}");
    assert_eq!(fleet.sim.attached_to("one"), None);
}

#[test]
fn a_volume_of_another_region_than_the_droplets_is_refused_at_once_and_both_are_named() {
    let fleet = ControllerHarness::in_regions(&["fra1", "nyc1"]);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=10"]);
    let id = fleet.sim.add_volume(&NewVolume::new("far-away", 1, "nyc1")).unwrap();
    fleet.sim.reset_calls();
    let (code, message) = publish(&plugin.client, &id, A).unwrap_err();
    // A code after which Nomad fails the allocation, with the message in its events, instead of trying for a day.
    assert_eq!(code, RpcStatusCode::INVALID_ARGUMENT, "{message}");
    for part in ["far-away", &id, "nyc1", "fra1", &A.to_string(), "constraint"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    let calls = fleet.sim.calls();
    assert!(calls.total() <= 3, "{calls}");
    assert_eq!((fleet.sim.attached_to(&id), fleet.sim.actions().len()), (None, 0));
    let there = DropletSpec::new(4_000_001, "node-n", "nyc1");
    fleet.sim.add_droplet(&there).unwrap();
    assert_eq!(publish(&plugin.client, &id, there.id), Ok(()));
}

#[test]
fn a_full_droplet_that_has_the_volume_by_a_lost_attach_is_no_refusal() {
    let (fleet, plugin) = started();
    let id = fleet.volume("one");
    fleet.sim.change_rules(|rules| rules.times.attach = Duration::from_millis(400));
    let attach = || ("POST", "/v2/volumes/{id}/actions");
    fleet.sim.faults().add(Fault::lost_reply().on(attach().0, attach().1));
    fleet.sim.faults().add(Fault::refused(crate::sim::Refusal::ATTACH_LIMIT).on(attach().0, attach().1).times(5));
    assert_eq!(publish(&plugin.client, &id, A), Ok(()));
    assert_eq!(fleet.sim.attached_to("one"), Some(A));
}

#[test]
fn the_calls_of_every_change_are_few() {
    let (fleet, plugin) = started();
    let client = &plugin.client;
    let spent = |what: &str, most: u64, change: &dyn Fn()| {
        fleet.sim.reset_calls();
        change();
        let calls = fleet.sim.calls();
        assert!(calls.total() <= most, "{what} took more than {most} calls:\n{calls}");
        assert_eq!(calls.of("GET", "/v2/droplets/{droplet_id}"), 0, "{what} looked at a droplet");
    };
    let capability = Volume::mounted("", "ext4").capability;
    let id = client.create_volume("one", 1 << 30, &capability).unwrap().volume_id;
    // The first actions of a process teach it how long they take.
    for _ in 0..5 {
        publish(client, &id, A).unwrap();
        client.controller_unpublish(&id, &A.to_string()).unwrap();
    }
    spent("create", 2, &|| drop(client.create_volume("two", 1 << 30, &capability).unwrap()));
    // A list may still show a volume that is gone, so its own record is read before it is adopted.
    spent("create again", 3, &|| drop(client.create_volume("two", 1 << 30, &capability).unwrap()));
    spent("publish", 5, &|| publish(client, &id, A).unwrap());
    spent("publish again", 2, &|| publish(client, &id, A).unwrap());
    spent("unpublish", 4, &|| client.controller_unpublish(&id, &A.to_string()).unwrap());
    spent("unpublish again", 3, &|| client.controller_unpublish(&id, &A.to_string()).unwrap());
    // What made a volume is read before it is deleted, and what is gone is looked for in two places.
    spent("delete", 2, &|| client.delete_volume(&id).unwrap());
    spent("delete again", 3, &|| client.delete_volume(&id).unwrap());
}

#[test]
fn the_kinds_of_429_are_told_apart() {
    let (fleet, plugin) = started_with(&["--call-budget=3"]);
    let capability = Volume::mounted("", "ext4").capability;
    let create = |name: &str| plugin.client.create_volume(name, 1 << 30, &capability);
    for is_429 in [false, true] {
        fleet.sim.change_rules(|rules| (rules.limits.volumes, rules.switches.quota_is_429) = (1, is_429));
        drop(create("first"));
        let refusal = create("second").unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::RESOURCE_EXHAUSTED, "{refusal}");
        assert!(refusal.message.contains("capacity limit"), "{refusal}");
    }
    fleet.sim.change_rules(|rules| rules.limits.volumes = 100);
    fleet.sim.faults().add(Fault::burst_limit(Duration::from_secs(1)));
    let asked = Instant::now();
    create("third").unwrap();
    assert!(asked.elapsed() >= Duration::from_secs(1), "the wait was not kept");
    // Longer than the call may last: it ends at once, and tells how long.
    fleet.sim.faults().add(Fault::burst_limit(Duration::from_secs(55)));
    let (asked, refusal) = (Instant::now(), create("fourth").unwrap_err());
    assert_eq!(refusal.code, RpcStatusCode::UNAVAILABLE, "{refusal}");
    assert!(asked.elapsed() < Duration::from_secs(25) && refusal.message.contains("429"), "{refusal}");
}

#[test]
fn a_publish_without_time_left_says_what_it_waited_for_in_the_code_that_nomad_repeats() {
    let (fleet, plugin) = started_with(&["--call-budget=1"]);
    let id = fleet.volume("one");
    fleet.sim.hold_pending_event(A, Duration::from_secs(600));
    let (code, message) = publish(&plugin.client, &id, A).unwrap_err();
    assert_eq!(code, RpcStatusCode::FAILED_PRECONDITION, "{message}");
    assert!(message.contains("pending event") && message.contains(&id), "{message}");
    fleet.sim.faults().add(Fault::burst_limit(Duration::from_secs(55)));
    let (code, message) = publish(&plugin.client, &id, A).unwrap_err();
    assert_eq!(code, RpcStatusCode::FAILED_PRECONDITION, "{message}");
    assert!(message.contains("429"), "{message}");
}

#[test]
fn a_new_volume_can_be_attached_at_once_although_digitalocean_shows_it_late() {
    let (fleet, plugin) = started();
    fleet.sim.change_rules(|rules| rules.times.create_visible_after = Duration::from_millis(500));
    let capability = Volume::mounted("", "ext4").capability;
    let made = plugin.client.create_volume("one", 1 << 30, &capability).unwrap();
    assert_eq!(publish(&plugin.client, &made.volume_id, A), Ok(()));
}

#[test]
fn a_name_may_have_tabs_and_line_breaks_and_no_two_such_names_share_a_volume_or_snapshot() {
    let (fleet, plugin) = started();
    let (client, capability) = (&plugin.client, Volume::mounted("", "ext4").capability);
    let names = ["a b", "a\tb", "a\nb", "a\rb", "a\r\nb", "a\\nb", "\n"];
    let create = |name: &str| client.create_volume(name, 1 << 30, &capability).unwrap().volume_id;
    let made = names.map(create);
    assert_eq!(names.map(create), made, "a second call did not find what the first had made");
    assert_eq!(fleet.sim.volumes().len(), names.len());
    let taken = std::array::from_fn::<_, 7, _>(|at| client.create_snapshot(names[at], &made[at]).unwrap().snapshot_id);
    assert_eq!(fleet.sim.snapshots().len(), names.len());
    let again = std::array::from_fn::<_, 7, _>(|at| client.create_snapshot(names[at], &made[at]).unwrap().snapshot_id);
    assert_eq!(taken, again);
    let log = plugin.log();
    assert!(log.lines().all(|line| line.starts_with("20")), "a name forged a line of the log: {log}");
}

/// A request for a volume for which each of these topologies would do.
fn new_volume_in(name: &str, requisite: &[&[(&str, &str)]]) -> csi::CreateVolumeRequest {
    let topology = |segments: &&[(&str, &str)]| csi::Topology { segments: text_map(segments), ..Default::default() };
    let requisite = requisite.iter().map(topology).collect();
    csi::CreateVolumeRequest {
        accessibility_requirements: Some(csi::TopologyRequirement { requisite, ..Default::default() }).into(),
        ..new_volume(name, 1 << 30)
    }
}

#[test]
fn one_topology_that_can_be_had_is_enough() {
    let (fleet, plugin) = started();
    let (ours, elsewhere, foreign) = ([("region", "fra1")], [("region", "nyc1")], [("zone", "a")]);
    for (name, requisite) in
        [("one", [&foreign[..], &ours[..]]), ("two", [&ours[..], &foreign[..]]), ("three", [&elsewhere[..], &ours[..]])]
    {
        let made = plugin.client.create(&new_volume_in(name, &requisite)).unwrap();
        assert_eq!(made.accessible_topology.len(), 1);
        assert_eq!(made.accessible_topology[0].segments, text_map(&ours));
        assert_eq!(fleet.sim.volume(name).unwrap().region, "fra1");
    }
    let refusal = plugin.client.create(&new_volume_in("four", &[&foreign, &elsewhere])).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::RESOURCE_EXHAUSTED, "{refusal}");
    let refusal = plugin.client.create(&new_volume_in("four", &[&foreign, &foreign])).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::INVALID_ARGUMENT, "{refusal}");
    assert!(fleet.sim.volume("four").is_none());
}

#[test]
fn a_volume_is_created_once_by_however_many_plugins() {
    let mut rules = Rules { times: Times::actions(ACTION), limits: no_rate_limit(), ..Rules::default() };
    rules.times.create_visible_after = Duration::from_millis(200);
    let fleet = ControllerHarness::with(rules);
    let plugins = ["one", "two", "three"].map(|name| fleet.controller(Path::new(PROGRAM), name, &["--call-budget=10"]));
    let capability = Volume::mounted("", "ext4").capability;
    fleet.sim.faults().add(Fault::lost_reply().on("POST", "/v2/volumes").times(2));
    let made: Vec<_> = std::thread::scope(|scope| {
        let create = |plugin: &Plugin| plugin.client.create_volume("redis[0]", 1 << 30, &capability).unwrap().volume_id;
        let threads: Vec<_> = plugins.iter().map(|plugin| scope.spawn(move || create(plugin))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(fleet.sim.volumes().len(), 1);
    assert!(made.iter().all(|id| *id == fleet.sim.volumes()[0].id), "{made:?}");
}

#[test]
fn tags_and_description_reach_the_cloud_and_settings_come_back_as_context() {
    let (fleet, plugin) = started_with(&["--call-budget=10", "--do-tag=cluster:7"]);
    let settings = [("dobs.csi.digitalocean.com/owner", "1000"), ("com.digitalocean.csi/noformat", "true")];
    let parameters = [&[("tags", "a, b,a"), ("description", "Ein Blog"), ("type", "fast")], &settings[..]].concat();
    let mutable = text_map(&[("tags", "b,late")]);
    let request = csi::CreateVolumeRequest {
        parameters: text_map(&parameters),
        mutable_parameters: mutable,
        ..new_volume("Blog", 1 << 30)
    };
    let made = plugin.client.create(&request).unwrap();
    assert_eq!(made.volume_context, text_map(&settings));
    let volume = fleet.sim.volume(&made.volume_id).unwrap();
    let description = r#"Created by DigitalOcean CSI driver for "Blog" owned by "cluster:7": Ein Blog"#;
    assert_eq!(volume.description, description);
    assert_eq!(volume.tags, ["cluster:7", "a", "b", "late"]);

    plugin.client.modify(&made.volume_id, &[("tags", "new"), ("remove-tags", "a,absent")]).unwrap();
    assert_eq!(fleet.sim.volume(&made.volume_id).unwrap().tags, ["cluster:7", "b", "late", "new"]);
    // A repetition of the creation finds the volume, whatever became of its tags.
    assert_eq!(plugin.client.create(&request).unwrap().volume_id, made.volume_id);

    let request = csi::CreateSnapshotRequest {
        name: "nightly".to_owned(),
        source_volume_id: made.volume_id.clone(),
        parameters: text_map(&[("tags", "keep"), ("other", "x")]),
        ..Default::default()
    };
    plugin.client.controller.create_snapshot_opt(&request, option()).unwrap();
    assert_eq!(fleet.sim.snapshots()[0].tags, ["cluster:7", "do-csi:cluster:7", "keep"]);
}

#[test]
fn names_that_nobody_reads_are_told_of_once_for_each_volume_and_those_of_kubernetes_never() {
    let (_fleet, plugin) = started_with(&["--call-budget=10"]);
    let parameters = [
        ("colour", "blue"),
        ("labels", "a"),
        ("fsType", "ext4"),
        ("tags", "a"),
        ("csi.storage.k8s.io/pvc/name", "data"),
        ("storage.kubernetes.io/csiProvisionerIdentity", "x"),
    ];
    for name in ["one", "two", "one"] {
        let request = csi::CreateVolumeRequest { parameters: text_map(&parameters), ..new_volume(name, 1 << 30) };
        plugin.client.create(&request).unwrap();
    }
    let log = plugin.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("has no effect")).collect();
    assert_eq!(told.len(), 4, "{told:#?}");
    for name in ["one", "two"] {
        let of_volume = |words: &str| {
            told.iter().filter(|line| line.ends_with(&format!("volume={name}")) && line.contains(words)).count()
        };
        assert_eq!((of_volume("\"colour\""), of_volume("did you mean \"dobs.csi.digitalocean.com/label\"")), (1, 1));
    }
}

fn capacity(client: &Client, segments: &[(&str, &str)]) -> csi::GetCapacityResponse {
    let topology = csi::Topology { segments: text_map(segments), ..Default::default() };
    let request = csi::GetCapacityRequest { accessible_topology: Some(topology).into(), ..Default::default() };
    client.controller.get_capacity_opt(&request, option()).unwrap()
}

#[test]
fn there_is_room_for_the_largest_volume_until_the_account_has_all_it_may() {
    let (fleet, plugin) = started_with(&["--call-budget=10", "--max-volume-size=2048"]);
    fleet.sim.change_rules(|rules| rules.limits.volumes = 2);
    for room in [2048_i64 << 30, 2048 << 30, 0] {
        let told = capacity(&plugin.client, &[("region", "fra1")]);
        assert_eq!(told.available_capacity, room);
        assert_eq!((told.minimum_volume_size.value, told.maximum_volume_size.value), (1 << 30, 2048 << 30));
        if room > 0 {
            fleet.volume(&format!("volume-{}", fleet.sim.volumes().len()));
        }
    }
    fleet.sim.change_rules(|rules| rules.limits.volumes = 0);
    assert_eq!(capacity(&plugin.client, &[]).available_capacity, 2048 << 30, "0 is no limit");
    for elsewhere in [("region", "nyc1"), ("zone", "a")] {
        assert_eq!(capacity(&plugin.client, &[elsewhere]).available_capacity, 0, "{elsewhere:?}");
    }
}

#[test]
fn an_account_that_is_not_found_is_not_told_as_a_volume_that_is_not() {
    let (fleet, plugin) = started();
    fleet.sim.faults().add(Fault::refused(Said::NOT_FOUND).on("GET", "/v2/account").always());
    let asked = plugin.client.controller.get_capacity_opt(&csi::GetCapacityRequest::default(), option());
    let refusal = Refusal::from(asked.unwrap_err());
    assert_eq!(refusal.code, RpcStatusCode::INTERNAL, "{refusal}");
}

#[test]
fn a_droplet_has_a_volume_for_reading_and_for_writing_at_once_only_with_mixed_access() {
    for is_mixed in [false, true] {
        let (fleet, plugin) =
            started_with(&[&["--call-budget=10"], &["--mixed-access"][usize::from(!is_mixed)..]].concat());
        let id = fleet.volume("one");
        let publish = |readonly: bool| {
            let request = csi::ControllerPublishVolumeRequest {
                volume_id: id.clone(),
                node_id: A.to_string(),
                volume_capability: Some(Volume::mounted("", "ext4").capability).into(),
                readonly,
                ..Default::default()
            };
            plugin.client.controller.controller_publish_volume_opt(&request, option()).map_err(Refusal::from)
        };
        let key = "dobs.csi.digitalocean.com/read-only";
        assert!(!publish(false).unwrap().publish_context.contains_key(key));
        match publish(true) {
            Ok(reply) if is_mixed => assert_eq!(reply.publish_context[key], "true"),
            Err(refusal) if !is_mixed => {
                assert_eq!(refusal.code, RpcStatusCode::ALREADY_EXISTS, "{refusal}");
                assert!(refusal.message.contains("--mixed-access"), "{refusal}");
            }
            outcome => panic!("mixed access {is_mixed}: {outcome:?}"),
        }
        assert_eq!(fleet.sim.attached_to("one"), Some(A));
        assert_eq!(fleet.sim.actions().len(), 1, "mixed access {is_mixed}");
    }
}
