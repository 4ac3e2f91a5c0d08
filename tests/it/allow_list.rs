//! What a plugin may touch: only what carries the tag of `--only-tag`, and only what its token has the scopes for.

use std::path::Path;
use std::time::Duration;

use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::scope::Scopes;
use crate::sim::{DropletStatus, NewVolume};
use crate::support::client::{Client, Outcome, cloned, new_volume, publish, restored, text_map, unpublish};
use crate::support::controllers::{A, ACTION, B, ControllerHarness};
use crate::support::plugin::Plugin;

const GIB: i64 = 1 << 30;
const ONLY: &str = "--only-tag=nomad";

fn started(args: &[&str]) -> (ControllerHarness, Plugin) {
    let fleet = ControllerHarness::with_actions(ACTION);
    fleet.sim.change_rules(|rules| rules.limits.snapshot_interval = Duration::ZERO);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &[&["--call-budget=10"], args].concat());
    (fleet, plugin)
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(outcome: Outcome<T>, code: RpcStatusCode, words: &[&str]) {
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    for word in words {
        assert!(refusal.message.contains(word), "{word:?} is not in: {refusal}");
    }
}

/// Everything of the cloud that a call could have changed.
fn state(fleet: &ControllerHarness) -> (Vec<crate::sim::Volume>, Vec<String>, usize) {
    let snapshots = fleet.sim.snapshots().into_iter().map(|snapshot| snapshot.id).collect();
    (fleet.sim.volumes(), snapshots, fleet.sim.actions().len())
}

#[test]
fn what_does_not_carry_the_tag_is_not_touched_by_any_call() {
    let (fleet, plugin) = started(&[ONLY, "--do-tag=prod"]);
    let client = &plugin.client;
    let made = |name: &str, tags: &[&str]| {
        fleet
            .sim
            .add_volume(&NewVolume::new(name, 1, "fra1").described("Created by DigitalOcean CSI driver").tagged(tags))
            .unwrap()
    };
    // One without tags, one with those that come near it, and one on a droplet outside the cluster that is off.
    for tags in [&[][..], &["prod", "nomads", "nomad:x"]] {
        let (free, held) = (made("free", tags), made("held", tags));
        fleet.sim.attach(&held, A).unwrap();
        fleet.rest();
        let snapshot = format!("nightly-{}", tags.len());
        let snapshot = fleet.sim.create_tagged_snapshot(&free, &snapshot, tags).unwrap();
        fleet.sim.set_droplet_status(A, DropletStatus::Off);
        let before = state(&fleet);
        let refused = RpcStatusCode::FAILED_PRECONDITION;
        for (id, name) in [(&free, "volume free"), (&held, "volume held")] {
            let apply = format!("doctl compute tag apply nomad --resource do:volume:{id}");
            let words = [name, "\"nomad\" (--only-tag)", &apply];
            assert_refused(publish(client, id, B), refused, &words);
            assert_refused(client.delete_volume(id), refused, &words);
            assert_refused(client.expand(id, 2 * GIB), refused, &words);
            assert_refused(client.modify(id, &[("tags", "nomad")]), refused, &words);
            assert_refused(client.create_snapshot("mine", id), refused, &words);
            assert_refused(client.create(&cloned(new_volume("copy", GIB), id)), refused, &words);
        }
        assert_refused(unpublish(client, &held, A), refused, &["detached from droplet", "(--only-tag)"]);
        assert_refused(client.controller_unpublish(&held, ""), refused, &["(--only-tag)"]);
        let apply = format!("do:volume_snapshot:{snapshot}");
        assert_refused(
            client.create(&restored(new_volume("copy", GIB), &snapshot)),
            refused,
            &["(--only-tag)", &apply],
        );
        assert_refused(client.delete_snapshot(&snapshot), refused, &["(--only-tag)", &apply]);
        // By its name, one that an earlier plugin of the same owner may have made.
        assert_refused(client.create(&new_volume("free", GIB)), RpcStatusCode::ALREADY_EXISTS, &["(--only-tag)"]);
        // What is not there need not be detached: the registration of such a volume can be ended.
        unpublish(client, &free, A).unwrap();
        unpublish(client, &held, B).unwrap();
        client.controller_unpublish(&free, "").unwrap();
        assert_eq!(state(&fleet), before, "{tags:?}");
        // The lists are of the whole region, as ever.
        assert_eq!(client.list_volumes(0, "").unwrap().entries.len(), 2);
        fleet.sim.set_droplet_status(A, DropletStatus::Active);
        fleet.sim.detach(&held, A).unwrap();
        fleet.rest();
        for id in [free, held] {
            fleet.sim.tag_volume(&id, "nomad").unwrap();
            fleet.sim.tag_volume(&id, "prod").unwrap();
            client.delete_volume(&id).unwrap();
        }
    }
}

#[test]
fn what_is_made_with_an_allow_list_is_on_it_and_lives_as_ever() {
    let (fleet, plugin) = started(&[ONLY, "--do-tag=prod"]);
    whole_life(&plugin.client).unwrap();
    assert_eq!((fleet.sim.volumes().len(), fleet.sim.snapshots().len()), (0, 0));
    // One that is registered, once it has the tag, in whatever case it was first written.
    let id = fleet.sim.add_volume(&NewVolume::new("blog", 1, "fra1").tagged(&["Nomad"])).unwrap();
    publish(&plugin.client, &id, A).unwrap();
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    publish(&plugin.client, &id, B).unwrap();
    assert_eq!(fleet.sim.attached_to(&id), Some(B));
    // Taken off while a node has it, the node keeps it, and the message says what gives it back.
    fleet.sim.untag_volume(&id, "Nomad").unwrap();
    assert_refused(unpublish(&plugin.client, &id, B), RpcStatusCode::FAILED_PRECONDITION, &["blog", "(--only-tag)"]);
    fleet.sim.tag_volume(&id, "nomad").unwrap();
    unpublish(&plugin.client, &id, B).unwrap();
    assert_eq!(fleet.sim.attached_to(&id), None);
}

