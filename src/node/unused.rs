//! Volumes on this droplet that nobody uses.
//!
//! Owns the look at their disks, holding one so that nobody begins to use it, and unstaging one that is staged for nobody. It
//! asks DigitalOcean nothing; whether a volume is then detached is decided elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::{debug, info};

use crate::backoff::{Backoff, look_until};
use crate::config::DETACH_IN_FLIGHT;
use crate::error::{Chain, Result};
use crate::host::device::Device;
use crate::host::device::busy::is_busy;
use crate::host::device::links::observe_linked_names;
use crate::host::external_volumes::is_csi_place;
use crate::host::holders::observe_writers;
use crate::host::id_link::observe_ids_of;
use crate::host::luks::mapper::DiskHolder;
use crate::host::mount::observe_mounts;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::probe::content::{Content, observe_content};
use crate::host::release::{Claim, DiskUnder};
use crate::host::release_mark::{apply_unmark, ensure_marked, observe_mark};
use crate::id::{VolumeId, VolumeName};
use crate::node::nomad_place::{NomadPlace, Purpose};
use crate::node::whose::{Named, observe_named};
use crate::node::{Node, NodeCall};
use crate::request::node::Unstage;
use crate::sync::volume_lock::{VolumeGuard, VolumeKey};

/// The pauses between two looks whether a detached disk has gone.
const GONE_PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
/// How long the search for processes that write to a raw disk may take.
const WRITERS_BUDGET: Duration = Duration::from_secs(10);
/// How long a disk that was detached may take to go.
const GONE_BUDGET: Duration = Duration::from_secs(10);

/// How a volume's disk is used on this droplet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskUse {
    /// It is mounted at this path, where no orchestrator mounts volumes.
    Foreign(PathBuf),
    /// It is mounted at this path for a task.
    Published(PathBuf),
    /// Something has it that no mount explains which is seen from here.
    Taken,
    /// It is staged at these paths of Nomad's, and shown to nobody.
    Staged(Vec<PathBuf>),
    /// Nothing has it.
    Free,
}

/// A volume's disk on this droplet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenDisk {
    /// The volume's name.
    pub name: VolumeName,
    /// How it is used.
    pub usage: DiskUse,
    ids: Vec<String>,
    /// The disk itself: another one that takes its place is not equal to it.
    disks: Vec<DiskUnder>,
}

impl SeenDisk {
    /// Whether both are one disk, however it is used.
    #[must_use]
    pub fn is_same_disk(&self, other: &SeenDisk) -> bool {
        self.name == other.name && self.disks == other.disks
    }
}

/// A disk that is held: no call of this program works on its volume.
#[derive(Debug)]
pub struct HeldDisk<'a> {
    node: &'a Node,
    call: NodeCall<'a>,
    name: VolumeName,
    ids: Vec<String>,
    /// The lock of the id that DigitalOcean says.
    id: Option<VolumeGuard>,
}

impl Node {
    /// Every volume's disk on this droplet, by its name. What cannot be looked at is left out: nothing happens to it.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] when nothing can be looked at.
    pub fn observe_disks(&self) -> Result<BTreeMap<VolumeName, SeenDisk>> {
        let (names, mounts) = (observe_linked_names(&self.places)?, observe_mounts()?);
        let look = |name: VolumeName| match self.observe_seen(&mounts, &name) {
            Ok(seen) => Some((name, seen?)),
            Err(err) => {
                debug!(name:%; "cannot see how a volume's disk is used: {}", Chain(&err));
                None
            }
        };
        Ok(names.into_iter().filter_map(look).collect())
    }

    fn observe_seen(&self, mounts: &MountTable, name: &VolumeName) -> Result<Option<SeenDisk>> {
        let Some((disk, upon)) = observe_named(&self.places, name)?.working(name)? else { return Ok(None) };
        let disks = DiskUnder::all_of(&self.places, disk.number())?;
        let usage = match &upon {
            DiskHolder::Nothing => observe_use(mounts, &disk, &disks)?,
            DiskHolder::Open(open) => observe_use(mounts, open, &[])?,
            DiskHolder::Temporary(_) | DiskHolder::Closing(_) | DiskHolder::Other(_) => DiskUse::Taken,
        };
        Ok(Some(SeenDisk { name: name.clone(), usage, ids: observe_ids_of(&self.places, name)?, disks }))
    }

