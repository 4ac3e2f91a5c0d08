//! One droplet with a plugin on it, and volumes that are attached to it without the controller's help: what the tests of
//! the node side work with.
//!
//! Owns the way from "there is a volume" to "Nomad calls the node for it", a sysfs that can hide disks, and the comparison
//! of a disk's bytes. Attaching goes straight to the simulated cloud, so that these tests do not depend on the controller.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use do_csi_plugin::id::VolumeName;
use do_csi_plugin::proto::csi::volume_capability::access_mode::Mode;
use do_csi_plugin::proto::csi::volume_capability::{Access_type, AccessMode, BlockVolume, MountVolume};
use do_csi_plugin::request::publish_context::ContextKeys;
use do_csi_plugin::size::Gib;
use grpcio::RpcStatusCode;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::PROGRAM;
use crate::sim::{Limits, NewVolume, Rules, SimConfig};
use crate::support::client::{Client, Outcome, Volume, capability};
use crate::support::cloud::{Cloud, Machine};
use crate::support::plugin::Plugin;
use crate::support::wait_for;

const LIMIT: Duration = Duration::from_secs(20);

/// A volume as the tests know it.
#[derive(Debug, Clone)]
pub struct Vol {
    /// What Nomad keeps of it.
    pub csi: Volume,
    /// Its name at DigitalOcean.
    pub name: String,
}

impl Vol {
    /// The same volume, with another file system asked for.
    pub fn fs(&self, fs: &str) -> Vol {
        self.mount(|mount| mount.fs_type = fs.to_owned())
    }

    /// The same volume, with these mount flags.
    pub fn flags(&self, flags: &[&str]) -> Vol {
        self.mount(|mount| mount.mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect())
    }

    /// The same volume, in this access mode.
    pub fn mode(&self, mode: Mode) -> Vol {
        let mut vol = self.clone();
        vol.csi.capability.access_mode = Some(AccessMode { mode: mode.into(), ..Default::default() }).into();
        vol
    }

    /// The same volume, as a raw block device.
    pub fn block(&self) -> Vol {
        let mut vol = self.clone();
        vol.csi.capability = capability(Access_type::Block(BlockVolume::default()), Mode::SINGLE_NODE_WRITER);
        vol
    }

    /// The same volume, with one more entry in its volume context.
    pub fn context(&self, key: &str, value: &str) -> Vol {
        let mut vol = self.clone();
        vol.csi.context.insert(key.to_owned(), value.to_owned());
        vol
    }

    /// The same volume, encrypted, with a key that the caller has.
    pub fn encrypted(&self, key: &str) -> Vol {
        let mut vol = self.context("encrypted", "true");
        vol.csi.secrets = [("encryption-passphrase".to_owned(), key.to_owned())].into();
        vol
    }

    /// The same volume, without its key.
    pub fn keyless(&self) -> Vol {
        let mut vol = self.clone();
        vol.csi.secrets.clear();
        vol
    }

    fn mount(&self, change: impl FnOnce(&mut MountVolume)) -> Vol {
        let mut vol = self.clone();
        if let Some(Access_type::Mount(mount)) = &mut vol.csi.capability.access_type {
            change(mount);
        }
        vol
    }
}

/// The droplet, its plugin, and all that they need.
#[derive(Debug)]
pub struct NodeHarness {
    plugin: Option<Plugin>,
    args: Vec<String>,
    /// What the plugin is started by, with its arguments; empty: by nothing.
    within: Vec<String>,
    /// The cloud; its only machine is the droplet.
    pub cloud: Cloud,
}

impl NodeHarness {
    /// Starts a cloud with one droplet, and the plugin on it.
    pub fn start() -> NodeHarness {
        NodeHarness::start_with(&[])
    }

    /// As [`NodeHarness::start`], with these flags for the plugin.
    pub fn start_with(args: &[&str]) -> NodeHarness {
        NodeHarness::start_by(|_| Vec::new(), args)
    }

    /// As [`NodeHarness::start`], with the plugin started by another program, which gets the plugin's command line as arguments.
    pub fn start_within(within: &[&str]) -> NodeHarness {
        NodeHarness::start_in(|_| within.iter().map(|word| (*word).to_owned()).collect())
    }

