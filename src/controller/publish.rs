//! Attaching a volume to a droplet, so that it is there when the call says so.
//!
//! Owns the decision what to do about an attachment and the loop that ends only when the volume has been seen on the
//! droplet, or when it is certain that it cannot get there. Error texts decide nothing here: after each of them the volume
//! is read again. What to do about another droplet that has the volume is in `holder`.

use std::mem;
use std::time::Instant;

use log::{info, warn};

use super::Controller;
use super::action::{Ended, Moves, await_action};
use super::holder::Watch;
use super::time::{CallTime, Pauses};
use super::verdict::{Verdict, plan_verdict};
use crate::cloud::action::Action;
use crate::cloud::error::ApiError;
use crate::cloud::pace::ActionKind;
use crate::cloud::volume::Volume;
use crate::error::{Error, Result, Thing};
use crate::id::{DropletId, VolumeId};
use crate::lock::VolumeGuard;
use crate::request::controller::{DetachFrom, Publish};

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

/// How one look at the volume, and what was done about it, ended.
#[derive(Debug)]
pub(super) enum Round {
    /// The volume has been seen where it should be.
    Done(Volume),
    /// Something has changed: look again at once.
    Again,
    /// Nothing more can be done now, for this reason: look again after a pause, each longer than the last.
    Pause(String),
    /// The same, but look soon, as the state is about to change.
    Watch(String),
    /// Somebody else's action has to end first.
    Await(Action),
}

/// What came of an attach that was sent.
#[derive(Debug)]
enum Tried {
    /// DigitalOcean says that it is done.
    Completed,
    /// DigitalOcean says that it failed.
    Errored,
    /// It is open whether it had an effect, or somebody else was faster.
    Open(ApiError),
    /// DigitalOcean refuses it, if the volume is not there already.
    Refused(Error),
}

/// What one call has met so far.
#[derive(Debug)]
struct Course {
    pauses: Pauses,
    /// An attach, this call's or another's, may be on its way.
    is_contested: bool,
    /// Since when the list of droplets has been contradicting the actions.
    stale_since: Option<Instant>,
    refusal: Option<Error>,
    watch: Watch,
}

impl Controller {
    /// Attaches a volume to a droplet.
    ///
    /// A second call sees the attachment and changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a volume or droplet that does not exist, [`Error::AttachedElsewhere`] when a running
    /// droplet has it, [`Error::Mismatch`] when it is there for another use, [`Error::AttachLimit`], [`Error::NotYet`] when the call's
    /// time was used up by waiting.
    pub fn publish(&self, time: &CallTime, want: &Publish) -> Result<Volume> {
        self.ensure_attached(time, want).map_err(Error::or_not_yet)
    }

    fn ensure_attached(&self, time: &CallTime, want: &Publish) -> Result<Volume> {
        let doing = attaching(&want.volume, want.droplet);
        let mut course = Course {
            pauses: time.retries(),
            is_contested: false,
            stale_since: None,
            refusal: None,
            watch: Watch::default(),
        };
        loop {
            let guard = self.hold_in_line(time, &want.volume)?;
            let round = self.attach_round(&guard, time, want, &mut course)?;
            if let Round::Done(volume) = round {
                self.settle_usage(&guard, want, &volume)?;
                self.ensure_tagged(&guard, time, &volume)?;
                return Ok(volume);
            }
            // The call that makes the volume free must not wait for this one, which waits for that.
            drop(guard);
            match round {
                Round::Done(_) | Round::Again => {}
                Round::Pause(why) => time.pause(course.pauses.next_pause(), &doing, &why)?,
                Round::Watch(why) => time.pause(time.patience.watch(), &doing, &why)?,
                Round::Await(action) => self.await_foreign(time, &want.volume, &action, &doing)?,
            }
        }
    }

    fn attach_round(&self, guard: &VolumeGuard, time: &CallTime, want: &Publish, course: &mut Course) -> Result<Round> {
        let volume = time.observe_volume(&want.volume)?;
        match plan_attach(&volume.droplets, want.droplet) {
            AttachPlan::Here => self.confirm_here(guard, time, volume, want, course),
            AttachPlan::Attach => {
                self.usages.unpublished(&want.volume, DetachFrom::Anywhere);
                self.attach_free(guard, time, want, course)
            }
            AttachPlan::Elsewhere(holder) => {
                course.refusal = None;
                self.release_round(guard, time, &volume, holder, want.droplet, &mut course.watch)
            }
        }
    }

