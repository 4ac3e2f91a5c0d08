//! The node's requests, from the wire to types.
//!
//! Owns one type for each node RPC. A volume's id is taken as it comes, because the node finds the disk by the volume's
//! name in the publish context, and old Nomads send an id of their own.

use std::path::PathBuf;

use crate::error::{Error, Result, Thing};
use crate::host::luks::passphrase::Key;
use crate::proto::csi;
use crate::request::capability::Capability;
use crate::request::publish_context::{Attached, ContextKeys};
use crate::request::secrets::Secrets;
use crate::request::volume::size_range;
use crate::request::volume_context::{CONTEXT, Settings};
use crate::request::{absolute_path, required};
use crate::size::SizeRange;

/// A volume to make ready on this node.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The volume's id as the orchestrator has it.
    pub volume: String,
    /// What the controller said of it.
    pub attached: Attached,
    /// Where it is to be mounted for all its users.
    pub staging: PathBuf,
    /// How it will be used. A volume that is only read has read-only among its mount flags, however that was asked for.
    pub capability: Capability,
    /// Settings that the volume carries with it.
    pub settings: Settings,
    /// The key of an encrypted volume, if this call has it: an orchestrator may give it to one call and not to another.
    pub key: Option<Key>,
}

impl Stage {
    /// Reads the request.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Unsupported`].
    pub fn parse(wire: csi::NodeStageVolumeRequest, secrets: &Secrets, keys: &ContextKeys) -> Result<Stage> {
        let attached = keys.read(&wire.publish_context)?;
        let capability = Capability::parse("volume_capability", wire.volume_capability.into_option())?;
        let volume = required("volume_id", wire.volume_id)?;
        let settings = keys.settings(&volume, CONTEXT, &wire.volume_context, std::slice::from_ref(&capability))?;
        Ok(Stage {
            volume,
            staging: absolute_path("staging_target_path", wire.staging_target_path)?,
            capability: capability.settled(attached.is_read_only),
            attached,
            key: secrets.key_for(settings.is_encrypted)?,
            settings,
        })
    }
}

/// A volume to let go of on this node.
#[derive(Debug, Clone)]
pub struct Unstage {
    /// The volume's id as the orchestrator has it.
    pub volume: String,
    /// Where it was staged.
    pub staging: PathBuf,
}

impl Unstage {
    /// Reads the request.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(wire: csi::NodeUnstageVolumeRequest) -> Result<Unstage> {
        Ok(Unstage {
            volume: required("volume_id", wire.volume_id)?,
            staging: absolute_path("staging_target_path", wire.staging_target_path)?,
        })
    }
}

/// A staged volume to show to one workload.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The volume as it was, or should have been, staged.
    pub stage: Stage,
    /// Where the workload is to find it: a directory for a file system, a file for a raw block device.
    pub target: PathBuf,
    /// Whether the workload may only read.
    pub is_read_only: bool,
}

impl Publish {
    /// Reads the request.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Unsupported`]; [`Error::NotStaged`] without a staging path, as this plugin has
    /// the capability STAGE_UNSTAGE_VOLUME. Source: CSI specification, NodePublishVolume errors.
    pub fn parse(wire: csi::NodePublishVolumeRequest, secrets: &Secrets, keys: &ContextKeys) -> Result<Publish> {
        let volume = required("volume_id", wire.volume_id)?;
        let target = absolute_path("target_path", wire.target_path)?;
        let capability = Capability::parse("volume_capability", wire.volume_capability.into_option())?;
        if wire.staging_target_path.is_empty() {
            return Err(Error::NotStaged("staging_target_path must be set: stage the volume first".to_owned()));
        }
        let staging = absolute_path("staging_target_path", wire.staging_target_path)?;
        if target.starts_with(&staging) {
            return Err(Error::invalid("target_path", "must not lie below staging_target_path"));
        }
        let attached = keys.read(&wire.publish_context)?;
        let capability = capability.settled(attached.is_read_only);
        let is_read_only = wire.readonly || attached.is_read_only || capability.is_read_only();
        let settings = keys.settings(&volume, CONTEXT, &wire.volume_context, std::slice::from_ref(&capability))?;
        let key = secrets.key_for(settings.is_encrypted)?;
        Ok(Publish { stage: Stage { volume, attached, staging, capability, settings, key }, target, is_read_only })
    }
}

