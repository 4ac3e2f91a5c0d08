//! Whether a mount still works.
//!
//! Owns the signs of a mount whose disk was pulled or whose file system was shut down, and what they prove together.
//! One sign proves nothing: a mount counts as dead only if two independent signs agree. If they contradict each other,
//! that is an error. It changes nothing, and does not decide what to do with such a mount.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::libc;

use crate::error::{Error, Result};
use crate::host::device::DevicePlaces;
use crate::host::device::number::{DeviceNumber, observe_node};
use crate::host::holders::command_for_users;
use crate::host::luks::mapper::observe_lost;
use crate::host::mount::observe_mounts;
use crate::host::mountinfo::Mount;
use crate::host::presence::observe_is_there;
use crate::host::under_mount;

/// How a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Alive,
    /// Its disk is gone: nothing can be read or written any more.
    DiskGone,
    /// Its disk is there, but the file system was shut down after an error and answers with nothing but errors.
    ShutDown,
    /// It shows a device node that was removed, while a disk has the node's number: that disk may be another one, or the
    /// same with a new node.
    NodeGone,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Health::Alive => "it works",
            Health::DiskGone => "its disk is gone",
            Health::ShutDown => "its file system was shut down after errors",
            Health::NodeGone => "its device node is gone, and its number may be another disk's by now",
        })
    }
}

/// Whether sysfs lists the disk under a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Listed {
    /// It does, and what lies below the disk too.
    Yes,
    /// The mount names no disk that could be looked for.
    Unnamed,
    /// It lists every disk but this one.
    No(Missing),
}

/// A disk that sysfs does not list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Missing {
    Numbered(DeviceNumber),
    Named(PathBuf),
}

/// What the node of a disk says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    /// It opens, so there is a disk.
    Opens,
    /// There is none where the kernel makes them, or it leads to nothing.
    Gone,
    /// There is none, but the kernel makes none here either.
    Untold,
}

/// Looks how a mount is. `mount` is what the table shows at its target, topmost.
///
/// A file system that is merely read-only after an error is alive. Nothing is written to find out, and nothing is read
/// from the disk that the kernel does not have in memory; only a file system that says itself that it was shut down is asked
/// to write what it has, which it then refuses.
///
/// # Errors
/// [`Error::Io`] when something that has to be seen cannot be, [`Error::MountBroken`] when what was seen is contradictory. In
/// both cases nothing is known, and the mount may be in use.
/// Source: `xfs_is_shutdown` (EIO for everything) and `ext4_forced_shutdown` (EIO for fsync, and the word `shutdown` among the
/// options in the mount table) in the kernel; sysfs(5), `dev/block`; `devtmpfs_delete_node` in `drivers/base/devtmpfs.c`.
pub(crate) fn observe_health(places: &DevicePlaces, mount: &Mount) -> Result<Health> {
    if mount.is_node() {
        return observe_node_health(places, mount);
    }
    let (listed, is_dead) = (observe_listed(places, mount)?, observe_is_dead(mount)?);
    let node = match &listed {
        Listed::No(disk) if !is_dead => observe_node_of(places, disk)?,
        Listed::No(_) | Listed::Yes | Listed::Unnamed => Node::Untold,
    };
    let unclear = || contradiction(mount, "sysfs does not list its disk, but nothing else says that it is gone");
    plan_health(&listed, is_dead, node).ok_or_else(unclear)
}

/// Decides how a file system is; `None`: the signs contradict each other. `node` counts where sysfs lists no disk. Pure.
fn plan_health(listed: &Listed, is_dead: bool, node: Node) -> Option<Health> {
    match (listed, is_dead, node) {
        (Listed::Yes | Listed::Unnamed, false, _) => Some(Health::Alive),
        (Listed::Yes | Listed::Unnamed, true, _) => Some(Health::ShutDown),
        (Listed::No(_), true, _) | (Listed::No(_), false, Node::Gone) => Some(Health::DiskGone),
        (Listed::No(_), false, Node::Opens | Node::Untold) => None,
    }
}

fn contradiction(mount: &Mount, what: &str) -> Error {
    let target = mount.target.display();
    Error::MountBroken(format!(
        "cannot tell whether the mount at {target} (device {}, {}) still works: {what}; it is left as it is. See what \
         `ls /sys/dev/block` and `dmesg` say of the disk, and end what uses the mount, which {} shows",
        mount.device,
        mount.source.display(),
        command_for_users(mount)
    ))
}

