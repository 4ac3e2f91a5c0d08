//! The paths where volumes are mounted: resolved, prepared, and taken away again.
//!
//! Owns making and removing the directory or file at such a path. It never removes anything that has content, and it mounts
//! nothing.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use log::warn;

use crate::error::{Error, Result};
use crate::host::presence::{observe_entry, observe_real};
use crate::sync::volume_lock::VolumeGuard;

/// What has to be at a path before something can be mounted there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A directory, for a file system.
    Directory,
    /// A file, for a device node.
    File,
}

/// The path as the mount table shows it: every link in the way to its last part resolved; `None` when the way there
/// does not exist. The last part itself may be missing, or a mount that does not answer any more.
///
/// # Errors
/// [`Error::Io`] when the way there cannot be walked.
pub(super) fn observe_real_path(path: &Path) -> Result<Option<PathBuf>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::invalid("path", format!("{} has no parent", path.display())));
    };
    Ok(observe_real(parent)?.map(|parent| parent.join(name)))
}

/// The path as [`observe_real_path`] gives it, or, as far as the way there does not exist, as it will be when it is made.
///
/// # Errors
/// As [`observe_real_path`].
pub(super) fn observe_whole_path(path: &Path) -> Result<PathBuf> {
    for there in path.ancestors().skip(1) {
        if let Some(real) = observe_real(there)? {
            return Ok(path.strip_prefix(there).map_or_else(|_| path.to_owned(), |rest| real.join(rest)));
        }
    }
    Ok(path.to_owned())
}

/// Makes the way to a path, and the directory or file at its end, unless they are there; returns the real path.
///
/// An empty directory or file that is there already is used: old orchestrators make it themselves, and a call that was cut
/// off leaves it behind. One of the wrong sort gives way: Nomad 0.11 makes a directory also for a device node.
///
/// # Errors
/// [`Error::TargetTaken`] when there is something else, [`Error::Io`].
pub(super) fn ensure_place(guard: &VolumeGuard, path: &Path, shape: Shape) -> Result<PathBuf> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(parent)
            .map_err(Error::io("making the directory", parent))?;
    }
    let real = observe_real_path(path)?.ok_or_else(|| Error::Bug(format!("{} vanished", path.display())))?;
    ensure_real_place(guard, real, shape)
}

/// As [`ensure_place`], for a real path, the way to which exists.
///
/// # Errors
/// As [`ensure_place`].
pub(super) fn ensure_real_place(_guard: &VolumeGuard, real: PathBuf, shape: Shape) -> Result<PathBuf> {
    match make(&real, shape) {
        Ok(()) => Ok(real),
        Err(err) if err.kind() == ErrorKind::AlreadyExists => ensure_shape(real, shape),
        Err(err) => Err(Error::io("making", real)(err)),
    }
}

fn make(real: &Path, shape: Shape) -> std::io::Result<()> {
    match shape {
        Shape::Directory => DirBuilder::new().mode(0o750).create(real),
        Shape::File => File::create_new(real).map(drop),
    }
}

fn ensure_shape(real: PathBuf, shape: Shape) -> Result<PathBuf> {
    let found = fs::symlink_metadata(&real).map_err(Error::io("examining", &real))?;
    let is_empty_file = found.is_file() && found.len() == 0;
    match shape {
        Shape::Directory if found.is_dir() => return Ok(real),
        Shape::File if is_empty_file => return Ok(real),
        Shape::Directory if is_empty_file => fs::remove_file(&real).map_err(Error::io("removing", &real))?,
        // Fails for a directory with anything in it.
        Shape::File if found.is_dir() => fs::remove_dir(&real).map_err(|err| not_removed(&real, err))?,
        Shape::Directory => return Err(Error::TargetTaken { path: real, by: "it is not a directory".to_owned() }),
        Shape::File => return Err(Error::TargetTaken { path: real, by: "it is not an empty file".to_owned() }),
    }
    make(&real, shape).map_err(Error::io("making", &real))?;
    Ok(real)
}

fn not_removed(real: &Path, err: std::io::Error) -> Error {
    if err.kind() == ErrorKind::DirectoryNotEmpty {
        return Error::TargetTaken { path: real.to_owned(), by: "it is a directory with files in it".to_owned() };
    }
    Error::io("removing", real)(err)
}

/// Refuses a directory or file with something in it, which mounting over it would hide.
///
/// # Errors
/// [`Error::TargetTaken`], [`Error::Io`].
pub(super) fn check_is_empty(real: &Path) -> Result<()> {
    if observe_is_empty(real)? {
        return Ok(());
    }
    Err(Error::TargetTaken { path: real.to_owned(), by: "it has content of its own".to_owned() })
}

