//! Where a disk is looked at before it counts as blank.
//!
//! Owns the list of these places, and is pure. There are four kinds of places: the beginning and the end, where almost
//! every format has its signature; where the data of an encrypted volume begins; where formats keep copies of their
//! header, which survive when the first MiB of a disk are overwritten; and samples between, half of them evenly spread
//! and half drawn at random, which find data without a signature.

use crate::host::probe::BLOCK;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;

/// How much is read at either end of a disk. In it are the heads of all formats, and what some have at the end: the second
/// partition table of GPT, md's 0.90 and 1.0, LVM's second copy, two labels of ZFS, NTFS's second boot sector.
pub(in crate::host) const EDGE: u64 = 4 * MIB;
/// Where the data of an encrypted volume begins, as cryptsetup makes them: as much as at the ends is read there, for a
/// volume whose head was lost is certainly not zero there, if anything was ever stored in it.
const INNER: u64 = crate::host::luks::layout::DATA_AT;
/// How many places between the ends are looked at: evenly spread, and as many again at random.
const SAMPLES: u64 = 64;
/// Where partitioning programs put the first partition, and LVM the first volume.
const FIRST_PARTITION: u64 = MIB;

/// A range of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::host) struct Place {
    /// Its offset.
    pub(in crate::host) at: u64,
    /// Its length.
    pub(in crate::host) length: u64,
}

impl Place {
    /// The offset behind it.
    pub(in crate::host) fn end(self) -> u64 {
        self.at.saturating_add(self.length)
    }
}

/// Where a disk of this size is looked at, from its beginning to its end; no two places touch. `seed` draws the samples.
pub(super) fn places(size: u64, seed: u64) -> Vec<Place> {
    let tail = size.saturating_sub(EDGE);
    let wide = [0, INNER, tail].map(|at| Place { at, length: EDGE });
    let narrow = copies(size).into_iter().chain(even_samples(size)).chain(random_samples(size, seed));
    let blocks = narrow.map(|at| Place { at: at - at % BLOCK, length: BLOCK });
    let mut all: Vec<_> = blocks.chain(wide).filter_map(|place| clipped(place, size)).collect();
    all.sort_unstable();
    let mut joined: Vec<Place> = Vec::with_capacity(all.len());
    for place in all {
        match joined.last_mut() {
            Some(last) if place.at <= last.end() => last.length = last.length.max(place.end() - last.at),
            Some(_) | None => joined.push(place),
        }
    }
    joined
}

fn clipped(place: Place, size: u64) -> Option<Place> {
    let length = place.end().min(size).checked_sub(place.at)?;
    (length > 0).then_some(Place { length, ..place })
}

fn even_samples(size: u64) -> impl Iterator<Item = u64> {
    let span = size.saturating_sub(2 * EDGE);
    let step = span / SAMPLES;
    (0..SAMPLES).filter(move |_| span >= BLOCK).map(move |i| EDGE + step * i + step / 2)
}

fn random_samples(size: u64, seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    (0..SAMPLES).filter_map(move |_| {
        // SplitMix64. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators". It stands here as later
        // versions have to draw the same places in an encrypted volume, which is blank only there.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(size)
    })
}

/// Where formats keep copies of their heads, away from the ends, on a disk of this size and in its first partition.
fn copies(size: u64) -> Vec<u64> {
    let mut all = Vec::new();
    ext_copies(size, 0, u64::MAX, &mut all);
    ext_copies(size, FIRST_PARTITION, 9, &mut all);
    xfs_copies(size, &mut all);
    // Source: `btrfs_sb_offset` of the kernel's `fs/btrfs/disk-io.c`; the third is beyond any volume.
    all.extend([64 * MIB, 256 * GIB, FIRST_PARTITION + 64 * MIB]);
    // LUKS2's second header is as far from the first as that is long, at most. Source: LUKS2 On-Disk Format Specification, 2.
    all.push(4 * MIB);
    // NTFS's table of files. Source: mkntfs(8) puts it at 3 GiB with clusters of 4096 bytes.
    all.extend([3 * GIB, FIRST_PARTITION + 3 * GIB]);
    // OCFS2's copies and Ceph's labels. Source: `ocfs2_backup_super_blkno` of the kernel's `fs/ocfs2/ocfs2_fs.h`;
    // `bdev_label_positions` of Ceph's `BlueStore.cc`.
    all.extend([GIB, 4 * GIB, 16 * GIB, 64 * GIB, 256 * GIB, TIB, 10 * GIB, 100 * GIB, 1000 * GIB]);
    all
}

