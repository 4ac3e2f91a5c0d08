//! HTTP/1.1 on sockets: accept, parse, keep alive, deliver replies well or badly, stop cleanly.
//!
//! Owns connections and threads, one for each connection, because half of the faults are things done to connections.
//! What to answer is the [`Handler`]'s business.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::lock;

/// Larger heads and bodies than this are not meant for us.
const MAX_REQUEST: usize = 1 << 20;

/// A parsed request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, `POST`, ...
    pub method: String,
    /// The path, undecoded, without the query.
    pub path: String,
    /// The query, undecoded.
    pub query: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The body.
    pub body: Vec<u8>,
    /// The client wants the connection closed afterwards.
    pub is_last: bool,
    /// Who asks.
    pub peer: Option<IpAddr>,
}

impl Request {
    /// The first value of a query parameter, decoded, if it is not empty.
    pub fn param(&self, name: &str) -> Option<String> {
        self.pairs().find(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| percent_decode(value))
    }

    /// The undecoded parameters of the query, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }
}

/// A reply before it is put on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status code.
    pub status: u16,
    /// Headers apart from length and connection.
    pub headers: Vec<(String, String)>,
    /// The body; 204 has none.
    pub body: Vec<u8>,
}

impl Reply {
    /// A reply without headers of its own.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: vec![("content-type".to_owned(), content_type.to_owned())], body: body.into() }
    }

    /// The same with one more header.
    pub fn with_header(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

/// How a reply reaches the client, or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// As it should.
    Send(Reply),
    /// This much later.
    SendAfter(Duration, Reply),
    /// Head and half of the body, then the connection is closed.
    CutShort(Reply),
    /// The connection is closed without a word.
    Drop,
    /// Nothing is ever sent; the connection stays open until the client closes it.
    Hang,
}

/// Turns requests into deliveries. Called from many threads.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request, with all its effects.
    fn handle(&self, request: &Request) -> Delivery;
}

/// A listening server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    is_stopping: Mutex<bool>,
    stopped: Condvar,
    connections: Mutex<BTreeMap<u64, (TcpStream, JoinHandle<()>)>>,
}

impl Server {
    /// Listens and answers from now on.
    ///
    /// # Errors
    /// The address can not be bound.
    pub fn start(listen: SocketAddr, handler: Arc<dyn Handler>) -> io::Result<Server> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let acceptor = std::thread::Builder::new().name("sim-accept".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || accept_all(&listener, &shared, &handler)
        })?;
        Ok(Server { address, shared, acceptor })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection and waits for every thread.
    pub fn stop(self) {
        *lock(&self.shared.is_stopping) = true;
        self.shared.stopped.notify_all();
        // The acceptor sits in accept(); one more connection makes it look at the flag. If that fails, it is gone.
        drop(TcpStream::connect(self.address));
        self.acceptor.join().expect("the acceptor does not panic");
        self.shared.close_connections();
    }

    /// Closes every connection, also those that are being answered, and goes on listening.
    pub fn close_connections(&self) {
        self.shared.close_connections();
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>, handler: &Arc<dyn Handler>) {
    for number in 0.. {
        let accepted = listener.accept();
        if *lock(&shared.is_stopping) {
            return;
        }
        let Ok((stream, _)) = accepted else { continue };
        let Ok(twin) = stream.try_clone() else { continue };
        let mut connections = lock(&shared.connections);
        connections.retain(|_, (_, thread)| !thread.is_finished());
        let thread = std::thread::Builder::new().name(format!("sim-http-{number}")).spawn({
            let (shared, handler) = (Arc::clone(shared), Arc::clone(handler));
            move || {
                let mut stream = stream;
                // A broken connection is the client's choice, or a fault we were asked for.
                drop(serve(&mut stream, &shared, handler.as_ref()));
                // The twin kept for stopping would hold the socket open otherwise.
                drop(stream.shutdown(Shutdown::Both));
            }
        });
        if let Ok(thread) = thread {
            connections.insert(number, (twin, thread));
        }
    }
}

