//! The life of a volume, step by step, as Nomad lives it: told by the demo, asserted by a test.
//!
//! Owns the steps and what must be true after each; how they are shown is the listener's. Every step ends with a proof
//! taken from the world: the mount table, a file's content, or what the cloud says.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use grpcio::RpcStatusCode;

use super::client::{Client, Volume};
use super::cloud::{Cloud, Machine, Program};
use super::facts::Facts;
use super::plugin::Plugin;
use crate::sim::{NewVolume, Sim};

/// What went wrong, or what was seen.
pub type StepResult<T> = Result<T, Box<dyn Error>>;

/// Somebody who is told the story.
pub trait Listener {
    /// A new part begins.
    fn chapter(&mut self, title: &str);
    /// A step begins.
    fn begins(&mut self, step: &str);
    /// The step that began has ended well, with this proof.
    fn ended(&mut self, step: &str, proof: &str, took: Duration);
    /// Whether the story should be broken off here.
    fn is_cancelled(&self) -> bool;
}

/// A step whose outcome is not what it must be.
#[derive(Debug)]
pub struct Mismatch {
    step: String,
    why: Box<dyn Error>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.why)
    }
}

impl Error for Mismatch {}

/// Plays the whole story with this program on the cloud's first two droplets.
pub fn tell(cloud: &Cloud, program: &Program, listener: &mut dyn Listener) -> StepResult<()> {
    let [a, b, ..] = cloud.machines.as_slice() else {
        return Err("the story needs two droplets".into());
    };
    let mut story = Scenario { facts: &cloud.sim, listener };
    let (on_a, on_b) = story.start(program, a, b)?;
    let mut blog = story.terraform(&cloud.sim)?;
    story.write_on(a, &on_a, &mut blog)?;
    story.read_on(b, &on_b, &mut blog)?;
    story.conflict(a, &on_a, b, &on_b, &mut blog)?;
    story.whole_life("scratch-volume", program, a, on_a)
}

/// Plays the life of one volume of this name, from its creation to its deletion, on one droplet of any cloud. Whatever
/// happens, nothing of the volume is left, or the error says what is.
pub fn tell_one_life(
    machine: &Machine,
    program: &Program,
    facts: &dyn Facts,
    name: &str,
    listener: &mut dyn Listener,
) -> StepResult<()> {
    let mut story = Scenario { facts, listener };
    story.listener.chapter("The plugin on this droplet");
    let told = story.boot(program, machine).and_then(|plugin| story.whole_life(name, program, machine, plugin));
    match (told, clean_up(machine, program, facts, name)) {
        (told, Ok(())) => told,
        (Ok(()), Err(left)) => Err(format!("volume {name} is left: {left}").into()),
        (Err(why), Err(left)) => Err(format!("{why}; and volume {name} is left: {left}").into()),
    }
}

/// Takes a volume of the story away, wherever in its life the story has ended.
fn clean_up(machine: &Machine, program: &Program, facts: &dyn Facts, name: &str) -> StepResult<()> {
    let Some(seen) = facts.named(name)? else { return Ok(()) };
    let used = Use::of(machine, name, ALLOC);
    let plugin = machine.start(program)?;
    plugin.client.unpublish(&seen.id, &used.target)?;
    plugin.client.unstage(&seen.id, &used.staging)?;
    plugin.client.controller_unpublish(&seen.id, &machine.node_id())?;
    plugin.client.delete_volume(&seen.id)?;
    Ok(())
}

struct Scenario<'a> {
    facts: &'a dyn Facts,
    listener: &'a mut dyn Listener,
}

/// A volume in use on a machine: where it is staged and published.
struct Use {
    staging: PathBuf,
    target: PathBuf,
}

impl Use {
    fn of(machine: &Machine, volume: &str, alloc: &str) -> Use {
        Use { staging: machine.staging(volume), target: machine.target(alloc, volume) }
    }
}

const VOLUME: &str = "nomad-volume";
const ALLOC: &str = "5a2c9e3f";
const MESSAGE: &str = "hello from the first node\n";

