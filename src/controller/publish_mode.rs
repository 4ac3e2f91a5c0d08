//! How volumes were published, so that a second, different use on the same droplet is refused.
//!
//! Owns what this process remembers of it: for the one attachment that the volume has, known by the number of the action
//! that made it. DigitalOcean knows only that a volume is attached, so what another plugin published, or this one before
//! it was restarted, counts as published in whatever way is asked for next, and with the attachment the memory of it is
//! over. That a reader cannot write is not brought about here but on the node, from the publish context.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::controller::Controller;
use crate::controller::attachment::Seen;
use crate::error::{Error, Result};
use crate::id::{ActionId, DropletId, VolumeId};
use crate::request::attachment::{DetachFrom, Publish, PublishMode};
use crate::sync::volume_lock::VolumeGuard;

/// An attachment of a volume, as this process knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// Where the volume is.
    pub droplet: DropletId,
    /// The action that brought it there; none: DigitalOcean does not tell.
    pub action: Option<ActionId>,
}

/// The uses of the volumes that this process published.
#[derive(Debug, Default)]
pub struct PublishModes {
    table: Mutex<HashMap<VolumeId, (Attachment, PublishMode)>>,
}

impl PublishModes {
    /// The use that contradicts the one asked for, if there is one.
    pub fn conflict(&self, volume: &VolumeId, at: Attachment, want: PublishMode) -> Option<PublishMode> {
        let known = self.lock().get(volume).copied();
        known.and_then(|(known_at, have)| (known_at == at && have != want).then_some(have))
    }

    /// Remembers that a volume was published.
    pub fn published(&self, volume: &VolumeId, at: Attachment, mode: PublishMode) {
        self.lock().insert(volume.clone(), (at, mode));
    }

    /// The action that attached a volume where this process published it last.
    pub fn attached_by(&self, volume: &VolumeId, droplet: DropletId) -> Option<ActionId> {
        let known = self.lock().get(volume).copied();
        known.filter(|(at, _)| at.droplet == droplet).and_then(|(at, _)| at.action)
    }

    /// Forgets a volume that was detached.
    pub fn unpublished(&self, volume: &VolumeId, from: DetachFrom) {
        let is_meant = |holder: DropletId| match from {
            DetachFrom::Droplet(droplet) => droplet == holder,
            DetachFrom::Anywhere => true,
        };
        let mut table = self.lock();
        if table.get(volume).is_some_and(|(at, _)| is_meant(at.droplet)) {
            table.remove(volume);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, (Attachment, PublishMode)>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Controller {
    /// Sees that a volume which is on the droplet is not used there in another way than asked, and remembers the way.
    pub(super) fn settle_mode(&self, _guard: &VolumeGuard, want: &Publish, seen: &Seen) -> Result<()> {
        let (volume, at) = (&seen.volume, Attachment { droplet: want.droplet, action: seen.by });
        match self.publish_modes.conflict(&want.volume, at, want.mode) {
            Some(have) if !self.mixed_access => Err(Error::Mismatch {
                thing: format!("volume {} ({}) on droplet {}", volume.name, volume.id, want.droplet),
                have: in_words(have),
                want: format!("{} (--mixed-access allows both)", in_words(want.mode)),
            }),
            Some(_) | None => {
                self.publish_modes.published(&want.volume, at, want.mode);
                Ok(())
            }
        }
    }
}

/// A use in words.
fn in_words(mode: PublishMode) -> String {
    let access = if mode.is_read_only { "read-only" } else { "read and write" };
    let kind = if mode.is_block { "a raw block device" } else { "a file system" };
    format!("{access} access to {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_use_of_the_same_attachment_is_a_conflict() {
        let volume = VolumeId::parse("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2").unwrap();
        let (here, there) = (DropletId::new(1).unwrap(), DropletId::new(2).unwrap());
        let by = |action, droplet| Attachment { droplet, action: Some(ActionId(action)) };
        let writer = PublishMode { is_read_only: false, is_block: false };
        let reader = PublishMode { is_read_only: true, is_block: false };
        let publish_modes = PublishModes::default();
        assert_eq!(publish_modes.conflict(&volume, by(1, here), reader), None);
        publish_modes.published(&volume, by(1, here), writer);
        assert_eq!(publish_modes.attached_by(&volume, here), Some(ActionId(1)));
        assert_eq!(publish_modes.attached_by(&volume, there), None);
        assert_eq!(publish_modes.conflict(&volume, by(1, here), writer), None);
        assert_eq!(publish_modes.conflict(&volume, by(1, here), reader), Some(writer));
        assert_eq!(publish_modes.conflict(&volume, by(1, there), reader), None);
        assert_eq!(publish_modes.conflict(&volume, by(2, here), reader), None, "it was attached again");
        publish_modes.unpublished(&volume, DetachFrom::Droplet(there));
        assert_eq!(publish_modes.conflict(&volume, by(1, here), reader), Some(writer));
        publish_modes.unpublished(&volume, DetachFrom::Anywhere);
        assert_eq!(publish_modes.conflict(&volume, by(1, here), reader), None);
    }
}
