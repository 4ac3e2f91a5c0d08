//! How volumes were published, so that a second, different use on the same droplet is refused.
//!
//! Owns what this process remembers of it: for the one attachment that the volume has, known by the number of the action
//! that made it. DigitalOcean knows only that a volume is attached, so what another plugin published, or this one before
//! it was restarted, counts as published in whatever way is asked for next, and with the attachment the memory of it is
//! over. That a reader cannot write is not brought about here but on the node, from the publish context.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cloud::volume::Volume;
use crate::controller::recent::Recent;
use crate::error::{Error, Result};
use crate::id::{ActionId, DropletId, VolumeId};
use crate::request::attachment::{DetachFrom, Publish, PublishMode};
use crate::sync::volume_lock::VolumeGuard;

/// An attachment of a volume, as this process knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attachment {
    /// Where the volume is.
    droplet: DropletId,
    /// The action that brought it there; none: DigitalOcean does not tell.
    action: Option<ActionId>,
}

/// The uses of the volumes that this process published, and the droplets that it took them from.
#[derive(Debug)]
pub(super) struct PublishModes {
    table: Mutex<Recent<VolumeId, (Attachment, PublishMode)>>,
    /// Where this process has seen that the volume is not, and has not brought it since.
    taken_from: Mutex<Recent<(VolumeId, DropletId), ()>>,
    /// Whether one droplet may have a volume for different uses.
    mixed_access: bool,
}

impl PublishModes {
    /// Remembers nothing yet.
    pub(super) fn new(mixed_access: bool) -> PublishModes {
        PublishModes { table: Mutex::default(), taken_from: Mutex::default(), mixed_access }
    }

    /// Sees that a volume which is on the droplet is not used there in another way than asked, and remembers the way. `by` is
    /// the attach that brought it there, as far as it is known.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub(super) fn settle(
        &self,
        _guard: &VolumeGuard,
        want: &Publish,
        volume: &Volume,
        by: Option<ActionId>,
    ) -> Result<()> {
        let at = Attachment { droplet: want.droplet, action: by };
        match self.conflict(&want.volume, at, want.mode) {
            Some(have) if !self.mixed_access => Err(Error::Mismatch {
                thing: format!("volume {} ({}) on droplet {}", volume.name, volume.id, want.droplet),
                have: in_words(have),
                want: format!("{} (--mixed-access allows both)", in_words(want.mode)),
            }),
            Some(_) | None => {
                self.published(&want.volume, at, want.mode);
                Ok(())
            }
        }
    }

    /// The use that contradicts the one asked for, if there is one.
    fn conflict(&self, volume: &VolumeId, at: Attachment, want: PublishMode) -> Option<PublishMode> {
        let known = lock(&self.table).get(volume).copied();
        known.and_then(|(known_at, have)| (known_at == at && have != want).then_some(have))
    }

    /// Remembers that a volume was published.
    fn published(&self, volume: &VolumeId, at: Attachment, mode: PublishMode) {
        lock(&self.taken_from).remove(&(volume.clone(), at.droplet));
        lock(&self.table).insert(volume.clone(), (at, mode));
    }

    /// The action that attached a volume where this process published it last.
    pub(super) fn attached_by(&self, volume: &VolumeId, droplet: DropletId) -> Option<ActionId> {
        let known = lock(&self.table).get(volume).copied();
        known.filter(|(at, _)| at.droplet == droplet).and_then(|(at, _)| at.action)
    }

    /// Forgets a volume that was detached.
    pub(super) fn unpublished(&self, volume: &VolumeId, from: DetachFrom) {
        let is_meant = |holder: DropletId| match from {
            DetachFrom::Droplet(droplet) => droplet == holder,
            DetachFrom::Anywhere => true,
        };
        let mut table = lock(&self.table);
        if table.get(volume).is_some_and(|(at, _)| is_meant(at.droplet)) {
            table.remove(volume);
        }
    }

    /// Remembers that a volume has been seen not to be on a droplet.
    pub(super) fn taken_from(&self, volume: &VolumeId, droplet: DropletId) {
        lock(&self.taken_from).insert((volume.clone(), droplet), ());
    }

    /// What this process knows of a volume that is to be taken from a droplet.
    pub(super) fn memory(&self, volume: &VolumeId, droplet: DropletId) -> Memory {
        let published = lock(&self.table).get(volume).copied();
        match published {
            Some((at, _)) if at.droplet != droplet => Memory::PublishedElsewhere(at.action),
            Some(_) => Memory::None,
            None if lock(&self.taken_from).get(&(volume.clone(), droplet)).is_some() => Memory::Taken,
            None => Memory::None,
        }
    }
}

/// What this process knows of a volume that is to be taken from a droplet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// Nothing that matters.
    None,
    /// It has taken the volume from there, or seen that it is not there.
    Taken,
    /// It has published the volume on another droplet since, after this attach as far as it is known.
    PublishedElsewhere(Option<ActionId>),
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
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
        let publish_modes = PublishModes::new(false);
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

    #[test]
    fn what_was_taken_from_a_droplet_is_remembered_until_it_is_brought_back() {
        let volume = VolumeId::parse("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2").unwrap();
        let (here, there) = (DropletId::new(1).unwrap(), DropletId::new(2).unwrap());
        let mode = PublishMode { is_read_only: false, is_block: false };
        let modes = PublishModes::new(false);
        let memory = |droplet| modes.memory(&volume, droplet);
        assert_eq!(memory(here), Memory::None);
        modes.taken_from(&volume, here);
        assert_eq!((memory(here), memory(there)), (Memory::Taken, Memory::None));
        modes.published(&volume, Attachment { droplet: there, action: Some(ActionId(7)) }, mode);
        assert_eq!((memory(here), memory(there)), (Memory::PublishedElsewhere(Some(ActionId(7))), Memory::None));
        modes.published(&volume, Attachment { droplet: here, action: None }, mode);
        assert_eq!((memory(here), memory(there)), (Memory::None, Memory::PublishedElsewhere(None)));
        modes.unpublished(&volume, DetachFrom::Droplet(here));
        assert_eq!(memory(here), Memory::None, "another plugin may have published it since");
    }
}
