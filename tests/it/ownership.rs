//! Other clusters, Terraform and people in one account: what is not this plugin's is neither taken for its own nor
//! deleted, and what is its own is known again.

use std::path::Path;
use std::time::Duration;

use do_csi_plugin::proto::csi;
use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{DropletStatus, Fault, NewVolume, Refusal as ApiRefusal};
use crate::support::client::{Client, Outcome, Refusal, cloned, new_volume, option, publish, text_map, unpublish};
use crate::support::controllers::{A, ACTION, B, ControllerHarness};
use crate::support::plugin::Plugin;
use crate::support::wait_for;

const GIB: i64 = 1 << 30;
/// All waits of a call are parts of this.
const BUDGET: &str = "--call-budget=10";
const CREATE: (&str, &str) = ("POST", "/v2/volumes");
const DELETE: (&str, &str) = ("DELETE", "/v2/volumes/{id}");

fn plugin(fleet: &ControllerHarness, name: &str, args: &[&str]) -> Plugin {
    fleet.controller(Path::new(PROGRAM), name, &[&[BUDGET], args].concat())
}

/// Two clusters with one account.
fn clusters() -> (ControllerHarness, [Plugin; 2]) {
    let fleet = ControllerHarness::with_actions(ACTION);
    fleet.sim.change_rules(|rules| rules.limits.snapshot_interval = Duration::ZERO);
    let plugins = ["cluster-a", "cluster-b"].map(|name| plugin(&fleet, name, &[&format!("--do-tag={name}")]));
    (fleet, plugins)
}

