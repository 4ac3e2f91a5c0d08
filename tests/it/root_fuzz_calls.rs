//! Random calls with real mounts: good requests, wrong ones, and bytes that were changed on the way, from several callers at
//! once, some of whom do not wait.
//!
//! No call may end by a contradiction of the program or a panic, none may take memory, files or threads for good, a volume that
//! nobody names keeps its file, and afterwards every volume can be taken down and deleted by the calls that are right.
//! `make fuzz SECONDS=3600` goes on for an hour.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use do_csi_plugin::proto::csi;
use do_csi_plugin::proto::csi::volume_capability::access_mode::Mode;
use do_csi_plugin::proto::csi::volume_capability::{Access_type, AccessMode, BlockVolume, MountVolume};
use grpcio::{CallOption, RpcStatusCode};
use protobuf::{EnumOrUnknown, Message};

use crate::harness::{NodeHarness, Vol};
use crate::support::client::{Client, Outcome, Refusal};
use crate::support::fuzz::{Mutator, budget, seed};
use crate::support::wait_for;

const CALLERS: u64 = 8;
const TIME: Duration = Duration::from_secs(20);
/// How much more memory, in kB, the plugin may have at the end than when every kind of call had been made.
const GROWTH_KB: u64 = 12 << 10;
/// How long a caller waits for an answer; some of them not long.
const PATIENCE: [u64; 4] = [2, 3, 6, 30];

/// What requests are made of.
struct Parts {
    ids: Vec<String>,
    /// Those that no call mounts: a loop device carries no name, so nothing tells whose a mount is when its link has gone.
    loose: Vec<String>,
    names: Vec<String>,
    paths: Vec<String>,
    droplets: Vec<String>,
    home: PathBuf,
    /// Every id for which something was mounted, perhaps: a volume is taken down by the id under which it was staged, whatever it is.
    used: Mutex<BTreeSet<String>>,
}

fn words<'a>(mutator: &mut Mutator, all: &[&'a str], most: usize) -> Vec<&'a str> {
    (0..mutator.rng.usize(..=most)).map(|_| mutator.pick(all)).collect()
}

fn text(mutator: &mut Mutator, all: &[String]) -> String {
    if mutator.one_in(12) {
        return (*mutator.pick(&["", "x", "\u{fc}\u{1f600}", "../..", "a\0b", "no-uuid", "%s%n", "-1", "/"]))
            .to_owned();
    }
    all[mutator.rng.usize(..all.len())].clone()
}

fn map(mutator: &mut Mutator, keys: &[&str], values: &[&str], most: usize) -> HashMap<String, String> {
    (0..mutator.rng.usize(..=most)).map(|_| (mutator.pick(keys).to_owned(), mutator.pick(values).to_owned())).collect()
}

fn range(mutator: &mut Mutator) -> Option<csi::CapacityRange> {
    let sizes = [0, -1, 1, 1 << 30, (1 << 30) + 1, 2 << 30, 3 << 30, 16 << 40, i64::MAX, i64::MIN];
    let (required, limit) = (sizes[mutator.rng.usize(..sizes.len())], sizes[mutator.rng.usize(..sizes.len())]);
    let limit_bytes = if mutator.one_in(3) { limit } else { 0 };
    let range = csi::CapacityRange { required_bytes: required, limit_bytes, ..Default::default() };
    (!mutator.one_in(6)).then_some(range)
}

fn capability(mutator: &mut Mutator) -> Option<csi::VolumeCapability> {
    let flags = [
        "ro",
        "noatime",
        "discard",
        "nosuid",
        "errors=panic",
        "errors=continue",
        "loop",
        "bind",
        "uid=0",
        "subvol=x",
        "x",
        "",
    ];
    let mount = MountVolume {
        fs_type: mutator.pick(&["", "ext4", "xfs", "btrfs", "ext3", "ntfs", "EXT4"]).to_owned(),
        mount_flags: words(mutator, &flags, 2).into_iter().map(str::to_owned).collect(),
        ..Default::default()
    };
    let access = match mutator.rng.u8(..8) {
        0..6 => Some(Access_type::Mount(mount)),
        6 => Some(Access_type::Block(BlockVolume::default())),
        _ => None,
    };
    let modes =
        [Mode::SINGLE_NODE_WRITER, Mode::SINGLE_NODE_READER_ONLY, Mode::SINGLE_NODE_MULTI_WRITER, Mode::UNKNOWN];
    let mode = if mutator.one_in(3) { modes[mutator.rng.usize(..modes.len())] } else { modes[0] };
    let mode = if mutator.one_in(30) { EnumOrUnknown::from_i32(77) } else { EnumOrUnknown::new(mode) };
    let access_mode = AccessMode { mode, ..Default::default() };
    let wanted =
        csi::VolumeCapability { access_type: access, access_mode: Some(access_mode).into(), ..Default::default() };
    (!mutator.one_in(20)).then_some(wanted)
}

