//! Deleting a volume.
//!
//! Owns the difference between a volume that is in use and one that DigitalOcean has not noticed yet to be free. Whether it
//! may be deleted at all is `owner`'s.

use log::warn;

use crate::activity::{About, Change, tell_change};
use crate::cloud::droplet::Droplet;
use crate::controller::Controller;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::{CallContext, pause_after};
use crate::controller::last_action::LastAction;
use crate::controller::takeover::lacks;
use crate::error::api::ApiErrorKind;
use crate::error::{Error, Result};
use crate::id::{DropletId, VolumeId};
use crate::sync::volume_lock::{VolumeGuard, VolumeKey};

/// What to do about a volume that is not deleted because a droplet has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttachedPlan {
    /// DigitalOcean is about to notice that it is free.
    Wait,
    /// The droplet may be using it.
    Refuse,
}

/// Decides about a volume that is listed on a droplet.
fn plan_attached(last_action: &LastAction, droplet: Option<&Droplet>, id: &VolumeId) -> AttachedPlan {
    match last_action {
        LastAction::Detached | LastAction::Running(_) => AttachedPlan::Wait,
        // The detaches that follow a droplet's end begin some seconds after it.
        LastAction::Attached(..) | LastAction::Stuck(_) | LastAction::Unknown if lacks(droplet, id) => {
            AttachedPlan::Wait
        }
        LastAction::Attached(..) | LastAction::Stuck(_) | LastAction::Unknown => AttachedPlan::Refuse,
    }
}

impl Controller {
    /// Deletes a volume. One that does not exist, or an id that cannot be one, is deleted already.
    ///
    /// # Errors
    /// [`Error::NotOurs`] when no CSI driver has made it, or one for another owner; [`Error::StillAttached`] when a droplet
    /// has it, [`Error::OtherAccount`], [`Error::TimedOut`], [`Error::Api`].
    pub fn delete_volume(&self, ctx: &CallContext, id: &str) -> Result<()> {
        let Ok(id) = VolumeId::parse(id) else { return Ok(()) };
        let guard = self.hold(ctx, VolumeKey::Id(id.to_string()))?;
        let Some(volume) = ctx.observe_volume_if_there(&id)? else { return Ok(()) };
        self.owner.check_deletion(&volume)?;
        self.ensure_deleted(&guard, ctx, &id)
    }

    fn ensure_deleted(&self, guard: &VolumeGuard, ctx: &CallContext, id: &VolumeId) -> Result<()> {
        let mut leaving = None;
        let outcome = self.delete_when_free(guard, ctx, id, &mut leaving);
        match (outcome, leaving) {
            // That a droplet still has it says more than what the last request met.
            (Err(Error::TimedOut { .. }), Some(why)) => Err(ctx.timed_out(&format!("deleting volume {id}"), why)),
            (outcome, _) => outcome,
        }
    }

    /// Deletes a volume; while it is on its way out, `leaving` says of where.
    fn delete_when_free(
        &self,
        _guard: &VolumeGuard,
        ctx: &CallContext,
        id: &VolumeId,
        leaving: &mut Option<String>,
    ) -> Result<()> {
        let doing = format!("deleting volume {id}");
        let mut pauses = ctx.backoff();
        let mut gone = None;
        loop {
            ctx.ensure_awaited()?;
            let err = match ctx.cloud.delete_volume(id) {
                Ok(()) => {
                    tell_change(Change::Deleted, "deleted", About::default().with("volume", id));
                    return Ok(());
                }
                Err(err) => err,
            };
            match plan_failure(&err) {
                ApiFailure::NotFound if ctx.observe_volume_if_there(id)?.is_none() => return Ok(()),
                ApiFailure::StateConflict => {
                    let Some(why) = self.observe_leaving(ctx, id, &mut gone)? else { return Ok(()) };
                    let why = leaving.insert(format!("{err}{why}"));
                    ctx.pause(pause_after(&mut pauses, &err), &doing, why)?;
                }
                ApiFailure::NotFound | ApiFailure::Retryable => {
                    ctx.pause(pause_after(&mut pauses, &err), &doing, &err)?
                }
                ApiFailure::OutcomeUnknown => {
                    warn!(request = err.request_id(); "{doing}: unclear whether it was done, trying again: {err}");
                    ctx.pause(pause_after(&mut pauses, &err), &doing, &err)?;
                }
                ApiFailure::OutOfTime => return Err(ctx.timed_out(&doing, err.to_string())),
                ApiFailure::Unrecognized | ApiFailure::LimitReached | ApiFailure::Permanent => {
                    return Err(Error::Api { doing, source: err });
                }
            }
        }
    }

