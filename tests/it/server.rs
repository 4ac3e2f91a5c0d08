//! The server: what is answered when, by whom, and whatever else is going on.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use do_csi_plugin::activity::About;
use do_csi_plugin::proto::csi;
use do_csi_plugin::proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    ProbeRequest, ProbeResponse, controller_service_capability, node_service_capability, plugin_capability,
};
use do_csi_plugin::proto::csi_grpc::{Identity, create_identity};
use do_csi_plugin::rpc::Server;
use do_csi_plugin::rpc::socket::SocketFile;
use do_csi_plugin::rpc::worker::{Pool, RpcInfo};
use grpcio::{
    CallOption, ChannelBuilder, Deadline, EnvBuilder, Marshaller, Method, MethodType, RpcContext, RpcStatusCode,
    UnarySink, pb_de, pb_ser,
};
use nix::sys::signal::Signal;

use crate::PROGRAM;
use crate::sim::{Fault, NewVolume};
use crate::support::client::{Client, Refusal, Volume, option};
use crate::support::plugin::Plugin;
use crate::support::single_plugin::{DROPLET, SinglePlugin, until};
use crate::support::wait_for;

/// Longer than any test waits.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// An address where connections are taken and nothing is ever said.
fn silent_server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// An address where nobody listens.
fn dead_url() -> String {
    silent_server().1
}

fn get_info(client: &Client) -> Result<csi::GetPluginInfoResponse, Refusal> {
    Ok(client.identity.get_plugin_info_opt(&GetPluginInfoRequest::default(), option())?)
}

/// The names of the services and RPCs that a plugin says it has.
fn plugin_services(client: &Client) -> BTreeSet<String> {
    let reply =
        client.identity.get_plugin_capabilities_opt(&GetPluginCapabilitiesRequest::default(), option()).unwrap();
    let name = |capability: csi::PluginCapability| match capability.type_ {
        Some(plugin_capability::Type::Service(service)) => format!("{:?}", service.type_.unwrap()),
        Some(plugin_capability::Type::VolumeExpansion(expansion)) => format!("{:?}", expansion.type_.unwrap()),
        other => panic!("{other:?}"),
    };
    reply.capabilities.into_iter().map(name).collect()
}

#[test]
fn the_plugin_answers_while_the_api_and_the_metadata_service_hang_or_are_dead() {
    let solo = SinglePlugin::new(PROGRAM);
    let (_silent, silent) = silent_server();
    for url in [&silent, &dead_url()] {
        let urls = [format!("--url={url}"), format!("--metadata-url={url}")];
        let mut launch = solo.launch(&[]);
        launch.args = urls.into();
        let plugin = launch.start().unwrap();
        let client = &plugin.client;
        assert!(client.probe().unwrap().ready.value);
        let info = get_info(client).unwrap();
        assert_eq!(info.name, "dobs.csi.digitalocean.com");
        assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));
        assert!(plugin_services(client).contains("CONTROLLER_SERVICE"));
        assert!(!client.node.node_get_capabilities_opt(&Default::default(), option()).unwrap().capabilities.is_empty());
        // It waits for the droplet's id, which must be over before Nomad gives the call up.
        let asked = Instant::now();
        let refusal = client.node_info().unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::UNAVAILABLE, "{refusal}");
        assert!(refusal.message.contains("metadata"), "{refusal}");
        assert!(asked.elapsed() < Duration::from_secs(28), "{:?}", asked.elapsed());
        assert!(plugin.stop().unwrap().success());
    }
}

fn start_node_info(client: &Client) -> grpcio::ClientUnaryReceiver<csi::NodeGetInfoResponse> {
    client.node.node_get_info_async_opt(&csi::NodeGetInfoRequest::default(), option()).unwrap()
}

