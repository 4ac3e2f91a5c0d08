//! Rules for tags, as far as volumes and their snapshots carry them (contract's resource list, row 17).
//!
//! Their names are compared without regard to case, and keep the capitals of whoever was the first to write them
//! (API reference, "Tags").

use super::refusal::Refusal;
use super::state::Cloud;

/// How much carries a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tagged {
    /// Volumes.
    pub volumes: usize,
    /// Snapshots of volumes.
    pub volume_snapshots: usize,
}

impl Cloud {
    /// Makes a tag known, and gives it in the capitals in which it was the first time.
    pub fn create_tag(&mut self, name: &str) -> String {
        let known = self.canonical(name).map(str::to_owned);
        known.unwrap_or_else(|_| {
            self.tags.insert(name.to_owned());
            name.to_owned()
        })
    }

    /// Every tag, in order.
    pub fn tags(&self) -> impl Iterator<Item = &String> {
        self.tags.iter()
    }

    /// How much carries a tag.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`] if nobody has created it.
    pub fn tagged(&self, name: &str) -> Result<Tagged, Refusal> {
        let name = self.canonical(name)?;
        let carries = |tags: &[String]| tags.iter().any(|tag| tag == name);
        Ok(Tagged {
            volumes: self.volumes.values().filter(|volume| carries(&volume.tags)).count(),
            volume_snapshots: self.snapshots.values().filter(|snapshot| carries(&snapshot.tags)).count(),
        })
    }

    /// Puts a tag on volumes.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`] if the tag or a volume is not there; then nothing is changed.
    pub fn tag_volumes(&mut self, name: &str, volumes: &[String]) -> Result<(), Refusal> {
        self.untag_volumes(name, volumes)?;
        let name = self.canonical(name)?.to_owned();
        for volume in self.volumes.values_mut().filter(|volume| volumes.contains(&volume.id)) {
            volume.tags.push(name.clone());
        }
        Ok(())
    }

    /// Takes a tag off volumes.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`] if the tag or a volume is not there; then nothing is changed.
    pub fn untag_volumes(&mut self, name: &str, volumes: &[String]) -> Result<(), Refusal> {
        let name = self.canonical(name)?.to_owned();
        volumes.iter().try_for_each(|volume| self.volume(volume).map(|_| ()))?;
        for volume in self.volumes.values_mut().filter(|volume| volumes.contains(&volume.id)) {
            volume.tags.retain(|tag| *tag != name);
        }
        Ok(())
    }

    /// The tag as it was written first.
    fn canonical(&self, name: &str) -> Result<&str, Refusal> {
        let known = self.tags.iter().find(|known| known.eq_ignore_ascii_case(name));
        known.map(String::as_str).ok_or(Refusal::NOT_FOUND)
    }
}

/// Letters, digits, `:`, `-` and `_`, at most 255 (`tags_array.yml`).
pub fn is_tag(tag: &str) -> bool {
    (1..=255).contains(&tag.len()) && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::config::SimConfig;
    use super::super::volumes::NewVolume;
    use super::*;

    #[test]
    fn only_a_known_tag_can_be_put_on_a_volume_and_only_once() {
        let mut cloud = Cloud::new(&SimConfig::default());
        let new = NewVolume::new("a", 1, "fra1");
        let id = cloud.create_volume(Duration::ZERO, &new).expect("a good volume");
        let volumes = [id.clone()];
        assert_eq!(cloud.tag_volumes("k8s", &volumes), Err(Refusal::NOT_FOUND));
        cloud.create_tag("k8s");
        assert_eq!(cloud.tag_volumes("k8s", &volumes), Ok(()));
        assert_eq!(cloud.tag_volumes("k8s", &volumes), Ok(()));
        assert_eq!(cloud.volume(&id).map(|volume| volume.tags.len()), Ok(1));
        assert_eq!(cloud.untag_volumes("k8s", &volumes), Ok(()));
        assert_eq!(cloud.tagged("k8s").map(|tagged| tagged.volumes), Ok(0));
        assert_eq!(cloud.tag_volumes("k8s", &["0".to_owned()]), Err(Refusal::NOT_FOUND));
    }

    #[test]
    fn a_tag_keeps_the_capitals_of_its_first_writer() {
        let mut cloud = Cloud::new(&SimConfig::default());
        let mut volume = |name: &str, tag: &str| {
            let new = NewVolume { tags: vec![tag.to_owned()], ..NewVolume::new(name, 1, "fra1") };
            cloud.create_volume(Duration::ZERO, &new).expect("a good volume")
        };
        let ids = [volume("a", "Prod"), volume("b", "prod")];
        for id in &ids {
            assert_eq!(cloud.volume(id).map(|volume| volume.tags.clone()), Ok(vec!["Prod".to_owned()]));
        }
        assert_eq!(cloud.tagged("PROD"), Ok(Tagged { volumes: 2, volume_snapshots: 0 }));
        cloud.create_snapshot(Duration::ZERO, &ids[0], "one", &["pRod".to_owned()]).expect("a good snapshot");
        assert_eq!(cloud.untag_volumes("prod", &ids), Ok(()));
        assert_eq!(cloud.tagged("Prod"), Ok(Tagged { volumes: 0, volume_snapshots: 1 }));
    }
}
