//! Calls that wait for a busy droplet, and those that have nothing to do with it: no call keeps another one waiting for what
//! that one does not need.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{ActionFault, ActionKind, Fault};
use crate::support::client::{Client, Refusal, publish, unpublish};
use crate::support::controllers::{A, ACTION, B, ControllerHarness};
use crate::support::single_plugin::until;

const ACTIONS: (&str, &str) = ("POST", "/v2/volumes/{id}/actions");

/// The whole time of a call. One that waits briefly takes a twentieth of it.
const BUDGET: Duration = Duration::from_secs(10);
const SHORT: [&str; 1] = ["--call-budget=10"];

/// A time that no test waits for.
const LONG: [&str; 1] = ["--call-budget=300"];
const FOR_EVER: Duration = Duration::from_secs(100_000);

/// What is done to a volume of a busy droplet.
#[derive(Debug, Clone, Copy)]
enum Change {
    Attach,
    Detach,
    Grow,
}

impl Change {
    const ALL: [Change; 3] = [Change::Attach, Change::Detach, Change::Grow];

    /// A volume that this can be done to.
    fn prepare(self, fleet: &ControllerHarness, name: &str) -> String {
        match self {
            Change::Attach => fleet.volume(name),
            Change::Detach | Change::Grow => fleet.volume_on(name, A),
        }
    }

    fn make(self, client: &Client, id: &str) -> Result<(), Refusal> {
        match self {
            Change::Attach => publish(client, id, A),
            Change::Detach => unpublish(client, id, A),
            Change::Grow => client.expand(id, 3 << 30).map(drop),
        }
    }

    /// How a request for it differs from others.
    fn word(self) -> &'static str {
        match self {
            Change::Attach => "\"attach\"",
            Change::Detach => "\"detach\"",
            Change::Grow => "\"resize\"",
        }
    }

    fn code_of_a_wait_in_vain(self) -> RpcStatusCode {
        match self {
            Change::Attach => RpcStatusCode::FAILED_PRECONDITION,
            Change::Detach | Change::Grow => RpcStatusCode::UNAVAILABLE,
        }
    }
}

#[test]
fn after_a_call_that_used_up_its_time_the_next_to_that_droplet_answer_soon_until_one_gets_through() {
    thread::scope(|scope| {
        for change in [Change::Attach, Change::Detach] {
            scope.spawn(move || one_busy_droplet_keeps_no_other_waiting(change));
        }
    });
}

fn one_busy_droplet_keeps_no_other_waiting(change: Change) {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &SHORT);
    let ids = ["one", "two", "three", "four", "five"].map(|name| change.prepare(&fleet, name));
    let healthy = fleet.volume("healthy");
    fleet.sim.hold_pending_event(A, FOR_EVER);
    let begun = Instant::now();
    change.make(&plugin.client, &ids[0]).unwrap_err();
    let whole = begun.elapsed();
    assert!(whole > BUDGET / 2, "{change:?}: the first call waits as long as it can, not {whole:?}");
    // As Nomad's, which come one at a time.
    let begun = Instant::now();
    for id in &ids[1..4] {
        let refusal = change.make(&plugin.client, id).unwrap_err();
        assert_eq!(refusal.code, change.code_of_a_wait_in_vain(), "{refusal}");
        assert!(refusal.message.contains("pending event") && refusal.message.contains("earlier call"), "{refusal}");
    }
    publish(&plugin.client, &healthy, B).unwrap();
    let others = begun.elapsed();
    assert!(others < whole, "{change:?}: three calls in vain and a healthy one took {others:?}, the first {whole:?}");
    // A single try gets through, and the next call waits as long as the first again.
    fleet.sim.advance(FOR_EVER);
    change.make(&plugin.client, &ids[2]).unwrap();
    fleet.sim.hold_pending_event(A, Duration::from_secs(2));
    change.make(&plugin.client, &ids[4]).unwrap();
}

#[test]
fn a_volume_that_is_refused_for_now_keeps_no_other_one_of_its_droplet_waiting() {
    thread::scope(|scope| {
        for change in Change::ALL {
            scope.spawn(move || {
                let fleet = ControllerHarness::with_actions(ACTION);
                let plugin = fleet.controller(Path::new(PROGRAM), "one", &LONG);
                let (sick, well) = (change.prepare(&fleet, "sick"), fleet.volume("well"));
                fleet.sim.faults().add(Fault::pending_event().on(ACTIONS.0, ACTIONS.1).about(&sick).always());
                thread::scope(|scope| {
                    let waiting = scope.spawn(|| change.make(&plugin.client, &sick));
                    until("it is refused", || !fleet.sim.faults().met().is_empty());
                    publish(&plugin.client, &well, A).unwrap();
                    assert!(!waiting.is_finished(), "{change:?}: the other one came first");
                    fleet.sim.faults().clear();
                    waiting.join().unwrap().unwrap();
                });
            });
        }
    });
}

#[test]
fn a_volume_that_waits_for_its_droplet_can_be_taken_away_meanwhile() {
    thread::scope(|scope| {
        for change in [Change::Attach, Change::Grow] {
            scope.spawn(move || {
                let fleet = ControllerHarness::with_actions(ACTION);
                let plugin = fleet.controller(Path::new(PROGRAM), "one", &LONG);
                let id = change.prepare(&fleet, "sick");
                fleet
                    .sim
                    .faults()
                    .add(Fault::pending_event().on(ACTIONS.0, ACTIONS.1).containing(change.word()).always());
                thread::scope(|scope| {
                    let waiting = scope.spawn(|| change.make(&plugin.client, &id));
                    until("it is refused", || !fleet.sim.faults().met().is_empty());
                    unpublish(&plugin.client, &id, A).unwrap();
                    assert!(!waiting.is_finished(), "{change:?}: it was waited for");
                    fleet.sim.faults().clear();
                    let outcome = waiting.join().unwrap();
                    match change {
                        // It came first, and nobody would take the volume away again.
                        Change::Attach => assert!(outcome.unwrap_err().message.contains("a later call")),
                        Change::Detach | Change::Grow => outcome.unwrap(),
                    }
                    assert_eq!(fleet.sim.attached_to(&id), None);
                });
            });
        }
    });
}

/// Orchestrators send each call several times: Nomad sent 29 detaches in ten moves that need ten.
#[test]
fn a_repeated_unpublish_looks_and_changes_nothing_until_the_volume_is_there_again() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &LONG);
    let id = fleet.volume("one");
    let posts = || fleet.sim.calls().of(ACTIONS.0, ACTIONS.1);
    for round in 1..=10 {
        let (from, to) = if round % 2 == 0 { (A, B) } else { (B, A) };
        publish(&plugin.client, &id, to).unwrap();
        // Of the move before, too late.
        unpublish(&plugin.client, &id, from).unwrap();
        assert_eq!(fleet.sim.attached_to(&id), Some(to));
        for _ in 0..3 {
            unpublish(&plugin.client, &id, to).unwrap();
        }
        assert_eq!(posts(), 2 * round, "round {round}: {}", fleet.sim.calls());
    }
    let calls = fleet.sim.calls();
    assert!(calls.total() <= 10 * 17, "{calls}");
    // Somebody else attaches it where this plugin has taken it away, and the list of droplets does not show it yet.
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(FOR_EVER).of(ActionKind::Attach));
    fleet.sim.attach(&id, A).unwrap();
    fleet.rest();
    unpublish(&plugin.client, &id, A).unwrap();
    assert_eq!(fleet.sim.attached_to(&id), None, "the memory was believed");
}
