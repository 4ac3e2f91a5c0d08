//! How much of a token's quota is used, and who may send next: decisions, without a clock.
//!
//! Owns a sliding window of all calls of the last minute: this program's, and those of others with the same token, which show
//! in how fast the remaining calls of the hour become fewer. What fits a sliding window fits a fixed one as well. Others
//! stay unseen between two replies, so a 429 stays possible.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::cloud::rate_limit::{Class, Expected, RateHeaders};

/// Calls in an hour, as long as no reply said otherwise.
const DEFAULT_LIMIT: u32 = 5_000;

/// How long a call counts here: a minute, and a second because it counts at DigitalOcean from when it arrives there.
const WINDOW: Duration = Duration::from_secs(61);

const SECOND: Duration = Duration::from_secs(1);

/// What a header said about the calls left is forgotten after this time; others use the token too.
const FRESH: Duration = Duration::from_secs(60);

/// What others used in this time, they are expected to go on using for that time.
const LATELY: Duration = Duration::from_secs(5);
const AHEAD: Duration = Duration::from_secs(30);

/// After replies over so long a time it is known what others use.
const KNOWN: Duration = Duration::from_secs(2);

/// Replies overtake each other; for so long one that tells of more calls left is taken for an older one.
const OVERTAKING: Duration = Duration::from_secs(5);

/// The most that a call is slowed down because few calls are left in the hour.
const BRAKE_ESSENTIAL: Duration = Duration::from_secs(1);
const BRAKE_DEFERRABLE: Duration = Duration::from_secs(5);

/// How long calls are stopped by a 429 that does not say how long.
const BLIND_STOP: Duration = Duration::from_secs(5);

/// How long calls are stopped at most before one of them tries again: `ratelimit-reset` is a time of day, and this
/// machine's clock may be wrong.
const LONGEST_STOP: Duration = Duration::from_secs(60);

/// The longest random part of a stop.
const LONGEST_SPREAD: Duration = Duration::from_secs(10);

/// How soon a caller looks again while others try whether a stop is over.
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// After a stop, one call at a time tries whether it is over; each reply doubles how many may be under way, until so many
/// are no limit.
const MOST_TRYING: u32 = 64;

/// Why a call has to wait, and how long at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldBack {
    /// How long at least.
    pub wait: Duration,
    /// What holds it back.
    pub by: Restraint,
}

/// What holds a call back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restraint {
    /// DigitalOcean has refused a call.
    Refused,
    /// So many calls are used in a minute, of so many; the third number is of those by others with the same token.
    Minute(u32, u32, u32),
    /// So few calls are left in the hour.
    FewLeft(u32),
    /// The operator's own limit.
    Operator,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            Restraint::Refused => write!(f, "held back since DigitalOcean refused a call for its rate limit")?,
            Restraint::Minute(used, most, others) => write!(
                f,
                "held back by this program's own restraint: {used} of {most} calls a minute are used, {others} of them by \
                 others with the same token"
            )?,
            Restraint::FewLeft(left) => {
                write!(f, "held back by this program's own restraint: {left} calls are left in the hour")?;
            }
            Restraint::Operator => write!(f, "held back by --do-api-rate-limit")?,
        }
        write!(f, "; the next may go in {:.1} s", self.wait.as_secs_f64())
    }
}

/// The quota of one token.
#[derive(Debug)]
pub(super) struct Quota {
    /// The time between two calls that the operator asks for.
    operator: Option<Duration>,
    limit: u32,
    window: VecDeque<Used>,
    last: Option<Instant>,
    in_flight: u32,
    reading: Option<Reading>,
    /// When a reply told of the calls left for the first time after a minute without one.
    first_reading: Option<Instant>,
    stop: Option<Stop>,
    /// How many calls may be under way as long as a stop is not known to be over.
    trying: Option<u32>,
    /// Who waits, by class.
    lines: [VecDeque<u64>; 3],
    next_ticket: u64,
}

