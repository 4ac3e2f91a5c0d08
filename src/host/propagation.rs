//! Whether what is mounted here is seen by the droplet, and so by the tasks.
//!
//! Owns the reading of mount propagation. A plugin in a container has a mount namespace of its own. What it mounts reaches the
//! host's only through a mount that both share; through any other the call succeeds, the task finds an empty directory, and
//! what it writes ends on the droplet's own disk.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::host::holders::{is_namespace_of_parent, is_own_namespace_of_host, sees_all_processes};
use crate::host::mount_table::{observe_mounts, observe_mounts_of};
use crate::host::mountinfo::{Mount, MountTable};

/// The table of the process that was first, whose mount namespace is the droplet's own.
const TABLE_OF_HOST: &str = "/proc/1/mountinfo";

/// Where this program is, seen from the droplet's own mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Namespace {
    /// In it.
    Host,
    /// In another one.
    Apart {
        /// The peer groups of the droplet's own mounts; `None` where those are not seen.
        of_host: Option<BTreeSet<String>>,
        /// Whether it is that of whoever started this program, who is no container: a Nomad whose unit has a mount namespace
        /// of its own.
        is_of_parent: bool,
    },
}

/// Whether what is mounted in a mount is seen by the droplet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Yes,
    No,
    /// It is a copy that gets what is mounted elsewhere and has copies of its own, of which nothing says whose they are.
    Unclear,
    /// No, but by whoever started this program, and so by the tasks that he starts by himself.
    Parent,
}

/// Sees that what is mounted at a path reaches the droplet's own mount namespace. `path` is real; it may be missing, and it
/// may be mounted at already.
///
/// # Errors
/// [`Error::HostUnfit`] when it does not, with the cure.
/// Source: mount_namespaces(7), "Shared subtrees"; Nomad's `plugin_supervisor_hook.go`, which asks for "bidirectional".
pub(crate) fn check_reaches_host(mounts: &MountTable, path: &Path, unclear: &UnclearMounts) -> Result<()> {
    let Some(holding) = path.parent().and_then(|parent| mounts.holding(parent)) else { return Ok(()) };
    match plan_reach(&observe_namespace()?, holding) {
        Reach::Yes => Ok(()),
        Reach::Unclear => {
            unclear.warn_once(holding, "that mount is a copy of the droplet's and shared with others");
            Ok(())
        }
        Reach::Parent => {
            unclear.warn_once(
                holding,
                "the plugin is in a mount namespace that is not the droplet's, with the program that started it",
            );
            Ok(())
        }
        Reach::No => Err(not_reached(path, holding)),
    }
}

/// The mounts that were warned of, because it is not certain who sees what is mounted in them.
#[derive(Debug, Default)]
pub(crate) struct UnclearMounts(Mutex<BTreeSet<PathBuf>>);

impl UnclearMounts {
    fn warn_once(&self, holding: &Mount, why: &str) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(holding.target.clone()) {
            log::warn!(
                "cannot tell whether all tasks see what is mounted below {}: {why}; if a task finds its volume empty: {CURE}",
                holding.target.display()
            );
        }
    }
}

/// Whether nothing that is mounted here can reach the droplet.
///
/// # Errors
/// [`Error::Io`] when the mount table cannot be read.
pub(crate) fn observe_nothing_reaches() -> Result<bool> {
    let (mounts, namespace) = (observe_mounts()?, observe_namespace()?);
    Ok(mounts.iter().all(|mount| plan_reach(&namespace, mount) == Reach::No))
}

/// Says in the log, at the start, when nothing that is mounted here can reach the droplet.
pub(crate) fn tell_when_nothing_reaches() {
    // A table that cannot be read fails each call, and says why.
    if observe_nothing_reaches().unwrap_or(false) {
        log::error!(
            "no mount of this plugin's mount namespace is shared with the droplet, so no task would see a volume, and none is \
             staged or published: {CURE}"
        );
    }
}

/// What makes mounts reach the droplet.
pub(crate) const CURE: &str = "in Nomad, the block csi_plugin shares its directories by itself, but only while mounts of the droplet are \
                    shared (`mount --make-rshared /` on the droplet; systemd does it at boot); in Docker, give the directory \
                    with `--volume=DIR:DIR:rshared`; a plugin that is no container must not run in a mount namespace of its own \
                    (PrivateMounts=, PrivateTmp=, ProtectSystem= of Nomad's unit in systemd)";

