//! What DigitalOcean says is old, wrong or contradicts itself: a call ends with the truth all the same, and does nothing
//! that the truth does not call for.

use std::path::Path;
use std::time::{Duration, Instant};

use do_csi_plugin::proto::csi::volume_capability::access_mode::Mode;
use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{
    Action, ActionFault, ActionKind, ActionStatus, DropletStatus, Fault, Gate, NewVolume, Refusal, Switches,
};
use crate::support::client::{Client, Outcome, Volume, cloned, new_volume, publish, unpublish};
use crate::support::controllers::{A, ACTION, B, C, ControllerHarness};
use crate::support::plugin::Plugin;
use crate::support::wait_for;

const ACT: (&str, &str) = ("POST", "/v2/volumes/{id}/actions");
const DROPLET: (&str, &str) = ("GET", "/v2/droplets/{droplet_id}");
/// How long actions take where their time counts.
const SHORT: Duration = Duration::from_millis(300);
const HOUR: Duration = Duration::from_secs(3600);

/// All waits of a call are parts of this; what is not shown is waited for one second.
const ARGS: [&str; 1] = ["--call-budget=10"];

/// Words that DigitalOcean is not known to use.
const ODD: Refusal = Refusal::INVALID_PAYLOAD;

fn started(args: &[&str]) -> (ControllerHarness, Plugin) {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", args);
    (fleet, plugin)
}

fn publish_read_only(client: &Client, id: &str, droplet: u64) -> Outcome<()> {
    let mut volume = Volume::mounted(id, "ext4");
    volume.capability.access_mode.mut_or_insert_default().mode = Mode::SINGLE_NODE_READER_ONLY.into();
    client.controller_publish(&mut volume, &droplet.to_string())
}

fn detaches(fleet: &ControllerHarness) -> Vec<Action> {
    fleet.sim.actions().into_iter().filter(|action| action.kind == ActionKind::Detach).collect()
}

#[track_caller]
fn assert_gave_up<T: std::fmt::Debug>(outcome: Outcome<T>, code: RpcStatusCode, words: &str) {
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.message.contains(words), "{words:?} is not in: {refusal}");
}

#[test]
fn a_use_that_another_plugin_ended_is_none() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugins = ["one", "two"].map(|name| fleet.controller(Path::new(PROGRAM), name, &ARGS));
    let [one, two] = plugins.each_ref().map(|plugin| &plugin.client);
    let id = fleet.volume("one");
    publish(one, &id, A).unwrap();
    assert_eq!(publish_read_only(one, &id, A).unwrap_err().code, RpcStatusCode::ALREADY_EXISTS);
    unpublish(two, &id, A).unwrap();
    publish_read_only(two, &id, A).unwrap();
    assert_eq!(publish_read_only(one, &id, A), Ok(()), "what it remembers is over");
    assert_eq!(publish(one, &id, A).unwrap_err().code, RpcStatusCode::ALREADY_EXISTS, "what it has learned is not");
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
}

#[test]
fn a_list_that_stays_old_for_an_hour_keeps_nobody_from_attaching() {
    for is_gone in [false, true] {
        let (fleet, plugin) = started(&ARGS);
        let id = fleet.volume_on("one", A);
        fleet.sim.faults().add_action(ActionFault::droplet_ids_late(HOUR).of(ActionKind::Detach));
        fleet.sim.detach(&id, A).unwrap();
        fleet.rest();
        if is_gone {
            fleet.sim.destroy_droplet(A);
        }
        fleet.sim.reset_calls();
        assert_eq!(publish(&plugin.client, &id, B), Ok(()), "gone: {is_gone}");
        assert_eq!(fleet.sim.attached_to(&id), Some(B));
        let calls = fleet.sim.calls();
        assert_eq!(calls.of(ACT.0, ACT.1), 1, "something was detached that was not there:\n{calls}");
        assert_eq!(unpublish(&plugin.client, &id, B), Ok(()));
    }
}

#[test]
fn an_attach_that_shows_the_last_droplet_for_an_hour_is_seen_on_the_new_one() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(HOUR).of(ActionKind::Detach));
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(HOUR).of(ActionKind::Attach));
    fleet.sim.detach(&id, A).unwrap();
    fleet.rest();
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
    assert_eq!(fleet.sim.attached_to(&id), Some(B));
    assert_eq!(detaches(&fleet).len(), 1, "only the test's own");
}

#[test]
fn a_detach_whose_reply_was_lost_is_not_sent_again_while_it_runs() {
    let (fleet, plugin) = started(&["--call-budget=10", "--api-timeout=0.4"]);
    for fault in [Fault::hung_after_effect(), Fault::lost_reply(), Fault::html_page_after_effect()] {
        let id = fleet.volume_on("one", A);
        fleet.sim.faults().add_action(ActionFault::taking(Duration::from_millis(1500)).of(ActionKind::Detach));
        fleet.sim.faults().add(fault.on(ACT.0, ACT.1));
        fleet.sim.reset_calls();
        assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
        assert_eq!(fleet.sim.attached_to(&id), None);
        let calls = fleet.sim.calls();
        assert_eq!(calls.of(ACT.0, ACT.1), 1, "{calls}");
        let asked = Instant::now();
        publish(&plugin.client, &id, A).unwrap();
        assert!(asked.elapsed() < Duration::from_secs(4), "it waited for a detach that was seen");
        unpublish(&plugin.client, &id, A).unwrap();
        plugin.client.delete_volume(&id).unwrap();
    }
}

