//! The calls that only ask, from the wire to types: lists, capacity, validation of capabilities.

use std::fmt;

use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::proto::csi;
use crate::request::capability::Capability;
use crate::request::parameters::{PARAMETERS, Parameters, TagChange};
use crate::request::publish_context::ContextKeys;
use crate::request::secrets::Secrets;
use crate::request::volume::region;
use crate::request::volume_context::CONTEXT;
use crate::request::{required, volume_id};

/// A question whether a volume can be used in some ways.
#[derive(Debug, Clone)]
pub struct Validate {
    /// The volume.
    pub volume: VolumeId,
    /// Why not everything in the request is possible; `None`: everything is.
    pub refusal: Option<String>,
}

impl Validate {
    /// Reads the request. Capabilities that are well formed but cannot be had are an answer, not an error; so are settings
    /// and parameters that a later call would refuse.
    ///
    /// # Errors
    /// [`Error::Invalid`] when something is missing or malformed, [`Error::NotFound`] for an impossible id.
    pub fn parse(
        wire: &csi::ValidateVolumeCapabilitiesRequest,
        secrets: &Secrets,
        keys: &ContextKeys,
    ) -> Result<Validate> {
        let volume = required("volume_id", wire.volume_id.clone())?;
        let refusal = match Capability::parse_all("volume_capabilities", wire.volume_capabilities.clone()) {
            Ok(capabilities) => check_rest(wire, secrets, keys, &capabilities).err().map(|err| err.to_string()),
            Err(Error::Unsupported(why)) => Some(why),
            Err(err) => return Err(err),
        };
        Ok(Validate { volume: volume_id("volume_id", volume)?, refusal })
    }
}

/// Checks what a question about capabilities says besides them.
fn check_rest(
    wire: &csi::ValidateVolumeCapabilitiesRequest,
    secrets: &Secrets,
    keys: &ContextKeys,
    capabilities: &[Capability],
) -> Result<()> {
    let staged = keys.settings(&wire.volume_id, CONTEXT, &wire.volume_context, capabilities)?;
    let created = keys.settings(&wire.volume_id, PARAMETERS, &wire.parameters, capabilities)?;
    secrets.key_for(staged.is_encrypted || created.is_encrypted)?;
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

/// A request that is well formed but not possible gets an answer, not an error.
fn if_supported<T>(parsed: Result<T>) -> Result<Option<T>> {
    match parsed {
        Ok(parsed) => Ok(Some(parsed)),
        Err(Error::Unsupported(_)) => Ok(None),
        Err(err) => Err(err),
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Page {
    /// Most entries the caller takes; none: no limit was named.
    pub max_entries: Option<usize>,
    /// Where it begins; none: with the first entry.
    pub start: Option<ListStart>,
}

/// Where a page of a list begins, which is not the first: what its token says.
///
/// The position alone is not enough: when an entry before it is deleted, all later ones move, and one would be left
/// out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListStart {
    /// How many entries come before it.
    pub offset: usize,
    /// How many entries there were in all, where that was known.
    pub total: Option<u64>,
    /// The id of the entry before it.
    pub after: String,
}

impl ListStart {
    /// Reads a token. For each start there is exactly one text, and none for the beginning of a list.
    fn parse(token: &str) -> Option<ListStart> {
        let mut parts = token.splitn(3, ':');
        let offset = parts.next()?.parse().ok().filter(|offset: &usize| *offset > 0)?;
        let total = match parts.next()? {
            "" => None,
            total => Some(total.parse().ok()?),
        };
        let after = parts.next()?.to_owned();
        let is_id =
            !after.is_empty() && after.len() <= 64 && after.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        Some(ListStart { offset, total, after }).filter(|start| is_id && start.to_string() == token)
    }
}

impl fmt::Display for ListStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total.map(|total| total.to_string()).unwrap_or_default();
        write!(f, "{}:{total}:{}", self.offset, self.after)
    }
}

impl Page {
    /// Reads the two fields by which lists are paged.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a negative number, [`Error::BadPageToken`] for a token that was never given out.
    pub fn parse(max_entries: i32, token: &str) -> Result<Page> {
        let max = usize::try_from(max_entries).map_err(|_| Error::invalid("max_entries", "must not be negative"))?;
        let bad = || Error::BadPageToken(token.chars().take(64).collect());
        let start = if token.is_empty() { None } else { Some(ListStart::parse(token).ok_or_else(bad)?) };
        Ok(Page { max_entries: (max > 0).then_some(max), start })
    }

    /// The same page with this many entries when the caller named no number.
    #[must_use]
    pub fn or_size(self, default: Option<usize>) -> Page {
        Page { max_entries: self.max_entries.or(default), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_that_was_never_given_out_is_refused() {
        assert_eq!(Page::parse(0, "").unwrap(), Page { max_entries: None, start: None });
        for total in [Some(300), None] {
            let start = ListStart { offset: 40, total, after: "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2".to_owned() };
            let token = start.to_string();
            assert_eq!(Page::parse(3, &token).unwrap(), Page { max_entries: Some(3), start: Some(start) });
        }
        for bad in [
            "invalid-token",
            "40",
            "40:",
            "40:300",
            "40:300:",
            "0:300:a",
            "+5:300:a",
            "007:300:a",
            "-1:300:a",
            " 1:300:a",
            "1.0:300:a",
            "1:+3:a",
            "1:3:a:b",
            "1:3:a/b",
            "18446744073709551616:3:a",
        ] {
            assert!(matches!(Page::parse(0, bad), Err(Error::BadPageToken(_))), "{bad}");
        }
        assert!(matches!(Page::parse(-1, ""), Err(Error::Invalid { .. })));
    }

    #[test]
    fn fuzz_every_token_that_is_taken_is_one_that_is_given_out() {
        let good = ListStart { offset: 40, total: Some(300), after: "1b2c3d4e-8f00".to_owned() }.to_string();
        crate::fuzz::fuzz("page-token", &[good.as_bytes(), b"7::a"], &[b":", b"+", b" ", b"\0"], |bytes| {
            let token = String::from_utf8_lossy(bytes);
            if let Ok(Page { start: Some(start), .. }) = Page::parse(0, &token) {
                assert_eq!(start.to_string(), token);
            }
        });
    }
}
