//! The controller's requests, from the wire to types.
//!
//! Owns one type for each request whose fields need reading together. It does not know what DigitalOcean has.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::id::{DropletId, SnapshotId, VolumeId};
use crate::request::capability::{Access, AccessMode, Capability};
use crate::request::node::ContextKeys;
use crate::request::parameters::{PARAMETERS, Parameters, TagChange};
use crate::request::secrets::Secrets;
use crate::request::settings::CONTEXT;
use crate::request::{droplet_id, required, volume_id};
use crate::rpc::proto::csi;
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
    pub fn parse(wire: csi::CreateVolumeRequest, keys: &ContextKeys) -> Result<CreateVolume> {
        let secrets = Secrets::new(wire.secrets);
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
fn requisite_regions(topology: csi::TopologyRequirement) -> Result<Vec<String>> {
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

fn region(topology: csi::Topology) -> Result<String> {
    let mut segments = topology.segments;
    let region = segments.remove(REGION_KEY);
    match (region, segments.into_keys().next()) {
        (Some(region), None) => Ok(region),
        (Some(_) | None, Some(key)) => {
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

/// A volume to attach to a droplet.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The volume.
    pub volume: VolumeId,
    /// The droplet.
    pub droplet: DropletId,
    /// How it is going to be used there.
    pub usage: Usage,
}

/// How a volume is used on the droplet that it is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Whether it is only going to be read. DigitalOcean attaches for reading and writing; the node publishes read-only.
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
        let usage = Usage {
            is_read_only: wire.readonly || capability.mode == AccessMode::SingleNodeReaderOnly,
            is_block: matches!(capability.access, Access::Block),
        };
        Ok(Publish { volume: volume_id("volume_id", volume)?, droplet: droplet_id("node_id", droplet)?, usage })
    }
}

/// A volume to detach.
#[derive(Debug, Clone)]
pub struct Unpublish {
    /// The volume.
    pub volume: VolumeId,
    /// From where it is to be detached.
    pub from: DetachFrom,
}

/// From which droplets a volume is to be detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetachFrom {
    /// From this one; elsewhere it is left alone.
    Droplet(DropletId),
    /// From wherever it is: the request names no node. Source: CSI specification, ControllerUnpublishVolume.
    Anywhere,
}

impl Unpublish {
    /// Reads the request; `None` when its ids are such that nothing can be attached there.
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

/// A question whether a volume can be used in some ways.
#[derive(Debug, Clone)]
pub struct Validate {
    /// The volume.
    pub volume: VolumeId,
    /// Why not all of what is asked can be had; none: it all can.
    pub refusal: Option<String>,
}

impl Validate {
    /// Reads the request. Capabilities that are well formed but cannot be had are an answer, not an error; so are settings
    /// and parameters that a later call would refuse.
    ///
    /// # Errors
    /// [`Error::Invalid`] when something is missing or malformed, [`Error::NotFound`] for an impossible id.
    pub fn parse(wire: &csi::ValidateVolumeCapabilitiesRequest, keys: &ContextKeys) -> Result<Validate> {
        let volume = required("volume_id", wire.volume_id.clone())?;
        let refusal = match Capability::parse_all("volume_capabilities", wire.volume_capabilities.clone()) {
            Ok(capabilities) => check_rest(wire, keys, &capabilities).err().map(|err| err.to_string()),
            Err(Error::Unsupported(why)) => Some(why),
            Err(err) => return Err(err),
        };
        Ok(Validate { volume: volume_id("volume_id", volume)?, refusal })
    }
}

/// Checks what a question about capabilities says besides them.
fn check_rest(
    wire: &csi::ValidateVolumeCapabilitiesRequest,
    keys: &ContextKeys,
    capabilities: &[Capability],
) -> Result<()> {
    keys.settings(&wire.volume_id, CONTEXT, &wire.volume_context, capabilities)?;
    keys.settings(&wire.volume_id, PARAMETERS, &wire.parameters, capabilities)?;
    Parameters::parse(&wire.parameters)?;
    TagChange::parse(&wire.mutable_parameters)?;
    Ok(())
}

/// A question how much room there is for more volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// The region it is asked about; none: ours.
    pub region: Option<String>,
    /// Whether volumes can be used as asked at all.
    pub is_supported: bool,
}

impl Capacity {
    /// Reads the request.
    ///
    /// # Errors
    /// [`Error::Invalid`] when something is malformed.
    pub fn parse(wire: csi::GetCapacityRequest) -> Result<Capacity> {
        Parameters::parse(&wire.parameters)?;
        let capabilities =
            wire.volume_capabilities.into_iter().map(|one| Capability::parse("volume_capabilities", Some(one)));
        // A topology without segments is no restriction, and one with a foreign key is nowhere.
        let topology = wire.accessible_topology.into_option().filter(|topology| !topology.segments.is_empty());
        let region = topology.map(|topology| if_supported(region(topology))).transpose()?;
        let are_supported = if_supported(capabilities.collect::<Result<Vec<_>>>())?.is_some();
        Ok(Capacity { is_supported: are_supported && region != Some(None), region: region.flatten() })
    }
}

/// What is well formed but cannot be had is an answer.
fn if_supported<T>(parsed: Result<T>) -> Result<Option<T>> {
    match parsed {
        Ok(parsed) => Ok(Some(parsed)),
        Err(Error::Unsupported(_)) => Ok(None),
        Err(err) => Err(err),
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Most entries the caller takes; none: no limit was named.
    pub max_entries: Option<usize>,
    /// How many entries come before this page.
    pub offset: usize,
}

impl Page {
    /// Reads the two fields by which lists are paged. A token is the number of entries that came before.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a negative number, [`Error::BadPageToken`] for a token that was never given out.
    pub fn parse(max_entries: i32, token: &str) -> Result<Page> {
        let max = usize::try_from(max_entries).map_err(|_| Error::invalid("max_entries", "must not be negative"))?;
        let offset = match token {
            "" => 0,
            text => given_out(text).ok_or_else(|| Error::BadPageToken(text.chars().take(64).collect()))?,
        };
        Ok(Page { max_entries: (max > 0).then_some(max), offset })
    }

    /// The same page with this many entries when the caller named no number.
    #[must_use]
    pub fn or_size(self, default: Option<usize>) -> Page {
        Page { max_entries: self.max_entries.or(default), ..self }
    }
}

/// The position in a token. No other text for the same number was ever given out, nor one for the beginning.
fn given_out(token: &str) -> Option<usize> {
    token.parse().ok().filter(|position: &usize| *position > 0 && position.to_string() == token)
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
        assert_eq!(region(topology(&[("region", "fra1")])).unwrap(), "fra1");
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

    #[test]
    fn a_page_token_that_was_never_given_out_is_refused() {
        assert_eq!(Page::parse(0, "").unwrap(), Page { max_entries: None, offset: 0 });
        assert_eq!(Page::parse(3, "40").unwrap(), Page { max_entries: Some(3), offset: 40 });
        for bad in ["invalid-token", "+5", "007", "0", "-1", " 1", "1.0", "18446744073709551616"] {
            assert!(matches!(Page::parse(0, bad), Err(Error::BadPageToken(_))), "{bad}");
        }
        assert!(matches!(Page::parse(-1, ""), Err(Error::Invalid { .. })));
    }

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
