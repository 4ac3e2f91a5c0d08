//! Random days of a cluster: volumes come, move and go, while requests and actions fail and plugins are killed.
//!
//! Each run follows from a seed, which is printed; `CHAOS_SEED=n` plays that run again, and `CHAOS_SECONDS=n` goes on with
//! new ones for so long. Which thread is faster is not in the seed, so a rare failure may need some more plays.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use fastrand::Rng;
use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{
    Action, ActionFault, ActionKind, ActionStatus, DropletSpec, DropletStatus, Fault, Refusal as Said, Rules, Times,
};
use crate::support::client::{Client, Outcome, Refusal, Volume, cloned, new_volume, publish, unpublish};
use crate::support::controllers::{A, B, C, ControllerHarness, no_rate_limit};
use crate::support::plugin::Plugin;

const ARGS: [&str; 2] = ["--call-budget=5", "--api-timeout=0.3"];
/// A call must end in its budget; what is more is for a machine that has much to do.
const LONGEST_CALL: Duration = Duration::from_secs(9);

const DROPLETS: [u64; 3] = [A, B, C];
const PLUGINS: [&str; 3] = ["one", "two", "three"];
/// The droplet that is destroyed in some runs.
const DESTROYED: u64 = C;
const VOLUMES: usize = 10;
const RUN: Duration = Duration::from_secs(8);
const ALL_RUNS: u64 = 45;

/// What must be so if the answers so far were true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    On(u64),
    Detached,
    /// A call failed, and may have had an effect.
    Nothing,
}

/// What one run is made of, shared by its threads.
struct World<'a> {
    fleet: &'a ControllerHarness,
    clients: RwLock<Vec<Client>>,
    /// Droplets are switched off and on: a volume may be taken from one, rightly.
    has_power_cuts: bool,
    /// The last droplet is destroyed now and then, and made anew: it loses its volumes at any time.
    has_destruction: bool,
    is_destroyed: AtomicBool,
    ends: Instant,
    complaints: Mutex<Vec<String>>,
    answers: AtomicU32,
    failures: AtomicU32,
}

impl World<'_> {
    fn client(&self, rng: &mut Rng) -> Client {
        self.clients.read().unwrap()[rng.usize(..PLUGINS.len())].clone()
    }

    /// Makes a call, counts it, and complains if it took too long or broke the program.
    fn call<T>(&self, what: &str, call: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let asked = Instant::now();
        let outcome = call();
        let count = if outcome.is_ok() { &self.answers } else { &self.failures };
        count.fetch_add(1, Ordering::Relaxed);
        let took = asked.elapsed();
        if took > LONGEST_CALL {
            self.complain(format!("{what} took {took:?}"));
        }
        if let Err(refusal) = &outcome
            && (refusal.message.contains("panicked") || refusal.code == RpcStatusCode::UNKNOWN)
        {
            self.complain(format!("{what}: {refusal}"));
        }
        outcome
    }

    fn make_anew(&self) {
        self.fleet.sim.add_droplet(&DropletSpec::new(DESTROYED, "node-c", "fra1")).expect("a droplet is made");
    }

    fn complain(&self, why: String) {
        self.complaints.lock().unwrap().push(why);
    }

    fn expect(&self, is_so: bool, why: impl FnOnce() -> String) {
        if !is_so {
            self.complain(why());
        }
    }
}

/// One volume and the only orchestrator that knows of it.
struct Life<'a> {
    world: &'a World<'a>,
    name: String,
    id: Option<String>,
    /// A delete failed and may have had an effect.
    may_be_gone: bool,
    known: Known,
    /// How often it was asked for a detach of each volume of the name.
    unpublishes: HashMap<String, usize>,
    rng: Rng,
}

