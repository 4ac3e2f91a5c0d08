//! What a test may choose before the start, and the rules it may change afterwards.
//!
//! Owns plain values and their defaults. Facts that DigitalOcean has never written down are [`Switches`]: a driver must
//! be right under every setting of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Everything [`super::Sim::start`] needs to know.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The token of the account.
    pub token: String,
    /// The token of another account, which has nothing.
    pub other_token: Option<String>,
    /// Region slugs that have block storage.
    pub regions: Vec<String>,
    /// Region slugs without block storage: creating a volume there is refused.
    pub regions_without_storage: Vec<String>,
    /// The droplets of the account at the start.
    pub droplets: Vec<DropletSpec>,
    /// What stands behind a volume.
    pub backing: Backing,
    /// Limits, times and switches, which [`super::Sim::change_rules`] can change later.
    pub rules: Rules,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            token: "dop_v1_simulated".to_owned(),
            other_token: None,
            regions: vec!["fra1".to_owned()],
            regions_without_storage: Vec::new(),
            droplets: vec![DropletSpec::new(3_164_444, "node-1", "fra1")],
            backing: Backing::None,
            rules: Rules::default(),
        }
    }
}

/// One droplet of the account.
#[derive(Debug, Clone)]
pub struct DropletSpec {
    /// The number that is its identity everywhere.
    pub id: u64,
    /// Its host name.
    pub name: String,
    /// The slug of its region.
    pub region: String,
    /// From where it asks, if it has a network of its own: its metadata service then knows it by that.
    pub address: Option<IpAddr>,
    /// Whether it has a GPU. Such droplets are listed apart (`droplets_list.yml`, `type`).
    pub has_gpu: bool,
}

impl DropletSpec {
    /// Names a droplet in one line.
    pub fn new(id: u64, name: &str, region: &str) -> DropletSpec {
        DropletSpec { id, name: name.to_owned(), region: region.to_owned(), address: None, has_gpu: false }
    }
}

/// What stands behind a volume.
#[derive(Debug, Clone)]
pub enum Backing {
    /// Nothing: only the API is simulated, and no root is needed.
    None,
    /// A sparse file per volume below `dir`, a loop device per attachment. Needs root.
    Loop {
        /// An existing directory; the caller removes it after [`super::Sim::close`].
        dir: PathBuf,
    },
    /// A sparse file per volume below `dir`, and for each attachment a SCSI disk of the virtual machine that the droplet is.
    /// Its monitor is expected at [`super::Sim::monitor`].
    Machines {
        /// As with [`Backing::Loop`].
        dir: PathBuf,
    },
}

/// Limits, times and switches that may change while the simulator runs.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// How long things take.
    pub times: Times,
    /// How much is allowed.
    pub limits: Limits,
    /// What nobody knows for certain.
    pub switches: Switches,
}

/// How long things take. The defaults are short; real attaches take 4 to 5 s, detaches 3 to 4 s (rexray issue 1368).
#[derive(Debug, Clone)]
pub struct Times {
    /// From the attach reply to `completed`.
    pub attach: Duration,
    /// From the detach reply to `completed`.
    pub detach: Duration,
    /// From the resize reply to `completed`.
    pub resize: Duration,
    /// From `completed` of an attach or a resize until the droplet sees it. Users wait up to 60 s for it.
    pub device_lag: Duration,
    /// From the end of a droplet until the detaches begin that follow it.
    pub destroyed_release_lag: Duration,
    /// How long a new volume is hidden from get and list.
    pub create_visible_after: Duration,
    /// How long a deleted volume is still shown by get and list.
    pub deleted_lingers: Duration,
    /// How long it is still shown by list alone.
    pub deleted_stays_listed: Duration,
    /// How long a new snapshot is hidden from get and lists.
    pub snapshot_visible_after: Duration,
    /// From the creation of a snapshot until its `size_gigabytes` is more than 0.
    pub snapshot_sizing: Duration,
}

impl Times {
    /// The same time for every kind of action, everything else at once.
    pub fn actions(time: Duration) -> Times {
        Times { attach: time, detach: time, resize: time, ..Times::default() }
    }
}

impl Default for Times {
    fn default() -> Times {
        let brief = Duration::from_millis(20);
        Times {
            attach: brief,
            detach: brief,
            resize: brief,
            device_lag: Duration::ZERO,
            destroyed_release_lag: Duration::ZERO,
            create_visible_after: Duration::ZERO,
            deleted_lingers: Duration::ZERO,
            deleted_stays_listed: Duration::ZERO,
            snapshot_visible_after: Duration::ZERO,
            snapshot_sizing: brief,
        }
    }
}

