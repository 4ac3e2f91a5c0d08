//! A small HTTP server for what operators and their programs ask: one request a connection, and a deadline for all of it.
//!
//! Owns the listening socket, its threads and their number. A connection has one answer and is closed, so no client can hold
//! one for longer than the deadlines below; and when all places are taken, the client that has said the least for longest
//! makes room for the next. What is answered is the caller's.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, error, warn};

use crate::backoff::Seldom;

/// In which the whole head of a request must have come, from the moment of the connection.
const READ_BUDGET: Duration = Duration::from_secs(3);
/// In which the whole answer must have been taken.
const WRITE_BUDGET: Duration = Duration::from_secs(5);
/// How long the client may take to close its side, so that it reads the answer before it hears of the end.
const LINGER: Duration = Duration::from_millis(300);
/// How much of what it still sends meanwhile is read, and not looked at.
const MAX_REST: usize = 64 << 10;
/// Most bytes of a request's head; those of browsers have one or two thousand.
const MAX_HEAD: usize = 8 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Most connections at once. Each has a thread with a small stack.
const MAX_CONNECTIONS: usize = 64;
const STACK: usize = 256 << 10;
/// The pause after the system has refused a connection, as it does when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The value of `Content-Type`.
    pub content_type: &'static str,
    /// The content.
    pub body: String,
}

impl Answer {
    /// An answer in plain text.
    #[must_use]
    pub fn text(status: u16, body: impl Into<String>) -> Answer {
        Answer { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// Gives the answer to `GET` of a path, which comes without its query.
type Handler = dyn Fn(&str) -> Answer + Send + Sync;

/// Listens on an address and answers from then on; gives the address, whose port the system may have chosen.
///
/// # Errors
/// The system's: the address is taken or is not this machine's, or there is no thread.
pub fn serve(address: SocketAddr, handler: Box<Handler>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let bound = listener.local_addr()?;
    let connections = Arc::new(Connections { handler, open: Mutex::new(Open::default()) });
    thread::Builder::new().name("debug".to_owned()).stack_size(STACK).spawn(move || accept(&listener, &connections))?;
    Ok(bound)
}

fn accept(listener: &TcpListener, connections: &Arc<Connections>) {
    let mut told = Seldom::default();
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => connections.start(stream),
            Err(err) => {
                // Without a free file this goes on for as long as that is so.
                if told.is_due(Instant::now()) {
                    warn!("--debug-addr: cannot accept a connection: {err}");
                }
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// All connections, and what answers them.
struct Connections {
    handler: Box<Handler>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// The oldest first.
    connections: Vec<Connection>,
}

struct Connection {
    number: u64,
    stream: Arc<TcpStream>,
    /// Its answer is being made: it waits for us, not we for it.
    is_being_answered: bool,
}

impl Open {
    /// Makes room for one more by closing the oldest connection whose client we wait for; without one there is no room.
    fn make_room(&mut self) -> bool {
        if self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let Some(oldest) = self.connections.iter().position(|connection| !connection.is_being_answered) else {
            return false;
        };
        // Its thread sees the end of the stream and ends. It may be closed already.
        drop(self.connections.remove(oldest).stream.shutdown(Shutdown::Both));
        true
    }
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>, stream: TcpStream) {
        let stream = Arc::new(stream);
        let mut open = self.open();
        if !open.make_room() {
            debug!("--debug-addr: {MAX_CONNECTIONS} requests are being answered, a connection is refused");
            return;
        }
        let number = open.next;
        open.next = number.wrapping_add(1);
        open.connections.push(Connection { number, stream: Arc::clone(&stream), is_being_answered: false });
        drop(open);
        let own = Arc::clone(self);
        let work = move || {
            if let Err(err) = own.converse(&stream, number) {
                debug!("--debug-addr: a client went away: {err}");
            }
            own.forget(number);
        };
        if let Err(err) = thread::Builder::new().name("debug-client".to_owned()).stack_size(STACK).spawn(work) {
            warn!("--debug-addr: cannot start a thread for a client: {err}");
            self.forget(number);
        }
    }

    fn forget(&self, number: u64) {
        self.open().connections.retain(|connection| connection.number != number);
    }

    fn mark(&self, number: u64, is_being_answered: bool) {
        let mut open = self.open();
        if let Some(connection) = open.connections.iter_mut().find(|connection| connection.number == number) {
            connection.is_being_answered = is_being_answered;
        }
    }

    /// Reads one request and answers it.
    fn converse(&self, stream: &TcpStream, number: u64) -> io::Result<()> {
        let (answer, with_body) = match read_request(stream, Instant::now() + READ_BUDGET)? {
            Asked::Path { path, with_body } => {
                self.mark(number, true);
                let answer = self.answer(&path);
                self.mark(number, false);
                (answer, with_body)
            }
            Asked::Wrong(answer) => (answer, true),
            Asked::Nothing => return Ok(()),
        };
        write_all(stream, &encode(&answer, with_body), Instant::now() + WRITE_BUDGET)?;
        stream.shutdown(Shutdown::Write)?;
        drain(stream, Instant::now() + LINGER)
    }

    fn answer(&self, path: &str) -> Answer {
        catch_unwind(AssertUnwindSafe(|| (self.handler)(path))).unwrap_or_else(|_| {
            error!("--debug-addr: the answer to {path:?} panicked");
            Answer::text(500, "this is a bug, see the log\n")
        })
    }
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Path {
        path: String,
        /// Not for `HEAD`.
        with_body: bool,
    },
    /// Nothing that could be answered with what it asks for.
    Wrong(Answer),
    /// The client left before it had asked.
    Nothing,
}

fn read_request(stream: &TcpStream, until: Instant) -> io::Result<Asked> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let Some(read) = read_some(stream, &mut buffer, until)? else {
            return Ok(Asked::Wrong(Answer::text(408, "the request did not come in time\n")));
        };
        if read.is_empty() {
            return Ok(Asked::Nothing);
        }
        head.extend_from_slice(read);
        if let Some(asked) = parse_head(&head) {
            return Ok(asked);
        }
        if head.len() > MAX_HEAD {
            return Ok(Asked::Wrong(Answer::text(431, "the head of the request is too long\n")));
        }
    }
}

/// Reads what there is; nothing at all is the end, and `None` that the time is over.
fn read_some<'b>(mut stream: &TcpStream, buffer: &'b mut [u8], until: Instant) -> io::Result<Option<&'b [u8]>> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(length) => return Ok(buffer.get(..length)),
            Err(err) if is_to_be_repeated(&err) => {}
            Err(err) => return Err(err),
        }
    }
}

