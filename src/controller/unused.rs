//! Detaching a volume from this droplet that nobody uses here, and bringing it back.
//!
//! Owns what DigitalOcean says of such a volume, as far as it decides whether it may be detached, and the one request that does
//! it. Whether anybody uses the disk is not known here. No detach is ever sent twice, and none without the volume's lock: what is
//! unclear afterwards is told, and looked at from the start the next time.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::cloud::action::{Action, ActionStatus};
use crate::cloud::volume::Volume;
use crate::controller::Controller;
use crate::controller::attachment::Purpose;
use crate::controller::context::{CallContext, Timeouts};
use crate::controller::last_action::{LastAction, is_detach};
use crate::controller::owner::Owner;
use crate::controller::run_action::{ActionOutcome, ActionRequest, OnBusy, Waits};
use crate::controller::takeover::can_use;
use crate::droplet_identity::Facts;
use crate::error::{Chain, Error, Result, Thing};
use crate::id::{DropletId, VolumeId, VolumeName};
use crate::request::attachment::{DetachFrom, Publish, PublishMode};
use crate::sync::volume_lock::{VolumeGuard, VolumeKey};

/// The tag of a volume that is never detached for being unused: who attaches one by hand puts it on.
pub const KEEP_TAG: &str = "do-csi-keep";
/// How long another call of this program may have the volume's lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Which droplets a volume lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// This one alone.
    OnlyHere,
    /// This one and another.
    AlsoElsewhere,
    /// Not this one.
    NotHere,
}

/// What a volume's marks say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// It is this cluster's: its owner's tag is on it, as on each that this plugin creates or attaches.
    Owners,
    /// It is not, in words.
    NotOwners(String),
    /// Somebody wants it to stay where it is.
    Keep,
}

/// What a volume's newest actions say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latest {
    /// One is running.
    Running,
    /// The last one that moved the volume and was carried out is no attach, or there was none.
    NoAttach,
    /// It is an attach, and this time has passed since the newest action, whatever it was, began; `None`: that cannot be told.
    Attached(Option<Duration>),
}

/// What DigitalOcean says of a volume that nobody uses here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseFacts {
    /// Where it is.
    pub listed: Listed,
    /// Whose it is.
    pub mark: Mark,
    /// What was done to it last.
    pub latest: Latest,
}

/// How a detach ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReleaseOutcome {
    /// The volume is not on the droplet any more.
    Detached,
    /// It certainly still is, for this reason.
    Refused(String),
    /// It may still go at any moment, for this reason.
    Unclear(String),
}

/// Reads a volume's newest actions, the oldest first. A clock that is ahead of DigitalOcean's, or behind, makes none older than
/// it is by more than that; one that begins in the future has begun just now. Pure.
fn plan_latest(actions: &[Action], now: SystemTime) -> Latest {
    let is_running = |action: &Action| match action.status {
        ActionStatus::Completed | ActionStatus::Errored => false,
        ActionStatus::InProgress | ActionStatus::Other(_) => true,
    };
    if actions.iter().any(is_running) {
        return Latest::Running;
    }
    let is_move = |action: &&Action| action.status == ActionStatus::Completed && !action.kind.contains("resize");
    let moved = actions.iter().rev().find(is_move);
    if !moved.is_some_and(|action| action.kind.contains("attach") && !is_detach(action)) {
        return Latest::NoAttach;
    }
    let begun = actions.iter().map(|action| action.started_at).collect::<Option<Vec<_>>>();
    let newest = begun.and_then(|begun| begun.into_iter().max());
    Latest::Attached(newest.map(|newest| now.duration_since(newest).unwrap_or_default()))
}

impl Controller {
    /// A context for work that no call asked for, with this much time.
    #[must_use]
    pub fn context_of_own(&self, budget: Duration) -> CallContext {
        let own = Arc::clone(&self.droplet_identity);
        CallContext::since(Instant::now(), &self.cloud, Timeouts::of(budget)).on_droplet(Some(own))
    }

