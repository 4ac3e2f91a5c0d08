//! Which names of snapshots are taken, as the account's list told a minute ago at most.
//!
//! Owns that table and the refusal of a name that another volume's snapshot has. The list takes a request for each 200
//! snapshots of the account, and every night somebody takes one of each volume, so it is not read for each of them. What
//! the table has is a hint, and is read again before it is believed; what it has not may have been taken by another process
//! within that minute, as it may between a look and the create in any case.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cloud::snapshot::Snapshot;
use crate::controller::Controller;
use crate::controller::context::CallContext;
use crate::controller::snapshot::taken;
use crate::controller::whole_list::{CHANGES, every_entry};
use crate::error::{Error, Result};
use crate::id::{SnapshotId, VolumeId};
use crate::sync::fifo_lock::FifoLocks;

/// For how long a list is good enough.
const FRESH: Duration = Duration::from_secs(60);
/// How many snapshots are remembered at most, with some 200 bytes each. In a larger account each call reads the list.
const MOST: usize = 10_000;

/// What has to be known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    id: SnapshotId,
    name: String,
    source: Option<VolumeId>,
}

impl Known {
    fn of(snapshot: Snapshot) -> Known {
        Known { id: snapshot.id, name: snapshot.name, source: snapshot.source }
    }

    /// Whether it has the name and is not of the volume.
    fn is_in_the_way(&self, name: &str, volume: &VolumeId) -> bool {
        self.name == name && self.source.as_ref() != Some(volume)
    }
}

/// The names that are taken, as far as they are remembered.
#[derive(Debug, Default)]
pub struct TakenNames {
    table: Mutex<Table>,
    /// One call reads the list, and those that need it meanwhile wait for what it learns.
    readers: FifoLocks<()>,
}

#[derive(Debug, Default)]
struct Table {
    listed: Option<List>,
    /// What this process has taken in the last minute, which the list may not show yet. Few, as each has cost requests.
    own: Vec<(Instant, Known)>,
}

/// What a reading of the list has brought.
#[derive(Debug)]
struct List {
    /// When the reading began.
    since: Instant,
    known: Vec<Known>,
}

impl Table {
    fn is_fresh(&self, now: Instant) -> bool {
        self.listed.as_ref().is_some_and(|list| now < list.since + FRESH)
    }

    fn in_the_way(&self, name: &str, volume: &VolumeId) -> Vec<SnapshotId> {
        let listed = self.listed.iter().flat_map(|list| &list.known);
        let all = self.own.iter().map(|(_, known)| known).chain(listed);
        let mut found = Vec::new();
        for known in all.filter(|known| known.is_in_the_way(name, volume)) {
            if !found.contains(&known.id) {
                found.push(known.id.clone());
            }
        }
        found
    }

    fn forget(&mut self, id: &SnapshotId) {
        self.own.retain(|(_, known)| known.id != *id);
        if let Some(list) = &mut self.listed {
            list.known.retain(|known| known.id != *id);
        }
    }

    fn enter(&mut self, snapshot: &Snapshot, now: Instant) {
        self.own.retain(|(entered, known)| now < *entered + FRESH && known.id != snapshot.id);
        self.own.push((now, Known::of(snapshot.clone())));
    }
}

impl TakenNames {
    /// Enters a snapshot that this process has taken, or found to be what it was asked for.
    pub(super) fn enter(&self, snapshot: &Snapshot) {
        self.table().enter(snapshot, Instant::now());
    }

    /// Forgets a snapshot that is not there any more.
    pub(super) fn forget(&self, id: &SnapshotId) {
        self.table().forget(id);
    }

