//! What the program needs for what it does by itself, between the calls.
//!
//! Owns its budgets of time, and what has to be known before it is certain where Nomad has the directories of its allocations:
//! whoever is taken for gone by it loses its mounts.

use std::path::PathBuf;
use std::time::Duration;

/// How long a node call that lacks its disk waits for DigitalOcean to attach it, where this program may have detached it.
pub const ATTACH_BUDGET: Duration = Duration::from_secs(50);
/// How long detaching a volume that nobody uses may take. Node calls for it wait meanwhile, no longer than [`LOCK_PATIENCE`](crate::config::LOCK_PATIENCE).
pub const RELEASE_UNUSED_BUDGET: Duration = Duration::from_secs(30);
/// For how long a detach may still be carried out after it was sent, when its answer was lost: nobody begins to use the disk before.
/// A request is given up here after 20 s, and servers on the way commonly give one up after 30 to 60 s. It leaves a node call enough of [`NODE_BUDGET`](crate::config::NODE_BUDGET) for its own work.
pub const DETACH_IN_FLIGHT: Duration = Duration::from_secs(60);
/// How long the end of the program waits for what it does by itself, when the calls have ended.
pub const UPKEEP_END: Duration = Duration::from_secs(10);
/// How long all of the program's end may take. The job files' `kill_timeout` is 100 s.
pub const END_BUDGET: Duration = Duration::from_secs(95);
/// How long writing what is in memory to the disks may take at start and at the end. Clients of Nomad allow a task 5 s by default,
/// and most of what can be written is written by then.
pub const FLUSH_BUDGET: Duration = Duration::from_secs(10);

/// Where Nomad has a directory for each allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocations {
    /// The directory of all of them.
    pub directory: PathBuf,
    /// The allocation in which this program runs: a directory without it is not the right one.
    pub own: String,
}

/// The directory in which Nomad has a directory for each allocation, this program's own among them. A task without a file system
/// of its own, as raw_exec starts it, is told the real path of its own one; in a container the path is another one. Pure.
///
/// Source: `NOMAD_ALLOC_DIR` and `NOMAD_ALLOC_ID` in Nomad's "Runtime Environment Settings".
pub(super) fn plan_allocations(
    given: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<Allocations> {
    let own = variable("NOMAD_ALLOC_ID").filter(|own| !own.is_empty())?;
    if let Some(directory) = given {
        return Some(Allocations { directory, own });
    }
    let directory = PathBuf::from(variable("NOMAD_ALLOC_DIR")?);
    let of_own = directory.parent().filter(|of_own| of_own.is_absolute())?;
    of_own.file_name().filter(|name| **name == *own)?;
    Some(Allocations { directory: of_own.parent()?.to_owned(), own })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_the_allocations_is_known_only_where_the_own_one_is_seen_in_it() {
        let told = |given: Option<&str>, directory: &str, id: &str| {
            let variable = |name: &str| match name {
                "NOMAD_ALLOC_DIR" => Some(directory.to_owned()),
                "NOMAD_ALLOC_ID" => Some(id.to_owned()),
                _ => None,
            };
            plan_allocations(given.map(PathBuf::from), variable)
        };
        let all = |directory: &str| Some(Allocations { directory: directory.into(), own: "1-2".to_owned() });
        assert_eq!(told(None, "/opt/nomad/alloc/1-2/alloc", "1-2"), all("/opt/nomad/alloc"));
        assert_eq!(told(Some("/all"), "/alloc", "1-2"), all("/all"));
        assert_eq!(told(Some("/all"), "/alloc", ""), None);
        for (directory, id) in
            [("/alloc", "1-2"), ("/opt/nomad/alloc/3/alloc", "1-2"), ("/a//alloc", ""), ("1-2/alloc", "1-2"), ("", "")]
        {
            assert_eq!(told(None, directory, id), None, "{directory} {id}");
        }
        assert_eq!(plan_allocations(Some("/all".into()), |_| None), None);
    }
}
