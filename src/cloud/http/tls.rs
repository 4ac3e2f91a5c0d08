//! Tests of the encrypted way to the API, against a server with a certificate of an authority that exists for them.
//!
//! Owns that server.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread::JoinHandle;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::cloud::Cloud;
use crate::cloud::canned::{TOKEN, cloud_at};
use crate::cloud::token::Secret;

const AUTHORITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls/authority.pem");
const CERTIFICATE: &[u8] = include_bytes!("../../../tests/fixtures/tls/server.pem");
const KEY: &[u8] = include_bytes!("../../../tests/fixtures/tls/server.key");

/// A server that takes one connection and answers the first request on it, by its port; ends with that request's head, or
/// with nothing when the handshake failed.
fn serve_once() -> (u16, JoinHandle<Option<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let chain = vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()];
    let config = config.with_no_client_auth().with_single_cert(chain, PrivateKeyDer::from_pem_slice(KEY).unwrap());
    let connection = ServerConnection::new(Arc::new(config.unwrap())).unwrap();
    let server = std::thread::spawn(move || answer(StreamOwned::new(connection, listener.accept().unwrap().0)));
    (port, server)
}

fn answer(stream: StreamOwned<ServerConnection, TcpStream>) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        reader.read_line(&mut head).ok().filter(|length| *length > 0)?;
    }
    let body = r#"{"account":{"status":"active"}}"#;
    write!(reader.get_mut(), "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    reader.get_mut().flush().unwrap();
    Some(head.to_lowercase())
}

/// A cloud as the product makes it, which trusts the tests' authority instead of the roots that are compiled in.
fn cloud_that_trusts_us(url: &str) -> Cloud {
    let budget = Duration::from_secs(5);
    let budgets = HttpBudgets { connect: budget, total: budget, rate_limit: budget };
    let token = Token::fixed(Secret::parse(TOKEN).unwrap(), "--token");
    let authorities = Authorities::read(Path::new(AUTHORITY)).unwrap();
    let route = Route { authorities: Some(authorities), proxy: None };
    Cloud::new(BaseUrl::parse(url).unwrap(), route, token, Arc::new(RateLimit::new(0.0)), budgets)
}

#[test]
fn a_reply_is_read_over_tls() {
    let (port, server) = serve_once();
    cloud_that_trusts_us(&format!("https://localhost:{port}")).get_account().unwrap();
    let head = server.join().unwrap().unwrap();
    assert!(head.starts_with("get /v2/account http/1.1"), "{head}");
    assert!(head.contains(&format!("authorization: bearer {TOKEN}")), "{head}");
}

#[test]
fn a_certificate_of_an_unknown_authority_or_for_another_name_gets_no_request() {
    for (cloud, host, cure) in [
        (cloud_at as fn(&str) -> Cloud, "localhost", "--ca-file"),
        (cloud_that_trusts_us as fn(&str) -> Cloud, "127.0.0.1", "--url"),
    ] {
        let (port, server) = serve_once();
        let error = cloud(&format!("https://{host}:{port}")).get_account().unwrap_err();
        assert_eq!(error.kind(), ApiErrorKind::Untrusted, "{host}: {error}");
        assert!(error.to_string().contains("certificate") && error.to_string().contains(cure), "{host}: {error}");
        assert_eq!(server.join().unwrap(), None, "{host}");
    }
}
