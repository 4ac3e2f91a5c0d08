//! Bad input: every field of every served RPC, missing or malformed, is refused by name, and nothing is left behind.

use std::collections::HashMap;

use do_csi_plugin::proto::csi;
use do_csi_plugin::proto::csi::{
    CapacityRange, Topology, TopologyRequirement, VolumeCapability, VolumeContentSource, volume_capability,
    volume_content_source,
};
use grpcio::RpcStatusCode;
use protobuf::MessageField;
use volume_capability::access_mode::Mode;

use crate::PROGRAM;
use crate::sim::NewVolume;
use crate::support::client::{Client, Refusal, Volume, capability, option, text_map};
use crate::support::plugin::Plugin;
use crate::support::single_plugin::{DROPLET, SinglePlugin};

/// An id of the right shape that no volume, snapshot or droplet has.
const UNKNOWN: &str = "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";

/// Ids that no volume can have; each would lead elsewhere if it were put into a path unchecked.
const IMPOSSIBLE: [&str; 6] =
    ["no-uuid", "../account", "..%2faccount", "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2/actions", "snapshots", "?name=x"];

/// Texts that are no place for a volume, whatever the field.
const BAD_PATHS: [&str; 8] = ["", "relative", "./relative", "~/home", "/csi/../etc", "/csi/..", "/", "/with\0zero"];

/// What makes a good request a bad one, with the word that its refusal has to have.
type Spoil<R> = (&'static str, Box<dyn Fn(&mut R)>);

struct Bench {
    solo: SinglePlugin,
    plugin: Plugin,
    /// A volume that exists.
    id: String,
}

impl Bench {
    fn start() -> Bench {
        let solo = SinglePlugin::new(PROGRAM);
        let plugin = solo.launch(&[]).start().unwrap();
        let id = solo.sim.add_volume(&NewVolume::new("blog", 1, "fra1")).unwrap();
        Bench { solo, plugin, id }
    }

    fn client(&self) -> &Client {
        &self.plugin.client
    }

    fn path(&self, name: &str) -> String {
        self.solo.path(name).display().to_string()
    }

    /// Sends requests of one kind, each a good one with something wrong, and checks that each is refused by name, that
    /// the API was not asked, and that nothing came to be on disk.
    fn refuses<R: Clone, T>(&self, call: impl Fn(&Client, &R) -> Result<T, Refusal>, good: &R, table: Vec<Spoil<R>>) {
        let (files, volumes) = (self.solo.files(), self.solo.sim.volumes());
        for (number, (named, spoil)) in table.iter().enumerate() {
            let mut request = good.clone();
            spoil(&mut request);
            self.solo.sim.reset_calls();
            let Err(refusal) = call(self.client(), &request) else { panic!("{number} {named}: was taken") };
            assert_eq!(refusal.code, RpcStatusCode::INVALID_ARGUMENT, "{number} {named}: {refusal}");
            assert!(refusal.message.contains(named), "{number} {named}: {refusal}");
            assert_eq!(self.solo.sim.calls().total(), 0, "{number} {named}: {}", self.solo.sim.calls());
        }
        assert_eq!(self.solo.files(), files);
        assert_eq!(self.solo.sim.volumes(), volumes);
        assert!(self.solo.sim.actions().is_empty());
    }
}

fn spoil<R>(named: &'static str, how: impl Fn(&mut R) + 'static) -> Spoil<R> {
    (named, Box::new(how))
}

/// Every bad path in one field.
fn bad_paths<R: 'static>(field: &'static str, set: fn(&mut R, String)) -> Vec<Spoil<R>> {
    BAD_PATHS.iter().map(|path| spoil(field, move |request: &mut R| set(request, (*path).to_owned()))).collect()
}

