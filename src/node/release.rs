//! That a volume's disk is let go of when its last mount was taken away.
//!
//! Owns the end of unpublishing and unstaging: an orchestrator detaches the disk as soon as they are answered, and whatever
//! still writes to it then loses what it writes. A mount in another mount namespace, as every container has one that is given
//! the host's root, keeps a file system alive that is mounted nowhere as far as this program sees.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{error, info, warn};

use crate::activity::wait_for;
use crate::backoff::{Backoff, look_until};
use crate::config::{LOCK_PATIENCE, RELEASE_BUDGET};
use crate::error::{Chain, Error, Result};
use crate::host::command::shell_quoted;
use crate::host::device::DevicePlaces;
use crate::host::device::busy::{BUSY_PAUSES, is_busy};
use crate::host::device::number::observe_node;
use crate::host::external_volumes::is_csi_place;
use crate::host::freeze::apply_thaw;
use crate::host::holders::{Holders, Sought, observe_holders, observe_users, observe_writers};
use crate::host::id_link::observe_name_of;
use crate::host::luks::mapper::DiskHolder;
use crate::host::mount::{apply_flush, observe_mounts};
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::release::{Claim, DiskUnder};
use crate::node::NodeCall;
use crate::node::scratch_mount::ensure_none_of;
use crate::node::whose::{Named, forget_unused, observe_named, unclear};

/// The pauses between two looks that cost more than asking the kernel for a disk.
const SLOW_PAUSES: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_millis(250));

/// How long a look for processes that write to a raw disk may take. Without its end nobody can say that there are none.
const WRITERS_BUDGET: Duration = Duration::from_secs(40);

/// How long that look may take in any case: a flush before it may have used up the call, and to say that there was no time
/// to look would fail the call for good.
const LEAST_WRITERS_BUDGET: Duration = Duration::from_secs(5);

/// How long the look for writers may take when so much of it is left of the call. Pure.
fn writers_budget(left: Duration) -> Duration {
    left.max(LEAST_WRITERS_BUDGET)
}

/// What was under one mount: the device that was mounted, and the disks that this is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Left {
    disks: Vec<DiskUnder>,
    /// Whether it was a raw volume: then it is in use as long as somebody has it open for writing.
    is_raw: bool,
}

impl Left {
    /// What is under a mount to which nothing can be written any more.
    pub(super) fn nothing() -> Left {
        Left { disks: Vec::new(), is_raw: false }
    }

    /// What is under a mount that is about to be taken away; no disks when they are gone.
    ///
    /// # Errors
    /// [`Error::Io`] when that cannot be seen: then the mount must stay, as nobody could look at its disk afterwards.
    pub(super) fn observe(places: &DevicePlaces, mount: &Mount) -> Result<Left> {
        Ok(Left { disks: DiskUnder::all_under(places, mount)?, is_raw: mount.is_node() })
    }

    /// What may be left of a volume of which this process has taken no mount away, but an earlier one may have: its name is
    /// known until it was let go of.
    fn observe_by_name(places: &DevicePlaces, volume: &str) -> Result<Option<Left>> {
        let Some(name) = observe_name_of(places, volume)? else { return Ok(None) };
        let number = match observe_named(places, &name)? {
            Named::Gone => return Ok(None),
            Named::Works(_, DiskHolder::Open(open)) => open.number(),
            Named::Works(disk, _) => disk.number(),
            // A disk that does not work for now may be mounted elsewhere all the same, which the kernel tells.
            Named::Unusable { node, seen } => {
                let number = node.map_or(Ok(None), |node| observe_node(&node))?;
                number.ok_or_else(|| unclear(&name, &seen))?
            }
        };
        // It may have been a raw volume: nobody but who writes to a disk has it open for writing.
        Ok(Some(Left { disks: DiskUnder::all_of(places, number)?, is_raw: true }))
    }

    /// Whether a mount shows what was under the one that was, or is, taken away.
    pub(super) fn is_under(&self, mount: &Mount) -> bool {
        self.disks.iter().any(|disk| disk.is_under(mount))
    }

    fn shown_in(&self, mounts: &MountTable, step: Step) -> StillMounted {
        let shows = |mount: &&Mount| self.is_under(mount);
        let targets: Vec<&Path> = mounts.iter().filter(shows).map(|mount| mount.target.as_path()).collect();
        plan_shown(step, &targets)
    }
}