    /// The volume with this name in this droplet's region; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::NotReady`] as long as the droplet is not known, [`Error::TimedOut`], [`Error::Api`].
    pub fn find_named(&self, ctx: &CallContext, name: &VolumeName) -> Result<Option<Volume>> {
        let Facts { region, .. } = self.droplet_identity.facts()?;
        let doing = format!("looking for the volume named {name}");
        let refused = |source| Error::Api { doing: doing.clone(), source };
        ctx.query(&doing, refused, |cloud| cloud.find_volume(name, &region))
    }

    /// Locks a volume that nobody uses. Calls for it wait until what this gives is dropped.
    ///
    /// # Errors
    /// [`Error::VolumeBusy`] when a call is at work on it.
    pub fn hold_unused(&self, id: &VolumeId) -> Result<VolumeGuard> {
        self.hold_for(id, LOCK_PATIENCE)
    }

    fn hold_for(&self, id: &VolumeId, patience: Duration) -> Result<VolumeGuard> {
        let key = VolumeKey::Id(id.to_string());
        Ok(self.locks.acquire_queued(key, usize::MAX, Instant::now() + patience)?)
    }

    /// Reads what decides whether a volume may be detached from this droplet; `None` when there is no such volume.
    ///
    /// # Errors
    /// [`Error::NotReady`], [`Error::TimedOut`], [`Error::Api`].
    pub fn observe_release(
        &self,
        _guard: &VolumeGuard,
        ctx: &CallContext,
        id: &VolumeId,
    ) -> Result<Option<ReleaseFacts>> {
        let Facts { id: here, .. } = self.droplet_identity.facts()?;
        let Some(volume) = ctx.observe_volume_if_there(id)? else { return Ok(None) };
        let doing = format!("reading the latest actions of volume {id}");
        let refused = |source| Error::Api { doing: doing.clone(), source };
        let actions = ctx.query(&doing, refused, |cloud| cloud.newest_actions(id))?;
        let latest = plan_latest(&actions, ctx.cloud.now());
        Ok(Some(ReleaseFacts { listed: plan_listed(&volume.droplets, here), mark: mark(&self.owner, &volume), latest }))
    }

    /// Detaches a volume from this droplet, by one request, and waits until it is known what has come of it. `mark` is called just
    /// before the request is sent, which is not sent when that fails.
    #[must_use]
    pub fn apply_release(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        id: &VolumeId,
        mark: impl Fn() -> Result<()>,
    ) -> ReleaseOutcome {
        let droplet = match self.droplet_identity.facts() {
            Ok(Facts { id, .. }) => id,
            Err(err) => return ReleaseOutcome::Refused(Chain(&err).to_string()),
        };
        let outcome = self.try_release(guard, ctx, id, droplet, |_| mark().map(|()| true));
        let outcome = outcome.unwrap_or_else(|err| ReleaseOutcome::Unclear(Chain(&err).to_string()));
        if outcome == ReleaseOutcome::Detached {
            self.attacher.publish_modes.unpublished(id, DetachFrom::Droplet(droplet));
            self.attacher.publish_modes.taken_from(id, droplet);
        }
        outcome
    }

    /// Detaches a volume from a droplet that cannot use it: one that is off, archived or gone at this moment, and still is when the
    /// request has its turn.
    ///
    /// # Errors
    /// [`Error::VolumeBusy`], [`Error::TimedOut`], [`Error::Api`].
    pub fn release_from_dead(&self, ctx: &CallContext, id: &VolumeId, droplet: DropletId) -> Result<ReleaseOutcome> {
        let guard = self.hold_unused(id)?;
        let is_dead = || Ok(!can_use(ctx.observe_droplet(droplet)?.as_ref().map(|droplet| &droplet.status)));
        if !is_dead()? {
            return Ok(ReleaseOutcome::Refused(format!("droplet {droplet} may use it by now")));
        }
        self.try_release(&guard, ctx, id, droplet, |_| is_dead())
    }

