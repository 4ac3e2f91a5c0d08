//! What looks blank, or like half a file system, and is neither: disks that are in use and have lost their beginning, or got
//! another one.
//!
//! Needs root, and is meant to run in a private mount namespace: `make test-root` does both.

use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use do_csi_plugin::error::command::CommandError;
use do_csi_plugin::fs::FsKind;
use do_csi_plugin::host::command::{Cmd, Output, Runner, SystemRunner, Tool};
use do_csi_plugin::host::probe::content::{Content, confirm_content, observe_content, observe_unfinished};
use grpcio::RpcStatusCode;

use crate::harness::{NodeHarness, Vol, ok, refused};
use crate::root_host::{Bench, Disk};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PRECONDITION: RpcStatusCode = RpcStatusCode::FAILED_PRECONDITION;

/// Words that no refusal has: what it is about may be all that is left of somebody's data.
const HARMFUL: [&str; 6] = ["blkdiscard", "wipefs -", "mkfs", "dd if", "delete the", "clear it"];

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../fixtures/superblock/", $name, ".bin")).as_slice()
    };
}

/// Makes something on a disk whose path is in `$NODE`; `$FILES` makes files in the file system that is on it.
fn script(node: &Path, commands: &str) -> String {
    let files = "fill() { at=$(mktemp -d); mount \"$NODE\" $at; for i in $(seq 40); do echo \"my data $i\" > $at/$i; done; \
                 dd if=/dev/urandom of=$at/large bs=1M count=8 status=none; umount $at; rmdir $at; }";
    format!("set -eu; NODE={}; {files}; {commands}", node.display())
}

/// A superblock of md's format 1.0, as it lies 8 KiB before the end.
fn md_superblock() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..12].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0, 0, 0, 0, 0]);
    bytes[16..32].copy_from_slice(b"0123456789abcdef");
    bytes[32..38].copy_from_slice(b"node:0");
    bytes
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_has_lost_its_beginning_is_not_blank() {
    let rig = NodeHarness::start();
    let luks = "printf key | cryptsetup --batch-mode luksFormat --type luks2 --luks2-metadata-size 4m --luks2-keyslots-size 4m \
                --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file=- $NODE; \
                dd if=/dev/urandom of=$NODE bs=1M seek=16 count=4 status=none";
    let gpt = fixture!("gpt")[512..1024].to_vec();
    // What is made, the words that name what is left of it when so many MiB are lost, and bytes for what no program here makes.
    type Case<'a> = (&'a str, &'a str, [&'a str; 3], Vec<(u64, Vec<u8>)>);
    let cases: Vec<Case<'_>> = vec![
        ("ext4 of 1 KiB", "mke2fs -q -t ext4 -b 1024 $NODE; fill", ["ext4"; 3], vec![]),
        ("ext4 of 2 KiB", "mke2fs -q -t ext4 -b 2048 $NODE; fill", ["ext4"; 3], vec![]),
        ("ext4 of 4 KiB", "mke2fs -q -t ext4 -b 4096 $NODE; fill", ["superblock of ext4"; 3], vec![]),
        (
            "ext4 with two copies",
            "mke2fs -q -t ext4 -b 4096 -O sparse_super2,^resize_inode $NODE; fill",
            ["ext4"; 3],
            vec![],
        ),
        ("ext3", "mke2fs -q -t ext3 -b 4096 $NODE; fill", ["ext3"; 3], vec![]),
        ("xfs", "mkfs.xfs -q $NODE; fill", ["xfs at byte 268435456"; 3], vec![]),
        ("xfs of 4 KiB sectors", "mkfs.xfs -q -s size=4096 $NODE; fill", ["xfs at byte 268435456"; 3], vec![]),
        ("xfs of 8 groups", "mkfs.xfs -q -d agcount=8 $NODE; fill", ["xfs at byte 134217728"; 3], vec![]),
        ("btrfs", "mkfs.btrfs -q $NODE; fill", ["btrfs at byte 67108864"; 3], vec![]),
        (
            "LUKS2",
            luks,
            ["encrypted volume (LUKS)", "encrypted volume (LUKS)", "unknown data (seen at byte 16777216)"],
            vec![],
        ),
        ("GPT", "true", ["GPT"; 3], vec![(0, fixture!("gpt").to_vec()), (GIB - 512, gpt)]),
        ("md", "true", ["RAID array"; 3], vec![(GIB - 8192, md_superblock())]),
        ("LVM", "true", ["LVM"; 3], vec![(GIB - MIB, fixture!("lvm-second-copy").to_vec())]),
    ];
    for (what, make, words, writes) in cases {
        let vol = rig.volume(&what.to_lowercase().replace(' ', "-"), "");
        let node = rig.node(&vol);
        rig.run("sh", &["-c", &script(&node, make)]);
        write(&node, &writes);
        for (lost, word) in [1, 4, 16].into_iter().zip(words) {
            let zero = format!("dd if=/dev/zero of=$NODE bs=1M count={lost} conv=notrunc,fsync status=none");
            rig.run("sh", &["-c", &script(&node, &zero)]);
            let before = rig.bytes(&vol);
            for fs in if lost == 4 { ["xfs", "ext4"] } else { ["", "btrfs"] } {
                let refusal = rig.stage(&vol.fs(fs)).expect_err(what);
                assert_eq!(refusal.code, PRECONDITION, "{what}, {lost} MiB: {refusal}");
                assert!(refusal.message.contains(word), "{what}, {lost} MiB: {word:?} is not in {refusal}");
                let harmful = HARMFUL.iter().find(|harmful| refusal.message.contains(**harmful));
                assert_eq!(harmful, None, "{what}: {refusal}");
            }
            assert!(before.are_still_there(), "{what}, {lost} MiB");
        }
        rig.detach(&vol);
    }
    rig.close();
}

