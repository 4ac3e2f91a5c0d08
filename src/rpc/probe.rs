//! A look at a running plugin from outside: what a health check of the container asks.
//!
//! Owns the one call that this program makes as a client of its own kind. It starts nothing and changes nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use grpcio::{CallOption, ChannelBuilder, EnvBuilder};

use crate::proto::csi::ProbeRequest;
use crate::proto::csi_grpc::IdentityClient;
use crate::rpc::socket;

/// How long the plugin may take to answer. It answers from memory, so a longer wait would only hide that it does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the plugin that serves this socket whether it is ready.
///
/// # Errors
/// One line: nobody answers there, or the plugin says that it is not ready.
///
/// Source: CSI specification, `Probe`: no `ready` in the answer means ready.
pub fn probe(place: &Path) -> Result<(), String> {
    let env = Arc::new(EnvBuilder::new().cq_count(1).build());
    let client = IdentityClient::new(ChannelBuilder::new(env).connect(&socket::address(place)));
    let call = CallOption::default().timeout(PATIENCE);
    let answer = client
        .probe_opt(&ProbeRequest::default(), call)
        .map_err(|err| format!("no plugin answers at {}: {err}", place.display()))?;
    match answer.ready.as_ref().map(|ready| ready.value) {
        Some(true) | None => Ok(()),
        Some(false) => Err(format!("the plugin at {} says that it is not ready", place.display())),
    }
}
