//! Random disks: heads of every format that is known here, cut, spliced, damaged, and put before something else's body.
//!
//! Whatever is on a disk that is not blank stays: a call that is refused changes no byte, one that only reads changes none
//! either, and one that succeeds has mounted what was there. `make fuzz SECONDS=3600` goes on for an hour.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use do_csi_plugin::proto::csi::volume_capability::access_mode::Mode;
use nix::unistd::{Whence, lseek};

use crate::harness::{NodeHarness, Vol};
use crate::support::client::Outcome;
use crate::support::fuzz::{Mutator, budget, seed};

const SIZE: u64 = 1 << 30;
const PIECE: u64 = 4096;
/// More than the samples of a disk of this size lie apart that are evenly spread. Source: src/host/probe/places.rs.
const BETWEEN_SAMPLES: usize = 33 << 20;
/// How long a test run tries disks, where no time is set.
const TIME: Duration = Duration::from_secs(20);
/// How many it tries on a machine that has no time.
const FEWEST: u32 = 20;
/// What is in the file of each file system that is made; random, so that nothing else looks like it.
const MARK_BYTES: usize = 64 << 10;

/// What is not zero on a disk, in pieces by their number.
type Pieces = BTreeMap<u64, Vec<u8>>;

/// Something that programs make.
struct Made {
    name: &'static str,
    pieces: Pieces,
    /// The pieces that are a file's content.
    marks: Vec<u64>,
}

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../fixtures/superblock/", $name, ".bin")).as_slice()
    };
}

struct Lab {
    rig: NodeHarness,
    vol: Vol,
    node: std::path::PathBuf,
    file: File,
    made: Vec<Made>,
}

/// What is asked of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Stage,
    NoFormat,
    ReadOnly,
    Reader,
    Raw,
    RawReader,
    Encrypted,
}

impl Ask {
    const ALL: [Ask; 7] =
        [Ask::Stage, Ask::NoFormat, Ask::ReadOnly, Ask::Reader, Ask::Raw, Ask::RawReader, Ask::Encrypted];

    fn may_format(self) -> bool {
        matches!(self, Ask::Stage | Ask::Encrypted)
    }

    /// Whether the kernel may write to a file system that was on the disk: it does so also for who only reads, to its log.
    fn may_mount(self) -> bool {
        !matches!(self, Ask::Raw | Ask::RawReader)
    }
}

impl Lab {
    fn start() -> Lab {
        let rig = NodeHarness::start();
        let vol = rig.volume("disk", "");
        let node = rig.node(&vol);
        let file = OpenOptions::new().read(true).write(true).open(rig.cloud.sim.backing_file(&vol.csi.id)).unwrap();
        let mut lab = Lab { rig, vol, node, file, made: Vec::new() };
        for (name, command) in [
            ("ext4", "mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 $NODE"),
            ("ext3", "mke2fs -q -t ext3 -b 1024 -E lazy_itable_init=0,lazy_journal_init=0 $NODE"),
            ("xfs", "mkfs.xfs -q -f $NODE"),
            ("btrfs", "mkfs.btrfs -q -f $NODE"),
        ] {
            lab.make(
                name,
                &format!("{command}; at=$(mktemp -d); mount $NODE $at; cp $MARK $at/mark; umount $at; rmdir $at"),
            );
        }
        lab.make("unused ext4", "mke2fs -q -t ext4 $NODE");
        lab.make(
            "LUKS2",
            "printf key | cryptsetup --batch-mode luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
             --key-file=- $NODE; dd if=$MARK of=$NODE bs=1M seek=16 conv=notrunc status=none",
        );
        lab.make("swap", "mkswap -q $NODE");
        for (name, at, bytes) in [
            ("GPT", 0, fixture!("gpt")),
            ("LVM", SIZE - (1 << 20), fixture!("lvm-second-copy")),
            ("unfinished xfs", 0, fixture!("xfs-unfinished")),
            ("unfinished btrfs", 64 << 10, fixture!("btrfs-unfinished")),
        ] {
            let mut pieces = Pieces::new();
            put(&mut pieces, at, bytes);
            lab.made.push(Made { name, pieces, marks: Vec::new() });
        }
        lab
    }

