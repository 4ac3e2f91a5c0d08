//! One call's time: when it has to end, the waits inside it, and asking again until then.
//!
//! Owns the deadline of a call, the length of every wait inside it, and the repetition of questions that DigitalOcean
//! did not answer. Only questions are repeated here; a change is repeated by whoever knows what it may have done.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;

use crate::activity::wait_for;
use crate::backoff::Backoff;
use crate::cloud::volume::Volume;
use crate::cloud::{ApiResult, Cloud};
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::droplet_identity::DropletIdentity;
use crate::error::api::ApiError;
use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::sync::caller::Caller;

/// What is said of something that DigitalOcean has just made, and does not find.
pub(super) const DOES_NOT_SHOW: &str = "DigitalOcean has made it, and it does not show";

/// How long a call waits for what. Every wait is a part of the call's budget, so that they fit into it together and tests
/// can shrink them all at once; the comments say what comes of the budget of 100 s that a call has by default.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts(Duration);

impl Timeouts {
    /// The waits of calls with this budget.
    #[must_use]
    pub fn of(budget: Duration) -> Timeouts {
        Timeouts(budget)
    }

    /// The whole call; Nomad gives up after 120 s.
    #[must_use]
    pub fn call(self) -> Duration {
        self.0
    }

    /// 20 s: for another call on the same volume, where the caller is better off asking again.
    #[must_use]
    pub fn lock(self) -> Duration {
        self.0 / 5
    }

    /// 5 s: for a running droplet to let go of a volume, when no action says that it is about to.
    #[must_use]
    pub fn release_grace(self) -> Duration {
        self.0 / 20
    }

    /// 10 ms: in which calls come that come together.
    pub(super) fn gather(self) -> Duration {
        self.0 / 10_000
    }

    /// 2.5 s: in which the plugins of a cluster begin to which many calls have come together.
    pub(super) fn spread(self) -> Duration {
        self.0 / 40
    }

    /// 2 s: what a call that waits for an action keeps of its time to see at its end whether that has ended.
    pub(super) fn last_look(self) -> Duration {
        self.0 / 50
    }

    /// 5 s: for a request that the call can do without.
    #[must_use]
    pub fn optional(self) -> Duration {
        self.0 / 20
    }

    /// 1 s: until what DigitalOcean did not find is looked for again.
    #[must_use]
    pub fn watch(self) -> Duration {
        self.0 / 100
    }

    /// 1 s and 2 s: the first and the longest pause between looks at a droplet that has the volume.
    fn poll_backoff(self) -> (Duration, Duration) {
        (self.0 / 100, self.0 / 50)
    }

    /// 10 s: until a droplet that is off, or archived, is believed to stay so; a reboot passes through `off`.
    #[must_use]
    pub fn power_off_grace(self) -> Duration {
        self.0 / 10
    }

    /// 10 s: for the effect of a completed action, or a new volume, to be shown.
    #[must_use]
    pub fn propagation(self) -> Duration {
        self.0 / 10
    }

    /// 15 s: for a new action to be known. Source: Terraform's provider tolerates sixty times 404.
    #[must_use]
    pub fn unknown_action(self) -> Duration {
        self.0 * 3 / 20
    }

    /// 60 s: for an action to end. One that takes longer may never be said to have ended, whatever it has done.
    #[must_use]
    pub fn overdue(self) -> Duration {
        self.0 * 3 / 5
    }

    /// 60 s: for as long a detach without a reply may be carried out yet. As [`DETACH_IN_FLIGHT`](crate::config::DETACH_IN_FLIGHT).
    #[must_use]
    pub fn detach_in_flight(self) -> Duration {
        self.0 * 3 / 5
    }

    /// 1 s and 60 s: the first and the longest pause between detaches of one volume that keep failing.
    #[must_use]
    pub fn detach_backoff(self) -> (Duration, Duration) {
        (self.0 / 100, self.0 * 3 / 5)
    }

    /// 5 s: how much of such a pause is waited for inside a call. Nomad sends a plugin one call at a time, so attaches of
    /// other volumes wait behind it; and an answer at once would be repeated at once.
    #[must_use]
    pub fn while_backing_off(self) -> Duration {
        self.0 / 20
    }

    /// 15 s: for a detach that has failed before, for the same reason.
    #[must_use]
    pub fn after_backoff(self) -> Duration {
        self.0 * 3 / 20
    }