/// One plugin's detach is carried out, and before its reply is missed the other one attaches the volume to the same droplet
/// again, so long after: it stays there, and whoever asked for the detach is not told that it is gone.
fn reattached_while_detached(fleet: &ControllerHarness, [one, two]: [&Client; 2], id: &str, after: Duration) {
    fleet.sim.faults().add(Fault::hung_after_effect().on(ACT.0, ACT.1));
    std::thread::scope(|scope| {
        let cut_off = scope.spawn(|| unpublish(one, id, A));
        let is_detached = || fleet.sim.attached_to(id).is_none();
        wait_for(Duration::from_secs(5), || is_detached().then_some(())).expect("the detach is carried out");
        std::thread::sleep(after);
        publish(two, id, A).unwrap();
        // Whether it was detached is not certain any more, so the caller is not told that it was.
        assert_gave_up(cut_off.join().unwrap(), RpcStatusCode::UNAVAILABLE, "attached again");
    });
    assert_eq!(fleet.sim.attached_to(id), Some(A), "it was taken from its new user");
    assert_eq!(unpublish(one, id, A), Ok(()), "asked again");
    assert_eq!(fleet.sim.attached_to(id), None);
}

#[test]
fn a_detach_whose_reply_was_lost_does_not_take_what_was_attached_again_since() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugins = ["one", "two"]
        .map(|name| fleet.controller(Path::new(PROGRAM), name, &["--call-budget=10", "--api-timeout=1.5"]));
    let [one, two] = plugins.each_ref().map(|plugin| &plugin.client);
    let id = fleet.volume("one");
    publish(one, &id, A).unwrap();
    reattached_while_detached(&fleet, [one, two], &id, Duration::ZERO);
}

#[test]
fn a_detach_by_a_process_that_did_not_attach_takes_nothing_that_was_attached_again_since() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugins = ["one", "two"]
        .map(|name| fleet.controller(Path::new(PROGRAM), name, &["--call-budget=10", "--api-timeout=2.5"]));
    let [one, two] = plugins.each_ref().map(|plugin| &plugin.client);
    let id = fleet.volume_on("one", A);
    // As long as a real detach takes at least; the times of actions are told in whole seconds.
    reattached_while_detached(&fleet, [one, two], &id, Duration::from_millis(1100));
}

#[test]
fn a_volume_that_is_listed_where_it_was_is_detached_from_where_it_is() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(HOUR).of(ActionKind::Detach));
    let late = ActionFault::droplet_ids_late(Duration::from_millis(700)).of(ActionKind::Attach);
    fleet.sim.faults().add_action(late);
    fleet.sim.detach(&id, A).unwrap();
    fleet.rest();
    fleet.sim.attach(&id, B).unwrap();
    fleet.rest();
    assert_eq!(plugin.client.controller_unpublish(&id, ""), Ok(()));
    assert_eq!(fleet.sim.attached_to(&id), None);
    assert_eq!(detaches(&fleet).len(), 2, "the test's own and one more");
}

#[test]
fn a_volume_whose_detach_does_not_show_yet_is_deleted() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(HOUR).of(ActionKind::Detach));
    fleet.sim.detach(&id, A).unwrap();
    fleet.rest();
    // As long as it is on its way out, DigitalOcean refuses.
    fleet.sim.faults().add(Fault::refused(Refusal::DELETE_ATTACHED).on("DELETE", "/v2/volumes/{id}").times(3));
    assert_eq!(plugin.client.delete_volume(&id), Ok(()));
    assert_eq!(fleet.sim.volumes().len(), 0);
    let id = fleet.volume_on("two", A);
    assert_gave_up(plugin.client.delete_volume(&id), RpcStatusCode::FAILED_PRECONDITION, "is not deleted");
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
}

#[test]
fn a_volume_that_is_listed_on_a_droplet_that_does_not_have_it_is_told_so() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume_on("one", A);
    let other = fleet.volume("other");
    let droplet = format!(r#"{{"droplet":{{"id":{A},"name":"node-a","status":"active","volume_ids":["{other}"]}}}}"#);
    fleet.sim.faults().add(Fault::answered(200, "application/json", &droplet).on(DROPLET.0, DROPLET.1).always());
    let words = format!("DigitalOcean lists it here, droplet {A} does not have it");
    assert_gave_up(publish(&plugin.client, &id, A), RpcStatusCode::FAILED_PRECONDITION, &words);
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
}