    fn make(&mut self, name: &'static str, commands: &str) {
        let mut random = fastrand::Rng::with_seed(SIZE);
        let mark: Vec<u8> = (0..MARK_BYTES).map(|_| random.u8(..)).collect();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mark"), &mark).unwrap();
        self.write(&Pieces::new());
        let script = format!(
            "set -eu; NODE={}; MARK={}; {commands}; sync $NODE",
            self.node.display(),
            dir.path().join("mark").display()
        );
        self.rig.run("sh", &["-c", &script]);
        let pieces = self.read();
        let is_marks = |bytes: &Vec<u8>| mark.chunks(bytes.len()).any(|part| part == bytes);
        let marks = pieces.iter().filter(|(_, bytes)| is_marks(bytes)).map(|(number, _)| *number).collect();
        self.made.push(Made { name, pieces, marks });
    }

    /// Makes the disk this and nothing else.
    fn write(&self, pieces: &Pieces) {
        self.file.set_len(0).unwrap();
        self.file.set_len(SIZE).unwrap();
        pieces.iter().for_each(|(number, bytes)| self.file.write_all_at(bytes, number * PIECE).unwrap());
        self.rig.run("blockdev", &["--flushbufs", &self.node.to_string_lossy()]);
    }

    fn read(&self) -> Pieces {
        File::open(&self.node).unwrap().sync_all().unwrap();
        let (mut pieces, mut at) = (Pieces::new(), 0);
        while let Ok(from) = lseek(&self.file, at, Whence::SeekData) {
            let end = lseek(&self.file, from, Whence::SeekHole).unwrap();
            let mut bytes = vec![0; usize::try_from(end - from).unwrap()];
            let from = u64::try_from(from).unwrap();
            self.file.read_exact_at(&mut bytes, from).unwrap();
            let numbers = from / PIECE..;
            let all = numbers.zip(bytes.chunks(usize::try_from(PIECE).unwrap()));
            pieces.extend(all.filter(|(_, piece)| !is_zero(piece)).map(|(number, piece)| (number, piece.to_vec())));
            at = end;
        }
        pieces
    }

    /// A disk, and in words what it is.
    fn invent(&self, mutator: &mut Mutator) -> (String, Pieces) {
        if mutator.one_in(12) {
            return ("a blank one".to_owned(), Pieces::new());
        }
        if mutator.one_in(12) {
            let mut pieces = Pieces::new();
            let (at, bytes) = (mutator.rng.u64(..SIZE / 512) * 512, [1 << mutator.rng.u8(..8)]);
            // At the beginning one byte is enough. Further on samples are looked at, so what lies between two of them is not seen.
            let length = if mutator.rng.bool() { 1 } else { BETWEEN_SAMPLES };
            let length = length.min(usize::try_from(SIZE - at).unwrap());
            let at = if length == BETWEEN_SAMPLES { at } else { at % (4 << 20) };
            put(&mut pieces, at, &bytes.repeat(length));
            return (format!("zeros with {length} bytes at {at}"), pieces);
        }
        let one = &self.made[mutator.rng.usize(..self.made.len())];
        let (mut what, mut pieces) = (one.name.to_owned(), one.pieces.clone());
        let cut = |mutator: &mut Mutator| PIECE << mutator.rng.u32(..13);
        if mutator.one_in(3) {
            let (other, length) = (&self.made[mutator.rng.usize(..self.made.len())], cut(mutator));
            what = format!("{what} behind the first {length} bytes of {}", other.name);
            pieces.retain(|number, _| number * PIECE >= length);
            pieces.extend(
                other.pieces.iter().filter(|(number, _)| *number * PIECE < length).map(|(n, b)| (*n, b.clone())),
            );
        }
        if mutator.one_in(4) {
            let length = cut(mutator);
            what.push_str(&format!(", without its first {length} bytes"));
            pieces.retain(|number, _| number * PIECE >= length);
        }
        if mutator.one_in(6) {
            let length = cut(mutator);
            what.push_str(&format!(", only its first {length} bytes"));
            pieces.retain(|number, _| number * PIECE < length);
        }
        if mutator.one_in(2) {
            let place = *mutator.pick(&[&0, &1024, &(64 << 10), &(SIZE - (1 << 20))]);
            let mut bytes = get(&pieces, place, 1024);
            let others: Vec<&[u8]> = vec![fixture!("ext4"), fixture!("xfs"), fixture!("btrfs"), fixture!("luks2")];
            mutator.change(&mut bytes, &others);
            bytes.resize(1024, 0);
            what.push_str(&format!(", changed at {place}"));
            put(&mut pieces, place, &bytes);
        }
        pieces.retain(|_, bytes| !is_zero(bytes));
        (what, pieces)
    }

