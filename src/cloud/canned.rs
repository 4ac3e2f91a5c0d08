//! A server for tests that answers with prepared bytes, breaks off or falls silent, and remembers what it was asked.
//!
//! Owns no HTTP knowledge beyond finding the end of a request: what it sends is up to the test, also when it is wrong.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::cloud::Cloud;
use crate::cloud::http::{HttpBudgets, Route};
use crate::cloud::rate_limit::RateLimit;
use crate::cloud::request::BaseUrl;
use crate::cloud::token::{Secret, Token};

pub(super) const TOKEN: &str = "dop_v1_not-to-be-seen";

/// What to do with the next request.
#[derive(Debug, Clone)]
pub(super) enum Turn {
    /// Send these bytes and keep the connection.
    Send(Vec<u8>),
    /// Send these bytes and close the connection.
    SendAndClose(Vec<u8>),
    /// Send these bytes after a while and keep the connection.
    SendLate(Duration, Vec<u8>),
    /// Close it without a word.
    Drop,
    /// Say nothing for so long.
    Hang(Duration),
    /// Send the head and then zeros until the other side has had enough.
    Endless(Vec<u8>),
}

impl Turn {
    /// What it sends.
    pub(super) fn bytes(self) -> Vec<u8> {
        match self {
            Turn::Send(bytes) | Turn::SendAndClose(bytes) | Turn::SendLate(_, bytes) | Turn::Endless(bytes) => bytes,
            Turn::Drop | Turn::Hang(_) => Vec::new(),
        }
    }
}

/// One request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: String,
    pub(super) body: String,
}

pub(super) struct Canned {
    pub(super) url: String,
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    turns: Mutex<VecDeque<Turn>>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    is_over: AtomicBool,
}

/// A whole reply with a JSON body and extra header lines (each with its line end).
pub(super) fn reply(status: u16, headers: &str, body: &str) -> Turn {
    let head =
        format!("HTTP/1.1 {status} Text\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
    Turn::Send(format!("{head}{headers}\r\n{body}").into_bytes())
}

impl Canned {
    pub(super) fn start(turns: impl IntoIterator<Item = Turn>) -> Canned {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { turns: Mutex::new(turns.into_iter().collect()), ..Shared::default() });
        let of_server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if of_server.is_over.load(Ordering::SeqCst) {
                    return;
                }
                of_server.connections.fetch_add(1, Ordering::SeqCst);
                let of_connection = Arc::clone(&of_server);
                thread::spawn(move || of_connection.serve(&stream.unwrap()));
            }
        });
        Canned { url: format!("http://127.0.0.1:{port}"), port, shared }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// A client of this server whose requests may take a second.
    pub(super) fn cloud(&self) -> Cloud {
        cloud_at(&self.url)
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

pub(super) fn cloud_at(url: &str) -> Cloud {
    cloud_with(url, Token::fixed(Secret::parse(TOKEN).unwrap(), "--token"))
}

pub(super) fn cloud_with(url: &str, token: Token) -> Cloud {
    let second = Duration::from_secs(1);
    let budgets = HttpBudgets { connect: second, total: second, rate_limit: second };
    Cloud::new(BaseUrl::parse(url).unwrap(), Route::default(), token, Arc::new(RateLimit::new(0.0)), budgets)
}

impl Shared {
    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(seen) = read_request(&mut reader) {
            self.seen.lock().unwrap().push(seen);
            let turn = self.turns.lock().unwrap().pop_front();
            let stays = match turn.unwrap_or_else(|| reply(599, "", "the test prepared no such reply")) {
                Turn::Send(bytes) => (&mut &*stream).write_all(&bytes).is_ok(),
                Turn::SendAndClose(bytes) => (&mut &*stream).write_all(&bytes).is_err(),
                Turn::SendLate(time, bytes) => {
                    thread::sleep(time);
                    (&mut &*stream).write_all(&bytes).is_ok()
                }
                Turn::Drop => false,
                Turn::Hang(time) => {
                    thread::sleep(time);
                    false
                }
                Turn::Endless(head) => {
                    let mut stream = stream;
                    stream.write_all(&head).unwrap();
                    while stream.write_all(&[b'0'; 65536]).is_ok() {}
                    false
                }
            };
            if !stays {
                break;
            }
        }
        drop(stream.shutdown(Shutdown::Both));
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut headers = String::new();
    loop {
        let start = headers.len();
        reader.read_line(&mut headers).ok().filter(|n| *n > 0)?;
        if &headers[start..] == "\r\n" {
            break;
        }
    }
    let headers = headers.to_lowercase();
    let length = headers.lines().find_map(|h| h.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { line: line.trim_end().to_owned(), headers, body: String::from_utf8(body).unwrap() })
}
