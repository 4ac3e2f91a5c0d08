//! What was found to have a disk or to use a mount, in the words of a message.
//!
//! Owns the text for each kind of holder, with what ends it, and what is said when nothing was found.

use std::fmt;
use std::path::PathBuf;

use crate::host::command::shell_quoted;
use crate::host::holders::process::{Place, Process};

/// How many holders a message names.
const MOST_NAMED: usize = 4;

/// One thing that has a disk or uses a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The disk's file system is mounted where this program does not see it.
    Mounted {
        /// Where, as it is seen there.
        at: PathBuf,
        /// A process that sees it there.
        by: Process,
        /// Whether that is the droplet's own mount namespace and not that of a container.
        is_host: bool,
    },
    /// Something is mounted below the mount.
    Below {
        /// Where.
        at: PathBuf,
        /// Its kind, as the kernel names it.
        fstype: String,
    },
    /// A process has a file open, or the disk itself.
    Open {
        /// The file, as the process sees it.
        path: PathBuf,
        /// The process.
        by: Process,
    },
    /// A process has the disk itself open, perhaps for itself alone.
    Node {
        /// The disk's node, as the process sees it.
        path: PathBuf,
        /// The process.
        by: Process,
    },
    /// A process has a file open in a mount that is in no mount table any more, which may be one of the disk.
    Detached {
        /// The file, from the root of that mount.
        path: PathBuf,
        /// The process.
        by: Process,
    },
    /// A process uses a place in it.
    Place {
        /// How.
        place: Place,
        /// Where, as the process sees it.
        path: PathBuf,
        /// The process.
        by: Process,
    },
    /// Another device is made of the disk.
    Device {
        /// The kernel's name for it.
        name: String,
        /// The device mapper's.
        mapped: Option<String>,
    },
    /// A loop device shows the disk, or a file on it.
    Loop {
        /// The kernel's name for it.
        name: String,
        /// What it shows.
        file: PathBuf,
    },
    /// The disk, or a file on it, is swap space.
    Swap(PathBuf),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Mounted { at, by, is_host } => {
                let space =
                    if *is_host { "the droplet's own mount namespace, as of" } else { "the mount namespace of" };
                let (at, pid) = (shell_quoted(at), by.pid);
                write!(f, "it is mounted at {at} in {space} {by} (`nsenter -t {pid} -m umount {at}` ends that)")
            }
            Holder::Below { at, fstype } => {
                let at = shell_quoted(at);
                write!(f, "{fstype} is mounted below it, at {at} (`umount {at}` ends that)")
            }
            Holder::Open { path, by } => write!(f, "{by} has {} open", shell_quoted(path)),
            Holder::Node { path, by } => write!(f, "{by} has {} open, perhaps for itself alone", shell_quoted(path)),
            Holder::Detached { path, by } => {
                let path = shell_quoted(path);
                write!(f, "{by} has {path} open in a mount that was taken away lazily, perhaps of this disk")
            }
            Holder::Place { place, path, by } => write!(f, "{by} has {place} at {}", shell_quoted(path)),
            Holder::Device { name, mapped: None } => {
                write!(f, "{name} is made of it (`mdadm --stop /dev/{name}` ends that for RAID)")
            }
            Holder::Device { name, mapped: Some(mapped) } => write!(
                f,
                "{name} ({0}) is made of it (`vgchange -an` ends that for LVM, `dmsetup remove {0}` for the rest)",
                shell_quoted(mapped)
            ),
            Holder::Loop { name, file } => {
                write!(f, "{name} shows {} (`losetup -d /dev/{name}` ends that)", shell_quoted(file))
            }
            Holder::Swap(path) => {
                let path = shell_quoted(path);
                write!(f, "{path} is swap space (`swapoff {path}` ends that)")
            }
        }
    }
}

impl Holder {
    /// Whether this is certainly one.
    fn is_certain(&self) -> bool {
        match self {
            Holder::Node { .. } | Holder::Detached { .. } => false,
            Holder::Mounted { .. }
            | Holder::Below { .. }
            | Holder::Open { .. }
            | Holder::Place { .. }
            | Holder::Device { .. }
            | Holder::Loop { .. }
            | Holder::Swap(_) => true,
        }
    }
}

/// What was found, and how far the search could see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holders {
    pub(super) found: Vec<Holder>,
    /// Whether all processes of the machine were seen.
    pub(super) sees_all: bool,
    /// Whether the system did not let this process look at some of them.
    pub(super) hides_some: bool,
    /// Whether the search was ended before it was through.
    pub(super) is_cut_short: bool,
    /// The command that shows the users of a mount, when they were looked for, and not who has the disk.
    pub(super) of_users: Option<String>,
    /// A command that shows on the droplet what is not seen from here.
    pub(super) command: String,
}

impl Holders {
    /// Whether every process of the machine could be looked at: what is not found is not there.
    #[must_use]
    pub(crate) fn saw_all(&self) -> bool {
        self.sees_all && !self.hides_some
    }

    /// Each thing that was found.
    #[must_use]
    pub(crate) fn found(&self) -> &[Holder] {
        &self.found
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, holder) in self.found.iter().take(MOST_NAMED).enumerate() {
            write!(f, "{}{holder}", if at == 0 { "" } else { ", and " })?;
        }
        let more = self.found.len().saturating_sub(MOST_NAMED);
        if more > 0 {
            write!(f, ", and {more} more")?;
        }
        if self.found.iter().any(Holder::is_certain) {
            return Ok(());
        }
        f.write_str(if self.found.is_empty() { "" } else { "; besides, " })?;
        self.say_where_to_look(f)
    }
}

impl Holders {
    fn say_where_to_look(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = &self.command;
        if let Some(of_users) = &self.of_users {
            let why = if self.sees_all { "" } else { ", as this plugin sees only the processes of its own container" };
            return write!(f, "who uses it is not seen from here{why}; on the droplet, {of_users} shows it");
        }
        match (self.sees_all, self.is_cut_short) {
            (false, _) => write!(
                f,
                "what uses it is not seen from here, as this plugin sees only the processes of its own container; on the \
                 droplet, {command} shows whose mount namespaces have it (then `nsenter -t PID -m umount PATH`)"
            ),
            (true, true) => write!(
                f,
                "there are too many processes to look at all of them; {command} shows whose mount namespaces have it (then \
                 `nsenter -t PID -m umount PATH`)"
            ),
            (true, false) => write!(
                f,
                "no mount namespace has it mounted; perhaps its file system was frozen (`fsfreeze \
                 -f`) and unmounted since, which ends when it is mounted by hand and thawed with `fsfreeze -u`, or files are \
                 open in a mount of it that was taken away lazily (`umount -l`); {command} shows when it is mounted again"
            ),
        }
    }
}
