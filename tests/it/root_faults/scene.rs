//! One volume on one droplet, brought into any of its usual states, with known files on it and a task that uses it.
//!
//! Owns what is true of each state: which mounts there are, as the droplet's mount table shows them, and what is on the disk.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use do_csi_plugin::proto::csi::volume_usage::Unit;

use super::tracer::OwnDisk;
use crate::harness::{NodeHarness, Vol, ok};
use crate::root_holders::Bystander;
use crate::support::client::Outcome;
use crate::support::wait_for;

/// Where Nomad shows the volume.
const ALLOC: &str = "alloc";
const GIB: u64 = 1 << 30;
/// How often a slow machine is asked again.
const PATIENT: usize = 30;
/// How far a volume grows before another one takes its place.
const MOST_GIB: u64 = 32;

/// What is asked of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Stage,
    Publish,
    Unpublish,
    Unstage,
    Expand,
    Stats,
}

/// How the volume is when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The disk is there.
    Attached,
    /// The disk is there, and nothing was ever written to it.
    Blank,
    /// It is staged.
    Staged,
    /// It is staged and published.
    Published,
    /// It is staged and published, and a task has a file open.
    InUse,
    /// The same, and the disk has grown.
    Grown,
    /// It is staged, and a container that was given the host's root has a mount of its own, which nobody else sees; of a raw
    /// disk, it writes to it.
    Held,
    /// The same, and the plugin was started anew since.
    HeldSince,
    /// It is staged and published, and the plugin was started anew since.
    PublishedSince,
}

impl State {
    pub fn is_staged(self) -> bool {
        !matches!(self, State::Attached | State::Blank)
    }

    pub fn is_published(self) -> bool {
        matches!(self, State::Published | State::InUse | State::Grown | State::PublishedSince)
    }

    fn has_task(self) -> bool {
        matches!(self, State::InUse | State::Grown)
    }

    pub fn is_held(self) -> bool {
        matches!(self, State::Held | State::HeldSince)
    }

    fn is_since(self) -> bool {
        matches!(self, State::HeldSince | State::PublishedSince)
    }
}

/// Which of its two places the volume is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    pub is_staged: bool,
    pub is_published: bool,
}

/// A result that says what is wrong.
pub type Seen<T = ()> = Result<T, String>;

/// Where in its file, or on a raw disk, a task writes.
const TASK_AT: u64 = 16 << 20;

/// A task with a file open in the published volume, or with the raw disk open.
#[derive(Debug)]
struct Task {
    file: File,
    /// Where it finds its file again.
    path: PathBuf,
    written: u64,
    is_read_only: bool,
}

impl Task {
    /// Writes on, and sees by the path that it reaches the volume. One that only reads sees that it still can.
    fn work(&mut self) -> Seen {
        let broken = |err: std::io::Error| format!("the task cannot go on: {err}");
        if self.is_read_only {
            return File::open(&self.path).and_then(|file| file.read_at(&mut [0], 0)).map(drop).map_err(broken);
        }
        self.written += 1;
        self.file.write_all_at(&self.written.to_le_bytes(), TASK_AT).map_err(broken)?;
        let mut found = [0; 8];
        File::open(&self.path).and_then(|file| file.read_exact_at(&mut found, TASK_AT)).map_err(broken)?;
        let is_seen = found == self.written.to_le_bytes();
        is_seen.then_some(()).ok_or_else(|| "what the task writes is not seen at its path".to_owned())
    }
}

/// The volume and everything around it.
#[derive(Debug)]
pub struct Scene {
    pub rig: NodeHarness,
    pub fs: &'static str,
    vol: Vol,
    is_read_only: bool,
    gib: u64,
    volumes: usize,
    is_blank: bool,
    task: Option<Task>,
    holder: Option<Bystander>,
}

impl Scene {
    /// A droplet with a blank volume; `fs` is `raw` for a raw block device.
    pub fn new(fs: &'static str) -> Scene {
        let rig = NodeHarness::start();
        let vol = new_volume(&rig, fs, 1);
        Scene { rig, fs, vol, is_read_only: false, gib: 1, volumes: 1, is_blank: true, task: None, holder: None }
    }

    fn is_raw(&self) -> bool {
        self.fs == "raw"
    }

    /// How the volume's disk is named.
    pub fn own_disk(&self) -> OwnDisk {
        let node = self.rig.node(&self.vol);
        let name = node.file_name().unwrap().to_str().unwrap();
        let number = fs::read_to_string(Path::new("/sys/class/block").join(name).join("dev")).unwrap();
        OwnDisk::new(name, number.trim())
    }

    fn staging(&self) -> PathBuf {
        self.rig.staging(&self.vol)
    }

    fn target(&self) -> PathBuf {
        self.rig.target(&self.vol, ALLOC)
    }

