//! Detaching a volume from a droplet, so that it is not there when the call says so.
//!
//! Owns the loop that ends only when the volume has been seen not to be on the droplet, or not to exist. The detach is
//! sent first, without a look: it is right in almost every case, and DigitalOcean refuses it harmlessly in the others. Only
//! where this process knows that the volume is not there, as orchestrators send each call several times, it looks first. A
//! second one is sent only when the first has certainly had no effect: once DigitalOcean has carried one out, the volume
//! may be in use there again.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use log::info;

use crate::cloud::action::Action;
use crate::cloud::volume::Volume;
use crate::controller::context::CallContext;
use crate::controller::detach_backoff::{Admission, DetachBackoff, Pair};
use crate::controller::last_action::{LastAction, is_detach};
use crate::controller::overtaken::Order;
use crate::controller::owner::Owner;
use crate::controller::publish_mode::{Memory, PublishModes};
use crate::controller::run_action::{ActionOutcome, ActionRequest, ActionRunner, OnBusy, Waits};
use crate::error::{Chain, Error, Result};
use crate::id::{ActionId, DropletId, VolumeId};
use crate::request::attachment::{DetachFrom, Unpublish};
use crate::sync::fifo_lock::FifoLocks;
use crate::sync::volume_lock::{VolumeBusy, VolumeGuard, VolumeKey, VolumeLocks};

/// Detaches volumes.
#[derive(Debug)]
pub(super) struct Detacher {
    pub(super) locks: VolumeLocks,
    pub(super) runner: Arc<ActionRunner>,
    pub(super) publish_modes: Arc<PublishModes>,
    pub(super) order: Arc<Order>,
    pub(super) owner: Owner,
    /// Calls that repeat the same detach.
    pub(super) detaching: FifoLocks<Pair>,
    pub(super) backoff: DetachBackoff,
}

/// What is known when a detach was sent and has not been seen to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DetachFacts {
    /// Which droplets the volume lists.
    listing: Listing,
    /// What its actions say.
    last_action: LastAction,
    /// The attach that the detach was meant for, as far as it is known.
    meant: Option<ActionId>,
    /// When the detach was sent, by DigitalOcean's clock.
    sent_at: SystemTime,
    /// How long the call has been trying.
    age: Age,
}

/// One try of a call to detach a volume.
#[derive(Debug)]
struct Try {
    sent: ActionOutcome,
    sent_at: Instant,
    age: Age,
}

/// How long a call has been trying to detach a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// Not long: a record may still be of before the volume was attached.
    Early,
    /// So long that what was attached before it would be shown by now.
    Late,
}

/// Which droplets a volume lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    Here,
    Elsewhere,
    Nowhere,
}

/// What follows from the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum DetachStep {
    /// The volume is not on the droplet.
    Done,
    /// It has been detached; wait until that shows.
    AwaitShown,
    /// An action is running: wait for it.
    Await(Action),
    /// The volume and the droplet keep their records apart: when the droplet's has no volume, there is none.
    AskDroplet,
    /// Nothing was detached: send it again.
    Again,
    /// It may have been detached, and attached again since: neither may another detach be sent, nor is it done.
    Open,
}

/// Decides what a detach that has not been seen to be carried out calls for.
fn plan_detach(sent: &ActionOutcome, facts: &DetachFacts) -> DetachStep {
    if let LastAction::Running(action) = &facts.last_action {
        return DetachStep::Await(action.clone());
    }
    let is_shown = facts.listing == Listing::Here;
    match &facts.last_action {
        // It can only have taken the volume away; but the list may show that before it has.
        LastAction::Stuck(_) if !is_shown && sent.proves_nothing_attached() => return DetachStep::Done,
        LastAction::Stuck(action) if is_shown && !sent.proves_nothing_attached() => {
            return DetachStep::Await(action.clone());
        }
        LastAction::Stuck(_) => return DetachStep::AskDroplet,
        LastAction::Detached if !sent.proves_nothing_attached() => {
            return match facts.listing {
                Listing::Nowhere => DetachStep::Done,
                Listing::Here => DetachStep::AwaitShown,
                Listing::Elsewhere => DetachStep::AskDroplet,
            };
        }
        LastAction::Running(_) | LastAction::Detached | LastAction::Attached(..) | LastAction::Unknown => {}
    }
    match (sent, facts.listing) {
        (sent, Listing::Nowhere | Listing::Elsewhere) if sent.proves_nothing_attached() => DetachStep::Done,
        (sent, Listing::Here) if sent.proves_nothing_attached() => DetachStep::AskDroplet,
        (ActionOutcome::Open(_), Listing::Here | Listing::Nowhere | Listing::Elsewhere) if is_another(facts) => {
            DetachStep::Open
        }
        // The list alone proves nothing: it may be of before the volume was attached.
        (_, Listing::Here | Listing::Nowhere | Listing::Elsewhere) => match facts.age {
            Age::Late => DetachStep::AskDroplet,
            Age::Early => DetachStep::Again,
        },
    }
}

