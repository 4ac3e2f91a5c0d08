//! Whether DigitalOcean's API can be used with this token, as `GET /health` asks.
//!
//! Owns when the API is asked. Answers are kept for a while, and what other calls have learned meanwhile is
//! used, so that frequent checks cost next to nothing of the account's quota: at most 12 requests an hour.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cloud::Cloud;
use crate::error::Chain;
use crate::error::api::{ApiError, ApiErrorKind, Delivery};

/// How long a good answer is kept.
const GOOD_KEPT: Duration = Duration::from_secs(300);
/// How long the first and any bad answer after others are kept, twice as long each time. Orchestrators restart a task after
/// some in a row, so the first one is looked at again soon; a good reply to any other call ends it at once.
const BAD_KEPT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// Most requests in any hour.
const MOST_IN_AN_HOUR: usize = 12;
const HOUR: Duration = Duration::from_secs(3600);
/// How long the API may take to answer a check.
const BUDGET: Duration = Duration::from_secs(10);
/// How many checks may wait for the API's answer.
const MAX_WAITING: usize = 8;

/// Asks whether the API takes the token.
#[derive(Debug)]
pub(super) struct ApiCheck {
    cloud: Cloud,
    known: Mutex<Known>,
    waiting: AtomicUsize,
}

/// What earlier checks have brought.
#[derive(Debug, Default)]
struct Known {
    answer: Option<Answer>,
    /// When DigitalOcean was asked, in the last hour.
    asked: VecDeque<Instant>,
}

/// The last answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    at: Instant,
    /// What to say when it is well, or why it is not.
    outcome: Result<String, String>,
    /// How long it is kept.
    kept: Duration,
}

/// What a check does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CheckPlan {
    /// Another call has got a good reply since.
    SayWell,
    /// The last answer still holds.
    Repeat,
    /// DigitalOcean is asked.
    Ask,
}

impl Known {
    /// Decides what a check does. `replied` is when any call got a good reply last.
    fn plan_check(&self, replied: Option<Instant>, now: Instant) -> CheckPlan {
        let is_within = |at: &Instant, span| now.saturating_duration_since(*at) < span;
        if replied.is_some_and(|at| is_within(&at, GOOD_KEPT) && self.answer.as_ref().is_none_or(|last| at > last.at)) {
            return CheckPlan::SayWell;
        }
        let Some(last) = &self.answer else { return CheckPlan::Ask };
        let is_used_up = self.asked.iter().filter(|at| is_within(at, HOUR)).count() >= MOST_IN_AN_HOUR;
        if is_used_up || is_within(&last.at, last.kept) { CheckPlan::Repeat } else { CheckPlan::Ask }
    }

    /// Takes in an answer that came at that time.
    fn learn(&mut self, outcome: Result<(), ApiError>, now: Instant) {
        self.asked.retain(|at| now.saturating_duration_since(*at) < HOUR);
        if outcome.as_ref().map_or_else(was_sent, |()| true) {
            self.asked.push_back(now);
        }
        let (first, longest) = BAD_KEPT;
        let before = self.answer.as_ref().filter(|last| last.outcome.is_err()).map(|last| last.kept);
        let bad = before.map_or(first, |kept| kept.saturating_mul(2).min(longest));
        let (outcome, kept) = match outcome {
            Ok(()) => (Ok("ok".to_owned()), GOOD_KEPT),
            // A restart would not give the token more calls.
            Err(err) if matches!(err.kind(), ApiErrorKind::RateLimit { .. }) => (Ok(format!("ok, but {err}")), first),
            Err(err) => (Err(Chain(&err).to_string()), bad),
        };
        self.answer = Some(Answer { at: now, outcome, kept });
    }
}

/// Whether a failed request may count in the quota.
fn was_sent(err: &ApiError) -> bool {
    err.status().is_some() || err.kind() == ApiErrorKind::Transport { sent: Delivery::MaybeSent }
}

impl ApiCheck {
    /// Nothing is known yet, and nobody is asked.
    pub(super) fn new(cloud: Cloud) -> ApiCheck {
        ApiCheck { cloud, known: Mutex::default(), waiting: AtomicUsize::new(0) }
    }

    /// What to say of the API when it is well.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn ask(&self) -> Result<String, String> {
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let outcome = if ahead < MAX_WAITING {
            self.ask_in_turn()
        } else {
            Err(format!("{ahead} other checks wait for DigitalOcean's answer"))
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    fn ask_in_turn(&self) -> Result<String, String> {
        // Held while the API is asked, so that checks at the same time are one request.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.plan_check(self.cloud.last_good_reply(), Instant::now()) {
            CheckPlan::SayWell => return Ok("ok".to_owned()),
            CheckPlan::Repeat => {}
            CheckPlan::Ask => {
                let outcome = self.cloud.until(Instant::now() + BUDGET).get_account().map(drop);
                known.learn(outcome, Instant::now());
            }
        }
        known.answer.as_ref().map_or_else(|| Err("not known yet".to_owned()), |last| last.outcome.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn refused() -> ApiError {
        ApiError::from_reply(503, b"{}", Default::default())
    }

    /// Checks each second for so long, with what DigitalOcean would answer; gives the seconds in which it was asked.
    fn asked_in(span: u64, outcome: impl Fn(u64) -> Result<(), ApiError>) -> Vec<u64> {
        let (mut known, start) = (Known::default(), Instant::now());
        let mut asked = Vec::new();
        for second in 0..span {
            if known.plan_check(None, start + secs(second)) == CheckPlan::Ask {
                known.learn(outcome(second), start + secs(second));
                asked.push(second);
            }
        }
        asked
    }

    #[test]
    fn an_hour_of_checks_costs_at_most_twelve_requests_whatever_the_answers() {
        assert_eq!(asked_in(3600, |_| Ok(())).len(), 12);
        let bad = asked_in(3600, |_| Err(refused()));
        assert_eq!(bad[..5], [0, 5, 15, 35, 75]);
        assert!(bad.len() <= 12, "{bad:?}");
        for period in [10, 100, 301] {
            let turns = asked_in(7200, |second| if second / period % 2 == 0 { Ok(()) } else { Err(refused()) });
            for from in &turns {
                let hour = turns.iter().filter(|at| (*from..from + 3600).contains(at)).count();
                assert!(hour <= 12, "{period}: {turns:?}");
            }
        }
    }

    #[test]
    fn what_was_not_sent_costs_nothing_and_is_tried_again() {
        let lost = || ApiError::without_reply(ApiErrorKind::Transport { sent: Delivery::NotSent }, "no route");
        let mut known = Known::default();
        known.learn(Err(lost()), Instant::now());
        assert!(known.asked.is_empty() && known.answer.unwrap().outcome.is_err());
    }

    #[test]
    fn restraint_is_no_illness_and_a_good_reply_to_any_call_ends_one() {
        let now = Instant::now();
        let mut known = Known::default();
        let held = ApiErrorKind::RateLimit { wait: None };
        known.learn(Err(ApiError::without_reply(held, "held back by this program's own restraint")), now);
        let text = known.answer.clone().unwrap().outcome.unwrap();
        assert!(text.contains("own restraint"), "{text}");
        known.learn(Err(refused()), now);
        assert_eq!(known.plan_check(Some(now), now + secs(1)), CheckPlan::Repeat, "that was before");
        assert_eq!(known.plan_check(Some(now + secs(1)), now + secs(2)), CheckPlan::SayWell);
        assert_eq!(known.plan_check(Some(now + secs(1)), now + secs(302)), CheckPlan::Ask);
    }
}
