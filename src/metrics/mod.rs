//! What the program counts and measures of its own work, for `GET /metrics`.
//!
//! Owns the names of the metrics, their labels and their help. Nothing is counted before [`start`], as without
//! `--debug-addr` nobody asks; counting never blocks and never fails. Labels take few values each: no id, path or text of a
//! request is one, so the number of series is bounded. What is true at the moment of a scrape is added by collectors.

pub mod events;
pub mod running;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::metrics::events::EventKind;
use crate::metrics::running::running_calls;

/// What every name begins with.
const PREFIX: &str = "do_csi";
/// The format that [`encode`] writes. Source: OpenMetrics 1.0, "Text Format".
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Calls take between some milliseconds and two minutes, actions some seconds.
const SECONDS: [f64; 12] = [0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 120.0];

/// The labels of a series.
type Labels = Vec<(&'static str, Cow<'static, str>)>;
type Counters = Family<Labels, Counter>;
type Seconds = Family<Labels, Histogram, fn() -> Histogram>;

static METRICS: OnceLock<Metrics> = OnceLock::new();

struct Metrics {
    registry: Mutex<Registry>,
    calls: Seconds,
    waiting: Family<Labels, Gauge>,
    requests: Counters,
    request_seconds: Seconds,
    quota_limit: Gauge,
    quota_left: Gauge,
    held_back: Counter<f64, AtomicU64>,
    actions: Counters,
    action_seconds: Seconds,
    tools: Counters,
    events: Counters,
    attach_times: Mutex<[u64; SECONDS.len() + 1]>,
}

impl Metrics {
    fn new(services: &'static str) -> Metrics {
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut metrics = Metrics {
            registry: Mutex::new(Registry::with_prefix(PREFIX)),
            calls: Family::new_with_constructor(seconds),
            waiting: Family::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            quota_limit: Gauge::default(),
            quota_left: Gauge::default(),
            held_back: Counter::default(),
            actions: Family::default(),
            action_seconds: Family::new_with_constructor(seconds),
            tools: Family::default(),
            events: Family::default(),
            attach_times: Mutex::default(),
        };
        metrics.register(services);
        metrics.begin_series();
        metrics
    }

    fn register(&mut self, services: &'static str) {
        let registry = self.registry.get_mut().unwrap_or_else(PoisonError::into_inner);
        registry.register("call_duration_seconds", "How long calls took, by method and gRPC code", self.calls.clone());
        registry.register("calls_waiting", "Calls that wait for a thread, by pool", self.waiting.clone());
        registry.register(
            "api_requests",
            "Requests to DigitalOcean's API by method, route and status; without a reply the status is none",
            self.requests.clone(),
        );
        registry.register(
            "api_request_duration_seconds",
            "How long DigitalOcean's API took to answer, by method and route",
            self.request_seconds.clone(),
        );
        registry.register(
            "api_quota_limit",
            "Requests that the token may make in an hour, as the API said last; 0: nothing yet",
            self.quota_limit.clone(),
        );
        registry.register(
            "api_quota_remaining",
            "Requests left of these, as the API said last",
            self.quota_left.clone(),
        );
        registry.register(
            "api_held_back_seconds",
            "Time for which requests were held back to stay within the rate limit",
            self.held_back.clone(),
        );
        registry.register(
            "actions",
            "DigitalOcean's actions that were waited for, by kind and how they ended",
            self.actions.clone(),
        );
        registry.register(
            "action_duration_seconds",
            "How long actions were waited for, by kind",
            self.action_seconds.clone(),
        );
        registry.register("tool_runs", "Programs that were run, by name and how they ended", self.tools.clone());
        registry.register("events", "Things that happened to volumes, by what it was", self.events.clone());
        registry.register_collector(Box::new(Process { services }));
    }

