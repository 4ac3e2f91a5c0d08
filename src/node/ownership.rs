//! The owner, group and permissions of a file system's root directory.
//!
//! Owns the decision that a file system is fresh, and the change. Nomad has nothing like Kubernetes' fsGroup, so a task
//! that does not run as root could not write to a new volume. A used file system is changed only if the volume's
//! settings say so, and then only its root directory. Nothing below it is ever touched.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use log::info;

use crate::error::{Error, Result};
use crate::request::volume_context::RootSettings;
use crate::sync::volume_lock::VolumeGuard;

/// What mkfs of every file system here gives its root directory.
const MKFS_MODE: u32 = 0o755;

/// A root directory as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    owner: u32,
    group: u32,
    mode: u32,
    is_empty: bool,
}

/// The outcome for a root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    /// It is as requested.
    AsAsked,
    /// It differs from the request, because the file system was used before.
    LeftAlone {
        /// Its owner.
        owner: u32,
        /// Its group.
        group: u32,
        /// Its permission bits.
        mode: u32,
    },
}

/// Sets owner, group and permissions of a mounted file system's root directory, if the file system is fresh or the
/// settings ask for it on used ones too.
///
/// A second call changes nothing. The next call completes one that was interrupted: a root directory counts as fresh
/// while each of its properties is either as mkfs made it or as requested.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn ensure_root(_guard: &VolumeGuard, mounted_at: &Path, want: RootSettings) -> Result<Root> {
    if want == RootSettings::default() {
        return Ok(Root::AsAsked);
    }
    let directory = File::open(mounted_at).map_err(Error::io("opening", mounted_at))?;
    let found = observe_root(&directory, mounted_at)?;
    match plan_root(found, want) {
        RootPlan::Keep => return Ok(Root::AsAsked),
        RootPlan::Leave => {
            return Ok(Root::LeftAlone { owner: found.owner, group: found.group, mode: found.mode });
        }
        RootPlan::Change => {}
    }
    // chown(2) may clear the bits of set-group-ID, so the permissions come last.
    fchown(&directory, want.owner, want.group).map_err(Error::io("changing the owner of", mounted_at))?;
    if let Some(mode) = want.mode {
        directory
            .set_permissions(Permissions::from_mode(mode))
            .map_err(Error::io("changing the mode of", mounted_at))?;
    }
    directory.sync_all().map_err(Error::io("flushing", mounted_at))?;
    info!(path:% = mounted_at.display(); "set owner and mode of the root directory: {want:?}");
    Ok(Root::AsAsked)
}

fn observe_root(directory: &File, path: &Path) -> Result<Found> {
    let found = directory.metadata().map_err(Error::io("examining", path))?;
    let entries = std::fs::read_dir(path).map_err(Error::io("listing", path))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let is_empty = is_fresh(names).map_err(Error::io("listing", path))?;
    Ok(Found { owner: found.uid(), group: found.gid(), mode: found.mode() & 0o7777, is_empty })
}

/// Whether a root directory has nothing in it but what mke2fs makes. It is looked through no further than that: it may have
/// millions of names.
fn is_fresh(mut names: impl Iterator<Item = io::Result<OsString>>) -> io::Result<bool> {
    let other = names.find(|name| !name.as_ref().is_ok_and(|name| name == "lost+found"));
    other.transpose().map(|other| other.is_none())
}

/// What to do with a root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RootPlan {
    /// Nothing, it is as requested.
    Keep,
    /// Nothing, although it differs from the request: the file system was used before.
    Leave,
    /// Set what is requested.
    Change,
}

/// Decides what is to be done. Pure.
fn plan_root(found: Found, want: RootSettings) -> RootPlan {
    let is_fresh = |have: u32, made: u32, want: Option<u32>| have == made || Some(have) == want;
    let fresh = found.is_empty
        && is_fresh(found.owner, 0, want.owner)
        && is_fresh(found.group, 0, want.group)
        && is_fresh(found.mode, MKFS_MODE, want.mode);
    let is_done = want.owner.is_none_or(|owner| owner == found.owner)
        && want.group.is_none_or(|group| group == found.group)
        && want.mode.is_none_or(|mode| mode == found.mode);
    match (is_done, fresh || want.is_always) {
        (true, _) => RootPlan::Keep,
        (false, true) => RootPlan::Change,
        (false, false) => RootPlan::Leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_directory_is_looked_through_no_further_than_to_the_first_name_of_a_user() {
        let names = |names: &'static [&str]| names.iter().map(|name| Ok(OsString::from(name)));
        assert!(is_fresh(names(&[])).unwrap() && is_fresh(names(&["lost+found"])).unwrap());
        assert!(!is_fresh(names(&["lost+found", "a"])).unwrap());
        let endless = std::iter::repeat_with(|| Ok(OsString::from("a")));
        assert!(!is_fresh(endless).unwrap());
        let failed = names(&["lost+found"]).chain([Err(io::Error::other("broken"))]);
        assert!(is_fresh(failed).is_err());
    }

    #[test]
    fn only_a_fresh_file_system_is_changed_and_a_half_done_change_is_completed() {
        let fresh = Found { owner: 0, group: 0, mode: 0o755, is_empty: true };
        let want = RootSettings { owner: Some(1000), group: Some(2000), mode: Some(0o2770), is_always: false };
        let always = RootSettings { is_always: true, ..want };
        let changed = [
            fresh,
            Found { owner: 1000, ..fresh },
            Found { owner: 1000, group: 2000, ..fresh },
            Found { mode: 0o2770, ..fresh },
        ];
        for found in changed {
            assert_eq!(plan_root(found, want), RootPlan::Change, "{found:?}");
            assert_eq!(plan_root(found, always), RootPlan::Change, "{found:?}");
        }
        let left = [
            Found { is_empty: false, ..fresh },
            Found { owner: 1, ..fresh },
            Found { group: 1, ..fresh },
            Found { mode: 0o700, ..fresh },
            Found { mode: 0o4755, ..fresh },
        ];
        for found in left {
            assert_eq!(plan_root(found, want), RootPlan::Leave, "{found:?}");
            assert_eq!(plan_root(found, always), RootPlan::Change, "{found:?}");
        }
        for is_empty in [false, true] {
            let done = Found { owner: 1000, group: 2000, mode: 0o2770, is_empty };
            assert_eq!((plan_root(done, want), plan_root(done, always)), (RootPlan::Keep, RootPlan::Keep));
        }
        // What is not requested must still be as mkfs made it. Otherwise a user has changed it on purpose.
        let owner_only = RootSettings { owner: Some(1000), ..RootSettings::default() };
        assert_eq!(plan_root(fresh, owner_only), RootPlan::Change);
        assert_eq!(plan_root(Found { mode: 0o700, ..fresh }, owner_only), RootPlan::Leave);
    }
}
