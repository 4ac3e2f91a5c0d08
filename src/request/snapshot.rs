//! The requests about snapshots, from the wire to types.
//!
//! Owns one type for each of them. Whether a snapshot exists is not known here.

use crate::cloud::tag::Tag;
use crate::error::Result;
use crate::id::{SnapshotId, VolumeId};
use crate::proto::csi;
use crate::request::parameters::Parameters;
use crate::request::query::Page;
use crate::request::volume::{csi_name, requisite_regions};
use crate::request::{required, volume_id};

/// A snapshot to take.
#[derive(Debug, Clone)]
pub struct CreateSnapshot {
    /// The CSI name: 1 to 128 bytes of any text.
    pub name: String,
    /// The volume to take it of.
    pub source: VolumeId,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// The regions of which volumes made from it must be usable in one; none: any.
    pub regions: Vec<String>,
}

impl TryFrom<csi::CreateSnapshotRequest> for CreateSnapshot {
    type Error = crate::error::Error;

    fn try_from(wire: csi::CreateSnapshotRequest) -> Result<Self> {
        let name = csi_name("name", wire.name)?;
        let source = required("source_volume_id", wire.source_volume_id)?;
        let tags = Parameters::parse(&wire.parameters)?.tags;
        let regions = requisite_regions(wire.accessibility_requirements.unwrap_or_default())?;
        Ok(CreateSnapshot { name, source: volume_id("source_volume_id", source)?, tags, regions })
    }
}

/// Snapshots to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListSnapshots {
    /// Which of them.
    pub which: Which,
    /// Which page of these.
    pub page: Page,
}

/// Which snapshots are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All of the region.
    All,
    /// Those taken of this volume.
    Of(VolumeId),
    /// This one, if it was taken of that volume; of any, when none is named.
    One(SnapshotId, Option<VolumeId>),
    /// None: an id that the request names cannot exist.
    Nothing,
}

impl ListSnapshots {
    /// Reads the request.
    ///
    /// # Errors
    /// As [`Page::parse`].
    pub fn parse(wire: &csi::ListSnapshotsRequest) -> Result<ListSnapshots> {
        let page = Page::parse(wire.max_entries, &wire.starting_token)?;
        let which = match (wire.snapshot_id.as_str(), wire.source_volume_id.as_str()) {
            ("", "") => Some(Which::All),
            ("", source) => VolumeId::parse(source).ok().map(Which::Of),
            (snapshot, "") => SnapshotId::parse(snapshot).ok().map(|id| Which::One(id, None)),
            (snapshot, source) => SnapshotId::parse(snapshot)
                .ok()
                .zip(VolumeId::parse(source).ok())
                .map(|(id, source)| Which::One(id, Some(source))),
        };
        Ok(ListSnapshots { which: which.unwrap_or(Which::Nothing), page })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Thing};

    const ID: &str = "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";

    #[test]
    fn what_is_listed_follows_from_the_two_ids() {
        let (snapshot, volume) = (SnapshotId::parse(ID).unwrap(), VolumeId::parse(ID).unwrap());
        let table = [
            ("", "", Which::All),
            ("", ID, Which::Of(volume.clone())),
            ("", "vol", Which::Nothing),
            (ID, "", Which::One(snapshot.clone(), None)),
            (ID, ID, Which::One(snapshot, Some(volume))),
            (ID, "vol", Which::Nothing),
            ("snap", "", Which::Nothing),
            ("snap", ID, Which::Nothing),
        ];
        for (snapshot, volume, want) in table {
            let wire = csi::ListSnapshotsRequest {
                snapshot_id: snapshot.to_owned(),
                source_volume_id: volume.to_owned(),
                ..Default::default()
            };
            assert_eq!(ListSnapshots::parse(&wire).unwrap().which, want, "{snapshot:?} {volume:?}");
        }
    }

    #[test]
    fn a_snapshot_has_a_name_and_a_source() {
        let parse = |name: &str, source: &str| {
            let (name, source_volume_id) = (name.to_owned(), source.to_owned());
            CreateSnapshot::try_from(csi::CreateSnapshotRequest { name, source_volume_id, ..Default::default() })
        };
        assert!(parse("nightly[0]", ID).is_ok());
        for (name, source) in [("", ID), ("", ""), ("a", "")] {
            assert!(matches!(parse(name, source), Err(Error::Invalid { .. })), "{name:?} {source:?}");
        }
        assert!(matches!(parse("a", "no-uuid"), Err(Error::NotFound(Thing::Volume(_)))));
    }
}
