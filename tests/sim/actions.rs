//! Rules for attach, detach and resize, and what happens when such an action ends (contract 4 to 7).

use super::clock::Moment;
use super::refusal::Refusal;
use super::state::{Action, ActionKind, ActionStatus, Cloud, Effect, Event, Twists};

/// What an action request asks for. `plan_` checks it, [`Cloud::start`] begins it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionPlan {
    /// What to do.
    pub kind: ActionKind,
    /// To which volume.
    pub volume: String,
    /// With which droplet; none for a resize.
    pub droplet: Option<u64>,
    /// The size after a resize, in GiB.
    pub size_gigabytes: Option<u64>,
}

impl Cloud {
    /// Checks an attach.
    ///
    /// # Errors
    /// The refusal of the first rule it breaks, in the order of the contract.
    pub fn plan_attach(
        &self,
        now: Moment,
        volume: &str,
        droplet: u64,
        region: Option<&str>,
    ) -> Result<ActionPlan, Refusal> {
        let found = self.volume(volume)?;
        let target = self.droplet(droplet).map_err(|not_found| {
            if self.rules.switches.unknown_droplet_is_422 { Refusal::UNKNOWN_DROPLET } else { not_found }
        })?;
        if target.region != found.region || region.is_some_and(|region| region != found.region) {
            return Err(Refusal::REGION_MISMATCH);
        }
        let is_again = found.attached_to == Some(droplet) && self.rules.switches.attach_again_is_accepted;
        if found.attached_to.is_some() && !is_again {
            return Err(Refusal::ALREADY_ATTACHED);
        }
        if self.is_busy(now, droplet) {
            return Err(Refusal::PENDING_EVENT);
        }
        if self.running_on(volume).any(|action| action.kind == ActionKind::Attach) {
            return Err(Refusal::ALREADY_ATTACHED);
        }
        if !is_again && self.volume_ids(droplet).len() >= self.rules.limits.attach {
            return Err(if self.rules.switches.legacy_attach_limit_text {
                Refusal::ATTACH_LIMIT_LEGACY
            } else {
                Refusal::ATTACH_LIMIT
            });
        }
        Ok(ActionPlan {
            kind: ActionKind::Attach,
            volume: volume.to_owned(),
            droplet: Some(droplet),
            size_gigabytes: None,
        })
    }

