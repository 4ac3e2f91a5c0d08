//! Creating a volume, once, however often and by however many plugins it is asked for.
//!
//! Owns the comparison of a volume that is there with the one that is asked for. The create is sent first: DigitalOcean
//! keeps names unique in a region, so a refusal, or a lost reply, leads to the volume that an earlier call made.

use log::{info, warn};

use super::Controller;
use super::name::{is_made_for, plan_description, plan_name};
use super::time::CallTime;
use super::verdict::{Verdict, plan_verdict};
use crate::cloud::region::Region;
use crate::cloud::volume::{NewVolume, Volume};
use crate::error::{Error, Result};
use crate::id::VolumeName;
use crate::lock::{VolumeGuard, VolumeKey};
use crate::request::controller::CreateVolume;
use crate::size::plan_size;

impl Controller {
    /// Creates a volume, or finds the one that an earlier call with this name created.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when a volume of that name is there but not as asked, [`Error::SizeOutOfRange`],
    /// [`Error::RegionUnavailable`], [`Error::AccountLimit`], [`Error::NotReady`] while the region is unknown.
    pub fn create_volume(&self, want: &CreateVolume) -> Result<Volume> {
        if want.source.is_some() {
            return Err(Error::Unsupported("volume_content_source: volumes are created empty".to_owned()));
        }
        let size = plan_size(&want.range, &self.limits).map_err(Error::SizeOutOfRange)?;
        let region = self.own_droplet.region()?;
        check_region(want, &region)?;
        let name = plan_name(&want.name);
        let name = VolumeName::parse(&name).map_err(|bad| Error::Bug(bad.to_string()))?;
        let description = plan_description(&want.name, &name);
        let tags = self.tag.iter().cloned().collect();
        let time = self.begin();
        let guard = self.hold(&time, VolumeKey::Name(want.name.clone()))?;
        self.ensure_created(&guard, &time, want, &NewVolume { name, size, region, description, tags, snapshot: None })
    }

    fn ensure_created(
        &self,
        _guard: &VolumeGuard,
        time: &CallTime,
        want: &CreateVolume,
        new: &NewVolume,
    ) -> Result<Volume> {
        let doing = format!("creating volume {} in {}", new.name, new.region);
        let mut pauses = time.pauses();
        loop {
            let err = match time.cloud.create_volume(new) {
                Ok(volume) => {
                    info!("created volume={} name={} size={}", volume.id, volume.name, volume.size);
                    return compare(want, time.observe_new_volume(&volume.id)?);
                }
                Err(err) => err,
            };
            let verdict = plan_verdict(&err);
            if may_exist(verdict)
                && let Some(found) = find(time, new, &doing)?
            {
                info!("found volume={} name={} size={}", found.id, found.name, found.size);
                return compare(want, found);
            }
            match verdict {
                // A name can be taken by a volume that does not show yet, or by one that is just going away.
                Verdict::Busy | Verdict::Conflict => time.pause(pauses.after(&err), &doing, &err)?,
                Verdict::Unclear => {
                    warn!("create unclear and no volume found, trying again doing={doing}: {err}");
                    time.pause(pauses.after(&err), &doing, &err)?;
                }
                Verdict::OutOfTime => return Err(time.out_of_time(&doing, err.to_string())),
                Verdict::Limit => return Err(Error::AccountLimit { doing, source: err }),
                Verdict::Missing | Verdict::Odd | Verdict::Refused => return Err(Error::Api { doing, source: err }),
            }
        }
    }
}

/// Whether a volume of that name may be there although the create failed. An account at its limit is told so before
/// DigitalOcean looks at the name.
fn may_exist(verdict: Verdict) -> bool {
    match verdict {
        Verdict::Unclear | Verdict::Conflict | Verdict::Limit => true,
        Verdict::Busy | Verdict::Missing | Verdict::Odd | Verdict::OutOfTime | Verdict::Refused => false,
    }
}

fn find(time: &CallTime, new: &NewVolume, doing: &str) -> Result<Option<Volume>> {
    time.ask(doing, Error::api(doing), |cloud| cloud.find_volume(&new.name, &new.region))
}

fn check_region(want: &CreateVolume, ours: &Region) -> Result<()> {
    if want.regions.is_empty() || want.regions.iter().any(|region| region == ours.as_str()) {
        return Ok(());
    }
    Err(Error::RegionUnavailable { asked: want.regions.join(", "), ours: ours.to_string() })
}

/// Compares what is there with what was asked.
fn compare(want: &CreateVolume, have: Volume) -> Result<Volume> {
    let mismatch = |have_text: String, want_text: String| Error::Mismatch {
        thing: format!("volume {} ({})", have.name, have.id),
        have: have_text,
        want: want_text,
    };
    if !is_made_for(&want.name, &have.name, &have.description) {
        return Err(mismatch(
            format!("the description {:?}", have.description),
            format!("the CSI name {:?}", want.name),
        ));
    }
    if !want.range.holds(have.size) {
        return Err(mismatch(have.size.to_string(), want.range.to_string()));
    }
    Ok(have)
}
