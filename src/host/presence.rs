//! Whether something exists: yes, no, or unknown, which is an error.
//!
//! Owns what counts as "no". One system call that answers "no such file" is not enough: it may have come at a bad
//! moment, or the path may lead elsewhere than it seems. It counts only if the directory of the file was read and does
//! not list it. Any other error (no memory, no permission, a disk that does not answer) does not tell whether the file
//! exists. Nothing here changes anything.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How often a file is tried again that its directory lists but that is not found: it came or went meanwhile, or a
/// signal interrupted the call.
const TRIES: usize = 8;
/// How many links may lead from one to the next. Source: `MAXSYMLINKS` in the kernel's `include/linux/namei.h`.
const MOST_LINKS: usize = 40;

/// Does something with a file that may be missing; `None` if it is certainly missing. A link is followed.
///
/// # Errors
/// [`Error::Io`] with the system's answer, and when the file is neither found nor certainly missing.
/// Source: path_resolution(7): ENOENT and ENOTDIR are the answers of a walk that found nothing.
pub(crate) fn observe_if_there<T>(
    doing: &'static str,
    path: &Path,
    attempt: impl FnMut() -> io::Result<T>,
) -> Result<Option<T>> {
    ask(doing, path, attempt, || is_missing(path, MOST_LINKS))
}

/// What is at a path, with links followed; `None` if certainly nothing is there, or a link that leads nowhere.
///
/// # Errors
/// As [`observe_if_there`].
pub(crate) fn observe_metadata(path: &Path) -> Result<Option<Metadata>> {
    observe_if_there("examining", path, || fs::metadata(path))
}

/// What is at a path itself, also when it is a link; `None` if certainly nothing is there.
///
/// # Errors
/// As [`observe_if_there`].
pub(crate) fn observe_entry(path: &Path) -> Result<Option<Metadata>> {
    ask("examining", path, || fs::symlink_metadata(path), || is_unlisted(path, MOST_LINKS))
}

/// Whether anything is at a path, even a link that leads nowhere.
///
/// # Errors
/// As [`observe_if_there`].
pub(crate) fn observe_is_there(path: &Path) -> Result<bool> {
    Ok(observe_entry(path)?.is_some())
}

/// The path without links; `None` if it certainly leads nowhere.
///
/// # Errors
/// As [`observe_if_there`].
pub(crate) fn observe_real(path: &Path) -> Result<Option<PathBuf>> {
    observe_if_there("resolving", path, || fs::canonicalize(path))
}

/// Where the link at a path leads; `None` if certainly nothing is at the path.
///
/// # Errors
/// As [`observe_if_there`]; [`ErrorKind::InvalidInput`] for what is no link.
pub(crate) fn observe_link(path: &Path) -> Result<Option<PathBuf>> {
    ask("reading the link", path, || fs::read_link(path), || is_unlisted(path, MOST_LINKS))
}

/// The names in a directory, in order; `None` where there is certainly no such directory.
///
/// # Errors
/// As [`observe_if_there`].
pub(crate) fn observe_names(directory: &Path) -> Result<Option<Vec<OsString>>> {
    let names = observe_if_there("listing", directory, || list(directory))?;
    Ok(names.map(|mut names| {
        names.sort();
        names
    }))
}

