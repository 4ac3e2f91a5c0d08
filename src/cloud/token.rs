//! The access token: where it comes from, and that it is never printed.
//!
//! Owns reading the token and noticing that its file has changed. It does not know what the token is sent to.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A DigitalOcean access token whose `Debug` is `***`; it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a text cannot be a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the access token is empty or has characters that no token has (spaces, control characters, non-ASCII)")]
pub struct BadToken;

impl Secret {
    /// Reads a token; blanks and line ends around it are dropped.
    ///
    /// # Errors
    /// [`BadToken`] when nothing is left, or when what is left cannot stand in an HTTP header.
    pub fn parse(text: &str) -> Result<Secret, BadToken> {
        let text = text.trim();
        let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if fits { Ok(Secret(text.to_owned())) } else { Err(BadToken) }
    }

    /// The value of the `Authorization` header.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the token comes from, each time one is needed.
#[derive(Debug)]
pub enum Token {
    /// The same token for ever.
    Fixed(Secret),
    /// A file that may be replaced while the program runs.
    File(TokenFile),
}

/// A file with a token, read again whenever it has changed.
///
/// The file need not exist yet. When it disappears or becomes unreadable after it was read once, the last token stays in
/// use, because a file that is being replaced is often missing for a moment.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    last: Mutex<Last>,
}

/// What the file held when it was last read.
#[derive(Debug, Default)]
struct Last {
    read: Option<(Version, Secret)>,
    /// Whether the log already says that the file is unusable now.
    is_reported: bool,
}

/// What tells two versions of a file apart: inode, size, and modification time to the nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Token {
    /// A token that never changes.
    #[must_use]
    pub fn fixed(secret: Secret) -> Token {
        Token::Fixed(secret)
    }

    /// A token in a file; the file is first read when a token is first needed.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Token {
        Token::File(TokenFile { path: path.into(), last: Mutex::default() })
    }

    /// The token to send now. Costs one `stat` for a file that has not changed.
    ///
    /// # Errors
    /// When a file was never readable, or never held a token.
    pub fn current(&self) -> io::Result<Secret> {
        match self {
            Token::Fixed(secret) => Ok(secret.clone()),
            Token::File(file) => file.current(),
        }
    }

    /// Reads the file again, also when it looks unchanged.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token; the last one stays in use.
    pub fn reload(&self) -> io::Result<()> {
        match self {
            Token::Fixed(_) => Ok(()),
            Token::File(file) => file.reload(),
        }
    }
}

impl TokenFile {
    fn reload(&self) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fresh) = read_if_changed(&self.path, None)? {
            *last = Last { read: Some(fresh), is_reported: false };
        }
        Ok(())
    }

    fn current(&self) -> io::Result<Secret> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.read.as_ref().map(|(version, _)| *version);
        match read_if_changed(&self.path, known) {
            Ok(None) => last.is_reported = false,
            Ok(Some(fresh)) => {
                log::info!("read the access token from {}", self.path.display());
                *last = Last { read: Some(fresh), is_reported: false };
            }
            Err(error) if last.read.is_none() => return Err(error),
            Err(error) if !last.is_reported => {
                log::warn!("keeping the last access token, its file {} is unusable: {error}", self.path.display());
                last.is_reported = true;
            }
            Err(_) => {}
        }
        let secret = last.read.as_ref().map(|(_, secret)| secret.clone());
        secret.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

fn read_if_changed(path: &Path, known: Option<Version>) -> io::Result<Option<(Version, Secret)>> {
    let meta = fs::metadata(path)?;
    let version = Version { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) };
    if known == Some(version) {
        return Ok(None);
    }
    let text = fs::read_to_string(path)?;
    let secret = Secret::parse(&text).map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))?;
    Ok(Some((version, secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_printed() {
        let secret = Secret::parse("dop_v1_abc\n").unwrap();
        assert_eq!(secret.bearer(), "Bearer dop_v1_abc");
        assert_eq!(format!("{secret:?} {:?}", Token::fixed(secret.clone())), "*** Fixed(***)");
    }

    #[test]
    fn what_cannot_stand_in_a_header_is_no_token() {
        for bad in ["", " \n", "a b", "a\r\nX-Evil: 1", "tökén", "a\0b"] {
            assert_eq!(Secret::parse(bad), Err(BadToken), "{bad:?}");
        }
    }

    #[test]
    fn a_replaced_file_gives_the_new_token_and_a_missing_one_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = Token::file(&path);
        assert_eq!(token.current().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "").unwrap();
        assert_eq!(token.current().unwrap_err().kind(), io::ErrorKind::InvalidData);
        fs::write(&path, "first\n").unwrap();
        assert_eq!(token.current().unwrap().bearer(), "Bearer first");
        // Same length on purpose, and by rename, as a careful writer does it.
        let next = dir.path().join("next");
        fs::write(&next, "secon\n").unwrap();
        fs::rename(&next, &path).unwrap();
        assert_eq!(token.current().unwrap().bearer(), "Bearer secon");
        fs::write(&path, "").unwrap();
        assert_eq!(token.current().unwrap().bearer(), "Bearer secon");
        fs::remove_file(&path).unwrap();
        assert_eq!(token.current().unwrap().bearer(), "Bearer secon");
    }
}
