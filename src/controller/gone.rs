//! What has to be known before a volume, a snapshot or a droplet counts as gone.
//!
//! Owns these questions. A 404 to one request proves little: DigitalOcean has been seen to answer one for a droplet that
//! runs, a gateway may, and the token of another account gets one for everything. So what is not found by its id, twice and
//! some time apart, is looked for in another place too: in the account's list, or by another path. And where the process
//! runs on a droplet of the account, the token has to see that droplet: if it does not, it is not this account's.
//!
//! Source: `droplet_kit` issue 94 ("could not be found" of a droplet that exists).

use std::collections::HashSet;

use crate::activity::learn_name;
use crate::cloud::ApiResult;
use crate::cloud::Cloud;
use crate::cloud::droplet::{Droplet, DropletKind};
use crate::cloud::page::{ApiPage, Page};
use crate::cloud::snapshot::Snapshot;
use crate::cloud::volume::Volume;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::CallContext;
use crate::controller::whole_list::{CHANGES, Reading, read_list};
use crate::error::api::ApiErrorKind;
use crate::error::{Error, Result, Thing};
use crate::id::{DropletId, SnapshotId, VolumeId};

/// Whether the token sees the droplet that this process runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SeenOwn {
    /// It does, so what it does not see of this account is not there.
    Seen,
    /// It does not see this one, although the droplet runs: this very program runs on it.
    Unseen(DropletId),
    /// The droplet may be of another account, or the token may not read droplets.
    Unknown,
}

/// What was on the pages of a list in which something was looked for.
#[derive(Debug, Default)]
struct Tally {
    seen: HashSet<String>,
    /// How many entries DigitalOcean said that there are.
    total: u64,
    /// Whether there were some that cannot be read.
    has_odd: bool,
}

impl CallContext {
    /// Reads a volume, asking until there is an answer.
    ///
    /// # Errors
    /// [`Error::NotFound`] for one that is certainly gone, [`Error::OtherAccount`], [`Error::TimedOut`] or [`Error::Api`].
    pub fn observe_volume(&self, id: &VolumeId) -> Result<Volume> {
        self.observe_volume_if_there(id)?.ok_or_else(|| Error::NotFound(Thing::Volume(id.to_string())))
    }

    /// As [`CallContext::observe_volume`], for those to whom a missing volume is an answer.
    ///
    /// # Errors
    /// [`Error::OtherAccount`], [`Error::TimedOut`] or [`Error::Api`].
    pub fn observe_volume_if_there(&self, id: &VolumeId) -> Result<Option<Volume>> {
        self.find(&format!("volume {id}"), || self.look_at_volume(id), || self.find_listed_volume(id))
    }

    /// Reads a snapshot; a missing one is an answer.
    ///
    /// # Errors
    /// As [`CallContext::observe_volume_if_there`].
    pub(super) fn observe_snapshot_if_there(&self, id: &SnapshotId) -> Result<Option<Snapshot>> {
        let doing = format!("reading snapshot {id}");
        let elsewhere = || match self.look(&doing, |cloud| cloud.get_snapshot_of_any_kind(id)) {
            // "The resource is not a snapshot."
            Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::BadRequest => Ok(None),
            // A token without `snapshot:read`, and no other path tells of a snapshot whose volume is not known. So the first
            // one is asked once more: were it wrong a third time, a snapshot would stay that was to be deleted, and no
            // data be lost.
            Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::Forbidden => {
                self.pause(self.patience.watch(), &doing, &source)?;
                self.look_at_snapshot(id)
            }
            found => found,
        };
        self.find(&format!("snapshot {id}"), || self.look_at_snapshot(id), elsewhere)
    }

    /// Reads a droplet; none: it does not exist. Whether the token sees the account is no question here: who asks has seen
    /// a volume of it.
    ///
    /// # Errors
    /// [`Error::TimedOut`] or [`Error::Api`].
    pub(super) fn observe_droplet(&self, id: DropletId) -> Result<Option<Droplet>> {
        let doing = format!("reading droplet {id}");
        self.look_twice(
            &doing,
            || self.look(&doing, |cloud| cloud.get_droplet(id)),
            || self.find_listed_droplet(&format!("looking for droplet {id} among all"), |droplet| droplet.id == id),
        )
    }

    /// Whether a droplet says that it has the volume: its record and the volume's are kept apart.
    ///
    /// # Errors
    /// As [`CallContext::observe_droplet`].
    pub(super) fn has_volume(&self, droplet: DropletId, id: &VolumeId) -> Result<bool> {
        Ok(self.observe_droplet(droplet)?.is_some_and(|droplet| droplet.volumes.contains(id)))
    }

    /// The droplet that says that it has the volume, if there is one.
    ///
    /// # Errors
    /// [`Error::TimedOut`] or [`Error::Api`].
    pub(super) fn find_holder(&self, id: &VolumeId) -> Result<Option<DropletId>> {
        let doing = format!("looking for the droplet that has volume {id}");
        let found = self.find_listed_droplet(&doing, |droplet| droplet.volumes.contains(id))?;
        Ok(found.map(|droplet| droplet.id))
    }

    /// Asks about a volume. That the volume is not found there is believed only when it is gone.
    ///
    /// # Errors
    /// As [`CallContext::observe_volume`].
    pub(super) fn ask_of_volume<T>(
        &self,
        id: &VolumeId,
        doing: &str,
        question: impl Fn(&Cloud) -> ApiResult<T>,
    ) -> Result<T> {
        let mut pauses = self.backoff();
        loop {
            if let Some(answer) = self.look(doing, &question)? {
                return Ok(answer);
            }
            self.observe_volume(id)?;
            self.pause(pauses.next_pause(), doing, &"DigitalOcean does not find the volume")?;
        }
    }