    /// Sees that a volume which is said to be attached is on its way out, and says how; none: it is gone. `gone` keeps which
    /// droplet this call has seen not to exist: none comes back.
    fn observe_leaving(
        &self,
        ctx: &CallContext,
        id: &VolumeId,
        gone: &mut Option<DropletId>,
    ) -> Result<Option<String>> {
        let Some(volume) = ctx.observe_volume_if_there(id)? else { return Ok(None) };
        // It may have been handed over to another owner meanwhile.
        self.owner.check_deletion(&volume)?;
        let Some(holder) = volume.droplets.first() else { return Ok(Some(String::new())) };
        let last_action = ctx.observe_last_action_if_there(id)?;
        let droplet = match &last_action {
            LastAction::Detached | LastAction::Running(_) => return Ok(Some(String::new())),
            LastAction::Attached(..) | LastAction::Stuck(_) | LastAction::Unknown if *gone == Some(*holder) => None,
            LastAction::Attached(..) | LastAction::Stuck(_) | LastAction::Unknown => match ctx.observe_droplet(*holder)
            {
                // Where the token may not read droplets, the droplet may well be using it.
                Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::Forbidden => {
                    return Err(Error::StillAttached { volume: id.clone(), droplet: *holder });
                }
                seen => seen?,
            },
        };
        *gone = droplet.is_none().then_some(*holder);
        match plan_attached(&last_action, droplet.as_ref(), id) {
            AttachedPlan::Wait => Ok(Some(in_words(*holder, droplet.is_some(), id))),
            AttachedPlan::Refuse => Err(Error::StillAttached { volume: id.clone(), droplet: *holder }),
        }
    }
}

fn in_words(holder: DropletId, is_there: bool, id: &VolumeId) -> String {
    let state = if is_there { "does not have it" } else { "does not exist any more" };
    format!(
        "; it is listed on droplet {holder}, which {state}; if that stays so, run `doctl compute volume-action detach {id} \
         {holder}`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::action::{Action, ActionStatus};
    use crate::cloud::droplet::DropletStatus;
    use crate::id::ActionId;

    #[test]
    fn only_a_volume_that_nobody_can_be_using_is_waited_for() {
        use AttachedPlan::{Refuse, Wait};
        let id = VolumeId::parse("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2").unwrap();
        let action = || Action {
            id: ActionId(1),
            status: ActionStatus::InProgress,
            kind: "detach_volume".to_owned(),
            started_at: None,
        };
        let droplet = |volumes| Droplet {
            id: DropletId::new(7).unwrap(),
            name: "a".to_owned(),
            status: DropletStatus::Active,
            region: None,
            volumes,
        };
        let (with, without) = (droplet(vec![id.clone()]), droplet(Vec::new()));
        let attached = LastAction::Attached(ActionId(1), None);
        for (last_action, on_it, lacking, gone) in [
            (LastAction::Detached, Wait, Wait, Wait),
            (LastAction::Running(action()), Wait, Wait, Wait),
            (LastAction::Stuck(action()), Refuse, Wait, Wait),
            (attached, Refuse, Wait, Wait),
            (LastAction::Unknown, Refuse, Wait, Wait),
        ] {
            assert_eq!(plan_attached(&last_action, Some(&with), &id), on_it, "{last_action:?}");
            assert_eq!(plan_attached(&last_action, Some(&without), &id), lacking, "{last_action:?}");
            assert_eq!(plan_attached(&last_action, None, &id), gone, "{last_action:?}");
        }
    }
}
