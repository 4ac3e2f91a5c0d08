//! The gRPC edge: one server on one Unix socket, and the services it offers.
//!
//! Owns the server from bind to drained shutdown. It translates nothing itself: `request/` reads what comes in, the
//! services beside this file hand it on, and `status` turns errors into codes.

pub mod controller;
mod front;
mod health;
pub mod identity;
pub mod node;
pub mod probe;
pub mod response;
pub mod socket;
pub mod status;
pub mod worker;

use std::fmt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use crossbeam::select;
use grpcio::{ChannelBuilder, EnvBuilder, ResourceQuota, ServerBuilder, ServerCredentials, Service};
use log::warn;

use crate::config::{DRAIN_BUDGET, END_BUDGET};
use crate::rpc::front::{Front, Inner};
use crate::rpc::socket::SocketFile;

/// How long somebody who has connected may take to say anything in HTTP/2, in milliseconds. gRPC's own 120 s would hold
/// up the end of the program for as long.
const HANDSHAKE_MS: i32 = 2000;
/// Largest request in bytes. The largest legal one is a CreateVolume: CSI gives a map 4 KiB and it has three, a few lists of
/// capabilities and places, and texts of 128 bytes; all of it together stays below 64 KiB.
/// Source: CSI specification, "Size Limits".
const MAX_REQUEST: i32 = 256 << 10;
/// Most calls of one connection at a time; a client that keeps to HTTP/2 lets further ones wait, and one that does not is cut
/// off. The queues of calls have less room than this, so more would only be refused.
const MAX_STREAMS: i32 = 200;
/// Largest headers of a call, in bytes; those of an ordinary one have some hundred.
const MAX_HEADERS: i32 = 16 << 10;
/// Memory for what callers have sent and have not completed, in bytes. Beyond it gRPC cuts off calls, and takes no further
/// connections until there is room. Answers do not count.
const MEMORY_QUOTA: usize = 16 << 20;
/// How long the answers to cancelled calls may take to be sent.
const CANCEL_BUDGET: Duration = Duration::from_secs(1);
/// The calls have ended by then, and what the program does by itself has some time left.
const _: () = assert!(DRAIN_BUDGET.as_secs() + 2 * CANCEL_BUDGET.as_secs() < END_BUDGET.as_secs());

/// A server that answers on its socket until it is shut down.
pub struct Server {
    grpc: grpcio::Server,
    front: Front,
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
        let limits = limits(ChannelBuilder::new(Arc::clone(&env)));
        let mut builder = ServerBuilder::new(env).channel_args(limits.build_args());
        for service in services {
            builder = builder.register_service(service);
        }
        let mut grpc = builder.build().map_err(|err| refuse(&err))?;
        grpc.add_listening_port(socket.grpc_address(), ServerCredentials::insecure()).map_err(|err| refuse(&err))?;
        grpc.start();
        let inner = Inner::take(socket.bound()).map_err(|err| refuse(&err))?;
        let listener = UnixListener::bind(socket.bound()).map_err(|err| refuse(&err))?;
        let front = Front::start(inner, listener).map_err(|err| refuse(&err))?;
        socket.put_into_place(mode).map_err(|err| refuse(&err))?;
        Ok(Server { grpc, front, socket })
    }

    /// Stops accepting calls and lets the running ones finish; those that have not after `patience`, or when `enough`
    /// says so, are cancelled, and what they are doing goes on only as long as the process.
    pub fn shut_down(mut self, patience: Duration, enough: &Receiver<()>) {
        self.socket.remove();
        self.front.stop();
        let drained = self.grpc.shutdown();
        let (done, finished) = bounded(1);
        let wait = move || {
            let outcome = futures_executor::block_on(drained);
            // The receiver is gone only when it has stopped waiting.
            drop(done.send(outcome));
        };
        if let Err(err) = thread::Builder::new().name("drain".to_owned()).spawn(wait) {
            warn!("cannot start a thread to wait for the running calls: {err}");
        }
        select! {
            recv(finished) -> _ => return self.pass_on_answers(),
            recv(enough) -> _ => warn!("told again to end, cancelling the calls that still run"),
            default(patience) => warn!("calls still run after {} s, cancelling them", patience.as_secs()),
        }
        self.grpc.cancel_all_calls();
        if finished.recv_timeout(CANCEL_BUDGET).is_err() {
            warn!("ending without having told every caller");
        }
        self.pass_on_answers();
    }

    /// gRPC has closed its connections by now, so those of the callers are closed when the last answers have passed.
    fn pass_on_answers(&self) {
        if !self.front.drain(CANCEL_BUDGET) {
            warn!("some callers do not take their answers");
        }
    }
}

/// What a caller may ask of gRPC, so that no request, and no number of them, takes the memory of the calls in work.
fn limits(builder: ChannelBuilder) -> ChannelBuilder {
    builder
        .raw_cfg_int(c"grpc.server_handshake_timeout_ms".into(), HANDSHAKE_MS)
        // gRPC measures a message before it unpacks it. No caller compresses; one that does gets INTERNAL.
        .raw_cfg_int(c"grpc.per_message_decompression".into(), 0)
        .raw_cfg_int(c"grpc.absolute_max_metadata_size".into(), MAX_HEADERS)
        // Otherwise the windows grow with what a caller sends, and with them what is kept for a message that never ends.
        .http2_bdp_probe(false)
        .max_receive_message_len(MAX_REQUEST)
        .max_concurrent_stream(MAX_STREAMS)
        .set_resource_quota(ResourceQuota::new(None).resize_memory(MEMORY_QUOTA))
}
