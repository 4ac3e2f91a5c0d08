//! Random sequences of what Nomad, the cloud and bad luck do to volumes, with known files on each.
//!
//! Two things are asserted all along: no file that was synced is ever lost, and no call ever answers OK for a volume that
//! is not there as asked. The seed is printed; `CHAOS_SEED=... CHAOS_STEPS=...` plays it again.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use do_csi_plugin::proto::csi::volume_capability::access_mode::Mode;
use fastrand::Rng;

use crate::harness::{NodeHarness, Sysfs, Vol};
use crate::support::client::Client;

const STEPS: usize = 1500;
const TIME: Duration = Duration::from_secs(40);
const ALLOCS: [&str; 2] = ["one", "two"];
const VERBS: [&str; 5] = ["stage", "publish", "unpublish", "unstage", "expand"];

/// Where on a raw disk the text of a file of this name is kept.
fn place_of(name: &str) -> u64 {
    let number: u64 = name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(99);
    (8 << 20) + number * 65_536
}

/// A volume with everything that is known of it.
struct Known {
    vol: Vol,
    is_raw: bool,
    is_attached: bool,
    gib: u64,
    /// What was written and synced, by file name.
    files: BTreeMap<String, String>,
}

struct Chaos {
    rig: NodeHarness,
    sysfs: Sysfs,
    rng: Rng,
    volumes: Vec<Known>,
    done: Vec<String>,
}

impl Chaos {
    fn start(seed: u64) -> Chaos {
        let sysfs = Sysfs::new();
        let rig = NodeHarness::start_with(&[&sysfs.flag()]);
        let volumes = ["xfs", "ext4", "ext3", "btrfs", "raw"].map(|fs| {
            let (vol, is_raw) = (rig.volume(&format!("vol-{fs}"), ""), fs == "raw");
            let vol = if is_raw { vol.block() } else { vol.fs(fs) };
            sysfs.show_scsi(&rig.node(&vol), &vol.name, "running\n");
            Known { vol, is_raw, is_attached: true, gib: 1, files: BTreeMap::new() }
        });
        Chaos { rig, sysfs, rng: Rng::with_seed(seed), volumes: volumes.into(), done: Vec::new() }
    }

