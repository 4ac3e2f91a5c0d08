//! Many attaches at once: they cost fewer requests than each alone, and are as right.

use std::path::Path;
use std::thread;
use std::time::Duration;

use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::concurrency::until_at_work;
use crate::sim::{ActionFault, ActionKind, Fault, Gate, Limits, Refusal, Rules, Times};
use crate::support::client::{Client, Outcome, publish};
use crate::support::controllers::{A, B, C, ControllerHarness};

const READ: (&str, &str) = ("GET", "/v2/volumes/{id}");
const LIST: (&str, &str) = ("GET", "/v2/volumes");
const ATTACH: (&str, &str) = ("POST", "/v2/volumes/{id}/actions");
const ACTION: (&str, &str) = ("GET", "/v2/volumes/{id}/actions/{action_id}");
const ALL_ACTIONS: (&str, &str) = ("GET", "/v2/actions");

const LONG_LAG: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);

/// An account with a quota that a few attaches use up.
fn with_small_quota(action: Duration) -> ControllerHarness {
    let limits = Limits { requests_per_hour: 600, ..Limits::default() };
    ControllerHarness::with(Rules { times: Times::actions(action), limits, ..Rules::default() })
}

/// Publishes all of them at once.
fn publish_together(client: &Client, wanted: &[(String, u64)]) -> Vec<Outcome<()>> {
    thread::scope(|scope| {
        let calls: Vec<_> =
            wanted.iter().map(|(id, droplet)| scope.spawn(move || publish(client, id, *droplet))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

#[test]
fn those_who_ask_while_a_list_is_read_share_the_next_one() {
    let fleet = ControllerHarness::with_actions(Duration::from_millis(20));
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &[]);
    let ids: Vec<String> = (0..8).map(|number| fleet.volume(&format!("volume-{number}"))).collect();
    let (read, list) = (Gate::default(), Gate::default());
    fleet.sim.faults().add(Fault::held(&read).on(READ.0, READ.1));
    fleet.sim.faults().add(Fault::held(&list).on(LIST.0, LIST.1));
    fleet.sim.reset_calls();
    thread::scope(|scope| {
        let begin = |id: &String| {
            let id = id.clone();
            let client = &plugin.client;
            scope.spawn(move || publish(client, &id, A).unwrap());
        };
        begin(&ids[0]);
        assert!(read.is_reached_within(PATIENCE), "who is alone reads the volume");
        begin(&ids[1]);
        assert!(list.is_reached_within(PATIENCE), "who is not alone reads the list");
        ids[2..].iter().for_each(begin);
        until_at_work(&plugin, "controller", ids.len());
        list.open();
        read.open();
    });
    assert!(ids.iter().all(|id| fleet.sim.attached_to(id) == Some(A)));
    let calls = fleet.sim.calls();
    let shown = ids.len() as u64;
    assert!(calls.of(READ.0, READ.1) + calls.of(LIST.0, LIST.1) <= shown + 6, "{calls}");
    assert_eq!(calls.of(ATTACH.0, ATTACH.1), 8, "{calls}");
}

#[test]
fn where_the_quota_is_short_attaches_cost_less_and_all_succeed() {
    let fleet = with_small_quota(Duration::from_secs(2));
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &[]);
    let wanted: Vec<_> =
        [A, A, B, C].iter().zip(0..).map(|(at, number)| (fleet.volume(&format!("volume-{number}")), *at)).collect();
    fleet.sim.reset_calls();
    for outcome in publish_together(&plugin.client, &wanted) {
        outcome.unwrap();
    }
    assert!(wanted.iter().all(|(id, droplet)| fleet.sim.attached_to(id) == Some(*droplet)));
    let calls = fleet.sim.calls();
    assert!(calls.of(ALL_ACTIONS.0, ALL_ACTIONS.1) >= 1, "{calls}");
    assert!(calls.total() <= 18, "{calls}");
}

#[test]
fn a_token_that_may_not_list_actions_looks_at_each_and_asks_for_the_list_once() {
    let fleet = with_small_quota(Duration::from_secs(2));
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &[]);
    let wanted: Vec<_> =
        [A, B, C].iter().zip(0..).map(|(at, number)| (fleet.volume(&format!("volume-{number}")), *at)).collect();
    fleet.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on(ALL_ACTIONS.0, ALL_ACTIONS.1).always());
    fleet.sim.reset_calls();
    for outcome in publish_together(&plugin.client, &wanted) {
        outcome.unwrap();
    }
    assert!(wanted.iter().all(|(id, droplet)| fleet.sim.attached_to(id) == Some(*droplet)));
    let calls = fleet.sim.calls();
    assert_eq!(calls.of(ALL_ACTIONS.0, ALL_ACTIONS.1), 1, "{calls}");
    assert!(calls.of(ACTION.0, ACTION.1) >= 3, "{calls}");
}

#[test]
fn an_old_list_never_makes_an_attach_succeed_or_takes_a_volume() {
    let fleet = ControllerHarness::with_actions(Duration::from_millis(20));
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=10"]);
    // By the list each of these is on A, and it is nowhere.
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(LONG_LAG).of(ActionKind::Detach).times(6));
    let free: Vec<_> = (0..6).map(|number| (fleet.volume_on(&format!("free-{number}"), A), A)).collect();
    for (id, _) in &free {
        fleet.sim.detach(id, A).unwrap();
        fleet.rest();
    }
    for outcome in publish_together(&plugin.client, &free) {
        outcome.unwrap();
    }
    assert!(free.iter().all(|(id, _)| fleet.sim.attached_to(id) == Some(A)));
    // By the list each of these is nowhere, and it is on A, which runs.
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(LONG_LAG).of(ActionKind::Attach).times(6));
    let held: Vec<_> = (0..6).map(|number| (fleet.volume_on(&format!("held-{number}"), A), B)).collect();
    for outcome in publish_together(&plugin.client, &held) {
        assert_eq!(outcome.unwrap_err().code, RpcStatusCode::FAILED_PRECONDITION);
    }
    assert!(held.iter().all(|(id, _)| fleet.sim.attached_to(id) == Some(A)));
}