fn create(client: &Client, name: &str) -> Outcome<String> {
    client.create(&new_volume(name, GIB)).map(|made| made.volume_id)
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(outcome: Outcome<T>, code: RpcStatusCode, words: &[&str]) -> Refusal {
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    for word in words {
        assert!(refusal.message.contains(word), "{word:?} is not in: {refusal}");
    }
    refusal
}

#[test]
fn two_clusters_that_choose_one_name_do_not_get_one_volume() {
    let (fleet, [a, b]) = clusters();
    let nobody = plugin(&fleet, "nobody", &[]);
    let id = create(&a.client, "postgres").unwrap();
    for (other, own) in [(&b, "cluster-b"), (&nobody, "no --do-tag")] {
        let register = ["cluster-a", own, &id, "nomad volume register"];
        assert_refused(create(&other.client, "postgres"), RpcStatusCode::ALREADY_EXISTS, &register);
        let hand_over = ["postgres", "cluster-a", own];
        assert_refused(other.client.delete_volume(&id), RpcStatusCode::FAILED_PRECONDITION, &hand_over);
        assert_refused(other.client.expand(&id, 5 * GIB), RpcStatusCode::FAILED_PRECONDITION, &hand_over);
        let tagged = other.client.modify(&id, &[("tags", "mine")]);
        assert_refused(tagged, RpcStatusCode::FAILED_PRECONDITION, &hand_over);
    }
    assert_eq!(fleet.sim.calls().of(DELETE.0, DELETE.1), 0);
    let kept = fleet.sim.volume(&id).expect("the volume is there");
    assert_eq!((kept.size_gigabytes, kept.tags), (1, vec!["cluster-a".to_owned()]));
    // Its own cluster has it as before.
    assert_eq!(create(&a.client, "postgres"), Ok(id.clone()));
    a.client.expand(&id, 2 * GIB).unwrap();
    a.client.delete_volume(&id).unwrap();
    assert!(fleet.sim.volume(&id).is_none());
}

#[test]
fn a_volume_is_handed_over_by_exchanging_its_tags() {
    let (fleet, [a, b]) = clusters();
    let id = create(&a.client, "postgres").unwrap();
    let refusal = assert_refused(b.client.delete_volume(&id), RpcStatusCode::FAILED_PRECONDITION, &[]);
    let resource = format!("--resource do:volume:{id}");
    for command in [
        format!("doctl compute tag create cluster-b && doctl compute tag apply cluster-b {resource}"),
        format!("doctl compute tag remove cluster-a {resource}"),
    ] {
        assert!(refusal.message.contains(&command), "{refusal}");
    }
    fleet.sim.tag_volume(&id, "cluster-b").unwrap();
    fleet.sim.untag_volume(&id, "cluster-a").unwrap();
    let words = ["postgres", &id, "cluster-b"];
    assert_refused(a.client.delete_volume(&id), RpcStatusCode::FAILED_PRECONDITION, &words);
    assert_refused(create(&a.client, "postgres"), RpcStatusCode::ALREADY_EXISTS, &words);
    assert_refused(a.client.expand(&id, 5 * GIB), RpcStatusCode::FAILED_PRECONDITION, &words);
    // Using it does not take it back.
    publish(&a.client, &id, A).unwrap();
    unpublish(&a.client, &id, A).unwrap();
    assert_eq!(fleet.sim.volume(&id).unwrap().tags, ["cluster-b"]);
    assert_eq!(create(&b.client, "postgres"), Ok(id.clone()));
    publish(&b.client, &id, B).unwrap();
    unpublish(&b.client, &id, B).unwrap();
    b.client.delete_volume(&id).unwrap();
    assert_eq!(fleet.sim.volumes(), []);
}

#[test]
fn a_volume_that_is_handed_over_while_its_deletion_is_tried_stays() {
    let (fleet, [a, _b]) = clusters();
    let id = create(&a.client, "postgres").unwrap();
    fleet.sim.faults().add(Fault::refused(ApiRefusal::DELETE_ATTACHED).on("DELETE", "/v2/volumes/{id}").times(3));
    std::thread::scope(|scope| {
        let deletion = scope.spawn(|| a.client.delete_volume(&id));
        wait_for(Duration::from_secs(20), || (fleet.sim.calls().of("DELETE", "/v2/volumes/{id}") > 0).then_some(()))
            .unwrap();
        fleet.sim.tag_volume(&id, "cluster-b").unwrap();
        fleet.sim.untag_volume(&id, "cluster-a").unwrap();
        assert_refused(deletion.join().unwrap(), RpcStatusCode::FAILED_PRECONDITION, &["cluster-b"]);
    });
    assert!(fleet.sim.volume(&id).is_some());
}

#[test]
fn a_tag_that_two_clusters_share_hands_no_volume_over() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let a = plugin(&fleet, "a", &["--do-tag=cluster-a"]);
    let b = plugin(&fleet, "b", &["--do-tag=prod"]);
    let wanted = with_tags(new_volume("postgres", GIB), "prod");
    let id = a.client.create(&wanted).unwrap().volume_id;
    let words = ["postgres", &id, "cluster-a"];
    assert_refused(b.client.delete_volume(&id), RpcStatusCode::FAILED_PRECONDITION, &words);
    assert_refused(create(&b.client, "postgres"), RpcStatusCode::ALREADY_EXISTS, &words);
    assert_eq!(a.client.create(&wanted).unwrap().volume_id, id);
    // The same with a cluster of the official driver, which writes no owner into the description.
    let official = fleet.sim.add_volume(&NewVolume::new("official", 1, "fra1").tagged(&["prod", "k8s:4f1c"])).unwrap();
    assert_refused(b.client.delete_volume(&official), RpcStatusCode::FAILED_PRECONDITION, &["k8s:4f1c"]);
    a.client.delete_volume(&id).unwrap();
}

fn with_tags(mut request: csi::CreateVolumeRequest, tags: &str) -> csi::CreateVolumeRequest {
    request.parameters = text_map(&[("tags", tags)]);
    request
}

#[test]
fn another_owners_volume_is_used_where_it_is_free_and_taken_from_no_droplet() {
    let (fleet, [a, b]) = clusters();
    let id = create(&a.client, "postgres").unwrap();
    // Who registers it by its id means it.
    publish(&b.client, &id, B).unwrap();
    assert_eq!(fleet.sim.volume(&id).unwrap().tags, ["cluster-a"], "it was made the other's by using it");
    // Whether that is meant, or the owner's name is mistyped, shows before a droplet dies.
    let log = b.log();
    let warning = log.lines().find(|line| line.contains("WARN") && line.contains(&id)).expect("a warning");
    let command = format!("doctl compute tag apply cluster-b --resource do:volume:{id}");
    for part in ["\"cluster-a\"'s", "taken from a droplet that is off or gone", &command] {
        assert!(warning.contains(part), "{part} is not in {warning}");
    }
    unpublish(&b.client, &id, B).unwrap();
    publish(&a.client, &id, A).unwrap();
    let words = ["cluster-a", "cluster-b", "taken from droplet"];
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    assert_refused(publish(&b.client, &id, B), RpcStatusCode::FAILED_PRECONDITION, &words);
    let by_force = plugin(&fleet, "force", &["--do-tag=cluster-b", "--takeover"]);
    assert_refused(publish(&by_force.client, &id, B), RpcStatusCode::FAILED_PRECONDITION, &words);
    // A call that names no droplet would reach those of the owner.
    let from_all = b.client.controller_unpublish(&id, "");
    assert_refused(from_all, RpcStatusCode::FAILED_PRECONDITION, &["cluster-a", "cluster-b"]);
    unpublish(&b.client, &id, B).unwrap();
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
    publish(&a.client, &id, B).unwrap();
    assert_eq!(fleet.sim.attached_to(&id), Some(B));
}

