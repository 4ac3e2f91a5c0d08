//! What stands between the callers and gRPC: it takes their connections and passes on what they say.
//!
//! Owns the connections: how many there are, which are closed for one that is new, and the one thread that passes bytes on
//! without ever waiting for one of them. gRPC's library has no limit of connections, works on calls that are taken back as fast
//! as they are made, and tells nobody a caller's time limit, nor that he has hung up; [`callers`] has both.

pub(in crate::rpc) mod callers;
mod frames;
mod hpack;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, error, warn};
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use crate::backoff::Seldom;
use crate::rpc::front::frames::{Answers, Cut, Requests};

/// Most connections at a time. An orchestrator has one or two, and each health check one for a moment.
const MAX_CONNECTIONS: usize = 128;
/// Calls that are open on all connections from which on none gets more than its share of them: those that come from new callers
/// must not wait behind thousands. gRPC answers a call that cannot be served in a fraction of a millisecond.
const MANY_CALLS: usize = 256;
/// Open calls that each connection may have then.
const SHARE: usize = 8;
/// Most bytes of requests that have not come to their end, on all connections: sixteen of the largest that gRPC takes. It has room
/// for four times as much, and when that is full it reads nothing of anybody.
const MAX_UNFINISHED: usize = 4 << 20;
/// Most bytes for one side of a connection that it has not taken yet; until it does, the other side is not read.
const MAX_BACKLOG: usize = 64 << 10;
/// How often connections are looked at on which a request has begun to come.
const TICK_MS: u16 = 1000;
/// How long no connection is taken after that failed, as there are no files left, say.
const PAUSE_MS: u16 = 100;

/// The front of a server.
#[derive(Debug)]
pub(super) struct Front {
    /// Closed to tell the thread that no connections are to be taken any more.
    stop: Option<UnixStream>,
    open: Arc<Connections>,
}

/// How many connections there are.
#[derive(Debug, Default)]
struct Connections {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Front {
    /// Takes the connections that come to `listener`, and connects each to the socket at `inner`, which nobody else can reach
    /// from then on.
    ///
    /// # Errors
    /// The system's: the socket cannot be reached, as there is no /proc, or there is no thread.
    pub(super) fn start(inner: Inner, listener: UnixListener) -> io::Result<Front> {
        inner.connect().map_err(|err| io::Error::other(format!("gRPC's own socket is not reached by /proc: {err}")))?;
        listener.set_nonblocking(true)?;
        let (stop, told) = UnixStream::pair()?;
        let open = Arc::<Connections>::default();
        let relay = Relay {
            inner,
            listener: Some(listener),
            told,
            open: Arc::clone(&open),
            all: BTreeMap::new(),
            next: 0,
            warned: Seldom::default(),
        };
        thread::Builder::new().name("front".to_owned()).spawn(move || relay.run())?;
        Ok(Front { stop: Some(stop), open })
    }

    /// Takes no more connections.
    pub(super) fn stop(&mut self) {
        self.stop = None;
    }

