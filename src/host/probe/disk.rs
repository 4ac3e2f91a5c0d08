//! A disk that is read directly, never from the kernel's cache.
//!
//! Owns how it is read: the few structures that are judged one by one, and everything that must be zero through one
//! small buffer, no matter how many disks are read at once.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::error::{Error, Result};
use crate::host::device::Device;
use crate::host::probe::places::{Place, places};
use crate::host::probe::{BLOCK, first_non_zero};

/// What is read in one go, and all memory that a look at a disk takes. It is on the stack: what the heap of a thread has once
/// given out stays with the program.
const BUFFER: usize = 64 * 1024;
/// The kernel reads no more than this for one advice.
const ADVICE: u64 = 256 * 1024;

/// A disk that is read, with nothing of it left in memory from before.
pub(in crate::host) struct Disk<'a> {
    file: File,
    device: &'a Device,
    places: Vec<Place>,
}

impl<'a> Disk<'a> {
    /// Opens it, and draws the places where it is going to be looked at.
    pub(in crate::host) fn open(device: &'a Device) -> Result<Self> {
        let disk = Disk { file: device.open()?, device, places: places(device.size().0, seed_for(device)) };
        // Pages still in memory from an earlier use would prove nothing about the disk.
        disk.advise(PosixFadviseAdvice::POSIX_FADV_DONTNEED, 0, 0)?;
        // The places lie far apart: reading ahead of each would only cost time.
        disk.advise(PosixFadviseAdvice::POSIX_FADV_RANDOM, 0, 0)?;
        Ok(disk)
    }

    /// Its size in bytes, when it was found.
    pub(in crate::host) fn size(&self) -> u64 {
        self.device.size().0
    }

    /// Where it is looked at, from its beginning to its end.
    pub(in crate::host) fn places(&self) -> impl DoubleEndedIterator<Item = Place> + '_ {
        self.places.iter().copied()
    }

    /// Reads exactly this range; the end of the disk before its end is an error, never fewer bytes.
    pub(in crate::host) fn read(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.in_memory(length)?];
        self.fill(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Reads its first bytes: fewer, if it has not as many.
    pub(in crate::host) fn read_head(&self, length: u64) -> Result<Vec<u8>> {
        self.read(0, length.min(self.size()))
    }

    /// Whether it has nothing but zeros before a place. All of it is read: what cannot be read is not known to be zero.
    pub(in crate::host) fn is_zero_before(&self, end: u64) -> Result<bool> {
        let mut is_zero = true;
        self.show(Place { at: 0, length: end }, &mut [0; BUFFER], |_, piece| {
            is_zero &= first_non_zero(piece).is_none();
            Ok(())
        })?;
        Ok(is_zero)
    }

    /// Reads all places where it is looked at, in order, and shows what was read in pieces, with the offset of each.
    pub(in crate::host) fn scan(&self, mut show: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        self.ask_ahead()?;
        let mut buffer = [0; BUFFER];
        for place in &self.places {
            self.show(*place, &mut buffer, &mut show)?;
        }
        // Nobody needs it again: the next look should read the disk itself.
        self.advise(PosixFadviseAdvice::POSIX_FADV_DONTNEED, 0, 0)
    }

    /// Whether all that is not zero, wherever it is looked at, is explained, block by block. The first argument is a block's
    /// offset.
    pub(in crate::host) fn is_explained(&self, mut explain: impl FnMut(u64, &[u8]) -> Result<bool>) -> Result<bool> {
        let mut is_explained = true;
        let step = self.in_memory(BLOCK)?;
        self.scan(|start, piece| {
            let mut at = start;
            for block in piece.chunks(step) {
                if is_explained && first_non_zero(block).is_some() {
                    is_explained = explain(at, block)?;
                }
                at += BLOCK;
            }
            Ok(())
        })?;
        Ok(is_explained)
    }

    /// Reads one place in pieces that fit the buffer, and shows each.
    fn show(&self, place: Place, buffer: &mut [u8], mut show: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut at = place.at;
        while at < place.end() {
            let length = self.in_memory(place.end() - at)?.min(buffer.len());
            let piece = buffer.split_at_mut(length).0;
            self.fill(piece, at)?;
            show(at, piece)?;
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Lets the kernel read all places at once: a volume on a network answers a thousand questions asked together almost as
    /// fast as one. It is only advice, and what cannot be read is found when it is asked for.
    fn ask_ahead(&self) -> Result<()> {
        for place in &self.places {
            let mut at = place.at;
            while at < place.end() {
                self.advise(PosixFadviseAdvice::POSIX_FADV_WILLNEED, at, ADVICE.min(place.end() - at))?;
                at += ADVICE;
            }
        }
        Ok(())
    }

    fn fill(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.file.read_exact_at(bytes, at).map_err(Error::io("reading", self.device.path()))
    }

    fn advise(&self, advice: PosixFadviseAdvice, at: u64, length: u64) -> Result<()> {
        let offset = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        posix_fadvise(&self.file, offset(at), offset(length), advice)
            .map_err(Error::errno("reading", self.device.path()))
    }

    fn in_memory(&self, length: u64) -> Result<usize> {
        usize::try_from(length).map_err(|error| Error::io("reading", self.device.path())(std::io::Error::other(error)))
    }
}

/// Draws by what the places of a disk are drawn. What is in an encrypted volume was filled with zeros at certain places, and
/// reads as noise at all others, so there the same places are drawn each time.
fn seed_for(device: &Device) -> u64 {
    if device.mapper_name().is_none() {
        return RandomState::new().build_hasher().finish();
    }
    // FNV-1a: it must give the same number in every version of this program.
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    device.volume().as_str().bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
