//! One HTTP request to DigitalOcean, and what came back.
//!
//! Owns the connection, its time-outs and its bounds, the token, the rate limit's waits, and the log line of every call.
//! Sends each request exactly once: whether to send it again depends on what it may have done, which callers decide.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::de::DeserializeOwned;
use ureq::config::ConfigBuilder;
use ureq::http::{HeaderMap, Request, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body};

use crate::activity::wait_for;
use crate::cloud::ApiResult;
use crate::cloud::authorities::Authorities;
use crate::cloud::connector;
use crate::cloud::proxy::{Proxy, ProxyVariables, plan_proxy};
use crate::cloud::rate_limit::quota::HeldBack;
use crate::cloud::rate_limit::{Expected, Place, RateHeaders, RateLimit};
use crate::cloud::request::{ApiRequest, BaseUrl};
use crate::cloud::scope;
use crate::cloud::token::{Secret, Token};
use crate::error::api::{ApiError, ApiErrorKind, Delivery, ReplyFacts};
use crate::metrics;

/// The largest reply that is read: 200 volumes with all they may carry stay far below it.
const MAX_REPLY: u64 = 8 << 20;

/// How many further tokens a call tries that was refused for the first: one may have been read while it was written.
const MOST_TOKENS: usize = 3;

/// How much of an error's body is read.
const MAX_ERROR_REPLY: u64 = 64 << 10;

/// Per connection and direction. The library's own default of 128 KiB costs more memory than it saves time.
const BUFFER: usize = 16 << 10;

/// Kept open for the next calls: as many as there are threads that make calls, each of which uses one at a time. Those that
/// nobody uses are closed after a while.
const IDLE_CONNECTIONS: usize = 3 * crate::config::CONTROLLER_WORKERS;

/// How long a failure of the network is a reason to be named when a call is held back.
const RECENT: Duration = Duration::from_secs(120);

const USER_AGENT: &str = concat!("do-csi-plugin/", env!("CARGO_PKG_VERSION"));

/// How long one request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpBudgets {
    /// Name look-up and, separately, connection with its TLS handshake. Default 5 s: longer means that the network is
    /// broken, and a new attempt is more likely to work than this one.
    pub connect: Duration,
    /// The whole request until the last byte of the reply. Default 20 s: DigitalOcean answers in well under one, and a
    /// call of Nomad, which lasts up to 110 s, has to survive a request that hangs.
    pub total: Duration,
    /// The longest wait for the rate limit before a request, when the caller has no deadline of its own. Default 30 s.
    pub rate_limit: Duration,
}

impl Default for HttpBudgets {
    fn default() -> HttpBudgets {
        HttpBudgets {
            connect: Duration::from_secs(5),
            total: Duration::from_secs(20),
            rate_limit: Duration::from_secs(30),
        }
    }
}

/// How the API is reached, and who is believed to be it.
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// The proxy that every request goes through.
    pub proxy: Option<Proxy>,
    /// The authorities that are trusted instead of those that are compiled in.
    pub authorities: Option<Authorities>,
}

impl Route {
    /// The way to this API, as the environment and the file of authorities say. An empty path counts as none.
    ///
    /// # Errors
    /// One line that names the variable or the flag that cannot be.
    pub fn read(proxies: &ProxyVariables, ca_file: Option<&Path>, api: &BaseUrl) -> Result<Route, String> {
        let proxy = plan_proxy(proxies, api).map_err(|bad| bad.to_string())?;
        let file = ca_file.filter(|path| !path.as_os_str().is_empty());
        let authorities = file.map(Authorities::read).transpose().map_err(|bad| format!("--ca-file: {bad}"))?;
        Ok(Route { proxy, authorities })
    }
}

/// A reply with a status below 300.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    body: Vec<u8>,
    request_id: Option<String>,
}

impl Reply {
    /// The body as the object that this call returns.
    pub(super) fn json<T: DeserializeOwned>(&self) -> ApiResult<T> {
        serde_json::from_slice(&self.body).map_err(|error| self.unusable(&error.to_string()))
    }

    /// Makes sure that this is what a call without a result returns: a web page with a good status is no success.
    pub(super) fn nothing(&self) -> ApiResult<()> {
        if self.body.is_empty() { Ok(()) } else { Err(self.unusable("a reply without content was expected")) }
    }

    /// The error for a body that is JSON, but breaks a rule of the API.
    pub(super) fn unusable(&self, why: &str) -> ApiError {
        ApiError::bad_reply(self.status, why, &self.body, self.request_id.clone())
    }
}

/// The way to one API with one token; shared by all threads.
#[derive(Debug)]
pub(super) struct Http {
    agent: Agent,
    base: BaseUrl,
    token: Token,
    rate_limit: Arc<RateLimit>,
    budgets: HttpBudgets,
    seen: Mutex<Seen>,
}

