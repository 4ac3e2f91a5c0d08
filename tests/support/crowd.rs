//! What many volumes and many mounts cost on one droplet: memory, and the time of calls.
//!
//! Owns the measuring, from outside. Nothing is asserted here: a slow machine is no defect. Needs root.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::bench::Measured;
use super::client::Volume;
use super::cloud::{Cloud, Machine};
use super::{status_kb, wait_for};
use crate::sim::{Limits, NewVolume, Rules, SimConfig, Times};

/// How many blank volumes are staged at once: as many as a droplet holds, and twice as many.
pub const BLANK: [usize; 2] = [15, 30];
const QUICK: Duration = Duration::from_millis(10);

/// What staging many blank volumes at once may take of the plugin's own memory, and when it must be given back.
const RESIDENT_AIM_MB: u64 = 24;
const LEFT_AIM_MB: u64 = 4;
const GIVEN_BACK: Duration = Duration::from_secs(10);

/// How many mounts a droplet has beside its own while calls are timed, and how often each is made.
const MOUNTS: [u32; 3] = [0, 350, 5000];
const ROUNDS: usize = 30;

/// The memory that blank volumes take which are staged at once.
#[derive(Debug)]
pub struct Blank {
    count: usize,
    idle_kb: u64,
    most_kb: u64,
    most_tools_kb: u64,
    later_kb: u64,
    took: Duration,
}

fn start(name: &str) -> Measured<Cloud> {
    // More disks than a droplet may have.
    let limits = Limits { attach: 100, ..Limits::default() };
    let rules = Rules { times: Times::actions(QUICK), limits, ..Rules::default() };
    Cloud::start(SimConfig { rules, ..SimConfig::default() }, &[name]).map_err(|err| err.to_string().into())
}

fn volume(cloud: &Cloud, machine: &Machine, client: &super::client::Client, name: &str, fs: &str) -> Measured<Volume> {
    let new = NewVolume::new(name, 1, "fra1");
    let id = cloud.sim.add_volume(&if fs.is_empty() { new } else { new.formatted(fs) })?;
    let mut volume = Volume::mounted(&id, if fs.is_empty() { "ext4" } else { fs });
    client.controller_publish(&mut volume, &machine.node_id())?;
    machine.prepare(&machine.staging(name), &machine.target("crowd", name))?;
    Ok(volume)
}

/// The resident memory of the tools that the plugin runs at this moment, in kB.
fn tools_kb(plugin: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{plugin}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids = children.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    pids.filter_map(|pid| status_kb(pid.parse().ok()?, "VmRSS:")).sum()
}

impl Blank {
    /// Stages this many blank volumes at once and looks at the memory meanwhile, and after ten seconds.
    pub fn measure(program: &Path, count: usize) -> Measured<Blank> {
        let cloud = start("node")?;
        let machine = cloud.machines.first().ok_or("no droplet")?;
        let plugin = machine.start(program)?;
        let (client, pid) = (&plugin.client, plugin.pid());
        let names: Vec<String> = (0..count).map(|number| format!("blank-{number}")).collect();
        let make = |name: &String| volume(&cloud, machine, client, name, "");
        let volumes = names.iter().map(make).collect::<Measured<Vec<_>>>()?;
        let resident = || status_kb(pid, "VmRSS:").ok_or("no memory figures");
        let idle_kb = resident()?;
        let (is_done, begun) = (AtomicBool::new(false), Instant::now());
        let (most_kb, most_tools_kb) = thread::scope(|scope| {
            let sample = scope.spawn(|| {
                let mut most = (0, 0);
                while !is_done.load(Ordering::Relaxed) {
                    most = (most.0.max(resident().unwrap_or_default()), most.1.max(tools_kb(pid)));
                    thread::sleep(Duration::from_millis(2));
                }
                most
            });
            let stage = |(volume, name): (&Volume, &String)| {
                let staging = machine.staging(name);
                let volume = volume.clone();
                scope.spawn(move || client.stage(&volume, &staging))
            };
            let calls: Vec<_> = volumes.iter().zip(&names).map(stage).collect();
            let staged = calls.into_iter().map(|call| Measured::Ok(call.join().map_err(|_| "a stage panicked")??));
            let staged = staged.collect::<Measured<Vec<()>>>();
            is_done.store(true, Ordering::Relaxed);
            staged.and_then(|_| Ok(sample.join().map_err(|_| "the sampling panicked")?))
        })?;
        let took = begun.elapsed();
        let aim = idle_kb + LEFT_AIM_MB * 1024;
        wait_for(GIVEN_BACK, || resident().ok().filter(|kb| *kb <= aim));
        let later_kb = resident()?;
        for (volume, name) in volumes.iter().zip(&names) {
            client.unstage(&volume.id, &machine.staging(name))?;
        }
        plugin.stop()?;
        cloud.close().map_err(|err| err.to_string())?;
        Ok(Blank { count, idle_kb, most_kb, most_tools_kb, later_kb, took })
    }
}

