//! Deleting a volume.
//!
//! Owns the difference between a volume that is in use and one that DigitalOcean has not noticed yet to be free. Whether it
//! may be deleted at all is `owner`'s.

use log::{info, warn};

use super::Controller;
use super::action::Moves;
use super::holder::lacks;
use super::time::CallTime;
use super::verdict::{Verdict, plan_verdict};
use crate::cloud::droplet::Droplet;
use crate::cloud::error::ApiErrorKind;
use crate::error::{Error, Result};
use crate::id::{DropletId, VolumeId};
use crate::lock::{VolumeGuard, VolumeKey};

/// What to do about a volume that is not deleted because a droplet has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttachedPlan {
    /// DigitalOcean is about to notice that it is free.
    Wait,
    /// The droplet may be using it.
    Refuse,
}

/// Decides about a volume that is listed on a droplet.
fn plan_attached(moves: &Moves, droplet: Option<&Droplet>, id: &VolumeId) -> AttachedPlan {
    match moves {
        Moves::Detached | Moves::Running(_) => AttachedPlan::Wait,
        // The detaches that follow a droplet's end begin some seconds after it.
        Moves::Attached(..) | Moves::Stuck(_) | Moves::Unknown if lacks(droplet, id) => AttachedPlan::Wait,
        Moves::Attached(..) | Moves::Stuck(_) | Moves::Unknown => AttachedPlan::Refuse,
    }
}

impl Controller {
    /// Deletes a volume. One that does not exist, or an id that cannot be one, is deleted already.
    ///
    /// # Errors
    /// [`Error::NotOurs`] when no CSI driver has made it, or one for another owner; [`Error::StillAttached`] when a droplet
    /// has it, [`Error::OtherAccount`], [`Error::OutOfTime`], [`Error::Api`].
    pub fn delete_volume(&self, time: &CallTime, id: &str) -> Result<()> {
        let Ok(id) = VolumeId::parse(id) else { return Ok(()) };
        let guard = self.hold(time, VolumeKey::Id(id.to_string()))?;
        let Some(volume) = time.observe_volume_if_there(&id)? else { return Ok(()) };
        self.owner.check_deletion(&volume)?;
        self.ensure_deleted(&guard, time, &id)
    }

    fn ensure_deleted(&self, guard: &VolumeGuard, time: &CallTime, id: &VolumeId) -> Result<()> {
        let mut leaving = None;
        let outcome = self.delete_when_free(guard, time, id, &mut leaving);
        match (outcome, leaving) {
            // That a droplet still has it says more than what the last request met.
            (Err(Error::OutOfTime { .. }), Some(why)) => Err(time.out_of_time(&format!("deleting volume {id}"), why)),
            (outcome, _) => outcome,
        }
    }

    /// Deletes a volume; while it is on its way out, `leaving` says of where.
    fn delete_when_free(
        &self,
        _guard: &VolumeGuard,
        time: &CallTime,
        id: &VolumeId,
        leaving: &mut Option<String>,
    ) -> Result<()> {
        let doing = format!("deleting volume {id}");
        let mut pauses = time.pauses();
        let mut gone = None;
        loop {
            let err = match time.cloud.delete_volume(id) {
                Ok(()) => {
                    info!("deleted volume={id}");
                    return Ok(());
                }
                Err(err) => err,
            };
            match plan_verdict(&err) {
                Verdict::Missing if time.observe_volume_if_there(id)?.is_none() => return Ok(()),
                Verdict::Conflict => {
                    let Some(why) = self.observe_leaving(time, id, &mut gone)? else { return Ok(()) };
                    let why = leaving.insert(format!("{err}{why}"));
                    time.pause(pauses.after(&err), &doing, why)?;
                }
                Verdict::Missing | Verdict::Busy => time.pause(pauses.after(&err), &doing, &err)?,
                Verdict::Unclear => {
                    warn!("delete unclear, trying again doing={doing}: {err}");
                    time.pause(pauses.after(&err), &doing, &err)?;
                }
                Verdict::OutOfTime => return Err(time.out_of_time(&doing, err.to_string())),
                Verdict::Odd | Verdict::Limit | Verdict::Refused => return Err(Error::Api { doing, source: err }),
            }
        }
    }

    /// Sees that a volume which is said to be attached is on its way out, and says how; none: it is gone. `gone` keeps which
    /// droplet this call has seen not to exist: none comes back.
    fn observe_leaving(&self, time: &CallTime, id: &VolumeId, gone: &mut Option<DropletId>) -> Result<Option<String>> {
        let Some(volume) = time.observe_volume_if_there(id)? else { return Ok(None) };
        let Some(holder) = volume.droplets.first() else { return Ok(Some(String::new())) };
        let moves = self.observe_moves_if_there(time, id)?;
        let droplet = match &moves {
            Moves::Detached | Moves::Running(_) => return Ok(Some(String::new())),
            Moves::Attached(..) | Moves::Stuck(_) | Moves::Unknown if *gone == Some(*holder) => None,
            Moves::Attached(..) | Moves::Stuck(_) | Moves::Unknown => match time.observe_droplet(*holder) {
                // Where the token may not read droplets, the droplet may well be using it.
                Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::Forbidden => {
                    return Err(Error::StillAttached { volume: id.clone(), droplet: *holder });
                }
                seen => seen?,
            },
        };
        *gone = droplet.is_none().then_some(*holder);
        match plan_attached(&moves, droplet.as_ref(), id) {
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
        let attached = Moves::Attached(ActionId(1), None);
        for (moves, on_it, lacking, gone) in [
            (Moves::Detached, Wait, Wait, Wait),
            (Moves::Running(action()), Wait, Wait, Wait),
            (Moves::Stuck(action()), Refuse, Wait, Wait),
            (attached, Refuse, Wait, Wait),
            (Moves::Unknown, Refuse, Wait, Wait),
        ] {
            assert_eq!(plan_attached(&moves, Some(&with), &id), on_it, "{moves:?}");
            assert_eq!(plan_attached(&moves, Some(&without), &id), lacking, "{moves:?}");
            assert_eq!(plan_attached(&moves, None, &id), gone, "{moves:?}");
        }
    }
}
