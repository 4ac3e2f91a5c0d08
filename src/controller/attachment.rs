//! Where a volume is, as far as an attach has to know it, and what that calls for.
//!
//! Owns the facts, which one function reads, and the one decision about them. DigitalOcean keeps where a volume is in three
//! places that are not always the same: the volume's list of droplets, each droplet's own record, and the actions. Error texts
//! decide nothing: after each of them the facts are read again.

use std::fmt;
use std::time::Instant;

use crate::cloud::action::Action;
use crate::cloud::droplet::{Droplet, DropletStatus};
use crate::cloud::volume::Volume;
use crate::controller::context::{CallContext, Timeouts};
use crate::controller::last_action::LastAction;
use crate::controller::takeover::{HolderFacts, HolderTracker, TakeoverPlan, plan_takeover};
use crate::error::{Error, Result};
use crate::id::{ActionId, DropletId};
use crate::request::attachment::Publish;

/// What a volume is attached for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A call of the orchestrator wants it.
    Publish,
    /// It is brought back to where this program has detached it: it is taken from nowhere, and nothing is learned of its use.
    Return,
}

/// What is known of a volume's attachment. What decides nothing is not asked, as every answer costs a request.
#[derive(Debug)]
pub(super) struct AttachFacts {
    pub(super) volume: Volume,
    pub(super) place: Place,
    /// When they were read.
    pub(super) at: Instant,
}

/// Which droplet the volume lists, and what else is known of it. DigitalOcean attaches a volume to one droplet at most; should
/// it ever list several, another one than wanted counts, because two writers destroy a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// None. The actions are asked when an attach may be on its way.
    Nowhere { last_action: Option<LastAction> },
    /// The droplet that wants it.
    Here {
        last_action: LastAction,
        /// This process has published it there after that very attach.
        is_known: bool,
        /// The droplet's own record.
        record: Record,
    },
    /// Another droplet, of which a second look cannot tell anything yet.
    HeldLately { holder: DropletId },
    /// Another droplet.
    Held {
        holder: DropletId,
        last_action: LastAction,
        record: Record,
        /// The record of the droplet that wants it.
        wanting: Record,
    },
}

/// What a droplet's own record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    NotAsked,
    Gone,
    Seen { name: String, status: DropletStatus, has_it: bool },
}

impl Record {
    fn of(droplet: Option<Droplet>, volume: &Volume) -> Record {
        match droplet {
            None => Record::Gone,
            Some(Droplet { name, status, volumes, .. }) => {
                Record::Seen { name, status, has_it: volumes.contains(&volume.id) }
            }
        }
    }

    fn has_it(&self) -> bool {
        matches!(self, Record::Seen { has_it: true, .. })
    }

    /// Whether the droplet is gone, or does not say that it has the volume.
    pub(super) fn lacks_it(&self) -> bool {
        matches!(self, Record::Gone | Record::Seen { has_it: false, .. })
    }

    /// The droplet's state in words.
    pub(super) fn state(&self) -> &str {
        match self {
            Record::NotAsked => "not asked",
            Record::Gone => "gone",
            Record::Seen { status: DropletStatus::New, .. } => "new",
            Record::Seen { status: DropletStatus::Active, .. } => "running",
            Record::Seen { status: DropletStatus::Off, .. } => "off",
            Record::Seen { status: DropletStatus::Archive, .. } => "archived",
            Record::Seen { status: DropletStatus::Other(word), .. } => word,
        }
    }
}

/// What one call has met so far, and the operator's rule.
#[derive(Debug)]
pub(super) struct AttachHistory {
    patience: Timeouts,
    takeover: bool,
    pub(super) purpose: Purpose,
    /// An attach, this call's or another's, may be on its way.
    pub(super) is_contested: bool,
    /// How the last attach was refused; it holds if the next look shows the volume as free as before.
    pub(super) refusal: Option<Error>,
    /// On this droplet there was nothing to detach a moment ago.
    pub(super) nothing_on: Option<DropletId>,
    /// The last attach was refused because the volume is attached: what shows it here is not late.
    pub(super) is_attached: bool,
    /// Since when the list of droplets has been contradicting the actions.
    stale_since: Option<Instant>,
    pub(super) holder: HolderTracker,
}

