//! Callers that mean no good: what one of them may take of memory and time, so that another is still answered.
//!
//! Owns an HTTP/2 client of bytes, as a real one keeps to rules that these callers break.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use do_csi_plugin::proto::csi;
use grpcio::RpcStatusCode;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::PROGRAM;
use crate::support::client::{Refusal, option};
use crate::support::plugin::Plugin;
use crate::support::single_plugin::SinglePlugin;

/// The most that the plugin may have of memory meanwhile, in kB.
const MAX_MEMORY_KB: u64 = 40 << 10;
/// How long a new caller may wait for its answer once the plugin can be expected to be itself again.
const BACK_TO_NORMAL: Duration = Duration::from_secs(5);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// What a receiver takes before it gives more room. Source: RFC 9113, section 6.9.2.
const WINDOW: usize = 65_535;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a call; none of them is compressed.
fn headers(rpc: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let path = format!("/csi.v1.{rpc}");
    let usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path.as_str()),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];
    let mut block = Vec::new();
    for (name, value) in usual.iter().chain(more) {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A message as gRPC frames it.
fn message(is_compressed: bool, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::from(is_compressed)];
    bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

/// What a client says first: the preface, its settings, and that it has seen the server's.
fn greeting() -> Vec<u8> {
    let mut greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    greeting.extend(frame(SETTINGS, 0, 0, &[]));
    greeting.extend(frame(SETTINGS, END_STREAM, 0, &[]));
    greeting
}

/// A connection after its greeting; what comes back is read and forgotten by a thread, so that the plugin never waits.
fn connect(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&greeting()).unwrap();
    stream
}

fn forget_answers(stream: &UnixStream) {
    let mut answers = stream.try_clone().unwrap();
    let mut bytes = [0; 4096];
    thread::spawn(move || while answers.read(&mut bytes).is_ok_and(|read| read > 0) {});
}

fn start(solo: &SinglePlugin) -> Plugin {
    solo.launch(&["--mode=controller", "--region=fra1"]).start().unwrap()
}

/// Asks by a new connection, as a health check does, until it is answered; gives how long that took.
fn time_of_probe(solo: &SinglePlugin) -> Duration {
    let began = Instant::now();
    loop {
        let mut probe = solo.command();
        probe.arg("--probe").arg(format!("--endpoint=unix://{}", solo.socket().display()));
        if probe.stderr(Stdio::null()).status().unwrap().success() {
            return began.elapsed();
        }
        assert!(began.elapsed() < BACK_TO_NORMAL * 4, "a new caller gets no answer");
    }
}

fn assert_unharmed(plugin: &Plugin, solo: &SinglePlugin) {
    let took = time_of_probe(solo);
    let peak = plugin.peak_memory_kb().unwrap();
    println!("a new caller waited {took:?}; the plugin had {peak} kB at most");
    assert!(took < BACK_TO_NORMAL, "a new caller waited {took:?}");
    assert!(peak < MAX_MEMORY_KB, "it had {peak} kB");
    assert!(plugin.client.probe().unwrap().ready.value);
}

#[test]
fn a_small_message_that_unpacks_to_a_large_one_is_not_unpacked() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = start(&solo);
    let zip = Command::new("sh").args(["-c", "head -c 64M /dev/zero | gzip -c"]).output().unwrap().stdout;
    assert!(zip.len() < 128 << 10, "{}", zip.len());
    let bytes = message(true, &zip);
    let mut stream = connect(&solo.socket());
    let block = headers("Controller/CreateVolume", &[("grpc-encoding", "gzip")]);
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &block)).unwrap();
    let mut reader = stream.try_clone().unwrap();
    send_within_window(&mut stream, &mut reader, 1, &bytes, true);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = Vec::<u8>::new();
    while !answer.windows(11).any(|found| found == b"grpc-status") {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0, "no answer to the call");
        answer.extend(&bytes[..read]);
    }
    assert_unharmed(&plugin, &solo);
}

/// Sends a body in frames, no more at a time than the plugin gives room for.
fn send_within_window(to: &mut UnixStream, from: &mut UnixStream, stream: u32, body: &[u8], is_last: bool) {
    let mut room = WINDOW;
    let mut chunks = body.chunks(16_384).peekable();
    while let Some(chunk) = chunks.next() {
        while room < chunk.len() {
            room += usize::try_from(read_window_update(from, 0)).unwrap();
        }
        room -= chunk.len();
        let flags = if is_last && chunks.peek().is_none() { END_STREAM } else { 0 };
        to.write_all(&frame(DATA, flags, stream, chunk)).unwrap();
    }
}

