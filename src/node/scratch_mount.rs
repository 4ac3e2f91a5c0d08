//! A hidden place beside a path, where a mount is prepared before it appears at the path itself.
//!
//! Owns that place and its removal, and the copying of a mount by way of it. A mount has to be changed after it was made, to
//! read-only for one; at the path itself the orchestrator would see it in between, and the copy of it that the kernel makes in
//! the host's mount namespace would stay as it was first. A call that was killed leaves the place behind. The next call for the
//! path or for the volume clears it away, and so does the upkeep: a volume is used by nobody there.
//!
//! The place has one user at a time, also when two plugins run: what the second one mounts on the first one's mount, which is
//! still of its source's peer group, would appear at that source as well.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::warn;

use crate::config::LOCK_PATIENCE;
use crate::error::{Chain, Error, Result};
use crate::host::bind::{Held, apply_alone, apply_bind};
use crate::host::device::Device;
use crate::host::device::busy::is_busy;
use crate::host::device::number::DeviceNumber;
use crate::host::external_volumes::{SCRATCH_END, plan_prepared};
use crate::host::mount::{Unmount, apply_own_flags, apply_unmount, observe_mounts, take_back};
use crate::host::mount_options::MountOptions;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::path_lock::PathLock;
use crate::host::presence::observe_entry;
use crate::node::NodeCall;
use crate::node::mount_point;
use crate::node::mount_point::Shape;
use crate::node::mount_point::{MOST_MOUNTS, too_many};
use crate::node::mount_state::observe_at;
use crate::node::plan::{MountPointPlan, plan_mount_point, plan_mounted};
use crate::sync::volume_lock::VolumeGuard;

/// A mount, or a device's node, that is to be seen at one more place.
pub(super) struct Copied<'a> {
    /// The volume's device.
    pub(super) device: &'a Device,
    /// Where its file system is mounted; or its node.
    pub(super) source: &'a Path,
    /// What is at these places: a directory, or a device's node.
    pub(super) shape: Shape,
    /// The flags of the new mount; none: as they come.
    pub(super) options: Option<&'a MountOptions>,
    /// How a mount of the volume at the target is not as asked.
    pub(super) difference: &'a dyn Fn(&Mount) -> Option<String>,
}

impl fmt::Debug for Copied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source.display())
    }
}

/// Makes a mount appear at a target, which is real, with the flags asked for from the first moment on, and seen to be the
/// volume's before anybody else sees it; gives the mount table as it is then.
///
/// What is mounted inside it later is seen in no other place of the volume: each is of a peer group of its own. In one group a
/// mount that a task makes in its target would appear at all others, and nothing could be unmounted any more.
///
/// The volume as asked that another plugin has mounted there meanwhile is kept. After an error nothing of this call is mounted
/// there, and what another plugin has mounted still is.
///
/// # Errors
/// [`Error::WrongDevice`] when something else is at the source by now, [`Error::TargetTaken`] and [`Error::MountedOtherwise`] by
/// what another plugin has mounted, [`Error::Io`].
pub(super) fn apply_copied(call: &NodeCall<'_>, what: &Copied<'_>, target: &Path) -> Result<MountTable> {
    let guard = &call.guard;
    let scratch_mount = ScratchMount::open(call, target, what.shape)?;
    apply_bind(guard, &Held::open(what.source)?, &Held::open(scratch_mount.path())?)?;
    // What is held cannot be unmounted, so it is let go of before the place is cleared away.
    let copy = Held::open(scratch_mount.path())?;
    // Read for itself: what was bound is known only now, and nobody is to see anything else.
    let mounts = observe_mounts()?;
    let mount = check_copy(what, &copy, &mounts)?;
    // Nothing was there when the call looked, before the place was its own.
    if observe_is_there_by_now(call, &mounts, target, what.device, what.difference)? {
        return Ok(mounts);
    }
    mount_point::check_is_empty(target)?;
    apply_alone(guard, &copy)?;
    if let Some(options) = what.options.filter(|options| options.in_full().differs_at(mount).is_some()) {
        apply_own_flags(guard, scratch_mount.path(), options)?;
    }
    apply_bind(guard, &copy, &Held::open(target)?)?;
    check_mounted(call, observe_mounts(), target, what.device, what.difference)
}

