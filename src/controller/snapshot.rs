//! Snapshots: taken once for each name, read, and deleted.
//!
//! Owns the comparison of a snapshot that is there with the one that is asked for. Before one is taken, the snapshots of
//! its volume are read, as a lost reply must not lead to a second one. That two volumes do not have snapshots of one name
//! is seen to in `taken_names`, as it is not documented that DigitalOcean itself keeps the names unique.

use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};

use super::Controller;
use super::name::plan_name;
use super::time::{CallTime, DOES_NOT_SHOW, Pauses};
use super::verdict::{Verdict, plan_verdict};
use crate::cloud::error::{ApiError, ApiErrorKind};
use crate::cloud::page::{Listed, Page};
use crate::cloud::snapshot::Snapshot;
use crate::cloud::tag::Tag;
use crate::error::{Error, Result, Thing};
use crate::id::{SnapshotId, VolumeId};
use crate::lock::{VolumeGuard, VolumeKey};
use crate::request::snapshot::CreateSnapshot;

/// How many of a volume's snapshots DigitalOcean keeps at most. Source: product documentation, "Snapshots", limits.
const MOST_OF_A_VOLUME: usize = 25;

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
struct Course {
    pauses: Pauses,
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

impl Course {
    /// Takes notice of a failed try, and waits before what comes next.
    fn go_on_after(
        &mut self,
        err: ApiError,
        time: &CallTime,
        volume: &VolumeId,
        all: &[Snapshot],
        doing: &str,
    ) -> Result<()> {
        // A pause as long as the ten-minute rule demands is no pause of a call.
        let pause = self.pauses.next_pause();
        match plan_verdict(&err) {
            Verdict::Busy => time.pause(err.wait().map_or(pause, |asked| asked.max(pause)), doing, &err),
            Verdict::Unclear => {
                warn!("snapshot unclear, reading the volume's snapshots doing={doing}: {err}");
                self.is_open = true;
                time.pause(pause, doing, &err)
            }
            Verdict::Conflict => self.look_for_it(time, pause, err, doing),
            Verdict::Limit if self.is_open && is_too_soon(&err) => self.look_for_it(time, pause, err, doing),
            // Whether the volume is gone, the next look at its snapshots tells.
            Verdict::Missing => time.pause(pause, doing, &err),
            Verdict::OutOfTime => Err(time.out_of_time(doing, err.to_string())),
            Verdict::Limit => Err(limit(volume, all, doing.to_owned(), err)),
            Verdict::Odd if all.len() >= MOST_OF_A_VOLUME => {
                Err(Error::AccountLimit { doing: doing.to_owned(), source: err })
            }
            Verdict::Odd | Verdict::Refused => Err(Error::Api { doing: doing.to_owned(), source: err }),
        }
    }

    /// Looks once more, or, when an earlier try may have taken it, for as long as it may take to be shown.
    fn look_for_it(&mut self, time: &CallTime, pause: Duration, err: ApiError, doing: &str) -> Result<()> {
        let shown = if self.is_open { time.patience.shown() } else { Duration::ZERO };
        let awaited = self.awaited.insert(Awaited { err, until: Instant::now() + shown });
        time.pause(pause, doing, &awaited.err)
    }

    /// What to answer when the snapshot is not among its volume's after all, for which this was the refusal.
    fn refusal(&self, err: ApiError, time: &CallTime, new: NewSnapshot<'_>, all: &[Snapshot], doing: String) -> Error {
        if is_too_soon(&err) {
            limit(new.volume, all, doing, err)
        } else if self.is_open {
            time.out_of_time(&doing, format!("{err}; it may have been taken, and does not show"))
        } else {
            taken(new.name, new.volume)
        }
    }
}

/// Whether it is the ten-minute rule.
fn is_too_soon(err: &ApiError) -> bool {
    matches!(err.kind(), ApiErrorKind::SnapshotRateLimit { .. })
}

impl Controller {
    /// Takes a snapshot of a volume, or finds the one that an earlier call with this name took.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such volume, [`Error::Mismatch`] when another volume has a snapshot of that
    /// name, [`Error::NotAdopted`] when the volume has one that may be somebody else's, [`Error::SnapshotTooSoon`],
    /// [`Error::AccountLimit`], [`Error::OutOfTime`].
    pub fn create_snapshot(&self, time: &CallTime, want: &CreateSnapshot) -> Result<Snapshot> {
        let guard = self.hold(time, VolumeKey::Name(format!("{} (a snapshot)", want.name)))?;
        let name = plan_name(&want.name);
        let mut tags = self.owner.snapshot_tags();
        let is_new = |tag: &&Tag| !self.owner.snapshot_tags().iter().any(|own| own.is(tag.as_str()));
        tags.extend(want.tags.iter().filter(is_new).cloned());
        let (volume, asked_tags) = (&want.source, want.tags.as_slice());
        let new = NewSnapshot { volume, name: &name, tags: &tags, asked_tags, may_share_name: false };
        let check = |found: &Snapshot, is_open| self.check_found(time, volume, found, is_open);
        self.ensure_snapshot(&guard, time, new, |found, is_open| check(found, is_open).map(|()| true))
    }