#[test]
fn node_info_waits_for_a_metadata_service_that_is_slow_or_comes_late() {
    for delay in [Duration::from_millis(300), Duration::from_secs(2)] {
        let solo = SinglePlugin::new(PROGRAM);
        solo.sim.metadata_late(DROPLET, delay);
        let plugin = solo.launch(&[]).start().unwrap();
        // One call, as Nomad makes: it asks again only half a minute later.
        assert_eq!(plugin.client.node_info().unwrap().node_id, DROPLET.to_string(), "{delay:?}");
    }
    let solo = SinglePlugin::new(PROGRAM);
    solo.sim.metadata_down(DROPLET, FOR_EVER);
    let plugin = solo.launch(&[]).start().unwrap();
    until("it has asked in vain", || plugin.log().contains("not known yet which droplet this is"));
    let calls: Vec<_> = (0..3).map(|_| start_node_info(&plugin.client)).collect();
    solo.sim.advance(FOR_EVER);
    for call in calls {
        assert_eq!(futures_executor::block_on(call).unwrap().node_id, DROPLET.to_string());
    }
}

/// An address where everything is answered like this, until the test ends.
fn server_that_says(reply: &'static str) -> String {
    let (listener, url) = silent_server();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _request = stream.read(&mut [0; 4096]);
            let _gone = stream.write_all(reply.as_bytes());
        }
    });
    url
}

#[test]
fn who_answers_instead_of_the_metadata_service_is_named_with_a_way_out() {
    let solo = SinglePlugin::new(PROGRAM);
    let refused = "HTTP/1.1 403 Forbidden\r\ncontent-length: 17\r\nconnection: close\r\n\r\nblocked by policy";
    let other = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>";
    for (reply, words) in [(refused, "answered 403"), (other, "<html>")] {
        let url = server_that_says(reply);
        let mut launch = solo.launch(&[]);
        launch.args[1] = format!("--metadata-url={url}");
        let plugin = launch.start().unwrap();
        until("it has asked", || plugin.log().contains("not known yet which droplet this is"));
        let refusal = plugin.client.node_info().unwrap_err();
        let log = plugin.log();
        for text in [&refusal.message, &log] {
            for word in [&format!("{url}/metadata/v1/id"), words, "firewall", "--droplet-id and --region"] {
                assert!(text.contains(word), "{word:?} is missing in {text}");
            }
            assert!(!text.contains("DigitalOcean answered"), "{text}");
        }
    }
}

#[test]
fn a_droplet_whose_id_and_region_are_given_asks_nobody() {
    let solo = SinglePlugin::new(PROGRAM);
    let mut launch = solo.launch(&["--droplet-id=4711", "--region=nyc1"]);
    launch.args[1] = format!("--metadata-url={}", dead_url());
    let plugin = launch.start().unwrap();
    let info = plugin.client.node_info().unwrap();
    assert_eq!((&*info.node_id, &*info.accessible_topology.segments["region"]), ("4711", "nyc1"));
    assert!(!plugin.log().contains("WARN"), "{}", plugin.log());
    plugin.stop().unwrap();
    // The id alone: the region is asked for, and what is given goes before what is answered.
    let plugin = solo.launch(&["--droplet-id=4711"]).start().unwrap();
    let info = plugin.client.node_info().unwrap();
    assert_eq!((&*info.node_id, &*info.accessible_topology.segments["region"]), ("4711", "fra1"));
}

#[test]
fn a_wait_for_the_droplets_id_does_not_hold_up_the_end() {
    let solo = SinglePlugin::new(PROGRAM);
    solo.sim.metadata_down(DROPLET, FOR_EVER);
    let mut plugin = solo.launch(&[]).start().unwrap();
    let waiting: Vec<_> = (0..3).map(|_| start_node_info(&plugin.client)).collect();
    until("a call waits", || {
        let threads = fs::read_dir(format!("/proc/{}/task", plugin.pid())).unwrap();
        let mut names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        names.any(|name| name.starts_with("node-info"))
    });
    plugin.signal(Signal::SIGTERM).unwrap();
    let told = Instant::now();
    assert!(plugin.wait().unwrap().success());
    assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    drop(waiting);
}

