//! Whether the way to the API leads through a proxy, and through which one.
//!
//! Owns the reading of `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, as Go's programs read them, and so the official driver. The
//! HTTP library reads them as well, but takes `HTTP_PROXY` for an `https` address too and drops what it cannot read.
//!
//! Source: package golang.org/x/net/http/httpproxy.

use std::fmt;
use std::net::IpAddr;

use ureq::http::Uri;

use crate::cloud::request::{BaseUrl, Origin};

/// A variable of the environment that is set and not empty.
#[derive(Clone, PartialEq, Eq)]
struct Variable {
    name: &'static str,
    value: String,
}

/// What the environment says of proxies.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyVariables {
    https: Option<Variable>,
    http: Option<Variable>,
    no_proxy: Option<Variable>,
}

impl fmt::Debug for ProxyVariables {
    /// Without the values, in which passwords may be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [&self.https, &self.http, &self.no_proxy].into_iter().flatten().map(|variable| variable.name);
        f.debug_list().entries(names).finish()
    }
}

impl ProxyVariables {
    /// Reads the variables, in capitals or, when those are not set, in small letters.
    #[must_use]
    pub fn read(get: impl Fn(&str) -> Option<String>) -> ProxyVariables {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let value = get(name)?.trim().to_owned();
                (!value.is_empty()).then_some(Variable { name, value })
            })
        };
        ProxyVariables {
            https: first(["HTTPS_PROXY", "https_proxy"]),
            http: first(["HTTP_PROXY", "http_proxy"]),
            no_proxy: first(["NO_PROXY", "no_proxy"]),
        }
    }
}

/// A proxy that every request to the API goes through, by `CONNECT`.
///
/// `Display` and `Debug` name its address and the variable that it is from, without user name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    shown: String,
    variable: &'static str,
    unreadable: Vec<String>,
    inner: ureq::Proxy,
}

impl Proxy {
    /// The proxy as the HTTP library takes it.
    pub(super) fn inner(&self) -> ureq::Proxy {
        self.inner.clone()
    }

    /// The entries of `NO_PROXY` that mean nothing.
    pub(super) fn unreadable_exceptions(&self) -> &[String] {
        &self.unreadable
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy {} ({})", self.shown, self.variable)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a variable names no proxy that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {shown:?} is not the address of a proxy: {why}")]
pub struct BadProxy {
    variable: &'static str,
    shown: String,
    why: &'static str,
}

/// Says through which proxy this API is asked: `HTTPS_PROXY` for an `https` address and `HTTP_PROXY` for an `http` one, unless
/// the address is on this machine or `NO_PROXY` names it.
///
/// # Errors
/// [`BadProxy`] when the variable that counts is malformed, or names a SOCKS proxy.
pub fn plan_proxy(variables: &ProxyVariables, api: &BaseUrl) -> Result<Option<Proxy>, BadProxy> {
    let Some(origin) = api.origin() else { return Ok(None) };
    let variable = if origin.is_https { &variables.https } else { &variables.http };
    let Some(variable) = variable else { return Ok(None) };
    if api.is_loopback() {
        return Ok(None);
    }
    let exceptions = variables.no_proxy.as_ref().map_or("", |variable| &variable.value);
    let (mut unreadable, mut is_excepted) = (Vec::new(), false);
    for entry in exceptions.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty()) {
        match Exception::parse(entry) {
            Some(exception) => is_excepted |= exception.covers(&origin),
            None => unreadable.push(entry.chars().take(100).collect()),
        }
    }
    if is_excepted { Ok(None) } else { parse_proxy(variable, unreadable).map(Some) }
}

fn parse_proxy(variable: &Variable, unreadable: Vec<String>) -> Result<Proxy, BadProxy> {
    // What is before an `@` may be a password.
    let shown = variable.value.rsplit('@').next().unwrap_or_default().chars().take(200).collect();
    let bad = |why| BadProxy { variable: variable.name, shown, why };
    let (scheme, rest) = variable.value.split_once("://").unwrap_or(("http", &variable.value));
    let scheme = scheme.to_ascii_lowercase();
    if scheme.starts_with("socks") {
        return Err(bad("SOCKS is not supported, only proxies at an http:// or https:// address"));
    }
    if scheme != "http" && scheme != "https" {
        return Err(bad("it must begin with http:// or https://, or be host:port"));
    }
    let url = format!("{scheme}://{}", rest.trim_end_matches('/'));
    let Ok(uri) = url.parse::<Uri>() else { return Err(bad("it is not a URL")) };
    let (Some(host), true) =
        (uri.host().filter(|host| !host.is_empty()), uri.path().len() <= 1 && uri.query().is_none())
    else {
        return Err(bad("it must be a host and a port, and perhaps a user and a password, nothing else"));
    };
    // A port that is no number up to 65535 is an error. It must not turn into the default port.
    let has_port = uri.authority().is_some_and(|authority| {
        let after_host =
            authority.as_str().rsplit(']').next().unwrap_or_default().rsplit('@').next().unwrap_or_default();
        after_host.contains(':')
    });
    let port = match (uri.port_u16(), has_port) {
        (Some(port), _) if port > 0 => port,
        (None, false) => {
            if scheme == "https" {
                443
            } else {
                80
            }
        }
        (Some(_) | None, true | false) => return Err(bad("its port is not a number from 1 to 65535")),
    };
    let address = format!("{scheme}://{host}:{port}");
    let Ok(inner) = ureq::Proxy::new(&url) else { return Err(bad("it is not the URL of a proxy")) };
    Ok(Proxy { shown: address, variable: variable.name, unreadable, inner })
}

