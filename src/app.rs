//! One run of the program, from settings to the end of the last call.
//!
//! Owns the order of start and stop: the socket answers before anything outside has been asked, and running calls end
//! before the process does. It decides nothing about volumes.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded, never};
use grpcio::Service;
use log::{debug, info, warn};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

use crate::activity;
use crate::activity::open_calls;
use crate::cloud::Cloud;
use crate::cloud::http::HttpBudgets;
use crate::cloud::metadata::Metadata;
use crate::cloud::rate_limit::RateLimit;
use crate::cloud::token::Token;
use crate::config;
use crate::config::{Config, Mode};
use crate::controller::Controller;
use crate::droplet_identity::{DropletIdentity, Given};
use crate::error::Chain;
use crate::host::capabilities::apply_least;
use crate::host::command::{SystemRunner, find_tools};
use crate::host::device::DevicePlaces;
use crate::host::device::sysfs::check_is_sysfs;
use crate::host::mountable::observe_abilities;
use crate::host::propagation::tell_when_nothing_reaches;
use crate::metrics;
use crate::node::Node;
use crate::ops::endpoint;
use crate::ops::endpoint::Endpoint;
use crate::ops::figures::FigureReader;
use crate::ops::figures::collector::FigureCollector;
use crate::ops::findings::{FindingCollector, Findings};
use crate::ops::health::{Health, Stage};
use crate::ops::logging;
use crate::ops::logging::RunningLog;
use crate::ops::scheduled_snapshots::{ScheduledCollector, ScheduledSnapshots};
use crate::ops::service_manager::{ServiceState, tell_service_manager};
use crate::ops::signals::{Asked, Signals};
use crate::proto::csi_grpc::{create_controller, create_identity, create_node};
use crate::rpc::Server;
use crate::rpc::controller::{ControllerService, Pools};
use crate::rpc::identity::IdentityService;
use crate::rpc::node::NodeService;
use crate::rpc::socket::SocketFile;
use crate::rpc::worker::Pool;
use crate::upkeep::{BringBack, RegionWatch, Unused, Upkeep, await_end};

/// Serves until SIGTERM or SIGINT, then lets running calls finish, for which a second signal ends the wait. Nothing is
/// unmounted or detached at the end. What other signals ask for is done meanwhile.
///
/// # Errors
/// One line that says why the program cannot start.
pub fn run(mut config: Config) -> Result<(), String> {
    let signals = Signals::block()?;
    // A thread keeps what it was started with.
    let least = apply_least(config.mode.has_node());
    // Dropped last, so that the lines of the end are written.
    let log = logging::start(config.log_levels.clone(), config.log_format)?;
    if let Err(err) = least {
        debug!("this process keeps what it was started with of root's power: {err}");
    }
    activity::set_call_budget(config.call_budget);
    refuse_dumps();
    let socket = SocketFile::plan(&config.socket).map_err(|line| about_endpoint(line, &config))?;
    let token = config.token.take();
    let config = Arc::new(config);
    let droplet_identity = DropletIdentity::new(Given { id: config.droplet_id, region: config.region.clone() });
    let quota = Arc::new(RateLimit::new(config.api_rate_limit));
    let cloud = token.filter(|_| config.mode.has_controller()).map(|token| cloud(&config, token, Arc::clone(&quota)));
    let health = Arc::new(health(&config, cloud.as_ref(), &droplet_identity));
    let seen = start_debug_server(&config, &health, &droplet_identity)?;
    let Parts { services, insight, node, unused } = parts(&config, cloud, quota, &droplet_identity, seen.as_ref())?;
    // Not before: who cannot start says why in one line and nothing else.
    if config.mode_is_for_want_of_token {
        warn!("{NO_TOKEN}");
    }
    let server = Server::start(socket, config.socket_mode, services)?;
    health.reach(Stage::Serving);
    let findings = seen.as_ref().map(|seen| Arc::clone(&seen.findings));
    let start = |node: &Arc<Node>| Upkeep::start(Arc::clone(node), config.allocations.clone(), unused, findings);
    let upkeep = node.as_ref().map(start).transpose().map_err(no_thread)?;
    info!(version = env!("CARGO_PKG_VERSION"), driver = config.driver_name.as_str(), mode:? = config.mode; "started");
    tell_service_manager(ServiceState::Ready);
    if needs_metadata(&config) {
        droplet_identity.find_out(Metadata::new(config.metadata_url.clone())).map_err(no_thread)?;
    }
    let signal = loop {
        match signals.next()? {
            (signal, Asked::End) => break signal,
            (signal, Asked::Reload) => insight.reload(signal.as_str(), &log),
            (_, Asked::Report) => insight.report(),
            (signal, Asked::ToggleDebug) => {
                // Before the line, which may be below the level, and then nothing in it is done.
                let on = log.toggle_debug();
                info!(on; "{signal}: debug lines are switched");
            }
        }
    };
    info!("{signal}: no new calls, waiting for the running ones");
    tell_service_manager(ServiceState::Stopping);
    droplet_identity.stop_waiting();
    health.reach(Stage::Stopping);
    let end = Instant::now() + config::END_BUDGET;
    let enough = second_end(signals);
    let looked = upkeep.map(Upkeep::stop);
    // At once, as the caller may not wait for the running calls: what tasks write after this reaches the disk in its time.
    let flushed = node.as_ref().and_then(flush_meanwhile);
    server.shut_down(config::DRAIN_BUDGET, &enough);
    let deadline = end.min(Instant::now() + config::UPKEEP_END);
    looked.iter().chain(&flushed).for_each(|ended| await_end(ended, deadline, &enough));
    info!("stopped; mounts and attachments stay as they are");
    Ok(())
}

