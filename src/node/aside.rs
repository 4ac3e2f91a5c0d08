//! A hidden place beside a path, where a mount is prepared before it appears at the path itself.
//!
//! Owns that place and its removal. A mount has to be changed after it was made, to read-only for one; at the path itself
//! the orchestrator would see it in between, and the copy of it that the kernel makes in the host's mount namespace would
//! stay as it was first. A call that was killed leaves the place behind, and the next call for the path clears it away.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use log::warn;

use super::place::{self, Shape};
use crate::error::{Chain, Error, Result};
use crate::host::mount::{Unmount, apply_unmount};
use crate::lock::VolumeGuard;

/// A place beside a path, in use until it is dropped.
#[derive(Debug)]
pub(super) struct Aside<'a> {
    guard: &'a VolumeGuard,
    path: PathBuf,
}

impl<'a> Aside<'a> {
    /// Makes the place beside `path`, which is real and has a parent.
    pub(super) fn open(guard: &'a VolumeGuard, path: &Path, shape: Shape) -> Result<Self> {
        apply_clean(guard, path)?;
        let path = place::ensure_place(guard, &beside(path)?, shape)?;
        Ok(Aside { guard, path })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Err(err) = clear(self.guard, &self.path) {
            warn!("left behind, to be cleared by the next call: {}", Chain(&err));
        }
    }
}

/// Clears away what a call that was killed has left beside a path.
pub(super) fn apply_clean(guard: &VolumeGuard, path: &Path) -> Result<()> {
    clear(guard, &beside(path)?)
}

fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::invalid("path", format!("{} has no name", path.display())))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".do-csi");
    Ok(path.with_file_name(hidden))
}

fn clear(guard: &VolumeGuard, place: &Path) -> Result<()> {
    // Nobody but us knows the place, so nothing can be in use there.
    while apply_unmount(guard, place, Unmount::WhenFree)? {}
    place::apply_remove_place(guard, place)
}