const DRIVER: &str = "dobs.csi.digitalocean.com";

fn context(mutator: &mut Mutator) -> HashMap<String, String> {
    let keys = ["noformat", "encrypted", "owner", "mode", "label", "recursive-owner", "reflink", "odd"];
    let keys = keys.map(|key| format!("{DRIVER}/{key}"));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    if mutator.one_in(3) {
        map(mutator, &keys, &["true", "false", "1000:1000", "0770", "", "x", "99999999999"], 2)
    } else {
        HashMap::new()
    }
}

fn publish_context(mutator: &mut Mutator, parts: &Parts) -> HashMap<String, String> {
    let sizes = ["1", "2", "0", "18446744073709551615", "x"];
    let size = if mutator.one_in(5) { mutator.pick(&sizes) } else { "1" };
    // For one that is not attached the node waits.
    let names = if mutator.one_in(10) { &parts.names[..] } else { &parts.names[..4] };
    HashMap::from([
        (format!("{DRIVER}/volume-name"), text(mutator, names)),
        (format!("{DRIVER}/size-gigabytes"), size.to_owned()),
    ])
}

fn secrets(mutator: &mut Mutator) -> HashMap<String, String> {
    map(mutator, &["encryption-passphrase", "other"], &["sesame", "", "open\0", "\u{fc}"], 1)
}

/// Changes the bytes of a request, once in a while.
fn changed<M: Message>(mutator: &mut Mutator, request: M) -> M {
    if !mutator.one_in(4) {
        return request;
    }
    let mut bytes = request.write_to_bytes().unwrap();
    mutator.change(&mut bytes, &[]);
    M::parse_from_bytes(&bytes).unwrap_or(request)
}

impl Parts {
    /// A path of the plugin's, or one that is none: nothing of this machine is at stake.
    fn safe(&self, path: String) -> String {
        if path.starts_with(&*self.home.to_string_lossy()) || !path.starts_with('/') { path } else { "/..".to_owned() }
    }

    fn note_used(&self, volume: &str) {
        self.used.lock().unwrap().insert(volume.to_owned());
    }