#[test]
fn a_token_that_may_put_no_tags_on_makes_nothing_that_is_not_on_the_list() {
    let (fleet, plugin) = started(&[ONLY]);
    fleet.sim.change_rules(|rules| rules.switches.scopes = Some(without("tag:create")));
    assert_refused(plugin.client.create(&new_volume("blog", GIB)), RpcStatusCode::PERMISSION_DENIED, &["tag:create"]);
    assert_eq!(fleet.sim.volumes(), []);
    // Where no tags are shown, nothing is known to be on it.
    let id = fleet.sim.add_volume(&NewVolume::new("blog", 1, "fra1").tagged(&["nomad"])).unwrap();
    fleet.sim.change_rules(|rules| rules.switches.scopes = Some(without("tag:read")));
    assert_refused(publish(&plugin.client, &id, A), RpcStatusCode::FAILED_PRECONDITION, &["tag:read"]);
    assert_eq!(fleet.sim.attached_to(&id), None);
}

/// The scopes of nomad/README.md, but for `account:read`, which no call of an orchestrator needs.
const EVERYTHING: [&str; 14] = [
    "block_storage:read",
    "block_storage:create",
    "block_storage:update",
    "block_storage:delete",
    "block_storage_action:read",
    "block_storage_action:create",
    "block_storage_snapshot:read",
    "block_storage_snapshot:create",
    "block_storage_snapshot:delete",
    "snapshot:read",
    "droplet:read",
    "tag:read",
    "tag:create",
    "tag:delete",
];

fn without(scope: &str) -> Scopes {
    EVERYTHING.into_iter().filter(|one| *one != scope).collect()
}

/// All that an orchestrator can ask of a volume.
fn whole_life(client: &Client) -> Outcome<()> {
    let mut wanted = new_volume("blog", GIB);
    wanted.parameters = text_map(&[("tags", "team-a")]);
    let id = client.create(&wanted)?.volume_id;
    publish(client, &id, A)?;
    client.expand(&id, 2 * GIB)?;
    client.modify(&id, &[("tags", "team-b"), ("remove-tags", "team-a")])?;
    let snapshot = client.create_snapshot("nightly", &id)?.snapshot_id;
    let copies = [restored(new_volume("restored", GIB), &snapshot), cloned(new_volume("cloned", GIB), &id)];
    for copy in copies {
        client.delete_volume(&client.create(&copy)?.volume_id)?;
    }
    client.list_snapshots(&Default::default())?;
    client.list_volumes(0, "")?;
    client.delete_snapshot(&snapshot)?;
    // Gone already.
    client.delete_snapshot(&snapshot)?;
    unpublish(client, &id, A)?;
    client.delete_volume(&id)
}

#[test]
fn the_scopes_that_the_guide_lists_are_enough_and_none_is_too_many() {
    let guide = crate::jobs::read("nomad/README.md");
    let resources = EVERYTHING.map(|scope| scope.split_once(':').unwrap());
    assert!(resources.iter().all(|(resource, verb)| guide.contains(resource) && guide.contains(&format!(":{verb}`"))));
    let (fleet, plugin) = started(&["--do-tag=prod"]);
    fleet.sim.change_rules(|rules| rules.switches.scopes = Some(EVERYTHING.into()));
    whole_life(&plugin.client).unwrap();
    assert_eq!(fleet.sim.lacked_scopes(), Scopes::new(), "a scope is not in the list");
    for scope in EVERYTHING {
        // A droplet is read when it may have to lose a volume; replies without tags are no refusal.
        let (fleet, plugin) = started(&["--do-tag=prod"]);
        fleet.sim.change_rules(|rules| rules.switches.scopes = Some(without(scope)));
        let ended = whole_life(&plugin.client);
        match scope {
            "droplet:read" => {
                let id = fleet.volume_on("held", A);
                assert_refused(publish(&plugin.client, &id, B), RpcStatusCode::PERMISSION_DENIED, &[scope]);
            }
            "tag:read" => {}
            _ => assert!(fleet.sim.lacked_scopes().contains(scope), "{scope} is not needed: {ended:?}"),
        }
    }
}

#[test]
fn a_token_for_volumes_that_exist_attaches_and_detaches_them_and_can_do_nothing_else() {
    let (fleet, plugin) = started(&[]);
    let least = ["block_storage:read", "block_storage_action:read", "block_storage_action:create", "droplet:read"];
    fleet.sim.change_rules(|rules| rules.switches.scopes = Some(least.into()));
    let (client, id) = (&plugin.client, fleet.volume("blog"));
    publish(client, &id, A).unwrap();
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    publish(client, &id, B).unwrap();
    client.list_volumes(0, "").unwrap();
    client.expand(&id, 2 * GIB).unwrap();
    unpublish(client, &id, B).unwrap();
    assert_eq!(fleet.sim.lacked_scopes(), Scopes::new());
    let denied = RpcStatusCode::PERMISSION_DENIED;
    assert_refused(client.create(&new_volume("new", GIB)), denied, &["block_storage:create"]);
    assert_refused(client.create_snapshot("new", &id), denied, &["block_storage_snapshot"]);
    let made = NewVolume::new("made", 1, "fra1").described("Created by DigitalOcean CSI driver");
    let made = fleet.sim.add_volume(&made).unwrap();
    assert_refused(client.delete_volume(&made), denied, &["block_storage:delete"]);
    assert!(fleet.sim.volume(&made).is_some());
}