    fn ask(&self, ask: Ask, fs: &str) -> (Outcome<()>, Vol) {
        let vol = self.vol.fs(fs);
        let vol = match ask {
            Ask::Stage => vol,
            Ask::NoFormat => vol.context("dobs.csi.digitalocean.com/noformat", "true"),
            Ask::ReadOnly => vol.flags(&["ro"]),
            Ask::Reader => vol.mode(Mode::SINGLE_NODE_READER_ONLY),
            Ask::Raw | Ask::RawReader => vol.block(),
            Ask::Encrypted => vol.encrypted("sesame"),
        };
        let staged = self.rig.stage(&vol);
        let is_reader = ask == Ask::RawReader;
        let outcome = match ask {
            Ask::Raw | Ask::RawReader => staged.and_then(|()| self.rig.publish_as(&vol, "fuzz", is_reader)),
            Ask::Stage | Ask::NoFormat | Ask::ReadOnly | Ask::Reader | Ask::Encrypted => staged,
        };
        (outcome, vol)
    }

    /// Takes away what a call has left, which must be possible whatever it was.
    fn take_down(&self, vol: &Vol, what: &str) {
        self.rig.unpublish(vol, "fuzz").unwrap_or_else(|refusal| panic!("{what}: {refusal}"));
        self.rig.unstage(vol).unwrap_or_else(|refusal| panic!("{what}: {refusal}"));
        assert_eq!(self.rig.mount_at(&self.rig.staging(vol)), None, "{what}");
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Writes bytes into pieces, wherever they lie.
fn put(pieces: &mut Pieces, at: u64, bytes: &[u8]) {
    for (at, byte) in (at..SIZE).zip(bytes) {
        let piece = pieces.entry(at / PIECE).or_insert_with(|| vec![0; usize::try_from(PIECE).unwrap()]);
        piece[usize::try_from(at % PIECE).unwrap()] = *byte;
    }
}

fn get(pieces: &Pieces, at: u64, length: u64) -> Vec<u8> {
    let byte = |at: u64| pieces.get(&(at / PIECE)).map_or(0, |piece| piece[usize::try_from(at % PIECE).unwrap()]);
    (at..at + length).map(byte).collect()
}

/// Which file system is on a disk, by the number that each one has for itself.
fn identity(pieces: &Pieces) -> Vec<(&'static str, Vec<u8>)> {
    let uuid = |name, at, magic: &[u8], uuid_at| {
        let is_there = get(pieces, at, u64::try_from(magic.len()).unwrap()) == magic;
        is_there.then(|| (name, get(pieces, uuid_at, 16)))
    };
    let all = [
        uuid("ext", 1024 + 56, &[0x53, 0xef], 1024 + 104),
        uuid("xfs", 0, b"XFSB", 32),
        uuid("btrfs", (64 << 10) + 64, b"_BHRfS_M", (64 << 10) + 32),
        uuid("LUKS", 0, b"LUKS\xba\xbe", 168),
    ];
    all.into_iter().flatten().collect()
}

/// Whether all that has changed is in the two headers of LUKS2, of which cryptsetup makes the damaged one anew from the other.
fn is_restored_by_luks(before: &Pieces, changed: &[u64]) -> bool {
    const SECOND: u64 = 16 << 10;
    let has_header = get(before, 0, 4) == b"LUKS" || get(before, SECOND, 4) == b"SKUL";
    has_header && changed.iter().all(|number| number * PIECE < 2 * SECOND)
}

fn differing(before: &Pieces, after: &Pieces) -> Vec<u64> {
    let numbers = before.keys().chain(after.keys());
    let mut numbers: Vec<u64> = numbers.copied().filter(|number| before.get(number) != after.get(number)).collect();
    numbers.dedup();
    numbers
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_fuzz_no_disk_that_held_anything_is_made_anew() {
    let (lab, seed) = (Lab::start(), seed());
    let mut mutator =
        Mutator::new(seed, &[b"XFSB", b"_BHRfS_M", b"LUKS\xba\xbe", b"\x53\xef", b"EFI PART", b"LABELONE"]);
    let end = Instant::now() + budget().unwrap_or(TIME);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut tried = 0;
    while Instant::now() < end || tried < FEWEST {
        let (what, before) = lab.invent(&mut mutator);
        let (ask, fs) =
            (Ask::ALL[mutator.rng.usize(..Ask::ALL.len())], mutator.pick(&["", "ext4", "xfs", "btrfs", "ext3"]));
        lab.write(&before);
        let what = format!("{what}; {ask:?} {fs:?}; disk {tried} of FUZZ_SEED={seed}");
        let (outcome, vol) = lab.ask(ask, fs);
        let is_taken = outcome.is_ok();
        // Not before the call is over can anything be written by it; what is mounted writes until it is unmounted.
        lab.take_down(&vol, &what);
        let after = lab.read();
        let changed = differing(&before, &after);
        let told = outcome.as_ref().map_or_else(ToString::to_string, |()| "OK".to_owned());
        let refused = |reason: &str| panic!("{reason}: {what}: {told}; pieces {:?}", &changed[..changed.len().min(9)]);
        if before.is_empty() {
            if !(changed.is_empty() || is_taken && ask.may_format()) {
                refused("a blank disk was written to");
            }
        } else if !ask.may_mount() {
            if !changed.is_empty() {
                refused("a disk was written to");
            }
        } else if !(changed.is_empty() || ask == Ask::Encrypted && is_restored_by_luks(&before, &changed)) {
            // The kernel writes to a file system that it mounts, also when it then refuses it or only reads.
            let (had, has) = (identity(&before), identity(&after));
            let is_unfinished = is_taken && what.contains("unfinished");
            if !is_unfinished && !had.iter().any(|one| one.0 != "LUKS" && has.contains(one)) {
                refused("a disk that was not blank was made anew");
            }
            let marks = lab.made.iter().flat_map(|made| made.marks.iter().map(move |mark| (mark, &made.pieces[mark])));
            let mut lost =
                marks.filter(|(mark, bytes)| before.get(mark) == Some(bytes) && after.get(mark) != Some(bytes));
            if let Some((mark, _)) = lost.next() {
                refused(&format!("piece {mark} of a file is gone"));
            }
        }
        let code = outcome.as_ref().map_or_else(|refusal| format!("{:?}", refusal.code), |()| "OK".to_owned());
        if code.contains("INTERNAL") {
            println!("{what}: {told}");
        }
        for finding in ["bug in do-csi-plugin", "panicked"] {
            assert!(!told.contains(finding), "{what}: {told}");
        }
        *counts.entry(format!("{ask:?}: {code}")).or_default() += 1;
        tried += 1;
    }
    println!("{tried} disks, FUZZ_SEED={seed}: {counts:?}");
    assert!(!lab.rig.plugin().log().contains("panicked"), "{}", lab.rig.plugin().log());
    lab.rig.close();
}

/// The oracle itself: what is on a disk is read as it was written.
#[test]
#[ignore = "needs root: make test-root"]
fn root_fuzz_sees_a_changed_byte() {
    let lab = Lab::start();
    let made = lab.made.iter().find(|made| made.name == "xfs").unwrap();
    assert!(made.marks.len() >= MARK_BYTES / 4096, "{}", made.marks.len());
    lab.write(&made.pieces);
    assert!(differing(&made.pieces, &lab.read()).is_empty());
    OpenOptions::new().write(true).open(Path::new(&lab.node)).unwrap().write_all_at(&[7], 12_345_678).unwrap();
    assert_eq!(differing(&made.pieces, &lab.read()), [12_345_678 / PIECE]);
    lab.write(&Pieces::new());
    assert!(lab.read().is_empty());
    lab.rig.close();
}