/// Which call has taken a mount away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Unpublishing: the volume may stay staged, and the orchestrator unstages it before it detaches it.
    Unpublish,
    /// Unstaging: the orchestrator detaches the volume next.
    Unstage,
}

/// Where a disk is seen to be mounted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum StillMounted {
    /// Nowhere.
    Nowhere,
    /// At this path, and where else the orchestrator knows of it, which will have it taken away.
    Known(PathBuf),
    /// Only at this path, where somebody else has mounted it, of which the orchestrator does not know.
    Foreign(PathBuf),
}

/// Decides by the paths at which a disk is mounted. Pure.
///
/// To unstage a volume that a task still has is no error: a Nomad client that was started anew unstages it when another of its
/// tasks ends, and repeats what fails for hours. The servers detach the volume only when no allocation on the droplet has it.
/// Source: hashicorp/nomad#25813; `controllerUnpublishVolume` in `nomad/csi_endpoint.go` of Nomad.
fn plan_shown(step: Step, targets: &[&Path]) -> StillMounted {
    match (step, targets) {
        (Step::Unpublish | Step::Unstage, []) => StillMounted::Nowhere,
        (Step::Unpublish, [first, ..]) => StillMounted::Known(first.to_path_buf()),
        (Step::Unstage, [first, ..]) => match targets.iter().find(|target| is_csi_place(target)) {
            Some(known) => StillMounted::Known(known.to_path_buf()),
            None => StillMounted::Foreign(first.to_path_buf()),
        },
    }
}

/// The disks under the mounts that were taken away and that were not seen to be let go of since, by volume, so that a
/// repetition is as strict as the first call. A plugin that was started anew goes by the volume's name instead.
#[derive(Debug, Default)]
pub(super) struct LeftDisks(Mutex<BTreeMap<String, Vec<Left>>>);

impl LeftDisks {
    /// Without the disks that have gone since, as the kernel gives their numbers to others.
    fn of(&self, volume: &str) -> Vec<Left> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(volume).cloned();
        let mut lefts = kept.unwrap_or_default();
        for left in &mut lefts {
            left.disks.retain(|disk| !disk.is_gone().unwrap_or(false));
        }
        lefts
    }

    /// Keeps in mind what was under a mount that was taken away: whatever fails afterwards, the next call looks.
    pub(super) fn keep(&self, volume: &str, left: Left) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lefts = all.entry(volume.to_owned()).or_default();
        if !lefts.contains(&left) {
            lefts.push(left);
        }
    }

    /// Sees that the kernel has let go of the disks under the mounts that were taken away, but for those that are mounted where
    /// the orchestrator knows of it; then the volume's name is forgotten, if it is used nowhere. A second call for the volume
    /// looks at the same disks again, and where none is known any more, at the disk that has the volume's name. `mounts` is the
    /// table as it is since the last mount was taken away.
    ///
    /// # Errors
    /// [`Error::InUse`] when one is still in use; [`Error::Io`] when that cannot be seen.
    pub(super) fn ensure_let_go(
        &self,
        call: &NodeCall<'_>,
        volume: &str,
        step: Step,
        mounts: MountTable,
    ) -> Result<()> {
        let mut lefts = self.of(volume);
        if lefts.is_empty() {
            lefts.extend(Left::observe_by_name(call.places, volume)?);
        }
        let is_of_one = |mount: &Mount| lefts.iter().any(|left| left.is_under(mount));
        let mounts = ensure_none_of(call, mounts, LOCK_PATIENCE, is_of_one)?;
        let mounts = observe_let_go(call, volume, &lefts, step, mounts)?;
        self.forget(volume);
        forget_unused(call, &mounts, volume);
        Ok(())
    }

    fn forget(&self, volume: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(volume);
    }
}

/// Prepares the unmount of what is mounted nowhere else. A file system that a dead backup tool has left frozen is thawed,
/// as it would stay frozen, and what a raw disk has in memory is written.
pub(super) fn apply_before_last(call: &NodeCall<'_>, mounts: &MountTable, mount: &Mount, left: &Left, path: &Path) {
    if mounts.iter().any(|other| other.id != mount.id && left.is_under(other)) {
        return;
    }
    if left.is_raw {
        return flush_or_say(call, path);
    }
    match apply_thaw(&call.guard, &call.runner, path) {
        Ok(true) => {
            warn!(path:% = path.display(); "the file system was frozen, and is thawed as it is about to be unmounted: did a backup tool die between \
             `fsfreeze -f` and `fsfreeze -u`?")
        }
        Ok(false) => {}
        Err(err) => warn!("cannot tell whether a file system is frozen: {}", Chain(&err)),
    }
}