/// Says of an endpoint that nobody gave where it is from: the one of the official driver is for Kubernetes.
fn about_endpoint(line: String, config: &Config) -> String {
    if !config.is_default_endpoint {
        return line;
    }
    format!(
        "no --endpoint is given, nor CSI_ENDPOINT, and the default is that of the official driver, for Kubernetes: {line}; with \
         Nomad it is --endpoint=unix:///csi/csi.sock"
    )
}

/// Writes what is in memory to the disks, on a thread of its own; tells when that has ended. Without a thread it is not done.
fn flush_meanwhile(node: &Arc<Node>) -> Option<Receiver<()>> {
    let (ending, ended) = bounded::<()>(0);
    let node = Arc::clone(node);
    let flush = move || {
        node.flush_all();
        drop(ending);
    };
    let started = thread::Builder::new().name("flush-all".to_owned()).spawn(flush);
    started.inspect_err(|err| warn!("the system gives no thread to write what is in memory: {err}")).ok()?;
    Some(ended)
}

/// What is said to who gave no token and did not ask for a mode either, as it may be an oversight.
const NO_TOKEN: &str = "no DigitalOcean token is given, so only the node service is offered, and volumes are neither created \
                        nor attached; where that is meant, say --mode=node, otherwise give a token by \
                        DIGITALOCEAN_ACCESS_TOKEN, --token-file or --token";

/// What the running program can say of itself, or look at again.
struct Insight {
    cloud: Option<Cloud>,
    quota: Arc<RateLimit>,
    pools: Vec<Pool>,
}

impl Insight {
    /// Reads the token's file again and goes back to the log level of the start.
    fn reload(&self, signal: &str, log: &RunningLog) {
        log.reset_level();
        match self.cloud.as_ref().map(Cloud::reload_token) {
            None => info!("{signal}: the log level is that of the start; there is no token to read"),
            Some(Ok(())) => {
                info!("{signal}: the log level is that of the start, the token is as its source has it now")
            }
            Some(Err(err)) => warn!("{signal}: the log level is that of the start, the token stays: {err}"),
        }
    }

    /// Writes into the log what somebody wants to know who finds calls slow.
    fn report(&self) {
        info!("report: {}", process_figures());
        info!("report: rate limit {:?}", self.quota);
        for pool in &self.pools {
            info!("report: {pool}");
        }
        for call in open_calls() {
            info!("report: running {call}");
        }
    }
}

/// Memory, threads and open files of this process, as far as the system tells.
fn process_figures() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_told = |line: &&str| ["VmRSS:", "VmHWM:", "Threads:"].iter().any(|field| line.starts_with(field));
    let figures: Vec<String> =
        status.lines().filter(is_told).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let files = fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default();
    format!("{} files: {files}", figures.join(" "))
}

/// Keeps the token, and the keys of encrypted volumes, out of core dumps and away from other programs that are not root's.
/// Programs that are run get the limit, but not the flag, which an exec sets again.
/// Source: prctl(2), PR_SET_DUMPABLE; core(5).
fn refuse_dumps() {
    if let Err(err) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        warn!("the system does not let core files be switched off, in which secrets could be: {err}");
    }
    if let Err(err) = prctl::set_dumpable(false) {
        warn!("the system does not let core dumps be switched off, in which secrets could be: {err}");
    }
}

/// Tells when a further signal to end arrives. Without a thread to wait for it, it never does.
fn second_end(signals: Signals) -> Receiver<()> {
    let (arrived, arrival) = bounded(1);
    let wait = move || {
        loop {
            match signals.next() {
                // Closed, it tells everybody who waits, and who will.
                Ok((_, Asked::End)) => return drop::<Sender<()>>(arrived),
                Ok((_, Asked::Reload | Asked::Report | Asked::ToggleDebug)) => {}
                Err(_) => thread::park(),
            }
        }
    };
    match thread::Builder::new().name("signals".to_owned()).spawn(wait) {
        Ok(_) => arrival,
        Err(err) => {
            warn!("cannot start a thread to wait for a second signal: {err}");
            never()
        }
    }
}

fn no_thread(err: std::io::Error) -> String {
    format!("cannot start a thread: {err}")
}

/// Only a controller whose region is given can do without knowing its droplet.
fn needs_metadata(config: &Config) -> bool {
    match config.mode {
        Mode::Monolith | Mode::Node => true,
        Mode::Controller => config.region.is_none(),
    }
}

