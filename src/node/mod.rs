//! Volumes on this droplet: from an attached disk to what a workload sees, and back.
//!
//! Owns the order of observing, deciding and changing for each node call, the lock of each volume and the time of each
//! call. The decisions are pure functions in [`plan`]; the machine is touched only through `host/` and the small folders
//! of [`place`]. DigitalOcean's API is never asked.

pub mod aside;
pub mod closing;
pub mod encrypted;
pub mod expand;
pub mod limit;
pub mod place;
pub mod plan;
pub mod publish;
pub mod raw;
pub mod root;
pub mod see;
pub mod stage;
pub mod stats;
pub mod take_down;
pub mod whose;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::{Config, HEAVY_TOOLS, LOCK_PATIENCE, NODE_BUDGET};
use crate::error::Result;
use crate::host::content::FsKind;
use crate::host::device::DevicePlaces;
use crate::host::flags::SelinuxLabel;
use crate::host::run::{Runner, Until};
use crate::host::slots::Slots;
use crate::id::VolumeName;
use crate::lock::{VolumeGuard, VolumeKey, VolumeLocks};

/// How many calls may be ahead of one in the line for a volume or a path. Each keeps a thread, of which there must be some left for
/// the droplet's other volumes.
const MOST_AHEAD: usize = 8;

/// The node side of the driver.
#[derive(Debug)]
pub struct Node {
    runner: Box<dyn Runner>,
    places: DevicePlaces,
    slots: Slots,
    /// Making a key takes memory, so this is done for one volume after the other.
    turns: Slots,
    locks: VolumeLocks,
    default_fs: FsKind,
    label: Option<SelinuxLabel>,
}

/// One call that changes a volume: its lock, and a runner for programs that ends with the call's time.
#[derive(Debug)]
struct Call<'a> {
    guard: VolumeGuard,
    runner: Until<'a>,
}

impl Call<'_> {
    /// As much of a budget as the call's time leaves.
    fn cap(&self, budget: Duration) -> Duration {
        self.runner.cap(budget)
    }
}

impl Node {
    /// Makes the node side; `runner` runs the file system tools.
    #[must_use]
    pub fn new(config: &Config, runner: Box<dyn Runner>) -> Node {
        let places =
            DevicePlaces { links: config.device_dir.clone(), sysfs: config.sys_dir.clone(), ..DevicePlaces::default() };
        Node {
            runner,
            places,
            slots: Slots::new(HEAVY_TOOLS, "other volumes are still being formatted, checked or grown"),
            turns: Slots::new(1, "other encrypted volumes are still being made, opened or grown"),
            locks: VolumeLocks::new(),
            default_fs: config.default_fs_type,
            label: config.selinux_label.clone(),
        }
    }

    /// Starts the clock of a call, then waits until no other call works at one of these paths, on this volume, or on the disk
    /// that has this name where the call knows it.
    ///
    /// Nomad repeats no node call that was refused, and several tasks of one job on one droplet ask at once: they stand in
    /// line. Most of what is waited for takes milliseconds.
    fn begin(&self, volume: &str, name: Option<&VolumeName>, paths: &[&Path]) -> Result<Call<'_>> {
        let started = Instant::now();
        let real = |path: &&Path| Ok(VolumeKey::Path(place::observe_whole_path(path)?));
        let mut keys = paths.iter().map(real).collect::<Result<Vec<_>>>()?;
        keys.push(VolumeKey::Id(volume.to_owned()));
        keys.extend(name.map(|name| VolumeKey::Name(name.to_string())));
        let held = self.locks.hold_all(keys, MOST_AHEAD, started + LOCK_PATIENCE);
        let guard = held.map_err(|locked| locked.asked_for(volume))?;
        Ok(Call { guard, runner: Until::new(self.runner.as_ref(), started + NODE_BUDGET) })
    }
}
