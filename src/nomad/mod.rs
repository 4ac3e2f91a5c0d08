//! What Nomad knows of volumes: its registrations, its claims and its nodes.
//!
//! Owns asking Nomad's API, as a person's `nomad` command does and by the same variables. It only reads, and only the
//! two commands for people ask: the plugin itself never does.

mod server_name;
mod unix;

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::DefaultConnector;

use crate::nomad::server_name::{Named, OneAddress};
use crate::nomad::unix::UnixConnector;

/// How long one answer may take.
const BUDGET: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const MAX_REPLY: u64 = 64 * 1024 * 1024;
/// How much of a refusal is shown, in characters.
const SHOWN: usize = 200;
/// The socket of a task's own API, in its directory of secrets. Source: `api_hook.go` in Nomad.
const TASK_SOCKET: &str = "api.sock";

/// Nomad's variables, as its own command reads them. Source: `DefaultConfig` in Nomad's `api/api.go`;
/// `client/taskenv/env.go`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NomadVariables {
    address: Option<String>,
    token: Option<Redacted>,
    namespace: Option<String>,
    region: Option<String>,
    ca_file: Option<PathBuf>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    ca_directory: Option<PathBuf>,
    server_name: Option<String>,
    http_auth: Option<Redacted>,
    is_unverified: bool,
}

/// A token or a password that is never printed.
#[derive(Clone, PartialEq, Eq)]
struct Redacted(String);

impl std::fmt::Debug for Redacted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(not printed)")
    }
}

impl NomadVariables {
    /// Reads the variables. Without `NOMAD_ADDR` a task's own socket is taken, `NOMAD_UNIX_ADDR` or `api.sock` in
    /// `NOMAD_SECRETS_DIR`, if there is a token: every task has the socket, and Nomad answers there to a token only.
    #[must_use]
    pub fn read(get: impl Fn(&str) -> Option<String>) -> NomadVariables {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let in_secrets = |dir: String| format!("unix://{}", Path::new(&dir).join(TASK_SOCKET).display());
        let of_task = || get("NOMAD_UNIX_ADDR").or_else(|| get("NOMAD_SECRETS_DIR").map(in_secrets));
        NomadVariables {
            address: get("NOMAD_ADDR").or_else(|| get("NOMAD_TOKEN").and_then(|_| of_task())),
            token: get("NOMAD_TOKEN").map(Redacted),
            // In a task Nomad sets its job's own, which nobody chose to look at.
            namespace: get("NOMAD_NAMESPACE").filter(|_| get("NOMAD_ALLOC_ID").is_none()),
            region: get("NOMAD_REGION"),
            ca_file: get("NOMAD_CACERT").map(PathBuf::from),
            client_cert: get("NOMAD_CLIENT_CERT").map(PathBuf::from),
            client_key: get("NOMAD_CLIENT_KEY").map(PathBuf::from),
            ca_directory: get("NOMAD_CAPATH").map(PathBuf::from),
            server_name: get("NOMAD_TLS_SERVER_NAME"),
            http_auth: get("NOMAD_HTTP_AUTH").map(Redacted),
            is_unverified: get("NOMAD_SKIP_VERIFY")
                .is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True")),
        }
    }
}

/// Why Nomad has not said what it was asked, in a line that names the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct NomadError {
    what: String,
    status: Option<u16>,
}

/// Nomad's API.
#[derive(Debug)]
pub struct Nomad {
    agent: Agent,
    base: String,
    shown: String,
    token: Option<Redacted>,
    /// The whole value of the header `authorization`.
    authorization: Option<Redacted>,
    /// The host of `NOMAD_ADDR`, where the certificate is for another name.
    host: Option<String>,
    namespace: String,
    region: Option<String>,
}

/// A volume that is registered in Nomad.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Registered {
    /// Its id in Nomad.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its namespace.
    pub namespace: String,
    /// DigitalOcean's id.
    #[serde(rename = "ExternalID")]
    pub external_id: String,
    /// The plugin that serves it.
    #[serde(rename = "PluginID")]
    pub plugin_id: String,
    /// The CSI name of that plugin, where one is known.
    pub provider: String,
    /// Who uses it or is about to.
    #[serde(rename = "Allocations", deserialize_with = "null_is_empty")]
    pub claims: Vec<ClaimingAllocation>,
}

/// An allocation that claims a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ClaimingAllocation {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// The node it is on.
    #[serde(rename = "NodeID")]
    pub node: String,
    /// Its job.
    #[serde(rename = "JobID")]
    pub job: String,
    /// How it is: `pending`, `running`, `complete`, `failed`, `lost`, `unknown`.
    pub client_status: String,
}

/// A node of Nomad.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NomadNode {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// How it is: `ready`, `down`, `disconnected`, `initializing`.
    pub status: String,
}

