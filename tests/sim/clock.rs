//! The simulator's clock: real time plus an offset that tests move forward.
//!
//! Owns what "now" means and how a moment is written in JSON. Nothing here decides what happens at a moment: that is
//! `state.rs`, which is given `now` as a plain value.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::lock;

/// A point in simulated time, counted from the Unix epoch.
pub type Moment = Duration;

/// Monotonic time that [`Clock::advance`] can move forward, never back.
#[derive(Debug)]
pub struct Clock {
    started: Instant,
    epoch: Moment,
    offset: Mutex<Duration>,
}

impl Clock {
    /// Starts at the machine's wall time.
    pub fn new() -> Clock {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).expect("the machine's clock stands after 1970");
        Clock { started: Instant::now(), epoch, offset: Mutex::new(Duration::ZERO) }
    }

    /// Tells the present moment.
    pub fn now(&self) -> Moment {
        self.epoch + self.started.elapsed() + *lock(&self.offset)
    }

    /// Moves the clock forward at once, so that ten-minute rules can be tested in milliseconds.
    pub fn advance(&self, by: Duration) {
        *lock(&self.offset) += by;
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

/// Writes a moment as `2026-08-01T09:30:00Z`, the form of every `*_at` field.
pub fn rfc3339(moment: Moment) -> String {
    let seconds = moment.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Writes a moment as `Sun, 06 Nov 1994 08:49:37 GMT`, as a header has it. Source: RFC 9110, 5.6.7.
pub fn http_date(moment: Moment) -> String {
    let seconds = i64::try_from(moment.as_secs()).expect("a moment of this age of the world");
    let at = jiff::Timestamp::from_second(seconds).expect("a moment of this age of the world");
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).expect("a year of four digits")
}

/// Turns days since 1970-01-01 into a calendar date by walking whole 400-year cycles that begin on 1 March.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_utc_dates() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_785_578_400, "2026-08-01T10:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), want);
        }
    }

    #[test]
    fn advancing_moves_now_at_once() {
        let clock = Clock::new();
        let before = clock.now();
        clock.advance(Duration::from_secs(600));
        assert!(clock.now() >= before + Duration::from_secs(600));
    }
}
