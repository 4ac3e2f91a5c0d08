//! The host part against the real kernel and the real programs, on loop devices of its own.
//!
//! Needs root, and is meant to run in a private mount namespace: `make test-root` does both.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use do_csi_plugin::error::command::{CommandError, Exit};
use do_csi_plugin::error::{Chain, Error};
use do_csi_plugin::fs::FsKind;
use do_csi_plugin::host::bind::{Held, apply_bind};
use do_csi_plugin::host::command::{Cmd, Output, Runner, SystemRunner, Tool, Until, find_tools};
use do_csi_plugin::host::device::lookup::{LookupResult, await_device, observe_device};
use do_csi_plugin::host::device::{Device, DevicePlaces};
use do_csi_plugin::host::fsck::{apply_check, observe_check_need};
use do_csi_plugin::host::grow::{ensure_grown, observe_is_smaller};
use do_csi_plugin::host::mkfs::apply_format;
use do_csi_plugin::host::mkfs_options::FormatOptions;
use do_csi_plugin::host::mount::{
    Unmount, apply_flush, apply_mount, apply_own_flags, apply_unmount, apply_unmount_within,
};
use do_csi_plugin::host::mount_options::MountOptions;
use do_csi_plugin::host::mount_table::{Reading, observe_mounts, observe_mounts_by};
use do_csi_plugin::host::probe::content::{Content, observe_content};
use do_csi_plugin::id::VolumeName;
use do_csi_plugin::size::Gib;
use do_csi_plugin::sync::semaphore::Semaphore;
use do_csi_plugin::sync::volume_lock::{VolumeGuard, VolumeKey, VolumeLocks};
use tempfile::TempDir;

use crate::harness::{Bytes, Sysfs, may_grow_ext, ok};
use crate::sim::loops::make_device;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A disk of our own: a sparse file behind a loop device, and the by-id link that leads to it.
pub struct Disk {
    root: TempDir,
    name: VolumeName,
    node: PathBuf,
    /// Keeps the loop device alive: however the test ends, the device ends with it.
    keeper: Option<File>,
}

impl Disk {
    pub fn new(size: u64) -> Disk {
        let root = TempDir::new().unwrap();
        File::create(root.path().join("disk")).unwrap().set_len(size).unwrap();
        fs::create_dir(root.path().join("by-id")).unwrap();
        fs::create_dir(root.path().join("mnt")).unwrap();
        let mut disk = Disk { root, name: VolumeName::parse("vol").unwrap(), node: PathBuf::new(), keeper: None };
        disk.attach();
        disk
    }

    fn attach(&mut self) {
        let (node, keeper) = make_device(&self.file()).unwrap();
        (self.node, self.keeper) = (node, Some(keeper));
        let link = self.places().link(&self.name);
        fs::remove_file(&link).ok();
        std::os::unix::fs::symlink(&self.node, link).unwrap();
    }

    pub fn file(&self) -> PathBuf {
        self.root.path().join("disk")
    }

    fn mnt(&self) -> PathBuf {
        self.root.path().join("mnt").canonicalize().unwrap()
    }

    fn places(&self) -> DevicePlaces {
        DevicePlaces { links: self.root.path().join("by-id"), ..DevicePlaces::default() }
    }

    fn observe(&self) -> LookupResult {
        observe_device(&self.places(), &self.name, None).unwrap()
    }

    pub fn device(&self) -> Device {
        let seen = self.observe();
        let LookupResult::Ready(device) = seen else { panic!("{seen}") };
        device
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        let node = OpenOptions::new().write(true).open(&self.node).unwrap();
        node.write_all_at(bytes, at).unwrap();
        node.sync_all().unwrap();
    }

    pub fn bytes(&self) -> Bytes {
        Bytes::of(&self.file(), &self.node)
    }

    /// A copy of all bytes that stays as long as the disk does.
    fn copy(&self, name: &str) -> PathBuf {
        let copy = self.root.path().join(name);
        ok("cp", &["--sparse=always".as_ref(), self.file().as_os_str(), copy.as_os_str()]);
        copy
    }

    pub fn close(mut self) {
        self.detach();
    }

    fn detach(&mut self) {
        drop(self.keeper.take());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.keeper.is_some() {
            for mount in observe_mounts().unwrap().iter().filter(|mount| mount.target.starts_with(self.root.path())) {
                nix::mount::umount2(&mount.target, nix::mount::MntFlags::MNT_DETACH).ok();
            }
        }
    }
}

/// Everything the functions under test need beside a disk.
pub struct Bench {
    pub guard: VolumeGuard,
    slots: Semaphore,
    pub runner: SystemRunner,
}

impl Bench {
    pub fn new() -> Bench {
        let guard = VolumeLocks::new().hold(key(), Duration::ZERO).unwrap();
        Bench { guard, slots: Semaphore::new(2, "others run"), runner: SystemRunner::new(find_tools().unwrap()) }
    }

    pub fn format(&self, device: &Device, fs: FsKind) -> Result<(), Error> {
        self.format_with(device, fs, &[])
    }

    fn format_with(&self, device: &Device, fs: FsKind, options: &[(&str, &str)]) -> Result<(), Error> {
        let options = FormatOptions::parse(options.iter().copied()).unwrap();
        apply_format(&self.guard, &self.slots, &self.runner, device, fs, &options)
    }

    pub fn content(&self, disk: &Disk) -> Content {
        observe_content(&self.runner, &disk.device()).unwrap()
    }

    fn mount(&self, disk: &Disk, fs: FsKind) {
        apply_mount(&self.guard, &disk.device(), fs, &disk.mnt(), &MountOptions::default(), Duration::from_secs(5))
            .unwrap();
    }

    fn unmount(&self, disk: &Disk) {
        assert!(apply_unmount_within(&self.guard, &disk.mnt(), Duration::from_secs(5)).unwrap());
    }
}

fn key() -> VolumeKey {
    VolumeKey::Id("vol".into())
}