    /// Looks once for a volume by its id. That it is not found proves nothing.
    pub(super) fn look_at_volume(&self, id: &VolumeId) -> Result<Option<Volume>> {
        let found = self.look(&format!("reading volume {id}"), |cloud| cloud.get_volume(id))?;
        if let Some(volume) = &found {
            learn_name(id.as_str(), &volume.name);
        }
        Ok(found)
    }

    /// Looks once for a snapshot by its id. That it is not found proves nothing.
    pub(super) fn look_at_snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>> {
        self.look(&format!("reading snapshot {id}"), |cloud| cloud.get_snapshot(id))
    }

    fn find<T>(
        &self,
        what: &str,
        by_id: impl Fn() -> Result<Option<T>>,
        elsewhere: impl FnOnce() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let found = self.look_twice(&format!("reading {what}"), by_id, elsewhere)?;
        if found.is_some() {
            return Ok(found);
        }
        match self.observe_own_droplet()? {
            SeenOwn::Unseen(own) => Err(Error::OtherAccount { what: what.to_owned(), own }),
            SeenOwn::Seen | SeenOwn::Unknown => Ok(None),
        }
    }

    fn look_twice<T>(
        &self,
        doing: &str,
        by_id: impl Fn() -> Result<Option<T>>,
        elsewhere: impl FnOnce() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        if let Some(found) = by_id()? {
            return Ok(Some(found));
        }
        self.pause(self.patience.watch(), doing, &"DigitalOcean does not find it")?;
        match by_id()? {
            Some(found) => Ok(Some(found)),
            None => elsewhere(),
        }
    }

    fn observe_own_droplet(&self) -> Result<SeenOwn> {
        let Some(own) = &self.own else { return Ok(SeenOwn::Unknown) };
        // As long as nobody knows which droplet it is, nothing proves whose the token is.
        let own = own.wait_for_id(self.deadline())?;
        match self.look("reading the droplet that this runs on", |cloud| cloud.get_droplet(own)) {
            Ok(Some(_)) => Ok(SeenOwn::Seen),
            Ok(None) => Ok(SeenOwn::Unseen(own)),
            // A token need not have the scope for droplets.
            Err(Error::Api { source, .. }) if source.kind() == ApiErrorKind::Forbidden => Ok(SeenOwn::Unknown),
            Err(err) => Err(err),
        }
    }

    fn find_listed_volume(&self, id: &VolumeId) -> Result<Option<Volume>> {
        let doing = format!("looking for volume {id} among all");
        let (volume_id, is_it) = (|volume: &Volume| volume.id.to_string(), |volume: &Volume| volume.id == *id);
        let mut tally = Tally::default();
        let found = self.find_listed(&doing, Cloud::list_volumes_to_find_one, volume_id, is_it, &mut tally)?;
        self.unless_incomplete(&doing, found, &tally)
    }

    fn find_listed_droplet(&self, doing: &str, is_it: impl Fn(&Droplet) -> bool) -> Result<Option<Droplet>> {
        let droplet_id = |droplet: &Droplet| droplet.id.to_string();
        let mut tally = Tally::default();
        for kind in DropletKind::ALL {
            let list = |cloud: &Cloud, page| cloud.list_droplets(kind, page);
            let found = self.find_listed(doing, list, droplet_id, &is_it, &mut tally)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        // It is not documented whether the total is that of the one kind or of all, so it is compared with all.
        self.unless_incomplete(doing, None, &tally)
    }

    /// Looks for an entry of a list.
    fn find_listed<T>(
        &self,
        doing: &str,
        fetch: impl Fn(&Cloud, Page) -> ApiResult<ApiPage<T>>,
        id: impl Fn(&T) -> String,
        is_wanted: impl Fn(&T) -> bool,
        tally: &mut Tally,
    ) -> Result<Option<T>> {
        let Tally { seen, total, has_odd } = tally;
        let read = |page| {
            let listed = self.query(doing, Error::api(doing), |cloud| fetch(cloud, page))?;
            *total = listed.total.unwrap_or(0).max(*total);
            *has_odd |= listed.has_odd;
            Ok::<_, Error>(listed)
        };
        let keep = |item: T| {
            seen.insert(id(&item));
            Some(item).filter(|item| is_wanted(item))
        };
        match read_list(None, 1, read, &id, keep)? {
            Reading::Done(page) => Ok(page.items.into_iter().next()),
            Reading::StartMoved | Reading::Lost => Err(self.timed_out(doing, CHANGES)),
        }
    }

    /// Sees that a list in which something was not found had all its entries.
    fn unless_incomplete<T>(&self, doing: &str, found: Option<T>, tally: &Tally) -> Result<Option<T>> {
        let is_short = u64::try_from(tally.seen.len()).is_ok_and(|seen| seen < tally.total);
        if found.is_none() && (is_short || tally.has_odd) {
            return Err(self.timed_out(doing, "DigitalOcean's list lacks entries, or has some that cannot be read"));
        }
        Ok(found)
    }

    /// Asks until there is an answer, of which "not found" is one.
    fn look<T>(&self, doing: &str, question: impl Fn(&Cloud) -> ApiResult<T>) -> Result<Option<T>> {
        match self.query(doing, Error::api(doing), question) {
            Ok(found) => Ok(Some(found)),
            Err(Error::Api { source, .. }) if plan_failure(&source) == ApiFailure::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }
}