/// What Nomad says of a plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Plugin {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// How many controllers are healthy, and how many there should be.
    pub controllers_healthy: u64,
    /// How many there should be.
    pub controllers_expected: u64,
    /// How many nodes are healthy.
    pub nodes_healthy: u64,
    /// How many there should be.
    pub nodes_expected: u64,
    /// By the id of each of Nomad's nodes, what its node plugin says.
    #[serde(deserialize_with = "null_is_empty")]
    pub nodes: std::collections::BTreeMap<String, PluginOnNode>,
}

/// A node plugin, as Nomad has fingerprinted it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PluginOnNode {
    /// Whether it answers.
    pub healthy: bool,
    /// What NodeGetInfo has said.
    pub node_info: Option<NodeInfo>,
}

/// What NodeGetInfo has said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NodeInfo {
    /// The CSI node id: the droplet's.
    #[serde(rename = "ID")]
    pub id: String,
}

/// A token of Nomad, as far as its rights are concerned.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct OwnToken {
    #[serde(rename = "Type")]
    kind: String,
}

/// Go writes an empty list or map as null.
fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

impl Nomad {
    /// Prepares the way to Nomad; `None`: no variable says where it is. It asks nothing.
    ///
    /// # Errors
    /// One line: a file of certificates cannot be used.
    pub fn new(variables: &NomadVariables) -> Result<Option<Nomad>, String> {
        let Some(address) = &variables.address else { return Ok(None) };
        if !["http://", "https://", "unix://"].iter().any(|scheme| address.starts_with(scheme)) {
            return Err(format!(
                "NOMAD_ADDR: {address:?} must begin with http://, https:// or unix://, as in http://127.0.0.1:4646"
            ));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(BUDGET))
            .proxy(None)
            .tls_config(tls(variables)?)
            .build();
        let url = address.trim_end_matches('/').to_owned();
        let named = variables.server_name.as_deref().map(|name| Named::parse(&url, name)).transpose()?.flatten();
        let (agent, base, host) = match (address.strip_prefix("unix://"), named) {
            (Some(socket), _) => {
                let connector = UnixConnector { socket: socket.into() };
                let agent = Agent::with_parts(config, connector, DefaultResolver::default());
                (agent, "http://127.0.0.1".to_owned(), None)
            }
            (None, Some(Named { url, host, address })) => {
                let resolver = OneAddress { address, inner: DefaultResolver::default() };
                (Agent::with_parts(config, DefaultConnector::default(), resolver), url, Some(host))
            }
            (None, None) => (Agent::new_with_config(config), url, None),
        };
        let namespace = variables.namespace.clone().unwrap_or_else(|| "*".to_owned());
        let (token, region) = (variables.token.clone(), variables.region.clone());
        let authorization = variables.http_auth.as_ref().map(basic);
        Ok(Some(Nomad { agent, base, shown: address.clone(), token, authorization, host, namespace, region }))
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.shown
    }

