//! How fast this program may call DigitalOcean, learned from what every reply says.
//!
//! Owns the restraint: a pace that stays below the burst limit, a brake when few calls remain in the hour, a stop after a
//! 429, and the operator's own limit. It does not sleep and sends nothing. Other programs share the token's limits unseen,
//! so a 429 stays possible.
//!
//! Source: API reference, "Rate Limit": 5,000 calls an hour, each counting for one hour of its own, and 5 % of that in one
//! minute; `retry-after` only when it was the minute.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How urgent a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Attach, detach, resize, create, delete, and the single reads that they are decided from.
    Essential,
    /// Polling and lists: slowed down first, so that the essential calls still get through.
    Deferrable,
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

/// Calls in an hour, as long as no reply said otherwise.
const DEFAULT_LIMIT: u32 = 5_000;

/// With the interval below: 150 calls at once and then 100 a minute, together the 250 that any minute may have.
const BURST: u32 = 150;
const BURST_DEFERRABLE: u32 = 100;

/// What a header said about the calls left is forgotten after this time; others use the token too.
const FRESH: Duration = Duration::from_secs(60);

/// The most that a call is slowed down because few calls are left in the hour.
const BRAKE_ESSENTIAL: Duration = Duration::from_secs(1);
const BRAKE_DEFERRABLE: Duration = Duration::from_secs(5);

/// How long calls are stopped by a 429 that does not say how long.
const BLIND_STOP: Duration = Duration::from_secs(5);

/// How long calls are stopped at most before one of them tries again: `ratelimit-reset` is a time of day, and this
/// machine's clock may be wrong.
const LONGEST_STOP: Duration = Duration::from_secs(60);

/// A call counts for an hour, so nobody has to wait longer.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// One token's quota, shared by all threads.
#[derive(Debug)]
pub struct RateLimit(Mutex<Bucket>);

impl RateLimit {
    /// A full quota. `per_second` is the operator's `--do-api-rate-limit`: at most so many calls a second, evenly
    /// spread; 0 (or anything that is no positive number) leaves that limit off.
    #[must_use]
    pub fn new(per_second: f64) -> RateLimit {
        RateLimit(Mutex::new(Bucket::new(per_second)))
    }

    /// Takes a place for one call and says how long to wait before it; takes none when that is longer than `patience`.
    ///
    /// # Errors
    /// The wait that would have been needed.
    pub fn admit(&self, class: Class, patience: Duration) -> Result<Duration, Duration> {
        self.lock().admit(class, patience, Instant::now())
    }

    /// How much longer calls are stopped by a 429; zero when they are not. Asked again after every wait.
    #[must_use]
    pub fn stopped_for(&self) -> Duration {
        self.lock().stopped_for(Instant::now())
    }

    /// Takes in what a reply's headers said.
    pub fn observe(&self, headers: &RateHeaders) {
        self.lock().observe(headers, Instant::now());
    }

    /// Takes in that a call was refused for the rate limit, and how long DigitalOcean asked to wait.
    pub fn refused(&self, wait: Option<Duration>) {
        self.lock().refused(wait, Instant::now());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Bucket> {
        // Every state of the bucket is a valid one, whatever a panicking thread was doing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The quota without a clock.
#[derive(Debug)]
struct Bucket {
    operator: Option<Spacing>,
    burst: Spacing,
    limit: u32,
    remaining: Option<(u32, Instant)>,
    stopped_until: Option<Instant>,
}

/// A leaky bucket kept as one point in time: when it would be empty if every call took one interval.
#[derive(Debug, Clone, Copy)]
struct Spacing {
    interval: Duration,
    empty_at: Option<Instant>,
}

impl Spacing {
    fn every(interval: Duration) -> Spacing {
        Spacing { interval, empty_at: None }
    }

    /// The wait before a call that may be one of `burst` at once.
    fn wait(&self, burst: u32, now: Instant) -> Duration {
        let full = self.interval.saturating_mul(burst.saturating_sub(1));
        self.empty_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now).saturating_sub(full))
    }

    fn take(&mut self, now: Instant) {
        let from = self.empty_at.map_or(now, |at| at.max(now));
        self.empty_at = from.checked_add(self.interval);
    }
}

impl Bucket {
    fn new(per_second: f64) -> Bucket {
        // An infinite or absurdly small rate gives no duration; both mean that nobody set a limit.
        let interval = (per_second > 0.0).then(|| Duration::try_from_secs_f64(per_second.recip()).ok()).flatten();
        Bucket {
            operator: interval.map(Spacing::every),
            burst: Spacing::every(burst_interval(DEFAULT_LIMIT)),
            limit: DEFAULT_LIMIT,
            remaining: None,
            stopped_until: None,
        }
    }

