//! What can be asked of DigitalOcean: a base URL, a method, a path and a query, put together safely.
//!
//! Owns the making of URLs. Paths are written by the modules beside this one from checked ids only; free text goes into
//! queries and bodies, where it is encoded. It sends nothing.

use std::fmt;
use std::net::IpAddr;

use ureq::http::Uri;

use crate::cloud::rate_limit::Class;

/// Where DigitalOcean's API is: an `http` or `https` address, with or without a path before `/v2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(String);

/// Whom a base URL leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) is_https: bool,
    /// The name in small letters, or the address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

/// Why a text is no base URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the address of an API: {why}")]
pub struct BadUrl {
    text: String,
    why: &'static str,
}

impl BaseUrl {
    /// Reads a base URL; slashes at its end do not matter.
    ///
    /// # Errors
    /// [`BadUrl`] when it is no `http` or `https` URL, has a user name, a query or a fragment, or ends in `/v2`, which is
    /// part of every call's path.
    pub fn parse(text: &str) -> Result<BaseUrl, BadUrl> {
        // What is before an `@` may be a password, and a query may hold one.
        let shown = text.rsplit('@').next().unwrap_or_default().split('?').next().unwrap_or_default();
        let bad = |why| BadUrl { text: shown.chars().take(200).collect(), why };
        let text = text.trim();
        if text.contains(['#', '@', '?']) {
            // A user name and password would end in logs.
            return Err(bad("it must be a scheme, a host and perhaps a path, nothing else"));
        }
        let text = text.trim_end_matches('/');
        if text.ends_with("/v2") {
            // Every path would miss its route, and the API says of that what it says of a missing volume.
            return Err(bad("it must be given without the /v2 at its end"));
        }
        let uri: Uri = text.parse().map_err(|_| bad("it is not a URL"))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(BaseUrl(text.to_owned())),
            (Some(_) | None, Some(_) | None) => Err(bad("it must begin with https:// or http:// and name a host")),
        }
    }

    /// Scheme, host and port.
    pub(super) fn origin(&self) -> Option<Origin> {
        let uri = self.0.parse::<Uri>().ok()?;
        let is_https = uri.scheme_str() == Some("https");
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Some(Origin { is_https, host, port })
    }

    /// Whether the address is on this machine by its looks, without asking anybody.
    pub(super) fn is_loopback(&self) -> bool {
        let uri = self.0.parse::<Uri>().ok();
        let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    }

    /// The address without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The methods that the API uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Post,
    Delete,
}

impl Method {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Delete => "DELETE",
        }
    }
}

/// One request: built here from checked ids, and from texts that are encoded on the way.
#[derive(Debug)]
pub(super) struct ApiRequest {
    method: Method,
    /// Path below the base URL with its query, ready to be sent.
    target: String,
    body: Option<String>,
    class: Class,
}

impl ApiRequest {
    pub(super) fn new(method: Method, path: impl fmt::Display, class: Class) -> ApiRequest {
        ApiRequest { method, target: format!("/v2/{path}"), body: None, class }
    }

    /// Adds `name=value` to the query; the value may be anything.
    pub(super) fn query(mut self, name: &str, value: impl fmt::Display) -> ApiRequest {
        self.target.push(if self.target.contains('?') { '&' } else { '?' });
        self.target.push_str(name);
        self.target.push('=');
        percent_encode(&value.to_string(), &mut self.target);
        self
    }

    /// Gives the request a JSON body.
    pub(super) fn json(mut self, body: &serde_json::Value) -> ApiRequest {
        self.body = Some(body.to_string());
        self
    }

    pub(super) fn method(&self) -> Method {
        self.method
    }

    pub(super) fn target(&self) -> &str {
        &self.target
    }

    pub(super) fn body(&self) -> Option<&str> {
        self.body.as_deref()
    }

    pub(super) fn class(&self) -> Class {
        self.class
    }
}

/// Keeps RFC 3986's unreserved characters and encodes every other byte.
fn percent_encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_at_the_end_of_a_base_url_do_not_matter() {
        for (text, want) in [
            ("https://api.digitalocean.com/", "https://api.digitalocean.com"),
            ("https://api.digitalocean.com", "https://api.digitalocean.com"),
            (" http://127.0.0.1:8080/prefix//\n", "http://127.0.0.1:8080/prefix"),
            ("http://[::1]:80", "http://[::1]:80"),
        ] {
            assert_eq!(BaseUrl::parse(text).unwrap().as_str(), want);
        }
    }

    #[test]
    fn what_is_no_http_address_is_no_base_url() {
        for bad in [
            "",
            "/v2",
            "api.digitalocean.com",
            "ftp://host/",
            "https://",
            "http://u:p@host",
            "http://h/?x=1",
            "http://h/#a",
            "http://a b/",
            "https:/x",
            "http://\n",
            "https://api.digitalocean.com/v2/",
            "https://api.digitalocean.com/v2",
        ] {
            assert!(BaseUrl::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn this_machine_is_known_by_its_addresses() {
        for (url, is_loopback) in [
            ("http://127.0.0.1:80", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:80/x", true),
            ("http://LocalHost:80", true),
            ("http://169.254.169.254", false),
            ("https://api.digitalocean.com", false),
            ("http://127.0.0.1.example.com", false),
        ] {
            assert_eq!(BaseUrl::parse(url).unwrap().is_loopback(), is_loopback, "{url}");
        }
    }

    #[test]
    fn query_values_are_encoded_whatever_they_hold() {
        let call = ApiRequest::new(Method::Get, "volumes", Class::Essential)
            .query("name", "a&region=x/../?#% ü\n")
            .query("page", 2);
        assert_eq!(call.target(), "/v2/volumes?name=a%26region%3Dx%2F..%2F%3F%23%25%20%C3%BC%0A&page=2");
    }
}
