//! Which volumes are not well, as far as DigitalOcean's lists show it.
//!
//! Owns the page of those volumes. For each volume alone there is [`Controller::examine_volume`], which also reads
//! its latest actions; for a list that would be a request for each volume.

use std::collections::HashMap;

use crate::cloud::Cloud;
use crate::cloud::droplet::{Droplet, DropletKind};
use crate::cloud::volume::Volume;
use crate::controller::Controller;
use crate::controller::context::CallContext;
use crate::controller::list::collect_page;
use crate::controller::whole_list::{CHANGES, ListPage, every_entry};
use crate::error::api::ApiErrorKind;
use crate::error::{Error, Result};
use crate::id::{DropletId, VolumeId};
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

impl Controller {
    /// Lists the volumes of the region with which something is wrong: those that several droplets are said to have,
    /// and those on a droplet that is gone, off or archived. With a token that may not read droplets, only the
    /// former.
    ///
    /// # Errors
    /// As [`Controller::list_volumes`].
    pub fn list_abnormal(&self, ctx: &CallContext, page: &Page) -> Result<ListPage<Abnormal>> {
        let region = self.droplet_identity.region()?;
        let droplets = ctx.observe_droplets()?;
        let fetch = |cloud: &Cloud, at| cloud.list_volumes(Some(&region), at);
        let id = |volume: &Volume| volume.id.to_string();
        let keep = |volume: Volume| {
            let holder = plan_holder(&volume, droplets.as_ref());
            let findings = diagnose(&volume, holder);
            affecting(&findings).next().is_some().then(|| volume.without_details())
        };
        let listed = collect_page(ctx, page, "listing the health of volumes", fetch, id, keep)?;
        let mut items = Vec::new();
        for volume in listed.items {
            let holder = match (plan_holder(&volume, droplets.as_ref()), volume.droplets.first()) {
                // One that was made after the list was read is in its own record.
                (Holder::Gone, Some(droplet)) => Holder::of(ctx.observe_droplet(*droplet)?.as_ref(), &volume.id),
                (holder @ (Holder::Gone | Holder::NotAsked | Holder::Known { .. }), _) => holder,
            };
            let findings = diagnose(&volume, holder);
            if affecting(&findings).next().is_some() {
                items.push(Abnormal { volume: volume.id, findings });
            }
        }
        Ok(ListPage { items, next: listed.next })
    }
}

impl CallContext {
    /// The droplets of the account; `None`: the token may not read them.
    fn observe_droplets(&self) -> Result<Option<HashMap<DropletId, Droplet>>> {
        let doing = "listing the droplets";
        let mut all = HashMap::new();
        for kind in DropletKind::ALL {
            let fetch = |page| self.query(doing, Error::api(doing), |cloud| cloud.list_droplets(kind, page));
            let id = |droplet: &Droplet| droplet.id.to_string();
            match every_entry(fetch, id, Some, || self.timed_out(doing, CHANGES)) {
                Ok(found) => all.extend(found.into_iter().map(|droplet| (droplet.id, droplet))),
                Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::Forbidden => return Ok(None),
                Err(err) => return Err(err),
            }
        }
        Ok(Some(all))
    }
}

/// What a list of droplets says of the one that has a volume. Pure.
fn plan_holder(volume: &Volume, droplets: Option<&HashMap<DropletId, Droplet>>) -> Holder {
    match (volume.droplets.as_slice(), droplets) {
        ([droplet], Some(all)) => Holder::of(all.get(droplet), &volume.id),
        ([] | [_, ..], _) => Holder::NotAsked,
    }
}

fn diagnose(volume: &Volume, holder: Holder) -> Vec<Finding> {
    diagnose_attachment(&Attachment { volume, holder, moves: Moves::NotAsked })
}
