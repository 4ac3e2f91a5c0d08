//! The cloud as a pure state machine: its objects, its timeline, and what they look like at a moment.
//!
//! Owns the data and the order of events. It reads no clock and does no IO: `now` is a parameter, and what has to be
//! done to files and devices leaves as [`Effect`] values. The rules for requests are in `volumes.rs`, `actions.rs`,
//! `snapshots.rs` and `tags.rs`, each of them an `impl Cloud`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::clock::Moment;
use super::config::{DropletSpec, Rules, SimConfig};
use super::refusal::Refusal;

/// One account of the simulated cloud.
#[derive(Debug)]
pub struct Cloud {
    pub(super) rules: Rules,
    pub(super) regions: BTreeSet<String>,
    pub(super) regions_without_storage: BTreeSet<String>,
    pub(super) droplets: BTreeMap<u64, Droplet>,
    pub(super) volumes: BTreeMap<String, Volume>,
    pub(super) deleted: BTreeMap<String, Volume>,
    pub(super) snapshots: BTreeMap<String, Snapshot>,
    pub(super) last_snapshot: BTreeMap<String, Moment>,
    pub(super) actions: BTreeMap<u64, Action>,
    pub(super) tags: BTreeSet<String>,
    pub(super) effects: Vec<Effect>,
    timeline: BTreeMap<(Moment, u64), Event>,
    next: u64,
}

/// A block storage volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Looks like a version 1 UUID.
    pub id: String,
    /// Unique within the region.
    pub name: String,
    /// Slug of the region.
    pub region: String,
    /// Size in GiB.
    pub size_gigabytes: u64,
    /// The size that get and list show, which may lag behind [`Volume::size_gigabytes`].
    pub listed_gigabytes: u64,
    /// Free text.
    pub description: String,
    /// `ext4`, `xfs` or empty.
    pub filesystem_type: String,
    /// Label for the file system, or empty.
    pub filesystem_label: String,
    /// In the order they were given.
    pub tags: Vec<String>,
    /// When the create request came.
    pub created_at: Moment,
    /// When get and list begin to show it.
    pub visible_from: Moment,
    /// The droplet it really is attached to.
    pub attached_to: Option<u64>,
    /// The droplet that `droplet_ids` shows, which may lag behind [`Volume::attached_to`] or run ahead of it.
    pub listed_on: Option<u64>,
    /// The droplet whose `volume_ids` show it, which may lag behind as well (`api-v2` issue 157).
    pub recorded_on: Option<u64>,
}

/// `status` of a droplet (`droplet.yml`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropletStatus {
    /// Still being created.
    New,
    /// Running.
    Active,
    /// Powered off: attachments stay.
    Off,
    /// Archived.
    Archive,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Droplet {
    /// Its identity everywhere.
    pub id: u64,
    /// Its host name.
    pub name: String,
    /// Slug of the region.
    pub region: String,
    /// What it is doing.
    pub status: DropletStatus,
    /// Until when an event that is none of ours keeps it busy.
    pub held_until: Moment,
    /// Destroyed: the API answers 404 while its volumes are being detached.
    pub is_destroyed: bool,
    /// Until when its metadata service does not answer.
    pub metadata_down_until: Moment,
    /// How late its metadata service answers.
    pub metadata_delay: Duration,
    /// From where it asks, if it has a network of its own.
    pub address: Option<IpAddr>,
    /// It has a GPU, so that it is in another list.
    pub has_gpu: bool,
}

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Looks like a version 1 UUID.
    pub id: String,
    /// Unique in the account, unless switched otherwise.
    pub name: String,
    /// The volume it was taken from, which may be gone.
    pub volume: String,
    /// Slug of the only region it can be restored in.
    pub region: String,
    /// Size of the volume at that time, in GiB.
    pub min_disk_size: u64,
    /// Billable size, 0 just after creation.
    pub size_gigabytes: f64,
    /// In the order they were given.
    pub tags: Vec<String>,
    /// When the request came.
    pub created_at: Moment,
    /// From when on get and lists show it.
    pub visible_from: Moment,
}

/// What an action does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionKind {
    /// `attach_volume`.
    Attach,
    /// `detach_volume`.
    Detach,
    /// `resize`.
    Resize,
}

/// `status` of an action (`action.yml`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionStatus {
    /// `in-progress`.
    InProgress,
    /// `completed`.
    Completed,
    /// `errored`: nothing was changed.
    Errored,
}

