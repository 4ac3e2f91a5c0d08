//! What systemd is told of the program, where it is a service of systemd and not of Nomad.
//!
//! Owns the socket for that, which systemd names in the environment. Without it nothing is said.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use log::warn;

/// Where systemd listens: a path, or `@` and a name in the abstract namespace. Source: sd_notify(3).
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// How far the program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceState {
    /// It answers calls, so that units which wait for it may start.
    Ready,
    /// It takes no new calls and ends when the running ones have ended.
    Stopping,
}

impl ServiceState {
    fn message(self) -> &'static str {
        match self {
            ServiceState::Ready => "READY=1",
            ServiceState::Stopping => "STOPPING=1",
        }
    }
}

/// Tells systemd how far the program is, if systemd has started it and wants to know. A message that cannot be sent is logged:
/// calls do not depend on it.
pub fn tell_service_manager(state: ServiceState) {
    let Some(place) = env::var_os(NOTIFY_SOCKET).filter(|place| !place.is_empty()) else { return };
    if let Err(err) = send(&place, state.message()) {
        warn!("{NOTIFY_SOCKET}={}: systemd could not be told {}: {err}", place.display(), state.message());
    }
}

fn send(place: &OsStr, message: &str) -> io::Result<()> {
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(place)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A reader that does not read must hold up neither the start nor the end.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), &address).map(drop)
}
