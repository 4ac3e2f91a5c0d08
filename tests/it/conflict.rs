//! Several nodes want one volume, nodes die, events collide: what Nomad does to a controller, and how it must end.
//!
//! The numbers T1 to T10 are the sequences by which volumes got stuck for a day under other drivers.

use std::path::Path;
use std::time::{Duration, Instant};

use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{ActionFault, ActionKind, ActionStatus, DropletStatus, Fault, Refusal as Said};
use crate::support::client::{Client, Refusal, publish, unpublish};
use crate::support::controllers::{A, ACTION, B, C, ControllerHarness};
use crate::support::plugin::Plugin;
use crate::support::wait_for;

const ATTACH_OR_DETACH: (&str, &str) = ("POST", "/v2/volumes/{id}/actions");

/// All waits of a call are parts of this; a running droplet is waited for half a second, one that is off for a second.
const ARGS: [&str; 1] = ["--call-budget=10"];

fn controller(fleet: &ControllerHarness, name: &str) -> Plugin {
    fleet.controller(Path::new(PROGRAM), name, &ARGS)
}

/// A refusal names the volume, the droplet that has it, and the command that cures it.
fn assert_names_the_holder(refusal: &Refusal, id: &str, volume: &str, holder: u64, host: &str) {
    assert_eq!(refusal.code, RpcStatusCode::FAILED_PRECONDITION, "{refusal}");
    for part in [id, volume, &holder.to_string(), host, "volume-action detach"] {
        assert!(refusal.message.contains(part), "{part} is not in: {refusal}");
    }
}

/// Publishes and unpublishes on each droplet in turn.
fn assert_usable_everywhere(fleet: &ControllerHarness, clients: &[&Client], id: &str) {
    for (client, droplet) in clients.iter().zip([A, B, C]) {
        publish(client, id, droplet).unwrap();
        assert_eq!(fleet.sim.attached_to(id), Some(droplet));
        unpublish(client, id, droplet).unwrap();
        assert_eq!(fleet.sim.attached_to(id), None);
    }
}

/// Three nodes ask at once; whatever the way to the cloud is, one of them wins and nobody is wedged.
fn conflict_of_three(fleet: &ControllerHarness, clients: [&Client; 3]) {
    let id = fleet.volume("one");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let id = &id;
        let ask = |(client, droplet)| scope.spawn(move || (droplet, publish(client, id, droplet)));
        let threads: Vec<_> = clients.into_iter().zip([A, B, C]).map(ask).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<u64> =
        outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(droplet, _)| *droplet).collect();
    let [winner] = winners[..] else { panic!("not one winner: {outcomes:?}") };
    assert_eq!(fleet.sim.attached_to("one"), Some(winner));
    let host = ["node-a", "node-b", "node-c"][usize::try_from(winner - A).unwrap()];
    for (droplet, outcome) in &outcomes {
        if *droplet != winner {
            assert_names_the_holder(outcome.as_ref().unwrap_err(), &id, "one", winner, host);
            // Nomad also detaches from those that never had it, and that must not hurt the one that does.
            unpublish(clients[0], &id, *droplet).unwrap();
        }
    }
    assert_eq!(fleet.sim.attached_to("one"), Some(winner));
    unpublish(clients[1], &id, winner).unwrap();
    assert_usable_everywhere(fleet, &clients, &id);
}

#[test]
fn t1_three_nodes_ask_three_plugins_one_wins_and_then_every_node_can_use_the_volume() {
    let fleet = ControllerHarness::with_actions(Duration::from_millis(300));
    let plugins = ["one", "two", "three"].map(|name| controller(&fleet, name));
    conflict_of_three(&fleet, [&plugins[0].client, &plugins[1].client, &plugins[2].client]);
}

#[test]
fn t1_three_nodes_ask_one_plugin_one_wins_and_then_every_node_can_use_the_volume() {
    let fleet = ControllerHarness::with_actions(Duration::from_millis(300));
    let plugin = controller(&fleet, "one");
    conflict_of_three(&fleet, [&plugin.client; 3]);
}

#[test]
fn t2_a_droplet_with_a_pending_event_is_waited_for() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume("one");
    // As 40 s are to the budget of a call by default.
    fleet.sim.hold_pending_event(A, Duration::from_secs(4));
    assert_eq!(publish(&plugin.client, &id, A), Ok(()));
    let calls = fleet.sim.calls();
    assert!(calls.total() < 30, "{calls}");
}

