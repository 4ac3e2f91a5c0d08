//! Random sequences of what Nomad, the cloud and bad luck do to volumes, with known files on each.
//!
//! Two things are asserted all along: no file that was synced is ever lost, and no call ever answers OK for a volume that
//! is not there as asked. The seed is printed; `CHAOS_SEED=... CHAOS_STEPS=...` plays it again.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;

use crate::rig::{Rig, Sysfs, Vol};
use crate::support::client::Client;

const STEPS: usize = 1500;
const TIME: Duration = Duration::from_secs(40);
const ALLOCS: [&str; 2] = ["one", "two"];

/// A volume with everything that is known of it.
struct Known {
    vol: Vol,
    is_attached: bool,
    /// What was written and synced, by file name.
    files: BTreeMap<String, String>,
}

struct Chaos {
    rig: Rig,
    sysfs: Sysfs,
    rng: Rng,
    volumes: Vec<Known>,
    done: Vec<String>,
}

impl Chaos {
    fn start(seed: u64) -> Chaos {
        let sysfs = Sysfs::new();
        let rig = Rig::start_with(&[&sysfs.flag()]);
        let volumes = ["xfs", "ext4", "ext3", "btrfs"].map(|fs| {
            let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
            sysfs.show_scsi(&rig.node(&vol), &vol.name, "running\n");
            Known { vol, is_attached: true, files: BTreeMap::new() }
        });
        Chaos { rig, sysfs, rng: Rng::with_seed(seed), volumes: volumes.into(), done: Vec::new() }
    }

    fn step(&mut self) {
        let index = self.rng.usize(..self.volumes.len());
        let alloc = ALLOCS[self.rng.usize(..ALLOCS.len())];
        let (what, outcome) = match self.rng.u32(..100) {
            0..18 => ("stage", self.stage(index)),
            18..38 => ("publish", self.publish(index, alloc)),
            38..64 => ("write", self.write(index, alloc)),
            64..71 => ("unpublish", self.unpublish(index, alloc)),
            71..77 => ("unstage", self.unstage(index)),
            77..80 => ("pull", self.pull(index)),
            80..90 => ("attach", self.attach(index)),
            90..92 => ("shut down", self.shut_down(index)),
            92..95 => ("kill", self.kill_during_stage(index)),
            95..98 => ("mislead", self.mislead(index)),
            _ => ("ask in vain", self.ask_for_what_is_gone(index)),
        };
        self.done.push(format!("{what} {} {alloc}: {outcome}", self.volumes[index].vol.name));
    }

    /// Asserts that the volume is at a path, all of it, from the disk that it is on now.
    fn assert_there(&self, index: usize, path: &Path) {
        let known = &self.volumes[index];
        assert!(known.is_attached, "OK for a volume that is not attached: {}", self.story());
        let line = self.rig.mount_at(path).unwrap_or_else(|| panic!("OK, but nothing is mounted: {}", self.story()));
        let node = self.node_of(index).to_string_lossy().into_owned();
        assert!(line.split(' ').any(|word| word == node), "OK, but {line} is not {node}: {}", self.story());
        for (name, text) in &known.files {
            let read = self.rig.read(path, name);
            assert_eq!(read.as_ref().ok(), Some(text), "{name} of {}: {read:?}: {}", known.vol.name, self.story());
        }
    }

    fn story(&self) -> String {
        format!("\n{}\n{}", self.done.join("\n"), self.rig.plugin().log())
    }