    /// The CSI volumes of all namespaces that the token may see, or of `NOMAD_NAMESPACE`, that are wanted, each with its claims.
    ///
    /// Source: Nomad's API, "List Volumes" and "Read Volume"; only the latter tells of claims.
    ///
    /// # Errors
    /// [`NomadError`].
    pub fn volumes(&self, is_wanted: impl Fn(&Registered) -> bool) -> Result<Vec<Registered>, NomadError> {
        let stubs: Vec<Registered> =
            self.get(&format!("/v1/volumes?type=csi&namespace={}", encode(&self.namespace)))?;
        let mut volumes = Vec::new();
        for stub in stubs.into_iter().filter(is_wanted) {
            let path = format!("/v1/volume/csi/{}?namespace={}", encode(&stub.id), encode(&stub.namespace));
            match self.get::<Registered>(&path) {
                Ok(volume) => volumes.push(volume),
                // It was deregistered between the two.
                Err(err) if err.status == Some(404) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(volumes)
    }

    /// Its nodes.
    ///
    /// # Errors
    /// [`NomadError`].
    pub fn nodes(&self) -> Result<Vec<NomadNode>, NomadError> {
        self.get("/v1/nodes")
    }

    /// A plugin; `None`: Nomad knows none of that id.
    ///
    /// # Errors
    /// [`NomadError`].
    pub fn plugin(&self, id: &str) -> Result<Option<Plugin>, NomadError> {
        match self.get(&format!("/v1/plugin/csi/{}", encode(id))) {
            Ok(plugin) => Ok(Some(plugin)),
            Err(err) if err.status == Some(404) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Whether the token sees all claims of all namespaces: it is one for management, or Nomad has no access control.
    #[must_use]
    pub fn sees_all(&self) -> bool {
        if self.namespace != "*" {
            return false;
        }
        match self.get::<OwnToken>("/v1/acl/token/self") {
            Ok(token) => token.kind == "management",
            Err(err) => err.what.contains("ACL support disabled"),
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, NomadError> {
        let url = format!("{}{path}", self.base);
        let url = match &self.region {
            Some(region) => format!("{url}{}region={}", if path.contains('?') { '&' } else { '?' }, encode(region)),
            None => url,
        };
        let mut request = self.agent.get(&url);
        if let Some(token) = &self.token {
            request = request.header("x-nomad-token", &token.0);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", &authorization.0);
        }
        if let Some(host) = &self.host {
            request = request.header("host", host);
        }
        let failed = |why: String, status| NomadError { what: format!("Nomad at {}: {why}", self.shown), status };
        let mut reply = request.call().map_err(|err| failed(unreached(&self.shown, &err), None))?;
        let status = reply.status().as_u16();
        let body = reply.body_mut().with_config().limit(MAX_REPLY).read_to_string();
        let body = body.map_err(|err| failed(err.to_string(), Some(status)))?;
        if status != 200 {
            let text: String = body.trim().chars().take(SHOWN).collect();
            return Err(failed(format!("GET {path} answered {status}: {text}{}", hint(status, &text)), Some(status)));
        }
        serde_json::from_str(&body)
            .map_err(|err| failed(format!("GET {path} answered what is not understood: {err}"), None))
    }
}

/// Why there was no answer, and what to look at. What rustls says of a certificate reaches us as text.
fn unreached(address: &str, err: &ureq::Error) -> String {
    let text = err.to_string();
    let advice = if text.contains("certificate") {
        "see NOMAD_CACERT or NOMAD_CAPATH, and NOMAD_TLS_SERVER_NAME for a certificate of another name"
    } else if address.starts_with("https://") {
        "see whether NOMAD_ADDR is right, and begins with http:// where Nomad does not speak TLS"
    } else {
        "see whether NOMAD_ADDR is right and can be reached from here"
    };
    format!("{text}; {advice}")
}

/// What to look at after a refusal. Source: Nomad's `ErrPermissionDenied`, 403, and `ErrTokenNotFound`, 403; its API's reference,
/// "Volumes", "Nodes" and "ACL", for what takes which policy; Go's `net/http` for the last.
fn hint(status: u16, text: &str) -> &'static str {
    match status {
        401 => "; is NOMAD_ADDR the address of Nomad, and is NOMAD_HTTP_AUTH right?",
        403 if text.contains("token not found") => "; NOMAD_TOKEN is wrong or has expired",
        403 => "; NOMAD_TOKEN takes csi-list-volume and csi-read-volume in each namespace, node:read and plugin:read",
        400 if text.contains("HTTPS server") => "; NOMAD_ADDR must begin with https://",
        _ => "",
    }
}

/// A text as a part of a path or of a query.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~*".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The header of a user and a password. Without a colon it is a user without a password, as for Nomad's own command.
fn basic(auth: &Redacted) -> Redacted {
    let colon = if auth.0.contains(':') { "" } else { ":" };
    Redacted(format!("Basic {}", BASE64_STANDARD.encode(format!("{}{colon}", auth.0))))
}

fn tls(variables: &NomadVariables) -> Result<TlsConfig, String> {
    let mut tls = TlsConfig::builder().disable_verification(variables.is_unverified);
    // The file goes before the directory. Source: `LoadCACerts` in hashicorp/go-rootcerts.
    if let Some(path) = &variables.ca_file {
        tls = tls.root_certs(RootCerts::new_with_certs(&certificates("NOMAD_CACERT", path)?));
    } else if let Some(directory) = &variables.ca_directory {
        tls = tls.root_certs(RootCerts::new_with_certs(&certificates_in(directory)?));
    }
    if let (Some(cert), Some(key)) = (&variables.client_cert, &variables.client_key) {
        let chain = certificates("NOMAD_CLIENT_CERT", cert)?;
        tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, private_key(key)?)));
    }
    Ok(tls.build())
}

fn certificates(variable: &str, path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let text = std::fs::read(path).map_err(|err| format!("{variable} {}: {err}", path.display()))?;
    let found: Vec<Certificate<'static>> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            Ok(_) | Err(_) => None,
        })
        .collect();
    if found.is_empty() {
        return Err(format!("{variable} {}: it has no certificate in PEM", path.display()));
    }
    Ok(found)
}

