//! What on this machine has a disk, or uses a mount: mounts in other mount namespaces, processes, devices made of the disk,
//! loop devices, swap space.
//!
//! Owns the search, which changes nothing and may find nothing: in a container only its own processes are seen, and that is
//! said. The kernel alone knows whether a disk is in use; what is found here is for the person who has to end it.

pub(crate) mod named;
pub(crate) mod process;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

pub(crate) use self::named::{Holder, Holders};
use self::process::{Mapping, OpenFile, Proc, Process};
use crate::error::{Chain, Error, Result};
use crate::host::command::shell_quoted;
use crate::host::device::number::DeviceNumber;
use crate::host::device::sysfs::{is_going, read_attribute, read_number};
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::presence::{observe_is_there, observe_names, observe_real};

/// Where processes are seen.
const PROC: &str = "/proc";
/// How long a search may take that is for a message: thousands of processes with many open files take a second.
const SEARCH_BUDGET: Duration = Duration::from_secs(3);
/// The file systems without a disk of their own that answer without asking another machine or a program.
const ANSWERING: [&str; 7] = ["devtmpfs", "tmpfs", "ramfs", "overlay", "aufs", "btrfs", "zfs"];
/// Those with a disk that may have to ask all the same.
const ASKING: [&str; 3] = ["fuseblk", "ocfs2", "gfs2"];

/// A disk, and all that is made of it, as sysfs shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sought {
    numbers: Vec<DeviceNumber>,
    /// The paths by which the kernel names the disk and what is made of it.
    nodes: Vec<PathBuf>,
    /// What is made of it, by the kernel's name, and by the device mapper's where it has one.
    made_of_it: Vec<(String, Option<String>)>,
    /// The directory of sysfs with all block devices.
    all: PathBuf,
    /// Why not everything that is made of it could be seen.
    unseen: Option<String>,
}

impl Sought {
    /// The disk with this directory in sysfs, whose nodes are in `nodes`; `all` is the directory with all block devices.
    pub(super) fn read(disk: &Path, nodes: &Path, all: &Path) -> Sought {
        let mut sought = Sought { all: all.to_owned(), ..Sought::default() };
        sought.add(disk, nodes);
        sought
    }

    /// Adds a device and what is made of it. What cannot be seen is no reason to stop, but is kept in mind.
    fn add(&mut self, directory: &Path, nodes: &Path) {
        if let Err(err) = self.try_add(directory, nodes) {
            self.unseen.get_or_insert_with(|| Chain(&err).to_string());
        }
    }

    fn try_add(&mut self, directory: &Path, nodes: &Path) -> Result<()> {
        // A partition or a holder may go while it is looked at.
        let Some(real) = observe_real(directory)? else { return Ok(()) };
        let Some(number) = read_number(&real)? else { return Ok(()) };
        if self.numbers.contains(&number) {
            return Ok(());
        }
        self.numbers.push(number);
        self.nodes.push(nodes.join(real.file_name().unwrap_or_default()));
        self.nodes.extend(read_attribute(&real.join("dm/name"))?.map(|name| nodes.join("mapper").join(name)));
        let holders = real.join("holders");
        for name in observe_names(&holders)?.unwrap_or_default() {
            let holder = holders.join(&name);
            self.made_of_it.push((name.to_string_lossy().into_owned(), read_attribute(&holder.join("dm/name"))?));
            self.add(&holder, nodes);
        }
        // A partition's directory begins with the disk's name.
        let own = real.file_name().unwrap_or_default().as_encoded_bytes();
        let is_part = |name: &OsString| name.as_encoded_bytes().starts_with(own);
        for name in observe_names(&real)?.unwrap_or_default().into_iter().filter(is_part) {
            let part = real.join(name);
            if observe_is_there(&part.join("partition"))? {
                self.add(&part, nodes);
            }
        }
        Ok(())
    }

    /// Whether a mount shows a file system that lies on the disk.
    fn is_under(&self, mount: &Mount) -> bool {
        let is_called = |source: &Path| self.nodes.iter().any(|node| node == source);
        self.numbers.iter().any(|number| mount.shows(*number, is_called))
    }

    /// The command that shows on the droplet whose mount namespaces have it mounted.
    fn command(&self) -> String {
        let number = self.numbers.iter().map(|number| format!(" {number} "));
        let node = self.nodes.iter().map(|node| format!(" {} ", node.display()));
        let words: Vec<String> = number.chain(node).collect();
        format!("`grep -lE {} /proc/[0-9]*/mountinfo`", shell_quoted(words.join("|")))
    }
}

