//! What a request names and is not there.
//!
//! Owns the words for it, and the hint for an id that cannot be one.

use std::fmt;
use std::path::PathBuf;

use crate::id::{DropletId, SnapshotId, VolumeId};

/// A thing that a request names and that does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thing {
    /// A volume, by the id as it came in the request.
    Volume(String),
    /// A volume, by its name.
    VolumeNamed(String),
    /// A snapshot, by the id as it came in the request.
    Snapshot(String),
    /// A droplet, by the node id as it came in the request.
    Droplet(String),
    /// A path at which a volume should be staged or published.
    VolumeAt(PathBuf),
    /// A volume at a path at which something else is.
    VolumeNotAt {
        /// The volume, by the id as it came in the request.
        volume: String,
        /// The path.
        path: PathBuf,
        /// What is there, as a sentence.
        found: String,
    },
}

impl Thing {
    /// What is wrong with an id that cannot be one, as it is often a name.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Thing::Volume(id) if VolumeId::parse(id).is_err() => {
                ": this is not a volume's id (a UUID), perhaps its name; `doctl compute volume list` shows the id, which Nomad \
                 calls external_id"
            }
            Thing::VolumeNamed(_) => " in this region; `doctl compute volume list` shows those that there are",
            Thing::Snapshot(id) if SnapshotId::parse(id).is_err() => {
                ": this is not a snapshot's id (a UUID), perhaps its name; `doctl compute snapshot list` shows the id"
            }
            Thing::Droplet(id) if DropletId::parse(id).is_err() => {
                ": this is not a droplet's id (a number), perhaps its name; `doctl compute droplet list` shows the id"
            }
            Thing::Volume(_)
            | Thing::Snapshot(_)
            | Thing::Droplet(_)
            | Thing::VolumeAt(_)
            | Thing::VolumeNotAt { .. } => "",
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thing::Volume(id) => write!(f, "volume {id:?}"),
            Thing::VolumeNamed(name) => write!(f, "a volume called {name:?}"),
            Thing::Snapshot(id) => write!(f, "snapshot {id:?}"),
            Thing::Droplet(id) => write!(f, "droplet (node id) {id:?}"),
            Thing::VolumeAt(path) => write!(f, "volume at {}", path.display()),
            Thing::VolumeNotAt { volume, path, found } => {
                write!(f, "volume {volume:?} at {} ({found})", path.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn an_id_that_is_a_name_is_told_from_one_that_is_gone() {
        let uuid = "506f78a4-8f00-11f0-9a11-0a58ac14d1e2".to_owned();
        let name = || "postgres".to_owned();
        let cases = [
            (Thing::Volume(uuid.clone()), None),
            (Thing::Snapshot(uuid), None),
            (Thing::Droplet("3164444".to_owned()), None),
            (Thing::Volume(name()), Some("doctl compute volume list")),
            (Thing::Snapshot(name()), Some("doctl compute snapshot list")),
            (Thing::Droplet(name()), Some("doctl compute droplet list")),
        ];
        for (thing, hint) in cases {
            let text = Error::NotFound(thing).to_string();
            match hint {
                None => assert!(text.ends_with(" does not exist"), "{text}"),
                Some(command) => {
                    assert!(text.contains(" does not exist: this is not a ") && text.contains(command), "{text}")
                }
            }
        }
    }
}
