//! Tags on volumes and on their snapshots.
//!
//! Owns the shape of a tag, putting it on a volume or taking it off, and counting what carries it.

use serde_json::{Value, json};

use crate::cloud::rate_limit::Class;
use crate::cloud::request::{ApiRequest, Method};
use crate::cloud::{ApiResult, Cloud, json as wire};
use crate::error::api::ApiErrorKind;
use crate::id::VolumeId;

/// A tag.
///
/// Shape: 1 to 255 letters, digits, `:`, `-` and `_`, which are also safe inside a URL path.
///
/// Source: API reference, "Tags".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag(String);

/// Why a text is no tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tag (up to 255 letters, digits, colons, dashes and underscores)")]
pub struct BadTag(String);

impl Tag {
    /// Reads a tag.
    ///
    /// # Errors
    /// [`BadTag`] when the text has another shape.
    pub fn parse(text: &str) -> Result<Tag, BadTag> {
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_');
        let fits = (1..=255).contains(&text.len()) && text.bytes().all(is_allowed);
        if fits { Ok(Tag(text.to_owned())) } else { Err(BadTag(text.chars().take(64).collect())) }
    }

    /// The tag as DigitalOcean has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a name that DigitalOcean shows is this tag: it keeps the capitals that the name was first written with,
    /// and
    /// takes all others for the same.
    ///
    /// Source: API reference, "Tags".
    #[must_use]
    pub fn is(&self, shown: &str) -> bool {
        self.0.eq_ignore_ascii_case(shown)
    }
}

impl Cloud {
    /// Puts a tag on a volume; creates the tag when there is none, which takes three requests instead of one.
    ///
    /// A second call changes nothing and succeeds.
    ///
    /// Source: API reference, "Tag a Resource" and "Create a New Tag".
    pub fn tag_volume(&self, volume: &VolumeId, tag: &Tag) -> ApiResult<()> {
        match self.put_tag(volume, tag) {
            Err(error) if error.kind() == ApiErrorKind::NotFound => {
                self.create_tag(tag)?;
                self.put_tag(volume, tag)
            }
            done => done,
        }
    }

    /// Takes a tag off a volume. A second call changes nothing and succeeds.
    ///
    /// # Errors
    /// `NotFound` when there is no such tag.
    ///
    /// Source: API reference, "Untag a Resource".
    pub fn untag_volume(&self, volume: &VolumeId, tag: &Tag) -> ApiResult<()> {
        let path = format_args!("tags/{}/resources", tag.as_str());
        self.send(&ApiRequest::new(Method::Delete, path, Class::Essential).json(&resources(volume)))?.nothing()
    }

    /// How many snapshots of volumes carry a tag; none when the reply does not say.
    ///
    /// # Errors
    /// `NotFound` when there is no such tag.
    ///
    /// Source: API reference, "Retrieve a Tag", `resources`; a token needs `block_storage_snapshot:read` besides `tag:read`.
    pub fn count_tagged_snapshots(&self, tag: &Tag) -> ApiResult<Option<u64>> {
        let path = format_args!("tags/{}", tag.as_str());
        let wire::TagReply { tag } = self.send(&ApiRequest::new(Method::Get, path, Class::Deferrable))?.json()?;
        Ok(tag.resources.volume_snapshots.and_then(|counted| counted.count))
    }

    /// Puts a tag on a volume, and does not create it.
    ///
    /// # Errors
    /// `NotFound` when there is no such tag or volume.
    pub fn put_tag(&self, volume: &VolumeId, tag: &Tag) -> ApiResult<()> {
        let path = format_args!("tags/{}/resources", tag.as_str());
        self.send(&ApiRequest::new(Method::Post, path, Class::Essential).json(&resources(volume)))?.nothing()
    }

    /// Makes a tag known. A second call changes nothing and succeeds.
    ///
    /// # Errors
    /// `Forbidden` for a token without `tag:create`.
    ///
    /// Source: API reference, "Create a New Tag".
    pub fn create_tag(&self, tag: &Tag) -> ApiResult<()> {
        let body = json!({ "name": tag.as_str() });
        self.send(&ApiRequest::new(Method::Post, "tags", Class::Essential).json(&body)).map(drop)
    }
}

fn resources(volume: &VolumeId) -> Value {
    json!({ "resources": [{ "resource_id": volume.as_str(), "resource_type": "volume" }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_are_tags() {
        for good in ["nomad", "k8s:abc-1_2", &"x".repeat(255)] {
            assert!(Tag::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "..", "ü", "a?b", &"x".repeat(256)] {
            assert!(Tag::parse(bad).is_err(), "{bad}");
        }
        let tag = Tag::parse("prod").unwrap();
        assert!(tag.is("Prod") && !tag.is("prods"));
    }
}
