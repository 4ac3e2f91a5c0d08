//! Finding and connecting to a server, so that a failure up to there can be told from one after it.
//!
//! Owns that one distinction. What fails here has certainly not carried a request; the HTTP library reports both kinds
//! with the same errors, and guessing from their wording would be wrong sooner or later.

use std::fmt;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport};
use ureq::{Agent, Error};

use crate::cloud::resolver::SharedLookup;

/// An agent that marks every failure before the first byte of a request; see [`is_before_sending`].
pub(super) fn agent(config: Config) -> Agent {
    Agent::with_parts(config, Dial::default(), Lookup::default())
}

/// Whether the request of this failure was certainly not sent.
///
/// The library may add kinds of errors; those count as sent, which costs a look at the state and is never wrong.
pub(super) fn is_before_sending(error: &Error) -> bool {
    if let Error::Other(inner) = error {
        return inner.is::<NeverConnected>();
    }
    // What is no URL, or no header, is found before anything is opened.
    matches!(error, Error::BadUri(_) | Error::Http(_))
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

/// Why there is no connection.
#[derive(Debug)]
struct NeverConnected(Error);

impl NeverConnected {
    fn mark(error: Error) -> Error {
        Error::Other(Box::new(NeverConnected(error)))
    }
}

impl fmt::Display for NeverConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no connection: {}", in_words(&self.0))
    }
}

impl std::error::Error for NeverConnected {}

/// Looks names up.
#[derive(Debug, Default)]
struct Lookup(SharedLookup);

impl Resolver for Lookup {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.0.resolve(uri, config, timeout).map_err(NeverConnected::mark)
    }
}

/// Connects as the library does, TLS handshake included.
#[derive(Debug, Default)]
struct Dial(DefaultConnector);

impl Connector<()> for Dial {
    type Out = Box<dyn Transport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<()>) -> Result<Option<Self::Out>, Error> {
        self.0.connect(details, chained).map_err(NeverConnected::mark)
    }
}
