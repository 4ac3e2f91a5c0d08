//! The answer to `GET /health`: whether DigitalOcean's API can be used with this token.
//!
//! Owns the HTTP server behind `--debug-addr`. A good answer is kept for a while, so that frequent checks cost few calls
//! of the account's quota.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::info;
use oxhttp::Server;
use oxhttp::model::{Body, Response, StatusCode};

use crate::cloud::Cloud;
use crate::error::Chain;

/// How long a good answer is kept. A bad one is not: orchestrators restart a task after some in a row.
const KEPT: Duration = Duration::from_secs(30);
/// How long a connection may be silent; without a limit, a few open ones would keep all others out.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the API may take to answer a check.
const BUDGET: Duration = Duration::from_secs(10);

struct Health {
    cloud: Cloud,
    last_good: Mutex<Option<Instant>>,
}

/// Starts to answer on an address.
///
/// # Errors
/// One line that says why the address cannot be used.
pub fn serve(addr: SocketAddr, cloud: Cloud) -> Result<(), String> {
    let health = Health { cloud, last_good: Mutex::new(None) };
    let server = Server::new(move |request| match request.uri().path() {
        "/health" => health.answer(),
        _ => text(StatusCode::NOT_FOUND, "there is /health only\n".to_owned()),
    });
    server
        .bind(addr)
        .with_max_concurrent_connections(8)
        .with_global_timeout(SILENCE)
        .spawn()
        .map_err(|err| format!("--debug-addr {addr}: {err}"))?;
    info!("answering health checks on http://{addr}/health");
    Ok(())
}

impl Health {
    fn answer(&self) -> Response<Body> {
        match self.observe() {
            Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
            Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
        }
    }

    fn observe(&self) -> Result<(), String> {
        // Held while the API is asked, so that checks at the same time are one request.
        let mut last_good = self.last_good.lock().unwrap_or_else(PoisonError::into_inner);
        if last_good.is_some_and(|at| at.elapsed() < KEPT) {
            return Ok(());
        }
        self.cloud.until(Instant::now() + BUDGET).get_account().map_err(|err| Chain(&err).to_string())?;
        *last_good = Some(Instant::now());
        Ok(())
    }
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}