#[test]
fn node_info_is_unavailable_until_the_metadata_service_answers_and_right_from_then_on() {
    let solo = SinglePlugin::new(PROGRAM);
    solo.sim.metadata_down(DROPLET, FOR_EVER);
    let plugin = solo.launch(&["--volume-limit=7"]).start().unwrap();
    let client = &plugin.client;
    until("it has asked once", || plugin.log().contains("not known yet which droplet this is"));
    let refusal = client.node_info().unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::UNAVAILABLE, "{refusal}");
    solo.sim.advance(FOR_EVER);
    let info = client.node_info().unwrap();
    assert_eq!(info.node_id, DROPLET.to_string());
    assert_eq!(info.max_volumes_per_node, 7);
    let segments: Vec<_> = info.accessible_topology.segments.iter().collect();
    assert_eq!(segments, [(&"region".to_owned(), &"fra1".to_owned())]);
    // Asked once and kept: what the service says later, or that it is gone, changes nothing.
    solo.sim.metadata_down(DROPLET, FOR_EVER);
    assert_eq!(client.node_info().unwrap(), info);
}

#[test]
fn a_controller_with_a_region_needs_no_droplet() {
    let solo = SinglePlugin::new(PROGRAM);
    let metadata = format!("--metadata-url={}", dead_url());
    let mut launch = solo.launch(&["--mode=controller", "--region=fra1"]);
    launch.args[1] = metadata;
    let plugin = launch.start().unwrap();
    let client = &plugin.client;
    let capability = Volume::mounted("", "ext4").capability;
    let volume = client.create_volume("far-away", 1 << 30, &capability).unwrap();
    assert_eq!(solo.sim.volume("far-away").unwrap().region, "fra1");
    let mut volume = Volume::mounted(&volume.volume_id, "ext4");
    client.controller_publish(&mut volume, &DROPLET.to_string()).unwrap();
    assert_eq!(client.node_info().unwrap_err().code, RpcStatusCode::UNIMPLEMENTED);
    assert!(plugin_services(client).contains("CONTROLLER_SERVICE"));
    assert!(!plugin.log().contains("WARN"), "{}", plugin.log());
}

/// Calls an RPC by its full name with an empty request; ProbeRequest is as empty as any other and reads every answer.
fn call_by_name(socket: &Path, name: &str) -> Result<(), Refusal> {
    let env = Arc::new(EnvBuilder::new().cq_count(1).build());
    let channel = ChannelBuilder::new(env).connect(&format!("unix:{}", socket.display()));
    let method: Method<ProbeRequest, ProbeRequest> = Method {
        ty: MethodType::Unary,
        name: Box::leak(name.to_owned().into_boxed_str()),
        req_mar: Marshaller { ser: pb_ser, de: pb_de },
        resp_mar: Marshaller { ser: pb_ser, de: pb_de },
    };
    Ok(grpcio::Client::new(channel).unary_call(&method, &ProbeRequest::default(), option()).map(drop)?)
}

/// `Service.Rpc` for everything in the interface.
fn all_rpcs() -> Vec<String> {
    let services = &csi::file_descriptor().proto().service;
    let names = services.iter().flat_map(|service| {
        service.method.iter().map(|method| format!("{}.{}", service.name(), method.name())).collect::<Vec<_>>()
    });
    names.collect()
}

