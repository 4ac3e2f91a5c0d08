//! The bytes behind volumes: a sparse file for each, and a disk for each attachment.
//!
//! Owns files, and one thread that works through [`Effect`]s in their order, so that work on one volume never overlaps. It
//! knows nothing of rules: the state machine says what is to be done and when. How a file becomes a disk is for who
//! implements [`Slots`].

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::state::Effect;
use super::{Result, SimError, lock};

const GIB: u64 = 1 << 30;

/// Where the files of a simulator are.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Everything is below `root`.
    pub fn new(root: &Path) -> Paths {
        Paths { root: root.to_owned() }
    }

    /// The file behind a volume.
    pub fn volume(&self, id: &str) -> PathBuf {
        self.root.join("volumes").join(id)
    }

    /// The bytes of a snapshot.
    pub fn snapshot(&self, id: &str) -> PathBuf {
        self.root.join("snapshots").join(id)
    }

    /// What `/dev/disk/by-id` is on a droplet.
    pub fn device_dir(&self, droplet: u64) -> PathBuf {
        self.root.join("droplets").join(droplet.to_string()).join("by-id")
    }

    /// Where a droplet that is a virtual machine has its monitor.
    pub fn monitor(&self, droplet: u64) -> PathBuf {
        self.root.join("droplets").join(droplet.to_string()).join("monitor")
    }

    /// Makes the directories.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create(&self, droplets: impl Iterator<Item = u64>) -> Result<()> {
        let fixed = [self.root.join("volumes"), self.root.join("snapshots")];
        for dir in fixed.into_iter().chain(droplets.map(|droplet| self.device_dir(droplet))) {
            fs::create_dir_all(&dir).map_err(|error| SimError::io("make directory", &dir, &error))?;
        }
        Ok(())
    }
}

/// The places where droplets have their disks.
pub trait Slots: Debug + Send {
    /// Lets a droplet see a volume. One that it sees already stays as it is; a half one becomes whole.
    ///
    /// # Errors
    /// The machine refuses; so with all others.
    fn plug(&mut self, plug: &Plug<'_>) -> Result<()>;
    /// Takes a disk away, if there is one, and names it if somebody still uses it.
    fn pull(&mut self, volume: &str, keeps_link: bool) -> Result<Option<PathBuf>>;
    /// Lets a disk have the size that its file has got.
    fn grow(&mut self, volume: &str, bytes: u64) -> Result<()>;
    /// Does what a detached volume needs whose disk somebody still uses.
    fn part(&self, volume: &str) -> Result<()>;
    /// The volumes that some droplet sees.
    fn plugged(&self) -> Vec<String>;
}

/// A volume that a droplet is to see.
#[derive(Debug, Clone, Copy)]
pub struct Plug<'a> {
    /// Volume id.
    pub volume: &'a str,
    /// File name of the link below `by-id`.
    pub link: &'a str,
    /// Droplet id.
    pub droplet: u64,
    /// The disk has no capacity yet.
    pub is_half: bool,
}

/// The worker and its queue.
#[derive(Debug)]
pub struct Devices {
    queue: Arc<Queue>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

/// Position in the order of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: VecDeque<Effect>,
    submitted: u64,
    done: u64,
    is_closing: bool,
    failures: Vec<SimError>,
}

impl Devices {
    /// Starts the worker.
    ///
    /// # Errors
    /// The thread can not be started.
    pub fn start(paths: Paths, slots: Box<dyn Slots>) -> Result<Devices> {
        let queue = Arc::new(Queue::default());
        let worker = std::thread::Builder::new()
            .name("sim-devices".to_owned())
            .spawn({
                let queue = Arc::clone(&queue);
                move || Worker { paths, slots }.run(&queue)
            })
            .map_err(|error| SimError::new(format!("start the device thread: {error}")))?;
        Ok(Devices { queue, worker: Mutex::new(Some(worker)) })
    }

    /// Queues work; it is done when [`Devices::wait`] for the ticket returns.
    pub fn submit(&self, effects: Vec<Effect>) -> Ticket {
        let mut state = lock(&self.queue.state);
        for effect in effects {
            state.waiting.push_back(effect);
            state.submitted += 1;
        }
        self.queue.changed.notify_all();
        Ticket(state.submitted)
    }

    /// Waits until the work up to a ticket is done.
    pub fn wait(&self, ticket: Ticket) {
        let state = lock(&self.queue.state);
        drop(
            self.queue
                .changed
                .wait_while(state, |state| state.done < ticket.0 && !state.is_closing)
                .expect("nobody panics while holding this lock"),
        );
    }

