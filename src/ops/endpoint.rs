//! What is answered on `--debug-addr`, by path.
//!
//! Owns the list of paths. Nothing in any of it is a secret, nothing is changed by asking, and nothing waits for a disk.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use log::info;

use crate::droplet_identity::DropletIdentity;
use crate::metrics;
use crate::metrics::events::last_events;
use crate::metrics::running::running_calls;
use crate::ops::figures::FigureReader;
use crate::ops::findings::Findings;
use crate::ops::health::Health;
use crate::ops::http::{Answer, serve};
use crate::ops::page;
use crate::ops::page::View;

/// What the answers are made from.
#[derive(Debug)]
pub struct Endpoint {
    /// Whether the program lives, is ready, and can do its work.
    pub health: Arc<Health>,
    /// Which droplet this is.
    pub droplet: Arc<DropletIdentity>,
    /// The driver's name and the services, for the page.
    pub about: String,
    /// Since when the program runs.
    pub started: Instant,
    /// What is wrong.
    pub findings: Arc<Findings>,
    /// The volumes on this droplet, with the node service.
    pub figures: Option<Arc<FigureReader>>,
}

/// Starts to answer on an address.
///
/// # Errors
/// One line that says why the address cannot be used.
pub fn start(address: SocketAddr, endpoint: Endpoint) -> Result<(), String> {
    let bound = serve(address, Box::new(move |path| endpoint.answer(path)))
        .map_err(|err| format!("--debug-addr {address}: {err}"))?;
    info!("answering on http://{bound}/, /health, /livez, /readyz and /metrics");
    Ok(())
}

impl Endpoint {
    fn answer(&self, path: &str) -> Answer {
        match path {
            "/" => written("text/html; charset=utf-8", page::render(&self.view())),
            "/livez" => self.health.livez(),
            "/readyz" => self.health.readyz(),
            "/health" => self.health.health(),
            "/metrics" => written(metrics::CONTENT_TYPE, metrics::encode()),
            _ => Answer::text(404, "there are /, /health, /livez, /readyz and /metrics\n"),
        }
    }

    fn view(&self) -> View {
        let node = match self.droplet.facts() {
            Ok(facts) => format!("Droplet {} in {}", facts.id, facts.region),
            Err(_) => "This droplet".to_owned(),
        };
        View {
            node,
            about: self.about.clone(),
            started: self.started,
            not_ready: self.health.observe_ready().err(),
            findings: self.findings.all(),
            volumes: self.figures.as_ref().map(|figures| figures.last()).unwrap_or_default(),
            calls: running_calls(),
            quota: metrics::quota(),
            attach_times: metrics::attach_times(),
            events: last_events(),
            now: SystemTime::now(),
        }
    }
}

fn written(content_type: &'static str, text: Result<String, fmt::Error>) -> Answer {
    match text {
        Ok(body) => Answer { status: 200, content_type, body },
        Err(err) => Answer::text(500, format!("the answer cannot be written: {err}\n")),
    }
}