/// Every bad capability in one field, with the word that the refusal has to have.
fn bad_capabilities<R: 'static>(field: &'static str, set: fn(&mut R, MessageField<VolumeCapability>)) -> Vec<Spoil<R>> {
    let good = Volume::mounted("", "ext4").capability;
    let mounted = |change: fn(&mut volume_capability::MountVolume)| {
        let mut capability = Volume::mounted("", "ext4").capability;
        change(capability.mut_mount());
        capability
    };
    let no_mode = VolumeCapability { access_mode: MessageField::none(), ..good.clone() };
    let no_type = VolumeCapability { access_type: None, ..good.clone() };
    let mode = |mode: Mode| capability(good.access_type.clone().unwrap(), mode);
    let mut numbered = good.clone();
    numbered.access_mode.mut_or_insert_default().mode = protobuf::EnumOrUnknown::from_i32(99);
    let bad = [
        (field, None),
        (field, Some(VolumeCapability::default())),
        (field, Some(no_mode)),
        (field, Some(no_type)),
        (field, Some(mode(Mode::UNKNOWN))),
        ("99", Some(numbered)),
        ("MULTI_NODE_READER_ONLY", Some(mode(Mode::MULTI_NODE_READER_ONLY))),
        ("MULTI_NODE_SINGLE_WRITER", Some(mode(Mode::MULTI_NODE_SINGLE_WRITER))),
        ("MULTI_NODE_MULTI_WRITER", Some(mode(Mode::MULTI_NODE_MULTI_WRITER))),
        ("ntfs", Some(mounted(|mount| mount.fs_type = "ntfs".into()))),
        ("mount_flags", Some(mounted(|mount| mount.mount_flags = vec!["bind".into()]))),
        ("mount_flags", Some(mounted(|mount| mount.mount_flags = vec!["loop".into()]))),
        ("volume_mount_group", Some(mounted(|mount| mount.volume_mount_group = "1000".into()))),
    ];
    let entry = move |(named, bad): (&'static str, Option<VolumeCapability>)| {
        spoil(named, move |request: &mut R| set(request, bad.clone().into()))
    };
    bad.into_iter().map(entry).collect()
}

/// Settings of which no volume can be made that has the file system ext4, with the word that the refusal has to have.
const BAD_SETTINGS: [(&str, &str); 5] = [
    ("noformatt", "true"),
    ("noformat", "maybe"),
    ("mode", "rwx"),
    ("reflink", "true"),
    ("label", "longer-than-16-letters"),
];

/// Names of ours that are written otherwise than they are read, and what the refusal has to suggest.
const NEARLY_OURS: [(&str, &str); 9] = [
    ("noformat", "dobs.csi.digitalocean.com/noformat"),
    ("no_format", "dobs.csi.digitalocean.com/noformat"),
    ("NoFormat", "dobs.csi.digitalocean.com/noformat"),
    ("nofromat", "dobs.csi.digitalocean.com/noformat"),
    ("owner", "dobs.csi.digitalocean.com/owner"),
    ("mode", "dobs.csi.digitalocean.com/mode"),
    ("encryption", "dobs.csi.digitalocean.com/encrypted"),
    ("csi.digitalocean.com/noformat", "dobs.csi.digitalocean.com/noformat"),
    ("dobs.csi.digitalocean.com/noformatt", "dobs.csi.digitalocean.com/noformat"),
];

fn setting(name: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(format!("dobs.csi.digitalocean.com/{name}"), value.to_owned())])
}

fn name_of_129_bytes() -> String {
    "x".repeat(129)
}

fn create_volume(client: &Client, request: &csi::CreateVolumeRequest) -> Result<(), Refusal> {
    Ok(client.controller.create_volume_opt(request, option()).map(drop)?)
}