    /// Checks a detach. A request without a droplet finds no attachment (godo issue 102).
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`], [`Refusal::ATTACHMENT_NOT_FOUND`] or [`Refusal::PENDING_EVENT`].
    pub fn plan_detach(&self, now: Moment, volume: &str, droplet: Option<u64>) -> Result<ActionPlan, Refusal> {
        let found = self.volume(volume)?;
        let droplet =
            droplet.filter(|droplet| found.attached_to == Some(*droplet)).ok_or(Refusal::ATTACHMENT_NOT_FOUND)?;
        if self.is_busy(now, droplet) {
            return Err(Refusal::PENDING_EVENT);
        }
        Ok(ActionPlan {
            kind: ActionKind::Detach,
            volume: volume.to_owned(),
            droplet: Some(droplet),
            size_gigabytes: None,
        })
    }

    /// Checks a resize, which only grows.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`], [`Refusal::INVALID_RESIZE`] or the quota refusal.
    pub fn plan_resize(&self, volume: &str, size_gigabytes: i64) -> Result<ActionPlan, Refusal> {
        let found = self.volume(volume)?;
        let size = u64::try_from(size_gigabytes)
            .ok()
            .filter(|size| *size > found.size_gigabytes)
            .filter(|size| *size <= self.rules.limits.volume_gigabytes)
            .ok_or(Refusal::INVALID_RESIZE)?;
        let more = size - found.size_gigabytes;
        self.check_quota(&found.region, more, false, Refusal::RESIZE_QUOTA)?;
        Ok(ActionPlan {
            kind: ActionKind::Resize,
            volume: volume.to_owned(),
            droplet: None,
            size_gigabytes: Some(size),
        })
    }

    /// Begins a checked action and gives its id.
    pub fn start(&mut self, now: Moment, plan: &ActionPlan, twists: Twists) -> u64 {
        // Real ids are large; what matters is that they only grow.
        let id = 72_531_000 + self.next_number();
        let times = &self.rules.times;
        let usual = match plan.kind {
            ActionKind::Attach => times.attach,
            ActionKind::Detach => times.detach,
            ActionKind::Resize => times.resize,
        };
        let ends_at = now + twists.time.unwrap_or(usual);
        let volume = self.volumes.get_mut(&plan.volume).expect("a plan names a volume that exists");
        if twists.ids_early {
            match plan.kind {
                ActionKind::Attach => volume.listed_on = plan.droplet,
                ActionKind::Detach => volume.listed_on = None,
                ActionKind::Resize => {}
            }
        }
        let action = Action {
            id,
            kind: plan.kind,
            status: ActionStatus::InProgress,
            volume: plan.volume.clone(),
            droplet: plan.droplet,
            size_gigabytes: plan.size_gigabytes,
            region: volume.region.clone(),
            started_at: now,
            completed_at: None,
            hidden_polls: twists.hidden_polls,
            twists,
        };
        self.actions.insert(id, action);
        self.schedule(ends_at, Event::End { action: id });
        id
    }

    /// Begins a detach that nobody asked for, as when a droplet is destroyed.
    pub(super) fn start_detach(&mut self, now: Moment, volume: &str, droplet: u64, twists: Twists) {
        let is_running = self.running_on(volume).any(|action| action.kind == ActionKind::Detach);
        if is_running {
            return;
        }
        let plan = ActionPlan {
            kind: ActionKind::Detach,
            volume: volume.to_owned(),
            droplet: Some(droplet),
            size_gigabytes: None,
        };
        self.start(now, &plan, twists);
    }

    /// An action as a poll sees it, which may be 404 at first.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`].
    pub fn poll_action(&mut self, id: u64) -> Result<&Action, Refusal> {
        let action = self.actions.get_mut(&id).ok_or(Refusal::NOT_FOUND)?;
        if action.hidden_polls > 0 {
            action.hidden_polls -= 1;
            return Err(Refusal::NOT_FOUND);
        }
        Ok(action)
    }

    /// The actions that lists show, of one volume if one is named, newest first.
    pub fn listed_actions(&self, now: Moment, volume: Option<&str>) -> Vec<Action> {
        self.actions(volume).into_iter().filter(|action| action.started_at + action.twists.action_late <= now).collect()
    }

    /// All actions, of one volume if one is named, newest first.
    pub fn actions(&self, volume: Option<&str>) -> Vec<Action> {
        self.actions
            .values()
            .rev()
            .filter(|action| volume.is_none_or(|volume| action.volume == volume))
            .cloned()
            .collect()
    }

    /// Whether any event keeps the droplet from starting another.
    pub fn is_busy(&self, now: Moment, droplet: u64) -> bool {
        let is_held = self.droplets.get(&droplet).is_some_and(|droplet| droplet.held_until > now);
        is_held || self.actions.values().any(|action| action.droplet == Some(droplet) && action.is_running())
    }

    pub(super) fn end_action(&mut self, at: Moment, id: u64) {
        let action = self.actions.get_mut(&id).expect("actions are never forgotten");
        action.completed_at = Some(at);
        action.status = if action.twists.errored { ActionStatus::Errored } else { ActionStatus::Completed };
        let action = action.clone();
        if action.twists.stays_in_progress && action.status == ActionStatus::Completed {
            self.actions.get_mut(&id).expect("actions are never forgotten").status = ActionStatus::InProgress;
        }
        if action.status == ActionStatus::Completed {
            match action.kind {
                ActionKind::Attach => self.end_attach(at, &action),
                ActionKind::Detach => self.end_detach(at, &action),
                ActionKind::Resize => self.end_resize(at, &action),
            }
        }
        if let Some(droplet) = action.droplet {
            // One that came to nothing says nothing new, but takes back what it had shown early.
            if action.status == ActionStatus::Completed || action.twists.ids_early {
                self.list_truth(at, &action);
            }
            if action.kind == ActionKind::Attach {
                self.let_go_of_destroyed(at, &action.volume, droplet);
            }
        }
    }

    /// Lets `droplet_ids` show the truth, late if so scripted; what an earlier action had scheduled is overtaken.
    fn list_truth(&mut self, at: Moment, action: &Action) {
        let is_its = |id: &String| *id == action.volume;
        self.unschedule(|event| matches!(event, Event::List { volume } | Event::Record { volume } if is_its(volume)));
        self.schedule(at + action.twists.record_late, Event::Record { volume: action.volume.clone() });
        let event = Event::List { volume: action.volume.clone() };
        self.schedule(at + action.twists.ids_late, event);
    }

    /// A droplet that was destroyed while an action ran must not keep the volume.
    fn let_go_of_destroyed(&mut self, at: Moment, volume: &str, droplet: u64) {
        let is_held = self.volumes.get(volume).is_some_and(|v| v.attached_to == Some(droplet));
        if is_held && self.droplet(droplet).is_err() {
            self.start_detach(at, volume, droplet, Twists::default());
        }
    }

    fn end_attach(&mut self, at: Moment, action: &Action) {
        let droplet = action.droplet.expect("an attach has a droplet");
        let cut = self.rules.switches.link_name_cut_at.unwrap_or(usize::MAX);
        let Some(volume) = self.volumes.get_mut(&action.volume) else { return };
        volume.attached_to = Some(droplet);
        let link = format!("scsi-0DO_Volume_{}", volume.name.chars().take(cut).collect::<String>());
        let mut seen_at = at + action.twists.device_lag.unwrap_or(self.rules.times.device_lag);
        let attach = |is_half| Effect::Attach { volume: action.volume.clone(), link: link.clone(), droplet, is_half };
        if let Some(half) = action.twists.half_attached {
            self.schedule_device(seen_at, &action.volume, attach(true));
            seen_at += half;
        }
        self.schedule_device(seen_at, &action.volume, attach(false));
    }

    fn end_detach(&mut self, at: Moment, action: &Action) {
        self.let_go(at, &action.volume, action.twists.stale_link);
    }

    /// Takes a volume from its droplet, whatever is listed.
    pub(super) fn let_go(&mut self, at: Moment, id: &str, keeps_link: bool) {
        let Some(volume) = self.volumes.get_mut(id) else { return };
        volume.attached_to = None;
        self.schedule(at, Event::Record { volume: id.to_owned() });
        // What the droplet has not seen yet, it will never see.
        self.unschedule(|event| {
            matches!(event, Event::Device { volume, effect: Effect::Attach { .. } }
                if volume == id)
        });
        let effect = Effect::Detach { volume: id.to_owned(), keeps_link };
        self.schedule_device(at, id, effect);
    }

    fn end_resize(&mut self, at: Moment, action: &Action) {
        let wanted = action.size_gigabytes.expect("a resize has a size");
        let lag = action.twists.device_lag.unwrap_or(self.rules.times.device_lag);
        let Some(volume) = self.volumes.get_mut(&action.volume) else { return };
        // Of two resizes under way, the larger one wins.
        volume.size_gigabytes = volume.size_gigabytes.max(wanted);
        let size_gigabytes = volume.size_gigabytes;
        let seen_at = if volume.attached_to.is_some() { at + lag } else { at };
        self.schedule(at + action.twists.size_late, Event::ListSize { volume: action.volume.clone() });
        let effect = Effect::Grow { volume: action.volume.clone(), size_gigabytes };
        self.schedule_device(seen_at, &action.volume, effect);
    }

    fn schedule_device(&mut self, at: Moment, volume: &str, effect: Effect) {
        self.schedule(at, Event::Device { volume: volume.to_owned(), effect });
    }

    fn running_on(&self, volume: &str) -> impl Iterator<Item = &Action> {
        self.actions.values().filter(move |action| action.volume == volume && action.is_running())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::config::{DropletSpec, SimConfig, Times};
    use super::super::volumes::NewVolume;
    use super::*;

    const NOW: Moment = Duration::from_secs(1_785_578_400);
    const SECOND: Duration = Duration::from_secs(1);

    /// Two droplets and two volumes `a` and `b` in one region, one droplet and volume `n` in another.
    struct World {
        cloud: Cloud,
        now: Moment,
        a: String,
        b: String,
        n: String,
    }

    impl World {
        fn new() -> World {
            let mut cloud = Cloud::new(&SimConfig {
                regions: vec!["fra1".to_owned(), "nyc1".to_owned()],
                droplets: vec![
                    DropletSpec::new(1, "one", "fra1"),
                    DropletSpec::new(2, "two", "fra1"),
                    DropletSpec::new(3, "three", "nyc1"),
                ],
                ..SimConfig::default()
            });
            cloud.rules.times = Times::actions(SECOND);
            let mut volume =
                |name, region| cloud.create_volume(NOW, &NewVolume::new(name, 5, region)).expect("a good volume");
            let (a, b, n) = (volume("a", "fra1"), volume("b", "fra1"), volume("n", "nyc1"));
            cloud.take_effects();
            World { cloud, now: NOW, a, b, n }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.cloud.tick(self.now);
        }

        fn attach(&mut self, volume: &str, droplet: u64, twists: Twists) -> Result<u64, Refusal> {
            let plan = self.cloud.plan_attach(self.now, volume, droplet, None)?;
            Ok(self.cloud.start(self.now, &plan, twists))
        }

        fn detach(&mut self, volume: &str, droplet: u64, twists: Twists) -> Result<u64, Refusal> {
            let plan = self.cloud.plan_detach(self.now, volume, Some(droplet))?;
            Ok(self.cloud.start(self.now, &plan, twists))
        }

        fn attached(&mut self, volume: &str, droplet: u64) {
            self.attach(volume, droplet, Twists::default()).expect("the attach is accepted");
            self.pass(SECOND);
        }

        /// Where the volume is, and where `droplet_ids` says it is.
        fn places(&self, volume: &str) -> (Option<u64>, Option<u64>) {
            let volume = self.cloud.volume(volume).expect("it exists");
            (volume.attached_to, volume.listed_on)
        }
    }

    #[test]
    fn attach_breaks_the_rules_in_the_documented_order() {
        let mut world = World::new();
        let (a, b, n) = (world.a.clone(), world.b.clone(), world.n.clone());
        let plain = Twists::default;
        assert_eq!(world.attach("0", 1, plain()), Err(Refusal::NOT_FOUND));
        assert_eq!(world.attach(&a, 9, plain()), Err(Refusal::NOT_FOUND));
        world.cloud.rules.switches.unknown_droplet_is_422 = true;
        assert_eq!(world.attach(&a, 9, plain()), Err(Refusal::UNKNOWN_DROPLET));
        assert_eq!(world.attach(&n, 1, plain()), Err(Refusal::REGION_MISMATCH));
        let elsewhere = world.cloud.plan_attach(NOW, &a, 1, Some("nyc1"));
        assert_eq!(elsewhere, Err(Refusal::REGION_MISMATCH));

        world.attach(&a, 1, plain()).expect("the attach is accepted");
        assert_eq!(world.attach(&b, 1, plain()), Err(Refusal::PENDING_EVENT));
        assert_eq!(world.attach(&a, 1, plain()), Err(Refusal::PENDING_EVENT));
        assert_eq!(world.attach(&a, 2, plain()), Err(Refusal::ALREADY_ATTACHED));
        world.pass(SECOND);
        assert_eq!(world.attach(&a, 1, plain()), Err(Refusal::ALREADY_ATTACHED));
        assert_eq!(world.attach(&a, 2, plain()), Err(Refusal::ALREADY_ATTACHED));
        world.cloud.rules.limits.attach = 1;
        assert_eq!(world.attach(&b, 1, plain()), Err(Refusal::ATTACH_LIMIT));
        world.cloud.rules.switches.legacy_attach_limit_text = true;
        assert_eq!(world.attach(&b, 1, plain()), Err(Refusal::ATTACH_LIMIT_LEGACY));
        world.cloud.rules.switches.attach_again_is_accepted = true;
        assert!(world.attach(&a, 1, plain()).is_ok());
    }

    #[test]
    fn detach_needs_the_right_droplet_and_an_idle_one() {
        let mut world = World::new();
        let (a, b) = (world.a.clone(), world.b.clone());
        assert_eq!(world.detach(&a, 1, Twists::default()), Err(Refusal::ATTACHMENT_NOT_FOUND));
        world.attached(&a, 1);
        assert_eq!(world.detach(&a, 2, Twists::default()), Err(Refusal::ATTACHMENT_NOT_FOUND));
        let nowhere = world.cloud.plan_detach(world.now, &a, None);
        assert_eq!(nowhere, Err(Refusal::ATTACHMENT_NOT_FOUND));
        world.attach(&b, 1, Twists::default()).expect("the attach is accepted");
        assert_eq!(world.detach(&a, 1, Twists::default()), Err(Refusal::PENDING_EVENT));
        world.pass(SECOND);
        world.detach(&a, 1, Twists::default()).expect("the detach is accepted");
        assert_eq!(world.attach(&a, 2, Twists::default()), Err(Refusal::ALREADY_ATTACHED));
        world.pass(SECOND);
        assert_eq!(world.places(&a), (None, None));
    }

    #[test]
    fn a_held_droplet_is_busy_only_as_long_as_it_is_held() {
        let mut world = World::new();
        let a = world.a.clone();
        let until = NOW + SECOND;
        world.cloud.change_droplet(1, |droplet| droplet.held_until = until);
        assert_eq!(world.attach(&a, 1, Twists::default()), Err(Refusal::PENDING_EVENT));
        world.pass(SECOND);
        assert!(world.attach(&a, 1, Twists::default()).is_ok());
    }

    #[test]
    fn resize_only_grows_and_within_the_limits() {
        let mut world = World::new();
        world.cloud.rules.limits.region_gigabytes = 20;
        let a = world.a.clone();
        for (size, want) in [
            (5, Err(Refusal::INVALID_RESIZE)),
            (4, Err(Refusal::INVALID_RESIZE)),
            (-1, Err(Refusal::INVALID_RESIZE)),
            (16_385, Err(Refusal::INVALID_RESIZE)),
            (16, Err(Refusal::RESIZE_QUOTA)),
            (15, Ok(())),
        ] {
            assert_eq!(world.cloud.plan_resize(&a, size).map(|_| ()), want, "{size}");
        }
        let plan = world.cloud.plan_resize(&a, 15).expect("it grows");
        world.cloud.start(NOW, &plan, Twists::default());
        assert_eq!(world.cloud.volume(&a).map(|volume| volume.size_gigabytes), Ok(5));
        world.pass(SECOND);
        assert_eq!(world.cloud.volume(&a).map(|volume| volume.size_gigabytes), Ok(15));
    }

    #[test]
    fn an_errored_action_changes_nothing_and_frees_the_droplet() {
        let mut world = World::new();
        let a = world.a.clone();
        let twists = Twists { errored: true, ids_early: true, ..Twists::default() };
        let id = world.attach(&a, 1, twists).expect("the attach is accepted");
        assert_eq!(world.places(&a), (None, Some(1)));
        world.pass(SECOND);
        assert_eq!(world.places(&a), (None, None));
        let action = world.cloud.poll_action(id).expect("it can be polled").clone();
        assert_eq!(action.status, ActionStatus::Errored);
        assert_eq!(action.completed_at, Some(NOW + SECOND));
        assert_eq!(world.cloud.take_effects(), []);
        assert!(world.attach(&a, 1, Twists::default()).is_ok());
    }

    #[test]
    fn droplet_ids_lag_in_both_directions_and_end_up_true() {
        let mut world = World::new();
        let a = world.a.clone();
        let late = || Twists { ids_late: SECOND, ..Twists::default() };
        world.attach(&a, 1, late()).expect("the attach is accepted");
        world.pass(SECOND);
        assert_eq!(world.places(&a), (Some(1), None));
        world.pass(SECOND);
        assert_eq!(world.places(&a), (Some(1), Some(1)));
        world.detach(&a, 1, late()).expect("the detach is accepted");
        world.pass(SECOND);
        assert_eq!(world.places(&a), (None, Some(1)));
        assert_eq!(world.detach(&a, 1, late()), Err(Refusal::ATTACHMENT_NOT_FOUND));
        world.pass(SECOND);
        assert_eq!(world.places(&a), (None, None));
    }

    #[test]
    fn a_device_that_is_late_never_appears_after_its_detach() {
        let mut world = World::new();
        let a = world.a.clone();
        let twists = Twists { device_lag: Some(10 * SECOND), ..Twists::default() };
        world.attach(&a, 1, twists).expect("the attach is accepted");
        world.pass(SECOND);
        world.detach(&a, 1, Twists::default()).expect("the detach is accepted");
        world.pass(20 * SECOND);
        let want = Effect::Detach { volume: a, keeps_link: false };
        assert_eq!(world.cloud.take_effects(), [want]);
    }

    #[test]
    fn a_destroyed_droplet_is_gone_at_once_and_lets_go_later() {
        let mut world = World::new();
        let a = world.a.clone();
        world.attached(&a, 1);
        world.cloud.destroy_droplet(world.now, 1, |_| Twists::default());
        assert_eq!(world.cloud.droplet(1), Err(Refusal::NOT_FOUND));
        assert_eq!(world.places(&a), (Some(1), Some(1)));
        assert_eq!(world.attach(&a, 2, Twists::default()), Err(Refusal::ALREADY_ATTACHED));
        world.pass(SECOND);
        assert_eq!(world.places(&a), (None, None));
    }

    #[test]
    fn a_droplet_destroyed_during_an_attach_does_not_keep_the_volume() {
        let mut world = World::new();
        let a = world.a.clone();
        world.attach(&a, 1, Twists::default()).expect("the attach is accepted");
        world.cloud.destroy_droplet(world.now, 1, |_| Twists::default());
        world.pass(SECOND);
        assert_eq!(world.places(&a), (Some(1), Some(1)));
        world.pass(SECOND);
        assert_eq!(world.places(&a), (None, None));
    }

    #[test]
    fn a_resize_does_not_hurry_late_droplet_ids() {
        let mut world = World::new();
        let a = world.a.clone();
        let twists = Twists { ids_late: 10 * SECOND, ..Twists::default() };
        world.attach(&a, 1, twists).expect("the attach is accepted");
        let plan = world.cloud.plan_resize(&a, 9).expect("it grows");
        world.cloud.start(NOW, &plan, Twists::default());
        world.pass(SECOND);
        assert_eq!(world.places(&a), (Some(1), None));
    }
}
