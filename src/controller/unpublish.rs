//! Detaching a volume from a droplet, so that it is not there when the call says so.
//!
//! Owns the loop that ends only when the volume has been seen not to be on the droplet, or not to exist. The detach is
//! sent first, without a look: it is right in almost every case, and DigitalOcean refuses it harmlessly in the others. A
//! second one is sent only when the first has certainly had no effect: once DigitalOcean has carried one out, the volume
//! may be in use there again.

use std::time::{Instant, SystemTime};

use log::{info, warn};

use super::Controller;
use super::action::{Ended, Moves, Waits, await_action, is_detach};
use super::setback::{Pair, Repeat};
use super::time::CallTime;
use super::verdict::{Verdict, plan_verdict};
use crate::cloud::action::Action;
use crate::cloud::error::{ApiError, ApiErrorKind};
use crate::cloud::pace::ActionKind;
use crate::cloud::volume::Volume;
use crate::error::{Chain, Error, Result};
use crate::id::{ActionId, DropletId, VolumeId};
use crate::lock::{Locked, VolumeGuard, VolumeKey};
use crate::request::controller::{DetachFrom, Unpublish};

/// What is known after a detach was sent.
#[derive(Debug)]
pub(super) enum Sent {
    /// DigitalOcean says that it is done.
    Completed,
    /// DigitalOcean says that it failed.
    Errored,
    /// DigitalOcean does not say that it has ended, and it should have long ago.
    Overdue,
    /// DigitalOcean says that there is nothing to detach, or that something does not fit.
    Refused(ApiError),
    /// It is open whether it had an effect.
    Open(ApiError),
}

/// What is known when a detach was sent and has not been seen to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    /// Which droplets the volume lists.
    listing: Listing,
    /// What its actions say.
    moves: Moves,
    /// The attach that the detach was meant for, as far as it is known.
    meant: Option<ActionId>,
    /// When the detach was sent, by this machine's clock.
    sent_at: SystemTime,
    /// How long the call has been trying.
    age: Age,
}

/// One try of a call to detach a volume.
#[derive(Debug)]
struct Try {
    sent: Sent,
    sent_at: SystemTime,
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
enum Next {
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
fn plan_next(sent: &Sent, facts: &Facts) -> Next {
    if let Moves::Running(action) = &facts.moves {
        return Next::Await(action.clone());
    }
    let is_shown = facts.listing == Listing::Here;
    match &facts.moves {
        // It can only have taken the volume away; but the list may show that before it has.
        Moves::Stuck(_) if !is_shown && sent.proves_nothing_attached() => return Next::Done,
        Moves::Stuck(action) if is_shown && !sent.proves_nothing_attached() => return Next::Await(action.clone()),
        Moves::Stuck(_) => return Next::AskDroplet,
        Moves::Detached | Moves::Unknown if !is_shown => return Next::Done,
        Moves::Detached if !sent.proves_nothing_attached() => return Next::AwaitShown,
        Moves::Running(_) | Moves::Detached | Moves::Attached(..) | Moves::Unknown => {}
    }
    match (sent, facts.listing) {
        (_, Listing::Elsewhere) => Next::Done,
        (sent, Listing::Nowhere) if sent.proves_nothing_attached() => Next::Done,
        (sent, Listing::Here) if sent.proves_nothing_attached() => Next::AskDroplet,
        (Sent::Open(_), Listing::Here | Listing::Nowhere) if is_another(facts) => Next::Open,
        (_, Listing::Here | Listing::Nowhere) if facts.age == Age::Late => Next::AskDroplet,
        (_, Listing::Here | Listing::Nowhere) => Next::Again,
    }
}

/// Whether the volume is attached by another attach than the detach was meant for.
///
/// Where that is not known, as another process published the volume, it is one that began after the detach was sent. Times
/// of actions are cut off to seconds, which hides none: between the two the detach itself has to be carried out.
fn is_another(facts: &Facts) -> bool {
    match (facts.meant, &facts.moves) {
        (Some(meant), moves) => moves.attach() != Some(meant),
        (None, Moves::Attached(_, Some(started))) => *started > facts.sent_at,
        (None, Moves::Attached(_, None) | Moves::Running(_) | Moves::Stuck(_) | Moves::Detached | Moves::Unknown) => {
            false
        }
    }
}

impl Sent {
    /// Whether DigitalOcean said that the volume is not attached to the droplet; no other refusal says so.
    pub(super) fn proves_nothing_attached(&self) -> bool {
        match self {
            Sent::Refused(err) => err.kind() == ApiErrorKind::AttachmentNotFound,
            Sent::Completed | Sent::Errored | Sent::Overdue | Sent::Open(_) => false,
        }
    }

