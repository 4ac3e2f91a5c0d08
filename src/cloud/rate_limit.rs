//! How fast this program may call DigitalOcean, learned from what every reply says.
//!
//! Owns the waiting lines before the API: looks at running actions first, then what changes something, then polling and
//! lists. Who waits has reserved nothing: a place is taken by the first of the lines at the moment of sending, so those
//! that wait hold up nobody who is more urgent. How much may be sent is decided in [`quota`], without a clock.
//!
//! Source: API reference, "Rate Limit": 5,000 calls an hour, each counting for one hour of its own, and 5 % of that in one
//! minute; `retry-after` only when it was the minute.

pub mod quota;

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cloud::rate_limit::quota::{HeldBack, Quota};

/// How urgent a call is; the more urgent is the lesser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A look at an action that is running: whoever waits for it keeps a droplet's turn, and the call it belongs to has
    /// been paid for already.
    Look,
    /// Attach, detach, resize, create, delete, and the single reads that they are decided from.
    Essential,
    /// Lists and questions of no hurry, so that the essential calls still get through.
    Deferrable,
}

/// Calls that are to come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expected {
    /// Of this program.
    pub own: u32,
    /// Of others with the same token, as long as it is not known what these use.
    pub others: u32,
}

/// What a reply's headers say about the token's limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateHeaders {
    /// `ratelimit-limit`: calls in an hour.
    pub limit: Option<u32>,
    /// `ratelimit-remaining`: calls left now.
    pub remaining: Option<u32>,
    /// Time from now to `ratelimit-reset`, when the oldest call stops counting.
    pub reset_in: Option<Duration>,
    /// `retry-after`: the time in which every call will be refused.
    pub retry_after: Option<Duration>,
}

/// A call counts for an hour, so nobody has to wait longer.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

impl RateHeaders {
    /// How long a refused caller has to wait: `retry-after`, or, when the hour is used up, until its oldest call expires.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        let hourly = self.reset_in.filter(|_| self.remaining == Some(0));
        self.retry_after.or(hourly).map(|wait| wait.min(LONGEST_WAIT))
    }
}

/// One token's quota, shared by all threads.
#[derive(Debug)]
pub struct RateLimit {
    quota: Mutex<Quota>,
    /// Told whenever somebody may go on sooner than it was thought.
    changed: Condvar,
}

/// Permission to send one call, which counts from now on.
#[derive(Debug)]
#[must_use = "the call counts although nothing is sent"]
pub struct Place<'a> {
    rate_limit: &'a RateLimit,
    taken: Instant,
}

impl RateLimit {
    /// A full quota. `per_second` is the operator's `--do-api-rate-limit`: at most so many calls a second, evenly
    /// spread; 0 (or anything that is no positive number) leaves that limit off.
    #[must_use]
    pub fn new(per_second: f64) -> RateLimit {
        RateLimit { quota: Mutex::new(Quota::new(per_second)), changed: Condvar::new() }
    }

    /// Waits in line until one call may be sent.
    ///
    /// # Errors
    /// Why it may not within `patience`; at once where that is certain before.
    pub fn wait(&self, class: Class, patience: Duration) -> Result<Place<'_>, HeldBack> {
        let begun = Instant::now();
        let mut quota = self.lock();
        let ticket = quota.join(class);
        loop {
            let now = Instant::now();
            let Some(held) = quota.take(class, ticket, now) else {
                // Whoever is behind may find room too.
                self.changed.notify_all();
                return Ok(Place { rate_limit: self, taken: now });
            };
            let left = patience.saturating_sub(now.saturating_duration_since(begun));
            if held.wait > left || left.is_zero() {
                quota.leave(class, ticket);
                self.changed.notify_all();
                return Err(held);
            }
            // Only those ahead hold this call back, and they tell when they go.
            let pause = if held.wait.is_zero() { left } else { held.wait.min(left).max(LEAST_PAUSE) };
            quota = self.changed.wait_timeout(quota, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The part of a minute's calls that is used, by others with the same token, too, and by those that are to come: from 0 to
    /// 1.
    pub fn used(&self, expected: Expected) -> f64 {
        self.lock().used_part(expected, Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Quota> {
        // Every state of the quota is a valid one, whatever a panicking thread was doing.
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Quota)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// A wait is at least so long, so that rounding makes no loop of it.
const LEAST_PAUSE: Duration = Duration::from_millis(1);

impl Place<'_> {
    /// Takes in what the headers of the call's reply said.
    pub fn answered(&self, headers: &RateHeaders) {
        self.rate_limit.change(|quota| quota.answered(headers, Instant::now()));
    }

    /// Takes in that the call was refused for the rate limit, and how long DigitalOcean asked to wait.
    ///
    /// All processes that share a token are told the same time; each goes on a random while after it.
    pub fn refused(&self, wait: Option<Duration>) {
        self.rate_limit.change(|quota| quota.refused(wait, fastrand::f64(), Instant::now()));
    }

    /// Gives the place back: the call has not left this machine.
    pub fn give_back(self) {
        self.rate_limit.change(|quota| quota.give_back(self.taken));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.rate_limit.change(Quota::finish);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_wait_is_told_by_retry_after_else_by_the_reset_of_an_empty_hour() {
        let secs = Duration::from_secs;
        let headers = |remaining, reset, retry: Option<u64>| RateHeaders {
            limit: None,
            remaining,
            reset_in: Some(secs(reset)),
            retry_after: retry.map(secs),
        };
        assert_eq!(headers(Some(0), 900, Some(29)).wait(), Some(secs(29)));
        assert_eq!(headers(Some(0), 900, None).wait(), Some(secs(900)));
        assert_eq!(headers(Some(7), 900, None).wait(), None);
        assert_eq!(headers(None, 900, None).wait(), None);
        assert_eq!(headers(Some(0), 90_000, None).wait(), Some(secs(3600)));
    }

    /// Stops all calls for a while, lets one wait of each class, the least urgent first, and gives the order they came in.
    #[test]
    fn the_more_urgent_go_first_whoever_came_first() {
        let rate_limit = Arc::new(RateLimit::new(100.0));
        rate_limit.wait(Class::Essential, LONG).unwrap().refused(Some(Duration::from_millis(300)));
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for class in [Class::Deferrable, Class::Essential, Class::Look] {
            let (rate_limit, order) = (Arc::clone(&rate_limit), Arc::clone(&order));
            let before = rate_limit.lock().waiting();
            waiting.push(thread::spawn({
                let rate_limit = Arc::clone(&rate_limit);
                move || {
                    let place = rate_limit.wait(class, LONG).unwrap();
                    order.lock().unwrap().push(class);
                    place.answered(&RateHeaders::default());
                }
            }));
            while rate_limit.lock().waiting() == before {
                thread::yield_now();
            }
        }
        for thread in waiting {
            thread.join().unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [Class::Look, Class::Essential, Class::Deferrable]);
        assert_eq!(rate_limit.lock().waiting(), 0);
    }

    #[test]
    fn who_gives_up_leaves_the_line_and_is_told_at_once_when_the_wait_is_too_long() {
        let rate_limit = RateLimit::new(0.0);
        rate_limit.wait(Class::Essential, LONG).unwrap().refused(Some(Duration::from_secs(30)));
        let asked = Instant::now();
        let held = rate_limit.wait(Class::Look, Duration::from_secs(10)).unwrap_err();
        assert!(held.wait >= Duration::from_secs(29) && asked.elapsed() < Duration::from_secs(5), "{held}");
        assert_eq!(rate_limit.lock().waiting(), 0);
    }
}
