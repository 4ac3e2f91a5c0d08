//! Finding and connecting to a server, so that a failure up to there can be told from one after it.
//!
//! Owns that distinction, and which of a server's addresses is tried first. A connection that fails here has certainly
//! carried no request. The HTTP library reports both kinds with the same errors, and a guess from their wording would
//! sometimes be wrong.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::CertificateError;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport};
use ureq::{Agent, Error};

use crate::cloud::happy_eyeballs::{find_first_to_answer, plan_order};
use crate::cloud::proxy::Proxy;
use crate::cloud::resolver::SharedLookup;

/// A connection that took this long is a reason to ask again which address is the best one.
const SLOW: Duration = Duration::from_secs(1);

/// Longer than any connection may take.
const LONGEST: Duration = Duration::from_secs(60);

/// An agent that marks every failure before the first byte of a request; see [`is_before_sending`].
pub(super) fn agent(config: Config, proxy: Option<&Proxy>) -> Agent {
    let via: Via = proxy.map(|proxy| Arc::from(proxy.to_string()));
    let dial = Dial { inner: DefaultConnector::default(), via: via.clone(), worked: Mutex::default() };
    Agent::with_parts(config, dial, Lookup { inner: SharedLookup::default(), via })
}

/// Whether the request of this failure was certainly not sent.
///
/// The library may add kinds of errors. New ones count as sent: that costs one more request for the state, and is never
/// wrong.
pub(super) fn is_before_sending(error: &Error) -> bool {
    if let Error::Other(inner) = error {
        return inner.is::<NeverConnected>();
    }
    // What is no URL, or no header, is found before anything is opened.
    matches!(error, Error::BadUri(_) | Error::Http(_))
}

/// Why the server's certificate is not trusted, and what to do about it, if that is what failed. A retry does not help.
pub(super) fn distrust(error: &Error) -> Option<&'static str> {
    let inner = if let Error::Other(inner) = error { &inner.downcast_ref::<NeverConnected>()?.error } else { error };
    let of_tls = if let Error::Rustls(of_tls) = inner {
        of_tls
    } else if let Error::Io(io) = inner {
        io.get_ref()?.downcast_ref::<rustls::Error>()?
    } else {
        return None;
    };
    let rustls::Error::InvalidCertificate(why) = of_tls else { return None };
    Some(cure(why))
}

fn cure(why: &CertificateError) -> &'static str {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    if matches!(why, UnknownIssuer) {
        "whoever answers there has a certificate of an authority that is not trusted; if it is your own, such as a proxy's, \
         give its certificate with --ca-file"
    } else if matches!(why, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }) {
        "look whether this machine's clock is right"
    } else if matches!(why, NotValidForName | NotValidForNameContext { .. }) {
        "somebody else answers at this address; look at --url, and at the proxy if there is one"
    } else {
        "whoever answers there is not believed to be the server"
    }
}

/// The failure for a person: the library's own words name its parts ("io", "timeout: global", "other").
pub(super) fn in_words(error: &Error) -> String {
    if let Error::Other(inner) = error {
        inner.to_string()
    } else if let Error::Io(inner) = error {
        inner.to_string()
    } else if matches!(error, Error::Timeout(_)) {
        "no answer in time".to_owned()
    } else {
        error.to_string()
    }
}

/// The proxy in between, for errors.
type Via = Option<Arc<str>>;

/// Why there is no connection.
#[derive(Debug)]
struct NeverConnected {
    error: Error,
    via: Via,
}

impl NeverConnected {
    fn mark(error: Error, via: &Via) -> Error {
        // The connection to a proxy is one of its own, so its failure passes here twice.
        if is_before_sending(&error) {
            return error;
        }
        Error::Other(Box::new(NeverConnected { error, via: via.clone() }))
    }
}

impl fmt::Display for NeverConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = in_words(&self.error);
        match &self.via {
            Some(via) => write!(f, "no connection through {via}: {words}"),
            None => write!(f, "no connection: {words}"),
        }
    }
}