/// Gives the mount table that was looked at last.
fn observe_let_go(
    call: &NodeCall<'_>,
    volume: &str,
    lefts: &[Left],
    step: Step,
    mounts: MountTable,
) -> Result<MountTable> {
    let deadline = Instant::now() + call.cap(RELEASE_BUDGET);
    let _waiting = wait_for(format!("waiting until nothing uses the disk of volume {volume}"), "it is unmounted here");
    let mut mounts = mounts;
    for left in lefts.iter().filter(|left| !left.disks.is_empty()) {
        match await_shown(left, step, deadline, &mut mounts)? {
            StillMounted::Nowhere => {}
            StillMounted::Known(path) => {
                tell_still_used(volume, step, &path);
                continue;
            }
            StillMounted::Foreign(path) => return Err(mounted_by_others(volume, &path)),
        }
        for disk in &left.disks {
            match await_free(disk, deadline)? {
                Claim::Free => {}
                Claim::Gone => continue,
                Claim::Taken => return Err(still_used(volume, disk, &observe_holders(&disk.sought()))),
            }
            if let Some(writers) = await_unwritten(call, disk, left.is_raw, deadline)? {
                return Err(still_used(volume, disk, &writers));
            }
        }
    }
    Ok(mounts)
}

/// Looks where a disk is mounted, again and again while somebody else has it mounted: droplet images carry a rule that mounts
/// a volume for a short look. `mounts` is looked at first, and is what was looked at last afterwards.
fn await_shown(left: &Left, step: Step, deadline: Instant, mounts: &mut MountTable) -> Result<StillMounted> {
    let mut is_fresh = true;
    let look = || {
        if !std::mem::take(&mut is_fresh) {
            *mounts = observe_mounts()?;
        }
        Ok(left.shown_in(mounts, step))
    };
    look_until(deadline, SLOW_PAUSES, look, |shown| !matches!(shown, Ok(StillMounted::Foreign(_))))
}

/// Looks again and again until nothing has a disk.
fn await_free(disk: &DiskUnder, deadline: Instant) -> Result<Claim> {
    look_until(deadline, BUSY_PAUSES, || disk.observe_claim(), |claim| !matches!(claim, Ok(Claim::Taken)))
}

/// Looks again and again until no process has a raw disk open for writing; gives those that still have. An open file is not
/// enough for the kernel to call a disk taken.
fn await_unwritten(call: &NodeCall<'_>, disk: &DiskUnder, is_raw: bool, deadline: Instant) -> Result<Option<Holders>> {
    if !is_raw {
        return Ok(None);
    }
    let mut looks = 0;
    let look = || {
        looks += 1;
        observe_writers(&disk.sought(), writers_budget(call.cap(WRITERS_BUDGET)))
    };
    let is_written = |writers: &Result<Holders>| writers.as_ref().is_ok_and(|writers| !writers.found().is_empty());
    let writers = look_until(deadline, SLOW_PAUSES, look, |writers| !is_written(writers))?;
    if !writers.found().is_empty() {
        return Ok(Some(writers));
    }
    if !writers.saw_all() {
        // It is said and not refused: a plugin in a container of its own never sees more.
        warn!(device:% = disk.node().display(); "the plugin may not look at all processes of the droplet, so it cannot tell whether another \
              process still writes to this raw disk; give the plugin the host's processes (`pid_mode = \"host\"` in Nomad's docker driver)");
    }
    if looks > 1 {
        info!(device:% = disk.node().display(); "the raw disk was open for writing for a while");
    }
    Ok(None)
}

fn tell_still_used(volume: &str, step: Step, path: &Path) {
    match step {
        Step::Unpublish => {}
        Step::Unstage => warn!(
            volume;
            "unstaged while it is still in use at {}: it must not be detached before it is unpublished there",
            path.display()
        ),
    }
}

