//! Attaching a volume to a droplet, so that it is there when the call says so.
//!
//! Owns the decision what to do about an attachment and the loop that ends only when the volume has been seen on the
//! droplet, or when it is certain that it cannot get there. Error texts decide nothing here: after each of them the volume
//! is read again. What to do about another droplet that has the volume is in `holder`.

use std::time::Instant;

use log::{info, warn};

use crate::cloud::droplet::Droplet;
use crate::cloud::volume::Volume;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::attachment::{AttachStep, Seen};
use crate::controller::context::{Backoff, CallContext};
use crate::controller::poll::ActionKind;
use crate::controller::run_action::{ActionOutcome, LastAction, Waits, await_action};
use crate::controller::takeover::HolderTracker;
use crate::controller::{Controller, MAX_QUEUE};
use crate::error::api::{ApiError, ApiErrorKind};
use crate::error::{Error, Result, Thing};
use crate::id::{ActionId, DropletId, VolumeId};
use crate::region::Region;
use crate::request::attachment::Publish;
use crate::sync::volume_lock::VolumeGuard;

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

/// What an attach is refused for that DigitalOcean refuses in words that are not known, or because it does not find
/// something.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cause {
    /// There is no such droplet.
    NoDroplet,
    /// They are in different regions, and neither can ever leave its own.
    OtherRegion { volume: Region, droplet: Region },
    /// What was read does not tell. Whether it is the volume that is gone, reading it will; words that are not known may be
    /// about something that is over in a while.
    Unknown,
}

/// Decides what such a refusal is about, from the volume's region and from the droplet, if there is one.
fn plan_cause(volume: Option<&Region>, droplet: Option<&Droplet>) -> Cause {
    match (volume, droplet.map(|droplet| droplet.region.as_ref())) {
        (_, None) => Cause::NoDroplet,
        (Some(volume), Some(Some(droplet))) if volume != droplet => {
            Cause::OtherRegion { volume: volume.clone(), droplet: droplet.clone() }
        }
        (Some(_) | None, Some(Some(_) | None)) => Cause::Unknown,
    }
}

/// What came of an attach that was sent.
#[derive(Debug)]
enum AttachOutcome {
    /// DigitalOcean says that it is done.
    Completed(ActionId),
    /// DigitalOcean says that it failed.
    Errored,
    /// DigitalOcean does not say that it has ended, and it should have long ago.
    Overdue,
    /// It is open whether it had an effect, or somebody else was faster, or why it was refused.
    Open(ApiError),
    /// DigitalOcean refuses it, if the volume is not there already.
    Refused(Error),
}

/// What one call has met so far.
#[derive(Debug)]
struct AttachProgress {
    pauses: Backoff,
    looks: Backoff,
    waits: Waits,
    /// An attach, this call's or another's, may be on its way.
    is_contested: bool,
    /// Since when the list of droplets has been contradicting the actions.
    stale_since: Option<Instant>,
    refusal: Option<Error>,
    watch: HolderTracker,
}

impl AttachProgress {
    /// Whether the list of droplets contradicts the actions for no longer than such a list lags behind.
    fn is_fresh(&mut self, ctx: &CallContext) -> bool {
        self.stale_since.get_or_insert_with(Instant::now).elapsed() < ctx.patience.propagation()
    }
}

impl Controller {
    /// Attaches a volume to a droplet.
    ///
    /// A second call sees the attachment and changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a volume or droplet that does not exist, [`Error::AttachedElsewhere`] when a running
    /// droplet has it, [`Error::OtherRegion`], [`Error::Mismatch`] when it is there for another use, [`Error::AttachLimit`],
    /// [`Error::NotYet`] when the call's time was used up by waiting.
    pub fn publish(&self, ctx: &CallContext, want: &Publish) -> Result<Volume> {
        self.ensure_attached(ctx, want).map_err(Error::or_not_yet)
    }

