//! Snapshots that are taken again and again, of which some are kept and the others deleted.
//!
//! Owns the mark of these snapshots, and which of them are not needed any more. Nothing is deleted that has no mark, that
//! is of another volume, or whose age is not known; and nothing before the new one is seen, unless DigitalOcean keeps no
//! more of the volume.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::Offset;

use crate::cloud::Cloud;
use crate::cloud::snapshot::Snapshot;
use crate::cloud::tag::Tag;
use crate::cloud::volume::Volume;
use crate::config::keep::{Keep, Period};
use crate::controller::Controller;
use crate::controller::context::CallContext;
use crate::controller::description::is_made_for;
use crate::controller::naming::plan_name;
use crate::controller::snapshot::MOST_OF_A_VOLUME;
use crate::controller::whole_list::{CHANGES, every_entry};
use crate::error::{Error, Result, Thing};
use crate::id::{VolumeId, VolumeName};
use crate::ops::scheduled_snapshots::NewestScheduled;
use crate::request::snapshot::CreateSnapshot;

/// The tag of these snapshots. Taken off one, that one stays.
const MARK: &str = "do-csi-scheduled";
/// DigitalOcean takes one snapshot of a volume in this time. Source: product documentation, "Snapshots", limits.
const INTERVAL: Duration = Duration::from_secs(600);
/// How much of a volume's name is in a snapshot's, so that the time fits behind it.
const NAME_ROOM: usize = 46;

/// What happens to one of the snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is kept as the newest of these periods.
    Kept(Vec<Period>),
    /// It stays, as nobody knows how old it is.
    OfUnknownAge,
    /// Nothing needs it any more.
    Unneeded,
}

/// What is done about the next snapshot.
#[derive(Debug, Clone, PartialEq)]
pub enum TakePlan {
    /// It is taken.
    Take,
    /// One was taken less than ten minutes ago: this is a repetition.
    TakenBefore(String),
    /// A place would have to be made for it, and DigitalOcean may refuse it: of this one nobody can say that it is ten minutes
    /// old, whoever took it.
    TooSoon(String),
    /// It is taken after this one, which nothing needs any more, is deleted: DigitalOcean keeps no more of the volume.
    MakeRoom(Box<Snapshot>),
    /// It cannot be taken: the volume has as many as DigitalOcean keeps, and all of these are needed or are not ours.
    Full {
        /// How many of them are.
        ours: usize,
    },
}

/// Decides what happens to snapshots that were taken at these times, in any order. Pure.
///
/// For each period, the newest of each of the latest so many spans that have one is kept; whoever is the newest of a
/// day and of a week counts for both.
#[must_use]
fn plan_fates(times: &[Option<Timestamp>], keep: &Keep) -> Vec<Fate> {
    let mut fates: Vec<Fate> =
        times.iter().map(|at| if at.is_some() { Fate::Unneeded } else { Fate::OfUnknownAge }).collect();
    let mut newest_first: Vec<(Timestamp, usize)> =
        times.iter().enumerate().filter_map(|(index, at)| at.map(|at| (at, index))).collect();
    newest_first.sort_by(|one, other| other.cmp(one));
    for (period, count) in keep.rules() {
        let mut spans: Vec<Span> = Vec::new();
        for (at, index) in &newest_first {
            let span = Span::of(*at, *period);
            if spans.len() == *count || spans.contains(&span) {
                continue;
            }
            spans.push(span);
            if let Some(fate) = fates.get_mut(*index) {
                match fate {
                    Fate::Kept(periods) => periods.push(*period),
                    Fate::OfUnknownAge | Fate::Unneeded => *fate = Fate::Kept(vec![*period]),
                }
            }
        }
    }
    fates
}

/// One hour, day, week or month, by its first day and hour.
#[derive(Debug, PartialEq, Eq)]
struct Span(Date, i8);

impl Span {
    fn of(at: Timestamp, period: Period) -> Span {
        let time = Offset::UTC.to_datetime(at);
        let date = time.date();
        match period {
            Period::Hourly => Span(date, time.hour()),
            Period::Daily => Span(date, 0),
            // Where the calendar ends, a week begins late.
            Period::Weekly => {
                let days = i64::from(date.weekday().to_monday_zero_offset());
                Span(date.checked_sub(jiff::Span::new().days(days)).unwrap_or(date), 0)
            }
            Period::Monthly => Span(date.first_of_month(), 0),
        }
    }
}