    /// Whether a call of this program for the volume runs, or has ended within this time.
    #[must_use]
    pub fn is_called_for(&self, disk: &SeenDisk, within: Duration) -> bool {
        let ids = disk.ids.iter().cloned().map(VolumeKey::Id);
        let mut keys = ids.chain([VolumeKey::Name(disk.name.to_string())]);
        keys.any(|key| self.recent_calls.is_recent(&key, within))
    }

    /// The same of the id that DigitalOcean gives the volume; calls of the controller count too.
    #[must_use]
    pub fn is_id_called_for(&self, id: &VolumeId, within: Duration) -> bool {
        self.recent_calls.is_recent(&VolumeKey::Id(id.to_string()), within)
    }

    /// Locks a volume and the paths where it is staged; `None` when a call of this program wants any of them.
    #[must_use]
    pub fn hold_unused(&self, disk: &SeenDisk) -> Option<HeldDisk<'_>> {
        let paths = match &disk.usage {
            DiskUse::Staged(paths) => paths.clone(),
            DiskUse::Foreign(_) | DiskUse::Published(_) | DiskUse::Taken | DiskUse::Free => Vec::new(),
        };
        let (ids, name) = (disk.ids.clone(), disk.name.clone());
        let keys = ids.iter().cloned().map(VolumeKey::Id).chain(paths.into_iter().map(VolumeKey::Path));
        let call = self.hold_now(keys.chain([VolumeKey::Name(name.to_string())]))?;
        Some(HeldDisk { node: self, call, name, ids, id: None })
    }
}

impl HeldDisk<'_> {
    /// Looks again how the disk is used; `None`: it is gone.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] when that cannot be seen.
    pub fn observe(&self) -> Result<Option<SeenDisk>> {
        self.node.observe_seen(&observe_mounts()?, &self.name)
    }

    /// Unstages a volume that is staged for nobody.
    ///
    /// # Errors
    /// As [`Node::unstage`]: something uses it all the same.
    pub fn ensure_unstaged(&self, staging: &[PathBuf]) -> Result<()> {
        for path in staging {
            info!(name:% = self.name, path:% = path.display(); "unstaging what is shown to nobody");
            let volume = self.ids.first().cloned().unwrap_or_else(|| self.name.to_string());
            self.node.ensure_unstaged(&self.call, &Unstage { volume, staging: path.clone() })?;
        }
        Ok(())
    }

    /// Locks the volume by the id that DigitalOcean says, too; `false` when a call of this program wants it.
    #[must_use]
    pub fn hold_id(&mut self, id: &VolumeId) -> bool {
        let id = id.to_string();
        if self.ids.contains(&id) {
            return true;
        }
        self.id = self.node.locks.hold_all([VolumeKey::Id(id)], 0, Instant::now()).ok();
        self.id.is_some()
    }

    /// Takes the disk for this program alone, so that no mount of it can be made until what this gives is dropped; `None` when
    /// something uses it, be it a process that has the raw disk open for writing.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] when that cannot be seen.
    pub fn claim(&self) -> Result<Option<File>> {
        let places = &self.node.places;
        let named = observe_named(places, &self.name)?.working(&self.name)?;
        let Some((disk, DiskHolder::Nothing)) = named else { return Ok(None) };
        let claim = match disk.claim_for_reading() {
            Ok(claim) => claim,
            Err(err) if is_busy(&err) => return Ok(None),
            Err(err) => return Err(err),
        };
        for under in DiskUnder::all_of(places, disk.number())? {
            let writers = observe_writers(&under.sought(), WRITERS_BUDGET)?;
            if !writers.found().is_empty() {
                debug!(name:% = self.name; "not detached, as it is open for writing: {writers}");
                return Ok(None);
            }
            if !writers.saw_all() && !observe_has_file_system(&self.call, &disk)? {
                debug!(name:% = self.name; "not detached, as a process may write to it that is not seen from here");
                return Ok(None);
            }
        }
        // A raw volume may have been shown meanwhile by another plugin on this droplet.
        let is_shown = observe_mounts()?.of_device(&disk).next().is_some();
        Ok((!is_shown).then_some(claim))
    }

    /// Whether an earlier detach may still be carried out: a second one beside it would leave nobody knowing which of them was.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] when that cannot be seen.
    pub fn is_detach_in_flight(&self) -> Result<bool> {
        Ok(observe_mark(&self.node.places, &self.name)?.is_some_and(|age| age < DETACH_IN_FLIGHT))
    }

    /// Marks that the disk may go at any moment.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`]: then it must stay.
    pub fn mark(&self) -> Result<()> {
        ensure_marked(&self.call.guard, &self.node.places, &self.name)
    }

    /// Takes the mark away, as the disk certainly stays.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`].
    pub fn unmark(&self) -> Result<()> {
        apply_unmark(&self.call.guard, &self.node.places, &self.name)
    }

    /// Waits until a disk that was detached has gone, and takes the mark away. Where it stays for long the mark stays too, and the
    /// next call for the volume asks DigitalOcean before it uses that disk.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] when that cannot be seen.
    pub fn await_gone(&self, was: &SeenDisk) -> Result<()> {
        let is_gone = || -> Result<bool> {
            let claims = was.disks.iter().map(DiskUnder::observe_claim);
            Ok(claims.collect::<Result<Vec<_>>>()?.iter().all(|claim| *claim == Claim::Gone) || !self.is_linked()?)
        };
        let gone = look_until(Instant::now() + GONE_BUDGET, GONE_PAUSES, is_gone, |gone| !matches!(gone, Ok(false)))?;
        if !gone {
            return Ok(());
        }
        self.node.released().insert(self.name.clone());
        self.unmark()
    }

    /// Whether a disk is found under the volume's name.
    fn is_linked(&self) -> Result<bool> {
        Ok(!matches!(observe_named(&self.node.places, &self.name)?, Named::Gone))
    }
}

