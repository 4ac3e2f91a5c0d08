//! Sizes: bytes as CSI counts them, GiB as DigitalOcean counts them, and the step between the two.
//!
//! Owns the rounding rules and limits of a volume's size. It knows nothing of volumes, requests or replies.

use std::fmt;

const BYTES_PER_GIB: u64 = 1 << 30;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// A number of GiB (2^30 bytes), DigitalOcean's unit for `size_gigabytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gib(pub u64);

impl Gib {
    /// The same size in bytes; saturates far above any disk that exists.
    #[must_use]
    pub fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(BYTES_PER_GIB))
    }
}

impl Bytes {
    /// The smallest number of whole GiB that holds this many bytes.
    #[must_use]
    pub fn rounded_up(self) -> Gib {
        Gib(self.0.div_ceil(BYTES_PER_GIB))
    }

    /// The largest number of whole GiB that fits into this many bytes.
    #[must_use]
    pub fn rounded_down(self) -> Gib {
        Gib(self.0 / BYTES_PER_GIB)
    }

    /// The count as a CSI message carries it; saturates at the largest signed value.
    #[must_use]
    pub fn wire(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for Gib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} GiB", self.0)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

/// What sizes a volume may have, and which one it gets when nobody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeLimits {
    /// Smallest volume that can be made.
    pub min: Gib,
    /// Largest volume that can be made.
    pub max: Gib,
    /// Size of a volume for which no size was asked.
    pub default: Gib,
}

impl SizeLimits {
    /// DigitalOcean's documented bounds, and the official driver's default of 16 GiB.
    pub const DIGITALOCEAN: SizeLimits = SizeLimits { min: Gib(1), max: Gib(16 * 1024), default: Gib(16) };
}

/// A size range as a CSI request asks for it, both ends in bytes and checked against each other.
///
/// Source: CSI specification, `CapacityRange`: at least one end is set, neither is negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SizeRange {
    required: Option<Bytes>,
    limit: Option<Bytes>,
}

impl SizeRange {
    /// Reads the two numbers of a `CapacityRange`; zero means "not set".
    ///
    /// # Errors
    /// A phrase saying what is wrong: a negative number, or a limit below what is required.
    pub fn from_wire(required: i64, limit: i64) -> Result<Self, String> {
        let end = |name: &str, value: i64| {
            u64::try_from(value)
                .map(|v| (v > 0).then_some(Bytes(v)))
                .map_err(|_| format!("{name} must not be negative, got {value}"))
        };
        let range = SizeRange { required: end("required_bytes", required)?, limit: end("limit_bytes", limit)? };
        match (range.required, range.limit) {
            (Some(r), Some(l)) if l < r => Err(format!("limit_bytes {} is below required_bytes {}", l.0, r.0)),
            (Some(_) | None, Some(_) | None) => Ok(range),
        }
    }

    /// Whether a volume of this size satisfies the range.
    #[must_use]
    pub fn holds(&self, size: Gib) -> bool {
        self.required.is_none_or(|r| size.bytes() >= r) && self.limit.is_none_or(|l| size.bytes() <= l)
    }

    /// The least size that is acceptable, in whole GiB; `None` when any is.
    #[must_use]
    pub fn least(&self) -> Option<Gib> {
        self.required.map(Bytes::rounded_up)
    }

    /// Whether neither end is set.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.required.is_none() && self.limit.is_none()
    }
}

impl fmt::Display for SizeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.required, self.limit) {
            (None, None) => f.write_str("any size"),
            (Some(r), None) => write!(f, "at least {r}"),
            (None, Some(l)) => write!(f, "at most {l}"),
            (Some(r), Some(l)) => write!(f, "{r} to {l}"),
        }
    }
}

/// Chooses the size of a new volume: the smallest whole number of GiB that the range and the limits allow; the default
/// when nothing is asked. A limit without a minimum is the size, as in the official driver. It refuses one above the largest
/// volume, too: who names no other number cannot mean the largest and dearest volume there is.
///
/// # Errors
/// A phrase saying why no size fits; the caller answers OUT_OF_RANGE.
pub fn plan_size(range: &SizeRange, limits: &SizeLimits) -> Result<Gib, String> {
    let size = match (range.required, range.limit) {
        (None, None) => limits.default,
        (None, Some(limit)) => limit.rounded_down(),
        (Some(required), Some(_) | None) => required.rounded_up().max(limits.min),
    };
    if size < limits.min || size > limits.max {
        return Err(format!("{range} asked, but a volume has {} to {}", limits.min, limits.max));
    }
    if !range.holds(size) {
        return Err(format!("{range} asked, but volumes come in whole GiB and none lies in that range"));
    }
    Ok(size)
}

/// Chooses the size of a copy of something: at least the source's, which is also the default.
///
/// # Errors
/// A phrase saying why no size fits; the caller answers OUT_OF_RANGE.
pub fn plan_copy_size(range: &SizeRange, limits: &SizeLimits, source: Gib) -> Result<Gib, String> {
    let size = range.required.map_or(source, |required| required.rounded_up().max(source));
    if size > limits.max {
        return Err(format!("{range} of a source of {source} asked, but a volume has at most {}", limits.max));
    }
    if !range.holds(size) {
        return Err(format!("{range} asked, but a copy of {source} has whole GiB and no fewer than that"));
    }
    Ok(size)
}

