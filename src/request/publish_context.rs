//! What the controller tells the node through the orchestrator: the publish context and the settings it carries.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::id::VolumeName;
use crate::request::capability::Capability;
use crate::request::lookup;
use crate::request::unknown::Warned;
use crate::request::volume_context::{Settings, carried};
use crate::size::Gib;

/// What the controller's publish context says of a volume.
///
/// The name's key is the official driver's, so that a volume attached by one is staged by the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The volume's name at DigitalOcean, from which the device link's name is made.
    pub name: VolumeName,
    /// The volume's size when it was attached; missing when the official driver attached it.
    pub size: Option<Gib>,
    /// Whether it was attached for reading only.
    pub is_read_only: bool,
}

/// The keys of the publish context.
#[derive(Debug, Clone)]
pub struct ContextKeys {
    driver_name: String,
    name: String,
    size: String,
    read_only: String,
    /// Which names without effect the log has told of already.
    warned: Warned,
}

impl ContextKeys {
    /// The keys under this driver name.
    #[must_use]
    pub fn new(driver_name: &str) -> Self {
        let key = |name: &str| format!("{driver_name}/{name}");
        ContextKeys {
            driver_name: driver_name.to_owned(),
            name: key("volume-name"),
            size: key("size-gigabytes"),
            read_only: key("read-only"),
            warned: Warned::default(),
        }
    }

    /// The settings among the entries of `field`, which fit all of these ways of using the volume. The log tells, once for each
    /// volume, of entries that nobody is known to read.
    ///
    /// # Errors
    /// As [`Settings::parse`] and [`Settings::check_for`].
    pub(super) fn settings(
        &self,
        volume: &str,
        field: &str,
        entries: &HashMap<String, String>,
        capabilities: &[Capability],
    ) -> Result<Settings> {
        let settings = Settings::parse(field, entries, &self.driver_name)?;
        self.warned.warn_of_unknown(volume, field, entries, &self.driver_name);
        capabilities.iter().try_for_each(|capability| settings.check_for(field, &capability.access))?;
        Ok(settings)
    }

    /// The volume context of a volume that is created with these parameters.
    pub(super) fn carry(&self, parameters: &HashMap<String, String>) -> HashMap<String, String> {
        carried(parameters, &self.driver_name)
    }

    /// Writes the context that [`ContextKeys::read`] reads.
    #[must_use]
    pub fn write(&self, name: &VolumeName, size: Gib, is_read_only: bool) -> HashMap<String, String> {
        let read_only = is_read_only.then(|| (self.read_only.clone(), "true".to_owned()));
        let both = [(self.name.clone(), name.to_string()), (self.size.clone(), size.0.to_string())];
        both.into_iter().chain(read_only).collect()
    }

    /// Reads the context.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is missing or no name, or the size no number.
    pub fn read(&self, context: &HashMap<String, String>) -> Result<Attached> {
        let field = |key: &str| format!("publish_context[{key}]");
        let name = lookup(context, &self.name).ok_or_else(|| Error::invalid(field(&self.name), "must be given"))?;
        let name = VolumeName::parse(name).map_err(|why| Error::invalid(field(&self.name), why))?;
        let size = lookup(context, &self.size)
            .map(|text| text.parse().map(Gib).map_err(|_| Error::invalid(field(&self.size), "is not a number of GiB")))
            .transpose()?;
        // Only the word for "no" means no. Every other text means the safe choice.
        let is_read_only = lookup(context, &self.read_only).is_some_and(|text| text != "false");
        Ok(Attached { name, size, is_read_only })
    }
}
