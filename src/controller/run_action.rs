//! Attach, detach and resize, from the request to the end of the action that DigitalOcean makes of it.
//!
//! Owns the one loop that sends and waits, and what it waits with: the turn of a droplet, and the pace of the looks. What an
//! end means is the caller's: a completed action is not yet a fact seen.
//!
//! ```text
//! take the droplet's turn --> send --accepted--> look until it has ended --> Completed, Errored, Overdue
//!        ^                     |
//!        |                     +--refused--> give the turn up --> Refused, Open
//!        +------- pause <------ busy          (or Busy, for a caller that has to give up more than the turn)
//! ```

mod watch;

use std::fmt;
use std::slice;
use std::time::{Duration, Instant};

use log::{debug, warn};

use crate::activity::{About, Change, wait_for};
use crate::backoff::Backoff;
use crate::cloud::action::Action;
use crate::cloud::volume::Volume;
use crate::cloud::{ApiResult, Cloud};
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::busy_droplet::BusyDroplets;
use crate::controller::context::{CallContext, Timeouts, pause_after};
use crate::controller::last_action::is_detach;
use crate::controller::lost_detach::LostDetaches;
use crate::controller::poll::{ActionKind, Pace};
use crate::controller::run_action::watch::does_not_end;
use crate::controller::shared_look::{SharedLooks, is_scarce};
use crate::controller::storm::{Storm, plan_expected};
use crate::error::api::{ApiError, ApiErrorKind};
use crate::error::{Error, Result};
use crate::id::{ActionId, DropletId, VolumeId};
use crate::metrics;
use crate::metrics::events::{EventKind, record_change};
use crate::region::Region;
use crate::size::Gib;
use crate::sync::fifo_lock::{FifoGuard, FifoLocks, NoLock};
use crate::sync::volume_lock::VolumeGuard;

/// A change of a volume that DigitalOcean makes an action of. `Display` says what is being done.
#[derive(Debug, Clone, Copy)]
pub(super) enum ActionRequest<'a> {
    Attach { volume: &'a VolumeId, droplet: DropletId },
    Detach { volume: &'a VolumeId, droplet: DropletId },
    Resize { volume: &'a Volume, size: Gib, region: &'a Region },
}

impl ActionRequest<'_> {
    fn volume(&self) -> &VolumeId {
        match self {
            ActionRequest::Attach { volume, .. } | ActionRequest::Detach { volume, .. } => volume,
            ActionRequest::Resize { volume, .. } => &volume.id,
        }
    }

    /// The droplets on which it is an event.
    pub(super) fn droplets(&self) -> &[DropletId] {
        match self {
            ActionRequest::Attach { droplet, .. } | ActionRequest::Detach { droplet, .. } => slice::from_ref(droplet),
            ActionRequest::Resize { volume, .. } => &volume.droplets,
        }
    }

    fn kind(&self) -> ActionKind {
        match self {
            ActionRequest::Attach { .. } => ActionKind::Attach,
            ActionRequest::Detach { .. } => ActionKind::Detach,
            ActionRequest::Resize { .. } => ActionKind::Resize,
        }
    }

    fn send(&self, cloud: &Cloud) -> ApiResult<Action> {
        match self {
            ActionRequest::Attach { volume, droplet } => cloud.attach(volume, *droplet),
            ActionRequest::Detach { volume, droplet } => cloud.detach(volume, *droplet),
            ActionRequest::Resize { volume, size, region } => cloud.resize(&volume.id, *size, region),
        }
    }

    fn tell_completed(&self, action: ActionId) {
        match self {
            ActionRequest::Attach { volume, droplet } => {
                let text = format_args!("volume {volume} to droplet {droplet}, by action {action}");
                let about = About::default().with("volume", volume).with("droplet", droplet).with("action", action);
                record_change(EventKind::Attached, text, Change::Attached, "attached", about);
            }
            ActionRequest::Detach { volume, droplet } => {
                let text = format_args!("volume {volume} from droplet {droplet}, by action {action}");
                let about = About::default().with("volume", volume).with("droplet", droplet).with("action", action);
                record_change(EventKind::Detached, text, Change::Detached, "detached", about);
            }
            ActionRequest::Resize { volume, size, .. } => {
                let text = format_args!("volume {} from {} to {size}", volume.id, volume.size);
                let about = About::default().with("volume", &volume.id).with("name", &volume.name);
                let about = about.with("from", volume.size).with("to", size).with("action", action);
                record_change(EventKind::Resized, text, Change::Grown, "grown", about);
            }
        }
    }
}