    /// 5 min: for how long a droplet that was busy for the whole time of a call is taken to be so still. Nomad comes back after
    /// a minute at most.
    pub(super) fn remember_busy(self) -> Duration {
        self.0 * 3
    }

    /// 1 s and 5 s: the first and the longest pause while a droplet has another event; those take seconds at least.
    fn busy_backoff(self) -> (Duration, Duration) {
        (self.0 / 100, self.0 / 20)
    }

    /// 200 ms and 5 s: the first and the longest pause while something is busy and will not be for long.
    fn backoff(self) -> (Duration, Duration) {
        (self.0 / 500, self.0 / 20)
    }

    /// 200 ms and 10 s: the first and the longest pause after something failed; each try of it costs several requests.
    fn retry_backoff(self) -> (Duration, Duration) {
        (self.0 / 500, self.0 / 10)
    }
}

/// The time that one call has.
#[derive(Debug)]
pub struct CallContext {
    /// The API, bounded by this call's deadline.
    pub cloud: Cloud,
    /// How long to wait for what.
    pub patience: Timeouts,
    started: Instant,
    deadline: Instant,
    has_failed_before: bool,
    caller: Arc<Caller>,
    /// The droplet that this process runs on, known yet or not, where that is one of the token's account for certain.
    pub(super) own: Option<Arc<DropletIdentity>>,
}

impl CallContext {
    /// The time of a call that came then.
    #[must_use]
    pub fn since(started: Instant, cloud: &Cloud, patience: Timeouts) -> CallContext {
        let deadline = started + patience.call();
        CallContext {
            cloud: cloud.until(deadline),
            patience,
            started,
            deadline,
            has_failed_before: false,
            caller: Arc::default(),
            own: None,
        }
    }

    /// The same call, by a process on that droplet.
    #[must_use]
    pub fn on_droplet(self, own: Option<Arc<DropletIdentity>>) -> CallContext {
        CallContext { own, ..self }
    }

    /// The same call, for somebody who waits for it: it ends in time for him to get the answer, and begins nothing more when he
    /// has gone.
    #[must_use]
    pub fn answering(self, caller: Arc<Caller>) -> CallContext {
        let deadline = caller.answer_by(self.started).map_or(self.deadline, |by| by.min(self.deadline));
        CallContext { cloud: self.cloud.until(deadline), deadline, caller, ..self }
    }

    /// Fails when nobody waits for the call any more; to be asked before something is begun.
    ///
    /// # Errors
    /// [`Error::CallerGone`].
    pub fn ensure_awaited(&self) -> Result<()> {
        if self.caller.is_gone() { Err(Error::CallerGone) } else { Ok(()) }
    }

    /// The same call, to end earlier and to try less often, because what it does has failed before.
    #[must_use]
    pub fn after_backoff(&self) -> CallContext {
        let deadline = self.deadline.min(Instant::now() + self.patience.after_backoff());
        let CallContext { patience, started, .. } = *self;
        let (cloud, caller, own) = (self.cloud.until(deadline), Arc::clone(&self.caller), self.own.clone());
        CallContext { has_failed_before: true, cloud, patience, started, deadline, own, caller }
    }

    /// When the call came, whatever it has waited for since.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How much is left.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The moment at which the call has to end.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Until when this call waits for a droplet that was busy for the whole time of an earlier one.
    pub(super) fn busy_deadline(&self) -> Instant {
        self.deadline.min(self.started + self.patience.while_backing_off())
    }

