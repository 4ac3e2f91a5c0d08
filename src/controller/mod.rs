//! Volumes and attachments at DigitalOcean: what a controller call has to bring about.
//!
//! Owns the decisions and the order of API calls; `cloud/` sends them, one request each. Nothing is remembered between
//! calls that is needed for being right: every call starts from what DigitalOcean says.
//!
//! | module | holds |
//! |---|---|
//! | [`create`], [`delete`] | volumes come and go |
//! | [`publish`], [`unpublish`] | attachments come and go |
//! | [`list`] | pages of volumes |
//! | [`time`] | one call's budget, and asking again within it |
//! | [`action`] | waiting for an action |
//! | [`turn`] | one event at a time for each droplet |
//! | [`setback`] | pauses between calls that keep failing |
//! | [`verdict`] | what a failed API call calls for |
//! | [`name`] | CSI names into DigitalOcean names |

pub mod action;
pub mod create;
pub mod delete;
pub mod list;
pub mod name;
pub mod publish;
pub mod setback;
pub mod time;
pub mod turn;
pub mod unpublish;
pub mod verdict;

use std::sync::Arc;

use crate::cloud::Cloud;
use crate::cloud::error::ApiError;
use crate::cloud::pace::Pace;
use crate::cloud::tag::Tag;
use crate::cloud::volume::Volume;
use crate::config::{CALL_BUDGET, Config, LOCK_PATIENCE};
use crate::error::{Error, Result, Thing};
use crate::id::VolumeId;
use crate::lock::{VolumeGuard, VolumeKey, VolumeLocks};
use crate::own_droplet::OwnDroplet;
use crate::size::SizeLimits;

use setback::Setbacks;
use time::CallTime;
use turn::DropletTurns;
use verdict::{Verdict, plan_verdict};

/// The controller side of the driver.
#[derive(Debug)]
pub struct Controller {
    cloud: Cloud,
    own_droplet: Arc<OwnDroplet>,
    limits: SizeLimits,
    tag: Option<Tag>,
    takeover: bool,
    locks: VolumeLocks,
    pace: Pace,
    turns: DropletTurns,
    setbacks: Setbacks,
}

impl Controller {
    /// Makes the controller side; it asks nothing yet.
    #[must_use]
    pub fn new(config: &Config, cloud: Cloud, own_droplet: Arc<OwnDroplet>) -> Controller {
        Controller {
            cloud,
            own_droplet,
            limits: SizeLimits::DIGITALOCEAN,
            tag: config.tag.clone(),
            takeover: config.takeover,
            locks: VolumeLocks::new(),
            pace: Pace::new(),
            turns: DropletTurns::default(),
            setbacks: Setbacks::default(),
        }
    }

    /// Reads a volume.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::OutOfTime`] or [`Error::Api`] when DigitalOcean does not tell.
    pub fn find_volume(&self, id: &VolumeId) -> Result<Volume> {
        self.begin().observe_volume(id)
    }

    /// Starts the clock of one call.
    fn begin(&self) -> CallTime {
        CallTime::start(&self.cloud, CALL_BUDGET)
    }

    fn hold(&self, id: &VolumeId) -> Result<VolumeGuard> {
        Ok(self.locks.hold(VolumeKey::Id(id.to_string()), LOCK_PATIENCE)?)
    }
}

/// A volume that DigitalOcean does not know is the caller's business; everything else is told as it came.
fn no_volume(id: &VolumeId, doing: impl FnOnce() -> String) -> impl FnOnce(ApiError) -> Error {
    move |source| {
        if plan_verdict(&source) == Verdict::Missing {
            Error::NotFound(Thing::Volume(id.to_string()))
        } else {
            Error::Api { doing: doing(), source }
        }
    }
}
