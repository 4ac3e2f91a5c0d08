//! Volumes that begin with content, and the snapshots they are made from: what the cloud holds when all is done.

use std::path::Path;
use std::time::Duration;

use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{Fault, NewVolume, Refusal, Sim};
use crate::support::client::{cloned, new_volume, publish, restored};
use crate::support::controllers::{A, ACTION, ControllerHarness};
use crate::support::plugin::Plugin;
use crate::support::single_plugin::until;
use crate::support::wait_for;

const GIB: i64 = 1 << 30;

/// The tag of the snapshots through which clones are made.
const TEMPORARY: &str = "do-csi-temporary";

fn controller(fleet: &ControllerHarness) -> Plugin {
    fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=8"])
}

/// A volume of so many GiB.
fn volume_of(fleet: &ControllerHarness, name: &str, gib: i64) -> String {
    fleet.sim.add_volume(&NewVolume::new(name, gib, "fra1")).expect("the volume is made")
}

#[test]
fn a_copy_is_made_with_the_size_of_its_source_whether_or_not_a_smaller_one_would_do() {
    for is_refused in [false, true] {
        let fleet = ControllerHarness::with_actions(ACTION);
        fleet.sim.change_rules(|rules| rules.switches.small_restore_is_refused = is_refused);
        let plugin = controller(&fleet);
        let source = volume_of(&fleet, "source", 5);
        let snapshot = fleet.sim.create_snapshot(&source, "nightly").unwrap();
        for (name, bytes, gib) in [("any", 0, 5), ("less", GIB, 5), ("same", 5 * GIB, 5), ("more", 7 * GIB, 7)] {
            let made = plugin.client.create(&restored(new_volume(name, bytes), &snapshot)).unwrap();
            assert_eq!(made.capacity_bytes, gib * GIB, "{name}");
            assert_eq!(fleet.sim.volume(name).unwrap().size_gigabytes.cast_signed(), gib, "{name}");
        }
        let original = volume_of(&fleet, "original", 5);
        let made = plugin.client.create(&cloned(new_volume("clone", 0), &original)).unwrap();
        assert_eq!(made.capacity_bytes, 5 * GIB);
        assert_eq!(fleet.sim.volume("clone").unwrap().size_gigabytes, 5);
    }
}

#[test]
fn a_copy_that_is_finished_or_in_use_is_not_grown_by_a_repetition() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet);
    let source = volume_of(&fleet, "source", 5);
    let snapshot = fleet.sim.create_snapshot(&source, "nightly").unwrap();
    let restore = |name, gib| plugin.client.create(&restored(new_volume(name, gib * GIB), &snapshot));
    let size = |name: &str| fleet.sim.volume(name).unwrap().size_gigabytes;
    restore("finished", 7).unwrap();
    let refusal = restore("finished", 9).unwrap_err();
    assert_eq!((refusal.code, size("finished")), (RpcStatusCode::ALREADY_EXISTS, 7), "{refusal}");
    let used = restore("used", 5).unwrap().volume_id;
    publish(&plugin.client, &used, A).unwrap();
    let refusal = restore("used", 7).unwrap_err();
    assert_eq!((refusal.code, size("used")), (RpcStatusCode::ALREADY_EXISTS, 5), "{refusal}");
    // One that was cut off before it grew.
    restore("cut-off", 5).unwrap();
    restore("cut-off", 7).unwrap();
    assert_eq!(size("cut-off"), 7);
}

#[test]
fn a_snapshot_is_found_by_a_repetition_when_its_volume_has_gone() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = controller(&fleet);
    let id = plugin.client.create(&new_volume("blog", GIB)).unwrap().volume_id;
    let taken = plugin.client.create_snapshot("nightly", &id).unwrap().snapshot_id;
    plugin.client.delete_volume(&id).unwrap();
    assert_eq!(plugin.client.create_snapshot("nightly", &id).unwrap().snapshot_id, taken);
    let refusal = plugin.client.create_snapshot("weekly", &id).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::NOT_FOUND, "{refusal}");
    // What a person took is not adopted, volume or not.
    let id = plugin.client.create(&new_volume("shop", GIB)).unwrap().volume_id;
    fleet.sim.create_snapshot(&id, "by-hand").unwrap();
    plugin.client.delete_volume(&id).unwrap();
    let refusal = plugin.client.create_snapshot("by-hand", &id).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::ALREADY_EXISTS, "{refusal}");
}