#[test]
fn a_volume_is_not_created_from_a_bad_request() {
    type Request = csi::CreateVolumeRequest;
    let bench = Bench::start();
    let range = |required: i64, limit: i64| {
        move |request: &mut Request| {
            let range = CapacityRange { required_bytes: required, limit_bytes: limit, ..Default::default() };
            request.capacity_range = Some(range).into();
        }
    };
    let topology = |segments: &'static [(&'static str, &'static str)]| {
        move |request: &mut Request| {
            let segments: HashMap<_, _> = segments.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let requisite = vec![Topology { segments, ..Default::default() }];
            request.accessibility_requirements = Some(TopologyRequirement { requisite, ..Default::default() }).into();
        }
    };
    let source = |kind: Option<volume_content_source::Type>| {
        move |request: &mut Request| {
            request.volume_content_source =
                Some(VolumeContentSource { type_: kind.clone(), ..Default::default() }).into();
        }
    };
    let snapshot = volume_content_source::Type::Snapshot(Default::default());
    let volume = volume_content_source::Type::Volume(Default::default());
    let good = Request {
        name: "new".into(),
        volume_capabilities: vec![Volume::mounted("", "ext4").capability],
        ..Default::default()
    };
    let mut table = vec![
        spoil("name", |request: &mut Request| request.name.clear()),
        spoil("name", |request: &mut Request| request.name = name_of_129_bytes()),
        spoil("name", |request: &mut Request| request.name = "a\u{b}b".into()),
        spoil("name", |request: &mut Request| request.name = "a\0b".into()),
        spoil("volume_capabilities", |request: &mut Request| request.volume_capabilities.clear()),
        spoil("capacity_range", range(-1, 0)),
        spoil("capacity_range", range(0, -1)),
        spoil("capacity_range", range(2 << 30, 1 << 30)),
        spoil("accessibility_requirements", topology(&[])),
        spoil("zone", topology(&[("zone", "a")])),
        spoil("zone", topology(&[("region", "fra1"), ("zone", "a")])),
        spoil("volume_content_source", source(None)),
        spoil("snapshot_id", source(Some(snapshot))),
        spoil("volume_id", source(Some(volume))),
    ];
    table.extend(bad_capabilities("volume_capabilities", |request: &mut Request, bad| {
        request.volume_capabilities = vec![bad.unwrap_or_default()];
    }));
    // One that is good does not excuse one that is not.
    table.extend(bad_capabilities("volume_capabilities", |request: &mut Request, bad| {
        request.volume_capabilities.push(bad.unwrap_or_default());
    }));
    table.extend(
        BAD_SETTINGS
            .map(|(name, value)| spoil(name, move |request: &mut Request| request.parameters = setting(name, value))),
    );
    table.extend(NEARLY_OURS.map(|(name, meant)| {
        spoil(meant, move |request: &mut Request| request.parameters = text_map(&[(name, "true")]))
    }));
    table.extend(
        [("Tags", "tags"), ("TAGS", "tags"), ("discription", "description")].map(|(name, meant)| {
            spoil(meant, move |request: &mut Request| request.parameters = text_map(&[(name, "x")]))
        }),
    );
    bench.refuses(create_volume, &good, table);
    create_volume(bench.client(), &good).unwrap();
}

#[test]
fn a_size_or_region_that_cannot_be_had_is_refused_before_anything_is_asked_for() {
    let bench = Bench::start();
    let good = csi::CreateVolumeRequest {
        name: "new".into(),
        volume_capabilities: vec![Volume::mounted("", "ext4").capability],
        ..Default::default()
    };
    let with_range = |required: i64, limit: i64| {
        let range = CapacityRange { required_bytes: required, limit_bytes: limit, ..Default::default() };
        csi::CreateVolumeRequest { capacity_range: Some(range).into(), ..good.clone() }
    };
    for (request, code) in [
        (with_range(i64::MAX, 0), RpcStatusCode::OUT_OF_RANGE),
        (with_range((16 << 40) + 1, 0), RpcStatusCode::OUT_OF_RANGE),
        (with_range(0, 1), RpcStatusCode::OUT_OF_RANGE),
        (with_range(1, 2), RpcStatusCode::OUT_OF_RANGE),
    ] {
        let refusal = create_volume(bench.client(), &request).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
    }
    let segments = HashMap::from([("region".to_owned(), "nyc1".to_owned())]);
    let requisite = vec![Topology { segments, ..Default::default() }];
    let elsewhere = csi::CreateVolumeRequest {
        accessibility_requirements: Some(TopologyRequirement { requisite, ..Default::default() }).into(),
        ..good
    };
    let refusal = create_volume(bench.client(), &elsewhere).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::RESOURCE_EXHAUSTED, "{refusal}");
    assert!(refusal.message.contains("nyc1") && refusal.message.contains("fra1"), "{refusal}");
    assert_eq!(bench.solo.sim.volumes().len(), 1);
    assert_eq!(bench.solo.sim.calls().of("POST", "/v2/volumes"), 0);
}

fn publish(client: &Client, request: &csi::ControllerPublishVolumeRequest) -> Result<(), Refusal> {
    Ok(client.controller.controller_publish_volume_opt(request, option()).map(drop)?)
}

fn good_publish(bench: &Bench) -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest {
        volume_id: bench.id.clone(),
        node_id: DROPLET.to_string(),
        volume_capability: Some(Volume::mounted("", "ext4").capability).into(),
        ..Default::default()
    }
}

