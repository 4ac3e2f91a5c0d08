//! How full a volume is, and whether it still works.
//!
//! Owns the question whether the volume that is asked for is at the path. It changes nothing and takes no lock.

use crate::error::{Error, Result, Thing};
use crate::host::mount::observe_mounts;
use crate::host::mount_health::observe_health;
use crate::host::mount_report::{MountReport, observe_report};
use crate::node::Node;
use crate::node::mount_point;
use crate::node::whose::{Whose, observe_whose_at};
use crate::request::node::Stats;

impl Node {
    /// Says how full the volume at a path is (bytes and inodes of a file system, the size of a raw block device), and
    /// whether it works.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no volume is at the path, [`Error::Io`] when it does not answer for an unknown reason,
    /// [`Error::MountBroken`] when it cannot be told whether it works.
    pub fn stats(&self, want: &Stats) -> Result<MountReport> {
        let not_there = || Error::NotFound(Thing::VolumeAt(want.path.clone()));
        let real = mount_point::observe_real_path(&want.path)?.ok_or_else(not_there)?;
        let mounts = observe_mounts()?;
        let mount = mounts.at(&real).filter(|mount| mount.is_of_our_making()).ok_or_else(not_there)?;
        let health = observe_health(&self.places, mount)?;
        if let Whose::NotOurs(found) = observe_whose_at(&self.places, &want.volume, mount, health)? {
            return Err(Whose::not_there(&want.volume, mount, &found));
        }
        observe_report(&self.places, &mounts, mount, health)
    }
}