    fn in_words(&self) -> String {
        match self {
            Sent::Refused(err) | Sent::Open(err) => err.to_string(),
            Sent::Completed => "DigitalOcean's detach action completed".to_owned(),
            Sent::Errored => "DigitalOcean's detach action errored".to_owned(),
            Sent::Overdue => "DigitalOcean's detach action does not end".to_owned(),
        }
    }
}

/// What to do while DigitalOcean says that the droplet is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenBusy {
    /// Keep the droplet's turn and try again.
    Wait,
    /// Return; whoever sent the detach has to think again.
    Return,
}

impl Controller {
    /// Detaches a volume from a droplet, or from wherever it is. Attached elsewhere, it is left alone.
    ///
    /// A second call sees that nothing is attached and changes nothing.
    ///
    /// # Errors
    /// [`Error::OutOfTime`] when the volume was still there at the end of the call, [`Error::Api`] when DigitalOcean
    /// refuses for good, [`Error::Locked`] at once when two calls like this one are running already. What keeps failing is
    /// tried less and less often, and the calls between two tries end with [`Error::OutOfTime`] and ask DigitalOcean
    /// nothing, so that a caller that repeats them in a hot loop does not use up the quota.
    pub fn unpublish(&self, time: CallTime, want: &Unpublish) -> Result<()> {
        let droplet = match want.from {
            DetachFrom::Droplet(droplet) => Some(droplet),
            DetachFrom::Anywhere => None,
        };
        let pair = (want.volume.clone(), droplet);
        // Who repeats a failed detach waits here, where it is in the way of its own repetitions only, and of a caller that
        // makes one call at a time.
        let until = time.deadline().min(Instant::now() + time.patience.lock());
        let locked = |why| Locked::new(VolumeKey::Id(want.volume.to_string()), why);
        let _place = self.detaching.wait(pair.clone(), 1, until).map_err(locked)?;
        let time = self.await_setback(time, &pair)?;
        // It may be what all the others in the line wait for, and at most two like it are there.
        let guard = self.hold_in_line(&time, &want.volume, usize::MAX)?;
        let outcome = match droplet {
            Some(droplet) => self.ensure_detached(&guard, &time, &want.volume, droplet),
            None => self.ensure_detached_everywhere(&guard, &time, &want.volume),
        };
        match &outcome {
            Ok(()) => {
                self.setbacks.succeeded(&pair);
                self.usages.unpublished(&want.volume, want.from);
            }
            Err(err) => self.setbacks.failed(pair, Chain(err).to_string(), Instant::now()),
        }
        outcome
    }

    /// Waits for the end of the pause that earlier failures demand, but not for long: it is the caller's to come again.
    /// The call that makes the next try has less time for it than the first one had, and longer pauses in it.
    fn await_setback(&self, time: CallTime, pair: &Pair) -> Result<CallTime> {
        let (left, why) = match self.setbacks.repeat(pair, Instant::now()) {
            Repeat::Whole => return Ok(time),
            Repeat::Short => return Ok(time.after_setback()),
            Repeat::Early { left, why } => (left, why),
        };
        let doing = format!("detaching volume {}", pair.0);
        let wait = time.patience.in_setback();
        time.pause(left.min(wait), &doing, &why)?;
        match left.checked_sub(wait).filter(|rest| !rest.is_zero()) {
            None => Ok(time.after_setback()),
            Some(rest) => {
                let rest_s = rest.as_millis().div_ceil(1000);
                Err(time.out_of_time(
                    &doing,
                    format!("it is tried again in {rest_s} s at the earliest, as it failed: {why}"),
                ))
            }
        }
    }

