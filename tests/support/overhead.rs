//! What the program costs: start, memory, size, and the time of calls that orchestrators make all day.
//!
//! Owns the measuring, from outside and on this machine. Nothing is asserted here: a slow machine is no defect.

use std::error::Error;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::client::Volume;
use super::cloud::Cloud;
use crate::sim::NewVolume;

const STARTS: usize = 10;
const CALLS: usize = 1000;
const ROUNDS: usize = 50;

/// The figures of one run.
#[derive(Debug)]
pub struct Figures {
    ready: Duration,
    idle_kb: (u64, u64),
    busy_kb: (u64, u64),
    binary_bytes: u64,
    node_info: Duration,
    publish: Duration,
    unpublish: Duration,
}

impl Figures {
    /// Starts the program anew on the first droplet and measures it.
    pub fn measure(cloud: &Cloud, program: &Path) -> Result<Figures, Box<dyn Error>> {
        let machine = cloud.machines.first().ok_or("no droplet")?;
        let mut starts = Vec::new();
        for _ in 1..STARTS {
            let plugin = machine.start(program)?;
            starts.push(plugin.ready_after);
            plugin.stop()?;
        }
        let plugin = machine.start(program)?;
        starts.push(plugin.ready_after);
        let client = &plugin.client;
        super::wait_for(Duration::from_secs(10), || client.node_info().ok()).ok_or("no node info")?;
        let idle_kb = plugin.memory_kb().ok_or("no memory figures")?;
        let node_info = median(CALLS, || client.node_info().map(drop))?;
        let busy_kb = plugin.memory_kb().ok_or("no memory figures")?;

        let id = cloud.sim.add_volume(&NewVolume::new("figures", 1, "fra1").formatted("xfs"))?;
        let mut volume = Volume::mounted(&id, "xfs");
        let (staging, target) = (machine.staging("figures"), machine.target("figures", "figures"));
        client.controller_publish(&mut volume, &machine.node_id())?;
        machine.prepare(&staging, &target)?;
        client.stage(&volume, &staging)?;
        let (mut published, mut unpublished) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            published.push(timed(|| client.publish(&volume, &staging, &target, false))?);
            unpublished.push(timed(|| client.unpublish(&volume.id, &target))?);
        }
        client.unstage(&volume.id, &staging)?;
        client.controller_unpublish(&volume.id, &machine.node_id())?;
        client.delete_volume(&volume.id)?;
        plugin.stop()?;
        Ok(Figures {
            ready: middle(starts),
            idle_kb,
            busy_kb,
            binary_bytes: fs::metadata(program)?.len(),
            node_info,
            publish: middle(published),
            unpublish: middle(unpublished),
        })
    }
}

fn timed<E>(act: impl FnOnce() -> Result<(), E>) -> Result<Duration, E> {
    let started = Instant::now();
    act().map(|()| started.elapsed())
}

fn median<E>(times: usize, mut act: impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    (0..times).map(|_| timed(&mut act)).collect::<Result<Vec<_>, E>>().map(middle)
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let mb = |kb: u64| kb as f64 / 1024.0;
        writeln!(f, "Figures (medians, seen from a client on this machine)")?;
        writeln!(f, "  first Probe answered after exec   {:>8.1} ms", micros(self.ready) / 1000.0)?;
        writeln!(f, "  NodeGetInfo                       {:>8.0} us", micros(self.node_info))?;
        writeln!(f, "  NodePublishVolume, staged         {:>8.0} us", micros(self.publish))?;
        writeln!(f, "  NodeUnpublishVolume               {:>8.0} us", micros(self.unpublish))?;
        writeln!(
            f,
            "  resident memory, idle             {:>8.1} MB ({:.1} MB anonymous)",
            mb(self.idle_kb.0),
            mb(self.idle_kb.1)
        )?;
        writeln!(
            f,
            "  resident memory, {CALLS} calls later {:>7.1} MB ({:.1} MB anonymous)",
            mb(self.busy_kb.0),
            mb(self.busy_kb.1)
        )?;
        writeln!(f, "  binary                            {:>8.1} MB", self.binary_bytes as f64 / 1e6)
    }
}
