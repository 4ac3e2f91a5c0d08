//! Every code that the specification's error tables name, for every RPC: each line is asked for here, or names the test
//! that asserts it, or says why this plugin never answers it.
//!
//! Missing and malformed fields (INVALID_ARGUMENT, the same for all RPCs) are in `bad_input.rs`.

use std::collections::BTreeSet;
use std::fs;

use do_csi_plugin::proto::csi;
use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{Fault, NewVolume, Refusal};
use crate::support::client::{Client, Outcome, Volume, cloned, new_volume, option, restored};
use crate::support::plugin::Plugin;
use crate::support::single_plugin::{DROPLET, SinglePlugin, until};

const GIB: i64 = 1 << 30;
/// An id of the right shape that nothing has.
const UNKNOWN: &str = "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";
/// The DigitalOcean name of `redis[0]`.
const REDIS: &str = "redis-0-ccf640c9d73b584b58b5";

/// A plugin, and a cloud with one of everything.
struct World {
    solo: SinglePlugin,
    plugin: Plugin,
    /// A volume of 2 GiB, and a snapshot of it that was just taken.
    blog: String,
    nightly: String,
    /// Another volume of 2 GiB, and a snapshot of it.
    other: String,
    of_other: String,
}

impl World {
    fn start() -> World {
        let solo = SinglePlugin::new(PROGRAM);
        let volume = |name: &str| solo.sim.add_volume(&NewVolume::new(name, 2, "fra1")).unwrap();
        let (blog, other) = (volume("blog"), volume("other"));
        let nightly = solo.sim.create_snapshot(&blog, "nightly").unwrap();
        let of_other = solo.sim.create_snapshot(&other, "of-other").unwrap();
        let plugin = solo.launch(&["--call-budget=5"]).start().unwrap();
        until("the droplet is known", || plugin.client.node_info().is_ok());
        World { solo, plugin, blog, nightly, other, of_other }
    }

    fn client(&self) -> &Client {
        &self.plugin.client
    }

    fn create(&self, request: &csi::CreateVolumeRequest) -> Outcome<()> {
        self.client().create(request).map(drop)
    }

    fn publish(&self, volume: &str, readonly: bool) -> Outcome<()> {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: volume.to_owned(),
            node_id: DROPLET.to_string(),
            volume_capability: Some(Volume::mounted("", "ext4").capability).into(),
            readonly,
            ..Default::default()
        };
        Ok(self.client().controller.controller_publish_volume_opt(&request, option()).map(drop)?)
    }

    fn list_snapshots(&self, token: &str) -> Outcome<()> {
        let starting_token = token.to_owned();
        self.client().list_snapshots(&csi::ListSnapshotsRequest { starting_token, ..Default::default() }).map(drop)
    }

    fn get_snapshot(&self, id: &str) -> Outcome<()> {
        let request = csi::GetSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        Ok(self.client().controller.get_snapshot_opt(&request, option()).map(drop)?)
    }

    fn expand_to_at_most(&self, limit_bytes: i64) -> Outcome<()> {
        let range = csi::CapacityRange { limit_bytes, ..Default::default() };
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: self.blog.clone(),
            capacity_range: Some(range).into(),
            ..Default::default()
        };
        Ok(self.client().controller.controller_expand_volume_opt(&request, option()).map(drop)?)
    }
}

/// The request for at most so many bytes.
fn at_most(bytes: i64, request: csi::CreateVolumeRequest) -> csi::CreateVolumeRequest {
    let range = csi::CapacityRange { limit_bytes: bytes, ..Default::default() };
    csi::CreateVolumeRequest { capacity_range: Some(range).into(), ..request }
}

type Ask = fn(&World) -> Outcome<()>;