#[test]
fn what_no_csi_driver_has_made_is_used_and_neither_adopted_nor_deleted() {
    let fleet = ControllerHarness::with_actions(ACTION);
    for (number, args) in [&["--do-tag=prod"][..], &[]].into_iter().enumerate() {
        let plugin = plugin(&fleet, &format!("plugin-{number}"), args);
        for (at, description) in ["", "managed by terraform"].into_iter().enumerate() {
            let name = format!("blog-{number}-{at}");
            let of_terraform = NewVolume::new(&name, 1, "fra1").described(description);
            let id = fleet.sim.add_volume(&of_terraform).unwrap();
            let words = [&name, &id, "no mark of a CSI driver", "nomad volume register"];
            assert_refused(create(&plugin.client, &name), RpcStatusCode::ALREADY_EXISTS, &words);
            // As when it was registered. The owner's tag, which it gets then, makes it no work of a CSI driver.
            publish(&plugin.client, &id, A).unwrap();
            unpublish(&plugin.client, &id, A).unwrap();
            assert_refused(create(&plugin.client, &name), RpcStatusCode::ALREADY_EXISTS, &words);
            let words = [&name, &id, "no CSI driver has made it", "nomad volume deregister"];
            assert_refused(plugin.client.delete_volume(&id), RpcStatusCode::FAILED_PRECONDITION, &words);
            assert!(fleet.sim.volume(&id).is_some());
            plugin.client.expand(&id, 2 * GIB).unwrap();
        }
    }
}

#[test]
fn volumes_of_the_official_driver_go_on() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let tag = "k8s:4f1c";
    let ours = plugin(&fleet, "ours", &["--do-tag=k8s:4f1c"]);
    let untagged = plugin(&fleet, "untagged", &[]);
    let volume = |name: &str, tags: &[&str]| {
        fleet.sim.add_volume(&NewVolume::new(name, 1, "fra1").tagged(tags)).expect("the volume is made")
    };
    // Made with the tag, by a driver that has it.
    let id = volume("tagged", &["prod", tag]);
    assert_eq!(create(&ours.client, "tagged"), Ok(id.clone()));
    assert_refused(create(&untagged.client, "tagged"), RpcStatusCode::ALREADY_EXISTS, &[tag]);
    assert_refused(untagged.client.delete_volume(&id), RpcStatusCode::FAILED_PRECONDITION, &[tag]);
    ours.client.delete_volume(&id).unwrap();
    // From before there was a tag: it is used, and bears the tag from then on.
    let id = volume("old", &["prod"]);
    let refused = ours.client.delete_volume(&id);
    let words = ["prod", tag, "doctl compute tag create k8s:4f1c && doctl compute tag apply k8s:4f1c"];
    assert_refused(refused, RpcStatusCode::FAILED_PRECONDITION, &words);
    publish(&ours.client, &id, A).unwrap();
    unpublish(&ours.client, &id, A).unwrap();
    assert_eq!(create(&ours.client, "old"), Ok(id.clone()));
    ours.client.delete_volume(&id).unwrap();
    // Nobody but Kubernetes can have thought of such a name, so a repetition finds what the official driver made.
    let kubernetes = "pvc-8eb4d51a-8f02-11f0-bdcd-0a58ac14d1e2";
    let id = volume(kubernetes, &[]);
    assert_eq!(create(&ours.client, kubernetes), Ok(id));
    // Without any tag there is no sign of another owner.
    ours.client.delete_volume(&volume("plain", &[])).unwrap();
    // Without an owner, everything that no owner's mark is on is the plugin's, as it ever was.
    let id = volume("plain", &["prod"]);
    assert_eq!(create(&untagged.client, "plain"), Ok(id.clone()));
    untagged.client.delete_volume(&id).unwrap();
}

