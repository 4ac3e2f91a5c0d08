//! Volumes on this droplet: from an attached disk to what a workload sees, and back.
//!
//! Owns the order of observing, deciding and changing for each node call, the lock of each volume and the time of each
//! call. The decisions are pure functions in `plan`; the machine is touched only through `host/` and the small directories
//! of `mount_point`. DigitalOcean's API is never asked.

mod block;
mod expand;
mod filesystem;
mod health;
mod leftover;
mod limit;
mod luks;
mod mount_point;
mod mount_state;
mod nomad_place;
mod ownership;
mod plan;
mod publish;
mod release;
mod scratch_mount;
mod stage;
pub mod stats;
mod take_down;
pub mod unused;
mod whose;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::activity::learn_name;
use crate::config::{Config, LOCK_PATIENCE, NODE_BUDGET};
use crate::error::{Error, Result};
use crate::host::command::{Runner, Until};
use crate::host::device::DevicePlaces;
use crate::host::inventory::{Inventory, LOOK_BUDGET};
use crate::host::mount_options::{DefaultFlags, SelinuxLabel};
use crate::host::propagation::UnclearMounts;
use crate::id::VolumeName;
use crate::node::filesystem::FsTools;
pub use crate::node::leftover::MountsSeen;
use crate::node::leftover::Tidying;
use crate::node::release::LeftDisks;
use crate::ops::diagnosis::Finding;
use crate::sync::caller::Caller;
use crate::sync::recent_calls::{RecentCalls, RunningCall};
use crate::sync::semaphore::Semaphore;
use crate::sync::volume_lock::{Queued, VolumeGuard, VolumeKey, VolumeLocks};

/// How many calls may be ahead of one in the line for a volume or a path.
const MAX_QUEUE: usize = 8;

/// Asks for a volume to be attached to this droplet, where the program may do so by itself.
///
/// Volumes that nobody used are detached by this program (`--release-unused`), also when an orchestrator was told a moment before
/// that the volume is here. Its next call is the one for the node, and that one has to get the volume back.
pub trait Attach: fmt::Debug + Send + Sync {
    /// Sees that the volume of this name is attached to this droplet, and takes it from no other.
    ///
    /// # Errors
    /// As a ControllerPublishVolume that may not take the volume from anywhere.
    fn ensure_attached(&self, name: &VolumeName, budget: Duration) -> Result<()>;
}

/// The node side of the driver.
#[derive(Debug)]
pub struct Node {
    runner: Box<dyn Runner>,
    places: DevicePlaces,
    fs_tools: FsTools,
    /// Making a key takes memory, so this is done for one volume after the other.
    key_permit: Semaphore,
    locks: VolumeLocks,
    label: Option<SelinuxLabel>,
    default_flags: DefaultFlags,
    left: LeftDisks,
    inventory: Arc<Inventory>,
    tidying: Tidying,
    /// What the last look at all mounts could not end.
    left_mounts: Mutex<Vec<Finding>>,
    recent_calls: RecentCalls,
    /// The volumes that this process has detached for being unused, until they are asked for.
    released: Mutex<BTreeSet<VolumeName>>,
    warned: Warned,
    /// None: volumes are attached by the orchestrator's calls alone, and nothing is detached or unstaged but by them.
    attach: Option<Box<dyn Attach>>,
}

/// What this process has warned of, and does not repeat.
#[derive(Debug, Default)]
struct Warned {
    /// That it cannot keep in mind which volume has which id.
    of_ids: AtomicBool,
    of_mounts: UnclearMounts,
}

/// A call that has come and waits for its volume.
#[derive(Debug)]
pub struct Arrival {
    queued: Queued,
    came: Instant,
    caller: Arc<Caller>,
}

impl Arrival {
    /// The same call, for a caller who may have gone before it is his turn.
    #[must_use]
    pub fn for_caller(self, caller: Arc<Caller>) -> Arrival {
        Arrival { caller, ..self }
    }
}

/// One call that changes a volume: its lock, a runner for programs that ends with the call's time, and where disks are.
#[derive(Debug)]
struct NodeCall<'a> {
    guard: VolumeGuard,
    runner: Until<'a>,
    places: &'a DevicePlaces,
    warned: &'a Warned,
    _running: RunningCall,
}

