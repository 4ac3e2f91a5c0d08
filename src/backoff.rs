//! Waiting for what somebody else does: growing pauses between looks, and looking until the time is up.
//!
//! Owns the rhythm alone. What is looked at, what is enough, and what it means when the time is up are the caller's.

use std::thread;
use std::time::{Duration, Instant};

/// How often is seldom enough for a line in the log.
const SELDOM: Duration = Duration::from_secs(60);

/// Growing pauses: each is twice as long as the one before it, up to the longest.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
    has_jitter: bool,
}

impl Backoff {
    /// Pauses from the first to the longest.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { next: first, longest, has_jitter: false }
    }

    /// The same with a random part, so that many who wait for one thing do not stay in step: a pause is at least half as long
    /// as it would be without, and at most one and a half times as long.
    #[must_use]
    pub const fn with_jitter(self) -> Backoff {
        Backoff { has_jitter: true, ..self }
    }

    /// The next pause.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.longest);
        if self.has_jitter { pause.mul_f64(0.5 + fastrand::f64()) } else { pause }
    }
}

/// Says that something may be told again: at once, and then once a minute, however often it happens.
#[derive(Debug, Default)]
pub struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether it is to be told now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.0.is_none_or(|told| now.saturating_duration_since(told) >= SELDOM);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

/// Looks again and again until what is seen is enough or the time is up; gives what was seen last. It looks at least once,
/// and once more when the time is up.
pub fn look_until<T>(
    deadline: Instant,
    mut pauses: Backoff,
    mut look: impl FnMut() -> T,
    is_enough: impl Fn(&T) -> bool,
) -> T {
    loop {
        // A look takes time itself: one that began before the end and ended after it is the last.
        let seen = look();
        let left = deadline.saturating_duration_since(Instant::now());
        if is_enough(&seen) || left.is_zero() {
            return seen;
        }
        thread::sleep(pauses.next_pause().min(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(2);
    const LONGEST: Duration = Duration::from_millis(9);

    fn millis(mut pauses: Backoff) -> Vec<u128> {
        (0..5).map(|_| pauses.next_pause().as_millis()).collect()
    }

    #[test]
    fn pauses_grow_to_the_longest() {
        assert_eq!(millis(Backoff::new(FIRST, LONGEST)), [2, 4, 8, 9, 9]);
    }

    #[test]
    fn pauses_with_jitter_stay_near_and_are_not_the_same() {
        let longest = Duration::from_secs(5);
        let pauses = || {
            let mut pauses = Backoff::new(longest, longest).with_jitter();
            (0..20).map(|_| pauses.next_pause()).collect::<Vec<_>>()
        };
        let all = pauses();
        assert!(all.iter().all(|pause| *pause >= longest / 2 && *pause <= longest * 3 / 2), "{all:?}");
        assert_ne!(all, pauses());
    }

    #[test]
    fn what_is_enough_ends_the_looking_and_so_does_the_time() {
        let looks_until = |enough: u32, time: Duration| {
            let mut looks = 0;
            let look = || {
                looks += 1;
                looks
            };
            look_until(Instant::now() + time, Backoff::new(FIRST, LONGEST), look, |seen| *seen >= enough)
        };
        assert_eq!(looks_until(3, Duration::from_secs(60)), 3);
        assert_eq!(looks_until(3, Duration::ZERO), 1);
        let last = looks_until(u32::MAX, Duration::from_millis(20));
        assert!(last > 1, "it looked {last} times");
    }

    #[test]
    fn what_happens_all_the_time_is_told_once_a_minute() {
        let (start, mut seldom) = (Instant::now(), Seldom::default());
        let told = (0..1800).filter(|tenth| seldom.is_due(start + Duration::from_millis(100) * *tenth)).count();
        assert_eq!(told, 3);
    }
}
