//! What is answered on `--debug-addr`, and whoever is on the other side: real connections to the real program.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::PROGRAM;
use crate::sim::Fault;
use crate::support::plugin::{Launch, Plugin};
use crate::support::single_plugin::{SinglePlugin, until};
use crate::support::wait_for;

const LIMIT: Duration = Duration::from_secs(20);

/// A plugin that answers on an address, and the address.
pub struct Debugged {
    /// The plugin.
    pub plugin: Plugin,
    /// Host and port.
    pub address: String,
}

impl Debugged {
    fn start(solo: &SinglePlugin) -> Debugged {
        Debugged::launch(|flag| solo.launch(&[flag]))
    }

    /// Starts a plugin that gets no reply from the API but to health checks, once it knows its droplet.
    fn start_for_checks(solo: &SinglePlugin) -> Debugged {
        solo.sim.faults().add(Fault::unavailable().on("GET", "/v2/snapshots").always());
        let debugged = Debugged::start(solo);
        until("the droplet is known", || debugged.get("/readyz").0 == 200);
        debugged
    }

    /// Starts a plugin with one more flag.
    pub fn launch(launch: impl Fn(&str) -> Launch) -> Debugged {
        // Another process may take the port before the plugin does.
        let start = || {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let plugin = launch(&format!("--debug-addr=localhost:{}", address.port())).start().ok()?;
            Some(Debugged { plugin, address: address.to_string() })
        };
        (0..5).find_map(|_| start()).unwrap()
    }

    fn connect(&self) -> TcpStream {
        connect(&self.address)
    }

    /// Sends these bytes and gives all that comes back until the connection is closed.
    pub fn send(&self, bytes: &[u8]) -> String {
        send(&self.address, bytes)
    }

    /// The status and the content of a path.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(&self.address, path)
    }

    /// That somebody who asks properly is answered within two seconds.
    fn assert_answers(&self, what: &str) {
        let started = Instant::now();
        assert_eq!(self.get("/livez").0, 200, "{what}");
        assert!(started.elapsed() < Duration::from_secs(2), "{what}: {:?}", started.elapsed());
    }
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Sends these bytes and gives all that comes back until the connection is closed.
pub fn send(address: &str, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    stream.write_all(bytes).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    String::from_utf8(reply).unwrap()
}

/// The status and the content of a path.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let reply = send(address, format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes());
    (status(&reply), reply.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// An address of this machine that nobody listens on, for a moment at least.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// How often the API was asked for a check.
fn times_asked(solo: &SinglePlugin) -> u64 {
    solo.sim.calls().of("GET", "/v2/account")
}

fn status(reply: &str) -> u16 {
    reply.split(' ').nth(1).unwrap_or_else(|| panic!("{reply:?}")).parse().unwrap()
}

#[test]
fn health_is_whether_the_api_takes_the_token_and_comes_back_with_it() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::start_for_checks(&solo);
    solo.sim.faults().add(Fault::unavailable().on("GET", "/v2/account").always());
    for _ in 0..10 {
        let (status, body) = debugged.get("/health");
        assert_eq!(status, 500);
        assert!(body.contains("503"), "{body}");
    }
    assert!(times_asked(&solo) <= 3, "a bad answer is kept for some seconds: {}", solo.sim.calls());
    solo.sim.faults().clear();
    // Three checks in a row that fail, half a minute apart, let orchestrators restart a task.
    let is_well = wait_for(Duration::from_secs(25), || (debugged.get("/health").0 == 200).then_some(()));
    assert!(is_well.is_some());
    solo.sim.reset_calls();
    for _ in 0..10 {
        assert_eq!(debugged.get("/health").0, 200);
    }
    assert_eq!(times_asked(&solo), 0, "a good answer is kept for a while");
}

#[test]
fn health_is_good_while_the_quota_is_used_up_and_says_so() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::start_for_checks(&solo);
    solo.sim.faults().add(Fault::burst_limit(Duration::from_secs(50)).on("GET", "/v2/account").times(1));
    for _ in 0..3 {
        let (status, body) = debugged.get("/health");
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("ok, but"), "{body}");
    }
    assert_eq!(times_asked(&solo), 1);
}

#[test]
fn an_api_that_hangs_is_asked_once_for_all_checks_and_the_program_lives() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::start_for_checks(&solo);
    solo.sim.faults().add(Fault::late(Duration::from_secs(3)).on("GET", "/v2/account").always());
    thread::scope(|scope| {
        let checks: Vec<_> = (0..80).map(|_| scope.spawn(|| debugged.get("/health").0)).collect();
        until("the API is asked", || times_asked(&solo) > 0);
        debugged.assert_answers("while the API hangs");
        assert_eq!(debugged.get("/readyz").0, 200, "ready for calls that need no API");
        let outcomes: Vec<u16> = checks.into_iter().map(|check| check.join().unwrap()).collect();
        assert!(outcomes.contains(&200) && outcomes.iter().all(|status| matches!(status, 200 | 500)), "{outcomes:?}");
    });
    assert_eq!(times_asked(&solo), 1);
}

