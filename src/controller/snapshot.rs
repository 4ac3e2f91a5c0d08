//! Snapshots: taken once for each name, read, and deleted.
//!
//! Owns the comparison of a snapshot that is there with the one that is asked for. Before one is taken, the snapshots of
//! its volume are read, as a lost reply must not lead to a second one. That two volumes do not have snapshots of one name
//! is seen to in `taken_names`, as it is not documented that DigitalOcean itself keeps the names unique.

use std::time::{Duration, Instant};

use log::warn;

use crate::activity::{About, Change, tell_change};
use crate::backoff::Backoff;
use crate::cloud::snapshot::Snapshot;
use crate::cloud::tag::Tag;
use crate::controller::Controller;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::{CallContext, DOES_NOT_SHOW, pause_after};
use crate::controller::naming::plan_name;
use crate::controller::whole_list::{CHANGES, every_entry};
use crate::error::api::{ApiError, ApiErrorKind};
use crate::error::{Error, Result, Thing};
use crate::id::{SnapshotId, VolumeId};
use crate::request::snapshot::CreateSnapshot;
use crate::sync::volume_lock::{VolumeGuard, VolumeKey};

/// How many of a volume's snapshots DigitalOcean keeps at most. Source: product documentation, "Snapshots", limits.
pub(super) const MOST_OF_A_VOLUME: usize = 25;

/// A snapshot to be taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewSnapshot<'a> {
    /// The volume.
    pub(super) volume: &'a VolumeId,
    /// The name at DigitalOcean.
    pub(super) name: &'a str,
    /// Its tags.
    pub(super) tags: &'a [Tag],
    /// The tags that it cannot do without; the others are left off when the token may not put tags on.
    pub(super) asked_tags: &'a [Tag],
    /// Whether another volume may have a snapshot of that name.
    pub(super) may_share_name: bool,
}

/// What one call to take a snapshot has met so far.
#[derive(Debug)]
struct SnapshotProgress {
    pauses: Backoff,
    /// An earlier try of this call may have taken it.
    is_open: bool,
    awaited: Option<Awaited>,
}

/// A refusal for which the snapshot itself may be the reason: it may have been taken and not be shown yet.
#[derive(Debug)]
struct Awaited {
    err: ApiError,
    /// For so long it is looked for.
    until: Instant,
}

impl SnapshotProgress {
    /// Takes notice of a failed try, and waits before what comes next.
    fn go_on_after(
        &mut self,
        err: ApiError,
        ctx: &CallContext,
        volume: &VolumeId,
        all: &[Snapshot],
        doing: &str,
    ) -> Result<()> {
        // A pause as long as the ten-minute rule demands is no pause of a call.
        let pause = self.pauses.next_pause();
        match plan_failure(&err) {
            ApiFailure::Retryable => ctx.pause(err.wait().map_or(pause, |asked| asked.max(pause)), doing, &err),
            ApiFailure::OutcomeUnknown => {
                warn!(request = err.request_id(); "{doing}: unclear whether it was done, reading the volume's snapshots: {err}");
                self.is_open = true;
                ctx.pause(pause, doing, &err)
            }
            ApiFailure::StateConflict if self.is_open || err.kind() == ApiErrorKind::NameTaken => {
                self.look_for_it(ctx, pause, err, doing)
            }
            // It says no more than that something is in the way.
            ApiFailure::StateConflict => ctx.pause(pause, doing, &err),
            ApiFailure::LimitReached if self.is_open && is_too_soon(&err) => self.look_for_it(ctx, pause, err, doing),
            // Whether the volume is gone, the next look at its snapshots tells.
            ApiFailure::NotFound => ctx.pause(pause, doing, &err),
            ApiFailure::OutOfTime => Err(ctx.timed_out(doing, err.to_string())),
            ApiFailure::LimitReached => Err(limit(ctx, volume, all, doing.to_owned(), err)),
            ApiFailure::Unrecognized if all.len() >= MOST_OF_A_VOLUME => {
                Err(Error::AccountLimit { doing: doing.to_owned(), source: err })
            }
            ApiFailure::Unrecognized | ApiFailure::Permanent => {
                Err(Error::Api { doing: doing.to_owned(), source: err })
            }
        }
    }

    /// Looks once more, or, when an earlier try may have taken it, for as long as it may take to be shown.
    fn look_for_it(&mut self, ctx: &CallContext, pause: Duration, err: ApiError, doing: &str) -> Result<()> {
        let shown = if self.is_open { ctx.patience.propagation() } else { Duration::ZERO };
        let awaited = self.awaited.insert(Awaited { err, until: Instant::now() + shown });
        ctx.pause(pause, doing, &awaited.err)
    }

