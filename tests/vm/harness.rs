//! What a case works with: two machines, a plugin on each, volumes, and disks that no cloud knows.
//!
//! Owns the cloud with its machines, and the state in which a case has to leave them. The machines can be namespaces with
//! loop devices instead, for cases that ask for nothing else.

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use do_csi_plugin::id::VolumeName;
use do_csi_plugin::request::publish_context::ContextKeys;
use do_csi_plugin::size::Gib;
use grpcio::RpcStatusCode;

use crate::sim::qmp::{Disk, Monitor};
use crate::sim::{NewVolume, Rules, SimConfig, Times};
use crate::support::client::{Client, Outcome, Volume};
use crate::support::cloud::{Cloud, Machine, Program};
use crate::support::guest::{Accelerator, Guest};
use crate::support::plugin::Plugin;
use crate::support::story::{StepResult, ensure};
use crate::support::wait_for;

/// How long anything may take that a machine does by itself.
pub const LIMIT: Duration = Duration::from_secs(60);
/// What one GiB is.
pub const GIB: u64 = 1 << 30;
/// The first machine.
pub const A: usize = 0;
/// The second one.
pub const B: usize = 1;

/// How long an action of the cloud takes.
const ACTION: Duration = Duration::from_millis(300);
/// The prefix of the links that udev makes for volumes.
const LINK: &str = "/dev/disk/by-id/scsi-0DO_Volume_";

/// A volume as a case knows it.
#[derive(Debug, Clone)]
pub struct Vol {
    /// What Nomad keeps of it.
    pub csi: Volume,
    /// Its name at DigitalOcean.
    pub name: String,
}

impl Vol {
    /// Its link, on a machine that has it.
    pub fn link(&self) -> String {
        format!("{LINK}{}", self.name)
    }
}

/// Asserts that a call was refused with this code and in these words.
pub fn refused<T>(outcome: Outcome<T>, code: RpcStatusCode, words: &[&str]) -> StepResult<()> {
    let refusal = outcome.err().ok_or_else(|| format!("not refused; expected {code:?} {words:?}"))?;
    let is_right = refusal.code == code && words.iter().all(|word| refusal.message.contains(word));
    ensure(is_right, || format!("expected {code:?} {words:?}, not {refusal}"))
}

/// Machines, and what belongs to them.
#[derive(Debug)]
pub struct VmHarness {
    // Before the cloud: a plugin is ended in a machine that runs.
    plugins: Vec<Option<Plugin>>,
    program: PathBuf,
    accelerator: Accelerator,
    /// The cloud.
    pub cloud: Cloud,
    count: u32,
    plugged: Vec<(usize, String)>,
}

/// The virtual machine that a machine is.
pub fn guest(machine: &Machine) -> &Arc<Guest> {
    machine.droplet.guest().expect("all machines of a yard are virtual")
}

/// The droplets of every yard.
const NAMES: [&str; 2] = ["node-a", "node-b"];

fn config() -> SimConfig {
    SimConfig { rules: Rules { times: Times::actions(ACTION), ..Rules::default() }, ..SimConfig::default() }
}

impl VmHarness {
    /// Takes namespaces and loop devices for machines.
    pub fn on_loop_devices(program: &Path) -> Result<VmHarness, Box<dyn Error>> {
        Ok(VmHarness::around(Cloud::start(config(), &NAMES)?, program, Accelerator::Emulation))
    }

    fn around(cloud: Cloud, program: &Path, accelerator: Accelerator) -> VmHarness {
        let plugins = cloud.machines.iter().map(|_| None).collect();
        VmHarness { plugins, program: program.to_owned(), accelerator, cloud, count: 0, plugged: Vec::new() }
    }

    /// Boots two machines.
    pub fn open(base: &Path, program: &Path) -> Result<VmHarness, Box<dyn Error>> {
        let cloud = Cloud::start_machines(config(), &NAMES, base, program)?;
        let guests: Vec<&Arc<Guest>> = cloud.machines.iter().map(guest).collect();
        // Hardware help may be offered and not work, which only an attempt shows.
        let first = guests.first().ok_or("no machine")?;
        let has_kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
        let works = has_kvm && first.power_on(Accelerator::Kvm, "").and_then(|()| first.await_up()).is_ok();
        let accelerator = if works { Accelerator::Kvm } else { Accelerator::Emulation };
        let rest = if works { &guests[1..] } else { &guests };
        rest.iter().try_for_each(|guest| guest.power_on(accelerator, ""))?;
        rest.iter().try_for_each(|guest| guest.await_up())?;
        println!("two machines are up, by {accelerator:?}");
        Ok(VmHarness::around(cloud, program, accelerator))
    }

    /// All machines.
    pub fn machines(&self) -> &[Machine] {
        &self.cloud.machines
    }

    /// One of them.
    pub fn machine(&self, at: usize) -> &Machine {
        &self.cloud.machines[at]
    }