#[test]
fn words_that_are_not_known_end_no_attach_that_can_be_tried_again() {
    let (fleet, plugin) = started(&["--call-budget=4"]);
    let id = fleet.volume("one");
    fleet.sim.faults().add(Fault::refused(ODD).on(ACT.0, ACT.1).times(3));
    assert_eq!(publish(&plugin.client, &id, A), Ok(()));
    unpublish(&plugin.client, &id, A).unwrap();
    fleet.sim.faults().add(Fault::refused(ODD).on(ACT.0, ACT.1).always());
    fleet.sim.reset_calls();
    assert_gave_up(publish(&plugin.client, &id, A), RpcStatusCode::FAILED_PRECONDITION, ODD.message);
    let calls = fleet.sim.calls();
    assert!(calls.total() < 80, "{calls}");
}

#[test]
fn a_running_droplet_that_is_not_found_once_keeps_the_volume() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add(Fault::refused(Refusal::NOT_FOUND).on(DROPLET.0, DROPLET.1));
    let outcome = publish(&plugin.client, &id, B);
    assert_eq!(fleet.sim.faults().outstanding(), 0, "the droplet was not looked at");
    assert_gave_up(outcome, RpcStatusCode::FAILED_PRECONDITION, "is attached to droplet");
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
    assert_eq!(detaches(&fleet), [], "it was taken from a running droplet");
}

#[test]
fn taking_a_volume_from_a_droplet_that_is_gone_is_logged_as_a_warning() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach));
    fleet.sim.destroy_droplet(A);
    fleet.rest();
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
    assert_eq!(fleet.sim.attached_to(&id), Some(B));
    let log = plugin.log();
    let warning = log.lines().find(|line| line.contains("taking the volume")).unwrap_or_else(|| panic!("{log}"));
    assert!(warning.contains("WARN"), "{warning}");
    // As the page on attaching quotes it.
    let want = format!(
        "taking the volume from droplet {A}, which is gone, for droplet {B} event=taken_over volume={id} name=one from={A} droplet={B}"
    );
    assert!(warning.ends_with(&want), "{warning}");
    let page = include_str!("../../docs/attach.md");
    let example = [(&*id, "506f78a4-…"), ("=one", "=blog"), (&A.to_string(), "3164444"), (&B.to_string(), "3164445")];
    let quoted = example.iter().fold(want.clone(), |text, (ours, theirs)| text.replace(ours, theirs));
    assert!(page.contains(&quoted), "docs/attach.md has not: {quoted}");
}

#[test]
fn a_volume_that_a_destroyed_droplet_never_lets_go_is_unpublished_all_the_same() {
    for is_refused in [false, true] {
        let (fleet, plugin) = started(&ARGS);
        let id = fleet.volume_on("one", A);
        fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach).times(10_000));
        fleet.sim.destroy_droplet(A);
        fleet.rest();
        assert_eq!(fleet.sim.attached_to(&id), Some(A));
        if is_refused {
            fleet.sim.faults().add(Fault::server_error().on(ACT.0, ACT.1).containing("detach").always());
        }
        assert_eq!(unpublish(&plugin.client, &id, A), Ok(()), "5xx: {is_refused}");
    }
}

#[test]
fn a_volume_that_stays_listed_on_a_destroyed_droplet_goes_where_it_is_wanted() {
    let (fleet, plugin) = started(&ARGS);
    fleet.sim.change_rules(|rules| rules.switches.destroyed_leave_no_action = true);
    let id = fleet.volume_on("one", A);
    fleet.sim.destroy_droplet(A);
    assert_eq!(fleet.sim.attached_to(&id), None);
    // The list names the droplet that is gone beyond this call and the next.
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(HOUR).of(ActionKind::Attach));
    assert_eq!(publish(&plugin.client, &id, B), Ok(()));
    assert_eq!(fleet.sim.attached_to(&id), Some(B));
    fleet.sim.reset_calls();
    assert_eq!(publish(&plugin.client, &id, B), Ok(()), "asked again");
    assert_eq!(publish_read_only(&plugin.client, &id, B).unwrap_err().code, RpcStatusCode::ALREADY_EXISTS);
    // Each of the two looks for the droplet in its record and in two lists, twice.
    let calls = fleet.sim.calls();
    assert!(calls.total() < 60, "{calls}");
    assert_eq!(fleet.sim.attached_to(&id), Some(B));
    assert_eq!(detaches(&fleet), []);
}

#[test]
fn only_the_word_that_nothing_is_attached_proves_that_nothing_is() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume("one");
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(Duration::from_millis(700)).of(ActionKind::Attach));
    fleet.sim.attach(&id, A).unwrap();
    fleet.rest();
    fleet.sim.faults().add(Fault::refused(ODD).on(ACT.0, ACT.1));
    assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
    assert_eq!(fleet.sim.attached_to(&id), None);
}

