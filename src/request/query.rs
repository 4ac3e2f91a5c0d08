//! The calls that only ask, from the wire to types: lists, capacity, validation of capabilities.

use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::proto::csi;
use crate::request::capability::Capability;
use crate::request::parameters::{PARAMETERS, Parameters, TagChange};
use crate::request::publish_context::ContextKeys;
use crate::request::volume::region;
use crate::request::volume_context::CONTEXT;
use crate::request::{required, volume_id};

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

    #[test]
    fn a_page_token_that_was_never_given_out_is_refused() {
        assert_eq!(Page::parse(0, "").unwrap(), Page { max_entries: None, offset: 0 });
        assert_eq!(Page::parse(3, "40").unwrap(), Page { max_entries: Some(3), offset: 40 });
        for bad in ["invalid-token", "+5", "007", "0", "-1", " 1", "1.0", "18446744073709551616"] {
            assert!(matches!(Page::parse(0, bad), Err(Error::BadPageToken(_))), "{bad}");
        }
        assert!(matches!(Page::parse(-1, ""), Err(Error::Invalid { .. })));
    }
}
