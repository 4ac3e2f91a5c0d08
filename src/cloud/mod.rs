//! The typed calls that this program makes to DigitalOcean.
//!
//! Owns talking to the API: requests and replies, their types, their errors, and how fast to ask. It does not own a
//! decision: nothing is sent twice, no state is compared with a wish, and waiting for an action is the caller's loop,
//! for which `controller/poll.rs` says when to look.
//!
//! | module | holds |
//! |---|---|
//! | [`request`], [`http`] | one request, sent once, bounded in time and size |
//! | `connector`, `resolver`, `happy_eyeballs`, [`proxy`], [`authorities`] | the connection that it is sent on |
//! | [`token`], `scope` | the access token, and what it must be allowed to do |
//! | [`rate_limit`] | the token's rate limit |
//! | [`volume`], [`action`], [`snapshot`], [`droplet`], [`tag`] | the calls, by what they are about |
//! | [`metadata`] | the droplet that this program runs on |
//! | `json` | the replies' objects, as DigitalOcean documents them |

pub mod action;
pub mod authorities;
pub mod connector;
pub mod droplet;
mod happy_eyeballs;
pub mod http;
pub mod json;
pub mod metadata;
pub mod page;
pub mod proxy;
pub mod rate_limit;
pub mod request;
mod resolver;
mod scope;
pub mod snapshot;
pub mod tag;
pub mod token;
pub mod volume;

#[cfg(test)]
mod canned;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::cloud::http::{ClockReading, Http, HttpBudgets, Reply, Route};
use crate::cloud::rate_limit::{Expected, RateLimit};
use crate::cloud::request::{ApiRequest, BaseUrl};
use crate::cloud::token::Token;
use crate::error::api::ApiError;

/// How far this machine's clock and DigitalOcean's may be apart and count as one.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);

/// The result of a call to DigitalOcean.
pub type ApiResult<T> = Result<T, ApiError>;

/// DigitalOcean's API, as one account's token sees it.
///
/// A clone is cheap and shares connections, token and quota; threads use it side by side. Every method is one request,
/// sent once (where it is more, its documentation says so), and blocks until the reply is read, the request's time-out
/// passed, or the deadline of [`Cloud::until`] came.
#[derive(Debug, Clone)]
pub struct Cloud {
    http: Arc<Http>,
    deadline: Option<Instant>,
}

impl Cloud {
    /// Prepares the way to the API; sends nothing, so it also works while the API does not.
    #[must_use]
    pub fn new(base: BaseUrl, route: Route, token: Token, rate_limit: Arc<RateLimit>, budgets: HttpBudgets) -> Cloud {
        Cloud { http: Arc::new(Http::new(base, route, token, rate_limit, budgets)), deadline: None }
    }

    /// The same API for one piece of work that has to end at a given time: no call of the result waits or runs longer.
    /// Calls begun after it fail with [`crate::error::api::ApiErrorKind::NoTimeLeft`].
    #[must_use]
    pub fn until(&self, deadline: Instant) -> Cloud {
        Cloud { http: Arc::clone(&self.http), deadline: Some(deadline) }
    }

    /// When any call got a good reply last, which proves that API and token work; none: none has yet.
    #[must_use]
    pub fn last_good_reply(&self) -> Option<Instant> {
        self.http.last_good_reply()
    }

    /// What time it was in the last reply; none: no reply has said so.
    #[must_use]
    pub fn last_clock(&self) -> Option<ClockReading> {
        self.http.last_clock()
    }

    /// The part of a minute's calls that is used, by others with the same token, too, and by those that are to come: from
    /// 0 to 1.
    #[must_use]
    pub fn used_quota(&self, expected: Expected) -> f64 {
        self.http.used_quota(expected)
    }

    /// What time it was for DigitalOcean at that moment, as far as the last reply tells: all that it says when it did something is by
    /// its clock. Source of the tolerance: a reply has whole seconds and has been on its way, so less proves nothing.
    #[must_use]
    pub fn time_of(&self, moment: Instant) -> SystemTime {
        let ours = SystemTime::now() - moment.elapsed();
        let Some(reading) = self.last_clock() else { return ours };
        match reading.theirs.duration_since(reading.ours) {
            Ok(behind) if behind > CLOCK_TOLERANCE => ours + behind,
            Err(ahead) if ahead.duration() > CLOCK_TOLERANCE => ours - ahead.duration(),
            Ok(_) | Err(_) => ours,
        }
    }

    /// What time it is for DigitalOcean, likewise.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.time_of(Instant::now())
    }

    /// Reads the token again where it comes from a file, also when the file looks unchanged; running calls keep theirs.
    ///
    /// # Errors
    /// The file holds no token that can be read; the last one stays in use.
    pub fn reload_token(&self) -> std::io::Result<()> {
        self.http.reload_token()
    }

    /// Where the token is from.
    #[must_use]
    pub fn token_origin(&self) -> String {
        self.http.token_origin()
    }

    fn send(&self, call: &ApiRequest) -> ApiResult<Reply> {
        self.http.send(call, self.deadline)
    }
}
