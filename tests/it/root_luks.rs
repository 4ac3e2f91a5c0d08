//! The head of encrypted volumes against the real cryptsetup, on loop devices: everything that needs no device mapper.
//!
//! Needs root, and is meant to run in a private mount namespace: `make test-root` does both.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use do_csi_plugin::error::Error;
use do_csi_plugin::error::command::{CommandError, Exit};
use do_csi_plugin::host::command::{Cmd, Output, Runner, SystemRunner, Tool};
use do_csi_plugin::host::luks::cryptsetup::apply_mark_used;
use do_csi_plugin::host::luks::format::{
    LuksState, apply_blank, apply_luks_format, observe_has_grown_blank, observe_luks_state,
};
use do_csi_plugin::host::luks::passphrase::Key;
use do_csi_plugin::sync::semaphore::{Permit, Semaphore};
use sha2::{Digest, Sha256};

use crate::root_host::{Bench, Disk};
use crate::support::wait_for;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Whether a key opens the encrypted volume on a disk, by cryptsetup's own word.
fn opens(disk: &Disk, key: &str) -> bool {
    let mut child = Command::new("cryptsetup")
        .args(["open", "--test-passphrase", "--key-file=-"])
        .arg(disk.device().path())
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(key.as_bytes()).unwrap();
    child.wait().unwrap().success()
}

fn seen(bench: &Bench, disk: &Disk) -> LuksState {
    observe_luks_state(&bench.runner, &disk.device()).unwrap()
}

/// The turn of an encrypted volume that is the only one.
fn turn() -> Permit {
    Semaphore::new(1, "others are at it").take("encrypting", Duration::ZERO).unwrap()
}

