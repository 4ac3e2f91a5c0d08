//! What this machine can do with a disk: find it, look at it, make, check, mount and grow a file system on it.
//!
//! In Linux words only. Functions named `observe_` change nothing; those named `apply_` change one thing and take the
//! volume's guard first. What ought to be done is decided by the caller.

pub mod bind;
pub mod capabilities;
pub(crate) mod capture;
pub mod command;
mod confine;
pub mod device;
pub mod ext_errors;
pub(crate) mod external_volumes;
pub(crate) mod flush;
pub(crate) mod freeze;
pub mod fsck;
pub mod grow;
pub(crate) mod holders;
pub(crate) mod id_link;
pub mod inventory;
pub mod io_counters;
pub(crate) mod kernel_log;
pub mod luks;
pub mod mkfs;
pub mod mkfs_options;
pub mod mount;
pub mod mount_health;
pub mod mount_options;
pub mod mount_report;
pub mod mount_table;
pub(crate) mod mount_words;
pub(crate) mod mountable;
pub(crate) mod mountinfo;
pub(crate) mod owner;
pub(crate) mod path_lock;
pub(crate) mod presence;
pub mod probe;
pub(crate) mod propagation;
pub(crate) mod read_only;
pub(crate) mod release;
pub(crate) mod release_mark;
pub(crate) mod selinux_label;
pub(crate) mod superblock_check;
pub(crate) mod tools;
pub(crate) mod under_mount;
pub(crate) mod xfs_features;

use std::time::Duration;

/// Where the running kernel tells its version.
const KERNEL_RELEASE: &str = "/proc/sys/kernel/osrelease";

/// How long blkid may take to look at a disk.
pub const PROBE_BUDGET: Duration = Duration::from_secs(10);
/// How long a disk may be in somebody else's use before it counts as in use: droplet images have a rule that mounts a new
/// volume for a short look.
pub const CLAIM_BUDGET: Duration = Duration::from_secs(15);
/// How long such a look takes, and a little more.
pub const LOOK_BUDGET: Duration = Duration::from_secs(2);
/// How long making a file system may take. Nothing is written to a disk but the file system itself.
pub const FORMAT_BUDGET: Duration = Duration::from_secs(60);
/// How long checking a file system may take, as far as the call's time lasts: a replayed journal takes a second, a full
/// check of a large and full file system may take longer than any call.
pub const CHECK_BUDGET: Duration = Duration::from_secs(90);
/// How long growing a file system may take.
pub const GROW_BUDGET: Duration = Duration::from_secs(60);
/// Longer than any call: what is waited for as long as the call's time lasts.
pub const CALL_BUDGET: Duration = Duration::from_secs(600);
