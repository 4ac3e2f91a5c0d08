//! Attaching a volume to a droplet, so that it is there when the call says so.
//!
//! Owns the loop that ends only when the volume has been seen on the droplet, or when it is certain that it cannot get there.
//! Where the volume is, and what that calls for, is in `attachment`; what to do about another droplet, in `takeover`.
//!
//! ```text
//!                lock --> observe --> plan              (and at an unpublish that came later: TimedOut)
//!                 ^                     |
//!                 |                     +-- Done ------------------> note the mode, put the tag on --> answer
//!                 |                     +-- RefuseHeld ------------> AttachedElsewhere
//!                 |                     +-- RefuseAsAnswered ------> what DigitalOcean said
//!                 |                     +-- Attach -----> attach, read back --seen--> (as Done)
//!                 |                     |                   |
//!                 +-- unlock, pause <---+-- DetachFrom      | busy, errored, unclear, refused
//!                            ^  ^       +-- WaitFor         |
//!                            |  +-------+-- Retry           |
//!                            +------------------------------+
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;

use crate::activity::{About, Change};
use crate::backoff::Backoff;
use crate::cloud::action::Action;
use crate::cloud::droplet::Droplet;
use crate::cloud::volume::Volume;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::attachment::{
    AttachFacts, AttachHistory, AttachPlan, Doubt, Place, Purpose, Record, plan_attach,
};
use crate::controller::context::CallContext;
use crate::controller::overtaken::Order;
use crate::controller::owner::Owner;
use crate::controller::publish_mode::PublishModes;
use crate::controller::run_action::{ActionOutcome, ActionRequest, ActionRunner, OnBusy, Waits};
use crate::controller::tag_scope::Tagger;
use crate::controller::takeover::can_use;
use crate::error::api::{ApiError, ApiErrorKind};
use crate::error::{Error, Holder, Result, Thing};
use crate::id::{ActionId, DropletId, VolumeId};
use crate::metrics::events::{EventKind, record_change};
use crate::region::Region;
use crate::request::attachment::Publish;
use crate::sync::fifo_lock::FifoLocks;
use crate::sync::volume_lock::{VolumeBusy, VolumeGuard, VolumeKey, VolumeLocks};

/// How many calls may be about one volume before a publish: every node of a small cluster may ask for it at once, and a
/// storm of calls for one volume must leave threads for the others.
const MAX_QUEUE: usize = 8;
/// For how long what was seen of a droplet is as good as new.
const FRESH: Duration = Duration::from_millis(500);

/// Attaches volumes.
#[derive(Debug)]
pub(super) struct Attacher {
    pub(super) locks: VolumeLocks,
    pub(super) runner: Arc<ActionRunner>,
    pub(super) publish_modes: Arc<PublishModes>,
    /// Calls that attach the same volume.
    pub(super) publishing: FifoLocks<VolumeId>,
    pub(super) order: Arc<Order>,
    pub(super) owner: Owner,
    pub(super) tagger: Tagger,
    /// Whether a volume is taken from whatever droplet has it.
    pub(super) takeover: bool,
}

/// How one step ended.
#[derive(Debug)]
enum AttachStep {
    /// The volume has been seen where it should be.
    Done(Volume),
    /// Something has changed: look again at once.
    Again,
    /// Nothing more can be done now, for this reason: look again after a pause, each longer than the last.
    Pause(String),
    /// The same, but look soon, as the state is about to change.
    PollHolder(Doubt),
    /// The droplet is busy.
    Busy(ApiError),
    /// Somebody else's action has to end first.
    Await(Action),
}

/// The waits of one call.
#[derive(Debug)]
struct AttachWaits {
    pauses: Backoff,
    looks: Backoff,
    busy: Backoff,
    foreign: Waits,
}

impl Attacher {
    /// As [`crate::controller::Controller::publish`], but for the error of a call that used up its time.
    pub(super) fn publish(&self, ctx: &CallContext, want: &Publish, purpose: Purpose) -> Result<Volume> {
        let key = VolumeKey::Id(want.volume.to_string());
        let full = |why| VolumeBusy::new(key.clone(), why);
        let _attaching = self.runner.storm.enter();
        let _place = self.publishing.enter(want.volume.clone(), MAX_QUEUE).map_err(full)?;
        let mut history = AttachHistory::new(ctx.patience, self.takeover, purpose);
        let mut waits = AttachWaits {
            pauses: ctx.retry_backoff(),
            looks: ctx.poll_backoff(),
            busy: ctx.busy_backoff(),
            foreign: Waits::new(ctx),
        };
        loop {
            let guard = self.locks.acquire_queued(key.clone(), usize::MAX, ctx.deadline())?;
            self.check_not_overtaken(ctx, want)?;
            let is_endangered = self.runner.lost_detaches.may_start(&want.volume, want.droplet, Instant::now());
            let facts = self.observe(ctx, want, &history)?;
            self.owner.check_use(&facts.volume, "attached")?;
            history.note(&facts);
            let mut plan = plan_attach(&facts, want.droplet, &history);
            if is_endangered && matches!(plan, AttachPlan::Done { .. } | AttachPlan::Attach { .. }) {
                plan = AttachPlan::Retry(Doubt::DetachInFlight(want.droplet));
            }
            let step = self.apply_step(&guard, ctx, want, facts, plan, &mut history)?;
            // The call that makes the volume free must not wait for this one, which waits for that.
            drop(guard);
            if let AttachStep::Done(volume) = step {
                return Ok(volume);
            }
            self.wait(ctx, want, step, &history, &mut waits)?;
        }
    }

