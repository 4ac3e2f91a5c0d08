//! A proxy as companies have them: it takes `CONNECT` and leads on, or refuses.
//!
//! Owns what it was asked. Every name leads to the same server, so that a test needs no name that resolves.

use std::io::{BufRead, BufReader, Write, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A running proxy; it ends with the test's process.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// One that leads to this server, which is `http://host:port/`.
    pub fn start(server: &str) -> Proxy {
        Proxy::leading_to(Some(server.trim_start_matches("http://").trim_end_matches('/').to_owned()))
    }

    /// One that refuses everybody.
    pub fn that_refuses() -> Proxy {
        Proxy::leading_to(None)
    }

    fn leading_to(server: Option<String>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let remembered = Arc::clone(&asked);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (server, remembered) = (server.clone(), Arc::clone(&remembered));
                thread::spawn(move || lead(client, server.as_deref(), &remembered));
            }
        });
        Proxy { port, asked }
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The heads of all requests so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nobody panicked").clone()
    }
}

fn lead(client: TcpStream, server: Option<&str>, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let is_connect = head.starts_with("CONNECT ");
    asked.lock().expect("nobody panicked").push(head);
    let Some(server) = server.filter(|_| is_connect) else {
        return (&client).write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
    };
    let server = TcpStream::connect(server)?;
    (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut back, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _bytes = copy(&mut back, &mut to_client);
        to_client.shutdown(Shutdown::Both)
    });
    let _bytes = copy(&mut reader, &mut &server);
    server.shutdown(Shutdown::Both)
}