/// Says whether a directory or file has nothing in it.
///
/// # Errors
/// [`Error::Io`].
fn observe_is_empty(real: &Path) -> Result<bool> {
    let found = fs::symlink_metadata(real).map_err(Error::io("examining", real))?;
    if !found.is_dir() {
        return Ok(found.len() == 0);
    }
    let first = fs::read_dir(real).and_then(|mut entries| entries.next().transpose());
    Ok(first.map_err(Error::io("listing", real))?.is_none())
}

/// Removes the directory or file at a path, when it is there and empty. What has content is left, and said.
///
/// A second call finds nothing and does nothing.
///
/// # Errors
/// [`Error::Io`] when the system refuses for another reason.
pub(super) fn apply_remove_place(_guard: &VolumeGuard, real: &Path) -> Result<()> {
    let Some(found) = observe_entry(real)? else { return Ok(()) };
    let removed = if found.is_dir() {
        fs::remove_dir(real)
    } else if found.is_file() && found.len() == 0 {
        fs::remove_file(real)
    } else {
        warn!(target_path:% = real.display(); "leaving what is at the target path, as this plugin did not make it");
        return Ok(());
    };
    match removed {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == ErrorKind::NotFound && observe_entry(real)?.is_none() => Ok(()),
        Err(err) if err.kind() == ErrorKind::DirectoryNotEmpty => {
            warn!(target_path:% = real.display(); "leaving the target directory, as it has files in it");
            Ok(())
        }
        Err(err) => Err(Error::io("removing", real)(err)),
    }
}

/// How many mounts that lie on top of each other are taken away in one call. This plugin makes one.
pub(super) const MOST_MOUNTS: usize = 100;

/// The error for a place at which new mounts appear as fast as old ones are taken away.
pub(super) fn too_many(path: &Path) -> Error {
    let by = format!(
        "something is still mounted there after {MOST_MOUNTS} unmounts; see who mounts there, `findmnt` shows what"
    );
    Error::TargetTaken { path: path.to_owned(), by }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::volume_lock::{VolumeKey, VolumeLocks};
    use std::time::Duration;

    fn guard() -> VolumeGuard {
        VolumeLocks::new().hold(VolumeKey::Id("v".into()), Duration::ZERO).unwrap()
    }

    #[test]
    fn a_place_is_made_once_and_used_when_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        for (name, shape) in [("directory", Shape::Directory), ("file", Shape::File)] {
            let path = dir.path().join("way").join(name);
            for _ in 0..2 {
                let real = ensure_place(&guard(), &path, shape).unwrap();
                assert!(observe_is_empty(&real).unwrap());
            }
            apply_remove_place(&guard(), &path).unwrap();
            apply_remove_place(&guard(), &path).unwrap();
            assert!(!path.exists());
        }
    }

    #[test]
    fn what_is_empty_and_of_the_wrong_sort_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        fs::create_dir(&path).unwrap();
        for _ in 0..2 {
            ensure_place(&guard(), &path, Shape::File).unwrap();
            assert!(path.is_file());
            ensure_place(&guard(), &path, Shape::Directory).unwrap();
            assert!(path.is_dir());
        }
        fs::write(path.join("file"), "").unwrap();
        assert!(matches!(ensure_place(&guard(), &path, Shape::File), Err(Error::TargetTaken { .. })));
        assert!(path.join("file").is_file());
        // A link may lead anywhere.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        for shape in [Shape::File, Shape::Directory] {
            assert!(matches!(ensure_place(&guard(), &link, shape), Err(Error::TargetTaken { .. })));
        }
        assert!(link.is_symlink());
    }

    #[test]
    fn what_has_content_is_neither_used_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "data").unwrap();
        assert!(matches!(ensure_place(&guard(), &file, Shape::File), Err(Error::TargetTaken { .. })));
        assert!(matches!(ensure_place(&guard(), &file, Shape::Directory), Err(Error::TargetTaken { .. })));
        for kept in [&file, dir.path()] {
            apply_remove_place(&guard(), kept).unwrap();
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "data");
    }

    #[test]
    fn links_on_the_way_are_resolved_and_a_missing_way_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(real.join("a")).unwrap();
        std::os::unix::fs::symlink(real.join("a"), real.join("link")).unwrap();
        assert_eq!(observe_real_path(&real.join("link/x")).unwrap(), Some(real.join("a/x")));
        assert_eq!(observe_real_path(&real.join("none/x")).unwrap(), None);
        for (path, want) in [("link/x", "a/x"), ("link/b/c/x", "a/b/c/x"), ("none/x", "none/x"), ("link", "link")] {
            assert_eq!(observe_whole_path(&real.join(path)).unwrap(), real.join(want), "{path}");
        }
        fs::write(real.join("file"), "").unwrap();
        assert_eq!(observe_whole_path(&real.join("file/x/y")).unwrap(), real.join("file/x/y"));
    }
}