#[test]
fn a_plugin_that_is_killed_in_a_create_knows_its_own_volume_again() {
    let (fleet, [a, b]) = clusters();
    fleet.sim.faults().add(Fault::late(Duration::from_secs(5)).on(CREATE.0, CREATE.1));
    std::thread::scope(|scope| {
        let client = a.client.clone();
        let cut_off = scope.spawn(move || create(&client, "postgres"));
        let is_made = || fleet.sim.volume("postgres").is_some();
        wait_for(Duration::from_secs(5), || is_made().then_some(())).expect("the volume is made");
        a.kill().unwrap();
        assert!(cut_off.join().unwrap().is_err());
    });
    let id = fleet.sim.volume("postgres").unwrap().id;
    assert_refused(create(&b.client, "postgres"), RpcStatusCode::ALREADY_EXISTS, &["cluster-a"]);
    let a = plugin(&fleet, "cluster-a", &["--do-tag=cluster-a"]);
    assert_eq!(create(&a.client, "postgres"), Ok(id.clone()));
    // Also by a token that sees no tags, and in whatever capitals the owner is written.
    fleet.sim.change_rules(|rules| rules.switches.token_lacks_tags = true);
    let shouting = plugin(&fleet, "shouting", &["--do-tag=CLUSTER-A"]);
    assert_refused(b.client.delete_volume(&id), RpcStatusCode::FAILED_PRECONDITION, &["cluster-a"]);
    shouting.client.delete_volume(&id).unwrap();
    assert_eq!(fleet.sim.volumes(), []);
}

#[test]
fn one_of_two_clusters_that_create_at_once_gets_the_name() {
    let (fleet, [a, b]) = clusters();
    let outcomes = std::thread::scope(|scope| {
        let threads = [&a, &b].map(|plugin| scope.spawn(|| create(&plugin.client, "postgres")));
        threads.map(|thread| thread.join().unwrap())
    });
    let made = fleet.sim.volume("postgres").unwrap();
    let won: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(won, [&made.id], "{outcomes:?}");
    let lost: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(lost.iter().map(|refusal| refusal.code).collect::<Vec<_>>(), [RpcStatusCode::ALREADY_EXISTS]);
}

#[test]
fn copies_belong_to_who_made_them() {
    let (fleet, [a, b]) = clusters();
    let source = create(&a.client, "postgres").unwrap();
    let copy = a.client.create(&cloned(new_volume("copy", 0), &source)).unwrap().volume_id;
    assert_eq!(a.client.create(&cloned(new_volume("copy", 0), &source)).unwrap().volume_id, copy);
    let refused = b.client.create(&cloned(new_volume("copy", 0), &source));
    assert_refused(refused, RpcStatusCode::ALREADY_EXISTS, &["cluster-a", &copy]);
    // A copy is how data gets from one cluster to another.
    let theirs = b.client.create(&cloned(new_volume("theirs", 0), &source)).unwrap().volume_id;
    assert_refused(a.client.delete_volume(&theirs), RpcStatusCode::FAILED_PRECONDITION, &["cluster-b"]);
    b.client.delete_volume(&theirs).unwrap();
    assert_eq!(fleet.sim.snapshots(), []);
}

