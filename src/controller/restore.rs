//! Volumes that begin with content: restored from a snapshot, or cloned from another volume.
//!
//! Owns the steps before and after the create. A copy gets its source's size from DigitalOcean and is grown afterwards, so
//! a call that was cut off in between leaves a volume that the next one recognises by its description and grows. A clone
//! is made through a temporary snapshot, which [`clone_snapshot`](super::clone_snapshot) takes and takes away.

use crate::cloud::volume::{NewVolume, Volume};
use crate::controller::Controller;
use crate::controller::context::CallContext;
use crate::controller::create::{check_size, observe_named};
use crate::controller::naming::plan_clone_name;
use crate::error::{Error, Result, Thing};
use crate::id::{SnapshotId, VolumeId};
use crate::region::Region;
use crate::request::volume::CreateVolume;
use crate::size::{Gib, plan_copy_size, plan_growth};
use crate::sync::volume_lock::{VolumeGuard, VolumeKey};

impl Controller {
    /// Restores a snapshot into a new volume.
    pub(super) fn ensure_restored(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        want: &CreateVolume,
        new: NewVolume,
        id: &SnapshotId,
    ) -> Result<Volume> {
        let Some(snapshot) = ctx.observe_snapshot_if_there(id)? else {
            // It may have been deleted since an earlier call restored it.
            let restored = observe_named(ctx, &new)?.ok_or_else(|| Error::NotFound(Thing::Snapshot(id.to_string())))?;
            return self.ensure_asked_size(ctx, want, self.compare(want, restored)?, None);
        };
        self.owner.check_snapshot_use(&snapshot, "restored")?;
        plan_copy_size(&want.range, &self.limits, snapshot.min_size).map_err(Error::SizeOutOfRange)?;
        if !snapshot.regions.is_empty() && !snapshot.regions.contains(&new.region) {
            return Err(elsewhere(&snapshot.regions, &format!("snapshot {id}"), &new.region));
        }
        let volume = self.ensure_created(guard, ctx, want, &new.copied_from(&snapshot))?;
        self.ensure_asked_size(ctx, want, volume, Some(snapshot.min_size))
    }

    /// Clones a volume as it is on DigitalOcean's disks at this moment.
    pub(super) fn ensure_cloned(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        want: &CreateVolume,
        new: NewVolume,
        id: &VolumeId,
    ) -> Result<Volume> {
        let temporary = plan_clone_name(&want.name, self.owner.name());
        if let Some(cloned) = observe_named(ctx, &new)? {
            let volume = self.ensure_asked_size(ctx, want, self.compare(want, cloned)?, None)?;
            self.clear_temporary_of(guard, ctx, id, &temporary);
            return Ok(volume);
        }
        let source = ctx.observe_volume(id)?;
        self.owner.check_use(&source, "cloned")?;
        plan_copy_size(&want.range, &self.limits, source.size).map_err(Error::SizeOutOfRange)?;
        if let Some(region) = source.region.filter(|region| *region != new.region) {
            return Err(elsewhere(&[region], &format!("volume {id}"), &new.region));
        }
        let snapshot = self.ensure_temporary(guard, ctx, id, &temporary)?;
        let new = new.copied_from(&snapshot);
        // When the create fails, the snapshot stays for the next try, as another one could be taken in ten minutes only.
        let volume = self.ensure_created(guard, ctx, want, &new).inspect_err(|_| self.sweeper.wake())?;
        self.clear_temporary(guard, ctx, &snapshot.id);
        self.ensure_asked_size(ctx, want, volume, Some(snapshot.min_size))
    }

    /// Grows a copy to the size that was asked, as long as it is as it was made: with its source's size, if that is known, and
    /// attached nowhere. One that is in use has another size than was asked, and is not what this call made.
    fn ensure_asked_size(
        &self,
        ctx: &CallContext,
        want: &CreateVolume,
        volume: Volume,
        source: Option<Gib>,
    ) -> Result<Volume> {
        let Ok(Some(size)) = plan_growth(volume.size, &want.range, &self.limits) else {
            return check_size(want, volume);
        };
        let guard = self.hold(ctx, VolumeKey::Id(volume.id.to_string()))?;
        let volume = ctx.observe_volume(&volume.id)?;
        let is_new = volume.droplets.is_empty() && source.is_none_or(|source| volume.size == source);
        let volume = if is_new { self.ensure_size(&guard, ctx, volume, size)? } else { volume };
        check_size(want, volume)
    }
}

/// Snapshots and volumes stay in their region. Source: CSI specification, CreateVolume, "Source incompatible".
fn elsewhere(regions: &[Region], what: &str, ours: &Region) -> Error {
    let regions: Vec<&str> = regions.iter().map(Region::as_str).collect();
    let why = format!("{what} is in {}, and a copy of it cannot be made in {ours}", regions.join(", "));
    Error::invalid("volume_content_source", why)
}
