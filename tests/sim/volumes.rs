//! Rules for volumes: create, get, list, delete (contract 2, 3 and 8).

use super::clock::Moment;
use super::refusal::Refusal;
use super::state::{ActionKind, Cloud, Effect, Event, Volume};
use super::tags::is_tag;

/// The description of every volume that the official driver makes (`csi-digitalocean` `driver/controller.go`).
pub const OFFICIAL_DRIVERS: &str = "Created by DigitalOcean CSI driver";

/// What a create request asks for.
#[derive(Debug, Clone, Default)]
pub struct NewVolume {
    /// The name, checked here.
    pub name: String,
    /// Size in GiB, checked here; ignored when there is a snapshot (`volume_base.yml`).
    pub size_gigabytes: i64,
    /// Slug of the region, checked here.
    pub region: String,
    /// Free text.
    pub description: String,
    /// The snapshot to restore.
    pub snapshot_id: Option<String>,
    /// `ext4`, `xfs` or empty.
    pub filesystem_type: String,
    /// Label for the file system, or empty.
    pub filesystem_label: String,
    /// Tags, checked here.
    pub tags: Vec<String>,
}

impl NewVolume {
    /// A volume as most tests want it: a name, a size in GiB and a region, made by the official driver.
    pub fn new(name: &str, size_gigabytes: i64, region: &str) -> NewVolume {
        let description = OFFICIAL_DRIVERS.to_owned();
        NewVolume {
            name: name.to_owned(),
            size_gigabytes,
            region: region.to_owned(),
            description,
            ..NewVolume::default()
        }
    }

    /// The same, with another description: of Terraform, or of a person.
    pub fn described(self, description: &str) -> NewVolume {
        NewVolume { description: description.to_owned(), ..self }
    }

    /// The same, with these tags.
    pub fn tagged(self, tags: &[&str]) -> NewVolume {
        NewVolume { tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), ..self }
    }

    /// The same, formatted before its first attach, as other tools of the same account do.
    pub fn formatted(self, filesystem_type: &str) -> NewVolume {
        NewVolume { filesystem_type: filesystem_type.to_owned(), ..self }
    }
}

impl Cloud {
    /// Every region, and whether it has block storage, in order.
    pub fn known_regions(&self) -> impl Iterator<Item = (&str, bool)> {
        let with = self.regions.iter().map(|slug| (slug.as_str(), true));
        with.chain(self.regions_without_storage.iter().map(|slug| (slug.as_str(), false)))
    }

    /// Creates a volume and gives its id.
    ///
    /// # Errors
    /// The refusal of the first rule it breaks, in the order of the contract.
    pub fn create_volume(&mut self, now: Moment, new: &NewVolume) -> Result<String, Refusal> {
        self.check_text(new)?;
        let size_gigabytes = self.check_size(new)?;
        self.check_region(new)?;
        self.check_free_name(new)?;
        self.check_quota(&new.region, size_gigabytes, true, Refusal::CREATE_QUOTA)?;

        let id = self.new_id();
        let format = Some((new.filesystem_type.clone(), new.filesystem_label.clone()))
            .filter(|(filesystem, _)| !filesystem.is_empty() && new.snapshot_id.is_none());
        self.effects.push(Effect::Create {
            volume: id.clone(),
            size_gigabytes,
            snapshot: new.snapshot_id.clone(),
            format,
        });
        let tags = new.tags.iter().map(|tag| self.create_tag(tag)).collect();
        let volume = Volume {
            id: id.clone(),
            name: new.name.clone(),
            region: new.region.clone(),
            size_gigabytes,
            listed_gigabytes: size_gigabytes,
            description: new.description.clone(),
            filesystem_type: new.filesystem_type.clone(),
            filesystem_label: new.filesystem_label.clone(),
            tags,
            created_at: now,
            visible_from: now + self.rules.times.create_visible_after,
            attached_to: None,
            listed_on: None,
            recorded_on: None,
        };
        self.volumes.insert(id.clone(), volume);
        Ok(id)
    }