/// Whether the volume is mounted at a path as asked, which was free when the call looked first; the path's lock is held.
///
/// # Errors
/// As [`plan_mount_point`], for what another plugin, or a person, has mounted there meanwhile.
pub(super) fn observe_is_there_by_now(
    call: &NodeCall<'_>,
    mounts: &MountTable,
    path: &Path,
    device: &Device,
    difference: impl Fn(&Mount) -> Option<String>,
) -> Result<bool> {
    let at = observe_at(call.places, mounts, path, device, difference)?;
    match plan_mount_point(path, &at)? {
        MountPointPlan::Keep => Ok(true),
        MountPointPlan::Mount => Ok(false),
        MountPointPlan::ClearThenMount(_) => plan_mounted(path, &at).map(|()| true),
    }
}

/// Sees that what this call has just mounted at a path, whose lock it holds, is the volume as asked, and alive; otherwise takes it
/// back. Gives the mount table as it is then.
pub(super) fn check_mounted(
    call: &NodeCall<'_>,
    mounts: Result<MountTable>,
    path: &Path,
    device: &Device,
    difference: impl Fn(&Mount) -> Option<String>,
) -> Result<MountTable> {
    let check = |mounts: MountTable| {
        plan_mounted(path, &observe_at(call.places, &mounts, path, device, difference)?)?;
        Ok(mounts)
    };
    mounts.and_then(check).inspect_err(|_| take_back(path))
}

/// Sees that a copy shows what it should: the source may have been unmounted, or replaced, before it was bound.
fn check_copy<'a>(what: &Copied<'_>, copy: &Held, mounts: &'a MountTable) -> Result<&'a Mount> {
    let mount = copy.mount(mounts)?.filter(|mount| mount.target == copy.path());
    let number = DeviceNumber::from_raw(copy.metadata()?.rdev());
    let is_right = |mount: &Mount| match what.shape {
        Shape::Directory => mount.is_of(what.device),
        Shape::File => mount.is_node_of(what.device) && number == what.device.number(),
    };
    mount.filter(|mount| is_right(mount)).ok_or_else(|| {
        let found = mount.map_or_else(
            || "nothing".to_owned(),
            |mount| format!("{} ({}, {})", mount.source.display(), mount.fstype, mount.root.display()),
        );
        Error::WrongDevice {
            volume: what.device.volume().clone(),
            found: format!("{} shows {found} now; nothing was shown to anybody, try again", what.source.display()),
        }
    })
}

/// A place beside a path, in use until it is dropped.
#[derive(Debug)]
pub(super) struct ScratchMount<'a> {
    guard: &'a VolumeGuard,
    path: PathBuf,
    #[expect(dead_code, reason = "held until the place is cleared away")]
    lock: PathLock,
}

