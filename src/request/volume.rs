//! CreateVolume, from the wire to types.
//!
//! Owns what a new volume is asked to be. It does not know what DigitalOcean has.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::id::{SnapshotId, VolumeId};
use crate::proto::csi;
use crate::request::capability::Capability;
use crate::request::parameters::{PARAMETERS, Parameters, TagChange};
use crate::request::publish_context::ContextKeys;
use crate::request::secrets::Secrets;
use crate::request::{required, volume_id};
use crate::size::SizeRange;

/// The topology key of volumes and nodes; the same as in the official driver.
pub const REGION_KEY: &str = "region";

/// Most bytes of a volume's or snapshot's name. Source: CSI specification, "Size Limits".
const MAX_NAME: usize = 128;

/// A volume to make.
#[derive(Debug, Clone)]
pub struct CreateVolume {
    /// The CSI name: 1 to 128 bytes of any text.
    pub name: String,
    /// The sizes that are acceptable.
    pub range: SizeRange,
    /// The ways it will be used; all are possible.
    pub capabilities: Vec<Capability>,
    /// The regions of which one is required; none: any.
    pub regions: Vec<String>,
    /// What it is to contain.
    pub source: Option<Source>,
    /// What the orchestrator's user sets.
    pub parameters: Parameters,
    /// What can also be set later.
    pub mutable: TagChange,
    /// What it carries with it to the node that uses it: the settings among its parameters.
    pub context: HashMap<String, String>,
}

/// Where a new volume's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A snapshot.
    Snapshot(SnapshotId),
    /// Another volume.
    Volume(VolumeId),
}

impl CreateVolume {
    /// Reads the request. A setting that no node could follow is refused here, before there is a volume.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Unsupported`]; [`Error::NotFound`] for a source that cannot exist.
    pub fn parse(wire: csi::CreateVolumeRequest, secrets: &Secrets, keys: &ContextKeys) -> Result<CreateVolume> {
        let range = wire.capacity_range.into_option().unwrap_or_default();
        let topology = wire.accessibility_requirements.into_option().unwrap_or_default();
        let name = csi_name("name", wire.name)?;
        let capabilities = Capability::parse_all("volume_capabilities", wire.volume_capabilities)?;
        let settings = keys.settings(&name, PARAMETERS, &wire.parameters, &capabilities)?;
        secrets.key_for(settings.is_encrypted)?;
        Ok(CreateVolume {
            name,
            capabilities,
            range: size_range(&range)?,
            regions: requisite_regions(topology)?,
            parameters: Parameters::parse(&wire.parameters)?,
            context: keys.carry(&wire.parameters),
            mutable: TagChange::parse(&wire.mutable_parameters)?,
            // Last, as an id that cannot exist is no fault of the request's form.
            source: wire.volume_content_source.into_option().map(parse_source).transpose()?,
        })
    }
}

/// Reads a name that the orchestrator's user chose.
pub(super) fn csi_name(field: &str, text: String) -> Result<String> {
    let text = required(field, text)?;
    if text.len() > MAX_NAME {
        return Err(Error::invalid(field, format!("must have at most {MAX_NAME} bytes, has {}", text.len())));
    }
    if text.chars().any(is_banned) {
        return Err(Error::invalid(field, "must not contain control characters but tab, LF and CR"));
    }
    Ok(text)
}

/// The characters that a name must not have. Source: CSI specification, `CreateVolumeRequest.name` and
/// `CreateSnapshotRequest.name`.
fn is_banned(c: char) -> bool {
    matches!(c, '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{7f}'..='\u{9f}')
}

pub(super) fn size_range(wire: &csi::CapacityRange) -> Result<SizeRange> {
    SizeRange::from_wire(wire.required_bytes, wire.limit_bytes).map_err(|why| Error::invalid("capacity_range", why))
}