    fn node_call(&self, mutator: &mut Mutator, client: &Client) -> (&'static str, Outcome<()>) {
        let patience = Duration::from_secs(PATIENCE[mutator.rng.usize(..PATIENCE.len())]);
        let option = || CallOption::default().timeout(patience);
        let node = &client.node;
        match mutator.rng.u8(..20) {
            0..5 => {
                let mut request = csi::NodeStageVolumeRequest {
                    volume_id: text(mutator, &self.ids),
                    publish_context: publish_context(mutator, self),
                    staging_target_path: text(mutator, &self.paths),
                    volume_capability: capability(mutator).into(),
                    secrets: secrets(mutator),
                    volume_context: context(mutator),
                    ..Default::default()
                };
                request = changed(mutator, request);
                request.staging_target_path = self.safe(request.staging_target_path);
                self.note_used(&request.volume_id);
                ("stage", done(node.node_stage_volume_opt(&request, option())))
            }
            5..10 => {
                let mut request = csi::NodePublishVolumeRequest {
                    volume_id: text(mutator, &self.ids),
                    publish_context: publish_context(mutator, self),
                    staging_target_path: text(mutator, &self.paths),
                    target_path: text(mutator, &self.paths),
                    volume_capability: capability(mutator).into(),
                    readonly: mutator.one_in(4),
                    secrets: secrets(mutator),
                    volume_context: context(mutator),
                    ..Default::default()
                };
                request = changed(mutator, request);
                request.staging_target_path = self.safe(request.staging_target_path);
                request.target_path = self.safe(request.target_path);
                self.note_used(&request.volume_id);
                ("publish", done(node.node_publish_volume_opt(&request, option())))
            }
            10..13 => {
                let mut request = csi::NodeUnpublishVolumeRequest {
                    volume_id: text(mutator, &self.ids),
                    target_path: text(mutator, &self.paths),
                    ..Default::default()
                };
                request = changed(mutator, request);
                request.target_path = self.safe(request.target_path);
                ("unpublish", done(node.node_unpublish_volume_opt(&request, option())))
            }
            13..15 => {
                let mut request = csi::NodeUnstageVolumeRequest {
                    volume_id: text(mutator, &self.ids),
                    staging_target_path: text(mutator, &self.paths),
                    ..Default::default()
                };
                request = changed(mutator, request);
                request.staging_target_path = self.safe(request.staging_target_path);
                ("unstage", done(node.node_unstage_volume_opt(&request, option())))
            }
            15 | 16 => {
                let mut request = csi::NodeExpandVolumeRequest {
                    volume_id: text(mutator, &self.ids),
                    volume_path: text(mutator, &self.paths),
                    staging_target_path: text(mutator, &self.paths),
                    capacity_range: range(mutator).into(),
                    volume_capability: capability(mutator).into(),
                    secrets: secrets(mutator),
                    ..Default::default()
                };
                request = changed(mutator, request);
                request.volume_path = self.safe(request.volume_path);
                ("node expand", done(node.node_expand_volume_opt(&request, option())))
            }
            17 => {
                let request = csi::NodeGetVolumeStatsRequest {
                    volume_id: text(mutator, &self.ids),
                    volume_path: text(mutator, &self.paths),
                    ..Default::default()
                };
                ("stats", done(node.node_get_volume_stats_opt(&changed(mutator, request), option())))
            }
            18 => {
                let request =
                    csi::NodeGetVolumeHealthRequest { volume_id: text(mutator, &self.ids), ..Default::default() };
                ("node health", done(node.node_get_volume_health_opt(&changed(mutator, request), option())))
            }
            _ => ("info", client.node_info().map(drop)),
        }
    }

    fn controller_call(&self, mutator: &mut Mutator, client: &Client) -> (&'static str, Outcome<()>) {
        let patience = Duration::from_secs(PATIENCE[mutator.rng.usize(..PATIENCE.len())]);
        let option = || CallOption::default().timeout(patience);
        let controller = &client.controller;
        match mutator.rng.u8(..16) {
            0..3 => {
                let request = csi::ControllerPublishVolumeRequest {
                    volume_id: text(mutator, &self.ids),
                    node_id: text(mutator, &self.droplets),
                    volume_capability: capability(mutator).into(),
                    readonly: mutator.one_in(4),
                    volume_context: context(mutator),
                    ..Default::default()
                };
                ("attach", done(controller.controller_publish_volume_opt(&changed(mutator, request), option())))
            }
            3 => {
                let request = csi::ControllerUnpublishVolumeRequest {
                    volume_id: text(mutator, &self.loose),
                    node_id: text(mutator, &self.droplets),
                    ..Default::default()
                };
                ("detach", done(controller.controller_unpublish_volume_opt(&changed(mutator, request), option())))
            }
            4 | 5 => {
                let request = csi::CreateVolumeRequest {
                    name: text(mutator, &self.names),
                    capacity_range: range(mutator).into(),
                    volume_capabilities: capability(mutator).into_iter().collect(),
                    parameters: map(mutator, &["tags", "description", "odd"], &["a,b", "", "x y", ",,"], 2),
                    ..Default::default()
                };
                ("create", done(controller.create_volume_opt(&changed(mutator, request), option())))
            }
            6 => {
                let request = csi::DeleteVolumeRequest { volume_id: text(mutator, &self.ids), ..Default::default() };
                ("delete", done(controller.delete_volume_opt(&changed(mutator, request), option())))
            }
            7 | 8 => {
                let request = csi::ControllerExpandVolumeRequest {
                    volume_id: text(mutator, &self.ids),
                    capacity_range: range(mutator).into(),
                    ..Default::default()
                };
                ("expand", done(controller.controller_expand_volume_opt(&changed(mutator, request), option())))
            }
            9 => {
                let request = csi::CreateSnapshotRequest {
                    source_volume_id: text(mutator, &self.ids),
                    name: text(mutator, &self.names),
                    ..Default::default()
                };
                ("snapshot", done(controller.create_snapshot_opt(&changed(mutator, request), option())))
            }
            10 => {
                let request =
                    csi::DeleteSnapshotRequest { snapshot_id: text(mutator, &self.ids), ..Default::default() };
                ("delete snapshot", done(controller.delete_snapshot_opt(&changed(mutator, request), option())))
            }
            11 => {
                let request = csi::ListVolumesRequest {
                    max_entries: mutator.rng.i32(-1..5),
                    starting_token: mutator.pick(&["", "1:2:a", "0:0:0", "99999999999999999999::a", ":"]).to_owned(),
                    ..Default::default()
                };
                ("list", done(controller.list_volumes_opt(&changed(mutator, request), option())))
            }
            12 => {
                let request = csi::ListSnapshotsRequest {
                    snapshot_id: text(mutator, &self.ids),
                    source_volume_id: text(mutator, &self.ids),
                    ..Default::default()
                };
                ("list snapshots", done(controller.list_snapshots_opt(&changed(mutator, request), option())))
            }
            13 => {
                let request = csi::ValidateVolumeCapabilitiesRequest {
                    volume_id: text(mutator, &self.ids),
                    volume_capabilities: capability(mutator).into_iter().collect(),
                    volume_context: context(mutator),
                    ..Default::default()
                };
                ("validate", done(controller.validate_volume_capabilities_opt(&changed(mutator, request), option())))
            }
            14 => {
                let request = csi::ControllerModifyVolumeRequest {
                    volume_id: text(mutator, &self.ids),
                    mutable_parameters: map(mutator, &["tags", "remove-tags", "odd"], &["a", "b", "", "a b"], 2),
                    ..Default::default()
                };
                ("modify", done(controller.controller_modify_volume_opt(&changed(mutator, request), option())))
            }
            _ => {
                let request =
                    csi::ControllerGetVolumeRequest { volume_id: text(mutator, &self.ids), ..Default::default() };
                ("get", done(controller.controller_get_volume_opt(&changed(mutator, request), option())))
            }
        }
    }
}

