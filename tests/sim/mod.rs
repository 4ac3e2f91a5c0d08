//! A simulated DigitalOcean on 127.0.0.1: the block storage API, the metadata service, and real devices behind volumes.
//!
//! This file owns the handle that tests and the demo hold, and the order in which a request is judged: authentication,
//! rate limit, route, object, validation, state. The parts, in reading order:
//!
//! | file | what it owns |
//! |---|---|
//! | `config.rs` | what can be chosen: limits, times, switches for what nobody knows |
//! | `state.rs` | the cloud as a pure state machine; its rules in `volumes.rs`, `actions.rs`, `snapshots.rs`, `tags.rs` |
//! | `refusal.rs` | every error text |
//! | `endpoint.rs`, `route.rs`, `json.rs` | path to endpoint, endpoint to answer, answer to JSON |
//! | `limit.rs` | the request rate limit |
//! | `scope.rs` | what a token may do that has not every scope |
//! | `fault.rs` | what a test wants to go wrong |
//! | `http.rs` | connections |
//! | `metadata.rs` | the metadata service |
//! | `device.rs` | the files behind volumes; `loops.rs` makes them loop devices with links, `slots.rs` disks of machines |
//! | `qmp.rs` | the monitor of a virtual machine |
//! | `clock.rs` | time that can be moved forward |

pub mod actions;
pub mod clock;
pub mod config;
pub mod device;
pub mod endpoint;
pub mod fault;
pub mod http;
pub mod json;
pub mod limit;
pub mod loops;
pub mod metadata;
pub mod qmp;
pub mod refusal;
pub mod route;
pub mod scope;
pub mod service;
pub mod slots;
pub mod snapshots;
pub mod state;
pub mod tags;
pub mod volumes;

#[cfg(test)]
mod root_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

pub use config::{Backing, DropletSpec, Limits, RateWindow, Rules, SimConfig, Switches, Times};
pub use fault::{ActionFault, Fault, Faults, Gate};
pub use refusal::Refusal;
pub use service::Calls;
pub use state::{Action, ActionKind, ActionStatus, Droplet, DropletStatus, Snapshot, Volume};
pub use volumes::NewVolume;

use actions::ActionPlan;
use clock::Moment;
use device::{Devices, Paths, Slots};
use http::Server;
use loops::Loops;
use service::{Service, Ticker};
use slots::MachineSlots;
use state::Cloud;

/// What every fallible call of the simulator gives.
pub type Result<T> = std::result::Result<T, SimError>;

/// The simulator itself failed, as opposed to a refusal it plays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimError(String);

impl SimError {
    fn new(what: String) -> SimError {
        SimError(what)
    }

    fn io(doing: &str, path: &Path, error: &std::io::Error) -> SimError {
        SimError(format!("{doing} {}: {error}", path.display()))
    }
}

impl fmt::Display for SimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SimError {}

/// A running simulator. Dropping it stops it as well as it can; [`Sim::close`] tells how that went.
#[derive(Debug)]
pub struct Sim {
    service: Arc<Service>,
    paths: Paths,
    server: Option<Server>,
    ticker: Option<Ticker>,
    /// Keeps the directories of a simulator without devices.
    _scratch: Option<TempDir>,
}

impl Sim {
    /// Starts listening; everything answers when this returns.
    ///
    /// # Errors
    /// The address is taken, or the directories can not be made.
    pub fn start(config: SimConfig) -> Result<Sim> {
        let (root, scratch) = match &config.backing {
            Backing::Loop { dir } | Backing::Machines { dir } => (dir.clone(), None),
            Backing::None => {
                let scratch = TempDir::new().map_err(|error| SimError::new(format!("make a directory: {error}")))?;
                (scratch.path().to_owned(), Some(scratch))
            }
        };
        let paths = Paths::new(&root);
        paths.create(config.droplets.iter().map(|droplet| droplet.id))?;
        let devices = match &config.backing {
            Backing::Loop { dir: _ } => Some(Box::new(Loops::new(paths.clone())) as Box<dyn Slots>),
            Backing::Machines { dir: _ } => Some(Box::new(MachineSlots::new(paths.clone())) as Box<dyn Slots>),
            Backing::None => None,
        };
        let devices = devices.map(|slots| Devices::start(paths.clone(), slots)).transpose()?;
        let service = Arc::new(Service::new(&config, devices));
        let handler: Arc<dyn http::Handler> = Arc::<Service>::clone(&service);
        let server = Server::start(config.listen, handler)
            .map_err(|error| SimError::new(format!("listen on {}: {error}", config.listen)))?;
        let ticker = Ticker::start(&service)?;
        Ok(Sim { service, paths, server: Some(server), ticker: Some(ticker), _scratch: scratch })
    }

    /// Base URL of the API, ending in `/` as the official driver's `--url` must.
    pub fn api_url(&self) -> String {
        format!("http://{}/", self.address())
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.as_ref().expect("the server runs until close").address()
    }