impl<'a> ScratchMount<'a> {
    /// Makes the place beside `path`, which is real and has a parent.
    ///
    /// # Errors
    /// [`Error::VolumeBusy`] when another plugin uses the place for longer than a call waits, [`Error::Io`].
    pub(super) fn open(call: &'a NodeCall<'_>, path: &Path, shape: Shape) -> Result<Self> {
        let (guard, lock) = (&call.guard, acquire_lock(call, path)?);
        let place = beside(path)?;
        clear(guard, &place)?;
        let path = mount_point::ensure_real_place(guard, place, shape)?;
        Ok(ScratchMount { guard, path, lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchMount<'_> {
    fn drop(&mut self) {
        if let Err(err) = clear(self.guard, &self.path) {
            warn!("left behind, to be cleared by the next call: {}", Chain(&err));
        }
    }
}

/// Clears away what a call that was killed has left beside a path. What another plugin uses there is waited for.
///
/// # Errors
/// As [`ScratchMount::open`].
pub(super) fn apply_clean(call: &NodeCall<'_>, path: &Path) -> Result<()> {
    let place = beside(path)?;
    if observe_entry(&place)?.is_none() && observe_entry(&lock_of(&place))?.is_none() {
        return Ok(());
    }
    let _lock = acquire_lock(call, path)?;
    clear(&call.guard, &place).map(drop)
}

/// Clears away what killed calls have left of a volume beside any path, of which `is_volumes` says which mounts it has: it would
/// pass for somebody who uses the volume, or who has its disk. `mounts` is the table as it is, and what this gives is the table
/// as it is then. The volume's lock is held, and what another plugin uses there is waited for as long as the budget lasts.
///
/// # Errors
/// As [`ScratchMount::open`].
pub(super) fn ensure_none_of(
    call: &NodeCall<'_>,
    mounts: MountTable,
    budget: Duration,
    is_volumes: impl Fn(&Mount) -> bool,
) -> Result<MountTable> {
    let left: Vec<&Path> =
        mounts.iter().filter(|mount| is_volumes(mount)).map(|mount| mount.target.as_path()).collect();
    let mut is_as_it_was = true;
    for place in left.into_iter().filter(|target| is_scratch(target)) {
        apply_clear_left(call, place, call.cap(budget))?;
        is_as_it_was = false;
    }
    if is_as_it_was { Ok(mounts) } else { observe_mounts() }
}

/// Clears away one such place; gives whether anything was mounted there. What another call or plugin uses is waited for as long
/// as the budget lasts.
///
/// # Errors
/// As [`ScratchMount::open`].
pub(super) fn apply_clear_left(call: &NodeCall<'_>, place: &Path, budget: Duration) -> Result<bool> {
    let _lock = PathLock::acquire(&call.guard, lock_of(place), place, budget)?;
    clear(&call.guard, place)
}

fn is_scratch(path: &Path) -> bool {
    path.file_name().is_some_and(|name| plan_prepared(&name.to_string_lossy()).is_some())
}

/// Keeps other plugins from mounting at a path, which is real, until it is dropped. One that does is waited for as long as another
/// call of this plugin would be: it may replay a journal.
///
/// # Errors
/// As [`ScratchMount::open`].
pub(super) fn acquire_lock(call: &NodeCall<'_>, path: &Path) -> Result<PathLock> {
    PathLock::acquire(&call.guard, lock_of(&beside(path)?), path, call.cap(LOCK_PATIENCE))
}

/// What is added to the name of such a place for the file that is locked while the place is used.
const LOCK_END: &str = "-lock";

fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::invalid("path", format!("{} has no name", path.display())))?;
    let hidden = [b".", shortened(name).as_bytes(), SCRATCH_END.as_bytes()].concat();
    Ok(path.with_file_name(OsString::from_vec(hidden)))
}

fn lock_of(place: &Path) -> PathBuf {
    let mut lock = place.as_os_str().to_owned();
    lock.push(LOCK_END);
    lock.into()
}

/// A name as it is, or, where nothing more could be added to it, its beginning and a number made from all of it.
fn shortened(name: &OsStr) -> OsString {
    const MOST: usize = 255 - ".".len() - SCRATCH_END.len() - LOCK_END.len();
    let bytes = name.as_bytes();
    if bytes.len() <= MOST {
        return name.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let number = format!("{:016x}", hasher.finish());
    let head = bytes.iter().take(MOST - number.len()).copied();
    OsString::from_vec(head.chain(number.bytes()).collect())
}

/// Gives whether anything was mounted there.
fn clear(guard: &VolumeGuard, place: &Path) -> Result<bool> {
    // Nobody but us knows the place, so nothing can be in use there.
    for unmounted in 0..MOST_MOUNTS {
        let was_mounted = apply_unmount(guard, place, Unmount::WhenFree)?;
        match mount_point::apply_remove_place(guard, place) {
            // What still lies below the mount is taken away in turn.
            Err(err) if was_mounted && is_busy(&err) => {}
            Ok(()) if was_mounted && observe_entry(place)?.is_some() => {}
            done => return done.map(|()| was_mounted || unmounted > 0),
        }
    }
    Err(too_many(place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_has_a_place_beside_it_and_no_two_have_the_same() {
        let names = ["a".to_owned(), "a".repeat(246), "a".repeat(247), "a".repeat(248), "a".repeat(255)];
        let other = format!("{}b", "a".repeat(254));
        let places: BTreeSet<PathBuf> = names
            .iter()
            .chain([&other])
            .map(|name| beside(&Path::new("/targets").join(name)).unwrap())
            .inspect(|place| {
                let name = place.file_name().unwrap();
                assert!(
                    name.len() <= 255 && name.as_bytes().starts_with(b".a") && name.as_bytes().ends_with(b".do-csi")
                );
            })
            .collect();
        assert_eq!(places.len(), 6);
        assert_eq!(beside(Path::new("/t/vol")).unwrap(), Path::new("/t/.vol.do-csi"));
    }
}