fn write_all(mut stream: &TcpStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(err) if is_to_be_repeated(&err) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// A time-out is one too: the loops look at the clock themselves.
fn is_to_be_repeated(err: &io::Error) -> bool {
    err.kind() == ErrorKind::Interrupted || err.kind() == ErrorKind::WouldBlock || err.kind() == ErrorKind::TimedOut
}

/// Closing with unread bytes would make the kernel throw away the answer with a reset.
fn drain(stream: &TcpStream, until: Instant) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut room = MAX_REST;
    while let Some(read) = read_some(stream, &mut buffer, until)?.filter(|read| !read.is_empty()) {
        match room.checked_sub(read.len()) {
            Some(left) => room = left,
            None => break,
        }
    }
    Ok(())
}

/// What a request asks for; `None` while its head is not whole. A body is of no interest.
fn parse_head(bytes: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let with_body = match request.method {
                Some("GET") => true,
                Some("HEAD") => false,
                Some(_) | None => return Some(Asked::Wrong(Answer::text(405, "only GET and HEAD are answered\n"))),
            };
            let path = path_of(request.path.unwrap_or_default());
            Some(path.map_or_else(
                || Asked::Wrong(Answer::text(400, "the request names no path\n")),
                |path| Asked::Path { path: path.to_owned(), with_body },
            ))
        }
        Err(httparse::Error::TooManyHeaders) => Some(Asked::Wrong(Answer::text(431, "too many headers\n"))),
        Err(_) => Some(Asked::Wrong(Answer::text(400, "this is no HTTP request\n"))),
    }
}

