//! The requests that change an existing volume: its size or its tags.
//!
//! Owns one type for each of them.

use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::proto::csi;
use crate::request::capability::Capability;
use crate::request::parameters::TagChange;
use crate::request::volume::size_range;
use crate::request::{required, volume_id};
use crate::size::SizeRange;

/// A volume to make larger.
#[derive(Debug, Clone)]
pub struct Expand {
    /// The volume.
    pub volume: VolumeId,
    /// The sizes that are acceptable; at least one end is set.
    pub range: SizeRange,
}

impl TryFrom<csi::ControllerExpandVolumeRequest> for Expand {
    type Error = Error;

    /// There is no default size here: growing cannot be undone. Source: CSI specification, `capacity_range` is REQUIRED.
    fn try_from(wire: csi::ControllerExpandVolumeRequest) -> Result<Self> {
        let volume = required("volume_id", wire.volume_id)?;
        let range =
            wire.capacity_range.into_option().ok_or_else(|| Error::invalid("capacity_range", "must be given"))?;
        let range = size_range(&range)?;
        if range.is_open() {
            return Err(Error::invalid("capacity_range", "must name required_bytes or limit_bytes"));
        }
        if let Some(capability) = wire.volume_capability.into_option() {
            Capability::parse("volume_capability", Some(capability))?;
        }
        Ok(Expand { volume: volume_id("volume_id", volume)?, range })
    }
}

/// A volume whose tags should change.
#[derive(Debug, Clone)]
pub struct Modify {
    /// The volume.
    pub volume: VolumeId,
    /// What should change.
    pub tags: TagChange,
}

impl TryFrom<csi::ControllerModifyVolumeRequest> for Modify {
    type Error = Error;

    fn try_from(wire: csi::ControllerModifyVolumeRequest) -> Result<Self> {
        let volume = required("volume_id", wire.volume_id)?;
        let tags = TagChange::parse(&wire.mutable_parameters)?;
        Ok(Modify { volume: volume_id("volume_id", volume)?, tags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";

    #[test]
    fn an_expansion_names_a_volume_and_a_size() {
        let parse = |id: &str, range: Option<(i64, i64)>| {
            let range = range.map(|(required_bytes, limit_bytes)| csi::CapacityRange {
                required_bytes,
                limit_bytes,
                ..Default::default()
            });
            Expand::try_from(csi::ControllerExpandVolumeRequest {
                volume_id: id.to_owned(),
                capacity_range: range.into(),
                ..Default::default()
            })
        };
        assert!(parse(ID, Some((1, 0))).is_ok());
        assert!(parse(ID, Some((0, 1))).is_ok());
        for (id, range) in [("", Some((1, 0))), (ID, None), (ID, Some((0, 0))), (ID, Some((2, 1))), (ID, Some((-1, 0)))]
        {
            assert!(matches!(parse(id, range), Err(Error::Invalid { .. })), "{id} {range:?}");
        }
        assert!(matches!(parse("no-uuid", Some((1, 0))), Err(Error::NotFound(_))));
    }
}