    fn step(&mut self) {
        let index = self.rng.usize(..self.volumes.len());
        let alloc = ALLOCS[self.rng.usize(..ALLOCS.len())];
        let (what, outcome) = match self.rng.u32(..100) {
            0..16 => ("stage", self.stage(index)),
            16..34 => ("publish", self.publish(index, alloc)),
            34..58 => ("write", self.write(index, alloc)),
            58..65 => ("unpublish", self.unpublish(index, alloc)),
            65..71 => ("unstage", self.unstage(index)),
            71..74 => ("stage for reading", self.stage_for_reading(index)),
            74..76 => ("unstage from reading", self.unstage_from(index, &self.reading(index))),
            76..78 => ("expand", self.expand(index)),
            78..81 => ("pull", self.pull(index)),
            81..89 => ("attach", self.attach(index)),
            89..91 => ("shut down", self.shut_down(index)),
            91..95 => ("kill", self.kill_during_a_call(index, alloc)),
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
        let shown = self.shown_as(index);
        assert!(line.split(' ').any(|word| word == shown), "OK, but {line} is not {shown}: {}", self.story());
        for (name, text) in &known.files {
            let read = self.load(index, path, name, text.len());
            assert_eq!(read.as_ref().ok(), Some(text), "{name} of {}: {read:?}: {}", known.vol.name, self.story());
        }
    }

    /// How the mount table shows the disk that a volume is on now: as a source, or as a file of `/dev`.
    fn shown_as(&self, index: usize) -> String {
        let node = self.node_of(index).to_string_lossy().into_owned();
        if self.volumes[index].is_raw { node.replacen("/dev", "", 1) } else { node }
    }

    /// Writes a file, or its text to a place of its own on a raw disk, and makes sure that it is on the disk.
    fn store(&self, index: usize, path: &Path, name: &str, text: &str) -> std::io::Result<()> {
        if !self.volumes[index].is_raw {
            return self.rig.write(path, name, text);
        }
        let node = fs::OpenOptions::new().write(true).open(self.inside(path))?;
        node.write_all_at(text.as_bytes(), place_of(name))?;
        node.sync_all()
    }

    fn load(&self, index: usize, path: &Path, name: &str, length: usize) -> std::io::Result<String> {
        if !self.volumes[index].is_raw {
            return self.rig.read(path, name);
        }
        let mut bytes = vec![0; length];
        fs::File::open(self.inside(path))?.read_exact_at(&mut bytes, place_of(name))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.rig.machine().droplet.path(path)
    }

    /// Where Nomad stages a volume for readers.
    fn reading(&self, index: usize) -> PathBuf {
        self.rig.staging(&self.volumes[index].vol).with_file_name("ro-file-system-single-node-reader-only")
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
                if !self.volumes[index].is_raw {
                    self.assert_there(index, &self.rig.staging(&self.volumes[index].vol));
                }
                "OK".to_owned()
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    fn stage_for_reading(&mut self, index: usize) -> String {
        let (known, staging) = (&self.volumes[index], self.reading(index));
        if !known.is_attached || known.is_raw {
            return "not possible".to_owned();
        }
        match self.rig.stage_at(&known.vol.mode(Mode::SINGLE_NODE_READER_ONLY), &staging) {
            Ok(()) => {
                self.assert_there(index, &staging);
                assert!(self.store(index, &staging, "probe", "x").is_err(), "{}", self.story());
                "OK".to_owned()
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    /// The volume grows in the cloud, and the node is told.
    fn expand(&mut self, index: usize) -> String {
        let known = &self.volumes[index];
        if !known.is_attached || known.gib >= 4 {
            return "not possible".to_owned();
        }
        let (vol, gib) = (known.vol.clone(), known.gib + 1);
        self.rig.resize(&vol, gib);
        self.volumes[index].gib = gib;
        self.volumes[index].vol.csi.publish_context = self.rig.context(&vol.name, gib);
        let at = if self.volumes[index].is_raw { self.rig.target(&vol, "one") } else { self.rig.staging(&vol) };
        match self.rig.client().node_expand(&vol.csi.id, &at, i64::try_from(gib << 30).unwrap()) {
            Ok(size) => {
                assert_eq!(u64::try_from(size).unwrap(), gib << 30, "{}", self.story());
                self.assert_there(index, &at);
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
                let written = self.store(index, &target, "probe", "x");
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
        let shown = self.shown_as(index);
        let target = self.rig.target(&self.volumes[index].vol, alloc);
        if !self.rig.mount_at(&target).is_some_and(|line| line.split(' ').any(|word| word == shown)) {
            return "not published".to_owned();
        }
        let (name, text) = (format!("file-{}", self.rng.u8(..8)), format!("{:x}", self.rng.u64(..)).repeat(100));
        match self.store(index, &target, &name, &text) {
            Ok(()) => {
                self.volumes[index].files.insert(name, text);
                "OK".to_owned()
            }
            Err(err) => {
                // What failed half way may be either, so it is not counted on.
                if !matches!(err.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) {
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
        self.unstage_from(index, &self.rig.staging(&self.volumes[index].vol))
    }

    fn unstage_from(&self, index: usize, staging: &Path) -> String {
        match self.rig.client().unstage(&self.volumes[index].vol.csi.id, staging) {
            Ok(()) => {
                assert_eq!(self.rig.mount_at(staging), None, "{}", self.story());
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
        if self.volumes[index].is_raw {
            self.rig.renew_node(&node);
        }
        self.rig.detach(&self.volumes[index].vol);
        self.volumes[index].is_attached = false;
        self.sysfs.hide(&node);
        if !self.volumes[index].is_raw {
            self.rig.hide_node(&node);
        }
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
        self.rig.show_node(&node);
        self.sysfs.show_scsi(&node, &vol.name, "running\n");
        node.display().to_string()
    }

    /// The kernel gives up on a file system, as after an error of the disk.
    fn shut_down(&mut self, index: usize) -> String {
        let vol = &self.volumes[index].vol;
        let staging = self.rig.staging(vol);
        let is_mounted = self.rig.mount_at(&staging).is_some();
        if !is_mounted || vol.name.contains("btrfs") || self.volumes[index].is_raw || !self.volumes[index].is_attached {
            return "not possible".to_owned();
        }
        let mut xfs_io = self.rig.machine().droplet.command(Path::new("xfs_io"));
        let status = xfs_io.args(["-x", "-c", "shutdown"]).arg(&staging).output().unwrap().status;
        status.to_string()
    }

    /// The plugin is killed somewhere in the middle of a call, and another one takes its place.
    fn kill_during_a_call(&mut self, index: usize, alloc: &str) -> String {
        let vol = self.volumes[index].vol.clone();
        let (staging, target) = (self.rig.staging(&vol), self.rig.target(&vol, alloc));
        self.rig.machine().prepare(&staging, &target).ok();
        let client = Client::connect(&self.rig.machine().socket());
        let (verb, is_read_only) = (self.rng.usize(..VERBS.len()), self.rng.bool());
        let call = thread::spawn(move || match VERBS[verb] {
            "stage" => drop(client.stage(&vol.csi, &staging)),
            "publish" => drop(client.publish(&vol.csi, &staging, &target, is_read_only)),
            "unpublish" => drop(client.unpublish(&vol.csi.id, &target)),
            "unstage" => drop(client.unstage(&vol.csi.id, &staging)),
            _ => drop(client.node_expand(&vol.csi.id, &staging, 0)),
        });
        thread::sleep(Duration::from_micros(self.rng.u64(..20_000)));
        self.rig.restart();
        call.join().unwrap();
        format!("restarted during {}", VERBS[verb])
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
            for staging in [self.rig.staging(&vol), self.reading(index)] {
                let unstaged = self.rig.client().unstage(&vol.csi.id, &staging);
                unstaged.unwrap_or_else(|err| panic!("{err}: {}", self.story()));
            }
            let left: Vec<String> = self.rig.machine().droplet.mounts();
            let left: Vec<&String> = left.iter().filter(|line| line.contains(&format!("/{}/", vol.name))).collect();
            assert!(left.is_empty(), "{left:?}: {}", self.story());
            self.attach(index);
            self.rig.stage(&vol).unwrap_or_else(|err| panic!("{err}: {}", self.story()));
            self.rig.publish(&vol, "last").unwrap_or_else(|err| panic!("{err}: {}", self.story()));
            self.assert_there(index, &self.rig.target(&vol, "last"));
            self.rig.unpublish(&vol, "last").unwrap();
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