impl Life<'_> {
    fn live(mut self) {
        self.play();
        for (id, asked) in &self.unpublishes {
            let is_done = |action: &&Action| {
                action.volume == *id && action.kind == ActionKind::Detach && action.status != ActionStatus::Errored
            };
            let done = self.world.fleet.sim.actions().iter().filter(is_done).count();
            // A volume is also taken from droplets that are off or gone, for whoever publishes it.
            let may_be_taken = self.world.has_power_cuts || self.world.has_destruction;
            self.world.expect(may_be_taken || done <= *asked, || {
                format!("{} ({id}) was detached {done} times, asked for {asked} times", self.name)
            });
        }
    }

    fn play(&mut self) {
        while Instant::now() < self.world.ends {
            let Some(id) = self.id.clone() else {
                self.create();
                continue;
            };
            let droplet = DROPLETS[self.rng.usize(..3)];
            match self.rng.u32(..24) {
                0..8 => self.publish(&id, droplet),
                8..13 => self.unpublish(&id, droplet),
                13 => self.unpublish_anywhere(&id),
                14..16 => self.delete(&id),
                16 => self.create(),
                17 => self.two_nodes(&id),
                18 => self.same_twice(&id, droplet),
                19 => self.expand(&id),
                20 => self.modify(&id),
                21 => self.snapshot(&id),
                22 => self.clone_of(&id),
                _ => self.publish_beside_a_late_unpublish(&id),
            }
        }
    }

    fn on(&self) -> Option<u64> {
        self.world.fleet.sim.attached_to(&self.name)
    }

    /// Whether a volume of this life may be there no longer although nobody detached it.
    fn is_lost(&self, droplet: u64) -> bool {
        self.world.has_destruction && droplet == DESTROYED && self.on().is_none()
    }

    fn asked_to_detach(&mut self, id: &str) {
        *self.unpublishes.entry(id.to_owned()).or_default() += 1;
    }

    fn expand(&mut self, id: &str) {
        let client = self.world.client(&mut self.rng);
        let Some(volume) = self.world.fleet.sim.volume(id) else { return };
        let size = volume.size_gigabytes + 1;
        let what = format!("expand {} to {size} GiB", self.name);
        if self.world.call(&what, || client.expand(id, i64::try_from(size << 30).unwrap())).is_ok() {
            let have = self.world.fleet.sim.volume(id).map(|volume| volume.size_gigabytes);
            self.world.expect(have >= Some(size), || format!("{what}: OK, but it has {have:?}"));
        }
    }

    fn modify(&mut self, id: &str) {
        let client = self.world.client(&mut self.rng);
        let (put, gone) = if self.rng.bool() { ("a", "b") } else { ("b", "A") };
        let what = format!("tag {} {put}", self.name);
        if self.world.call(&what, || client.modify(id, &[("tags", put), ("remove-tags", gone)])).is_ok() {
            let tags = self.world.fleet.sim.volume(id).map(|volume| volume.tags).unwrap_or_default();
            self.world.expect(tags == [put], || format!("{what}: OK, but it has {tags:?}"));
        }
    }

    fn snapshot(&mut self, id: &str) {
        let client = self.world.client(&mut self.rng);
        let name = format!("{}-shot-{}", self.name, self.rng.u32(..));
        let what = format!("snapshot {name}");
        let count = || self.world.fleet.sim.snapshots().iter().filter(|snapshot| snapshot.name == name).count();
        let Ok(taken) = self.world.call(&what, || client.create_snapshot(&name, id)) else { return };
        self.world.expect(count() == 1, || format!("{what}: OK, but there are {}", count()));
        if self.world.call(&what, || client.delete_snapshot(&taken.snapshot_id)).is_ok() {
            self.world.expect(count() == 0, || format!("{what}: deleted, but it is there"));
        }
    }

    fn clone_of(&mut self, id: &str) {
        let client = self.world.client(&mut self.rng);
        let name = format!("{}-copy", self.name);
        let what = format!("clone {name}");
        let request = cloned(new_volume(&name, 1 << 30), id);
        let Ok(made) = self.world.call(&what, || client.create(&request)) else { return };
        let is_there = || self.world.fleet.sim.volume(&made.volume_id).is_some();
        self.world.expect(is_there(), || format!("{what}: OK, but there is none"));
        if self.world.call(&what, || client.delete_volume(&made.volume_id)).is_ok() {
            self.world.expect(!is_there(), || format!("{what}: deleted, but it is there"));
        }
    }

    fn create(&mut self) {
        let (client, capability) = (self.world.client(&mut self.rng), Volume::mounted("", "ext4").capability);
        let what = format!("create {}", self.name);
        let Ok(made) = self.world.call(&what, || client.create_volume(&self.name, 1 << 30, &capability)) else {
            return;
        };
        let have = self.world.fleet.sim.volume(&made.volume_id);
        self.world.expect(have.is_some_and(|volume| volume.name == self.name), || format!("{what}: there is none"));
        if self.id.as_ref() != Some(&made.volume_id) {
            self.world.expect(self.id.is_none() || self.may_be_gone, || format!("{what}: it is a second one"));
            self.known = Known::Nothing;
        }
        (self.id, self.may_be_gone) = (Some(made.volume_id), false);
    }

    fn publish(&mut self, id: &str, droplet: u64) {
        let client = self.world.client(&mut self.rng);
        let what = format!("publish {} on {droplet}", self.name);
        let outcome = self.world.call(&what, || publish(&client, id, droplet));
        self.published(&what, droplet, &outcome);
    }

    fn published(&mut self, what: &str, droplet: u64, outcome: &Outcome<()>) {
        let before = self.known;
        let is_elsewhere = matches!(before, Known::On(holder) if holder != droplet);
        match outcome {
            Ok(()) => {
                let on = self.on();
                self.world.expect(on == Some(droplet) || self.is_lost(droplet), || {
                    format!("{what}: OK, but it is on {on:?}; was {before:?}")
                });
                let may_move = !is_elsewhere || self.world.has_power_cuts || self.world.has_destruction;
                self.world.expect(may_move, || format!("{what}: taken from a running droplet, was {before:?}"));
                self.known = Known::On(droplet);
            }
            Err(refusal) if refusal.message.contains("droplet (node id)") => {
                let may_be_gone = self.world.has_destruction && droplet == DESTROYED;
                self.world.expect(may_be_gone, || format!("{what}: {refusal}, but it is there"));
            }
            Err(refusal) if refusal.code == RpcStatusCode::NOT_FOUND => self.not_found(what, refusal),
            // What failed may have an effect, but never takes the volume away from where it is.
            Err(_) if matches!(before, Known::On(_)) && !self.world.has_power_cuts && !self.world.has_destruction => {
                let on = self.on();
                self.world.expect(before == on.map_or(Known::Detached, Known::On), || {
                    format!("{what}: failed, and the volume went from {before:?} to {on:?}")
                });
            }
            Err(_) => self.known = Known::Nothing,
        }
    }

    fn not_found(&mut self, what: &str, refusal: &Refusal) {
        let is_there = self.world.fleet.sim.volume(&self.name).is_some();
        self.world.expect(self.may_be_gone && !is_there, || format!("{what}: {refusal}, but it is there"));
        self.id = None;
    }

    fn unpublish(&mut self, id: &str, droplet: u64) {
        self.asked_to_detach(id);
        let client = self.world.client(&mut self.rng);
        let what = format!("unpublish {} from {droplet}", self.name);
        let outcome = self.world.call(&what, || unpublish(&client, id, droplet));
        let (before, on) = (self.known, self.on());
        match outcome {
            Ok(()) => {
                self.world.expect(on != Some(droplet), || format!("{what}: OK, but it is there; was {before:?}"));
                match before {
                    Known::On(holder) if holder == droplet => self.known = Known::Detached,
                    Known::On(holder) if !self.world.has_power_cuts => {
                        self.world.expect(on == Some(holder) || self.is_lost(holder), || {
                            format!("{what}: it left {holder} for {on:?}")
                        });
                    }
                    Known::On(_) | Known::Detached | Known::Nothing => {}
                }
            }
            Err(_) if before == Known::On(droplet) => self.known = Known::Nothing,
            Err(_) => {}
        }
    }

    fn unpublish_anywhere(&mut self, id: &str) {
        self.asked_to_detach(id);
        let client = self.world.client(&mut self.rng);
        let what = format!("unpublish {} from anywhere", self.name);
        let outcome = self.world.call(&what, || client.controller_unpublish(id, ""));
        let (before, on) = (self.known, self.on());
        match outcome {
            Ok(()) => {
                self.world.expect(on.is_none(), || format!("{what}: OK, but it is on {on:?}; was {before:?}"));
                self.known = Known::Detached;
            }
            Err(_) => self.known = Known::Nothing,
        }
    }

    fn delete(&mut self, id: &str) {
        let client = self.world.client(&mut self.rng);
        let what = format!("delete {}", self.name);
        let outcome = self.world.call(&what, || client.delete_volume(id));
        let is_there = self.world.fleet.sim.volume(id).is_some();
        match outcome {
            Ok(()) => {
                self.world.expect(!is_there, || format!("{what}: OK, but it is there"));
                let was_free = !matches!(self.known, Known::On(_));
                let may_be_lost = self.world.has_power_cuts || self.world.has_destruction;
                self.world.expect(was_free || may_be_lost, || format!("{what}: was {:?}", self.known));
                self.id = None;
            }
            Err(_) => self.may_be_gone = true,
        }
    }

    /// Two nodes ask at once, as when a task moves before its volume was let go.
    fn two_nodes(&mut self, id: &str) {
        let (first, second) = (self.world.client(&mut self.rng), self.world.client(&mut self.rng));
        let (here, there) = (DROPLETS[0], DROPLETS[1 + self.rng.usize(..2)]);
        let what = format!("publish {} on {here} and {there} at once", self.name);
        let ask = |client: &Client, droplet| self.world.call(&what, || publish(client, id, droplet)).is_ok();
        let winners = std::thread::scope(|scope| {
            let other = scope.spawn(|| ask(&first, here));
            (ask(&second, there), other.join().unwrap())
        });
        let on = self.on();
        self.known = match winners {
            (true, true) => {
                let may_move = self.world.has_power_cuts || self.world.has_destruction;
                self.world.expect(may_move, || format!("{what}: both were told OK"));
                Known::Nothing
            }
            (true, false) => Known::On(there),
            (false, true) => Known::On(here),
            (false, false) => Known::Nothing,
        };
        if let Known::On(winner) = self.known
            && !self.world.has_power_cuts
        {
            self.world.expect(on == Some(winner) || self.is_lost(winner), || {
                format!("{what}: {winner} was told OK, but it is on {on:?}")
            });
        }
    }

    /// A call and its repetition at once, through two plugins, as when the leader changes.
    fn same_twice(&mut self, id: &str, droplet: u64) {
        let (first, second) = (self.world.client(&mut self.rng), self.world.client(&mut self.rng));
        let what = format!("publish {} on {droplet} twice at once", self.name);
        let ask = |client: &Client| self.world.call(&what, || publish(client, id, droplet));
        let (one, other) = std::thread::scope(|scope| {
            let other = scope.spawn(|| ask(&first));
            (ask(&second), other.join().unwrap())
        });
        // What one of them was told is true, whatever the other was told.
        self.published(&what, droplet, &one.or(other));
    }

    /// An unpublish for a node that never had the volume comes late, while another node asks for it.
    fn publish_beside_a_late_unpublish(&mut self, id: &str) {
        self.asked_to_detach(id);
        let (first, second) = (self.world.client(&mut self.rng), self.world.client(&mut self.rng));
        let what = format!("publish {} on {A} beside an unpublish from {B}", self.name);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| drop(self.world.call(&what, || first.controller_unpublish(id, &B.to_string()))));
            self.world.call(&what, || publish(&second, id, A))
        });
        if self.known == Known::On(B) {
            self.known = Known::Nothing;
        }
        self.published(&what, A, &outcome);
    }
}

