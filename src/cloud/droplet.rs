//! Droplets and the account: what a controller has to know of them.
//!
//! Owns reading them. This program never changes a droplet or an account.

use crate::cloud::page::{ApiPage, Page};
use crate::cloud::rate_limit::Class;
use crate::cloud::request::{ApiRequest, Method};
use crate::cloud::{ApiResult, Cloud, json as wire};
use crate::id::{DropletId, VolumeId};
use crate::region::Region;

/// A droplet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Droplet {
    /// Its id.
    pub id: DropletId,
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub status: DropletStatus,
    /// Where it is.
    pub region: Option<Region>,
    /// The volumes it has. Kept apart from the volumes' own record of it, and not always the same.
    pub volumes: Vec<VolumeId>,
}

/// Whether a droplet runs.
///
/// Source: API reference, "Droplets", `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DropletStatus {
    /// Being created.
    New,
    /// Running.
    Active,
    /// Powered off; volumes stay attached and can be detached.
    Off,
    /// Archived.
    Archive,
    /// A word that the API is not known to use.
    Other(String),
}

/// The kinds of droplets, of which each has a list of its own.
///
/// Source: API reference, "List All Droplets", `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropletKind {
    /// Those without a GPU.
    Plain,
    /// Those with one.
    Gpu,
}

impl DropletKind {
    /// All of them.
    pub const ALL: [DropletKind; 2] = [DropletKind::Plain, DropletKind::Gpu];

    fn as_str(self) -> &'static str {
        match self {
            DropletKind::Plain => "droplets",
            DropletKind::Gpu => "gpus",
        }
    }
}

/// The account that the token belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// `active`, `warning` or `locked`.
    pub status: String,
    /// DigitalOcean's words about the status, empty when all is well.
    pub status_message: String,
    /// How many volumes the account may have; `None` when there is no limit.
    pub volume_limit: Option<u64>,
}

impl Cloud {
    /// Reads one droplet.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::api::ApiErrorKind::NotFound) when there is none of that id.
    ///
    /// Source: API reference, "Retrieve an Existing Droplet".
    pub fn get_droplet(&self, id: DropletId) -> ApiResult<Droplet> {
        let reply = self.send(&ApiRequest::new(Method::Get, format_args!("droplets/{id}"), Class::Essential))?;
        let wire::DropletReply { droplet } = reply.json()?;
        match Droplet::read(droplet) {
            Some(droplet) if droplet.id == id => Ok(droplet),
            Some(_) | None => Err(reply.unusable("it is about another droplet")),
        }
    }

    /// Lists one page of the account's droplets of one kind. The volumes of a droplet may be older here than in its own
    /// record.
    ///
    /// Source: API reference, "List All Droplets"; `api-v2` issue 157.
    pub fn list_droplets(&self, kind: DropletKind, page: Page) -> ApiResult<ApiPage<Droplet>> {
        let call = ApiRequest::new(Method::Get, "droplets", Class::Essential).query("type", kind.as_str());
        let wire::DropletsReply { droplets, paging } = self.send(&page.ask(call))?.json()?;
        Ok(ApiPage::new(droplets.into_iter().map(|droplet| droplet.and_then(Droplet::read)), page, &paging))
    }

    /// Reads the account; also the cheapest proof that token and API work.
    ///
    /// Source: API reference, "Get User Information". `volume_limit` is in real replies only.
    pub fn get_account(&self) -> ApiResult<Account> {
        let wire::AccountReply { account } =
            self.send(&ApiRequest::new(Method::Get, "account", Class::Deferrable))?.json()?;
        Ok(Account {
            status: account.status,
            status_message: account.status_message,
            volume_limit: Some(account.volume_limit).filter(|limit| *limit > 0),
        })
    }
}

impl Droplet {
    fn read(wire: wire::Droplet) -> Option<Droplet> {
        let status = match wire.status.as_str() {
            "new" => DropletStatus::New,
            "active" => DropletStatus::Active,
            "off" => DropletStatus::Off,
            "archive" => DropletStatus::Archive,
            _ => DropletStatus::Other(wire.status),
        };
        Some(Droplet {
            id: DropletId::new(wire.id)?,
            name: wire.name,
            status,
            region: wire.region.and_then(|region| Region::parse(&region.slug).ok()),
            volumes: wire.volume_ids.iter().filter_map(|id| VolumeId::parse(id).ok()).collect(),
        })
    }
}