/// Calls that are counted together, from the first of them on. With a high limit there are many, and the second that a call
/// counts longer than a minute is more than they are apart.
const TOGETHER: Duration = Duration::from_millis(50);

/// Calls that count from one moment on.
#[derive(Debug, Clone, Copy)]
struct Used {
    at: Instant,
    own: u32,
    others: u32,
}

/// What the headers said last about the calls left in the hour.
#[derive(Debug, Clone, Copy)]
struct Reading {
    remaining: u32,
    at: Instant,
    /// How many calls of this program the count may lack.
    own: u32,
}

#[derive(Debug, Clone, Copy)]
struct Stop {
    until: Instant,
    /// What is waited beyond that.
    spread: Duration,
}

impl Stop {
    fn end(&self) -> Instant {
        self.until.checked_add(self.spread).unwrap_or(self.until)
    }
}

impl Quota {
    pub(super) fn new(per_second: f64) -> Quota {
        // An infinite or absurdly small rate gives no duration; both mean that nobody set a limit.
        let operator = (per_second > 0.0).then(|| Duration::try_from_secs_f64(per_second.recip()).ok()).flatten();
        Quota {
            operator,
            limit: DEFAULT_LIMIT,
            window: VecDeque::new(),
            last: None,
            in_flight: 0,
            reading: None,
            first_reading: None,
            stop: None,
            trying: None,
            lines: Default::default(),
            next_ticket: 0,
        }
    }

