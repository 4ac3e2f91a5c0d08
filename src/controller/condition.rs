//! Whether a volume is well, as far as DigitalOcean shows it.
//!
//! Owns the reading of what that takes. What it means is said in `ops/diagnosis`; the state of the disk and its file
//! system is the node's to tell.

use crate::cloud::volume::Volume;
use crate::controller::Controller;
use crate::controller::context::CallContext;
use crate::error::Result;
use crate::id::VolumeId;
use crate::ops::diagnosis::attachment::{Attachment, Holder, Moves, diagnose_attachment};
use crate::ops::diagnosis::{Condition, Finding, plan_condition};

/// A volume, what is known of the droplet that has it, and what is wrong.
#[derive(Debug)]
pub struct Examined {
    /// The volume.
    pub volume: Volume,
    holder: Holder,
    /// What is wrong with where it is.
    pub findings: Vec<Finding>,
}

impl Controller {
    /// Reads a volume and, when a droplet has it, that droplet and the volume's latest actions.
    ///
    /// # Errors
    /// [`crate::error::Error::NotFound`] for the volume, [`crate::error::Error::TimedOut`],
    /// [`crate::error::Error::Api`].
    pub fn examine_volume(&self, ctx: &CallContext, id: &VolumeId) -> Result<Examined> {
        let volume = ctx.observe_volume(id)?;
        let (holder, moves) = match volume.droplets.as_slice() {
            [holder] => (Holder::of(ctx.observe_droplet(*holder)?.as_ref(), id), ctx.observe_moves(id)?),
            [] | [_, ..] => (Holder::NotAsked, Moves::NotAsked),
        };
        let attachment = Attachment { volume: &volume, holder: holder.clone(), moves };
        let findings = diagnose_attachment(&attachment);
        Ok(Examined { volume, holder, findings })
    }
}

impl CallContext {
    pub(super) fn observe_moves(&self, id: &VolumeId) -> Result<Moves> {
        let doing = format!("reading the latest actions of volume {id}");
        let actions = self.ask_of_volume(id, &doing, |cloud| cloud.newest_actions(id))?;
        Ok(Moves::read(&actions, self.cloud.now()))
    }
}

impl Examined {
    /// The condition, in CSI's words before 1.13.
    #[must_use]
    pub fn condition(&self) -> Condition {
        plan_condition(&self.findings, place(&self.volume, &self.holder))
    }
}

/// The condition by what a list of volumes says.
#[must_use]
pub fn plan_listed_condition(volume: &Volume) -> Condition {
    let attachment = Attachment { volume, holder: Holder::NotAsked, moves: Moves::NotAsked };
    plan_condition(&diagnose_attachment(&attachment), place(volume, &Holder::NotAsked))
}

/// Where a volume is, in words.
fn place(volume: &Volume, holder: &Holder) -> String {
    match (volume.droplets.first(), holder) {
        (None, _) => "not attached".to_owned(),
        (Some(droplet), Holder::Known { name, .. }) => format!("attached to droplet {droplet} ({name})"),
        (Some(droplet), Holder::NotAsked | Holder::Gone) => format!("attached to droplet {droplet}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::droplet::DropletStatus;

    #[test]
    fn a_list_shows_only_what_contradicts_itself() {
        for (droplets, want) in [(vec![], "not attached"), (vec![1], "attached to droplet 1")] {
            let condition = plan_listed_condition(&Volume::fake(&droplets));
            assert_eq!((condition.is_abnormal, condition.message.as_str()), (false, want));
        }
        let condition = plan_listed_condition(&Volume::fake(&[1, 2]));
        assert!(condition.is_abnormal && condition.message.contains("several droplets at once: 1, 2"), "{condition:?}");
    }

    #[test]
    fn a_volume_on_a_droplet_that_does_not_run_is_not_well() {
        let known = |status| Holder::Known { name: "a".into(), status, lists_volume: true };
        let table = [
            (known(DropletStatus::Active), None),
            (known(DropletStatus::Off), Some("is off")),
            (Holder::Gone, Some("does not exist any more")),
        ];
        for (holder, want) in table {
            let volume = Volume::fake(&[7]);
            let attachment = Attachment { volume: &volume, holder: holder.clone(), moves: Moves::NotAsked };
            let examined = Examined { findings: diagnose_attachment(&attachment), volume: volume.clone(), holder };
            let condition = examined.condition();
            assert_eq!(condition.is_abnormal, want.is_some(), "{condition:?}");
            assert!(condition.message.contains(want.unwrap_or("attached to droplet 7 (a)")), "{condition:?}");
        }
    }
}