    fn ensure_detached_everywhere(&self, guard: &VolumeGuard, time: &CallTime, id: &VolumeId) -> Result<()> {
        let (asked_at, mut stale_since) = (SystemTime::now(), None);
        let (mut pauses, mut waits) = (time.retries(), Waits::new(time));
        loop {
            let Some(volume) = time.observe_volume_if_there(id)? else { return Ok(()) };
            if !volume.droplets.is_empty() {
                // The caller names no droplet, so it may be one of the owner's.
                self.owner.check_change(&volume, "detached from wherever it is")?;
            }
            // The list may be old: the volume can be on another droplet than the ones that it has just been detached from.
            let detach = |droplet: &DropletId| self.ensure_detached(guard, time, id, *droplet);
            volume.droplets.iter().try_for_each(detach)?;
            let doing = format!("detaching volume {id}");
            match self.observe_moves_if_there(time, id)? {
                Moves::Running(action) => {
                    self.await_foreign(time, id, &action, &mut waits, &doing)?;
                }
                // Attached since this call came, it is somebody's who has got it after the call's caller.
                Moves::Attached(_, Some(started)) if started > asked_at => return Ok(()),
                Moves::Attached(..)
                    if stale_since.get_or_insert_with(Instant::now).elapsed() < time.patience.shown() =>
                {
                    time.pause(pauses.next_pause(), &doing, &"it has been attached, and that does not show")?;
                }
                Moves::Attached(..) | Moves::Stuck(_) | Moves::Detached | Moves::Unknown => return Ok(()),
            }
        }
    }

    fn ensure_detached(&self, guard: &VolumeGuard, time: &CallTime, id: &VolumeId, droplet: DropletId) -> Result<()> {
        let mut meant = self.usages.attached_by(id, droplet);
        let mut pauses = time.retries();
        let (begun, mut age) = (Instant::now(), Age::Early);
        loop {
            let sent_at = SystemTime::now();
            let sent = self.apply_detach(guard, time, id, droplet, WhenBusy::Wait)?;
            let tried = Try { sent, sent_at, age };
            if self.settle_detach(time, id, droplet, &tried, &mut meant)? {
                return Ok(());
            }
            time.pause(pauses.next_pause(), &detaching(id, droplet), &tried.sent.in_words())?;
            age = if begun.elapsed() < time.patience.shown() { Age::Early } else { Age::Late };
        }
    }

    /// Finds out what a detach has brought about: whether the volume is not on the droplet, or a detach is to be sent again.
    fn settle_detach(
        &self,
        time: &CallTime,
        id: &VolumeId,
        droplet: DropletId,
        tried: &Try,
        meant: &mut Option<ActionId>,
    ) -> Result<bool> {
        let Try { sent, sent_at, age } = tried;
        let doing = detaching(id, droplet);
        let mut waits = Waits::new(time);
        loop {
            let Some(volume) = time.observe_volume_if_there(id)? else { return Ok(true) };
            if matches!(sent, Sent::Completed) {
                return self.await_not_shown(time, volume, droplet).map(|()| true);
            }
            let moves = self.observe_moves_if_there(time, id)?;
            let facts =
                Facts { listing: listing(&volume, droplet), moves, meant: *meant, sent_at: *sent_at, age: *age };
            match plan_next(sent, &facts) {
                Next::Done => return Ok(true),
                Next::AwaitShown => return self.await_not_shown(time, volume, droplet).map(|()| true),
                Next::Await(action) => {
                    let ended = self.await_foreign(time, id, &action, &mut waits, &doing)?;
                    if is_detach(&action) && ended == Ended::Completed {
                        let Some(volume) = time.observe_volume_if_there(id)? else { return Ok(true) };
                        return self.await_not_shown(time, volume, droplet).map(|()| true);
                    }
                    // What DigitalOcean said of the volume before that action is over with it.
                    if !matches!(sent, Sent::Open(_)) {
                        return Ok(false);
                    }
                }
                Next::AskDroplet => return self.is_without(time, droplet, id),
                Next::Again => {
                    *meant = meant.or(facts.moves.attach());
                    return Ok(false);
                }
                Next::Open => {
                    let why =
                        format!("{}; it may have been detached, and has been attached again since", sent.in_words());
                    return Err(time.out_of_time(&doing, why));
                }
            }
        }
    }