impl NodeCall<'_> {
    /// The same call, which takes a volume away: once begun it goes on to its end, whoever has gone.
    fn seen_through(self) -> Self {
        NodeCall { runner: self.runner.for_nobody(), ..self }
    }

    /// As much of a budget as the call's time leaves.
    fn cap(&self, budget: Duration) -> Duration {
        self.runner.cap(budget)
    }

    /// Sees that somebody still waits for the volume that is about to be brought somewhere.
    fn check_caller(&self) -> Result<()> {
        if self.runner.is_wanted() { Ok(()) } else { Err(Error::CallerGone) }
    }
}

impl Node {
    /// Makes the node side; `runner` runs the file system tools.
    #[must_use]
    pub fn new(config: &Config, runner: Box<dyn Runner>) -> Node {
        let places = DevicePlaces::with(&config.device_dir, &config.sys_dir);
        Node {
            runner,
            inventory: Arc::new(Inventory::new(places.clone(), LOOK_BUDGET)),
            places,
            fs_tools: FsTools::new(config),
            key_permit: Semaphore::new(1, "other encrypted volumes are still being made, opened or grown"),
            locks: VolumeLocks::new(),
            label: config.selinux_label.clone(),
            default_flags: config.default_mount_flags.clone(),
            left: LeftDisks::default(),
            tidying: Tidying::default(),
            left_mounts: Mutex::default(),
            recent_calls: RecentCalls::default(),
            released: Mutex::default(),
            warned: Warned::default(),
            attach: None,
        }
    }

    /// The volumes here, for all who show them: they share what is being looked at.
    #[must_use]
    pub fn inventory(&self) -> Arc<Inventory> {
        Arc::clone(&self.inventory)
    }

    /// The same, for a program that detaches volumes which nobody uses, and so has to bring them back; `recent_calls` is where calls
    /// are noted.
    #[must_use]
    pub fn bringing_back(self, attach: Box<dyn Attach>, recent_calls: RecentCalls) -> Node {
        Node { attach: Some(attach), recent_calls, ..self }
    }

    fn released(&self) -> MutexGuard<'_, BTreeSet<VolumeName>> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a call that has come in line for its volume. Whichever thread gets to it, and when: those for one volume are worked
    /// on in the order in which they came.
    ///
    /// # Errors
    /// [`Error::VolumeBusy`] when too many are in the line.
    pub fn arrive(&self, volume: &str) -> Result<Arrival> {
        let queued = self.locks.queue(VolumeKey::Id(volume.to_owned()), MAX_QUEUE)?;
        Ok(Arrival { queued, came: Instant::now(), caller: Arc::default() })
    }

    /// Waits until no other call works on this volume, at one of these paths, or on the disk that has this name where the call
    /// knows it. The clock of a call runs since it came, as its caller's does: it waits no longer than he does, and begins nothing
    /// when he has gone. A program that changes a disk is seen to its end all the same.
    ///
    /// Nomad repeats no node call that was refused, and several tasks of one job on one droplet ask at once: they stand in
    /// line. Most of what is waited for takes milliseconds.
    fn begin(
        &self,
        arrival: Arrival,
        volume: &str,
        name: Option<&VolumeName>,
        paths: &[&Path],
    ) -> Result<NodeCall<'_>> {
        let Arrival { queued, came, caller } = arrival;
        let answer_by = caller.answer_by(came);
        let by = |budget: Duration| answer_by.map_or(came + budget, |by| by.min(came + budget));
        if let Some(name) = name {
            learn_name(volume, name);
        }
        let real = |path: &&Path| Ok(VolumeKey::Path(mount_point::observe_whole_path(path)?));
        let mut others = paths.iter().map(real).collect::<Result<Vec<_>>>()?;
        others.extend(name.map(|name| VolumeKey::Name(name.to_string())));
        let held = queued.hold_with(others, MAX_QUEUE, by(LOCK_PATIENCE));
        let guard = held.map_err(|locked| locked.asked_for(volume))?;
        let runner = Until::new(self.runner.as_ref(), came + NODE_BUDGET).asked_by(caller, by(NODE_BUDGET));
        let named = name.map(|name| VolumeKey::Name(name.to_string()));
        let active = self.recent_calls.enter([VolumeKey::Id(volume.to_owned())].into_iter().chain(named));
        let call = NodeCall { guard, runner, places: &self.places, warned: &self.warned, _running: active };
        call.check_caller()?;
        Ok(call)
    }
}
