//! The simulator at work: one lock around the cloud, the order in which a request is judged, and the thread of time.
//!
//! Owns what is shared between connections. It has no rules of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::clock::{Clock, Moment, http_date};
use super::config::SimConfig;
use super::device::{Devices, Ticket};
use super::endpoint;
use super::endpoint::{Endpoint, Matched};
use super::fault;
use super::fault::Faults;
use super::http::{Delivery, Handler, Reply, Request};
use super::limit::{Allowance, RateLimit, Verdict};
use super::refusal::Refusal;
use super::route::{Answer, Call};
use super::scope::{self, Scopes};
use super::state::Cloud;
use super::{Result, SimError, json, lock, metadata};

/// How often each route was called, in whatever way it was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls(BTreeMap<(String, String), u64>);

impl Calls {
    /// Calls of one route, such as `"GET"`, `"/v2/volumes/{id}"`.
    ///
    /// # Panics
    /// There is no such route.
    pub fn of(&self, method: &str, pattern: &str) -> u64 {
        assert!(endpoint::exists(method, pattern), "no route {method} {pattern}");
        self.0.get(&(method.to_owned(), pattern.to_owned())).copied().unwrap_or(0)
    }

    /// Calls of all routes. Metadata and paths that are no route are not among them.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Method, pattern and count of every route that was called.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.0.iter().map(|((method, pattern), count)| (method.as_str(), pattern.as_str(), *count))
    }
}

/// One line per route, for the message of a failed assertion.
impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(method, pattern, count)| writeln!(f, "{count:5} {method} {pattern}"))
    }
}

/// Everything that connections share.
#[derive(Debug)]
pub struct Service {
    authorization: String,
    other_authorization: Option<String>,
    /// Another account, which has nothing.
    other: Mutex<Cloud>,
    clock: Clock,
    faults: Faults,
    devices: Option<Devices>,
    cloud: Mutex<Cloud>,
    /// Told whenever the timeline may have changed.
    changed: Condvar,
    rate: Mutex<RateLimit>,
    calls: Mutex<Calls>,
    lacked: Mutex<Scopes>,
    requests: AtomicU64,
}

impl Service {
    /// A fresh cloud.
    pub fn new(config: &SimConfig, devices: Option<Devices>) -> Service {
        Service {
            authorization: format!("Bearer {}", config.token),
            other_authorization: config.other_token.as_ref().map(|token| format!("Bearer {token}")),
            other: Mutex::new(Cloud::new(&SimConfig { droplets: Vec::new(), ..config.clone() })),
            clock: Clock::new(),
            faults: Faults::default(),
            devices,
            cloud: Mutex::new(Cloud::new(config)),
            changed: Condvar::new(),
            rate: Mutex::new(RateLimit::default()),
            calls: Mutex::new(Calls::default()),
            lacked: Mutex::default(),
            requests: AtomicU64::new(0),
        }
    }

