//! Which volumes are not well, as far as DigitalOcean's lists show it.
//!
//! Owns the page of those volumes, and the look at the whole region. For each volume alone there is
//! [`Controller::examine_volume`], which also reads its latest actions; for a list that would be a request for each volume, so they
//! are read only of those whose last detach has failed in this process.

use std::collections::HashMap;
use std::time::Instant;

use crate::cloud::Cloud;
use crate::cloud::droplet::{Droplet, DropletKind};
use crate::cloud::page::Page as CloudPage;
use crate::cloud::volume::Volume;
use crate::controller::Controller;
use crate::controller::context::CallContext;
use crate::controller::list::collect_page;
use crate::controller::whole_list::{CHANGES, ListPage, every_entry};
use crate::error::api::{ApiError, ApiErrorKind};
use crate::error::{Error, Result};
use crate::id::{DropletId, VolumeId};
use crate::ops::diagnosis::account::{diagnose_account, diagnose_failure, diagnose_refusal};
use crate::ops::diagnosis::attachment::{Attachment, Holder, Moves, diagnose_attachment};
use crate::ops::diagnosis::{Finding, affecting};
use crate::request::query::Page;

/// A volume that is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abnormal {
    /// Its id.
    pub volume: VolumeId,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

/// Of how many volumes, whose last detach has failed here, the actions are read.
const MOST_FAILING: usize = 10;

/// What a look at the region has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionHealth {
    /// What is wrong with its volumes.
    pub of_volumes: Vec<Finding>,
    /// What is wrong with the token and the account.
    pub of_account: Vec<Finding>,
    /// How many droplets the account has; `None`: the token may not read them.
    pub droplets: Option<usize>,
}

/// The droplets of the account, or why the token may not read them.
type Droplets = std::result::Result<HashMap<DropletId, Droplet>, ApiError>;

impl Controller {
    /// Lists the volumes of the region with which something is wrong: those that several droplets are said to have, those on a
    /// droplet that is gone, off or archived, and those that cannot be detached. With a token that may not read droplets, none of the
    /// second.
    ///
    /// # Errors
    /// As [`Controller::list_volumes`].
    pub fn list_abnormal(&self, ctx: &CallContext, page: &Page) -> Result<ListPage<Abnormal>> {
        self.list_abnormal_among(ctx, page, ctx.observe_droplets()?.as_ref().ok())
    }

    /// Looks at the volumes of the region, the account and its limits.
    ///
    /// # Errors
    /// As [`Controller::list_volumes`].
    pub fn observe_region_health(&self, ctx: &CallContext) -> Result<RegionHealth> {
        let droplets = ctx.observe_droplets()?;
        let all = Page { max_entries: None, start: None };
        let listed = self.list_abnormal_among(ctx, &all, droplets.as_ref().ok())?;
        let origin = self.token_origin();
        let lacking = droplets.as_ref().err().map(|err| diagnose_refusal(err, "droplet:read", &origin));
        let account = ctx.observe_account_health();
        let account = account.unwrap_or_else(|err| diagnose_failure(&err, &origin).into_iter().collect());
        let of_account = lacking.into_iter().chain(account).collect();
        let of_volumes = listed.items.into_iter().flat_map(|one| one.findings).collect();
        Ok(RegionHealth { of_volumes, of_account, droplets: droplets.ok().map(|droplets| droplets.len()) })
    }

    /// Where the token is from.
    #[must_use]
    pub fn token_origin(&self) -> String {
        self.cloud.token_origin()
    }

    fn list_abnormal_among(
        &self,
        ctx: &CallContext,
        page: &Page,
        droplets: Option<&HashMap<DropletId, Droplet>>,
    ) -> Result<ListPage<Abnormal>> {
        let region = self.droplet_identity.region()?;
        let failing = self.detacher.backoff.failing(MOST_FAILING, Instant::now());
        let fetch = |cloud: &Cloud, at| cloud.list_volumes(Some(&region), at);
        let id = |volume: &Volume| volume.id.to_string();
        let keep = |volume: Volume| {
            let findings = diagnose(&volume, plan_holder(&volume, droplets), Moves::NotAsked);
            let is_kept = affecting(&findings).next().is_some() || failing.contains(&volume.id);
            is_kept.then(|| volume.without_details())
        };
        let listed = collect_page(ctx, page, "listing the health of volumes", fetch, id, keep)?;
        let mut items = Vec::new();
        for volume in listed.items {
            let holder = match (plan_holder(&volume, droplets), volume.droplets.first()) {
                // One that was made after the list was read is in its own record.
                (Holder::Gone, Some(droplet)) => Holder::of(ctx.observe_droplet(*droplet)?.as_ref(), &volume.id),
                (holder @ (Holder::Gone | Holder::NotAsked | Holder::Known { .. }), _) => holder,
            };
            let moves = if failing.contains(&volume.id) { ctx.observe_moves(&volume.id) } else { Ok(Moves::NotAsked) };
            let moves = match moves {
                // It was deleted meanwhile.
                Err(Error::NotFound(_)) => continue,
                moves => moves?,
            };
            let findings = diagnose(&volume, holder, moves);
            if affecting(&findings).next().is_some() {
                items.push(Abnormal { volume: volume.id, findings });
            }
        }
        Ok(ListPage { items, next: listed.next })
    }
}

impl CallContext {
    /// The droplets of the account.
    fn observe_droplets(&self) -> Result<Droplets> {
        let doing = "listing the droplets";
        let mut all = HashMap::new();
        for kind in DropletKind::ALL {
            let fetch = |page| self.query(doing, Error::api(doing), |cloud| cloud.list_droplets(kind, page));
            let id = |droplet: &Droplet| droplet.id.to_string();
            match every_entry(fetch, id, Some, || self.timed_out(doing, CHANGES)) {
                Ok(found) => all.extend(found.into_iter().map(|droplet| (droplet.id, droplet))),
                Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::Forbidden => return Ok(Err(source)),
                Err(err) => return Err(err),
            }
        }
        Ok(Ok(all))
    }

    /// What is wrong with the account. A token that may not read it can do all else.
    fn observe_account_health(&self) -> Result<Vec<Finding>> {
        let doing = "reading the account";
        let account = match self.query(doing, Error::api(doing), Cloud::get_account) {
            Ok(account) => account,
            Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::Forbidden => return Ok(Vec::new()),
            Err(err) => return Err(err),
        };
        let total = |cloud: &Cloud| cloud.list_volumes(None, CloudPage::first());
        let volumes = self.query("counting the volumes", Error::api("counting the volumes"), total)?;
        // Without a number nothing is said of the limit.
        Ok(diagnose_account(&account, volumes.total.unwrap_or_default()))
    }
}

/// What a list of droplets says of the one that has a volume. Pure.
fn plan_holder(volume: &Volume, droplets: Option<&HashMap<DropletId, Droplet>>) -> Holder {
    match (volume.droplets.as_slice(), droplets) {
        ([droplet], Some(all)) => Holder::of(all.get(droplet), &volume.id),
        ([] | [_, ..], _) => Holder::NotAsked,
    }
}

fn diagnose(volume: &Volume, holder: Holder, moves: Moves) -> Vec<Finding> {
    diagnose_attachment(&Attachment { volume, holder, moves })
}