#[test]
fn t3_a_detach_waits_for_a_pending_event_and_is_repeated_when_it_errored() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume_on("one", A);
    fleet.sim.hold_pending_event(A, Duration::from_secs(4));
    fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach));
    fleet.sim.reset_calls();
    assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
    assert_eq!(fleet.sim.attached_to("one"), None);
    let is_done =
        |action: &&crate::sim::Action| action.kind == ActionKind::Detach && action.status == ActionStatus::Completed;
    assert_eq!(fleet.sim.actions().iter().filter(is_done).count(), 1);
    let calls = fleet.sim.calls();
    assert!(calls.total() < 40, "{calls}");
}

#[test]
fn t5_a_running_droplet_keeps_the_volume() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume_on("one", A);
    let actions = fleet.sim.actions().len();
    let asked = Instant::now();
    let refusal = publish(&plugin.client, &id, B).unwrap_err();
    assert_names_the_holder(&refusal, &id, "one", A, "node-a");
    assert!(asked.elapsed() >= Duration::from_millis(500), "it was not waited for");
    assert_eq!(fleet.sim.actions().len(), actions, "something was done to it");
    let calls = fleet.sim.calls();
    assert!(calls.total() <= 12, "{calls}");
}

#[test]
fn t5_a_droplet_that_stays_off_or_archived_loses_the_volume_and_the_log_warns() {
    for (status, word) in [(DropletStatus::Off, "which is off,"), (DropletStatus::Archive, "which is archived,")] {
        let fleet = ControllerHarness::with_actions(ACTION);
        let plugin = controller(&fleet, "one");
        let id = fleet.volume_on("one", A);
        fleet.sim.set_droplet_status(A, status);
        let asked = Instant::now();
        assert_eq!(publish(&plugin.client, &id, B), Ok(()));
        assert!(asked.elapsed() >= Duration::from_secs(1), "it might have been rebooting");
        assert_eq!(fleet.sim.attached_to("one"), Some(B));
        let log = plugin.log();
        let warning = log.lines().find(|line| line.contains("WARN") && line.contains("taking the volume"));
        assert!(warning.is_some_and(|line| line.contains(&id) && line.contains(word)), "{log}");
    }
}

#[test]
fn t5_a_droplet_that_reboots_keeps_the_volume() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume_on("one", A);
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    // Its event outlasts the time after which it would be believed to stay off.
    fleet.sim.hold_pending_event(A, Duration::from_millis(2500));
    let outcome = std::thread::scope(|scope| {
        let publish = scope.spawn(|| publish(&plugin.client, &id, B));
        let is_looked_at = || fleet.sim.calls().of("POST", ATTACH_OR_DETACH.1) > 0;
        wait_for(Duration::from_secs(8), || is_looked_at().then_some(())).expect("a detach is tried");
        fleet.sim.set_droplet_status(A, DropletStatus::Active);
        publish.join().unwrap()
    });
    assert_names_the_holder(&outcome.unwrap_err(), &id, "one", A, "node-a");
    assert_eq!(fleet.sim.attached_to("one"), Some(A));
}

#[test]
fn t5_a_destroyed_droplet_loses_the_volume() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume_on("one", A);
    // DigitalOcean's own detach comes to nothing once, and the volume stays behind on a droplet that is no more.
    fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach));
    fleet.sim.destroy_droplet(A);
    fleet.rest();
    assert_eq!(fleet.sim.attached_to("one"), Some(A));
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
    assert_eq!(fleet.sim.attached_to("one"), Some(B));
    let calls = fleet.sim.calls();
    assert!(calls.total() < 40, "{calls}");
}

#[test]
fn a_volume_that_stays_listed_on_a_destroyed_droplet_is_asked_about_in_growing_pauses() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(Duration::from_secs(3)).of(ActionKind::Detach));
    fleet.sim.destroy_droplet(A);
    fleet.rest();
    assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
    fleet.sim.reset_calls();
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
    let calls = fleet.sim.calls();
    assert!(calls.total() < 60, "{calls}");
}

#[test]
fn takeover_takes_the_volume_from_a_running_droplet_and_warns() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &[ARGS[0], "--takeover"]);
    let id = fleet.volume_on("one", A);
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
    assert_eq!(fleet.sim.attached_to("one"), Some(B));
    assert!(
        plugin.log().lines().any(|line| line.contains("WARN") && line.contains("which is running")),
        "{}",
        plugin.log()
    );
}

#[test]
fn a_detach_in_flight_is_waited_for_however_it_was_begun() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume_on("one", A);
    fleet.sim.change_rules(|rules| rules.times.detach = Duration::from_secs(2));
    fleet.sim.detach(&id, A).unwrap();
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
    // On the droplet that still seems to have it, too: the attachment shows to the very end of the detach.
    fleet.sim.detach(&id, B).unwrap();
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
    fleet.rest();
    assert_eq!(fleet.sim.attached_to("one"), Some(B));
}