#[test]
fn every_mode_tells_that_it_lives_and_whether_it_is_ready() {
    let solo = SinglePlugin::new(PROGRAM);
    let metadata = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("--metadata-url=http://{}", metadata.local_addr().unwrap());
    drop(metadata);
    let without_metadata = |mut launch: Launch| {
        launch.args.retain(|arg| !arg.starts_with("--metadata-url"));
        launch.args.push(nobody.clone());
        launch
    };
    let controller =
        Debugged::launch(|flag| without_metadata(solo.launch(&["--mode=controller", "--region=fra1", flag])));
    for path in ["/livez", "/readyz", "/health"] {
        assert_eq!(controller.get(path), (200, "ok\n".to_owned()), "a controller needs no droplet: {path}");
    }
    drop(controller);
    let node = Debugged::launch(|flag| solo.launch_without_token(&["--mode=node", flag]));
    until("the droplet is known", || node.get("/readyz").0 == 200);
    assert_eq!(node.get("/livez").0, 200);
    assert_eq!(node.get("/health").0, 200);
    drop(node);
    let lost = Debugged::launch(|flag| without_metadata(solo.launch_without_token(&["--mode=node", flag])));
    assert_eq!(lost.get("/livez").0, 200, "living depends on nothing outside");
    for (path, want) in [("/readyz", 503), ("/health", 500)] {
        let (status, why) = lost.get(path);
        assert_eq!(status, want, "{path}: {why}");
        assert!(why.contains("which droplet this is"), "{why}");
    }
    assert_eq!(lost.get("/nothing").0, 404);
}

#[test]
fn without_a_host_only_this_machine_is_answered() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::launch(|flag| solo.launch(&[&flag.replace("localhost", "")]));
    debugged.assert_answers("on the loopback address");
    let port = debugged.address.rsplit(':').next().unwrap();
    let hex = format!(":{:04X} ", port.parse::<u16>().unwrap());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap() + &std::fs::read_to_string("/proc/net/tcp6").unwrap();
    let listening: Vec<&str> = table
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.get(3) == Some(&"0A") && words[1].ends_with(hex.trim())).then(|| words[1])
        })
        .collect();
    assert_eq!(listening, [format!("0100007F{}", hex.trim())], "127.0.0.1 and nothing else");
}

#[test]
fn what_is_no_request_is_refused_and_the_program_goes_on() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::start(&solo);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
    let table: [(&[u8], u16); 11] = [
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", 405),
        (b"POST /health HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", 405),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 405),
        (b"GET * HTTP/1.1\r\n\r\n", 400),
        (b"GET a:1 HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\0\0\0\0\0\0\0\0", 400),
        (b"GET /livez\r\n\r\n", 400),
        (long.as_bytes(), 431),
        (many.as_bytes(), 431),
    ];
    for (bytes, want) in table {
        let reply = debugged.send(bytes);
        assert_eq!(status(&reply), want, "{}: {reply}", String::from_utf8_lossy(bytes));
        assert!(reply.contains("Connection: close\r\n"), "{reply}");
    }
    let head = debugged.send(b"HEAD /livez HTTP/1.1\r\n\r\n");
    assert!(head.contains("Content-Length: 3\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert_eq!(debugged.get("http://elsewhere:1/livez?x#y").0, 200);
    debugged.assert_answers("after all of it");
    let log = debugged.plugin.log();
    assert!(!log.contains("panicked") && !log.contains("--debug-addr"), "{log}");
}

#[test]
fn clients_that_dawdle_keep_nobody_out_and_are_sent_away() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::start(&solo);
    let is_over = AtomicBool::new(false);
    let is_over = &is_over;
    thread::scope(|scope| {
        // A byte now and then, never a whole request. Each comes back when it was sent away.
        for _ in 0..100 {
            let debugged = &debugged;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let mut stream = debugged.connect();
                    for byte in b"GET /health HTTP/1.1\r\nx: ".iter().chain([b'y'; 20].iter()) {
                        if is_over.load(Ordering::Relaxed) || stream.write_all(&[*byte]).is_err() {
                            break;
                        }
                        thread::park_timeout(Duration::from_millis(200));
                    }
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            debugged.assert_answers("beside a hundred that dawdle");
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_request_that_does_not_come_whole_is_over_when_its_time_is() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::start(&solo);
    // The deadline is that of the whole request: bytes do not put it off.
    let mut dawdler = debugged.connect();
    dawdler.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let started = Instant::now();
    let mut reply = Vec::new();
    let mut buffer = [0; 1024];
    dawdler.write_all(b"GET /health HTTP/1.1\r\nx: ").unwrap();
    while started.elapsed() < LIMIT {
        // It may be closed already.
        drop(dawdler.write_all(b"y"));
        match dawdler.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => reply.extend_from_slice(&buffer[..length]),
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(err) => panic!("{err}, having read {}", String::from_utf8_lossy(&reply)),
        }
    }
    assert_eq!(status(&String::from_utf8(reply).unwrap()), 408);
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    // One that says nothing, one that has no more to say, and one that takes its answer without having ended.
    let mut silent = debugged.connect();
    let mut half = debugged.connect();
    half.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let mut closed = debugged.connect();
    closed.write_all(b"GET /livez HTTP/1.1\r\n\r\n").unwrap();
    closed.shutdown(Shutdown::Write).unwrap();
    for (what, stream, want) in
        [("silent", &mut silent, "HTTP/1.1 408"), ("half", &mut half, ""), ("closed", &mut closed, "HTTP/1.1 200")]
    {
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with(want) && reply.is_empty() == want.is_empty(), "{what}: {reply}");
    }
    // One that sends without end.
    let mut endless = debugged.connect();
    let sent = (0..10_000).take_while(|_| endless.write_all(&[b'a'; 4096]).is_ok()).count();
    assert!(sent < 10_000, "40 MB were taken");
    // One that takes nothing of what it asks for.
    let stuck: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = debugged.connect();
            stream.write_all(b"GET /livez HTTP/1.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    debugged.assert_answers("beside those that do not read");
    drop(stuck);
    let threads = format!("/proc/{}/task", debugged.plugin.pid());
    until("the threads of all of them have ended", || {
        std::fs::read_dir(&threads)
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
            .all(|name| name.trim() != "debug-client")
    });
}