/// Lets something go wrong.
fn strike(world: &World<'_>, rng: &mut Rng) {
    let (faults, ms) = (world.fleet.sim.faults(), Duration::from_millis);
    let fault = match rng.u32(..18) {
        0 => Fault::server_error(),
        1 => Fault::unavailable().times(3),
        2 => Fault::html_page(),
        3 => Fault::html_page_after_effect(),
        4 => Fault::lost_request(),
        5 | 6 => Fault::lost_reply(),
        7 => Fault::reply_cut_short(),
        8 => Fault::late(ms(rng.u64(..700))),
        9 => Fault::hung(),
        10 => Fault::hung_after_effect(),
        11 => Fault::pending_event().times(3),
        12 => Fault::refused(Said::ALREADY_ATTACHED),
        13 => Fault::refused(Said::ATTACHMENT_NOT_FOUND),
        14 => Fault::burst_limit(Duration::from_secs(1)),
        15 => Fault::quota_used_up(),
        16 => Fault::answered(200, "text/html", "<html></html>"),
        _ => Fault::refused(Said::ATTACH_LIMIT),
    };
    faults.add(match rng.u32(..11) {
        0 => fault.on("POST", "/v2/volumes"),
        1 => fault.on("GET", "/v2/volumes/{id}"),
        2 => fault.on("GET", "/v2/volumes/{id}/actions/{action_id}"),
        3 => fault.on("DELETE", "/v2/volumes/{id}"),
        4 => fault.on("GET", "/v2/volumes/{id}/actions"),
        5 => fault.on("GET", "/v2/droplets/{droplet_id}"),
        6 => fault.on("GET", "/v2/volumes"),
        7 => fault,
        _ => fault.on("POST", "/v2/volumes/{id}/actions"),
    });
    match rng.u32(..14) {
        0 => faults.add_action(ActionFault::errored()),
        1 => faults.add_action(ActionFault::unknown_at_first(2)),
        2 => faults.add_action(ActionFault::taking(ms(rng.u64(200..1500)))),
        3 => faults.add_action(ActionFault::droplet_ids_late(ms(rng.u64(50..800)))),
        4 => faults.add_action(ActionFault::droplet_ids_early()),
        5 => world.fleet.sim.hold_pending_event(DROPLETS[rng.usize(..3)], ms(rng.u64(100..1500))),
        6 if world.has_power_cuts => {
            let status = if rng.bool() { DropletStatus::Off } else { DropletStatus::Active };
            world.fleet.sim.set_droplet_status(DROPLETS[rng.usize(..3)], status);
        }
        7 => world.fleet.sim.close_connections(),
        8 | 9 if world.has_destruction => {
            if world.is_destroyed.fetch_xor(true, Ordering::Relaxed) {
                world.make_anew();
            } else {
                world.fleet.sim.destroy_droplet(DESTROYED);
            }
        }
        10 => faults.add_action(ActionFault::size_late(ms(rng.u64(50..400)))),
        _ => {}
    }
}