    /// Believes in an attachment that this call did not make, or does not. It may be on its way out, as a detach shows only
    /// at its end; and when the last that was carried out was a detach, the list of droplets lags, unless it goes on for
    /// long and the droplet says so too.
    fn confirm_here(
        &self,
        guard: &VolumeGuard,
        time: &CallTime,
        volume: Volume,
        want: &Publish,
        course: &mut Course,
    ) -> Result<Round> {
        match self.observe_moves(time, &volume.id)? {
            Moves::Running(action) => return Ok(Round::Await(action)),
            Moves::Attached | Moves::Unknown => return Ok(Round::Done(volume)),
            Moves::Detached => {}
        }
        if course.stale_since.get_or_insert_with(Instant::now).elapsed() < time.patience.shown() {
            return Ok(Round::Pause("it has been detached, and the attachment still shows".to_owned()));
        }
        if self.has_volume(time, want.droplet, &volume.id)? {
            return Ok(Round::Done(volume));
        }
        self.attach_free(guard, time, want, course)
    }

    /// Attaches a volume that is nowhere.
    fn attach_free(&self, guard: &VolumeGuard, time: &CallTime, want: &Publish, course: &mut Course) -> Result<Round> {
        if mem::take(&mut course.is_contested)
            && let Moves::Running(action) = self.observe_moves(time, &want.volume)?
        {
            return Ok(Round::Await(action));
        }
        if let Some(refusal) = course.refusal.take() {
            return Err(refusal);
        }
        match self.apply_attach(guard, time, want)? {
            Tried::Completed => self.await_shown(guard, time, want, course),
            Tried::Errored => Ok(Round::Pause("DigitalOcean's attach action errored".to_owned())),
            Tried::Open(err) => {
                warn!(
                    "attach unclear, reading the volume again doing={}: {err}",
                    attaching(&want.volume, want.droplet)
                );
                course.is_contested = true;
                Ok(Round::Pause(err.to_string()))
            }
            Tried::Refused(err) => {
                course.is_contested = true;
                course.refusal = Some(err);
                Ok(Round::Again)
            }
        }
    }

    /// Reads back what a completed attach has brought about. The guard is kept meanwhile: who waits for the volume to
    /// detach it comes after this call's answer, not between attach and answer.
    fn await_shown(&self, _guard: &VolumeGuard, time: &CallTime, want: &Publish, course: &mut Course) -> Result<Round> {
        let (since, mut pauses) = (Instant::now(), time.pauses());
        loop {
            let volume = time.observe_volume(&want.volume)?;
            match plan_attach(&volume.droplets, want.droplet) {
                AttachPlan::Here => return Ok(Round::Done(volume)),
                AttachPlan::Elsewhere(_) => return Ok(Round::Again),
                AttachPlan::Attach => {}
            }
            let why = "DigitalOcean's attach action completed, but the attachment does not show";
            if since.elapsed() > time.patience.shown() {
                course.is_contested = true;
                return Ok(Round::Pause(why.to_owned()));
            }
            time.pause(pauses.next_pause(), &attaching(&want.volume, want.droplet), &why)?;
        }
    }

    /// Sends an attach when it is this call's turn, again while the droplet is busy, and waits for its end.
    fn apply_attach(&self, _guard: &VolumeGuard, time: &CallTime, want: &Publish) -> Result<Tried> {
        let (id, droplet) = (&want.volume, want.droplet);
        let doing = attaching(id, droplet);
        let _turn = self.take_turn(time, droplet, &doing)?;
        let mut pauses = time.pauses();
        loop {
            let err = match time.cloud.attach(id, droplet) {
                Ok(action) => {
                    return Ok(match await_action(time, &self.pace, id, ActionKind::Attach, &action, &doing)? {
                        Ended::Completed => {
                            info!("attached volume={id} droplet={droplet} action={}", action.id);
                            Tried::Completed
                        }
                        Ended::Errored => Tried::Errored,
                    });
                }
                Err(err) => err,
            };
            match plan_verdict(&err) {
                Verdict::Busy => time.pause(pauses.after(&err), &doing, &err)?,
                Verdict::Unclear | Verdict::Conflict => return Ok(Tried::Open(err)),
                Verdict::Missing | Verdict::Odd if self.observe_droplet(time, droplet)?.is_none() => {
                    return Err(Error::NotFound(Thing::Droplet(droplet.to_string())));
                }
                // The droplet is there, so it is the volume that is gone, which reading it will tell.
                Verdict::Missing => return Ok(Tried::Open(err)),
                Verdict::Limit => {
                    return Ok(Tried::Refused(Error::AttachLimit { droplet, volume: id.clone() }));
                }
                Verdict::OutOfTime => return Err(time.out_of_time(&doing, err.to_string())),
                Verdict::Odd | Verdict::Refused => return Ok(Tried::Refused(Error::Api { doing, source: err })),
            }
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
}
