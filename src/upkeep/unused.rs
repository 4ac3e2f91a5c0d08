//! Detaching volumes that nobody uses, and bringing them back when somebody asks for one after all.
//!
//! Owns the watch over all disks, the time for which each has been unused, and the order of steps for one that has been so for
//! long enough. Orchestrators forget attachments, and the droplet that has a disk knows best that nobody uses it.
//!
//! # Why it is safe
//! - **A user that is there** is seen: by a mount, by a process that writes to the raw disk, or by the kernel, which gives the disk
//!   to this program alone. It is kept so until DigitalOcean has detached it, so nothing can be mounted meanwhile, not even by
//!   another plugin on the droplet.
//! - **A call to this process** that comes meanwhile waits for the volume's locks, of the node side and of the controller side,
//!   and then finds the volume detached: it is attached anew, by NodeStageVolume itself where the disk is not there.
//! - **A call to another process**, a controller elsewhere that says "is here already" a moment before the volume is detached, is
//!   followed by NodeStageVolume on this droplet, and that one brings the volume back. Where it finds the disk still there, the
//!   mark tells it that the disk may go; so it does after this process was killed.
//! - **A detach whose answer is lost** may be carried out later. As long as it may ([`DETACH_IN_FLIGHT`](crate::config::DETACH_IN_FLIGHT)),
//!   the mark keeps NodeStageVolume waiting, and no second detach is sent.
//! - **A volume that went elsewhere** is not touched: the detach names this droplet, is sent once, and a volume that is brought
//!   back is taken from nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use crate::backoff::Backoff;
use crate::config::RELEASE_UNUSED_BUDGET;
use crate::controller::Controller;
use crate::controller::unused::ReleaseOutcome;
use crate::error::{Chain, Result};
use crate::id::{VolumeId, VolumeName};
use crate::metrics::events::{EventKind, record};
use crate::node::unused::{DiskUse, HeldDisk, SeenDisk};
use crate::node::{Attach, Node};
use crate::upkeep::plan::{Facts, Plan, Reason, plan_unused};

/// The shortest pause between two looks.
const SHORTEST_PACE: Duration = Duration::from_millis(100);
/// The longest pause before DigitalOcean is asked again about a volume that stays.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Detaches volumes that nobody uses.
#[derive(Debug)]
pub struct Unused {
    controller: Arc<Controller>,
    after: Duration,
    watched: BTreeMap<VolumeName, Watched>,
}

/// A disk that nobody uses.
#[derive(Debug)]
struct Watched {
    disk: SeenDisk,
    since: Instant,
    /// When DigitalOcean may be asked, at the earliest.
    due: Instant,
    pauses: Backoff,
    /// Why it stays, as it was said last.
    told: Option<Reason>,
}

/// How one try ended.
#[derive(Debug)]
enum Tried {
    /// It is detached, or may be: it is looked at from the start.
    Released,
    /// It stays.
    Kept(Plan),
    /// It stays for now, for this reason.
    Failed(String),
}

impl Unused {
    /// Detaches, by `controller`, what nobody has used for this long.
    #[must_use]
    pub fn new(controller: Arc<Controller>, after: Duration) -> Unused {
        Unused { controller, after, watched: BTreeMap::new() }
    }

    /// How often to look.
    pub(super) fn pace(&self) -> Duration {
        (self.after / 4).max(SHORTEST_PACE)
    }

    /// Looks at every disk once, and detaches those of which it is time.
    pub(super) fn look(&mut self, node: &Node) {
        let disks = match node.observe_disks() {
            Ok(disks) => disks,
            Err(err) => return warn!("cannot look for volumes that nobody uses: {}", Chain(&err)),
        };
        self.watched.retain(|name, watched| {
            disks.get(name).is_some_and(|seen| seen.is_same_disk(&watched.disk) && is_unused(&seen.usage))
        });
        for (name, disk) in disks {
            self.look_at(node, name, disk);
        }
    }

