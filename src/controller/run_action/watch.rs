//! Looking at an action until it has ended.

use std::thread;
use std::time::Instant;

use log::{debug, warn};

use crate::activity::wait_for;
use crate::cloud::action::{Action, ActionStatus};
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::CallContext;
use crate::controller::poll::Looks;
use crate::controller::run_action::{ActionOutcome, ActionRunner};
use crate::controller::shared_look::{is_scarce, is_used_up};
use crate::error::{Error, Result};
use crate::id::{ActionId, DropletId, VolumeId};
use crate::sync::fifo_lock::FifoGuard;

impl ActionRunner {
    /// Lets those have the droplet's turn that are in line for it: looks are so dear that the action has ended by the first of
    /// them, most likely, and if not, DigitalOcean tells those others. Waits until they are done, so that one look is enough
    /// for all; says whether there were any.
    fn let_others_go_first(&self, ctx: &CallContext, turns: &mut Vec<FifoGuard<DropletId>>, doing: &str) -> bool {
        let places: Vec<_> = turns.iter().filter_map(FifoGuard::behind_others).collect();
        if places.is_empty() {
            return false;
        }
        turns.clear();
        let until = Instant::now() + ctx.patience.lock().min(ctx.left() / 2);
        let _waiting = wait_for(doing, "others attach volumes to the same droplet");
        // Who is late looks alone.
        let _late = places.iter().try_for_each(|place| place.wait(until)).is_err();
        true
    }

    /// Looks at an action until it has ended. `turns` are the turns of its droplets, as long as they are this call's.
    #[expect(clippy::too_many_arguments, reason = "an action and the waits for it")]
    pub(super) fn watch(
        &self,
        ctx: &CallContext,
        volume: &VolumeId,
        action: &Action,
        looks: &mut Looks,
        started: Instant,
        doing: &str,
        mut turns: Vec<FifoGuard<DropletId>>,
    ) -> Result<ActionOutcome> {
        // However dear a look is, the call does not end without one at the end of its time.
        let kept = ctx.patience.last_look().min(ctx.left() / 4);
        let mut status = Some(action.status.clone());
        let _watching = self.shared.watch();
        let waiting = wait_for(doing, progress_of(action.id, status.as_ref()));
        loop {
            match &status {
                Some(ActionStatus::Completed) => return Ok(ActionOutcome::Completed(action.id)),
                Some(ActionStatus::Errored) => {
                    warn!(action = action.id.0; "{doing}: the action errored");
                    return Ok(ActionOutcome::Errored(action.id));
                }
                Some(ActionStatus::InProgress) | None => {}
                Some(ActionStatus::Other(word)) => {
                    debug!(action = action.id.0; "the action has the unknown status {word:?}, which is taken for running")
                }
            }
            if started.elapsed() >= ctx.patience.overdue() {
                warn!(action = action.id.0; "{doing}: the action does not end");
                return Ok(ActionOutcome::Overdue(action.id));
            }
            let left = ctx.left().saturating_sub(kept);
            if left.is_zero() {
                let why = does_not_end(ctx, action);
                let why = why.unwrap_or_else(|| format!("DigitalOcean's action {} is still running", action.id));
                return Err(ctx.timed_out(doing, why));
            }
            thread::sleep(looks.due().saturating_sub(started.elapsed()).min(left));
            let used = self.used_quota(ctx);
            looks.reprice(used);
            let is_last = ctx.left() <= kept;
            if !is_last && looks.due() > started.elapsed() {
                // Looks have become dearer meanwhile.
                continue;
            }
            let shared = if is_scarce(used) && !is_last {
                let caller = self.shared.look();
                if is_used_up(used) && self.let_others_go_first(ctx, &mut turns, doing) {
                    // It may have ended long before the next look.
                    looks.told_nothing(started.elapsed());
                }
                self.shared.status(ctx, &caller, action.id)
            } else {
                None
            };
            status = match shared {
                Some(status) => Some(status),
                None => look(ctx, volume, action, started, doing)?,
            };
            waiting.update(progress_of(action.id, status.as_ref()));
            match &status {
                Some(ActionStatus::InProgress) => looks.still_running(started.elapsed()),
                Some(ActionStatus::Other(_)) | None => looks.told_nothing(started.elapsed()),
                Some(ActionStatus::Completed | ActionStatus::Errored) => {}
            }
        }
    }
}

/// What to do about an action that is said to run for longer than can be believed; none: it is not.
pub(super) fn does_not_end(ctx: &CallContext, action: &Action) -> Option<String> {
    let age = action.started_at.and_then(|at| ctx.cloud.now().duration_since(at).ok())?;
    (age >= ctx.patience.overdue()).then(|| {
        format!(
            "DigitalOcean's {} action {} is said to run for {} s; if it does not end, open a ticket with DigitalOcean's support \
             that names it",
            action.kind,
            action.id,
            age.as_secs()
        )
    })
}

/// How far an action is, as a clause.
fn progress_of(action: ActionId, status: Option<&ActionStatus>) -> String {
    let state = match status {
        Some(ActionStatus::Completed) => "completed",
        Some(ActionStatus::Errored) => "errored",
        Some(ActionStatus::InProgress) => "in-progress",
        Some(ActionStatus::Other(word)) => word,
        None => "not answered for",
    };
    format!("DigitalOcean's action {action} is {state}")
}

/// Looks once; none: there was no answer, and the next look asks again.
fn look(
    ctx: &CallContext,
    volume: &VolumeId,
    action: &Action,
    started: Instant,
    doing: &str,
) -> Result<Option<ActionStatus>> {
    let err = match ctx.cloud.get_action(volume, action.id) {
        Ok(seen) => return Ok(Some(seen.status)),
        Err(err) => err,
    };
    match plan_failure(&err) {
        ApiFailure::NotFound if started.elapsed() < ctx.patience.unknown_action() => Ok(None),
        ApiFailure::NotFound => Ok(Some(ActionStatus::Errored)),
        ApiFailure::OutOfTime => Err(ctx.timed_out(doing, err.to_string())),
        ApiFailure::Retryable | ApiFailure::OutcomeUnknown => {
            debug!(request = err.request_id(); "{doing}: looking again: {err}");
            if let Some(wait) = err.wait() {
                ctx.pause(wait, doing, &err)?;
            }
            Ok(None)
        }
        ApiFailure::StateConflict | ApiFailure::Unrecognized | ApiFailure::LimitReached | ApiFailure::Permanent => {
            Err(Error::Api { doing: doing.to_owned(), source: err })
        }
    }
}
