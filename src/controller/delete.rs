//! Deleting a volume.
//!
//! Owns the difference between a volume that is in use and one whose detach DigitalOcean has not noticed yet.

use log::{info, warn};

use super::Controller;
use super::action::Moves;
use super::time::CallTime;
use super::verdict::{Verdict, plan_verdict};
use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::lock::VolumeKey;

impl Controller {
    /// Deletes a volume. One that does not exist, or an id that cannot be one, is deleted already.
    ///
    /// # Errors
    /// [`Error::StillAttached`] when a droplet has it, [`Error::OutOfTime`], [`Error::Api`].
    pub fn delete_volume(&self, time: &CallTime, id: &str) -> Result<()> {
        let Ok(id) = VolumeId::parse(id) else { return Ok(()) };
        let _guard = self.hold(time, VolumeKey::Id(id.to_string()))?;
        let doing = format!("deleting volume {id}");
        let mut pauses = time.pauses();
        loop {
            let err = match time.cloud.delete_volume(&id) {
                Ok(()) => {
                    info!("deleted volume={id}");
                    return Ok(());
                }
                Err(err) => err,
            };
            match plan_verdict(&err) {
                Verdict::Missing => return Ok(()),
                Verdict::Conflict => {
                    let Some(volume) = time.observe_volume_if_there(&id)? else { return Ok(()) };
                    if let Some(droplet) = volume.droplets.first() {
                        // The list of droplets lags behind a detach.
                        let moves = self.observe_moves_if_there(time, &id)?;
                        if !matches!(moves, Moves::Detached | Moves::Running(_)) {
                            return Err(Error::StillAttached { volume: id, droplet: *droplet });
                        }
                    }
                    time.pause(pauses.after(&err), &doing, &err)?;
                }
                Verdict::Busy => time.pause(pauses.after(&err), &doing, &err)?,
                Verdict::Unclear => {
                    warn!("delete unclear, trying again doing={doing}: {err}");
                    time.pause(pauses.after(&err), &doing, &err)?;
                }
                Verdict::OutOfTime => return Err(time.out_of_time(&doing, err.to_string())),
                Verdict::Odd | Verdict::Limit | Verdict::Refused => return Err(Error::Api { doing, source: err }),
            }
        }
    }
}