    fn look_at(&mut self, node: &Node, name: VolumeName, disk: SeenDisk) {
        let (after, now) = (self.after, Instant::now());
        let unused_for = self.watched.get(&name).map(|watched| now.saturating_duration_since(watched.since));
        match plan_local(node, &disk, unused_for, after) {
            Plan::Keep(reason) => {
                debug!(name:%; "a volume stays attached: {reason}");
                // Who was called for it anew is about to use it.
                self.watched.remove(&name);
            }
            Plan::Wait => {
                let pauses = Backoff::new(after, LONGEST_PAUSE.max(after));
                let new = || Watched { disk, since: now, due: now, pauses, told: None };
                self.watched.entry(name).or_insert_with(new);
            }
            Plan::TakeDownStaging | Plan::ReadVolume | Plan::Release => {
                let Some(watched) = self.watched.get_mut(&name).filter(|watched| watched.due <= now) else { return };
                let tried = try_release(&self.controller, node, &disk, watched.since, after);
                watched.due = Instant::now() + watched.pauses.next_pause();
                match tried {
                    Ok(Tried::Released) => drop(self.watched.remove(&name)),
                    Ok(Tried::Kept(plan)) => watched.tell(&name, plan),
                    Ok(Tried::Failed(why)) => warn!(name:%; "not detached, although nobody uses it: {why}"),
                    Err(err) => warn!(name:%; "not detached, although nobody uses it: {}", Chain(&err)),
                }
            }
        }
    }
}

impl Watched {
    /// Says once why a volume stays that nobody uses.
    fn tell(&mut self, name: &VolumeName, plan: Plan) {
        let Plan::Keep(reason) = plan else { return };
        if self.told.as_ref() != Some(&reason) {
            info!(name:%; "nobody uses this volume, and it stays attached: {reason}");
            self.told = Some(reason);
        }
    }
}

fn is_unused(usage: &DiskUse) -> bool {
    match usage {
        DiskUse::Staged(_) | DiskUse::Free => true,
        DiskUse::Foreign(_) | DiskUse::Published(_) | DiskUse::Taken => false,
    }
}

/// The decision as long as DigitalOcean has not been asked.
fn plan_local(node: &Node, disk: &SeenDisk, unused_for: Option<Duration>, after: Duration) -> Plan {
    let is_called_for = node.is_called_for(disk, after);
    plan_unused(&Facts { usage: &disk.usage, is_called_for, unused_for, cloud: None }, after)
}

/// Holds the volume, looks at everything once more, and detaches it if all agrees.
fn try_release(
    controller: &Controller,
    node: &Node,
    seen: &SeenDisk,
    since: Instant,
    after: Duration,
) -> Result<Tried> {
    let busy = || Ok(Tried::Kept(Plan::Keep(Reason::CalledFor)));
    let Some(mut held) = node.hold_unused(seen) else { return busy() };
    if held.is_detach_in_flight()? {
        return Ok(Tried::Kept(Plan::Keep(Reason::DetachUnclear)));
    }
    let look = |held: &HeldDisk<'_>| -> Result<Option<(SeenDisk, Plan)>> {
        let disk = held.observe()?.filter(|disk| disk.is_same_disk(seen));
        Ok(disk.map(|disk| {
            let plan = plan_local(node, &disk, Some(since.elapsed()), after);
            (disk, plan)
        }))
    };
    let Some((mut disk, mut plan)) = look(&held)? else { return Ok(Tried::Released) };
    if let (Plan::TakeDownStaging, DiskUse::Staged(paths)) = (&plan, &disk.usage) {
        held.ensure_unstaged(paths)?;
        let Some(again) = look(&held)? else { return Ok(Tried::Released) };
        (disk, plan) = again;
    }
    if plan != Plan::ReadVolume {
        return Ok(Tried::Kept(plan));
    }
    let Some(claim) = held.claim()? else { return Ok(Tried::Kept(Plan::Keep(Reason::Taken))) };
    let ctx = controller.context_of_own(RELEASE_UNUSED_BUDGET);
    let Some(volume) = controller.find_named(&ctx, &disk.name)? else {
        return Ok(Tried::Kept(Plan::Keep(Reason::NotHere)));
    };
    if !held.hold_id(&volume.id) {
        return busy();
    }
    let guard = controller.hold_unused(&volume.id)?;
    if node.is_id_called_for(&volume.id, after) {
        return busy();
    }
    let Some(facts) = controller.observe_release(&guard, &ctx, &volume.id)? else {
        return Ok(Tried::Kept(Plan::Keep(Reason::NotHere)));
    };
    let usage = DiskUse::Free;
    let facts = Facts { usage: &usage, is_called_for: false, unused_for: Some(since.elapsed()), cloud: Some(&facts) };
    let plan = plan_unused(&facts, after);
    if plan != Plan::Release {
        return Ok(Tried::Kept(plan));
    }
    warn!(
        volume:% = volume.id, name:% = volume.name;
        "detaching a volume that nobody has used for {} s; an orchestrator has forgotten it, or attached it and not used it",
        since.elapsed().as_secs()
    );
    let outcome = controller.apply_release(&guard, &ctx, &volume.id, || held.mark());
    drop(claim);
    if outcome == ReleaseOutcome::Detached {
        warn!(volume:% = volume.id, name:% = volume.name; "detached, as nobody has used it");
        record(EventKind::Released, format_args!("volume {} ({}): nobody had used it", volume.name, volume.id));
    }
    settle(&held, &disk, outcome).map(|failed| failed.map_or(Tried::Released, Tried::Failed))
}

