//! Volumes and attachments at DigitalOcean: what a controller call has to bring about.
//!
//! Owns the decisions and the order of API calls; `cloud/` sends them, one request each. Nothing is remembered between
//! calls that is needed for being right: every call starts from what DigitalOcean says.
//!
//! | module | holds |
//! |---|---|
//! | [`create`], [`delete`] | volumes come and go |
//! | [`source`], [`temporary`] | volumes that begin with content |
//! | [`publish`], [`holder`], [`unpublish`] | attachments come and go |
//! | [`usage`] | how a volume was published |
//! | [`expand`], [`modify`] | volumes become larger, or get other tags |
//! | [`snapshot`], [`taken_names`] | snapshots come and go, each with a name of its own |
//! | [`list`] | pages of volumes and of snapshots |
//! | [`condition`], [`capacity`] | whether a volume is well, and whether there is room for one more |
//! | [`time`] | one call's budget and the waits in it, and asking again within it |
//! | [`action`] | waiting for an action |
//! | [`setback`] | pauses between calls that keep failing |
//! | [`verdict`] | what a failed API call calls for |
//! | `tag_scope` | whether the token may put tags on |
//! | `owner` | whose a volume or a snapshot is |
//! | `gone` | what has to be known before something counts as gone |
//! | [`name`], [`describe`] | CSI names into DigitalOcean names, and what a description keeps |

pub mod action;
pub mod capacity;
pub mod condition;
pub mod create;
pub mod delete;
pub mod describe;
pub mod expand;
mod gone;
pub mod holder;
pub mod list;
pub mod modify;
pub mod name;
mod owner;
pub mod publish;
pub mod setback;
pub mod snapshot;
pub mod source;
mod tag_scope;
pub mod taken_names;
pub mod temporary;
pub mod time;
pub mod unpublish;
pub mod usage;
pub mod verdict;

use std::sync::Arc;
use std::time::Instant;

use crate::cloud::Cloud;
use crate::cloud::pace::Pace;
use crate::cloud::volume::Volume;
use crate::config::Config;
use crate::error::Result;
use crate::id::{DropletId, VolumeId};
use crate::line::{Lines, Place};
use crate::lock::{VolumeGuard, VolumeKey, VolumeLocks};
use crate::own_droplet::OwnDroplet;
use crate::size::SizeLimits;

use owner::Owner;
use setback::{Pair, Setbacks};
use tag_scope::Refused;
use taken_names::TakenNames;
use temporary::Sweeper;
use time::{CallTime, Patience};
use usage::Usages;

/// How many calls may be ahead of a publish: every node of a small cluster may ask for it at once, and a
/// storm of calls for one volume must leave threads for the others.
const MOST_AHEAD: usize = 8;

/// The controller side of the driver.
#[derive(Debug)]
pub struct Controller {
    cloud: Cloud,
    own_droplet: Arc<OwnDroplet>,
    limits: SizeLimits,
    owner: Owner,
    /// Whether the droplet that this process runs on is one of those that it attaches volumes to.
    is_on_own_droplet: bool,
    takeover: bool,
    mixed_access: bool,
    locks: VolumeLocks,
    pace: Pace,
    patience: Patience,
    /// DigitalOcean refuses a droplet's second event while one is running, so the calls of this process wait for each
    /// other here, in order, instead of colliding there.
    turns: Lines<DropletId>,
    /// Calls that repeat the same detach.
    detaching: Lines<Pair>,
    setbacks: Setbacks,
    usages: Usages,
    taken_names: TakenNames,
    /// Putting a tag on a volume that is there.
    tagging: Refused,
    sweeper: Sweeper,
}

impl Controller {
    /// Makes the controller side; it asks nothing yet, but starts the thread that looks for what an earlier process left.
    #[must_use]
    pub fn new(config: &Config, cloud: Cloud, own_droplet: Arc<OwnDroplet>) -> Controller {
        let patience = Patience::of(config.call_budget);
        Controller {
            sweeper: Sweeper::start(cloud.clone(), Owner::new(config.tag.clone())),
            cloud,
            own_droplet,
            limits: SizeLimits { max: config.max_volume_size, ..SizeLimits::DIGITALOCEAN },
            owner: Owner::new(config.tag.clone()),
            is_on_own_droplet: config.mode.has_node(),
            takeover: config.takeover,
            mixed_access: config.mixed_access,
            locks: VolumeLocks::new(),
            pace: Pace::new(),
            patience,
            turns: Lines::default(),
            detaching: Lines::default(),
            setbacks: Setbacks::new(patience.setbacks()),
            usages: Usages::default(),
            taken_names: TakenNames::default(),
            tagging: Refused::default(),
        }
    }

    /// Reads a volume.
    ///
    /// # Errors
    /// As [`CallTime::observe_volume`].
    pub fn find_volume(&self, time: &CallTime, id: &VolumeId) -> Result<Volume> {
        time.observe_volume(id)
    }

    /// The time of a call that came then, whatever it has done since.
    #[must_use]
    pub fn time_of_call(&self, came: Instant) -> CallTime {
        let own = self.own_droplet.facts().ok().filter(|_| self.is_on_own_droplet).map(|facts| facts.id);
        CallTime::since(came, &self.cloud, self.patience).on_droplet(own)
    }

    /// Locks a volume for a call whose caller is better off asking again than waiting long.
    fn hold(&self, time: &CallTime, key: VolumeKey) -> Result<VolumeGuard> {
        Ok(self.locks.hold(key, time.patience.lock().min(time.left()))?)
    }

    /// Locks a volume for a call that waits as long as it can, if no more than so many are ahead of it.
    fn hold_in_line(&self, time: &CallTime, id: &VolumeId, most_ahead: usize) -> Result<VolumeGuard> {
        Ok(self.locks.hold_in_line(VolumeKey::Id(id.to_string()), most_ahead, time.deadline())?)
    }

    /// Waits for a droplet's turn.
    fn take_turn(&self, time: &CallTime, droplet: DropletId, doing: &str) -> Result<Place<DropletId>> {
        let busy = |_| time.out_of_time(doing, "earlier calls for this droplet are still running");
        self.turns.wait(droplet, usize::MAX, time.deadline()).map_err(busy)
    }
}