    /// Takes the last place in the line of a class. It reserves nothing.
    pub(super) fn join(&mut self, class: Class) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.line(class).push_back(ticket);
        ticket
    }

    /// Leaves the line.
    pub(super) fn leave(&mut self, class: Class, ticket: u64) {
        self.line(class).retain(|other| *other != ticket);
    }

    /// Counts a call that is sent now, if it may be; otherwise says why not yet, and for how long at least.
    pub(super) fn take(&mut self, class: Class, ticket: u64, now: Instant) -> Option<HeldBack> {
        let ahead = self.ahead(class, ticket);
        if let Some(held) = self.held_back(class, ahead, now) {
            return Some(held);
        }
        self.leave(class, ticket);
        self.count(1, 0, now);
        self.last = Some(now);
        self.in_flight = self.in_flight.saturating_add(1);
        if let Some(reading) = &mut self.reading {
            reading.own = reading.own.saturating_add(1);
        }
        None
    }

    fn count(&mut self, own: u32, others: u32, now: Instant) {
        match self.window.back_mut().filter(|last| now.saturating_duration_since(last.at) < TOGETHER) {
            Some(last) => {
                last.own = last.own.saturating_add(own);
                last.others = last.others.saturating_add(others);
            }
            None => self.window.push_back(Used { at: now, own, others }),
        }
    }

    /// Takes back the call that was counted at that moment: nothing was sent.
    pub(super) fn give_back(&mut self, taken: Instant) {
        if let Some(used) = self.window.iter_mut().rev().find(|used| used.at <= taken && used.own > 0) {
            used.own -= 1;
        }
        if let Some(reading) = &mut self.reading {
            reading.own = reading.own.saturating_sub(1);
        }
    }

    /// Takes in what the headers of a reply said that was no refusal for the rate limit.
    pub(super) fn answered(&mut self, headers: &RateHeaders, now: Instant) {
        if self.stop.is_none_or(|stop| stop.end() <= now) {
            self.stop = None;
            self.trying = self.trying.map(|trying| trying.saturating_mul(2)).filter(|trying| *trying < MOST_TRYING);
        }
        if let Some(limit) = headers.limit.filter(|limit| *limit > 0) {
            self.limit = limit;
        }
        if let Some(remaining) = headers.remaining {
            self.read(remaining, now);
        }
    }

    /// Takes in how many calls are left. What is missing beyond this program's own calls, others have used.
    fn read(&mut self, remaining: u32, now: Instant) {
        if self.reading.is_none_or(|before| now.saturating_duration_since(before.at) >= WINDOW) {
            self.first_reading = Some(now);
        }
        if let Some(before) = self.reading {
            let age = now.saturating_duration_since(before.at);
            let others = before.remaining.saturating_sub(remaining).saturating_sub(before.own);
            if others > 0 && age < WINDOW {
                self.count(0, others, now);
            }
            if remaining > before.remaining && age < OVERTAKING {
                return;
            }
        }
        // The call whose reply this is counts in it; of the others that are under way, nobody knows.
        self.reading = Some(Reading { remaining, at: now, own: self.in_flight.saturating_sub(1) });
    }

    /// Takes in a refusal, and how long DigitalOcean asked to wait; `chance` is between 0 and 1.
    pub(super) fn refused(&mut self, wait: Option<Duration>, chance: f64, now: Instant) {
        let wait = wait.unwrap_or(BLIND_STOP).min(LONGEST_STOP);
        let until = now.checked_add(wait).unwrap_or(now);
        let spread = (wait / 4).max(wait.min(SECOND)).min(LONGEST_SPREAD).mul_f64(chance.clamp(0.0, 1.0));
        self.stop = match self.stop {
            Some(stop) if stop.end() > now => Some(Stop { until: stop.until.max(until), ..stop }),
            Some(_) | None => Some(Stop { until, spread }),
        };
        self.trying = Some(1);
    }

    /// The call of a place has ended, in whatever way.
    pub(super) fn finish(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    fn line(&mut self, class: Class) -> &mut VecDeque<u64> {
        let [look, essential, deferrable] = &mut self.lines;
        match class {
            Class::Look => look,
            Class::Essential => essential,
            Class::Deferrable => deferrable,
        }
    }

    /// How many are to go before the holder of a ticket.
    fn ahead(&mut self, class: Class, ticket: u64) -> u32 {
        let before = self.line(class).iter().take_while(|other| **other != ticket).count();
        let [look, essential, _] = &self.lines;
        let above = match class {
            Class::Look => 0,
            Class::Essential => look.len(),
            Class::Deferrable => look.len() + essential.len(),
        };
        u32::try_from(before + above).unwrap_or(u32::MAX)
    }

    /// What holds back a call of a class that so many go before; nothing: it may go.
    fn held_back(&mut self, class: Class, ahead: u32, now: Instant) -> Option<HeldBack> {
        self.expire(now);
        let stopped = self.stop.map_or(Duration::ZERO, |stop| stop.end().saturating_duration_since(now));
        let is_tried = self.trying.is_some_and(|trying| self.in_flight.saturating_add(ahead) >= trying);
        let probe = if is_tried { PROBE_PAUSE } else { Duration::ZERO };
        let since_last = |gap: Duration| {
            let free = self.last.and_then(|last| last.checked_add(gap));
            free.map_or(Duration::ZERO, |free| free.saturating_duration_since(now))
        };
        let gap = self.operator.unwrap_or_default();
        let operator = since_last(gap).saturating_add(gap.saturating_mul(ahead));
        let (left, brake) = self.brake(class, now);
        let (used, others) = self.used();
        let reasons = [
            (stopped, Restraint::Refused),
            (probe, Restraint::Refused),
            (operator, Restraint::Operator),
            (since_last(brake), Restraint::FewLeft(left)),
            (self.until_free(class, ahead, now), Restraint::Minute(used, self.per_minute(), others)),
        ];
        let (wait, by) = reasons.into_iter().max_by_key(|(wait, _)| *wait)?;
        if !wait.is_zero() {
            return Some(HeldBack { wait, by });
        }
        (ahead > 0).then_some(HeldBack { wait: Duration::ZERO, by })
    }

    /// How long until there is room in the minute, and in the second, for a call that so many go before.
    fn until_free(&self, class: Class, ahead: u32, now: Instant) -> Duration {
        let (minute, second) = self.room(class);
        let before = |most: u32| most.saturating_sub(1).saturating_sub(ahead);
        self.until_at_most(before(minute), WINDOW, now).max(self.until_at_most(before(second), SECOND, now))
    }

    /// How long until at most so many calls are left in a span that ends now and moves on.
    fn until_at_most(&self, most: u32, span: Duration, now: Instant) -> Duration {
        let mut used = 0_u32;
        for entry in self.window.iter().rev() {
            let left = entry.at.checked_add(span).map_or(Duration::ZERO, |end| end.saturating_duration_since(now));
            used = used.saturating_add(entry.own).saturating_add(entry.others);
            if left.is_zero() || used > most {
                return left;
            }
        }
        Duration::ZERO
    }

    /// How many calls of a minute, and of a second, a class may fill. The rest is for those that are more urgent.
    fn room(&self, class: Class) -> (u32, u32) {
        let all = self.per_minute();
        let second = (all * 3 / 20).max(1);
        match class {
            Class::Look => (all, u32::MAX),
            Class::Essential => ((all - all / 25).max(1), second),
            Class::Deferrable => ((all - all / 5).max(1), second),
        }
    }

    fn per_minute(&self) -> u32 {
        (self.limit / 20).max(1)
    }

    /// All calls that count in the minute, and those of others among them.
    fn used(&self) -> (u32, u32) {
        self.window.iter().fold((0, 0), |(all, others), entry| (all + entry.own + entry.others, others + entry.others))
    }

    /// The part of a minute's calls that is used, or will be soon, from 0 to 1; all of it after a refusal. Others are expected
    /// to go on as they do.
    pub(super) fn used_part(&mut self, expected: Expected, now: Instant) -> f64 {
        self.expire(now);
        if self.stop.is_some() || self.trying.is_some() {
            return 1.0;
        }
        let lately = |used: &&Used| now.saturating_duration_since(used.at) < LATELY;
        let others: u32 = self.window.iter().rev().take_while(lately).map(|used| used.others).sum();
        let since_first = |at: Instant| self.first_reading.map_or(Duration::ZERO, |first| at.duration_since(first));
        let rate = f64::from(others) / since_first(now).clamp(SECOND, LATELY).as_secs_f64();
        let is_known = self.reading.is_some_and(|last| since_first(last.at) >= KNOWN);
        let presumed = if is_known { 0 } else { expected.others };
        let used =
            f64::from(self.used().0.saturating_add(expected.own).saturating_add(presumed)) + rate * AHEAD.as_secs_f64();
        (used / f64::from(self.per_minute())).min(1.0)
    }

    /// Slows down as the hour's calls run out: lists below a tenth of them, the rest below a fiftieth. Looks belong to
    /// what has been begun already.
    fn brake(&self, class: Class, now: Instant) -> (u32, Duration) {
        let fresh = |reading: &Reading| now.saturating_duration_since(reading.at) <= FRESH;
        let Some(reading) = self.reading.filter(fresh) else { return (self.limit, Duration::ZERO) };
        let left = reading.remaining.saturating_sub(reading.own);
        let (reserve, most) = match class {
            Class::Look => return (left, Duration::ZERO),
            Class::Essential => (self.limit / 50, BRAKE_ESSENTIAL),
            Class::Deferrable => (self.limit / 10, BRAKE_DEFERRABLE),
        };
        let missing = reserve.saturating_sub(left);
        (left, most.saturating_mul(missing).checked_div(reserve).unwrap_or(Duration::ZERO))
    }

    fn expire(&mut self, now: Instant) {
        let is_over = |used: &Used| now.saturating_duration_since(used.at) >= WINDOW;
        while self.window.front().is_some_and(is_over) {
            self.window.pop_front();
        }
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lines.iter().map(VecDeque::len).sum()
    }
}

#[cfg(test)]
mod tests;
