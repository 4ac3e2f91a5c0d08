//! The settings that a user gives a volume through the orchestrator: `tags` and `description` when it is created, `tags`
//! and `remove-tags` at any time.
//!
//! Owns their names and forms. Parameters with other names are ignored, as in the official driver, unless they look
//! like a misspelt name of ours. Mutable parameters with other names are refused, because the caller asks for a change.

use std::collections::HashMap;

use crate::cloud::tag::Tag;
use crate::error::{Error, Result};
use crate::request::lookup;
use crate::request::names::same_name;

/// The field of a request that holds them.
pub const PARAMETERS: &str = "parameters";

/// Tags that a volume or snapshot gets, separated by commas.
pub const TAGS: &str = "tags";
/// Tags that are taken off a volume, separated by commas.
pub const REMOVE_TAGS: &str = "remove-tags";
/// The user's text in a volume's description, behind the driver's own text.
pub const DESCRIPTION: &str = "description";

/// The names that are read without a prefix among the entries of a field.
pub(super) fn names_beside(field: &str) -> &'static [&'static str] {
    if field == PARAMETERS { &[TAGS, DESCRIPTION] } else { &[] }
}

/// Most bytes of a description: the volume's full name and source stand beside it, and DigitalOcean takes 1,024.
const MAX_DESCRIPTION: usize = 400;

/// The settings of a new volume or snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Its tags, each once, in the order given.
    pub tags: Vec<Tag>,
    /// What its description says besides.
    pub description: Option<String>,
}

impl Parameters {
    /// Reads the settings; those that are not known are ignored.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a known one is malformed, or written in another way than it is read.
    pub fn parse(wire: &HashMap<String, String>) -> Result<Parameters> {
        let meant = |key: &str| names_beside(PARAMETERS).iter().find(|name| **name != key && same_name(name, key));
        if let Some((key, meant)) = wire.keys().filter_map(|key| Some((key, meant(key)?))).min() {
            let why = format!("would have no effect under this name; did you mean {meant:?}?");
            return Err(Error::invalid(format!("{PARAMETERS}[{key}]"), why));
        }
        let description = lookup(wire, DESCRIPTION).map(|text| parse_description(PARAMETERS, text)).transpose()?;
        Ok(Parameters { tags: parse_tags(PARAMETERS, wire, TAGS)?, description })
    }
}

/// A change of a volume's tags; other tags of the volume stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagChange {
    /// Tags to put on.
    pub put: Vec<Tag>,
    /// Tags to take off.
    pub remove: Vec<Tag>,
}

impl TagChange {
    /// Reads mutable parameters.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a parameter that cannot be changed or is not known, [`Error::Invalid`] for a malformed
    /// one, or a tag that is to be put on and taken off.
    pub fn parse(wire: &HashMap<String, String>) -> Result<TagChange> {
        const FIELD: &str = "mutable_parameters";
        if let Some(key) = wire.keys().find(|key| ![TAGS, REMOVE_TAGS].contains(&key.as_str())) {
            let known = format!("those of a DigitalOcean volume are {TAGS:?} and {REMOVE_TAGS:?}");
            return Err(Error::Unsupported(format!("{FIELD}[{key}]: no such mutable parameter; {known}")));
        }
        let change = TagChange { put: parse_tags(FIELD, wire, TAGS)?, remove: parse_tags(FIELD, wire, REMOVE_TAGS)? };
        match change.put.iter().find(|tag| has(&change.remove, tag)) {
            Some(tag) => Err(Error::invalid(FIELD, format!("{:?} is to be put on and taken off", tag.as_str()))),
            None => Ok(change),
        }
    }
}

/// Whether a tag is among others; DigitalOcean takes a tag in other capitals for the same.
fn has(tags: &[Tag], tag: &Tag) -> bool {
    tags.iter().any(|one| tag.is(one.as_str()))
}

/// Blanks around a tag and empty tags are dropped; a tag that is named twice counts once.
fn parse_tags(field: &str, wire: &HashMap<String, String>, key: &str) -> Result<Vec<Tag>> {
    let mut tags = Vec::new();
    for text in lookup(wire, key).unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let tag = Tag::parse(text).map_err(|bad| Error::invalid(format!("{field}[{key}]"), bad))?;
        if !has(&tags, &tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

fn parse_description(field: &str, text: &str) -> Result<String> {
    let refuse = |why: String| Err(Error::invalid(format!("{field}[{DESCRIPTION}]"), why));
    if text.len() > MAX_DESCRIPTION {
        return refuse(format!("must have at most {MAX_DESCRIPTION} bytes, has {}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return refuse("must not contain control characters".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn names(tags: &[Tag]) -> Vec<&str> {
        tags.iter().map(Tag::as_str).collect()
    }

    #[test]
    fn known_parameters_are_read_and_unknown_ones_ignored() {
        let wire = map(&[("tags", " a, b:c ,,a,B:C"), ("description", "Ein Blog"), ("fstype", "ext4")]);
        let read = Parameters::parse(&wire).unwrap();
        assert_eq!(names(&read.tags), ["a", "b:c"]);
        assert_eq!(read.description.as_deref(), Some("Ein Blog"));
        assert_eq!(Parameters::parse(&map(&[("tags", ""), ("description", "")])).unwrap(), Parameters::default());
    }

    #[test]
    fn malformed_parameters_are_refused_by_name() {
        let long = "x".repeat(401);
        for (key, value) in
            [("tags", "a b"), ("tags", "ok,sch\u{f6}n"), ("description", "a\nb"), ("description", &long)]
        {
            let err = Parameters::parse(&map(&[(key, value)])).unwrap_err();
            assert!(matches!(&err, Error::Invalid { field, .. } if *field == format!("parameters[{key}]")), "{err}");
        }
        for key in ["Tags", "TAGS", "Description"] {
            let err = Parameters::parse(&map(&[(key, "a")])).unwrap_err().to_string();
            assert!(err.contains(key) && err.contains(&format!("did you mean {:?}", key.to_lowercase())), "{err}");
        }
    }

    #[test]
    fn a_change_names_only_tags() {
        let change = TagChange::parse(&map(&[("tags", "a,b"), ("remove-tags", "c")])).unwrap();
        assert_eq!((names(&change.put), names(&change.remove)), (vec!["a", "b"], vec!["c"]));
        assert_eq!(TagChange::parse(&map(&[])).unwrap(), TagChange::default());
        for bad in [("description", "x"), ("size", "1")] {
            assert!(matches!(TagChange::parse(&map(&[bad])), Err(Error::Unsupported(_))), "{bad:?}");
        }
        for removed in ["a", "A"] {
            let both = map(&[("tags", "a"), ("remove-tags", removed)]);
            assert!(matches!(TagChange::parse(&both), Err(Error::Invalid { .. })), "{removed}");
        }
    }
}
