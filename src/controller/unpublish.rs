//! Detaching a volume from a droplet, so that it is not there when the call says so.
//!
//! Owns the loop that ends only when the volume has been seen not to be on the droplet, or not to exist. The detach is
//! sent first, without a look: it is right in almost every case, and DigitalOcean refuses it harmlessly in the others. Once
//! DigitalOcean has carried one out, no second one is sent: the volume may be in use there again by then.

use std::time::Instant;

use log::{info, warn};

use super::Controller;
use super::action::{Ended, Moves, Waits, await_action};
use super::setback::Pair;
use super::time::CallTime;
use super::verdict::{Verdict, plan_verdict};
use crate::cloud::error::ApiError;
use crate::cloud::pace::ActionKind;
use crate::cloud::volume::Volume;
use crate::error::{Error, Result};
use crate::id::{DropletId, VolumeId};
use crate::lock::{Locked, VolumeGuard, VolumeKey};
use crate::request::controller::{DetachFrom, Unpublish};

/// What is known after a detach was sent.
#[derive(Debug)]
pub(super) enum Sent {
    /// DigitalOcean says that it is done.
    Completed,
    /// DigitalOcean says that it failed.
    Errored,
    /// DigitalOcean says that there is nothing to detach, or that something does not fit.
    Refused(ApiError),
    /// It is open whether it had an effect.
    Open(ApiError),
}

/// What to do while DigitalOcean says that the droplet is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenBusy {
    /// Keep the droplet's turn and try again.
    Wait,
    /// Return; whoever sent the detach has to think again.
    Return,
}

impl Controller {
    /// Detaches a volume from a droplet, or from wherever it is. Attached elsewhere, it is left alone.
    ///
    /// A second call sees that nothing is attached and changes nothing.
    ///
    /// # Errors
    /// [`Error::OutOfTime`] when the volume was still there at the end of the call, [`Error::Api`] when DigitalOcean
    /// refuses for good, [`Error::Locked`] at once when two calls like this one are running already. Calls that keep
    /// failing are answered later and later, so that a caller that repeats them in a hot loop does not use up the quota.
    pub fn unpublish(&self, time: CallTime, want: &Unpublish) -> Result<()> {
        let droplet = match want.from {
            DetachFrom::Droplet(droplet) => Some(droplet),
            DetachFrom::Anywhere => None,
        };
        let pair = (want.volume.clone(), droplet);
        // Who repeats a failed detach waits here, where it is in nobody's way but that of its own repetitions.
        let until = time.deadline().min(Instant::now() + time.patience.lock());
        let locked = |why| Locked::new(VolumeKey::Id(want.volume.to_string()), why);
        let _place = self.detaching.wait(pair.clone(), 1, until).map_err(locked)?;
        let time = self.await_setback(time, &pair)?;
        let guard = self.hold_in_line(&time, &want.volume)?;
        let outcome = match droplet {
            Some(droplet) => self.ensure_detached(&guard, &time, &want.volume, droplet),
            None => self.ensure_detached_everywhere(&guard, &time, &want.volume),
        };
        match &outcome {
            Ok(()) => {
                self.setbacks.succeeded(&pair);
                self.usages.unpublished(&want.volume, want.from);
            }
            Err(_) => self.setbacks.failed(pair, Instant::now()),
        }
        outcome
    }

    /// Waits as long as earlier failures demand; a call that had to has less time for the rest, and longer pauses in it.
    fn await_setback(&self, time: CallTime, pair: &Pair) -> Result<CallTime> {
        let Some(pause) = self.setbacks.pause_before(pair, Instant::now()) else { return Ok(time) };
        time.pause(pause, &format!("detaching volume {}", pair.0), &"the last try failed a moment ago")?;
        Ok(time.after_setback())
    }

    fn ensure_detached_everywhere(&self, guard: &VolumeGuard, time: &CallTime, id: &VolumeId) -> Result<()> {
        let (stale_since, mut pauses, mut waits) = (Instant::now(), time.retries(), Waits::new(time));
        loop {
            let Some(volume) = time.observe_volume_if_there(id)? else { return Ok(()) };
            if !volume.droplets.is_empty() {
                let detach = |droplet: &DropletId| self.ensure_detached(guard, time, id, *droplet);
                return volume.droplets.iter().try_for_each(detach);
            }
            let doing = format!("detaching volume {id}");
            match self.observe_moves_if_there(time, id)? {
                Moves::Running(action) => {
                    self.await_foreign(time, id, &action, &mut waits, &doing)?;
                }
                Moves::Attached(_) if stale_since.elapsed() < time.patience.shown() => {
                    time.pause(pauses.next_pause(), &doing, &"it has been attached, and that does not show")?;
                }
                Moves::Attached(_) | Moves::Detached | Moves::Unknown => return Ok(()),
            }
        }
    }