/// Whether the volume is attached by another attach than the detach was meant for.
///
/// Where that is not known, as another process published the volume, it is one that began after the detach was sent. Times
/// of actions are cut off to seconds, which hides none: between the two the detach itself has to be carried out.
fn is_another(facts: &DetachFacts) -> bool {
    match (facts.meant, &facts.last_action) {
        (Some(meant), last_action) => last_action.attach() != Some(meant),
        (None, LastAction::Attached(_, Some(started))) => *started > facts.sent_at,
        (
            None,
            LastAction::Attached(_, None)
            | LastAction::Running(_)
            | LastAction::Stuck(_)
            | LastAction::Detached
            | LastAction::Unknown,
        ) => false,
    }
}

/// Decides whether a volume is not on a droplet, from what this process has brought about itself and from two records that
/// agree with it: the list of droplets lags behind, and another process may have attached the volume since.
fn is_still_away(memory: Memory, listing: Listing, last_action: &LastAction) -> bool {
    match (memory, listing, last_action) {
        (Memory::Taken | Memory::PublishedElsewhere(_), Listing::Nowhere, LastAction::Detached) => true,
        (Memory::PublishedElsewhere(by), Listing::Elsewhere, LastAction::Attached(..)) => by == last_action.attach(),
        (
            Memory::None | Memory::Taken | Memory::PublishedElsewhere(_),
            Listing::Here | Listing::Nowhere | Listing::Elsewhere,
            LastAction::Running(_)
            | LastAction::Stuck(_)
            | LastAction::Attached(..)
            | LastAction::Detached
            | LastAction::Unknown,
        ) => false,
    }
}

impl Detacher {
    /// As [`crate::controller::Controller::unpublish`].
    ///
    /// What keeps failing is tried less and less often, and the calls between two tries end without asking DigitalOcean
    /// anything, so that a caller that repeats them in a hot loop does not use up the quota.
    pub(super) fn unpublish(&self, ctx: CallContext, want: &Unpublish) -> Result<()> {
        let droplet = match want.from {
            DetachFrom::Droplet(droplet) => Some(droplet),
            DetachFrom::Anywhere => None,
        };
        let pair = (want.volume.clone(), droplet);
        // Who repeats a failed detach waits here, where it is in the way of its own repetitions only, and of a caller that
        // makes one call at a time.
        let until = ctx.deadline().min(Instant::now() + ctx.patience.lock());
        let locked = |why| VolumeBusy::new(VolumeKey::Id(want.volume.to_string()), why);
        let _place = self.detaching.wait(pair.clone(), 1, until).map_err(locked)?;
        let ctx = self.await_admission(ctx, &pair)?;
        self.order.unpublish_came(&pair, ctx.started());
        // It may be what all the others in the line wait for, and at most two like it are there.
        let key = VolumeKey::Id(want.volume.to_string());
        let guard = self.locks.acquire_queued(key, usize::MAX, ctx.deadline())?;
        // Its caller wanted the end of an earlier use. It is not told that this is so: the volume is there. Nomad looks who
        // uses the volume before it asks again, and what is asked again is a call that came later.
        if self.order.is_unpublish_overtaken(&pair, ctx.started()) {
            return Err(Error::Overtaken(want.volume.clone()));
        }
        let outcome = match droplet {
            Some(droplet) if self.observe_untouchable(&ctx, &want.volume, droplet)? => Ok(()),
            Some(droplet) => self.ensure_detached(&guard, &ctx, &want.volume, droplet),
            None => self.ensure_detached_everywhere(&guard, &ctx, &want.volume),
        };
        match &outcome {
            Ok(()) => {
                self.publish_modes.unpublished(&want.volume, want.from);
                if let Some(droplet) = droplet {
                    self.publish_modes.taken_from(&want.volume, droplet);
                }
                self.backoff.succeeded(&pair);
            }
            Err(err) => self.backoff.failed(pair, Chain(err).to_string(), Instant::now()),
        }
        outcome
    }

