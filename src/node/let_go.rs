//! That a volume's disk is let go of when its last mount was taken away.
//!
//! Owns the end of unpublishing and unstaging: an orchestrator detaches the disk as soon as they are answered, and whatever
//! still writes to it then loses what it writes. A mount in another mount namespace, as every container has one that is given
//! the host's root, keeps a file system alive that is mounted nowhere as far as this program sees.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};

use super::take_down::flush_or_say;
use super::{Call, Node};
use crate::config::RELEASE_BUDGET;
use crate::error::{Chain, Error, Result};
use crate::host::busy::is_busy;
use crate::host::freeze::apply_thaw;
use crate::host::holders::{Holders, Sought, observe_holders, observe_users, observe_writers};
use crate::host::mount::observe_mounts;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::release::{Claim, DiskUnder};

/// The first and the longest pause between two looks whether a disk is free.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// What was under one mount: the device that was mounted, and the disks that this is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Left {
    disks: Vec<DiskUnder>,
    /// Whether it was a raw volume: then it is in use as long as somebody has it open for writing.
    is_raw: bool,
}

impl Left {
    fn is_shown_in(&self, mounts: &MountTable) -> bool {
        mounts.iter().any(|mount| self.disks.iter().any(|disk| disk.is_under(mount)))
    }
}

/// The disks that were not let go of when their volumes were, by volume, so that a repetition is as strict as the first call.
/// A plugin that was started anew since has forgotten them.
#[derive(Debug, Default)]
pub(super) struct LeftDisks(Mutex<BTreeMap<String, Vec<Left>>>);

impl LeftDisks {
    fn take(&self, volume: &str) -> Vec<Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(volume).unwrap_or_default()
    }

    fn keep(&self, volume: &str, left: Vec<Left>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(volume.to_owned(), left);
    }
}

impl Node {
    /// What is under a mount that is about to be taken away. What cannot be seen is nothing, and said.
    pub(super) fn observe_left(&self, mount: &Mount) -> Result<Left> {
        Ok(Left { disks: DiskUnder::all_under(&self.places, mount)?, is_raw: mount.is_node() })
    }

    /// Prepares the unmount of what is mounted nowhere else. A file system that a dead backup tool has left frozen is thawed,
    /// as it would stay frozen, and what a raw disk has in memory is written.
    pub(super) fn apply_before_last(
        &self,
        call: &Call<'_>,
        mounts: &MountTable,
        mount: &Mount,
        left: &Left,
        path: &Path,
    ) {
        let is_other = |other: &&Mount| other.id != mount.id && left.disks.iter().any(|disk| disk.is_under(other));
        if mounts.iter().any(|other| is_other(&other)) {
            return;
        }
        if left.is_raw {
            return flush_or_say(call, path);
        }
        match apply_thaw(&call.guard, &call.runner, path) {
            Ok(true) => warn!(
                "the file system was frozen, and is thawed as it is about to be unmounted: did a backup tool die between \
                 `fsfreeze -f` and `fsfreeze -u`? path={}",
                path.display()
            ),
            Ok(false) => {}
            Err(err) => warn!("cannot tell whether a file system is frozen: {}", Chain(&err)),
        }
    }

    /// Sees that the kernel has let go of the disks under the mounts that were taken away, but for those that are seen to be
    /// mounted elsewhere. A second call for the volume looks at the same disks again.
    ///
    /// # Errors
    /// [`Error::InUse`] when one is still in use; [`Error::Io`] when that cannot be seen.
    pub(super) fn ensure_let_go(&self, call: &Call<'_>, volume: &str, mut lefts: Vec<Left>) -> Result<()> {
        for left in self.left.take(volume) {
            if !lefts.contains(&left) {
                lefts.push(left);
            }
        }
        let outcome = observe_let_go(call, volume, &lefts);
        if outcome.is_err() {
            self.left.keep(volume, lefts);
        }
        outcome
    }
}

fn observe_let_go(call: &Call<'_>, volume: &str, lefts: &[Left]) -> Result<()> {
    if lefts.iter().all(|left| left.disks.is_empty()) {
        return Ok(());
    }
    let mounts = observe_mounts()?;
    let deadline = Instant::now() + call.cap(RELEASE_BUDGET);
    for left in lefts.iter().filter(|left| !left.is_shown_in(&mounts)) {
        for disk in &left.disks {
            match await_free(disk, deadline)? {
                Claim::Free | Claim::Gone => {}
                Claim::Taken => return Err(still_used(volume, disk, &observe_holders(&disk.sought()))),
            }
            if let Some(writers) = await_unwritten(disk, left.is_raw, deadline) {
                return Err(still_used(volume, disk, &writers));
            }
        }
    }
    Ok(())
}

/// Looks again and again until nothing has a disk.
fn await_free(disk: &DiskUnder, deadline: Instant) -> Result<Claim> {
    let mut pause = FIRST_PAUSE;
    loop {
        let claim = disk.observe_claim()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if claim != Claim::Taken || left.is_zero() {
            return Ok(claim);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Looks again and again until no process has a raw disk open for writing; gives those that still have. An open file is not
/// enough for the kernel to call a disk taken.
fn await_unwritten(disk: &DiskUnder, is_raw: bool, deadline: Instant) -> Option<Holders> {
    if !is_raw {
        return None;
    }
    let mut was_waited = false;
    loop {
        let writers = observe_writers(&disk.sought());
        let left = deadline.saturating_duration_since(Instant::now());
        if writers.found().is_empty() {
            if was_waited {
                info!("the raw disk was open for writing for a while device={}", disk.node().display());
            }
            return None;
        }
        if left.is_zero() {
            return Some(writers);
        }
        was_waited = true;
        std::thread::sleep(LONGEST_PAUSE.min(left));
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
