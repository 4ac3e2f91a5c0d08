//! Mounts that nobody takes away: those of a task that ended while no plugin ran here.
//!
//! Owns the look at all of this plugin's own mounts, and taking away those that certainly serve nobody: whose disk is gone, or
//! whose allocation is, or that a killed call has left before they were shown to anybody. Each mount is looked at by a thread of
//! its own, so that one which does not answer holds up nothing else. What is own has to be certain: it lies in Nomad's layout, and either its disk is a volume's, or, where
//! the disk is gone, it was seen to be before, or the directory is one in which such mounts are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use log::{error, info, warn};

use crate::config::{Allocations, FLUSH_BUDGET, NODE_BUDGET};
use crate::error::{Chain, Error, Result};
use crate::host::command::Until;
use crate::host::device::number::DeviceNumber;
use crate::host::flush::apply_flush_apart;
use crate::host::id_link::observe_ids_of;
use crate::host::mount::observe_mounts;
use crate::host::mount_health::{Health, observe_health};
use crate::host::mountinfo::{Mount, MountKey, MountTable};
use crate::host::owner::{Owner, observe_owner};
use crate::host::presence::{observe_is_there, observe_names};
use crate::host::under_mount::{UnderMount, observe_disk};
use crate::id::VolumeName;
use crate::node::nomad_place::{NomadPlace, Purpose};
use crate::node::scratch_mount::apply_clear_left;
use crate::node::take_down::apply_clear;
use crate::node::{Node, NodeCall, mount_point};
use crate::ops::diagnosis::Finding;
use crate::ops::diagnosis::here::diagnose_left;
use crate::request::node::Unpublish;
use crate::sync::looks::{Looks, Seen};
use crate::sync::volume_lock::VolumeKey;

/// How long a look at all mounts waits for their answers.
const LOOK_BUDGET: Duration = Duration::from_secs(5);
/// How long it waits then for those that are taken away: longer than an unmount is tried.
const REMOVAL_BUDGET: Duration = Duration::from_secs(15);

/// What earlier looks have shown.
#[derive(Debug, Default)]
pub struct MountsSeen {
    /// The mounts that were a volume's while its disk was there.
    volumes: HashMap<MountKey, DeviceNumber>,
    /// The directories in which such mounts were.
    bases: HashSet<PathBuf>,
    /// What was said of a mount.
    told: HashMap<MountKey, String>,
}

/// Whether Nomad still has an allocation's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allocation {
    /// It has, or it cannot be told.
    MayBeThere,
    /// The directory of all allocations was read, and this one's is not in it; or it is a place that is shown to none.
    Gone,
}

/// What is known of one mount in Nomad's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MountFacts {
    health: Health,
    /// The disk under it is a volume's.
    is_volumes: bool,
    /// It was a volume's, or others in the same directory are.
    is_known: bool,
    allocation: Allocation,
}

/// A mount that is looked at.
#[derive(Debug, Clone)]
struct Placed {
    mount: Mount,
    place: NomadPlace,
    /// The volume whose disk is under it.
    name: Option<String>,
    /// It was a volume's, or others in the same directory are.
    is_known: bool,
}

impl Placed {
    /// What is taken away as one: everything of a volume, as its calls exclude each other; else this mount alone.
    fn volume_key(&self) -> VolumeKey {
        self.name.clone().map_or_else(|| VolumeKey::Path(self.mount.target.clone()), VolumeKey::Name)
    }
}

/// A mount that is to be taken away.
#[derive(Debug)]
struct Leftover {
    placed: Placed,
    health: Health,
    step: MountStep,
}