impl Scenario<'_> {
    fn step<T>(&mut self, step: &str, act: impl FnOnce() -> StepResult<(T, String)>) -> StepResult<T> {
        self::step(self.listener, step, act)
    }

    fn start(&mut self, program: &Program, a: &Machine, b: &Machine) -> StepResult<(Plugin, Plugin)> {
        self.listener.chapter("Two droplets, a plugin on each");
        let on_a = self.boot(program, a)?;
        let on_b = self.boot(program, b)?;
        Ok((on_a, on_b))
    }

    fn boot(&mut self, program: &Program, machine: &Machine) -> StepResult<Plugin> {
        let plugin = self.step(&format!("{}: start the plugin, first Probe", machine.name), || {
            let plugin = machine.start(program)?;
            let proof = format!("answered {} ms after exec", plugin.ready_after.as_millis());
            Ok((plugin, proof))
        })?;
        self.step(&format!("{}: plugin info, capabilities, node info", machine.name), || {
            fingerprint(&plugin.client, machine).map(|proof| ((), proof))
        })?;
        Ok(plugin)
    }

    fn terraform(&mut self, sim: &Sim) -> StepResult<Volume> {
        self.listener.chapter("An xfs volume, written on one node and read on the other");
        self.step("Terraform creates the volume, formatted as xfs", || {
            let id = sim.add_volume(&NewVolume::new(VOLUME, 1, "fra1").formatted("xfs"))?;
            sim.settle()?;
            let proof = format!("cloud: {VOLUME} is {id}, attached to nobody");
            Ok((Volume::mounted(&id, "xfs"), proof))
        })
    }

    fn write_on(&mut self, machine: &Machine, plugin: &Plugin, volume: &mut Volume) -> StepResult<()> {
        let used = Use::of(machine, VOLUME, ALLOC);
        self.step(&format!("{}: validate, as at `volume register`", machine.name), || {
            let reply = plugin.client.validate(volume)?;
            ensure(reply.confirmed.is_some(), || format!("not confirmed: {}", reply.message))?;
            Ok(((), "every capability confirmed".to_owned()))
        })?;
        self.up(machine, plugin, volume, &used)?;
        self.put(machine, &used)?;
        self.down(machine, plugin, volume, &used)
    }

    fn read_on(&mut self, machine: &Machine, plugin: &Plugin, volume: &mut Volume) -> StepResult<()> {
        let used = Use::of(machine, VOLUME, "77aa01bc");
        self.up(machine, plugin, volume, &used)?;
        self.get(machine, &used)?;
        self.down(machine, plugin, volume, &used)
    }

    fn conflict(
        &mut self,
        a: &Machine,
        on_a: &Plugin,
        b: &Machine,
        on_b: &Plugin,
        volume: &mut Volume,
    ) -> StepResult<()> {
        self.listener.chapter("Both nodes want it at once");
        let (used_a, used_b) = (Use::of(a, VOLUME, "c0ffee01"), Use::of(b, VOLUME, "c0ffee02"));
        let mut other = volume.clone();
        self.up(a, on_a, volume, &used_a)?;
        let facts = self.facts;
        self.step(&format!("{}: asks for it too and is refused", b.name), || {
            let refusal = on_b.client.controller_publish(&mut other, &b.node_id()).err().ok_or("it was not refused")?;
            ensure(refusal.code == RpcStatusCode::FAILED_PRECONDITION, || refusal.to_string())?;
            ensure(refusal.message.contains(&a.node_id()), || format!("{} is not named: {refusal}", a.id))?;
            attached_to(facts, &other.id, Some(a.id))?;
            Ok(((), format!("{refusal}")))
        })?;
        self.down(a, on_a, volume, &used_a)?;
        self.up(b, on_b, &mut other, &used_b)?;
        self.get(b, &used_b)?;
        self.down(b, on_b, &other, &used_b)
    }

    fn whole_life(&mut self, name: &str, program: &Program, machine: &Machine, plugin: Plugin) -> StepResult<()> {
        self.listener.chapter("A volume from creation to deletion, with a crash in between");
        let used = Use::of(machine, name, ALLOC);
        let mut volume = self.create(name, &plugin.client)?;
        self.attach_and_stage(machine, &plugin, &mut volume, &used)?;
        let plugin = self.crash(program, machine, plugin)?;
        self.publish(machine, &plugin, &volume, &used)?;
        self.put(machine, &used)?;
        self.get(machine, &used)?;
        self.grow(machine, &plugin, &volume, &used)?;
        self.get(machine, &used)?;
        self.down(machine, &plugin, &volume, &used)?;
        let facts = self.facts;
        self.step(&format!("{}: delete the volume", machine.name), || {
            plugin.client.delete_volume(&volume.id)?;
            ensure(facts.volume(&volume.id)?.is_none(), || "the cloud still has it".to_owned())?;
            Ok(((), format!("cloud: {name} is gone")))
        })
    }

    fn grow(&mut self, machine: &Machine, plugin: &Plugin, volume: &Volume, used: &Use) -> StepResult<()> {
        let (facts, want) = (self.facts, 2 << 30);
        self.step(&format!("{}: expand the volume while it is in use", machine.name), || {
            let grown = plugin.client.expand(&volume.id, want)?;
            ensure(grown.capacity_bytes == want, || format!("it has {} bytes", grown.capacity_bytes))?;
            plugin.client.node_expand(&volume.id, &used.target, want)?;
            let seen = facts.volume(&volume.id)?.ok_or("the cloud does not have it")?;
            ensure(seen.gigabytes == 2, || format!("the cloud says {} GiB", seen.gigabytes))?;
            let bytes = machine.droplet.file_system_size(&used.target)?;
            // Its log and its tables take a part of the disk.
            ensure(bytes > 2_000_000_000, || format!("the file system has {bytes} bytes"))?;
            Ok(((), format!("cloud: 2 GiB; file system: {bytes} bytes")))
        })
    }

    fn create(&mut self, name: &str, client: &Client) -> StepResult<Volume> {
        let facts = self.facts;
        self.step("create a volume", || {
            let mut volume = Volume::mounted("", "xfs");
            let made = client.create_volume(name, 1 << 30, &volume.capability)?;
            let seen = facts.volume(&made.volume_id)?.ok_or("the cloud does not have it")?;
            volume.id = made.volume_id;
            Ok((volume, format!("cloud: {} has {} GiB, not formatted", seen.name, seen.gigabytes)))
        })
    }

    fn crash(&mut self, program: &Program, machine: &Machine, plugin: Plugin) -> StepResult<Plugin> {
        self.step(&format!("{}: SIGKILL the plugin and start it again", machine.name), || {
            let before = machine.mounts();
            plugin.kill()?;
            let plugin = machine.start(program)?;
            ensure(machine.mounts() == before, || "the mount table has changed".to_owned())?;
            Ok((plugin, "mount table unchanged".to_owned()))
        })
    }

    fn up(&mut self, machine: &Machine, plugin: &Plugin, volume: &mut Volume, used: &Use) -> StepResult<()> {
        self.attach_and_stage(machine, plugin, volume, used)?;
        self.publish(machine, plugin, volume, used)
    }

    fn attach_and_stage(
        &mut self,
        machine: &Machine,
        plugin: &Plugin,
        volume: &mut Volume,
        used: &Use,
    ) -> StepResult<()> {
        let facts = self.facts;
        self.step(&format!("{}: controller publish", machine.name), || {
            plugin.client.controller_publish(volume, &machine.node_id())?;
            attached_to(facts, &volume.id, Some(machine.id))?;
            Ok(((), format!("cloud: attached to droplet {} ({})", machine.id, machine.name)))
        })?;
        self.step(&format!("{}: stage", machine.name), || {
            machine.prepare(&used.staging, &used.target)?;
            plugin.client.stage(volume, &used.staging)?;
            Ok(((), mounted(machine, &used.staging)?))
        })
    }

    fn publish(&mut self, machine: &Machine, plugin: &Plugin, volume: &Volume, used: &Use) -> StepResult<()> {
        self.step(&format!("{}: publish", machine.name), || {
            plugin.client.publish(volume, &used.staging, &used.target, false)?;
            Ok(((), mounted(machine, &used.target)?))
        })
    }

    fn down(&mut self, machine: &Machine, plugin: &Plugin, volume: &Volume, used: &Use) -> StepResult<()> {
        let facts = self.facts;
        self.step(&format!("{}: unpublish, unstage", machine.name), || {
            plugin.client.unpublish(&volume.id, &used.target)?;
            not_mounted(machine, &used.target)?;
            plugin.client.unstage(&volume.id, &used.staging)?;
            not_mounted(machine, &used.staging)?;
            Ok(((), "neither path is in the mount table".to_owned()))
        })?;
        self.step(&format!("{}: controller unpublish", machine.name), || {
            plugin.client.controller_unpublish(&volume.id, &machine.node_id())?;
            attached_to(facts, &volume.id, None)?;
            Ok(((), "cloud: attached to nobody".to_owned()))
        })
    }

    fn put(&mut self, machine: &Machine, used: &Use) -> StepResult<()> {
        let file = used.target.join(format!("hello-{ALLOC}"));
        self.step(&format!("{}: a task writes a file", machine.name), || {
            machine.droplet.write(&file, MESSAGE)?;
            Ok(((), format!("{} bytes in hello-{ALLOC}", MESSAGE.len())))
        })
    }

    fn get(&mut self, machine: &Machine, used: &Use) -> StepResult<()> {
        let file = used.target.join(format!("hello-{ALLOC}"));
        self.step(&format!("{}: a task reads it", machine.name), || {
            let text = machine.droplet.read(&file)?;
            ensure(text == MESSAGE, || format!("it says {text:?}"))?;
            Ok(((), format!("hello-{ALLOC} says {text:?}")))
        })
    }
}