/// Reads frames until one gives room, to this stream, and says how much.
fn read_window_update(from: &mut UnixStream, stream: u32) -> u32 {
    loop {
        let mut head = [0; 9];
        from.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        from.read_exact(&mut payload).unwrap();
        if head[3] == WINDOW_UPDATE && head[5..] == stream.to_be_bytes() {
            return u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]);
        }
    }
}

#[test]
fn the_largest_legal_request_is_read_and_one_beyond_all_measure_is_refused() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = start(&solo);
    let ask = |bytes: usize| {
        let request = csi::DeleteVolumeRequest {
            volume_id: "none".to_owned(),
            secrets: [("key".to_owned(), "x".repeat(bytes))].into(),
            ..Default::default()
        };
        plugin.client.controller.delete_volume_opt(&request, option()).map(drop).map_err(Refusal::from)
    };
    ask(128 << 10).unwrap();
    let refusal = ask(300 << 10).unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::RESOURCE_EXHAUSTED, "{refusal}");
    assert_unharmed(&plugin, &solo);
}

#[test]
fn twenty_thousand_calls_at_once_leave_room_for_another_caller() {
    for calls_of_a_connection in [20_000_u32, 100] {
        let solo = SinglePlugin::new(PROGRAM);
        let plugin = start(&solo);
        let block = headers("Controller/ListVolumes", &[]);
        let body = message(false, &[]);
        let streams: Vec<UnixStream> = (0..20_000 / calls_of_a_connection)
            .map(|_| {
                let mut stream = connect(&solo.socket());
                forget_answers(&stream);
                for call in 0..calls_of_a_connection {
                    let id = 2 * call + 1;
                    let mut bytes = frame(HEADERS, END_HEADERS, id, &block);
                    bytes.extend(frame(DATA, END_STREAM, id, &body));
                    if stream.write_all(&bytes).is_err() {
                        break;
                    }
                }
                stream
            })
            .collect();
        assert_unharmed(&plugin, &solo);
        drop(streams);
    }
}

#[test]
fn messages_of_which_only_a_half_comes_are_not_kept_without_end() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = start(&solo);
    let block = headers("Controller/CreateVolume", &[]);
    // Announced as 3 MB, of which 2 MB come.
    let mut body = message(false, &vec![b'x'; 3 << 20]);
    body.truncate(2 << 20);
    let streams: Vec<UnixStream> = (0..10)
        .map(|_| {
            let stream = connect(&solo.socket());
            forget_answers(&stream);
            for call in 0..10 {
                let id = 2 * call + 1;
                let mut to = &stream;
                let sent = to
                    .write_all(&frame(HEADERS, END_HEADERS, id, &block))
                    .and_then(|()| body.chunks(16_384).try_for_each(|chunk| to.write_all(&frame(DATA, 0, id, chunk))));
                if sent.is_err() {
                    break;
                }
            }
            stream
        })
        .collect();
    assert_unharmed(&plugin, &solo);
    drop(streams);
}

#[test]
fn calls_that_are_taken_back_as_fast_as_they_are_made_end_the_connection() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = start(&solo);
    let block = headers("Controller/ListVolumes", &[]);
    let mut stream = connect(&solo.socket());
    forget_answers(&stream);
    let is_cut = (0..20_000_u32).any(|call| {
        let id = 2 * call + 1;
        let mut bytes = frame(HEADERS, END_HEADERS, id, &block);
        bytes.extend(frame(DATA, END_STREAM, id, &message(false, &[])));
        bytes.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
        stream.write_all(&bytes).is_err()
    });
    assert!(is_cut);
    assert_unharmed(&plugin, &solo);
}

#[test]
fn two_thousand_idle_connections_leave_room_for_another_caller() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = start(&solo);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let count = 2000.min(usize::try_from(hard).unwrap() / 2);
    let idle: Vec<UnixStream> = (0..count)
        .filter_map(|_| {
            let mut stream = UnixStream::connect(solo.socket()).unwrap();
            stream.write_all(&greeting()).ok()?;
            Some(stream)
        })
        .collect();
    assert_unharmed(&plugin, &solo);
    assert!(plugin.files_and_threads().unwrap().0 < 500, "{:?}", plugin.files_and_threads());
    drop(idle);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
}