    /// Waits for the end of the pause that earlier failures demand, but not for long: it is the caller's to come again.
    /// The call that makes the next try has less time for it than the first one had, and longer pauses in it.
    fn await_admission(&self, ctx: CallContext, pair: &Pair) -> Result<CallContext> {
        let (left, why) = match self.backoff.repeat(pair, Instant::now()) {
            Admission::Normal => return Ok(ctx),
            Admission::Shortened => return Ok(ctx.after_backoff()),
            Admission::Deferred { left, why } => (left, why),
        };
        let doing = format!("detaching volume {}", pair.0);
        let wait = ctx.patience.while_backing_off();
        ctx.pause(left.min(wait), &doing, &why)?;
        match left.checked_sub(wait).filter(|rest| !rest.is_zero()) {
            None => Ok(ctx.after_backoff()),
            Some(rest) => {
                let rest_s = rest.as_millis().div_ceil(1000);
                Err(ctx
                    .timed_out(&doing, format!("it is tried again in {rest_s} s at the earliest, as it failed: {why}")))
            }
        }
    }

    /// Whether a volume may not be touched, and is not on the droplet: what the caller wants is so already.
    ///
    /// # Errors
    /// [`Error::NotOurs`] when it may not be touched, and is there.
    fn observe_untouchable(&self, ctx: &CallContext, id: &VolumeId, droplet: DropletId) -> Result<bool> {
        if self.owner.only().is_none() {
            return Ok(false);
        }
        let Some(volume) = ctx.observe_volume_if_there(id)? else { return Ok(true) };
        match self.owner.check_use(&volume, &format!("detached from droplet {droplet}")) {
            Ok(()) => Ok(false),
            Err(refusal) if volume.droplets.contains(&droplet) => Err(refusal),
            Err(_not_there) => Ok(true),
        }
    }

    fn ensure_detached_everywhere(&self, guard: &VolumeGuard, ctx: &CallContext, id: &VolumeId) -> Result<()> {
        let (asked_at, mut stale_since) = (Instant::now(), None);
        let (mut pauses, mut waits) = (ctx.retry_backoff(), Waits::new(ctx));
        loop {
            let Some(volume) = ctx.observe_volume_if_there(id)? else { return Ok(()) };
            if !volume.droplets.is_empty() {
                // The caller names no droplet, so it may be one of the owner's.
                self.owner.check_change(&volume, "detached from wherever it is")?;
            }
            // The list may be old: the volume can be on another droplet than the ones that it has just been detached from.
            let detach = |droplet: &DropletId| self.ensure_detached(guard, ctx, id, *droplet);
            volume.droplets.iter().try_for_each(detach)?;
            let doing = format!("detaching volume {id}");
            match ctx.observe_last_action_if_there(id)? {
                LastAction::Running(action) => {
                    self.runner.await_foreign(ctx, id, &action, &mut waits, &doing)?;
                }
                // Attached since this call came, it is somebody's who has got it after the call's caller.
                LastAction::Attached(_, Some(started)) if started > ctx.cloud.time_of(asked_at) => return Ok(()),
                LastAction::Attached(..)
                    if stale_since.get_or_insert_with(Instant::now).elapsed() < ctx.patience.propagation() =>
                {
                    ctx.pause(pauses.next_pause(), &doing, &"it has been attached, and that does not show")?;
                }
                LastAction::Detached => return Ok(()),
                // That it lists no droplet proves nothing then. The droplets say which of them has it.
                LastAction::Attached(..) | LastAction::Stuck(_) | LastAction::Unknown => {
                    let Some(holder) = ctx.find_holder(id)? else { return Ok(()) };
                    self.owner.check_change(&volume, "detached from wherever it is")?;
                    self.ensure_detached(guard, ctx, id, holder)?;
                    ctx.pause(pauses.next_pause(), &doing, &format!("droplet {holder} had it and was not listed"))?;
                }
            }
        }
    }