/// The RPCs that a controller capability promises; those that are none of an RPC's promise nothing here.
fn promised_by_controller(capability: controller_service_capability::rpc::Type) -> &'static [&'static str] {
    use controller_service_capability::rpc::Type;
    match capability {
        Type::CREATE_DELETE_VOLUME => &["CreateVolume", "DeleteVolume"],
        Type::PUBLISH_UNPUBLISH_VOLUME => &["ControllerPublishVolume", "ControllerUnpublishVolume"],
        Type::LIST_VOLUMES => &["ListVolumes"],
        Type::GET_CAPACITY => &["GetCapacity"],
        Type::CREATE_DELETE_SNAPSHOT => &["CreateSnapshot", "DeleteSnapshot"],
        Type::LIST_SNAPSHOTS => &["ListSnapshots"],
        Type::EXPAND_VOLUME => &["ControllerExpandVolume"],
        Type::GET_VOLUME => &["ControllerGetVolume"],
        Type::MODIFY_VOLUME => &["ControllerModifyVolume"],
        Type::GET_SNAPSHOT => &["GetSnapshot"],
        Type::GET_VOLUME_HEALTH => &["ControllerGetVolumeHealth"],
        Type::LIST_VOLUME_HEALTH => &["ControllerListVolumeHealth"],
        Type::UNKNOWN
        | Type::CLONE_VOLUME
        | Type::PUBLISH_READONLY
        | Type::LIST_VOLUMES_PUBLISHED_NODES
        | Type::VOLUME_CONDITION
        | Type::SINGLE_NODE_MULTI_WRITER => &[],
    }
}

fn promised_by_node(capability: node_service_capability::rpc::Type) -> &'static [&'static str] {
    use node_service_capability::rpc::Type;
    match capability {
        Type::STAGE_UNSTAGE_VOLUME => &["NodeStageVolume", "NodeUnstageVolume"],
        Type::GET_VOLUME_STATS => &["NodeGetVolumeStats"],
        Type::EXPAND_VOLUME => &["NodeExpandVolume"],
        Type::GET_VOLUME_HEALTH => &["NodeGetVolumeHealth"],
        Type::GET_STORAGE_HEALTH => &["NodeGetStorageHealth"],
        Type::UNKNOWN | Type::VOLUME_CONDITION | Type::SINGLE_NODE_MULTI_WRITER | Type::VOLUME_MOUNT_GROUP => &[],
    }
}

/// What the specification has every plugin serve that offers the service.
const ALWAYS: [&str; 10] = [
    "Identity.GetPluginInfo",
    "Identity.GetPluginCapabilities",
    "Identity.Probe",
    "Controller.ControllerGetCapabilities",
    "Controller.ValidateVolumeCapabilities",
    "Node.NodeGetCapabilities",
    "Node.NodeGetInfo",
    "Node.NodePublishVolume",
    "Node.NodeUnpublishVolume",
    "Node.NoSuchRpc",
];

/// What a plugin promises to serve, by its own words.
fn promised(client: &Client) -> BTreeSet<String> {
    let mut promised: BTreeSet<String> = ALWAYS[..3].iter().map(|name| (*name).to_owned()).collect();
    if let Ok(reply) = client.controller.controller_get_capabilities_opt(&Default::default(), option()) {
        promised.extend(ALWAYS[3..5].iter().map(|name| (*name).to_owned()));
        let rpcs = reply.capabilities.iter().map(|capability| promised_by_controller(capability.rpc().type_.unwrap()));
        promised.extend(rpcs.flatten().map(|rpc| format!("Controller.{rpc}")));
    }
    if let Ok(reply) = client.node.node_get_capabilities_opt(&Default::default(), option()) {
        promised.extend(ALWAYS[5..9].iter().map(|name| (*name).to_owned()));
        let rpcs = reply.capabilities.iter().map(|capability| promised_by_node(capability.rpc().type_.unwrap()));
        promised.extend(rpcs.flatten().map(|rpc| format!("Node.{rpc}")));
    }
    promised
}

fn served(solo: &SinglePlugin) -> BTreeSet<String> {
    let rpcs = all_rpcs().into_iter().chain([ALWAYS[9].to_owned()]);
    let is_served = |rpc: &String| {
        let outcome = call_by_name(&solo.socket(), &format!("/csi.v1.{}", rpc.replace('.', "/")));
        !matches!(outcome, Err(refusal) if refusal.code == RpcStatusCode::UNIMPLEMENTED)
    };
    rpcs.filter(is_served).collect()
}

