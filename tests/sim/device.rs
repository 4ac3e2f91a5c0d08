//! Block devices behind volumes: a sparse file per volume, a loop device and a link per attachment.
//!
//! Owns files, loop devices and links, and one thread that works through [`Effect`]s in their order, so that work on one
//! volume never overlaps. It knows nothing of rules: the state machine says what is to be done and when.
//!
//! Loop devices survive no crash: each is marked "autoclear" as soon as it exists, and an open file keeps it alive, so the
//! kernel frees it when its last user is gone, even if that user was killed (losetup(8), `--detach`).

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

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
    pub fn start(paths: Paths) -> Result<Devices> {
        let queue = Arc::new(Queue::default());
        let worker = std::thread::Builder::new()
            .name("sim-devices".to_owned())
            .spawn({
                let queue = Arc::clone(&queue);
                move || Worker { paths, attached: BTreeMap::new() }.run(&queue)
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

/// A loop device that some droplet sees.
#[derive(Debug)]
struct Attached {
    link: PathBuf,
    device: PathBuf,
    is_half: bool,
    /// Keeps the device alive; it is free once this is closed and nobody else has it open.
    keeper: File,
}

struct Worker {
    paths: Paths,
    attached: BTreeMap<String, Attached>,
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
        let volumes: Vec<String> = self.attached.keys().cloned().collect();
        for volume in volumes {
            let outcome = self.detach(&volume, false).and_then(|user| match user {
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
                match self.attached.get(volume) {
                    Some(attached) => run("losetup", &["-c".as_ref(), attached.device.as_ref()]).map(drop),
                    None => Ok(()),
                }
            }
            Effect::Snapshot { snapshot, volume } => copy(&self.paths.volume(volume), &self.paths.snapshot(snapshot)),
            Effect::DeleteSnapshot { snapshot } => remove(&self.paths.snapshot(snapshot)),
            Effect::Attach { volume, link, droplet, is_half } => {
                let is_whole = self.attached.get(volume).is_some_and(|attached| !attached.is_half);
                if is_whole {
                    return Ok(());
                }
                self.detach(volume, false)?;
                self.attach(volume, &self.paths.device_dir(*droplet).join(link), *is_half)
            }
            Effect::Detach { volume, keeps_link } => {
                let user = self.detach(volume, *keeps_link)?;
                user.map_or(Ok(()), |_| freeze(&self.paths.volume(volume)))
            }
        }
    }

    fn attach(&mut self, volume: &str, link: &Path, is_half: bool) -> Result<()> {
        let file = self.paths.volume(volume);
        let backing = if is_half { file.with_extension("empty") } else { file };
        if is_half {
            lengthen(&backing, 0)?;
        }
        // Of two losetups that look for a free device at once, the slower one claims the faster one's for a moment, and an
        // mkfs that starts right then finds its disk in use. Whoever makes loop devices takes this lock around it.
        let control = Path::new("/dev/loop-control");
        let turn = File::open(control).map_err(|error| SimError::io("open", control, &error))?;
        turn.lock().map_err(|error| SimError::io("lock", control, &error))?;
        let printed = run("losetup", &["--find".as_ref(), "--show".as_ref(), backing.as_ref()])?;
        let device = PathBuf::from(printed.trim());
        let keeper = File::open(&device).map_err(|error| SimError::io("open", &device, &error))?;
        run("losetup", &["--detach".as_ref(), device.as_ref()])?;
        if is_half {
            remove(&backing)?;
        }
        // A stale link of the same name gives way, as udev does it.
        remove(link)?;
        symlink(&device, link).map_err(|error| SimError::io("link", link, &error))?;
        let attached = Attached { link: link.to_owned(), device, is_half, keeper };
        self.attached.insert(volume.to_owned(), attached);
        Ok(())
    }

    /// Takes the device away, if there is one, and names it if somebody still uses it.
    fn detach(&mut self, volume: &str, keeps_link: bool) -> Result<Option<PathBuf>> {
        let Some(attached) = self.attached.remove(volume) else { return Ok(None) };
        let Attached { link, device, is_half: _, keeper } = attached;
        if !keeps_link {
            remove(&link)?;
        }
        drop(keeper);
        let is_used = stays_backed_by(&device, &self.paths.volume(volume));
        Ok(is_used.then_some(device))
    }
}

/// Whether a loop device keeps this file behind it although we have let go of it.
///
/// Tools that look at all block devices open each for a moment, so a little patience tells them from a mount. Nothing in
/// sysfs can be waited for here, hence the polling.
fn stays_backed_by(device: &Path, file: &Path) -> bool {
    let Some(name) = device.file_name() else { return false };
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    (0..50).all(|round| {
        if round > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::read_to_string(&backing).is_ok_and(|path| Path::new(path.trim()) == file)
    })
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

/// Cuts the volume's bytes off from a device that is detached but still mounted.
///
/// A real device is gone then, and what its file system writes later reaches nothing. The loop device can not be taken
/// from its user, so it keeps the old file and the volume goes on with a copy.
fn freeze(file: &Path) -> Result<()> {
    let copied = file.with_extension("frozen");
    copy(file, &copied)?;
    fs::rename(&copied, file).map_err(|error| SimError::io("replace", file, &error))
}

/// Makes a file and gives it a size; never makes it smaller.
fn lengthen(file: &Path, size_gigabytes: u64) -> Result<()> {
    let lengthened = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
        let wanted = size_gigabytes * GIB;
        if file.metadata()?.len() < wanted { file.set_len(wanted) } else { Ok(()) }
    };
    lengthened().map_err(|error| SimError::io("lengthen", file, &error))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
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
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SimError::io("remove", path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs a command and gives what it printed.
fn run(program: &str, args: &[&OsStr]) -> Result<String> {
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
