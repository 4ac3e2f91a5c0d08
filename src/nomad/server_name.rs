//! A Nomad whose certificate is for another name than the one it is reached by (`NOMAD_TLS_SERVER_NAME`).
//!
//! Owns the detour: the HTTP library checks the name that is in the address, so the address gets the certificate's, and what it
//! leads to is looked up by the real one.

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// The way to such a Nomad.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// The address with the certificate's name in it.
    pub(super) url: String,
    /// The host that is asked, as the header `host` has it.
    pub(super) host: String,
    /// The address at which it is.
    pub(super) address: Uri,
}

impl Named {
    /// Puts the name into an address; `None`: the address is not encrypted, so that no name is checked.
    ///
    /// # Errors
    /// One line: with this name it is no address.
    pub(super) fn parse(url: &str, name: &str) -> Result<Option<Named>, String> {
        let bad = |why: String| format!("NOMAD_TLS_SERVER_NAME {name:?}: {why}");
        let address: Uri = url.parse().map_err(|err| bad(format!("NOMAD_ADDR: {err}")))?;
        let Some(authority) = address.authority().filter(|_| address.scheme_str() == Some("https")) else {
            return Ok(None);
        };
        let port = authority.port_u16().unwrap_or(443);
        let url = format!("https://{name}:{port}{}", address.path().trim_end_matches('/'));
        match url.parse::<Uri>() {
            Ok(named) if named.host() == Some(name) => {
                Ok(Some(Named { url, host: authority.to_string(), address: address.clone() }))
            }
            Ok(_) => Err(bad("it is not the name of a host".to_owned())),
            Err(err) => Err(bad(err.to_string())),
        }
    }
}

/// Looks up one address, whatever a request is for.
#[derive(Debug)]
pub(super) struct OneAddress {
    pub(super) address: Uri,
    pub(super) inner: DefaultResolver,
}

impl Resolver for OneAddress {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.inner.resolve(&self.address, config, timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificates_name_takes_the_place_of_the_hosts_where_there_is_a_certificate() {
        let named = Named::parse("https://10.0.0.1:4646", "server.global.nomad").unwrap().unwrap();
        assert_eq!(named.url, "https://server.global.nomad:4646");
        assert_eq!((named.host.as_str(), named.address.host()), ("10.0.0.1:4646", Some("10.0.0.1")));
        let without_port = Named::parse("https://nomad.example/base", "server.global.nomad").unwrap().unwrap();
        assert_eq!(without_port.url, "https://server.global.nomad:443/base");
        assert_eq!(Named::parse("http://10.0.0.1:4646", "server.global.nomad"), Ok(None));
        for odd in ["a b", "a/b", "a@b", "a:1"] {
            assert!(Named::parse("https://10.0.0.1:4646", odd).is_err(), "{odd}");
        }
    }
}