#[test]
fn exactly_the_rpcs_that_are_promised_are_served_in_every_mode() {
    let solo = SinglePlugin::new(PROGRAM);
    for (args, token, services) in [
        (&[][..], true, &["Identity", "Controller", "Node"][..]),
        (&["--mode=monolith"], true, &["Identity", "Controller", "Node"]),
        (&["--mode=controller"], true, &["Identity", "Controller"]),
        (&["--mode=node"], true, &["Identity", "Node"]),
        (&[], false, &["Identity", "Node"]),
    ] {
        let launch = if token { solo.launch(args) } else { solo.launch_without_token(args) };
        let plugin = launch.start().unwrap();
        let (promised, served) = (promised(&plugin.client), served(&solo));
        assert_eq!(promised, served, "{args:?}");
        let found: BTreeSet<&str> = served.iter().filter_map(|rpc| rpc.split('.').next()).collect();
        assert_eq!(found, services.iter().copied().collect(), "{args:?}");
        let says_controller = plugin_services(&plugin.client).contains("CONTROLLER_SERVICE");
        assert_eq!(says_controller, services.contains(&"Controller"), "{args:?}");
        assert!(plugin_services(&plugin.client).contains("VOLUME_ACCESSIBILITY_CONSTRAINTS"));
        plugin.stop().unwrap();
    }
}

#[test]
fn every_authority_that_an_orchestrator_sends_is_taken() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    plugin.client.probe().unwrap();
    let socket = solo.socket().display().to_string();
    let encoded = socket.replace('/', "%2F");
    // Nomad before 1.1.13, 1.2.7 and 1.3.0 sends the socket's path.
    for authority in ["localhost", "/csi/csi.sock", "%2Fcsi%2Fcsi.sock", "", "csi.sock", ":", &socket, &encoded] {
        let client = Client::connect_as(&solo.socket(), Some(authority));
        assert!(client.probe().unwrap().ready.value, "{authority:?}");
        assert!(get_info(&client).is_ok(), "{authority:?}");
        assert!(client.node.node_get_capabilities_opt(&Default::default(), option()).is_ok(), "{authority:?}");
    }
}

/// A question about a volume, which waits for the API.
fn ask_about(client: &Client, id: &str) -> grpcio::ClientUnaryReceiver<csi::ValidateVolumeCapabilitiesResponse> {
    client.controller.validate_volume_capabilities_async_opt(&question(id), option()).unwrap()
}

fn question(id: &str) -> csi::ValidateVolumeCapabilitiesRequest {
    csi::ValidateVolumeCapabilitiesRequest {
        volume_id: id.to_owned(),
        volume_capabilities: vec![Volume::mounted(id, "ext4").capability],
        ..Default::default()
    }
}

#[test]
fn what_needs_no_work_is_answered_while_every_worker_and_the_queue_are_full() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    let client = &plugin.client;
    until("the droplet is known", || client.node_info().is_ok());
    let id = solo.sim.add_volume(&NewVolume::new("blog", 1, "fra1")).unwrap();
    solo.sim.faults().add(Fault::hung().always());
    let full = do_csi_plugin::config::CONTROLLER_WORKERS + do_csi_plugin::config::QUEUE_LENGTH;
    let waiting: Vec<_> = (0..full).map(|_| ask_about(client, &id)).collect();
    // Once every place is taken, one too many is told so at once. A call that found the last place waits in it.
    let brief = || CallOption::default().timeout(Duration::from_millis(300));
    let one_more = || client.controller.validate_volume_capabilities_opt(&question(&id), brief());
    let refusals = (0..full).map(|_| Refusal::from(one_more().unwrap_err()));
    let refusal = refusals.into_iter().find(|refusal| refusal.code == RpcStatusCode::UNAVAILABLE).unwrap();
    assert!(refusal.message.contains("try again"), "{refusal}");

    assert!(client.probe().unwrap().ready.value);
    get_info(client).unwrap();
    assert!(!plugin_services(client).is_empty());
    client.controller.controller_get_capabilities_opt(&Default::default(), option()).unwrap();
    client.node.node_get_capabilities_opt(&Default::default(), option()).unwrap();
    client.node_info().unwrap();
    // The node's calls have threads of their own.
    client.unstage(&id, &solo.path("never-staged")).unwrap();
    drop(waiting);
}

