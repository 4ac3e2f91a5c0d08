//! "Not found" is not "gone": what it takes for a volume, a snapshot or a droplet to count as not existing, and what is left
//! alone until then.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{ActionFault, ActionKind, DropletSpec, DropletStatus, Fault, Refusal, SimConfig};
use crate::support::client::{Outcome, publish, unpublish};
use crate::support::controllers::{A, ACTION, B, ControllerHarness};
use crate::support::plugin::Plugin;
use crate::support::single_plugin::{DROPLET, SinglePlugin, until};

const ACT: (&str, &str) = ("POST", "/v2/volumes/{id}/actions");
const DROPLET_RECORD: (&str, &str) = ("GET", "/v2/droplets/{droplet_id}");
const VOLUME_RECORD: (&str, &str) = ("GET", "/v2/volumes/{id}");
const DELETE: (&str, &str) = ("DELETE", "/v2/volumes/{id}");
const SNAPSHOT_RECORD: (&str, &str) = ("GET", "/v2/volumes/snapshots/{id}");
const ANY_SNAPSHOT: (&str, &str) = ("GET", "/v2/snapshots/{snapshot_id}");
const DELETE_SNAPSHOT: (&str, &str) = ("DELETE", "/v2/volumes/snapshots/{id}");
const GONE: &str = "ffffffff-8f00-11f0-9a11-0a58ac14d1e2";
/// Of another account than the plugin's droplet.
const OTHER_TOKEN: &str = "dop_v1_of_another_team";

/// All waits of a call are parts of this; a droplet that is gone is believed to be after a second.
const BUDGET: &str = "--call-budget=10";

fn started() -> (ControllerHarness, Plugin) {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &[BUDGET]);
    (fleet, plugin)
}

#[track_caller]
fn assert_ended<T: std::fmt::Debug>(outcome: Outcome<T>, code: RpcStatusCode, words: &str) {
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.message.contains(words), "{words:?} is not in: {refusal}");
}

#[test]
fn a_running_droplet_that_is_not_found_for_a_while_keeps_its_volume() {
    // By its own record for two looks, for all looks, and by no route at all.
    for fault in [Fault::not_found().times(2), Fault::not_found().always(), Fault::no_route_at_gateway().times(2)] {
        let (fleet, plugin) = started();
        let id = fleet.volume_on("one", A);
        fleet.sim.faults().add(fault.on(DROPLET_RECORD.0, DROPLET_RECORD.1));
        let detaches = fleet.sim.actions().len();
        assert_ended(publish(&plugin.client, &id, B), RpcStatusCode::FAILED_PRECONDITION, "is attached to droplet");
        assert_eq!(fleet.sim.attached_to(&id), Some(A));
        assert_eq!(fleet.sim.actions().len(), detaches, "something was detached");
    }
}

#[test]
fn a_gateway_without_a_route_takes_no_volume_from_a_droplet() {
    let (fleet, plugin) = started();
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add(Fault::no_route_at_gateway().on(DROPLET_RECORD.0, DROPLET_RECORD.1).always());
    assert_ended(publish(&plugin.client, &id, B), RpcStatusCode::FAILED_PRECONDITION, "no Route matched");
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
}

#[test]
fn a_droplet_with_a_gpu_is_looked_for_in_the_list_that_has_it() {
    const GPU: u64 = 3_000_009;
    let (fleet, plugin) = started();
    fleet.sim.add_droplet(&DropletSpec { has_gpu: true, ..DropletSpec::new(GPU, "gpu", "fra1") }).unwrap();
    let id = fleet.volume_on("one", GPU);
    fleet.sim.faults().add(Fault::not_found().on(DROPLET_RECORD.0, DROPLET_RECORD.1).always());
    assert_ended(publish(&plugin.client, &id, B), RpcStatusCode::FAILED_PRECONDITION, "is attached to droplet");
    assert_eq!(fleet.sim.attached_to(&id), Some(GPU));
}