/// How much is allowed, with DigitalOcean's own numbers as defaults.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Volumes per droplet: 15 since 2024-08 (openapi PR 902), 7 before.
    pub attach: usize,
    /// `volume_limit` of the account: volumes in all regions; 0 means none (csi-digitalocean PR 73).
    pub volumes: usize,
    /// Sum of volume sizes in one region, in GiB.
    pub region_gigabytes: u64,
    /// The largest volume, in GiB (`volumeActions_post_byId.yml`).
    pub volume_gigabytes: u64,
    /// Snapshots per volume.
    pub snapshots_per_volume: usize,
    /// The least time between two snapshots of one volume (velero issue 6164).
    pub snapshot_interval: Duration,
    /// Requests in any 60 minutes (`description.yml`).
    pub requests_per_hour: usize,
    /// Requests in any 60 seconds (`description.yml`).
    pub requests_per_minute: usize,
    /// How the hour and the minute pass.
    pub window: RateWindow,
}

/// How the spans pass in which requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateWindow {
    /// Each request counts for a span of its own, as `description.yml` says of the hour.
    Sliding,
    /// All stop counting at a full minute, and at a full hour.
    Fixed,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            attach: 15,
            volumes: 100,
            region_gigabytes: 16_384,
            volume_gigabytes: 16_384,
            snapshots_per_volume: 25,
            snapshot_interval: Duration::from_secs(600),
            requests_per_hour: 5000,
            requests_per_minute: 250,
            window: RateWindow::Sliding,
        }
    }
}

/// What replies differ about, or what nobody has written down. `false` is the likelier answer in each case.
#[derive(Debug, Clone, Default)]
pub struct Switches {
    /// An attach to an unknown droplet is 422 instead of 404.
    pub unknown_droplet_is_422: bool,
    /// A duplicate name is `already_exists` instead of `conflict`.
    pub duplicate_name_says_already_exists: bool,
    /// Deleting an attached volume is refused with the long text.
    pub long_delete_attached_text: bool,
    /// A full droplet is refused with the text from before 2024-06.
    pub legacy_attach_limit_text: bool,
    /// Quota refusals are 429 instead of 403.
    pub quota_is_429: bool,
    /// Empty `droplet_ids` and `tags` are `null` instead of `[]`.
    pub empty_arrays_are_null: bool,
    /// A second attach to the same droplet starts another action instead of being refused.
    pub attach_again_is_accepted: bool,
    /// `resource_id` of an action is 0 instead of `null`.
    pub resource_id_is_zero: bool,
    /// `resource_type` of an action is `volume`, as documented, instead of `backend`, as seen.
    pub resource_type_is_volume: bool,
    /// The resize action calls itself `resize_volume` instead of `resize`.
    pub resize_type_is_resize_volume: bool,
    /// `meta.total` counts the account's volumes whatever the filter.
    pub total_ignores_filters: bool,
    /// `per_page` above 200 is refused instead of clamped.
    pub large_page_is_refused: bool,
    /// A restore to fewer GiB than the snapshot's is refused instead of given the snapshot's size.
    pub small_restore_is_refused: bool,
    /// Snapshots of one account may have the same name.
    pub duplicate_snapshot_names_are_accepted: bool,
    /// A destroyed droplet's volumes are detached without an action, and stay listed on it until they are moved again.
    pub destroyed_leave_no_action: bool,
    /// The token has no scope for tags: a create with tags is refused, as is whatever makes or puts on a tag, and replies
    /// leave tags out.
    pub token_lacks_tags: bool,
    /// The token has no `block_storage:update`: no tag is put on a volume that is there, nor taken off.
    pub token_lacks_volume_update: bool,
    /// The scopes that the token has, when it has not all of them.
    pub scopes: Option<super::scope::Scopes>,
    /// The link below `by-id` keeps only so many characters of the volume's name.
    pub link_name_cut_at: Option<usize>,
}

impl Switches {
    /// Whether replies show tags to the token.
    pub fn shows_tags(&self) -> bool {
        !self.token_lacks_tags && self.scopes.as_ref().is_none_or(|scopes| scopes.contains("tag:read"))
    }
}