impl std::error::Error for NeverConnected {}

/// Looks names up.
#[derive(Debug)]
struct Lookup {
    inner: SharedLookup,
    via: Via,
}

impl Resolver for Lookup {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.inner.resolve(uri, config, timeout).map_err(|error| NeverConnected::mark(error, &self.via))
    }
}

/// Connects as the library does, TLS handshake included, and to the address first that is most likely to answer.
#[derive(Debug)]
struct Dial {
    inner: DefaultConnector,
    via: Via,
    /// The address that a connection was made to.
    worked: Mutex<Option<IpAddr>>,
}

impl Dial {
    /// The server's addresses, the best one first. Without one that is known to work, they are tried against each other.
    fn sort(&self, details: &ConnectionDetails<'_>) -> Result<ResolvedSocketAddrs, Error> {
        let worked = *self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut order = plan_order(&details.addrs, worked);
        if order.len() > 1 && worked.is_none() {
            let now = Instant::now();
            let give_up = now.checked_add((*details.timeout.after).min(LONGEST)).unwrap_or(now);
            match find_first_to_answer(&order, give_up) {
                Some(winner) => order = plan_order(&details.addrs, Some(winner.ip())),
                None if Instant::now() >= give_up => return Err(Error::Timeout(details.timeout.reason)),
                // All have refused; in which words, is told by the one that is tried now.
                None => {}
            }
        }
        let mut sorted = details.resolver.empty();
        for address in order {
            sorted.push(address);
        }
        Ok(sorted)
    }

    fn connect_in_order(&self, details: &ConnectionDetails<'_>) -> Result<Option<Box<dyn Transport>>, Error> {
        let addrs = self.sort(details)?;
        let first = addrs.first().map(|address| address.ip());
        let began = Instant::now();
        let details = ConnectionDetails {
            addrs,
            uri: details.uri,
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: Arc::clone(&details.current_time),
            run_connector: Arc::clone(&details.run_connector),
            register_shutdown: Arc::clone(&details.register_shutdown),
        };
        let connected = self.inner.connect(&details, None);
        let is_good = connected.is_ok() && began.elapsed() < SLOW;
        if first.is_some() {
            *self.worked.lock().unwrap_or_else(PoisonError::into_inner) = first.filter(|_| is_good);
        }
        connected
    }
}

impl Connector<()> for Dial {
    type Out = Box<dyn Transport>;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        self.connect_in_order(details).map_err(|error| NeverConnected::mark(error, &self.via))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::cloud::canned::{Canned, reply};
    use crate::cloud::happy_eyeballs::tests::black_hole;

    /// A name with these addresses.
    #[derive(Debug)]
    struct Known(Vec<SocketAddr>);

    impl Resolver for Known {
        fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
            let mut found = self.empty();
            for address in &self.0 {
                found.push(*address);
            }
            Ok(found)
        }
    }

    #[test]
    fn an_address_without_an_answer_is_asked_once_and_not_at_each_connection() {
        let replies = (0..4).map(|_| reply(200, "connection: close\r\n", "{}"));
        let server = Canned::start(replies);
        let hole = black_hole();
        let good: SocketAddr = server.url.strip_prefix("http://").unwrap().parse().unwrap();
        let config = crate::cloud::http::config(Duration::from_secs(30), Duration::from_secs(60)).proxy(None).build();
        let dial = Dial { inner: DefaultConnector::default(), via: None, worked: Mutex::default() };
        let agent = Agent::with_parts(config, dial, Known(vec![hole.address, good]));
        let began = Instant::now();
        for _ in 0..4 {
            agent.get("http://api.example.com/").call().unwrap();
        }
        // The library by itself gives the first address two thirds of the 30 s, each time.
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        // Four that were used, and the one that was tried out.
        assert_eq!((server.seen().len(), server.connections()), (4, 5));
    }
}