/// Plays one step, of this story or another, before a listener.
pub fn step<T>(
    listener: &mut dyn Listener,
    step: &str,
    act: impl FnOnce() -> StepResult<(T, String)>,
) -> StepResult<T> {
    if listener.is_cancelled() {
        return Err("interrupted".into());
    }
    listener.begins(step);
    let started = Instant::now();
    let (result, proof) = act().map_err(|why| Mismatch { step: step.to_owned(), why })?;
    listener.ended(step, &proof, started.elapsed());
    Ok(result)
}

/// Gives an error unless something is so.
pub fn ensure(is_so: bool, why_not: impl FnOnce() -> String) -> StepResult<()> {
    if is_so { Ok(()) } else { Err(why_not().into()) }
}

fn attached_to(facts: &dyn Facts, volume: &str, droplet: Option<u64>) -> StepResult<()> {
    let seen = facts.volume(volume)?.ok_or("the cloud does not have the volume")?;
    ensure(seen.droplet == droplet, || format!("the cloud says it is attached to {:?}", seen.droplet))
}

fn mounted(machine: &Machine, path: &Path) -> StepResult<String> {
    let line = machine.droplet.mount_at(path).ok_or_else(|| format!("nothing is mounted at {}", path.display()))?;
    let fields: Vec<&str> = line.split(' ').collect();
    let after = fields.iter().position(|field| *field == "-").unwrap_or(fields.len());
    let part = |at: usize| fields.get(at).copied().unwrap_or_default();
    Ok(format!("mounted: {} {} {}", part(after + 2), part(after + 1), part(5)))
}

