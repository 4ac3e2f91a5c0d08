//! The request rate limit: an hour and a minute, as one token has them, both sliding or both fixed.
//!
//! Owns the counting, also of how many were refused and of the busiest second. The limits themselves are in `config.rs`.

use std::collections::VecDeque;
use std::time::Duration;

use super::clock::Moment;
use super::config::{Limits, RateWindow};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// The requests of the last hour; each has an hour of its own (`description.yml`).
#[derive(Debug, Default)]
pub struct RateLimit {
    requests: VecDeque<Moment>,
    refused: u64,
}

/// What the headers of a reply say, and whether there is a reply at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowance {
    /// `ratelimit-limit`.
    pub limit: usize,
    /// `ratelimit-remaining`.
    pub remaining: usize,
    /// `ratelimit-reset`, in seconds since the Unix epoch.
    pub reset: u64,
    /// When that was.
    pub now: Moment,
    /// Which limit forbids the request.
    pub verdict: Verdict,
}

/// Whether a request may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// Too many in an hour.
    HourUsedUp,
    /// Too many in a minute; `retry-after` tells the seconds to wait.
    MinuteUsedUp {
        /// Whole seconds, rounded up.
        retry_after: u64,
    },
}

impl RateLimit {
    /// Counts a request that comes `now`, unless it is refused.
    pub fn admit(&mut self, now: Moment, limits: &Limits) -> Allowance {
        let allowance = self.look(now, limits);
        match allowance.verdict {
            Verdict::Allowed => {
                self.requests.push_back(now);
                Allowance { remaining: allowance.remaining - 1, ..allowance }
            }
            Verdict::HourUsedUp | Verdict::MinuteUsedUp { .. } => {
                self.refused += 1;
                allowance
            }
        }
    }

    /// Tells what a request would meet, without counting one.
    pub fn look(&mut self, now: Moment, limits: &Limits) -> Allowance {
        while self.requests.front().is_some_and(|first| *first + HOUR <= now) {
            self.requests.pop_front();
        }
        let counts = |at: Moment, span: Duration| free_at(at, span, limits.window) > now;
        let used = self.requests.iter().rev().take_while(|at| counts(**at, HOUR)).count();
        let recent = self.requests.iter().rev().take_while(|at| counts(**at, MINUTE)).count();
        let oldest = |count: usize| self.requests.get(self.requests.len() - count).copied();
        let (verdict, remaining) = if used >= limits.requests_per_hour {
            (Verdict::HourUsedUp, 0)
        } else if recent >= limits.requests_per_minute {
            let free = oldest(recent).map_or(now, |at| free_at(at, MINUTE, limits.window));
            (Verdict::MinuteUsedUp { retry_after: whole_seconds(free - now) }, 0)
        } else {
            (Verdict::Allowed, limits.requests_per_hour - used)
        };
        let reset = oldest(used).map_or(now, |first| free_at(first, HOUR, limits.window)).as_secs();
        Allowance { limit: limits.requests_per_hour, remaining, reset, now, verdict }
    }

    /// How many requests were refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The most requests that any second of the last hour had.
    pub fn busiest_second(&self) -> usize {
        let second = Duration::from_secs(1);
        let mut from = 0;
        let mut most = 0;
        for (number, at) in self.requests.iter().enumerate() {
            while self.requests.get(from).is_some_and(|first| *first + second <= *at) {
                from += 1;
            }
            most = most.max(number + 1 - from);
        }
        most
    }
}

/// When a request of that moment stops counting.
fn free_at(at: Moment, span: Duration, window: RateWindow) -> Moment {
    match window {
        RateWindow::Sliding => at + span,
        RateWindow::Fixed => Duration::from_secs((at.as_secs() / span.as_secs() + 1) * span.as_secs()),
    }
}

fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_refused_until_its_minute_is_over() {
        let limits = Limits { requests_per_minute: 2, ..Limits::default() };
        let mut rate = RateLimit::default();
        let start = Duration::from_secs(1000);
        assert_eq!(rate.admit(start, &limits).verdict, Verdict::Allowed);
        assert_eq!(rate.admit(start + Duration::from_secs(10), &limits).verdict, Verdict::Allowed);
        let refused = rate.admit(start + Duration::from_secs(20), &limits);
        assert_eq!(refused.verdict, Verdict::MinuteUsedUp { retry_after: 40 });
        assert_eq!(refused.remaining, 0);
        assert_eq!(rate.admit(start + Duration::from_secs(60), &limits).verdict, Verdict::Allowed);
    }

    #[test]
    fn an_hour_is_sliding_and_says_when_a_request_is_free_again() {
        let limits = Limits { requests_per_hour: 1, ..Limits::default() };
        let mut rate = RateLimit::default();
        let start = Duration::from_secs(1000);
        assert_eq!(rate.admit(start, &limits).remaining, 0);
        let refused = rate.admit(start + MINUTE, &limits);
        assert_eq!((refused.verdict, refused.reset), (Verdict::HourUsedUp, 4600));
        assert_eq!(rate.admit(start + HOUR, &limits).verdict, Verdict::Allowed);
    }

    #[test]
    fn a_fixed_minute_begins_anew_for_all_at_once() {
        let limits = Limits { requests_per_minute: 2, window: RateWindow::Fixed, ..Limits::default() };
        let mut rate = RateLimit::default();
        let at = |seconds: u64| Duration::from_secs(600 + seconds);
        for seconds in [50, 59] {
            assert_eq!(rate.admit(at(seconds), &limits).verdict, Verdict::Allowed);
        }
        assert_eq!(rate.admit(at(59), &limits).verdict, Verdict::MinuteUsedUp { retry_after: 1 });
        for seconds in [60, 60] {
            assert_eq!(rate.admit(at(seconds), &limits).verdict, Verdict::Allowed);
        }
        let refused = rate.admit(at(61), &limits);
        assert_eq!((refused.verdict, refused.reset), (Verdict::MinuteUsedUp { retry_after: 59 }, 3600));
        assert_eq!((rate.refused(), rate.busiest_second()), (2, 2));
    }
}