#[test]
fn a_caller_that_goes_away_in_the_middle_leaves_a_server_that_answers() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    let id = solo.sim.add_volume(&NewVolume::new("blog", 1, "fra1")).unwrap();
    for _ in 0..20 {
        let leaving = Client::connect(&solo.socket());
        let mut answer = ask_about(&leaving, &id);
        answer.cancel();
        drop((answer, leaving));
    }
    // A whole process that dies while its attach goes on: what it began is done all the same.
    let other = Client::connect(&solo.socket());
    let begun = {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: id.clone(),
            node_id: DROPLET.to_string(),
            volume_capability: Some(Volume::mounted(&id, "ext4").capability).into(),
            ..Default::default()
        };
        other.controller.controller_publish_volume_async_opt(&request, option()).unwrap()
    };
    until("the attachment has begun", || !solo.sim.actions().is_empty());
    drop((begun, other));
    until("the volume is attached", || solo.sim.attached_to("blog") == Some(DROPLET));
    assert!(plugin.client.probe().unwrap().ready.value);
    let mut volume = Volume::mounted(&id, "ext4");
    plugin.client.controller_publish(&mut volume, &DROPLET.to_string()).unwrap();
    assert_eq!(solo.sim.actions().len(), 1);
}

#[test]
fn a_thousand_probes_at_once_are_all_answered() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch_without_token(&[]).start().unwrap();
    let ask = |client: &Client| {
        let asked: Vec<_> =
            (0..250).map(|_| client.identity.probe_async_opt(&ProbeRequest::default(), option()).unwrap()).collect();
        asked.into_iter().all(|answer| futures_executor::block_on(answer).unwrap().ready.value)
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(|| ask(&Client::connect(&solo.socket())))).collect();
        assert!(callers.into_iter().all(|caller| caller.join().unwrap()));
    });
    plugin.client.probe().unwrap();
}

fn validate_with_context(client: &Client, id: &str, bytes: usize) -> Result<usize, Refusal> {
    let mut volume = Volume::mounted(id, "ext4");
    volume.context.insert("key".to_owned(), "x".repeat(bytes));
    Ok(client.validate(&volume)?.confirmed.volume_context["key"].len())
}

#[test]
fn a_big_message_is_taken_and_one_too_big_is_refused() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    let id = solo.sim.add_volume(&NewVolume::new("blog", 1, "fra1")).unwrap();
    let big = 200 << 10;
    assert_eq!(validate_with_context(&plugin.client, &id, big), Ok(big));
    let refusal = validate_with_context(&plugin.client, &id, 300 << 10).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::RESOURCE_EXHAUSTED, "{refusal}");
    plugin.client.probe().unwrap();
}

