//! Attach, detach and resize, and the actions that DigitalOcean makes of them.
//!
//! Owns starting an action and reading how it goes. Waiting for its end, and what to do when it fails, is the caller's.

use std::num::NonZeroU32;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::cloud::page::{ApiPage, Page};
use crate::cloud::rate_limit::Class;
use crate::cloud::request::{ApiRequest, Method};
use crate::cloud::{ApiResult, Cloud, json as wire};
use crate::id::{ActionId, DropletId, VolumeId};
use crate::region::Region;
use crate::size::Gib;

/// A change of a volume that DigitalOcean carries out on its own time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Its number; later actions have greater ones.
    pub id: ActionId,
    /// How far it is.
    pub status: ActionStatus,
    /// What it does, in DigitalOcean's words: `attach_volume`, `detach_volume`; not documented for a resize.
    pub kind: String,
    /// When it was begun, by DigitalOcean's clock and cut off to a second; `None` when its text is no time.
    pub started_at: Option<SystemTime>,
}

/// How far an action is.
///
/// Source: API reference, "Block Storage Actions".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionStatus {
    /// DigitalOcean is at work.
    InProgress,
    /// It is done, as far as the API is concerned: the droplet may see the disk only later.
    Completed,
    /// It failed, and it will not be tried again; the volume is as it was, most likely.
    Errored,
    /// A word that the API is not known to use; DigitalOcean may be at work.
    Other(String),
}

/// How many actions are read to find those that may still be running.
const NEWEST: u32 = 20;

impl Cloud {
    /// Starts attaching a volume to a droplet of the same region.
    ///
    /// A second call fails with `PendingEvent` while the first is under way and with `AlreadyAttached` afterwards.
    ///
    /// # Errors
    /// `AlreadyAttached` (to any droplet), `PendingEvent`, `AttachLimit`; `NotFound` or `Unprocessable` when the
    /// droplet does not exist or is elsewhere.
    ///
    /// Source: API reference, "Initiate A Block Storage Action By Volume Id".
    pub fn attach(&self, volume: &VolumeId, droplet: DropletId) -> ApiResult<Action> {
        self.start(volume, &json!({ "type": "attach", "droplet_id": droplet.get() }))
    }

    /// Starts detaching a volume from a droplet; DigitalOcean does not look whether it is mounted there.
    ///
    /// A second call fails with `PendingEvent` while the first is under way and with `AttachmentNotFound` afterwards.
    ///
    /// # Errors
    /// `AttachmentNotFound`, `PendingEvent`; `NotFound` when there is no such volume.
    ///
    /// Source: API reference, "Initiate A Block Storage Action By Volume Id".
    pub fn detach(&self, volume: &VolumeId, droplet: DropletId) -> ApiResult<Action> {
        self.start(volume, &json!({ "type": "detach", "droplet_id": droplet.get() }))
    }

    /// Starts growing a volume; it never shrinks.
    ///
    /// # Errors
    /// `Unprocessable` or `InvalidSize` when it is that large already or may not be so large; `CapacityLimit`;
    /// `PendingEvent`.
    ///
    /// Source: API reference, "Initiate A Block Storage Action By Volume Id".
    pub fn resize(&self, volume: &VolumeId, size: Gib, region: &Region) -> ApiResult<Action> {
        self.start(volume, &json!({ "type": "resize", "size_gigabytes": size.0, "region": region.as_str() }))
    }

    fn start(&self, volume: &VolumeId, body: &Value) -> ApiResult<Action> {
        let path = format_args!("volumes/{volume}/actions");
        let wire::ActionReply { action } =
            self.send(&ApiRequest::new(Method::Post, path, Class::Essential).json(body))?.json()?;
        Ok(action.into())
    }