impl fmt::Display for ActionRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ActionRequest::Attach { volume, droplet } => write!(f, "attaching volume {volume} to droplet {droplet}"),
            ActionRequest::Detach { volume, droplet } => write!(f, "detaching volume {volume} from droplet {droplet}"),
            ActionRequest::Resize { volume, size, .. } => write!(f, "growing volume {} to {size}", volume.id),
        }
    }
}

/// What is known after a request was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ActionOutcome {
    /// DigitalOcean says that it is done.
    Completed(ActionId),
    /// DigitalOcean says that it failed, or does not know it.
    Errored(ActionId),
    /// DigitalOcean says that it is running, for longer than that can be believed.
    Overdue(ActionId),
    /// The droplet has another event, or the rate limit is reached: nothing was begun, and it is taken a little later.
    Busy(ApiError),
    /// DigitalOcean refused it: nothing was begun.
    Refused(ApiError),
    /// It is open whether anything was begun.
    Open(ApiError),
    /// Nothing was sent: while it waited for its turn, the reason for it went away.
    Withdrawn,
}

impl ActionOutcome {
    /// Whether DigitalOcean said that the volume is not attached to the droplet; no other refusal says so.
    pub(super) fn proves_nothing_attached(&self) -> bool {
        match self {
            ActionOutcome::Refused(err) => err.kind() == ApiErrorKind::AttachmentNotFound,
            ActionOutcome::Completed(_)
            | ActionOutcome::Errored(_)
            | ActionOutcome::Overdue(_)
            | ActionOutcome::Busy(_)
            | ActionOutcome::Withdrawn
            | ActionOutcome::Open(_) => false,
        }
    }

    /// As an error, what reading the state again can tell nothing about: a limit, or a refusal for good.
    pub(super) fn unless_denied(self, request: &ActionRequest<'_>) -> Result<ActionOutcome> {
        let is_denied = |err: &ApiError| matches!(plan_failure(err), ApiFailure::LimitReached | ApiFailure::Permanent);
        if let ActionOutcome::Refused(err) = &self
            && is_denied(err)
        {
            return Err(Error::Api { doing: request.to_string(), source: err.clone() });
        }
        Ok(self)
    }

    /// In words; `kind` is the action's.
    pub(super) fn in_words(&self, kind: &str) -> String {
        match self {
            ActionOutcome::Completed(id) => format!("DigitalOcean's {kind} action {id} completed"),
            ActionOutcome::Errored(id) => format!("DigitalOcean's {kind} action {id} errored"),
            ActionOutcome::Overdue(id) => format!("DigitalOcean's {kind} action {id} does not end"),
            ActionOutcome::Busy(err) | ActionOutcome::Refused(err) | ActionOutcome::Open(err) => err.to_string(),
            ActionOutcome::Withdrawn => format!("the {kind} was not sent, as there is no reason for it any more"),
        }
    }
}

/// What to do while the droplet is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnBusy {
    /// Try again after a pause.
    Wait,
    /// Return; the caller has to think again.
    Return,
}

/// What actions are run with.
#[derive(Debug)]
pub(super) struct ActionRunner {
    pace: Pace,
    /// DigitalOcean refuses a droplet's second event while one is running, so the calls of this process wait for each
    /// other here, in order, instead of colliding there.
    droplet_queue: FifoLocks<DropletId>,
    busy_droplets: BusyDroplets,
    pub(super) lost_detaches: LostDetaches,
    pub(super) storm: Storm,
    pub(super) shared: SharedLooks,
}

impl ActionRunner {
    pub(super) fn new(patience: Timeouts) -> ActionRunner {
        ActionRunner {
            pace: Pace::new(),
            droplet_queue: FifoLocks::default(),
            busy_droplets: BusyDroplets::new(patience.remember_busy()),
            lost_detaches: LostDetaches::new(patience.detach_in_flight()),
            storm: Storm::default(),
            shared: SharedLooks::default(),
        }
    }

