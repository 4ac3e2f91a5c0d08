//! The owner's tag on volumes that are used, and what this process has learned of the token's scopes for tags.
//!
//! Owns that memory. A token need not have them: then attaching a volume would ask in vain each time, with a warning each
//! time. What was learned holds for an hour, as a token can be replaced while the plugin runs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::warn;

use crate::cloud::volume::Volume;
use crate::controller::context::CallContext;
use crate::controller::owner::Owner;
use crate::error::api::ApiErrorKind;
use crate::sync::volume_lock::VolumeGuard;

/// For how long a refusal is believed to be repeated.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Whether something was refused for want of a scope.
#[derive(Debug, Default)]
struct Refused(Mutex<Option<Instant>>);

impl Refused {
    /// Takes notice of a refusal.
    fn enter(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether it is known to be refused.
    fn is_known(&self) -> bool {
        self.is_known_at(Instant::now())
    }

    fn is_known_at(&self, now: Instant) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| now < since + REMEMBERED)
    }
}

/// Puts the owner's tag on volumes.
#[derive(Debug)]
pub(super) struct Tagger {
    owner: Owner,
    refused: Refused,
}

impl Tagger {
    pub(super) fn new(owner: Owner) -> Tagger {
        Tagger { owner, refused: Refused::default() }
    }

    /// Puts the owner's tag on a volume that does not have it. The volume is attached by now, so what goes wrong with
    /// the tag is no failure of the call; the next one tries again. One that is another owner's is used and stays theirs.
    pub(super) fn apply_tag(&self, _guard: &VolumeGuard, ctx: &CallContext, volume: &Volume) {
        let Some(tag) = self.owner.tag().filter(|tag| !volume.tags.iter().any(|have| tag.is(have))) else { return };
        if let Some((why, cure)) = self.owner.foreign(volume) {
            warn!(volume:% = volume.id, name:% = volume.name; "the volume is used, but not deleted, changed, or taken from a droplet that is off or gone: {why}; {cure}");
            return;
        }
        if self.refused.is_known() {
            return;
        }
        let Err(err) = ctx.cloud.tag_volume(&volume.id, tag) else { return };
        if err.kind() == ApiErrorKind::Forbidden {
            self.refused.enter();
            warn!(volume:% = volume.id, tag = tag.as_str(), request = err.request_id(); "the volume is not tagged, and for the next hour no other is: the token lacks tag:create or block_storage:update: {err}");
        } else {
            warn!(volume:% = volume.id, tag = tag.as_str(), request = err.request_id(); "the volume is not tagged: {err}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_remembered_for_an_hour() {
        let refused = Refused::default();
        assert!(!refused.is_known());
        refused.enter();
        assert!(refused.is_known());
        assert!(!refused.is_known_at(Instant::now() + REMEMBERED));
    }
}