    /// Reads where the volume is: where calls come together, by a list that is read for all of them, if that shows it as free.
    fn observe(&self, ctx: &CallContext, want: &Publish, history: &AttachHistory) -> Result<AttachFacts> {
        let known = self.publish_modes.attached_by(&want.volume, want.droplet);
        if history.is_contested || known.is_some() {
            return ctx.observe_attachment(want, known, history);
        }
        let at = Instant::now();
        let asking = self.runner.shared.ask();
        ctx.pause(ctx.patience.gather(), &attaching(want).to_string(), &"others may come with it")?;
        self.await_storm(ctx, want)?;
        let found = self.runner.shared.unattached(ctx, &asking, &want.volume);
        match found.filter(|volume| self.owner.foreign(volume).is_none()) {
            Some(volume) => Ok(AttachFacts { volume, place: Place::Nowhere { last_action: None }, at }),
            None => ctx.observe_attachment(want, known, history),
        }
    }

    /// Waits where several calls have come together, as they will have done at other plugins.
    fn await_storm(&self, ctx: &CallContext, want: &Publish) -> Result<()> {
        loop {
            // Whoever has little time waits less.
            let longest = ctx.patience.spread().min(ctx.left() / 8);
            let pause = self.runner.storm.pause(longest, Instant::now());
            if pause.is_zero() {
                return Ok(());
            }
            ctx.pause(pause, &attaching(want).to_string(), &"many volumes are attached at once")?;
        }
    }

    /// While this call waited, another one may have come that takes the volume from the droplet; nobody would do that again.
    fn check_not_overtaken(&self, ctx: &CallContext, want: &Publish) -> Result<()> {
        if self.order.is_publish_overtaken(&want.volume, want.droplet, ctx.started()) {
            let why = "a later call has taken the volume from there again";
            return Err(ctx.timed_out(&attaching(want).to_string(), why));
        }
        Ok(())
    }

    /// Does what the plan says; with the volume locked, as the facts are of a moment ago.
    fn apply_step(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        want: &Publish,
        facts: AttachFacts,
        plan: AttachPlan,
        history: &mut AttachHistory,
    ) -> Result<AttachStep> {
        let refusal = history.refusal.take();
        (history.nothing_on, history.is_attached) = (None, false);
        match plan {
            AttachPlan::Done { by } => {
                if !matches!(facts.place, Place::Here { is_known: true, .. }) {
                    // An attach that outlasted its own call.
                    self.runner.got_through(&[want.droplet]);
                }
                self.finish(guard, ctx, want, facts.volume, by, history)
            }
            AttachPlan::Attach { despite } => {
                if let Place::Held { holder, .. } = facts.place {
                    warn!(volume:% = want.volume, droplet = holder.get(); "the volume is still listed on a droplet that does not have it");
                }
                let step = self.apply_attach(guard, ctx, want, &facts.volume, history)?;
                Ok(match (step, despite) {
                    // Whatever the attach is answered, whoever is on call has to know of the contradiction.
                    (AttachStep::Pause(why), Some(doubt)) => AttachStep::Pause(format!("{doubt}: {why}")),
                    (step, _) => step,
                })
            }
            AttachPlan::DetachFrom(holder) => self.apply_takeover(guard, ctx, want, &facts, holder, history),
            AttachPlan::WaitFor(action) => Ok(AttachStep::Await(action)),
            AttachPlan::Retry(doubt) if doubt.is_about_holder() => Ok(AttachStep::PollHolder(doubt)),
            AttachPlan::Retry(doubt) => Ok(AttachStep::Pause(doubt.to_string())),
            AttachPlan::RefuseHeld(holder) => Err(held_elsewhere(&facts, holder, want.droplet)),
            AttachPlan::RefuseAsAnswered => {
                Err(refusal.unwrap_or_else(|| Error::Bug("an attach was refused without a reason".to_owned())))
            }
        }
    }

