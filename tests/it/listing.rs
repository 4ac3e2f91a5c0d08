//! Lists: whole and true whatever the size of their pages, and cheap. The figures that docs/csi.md names are printed and
//! asserted here.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use do_csi_plugin::proto::csi;
use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{Fault, NewVolume, Rules, Times, Volume};
use crate::support::client::{Client, Outcome, publish, text_map};
use crate::support::controllers::{A, ACTION, B, ControllerHarness, no_rate_limit};
use crate::support::plugin::Plugin;
use crate::support::single_plugin::until;

const GIB: i64 = 1 << 30;

/// A name and the tag of the snapshots through which clones are made.
const TEMPORARY: (&str, &str) = ("do-csi-clone-0123456789abcdef0123", "do-csi-temporary");

fn controller(fleet: &ControllerHarness) -> Plugin {
    fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=60"])
}

/// A cloud without limits of number and size, in two regions.
fn roomy() -> ControllerHarness {
    let fleet = ControllerHarness::in_regions(&["fra1", "nyc1"]);
    fleet.sim.change_rules(|rules| {
        (rules.limits.volumes, rules.limits.region_gigabytes, rules.limits.attach) = (0, u64::MAX, 1000);
        (rules.limits.snapshots_per_volume, rules.limits.snapshot_interval) = (1000, Duration::ZERO);
    });
    fleet
}

/// So many volumes as an orchestrator makes them.
fn fill(fleet: &ControllerHarness, count: usize) {
    for number in 0..count {
        let name = format!("pvc-6c7d1b0e-3c4e-4d5b-9a52-{number:012}");
        let description = format!("Created by DigitalOcean CSI driver for \"redis[{number}]\"");
        let tags = vec!["production".to_owned(), "env:0f3a".to_owned()];
        let size = i64::try_from(number % 7 + 1).unwrap();
        let new = NewVolume { description, tags, ..NewVolume::new(&name, size, "fra1") };
        fleet.sim.add_volume(&new).unwrap();
    }
}

#[test]
fn five_thousand_volumes_are_listed_in_28_calls_of_the_api_and_less_than_16_mb_of_memory() {
    let fleet = roomy();
    fill(&fleet, 5000);
    let plugin = controller(&fleet);
    // What the first call costs once, a connection and its threads, is not the list's.
    plugin.client.list_volumes(1, "").unwrap();
    let (idle_kb, _) = plugin.memory_kb().unwrap();
    fleet.sim.reset_calls();
    let listed = plugin.client.list_volumes(0, "").unwrap();
    let peak_kb = plugin.peak_memory_kb().unwrap();
    let calls = fleet.sim.calls();
    let above_mb = (peak_kb.saturating_sub(idle_kb)) as f64 / 1024.0;
    println!(
        "5000 volumes: {} calls, {idle_kb} kB idle, {peak_kb} kB at most, {above_mb:.1} MB above idle",
        calls.total()
    );
    assert_eq!((listed.entries.len(), listed.next_token.as_str()), (5000, ""));
    // What the plugin looks for by itself 10 s after its start is not the list's.
    let own = calls.of("GET", "/v2/tags/{tag}");
    let lists = calls.of("GET", "/v2/volumes");
    assert!(lists + own == calls.total() && lists <= 28, "{calls}");
    assert!(above_mb < 16.0, "{above_mb} MB");
    // Neither does it grow with the number of lists.
    for _ in 0..10 {
        plugin.client.list_volumes(0, "").unwrap();
    }
    let again_mb = (plugin.peak_memory_kb().unwrap().saturating_sub(idle_kb)) as f64 / 1024.0;
    println!("ten times more: {again_mb:.1} MB above idle");
    assert!(again_mb < 16.0, "{again_mb} MB");
}

#[test]
fn many_who_list_at_once_share_what_is_read_and_hold_up_no_publish() {
    let fleet = roomy();
    // DigitalOcean's own: 32 readings of this list, one for each caller, would take four minutes.
    fleet.sim.change_rules(|rules| {
        (rules.limits.requests_per_hour, rules.limits.requests_per_minute) = (5000, 250);
    });
    fill(&fleet, 5000);
    let id = fleet.volume("wanted");
    let plugin = controller(&fleet);
    plugin.client.list_volumes(1, "").unwrap();
    let (idle_kb, _) = plugin.memory_kb().unwrap();
    fleet.sim.reset_calls();
    std::thread::scope(|scope| {
        let list = || plugin.client.list_volumes(0, "").unwrap().entries.len();
        let lists: Vec<_> = (0..32).map(|_| scope.spawn(list)).collect();
        publish(&plugin.client, &id, A).unwrap();
        for list in lists {
            assert_eq!(list.join().unwrap(), 5001);
        }
    });
    let calls = fleet.sim.calls();
    assert!(calls.of("GET", "/v2/volumes") <= 3 * 28, "{calls}");
    assert_eq!(fleet.sim.refused_for_rate(), 0);
    let above_mb = (plugin.peak_memory_kb().unwrap().saturating_sub(idle_kb)) as f64 / 1024.0;
    println!("32 lists of 5000 at once: {above_mb:.1} MB above idle, {} calls", calls.total());
    assert!(above_mb < 40.0, "{above_mb} MB");
}