/// Whether all processes of the machine are seen from here, and not only those of a container.
pub(super) fn sees_all_processes() -> bool {
    Proc::at(Path::new(PROC)).shows_all()
}

/// Whether this program is in the mount namespace of the process that was first.
pub(super) fn is_own_namespace_of_host() -> bool {
    let proc = Proc::at(Path::new(PROC));
    proc.own_namespace().is_some_and(|own| proc.by_namespace(&[1]).contains_key(&own))
}

/// Whether this program shares its mount namespace with the one that started it, and its root with the first of those before
/// that is in another mount namespace; a container has a root of its own. What cannot be seen is not so.
pub(super) fn is_namespace_of_parent() -> bool {
    let proc = Proc::at(Path::new(PROC));
    let Some(own) = proc.own_namespace() else { return false };
    let is_inside = |pid: &u32| proc.by_namespace(&[*pid]).contains_key(&own);
    let mut before = std::iter::successors(Some(std::os::unix::process::parent_id()), |pid| proc.parent(*pid));
    if !before.next().is_some_and(|parent| is_inside(&parent)) {
        return false;
    }
    let root = |path: PathBuf| std::fs::metadata(path).ok().map(|root| (root.dev(), root.ino()));
    let outside = before.find(|pid| !is_inside(pid)).and_then(|pid| root(proc.of(pid, "root/")));
    outside.is_some() && outside == root(PathBuf::from("/"))
}

/// Looks who has a disk.
#[must_use]
pub(crate) fn observe_holders(sought: &Sought) -> Holders {
    let search = Search::start(Path::new(PROC), sought, SEARCH_BUDGET);
    let mut found: Vec<Holder> = made_of(sought);
    found.extend(search.mounted_elsewhere());
    let targets: Vec<&Path> = search.mounts().map(|(_, mount)| mount.target.as_path()).collect();
    found.extend(loops(&search.proc, &sought.all, |file| is_at(file, &targets, &sought.nodes)));
    found.extend(swaps(Path::new(PROC), |file| is_at(file, &targets, &sought.nodes)));
    if found.is_empty() {
        // Neither says for sure that this is why the disk is not free.
        let open = search.first_open(|open| open.is_writable && search.is_node(open));
        found.extend(open.map(|(path, by)| Holder::Node { path, by }));
        found.extend(search.detached());
    }
    search.end(found)
}

/// Looks who has a disk itself open for writing, by its node: processes, and loop devices. The kernel tells of no such use, so
/// that nothing was found counts only when everything that is to be seen from here was seen. That takes as long as it takes on a
/// droplet that is busy, as far as the budget goes.
///
/// # Errors
/// [`Error::Io`] when nothing was found and something could not be looked at.
pub(crate) fn observe_writers(sought: &Sought, budget: Duration) -> Result<Holders> {
    observe_writers_in(Path::new(PROC), sought, budget)
}

fn observe_writers_in(proc: &Path, sought: &Sought, budget: Duration) -> Result<Holders> {
    let seen = search_writers(proc, sought, budget)?;
    if !seen.found().is_empty() || !seen.hides_some {
        return Ok(seen);
    }
    // What this program may not look at is hidden each time; a single "permission denied" says nothing.
    search_writers(proc, sought, budget)
}

fn search_writers(proc: &Path, sought: &Sought, budget: Duration) -> Result<Holders> {
    let search = Search::start(proc, sought, budget);
    let mut found = loops(&search.proc, &sought.all, |file| is_at(file, &[], &sought.nodes));
    found.extend(search.opened(|open| open.is_writable && search.is_node(open)));
    if found.is_empty() {
        found.extend(search.mapped_nodes());
    }
    let holders = search.end(found);
    if !holders.found().is_empty() {
        return Ok(holders);
    }
    let unclear =
        |what: &str| Error::io("looking who writes to a disk in", proc)(std::io::Error::other(what.to_owned()));
    match (search.proc.unseen(), &sought.unseen, holders.is_cut_short) {
        (Some(err), _, _) => Err(err),
        (None, Some(why), _) => Err(unclear(&format!("what is made of the disk is not seen: {why}"))),
        (None, None, true) => Err(unclear("there are too many processes and open files to look at in time")),
        (None, None, false) if sought.numbers.is_empty() => Err(unclear("sysfs does not say which disk it is")),
        (None, None, false) => Ok(holders),
    }
}