/// What the facts call for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AttachPlan {
    /// It is where it should be, by this attach as far as DigitalOcean tells.
    Done { by: Option<ActionId> },
    /// It is nowhere, for this reason if something says otherwise.
    Attach { despite: Option<Doubt> },
    /// The other droplet cannot use it: take it away.
    DetachFrom(DropletId),
    /// Somebody else's action has to end first.
    WaitFor(Action),
    /// Nothing can be done now: look again after a pause.
    Retry(Doubt),
    /// The other droplet may be using it.
    RefuseHeld(DropletId),
    /// It is free as before, and the attach was refused.
    RefuseAsAnswered,
}

/// Why it cannot be told yet where the volume is, or is going to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// It has been attached, and no droplet is listed.
    AttachedUnlisted,
    /// The droplet that wants it is listed, and its own record has nothing of it.
    ListedWithoutRecord(DropletId),
    /// The droplet that wants it is listed, and it has been detached.
    ListedAfterDetach(DropletId),
    /// A detach from the droplet that wants it may be carried out yet.
    DetachInFlight(DropletId),
    /// Another droplet is listed, and it has been detached.
    HeldAfterDetach(DropletId),
    /// Another droplet has it, and may be about to let go.
    Held(DropletId),
    /// Another droplet has it, and may be about to run again.
    HeldByStopped(DropletId),
}

impl Doubt {
    /// Whether only another droplet can end it.
    pub(super) fn is_about_holder(self) -> bool {
        match self {
            Doubt::HeldAfterDetach(_) | Doubt::Held(_) | Doubt::HeldByStopped(_) => true,
            Doubt::AttachedUnlisted
            | Doubt::ListedWithoutRecord(_)
            | Doubt::ListedAfterDetach(_)
            | Doubt::DetachInFlight(_) => false,
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doubt::AttachedUnlisted => f.write_str("it has been attached, and that does not show"),
            Doubt::ListedWithoutRecord(droplet) => {
                write!(f, "DigitalOcean lists it here, droplet {droplet} does not have it")
            }
            Doubt::ListedAfterDetach(droplet) => {
                write!(f, "DigitalOcean lists it on droplet {droplet}, and has detached it")
            }
            Doubt::DetachInFlight(droplet) => {
                write!(f, "a detach from droplet {droplet} got no answer, and may be carried out yet")
            }
            Doubt::HeldAfterDetach(holder) => write!(f, "it has been detached, and droplet {holder} still shows"),
            Doubt::Held(holder) => write!(f, "droplet {holder} has it"),
            Doubt::HeldByStopped(holder) => write!(f, "droplet {holder} has it and is not running"),
        }
    }
}

impl CallContext {
    /// Reads where a volume is. `known` is the attach after which this process has published it there.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such volume, [`Error::TimedOut`], [`Error::Api`].
    pub(super) fn observe_attachment(
        &self,
        want: &Publish,
        known: Option<ActionId>,
        history: &AttachHistory,
    ) -> Result<AttachFacts> {
        let volume = self.observe_volume(&want.volume)?;
        let at = Instant::now();
        let place = match volume.droplets.iter().find(|droplet| **droplet != want.droplet) {
            Some(holder) => self.observe_holder(&volume, *holder, want.droplet, history, at)?,
            None if !volume.droplets.is_empty() => self.observe_here(&volume, want.droplet, known, history, at)?,
            None if history.is_contested => Place::Nowhere { last_action: Some(self.observe_last_action(&volume.id)?) },
            None => Place::Nowhere { last_action: None },
        };
        Ok(AttachFacts { volume, place, at })
    }

    fn observe_here(
        &self,
        volume: &Volume,
        wanting: DropletId,
        known: Option<ActionId>,
        history: &AttachHistory,
        at: Instant,
    ) -> Result<Place> {
        let last_action = self.observe_last_action(&volume.id)?;
        let is_known = known.is_some() && known == last_action.attach();
        let may_prove = match &last_action {
            LastAction::Attached(..) => !is_known,
            // The droplet's own record lags as well, so right after a detach it proves nothing.
            LastAction::Detached => !history.is_fresh(at),
            LastAction::Running(_) | LastAction::Stuck(_) | LastAction::Unknown => false,
        };
        let record = if may_prove { self.observe_record(volume, wanting)? } else { Record::NotAsked };
        Ok(Place::Here { last_action, is_known, record })
    }