    fn try_release(
        &self,
        guard: &VolumeGuard,
        ctx: &CallContext,
        id: &VolumeId,
        droplet: DropletId,
        may_send: impl Fn(Duration) -> Result<bool>,
    ) -> Result<ReleaseOutcome> {
        let request = ActionRequest::Detach { volume: id, droplet };
        let sent = self.runner.run_if(guard, ctx, &request, OnBusy::Return, may_send, || {})?;
        match sent {
            ActionOutcome::Completed(_) => return Ok(ReleaseOutcome::Detached),
            ActionOutcome::Busy(_) | ActionOutcome::Refused(_) | ActionOutcome::Withdrawn => {
                return Ok(ReleaseOutcome::Refused(sent.in_words("detach")));
            }
            // One that DigitalOcean says not to know may be running.
            ActionOutcome::Errored(_) | ActionOutcome::Open(_) | ActionOutcome::Overdue(_) => {}
        }
        // Without an answer it may be carried out yet. As long as such a request takes nobody else gets the volume.
        let doing = request.to_string();
        let (since, mut pauses, mut waits) = (Instant::now(), ctx.backoff(), Waits::new(ctx));
        loop {
            match ctx.observe_last_action_if_there(id)? {
                LastAction::Detached => {
                    if matches!(sent, ActionOutcome::Open(_)) {
                        self.runner.lost_detaches.found(id, droplet, Instant::now());
                    }
                    return Ok(ReleaseOutcome::Detached);
                }
                LastAction::Running(action) => {
                    self.runner.await_foreign(ctx, id, &action, &mut waits, &doing)?;
                }
                LastAction::Stuck(_) | LastAction::Attached(..) | LastAction::Unknown
                    if since.elapsed() > ctx.patience.propagation() =>
                {
                    return Ok(ReleaseOutcome::Unclear(sent.in_words("detach")));
                }
                LastAction::Stuck(_) | LastAction::Attached(..) | LastAction::Unknown => {
                    ctx.pause(pauses.next_pause(), &doing, &sent.in_words("detach"))?;
                }
            }
        }
    }

    /// Sees that the volume of this name is attached to this droplet, and takes it from no other.
    ///
    /// A second call sees the attachment and changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AttachedElsewhere`] whatever state the other droplet is in, and as [`Controller::publish`].
    pub fn ensure_attached_here(&self, ctx: &CallContext, name: &VolumeName) -> Result<()> {
        // Right after the start this may not be known yet.
        let Facts { id: droplet, .. } = self.droplet_identity.wait_for_facts(ctx.deadline())?;
        let gone = || Error::NotFound(Thing::Volume(name.to_string()));
        let volume = self.find_named(ctx, name)?.ok_or_else(gone)?;
        let want = Publish { volume: volume.id, droplet, mode: PublishMode { is_read_only: false, is_block: false } };
        self.attacher.publish(ctx, &want, Purpose::Return).map(drop)
    }
}

/// Reads a volume's marks.
fn mark(owner: &Owner, volume: &Volume) -> Mark {
    if volume.tags.iter().any(|tag| tag.eq_ignore_ascii_case(KEEP_TAG)) {
        return Mark::Keep;
    }
    if let Some((why, _)) = owner.foreign(volume) {
        return Mark::NotOwners(why);
    }
    if let Err(refusal) = owner.check_use(volume, "detached") {
        return Mark::NotOwners(refusal.to_string());
    }
    // Where no tag is shown, the one that keeps it may be on it all the same.
    if owner.tag().is_some_and(|own| volume.tags.iter().any(|tag| own.is(tag))) {
        Mark::Owners
    } else {
        let why = "the owner's tag (--do-tag) is not on it, or the access token may not read it (tag:read)";
        Mark::NotOwners(why.to_owned())
    }
}