/// Decides about the next snapshot of a volume that has all of these. Pure.
#[must_use]
fn plan_take(all: &[Snapshot], volume: &VolumeId, keep: &Keep, now: SystemTime) -> TakePlan {
    let ours: Vec<&Snapshot> = all.iter().filter(|snapshot| is_marked(snapshot, volume)).collect();
    let age = |snapshot: &Snapshot| snapshot.taken_at().and_then(|at| now.duration_since(at).ok());
    let recent = ours.iter().find(|snapshot| age(snapshot).is_some_and(|age| age < INTERVAL));
    if let Some(recent) = recent {
        return TakePlan::TakenBefore(recent.name.clone());
    }
    if all.len() < MOST_OF_A_VOLUME {
        return TakePlan::Take;
    }
    // With the next one counted.
    let times = ours.iter().map(|snapshot| taken_at(snapshot)).chain([plan_next_time(all, now)]);
    let fates = plan_fates(&times.collect::<Vec<_>>(), keep);
    let unneeded = ours.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Unneeded).map(|(snapshot, _)| *snapshot);
    let Some(oldest) = unneeded.min_by_key(|snapshot| taken_at(snapshot)) else {
        return TakePlan::Full { ours: ours.len() };
    };
    match all.iter().find(|snapshot| age(snapshot).is_none_or(|age| age < INTERVAL)) {
        Some(recent) => TakePlan::TooSoon(recent.name.clone()),
        None => TakePlan::MakeRoom(Box::new(oldest.clone())),
    }
}

/// When the next snapshot is taken: it is the newest, whatever this machine's clock says.
fn plan_next_time(all: &[Snapshot], now: SystemTime) -> Option<Timestamp> {
    all.iter().filter_map(taken_at).max().max(Timestamp::try_from(now).ok())
}

/// Those of the volume with the mark, the newest first, with what happens to each once there is one of that time too.
fn with_fates(all: Vec<Snapshot>, volume: &Volume, keep: &Keep, next: Option<Timestamp>) -> Vec<(Snapshot, Fate)> {
    let mut ours: Vec<Snapshot> = all.into_iter().filter(|snapshot| is_marked(snapshot, &volume.id)).collect();
    ours.sort_by_key(|snapshot| std::cmp::Reverse(taken_at(snapshot)));
    let times: Vec<Option<Timestamp>> = ours.iter().map(taken_at).chain(next.map(Some)).collect();
    let fates = plan_fates(&times, keep);
    ours.into_iter().zip(fates).collect()
}

fn taken_at(snapshot: &Snapshot) -> Option<Timestamp> {
    snapshot.taken_at().and_then(|at| Timestamp::try_from(at).ok())
}

/// Whether it is one of these snapshots of that volume.
fn is_marked(snapshot: &Snapshot, volume: &VolumeId) -> bool {
    snapshot.source.as_ref() == Some(volume) && has_mark(snapshot)
}

fn has_mark(snapshot: &Snapshot) -> bool {
    snapshot.tags.iter().any(|tag| tag.eq_ignore_ascii_case(MARK))
}

/// The name of a snapshot that is taken now: the volume's, and the time in UTC.
fn plan_snapshot_name(volume: &str, now: SystemTime) -> String {
    let time = Timestamp::try_from(now).map(|now| now.strftime("%Y%m%dt%H%M%Sz").to_string()).unwrap_or_default();
    let name: String = volume.chars().take(NAME_ROOM).collect();
    format!("{}-{time}", name.trim_end_matches('-'))
}