#[test]
fn an_action_that_never_says_that_it_ended_does_not_stop_the_next_move() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume("one");
    fleet.sim.faults().add_action(ActionFault::stays_in_progress().of(ActionKind::Attach));
    fleet.sim.attach(&id, A).unwrap();
    fleet.rest();
    fleet.sim.detach(&id, A).unwrap();
    fleet.rest();
    publish(&plugin.client, &id, A).unwrap();
    assert_eq!(publish(&plugin.client, &id, A), Ok(()), "asked again");
    assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
    assert_eq!(unpublish(&plugin.client, &id, A), Ok(()), "asked again");
    assert_eq!(plugin.client.controller_unpublish(&id, ""), Ok(()));
    assert_eq!(fleet.sim.attached_to(&id), None);
}

#[test]
fn a_plugin_that_finds_an_action_of_long_ago_running_still_tells_where_the_volume_is() {
    // The first call gives up before the action counts as overdue, as does one whose caller's process was killed.
    let (fleet, plugin) = started(&["--call-budget=10"]);
    let (attached, detached) = (fleet.volume("attached"), fleet.volume_on("detached", B));
    fleet.sim.faults().add_action(ActionFault::stays_in_progress());
    fleet.sim.attach(&attached, A).unwrap();
    fleet.sim.faults().add_action(ActionFault::stays_in_progress());
    fleet.sim.detach(&detached, B).unwrap();
    fleet.rest();
    fleet.sim.advance(HOUR);
    let client = &plugin.client;
    assert_eq!(publish(client, &attached, A), Ok(()));
    assert_eq!(publish(client, &attached, B).unwrap_err().code, RpcStatusCode::FAILED_PRECONDITION);
    assert_eq!(unpublish(client, &detached, B), Ok(()));
    assert_eq!(publish(client, &detached, C), Ok(()));
    assert_eq!(unpublish(client, &attached, A), Ok(()));
    assert_eq!(fleet.sim.attached_to(&attached), None);
    assert_eq!(fleet.sim.attached_to(&detached), Some(C));
}

#[test]
fn an_action_that_is_only_slow_is_not_taken_for_one_that_has_ended() {
    let (fleet, plugin) = started(&["--call-budget=10"]);
    let (going, coming) = (fleet.volume_on("going", A), fleet.volume("coming"));
    for kind in [ActionKind::Attach, ActionKind::Detach] {
        fleet.sim.faults().add_action(ActionFault::taking(Duration::from_millis(7500)).of(kind));
    }
    let client = &plugin.client;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let outcome = unpublish(client, &going, A);
            assert!(outcome.is_err() || fleet.sim.attached_to(&going).is_none(), "it is still there: {outcome:?}");
        });
        scope.spawn(|| {
            let outcome = publish(client, &coming, B);
            let holder = fleet.sim.attached_to(&coming);
            assert!(outcome.is_err() || holder == Some(B), "it is not there: {outcome:?}");
        });
    });
    assert_eq!(unpublish(client, &going, A), Ok(()));
    assert_eq!(publish(client, &coming, B), Ok(()));
    assert_eq!((fleet.sim.attached_to(&going), fleet.sim.attached_to(&coming)), (None, Some(B)));
}

#[test]
fn a_new_size_that_shows_late_is_not_asked_for_again() {
    let (fleet, plugin) = started(&["--call-budget=20"]);
    let id = fleet.volume_on("one", A);
    let late = ActionFault::size_late(Duration::from_millis(1500)).of(ActionKind::Resize);
    fleet.sim.faults().add_action(late);
    fleet.sim.reset_calls();
    plugin.client.expand(&id, 5 << 30).unwrap();
    assert_eq!(fleet.sim.volume(&id).unwrap().size_gigabytes, 5);
    let calls = fleet.sim.calls();
    assert_eq!(calls.of(ACT.0, ACT.1), 1, "{calls}");
    assert!(calls.total() < 20, "{calls}");
}

#[test]
fn a_new_size_that_shows_late_is_waited_for_also_when_nobody_knows_that_it_was_made() {
    let (fleet, plugin) = started(&["--call-budget=20"]);
    let id = fleet.volume_on("one", A);
    let late = ActionFault::size_late(Duration::from_millis(1500)).of(ActionKind::Resize);
    fleet.sim.faults().add_action(late);
    fleet.sim.faults().add(Fault::lost_reply().on(ACT.0, ACT.1));
    assert_eq!(plugin.client.expand(&id, 5 << 30).map(|grown| grown.capacity_bytes), Ok(5 << 30));
}

#[test]
fn a_size_that_is_refused_for_good_is_told_without_waiting_for_long() {
    let (fleet, plugin) = started(&["--call-budget=20"]);
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add(Fault::refused(Refusal::INVALID_RESIZE).on(ACT.0, ACT.1).always());
    let asked = Instant::now();
    let refusal = plugin.client.expand(&id, 5 << 30).unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(5), "{refusal}");
    assert_eq!(refusal.code, RpcStatusCode::OUT_OF_RANGE, "{refusal}");
}

