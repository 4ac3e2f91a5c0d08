//! The way to the API: proxies, authorities, and what is said when it is closed.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use grpcio::RpcStatusCode;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::PROGRAM;
use crate::support::client::Volume;
use crate::support::proxy::Proxy;
use crate::support::single_plugin::{DROPLET, SinglePlugin, run_to_end};

/// A name that nobody but the proxy knows.
const API: &str = "http://api.do.invalid";

/// A server with the certificate of an authority that exists for the tests, for the name `localhost`. It says that there are no
/// volumes.
struct Encrypted {
    port: u16,
    connections: Arc<AtomicUsize>,
}

fn encrypted() -> Encrypted {
    let file = |name: &str| std::fs::read(format!("{}/tests/fixtures/tls/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let chain = vec![CertificateDer::from_pem_slice(&file("server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(&file("server.key")).unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            thread::spawn(move || answer(StreamOwned::new(connection, stream.unwrap())));
        }
    });
    Encrypted { port, connections }
}

fn answer(stream: StreamOwned<ServerConnection, TcpStream>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).ok().filter(|length| *length > 0)?;
        }
        let body = r#"{"volumes":[],"links":{},"meta":{"total":0}}"#;
        let stream = reader.get_mut();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).ok()?;
        stream.flush().ok()?;
    }
}

#[test]
fn the_api_is_reached_through_a_proxy_that_knows_its_name() {
    let solo = SinglePlugin::new(PROGRAM);
    let proxy = Proxy::start(&solo.sim.api_url());
    let mut launch = solo.launch(&[]);
    launch.args[0] = format!("--url={API}");
    launch.command.env("HTTP_PROXY", format!("http://someone:s3cret@127.0.0.1:{}", proxy.port()));
    // Neither the metadata service nor this exception goes through it.
    launch.command.env("NO_PROXY", "other.invalid,10.0.0.0/99");
    let plugin = launch.start().unwrap();
    let volume = plugin.client.create_volume("far", 1 << 30, &Volume::mounted("", "ext4").capability).unwrap();
    assert_eq!(solo.sim.volume("far").unwrap().id, volume.volume_id);
    assert_eq!(plugin.client.node_info().unwrap().node_id, DROPLET.to_string());
    let asked = proxy.asked();
    assert!(!asked.is_empty() && asked.iter().all(|head| head.starts_with("CONNECT api.do.invalid:80 ")), "{asked:?}");
    // someone:s3cret
    assert!(asked[0].to_lowercase().contains("proxy-authorization: basic c29tzw9uztpzm2nyzxq="), "{asked:?}");
    let log = plugin.log();
    assert!(log.contains(&format!("the proxy http://127.0.0.1:{} (HTTP_PROXY)", proxy.port())), "{log}");
    assert!(log.contains("NO_PROXY: \"10.0.0.0/99\"") && !log.contains("s3cret"), "{log}");
}

#[test]
fn a_proxy_that_does_not_lead_on_is_named_in_the_error() {
    let solo = SinglePlugin::new(PROGRAM);
    let refusing = Proxy::that_refuses();
    // Where no other test listens, either.
    let nobody = TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap().to_string();
    for (address, words) in [(format!("127.0.0.1:{}", refusing.port()), "403"), (nobody, "refused")] {
        let mut launch = solo.launch(&["--call-budget=3"]);
        launch.args[0] = format!("--url={}", API.replace("http:", "https:"));
        launch.command.env("https_proxy", format!("http://user:s3cret@{address}"));
        let plugin = launch.start().unwrap();
        let refusal = plugin.client.create_volume("far", 1 << 30, &Volume::mounted("", "ext4").capability).unwrap_err();
        let proxy = format!("through the proxy http://{address} (https_proxy)");
        assert!(refusal.message.contains(&proxy) && refusal.message.contains(words), "{refusal}");
        assert!(!refusal.message.contains("s3cret") && !plugin.log().contains("s3cret"), "{refusal}");
    }
}

