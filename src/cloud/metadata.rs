//! The droplet that this program runs on, as its metadata service knows it.
//!
//! Owns asking once. The service may be missing or late; asking again is the caller's, and no answer is not fatal to a
//! controller, which can run anywhere.

use std::io::Read;
use std::time::Duration;

use ureq::Agent;

use crate::cloud::ApiResult;
use crate::cloud::connector;
use crate::cloud::http::{config, no_reply};
use crate::cloud::request::BaseUrl;
use crate::error::api::{ApiError, ReplyFacts};
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
        Metadata { agent: connector::agent(config(BUDGET, BUDGET).proxy(None).build()), base }
    }

    /// Reads the id of this droplet. One request of at most 5 s, no token.
    ///
    /// # Errors
    /// `Transport` when nobody answers, `BadReply` when the answer is no droplet id, or the kind of the status.
    ///
    /// Source: Metadata API, `/metadata/v1/id`: plain text.
    pub fn droplet_id(&self) -> ApiResult<DropletId> {
        let text = self.get("id")?;
        DropletId::parse(&text).map_err(|bad| unusable(&bad.to_string(), &text))
    }

    /// Reads the region of this droplet. One request of at most 5 s, no token.
    ///
    /// # Errors
    /// `Transport` when nobody answers, `BadReply` when the answer is no region, or the kind of the status.
    ///
    /// Source: Metadata API, `/metadata/v1/region`: plain text.
    pub fn region(&self) -> ApiResult<Region> {
        let text = self.get("region")?;
        Region::parse(&text).map_err(|bad| unusable(&bad.to_string(), &text))
    }

    fn get(&self, leaf: &str) -> ApiResult<String> {
        let url = format!("{}/metadata/v1/{leaf}", self.base);
        let response = self.agent.get(url).call().map_err(|error| no_reply("the metadata service", &error))?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        let reader = response.into_body().into_reader();
        let read = reader.take(MAX_REPLY).read_to_end(&mut body);
        read.map_err(|error| no_reply("the metadata service", &ureq::Error::from(error)))?;
        if status != 200 {
            return Err(ApiError::from_reply(status, &body, ReplyFacts::default()));
        }
        Ok(String::from_utf8_lossy(&body).trim().to_owned())
    }
}

fn unusable(why: &str, text: &str) -> ApiError {
    ApiError::bad_reply(200, why, text.as_bytes(), None)
}