#[test]
fn a_destroyed_droplet_loses_its_volume_after_the_time_that_one_which_is_off_gets() {
    let (fleet, plugin) = started();
    let id = fleet.volume_on("one", A);
    // DigitalOcean's own detach comes to nothing.
    fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach));
    fleet.sim.destroy_droplet(A);
    fleet.rest();
    let asked = Instant::now();
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
    assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(fleet.sim.attached_to(&id), Some(B));
}

#[test]
fn a_droplets_record_that_is_old_does_not_make_an_attached_volume_detached() {
    let fleet = ControllerHarness::with_actions(ACTION);
    // What is not shown is waited for six seconds, which is longer than the record is old.
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=60"]);
    let id = fleet.volume("one");
    fleet.sim.faults().add_action(ActionFault::droplet_record_late(Duration::from_secs(5)).of(ActionKind::Attach));
    publish(&plugin.client, &id, A).unwrap();
    fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach).times(2));
    assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
    assert_eq!(fleet.sim.attached_to(&id), None);
}

#[test]
fn a_volume_that_the_list_has_is_not_gone() {
    for fault in [Fault::not_found(), Fault::no_route_at_gateway()] {
        let fleet = ControllerHarness::with_actions(ACTION);
        let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=3"]);
        let id = fleet.volume_on("one", A);
        for (method, pattern) in [ACT, VOLUME_RECORD, DELETE] {
            fleet.sim.faults().add(fault.clone().on(method, pattern).always());
        }
        assert_ended(unpublish(&plugin.client, &id, A), RpcStatusCode::UNAVAILABLE, &id);
        assert_ended(plugin.client.delete_volume(&id), RpcStatusCode::UNAVAILABLE, &id);
        fleet.sim.faults().clear();
        assert_eq!(fleet.sim.attached_to(&id), Some(A));
        publish(&plugin.client, &id, A).unwrap();
    }
}

