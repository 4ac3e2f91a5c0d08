//! Detaching a volume from a droplet, so that it is not there when the call says so.
//!
//! Owns the loop that ends only when the volume has been seen not to be on the droplet, or not to exist. The detach is
//! sent first, without a look: it is right in almost every case, and DigitalOcean refuses it harmlessly in the others.

use std::time::Instant;

use log::{info, warn};

use super::Controller;
use super::action::{Ended, await_action};
use super::time::{CallTime, Pauses};
use super::verdict::{Verdict, plan_verdict};
use crate::cloud::pace::ActionKind;
use crate::config::LOCK_PATIENCE;
use crate::error::{Error, Result};
use crate::id::{DropletId, VolumeId};
use crate::lock::{VolumeGuard, VolumeKey};
use crate::request::controller::{DetachFrom, Unpublish};

/// What is known after a detach was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// DigitalOcean says that it is done.
    Completed,
    /// DigitalOcean says that there is nothing to detach.
    NothingThere,
    /// It is open whether it had an effect.
    Unclear,
}

impl Controller {
    /// Detaches a volume from a droplet, or from wherever it is. Attached elsewhere, it is left alone.
    ///
    /// A second call sees that nothing is attached and changes nothing.
    ///
    /// # Errors
    /// [`Error::OutOfTime`] when the volume was still there at the end of the call, [`Error::Api`] when DigitalOcean
    /// refuses for good. Calls for a pair that keeps failing are answered later and later, so that a caller that repeats
    /// them in a hot loop does not use up the account's quota.
    pub fn unpublish(&self, want: &Unpublish) -> Result<()> {
        let droplet = match want.from {
            DetachFrom::Droplet(droplet) => Some(droplet),
            DetachFrom::Anywhere => None,
        };
        let pair = (want.volume.clone(), droplet);
        // Who repeats a failed detach waits here, where it is in nobody's way but that of its own repetitions.
        let queue = VolumeKey::Name(format!("{} being detached from {droplet:?}", want.volume));
        let _queue = self.locks.hold(queue, LOCK_PATIENCE)?;
        std::thread::sleep(self.setbacks.pause_before(&pair, Instant::now()));
        let guard = self.hold(&want.volume)?;
        let time = self.begin();
        let outcome = match droplet {
            Some(droplet) => self.ensure_detached(&guard, &time, &want.volume, droplet),
            None => self.ensure_detached_everywhere(&guard, &time, &want.volume),
        };
        match &outcome {
            Ok(()) => self.setbacks.succeeded(&pair),
            Err(_) => self.setbacks.failed(pair, Instant::now()),
        }
        outcome
    }

    fn ensure_detached_everywhere(&self, guard: &VolumeGuard, time: &CallTime, id: &VolumeId) -> Result<()> {
        let Some(volume) = time.observe_volume_if_there(id)? else { return Ok(()) };
        volume.droplets.iter().try_for_each(|droplet| self.ensure_detached(guard, time, id, *droplet))
    }

    /// Detaches a volume from a droplet, with the lock held.
    pub(super) fn ensure_detached(
        &self,
        guard: &VolumeGuard,
        time: &CallTime,
        id: &VolumeId,
        droplet: DropletId,
    ) -> Result<()> {
        let doing = format!("detaching volume {id} from droplet {droplet}");
        let mut pauses = Pauses::new();
        loop {
            let sent = self.apply_detach(guard, time, id, droplet, &doing)?;
            let Some(volume) = time.observe_volume_if_there(id)? else { return Ok(()) };
            if volume.is_attached_to(droplet) {
                if self.observe_droplet(time, droplet)?.is_none() {
                    info!("volume={id} is listed on droplet={droplet}, which does not exist any more");
                    return Ok(());
                }
                time.pause(pauses.next_pause(), &doing, &"DigitalOcean still shows the attachment")?;
                continue;
            }
            match sent {
                Sent::Completed => return Ok(()),
                // An attach that is still running shows nothing yet, and would be there a moment after this answer.
                Sent::NothingThere | Sent::Unclear if !self.is_changing_or_gone(time, id)? => return Ok(()),
                Sent::NothingThere | Sent::Unclear => {
                    time.pause(pauses.next_pause(), &doing, &"another action on the volume is running")?;
                }
            }
        }
    }

    fn is_changing_or_gone(&self, time: &CallTime, id: &VolumeId) -> Result<bool> {
        match self.is_changing(time, id) {
            Err(Error::NotFound(_)) => Ok(false),
            other => other,
        }
    }

    fn apply_detach(
        &self,
        _guard: &VolumeGuard,
        time: &CallTime,
        id: &VolumeId,
        droplet: DropletId,
        doing: &str,
    ) -> Result<Sent> {
        let busy = || time.out_of_time(doing, "earlier calls for this droplet are still running");
        let _turn = self.turns.take(droplet, time.deadline()).ok_or_else(busy)?;
        let mut pauses = Pauses::new();
        loop {
            let err = match time.cloud.detach(id, droplet) {
                Ok(action) => {
                    return Ok(match await_action(time, &self.pace, id, ActionKind::Detach, &action, doing)? {
                        Ended::Completed => {
                            info!("detached volume={id} droplet={droplet} action={}", action.id);
                            Sent::Completed
                        }
                        Ended::Errored => Sent::Unclear,
                    });
                }
                Err(err) => err,
            };
            match plan_verdict(&err) {
                Verdict::Conflict | Verdict::Missing => return Ok(Sent::NothingThere),
                Verdict::Busy => time.pause(pauses.after(&err), doing, &err)?,
                Verdict::Odd => return Ok(Sent::Unclear),
                Verdict::Unclear => {
                    warn!("detach unclear, reading the volume doing={doing}: {err}");
                    time.pause(pauses.after(&err), doing, &err)?;
                    return Ok(Sent::Unclear);
                }
                Verdict::OutOfTime => return Err(time.out_of_time(doing, err.to_string())),
                Verdict::Limit | Verdict::Refused => return Err(Error::Api { doing: doing.to_owned(), source: err }),
            }
        }
    }
}