    /// The script of faults.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.with_cloud(|_, _| ());
    }

    /// A copy of the counters.
    pub fn calls(&self) -> Calls {
        lock(&self.calls).clone()
    }

    /// Forgets the counters.
    pub fn reset_calls(&self) {
        *lock(&self.calls) = Calls::default();
    }

    /// Looks at the cloud, or changes it, as it is now.
    pub fn with_cloud<T>(&self, work: impl FnOnce(&mut Cloud, Moment) -> T) -> T {
        self.work_on_cloud(work).0
    }

    /// The same, and waits for the files that the change needs.
    pub fn with_cloud_and_devices<T>(&self, work: impl FnOnce(&mut Cloud, Moment) -> T) -> T {
        let (outcome, ticket) = self.work_on_cloud(work);
        if let (Some(devices), Some(ticket)) = (&self.devices, ticket) {
            devices.wait(ticket);
        }
        outcome
    }

    /// Waits until the work on devices that is due has been done.
    ///
    /// # Errors
    /// The first of it that failed.
    pub fn settle(&self) -> Result<()> {
        self.with_cloud_and_devices(|_, _| ());
        let failures = self.devices.as_ref().map(Devices::failures).unwrap_or_default();
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// Lets go of every device.
    ///
    /// # Errors
    /// Work on a device failed, or somebody still uses one.
    pub fn close_devices(&self) -> Result<()> {
        self.devices.as_ref().map_or(Ok(()), Devices::close)
    }

    fn work_on_cloud<T>(&self, work: impl FnOnce(&mut Cloud, Moment) -> T) -> (T, Option<Ticket>) {
        let mut cloud = lock(&self.cloud);
        let now = self.clock.now();
        cloud.tick(now);
        let outcome = work(&mut cloud, now);
        // Something may take no time at all.
        cloud.tick(now);
        let effects = cloud.take_effects();
        // Queued under the lock, so that the order of work is the order of events.
        let ticket = self.devices.as_ref().map(|devices| devices.submit(effects));
        self.changed.notify_all();
        (outcome, ticket)
    }

    /// Authentication, rate limit and route, in this order; then the endpoint's own rules.
    fn judge(
        &self,
        request: &Request,
        matched: Option<&Matched>,
        allowance: &mut Allowance,
    ) -> std::result::Result<Answer, Refusal> {
        let is_others = request.authorization.is_some() && request.authorization == self.other_authorization;
        if request.authorization.as_ref() != Some(&self.authorization) && !is_others {
            return Err(Refusal::UNAUTHORIZED);
        }
        *allowance = self.allowance(RateLimit::admit);
        if allowance.verdict != Verdict::Allowed {
            return Err(Refusal::RATE_LIMIT);
        }
        let matched = matched.ok_or(Refusal::NO_ROUTE)?;
        self.check_scopes(matched.endpoint, request)?;
        let answer = |cloud: &mut Cloud, now| Call { cloud, now, faults: &self.faults, request, matched }.answer();
        if is_others {
            return answer(&mut lock(&self.other), self.clock.now());
        }
        // The bytes of a new volume or snapshot are there when the reply is.
        if matches!(matched.endpoint, Endpoint::CreateVolume | Endpoint::CreateSnapshot) {
            self.with_cloud_and_devices(answer)
        } else {
            self.with_cloud(answer)
        }
    }

    /// Refuses what the token has not every scope for, and remembers what it lacked.
    fn check_scopes(&self, endpoint: Endpoint, request: &Request) -> std::result::Result<(), Refusal> {
        let Some(scopes) = lock(&self.cloud).rules_mut().switches.scopes.clone() else { return Ok(()) };
        let is_create = matches!(endpoint, Endpoint::CreateVolume | Endpoint::CreateSnapshot);
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let has_tags = is_create && body["tags"].as_array().is_some_and(|tags| !tags.is_empty());
        let lacked: Vec<_> =
            scope::needed(endpoint, has_tags).into_iter().filter(|one| !scopes.contains(one)).collect();
        let is_refused = !lacked.is_empty();
        lock(&self.lacked).extend(lacked);
        if is_refused { Err(Refusal::FORBIDDEN) } else { Ok(()) }
    }

    /// The scopes for want of which requests were refused.
    pub fn lacked_scopes(&self) -> Scopes {
        lock(&self.lacked).clone()
    }

    fn answer(&self, request: &Request, matched: Option<&Matched>, request_id: &str) -> Reply {
        let mut allowance = self.allowance(RateLimit::look);
        match self.judge(request, matched, &mut allowance) {
            Ok(Answer { status, body: Some(body) }) => dress(json_reply(status, &body), &allowance, request_id),
            Ok(Answer { status, body: None }) => {
                let bare = Reply { status, headers: Vec::new(), body: Vec::new() };
                dress(bare, &allowance, request_id)
            }
            Err(refusal) => refuse(&refusal, &allowance, request_id),
        }
    }

    fn allowance<T>(&self, ask: impl FnOnce(&mut RateLimit, Moment, &super::Limits) -> T) -> T {
        let limits = lock(&self.cloud).rules_mut().limits.clone();
        ask(&mut lock(&self.rate), self.clock.now(), &limits)
    }

    /// Looks at what was counted for the rate limit.
    pub fn rate<T>(&self, look: impl FnOnce(&RateLimit) -> T) -> T {
        look(&lock(&self.rate))
    }

    /// Counts so many requests for the rate limit that nobody makes.
    pub fn use_quota(&self, requests: usize) {
        for _ in 0..requests {
            self.allowance(RateLimit::admit);
        }
    }

    fn count(&self, method: &str, pattern: &str) {
        *lock(&self.calls).0.entry((method.to_owned(), pattern.to_owned())).or_default() += 1;
    }
}

