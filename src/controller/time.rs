//! One call's time: when it has to end, and asking again until then.
//!
//! Owns the deadline of a call, the pauses inside it, and the repetition of questions that DigitalOcean did not answer.
//! Only questions are repeated here; a change is repeated by whoever knows what it may have done.

use std::thread;
use std::time::{Duration, Instant};

use log::warn;

use crate::cloud::error::{ApiError, ApiErrorKind};
use crate::cloud::volume::Volume;
use crate::cloud::{ApiResult, Cloud};
use crate::error::{Error, Result, Thing};
use crate::id::VolumeId;

/// The first and the longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The time that one call has.
#[derive(Debug)]
pub struct CallTime {
    /// The API, bounded by this call's deadline.
    pub cloud: Cloud,
    started: Instant,
    deadline: Instant,
}

impl CallTime {
    /// Starts the clock.
    #[must_use]
    pub fn start(cloud: &Cloud, budget: Duration) -> CallTime {
        let started = Instant::now();
        let deadline = started + budget;
        CallTime { cloud: cloud.until(deadline), started, deadline }
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

    /// The error of a call whose time is used up.
    #[must_use]
    pub fn out_of_time(&self, doing: &str, waited_for: impl Into<String>) -> Error {
        let waited_s = self.started.elapsed().as_secs();
        Error::OutOfTime { doing: doing.to_owned(), waited_s, waited_for: waited_for.into() }
    }

    /// Waits before the next try of something that failed.
    ///
    /// # Errors
    /// [`Error::OutOfTime`] at once when the pause would outlast the call: nothing can come of it any more.
    pub fn pause(&self, pause: Duration, doing: &str, because: &dyn std::fmt::Display) -> Result<()> {
        if pause >= self.left() {
            return Err(self.out_of_time(doing, because.to_string()));
        }
        thread::sleep(pause);
        Ok(())
    }

    /// Asks until there is an answer.
    ///
    /// # Errors
    /// [`Error::OutOfTime`] when only transient failures came; otherwise what `refused` makes of the failure.
    pub fn ask<T>(
        &self,
        doing: &str,
        refused: impl FnOnce(ApiError) -> Error,
        question: impl Fn(&Cloud) -> ApiResult<T>,
    ) -> Result<T> {
        let mut pauses = Pauses::new();
        loop {
            let err = match question(&self.cloud) {
                Ok(answer) => return Ok(answer),
                Err(err) => err,
            };
            if err.kind() == ApiErrorKind::NoTimeLeft {
                return Err(self.out_of_time(doing, err.to_string()));
            }
            if !err.is_transient() {
                return Err(refused(err));
            }
            warn!("asking again doing={doing}: {err}");
            self.pause(pauses.after(&err), doing, &err)?;
        }
    }

    /// Reads a volume, asking until there is an answer.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OutOfTime`] or [`Error::Api`].
    pub fn observe_volume(&self, id: &VolumeId) -> Result<Volume> {
        let doing = format!("reading volume {id}");
        self.ask(&doing, super::no_volume(id, || doing.clone()), |cloud| cloud.get_volume(id))
    }

    /// As [`CallTime::observe_volume`], for those to whom a missing volume is an answer.
    ///
    /// # Errors
    /// [`Error::OutOfTime`] or [`Error::Api`].
    pub fn observe_volume_if_there(&self, id: &VolumeId) -> Result<Option<Volume>> {
        match self.observe_volume(id) {
            Ok(volume) => Ok(Some(volume)),
            Err(Error::NotFound(Thing::Volume(_))) => Ok(None),
            Err(err) => Err(err),
        }
    }
}

/// Growing pauses, each with a random part, so that the plugins of a cluster do not stay in step.
#[derive(Debug)]
pub struct Pauses(Duration);

impl Pauses {
    /// Starts with the shortest.
    #[must_use]
    pub fn new() -> Pauses {
        Pauses(FIRST_PAUSE)
    }

    /// The next pause: at least half of what it would be without chance, at most one and a half times as much.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.0.mul_f64(0.5 + fastrand::f64());
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        pause
    }

    /// The next pause after a failure; longer when DigitalOcean says how long to wait.
    pub fn after(&mut self, err: &ApiError) -> Duration {
        let pause = self.next_pause();
        err.wait().map_or(pause, |asked| asked.max(pause))
    }
}

impl Default for Pauses {
    fn default() -> Self {
        Pauses::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_never_the_same() {
        let mut pauses = Pauses::new();
        let all: Vec<Duration> = (0..20).map(|_| pauses.next_pause()).collect();
        assert!(all.iter().all(|pause| *pause >= FIRST_PAUSE / 2 && *pause <= LONGEST_PAUSE * 3 / 2));
        assert!(all.last() > all.first());
    }
}