/// Looks who uses a mount, which `mounts` shows, so that it cannot be unmounted.
#[must_use]
pub(crate) fn observe_users(sought: &Sought, mounts: &MountTable, mount: &Mount) -> Holders {
    let search = Search::start(Path::new(PROC), sought, SEARCH_BUDGET);
    let is_same = |other: &Mount| other.id == mount.id;
    let mut found: Vec<Holder> = mounts.iter().filter(|other| other.parent == mount.id).map(below).collect();
    found.extend(loops(&search.proc, &sought.all, |file| file.starts_with(&mount.target)));
    found.extend(swaps(Path::new(PROC), |file| file.starts_with(&mount.target)));
    found.extend(search.users(is_same));
    if found.is_empty() {
        // An unmount takes the copies of the mount in other namespaces along, and fails when one of them is in use.
        found.extend(search.below_copies(mount));
        found.extend(search.users(|other| is_copy(other, mount)));
    }
    Holders { of_users: Some(command_for_users(mount)), ..search.end(found) }
}

/// The command that shows on the droplet who uses a mount, or the disk whose node it shows. It goes by the device: the mount's
/// path may be one of the plugin's container.
///
/// Source: fuser(1): without `-m` a device's node is looked for by itself, with it the file system that is on it.
pub(super) fn command_for_users(mount: &Mount) -> String {
    if !mount.is_node() {
        return format!("`fuser -vm {}`", shell_quoted(&mount.source));
    }
    let name = mount.root.to_string_lossy();
    format!("`fuser -v {}`", shell_quoted(format!("/dev{}", name.strip_suffix("//deleted").unwrap_or(&name))))
}

fn below(mount: &Mount) -> Holder {
    Holder::Below { at: mount.target.clone(), fstype: mount.fstype.clone() }
}

/// Whether a mount, in whatever namespace, is the copy of another one that the kernel has made there, and takes away with it.
/// All that was bound from one mount is of one peer group; a copy shows the same, and at a place of the same name. Pure.
///
/// Source: mount_namespaces(7), "Shared subtrees".
fn is_copy(other: &Mount, mount: &Mount) -> bool {
    let of_other =
        |tag: &String| tag.strip_prefix("shared:").or_else(|| tag.strip_prefix("master:")).map(str::to_owned);
    let is_of = |group: &str| other.propagation.iter().filter_map(of_other).any(|has| has == group);
    other.id != mount.id
        && (other.device == mount.device && other.root == mount.root)
        && name_of_place(&other.target) == name_of_place(&mount.target)
        && mount.peer_group().is_some_and(is_of)
}

/// The end of a path by which an orchestrator tells places apart: allocation, volume, access.
fn name_of_place(path: &Path) -> Vec<Component<'_>> {
    path.components().rev().take(3).collect()
}

/// Whether a device's node is looked for in a mount. Pure.
fn surely_answers(mount: &Mount) -> bool {
    let fstype = mount.fstype.as_str();
    ANSWERING.contains(&fstype) || mount.device.major != 0 && !ASKING.contains(&fstype)
}

fn is_at(file: &Path, targets: &[&Path], nodes: &[PathBuf]) -> bool {
    nodes.iter().any(|node| node == file) || targets.iter().any(|target| file.starts_with(target))
}

fn made_of(sought: &Sought) -> Vec<Holder> {
    let device =
        |(name, mapped): &(String, Option<String>)| Holder::Device { name: name.clone(), mapped: mapped.clone() };
    sought.made_of_it.iter().map(device).collect()
}

/// The loop devices that show such a file.
///
/// Source: `loop_attr_backing_file_show` in the kernel's `drivers/block/loop.c`.
fn loops(proc: &Proc<'_>, all: &Path, is_sought: impl Fn(&Path) -> bool) -> Vec<Holder> {
    let entries = proc.seen(all, std::fs::read_dir(all)).into_iter().flatten();
    let shown = entries.filter_map(|entry| {
        let device = proc.seen(all, entry)?.path();
        let file = read_attribute(&device.join("loop/backing_file")).unwrap_or_else(|err| {
            if !is_going(&err) {
                proc.missed(err);
            }
            None
        });
        let file = PathBuf::from(file?);
        let real = proc.seen(&device, std::fs::canonicalize(&device))?;
        let name = real.file_name()?.to_string_lossy().into_owned();
        is_sought(&file).then_some(Holder::Loop { name, file })
    });
    shown.collect()
}

/// The swap space in such a file.
fn swaps(proc: &Path, is_sought: impl Fn(&Path) -> bool) -> Vec<Holder> {
    let text = std::fs::read(proc.join("swaps")).unwrap_or_default();
    parse_swaps(&text).into_iter().filter(|path| is_sought(path)).map(Holder::Swap).collect()
}

