//! What a volume's actions say about where it is.
//!
//! Owns the reading of them. The list of a volume's droplets lags behind: after an action it shows the old state for a while,
//! and before the end of one that is running it may show either. Whoever is about to believe it asks here first.

use std::time::{Duration, SystemTime};

use crate::cloud::action::{Action, ActionStatus};
use crate::controller::context::CallContext;
use crate::error::{Error, Result};
use crate::id::{ActionId, VolumeId};

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
    /// Whether a detach runs or was the last to be carried out.
    pub(super) fn is_detach(&self) -> bool {
        match self {
            LastAction::Running(action) | LastAction::Stuck(action) => is_detach(action),
            LastAction::Detached => true,
            LastAction::Attached(..) | LastAction::Unknown => false,
        }
    }

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

impl CallContext {
    /// What DigitalOcean is doing at this moment about where the volume is, or has done last.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such volume, [`Error::TimedOut`] or [`Error::Api`].
    pub(super) fn observe_last_action(&self, id: &VolumeId) -> Result<LastAction> {
        let doing = format!("reading the latest actions of volume {id}");
        let actions = self.ask_of_volume(id, &doing, |cloud| cloud.newest_actions(id))?;
        let now = self.cloud.now();
        let age = |action: &Action| action.started_at.and_then(|started| now.duration_since(started).ok());
        Ok(plan_last_action(&actions, |action| age(action).is_some_and(|age| age >= self.patience.overdue())))
    }

    /// Whether a detach of the volume was begun at that time or later. Times of actions are cut off to seconds, and by two seconds
    /// the clocks may be apart.
    pub(super) fn has_begun_detach(&self, id: &VolumeId, since: SystemTime) -> Result<bool> {
        let doing = format!("reading the latest actions of volume {id}");
        let actions = self.ask_of_volume(id, &doing, |cloud| cloud.newest_actions(id))?;
        let is_late =
            |action: &Action| action.started_at.is_some_and(|started| started + Duration::from_secs(3) > since);
        Ok(actions.iter().any(|action| is_detach(action) && is_late(action)))
    }

    /// As [`CallContext::observe_last_action`], for those to whom a missing volume is an answer.
    pub(super) fn observe_last_action_if_there(&self, id: &VolumeId) -> Result<LastAction> {
        match self.observe_last_action(id) {
            Err(Error::NotFound(_)) => Ok(LastAction::Unknown),
            other => other,
        }
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