    /// Waits until a detach that was carried out is shown; `volume` is what was read first.
    fn await_not_shown(&self, time: &CallTime, mut volume: Volume, droplet: DropletId) -> Result<()> {
        let doing = detaching(&volume.id, droplet);
        let (since, mut pauses) = (Instant::now(), time.pauses());
        while volume.is_attached_to(droplet) {
            let why = "DigitalOcean's detach action completed, but the attachment is still shown";
            if since.elapsed() > time.patience.shown() {
                let is_without = self.is_without(time, droplet, &volume.id)?;
                return if is_without { Ok(()) } else { Err(time.out_of_time(&doing, why)) };
            }
            time.pause(pauses.next_pause(), &doing, &why)?;
            match time.observe_volume_if_there(&volume.id)? {
                Some(seen) => volume = seen,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether the droplet does not exist, or does not know of the volume: its record and the volume's are kept apart, and
    /// the volume's can lag behind for a while, most of all after a droplet was destroyed.
    fn is_without(&self, time: &CallTime, droplet: DropletId, id: &VolumeId) -> Result<bool> {
        let is_without = !self.has_volume(time, droplet, id)?;
        if is_without {
            info!("volume={id} is still shown on droplet={droplet}, which is gone or does not have it");
        }
        Ok(is_without)
    }

    /// As [`Controller::observe_moves`], for those to whom a missing volume is an answer.
    pub(super) fn observe_moves_if_there(&self, time: &CallTime, id: &VolumeId) -> Result<Moves> {
        match self.observe_moves(time, id) {
            Err(Error::NotFound(_)) => Ok(Moves::Unknown),
            other => other,
        }
    }

    /// Sends a detach when it is this call's turn, and waits for its end.
    pub(super) fn apply_detach(
        &self,
        _guard: &VolumeGuard,
        time: &CallTime,
        id: &VolumeId,
        droplet: DropletId,
        when_busy: WhenBusy,
    ) -> Result<Sent> {
        let doing = detaching(id, droplet);
        let _turn = self.take_turn(time, droplet, &doing)?;
        let mut pauses = time.pauses();
        loop {
            let err = match time.cloud.detach(id, droplet) {
                Ok(action) => {
                    return Ok(match await_action(time, &self.pace, id, ActionKind::Detach, &action, &doing)? {
                        Ended::Completed => {
                            info!("detached volume={id} droplet={droplet} action={}", action.id);
                            Sent::Completed
                        }
                        Ended::Errored => Sent::Errored,
                        Ended::Overdue => Sent::Overdue,
                    });
                }
                Err(err) => err,
            };
            match plan_verdict(&err) {
                Verdict::Conflict | Verdict::Missing | Verdict::Odd => return Ok(Sent::Refused(err)),
                Verdict::Busy if when_busy == WhenBusy::Return => return Ok(Sent::Refused(err)),
                Verdict::Busy => time.pause(pauses.after(&err), &doing, &err)?,
                Verdict::Unclear => {
                    warn!("detach unclear, reading the volume doing={doing}: {err}");
                    return Ok(Sent::Open(err));
                }
                Verdict::OutOfTime => return Err(time.out_of_time(&doing, err.to_string())),
                Verdict::Limit | Verdict::Refused => return Err(Error::Api { doing, source: err }),
            }
        }
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
    format!("detaching volume {id} from droplet {droplet}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cloud::action::ActionStatus;

    fn refused(kind: ApiErrorKind) -> Sent {
        Sent::Refused(ApiError::without_reply(kind, "no"))
    }

    fn open() -> Sent {
        Sent::Open(ApiError::without_reply(ApiErrorKind::Server, "no"))
    }

    fn action(kind: &str) -> Action {
        Action { id: ActionId(9), status: ActionStatus::InProgress, kind: kind.to_owned(), started_at: None }
    }

    #[test]
    fn what_follows_from_a_detach_that_was_not_seen_to_be_carried_out() {
        use Listing::{Elsewhere, Here, Nowhere};
        use Moves::{Attached, Detached, Unknown};
        let sent_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let begun = |seconds| Attached(ActionId(5), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)));
        let not_found = || refused(ApiErrorKind::AttachmentNotFound);
        let odd = || refused(ApiErrorKind::Unprocessable);
        let attached = || Attached(ActionId(5), None);
        let stuck = || Moves::Stuck(action("detach_volume"));
        let (same, older) = (Some(ActionId(5)), Some(ActionId(3)));
        let table = [
            (not_found(), Nowhere, attached(), None, Age::Early, Next::Done),
            (not_found(), Here, attached(), None, Age::Early, Next::AskDroplet),
            (not_found(), Here, Detached, None, Age::Early, Next::AskDroplet),
            (not_found(), Elsewhere, attached(), older, Age::Early, Next::Done),
            (odd(), Nowhere, attached(), None, Age::Early, Next::Again),
            (odd(), Here, attached(), None, Age::Late, Next::AskDroplet),
            (odd(), Nowhere, attached(), None, Age::Late, Next::AskDroplet),
            (odd(), Nowhere, Detached, None, Age::Early, Next::Done),
            (odd(), Here, Detached, None, Age::Early, Next::AwaitShown),
            (Sent::Errored, Here, attached(), older, Age::Early, Next::Again),
            (Sent::Errored, Here, attached(), None, Age::Late, Next::AskDroplet),
            (Sent::Errored, Nowhere, Unknown, None, Age::Early, Next::Done),
            (open(), Here, attached(), None, Age::Early, Next::Again),
            (open(), Here, attached(), same, Age::Early, Next::Again),
            (open(), Here, begun(999), None, Age::Early, Next::Again),
            (open(), Here, begun(1001), None, Age::Early, Next::Open),
            (open(), Nowhere, begun(1001), None, Age::Late, Next::Open),
            (open(), Here, begun(1001), same, Age::Early, Next::Again),
            (Sent::Errored, Here, begun(1001), None, Age::Early, Next::Again),
            (open(), Here, attached(), older, Age::Early, Next::Open),
            (open(), Nowhere, attached(), older, Age::Late, Next::Open),
            (open(), Here, attached(), same, Age::Late, Next::AskDroplet),
            (open(), Elsewhere, attached(), older, Age::Early, Next::Done),
            (open(), Here, Unknown, None, Age::Early, Next::Again),
            (open(), Here, Detached, None, Age::Early, Next::AwaitShown),
            (open(), Nowhere, Detached, None, Age::Early, Next::Done),
            (not_found(), Nowhere, stuck(), None, Age::Early, Next::Done),
            (not_found(), Elsewhere, stuck(), None, Age::Early, Next::Done),
            (not_found(), Here, stuck(), None, Age::Early, Next::AskDroplet),
            (Sent::Overdue, Nowhere, stuck(), None, Age::Early, Next::AskDroplet),
            (odd(), Elsewhere, stuck(), None, Age::Late, Next::AskDroplet),
            (Sent::Overdue, Here, stuck(), None, Age::Late, Next::Await(action("detach_volume"))),
            (Sent::Overdue, Here, Detached, None, Age::Early, Next::AwaitShown),
            (Sent::Overdue, Here, attached(), None, Age::Early, Next::Again),
        ];
        for (sent, listing, moves, meant, age, want) in table {
            let facts = Facts { listing, moves, meant, sent_at, age };
            assert_eq!(plan_next(&sent, &facts), want, "{sent:?} {facts:?}");
        }
    }

    #[test]
    fn an_action_that_runs_is_waited_for_whatever_else_is_known() {
        for listing in [Listing::Here, Listing::Elsewhere, Listing::Nowhere] {
            for sent in [open(), Sent::Errored, refused(ApiErrorKind::AttachmentNotFound)] {
                let moves = Moves::Running(action("detach_volume"));
                let facts = Facts { listing, moves, meant: None, sent_at: SystemTime::UNIX_EPOCH, age: Age::Early };
                assert_eq!(plan_next(&sent, &facts), Next::Await(action("detach_volume")));
            }
        }
    }
}