    fn observe_holder(
        &self,
        volume: &Volume,
        holder: DropletId,
        wanting: DropletId,
        history: &AttachHistory,
        at: Instant,
    ) -> Result<Place> {
        if history.holder.is_too_early(holder, history.patience, at) {
            return Ok(Place::HeldLately { holder });
        }
        let last_action = self.observe_last_action(&volume.id)?;
        let held = |last_action, record, wanting| Place::Held { holder, last_action, record, wanting };
        if matches!(last_action, LastAction::Running(_)) || history.shows_late(holder, &last_action, at) {
            return Ok(held(last_action, Record::NotAsked, Record::NotAsked));
        }
        let record = self.observe_record(volume, holder)?;
        if !history.is_contradicted(holder, &last_action, &record) {
            return Ok(held(last_action, record, Record::NotAsked));
        }
        // The droplet that wants it may have it already: such a list can stay old for longer than the call that attached it
        // there. What is about to take it away from there again has to be read after that.
        let wanting = self.observe_record(volume, wanting)?;
        let last_action = if wanting.has_it() { self.observe_last_action(&volume.id)? } else { last_action };
        Ok(held(last_action, record, wanting))
    }

    fn observe_record(&self, volume: &Volume, droplet: DropletId) -> Result<Record> {
        Ok(Record::of(self.observe_droplet(droplet)?, volume))
    }
}

impl AttachHistory {
    /// Nothing so far; with `takeover`, a volume is taken from whatever droplet has it.
    pub(super) fn new(patience: Timeouts, takeover: bool, purpose: Purpose) -> AttachHistory {
        AttachHistory {
            patience,
            takeover,
            purpose,
            is_contested: false,
            refusal: None,
            nothing_on: None,
            is_attached: false,
            stale_since: None,
            holder: HolderTracker::default(),
        }
    }

    /// Takes notice of what was read, before it is decided about.
    pub(super) fn note(&mut self, facts: &AttachFacts) {
        let is_stale = match &facts.place {
            Place::Nowhere { last_action: Some(LastAction::Attached(..)) } => true,
            Place::Here { last_action: LastAction::Attached(..), is_known, record } => !is_known && !record.has_it(),
            Place::Here { last_action: LastAction::Detached, .. } => true,
            Place::Nowhere { .. } | Place::Here { .. } | Place::HeldLately { .. } => false,
            Place::Held { holder, last_action, record, wanting } => {
                let is_settled =
                    self.takeover || wanting.has_it() || self.is_contradicted(*holder, last_action, record);
                let status = match record {
                    Record::NotAsked => None,
                    Record::Gone => Some(None),
                    Record::Seen { status, .. } => Some(Some(status)),
                };
                self.holder.note(
                    *holder,
                    *last_action == LastAction::Detached,
                    status.filter(|_| !is_settled),
                    facts.at,
                );
                false
            }
        };
        if is_stale {
            self.stale_since.get_or_insert(facts.at);
        }
    }

    /// Whether the list of droplets contradicts the actions for no longer than such a list lags behind.
    fn is_fresh(&self, at: Instant) -> bool {
        self.stale_since.is_none_or(|since| at.saturating_duration_since(since) < self.patience.propagation())
    }

    /// The same of another droplet's list after a detach; but it may also be the list of actions that lags.
    fn shows_late(&self, holder: DropletId, last_action: &LastAction, at: Instant) -> bool {
        *last_action == LastAction::Detached && self.holder.stale_for(holder, at) < self.patience.propagation()
    }

    /// Whether the other droplet does not have the volume, although it is listed: it was detached, or nothing was there to
    /// detach, and the droplet's own record agrees.
    fn is_contradicted(&self, holder: DropletId, last_action: &LastAction, record: &Record) -> bool {
        (*last_action == LastAction::Detached || self.nothing_on == Some(holder)) && record.lacks_it()
    }
}