    /// A volume as get shows it: not before it is visible, and a little longer than it lives if so configured.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`].
    pub fn shown_volume(&self, now: Moment, id: &str) -> Result<&Volume, Refusal> {
        self.volumes
            .get(id)
            .filter(|volume| volume.visible_from <= now)
            .or_else(|| self.deleted.get(id).filter(|_| !self.rules.times.deleted_lingers.is_zero()))
            .ok_or(Refusal::NOT_FOUND)
    }

    /// All volumes as list shows them, filtered by exact name and region.
    pub fn shown_volumes(&self, now: Moment, name: Option<&str>, region: Option<&str>) -> Vec<Volume> {
        self.volumes
            .values()
            .filter(|volume| volume.visible_from <= now)
            .chain(self.deleted.values())
            .filter(|volume| name.is_none_or(|name| volume.name == name))
            .filter(|volume| region.is_none_or(|region| volume.region == region))
            .cloned()
            .collect()
    }

    /// A volume that exists, by id.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`].
    pub fn volume(&self, id: &str) -> Result<&Volume, Refusal> {
        self.volumes.get(id).ok_or(Refusal::NOT_FOUND)
    }

    /// The id of a volume that exists, by name and region.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`].
    pub fn volume_id(&self, name: &str, region: &str) -> Result<String, Refusal> {
        self.volumes
            .values()
            .find(|volume| volume.name == name && volume.region == region)
            .map(|volume| volume.id.clone())
            .ok_or(Refusal::NOT_FOUND)
    }

    /// Deletes a volume. Its snapshots survive.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`]; the conflict text while it is attached or being attached.
    pub fn delete_volume(&mut self, now: Moment, id: &str) -> Result<(), Refusal> {
        let volume = self.volume(id)?.clone();
        let is_being_attached = self
            .actions
            .values()
            .any(|action| action.volume == id && action.kind == ActionKind::Attach && action.is_running());
        if volume.attached_to.is_some() || is_being_attached {
            return Err(if self.rules.switches.long_delete_attached_text {
                Refusal::DELETE_ATTACHED_LONG
            } else {
                Refusal::DELETE_ATTACHED
            });
        }
        self.volumes.remove(id);
        self.effects.push(Effect::Delete { volume: id.to_owned() });
        let lingers = self.rules.times.deleted_lingers.max(self.rules.times.deleted_stays_listed);
        if !lingers.is_zero() {
            self.deleted.insert(id.to_owned(), volume);
            self.schedule(now + lingers, Event::Forget { volume: id.to_owned() });
        }
        Ok(())
    }

    /// Checks count and GiB against the account's quota, as if `gigabytes` were added.
    pub(super) fn check_quota(
        &self,
        region: &str,
        gigabytes: u64,
        is_new_volume: bool,
        refusal: Refusal,
    ) -> Result<(), Refusal> {
        let limits = &self.rules.limits;
        let used: u64 =
            self.volumes.values().filter(|volume| volume.region == region).map(|volume| volume.size_gigabytes).sum();
        let has_too_many = is_new_volume && limits.volumes != 0 && self.volumes.len() >= limits.volumes;
        if !has_too_many && used + gigabytes <= limits.region_gigabytes {
            return Ok(());
        }
        Err(if self.rules.switches.quota_is_429 { refusal.as_too_many_requests() } else { refusal })
    }

    fn check_text(&self, new: &NewVolume) -> Result<(), Refusal> {
        if !is_volume_name(&new.name) {
            return Err(Refusal::INVALID_NAME);
        }
        let longest_label = match new.filesystem_type.as_str() {
            "" | "ext4" => 16,
            "xfs" => 12,
            _ => return Err(Refusal::INVALID_PAYLOAD),
        };
        if new.filesystem_label.len() > longest_label || new.description.len() > 1024 {
            return Err(Refusal::INVALID_PAYLOAD);
        }
        if !new.tags.iter().all(|tag| is_tag(tag)) {
            return Err(Refusal::INVALID_TAG);
        }
        Ok(())
    }