    /// Sends a request when it is this call's turn, and waits for the end of the action. The turn is kept no longer than a
    /// request or an action runs: a droplet is busy with one event, but DigitalOcean may say so of one volume alone.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when it still waits or runs at the end of the call, [`Error::Api`] when a question is refused.
    pub(super) fn run(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        request: &ActionRequest<'_>,
        on_busy: OnBusy,
    ) -> Result<ActionOutcome> {
        self.run_if(guard, ctx, request, on_busy, |_| Ok(true), || {})
    }

    /// As [`ActionRunner::run`], with a last word before each send: `may_send` is asked when it is this call's turn, with how long
    /// that took, and nothing is sent when it says no. `begun` is called when an action has been made of it.
    ///
    /// # Errors
    /// As [`ActionRunner::run`], and those of `may_send`.
    pub(super) fn run_if(
        &self,
        _guard: &VolumeGuard,
        ctx: &CallContext,
        request: &ActionRequest<'_>,
        on_busy: OnBusy,
        may_send: impl Fn(Duration) -> Result<bool>,
        begun: impl Fn(),
    ) -> Result<ActionOutcome> {
        let mut pauses = ctx.busy_backoff();
        loop {
            let asked = Instant::now();
            let turns = self.take_turns(ctx, request)?;
            if !may_send(asked.elapsed())? {
                return Ok(ActionOutcome::Withdrawn);
            }
            ctx.ensure_awaited()?;
            let err = match request.send(&ctx.cloud) {
                Ok(action) => {
                    begun();
                    return self.await_sent(ctx, request, &action, turns);
                }
                Err(err) => err,
            };
            drop(turns);
            match plan_failure(&err) {
                ApiFailure::Retryable if on_busy == OnBusy::Return => return Ok(ActionOutcome::Busy(err)),
                ApiFailure::Retryable => {
                    self.pause_while_busy(ctx, request.droplets(), &request.to_string(), &mut pauses, &err)?;
                }
                ApiFailure::OutcomeUnknown => {
                    warn!(request = err.request_id(); "{request}: unclear whether it was begun, reading the volume: {err}");
                    if let ActionRequest::Detach { volume, droplet } = request
                        && err.may_be_under_way()
                    {
                        self.lost_detaches.lost(volume, *droplet, Instant::now());
                    }
                    return Ok(ActionOutcome::Open(err));
                }
                ApiFailure::OutOfTime => return Err(ctx.timed_out(&request.to_string(), err.to_string())),
                ApiFailure::StateConflict
                | ApiFailure::NotFound
                | ApiFailure::Unrecognized
                | ApiFailure::LimitReached
                | ApiFailure::Permanent => return Ok(ActionOutcome::Refused(err)),
            }
        }
    }

    /// Waits before a request is sent again that was refused for now: for a short time in all, when the droplet has used up
    /// an earlier call's time.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when there is no time left for it.
    pub(super) fn pause_while_busy(
        &self,
        ctx: &CallContext,
        droplets: &[DropletId],
        doing: &str,
        pauses: &mut Backoff,
        err: &ApiError,
    ) -> Result<()> {
        let pause = pause_after(pauses, err);
        if err.kind() != ApiErrorKind::PendingEvent {
            return ctx.pause(pause, doing, err);
        }
        let now = Instant::now();
        let outcome = if self.busy_droplets.any(droplets, now) {
            let left = ctx.busy_deadline().saturating_duration_since(now);
            if left.is_zero() {
                let why =
                    format!("{err}; it was busy for the whole time of an earlier call, so this one waited briefly");
                Err(ctx.timed_out(doing, why))
            } else {
                ctx.pause(pause.min(left), doing, err)
            }
        } else {
            ctx.pause(pause, doing, err)
        };
        outcome.inspect_err(|_| self.busy_droplets.gave_up(droplets, Instant::now()))
    }

    /// A droplet is not busy any more, as the effect of an action shows.
    pub(super) fn got_through(&self, droplets: &[DropletId]) {
        self.busy_droplets.got_through(droplets);
    }

