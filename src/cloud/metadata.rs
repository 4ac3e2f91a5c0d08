//! The droplet that this program runs on, as its metadata service knows it.
//!
//! Owns asking once. The service may be missing or late; asking again is the caller's, and no answer is not fatal to a
//! controller, which can run anywhere.

use std::io::Read;
use std::time::Duration;

use ureq::Agent;

use crate::cloud::connector;
use crate::cloud::http::config;
use crate::cloud::request::BaseUrl;
use crate::id::DropletId;
use crate::region::Region;

/// Where every droplet finds its metadata service.
///
/// Source: DigitalOcean documentation, "Droplet metadata".
pub const DEFAULT_URL: &str = "http://169.254.169.254";

/// The service is in the same machine, and answers in milliseconds but when that machine has much to do.
const BUDGET: Duration = Duration::from_secs(5);

/// An id and a region are short; what is longer is something else.
const MAX_REPLY: u64 = 1024;

/// Why the metadata service has not said what it was asked. `Display` names the address that was asked.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Nothing listens there, or it does not answer.
    #[error("{url} does not answer: {why}")]
    NoAnswer {
        /// What was asked.
        url: String,
        /// What happened instead, in the words of the system.
        why: String,
    },
    /// The request was refused. Only droplets have the service; elsewhere proxies and firewalls may answer at its
    /// address.
    #[error("{url} answered {status}: {text:?}")]
    Refused {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the body.
        text: String,
    },
    /// The answer is not what was asked for.
    #[error("{url} answered {text:?}: {why}")]
    Unusable {
        /// What was asked.
        url: String,
        /// The beginning of the answer.
        text: String,
        /// What is wrong with it.
        why: String,
    },
}

/// How many characters of an answer that is no use are shown.
const SHOWN: usize = 100;

/// The metadata service of the droplet that this program runs on.
#[derive(Debug, Clone)]
pub struct Metadata {
    agent: Agent,
    base: BaseUrl,
}

impl Metadata {
    /// Prepares the way to the service; asks nothing.
    #[must_use]
    pub fn new(base: BaseUrl) -> Metadata {
        // The address is the machine's own; a proxy would answer for another one, if at all.
        Metadata { agent: connector::agent(config(BUDGET, BUDGET).proxy(None).build(), None), base }
    }

    /// Reads the id of this droplet. One request of at most 5 s, no token.
    ///
    /// # Errors
    /// [`MetadataError`], and when the answer is no droplet id.
    ///
    /// Source: Metadata API, `/metadata/v1/id`: plain text.
    pub fn droplet_id(&self) -> Result<DropletId, MetadataError> {
        let text = self.get("id")?;
        DropletId::parse(&text).map_err(|bad| self.unusable("id", &bad.to_string(), &text))
    }

    /// Reads the region of this droplet. One request of at most 5 s, no token.
    ///
    /// # Errors
    /// [`MetadataError`], and when the answer is no region.
    ///
    /// Source: Metadata API, `/metadata/v1/region`: plain text.
    pub fn region(&self) -> Result<Region, MetadataError> {
        let text = self.get("region")?;
        Region::parse(&text).map_err(|bad| self.unusable("region", &bad.to_string(), &text))
    }

    /// The address of one fact.
    fn url(&self, leaf: &str) -> String {
        format!("{}/metadata/v1/{leaf}", self.base)
    }

    fn unusable(&self, leaf: &str, why: &str, text: &str) -> MetadataError {
        MetadataError::Unusable { url: self.url(leaf), text: beginning(text), why: why.to_owned() }
    }

    fn get(&self, leaf: &str) -> Result<String, MetadataError> {
        let url = self.url(leaf);
        let no_answer = |error: &ureq::Error| {
            let why = connector::in_words(error);
            MetadataError::NoAnswer { url: url.clone(), why }
        };
        let response = self.agent.get(&url).call().map_err(|error| no_answer(&error))?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        let reader = response.into_body().into_reader();
        let read = reader.take(MAX_REPLY).read_to_end(&mut body);
        read.map_err(|error| no_answer(&ureq::Error::from(error)))?;
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        if status == 200 { Ok(text) } else { Err(MetadataError::Refused { url, status, text: beginning(&text) }) }
    }
}

/// As much of a foreign text as a log line can bear.
fn beginning(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}