/// One entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everything,
    /// `10.0.0.0/8`
    Network(IpAddr, u32),
    /// `10.0.0.1`, `10.0.0.1:443`
    Address(IpAddr, Option<u16>),
    /// `example.com`, which includes what is below it, or `.example.com` and `*.example.com`, which is only that; each may
    /// have a port.
    Domain {
        name: String,
        only_below: bool,
        port: Option<u16>,
    },
}

impl Exception {
    fn parse(entry: &str) -> Option<Exception> {
        let entry = entry.to_ascii_lowercase();
        if entry == "*" {
            return Some(Exception::Everything);
        }
        if let Some((address, bits)) = entry.split_once('/') {
            let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?);
            return (bits <= bits_of(address)).then_some(Exception::Network(address, bits));
        }
        let (host, port) = split_port(&entry)?;
        if let Ok(address) = host.parse() {
            return Some(Exception::Address(address, port));
        }
        let name = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        let (name, only_below) = name.strip_prefix('.').map_or((name, false), |name| (name, true));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let fits = !name.is_empty() && name.chars().all(is_name);
        fits.then(|| Exception::Domain { name: name.trim_end_matches('.').to_owned(), only_below, port })
    }

    fn covers(&self, origin: &Origin) -> bool {
        let address = origin.host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        let has_port = |port: &Option<u16>| port.is_none_or(|port| port == origin.port);
        match self {
            Exception::Everything => true,
            Exception::Network(network, bits) => address.is_some_and(|address| is_in(address, *network, *bits)),
            Exception::Address(one, port) => address == Some(one.to_canonical()) && has_port(port),
            Exception::Domain { name, only_below, port } => {
                let above = origin.host.strip_suffix(name.as_str());
                let fits = above.is_some_and(|above| above.ends_with('.') || (above.is_empty() && !only_below));
                fits && has_port(port)
            }
        }
    }
}