    fn ensure_detached(&self, guard: &VolumeGuard, time: &CallTime, id: &VolumeId, droplet: DropletId) -> Result<()> {
        let doing = detaching(id, droplet);
        let (mut pauses, mut waits) = (time.retries(), Waits::new(time));
        loop {
            let sent = self.apply_detach(guard, time, id, droplet, WhenBusy::Wait)?;
            let Some(volume) = time.observe_volume_if_there(id)? else { return Ok(()) };
            if matches!(sent, Sent::Completed) {
                return self.await_not_shown(time, volume, droplet);
            }
            let is_shown = volume.is_attached_to(droplet);
            let is_refused = matches!(sent, Sent::Refused(_));
            if is_refused || !is_shown {
                match self.observe_moves_if_there(time, id)? {
                    // An attach that is still running shows nothing yet, and would be there a moment after this answer.
                    Moves::Running(action) => {
                        self.await_foreign(time, id, &action, &mut waits, &doing)?;
                        continue;
                    }
                    // Nothing shows, but that may lag behind an attach. Only a refusal tells that there is nothing.
                    Moves::Attached(_) if !is_refused => {}
                    Moves::Attached(_) | Moves::Detached | Moves::Unknown if !is_shown => return Ok(()),
                    Moves::Attached(_) | Moves::Detached | Moves::Unknown => {}
                }
            }
            if is_shown && is_refused && self.is_without(time, droplet, id)? {
                return Ok(());
            }
            let why = match sent {
                Sent::Refused(err) | Sent::Open(err) => err.to_string(),
                Sent::Errored | Sent::Completed => "DigitalOcean's detach action errored".to_owned(),
            };
            time.pause(pauses.next_pause(), &doing, &why)?;
        }
    }

    /// Waits until a detach that was carried out is shown; `volume` is what was read first.
    fn await_not_shown(&self, time: &CallTime, mut volume: Volume, droplet: DropletId) -> Result<()> {
        let doing = detaching(&volume.id, droplet);
        let (since, mut pauses) = (Instant::now(), time.pauses());
        while volume.is_attached_to(droplet) {
            let why = "DigitalOcean's detach action completed, but the attachment is still shown";
            if since.elapsed() > time.patience.shown() {
                let is_without = self.is_without(time, droplet, &volume.id)?;
                return if is_without { Ok(()) } else { Err(time.out_of_time(&doing, why)) };
            }
            time.pause(pauses.next_pause(), &doing, &why)?;
            match time.observe_volume_if_there(&volume.id)? {
                Some(seen) => volume = seen,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether the droplet does not exist, or does not know of the volume: its record and the volume's are kept apart, and
    /// the volume's can lag behind for a while, most of all after a droplet was destroyed.
    fn is_without(&self, time: &CallTime, droplet: DropletId, id: &VolumeId) -> Result<bool> {
        let is_without = !self.has_volume(time, droplet, id)?;
        if is_without {
            info!("volume={id} is still shown on droplet={droplet}, which is gone or does not have it");
        }
        Ok(is_without)
    }

    fn observe_moves_if_there(&self, time: &CallTime, id: &VolumeId) -> Result<Moves> {
        match self.observe_moves(time, id) {
            Err(Error::NotFound(_)) => Ok(Moves::Unknown),
            other => other,
        }
    }

    /// Sends a detach when it is this call's turn, and waits for its end.
    pub(super) fn apply_detach(
        &self,
        _guard: &VolumeGuard,
        time: &CallTime,
        id: &VolumeId,
        droplet: DropletId,
        when_busy: WhenBusy,
    ) -> Result<Sent> {
        let doing = detaching(id, droplet);
        let _turn = self.take_turn(time, droplet, &doing)?;
        let mut pauses = time.pauses();
        loop {
            let err = match time.cloud.detach(id, droplet) {
                Ok(action) => {
                    return Ok(match await_action(time, &self.pace, id, ActionKind::Detach, &action, &doing)? {
                        Ended::Completed => {
                            info!("detached volume={id} droplet={droplet} action={}", action.id);
                            Sent::Completed
                        }
                        Ended::Errored => Sent::Errored,
                    });
                }
                Err(err) => err,
            };
            match plan_verdict(&err) {
                Verdict::Conflict | Verdict::Missing | Verdict::Odd => return Ok(Sent::Refused(err)),
                Verdict::Busy if when_busy == WhenBusy::Return => return Ok(Sent::Refused(err)),
                Verdict::Busy => time.pause(pauses.after(&err), &doing, &err)?,
                Verdict::Unclear => {
                    warn!("detach unclear, reading the volume doing={doing}: {err}");
                    return Ok(Sent::Open(err));
                }
                Verdict::OutOfTime => return Err(time.out_of_time(&doing, err.to_string())),
                Verdict::Limit | Verdict::Refused => return Err(Error::Api { doing, source: err }),
            }
        }
    }
}

fn detaching(id: &VolumeId, droplet: DropletId) -> String {
    format!("detaching volume {id} from droplet {droplet}")
}