#[test]
fn an_api_that_is_https_goes_past_the_proxy_of_http() {
    let solo = SinglePlugin::new(PROGRAM);
    let proxy = Proxy::start(&solo.sim.api_url());
    let mut launch = solo.launch(&["--call-budget=3"]);
    launch.args[0] = format!("--url={}", API.replace("http:", "https:"));
    launch.command.env("HTTP_PROXY", format!("http://127.0.0.1:{}", proxy.port()));
    launch.command.env("ALL_PROXY", format!("http://127.0.0.1:{}", proxy.port()));
    let plugin = launch.start().unwrap();
    let refusal = plugin.client.create_volume("far", 1 << 30, &Volume::mounted("", "ext4").capability).unwrap_err();
    assert!(!refusal.message.contains("proxy"), "{refusal}");
    assert_eq!(proxy.asked(), Vec::<String>::new());
}

#[test]
fn a_proxy_or_an_authority_that_cannot_be_is_one_line_that_names_it() {
    let solo = SinglePlugin::new(PROGRAM);
    let empty = solo.path("empty.pem");
    std::fs::write(&empty, "no certificate\n").unwrap();
    for (variable, value, words) in [
        ("HTTPS_PROXY", "socks5://user:s3cret@127.0.0.1:1080", "HTTPS_PROXY: \"127.0.0.1:1080\""),
        ("https_proxy", "http://user:s3cret@127.0.0.1:x", "https_proxy: \"127.0.0.1:x\""),
        ("SSL_CERT_FILE", "/nowhere/authority.pem", "SSL_CERT_FILE (--ca-file): /nowhere/authority.pem"),
        ("SSL_CERT_FILE", empty.to_str().unwrap(), "BEGIN CERTIFICATE"),
    ] {
        let mut command = solo.command();
        command.env("DIGITALOCEAN_ACCESS_TOKEN", "t").env(variable, value).arg("--endpoint=unix:///nowhere/csi.sock");
        let output = run_to_end(command).unwrap();
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), line.lines().count()), (Some(2), 1), "{line}");
        assert!(line.contains(words) && !line.contains("s3cret"), "{line}");
    }
}

#[test]
fn an_authority_of_ones_own_is_believed_and_an_unknown_one_ends_the_call_at_once() {
    let solo = SinglePlugin::new(PROGRAM);
    let authority = format!("{}/tests/fixtures/tls/authority.pem", env!("CARGO_MANIFEST_DIR"));
    let server = encrypted();
    let url = format!("--url=https://localhost:{}", server.port);
    for is_flag in [true, false] {
        let mut launch = solo.launch(&[]);
        launch.args[0].clone_from(&url);
        if is_flag {
            launch.args.push(format!("--ca-file={authority}"));
        } else {
            launch.command.env("SSL_CERT_FILE", &authority);
        }
        let plugin = launch.start().unwrap();
        assert_eq!(plugin.client.list_volumes(0, "").unwrap().entries.len(), 0, "{}", plugin.log());
        plugin.stop().unwrap();
    }
    let before = server.connections.load(Ordering::SeqCst);
    let mut launch = solo.launch(&[]);
    launch.args[0].clone_from(&url);
    let plugin = launch.start().unwrap();
    let began = Instant::now();
    let refusal = plugin
        .client
        .controller_publish(&mut Volume::mounted("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2", "ext4"), &DROPLET.to_string());
    let refusal = refusal.unwrap_err();
    assert!(refusal.message.contains("certificate") && refusal.message.contains("--ca-file"), "{refusal}");
    assert_ne!(refusal.code, RpcStatusCode::DEADLINE_EXCEEDED, "{refusal}");
    // The whole time of a call is 100 s.
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    let handshakes = server.connections.load(Ordering::SeqCst) - before;
    // Another thread looks for what an earlier process left, and the address is tried out where the name has two.
    assert!(handshakes <= 6, "{handshakes}");
}
