//! The answer to `GET /health`: whether DigitalOcean's API can be used with this token.
//!
//! Owns the HTTP server behind `--debug-addr`. The answer is kept for a while, so that frequent checks cost no calls of
//! the account's quota.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::info;
use oxhttp::Server;
use oxhttp::model::{Body, Response, StatusCode};

use crate::cloud::Cloud;
use crate::error::Chain;

/// How long an answer is good for.
const KEPT: Duration = Duration::from_secs(30);
/// How long the API may take to answer a check.
const BUDGET: Duration = Duration::from_secs(10);

struct Health {
    cloud: Cloud,
    last: Mutex<Option<(Instant, Result<(), String>)>>,
}

/// Starts to answer on an address.
///
/// # Errors
/// One line that says why the address cannot be used.
pub fn serve(addr: SocketAddr, cloud: Cloud) -> Result<(), String> {
    let health = Health { cloud, last: Mutex::new(None) };
    let server = Server::new(move |request| match request.uri().path() {
        "/health" => health.answer(),
        _ => text(StatusCode::NOT_FOUND, "there is /health only\n".to_owned()),
    });
    server
        .bind(addr)
        .with_max_concurrent_connections(8)
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
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_ref() {
            Some((at, answer)) if at.elapsed() < KEPT => answer.clone(),
            Some(_) | None => {
                let account = self.cloud.until(Instant::now() + BUDGET).get_account();
                let answer = account.map(drop).map_err(|err| Chain(&err).to_string());
                *last = Some((Instant::now(), answer.clone()));
                answer
            }
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}