#[test]
fn a_volume_is_not_attached_by_a_bad_request() {
    type Request = csi::ControllerPublishVolumeRequest;
    let bench = Bench::start();
    let mut table = vec![
        spoil("volume_id", |request: &mut Request| request.volume_id.clear()),
        spoil("node_id", |request: &mut Request| request.node_id.clear()),
        // What is malformed goes before what does not exist.
        spoil("volume_capability", |request: &mut Request| {
            request.volume_id = IMPOSSIBLE[0].to_owned();
            request.volume_capability = None.into();
        }),
        spoil("node_id", |request: &mut Request| {
            request.volume_id = IMPOSSIBLE[0].to_owned();
            request.node_id.clear();
        }),
    ];
    table.extend(bad_capabilities("volume_capability", |request: &mut Request, bad| request.volume_capability = bad));
    bench.refuses(publish, &good_publish(&bench), table);
}

/// A refusal as not found that names the id, without a request that has it in its path.
fn is_not_found(bench: &Bench, what: &str, id: &str, outcome: Result<(), Refusal>) {
    let refusal = outcome.expect_err(what);
    assert_eq!(refusal.code, RpcStatusCode::NOT_FOUND, "{what} {id:?}: {refusal}");
    assert!(refusal.message.contains(id), "{what} {id:?}: {refusal}");
    if id != UNKNOWN {
        assert_eq!(bench.solo.sim.calls().total(), 0, "{what} {id:?}: {}", bench.solo.sim.calls());
    }
    bench.solo.sim.reset_calls();
}

#[test]
fn an_unknown_volume_or_droplet_is_not_found_and_an_impossible_id_is_not_even_asked_for() {
    let bench = Bench::start();
    let client = bench.client();
    for id in IMPOSSIBLE.iter().copied().chain([UNKNOWN]) {
        let request = csi::ControllerPublishVolumeRequest { volume_id: id.to_owned(), ..good_publish(&bench) };
        is_not_found(&bench, "publish", id, publish(client, &request));
        is_not_found(&bench, "validate", id, client.validate(&Volume::mounted(id, "ext4")).map(drop));

        client.delete_volume(id).unwrap();
        client.controller_unpublish(id, &DROPLET.to_string()).unwrap();
        client.controller_unpublish(id, "").unwrap();
        if id != UNKNOWN {
            assert_eq!(bench.solo.sim.calls().total(), 0, "{id:?}: {}", bench.solo.sim.calls());
        }
        bench.solo.sim.reset_calls();
    }
    for node in ["fake-node", "0", "-1", "3164444/actions", "99999999999999999999999", " 3164444"] {
        let request = csi::ControllerPublishVolumeRequest { node_id: node.to_owned(), ..good_publish(&bench) };
        is_not_found(&bench, "publish to", node, publish(client, &request));
        client.controller_unpublish(&bench.id, node).unwrap();
        assert_eq!(bench.solo.sim.calls().total(), 0, "{node:?}");
    }
    let nobody = csi::ControllerPublishVolumeRequest { node_id: "42".to_owned(), ..good_publish(&bench) };
    let refusal = publish(client, &nobody).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::NOT_FOUND, "{refusal}");
    assert!(refusal.message.contains("42"), "{refusal}");
    assert!(bench.solo.sim.actions().is_empty());
    assert!(bench.solo.sim.volume(&bench.id).is_some());
}

#[test]
fn what_frees_a_volume_needs_its_id() {
    let bench = Bench::start();
    let unpublish = |client: &Client, request: &csi::ControllerUnpublishVolumeRequest| {
        Ok(client.controller.controller_unpublish_volume_opt(request, option()).map(drop)?)
    };
    let good = csi::ControllerUnpublishVolumeRequest {
        volume_id: bench.id.clone(),
        node_id: DROPLET.to_string(),
        ..Default::default()
    };
    type Unpublish = csi::ControllerUnpublishVolumeRequest;
    bench.refuses(unpublish, &good, vec![spoil("volume_id", |request: &mut Unpublish| request.volume_id.clear())]);

    let delete = |client: &Client, request: &csi::DeleteVolumeRequest| {
        Ok(client.controller.delete_volume_opt(request, option()).map(drop)?)
    };
    let good = csi::DeleteVolumeRequest { volume_id: bench.id.clone(), ..Default::default() };
    type Delete = csi::DeleteVolumeRequest;
    bench.refuses(delete, &good, vec![spoil("volume_id", |request: &mut Delete| request.volume_id.clear())]);
}