    /// What to answer when the snapshot is not among its volume's after all, for which this was the refusal.
    fn refusal(
        &self,
        err: ApiError,
        ctx: &CallContext,
        new: NewSnapshot<'_>,
        all: &[Snapshot],
        doing: String,
    ) -> Error {
        if is_too_soon(&err) {
            limit(ctx, new.volume, all, doing, err)
        } else if self.is_open {
            ctx.timed_out(&doing, format!("{err}; it may have been taken, and does not show"))
        } else {
            taken(new.name, new.volume)
        }
    }
}

fn each_once<'a>(tags: impl Iterator<Item = &'a Tag>) -> Vec<Tag> {
    tags.fold(Vec::new(), |mut all: Vec<Tag>, tag| {
        if !all.iter().any(|have| have.is(tag.as_str())) {
            all.push(tag.clone());
        }
        all
    })
}

/// Whether it is the ten-minute rule.
fn is_too_soon(err: &ApiError) -> bool {
    matches!(err.kind(), ApiErrorKind::SnapshotRateLimit { .. })
}

impl Controller {
    /// Takes a snapshot of a volume, or finds the one that an earlier call with this name took.
    ///
    /// # Errors
    /// [`Error::Invalid`] when its tags would make it another's, [`Error::NotFound`] when there is no such volume, [`Error::Mismatch`] when another volume has a snapshot of that
    /// name, [`Error::NotAdopted`] when the volume has one that may be somebody else's, [`Error::SnapshotTooSoon`],
    /// [`Error::AccountLimit`], [`Error::TimedOut`].
    pub fn create_snapshot(&self, ctx: &CallContext, want: &CreateSnapshot) -> Result<Snapshot> {
        match self.ensure_taken(ctx, want) {
            Err(Error::NotFound(gone)) => self.observe_taken_before(ctx, want)?.ok_or(Error::NotFound(gone)),
            taken => taken,
        }
    }

    /// The snapshot that an earlier call took of a volume that is gone: its own list went with the volume.
    fn observe_taken_before(&self, ctx: &CallContext, want: &CreateSnapshot) -> Result<Option<Snapshot>> {
        let (doing, name) = ("listing the snapshots", plan_name(&want.name));
        let fetch = |page| ctx.query(doing, Error::api(doing), |cloud| cloud.list_snapshots(page));
        let keep =
            |found: Snapshot| (found.name == name && found.source.as_ref() == Some(&want.source)).then_some(found);
        let id = |found: &Snapshot| found.id.to_string();
        let found = match every_entry(fetch, id, keep, || ctx.timed_out(doing, CHANGES)) {
            Ok(found) => found.into_iter().next(),
            // Without the scope nothing more can be told.
            Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::Forbidden => None,
            Err(err) => return Err(err),
        };
        found.map(|found| self.owner.check_snapshot_adoption(&found).map(|()| found)).transpose()
    }

    fn ensure_taken(&self, ctx: &CallContext, want: &CreateSnapshot) -> Result<Snapshot> {
        self.owner.check_marks("parameters", &want.tags, &[])?;
        self.check_region(ctx, want)?;
        let guard = self.hold(ctx, VolumeKey::Name(format!("{} (a snapshot)", want.name)))?;
        let name = plan_name(&want.name);
        let volume = &want.source;
        self.check_use_of(ctx, volume, "copied into a snapshot")?;
        let asked_tags = each_once(self.owner.only().into_iter().chain(&want.tags));
        let tags = each_once(self.owner.snapshot_tags().iter().chain(&asked_tags));
        let new = NewSnapshot { volume, name: &name, tags: &tags, asked_tags: &asked_tags, may_share_name: false };
        let check = |found: &Snapshot, is_open| self.check_found(ctx, volume, found, is_open);
        self.ensure_snapshot(&guard, ctx, new, |found, is_open| check(found, is_open).map(|()| true))
    }

    /// Sees that a snapshot can be where it is wanted: it stays in its volume's region.
    fn check_region(&self, ctx: &CallContext, want: &CreateSnapshot) -> Result<()> {
        if want.regions.is_empty() {
            return Ok(());
        }
        let there = match ctx.observe_volume(&want.source)?.region {
            Some(there) => there,
            None => self.droplet_identity.region()?,
        };
        if want.regions.iter().any(|region| region == there.as_str()) {
            return Ok(());
        }
        Err(Error::RegionUnavailable { asked: want.regions.join(", "), ours: there.to_string() })
    }