fn done<T>(outcome: grpcio::Result<T>) -> Outcome<()> {
    outcome.map(drop).map_err(Refusal::from)
}

/// How often each kind of call ended how, and what was said of those that must not be.
type Counts = BTreeMap<(&'static str, String), u32>;

fn is_finding(refusal: &Refusal) -> bool {
    let words = ["bug in do-csi-plugin", "panicked"];
    let is_unanswered = refusal.code == RpcStatusCode::UNKNOWN || refusal.code == RpcStatusCode::UNIMPLEMENTED;
    is_unanswered || words.iter().any(|word| refusal.message.contains(word))
}

fn call_until(end: Instant, seed: u64, parts: &Parts, client: &Client, counts: &Mutex<Counts>) {
    let mut mutator = Mutator::new(seed, &[b"\x0a\x00", b"\x12\x02", b"\x1a", b"\xff\xff\xff\xff\x0f"]);
    while Instant::now() < end {
        let is_node = !mutator.one_in(3);
        let (what, outcome) =
            if is_node { parts.node_call(&mut mutator, client) } else { parts.controller_call(&mut mutator, client) };
        let code = outcome.as_ref().map_or_else(|refusal| format!("{:?}", refusal.code), |()| "OK".to_owned());
        if let Err(refusal) = &outcome {
            assert!(!is_finding(refusal), "{what} of FUZZ_SEED={seed}: {refusal}");
            if refusal.code == RpcStatusCode::INTERNAL {
                println!("{what}: {refusal}");
            }
        }
        *counts.lock().unwrap().entry((what, code)).or_default() += 1;
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_fuzz_no_call_ends_the_plugin_or_leaves_anything() {
    let rig = NodeHarness::start_with(&["--call-budget=10"]);
    rig.cloud.sim.change_rules(|rules| {
        rules.limits.snapshot_interval = Duration::ZERO;
        (rules.limits.requests_per_hour, rules.limits.requests_per_minute) = (100_000_000, 100_000_000);
    });
    let quiet = rig.volume("quiet", "").fs("ext4");
    rig.stage(&quiet).unwrap();
    rig.publish(&quiet, "quiet").unwrap();
    let kept = rig.target(&quiet, "quiet");
    rig.write(&kept, "file", "kept").unwrap();

    let volumes: Vec<Vol> = ["one", "two", "three", "four"].map(|name| rig.volume(name, "")).into();
    let staging = volumes.iter().map(|vol| rig.staging(vol));
    let targets = volumes.iter().flat_map(|vol| ["a", "b"].map(|alloc| rig.target(vol, alloc)));
    let paths: Vec<PathBuf> = staging.chain(targets).collect();
    for path in &paths {
        rig.machine().droplet.make_folder(path.parent().unwrap()).unwrap();
    }
    let unknown = "ffffffff-8f00-11f0-9a11-0a58ac14d1e2".to_owned();
    let loose = ["loose", "spare"].map(|name| rig.volume(name, "").csi.id);
    let parts = Parts {
        loose: loose.into(),
        ids: volumes.iter().map(|vol| vol.csi.id.clone()).chain([unknown]).collect(),
        names: volumes.iter().map(|vol| vol.name.clone()).chain(["new".to_owned(), "other".to_owned()]).collect(),
        paths: paths.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
        droplets: vec![rig.machine().node_id(), rig.machine().node_id(), "7".to_owned()],
        home: rig.machine().home().to_owned(),
        used: Mutex::default(),
    };
    let (begun, time, seed) = (Instant::now(), budget().unwrap_or(TIME), seed());
    let (warm, counts) = (begun + time / 4, Mutex::new(Counts::new()));
    let play = |from: u64, end: Instant| {
        thread::scope(|scope| {
            let callers: Vec<_> = (from..from + CALLERS)
                .map(|number| {
                    let (client, parts, counts) = (Client::connect(&rig.machine().socket()), &parts, &counts);
                    scope.spawn(move || call_until(end, seed.wrapping_add(number), parts, &client, counts))
                })
                .collect();
            for caller in callers {
                caller.join().unwrap_or_else(|_| {
                    panic!("{}", rig.plugin().log().lines().rev().take(40).collect::<Vec<_>>().join("\n"))
                });
            }
        });
    };
    play(0, warm);
    let (_, warm_kb) = rig.plugin().memory_kb().unwrap();
    play(CALLERS, begun + time);
    let counts = counts.into_inner().unwrap();
    let all: u32 = counts.values().sum();
    println!("{all} calls, FUZZ_SEED={seed}: {counts:?}");

    assert!(!rig.plugin().log().contains("panicked"), "a thread has panicked");
    let is_small = || {
        let (_, anonymous) = rig.plugin().memory_kb()?;
        let (files, threads) = rig.plugin().files_and_threads()?;
        (anonymous < warm_kb + GROWTH_KB && files < 200 && threads < 400).then_some(())
    };
    let figures = || (rig.plugin().memory_kb(), rig.plugin().files_and_threads());
    assert!(wait_for(Duration::from_secs(10), is_small).is_some(), "from {warm_kb} kB to {:?}", figures());
    println!("{warm_kb} kB when warm; then {:?}", figures());
    assert_eq!(rig.read(&kept, "file").unwrap(), "kept");

    // The right calls end everything that the wrong ones have begun. Any volume may be at any path by now.
    let client = rig.client();
    let used = parts.used.lock().unwrap();
    let end_at = |path: &Path| {
        let mut refusals = Vec::new();
        let is_ended = used.iter().any(|id| {
            let calls = [client.unpublish(id, path), client.unstage(id, path)];
            refusals.extend(calls.into_iter().filter_map(Result::err));
            rig.mount_at(path).is_none()
        });
        (!is_ended).then_some(refusals)
    };
    // What is published keeps what is staged, and either may lie at any path.
    for _ in 0..2 {
        paths.iter().rev().filter(|path| rig.mount_at(path).is_some()).for_each(|path| drop(end_at(path)));
    }
    let left: Vec<_> =
        paths.iter().filter(|path| rig.mount_at(path).is_some()).map(|path| (path, end_at(path))).collect();
    assert!(left.is_empty(), "{left:#?}");
    for vol in &volumes {
        client.controller_unpublish(&vol.csi.id, &rig.machine().node_id()).unwrap();
    }
    rig.unpublish(&quiet, "quiet").unwrap();
    rig.unstage(&quiet).unwrap();
    rig.close();
}
