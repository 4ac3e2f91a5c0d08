//! Making a volume larger, while it is used or not.
//!
//! Owns the loop that ends only when the volume has been seen to have the size. That the disk, and the file system on it,
//! become as large is the node's.

use std::time::Instant;

use log::{info, warn};

use crate::cloud::volume::Volume;
use crate::controller::Controller;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::CallContext;
use crate::controller::poll::ActionKind;
use crate::controller::run_action::{ActionOutcome, await_action};
use crate::error::api::{ApiError, ApiErrorKind};
use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::request::volume_change::Expand;
use crate::size::{Gib, plan_growth};
use crate::sync::volume_lock::{VolumeGuard, VolumeKey};

impl Controller {
    /// Brings a volume's size into a range, by growing it when it is smaller.
    ///
    /// A second call sees the size and changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotOurs`], [`Error::SizeOutOfRange`] when it is larger than asked already, or would have to become larger
    /// than a volume may be, [`Error::AccountLimit`], [`Error::TimedOut`].
    pub fn expand(&self, ctx: &CallContext, want: &Expand) -> Result<Volume> {
        let guard = self.hold(ctx, VolumeKey::Id(want.volume.to_string()))?;
        let volume = ctx.observe_volume(&want.volume)?;
        self.owner.check_change(&volume, "grown")?;
        match plan_growth(volume.size, &want.range, &self.limits).map_err(Error::SizeOutOfRange)? {
            None => Ok(volume),
            Some(size) => self.ensure_size(&guard, ctx, volume, size),
        }
    }

    /// Grows a volume, as it was just read, to at least this size, with the lock held.
    pub(super) fn ensure_size(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        mut volume: Volume,
        size: Gib,
    ) -> Result<Volume> {
        let id = volume.id.clone();
        let doing = format!("growing volume {id} to {size}");
        let mut pauses = ctx.retry_backoff();
        while volume.size < size {
            match self.apply_resize(guard, ctx, &volume, size, &doing)? {
                ActionOutcome::Completed => volume = self.await_size(ctx, &id, size, &doing)?,
                ActionOutcome::Errored | ActionOutcome::Overdue => {
                    ctx.pause(pauses.next_pause(), &doing, &"the volume does not have the size yet")?;
                    volume = ctx.observe_volume(&id)?;
                }
            }
        }
        Ok(volume)
    }

    /// Waits until a size that DigitalOcean says it has made is shown. Asked for again, it would be refused.
    fn await_size(&self, ctx: &CallContext, id: &VolumeId, size: Gib, doing: &str) -> Result<Volume> {
        let mut pauses = ctx.backoff();
        loop {
            let volume = ctx.observe_volume(id)?;
            if volume.size >= size {
                return Ok(volume);
            }
            ctx.pause(
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
        ctx: &CallContext,
        volume: &Volume,
        size: Gib,
        doing: &str,
    ) -> Result<ActionOutcome> {
        let region = match &volume.region {
            Some(region) => region.clone(),
            None => self.droplet_identity.region()?,
        };
        let droplet_queue = volume.droplets.iter().map(|droplet| self.wait_for_droplet(ctx, *droplet, doing));
        let droplet_queue = droplet_queue.collect::<Result<Vec<_>>>()?;
        let mut pauses = ctx.backoff();
        loop {
            let err = match ctx.cloud.resize(&volume.id, size, &region) {
                Ok(action) => {
                    let ended = await_action(ctx, &self.pace, &volume.id, ActionKind::Resize, &action, doing)?;
                    if ended == ActionOutcome::Completed {
                        info!(
                            "resized volume={} from=\"{}\" to=\"{size}\" action={}",
                            volume.id, volume.size, action.id
                        );
                    }
                    return Ok(ended);
                }
                Err(err) => err,
            };
            match plan_failure(&err) {
                ApiFailure::Retryable => ctx.pause(pauses.after(&err), doing, &err)?,
                // Whether the volume is gone, reading it tells.
                ApiFailure::OutcomeUnknown | ApiFailure::StateConflict | ApiFailure::NotFound => {
                    warn!("resize unclear, reading the volume again doing={doing}: {err}");
                    return Ok(ActionOutcome::Errored);
                }
                ApiFailure::LimitReached => return Err(Error::AccountLimit { doing: doing.to_owned(), source: err }),
                ApiFailure::OutOfTime => return Err(ctx.timed_out(doing, err.to_string())),
                ApiFailure::Unrecognized | ApiFailure::Permanent => {
                    // Nothing runs on the droplets, and others may be waiting for their turn.
                    drop(droplet_queue);
                    return if self.is_that_large(ctx, &volume.id, size, &err, doing)? {
                        Ok(ActionOutcome::Completed)
                    } else {
                        Err(Error::Api { doing: doing.to_owned(), source: err })
                    };
                }
            }
        }
    }

    /// Whether a volume turns out to be large enough after a resize was refused: another one, of this plugin in another life
    /// or of somebody else, may have made it so. DigitalOcean knows that at once, and may show it later.
    fn is_that_large(&self, ctx: &CallContext, id: &VolumeId, size: Gib, err: &ApiError, doing: &str) -> Result<bool> {
        let (since, mut pauses) = (Instant::now(), ctx.backoff());
        let may_show_late = matches!(err.kind(), ApiErrorKind::InvalidSize | ApiErrorKind::Unprocessable);
        loop {
            if ctx.observe_volume(id)?.size >= size {
                return Ok(true);
            }
            if !may_show_late || since.elapsed() > ctx.patience.propagation() {
                return Ok(false);
            }
            ctx.pause(pauses.next_pause(), doing, err)?;
        }
    }
}
