//! Volumes on this droplet: from an attached disk to what a workload sees, and back.
//!
//! Owns the order of observing, deciding and changing for each node call, and the lock of each volume. The decisions are
//! pure functions in [`plan`]; the machine is touched only through `host/`. DigitalOcean's API is never asked.

pub mod expand;
pub mod limit;
pub mod place;
pub mod plan;
pub mod publish;
pub mod stage;
pub mod stats;

use crate::config::{Config, HEAVY_TOOLS, LOCK_PATIENCE};
use crate::error::Result;
use crate::host::device::DevicePlaces;
use crate::host::run::Runner;
use crate::host::slots::Slots;
use crate::lock::{VolumeGuard, VolumeKey, VolumeLocks};

/// The node side of the driver.
#[derive(Debug)]
pub struct Node {
    runner: Box<dyn Runner>,
    places: DevicePlaces,
    slots: Slots,
    locks: VolumeLocks,
}

impl Node {
    /// Makes the node side; `runner` runs the file system tools.
    #[must_use]
    pub fn new(config: &Config, runner: Box<dyn Runner>) -> Node {
        let places =
            DevicePlaces { links: config.device_dir.clone(), sysfs: config.sys_dir.clone(), ..DevicePlaces::default() };
        Node { runner, places, slots: Slots::new(HEAVY_TOOLS), locks: VolumeLocks::new() }
    }

    fn hold(&self, volume: &str) -> Result<VolumeGuard> {
        Ok(self.locks.hold(VolumeKey::Id(volume.to_owned()), LOCK_PATIENCE)?)
    }
}
