//! Pages of volumes and of snapshots.
//!
//! Owns the step from CSI's pages, of any size and starting anywhere, to DigitalOcean's. A token names a position in
//! DigitalOcean's list and the entry before it, so it means the same to every plugin and after a restart, and what is
//! filtered out before a page is cut does not move it. How a list is read without losing an entry is in
//! [`whole_list`](crate::controller::whole_list).

use std::sync::Arc;

use crate::cloud::page::{ApiPage, Page as CloudPage};
use crate::cloud::snapshot::Snapshot;
use crate::cloud::volume::Volume;
use crate::cloud::{ApiResult, Cloud};
use crate::controller::Controller;
use crate::controller::clone_snapshot::is_temporary;
use crate::controller::context::CallContext;
use crate::controller::whole_list::{CHANGES, ListPage, Reading, read_list};
use crate::error::api::ApiErrorKind;
use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::request::query::Page;
use crate::request::snapshot::{ListSnapshots, Which};
use crate::sync::shared_read::{Caller, SharedReads};

/// Lists of volumes that are being read.
pub type VolumeLists = SharedReads<Page, ListPage<Volume>>;

/// A call that lists volumes.
pub type ListCaller = Caller<Page, ListPage<Volume>>;

impl Controller {
    /// Takes notice of a call that lists volumes, before it has a thread: what is read from now on is new enough for it.
    #[must_use]
    pub fn arrive_for_list(&self) -> ListCaller {
        self.volume_lists.arrive()
    }

    /// Lists the volumes of the region. All who ask for the same page while it is read share the next reading of it.
    ///
    /// # Errors
    /// [`Error::BadPageToken`] for a list that has changed since its token was given out, [`Error::NotReady`],
    /// [`Error::TimedOut`], [`Error::Api`].
    pub fn list_volumes(&self, ctx: &CallContext, page: &Page, caller: &ListCaller) -> Result<Arc<ListPage<Volume>>> {
        let region = self.droplet_identity.region()?;
        let doing = "listing volumes";
        let fetch = |cloud: &Cloud, at| cloud.list_volumes(Some(&region), at);
        let id = |volume: &Volume| volume.id.to_string();
        let read = || collect_page(ctx, page, doing, fetch, id, |volume| Some(volume.without_details()));
        let found = caller.read(page, ctx.deadline(), read)?;
        found.ok_or_else(|| ctx.timed_out(doing, "another call is reading the list"))
    }

    /// Lists snapshots of the region, without those that only clones are made through.
    ///
    /// Those of one volume are read through that volume, so their number is what counts and not the account's. Only when
    /// the volume is gone all are read, as snapshots outlive their volume.
    ///
    /// # Errors
    /// As [`Controller::list_volumes`].
    pub fn list_snapshots(&self, ctx: &CallContext, want: &ListSnapshots) -> Result<ListPage<Snapshot>> {
        match &want.which {
            // These have no second page, so no token for one was ever given out.
            Which::Nothing | Which::One(..) if want.page.start.is_some() => Err(bad_token(&want.page)),
            Which::Nothing => Ok(whole(Vec::new())),
            Which::One(id, source) => {
                let found = ctx.observe_snapshot_if_there(id)?;
                let is_of = |found: &Snapshot| source.is_none() || found.source == *source;
                Ok(whole(found.filter(is_of).into_iter().collect()))
            }
            Which::Of(volume) => self.list_snapshots_of(ctx, volume, &want.page),
            Which::All => {
                let region = self.droplet_identity.region()?;
                let keep = |found: &Snapshot| found.regions.contains(&region) && !is_temporary(found);
                let keep = |found| Some(found).filter(keep);
                collect_page(ctx, &want.page, "listing snapshots", Cloud::list_snapshots, snapshot_id, keep)
            }
        }
    }

    fn list_snapshots_of(&self, ctx: &CallContext, volume: &VolumeId, page: &Page) -> Result<ListPage<Snapshot>> {
        let doing = format!("listing the snapshots of volume {volume}");
        let fetch = |cloud: &Cloud, at| cloud.list_snapshots_of(volume, at);
        let keep = |found| Some(found).filter(|found| !is_temporary(found));
        match collect_page(ctx, page, &doing, fetch, snapshot_id, keep) {
            Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::NotFound => {
                let is_of = |found: &Snapshot| found.source.as_ref() == Some(volume) && !is_temporary(found);
                let keep = |found| Some(found).filter(is_of);
                collect_page(ctx, page, &doing, Cloud::list_snapshots, snapshot_id, keep)
            }
            listed => listed,
        }
    }
}

fn snapshot_id(snapshot: &Snapshot) -> String {
    snapshot.id.to_string()
}

fn whole<T>(items: Vec<T>) -> ListPage<T> {
    ListPage { items, next: None }
}

fn bad_token(page: &Page) -> Error {
    Error::BadPageToken(page.start.as_ref().map(ToString::to_string).unwrap_or_default())
}

/// Reads DigitalOcean's pages until a page of CSI's is full.
pub(super) fn collect_page<T, U>(
    ctx: &CallContext,
    page: &Page,
    doing: &str,
    fetch: impl Fn(&Cloud, CloudPage) -> ApiResult<ApiPage<T>>,
    id: impl Fn(&T) -> String,
    keep: impl FnMut(T) -> Option<U>,
) -> Result<ListPage<U>> {
    let read = |at| ctx.query(doing, Error::api(doing), |cloud| fetch(cloud, at));
    match read_list(page.start.as_ref(), page.max_entries.unwrap_or(usize::MAX), read, id, keep)? {
        Reading::Done(listed) => Ok(listed),
        Reading::StartMoved => Err(bad_token(page)),
        Reading::Lost => Err(ctx.timed_out(doing, CHANGES)),
    }
}
