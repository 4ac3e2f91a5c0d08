//! Inputs that nobody thought of: good ones, changed in the ways in which formats break.
//!
//! Owns the changes, the budget, and what becomes of an input that a target does not stand. Each run tries the seeds as they are,
//! the inputs that were found before (tests/fixtures/fuzz/NAME), and then changed ones: as many as a test run has time for, or
//! for `FUZZ_SECONDS` seconds. `FUZZ_SEED` plays a run again.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;

/// How many changed inputs a test run tries, where no time is set.
const INPUTS: u32 = 1500;
/// Numbers at which formats break.
const NUMBERS: [u64; 16] =
    [0, 1, 2, 7, 8, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX];
/// What numbers look like where they are written out.
const DIGITS: [&str; 10] =
    ["0", "-1", "1", "00", "255", "65536", "4294967296", "9223372036854775807", "18446744073709551616", "1e309"];
/// No input becomes longer.
const MOST_BYTES: usize = 1 << 16;

/// For how long a run goes on; none: it tries a few inputs.
pub fn budget() -> Option<Duration> {
    let seconds = std::env::var("FUZZ_SECONDS").ok()?.parse().expect("FUZZ_SECONDS is a number");
    Some(Duration::from_secs(seconds))
}

/// The seed of a run: a fixed one in a test run, another one each time where a time is set.
pub fn seed() -> u64 {
    if let Ok(text) = std::env::var("FUZZ_SEED") {
        return text.parse().expect("FUZZ_SEED is a number");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if budget().is_some() { u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap_or_default() } else { 1 }
}

/// Makes changed inputs.
#[derive(Debug)]
pub struct Mutator {
    pub rng: Rng,
    /// Texts that mean something in the format.
    words: Vec<Vec<u8>>,
}

impl Mutator {
    /// One that puts these words into what it changes.
    pub fn new(seed: u64, words: &[&[u8]]) -> Mutator {
        Mutator { rng: Rng::with_seed(seed), words: words.iter().map(|word| word.to_vec()).collect() }
    }

    /// One of several.
    pub fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.rng.usize(..all.len())]
    }

    /// Something that is so once in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.rng.usize(..times) == 0
    }

    /// A place in the bytes; near the beginning, where headers are, more often than not.
    fn place(&mut self, length: usize) -> usize {
        let most = if self.rng.bool() { length.min(64) } else { length };
        self.rng.usize(..=most)
    }

    /// Changes an input a few times; `others` is what it may get parts of.
    pub fn change(&mut self, bytes: &mut Vec<u8>, others: &[&[u8]]) {
        for _ in 0..1 + self.rng.usize(..4) {
            self.change_once(bytes, others);
        }
        bytes.truncate(MOST_BYTES);
    }

    fn change_once(&mut self, bytes: &mut Vec<u8>, others: &[&[u8]]) {
        let at = self.place(bytes.len());
        let end = (at + 1 + self.rng.usize(..16)).min(bytes.len());
        match self.rng.u8(..12) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << self.rng.u8(..8),
            2 if at < bytes.len() => bytes[at] = self.rng.u8(..),
            3 | 4 => self.put_number(bytes, at),
            5 => drop(bytes.drain(at..end)),
            6 => {
                let part = bytes[at..end].to_vec();
                let times = self.rng.usize(1..4);
                bytes.splice(at..at, part.repeat(times));
            }
            7 => bytes.truncate(at),
            8 if !self.words.is_empty() => {
                let word = self.words[self.rng.usize(..self.words.len())].clone();
                let end = if self.rng.bool() { (at + word.len()).min(bytes.len()) } else { at };
                bytes.splice(at..end, word);
            }
            9 if !others.is_empty() => {
                let other = others[self.rng.usize(..others.len())];
                let from = self.place(other.len());
                let end = if self.rng.bool() { bytes.len() } else { (at + other.len() - from).min(bytes.len()) };
                bytes.splice(at..end, other[from..].iter().copied());
            }
            10 => self.replace_digits(bytes, at),
            _ => bytes.splice(at..at, [0; 8]).for_each(drop),
        }
    }

    /// Writes a number as formats have them: one to eight bytes, in either order.
    fn put_number(&mut self, bytes: &mut [u8], at: usize) {
        let number = NUMBERS[self.rng.usize(..NUMBERS.len())];
        let number = number.wrapping_add(self.rng.u64(..3)).wrapping_sub(1);
        let width = 1 << self.rng.u8(..4);
        let at = if self.rng.bool() { at - at % width } else { at };
        let Some(place) = bytes.get_mut(at..at + width) else { return };
        let little = number.to_le_bytes();
        place.copy_from_slice(&little[..width]);
        if self.rng.bool() {
            place.reverse();
        }
    }

    /// Puts another number where one is written out.
    fn replace_digits(&mut self, bytes: &mut Vec<u8>, from: usize) {
        let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|found| from + found) else { return };
        let length = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = DIGITS[self.rng.usize(..DIGITS.len())];
        bytes.splice(start..start + length, number.bytes());
    }
}

/// Tries a target with the seeds, with what was found before, and with changed ones.
///
/// # Panics
/// The target panics. The input is kept in a file, which the message names: put it into tests/fixtures/fuzz.
pub fn fuzz(name: &str, seeds: &[&[u8]], words: &[&[u8]], target: impl Fn(&[u8])) {
    let found: Vec<Vec<u8>> = kept(name).iter().map(|file| fs::read(file).expect("a kept input is read")).collect();
    let seeds: Vec<&[u8]> = seeds.iter().copied().chain(found.iter().map(Vec::as_slice)).collect();
    seeds.iter().for_each(|input| try_one(name, input, &target));
    let (seed, end) = (seed(), budget().map(|budget| Instant::now() + budget));
    let mut mutator = Mutator::new(seed, words);
    let mut tried = 0_u32;
    while end.map_or(tried < INPUTS, |end| Instant::now() < end) {
        let mut input =
            seeds.get(mutator.rng.usize(..seeds.len().max(1))).map(|seed| seed.to_vec()).unwrap_or_default();
        mutator.change(&mut input, &seeds);
        try_one(name, &input, &target);
        tried = tried.saturating_add(1);
    }
    if end.is_some() {
        println!("fuzz {name}: {tried} inputs, FUZZ_SEED={seed}");
    }
}

fn try_one(name: &str, input: &[u8], target: &impl Fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let file = std::env::temp_dir().join(format!("fuzz-{name}-{:016x}", hash(input)));
        fs::write(&file, input).expect("the input is kept");
        println!("fuzz {name}: {} bytes in {}: {:?}", input.len(), file.display(), String::from_utf8_lossy(input));
        resume_unwind(panic);
    }
}

fn kept(name: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fuzz").join(name);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// FNV-1a, for a file's name.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