    fn ensure_attached(&self, ctx: &CallContext, want: &Publish) -> Result<Volume> {
        let doing = attaching(&want.volume, want.droplet);
        let mut progress = AttachProgress {
            pauses: ctx.retry_backoff(),
            looks: ctx.poll_backoff(),
            waits: Waits::new(ctx),
            is_contested: false,
            stale_since: None,
            refusal: None,
            watch: HolderTracker::default(),
        };
        loop {
            let guard = self.acquire_queued(ctx, &want.volume, MAX_QUEUE)?;
            let round = self.attach_step(&guard, ctx, want, &mut progress)?;
            if let AttachStep::Done(seen) = round {
                self.settle_mode(&guard, want, &seen)?;
                self.apply_tag(&guard, ctx, &seen.volume);
                return Ok(seen.volume);
            }
            // The call that makes the volume free must not wait for this one, which waits for that.
            drop(guard);
            match round {
                AttachStep::Done(_) | AttachStep::Again => {}
                AttachStep::Pause(why) => ctx.pause(progress.pauses.next_pause(), &doing, &why)?,
                AttachStep::PollHolder(why) => {
                    let pause = progress.watch.pause(progress.looks.next_pause(), ctx.patience);
                    ctx.pause(pause, &doing, &why)?;
                }
                AttachStep::Await(action) => {
                    self.await_foreign(ctx, &want.volume, &action, &mut progress.waits, &doing)?;
                }
            }
        }
    }

    fn attach_step(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        want: &Publish,
        progress: &mut AttachProgress,
    ) -> Result<AttachStep> {
        let volume = ctx.observe_volume(&want.volume)?;
        match plan_attach(&volume.droplets, want.droplet) {
            AttachPlan::Here => self.confirm_here(guard, ctx, volume, want, progress),
            AttachPlan::Attach => self.attach_free(guard, ctx, &volume, want, progress),
            AttachPlan::Elsewhere(holder) => {
                match self.release_step(guard, ctx, &volume, holder, want.droplet, &mut progress.watch)? {
                    Some(round) => {
                        progress.refusal = None;
                        Ok(round)
                    }
                    None => self.attach_despite_list(guard, ctx, volume, want, progress),
                }
            }
        }
    }

    /// Believes in an attachment that this call did not make, or does not. It may be on its way out, as a detach shows only
    /// at its end. When the last move was a detach, or an attach that may have gone anywhere, the list of droplets may be
    /// old: then the droplet has to say so too.
    fn confirm_here(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        volume: Volume,
        want: &Publish,
        progress: &mut AttachProgress,
    ) -> Result<AttachStep> {
        let by = match self.observe_last_action(ctx, &volume.id)? {
            // A detach that does not end may still be carried out: what is here may be on its way out.
            LastAction::Running(action) | LastAction::Stuck(action) => return Ok(AttachStep::Await(action)),
            LastAction::Unknown => return Ok(AttachStep::Done(Seen { volume, by: None })),
            LastAction::Attached(action, _)
                if self.publish_modes.attached_by(&volume.id, want.droplet) == Some(action) =>
            {
                return Ok(AttachStep::Done(Seen { volume, by: Some(action) }));
            }
            LastAction::Attached(action, _) => Some(action),
            LastAction::Detached => None,
        };
        let is_fresh = progress.is_fresh(ctx);
        // The droplet's own record lags as well, so right after a detach it proves nothing.
        let may_prove = by.is_some() || !is_fresh;
        if may_prove && self.has_volume(ctx, want.droplet, &volume.id)? {
            return Ok(AttachStep::Done(Seen { volume, by }));
        }
        let contradiction = if may_prove {
            format!("DigitalOcean lists it here, droplet {} does not have it", want.droplet)
        } else {
            format!("DigitalOcean lists it on droplet {}, and has detached it", want.droplet)
        };
        if is_fresh {
            return Ok(AttachStep::Pause(contradiction));
        }
        // Whatever the attach is answered, whoever is on call has to know of the contradiction.
        Ok(match self.attach_free(guard, ctx, &volume, want, progress)? {
            AttachStep::Pause(why) => AttachStep::Pause(format!("{contradiction}: {why}")),
            round @ (AttachStep::Done(_) | AttachStep::Again | AttachStep::PollHolder(_) | AttachStep::Await(_)) => {
                round
            }
        })
    }

    /// Attaches a volume that is listed on a droplet which does not have it. The droplet that wants it may have it already:
    /// such a list can stay old for longer than the call that attached it there.
    fn attach_despite_list(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        volume: Volume,
        want: &Publish,
        progress: &mut AttachProgress,
    ) -> Result<AttachStep> {
        if !self.has_volume(ctx, want.droplet, &volume.id)? {
            return self.attach_free(guard, ctx, &volume, want, progress);
        }
        let last_action = self.observe_last_action(ctx, &volume.id)?;
        let by = last_action.attach();
        Ok(match last_action {
            LastAction::Running(action) | LastAction::Stuck(action) => AttachStep::Await(action),
            LastAction::Attached(..) | LastAction::Detached | LastAction::Unknown => {
                AttachStep::Done(Seen { volume, by })
            }
        })
    }