fn write(node: &Path, writes: &[(u64, Vec<u8>)]) {
    let disk = fs::OpenOptions::new().write(true).open(node).unwrap();
    writes.iter().for_each(|(at, bytes)| disk.write_all_at(bytes, *at).unwrap());
    disk.sync_all().unwrap();
}

/// Runs commands for a disk, as [`script`] has them.
fn run(disk: &Disk, commands: &str) {
    ok("sh", &["-c".as_ref(), script(disk.device().path(), commands).as_ref()]);
}

/// Asserts that nothing is taken for unfinished or blank, that no file system is made, and that every byte stays.
#[track_caller]
fn assert_left_alone(bench: &Bench, disk: &Disk, what: &str) {
    let before = disk.bytes();
    for content in [observe_content(&bench.runner, &disk.device()), confirm_content(&bench.runner, &disk.device())] {
        let content = content.unwrap();
        assert!(!matches!(content, Content::AllZero | Content::Unfinished(_)), "{what}: {content}");
    }
    assert_eq!(observe_unfinished(&disk.device()).unwrap(), None, "{what}");
    for fs in FsKind::ALL {
        let refusal = bench.format(&disk.device(), fs).expect_err(what).to_string();
        assert!(HARMFUL.iter().all(|harmful| !refusal.contains(harmful)), "{what}: {refusal}");
    }
    assert!(before.are_still_there(), "{what}");
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_an_xfs_is_not_unfinished_because_a_copy_of_its_superblock_lies_at_its_start() {
    let bench = Bench::new();
    // The options, the size of a sector, and the number of groups.
    for (size, options, sector, groups) in [
        (512 * MIB, "", 512, 4),
        (512 * MIB, "-s size=4096", 4096, 4),
        (512 * MIB, "-b size=1024", 512, 4),
        (512 * MIB, "-d agcount=2", 512, 2),
        (4 * GIB, "-d agcount=32", 512, 32),
        (100 * GIB, "", 512, 4),
    ] {
        let disk = Disk::new(size);
        run(&disk, &format!("mkfs.xfs -q {options} $NODE; fill"));
        let group = size / groups;
        let numbers: &[u64] = if groups == 32 { &[1, 15, 31] } else { &[1, groups / 2, groups - 1] };
        for number in numbers {
            let what = format!("{size} {options:?}, group {number}");
            let (from, count) = (number * group / sector, 1);
            run(
                &disk,
                &format!("dd if=$NODE of=$NODE bs={sector} skip={from} count={count} conv=notrunc,fsync status=none"),
            );
            if size <= GIB {
                assert_left_alone(&bench, &disk, &what);
            } else {
                // Comparing so large a disk takes long; what is decided does not depend on the size.
                assert_eq!(observe_unfinished(&disk.device()).unwrap(), None, "{what}");
            }
            // What is done before, if the first group was overwritten.
            if size <= GIB && *number == groups - 1 {
                let copy =
                    format!("dd if=$NODE of=$NODE bs={sector} skip={from} count=1 conv=notrunc,fsync status=none");
                run(&disk, &format!("dd if=/dev/zero of=$NODE bs=1M count=4 conv=notrunc,fsync status=none; {copy}"));
                assert_left_alone(&bench, &disk, &format!("{what}, and the first 4 MiB are lost"));
            }
        }
        disk.close();
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_the_beginning_of_one_file_system_over_the_body_of_another_is_left_alone() {
    let bench = Bench::new();
    let zero = "dd if=/dev/zero of=$NODE bs=1M count=4 conv=notrunc,fsync status=none";
    let note = {
        let text =
            "do-csi-plugin: this disk was blank when making a file system on it began, which has not finished: ext4\n";
        let mut note = text.as_bytes().to_vec();
        note.resize(4096, 0);
        note
    };
    let heads = [
        ("xfs", 0, fixture!("xfs-unfinished").to_vec()),
        ("btrfs", 65536, fixture!("btrfs-unfinished").to_vec()),
        ("a note", 4096, note),
    ];
    for body in ["mkfs.xfs -q", "mke2fs -q -t ext4 -b 4096", "mke2fs -q -t ext4 -b 1024", "mkfs.btrfs -q"] {
        let disk = Disk::new(512 * MIB);
        run(&disk, &format!("{body} $NODE; fill"));
        for (head, at, bytes) in &heads {
            run(&disk, zero);
            disk.write(*at, bytes);
            assert_left_alone(&bench, &disk, &format!("the beginning of {head} over what `{body}` made"));
        }
        disk.close();
    }
    // Somebody's own data behind what mke2fs has left halfway, where no file system counts it.
    let disk = Disk::new(GIB);
    run(&disk, "mke2fs -q -t ext4 -b 4096 -E nodiscard $NODE");
    disk.write(0, &[0; 4096]);
    assert_eq!(bench.content(&disk), Content::Unfinished(FsKind::Ext4));
    run(&disk, "dd if=/dev/urandom of=$NODE bs=1M seek=300 count=80 conv=notrunc,fsync status=none");
    assert_left_alone(&bench, &disk, "data behind half an ext4");
    disk.close();
    // The same, behind the note.
    let disk = Disk::new(GIB);
    disk.write(4096, &heads[2].2);
    assert_eq!(bench.content(&disk), Content::Unfinished(FsKind::Ext4));
    run(&disk, "dd if=/dev/urandom of=$NODE bs=1M seek=300 count=80 conv=notrunc,fsync status=none");
    assert_left_alone(&bench, &disk, "data behind a note");
    disk.close();
}

/// A runner that counts.
#[derive(Debug)]
struct Counting(SystemRunner, AtomicUsize);

impl Runner for Counting {
    fn run(&self, cmd: &Cmd) -> Result<Output, CommandError> {
        if cmd.tool() == Tool::Blkid {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
        self.0.run(cmd)
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_blkid_has_its_say_once_before_a_disk_is_written_to_and_not_more_often() {
    let (bench, disk) = (Bench::new(), Disk::new(GIB));
    let counting = Counting(bench.runner.clone(), AtomicUsize::new(0));
    assert_eq!(observe_content(&counting, &disk.device()).unwrap(), Content::AllZero);
    assert_eq!(counting.1.load(Ordering::Relaxed), 0);
    assert_eq!(confirm_content(&counting, &disk.device()).unwrap(), Content::AllZero);
    assert_eq!(counting.1.load(Ordering::Relaxed), 1);
    disk.close();
}

/// The mkfs that works on a disk: any process that has its node among its arguments.
fn mkfs_on(node: &Path) -> Option<i32> {
    let node = node.as_os_str().as_encoded_bytes();
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = line.split(|byte| *byte == 0);
        let is_mkfs = words.next().is_some_and(|program| {
            let program = String::from_utf8_lossy(program);
            program.contains("mkfs") || program.contains("mke2fs")
        });
        (is_mkfs && words.any(|word| word == node)).then_some(pid)
    })
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).is_ok()
}

/// Whether somebody has a disk for himself.
fn is_claimed(node: &Path) -> bool {
    let exclusively = nix::fcntl::OFlag::O_EXCL.bits();
    let claim = fs::OpenOptions::new().read(true).custom_flags(exclusively).open(node);
    claim.is_err_and(|err| err.raw_os_error() == Some(nix::libc::EBUSY))
}

/// Stages a volume until its mkfs runs, and stops that in the middle; `None` when it was too fast.
fn stopped_mkfs(rig: &NodeHarness, vol: &Vol) -> Option<i32> {
    let node = rig.node(vol);
    std::thread::scope(|scope| {
        let staged = scope.spawn(|| rig.stage(vol));
        while !staged.is_finished() {
            if let Some(pid) = mkfs_on(&node).filter(|pid| signal(*pid, nix::sys::signal::Signal::SIGSTOP)) {
                // One that has not claimed the disk yet leaves it to whoever comes first.
                if is_claimed(&node) {
                    // The call ends when its plugin does.
                    rig.plugin().signal(nix::sys::signal::Signal::SIGKILL).unwrap();
                    return Some(pid);
                }
                signal(pid, nix::sys::signal::Signal::SIGCONT);
            }
        }
        None
    })
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mkfs_that_outlives_its_plugin_is_waited_for_and_what_it_made_is_used() {
    let mut rig = NodeHarness::start();
    // mkfs.btrfs does not claim the disk for all of its time.
    for fs in ["xfs", "ext4"] {
        let mut held = 0;
        for round in 0..20 {
            let vol = rig.volume(&format!("{fs}-{round}"), "").fs(fs);
            let stopped = stopped_mkfs(&rig, &vol);
            rig.restart();
            let Some(pid) = stopped else { continue };
            let began = Instant::now();
            std::thread::scope(|scope| {
                let staged = scope.spawn(|| rig.stage(&vol));
                std::thread::sleep(Duration::from_millis(300));
                signal(pid, nix::sys::signal::Signal::SIGCONT);
                staged.join().unwrap().unwrap_or_else(|refusal| panic!("{fs}, round {round}: {refusal}"));
            });
            held += usize::from(began.elapsed() > Duration::from_millis(300));
            rig.write(&rig.staging(&vol), "file", "kept").unwrap();
            rig.unstage(&vol).unwrap();
            rig.detach(&vol);
            if held >= 4 {
                break;
            }
        }
        assert!(held > 0, "{fs}: no mkfs was stopped in the middle");
    }
    rig.close();
}
