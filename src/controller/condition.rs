//! Whether a volume is well, as far as DigitalOcean shows it.
//!
//! Owns the words of a volume's condition. The state of the disk and its file system is the node's to tell.

use crate::cloud::droplet::{Droplet, DropletStatus};
use crate::cloud::volume::Volume;
use crate::controller::Controller;
use crate::controller::context::CallContext;
use crate::error::Result;
use crate::id::{DropletId, VolumeId};

/// A volume's condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Whether somebody has to look at it.
    pub is_abnormal: bool,
    /// What is so, in words.
    pub message: String,
}

impl Controller {
    /// Reads a volume and, when a droplet has it, that droplet.
    ///
    /// # Errors
    /// [`crate::error::Error::NotFound`] for the volume, [`crate::error::Error::TimedOut`], [`crate::error::Error::Api`].
    pub fn examine_volume(&self, ctx: &CallContext, id: &VolumeId) -> Result<(Volume, Condition)> {
        let volume = ctx.observe_volume(id)?;
        let condition = match volume.droplets.as_slice() {
            [holder] => plan_condition(*holder, ctx.observe_droplet(*holder)?.as_ref()),
            [] | [_, ..] => plan_listed_condition(&volume.droplets),
        };
        Ok((volume, condition))
    }
}

/// The condition by what a list of volumes says.
#[must_use]
pub fn plan_listed_condition(droplets: &[DropletId]) -> Condition {
    match droplets {
        [] => normal("not attached".to_owned()),
        [holder] => normal(format!("attached to droplet {holder}")),
        [_, ..] => {
            let all: Vec<String> = droplets.iter().map(ToString::to_string).collect();
            abnormal(format!("attached to several droplets at once: {}", all.join(", ")))
        }
    }
}

/// The condition of a volume that one droplet has; none: DigitalOcean does not know that droplet.
fn plan_condition(holder: DropletId, droplet: Option<&Droplet>) -> Condition {
    let Some(droplet) = droplet else {
        return abnormal(format!("attached to droplet {holder}, which does not exist any more"));
    };
    let name = &droplet.name;
    match &droplet.status {
        DropletStatus::New | DropletStatus::Active => normal(format!("attached to droplet {holder} ({name})")),
        DropletStatus::Off => abnormal(format!("attached to droplet {holder} ({name}), which is off")),
        DropletStatus::Archive => abnormal(format!("attached to droplet {holder} ({name}), which is archived")),
        DropletStatus::Other(word) => normal(format!("attached to droplet {holder} ({name}), which is {word:?}")),
    }
}

fn normal(message: String) -> Condition {
    Condition { is_abnormal: false, message }
}

fn abnormal(message: String) -> Condition {
    Condition { is_abnormal: true, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> DropletId {
        DropletId::new(number).unwrap()
    }

    #[test]
    fn a_list_shows_only_what_contradicts_itself() {
        for (droplets, is_abnormal) in [(vec![], false), (vec![id(1)], false), (vec![id(1), id(2)], true)] {
            assert_eq!(plan_listed_condition(&droplets).is_abnormal, is_abnormal, "{droplets:?}");
        }
    }

    #[test]
    fn a_volume_on_a_droplet_that_does_not_run_is_not_well() {
        let table = [
            (Some(DropletStatus::Active), false),
            (Some(DropletStatus::New), false),
            (Some(DropletStatus::Off), true),
            (Some(DropletStatus::Archive), true),
            (Some(DropletStatus::Other("locked".into())), false),
            (None, true),
        ];
        for (status, is_abnormal) in table {
            let shown = format!("{status:?}");
            let droplet =
                status.map(|status| Droplet { id: id(7), name: "a".into(), status, region: None, volumes: Vec::new() });
            assert_eq!(plan_condition(id(7), droplet.as_ref()).is_abnormal, is_abnormal, "{shown}");
        }
    }
}