    /// Sees that a snapshot of the name that was asked for may be taken for the one that this call, or an earlier one, took.
    ///
    /// Without a mark it may when a try of this call may have taken it, as before that none had the name. And when the token
    /// can put no mark on any, if the volume is this plugin's: then nothing tells it from what a repetition has to find.
    fn check_found(&self, ctx: &CallContext, volume: &VolumeId, found: &Snapshot, is_open: bool) -> Result<()> {
        let Err(refusal) = self.owner.check_snapshot_adoption(found) else { return Ok(()) };
        if !self.owner.is_unmarked(found) || self.owner.check_snapshot_use(found, "adopted").is_err() {
            return Err(refusal);
        }
        let is_own =
            is_open || (self.lacks_tags(ctx)? && self.owner.check_adoption(&ctx.observe_volume(volume)?).is_ok());
        if is_own { Ok(()) } else { Err(refusal) }
    }

    /// Whether the token may make no tags. What is made to know that is the tag of every snapshot that this plugin takes.
    fn lacks_tags(&self, ctx: &CallContext) -> Result<bool> {
        let Some(mark) = self.owner.snapshot_mark() else { return Ok(false) };
        let doing = format!("making tag {}", mark.as_str());
        match ctx.query(&doing, Error::api(doing.clone()), |cloud| cloud.create_tag(&mark)) {
            Ok(()) => Ok(false),
            Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::Forbidden => Ok(true),
            Err(err) => Err(err),
        }
    }