impl fmt::Display for Blank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |kb: u64| kb as f64 / 1024.0;
        writeln!(f, "{} blank volumes staged at once, in {:.1} s", self.count, self.took.as_secs_f64())?;
        writeln!(
            f,
            "  resident memory    {:>7.1} MB at most (aim {RESIDENT_AIM_MB}), and {:.1} MB of the tools; idle before {:.1} MB",
            mb(self.most_kb),
            mb(self.most_tools_kb),
            mb(self.idle_kb)
        )?;
        let left = mb(self.later_kb) - mb(self.idle_kb);
        writeln!(
            f,
            "  at most 10 s later {:>7.1} MB, {left:.1} MB more than idle (aim {LEFT_AIM_MB})",
            mb(self.later_kb)
        )
    }
}

/// The time of calls while much else is mounted on the droplet.
#[derive(Debug)]
pub struct Crowded(Vec<(u32, [Duration; 4])>);

/// Makes `count` mounts on a droplet: each step mounts all that are in a place there once more.
pub fn make_mounts(machine: &Machine, count: u32) -> std::io::Result<()> {
    let at = machine.home().join(format!("mounts-{count}"));
    let script = format!(
        "for bit in 0 1 2 3 4 5 6 7 8 9 10 11 12; do
             [ $(({count} >> bit & 1)) = 1 ] || continue
             at={at}/$bit; mkdir -p $at; mount -t tmpfs many $at; mount --make-rprivate $at
             n=0; while [ $n -lt $bit ]; do mkdir $at/$n; mount --rbind $at $at/$n; n=$((n + 1)); done
         done",
        at = at.display()
    );
    let before = machine.droplet.mounts().len();
    machine.droplet.sh(&script)?;
    let made = machine.droplet.mounts().len() - before;
    let want = usize::try_from(count).unwrap_or_default();
    if made == want { Ok(()) } else { Err(std::io::Error::other(format!("{made} mounts were made, not {want}"))) }
}

impl Crowded {
    /// Times publish, unpublish, stats and the repetition of a stage.
    pub fn measure(program: &Path) -> Measured<Crowded> {
        let cloud = start("node")?;
        let machine = cloud.machines.first().ok_or("no droplet")?;
        let plugin = machine.start(program)?;
        let client = &plugin.client;
        let volume = volume(&cloud, machine, client, "crowd", "xfs")?;
        let (staging, target) = (machine.staging("crowd"), machine.target("crowd", "crowd"));
        client.stage(&volume, &staging)?;
        let (mut have, mut figures) = (0, Vec::new());
        for count in MOUNTS {
            make_mounts(machine, count - have)?;
            have = count;
            let mut times: [Vec<Duration>; 4] = Default::default();
            for _ in 0..ROUNDS {
                let mut timed = |index: usize, call: &dyn Fn() -> Measured<()>| {
                    let asked = Instant::now();
                    call()?;
                    times.get_mut(index).ok_or("no such call")?.push(asked.elapsed());
                    Measured::Ok(())
                };
                timed(0, &|| Ok(client.publish(&volume, &staging, &target, false)?))?;
                timed(2, &|| Ok(client.stats(&volume.id, &target).map(drop)?))?;
                timed(3, &|| Ok(client.stage(&volume, &staging)?))?;
                timed(1, &|| Ok(client.unpublish(&volume.id, &target)?))?;
            }
            let median = |mut times: Vec<Duration>| {
                times.sort();
                times.get(times.len() / 2).copied().unwrap_or_default()
            };
            figures.push((count, times.map(median)));
        }
        client.unstage(&volume.id, &staging)?;
        plugin.stop()?;
        cloud.close().map_err(|err| err.to_string())?;
        Ok(Crowded(figures))
    }
}

impl fmt::Display for Crowded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Calls on a droplet with many mounts, medians in us: publish, unpublish, stats, stage again")?;
        for (count, times) in &self.0 {
            let [publish, unpublish, stats, stage] = times.map(|time| time.as_secs_f64() * 1e6);
            writeln!(f, "  {count:>5} mounts       {publish:>7.0} {unpublish:>7.0} {stats:>7.0} {stage:>7.0}")?;
        }
        Ok(())
    }
}
