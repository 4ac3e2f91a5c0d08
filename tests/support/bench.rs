//! How fast volumes are attached, moved and shared, and how many API calls that costs: against action times like the real
//! ones, with the cloud's real rate limits.
//!
//! Owns the measuring, from outside. Nothing is asserted here: a slow machine is no defect.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Client, Volume, publish, unpublish};
use super::cloud::{Cloud, Machine};
use super::controllers::{A, B, C, ControllerHarness};
use crate::sim::{NewVolume, Rules, SimConfig, Times};

pub type Measured<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The action times to measure with, and how often; the longer one is what DigitalOcean takes.
const ACTIONS: [(Duration, usize); 2] = [(Duration::from_millis(1300), 15), (Duration::from_secs(5), 7)];
const MOVED: usize = 15;
const TOGETHER: usize = 7;
const QUICK: Duration = Duration::from_millis(300);

/// One kind of call, done several times.
#[derive(Debug, Default)]
struct Series {
    over: Vec<Duration>,
    calls: Vec<u64>,
}

impl Series {
    fn add(
        &mut self,
        fleet: &ControllerHarness,
        action: Duration,
        call: impl FnOnce() -> Measured<()>,
    ) -> Measured<()> {
        let before = fleet.sim.calls().total();
        let asked = Instant::now();
        call()?;
        self.over.push(asked.elapsed().saturating_sub(action));
        self.calls.push(fleet.sim.calls().total() - before);
        Ok(())
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64() * 1000.0;
        let (mut over, mut calls) = (self.over.clone(), self.calls.clone());
        over.sort();
        calls.sort_unstable();
        let (median, most) = (over.get(over.len() / 2).copied(), over.last().copied());
        write!(
            f,
            "{:>5.0} ms over the action (first {:.0}, most {:.0});",
            ms(median),
            ms(self.over.first().copied()),
            ms(most)
        )?;
        let median = calls.get(calls.len() / 2).copied().unwrap_or_default();
        let most_but_first = self.calls.iter().skip(1).max().copied().unwrap_or_default();
        let first = self.calls.first().copied().unwrap_or_default();
        write!(f, " {median} API calls (first {first}, then at most {most_but_first})")
    }
}

/// What was measured with one action time.
#[derive(Debug)]
struct WithAction {
    action: Duration,
    attach: Series,
    detach: Series,
    free_after: Duration,
    elsewhere_after: Duration,
    losers_waited: Duration,
    move_calls: u64,
    move_time: Duration,
}

/// What calls for single volumes cost, with each action time.
#[derive(Debug)]
pub struct Calls(Vec<WithAction>);

impl Calls {
    /// Measures; takes about a minute and a half.
    pub fn measure(program: &Path) -> Measured<Calls> {
        thread::scope(|scope| {
            let measure = |(action, rounds)| scope.spawn(move || with_action(program, action, rounds));
            let threads: Vec<_> = ACTIONS.into_iter().map(measure).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().map_err(|_| "a measurement panicked")?;
            threads.into_iter().map(join).collect::<Measured<_>>().map(Calls)
        })
    }
}

/// How long seven volumes take that go up and down at once: by a plugin that has just started, and again.
#[derive(Debug)]
pub struct Together(Vec<Duration>);

fn with_action(program: &Path, action: Duration, rounds: usize) -> Measured<WithAction> {
    let ((attach, detach), conflict, (move_calls, move_time)) = thread::scope(|scope| {
        let single = scope.spawn(|| single(program, action, rounds));
        let conflict = scope.spawn(|| conflict(program, action));
        let moved = scope.spawn(|| moved(program, action));
        let panicked = |_| "a measurement panicked";
        Measured::Ok((
            single.join().map_err(panicked)??,
            conflict.join().map_err(panicked)??,
            moved.join().map_err(panicked)??,
        ))
    })?;
    let (losers_waited, free_after, elsewhere_after) = conflict;
    Ok(WithAction { action, attach, detach, free_after, elsewhere_after, losers_waited, move_calls, move_time })
}

fn fleet(action: Duration) -> ControllerHarness {
    ControllerHarness::with(Rules { times: Times::actions(action), ..Rules::default() })
}

fn single(program: &Path, action: Duration, rounds: usize) -> Measured<(Series, Series)> {
    let fleet = fleet(action);
    let plugin = fleet.controller(program, "one", &[]);
    let id = fleet.volume("one");
    let (mut attach, mut detach) = (Series::default(), Series::default());
    for _ in 0..rounds {
        attach.add(&fleet, action, || Ok(publish(&plugin.client, &id, A)?))?;
        detach.add(&fleet, action, || Ok(unpublish(&plugin.client, &id, A)?))?;
    }
    Ok((attach, detach))
}

