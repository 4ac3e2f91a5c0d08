//! Waiting for an action: attach, detach or resize.
//!
//! Owns the loop of looking and sleeping, at the pace that was learned. What the end of an action means is the caller's:
//! a completed action is not yet a fact seen.

use std::thread;
use std::time::{Duration, Instant};

use log::{debug, warn};

use super::time::CallTime;
use super::verdict::{Verdict, plan_verdict};
use crate::cloud::action::{Action, ActionStatus};
use crate::cloud::pace::{ActionKind, Pace};
use crate::error::{Error, Result};
use crate::id::VolumeId;

/// How long a new action may be unknown to DigitalOcean before that is believed. Source: Terraform's provider tolerates
/// sixty such answers.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(15);

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// DigitalOcean says that it is done.
    Completed,
    /// DigitalOcean says that it failed, or does not know it.
    Errored,
}

/// Waits until an action that this call started has ended.
///
/// # Errors
/// [`Error::OutOfTime`] when it still runs at the end of the call, [`Error::Api`] when the question is refused for good.
pub fn await_action(
    time: &CallTime,
    pace: &Pace,
    volume: &VolumeId,
    kind: ActionKind,
    action: &Action,
    doing: &str,
) -> Result<Ended> {
    let started = Instant::now();
    let mut looks = pace.begin(kind);
    let mut status = action.status.clone();
    loop {
        match status {
            ActionStatus::Completed => {
                pace.learn(looks.finished(started.elapsed()));
                return Ok(Ended::Completed);
            }
            ActionStatus::Errored => {
                warn!("action errored doing={doing} action={}", action.id);
                return Ok(Ended::Errored);
            }
            ActionStatus::InProgress => {}
            ActionStatus::Other(ref word) => debug!("action has the unknown status {word:?}, taken as running"),
        }
        let wait = looks.due().saturating_sub(started.elapsed());
        if wait >= time.left() {
            return Err(time.out_of_time(doing, format!("DigitalOcean's action {} is still running", action.id)));
        }
        thread::sleep(wait);
        status = look(time, volume, action, started, doing)?;
        if status == ActionStatus::InProgress {
            looks.still_running(started.elapsed());
        }
    }
}

/// Looks once. What is not an answer counts as "still running", so that the next look asks again.
fn look(time: &CallTime, volume: &VolumeId, action: &Action, started: Instant, doing: &str) -> Result<ActionStatus> {
    let err = match time.cloud.get_action(volume, action.id) {
        Ok(seen) => return Ok(seen.status),
        Err(err) => err,
    };
    match plan_verdict(&err) {
        Verdict::Missing if started.elapsed() < UNKNOWN_PATIENCE => Ok(ActionStatus::InProgress),
        Verdict::Missing => Ok(ActionStatus::Errored),
        Verdict::OutOfTime => Err(time.out_of_time(doing, err.to_string())),
        Verdict::Busy | Verdict::Unclear => {
            debug!("looking again doing={doing}: {err}");
            if let Some(wait) = err.wait() {
                time.pause(wait, doing, &err)?;
            }
            Ok(ActionStatus::InProgress)
        }
        Verdict::Conflict | Verdict::Odd | Verdict::Limit | Verdict::Refused => {
            Err(Error::Api { doing: doing.to_owned(), source: err })
        }
    }
}
