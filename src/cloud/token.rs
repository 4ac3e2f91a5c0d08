//! The access token: where it comes from, and that it is never printed.
//!
//! Owns reading the token and noticing that its file has changed. It does not know what the token is sent to.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backoff::{Backoff, look_until};

/// How long a call whose token was refused waits for another one in the token's file: whoever replaces a token may revoke the
/// old one a moment too early.
const REPLACEMENT_PATIENCE: Duration = Duration::from_secs(5);
/// Pauses between looks at the file meanwhile.
const LOOKS: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));
/// How long a file is read again that is empty or changes while it is read, as it is being written.
const WRITER_PATIENCE: Duration = Duration::from_millis(300);
/// Pauses between these.
const REREADS: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(50));

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
    /// The same token for ever, and the setting that it is from.
    Fixed(Secret, &'static str),
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
    /// The token for which a call has waited for a successor without success.
    refused: Option<Secret>,
}

/// What tells two versions of a file apart: inode, size, and modification time to the nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Token {
    /// A token that never changes, and the setting that it is from: a flag or a variable.
    #[must_use]
    pub fn fixed(secret: Secret, origin: &'static str) -> Token {
        Token::Fixed(secret, origin)
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
            Token::Fixed(secret, _) => Ok(secret.clone()),
            Token::File(file) => file.current(),
        }
    }

    /// Reads the file again, also when it looks unchanged.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token; the last one stays in use.
    pub fn reload(&self) -> io::Result<()> {
        match self {
            Token::Fixed(..) => Ok(()),
            Token::File(file) => file.reload(),
        }
    }

    /// Where the token is from, for a person who has to replace it.
    #[must_use]
    pub fn origin(&self) -> String {
        match self {
            Token::Fixed(_, origin) => (*origin).to_owned(),
            Token::File(file) => format!("the file {}", file.path.display()),
        }
    }

    /// Waits for another token than the one that was refused, for some seconds at most and not beyond the deadline. Only a
    /// file can have one, and it is waited for only once for each token that was refused.
    pub(super) fn wait_for_another(&self, refused: &Secret, deadline: Option<Instant>) -> Option<Secret> {
        match self {
            Token::Fixed(..) => None,
            Token::File(file) => file.wait_for_another(refused, deadline),
        }
    }
}

impl TokenFile {
    fn reload(&self) -> io::Result<()> {
        let mut last = self.last();
        if let Some(fresh) = read_if_changed(&self.path, None, WRITER_PATIENCE)? {
            *last = Last { read: Some(fresh), ..Last::default() };
        }
        Ok(())
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_another(&self, refused: &Secret, deadline: Option<Instant>) -> Option<Secret> {
        let now = Instant::now();
        let patience = now.checked_add(REPLACEMENT_PATIENCE).unwrap_or(now);
        let has_waited = self.last().refused.as_ref() == Some(refused);
        let give_up = if has_waited { now } else { deadline.map_or(patience, |deadline| deadline.min(patience)) };
        let another = || self.current().ok().filter(|secret| secret != refused);
        let found = look_until(give_up, LOOKS, another, Option::is_some);
        if found.is_none() && give_up == patience {
            log::warn!("the access token is refused, and {} holds no other one", self.path.display());
            self.last().refused = Some(refused.clone());
        }
        found
    }

    fn current(&self) -> io::Result<Secret> {
        let mut last = self.last();
        let known = last.read.as_ref().map(|(version, _)| *version);
        // One that has been unusable for longer is not being written.
        let patience = if last.is_reported { Duration::ZERO } else { WRITER_PATIENCE };
        match read_if_changed(&self.path, known, patience) {
            Ok(None) => last.is_reported = false,
            Ok(Some(fresh)) => {
                log::info!("read the access token from {}", self.path.display());
                *last = Last { read: Some(fresh), ..Last::default() };
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

fn observe_version(path: &Path) -> io::Result<Version> {
    let meta = fs::metadata(path)?;
    Ok(Version { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
}

/// What a file holds, as of which version, and whether it looks as if somebody were writing it.
fn observe_text(path: &Path) -> io::Result<(Version, String, bool)> {
    let version = observe_version(path)?;
    let text = fs::read_to_string(path)?;
    let is_in_flux = text.trim().is_empty() || observe_version(path)? != version;
    Ok((version, text, is_in_flux))
}

fn read_if_changed(path: &Path, known: Option<Version>, patience: Duration) -> io::Result<Option<(Version, Secret)>> {
    if known == Some(observe_version(path)?) {
        return Ok(None);
    }
    let now = Instant::now();
    let give_up = now.checked_add(patience).unwrap_or(now);
    let is_whole = |seen: &io::Result<(Version, String, bool)>| !matches!(seen, Ok((_, _, true)));
    let (version, text, _) = look_until(give_up, REREADS, || observe_text(path), is_whole)?;
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
        assert_eq!(format!("{secret:?} {:?}", Token::fixed(secret.clone(), "--token")), "*** Fixed(***, \"--token\")");
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

    #[test]
    fn a_file_that_is_being_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "").unwrap();
        let written = path.clone();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(60));
            fs::write(written, "first\n").unwrap();
        });
        assert_eq!(Token::file(&path).current().unwrap().bearer(), "Bearer first");
        writer.join().unwrap();
    }

    #[test]
    fn another_token_is_waited_for_once_and_only_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "old\n").unwrap();
        let token = Token::file(&path);
        let old = token.current().unwrap();
        let soon = Some(Instant::now() + Duration::from_millis(100));
        assert_eq!(token.wait_for_another(&old, soon), None);
        // As a writer leaves it for a moment: half of it, then the whole.
        fs::write(&path, "n").unwrap();
        let half = token.wait_for_another(&old, None).unwrap();
        let written = path.clone();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            fs::write(written, "new\n").unwrap();
        });
        let new = token.wait_for_another(&half, None).unwrap();
        assert_eq!(new.bearer(), "Bearer new");
        writer.join().unwrap();
        let began = Instant::now();
        assert_eq!(token.wait_for_another(&new, None), None);
        let first = began.elapsed();
        assert!(first >= REPLACEMENT_PATIENCE, "{first:?}");
        let began = Instant::now();
        assert_eq!(token.wait_for_another(&new, None), None);
        assert!(began.elapsed() < REPLACEMENT_PATIENCE, "{:?}", began.elapsed());
        assert_eq!(Token::fixed(old.clone(), "--token").wait_for_another(&old, None), None);
        assert!(token.origin().contains("/token"), "{}", token.origin());
    }
}
