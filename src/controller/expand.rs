//! Making a volume larger, while it is used or not.
//!
//! Owns the loop that ends only when the volume has been seen to have the size. That the disk, and the file system on it,
//! become as large is the node's.

use std::time::Instant;

use log::{info, warn};

use super::Controller;
use super::action::{Ended, await_action};
use super::time::CallTime;
use super::verdict::{Verdict, plan_verdict};
use crate::cloud::error::{ApiError, ApiErrorKind};
use crate::cloud::pace::ActionKind;
use crate::cloud::volume::Volume;
use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::lock::{VolumeGuard, VolumeKey};
use crate::request::change::Expand;
use crate::size::{Gib, plan_growth};

impl Controller {
    /// Brings a volume's size into a range, by growing it when it is smaller.
    ///
    /// A second call sees the size and changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotOurs`], [`Error::SizeOutOfRange`] when it is larger than asked already, or would have to become larger
    /// than a volume may be, [`Error::AccountLimit`], [`Error::OutOfTime`].
    pub fn expand(&self, time: &CallTime, want: &Expand) -> Result<Volume> {
        let guard = self.hold(time, VolumeKey::Id(want.volume.to_string()))?;
        let volume = time.observe_volume(&want.volume)?;
        self.owner.check_change(&volume, "grown")?;
        match plan_growth(volume.size, &want.range, &self.limits).map_err(Error::SizeOutOfRange)? {
            None => Ok(volume),
            Some(size) => self.ensure_size(&guard, time, volume, size),
        }
    }

    /// Grows a volume, as it was just read, to at least this size, with the lock held.
    pub(super) fn ensure_size(
        &self,
        guard: &VolumeGuard,
        time: &CallTime,
        mut volume: Volume,
        size: Gib,
    ) -> Result<Volume> {
        let id = volume.id.clone();
        let doing = format!("growing volume {id} to {size}");
        let mut pauses = time.retries();
        while volume.size < size {
            match self.apply_resize(guard, time, &volume, size, &doing)? {
                Ended::Completed => volume = self.await_size(time, &id, size, &doing)?,
                Ended::Errored | Ended::Overdue => {
                    time.pause(pauses.next_pause(), &doing, &"the volume does not have the size yet")?;
                    volume = time.observe_volume(&id)?;
                }
            }
        }
        Ok(volume)
    }

    /// Waits until a size that DigitalOcean says it has made is shown. Asked for again, it would be refused.
    fn await_size(&self, time: &CallTime, id: &VolumeId, size: Gib, doing: &str) -> Result<Volume> {
        let mut pauses = time.pauses();
        loop {
            let volume = time.observe_volume(id)?;
            if volume.size >= size {
                return Ok(volume);
            }
            time.pause(
                pauses.next_pause(),
                doing,
                &"DigitalOcean's resize action completed, but the size does not show",
            )?;
        }
    }

    /// Starts a resize and waits for its end. Says whether it completed; the caller looks in any case.
    fn apply_resize(
        &self,
        _guard: &VolumeGuard,
        time: &CallTime,
        volume: &Volume,
        size: Gib,
        doing: &str,
    ) -> Result<Ended> {
        let region = match &volume.region {
            Some(region) => region.clone(),
            None => self.own_droplet.region()?,
        };
        let turns = volume.droplets.iter().map(|droplet| self.take_turn(time, *droplet, doing));
        let turns = turns.collect::<Result<Vec<_>>>()?;
        let mut pauses = time.pauses();
        loop {
            let err = match time.cloud.resize(&volume.id, size, &region) {
                Ok(action) => {
                    let ended = await_action(time, &self.pace, &volume.id, ActionKind::Resize, &action, doing)?;
                    if ended == Ended::Completed {
                        info!(
                            "resized volume={} from=\"{}\" to=\"{size}\" action={}",
                            volume.id, volume.size, action.id
                        );
                    }
                    return Ok(ended);
                }
                Err(err) => err,
            };
            match plan_verdict(&err) {
                Verdict::Busy => time.pause(pauses.after(&err), doing, &err)?,
                // Whether the volume is gone, reading it tells.
                Verdict::Unclear | Verdict::Conflict | Verdict::Missing => {
                    warn!("resize unclear, reading the volume again doing={doing}: {err}");
                    return Ok(Ended::Errored);
                }
                Verdict::Limit => return Err(Error::AccountLimit { doing: doing.to_owned(), source: err }),
                Verdict::OutOfTime => return Err(time.out_of_time(doing, err.to_string())),
                Verdict::Odd | Verdict::Refused => {
                    // Nothing runs on the droplets, and others may be waiting for their turn.
                    drop(turns);
                    return if self.is_that_large(time, &volume.id, size, &err, doing)? {
                        Ok(Ended::Completed)
                    } else {
                        Err(Error::Api { doing: doing.to_owned(), source: err })
                    };
                }
            }
        }
    }

    /// Whether a volume turns out to be large enough after a resize was refused: another one, of this plugin in another life
    /// or of somebody else, may have made it so. DigitalOcean knows that at once, and may show it later.
    fn is_that_large(&self, time: &CallTime, id: &VolumeId, size: Gib, err: &ApiError, doing: &str) -> Result<bool> {
        let (since, mut pauses) = (Instant::now(), time.pauses());
        let may_show_late = matches!(err.kind(), ApiErrorKind::InvalidSize | ApiErrorKind::Unprocessable);
        loop {
            if time.observe_volume(id)?.size >= size {
                return Ok(true);
            }
            if !may_show_late || since.elapsed() > time.patience.shown() {
                return Ok(false);
            }
            time.pause(pauses.next_pause(), doing, err)?;
        }
    }
}