#[test]
fn a_question_about_a_volume_needs_its_id_and_well_formed_capabilities() {
    type Request = csi::ValidateVolumeCapabilitiesRequest;
    let bench = Bench::start();
    let ask = |client: &Client, request: &Request| {
        Ok(client.controller.validate_volume_capabilities_opt(request, option())?)
    };
    let good = Request {
        volume_id: bench.id.clone(),
        volume_capabilities: vec![Volume::mounted("", "ext4").capability],
        ..Default::default()
    };
    let set = |request: &mut Request, bad: MessageField<VolumeCapability>| {
        request.volume_capabilities = vec![bad.unwrap_or_default()];
    };
    // A use that is well formed but cannot be had is an answer here: not confirmed, with the reason.
    let (malformed, impossible): (Vec<_>, Vec<_>) = bad_capabilities("volume_capabilities", set)
        .into_iter()
        .partition(|(named, _)| ["volume_capabilities", "99", "mount_flags"].contains(named));
    for (named, spoil) in &impossible {
        let mut request = good.clone();
        spoil(&mut request);
        let answer = ask(bench.client(), &request).unwrap_or_else(|refusal: Refusal| panic!("{named}: {refusal}"));
        assert!(answer.confirmed.is_none() && answer.message.contains(named), "{named}: {answer}");
    }
    assert!(impossible.len() >= 5);
    // So is a setting that the node would refuse, whether the volume is to be registered or created with it.
    for (name, value) in BAD_SETTINGS {
        let of_context = Request { volume_context: setting(name, value), ..good.clone() };
        let of_parameters = Request { parameters: setting(name, value), ..good.clone() };
        for request in [of_context, of_parameters] {
            let answer = ask(bench.client(), &request).unwrap();
            assert!(answer.confirmed.is_none() && answer.message.contains(name), "{name}={value}: {answer}");
        }
    }
    for (name, meant) in NEARLY_OURS {
        let of_context = Request { volume_context: text_map(&[(name, "true")]), ..good.clone() };
        let of_parameters = Request { parameters: text_map(&[(name, "true")]), ..good.clone() };
        for request in [of_context, of_parameters] {
            let answer = ask(bench.client(), &request).unwrap();
            assert!(answer.confirmed.is_none() && answer.message.contains(meant), "{name}: {answer}");
        }
    }
    // So is a key for a volume of which nothing says that it is encrypted: every NodeStageVolume would refuse it.
    let keyed = Request { secrets: text_map(&[("encryption-passphrase", "secret")]), ..good.clone() };
    let answer = ask(bench.client(), &keyed).unwrap();
    assert!(answer.confirmed.is_none() && answer.message.contains("encrypted"), "{answer}");
    let encrypted = Request { volume_context: setting("encrypted", "true"), ..keyed };
    assert!(ask(bench.client(), &encrypted).unwrap().confirmed.is_some());
    let mut table = malformed;
    table.push(spoil("volume_id", |request: &mut Request| request.volume_id.clear()));
    table.push(spoil("volume_capabilities", |request: &mut Request| request.volume_capabilities.clear()));
    bench.refuses(ask, &good, table);
    let good = Request {
        volume_context: setting("noformat", "true"),
        parameters: HashMap::from([("tags".to_owned(), "a,b".to_owned())]),
        ..good
    };
    let confirmed = ask(bench.client(), &good).unwrap().confirmed.unwrap();
    assert_eq!(confirmed.volume_capabilities, good.volume_capabilities);
    assert_eq!((confirmed.volume_context, confirmed.parameters), (good.volume_context, good.parameters));
}

#[test]
fn a_list_has_no_negative_length_and_starts_where_a_list_has_ended() {
    let bench = Bench::start();
    let list = |client: &Client, request: &csi::ListVolumesRequest| {
        Ok(client.controller.list_volumes_opt(request, option()).map(drop)?)
    };
    type Request = csi::ListVolumesRequest;
    let table = vec![
        spoil("max_entries", |request: &mut Request| request.max_entries = -1),
        spoil("max_entries", |request: &mut Request| request.max_entries = i32::MIN),
    ];
    bench.refuses(list, &Request::default(), table);
    bench.solo.sim.reset_calls();
    for token in ["page-2", "-1", "+5", "007", "0", "1.5", " 1", "18446744073709551616", "1\n"] {
        let request = Request { starting_token: token.to_owned(), ..Default::default() };
        let refusal: Refusal = list(bench.client(), &request).unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::ABORTED, "{token:?}: {refusal}");
        assert!(refusal.message.contains("starting_token"), "{refusal}");
    }
    assert_eq!(bench.solo.sim.calls().total(), 0);
}