fn is_filesystem(content: &Content, fs: FsKind) -> bool {
    matches!(content, Content::Filesystem(found) if found.kind == fs)
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_blank_disk_is_formatted_mounted_and_never_formatted_again() {
    let bench = Bench::new();
    for fs in FsKind::ALL {
        let disk = Disk::new(GIB);
        let device = disk.device();
        assert_eq!(bench.content(&disk), Content::AllZero);
        bench.format(&device, fs).unwrap();
        assert!(is_filesystem(&bench.content(&disk), fs), "{fs}");
        bench.mount(&disk, fs);
        fs::write(disk.mnt().join("hello"), "world").unwrap();
        // Waited for as long as the call that asks for it lasts.
        let call = Until::new(&bench.runner, Instant::now() + Duration::from_millis(200));
        let options = FormatOptions::default();
        let refused = apply_format(&bench.guard, &bench.slots, &call, &device, fs, &options).unwrap_err();
        assert!(matches!(&refused, Error::WillNotFormat { found, .. } if found.contains("in use")), "{refused}");
        apply_flush(&bench.guard, &disk.mnt()).unwrap();
        bench.unmount(&disk);
        let before = disk.bytes();
        for other in FsKind::ALL {
            let refused = bench.format(&device, other).unwrap_err();
            assert!(matches!(&refused, Error::WillNotFormat { found, .. } if found.contains(fs.name())), "{refused}");
        }
        assert!(before.are_still_there(), "{fs}");
        bench.mount(&disk, fs);
        assert_eq!(fs::read_to_string(disk.mnt().join("hello")).unwrap(), "world");
        bench.unmount(&disk);
        disk.close();
    }
}

/// Something on a disk: what it is, the bytes and their places, and the words that the refusal must hold.
type Foreign = (&'static str, Vec<(u64, Vec<u8>)>, &'static str);

fn foreign_contents() -> Vec<Foreign> {
    let size = 320 * MIB;
    let mut mbr = vec![0; 512];
    mbr[446..462].copy_from_slice(&[0, 32, 33, 0, 0x83, 254, 255, 255, 0, 8, 0, 0, 0, 0, 9, 0]);
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut luks = b"LUKS\xba\xbe\x00\x01aes".to_vec();
    luks.resize(592, 0);
    luks[168..204].copy_from_slice(b"5e2e7d5c-8d2c-4b4f-9b3c-0f6f6b0f0a11");
    let mut swap = vec![0; 4096];
    swap[1024] = 1;
    swap[1028] = 255;
    swap[4086..].copy_from_slice(b"SWAPSPACE2");
    let mut ext2_journal_free = vec![0; 1024];
    ext2_journal_free[0] = 7;
    let xfs = include_bytes!("../fixtures/superblock/xfs.bin").to_vec();
    let ext4 = include_bytes!("../fixtures/superblock/ext4.bin").to_vec();
    vec![
        ("XFS and ext4 at once", vec![(0, xfs), (1024, ext4)], "contradicting"),
        ("a partition table", vec![(0, mbr)], "partition table"),
        ("LUKS", vec![(0, luks)], "LUKS"),
        ("LUKS2", vec![(0, include_bytes!("../fixtures/superblock/luks2.bin").to_vec())], "LUKS"),
        ("GPT", vec![(0, include_bytes!("../fixtures/superblock/gpt.bin").to_vec())], "partition table"),
        ("swap", vec![(0, swap)], "swap"),
        ("squashfs", vec![(0, squashfs())], "squashfs"),
        ("a byte at the very start", vec![(0, vec![1])], "byte 0"),
        ("a byte at the end of the head", vec![(4 * MIB - 1, vec![1])], "byte 4194303"),
        ("a byte where the tail begins", vec![(size - 4 * MIB, vec![1])], "byte 331350016"),
        ("the very last byte", vec![(size - 1, vec![1])], "byte 335544319"),
        ("text all over", vec![(0, b"my data ".repeat(1 << 20))], "byte 0"),
        ("text in the middle", vec![(5 * MIB, b"my data ".repeat(1 << 20))], "unknown data"),
        ("half a note", vec![(4096, b"do-csi-plugin: this disk was blank".to_vec())], "byte 4096"),
        ("a kilobyte where ext has its superblock", vec![(1024, ext2_journal_free)], "byte 1024"),
    ]
}

fn squashfs() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..4].copy_from_slice(b"hsqs");
    bytes[28] = 4;
    bytes[40..44].copy_from_slice(&[0, 4, 0, 0]);
    bytes
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_holds_anything_is_refused_and_not_touched() {
    let bench = Bench::new();
    for (what, writes, words) in foreign_contents() {
        let disk = Disk::new(320 * MIB);
        writes.iter().for_each(|(at, bytes)| disk.write(*at, bytes));
        let before = disk.bytes();
        for fs in FsKind::ALL {
            let refused = bench.format(&disk.device(), fs).unwrap_err();
            assert!(
                matches!(&refused, Error::WillNotFormat { found, .. } if found.contains(words)),
                "{what}: {refused}"
            );
        }
        assert!(before.are_still_there(), "{what}");
        disk.close();
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_cannot_be_read_is_never_blank() {
    let bench = Bench::new();
    // The loop device stays as large as it was: what lies beyond the end of the file cannot be read.
    for readable in [0, MIB, 4 * MIB, 160 * MIB, 320 * MIB - 4096] {
        let disk = Disk::new(320 * MIB);
        let device = disk.device();
        OpenOptions::new().write(true).open(disk.file()).unwrap().set_len(readable).unwrap();
        let unreadable = observe_content(&bench.runner, &device).unwrap_err();
        assert!(matches!(unreadable, Error::Io { doing: "reading", .. }), "{readable}: {unreadable}");
        for fs in FsKind::ALL {
            assert!(matches!(bench.format(&device, fs), Err(Error::Io { .. })), "{readable}");
        }
        assert_eq!(fs::metadata(disk.file()).unwrap().len(), readable);
        disk.close();
    }
}

/// Runs the real program and kills it after a while, as a crash of the machine would.
#[derive(Debug)]
struct Killer {
    real: SystemRunner,
    after: Duration,
}

impl Runner for Killer {
    fn run(&self, cmd: &Cmd) -> Result<Output, CommandError> {
        if cmd.tool() == Tool::Blkid {
            return self.real.run(cmd);
        }
        let mut child = Command::new("sh").arg("-c").arg(format!("exec {cmd} >&- 2>&-")).spawn().unwrap();
        std::thread::sleep(self.after);
        child.kill().ok();
        child.wait().unwrap();
        Ok(Output { exit: Exit::Signal(9), stdout: Vec::new(), stderr: String::new() })
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_killed_mkfs_is_finished_or_refused_but_never_taken_for_something_else() {
    let bench = Bench::new();
    let mut seed = 20_261_123_u64;
    let mut seen = std::collections::BTreeMap::new();
    // How late each mkfs is killed at most, in microseconds: about as late as it ends by itself.
    let (mut limits, mut has_finished) = ([30_000; 4], [false; 4]);
    for round in 0..800 {
        let index = round % 4;
        let fs = FsKind::ALL[index];
        // Those that are always too early or too late are killed some more times.
        if round >= 64 && has_finished[index] {
            continue;
        }
        // A linear congruential generator: the same delays in every run.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let after = (seed >> 33) % limits[index];
        let killer = Killer { real: bench.runner.clone(), after: Duration::from_micros(after) };
        let disk = Disk::new(4 * GIB);
        apply_format(&bench.guard, &bench.slots, &killer, &disk.device(), fs, &FormatOptions::default()).unwrap_err();
        let content = bench.content(&disk);
        *seen.entry(format!("{fs}: {}", content.to_string().split(" (").next().unwrap())).or_insert(0) += 1;
        match &content {
            Content::AllZero => {
                limits[index] = limits[index].max(2 * after).min(100_000);
                bench.format(&disk.device(), fs).unwrap();
            }
            Content::Unfinished(kind) => {
                assert_eq!(*kind, fs, "round {round}");
                bench.format(&disk.device(), fs).unwrap();
                has_finished[index] = true;
            }
            Content::Filesystem(found) => {
                limits[index] = limits[index].min(after).max(1000);
                assert_eq!(found.kind, fs, "round {round}");
            }
            Content::Unrecognised { .. } => {
                let before = disk.bytes();
                bench.format(&disk.device(), fs).unwrap_err();
                assert!(before.are_still_there(), "round {round}");
                continue;
            }
            Content::Encrypted(_) | Content::OtherSignature { .. } | Content::Ambivalent { .. } => {
                panic!("round {round}: {fs}: {content}")
            }
        }
        bench.mount(&disk, fs);
        fs::write(disk.mnt().join("file"), "kept").unwrap();
        bench.unmount(&disk);
        assert!(is_filesystem(&bench.content(&disk), fs), "round {round}");
        disk.close();
    }
    eprintln!("{seen:?}");
    assert_eq!(has_finished, [true; 4], "not every mkfs was killed half way and finished: {seen:?}");
}

/// A runner under which the machine goes down just before mkfs starts.
#[derive(Debug)]
struct PowerCut(SystemRunner);

impl Runner for PowerCut {
    fn run(&self, cmd: &Cmd) -> Result<Output, CommandError> {
        if cmd.tool() == Tool::Blkid {
            return self.0.run(cmd);
        }
        Ok(Output { exit: Exit::Signal(9), stdout: Vec::new(), stderr: String::new() })
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_whose_formatting_never_started_is_formatted_next_time_as_it_was_meant_to_be() {
    let bench = Bench::new();
    let cut = PowerCut(bench.runner.clone());
    for (fs, block_size) in FsKind::ALL.map(|fs| (fs, "4096")).into_iter().chain([(FsKind::Ext4, "1024")]) {
        let disk = Disk::new(512 * MIB);
        let pairs = (fs != FsKind::Btrfs).then_some(("block-size", block_size));
        let options = FormatOptions::parse(pairs).unwrap();
        apply_format(&bench.guard, &bench.slots, &cut, &disk.device(), fs, &options).unwrap_err();
        // Only where a finished file system overwrites it for certain is a note left, that says what was begun.
        let has_note = matches!(fs, FsKind::Ext4 | FsKind::Ext3) && block_size == "4096";
        let want = if has_note { Content::Unfinished(fs) } else { Content::AllZero };
        assert_eq!(bench.content(&disk), want, "{fs}");
        if has_note {
            let before = disk.bytes();
            assert!(matches!(bench.format(&disk.device(), FsKind::Xfs), Err(Error::WillNotFormat { .. })));
            assert!(before.are_still_there());
        }
        apply_format(&bench.guard, &bench.slots, &bench.runner, &disk.device(), fs, &options).unwrap();
        let mut second_block = [0; 4096];
        File::open(&disk.node).unwrap().read_exact_at(&mut second_block, 4096).unwrap();
        assert!(!second_block.starts_with(b"do-csi-plugin"), "{fs}");
        disk.close();
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_every_parameter_reaches_the_file_system() {
    let bench = Bench::new();
    type Pairs = &'static [(&'static str, &'static str)];
    let asked: [(FsKind, Pairs, &str, &[&str]); 4] = [
        (
            FsKind::Xfs,
            &[("block-size", "1024"), ("inode-size", "512"), ("reflink", "false"), ("label", "data.1")],
            "xfs_db -r -c info -c label",
            &["bsize=1024", "isize=512", "reflink=0", "data.1"],
        ),
        (
            FsKind::Ext4,
            &[
                ("block-size", "2048"),
                ("inode-size", "1024"),
                ("inode-ratio", "65536"),
                ("reserved-percent", "0"),
                ("label", "data_1"),
            ],
            "dumpe2fs -h",
            &[
                "Block size:               2048",
                "Inode size:\t          1024",
                "Inode count:              8192",
                "data_1",
            ],
        ),
        (FsKind::Ext3, &[("label", "old")], "dumpe2fs -h", &["Block size:               4096", "old"]),
        (FsKind::Btrfs, &[("label", "tree")], "btrfs inspect-internal dump-super", &["tree"]),
    ];
    for (fs, options, show, words) in asked {
        let disk = Disk::new(512 * MIB);
        bench.format_with(&disk.device(), fs, options).unwrap();
        let shown = ok("sh", &["-c".as_ref(), format!("{show} {} 2>&1", disk.node.display()).as_ref()]);
        words.iter().for_each(|word| assert!(shown.contains(word), "{fs}: {word} is not in {shown}"));
        bench.mount(&disk, fs);
        bench.unmount(&disk);
        disk.close();
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_label_that_blkid_prints_with_a_blank_is_read_back() {
    let bench = Bench::new();
    let disk = Disk::new(512 * MIB);
    ok(
        "mke2fs",
        &["-q".as_ref(), "-L".as_ref(), "my = data".as_ref(), "-t".as_ref(), "ext4".as_ref(), disk.node.as_os_str()],
    );
    let Content::Filesystem(found) = bench.content(&disk) else { panic!() };
    assert_eq!(found.label.as_deref(), Some("my = data"));
    assert_eq!(found.uuid.unwrap().len(), 36);
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_sample_between_the_ends_is_found_wherever_it_lies() {
    let disk = Disk::new(8192 * GIB);
    let bench = Bench::new();
    let span = 8192 * GIB - 8 * MIB;
    for i in [0, 1, 31, 63] {
        let at = 4 * MIB + span / 64 * i + span / 128;
        let at = at - at % 4096 + 17;
        disk.write(at, b"x");
        assert_eq!(bench.content(&disk), Content::Unrecognised { at, what: None });
        disk.write(at, &[0]);
    }
    assert_eq!(bench.content(&disk), Content::AllZero);
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_the_disk_is_looked_for_anew_each_time() {
    let disk = Disk::new(64 * MIB);
    let (places, name) = (disk.places(), disk.name.clone());
    let device = disk.device();
    assert_eq!((device.path(), device.size().0), (disk.node.as_path(), 64 * MIB));
    assert!(matches!(
        observe_device(&places, &name, Some(Gib(1))).unwrap(),
        LookupResult::TooSmall { want: Gib(1), .. }
    ));
    let link = places.link(&name);
    fs::remove_file(&link).unwrap();
    assert!(matches!(disk.observe(), LookupResult::Missing { .. }));
    std::os::unix::fs::symlink("/dev/no-such-disk", &link).unwrap();
    assert!(matches!(disk.observe(), LookupResult::Missing { .. }));
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(disk.file(), &link).unwrap();
    assert!(matches!(disk.observe(), LookupResult::NotABlockDevice { .. }));
    fs::remove_file(&link).unwrap();
    assert!(matches!(Disk::new(0).observe(), LookupResult::ZeroSize { .. }));
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_was_replaced_under_the_same_name_is_not_used() {
    let bench = Bench::new();
    // Another test may take the device in between; then it is tried with another one.
    let (disk, device) = loop {
        let mut disk = Disk::new(512 * MIB);
        let device = disk.device();
        disk.detach();
        if Command::new("losetup").arg(&disk.node).arg(disk.file()).output().unwrap().status.success() {
            disk.keeper = Some(File::open(&disk.node).unwrap());
            ok("losetup", &["--detach".as_ref(), disk.node.as_os_str()]);
            break (disk, device);
        }
    };
    let before = disk.bytes();
    for refused in [
        device.open().map(drop),
        observe_content(&bench.runner, &device).map(drop),
        bench.format(&device, FsKind::Ext4),
        apply_mount(&bench.guard, &device, FsKind::Xfs, &disk.mnt(), &MountOptions::default(), Duration::ZERO)
            .map(drop),
    ] {
        assert!(matches!(&refused, Err(Error::WrongDevice { found, .. }) if found.contains("replaced")), "{refused:?}");
    }
    assert!(before.are_still_there());
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_link_that_comes_late_is_waited_for_and_one_that_never_comes_is_not() {
    let bench = Bench::new();
    let disk = Disk::new(64 * MIB);
    let (places, name, node) = (disk.places(), disk.name.clone(), disk.node.clone());
    let link = places.link(&name);
    fs::remove_file(&link).unwrap();
    let wait = |budget| await_device(&bench.guard, &places, &name, None, budget);
    let missing = wait(Duration::from_millis(50)).unwrap_err();
    assert!(
        matches!(&missing, Error::DeviceMissing { found, .. } if found.contains("scsi-0DO_Volume_vol")),
        "{missing}"
    );
    let udev = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        std::os::unix::fs::symlink(&node, &link).unwrap();
    });
    assert_eq!(wait(Duration::from_secs(20)).unwrap().path(), disk.node);
    udev.join().unwrap();
    let too_small = await_device(&bench.guard, &places, &name, Some(Gib(2)), Duration::from_millis(20)).unwrap_err();
    assert!(too_small.to_string().contains("less than 2 GiB"), "{too_small}");
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_file_system_is_grown_with_its_disk_and_keeps_its_files() {
    let bench = Bench::new();
    for fs in FsKind::ALL {
        let disk = Disk::new(512 * MIB);
        bench.format(&disk.device(), fs).unwrap();
        assert!(!observe_is_smaller(&disk.device(), fs).unwrap(), "{fs}");
        bench.mount(&disk, fs);
        let grow = || ensure_grown(&bench.guard, &bench.slots, &bench.runner, &disk.device(), fs, &disk.mnt());
        assert!(!grow().unwrap(), "{fs}");
        fs::write(disk.mnt().join("file"), "kept").unwrap();
        OpenOptions::new().write(true).open(disk.file()).unwrap().set_len(3 * GIB).unwrap();
        ok("losetup", &["-c".as_ref(), disk.node.as_os_str()]);
        if matches!(fs, FsKind::Ext4 | FsKind::Ext3) && !may_grow_ext() {
            // Without CAP_SYS_RESOURCE the kernel refuses, which must be said and must leave everything as it was.
            let refused = grow().unwrap_err();
            assert!(
                Chain(&refused).to_string().contains("lacks the capability CAP_SYS_RESOURCE"),
                "{}",
                Chain(&refused)
            );
            assert_eq!(fs::read_to_string(disk.mnt().join("file")).unwrap(), "kept");
            bench.unmount(&disk);
            disk.close();
            continue;
        }
        assert!(grow().unwrap(), "{fs}");
        assert!(!grow().unwrap(), "{fs}");
        let stat = nix::sys::statfs::statfs(&disk.mnt()).unwrap();
        assert!(stat.blocks() * u64::try_from(stat.block_size()).unwrap() > 2700 * MIB, "{fs}");
        assert_eq!(fs::read_to_string(disk.mnt().join("file")).unwrap(), "kept");
        bench.unmount(&disk);
        assert!(!observe_is_smaller(&disk.device(), fs).unwrap(), "{fs}");
        disk.close();
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_an_ext4_with_errors_is_checked_and_one_beyond_repair_is_left_to_a_person() {
    let bench = Bench::new();
    for fs in [FsKind::Ext4, FsKind::Ext3] {
        let disk = Disk::new(512 * MIB);
        bench.format(&disk.device(), fs).unwrap();
        let device = disk.device();
        let check = || apply_check(&bench.guard, &bench.slots, &bench.runner, &device, fs);
        assert_eq!(observe_check_need(&device, fs).unwrap(), None);
        ok("debugfs", &["-w".as_ref(), "-R".as_ref(), "set_super_value state 2".as_ref(), disk.node.as_os_str()]);
        assert_eq!(observe_check_need(&device, fs).unwrap(), Some("the kernel has seen errors in it"));
        check().unwrap();
        assert_eq!(observe_check_need(&device, fs).unwrap(), None);
        check().unwrap();
        // A root directory that is none cannot be put right without asking.
        ok("debugfs", &["-w".as_ref(), "-R".as_ref(), "clri <2>".as_ref(), disk.node.as_os_str()]);
        ok("debugfs", &["-w".as_ref(), "-R".as_ref(), "set_super_value state 2".as_ref(), disk.node.as_os_str()]);
        let damaged = check().unwrap_err();
        assert!(matches!(damaged, Error::DamagedFilesystem { .. }), "{damaged}");
        assert!(damaged.to_string().contains(&format!("e2fsck -f {}", disk.node.display())), "{damaged}");
        disk.close();
    }
}

/// A runner under which no check comes to its end.
#[derive(Debug)]
struct Endless(SystemRunner);

impl Runner for Endless {
    fn run(&self, cmd: &Cmd) -> Result<Output, CommandError> {
        if cmd.tool() == Tool::E2fsck {
            return Ok(Output { exit: Exit::TimedOut, stdout: Vec::new(), stderr: String::new() });
        }
        self.0.run(cmd)
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_check_that_takes_too_long_is_one_message_with_the_command_to_run() {
    let bench = Bench::new();
    let disk = Disk::new(512 * MIB);
    bench.format(&disk.device(), FsKind::Ext4).unwrap();
    let runner = Endless(bench.runner.clone());
    let refused = apply_check(&bench.guard, &bench.slots, &runner, &disk.device(), FsKind::Ext4).unwrap_err();
    let text = refused.to_string();
    for words in ["vol", &format!("e2fsck -p {}", disk.node.display()), "longer than a call"] {
        assert!(matches!(refused, Error::Unfinished(_)) && text.contains(words), "{text}");
    }
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_damaged_xfs_is_named_with_the_command_that_repairs_it() {
    let bench = Bench::new();
    let disk = Disk::new(512 * MIB);
    bench.format(&disk.device(), FsKind::Xfs).unwrap();
    // The header of the first group's free space.
    disk.write(512, &[0x5a; 512]);
    disk.write(1024, &[0x5a; 512]);
    let options = MountOptions::default();
    let damaged =
        apply_mount(&bench.guard, &disk.device(), FsKind::Xfs, &disk.mnt(), &options, Duration::ZERO).unwrap_err();
    assert!(damaged.to_string().contains(&format!("xfs_repair {}", disk.node.display())), "{}", Chain(&damaged));
    assert!(observe_mounts().unwrap().at(&disk.mnt()).is_none());
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_copy_of_an_xfs_is_mounted_beside_it() {
    let bench = Bench::new();
    let source = Disk::new(512 * MIB);
    bench.format(&source.device(), FsKind::Xfs).unwrap();
    let copy = Disk::new(512 * MIB);
    ok("cp", &["--sparse=always".as_ref(), source.file().as_os_str(), copy.file().as_os_str()]);
    let options = MountOptions::default().with_data("nouuid");
    for disk in [&source, &copy] {
        apply_mount(&bench.guard, &disk.device(), FsKind::Xfs, &disk.mnt(), &options, Duration::ZERO).unwrap();
    }
    bench.unmount(&source);
    bench.unmount(&copy);
    source.close();
    copy.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_the_mount_table_tells_whose_mount_is_where() {
    let bench = Bench::new();
    for fs in FsKind::ALL {
        let (disk, other) = (Disk::new(512 * MIB), Disk::new(512 * MIB));
        bench.format(&disk.device(), fs).unwrap();
        bench.mount(&disk, fs);
        let odd = disk.root.path().canonicalize().unwrap().join("a b\\c\td#e");
        fs::create_dir(&odd).unwrap();
        apply_bind(&bench.guard, &Held::open(&disk.mnt()).unwrap(), &Held::open(&odd).unwrap()).unwrap();
        let table = observe_mounts().unwrap();
        assert_eq!(table.of_device(&disk.device()).count(), 2, "{fs}");
        assert_eq!(table.of_device(&other.device()).count(), 0, "{fs}");
        assert!(table.at(&odd).unwrap().is_of(&disk.device()), "{fs}");
        assert!(table.at(&odd.join("inside")).is_none());
        assert_eq!(table.iter().filter(|mount| mount.target.starts_with(disk.root.path())).count(), 2);
        // A bind of the node shows no file system of the disk, but the disk.
        let block = disk.root.path().canonicalize().unwrap().join("block");
        File::create(&block).unwrap();
        apply_bind(&bench.guard, &Held::open(&disk.node).unwrap(), &Held::open(&block).unwrap()).unwrap();
        let table = observe_mounts().unwrap();
        assert!(table.at(&block).unwrap().is_node_of(&disk.device()));
        assert!(!table.at(&block).unwrap().is_node_of(&other.device()));
        for target in [&block, &odd] {
            assert!(apply_unmount(&bench.guard, target, Unmount::WhenFree).unwrap());
            assert!(!apply_unmount(&bench.guard, target, Unmount::WhenFree).unwrap());
        }
        bench.unmount(&disk);
        assert!(!apply_unmount(&bench.guard, &disk.mnt().join("missing"), Unmount::WhenFree).unwrap());
        disk.close();
        other.close();
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_is_seen_however_much_is_mounted_and_unmounted_meanwhile() {
    let (kept, restless) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [kept_at, restless_at] = [&kept, &restless].map(|dir| dir.path().canonicalize().unwrap());
    let bind = |at: &Path| {
        nix::mount::mount(Some(at), at, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
    };
    bind(&kept_at);
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                bind(&restless_at);
                nix::mount::umount(&restless_at).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let is_seen = |reading| observe_mounts_by(reading).is_ok_and(|table| table.at(&kept_at).is_some());
        // As a kernel of any age has it read, except that this one would overlook nothing by itself.
        let seen = [Reading::Once, Reading::UntilUndisturbed].map(|reading| (0..500).all(|_| is_seen(reading)));
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(seen, [true, true]);
    });
    // A change is seen by the next reading, and two readings without one are the same.
    let before = observe_mounts().unwrap();
    assert_eq!(before.iter().count(), observe_mounts().unwrap().iter().count());
    nix::mount::umount(&kept_at).unwrap();
    assert_eq!(observe_mounts().unwrap().iter().count() + 1, before.iter().count());
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_bind_mount_becomes_read_only_alone_and_keeps_its_other_flags() {
    let bench = Bench::new();
    let disk = Disk::new(512 * MIB);
    bench.format(&disk.device(), FsKind::Ext4).unwrap();
    let options = MountOptions::parse(["nosuid,nodev", "noatime"]).unwrap();
    apply_mount(&bench.guard, &disk.device(), FsKind::Ext4, &disk.mnt(), &options, Duration::ZERO).unwrap();
    let target = disk.root.path().canonicalize().unwrap().join("target");
    fs::create_dir(&target).unwrap();
    apply_bind(&bench.guard, &Held::open(&disk.mnt()).unwrap(), &Held::open(&target).unwrap()).unwrap();
    for _ in 0..2 {
        apply_own_flags(&bench.guard, &target, &options.clone().read_only()).unwrap();
    }
    let table = observe_mounts().unwrap();
    let (staged, published) = (table.at(&disk.mnt()).unwrap(), table.at(&target).unwrap());
    assert_eq!(options.differs_from(staged), None);
    assert_eq!(options.clone().read_only().differs_from(published), None);
    assert!(options.differs_from(published).unwrap().contains("read-only"));
    assert!(published.is_read_only() && !published.is_super_read_only() && !staged.is_read_only());
    assert_eq!(fs::write(target.join("file"), "x").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    fs::write(disk.mnt().join("file"), "x").unwrap();
    assert!(apply_unmount(&bench.guard, &target, Unmount::WhenFree).unwrap());
    assert!(matches!(apply_own_flags(&bench.guard, &target, &options), Err(Error::Io { .. })));
    bench.unmount(&disk);
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_that_is_not_seen_where_it_should_be_is_taken_back() {
    let bench = Bench::new();
    let disk = Disk::new(512 * MIB);
    bench.format(&disk.device(), FsKind::Ext4).unwrap();
    // The table shows the real path, so nothing is seen at one that has a link on its way.
    let link = disk.root.path().canonicalize().unwrap().join("link");
    std::os::unix::fs::symlink(disk.mnt().parent().unwrap(), &link).unwrap();
    let at = link.join(disk.mnt().file_name().unwrap());
    let options = MountOptions::default();
    let refused = apply_mount(&bench.guard, &disk.device(), FsKind::Ext4, &at, &options, Duration::ZERO);
    assert!(matches!(&refused, Err(Error::WrongDevice { .. })), "{refused:?}");
    assert!(observe_mounts().unwrap().at(&disk.mnt()).is_none());
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_every_flag_of_the_kernel_is_taken_by_it_and_shown() {
    let bench = Bench::new();
    let disk = Disk::new(512 * MIB);
    bench.format(&disk.device(), FsKind::Ext4).unwrap();
    for flags in [
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "sync",
        "dirsync",
        "nosymfollow",
        "noatime",
        "nodiratime",
        "relatime",
        "strictatime",
        "lazytime",
        "rw,suid,dev,exec,async,atime,diratime,nolazytime,loud,defaults,nofail",
        "ro,nosuid,nodev,noexec,noatime,discard",
        "data=ordered,barrier=1",
        "silent",
    ] {
        let options = MountOptions::parse([flags]).unwrap();
        apply_mount(&bench.guard, &disk.device(), FsKind::Ext4, &disk.mnt(), &options, Duration::ZERO).unwrap();
        assert_eq!(options.differs_from(observe_mounts().unwrap().at(&disk.mnt()).unwrap()), None, "{flags}");
        bench.unmount(&disk);
    }
    bench.mount(&disk, FsKind::Ext4);
    let noexec = MountOptions::parse(["noexec"]).unwrap();
    assert!(noexec.differs_from(observe_mounts().unwrap().at(&disk.mnt()).unwrap()).unwrap().contains("noexec"));
    bench.unmount(&disk);
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_busy_mount_is_waited_for_and_a_lost_one_is_taken_out_of_the_way() {
    let bench = Bench::new();
    let disk = Disk::new(512 * MIB);
    bench.format(&disk.device(), FsKind::Xfs).unwrap();
    bench.mount(&disk, FsKind::Xfs);
    let open = File::create(disk.mnt().join("open")).unwrap();
    let busy = apply_unmount_within(&bench.guard, &disk.mnt(), Duration::from_millis(50)).unwrap_err();
    assert!(Chain(&busy).to_string().contains("busy"), "{}", Chain(&busy));
    let user = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(open);
    });
    assert!(apply_unmount_within(&bench.guard, &disk.mnt(), Duration::from_secs(20)).unwrap());
    user.join().unwrap();
    bench.mount(&disk, FsKind::Xfs);
    let open = File::open(disk.mnt()).unwrap();
    assert!(apply_unmount(&bench.guard, &disk.mnt(), Unmount::DiskGone).unwrap());
    assert!(observe_mounts().unwrap().at(&disk.mnt()).is_none());
    drop(open);
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_program_that_does_not_die_keeps_its_volume_locked_until_it_is_gone() {
    let bench = Bench::new();
    let outer = Disk::new(2 * GIB);
    bench.format(&outer.device(), FsKind::Ext4).unwrap();
    bench.mount(&outer, FsKind::Ext4);
    // A disk whose writes never end: its file is on a file system that is frozen.
    let file = outer.mnt().join("inner");
    File::create(&file).unwrap().set_len(512 * MIB).unwrap();
    let (inner, keeper) = make_device(&file).unwrap();
    ok("fsfreeze", &["-f".as_ref(), outer.mnt().as_os_str()]);
    let locks = VolumeLocks::new();
    let guard = locks.hold(key(), Duration::ZERO).unwrap();
    let cmd = Cmd::new(Tool::Mke2fs, Duration::from_millis(500)).args(["-q", "-t", "ext4"]).arg(&inner).holding(&guard);
    let ended = bench.runner.run(&cmd).map(|out| out.exit);
    drop((cmd, guard));
    let is_locked = locks.hold(key(), Duration::ZERO).is_err();
    ok("fsfreeze", &["-u".as_ref(), outer.mnt().as_os_str()]);
    assert_eq!(ended.unwrap(), Exit::Stuck);
    assert!(is_locked);
    drop(locks.hold(key(), Duration::from_secs(60)).unwrap());
    drop(keeper);
    bench.unmount(&outer);
    outer.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_only_so_many_disks_are_formatted_at_once() {
    let bench = Bench::new();
    let disks: Vec<Disk> = (0..3).map(|_| Disk::new(512 * MIB)).collect();
    let slots = Semaphore::new(1, "others run");
    std::thread::scope(|scope| {
        for disk in &disks {
            scope.spawn(|| {
                let options = FormatOptions::default();
                apply_format(&bench.guard, &slots, &bench.runner, &disk.device(), FsKind::Xfs, &options).unwrap();
            });
        }
    });
    disks.into_iter().for_each(Disk::close);
}

/// Zeroes the first block, as a mke2fs that was cut off has left it, and as a mishap leaves it too.
fn lose_superblock(disk: &Disk) {
    disk.write(0, &[0; 4096]);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_an_ext_without_superblock_is_finished_only_if_nothing_was_ever_stored_in_it() {
    let bench = Bench::new();
    for (fs, size) in [(FsKind::Ext4, GIB), (FsKind::Ext3, GIB), (FsKind::Ext4, 300 * GIB)] {
        let disk = Disk::new(size);
        let refused = |why: &str| {
            let before = disk.bytes();
            assert!(matches!(bench.content(&disk), Content::Unrecognised { .. }), "{fs}: {why}");
            assert!(matches!(bench.format(&disk.device(), fs), Err(Error::WillNotFormat { .. })));
            assert!(before.are_still_there(), "{fs}: {why}");
        };
        bench.format(&disk.device(), fs).unwrap();
        lose_superblock(&disk);
        assert_eq!(bench.content(&disk), Content::Unfinished(fs), "{size}");
        bench.format(&disk.device(), fs).unwrap();
        if size > GIB {
            // Comparing so large a disk takes long; what follows does not depend on the size.
            disk.close();
            continue;
        }
        bench.mount(&disk, fs);
        let mut file = File::create(disk.mnt().join("file")).unwrap();
        file.write_all(b"data").unwrap();
        file.sync_all().unwrap();
        let crashed = disk.copy("crashed");
        drop(file);
        bench.unmount(&disk);
        lose_superblock(&disk);
        refused("it holds a file");
        // As a power cut leaves it: the file is in the journal only.
        ok("cp", &["--sparse=always".as_ref(), crashed.as_os_str(), disk.file().as_os_str()]);
        ok("blockdev", &["--flushbufs".as_ref(), disk.node.as_os_str()]);
        lose_superblock(&disk);
        refused("its journal holds a file");
        disk.close();
    }
    // A file system that mke2fs filled itself was never mounted, and has files.
    let disk = Disk::new(GIB);
    let files = TempDir::new().unwrap();
    fs::write(files.path().join("file"), "data").unwrap();
    let kind: [&std::ffi::OsStr; 5] = ["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), "-b".as_ref(), "4096".as_ref()];
    ok("mke2fs", &[&kind[..], &["-d".as_ref(), files.path().as_os_str(), disk.node.as_os_str()]].concat());
    lose_superblock(&disk);
    assert!(matches!(bench.content(&disk), Content::Unrecognised { .. }));
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_an_xfs_with_files_is_never_taken_for_unfinished() {
    let bench = Bench::new();
    let disk = Disk::new(512 * MIB);
    bench.format(&disk.device(), FsKind::Xfs).unwrap();
    bench.mount(&disk, FsKind::Xfs);
    (0..8).for_each(|i| fs::write(disk.mnt().join(i.to_string()), "data").unwrap());
    bench.unmount(&disk);
    // The byte by which an unfinished one is known, on one that is not.
    disk.write(126, &[1]);
    assert!(is_filesystem(&bench.content(&disk), FsKind::Xfs));
    let before = disk.bytes();
    bench.format(&disk.device(), FsKind::Xfs).unwrap_err();
    assert!(before.are_still_there());
    disk.close();
}

/// A sysfs in which loop devices are disks with a SCSI identity: what only a real one can show.
trait ScsiTree {
    fn show_disk(&self, disk: &Disk, name: &str, state: &str) -> PathBuf;
    fn places(&self, disk: &Disk) -> DevicePlaces;
}

impl ScsiTree for Sysfs {
    fn show_disk(&self, disk: &Disk, name: &str, state: &str) -> PathBuf {
        self.show_scsi(&disk.node, name, state)
    }

    fn places(&self, disk: &Disk) -> DevicePlaces {
        DevicePlaces { sysfs: self.path(), ..disk.places() }
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_scsi_disk_is_used_only_when_it_carries_the_name_and_runs() {
    let bench = Bench::new();
    let (disk, tree) = (Disk::new(64 * MIB), Sysfs::new());
    let observe = || observe_device(&tree.places(&disk), &disk.name, None).unwrap();
    // A disk that sysfs does not show could be anything.
    assert!(matches!(observe(), LookupResult::NotRunning { .. }));
    let attributes = tree.show_disk(&disk, "vol", "running\n");
    let LookupResult::Ready(device) = observe() else { panic!("{}", observe()) };
    let too_small =
        await_device(&bench.guard, &tree.places(&disk), &disk.name, Some(Gib(1)), Duration::from_millis(20));
    assert!(too_small.is_err());
    assert_eq!(fs::read_to_string(attributes.join("rescan")).unwrap(), "1");
    for state in ["offline\n", "transport-offline\n", "deleted\n", "created\n", "\n"] {
        tree.show_disk(&disk, "vol", state);
        assert!(matches!(observe(), LookupResult::NotRunning { state: seen, .. } if seen == state.trim()), "{state}");
        assert!(matches!(device.open(), Err(Error::WrongDevice { .. })), "{state}");
    }
    for name in ["vo", "vol2", "other"] {
        tree.show_disk(&disk, name, "running\n");
        assert!(matches!(observe(), LookupResult::OtherVolume { found, .. } if found.contains(name)), "{name}");
        let wrong =
            await_device(&bench.guard, &tree.places(&disk), &disk.name, None, Duration::from_millis(5)).unwrap_err();
        assert!(matches!(&wrong, Error::WrongDevice { found, .. } if found.contains(name)), "{wrong}");
    }
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_stale_missing_or_cut_link_is_made_up_for_by_the_name_that_the_disk_carries() {
    let (stale, mut right, tree) = (Disk::new(64 * MIB), Disk::new(32 * MIB), Sysfs::new());
    tree.show_disk(&stale, "gone", "running\n");
    tree.show_disk(&right, "vol", "running\n");
    let found = |places: &DevicePlaces, name: &VolumeName| {
        let seen = observe_device(places, name, None).unwrap();
        let LookupResult::Ready(device) = seen else { panic!("{seen}") };
        device.path().to_owned()
    };
    // The link still leads to the disk that had the volume's place before.
    assert_eq!(found(&tree.places(&stale), &stale.name), right.node);
    fs::remove_file(stale.places().link(&stale.name)).unwrap();
    assert_eq!(found(&tree.places(&stale), &stale.name), right.node);
    // One disk under two paths, as with the host's /dev in a container, is one disk.
    let elsewhere = right.root.path().canonicalize().unwrap().join("loop");
    let number = fs::metadata(&right.node).unwrap().rdev();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    nix::sys::stat::mknod(&elsewhere, nix::sys::stat::SFlag::S_IFBLK, mode, number).unwrap();
    std::os::unix::fs::symlink(&elsewhere, stale.places().link(&stale.name)).unwrap();
    assert_eq!(found(&tree.places(&stale), &stale.name), elsewhere);
    fs::remove_file(stale.places().link(&stale.name)).unwrap();
    // A name that makes a link longer than a file name may be.
    right.name = VolumeName::parse(&"n".repeat(245)).unwrap();
    tree.show_disk(&right, right.name.as_str(), "running\n");
    assert_eq!(found(&tree.places(&stale), &right.name), right.node);
    // Two disks of one name: neither is used.
    tree.show_disk(&stale, "vol", "running\n");
    tree.show_disk(&right, "vol", "running\n");
    let refused = observe_device(&tree.places(&stale), &stale.name, None).unwrap();
    assert!(matches!(refused, LookupResult::Several { .. }), "{refused}");
    // Nor when the link leads to one of them.
    std::os::unix::fs::symlink(&right.node, stale.places().link(&stale.name)).unwrap();
    let refused = observe_device(&tree.places(&stale), &stale.name, None).unwrap();
    assert!(matches!(refused, LookupResult::Several { .. }), "{refused}");
    fs::remove_file(stale.places().link(&stale.name)).unwrap();
    // What sysfs calls by a name must be what the node of that name is.
    tree.show_disk(&stale, "gone", "running\n");
    let directory = tree.show_disk(&right, "vol", "running\n");
    fs::write(directory.parent().unwrap().join("dev"), "8:240\n").unwrap();
    let refused = observe_device(&tree.places(&stale), &stale.name, None).unwrap();
    assert!(matches!(&refused, LookupResult::NotRunning { .. }), "{refused}");
    stale.close();
    right.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_link_counts_only_while_no_other_disk_carries_the_name() {
    let (linked, named, tree) = (Disk::new(64 * MIB), Disk::new(32 * MIB), Sysfs::new());
    let observe = |name: &VolumeName| observe_device(&tree.places(&linked), name, None).unwrap();
    // A disk that says nothing of itself, behind a link that may be stale.
    tree.show(&linked.node);
    assert!(matches!(observe(&linked.name), LookupResult::Ready(device) if device.path() == linked.node));
    tree.show_disk(&named, "vol", "running\n");
    assert!(matches!(observe(&linked.name), LookupResult::Ready(device) if device.path() == named.node));
    // One that carries the name goes first also when it cannot be used yet.
    tree.show_disk(&named, "vol", "offline\n");
    assert!(matches!(observe(&linked.name), LookupResult::NotRunning { path, .. } if path == named.node));
    // A disk that cannot be read may be the one with the name, so one that says nothing of itself does not go before it.
    let unreadable = tree.show_disk(&named, "other", "running\n").join("vpd_pg83");
    fs::remove_file(&unreadable).unwrap();
    fs::create_dir(&unreadable).unwrap();
    assert!(observe_device(&tree.places(&linked), &linked.name, None).is_err());
    // With the search for a disk that carries its name it has nothing to do.
    tree.show_disk(&linked, "vol", "running\n");
    assert!(matches!(observe(&linked.name), LookupResult::Ready(device) if device.path() == linked.node));
    fs::remove_dir(&unreadable).unwrap();
    // Nor does one behind a stale link that cannot be read keep the right one from being used.
    let unreadable = tree.show_disk(&linked, "gone", "running\n").join("vpd_pg83");
    fs::remove_file(&unreadable).unwrap();
    fs::create_dir(&unreadable).unwrap();
    assert!(observe_device(&tree.places(&linked), &linked.name, None).is_err());
    tree.show_disk(&named, "vol", "running\n");
    assert!(matches!(observe(&linked.name), LookupResult::Ready(device) if device.path() == named.node));
    fs::remove_dir(&unreadable).unwrap();
    tree.show_disk(&named, "other", "running\n");
    // A serial number of 36 bytes may be cut, and then it is the same for two volumes: the link has to tell them apart.
    let long = VolumeName::parse("pvc-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").unwrap();
    let cut = tree.show_disk(&linked, long.as_str(), "running\n");
    fs::remove_file(cut.join("vpd_pg83")).unwrap();
    std::os::unix::fs::symlink(&linked.node, linked.places().link(&long)).unwrap();
    assert!(matches!(observe(&long), LookupResult::Ready(device) if device.path() == linked.node));
    let brother = VolumeName::parse("pvc-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d0000").unwrap();
    assert!(matches!(observe(&brother), LookupResult::Missing { .. }));
    fs::remove_file(linked.places().link(&long)).unwrap();
    assert!(matches!(observe(&long), LookupResult::Missing { .. }));
    linked.close();
    named.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_is_swapped_before_it_is_opened_is_noticed_without_a_disk_sequence_number() {
    let bench = Bench::new();
    let (disk, tree) = (Disk::new(512 * MIB), Sysfs::new());
    // Kernels before 5.15 have no such number.
    let show = |name: &str| {
        let attributes = tree.show_disk(&disk, name, "running\n");
        fs::remove_file(attributes.parent().unwrap().join("diskseq")).unwrap();
        attributes
    };
    show("vol");
    let seen = observe_device(&tree.places(&disk), &disk.name, None).unwrap();
    let LookupResult::Ready(device) = seen else { panic!("{seen}") };
    device.open().unwrap();
    let before = disk.bytes();
    let refused = |words: &str| {
        for refused in [
            device.open().map(drop),
            observe_content(&bench.runner, &device).map(drop),
            bench.format(&device, FsKind::Ext4),
            apply_mount(&bench.guard, &device, FsKind::Xfs, &disk.mnt(), &MountOptions::default(), Duration::ZERO)
                .map(drop),
        ] {
            assert!(matches!(&refused, Err(Error::WrongDevice { found, .. }) if found.contains(words)), "{refused:?}");
        }
        assert!(before.are_still_there());
    };
    show("other");
    refused("replaced");
    let state = show("vol").join("state");
    device.open().unwrap();
    // What was running and has no state any more is not known to be running.
    fs::remove_file(&state).unwrap();
    refused("no state any more");
    // An attribute of a disk on its way out answers ENXIO, as does this node without a driver.
    ok("mknod", &[state.as_os_str(), "c".as_ref(), "239".as_ref(), "1".as_ref()]);
    refused("on its way out");
    assert!(matches!(observe_device(&tree.places(&disk), &disk.name, None).unwrap(), LookupResult::NotRunning { .. }));
    tree.hide(&disk.node);
    refused("does not show it any more");
    disk.close();
}

/// A runner under which, in the moment before mkfs starts, the disk is pulled and another one comes under its name.
#[derive(Debug)]
struct Swap<'a> {
    real: SystemRunner,
    node: &'a Path,
    other: &'a Path,
    /// What has the disk in before it is pulled.
    keeper: Mutex<Option<File>>,
}

impl Runner for Swap<'_> {
    fn run(&self, cmd: &Cmd) -> Result<Output, CommandError> {
        if cmd.tool() != Tool::Blkid {
            drop(self.keeper.lock().unwrap().take());
            Command::new("losetup").arg(self.node).arg(self.other).output().unwrap();
        }
        self.real.run(cmd)
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_no_other_disk_gets_the_name_of_one_that_is_being_formatted() {
    let bench = Bench::new();
    for fs in FsKind::ALL {
        let mut disk = Disk::new(512 * MIB);
        let other = disk.root.path().join("other");
        File::create(&other).unwrap().set_len(512 * MIB).unwrap();
        let (device, keeper) = (disk.device(), Mutex::new(disk.keeper.take()));
        let swap = Swap { real: bench.runner.clone(), node: &disk.node, other: &other, keeper };
        let outcome = apply_format(&bench.guard, &bench.slots, &swap, &device, fs, &FormatOptions::default());
        assert_eq!(fs::metadata(&other).unwrap().blocks(), 0, "the wrong disk was formatted: {outcome:?}");
        // It was the right one that was formatted, to the end, although it was on its way out.
        outcome.unwrap();
    }
}