    /// What has gone wrong so far.
    pub fn failures(&self) -> Vec<SimError> {
        lock(&self.queue.state).failures.clone()
    }

    /// Finishes the work, lets go of every device and ends the thread. A second time does nothing.
    ///
    /// # Errors
    /// The first failure of all the work, or a device that somebody still uses.
    pub fn close(&self) -> Result<()> {
        lock(&self.queue.state).is_closing = true;
        self.queue.changed.notify_all();
        if let Some(worker) = lock(&self.worker).take() {
            worker.join().map_err(|_| SimError::new("the device thread panicked".to_owned()))?;
        }
        self.failures().into_iter().next().map_or(Ok(()), Err)
    }
}

struct Worker {
    paths: Paths,
    slots: Box<dyn Slots>,
}

impl Worker {
    fn run(mut self, queue: &Queue) {
        while let Some(effect) = next(queue) {
            let outcome = self.apply(&effect);
            let mut state = lock(&queue.state);
            state.done += 1;
            // A test that waits for a device that will never come shows this in its output.
            state.failures.extend(outcome.err().inspect(|error| eprintln!("simulator: {error}")));
            queue.changed.notify_all();
        }
        for volume in self.slots.plugged() {
            let outcome = self.slots.pull(&volume, false).and_then(|user| match user {
                None => Ok(()),
                Some(device) => {
                    Err(SimError::new(format!("{} is still in use after the simulator has closed", device.display())))
                }
            });
            lock(&queue.state).failures.extend(outcome.err());
        }
    }

    fn apply(&mut self, effect: &Effect) -> Result<()> {
        match effect {
            Effect::Create { volume, size_gigabytes, snapshot, format } => {
                let file = self.paths.volume(volume);
                if let Some(snapshot) = snapshot {
                    copy(&self.paths.snapshot(snapshot), &file)?;
                }
                lengthen(&file, *size_gigabytes)?;
                format.as_ref().map_or(Ok(()), |(filesystem, label)| mkfs(&file, filesystem, label))
            }
            Effect::Delete { volume } => remove(&self.paths.volume(volume)),
            Effect::Grow { volume, size_gigabytes } => {
                lengthen(&self.paths.volume(volume), *size_gigabytes)?;
                self.slots.grow(volume, size_gigabytes * GIB)
            }
            Effect::Snapshot { snapshot, volume } => copy(&self.paths.volume(volume), &self.paths.snapshot(snapshot)),
            Effect::DeleteSnapshot { snapshot } => remove(&self.paths.snapshot(snapshot)),
            Effect::Attach { volume, link, droplet, is_half } => {
                self.slots.plug(&Plug { volume, link, droplet: *droplet, is_half: *is_half })
            }
            Effect::Detach { volume, keeps_link } => match self.slots.pull(volume, *keeps_link)? {
                Some(_) => self.slots.part(volume),
                None => Ok(()),
            },
        }
    }
}

/// Waits for work; none is left once the queue is closing and empty.
fn next(queue: &Queue) -> Option<Effect> {
    let state = lock(&queue.state);
    let mut state = queue
        .changed
        .wait_while(state, |state| state.waiting.is_empty() && !state.is_closing)
        .expect("nobody panics while holding this lock");
    state.waiting.pop_front()
}

/// Makes a file and gives it a size; never makes it smaller.
pub(super) fn lengthen(file: &Path, size_gigabytes: u64) -> Result<()> {
    let lengthened = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
        let wanted = size_gigabytes * GIB;
        if file.metadata()?.len() < wanted { file.set_len(wanted) } else { Ok(()) }
    };
    lengthened().map_err(|error| SimError::io("lengthen", file, &error))
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let (sparse, reflink) = (OsStr::new("--sparse=always"), OsStr::new("--reflink=auto"));
    run("cp", &[sparse, reflink, from.as_ref(), to.as_ref()]).map(drop)
}

fn mkfs(file: &Path, filesystem: &str, label: &str) -> Result<()> {
    let program = format!("mkfs.{filesystem}");
    let quiet = OsStr::new("-q");
    if label.is_empty() {
        run(&program, &[quiet, file.as_ref()]).map(drop)
    } else {
        run(&program, &[quiet, "-L".as_ref(), label.as_ref(), file.as_ref()]).map(drop)
    }
}

/// Removes a file or link; one that is not there is removed already.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SimError::io("remove", path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs a command and gives what it printed.
pub(super) fn run(program: &str, args: &[&OsStr]) -> Result<String> {
    let doing = || format!("{program} {}", args.join(OsStr::new(" ")).display());
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|error| SimError::new(format!("{}: {error}", doing())))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(SimError::new(format!("{}: {}: {}", doing(), output.status, complaint.trim())))
}