/// One matching requisite is enough, so those that are not ours matter only when there is no other.
///
/// Source: CSI specification, `TopologyRequirement`.
/// The regions of which one must be possible; none: any.
pub(super) fn requisite_regions(topology: csi::TopologyRequirement) -> Result<Vec<String>> {
    let mut regions = Vec::new();
    let mut foreign = None;
    for requisite in topology.requisite {
        match region(requisite) {
            Ok(region) => regions.push(region),
            Err(err @ Error::Unsupported(_)) => foreign = Some(err),
            Err(err) => return Err(err),
        }
    }
    match foreign {
        Some(err) if regions.is_empty() => Err(err),
        Some(_) | None => Ok(regions),
    }
}

pub(crate) fn region(topology: csi::Topology) -> Result<String> {
    // Keys have no case: CSI specification, `Topology`.
    let (mut regions, mut others): (Vec<_>, Vec<_>) =
        topology.segments.into_iter().partition(|(key, _)| key.eq_ignore_ascii_case(REGION_KEY));
    match (regions.pop(), others.pop()) {
        (Some((_, region)), None) if regions.is_empty() => Ok(region),
        (Some(_), None) => Err(Error::invalid("accessibility_requirements", "a topology has one key twice")),
        (Some(_) | None, Some((key, _))) => {
            Err(Error::Unsupported(format!("topology key {key:?}; the only one there is, is {REGION_KEY:?}")))
        }
        (None, None) => Err(Error::invalid("accessibility_requirements", "a topology has no segment")),
    }
}

fn parse_source(wire: csi::VolumeContentSource) -> Result<Source> {
    use csi::volume_content_source::Type;

    match wire.type_ {
        Some(Type::Snapshot(snapshot)) => {
            crate::request::snapshot_id("volume_content_source.snapshot_id", snapshot.snapshot_id).map(Source::Snapshot)
        }
        Some(Type::Volume(volume)) => {
            volume_id("volume_content_source.volume_id", volume.volume_id).map(Source::Volume)
        }
        None => Err(Error::invalid("volume_content_source", "names neither a snapshot nor a volume")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(segments: &[(&str, &str)]) -> csi::Topology {
        let segments = segments.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        csi::Topology { segments, ..Default::default() }
    }

    #[test]
    fn a_topology_has_exactly_the_region() {
        for key in ["region", "Region"] {
            assert_eq!(region(topology(&[(key, "fra1")])).unwrap(), "fra1");
        }
        assert!(matches!(region(topology(&[("region", "fra1"), ("REGION", "ams3")])), Err(Error::Invalid { .. })));
        assert!(matches!(region(topology(&[])), Err(Error::Invalid { .. })));
        assert!(matches!(region(topology(&[("zone", "a")])), Err(Error::Unsupported(_))));
        assert!(matches!(region(topology(&[("region", "fra1"), ("zone", "a")])), Err(Error::Unsupported(_))));
    }

    #[test]
    fn one_requisite_that_is_ours_is_enough() {
        let (ours, foreign, empty) = ([("region", "fra1")], [("zone", "a")], []);
        let read = |requisite: &[&[(&str, &str)]]| {
            let requisite = requisite.iter().map(|segments| topology(segments)).collect();
            requisite_regions(csi::TopologyRequirement { requisite, ..Default::default() })
        };
        assert_eq!(read(&[]).unwrap(), [""; 0]);
        assert_eq!(read(&[&foreign, &ours]).unwrap(), ["fra1"]);
        assert_eq!(read(&[&ours, &foreign]).unwrap(), ["fra1"]);
        assert!(matches!(read(&[&foreign, &foreign]), Err(Error::Unsupported(_))));
        assert!(matches!(read(&[&ours, &empty]), Err(Error::Invalid { .. })));
    }

    #[test]
    fn names_have_one_to_128_bytes_of_any_text_but_what_the_specification_bans() {
        let long = "x".repeat(128);
        for good in ["a", "redis[0]", "Vol/ü", "\t\n\r", "\u{a0}\u{2028}\u{202e}", long.as_str()] {
            assert!(csi_name("name", good.into()).is_ok(), "{good:?}");
        }
        let too_long = "x".repeat(129);
        for bad in
            ["", too_long.as_str(), "\0", "\u{8}", "\u{b}", "\u{c}", "\u{e}", "\u{1f}", "\u{7f}", "\u{85}", "\u{9f}"]
        {
            assert!(csi_name("name", bad.into()).is_err(), "{bad:?}");
        }
    }
}