    fn admit(&mut self, class: Class, patience: Duration, now: Instant) -> Result<Duration, Duration> {
        let burst = match class {
            Class::Essential => BURST,
            Class::Deferrable => BURST_DEFERRABLE,
        };
        let wait = self
            .stopped_for(now)
            .max(self.brake(class, now))
            .max(self.burst.wait(burst, now))
            .max(self.operator.map_or(Duration::ZERO, |spacing| spacing.wait(1, now)));
        if wait > patience {
            return Err(wait);
        }
        self.burst.take(now);
        if let Some(spacing) = &mut self.operator {
            spacing.take(now);
        }
        if let Some((remaining, _)) = &mut self.remaining {
            *remaining = remaining.saturating_sub(1);
        }
        Ok(wait)
    }

    fn stopped_for(&self, now: Instant) -> Duration {
        self.stopped_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Slows down as the hour's calls run out: polling and lists below a tenth of them, the rest below a fiftieth.
    fn brake(&self, class: Class, now: Instant) -> Duration {
        let Some((remaining, seen)) = self.remaining else { return Duration::ZERO };
        if now.saturating_duration_since(seen) > FRESH {
            return Duration::ZERO;
        }
        let (reserve, most) = match class {
            Class::Essential => (self.limit / 50, BRAKE_ESSENTIAL),
            Class::Deferrable => (self.limit / 10, BRAKE_DEFERRABLE),
        };
        let missing = reserve.saturating_sub(remaining);
        most.saturating_mul(missing).checked_div(reserve).unwrap_or(Duration::ZERO)
    }

    fn observe(&mut self, headers: &RateHeaders, now: Instant) {
        if let Some(limit) = headers.limit.filter(|limit| *limit > 0 && *limit != self.limit) {
            self.limit = limit;
            // The calls so far were counted at another rate and are forgotten.
            self.burst = Spacing::every(burst_interval(limit));
        }
        if let Some(remaining) = headers.remaining {
            self.remaining = Some((remaining, now));
        }
    }

    fn refused(&mut self, wait: Option<Duration>, now: Instant) {
        let until = now.checked_add(wait.unwrap_or(BLIND_STOP).min(LONGEST_STOP));
        self.stopped_until = self.stopped_until.max(until);
    }
}

impl RateHeaders {
    /// How long a refused caller has to wait: `retry-after`, or, when the hour is used up, until its oldest call expires.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        let hourly = self.reset_in.filter(|_| self.remaining == Some(0));
        self.retry_after.or(hourly).map(|wait| wait.min(LONGEST_WAIT))
    }
}

/// The time in which one call drips out of the bucket: 600 ms for 5,000 calls an hour, in proportion otherwise.
fn burst_interval(limit: u32) -> Duration {
    Duration::from_secs(3000).checked_div(limit).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn left(remaining: u32) -> RateHeaders {
        RateHeaders { limit: Some(5000), remaining: Some(remaining), ..RateHeaders::default() }
    }

    /// Admits as many calls as go through within `span`, each as soon as it may.
    fn calls_in(bucket: &mut Bucket, class: Class, start: Instant, span: Duration) -> u32 {
        let (mut now, mut count) = (start, 0);
        while now < start + span {
            let wait = bucket.admit(class, secs(3600), now).unwrap();
            now += wait;
            count += u32::from(now < start + span);
            assert!(count < 100_000, "no restraint at all");
        }
        count
    }

    #[test]
    fn no_minute_has_more_calls_than_the_burst_limit() {
        let start = Instant::now();
        let essential = calls_in(&mut Bucket::new(0.0), Class::Essential, start, secs(60));
        let deferrable = calls_in(&mut Bucket::new(0.0), Class::Deferrable, start, secs(60));
        assert!((245..=250).contains(&essential), "{essential}");
        assert!((195..=200).contains(&deferrable), "{deferrable}");
    }

    #[test]
    fn a_higher_limit_of_the_token_makes_the_pace_faster() {
        let (mut bucket, now) = (Bucket::new(0.0), Instant::now());
        assert_eq!(bucket.admit(Class::Deferrable, Duration::ZERO, now), Ok(Duration::ZERO));
        bucket.observe(&RateHeaders { limit: Some(5_000_000), ..RateHeaders::default() }, now);
        assert_eq!(bucket.admit(Class::Deferrable, Duration::ZERO, now), Ok(Duration::ZERO));
        assert!(calls_in(&mut bucket, Class::Deferrable, now, secs(1)) > 1000);
    }

    #[test]
    fn a_burst_of_polls_leaves_room_for_essential_calls() {
        let (mut bucket, now) = (Bucket::new(0.0), Instant::now());
        while bucket.admit(Class::Deferrable, Duration::ZERO, now).is_ok() {}
        for _ in 0..50 {
            assert_eq!(bucket.admit(Class::Essential, Duration::ZERO, now), Ok(Duration::ZERO));
        }
        assert!(bucket.admit(Class::Essential, Duration::ZERO, now).is_err());
    }

    #[test]
    fn below_the_reserve_polls_slow_down_before_essential_calls() {
        let now = Instant::now();
        let wait = |class, remaining| {
            let mut bucket = Bucket::new(0.0);
            bucket.observe(&left(remaining), now);
            bucket.admit(class, secs(60), now).unwrap()
        };
        assert_eq!([4000, 500].map(|left| wait(Class::Deferrable, left)), [Duration::ZERO; 2]);
        assert_eq!([4000, 500, 250, 100].map(|left| wait(Class::Essential, left)), [Duration::ZERO; 4]);
        assert_eq!([250, 0].map(|left| wait(Class::Deferrable, left)), [secs(5) / 2, secs(5)]);
        assert_eq!([50, 0].map(|left| wait(Class::Essential, left)), [secs(1) / 2, secs(1)]);
    }

    #[test]
    fn what_a_header_said_is_forgotten_after_a_while() {
        let (mut bucket, now) = (Bucket::new(0.0), Instant::now());
        bucket.observe(&left(0), now);
        assert_eq!(bucket.admit(Class::Deferrable, secs(60), now + secs(61)), Ok(Duration::ZERO));
    }

    #[test]
    fn a_refusal_stops_every_class_for_as_long_as_it_says() {
        let (mut bucket, now) = (Bucket::new(0.0), Instant::now());
        bucket.refused(Some(secs(29)), now);
        // A second refusal that asks for less does not shorten the first.
        bucket.refused(Some(secs(3)), now);
        for class in [Class::Essential, Class::Deferrable] {
            assert_eq!(bucket.admit(class, secs(60), now), Ok(secs(29)));
            assert_eq!(bucket.admit(class, secs(10), now + secs(9)), Err(secs(20)));
            assert_eq!(bucket.admit(class, secs(10), now + secs(29)), Ok(Duration::ZERO));
        }
        bucket.refused(Some(secs(3000)), now);
        assert_eq!(bucket.stopped_for(now), secs(60), "one call a minute looks whether it is over");
        bucket.refused(None, now + secs(60));
        assert_eq!(bucket.stopped_for(now + secs(60)), secs(5));
    }

    #[test]
    fn a_call_that_is_not_waited_for_takes_no_place() {
        let (mut bucket, now) = (Bucket::new(1.0), Instant::now());
        assert_eq!(bucket.admit(Class::Essential, secs(0), now), Ok(Duration::ZERO));
        for _ in 0..10 {
            assert_eq!(bucket.admit(Class::Essential, secs(0), now), Err(secs(1)));
        }
        assert_eq!(bucket.admit(Class::Essential, secs(1), now), Ok(secs(1)));
    }

    #[test]
    fn the_operators_limit_spreads_all_calls_evenly() {
        let (mut bucket, now) = (Bucket::new(2.0), Instant::now());
        let waits: Vec<_> = (0..4).map(|_| bucket.admit(Class::Essential, secs(60), now).unwrap()).collect();
        assert_eq!(waits, [0, 500, 1000, 1500].map(Duration::from_millis));
        assert_eq!(bucket.admit(Class::Essential, secs(60), now + secs(10)), Ok(Duration::ZERO));
    }

    #[test]
    fn no_limit_of_the_operator_is_no_wait() {
        for off in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300] {
            let (mut bucket, now) = (Bucket::new(off), Instant::now());
            for _ in 0..100 {
                assert_eq!(bucket.admit(Class::Essential, Duration::ZERO, now), Ok(Duration::ZERO), "{off}");
            }
        }
    }

    #[test]
    fn the_wait_is_told_by_retry_after_else_by_the_reset_of_an_empty_hour() {
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
}