#[test]
fn a_volume_is_listed_although_others_are_deleted_and_made_while_pages_are_read() {
    let fleet = roomy();
    fill(&fleet, 600);
    let plugin = controller(&fleet);
    let late = Duration::from_millis(300);
    for round in 0..4 {
        let before = fleet.sim.volumes();
        fleet.sim.reset_calls();
        fleet.sim.faults().add(Fault::late(late).on("GET", "/v2/volumes").times(1));
        let listed = std::thread::scope(|scope| {
            let list = scope.spawn(|| plugin.client.list_volumes(0, "").unwrap());
            // The first page is on its way. One that is on it is deleted, and, so that the total is the same, one is made.
            until("the first page is asked for", || fleet.sim.calls().of("GET", "/v2/volumes") > 0);
            std::thread::sleep(late / 4);
            plugin.client.delete_volume(&before[0].id).unwrap();
            if round % 2 == 1 {
                fleet.volume(&format!("new-{round}"));
            }
            list.join().unwrap()
        });
        let listed: HashSet<&str> = listed.entries.iter().map(|entry| entry.volume.volume_id.as_str()).collect();
        for volume in &before[1..] {
            assert!(listed.contains(volume.id.as_str()), "{} is there and not listed in round {round}", volume.name);
        }
    }
}

/// Pages through all volumes and gives them in the order they came in.
fn page_through(client: &Client, max_entries: i32) -> Vec<csi::list_volumes_response::Entry> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let page = client.list_volumes(max_entries, &token).unwrap();
        let length = i32::try_from(page.entries.len()).unwrap();
        assert!(length == max_entries || page.next_token.is_empty(), "{length} of {max_entries}, and more to come");
        assert!(length <= max_entries);
        all.extend(page.entries);
        if page.next_token.is_empty() {
            return all;
        }
        token = page.next_token;
    }
}

#[test]
fn pages_of_every_size_hold_every_volume_once_and_tell_the_truth_of_each() {
    let fleet = roomy();
    fill(&fleet, 600);
    for number in 0..50 {
        fleet.sim.add_volume(&NewVolume::new(&format!("abroad-{number}"), 1, "nyc1")).unwrap();
    }
    let held: HashMap<String, u64> =
        [("on-a", A), ("on-b", B), ("also-on-b", B)].map(|(name, node)| (fleet.volume_on(name, node), node)).into();
    let plugin = controller(&fleet);
    let ours: HashMap<String, u64> = fleet
        .sim
        .volumes()
        .into_iter()
        .filter(|volume| volume.region == "fra1")
        .map(|volume| (volume.id, volume.size_gigabytes))
        .collect();
    assert_eq!(ours.len(), 603);
    for max_entries in [1, 7, 199, 200, 201, 450] {
        let listed = page_through(&plugin.client, max_entries);
        let sizes: HashMap<String, u64> = listed
            .iter()
            .map(|entry| (entry.volume.volume_id.clone(), (entry.volume.capacity_bytes / GIB).cast_unsigned()))
            .collect();
        assert_eq!(listed.len(), ours.len(), "pages of {max_entries}");
        assert!(sizes == ours, "pages of {max_entries} do not hold every volume once");
        for entry in listed {
            let (volume, status) = (entry.volume.unwrap(), entry.status.unwrap());
            let node = held.get(&volume.volume_id);
            assert_eq!(volume.accessible_topology.len(), 1);
            assert_eq!(volume.accessible_topology[0].segments, text_map(&[("region", "fra1")]));
            assert!(volume.volume_context.is_empty(), "a list cannot know a volume's context");
            assert_eq!(status.published_node_ids, node.map(u64::to_string).into_iter().collect::<Vec<_>>());
            let condition = status.volume_condition.unwrap();
            let words = node.map_or("not attached".to_owned(), |node| format!("attached to droplet {node}"));
            assert_eq!((condition.abnormal, condition.message), (false, words));
        }
    }
}

