//! The names of things: one type for each kind of identifier, checked where it is made.
//!
//! Owns the shapes of volume, snapshot, droplet and action ids and of volume names. It does not know where an id
//! came from or what it is used for; whether a badly shaped id is an error or an honest "there is no such thing"
//! is decided by the caller.

use std::fmt;
use std::num::NonZeroU64;

use sha2::{Digest, Sha256};

/// Why a text is not an identifier of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct BadId {
    /// The text as it came, cut to 64 characters so that a hostile one cannot fill a log.
    text: String,
    /// What it should have been, as a phrase: "a volume id (a UUID)".
    expected: &'static str,
}

impl BadId {
    fn new(text: &str, expected: &'static str) -> Self {
        BadId { text: text.chars().take(64).collect(), expected }
    }
}

/// DigitalOcean's id of a block volume.
///
/// Shape: a UUID in lower or upper case hexadecimal with dashes, kept in lower case. The API's router knows only
/// ids of these characters, and an id of this shape is safe inside a URL path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(String);

/// DigitalOcean's id of a volume snapshot: the same shape as [`VolumeId`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(String);

impl VolumeId {
    /// Reads a volume id.
    ///
    /// # Errors
    /// [`BadId`] when the text is no UUID; no such volume can exist then.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        parse_uuid(text).map(VolumeId).ok_or_else(|| BadId::new(text, "a volume id (a UUID)"))
    }

    /// The id in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SnapshotId {
    /// Reads a snapshot id.
    ///
    /// # Errors
    /// [`BadId`] when the text is no UUID; no such snapshot can exist then.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        parse_uuid(text).map(SnapshotId).ok_or_else(|| BadId::new(text, "a snapshot id (a UUID)"))
    }

    /// The id in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text as part of a name that the system takes: the text itself where it has nothing but letters, digits and `-`, and no
/// more bytes than `most`; else a hash of it, which begins with `+`.
#[must_use]
pub fn plain_or_hash(text: &str, most: usize) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if text.len() <= most && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    let hash: String = Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("+{hash}")
}

fn parse_uuid(text: &str) -> Option<String> {
    let groups = [8, 4, 4, 4, 12];
    let parts: Vec<&str> = text.split('-').collect();
    let fits = parts.len() == groups.len()
        && parts.iter().zip(groups).all(|(part, len)| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit()));
    fits.then(|| text.to_ascii_lowercase())
}

/// A droplet's id: a positive number, also the CSI node id of the plugin that runs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DropletId(NonZeroU64);

impl DropletId {
    /// Reads a droplet id from the decimal text of a CSI node id or of the metadata service.
    ///
    /// # Errors
    /// [`BadId`] when the text is not a positive decimal number.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        let all_digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        all_digits
            .then(|| text.parse().ok())
            .flatten()
            .map(DropletId)
            .ok_or_else(|| BadId::new(text, "a droplet id (a positive number)"))
    }

    /// Takes the number as the API gives it; zero is no droplet.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(DropletId)
    }

    /// The number for the API.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

/// The number of an attach, detach or resize in DigitalOcean's action log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ActionId(pub u64);

/// A volume's name at DigitalOcean, from which the name of its device link is made.
///
/// Shape: 1 to 255 bytes without `/`, control characters or a leading dot, so that it can never lead out of the device
/// directory. What DigitalOcean accepts for a new volume is stricter; an existing volume is taken as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeName(String);

impl VolumeName {
    /// Reads the name of an existing volume.
    ///
    /// # Errors
    /// [`BadId`] when the text cannot be part of a file name.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        let fits = (1..=255).contains(&text.len())
            && !text.starts_with('.')
            && !text.chars().any(|c| c == '/' || c.is_control());
        if fits { Ok(VolumeName(text.to_owned())) } else { Err(BadId::new(text, "a volume name")) }
    }

    /// The name as DigitalOcean has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! display_inner {
    ($($kind:ty),*) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

display_inner!(VolumeId, SnapshotId, DropletId, ActionId, VolumeName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_uuids_are_volume_ids() {
        let good = "1B2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";
        assert_eq!(VolumeId::parse(good).unwrap().as_str(), good.to_lowercase());
        for bad in [
            "",
            "vol",
            "1b2c3d4e8f0011f09a110a58ac14d1e2",
            "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2/../x",
            "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1eg",
            "../account",
            "1b2c3d4e-8f00-11f0-9a11",
        ] {
            assert!(VolumeId::parse(bad).is_err(), "{bad}");
            assert!(SnapshotId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_positive_numbers_are_droplet_ids() {
        assert_eq!(DropletId::parse("3164444").unwrap().get(), 3_164_444);
        for bad in ["", "0", "-1", "+1", "1 ", "1.0", "0x10", "fake-node-id", "99999999999999999999999"] {
            assert!(DropletId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_volume_name_cannot_leave_the_device_folder() {
        for good in ["a", "nomad-volume", "redis_0", "a.b"] {
            assert!(VolumeName::parse(good).is_ok(), "{good}");
        }
        let too_long = "x".repeat(256);
        for bad in ["", ".", "..", ".hidden", "a/b", "../sda", "a\nb", "a\0b", too_long.as_str()] {
            assert!(VolumeName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bad_id_is_cut_before_it_is_shown() {
        let shown = VolumeId::parse(&"z".repeat(5000)).unwrap_err().to_string();
        assert!(shown.len() < 120, "{shown}");
    }
}