/// Decides by the droplets that a volume lists. Pure.
fn plan_listed(droplets: &[DropletId], here: DropletId) -> Listed {
    match (droplets.contains(&here), droplets.iter().any(|droplet| *droplet != here)) {
        (true, false) => Listed::OnlyHere,
        (true, true) => Listed::AlsoElsewhere,
        (false, true | false) => Listed::NotHere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::tag::Tag;
    use crate::controller::description::plan_description;
    use crate::id::ActionId;

    #[test]
    fn the_newest_actions_say_whether_it_was_attached_and_how_long_ago_anything_was_done() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let action = |kind: &str, status, age: Option<u64>| Action {
            id: ActionId(1),
            status,
            kind: kind.to_owned(),
            started_at: age.map(|age| now - Duration::from_secs(age)),
        };
        let done = |kind, age| action(kind, ActionStatus::Completed, Some(age));
        let failed = |kind, age| action(kind, ActionStatus::Errored, Some(age));
        let aged = |seconds| Latest::Attached(Some(Duration::from_secs(seconds)));
        let (attach, detach) = ("attach_volume", "detach_volume");
        for (actions, want) in [
            (vec![], Latest::NoAttach),
            (vec![done(attach, 500)], aged(500)),
            (vec![done(attach, 500), done("resize", 20)], aged(20)),
            (vec![done(attach, 500), failed(detach, 30)], aged(30)),
            (vec![done(attach, 500), done(detach, 30)], Latest::NoAttach),
            (vec![done(detach, 500), failed(attach, 30)], Latest::NoAttach),
            (vec![done("resize", 500)], Latest::NoAttach),
            (vec![done("never heard of", 500)], Latest::NoAttach),
            (vec![done(attach, 500), action("resize", ActionStatus::InProgress, Some(400))], Latest::Running),
            (vec![action(detach, ActionStatus::Other("queued".to_owned()), None), done(attach, 5)], Latest::Running),
            (vec![action(attach, ActionStatus::Completed, None)], Latest::Attached(None)),
        ] {
            assert_eq!(plan_latest(&actions, now), want, "{actions:?}");
        }
        let future = Action { started_at: Some(now + Duration::from_secs(60)), ..done(attach, 0) };
        assert_eq!(plan_latest(&[future], now), aged(0));
    }

    #[test]
    fn a_volume_is_the_owners_only_when_its_tag_is_seen() {
        let owner = Owner::new(Some(Tag::parse("a").unwrap()), None);
        let made_for = |name| {
            let blog = VolumeName::parse("blog").unwrap();
            plan_description("blog", &blog, None, name, None)
        };
        for (description, tags, want) in [
            (made_for(Some("a")), &["A"][..], Some(Mark::Owners)),
            (String::new(), &["a", "x"], Some(Mark::Owners)),
            (made_for(Some("a")), &["a", "do-csi-keep"], Some(Mark::Keep)),
            // The token sees no tags: that one keeps it here may be among them.
            (made_for(Some("a")), &[], None),
            (made_for(None), &[], None),
            (made_for(Some("a")), &["x"], None),
            (made_for(Some("b")), &["b"], None),
            (String::new(), &[], None),
        ] {
            let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
            let shown = format!("{description:?} {tags:?}");
            let mark = mark(&owner, &Volume { description, tags, ..Volume::fake(&[1]) });
            match want {
                Some(want) => assert_eq!(mark, want, "{shown}"),
                None => assert!(matches!(mark, Mark::NotOwners(_)), "{shown}: {mark:?}"),
            }
        }
    }

    #[test]
    fn a_volume_is_only_here_when_it_lists_this_droplet_and_no_other() {
        let [here, there] = [1, 2].map(|id| DropletId::new(id).unwrap());
        for (droplets, want) in [
            (vec![], Listed::NotHere),
            (vec![there], Listed::NotHere),
            (vec![here], Listed::OnlyHere),
            (vec![here, there], Listed::AlsoElsewhere),
        ] {
            assert_eq!(plan_listed(&droplets, here), want, "{droplets:?}");
        }
    }
}
