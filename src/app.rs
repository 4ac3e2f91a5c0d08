//! One run of the program, from settings to the end of the last call.
//!
//! Owns the order of start and stop: the socket answers before anything outside has been asked, and running calls end
//! before the process does. It decides nothing about volumes.

use std::sync::Arc;
use std::thread;

use crossbeam::channel::{Receiver, bounded, never};
use grpcio::Service;
use log::{info, warn};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};

use crate::cloud::Cloud;
use crate::cloud::http::HttpBudgets;
use crate::cloud::metadata::Metadata;
use crate::cloud::rate_limit::RateLimit;
use crate::cloud::token::Token;
use crate::config;
use crate::config::{Config, Mode};
use crate::controller::Controller;
use crate::droplet_identity::DropletIdentity;
use crate::error::Chain;
use crate::host::command::{SystemRunner, find_tools};
use crate::host::device::sysfs::check_is_sysfs;
use crate::host::mountable::observe_abilities;
use crate::host::propagation::tell_when_nothing_reaches;
use crate::node::Node;
use crate::ops::health;
use crate::ops::logging;
use crate::proto::csi_grpc::{create_controller, create_identity, create_node};
use crate::rpc::Server;
use crate::rpc::controller::{ControllerService, Pools};
use crate::rpc::identity::IdentityService;
use crate::rpc::node::NodeService;
use crate::rpc::socket::SocketFile;
use crate::rpc::worker::Pool;

/// Serves until SIGTERM or SIGINT, then lets running calls finish, for which a second signal ends the wait. Nothing is
/// unmounted or detached at the end.
///
/// # Errors
/// One line that says why the program cannot start.
pub fn run(mut config: Config) -> Result<(), String> {
    let signals = block_signals()?;
    logging::start();
    refuse_dumps();
    let socket = SocketFile::plan(&config.socket)?;
    let token = config.token.take();
    let config = Arc::new(config);
    let droplet_identity = DropletIdentity::unknown(config.region.clone());
    let services = services(&config, token, &droplet_identity)?;
    let server = Server::start(socket, config.socket_mode, services)?;
    info!("started version={} driver={} mode={:?}", env!("CARGO_PKG_VERSION"), config.driver_name, config.mode);
    if needs_metadata(&config) {
        droplet_identity.find_out(Metadata::new(config.metadata_url.clone())).map_err(no_thread)?;
    }
    let signal = signals.wait().map_err(|err| format!("cannot wait for signals: {err}"))?;
    info!("{signal}: no new calls, waiting for the running ones");
    droplet_identity.stop_waiting();
    server.shut_down(config::DRAIN_BUDGET, &next_signal(signals));
    info!("stopped; mounts and attachments stay as they are");
    Ok(())
}

/// Blocks the two signals before any thread starts, so that only the main thread takes them, by waiting for them.
/// Commands that are run are not affected: the standard library gives children an empty mask.
fn block_signals() -> Result<SigSet, String> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(|err| format!("cannot block signals: {err}"))?;
    Ok(signals)
}

/// Keeps the token, and the keys of encrypted volumes, out of core dumps and away from other programs that are not root's.
/// Source: prctl(2), PR_SET_DUMPABLE.
fn refuse_dumps() {
    if let Err(err) = prctl::set_dumpable(false) {
        warn!("the system does not let core dumps be switched off, in which secrets could be: {err}");
    }
}

/// Tells when a further signal arrives. Without a thread to wait for it, it never does.
fn next_signal(signals: SigSet) -> Receiver<()> {
    let (arrived, arrival) = bounded(1);
    let wait = move || {
        if signals.wait().is_ok() {
            let _nobody_waits_any_more = arrived.send(()).is_err();
        } else {
            thread::park();
        }
    };
    match thread::Builder::new().name("signals".to_owned()).spawn(wait) {
        Ok(_) => arrival,
        Err(err) => {
            warn!("the system gives no thread to wait for a second signal: {err}");
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

fn services(
    config: &Arc<Config>,
    token: Option<Token>,
    droplet_identity: &Arc<DropletIdentity>,
) -> Result<Vec<Service>, String> {
    let mut services = vec![create_identity(IdentityService::new(Arc::clone(config)))];
    if let Some(token) = token.filter(|_| config.mode.has_controller()) {
        let quota = Arc::new(RateLimit::new(config.api_rate_limit));
        let budgets = HttpBudgets { total: config.api_timeout, ..HttpBudgets::default() };
        let cloud = Cloud::new(config.api_url.clone(), token, quota, budgets);
        if let Some(addr) = config.debug_addr {
            health::serve(addr, cloud.clone())?;
        }
        let controller = Arc::new(Controller::new(config, cloud, Arc::clone(droplet_identity)));
        let pool = |name| Pool::new(name, config::CONTROLLER_WORKERS, config::QUEUE_LENGTH);
        let pools = Pools { change: pool("controller"), unpublish: pool("unpublish"), look: pool("look") };
        services.push(create_controller(ControllerService::new(config, controller, pools)));
    } else if config.debug_addr.is_some() {
        warn!("--debug-addr has no effect: health is that of the controller service, which is not offered");
    }
    if config.mode.has_node() {
        let tools = find_tools().map_err(|missing| missing.to_string())?;
        check_is_sysfs(&config.sys_dir).map_err(|err| format!("--sys-dir: {}", Chain(&err)))?;
        info!("this droplet has {} encrypted_volumes={}", observe_abilities(), tools.can_encrypt());
        tell_when_nothing_reaches();
        let node = Arc::new(Node::new(config, Box::new(SystemRunner::new(tools))));
        node.close_left_open().map_err(no_thread)?;
        services.push(create_node(NodeService::new(config, Arc::clone(droplet_identity), node)));
    }
    Ok(services)
}