/// The first column of `/proc/swaps`, without its heading. Pure.
///
/// Source: `swap_show` in the kernel's `mm/swapfile.c`.
fn parse_swaps(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    let path = |line: &[u8]| {
        let first = line.split(|byte| matches!(byte, b' ' | b'\t')).next().filter(|first| !first.is_empty())?;
        Some(PathBuf::from(crate::host::mountinfo::unescape(first)))
    };
    lines.filter_map(path).collect()
}

/// A mount namespace in which there are processes.
struct Space {
    pids: Vec<u32>,
    table: MountTable,
    is_own: bool,
    is_host: bool,
}

/// One look at all processes.
struct Search<'a> {
    proc: Proc<'a>,
    sought: &'a Sought,
    spaces: Vec<Space>,
    /// The mounts of file systems that surely answer, by their numbers, of which no two in the machine are the same.
    answering: HashSet<u64>,
    /// All mounts that are seen, by their numbers.
    known: HashSet<u64>,
    deadline: Instant,
}

impl<'a> Search<'a> {
    fn start(proc: &'a Path, sought: &'a Sought, budget: Duration) -> Self {
        let (proc, deadline) = (Proc::at(proc), Instant::now() + budget);
        let (sees_all, own, pids) = (proc.shows_all(), proc.own_namespace(), proc.pids());
        let mut spaces = Vec::new();
        let by_namespace: BTreeMap<OsString, Vec<u32>> = proc.by_namespace(&pids);
        for (namespace, pids) in by_namespace {
            let table = if Instant::now() < deadline { proc.mounts(&pids) } else { None };
            let is_host = sees_all && pids.contains(&1);
            // Where no mount is seen, as by a process whose root was taken away lazily, processes may have files open all the same.
            let table = table.unwrap_or_default();
            spaces.push(Space { is_own: own.as_ref() == Some(&namespace), is_host, pids, table });
        }
        let mounts = spaces.iter().flat_map(|space: &Space| space.table.iter());
        let surely = mounts.filter(|mount| surely_answers(mount));
        let answering = surely.map(|mount| mount.id).collect();
        let known = spaces.iter().flat_map(|space: &Space| space.table.iter()).map(|mount| mount.id).collect();
        Search { proc, sought, spaces, answering, known, deadline }
    }

    fn end(&self, found: Vec<Holder>) -> Holders {
        Holders {
            found,
            sees_all: self.proc.shows_all(),
            hides_some: self.proc.hides_some(),
            is_cut_short: Instant::now() >= self.deadline,
            of_users: None,
            command: self.sought.command(),
        }
    }

    /// The mounts of what is sought, in every namespace.
    fn mounts(&self) -> impl Iterator<Item = (&Space, &Mount)> {
        self.spaces.iter().flat_map(|space| {
            space.table.iter().filter(|mount| self.sought.is_under(mount)).map(move |mount| (space, mount))
        })
    }

    fn mounted_elsewhere(&self) -> Vec<Holder> {
        let elsewhere = self.mounts().filter(|(space, _)| !space.is_own);
        let holder = |(space, mount): (&Space, &Mount)| {
            let by = self.proc.process(*space.pids.first()?);
            Some(Holder::Mounted { at: mount.target.clone(), by, is_host: space.is_host })
        };
        elsewhere.filter_map(holder).collect()
    }

    fn below_copies(&self, of: &Mount) -> Vec<Holder> {
        let is_below = |space: &Space, mount: &Mount| {
            space.table.iter().any(|parent| parent.id == mount.parent && is_copy(parent, of))
        };
        let below_in = |space: &Space| -> Vec<Holder> {
            space.table.iter().filter(|mount| is_below(space, mount)).map(below).collect()
        };
        self.spaces.iter().flat_map(below_in).collect()
    }

    /// Each process that has such a file open, with the first one.
    fn first_open(&self, is_sought: impl Fn(&OpenFile) -> bool) -> impl Iterator<Item = (PathBuf, Process)> {
        let pids = self.spaces.iter().flat_map(|space| &space.pids).take_while(|_| Instant::now() < self.deadline);
        pids.filter_map(move |pid| {
            let open = self.proc.open_files(*pid).find(&is_sought)?;
            Some((open.path, self.proc.process(*pid)))
        })
    }