/// Leaves the mark, or takes it away, as what has come of the detach demands; gives why it has failed.
fn settle(held: &HeldDisk<'_>, disk: &SeenDisk, outcome: ReleaseOutcome) -> Result<Option<String>> {
    match outcome {
        ReleaseOutcome::Detached => held.await_gone(disk).map(|()| None),
        ReleaseOutcome::Refused(why) => held.unmark().map(|()| Some(why)),
        // The mark stays, as young as the end of the try: whoever uses the disk next waits, and asks.
        ReleaseOutcome::Unclear(why) => held.mark().map(|()| Some(why)),
    }
}

/// Detaches a volume from this droplet for a person, in a process of its own: its disk is held as above, and marked, so that the
/// plugin's calls wait, before `look` sees for the last time that nobody claims the volume. Gives why it was not done.
///
/// # Errors
/// What could not be looked at; as [`Controller::hold_unused`].
pub fn release_by_hand(
    controller: &Controller,
    node: &Node,
    (id, name): (&VolumeId, &VolumeName),
    look: impl FnOnce() -> std::result::Result<(), String>,
) -> Result<Option<String>> {
    let kept = |reason: Reason| Ok(Some(reason.to_string()));
    let disks = node.observe_disks()?;
    let Some(seen) = disks.get(name) else { return Ok(Some("its disk cannot be seen here".to_owned())) };
    let Some(mut held) = node.hold_unused(seen) else { return kept(Reason::CalledFor) };
    if held.is_detach_in_flight()? {
        return kept(Reason::DetachUnclear);
    }
    let Some(claim) = held.claim()? else { return kept(Reason::Taken) };
    if !held.hold_id(id) {
        return kept(Reason::CalledFor);
    }
    let guard = controller.hold_unused(id)?;
    held.mark()?;
    let outcome = match look() {
        Ok(()) => {
            controller.apply_release(&guard, &controller.context_of_own(RELEASE_UNUSED_BUDGET), id, || held.mark())
        }
        Err(why) => ReleaseOutcome::Refused(why),
    };
    drop(claim);
    settle(&held, seen, outcome)
}

/// Brings volumes back that this program may have detached.
#[derive(Debug)]
pub struct BringBack(Arc<Controller>);

impl BringBack {
    /// By this controller.
    #[must_use]
    pub fn new(controller: Arc<Controller>) -> BringBack {
        BringBack(controller)
    }
}

impl Attach for BringBack {
    fn ensure_attached(&self, name: &VolumeName, budget: Duration) -> Result<()> {
        let ctx = self.0.context_of_own(budget);
        self.0.ensure_attached_here(&ctx, name)
    }
}
