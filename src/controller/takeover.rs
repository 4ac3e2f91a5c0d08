//! What to do about another droplet that has the volume.
//!
//! Owns the decision whether it may be taken from there, and the patience with which that is found out. A volume is taken
//! only from a droplet that cannot use it: one that was seen off, archived, or gone from its own record and from the list of
//! all droplets, twice and some time apart. And only a volume that is not another owner's.

use std::time::{Duration, Instant};

use log::warn;

use crate::cloud::droplet::{Droplet, DropletStatus};
use crate::cloud::volume::Volume;
use crate::controller::Controller;
use crate::controller::attachment::AttachStep;
use crate::controller::attachment::{DetachOutcome, OnBusy};
use crate::controller::context::{CallContext, Timeouts};
use crate::controller::run_action::LastAction;
use crate::error::{Error, Holder, Result};
use crate::id::{DropletId, VolumeId};
use crate::sync::volume_lock::VolumeGuard;

/// What to do about another droplet that has the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TakeoverPlan {
    /// It cannot use the volume: take it away.
    Detach,
    /// It is off, archived or gone; look again in a while, as a reboot passes through `off`, and answers can be wrong.
    Recheck,
    /// It may be using the volume: leave it alone.
    Refuse,
    /// It does not have the volume, although it is listed.
    StaleListing,
}

/// What is known of the droplet that the volume is listed on.
#[derive(Debug, Clone, Copy)]
struct HolderFacts<'a> {
    /// None: DigitalOcean does not know it any more.
    droplet: Option<&'a Droplet>,
    /// For how long it has not been able to use the volume.
    unusable_for: Option<Duration>,
    /// The volume was detached long enough ago, and the droplet's own record agrees.
    is_contradicted: bool,
}

/// Decides about the droplet that the volume is listed on.
fn plan_takeover(facts: HolderFacts<'_>, patience: Timeouts, takeover: bool) -> TakeoverPlan {
    match facts.droplet.map(|droplet| &droplet.status) {
        Some(_) | None if facts.is_contradicted => TakeoverPlan::StaleListing,
        Some(_) | None if takeover => TakeoverPlan::Detach,
        Some(DropletStatus::Off | DropletStatus::Archive) | None => match facts.unusable_for {
            Some(ctx) if ctx >= patience.power_off_grace() => TakeoverPlan::Detach,
            Some(_) | None => TakeoverPlan::Recheck,
        },
        Some(DropletStatus::New | DropletStatus::Active | DropletStatus::Other(_)) => TakeoverPlan::Refuse,
    }
}

/// What one call has seen so far of the droplet that has the volume.
#[derive(Debug, Default)]
pub(super) struct HolderTracker {
    holder: Option<DropletId>,
    running_since: Option<Instant>,
    unusable_since: Option<Instant>,
    stale_since: Option<Instant>,
}

impl HolderTracker {
    /// Another droplet is another story.
    fn turn_to(&mut self, holder: DropletId) {
        if self.holder != Some(holder) {
            *self = HolderTracker { holder: Some(holder), ..HolderTracker::default() };
        }
    }

    /// How long it is too early yet for a second look at the droplet to tell anything; none: it is not.
    pub(super) fn left(&self, patience: Timeouts) -> Option<Duration> {
        let left = |since: Option<Instant>, wait: Duration| {
            let left = wait.checked_sub(since?.elapsed());
            left.filter(|left| !left.is_zero())
        };
        left(self.running_since, patience.release_grace()).max(left(self.unusable_since, patience.power_off_grace()))
    }

    /// The pause until the next look: that look is not to come later than it can tell something.
    pub(super) fn pause(&self, pause: Duration, patience: Timeouts) -> Duration {
        self.left(patience).map_or(pause, |left| left.min(pause))
    }
}

