//! Volumes that begin with content, and the snapshots they are made from: what the cloud holds when all is done.

use std::path::Path;
use std::time::Duration;

use grpcio::RpcStatusCode;

use crate::sim::NewVolume;
use crate::support::client::{cloned, new_volume, restored};
use crate::support::fleet::{ACTION, Fleet};
use crate::support::plugin::Plugin;

const PROGRAM: &str = env!("CARGO_BIN_EXE_do-csi-plugin");
const GIB: i64 = 1 << 30;

fn controller(fleet: &Fleet) -> Plugin {
    fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=8"])
}

/// A volume of so many GiB.
fn volume_of(fleet: &Fleet, name: &str, gib: i64) -> String {
    fleet.sim.add_volume(&NewVolume::new(name, gib, "fra1")).expect("the volume is made")
}

#[test]
fn a_copy_is_made_with_the_size_of_its_source_whether_or_not_a_smaller_one_would_do() {
    for is_refused in [false, true] {
        let fleet = Fleet::with_actions(ACTION);
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
fn a_source_in_another_region_does_not_fit() {
    let fleet = Fleet::in_regions(&["fra1", "nyc1"]);
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
fn two_volumes_never_share_a_snapshots_name_whether_or_not_digitalocean_keeps_names_unique() {
    for is_accepted in [false, true] {
        let fleet = Fleet::with_actions(ACTION);
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
