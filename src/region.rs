//! The slug of a region, such as `fra1`.
//!
//! Owns its shape. Which regions exist, and which have block storage, is known to DigitalOcean alone.

use std::fmt;

/// A region of DigitalOcean by its slug.
///
/// Shape: 1 to 32 lower-case letters, digits and dashes; also the value of the CSI topology key `region`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region(String);

/// Why a text is no region.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a region (a slug like fra1)")]
pub struct BadRegion(String);

impl Region {
    /// Reads a slug; blanks around it are dropped.
    ///
    /// # Errors
    /// [`BadRegion`] when the text has another shape; no such region can exist then.
    pub fn parse(text: &str) -> Result<Region, BadRegion> {
        let slug = text.trim();
        let fits = (1..=32).contains(&slug.len())
            && slug.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits { Ok(Region(slug.to_owned())) } else { Err(BadRegion(text.chars().take(64).collect())) }
    }

    /// The slug.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slugs_are_regions() {
        assert_eq!(Region::parse("fra1\n").unwrap().as_str(), "fra1");
        for bad in ["", " ", "FRA1", "fra 1", "fra1/..", "<html>", &"x".repeat(33)] {
            assert!(Region::parse(bad).is_err(), "{bad:?}");
        }
    }
}
