//! A cloud with some droplets on this machine, and plugins on them: the place in which the story is played.
//!
//! Owns the simulated DigitalOcean, the droplets' namespaces, a directory for everything on disk, and the order in which all
//! of it is taken down.

use std::error::Error;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::docker::Engine;
use super::droplet::Droplet;
use super::guest;
use super::guest::{Guest, Images};
use super::network;
use super::plugin::{Container, Launch, Plugin};
use crate::sim::{Backing, DropletSpec, Sim, SimConfig};

/// The token that the simulated cloud takes.
pub const TOKEN: &str = "dop_v1_simulated";

/// What is started as the plugin.
#[derive(Debug, Clone)]
pub enum Program {
    /// The built program itself.
    Binary(PathBuf),
    /// A container of this image, on a droplet that has Docker.
    Image(String),
}

impl From<&Program> for Program {
    fn from(program: &Program) -> Program {
        program.clone()
    }
}

impl From<&Path> for Program {
    fn from(path: &Path) -> Program {
        Program::Binary(path.to_owned())
    }
}

/// One droplet with everything that belongs to it.
#[derive(Debug)]
pub struct Machine {
    /// Its number, which is its CSI node id.
    pub id: u64,
    /// Its host name.
    pub name: String,
    /// Its Docker Engine, if it has one.
    pub engine: Option<Engine>,
    /// Its namespaces.
    pub droplet: Droplet,
    home: PathBuf,
    token: String,
    args: Vec<String>,
}

impl Machine {
    /// The machine that this runs on, which is a droplet.
    pub fn here(id: u64, home: &Path, token: &str, args: Vec<String>) -> Machine {
        let (name, token) = ("this droplet".to_owned(), token.to_owned());
        Machine { id, name, engine: None, droplet: Droplet::here(), home: home.to_owned(), token, args }
    }

    /// The CSI node id.
    pub fn node_id(&self) -> String {
        self.id.to_string()
    }

    /// Where Nomad would have a volume staged.
    pub fn staging(&self, volume: &str) -> PathBuf {
        self.home.join("staging").join(volume).join("rw-file-system-single-node-writer")
    }

    /// Where Nomad would have a volume shown to an allocation.
    pub fn target(&self, alloc: &str, volume: &str) -> PathBuf {
        self.home.join("per-alloc").join(alloc).join(volume).join("rw-file-system-single-node-writer")
    }

    /// The socket of this droplet's plugin.
    pub fn socket(&self) -> PathBuf {
        self.home.join("csi.sock")
    }

    /// The directory that is this droplet's own.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The lines of the mount table, without the mounts that a Docker Engine has for its containers, and without those that other
    /// tests had when the droplet began, which go with their directories.
    pub fn mounts(&self) -> Vec<String> {
        let (docker, others) = (self.home.join("docker"), std::env::temp_dir());
        let own = self.home.parent().unwrap_or(&self.home);
        let is_own =
            |point: &Path| !point.starts_with(&docker) && (point.starts_with(own) || !point.starts_with(&others));
        let is_shown = |line: &String| line.split(' ').nth(4).is_none_or(|point| is_own(Path::new(point)));
        self.droplet.mounts().into_iter().filter(is_shown).collect()
    }

    /// Makes the directories that Nomad makes before it calls: the staging path itself, and the target's parent.
    pub fn prepare(&self, staging: &Path, target: &Path) -> std::io::Result<()> {
        self.droplet.make_folder(staging)?;
        target.parent().map_or(Ok(()), |parent| self.droplet.make_folder(parent))
    }

    /// Starts the plugin on this droplet. On a virtual machine it is the program that the machine was made with.
    pub fn start(&self, program: impl Into<Program>) -> std::io::Result<Plugin> {
        match self.droplet.guest() {
            Some(guest) => Plugin::start_inside(guest, &self.args, &self.token, &self.socket()),
            None => self.launch(program).start(),
        }
    }