#[test]
fn a_growth_in_vain_is_told_with_what_digitalocean_said_last() {
    let (fleet, plugin) = started(&["--call-budget=3"]);
    let id = fleet.volume("one");
    fleet.sim.faults().add(Fault::refused(Refusal::DUPLICATE_SNAPSHOT).on(ACT.0, ACT.1).always());
    // On a busy machine the last try may have had no time for an answer.
    let refusal = plugin.client.expand(&id, 5 << 30).unwrap_err();
    let said = refusal.message.split_once("does not have the size yet; ").map(|(_, said)| said);
    let is_told = said.is_some_and(|said| said.contains("due to a conflict") || said.contains("no answer in time"));
    assert!(is_told, "{refusal}");
}

#[test]
fn a_detach_that_is_never_said_to_have_ended_is_named_with_what_to_do() {
    let (fleet, plugin) = started(&["--call-budget=3"]);
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add_action(ActionFault::taking(HOUR).of(ActionKind::Detach));
    fleet.sim.detach(&id, A).unwrap();
    fleet.sim.advance(Duration::from_secs(60));
    let stuck = detaches(&fleet)[0].id;
    let words = format!("detach_volume action {stuck} is said to run");
    let code = RpcStatusCode::FAILED_PRECONDITION;
    assert_gave_up(publish(&plugin.client, &id, A), code, &words);
    assert_gave_up(publish(&plugin.client, &id, A), code, "ticket with DigitalOcean's support");
}

#[test]
fn tags_are_the_same_in_whatever_capitals() {
    let (fleet, plugin) = started(&["--call-budget=4", "--do-tag=prod"]);
    let tagged = NewVolume { tags: vec!["Prod".to_owned(), "Gone".to_owned()], ..NewVolume::new("first", 1, "fra1") };
    let first = fleet.sim.add_volume(&tagged).unwrap();
    let second = fleet.volume("second");
    let client = &plugin.client;
    fleet.sim.reset_calls();
    client.modify(&first, &[("tags", "PROD"), ("remove-tags", "gone")]).unwrap();
    client.modify(&second, &[("tags", "prod")]).unwrap();
    publish(client, &first, A).unwrap();
    publish(client, &second, A).unwrap();
    for id in [&first, &second] {
        assert_eq!(fleet.sim.volume(id).unwrap().tags, ["Prod"]);
    }
    let calls = fleet.sim.calls();
    assert_eq!(calls.of("POST", "/v2/tags/{tag}/resources"), 1, "{calls}");
}

#[test]
fn a_tag_that_is_put_on_but_does_not_show_is_asked_for_in_growing_pauses() {
    let (fleet, plugin) = started(&["--call-budget=3"]);
    let id = fleet.volume("one");
    // Said to be done, and not done.
    let said = Fault::answered(204, "application/json", "");
    fleet.sim.faults().add(said.on("POST", "/v2/tags/{tag}/resources").always());
    fleet.sim.reset_calls();
    assert_gave_up(plugin.client.modify(&id, &[("tags", "a")]), RpcStatusCode::UNAVAILABLE, "tags");
    let calls = fleet.sim.calls();
    assert!(calls.total() < 60, "{calls}");
}

#[test]
fn a_tag_that_cannot_be_put_on_is_a_warning_and_no_failed_attach() {
    let (fleet, plugin) = started(&["--call-budget=4", "--do-tag=prod"]);
    let id = fleet.volume("one");
    fleet.sim.faults().add(Fault::server_error().on("POST", "/v2/tags/{tag}/resources").always());
    let asked = Instant::now();
    assert_eq!(publish(&plugin.client, &id, A), Ok(()));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    fleet.sim.faults().clear();
    // Nor does it hold up this publish for long, or the next one at all, where nobody answers.
    let plugin = fleet.controller(Path::new(PROGRAM), "silent", &["--call-budget=20", "--do-tag=prod"]);
    fleet.sim.faults().add(Fault::hung().on("POST", "/v2/tags/{tag}/resources").always());
    fleet.sim.reset_calls();
    let asked = Instant::now();
    for _ in 0..2 {
        assert_eq!(publish(&plugin.client, &id, A), Ok(()));
    }
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(fleet.sim.calls().of("POST", "/v2/tags/{tag}/resources"), 1);
    fleet.sim.faults().clear();
    // Each of the two scopes that it takes.
    let lacking: [fn(&mut Switches); 2] =
        [|switches| switches.token_lacks_tags = true, |switches| switches.token_lacks_volume_update = true];
    for (number, lacking) in lacking.into_iter().enumerate() {
        fleet.sim.change_rules(|rules| {
            rules.switches = Switches::default();
            lacking(&mut rules.switches);
        });
        let plugin = fleet.controller(Path::new(PROGRAM), &format!("lacking-{number}"), &["--do-tag=prod"]);
        fleet.sim.reset_calls();
        for _ in 0..3 {
            assert_eq!(publish(&plugin.client, &id, A), Ok(()));
        }
        let log = plugin.log();
        let warnings =
            log.lines().filter(|line| line.contains("WARN") && line.contains("block_storage:update")).count();
        assert_eq!(warnings, 1, "{log}");
        let calls = fleet.sim.calls();
        assert_eq!(calls.of("POST", "/v2/tags/{tag}/resources") + calls.of("POST", "/v2/tags"), 1, "{calls}");
        assert_eq!(fleet.sim.volume(&id).unwrap().tags, Vec::<String>::new());
    }
}