    /// Sees that a snapshot of the name that was asked for may be taken for the one that this call, or an earlier one, took.
    ///
    /// Without a mark it may when a try of this call may have taken it, as before that none had the name. And when the token
    /// can put no mark on any, if the volume is this plugin's: then nothing tells it from what a repetition has to find.
    fn check_found(&self, time: &CallTime, volume: &VolumeId, found: &Snapshot, is_open: bool) -> Result<()> {
        let Err(refusal) = self.owner.check_snapshot_adoption(found) else { return Ok(()) };
        if !self.owner.is_unmarked(found) {
            return Err(refusal);
        }
        let is_own =
            is_open || (self.lacks_tags(time)? && self.owner.check_adoption(&time.observe_volume(volume)?).is_ok());
        if is_own { Ok(()) } else { Err(refusal) }
    }

    /// Whether the token may make no tags. What is made to know that is the tag of every snapshot that this plugin takes.
    fn lacks_tags(&self, time: &CallTime) -> Result<bool> {
        let Some(mark) = self.owner.snapshot_mark() else { return Ok(false) };
        let doing = format!("making tag {}", mark.as_str());
        match time.ask(&doing, Error::api(doing.clone()), |cloud| cloud.create_tag(&mark)) {
            Ok(()) => Ok(false),
            Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::Forbidden => Ok(true),
            Err(err) => Err(err),
        }
    }

