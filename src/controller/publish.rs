//! Attaching a volume to a droplet, so that it is there when the call says so.
//!
//! Owns the decision what to do about an attachment and the loop that ends only when the volume has been seen on the
//! droplet, or when it is certain that it cannot get there. Error texts decide nothing here: after each of them the volume
//! is read again.

use std::time::{Duration, Instant};

use log::{info, warn};

use super::Controller;
use super::action::{Ended, await_action};
use super::time::{CallTime, Pauses};
use super::verdict::{Verdict, plan_verdict};
use crate::cloud::action::ActionStatus;
use crate::cloud::droplet::{Droplet, DropletStatus};
use crate::cloud::pace::ActionKind;
use crate::cloud::volume::Volume;
use crate::config::{HOLDER_PATIENCE, OFF_PATIENCE};
use crate::error::{Error, Holder, Result, Thing};
use crate::id::{DropletId, VolumeId};
use crate::lock::VolumeGuard;
use crate::request::controller::Publish;

/// The pause between two looks at a volume that something else is changing.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// What a volume's attachment calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttachPlan {
    /// It is where it should be.
    Here,
    /// It is nowhere: attach it.
    Attach,
    /// Another droplet has it.
    Elsewhere(DropletId),
}

/// Decides about an attachment. DigitalOcean attaches a volume to one droplet at most; should it ever say otherwise, the
/// other droplet counts, because two writers destroy a file system.
fn plan_attach(droplets: &[DropletId], want: DropletId) -> AttachPlan {
    match droplets.iter().find(|droplet| **droplet != want) {
        Some(other) => AttachPlan::Elsewhere(*other),
        None if droplets.is_empty() => AttachPlan::Attach,
        None => AttachPlan::Here,
    }
}

/// What to do about another droplet that has the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HolderPlan {
    /// It cannot use the volume: take it away.
    Take,
    /// It is off or archived; look again in a while, as a reboot passes through `off`.
    LookAgain,
    /// It may be using the volume: leave it alone.
    Respect,
}

/// Decides about the droplet that has the volume; none: DigitalOcean does not know it any more.
fn plan_holder(holder: Option<&Droplet>, off_since: Option<Duration>, takeover: bool) -> HolderPlan {
    match holder.map(|droplet| &droplet.status) {
        None => HolderPlan::Take,
        Some(_) if takeover => HolderPlan::Take,
        Some(DropletStatus::Off | DropletStatus::Archive) => match off_since {
            Some(time) if time >= OFF_PATIENCE => HolderPlan::Take,
            Some(_) | None => HolderPlan::LookAgain,
        },
        Some(DropletStatus::New | DropletStatus::Active | DropletStatus::Other(_)) => HolderPlan::Respect,
    }
}

/// What one call has seen so far of a volume that it cannot have yet.
#[derive(Debug, Default)]
struct Watch {
    since: Option<Instant>,
    off_since: Option<Instant>,
}

impl Controller {
    /// Attaches a volume to a droplet.
    ///
    /// A second call sees the attachment and changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a volume or droplet that does not exist, [`Error::AttachedElsewhere`] when a running
    /// droplet has it, [`Error::AttachLimit`], [`Error::OutOfTime`] when DigitalOcean was busy for the whole call.
    pub fn publish(&self, want: &Publish) -> Result<Volume> {
        let guard = self.hold(&want.volume)?;
        let time = self.begin();
        let volume = self.ensure_attached(&guard, &time, &want.volume, want.droplet)?;
        self.ensure_tagged(&guard, &time, &volume)?;
        Ok(volume)
    }