/// The certificates of all files in a directory.
fn certificates_in(directory: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let bad = |why: String| format!("NOMAD_CAPATH {}: {why}", directory.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|err| bad(err.to_string()))? {
        let path = entry.map_err(|err| bad(err.to_string()))?.path();
        // Through links: directories of certificates are full of them.
        if path.is_file() {
            found.extend(certificates("NOMAD_CAPATH", &path)?);
        }
    }
    if found.is_empty() { Err(bad("it has no certificate in PEM".to_owned())) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKey<'static>, String> {
    let text = std::fs::read(path).map_err(|err| format!("NOMAD_CLIENT_KEY {}: {err}", path.display()))?;
    PrivateKey::from_pem(&text)
        .map_err(|_| format!("NOMAD_CLIENT_KEY {}: it has no private key in PEM", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::thread::JoinHandle;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    fn read(variables: &[(&str, &str)]) -> NomadVariables {
        let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        NomadVariables::read(get)
    }

    #[test]
    fn where_nomad_is_follows_from_its_variables() {
        for (variables, want) in [
            (&[][..], None),
            (&[("NOMAD_ADDR", "")], None),
            (&[("NOMAD_ADDR", "https://n:4646"), ("NOMAD_UNIX_ADDR", "unix:///x")], Some("https://n:4646")),
            (&[("NOMAD_UNIX_ADDR", "unix:///u"), ("NOMAD_TOKEN", "t")], Some("unix:///u")),
            (&[("NOMAD_SECRETS_DIR", "/secrets"), ("NOMAD_TOKEN", "t")], Some("unix:///secrets/api.sock")),
            // Every task has them, and without a token nothing is answered there.
            (&[("NOMAD_UNIX_ADDR", "unix:///u"), ("NOMAD_SECRETS_DIR", "/secrets")], None),
        ] {
            assert_eq!(read(variables).address.as_deref(), want, "{variables:?}");
        }
    }

    #[test]
    fn a_token_and_a_password_are_never_printed() {
        let variables =
            read(&[("NOMAD_ADDR", "http://n"), ("NOMAD_TOKEN", "hidden"), ("NOMAD_HTTP_AUTH", "me:hidden")]);
        let nomad = Nomad::new(&variables).unwrap();
        assert!(!format!("{variables:?} {nomad:?}").contains("hidden"));
    }

    #[test]
    fn what_a_person_chose_is_written_so_that_it_stays_one_part() {
        assert_eq!(encode("blog[0]"), "blog%5B0%5D");
        assert_eq!(encode("a/b?c&d *"), "a%2Fb%3Fc%26d%20*");
    }

    const TLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls");

    /// A Nomad without nodes, with a certificate for `localhost`, that is asked once; gives its port and the head of the request.
    fn serve_once() -> (u16, JoinHandle<Option<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let file = |name: &str| std::fs::read(Path::new(TLS).join(name)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let chain = vec![CertificateDer::from_pem_slice(&file("server.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&file("server.key")).unwrap();
        let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
        let server = std::thread::spawn(move || {
            let connection = ServerConnection::new(Arc::new(config)).unwrap();
            let mut reader = BufReader::new(StreamOwned::new(connection, listener.accept().unwrap().0));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).ok().filter(|length| *length > 0)?;
            }
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]").unwrap();
            reader.get_mut().flush().unwrap();
            Some(head.to_lowercase())
        });
        (port, server)
    }

    #[test]
    fn the_certificates_name_its_authorities_and_a_password_are_taken_from_their_variables() {
        let authority = format!("{TLS}/authority.pem");
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(&authority, directory.path().join("one.pem")).unwrap();
        let directory = directory.path().display().to_string();
        let name = ("NOMAD_TLS_SERVER_NAME", "localhost");
        for (variables, is_trusted) in [
            (vec![("NOMAD_CACERT", authority.as_str()), name], true),
            (vec![("NOMAD_CAPATH", directory.as_str()), name], true),
            (vec![("NOMAD_CAPATH", directory.as_str())], false),
            (vec![name], false),
            (vec![("NOMAD_CAPATH", directory.as_str()), ("NOMAD_TLS_SERVER_NAME", "elsewhere")], false),
        ] {
            let (port, server) = serve_once();
            let address = format!("https://127.0.0.1:{port}");
            let all = [variables.clone(), vec![("NOMAD_ADDR", &address), ("NOMAD_HTTP_AUTH", "me:secret")]].concat();
            let nomad = Nomad::new(&read(&all)).unwrap().unwrap();
            let nodes = nomad.nodes();
            assert_eq!(nodes.is_ok(), is_trusted, "{variables:?}: {nodes:?}");
            assert!(nodes.err().is_none_or(|err| err.to_string().contains("see NOMAD_CACERT")), "{variables:?}");
            let head = server.join().unwrap();
            assert_eq!(head.is_some(), is_trusted, "{variables:?}");
            if let Some(head) = head {
                assert!(head.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{head}");
                assert!(head.contains("authorization: basic bwu6c2vjcmv0"), "{head}");
            }
        }
        let odd = read(&[("NOMAD_ADDR", "https://n"), ("NOMAD_CAPATH", "/nowhere")]);
        assert!(Nomad::new(&odd).unwrap_err().starts_with("NOMAD_CAPATH /nowhere: "));
    }
}