#[test]
fn snapshots_are_adopted_and_deleted_by_their_owner_only() {
    let (fleet, [a, b]) = clusters();
    let nobody = plugin(&fleet, "nobody", &[]);
    let volume = create(&a.client, "postgres").unwrap();
    let taken = a.client.create_snapshot("nightly", &volume).unwrap().snapshot_id;
    assert_eq!(fleet.sim.snapshots()[0].tags, ["cluster-a", "do-csi:cluster-a"]);
    assert_eq!(a.client.create_snapshot("nightly", &volume).unwrap().snapshot_id, taken);
    for other in [&b, &nobody] {
        let words = ["nightly", &taken, "cluster-a"];
        let adopted = other.client.create_snapshot("nightly", &volume);
        assert_refused(adopted, RpcStatusCode::ALREADY_EXISTS, &words);
        assert_refused(other.client.delete_snapshot(&taken), RpcStatusCode::FAILED_PRECONDITION, &words);
    }
    a.client.delete_snapshot(&taken).unwrap();
    // Who has no owner leaves a mark as well.
    let taken = nobody.client.create_snapshot("weekly", &volume).unwrap().snapshot_id;
    assert_eq!(nobody.client.create_snapshot("weekly", &volume).unwrap().snapshot_id, taken);
    assert_refused(a.client.create_snapshot("weekly", &volume), RpcStatusCode::ALREADY_EXISTS, &[&taken]);
    // One that a person took shows what was there then, and not what is there now.
    let manual_access = fleet.sim.create_snapshot(&volume, "by-hand").unwrap();
    for (plugin, tag) in [(&a, "cluster-a"), (&nobody, "")] {
        let adopted = plugin.client.create_snapshot("by-hand", &volume);
        assert_refused(adopted, RpcStatusCode::ALREADY_EXISTS, &[&manual_access, "no mark of a CSI driver"]);
        // The official driver marks none but with its tag, and Kubernetes calls again until one is ready.
        let number = tag.len();
        let official = format!("snapshot-{number:08}-8f02-11f0-bdcd-0a58ac14d1e2");
        let id = fleet.sim.create_tagged_snapshot(&volume, &official, &[]).unwrap();
        assert_eq!(plugin.client.create_snapshot(&official, &volume).unwrap().snapshot_id, id);
        plugin.client.delete_snapshot(&id).unwrap();
    }
    // With its tag it is the owner's, and one without any mark may be the official driver's, so who names its id deletes it.
    let official = fleet.sim.create_tagged_snapshot(&volume, "official", &["cluster-a"]).unwrap();
    assert_eq!(a.client.create_snapshot("official", &volume).unwrap().snapshot_id, official);
    a.client.delete_snapshot(&manual_access).unwrap();
}

#[test]
fn two_clusters_may_each_have_a_snapshot_of_one_name() {
    let (fleet, [a, b]) = clusters();
    fleet.sim.change_rules(|rules| rules.switches.duplicate_snapshot_names_are_accepted = true);
    let [of_a, of_b] = [(&a, "one"), (&b, "two")].map(|(plugin, name)| {
        let volume = create(&plugin.client, name).unwrap();
        plugin.client.create_snapshot("nightly", &volume).unwrap().snapshot_id
    });
    assert_ne!(of_a, of_b);
    // In one cluster the name is taken.
    let third = create(&b.client, "three").unwrap();
    assert_refused(b.client.create_snapshot("nightly", &third), RpcStatusCode::ALREADY_EXISTS, &["nightly"]);
    assert_eq!(fleet.sim.snapshots().len(), 2);
}

#[test]
fn a_token_without_a_scope_for_tags_makes_volumes_and_takes_snapshots_once() {
    let fleet = ControllerHarness::with_actions(ACTION);
    fleet.sim.change_rules(|rules| {
        rules.switches.token_lacks_tags = true;
        rules.limits.snapshot_interval = Duration::ZERO;
    });
    let manual_access = fleet.sim.add_volume(&NewVolume::new("by-hand", 1, "fra1").described("")).unwrap();
    for (name, args) in [("none", &[][..]), ("owner", &["--do-tag=prod"])] {
        let [one, other] = ["one", "other"].map(|number| plugin(&fleet, &format!("{name}-{number}"), args));
        let id = create(&one.client, name).unwrap();
        assert_eq!(create(&other.client, name), Ok(id.clone()));
        let taken = one.client.create_snapshot(&format!("{name}-nightly"), &id).unwrap().snapshot_id;
        for again in [&one, &other] {
            assert_eq!(again.client.create_snapshot(&format!("{name}-nightly"), &id).unwrap().snapshot_id, taken);
        }
        one.client.delete_snapshot(&taken).unwrap();
        one.client.delete_volume(&id).unwrap();
        // Of a volume that is not its own, only what this very call has taken.
        let shot = format!("{name}-shot");
        fleet.sim.faults().add(Fault::lost_reply().on("POST", "/v2/volumes/{id}/snapshots").after(1));
        let taken = one.client.create_snapshot(&shot, &manual_access).unwrap().snapshot_id;
        assert_eq!(fleet.sim.faults().outstanding(), 0);
        let again = other.client.create_snapshot(&shot, &manual_access);
        assert_refused(again, RpcStatusCode::ALREADY_EXISTS, &[&shot, &taken, "no mark of a CSI driver"]);
        one.client.delete_snapshot(&taken).unwrap();
    }
    assert_eq!(fleet.sim.snapshots(), []);
}