    /// Deletes a snapshot. One that does not exist, or an id that cannot be one, is deleted already.
    ///
    /// # Errors
    /// [`Error::NotOurs`] when it is another owner's, [`Error::UsedOtherwise`] when DigitalOcean says that it is in use,
    /// [`Error::OtherAccount`], [`Error::TimedOut`], [`Error::Api`].
    pub fn delete_snapshot(&self, ctx: &CallContext, id: &str) -> Result<()> {
        let Ok(id) = SnapshotId::parse(id) else { return Ok(()) };
        let guard = self.hold(ctx, VolumeKey::Id(id.to_string()))?;
        let Some(snapshot) = ctx.observe_snapshot_if_there(&id)? else { return Ok(()) };
        self.owner.check_snapshot_deletion(&snapshot)?;
        ctx.ensure_awaited()?;
        self.ensure_snapshot_deleted(&guard, ctx, &id)
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TimedOut`], [`Error::Api`].
    pub fn find_snapshot(&self, ctx: &CallContext, id: &SnapshotId) -> Result<Snapshot> {
        let found = ctx.observe_snapshot_if_there(id)?;
        found.ok_or_else(|| Error::NotFound(Thing::Snapshot(id.to_string())))
    }

    /// Takes a snapshot, with its name locked. One of that name which is not `is_usable` is replaced; that is asked also with
    /// whether an earlier try of this call may have taken it.
    pub(super) fn ensure_snapshot(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        new: NewSnapshot<'_>,
        is_usable: impl Fn(&Snapshot, bool) -> Result<bool>,
    ) -> Result<Snapshot> {
        let NewSnapshot { volume, name, mut tags, asked_tags, may_share_name } = new;
        let doing = format!("taking snapshot {name} of volume {volume}");
        let mut progress = SnapshotProgress { pauses: ctx.backoff(), is_open: false, awaited: None };
        loop {
            let all = ctx.observe_snapshots_of(volume)?;
            match all.iter().find(|snapshot| snapshot.name == name) {
                Some(found) if is_usable(found, progress.is_open)? => {
                    // The list may show one that has been deleted.
                    if let Some(found) = ctx.look_at_snapshot(&found.id)? {
                        self.taken_names.enter(&found);
                        return Ok(found);
                    }
                    let why = format!("DigitalOcean lists {}, and does not find it by that id", found.id);
                    ctx.pause(progress.pauses.next_pause(), &doing, &why)?;
                    continue;
                }
                Some(found) => {
                    self.ensure_snapshot_deleted(guard, ctx, &found.id)?;
                    progress.awaited = None;
                }
                None if let Some(awaited) = progress.awaited.take() => {
                    if Instant::now() >= awaited.until {
                        return Err(progress.refusal(awaited.err, ctx, new, &all, doing));
                    }
                    ctx.pause(progress.pauses.next_pause(), &doing, &awaited.err)?;
                    progress.awaited = Some(awaited);
                    continue;
                }
                None if may_share_name => {}
                None => self.check_name(ctx, name, volume)?,
            }
            ctx.ensure_awaited()?;
            match ctx.cloud.create_snapshot(volume, name, tags) {
                Ok(taken) => {
                    tell_change(
                        Change::SnapshotCreated,
                        "took a snapshot",
                        About::default().with("snapshot", &taken.id).with("name", name).with("volume", volume),
                    );
                    self.taken_names.enter(&taken);
                    return ctx.observe_new_snapshot(&taken.id);
                }
                Err(err) if err.kind() == ApiErrorKind::Forbidden && tags.len() > asked_tags.len() => {
                    warn!(request = err.request_id(); "{doing}: trying without this driver's own tags, which the token may not put on: {err}");
                    tags = asked_tags;
                }
                Err(err) => progress.go_on_after(err, ctx, volume, &all, &doing)?,
            }
        }
    }

    pub(super) fn ensure_snapshot_deleted(
        &self,
        _guard: &VolumeGuard,
        ctx: &CallContext,
        id: &SnapshotId,
    ) -> Result<()> {
        let doing = format!("deleting snapshot {id}");
        let mut pauses = ctx.backoff();
        loop {
            let err = match ctx.cloud.delete_snapshot(id) {
                Ok(()) => {
                    tell_change(Change::SnapshotDeleted, "deleted a snapshot", About::default().with("snapshot", id));
                    self.taken_names.forget(id);
                    return Ok(());
                }
                Err(err) => err,
            };
            match plan_failure(&err) {
                ApiFailure::NotFound if ctx.observe_snapshot_if_there(id)?.is_none() => {
                    self.taken_names.forget(id);
                    return Ok(());
                }
                ApiFailure::NotFound | ApiFailure::Retryable | ApiFailure::OutcomeUnknown => {
                    warn!(request = err.request_id(); "{doing}: trying again: {err}");
                    ctx.pause(pause_after(&mut pauses, &err), &doing, &err)?;
                }
                ApiFailure::StateConflict => {
                    return Err(Error::UsedOtherwise(format!("snapshot {id} is in use: {err}")));
                }
                ApiFailure::OutOfTime => return Err(ctx.timed_out(&doing, err.to_string())),
                ApiFailure::Unrecognized | ApiFailure::LimitReached | ApiFailure::Permanent => {
                    return Err(Error::Api { doing, source: err });
                }
            }
        }
    }
}

impl CallContext {
    /// Reads a snapshot that has just been taken and may take a moment to be shown.
    fn observe_new_snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        let doing = format!("taking snapshot {id}");
        let (since, mut pauses) = (Instant::now(), self.backoff());
        loop {
            match self.look_at_snapshot(id)? {
                Some(snapshot) => return Ok(snapshot),
                None if since.elapsed() > self.patience.propagation() => {
                    return Err(self.timed_out(&doing, DOES_NOT_SHOW));
                }
                None => self.pause(pauses.next_pause(), &doing, &DOES_NOT_SHOW)?,
            }
        }
    }

    /// Reads all snapshots of a volume, of which there are few.
    pub(super) fn observe_snapshots_of(&self, volume: &VolumeId) -> Result<Vec<Snapshot>> {
        let doing = format!("reading the snapshots of volume {volume}");
        let fetch = |page| self.ask_of_volume(volume, &doing, |cloud| cloud.list_snapshots_of(volume, page));
        every_entry(fetch, |found: &Snapshot| found.id.to_string(), Some, || self.timed_out(&doing, CHANGES))
    }
}

/// The refusal of a name that another volume's snapshot has.
pub(super) fn taken(name: &str, volume: &VolumeId) -> Error {
    Error::Mismatch {
        thing: format!("snapshot {name}"),
        have: "another source volume".to_owned(),
        want: format!("source volume {volume}"),
    }
}

/// Tells the limit that was met; for the ten-minute rule, when the next snapshot can be taken.
fn limit(ctx: &CallContext, volume: &VolumeId, all: &[Snapshot], doing: String, err: ApiError) -> Error {
    let ApiErrorKind::SnapshotRateLimit { wait: interval } = err.kind() else {
        return Error::AccountLimit { doing, source: err };
    };
    let interval_s = interval.as_secs();
    let last = all.iter().filter_map(Snapshot::taken_at).max();
    let age_s = last.and_then(|last| ctx.cloud.now().duration_since(last).ok()).map(|age| age.as_secs());
    let (wait_s, bound) = plan_wait(interval_s, age_s);
    Error::SnapshotTooSoon { volume: volume.clone(), wait_s, bound, interval_s, source: err }
}

/// How long until the next snapshot can be taken, and how sure that is. The refusal stands whatever the clocks say: the
/// snapshot that it is about may be deleted, and the youngest that is left be older.
fn plan_wait(interval_s: u64, age_s: Option<u64>) -> (u64, &'static str) {
    match age_s.and_then(|age| interval_s.checked_sub(age)) {
        Some(left) => (left.max(1), ""),
        None => (interval_s, " at the latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_what_is_left_of_the_ten_minutes() {
        let table = [
            (Some(0), (600, "")),
            (Some(599), (1, "")),
            (Some(600), (1, "")),
            (Some(601), (600, " at the latest")),
            (None, (600, " at the latest")),
        ];
        for (age, want) in table {
            assert_eq!(plan_wait(600, age), want, "{age:?}");
        }
    }
}
