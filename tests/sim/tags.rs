//! Rules for tags, as far as volumes carry them (contract's resource list, row 17).

use super::refusal::Refusal;
use super::state::Cloud;

impl Cloud {
    /// Makes a tag known; a second time changes nothing.
    pub fn create_tag(&mut self, name: &str) {
        self.tags.insert(name.to_owned());
    }

    /// How many volumes carry a tag.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`] if nobody has created it.
    pub fn tag_count(&self, name: &str) -> Result<usize, Refusal> {
        if !self.tags.contains(name) {
            return Err(Refusal::NOT_FOUND);
        }
        let carries = |tags: &[String]| tags.iter().any(|tag| tag == name);
        Ok(self.volumes.values().filter(|volume| carries(&volume.tags)).count())
    }

    /// Puts a tag on volumes.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`] if the tag or a volume is not there; then nothing is changed.
    pub fn tag_volumes(&mut self, name: &str, volumes: &[String]) -> Result<(), Refusal> {
        self.check_tagging(name, volumes)?;
        self.untag_volumes(name, volumes)?;
        for volume in self.volumes.values_mut().filter(|volume| volumes.contains(&volume.id)) {
            volume.tags.push(name.to_owned());
        }
        Ok(())
    }

    /// Takes a tag off volumes.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`] if the tag or a volume is not there; then nothing is changed.
    pub fn untag_volumes(&mut self, name: &str, volumes: &[String]) -> Result<(), Refusal> {
        self.check_tagging(name, volumes)?;
        for volume in self.volumes.values_mut().filter(|volume| volumes.contains(&volume.id)) {
            volume.tags.retain(|tag| tag != name);
        }
        Ok(())
    }

    fn check_tagging(&self, name: &str, volumes: &[String]) -> Result<(), Refusal> {
        self.tag_count(name)?;
        volumes.iter().try_for_each(|volume| self.volume(volume).map(|_| ()))
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
        assert_eq!(cloud.tag_count("k8s"), Ok(0));
        assert_eq!(cloud.tag_volumes("k8s", &["0".to_owned()]), Err(Refusal::NOT_FOUND));
    }
}