    /// The volume has been seen on the droplet.
    fn finish(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        want: &Publish,
        volume: Volume,
        by: Option<ActionId>,
        history: &AttachHistory,
    ) -> Result<AttachStep> {
        match history.purpose {
            Purpose::Publish => {
                self.publish_modes.settle(guard, want, &volume, by)?;
                self.tagger.apply_tag(guard, ctx, &volume);
                self.order.published(&want.volume, want.droplet, ctx.started());
            }
            Purpose::Return => {}
        }
        Ok(AttachStep::Done(volume))
    }

    /// Attaches a volume that is nowhere.
    fn apply_attach(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        want: &Publish,
        volume: &Volume,
        history: &mut AttachHistory,
    ) -> Result<AttachStep> {
        let request = attaching(want);
        self.await_storm(ctx, want)?;
        let outcome = self.runner.run(guard, ctx, &request, OnBusy::Return)?;
        // What was on its way has shown, or ended.
        history.is_contested = false;
        let why = outcome.in_words("attach");
        match outcome {
            ActionOutcome::Completed(action) => {
                if self.runner.is_quota_scarce(ctx) && self.runner.shared.has_volume(ctx, want.droplet, &want.volume) {
                    let volume = Volume { droplets: vec![want.droplet], ..volume.clone() };
                    return self.finish(guard, ctx, want, volume, Some(action), history);
                }
                return self.await_shown(guard, ctx, want, action, history);
            }
            ActionOutcome::Errored(_) | ActionOutcome::Withdrawn => {}
            ActionOutcome::Busy(err) => return Ok(AttachStep::Busy(err)),
            ActionOutcome::Overdue(_) | ActionOutcome::Open(_) => history.is_contested = true,
            ActionOutcome::Refused(err) => {
                history.is_contested = true;
                history.is_attached = err.kind() == ApiErrorKind::AlreadyAttached;
                match plan_failure(&err) {
                    ApiFailure::NotFound | ApiFailure::Unrecognized => self.check_cause(ctx, want, volume)?,
                    ApiFailure::LimitReached => return Ok(refused(history, limit(want, &request, err))),
                    ApiFailure::Permanent => {
                        return Ok(refused(history, Error::Api { doing: request.to_string(), source: err }));
                    }
                    // Somebody else was faster, most likely.
                    ApiFailure::StateConflict
                    | ApiFailure::Retryable
                    | ApiFailure::OutcomeUnknown
                    | ApiFailure::OutOfTime => {}
                }
            }
        }
        Ok(AttachStep::Pause(why))
    }

    /// Reads back what a completed attach has brought about. The guard is kept meanwhile: who waits for the volume to
    /// detach it comes after this call's answer, not between attach and answer. When the list of droplets stays old, the
    /// droplet's own record is proof enough.
    fn await_shown(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        want: &Publish,
        action: ActionId,
        history: &mut AttachHistory,
    ) -> Result<AttachStep> {
        let (since, mut pauses) = (Instant::now(), ctx.backoff());
        loop {
            let volume = ctx.observe_volume(&want.volume)?;
            let is_listed = !volume.droplets.is_empty() && volume.droplets.iter().all(|it| *it == want.droplet);
            let is_late = since.elapsed() > ctx.patience.propagation();
            if is_listed || is_late && ctx.has_volume(want.droplet, &want.volume)? {
                return self.finish(guard, ctx, want, volume, Some(action), history);
            }
            let why = format!("DigitalOcean's attach action {action} completed, but the attachment does not show");
            if is_late {
                history.is_contested = true;
                return Ok(AttachStep::Pause(why));
            }
            ctx.pause(pauses.next_pause(), &attaching(want).to_string(), &why)?;
        }
    }

