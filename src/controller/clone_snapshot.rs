//! The temporary snapshot through which a volume is cloned: taken, used at once, and removed, also after a crash.
//!
//! Owns its life. It is found again by its name, which follows from the clone's, and told from everybody else's snapshots by
//! that name and a tag. A call that cannot remove its snapshot leaves that to the sweeper, as does one that is killed: the
//! sweeper of every process looks after its start and then once an hour. Almost always there is nothing, which one request tells,
//! however many snapshots the account has.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::warn;

use crate::activity::{About, Change, tell_change};
use crate::cloud::snapshot::Snapshot;
use crate::cloud::tag::Tag;
use crate::cloud::{ApiResult, Cloud};
use crate::controller::Controller;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::CallContext;
use crate::controller::naming::is_clone_name;
use crate::controller::owner::Owner;
use crate::controller::snapshot::NewSnapshot;
use crate::controller::whole_list::{CHANGES, every_entry};
use crate::error::api::{ApiError, ApiErrorKind};
use crate::error::{Chain, Error, Result};
use crate::id::{SnapshotId, VolumeId};
use crate::sync::volume_lock::VolumeGuard;

/// The tag of these snapshots.
const TAG: &str = "do-csi-temporary";
/// How old one may be and still be cloned from. DigitalOcean takes no other one earlier, so a repetition has to use it;
/// later, a clone would hold data that the volume no longer has.
const FRESH: Duration = Duration::from_secs(600);
/// How old one must be before it counts as left behind: longer than it is fresh, and than a call lasts.
const LEFT_BEHIND: Duration = Duration::from_secs(900);
/// When the first look is, so that a process that starts has its first calls for itself.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// How long one look may take.
const LOOK_BUDGET: Duration = Duration::from_secs(100);
/// When to look again after a look that failed.
const NEXT_TRY: Duration = Duration::from_secs(300);
/// When to look again otherwise: another process may have been killed.
const NEXT_LOOK: Duration = Duration::from_secs(3600);

impl Controller {
    /// Takes the snapshot, or finds the one that an earlier try of the same clone took.
    pub(super) fn ensure_temporary(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        volume: &VolumeId,
        name: &str,
    ) -> Result<Snapshot> {
        let mut tags = vec![Tag::parse(TAG).map_err(|bad| Error::Bug(bad.to_string()))?];
        tags.extend(self.owner.only().cloned());
        let asked_tags = tags.clone();
        // With the owner's own tag, too: the allow-list's alone would say that it was handed over.
        tags.extend(self.owner.snapshot_tags());
        // Nobody finds these by their name alone, and a clone of the same name may have been tried from another volume.
        let new = NewSnapshot { volume, name, tags: &tags, asked_tags: &asked_tags, may_share_name: true };
        self.ensure_snapshot(guard, ctx, new, |found, _| Ok(age(found, &ctx.cloud).is_some_and(|age| age < FRESH)))
    }

    /// Removes the snapshot. The clone is there, so a failure is not its caller's business.
    pub(super) fn clear_temporary(&self, guard: &VolumeGuard, ctx: &CallContext, id: &SnapshotId) {
        if let Err(err) = self.ensure_snapshot_deleted(guard, ctx, id) {
            warn!(snapshot:% = id; "the temporary snapshot of a clone stays for a while: {}", Chain(&err));
            self.sweeper.wake();
        }
    }

    /// Removes the snapshot that an earlier try of the same clone may have left.
    pub(super) fn clear_temporary_of(&self, guard: &VolumeGuard, ctx: &CallContext, volume: &VolumeId, name: &str) {
        match ctx.observe_snapshots_of(volume) {
            Ok(all) => {
                all.iter()
                    .filter(|found| found.name == name && self.owner.check_snapshot_use(found, "deleted").is_ok())
                    .for_each(|found| self.clear_temporary(guard, ctx, &found.id));
            }
            // The source is gone; its snapshots are the sweeper's.
            Err(Error::NotFound(_)) => self.sweeper.wake(),
            Err(err) => {
                warn!(volume:%; "cannot look for a temporary snapshot of the volume: {}", Chain(&err));
                self.sweeper.wake();
            }
        }
    }
}

/// A thread that removes what was left behind.
#[derive(Debug)]
pub(super) struct Sweeper {
    wake: Sender<Duration>,
}

