//! A Docker Engine on a droplet, as Nomad's clients have one.
//!
//! Owns the engine's process and its directory. Containers that are left when it is stopped are removed with it.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::droplet::Droplet;
use super::wait_for;

const START_LIMIT: Duration = Duration::from_secs(60);

/// Runs runc without the one capability that `--privileged` asks for and that some machines withhold from everything on
/// them, so that a privileged container gets all that the machine itself has. What a container may do is in the OCI
/// bundle's `config.json`, and for a command that is run in it later in a file of its own.
const REDUCED_RUNC: &str = r#"#!/bin/sh
option=
for word; do
    case $option in
        --bundle) settings=$word/config.json ;;
        --process) settings=$word ;;
    esac
    option=$word
done
[ -z "${settings-}" ] || sed -i 's/"CAP_SYS_RESOURCE",//g' "$settings"
exec runc "$@"
"#;
/// Source: linux/capability.h, CAP_SYS_RESOURCE.
const SYS_RESOURCE: u32 = 24;

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    process: Child,
    socket: PathBuf,
    directory: PathBuf,
}

impl Engine {
    /// Starts an engine in a droplet, with an empty store below this directory, and waits until it answers.
    pub fn start(droplet: &Droplet, directory: &Path) -> Result<Engine> {
        std::fs::create_dir_all(directory)?;
        let (socket, log) = (directory.join("docker.sock"), std::fs::File::create(directory.join("log"))?);
        // With a containerd of the machine in sight, dockerd would use that, and containers would be outside of the droplet.
        let script = "mkdir -p /run/containerd && mount -t tmpfs containerd /run/containerd && exec dockerd \"$@\"";
        let mut command = droplet.command(Path::new("sh"));
        command
            .args(["-c", script, "dockerd"])
            .arg(format!("--host=unix://{}", socket.display()))
            .arg(format!("--data-root={}", directory.join("data").display()))
            .arg(format!("--exec-root={}", directory.join("run").display()))
            .arg(format!("--pidfile={}", directory.join("pid").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if !has_capability(SYS_RESOURCE) {
            let runtime = directory.join("runc");
            write_program(&runtime, REDUCED_RUNC)?;
            command.arg(format!("--add-runtime=reduced={}", runtime.display())).arg("--default-runtime=reduced");
        }
        let engine = Engine { process: command.spawn()?, socket, directory: directory.to_owned() };
        let answers = || engine.docker().arg("version").output().is_ok_and(|output| output.status.success());
        wait_for(START_LIMIT, || answers().then_some(())).ok_or_else(|| {
            let log = std::fs::read_to_string(engine.directory.join("log")).unwrap_or_default();
            Error::other(format!("no Docker Engine: {log}"))
        })?;
        Ok(engine)
    }

    /// A `docker` command for this engine, without arguments.
    pub fn docker(&self) -> Command {
        let mut command = Command::new("docker");
        command.arg(format!("--host={}", self.address()));
        command
    }

    /// Where it listens, as clients write it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Runs `docker` with these arguments and gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.docker().args(arguments).output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(Error::other(format!("docker {}: {}", arguments.join(" "), complaint.trim())))
    }

    /// Takes the images of an archive that `docker save` made.
    pub fn load(&self, archive: &Path) -> Result<()> {
        self.run(&["load", "--quiet", "--input", &archive.display().to_string()]).map(drop)
    }

    /// Removes all containers and stops the engine.
    ///
    /// # Errors
    /// A container cannot be removed, or the engine cannot be stopped.
    pub fn stop(mut self) -> Result<()> {
        let left = self.run(&["ps", "--all", "--quiet"])?;
        let removed = left.lines().try_for_each(|id| self.run(&["rm", "--force", id]).map(drop));
        super::plugin::terminate(&mut self.process)?;
        removed
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // On SIGTERM it ends its containers and unmounts what it has mounted; killed, it would leave both behind.
        let _status = super::plugin::terminate(&mut self.process);
    }
}

/// Whether this process, and so everything that it starts, may ever have a capability.
fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap_or_default();
    u64::from_str_radix(bounding.trim(), 16).is_ok_and(|set| set >> number & 1 == 1)
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}