#[test]
fn a_source_in_another_region_does_not_fit() {
    let fleet = ControllerHarness::in_regions(&["fra1", "nyc1"]);
    let plugin = controller(&fleet);
    let source = fleet.sim.add_volume(&NewVolume::new("source", 1, "nyc1")).unwrap();
    let snapshot = fleet.sim.create_snapshot(&source, "nightly").unwrap();
    let requests = [restored(new_volume("copy", GIB), &snapshot), cloned(new_volume("copy", GIB), &source)];
    for (request, id) in requests.iter().zip([&snapshot, &source]) {
        let refusal = plugin.client.create(request).unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::INVALID_ARGUMENT, "{refusal}");
        for word in [id, "nyc1", "fra1"] {
            assert!(refusal.message.contains(word), "{word}: {refusal}");
        }
    }
    assert_eq!((fleet.sim.volumes().len(), fleet.sim.snapshots().len()), (1, 1));
}

#[test]
fn a_plugin_killed_at_any_moment_of_a_clone_is_made_up_for_by_the_next_and_no_snapshot_stays() {
    let post_snapshot = ("POST", "/v2/volumes/{id}/snapshots");
    let post_volume = ("POST", "/v2/volumes");
    let delete_snapshot = ("DELETE", "/v2/volumes/snapshots/{id}");
    for (method, pattern) in [post_snapshot, post_volume, delete_snapshot] {
        let fleet = ControllerHarness::with_actions(ACTION);
        let source = volume_of(&fleet, "source", 3);
        let plugin = controller(&fleet);
        // The effect is there when the process dies, and the reply has not come.
        let is_late = Fault::late(Duration::from_secs(5));
        fleet.sim.faults().add(is_late.on(method, pattern));
        let request = cloned(new_volume("redis[0]", 4 * GIB), &source);
        std::thread::scope(|scope| {
            let (client, request) = (plugin.client.clone(), request.clone());
            let cut_off = scope.spawn(move || client.create(&request));
            until("the request has come", || fleet.sim.calls().of(method, pattern) > 0);
            plugin.kill().unwrap();
            assert!(cut_off.join().unwrap().is_err());
        });
        until("its effect is there", || !fleet.sim.snapshots().is_empty() || method == "DELETE");
        let plugin = controller(&fleet);
        let made = plugin.client.create(&request).unwrap();
        assert_eq!(made.capacity_bytes, 4 * GIB, "{method} {pattern}");
        assert_eq!(fleet.sim.volumes().len(), 2, "{method} {pattern}");
        assert_eq!(fleet.sim.volume(&made.volume_id).unwrap().size_gigabytes, 4, "{method} {pattern}");
        assert_eq!(fleet.sim.snapshots(), [], "{method} {pattern}");
    }
}

/// A snapshot as a clone is made through it, of that age.
fn temporary(sim: &Sim, volume: &str, digit: char, age: Duration) -> String {
    let name = format!("do-csi-clone-{}", digit.to_string().repeat(20));
    let id = sim.create_tagged_snapshot(volume, &name, &[TEMPORARY]).unwrap();
    sim.backdate_snapshot(&id, age);
    id
}

#[test]
fn what_a_clone_left_behind_is_removed_after_a_start_and_nothing_else() {
    let fleet = ControllerHarness::with_actions(ACTION);
    fleet.sim.change_rules(|rules| rules.limits.snapshot_interval = Duration::ZERO);
    let source = volume_of(&fleet, "source", 1);
    let (old, young) = (Duration::from_secs(901), Duration::from_secs(700));
    let left_behind = temporary(&fleet.sim, &source, 'a', old);
    let in_use = temporary(&fleet.sim, &source, 'b', young);
    // Names and tags of people, each with one half of what makes a snapshot ours.
    let untagged = fleet.sim.create_snapshot(&source, &format!("do-csi-clone-{}", "c".repeat(20))).unwrap();
    let named = fleet.sim.create_tagged_snapshot(&source, "nightly", &[TEMPORARY]).unwrap();
    [&untagged, &named].into_iter().for_each(|id| fleet.sim.backdate_snapshot(id, old));
    let plugin = controller(&fleet);
    let is_there = |id: &str| fleet.sim.snapshots().iter().any(|snapshot| snapshot.id == id);
    until("the snapshot is removed", || !is_there(&left_behind));
    let kept = [&in_use, &untagged, &named];
    assert!(kept.into_iter().all(|id| is_there(id)), "{:?}", fleet.sim.snapshots());
    assert_eq!(fleet.sim.calls().of("DELETE", "/v2/volumes/snapshots/{id}"), 1, "{}", plugin.log());
}

