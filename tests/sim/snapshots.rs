//! Rules for snapshots (contract 9). A snapshot outlives its volume.

use super::clock::Moment;
use super::refusal::Refusal;
use super::state::{Cloud, Effect, Event, Snapshot};
use super::tags::is_tag;

impl Cloud {
    /// Takes a snapshot and gives its id.
    ///
    /// # Errors
    /// The refusal of the first rule it breaks, in the order of the contract.
    pub fn create_snapshot(
        &mut self,
        now: Moment,
        volume: &str,
        name: &str,
        tags: &[String],
    ) -> Result<String, Refusal> {
        let source = self.volume(volume)?.clone();
        if name.is_empty() || !tags.iter().all(|tag| is_tag(tag)) {
            return Err(Refusal::INVALID_PAYLOAD);
        }
        let is_taken = self.snapshots.values().any(|snapshot| snapshot.name == name);
        if is_taken && !self.rules.switches.duplicate_snapshot_names_are_accepted {
            return Err(Refusal::DUPLICATE_SNAPSHOT);
        }
        let limits = &self.rules.limits;
        let is_too_soon = self.last_snapshot.get(volume).is_some_and(|last| now < *last + limits.snapshot_interval);
        if is_too_soon {
            return Err(Refusal::SNAPSHOT_TOO_SOON);
        }
        if self.snapshots(Some(volume)).len() >= limits.snapshots_per_volume {
            return Err(Refusal::SNAPSHOT_LIMIT);
        }

        let id = self.new_id();
        let tags = tags.iter().map(|tag| self.create_tag(tag)).collect();
        self.last_snapshot.insert(volume.to_owned(), now);
        self.effects.push(Effect::Snapshot { snapshot: id.clone(), volume: volume.to_owned() });
        let snapshot = Snapshot {
            id: id.clone(),
            name: name.to_owned(),
            volume: volume.to_owned(),
            region: source.region,
            min_disk_size: source.size_gigabytes,
            size_gigabytes: 0.0,
            tags,
            created_at: now,
            visible_from: now + self.rules.times.snapshot_visible_after,
        };
        self.snapshots.insert(id.clone(), snapshot);
        let sized_at = now + self.rules.times.snapshot_sizing;
        self.schedule(sized_at, Event::Sized { snapshot: id.clone() });
        Ok(id)
    }

    /// A snapshot as get shows it.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`].
    pub fn shown_snapshot(&self, now: Moment, id: &str) -> Result<&Snapshot, Refusal> {
        self.snapshot(id).ok().filter(|snapshot| snapshot.visible_from <= now).ok_or(Refusal::NOT_FOUND)
    }

    /// All snapshots as lists show them, of one volume if one is named.
    pub fn shown_snapshots(&self, now: Moment, volume: Option<&str>) -> Vec<Snapshot> {
        self.snapshots(volume).into_iter().filter(|snapshot| snapshot.visible_from <= now).collect()
    }

    /// A snapshot by id.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`].
    pub fn snapshot(&self, id: &str) -> Result<&Snapshot, Refusal> {
        self.snapshots.get(id).ok_or(Refusal::NOT_FOUND)
    }