/// What the last requests have told of the API.
#[derive(Debug, Default)]
struct Seen {
    /// When the last good reply came.
    good: Option<Instant>,
    /// Why the last request got no reply, and when; none: it got one.
    unanswered: Option<(Instant, ApiError)>,
    /// What time it was in the last good reply that said so.
    clock: Option<ClockReading>,
}

/// What time it was for DigitalOcean and for this machine when a reply came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// By the reply, in whole seconds.
    pub theirs: SystemTime,
    /// By this machine's clock.
    pub ours: SystemTime,
}

impl Http {
    pub(super) fn new(
        base: BaseUrl,
        route: Route,
        token: Token,
        rate_limit: Arc<RateLimit>,
        budgets: HttpBudgets,
    ) -> Http {
        if base.as_str().starts_with("http://") && !base.is_loopback() {
            log::warn!("the access token goes to {base} without encryption");
        }
        if let Some(proxy) = &route.proxy {
            log::info!("{base} is reached through {proxy}");
            for entry in proxy.unreadable_exceptions() {
                log::warn!("NO_PROXY: {entry:?} is not a host, address or network, and excepts nothing");
            }
        }
        let roots = route.authorities.as_ref().map_or(RootCerts::WebPki, Authorities::roots);
        let config = config(budgets.connect, budgets.total)
            // What the library would read in the environment itself has been read already.
            .proxy(route.proxy.as_ref().map(Proxy::inner))
            .tls_config(TlsConfig::builder().root_certs(roots).build());
        let agent = connector::agent(config.build(), route.proxy.as_ref());
        Http { agent, base, token, rate_limit, budgets, seen: Mutex::default() }
    }

    pub(super) fn used_quota(&self, expected: Expected) -> f64 {
        self.rate_limit.used(expected)
    }

    /// Sends one request, waiting for the rate limit first, and reads the whole reply.
    ///
    /// With a deadline, neither the wait nor the request go on after it. A request that was refused for its token has had no
    /// effect, and is sent again when there is another one.
    pub(super) fn send(&self, call: &ApiRequest, deadline: Option<Instant>) -> ApiResult<Reply> {
        let mut token = self.token()?;
        let mut outcome = self.send_once(call, &token, deadline);
        for _ in 0..MOST_TOKENS {
            if !outcome.as_ref().is_err_and(|error| error.kind() == ApiErrorKind::Unauthorized) {
                break;
            }
            let Some(another) = self.token.wait_for_another(&token, deadline) else { break };
            token = another;
            outcome = self.send_once(call, &token, deadline);
        }
        outcome.map_err(|error| self.with_cause(call, error))
    }

    fn token(&self) -> ApiResult<Secret> {
        self.token.current().map_err(|error| {
            let why = format!("there is no access token to send: {}: {error}", self.token.origin());
            ApiError::without_reply(ApiErrorKind::NoToken, &why)
        })
    }

    /// Says of a refusal for the token which token it was, and what it may not do.
    fn with_cause(&self, call: &ApiRequest, error: ApiError) -> ApiError {
        let origin = self.token.origin();
        if error.kind() == ApiErrorKind::Unauthorized {
            error.caused_by(&format!("the access token is from {origin}: it is wrong, expired or revoked"))
        } else if error.kind() == ApiErrorKind::Forbidden {
            let scope = scope::needed_for(call);
            error.caused_by(&format!("the access token from {origin} most likely lacks the scope {scope}"))
        } else {
            error
        }
    }

    fn send_once(&self, call: &ApiRequest, token: &Secret, deadline: Option<Instant>) -> ApiResult<Reply> {
        let place = self.wait_for_quota(call, deadline)?;
        let started = Instant::now();
        let time = match deadline {
            Some(deadline) => self.budgets.total.min(deadline.saturating_duration_since(started)),
            None => self.budgets.total,
        };
        if time.is_zero() {
            place.give_back();
            return Err(no_time_left());
        }
        let waiting = wait_for("asking DigitalOcean", format_args!("{} {}", call.method().as_str(), call.target()));
        let outcome = self.exchange(call, token, time);
        drop(waiting);
        log_call(call, started, &outcome);
        count_call(call, started, &outcome);
        match outcome {
            Ok(answer) => {
                let clock = answer.clock;
                let reply = account(&place, answer);
                let mut seen = self.seen();
                seen.unanswered = None;
                // What answers in DigitalOcean's place has a clock of its own.
                if reply.is_ok() {
                    seen.clock = clock.or(seen.clock);
                    seen.good = Some(Instant::now());
                }
                reply
            }
            Err(error) => {
                let is_unsent = matches!(
                    error.kind(),
                    ApiErrorKind::Transport { sent: Delivery::NotSent }
                        | ApiErrorKind::NoTimeLeft
                        | ApiErrorKind::NoToken
                );
                if is_unsent {
                    place.give_back();
                } else {
                    drop(place);
                }
                if matches!(error.kind(), ApiErrorKind::Transport { .. } | ApiErrorKind::Untrusted) {
                    self.seen().unanswered = Some((Instant::now(), error.clone()));
                }
                Err(error)
            }
        }
    }