#[test]
fn what_was_created_and_does_not_show_is_out_of_time_and_not_missing() {
    let (fleet, plugin) = started(&["--call-budget=4"]);
    let id = fleet.volume("one");
    fleet.sim.faults().add(Fault::refused(Refusal::NOT_FOUND).on("GET", "/v2/volumes/snapshots/{id}").always());
    assert_gave_up(plugin.client.create_snapshot("shot", &id), RpcStatusCode::UNAVAILABLE, "does not show");
    fleet.sim.faults().clear();
    fleet.sim.change_rules(|rules| rules.times.create_visible_after = HOUR);
    let capability = Volume::mounted("", "ext4").capability;
    let made = plugin.client.create_volume("two", 1 << 30, &capability);
    assert_gave_up(made, RpcStatusCode::UNAVAILABLE, "does not show");
    assert_eq!(fleet.sim.volumes().len(), 2);
}

#[test]
fn a_limit_of_the_account_is_not_told_as_one_of_the_droplet() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume("one");
    for fault in [Fault::quota_used_up(), Fault::quota_used_up_as_429()] {
        fleet.sim.faults().add(fault.on(ACT.0, ACT.1).times(2));
        assert_gave_up(publish(&plugin.client, &id, A), RpcStatusCode::RESOURCE_EXHAUSTED, "capacity limit");
        fleet.sim.faults().clear();
    }
}

#[test]
fn an_action_that_outlasts_the_call_is_finished_by_the_next_one() {
    let (fleet, plugin) = started(&["--call-budget=2"]);
    let id = fleet.volume("one");
    fleet.sim.faults().add_action(ActionFault::taking(Duration::from_millis(2300)).times(2));
    assert_gave_up(publish(&plugin.client, &id, A), RpcStatusCode::FAILED_PRECONDITION, "gave up waiting");
    // After one that failed, a call has less time than a whole one.
    assert!((0..20).any(|_| publish(&plugin.client, &id, A).is_ok()), "{}", plugin.log());
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
    assert_gave_up(unpublish(&plugin.client, &id, A), RpcStatusCode::UNAVAILABLE, "gave up waiting");
    assert!((0..20).any(|_| unpublish(&plugin.client, &id, A).is_ok()), "{}", plugin.log());
    assert_eq!(fleet.sim.attached_to(&id), None);
    assert_eq!(fleet.sim.actions().len(), 2, "something was done twice");
}

#[test]
fn an_attach_to_another_droplet_is_no_proof_for_this_one() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume_on("one", A);
    fleet.sim.detach(&id, A).unwrap();
    fleet.rest();
    // The list says A for a while, and the volume is on B.
    let late = ActionFault::droplet_ids_late(Duration::from_millis(700)).of(ActionKind::Attach);
    fleet.sim.faults().add_action(ActionFault::droplet_ids_early().of(ActionKind::Attach));
    fleet.sim.attach(&id, A).unwrap();
    fleet.rest();
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(HOUR).of(ActionKind::Detach));
    fleet.sim.detach(&id, A).unwrap();
    fleet.rest();
    fleet.sim.faults().add_action(late);
    fleet.sim.attach(&id, B).unwrap();
    fleet.rest();
    let outcome = publish(&plugin.client, &id, A);
    assert_gave_up(outcome, RpcStatusCode::FAILED_PRECONDITION, "is attached to droplet");
    assert_eq!(fleet.sim.attached_to(&id), Some(B));
}

#[test]
fn the_next_snapshot_too_soon_is_told_with_the_time_to_wait() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume("one");
    plugin.client.create_snapshot("first", &id).unwrap();
    let refusal = plugin.client.create_snapshot("second", &id).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::RESOURCE_EXHAUSTED, "{refusal}");
    let wait = refusal.message.split_once("next snapshot in ").and_then(|(_, rest)| rest.split(' ').next());
    let wait: u64 = wait.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{refusal}"));
    assert!((590..=600).contains(&wait), "{refusal}");
    fleet.sim.advance(Duration::from_secs(600));
    plugin.client.create_snapshot("second", &id).unwrap();
    assert_eq!(fleet.sim.snapshots().len(), 2);
}