    /// Base URL of a droplet's metadata service, without a final `/`; `/metadata/v1/id` follows it.
    ///
    /// The same service answers at [`Sim::api_url`] itself for the first droplet.
    pub fn metadata_url(&self, droplet: u64) -> String {
        metadata::base(&self.api_url(), droplet)
    }

    /// What `/dev/disk/by-id` is on a droplet. It exists from the start and is empty without a loop back end.
    pub fn device_dir(&self, droplet: u64) -> PathBuf {
        self.paths.device_dir(droplet)
    }

    /// Where a droplet that is a virtual machine has its monitor.
    pub fn monitor(&self, droplet: u64) -> PathBuf {
        self.paths.monitor(droplet)
    }

    /// The file behind a volume.
    pub fn backing_file(&self, volume_id: &str) -> PathBuf {
        self.paths.volume(volume_id)
    }

    /// The script of what goes wrong.
    pub fn faults(&self) -> &Faults {
        self.service.faults()
    }

    /// Moves the simulator's clock forward and lets everything happen that falls due.
    pub fn advance(&self, by: Duration) {
        self.service.advance(by);
    }

    /// Changes limits, times or switches for all that follows.
    pub fn change_rules(&self, change: impl FnOnce(&mut Rules)) {
        self.service.with_cloud(|cloud, _| change(cloud.rules_mut()));
    }

    /// Creates a volume without a request, as another tool of the same account would, and gives its id.
    ///
    /// # Errors
    /// The refusal that a request would have got.
    pub fn add_volume(&self, new: &NewVolume) -> std::result::Result<String, Refusal> {
        self.service.with_cloud_and_devices(|cloud, now| cloud.create_volume(now, new))
    }

    /// Puts a tag on a volume without a request, as `doctl compute tag apply` does.
    ///
    /// # Errors
    /// There is no such volume.
    pub fn tag_volume(&self, id: &str, tag: &str) -> std::result::Result<(), Refusal> {
        self.service.with_cloud(|cloud, _| {
            cloud.create_tag(tag);
            cloud.tag_volumes(tag, &[id.to_owned()])
        })
    }

    /// Takes a tag off a volume without a request, as `doctl compute tag remove` does.
    ///
    /// # Errors
    /// There is no such volume or tag.
    pub fn untag_volume(&self, id: &str, tag: &str) -> std::result::Result<(), Refusal> {
        self.service.with_cloud(|cloud, _| cloud.untag_volumes(tag, &[id.to_owned()]))
    }

    /// A volume by id or name, whether or not requests can see it yet.
    pub fn volume(&self, id_or_name: &str) -> Option<Volume> {
        self.volumes().into_iter().find(|volume| volume.id == id_or_name || volume.name == id_or_name)
    }

    /// All volumes that exist.
    pub fn volumes(&self) -> Vec<Volume> {
        self.service.with_cloud(|cloud, _| cloud.volumes.values().cloned().collect())
    }

    /// The droplet that a volume, by id or name, really is attached to.
    pub fn attached_to(&self, id_or_name: &str) -> Option<u64> {
        self.volume(id_or_name)?.attached_to
    }

    /// All droplets that were not destroyed.
    pub fn droplets(&self) -> Vec<Droplet> {
        self.service.with_cloud(|cloud, _| cloud.droplets())
    }