impl Controller {
    /// Does the next step towards another droplet's letting go of the volume, or fails when that is not ours to do; none:
    /// it does not have the volume.
    pub(super) fn release_step(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        volume: &Volume,
        holder: DropletId,
        wanted: DropletId,
        watch: &mut HolderTracker,
    ) -> Result<Option<AttachStep>> {
        watch.turn_to(holder);
        let why = format!("droplet {holder} has it");
        if watch.left(ctx.patience).is_some() {
            return Ok(Some(AttachStep::PollHolder(why)));
        }
        let is_detached = match self.observe_last_action(ctx, &volume.id)? {
            LastAction::Running(action) => return Ok(Some(AttachStep::Await(action))),
            // The list of droplets lags behind; but it may also be the list of actions that does.
            LastAction::Detached
                if watch.stale_since.get_or_insert_with(Instant::now).elapsed() < ctx.patience.propagation() =>
            {
                return Ok(Some(AttachStep::PollHolder(format!(
                    "it has been detached, and droplet {holder} still shows"
                ))));
            }
            LastAction::Detached => true,
            // Whether the droplet can use the volume decides, as ever: a detach that does not end proves nothing.
            LastAction::Attached(..) | LastAction::Stuck(_) | LastAction::Unknown => false,
        };
        let droplet = ctx.observe_droplet(holder)?;
        let droplet = droplet.as_ref();
        let is_contradicted = is_detached && lacks(droplet, &volume.id);
        let unusable_for = watch.unusable_since.map(|since| since.elapsed());
        let facts = HolderFacts { droplet, unusable_for, is_contradicted };
        match plan_takeover(facts, ctx.patience, self.takeover) {
            TakeoverPlan::StaleListing => {
                warn!("volume={} is still listed on droplet={holder}, which does not have it", volume.id);
                Ok(None)
            }
            TakeoverPlan::Detach => {
                self.owner.check_change(volume, &format!("taken from droplet {holder}"))?;
                self.take(guard, ctx, volume, droplet, holder, wanted)
            }
            TakeoverPlan::Recheck => {
                (watch.running_since, watch.unusable_since) =
                    (None, watch.unusable_since.or_else(|| Some(Instant::now())));
                Ok(Some(AttachStep::PollHolder(format!("droplet {holder} has it and is not running"))))
            }
            TakeoverPlan::Refuse if watch.running_since.is_none() => {
                (watch.running_since, watch.unusable_since) = (Some(Instant::now()), None);
                Ok(Some(AttachStep::PollHolder(why)))
            }
            TakeoverPlan::Refuse => {
                let name = droplet.map(|droplet| droplet.name.clone()).filter(|name| !name.is_empty());
                Err(Error::AttachedElsewhere {
                    volume: volume.id.clone(),
                    name: volume.name.clone(),
                    holder: Holder { id: holder, name },
                    wanted,
                })
            }
        }
    }

    /// Takes the volume from a droplet. While that is busy, its state is looked at again before each try: an event that
    /// keeps it busy may be the one that switches it on.
    ///
    /// None: there was nothing to take, as the detach was told and the droplet's own record does not contradict. A destroyed
    /// droplet may leave the volume listed for good, without an action that says where the volume went.
    fn take(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        volume: &Volume,
        droplet: Option<&Droplet>,
        holder: DropletId,
        wanted: DropletId,
    ) -> Result<Option<AttachStep>> {
        let state = droplet.map_or("gone", |droplet| in_words(&droplet.status));
        warn!(
            "taking volume={} name={} from droplet={holder}, which is {state}, for droplet={wanted}",
            volume.id, volume.name
        );
        let sent = self.apply_detach(guard, ctx, &volume.id, holder, OnBusy::Return)?;
        if sent.proves_nothing_attached() && lacks(droplet, &volume.id) {
            warn!("volume={} is listed on droplet={holder}, which has nothing of it to detach", volume.id);
            return Ok(None);
        }
        Ok(Some(match sent {
            DetachOutcome::Completed => AttachStep::Again,
            DetachOutcome::Refused(err) | DetachOutcome::Open(err) => {
                AttachStep::Pause(format!("taking it from droplet {holder}: {err}"))
            }
            DetachOutcome::Errored => AttachStep::Pause(format!("the detach from droplet {holder} errored")),
            DetachOutcome::Overdue => AttachStep::Pause(format!("the detach from droplet {holder} does not end")),
        }))
    }

