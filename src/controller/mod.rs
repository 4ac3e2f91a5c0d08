//! Volumes and attachments at DigitalOcean: what a controller call has to bring about.
//!
//! Owns the decisions and the order of API calls; `cloud/` sends them, one request each. Nothing is remembered between
//! calls that is needed for being right: every call starts from what DigitalOcean says.
//!
//! | module | holds |
//! |---|---|
//! | `create`, `delete` | volumes come and go |
//! | `restore`, `clone_snapshot` | volumes that begin with content |
//! | `attach`, `detach` | attachments come and go |
//! | `attachment`, `takeover`, `last_action` | where a volume is, and what that calls for |
//! | [`unused`] | volumes that nobody uses where they are |
//! | `publish_mode` | how a volume was published |
//! | `expand`, `modify` | volumes become larger, or get other tags |
//! | `snapshot`, `snapshot_names` | snapshots come and go, each with a name of its own |
//! | [`keep`] | snapshots that are taken again and again |
//! | [`list`], [`whole_list`] | pages of volumes and of snapshots, read without losing an entry |
//! | [`condition`], [`capacity`] | whether a volume is well, and whether there is room for one more |
//! | [`context`] | one call's budget and the waits in it, and asking again within it |
//! | `run_action`, [`poll`] | sending what becomes an action, and waiting for its end |
//! | `storm`, `shared_look` | many attaches at once, and one request for what several calls want to know |
//! | `detach_backoff`, `busy_droplet`, `recent` | what is remembered of calls that failed |
//! | `overtaken` | which of an attach and a detach came later |
//! | `lost_detach` | detaches that may be carried out yet |
//! | `api_failure` | what a failed API call calls for |
//! | `tag_scope` | the owner's tag, and whether the token may put it on |
//! | `owner` | whose a volume or a snapshot is, and whether it may be touched |
//! | `gone` | what has to be known before something counts as gone |
//! | `naming`, [`description`] | CSI names into DigitalOcean names, and what a description keeps |

mod api_failure;
mod attach;
mod attachment;
mod busy_droplet;
pub mod capacity;
mod clone_snapshot;
pub mod condition;
pub mod context;
mod create;
mod delete;
pub mod description;
mod detach;
mod detach_backoff;
mod expand;
mod gone;
pub mod health;
pub mod keep;
mod last_action;
pub mod list;
mod lost_detach;
mod modify;
mod naming;
mod overtaken;
pub(crate) mod owner;
pub mod poll;
mod publish_mode;
mod recent;
mod restore;
mod run_action;
mod shared_look;
mod snapshot;
pub mod snapshot_names;
mod storm;
mod tag_scope;
mod takeover;
pub mod unused;
pub mod whole_list;

use std::sync::Arc;
use std::time::Instant;

use crate::cloud::Cloud;
use crate::cloud::volume::Volume;
use crate::config::Config;
use crate::controller::attach::Attacher;
use crate::controller::attachment::Purpose;
use crate::controller::clone_snapshot::Sweeper;
use crate::controller::context::{CallContext, Timeouts};
use crate::controller::detach::Detacher;
use crate::controller::detach_backoff::DetachBackoff;
use crate::controller::list::VolumeLists;
use crate::controller::overtaken::Order;
use crate::controller::owner::Owner;
use crate::controller::publish_mode::PublishModes;
use crate::controller::run_action::ActionRunner;
use crate::controller::snapshot_names::TakenNames;
use crate::controller::tag_scope::Tagger;
use crate::droplet_identity::DropletIdentity;
use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::request::attachment::{Publish, Unpublish};
use crate::size::SizeLimits;
use crate::sync::caller::Caller;
use crate::sync::fifo_lock::FifoLocks;
use crate::sync::recent_calls::RecentCalls;
use crate::sync::volume_lock::{VolumeGuard, VolumeKey, VolumeLocks};

/// The controller side of the driver.
#[derive(Debug)]
pub struct Controller {
    cloud: Cloud,
    droplet_identity: Arc<DropletIdentity>,
    limits: SizeLimits,
    owner: Owner,
    /// Whether the droplet that this process runs on is one of those that it attaches volumes to.
    is_on_own_droplet: bool,
    locks: VolumeLocks,
    patience: Timeouts,
    runner: Arc<ActionRunner>,
    attacher: Attacher,
    detacher: Detacher,
    taken_names: TakenNames,
    volume_lists: VolumeLists,
    sweeper: Sweeper,
    recent_calls: RecentCalls,
}