    /// Attaches a volume that is nowhere.
    fn attach_free(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        volume: &Volume,
        want: &Publish,
        progress: &mut AttachProgress,
    ) -> Result<AttachStep> {
        if progress.is_contested {
            match self.observe_last_action(ctx, &want.volume)? {
                LastAction::Running(action) => return Ok(AttachStep::Await(action)),
                LastAction::Attached(..) if progress.is_fresh(ctx) => {
                    return Ok(AttachStep::Pause("it has been attached, and that does not show".to_owned()));
                }
                LastAction::Attached(..) | LastAction::Stuck(_) | LastAction::Detached | LastAction::Unknown => {
                    progress.is_contested = false;
                }
            }
        }
        if let Some(refusal) = progress.refusal.take() {
            return Err(refusal);
        }
        match self.apply_attach(guard, ctx, volume, want)? {
            AttachOutcome::Completed(action) => self.await_shown(guard, ctx, want, action, progress),
            AttachOutcome::Errored => Ok(AttachStep::Pause("DigitalOcean's attach action errored".to_owned())),
            AttachOutcome::Overdue => {
                progress.is_contested = true;
                Ok(AttachStep::Pause("DigitalOcean's attach action does not end".to_owned()))
            }
            AttachOutcome::Open(err) => {
                warn!(
                    "attach unclear, reading the volume again doing={}: {err}",
                    attaching(&want.volume, want.droplet)
                );
                progress.is_contested = true;
                Ok(AttachStep::Pause(err.to_string()))
            }
            AttachOutcome::Refused(err) => {
                progress.is_contested = true;
                progress.refusal = Some(err);
                Ok(AttachStep::Again)
            }
        }
    }

    /// Reads back what a completed attach has brought about. The guard is kept meanwhile: who waits for the volume to
    /// detach it comes after this call's answer, not between attach and answer. When the list of droplets stays old, the
    /// droplet's own record is proof enough.
    fn await_shown(
        &self,
        _guard: &VolumeGuard,
        ctx: &CallContext,
        want: &Publish,
        action: ActionId,
        progress: &mut AttachProgress,
    ) -> Result<AttachStep> {
        let (since, mut pauses) = (Instant::now(), ctx.backoff());
        loop {
            let volume = ctx.observe_volume(&want.volume)?;
            match plan_attach(&volume.droplets, want.droplet) {
                AttachPlan::Here => return Ok(AttachStep::Done(Seen { volume, by: Some(action) })),
                AttachPlan::Elsewhere(_) | AttachPlan::Attach => {}
            }
            let why = "DigitalOcean's attach action completed, but the attachment does not show";
            if since.elapsed() > ctx.patience.propagation() {
                if self.has_volume(ctx, want.droplet, &want.volume)? {
                    return Ok(AttachStep::Done(Seen { volume, by: Some(action) }));
                }
                progress.is_contested = true;
                return Ok(AttachStep::Pause(why.to_owned()));
            }
            ctx.pause(pauses.next_pause(), &attaching(&want.volume, want.droplet), &why)?;
        }
    }

    /// Sends an attach when it is this call's turn, again while the droplet is busy, and waits for its end.
    fn apply_attach(
        &self,
        _guard: &VolumeGuard,
        ctx: &CallContext,
        volume: &Volume,
        want: &Publish,
    ) -> Result<AttachOutcome> {
        let (id, droplet) = (&want.volume, want.droplet);
        let doing = attaching(id, droplet);
        let _turn = self.wait_for_droplet(ctx, droplet, &doing)?;
        let mut pauses = ctx.backoff();
        loop {
            let err = match ctx.cloud.attach(id, droplet) {
                Ok(action) => {
                    return Ok(match await_action(ctx, &self.pace, id, ActionKind::Attach, &action, &doing)? {
                        ActionOutcome::Completed => {
                            info!("attached volume={id} droplet={droplet} action={}", action.id);
                            AttachOutcome::Completed(action.id)
                        }
                        ActionOutcome::Errored => AttachOutcome::Errored,
                        ActionOutcome::Overdue => AttachOutcome::Overdue,
                    });
                }
                Err(err) => err,
            };
            match plan_failure(&err) {
                ApiFailure::Retryable => ctx.pause(pauses.after(&err), &doing, &err)?,
                ApiFailure::OutcomeUnknown | ApiFailure::StateConflict => return Ok(AttachOutcome::Open(err)),
                ApiFailure::NotFound | ApiFailure::Unrecognized => return self.explain_refusal(ctx, volume, want, err),
                ApiFailure::LimitReached => return Ok(AttachOutcome::Refused(limit(want, doing, err))),
                ApiFailure::OutOfTime => return Err(ctx.timed_out(&doing, err.to_string())),
                ApiFailure::Permanent => return Ok(AttachOutcome::Refused(Error::Api { doing, source: err })),
            }
        }
    }