#[test]
fn a_list_that_lacks_an_entry_or_has_one_that_cannot_be_read_makes_nothing_gone() {
    for (volumes, droplets) in [("", ""), (r#"{"id":null}"#, r#"{"id":"x"}"#)] {
        let fleet = ControllerHarness::with_actions(ACTION);
        let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=5"]);
        let id = fleet.volume_on("one", A);
        let list = |name: &str, entries: &str| {
            let body = format!(r#"{{"{name}":[{entries}],"links":{{}},"meta":{{"total":3}}}}"#);
            Fault::answered(200, "application/json", &body).always()
        };
        let faults = fleet.sim.faults();
        faults.add(Fault::not_found().on(DROPLET_RECORD.0, DROPLET_RECORD.1).always());
        faults.add(list("droplets", droplets).on("GET", "/v2/droplets"));
        assert_ended(publish(&plugin.client, &id, B), RpcStatusCode::FAILED_PRECONDITION, "lacks entries");
        faults.clear();
        for (method, pattern) in [ACT, VOLUME_RECORD, DELETE] {
            faults.add(Fault::not_found().on(method, pattern).always());
        }
        faults.add(list("volumes", volumes).on("GET", "/v2/volumes"));
        assert_ended(unpublish(&plugin.client, &id, A), RpcStatusCode::UNAVAILABLE, "lacks entries");
        assert_ended(plugin.client.delete_volume(&id), RpcStatusCode::UNAVAILABLE, "lacks entries");
        fleet.sim.faults().clear();
        assert_eq!(fleet.sim.attached_to(&id), Some(A));
    }
}

#[test]
fn a_gateway_that_has_lost_every_route_makes_nothing_gone_and_changes_nothing() {
    let bodies = [
        ("application/json", r#"{"message":"no Route matched with those values"}"#),
        ("text/html", "<html><head><title>404 Not Found</title></head><body>nginx</body></html>"),
        ("text/plain", ""),
        ("application/json", r#"{"id":"not_found"}"#),
        ("application/json", r#"{"error":{"id":"not_found","message":"The resource could not be found."}}"#),
    ];
    for (content_type, body) in bodies {
        let fleet = ControllerHarness::with_actions(ACTION);
        let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=3"]);
        let volumes =
            ["published", "unpublished", "anywhere", "deleted", "taken", "grown"].map(|name| fleet.volume_on(name, A));
        let free = fleet.volume("free");
        let snapshot = fleet.sim.create_snapshot(&volumes[0], "nightly").unwrap();
        // One that is off loses its volumes at the next attach; whether it is, nobody can tell now.
        fleet.sim.set_droplet_status(A, DropletStatus::Off);
        fleet.sim.faults().add(Fault::answered(404, content_type, body).always());
        let (actions, client) = (fleet.sim.actions().len(), &plugin.client);
        let [published, unpublished, anywhere, deleted, taken, grown] = &volumes;
        let calls: [Box<dyn FnOnce() -> Outcome<()> + Send>; 10] = [
            Box::new(|| publish(client, published, B)),
            Box::new(|| publish(client, &free, B)),
            Box::new(|| unpublish(client, unpublished, A)),
            Box::new(|| client.controller_unpublish(anywhere, "")),
            Box::new(|| client.delete_volume(deleted)),
            Box::new(|| client.delete_volume(GONE)),
            Box::new(|| client.delete_snapshot(&snapshot)),
            Box::new(|| client.create_snapshot("new", taken).map(drop)),
            Box::new(|| client.expand(grown, 2 << 30).map(drop)),
            Box::new(|| client.get_volume(GONE).map(drop)),
        ];
        std::thread::scope(|scope| {
            let running: Vec<_> = calls.into_iter().map(|call| scope.spawn(call)).collect();
            for (number, call) in running.into_iter().enumerate() {
                let refusal = call.join().unwrap().unwrap_err();
                // A publish is answered so that Nomad comes again.
                let wanted = if number < 2 { RpcStatusCode::FAILED_PRECONDITION } else { RpcStatusCode::UNAVAILABLE };
                assert_eq!(refusal.code, wanted, "{number}, {body:?}: {refusal}");
                assert!(refusal.message.contains("gave up waiting"), "{number}, {body:?}: {refusal}");
            }
        });
        fleet.sim.faults().clear();
        assert!(volumes.iter().all(|id| fleet.sim.attached_to(id) == Some(A)), "{body:?}");
        assert_eq!((fleet.sim.actions().len(), fleet.sim.volumes().len()), (actions, 7), "{body:?}");
        assert_eq!(fleet.sim.snapshots().len(), 1, "{body:?}");
    }
}

#[test]
fn a_moment_in_which_a_volume_is_not_found_fails_no_call() {
    let (fleet, plugin) = started();
    let id = fleet.volume("one");
    fleet.sim.faults().add(Fault::not_found().on(VOLUME_RECORD.0, VOLUME_RECORD.1));
    assert_eq!(publish(&plugin.client, &id, A), Ok(()));
    fleet.sim.faults().add(Fault::not_found().on(ACT.0, ACT.1));
    fleet.sim.faults().add(Fault::not_found().on(VOLUME_RECORD.0, VOLUME_RECORD.1).times(2));
    assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
    assert_eq!(fleet.sim.attached_to(&id), None);
    fleet.sim.faults().add(Fault::not_found().on(VOLUME_RECORD.0, VOLUME_RECORD.1));
    fleet.sim.faults().add(Fault::not_found().on(DELETE.0, DELETE.1));
    assert_eq!(plugin.client.delete_volume(&id), Ok(()));
    assert!(fleet.sim.volume(&id).is_none(), "it was taken for deleted");
    assert_eq!(fleet.sim.faults().outstanding(), 0);
}

#[test]
fn a_snapshot_that_another_path_has_is_not_gone() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=3"]);
    let volume = fleet.volume("one");
    let id = fleet.sim.create_snapshot(&volume, "nightly").unwrap();
    for fault in [Fault::not_found(), Fault::no_route_at_gateway()] {
        for (method, pattern) in [SNAPSHOT_RECORD, DELETE_SNAPSHOT] {
            fleet.sim.faults().add(fault.clone().on(method, pattern).always());
        }
        assert_ended(plugin.client.delete_snapshot(&id), RpcStatusCode::UNAVAILABLE, &id);
        fleet.sim.faults().clear();
    }
    for _ in 0..2 {
        assert_eq!(plugin.client.delete_snapshot(&id), Ok(()));
    }
    assert_eq!(fleet.sim.snapshots(), []);
}

#[test]
fn a_snapshot_that_is_gone_is_deleted_also_where_the_other_path_refuses_to_tell() {
    let (fleet, plugin) = started();
    let volume = fleet.volume("one");
    let id = fleet.sim.create_snapshot(&volume, "nightly").unwrap();
    for refusal in [Refusal::NOT_A_SNAPSHOT, Refusal::FORBIDDEN] {
        fleet.sim.faults().clear();
        fleet.sim.faults().add(Fault::refused(refusal).on(ANY_SNAPSHOT.0, ANY_SNAPSHOT.1).always());
        assert_eq!(plugin.client.delete_snapshot(GONE), Ok(()), "{refusal:?}");
        // Where that path is closed, two wrong answers make nothing gone.
        if refusal == Refusal::FORBIDDEN {
            fleet.sim.faults().add(Fault::not_found().on(SNAPSHOT_RECORD.0, SNAPSHOT_RECORD.1).times(2));
            assert_eq!(plugin.client.delete_snapshot(&id), Ok(()));
            assert_eq!(fleet.sim.snapshots(), []);
        }
    }
}

#[test]
fn a_token_of_another_account_makes_nothing_gone() {
    let other_token = Some(OTHER_TOKEN.to_owned());
    let solo = SinglePlugin::with(PROGRAM, SimConfig { other_token, ..SimConfig::default() });
    let token = format!("--token={OTHER_TOKEN}");
    let mut launch = solo.launch(&[BUDGET, &token]);
    launch.command.env_remove("DIGITALOCEAN_ACCESS_TOKEN");
    let plugin = launch.start().unwrap();
    until("the droplet is known", || plugin.client.node_info().is_ok());
    let words = format!("does not see droplet {DROPLET}");
    assert_ended(plugin.client.delete_volume(GONE), RpcStatusCode::UNAUTHENTICATED, &words);
    assert_ended(plugin.client.delete_snapshot(GONE), RpcStatusCode::UNAUTHENTICATED, &words);
    for node in [DROPLET.to_string(), String::new()] {
        let detached = plugin.client.controller_unpublish(GONE, &node);
        assert_ended(detached, RpcStatusCode::UNAUTHENTICATED, &words);
    }
    assert_ended(publish(&plugin.client, GONE, DROPLET), RpcStatusCode::UNAUTHENTICATED, &words);
}

#[test]
fn as_long_as_it_is_not_known_whose_the_token_is_nothing_is_gone() {
    let other_token = Some(OTHER_TOKEN.to_owned());
    let solo = SinglePlugin::with(PROGRAM, SimConfig { other_token, ..SimConfig::default() });
    let token = format!("--token={OTHER_TOKEN}");
    let start = |more: &[String]| {
        let mut launch = solo.launch(&[BUDGET, &token]);
        launch.command.env_remove("DIGITALOCEAN_ACCESS_TOKEN");
        launch.args.retain(|arg| !arg.starts_with("--metadata-url="));
        launch.args.extend(["--metadata-url=http://127.0.0.1:1".to_owned()].into_iter().chain(more.iter().cloned()));
        launch.start().unwrap()
    };
    let plugin = start(&[]);
    let words = "not known yet which droplet this is";
    assert_ended(plugin.client.delete_volume(GONE), RpcStatusCode::UNAVAILABLE, words);
    assert_ended(unpublish(&plugin.client, GONE, DROPLET), RpcStatusCode::UNAVAILABLE, words);
    drop(plugin);
    // The operator's word for the droplet is enough, whether the region is known or not.
    let plugin = start(&[format!("--droplet-id={DROPLET}")]);
    let words = format!("does not see droplet {DROPLET}");
    assert_ended(plugin.client.delete_volume(GONE), RpcStatusCode::UNAUTHENTICATED, &words);
}

#[test]
fn what_is_gone_for_the_right_token_is_gone() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[BUDGET]).start().unwrap();
    until("the droplet is known", || plugin.client.node_info().is_ok());
    assert_eq!(plugin.client.delete_volume(GONE), Ok(()));
    assert_eq!(plugin.client.delete_snapshot(GONE), Ok(()));
    assert_eq!(unpublish(&plugin.client, GONE, DROPLET), Ok(()));
    assert_ended(publish(&plugin.client, GONE, DROPLET), RpcStatusCode::NOT_FOUND, GONE);
    // A token without the scope for droplets cannot be told from a right one.
    solo.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on(DROPLET_RECORD.0, DROPLET_RECORD.1).always());
    assert_eq!(plugin.client.delete_volume(GONE), Ok(()));
    // One that is not valid any more tells nothing.
    solo.sim.faults().clear();
    solo.sim.faults().add(Fault::refused(Refusal::UNAUTHORIZED).on(DROPLET_RECORD.0, DROPLET_RECORD.1).always());
    assert_ended(plugin.client.delete_volume(GONE), RpcStatusCode::UNAUTHENTICATED, "");
}

#[test]
fn a_volume_of_a_droplet_that_has_just_been_destroyed_is_deleted_when_digitalocean_lets_go_of_it() {
    let (fleet, plugin) = started();
    let id = fleet.volume_on("one", A);
    fleet.sim.change_rules(|rules| rules.times.destroyed_release_lag = Duration::from_millis(800));
    fleet.sim.destroy_droplet(A);
    assert_eq!(plugin.client.delete_volume(&id), Ok(()));
    assert!(fleet.sim.volume(&id).is_none());
}

#[test]
fn a_volume_that_a_destroyed_droplet_keeps_is_not_deleted_and_the_message_says_how() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=3"]);
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach));
    fleet.sim.destroy_droplet(A);
    fleet.rest();
    let command = format!("doctl compute volume-action detach {id} {A}");
    fleet.sim.reset_calls();
    assert_ended(plugin.client.delete_volume(&id), RpcStatusCode::UNAVAILABLE, &command);
    assert!(fleet.sim.volume(&id).is_some());
    // That a droplet is gone is found out once: by its record twice, and by both lists.
    let calls = fleet.sim.calls();
    assert_eq!((calls.of(DROPLET_RECORD.0, DROPLET_RECORD.1), calls.of("GET", "/v2/droplets")), (2, 2), "{calls}");
}