    /// Deletes a snapshot. One that does not exist, or an id that cannot be one, is deleted already.
    ///
    /// # Errors
    /// [`Error::NotOurs`] when it is another owner's, [`Error::Precondition`] when DigitalOcean says that it is in use,
    /// [`Error::OtherAccount`], [`Error::OutOfTime`], [`Error::Api`].
    pub fn delete_snapshot(&self, time: &CallTime, id: &str) -> Result<()> {
        let Ok(id) = SnapshotId::parse(id) else { return Ok(()) };
        let guard = self.hold(time, VolumeKey::Id(id.to_string()))?;
        let Some(snapshot) = time.observe_snapshot_if_there(&id)? else { return Ok(()) };
        self.owner.check_snapshot_deletion(&snapshot)?;
        self.ensure_snapshot_deleted(&guard, time, &id)
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OutOfTime`], [`Error::Api`].
    pub fn find_snapshot(&self, time: &CallTime, id: &SnapshotId) -> Result<Snapshot> {
        let found = time.observe_snapshot_if_there(id)?;
        found.ok_or_else(|| Error::NotFound(Thing::Snapshot(id.to_string())))
    }

    /// Takes a snapshot, with its name locked. One of that name which is not `is_usable` is replaced; that is asked also with
    /// whether an earlier try of this call may have taken it.
    pub(super) fn ensure_snapshot(
        &self,
        guard: &VolumeGuard,
        time: &CallTime,
        new: NewSnapshot<'_>,
        is_usable: impl Fn(&Snapshot, bool) -> Result<bool>,
    ) -> Result<Snapshot> {
        let NewSnapshot { volume, name, mut tags, asked_tags, may_share_name } = new;
        let doing = format!("taking snapshot {name} of volume {volume}");
        let mut course = Course { pauses: time.pauses(), is_open: false, awaited: None };
        loop {
            let all = time.observe_snapshots_of(volume)?;
            match all.iter().find(|snapshot| snapshot.name == name) {
                Some(found) if is_usable(found, course.is_open)? => {
                    self.taken_names.enter(found);
                    return Ok(found.clone());
                }
                Some(found) => {
                    self.ensure_snapshot_deleted(guard, time, &found.id)?;
                    course.awaited = None;
                }
                None if let Some(awaited) = course.awaited.take() => {
                    if Instant::now() >= awaited.until {
                        return Err(course.refusal(awaited.err, time, new, &all, doing));
                    }
                    time.pause(course.pauses.next_pause(), &doing, &awaited.err)?;
                    course.awaited = Some(awaited);
                    continue;
                }
                None if may_share_name => {}
                None => self.check_name(time, name, volume)?,
            }
            match time.cloud.create_snapshot(volume, name, tags) {
                Ok(taken) => {
                    info!("took snapshot={} name={name} volume={volume}", taken.id);
                    self.taken_names.enter(&taken);
                    return time.observe_new_snapshot(&taken.id);
                }
                Err(err) if err.kind() == ApiErrorKind::Forbidden && tags.len() > asked_tags.len() => {
                    warn!("trying without this driver's own tags, which the token may not put on doing={doing}: {err}");
                    tags = asked_tags;
                }
                Err(err) => course.go_on_after(err, time, volume, &all, &doing)?,
            }
        }
    }

    pub(super) fn ensure_snapshot_deleted(&self, _guard: &VolumeGuard, time: &CallTime, id: &SnapshotId) -> Result<()> {
        let doing = format!("deleting snapshot {id}");
        let mut pauses = time.pauses();
        loop {
            let err = match time.cloud.delete_snapshot(id) {
                Ok(()) => {
                    info!("deleted snapshot={id}");
                    self.taken_names.forget(id);
                    return Ok(());
                }
                Err(err) => err,
            };
            match plan_verdict(&err) {
                Verdict::Missing if time.observe_snapshot_if_there(id)?.is_none() => {
                    self.taken_names.forget(id);
                    return Ok(());
                }
                Verdict::Missing | Verdict::Busy | Verdict::Unclear => {
                    warn!("snapshot not deleted, trying again doing={doing}: {err}");
                    time.pause(pauses.after(&err), &doing, &err)?;
                }
                Verdict::Conflict => return Err(Error::Precondition(format!("snapshot {id} is in use: {err}"))),
                Verdict::OutOfTime => return Err(time.out_of_time(&doing, err.to_string())),
                Verdict::Odd | Verdict::Limit | Verdict::Refused => return Err(Error::Api { doing, source: err }),
            }
        }
    }
}

impl CallTime {
    /// Reads a snapshot that has just been taken and may take a moment to be shown.
    fn observe_new_snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        let doing = format!("taking snapshot {id}");
        let (since, mut pauses) = (Instant::now(), self.pauses());
        loop {
            match self.look_at_snapshot(id)? {
                Some(snapshot) => return Ok(snapshot),
                None if since.elapsed() > self.patience.shown() => {
                    return Err(self.out_of_time(&doing, DOES_NOT_SHOW));
                }
                None => self.pause(pauses.next_pause(), &doing, &DOES_NOT_SHOW)?,
            }
        }
    }

    /// Reads all snapshots of a volume, of which there are few.
    pub(super) fn observe_snapshots_of(&self, volume: &VolumeId) -> Result<Vec<Snapshot>> {
        let doing = format!("reading the snapshots of volume {volume}");
        every_page(|page| self.ask_of_volume(volume, &doing, |cloud| cloud.list_snapshots_of(volume, page)), |_| true)
    }
}

/// Reads a list to its end and keeps what is wanted of it.
pub(super) fn every_page<T, E>(
    mut fetch: impl FnMut(Page) -> Result<Listed<T>, E>,
    is_wanted: impl Fn(&T) -> bool,
) -> Result<Vec<T>, E> {
    let mut all = Vec::new();
    let mut at = Some(Page::first());
    while let Some(page) = at {
        let listed = fetch(page)?;
        all.extend(listed.items.into_iter().filter(&is_wanted));
        at = listed.next;
    }
    Ok(all)
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
fn limit(volume: &VolumeId, all: &[Snapshot], doing: String, err: ApiError) -> Error {
    let ApiErrorKind::SnapshotRateLimit { wait: interval } = err.kind() else {
        return Error::AccountLimit { doing, source: err };
    };
    let interval_s = interval.as_secs();
    let last = all.iter().filter_map(Snapshot::taken_at).max();
    let age_s = last.and_then(|last| SystemTime::now().duration_since(last).ok()).map(|age| age.as_secs());
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
