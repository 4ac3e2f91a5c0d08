//! One request for what several calls want to know at the same time.
//!
//! Owns three such looks, which are made only while many calls would make one each:
//!
//! | look | answers | what is believed |
//! |---|---|---|
//! | at the list of volumes | who wants to attach one | that the volume is on no droplet, as the attach proves it |
//! | at the account's latest actions | who waits for an action | how that action is, as its own record says the same |
//! | at a droplet | whose attach to it has completed | that it has the volume; whether it lacks it, the volume tells |
//!
//! Whoever gets no answer here asks for himself. So a token that may not read actions works as well, and costs more.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info};

use crate::activity::{learn_name, wait_for};
use crate::cloud::Cloud;
use crate::cloud::action::ActionStatus;
use crate::cloud::page::Page;
use crate::cloud::volume::Volume;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::CallContext;
use crate::id::{ActionId, DropletId, VolumeId};
use crate::sync::shared_read::{Caller, SharedReads};

/// From this part of the quota on, counted with what is expected to be used, looks are shared.
const SCARCE: f64 = 0.5;

/// From this part on, what is most likely so is not looked at before the next step, which would fail otherwise.
const USED_UP: f64 = 0.9;

/// So many actions have to be waited for, so that one look at all is less than one at each.
const FEWEST_ACTIONS: u32 = 3;

/// How long after the last look at all actions the next one is.
const PERIOD: Duration = Duration::from_secs(1);

/// For how long the account's actions are not asked for again, when that told nothing.
const USELESS_FOR: Duration = Duration::from_secs(300);

/// The looks of one process.
#[derive(Debug, Default)]
pub(super) struct SharedLooks {
    volumes: SharedReads<(), HashMap<VolumeId, Volume>>,
    actions: SharedReads<(), HashMap<ActionId, ActionStatus>>,
    droplets: SharedReads<DropletId, Vec<VolumeId>>,
    /// Who wants to attach a volume, and has not read where it is.
    asking: AtomicU32,
    /// Who waits for an action.
    watching: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many requests the list of volumes takes, as far as it is known.
    volume_pages: u32,
    /// When all actions were looked at last.
    looked: Option<Instant>,
    /// When it was found that this is of no use.
    useless: Option<Instant>,
}

/// A call that looks at an action.
pub(super) type LookingCaller = Caller<(), HashMap<ActionId, ActionStatus>>;

impl State {
    /// Whether it has been found lately that the list of all actions does not help.
    fn is_useless(&self) -> bool {
        self.useless.is_some_and(|since| since.elapsed() < USELESS_FOR)
    }
}

/// A call that wants to attach a volume.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    caller: Caller<(), HashMap<VolumeId, Volume>>,
    _counted: Counted<'a>,
}