    fn ensure_attached(
        &self,
        guard: &VolumeGuard,
        time: &CallTime,
        id: &VolumeId,
        droplet: DropletId,
    ) -> Result<Volume> {
        let mut is_ours = false;
        let mut watch = Watch::default();
        let mut pauses = Pauses::new();
        loop {
            let volume = time.observe_volume(id)?;
            match plan_attach(&volume.droplets, droplet) {
                // An attachment that this call did not make may be on its way out: a detach shows only at its end.
                AttachPlan::Here if is_ours || !self.is_changing(time, id)? => return Ok(volume),
                AttachPlan::Here => time.pause(WATCH_PAUSE, &attaching(id, droplet), &"a detach is running")?,
                AttachPlan::Attach if is_ours => {
                    // Completed, yet not shown: the listing may lag, and if it does not the attach is repeated.
                    is_ours = false;
                    time.pause(pauses.next_pause(), &attaching(id, droplet), &"the attachment does not show yet")?;
                }
                AttachPlan::Attach => is_ours = self.apply_attach(guard, time, id, droplet)? == Ended::Completed,
                AttachPlan::Elsewhere(holder) => {
                    is_ours = false;
                    self.ensure_released(guard, time, &volume, holder, droplet, &mut watch)?;
                }
            }
        }
    }

    /// Starts an attach and waits for its end. Says whether it completed; everything that leaves it open whether it did
    /// counts as not completed, and the caller looks.
    fn apply_attach(&self, _guard: &VolumeGuard, time: &CallTime, id: &VolumeId, droplet: DropletId) -> Result<Ended> {
        let doing = attaching(id, droplet);
        let busy = || time.out_of_time(&doing, "earlier calls for this droplet are still running");
        let _turn = self.turns.take(droplet, time.deadline()).ok_or_else(busy)?;
        let mut pauses = Pauses::new();
        loop {
            let err = match time.cloud.attach(id, droplet) {
                Ok(action) => {
                    let ended = await_action(time, &self.pace, id, ActionKind::Attach, &action, &doing)?;
                    if ended == Ended::Completed {
                        info!("attached volume={id} droplet={droplet} action={}", action.id);
                    } else {
                        time.pause(pauses.next_pause(), &doing, &"DigitalOcean's attach action errored")?;
                    }
                    return Ok(ended);
                }
                Err(err) => err,
            };
            match plan_verdict(&err) {
                Verdict::Busy => time.pause(pauses.after(&err), &doing, &err)?,
                Verdict::Unclear | Verdict::Conflict => {
                    warn!("attach unclear, reading the volume again doing={doing}: {err}");
                    time.pause(pauses.after(&err), &doing, &err)?;
                    return Ok(Ended::Errored);
                }
                Verdict::Missing | Verdict::Odd if self.observe_droplet(time, droplet)?.is_none() => {
                    return Err(Error::NotFound(Thing::Droplet(droplet.to_string())));
                }
                // The droplet is there, so it is the volume that is gone, which reading it will tell.
                Verdict::Missing => return Ok(Ended::Errored),
                Verdict::Limit => return Err(Error::AttachLimit { droplet, volume: id.clone() }),
                Verdict::OutOfTime => return Err(time.out_of_time(&doing, err.to_string())),
                Verdict::Odd | Verdict::Refused => return Err(Error::Api { doing, source: err }),
            }
        }
    }