    fn ensure_detached(&self, guard: &VolumeGuard, ctx: &CallContext, id: &VolumeId, droplet: DropletId) -> Result<()> {
        let request = ActionRequest::Detach { volume: id, droplet };
        if self.observe_not_there(ctx, id, droplet)? {
            return Ok(());
        }
        let mut meant = self.publish_modes.attached_by(id, droplet);
        let mut pauses = ctx.retry_backoff();
        let (begun, mut age) = (Instant::now(), Age::Early);
        loop {
            let sent_at = Instant::now();
            // The volume stays locked while the droplet is busy: who wants it elsewhere waits for this call in any case,
            // and another call could attach it here anew between two tries.
            let sent = self.runner.run(guard, ctx, &request, OnBusy::Wait)?.unless_denied(&request)?;
            let tried = Try { sent, sent_at, age };
            if self.settle_detach(ctx, id, droplet, &tried, &mut meant)? {
                return Ok(());
            }
            ctx.pause(pauses.next_pause(), &request.to_string(), &tried.sent.in_words("detach"))?;
            age = if begun.elapsed() < ctx.patience.propagation() { Age::Early } else { Age::Late };
        }
    }

    /// Whether a volume that this process has not left on the droplet is certainly still not there.
    fn observe_not_there(&self, ctx: &CallContext, id: &VolumeId, droplet: DropletId) -> Result<bool> {
        let memory = self.publish_modes.memory(id, droplet);
        if memory == Memory::None {
            return Ok(false);
        }
        let Some(volume) = ctx.observe_volume_if_there(id)? else { return Ok(true) };
        let last_action = ctx.observe_last_action_if_there(id)?;
        Ok(is_still_away(memory, listing(&volume, droplet), &last_action))
    }

    /// Finds out what a detach has brought about: whether the volume is not on the droplet, or a detach is to be sent again.
    fn settle_detach(
        &self,
        ctx: &CallContext,
        id: &VolumeId,
        droplet: DropletId,
        tried: &Try,
        meant: &mut Option<ActionId>,
    ) -> Result<bool> {
        let Try { sent, sent_at, age } = tried;
        let doing = detaching(id, droplet);
        let mut waits = Waits::new(ctx);
        // One try is one detach, however often it is seen.
        let mut is_open = matches!(sent, ActionOutcome::Open(_));
        loop {
            let Some(volume) = ctx.observe_volume_if_there(id)? else { return Ok(true) };
            if let ActionOutcome::Completed(action) = sent {
                return self.await_not_shown(ctx, volume, droplet, Some(*action)).map(|()| true);
            }
            let last_action = ctx.observe_last_action_if_there(id)?;
            if is_open && last_action.is_detach() && ctx.has_begun_detach(id, ctx.cloud.time_of(*sent_at))? {
                self.runner.lost_detaches.found(id, droplet, Instant::now());
                is_open = false;
            }
            let facts = DetachFacts {
                listing: listing(&volume, droplet),
                last_action,
                meant: *meant,
                sent_at: ctx.cloud.time_of(*sent_at),
                age: *age,
            };
            match plan_detach(sent, &facts) {
                DetachStep::Done => return Ok(true),
                DetachStep::AwaitShown => return self.await_not_shown(ctx, volume, droplet, None).map(|()| true),
                DetachStep::Await(action) => {
                    let ended = self.runner.await_foreign(ctx, id, &action, &mut waits, &doing)?;
                    if is_detach(&action) && matches!(ended, ActionOutcome::Completed(_)) {
                        let Some(volume) = ctx.observe_volume_if_there(id)? else { return Ok(true) };
                        return self.await_not_shown(ctx, volume, droplet, Some(action.id)).map(|()| true);
                    }
                    // What DigitalOcean said of the volume before that action is over with it.
                    if !matches!(sent, ActionOutcome::Open(_)) {
                        return Ok(false);
                    }
                }
                DetachStep::AskDroplet => return self.is_without(ctx, droplet, id),
                DetachStep::Again => {
                    *meant = meant.or(facts.last_action.attach());
                    return Ok(false);
                }
                DetachStep::Open => {
                    let why = format!(
                        "{}; it may have been detached, and has been attached again since",
                        sent.in_words("detach")
                    );
                    return Err(ctx.timed_out(&doing, why));
                }
            }
        }
    }