fn health(config: &Config, cloud: Option<&Cloud>, droplet_identity: &Arc<DropletIdentity>) -> Health {
    let needed = needs_metadata(config).then(|| Arc::clone(droplet_identity));
    Health::new(cloud.cloned(), needed)
}

/// Begins to count, to read what the volumes here do, and to answer on `--debug-addr`; nothing of it without that.
fn start_debug_server(
    config: &Config,
    health: &Arc<Health>,
    droplet_identity: &Arc<DropletIdentity>,
) -> Result<Option<RegionWatch>, String> {
    let Some(address) = config.debug_addr else { return Ok(None) };
    metrics::start(word(config.mode));
    metrics::add_collector(health.collector());
    let figures = if config.mode.has_node() {
        let places = DevicePlaces::with(&config.device_dir, &config.sys_dir);
        let figures = FigureReader::start(places).map_err(no_thread)?;
        metrics::add_collector(Box::new(FigureCollector(Arc::clone(&figures))));
        Some(figures)
    } else {
        None
    };
    let findings = Arc::new(Findings::new(figures.clone()));
    metrics::add_collector(Box::new(FindingCollector(Arc::clone(&findings))));
    let snapshots = Arc::new(ScheduledSnapshots::default());
    metrics::add_collector(Box::new(ScheduledCollector(Arc::clone(&snapshots))));
    let endpoint = Endpoint {
        findings: Arc::clone(&findings),
        health: Arc::clone(health),
        droplet: Arc::clone(droplet_identity),
        about: format!("{}, mode {}", config.driver_name, word(config.mode)),
        started: Instant::now(),
        figures,
    };
    endpoint::start(address, endpoint)?;
    Ok(Some(RegionWatch { findings, snapshots }))
}

fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Monolith => "monolith",
        Mode::Controller => "controller",
        Mode::Node => "node",
    }
}

fn cloud(config: &Config, token: Token, quota: Arc<RateLimit>) -> Cloud {
    let budgets = HttpBudgets { total: config.api_timeout, ..HttpBudgets::default() };
    Cloud::new(config.api_url.clone(), config.route.clone(), token, quota, budgets)
}

/// What a run consists of.
struct Parts {
    services: Vec<Service>,
    insight: Insight,
    node: Option<Arc<Node>>,
    unused: Option<Unused>,
}

fn parts(
    config: &Arc<Config>,
    cloud: Option<Cloud>,
    quota: Arc<RateLimit>,
    droplet_identity: &Arc<DropletIdentity>,
    seen: Option<&RegionWatch>,
) -> Result<Parts, String> {
    let mut services = vec![create_identity(IdentityService::new(Arc::clone(config)))];
    let mut insight = Insight { cloud: None, quota, pools: Vec::new() };
    let (mut node, mut own) = (None, None);
    if let Some(cloud) = cloud {
        insight.cloud = Some(cloud.clone());
        let controller = Arc::new(Controller::new(config, cloud, Arc::clone(droplet_identity)));
        controller.sweep();
        let watch = |seen: &RegionWatch| seen.clone().start(Arc::clone(&controller)).map_err(no_thread);
        seen.map_or(Ok(()), watch)?;
        let pool = |name| Pool::new(name, config::CONTROLLER_WORKERS, config::QUEUE_LENGTH);
        let list = Pool::new("list", config::LISTERS, config::QUEUE_LENGTH);
        let pools = Pools { change: pool("controller"), unpublish: pool("unpublish"), look: pool("look"), list };
        insight.pools.extend([&pools.change, &pools.unpublish, &pools.look, &pools.list].map(Pool::clone));
        services.push(create_controller(ControllerService::new(config, Arc::clone(&controller), pools)));
        own = Some(controller);
    }
    if config.mode.has_node() {
        let tools = find_tools().map_err(|missing| missing.to_string())?;
        check_is_sysfs(&config.sys_dir).map_err(|err| format!("--sys-dir: {}", Chain(&err)))?;
        info!(encrypted_volumes = tools.can_encrypt(); "this droplet has {}", observe_abilities());
        tell_when_nothing_reaches();
        let made = Node::new(config, Box::new(SystemRunner::new(tools)));
        let made = Arc::new(match own.as_ref().filter(|_| config.release_unused.is_some()) {
            None => made,
            Some(controller) => {
                made.bringing_back(Box::new(BringBack::new(Arc::clone(controller))), controller.recent_calls())
            }
        });
        made.close_left_open().map_err(no_thread)?;
        let service = NodeService::new(config, Arc::clone(droplet_identity), Arc::clone(&made));
        node = Some(made);
        insight.pools.extend(service.pools());
        services.push(create_node(service));
    }
    let releases = config.release_unused.zip(own).filter(|_| node.is_some());
    if config.release_unused.is_some() && releases.is_none() {
        warn!("--release-unused has no effect: it needs the node service and the token in one process");
    }
    let unused = releases.map(|(after, controller)| Unused::new(controller, after));
    Ok(Parts { services, insight, node, unused })
}