    /// The size the volume will have: the snapshot's whatever was asked, or what was asked if it is allowed.
    fn check_size(&self, new: &NewVolume) -> Result<u64, Refusal> {
        if let Some(snapshot) = &new.snapshot_id {
            let snapshot = self.snapshot(snapshot)?;
            if snapshot.region != new.region {
                return Err(Refusal::SNAPSHOT_REGION);
            }
            let is_too_small = i128::from(new.size_gigabytes) < i128::from(snapshot.min_disk_size);
            if is_too_small && self.rules.switches.small_restore_is_refused {
                return Err(Refusal::INVALID_SIZE);
            }
            return Ok(snapshot.min_disk_size);
        }
        u64::try_from(new.size_gigabytes)
            .ok()
            .filter(|size| (1..=self.rules.limits.volume_gigabytes).contains(size))
            .ok_or(Refusal::INVALID_SIZE)
    }

    fn check_region(&self, new: &NewVolume) -> Result<(), Refusal> {
        if self.regions_without_storage.contains(&new.region) {
            return Err(Refusal::NO_STORAGE);
        }
        if !self.regions.contains(&new.region) {
            return Err(Refusal::INVALID_PAYLOAD);
        }
        Ok(())
    }

    fn check_free_name(&self, new: &NewVolume) -> Result<(), Refusal> {
        if self.volume_id(&new.name, &new.region).is_err() {
            return Ok(());
        }
        Err(if self.rules.switches.duplicate_name_says_already_exists {
            Refusal::DUPLICATE_NAME_EXISTS
        } else {
            Refusal::DUPLICATE_NAME_CONFLICT
        })
    }
}

