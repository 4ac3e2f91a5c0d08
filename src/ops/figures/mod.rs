//! How full the volumes on this droplet are, what their disks do, and what is wrong with them, read beside everything else.
//!
//! Owns when that is read and how old it is. Who wants the figures gets what was read last, with its age, and waits for nothing:
//! that a dead mount holds up nobody is the inventory's.

pub mod collector;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;

use crate::error::{Chain, Result};
use crate::host::device::DevicePlaces;
use crate::host::inventory::{Inventory, LOOK_BUDGET, VolumeHere, VolumeState};
use crate::host::io_counters::{IoCounters, observe_io};
use crate::host::mount_report::{Counts, Usage};
use crate::ops::diagnosis::Finding;
use crate::ops::diagnosis::here::diagnose_here;

/// How often the volumes are looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// The looks themselves have threads of their own.
const STACK: usize = 256 << 10;

/// A volume that is here, and what was read of it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// The volume as it was when it was looked at last.
    pub volume: VolumeHere,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
    /// What its disk has done; `None` when the disk is gone.
    pub io: Option<IoCounters>,
    /// How full it is, as it said last; empty as long as it has said nothing.
    pub usage: Vec<Usage>,
    /// When it said so; until then, when it was asked first.
    pub read_at: Instant,
}

/// How full a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Bytes of the file system, or of the raw disk.
    pub size: Option<u64>,
    /// Its bytes; `None` for a raw disk, of which only who writes to it knows.
    pub bytes: Option<Counts>,
    /// Its files and directories; `None` where there is no limit of them, as with btrfs.
    pub inodes: Option<Counts>,
}

impl Figures {
    /// How full it was when it said so last.
    #[must_use]
    pub fn space(&self) -> Space {
        self.usage.iter().fold(Space::default(), |space, usage| match usage {
            Usage::Size(size) => Space { size: Some(*size), ..space },
            Usage::Bytes(counts) => Space { size: Some(counts.total), bytes: Some(*counts), ..space },
            Usage::Inodes(counts) => Space { inodes: Some(*counts), ..space },
        })
    }

    /// Its name, or the path at which it is, where no name is known.
    #[must_use]
    pub fn name(&self) -> String {
        let path = || self.volume.mounts.first().map(|mount| mount.path.display().to_string()).unwrap_or_default();
        self.volume.name.as_ref().map_or_else(path, ToString::to_string)
    }

    /// The allocations (or pods) that have it, in order and each once.
    #[must_use]
    pub fn users(&self) -> Vec<&str> {
        let mut users: Vec<&str> = self.volume.mounts.iter().filter_map(|mount| mount.user.as_deref()).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// Its file system in the kernel's word; `raw` for a disk that is used as such, empty for one that is not used.
    #[must_use]
    pub fn filesystem(&self) -> &str {
        let raw = if self.volume.mounts.is_empty() { "" } else { "raw" };
        self.volume.fs.as_deref().unwrap_or(raw)
    }

    /// Whether nothing can be written to it, through any of its mounts.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        let is_disk = self.volume.disk.as_ref().is_some_and(|disk| disk.is_read_only);
        is_disk || (!self.volume.mounts.is_empty() && self.volume.mounts.iter().all(|mount| mount.is_read_only))
    }

    /// For how long it has not answered the question how it is, if it does not.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        match &self.volume.state {
            VolumeState::Silent(time) => Some(*time),
            VolumeState::NotMounted { .. } | VolumeState::Answered(_) | VolumeState::Unknown(_) => None,
        }
    }

    /// Whether its mount can be looked at; one that is not mounted has nothing to say.
    #[must_use]
    pub fn answers(&self) -> bool {
        match &self.volume.state {
            VolumeState::NotMounted { .. } | VolumeState::Answered(_) => true,
            VolumeState::Silent(_) | VolumeState::Unknown(_) => false,
        }
    }

    /// How old the figures of its space are; nothing where there are none to be had.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        match &self.volume.state {
            VolumeState::NotMounted { .. } => None,
            VolumeState::Answered(_) | VolumeState::Silent(_) | VolumeState::Unknown(_) => Some(self.read_at.elapsed()),
        }
    }

    /// What a look has brought, with what was known before it. Pure.
    fn after(before: Option<&Figures>, volume: VolumeHere, io: Option<IoCounters>, now: Instant) -> Figures {
        let (usage, read_at) = match &volume.state {
            VolumeState::Answered(report) => (report.usage.clone(), now),
            VolumeState::NotMounted { .. } => (Vec::new(), now),
            VolumeState::Silent(_) | VolumeState::Unknown(_) => {
                before.map_or((Vec::new(), now), |before| (before.usage.clone(), before.read_at))
            }
        };
        let findings = diagnose_here(&volume);
        Figures { volume, findings, io, usage, read_at }
    }
}