    /// All snapshots.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.service.with_cloud(|cloud, _| cloud.snapshots(None))
    }

    /// All actions, newest first.
    pub fn actions(&self) -> Vec<Action> {
        self.service.with_cloud(|cloud, _| cloud.actions(None))
    }

    /// Starts an attach without a request, as a user does in the control panel, and gives the action's id.
    ///
    /// # Errors
    /// The refusal that a request would have got; so with the other calls that start an action.
    pub fn attach(&self, volume_id: &str, droplet: u64) -> std::result::Result<u64, Refusal> {
        self.begin(|cloud, now| cloud.plan_attach(now, volume_id, droplet, None))
    }

    /// Starts a detach without a request.
    ///
    /// # Errors
    /// As [`Sim::attach`].
    pub fn detach(&self, volume_id: &str, droplet: u64) -> std::result::Result<u64, Refusal> {
        self.begin(|cloud, now| cloud.plan_detach(now, volume_id, Some(droplet)))
    }

    /// Starts a resize without a request; `size_gigabytes` is in GiB.
    ///
    /// # Errors
    /// As [`Sim::attach`].
    pub fn resize(&self, volume_id: &str, size_gigabytes: i64) -> std::result::Result<u64, Refusal> {
        self.begin(|cloud, _| cloud.plan_resize(volume_id, size_gigabytes))
    }

    /// Takes a snapshot without a request and gives its id; the bytes are copied when this returns.
    ///
    /// # Errors
    /// The refusal that a request would have got.
    pub fn create_snapshot(&self, volume_id: &str, name: &str) -> std::result::Result<String, Refusal> {
        self.create_tagged_snapshot(volume_id, name, &[])
    }

    /// The same, with tags.
    ///
    /// # Errors
    /// As [`Sim::create_snapshot`].
    pub fn create_tagged_snapshot(
        &self,
        volume_id: &str,
        name: &str,
        tags: &[&str],
    ) -> std::result::Result<String, Refusal> {
        let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self.service.with_cloud_and_devices(|cloud, now| cloud.create_snapshot(now, volume_id, name, &tags))
    }

    /// Makes a snapshot older, as if time had passed for it alone.
    ///
    /// # Panics
    /// There is no such snapshot.
    pub fn backdate_snapshot(&self, id: &str, by: Duration) {
        self.service.with_cloud(|cloud, _| {
            let snapshot = cloud.snapshots.get_mut(id).expect("there is such a snapshot");
            snapshot.created_at -= by;
        });
    }

    /// Creates a droplet while the simulator runs.
    ///
    /// # Errors
    /// Its device directory can not be made.
    pub fn add_droplet(&self, spec: &DropletSpec) -> Result<()> {
        self.paths.create(std::iter::once(spec.id))?;
        self.service.with_cloud(|cloud, _| cloud.add_droplet(spec));
        Ok(())
    }

    /// Sets what a droplet is doing: switched off, archived, on again. Attachments stay.
    ///
    /// # Panics
    /// There is no such droplet; so do the other calls that change a droplet.
    pub fn set_droplet_status(&self, droplet: u64, status: DropletStatus) {
        self.service.with_cloud(|cloud, _| {
            cloud.change_droplet(droplet, |droplet| droplet.status = status);
        });
    }

    /// Destroys a droplet: 404 at once, its volumes are detached after the usual time. Where such a detach ends as errored,
    /// as scripted, the volume stays behind on a droplet that is no more.
    pub fn destroy_droplet(&self, droplet: u64) {
        let twists = |volume: &str| self.faults().take_twists(ActionKind::Detach, volume);
        self.service.with_cloud(|cloud, now| cloud.destroy_droplet(now, droplet, twists));
    }

    /// Keeps a droplet busy with an event of another kind, such as a power cycle.
    pub fn hold_pending_event(&self, droplet: u64, time: Duration) {
        self.service.with_cloud(|cloud, now| {
            cloud.change_droplet(droplet, |droplet| droplet.held_until = now + time);
        });
    }

    /// Leaves a droplet without metadata for a time: connections are closed without an answer.
    pub fn metadata_down(&self, droplet: u64, time: Duration) {
        self.service.with_cloud(|cloud, now| {
            cloud.change_droplet(droplet, |droplet| droplet.metadata_down_until = now + time);
        });
    }

    /// Makes a droplet's metadata answer late, in real time, until told otherwise.
    pub fn metadata_late(&self, droplet: u64, by: Duration) {
        self.service.with_cloud(|cloud, _| {
            cloud.change_droplet(droplet, |droplet| droplet.metadata_delay = by);
        });
    }

    /// How often each route has been called since the start or the last [`Sim::reset_calls`].
    pub fn calls(&self) -> Calls {
        self.service.calls()
    }

    /// Counts calls from zero again.
    pub fn reset_calls(&self) {
        self.service.reset_calls();
    }

    /// The scopes for want of which requests were refused.
    pub fn lacked_scopes(&self) -> scope::Scopes {
        self.service.lacked_scopes()
    }

    /// How many requests were refused for the rate limit.
    pub fn refused_for_rate(&self) -> u64 {
        self.service.rate(|rate| rate.refused())
    }

    /// The most requests that any second of the last hour had.
    pub fn busiest_second(&self) -> usize {
        self.service.rate(|rate| rate.busiest_second())
    }

    /// Uses up some of the quota, as other programs with the same token do.
    pub fn use_quota(&self, requests: usize) {
        self.service.use_quota(requests);
    }

    /// Closes every connection, answered or not, and goes on listening, as the edge does when it is restarted.
    pub fn close_connections(&self) {
        self.server.as_ref().expect("the server runs until close").close_connections();
    }

    /// Waits until the work on files and devices that is due has been done.
    ///
    /// # Errors
    /// The first of it that failed.
    pub fn settle(&self) -> Result<()> {
        self.service.settle()
    }

    /// Stops: ends every thread, closes every connection, lets go of every device. Files stay.
    ///
    /// # Errors
    /// Work on a device failed at some time, or somebody still uses one.
    pub fn close(mut self) -> Result<()> {
        self.stop()
    }

    fn begin(
        &self,
        plan: impl FnOnce(&Cloud, Moment) -> std::result::Result<ActionPlan, Refusal>,
    ) -> std::result::Result<u64, Refusal> {
        self.service.with_cloud(|cloud, now| {
            let plan = plan(cloud, now)?;
            let twists = self.faults().take_twists(plan.kind, &plan.volume);
            Ok(cloud.start(now, &plan, twists))
        })
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.stop();
        }
        if let Some(ticker) = self.ticker.take() {
            ticker.stop();
        }
        self.service.close_devices()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // After `close` there is nothing left to stop; otherwise nobody is there to be told.
        drop(self.stop());
    }
}

/// Locks a mutex even if a test thread panicked while holding it: its own failure is the one to be shown.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