impl Handler for Service {
    fn handle(&self, request: &Request) -> Delivery {
        if let Some(asked) = metadata::find(&request.path) {
            return self.with_cloud(|cloud, now| metadata::answer(cloud, now, &asked, request.peer));
        }
        let matched = endpoint::find(&request.method, &request.path);
        if let Some(matched) = &matched {
            self.count(&request.method, matched.pattern);
        }
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let request_id = format!("5f1c2d3e-0000-4000-8000-{number:012x}");
        let fault = self.faults.take(matched.as_ref().map(|matched| matched.pattern), request);
        fault::deliver(
            fault,
            |refusal| refuse(refusal, &self.allowance(RateLimit::look), &request_id),
            || self.answer(request, matched.as_ref(), &request_id),
        )
    }
}

fn json_reply(status: u16, body: &serde_json::Value) -> Reply {
    Reply::new(status, "application/json; charset=utf-8", body.to_string())
}

fn refuse(refusal: &Refusal, allowance: &Allowance, request_id: &str) -> Reply {
    let reply = json_reply(refusal.status, &json::error(refusal, request_id));
    dress(reply, allowance, request_id)
}

/// Adds the headers that every reply has; `retry-after` only goes with the burst limit (`description.yml`).
fn dress(reply: Reply, allowance: &Allowance, request_id: &str) -> Reply {
    let reply = reply
        .with_header("date", http_date(allowance.now))
        .with_header("ratelimit-limit", allowance.limit)
        .with_header("ratelimit-remaining", allowance.remaining)
        .with_header("ratelimit-reset", allowance.reset)
        .with_header("x-request-id", request_id);
    match allowance.verdict {
        Verdict::MinuteUsedUp { retry_after } if reply.status == 429 => reply.with_header("retry-after", retry_after),
        Verdict::MinuteUsedUp { .. } | Verdict::HourUsedUp | Verdict::Allowed => reply,
    }
}

/// The thread that lets things happen when nobody asks.
#[derive(Debug)]
pub struct Ticker {
    service: Arc<Service>,
    is_stopping: Arc<Mutex<bool>>,
    thread: JoinHandle<()>,
}

impl Ticker {
    /// Starts it.
    ///
    /// # Errors
    /// The thread can not be started.
    pub fn start(service: &Arc<Service>) -> Result<Ticker> {
        let is_stopping = Arc::new(Mutex::new(false));
        let thread = std::thread::Builder::new()
            .name("sim-ticker".to_owned())
            .spawn({
                let (service, is_stopping) = (Arc::clone(service), Arc::clone(&is_stopping));
                move || keep_time(&service, &is_stopping)
            })
            .map_err(|error| SimError::new(format!("start the thread of time: {error}")))?;
        Ok(Ticker { service: Arc::clone(service), is_stopping, thread })
    }

    /// Ends it.
    pub fn stop(self) {
        {
            // Set while the cloud is locked, so that the thread either sees it or is already waiting to be told.
            let _cloud = lock(&self.service.cloud);
            *lock(&self.is_stopping) = true;
        }
        self.service.changed.notify_all();
        drop(self.thread.join());
    }
}

fn keep_time(service: &Service, is_stopping: &Mutex<bool>) {
    let mut cloud = lock(&service.cloud);
    while !*lock(is_stopping) {
        let now = service.clock.now();
        cloud.tick(now);
        let effects = cloud.take_effects();
        if let Some(devices) = &service.devices {
            devices.submit(effects);
        }
        cloud = match cloud.next_due() {
            None => service.changed.wait(cloud).unwrap_or_else(PoisonError::into_inner),
            Some(due) => {
                let wait = due.saturating_sub(now);
                let waited = service.changed.wait_timeout(cloud, wait);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}
