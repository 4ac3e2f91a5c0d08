//! Reading a disk, and judging what was read.
//!
//! Owns the places that are read before a disk counts as blank, the buffer for that, the names of what is found there,
//! and the proofs that nothing was ever stored in what an interrupted mkfs has left. It writes to no disk.
//! `probe/content.rs` decides what all of it means for a volume.

pub mod blkid;
pub mod content;
pub mod disk;
pub mod format_marker;
pub mod partial_btrfs;
pub mod partial_ext;
pub mod partial_xfs;
pub mod places;
pub mod superblock;
pub mod traces;

pub(super) use disk::Disk;
pub(super) use places::EDGE;
pub(super) use traces::Trace;

use crate::error::Result;
use crate::fs::FsKind;

/// Disks are judged in blocks of this size, and so aligned: no file system here has larger ones of its own.
pub(super) const BLOCK: u64 = 4096;

/// What was read from a disk, besides blkid's opinion.
#[derive(Debug)]
pub(super) struct Probe {
    /// The offset of the first byte that is not zero.
    pub(super) first_non_zero: Option<u64>,
    /// What was recognised, where it lies first.
    pub(super) trace: Option<Trace>,
    /// The file system whose making was cut off on this disk, where that is certain.
    pub(super) unfinished: Option<FsKind>,
}

impl Probe {
    /// Reads every place that has to be zero on a blank disk, also when the answer is known: a disk that cannot be read is
    /// not to be written to.
    pub(super) fn read(disk: &Disk<'_>) -> Result<Self> {
        let (mut non_zero, mut trace) = (None, None);
        disk.scan(|at, piece| {
            if let Some(offset) = first_non_zero(piece) {
                non_zero = non_zero.or(Some(at.saturating_add(offset)));
                trace = trace.take().or_else(|| traces::find(at, piece));
            }
            Ok(())
        })?;
        // An XFS superblock that blkid does not believe in is not certain.
        let unfinished = if non_zero.is_none() { None } else { find_unfinished_nameless(disk)? };
        Ok(Probe { first_non_zero: non_zero, trace, unfinished })
    }
}

/// The unfinished file system on this disk, if that is certain: the disk's own bytes say so, and nothing on it
/// contradicts them.
pub(super) fn find_unfinished(disk: &Disk<'_>) -> Result<Option<FsKind>> {
    if is_unfinished_xfs(disk)? { Ok(Some(FsKind::Xfs)) } else { find_unfinished_nameless(disk) }
}

/// As [`find_unfinished`], of those file systems whose name mkfs writes last.
fn find_unfinished_nameless(disk: &Disk<'_>) -> Result<Option<FsKind>> {
    if partial_btrfs::is_there(disk)? {
        return Ok(Some(FsKind::Btrfs));
    }
    match format_marker::find(&disk.read_head(format_marker::END)?) {
        Some(kind) => Ok(partial_ext::is_nothing_else_there(disk)?.then_some(kind)),
        None => partial_ext::find(disk),
    }
}

/// As [`find_unfinished`], of XFS alone, whose name mkfs.xfs writes first.
pub(super) fn is_unfinished_xfs(disk: &Disk<'_>) -> Result<bool> {
    partial_xfs::is_there(disk)
}

/// The offset of the first byte that is not zero.
pub(super) fn first_non_zero(bytes: &[u8]) -> Option<u64> {
    const PIECE: usize = 4096;
    const ZEROS: &[u8; PIECE] = &[0; PIECE];
    let mut start = 0;
    for piece in bytes.chunks(PIECE) {
        if Some(piece) != ZEROS.get(..piece.len()) {
            let within = piece.iter().position(|byte| *byte != 0)?;
            return u64::try_from(start + within).ok();
        }
        start += piece.len();
    }
    None
}

/// Whether a block looks like noise, as zeros do that were encrypted: every byte comes about as often as any other.
///
/// The measure is Pearson's, with 255 degrees of freedom: noise has 255 on average and leaves these limits once in more
/// than 10^12 blocks; text, tables and trees are far above.
pub(super) fn is_noise(block: &[u8]) -> bool {
    let mut counts = [0_u64; 256];
    for byte in block {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count += 1;
        }
    }
    let Ok(length) = u64::try_from(block.len()) else { return false };
    let squares: u64 = counts.iter().map(|count| count * count).sum();
    let Some(measure) = (squares * 256).checked_div(length).and_then(|measure| measure.checked_sub(length)) else {
        return false;
    };
    (100..=450).contains(&measure)
}

/// The checksum of XFS and btrfs: CRC32c, begun with all ones and inverted at the end.
///
/// Source: RFC 3720, appendix B.4; the polynomial is 0x1edc6f41, here with its bits reversed.
fn crc32c<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0x82f6_3b78 })
    };
    !parts.into_iter().flatten().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        assert_eq!(crc32c([b"123456789".as_slice()]), 0xe306_9283);
        assert_eq!(crc32c([b"1234".as_slice(), b"", b"56789"]), 0xe306_9283);
        assert_eq!(crc32c([[0_u8; 32].as_slice()]), 0x8a91_36aa);
    }

    #[test]
    fn noise_is_told_from_what_has_an_order() {
        // A keystream from a counter, mixed as for a hash.
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u8::try_from(state >> 56).unwrap()
        };
        for _ in 0..1000 {
            let block: Vec<u8> = (0..4096).map(|_| noise()).collect();
            assert!(is_noise(&block));
        }
        let counted: Vec<u8> = (0..4096_u32).flat_map(|number| number.to_le_bytes()).take(4096).collect();
        for ordered in [vec![0; 4096], b"my data ".repeat(512), counted, (0..=255).cycle().take(4096).collect(), vec![]]
        {
            assert!(!is_noise(&ordered));
        }
    }

    proptest! {
        #[test]
        fn any_byte_that_is_not_zero_is_found(length in 1_usize..200_000, at in any::<prop::sample::Index>(), byte in 1_u8..) {
            let mut bytes = vec![0; length];
            prop_assert_eq!(first_non_zero(&bytes), None);
            bytes[at.index(length)] = byte;
            prop_assert_eq!(first_non_zero(&bytes), Some(u64::try_from(at.index(length)).unwrap()));
        }
    }
}