    /// Waits until an action that somebody else began, or that is of a request without a reply, has ended, and says how.
    ///
    /// # Errors
    /// As [`ActionRunner::run`].
    pub(super) fn await_foreign(
        &self,
        ctx: &CallContext,
        id: &VolumeId,
        action: &Action,
        waits: &mut Waits,
        doing: &str,
    ) -> Result<ActionOutcome> {
        if waits.last.replace(action.id) == Some(action.id) {
            let why = does_not_end(ctx, action).unwrap_or_else(|| {
                format!("DigitalOcean's action {} has ended, and is still listed as running", action.id)
            });
            ctx.pause(waits.pauses.next_pause(), doing, &why)?;
        }
        let kind = if is_detach(action) { ActionKind::Detach } else { ActionKind::Attach };
        debug!(action = action.id.0; "{doing}: waiting for the {} action of somebody else", action.kind);
        let mut looks = self.pace.join(kind, self.used_quota(ctx));
        self.watch(ctx, id, action, &mut looks, Instant::now(), doing, Vec::new())
    }

    /// Waits for the turn of each droplet.
    fn take_turns(&self, ctx: &CallContext, request: &ActionRequest<'_>) -> Result<Vec<FifoGuard<DropletId>>> {
        let late = |_| ctx.timed_out(&request.to_string(), "earlier calls for this droplet are still running");
        let take = |droplet: &DropletId| {
            let place = self.droplet_queue.enter(*droplet, usize::MAX).map_err(late)?;
            let _waiting =
                wait_for(request.to_string(), format_args!("earlier calls for droplet {droplet} are not done"));
            let briefly = Instant::now() + ctx.patience.while_backing_off();
            // Who is ahead may be the one that gets through.
            if place.wait(briefly.min(ctx.deadline())).is_err()
                && self.busy_droplets.any(slice::from_ref(droplet), Instant::now())
            {
                return Err(late(NoLock::TooLate));
            }
            place.wait(ctx.deadline()).map_err(late)?;
            Ok(place)
        };
        request.droplets().iter().map(take).collect()
    }

    /// Waits until an action that this call started has ended, and learns from it how long such actions take. On a droplet
    /// that has used up an earlier call's time, it has less time.
    fn await_sent(
        &self,
        ctx: &CallContext,
        request: &ActionRequest<'_>,
        action: &Action,
        turns: Vec<FifoGuard<DropletId>>,
    ) -> Result<ActionOutcome> {
        let (started, droplets) = (Instant::now(), request.droplets());
        let short = self.busy_droplets.any(droplets, started).then(|| ctx.after_backoff());
        let ctx = short.as_ref().unwrap_or(ctx);
        let mut looks = self.pace.begin(request.kind(), self.used_quota(ctx));
        let outcome = self.watch(ctx, request.volume(), action, &mut looks, started, &request.to_string(), turns);
        metrics::count_action(request.kind().label(), outcome_label(&outcome), started.elapsed());
        match &outcome {
            Ok(ActionOutcome::Completed(action)) => {
                request.tell_completed(*action);
                self.busy_droplets.got_through(droplets);
                if let Some(sample) = looks.finished(started.elapsed()) {
                    self.pace.learn(sample);
                }
            }
            Err(Error::TimedOut { .. }) => self.busy_droplets.gave_up(droplets, Instant::now()),
            Ok(_) | Err(_) => {}
        }
        outcome
    }

    /// The part of the quota that is used, counted with what the running attaches need.
    fn used_quota(&self, ctx: &CallContext) -> f64 {
        ctx.cloud.used_quota(plan_expected(self.storm.calls()))
    }

    /// Whether the quota is so scarce that what many want to know is asked for once.
    pub(super) fn is_quota_scarce(&self, ctx: &CallContext) -> bool {
        is_scarce(self.used_quota(ctx))
    }
}

/// How an action ended, for counting. What was not sent or refused is no action.
fn outcome_label(outcome: &Result<ActionOutcome>) -> &'static str {
    match outcome {
        Ok(ActionOutcome::Completed(_)) => "completed",
        Ok(ActionOutcome::Errored(_)) => "errored",
        Ok(ActionOutcome::Overdue(_)) => "overdue",
        Ok(ActionOutcome::Busy(_) | ActionOutcome::Refused(_) | ActionOutcome::Open(_) | ActionOutcome::Withdrawn)
        | Err(_) => "unknown",
    }
}

/// The waits of one call for actions that are not its own. The list of actions may lag behind an action's end; then the
/// same one is met again, and only after a pause.
#[derive(Debug)]
pub(super) struct Waits {
    last: Option<ActionId>,
    pauses: Backoff,
}

impl Waits {
    /// None so far.
    pub(super) fn new(ctx: &CallContext) -> Waits {
        Waits { last: None, pauses: ctx.backoff() }
    }
}