    /// All snapshots, of one volume if one is named.
    pub fn snapshots(&self, volume: Option<&str>) -> Vec<Snapshot> {
        self.snapshots
            .values()
            .filter(|snapshot| volume.is_none_or(|volume| snapshot.volume == volume))
            .cloned()
            .collect()
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`].
    pub fn delete_snapshot(&mut self, id: &str) -> Result<(), Refusal> {
        self.snapshots.remove(id).ok_or(Refusal::NOT_FOUND)?;
        self.effects.push(Effect::DeleteSnapshot { snapshot: id.to_owned() });
        Ok(())
    }

    pub(super) fn size_snapshot(&mut self, id: &str) {
        if let Some(snapshot) = self.snapshots.get_mut(id) {
            // Any positive number will do: the real one depends on how well the blocks compress.
            snapshot.size_gigabytes = 0.34;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::config::SimConfig;
    use super::super::volumes::NewVolume;
    use super::*;

    const NOW: Moment = Duration::from_secs(1_785_578_400);
    const TEN_MINUTES: Duration = Duration::from_secs(600);

    fn cloud_with_volume() -> (Cloud, String) {
        let mut cloud =
            Cloud::new(&SimConfig { regions: vec!["fra1".to_owned(), "nyc1".to_owned()], ..SimConfig::default() });
        let new = NewVolume::new("a", 7, "fra1");
        let id = cloud.create_volume(NOW, &new).expect("a good volume");
        (cloud, id)
    }

    #[test]
    fn a_volume_has_one_snapshot_in_ten_minutes_and_so_many_in_all() {
        let (mut cloud, volume) = cloud_with_volume();
        cloud.rules.limits.snapshots_per_volume = 2;
        for (at, name, want) in [
            (0, "one", Ok(())),
            (1, "one", Err(Refusal::DUPLICATE_SNAPSHOT)),
            (599, "two", Err(Refusal::SNAPSHOT_TOO_SOON)),
            (600, "two", Ok(())),
            (1200, "three", Err(Refusal::SNAPSHOT_LIMIT)),
            (1200, "", Err(Refusal::INVALID_PAYLOAD)),
        ] {
            let taken = cloud.create_snapshot(NOW + Duration::from_secs(at), &volume, name, &[]);
            assert_eq!(taken.map(|_| ()), want, "{name} after {at} s");
        }
        cloud.rules.limits.snapshots_per_volume = 3;
        cloud.rules.switches.duplicate_snapshot_names_are_accepted = true;
        let again = cloud.create_snapshot(NOW + Duration::from_secs(1200), &volume, "one", &[]);
        assert!(again.is_ok(), "{again:?}");
        let missing = cloud.create_snapshot(NOW, "0", "four", &[]);
        assert_eq!(missing, Err(Refusal::NOT_FOUND));
    }

    #[test]
    fn deleting_a_snapshot_does_not_make_the_next_one_come_sooner() {
        let (mut cloud, volume) = cloud_with_volume();
        let id = cloud.create_snapshot(NOW, &volume, "one", &[]).expect("the first one");
        cloud.delete_snapshot(&id).expect("it exists");
        let next = cloud.create_snapshot(NOW + TEN_MINUTES / 2, &volume, "two", &[]);
        assert_eq!(next, Err(Refusal::SNAPSHOT_TOO_SOON));
    }

    #[test]
    fn a_new_snapshot_may_be_hidden_for_a_while_and_counts_all_the_same() {
        let (mut cloud, volume) = cloud_with_volume();
        cloud.rules.times.snapshot_visible_after = Duration::from_secs(1);
        let id = cloud.create_snapshot(NOW, &volume, "one", &[]).expect("the first one");
        assert_eq!(cloud.create_snapshot(NOW, &volume, "two", &[]), Err(Refusal::SNAPSHOT_TOO_SOON));
        for (at, shown) in [(NOW, 0), (NOW + Duration::from_secs(1), 1)] {
            assert_eq!(cloud.shown_snapshots(at, Some(&volume)).len(), shown);
            assert_eq!(cloud.shown_snapshot(at, &id).is_ok(), shown == 1);
        }
    }

    #[test]
    fn a_snapshot_outlives_its_volume_and_gets_a_size() {
        let (mut cloud, volume) = cloud_with_volume();
        let id = cloud.create_snapshot(NOW, &volume, "one", &[]).expect("the first one");
        assert!(cloud.snapshot(&id).is_ok_and(|snapshot| snapshot.size_gigabytes == 0.0));
        cloud.delete_volume(NOW, &volume).expect("it is detached");
        cloud.tick(NOW + TEN_MINUTES);
        assert!(cloud.snapshot(&id).is_ok_and(|snapshot| snapshot.size_gigabytes > 0.0));
    }

    #[test]
    fn a_restore_has_the_size_of_the_snapshot_and_stays_in_its_region() {
        let (mut cloud, volume) = cloud_with_volume();
        let snapshot = cloud.create_snapshot(NOW, &volume, "one", &[]).expect("the first one");
        let restore = |snapshot: &str, region: &str| NewVolume {
            snapshot_id: Some(snapshot.to_owned()),
            ..NewVolume::new("b", 20, region)
        };
        let abroad = cloud.create_volume(NOW, &restore(&snapshot, "nyc1"));
        assert_eq!(abroad, Err(Refusal::SNAPSHOT_REGION));
        assert_eq!(cloud.create_volume(NOW, &restore("0", "fra1")), Err(Refusal::NOT_FOUND));
        let id = cloud.create_volume(NOW, &restore(&snapshot, "fra1")).expect("a good restore");
        assert_eq!(cloud.volume(&id).map(|volume| volume.size_gigabytes), Ok(7));
        cloud.rules.switches.small_restore_is_refused = true;
        let small = NewVolume { name: "c".to_owned(), size_gigabytes: 6, ..restore(&snapshot, "fra1") };
        assert_eq!(cloud.create_volume(NOW, &small), Err(Refusal::INVALID_SIZE));
        cloud.create_volume(NOW, &NewVolume { size_gigabytes: 7, ..small }).expect("the snapshot's own size");
    }
}