/// Parts `host:port` and `[address]:port`; an address of IPv6 without brackets has no port. Nothing for a port that is none.
fn split_port(entry: &str) -> Option<(&str, Option<u16>)> {
    if let Some((address, rest)) = entry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return if rest.is_empty() {
            Some((address, None))
        } else {
            Some((address, Some(parse_port(rest.strip_prefix(':')?)?)))
        };
    }
    match entry.split_once(':') {
        Some((host, port)) if !port.contains(':') => Some((host, Some(parse_port(port)?))),
        Some(_) | None => Some((entry, None)),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

fn bits_of(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn is_in(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let rest = bits_of(network).saturating_sub(bits);
    let prefix = |address| number(address).checked_shr(rest).unwrap_or(0);
    address.is_ipv4() == network.is_ipv4() && prefix(address) == prefix(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(variables: &[(&str, &str)], url: &str) -> Result<Option<Proxy>, BadProxy> {
        let get = |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        plan_proxy(&ProxyVariables::read(get), &BaseUrl::parse(url).unwrap())
    }

    fn shown(variables: &[(&str, &str)], url: &str) -> Option<String> {
        plan(variables, url).unwrap().map(|proxy| proxy.shown)
    }

    const API: &str = "https://api.digitalocean.com";

    #[test]
    fn the_variable_of_the_scheme_counts_and_no_other() {
        let proxy = "http://proxy:3128";
        for (name, url, is_used) in [
            ("HTTPS_PROXY", API, true),
            ("https_proxy", API, true),
            ("HTTP_PROXY", API, false),
            ("http_proxy", API, false),
            ("ALL_PROXY", API, false),
            ("HTTPS_PROXY", "http://api.example.com", false),
            ("HTTP_PROXY", "http://api.example.com", true),
            ("HTTPS_PROXY", "https://localhost:8443", false),
            ("HTTPS_PROXY", "https://127.0.0.2", false),
            ("HTTPS_PROXY", "https://[::1]", false),
        ] {
            assert_eq!(shown(&[(name, proxy)], url), is_used.then(|| proxy.to_owned()), "{name} {url}");
        }
        let both = [("HTTPS_PROXY", "http://a:1"), ("https_proxy", "http://b:1")];
        assert_eq!(shown(&both, API).unwrap(), "http://a:1");
        assert_eq!(shown(&[("HTTPS_PROXY", " "), ("https_proxy", "http://b:1")], API).unwrap(), "http://b:1");
    }

    #[test]
    fn exceptions_are_read_as_go_reads_them() {
        for (no_proxy, url, is_excepted) in [
            ("*", API, true),
            ("", API, false),
            ("digitalocean.com", API, true),
            (".digitalocean.com", API, true),
            ("*.digitalocean.com", API, true),
            ("API.DigitalOcean.COM", API, true),
            ("api.digitalocean.com.", API, true),
            (".api.digitalocean.com", API, false),
            ("ocean.com", API, false),
            ("com", API, true),
            ("api.digitalocean.com:443", API, true),
            ("api.digitalocean.com:80", API, false),
            ("digitalocean.com:443", API, true),
            ("x.example, digitalocean.com", API, true),
            ("x.example digitalocean.com", API, true),
            ("10.0.0.0/8", "https://10.1.2.3", true),
            ("10.0.0.0/8", "https://11.1.2.3", false),
            ("0.0.0.0/0", "https://11.1.2.3", true),
            ("10.0.0.0/8", API, false),
            ("fd00::/8", "https://[fd12::1]", true),
            ("fd00::/8", "https://[fe80::1]", false),
            ("::/0", "https://[fe80::1]", true),
            ("::/0", "https://10.0.0.1", false),
            ("10.1.2.3", "https://10.1.2.3:8443", true),
            ("10.1.2.3:8443", "https://10.1.2.3:8443", true),
            ("10.1.2.3:443", "https://10.1.2.3:8443", false),
            ("fd12::1", "https://[fd12::1]", true),
            ("[fd12::1]:443", "https://[fd12::1]", true),
            ("[fd12::1]:444", "https://[fd12::1]", false),
            ("[fd12::1]", "https://[fd12::1]", true),
        ] {
            let found = shown(&[("HTTPS_PROXY", "proxy:1"), ("NO_PROXY", no_proxy)], url);
            assert_eq!(found.is_none(), is_excepted, "{no_proxy:?} {url}");
        }
    }

    #[test]
    fn exceptions_that_mean_nothing_are_told() {
        let no_proxy = "10.0.0.0/33,:443,http://x,a:b,[::1,example.com,10.0.0.0/8";
        let proxy = plan(&[("HTTPS_PROXY", "proxy:1"), ("no_proxy", no_proxy)], API).unwrap().unwrap();
        assert_eq!(proxy.unreadable_exceptions(), ["10.0.0.0/33", ":443", "http://x", "a:b", "[::1"]);
    }

    #[test]
    fn an_address_of_a_proxy_is_a_url_or_a_host_and_a_port() {
        for (value, want) in [
            ("proxy", "http://proxy:80"),
            ("proxy:3128", "http://proxy:3128"),
            ("http://proxy:3128/", "http://proxy:3128"),
            ("HTTP://proxy", "http://proxy:80"),
            ("https://proxy", "https://proxy:443"),
            ("http://user:pass@proxy:3128", "http://proxy:3128"),
            ("user:pass@proxy:3128", "http://proxy:3128"),
            ("http://[fd12::1]:3128", "http://[fd12::1]:3128"),
        ] {
            assert_eq!(shown(&[("HTTPS_PROXY", value)], API).unwrap(), want, "{value}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_by_the_name_of_its_variable_and_without_its_password() {
        for value in [
            "http://",
            "http://user:s3cret@",
            "http://user:s3cret@proxy:x",
            "http://user:s3cret@proxy:0",
            "http://user:s3cret@proxy:99999",
            "http://user:s3cret@proxy/path",
            "socks5://user:s3cret@proxy:1080",
            "ftp://user:s3cret@proxy",
            "http://user:s3cret@pro xy",
            "://",
        ] {
            let message = plan(&[("https_proxy", value)], API).unwrap_err().to_string();
            assert!(message.starts_with("https_proxy: ") && !message.contains("s3cret"), "{value}: {message}");
            // Which is not asked for what goes directly.
            assert_eq!(plan(&[("https_proxy", value), ("NO_PROXY", "*")], API), Ok(None));
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        let variables =
            ProxyVariables::read(|name| (name == "HTTPS_PROXY").then(|| "http://u:s3cret@proxy".to_owned()));
        let proxy = plan_proxy(&variables, &BaseUrl::parse(API).unwrap()).unwrap();
        let printed = format!("{variables:?} {proxy:?} {}", proxy.as_ref().unwrap());
        assert!(!printed.contains("s3cret"), "{printed}");
    }
}
