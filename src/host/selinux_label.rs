//! SELinux labels as a mount option has them.
//!
//! Owns what counts as one. Pure.

/// An SELinux label that everything on a file system gets, in place of labels of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxLabel(String);

impl SelinuxLabel {
    /// Reads `user:role:type` or `user:role:type:level`; the level may hold commas.
    ///
    /// # Errors
    /// A phrase, when the text cannot be a label.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | ',' | '.' | '-');
        let fits = text.splitn(4, ':').filter(|part| !part.is_empty()).count() >= 3 && text.chars().all(is_plain);
        if fits { Ok(SelinuxLabel(text.to_owned())) } else { Err("is not an SELinux label (user:role:type:level)") }
    }

    /// The label as it was given.
    pub(in crate::host) fn as_str(&self) -> &str {
        &self.0
    }
}