fn not_mounted(machine: &Machine, path: &Path) -> StepResult<()> {
    match machine.droplet.mount_at(path) {
        None => Ok(()),
        Some(line) => Err(format!("still mounted: {line}").into()),
    }
}

fn fingerprint(client: &Client, machine: &Machine) -> StepResult<String> {
    use do_csi_plugin::proto::csi::{
        ControllerGetCapabilitiesRequest, GetPluginCapabilitiesRequest, GetPluginInfoRequest,
        NodeGetCapabilitiesRequest,
    };

    let info = client.identity.get_plugin_info(&GetPluginInfoRequest::default())?;
    ensure(info.name == "dobs.csi.digitalocean.com", || format!("it calls itself {}", info.name))?;
    let plugin = client.identity.get_plugin_capabilities(&GetPluginCapabilitiesRequest::default())?;
    let controller = client.controller.controller_get_capabilities(&ControllerGetCapabilitiesRequest::default())?;
    let node = client.node.node_get_capabilities(&NodeGetCapabilitiesRequest::default())?;
    let id = super::wait_for(Duration::from_secs(10), || client.node_info().ok()).ok_or("no node info")?;
    ensure(id.node_id == machine.node_id(), || format!("it calls its node {}", id.node_id))?;
    let region = id.accessible_topology.segments.get("region").cloned().unwrap_or_default();
    Ok(format!(
        "{} {}, node {} in {region}, {} volumes at most, capabilities {}+{}+{}",
        info.name,
        info.vendor_version,
        id.node_id,
        id.max_volumes_per_node,
        plugin.capabilities.len(),
        controller.capabilities.len(),
        node.capabilities.len()
    ))
}

/// Whether the story leaves nothing in the cloud but the volume it was given.
pub fn leaves_nothing_attached(sim: &Sim) -> bool {
    sim.volumes().iter().all(|volume| volume.attached_to.is_none())
}