fn ask<T>(
    doing: &'static str,
    path: &Path,
    mut attempt: impl FnMut() -> io::Result<T>,
    is_missing: impl Fn() -> Result<bool>,
) -> Result<Option<T>> {
    for _ in 0..TRIES {
        match attempt() {
            Ok(found) => return Ok(Some(found)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_no(&error) => {
                if is_missing()? {
                    return Ok(None);
                }
            }
            Err(error) => return Err(Error::io(doing, path)(error)),
        }
    }
    let unclear = io::Error::other("it is not found, and its directory lists it: cannot tell whether it is there");
    Err(Error::io(doing, path)(unclear))
}

fn is_no(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Whether a path leads nowhere, by the directories on the way: its directory does not list it, is missing or is no
/// directory; or the path is a link that leads to such a path.
fn is_missing(path: &Path, links_left: usize) -> Result<bool> {
    if is_unlisted(path, links_left)? {
        return Ok(true);
    }
    let (Some(directory), Some(links_left)) = (path.parent(), links_left.checked_sub(1)) else { return Ok(false) };
    match fs::read_link(path) {
        Ok(to) => is_missing(&directory.join(to), links_left),
        // No link; or it went meanwhile, and then the next look shows it.
        Err(error) if error.kind() == ErrorKind::InvalidInput || is_no(&error) => Ok(false),
        Err(error) => Err(Error::io("reading the link", path)(error)),
    }
}

/// Whether a directory that was read does not list this path, or is itself missing or no directory.
fn is_unlisted(path: &Path, links_left: usize) -> Result<bool> {
    // The root, and a path that ends in "..", have no directory that could list them.
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    match list(directory) {
        Ok(names) => Ok(!names.iter().any(|listed| listed == name)),
        Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => is_missing(directory, links_left),
        Err(error) => Err(Error::io("listing", directory)(error)),
    }
}

fn list(directory: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc;
    use std::cell::Cell;
    use std::os::unix::fs::symlink;

    fn answer(errno: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn only_what_the_folder_does_not_list_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("directory")).unwrap();
        fs::write(path("file"), "x").unwrap();
        for (link, to) in [("good", "file"), ("bad", "none"), ("over", "bad"), ("out", "none/deeper"), ("ring", "ring")]
        {
            symlink(to, path(link)).unwrap();
        }
        for (name, is_there, leads_somewhere) in [
            ("file", true, true),
            ("directory", true, true),
            ("good", true, true),
            ("none", false, false),
            ("none/deeper", false, false),
            ("file/deeper", false, false),
            ("directory/none", false, false),
            ("bad", true, false),
            ("over", true, false),
            ("out", true, false),
            ("bad/deeper", false, false),
            ("good/deeper", false, false),
        ] {
            let path = path(name);
            assert_eq!(observe_is_there(&path).unwrap(), is_there, "{name}");
            assert_eq!(observe_metadata(&path).unwrap().is_some(), leads_somewhere, "{name}");
            assert_eq!(observe_real(&path).unwrap().is_some(), leads_somewhere, "{name}");
            let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
            let link = observe_link(&path);
            assert!(if is_there && !is_link { link.is_err() } else { link.unwrap().is_some() == is_link }, "{name}");
        }
        assert!(observe_metadata(&path("ring")).is_err(), "a link to itself is no answer");
        assert_eq!(observe_names(&path("none")).unwrap(), None);
        assert_eq!(observe_names(&path("directory")).unwrap(), Some(Vec::new()));
        assert!(observe_names(&path("file")).is_err(), "it is there, and no directory");
        assert_eq!(observe_names(dir.path()).unwrap().unwrap().len(), 7);
        assert!(observe_is_there(Path::new("/")).unwrap());
        // As in the mount table for a file system that has no disk; this is run from the directory with the sources.
        assert!(!observe_is_there(Path::new("none")).unwrap() && observe_is_there(Path::new("src")).unwrap());
    }

    #[test]
    fn an_answer_that_the_folder_contradicts_or_that_is_none_is_an_error_or_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let (there, missing) = (dir.path().join("there"), dir.path().join("missing"));
        fs::write(&there, "").unwrap();
        // A lie that is told once is found out, one that is told for ever is no answer; an interruption is none either.
        for errno in [libc::ENOENT, libc::ENOTDIR, libc::EINTR] {
            let asked = Cell::new(0);
            let once = || {
                asked.set(asked.get() + 1);
                if asked.get() == 1 { answer(errno) } else { Ok(()) }
            };
            assert_eq!(observe_if_there("asking", &there, once).unwrap(), Some(()), "{errno}");
            assert!(observe_if_there("asking", &there, || answer(errno)).is_err(), "{errno}");
        }
        for errno in [libc::ENOENT, libc::ENOTDIR] {
            assert_eq!(observe_if_there("asking", &missing, || answer(errno)).unwrap(), None, "{errno}");
        }
        for errno in [
            libc::EACCES,
            libc::EPERM,
            libc::ENOMEM,
            libc::EIO,
            libc::ENXIO,
            libc::ENODEV,
            libc::ESTALE,
            libc::ELOOP,
            libc::EMFILE,
            libc::ENAMETOOLONG,
            libc::EINTR,
        ] {
            for path in [&there, &missing] {
                assert!(observe_if_there("asking", path, || answer(errno)).is_err(), "{errno}");
            }
        }
    }
}