    /// One holder for each process that has such a file open.
    fn opened(&self, is_sought: impl Fn(&OpenFile) -> bool) -> Vec<Holder> {
        self.first_open(is_sought).map(|(path, by)| Holder::Open { path, by }).collect()
    }

    /// The processes that have a node of what is sought mapped into their memory to write to it, which stays when it is closed.
    fn mapped_nodes(&self) -> Vec<Holder> {
        let nodes = self.sought.nodes.iter().filter_map(|node| std::fs::metadata(node).ok());
        let nodes: Vec<(DeviceNumber, u64)> =
            nodes.map(|node| (DeviceNumber::from_raw(node.dev()), node.ino())).collect();
        let is_node = |mapped: &Mapping<'_>| mapped.is_shared_writable && nodes.contains(&mapped.file);
        let pids = self.spaces.iter().flat_map(|space| &space.pids).take_while(|_| Instant::now() < self.deadline);
        let holder = |pid: &u32| {
            let path = self.proc.mapped(*pid, self.deadline, is_node)?;
            Some(Holder::Open { path, by: self.proc.process(*pid) })
        };
        pids.filter_map(holder).collect()
    }

    /// The processes that have a file open in a mount that no table shows. Of the kernel's own mounts, which no table shows
    /// either, the files have paths that tell them.
    fn detached(&self) -> Vec<Holder> {
        const KERNELS_OWN: [&str; 5] = ["/memfd:", "/SYSV", "/dev/zero", "/dmabuf", "/anon"];
        let is_kernels_own = |open: &OpenFile| {
            let path = open.path.to_string_lossy();
            path.starts_with("/[") || KERNELS_OWN.iter().any(|own| path.starts_with(own))
        };
        let is_detached = |open: &OpenFile| !self.known.contains(&open.mount) && !is_kernels_own(open);
        self.first_open(is_detached).map(|(path, by)| Holder::Detached { path, by }).collect()
    }

    /// Whether an open file is a node of what is sought. One in a mount that no table shows, as after a lazy unmount, counts too.
    /// Nothing is examined that could have another machine or a program asked.
    fn is_node(&self, open: &OpenFile) -> bool {
        if self.known.contains(&open.mount) && !self.answering.contains(&open.mount) {
            return false;
        }
        let looked = statx(CWD, &open.link, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
        self.proc.seen(&open.link, looked.map_err(std::io::Error::from)).is_some_and(|found| {
            let number = DeviceNumber { major: found.stx_rdev_major.into(), minor: found.stx_rdev_minor.into() };
            FileType::from_raw_mode(found.stx_mode.into()) == FileType::BlockDevice
                && self.sought.numbers.contains(&number)
        })
    }

    /// One holder for each process that uses one of these mounts.
    fn users(&self, is_used: impl Fn(&Mount) -> bool) -> Vec<Holder> {
        let in_each = self.spaces.iter().map(|space| {
            let mounts: Vec<&Mount> = space.table.iter().filter(|mount| is_used(mount)).collect();
            (space, mounts)
        });
        let used: Vec<(&Space, Vec<&Mount>)> = in_each.collect();
        let ids: HashSet<u64> = used.iter().flat_map(|(_, mounts)| mounts.iter().map(|mount| mount.id)).collect();
        if ids.is_empty() {
            return Vec::new();
        }
        let each = used.iter().flat_map(|(space, mounts)| space.pids.iter().map(move |pid| (*pid, mounts)));
        let each = each.take_while(|_| Instant::now() < self.deadline);
        each.filter_map(|(pid, mounts)| self.use_of(pid, mounts, &ids)).collect()
    }

    /// How a process uses one of the mounts that are seen in its own namespace, or has a file open in any of those with these
    /// numbers: what was opened in another namespace stays open.
    fn use_of(&self, pid: u32, seen: &[&Mount], ids: &HashSet<u64>) -> Option<Holder> {
        let is_in = |path: &Path| seen.iter().any(|mount| path.starts_with(&mount.target));
        let by = || self.proc.process(pid);
        if let Some((place, path)) = self.proc.places(pid).find(|(_, path)| is_in(path)) {
            return Some(Holder::Place { place, path, by: by() });
        }
        if let Some(open) = self.proc.open_files(pid).find(|open| ids.contains(&open.mount)) {
            return Some(Holder::Open { path: open.path, by: by() });
        }
        let is_mapped = |mapped: &Mapping<'_>| is_in(Path::new(mapped.path));
        let path = if seen.is_empty() { None } else { self.proc.mapped(pid, self.deadline, is_mapped) };
        Some(Holder::Open { path: path?, by: by() })
    }
}