    /// As [`NodeHarness::start_within`], with what depends on the directory in which the droplet has everything.
    pub fn start_in(within: impl FnOnce(&Path) -> Vec<String>) -> NodeHarness {
        NodeHarness::start_by(within, &[])
    }

    fn start_by(within: impl FnOnce(&Path) -> Vec<String>, args: &[&str]) -> NodeHarness {
        // More disks than a droplet may have: a test can leave them attached.
        let limits = Limits { attach: 100, ..Limits::default() };
        let config = SimConfig { rules: Rules { limits, ..Rules::default() }, ..SimConfig::default() };
        let cloud = Cloud::start(config, &["node"]).unwrap();
        let (within, args) = (within(cloud.machines[0].home()), args.iter().map(|arg| (*arg).to_owned()).collect());
        let mut rig = NodeHarness { plugin: None, args, within, cloud };
        rig.plugin = Some(rig.launch());
        rig
    }

    fn launch(&self) -> Plugin {
        let mut words = self.within.iter().map(String::as_str).chain([PROGRAM]);
        let mut launch = self.machine().launch(Path::new(words.next().unwrap()));
        launch.command.args(words);
        launch.args.extend(self.args.iter().cloned());
        launch.start().unwrap()
    }

    /// Kills the plugin without warning and starts it anew.
    pub fn restart(&mut self) {
        if let Some(plugin) = self.plugin.take() {
            plugin.kill().unwrap();
        }
        self.plugin = Some(self.launch());
    }