    fn outside(&self, path: &Path) -> PathBuf {
        self.rig.machine().droplet.path(path)
    }

    /// Asks the plugin, as Nomad does, and sees whether its answer is true as far as it says more than OK.
    pub fn call(&self, verb: Verb) -> Outcome<Seen> {
        let (rig, vol) = (&self.rig, &self.vol);
        match verb {
            Verb::Stage => rig.stage(vol).map(Ok),
            Verb::Publish => rig.publish_as(vol, ALLOC, self.is_read_only).map(Ok),
            Verb::Unpublish => rig.unpublish(vol, ALLOC).map(Ok),
            Verb::Unstage => rig.unstage(vol).map(Ok),
            Verb::Expand => self.expand(),
            Verb::Stats => self.stats(),
        }
    }

    /// The call that takes the volume away from its target, on a thread of its own.
    pub fn unpublish_apart(&self) -> JoinHandle<Outcome<()>> {
        let (client, id, target) = (self.rig.client().clone(), self.vol.csi.id.clone(), self.target());
        thread::spawn(move || client.unpublish(&id, &target))
    }

    /// The call that lets go of the volume, on a thread of its own.
    pub fn unstage_apart(&self) -> JoinHandle<Outcome<()>> {
        let (client, id, staging) = (self.rig.client().clone(), self.vol.csi.id.clone(), self.staging());
        thread::spawn(move || client.unstage(&id, &staging))
    }

    fn expand(&self) -> Outcome<Seen> {
        let asked = self.gib * GIB;
        let said = self.rig.client().node_expand(&self.vol.csi.id, &self.target(), i64::try_from(asked).unwrap())?;
        // A file system keeps some of its disk for itself.
        let real = if self.is_raw() { asked } else { self.rig.fs_size(&self.target()) };
        let is_true = u64::try_from(said) == Ok(asked) && real <= asked && real >= asked - asked / 8;
        let lie = || format!("{asked} bytes were asked for and {said} said, and it has {real}");
        Ok(is_true.then_some(()).ok_or_else(lie))
    }

    fn stats(&self) -> Outcome<Seen> {
        let answer = self.rig.client().stats(&self.vol.csi.id, &self.target())?;
        let condition = answer.volume_condition.unwrap_or_default();
        if condition.abnormal {
            return Ok(Err(format!("a healthy volume is called abnormal: {}", condition.message)));
        }
        let bytes = answer.usage.iter().find(|usage| usage.unit == Unit::BYTES.into());
        let said = bytes.and_then(|usage| u64::try_from(usage.total).ok());
        let real = if self.is_raw() { self.gib * GIB } else { self.rig.fs_size(&self.target()) };
        let lie = || format!("its size is said to be {said:?} and is {real}");
        Ok((said == Some(real)).then_some(()).ok_or_else(lie))
    }

    /// Says whether the volume is to be published for reading only, from now on.
    pub fn set_read_only(&mut self, is_read_only: bool) {
        self.prepare(State::Attached).unwrap();
        self.is_read_only = is_read_only;
    }

    /// Gives each kind of calls a thread: one that has none yet, or not for a minute, is not seen by who looks at the threads.
    fn wake(&self) {
        let (client, nowhere) = (self.rig.client(), self.target().with_file_name("nowhere"));
        let refused = [client.node_expand("none", &nowhere, 1).is_err(), client.stats("none", &nowhere).is_err()];
        assert_eq!(refused, [true; 2], "there is a volume at {}", nowhere.display());
        client.unpublish("none", &nowhere).unwrap();
    }

    /// Brings the volume into a state by calls without any fault; all of its known files must be there.
    pub fn prepare(&mut self, state: State) -> Seen {
        self.wake();
        self.task = None;
        self.holder = None;
        if self.is_blank && state != State::Blank {
            self.fill()?;
        }
        if !state.is_published() {
            self.must(Verb::Unpublish)?;
        }
        if !state.is_staged() {
            self.must(Verb::Unstage)?;
            self.check(Places { is_staged: false, is_published: false })?;
            self.check_is_free()?;
        }
        if state == State::Blank {
            ok("blkdiscard", &["--force".as_ref(), self.rig.node(&self.vol).as_os_str()]);
            self.is_blank = true;
        }
        if state == State::Grown && self.gib >= MOST_GIB {
            self.renew()?;
        }
        if state.is_staged() {
            self.must(Verb::Stage)?;
        }
        if state.is_published() {
            self.must(Verb::Publish)?;
        }
        self.check(Places { is_staged: state.is_staged(), is_published: state.is_published() })?;
        self.check_no_other_mount()?;
        self.check_files()?;
        if state.has_task() {
            self.start_task();
        }
        if state.is_held() {
            let (uses, node) =
                if self.is_raw() { ("exec 9<>\"$1\"", self.rig.node(&self.vol)) } else { ("true", self.staging()) };
            self.holder = Some(Bystander::apart(&self.rig, uses, &[&node]));
        }
        if state.is_since() {
            self.restart();
        }
        if state == State::Grown {
            self.gib += 1;
            self.rig.resize(&self.vol, self.gib);
            self.vol.csi.publish_context = self.rig.context(&self.vol.name, self.gib);
        }
        Ok(())
    }