    /// Waits until all connections are closed, that is, all answers have been passed on; says whether they are.
    pub(super) fn drain(&self, patience: Duration) -> bool {
        let count = self.open.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.open.changed.wait_timeout_while(count, patience, |count| *count > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

/// gRPC's own socket, which has no name.
#[derive(Debug)]
pub(super) struct Inner(OwnedFd);

impl Inner {
    /// Takes the name away from the socket at this path.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn take(path: &Path) -> io::Result<Inner> {
        let file = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        std::fs::remove_file(path)?;
        Ok(Inner(file))
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(format!("/proc/self/fd/{}", self.0.as_raw_fd()))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

/// The thread's own.
struct Relay {
    inner: Inner,
    listener: Option<UnixListener>,
    told: UnixStream,
    open: Arc<Connections>,
    /// By the order in which they came.
    all: BTreeMap<u64, Connection>,
    next: u64,
    /// That connections are not taken.
    warned: Seldom,
}

/// What can be done at once.
#[derive(Debug, Clone, Copy)]
enum Ready {
    Listener,
    Told,
    Client(u64),
    Server(u64),
}

impl Relay {
    fn run(mut self) {
        let mut is_pausing = false;
        loop {
            let ready = match self.wait(is_pausing) {
                Ok(ready) => ready,
                Err(err) => {
                    error!("no call can be taken, waiting for connections fails: {err}");
                    thread::sleep(Duration::from_millis(PAUSE_MS.into()));
                    continue;
                }
            };
            is_pausing = false;
            let now = Instant::now();
            for what in ready {
                match what {
                    Ready::Told => self.listener = None,
                    Ready::Listener => is_pausing = !self.accept(now),
                    Ready::Client(id) => self.step_with_share(id, |connection| connection.read_client(now)),
                    Ready::Server(id) => self.step(id, Connection::read_server),
                }
            }
            let held = self.all.iter().filter(|(_, connection)| connection.requests.is_held());
            for id in held.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.step_with_share(id, |connection| connection.resume(now));
            }
            for id in self.all.keys().copied().collect::<Vec<_>>() {
                self.step(id, |connection| connection.requests.check_time(now).map_err(End::Cut));
            }
            self.bound_unfinished();
            *self.open.count.lock().unwrap_or_else(PoisonError::into_inner) = self.all.len();
            self.open.changed.notify_all();
            if self.listener.is_none() && self.all.is_empty() {
                return;
            }
        }
    }

    /// Closes connections, those first of whose requests the most has come, until there is room for the requests of others.
    fn bound_unfinished(&mut self) {
        let bytes = |connection: &Connection| connection.requests.unfinished_bytes();
        let mut all = self.all.values().map(bytes).fold(0, usize::saturating_add);
        while all > MAX_UNFINISHED {
            let largest = self.all.iter().max_by_key(|(_, connection)| bytes(connection));
            let Some((id, of_it)) = largest.map(|(id, connection)| (*id, bytes(connection))) else { return };
            warn!("a connection is closed: {of_it} bytes have come of requests that do not come to their end");
            self.all.remove(&id);
            all = all.saturating_sub(of_it);
        }
    }

    /// Waits until something can be read or written.
    fn wait(&self, is_pausing: bool) -> io::Result<Vec<Ready>> {
        let mut what = Vec::with_capacity(2 * self.all.len() + 2);
        let mut files = Vec::with_capacity(2 * self.all.len() + 2);
        if let Some(listener) = &self.listener {
            what.push(Ready::Told);
            files.push(PollFd::new(self.told.as_fd(), PollFlags::POLLIN));
            if !is_pausing {
                what.push(Ready::Listener);
                files.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            }
        }
        for (id, connection) in &self.all {
            what.extend([Ready::Client(*id), Ready::Server(*id)]);
            let interest = |is_read: bool, outgoing: &Vec<u8>| {
                let read = if is_read { PollFlags::POLLIN } else { PollFlags::empty() };
                read | if outgoing.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT }
            };
            let (to_server, to_client) = (&connection.to_server, &connection.to_client);
            let is_read = to_server.len() < MAX_BACKLOG && !connection.requests.is_held();
            let from_client = if connection.is_ending { PollFlags::POLLOUT } else { interest(is_read, to_client) };
            files.push(PollFd::new(connection.client.as_fd(), from_client));
            files.push(PollFd::new(connection.server.as_fd(), interest(to_client.len() < MAX_BACKLOG, to_server)));
            if connection.is_ending {
                // It would be ready for ever.
                what.pop();
                files.pop();
            }
        }
        let timeout = if is_pausing {
            PollTimeout::from(PAUSE_MS)
        } else if self.all.values().any(|connection| connection.requests.is_unfinished()) {
            PollTimeout::from(TICK_MS)
        } else {
            PollTimeout::NONE
        };
        match poll(&mut files, timeout) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Err(err) => return Err(err.into()),
        }
        let is_ready = |file: &PollFd<'_>| file.revents().is_none_or(|events| !events.is_empty());
        Ok(what.into_iter().zip(&files).filter(|(_, file)| is_ready(file)).map(|(what, _)| what).collect())
    }

    /// Takes the connections that have come; says whether more can be taken at once.
    fn accept(&mut self, now: Instant) -> bool {
        loop {
            let Some(listener) = &self.listener else { return true };
            match listener.accept() {
                Ok((client, _)) => {
                    if let Err(err) = self.welcome(client, now) {
                        if self.warned.is_due(now) {
                            warn!("a connection is not taken: {err}");
                        }
                        return false;
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return true,
                Err(err) if err.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(err) => {
                    // Without a free file this goes on for as long as that is so.
                    if self.warned.is_due(now) {
                        warn!("no connection can be taken: {err}");
                    }
                    return false;
                }
            }
        }
    }

    fn welcome(&mut self, client: UnixStream, now: Instant) -> io::Result<()> {
        if self.all.len() >= MAX_CONNECTIONS {
            // The one that has been silent for the longest time, and waits for no answer; or else one that wants more than its
            // share of the calls, and has the most.
            let idle = self.all.iter().filter(|(_, connection)| !connection.requests.is_waiting());
            let idle = idle.min_by_key(|(_, connection)| connection.heard).map(|(id, _)| *id);
            let greedy = self.all.iter().filter(|(_, connection)| connection.requests.is_held());
            let greedy = greedy.max_by_key(|(_, connection)| connection.requests.open_calls()).map(|(id, _)| *id);
            let Some(id) = idle.or(greedy) else {
                warn!("a connection is not taken: all {MAX_CONNECTIONS} others wait for answers");
                return Ok(());
            };
            debug!("a connection is closed for a new one, there are {MAX_CONNECTIONS}");
            self.all.remove(&id);
        }
        client.set_nonblocking(true)?;
        let server = self.inner.connect()?;
        self.all.insert(self.next, Connection::new(client, server, now));
        self.next += 1;
        Ok(())
    }

    /// A step in which calls may be begun: as many as there is room for, and in any case up to the connection's share.
    fn step_with_share(&mut self, id: u64, act: impl FnOnce(&mut Connection) -> Result<(), End>) {
        let open: usize = self.all.values().map(|connection| connection.requests.open_calls()).sum();
        let room = MANY_CALLS.saturating_sub(open);
        self.step(id, |connection| {
            let own = connection.requests.open_calls();
            connection.requests.limit_open_calls(own.saturating_add(room).max(SHARE));
            act(connection)
        });
    }

    fn step(&mut self, id: u64, act: impl FnOnce(&mut Connection) -> Result<(), End>) {
        // A fault in reading what one caller sent must not end the thread that all callers need.
        let end = self.all.get_mut(&id).map(|connection| {
            catch_unwind(AssertUnwindSafe(|| act(connection).and_then(|()| connection.write())))
                .unwrap_or(Err(End::Closed))
        });
        if let Some(Err(end)) = end {
            if let End::Cut(why) = end {
                warn!("a connection is closed: {why}");
            }
            self.all.remove(&id);
        }
    }
}

/// A caller's connection, and the one to gRPC that belongs to it.
#[derive(Debug)]
struct Connection {
    client: UnixStream,
    server: UnixStream,
    requests: Requests,
    answers: Answers,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    /// When something last came from the caller.
    heard: Instant,
    /// gRPC has closed its side; what it said before is still passed on.
    is_ending: bool,
}

/// Why a connection is over.
#[derive(Debug)]
enum End {
    Closed,
    Cut(Cut),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Closed
    }
}

impl Connection {
    fn new(client: UnixStream, server: UnixStream, now: Instant) -> Connection {
        Connection {
            client,
            server,
            requests: Requests::new(now),
            answers: Answers::default(),
            to_server: Vec::new(),
            to_client: Vec::new(),
            heard: now,
            is_ending: false,
        }
    }

    fn read_client(&mut self, now: Instant) -> Result<(), End> {
        if self.to_server.len() >= MAX_BACKLOG || self.is_ending || self.requests.is_held() {
            // It is here to be written to, or because it is gone.
            return if is_gone(&self.client) { Err(End::Closed) } else { Ok(()) };
        }
        let mut bytes = [0; 16 << 10];
        match read(&mut self.client, &mut bytes)? {
            Some([]) => Err(End::Closed),
            Some(bytes) => {
                self.heard = now;
                self.requests.take(bytes, &mut self.to_server, now).map_err(End::Cut)
            }
            None => Ok(()),
        }
    }

    fn resume(&mut self, now: Instant) -> Result<(), End> {
        if self.is_ending {
            return Ok(());
        }
        self.requests.resume(&mut self.to_server, now).map_err(End::Cut)
    }

    fn read_server(&mut self) -> Result<(), End> {
        // What is left of one that is gone is little.
        if self.to_client.len() >= MAX_BACKLOG && !is_gone(&self.server) {
            return Ok(());
        }
        let mut bytes = [0; 16 << 10];
        match read(&mut self.server, &mut bytes)? {
            Some([]) => {
                self.is_ending = true;
                self.requests.all_answered();
            }
            Some(bytes) => {
                self.to_client.extend_from_slice(bytes);
                for stream in self.answers.look(bytes) {
                    self.requests.answered(stream);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Writes what can be written at once.
    fn write(&mut self) -> Result<(), End> {
        write(&mut self.client, &mut self.to_client)?;
        if self.is_ending {
            return if self.to_client.is_empty() { Err(End::Closed) } else { Ok(()) };
        }
        // A side that takes no more may still have something to say.
        if write(&mut self.server, &mut self.to_server).is_err() {
            self.to_server.clear();
        }
        Ok(())
    }
}

/// What there is to read at once: nothing at all is the end.
fn read<'a>(from: &mut UnixStream, bytes: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    match from.read(bytes) {
        Ok(length) => Ok(bytes.get(..length)),
        Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(err) => Err(err),
    }
}

fn write(to: &mut UnixStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(written) => drop(bytes.drain(..written)),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

fn is_gone(side: &UnixStream) -> bool {
    let mut file = [PollFd::new(side.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut file, PollTimeout::ZERO).is_err()
        || file.iter().any(|file| file.revents().is_none_or(|events| events.intersects(gone)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_at_one_connection_ends_that_one_alone() {
        let pair = || UnixStream::pair().unwrap();
        let ((told, _keep), now) = (pair(), Instant::now());
        let inner = Inner(OwnedFd::from(pair().0));
        let mut relay = Relay {
            inner,
            listener: None,
            told,
            open: Arc::default(),
            all: BTreeMap::new(),
            next: 2,
            warned: Seldom::default(),
        };
        let others: Vec<_> = (0..2)
            .map(|id| {
                let (client, server) = (pair(), pair());
                relay.all.insert(id, Connection::new(client.0, server.0, now));
                (client.1, server.1)
            })
            .collect();
        relay.step(0, |_| panic!("a fault"));
        assert_eq!(relay.all.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!((&others[0].0).read(&mut [0]).unwrap(), 0, "its caller sees the end");
    }
}