    /// Whether a droplet says that it has the volume: its record and the volume's are kept apart.
    pub(super) fn has_volume(&self, ctx: &CallContext, droplet: DropletId, id: &VolumeId) -> Result<bool> {
        Ok(ctx.observe_droplet(droplet)?.is_some_and(|droplet| droplet.volumes.contains(id)))
    }
}

/// Whether a droplet is gone, or does not say that it has the volume.
pub(super) fn lacks(droplet: Option<&Droplet>, id: &VolumeId) -> bool {
    droplet.is_none_or(|droplet| !droplet.volumes.contains(id))
}

fn in_words(status: &DropletStatus) -> &str {
    match status {
        DropletStatus::New => "new",
        DropletStatus::Active => "running",
        DropletStatus::Off => "off",
        DropletStatus::Archive => "archived",
        DropletStatus::Other(word) => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn droplet(status: DropletStatus) -> Droplet {
        let id = DropletId::new(7).unwrap();
        Droplet { id, name: "a".into(), status, region: None, volumes: Vec::new() }
    }

    #[test]
    fn no_look_comes_later_than_it_can_tell_something() {
        let patience = Timeouts::of(Duration::from_secs(100));
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
        let table = [
            ((None, None), None),
            ((ago(0), None), Some(5)),
            ((ago(3), None), Some(2)),
            ((ago(5), None), None),
            ((None, ago(4)), Some(6)),
            ((None, ago(11)), None),
        ];
        for ((running_since, unusable_since), want) in table {
            let watch = HolderTracker { running_since, unusable_since, ..HolderTracker::default() };
            let rounded = |time: Duration| (time + Duration::from_millis(500)).as_secs();
            let left = watch.left(patience).map(rounded);
            assert_eq!(left, want, "{watch:?}");
            let pause = rounded(watch.pause(Duration::from_secs(4), patience));
            assert_eq!(pause, want.unwrap_or(4).min(4), "{watch:?}");
        }
    }

    #[test]
    fn only_a_droplet_that_cannot_use_the_volume_loses_it() {
        let patience = Timeouts::of(Duration::from_secs(100));
        let long = Some(patience.power_off_grace());
        let table = [
            (None, None, false, TakeoverPlan::Recheck),
            (None, Some(Duration::ZERO), false, TakeoverPlan::Recheck),
            (None, long, false, TakeoverPlan::Detach),
            (None, None, true, TakeoverPlan::Detach),
            (Some(DropletStatus::Active), long, false, TakeoverPlan::Refuse),
            (Some(DropletStatus::New), long, false, TakeoverPlan::Refuse),
            (Some(DropletStatus::Other("locked".into())), long, false, TakeoverPlan::Refuse),
            (Some(DropletStatus::Off), None, false, TakeoverPlan::Recheck),
            (Some(DropletStatus::Off), Some(Duration::ZERO), false, TakeoverPlan::Recheck),
            (Some(DropletStatus::Off), long, false, TakeoverPlan::Detach),
            (Some(DropletStatus::Archive), None, false, TakeoverPlan::Recheck),
            (Some(DropletStatus::Archive), long, false, TakeoverPlan::Detach),
            (Some(DropletStatus::Active), None, true, TakeoverPlan::Detach),
            (Some(DropletStatus::Off), None, true, TakeoverPlan::Detach),
        ];
        for (status, unusable_for, takeover, want) in table {
            let holder = status.clone().map(droplet);
            let facts = HolderFacts { droplet: holder.as_ref(), unusable_for, is_contradicted: false };
            assert_eq!(plan_takeover(facts, patience, takeover), want, "{status:?} {unusable_for:?} {takeover}");
            let contradicted = HolderFacts { is_contradicted: true, ..facts };
            assert_eq!(plan_takeover(contradicted, patience, takeover), TakeoverPlan::StaleListing, "{status:?}");
        }
    }
}