    /// The most memory that the machines have taken together, in MB; none where they are namespaces.
    pub fn peak_memory_mb(&self) -> u64 {
        let kilobytes = self.machines().iter().filter_map(|machine| machine.droplet.guest()?.peak_memory_kb());
        kilobytes.sum::<u64>() / 1000
    }

    /// Boots a machine again that has no power, with these words more for its kernel.
    pub fn boot(&self, at: usize, words: &str) -> StepResult<()> {
        let guest = guest(self.machine(at));
        guest.power_on(self.accelerator, words)?;
        Ok(guest.await_up()?)
    }

    /// Cuts a machine off from power.
    pub fn cut_power(&mut self, at: usize) {
        guest(self.machine(at)).cut_power();
        self.plugins[at] = None;
    }

    /// Runs a script on a machine.
    pub fn sh(&self, at: usize, script: &str) -> StepResult<String> {
        Ok(self.machine(at).droplet.sh(script)?)
    }

    /// Waits until a script succeeds on a machine.
    pub fn until(&self, at: usize, script: &str) -> StepResult<String> {
        let seen = wait_for(LIMIT, || self.machine(at).droplet.sh(script).ok());
        seen.ok_or_else(|| format!("in vain on {}: {script}", self.machine(at).name).into())
    }

    /// A client of a machine's plugin, which is started if it does not run.
    pub fn client(&mut self, at: usize) -> StepResult<Client> {
        if self.plugins[at].is_none() {
            self.plugins[at] = Some(self.machine(at).start(self.program.as_path())?);
        }
        let plugin = self.plugins[at].as_ref().ok_or("no plugin")?;
        Ok(plugin.client.clone())
    }

    /// Kills a machine's plugin without warning.
    pub fn kill(&self, at: usize) -> StepResult<()> {
        self.sh(at, &format!("kill -9 {}", self.plugin_pid(at)?)).map(drop)
    }

    /// Starts a machine's plugin anew, after it was killed in the machine.
    pub fn restart(&mut self, at: usize) -> StepResult<Client> {
        if let Some(mut plugin) = self.plugins[at].take() {
            plugin.wait()?;
        }
        self.client(at)
    }

    /// The program that is tested.
    pub fn program(&self) -> Program {
        self.program.as_path().into()
    }

    /// The process id of a machine's plugin, in the machine.
    pub fn plugin_pid(&self, at: usize) -> StepResult<u32> {
        Ok(self.plugins[at].as_ref().ok_or("no plugin runs")?.pid())
    }

    /// A new volume of 1 GiB that the cloud knows, to be used with a file system.
    pub fn volume(&self, name: &str, fs: &str) -> StepResult<Vol> {
        let id = self.cloud.sim.add_volume(&NewVolume::new(name, 1, "fra1"))?;
        Ok(Vol { csi: Volume::mounted(&id, fs), name: name.to_owned() })
    }

    /// A volume of 1 GiB that no cloud knows, as a node that is told of it by a controller.
    pub fn told(&mut self, name: &str, fs: &str) -> StepResult<Vol> {
        self.count += 1;
        let id = format!("506f78a4-0000-4000-8000-{:012}", self.count);
        let mut csi = Volume::mounted(&id, fs);
        csi.publish_context =
            ContextKeys::new("dobs.csi.digitalocean.com").write(&VolumeName::parse(name)?, Gib(1), false);
        Ok(Vol { csi, name: name.to_owned() })
    }

    /// A disk of 1 GiB as a volume of this name has one; nothing is on it and no machine has it.
    pub fn disk(&mut self, name: &str) -> StepResult<Disk> {
        self.count += 1;
        let file = self.cloud.root().join(format!("disk-{}", self.count));
        File::create(&file)?.set_len(GIB)?;
        Ok(Disk::volume(&format!("disk-{}", self.count), &file, name))
    }

    /// The monitor of a machine.
    pub fn monitor(&self, at: usize) -> Monitor {
        guest(self.machine(at)).monitor()
    }

    /// Lets a machine see a disk, and waits until udev has seen it too.
    pub fn plug(&mut self, at: usize, disk: &Disk) -> StepResult<()> {
        self.monitor(at).plug(disk)?;
        self.plugged.push((at, disk.id.clone()));
        let has_name = format!("grep -lF -- {} /sys/block/sd*/device/vpd_pg83 && udevadm settle", disk.name);
        self.until(at, &has_name).map(drop)
    }

    /// Pulls a disk out.
    pub fn pull(&mut self, disk: &Disk) -> StepResult<()> {
        let at = self.plugged.iter().position(|(_, id)| *id == disk.id).ok_or("it is not plugged in")?;
        let (machine, id) = self.plugged.remove(at);
        Ok(self.monitor(machine).pull(&id)?)
    }

    /// Where a volume is staged.
    pub fn staging(&self, at: usize, vol: &Vol) -> PathBuf {
        self.machine(at).staging(&vol.name)
    }

    /// Where it is published.
    pub fn target(&self, at: usize, vol: &Vol) -> PathBuf {
        self.machine(at).target("alloc", &vol.name)
    }