/// Reads the figures now and then, and has those that were read last.
#[derive(Debug)]
pub struct FigureReader {
    inventory: Inventory,
    last: Mutex<Vec<Figures>>,
}

impl FigureReader {
    /// Starts to read.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub fn start(places: DevicePlaces) -> io::Result<Arc<FigureReader>> {
        let inventory = Inventory::new(places, LOOK_BUDGET);
        let reader = Arc::new(FigureReader { inventory, last: Mutex::default() });
        let own = Arc::clone(&reader);
        let work = move || {
            loop {
                if let Err(err) = own.read_all() {
                    warn!("the figures of the volumes stay as they are: {}", Chain(&err));
                }
                thread::sleep(PERIOD);
            }
        };
        thread::Builder::new().name("figures".to_owned()).stack_size(STACK).spawn(work)?;
        Ok(reader)
    }

    /// What was read last of each volume. It waits for no disk.
    #[must_use]
    pub fn last(&self) -> Vec<Figures> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Figures>> {
        // It is replaced as a whole.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_all(&self) -> Result<()> {
        let before = self.last();
        let now = Instant::now();
        let read = |volume: VolumeHere| {
            let io = volume.disk.as_ref().and_then(|disk| observe_io(&disk.sysfs).ok().flatten());
            let known = before.iter().find(|known| {
                let (was, is) = (&known.volume, &volume);
                was.name == is.name && was.mounts.first().map(|at| &at.path) == is.mounts.first().map(|at| &at.path)
            });
            Figures::after(known, volume, io, now)
        };
        let figures = self.inventory.observe()?.into_iter().map(read).collect();
        *self.lock() = figures;
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::host::inventory::MountHere;
    use crate::host::mount_report::{Condition, MountReport};
    use crate::id::VolumeName;
    use crate::ops::diagnosis::Reason;

    pub(in crate::ops) fn volume(state: VolumeState) -> VolumeHere {
        let mount = |path: &str, user: Option<&str>| MountHere {
            path: path.into(),
            is_read_only: user.is_some(),
            user: user.map(str::to_owned),
        };
        VolumeHere {
            id: Some("506f78a4".to_owned()),
            name: Some(VolumeName::parse("blog").unwrap()),
            disk: None,
            fs: Some("xfs".to_owned()),
            mounts: vec![
                mount("/staging", None),
                mount("/b", Some("b")),
                mount("/a", Some("a")),
                mount("/c", Some("a")),
            ],
            state,
        }
    }

    #[test]
    fn what_a_silent_volume_said_last_is_kept_and_grows_old() {
        let start = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        let counts = Counts { total: 100, used: 10, available: 90 };
        let report = MountReport { usage: vec![Usage::Bytes(counts)], condition: Condition::Normal };
        let first = Figures::after(None, volume(VolumeState::Answered(report)), None, start);
        assert_eq!(first.space(), Space { size: Some(100), bytes: Some(counts), inodes: None });
        assert!(first.findings.is_empty() && first.silent_for().is_none());
        let silent = VolumeState::Silent(Duration::from_secs(50));
        let second = Figures::after(Some(&first), volume(silent.clone()), None, start + Duration::from_secs(50));
        assert_eq!((second.space(), second.silent_for()), (first.space(), Some(Duration::from_secs(50))));
        assert!(second.age().unwrap() >= Duration::from_secs(100), "it is as old as what was said");
        assert_eq!(second.findings.iter().map(|found| found.reason).collect::<Vec<_>>(), [Reason::MountDoesNotAnswer]);
        let never = Figures::after(None, volume(silent), None, start);
        assert_eq!(never.space(), Space::default());
        assert!(never.age().unwrap() >= Duration::from_secs(100), "counted from when it was asked first");
        let unread = Figures::after(Some(&first), volume(VolumeState::Unknown("EIO".to_owned())), None, start);
        assert_eq!([&first, &second, &unread].map(Figures::answers), [true, false, false]);
        let unused = Figures::after(Some(&first), volume(VolumeState::NotMounted { is_taken: true }), None, start);
        assert_eq!((unused.space(), unused.age()), (Space::default(), None));
    }

    #[test]
    fn a_volume_is_read_only_when_all_its_mounts_are_and_each_user_is_named_once() {
        let now = Instant::now();
        let mut figures = Figures::after(None, volume(VolumeState::NotMounted { is_taken: false }), None, now);
        assert_eq!(figures.users(), ["a", "b"]);
        assert_eq!((figures.name().as_str(), figures.filesystem(), figures.is_read_only()), ("blog", "xfs", false));
        figures.volume.mounts.remove(0);
        assert!(figures.is_read_only());
        figures.volume.mounts.clear();
        (figures.volume.fs, figures.volume.name) = (None, None);
        assert_eq!((figures.name().as_str(), figures.filesystem(), figures.is_read_only()), ("", "", false));
    }
}