/// Decides about an attachment.
pub(super) fn plan_attach(facts: &AttachFacts, wanting: DropletId, history: &AttachHistory) -> AttachPlan {
    match &facts.place {
        Place::Nowhere { last_action: Some(LastAction::Running(action)) } => AttachPlan::WaitFor(action.clone()),
        Place::Nowhere { last_action } => plan_free(facts.at, last_action.as_ref(), None, history),
        Place::Here { last_action, is_known, record } => {
            plan_here(facts.at, last_action, *is_known, record, wanting, history)
        }
        Place::HeldLately { holder } | Place::Held { holder, .. } if history.purpose == Purpose::Return => {
            AttachPlan::RefuseHeld(*holder)
        }
        Place::HeldLately { holder } => AttachPlan::Retry(Doubt::Held(*holder)),
        Place::Held { last_action: LastAction::Running(action), .. } => AttachPlan::WaitFor(action.clone()),
        Place::Held { holder, last_action, .. } if history.shows_late(*holder, last_action, facts.at) => {
            AttachPlan::Retry(Doubt::HeldAfterDetach(*holder))
        }
        Place::Held { holder, last_action, record, wanting } => {
            plan_held(facts.at, *holder, last_action, record, wanting, history)
        }
    }
}

/// The volume is on no droplet, as far as the list of droplets is worth something.
fn plan_free(
    at: Instant,
    last_action: Option<&LastAction>,
    despite: Option<Doubt>,
    history: &AttachHistory,
) -> AttachPlan {
    let is_on_its_way = history.is_contested && matches!(last_action, Some(LastAction::Attached(..)));
    if is_on_its_way && history.is_fresh(at) {
        AttachPlan::Retry(Doubt::AttachedUnlisted)
    } else if history.refusal.is_some() {
        AttachPlan::RefuseAsAnswered
    } else {
        AttachPlan::Attach { despite }
    }
}

/// The volume is listed where it should be. It may be on its way out, as a detach shows only at its end. When the last move
/// was a detach, or an attach that may have gone anywhere, the list may be old: then the droplet has to say so too.
fn plan_here(
    at: Instant,
    last_action: &LastAction,
    is_known: bool,
    record: &Record,
    wanting: DropletId,
    history: &AttachHistory,
) -> AttachPlan {
    let doubt = match last_action {
        // A detach that does not end may still be carried out: what is here may be on its way out.
        LastAction::Running(action) | LastAction::Stuck(action) => return AttachPlan::WaitFor(action.clone()),
        LastAction::Unknown => return AttachPlan::Done { by: None },
        LastAction::Attached(action, _) if is_known => return AttachPlan::Done { by: Some(*action) },
        LastAction::Attached(..) if record.has_it() => return AttachPlan::Done { by: last_action.attach() },
        // The list and the record can both be late, as one can.
        LastAction::Detached if record.has_it() && history.is_attached => return AttachPlan::Done { by: None },
        LastAction::Detached if *record == Record::NotAsked || record.has_it() => Doubt::ListedAfterDetach(wanting),
        LastAction::Attached(..) | LastAction::Detached => Doubt::ListedWithoutRecord(wanting),
    };
    if history.is_fresh(at) || *record == Record::NotAsked {
        AttachPlan::Retry(doubt)
    } else {
        plan_free(at, Some(last_action), Some(doubt), history)
    }
}