impl Controller {
    /// The volume that somebody calls so: by its id, or by its name in this region, DigitalOcean's or the orchestrator's.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TimedOut`], [`Error::Api`].
    pub fn find_called(&self, called: &str) -> Result<Volume> {
        let ctx = self.context_of_call(Instant::now(), Arc::default());
        let no_such_volume = || Error::NotFound(Thing::VolumeNamed(called.to_owned()));
        if let Ok(id) = VolumeId::parse(called) {
            return ctx.observe_volume(&id);
        }
        let region = self.droplet_identity.region()?;
        let find = |name: &str| -> Result<Option<Volume>> {
            let Ok(name) = VolumeName::parse(name) else { return Ok(None) };
            let doing = format!("looking for volume {name} in {region}");
            ctx.query(&doing, Error::api(doing.clone()), |cloud| cloud.find_volume(&name, &region))
        };
        if let Some(found) = find(called)? {
            return Ok(found);
        }
        let made = find(&plan_name(called))?.filter(|found| is_made_for(called, &found.name, &found.description));
        made.ok_or_else(no_such_volume)
    }

    /// What is to be done about the next snapshot of a volume, and what happens to those before it when it is there.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TimedOut`], [`Error::Api`].
    pub fn plan_next_scheduled(&self, volume: &Volume, keep: &Keep) -> Result<(TakePlan, Vec<(Snapshot, Fate)>)> {
        let all = self.observe_scheduled(volume)?;
        let take = plan_take(&all, &volume.id, keep, self.cloud.now());
        let next = match take {
            TakePlan::Take | TakePlan::MakeRoom(_) => plan_next_time(&all, self.cloud.now()),
            TakePlan::TakenBefore(_) | TakePlan::TooSoon(_) | TakePlan::Full { .. } => None,
        };
        Ok((take, with_fates(all, volume, keep, next)))
    }

    /// The snapshots of a volume that have the mark, the newest first, with what happens to each.
    ///
    /// # Errors
    /// As [`Controller::plan_next_scheduled`].
    pub fn plan_scheduled(&self, volume: &Volume, keep: &Keep) -> Result<Vec<(Snapshot, Fate)>> {
        Ok(with_fates(self.observe_scheduled(volume)?, volume, keep, None))
    }

    fn observe_scheduled(&self, volume: &Volume) -> Result<Vec<Snapshot>> {
        self.context_of_call(Instant::now(), Arc::default()).observe_snapshots_of(&volume.id)
    }

    /// Takes a snapshot with the mark, and sees it.
    ///
    /// # Errors
    /// As [`Controller::create_snapshot`], and [`Error::Api`] when the token may put no mark on: without it nothing would ever
    /// delete the snapshot.
    pub fn take_scheduled(&self, volume: &Volume) -> Result<Snapshot> {
        let ctx = self.context_of_call(Instant::now(), Arc::default());
        let want = CreateSnapshot {
            name: plan_snapshot_name(volume.name.as_str(), SystemTime::now()),
            source: volume.id.clone(),
            tags: vec![Tag::parse(MARK).map_err(|bad| Error::Bug(bad.to_string()))?],
            regions: Vec::new(),
        };
        self.create_snapshot(&ctx, &want)
    }

    /// Deletes a snapshot that has the mark still.
    ///
    /// # Errors
    /// As [`Controller::delete_snapshot`]; [`Error::NotOurs`] when the mark was taken off.
    pub fn delete_scheduled(&self, snapshot: &Snapshot) -> Result<()> {
        let ctx = self.context_of_call(Instant::now(), Arc::default());
        match ctx.observe_snapshot_if_there(&snapshot.id)? {
            None => Ok(()),
            Some(found) if has_mark(&found) => self.delete_snapshot(&ctx, snapshot.id.as_str()),
            Some(found) => Err(Error::NotOurs {
                thing: format!("snapshot {} ({})", found.name, found.id),
                done: "deleted".to_owned(),
                why: format!("the tag {MARK} was taken off it"),
                cure: "it stays until somebody deletes it".to_owned(),
            }),
        }
    }

