//! Waiting for an action: attach, detach or resize.
//!
//! Owns the loop of looking and sleeping, at the pace that was learned, and the search for actions that others began. What
//! the end of an action means is the caller's: a completed action is not yet a fact seen.

use std::thread;
use std::time::{Instant, SystemTime};

use log::{debug, warn};

use crate::cloud::action::{Action, ActionStatus};
use crate::controller::Controller;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::{Backoff, CallContext};
use crate::controller::poll::{ActionKind, Looks, Pace};
use crate::error::{Error, Result};
use crate::id::{ActionId, VolumeId};

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionOutcome {
    /// DigitalOcean says that it is done.
    Completed,
    /// DigitalOcean says that it failed, or does not know it.
    Errored,
    /// DigitalOcean says that it is running, for longer than that can be believed.
    Overdue,
}

/// Waits until an action that this call started has ended, and learns from it how long such actions take.
///
/// # Errors
/// [`Error::TimedOut`] when it still runs at the end of the call, [`Error::Api`] when the question is refused for good.
pub fn await_action(
    ctx: &CallContext,
    pace: &Pace,
    volume: &VolumeId,
    kind: ActionKind,
    action: &Action,
    doing: &str,
) -> Result<ActionOutcome> {
    let started = Instant::now();
    let mut looks = pace.begin(kind);
    let ended = watch(ctx, volume, action, &mut looks, started, doing)?;
    if ended == ActionOutcome::Completed
        && let Some(sample) = looks.finished(started.elapsed())
    {
        pace.learn(sample);
    }
    Ok(ended)
}

fn watch(
    ctx: &CallContext,
    volume: &VolumeId,
    action: &Action,
    looks: &mut Looks,
    started: Instant,
    doing: &str,
) -> Result<ActionOutcome> {
    let mut status = Some(action.status.clone());
    loop {
        match &status {
            Some(ActionStatus::Completed) => return Ok(ActionOutcome::Completed),
            Some(ActionStatus::Errored) => {
                warn!("action errored doing={doing} action={}", action.id);
                return Ok(ActionOutcome::Errored);
            }
            Some(ActionStatus::InProgress) | None => {}
            Some(ActionStatus::Other(word)) => debug!("action has the unknown status {word:?}, taken as running"),
        }
        if started.elapsed() >= ctx.patience.overdue() {
            warn!("action does not end doing={doing} action={}", action.id);
            return Ok(ActionOutcome::Overdue);
        }
        let wait = looks.due().saturating_sub(started.elapsed());
        if wait >= ctx.left() {
            return Err(ctx.timed_out(doing, format!("DigitalOcean's action {} is still running", action.id)));
        }
        thread::sleep(wait);
        status = look(ctx, volume, action, started, doing)?;
        match &status {
            Some(ActionStatus::InProgress) => looks.still_running(started.elapsed()),
            Some(ActionStatus::Other(_)) | None => looks.told_nothing(started.elapsed()),
            Some(ActionStatus::Completed | ActionStatus::Errored) => {}
        }
    }
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
            debug!("looking again doing={doing}: {err}");
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

/// What a volume's actions say about where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LastAction {
    /// An attach or a detach is running: the latest, should there be several.
    Running(Action),
    /// A detach is said to be running, for so long that it may have been carried out long ago.
    Stuck(Action),
    /// The last one that was carried out was this attach, begun at that time, so that the volume is on some droplet.
    Attached(ActionId, Option<SystemTime>),
    /// The last one that was carried out was a detach, so that the volume is on no droplet, whatever is listed.
    Detached,
    /// It has not been moved yet, or in ways that are not known.
    Unknown,
}

impl LastAction {
    /// The attach by which the volume is where it is.
    pub(super) fn attach(&self) -> Option<ActionId> {
        match self {
            LastAction::Attached(action, _) => Some(*action),
            LastAction::Running(_) | LastAction::Stuck(_) | LastAction::Detached | LastAction::Unknown => None,
        }
    }
}

/// Whether an action takes a volume from a droplet.
pub(super) fn is_detach(action: &Action) -> bool {
    action.kind.contains("detach")
}

/// Reads the actions of a volume, the oldest first.
///
/// A resize changes nothing about where a volume is. It is the only kind that is left out: DigitalOcean's word for it is
/// not documented, and an action that is not known is waited for. One that seems to run behind a later one that was carried
/// out is over, whatever is said of it: a volume has one move at a time. So is an attach that was begun too long ago, as far
/// as this list is concerned: where the volume is has to be read from the volume and the droplet.
fn plan_last_action(actions: &[Action], is_overdue: impl Fn(&Action) -> bool) -> LastAction {
    let latest = actions
        .iter()
        .rev()
        .filter(|action| !action.kind.contains("resize"))
        .find(|action| action.status != ActionStatus::Errored);
    match latest {
        // As in `watch`, a word that is not known may mean that it runs.
        Some(running) if running.status != ActionStatus::Completed && !is_overdue(running) => {
            LastAction::Running(running.clone())
        }
        Some(stuck) if stuck.status != ActionStatus::Completed && is_detach(stuck) => LastAction::Stuck(stuck.clone()),
        Some(last) if is_detach(last) => LastAction::Detached,
        Some(last) if last.kind.contains("attach") => LastAction::Attached(last.id, last.started_at),
        Some(_) | None => LastAction::Unknown,
    }
}