fn publish_context(name: &str) -> HashMap<String, String> {
    HashMap::from([("dobs.csi.digitalocean.com/volume-name".to_owned(), name.to_owned())])
}

/// Publish contexts that do not say which disk it is.
fn bad_contexts<R: 'static>(set: fn(&mut R, HashMap<String, String>)) -> Vec<Spoil<R>> {
    let key = "publish_context[dobs.csi.digitalocean.com/volume-name]";
    let mut bad: Vec<(&'static str, HashMap<String, String>)> =
        ["", ".", "..", "../../sda", "a/b", "a\nb"].map(|name| (key, publish_context(name))).into();
    bad.push((key, HashMap::new()));
    bad.push((key, HashMap::from([("other/volume-name".to_owned(), "blog".to_owned())])));
    for size in ["many", "-1", "1.5"] {
        let mut context = publish_context("blog");
        context.insert("dobs.csi.digitalocean.com/size-gigabytes".to_owned(), size.to_owned());
        bad.push(("publish_context[dobs.csi.digitalocean.com/size-gigabytes]", context));
    }
    bad.into_iter().map(|(named, bad)| spoil(named, move |request: &mut R| set(request, bad.clone()))).collect()
}

#[test]
fn a_volume_is_not_staged_by_a_bad_request() {
    type Request = csi::NodeStageVolumeRequest;
    let bench = Bench::start();
    let stage = |client: &Client, request: &Request| Ok(client.node.node_stage_volume_opt(request, option())?);
    let good = Request {
        volume_id: bench.id.clone(),
        staging_target_path: bench.path("staging"),
        publish_context: publish_context("blog"),
        volume_capability: Some(Volume::mounted("", "ext4").capability).into(),
        ..Default::default()
    };
    let mut table = vec![spoil("volume_id", |request: &mut Request| request.volume_id.clear())];
    table.extend(bad_paths("staging_target_path", |request: &mut Request, path| request.staging_target_path = path));
    table.extend(bad_capabilities("volume_capability", |request: &mut Request, bad| request.volume_capability = bad));
    table.extend(bad_contexts(|request: &mut Request, context| request.publish_context = context));
    bench.refuses(stage, &good, table);
}

#[test]
fn a_volume_is_not_published_by_a_bad_request() {
    type Request = csi::NodePublishVolumeRequest;
    let bench = Bench::start();
    let call = |client: &Client, request: &Request| Ok(client.node.node_publish_volume_opt(request, option())?);
    let good = Request {
        volume_id: bench.id.clone(),
        staging_target_path: bench.path("staging"),
        target_path: bench.path("target"),
        publish_context: publish_context("blog"),
        volume_capability: Some(Volume::mounted("", "ext4").capability).into(),
        ..Default::default()
    };
    let below = bench.path("staging/target");
    let same = bench.path("staging");
    let mut table = vec![
        spoil("volume_id", |request: &mut Request| request.volume_id.clear()),
        spoil("target_path", move |request: &mut Request| request.target_path.clone_from(&below)),
        spoil("target_path", move |request: &mut Request| request.target_path.clone_from(&same)),
    ];
    let staging = bad_paths("staging_target_path", |request: &mut Request, path| request.staging_target_path = path);
    // An empty one is a call out of order and not a malformed one; see below.
    table.extend(staging.into_iter().skip(1));
    table.extend(bad_paths("target_path", |request: &mut Request, path| request.target_path = path));
    table.extend(bad_capabilities("volume_capability", |request: &mut Request, bad| request.volume_capability = bad));
    table.extend(bad_contexts(|request: &mut Request, context| request.publish_context = context));
    bench.refuses(call, &good, table);

    let files = bench.solo.files();
    for staging in [String::new(), bench.path("staging"), bench.path("never/staged")] {
        let request = Request { staging_target_path: staging.clone(), ..good.clone() };
        let refusal: Refusal = call(bench.client(), &request).unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::FAILED_PRECONDITION, "{staging}: {refusal}");
        assert!(refusal.message.contains("stage"), "{refusal}");
    }
    assert_eq!(bench.solo.files(), files);
}