    /// Ends the plugin as an orchestrator does.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        self.plugin.take().unwrap().stop().unwrap()
    }

    /// As [`NodeHarness::restart`], with these flags from now on.
    pub fn restart_with(&mut self, args: &[&str]) {
        self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        self.restart();
    }

    /// The droplet.
    pub fn machine(&self) -> &Machine {
        &self.cloud.machines[0]
    }

    /// A client of the plugin.
    pub fn client(&self) -> &Client {
        &self.plugin().client
    }

    /// The plugin.
    pub fn plugin(&self) -> &Plugin {
        self.plugin.as_ref().unwrap()
    }

    /// A new volume of 1 GiB, attached; formatted by the cloud unless `fs` is empty, in which case nothing is on it.
    pub fn volume(&self, name: &str, fs: &str) -> Vol {
        let new = NewVolume::new(name, 1, "fra1");
        let id = self.cloud.sim.add_volume(&if fs.is_empty() { new } else { new.formatted(fs) }).unwrap();
        self.adopt(&id, name)
    }

    /// Attaches a volume that the cloud has, and gives it as Nomad would know it.
    pub fn adopt(&self, id: &str, name: &str) -> Vol {
        self.attach(id, name);
        let size = self.cloud.sim.volume(id).unwrap().size_gigabytes;
        let mut csi = Volume::mounted(id, "");
        csi.publish_context = self.context(name, size);
        Vol { csi, name: name.to_owned() }
    }

    /// What the controller says of an attached volume.
    pub fn context(&self, name: &str, gib: u64) -> std::collections::HashMap<String, String> {
        ContextKeys::new("dobs.csi.digitalocean.com").write(&VolumeName::parse(name).unwrap(), Gib(gib), false)
    }

    /// Attaches a volume and waits for its link.
    pub fn attach(&self, id: &str, name: &str) {
        self.cloud.sim.attach(id, self.machine().id).unwrap();
        wait_for(LIMIT, || fs::canonicalize(self.link(name)).ok()).unwrap();
        wait_for(LIMIT, || (self.cloud.sim.attached_to(id) == Some(self.machine().id)).then_some(())).unwrap();
        self.cloud.sim.settle().unwrap();
    }

    /// Detaches a volume, mounted or not, and waits until the cloud has done it.
    pub fn detach(&self, vol: &Vol) {
        let sim = &self.cloud.sim;
        sim.detach(&vol.csi.id, self.machine().id).unwrap();
        wait_for(LIMIT, || sim.attached_to(&vol.csi.id).is_none().then_some(())).unwrap();
        sim.settle().unwrap();
    }

    /// The by-id link of a volume.
    pub fn link(&self, name: &str) -> PathBuf {
        self.cloud.sim.device_dir(self.machine().id).join(format!("scsi-0DO_Volume_{name}"))
    }

    /// The device node of an attached volume.
    pub fn node(&self, vol: &Vol) -> PathBuf {
        fs::canonicalize(self.link(&vol.name)).unwrap()
    }

    /// Where Nomad stages a volume for writers.
    pub fn staging(&self, vol: &Vol) -> PathBuf {
        self.machine().staging(&vol.name)
    }

    /// Where Nomad shows a volume to an allocation.
    pub fn target(&self, vol: &Vol, alloc: &str) -> PathBuf {
        self.machine().target(alloc, &vol.name)
    }

    /// Stages a volume at its usual path.
    pub fn stage(&self, vol: &Vol) -> Outcome<()> {
        self.stage_at(vol, &self.staging(vol))
    }

    /// Stages a volume at any path, which is made first, as Nomad does.
    pub fn stage_at(&self, vol: &Vol, staging: &Path) -> Outcome<()> {
        fs::create_dir_all(staging).ok();
        self.client().stage(&vol.csi, staging)
    }

    /// Unstages a volume from its usual path.
    pub fn unstage(&self, vol: &Vol) -> Outcome<()> {
        self.client().unstage(&vol.csi.id, &self.staging(vol))
    }

    /// Publishes a staged volume for writing.
    pub fn publish(&self, vol: &Vol, alloc: &str) -> Outcome<()> {
        self.publish_as(vol, alloc, false)
    }

    /// Publishes a staged volume.
    pub fn publish_as(&self, vol: &Vol, alloc: &str, readonly: bool) -> Outcome<()> {
        let target = self.target(vol, alloc);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        self.client().publish(&vol.csi, &self.staging(vol), &target, readonly)
    }

    /// Unpublishes a volume.
    pub fn unpublish(&self, vol: &Vol, alloc: &str) -> Outcome<()> {
        self.client().unpublish(&vol.csi.id, &self.target(vol, alloc))
    }

    /// The mount table's line for a path, as the droplet sees it.
    pub fn mount_at(&self, path: &Path) -> Option<String> {
        self.machine().droplet.mount_at(path)
    }

    /// A file on the droplet, as reached from here.
    pub fn file(&self, directory: &Path, name: &str) -> PathBuf {
        self.machine().droplet.path(&directory.join(name))
    }

    /// Writes a file on the droplet and makes sure that it is on the disk.
    pub fn write(&self, directory: &Path, name: &str, text: &str) -> std::io::Result<()> {
        let path = self.file(directory, name);
        fs::write(&path, text)?;
        File::open(&path)?.sync_all()?;
        File::open(path.parent().unwrap())?.sync_all()
    }

    /// Reads a file on the droplet.
    pub fn read(&self, directory: &Path, name: &str) -> std::io::Result<String> {
        fs::read_to_string(self.file(directory, name))
    }

    /// The size of the file system that is mounted at a path on the droplet, in bytes.
    pub fn fs_size(&self, at: &Path) -> u64 {
        let stat = self.fs_figures(at);
        stat.blocks() * stat.fragment_size()
    }

    /// What the file system that is mounted at a path on the droplet says of itself.
    pub fn fs_figures(&self, at: &Path) -> nix::sys::statvfs::Statvfs {
        nix::sys::statvfs::statvfs(&self.file(at, ".")).unwrap()
    }

    /// Runs a command on the droplet and gives what it prints; it must succeed.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let out = self.machine().droplet.command(Path::new(program)).args(args).output().unwrap();
        assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Shuts a mounted file system down, as a kernel does that has lost its disk.
    pub fn shut_down(&self, mounted_at: &Path) {
        self.run("xfs_io", &["-x", "-c", "shutdown", &mounted_at.to_string_lossy()]);
    }

    /// Resizes a volume in the cloud and waits until its disk has followed.
    pub fn resize(&self, vol: &Vol, gib: u64) {
        let sim = &self.cloud.sim;
        sim.resize(&vol.csi.id, i64::try_from(gib).unwrap()).unwrap();
        wait_for(LIMIT, || (sim.volume(&vol.csi.id)?.size_gigabytes == gib).then_some(())).unwrap();
        sim.settle().unwrap();
    }

    /// Puts a new node in the place of a disk's, as devtmpfs does between the end of one disk and the next of that name: who
    /// has the old one bound somewhere is left with a deleted one. A loop device's node stays by itself.
    pub fn renew_node(&self, node: &Path) {
        let number = fs::metadata(node).unwrap().rdev();
        let fresh = node.with_file_name(format!("do-csi-test-{number}"));
        nix::sys::stat::mknod(
            &fresh,
            nix::sys::stat::SFlag::S_IFBLK,
            nix::sys::stat::Mode::from_bits_truncate(0o660),
            number,
        )
        .unwrap();
        fs::rename(&fresh, node).unwrap();
    }

    /// Hides the node of a disk that is in use from the plugin, as devtmpfs does when the disk goes. It is part of what a pulled
    /// disk is: a loop device that is in use cannot be pulled.
    pub fn hide_node(&self, node: &Path) {
        self.run("mount", &["--bind", "/dev/null", &node.to_string_lossy()]);
    }

    /// Shows the node of a disk, if it is hidden: another disk may have got its name.
    pub fn show_node(&self, node: &Path) {
        while self.mount_at(node).is_some() {
            self.run("umount", &[&node.to_string_lossy()]);
        }
    }

    /// All bytes of a volume's disk.
    pub fn bytes(&self, vol: &Vol) -> Bytes {
        Bytes::of(&self.cloud.sim.backing_file(&vol.csi.id), &self.node(vol))
    }

    /// Whether these bytes are anywhere on the volume's disk.
    pub fn is_on_disk(&self, vol: &Vol, text: &str) -> bool {
        let mut disk = File::open(self.cloud.sim.backing_file(&vol.csi.id)).unwrap();
        let (mut piece, mut kept) = (vec![0; 1 << 20], 0);
        loop {
            let read = disk.read(&mut piece[kept..]).unwrap();
            if read == 0 {
                return false;
            }
            let seen = &piece[..kept + read];
            // Most of the disk is zero.
            let is_written = seen.iter().any(|byte| *byte != 0);
            if is_written && seen.windows(text.len()).any(|window| window == text.as_bytes()) {
                return true;
            }
            let end = seen.len();
            kept = end.min(text.len() - 1);
            piece.copy_within(end - kept..end, 0);
        }
    }

    /// Takes everything down and asserts that nothing is left.
    pub fn close(mut self) {
        drop(self.plugin.take());
        self.cloud.close().unwrap();
    }
}