/// The looks at mounts that may have been left behind, and the removals of those that were.
#[derive(Debug, Default)]
pub(super) struct Tidying {
    looks: Looks<MountKey, Result<(Health, MountStep)>>,
    /// By volume; each gives the mounts that could not be taken away, and why.
    removals: Looks<VolumeKey, Vec<(Mount, String)>>,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MountStep {
    /// It is not this plugin's, or is as it should be.
    Leave,
    /// A person has to look.
    Tell,
    /// Nothing can be written to it any more.
    Clear,
    /// Its allocation is gone: take it away in the usual way, which fails when anything uses it.
    Unpublish,
}

/// Decides about a mount in Nomad's layout. Pure.
fn plan_leftover(facts: MountFacts) -> MountStep {
    match (facts.health, facts.allocation) {
        (Health::DiskGone, Allocation::MayBeThere | Allocation::Gone) if facts.is_known => MountStep::Clear,
        // Whoever has a node open whose number another disk may have writes to some disk; and a file system that was shut
        // down has its disk, so a task may still read what it has.
        (Health::DiskGone | Health::NodeGone | Health::ShutDown, Allocation::MayBeThere | Allocation::Gone) => {
            MountStep::Tell
        }
        (Health::Alive, Allocation::Gone) if facts.is_volumes => MountStep::Unpublish,
        (Health::Alive, Allocation::MayBeThere | Allocation::Gone) => MountStep::Leave,
    }
}

impl Node {
    /// Looks at every mount of this plugin's own, names those that are not as they should be, and takes away those that certainly
    /// serve nobody. `allocations` is where Nomad has the directories of its allocations, where that is known for certain.
    ///
    /// A second look says nothing twice. It takes no longer than its budgets, whatever the disks do, and waits once only for what
    /// does not answer.
    pub fn tidy_mounts(self: &Arc<Self>, seen: &mut MountsSeen, allocations: Option<&Allocations>) {
        let mounts = match observe_mounts() {
            Ok(mounts) => mounts,
            Err(err) => return warn!("cannot look for mounts that were left behind: {}", Chain(&err)),
        };
        let mut left = Vec::new();
        let leftovers = self.look_at_mounts(seen, &mounts, allocations, &mut left);
        self.take_away(seen, leftovers, &mut left);
        *self.left_mounts.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }

    /// Looks at each mount; gives what is to be taken away, by volume.
    fn look_at_mounts(
        self: &Arc<Self>,
        seen: &mut MountsSeen,
        mounts: &MountTable,
        allocations: Option<&Allocations>,
        left: &mut Vec<Finding>,
    ) -> BTreeMap<VolumeKey, Vec<Leftover>> {
        seen.forget_all_but(mounts);
        let there: HashSet<MountKey> = mounts.iter().map(Mount::key).collect();
        // How a mount was that is gone tells nothing of what is there now.
        drop(self.tidying.looks.take_ended(|key| there.contains(key)));
        // Those that live say which directories are this plugin's, so they are looked at first.
        let named: Vec<(&Mount, NomadPlace, Option<String>)> =
            placed(mounts).map(|(mount, place)| (mount, place.clone(), self.learn(seen, mount, place))).collect();
        // What another one hides is looked at when that is gone.
        let is_topmost = |mount: &Mount| mounts.at(&mount.target).is_some_and(|topmost| topmost.id == mount.id);
        let looks: Vec<(Placed, io::Result<bool>)> = named
            .into_iter()
            .filter(|(mount, ..)| is_topmost(mount))
            .map(|(mount, place, name)| {
                let is_of_ours = seen.bases.contains(&place.base) || mounts.at(&place.base).is_some();
                let is_known = is_of_ours || seen.volumes.contains_key(&mount.key());
                let placed = Placed { mount: mount.clone(), place, name, is_known };
                let (node, asked, all) = (Arc::clone(self), placed.clone(), allocations.cloned());
                let begun = self.tidying.looks.begin(mount.key(), move || node.judge(&asked, all.as_ref()));
                (placed, begun)
            })
            .collect();
        let give_up = Instant::now() + LOOK_BUDGET;
        let mut leftovers: BTreeMap<VolumeKey, Vec<Leftover>> = BTreeMap::new();
        for (placed, begun) in looks {
            let key = placed.mount.key();
            let judged = await_end(&self.tidying.looks, &key, begun, give_up, "it does not answer");
            match judged.and_then(|judged| judged.map_err(|err| Chain(&err).to_string())) {
                Ok((_, MountStep::Leave)) => seen.tell_in_use(&placed),
                Ok((health, MountStep::Tell)) => {
                    seen.tell_once(&placed.mount, "was left behind", &health.to_string());
                }
                Ok((health, step @ (MountStep::Clear | MountStep::Unpublish))) => {
                    leftovers.entry(placed.volume_key()).or_default().push(Leftover { placed, health, step });
                }
                Err(why) => left.push(seen.tell_left(&placed.mount, "cannot be judged", &why)),
            }
        }
        leftovers
    }