#[test]
fn a_publish_that_waits_does_not_keep_the_same_plugin_from_the_unpublish_that_it_waits_for() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=40"]);
    let id = fleet.volume_on("one", A);
    std::thread::scope(|scope| {
        let wanted = scope.spawn(|| publish(&plugin.client, &id, B));
        let has_looked = || fleet.sim.calls().of("GET", "/v2/droplets/{droplet_id}") > 0;
        wait_for(Duration::from_secs(5), || has_looked().then_some(())).expect("the holder is looked at");
        assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
        assert_eq!(wanted.join().unwrap(), Ok(()));
    });
    assert_eq!(fleet.sim.attached_to("one"), Some(B));
}

#[test]
fn an_unpublish_comes_through_however_many_publishes_wait_and_none_of_them_outlives_it() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume("one");
    fleet.sim.hold_pending_event(A, Duration::from_secs(4));
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..20).map(|_| scope.spawn(|| publish(&plugin.client, &id, A))).collect();
        // Some are refused at once, which shows that the line is full.
        let is_full = || calls.iter().any(std::thread::ScopedJoinHandle::is_finished);
        wait_for(Duration::from_secs(2), || is_full().then_some(())).expect("the line is full");
        assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
        for refusal in calls.into_iter().filter_map(|call| call.join().unwrap().err()) {
            assert_eq!(refusal.code, RpcStatusCode::FAILED_PRECONDITION, "{refusal}");
            let is_known = ["others wait for it", "a later call has taken the volume from there again"];
            assert!(is_known.iter().any(|text| refusal.message.contains(text)), "{refusal}");
        }
    });
    fleet.rest();
    assert_eq!(fleet.sim.attached_to("one"), None);
}

#[test]
fn an_attach_in_flight_does_not_outlive_an_unpublish() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume("one");
    fleet.sim.change_rules(|rules| rules.times.attach = Duration::from_secs(1));
    for begun_by_us in [false, true] {
        std::thread::scope(|scope| {
            let attaching = begun_by_us.then(|| scope.spawn(|| publish(&plugin.client, &id, A)));
            if !begun_by_us {
                fleet.sim.attach(&id, A).unwrap();
            }
            let is_running = || fleet.sim.actions()[0].status == ActionStatus::InProgress;
            wait_for(Duration::from_secs(5), || is_running().then_some(())).expect("the attach runs");
            assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
            assert_eq!(attaching.map(|it| it.join().unwrap()), begun_by_us.then_some(Ok(())));
        });
        fleet.rest();
        assert_eq!(fleet.sim.attached_to("one"), None, "begun by us: {begun_by_us}");
    }
}

#[test]
fn a_list_of_droplets_that_a_finished_detach_contradicts_is_not_believed() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume_on("one", A);
    for wanted in [A, B] {
        let late = ActionFault::droplet_ids_late(Duration::from_millis(700)).of(ActionKind::Detach);
        fleet.sim.faults().add_action(late);
        fleet.sim.detach(&id, A).unwrap();
        fleet.rest();
        assert_eq!(publish(&plugin.client, &id, wanted), Ok(()));
        assert_eq!(fleet.sim.attached_to("one"), Some(wanted));
    }
}

#[test]
fn an_empty_list_of_droplets_that_a_finished_attach_contradicts_is_not_believed() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume("one");
    for node in [A.to_string(), String::new()] {
        let late = ActionFault::droplet_ids_late(Duration::from_millis(700)).of(ActionKind::Attach);
        fleet.sim.faults().add_action(late);
        fleet.sim.attach(&id, A).unwrap();
        fleet.rest();
        fleet.sim.faults().add(Fault::lost_request().on(ATTACH_OR_DETACH.0, ATTACH_OR_DETACH.1));
        assert_eq!(plugin.client.controller_unpublish(&id, &node), Ok(()));
        assert_eq!(fleet.sim.attached_to("one"), None, "{node:?}");
    }
}

#[test]
fn calls_that_wait_for_each_other_still_end_in_their_own_time() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=2"]);
    let id = fleet.volume("one");
    fleet.sim.hold_pending_event(A, Duration::from_secs(600));
    let asked = Instant::now();
    std::thread::scope(|scope| {
        let ask = || {
            let refusal = publish(&plugin.client, &id, A).unwrap_err();
            assert_eq!(refusal.code, RpcStatusCode::FAILED_PRECONDITION, "{refusal}");
        };
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        calls.into_iter().for_each(|call| call.join().unwrap());
    });
    // One after the other they would take eight seconds.
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
}

