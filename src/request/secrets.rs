//! The key of an encrypted volume among a request's secrets.
//!
//! Owns the names under which it is looked for. Secrets with other names are not read. The memory of all secrets of a
//! request is overwritten after the request was read.

use std::collections::HashMap;
use std::fmt;

use zeroize::Zeroize;

use crate::error::{Error, Result};
use crate::host::luks::passphrase::Key;

/// The names of the key: those that the drivers of Hetzner, Scaleway, and Linode and cloudscale have for it.
pub const NAMES: [&str; 3] = ["encryption-passphrase", "encryptionPassphrase", "luksKey"];

/// Overwrites the secrets of a request that has no use for them.
pub fn forget(wire: &mut HashMap<String, String>) {
    drop(Secrets::take(wire));
}

/// The secrets of a request. Their memory is overwritten when this is dropped. So they are taken out of a request as soon as it
/// comes: it may be refused before anybody reads it.
pub struct Secrets(HashMap<String, String>);

impl Secrets {
    /// Takes a request's secrets out of it.
    #[must_use]
    pub fn take(wire: &mut HashMap<String, String>) -> Secrets {
        Secrets(std::mem::take(wire))
    }

    /// Reads the key, if there is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty or too long, or when there are two different ones. No message has a part of it.
    pub fn key(&self) -> Result<Option<Key>> {
        find_key(&self.0)
    }

    /// As [`Secrets::key`], when it is known whether the volume is encrypted. A key for a volume that is not encrypted
    /// is refused: the caller would believe that the data is safe.
    ///
    /// # Errors
    /// As [`Secrets::key`], and [`Error::Invalid`] for such a key.
    pub fn key_for(&self, is_encrypted: bool) -> Result<Option<Key>> {
        match self.key()? {
            Some(_) if !is_encrypted => Err(Error::invalid(
                "secrets",
                format!(
                    "hold the key of an encrypted volume (one of {NAMES:?}), but nothing says that the volume is encrypted; \
                     say `encrypted = \"true\"` among its parameters, or in the context of one that is registered"
                ),
            )),
            key => Ok(key),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

fn find_key(secrets: &HashMap<String, String>) -> Result<Option<Key>> {
    let mut found: Option<(&str, Key)> = None;
    for name in NAMES {
        let Some(text) = secrets.get(name) else { continue };
        let key = Key::new(text).map_err(|bad| Error::invalid(format!("secrets[{name}]"), bad))?;
        match &found {
            Some((other, have)) if *have != key => {
                return Err(Error::invalid("secrets", format!("hold two different keys, {other} and {name}")));
            }
            Some(_) => {}
            None => found = Some((name, key)),
        }
    }
    Ok(found.map(|(_, key)| key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Secrets {
        Secrets(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_key_is_found_under_every_name_and_to_the_byte() {
        for name in NAMES {
            for text in ["k", " a key \n", "ключ"] {
                assert_eq!(map(&[(name, text), ("token", "x")]).key().unwrap(), Some(Key::new(text).unwrap()));
            }
        }
        assert_eq!(map(&[("token", "x")]).key().unwrap(), None);
        let same = map(&[(NAMES[0], "k"), (NAMES[1], "k")]);
        assert_eq!(same.key().unwrap(), Some(Key::new("k").unwrap()));
    }

    #[test]
    fn a_key_that_cannot_be_one_is_refused_without_being_told() {
        let long = "hunter2".repeat(1000);
        for (secrets, words) in [
            (map(&[(NAMES[0], "")]), "secrets[encryption-passphrase]"),
            (map(&[(NAMES[2], &long)]), "secrets[luksKey]"),
            (map(&[(NAMES[0], "hunter2"), (NAMES[1], "hunter2\n")]), "two different keys"),
        ] {
            let err = secrets.key().unwrap_err();
            assert!(matches!(err, Error::Invalid { .. }), "{err}");
            assert!(err.to_string().contains(words) && !format!("{err} {err:?}").contains("hunter2"), "{err}");
        }
    }

    #[test]
    fn secrets_that_nobody_needs_are_gone() {
        let mut wire = HashMap::from([("token".to_owned(), "hunter2".to_owned())]);
        forget(&mut wire);
        assert!(wire.is_empty());
    }

    #[test]
    fn a_key_for_a_volume_that_is_not_encrypted_is_refused() {
        let key = || map(&[(NAMES[0], "hunter2")]);
        assert!(key().key_for(true).unwrap().is_some());
        assert!(map(&[]).key_for(true).unwrap().is_none());
        assert!(map(&[("token", "x")]).key_for(false).unwrap().is_none());
        let err = key().key_for(false).unwrap_err();
        assert!(err.to_string().contains("encrypted = \"true\"") && !err.to_string().contains("hunter2"), "{err}");
    }
}