/// A copy of all bytes of a disk at one moment.
#[derive(Debug)]
pub struct Bytes {
    dir: TempDir,
    file: PathBuf,
    node: PathBuf,
}

impl Bytes {
    /// Copies the file behind a loop device.
    pub fn of(file: &Path, node: &Path) -> Bytes {
        File::open(node).unwrap().sync_all().unwrap();
        let dir = TempDir::new().unwrap();
        ok("cp", &["--sparse=always".as_ref(), file.as_os_str(), dir.path().join("copy").as_os_str()]);
        Bytes { dir, file: file.to_owned(), node: node.to_owned() }
    }

    /// Makes the disk what it was, which no device may show at the moment.
    pub fn put_back(&self) {
        ok("cp", &["--sparse=always".as_ref(), self.dir.path().join("copy").as_os_str(), self.file.as_os_str()]);
    }

    /// Whether the disk still has the same bytes.
    pub fn are_still_there(&self) -> bool {
        // A disk that was detached since has nothing left to write.
        File::open(&self.node).and_then(|node| node.sync_all()).ok();
        let (mut a, mut b) = (File::open(&self.file).unwrap(), File::open(self.dir.path().join("copy")).unwrap());
        let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        loop {
            let (n, m) = (a.read(&mut left).unwrap(), b.read(&mut right).unwrap());
            if n != m || left[..n] != right[..m] {
                return false;
            }
            if n == 0 {
                return true;
            }
        }
    }
}

/// Runs a command that must succeed, and gives what it prints.
pub fn ok(program: &str, args: &[&OsStr]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Asserts that a call was refused with this code and that its message has all these words.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(outcome: Outcome<T>, code: RpcStatusCode, words: &[&str]) {
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    for word in words {
        assert!(refusal.message.contains(word), "{word:?} is not in: {refusal}");
    }
}

/// Whether this process has CAP_SYS_RESOURCE, without which `ext4_resize_begin` of the kernel refuses to grow.
pub fn may_grow_ext() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    u64::from_str_radix(bits, 16).unwrap() & (1 << 24) != 0
}

/// The kernel's sysfs at another place, which shows only the disks it is told to, with or without a SCSI identity: where it
/// lists disks, and file systems, there are directories of our own.
#[derive(Debug)]
pub struct Sysfs {
    root: TempDir,
}