    /// Brings about that another droplet lets go of the volume, or fails when that is not ours to do.
    fn ensure_released(
        &self,
        guard: &VolumeGuard,
        time: &CallTime,
        volume: &Volume,
        holder: DropletId,
        wanted: DropletId,
        watch: &mut Watch,
    ) -> Result<()> {
        let doing = attaching(&volume.id, wanted);
        if self.is_changing(time, &volume.id)? {
            return time.pause(
                WATCH_PAUSE,
                &doing,
                &format!("droplet {holder} has it, and an action on it is running"),
            );
        }
        let droplet = self.observe_droplet(time, holder)?;
        let off_since = watch.off_since.map(|since| since.elapsed());
        match plan_holder(droplet.as_ref(), off_since, self.takeover) {
            HolderPlan::Take => {
                let state = droplet.map_or_else(|| "gone".to_owned(), |droplet| format!("{:?}", droplet.status));
                warn!("taking volume={} from droplet={holder}, which is {state}, for droplet={wanted}", volume.id);
                self.ensure_detached(guard, time, &volume.id, holder)
            }
            HolderPlan::LookAgain => {
                watch.off_since.get_or_insert_with(Instant::now);
                time.pause(WATCH_PAUSE, &doing, &format!("droplet {holder} has it and is not running"))
            }
            HolderPlan::Respect => {
                watch.off_since = None;
                if watch.since.get_or_insert_with(Instant::now).elapsed() < HOLDER_PATIENCE {
                    return time.pause(WATCH_PAUSE, &doing, &format!("droplet {holder} has it"));
                }
                let name = droplet.map(|droplet| droplet.name).filter(|name| !name.is_empty());
                Err(Error::AttachedElsewhere {
                    volume: volume.id.clone(),
                    name: volume.name.clone(),
                    holder: Holder { id: holder, name },
                    wanted,
                })
            }
        }
    }

    /// Whether DigitalOcean is doing something to the volume at this moment.
    pub(super) fn is_changing(&self, time: &CallTime, id: &VolumeId) -> Result<bool> {
        let doing = format!("reading the latest action of volume {id}");
        let latest = time.ask(&doing, super::no_volume(id, || doing.clone()), |cloud| cloud.latest_action(id))?;
        Ok(latest.is_some_and(|action| match action.status {
            ActionStatus::InProgress => true,
            ActionStatus::Completed | ActionStatus::Errored | ActionStatus::Other(_) => false,
        }))
    }

    /// Reads a droplet; none: it does not exist.
    pub(super) fn observe_droplet(&self, time: &CallTime, id: DropletId) -> Result<Option<Droplet>> {
        let doing = format!("reading droplet {id}");
        match time.ask(&doing, Error::api(doing.clone()), |cloud| cloud.get_droplet(id)) {
            Ok(droplet) => Ok(Some(droplet)),
            Err(Error::Api { source, .. }) if plan_verdict(&source) == Verdict::Missing => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Puts the operator's tag on a volume that does not have it.
    fn ensure_tagged(&self, _guard: &VolumeGuard, time: &CallTime, volume: &Volume) -> Result<()> {
        let Some(tag) = self.tag.as_ref().filter(|tag| !volume.tags.iter().any(|have| have == tag.as_str())) else {
            return Ok(());
        };
        let doing = format!("tagging volume {}", volume.id);
        time.ask(&doing, Error::api(doing.clone()), |cloud| cloud.tag_volume(&volume.id, tag))
    }
}

fn attaching(id: &VolumeId, droplet: DropletId) -> String {
    format!("attaching volume {id} to droplet {droplet}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> DropletId {
        DropletId::new(number).unwrap()
    }

    fn droplet(status: DropletStatus) -> Droplet {
        Droplet { id: id(7), name: "a".into(), status, region: None, volumes: Vec::new() }
    }

    #[test]
    fn the_plan_follows_from_where_the_volume_is() {
        let table: [(&[DropletId], AttachPlan); 4] = [
            (&[], AttachPlan::Attach),
            (&[id(1)], AttachPlan::Here),
            (&[id(2)], AttachPlan::Elsewhere(id(2))),
            (&[id(1), id(2)], AttachPlan::Elsewhere(id(2))),
        ];
        for (droplets, want) in table {
            assert_eq!(plan_attach(droplets, id(1)), want, "{droplets:?}");
        }
    }

    #[test]
    fn only_a_droplet_that_cannot_use_the_volume_loses_it() {
        let long = Some(OFF_PATIENCE);
        let table = [
            (None, None, false, HolderPlan::Take),
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
        for (status, off_since, takeover, want) in table {
            let holder = status.clone().map(droplet);
            assert_eq!(plan_holder(holder.as_ref(), off_since, takeover), want, "{status:?} {off_since:?} {takeover}");
        }
    }
}