    /// How the plugin is started on this droplet.
    ///
    /// # Panics
    /// An image is to be started on a droplet without Docker.
    pub fn launch(&self, program: impl Into<Program>) -> Launch {
        let (mut command, container) = match program.into() {
            Program::Binary(path) => (self.droplet.command(&path), None),
            Program::Image(image) => self.docker_run(&image),
        };
        command.env("DIGITALOCEAN_ACCESS_TOKEN", &self.token);
        let log = self.home.join("plugin.log");
        Launch { command, args: self.args.clone(), socket: self.socket(), log, container }
    }

    /// The container as Nomad makes it for a privileged `csi_plugin` task: a root that nobody writes to, devices, and directories whose mounts
    /// reach the host.
    fn docker_run(&self, image: &str) -> (std::process::Command, Option<Container>) {
        let engine = self.engine.as_ref().expect("a droplet with Docker");
        let (home, id_file) = (self.home.display(), self.home.join("container"));
        // docker writes the id only into a new file.
        drop(fs::remove_file(&id_file));
        let mut command = engine.docker();
        command
            .args(["run", "--rm", "--privileged", "--read-only", "--tmpfs=/run", "--volume=/dev:/dev"])
            .arg("--env=DIGITALOCEAN_ACCESS_TOKEN")
            .arg(format!("--volume={home}:{home}:rshared"))
            .arg(format!("--env=CSI_ENDPOINT=unix://{}", self.socket().display()))
            .arg(format!("--add-host={}", network::api_host()))
            .arg("--health-interval=1s")
            .arg(format!("--cidfile={}", id_file.display()))
            .arg(image);
        (command, Some(Container { engine: engine.address(), id_file }))
    }
}

/// The cloud and its droplets.
#[derive(Debug)]
pub struct Cloud {
    // In the order in which they have to go: droplets let go of the devices, the simulator of the files.
    /// The droplets.
    pub machines: Vec<Machine>,
    /// The simulated DigitalOcean.
    pub sim: Sim,
    root: TempDir,
}

impl Cloud {
    /// Starts a cloud with droplets of these names, with loop devices behind its volumes; needs root.
    pub fn start(config: SimConfig, names: &[&str]) -> Result<Cloud, Box<dyn Error>> {
        let spec = |(number, name)| DropletSpec::new(3_000_000 + number, name, "fra1");
        let droplets: Vec<DropletSpec> = (1_u64..).zip(names.iter().copied()).map(spec).collect();
        let (sim, root) = start_sim(SimConfig { droplets: droplets.clone(), ..config })?;
        let machine = |spec: &DropletSpec| {
            let args = vec![
                format!("--url={}", sim.api_url()),
                format!("--metadata-url={}", sim.metadata_url(spec.id)),
                format!("--device-dir={}", sim.device_dir(spec.id).display()),
            ];
            machine(root.path(), spec, Droplet::boot()?, args)
        };
        let machines = droplets.iter().map(machine).collect::<Result<_, _>>()?;
        Ok(Cloud { machines, sim, root })
    }

    /// The same with a network, an address of its own for each droplet, and devices and metadata service where a real
    /// droplet has them. Needs a network namespace of its own.
    pub fn start_with_network(config: SimConfig, names: &[&str]) -> Result<Cloud, Box<dyn Error>> {
        network::build()?;
        let spec = |(number, name)| DropletSpec {
            address: Some(network::address(number)),
            ..DropletSpec::new(3_000_000 + u64::from(number), name, "fra1")
        };
        let droplets: Vec<DropletSpec> = (1_u8..).zip(names.iter().copied()).map(spec).collect();
        let config = SimConfig { droplets: droplets.clone(), listen: network::listen(), ..config };
        let (sim, root) = start_sim(config)?;
        let mut machines = Vec::new();
        for (number, spec) in (1..).zip(&droplets) {
            let droplet = Droplet::boot_with_network()?;
            network::connect(&droplet, number)?;
            show_devices(&droplet, &sim.device_dir(spec.id))?;
            machines.push(machine(root.path(), spec, droplet, vec![format!("--url={}", network::api_url_by_name())])?);
        }
        Ok(Cloud { machines, sim, root })
    }