/// A volume to take away from one workload.
#[derive(Debug, Clone)]
pub struct Unpublish {
    /// The volume's id as the orchestrator has it.
    pub volume: String,
    /// Where the workload found it.
    pub target: PathBuf,
}

impl Unpublish {
    /// Reads the request.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(wire: csi::NodeUnpublishVolumeRequest) -> Result<Unpublish> {
        Ok(Unpublish {
            volume: required("volume_id", wire.volume_id)?,
            target: absolute_path("target_path", wire.target_path)?,
        })
    }
}

/// A volume whose use of space is asked for.
#[derive(Debug, Clone)]
pub struct Stats {
    /// The volume's id as the orchestrator has it.
    pub volume: String,
    /// Where it is staged or published.
    pub path: PathBuf,
}

impl Stats {
    /// Reads the request.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(wire: csi::NodeGetVolumeStatsRequest) -> Result<Stats> {
        Ok(Stats { volume: required("volume_id", wire.volume_id)?, path: volume_path(wire.volume_path)? })
    }
}

/// A volume of which is asked what is wrong with it.
#[derive(Debug, Clone)]
pub struct Health {
    /// The volume's id as the orchestrator has it.
    pub volume: String,
    /// Where it is, or should be, published and staged, as far as the caller says so.
    pub paths: Vec<PathBuf>,
}

impl Health {
    /// Reads the request. A path at which nothing can be is one at which the volume is not.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(wire: csi::NodeGetVolumeHealthRequest) -> Result<Health> {
        let volume = required("volume_id", wire.volume_id)?;
        let paths =
            [("volume_publish_path", wire.volume_publish_path), ("staging_target_path", wire.staging_target_path)];
        let paths = paths.into_iter().filter_map(|(field, path)| absolute_path(field, path).ok()).collect();
        Ok(Health { volume, paths })
    }
}

/// A volume that has become larger, and whose disk and file system are to follow.
#[derive(Debug, Clone)]
pub struct Expand {
    /// The volume's id as the orchestrator has it.
    pub volume: String,
    /// Where it is staged or published.
    pub path: PathBuf,
    /// The sizes that are acceptable; open: whatever the disk has.
    pub range: SizeRange,
    /// The key of the volume, if this call has one.
    pub key: Option<Key>,
}

impl Expand {
    /// Reads the request.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Unsupported`]; [`Error::NotFound`] for a path at which nothing can be.
    pub fn parse(wire: csi::NodeExpandVolumeRequest, secrets: &Secrets) -> Result<Expand> {
        let volume = required("volume_id", wire.volume_id)?;
        let range = size_range(&wire.capacity_range.unwrap_or_default())?;
        if let Some(capability) = wire.volume_capability.into_option() {
            Capability::parse("volume_capability", Some(capability))?;
        }
        Ok(Expand { volume, range, path: volume_path(wire.volume_path)?, key: secrets.key()? })
    }
}

/// The path of a volume that should be there. One that no volume is ever put at, such as a relative one, is an answer and
/// not a malformed request.
fn volume_path(text: String) -> Result<PathBuf> {
    let text = required("volume_path", text)?;
    absolute_path("volume_path", text.clone()).map_err(|_| Error::NotFound(Thing::VolumeAt(text.into())))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::id::VolumeName;
    use crate::size::Gib;

    #[test]
    fn the_publish_context_of_the_official_driver_is_read_too() {
        let keys = ContextKeys::new("dobs.csi.digitalocean.com");
        let official = HashMap::from([("dobs.csi.digitalocean.com/volume-name".to_owned(), "blog".to_owned())]);
        let name = VolumeName::parse("blog").unwrap();
        let attached = Attached { name: name.clone(), size: None, is_read_only: false };
        assert_eq!(keys.read(&official).unwrap(), attached);
        for is_read_only in [false, true] {
            let attached = Attached { size: Some(Gib(3)), is_read_only, ..attached.clone() };
            assert_eq!(keys.read(&keys.write(&name, Gib(3), is_read_only)).unwrap(), attached);
        }
        for bad in ["", "../../sda", "a/b"] {
            let context = HashMap::from([("dobs.csi.digitalocean.com/volume-name".to_owned(), bad.to_owned())]);
            assert!(matches!(keys.read(&context), Err(Error::Invalid { .. })), "{bad}");
        }
    }
}
