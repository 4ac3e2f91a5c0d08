//! The built program as a process, of its own, in a container or in a virtual machine: started, watched, killed.
//!
//! Owns the process and its log file. Dropping it kills it.

use std::fs::{self, File};
use std::io::{Error, Result};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::Client;
use super::guest::Guest;
use super::{status_kb, wait_for};

/// How long the program may take to answer its first call before a test gives up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running plugin.
#[derive(Debug)]
pub struct Plugin {
    process: Process,
    pid: u32,
    log: PathBuf,
    /// From exec to the first answered Probe.
    pub ready_after: Duration,
    /// A client on its socket.
    pub client: Client,
}

#[derive(Debug)]
enum Process {
    /// The program itself, or the `docker run` that ends when the container does.
    Child(Child),
    /// One in a virtual machine.
    Inside(Arc<Guest>),
}

impl Process {
    /// Waits for the end.
    fn wait(&mut self, pid: u32) -> Result<Option<ExitStatus>> {
        match self {
            Process::Child(child) => child.wait().map(Some),
            Process::Inside(guest) => guest.run(&format!("timeout 30 tail --pid={pid} -f /dev/null")).map(|_| None),
        }
    }
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
                Ok(Plugin { process: Process::Child(child), pid, log, ready_after, client })
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
    /// Starts the program that a virtual machine has, with its socket and its log at these paths there, and waits until it
    /// answers.
    pub fn start_inside(guest: &Arc<Guest>, arguments: &[String], token: &str, socket: &Path) -> Result<Plugin> {
        let started = Instant::now();
        let log = socket.with_file_name("plugin.log");
        let endpoint = format!("--endpoint=unix://{}", socket.display());
        let arguments: Vec<String> = std::iter::once(endpoint).chain(arguments.iter().cloned()).collect();
        let pid = guest.start(&arguments, token, &log)?;
        let client = Client::connect_through(guest.socket()?);
        let process = Process::Inside(Arc::clone(guest));
        let mut plugin = Plugin { process, pid, log, ready_after: Duration::ZERO, client };
        let answered = wait_for(START_LIMIT, || plugin.client.probe().ok());
        plugin.ready_after = started.elapsed();
        answered.map(|_| ()).ok_or_else(|| Error::other(format!("the plugin did not start: {}", plugin.log())))?;
        Ok(plugin)
    }

    /// The process id, where it runs.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Everything it has logged so far, with the lines that its thread for that still had to write.
    pub fn log(&self) -> String {
        match &self.process {
            Process::Child(_) => {
                let written = || fs::metadata(&self.log).map_or(0, |found| found.len());
                let _also_when_it_is_never_done = wait_for(START_LIMIT, || {
                    let before = written();
                    (!is_writing_its_log(self.pid) && written() == before).then_some(())
                });
                fs::read_to_string(&self.log)
            }
            Process::Inside(guest) => guest.run(&format!("cat {}", self.log.display())),
        }
        .unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match &self.process {
            Process::Child(_) => send(self.pid, signal),
            Process::Inside(guest) => {
                let name = signal.as_str().trim_start_matches("SIG");
                guest.run(&format!("kill -{name} {}", self.pid)).map(drop)
            }
        }
    }

    /// Sends SIGTERM and waits for the end; how it ended is not seen from outside of a virtual machine.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        Ok(self.process.wait(self.pid)?.unwrap_or_default())
    }

    /// Kills it without warning and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.process.wait(self.pid).map(drop)
    }

    /// Waits for the end that something else brings about.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.process.wait(self.pid)?.unwrap_or_default())
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        match &mut self.process {
            Process::Child(child) => child.try_wait().is_ok_and(|status| status.is_some()),
            Process::Inside(guest) => guest.run(&format!("kill -0 {}", self.pid)).is_err(),
        }
    }

    /// How many files it has open, and how many threads.
    pub fn files_and_threads(&self) -> Option<(usize, usize)> {
        let count = |directory: &str| Some(fs::read_dir(format!("/proc/{}/{directory}", self.pid)).ok()?.count());
        Some((count("fd")?, count("task")?))
    }

    /// Resident memory in kB: all of it, and the part that is not backed by files.
    pub fn memory_kb(&self) -> Option<(u64, u64)> {
        Some((status_kb(self.pid, "VmRSS:")?, status_kb(self.pid, "RssAnon:")?))
    }

    /// The most resident memory it has ever had, in kB.
    pub fn peak_memory_kb(&self) -> Option<u64> {
        status_kb(self.pid, "VmHWM:")
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _killed = self.signal(Signal::SIGKILL);
            let _status = self.process.wait(self.pid);
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

/// Whether the thread that writes a plugin's log has something to write. It is woken by whoever logs, so that it no longer
/// sleeps when a call that has logged is answered.
fn is_writing_its_log(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let stats = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    let states: Vec<bool> =
        stats.filter(|stat| stat.contains(" (log) ")).map(|stat| !stat.contains(" (log) S ")).collect();
    states.contains(&true)
}
