//! What is answered on `--debug-addr`, by path.
//!
//! Owns the list of paths. Nothing in any of it is a secret, and nothing is changed by asking.

use std::net::SocketAddr;
use std::sync::Arc;

use log::info;

use crate::metrics;
use crate::ops::health::Health;
use crate::ops::http::{Answer, serve};

/// Starts to answer on an address.
///
/// # Errors
/// One line that says why the address cannot be used.
pub fn start(address: SocketAddr, health: Arc<Health>) -> Result<(), String> {
    let bound = serve(address, Box::new(move |path| answer(path, &health)))
        .map_err(|err| format!("--debug-addr {address}: {err}"))?;
    info!("answering on http://{bound}/health, /livez, /readyz and /metrics");
    Ok(())
}

fn answer(path: &str, health: &Health) -> Answer {
    match path {
        "/livez" => health.livez(),
        "/readyz" => health.readyz(),
        "/health" => health.health(),
        "/metrics" => scrape(),
        _ => Answer::text(404, "there are /health, /livez, /readyz and /metrics\n"),
    }
}

fn scrape() -> Answer {
    match metrics::encode() {
        Ok(body) => Answer { status: 200, content_type: metrics::CONTENT_TYPE, body },
        Err(err) => Answer::text(500, format!("the metrics cannot be written: {err}\n")),
    }
}