/// Plays one run, and gives what was not as it must be.
fn play(seed: u64) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    let mut rules = Rules { limits: no_rate_limit(), ..Rules::default() };
    rules.times = Times::actions(Duration::from_millis(rng.u64(5..200)));
    rules.times.create_visible_after = Duration::from_millis(if rng.bool() { 0 } else { 100 });
    (rules.limits.volumes, rules.limits.snapshot_interval) = (0, Duration::ZERO);
    rules.limits.region_gigabytes = u64::MAX >> 32;
    rules.switches.attach_again_is_accepted = rng.bool();
    rules.switches.duplicate_name_says_already_exists = rng.bool();
    rules.switches.empty_arrays_are_null = rng.bool();
    let fleet = ControllerHarness::with(rules);
    let mut plugins: Vec<Plugin> =
        PLUGINS.iter().map(|name| fleet.controller(Path::new(PROGRAM), name, &ARGS)).collect();
    let world = World {
        fleet: &fleet,
        clients: RwLock::new(plugins.iter().map(|plugin| plugin.client.clone()).collect()),
        has_power_cuts: rng.u32(..4) == 0,
        has_destruction: rng.u32(..4) == 0,
        is_destroyed: AtomicBool::new(false),
        ends: Instant::now() + RUN,
        complaints: Mutex::default(),
        answers: AtomicU32::new(0),
        failures: AtomicU32::new(0),
    };
    let mut kills = 0;
    std::thread::scope(|scope| {
        for number in 0..VOLUMES {
            let (name, rng) = (format!("volume-{number}"), rng.fork());
            let unpublishes = HashMap::new();
            let life =
                Life { world: &world, name, id: None, may_be_gone: false, known: Known::Detached, unpublishes, rng };
            scope.spawn(|| life.live());
        }
        // Plugins end with the thread that starts them, so this one kills them and starts them again.
        let mut next_kill = Instant::now() + Duration::from_millis(rng.u64(200..1000));
        while Instant::now() < world.ends {
            strike(&world, &mut rng);
            if Instant::now() >= next_kill {
                kills += 1;
                let number = rng.usize(..PLUGINS.len());
                plugins.remove(number).kill().expect("the plugin is killed");
                plugins.insert(number, fleet.controller(Path::new(PROGRAM), PLUGINS[number], &ARGS));
                world.clients.write().unwrap()[number] = plugins[number].client.clone();
                next_kill = Instant::now() + Duration::from_millis(rng.u64(200..1500));
            }
            std::thread::sleep(Duration::from_millis(rng.u64(20..300)));
        }
    });
    aftermath(&world, &mut rng);
    let (answers, failures) = (world.answers.load(Ordering::Relaxed), world.failures.load(Ordering::Relaxed));
    println!("CHAOS_SEED={seed}: {answers} calls answered OK, {failures} failed, {kills} plugins killed");
    if answers < 50 {
        world.complain(format!("only {answers} calls were answered OK: that is no test"));
    }
    let complaints = world.complaints.into_inner().unwrap();
    if !complaints.is_empty() {
        plugins.iter().zip(PLUGINS).for_each(|(plugin, name)| println!("log of plugin {name}:\n{}", plugin.log()));
        fleet.sim.actions().iter().rev().for_each(|action| println!("{action:?}"));
    }
    complaints
}

