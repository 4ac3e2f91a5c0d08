//! A cloud with two droplets on this machine, and plugins on them: the place in which the story is played.
//!
//! Owns the simulated DigitalOcean, the droplets' mount namespaces, a folder for everything on disk, and the order in
//! which all of it is taken down.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::droplet::Droplet;
use super::plugin::{Launch, Plugin};
use crate::sim::{Backing, DropletSpec, Sim, SimConfig};

/// The token that the simulated cloud takes.
const TOKEN: &str = "dop_v1_simulated";

/// One droplet with everything that belongs to it.
#[derive(Debug)]
pub struct Machine {
    /// Its number, which is its CSI node id.
    pub id: u64,
    /// Its host name.
    pub name: String,
    /// Its mount namespace.
    pub droplet: Droplet,
    home: PathBuf,
    args: Vec<String>,
}

impl Machine {
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

    /// The folder that is this droplet's own.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Makes the folders that Nomad makes before it calls: the staging path itself, and the target's parent.
    pub fn prepare(&self, staging: &Path, target: &Path) -> std::io::Result<()> {
        fs::create_dir_all(staging)?;
        target.parent().map_or(Ok(()), fs::create_dir_all)
    }

    /// Starts the plugin on this droplet.
    pub fn start(&self, program: &Path) -> std::io::Result<Plugin> {
        self.launch(program).start()
    }

    /// How the plugin is started on this droplet.
    pub fn launch(&self, program: &Path) -> Launch {
        let mut command = self.droplet.command(program);
        command.env("DIGITALOCEAN_ACCESS_TOKEN", TOKEN);
        Launch { command, args: self.args.clone(), socket: self.socket(), log: self.home.join("plugin.log") }
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
        let root = tempfile::Builder::new().prefix("do-csi-").tempdir()?;
        let backing = root.path().join("cloud");
        fs::create_dir_all(&backing)?;
        let droplets: Vec<DropletSpec> =
            (1_u64..).zip(names).map(|(number, name)| DropletSpec::new(3_000_000 + number, name, "fra1")).collect();
        let sim = Sim::start(SimConfig {
            token: TOKEN.to_owned(),
            droplets: droplets.clone(),
            backing: Backing::Loop { dir: backing },
            ..config
        })?;
        let machine = |spec: &DropletSpec| machine(&sim, root.path(), spec);
        let machines = droplets.iter().map(machine).collect::<Result<_, _>>()?;
        Ok(Cloud { machines, sim, root })
    }

    /// Takes everything down and tells whether anything was left.
    pub fn close(self) -> Result<(), Box<dyn Error>> {
        drop(self.machines);
        self.sim.close()?;
        self.root.close()?;
        Ok(())
    }
}

fn machine(sim: &Sim, root: &Path, spec: &DropletSpec) -> std::io::Result<Machine> {
    let home = root.join(&spec.name);
    fs::create_dir_all(&home)?;
    let args = vec![
        format!("--url={}", sim.api_url()),
        format!("--metadata-url={}", sim.metadata_url(spec.id)),
        format!("--device-dir={}", sim.device_dir(spec.id).display()),
    ];
    Ok(Machine { id: spec.id, name: spec.name.clone(), droplet: Droplet::boot()?, home, args })
}