    /// Reads one action of a volume.
    ///
    /// # Errors
    /// `NotFound`, which DigitalOcean also answers for a moment about an action that it has just begun.
    ///
    /// Source: API reference, "Retrieve an Existing Volume Action".
    pub fn get_action(&self, volume: &VolumeId, action: ActionId) -> ApiResult<Action> {
        let path = format_args!("volumes/{volume}/actions/{action}");
        let reply = self.send(&ApiRequest::new(Method::Get, path, Class::Look))?;
        let wire::ActionReply { action: read } = reply.json()?;
        if read.id == action.0 { Ok(read.into()) } else { Err(reply.unusable("it is about another action")) }
    }

    /// Reads the newest actions of a volume, in the order of their numbers and without a gap; none when it never had one.
    ///
    /// One request when DigitalOcean lists the newest actions first, up to three when it lists the oldest first and there
    /// are more than fit on a page: the order is not documented.
    ///
    /// # Errors
    /// `NotFound` when there is no such volume.
    ///
    /// Source: API reference, "List All Actions for a Volume".
    pub fn newest_actions(&self, volume: &VolumeId) -> ApiResult<Vec<Action>> {
        let first = Page::first().of(NEWEST);
        let (page, last) = self.actions(volume, first)?;
        let is_oldest_first = match (page.items.first(), page.items.last()) {
            (Some(head), Some(tail)) => head.id.0 < tail.id.0,
            (Some(_) | None, Some(_) | None) => false,
        };
        let mut actions = match last.filter(|last| is_oldest_first && last.number() > first.number()) {
            Some(last) => self.last_actions(volume, page.items, last)?,
            None => page.items,
        };
        actions.sort_by_key(|action| action.id.0);
        Ok(actions)
    }

    /// Reads the end of a list of actions whose first page is known. The last page may have as little as one of them, and
    /// that may be a resize; then the one before it tells where the volume is.
    fn last_actions(&self, volume: &VolumeId, first: Vec<Action>, last: Page) -> ApiResult<Vec<Action>> {
        let end = self.actions(volume, last)?.0.items;
        let before = last.number().get().checked_sub(1).and_then(NonZeroU32::new);
        let is_short = u32::try_from(end.len()).is_ok_and(|length| length < NEWEST);
        let mut actions = match before {
            Some(NonZeroU32::MIN) => first,
            Some(before) if is_short => self.actions(volume, last.at(before))?.0.items,
            Some(_) | None => Vec::new(),
        };
        actions.extend(end);
        Ok(actions)
    }

    /// Reads the latest actions of the account, of whatever kind and as many as fit on a page. The order is not documented:
    /// should it be the oldest first, they are others.
    ///
    /// # Errors
    /// `Forbidden` for a token without `actions:read`.
    ///
    /// Source: API reference, "List All Actions".
    pub fn latest_actions(&self) -> ApiResult<Vec<Action>> {
        let call = Page::first().ask(ApiRequest::new(Method::Get, "actions", Class::Look));
        let wire::ActionsReply { actions, .. } = self.send(&call)?.json()?;
        Ok(actions.into_iter().flatten().map(Action::from).collect())
    }

    fn actions(&self, volume: &VolumeId, page: Page) -> ApiResult<(ApiPage<Action>, Option<Page>)> {
        let call = ApiRequest::new(Method::Get, format_args!("volumes/{volume}/actions"), Class::Essential);
        let wire::ActionsReply { actions, paging } = self.send(&page.ask(call))?.json()?;
        let last = paging.last().map(|number| page.at(number));
        Ok((ApiPage::new(actions.into_iter().map(|action| action.map(Action::from)), page, &paging), last))
    }
}

impl From<wire::Action> for Action {
    fn from(wire: wire::Action) -> Action {
        let status = match wire.status.as_str() {
            "in-progress" => ActionStatus::InProgress,
            "completed" => ActionStatus::Completed,
            "errored" => ActionStatus::Errored,
            _ => ActionStatus::Other(wire.status),
        };
        let started_at = wire.started_at.parse::<jiff::Timestamp>().ok().map(SystemTime::from);
        Action { id: ActionId(wire.id), status, kind: wire.kind, started_at }
    }
}