    /// Snapshots of other volumes that have the name; none: that is not known.
    fn in_the_way(&self, name: &str, volume: &VolumeId) -> Option<Vec<SnapshotId>> {
        let table = self.table();
        table.is_fresh(Instant::now()).then(|| table.in_the_way(name, volume))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Controller {
    /// Refuses a name that a snapshot of another volume has, in whatever region. Another owner's is not in the way, so that
    /// two clusters may each have their `nightly`.
    pub(super) fn check_name(&self, ctx: &CallContext, name: &str, volume: &VolumeId) -> Result<()> {
        for id in self.names_in_the_way(ctx, name, volume)? {
            let found = ctx.observe_snapshot_if_there(&id)?;
            if found.as_ref().is_some_and(|found| self.owner.is_foreign_snapshot(found)) {
                continue;
            }
            match found.map(Known::of) {
                Some(known) if known.is_in_the_way(name, volume) => return Err(taken(name, volume)),
                Some(_) | None => self.taken_names.forget(&id),
            }
        }
        Ok(())
    }

    fn names_in_the_way(&self, ctx: &CallContext, name: &str, volume: &VolumeId) -> Result<Vec<SnapshotId>> {
        let names = &self.taken_names;
        if let Some(found) = names.in_the_way(name, volume) {
            return Ok(found);
        }
        let doing = format!("looking for another volume's snapshot {name}");
        let late = |_| ctx.timed_out(&doing, "another call is reading the list of all snapshots");
        let _place = names.readers.wait((), usize::MAX, ctx.deadline()).map_err(late)?;
        if let Some(found) = names.in_the_way(name, volume) {
            return Ok(found);
        }
        let since = Instant::now();
        let seen = Cell::new(0);
        let fetch = |page| ctx.query(&doing, Error::api(doing.clone()), |cloud| cloud.list_snapshots(page));
        let keep = |found: Snapshot| {
            seen.set(seen.get() + 1);
            let known = Known::of(found);
            (seen.get() <= MOST || known.is_in_the_way(name, volume)).then_some(known)
        };
        let id = |found: &Snapshot| found.id.to_string();
        let known = every_entry(fetch, id, keep, || ctx.timed_out(&doing, CHANGES))?;
        let mut table = names.table();
        table.listed = Some(List { since, known });
        let found = table.in_the_way(name, volume);
        if seen.get() > MOST {
            table.listed = None;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Gib;

    fn volume(digit: u32) -> VolumeId {
        VolumeId::parse(&format!("{digit:08x}-8f00-11f0-9a11-0a58ac14d1e2")).unwrap()
    }

    fn snapshot(digit: u32, name: &str, source: u32) -> Snapshot {
        Snapshot {
            id: SnapshotId::parse(&format!("{digit:08x}-8f02-11f0-9a11-0a58ac14d1e2")).unwrap(),
            name: name.to_owned(),
            source: Some(volume(source)),
            regions: Vec::new(),
            min_size: Gib(1),
            billed_gib: 0.0,
            created_at: String::new(),
            tags: Vec::new(),
        }
    }

    fn listed(since: Instant, snapshots: Vec<Snapshot>) -> Option<List> {
        Some(List { since, known: snapshots.into_iter().map(Known::of).collect() })
    }

    #[test]
    fn a_list_is_good_for_a_minute_from_the_begin_of_its_reading() {
        let now = Instant::now();
        let table = Table { listed: listed(now, vec![]), own: Vec::new() };
        for (after, want) in [(0, true), (59, true), (60, false), (3600, false)] {
            assert_eq!(table.is_fresh(now + Duration::from_secs(after)), want, "{after} s");
        }
        assert!(!Table::default().is_fresh(now));
    }

    #[test]
    fn a_name_is_taken_by_what_was_listed_or_entered_and_not_forgotten_and_is_of_another_volume() {
        let now = Instant::now();
        let (old, new) = (snapshot(1, "nightly", 1), snapshot(2, "weekly", 1));
        let mut table = Table { listed: listed(now, vec![old.clone()]), own: Vec::new() };
        table.enter(&new, now);
        for (name, of, want) in [
            ("nightly", 2, vec![old.id.clone()]),
            ("weekly", 2, vec![new.id.clone()]),
            ("nightly", 1, vec![]),
            ("weekly", 1, vec![]),
            ("monthly", 2, vec![]),
        ] {
            assert_eq!(table.in_the_way(name, &volume(of)), want, "{name} of {of}");
        }
        // The next list does not lose what it may not show yet, and what it shows too is one snapshot.
        table.listed = listed(now, vec![]);
        assert_eq!(table.in_the_way("weekly", &volume(2)), vec![new.id.clone()]);
        table.listed = listed(now, vec![new.clone()]);
        assert_eq!(table.in_the_way("weekly", &volume(2)), vec![new.id.clone()]);
        table.forget(&new.id);
        assert_eq!(table.in_the_way("weekly", &volume(2)), []);
    }

    #[test]
    fn what_was_entered_stays_for_as_long_as_a_list_that_does_not_show_it() {
        let now = Instant::now();
        let mut table = Table::default();
        let later = |seconds| now + Duration::from_secs(seconds);
        for (number, after) in [(1, 0), (1, 1), (2, 30), (3, 61)] {
            table.enter(&snapshot(number, "nightly", number), later(after));
        }
        let kept: Vec<_> = table.own.iter().map(|(_, known)| known.source.clone()).collect();
        assert_eq!(kept, [Some(volume(2)), Some(volume(3))]);
    }
}
