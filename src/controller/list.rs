//! Pages of volumes and of snapshots.
//!
//! Owns the step from CSI's pages, of any size and starting anywhere, to DigitalOcean's of 200. A token is a position in
//! DigitalOcean's list, so it means the same to every plugin and after a restart, and what is filtered out before a page
//! is cut does not move it.

use std::cmp::Ordering;
use std::num::NonZeroU32;

use crate::cloud::page::{ApiPage, Page as CloudPage};
use crate::cloud::snapshot::Snapshot;
use crate::cloud::volume::Volume;
use crate::cloud::{ApiResult, Cloud};
use crate::controller::Controller;
use crate::controller::clone_snapshot::is_temporary;
use crate::controller::context::CallContext;
use crate::error::api::ApiErrorKind;
use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::request::query::Page;
use crate::request::snapshot::{ListSnapshots, Which};

/// Entries on DigitalOcean's largest page.
const CLOUD_PAGE: usize = 200;

/// One page, and where the next one begins, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage<T> {
    /// The entries of this page.
    pub items: Vec<T>,
    /// The position at which the next page begins.
    pub next: Option<usize>,
}

impl<T> ListPage<T> {
    fn of(items: Vec<T>) -> ListPage<T> {
        ListPage { items, next: None }
    }
}

impl Controller {
    /// Lists the volumes of the region.
    ///
    /// # Errors
    /// [`Error::BadPageToken`] for a start behind the end, [`Error::NotReady`], [`Error::TimedOut`], [`Error::Api`].
    pub fn list_volumes(&self, ctx: &CallContext, page: &Page) -> Result<ListPage<Volume>> {
        let region = self.droplet_identity.region()?;
        let fetch = |cloud: &Cloud, at| cloud.list_volumes(Some(&region), at);
        collect_page(ctx, page, "listing volumes", fetch, |_| true)
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
            Which::Nothing | Which::One(..) if want.page.offset > 0 => Err(bad_token(&want.page)),
            Which::Nothing => Ok(ListPage::of(Vec::new())),
            Which::One(id, source) => {
                let found = ctx.observe_snapshot_if_there(id)?;
                let is_of = |found: &Snapshot| source.is_none() || found.source == *source;
                Ok(ListPage::of(found.filter(is_of).into_iter().collect()))
            }
            Which::Of(volume) => self.list_snapshots_of(ctx, volume, &want.page),
            Which::All => {
                let region = self.droplet_identity.region()?;
                let keep = |found: &Snapshot| found.regions.contains(&region) && !is_temporary(found);
                collect_page(ctx, &want.page, "listing snapshots", Cloud::list_snapshots, keep)
            }
        }
    }

    fn list_snapshots_of(&self, ctx: &CallContext, volume: &VolumeId, page: &Page) -> Result<ListPage<Snapshot>> {
        let doing = format!("listing the snapshots of volume {volume}");
        let fetch = |cloud: &Cloud, at| cloud.list_snapshots_of(volume, at);
        match collect_page(ctx, page, &doing, fetch, |found| !is_temporary(found)) {
            Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::NotFound => {
                let keep = |found: &Snapshot| found.source.as_ref() == Some(volume) && !is_temporary(found);
                collect_page(ctx, page, &doing, Cloud::list_snapshots, keep)
            }
            listed => listed,
        }
    }
}

fn bad_token(page: &Page) -> Error {
    Error::BadPageToken(page.offset.to_string())
}

/// Walks DigitalOcean's pages until a page of CSI's is full.
fn collect_page<T>(
    ctx: &CallContext,
    page: &Page,
    doing: &str,
    fetch: impl Fn(&Cloud, CloudPage) -> ApiResult<ApiPage<T>>,
    keep: impl Fn(&T) -> bool,
) -> Result<ListPage<T>> {
    let wanted = page.max_entries.unwrap_or(usize::MAX);
    let number = u32::try_from(page.offset / CLOUD_PAGE + 1).ok().and_then(NonZeroU32::new);
    let number = number.ok_or_else(|| bad_token(page))?;
    let read = |at| ctx.query(doing, Error::api(doing), |cloud| fetch(cloud, at));
    let before = || NonZeroU32::new(number.get() - 1).map(|number| read(CloudPage::first().at(number))).transpose();
    let mut at = CloudPage::first().at(number);
    let mut position = page.offset - page.offset % CLOUD_PAGE;
    let mut items = Vec::new();
    loop {
        let listed = read(at)?;
        if !reaches(page.offset, position, &listed, before)? {
            return Err(bad_token(page));
        }
        let start = position;
        for (here, item) in (start..).zip(listed.items) {
            if here < page.offset || !keep(&item) {
                continue;
            }
            if items.len() == wanted {
                return Ok(ListPage { items, next: Some(here) });
            }
            items.push(item);
        }
        let Some(next) = listed.next else { return Ok(ListPage::of(items)) };
        position = start + CLOUD_PAGE;
        if items.len() == wanted {
            return Ok(ListPage { items, next: Some(position) });
        }
        at = next;
    }
}

/// Whether a list is as long as a token says, by the page at this position. The end itself is a place to go on from: what
/// came after it may have been deleted since the token was given out.
fn reaches<T>(
    offset: usize,
    position: usize,
    listed: &ApiPage<T>,
    before: impl FnOnce() -> Result<Option<ApiPage<T>>>,
) -> Result<bool> {
    match (position + listed.items.len()).cmp(&offset) {
        Ordering::Less => Ok(false),
        Ordering::Greater => Ok(true),
        // An empty page is at the end if the one before it is full, and behind the end otherwise.
        Ordering::Equal if listed.items.is_empty() => {
            Ok(before()?.is_none_or(|before| before.items.len() >= CLOUD_PAGE))
        }
        Ordering::Equal => Ok(true),
    }
}