    /// Waits until a detach that was carried out is shown; `volume` is what was read first.
    fn await_not_shown(
        &self,
        ctx: &CallContext,
        mut volume: Volume,
        droplet: DropletId,
        action: Option<ActionId>,
    ) -> Result<()> {
        let doing = detaching(&volume.id, droplet);
        let why = match action {
            Some(action) => {
                format!("DigitalOcean's detach action {action} completed, but the attachment is still shown")
            }
            None => "DigitalOcean says that it is detached, but the attachment is still shown".to_owned(),
        };
        let (since, mut pauses) = (Instant::now(), ctx.backoff());
        while volume.is_attached_to(droplet) {
            if since.elapsed() > ctx.patience.propagation() {
                let is_without = self.is_without(ctx, droplet, &volume.id)?;
                return if is_without { Ok(()) } else { Err(ctx.timed_out(&doing, why)) };
            }
            ctx.pause(pauses.next_pause(), &doing, &why)?;
            match ctx.observe_volume_if_there(&volume.id)? {
                Some(seen) => volume = seen,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether the droplet does not exist, or does not know of the volume: its record and the volume's are kept apart, and
    /// the volume's can lag behind for a while, most of all after a droplet was destroyed.
    fn is_without(&self, ctx: &CallContext, droplet: DropletId, id: &VolumeId) -> Result<bool> {
        let is_without = !ctx.has_volume(droplet, id)?;
        if is_without {
            info!(volume:% = id, droplet = droplet.get(); "the droplet that the volume was shown on is gone, or does not have it");
        }
        Ok(is_without)
    }
}

fn listing(volume: &Volume, droplet: DropletId) -> Listing {
    match (volume.is_attached_to(droplet), volume.droplets.is_empty()) {
        (true, _) => Listing::Here,
        (false, true) => Listing::Nowhere,
        (false, false) => Listing::Elsewhere,
    }
}

fn detaching(id: &VolumeId, droplet: DropletId) -> String {
    ActionRequest::Detach { volume: id, droplet }.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cloud::action::ActionStatus;
    use crate::error::api::{ApiError, ApiErrorKind};

    fn refused(kind: ApiErrorKind) -> ActionOutcome {
        ActionOutcome::Refused(ApiError::without_reply(kind, "no"))
    }

    fn errored() -> ActionOutcome {
        ActionOutcome::Errored(ActionId(9))
    }

    fn overdue() -> ActionOutcome {
        ActionOutcome::Overdue(ActionId(9))
    }

    fn open() -> ActionOutcome {
        ActionOutcome::Open(ApiError::without_reply(ApiErrorKind::Server, "no"))
    }

    fn action(kind: &str) -> Action {
        Action { id: ActionId(9), status: ActionStatus::InProgress, kind: kind.to_owned(), started_at: None }
    }

    #[test]
    fn what_follows_from_a_detach_that_was_not_seen_to_be_carried_out() {
        use LastAction::{Attached, Detached, Unknown};
        use Listing::{Elsewhere, Here, Nowhere};
        let sent_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let begun = |seconds| Attached(ActionId(5), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)));
        let not_found = || refused(ApiErrorKind::AttachmentNotFound);
        let odd = || refused(ApiErrorKind::Unprocessable);
        let attached = || Attached(ActionId(5), None);
        let stuck = || LastAction::Stuck(action("detach_volume"));
        let (same, older) = (Some(ActionId(5)), Some(ActionId(3)));
        let table = [
            (not_found(), Nowhere, attached(), None, Age::Early, DetachStep::Done),
            (not_found(), Here, attached(), None, Age::Early, DetachStep::AskDroplet),
            (not_found(), Here, Detached, None, Age::Early, DetachStep::AskDroplet),
            (not_found(), Elsewhere, attached(), older, Age::Early, DetachStep::Done),
            (odd(), Nowhere, attached(), None, Age::Early, DetachStep::Again),
            (odd(), Here, attached(), None, Age::Late, DetachStep::AskDroplet),
            (odd(), Nowhere, attached(), None, Age::Late, DetachStep::AskDroplet),
            (odd(), Nowhere, Detached, None, Age::Early, DetachStep::Done),
            (odd(), Here, Detached, None, Age::Early, DetachStep::AwaitShown),
            (errored(), Here, attached(), older, Age::Early, DetachStep::Again),
            (errored(), Here, attached(), None, Age::Late, DetachStep::AskDroplet),
            (errored(), Nowhere, Unknown, None, Age::Early, DetachStep::Again),
            (errored(), Nowhere, Unknown, None, Age::Late, DetachStep::AskDroplet),
            (not_found(), Nowhere, Unknown, None, Age::Early, DetachStep::Done),
            (open(), Here, attached(), None, Age::Early, DetachStep::Again),
            (open(), Here, attached(), same, Age::Early, DetachStep::Again),
            (open(), Here, begun(999), None, Age::Early, DetachStep::Again),
            (open(), Here, begun(1001), None, Age::Early, DetachStep::Open),
            (open(), Nowhere, begun(1001), None, Age::Late, DetachStep::Open),
            (open(), Here, begun(1001), same, Age::Early, DetachStep::Again),
            (errored(), Here, begun(1001), None, Age::Early, DetachStep::Again),
            (open(), Here, attached(), older, Age::Early, DetachStep::Open),
            (open(), Nowhere, attached(), older, Age::Late, DetachStep::Open),
            (open(), Here, attached(), same, Age::Late, DetachStep::AskDroplet),
            (open(), Elsewhere, attached(), older, Age::Early, DetachStep::Open),
            (open(), Elsewhere, Unknown, None, Age::Late, DetachStep::AskDroplet),
            (errored(), Elsewhere, attached(), None, Age::Early, DetachStep::Again),
            (errored(), Elsewhere, attached(), None, Age::Late, DetachStep::AskDroplet),
            (errored(), Elsewhere, Detached, None, Age::Early, DetachStep::AskDroplet),
            (not_found(), Elsewhere, Unknown, None, Age::Early, DetachStep::Done),
            (open(), Here, Unknown, None, Age::Early, DetachStep::Again),
            (open(), Here, Detached, None, Age::Early, DetachStep::AwaitShown),
            (open(), Nowhere, Detached, None, Age::Early, DetachStep::Done),
            (not_found(), Nowhere, stuck(), None, Age::Early, DetachStep::Done),
            (not_found(), Elsewhere, stuck(), None, Age::Early, DetachStep::Done),
            (not_found(), Here, stuck(), None, Age::Early, DetachStep::AskDroplet),
            (overdue(), Nowhere, stuck(), None, Age::Early, DetachStep::AskDroplet),
            (odd(), Elsewhere, stuck(), None, Age::Late, DetachStep::AskDroplet),
            (overdue(), Here, stuck(), None, Age::Late, DetachStep::Await(action("detach_volume"))),
            (overdue(), Here, Detached, None, Age::Early, DetachStep::AwaitShown),
            (overdue(), Here, attached(), None, Age::Early, DetachStep::Again),
        ];
        for (sent, listing, last_action, meant, age, want) in table {
            let facts = DetachFacts { listing, last_action, meant, sent_at, age };
            assert_eq!(plan_detach(&sent, &facts), want, "{sent:?} {facts:?}");
        }
    }

    #[test]
    fn a_repeated_detach_is_done_only_where_the_memory_and_both_records_agree() {
        use LastAction::{Attached, Detached, Unknown};
        let attached = |action| Attached(ActionId(action), None);
        let elsewhere = |action| Memory::PublishedElsewhere(Some(ActionId(action)));
        let table = [
            (Memory::Taken, Listing::Nowhere, Detached, true),
            (elsewhere(5), Listing::Elsewhere, attached(5), true),
            (elsewhere(5), Listing::Nowhere, Detached, true),
            (Memory::None, Listing::Nowhere, Detached, false),
            (Memory::Taken, Listing::Here, Detached, false),
            (Memory::Taken, Listing::Nowhere, attached(5), false),
            (Memory::Taken, Listing::Nowhere, Unknown, false),
            (Memory::Taken, Listing::Elsewhere, attached(5), false),
            (Memory::Taken, Listing::Elsewhere, Detached, false),
            (Memory::Taken, Listing::Nowhere, LastAction::Running(action("attach_volume")), false),
            (Memory::Taken, Listing::Nowhere, LastAction::Stuck(action("detach_volume")), false),
            (elsewhere(5), Listing::Elsewhere, attached(6), false),
            (elsewhere(5), Listing::Here, attached(5), false),
            (elsewhere(5), Listing::Elsewhere, Detached, false),
            (Memory::PublishedElsewhere(None), Listing::Elsewhere, attached(5), false),
        ];
        for (memory, listing, last_action, want) in table {
            assert_eq!(is_still_away(memory, listing, &last_action), want, "{memory:?} {listing:?} {last_action:?}");
        }
    }

    #[test]
    fn an_action_that_runs_is_waited_for_whatever_else_is_known() {
        for listing in [Listing::Here, Listing::Elsewhere, Listing::Nowhere] {
            for sent in [open(), errored(), refused(ApiErrorKind::AttachmentNotFound)] {
                let last_action = LastAction::Running(action("detach_volume"));
                let facts =
                    DetachFacts { listing, last_action, meant: None, sent_at: SystemTime::UNIX_EPOCH, age: Age::Early };
                assert_eq!(plan_detach(&sent, &facts), DetachStep::Await(action("detach_volume")));
            }
        }
    }
}