#[test]
fn a_long_or_odd_text_in_a_request_fills_neither_the_answer_nor_the_log() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    let odd = "no\nid\u{1b}[31m\r".to_owned() + &"x".repeat(100 << 10);
    let client = &plugin.client;
    let staging = Path::new("relative").join(&odd);
    let refusals = [
        client.validate(&Volume::mounted(&odd, "ext4")).map(drop).unwrap_err(),
        client.controller_publish(&mut Volume::mounted(&odd, "ext4"), "1").unwrap_err(),
        client
            .controller_publish(&mut Volume::mounted("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2", "ext4"), &odd)
            .unwrap_err(),
        client.create_volume("name", 1 << 30, &Volume::mounted("", &odd).capability).map(drop).unwrap_err(),
        client.create_volume(&odd, 1 << 30, &Volume::mounted("", "").capability).map(drop).unwrap_err(),
        client.unstage("volume", &staging).unwrap_err(),
        client.unpublish(&odd, &staging).unwrap_err(),
    ];
    for refusal in refusals {
        let code = refusal.code;
        assert!(code == RpcStatusCode::NOT_FOUND || code == RpcStatusCode::INVALID_ARGUMENT, "{code:?}");
        assert!(refusal.message.len() < 3000, "{} bytes", refusal.message.len());
        assert!(!refusal.message.chars().any(char::is_control), "{:?}", refusal.message);
    }
    client.delete_volume(&odd).unwrap();
    let log = plugin.log();
    assert!(log.len() < 50_000, "{} bytes", log.len());
    for line in log.lines() {
        assert!(line.starts_with("20") && !line.chars().any(char::is_control), "{line:?}");
    }
}

/// A service of which some calls panic, some wait, and some are answered.
#[derive(Clone)]
struct Unsteady {
    pool: Pool,
    came: Sender<Deadline>,
    begun: Sender<()>,
    go_on: crossbeam::channel::Receiver<()>,
}

fn named(rpc: &'static str) -> RpcInfo {
    RpcInfo::change(rpc, About::default())
}

impl Identity for Unsteady {
    fn get_plugin_info(
        &mut self,
        ctx: RpcContext<'_>,
        _: GetPluginInfoRequest,
        sink: UnarySink<GetPluginInfoResponse>,
    ) {
        self.pool.answer(&ctx, sink, named("GetPluginInfo"), |_| panic!("on purpose"));
    }

    fn get_plugin_capabilities(
        &mut self,
        ctx: RpcContext<'_>,
        _: GetPluginCapabilitiesRequest,
        sink: UnarySink<GetPluginCapabilitiesResponse>,
    ) {
        let (begun, go_on) = (self.begun.clone(), self.go_on.clone());
        // Most tests do not listen, and the last calls may come when they are over.
        self.came.send(ctx.deadline()).ok();
        self.pool.answer(&ctx, sink, named("GetPluginCapabilities"), move |_| {
            begun.send(()).unwrap();
            go_on.recv().unwrap();
            Ok(GetPluginCapabilitiesResponse::default())
        });
    }

    fn probe(&mut self, ctx: RpcContext<'_>, _: ProbeRequest, sink: UnarySink<ProbeResponse>) {
        self.pool.answer(&ctx, sink, named("Probe"), |_| Ok(ProbeResponse::default()));
    }
}

/// A server with that service in this process, and what steers it.
struct Steered {
    server: Option<Server>,
    client: Client,
    /// The deadlines of the calls that wait, as the server sees them.
    came: Receiver<Deadline>,
    begun: Receiver<()>,
    go_on: crossbeam::channel::Sender<()>,
    home: tempfile::TempDir,
}

impl Steered {
    fn start(threads: usize, queue: usize) -> Steered {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("s");
        let ((came, has_come), (begun, has_begun)) = (channel(), channel());
        let (may_go_on, go_on) = crossbeam::channel::unbounded();
        let service = Unsteady { pool: Pool::new("unsteady", threads, queue), came, begun, go_on };
        let file = SocketFile::plan(&socket).unwrap();
        let server = Server::start(file, 0o600, vec![create_identity(service)]).unwrap();
        let client = Client::connect(&socket);
        Steered { server: Some(server), client, came: has_come, begun: has_begun, go_on: may_go_on, home }
    }

    fn wait_in_call(&self) -> grpcio::ClientUnaryReceiver<GetPluginCapabilitiesResponse> {
        self.wait_in_call_until(option())
    }