/// The copies of ext2, ext3 and ext4, in groups of the usual size: the second one, those whose number is a power of 3, 5 or
/// 7, and the last one, where `sparse_super2` has its second. ReiserFS has a bitmap in the same places.
///
/// Source: `ext4_bg_has_super` in the kernel's `fs/ext4/balloc.c`.
fn ext_copies(size: u64, base: u64, most: u64, all: &mut Vec<u64>) {
    for block in [KIB, 2 * KIB, 4 * KIB] {
        let group = 8 * block * block;
        // With the smallest blocks the first one, that of the boot sector, belongs to no group.
        let first = base + if block == KIB { KIB } else { 0 };
        let groups = size.saturating_sub(first).div_ceil(group);
        let powers = [3_u64, 5, 7].into_iter().flat_map(|base| {
            std::iter::successors(Some(base), move |power| power.checked_mul(base)).take_while(|power| *power < groups)
        });
        let ends = [groups.saturating_sub(1), groups.saturating_sub(2)].into_iter().filter(|_| most == u64::MAX);
        let numbers = powers.filter(|number| *number <= most).chain([1]).chain(ends);
        all.extend(numbers.map(|number| first.saturating_add(number.saturating_mul(group))));
    }
}

/// The copies at the beginnings of XFS's allocation groups, as mkfs.xfs lays them out on one disk: four of them, or as many
/// as it has processors or takes for several disks, and from 4 TiB on groups of 1 TiB. A file system that has grown has
/// groups of the size that it had at first.
///
/// Source: `calc_default_ag_geometry` and `calc_concurrency_ag_geometry` of xfsprogs' `libxfs/topology.c` and
/// `mkfs/xfs_mkfs.c`.
fn xfs_copies(size: u64, all: &mut Vec<u64>) {
    const COUNTS: [u64; 11] = [2, 3, 4, 5, 6, 8, 12, 16, 20, 24, 32];
    const SHARES_OF_GROWN: u64 = 4;
    let quarter = |size: u64, count: u64, block: u64| (size / block).div_ceil(count).saturating_mul(block);
    for block in [KIB, 2 * KIB, 4 * KIB] {
        all.extend(COUNTS.map(|count| quarter(size, count, block)));
        all.extend((2..4).map(|number| number * quarter(size, 4, block)));
        let largest = TIB - block;
        all.extend((1..size.div_ceil(largest)).map(|number| number * largest));
    }
    all.extend(ROUND_SIZES.map(|size| size * GIB / SHARES_OF_GROWN));
    // A partition may end where the disk does, before the second table of GPT, or at a whole MiB before that.
    for end in [size, size.saturating_sub(17 * KIB), size.saturating_sub(MIB)] {
        let length = end.saturating_sub(FIRST_PARTITION);
        all.push(FIRST_PARTITION + quarter(length, 4, 4 * KIB));
    }
}