/// Another droplet is listed.
fn plan_held(
    at: Instant,
    holder: DropletId,
    last_action: &LastAction,
    record: &Record,
    wanting: &Record,
    history: &AttachHistory,
) -> AttachPlan {
    if wanting.has_it() {
        return match last_action {
            LastAction::Running(action) | LastAction::Stuck(action) => AttachPlan::WaitFor(action.clone()),
            LastAction::Detached if !history.is_attached && record.lacks_it() => {
                plan_free(at, Some(last_action), None, history)
            }
            LastAction::Detached if !history.is_attached => AttachPlan::Retry(Doubt::HeldAfterDetach(holder)),
            LastAction::Attached(..) | LastAction::Detached | LastAction::Unknown => {
                AttachPlan::Done { by: last_action.attach() }
            }
        };
    }
    let status = match record {
        Record::NotAsked => return AttachPlan::Retry(Doubt::Held(holder)),
        Record::Gone => None,
        Record::Seen { status, .. } => Some(status),
    };
    let is_contradicted = history.is_contradicted(holder, last_action, record);
    let (unusable_for, running_for) = history.holder.ages(holder, at);
    let facts = HolderFacts { status, unusable_for, running_for, is_contradicted };
    match plan_takeover(facts, history.patience, history.takeover) {
        TakeoverPlan::Detach => AttachPlan::DetachFrom(holder),
        TakeoverPlan::Recheck => AttachPlan::Retry(Doubt::HeldByStopped(holder)),
        TakeoverPlan::AwaitRelease => AttachPlan::Retry(Doubt::Held(holder)),
        TakeoverPlan::Refuse => AttachPlan::RefuseHeld(holder),
        TakeoverPlan::StaleListing if wanting.lacks_it() => plan_free(at, Some(last_action), None, history),
        TakeoverPlan::StaleListing => AttachPlan::Retry(Doubt::Held(holder)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cloud::action::ActionStatus;
    use crate::id::{VolumeId, VolumeName};
    use crate::size::Gib;

    const WANTING: u64 = 1;
    const OTHER: u64 = 2;
    const HERE: Duration = Duration::ZERO;
    /// Longer than any of the waits of a call of 100 s.
    const LONG: Duration = Duration::from_secs(20);

    fn id(number: u64) -> DropletId {
        DropletId::new(number).unwrap()
    }

    fn action() -> Action {
        Action { id: ActionId(9), status: ActionStatus::InProgress, kind: "detach_volume".into(), started_at: None }
    }

    fn seen(status: DropletStatus, has_it: bool) -> Record {
        Record::Seen { name: "a".into(), status, has_it }
    }

    fn every_last_action() -> [LastAction; 5] {
        [
            LastAction::Running(action()),
            LastAction::Stuck(action()),
            LastAction::Attached(ActionId(5), None),
            LastAction::Detached,
            LastAction::Unknown,
        ]
    }

    fn every_record() -> Vec<Record> {
        let states = [
            DropletStatus::New,
            DropletStatus::Active,
            DropletStatus::Off,
            DropletStatus::Archive,
            DropletStatus::Other("locked".into()),
        ];
        let of = |status: &DropletStatus| [true, false].map(|has_it| seen(status.clone(), has_it));
        states.iter().flat_map(of).chain([Record::NotAsked, Record::Gone]).collect()
    }

    fn held(last_action: LastAction, record: Record, wanting: Record) -> Place {
        Place::Held { holder: id(OTHER), last_action, record, wanting }
    }

    fn facts(place: Place, at: Instant) -> AttachFacts {
        let volume = Volume {
            id: VolumeId::parse("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2").unwrap(),
            name: VolumeName::parse("blog").unwrap(),
            size: Gib(1),
            region: None,
            droplets: Vec::new(),
            description: String::new(),
            tags: Vec::new(),
            filesystem: String::new(),
            created_at: String::new(),
        };
        AttachFacts { volume, place, at }
    }

    fn history(change: impl FnOnce(&mut AttachHistory)) -> AttachHistory {
        let mut history = AttachHistory::new(Timeouts::of(Duration::from_secs(100)), false, Purpose::Publish);
        change(&mut history);
        history
    }

    /// What is decided about a place that was seen for the first time, and about the same one that has been so for long.
    fn plans(place: &Place, change: impl Fn(&mut AttachHistory)) -> (AttachPlan, AttachPlan) {
        let begun = Instant::now();
        let mut history = history(&change);
        let mut at = |after| {
            let facts = facts(place.clone(), begun + after);
            history.note(&facts);
            plan_attach(&facts, id(WANTING), &history)
        };
        (at(HERE), at(LONG))
    }

    #[test]
    fn the_plan_follows_from_where_the_volume_is() {
        use AttachPlan::{Attach, DetachFrom, Done, RefuseAsAnswered, RefuseHeld, Retry, WaitFor};
        use LastAction::{Detached, Running, Stuck, Unknown};
        let attached = || LastAction::Attached(ActionId(5), None);
        let by_it = || Done { by: Some(ActionId(5)) };
        let nowhere = |last_action| Place::Nowhere { last_action };
        let here = |last_action, is_known, record| Place::Here { last_action, is_known, record };
        let active = |has_it| seen(DropletStatus::Active, has_it);
        let free = || Attach { despite: None };
        let despite = |doubt| Attach { despite: Some(doubt) };
        let wait = || WaitFor(action());
        let (unlisted, after_detach, no_record) = (
            Retry(Doubt::AttachedUnlisted),
            Retry(Doubt::ListedAfterDetach(id(WANTING))),
            Retry(Doubt::ListedWithoutRecord(id(WANTING))),
        );
        let (held_after_detach, is_held, is_stopped) = (
            Retry(Doubt::HeldAfterDetach(id(OTHER))),
            Retry(Doubt::Held(id(OTHER))),
            Retry(Doubt::HeldByStopped(id(OTHER))),
        );
        let asked = Record::NotAsked;
        type Change = fn(&mut AttachHistory);
        let plain: Change = |_| {};
        let contested: Change = |history| history.is_contested = true;
        let refused: Change = |history| history.refusal = Some(Error::Bug("no".to_owned()));
        let nothing: Change = |history| history.nothing_on = Some(id(OTHER));
        let takeover: Change = |history| history.takeover = true;
        let refused_as_attached: Change = |history| history.is_attached = true;
        let table: Vec<(Place, Change, AttachPlan, AttachPlan)> = vec![
            (nowhere(None), plain, free(), free()),
            (nowhere(None), refused, RefuseAsAnswered, RefuseAsAnswered),
            (nowhere(Some(Running(action()))), contested, wait(), wait()),
            (nowhere(Some(Stuck(action()))), contested, free(), free()),
            (nowhere(Some(attached())), contested, unlisted, free()),
            (nowhere(Some(Detached)), contested, free(), free()),
            (nowhere(Some(Unknown)), contested, free(), free()),
            (here(Running(action()), false, asked.clone()), plain, wait(), wait()),
            (here(Stuck(action()), false, asked.clone()), plain, wait(), wait()),
            (here(Unknown, false, asked.clone()), plain, Done { by: None }, Done { by: None }),
            (here(attached(), true, asked.clone()), plain, by_it(), by_it()),
            (here(attached(), false, active(true)), plain, by_it(), by_it()),
            (
                here(attached(), false, active(false)),
                plain,
                no_record.clone(),
                despite(Doubt::ListedWithoutRecord(id(WANTING))),
            ),
            (here(attached(), false, Record::Gone), refused, no_record.clone(), RefuseAsAnswered),
            (here(Detached, false, asked.clone()), plain, after_detach.clone(), after_detach.clone()),
            (
                here(Detached, false, active(true)),
                plain,
                after_detach.clone(),
                despite(Doubt::ListedAfterDetach(id(WANTING))),
            ),
            (here(Detached, false, active(true)), refused_as_attached, Done { by: None }, Done { by: None }),
            (
                here(Detached, false, active(false)),
                plain,
                no_record.clone(),
                despite(Doubt::ListedWithoutRecord(id(WANTING))),
            ),
            (Place::HeldLately { holder: id(OTHER) }, plain, is_held.clone(), is_held.clone()),
            (held(Running(action()), asked.clone(), asked.clone()), takeover, wait(), wait()),
            (held(Detached, active(false), active(false)), plain, held_after_detach.clone(), free()),
            (held(Detached, active(false), active(true)), plain, held_after_detach.clone(), free()),
            (
                held(Detached, active(false), active(true)),
                refused_as_attached,
                held_after_detach.clone(),
                Done { by: None },
            ),
            (held(Detached, active(true), asked.clone()), plain, held_after_detach, RefuseHeld(id(OTHER))),
            (held(attached(), active(true), asked.clone()), plain, is_held.clone(), RefuseHeld(id(OTHER))),
            (held(Stuck(action()), active(true), asked.clone()), plain, is_held.clone(), RefuseHeld(id(OTHER))),
            (held(Unknown, active(false), asked.clone()), plain, is_held.clone(), RefuseHeld(id(OTHER))),
            (held(attached(), active(true), asked.clone()), takeover, DetachFrom(id(OTHER)), DetachFrom(id(OTHER))),
            (held(attached(), Record::Gone, asked.clone()), plain, is_stopped.clone(), DetachFrom(id(OTHER))),
            (held(attached(), seen(DropletStatus::Off, true), asked.clone()), plain, is_stopped, DetachFrom(id(OTHER))),
            (held(attached(), Record::Gone, active(false)), nothing, free(), free()),
            (held(attached(), Record::Gone, active(true)), nothing, by_it(), by_it()),
            (held(Stuck(action()), Record::Gone, active(true)), nothing, wait(), wait()),
            (held(attached(), Record::Gone, asked.clone()), nothing, is_held.clone(), is_held.clone()),
            (held(attached(), asked.clone(), asked), plain, is_held.clone(), is_held),
        ];
        for (place, change, at_once, later) in table {
            assert_eq!(plans(&place, change), (at_once, later), "{place:?}");
        }
    }

    /// Whatever is known, and however long: no change is begun beside a running one, and a volume is taken only from a droplet
    /// that has not been able to use it for long, or by the operator's wish.
    #[test]
    fn no_combination_of_facts_endangers_the_volume() {
        let mut places = vec![Place::HeldLately { holder: id(OTHER) }, Place::Nowhere { last_action: None }];
        for last_action in every_last_action() {
            places.push(Place::Nowhere { last_action: Some(last_action.clone()) });
            for record in every_record() {
                for is_known in [false, true] {
                    places.push(Place::Here { last_action: last_action.clone(), is_known, record: record.clone() });
                }
                for wanting in every_record() {
                    places.push(held(last_action.clone(), record.clone(), wanting));
                }
            }
        }
        let changes: [fn(&mut AttachHistory); 6] = [
            |_| {},
            |history| history.is_contested = true,
            |history| history.refusal = Some(Error::Bug("no".to_owned())),
            |history| history.nothing_on = Some(id(OTHER)),
            |history| history.takeover = true,
            |history| history.is_attached = true,
        ];
        for (place, change) in places.iter().flat_map(|place| changes.map(|change| (place, change))) {
            let AttachHistory { takeover, is_attached, .. } = history(change);
            let (at_once, later) = plans(place, change);
            for (plan, is_long) in [(at_once, false), (later, true)] {
                let is_safe = match (&plan, place) {
                    (_, Place::Nowhere { last_action: Some(LastAction::Running(_)) })
                    | (
                        _,
                        Place::Here { last_action: LastAction::Running(_), .. }
                        | Place::Held { last_action: LastAction::Running(_), .. },
                    ) => matches!(plan, AttachPlan::WaitFor(_)),
                    (
                        AttachPlan::Done { .. },
                        Place::Here { last_action: LastAction::Detached, record: shown, .. }
                        | Place::Held { last_action: LastAction::Detached, wanting: shown, .. },
                    ) => shown.has_it() && is_attached,
                    (AttachPlan::Done { .. }, Place::Here { .. }) => true,
                    (AttachPlan::Done { .. }, Place::Held { wanting, .. }) => wanting.has_it(),
                    (AttachPlan::Done { .. }, Place::Nowhere { .. } | Place::HeldLately { .. }) => false,
                    (AttachPlan::Attach { .. }, Place::Nowhere { .. }) => true,
                    (AttachPlan::Attach { .. }, Place::Here { last_action, record, .. }) => {
                        is_long && (record.lacks_it() || *last_action == LastAction::Detached)
                    }
                    (AttachPlan::Attach { .. }, Place::Held { last_action, record, wanting, .. }) => {
                        record.lacks_it() && (wanting.lacks_it() || *last_action == LastAction::Detached)
                    }
                    (AttachPlan::Attach { .. }, Place::HeldLately { .. }) => false,
                    (AttachPlan::DetachFrom(_), Place::Held { record, .. }) => {
                        let is_down = matches!(record.state(), "gone" | "off" | "archived");
                        *record != Record::NotAsked && (takeover || is_long && is_down)
                    }
                    (AttachPlan::DetachFrom(_), _) => false,
                    (
                        AttachPlan::WaitFor(_)
                        | AttachPlan::Retry(_)
                        | AttachPlan::RefuseHeld(_)
                        | AttachPlan::RefuseAsAnswered,
                        _,
                    ) => true,
                };
                assert!(is_safe, "{plan:?} for {place:?}, takeover {takeover}, long {is_long}");
            }
        }
    }
}