    fn wait_in_call_until(&self, option: CallOption) -> grpcio::ClientUnaryReceiver<GetPluginCapabilitiesResponse> {
        self.client.identity.get_plugin_capabilities_async_opt(&Default::default(), option).unwrap()
    }
}

#[test]
fn a_panic_is_answered_internal_and_costs_no_thread() {
    let steered = Steered::start(2, 4);
    for _ in 0..20 {
        let refusal = get_info(&steered.client).unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::INTERNAL, "{refusal}");
        assert!(refusal.message.contains("panicked"), "{refusal}");
        steered.client.probe().unwrap();
    }
    // Both threads are still there: two calls can be at work at once.
    let waiting = [steered.wait_in_call(), steered.wait_in_call()];
    for _ in &waiting {
        steered.begun.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    // Either call may take either token, so both are there before an answer is waited for.
    for _ in &waiting {
        steered.go_on.send(()).unwrap();
    }
    for answer in waiting {
        futures_executor::block_on(answer).unwrap();
    }
}

#[test]
fn a_burst_for_which_there_is_room_is_taken_whole() {
    let steered = Steered::start(30, 2);
    for _ in 0..3 {
        let waiting: Vec<_> = (0..32).map(|_| steered.wait_in_call()).collect();
        waiting.iter().for_each(|_| steered.go_on.send(()).unwrap());
        for answer in waiting {
            futures_executor::block_on(answer).unwrap();
        }
    }
}

#[test]
fn a_full_queue_is_unavailable_and_is_free_again_when_calls_are_done() {
    let steered = Steered::start(2, 3);
    let mut waiting = vec![steered.wait_in_call(), steered.wait_in_call()];
    for _ in &waiting {
        steered.begun.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    waiting.extend((0..3).map(|_| steered.wait_in_call()));
    let refusal = steered.client.probe().unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::UNAVAILABLE, "{refusal}");
    waiting.iter().for_each(|_| steered.go_on.send(()).unwrap());
    for answer in waiting {
        futures_executor::block_on(answer).unwrap();
    }
    steered.client.probe().unwrap();
}

#[test]
fn a_call_whose_caller_has_given_up_before_its_turn_is_not_worked_on() {
    let steered = Steered::start(1, 3);
    let first = steered.wait_in_call();
    steered.begun.recv_timeout(Duration::from_secs(20)).unwrap();
    steered.came.recv_timeout(Duration::from_secs(20)).unwrap();
    let brief = CallOption::default().timeout(Duration::from_secs(1));
    let given_up = steered.wait_in_call_until(brief);
    // The server counts from when the call has come, so for it the deadline is later than for the caller.
    let deadline = steered.came.recv_timeout(Duration::from_secs(20)).unwrap();
    let given_up = futures_executor::block_on(given_up);
    assert_eq!(Refusal::from(given_up.unwrap_err()).code, RpcStatusCode::DEADLINE_EXCEEDED);
    until("the server knows it too", || deadline.exceeded());
    steered.go_on.send(()).unwrap();
    futures_executor::block_on(first).unwrap();
    // With one thread, this comes after it.
    steered.client.probe().unwrap();
    assert!(steered.begun.try_recv().is_err(), "it was worked on for nobody");
}

#[test]
fn the_end_waits_for_calls_only_as_long_as_it_may() {
    let mut steered = Steered::start(2, 3);
    let hanging = steered.wait_in_call();
    steered.begun.recv_timeout(Duration::from_secs(20)).unwrap();
    let (ended, has_ended) = channel();
    let server = steered.server.take().unwrap();
    thread::spawn(move || {
        server.shut_down(Duration::from_millis(50), &crossbeam::channel::never());
        ended.send(()).unwrap();
    });
    has_ended.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(futures_executor::block_on(hanging).is_err());
    assert_eq!(fs::read_dir(steered.home.path()).unwrap().count(), 0);
}