    /// Takes away what certainly serves nobody; what cannot be is `left`.
    fn take_away(
        self: &Arc<Self>,
        seen: &mut MountsSeen,
        leftovers: BTreeMap<VolumeKey, Vec<Leftover>>,
        left: &mut Vec<Finding>,
    ) {
        const STAYS: &str = "cannot be taken away";
        let begin = |(key, leftovers): (VolumeKey, Vec<Leftover>)| {
            let mounts: Vec<Mount> = leftovers.iter().map(|leftover| leftover.placed.mount.clone()).collect();
            let node = Arc::clone(self);
            let begun = self.tidying.removals.begin(key.clone(), move || node.apply_end_all(&leftovers));
            (key, mounts, begun)
        };
        let removals: Vec<_> = leftovers.into_iter().map(begin).collect();
        let is_asked = |key: &VolumeKey| removals.iter().any(|(asked, ..)| asked == key);
        for (mount, why) in self.tidying.removals.take_ended(is_asked).into_iter().flatten() {
            left.push(seen.tell_left(&mount, STAYS, &why));
        }
        let give_up = Instant::now() + REMOVAL_BUDGET;
        for (key, mounts, begun) in removals {
            let slow = "taking away what is left of its volume has not ended yet";
            let stay = await_end(&self.tidying.removals, &key, begun, give_up, slow).unwrap_or_else(|why| {
                let now = observe_mounts().ok();
                let is_gone = |mount: &Mount| now.as_ref().is_some_and(|now| now.iter().all(|one| one.id != mount.id));
                mounts.into_iter().filter(|mount| !is_gone(mount)).map(|mount| (mount, why.clone())).collect()
            });
            for (mount, why) in stay {
                left.push(seen.tell_left(&mount, STAYS, &why));
            }
        }
    }