/// Three nodes ask three plugins at once. From the last answer on: how long until the volume is free again when the
/// winner lets go of it, and until another node has it; and how long the losers waited for their answer.
fn conflict(program: &Path, action: Duration) -> Measured<(Duration, Duration, Duration)> {
    let fleet = fleet(action);
    let plugins = ["one", "two", "three"].map(|name| fleet.controller(program, name, &[]));
    let id = fleet.volume("one");
    let asked = Instant::now();
    let outcomes: Vec<bool> = thread::scope(|scope| {
        let ask = |(plugin, droplet)| {
            let (client, id): (&Client, &str) = (plugin, &id);
            scope.spawn(move || publish(client, id, droplet).is_ok())
        };
        let threads: Vec<_> = plugins.iter().map(|plugin| &plugin.client).zip([A, B, C]).map(ask).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(false)).collect()
    });
    let answered = Instant::now();
    let winner = outcomes.iter().position(|is_ok| *is_ok).ok_or("nobody won")?;
    let next = (winner + 1) % 3;
    let droplets = [A, B, C];
    unpublish(&plugins[winner].client, &id, droplets[winner])?;
    let free = answered.elapsed();
    publish(&plugins[next].client, &id, droplets[next])?;
    Ok((answered - asked, free, answered.elapsed()))
}

/// All volumes of one droplet move to another at once.
fn moved(program: &Path, action: Duration) -> Measured<(u64, Duration)> {
    let fleet = fleet(Duration::ZERO);
    let plugin = fleet.controller(program, "one", &[]);
    let ids: Vec<String> = (0..MOVED).map(|number| fleet.volume_on(&format!("volume-{number}"), A)).collect();
    fleet.sim.change_rules(|rules| rules.times = Times::actions(action));
    fleet.sim.reset_calls();
    let begun = Instant::now();
    thread::scope(|scope| {
        let client = &plugin.client;
        let mut threads = Vec::new();
        for id in &ids {
            threads.push(scope.spawn(move || unpublish(client, id, A).and_then(|()| publish(client, id, B))));
        }
        threads.into_iter().try_for_each(|thread| Measured::Ok(thread.join().map_err(|_| "a move panicked")??))
    })?;
    Ok((fleet.sim.calls().total(), begun.elapsed()))
}

impl Together {
    /// Attaches, stages, publishes and takes down seven volumes at once on one droplet; needs root.
    pub fn measure(program: &Path) -> Measured<Together> {
        let rules = Rules { times: Times::actions(QUICK), ..Rules::default() };
        let cloud =
            Cloud::start(SimConfig { rules, ..SimConfig::default() }, &["node-a"]).map_err(|err| err.to_string())?;
        let machine = cloud.machines.first().ok_or("no droplet")?;
        let plugin = machine.start(program)?;
        let mut volumes = Vec::new();
        for number in 0..TOGETHER {
            let name = format!("together-{number}");
            volumes.push((cloud.sim.add_volume(&NewVolume::new(&name, 1, "fra1").formatted("ext4"))?, name));
        }
        let mut rounds = Vec::new();
        for _ in 0..3 {
            let begun = Instant::now();
            thread::scope(|scope| {
                let live = |(id, name)| {
                    let client = &plugin.client;
                    scope.spawn(move || up_and_down(machine, client, id, name))
                };
                let threads: Vec<_> = volumes.iter().map(|(id, name)| live((id.as_str(), name.as_str()))).collect();
                threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a volume's thread panicked")?)
            })?;
            rounds.push(begun.elapsed());
        }
        plugin.stop()?;
        cloud.close().map_err(|err| err.to_string())?;
        Ok(Together(rounds))
    }
}

fn up_and_down(machine: &Machine, client: &Client, id: &str, name: &str) -> Measured<()> {
    let mut volume = Volume::mounted(id, "ext4");
    let (staging, target) = (machine.staging(name), machine.target("bench", name));
    machine.prepare(&staging, &target)?;
    client.controller_publish(&mut volume, &machine.node_id())?;
    client.stage(&volume, &staging)?;
    client.publish(&volume, &staging, &target, false)?;
    client.unpublish(id, &target)?;
    client.unstage(id, &staging)?;
    Ok(unpublish(client, id, machine.id)?)
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for with in &self.0 {
            let s = |time: Duration| time.as_secs_f64();
            writeln!(f, "Actions of {} s, {} rounds", s(with.action), with.attach.calls.len())?;
            writeln!(f, "  attach, median     {}", with.attach)?;
            writeln!(f, "  detach, median     {}", with.detach)?;
            writeln!(
                f,
                "  three nodes at once: answered after {:.1} s; from then on free again after {:.2} s, on the next \
                node after {:.2} s",
                s(with.losers_waited),
                s(with.free_after),
                s(with.elsewhere_after)
            )?;
            writeln!(
                f,
                "  {MOVED} volumes moved to another droplet: {} API calls, {:.1} s",
                with.move_calls,
                s(with.move_time)
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Together {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = QUICK.as_secs_f64() * 2.0 * TOGETHER as f64;
        writeln!(
            f,
            "{TOGETHER} volumes up and down at once on one droplet, actions of {} s: {least:.1} s at least",
            QUICK.as_secs_f64()
        )?;
        for (round, took) in self.0.iter().enumerate() {
            let over = (took.as_secs_f64() / least - 1.0) * 100.0;
            writeln!(f, "  round {}           {:>7.2} s, {over:.1} % more", round + 1, took.as_secs_f64())?;
        }
        Ok(())
    }
}