/// The path of a request's target, without its query. Source: RFC 9112, section 3.2: a path, or a whole URL as proxies get it.
fn path_of(target: &str) -> Option<&str> {
    let from_path = match target.split_once("://") {
        Some(("http" | "https", rest)) => rest.find('/').map_or("/", |at| rest.get(at..).unwrap_or("/")),
        Some(_) | None => target,
    };
    from_path.split(['?', '#']).next().filter(|path| path.starts_with('/'))
}

/// The bytes of an answer. No script is ever run from it, and nobody keeps it.
fn encode(answer: &Answer, with_body: bool) -> Vec<u8> {
    let mut text = String::new();
    let length = answer.body.len();
    // Writing to a string cannot fail.
    let _written = write!(
        text,
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {length}\r\nConnection: close\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'\r\n",
        answer.status,
        reason(answer.status),
        answer.content_type
    );
    if answer.status == 405 {
        text.push_str("Allow: GET, HEAD\r\n");
    }
    text.push_str("\r\n");
    if with_body {
        text.push_str(&answer.body);
    }
    text.into_bytes()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(bytes: &[u8]) -> u16 {
        match parse_head(bytes) {
            Some(Asked::Path { .. }) => 200,
            Some(Asked::Wrong(answer)) => answer.status,
            Some(Asked::Nothing) => panic!("only a stream can end"),
            None => 0,
        }
    }

    #[test]
    fn what_a_client_sends_is_a_path_or_is_refused_and_half_of_it_is_waited_for() {
        let long = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
        let table: [(&[u8], u16); 16] = [
            (b"", 0),
            (b"GET /health HTTP/1.1\r\nhost: x\r\n", 0),
            (b"GET /health HTTP/1.1\r\n\r\n", 200),
            (b"GET /health HTTP/1.0\n\n", 200),
            (b"HEAD / HTTP/1.1\r\n\r\n", 200),
            (b"GET http://a:1/health HTTP/1.1\r\n\r\n", 200),
            (b"GET http://a:1 HTTP/1.1\r\n\r\n", 200),
            (b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", 405),
            (b"CONNECT a:1 HTTP/1.1\r\n\r\n", 405),
            (b"OPTIONS * HTTP/1.1\r\n\r\n", 405),
            (b"GET a:1 HTTP/1.1\r\n\r\n", 400),
            (b"GET * HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/2.0\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01", 400),
            (b"GET /\r\n\r\n", 400),
            (long.as_bytes(), 431),
        ];
        for (bytes, want) in table {
            assert_eq!(status(bytes), want, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_path_comes_without_its_query() {
        for (target, path) in [
            ("/", Some("/")),
            ("/a?b=c", Some("/a")),
            ("http://host/a?/b", Some("/a")),
            ("https://host?x", Some("/")),
            ("/a://b", Some("/a://b")),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(path_of(target), path, "{target}");
        }
    }

    #[test]
    fn the_oldest_silent_client_makes_room_and_one_that_waits_for_us_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = |number, is_being_answered| {
            let client = TcpStream::connect(address).unwrap();
            let stream = Arc::new(listener.accept().unwrap().0);
            (client, Connection { number, stream, is_being_answered })
        };
        let (clients, connections): (Vec<_>, Vec<_>) =
            (0..64).map(|number| connect(number, number == 0 || number > 1)).unzip();
        let mut open = Open { next: 64, connections };
        assert!(open.make_room());
        assert_eq!(open.connections.len(), 63);
        assert!(open.connections.iter().all(|connection| connection.number != 1));
        let (_client, one_more) = connect(64, true);
        open.connections.push(one_more);
        assert!(!open.make_room());
        drop(clients);
    }

    #[test]
    fn fuzz_a_request_is_answered_or_waited_for_and_names_a_path() {
        let seeds: [&[u8]; 3] = [
            b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HEAD http://a/health HTTP/1.0\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        ];
        crate::fuzz::fuzz("debug-requests", &seeds, &[b"\r\n", b"://", b"a: b\r\n", b"#", b"?"], |bytes| {
            if let Some(Asked::Path { path, with_body }) = parse_head(bytes) {
                assert!(path.starts_with('/') && !path.contains(['?', '#', '\r', '\n', ' ']), "{path:?} {with_body}");
            }
        });
    }
}
