//! How volumes were published, so that a second, different use on the same droplet is refused.
//!
//! Owns what this process remembers of it. DigitalOcean knows only that a volume is attached, so what another plugin
//! published, or this one before it was restarted, counts as published in whatever way is asked for next. Nothing depends
//! on the memory but that refusal: that a reader cannot write is brought about on the node, from the publish context.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Controller;
use crate::cloud::volume::Volume;
use crate::error::{Error, Result};
use crate::id::{DropletId, VolumeId};
use crate::lock::VolumeGuard;
use crate::request::controller::{DetachFrom, Publish, Usage};

/// The uses of the volumes that this process published.
#[derive(Debug, Default)]
pub struct Usages {
    table: Mutex<HashMap<VolumeId, (DropletId, Usage)>>,
}

impl Usages {
    /// The use that contradicts the one asked for, if there is one.
    pub fn conflict(&self, volume: &VolumeId, droplet: DropletId, want: Usage) -> Option<Usage> {
        let known = self.lock().get(volume).copied();
        known.and_then(|(holder, have)| (holder == droplet && have != want).then_some(have))
    }

    /// Remembers that a volume was published.
    pub fn published(&self, volume: &VolumeId, droplet: DropletId, usage: Usage) {
        self.lock().insert(volume.clone(), (droplet, usage));
    }

    /// Forgets a volume that was detached.
    pub fn unpublished(&self, volume: &VolumeId, from: DetachFrom) {
        let is_meant = |holder: DropletId| match from {
            DetachFrom::Droplet(droplet) => droplet == holder,
            DetachFrom::Anywhere => true,
        };
        let mut table = self.lock();
        if table.get(volume).is_some_and(|(holder, _)| is_meant(*holder)) {
            table.remove(volume);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, (DropletId, Usage)>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Controller {
    /// Sees that a volume which is on the droplet is not used there in another way than asked, and remembers the way.
    pub(super) fn settle_usage(&self, _guard: &VolumeGuard, want: &Publish, volume: &Volume) -> Result<()> {
        match self.usages.conflict(&want.volume, want.droplet, want.usage) {
            Some(have) if !self.mixed_access => Err(Error::Mismatch {
                thing: format!("volume {} ({}) on droplet {}", volume.name, volume.id, want.droplet),
                have: in_words(have),
                want: format!("{} (--mixed-access allows both)", in_words(want.usage)),
            }),
            Some(_) | None => {
                self.usages.published(&want.volume, want.droplet, want.usage);
                Ok(())
            }
        }
    }
}

/// A use in words.
fn in_words(usage: Usage) -> String {
    let access = if usage.is_read_only { "read-only" } else { "read and write" };
    let kind = if usage.is_block { "a raw block device" } else { "a file system" };
    format!("{access} access to {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_use_on_the_same_droplet_is_a_conflict() {
        let volume = VolumeId::parse("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2").unwrap();
        let (here, there) = (DropletId::new(1).unwrap(), DropletId::new(2).unwrap());
        let writer = Usage { is_read_only: false, is_block: false };
        let reader = Usage { is_read_only: true, is_block: false };
        let usages = Usages::default();
        assert_eq!(usages.conflict(&volume, here, reader), None);
        usages.published(&volume, here, writer);
        assert_eq!(usages.conflict(&volume, here, writer), None);
        assert_eq!(usages.conflict(&volume, here, reader), Some(writer));
        assert_eq!(usages.conflict(&volume, there, reader), None);
        usages.unpublished(&volume, DetachFrom::Droplet(there));
        assert_eq!(usages.conflict(&volume, here, reader), Some(writer));
        usages.unpublished(&volume, DetachFrom::Anywhere);
        assert_eq!(usages.conflict(&volume, here, reader), None);
    }
}