/// `^[a-z][a-z0-9-]{0,63}$` (`volume_base.yml`; openapi PR 765 removed the underscore).
fn is_volume_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::config::SimConfig;
    use super::super::state::Twists;
    use super::*;

    const NOW: Moment = Duration::from_secs(1_785_578_400);

    fn cloud() -> Cloud {
        Cloud::new(&SimConfig {
            regions: vec!["fra1".to_owned(), "nyc1".to_owned()],
            regions_without_storage: vec!["ams2".to_owned()],
            ..SimConfig::default()
        })
    }

    #[test]
    fn create_takes_what_digitalocean_takes_and_refuses_the_rest() {
        let longest = format!("a{}", "b".repeat(63));
        let too_long = format!("a{}", "b".repeat(64));
        for (name, size, region, want) in [
            ("a", 1, "fra1", Ok(())),
            ("pvc-6c7d", 16_384, "fra1", Ok(())),
            (longest.as_str(), 1, "fra1", Ok(())),
            (too_long.as_str(), 1, "fra1", Err(Refusal::INVALID_NAME)),
            ("", 1, "fra1", Err(Refusal::INVALID_NAME)),
            ("1a", 1, "fra1", Err(Refusal::INVALID_NAME)),
            ("A", 1, "fra1", Err(Refusal::INVALID_NAME)),
            ("a_b", 1, "fra1", Err(Refusal::INVALID_NAME)),
            ("ä", 1, "fra1", Err(Refusal::INVALID_NAME)),
            ("a", 0, "fra1", Err(Refusal::INVALID_SIZE)),
            ("a", -1, "fra1", Err(Refusal::INVALID_SIZE)),
            ("a", 16_385, "fra1", Err(Refusal::INVALID_SIZE)),
            ("a", 1, "", Err(Refusal::INVALID_PAYLOAD)),
            ("a", 1, "moon1", Err(Refusal::INVALID_PAYLOAD)),
            ("a", 1, "ams2", Err(Refusal::NO_STORAGE)),
        ] {
            let created = cloud().create_volume(NOW, &NewVolume::new(name, size, region));
            assert_eq!(created.map(|_| ()), want, "{name} {size} {region}");
        }
    }

    #[test]
    fn create_refuses_bad_labels_and_tags() {
        let new = NewVolume::new("a", 1, "fra1");
        let labelled = |filesystem: &str, label: &str| NewVolume {
            filesystem_label: label.to_owned(),
            ..new.clone().formatted(filesystem)
        };
        for (new, want) in [
            (labelled("xfs", "123456789012"), Ok(())),
            (labelled("xfs", "1234567890123"), Err(Refusal::INVALID_PAYLOAD)),
            (labelled("ext4", "1234567890123456"), Ok(())),
            (labelled("btrfs", ""), Err(Refusal::INVALID_PAYLOAD)),
            (NewVolume { tags: vec!["env:a_b-1".to_owned()], ..new.clone() }, Ok(())),
            (NewVolume { tags: vec!["a b".to_owned()], ..new.clone() }, Err(Refusal::INVALID_TAG)),
        ] {
            assert_eq!(cloud().create_volume(NOW, &new).map(|_| ()), want, "{new:?}");
        }
    }

    #[test]
    fn a_name_is_free_in_another_region_and_again_after_delete() {
        let mut cloud = cloud();
        let new = NewVolume::new("a", 1, "fra1");
        let id = cloud.create_volume(NOW, &new).expect("a good volume");
        assert_eq!(cloud.create_volume(NOW, &new), Err(Refusal::DUPLICATE_NAME_CONFLICT));
        cloud.rules.switches.duplicate_name_says_already_exists = true;
        assert_eq!(cloud.create_volume(NOW, &new), Err(Refusal::DUPLICATE_NAME_EXISTS));
        cloud.create_volume(NOW, &NewVolume::new("a", 1, "nyc1")).expect("another region");
        assert_eq!(cloud.delete_volume(NOW, &id), Ok(()));
        assert_eq!(cloud.delete_volume(NOW, &id), Err(Refusal::NOT_FOUND));
        assert_ne!(cloud.create_volume(NOW, &new), Ok(id));
    }

    #[test]
    fn the_quota_counts_volumes_of_the_account_and_gigabytes_of_the_region() {
        let mut cloud = cloud();
        cloud.rules.limits.volumes = 2;
        cloud.rules.limits.region_gigabytes = 10;
        cloud.create_volume(NOW, &NewVolume::new("a", 8, "fra1")).expect("within the quota");
        let big = NewVolume::new("b", 3, "fra1");
        assert_eq!(cloud.create_volume(NOW, &big), Err(Refusal::CREATE_QUOTA));
        cloud.create_volume(NOW, &NewVolume::new("b", 3, "nyc1")).expect("another region");
        let third = NewVolume::new("c", 1, "nyc1");
        assert_eq!(cloud.create_volume(NOW, &third), Err(Refusal::CREATE_QUOTA));
        cloud.rules.switches.quota_is_429 = true;
        assert_eq!(cloud.create_volume(NOW, &third).map_err(|refusal| refusal.status), Err(429));
        cloud.rules.limits.volumes = 0;
        cloud.create_volume(NOW, &third).expect("0 is no limit");
    }

    #[test]
    fn delete_is_refused_from_the_attach_request_on() {
        let mut cloud = cloud();
        let id = cloud.create_volume(NOW, &NewVolume::new("a", 1, "fra1")).expect("a volume");
        let plan = cloud.plan_attach(NOW, &id, 3_164_444, None).expect("the attach is accepted");
        cloud.start(NOW, &plan, Twists::default());
        assert_eq!(cloud.delete_volume(NOW, &id), Err(Refusal::DELETE_ATTACHED));
        cloud.tick(NOW + Duration::from_secs(1));
        cloud.rules.switches.long_delete_attached_text = true;
        assert_eq!(cloud.delete_volume(NOW, &id), Err(Refusal::DELETE_ATTACHED_LONG));
    }

    #[test]
    fn a_volume_may_appear_late_and_linger() {
        let mut cloud = cloud();
        let second = Duration::from_secs(1);
        cloud.rules.times.create_visible_after = second;
        cloud.rules.times.deleted_lingers = second;
        let id = cloud.create_volume(NOW, &NewVolume::new("a", 1, "fra1")).expect("a volume");
        assert_eq!(cloud.shown_volumes(NOW, Some("a"), Some("fra1")), []);
        assert!(cloud.shown_volume(NOW, &id).is_err());
        assert!(cloud.shown_volume(NOW + second, &id).is_ok());
        cloud.delete_volume(NOW + second, &id).expect("it is detached");
        assert!(cloud.shown_volume(NOW + second, &id).is_ok());
        cloud.tick(NOW + 2 * second);
        assert!(cloud.shown_volume(NOW + 2 * second, &id).is_err());
    }
}