#[test]
fn what_a_clone_left_behind_on_the_allow_list_is_removed_too() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let source = volume_of(&fleet, "source", 1);
    fleet.sim.tag_volume(&source, "nomad").unwrap();
    let args = ["--call-budget=5", "--do-tag=prod", "--only-tag=nomad"];
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &args);
    let delete = ("DELETE", "/v2/volumes/snapshots/{id}");
    fleet.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on(delete.0, delete.1));
    plugin.client.create(&cloned(new_volume("copy", GIB), &source)).unwrap();
    let left = fleet.sim.snapshots();
    assert_eq!(left.len(), 1);
    drop(plugin);
    fleet.sim.backdate_snapshot(&left[0].id, Duration::from_secs(901));
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &args);
    until("the snapshot is removed", || fleet.sim.snapshots().is_empty());
    drop(plugin);
}

#[test]
fn an_account_without_temporary_snapshots_is_told_so_by_one_request_however_many_others_it_has() {
    let looked_for = |has_tag: bool| {
        let fleet = ControllerHarness::with_actions(ACTION);
        fleet.sim.change_rules(|rules| {
            (rules.limits.snapshots_per_volume, rules.limits.snapshot_interval) = (1000, Duration::ZERO);
        });
        let source = volume_of(&fleet, "source", 1);
        for number in 0..250 {
            fleet.sim.create_snapshot(&source, &format!("nightly-{number}")).unwrap();
        }
        if has_tag {
            // As after a clone: DigitalOcean keeps a tag that nothing carries any more.
            let gone = temporary(&fleet.sim, &source, 'a', Duration::ZERO);
            controller(&fleet).client.delete_snapshot(&gone).unwrap();
        }
        fleet.sim.reset_calls();
        let _plugin = controller(&fleet);
        until("it has looked", || fleet.sim.calls().of("GET", "/v2/tags/{tag}") > 0);
        // It would list them right after.
        std::thread::sleep(Duration::from_millis(500));
        let calls = fleet.sim.calls();
        assert_eq!(calls.total(), 1, "{has_tag}: {calls}");
    };
    std::thread::scope(|scope| {
        for has_tag in [false, true] {
            scope.spawn(move || looked_for(has_tag));
        }
    });
}

#[test]
fn a_token_without_the_scopes_for_snapshots_is_told_once_that_nothing_is_looked_for() {
    let refused = |(method, pattern)| {
        let fleet = ControllerHarness::with_actions(ACTION);
        let source = volume_of(&fleet, "source", 1);
        temporary(&fleet.sim, &source, 'a', Duration::from_secs(901));
        fleet.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on(method, pattern).always());
        let plugin = controller(&fleet);
        let told = || plugin.log().lines().filter(|line| line.contains("not tried again")).count();
        until("it is told", || told() > 0);
        let calls = fleet.sim.calls().total();
        // Longer than until a request that failed for a moment is sent again.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!((told(), fleet.sim.calls().total()), (1, calls), "{}", plugin.log());
    };
    let requests = [("GET", "/v2/tags/{tag}"), ("GET", "/v2/snapshots"), ("DELETE", "/v2/volumes/snapshots/{id}")];
    std::thread::scope(|scope| {
        for request in requests {
            scope.spawn(move || refused(request));
        }
    });
}

#[test]
fn a_temporary_snapshot_whose_age_cannot_be_read_stays() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let source = volume_of(&fleet, "source", 1);
    let name = format!("do-csi-clone-{}", "a".repeat(20));
    let id = fleet.sim.create_tagged_snapshot(&source, &name, &[TEMPORARY]).unwrap();
    let listed = format!(
        r#"{{"snapshots":[{{"id":"{id}","name":"{name}","resource_id":"{source}","resource_type":"volume",
            "regions":["fra1"],"min_disk_size":1,"size_gigabytes":0,"created_at":"yesterday","tags":["{TEMPORARY}"]}}],
            "links":{{}},"meta":{{"total":1}}}}"#
    );
    let answered = Fault::answered(200, "application/json", &listed);
    fleet.sim.faults().add(answered.on("GET", "/v2/snapshots").always());
    let plugin = controller(&fleet);
    let says_why = || plugin.log().lines().any(|line| line.contains(&id) && line.contains("yesterday"));
    assert!(wait_for(Duration::from_secs(20), || says_why().then_some(())).is_some(), "{}", plugin.log());
    assert_eq!(fleet.sim.calls().of("DELETE", "/v2/volumes/snapshots/{id}"), 0);
    assert_eq!(fleet.sim.snapshots().len(), 1);
}