    /// What the last look at the mounts could not end: the others that are dead are told of by [`Node::storage_health`] as they
    /// are.
    #[must_use]
    pub fn left_mounts(&self) -> Vec<Finding> {
        self.left_mounts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at one mount, and decides what follows.
    fn judge(&self, placed: &Placed, allocations: Option<&Allocations>) -> Result<(Health, MountStep)> {
        let health = observe_health(&self.places, &placed.mount)?;
        let facts = MountFacts {
            health,
            is_volumes: placed.name.is_some(),
            is_known: placed.is_known,
            allocation: observe_allocation(&placed.place.purpose, allocations)?,
        };
        Ok((health, plan_leftover(facts)))
    }

    /// Keeps in mind what a volume's mount shows; gives the volume's name. What cannot be seen is no volume's.
    fn learn(&self, seen: &mut MountsSeen, mount: &Mount, place: NomadPlace) -> Option<String> {
        let name = self.observe_volume_under(mount).ok().flatten()?;
        seen.volumes.insert(mount.key(), mount.device);
        seen.bases.insert(place.base);
        Some(name)
    }

    /// The volume whose disk is under a mount, by a name of its own or by its link; `None`: no volume's, or it cannot be told.
    fn observe_volume_under(&self, mount: &Mount) -> Result<Option<String>> {
        let UnderMount::Disk(disk) = observe_disk(&self.places, mount)? else { return Ok(None) };
        Ok(match observe_owner(&self.places, disk, None)? {
            Owner::Some(names) => Some(names.join(" or ")),
            Owner::This | Owner::Other(_) | Owner::Nameless => None,
        })
    }

    /// Takes away what is left of one volume, unless a call is at work on it; gives what could not be, and why.
    fn apply_end_all(&self, leftovers: &[Leftover]) -> Vec<(Mount, String)> {
        let stays = |leftover: &Leftover, err: &Error| (leftover.placed.mount.clone(), Chain(err).to_string());
        let (call, volume) = match self.hold_leftovers(leftovers) {
            Ok(Some(held)) => held,
            Ok(None) => return Vec::new(),
            Err(err) => return leftovers.iter().map(|leftover| stays(leftover, &err)).collect(),
        };
        let end = |leftover: &Leftover| Some(stays(leftover, &self.apply_end(&call, &volume, leftover).err()?));
        leftovers.iter().filter_map(end).collect()
    }

    /// Locks a volume and the paths of all that is left of it; gives its id, too. `None`: a call is at work on it.
    fn hold_leftovers(&self, leftovers: &[Leftover]) -> Result<Option<(NodeCall<'_>, String)>> {
        let shown = leftovers.iter().find_map(|leftover| leftover.placed.name.clone());
        let name = shown.as_ref().and_then(|name| VolumeName::parse(name).ok());
        let ids = name.as_ref().map_or_else(|| Ok(Vec::new()), |name| observe_ids_of(&self.places, name))?;
        let volume = ids.first().cloned().or(shown).unwrap_or_default();
        let paths = leftovers.iter().map(|leftover| VolumeKey::Path(leftover.placed.mount.target.clone()));
        let names = name.map(|name| VolumeKey::Name(name.to_string()));
        let call = self.hold_now(ids.into_iter().map(VolumeKey::Id).chain(paths).chain(names));
        Ok(call.map(|call| (call, volume)))
    }

    /// Takes one mount away that certainly serves nobody, if it is still there and still so.
    fn apply_end(&self, call: &NodeCall<'_>, volume: &str, leftover: &Leftover) -> Result<()> {
        let Leftover { placed: Placed { mount, place, .. }, health, step } = leftover;
        let mounts = observe_mounts()?;
        if mounts.at(&mount.target).is_none_or(|now| now.id != mount.id) {
            return Ok(());
        }
        let path = mount.target.display();
        match (step, &place.purpose) {
            (MountStep::Leave | MountStep::Tell, _) => Ok(()),
            (MountStep::Clear, _) if observe_health(&self.places, mount)? != *health => Ok(()),
            (MountStep::Clear, purpose) => {
                warn!(
                    path:%;
                    "taking away a mount that was left behind when its disk went: a task ended, or a disk was detached, while no \
                     plugin ran on this droplet"
                );
                apply_clear(call, &mount.target, *health)?;
                match purpose {
                    Purpose::Staging => Ok(()),
                    Purpose::Target { .. } | Purpose::Scratch => {
                        mount_point::apply_remove_place(&call.guard, &mount.target)
                    }
                }
            }
            (MountStep::Unpublish, Purpose::Scratch) => match apply_clear_left(call, &mount.target, Duration::ZERO) {
                // Another plugin is at work there, or has cleared it away.
                Err(Error::VolumeBusy(_)) | Ok(false) => Ok(()),
                Ok(true) => {
                    warn!(volume, path:%; "took away what a call that was killed has left");
                    Ok(())
                }
                Err(err) => Err(err),
            },
            (MountStep::Unpublish, Purpose::Staging | Purpose::Target { .. }) => {
                warn!(
                    volume, path:%;
                    "taking away a mount whose allocation is gone, which ended while no plugin ran on this droplet"
                );
                self.ensure_unpublished(call, &Unpublish { volume: volume.to_owned(), target: mount.target.clone() })
            }
        }
    }

    /// Locks all of these, if nobody else wants any of them at this moment.
    pub(super) fn hold_now(&self, keys: impl IntoIterator<Item = VolumeKey>) -> Option<NodeCall<'_>> {
        let guard = self.locks.hold_all(keys, 0, Instant::now()).ok()?;
        let runner = Until::new(self.runner.as_ref(), Instant::now() + NODE_BUDGET);
        let _running = self.recent_calls.enter([]);
        Some(NodeCall { guard, runner, places: &self.places, warned: &self.warned, _running })
    }

