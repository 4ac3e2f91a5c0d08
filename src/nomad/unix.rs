//! HTTP over a Unix socket: how a task reaches the API of the Nomad that runs it.
//!
//! Owns the connection alone; requests and replies are the HTTP library's.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};
use ureq::{Error, Timeout};

/// Connects to one socket, whatever the address of the request says.
#[derive(Debug)]
pub(super) struct UnixConnector {
    pub(super) socket: PathBuf,
}

/// A connection.
pub(super) struct UnixTransport {
    stream: UnixStream,
    buffers: LazyBuffers,
}

impl std::fmt::Debug for UnixTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnixTransport").finish_non_exhaustive()
    }
}

impl Connector<()> for UnixConnector {
    type Out = UnixTransport;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<UnixTransport>, Error> {
        let stream = UnixStream::connect(&self.socket).map_err(Error::Io)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(UnixTransport { stream, buffers }))
    }
}

impl Transport for UnixTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_write_timeout(timeout.not_zero().map(|left| *left)).map_err(Error::Io)?;
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        self.stream.write_all(output).map_err(|err| or_timeout(err, timeout.reason))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_read_timeout(timeout.not_zero().map(|left| *left)).map_err(Error::Io)?;
        let input = self.buffers.input_append_buf();
        let read = self.stream.read(input).map_err(|err| or_timeout(err, timeout.reason))?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        // Each question has a connection of its own: there are few of them.
        false
    }
}

fn or_timeout(err: std::io::Error, reason: Timeout) -> Error {
    let is_late = matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    if is_late { Error::Timeout(reason) } else { Error::Io(err) }
}