    /// Finds out what an attach was refused for. The droplet is read only now: attaches that work need no look at it.
    fn explain_refusal(
        &self,
        ctx: &CallContext,
        volume: &Volume,
        want: &Publish,
        refused: ApiError,
    ) -> Result<AttachOutcome> {
        let droplet = ctx.observe_droplet(want.droplet)?;
        match plan_cause(volume.region.as_ref(), droplet.as_ref()) {
            Cause::NoDroplet => Err(Error::NotFound(Thing::Droplet(want.droplet.to_string()))),
            Cause::OtherRegion { volume: region, droplet: droplet_region } => Err(Error::OtherRegion {
                volume: volume.id.clone(),
                name: volume.name.clone(),
                region,
                droplet: want.droplet,
                droplet_region,
            }),
            Cause::Unknown => Ok(AttachOutcome::Open(refused)),
        }
    }

    /// Puts the owner's tag on a volume that does not have it. The volume is attached by now, so what goes wrong with
    /// the tag is no failure of the call; the next one tries again. One that is another owner's is used and stays theirs.
    fn apply_tag(&self, _guard: &VolumeGuard, ctx: &CallContext, volume: &Volume) {
        let Some(tag) = self.owner.tag().filter(|tag| !volume.tags.iter().any(|have| tag.is(have))) else { return };
        if let Some((why, cure)) = self.owner.foreign(volume) {
            warn!(
                "volume={} name={} is used, but not deleted, changed, or taken from a droplet that is off or gone: {why}; \
                 {cure}",
                volume.id, volume.name
            );
            return;
        }
        if self.tagging.is_known() {
            return;
        }
        let Err(err) = ctx.cloud.tag_volume(&volume.id, tag) else { return };
        if err.kind() == ApiErrorKind::Forbidden {
            self.tagging.enter();
            warn!(
                "not tagged volume={} tag={}, nor will others be within the next hour: the token lacks tag:create or \
                 block_storage:update: {err}",
                volume.id,
                tag.as_str()
            );
        } else {
            warn!("not tagged volume={} tag={}: {err}", volume.id, tag.as_str());
        }
    }
}

/// The droplet's limit, or one of the account.
fn limit(want: &Publish, doing: String, err: ApiError) -> Error {
    if err.kind() == ApiErrorKind::AttachLimit {
        Error::AttachLimit { droplet: want.droplet, volume: want.volume.clone() }
    } else {
        Error::AccountLimit { doing, source: err }
    }
}

fn attaching(id: &VolumeId, droplet: DropletId) -> String {
    format!("attaching volume {id} to droplet {droplet}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::droplet::DropletStatus;

    fn id(number: u64) -> DropletId {
        DropletId::new(number).unwrap()
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
    fn a_refusal_is_for_good_when_the_droplet_is_gone_or_in_another_region_for_certain() {
        let region = |slug: &str| Region::parse(slug).unwrap();
        let droplet = |region| Droplet {
            id: id(1),
            name: "a".to_owned(),
            status: DropletStatus::Active,
            region,
            volumes: Vec::new(),
        };
        let (fra, nyc) = (Some(region("fra1")), Some(region("nyc1")));
        let apart = Cause::OtherRegion { volume: region("fra1"), droplet: region("nyc1") };
        let table = [
            (&fra, None, Cause::NoDroplet),
            (&None, None, Cause::NoDroplet),
            (&fra, Some(droplet(nyc.clone())), apart),
            (&fra, Some(droplet(fra.clone())), Cause::Unknown),
            (&fra, Some(droplet(None)), Cause::Unknown),
            (&None, Some(droplet(nyc.clone())), Cause::Unknown),
            (&None, Some(droplet(None)), Cause::Unknown),
        ];
        for (volume, droplet, want) in table {
            assert_eq!(plan_cause(volume.as_ref(), droplet.as_ref()), want, "{volume:?} {droplet:?}");
        }
    }
}
