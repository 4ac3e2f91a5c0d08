//! The key of an encrypted volume.
//!
//! Owns that it is printed nowhere and leaves no copy of itself in memory that was given back. Where it comes from is
//! `request/secrets.rs`'s; it goes nowhere but to a program's standard input.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

/// A key, to the byte as it was given; its `Debug` is `***`, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Arc<Zeroizing<Vec<u8>>>);

/// Why a text cannot be a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must have 1 to 4096 bytes, has {0}")]
pub struct BadKey(usize);

impl Key {
    /// Most bytes of a key: what fits into any pipe at once.
    pub const MAX_LENGTH: usize = 4096;

    /// Takes a key; blanks and line ends belong to it.
    ///
    /// # Errors
    /// [`BadKey`] when it is empty or too long.
    pub fn new(text: &str) -> Result<Key, BadKey> {
        if (1..=Key::MAX_LENGTH).contains(&text.len()) {
            Ok(Key(Arc::new(Zeroizing::new(text.as_bytes().to_vec()))))
        } else {
            Err(BadKey(text.len()))
        }
    }

    /// The key itself, for a program to read.
    pub(in crate::host) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_to_the_byte_and_never_printed() {
        let key = Key::new("a key\n").unwrap();
        assert_eq!((key.bytes(), format!("{key:?}").as_str()), (b"a key\n".as_slice(), "***"));
        assert_eq!(Key::new("").unwrap_err(), BadKey(0));
        assert!(Key::new(&"x".repeat(Key::MAX_LENGTH)).is_ok());
        let refused = Key::new(&"x".repeat(Key::MAX_LENGTH + 1)).unwrap_err().to_string();
        assert_eq!(refused, "must have 1 to 4096 bytes, has 4097");
    }
}