/// A job of the cloud that takes time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Grows with every action.
    pub id: u64,
    /// What it does.
    pub kind: ActionKind,
    /// How far it is.
    pub status: ActionStatus,
    /// The volume it works on.
    pub volume: String,
    /// The droplet that is busy with it; none for a resize.
    pub droplet: Option<u64>,
    /// The size a resize leads to, in GiB.
    pub size_gigabytes: Option<u64>,
    /// Slug of the region.
    pub region: String,
    /// When the request came.
    pub started_at: Moment,
    /// When it ended, either way.
    pub completed_at: Option<Moment>,
    /// How many more times asking for it is answered with 404.
    pub hidden_polls: u32,
    /// What a test wants to go wrong with it.
    pub twists: Twists,
}

impl Action {
    /// Whether it still does something, as opposed to only saying so.
    pub fn is_running(&self) -> bool {
        self.status == ActionStatus::InProgress && self.completed_at.is_none()
    }
}

/// How an action departs from the plain course. The default departs in nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Twists {
    /// It ends as `errored` and changes nothing.
    pub errored: bool,
    /// Asking for it is answered with 404 so many times (terraform-provider-digitalocean `util/wait.go`).
    pub hidden_polls: u32,
    /// It takes this long.
    pub time: Option<Duration>,
    /// `droplet_ids` changes this long after it ended.
    pub ids_late: Duration,
    /// `droplet_ids` changes when it starts.
    pub ids_early: bool,
    /// `volume_ids` of the droplet changes this long after it ended.
    pub record_late: Duration,
    /// Lists of actions show it only this long after it began.
    pub action_late: Duration,
    /// The new size is shown this long after it ended.
    pub size_late: Duration,
    /// It has its effect, and says for ever that it is in progress.
    pub stays_in_progress: bool,
    /// The droplet sees the change this long after it ended.
    pub device_lag: Option<Duration>,
    /// The device first appears with no capacity, for this long.
    pub half_attached: Option<Duration>,
    /// The link stays behind after a detach.
    pub stale_link: bool,
}

/// Work on files and devices, in the order it has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make the file behind a new volume.
    Create {
        /// Volume id.
        volume: String,
        /// Size in GiB.
        size_gigabytes: u64,
        /// The snapshot whose bytes it gets.
        snapshot: Option<String>,
        /// The file system and label it gets.
        format: Option<(String, String)>,
    },
    /// Remove the file behind a volume.
    Delete {
        /// Volume id.
        volume: String,
    },
    /// Make the file longer, and the device on it if there is one.
    Grow {
        /// Volume id.
        volume: String,
        /// Size in GiB.
        size_gigabytes: u64,
    },
    /// Copy a volume's bytes.
    Snapshot {
        /// Snapshot id.
        snapshot: String,
        /// Volume id.
        volume: String,
    },
    /// Remove a snapshot's bytes.
    DeleteSnapshot {
        /// Snapshot id.
        snapshot: String,
    },
    /// Let the droplet see a device.
    Attach {
        /// Volume id.
        volume: String,
        /// File name of the link below `by-id`.
        link: String,
        /// Droplet id.
        droplet: u64,
        /// The device has no capacity yet.
        is_half: bool,
    },
    /// Take the device away.
    Detach {
        /// Volume id.
        volume: String,
        /// The link is left behind.
        keeps_link: bool,
    },
}

/// Something that will happen by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// An action ends.
    End { action: u64 },
    /// `droplet_ids` of a volume changes to what is true.
    List { volume: String },
    /// `volume_ids` of a droplet changes to what is true.
    Record { volume: String },
    /// A droplet that is no more lets go of a volume.
    Release { volume: String, droplet: u64, twists: Twists },
    /// The size that is shown of a volume changes to what is true.
    ListSize { volume: String },
    /// A droplet notices a change of its devices.
    Device { volume: String, effect: Effect },
    /// A snapshot's billable size becomes known.
    Sized { snapshot: String },
    /// A deleted volume vanishes from get and list.
    Forget { volume: String },
}

impl Cloud {
    /// An account with droplets and nothing else.
    pub fn new(config: &SimConfig) -> Cloud {
        let droplets = config.droplets.iter().map(|spec| (spec.id, new_droplet(spec))).collect();
        Cloud {
            rules: config.rules.clone(),
            regions: config.regions.iter().cloned().collect(),
            regions_without_storage: config.regions_without_storage.iter().cloned().collect(),
            droplets,
            volumes: BTreeMap::new(),
            deleted: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            last_snapshot: BTreeMap::new(),
            actions: BTreeMap::new(),
            tags: BTreeSet::new(),
            effects: Vec::new(),
            timeline: BTreeMap::new(),
            next: 0,
        }
    }

    /// Lets everything happen that is due by `now`, in order.
    pub fn tick(&mut self, now: Moment) {
        while let Some(entry) = self.timeline.first_entry() {
            let (at, _) = *entry.key();
            if at > now {
                return;
            }
            let event = entry.remove();
            self.happen(at, event);
        }
    }

    /// When the next thing will happen by itself.
    pub fn next_due(&self) -> Option<Moment> {
        self.timeline.keys().next().map(|(at, _)| *at)
    }