/// One more in a count, until this is dropped.
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn in_(count: &'a AtomicU32) -> Counted<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether so much of the quota is used that looks are shared.
pub(super) fn is_scarce(used: f64) -> bool {
    used >= SCARCE
}

/// Whether so much is used that the next action of a droplet is begun without a look at the one before.
pub(super) fn is_used_up(used: f64) -> bool {
    used >= USED_UP
}

impl SharedLooks {
    /// Takes notice of a call that wants to attach a volume and is about to read where it is.
    pub(super) fn ask(&self) -> Asking<'_> {
        Asking { caller: self.volumes.arrive(), _counted: Counted::in_(&self.asking) }
    }

    /// A volume that is on no droplet by the list of all volumes, read after the call had come; none: the list does not say so,
    /// or would cost more than a look at each volume that somebody asks for now.
    pub(super) fn unattached(&self, ctx: &CallContext, asking: &Asking<'_>, id: &VolumeId) -> Option<Volume> {
        if self.asking.load(Ordering::Relaxed) <= self.lock().volume_pages.max(1) {
            return None;
        }
        let Ok(found) = asking.caller.read(&(), ctx.deadline(), || Ok::<_, Infallible>(self.list_volumes(&ctx.cloud)));
        let volume = found?.get(id).cloned()?;
        learn_name(id.as_str(), &volume.name);
        Some(volume)
    }

    /// Those on no droplet; less or none of them when the list cannot be read, or is too long.
    fn list_volumes(&self, cloud: &Cloud) -> HashMap<VolumeId, Volume> {
        let mut found = HashMap::new();
        let mut next = Some(Page::first());
        while let Some(page) = next {
            let listed = match cloud.list_volumes_to_find_one(page) {
                Ok(listed) => listed,
                Err(err) => {
                    debug!(request = err.request_id(); "listing volumes to find those to attach: {err}");
                    break;
                }
            };
            let total = listed.total.unwrap_or(0).div_ceil(u64::from(page.per_page()));
            let pages = u32::try_from(total).unwrap_or(u32::MAX);
            self.lock().volume_pages = pages;
            found.extend(listed.items.into_iter().filter(|it| it.droplets.is_empty()).map(|it| (it.id.clone(), it)));
            next = listed.next.filter(|_| pages < self.asking.load(Ordering::Relaxed));
        }
        found
    }

    /// Takes notice of a call that waits for an action.
    pub(super) fn watch(&self) -> Counted<'_> {
        Counted::in_(&self.watching)
    }

    /// Takes notice of a call that looks at an action from now on.
    pub(super) fn look(&self) -> LookingCaller {
        self.actions.arrive()
    }

    /// How an action is, by a look at all that have been begun lately; none: that does not tell, or is not worth it.
    pub(super) fn status(&self, ctx: &CallContext, caller: &LookingCaller, action: ActionId) -> Option<ActionStatus> {
        if let Some(found) = caller.found(&()) {
            return found.get(&action).cloned();
        }
        if self.watching.load(Ordering::Relaxed) < FEWEST_ACTIONS {
            return None;
        }
        let wait = {
            let state = self.lock();
            if state.is_useless() {
                return None;
            }
            state.looked.map_or(Duration::ZERO, |at| PERIOD.saturating_sub(at.elapsed()))
        };
        // Whoever comes meanwhile is told as well.
        let waiting = wait_for("looking at DigitalOcean's actions", "others are about to look too");
        thread::sleep(wait.min(ctx.left()));
        drop(waiting);
        let list = || Ok::<_, Infallible>(self.list_actions(&ctx.cloud, action));
        let Ok(found) = caller.read(&(), ctx.deadline(), list);
        found?.get(&action).cloned()
    }

    /// The latest actions, one of which is `wanted`; none when they cannot be read.
    fn list_actions(&self, cloud: &Cloud, wanted: ActionId) -> HashMap<ActionId, ActionStatus> {
        let mut state = self.lock();
        if state.is_useless() {
            return HashMap::new();
        }
        state.looked = Some(Instant::now());
        drop(state);
        let (found, why) = match cloud.latest_actions() {
            Ok(listed) => {
                let found: HashMap<_, _> = listed.into_iter().map(|action| (action.id, action.status)).collect();
                let why = (!found.contains_key(&wanted)).then(|| format!("action {wanted} is not among them"));
                (found, why)
            }
            Err(err) => {
                let is_over_soon = matches!(plan_failure(&err), ApiFailure::Retryable | ApiFailure::OutOfTime);
                (HashMap::new(), (!is_over_soon).then(|| err.to_string()))
            }
        };
        if let Some(why) = why {
            self.lock().useless = Some(Instant::now());
            info!(
                "looking at each action by itself for {} s, as the list of all does not help: {why}",
                USELESS_FOR.as_secs()
            );
        }
        found
    }

    /// Whether the droplet says that it has the volume, read after this was called.
    pub(super) fn has_volume(&self, ctx: &CallContext, droplet: DropletId, id: &VolumeId) -> bool {
        let read = || match ctx.cloud.get_droplet(droplet) {
            Ok(found) => Ok::<_, Infallible>(found.volumes),
            Err(err) => {
                debug!(request = err.request_id(); "reading droplet {droplet} after attaches to it: {err}");
                Ok(Vec::new())
            }
        };
        let Ok(volumes) = self.droplets.arrive().read(&droplet, ctx.deadline(), read);
        volumes.is_some_and(|volumes| volumes.contains(id))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is a single one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