/// Sizes in GiB in which volumes are made, and from which they grow.
const ROUND_SIZES: [u64; 66] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 18, 20, 24, 25, 28, 30, 32, 35, 40, 45, 48, 50, 55, 60, 64, 70, 75,
    80, 90, 96, 100, 120, 125, 128, 150, 160, 175, 180, 192, 200, 220, 240, 250, 256, 300, 320, 350, 400, 450, 500,
    512, 600, 640, 700, 750, 800, 900, 1000, 1024, 1500, 2000, 2048,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_covered(places: &[Place], at: u64) -> bool {
        places.iter().any(|place| place.at <= at && at < place.end())
    }

    #[test]
    fn the_copies_of_all_formats_are_among_the_places() {
        for (size, at, what) in [
            (512 * MIB, 8 * MIB + KIB, "ext, 1 KiB, group 1"),
            (512 * MIB, 24 * MIB + KIB, "ext, 1 KiB, group 3"),
            (512 * MIB, 504 * MIB + KIB, "ext, 1 KiB, last group"),
            (GIB, 32 * MIB, "ext, 2 KiB, group 1"),
            (GIB, 27 * 32 * MIB, "ext, 2 KiB, group 27"),
            (100 * GIB, 128 * MIB, "ext, 4 KiB, group 1"),
            (100 * GIB, 729 * 128 * MIB, "ext, 4 KiB, group 729"),
            (100 * GIB, 799 * 128 * MIB, "ext, 4 KiB, last group"),
            (16 * TIB, 117_649 * 128 * MIB, "ext, 4 KiB, group 7^6"),
            (100 * GIB, 129 * MIB, "ext in the first partition"),
            (GIB, 256 * MIB, "xfs, group 1"),
            (GIB, 512 * MIB, "xfs, group 2"),
            (GIB, 768 * MIB, "xfs, group 3"),
            (3 * TIB, 768 * GIB, "xfs, group 1 of 3 TiB"),
            (5 * TIB, TIB - 4096, "xfs, group 1 of 5 TiB"),
            (16 * TIB, 15 * (TIB - 4096), "xfs, group 15 of 16 TiB"),
            (100 * GIB, 5 * GIB / 2, "xfs that has grown from 10 GiB"),
            (100 * GIB, 25 * GIB / 4, "xfs of 16 groups"),
            (GIB, MIB + (GIB - 2 * MIB) / 4, "xfs in the first partition"),
            (GIB, 64 * MIB, "btrfs, second copy"),
            (300 * GIB, 256 * GIB, "btrfs, third copy"),
            (GIB, 4 * MIB, "LUKS2, second header"),
            (4 * GIB, 3 * GIB, "NTFS, table of files"),
            (2 * TIB, TIB, "OCFS2, sixth copy"),
        ] {
            assert!(is_covered(&places(size, 0), at), "{what}");
        }
    }

    #[test]
    fn the_samples_are_drawn_anew_by_each_seed_and_reach_everywhere() {
        let size = 8 * TIB;
        assert_eq!(places(size, 7), places(size, 7));
        assert_ne!(places(size, 7), places(size, 8));
        // A MiB anywhere on 1 GiB is found sooner or later, wherever the even samples miss it.
        let found = (0..64)
            .filter(|seed| places(GIB, *seed).iter().any(|place| place.at >= 301 * MIB && place.end() <= 302 * MIB));
        assert!((1..32).contains(&found.count()));
    }

    #[test]
    fn a_look_is_short() {
        for size in [GIB, 100 * GIB, 16 * TIB] {
            let places = places(size, 0);
            let length: u64 = places.iter().map(|place| place.length).sum();
            assert!(places.len() < 420 && length < 14 * MIB, "{size}: {} {length}", places.len());
        }
    }

    proptest! {
        #[test]
        fn what_is_looked_at_lies_on_the_disk_in_order_and_holds_both_ends(sectors in 1_u64..(1 << 35), seed: u64) {
            let size = sectors * 512;
            let places = places(size, seed);
            prop_assert!(places.windows(2).all(|pair| pair[0].end() < pair[1].at));
            prop_assert!(places.iter().all(|place| place.length > 0 && place.at % 512 == 0));
            let (first, last) = (places[0], places[places.len() - 1]);
            prop_assert_eq!(first.at, 0);
            prop_assert!(first.length >= size.min(EDGE));
            prop_assert_eq!(last.end(), size);
            prop_assert!(last.length >= size.min(EDGE));
            let inner = INNER.min(size - 1);
            prop_assert!(is_covered(&places, inner));
            prop_assert!(is_covered(&places, (inner + EDGE - 1).min(size - 1)));
            // No two neighbours are further apart than a 64th of what lies between the ends, and one sample.
            let gap = size / SAMPLES + 2 * BLOCK;
            prop_assert!(places.windows(2).all(|pair| pair[1].at <= pair[0].end() + gap));
        }
    }
}