#[test]
fn a_token_is_refused_when_the_list_has_changed_before_it_and_only_then() {
    let fleet = roomy();
    fill(&fleet, 450);
    let plugin = controller(&fleet);
    let next = |token: &str| plugin.client.list_volumes(0, token);
    let delete = |volume: &Volume| plugin.client.delete_volume(&volume.id).unwrap();
    for max_entries in [1, 7, 200, 201, 399] {
        let token = plugin.client.list_volumes(max_entries, "").unwrap().next_token;
        let begun = usize::try_from(max_entries).unwrap();
        let volumes = fleet.sim.volumes();
        assert_eq!(next(&token).unwrap().entries.len(), volumes.len() - begun);
        // Behind it, the list may change: what is gone is not listed, what is new is.
        delete(volumes.last().unwrap());
        assert_eq!(next(&token).unwrap().entries.len(), volumes.len() - begun - 1);
        // Before it, all that follow have moved; to go on would leave one out.
        delete(&volumes[0]);
        let refusal = next(&token).unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::ABORTED, "{token}: {refusal}");
    }
    let token = plugin.client.list_volumes(200, "").unwrap().next_token;
    for volume in &fleet.sim.volumes()[200..] {
        delete(volume);
    }
    let end = next(&token).unwrap();
    assert_eq!((end.entries.len(), end.next_token.as_str()), (0, ""));
    delete(&fleet.sim.volumes()[199]);
    assert_eq!(next(&token).unwrap_err().code, RpcStatusCode::ABORTED);
}

fn by_source(client: &Client, source: &str, max_entries: i32, token: &str) -> Outcome<csi::ListSnapshotsResponse> {
    let request = csi::ListSnapshotsRequest {
        source_volume_id: source.to_owned(),
        max_entries,
        starting_token: token.to_owned(),
        ..Default::default()
    };
    client.list_snapshots(&request)
}

fn ids(page: &csi::ListSnapshotsResponse) -> Vec<String> {
    page.entries.iter().map(|entry| entry.snapshot.snapshot_id.clone()).collect()
}

/// Three snapshots of one volume among 500 of others, with one of its temporary ones before, between and after them.
fn one_of_many(fleet: &ControllerHarness) -> (String, Vec<String>) {
    let (source, other) = (fleet.volume("source"), fleet.volume("other"));
    let mut ours = Vec::new();
    for number in 0..4 {
        for filler in 0..125 {
            fleet.sim.create_snapshot(&other, &format!("other-{number}-{filler}")).unwrap();
        }
        let temporary = format!("{}{number}", &TEMPORARY.0[..TEMPORARY.0.len() - 1]);
        fleet.sim.create_tagged_snapshot(&source, &temporary, &[TEMPORARY.1]).unwrap();
        if number < 3 {
            ours.push(fleet.sim.create_snapshot(&source, &format!("ours-{number}")).unwrap());
        }
    }
    (source, ours)
}

#[test]
fn the_snapshots_of_one_volume_are_read_through_it_and_filtered_before_pages_are_cut() {
    let fleet = roomy();
    let (source, ours) = one_of_many(&fleet);
    let plugin = controller(&fleet);
    fleet.sim.reset_calls();
    let whole = by_source(&plugin.client, &source, 0, "").unwrap();
    assert_eq!((ids(&whole), whole.next_token.as_str()), (ours.clone(), ""));
    assert!(whole.entries.iter().all(|entry| entry.snapshot.source_volume_id == source));
    let first = by_source(&plugin.client, &source, 2, "").unwrap();
    assert_eq!(ids(&first), ours[..2]);
    let second = by_source(&plugin.client, &source, 2, &first.next_token).unwrap();
    assert_eq!((ids(&second), second.next_token.as_str()), (ours[2..].to_vec(), ""));
    let calls = fleet.sim.calls();
    assert_eq!((calls.of("GET", "/v2/snapshots"), calls.total()), (0, 3), "{calls}");
    for bad in ["8", "1000", "next", "-1", "0"] {
        let refusal = by_source(&plugin.client, &source, 2, bad).unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::ABORTED, "{bad}: {refusal}");
    }
    for (snapshot, token) in [(ours[0].as_str(), "1"), ("no-uuid", "1")] {
        let request = csi::ListSnapshotsRequest {
            snapshot_id: snapshot.to_owned(),
            starting_token: token.to_owned(),
            ..Default::default()
        };
        assert_eq!(plugin.client.list_snapshots(&request).unwrap_err().code, RpcStatusCode::ABORTED, "{snapshot}");
    }
}

#[test]
fn the_snapshots_of_a_deleted_volume_are_still_listed_and_so_are_all() {
    let fleet = roomy();
    let (source, ours) = one_of_many(&fleet);
    let plugin = controller(&fleet);
    plugin.client.delete_volume(&source).unwrap();
    let mut found = Vec::new();
    let mut token = String::new();
    for _ in 0..3 {
        let page = by_source(&plugin.client, &source, 1, &token).unwrap();
        found.extend(ids(&page));
        token = page.next_token;
    }
    assert_eq!(found, ours);
    // A temporary one follows, which does not count.
    if !token.is_empty() {
        assert_eq!(ids(&by_source(&plugin.client, &source, 1, &token).unwrap()), [""; 0]);
    }
    let all = plugin.client.list_snapshots(&csi::ListSnapshotsRequest::default()).unwrap();
    assert_eq!(all.entries.len(), 503);
    let nobody = by_source(&plugin.client, "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2", 0, "").unwrap();
    assert!(nobody.entries.is_empty());
}