fn observe_listed(places: &DevicePlaces, mount: &Mount) -> Result<Listed> {
    let listed_of = |number: DeviceNumber| match observe_lost(places, number)? {
        Some(lower) => Ok(Listed::No(Missing::Named(places.nodes.join(lower)))),
        None => Ok(Listed::Yes),
    };
    let source = Path::new(&mount.source);
    match under_mount::observe_listed(places, mount)? {
        Some(number) if observe_is_there(&places.sysfs_of(number))? => listed_of(number),
        Some(number) => Ok(Listed::No(Missing::Numbered(number))),
        // Here the name of the disk has to do, where it is one that the kernel gave.
        None if mount.fstype == "btrfs" && source.parent() == Some(&places.nodes) => {
            Ok(Listed::No(Missing::Named(source.to_owned())))
        }
        // The device mapper's names are people's, and can be changed while a device is in use.
        None => Ok(Listed::Unnamed),
    }
}

/// Whether a file system answers with nothing but the errors of a dead one, which it is asked for twice.
fn observe_is_dead(mount: &Mount) -> Result<bool> {
    if mount.super_options.iter().any(|option| option == "shutdown") {
        return match ask(mount, flush)? {
            Some(_) => Ok(true),
            None => Err(contradiction(mount, "it says that it was shut down, but it can be written")),
        };
    }
    let Some(first) = ask(mount, open)? else { return Ok(false) };
    match ask(mount, open)? {
        Some(_) => Ok(true),
        None => Err(contradiction(mount, &format!("it answered once with {first:?}, and then as it should"))),
    }
}

/// The answer of a file system when it is that of a dead one.
fn ask(mount: &Mount, question: impl Fn(&Path) -> io::Result<()>) -> Result<Option<io::Error>> {
    match question(&mount.target) {
        Ok(()) => Ok(None),
        Err(error) if is_dead(&error) => Ok(Some(error)),
        Err(error) => Err(Error::io("examining", &mount.target)(error)),
    }
}

fn open(target: &Path) -> io::Result<()> {
    if std::fs::metadata(target)?.is_dir() { File::open(target).map(drop) } else { Ok(()) }
}

fn flush(target: &Path) -> io::Result<()> {
    File::open(target)?.sync_all()
}

fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::ESHUTDOWN | libc::ENXIO | libc::ENODEV))
}

/// A device node that was bound somewhere stays there when its disk goes, and then leads to nothing or, later, to another
/// disk that got the same number.
fn observe_node_health(places: &DevicePlaces, mount: &Mount) -> Result<Health> {
    let is_deleted = mount.is_removed_node();
    let node = std::fs::metadata(&mount.target).map_err(Error::io("examining", &mount.target))?;
    let Some(number) = DeviceNumber::of_node(&node) else {
        return Ok(if is_deleted { Health::NodeGone } else { Health::Alive });
    };
    let is_listed = observe_is_there(&places.sysfs_of(number))?;
    match (is_listed, is_deleted) {
        (true, false) => Ok(Health::Alive),
        (true, true) => Ok(Health::NodeGone),
        (false, true) => Ok(Health::DiskGone),
        (false, false) => match observe_opens(&mount.target)? {
            Node::Gone => Ok(Health::DiskGone),
            Node::Opens | Node::Untold => Err(contradiction(mount, "sysfs does not list its disk, but its node opens")),
        },
    }
}

/// Looks at the node of a disk that sysfs does not list.
fn observe_node_of(places: &DevicePlaces, disk: &Missing) -> Result<Node> {
    let found = match disk {
        Missing::Named(node) => observe_node(node)?.map(|_| node.clone()),
        Missing::Numbered(number) => observe_numbered(&places.nodes, *number)?,
    };
    match found {
        Some(node) => observe_opens(&node),
        None => {
            let mounts = observe_mounts()?;
            let is_kernels = mounts.holding(&places.nodes).is_some_and(|mount| mount.fstype == "devtmpfs");
            Ok(if is_kernels { Node::Gone } else { Node::Untold })
        }
    }
}

