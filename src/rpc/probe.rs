//! A look at a running plugin from outside: what a health check of the container asks.
//!
//! Owns the one call that this program makes as a client of its own kind. It starts nothing and changes nothing.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use grpcio::{CallOption, ChannelBuilder, EnvBuilder};

use crate::proto::csi::ProbeRequest;
use crate::proto::csi_grpc::IdentityClient;
use crate::rpc::{socket, status};

/// How long the plugin may take to answer. It answers from memory, so a longer wait would only hide that it does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the plugin that serves this socket whether it is ready.
///
/// # Errors
/// One line: nobody answers there, or the plugin says that it is not ready.
///
/// Source: CSI specification, `Probe`: no `ready` in the answer means ready.
pub fn probe(place: &Path) -> Result<(), String> {
    // gRPC would say the same of every socket that it cannot connect to.
    drop(UnixStream::connect(place).map_err(|err| not_connected(place, &err))?);
    let env = Arc::new(EnvBuilder::new().cq_count(1).build());
    let client = IdentityClient::new(ChannelBuilder::new(env).connect(&socket::address(place)));
    let call = CallOption::default().timeout(PATIENCE);
    let answer = client.probe_opt(&ProbeRequest::default(), call).map_err(|err| not_answered(place, &err))?;
    match answer.ready.as_ref().map(|ready| ready.value) {
        Some(true) | None => Ok(()),
        Some(false) => Err(format!("the plugin at {} says that it is not ready", place.display())),
    }
}

fn not_connected(place: &Path, err: &io::Error) -> String {
    let is_socket = fs::metadata(place).is_ok_and(|found| found.file_type().is_socket());
    if err.kind() == ErrorKind::ConnectionRefused && !is_socket {
        return format!(
            "no plugin serves {}: it is no socket; give the --endpoint of the plugin that is meant",
            place.display()
        );
    }
    let place = place.display();
    if err.kind() == ErrorKind::NotFound {
        return format!(
            "no plugin serves {place}: there is no such socket; give the --endpoint of the plugin that is meant"
        );
    }
    if err.kind() == ErrorKind::ConnectionRefused {
        return format!("no plugin serves {place} any more: the one that made this socket has ended");
    }
    format!("cannot connect to the plugin at {place}: {err}")
}

fn not_answered(place: &Path, err: &grpcio::Error) -> String {
    let place = place.display();
    let grpcio::Error::RpcFailure(failure) = err else {
        return format!("cannot ask the plugin at {place} whether it is ready: {err}");
    };
    if status::is_late(failure.code()) {
        return format!(
            "the plugin at {place} takes connections, and has not answered within {} s",
            PATIENCE.as_secs()
        );
    }
    format!("the plugin at {place} answered {}: {}", status::name_of(failure.code()), failure.message())
}
