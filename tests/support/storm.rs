//! What many do at once to the account's quota: a cluster that comes back, and many who ask for long lists.
//!
//! Owns the measuring, from outside, with DigitalOcean's limits. Nothing is asserted here: a slow machine is no defect.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::bench::Measured;
use super::client::{Client, publish};
use super::controllers::{A, ControllerHarness};
use super::plugin::Plugin;
use super::{status_kb, wait_for};
use crate::sim::{DropletSpec, NewVolume, Rules, Times};

const DROPLETS: u64 = 30;
const VOLUMES: u64 = 5;
const ACTION: Duration = Duration::from_millis(4500);
const FIRST_DROPLET: u64 = 4_000_000;

/// A cluster that comes back: each droplet wants all its volumes at once, and asks again when it is refused.
#[derive(Debug)]
pub struct Return {
    plugins: usize,
    took: Duration,
    failed: u64,
    requests: u64,
    refused: u64,
    busiest: usize,
}

impl Return {
    /// Measures with so many plugins, between which the droplets are divided.
    pub fn measure(program: &Path, plugins: usize) -> Measured<Return> {
        let fleet = ControllerHarness::with(Rules { times: Times::actions(ACTION), ..Rules::default() });
        fleet.sim.change_rules(|rules| rules.limits.volumes = 0);
        let controllers: Vec<Plugin> =
            (0..plugins).map(|number| fleet.controller(program, &format!("plugin-{number}"), &[])).collect();
        let failed = AtomicU64::new(0);
        let mut wanted = Vec::new();
        for number in 0..DROPLETS {
            let droplet = FIRST_DROPLET + number;
            fleet.sim.add_droplet(&DropletSpec::new(droplet, &format!("node-{number}"), "fra1"))?;
            for volume in 0..VOLUMES {
                wanted.push((fleet.volume(&format!("volume-{number}-{volume}")), droplet));
            }
        }
        fleet.sim.reset_calls();
        let begun = Instant::now();
        thread::scope(|scope| {
            for (id, droplet) in &wanted {
                let index = usize::try_from(*droplet).unwrap_or_default() % controllers.len();
                let (client, failed): (&Client, _) = (&controllers[index].client, &failed);
                scope.spawn(move || {
                    while publish(client, id, *droplet).is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_secs(1));
                    }
                });
            }
        });
        Ok(Return {
            plugins,
            took: begun.elapsed(),
            failed: failed.into_inner(),
            requests: fleet.sim.calls().total(),
            refused: fleet.sim.refused_for_rate(),
            busiest: fleet.sim.busiest_second(),
        })
    }
}

impl fmt::Display for Return {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{DROPLETS} droplets with {VOLUMES} volumes each come back at once, through {} plugins: {:.0} s, {} failed calls, \
             {} requests ({} of them refused), {} in the busiest second",
            self.plugins,
            self.took.as_secs_f64(),
            self.failed,
            self.requests,
            self.refused,
            self.busiest
        )
    }
}

/// Many who list all volumes at once, and one who attaches a volume meanwhile.
#[derive(Debug)]
pub struct Lists {
    volumes: usize,
    callers: usize,
    listed: usize,
    took: Duration,
    published: Option<Duration>,
    requests: u64,
    idle_kb: u64,
    most_kb: u64,
    later_kb: u64,
}

impl Lists {
    /// Measures with so many callers and volumes.
    pub fn measure(program: &Path, callers: usize, volumes: usize) -> Measured<Lists> {
        let fleet = ControllerHarness::with(Rules::default());
        fleet.sim.change_rules(|rules| (rules.limits.volumes, rules.limits.region_gigabytes) = (0, u64::MAX));
        for number in 0..volumes {
            let description = format!("Created by DigitalOcean CSI driver for \"redis[{number}]\"");
            let tags = vec!["production".to_owned(), "env:0f3a".to_owned()];
            let new = NewVolume::new(&format!("pvc-6c7d1b0e-3c4e-4d5b-9a52-{number:012}"), 1, "fra1");
            fleet.sim.add_volume(&NewVolume { description, tags, ..new })?;
        }
        let plugin = fleet.controller(program, "one", &[]);
        let id = fleet.volume("wanted");
        plugin.client.list_volumes(1, "")?;
        let resident = || status_kb(plugin.pid(), "VmRSS:").unwrap_or_default();
        let idle_kb = resident();
        fleet.sim.reset_calls();
        let begun = Instant::now();
        let (listed, published) = thread::scope(|scope| {
            let list = |_| {
                // A connection of its own for each, as different callers have them.
                let client = &plugin.client;
                scope.spawn(move || client.list_volumes(0, "").is_ok_and(|listed| listed.entries.len() > volumes))
            };
            let lists: Vec<_> = (0..callers).map(list).collect();
            thread::sleep(Duration::from_millis(100));
            let asked = Instant::now();
            let published = publish(&plugin.client, &id, A).is_ok().then(|| asked.elapsed());
            (lists.into_iter().filter_map(|list| list.join().ok()).filter(|is_whole| *is_whole).count(), published)
        });
        let took = begun.elapsed();
        let most_kb = plugin.peak_memory_kb().unwrap_or_default();
        wait_for(Duration::from_secs(10), || (resident() <= idle_kb + 6 * 1024).then_some(()));
        let requests = fleet.sim.calls().total();
        Ok(Lists { volumes, callers, listed, took, published, requests, idle_kb, most_kb, later_kb: resident() })
    }
}

impl fmt::Display for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |kb: u64| kb as f64 / 1024.0;
        writeln!(
            f,
            "{} callers list {} volumes at once: {} answered in full, {:.1} s, {} requests",
            self.callers,
            self.volumes,
            self.listed,
            self.took.as_secs_f64(),
            self.requests
        )?;
        match self.published {
            Some(took) => writeln!(f, "  a publish beside them {:.2} s", took.as_secs_f64())?,
            None => writeln!(f, "  a publish beside them fails")?,
        }
        write!(
            f,
            "  resident memory    {:>7.1} MB at most, idle before {:.1} MB, within 10 s after {:.1} MB",
            mb(self.most_kb),
            mb(self.idle_kb),
            mb(self.later_kb)
        )
    }
}