/// The node with a number, among those that the kernel makes.
fn observe_numbered(nodes: &Path, number: DeviceNumber) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(nodes).map_err(Error::io("listing", nodes))? {
        let entry = entry.map_err(Error::io("listing", nodes))?;
        let is_block = entry.file_type().map_err(Error::io("examining", entry.path()))?.is_block_device();
        if is_block && observe_node(&entry.path())? == Some(number) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Whether there is a disk behind a node. Source: open(2), ENXIO and ENODEV.
fn observe_opens(node: &Path) -> Result<Node> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    match OpenOptions::new().read(true).custom_flags(flags.bits()).open(node) {
        Ok(_) => Ok(Node::Opens),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => Ok(Node::Gone),
        Err(error) => Err(Error::io("opening", node)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mountinfo::MountTable;

    #[test]
    fn a_file_system_is_dead_only_when_two_signs_agree() {
        let gone = Listed::No(Missing::Numbered(DeviceNumber { major: 8, minor: 16 }));
        let nodes = [Node::Opens, Node::Gone, Node::Untold];
        for (listed, is_dead, want) in [
            (&Listed::Yes, false, [Some(Health::Alive); 3]),
            (&Listed::Unnamed, false, [Some(Health::Alive); 3]),
            (&Listed::Yes, true, [Some(Health::ShutDown); 3]),
            (&Listed::Unnamed, true, [Some(Health::ShutDown); 3]),
            (&gone, true, [Some(Health::DiskGone); 3]),
            (&gone, false, [None, Some(Health::DiskGone), None]),
        ] {
            for (node, want) in nodes.into_iter().zip(want) {
                assert_eq!(plan_health(listed, is_dead, node), want, "{listed:?} {is_dead} {node:?}");
            }
        }
    }

    /// A line of the mount table for a mount at this test's own directory, which answers; a sysfs that knows disk 8:0 named sda;
    /// and a directory of nodes that are not the kernel's. `None`: cannot tell.
    fn health(dir: &Path, device: &str, root: &str, kind: &str) -> Option<Health> {
        let (sysfs, nodes) = (dir.join("sys"), dir.join("dev"));
        for directory in ["sys/dev/block/8:0", "sys/class/block/sda", "dev/mapper"] {
            std::fs::create_dir_all(dir.join(directory)).unwrap();
        }
        std::fs::write(sysfs.join("class/block/sda/dev"), "8:0\n").unwrap();
        let kind = kind.replace("/dev", &nodes.to_string_lossy());
        let line = format!("9 1 {device} {root} {} rw - {kind}\n", dir.display());
        let table = MountTable::parse(line.as_bytes()).unwrap();
        let places = DevicePlaces { sysfs, nodes, ..DevicePlaces::default() };
        observe_health(&places, table.iter().next().unwrap()).ok()
    }

    #[test]
    fn a_mount_that_answers_is_never_dead_for_what_one_place_says() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            ("8:0", "/", "xfs /dev/sda rw", Some(Health::Alive)),
            ("8:16", "/", "xfs /dev/sda rw", None),
            ("8:0", "/", "ext4 /dev/sda rw,shutdown", None),
            ("8:0", "/", "ext4 /dev/sda rw,noshutdown", Some(Health::Alive)),
            ("0:41", "/", "btrfs /dev/sda rw", Some(Health::Alive)),
            ("0:41", "/", "btrfs /dev/sdb rw", None),
            ("0:41", "/", "btrfs /dev/mapper/renamed rw", Some(Health::Alive)),
            ("0:41", "/", "btrfs /dev/disk/by-id/x rw", Some(Health::Alive)),
            ("0:5", "/sdb//deleted", "devtmpfs udev rw", Some(Health::NodeGone)),
            ("0:5", "/sda", "devtmpfs udev rw", Some(Health::Alive)),
        ];
        for (device, root, kind, want) in cases {
            assert_eq!(health(dir.path(), device, root, kind), want, "{device} {root} {kind}");
        }
        // Nor is it alive where nothing of the sort can be seen.
        std::fs::remove_dir_all(dir.path().join("sys")).unwrap();
        let table =
            MountTable::parse(format!("9 1 8:0 / {} rw - xfs x rw\n", dir.path().display()).as_bytes()).unwrap();
        let places =
            DevicePlaces { sysfs: dir.path().join("sys"), nodes: dir.path().into(), ..DevicePlaces::default() };
        assert!(observe_health(&places, table.iter().next().unwrap()).is_err());
    }

    #[test]
    fn only_the_errors_of_a_dead_disk_make_a_mount_dead() {
        for errno in [libc::EIO, libc::ESHUTDOWN, libc::ENXIO, libc::ENODEV] {
            assert!(is_dead(&io::Error::from_raw_os_error(errno)));
        }
        for errno in [libc::EACCES, libc::ENOENT, libc::EUCLEAN, libc::ENOMEM, libc::EINTR] {
            assert!(!is_dead(&io::Error::from_raw_os_error(errno)));
        }
    }
}
