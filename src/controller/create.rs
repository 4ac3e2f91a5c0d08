//! Creating a volume, once, however often and by however many plugins it is asked for.
//!
//! Owns the comparison of a volume that is there with the one that is asked for. The create is sent first: DigitalOcean
//! keeps names unique in a region, so a refusal, or a lost reply, leads to the volume that an earlier call made. What a
//! volume with content needs before and after is in [`restore`](super::restore).

use std::time::Instant;

use log::{info, warn};

use crate::activity::{About, Change, tell_change};
use crate::cloud::tag::Tag;
use crate::cloud::volume::{NewVolume, Volume};
use crate::controller::Controller;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::{CallContext, pause_after};
use crate::controller::description::{is_made_for, plan_description, source_of};
use crate::controller::naming::plan_name;
use crate::error::api::ApiErrorKind;
use crate::error::{Error, Result, Thing};
use crate::id::VolumeName;
use crate::region::Region;
use crate::request::volume::{CreateVolume, Source};
use crate::size::{Gib, plan_size};
use crate::sync::volume_lock::{VolumeGuard, VolumeKey};

impl Controller {
    /// Creates a volume, or finds the one that an earlier call with this name created.
    ///
    /// # Errors
    /// [`Error::Invalid`] when its tags would make it another's, [`Error::Mismatch`] when a volume of that name is there but not as asked, [`Error::NotAdopted`] when it may be
    /// somebody else's, [`Error::SizeOutOfRange`],
    /// [`Error::RegionUnavailable`], [`Error::AccountLimit`], [`Error::NotReady`] while the region is unknown; with a
    /// source also [`Error::NotFound`] and, for a clone, [`Error::SnapshotTooSoon`].
    pub fn create_volume(&self, ctx: &CallContext, want: &CreateVolume) -> Result<Volume> {
        self.owner.check_marks("parameters", &[&want.parameters.tags[..], &want.mutable.put].concat(), &[])?;
        let size = match want.source {
            None => plan_size(&want.range, &self.limits).map_err(Error::SizeOutOfRange)?,
            // A copy's is its source's, which is not known yet; see `NewVolume::copied_from`.
            Some(Source::Snapshot(_) | Source::Volume(_)) => self.limits.min,
        };
        let region = self.droplet_identity.region()?;
        check_region(want, &region)?;
        let new = self.plan_new(want, region, size)?;
        let guard = self.hold(ctx, VolumeKey::Name(want.name.clone()))?;
        match &want.source {
            None => check_size(want, self.ensure_created(&guard, ctx, want, &new)?),
            Some(Source::Snapshot(id)) => self.ensure_restored(&guard, ctx, want, new, id),
            Some(Source::Volume(id)) => self.ensure_cloned(&guard, ctx, want, new, id),
        }
    }

    fn plan_new(&self, want: &CreateVolume, region: Region, size: Gib) -> Result<NewVolume> {
        let name = plan_name(&want.name);
        let name = VolumeName::parse(&name).map_err(|bad| Error::Bug(bad.to_string()))?;
        let text = want.parameters.description.as_deref();
        let description = plan_description(&want.name, &name, want.source.as_ref(), self.owner.name(), text);
        let tags = plan_tags(self.owner.only(), self.owner.tag(), want);
        Ok(NewVolume { name, size, region, description, tags, snapshot: None })
    }

    /// Compares what is there with what was asked, but for the size.
    pub(super) fn compare(&self, want: &CreateVolume, have: Volume) -> Result<Volume> {
        self.owner.check_adoption(&have)?;
        compare(want, have)
    }