impl Sysfs {
    /// The directories that are our own.
    const OWN: [&str; 5] = ["block", "dev/block", "class/block", "devices/virtual/block", "fs"];

    /// Makes one without disks. Start the plugin after it: then its mounts are the plugin's too.
    pub fn new() -> Sysfs {
        let sysfs = Sysfs { root: TempDir::new().unwrap() };
        let bind = |from: &Path, to: &Path| {
            mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        };
        fs::create_dir(sysfs.path()).unwrap();
        bind(Path::new("/sys"), &sysfs.path());
        for directory in Sysfs::OWN {
            let own = sysfs.root.path().join("own").join(directory);
            fs::create_dir_all(&own).unwrap();
            bind(&own, &sysfs.path().join(directory));
        }
        sysfs
    }

    /// Its mount point.
    pub fn path(&self) -> PathBuf {
        self.root.path().join("sys")
    }

    /// The flag that makes a plugin use it.
    pub fn flag(&self) -> String {
        format!("--sys-dir={}", self.path().display())
    }

    /// Shows a disk as the real sysfs does.
    pub fn show(&self, node: &Path) {
        self.hide(node);
        let name = node.file_name().unwrap();
        let real = fs::canonicalize(Path::new("/sys/class/block").join(name)).unwrap();
        let number = fs::read_to_string(real.join("dev")).unwrap();
        symlink(&real, self.path().join("block").join(name)).unwrap();
        symlink(&real, self.path().join("class/block").join(name)).unwrap();
        symlink(&real, self.path().join("dev/block").join(number.trim())).unwrap();
        fs::write(self.number_file(name), number.trim()).unwrap();
    }

    /// Shows a disk no longer, as after it was pulled.
    pub fn hide(&self, node: &Path) {
        let name = node.file_name().unwrap();
        if let Ok(number) = fs::read_to_string(self.number_file(name)) {
            fs::remove_file(self.path().join("dev/block").join(number)).ok();
        }
        for directory in ["block", "class/block"] {
            let place = self.path().join(directory).join(name);
            fs::remove_file(&place).or_else(|_| fs::remove_dir_all(&place)).ok();
        }
    }

    /// Shows a disk with a SCSI identity, as the kernel prints the attributes; gives the directory with them.
    pub fn show_scsi(&self, node: &Path, name: &str, state: &str) -> PathBuf {
        self.hide(node);
        let kernel_name = node.file_name().unwrap();
        let directory = self.path().join("block").join(kernel_name);
        fs::create_dir_all(directory.join("device")).unwrap();
        let real = Path::new("/sys/block").join(kernel_name);
        for file in ["dev", "diskseq"] {
            fs::copy(real.join(file), directory.join(file)).unwrap();
        }
        // The one attribute that changes while the disk is used.
        symlink(real.join("ro"), directory.join("ro")).unwrap();
        let number = fs::read_to_string(directory.join("dev")).unwrap();
        symlink(&directory, self.path().join("dev/block").join(number.trim())).unwrap();
        symlink(&directory, self.path().join("class/block").join(kernel_name)).unwrap();
        fs::write(self.number_file(kernel_name), number.trim()).unwrap();
        let length = u8::try_from(name.len()).unwrap();
        let page_83 = [&[0, 0x83, 0, length + 4, 2, 0, 0, length], name.as_bytes()].concat();
        let serial = &name.as_bytes()[..name.len().min(36)];
        let page_80 = [&[0, 0x80, 0, u8::try_from(serial.len()).unwrap()], serial].concat();
        let attributes: [(&str, &[u8]); 6] = [
            ("vendor", b"DO      \n"),
            ("model", b"Volume          \n"),
            ("state", state.as_bytes()),
            ("rescan", b""),
            ("vpd_pg83", &page_83),
            ("vpd_pg80", &page_80),
        ];
        attributes.iter().for_each(|(file, text)| fs::write(directory.join("device").join(file), text).unwrap());
        directory.join("device")
    }

    fn number_file(&self, name: &OsStr) -> PathBuf {
        self.root.path().join(format!("number-of-{}", name.to_string_lossy()))
    }
}

impl Drop for Sysfs {
    fn drop(&mut self) {
        umount2(&self.path(), MntFlags::MNT_DETACH).ok();
    }
}