#[test]
fn a_volume_on_a_droplet_that_the_token_may_not_read_is_not_deleted() {
    let (fleet, plugin) = started();
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on(DROPLET_RECORD.0, DROPLET_RECORD.1).always());
    assert_ended(plugin.client.delete_volume(&id), RpcStatusCode::FAILED_PRECONDITION, "unpublish it first");
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
}

#[test]
fn a_droplet_that_is_switched_on_while_its_volumes_are_taken_keeps_the_rest() {
    let fleet = ControllerHarness::with_actions(Duration::from_secs(2));
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=20"]);
    let ids = ["one", "two", "three"].map(|name| fleet.volume_on(name, A));
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    let detaches = || fleet.sim.actions().into_iter().filter(|action| action.kind == ActionKind::Detach).count();
    thread::scope(|scope| {
        let calls = ids.each_ref().map(|id| scope.spawn(|| publish(&plugin.client, id, B)));
        // The two others wait in line behind the first one.
        until("the first volume is taken", || detaches() > 0);
        fleet.sim.set_droplet_status(A, DropletStatus::Active);
        let outcomes = calls.map(|call| call.join().unwrap());
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    });
    fleet.rest();
    assert_eq!(detaches(), 1);
    let log = plugin.log();
    assert_eq!(log.lines().filter(|line| line.contains("event=taken_over")).count(), 1, "{log}");
    assert_eq!(ids.iter().filter(|id| fleet.sim.attached_to(id) == Some(A)).count(), 2);
}