/// How often an orchestrator asks again afterwards. The budget of a call is short here, and all volumes are moved at once:
/// on a busy machine the line of one droplet can be longer than it.
const TRIES: usize = 5;

/// When nothing goes wrong any more, everything can be published, moved and deleted.
fn aftermath(world: &World<'_>, rng: &mut Rng) {
    let sim = &world.fleet.sim;
    sim.faults().clear();
    if world.is_destroyed.load(Ordering::Relaxed) {
        world.make_anew();
    }
    DROPLETS.iter().for_each(|droplet| sim.set_droplet_status(*droplet, DropletStatus::Active));
    world.fleet.rest();
    let volumes = sim.volumes();
    let mut names: Vec<_> = volumes.iter().map(|volume| &volume.name).collect();
    names.sort();
    names.dedup();
    world.expect(names.len() == volumes.len(), || format!("there are two of a name: {volumes:?}"));
    std::thread::scope(|scope| {
        for volume in &volumes {
            let clients: Vec<Client> = (0..5).map(|_| world.client(rng)).collect();
            scope.spawn(move || {
                let must = |what: &str, call: &dyn Fn() -> Outcome<()>| {
                    let mut failures = Vec::new();
                    let is_done = (0..TRIES).any(|_| call().map_err(|refusal| failures.push(refusal)).is_ok());
                    world.expect(is_done, || format!("afterwards, {what} {}: {failures:?}", volume.name));
                };
                must("unpublish", &|| clients[0].controller_unpublish(&volume.id, ""));
                for (client, droplet) in clients[1..].iter().zip(DROPLETS) {
                    must("publish", &|| publish(client, &volume.id, droplet));
                    world.expect(sim.attached_to(&volume.id) == Some(droplet), || {
                        format!("{} is not there", volume.name)
                    });
                    must("unpublish", &|| client.controller_unpublish(&volume.id, &droplet.to_string()));
                }
                must("delete", &|| clients[4].delete_volume(&volume.id));
            });
        }
    });
    world.fleet.rest();
    world.expect(sim.volumes().is_empty(), || format!("volumes are left: {:?}", sim.volumes()));
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn whatever_a_day_brings_answers_are_true_and_every_volume_stays_usable() {
    let (replayed, seconds) = (number("CHAOS_SEED"), number("CHAOS_SECONDS"));
    let ends = Instant::now() + Duration::from_secs(seconds.unwrap_or(ALL_RUNS));
    let mut seed = replayed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    loop {
        println!("CHAOS_SEED={seed} begins");
        let complaints = play(seed);
        assert!(complaints.is_empty(), "replay with CHAOS_SEED={seed}:\n{}", complaints.join("\n"));
        seed += 1;
        let is_over = (replayed.is_some() && seconds.is_none()) || Instant::now() >= ends;
        if is_over {
            return;
        }
    }
}
