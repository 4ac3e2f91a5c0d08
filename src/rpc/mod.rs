//! The gRPC edge: one server on one Unix socket, and the services it offers.
//!
//! Owns the server from bind to drained shutdown. It translates nothing itself: `request/` reads what comes in, the
//! services beside this file hand it on, and `status` turns errors into codes.

pub mod controller;
pub mod identity;
pub mod node;
pub mod probe;
pub mod response;
pub mod socket;
pub mod status;
pub mod worker;

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use crossbeam::select;
use grpcio::{ChannelBuilder, EnvBuilder, ServerBuilder, ServerCredentials, Service};
use log::warn;

use crate::rpc::socket::SocketFile;

/// How long somebody who has connected may take to say anything in HTTP/2, in milliseconds. gRPC's own 120 s would hold
/// up the end of the program for as long.
const HANDSHAKE_MS: i32 = 2000;
/// How long the answers to cancelled calls may take to be sent.
const CANCEL_BUDGET: Duration = Duration::from_secs(1);

/// A server that answers on its socket until it is shut down.
pub struct Server {
    grpc: grpcio::Server,
    socket: SocketFile,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Server {
    /// Binds the planned socket, with these permissions, and starts to answer; calls are accepted when this returns.
    ///
    /// # Errors
    /// One line that says why the endpoint cannot be used.
    pub fn start(mut socket: SocketFile, mode: u32, services: Vec<Service>) -> Result<Server, String> {
        let place = socket.place().to_owned();
        let refuse = |why: &dyn fmt::Display| format!("cannot serve on {}: {why}", place.display());
        // One thread is enough: it only passes messages on.
        let env = Arc::new(EnvBuilder::new().cq_count(1).name_prefix("grpc").build());
        let args =
            ChannelBuilder::new(Arc::clone(&env)).raw_cfg_int(c"grpc.server_handshake_timeout_ms".into(), HANDSHAKE_MS);
        let mut builder = ServerBuilder::new(env).channel_args(args.build_args());
        for service in services {
            builder = builder.register_service(service);
        }
        let mut grpc = builder.build().map_err(|err| refuse(&err))?;
        grpc.add_listening_port(socket.grpc_address(), ServerCredentials::insecure()).map_err(|err| refuse(&err))?;
        grpc.start();
        socket.put_into_place(mode).map_err(|err| refuse(&err))?;
        Ok(Server { grpc, socket })
    }

    /// Stops accepting calls and lets the running ones finish; those that have not after `patience`, or when `enough`
    /// says so, are cancelled, and what they are doing goes on only as long as the process.
    pub fn shut_down(mut self, patience: Duration, enough: &Receiver<()>) {
        self.socket.remove();
        let drained = self.grpc.shutdown();
        let (done, finished) = bounded(1);
        thread::spawn(move || {
            let outcome = futures_executor::block_on(drained);
            // The receiver is gone only when it has stopped waiting.
            drop(done.send(outcome));
        });
        select! {
            recv(finished) -> _ => return,
            recv(enough) -> _ => warn!("told again to end, cancelling the calls that still run"),
            default(patience) => warn!("calls still run after {} s, cancelling them", patience.as_secs()),
        }
        self.grpc.cancel_all_calls();
        if finished.recv_timeout(CANCEL_BUDGET).is_err() {
            warn!("ending without having told every caller");
        }
    }
}