#[test]
fn a_growing_volume_is_attached_without_waiting_for_its_end() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume_on("one", A);
    fleet.sim.change_rules(|rules| rules.times.resize = Duration::from_secs(60));
    fleet.sim.resize(&id, 5).unwrap();
    assert_eq!(publish(&plugin.client, &id, A), Ok(()));
    assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
}

#[test]
fn a_publish_right_after_a_failed_unpublish_does_not_wait_for_its_repetition() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=5"]);
    let id = fleet.volume_on("one", A);
    let (method, pattern) = ATTACH_OR_DETACH;
    fleet.sim.faults().add(Fault::server_error().on(method, pattern).containing("detach").always());
    // Twice, so that the next one has to pause.
    for _ in 0..2 {
        assert_eq!(unpublish(&plugin.client, &id, A).unwrap_err().code, RpcStatusCode::UNAVAILABLE);
    }
    std::thread::scope(|scope| {
        let repeated = scope.spawn(|| unpublish(&plugin.client, &id, A));
        let asked = Instant::now();
        assert_eq!(publish(&plugin.client, &id, A), Ok(()));
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        fleet.sim.faults().clear();
        // Which of the two came first is open.
        let is_last = repeated.join().unwrap().is_ok();
        assert_eq!(fleet.sim.attached_to(&id).is_none(), is_last);
    });
    unpublish(&plugin.client, &id, A).unwrap();
    assert_usable_everywhere(&fleet, &[&plugin.client; 3], &id);
}

#[test]
fn an_unpublish_that_waited_takes_nothing_from_a_publish_that_came_later_and_was_answered() {
    let fleet = ControllerHarness::with_actions(ACTION);
    // The pauses between failed detaches are 0.6 s, 1.2 s and 2.4 s.
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=60"]);
    let id = fleet.volume_on("one", A);
    let (method, pattern) = ATTACH_OR_DETACH;
    fleet.sim.faults().add(Fault::refused(Said::FORBIDDEN).on(method, pattern).containing("detach").times(3));
    (0..3).for_each(|_| drop(unpublish(&plugin.client, &id, A).unwrap_err()));
    std::thread::scope(|scope| {
        let earlier = scope.spawn(|| unpublish(&plugin.client, &id, A));
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(publish(&plugin.client, &id, A), Ok(()));
        assert!(!earlier.is_finished(), "it did not wait");
        let refusal = earlier.join().unwrap().unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::ABORTED, "{refusal}");
    });
    assert_eq!(fleet.sim.attached_to(&id), Some(A), "it was taken from its new user");
    assert_eq!(unpublish(&plugin.client, &id, A), Ok(()), "asked again");
    assert_eq!(fleet.sim.attached_to(&id), None);
}

