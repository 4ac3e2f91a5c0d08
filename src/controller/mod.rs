//! Volumes and attachments at DigitalOcean: what a controller call has to bring about.
//!
//! Owns the decisions and the order of API calls; `cloud/` sends them, one request each. Nothing is remembered between
//! calls that is needed for being right: every call starts from what DigitalOcean says.
//!
//! | module | holds |
//! |---|---|
//! | [`create`], [`delete`] | volumes come and go |
//! | [`restore`], [`clone_snapshot`] | volumes that begin with content |
//! | [`attach`], [`takeover`], [`detach`] | attachments come and go |
//! | [`publish_mode`] | how a volume was published |
//! | [`expand`], [`modify`] | volumes become larger, or get other tags |
//! | [`snapshot`], [`snapshot_names`] | snapshots come and go, each with a name of its own |
//! | [`list`], [`whole_list`] | pages of volumes and of snapshots, read without losing an entry |
//! | [`condition`], [`capacity`] | whether a volume is well, and whether there is room for one more |
//! | [`context`] | one call's budget and the waits in it, and asking again within it |
//! | [`run_action`], [`poll`] | waiting for an action |
//! | [`detach_backoff`] | pauses between calls that keep failing |
//! | [`api_failure`] | what a failed API call calls for |
//! | `tag_scope` | whether the token may put tags on |
//! | `owner` | whose a volume or a snapshot is |
//! | `gone` | what has to be known before something counts as gone |
//! | [`naming`], [`description`] | CSI names into DigitalOcean names, and what a description keeps |

pub mod api_failure;
pub mod attach;
pub mod attachment;
pub mod capacity;
pub mod clone_snapshot;
pub mod condition;
pub mod context;
pub mod create;
pub mod delete;
pub mod description;
pub mod detach;
pub mod detach_backoff;
pub mod expand;
pub mod gone;
pub mod list;
pub mod modify;
pub mod naming;
pub mod owner;
pub mod poll;
pub mod publish_mode;
pub mod restore;
pub mod run_action;
pub mod snapshot;
pub mod snapshot_names;
pub mod tag_scope;
pub mod takeover;
pub mod whole_list;

use std::sync::Arc;
use std::time::Instant;

use crate::cloud::Cloud;
use crate::cloud::volume::Volume;
use crate::config::Config;
use crate::controller::poll::Pace;
use crate::droplet_identity::DropletIdentity;
use crate::error::Result;
use crate::id::{DropletId, VolumeId};
use crate::size::SizeLimits;
use crate::sync::caller::Caller;
use crate::sync::fifo_lock::{FifoGuard, FifoLocks};
use crate::sync::volume_lock::{VolumeGuard, VolumeKey, VolumeLocks};

use crate::controller::clone_snapshot::Sweeper;
use crate::controller::context::{CallContext, Timeouts};
use crate::controller::detach_backoff::{DetachBackoff, Pair};
use crate::controller::list::VolumeLists;
use crate::controller::owner::Owner;
use crate::controller::publish_mode::PublishModes;
use crate::controller::snapshot_names::TakenNames;
use crate::controller::tag_scope::Refused;

/// How many calls may be ahead of a publish: every node of a small cluster may ask for it at once, and a
/// storm of calls for one volume must leave threads for the others.
const MAX_QUEUE: usize = 8;

/// The controller side of the driver.
#[derive(Debug)]
pub struct Controller {
    cloud: Cloud,
    droplet_identity: Arc<DropletIdentity>,
    limits: SizeLimits,
    owner: Owner,
    /// Whether the droplet that this process runs on is one of those that it attaches volumes to.
    is_on_own_droplet: bool,
    takeover: bool,
    mixed_access: bool,
    locks: VolumeLocks,
    pace: Pace,
    patience: Timeouts,
    /// DigitalOcean refuses a droplet's second event while one is running, so the calls of this process wait for each
    /// other here, in order, instead of colliding there.
    droplet_queue: FifoLocks<DropletId>,
    /// Calls that repeat the same detach.
    detaching: FifoLocks<Pair>,
    detach_backoff: DetachBackoff,
    publish_modes: PublishModes,
    taken_names: TakenNames,
    volume_lists: VolumeLists,
    /// Putting a tag on a volume that is there.
    tagging: Refused,
    sweeper: Sweeper,
}

impl Controller {
    /// Makes the controller side; it asks nothing yet, but starts the thread that looks for what an earlier process left.
    #[must_use]
    pub fn new(config: &Config, cloud: Cloud, droplet_identity: Arc<DropletIdentity>) -> Controller {
        let patience = Timeouts::of(config.call_budget);
        Controller {
            sweeper: Sweeper::start(cloud.clone(), Owner::new(config.tag.clone())),
            cloud,
            droplet_identity,
            limits: SizeLimits { max: config.max_volume_size, ..SizeLimits::DIGITALOCEAN },
            owner: Owner::new(config.tag.clone()),
            is_on_own_droplet: config.mode.has_node(),
            takeover: config.takeover,
            mixed_access: config.mixed_access,
            locks: VolumeLocks::new(),
            pace: Pace::new(),
            patience,
            droplet_queue: FifoLocks::default(),
            detaching: FifoLocks::default(),
            detach_backoff: DetachBackoff::new(patience.detach_backoff()),
            publish_modes: PublishModes::default(),
            taken_names: TakenNames::default(),
            volume_lists: VolumeLists::default(),
            tagging: Refused::default(),
        }
    }

    /// Reads a volume.
    ///
    /// # Errors
    /// As [`CallContext::observe_volume`].
    pub fn find_volume(&self, ctx: &CallContext, id: &VolumeId) -> Result<Volume> {
        ctx.observe_volume(id)
    }

    /// The time of a call that came then, whatever it has done since, for somebody who waits for it.
    #[must_use]
    pub fn context_of_call(&self, came: Instant, caller: Arc<Caller>) -> CallContext {
        let own = self.droplet_identity.facts().ok().filter(|_| self.is_on_own_droplet).map(|facts| facts.id);
        CallContext::since(came, &self.cloud, self.patience).on_droplet(own).answering(caller)
    }

    /// Locks a volume for a call whose caller is better off asking again than waiting long.
    fn hold(&self, ctx: &CallContext, key: VolumeKey) -> Result<VolumeGuard> {
        Ok(self.locks.hold(key, ctx.patience.lock().min(ctx.left()))?)
    }

    /// Locks a volume for a call that waits as long as it can, if no more than so many are ahead of it.
    fn acquire_queued(&self, ctx: &CallContext, id: &VolumeId, max_queue: usize) -> Result<VolumeGuard> {
        Ok(self.locks.acquire_queued(VolumeKey::Id(id.to_string()), max_queue, ctx.deadline())?)
    }

    /// Waits for a droplet's turn; fails when nobody waits for the call any more by then.
    fn wait_for_droplet(&self, ctx: &CallContext, droplet: DropletId, doing: &str) -> Result<FifoGuard<DropletId>> {
        let busy = |_| ctx.timed_out(doing, "earlier calls for this droplet are still running");
        let turn = self.droplet_queue.wait(droplet, usize::MAX, ctx.deadline()).map_err(busy)?;
        ctx.ensure_awaited()?;
        Ok(turn)
    }
}