#[test]
fn a_snapshot_that_was_taken_by_a_try_without_reply_and_shows_late_is_found() {
    for (may_share_name, is_clone) in [(false, false), (false, true), (true, false), (true, true)] {
        let (fleet, plugin) = started(&ARGS);
        // The next try is refused, for its name or as too soon, because of the first one.
        fleet.sim.change_rules(|rules| {
            rules.switches.duplicate_snapshot_names_are_accepted = may_share_name;
            rules.times.snapshot_visible_after = Duration::from_millis(700);
        });
        let id = fleet.volume("one");
        fleet.sim.faults().add(Fault::lost_reply().on("POST", "/v2/volumes/{id}/snapshots"));
        let made = if is_clone {
            plugin.client.create(&cloned(new_volume("copy", 1 << 30), &id)).map(drop)
        } else {
            plugin.client.create_snapshot("shot", &id).map(drop)
        };
        assert_eq!(made, Ok(()), "names may be shared: {may_share_name}, a clone: {is_clone}");
        assert_eq!(fleet.sim.faults().outstanding(), 0);
        assert_eq!((fleet.sim.snapshots().len(), fleet.sim.volumes().len()), if is_clone { (0, 2) } else { (1, 1) });
    }
}

#[test]
fn a_conflict_that_digitalocean_does_not_explain_is_not_told_as_another_volumes_snapshot() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume("one");
    let route = ("POST", "/v2/volumes/{id}/snapshots");
    fleet.sim.faults().add(Fault::refused(Refusal::DUPLICATE_SNAPSHOT).on(route.0, route.1).times(2));
    plugin.client.create_snapshot("shot", &id).unwrap();
    assert_eq!((fleet.sim.snapshots().len(), fleet.sim.faults().outstanding()), (1, 0));
    fleet.sim.faults().add(Fault::refused(Refusal::DUPLICATE_SNAPSHOT).on(route.0, route.1).always());
    let other = fleet.volume("other");
    assert_gave_up(plugin.client.create_snapshot("other", &other), RpcStatusCode::UNAVAILABLE, "due to a conflict");
}

#[test]
fn a_snapshot_that_may_have_been_taken_and_does_not_show_is_not_told_as_another_volumes() {
    for (may_share_name, code) in [(false, RpcStatusCode::UNAVAILABLE), (true, RpcStatusCode::RESOURCE_EXHAUSTED)] {
        let (fleet, plugin) = started(&ARGS);
        fleet.sim.change_rules(|rules| {
            rules.switches.duplicate_snapshot_names_are_accepted = may_share_name;
            rules.times.snapshot_visible_after = HOUR;
        });
        let id = fleet.volume("one");
        fleet.sim.faults().add(Fault::lost_reply().on("POST", "/v2/volumes/{id}/snapshots"));
        let asked = Instant::now();
        assert_gave_up(plugin.client.create_snapshot("shot", &id), code, &id);
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        fleet.sim.advance(HOUR);
        plugin.client.create_snapshot("shot", &id).unwrap();
        assert_eq!(fleet.sim.snapshots().len(), 1);
    }
}

#[test]
fn a_droplets_calls_wait_for_each_other_and_never_collide() {
    let (fleet, plugin) = started(&["--call-budget=20"]);
    let ids: Vec<String> = (0..6).map(|number| fleet.volume(&format!("volume-{number}"))).collect();
    fleet.sim.change_rules(|rules| rules.times.attach = Duration::from_millis(200));
    // Any second event of the droplet is refused, and the refused request is counted like the others.
    std::thread::scope(|scope| {
        ids.iter().for_each(|id| {
            scope.spawn(|| publish(&plugin.client, id, A).unwrap());
        });
    });
    assert!(ids.iter().all(|id| fleet.sim.attached_to(id) == Some(A)));
    let calls = fleet.sim.calls();
    assert_eq!(calls.of(ACT.0, ACT.1), 6, "{calls}");
}

#[test]
fn moving_all_volumes_of_a_droplet_costs_few_calls() {
    let (fleet, plugin) = started(&["--call-budget=60"]);
    let ids: Vec<String> = (0..15).map(|number| fleet.volume_on(&format!("volume-{number}"), A)).collect();
    fleet.sim.change_rules(|rules| (rules.times.attach, rules.times.detach) = (SHORT, SHORT));
    fleet.sim.reset_calls();
    std::thread::scope(|scope| {
        for id in &ids {
            let client = &plugin.client;
            scope.spawn(move || unpublish(client, id, A).and_then(|()| publish(client, id, B)).unwrap());
        }
    });
    assert!(ids.iter().all(|id| fleet.sim.attached_to(id) == Some(B)));
    let calls = fleet.sim.calls();
    assert!(calls.total() < 140, "{calls}");
}

#[test]
fn a_detach_that_failed_is_repeated_while_the_list_shows_where_the_volume_was() {
    // The list of droplets is old, and once that of actions too.
    for is_unlisted in [false, true] {
        let (fleet, plugin) = started(&ARGS);
        let id = if is_unlisted { fleet.volume("one") } else { fleet.volume_on("one", B) };
        if !is_unlisted {
            fleet.sim.faults().add_action(ActionFault::droplet_ids_late(HOUR).of(ActionKind::Detach));
            fleet.sim.detach(&id, B).unwrap();
            fleet.rest();
        }
        let late = if is_unlisted { ActionFault::unlisted(HOUR) } else { ActionFault::droplet_ids_late(HOUR) };
        fleet.sim.faults().add_action(late.of(ActionKind::Attach));
        fleet.sim.attach(&id, A).unwrap();
        fleet.rest();
        fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach));
        assert_eq!(unpublish(&plugin.client, &id, A), Ok(()));
        assert_eq!(fleet.sim.attached_to(&id), None, "unlisted: {is_unlisted}");
    }
}