    /// Growing pauses while something is busy.
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        jittered(self.patience.backoff())
    }

    /// Growing pauses while a droplet has another event.
    pub(super) fn busy_backoff(&self) -> Backoff {
        jittered(self.patience.busy_backoff())
    }

    /// Growing pauses between looks at what only somebody else can change.
    #[must_use]
    pub fn poll_backoff(&self) -> Backoff {
        jittered(self.patience.poll_backoff())
    }

    /// Growing pauses between tries of something that fails.
    #[must_use]
    pub fn retry_backoff(&self) -> Backoff {
        let (first, longest) = self.patience.retry_backoff();
        jittered((if self.has_failed_before { longest } else { first }, longest))
    }

    /// The error of a call whose time is used up.
    #[must_use]
    pub fn timed_out(&self, doing: &str, waited_for: impl Into<String>) -> Error {
        let waited_s = self.started.elapsed().as_secs();
        Error::TimedOut { doing: doing.to_owned(), waited_s, waited_for: waited_for.into() }
    }

    /// Waits before the next try of something that failed.
    ///
    /// # Errors
    /// [`Error::TimedOut`] at once when the pause would outlast the call: nothing can come of it any more; and
    /// [`Error::CallerGone`] after it, when nobody waits for what would come.
    pub fn pause(&self, pause: Duration, doing: &str, because: &dyn std::fmt::Display) -> Result<()> {
        if pause >= self.left() {
            return Err(self.timed_out(doing, because.to_string()));
        }
        let wait = wait_for(doing, because);
        thread::sleep(pause);
        drop(wait);
        self.ensure_awaited()
    }

    /// Asks until there is an answer.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when only transient failures came; otherwise what `refused` makes of the failure.
    pub fn query<T>(
        &self,
        doing: &str,
        refused: impl FnOnce(ApiError) -> Error,
        question: impl Fn(&Cloud) -> ApiResult<T>,
    ) -> Result<T> {
        let mut pauses = self.backoff();
        loop {
            let err = match question(&self.cloud) {
                Ok(answer) => return Ok(answer),
                Err(err) => err,
            };
            match plan_failure(&err) {
                ApiFailure::Retryable | ApiFailure::OutcomeUnknown => {}
                ApiFailure::OutOfTime => {
                    return Err(self.timed_out(doing, last_failure().unwrap_or_else(|| err.to_string())));
                }
                ApiFailure::StateConflict
                | ApiFailure::NotFound
                | ApiFailure::Unrecognized
                | ApiFailure::LimitReached
                | ApiFailure::Permanent => return Err(refused(err)),
            }
            keep_failure(&err);
            warn!(request = err.request_id(); "{doing}: asking again: {err}");
            self.pause(pause_after(&mut pauses, &err), doing, &err)?;
        }
    }

    /// As [`CallContext::observe_volume`], for a volume that has just been created and may take a moment to be shown.
    ///
    /// # Errors
    /// [`Error::TimedOut`] also when it is not shown for too long, or [`Error::Api`].
    pub fn observe_new_volume(&self, id: &VolumeId) -> Result<Volume> {
        let doing = format!("creating volume {id}");
        let (since, mut pauses) = (Instant::now(), self.backoff());
        loop {
            match self.look_at_volume(id)? {
                Some(volume) => return Ok(volume),
                None if since.elapsed() > self.patience.propagation() => {
                    return Err(self.timed_out(&doing, DOES_NOT_SHOW));
                }
                None => self.pause(pauses.next_pause(), &doing, &DOES_NOT_SHOW)?,
            }
        }
    }
}

/// Why DigitalOcean did not answer a question, the last time that it did not. A call that waited all its time for others has
/// no reason of its own to give.
static LAST_FAILURE: Mutex<Option<(Instant, String)>> = Mutex::new(None);
/// How long that explains anything.
const EXPLAINS: Duration = Duration::from_secs(30);

fn keep_failure(err: &ApiError) {
    *LAST_FAILURE.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), err.to_string()));
}

fn last_failure() -> Option<String> {
    let last = LAST_FAILURE.lock().unwrap_or_else(PoisonError::into_inner);
    let (at, why) = last.as_ref().filter(|(at, _)| at.elapsed() < EXPLAINS)?;
    Some(format!("no time was left to ask DigitalOcean; {} s ago it did not answer: {why}", at.elapsed().as_secs()))
}

/// Each pause has a random part, so that the plugins of a cluster do not stay in step.
fn jittered((first, longest): (Duration, Duration)) -> Backoff {
    Backoff::new(first, longest).with_jitter()
}

/// The next pause after a failure; longer when DigitalOcean says how long to wait.
pub(super) fn pause_after(pauses: &mut Backoff, err: &ApiError) -> Duration {
    let pause = pauses.next_pause();
    err.wait().map_or(pause, |asked| asked.max(pause))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_secs(100);

    #[test]
    fn what_one_call_waits_for_in_turn_fits_into_it() {
        let patience = Timeouts::of(BUDGET);
        assert!(patience.lock() + patience.while_backing_off() + patience.after_backoff() < patience.call());
        assert!(
            patience.release_grace() + patience.power_off_grace() + patience.propagation() + patience.unknown_action()
                < patience.call()
        );
    }
}