    /// Writes what is in memory to every volume that is mounted in Nomad's layout, all at once, and waits no longer than the
    /// budget, whatever a disk does. An orchestrator may have a volume detached under its mount while no plugin runs.
    pub fn flush_all(self: &Arc<Self>) {
        let mounts = match observe_mounts() {
            Ok(mounts) => mounts,
            Err(err) => return error!("cannot see what is mounted, so nothing is written out: {}", Chain(&err)),
        };
        let deadline = Instant::now() + FLUSH_BUDGET;
        let (done, ended) = bounded(0);
        let mut waiting = HashSet::new();
        for (device, target) in flushable(&mounts) {
            if waiting.contains(&target) || !self.is_worth_a_flush(device) {
                continue;
            }
            let (node, done, at) = (Arc::clone(self), done.clone(), target.clone());
            let flush = move || {
                if let Err(err) = apply_flush_apart(node.runner.as_ref(), &at, FLUSH_BUDGET) {
                    error!("could not write everything that is in memory: {}", Chain(&err));
                }
                // Who has stopped waiting does not need to know.
                let _is_heard = done.send(at).is_ok();
            };
            match thread::Builder::new().name("flush".to_owned()).spawn(flush) {
                Ok(_) => drop(waiting.insert(target)),
                Err(err) => error!("the system gives no thread to write what is in memory: {err}"),
            }
        }
        while !waiting.is_empty() {
            match ended.recv_deadline(deadline) {
                Ok(target) => drop(waiting.remove(&target)),
                Err(_) => {
                    let paths: Vec<String> = waiting.iter().map(|path| path.display().to_string()).collect();
                    return error!(
                        "not all that is in memory is written after {} s, a disk does not answer: {}",
                        FLUSH_BUDGET.as_secs(),
                        paths.join(", ")
                    );
                }
            }
        }
    }

    /// Whether a disk is there that could take anything; what cannot be seen may be.
    fn is_worth_a_flush(&self, device: DeviceNumber) -> bool {
        let is_listed = || observe_is_there(&self.places.sysfs.join(format!("dev/block/{device}")));
        // btrfs gives numbers of its own.
        device.major == 0 || is_listed().unwrap_or(true)
    }
}

/// Waits for what has been begun: until the deadline if it is new, and else no longer. `silent` says that it has not ended.
fn await_end<K: Eq + Hash, T: Send + 'static>(
    looks: &Looks<K, T>,
    key: &K,
    begun: io::Result<bool>,
    deadline: Instant,
    silent: &str,
) -> Result<T, String> {
    let is_new = begun.map_err(|err| format!("the system gives no thread for it: {err}"))?;
    match looks.wait(key, if is_new { deadline } else { Instant::now() }) {
        Seen::Ended(seen) => Ok(seen),
        Seen::Silent(_) => Err(silent.to_owned()),
        Seen::Nothing(why) => Err(why.to_owned()),
    }
}

/// Every mount of our making in Nomad's layout, with its place.
fn placed(mounts: &MountTable) -> impl Iterator<Item = (&Mount, NomadPlace)> {
    let ours = mounts.iter().filter(|mount| mount.is_of_our_making());
    ours.filter_map(|mount| Some((mount, NomadPlace::parse(&mount.target)?)))
}

/// One mount of each file system that is writable in Nomad's layout; the disk of a raw volume has nothing in memory of ours.
fn flushable(mounts: &MountTable) -> Vec<(DeviceNumber, PathBuf)> {
    let mut found: Vec<(DeviceNumber, PathBuf)> = Vec::new();
    for (mount, _) in placed(mounts).filter(|(mount, _)| !mount.is_node() && !mount.is_super_read_only()) {
        if !found.iter().any(|(device, _)| *device == mount.device) {
            found.push((mount.device, mount.target.clone()));
        }
    }
    found
}

fn observe_allocation(purpose: &Purpose, allocations: Option<&Allocations>) -> Result<Allocation> {
    let (allocation, all) = match (purpose, allocations) {
        (Purpose::Scratch, _) => return Ok(Allocation::Gone),
        (Purpose::Staging, _) | (Purpose::Target { .. }, None) => return Ok(Allocation::MayBeThere),
        (Purpose::Target { allocation }, Some(all)) => (allocation, all),
    };
    // Without the directory of all of them nothing is known of one, and one without this program's own is another.
    let names = observe_names(&all.directory)?.unwrap_or_default();
    let is_listed = |allocation: &str| names.iter().any(|name| name == allocation);
    let is_gone = is_listed(&all.own) && !is_listed(allocation);
    Ok(if is_gone { Allocation::Gone } else { Allocation::MayBeThere })
}