    pub(super) fn token_origin(&self) -> String {
        self.token.origin()
    }

    pub(super) fn reload_token(&self) -> std::io::Result<()> {
        self.token.reload()
    }

    fn wait_for_quota(&self, call: &ApiRequest, deadline: Option<Instant>) -> ApiResult<Place<'_>> {
        let asked = Instant::now();
        let patience = deadline.map_or(self.budgets.rate_limit, |at| at.saturating_duration_since(asked));
        let waiting = wait_for(
            "waiting for the rate limit of DigitalOcean's API",
            format_args!("{} {}", call.method().as_str(), call.target()),
        );
        let place = self.rate_limit.wait(call.class(), patience).map_err(|held| self.held_back(&held));
        drop(waiting);
        let waited = asked.elapsed();
        metrics::count_held_back(waited);
        let place = place?;
        if waited > Duration::from_millis(10) {
            log::debug!(ms = millis(waited); "{} {} waited for the rate limit", call.method().as_str(), call.target());
        }
        Ok(place)
    }

    /// The error of a call that is not sent, with all that keeps it from DigitalOcean: while the network is down, that is the
    /// first thing to know.
    fn held_back(&self, held: &HeldBack) -> ApiError {
        let unanswered = self.seen().unanswered.as_ref().filter(|(at, _)| at.elapsed() < RECENT).cloned();
        match unanswered {
            Some((at, error)) => {
                let why = format!("{error} ({} s ago); and the call was {held}", at.elapsed().as_secs());
                ApiError::without_reply(ApiErrorKind::Transport { sent: Delivery::NotSent }, &why)
            }
            None => {
                let why = format!("the call was {held}");
                ApiError::without_reply(ApiErrorKind::RateLimit { wait: Some(held.wait) }, &why)
            }
        }
    }

    /// When the last good reply came.
    pub(super) fn last_good_reply(&self) -> Option<Instant> {
        self.seen().good
    }

    pub(super) fn last_clock(&self) -> Option<ClockReading> {
        self.seen().clock
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, call: &ApiRequest, token: &Secret, time: Duration) -> ApiResult<Answer> {
        let request = Request::builder()
            .method(call.method().as_str())
            .uri(format!("{}{}", self.base, call.target()))
            .header("authorization", token.bearer())
            .header("content-type", "application/json")
            .header("accept", "application/json");
        log::trace!("request body: {}", call.body().unwrap_or_default());
        let sent = match call.body() {
            Some(body) => request.body(body).map_err(ureq::Error::from).and_then(|r| self.run(r, time)),
            None => request.body(()).map_err(ureq::Error::from).and_then(|r| self.run(r, time)),
        };
        sent.map_err(|error| no_reply("DigitalOcean", &error)).and_then(Answer::read)
    }

    fn run(&self, request: Request<impl ureq::AsSendBody>, time: Duration) -> Result<Response<Body>, ureq::Error> {
        let request = self.agent.configure_request(request).timeout_global(Some(time)).build();
        self.agent.run(request)
    }
}

/// Sends a request once and gives back whatever status the reply has.
pub(super) fn config(connect: Duration, total: Duration) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .http_status_as_error(false)
        // A redirect is a reply that the API does not give; following it would send the token elsewhere.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(USER_AGENT)
        .timeout_resolve(Some(connect))
        .timeout_connect(Some(connect))
        .timeout_global(Some(total))
        .input_buffer_size(BUFFER)
        .output_buffer_size(BUFFER)
        .max_idle_connections_per_host(IDLE_CONNECTIONS)
        .max_idle_connections(IDLE_CONNECTIONS)
}

/// A reply with any status, read to its end.
#[derive(Debug)]
struct Answer {
    status: u16,
    body: Vec<u8>,
    is_cut: bool,
    rate: RateHeaders,
    request_id: Option<String>,
    clock: Option<ClockReading>,
}