fn not_reached(path: &Path, holding: &Mount) -> Error {
    Error::HostUnfit(format!(
        "a volume mounted at {} would not reach the droplet, and the task would write to the droplet's own disk: the plugin has \
         a mount namespace of its own, and {} is not shared with the droplet's; {CURE}",
        path.display(),
        holding.target.display()
    ))
}

/// Decides whether what is mounted in a mount is seen by the droplet. Pure.
fn plan_reach(namespace: &Namespace, holding: &Mount) -> Reach {
    let (of_host, is_of_parent) = match namespace {
        Namespace::Host => return Reach::Yes,
        Namespace::Apart { of_host, is_of_parent } => (of_host, *is_of_parent),
    };
    let not_shared = if is_of_parent { Reach::Parent } else { Reach::No };
    let Some(group) = holding.peer_group() else { return not_shared };
    // What only gets what others mount was cut off from the droplet, and shared again with nobody of it.
    let is_cut_off = holding.propagation.iter().any(|tag| tag.starts_with("master:"));
    match (is_cut_off, of_host) {
        (false, _) => Reach::Yes,
        (true, Some(of_host)) if of_host.contains(group) => Reach::Yes,
        (true, Some(_)) => not_shared,
        (true, None) => Reach::Unclear,
    }
}

fn observe_namespace() -> Result<Namespace> {
    if !sees_all_processes() {
        return Ok(Namespace::Apart { of_host: None, is_of_parent: false });
    }
    if is_own_namespace_of_host() {
        return Ok(Namespace::Host);
    }
    let of_host = match observe_mounts_of(TABLE_OF_HOST) {
        Ok(table) => Some(table.iter().filter_map(Mount::peer_group).map(str::to_owned).collect()),
        // A container may see all processes and be allowed to look at none.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => None,
        // What fails once must not pass for a mount that reaches the droplet.
        Err(err) => return Err(err),
    };
    Ok(Namespace::Apart { of_host, is_of_parent: is_namespace_of_parent() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_reaches_the_droplet_only_through_one_that_both_share() {
        let apart = |groups: Option<&[&str]>| Namespace::Apart {
            of_host: groups.map(|groups| groups.iter().map(|group| (*group).to_owned()).collect()),
            is_of_parent: false,
        };
        let with_parent = || Namespace::Apart { of_host: Some(BTreeSet::from(["1".to_owned()])), is_of_parent: true };
        for (tags, namespace, want) in [
            ("", Namespace::Host, Reach::Yes),
            ("master:1 ", Namespace::Host, Reach::Yes),
            // In a container: Docker's "rprivate", "rslave" and "rshared".
            ("", apart(None), Reach::No),
            ("master:1 ", apart(None), Reach::No),
            ("unbindable ", apart(None), Reach::No),
            ("shared:1 ", apart(None), Reach::Yes),
            ("shared:9 master:1 ", apart(None), Reach::Unclear),
            // In the unit of a Nomad that systemd gave a mount namespace of its own.
            ("shared:9 master:1 ", apart(Some(&["1", "2"])), Reach::No),
            ("shared:9 master:1 ", apart(Some(&["1", "9"])), Reach::Yes),
            ("", apart(Some(&["1"])), Reach::No),
            ("shared:1 ", apart(Some(&["1"])), Reach::Yes),
            // With whom Docker has it, whose namespace need not be that of the droplet's first process.
            ("shared:9 ", apart(Some(&["1"])), Reach::Yes),
            ("", with_parent(), Reach::Parent),
            ("shared:9 master:1 ", with_parent(), Reach::Parent),
            ("shared:1 ", with_parent(), Reach::Yes),
        ] {
            let table = MountTable::parse(format!("9 1 8:0 / /m rw {tags}- ext4 /dev/vda rw\n").as_bytes()).unwrap();
            assert_eq!(plan_reach(&namespace, table.iter().next().unwrap()), want, "{tags:?} {namespace:?}");
        }
    }
}