/// Answers the requests of one connection until one side closes it.
fn serve(stream: &mut TcpStream, shared: &Shared, handler: &dyn Handler) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::new();
    let peer = stream.peer_addr().ok().map(|address| address.ip());
    while let Some(request) = read_request(stream, &mut received)? {
        let request = Request { peer, ..request };
        match handler.handle(&request) {
            Delivery::Send(reply) => write_reply(stream, &reply, request.is_last)?,
            Delivery::SendAfter(wait, reply) => {
                if shared.is_stopped_within(wait) {
                    break;
                }
                write_reply(stream, &reply, request.is_last)?;
            }
            Delivery::CutShort(reply) => {
                let bytes = encode(&reply, true);
                stream.write_all(&bytes[..bytes.len() - reply.body.len().div_ceil(2)])?;
                break;
            }
            Delivery::Drop => break,
            Delivery::Hang => {
                io::copy(stream, &mut io::sink())?;
                break;
            }
        }
        if request.is_last {
            break;
        }
    }
    Ok(())
}

impl Shared {
    fn close_connections(&self) {
        let connections = std::mem::take(&mut *lock(&self.connections));
        for (stream, thread) in connections.into_values() {
            // The client may have closed it already.
            drop(stream.shutdown(Shutdown::Both));
            drop(thread.join());
        }
    }

    fn is_stopped_within(&self, wait: Duration) -> bool {
        let guard = lock(&self.is_stopping);
        let (guard, _) = self
            .stopped
            .wait_timeout_while(guard, wait, |is_stopping| !*is_stopping)
            .expect("nobody panics while holding this lock");
        *guard
    }
}

/// Reads one request; `received` keeps what came after it.
fn read_request(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Option<Request>> {
    loop {
        if let Some((request, head, length)) = parse_head(received)? {
            while received.len() < head + length {
                if !read_more(stream, received)? {
                    return Ok(None);
                }
            }
            let body = received[head..head + length].to_vec();
            received.drain(..head + length);
            return Ok(Some(Request { body, ..request }));
        }
        if !read_more(stream, received)? {
            return Ok(None);
        }
    }
}

fn read_more(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; 8192];
    let count = stream.read(&mut chunk)?;
    received.extend_from_slice(&chunk[..count]);
    if received.len() > MAX_REQUEST {
        return Err(invalid("the request is too large"));
    }
    Ok(count > 0)
}

/// Parses a head if it is complete: the request without its body, the head's length and the body's length.
fn parse_head(received: &[u8]) -> io::Result<Option<(Request, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let head = match parsed.parse(received) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(invalid(&error.to_string())),
    };
    let target = parsed.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        is_last: parsed.version == Some(0),
        ..Request::default()
    };
    let mut length = 0;
    for header in parsed.headers.iter() {
        let value = String::from_utf8_lossy(header.value).trim().to_owned();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => {
                length = value.parse().map_err(|_| invalid("content-length is no number"))?;
            }
            // Neither godo nor our driver sends chunks, so a client that does is a surprise worth a broken connection.
            "transfer-encoding" => return Err(invalid("chunked bodies are not supported")),
            "authorization" => request.authorization = Some(value),
            "connection" => request.is_last |= value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    Ok(Some((request, head, length)))
}

/// Decodes `%41` and `+`; anything malformed is kept as it is.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let pair = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match (first, pair.and_then(|pair| u8::from_str_radix(pair, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn write_reply(stream: &mut TcpStream, reply: &Reply, is_last: bool) -> io::Result<()> {
    stream.write_all(&encode(reply, is_last))
}

fn encode(reply: &Reply, is_last: bool) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", reply.status, reason(reply.status));
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    // 204 must not carry a length (RFC 9110, section 8.6).
    if reply.status != 204 {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    if is_last {
        head.push_str("connection: close\r\n");
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&reply.body);
    bytes
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}