impl Answer {
    fn read(response: Response<Body>) -> ApiResult<Answer> {
        let (parts, body) = response.into_parts();
        let ours = SystemTime::now();
        let status = parts.status.as_u16();
        let most = if parts.status.is_success() { MAX_REPLY } else { MAX_ERROR_REPLY };
        let mut bytes = Vec::new();
        let reader = body.into_with_config().limit(u64::MAX).reader();
        let is_read = reader.take(most.saturating_add(1)).read_to_end(&mut bytes);
        match is_read {
            Ok(_) => {}
            // The status of a refusal says enough, even when its text breaks off.
            Err(error) if !parts.status.is_success() => log::debug!("the body of a {status} broke off: {error}"),
            Err(error) => {
                let why = connector::in_words(&ureq::Error::from(error));
                let why = format!("DigitalOcean answered {status}, then the reply broke off: {why}");
                return Err(ApiError::without_reply(ApiErrorKind::Transport { sent: Delivery::MaybeSent }, &why));
            }
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let is_cut = bytes.len() > most;
        bytes.truncate(most);
        log::trace!("reply body: {}", String::from_utf8_lossy(&bytes));
        let rate = rate_headers(&parts.headers, SystemTime::now());
        let request_id = header(&parts.headers, "x-request-id").map(str::to_owned);
        let clock = header(&parts.headers, "date").and_then(http_date).map(|theirs| ClockReading { theirs, ours });
        Ok(Answer { status, body: bytes, is_cut, rate, request_id, clock })
    }

    fn into_reply(self) -> ApiResult<Reply> {
        let reply = Reply { status: self.status, body: self.body, request_id: self.request_id };
        if self.is_cut { Err(reply.unusable("it is larger than 8 MiB")) } else { Ok(reply) }
    }

    fn into_error(self) -> ApiError {
        let facts = ReplyFacts { request_id: self.request_id, wait: self.rate.wait() };
        ApiError::from_reply(self.status, &self.body, facts)
    }
}

/// Reads a time such as `Sun, 06 Nov 1994 08:49:37 GMT`. Source: RFC 9110, 5.6.7.
fn http_date(text: &str) -> Option<SystemTime> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok().map(SystemTime::from)
}

fn rate_headers(headers: &HeaderMap, now: SystemTime) -> RateHeaders {
    let number = |name| header(headers, name).and_then(|value| value.trim().parse::<u64>().ok());
    let small = |name| number(name).and_then(|value| u32::try_from(value).ok());
    let reset_in = number("ratelimit-reset").and_then(|epoch| {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(epoch))?;
        // A reset in the past (our clock may be ahead) asks for no wait.
        Some(at.duration_since(now).unwrap_or(Duration::ZERO))
    });
    RateHeaders {
        limit: small("ratelimit-limit"),
        remaining: small("ratelimit-remaining"),
        reset_in,
        retry_after: number("retry-after").map(Duration::from_secs),
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Turns the HTTP library's error into ours; what matters is whether the request may have left this machine.
pub(super) fn no_reply(from: &str, error: &ureq::Error) -> ApiError {
    let sent = if connector::is_before_sending(error) { Delivery::NotSent } else { Delivery::MaybeSent };
    let why = connector::in_words(error);
    match connector::distrust(error) {
        Some(cure) => ApiError::without_reply(ApiErrorKind::Untrusted, &format!("no reply from {from}: {why}; {cure}")),
        None => ApiError::without_reply(ApiErrorKind::Transport { sent }, &format!("no reply from {from}: {why}")),
    }
}

/// Tells the quota what a reply said; a refusal for the rate limit also stops the calls of the other threads.
fn account(place: &Place<'_>, answer: Answer) -> ApiResult<Reply> {
    if (200..300).contains(&answer.status) {
        place.answered(&answer.rate);
        return answer.into_reply();
    }
    let rate = answer.rate;
    let error = answer.into_error();
    if let ApiErrorKind::RateLimit { wait } = error.kind() {
        log::warn!(request = error.request_id(); "DigitalOcean's rate limit is reached: {error}");
        place.refused(wait);
    } else {
        place.answered(&rate);
    }
    Err(error)
}

fn no_time_left() -> ApiError {
    ApiError::without_reply(ApiErrorKind::NoTimeLeft, "no time was left to ask DigitalOcean")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn log_call(call: &ApiRequest, started: Instant, outcome: &ApiResult<Answer>) {
    if !log::log_enabled!(log::Level::Debug) {
        return;
    }
    let (method, target, ms) = (call.method().as_str(), call.target(), millis(started.elapsed()));
    match outcome {
        Ok(answer) => {
            log::debug!(status = answer.status, ms, remaining = answer.rate.remaining, request = answer.request_id.as_deref(); "{method} {target}");
        }
        Err(error) => log::debug!(ms; "{method} {target} failed: {error}"),
    }
}

fn count_call(call: &ApiRequest, started: Instant, outcome: &ApiResult<Answer>) {
    let answer = outcome.as_ref().ok();
    let status = answer.map(|answer| answer.status);
    metrics::count_request(call.method().as_str(), call.target(), status, started.elapsed());
    if let Some(Answer { rate, .. }) = answer {
        metrics::set_quota(rate.limit, rate.remaining);
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls;