fn make(bench: &Bench, disk: &Disk, text: &str) -> Result<(), Error> {
    apply_luks_format(&bench.guard, &bench.runner, &turn(), &disk.device(), &key(text))
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_blank_disk_becomes_an_encrypted_volume_and_stays_one() {
    let (bench, disk) = (Bench::new(), Disk::new(GIB));
    assert_eq!(seen(&bench, &disk), LuksState::Blank);
    make(&bench, &disk, "first\n").unwrap();
    assert!(opens(&disk, "first\n") && !opens(&disk, "first"));
    // Nobody was given it yet, so the call that comes next may have another key.
    assert_eq!(seen(&bench, &disk), LuksState::Interrupted);
    make(&bench, &disk, "second").unwrap();
    assert!(opens(&disk, "second") && !opens(&disk, "first\n"));

    // As it is once the note was written over, and then once there is a file system in it.
    disk.write(16 * MIB, &[7; 4096]);
    assert_eq!(seen(&bench, &disk), LuksState::Unused);
    apply_mark_used(&bench.guard, &bench.runner, &disk.device()).unwrap();
    apply_mark_used(&bench.guard, &bench.runner, &disk.device()).unwrap();
    assert_eq!(seen(&bench, &disk), LuksState::Ready);
    let before = disk.bytes();
    assert!(matches!(make(&bench, &disk, "third"), Err(Error::WillNotFormat { .. })));
    assert!(before.are_still_there() && opens(&disk, "second"));

    // One copy of the head is lost, which cryptsetup makes anew from the other; then both.
    disk.write(0, &[0; 4096]);
    assert_eq!(seen(&bench, &disk), LuksState::Ready);
    for at in [512, 16 * 1024 + 512] {
        disk.write(at, &[7; 64]);
    }
    assert_eq!(seen(&bench, &disk), LuksState::Damaged);
    let before = disk.bytes();
    let refused = make(&bench, &disk, "third").unwrap_err().to_string();
    assert!(refused.contains("luksHeaderRestore") && before.are_still_there(), "{refused}");
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mark_that_was_cut_off_while_it_was_written_says_what_the_disk_says() {
    let (bench, disk) = (Bench::new(), Disk::new(GIB));
    make(&bench, &disk, "key").unwrap();
    disk.write(16 * MIB, &[7; 4096]);
    let mut old = vec![0; 16 * 1024];
    File::open(disk.file()).unwrap().read_exact_at(&mut old, 16 * 1024).unwrap();
    apply_mark_used(&bench.guard, &bench.runner, &disk.device()).unwrap();
    // The first copy was being written, and the second one is as it was.
    disk.write(512, &[7; 64]);
    disk.write(16 * 1024, &old);
    assert_eq!(seen(&bench, &disk), LuksState::Unused);
    assert_eq!(seen(&bench, &disk), LuksState::Unused);
    apply_mark_used(&bench.guard, &bench.runner, &disk.device()).unwrap();
    assert_eq!(seen(&bench, &disk), LuksState::Ready);
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_disk_that_holds_anything_never_becomes_an_encrypted_volume() {
    let note = {
        let (bench, disk) = (Bench::new(), Disk::new(GIB));
        make(&bench, &disk, "key").unwrap();
        let bytes = std::fs::read(disk.file()).unwrap()[16 * 1024 * 1024..][..4096].to_vec();
        disk.close();
        bytes
    };
    let mut luks1 = b"LUKS\xba\xbe\x00\x01aes".to_vec();
    luks1.resize(592, 0);
    let text = || b"somebody's".to_vec();
    let cases = [
        ("data at the start", vec![(0, text())]),
        ("data at the end", vec![(GIB - 512, text())]),
        ("LUKS1", vec![(0, luks1)]),
        ("swap", vec![(4086, b"SWAPSPACE2".to_vec())]),
        ("the note, and data before", vec![(4096, text()), (16 * MIB, note.clone())]),
        ("the note, and data behind", vec![(64 * 1024, text()), (16 * MIB, note.clone()), (GIB - 512, text())]),
        ("a spoilt note", vec![(64 * 1024, text()), (16 * MIB, [&note[..4095], b"x"].concat())]),
        ("no note", vec![(64 * 1024, text())]),
        ("an encrypted volume that lost its head, with little in it", vec![(18 * MIB, text())]),
    ];
    for (what, writes) in cases {
        let (bench, disk) = (Bench::new(), Disk::new(GIB));
        writes.iter().for_each(|(at, bytes)| disk.write(*at, bytes));
        let before = disk.bytes();
        let refused = make(&bench, &disk, "key");
        assert!(matches!(refused, Err(Error::WillNotFormat { .. })), "{what}: {refused:?}");
        assert!(before.are_still_there(), "{what}");
        disk.close();
    }
    // What luksFormat leaves before there is a head: nothing where it will be, noise after it.
    let (bench, disk) = (Bench::new(), Disk::new(GIB));
    disk.write(64 * 1024, &text());
    disk.write(16 * MIB, &note);
    assert_eq!(seen(&bench, &disk), LuksState::Interrupted);
    make(&bench, &disk, "key").unwrap();
    assert!(opens(&disk, "key"));
    disk.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_was_made_blank_and_has_grown_is_known_by_its_zero_head() {
    let (bench, disk) = (Bench::new(), Disk::new(GIB));
    let has_grown = || observe_has_grown_blank(&bench.runner, &disk.device()).unwrap();
    // As zeros read that were encrypted with another key.
    let mut noise = [0; 4096];
    File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    assert!(!has_grown());
    disk.write(GIB - 4096, &noise);
    assert!(has_grown());
    apply_blank(&bench.guard, &bench.runner, &disk.device()).unwrap();
    assert!(!has_grown() && seen(&bench, &disk) == LuksState::Blank);
    for at in [0, 4 * MIB - 1] {
        disk.write(GIB - 4096, &noise);
        disk.write(at, &[7]);
        assert!(!has_grown(), "{at}");
        disk.write(at, &[0]);
    }
    // What a file system leaves is no noise, also when its beginning was lost.
    disk.write(GIB - 4096, &b"my data ".repeat(512));
    let before = disk.bytes();
    assert!(!has_grown() && before.are_still_there());
    disk.write(GIB - 4096, &noise);
    disk.write(128 * MIB, include_bytes!("../fixtures/superblock/ext4-copy.bin"));
    assert!(!has_grown());
    disk.close();
}

/// Changes the text of both copies of a header as whoever can write to the disk may, with checksums that are right.
///
/// Source: LUKS2 On-Disk Format Specification, 2.1.
fn plant(disk: &Disk, from: &str, to: &str) {
    const LENGTH: usize = 16 * 1024;
    const BINARY: usize = 4096;
    const SUM: std::ops::Range<usize> = 448..512;
    for at in [0, 16 * 1024] {
        let mut header = vec![0; LENGTH];
        File::open(disk.file()).unwrap().read_exact_at(&mut header, at).unwrap();
        let text = String::from_utf8(header.split_off(BINARY)).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        header.extend(text.replacen(from, to, 1).into_bytes());
        header.resize(LENGTH, 0);
        header[SUM].fill(0);
        let sum = Sha256::digest(&header);
        header[SUM][..sum.len()].copy_from_slice(&sum);
        disk.write(at, &header);
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_header_that_somebody_has_planted_is_refused_by_name_and_kept() {
    let segment = r#""iv_tweak":"0","encryption":"aes-xts-plain64""#;
    let in_slot = r#""area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64""#;
    let cases = [
        (segment, segment.replace("aes-xts-plain64", "cipher_null-ecb"), "cipher_null-ecb"),
        (segment, segment.replace("aes-xts-plain64", "aes-ecb"), "aes-ecb"),
        (r#""type":"crypt""#, r#""type":"linear""#.to_owned(), "linear"),
        (
            segment,
            format!(
                r#"{segment},"integrity":{{"type":"none","journal_encryption":"none","journal_integrity":"none"}}"#
            ),
            "integrity",
        ),
        (
            in_slot,
            in_slot.replace("aes-xts-plain64", "cipher_null-ecb"),
            "key slot \"0\" is encrypted by \"cipher_null",
        ),
        (
            r#""tokens":{}"#,
            r#""tokens":{"0":{"type":"luks2-keyring","keyslots":["0"],"key_description":"x"}}"#.to_owned(),
            "token",
        ),
    ];
    let (bench, disk) = (Bench::new(), Disk::new(64 * MIB));
    make(&bench, &disk, "key").unwrap();
    disk.write(16 * MIB, &[7; 4096]);
    apply_mark_used(&bench.guard, &bench.runner, &disk.device()).unwrap();
    let mut right = vec![0; 32 * 1024];
    File::open(disk.file()).unwrap().read_exact_at(&mut right, 0).unwrap();
    for (from, to, words) in cases {
        disk.write(0, &right);
        assert_eq!(seen(&bench, &disk), LuksState::Ready);
        plant(&disk, from, &to);
        let before = disk.bytes();
        let found = seen(&bench, &disk);
        assert!(matches!(&found, LuksState::Refused(why) if why.contains(words)), "{to}: {found:?}");
        let refused = make(&bench, &disk, "key").unwrap_err().to_string();
        assert!(refused.contains("luksDump") && before.are_still_there(), "{refused}");
    }
    disk.close();
}

/// A moment in the making of an encrypted volume, by what is on the disk then.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// The key slots are being filled with noise; there is no head yet.
    Noise,
    /// There is a head.
    Head,
    /// cryptsetup was just started.
    Start,
}

impl Moment {
    fn has_come(self, disk: &File) -> bool {
        let mut bytes = [0; 6];
        match self {
            Moment::Start => true,
            Moment::Noise => disk.read_exact_at(&mut bytes, 64 * 1024).is_ok() && bytes != [0; 6],
            Moment::Head => disk.read_exact_at(&mut bytes, 0).is_ok() && bytes == *b"LUKS\xba\xbe",
        }
    }
}

/// Kills cryptsetup a while after a moment in which it makes an encrypted volume, as a crash of the machine would.
#[derive(Debug)]
struct Killer {
    real: SystemRunner,
    disk: PathBuf,
    moment: Moment,
    after: Duration,
}

impl Runner for Killer {
    fn run(&self, cmd: &Cmd) -> Result<Output, CommandError> {
        if cmd.tool() != Tool::Cryptsetup || !cmd.to_string().contains("luksFormat") {
            return self.real.run(cmd);
        }
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("exec {cmd} >/dev/null 2>&1"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"lost").unwrap();
        let disk = File::open(&self.disk).unwrap();
        let come = wait_for(Duration::from_secs(60), || self.moment.has_come(&disk).then_some(()));
        std::thread::sleep(self.after);
        child.kill().ok();
        child.wait().unwrap();
        come.unwrap();
        Ok(Output { exit: Exit::Signal(15), stdout: Vec::new(), stderr: String::new() })
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_killed_encryption_is_begun_anew_wherever_it_was_cut_off() {
    let bench = Bench::new();
    let mut found = BTreeMap::new();
    for (round, moment) in [Moment::Start, Moment::Noise, Moment::Head].into_iter().cycle().take(12).enumerate() {
        let disk = Disk::new(GIB);
        let after = Duration::from_millis(u64::try_from(round / 3).unwrap() * 70);
        let path = disk.device().path().to_owned();
        let killer = Killer { real: bench.runner.clone(), disk: path, moment, after };
        apply_luks_format(&bench.guard, &killer, &turn(), &disk.device(), &key("lost")).unwrap_err();
        let container = seen(&bench, &disk);
        assert!(matches!(container, LuksState::Blank | LuksState::Interrupted), "{moment:?} {after:?}: {container:?}");
        let mut head = [0; 4];
        File::open(disk.file()).unwrap().read_exact_at(&mut head, 0).unwrap();
        *found.entry((format!("{container:?}"), &head == b"LUKS")).or_insert(0) += 1;
        make(&bench, &disk, "other").unwrap();
        assert!(opens(&disk, "other"), "{moment:?} {after:?}");
        disk.close();
    }
    for has_head in [false, true] {
        assert!(found.contains_key(&("Interrupted".to_owned(), has_head)), "not cut off at {has_head}: {found:?}");
    }
}
