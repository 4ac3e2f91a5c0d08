//! The changes that this process makes to the world, each told in one line of the log, for an audit.
//!
//! Owns the names of the changes, and the memory of what the volumes are called. A name, once given, keeps its meaning: others count on it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::kv::{Key, Source, Value, VisitSource};
use log::{Level, Record, logger, max_level};

use crate::activity::{About, current_call};

/// How many names of volumes are remembered: more than most clusters use at a time. Beyond it all are forgotten.
const MOST_NAMES: usize = 128;

static NAMES: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// What was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A volume was made at DigitalOcean.
    Created,
    /// A volume was deleted at DigitalOcean.
    Deleted,
    /// A volume was attached to a droplet.
    Attached,
    /// A volume was detached from a droplet.
    Detached,
    /// A volume is about to be detached from a droplet that did not give it up, as that is off, gone, or `--takeover` is set.
    TakenOver,
    /// A volume was made larger at DigitalOcean.
    Grown,
    /// A tag was put on a volume.
    Tagged,
    /// A tag was taken off a volume.
    Untagged,
    /// A snapshot was made.
    SnapshotCreated,
    /// A snapshot was deleted.
    SnapshotDeleted,
    /// A file system was made on a disk.
    Formatted,
    /// A disk was made an encrypted volume.
    Encrypted,
    /// A file system was repaired before it was mounted.
    Repaired,
    /// A file system was made as large as its disk.
    FileSystemGrown,
    /// A file system was mounted.
    Mounted,
    /// A mount was taken away.
    Unmounted,
    /// A volume is shown to a task.
    Published,
    /// A volume is shown to a task no longer.
    Unpublished,
}

impl Change {
    /// All of them.
    pub const ALL: [Change; 18] = [
        Change::Created,
        Change::Deleted,
        Change::Attached,
        Change::Detached,
        Change::TakenOver,
        Change::Grown,
        Change::Tagged,
        Change::Untagged,
        Change::SnapshotCreated,
        Change::SnapshotDeleted,
        Change::Formatted,
        Change::Encrypted,
        Change::Repaired,
        Change::FileSystemGrown,
        Change::Mounted,
        Change::Unmounted,
        Change::Published,
        Change::Unpublished,
    ];

    /// The name in `event=`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Change::Created => "created",
            Change::Deleted => "deleted",
            Change::Attached => "attached",
            Change::Detached => "detached",
            Change::TakenOver => "taken_over",
            Change::Grown => "grown",
            Change::Tagged => "tagged",
            Change::Untagged => "untagged",
            Change::SnapshotCreated => "snapshot_created",
            Change::SnapshotDeleted => "snapshot_deleted",
            Change::Formatted => "formatted",
            Change::Encrypted => "encrypted",
            Change::Repaired => "repaired",
            Change::FileSystemGrown => "file_system_grown",
            Change::Mounted => "mounted",
            Change::Unmounted => "unmounted",
            Change::Published => "published",
            Change::Unpublished => "unpublished",
        }
    }

    fn level(self) -> Level {
        match self {
            // Somebody should look why that was needed.
            Change::TakenOver | Change::Repaired => Level::Warn,
            Change::Created
            | Change::Deleted
            | Change::Attached
            | Change::Detached
            | Change::Grown
            | Change::Tagged
            | Change::Untagged
            | Change::SnapshotCreated
            | Change::SnapshotDeleted
            | Change::Formatted
            | Change::Encrypted
            | Change::FileSystemGrown
            | Change::Mounted
            | Change::Unmounted
            | Change::Published
            | Change::Unpublished => Level::Info,
        }
    }
}

/// Tells of a change that was made, in the log. What the call is about is added, where the
/// change itself does not say it.
pub fn tell_change(change: Change, text: impl fmt::Display, about: About) {
    log_change(change, &text, &completed(about, current_call().map(|call| call.about()).unwrap_or_default()));
}

/// What a change is about, with what its call is about, and with the name of its volume if that is known.
fn completed(about: About, asked: About) -> About {
    let mut whole = about;
    for (key, value) in asked.iter() {
        if whole.get(key).is_none() {
            whole = whole.with(key, value);
        }
    }
    if whole.get("name").is_none()
        && let Some(name) = whole.get("volume").and_then(|volume| names().get(volume).cloned())
    {
        whole = whole.with("name", name);
    }
    whole
}

/// Takes in what a volume is called.
pub(super) fn remember_name(volume: &str, name: &dyn fmt::Display) {
    let mut names = names();
    if names.len() >= MOST_NAMES && !names.contains_key(volume) {
        names.clear();
    }
    names.insert(volume.to_owned(), name.to_string());
}

fn names() -> MutexGuard<'static, BTreeMap<String, String>> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The keys and values of a line, `event` first.
struct Keys<'a> {
    change: Change,
    about: &'a About,
}

impl Source for Keys<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), log::kv::Error> {
        visitor.visit_pair(Key::from_str("event"), Value::from(self.change.name()))?;
        self.about.iter().try_for_each(|(key, value)| visitor.visit_pair(Key::from_str(key), Value::from(value)))
    }
}

fn log_change(change: Change, text: &dyn fmt::Display, about: &About) {
    let level = change.level();
    if level <= max_level() {
        let mut record = Record::builder();
        record.level(level).target(module_path!()).module_path_static(Some(module_path!()));
        let keys = Keys { change, about };
        logger().log(&record.key_values(&keys).args(format_args!("{text}")).build());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_change_has_a_name_of_its_own() {
        assert_eq!(Change::ALL.map(Change::name).into_iter().collect::<BTreeSet<_>>().len(), Change::ALL.len());
    }

    /// One test, as the names are the program's own: what fills them up would take the name from another test's hands.
    #[test]
    fn a_change_has_what_its_call_is_about_and_the_name_that_was_learnt_before_and_names_are_bounded() {
        let about = |volume: &str| About::default().with("volume", volume);
        remember_name("named", &"blog");
        let whole = completed(about("named"), about("asked").with("droplet", 7));
        assert_eq!(whole.to_string(), "volume=named droplet=7 name=blog");
        assert_eq!(completed(about("unnamed"), About::default()).to_string(), "volume=unnamed");
        for number in 0..2 * MOST_NAMES {
            remember_name(&number.to_string(), &"x");
        }
        assert!(names().len() <= MOST_NAMES);
    }
}