impl MountsSeen {
    /// Forgets mounts that are no more.
    fn forget_all_but(&mut self, mounts: &MountTable) {
        let there: HashMap<MountKey, DeviceNumber> = mounts.iter().map(|mount| (mount.key(), mount.device)).collect();
        self.volumes.retain(|key, device| there.get(key) == Some(device));
        self.told.retain(|key, _| there.contains_key(key));
    }

    fn tell_in_use(&mut self, placed: &Placed) {
        let Placed { mount, name: Some(name), .. } = placed else { return };
        if self.told.insert(mount.key(), name.clone()).as_ref() != Some(name) {
            info!(name, path:% = mount.target.display(); "mounted here");
        }
    }

    fn tell_once(&mut self, mount: &Mount, how: &str, why: &str) {
        let text = format!("a mount {how}: {why}");
        if self.told.insert(mount.key(), text.clone()).as_ref() != Some(&text) {
            warn!(path:% = mount.target.display(); "{text}");
        }
    }

    /// The same, for a person who looks without the log as well.
    fn tell_left(&mut self, mount: &Mount, how: &str, why: &str) -> Finding {
        self.tell_once(mount, how, why);
        diagnose_left(&mount.target, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_certainly_serves_nobody_is_taken_away() {
        use Allocation::{Gone, MayBeThere};
        use MountStep::{Clear, Leave, Tell, Unpublish};
        // (health, allocation, what follows where it is: nobody's, known from before, a volume's)
        for (health, allocation, want) in [
            (Health::Alive, MayBeThere, [Leave, Leave, Leave]),
            (Health::Alive, Gone, [Leave, Leave, Unpublish]),
            (Health::DiskGone, MayBeThere, [Tell, Clear, Clear]),
            (Health::DiskGone, Gone, [Tell, Clear, Clear]),
            (Health::ShutDown, MayBeThere, [Tell, Tell, Tell]),
            (Health::ShutDown, Gone, [Tell, Tell, Tell]),
            (Health::NodeGone, MayBeThere, [Tell, Tell, Tell]),
            (Health::NodeGone, Gone, [Tell, Tell, Tell]),
        ] {
            for ((is_known, is_volumes), want) in [(false, false), (true, false), (true, true)].into_iter().zip(want) {
                let facts = MountFacts { health, is_volumes, is_known, allocation };
                assert_eq!(plan_leftover(facts), want, "{facts:?}");
            }
        }
    }

    #[test]
    fn an_allocation_is_gone_only_when_the_directory_of_all_of_them_was_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1-2")).unwrap();
        std::fs::create_dir(dir.path().join("own")).unwrap();
        let all = |directory: PathBuf, own: &str| Some(Allocations { directory, own: own.to_owned() });
        let of = |allocation: &str| Purpose::Target { allocation: allocation.to_owned() };
        for (purpose, all, want) in [
            (of("1-2"), all(dir.path().to_owned(), "own"), Allocation::MayBeThere),
            (of("3-4"), all(dir.path().to_owned(), "own"), Allocation::Gone),
            (of("3-4"), all(dir.path().to_owned(), "another"), Allocation::MayBeThere),
            (of("3-4"), None, Allocation::MayBeThere),
            (of("3-4"), all(dir.path().join("none"), "own"), Allocation::MayBeThere),
            (Purpose::Staging, all(dir.path().to_owned(), "own"), Allocation::MayBeThere),
            (Purpose::Scratch, None, Allocation::Gone),
        ] {
            assert_eq!(observe_allocation(&purpose, all.as_ref()).unwrap(), want, "{purpose:?} {all:?}");
        }
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(observe_allocation(&of("3-4"), all(file, "own").as_ref()).is_err(), "it cannot be read");
    }
}