#[test]
fn a_token_without_a_scope_for_tags_does_not_leave_off_those_that_were_asked_for() {
    let fleet = ControllerHarness::with_actions(ACTION);
    fleet.sim.change_rules(|rules| rules.switches.token_lacks_tags = true);
    let plugin = plugin(&fleet, "one", &[]);
    let id = fleet.volume("one");
    let taken = plugin.client.create_snapshot("nightly", &id).unwrap().snapshot_id;
    assert_eq!(fleet.sim.snapshots().len(), 1);
    plugin.client.delete_snapshot(&taken).unwrap();
    let request = csi::CreateSnapshotRequest {
        name: "asked".to_owned(),
        source_volume_id: id,
        parameters: text_map(&[("tags", "keep")]),
        ..Default::default()
    };
    let refused = plugin.client.controller.create_snapshot_opt(&request, option()).map(drop).map_err(Refusal::from);
    assert_refused(refused, RpcStatusCode::PERMISSION_DENIED, &[]);
}

#[test]
fn a_volume_whose_owners_tag_cannot_be_put_on_is_not_made_with_others_alone() {
    let fleet = ControllerHarness::with_actions(ACTION);
    fleet.sim.change_rules(|rules| rules.switches.token_lacks_tags = true);
    let plugin = plugin(&fleet, "one", &["--do-tag=prod"]);
    // DigitalOcean may refuse the owner's tag alone.
    fleet.sim.faults().add(Fault::refused(ApiRefusal::FORBIDDEN).on(CREATE.0, CREATE.1));
    fleet.sim.change_rules(|rules| rules.switches.token_lacks_tags = false);
    let request = csi::CreateVolumeRequest { parameters: text_map(&[("tags", "team")]), ..new_volume("blog", GIB) };
    assert_refused(plugin.client.create(&request), RpcStatusCode::PERMISSION_DENIED, &["tag:create"]);
    assert_eq!(fleet.sim.volumes(), []);
}

#[test]
fn no_change_of_tags_makes_a_volume_anothers() {
    let fleet = ControllerHarness::with_actions(ACTION);
    let plugin = plugin(&fleet, "one", &["--do-tag=prod", "--only-tag=nomad"]);
    let client = &plugin.client;
    let id = create(client, "blog").unwrap();
    let before = fleet.sim.volume(&id).unwrap().tags;
    for (change, words) in [
        (&[("remove-tags", "Prod")][..], "--do-tag"),
        (&[("tags", "x"), ("remove-tags", "nomad")], "--only-tag"),
        (&[("tags", "x,k8s:4f1c")], "k8s:4f1c"),
    ] {
        assert_refused(client.modify(&id, change), RpcStatusCode::INVALID_ARGUMENT, &[words]);
        assert_eq!(fleet.sim.volume(&id).unwrap().tags, before);
    }
    let request = csi::CreateVolumeRequest { parameters: text_map(&[("tags", "k8s:4f1c")]), ..new_volume("shop", GIB) };
    assert_refused(client.create(&request), RpcStatusCode::INVALID_ARGUMENT, &["k8s:4f1c"]);
    let request = csi::CreateSnapshotRequest {
        name: "nightly".to_owned(),
        source_volume_id: id.clone(),
        parameters: text_map(&[("tags", "k8s:4f1c")]),
        ..Default::default()
    };
    let refused = client.controller.create_snapshot_opt(&request, option()).map(drop).map_err(Refusal::from);
    assert_refused(refused, RpcStatusCode::INVALID_ARGUMENT, &["k8s:4f1c"]);
    client.delete_volume(&id).unwrap();
}

#[test]
fn a_volume_that_could_not_be_tagged_when_it_was_made_stays_its_owners_when_it_gets_other_tags() {
    let fleet = ControllerHarness::with_actions(ACTION);
    fleet.sim.change_rules(|rules| rules.switches.token_lacks_tags = true);
    let plugin = plugin(&fleet, "one", &["--do-tag=prod"]);
    let id = create(&plugin.client, "blog").unwrap();
    fleet.sim.change_rules(|rules| rules.switches.token_lacks_tags = false);
    plugin.client.modify(&id, &[("tags", "team")]).unwrap();
    assert_eq!(fleet.sim.volume(&id).unwrap().tags, ["prod", "team"]);
    plugin.client.modify(&id, &[("remove-tags", "team")]).unwrap();
    plugin.client.delete_volume(&id).unwrap();
}
