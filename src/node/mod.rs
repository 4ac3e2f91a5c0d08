//! Volumes on this droplet: from an attached disk to what a workload sees, and back.
//!
//! Owns the order of observing, deciding and changing for each node call, the lock of each volume and the time of each
//! call. The decisions are pure functions in [`plan`]; the machine is touched only through `host/` and the small folders
//! of [`place`]. DigitalOcean's API is never asked.

pub mod aside;
pub mod closing;
pub mod encrypted;
pub mod expand;
pub mod let_go;
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
use crate::lock::{Queued, VolumeGuard, VolumeKey, VolumeLocks};
use crate::node::let_go::LeftDisks;

/// How many calls may be ahead of one in the line for a volume or a path.
const MOST_AHEAD: usize = 8;

/// The node side of the driver.
#[derive(Debug)]
pub struct Node {
    runner: Box<dyn Runner>,
    places: DevicePlaces,
    slots: HeavySlots,
    /// Making a key takes memory, so this is done for one volume after the other.
    turns: Slots,
    locks: VolumeLocks,
    default_fs: FsKind,
    label: Option<SelinuxLabel>,
    left: LeftDisks,
}

/// A call that has come and waits for its volume.
#[derive(Debug)]
pub struct Arrival {
    queued: Queued,
    came: Instant,
}

/// Room for the heavy programs, of each sort for itself: none waits for another sort to be done.
#[derive(Debug)]
struct HeavySlots {
    format: Slots,
    check: Slots,
    grow: Slots,
}

impl HeavySlots {
    fn new() -> Self {
        let slots = |held_by| Slots::new(HEAVY_TOOLS, held_by);
        HeavySlots {
            format: slots("other volumes are still being formatted"),
            check: slots("the file systems of other volumes are still being checked"),
            grow: slots("the file systems of other volumes are still being grown"),
        }
    }
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
            slots: HeavySlots::new(),
            turns: Slots::new(1, "other encrypted volumes are still being made, opened or grown"),
            locks: VolumeLocks::new(),
            default_fs: config.default_fs_type,
            label: config.selinux_label.clone(),
            left: LeftDisks::default(),
        }
    }

    /// Puts a call that has come in line for its volume. Whichever thread gets to it, and when: those for one volume are worked
    /// on in the order in which they came.
    ///
    /// # Errors
    /// [`Error::Locked`](crate::error::Error::Locked) when too many are in the line.
    pub fn arrive(&self, volume: &str) -> Result<Arrival> {
        let queued = self.locks.queue(VolumeKey::Id(volume.to_owned()), MOST_AHEAD)?;
        Ok(Arrival { queued, came: Instant::now() })
    }

    /// Waits until no other call works on this volume, at one of these paths, or on the disk that has this name where the call
    /// knows it. The clock of a call runs since it came, as its caller's does.
    ///
    /// Nomad repeats no node call that was refused, and several tasks of one job on one droplet ask at once: they stand in
    /// line. Most of what is waited for takes milliseconds.
    fn begin(&self, arrival: Arrival, volume: &str, name: Option<&VolumeName>, paths: &[&Path]) -> Result<Call<'_>> {
        let Arrival { queued, came } = arrival;
        let real = |path: &&Path| Ok(VolumeKey::Path(place::observe_whole_path(path)?));
        let mut others = paths.iter().map(real).collect::<Result<Vec<_>>>()?;
        others.extend(name.map(|name| VolumeKey::Name(name.to_string())));
        let held = queued.hold_with(others, MOST_AHEAD, came + LOCK_PATIENCE);
        let guard = held.map_err(|locked| locked.asked_for(volume))?;
        Ok(Call { guard, runner: Until::new(self.runner.as_ref(), came + NODE_BUDGET) })
    }
}
