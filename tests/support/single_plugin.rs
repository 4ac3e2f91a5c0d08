//! One plugin by itself: the built program on this machine, with a simulated cloud that has no disks. Needs no root.
//!
//! Owns the directory with everything of it, the cloud, and the program's environment, which is empty but for what a test
//! puts there.

use std::ffi::OsStr;
use std::fs;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::plugin::Launch;
use super::wait_for;
use crate::sim::{Sim, SimConfig};

/// The droplet that the plugin runs on.
pub const DROPLET: u64 = 3_164_444;
/// The token that the cloud takes. No three letters of it are a word that a log would have.
pub const TOKEN: &str = "dop_v1_qzxj7wvkq9zjxq3wvz";
/// The ends that a test waits for come much sooner.
const LIMIT: Duration = Duration::from_secs(20);

/// A place for one plugin, or for several after or beside each other.
#[derive(Debug)]
pub struct SinglePlugin {
    /// The simulated DigitalOcean.
    pub sim: Sim,
    program: PathBuf,
    home: TempDir,
}

impl SinglePlugin {
    /// Starts a cloud with one droplet and no volumes.
    pub fn new(program: &str) -> SinglePlugin {
        SinglePlugin::with(program, SimConfig::default())
    }

    /// Starts a cloud.
    pub fn with(program: &str, config: SimConfig) -> SinglePlugin {
        let sim = Sim::start(SimConfig { token: TOKEN.to_owned(), ..config }).expect("the simulator starts");
        let home = tempfile::Builder::new().prefix("do-csi-").tempdir().expect("a directory");
        SinglePlugin { sim, program: PathBuf::from(program), home }
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Where [`SinglePlugin::launch`] puts the socket.
    pub fn socket(&self) -> PathBuf {
        self.path("csi.sock")
    }

    /// The program with nothing in its environment and no arguments, in the test's directory.
    pub fn command(&self) -> Command {
        let mut command = bare(&self.program);
        command.current_dir(self.home.path());
        command
    }

    /// Arguments that lead to the simulated cloud.
    pub fn cloud_args(&self) -> Vec<String> {
        vec![
            format!("--url={}", self.sim.api_url()),
            format!("--metadata-url={}", self.sim.metadata_url(DROPLET)),
            format!("--device-dir={}", self.sim.device_dir(DROPLET).display()),
        ]
    }

    /// A plugin with controller and node service.
    pub fn launch(&self, args: &[&str]) -> Launch {
        let mut launch = self.launch_without_token(args);
        launch.command.env("DIGITALOCEAN_ACCESS_TOKEN", TOKEN);
        launch
    }

    /// A plugin that is given no token.
    pub fn launch_without_token(&self, args: &[&str]) -> Launch {
        let args = self.cloud_args().into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect();
        Launch { command: self.command(), args, socket: self.socket(), log: self.path("plugin.log"), container: None }
    }

    /// Names of everything in the test's directory.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.home.path()).expect("the directory is there");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// A program with an empty environment, killed when the test that started it is gone.
pub fn bare(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::null());
    command
}

/// Runs a command that has to end by itself, and gives what it printed.
pub fn run_to_end(mut command: Command) -> Result<Output> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if wait_for(LIMIT, || child.try_wait().ok().flatten()).is_none() {
        child.kill()?;
        let output = child.wait_with_output()?;
        return Err(Error::other(format!("still running; printed {}", String::from_utf8_lossy(&output.stderr))));
    }
    child.wait_with_output()
}

/// Waits for the end of a program.
pub fn end_of(child: &mut Child) -> Option<ExitStatus> {
    wait_for(LIMIT, || child.try_wait().ok().flatten())
}

/// Waits until something is so.
///
/// # Panics
/// It is not so in time.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    assert!(wait_for(LIMIT, || is_so().then_some(())).is_some(), "in vain: {what}");
}
