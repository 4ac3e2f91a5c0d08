//! What to do about another droplet that has the volume.
//!
//! Owns the decision whether it may be taken from there, and the patience with which that is found out. A volume is taken
//! only from a droplet that cannot use it: one that was seen off, archived, or gone from its own record and from the list of
//! all droplets, twice and some time apart. And only a volume that is not another owner's.

use std::time::{Duration, Instant};

use log::warn;

use super::Controller;
use super::action::Moves;
use super::publish::Round;
use super::time::{CallTime, Patience};
use super::unpublish::{Sent, WhenBusy};
use crate::cloud::droplet::{Droplet, DropletStatus};
use crate::cloud::volume::Volume;
use crate::error::{Error, Holder, Result};
use crate::id::{DropletId, VolumeId};
use crate::lock::VolumeGuard;

/// What to do about another droplet that has the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HolderPlan {
    /// It cannot use the volume: take it away.
    Take,
    /// It is off, archived or gone; look again in a while, as a reboot passes through `off`, and answers can be wrong.
    LookAgain,
    /// It may be using the volume: leave it alone.
    Respect,
    /// It does not have the volume, although it is listed.
    Ignore,
}

/// What is known of the droplet that the volume is listed on.
#[derive(Debug, Clone, Copy)]
struct Sight<'a> {
    /// None: DigitalOcean does not know it any more.
    droplet: Option<&'a Droplet>,
    /// For how long it has not been able to use the volume.
    unusable_for: Option<Duration>,
    /// The volume was detached long enough ago, and the droplet's own record agrees.
    is_contradicted: bool,
}

/// Decides about the droplet that the volume is listed on.
fn plan_holder(sight: Sight<'_>, patience: Patience, takeover: bool) -> HolderPlan {
    match sight.droplet.map(|droplet| &droplet.status) {
        Some(_) | None if sight.is_contradicted => HolderPlan::Ignore,
        Some(_) | None if takeover => HolderPlan::Take,
        Some(DropletStatus::Off | DropletStatus::Archive) | None => match sight.unusable_for {
            Some(time) if time >= patience.off() => HolderPlan::Take,
            Some(_) | None => HolderPlan::LookAgain,
        },
        Some(DropletStatus::New | DropletStatus::Active | DropletStatus::Other(_)) => HolderPlan::Respect,
    }
}

/// What one call has seen so far of the droplet that has the volume.
#[derive(Debug, Default)]
pub(super) struct Watch {
    holder: Option<DropletId>,
    running_since: Option<Instant>,
    unusable_since: Option<Instant>,
    stale_since: Option<Instant>,
}

impl Watch {
    /// Another droplet is another story.
    fn turn_to(&mut self, holder: DropletId) {
        if self.holder != Some(holder) {
            *self = Watch { holder: Some(holder), ..Watch::default() };
        }
    }

    /// How long it is too early yet for a second look at the droplet to tell anything; none: it is not.
    pub(super) fn left(&self, patience: Patience) -> Option<Duration> {
        let left = |since: Option<Instant>, wait: Duration| {
            let left = wait.checked_sub(since?.elapsed());
            left.filter(|left| !left.is_zero())
        };
        left(self.running_since, patience.holder()).max(left(self.unusable_since, patience.off()))
    }

    /// The pause until the next look: that look is not to come later than it can tell something.
    pub(super) fn pause(&self, pause: Duration, patience: Patience) -> Duration {
        self.left(patience).map_or(pause, |left| left.min(pause))
    }
}