#[test]
fn a_volume_that_no_list_shows_is_detached_from_the_droplet_that_has_it() {
    for late in [ActionFault::droplet_ids_late(HOUR), ActionFault::unlisted(HOUR)] {
        let (fleet, plugin) = started(&ARGS);
        let id = fleet.volume("one");
        fleet.sim.faults().add_action(late.of(ActionKind::Attach));
        fleet.sim.attach(&id, A).unwrap();
        fleet.rest();
        assert_eq!(plugin.client.controller_unpublish(&id, ""), Ok(()));
        assert_eq!(fleet.sim.attached_to(&id), None);
    }
}

#[test]
fn a_volume_that_was_detached_is_attached_again_whatever_list_and_droplet_show() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume_on("one", A);
    fleet.sim.faults().add_action(ActionFault::records_late(HOUR).of(ActionKind::Detach));
    fleet.sim.detach(&id, A).unwrap();
    fleet.rest();
    assert_eq!(publish(&plugin.client, &id, A), Ok(()));
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
}

#[test]
fn a_volume_that_is_where_list_and_droplet_show_it_is_published_though_its_attach_is_not_listed() {
    let (fleet, plugin) = started(&ARGS);
    let id = fleet.volume_on("one", A);
    fleet.sim.detach(&id, A).unwrap();
    fleet.rest();
    fleet.sim.faults().add_action(ActionFault::unlisted_only(HOUR).of(ActionKind::Attach));
    fleet.sim.attach(&id, A).unwrap();
    fleet.rest();
    assert_eq!(publish(&plugin.client, &id, A), Ok(()));
    assert_eq!(fleet.sim.actions().len(), 3, "it was attached again");
}

#[test]
fn a_clock_that_is_an_hour_behind_decides_nothing() {
    let (fleet, plugin) = started(&ARGS);
    fleet.sim.advance(HOUR);
    let id = fleet.volume("one");
    fleet.sim.faults().add_action(ActionFault::droplet_ids_late(Duration::from_millis(700)).of(ActionKind::Attach));
    fleet.sim.attach(&id, A).unwrap();
    fleet.rest();
    // Times of actions are told in whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(plugin.client.controller_unpublish(&id, ""), Ok(()));
    assert_eq!(fleet.sim.attached_to(&id), None, "it was taken for attached after the call");
    // An action of which nobody is told the end.
    fleet.sim.faults().add_action(ActionFault::stays_in_progress().of(ActionKind::Attach));
    fleet.sim.attach(&id, A).unwrap();
    fleet.sim.advance(HOUR);
    assert_eq!(publish(&plugin.client, &id, A), Ok(()));
}

#[test]
fn a_deleted_volume_that_is_still_listed_is_not_taken_for_the_new_one() {
    let (fleet, plugin) = started(&ARGS);
    fleet.sim.change_rules(|rules| rules.times.deleted_stays_listed = Duration::from_millis(600));
    let capability = Volume::mounted("", "ext4").capability;
    let old = plugin.client.create_volume("one", 1 << 30, &capability).unwrap().volume_id;
    plugin.client.delete_volume(&old).unwrap();
    fleet.sim.faults().add(Fault::server_error().on("POST", "/v2/volumes"));
    let new = plugin.client.create_volume("one", 1 << 30, &capability).unwrap().volume_id;
    assert!(fleet.sim.volume(&new).is_some(), "{new} was deleted");
}

#[test]
fn a_detach_that_is_carried_out_after_it_was_given_up_takes_nothing_that_was_published_since() {
    let (fleet, plugin) = started(&["--call-budget=10", "--api-timeout=0.4"]);
    let id = fleet.volume_on("one", A);
    let gate = Gate::default();
    fleet.sim.faults().add(Fault::held(&gate).on(ACT.0, ACT.1).containing("detach"));
    assert_eq!(unpublish(&plugin.client, &id, A), Ok(()), "the second one is carried out");
    assert_eq!(fleet.sim.attached_to(&id), None);
    std::thread::scope(|scope| {
        let published = scope.spawn(|| publish(&plugin.client, &id, A));
        // Before the answer, the publish would see for itself that it is taken away again.
        wait_for(Duration::from_millis(1500), || published.is_finished().then_some(()));
        gate.open();
        assert_eq!(published.join().unwrap(), Ok(()));
    });
    let taken = wait_for(Duration::from_secs(1), || fleet.sim.attached_to(&id).is_none().then_some(()));
    assert!(taken.is_none(), "it was taken from its new user");
}