/// Decides whether a volume has to grow, and to what size; `None` when it satisfies the range as it is.
///
/// # Errors
/// A phrase saying why it cannot be brought into the range; the caller answers OUT_OF_RANGE.
pub fn plan_growth(have: Gib, range: &SizeRange, limits: &SizeLimits) -> Result<Option<Gib>, String> {
    if range.holds(have) {
        return Ok(None);
    }
    match range.required.map(Bytes::rounded_up) {
        Some(size) if size > limits.max => Err(format!("{range} asked, but a volume has at most {}", limits.max)),
        Some(size) if size > have && range.holds(size) => Ok(Some(size)),
        Some(size) if size > have => {
            Err(format!("{range} asked, but volumes come in whole GiB and none lies in that range"))
        }
        Some(_) | None => Err(format!("{range} asked, but the volume has {have}, and volumes do not shrink")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: i64 = 1 << 30;

    #[test]
    fn sizes_are_rounded_up_within_the_range() {
        let ok = [
            (0, 0, 16),
            (1, 0, 1),
            (GIB, 0, 1),
            (GIB + 1, 0, 2),
            (1500 << 20, 0, 2),
            (1500 << 20, 2 * GIB, 2),
            (10 * GIB, 11 * GIB, 10),
            (0, 8 * GIB, 8),
            (0, 5 * GIB + 17, 5),
            (1, 2 * GIB, 1),
            (16384 * GIB, 0, 16384),
            (0, 16384 * GIB, 16384),
            (0, 16385 * GIB - 1, 16384),
            (20 * GIB, i64::MAX, 20),
        ];
        for (required, limit, want) in ok {
            let range = SizeRange::from_wire(required, limit).unwrap();
            assert_eq!(plan_size(&range, &SizeLimits::DIGITALOCEAN), Ok(Gib(want)), "{required}..{limit}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let bad = [
            (16384 * GIB + 1, 0),
            (i64::MAX, 0),
            (1500 << 20, 1600 << 20),
            (0, GIB - 1),
            (1, 5),
            (0, 16385 * GIB),
            (0, i64::MAX),
        ];
        for (required, limit) in bad {
            let range = SizeRange::from_wire(required, limit).unwrap();
            assert!(plan_size(&range, &SizeLimits::DIGITALOCEAN).is_err(), "{required}..{limit}");
        }
    }

    #[test]
    fn contradictory_ranges_are_no_ranges() {
        for (required, limit) in [(-1, 0), (0, -1), (2 * GIB, GIB)] {
            assert!(SizeRange::from_wire(required, limit).is_err(), "{required}..{limit}");
        }
    }

    #[test]
    fn a_copy_is_no_smaller_than_its_source() {
        let table = [
            (0, 0, Ok(10)),
            (5 * GIB, 0, Ok(10)),
            (10 * GIB + 1, 0, Ok(11)),
            (0, 12 * GIB, Ok(10)),
            (0, 9 * GIB, Err(())),
            (GIB, 9 * GIB, Err(())),
            (16384 * GIB + 1, 0, Err(())),
            (10 * GIB + 1, 10 * GIB + 2, Err(())),
        ];
        for (required, limit, want) in table {
            let range = SizeRange::from_wire(required, limit).unwrap();
            let got = plan_copy_size(&range, &SizeLimits::DIGITALOCEAN, Gib(10));
            assert_eq!(got.map_err(|_| ()), want.map(Gib), "{required}..{limit}");
        }
    }

    #[test]
    fn a_volume_grows_only_when_it_must_and_never_shrinks() {
        let table = [
            (10 * GIB, 0, Ok(None)),
            (1, 0, Ok(None)),
            (0, 10 * GIB, Ok(None)),
            (10 * GIB + 1, 0, Ok(Some(11))),
            (20 * GIB, 20 * GIB, Ok(Some(20))),
            (16384 * GIB, 0, Ok(Some(16384))),
            (16384 * GIB + 1, 0, Err(())),
            (0, 9 * GIB, Err(())),
            (5 * GIB, 9 * GIB, Err(())),
            (10 * GIB + 1, 10 * GIB + 2, Err(())),
        ];
        for (required, limit, want) in table {
            let range = SizeRange::from_wire(required, limit).unwrap();
            let got = plan_growth(Gib(10), &range, &SizeLimits::DIGITALOCEAN);
            assert_eq!(got.map_err(|_| ()), want.map(|size| size.map(Gib)), "{required}..{limit}");
        }
    }

    #[test]
    fn an_existing_volume_is_compatible_when_the_range_holds_it() {
        let range = SizeRange::from_wire(1500 << 20, 3 * GIB).unwrap();
        assert_eq!([1, 2, 3, 4].map(|g| range.holds(Gib(g))), [false, true, true, false]);
    }
}