#[test]
fn two_volumes_never_share_a_snapshots_name_whether_or_not_digitalocean_keeps_names_unique() {
    for is_accepted in [false, true] {
        let fleet = ControllerHarness::with_actions(ACTION);
        fleet.sim.change_rules(|rules| {
            rules.switches.duplicate_snapshot_names_are_accepted = is_accepted;
            (rules.limits.snapshots_per_volume, rules.limits.snapshot_interval) = (1000, Duration::ZERO);
        });
        let (one, other) = (volume_of(&fleet, "one", 1), volume_of(&fleet, "other", 1));
        // More than a page, so that the name is found wherever it stands.
        for number in 0..250 {
            fleet.sim.create_snapshot(&one, &format!("filler-{number}")).unwrap();
        }
        let plugin = controller(&fleet);
        let taken = plugin.client.create_snapshot("nightly[0]", &one).unwrap();
        let refusal = plugin.client.create_snapshot("nightly[0]", &other).unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::ALREADY_EXISTS, "{is_accepted}: {refusal}");
        assert!(refusal.message.contains(&other), "{refusal}");
        assert_eq!(fleet.sim.snapshots().len(), 251, "{is_accepted}");
        assert_eq!(plugin.client.create_snapshot("nightly[0]", &one).unwrap(), taken);
    }
}

#[test]
fn snapshots_of_many_volumes_in_a_row_and_at_once_read_the_list_of_all_snapshots_once() {
    let fleet = ControllerHarness::with_actions(ACTION);
    fleet.sim.change_rules(|rules| {
        (rules.limits.snapshots_per_volume, rules.limits.snapshot_interval) = (1000, Duration::ZERO);
    });
    let plugin = controller(&fleet);
    let volumes: Vec<String> = (0..30).map(|number| volume_of(&fleet, &format!("volume-{number}"), 1)).collect();
    for number in 0..250 {
        fleet.sim.create_snapshot(&volumes[0], &format!("filler-{number}")).unwrap();
    }
    let take =
        |number: usize, volume: &str| plugin.client.create_snapshot(&format!("nightly-{number}"), volume).unwrap();
    std::thread::scope(|scope| {
        for (number, volume) in volumes.iter().enumerate().take(10) {
            scope.spawn(move || take(number, volume));
        }
    });
    volumes.iter().enumerate().skip(10).for_each(|(number, volume)| drop(take(number, volume)));
    assert_eq!(fleet.sim.snapshots().len(), 280);
    let calls = fleet.sim.calls();
    // Two pages.
    assert_eq!(calls.of("GET", "/v2/snapshots"), 2, "{calls}");
    // The names are known by now, those of this process and those that were there before, and each only to be taken again.
    for name in ["nightly-3", "filler-249"] {
        let refusal = plugin.client.create_snapshot(name, &volumes[1]).unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::ALREADY_EXISTS, "{name}: {refusal}");
    }
    assert_eq!(fleet.sim.snapshots().len(), 280);
    assert_eq!(fleet.sim.calls().of("GET", "/v2/snapshots"), 2, "{calls}");
}

#[test]
fn a_name_that_somebody_else_has_freed_since_the_list_was_read_can_be_used() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugins = ["one", "two"].map(|name| fleet.controller(Path::new(PROGRAM), name, &["--call-budget=8"]));
    let [one, two] = plugins.each_ref().map(|plugin| &plugin.client);
    let volumes = ["a", "b", "c"].map(|name| volume_of(&fleet, name, 1));
    let listed = two.create_snapshot("listed", &volumes[0]).unwrap();
    let own = one.create_snapshot("own", &volumes[1]).unwrap();
    for gone in [listed, own] {
        two.delete_snapshot(&gone.snapshot_id).unwrap();
    }
    fleet.sim.advance(Duration::from_secs(600));
    one.create_snapshot("listed", &volumes[1]).unwrap();
    one.create_snapshot("own", &volumes[2]).unwrap();
    assert_eq!(fleet.sim.snapshots().len(), 2);
}