    /// The disk that a volume is on, by what the simulated cloud has behind it and not by its link.
    fn node_of(&self, index: usize) -> PathBuf {
        let file = self.rig.cloud.sim.backing_file(&self.volumes[index].vol.csi.id);
        let is_it = |dir: &PathBuf| {
            fs::read_to_string(dir.join("loop/backing_file")).is_ok_and(|text| Path::new(text.trim()) == file)
        };
        let dir = fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.path()).find(is_it);
        let dir = dir.unwrap_or_else(|| panic!("no disk shows {}: {}", file.display(), self.story()));
        Path::new("/dev").join(dir.file_name().unwrap())
    }

    fn stage(&mut self, index: usize) -> String {
        if !self.volumes[index].is_attached {
            return "not attached".to_owned();
        }
        match self.rig.stage(&self.volumes[index].vol) {
            Ok(()) => {
                self.assert_there(index, &self.rig.staging(&self.volumes[index].vol));
                "OK".to_owned()
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    fn publish(&mut self, index: usize, alloc: &str) -> String {
        if !self.volumes[index].is_attached {
            return "not attached".to_owned();
        }
        let is_read_only = self.rng.u8(..4) == 0;
        match self.rig.publish_as(&self.volumes[index].vol, alloc, is_read_only) {
            Ok(()) => {
                let target = self.rig.target(&self.volumes[index].vol, alloc);
                self.assert_there(index, &target);
                let written = self.rig.write(&target, "probe", "x");
                assert_eq!(written.is_err(), is_read_only, "{written:?}: {}", self.story());
                "OK".to_owned()
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    /// A task writes a file, where there is a mount of the disk as it is now.
    fn write(&mut self, index: usize, alloc: &str) -> String {
        if !self.volumes[index].is_attached {
            return "not attached".to_owned();
        }
        let node = self.node_of(index).to_string_lossy().into_owned();
        let target = self.rig.target(&self.volumes[index].vol, alloc);
        if !self.rig.mount_at(&target).is_some_and(|line| line.split(' ').any(|word| word == node)) {
            return "not published".to_owned();
        }
        let (name, text) = (format!("file-{}", self.rng.u8(..8)), format!("{:x}", self.rng.u64(..)).repeat(100));
        match self.rig.write(&target, &name, &text) {
            Ok(()) => {
                self.volumes[index].files.insert(name, text);
                "OK".to_owned()
            }
            Err(err) => {
                // What failed half way may be either, so it is not counted on.
                if err.kind() != ErrorKind::ReadOnlyFilesystem {
                    self.volumes[index].files.remove(&name);
                }
                err.to_string()
            }
        }
    }

    fn unpublish(&mut self, index: usize, alloc: &str) -> String {
        let vol = &self.volumes[index].vol;
        match self.rig.unpublish(vol, alloc) {
            Ok(()) => {
                let target = self.rig.target(vol, alloc);
                assert_eq!(self.rig.mount_at(&target), None, "{}", self.story());
                "OK".to_owned()
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    fn unstage(&mut self, index: usize) -> String {
        let vol = &self.volumes[index].vol;
        match self.rig.unstage(vol) {
            Ok(()) => {
                assert_eq!(self.rig.mount_at(&self.rig.staging(vol)), None, "{}", self.story());
                "OK".to_owned()
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    /// The cloud detaches a volume, whatever uses it: from then on its mounts are dead.
    fn pull(&mut self, index: usize) -> String {
        if !self.volumes[index].is_attached {
            return "not attached".to_owned();
        }
        let node = self.node_of(index);
        self.rig.detach(&self.volumes[index].vol);
        self.volumes[index].is_attached = false;
        self.sysfs.hide(&node);
        "OK".to_owned()
    }

    fn attach(&mut self, index: usize) -> String {
        if self.volumes[index].is_attached {
            return "attached already".to_owned();
        }
        let vol = self.volumes[index].vol.clone();
        self.rig.attach(&vol.csi.id, &vol.name);
        self.volumes[index].is_attached = true;
        let node = self.node_of(index);
        self.sysfs.show_scsi(&node, &vol.name, "running\n");
        node.display().to_string()
    }

    /// The kernel gives up on a file system, as after an error of the disk.
    fn shut_down(&mut self, index: usize) -> String {
        let vol = &self.volumes[index].vol;
        let staging = self.rig.staging(vol);
        let is_mounted = self.rig.mount_at(&staging).is_some();
        if !is_mounted || vol.name.contains("btrfs") || !self.volumes[index].is_attached {
            return "not possible".to_owned();
        }
        let mut xfs_io = self.rig.machine().droplet.command(Path::new("xfs_io"));
        let status = xfs_io.args(["-x", "-c", "shutdown"]).arg(&staging).output().unwrap().status;
        status.to_string()
    }

    /// The plugin is killed somewhere in the middle of a call, and another one takes its place.
    fn kill_during_stage(&mut self, index: usize) -> String {
        let vol = self.volumes[index].vol.clone();
        let staging = self.rig.staging(&vol);
        fs::create_dir_all(&staging).ok();
        let client = Client::connect(&self.rig.machine().socket());
        let call = thread::spawn(move || drop(client.stage(&vol.csi, &staging)));
        thread::sleep(Duration::from_micros(self.rng.u64(..20_000)));
        self.rig.restart();
        call.join().unwrap();
        "restarted".to_owned()
    }

    /// The link of a volume leads to another one's disk, as a stale link does, or is gone.
    fn mislead(&mut self, index: usize) -> String {
        let other = self.rng.usize(..self.volumes.len());
        if !self.volumes[index].is_attached || !self.volumes[other].is_attached {
            return "not possible".to_owned();
        }
        let link = self.rig.link(&self.volumes[index].vol.name);
        fs::remove_file(&link).ok();
        if self.rng.bool() {
            symlink(self.node_of(other), &link).unwrap();
        }
        format!("to {}", self.volumes[other].vol.name)
    }

    /// A volume that is not attached is asked for: the answer, if there is one before the wait ends, must not be OK.
    fn ask_for_what_is_gone(&mut self, index: usize) -> String {
        if self.volumes[index].is_attached {
            return "it is there".to_owned();
        }
        let vol = self.volumes[index].vol.clone();
        let (staging, target) = (self.rig.staging(&vol), self.rig.target(&vol, "one"));
        let (stager, publisher) = (self.rig.client().clone(), self.rig.client().clone());
        let csi = vol.csi.clone();
        let at = staging.clone();
        let staged = thread::spawn(move || stager.stage(&csi, &at));
        thread::sleep(Duration::from_millis(20));
        let published = thread::spawn(move || publisher.publish(&vol.csi, &staging, &target, false));
        thread::sleep(Duration::from_millis(80));
        self.rig.restart();
        let outcome = (staged.join().unwrap(), published.join().unwrap());
        assert!(outcome.0.is_err() && outcome.1.is_err(), "{outcome:?}: {}", self.story());
        "refused".to_owned()
    }

    /// Everything is let go of in order, and every file is still there.
    fn settle(&mut self) {
        for index in 0..self.volumes.len() {
            let vol = self.volumes[index].vol.clone();
            for alloc in ALLOCS {
                self.rig.unpublish(&vol, alloc).unwrap_or_else(|err| panic!("{err}: {}", self.story()));
            }
            self.rig.unstage(&vol).unwrap_or_else(|err| panic!("{err}: {}", self.story()));
            let left: Vec<String> = self.rig.machine().droplet.mounts();
            let left: Vec<&String> = left.iter().filter(|line| line.contains(&format!("/{}/", vol.name))).collect();
            assert!(left.is_empty(), "{left:?}: {}", self.story());
            self.attach(index);
            self.rig.stage(&vol).unwrap_or_else(|err| panic!("{err}: {}", self.story()));
            self.assert_there(index, &self.rig.staging(&vol));
            self.rig.unstage(&vol).unwrap();
        }
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_whatever_happens_no_file_is_lost_and_no_answer_is_a_lie() {
    let number = |key: &str| std::env::var(key).ok().and_then(|text| text.parse().ok());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = number("CHAOS_SEED").unwrap_or(u64::from(now.subsec_nanos()));
    let steps = number("CHAOS_STEPS").map_or(STEPS, |steps| usize::try_from(steps).unwrap());
    eprintln!("CHAOS_SEED={seed}");
    let mut chaos = Chaos::start(seed);
    let started = Instant::now();
    for _ in 0..steps {
        if started.elapsed() > TIME && number("CHAOS_STEPS").is_none() {
            break;
        }
        chaos.step();
    }
    let synced: usize = chaos.volumes.iter().map(|known| known.files.len()).sum();
    eprintln!("{} steps in {:?}, {synced} files at the end", chaos.done.len(), started.elapsed());
    if std::env::var_os("CHAOS_TELL").is_some() {
        eprintln!("{}", chaos.story());
    }
    chaos.settle();
    chaos.rig.close();
}