impl Controller {
    /// What DigitalOcean is doing at this moment about where the volume is, or has done last.
    ///
    /// The list of a volume's droplets lags behind: after an action it shows the old state for a while, and before the end
    /// of one that is running it may show either. Whoever is about to believe it asks here first.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such volume, [`Error::TimedOut`] or [`Error::Api`].
    pub(super) fn observe_last_action(&self, ctx: &CallContext, id: &VolumeId) -> Result<LastAction> {
        let doing = format!("reading the latest actions of volume {id}");
        let actions = ctx.ask_of_volume(id, &doing, |cloud| cloud.newest_actions(id))?;
        let now = SystemTime::now();
        let age = |action: &Action| action.started_at.and_then(|started| now.duration_since(started).ok());
        Ok(plan_last_action(&actions, |action| age(action).is_some_and(|age| age >= ctx.patience.overdue())))
    }

    /// Waits until an action that somebody else began, or that is of a request without a reply, has ended, and says how.
    ///
    /// # Errors
    /// As [`await_action`].
    pub(super) fn await_foreign(
        &self,
        ctx: &CallContext,
        id: &VolumeId,
        action: &Action,
        waits: &mut Waits,
        doing: &str,
    ) -> Result<ActionOutcome> {
        if waits.last.replace(action.id) == Some(action.id) {
            let why = format!("DigitalOcean's action {} has ended, and is still listed as running", action.id);
            ctx.pause(waits.pauses.next_pause(), doing, &why)?;
        }
        let kind = if is_detach(action) { ActionKind::Detach } else { ActionKind::Attach };
        debug!("waiting for {} action={} of somebody else doing={doing}", action.kind, action.id);
        watch(ctx, id, action, &mut self.pace.join(kind), Instant::now(), doing)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moves_of_a_volume_are_told_from_its_actions_and_a_resize_is_none() {
        let action =
            |id, kind: &str, status| Action { id: ActionId(id), status, kind: kind.to_owned(), started_at: None };
        let attached = |id| LastAction::Attached(ActionId(id), None);
        let running = |id, kind| action(id, kind, ActionStatus::InProgress);
        let done = |id, kind| action(id, kind, ActionStatus::Completed);
        let queued = |id, kind| action(id, kind, ActionStatus::Other("queued".to_owned()));
        let failed = |id, kind| action(id, kind, ActionStatus::Errored);
        let table = [
            (vec![], LastAction::Unknown),
            (vec![done(1, "attach_volume")], attached(1)),
            (vec![done(1, "attach_volume"), done(2, "detach_volume")], LastAction::Detached),
            (vec![done(1, "attach_volume"), failed(2, "detach_volume")], attached(1)),
            (vec![done(1, "detach_volume"), failed(2, "attach_volume"), running(3, "resize")], LastAction::Detached),
            (vec![done(1, "never heard of")], LastAction::Unknown),
            (vec![running(1, "resize"), running(2, "resize_volume")], LastAction::Unknown),
            (vec![running(1, "detach_volume"), running(2, "resize")], LastAction::Running(running(1, "detach_volume"))),
            (vec![running(1, "detach_volume"), done(2, "attach_volume")], attached(2)),
            (
                vec![running(1, "detach_volume"), failed(2, "attach_volume")],
                LastAction::Running(running(1, "detach_volume")),
            ),
            (
                vec![running(1, "detach_volume"), running(2, "attach_volume")],
                LastAction::Running(running(2, "attach_volume")),
            ),
            (
                vec![done(1, "attach_volume"), queued(2, "detach_volume"), failed(3, "attach_volume")],
                LastAction::Running(queued(2, "detach_volume")),
            ),
            (vec![queued(1, "detach_volume"), done(2, "attach_volume")], attached(2)),
            (vec![running(1, "never heard of")], LastAction::Running(running(1, "never heard of"))),
        ];
        for (actions, want) in table {
            assert_eq!(plan_last_action(&actions, |_| false), want, "{actions:?}");
        }
        let table = [
            (vec![running(1, "attach_volume")], attached(1)),
            (vec![running(1, "detach_volume")], LastAction::Stuck(running(1, "detach_volume"))),
            (vec![running(1, "never heard of")], LastAction::Unknown),
            (vec![done(1, "attach_volume"), failed(2, "detach_volume")], attached(1)),
            (vec![done(1, "detach_volume")], LastAction::Detached),
        ];
        for (actions, want) in table {
            assert_eq!(plan_last_action(&actions, |_| true), want, "{actions:?}, all begun long ago");
        }
    }
}