#[test]
fn what_takes_a_volume_away_from_a_node_needs_its_id_and_path() {
    let bench = Bench::start();
    let unpublish = |client: &Client, request: &csi::NodeUnpublishVolumeRequest| {
        Ok(client.node.node_unpublish_volume_opt(request, option())?)
    };
    let good = csi::NodeUnpublishVolumeRequest {
        volume_id: bench.id.clone(),
        target_path: bench.path("target"),
        ..Default::default()
    };
    type Unpublish = csi::NodeUnpublishVolumeRequest;
    let mut table = vec![spoil("volume_id", |request: &mut Unpublish| request.volume_id.clear())];
    table.extend(bad_paths("target_path", |request: &mut Unpublish, path| request.target_path = path));
    bench.refuses(unpublish, &good, table);
    bench.client().unpublish(&bench.id, &bench.solo.path("target")).unwrap();

    let unstage = |client: &Client, request: &csi::NodeUnstageVolumeRequest| {
        Ok(client.node.node_unstage_volume_opt(request, option())?)
    };
    let good = csi::NodeUnstageVolumeRequest {
        volume_id: bench.id.clone(),
        staging_target_path: bench.path("staging"),
        ..Default::default()
    };
    type Unstage = csi::NodeUnstageVolumeRequest;
    let mut table = vec![spoil("volume_id", |request: &mut Unstage| request.volume_id.clear())];
    table.extend(bad_paths("staging_target_path", |request: &mut Unstage, path| request.staging_target_path = path));
    bench.refuses(unstage, &good, table);
    bench.client().unstage(&bench.id, &bench.solo.path("staging")).unwrap();
}

#[test]
fn statistics_need_an_id_and_a_path_at_which_a_volume_is() {
    type Request = csi::NodeGetVolumeStatsRequest;
    let bench = Bench::start();
    let stats = |client: &Client, request: &Request| Ok(client.node.node_get_volume_stats_opt(request, option())?);
    let good = Request { volume_id: bench.id.clone(), volume_path: bench.path("target"), ..Default::default() };
    let table = vec![
        spoil("volume_id", |request: &mut Request| request.volume_id.clear()),
        spoil("volume_path", |request: &mut Request| request.volume_path.clear()),
    ];
    bench.refuses(stats, &good, table);
    // A question about a path at which nothing can be is answered, not refused: csi-sanity asks for `some/path`.
    let impossible = BAD_PATHS.iter().filter(|path| !path.is_empty()).map(|path| (*path).to_owned());
    let empty = [bench.path("target"), bench.path("plugin.log"), bench.path("plugin.log/below"), bench.path("")];
    for path in impossible.chain(empty) {
        let request = Request { volume_path: path.clone(), ..good.clone() };
        let refusal: Refusal = stats(bench.client(), &request).unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::NOT_FOUND, "{path}: {refusal}");
    }
}

#[test]
fn a_path_that_the_system_cannot_have_is_refused_and_one_that_is_long_is_not() {
    let bench = Bench::start();
    let client = bench.client();
    let long_part = format!("/{}", "x".repeat(256));
    let too_long = "/x".repeat(2048);
    for bad in [&long_part, &too_long] {
        let path = std::path::Path::new(bad);
        for refusal in [client.unstage(&bench.id, path).unwrap_err(), client.unpublish(&bench.id, path).unwrap_err()] {
            assert_eq!(refusal.code, RpcStatusCode::INVALID_ARGUMENT, "{refusal}");
            assert!(refusal.message.contains("target_path"), "{refusal}");
        }
    }
    let longest = format!("/{}", "x".repeat(255)).repeat(15);
    client.unstage(&bench.id, std::path::Path::new(&longest)).unwrap();
}

/// The table of a request whose only fault is that an id is missing.
fn needs<R: Default + Clone, T>(bench: &Bench, field: &'static str, call: impl Fn(&Client, &R) -> Result<T, Refusal>) {
    bench.refuses(call, &R::default(), vec![spoil(field, |_: &mut R| {})]);
}