/// How a line of the specification is proved.
enum Proof {
    /// Each of these calls, in a world of its own, ends with the code.
    Asked(&'static [Ask]),
    /// By this test of this file.
    In(&'static str, &'static str),
    /// This plugin does not answer it, for this reason.
    Never(&'static str),
}

use Proof::{Asked, In, Never};
use RpcStatusCode as Code;

/// The error tables of the specification's version 1.13, RPC by RPC.
const LINES: &[(&str, &str, Code, Proof)] = &[
    (
        "CreateVolume",
        "source incompatible",
        Code::INVALID_ARGUMENT,
        In("snapshot_clone", "a_source_in_another_region_does_not_fit"),
    ),
    (
        "CreateVolume",
        "source does not exist",
        Code::NOT_FOUND,
        Asked(&[
            |world| world.create(&restored(new_volume("new", 0), UNKNOWN)),
            |world| world.create(&restored(new_volume("new", 0), "no-uuid")),
            |world| world.create(&cloned(new_volume("new", 0), UNKNOWN)),
            |world| world.create(&cloned(new_volume("new", 0), "no-uuid")),
            // An id of the other kind is none of this kind.
            |world| world.create(&restored(new_volume("new", 0), &world.blog)),
            |world| world.create(&cloned(new_volume("new", 0), &world.nightly)),
        ]),
    ),
    (
        "CreateVolume",
        "exists but is incompatible",
        Code::ALREADY_EXISTS,
        Asked(&[
            |world| world.create(&new_volume("blog", 3 * GIB)),
            |world| world.create(&at_most(GIB, new_volume("blog", 0))),
            |world| world.create(&restored(new_volume("blog", 0), &world.nightly)),
            |world| world.create(&cloned(new_volume("blog", 0), &world.other)),
            |world| {
                world.create(&restored(new_volume("copy", 0), &world.nightly)).unwrap();
                world.create(&new_volume("copy", 0))
            },
            |world| {
                world.create(&restored(new_volume("copy", 0), &world.nightly)).unwrap();
                world.create(&restored(new_volume("copy", 0), &world.of_other))
            },
            |world| {
                world.create(&restored(new_volume("copy", 0), &world.nightly)).unwrap();
                world.create(&cloned(new_volume("copy", 0), &world.blog))
            },
            |world| {
                world.create(&restored(new_volume("copy", 0), &world.nightly)).unwrap();
                world.create(&restored(new_volume("copy", 3 * GIB), &world.nightly)).unwrap();
                world.create(&at_most(2 * GIB, restored(new_volume("copy", 0), &world.nightly)))
            },
            // Another name was mapped to this one, or somebody made it by hand.
            |world| {
                let description = "made by hand".to_owned();
                let manual_access = NewVolume { description, ..NewVolume::new(REDIS, 1, "fra1") };
                world.solo.sim.add_volume(&manual_access).unwrap();
                world.create(&new_volume("redis[0]", GIB))
            },
            |world| {
                let description = "Created by DigitalOcean CSI driver for \"redis[1]\"".to_owned();
                let of_another = NewVolume { description, ..NewVolume::new(REDIS, 1, "fra1") };
                world.solo.sim.add_volume(&of_another).unwrap();
                world.create(&new_volume("redis[0]", GIB))
            },
        ]),
    ),
    (
        "CreateVolume",
        "unable to provision in accessible_topology",
        Code::RESOURCE_EXHAUSTED,
        In("bad_input", "a_size_or_region_that_cannot_be_had_is_refused_before_anything_is_asked_for"),
    ),
    (
        "CreateVolume",
        "the account is full",
        Code::RESOURCE_EXHAUSTED,
        In("controller", "the_kinds_of_429_are_told_apart"),
    ),
    (
        "CreateVolume",
        "unsupported capacity_range",
        Code::OUT_OF_RANGE,
        Asked(&[
            |world| world.create(&new_volume("new", (16 << 40) + 1)),
            |world| world.create(&at_most(GIB - 1, new_volume("new", 0))),
            |world| world.create(&at_most(i64::MAX, new_volume("new", 0))),
            |world| world.create(&at_most(GIB, restored(new_volume("new", 0), &world.nightly))),
            |world| world.create(&restored(new_volume("new", (16 << 40) + 1), &world.nightly)),
            |world| world.create(&at_most(GIB, cloned(new_volume("new", 0), &world.blog))),
            // What DigitalOcean has against a size that we take for good.
            |world| {
                world.solo.sim.change_rules(|rules| rules.limits.volume_gigabytes = 5);
                world.create(&new_volume("new", 6 * GIB))
            },
        ]),
    ),
    (
        "DeleteVolume",
        "volume in use",
        Code::FAILED_PRECONDITION,
        In("controller", "an_attached_volume_is_not_deleted_and_a_missing_one_is_deleted_already"),
    ),
    (
        "ControllerPublishVolume",
        "volume or node does not exist",
        Code::NOT_FOUND,
        In("controller", "publish_says_what_does_not_exist_and_what_is_full"),
    ),
    (
        "ControllerPublishVolume",
        "published but is incompatible",
        Code::ALREADY_EXISTS,
        Asked(&[|world| {
            world.publish(&world.blog, false).unwrap();
            world.publish(&world.blog, true)
        }]),
    ),
    (
        "ControllerPublishVolume",
        "published to another node",
        Code::FAILED_PRECONDITION,
        In("conflict", "t5_a_running_droplet_keeps_the_volume"),
    ),
    (
        "ControllerPublishVolume",
        "max volumes attached",
        Code::RESOURCE_EXHAUSTED,
        In("controller", "publish_says_what_does_not_exist_and_what_is_full"),
    ),
    (
        "ControllerUnpublishVolume",
        "volume or node does not exist",
        Code::NOT_FOUND,
        Never("a volume that is nowhere is unpublished"),
    ),
    (
        "ValidateVolumeCapabilities",
        "volume does not exist",
        Code::NOT_FOUND,
        In("bad_input", "an_unknown_volume_or_droplet_is_not_found_and_an_impossible_id_is_not_even_asked_for"),
    ),
    (
        "ListVolumes",
        "invalid starting_token",
        Code::ABORTED,
        Asked(&[
            |world| world.client().list_volumes(0, "not-a-token").map(drop),
            |world| world.client().list_volumes(0, "3").map(drop),
            |world| world.client().list_volumes(1, "200").map(drop),
        ]),
    ),
    (
        "ControllerGetVolume",
        "volume does not exist",
        Code::NOT_FOUND,
        Asked(&[
            |world| world.client().get_volume(UNKNOWN).map(drop),
            |world| world.client().get_volume("no-uuid").map(drop),
            |world| world.client().get_volume(&world.nightly).map(drop),
        ]),
    ),
    (
        "ControllerModifyVolume",
        "parameters not supported",
        Code::INVALID_ARGUMENT,
        Asked(&[
            |world| world.client().modify(&world.blog, &[("iops", "1000")]),
            |world| world.client().modify(&world.blog, &[("tags", "not a tag")]),
            |world| world.client().modify(&world.blog, &[("tags", "a"), ("remove-tags", "a")]),
        ]),
    ),
    (
        "ControllerModifyVolume",
        "volume does not exist",
        Code::NOT_FOUND,
        Asked(&[
            |world| world.client().modify(UNKNOWN, &[("tags", "a")]),
            |world| world.client().modify("no-uuid", &[("tags", "a")]),
        ]),
    ),
    (
        "CreateSnapshot",
        "exists but is incompatible",
        Code::ALREADY_EXISTS,
        Asked(&[|world| world.client().create_snapshot("nightly", &world.other).map(drop)]),
    ),
    (
        "CreateSnapshot",
        "source volume does not exist",
        Code::NOT_FOUND,
        In("bad_input", "a_snapshot_is_not_taken_by_a_bad_request_and_an_unknown_one_is_not_found"),
    ),
    (
        "CreateSnapshot",
        "not enough space",
        Code::RESOURCE_EXHAUSTED,
        Asked(&[
            // Less than ten minutes after the last one.
            |world| world.client().create_snapshot("second", &world.blog).map(drop),
            // More than a volume may have.
            |world| {
                world.solo.sim.change_rules(|rules| rules.limits.snapshot_interval = std::time::Duration::ZERO);
                for number in 1..25 {
                    world.solo.sim.create_snapshot(&world.blog, &format!("filler-{number}")).unwrap();
                }
                world.client().create_snapshot("second", &world.blog).map(drop)
            },
        ]),
    ),
    (
        "DeleteSnapshot",
        "snapshot in use",
        Code::FAILED_PRECONDITION,
        Asked(&[|world| {
            let in_use = Fault::refused(Refusal::DUPLICATE_SNAPSHOT);
            world.solo.sim.faults().add(in_use.on("DELETE", "/v2/volumes/snapshots/{id}").always());
            world.client().delete_snapshot(&world.nightly)
        }]),
    ),
    (
        "ListSnapshots",
        "invalid starting_token",
        Code::ABORTED,
        Asked(&[
            |world| world.list_snapshots("not-a-token"),
            |world| world.list_snapshots("3"),
            |world| world.list_snapshots("200"),
        ]),
    ),
    (
        "GetSnapshot",
        "snapshot does not exist",
        Code::NOT_FOUND,
        Asked(&[
            |world| world.get_snapshot(UNKNOWN),
            |world| world.get_snapshot("no-uuid"),
            |world| world.get_snapshot(&world.blog),
        ]),
    ),
    (
        "ControllerExpandVolume",
        "exceeds capabilities",
        Code::INVALID_ARGUMENT,
        In("bad_input", "a_volume_does_not_grow_by_a_bad_request"),
    ),
    (
        "ControllerExpandVolume",
        "volume does not exist",
        Code::NOT_FOUND,
        In("bad_input", "a_volume_does_not_grow_by_a_bad_request"),
    ),
    (
        "ControllerExpandVolume",
        "volume in use",
        Code::FAILED_PRECONDITION,
        Never("volumes grow while they are used; the capability is ONLINE"),
    ),
    (
        "ControllerExpandVolume",
        "unsupported capacity_range",
        Code::OUT_OF_RANGE,
        Asked(&[
            |world| world.client().expand(&world.blog, (16 << 40) + 1).map(drop),
            |world| world.expand_to_at_most(GIB),
        ]),
    ),
    (
        "NodeStageVolume",
        "volume does not exist",
        Code::NOT_FOUND,
        Never("a node asks no API; a disk that does not come is UNAVAILABLE"),
    ),
    (
        "NodeStageVolume",
        "staged but is incompatible",
        Code::ALREADY_EXISTS,
        In("root_states", "root_a_mount_that_is_not_as_asked_is_named_and_kept"),
    ),
    (
        "NodeStageVolume",
        "exceeds capabilities",
        Code::FAILED_PRECONDITION,
        Never("a capability that no volume has is INVALID_ARGUMENT for every RPC"),
    ),
    ("NodeUnstageVolume", "volume does not exist", Code::NOT_FOUND, Never("a volume that is nowhere is unstaged")),
    (
        "NodePublishVolume",
        "volume does not exist",
        Code::NOT_FOUND,
        Never("a volume that is not staged is FAILED_PRECONDITION"),
    ),
    (
        "NodePublishVolume",
        "published but is incompatible",
        Code::ALREADY_EXISTS,
        In("root_states", "root_a_mount_that_is_not_as_asked_is_named_and_kept"),
    ),
    (
        "NodePublishVolume",
        "staging path not set",
        Code::FAILED_PRECONDITION,
        In("bad_input", "a_volume_is_not_published_by_a_bad_request"),
    ),
    (
        "NodePublishVolume",
        "exceeds capabilities",
        Code::FAILED_PRECONDITION,
        In("root_states", "root_one_writer_has_one_target_and_the_other_modes_have_several"),
    ),
    ("NodeUnpublishVolume", "volume does not exist", Code::NOT_FOUND, Never("a volume that is nowhere is unpublished")),
    (
        "NodeGetVolumeStats",
        "volume does not exist",
        Code::NOT_FOUND,
        In("bad_input", "statistics_need_an_id_and_a_path_at_which_a_volume_is"),
    ),
    (
        "ControllerGetVolumeHealth",
        "volume does not exist",
        Code::NOT_FOUND,
        In("health", "health_is_asked_of_volumes_that_exist"),
    ),
    (
        "ControllerListVolumeHealth",
        "invalid starting_token",
        Code::ABORTED,
        In("health", "health_is_asked_of_volumes_that_exist"),
    ),
    (
        "NodeGetVolumeHealth",
        "volume does not exist",
        Code::NOT_FOUND,
        In("root_health", "root_health_is_told_of_volumes_that_are_here"),
    ),
    (
        "NodeExpandVolume",
        "volume does not exist",
        Code::NOT_FOUND,
        Asked(&[
            |world| world.client().node_expand(&world.blog, &world.solo.path("nothing-here"), 0).map(drop),
            |world| world.client().node_expand(&world.blog, "some/path".as_ref(), 0).map(drop),
        ]),
    ),
    (
        "NodeExpandVolume",
        "exceeds capabilities",
        Code::INVALID_ARGUMENT,
        In("root_grow", "root_what_cannot_grow_is_refused_by_the_code_that_says_why"),
    ),
    (
        "NodeExpandVolume",
        "volume in use",
        Code::FAILED_PRECONDITION,
        In("root_grow", "root_what_cannot_grow_is_refused_by_the_code_that_says_why"),
    ),
    (
        "NodeExpandVolume",
        "unsupported capacity_range",
        Code::OUT_OF_RANGE,
        In("root_grow", "root_what_cannot_grow_is_refused_by_the_code_that_says_why"),
    ),
];

#[test]
fn every_code_of_the_specification_is_answered_where_it_says() {
    std::thread::scope(|scope| {
        for (rpc, when, code, proof) in LINES {
            let Asked(calls) = proof else { continue };
            scope.spawn(move || {
                for (number, call) in calls.iter().enumerate() {
                    let world = World::start();
                    let (volumes, snapshots) = (world.solo.sim.volumes().len(), world.solo.sim.snapshots().len());
                    let outcome = call(&world);
                    let Err(refusal) = outcome else { panic!("{rpc}, {when}, call {number}: was taken") };
                    assert_eq!(refusal.code, *code, "{rpc}, {when}, call {number}: {refusal}");
                    assert!(world.solo.sim.snapshots().len() >= snapshots, "{rpc}, {when}, call {number}");
                    assert!(world.solo.sim.volumes().len() <= volumes + 1, "{rpc}, {when}, call {number}");
                }
            });
        }
    });
}

#[test]
fn every_rpc_with_an_error_table_has_its_lines_and_every_test_they_name_is_there() {
    let services = &csi::file_descriptor().proto().service;
    let rpcs = services.iter().flat_map(|service| service.method.iter().map(|method| method.name().to_owned()));
    // These have no table: they tell what the plugin is, and have nothing that could be wrong or missing.
    let without =
        ["GetPluginInfo", "GetPluginCapabilities", "Probe", "GetCapacity", "NodeGetInfo", "NodeGetStorageHealth"];
    let wanted: BTreeSet<String> =
        rpcs.filter(|rpc| !rpc.ends_with("GetCapabilities") && !without.contains(&rpc.as_str())).collect();
    let lines: BTreeSet<String> = LINES.iter().map(|(rpc, ..)| (*rpc).to_owned()).collect();
    assert_eq!(lines, wanted);
    for (rpc, when, _, proof) in LINES {
        match proof {
            Asked(calls) => assert!(!calls.is_empty(), "{rpc}, {when}"),
            Never(why) => assert!(!why.is_empty(), "{rpc}, {when}"),
            In(file, test) => {
                let path = format!("{}/tests/it/{file}.rs", env!("CARGO_MANIFEST_DIR"));
                let text = fs::read_to_string(&path).unwrap();
                assert!(text.contains(&format!("fn {test}(")), "{rpc}, {when}: {path} has no {test}");
            }
        }
    }
}

/// Every RPC that asks the API.
const ASKING: &[(&str, Ask)] = &[
    ("CreateVolume", |world| world.create(&new_volume("new", GIB))),
    ("CreateVolume, restored", |world| world.create(&restored(new_volume("new", 0), &world.nightly))),
    ("CreateVolume, cloned", |world| world.create(&cloned(new_volume("new", 0), &world.blog))),
    ("DeleteVolume", |world| world.client().delete_volume(&world.blog)),
    ("ControllerPublishVolume", |world| world.publish(&world.blog, false)),
    ("ControllerUnpublishVolume", |world| world.client().controller_unpublish(&world.blog, &DROPLET.to_string())),
    ("ValidateVolumeCapabilities", |world| world.client().validate(&Volume::mounted(&world.blog, "ext4")).map(drop)),
    ("ListVolumes", |world| world.client().list_volumes(0, "").map(drop)),
    ("ControllerGetVolume", |world| world.client().get_volume(&world.blog).map(drop)),
    ("GetCapacity", |world| {
        Ok(world.client().controller.get_capacity_opt(&csi::GetCapacityRequest::default(), option()).map(drop)?)
    }),
    ("ControllerExpandVolume", |world| world.client().expand(&world.blog, 3 * GIB).map(drop)),
    ("ControllerModifyVolume", |world| world.client().modify(&world.blog, &[("tags", "a")])),
    ("CreateSnapshot", |world| world.client().create_snapshot("new", &world.blog).map(drop)),
    ("DeleteSnapshot", |world| world.client().delete_snapshot(&world.nightly)),
    ("ListSnapshots", |world| world.list_snapshots("")),
    ("GetSnapshot", |world| world.get_snapshot(&world.nightly)),
];

#[test]
fn a_token_that_is_wrong_or_too_weak_is_named_by_every_call_that_needs_it() {
    let world = World::start();
    // Without what changes by itself, as the size of a young snapshot does.
    let ids = || world.solo.sim.snapshots().into_iter().map(|snapshot| snapshot.id).collect::<Vec<_>>();
    let before = (world.solo.sim.volumes(), ids());
    for (refusal, code) in
        [(Refusal::UNAUTHORIZED, Code::UNAUTHENTICATED), (Refusal::FORBIDDEN, Code::PERMISSION_DENIED)]
    {
        world.solo.sim.faults().add(Fault::refused(refusal).always());
        for (rpc, ask) in ASKING {
            let refused = ask(&world).expect_err(rpc);
            assert_eq!(refused.code, code, "{rpc}: {refused}");
        }
        world.solo.sim.faults().clear();
    }
    assert_eq!((world.solo.sim.volumes(), ids()), before);
}

/// Those calls that a second one of the same volume, name or snapshot has to wait for. The two that attach and detach
/// wait in line for as long as they can; what becomes of them is in `conflict.rs` and `concurrency.rs`.
const LOCKING: [&str; 8] = [
    "CreateVolume",
    "CreateVolume, restored",
    "CreateVolume, cloned",
    "DeleteVolume",
    "ControllerExpandVolume",
    "ControllerModifyVolume",
    "CreateSnapshot",
    "DeleteSnapshot",
];

#[test]
fn a_call_for_what_another_call_works_on_is_aborted_when_it_has_waited_long_enough() {
    let locking = ASKING.iter().filter(|(rpc, _)| LOCKING.contains(rpc));
    assert_eq!(locking.clone().count(), LOCKING.len());
    std::thread::scope(|scope| {
        for (rpc, ask) in locking {
            scope.spawn(move || {
                let world = World::start();
                world.solo.sim.reset_calls();
                world.solo.sim.faults().add(Fault::hung().always());
                std::thread::scope(|scope| {
                    let first = scope.spawn(|| ask(&world));
                    until("the first call asks", || world.solo.sim.calls().total() > 0);
                    let refused = ask(&world).expect_err(rpc);
                    assert_eq!(refused.code, Code::ABORTED, "{rpc}: {refused}");
                    world.solo.sim.faults().clear();
                    world.solo.sim.close_connections();
                    // Whatever it says after that: it ends.
                    drop(first.join().unwrap());
                });
            });
        }
    });
}
