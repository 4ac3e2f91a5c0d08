//! ControllerPublishVolume and ControllerUnpublishVolume, from the wire to types.

use crate::error::{Error, Result};
use crate::id::{DropletId, VolumeId};
use crate::proto::csi;
use crate::request::capability::{Access, AccessMode, Capability};
use crate::request::{droplet_id, required, volume_id};

/// A volume to attach to a droplet.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The volume.
    pub volume: VolumeId,
    /// The droplet.
    pub droplet: DropletId,
    /// How it will be used there.
    pub mode: PublishMode,
}

/// How a volume is used on the droplet that it is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishMode {
    /// Whether it will only be read. DigitalOcean always attaches for reading and writing; the node publishes
    /// read-only.
    pub is_read_only: bool,
    /// Whether it is used as a raw block device.
    pub is_block: bool,
}

impl TryFrom<csi::ControllerPublishVolumeRequest> for Publish {
    type Error = Error;

    /// Every field is checked for form before an id that cannot exist is reported as not found.
    fn try_from(wire: csi::ControllerPublishVolumeRequest) -> Result<Self> {
        let volume = required("volume_id", wire.volume_id)?;
        let droplet = required("node_id", wire.node_id)?;
        let capability = Capability::parse("volume_capability", wire.volume_capability.into_option())?;
        let mode = PublishMode {
            is_read_only: wire.readonly || capability.mode == AccessMode::SingleNodeReaderOnly,
            is_block: matches!(capability.access, Access::Block),
        };
        Ok(Publish { volume: volume_id("volume_id", volume)?, droplet: droplet_id("node_id", droplet)?, mode })
    }
}

/// A volume to detach.
#[derive(Debug, Clone)]
pub struct Unpublish {
    /// The volume.
    pub volume: VolumeId,
    /// From where it should be detached.
    pub from: DetachFrom,
}

/// From which droplets a volume should be detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetachFrom {
    /// From this one; elsewhere it is left alone.
    Droplet(DropletId),
    /// From wherever it is: the request names no node. Source: CSI specification, ControllerUnpublishVolume.
    Anywhere,
}

impl Unpublish {
    /// Reads the request; `None` when its ids cannot exist, so that nothing can be attached there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the volume's id is missing.
    pub fn parse(wire: csi::ControllerUnpublishVolumeRequest) -> Result<Option<Unpublish>> {
        let text = required("volume_id", wire.volume_id)?;
        let Ok(volume) = VolumeId::parse(&text) else { return Ok(None) };
        let from = match wire.node_id.as_str() {
            "" => DetachFrom::Anywhere,
            node => match DropletId::parse(node) {
                Ok(droplet) => DetachFrom::Droplet(droplet),
                Err(_) => return Ok(None),
            },
        };
        Ok(Some(Unpublish { volume, from }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpublishing_what_cannot_be_attached_is_nothing_to_do() {
        let wire = |volume: &str, node: &str| csi::ControllerUnpublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            ..Default::default()
        };
        let id = "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";
        assert!(matches!(Unpublish::parse(wire("", "1")), Err(Error::Invalid { .. })));
        assert!(Unpublish::parse(wire("no-uuid", "1")).unwrap().is_none());
        assert!(Unpublish::parse(wire(id, "not-a-number")).unwrap().is_none());
        assert_eq!(Unpublish::parse(wire(id, "")).unwrap().unwrap().from, DetachFrom::Anywhere);
        let droplet = DropletId::parse("7").unwrap();
        assert_eq!(Unpublish::parse(wire(id, "7")).unwrap().unwrap().from, DetachFrom::Droplet(droplet));
    }
}