impl Controller {
    /// Begins to remove the temporary snapshots that earlier processes have left behind.
    pub fn sweep(&self) {
        self.sweeper.look_after(FIRST_LOOK);
    }
}

impl Sweeper {
    /// Starts the thread; it ends when the sweeper is dropped, and looks at nothing before it is woken.
    #[must_use]
    pub(super) fn start(cloud: Cloud, owner: Owner) -> Sweeper {
        let (wake, woken) = bounded(1);
        let started = thread::Builder::new().name("sweeper".to_owned()).spawn(move || work(&cloud, &owner, &woken));
        if let Err(err) = started {
            warn!("cannot start a thread, so temporary snapshots that are left behind stay: {err}");
        }
        Sweeper { wake }
    }

    /// Says that a snapshot was left behind just now. Does nothing when that is known already.
    pub(super) fn wake(&self) {
        self.look_after(LEFT_BEHIND);
    }

    fn look_after(&self, pause: Duration) {
        // Full means that the thread is about to hear of it, disconnected that there is none, which was said.
        let _heard = self.wake.try_send(pause);
    }
}

fn work(cloud: &Cloud, owner: &Owner, woken: &Receiver<Duration>) {
    let mut next = None;
    loop {
        let heard = match next {
            Some(at) => woken.recv_deadline(at),
            None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match heard {
            Ok(after) => next = next.or_else(|| Some(Instant::now() + after)),
            Err(RecvTimeoutError::Timeout) => next = sweep(cloud, owner).map(|after| Instant::now() + after),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Removes what is left behind and says when to look again; none: the token may not look.
fn sweep(cloud: &Cloud, owner: &Owner) -> Option<Duration> {
    let cloud = cloud.until(Instant::now() + LOOK_BUDGET);
    let found = match observe_temporary(&cloud) {
        Ok(found) => found,
        Err(err) => {
            let next = plan_next_try(&err);
            let when = if next.is_none() { ", and it is not tried again before the next start or clone" } else { "" };
            warn!("cannot look for temporary snapshots{when}: {err}");
            return next;
        }
    };
    // Another owner's plugins remove their own.
    let own = found.iter().filter(|snapshot| owner.check_snapshot_deletion(snapshot).is_ok());
    Some(plan_next_look(own.filter_map(|snapshot| sweep_one(&cloud, snapshot))))
}

/// When to look again, by what is due of each snapshot that stays. Pure.
fn plan_next_look(due: impl Iterator<Item = Duration>) -> Duration {
    due.fold(NEXT_LOOK, Duration::min)
}

fn sweep_one(cloud: &Cloud, snapshot: &Snapshot) -> Option<Duration> {
    let age = age(snapshot, cloud);
    if age.is_none() {
        warn!(
            "the temporary snapshot {} ({}) stays, as its age cannot be told from {:?}; delete it when no clone is made",
            snapshot.id, snapshot.name, snapshot.created_at
        );
    }
    let left = plan_stay(age);
    if left.is_some() {
        return left;
    }
    match cloud.delete_snapshot(&snapshot.id) {
        Ok(()) => {
            tell_change(
                Change::SnapshotDeleted,
                "removed a temporary snapshot that was left behind",
                About::default().with("snapshot", &snapshot.id).with("name", &snapshot.name),
            );
            None
        }
        Err(err) if plan_failure(&err) == ApiFailure::NotFound => None,
        Err(err) => {
            let next = plan_next_try(&err);
            let when = if next.is_none() { ", and it is not tried again within the next hour" } else { "" };
            warn!("cannot remove the temporary snapshot {}{when}: {err}", snapshot.id);
            next
        }
    }
}

/// When to try again what failed; none: it cannot succeed, most likely because the token has no scope for snapshots. A
/// token that is wrong or not there yet may be replaced at any time.
fn plan_next_try(err: &ApiError) -> Option<Duration> {
    match plan_failure(err) {
        ApiFailure::Permanent if matches!(err.kind(), ApiErrorKind::Unauthorized | ApiErrorKind::NoToken) => {
            Some(NEXT_TRY)
        }
        ApiFailure::Permanent => None,
        ApiFailure::Retryable
        | ApiFailure::OutcomeUnknown
        | ApiFailure::StateConflict
        | ApiFailure::NotFound
        | ApiFailure::Unrecognized
        | ApiFailure::LimitReached
        | ApiFailure::OutOfTime => Some(NEXT_TRY),
    }
}

/// How long a snapshot has to stay yet; none: it is left behind. One of unknown age may be in use at this moment.
fn plan_stay(age: Option<Duration>) -> Option<Duration> {
    match age {
        None => Some(LEFT_BEHIND),
        Some(age) => LEFT_BEHIND.checked_sub(age).filter(|left| !left.is_zero()),
    }
}

fn observe_temporary(cloud: &Cloud) -> ApiResult<Vec<Snapshot>> {
    // Without a tag, no snapshot is one of these either.
    let Ok(tag) = Tag::parse(TAG) else { return Ok(Vec::new()) };
    if !plan_listing(cloud.count_tagged_snapshots(&tag))? {
        return Ok(Vec::new());
    }
    let id = |found: &Snapshot| found.id.to_string();
    let lost = || ApiError::without_reply(ApiErrorKind::BadReply, CHANGES);
    every_entry(|page| cloud.list_snapshots(page), id, |found| Some(found).filter(is_temporary), lost)
}

/// Whether the snapshots have to be listed, by how many carry the tag. A tag that is not there was never used.
fn plan_listing(counted: ApiResult<Option<u64>>) -> ApiResult<bool> {
    match counted {
        Ok(count) => Ok(count != Some(0)),
        Err(err) if plan_failure(&err) == ApiFailure::NotFound => Ok(false),
        Err(err) => Err(err),
    }
}

/// Whether a snapshot is one that this driver took to make a clone.
#[must_use]
pub(super) fn is_temporary(snapshot: &Snapshot) -> bool {
    let is_tagged = |own: Tag| snapshot.tags.iter().any(|tag| own.is(tag));
    is_clone_name(&snapshot.name) && Tag::parse(TAG).is_ok_and(is_tagged)
}

/// How old a snapshot is; none when that cannot be told.
fn age(snapshot: &Snapshot, cloud: &Cloud) -> Option<Duration> {
    let taken = snapshot.taken_at()?;
    Some(cloud.now().duration_since(taken).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_stays_until_it_is_certainly_left_behind() {
        let seconds = Duration::from_secs;
        let table = [
            (None, Some(900)),
            (Some(0), Some(900)),
            (Some(899), Some(1)),
            (Some(900), None),
            (Some(901), None),
            (Some(u64::MAX), None),
        ];
        for (age, stay) in table {
            assert_eq!(plan_stay(age.map(seconds)), stay.map(seconds), "{age:?}");
        }
    }

    #[test]
    fn the_next_look_is_within_an_hour_whatever_was_found() {
        for (due, want) in [(vec![], 3600), (vec![900, 300], 300), (vec![7200], 3600)] {
            let next = plan_next_look(due.iter().copied().map(Duration::from_secs));
            assert_eq!(next.as_secs(), want, "{due:?}");
        }
    }

    #[test]
    fn snapshots_are_listed_only_when_some_may_carry_the_tag() {
        let failed = |kind| ApiError::without_reply(kind, "no");
        let table = [
            (Ok(Some(0)), Ok(false)),
            (Ok(Some(1)), Ok(true)),
            (Ok(None), Ok(true)),
            (Err(failed(ApiErrorKind::NotFound)), Ok(false)),
            (Err(failed(ApiErrorKind::Forbidden)), Err(failed(ApiErrorKind::Forbidden))),
            (Err(failed(ApiErrorKind::Server)), Err(failed(ApiErrorKind::Server))),
        ];
        for (counted, want) in table {
            assert_eq!(plan_listing(counted.clone()), want, "{counted:?}");
        }
    }

    #[test]
    fn only_a_refusal_for_good_ends_the_tries() {
        let table = [
            (ApiErrorKind::Forbidden, None),
            (ApiErrorKind::BadRequest, None),
            (ApiErrorKind::Unauthorized, Some(NEXT_TRY)),
            (ApiErrorKind::NoToken, Some(NEXT_TRY)),
            (ApiErrorKind::Server, Some(NEXT_TRY)),
            (ApiErrorKind::RateLimit { wait: None }, Some(NEXT_TRY)),
            (ApiErrorKind::Conflict, Some(NEXT_TRY)),
            (ApiErrorKind::NoTimeLeft, Some(NEXT_TRY)),
        ];
        for (kind, want) in table {
            assert_eq!(plan_next_try(&ApiError::without_reply(kind, "no")), want, "{kind:?}");
        }
    }
}
