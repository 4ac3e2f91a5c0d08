//! What DigitalOcean says of a volume: the proof of what a plugin claims, from the simulated cloud or from the real one.
//!
//! Owns the few questions that the story asks, and how they are asked of the real API. It changes nothing.

use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

use super::story::StepResult;
use crate::sim::{Sim, Volume};

/// A volume as the cloud shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its size in GiB.
    pub gigabytes: u64,
    /// The droplet that it is attached to.
    pub droplet: Option<u64>,
}

/// Somebody who knows the truth about volumes.
pub trait Facts {
    /// The volume with this id; none: there is none.
    fn volume(&self, id: &str) -> StepResult<Option<Seen>>;
    /// The volume with this name.
    fn named(&self, name: &str) -> StepResult<Option<Seen>>;
}

impl Facts for Sim {
    fn volume(&self, id: &str) -> StepResult<Option<Seen>> {
        Ok(Sim::volume(self, id).map(seen))
    }

    fn named(&self, name: &str) -> StepResult<Option<Seen>> {
        Ok(Sim::volume(self, name).map(seen))
    }
}

fn seen(volume: Volume) -> Seen {
    Seen { id: volume.id, name: volume.name, gigabytes: volume.size_gigabytes, droplet: volume.attached_to }
}

/// DigitalOcean's API, asked directly.
#[derive(Debug)]
pub struct Api {
    agent: Agent,
    url: String,
    authorization: String,
}

impl Api {
    /// An API at this base URL, asked with this token.
    pub fn new(url: &str, token: &str) -> Api {
        let config =
            Agent::config_builder().timeout_global(Some(Duration::from_secs(30))).http_status_as_error(false).build();
        let authorization = format!("Bearer {token}");
        Api { agent: config.into(), url: url.trim_end_matches('/').to_owned(), authorization }
    }

    fn get(&self, path: &str) -> StepResult<(u16, Value)> {
        let url = format!("{}{path}", self.url);
        let mut reply = self.agent.get(&url).header("Authorization", &self.authorization).call()?;
        let status = reply.status().as_u16();
        let text = reply.body_mut().read_to_string()?;
        match status {
            200 | 404 => Ok((status, serde_json::from_str(&text)?)),
            _ => Err(format!("GET {path}: {status}: {text}").into()),
        }
    }
}

impl Facts for Api {
    fn volume(&self, id: &str) -> StepResult<Option<Seen>> {
        let (status, reply) = self.get(&format!("/v2/volumes/{id}"))?;
        if status == 404 { Ok(None) } else { parse_volume(&reply["volume"]).map(Some) }
    }

    fn named(&self, name: &str) -> StepResult<Option<Seen>> {
        let (_, reply) = self.get(&format!("/v2/volumes?name={name}"))?;
        let volumes = reply["volumes"].as_array().ok_or("a list of volumes without volumes")?;
        volumes.iter().find(|volume| volume["name"] == name).map(parse_volume).transpose()
    }
}

/// The number of the droplet that this runs on.
///
/// # Errors
/// The metadata service does not answer: this is no droplet.
pub fn droplet_id(metadata_url: &str) -> StepResult<u64> {
    let url = format!("{}/metadata/v1/id", metadata_url.trim_end_matches('/'));
    let config = Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build();
    let mut reply = Agent::from(config).get(&url).call().map_err(|err| format!("{url}: {err}; is this a droplet?"))?;
    Ok(reply.body_mut().read_to_string()?.trim().parse()?)
}

/// Source: DigitalOcean's API reference, Block Storage, `volume_full`.
fn parse_volume(volume: &Value) -> StepResult<Seen> {
    let missing = |field: &str| format!("a volume without {field}: {volume}");
    Ok(Seen {
        id: volume["id"].as_str().ok_or_else(|| missing("id"))?.to_owned(),
        name: volume["name"].as_str().ok_or_else(|| missing("name"))?.to_owned(),
        gigabytes: volume["size_gigabytes"].as_u64().ok_or_else(|| missing("size"))?,
        droplet: volume["droplet_ids"].as_array().and_then(|ids| ids.first()).and_then(Value::as_u64),
    })
}