/// Whether a disk has a file system, or an encrypted volume: then it is written to by its mounts, which the kernel tells of.
fn observe_has_file_system(call: &NodeCall<'_>, disk: &Device) -> Result<bool> {
    match observe_content(&call.runner, disk)? {
        Content::Filesystem(_) | Content::Encrypted(_) => Ok(true),
        Content::AllZero
        | Content::Unfinished(_)
        | Content::OtherSignature { .. }
        | Content::Ambivalent { .. }
        | Content::Unrecognised { .. } => Ok(false),
    }
}

/// Looks how a device is used. `disks` are those that have to be free when it is mounted nowhere; none: it is not free then.
fn observe_use(mounts: &MountTable, device: &Device, disks: &[DiskUnder]) -> Result<DiskUse> {
    let targets: Vec<&Path> = mounts.of_device(device).map(|mount: &Mount| mount.target.as_path()).collect();
    let usage = plan_use(&targets);
    if usage != DiskUse::Free {
        return Ok(usage);
    }
    let claims = disks.iter().map(DiskUnder::observe_claim).collect::<Result<Vec<_>>>()?;
    let is_free = !claims.is_empty() && claims.iter().all(|claim| *claim == Claim::Free);
    Ok(if is_free { DiskUse::Free } else { DiskUse::Taken })
}

/// Decides by the paths where a disk is mounted. A path that is not certainly Nomad's staging is somebody's. Pure.
fn plan_use(targets: &[&Path]) -> DiskUse {
    let is_staging = |target: &&&Path| NomadPlace::parse(target).is_some_and(|place| place.purpose == Purpose::Staging);
    match targets.iter().find(|target| !is_staging(target)) {
        Some(foreign) if !is_csi_place(foreign) => DiskUse::Foreign(foreign.to_path_buf()),
        Some(shown) => DiskUse::Published(shown.to_path_buf()),
        None if targets.is_empty() => DiskUse::Free,
        None => DiskUse::Staged(targets.iter().map(|target| target.to_path_buf()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_staged_for_nobody_only_where_all_its_mounts_are_nomads_staging() {
        let usage = "rw-file-system-single-node-writer";
        let path = |directory: &str| PathBuf::from(directory).join(usage);
        let (staging, reader) = (path("/csi/staging/default/blog"), path("/csi/staging/blog"));
        let (target, foreign) = (path("/csi/per-alloc/1/blog"), PathBuf::from("/mnt/blog"));
        let kubernetes = PathBuf::from("/var/lib/kubelet/plugins/kubernetes.io/csi/pv/pvc-1/globalmount");
        for (targets, want) in [
            (vec![], DiskUse::Free),
            (vec![&staging], DiskUse::Staged(vec![staging.clone()])),
            (vec![&staging, &reader], DiskUse::Staged(vec![staging.clone(), reader.clone()])),
            (vec![&staging, &target], DiskUse::Published(target.clone())),
            (vec![&staging, &foreign], DiskUse::Foreign(foreign.clone())),
            (vec![&foreign], DiskUse::Foreign(foreign.clone())),
            (vec![&kubernetes], DiskUse::Published(kubernetes.clone())),
        ] {
            let targets: Vec<&Path> = targets.iter().map(|target| target.as_path()).collect();
            assert_eq!(plan_use(&targets), want, "{targets:?}");
        }
    }
}
