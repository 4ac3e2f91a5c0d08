//! What is wrong with a volume here, and with the way from this droplet to all of them.
//!
//! Owns the search for the volume that is asked for. It changes nothing, takes no lock, and waits for no disk.

use std::path::PathBuf;

use crate::error::{Error, Result, Thing};
use crate::host::inventory::VolumeHere;
use crate::host::propagation::observe_nothing_reaches;
use crate::node::Node;
use crate::ops::diagnosis::Finding;
use crate::ops::diagnosis::here::{diagnose_here, diagnose_reach};
use crate::request::node::Health;

impl Node {
    /// What is wrong with a volume on this droplet.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the volume is not here, [`Error::Io`] when the mounts cannot be read.
    pub fn volume_health(&self, want: &Health) -> Result<Vec<Finding>> {
        let here = self.inventory.observe()?;
        let found = find_volume(&here, &want.volume, &want.paths);
        let found = found.ok_or_else(|| Error::NotFound(Thing::Volume(want.volume.clone())))?;
        Ok(diagnose_here(found))
    }

    /// What is wrong with this droplet's volumes, and with the droplet as far as all of them suffer.
    ///
    /// # Errors
    /// [`Error::Io`] when the mounts cannot be read.
    pub fn storage_health(&self) -> Result<Vec<Finding>> {
        let volumes = self.inventory.observe()?;
        let reach = diagnose_reach(observe_nothing_reaches()?);
        let here = volumes.iter().flat_map(diagnose_here);
        Ok(reach.into_iter().chain(here).chain(self.left_mounts()).collect())
    }
}

/// The volume with this id or, where ids are not known here, the one that is mounted at one of these paths. Pure.
fn find_volume<'a>(here: &'a [VolumeHere], id: &str, paths: &[PathBuf]) -> Option<&'a VolumeHere> {
    let is_at = |volume: &&VolumeHere| volume.mounts.iter().any(|mount| paths.contains(&mount.path));
    let by_id = here.iter().find(|volume| volume.id.as_deref() == Some(id));
    by_id.or_else(|| here.iter().filter(|volume| volume.id.is_none()).find(is_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::inventory::{MountHere, VolumeState};
    use crate::id::VolumeName;

    #[test]
    fn a_volume_is_found_by_its_id_and_only_without_one_by_its_path() {
        let volume = |id: Option<&str>, name: &str, path: &str| VolumeHere {
            id: id.map(str::to_owned),
            name: VolumeName::parse(name).ok(),
            disk: None,
            fs: None,
            mounts: vec![MountHere { path: path.into(), is_read_only: false, user: None }],
            state: VolumeState::NotMounted { is_taken: false },
        };
        let here = [volume(Some("1"), "one", "/one"), volume(None, "two", "/two")];
        let name = |id: &str, path: &str| {
            find_volume(&here, id, &[path.into()]).and_then(|found| found.name.as_ref()).map(ToString::to_string)
        };
        for (id, path, want) in
            [("1", "/any", Some("one")), ("2", "/two", Some("two")), ("2", "/one", None), ("2", "/x", None)]
        {
            assert_eq!(name(id, path).as_deref(), want, "{id} {path}");
        }
    }
}