impl Controller {
    /// Makes the controller side; it asks nothing yet, but starts the thread that looks for what an earlier process left.
    #[must_use]
    pub fn new(config: &Config, cloud: Cloud, droplet_identity: Arc<DropletIdentity>) -> Controller {
        let patience = Timeouts::of(config.call_budget);
        let owner = Owner::new(config.tag.clone(), config.only_tag.clone());
        let locks = VolumeLocks::new();
        let runner = Arc::new(ActionRunner::new(patience));
        let publish_modes = Arc::new(PublishModes::new(config.mixed_access));
        let order = Arc::new(Order::default());
        Controller {
            attacher: Attacher {
                locks: locks.clone(),
                runner: Arc::clone(&runner),
                publish_modes: Arc::clone(&publish_modes),
                publishing: FifoLocks::default(),
                order: Arc::clone(&order),
                owner: owner.clone(),
                tagger: Tagger::new(owner.clone()),
                takeover: config.takeover,
            },
            detacher: Detacher {
                locks: locks.clone(),
                runner: Arc::clone(&runner),
                publish_modes,
                order,
                owner: owner.clone(),
                detaching: FifoLocks::default(),
                backoff: DetachBackoff::new(patience.detach_backoff()),
            },
            sweeper: Sweeper::start(cloud.clone(), owner.clone()),
            cloud,
            droplet_identity,
            limits: SizeLimits { max: config.max_volume_size, ..SizeLimits::DIGITALOCEAN },
            owner,
            is_on_own_droplet: config.mode.has_node(),
            locks,
            patience,
            runner,
            taken_names: TakenNames::default(),
            volume_lists: VolumeLists::default(),
            recent_calls: RecentCalls::default(),
        }
    }

    /// The same for a command, which may be run anywhere.
    #[must_use]
    pub fn off_droplet(self) -> Controller {
        Controller { is_on_own_droplet: false, ..self }
    }

    /// Attaches a volume to a droplet.
    ///
    /// A second call sees the attachment and changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a volume or droplet that does not exist, [`Error::AttachedElsewhere`] when a running
    /// droplet has it, [`Error::OtherRegion`], [`Error::Mismatch`] when it is there for another use, [`Error::AttachLimit`],
    /// [`Error::NotYet`] when the call's time was used up by waiting.
    pub fn publish(&self, ctx: &CallContext, want: &Publish) -> Result<Volume> {
        // A call that wants the volume elsewhere is none that uses it here.
        let is_here = ctx.own.as_ref().and_then(|own| own.id()) == Some(want.droplet);
        let _running = is_here.then(|| self.recent_calls.enter([VolumeKey::Id(want.volume.to_string())]));
        self.attacher.publish(ctx, want, Purpose::Publish).map_err(Error::or_not_yet)
    }

    /// Where the calls that attach volumes to this droplet are noted.
    #[must_use]
    pub fn recent_calls(&self) -> RecentCalls {
        self.recent_calls.clone()
    }

    /// Detaches a volume from a droplet, or from wherever it is. Attached elsewhere, it is left alone.
    ///
    /// A second call sees that nothing is attached and changes nothing.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when the volume was still there at the end of the call, [`Error::Api`] when DigitalOcean
    /// refuses for good, [`Error::VolumeBusy`] at once when two calls like this one are running already, [`Error::Overtaken`] when
    /// the volume has been published there for a call that came later.
    pub fn unpublish(&self, ctx: CallContext, want: &Unpublish) -> Result<()> {
        self.detacher.unpublish(ctx, want)
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
        let own = self.is_on_own_droplet.then(|| Arc::clone(&self.droplet_identity));
        CallContext::since(came, &self.cloud, self.patience).on_droplet(own).answering(caller)
    }

    /// Sees that a volume may be touched. Without `--only-tag` each may, and nothing is asked.
    fn check_use_of(&self, ctx: &CallContext, id: &VolumeId, done: &str) -> Result<()> {
        match self.owner.only() {
            Some(_) => self.owner.check_use(&ctx.observe_volume(id)?, done),
            None => Ok(()),
        }
    }

    /// Locks a volume for a call whose caller is better off asking again than waiting long.
    fn hold(&self, ctx: &CallContext, key: VolumeKey) -> Result<VolumeGuard> {
        Ok(self.locks.hold(key, ctx.patience.lock().min(ctx.left()))?)
    }
}