fn mounted_by_others(volume: &str, path: &Path) -> Error {
    Error::InUse {
        doing: format!(
            "volume {volume} was unstaged, but it is still mounted on this droplet, and what is written to it after it is \
             detached is lost:"
        ),
        found: format!(
            "something other than this plugin has mounted it at {0}; `umount {0}` ends that",
            shell_quoted(path)
        ),
        cure: "end that before the volume is detached; if it comes back, an automount rule of the distribution does it (see docs/troubleshooting.md)",
    }
}

fn still_used(volume: &str, disk: &DiskUnder, holders: &Holders) -> Error {
    Error::InUse {
        doing: format!(
            "volume {volume} was unmounted, but its disk {} is still in use on this droplet, and what is written to it after it \
             is detached is lost:",
            disk.node().display()
        ),
        found: holders.to_string(),
        cure: "end that before the volume is detached",
    }
}

/// The error for a mount that could not be unmounted: who uses it, when that is why.
pub(super) fn or_users(volume: &str, mounts: &MountTable, mount: &Mount, left: &Left) -> impl FnOnce(Error) -> Error {
    move |err| {
        if !is_busy(&err) {
            return err;
        }
        let sought = left.disks.first().map_or_else(Sought::default, DiskUnder::sought);
        Error::InUse {
            doing: format!("volume {volume} cannot be unmounted at {}, because it is in use:", mount.target.display()),
            found: observe_users(&sought, mounts, mount).to_string(),
            cure: "end that, and it is unmounted when it is asked for again",
        }
    }
}

pub(super) fn flush_or_say(call: &NodeCall<'_>, path: &Path) {
    if let Err(err) = apply_flush(&call.guard, path) {
        error!("could not write everything that is in memory: {}", Chain(&err));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::device::number::DeviceNumber;
    use std::fs;

    #[test]
    fn another_disk_that_gets_the_number_of_one_that_went_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, all) = (dir.path().join("devices/sda"), dir.path().join("dev/block"));
        for directory in [&disk, &all] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(disk.join("dev"), "8:0\n").unwrap();
        fs::write(disk.join("diskseq"), "1\n").unwrap();
        std::os::unix::fs::symlink(&disk, all.join("8:0")).unwrap();
        let places = DevicePlaces { sysfs: dir.path().to_owned(), ..DevicePlaces::default() };
        let disks = DiskUnder::all_of(&places, DeviceNumber { major: 8, minor: 0 }).unwrap();
        let lefts = LeftDisks::default();
        lefts.keep("blog", Left { disks, is_raw: false });
        let mounts = MountTable::parse(b"9 1 8:0 / /mnt/other rw - ext4 /dev/sda rw\n").unwrap();
        let shown = || lefts.of("blog").iter().map(|left| left.shown_in(&mounts, Step::Unstage)).collect::<Vec<_>>();
        assert_eq!(shown(), [StillMounted::Foreign("/mnt/other".into())]);
        fs::write(disk.join("diskseq"), "2\n").unwrap();
        assert_eq!(shown(), [StillMounted::Nowhere]);
    }

    #[test]
    fn a_call_whose_time_is_over_looks_for_writers_all_the_same() {
        let (none, all) = (Duration::ZERO, WRITERS_BUDGET);
        assert_eq!((writers_budget(none), writers_budget(all)), (Duration::from_secs(5), all));
    }

    #[test]
    fn only_a_mount_that_the_orchestrator_knows_of_excuses_a_disk_that_it_is_about_to_detach() {
        let (known, foreign) = ("/csi/staging/default/blog/rw-file-system-single-node-writer", "/mnt/blog");
        let elsewhere = || StillMounted::Foreign(foreign.into());
        let at = |path: &str| StillMounted::Known(path.into());
        for (targets, unpublished, unstaged) in [
            (vec![], StillMounted::Nowhere, StillMounted::Nowhere),
            (vec![known], at(known), at(known)),
            (vec![foreign], at(foreign), elsewhere()),
            (vec![foreign, known], at(foreign), at(known)),
        ] {
            let targets: Vec<&Path> = targets.into_iter().map(Path::new).collect();
            assert_eq!(plan_shown(Step::Unpublish, &targets), unpublished, "{targets:?}");
            assert_eq!(plan_shown(Step::Unstage, &targets), unstaged, "{targets:?}");
        }
    }
}