    /// Finds out whether an attach was refused for what never changes. The droplet is read only now: attaches that work need
    /// no look at it.
    fn check_cause(&self, ctx: &CallContext, want: &Publish, volume: &Volume) -> Result<()> {
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
            Cause::Unknown => Ok(()),
        }
    }

    /// Takes the volume from a droplet that cannot use it. While that is busy, its state is looked at again before each try: an
    /// event that keeps it busy may be the one that switches it on.
    ///
    /// A destroyed droplet may leave the volume listed for good, without an action that says where the volume went. When a
    /// detach is told that nothing is attached there, and the droplet's own record agrees, the next look takes it for free.
    fn apply_takeover(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        want: &Publish,
        facts: &AttachFacts,
        holder: DropletId,
        history: &mut AttachHistory,
    ) -> Result<AttachStep> {
        let (volume, record) = (&facts.volume, record(facts));
        self.owner.check_change(volume, &format!("taken from droplet {holder}"))?;
        let begun = || {
            record_change(
                EventKind::TakenOver,
                format_args!(
                    "volume {} ({}) from droplet {holder}, which is {}, for droplet {}",
                    volume.id,
                    volume.name,
                    record.state(),
                    want.droplet
                ),
                Change::TakenOver,
                format_args!(
                    "taking the volume from droplet {holder}, which is {}, for droplet {}",
                    record.state(),
                    want.droplet
                ),
                About::default()
                    .with("volume", &volume.id)
                    .with("name", &volume.name)
                    .with("from", holder)
                    .with("droplet", want.droplet),
            );
        };
        let request = ActionRequest::Detach { volume: &volume.id, droplet: holder };
        // In the line for the droplet minutes may pass, in which it may have been switched on.
        let is_still_so = |waited| {
            let is_known = self.takeover || waited <= FRESH;
            Ok(is_known || !can_use(ctx.observe_droplet(holder)?.as_ref().map(|droplet| &droplet.status)))
        };
        let outcome = self.runner.run_if(guard, ctx, &request, OnBusy::Return, is_still_so, begun)?;
        if matches!(outcome, ActionOutcome::Open(_)) {
            begun();
        }
        let outcome = outcome.unless_denied(&request)?;
        if outcome.proves_nothing_attached() && record.lacks_it() {
            warn!(volume:% = volume.id, droplet = holder.get(); "the volume is listed on a droplet that has nothing of it to detach");
            history.nothing_on = Some(holder);
            return Ok(AttachStep::Again);
        }
        Ok(match outcome {
            ActionOutcome::Completed(_) | ActionOutcome::Withdrawn => AttachStep::Again,
            ActionOutcome::Errored(_)
            | ActionOutcome::Overdue(_)
            | ActionOutcome::Busy(_)
            | ActionOutcome::Refused(_)
            | ActionOutcome::Open(_) => {
                AttachStep::Pause(format!("taking it from droplet {holder}: {}", outcome.in_words("detach")))
            }
        })
    }

    /// Waits for what the step was about.
    fn wait(
        &self,
        ctx: &CallContext,
        want: &Publish,
        step: AttachStep,
        history: &AttachHistory,
        waits: &mut AttachWaits,
    ) -> Result<()> {
        let request = attaching(want);
        let doing = request.to_string();
        match step {
            AttachStep::Done(_) | AttachStep::Again => Ok(()),
            AttachStep::Pause(why) => ctx.pause(waits.pauses.next_pause(), &doing, &why),
            AttachStep::PollHolder(doubt) => {
                ctx.pause(history.holder.pause(waits.looks.next_pause(), ctx.patience), &doing, &doubt)
            }
            AttachStep::Busy(err) => {
                self.runner.pause_while_busy(ctx, request.droplets(), &doing, &mut waits.busy, &err)
            }
            AttachStep::Await(action) => {
                self.runner.await_foreign(ctx, &want.volume, &action, &mut waits.foreign, &doing).map(drop)
            }
        }
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

/// A refusal holds if the next look shows the volume as free as before.
fn refused(history: &mut AttachHistory, refusal: Error) -> AttachStep {
    history.refusal = Some(refusal);
    AttachStep::Again
}

fn record(facts: &AttachFacts) -> &Record {
    match &facts.place {
        Place::Held { record, .. } => record,
        Place::Nowhere { .. } | Place::Here { .. } | Place::HeldLately { .. } => &Record::NotAsked,
    }
}

fn held_elsewhere(facts: &AttachFacts, holder: DropletId, wanted: DropletId) -> Error {
    let name = match record(facts) {
        Record::Seen { name, .. } if !name.is_empty() => Some(name.clone()),
        Record::Seen { .. } | Record::Gone | Record::NotAsked => None,
    };
    Error::AttachedElsewhere {
        volume: facts.volume.id.clone(),
        name: facts.volume.name.clone(),
        holder: Holder { id: holder, name },
        wanted,
    }
}

/// The droplet's limit, or one of the account.
fn limit(want: &Publish, request: &ActionRequest<'_>, err: ApiError) -> Error {
    if err.kind() == ApiErrorKind::AttachLimit {
        Error::AttachLimit { droplet: want.droplet, volume: want.volume.clone() }
    } else {
        Error::AccountLimit { doing: request.to_string(), source: err }
    }
}

fn attaching(want: &Publish) -> ActionRequest<'_> {
    ActionRequest::Attach { volume: &want.volume, droplet: want.droplet }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::droplet::DropletStatus;

    fn id(number: u64) -> DropletId {
        DropletId::new(number).unwrap()
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