    /// Begins the series of what seldom happens, so that the first time is an increase and not the beginning of a series.
    fn begin_series(&self) {
        for kind in EventKind::ALL {
            drop(self.events.get_or_create(&vec![("event", kind.as_str().into())]));
        }
        for kind in ["attach", "detach", "resize"] {
            drop(self.action_seconds.get_or_create(&vec![("kind", kind.into())]));
            for outcome in ["completed", "errored", "overdue", "unknown"] {
                drop(self.actions.get_or_create(&vec![("kind", kind.into()), ("outcome", outcome.into())]));
            }
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins to count; what was before is not in the figures. `services` says which services there are, in a word.
/// A second call does nothing.
pub fn start(services: &'static str) {
    METRICS.get_or_init(|| Metrics::new(services));
}

/// Whether anything is counted.
#[must_use]
pub fn is_started() -> bool {
    METRICS.get().is_some()
}

/// Adds what is true at the moment of a scrape. It must not wait for a disk or for anybody outside.
pub fn add_collector(collector: Box<dyn Collector>) {
    if let Some(metrics) = METRICS.get() {
        metrics.registry().register_collector(collector);
    }
}

/// All metrics in the OpenMetrics text format; none before [`start`].
///
/// # Errors
/// Only what a collector says.
pub fn encode() -> Result<String, fmt::Error> {
    let mut text = String::new();
    match METRICS.get() {
        Some(metrics) => text::encode(&mut text, &metrics.registry())?,
        None => text::encode_eof(&mut text)?,
    }
    Ok(text)
}

/// Counts a call that was answered. `code` is gRPC's, by name.
pub fn count_call(method: &'static str, code: &str, took: Duration) {
    let Some(metrics) = METRICS.get() else { return };
    // grpcio names a code with its number: `9-FAILED_PRECONDITION`.
    let code = code.rsplit('-').next().unwrap_or_default().to_owned();
    let labels = vec![("method", method.into()), ("code", code.into())];
    metrics.calls.get_or_create(&labels).observe(took.as_secs_f64());
}

/// A call that waits for a thread of a pool; it no longer does when this is dropped, whatever became of it.
#[derive(Debug)]
pub struct Queued(Option<Gauge>);

impl Queued {
    /// Begins to wait.
    #[must_use]
    pub fn in_pool(pool: &'static str) -> Queued {
        let gauge = METRICS.get().map(|metrics| metrics.waiting.get_or_create(&vec![("pool", pool.into())]).clone());
        if let Some(gauge) = &gauge {
            gauge.inc();
        }
        Queued(gauge)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Some(gauge) = &self.0 {
            gauge.dec();
        }
    }
}

/// Counts a request to DigitalOcean's API; `status` is `None` when no reply came.
pub fn count_request(method: &'static str, target: &str, status: Option<u16>, took: Duration) {
    let Some(metrics) = METRICS.get() else { return };
    let route = route(target);
    let status = status.map_or(Cow::Borrowed("none"), |status| status.to_string().into());
    let labels = vec![("method", method.into()), ("route", route.clone().into()), ("status", status)];
    metrics.requests.get_or_create(&labels).inc();
    let labels = vec![("method", method.into()), ("route", route.into())];
    metrics.request_seconds.get_or_create(&labels).observe(took.as_secs_f64());
}

/// Takes in what a reply said of the token's quota.
pub fn set_quota(limit: Option<u32>, remaining: Option<u32>) {
    let Some(metrics) = METRICS.get() else { return };
    for (gauge, value) in [(&metrics.quota_limit, limit), (&metrics.quota_left, remaining)] {
        if let Some(value) = value {
            gauge.set(value.into());
        }
    }
}

/// Adds a time for which a request was held back.
pub fn count_held_back(time: Duration) {
    if let Some(metrics) = METRICS.get() {
        metrics.held_back.inc_by(time.as_secs_f64());
    }
}

/// How long attaches took that completed: for each limit in seconds how many took no longer than it, and longer than the
/// one before; the last ones took longer than all limits, and have none.
#[must_use]
pub fn attach_times() -> Vec<(Option<f64>, u64)> {
    let Some(metrics) = METRICS.get() else { return Vec::new() };
    let counts = *metrics.attach_times.lock().unwrap_or_else(PoisonError::into_inner);
    SECONDS.iter().copied().map(Some).chain([None]).zip(counts).collect()
}

/// The token's quota as the API said last: how many requests an hour has, and how many are left; `None`: it said nothing yet.
#[must_use]
pub fn quota() -> Option<(i64, i64)> {
    let metrics = METRICS.get()?;
    Some((metrics.quota_limit.get(), metrics.quota_left.get())).filter(|(limit, _)| *limit > 0)
}

/// Counts something that happened to a volume.
fn count_event(kind: EventKind) {
    if let Some(metrics) = METRICS.get() {
        metrics.events.get_or_create(&vec![("event", kind.as_str().into())]).inc();
    }
}

/// Counts an action that was waited for.
pub fn count_action(kind: &'static str, outcome: &'static str, took: Duration) {
    let Some(metrics) = METRICS.get() else { return };
    metrics.actions.get_or_create(&vec![("kind", kind.into()), ("outcome", outcome.into())]).inc();
    let took = took.as_secs_f64();
    metrics.action_seconds.get_or_create(&vec![("kind", kind.into())]).observe(took);
    if (kind, outcome) == ("attach", "completed") {
        let at = SECONDS.iter().position(|limit| took <= *limit).unwrap_or(SECONDS.len());
        let mut counts = metrics.attach_times.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(at) {
            *count = count.saturating_add(1);
        }
    }
}

/// Begins the series of a program that may be run: so far none has ended well.
pub fn expect_tool(tool: &'static str) {
    if let Some(metrics) = METRICS.get() {
        drop(metrics.tools.get_or_create(&vec![("tool", tool.into()), ("exit", "0".into())]));
    }
}

/// Counts a program that was run; `exit` is its exit code, or what else became of it.
pub fn count_tool(tool: &'static str, exit: impl Into<Cow<'static, str>>) {
    if let Some(metrics) = METRICS.get() {
        metrics.tools.get_or_create(&vec![("tool", tool.into()), ("exit", exit.into())]).inc();
    }
}

/// The route of a request: its path, with whatever names one thing left out.
fn route(target: &str) -> String {
    const WORDS: [&str; 9] =
        ["v2", "volumes", "actions", "snapshots", "droplets", "account", "tags", "resources", "neighbors"];
    let path = target.split('?').next().unwrap_or_default();
    let part = |part: &str| if part.is_empty() || WORDS.contains(&part) { part.to_owned() } else { ":id".to_owned() };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// The calls that run, and the process itself.
#[derive(Debug)]
struct Process {
    services: &'static str,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let calls = running_calls();
        let mut by_method: BTreeMap<&str, i64> = BTreeMap::new();
        for call in &calls {
            *by_method.entry(call.method).or_default() += 1;
        }
        let help = "Calls that are being worked on, by method";
        let mut family = encoder.encode_descriptor("calls_running", help, None, MetricType::Gauge)?;
        for (method, number) in by_method {
            ConstGauge::new(number).encode(family.encode_family(&[("method", method)])?)?;
        }
        let oldest = calls.iter().map(|call| call.came.elapsed()).max().unwrap_or_default().as_secs_f64();
        gauge(&mut encoder, "oldest_call_age_seconds", "Age of the oldest call that is being worked on", oldest)?;
        let help = "The plugin's version, and the services that it offers";
        let mut family = encoder.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        ConstGauge::new(1_i64)
            .encode(family.encode_family(&[("version", env!("CARGO_PKG_VERSION")), ("mode", self.services)])?)
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_names_no_single_thing() {
        for (target, want) in [
            ("/v2/volumes?name=x&region=y", "/v2/volumes"),
            ("/v2/volumes/506f78a4-e098-11e5-ad9f-000f53306ae1/actions/72531856", "/v2/volumes/:id/actions/:id"),
            ("/v2/tags/volumes-of-mine/resources", "/v2/tags/:id/resources"),
            ("/v2/account", "/v2/account"),
        ] {
            assert_eq!(route(target), want);
        }
    }

    #[test]
    fn a_call_waits_for_a_thread_until_its_job_begins_or_is_dropped() {
        start("test");
        let line = |number: u32| format!("do_csi_calls_waiting{{pool=\"a test's\"}} {number}\n");
        let (first, second) = (Queued::in_pool("a test's"), Queued::in_pool("a test's"));
        assert!(encode().unwrap().contains(&line(2)));
        drop(first);
        assert!(encode().unwrap().contains(&line(1)));
        drop(second);
        assert!(encode().unwrap().contains(&line(0)));
    }
}
