//! The owner's tag on volumes that are used, and what this process has learned of the token's scopes for tags.
//!
//! Owns that memory. A token need not have them: then attaching a volume would ask in vain each time, with a warning each
//! time. What was learned holds for an hour, as a token can be replaced while the plugin runs. Any other failure, such as no
//! answer at all, is remembered for minutes: no publish waits long for what it can do without.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::warn;

use crate::cloud::volume::Volume;
use crate::controller::context::CallContext;
use crate::controller::owner::Owner;
use crate::error::api::ApiErrorKind;
use crate::sync::volume_lock::VolumeGuard;

/// For how long a refusal for want of a scope is believed to be repeated.
const WITHOUT_SCOPE: Duration = Duration::from_secs(3600);
/// For how long nothing is asked after another failure: each may cost a publish seconds.
const AFTER_FAILURE: Duration = Duration::from_secs(300);

/// Until when no tag is put on.
#[derive(Debug, Default)]
struct Pause(Mutex<Option<Instant>>);

impl Pause {
    /// Takes notice of a failure; gives for how long it is remembered.
    fn enter(&self, failure: ApiErrorKind, now: Instant) -> Duration {
        let pause = if failure == ApiErrorKind::Forbidden { WITHOUT_SCOPE } else { AFTER_FAILURE };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now + pause);
        pause
    }

    fn is_on(&self, now: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until)
    }
}

/// Puts the owner's tag on volumes.
#[derive(Debug)]
pub(super) struct Tagger {
    owner: Owner,
    pause: Pause,
}

impl Tagger {
    pub(super) fn new(owner: Owner) -> Tagger {
        Tagger { owner, pause: Pause::default() }
    }

    /// Puts the owner's tag on a volume that does not have it. The volume is attached by now, so what goes wrong with
    /// the tag is no failure of the call; the next one tries again. One that is another owner's is used and stays theirs.
    pub(super) fn apply_tag(&self, _guard: &VolumeGuard, ctx: &CallContext, volume: &Volume) {
        let Some(tag) = self.owner.tag().filter(|tag| !volume.tags.iter().any(|have| tag.is(have))) else { return };
        if let Some((why, cure)) = self.owner.foreign(volume) {
            warn!(volume:% = volume.id, name:% = volume.name; "the volume is used, but not deleted, changed, or taken from a droplet that is off or gone: {why}; {cure}");
            return;
        }
        if self.pause.is_on(Instant::now()) {
            return;
        }
        let cloud = ctx.cloud.until(ctx.deadline().min(Instant::now() + ctx.patience.optional()));
        let Err(err) = cloud.tag_volume(&volume.id, tag) else { return };
        let is_refused = err.kind() == ApiErrorKind::Forbidden;
        let cause = if is_refused { "the token lacks tag:create or block_storage:update: " } else { "" };
        let minutes = self.pause.enter(err.kind(), Instant::now()).as_secs() / 60;
        warn!(volume:% = volume.id, tag = tag.as_str(), request = err.request_id(); "the volume is not tagged, and for {minutes} minutes no other is: {cause}{err}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_remembered_for_an_hour_and_another_failure_for_minutes() {
        for (kind, seconds) in
            [(ApiErrorKind::Forbidden, 3600), (ApiErrorKind::Server, 300), (ApiErrorKind::NoTimeLeft, 300)]
        {
            let (pause, now) = (Pause::default(), Instant::now());
            assert!(!pause.is_on(now));
            pause.enter(kind, now);
            assert!(pause.is_on(now + Duration::from_secs(seconds - 1)), "{kind:?}");
            assert!(!pause.is_on(now + Duration::from_secs(seconds)), "{kind:?}");
        }
    }
}