    /// The same with droplets that are virtual machines, each with a volume's disk as a SCSI disk. None has power yet.
    pub fn start_machines(
        config: SimConfig,
        names: &[&str],
        base: &Path,
        program: &Path,
    ) -> Result<Cloud, Box<dyn Error>> {
        let spec = |(number, name)| DropletSpec {
            address: Some(Ipv4Addr::new(127, 0, 0, 10 + number).into()),
            ..DropletSpec::new(3_000_000 + u64::from(number), name, "fra1")
        };
        let droplets: Vec<DropletSpec> = (1_u8..).zip(names.iter().copied()).map(spec).collect();
        let (sim, root) =
            start_sim_with(SimConfig { droplets: droplets.clone(), ..config }, |dir| Backing::Machines { dir })?;
        let images = Images::make(base, program, root.path())?;
        let mut machines = Vec::new();
        for spec in &droplets {
            let guest = Guest::new(
                guest::Spec {
                    name: spec.name.clone(),
                    monitor: sim.monitor(spec.id),
                    serial: root.path().join(format!("{}.serial", spec.name)),
                    metadata: sim.address(),
                    address: spec.address.unwrap_or(Ipv4Addr::LOCALHOST.into()),
                },
                &images,
            );
            let args = vec![format!("--url={}", Guest::url(sim.address().port()))];
            let droplet = Droplet::machine(Arc::new(guest));
            // The directory that the doors of `tests/vm/guest` know.
            let (name, home, token) = (spec.name.clone(), PathBuf::from("/var/lib/droplet"), TOKEN.to_owned());
            machines.push(Machine { id: spec.id, name, engine: None, droplet, home, token, args });
        }
        Ok(Cloud { machines, sim, root })
    }

    /// Starts a Docker Engine on every droplet and gives it these images, archives as `docker save` makes them.
    pub fn start_engines(&mut self, archives: &[PathBuf]) -> Result<(), Box<dyn Error>> {
        for machine in &mut self.machines {
            let engine = Engine::start(&machine.droplet, &machine.home.join("docker"))?;
            archives.iter().try_for_each(|archive| engine.load(archive))?;
            machine.engine = Some(engine);
        }
        Ok(())
    }

    /// The directory for everything of this cloud.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Takes everything down and tells whether anything was left.
    pub fn close(mut self) -> Result<(), Box<dyn Error>> {
        let engines = self.machines.iter_mut().filter_map(|machine| machine.engine.take());
        let stopped = engines.map(Engine::stop).collect::<Result<Vec<()>, _>>();
        drop(self.machines);
        self.sim.close()?;
        self.root.close()?;
        stopped?;
        Ok(())
    }
}

fn start_sim(config: SimConfig) -> Result<(Sim, TempDir), Box<dyn Error>> {
    start_sim_with(config, |dir| Backing::Loop { dir })
}

fn start_sim_with(
    config: SimConfig,
    backing: impl FnOnce(PathBuf) -> Backing,
) -> Result<(Sim, TempDir), Box<dyn Error>> {
    let root = tempfile::Builder::new().prefix("do-csi-").tempdir()?;
    let dir = root.path().join("cloud");
    fs::create_dir_all(&dir)?;
    let sim = Sim::start(SimConfig { token: TOKEN.to_owned(), backing: backing(dir), ..config })?;
    Ok((sim, root))
}

fn machine(root: &Path, spec: &DropletSpec, droplet: Droplet, args: Vec<String>) -> std::io::Result<Machine> {
    let home = root.join(&spec.name);
    fs::create_dir_all(&home)?;
    let (name, token) = (spec.name.clone(), TOKEN.to_owned());
    Ok(Machine { id: spec.id, name, engine: None, droplet, home, token, args })
}

/// Lets a droplet see its own volumes' links where udev makes them, and nothing of the machine below it.
fn show_devices(droplet: &Droplet, links: &Path) -> std::io::Result<()> {
    let script = "mkdir -p /dev/disk/by-id && mount --bind \"$0\" /dev/disk/by-id";
    let status = droplet.command(Path::new("sh")).args(["-c", script]).arg(links).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other("the volumes' links cannot be shown")) }
}