#[test]
fn t6_a_storm_of_failing_unpublishes_burns_no_quota_and_keeps_nobody_waiting() {
    let fleet = ControllerHarness::with_actions(ACTION);
    // Every wait is a tenth of what it is by default, so six seconds are the minute of the story.
    let plugin = controller(&fleet, "one");
    let (stuck, other) = (fleet.volume_on("stuck", A), fleet.volume("other"));
    let (method, pattern) = ATTACH_OR_DETACH;
    fleet.sim.faults().add(Fault::server_error().on(method, pattern).containing("detach").always());
    fleet.sim.reset_calls();
    let ends = Instant::now() + Duration::from_secs(6);
    let mut slowest = Duration::ZERO;
    let answered = std::thread::scope(|scope| {
        // Nomad's loop sends the next call when it has the answer to the last.
        let loops: Vec<_> = (0..60)
            .map(|_| {
                scope.spawn(|| {
                    let mut answered = 0;
                    while Instant::now() < ends {
                        assert!(unpublish(&plugin.client, &stuck, A).is_err());
                        answered += 1;
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    answered
                })
            })
            .collect();
        while Instant::now() < ends {
            let asked = Instant::now();
            publish(&plugin.client, &other, B).unwrap();
            slowest = slowest.max(asked.elapsed());
            std::thread::sleep(Duration::from_millis(300));
        }
        loops.into_iter().map(|it| it.join().unwrap()).sum::<u32>()
    });
    assert!(answered > 600, "only {answered} answers: this was no storm");
    assert!(slowest < Duration::from_secs(2), "another volume had to wait for {slowest:?}");
    let calls = fleet.sim.calls();
    let detaches = calls.of(method, pattern);
    assert!(detaches < 25, "{calls}");
    fleet.sim.faults().clear();
    assert_eq!(unpublish(&plugin.client, &stuck, A), Ok(()));
    assert_usable_everywhere(&fleet, &[&plugin.client; 3], &stuck);
}

/// Detaches what cannot be detached until DigitalOcean is asked nothing for it, and gives that refusal.
fn fail_until_it_is_too_early(fleet: &ControllerHarness, client: &Client, id: &str) -> Refusal {
    let (method, pattern) = ATTACH_OR_DETACH;
    // Each try fails at once, so only the pauses take time.
    fleet.sim.faults().add(Fault::refused(Said::FORBIDDEN).on(method, pattern).containing("detach").always());
    let too_early = (0..10).find_map(|_| {
        fleet.sim.reset_calls();
        let refusal = unpublish(client, id, A).unwrap_err();
        (fleet.sim.calls().total() == 0).then_some(refusal)
    });
    fleet.sim.faults().clear();
    too_early.expect("a detach that fails is tried every time")
}

#[test]
fn a_detach_that_is_repeated_too_early_is_answered_soon_and_without_a_request() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet, "one");
    let id = fleet.volume_on("one", A);
    let refusal = fail_until_it_is_too_early(&fleet, &plugin.client, &id);
    assert_eq!(refusal.code, RpcStatusCode::UNAVAILABLE, "{refusal}");
    // As docs/troubleshooting.md quotes it, with what DigitalOcean said to the last try.
    for part in [&id, "it is tried again in 1 s at the earliest, as it failed", Said::FORBIDDEN.message] {
        assert!(refusal.message.contains(part), "{part} is not in: {refusal}");
    }
    let in_the_end = wait_for(Duration::from_secs(8), || unpublish(&plugin.client, &id, A).ok());
    assert!(in_the_end.is_some(), "{}", plugin.log());
    assert_eq!(fleet.sim.attached_to(&id), None);
}

#[test]
fn a_detach_that_keeps_failing_is_not_long_in_the_way_of_calls_that_are_made_one_at_a_time() {
    let fleet = ControllerHarness::with_actions(ACTION);
    // A fifth of every wait by default: 1 s before a try, 3 s for it.
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=20"]);
    let (stuck, other) = (fleet.volume_on("stuck", A), fleet.volume("other"));
    fail_until_it_is_too_early(&fleet, &plugin.client, &stuck);
    let (method, pattern) = ATTACH_OR_DETACH;
    fleet.sim.faults().add(Fault::server_error().on(method, pattern).containing(&A.to_string()).always());
    fleet.sim.reset_calls();
    // As Nomad does from 1.6.1 on: whoever wants the other volume waits behind each of these.
    let mut slowest = Duration::ZERO;
    for _ in 0..6 {
        let asked = Instant::now();
        assert!(unpublish(&plugin.client, &stuck, A).is_err());
        slowest = slowest.max(asked.elapsed());
        publish(&plugin.client, &other, B).unwrap();
        unpublish(&plugin.client, &other, B).unwrap();
    }
    let tries = fleet.sim.calls();
    assert!(tries.of(method, pattern) > 12, "it was not tried at all: {tries}");
    assert!(slowest < Duration::from_millis(5500), "another volume had to wait for {slowest:?}");
}

#[test]
fn t10_a_plugin_killed_between_attach_and_reply_finds_the_attachment_again() {
    let fleet = ControllerHarness::with_actions(Duration::from_millis(700));
    let (method, pattern) = ATTACH_OR_DETACH;
    // Killed before DigitalOcean's reply comes, and while the action runs.
    for (round, reply) in [Some(Fault::late(Duration::from_secs(5))), None].into_iter().enumerate() {
        let id = fleet.volume(&format!("volume-{round}"));
        let plugin = controller(&fleet, "one");
        let actions = fleet.sim.actions().len();
        if let Some(fault) = reply {
            fleet.sim.faults().add(fault.on(method, pattern));
        }
        std::thread::scope(|scope| {
            let client = plugin.client.clone();
            let cut_off = scope.spawn({
                let id = id.clone();
                move || publish(&client, &id, A)
            });
            let is_begun = || fleet.sim.actions().len() > actions;
            wait_for(Duration::from_secs(5), || is_begun().then_some(())).expect("the attach begins");
            plugin.kill().unwrap();
            assert!(cut_off.join().unwrap().is_err());
        });
        let plugin = controller(&fleet, "one");
        assert_eq!(publish(&plugin.client, &id, A), Ok(()));
        assert_eq!(fleet.sim.attached_to(&id), Some(A));
        assert_eq!(fleet.sim.actions().len(), actions + 1, "it was attached more than once");
    }
}
