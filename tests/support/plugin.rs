//! The built program as a process, of its own or in a container: started, watched, killed.
//!
//! Owns the child process and its log file. Dropping it kills it.

use std::fs::{self, File};
use std::io::{Error, Result};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::Client;
use super::wait_for;

/// How long the program may take to answer its first call before a test gives up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running plugin.
#[derive(Debug)]
pub struct Plugin {
    /// The program itself, or the `docker run` that ends when the container does.
    child: Child,
    pid: u32,
    log: PathBuf,
    /// From exec to the first answered Probe.
    pub ready_after: Duration,
    /// A client on its socket.
    pub client: Client,
}

/// How to start a plugin.
#[derive(Debug)]
pub struct Launch {
    /// The command, without arguments; from [`super::droplet::Droplet::command`] or a bare [`Command`].
    pub command: Command,
    /// Its arguments besides the endpoint.
    pub args: Vec<String>,
    /// Where its socket is to be.
    pub socket: PathBuf,
    /// Where its log goes; added to when there is one.
    pub log: PathBuf,
    /// The container in which the program is, when the command is the `docker run` that makes it.
    pub container: Option<Container>,
}

/// A container that `docker run` makes.
#[derive(Debug, Clone)]
pub struct Container {
    /// The engine's address.
    pub engine: String,
    /// Where `docker run` writes the container's id.
    pub id_file: PathBuf,
}

impl Container {
    /// The process id of the program in it, as seen from outside.
    fn pid(&self) -> Result<u32> {
        let id = fs::read_to_string(&self.id_file)?;
        let host = format!("--host={}", self.engine);
        let arguments = [host.as_str(), "inspect", "--format={{.State.Pid}}", id.trim()];
        let printed = Command::new("docker").args(arguments).output()?.stdout;
        String::from_utf8_lossy(&printed).trim().parse().map_err(Error::other)
    }
}

impl Launch {
    /// Starts the program and waits until it answers.
    pub fn start(self) -> Result<Plugin> {
        let started = Instant::now();
        let (socket, container) = (self.socket.clone(), self.container.clone());
        let (mut child, log) = self.spawn()?;
        // gRPC's client waits 100 ms before it tries a missing socket again; that would be measured as start time.
        wait_for(START_LIMIT, || UnixStream::connect(&socket).is_ok().then_some(()));
        let client = Client::connect(&socket);
        let answered = wait_for(START_LIMIT, || {
            let has_ended = child.try_wait().is_ok_and(|status| status.is_some());
            (has_ended || client.probe().is_ok()).then_some(has_ended)
        });
        let ready_after = started.elapsed();
        match answered {
            Some(false) => {
                let pid = container.map_or_else(|| Ok(child.id()), |container| container.pid())?;
                Ok(Plugin { child, pid, log, ready_after, client })
            }
            Some(true) | None => {
                let text = fs::read_to_string(&log).unwrap_or_default();
                Err(Error::other(format!("the plugin did not start: {text}")))
            }
        }
    }

    /// Starts the program and waits until it ends, as it does with settings that cannot work.
    pub fn run_to_end(self) -> Result<(ExitStatus, String)> {
        let (mut child, log) = self.spawn()?;
        let status = child.wait()?;
        Ok((status, fs::read_to_string(log)?))
    }

    fn spawn(mut self) -> Result<(Child, PathBuf)> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = self
            .command
            .arg(format!("--endpoint=unix://{}", self.socket.display()))
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok((child, self.log))
    }
}

impl Plugin {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid, signal)
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.child.wait()
    }

    /// Kills it without warning and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().map(drop)
    }

    /// Waits for the end that something else brings about.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait()
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// How many files it has open, and how many threads.
    pub fn files_and_threads(&self) -> Option<(usize, usize)> {
        let count = |folder: &str| Some(fs::read_dir(format!("/proc/{}/{folder}", self.child.id())).ok()?.count());
        Some((count("fd")?, count("task")?))
    }

    /// Resident memory in kB: all of it, and the part that is not backed by files.
    pub fn memory_kb(&self) -> Option<(u64, u64)> {
        Some((self.status_kb("VmRSS:")?, self.status_kb("RssAnon:")?))
    }

    /// The most resident memory it has ever had, in kB.
    pub fn peak_memory_kb(&self) -> Option<u64> {
        self.status_kb("VmHWM:")
    }

    fn status_kb(&self, field: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find(|line| line.starts_with(field))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _killed = self.signal(Signal::SIGKILL);
            let _status = self.child.wait();
        }
    }
}

/// Ends a process by SIGTERM and waits for it; one that has ended is only waited for.
pub fn terminate(child: &mut Child) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    send(child.id(), Signal::SIGTERM)?;
    child.wait()
}

/// Sends a signal to a process.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).map_err(Error::other)?;
    kill(Pid::from_raw(pid), signal).map_err(Error::from)
}