    /// The newest snapshot with the mark of each volume of the region that has one; `None`: the token may not read snapshots.
    /// One request for each 200 snapshots and each 200 volumes.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Api`].
    pub fn list_newest_scheduled(&self, ctx: &CallContext) -> Result<Vec<NewestScheduled>> {
        let doing = "listing the snapshots";
        let fetch = |page| ctx.query(doing, Error::api(doing), |cloud: &Cloud| cloud.list_snapshots(page));
        let id = |snapshot: &Snapshot| snapshot.id.to_string();
        let keep = |snapshot| Some(snapshot).filter(has_mark);
        let marked = every_entry(fetch, id, keep, || ctx.timed_out(doing, CHANGES))?;
        if marked.is_empty() {
            return Ok(Vec::new());
        }
        let region = self.droplet_identity.region()?;
        let doing = "listing the volumes";
        let fetch = |page| ctx.query(doing, Error::api(doing), |cloud: &Cloud| cloud.list_volumes(Some(&region), page));
        let id = |volume: &Volume| volume.id.to_string();
        let volumes = every_entry(fetch, id, Some, || ctx.timed_out(doing, CHANGES))?;
        let newest = |volume: Volume| {
            let taken_at =
                marked.iter().filter(|one| is_marked(one, &volume.id)).filter_map(Snapshot::taken_at).max()?;
            Some(NewestScheduled { volume: volume.id, name: volume.name.to_string(), taken_at })
        };
        Ok(volumes.into_iter().filter_map(newest).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SnapshotId;
    use crate::size::Gib;

    const VOLUME: &str = "506f78a4-8f00-11f0-9a11-0a58ac14d1e2";

    fn at(text: &str) -> Timestamp {
        format!("{text}:00Z").parse().unwrap()
    }

    fn keep(text: &str) -> Keep {
        text.parse().unwrap()
    }

    /// When a snapshot was taken, and for which periods it is kept; none: it is not.
    type Row = (&'static str, &'static [Period]);

    #[test]
    fn the_newest_of_each_of_the_latest_spans_is_kept_and_the_rest_is_not_needed() {
        use Period::{Daily, Hourly, Monthly, Weekly};
        // 2026-11-23 is a Monday; 2027-01-01 is a Friday in the week that begins in December.
        let table: &[(&str, &[Row])] = &[
            ("daily=2", &[("2026-11-28T03:00", &[Daily]), ("2026-11-27T03:00", &[Daily]), ("2026-11-26T03:00", &[])]),
            ("daily=1", &[("2026-11-28T03:00", &[]), ("2026-11-28T04:00", &[Daily]), ("2026-11-28T00:00", &[])]),
            // A day without one does not count.
            ("daily=2", &[("2026-11-28T03:00", &[Daily]), ("2026-10-01T03:00", &[Daily])]),
            (
                "daily=1,weekly=2",
                &[
                    ("2026-11-28T03:00", &[Daily, Weekly]),
                    ("2026-11-23T03:00", &[]),
                    ("2026-11-22T23:59", &[Weekly]),
                    ("2026-11-16T00:00", &[]),
                    ("2026-11-15T23:59", &[]),
                ],
            ),
            (
                "weekly=2",
                &[("2027-01-01T00:00", &[Weekly]), ("2026-12-28T00:00", &[]), ("2026-12-27T00:00", &[Weekly])],
            ),
            ("monthly=1", &[("2026-11-30T23:59", &[]), ("2026-12-01T00:00", &[Monthly])]),
            (
                "hourly=2",
                &[("2026-11-28T03:59", &[Hourly]), ("2026-11-28T03:00", &[]), ("2026-11-27T03:00", &[Hourly])],
            ),
        ];
        for (rule, rows) in table {
            let times: Vec<_> = rows.iter().map(|(text, _)| Some(at(text))).collect();
            let want: Vec<Fate> = rows
                .iter()
                .map(|(_, periods)| if periods.is_empty() { Fate::Unneeded } else { Fate::Kept(periods.to_vec()) })
                .collect();
            assert_eq!(plan_fates(&times, &keep(rule)), want, "{rule}");
        }
        let unknown = [None, Some(at("2026-11-28T03:00")), None];
        assert_eq!(
            plan_fates(&unknown, &keep("daily=1")),
            [Fate::OfUnknownAge, Fate::Kept(vec![Daily]), Fate::OfUnknownAge]
        );
        assert_eq!(plan_fates(&[], &keep("daily=1")), []);
    }

    #[test]
    fn the_newest_is_kept_by_every_rule() {
        let times = [Some(at("2026-11-28T03:00")), Some(at("2026-11-28T02:00"))];
        for rule in ["hourly=1", "daily=1", "weekly=1", "monthly=1"] {
            assert!(matches!(plan_fates(&times, &keep(rule))[0], Fate::Kept(_)), "{rule}");
        }
    }

    fn snapshot(number: usize, created_at: &str, is_ours: bool) -> Snapshot {
        Snapshot {
            id: SnapshotId::parse(&format!("00000000-8f00-11f0-9a11-{number:012}")).unwrap(),
            name: format!("s{number}"),
            source: VolumeId::parse(VOLUME).ok(),
            regions: Vec::new(),
            min_size: Gib(1),
            billed_gib: 0.0,
            created_at: created_at.to_owned(),
            tags: if is_ours { vec![MARK.to_owned()] } else { vec!["nightly".to_owned()] },
        }
    }

    #[test]
    fn the_next_one_is_taken_when_there_is_a_place_and_none_was_taken_just_now() {
        let volume = VolumeId::parse(VOLUME).unwrap();
        let now = SystemTime::from(at("2026-11-28T04:00"));
        let many = |count: usize, is_ours: bool| -> Vec<Snapshot> {
            (0..count)
                .map(|number| snapshot(number, &format!("2026-11-{:02}T03:00:00Z", number + 1), is_ours))
                .collect()
        };
        let plan = |all: &[Snapshot], rule: &str| plan_take(all, &volume, &keep(rule), now);
        assert_eq!(plan(&[], "daily=1"), TakePlan::Take);
        assert_eq!(plan(&[snapshot(1, "2026-11-28T03:50:00Z", true)], "daily=1"), TakePlan::Take);
        let recent = [snapshot(1, "2026-11-28T03:50:01Z", true)];
        assert_eq!(plan(&recent, "daily=1"), TakePlan::TakenBefore("s1".to_owned()));
        // What others took is no repetition; whether it is too soon, DigitalOcean says.
        assert_eq!(plan(&[snapshot(1, "2026-11-28T03:59:00Z", false)], "daily=1"), TakePlan::Take);
        assert_eq!(plan(&many(24, true), "daily=24"), TakePlan::Take);
        let full = many(25, true);
        assert_eq!(plan(&full, "daily=24"), TakePlan::MakeRoom(Box::new(full[0].clone())));
        assert_eq!(plan(&many(25, false), "daily=1"), TakePlan::Full { ours: 0 });
        let mut mixed = many(24, false);
        mixed.push(snapshot(24, "2026-11-27T03:00:00Z", true));
        assert_eq!(plan(&mixed, "daily=2"), TakePlan::Full { ours: 1 });
        assert!(matches!(plan(&mixed, "daily=1"), TakePlan::MakeRoom(_)));
        // No place is made for one that DigitalOcean refuses for what others took.
        let full_with = |created_at: &str| [&many(24, true)[..], &[snapshot(24, created_at, false)]].concat();
        for too_soon in ["2026-11-28T03:50:01Z", "2026-11-28T04:03:00Z", "just now"] {
            assert_eq!(plan(&full_with(too_soon), "daily=1"), TakePlan::TooSoon("s24".to_owned()), "{too_soon}");
        }
        assert!(matches!(plan(&full_with("2026-11-28T03:50:00Z"), "daily=1"), TakePlan::MakeRoom(_)));
        // One whose age is not known is not deleted, nor one of another volume.
        *mixed.last_mut().unwrap() = snapshot(24, "yesterday", true);
        assert_eq!(plan(&mixed, "daily=1"), TakePlan::Full { ours: 1 });
        *mixed.last_mut().unwrap() = Snapshot { source: None, ..snapshot(24, "2026-11-27T03:00:00Z", true) };
        assert_eq!(plan(&mixed, "daily=1"), TakePlan::Full { ours: 0 });
    }

    #[test]
    fn a_snapshot_is_called_after_its_volume_and_the_time() {
        let now = SystemTime::from(at("2026-11-28T04:05"));
        assert_eq!(plan_snapshot_name("blog", now), "blog-20261128t040500z");
        let long = plan_snapshot_name(&"x".repeat(64), now);
        assert!(long.len() <= 64 && long.ends_with("x-20261128t040500z"), "{long}");
    }
}