    /// Makes the directories that Nomad makes, and stages a volume.
    pub fn stage(&mut self, at: usize, vol: &Vol) -> StepResult<Outcome<()>> {
        let (staging, target) = (self.staging(at, vol), self.target(at, vol));
        self.machine(at).prepare(&staging, &target)?;
        Ok(self.client(at)?.stage(&vol.csi, &staging))
    }

    /// Unstages it.
    pub fn unstage(&mut self, at: usize, vol: &Vol) -> StepResult<()> {
        let staging = self.staging(at, vol);
        self.client(at)?.unstage(&vol.csi.id, &staging)?;
        Ok(())
    }

    /// Publishes a staged volume.
    pub fn publish(&mut self, at: usize, vol: &Vol) -> StepResult<()> {
        let (staging, target) = (self.staging(at, vol), self.target(at, vol));
        Ok(self.client(at)?.publish(&vol.csi, &staging, &target, false)?)
    }

    /// Attaches a volume of the cloud, stages and publishes it.
    pub fn up(&mut self, at: usize, vol: &mut Vol) -> StepResult<()> {
        let droplet = self.machine(at).node_id();
        self.client(at)?.controller_publish(&mut vol.csi, &droplet)?;
        self.stage(at, vol)??;
        self.publish(at, vol)
    }

    /// Unpublishes and unstages it.
    pub fn off(&mut self, at: usize, vol: &Vol) -> StepResult<()> {
        let target = self.target(at, vol);
        self.client(at)?.unpublish(&vol.csi.id, &target)?;
        self.unstage(at, vol)
    }

    /// The same, and detaches it.
    pub fn down(&mut self, at: usize, vol: &Vol) -> StepResult<()> {
        self.off(at, vol)?;
        let droplet = self.machine(at).node_id();
        Ok(self.client(at)?.controller_unpublish(&vol.csi.id, &droplet)?)
    }

    /// Writes a file on a published volume and makes sure that it is on the disk.
    pub fn put(&self, at: usize, vol: &Vol, name: &str, text: &str) -> StepResult<()> {
        let file = self.target(at, vol).join(name);
        self.machine(at).droplet.write(&file, text)?;
        self.sh(at, &format!("sync {0} {1}", file.display(), self.target(at, vol).display())).map(drop)
    }

    /// Asserts what a file on a published volume says.
    pub fn says(&self, at: usize, vol: &Vol, name: &str, want: &str) -> StepResult<()> {
        let text = self.machine(at).droplet.read(&self.target(at, vol).join(name))?;
        ensure(text == want, || format!("{name} says {text:?} and not {want:?}"))
    }

    /// Asserts that a disk is mounted at a volume's staging path which carries the volume's name. Loop devices carry none.
    pub fn is_on_its_disk(&self, at: usize, vol: &Vol) -> StepResult<()> {
        if self.machine(at).droplet.guest().is_none() {
            let line = self.machine(at).droplet.mount_at(&self.staging(at, vol));
            return line.map(drop).ok_or_else(|| format!("{} is not mounted", vol.name).into());
        }
        let staging = self.staging(at, vol);
        let script = format!("cat /sys/dev/block/$(mountpoint -d {})/device/vpd_pg83", staging.display());
        let page = self.sh(at, &script)?;
        ensure(page.contains(&vol.name), || format!("{} is mounted from the disk {page:?}", vol.name))
    }

    /// Asserts that nothing of the plugin's is mounted on a machine.
    pub fn has_no_mounts(&self, at: usize) -> StepResult<()> {
        let home = self.machine(at).home().display().to_string();
        let left: Vec<String> = self.machine(at).mounts().into_iter().filter(|line| line.contains(&home)).collect();
        ensure(left.is_empty(), || format!("still mounted on {}: {left:?}", self.machine(at).name))
    }

    /// Asserts that a case has left nothing, ends the plugins and takes its disks out.
    pub fn tidy(&mut self) -> StepResult<()> {
        for plugin in &mut self.plugins {
            plugin.take().map_or(Ok(()), |plugin| plugin.stop().map(drop))?;
        }
        for (at, id) in std::mem::take(&mut self.plugged) {
            self.monitor(at).pull(&id)?;
        }
        self.cloud.sim.settle()?;
        for at in [A, B] {
            self.has_no_mounts(at)?;
            if self.machine(at).droplet.guest().is_some() {
                self.until(at, "! ls -d /sys/block/sd* 2>/dev/null && udevadm settle")?;
                self.sh(at, "rm -rf /var/lib/droplet/*")?;
            }
        }
        let attached = self.cloud.sim.volumes().into_iter().filter(|volume| volume.attached_to.is_some());
        let attached: Vec<String> = attached.map(|volume| volume.name).collect();
        ensure(attached.is_empty(), || format!("still attached: {attached:?}"))
    }

    /// Ends the machines and asserts that nothing is left.
    pub fn close(self) -> Result<(), Box<dyn Error>> {
        drop(self.plugins);
        self.cloud.close()
    }
}