    /// Hands over the work on files and devices that has become due.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The rules in force.
    pub fn rules_mut(&mut self) -> &mut Rules {
        &mut self.rules
    }

    /// A droplet that has not been destroyed.
    ///
    /// # Errors
    /// [`Refusal::NOT_FOUND`].
    pub fn droplet(&self, id: u64) -> Result<&Droplet, Refusal> {
        self.droplets.get(&id).filter(|droplet| !droplet.is_destroyed).ok_or(Refusal::NOT_FOUND)
    }

    /// All droplets that have not been destroyed.
    pub fn droplets(&self) -> Vec<Droplet> {
        self.droplets.values().filter(|droplet| !droplet.is_destroyed).cloned().collect()
    }

    /// Ids of the volumes that are attached to a droplet.
    pub fn volume_ids(&self, droplet: u64) -> Vec<String> {
        self.volumes
            .values()
            .filter(|volume| volume.attached_to == Some(droplet))
            .map(|volume| volume.id.clone())
            .collect()
    }

    /// Ids of the volumes that a droplet's own record shows.
    pub fn recorded_ids(&self, droplet: u64) -> Vec<String> {
        let is_recorded = |volume: &&Volume| volume.recorded_on == Some(droplet);
        self.volumes.values().filter(is_recorded).map(|volume| volume.id.clone()).collect()
    }

    /// A new droplet, or the old one again under a number that was destroyed.
    pub fn add_droplet(&mut self, spec: &DropletSpec) {
        self.droplets.insert(spec.id, new_droplet(spec));
    }

    /// Changes one droplet in place.
    pub fn change_droplet(&mut self, id: u64, change: impl FnOnce(&mut Droplet)) {
        let droplet = self.droplets.get_mut(&id).expect("the test names a droplet of its own");
        change(droplet);
    }

    /// Destroys a droplet: 404 at once, its volumes are let go by detach actions that take their time, or, if so switched,
    /// at once and without an action.
    pub fn destroy_droplet(&mut self, now: Moment, id: u64, twists: impl Fn(&str) -> Twists) {
        self.change_droplet(id, |droplet| droplet.is_destroyed = true);
        for volume in self.volume_ids(id) {
            if self.rules.switches.destroyed_leave_no_action {
                self.let_go(now, &volume, false);
                continue;
            }
            let lag = self.rules.times.destroyed_release_lag;
            if lag.is_zero() {
                self.start_detach(now, &volume, id, twists(&volume));
            } else {
                let twists = twists(&volume);
                self.schedule(now + lag, Event::Release { volume, droplet: id, twists });
            }
        }
    }

    pub(super) fn schedule(&mut self, at: Moment, event: Event) {
        let seq = self.next_number();
        self.timeline.insert((at, seq), event);
    }

    /// Drops what was to happen and has been overtaken.
    pub(super) fn unschedule(&mut self, is_overtaken: impl Fn(&Event) -> bool) {
        self.timeline.retain(|_, event| !is_overtaken(event));
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Ids look like UUID version 1 and grow, so that the order of ids is the order of creation.
    pub(super) fn new_id(&mut self) -> String {
        let number = self.next_number();
        format!("{number:08x}-8f00-11f0-9a11-0a58ac14d1e2")
    }

    fn happen(&mut self, at: Moment, event: Event) {
        match event {
            Event::End { action } => self.end_action(at, action),
            Event::List { volume } => {
                if let Some(volume) = self.volumes.get_mut(&volume) {
                    volume.listed_on = volume.attached_to;
                }
            }
            Event::Record { volume } => {
                if let Some(volume) = self.volumes.get_mut(&volume) {
                    volume.recorded_on = volume.attached_to;
                }
            }
            Event::Release { volume, droplet, twists } => {
                if self.volumes.get(&volume).is_some_and(|volume| volume.attached_to == Some(droplet)) {
                    self.start_detach(at, &volume, droplet, twists);
                }
            }
            Event::ListSize { volume } => {
                if let Some(volume) = self.volumes.get_mut(&volume) {
                    volume.listed_gigabytes = volume.size_gigabytes;
                }
            }
            Event::Device { volume: _, effect } => self.effects.push(effect),
            Event::Sized { snapshot } => self.size_snapshot(&snapshot),
            Event::Forget { volume } => {
                self.deleted.remove(&volume);
            }
        }
    }
}

fn new_droplet(spec: &DropletSpec) -> Droplet {
    Droplet {
        id: spec.id,
        name: spec.name.clone(),
        region: spec.region.clone(),
        status: DropletStatus::Active,
        held_until: Moment::ZERO,
        is_destroyed: false,
        metadata_down_until: Moment::ZERO,
        metadata_delay: Duration::ZERO,
        address: spec.address,
        has_gpu: spec.has_gpu,
    }
}