impl Controller {
    /// Does the next step towards another droplet's letting go of the volume, or fails when that is not ours to do; none:
    /// it does not have the volume.
    pub(super) fn release_round(
        &self,
        guard: &VolumeGuard,
        time: &CallTime,
        volume: &Volume,
        holder: DropletId,
        wanted: DropletId,
        watch: &mut Watch,
    ) -> Result<Option<Round>> {
        watch.turn_to(holder);
        let why = format!("droplet {holder} has it");
        if watch.left(time.patience).is_some() {
            return Ok(Some(Round::Watch(why)));
        }
        let is_detached = match self.observe_moves(time, &volume.id)? {
            Moves::Running(action) => return Ok(Some(Round::Await(action))),
            // The list of droplets lags behind; but it may also be the list of actions that does.
            Moves::Detached if watch.stale_since.get_or_insert_with(Instant::now).elapsed() < time.patience.shown() => {
                return Ok(Some(Round::Watch(format!("it has been detached, and droplet {holder} still shows"))));
            }
            Moves::Detached => true,
            // Whether the droplet can use the volume decides, as ever: a detach that does not end proves nothing.
            Moves::Attached(..) | Moves::Stuck(_) | Moves::Unknown => false,
        };
        let droplet = time.observe_droplet(holder)?;
        let droplet = droplet.as_ref();
        let is_contradicted = is_detached && lacks(droplet, &volume.id);
        let unusable_for = watch.unusable_since.map(|since| since.elapsed());
        let sight = Sight { droplet, unusable_for, is_contradicted };
        match plan_holder(sight, time.patience, self.takeover) {
            HolderPlan::Ignore => {
                warn!("volume={} is still listed on droplet={holder}, which does not have it", volume.id);
                Ok(None)
            }
            HolderPlan::Take => {
                self.owner.check_change(volume, &format!("taken from droplet {holder}"))?;
                self.take(guard, time, volume, droplet, holder, wanted)
            }
            HolderPlan::LookAgain => {
                (watch.running_since, watch.unusable_since) =
                    (None, watch.unusable_since.or_else(|| Some(Instant::now())));
                Ok(Some(Round::Watch(format!("droplet {holder} has it and is not running"))))
            }
            HolderPlan::Respect if watch.running_since.is_none() => {
                (watch.running_since, watch.unusable_since) = (Some(Instant::now()), None);
                Ok(Some(Round::Watch(why)))
            }
            HolderPlan::Respect => {
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
        time: &CallTime,
        volume: &Volume,
        droplet: Option<&Droplet>,
        holder: DropletId,
        wanted: DropletId,
    ) -> Result<Option<Round>> {
        let state = droplet.map_or("gone", |droplet| in_words(&droplet.status));
        warn!(
            "taking volume={} name={} from droplet={holder}, which is {state}, for droplet={wanted}",
            volume.id, volume.name
        );
        let sent = self.apply_detach(guard, time, &volume.id, holder, WhenBusy::Return)?;
        if sent.proves_nothing_attached() && lacks(droplet, &volume.id) {
            warn!("volume={} is listed on droplet={holder}, which has nothing of it to detach", volume.id);
            return Ok(None);
        }
        Ok(Some(match sent {
            Sent::Completed => Round::Again,
            Sent::Refused(err) | Sent::Open(err) => Round::Pause(format!("taking it from droplet {holder}: {err}")),
            Sent::Errored => Round::Pause(format!("the detach from droplet {holder} errored")),
            Sent::Overdue => Round::Pause(format!("the detach from droplet {holder} does not end")),
        }))
    }

    /// Whether a droplet says that it has the volume: its record and the volume's are kept apart.
    pub(super) fn has_volume(&self, time: &CallTime, droplet: DropletId, id: &VolumeId) -> Result<bool> {
        Ok(time.observe_droplet(droplet)?.is_some_and(|droplet| droplet.volumes.contains(id)))
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
        let patience = Patience::of(Duration::from_secs(100));
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
            let watch = Watch { running_since, unusable_since, ..Watch::default() };
            let rounded = |time: Duration| (time + Duration::from_millis(500)).as_secs();
            let left = watch.left(patience).map(rounded);
            assert_eq!(left, want, "{watch:?}");
            let pause = rounded(watch.pause(Duration::from_secs(4), patience));
            assert_eq!(pause, want.unwrap_or(4).min(4), "{watch:?}");
        }
    }

    #[test]
    fn only_a_droplet_that_cannot_use_the_volume_loses_it() {
        let patience = Patience::of(Duration::from_secs(100));
        let long = Some(patience.off());
        let table = [
            (None, None, false, HolderPlan::LookAgain),
            (None, Some(Duration::ZERO), false, HolderPlan::LookAgain),
            (None, long, false, HolderPlan::Take),
            (None, None, true, HolderPlan::Take),
            (Some(DropletStatus::Active), long, false, HolderPlan::Respect),
            (Some(DropletStatus::New), long, false, HolderPlan::Respect),
            (Some(DropletStatus::Other("locked".into())), long, false, HolderPlan::Respect),
            (Some(DropletStatus::Off), None, false, HolderPlan::LookAgain),
            (Some(DropletStatus::Off), Some(Duration::ZERO), false, HolderPlan::LookAgain),
            (Some(DropletStatus::Off), long, false, HolderPlan::Take),
            (Some(DropletStatus::Archive), None, false, HolderPlan::LookAgain),
            (Some(DropletStatus::Archive), long, false, HolderPlan::Take),
            (Some(DropletStatus::Active), None, true, HolderPlan::Take),
            (Some(DropletStatus::Off), None, true, HolderPlan::Take),
        ];
        for (status, unusable_for, takeover, want) in table {
            let holder = status.clone().map(droplet);
            let sight = Sight { droplet: holder.as_ref(), unusable_for, is_contradicted: false };
            assert_eq!(plan_holder(sight, patience, takeover), want, "{status:?} {unusable_for:?} {takeover}");
            let contradicted = Sight { is_contradicted: true, ..sight };
            assert_eq!(plan_holder(contradicted, patience, takeover), HolderPlan::Ignore, "{status:?}");
        }
    }
}