#[test]
fn what_is_about_one_volume_or_snapshot_needs_its_id() {
    let bench = Bench::start();
    needs(&bench, "volume_id", |client, request| Ok(client.controller.controller_get_volume_opt(request, option())?));
    needs(&bench, "volume_id", |client, request| {
        Ok(client.controller.controller_expand_volume_opt(request, option())?)
    });
    needs(&bench, "volume_id", |client, request| {
        Ok(client.controller.controller_modify_volume_opt(request, option())?)
    });
    needs(&bench, "snapshot_id", |client, request| Ok(client.controller.delete_snapshot_opt(request, option())?));
    needs(&bench, "snapshot_id", |client, request| Ok(client.controller.get_snapshot_opt(request, option())?));
    needs(&bench, "volume_id", |client, request| Ok(client.node.node_expand_volume_opt(request, option())?));
}

#[test]
fn a_volume_does_not_grow_by_a_bad_request() {
    type Request = csi::ControllerExpandVolumeRequest;
    let bench = Bench::start();
    let expand = |client: &Client, request: &Request| {
        Ok(client.controller.controller_expand_volume_opt(request, option()).map(drop)?)
    };
    let range = |required_bytes: i64, limit_bytes: i64| {
        Some(CapacityRange { required_bytes, limit_bytes, ..Default::default() })
    };
    let good = Request { volume_id: bench.id.clone(), capacity_range: range(2 << 30, 0).into(), ..Default::default() };
    let mut table: Vec<Spoil<Request>> = [range(-1, 0), range(0, -1), range(3 << 30, 2 << 30), None]
        .into_iter()
        .map(|range| {
            spoil("capacity_range", move |request: &mut Request| request.capacity_range = range.clone().into())
        })
        .collect();
    let capabilities =
        bad_capabilities("volume_capability", |request: &mut Request, bad| request.volume_capability = bad);
    // The first one is none at all, which is allowed here.
    table.extend(capabilities.into_iter().skip(1));
    bench.refuses(expand, &good, table);
    for id in IMPOSSIBLE.iter().copied().chain([UNKNOWN]) {
        bench.solo.sim.reset_calls();
        is_not_found(
            &bench,
            "expand",
            id,
            expand(bench.client(), &Request { volume_id: id.to_owned(), ..good.clone() }),
        );
    }
    assert_eq!(bench.solo.sim.volume(&bench.id).unwrap().size_gigabytes, 1);
}

#[test]
fn a_snapshot_is_not_taken_by_a_bad_request_and_an_unknown_one_is_not_found() {
    type Request = csi::CreateSnapshotRequest;
    let bench = Bench::start();
    let take =
        |client: &Client, request: &Request| Ok(client.controller.create_snapshot_opt(request, option()).map(drop)?);
    let good = Request { name: "nightly".into(), source_volume_id: bench.id.clone(), ..Default::default() };
    let table = vec![
        spoil("name", |request: &mut Request| request.name.clear()),
        spoil("name", |request: &mut Request| request.name = name_of_129_bytes()),
        spoil("name", |request: &mut Request| request.name = "a\u{1b}b".into()),
        spoil("source_volume_id", |request: &mut Request| request.source_volume_id.clear()),
    ];
    bench.refuses(take, &good, table);
    let client = bench.client();
    for id in IMPOSSIBLE.iter().copied().chain([UNKNOWN]) {
        bench.solo.sim.reset_calls();
        is_not_found(
            &bench,
            "snapshot",
            id,
            take(client, &Request { source_volume_id: id.to_owned(), ..good.clone() }),
        );
        let request = csi::GetSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        let found = client.controller.get_snapshot_opt(&request, option()).map(drop);
        is_not_found(&bench, "get snapshot", id, found.map_err(Refusal::from));
        let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        let found = client.controller.controller_get_volume_opt(&request, option()).map(drop);
        is_not_found(&bench, "get volume", id, found.map_err(Refusal::from));

        let request = csi::DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        client.controller.delete_snapshot_opt(&request, option()).unwrap();
        let request = csi::ListSnapshotsRequest { snapshot_id: id.to_owned(), ..Default::default() };
        assert!(client.controller.list_snapshots_opt(&request, option()).unwrap().entries.is_empty());
        let request = csi::ListSnapshotsRequest { source_volume_id: id.to_owned(), ..Default::default() };
        assert!(client.controller.list_snapshots_opt(&request, option()).unwrap().entries.is_empty());
        if id != UNKNOWN {
            assert_eq!(bench.solo.sim.calls().total(), 0, "{id:?}: {}", bench.solo.sim.calls());
        }
    }
    assert!(bench.solo.sim.snapshots().is_empty());
}
