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

/// Chooses the size of a new volume: the smallest whole number of GiB that the range and the limits allow, the default
/// (or the limit, when that is smaller) when no minimum is asked.
///
/// # Errors
/// A phrase saying why no size fits; the caller answers OUT_OF_RANGE.
pub fn plan_size(range: &SizeRange, limits: &SizeLimits) -> Result<Gib, String> {
    let size = match (range.required, range.limit) {
        (None, None) => limits.default,
        (None, Some(limit)) => limit.rounded_down().min(limits.max),
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
            (0, i64::MAX, 16384),
        ];
        for (required, limit, want) in ok {
            let range = SizeRange::from_wire(required, limit).unwrap();
            assert_eq!(plan_size(&range, &SizeLimits::DIGITALOCEAN), Ok(Gib(want)), "{required}..{limit}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let bad = [(16384 * GIB + 1, 0), (i64::MAX, 0), (1500 << 20, 1600 << 20), (0, GIB - 1), (1, 5)];
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
    fn an_existing_volume_is_compatible_when_the_range_holds_it() {
        let range = SizeRange::from_wire(1500 << 20, 3 * GIB).unwrap();
        assert_eq!([1, 2, 3, 4].map(|g| range.holds(Gib(g))), [false, true, true, false]);
    }
}