    /// Starts the plugin anew, and waits until it has looked at what is mounted.
    fn restart(&mut self) {
        self.rig.restart();
        let is_known =
            || self.is_raw().then_some(()).or_else(|| self.rig.plugin().log().contains("mounted here").then_some(()));
        wait_for(Duration::from_secs(20), is_known).unwrap();
        self.wake();
    }

    /// A call that must succeed, being made without any fault.
    fn must(&self, verb: Verb) -> Seen {
        self.call_in_time(verb).map_err(|refusal| format!("{verb:?} without any fault: {refusal}"))?
    }

    /// Asks again as long as the plugin says that the machine is too slow for it to see whether a disk is in use.
    pub fn call_in_time(&self, verb: Verb) -> Outcome<Seen> {
        let mut answer = self.call(verb);
        for _ in 0..PATIENT {
            match answer {
                Err(refusal) if refusal.message.contains("to look at in time") => answer = self.call(verb),
                answer => return answer,
            }
        }
        answer
    }

    /// Gives the volume its known files.
    fn fill(&mut self) -> Seen {
        if self.is_raw() {
            let disk = File::options().write(true).open(self.rig.node(&self.vol)).unwrap();
            FILES.iter().for_each(|(name, bytes)| disk.write_all_at(bytes, place_on_disk(name)).unwrap());
            disk.sync_all().unwrap();
        } else {
            self.must(Verb::Stage)?;
            for (name, bytes) in FILES.iter() {
                let path = self.rig.file(&self.staging(), name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, bytes).unwrap();
            }
        }
        self.is_blank = false;
        Ok(())
    }

    /// Goes on with another volume: one that has grown often is no usual one any more.
    fn renew(&mut self) -> Seen {
        self.must(Verb::Unpublish)?;
        self.must(Verb::Unstage)?;
        self.rig.detach(&self.vol);
        self.volumes += 1;
        self.vol = new_volume(&self.rig, self.fs, self.volumes);
        self.gib = 1;
        self.fill()
    }

    fn start_task(&mut self) {
        let target = self.outside(&self.target());
        let path = if self.is_raw() { target } else { target.join("task") };
        let mut how = File::options();
        how.read(true).write(!self.is_read_only).create(!self.is_raw() && !self.is_read_only);
        let path = if self.is_read_only && !self.is_raw() { path.with_file_name(FILES[0].0) } else { path };
        let mut task = Task { file: how.open(&path).unwrap(), path, written: 0, is_read_only: self.is_read_only };
        task.work().unwrap();
        self.task = Some(task);
    }

    /// What has a mount that nobody else sees ends.
    pub fn end_holder(&mut self) {
        self.holder = None;
    }

    /// The task ends.
    pub fn end_task(&mut self) {
        self.task = None;
    }

    /// Sees that the task, where there is one, goes on, and that every known file is whole.
    pub fn check_content(&mut self) -> Seen {
        self.task.as_mut().map_or(Ok(()), Task::work)?;
        self.check_files()
    }

    /// Whether the volume is at a path, once, from its disk, as it was asked for.
    fn seen(&self, path: &Path) -> Seen<bool> {
        let lines = self.rig.machine().droplet.mounts();
        let at: Vec<&String> = lines.iter().filter(|line| line.split(' ').nth(4) == path.to_str()).collect();
        let line = match at.as_slice() {
            [] => return Ok(false),
            [line] => *line,
            _ => return Err(format!("several mounts at {}: {at:?}", path.display())),
        };
        let node = self.rig.node(&self.vol);
        let root = line.split(' ').nth(3).unwrap();
        let is_right = if self.is_raw() {
            Path::new("/dev").join(root.trim_start_matches('/')) == node && line.contains(" - devtmpfs ")
        } else {
            root == "/" && line.contains(&format!(" - {} {} ", self.fs, node.display()))
        };
        if is_right { Ok(true) } else { Err(format!("something else is mounted: {line}")) }
    }

    /// The lines of the mount table for the staging path and the target; `None`: nothing is mounted there.
    pub fn lines(&self) -> [Option<String>; 2] {
        [self.staging(), self.target()].map(|path| self.rig.mount_at(&path))
    }

