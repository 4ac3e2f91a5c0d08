//! Controllers without droplets of their own: the built program several times over, on one simulated cloud. Needs no root.
//!
//! Owns the cloud, the directory with sockets and logs, and the settings that make all waits of the programs short.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::plugin::{Launch, Plugin};
use super::wait_for;
use crate::sim::{Action, DropletSpec, Limits, NewVolume, Rules, Sim, SimConfig, Times};

/// The droplets of every fleet.
pub const A: u64 = 3_000_001;
/// The second one.
pub const B: u64 = 3_000_002;
/// The third one.
pub const C: u64 = 3_000_003;

/// How long actions take, unless a test says otherwise.
pub const ACTION: Duration = Duration::from_millis(20);

const TOKEN: &str = "dop_v1_simulated";

/// A cloud with three droplets, and any number of controllers.
#[derive(Debug)]
pub struct ControllerHarness {
    /// The simulated DigitalOcean.
    pub sim: Sim,
    pub home: TempDir,
}

impl ControllerHarness {
    /// Starts a cloud whose actions take this long.
    pub fn with_actions(time: Duration) -> ControllerHarness {
        ControllerHarness::with(Rules { times: Times::actions(time), limits: no_rate_limit(), ..Rules::default() })
    }

    /// Starts a cloud with these rules.
    pub fn with(rules: Rules) -> ControllerHarness {
        ControllerHarness::start(SimConfig { rules, ..SimConfig::default() })
    }

    /// Starts a cloud with these regions; droplets and controllers are in the first of them, fra1.
    pub fn in_regions(regions: &[&str]) -> ControllerHarness {
        let regions = regions.iter().map(|region| (*region).to_owned()).collect();
        let rules = Rules { times: Times::actions(ACTION), limits: no_rate_limit(), ..Rules::default() };
        ControllerHarness::start(SimConfig { rules, regions, ..SimConfig::default() })
    }

    fn start(config: SimConfig) -> ControllerHarness {
        let droplet = |(id, name)| DropletSpec::new(id, name, "fra1");
        let droplets = [(A, "node-a"), (B, "node-b"), (C, "node-c")].map(droplet).to_vec();
        let sim = Sim::start(SimConfig { token: TOKEN.to_owned(), droplets, ..config }).expect("the simulator starts");
        let home = tempfile::Builder::new().prefix("do-csi-").tempdir().expect("a directory");
        ControllerHarness { sim, home }
    }

    /// Starts a controller with this name, or starts it again. Its process ends with the thread that started it.
    pub fn controller(&self, program: &Path, name: &str, args: &[&str]) -> Plugin {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).env("DIGITALOCEAN_ACCESS_TOKEN", TOKEN);
        let own = [format!("--url={}", self.sim.api_url()), "--region=fra1".to_owned(), "--mode=controller".to_owned()];
        let args = own.into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect();
        let home = self.home.path();
        let (socket, log) = (home.join(format!("{name}.sock")), home.join(format!("{name}.log")));
        Launch { command, args, socket, log, container: None }.start().expect("the controller starts")
    }

    /// A command for people, as somebody runs it on a laptop who has a token.
    pub fn command(&self, program: &Path, args: &[&str]) -> Command {
        let devices = self.home.path().join("no devices");
        let mut command = Command::new(program);
        command.args(args).env_clear().env("DIGITALOCEAN_ACCESS_TOKEN", TOKEN);
        command.args([format!("--url={}", self.sim.api_url()), format!("--device-dir={}", devices.display())]);
        command.arg(format!("--endpoint={}", self.home.path().join("no.sock").display()));
        command.args(["--region=fra1", "--metadata-url=http://127.0.0.1:1"]);
        if !args.iter().any(|arg| arg.starts_with("--call-budget")) {
            command.arg("--call-budget=5");
        }
        command
    }

    /// A volume that was there before, by its id.
    pub fn volume(&self, name: &str) -> String {
        self.sim.add_volume(&NewVolume::new(name, 1, "fra1")).expect("the volume is made")
    }

    /// A volume that was there before and is attached to a droplet.
    pub fn volume_on(&self, name: &str, droplet: u64) -> String {
        let id = self.volume(name);
        self.sim.attach(&id, droplet).expect("the attach starts");
        self.rest();
        assert_eq!(self.sim.attached_to(&id), Some(droplet));
        id
    }

    /// Waits until the cloud does nothing by itself any more.
    ///
    /// # Panics
    /// It goes on for too long.
    pub fn rest(&self) {
        let is_running = || self.sim.actions().iter().any(Action::is_running);
        let rested = wait_for(Duration::from_secs(30), || (!is_running()).then_some(()));
        assert!(rested.is_some(), "the cloud never rests: {:?}", self.sim.actions());
    }
}

/// Limits that no test meets by being fast.
pub fn no_rate_limit() -> Limits {
    Limits { requests_per_hour: 10_000_000, requests_per_minute: 10_000_000, ..Limits::default() }
}
