//! Making a volume larger, while it is used or not.
//!
//! Owns the loop that ends only when the volume has been seen to have the size. That the disk, and the file system on it,
//! become as large is the node's.

use std::time::Instant;

use crate::backoff::Backoff;
use crate::cloud::volume::Volume;
use crate::controller::Controller;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::CallContext;
use crate::controller::run_action::{ActionOutcome, ActionRequest, OnBusy};
use crate::error::api::{ApiError, ApiErrorKind};
use crate::error::{Error, Result};
use crate::id::{ActionId, VolumeId};
use crate::request::volume_change::Expand;
use crate::size::{Gib, plan_growth};
use crate::sync::volume_lock::{VolumeGuard, VolumeKey};

/// How a try to grow a volume ended.
#[derive(Debug)]
enum GrowStep {
    /// It has been seen to have the size.
    Done(Volume),
    /// The droplet is busy.
    Busy(ApiError),
    /// It is open whether it has grown, for this reason.
    Unclear(String),
}

/// The pauses of one call.
#[derive(Debug)]
struct GrowWaits {
    busy: Backoff,
    unclear: Backoff,
}

impl Controller {
    /// Brings a volume's size into a range, by growing it when it is smaller.
    ///
    /// A second call sees the size and changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotOurs`], [`Error::SizeOutOfRange`] when it is larger than asked already, or would have to become larger
    /// than a volume may be, [`Error::AccountLimit`], [`Error::TimedOut`].
    pub fn expand(&self, ctx: &CallContext, want: &Expand) -> Result<Volume> {
        let mut waits = grow_waits(ctx);
        loop {
            let guard = self.hold(ctx, VolumeKey::Id(want.volume.to_string()))?;
            let volume = ctx.observe_volume(&want.volume)?;
            self.owner.check_change(&volume, "grown")?;
            let Some(size) = plan_growth(volume.size, &want.range, &self.limits).map_err(Error::SizeOutOfRange)? else {
                return Ok(volume);
            };
            let step = self.apply_growth(&guard, ctx, &volume, size)?;
            // While the droplet is busy, the volume can be detached from it.
            drop(guard);
            if let GrowStep::Done(volume) = step {
                return Ok(volume);
            }
            self.wait_to_grow(ctx, &volume, size, &step, &mut waits)?;
        }
    }

    /// Grows a volume, as it was just read, to at least this size, with the lock held: nobody else knows of it yet.
    pub(super) fn ensure_size(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        mut volume: Volume,
        size: Gib,
    ) -> Result<Volume> {
        let mut waits = grow_waits(ctx);
        while volume.size < size {
            let step = self.apply_growth(guard, ctx, &volume, size)?;
            volume = if let GrowStep::Done(grown) = step {
                grown
            } else {
                self.wait_to_grow(ctx, &volume, size, &step, &mut waits)?;
                ctx.observe_volume(&volume.id)?
            };
        }
        Ok(volume)
    }

    /// Waits until a size that DigitalOcean says it has made is shown. Asked for again, it would be refused.
    fn await_size(&self, ctx: &CallContext, id: &VolumeId, size: Gib, action: Option<ActionId>) -> Result<Volume> {
        let doing = format!("growing volume {id} to {size}");
        let why = match action {
            Some(action) => format!("DigitalOcean's resize action {action} completed, but the size does not show"),
            None => "DigitalOcean says that it is so large, but the size does not show".to_owned(),
        };
        let mut pauses = ctx.backoff();
        loop {
            let volume = ctx.observe_volume(id)?;
            if volume.size >= size {
                return Ok(volume);
            }
            ctx.pause(pauses.next_pause(), &doing, &why)?;
        }
    }

    /// Grows a volume once, and reads back what that has brought about.
    fn apply_growth(&self, guard: &VolumeGuard, ctx: &CallContext, volume: &Volume, size: Gib) -> Result<GrowStep> {
        let region = match &volume.region {
            Some(region) => region.clone(),
            None => self.droplet_identity.region()?,
        };
        let request = ActionRequest::Resize { volume, size, region: &region };
        let doing = request.to_string();
        let outcome = self.runner.run(guard, ctx, &request, OnBusy::Return)?;
        let why = outcome.in_words("resize");
        let err = match outcome {
            ActionOutcome::Completed(action) => {
                return self.await_size(ctx, &volume.id, size, Some(action)).map(GrowStep::Done);
            }
            ActionOutcome::Errored(_)
            | ActionOutcome::Overdue(_)
            | ActionOutcome::Open(_)
            | ActionOutcome::Withdrawn => {
                return Ok(GrowStep::Unclear(why));
            }
            ActionOutcome::Busy(err) => return Ok(GrowStep::Busy(err)),
            ActionOutcome::Refused(err) => err,
        };
        match plan_failure(&err) {
            // Whether the volume is gone, reading it tells.
            ApiFailure::StateConflict
            | ApiFailure::NotFound
            | ApiFailure::Retryable
            | ApiFailure::OutcomeUnknown
            | ApiFailure::OutOfTime => Ok(GrowStep::Unclear(why)),
            ApiFailure::LimitReached => Err(Error::AccountLimit { doing, source: err }),
            ApiFailure::Unrecognized | ApiFailure::Permanent => {
                if self.is_that_large(ctx, &volume.id, size, &err, &doing)? {
                    self.await_size(ctx, &volume.id, size, None).map(GrowStep::Done)
                } else {
                    Err(Error::Api { doing, source: err })
                }
            }
        }
    }

    fn wait_to_grow(
        &self,
        ctx: &CallContext,
        volume: &Volume,
        size: Gib,
        step: &GrowStep,
        waits: &mut GrowWaits,
    ) -> Result<()> {
        let doing = format!("growing volume {} to {size}", volume.id);
        match step {
            GrowStep::Done(_) => Ok(()),
            GrowStep::Busy(err) => self.runner.pause_while_busy(ctx, &volume.droplets, &doing, &mut waits.busy, err),
            GrowStep::Unclear(why) => {
                let why = format!("the volume does not have the size yet; {why}");
                ctx.pause(waits.unclear.next_pause(), &doing, &why)
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

fn grow_waits(ctx: &CallContext) -> GrowWaits {
    GrowWaits { busy: ctx.busy_backoff(), unclear: ctx.retry_backoff() }
}