    /// Sees that the volume is at these of its places, as asked for, and at no other of the two.
    pub fn check(&self, places: Places) -> Seen {
        let (staging, target) = (self.staging(), self.target());
        // A raw disk is not mounted when it is staged.
        let is_staged = places.is_staged && !self.is_raw();
        for (path, is_there) in [(&staging, is_staged), (&target, places.is_published)] {
            if self.seen(path)? != is_there {
                let how = if is_there { "is not" } else { "is still" };
                return Err(format!("the volume {how} mounted at {}", path.display()));
            }
        }
        if places.is_published {
            let is_read_only =
                if self.is_raw() { self.is_disk_read_only() } else { self.is_mounted_read_only(&target) };
            if is_read_only != self.is_read_only {
                return Err(format!("it is published, but read-only: {is_read_only}"));
            }
        } else if fs::symlink_metadata(self.outside(&target)).is_ok() {
            return Err(format!("{} is left", target.display()));
        }
        Ok(())
    }

    /// Sees that nothing is mounted but at the volume's two places. What a fault leaves beside them is cleared by the next call.
    pub fn check_no_other_mount(&self) -> Seen {
        let ours = [self.staging(), self.target()];
        match self.points().into_iter().find(|point| !ours.contains(point)) {
            None => Ok(()),
            Some(point) => Err(format!("a mount is left behind at {}", point.display())),
        }
    }

    /// Where something is mounted that has to do with volumes, the topmost last.
    fn points(&self) -> Vec<PathBuf> {
        let lines = self.rig.machine().droplet.mounts();
        let points = lines.iter().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(self.rig.machine().home())).collect()
    }

    /// Sees that nothing uses the disk any more, so that it may be detached.
    fn check_is_free(&self) -> Seen {
        let node = self.rig.node(&self.vol);
        let exclusive = File::options().read(true).custom_flags(nix::libc::O_EXCL).open(&node);
        exclusive.map(drop).map_err(|err| format!("{} is unstaged, but its disk is in use: {err}", node.display()))
    }

    fn is_mounted_read_only(&self, path: &Path) -> bool {
        let line = self.rig.mount_at(path).unwrap_or_default();
        line.split(' ').nth(5).is_some_and(|options| options.split(',').any(|option| option == "ro"))
    }

    fn is_disk_read_only(&self) -> bool {
        let node = self.rig.node(&self.vol);
        let flag = Path::new("/sys/class/block").join(node.file_name().unwrap()).join("ro");
        fs::read_to_string(flag).unwrap().trim() == "1"
    }

    /// Sees that every known file is whole, where the volume is mounted or raw.
    fn check_files(&self) -> Seen {
        if self.is_blank {
            return Ok(());
        }
        let node = self.rig.node(&self.vol);
        let places = [self.staging(), self.target()];
        let Some(at) = places.iter().find(|path| self.is_raw() || self.rig.mount_at(path).is_some()) else {
            return Ok(());
        };
        for (name, bytes) in FILES.iter() {
            let (path, place) =
                if self.is_raw() { (node.clone(), place_on_disk(name)) } else { (self.rig.file(at, name), 0) };
            let mut found = vec![0; bytes.len()];
            let read = File::open(path).and_then(|file| file.read_exact_at(&mut found, place));
            read.map_err(|err| format!("the file {name} is lost: {err}"))?;
            if found != *bytes {
                return Err(format!("the file {name} is not what it was"));
            }
        }
        Ok(())
    }

    /// How much the plugin has logged.
    pub fn log_length(&self) -> usize {
        let log = fs::metadata(self.rig.machine().home().join("plugin.log"));
        log.map_or(0, |log| usize::try_from(log.len()).unwrap())
    }

    /// Goes on after something went wrong: with a new plugin, and nothing mounted.
    pub fn recover(&mut self) {
        self.task = None;
        self.holder = None;
        self.rig.restart();
        for point in self.points().iter().rev() {
            self.rig.run("umount", &[&point.to_string_lossy()]);
        }
        self.rig.detach(&self.vol);
        self.volumes += 1;
        self.vol = new_volume(&self.rig, self.fs, self.volumes);
        (self.gib, self.is_blank) = (1, true);
    }

    /// Takes everything down and asserts that nothing is left.
    pub fn close(mut self) {
        self.prepare(State::Attached).unwrap();
        self.rig.close();
    }
}

fn new_volume(rig: &NodeHarness, fs: &str, number: usize) -> Vol {
    let vol = rig.volume(&format!("vol-{number}"), "");
    if fs == "raw" { vol.block() } else { vol.fs(fs) }
}

/// Known files: names and contents. They are looked at several times for each fault, and making them takes longer than a fault.
static FILES: LazyLock<[(&str, Vec<u8>); 2]> = LazyLock::new(|| {
    let long = (0_u32..1 << 18).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes());
    [("kept-1", b"kept, all of it".to_vec()), ("deep/kept-2", long.collect())]
});

/// Where on a raw disk the content of a file is.
fn place_on_disk(name: &str) -> u64 {
    if name == "kept-1" { 0 } else { 512 << 20 }
}