    /// Creates a volume, or finds the one of that name, and sees that it was made for this request. Its size is the
    /// caller's to look at.
    pub(super) fn ensure_created(
        &self,
        _guard: &VolumeGuard,
        ctx: &CallContext,
        want: &CreateVolume,
        new: &NewVolume,
    ) -> Result<Volume> {
        let doing = format!("creating volume {} in {}", new.name, new.region);
        let mut pauses = ctx.backoff();
        let needs_tags = !plan_tags(self.owner.only(), None, want).is_empty();
        let mut new = new.clone();
        ctx.ensure_awaited()?;
        loop {
            let err = match ctx.cloud.create_volume(&new) {
                Ok(volume) => {
                    tell_change(
                        Change::Created,
                        "created",
                        About::default()
                            .with("volume", &volume.id)
                            .with("name", &volume.name)
                            .with("size", volume.size),
                    );
                    return ctx.observe_new_volume(&volume.id);
                }
                Err(err) => err,
            };
            let failure = plan_failure(&err);
            if may_exist(failure)
                && let Some(found) = observe_named(ctx, &new)?
            {
                info!(volume:% = found.id, name:% = found.name, size:% = found.size; "found a volume of that name");
                return self.compare(want, found);
            }
            match failure {
                // A name can be taken by a volume that does not show yet, or by one that is just going away.
                ApiFailure::Retryable | ApiFailure::StateConflict => {
                    ctx.pause(pause_after(&mut pauses, &err), &doing, &err)?
                }
                ApiFailure::OutcomeUnknown => {
                    warn!(request = err.request_id(); "{doing}: unclear whether it was done, and no such volume is found, trying again: {err}");
                    ctx.pause(pause_after(&mut pauses, &err), &doing, &err)?;
                }
                ApiFailure::OutOfTime => return Err(ctx.timed_out(&doing, err.to_string())),
                ApiFailure::LimitReached => return Err(Error::AccountLimit { doing, source: err }),
                ApiFailure::NotFound if let Some(snapshot) = &new.snapshot => {
                    if ctx.observe_snapshot_if_there(snapshot)?.is_none() {
                        return Err(Error::NotFound(Thing::Snapshot(snapshot.to_string())));
                    }
                    ctx.pause(pause_after(&mut pauses, &err), &doing, &err)?;
                }
                // The description says for whom it is made. With other tags and not the owner's it would count as handed over.
                ApiFailure::Permanent
                    if err.kind() == ApiErrorKind::Forbidden && !needs_tags && !new.tags.is_empty() =>
                {
                    warn!(request = err.request_id(); "{doing}: trying without the tag of --do-tag, which the token may not put on: {err}");
                    new.tags.clear();
                }
                ApiFailure::NotFound | ApiFailure::Unrecognized | ApiFailure::Permanent => {
                    return Err(Error::Api { doing, source: err });
                }
            }
        }
    }
}

/// The allow-list's tag, the operator's, the class's and the volume's, each once.
fn plan_tags(only: Option<&Tag>, owner: Option<&Tag>, want: &CreateVolume) -> Vec<Tag> {
    let mut tags: Vec<Tag> = Vec::new();
    for tag in only.into_iter().chain(owner).chain(&want.parameters.tags).chain(&want.mutable.put) {
        if !tags.iter().any(|have| tag.is(have.as_str())) {
            tags.push(tag.clone());
        }
    }
    tags
}

/// Whether a volume of that name may be there although the create failed. An account at its limit is told so before
/// DigitalOcean looks at the name.
fn may_exist(failure: ApiFailure) -> bool {
    match failure {
        ApiFailure::OutcomeUnknown | ApiFailure::StateConflict | ApiFailure::LimitReached => true,
        ApiFailure::Retryable
        | ApiFailure::NotFound
        | ApiFailure::Unrecognized
        | ApiFailure::OutOfTime
        | ApiFailure::Permanent => false,
    }
}

/// Looks for the volume that has the name of the one to be created. The list may show one that has been deleted, so it counts
/// when its own record is there too.
pub(super) fn observe_named(ctx: &CallContext, new: &NewVolume) -> Result<Option<Volume>> {
    let doing = format!("looking for volume {} in {}", new.name, new.region);
    let (since, mut pauses) = (Instant::now(), ctx.backoff());
    loop {
        let listed = ctx.query(&doing, Error::api(doing.clone()), |cloud| cloud.find_volume(&new.name, &new.region))?;
        let Some(Volume { id, .. }) = listed else { return Ok(None) };
        if let Some(volume) = ctx.look_at_volume(&id)? {
            return Ok(Some(volume));
        }
        let why = format!("DigitalOcean lists {id}, and does not find it by that id");
        if since.elapsed() > ctx.patience.propagation() {
            return Err(ctx.timed_out(&doing, why));
        }
        ctx.pause(pauses.next_pause(), &doing, &why)?;
    }
}

fn check_region(want: &CreateVolume, ours: &Region) -> Result<()> {
    if want.regions.is_empty() || want.regions.iter().any(|region| region == ours.as_str()) {
        return Ok(());
    }
    Err(Error::RegionUnavailable { asked: want.regions.join(", "), ours: ours.to_string() })
}

fn compare(want: &CreateVolume, have: Volume) -> Result<Volume> {
    if !is_made_for(&want.name, &have.name, &have.description) {
        let description = format!("the description {:?}", have.description);
        return Err(mismatch(&have, description, format!("the CSI name {:?}", want.name)));
    }
    let source = source_of(&have.description);
    if source != want.source {
        return Err(mismatch(&have, content(source.as_ref()), content(want.source.as_ref())));
    }
    Ok(have)
}

/// Compares the size of what is there with what was asked.
pub(super) fn check_size(want: &CreateVolume, have: Volume) -> Result<Volume> {
    if want.range.holds(have.size) {
        return Ok(have);
    }
    Err(mismatch(&have, have.size.to_string(), want.range.to_string()))
}

fn mismatch(volume: &Volume, have: String, want: String) -> Error {
    Error::Mismatch { thing: format!("volume {} ({})", volume.name, volume.id), have, want }
}

fn content(source: Option<&Source>) -> String {
    match source {
        None => "no source in its description".to_owned(),
        Some(Source::Snapshot(id)) => format!("the content of snapshot {id}"),
        Some(Source::Volume(id)) => format!("the content of volume {id}"),
    }
}
