//! Single processes, as procfs shows them: who they are, what they have open, and in which mount namespace they live.
//!
//! Owns the files of `/proc/PID` and their formats. A process may end at any moment, so a process that is gone is no
//! error. If something could not be seen for another reason, that is recorded, for callers who need to know that
//! nothing was missed. Nothing here asks a file system that may not answer, such as NFS: what the kernel says about a
//! file is enough.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nix::libc;

use crate::error::Error;
use crate::host::command::printable;
use crate::host::device::number::DeviceNumber;
use crate::host::mountinfo::MountTable;
use crate::sync::looks::{Looks, Seen};

/// What the kernel calls the first PID namespace, in which all processes of the machine are seen.
///
/// Source: `PID_NS_INIT_INO` in the kernel's `include/uapi/linux/nsfs.h` (`PROC_PID_INIT_INO` before).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// How long the memory of one process is waited for.
const MAPS_BUDGET: Duration = Duration::from_secs(1);

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its number.
    pub pid: u32,
    /// The kernel's short name of it.
    pub command: String,
    /// What it is part of.
    pub owner: Option<Owner>,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, printable(&self.command))?;
        self.owner.as_ref().map_or(Ok(()), |owner| write!(f, " of {owner}"))
    }
}

/// What a process is part of, as its control group tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A container, by the beginning of its id.
    Container(String),
    /// A task that Nomad runs without Docker.
    NomadTask {
        /// The allocation's id.
        allocation: String,
        /// The task's name.
        task: String,
    },
    /// A unit of systemd.
    Unit(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Container(id) => write!(f, "container {id}"),
            Owner::NomadTask { allocation, task } => {
                write!(f, "task {} of Nomad allocation {allocation}", printable(task))
            }
            Owner::Unit(unit) => f.write_str(&printable(unit)),
        }
    }
}

impl Owner {
    /// Reads the text of `/proc/PID/cgroup`. Pure.
    ///
    /// Source: cgroups(7); Docker, containerd and Podman put the container's id, 64 hexadecimal digits, into the name of its
    /// group, and Nomad's own drivers `ALLOCATION.TASK.scope`.
    fn parse(cgroup: &str) -> Option<Self> {
        let paths: Vec<&str> = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
        let parts = || paths.iter().flat_map(|path| path.split('/'));
        let container = parts().find_map(container_id).map(Owner::Container);
        let task = || parts().find_map(nomad_task);
        let unit = || parts().rfind(|part| part.ends_with(".service"));
        container.or_else(task).or_else(|| unit().map(|unit| Owner::Unit(unit.to_owned())))
    }
}

fn container_id(part: &str) -> Option<String> {
    let words = part.split(|c: char| !c.is_ascii_alphanumeric());
    let mut ids = words.filter(|word| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit()));
    // As Docker prints it.
    ids.next().map(|id| id.chars().take(12).collect())
}

fn nomad_task(part: &str) -> Option<Owner> {
    let (allocation, task) = part.split_once('.')?;
    let lengths: Vec<usize> = allocation.split('-').map(str::len).collect();
    let is_hexadecimal = allocation.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    let is_uuid = lengths == [8, 4, 4, 4, 12] && is_hexadecimal;
    let task = task.strip_suffix(".scope").unwrap_or(task).to_owned();
    is_uuid.then(|| Owner::NomadTask { allocation: allocation.to_owned(), task })
}

/// A file that a process has open, as its descriptor tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OpenFile {
    /// The path by which the kernel names it, in the process' own mount namespace.
    pub(super) path: PathBuf,
    /// The number of the mount through which it was opened.
    pub(super) mount: u64,
    /// Whether it was opened for writing.
    pub(super) is_writable: bool,
    /// Where it can be examined.
    pub(super) link: PathBuf,
}

/// Reads the text of `/proc/PID/fdinfo/N`: the mount's number, and whether the file was opened for writing. Pure.
///
/// Source: proc_pid_fdinfo(5); `flags` is octal, and its last two bits are the access mode.
fn parse_fdinfo(text: &str) -> Option<(u64, bool)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let flags = u32::from_str_radix(field("flags:")?, 8).ok()?;
    Some((field("mnt_id:")?.parse().ok()?, flags & 0o3 != 0))
}

/// procfs at its mount point.
#[derive(Debug)]
pub(super) struct Proc<'a> {
    root: &'a Path,
    /// The first look that failed although there was something to see.
    unseen: RefCell<Option<Error>>,
    /// Whether anything was hidden from this process.
    hides: Cell<bool>,
}

impl<'a> Proc<'a> {
    pub(super) fn at(root: &'a Path) -> Self {
        Proc { root, unseen: RefCell::new(None), hides: Cell::new(false) }
    }

    /// What was seen; `None` if there is nothing to see any more, or nothing may be seen: a process that is hidden from
    /// this one stays hidden, as in a container without the right to look, and that is kept in mind. Any other failure is recorded.
    pub(super) fn seen<T>(&self, path: &Path, looked: io::Result<T>) -> Option<T> {
        let is_one_of = |err: &io::Error, these: &[i32]| err.raw_os_error().is_some_and(|code| these.contains(&code));
        match looked {
            Ok(seen) => Some(seen),
            // A process that has ended and is not yet waited for answers EINVAL when it is asked for its mounts.
            Err(err) if is_one_of(&err, &[libc::ENOENT, libc::ESRCH, libc::EINVAL]) => None,
            Err(err) if is_one_of(&err, &[libc::EACCES, libc::EPERM]) => {
                self.hides.set(true);
                None
            }
            Err(err) => {
                self.missed(Error::io("examining", path)(err));
                None
            }
        }
    }

    /// Records that something was not seen.
    pub(super) fn missed(&self, err: Error) {
        self.unseen.borrow_mut().get_or_insert(err);
    }

    /// Whether something was hidden from this process.
    pub(super) fn hides_some(&self) -> bool {
        self.hides.get()
    }

    /// Why not everything was seen.
    pub(super) fn unseen(&self) -> Option<Error> {
        self.unseen.take()
    }

    pub(super) fn of(&self, pid: u32, file: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(file)
    }

    /// Whether all processes of the machine are seen here, and not only those of a container.
    pub(super) fn shows_all(&self) -> bool {
        fs::read_link(self.root.join("self/ns/pid")).is_ok_and(|link| link == Path::new(FIRST_PID_NAMESPACE))
    }

    /// The numbers of all processes that are seen, in order, but for this one.
    pub(super) fn pids(&self) -> Vec<u32> {
        let entries = match fs::read_dir(self.root) {
            Ok(entries) => entries,
            Err(err) => {
                self.missed(Error::io("listing", self.root)(err));
                return Vec::new();
            }
        };
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        let mut pids: Vec<u32> = entries.filter_map(|entry| self.seen(self.root, entry)).filter_map(number).collect();
        pids.retain(|pid| *pid != std::process::id());
        pids.sort_unstable();
        pids
    }

    /// The process that has started another one; `None` for the first one, and where that is not seen.
    pub(super) fn parent(&self, pid: u32) -> Option<u32> {
        let status = fs::read_to_string(self.of(pid, "status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
        (parent != 0).then_some(parent)
    }

    /// The mount namespace in which this program is.
    pub(super) fn own_namespace(&self) -> Option<OsString> {
        fs::read_link(self.root.join("self/ns/mnt")).ok().map(PathBuf::into_os_string)
    }

    /// The processes by their mount namespaces.
    pub(super) fn by_namespace(&self, pids: &[u32]) -> BTreeMap<OsString, Vec<u32>> {
        let mut spaces: BTreeMap<OsString, Vec<u32>> = BTreeMap::new();
        for pid in pids {
            let namespace = self.of(*pid, "ns/mnt");
            if let Some(link) = self.seen(&namespace, fs::read_link(&namespace)) {
                spaces.entry(link.into_os_string()).or_default().push(*pid);
            }
        }
        spaces
    }

    /// The mount table of the first of these processes of which it can be read; they are in one mount namespace. A process whose
    /// root is a directory in it sees only what is mounted there, so it is read last.
    pub(super) fn mounts(&self, pids: &[u32]) -> Option<MountTable> {
        let sees_all = |pid: &&u32| fs::read_link(self.of(**pid, "root")).is_ok_and(|root| root == Path::new("/"));
        let mut failed = None;
        for pid in pids.iter().filter(sees_all).chain(pids.iter().filter(|pid| !sees_all(pid))) {
            let table = self.of(*pid, "mountinfo");
            match fs::read(&table).and_then(|text| Ok((MountTable::parse(&text).map_err(io::Error::other)?, text))) {
                // A process that has ended and is not yet waited for has no mounts any more.
                Ok((_, text)) if text.is_empty() => {}
                Ok((mounts, _)) => return Some(mounts),
                Err(err) => failed = Some((table, err)),
            }
        }
        failed.and_then(|(table, err)| self.seen(&table, Err(err)))
    }

    /// Who a process is.
    pub(super) fn process(&self, pid: u32) -> Process {
        let text = |file: &str| fs::read(self.of(pid, file)).map(|text| String::from_utf8_lossy(&text).into_owned());
        let command = text("comm").map_or_else(|_| "ended".to_owned(), |name| name.trim_end().to_owned());
        Process { pid, command, owner: text("cgroup").ok().and_then(|cgroup| Owner::parse(&cgroup)) }
    }

    /// The working directory, the root and the program of a process.
    pub(super) fn places(&self, pid: u32) -> impl Iterator<Item = (Place, PathBuf)> {
        let places = [("cwd", Place::Directory), ("root", Place::Root), ("exe", Place::Program)];
        places.into_iter().filter_map(move |(file, place)| Some((place, fs::read_link(self.of(pid, file)).ok()?)))
    }

    /// The files with a path that a process has open.
    pub(super) fn open_files(&self, pid: u32) -> impl Iterator<Item = OpenFile> {
        let directory = self.of(pid, "fd");
        let entries = self.seen(&directory, fs::read_dir(&directory)).into_iter().flatten();
        entries.filter_map(move |entry| {
            let entry = self.seen(&directory, entry)?;
            let link = entry.path();
            // Sockets, pipes and the like have no path.
            let path =
                self.seen(&link, fs::read_link(&link)).filter(|path| path.as_os_str().as_bytes().starts_with(b"/"))?;
            let info = self.of(pid, "fdinfo").join(entry.file_name());
            let told = self.seen(&info, fs::read_to_string(&info))?;
            let (mount, is_writable) = parse_fdinfo(&told)?;
            Some(OpenFile { path, mount, is_writable, link })
        })
    }

    /// The first such file that a process has mapped into its memory. A process that hangs while it changes its memory does not
    /// let it be looked at: then it counts as hidden, and nobody waits for it for long.
    pub(super) fn mapped(
        &self,
        pid: u32,
        deadline: Instant,
        is_sought: impl Fn(&Mapping<'_>) -> bool,
    ) -> Option<PathBuf> {
        static LOOKS: LazyLock<Looks<PathBuf, io::Result<Vec<u8>>>> = LazyLock::new(Looks::default);
        let maps = self.of(pid, "maps");
        let text = loop {
            let (asked, give_up) = (maps.clone(), deadline.min(Instant::now() + MAPS_BUDGET));
            let begun = LOOKS.begin(maps.clone(), move || fs::read(asked));
            match begun.map(|_| LOOKS.wait(&maps, give_up)) {
                Ok(Seen::Ended(text)) => break self.seen(&maps, text)?,
                // Another search has just got the answer.
                Ok(Seen::Nothing(_)) if Instant::now() < give_up => {}
                Ok(Seen::Nothing(_) | Seen::Silent(_)) | Err(_) => {
                    self.hides.set(true);
                    return None;
                }
            }
        };
        let mut mappings = text.split(|byte| *byte == b'\n').filter_map(Mapping::parse);
        mappings.find(|mapping| is_sought(mapping)).map(|mapping| PathBuf::from(mapping.path))
    }
}

/// A file that a process has mapped into its memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapping<'a> {
    pub(super) path: &'a OsStr,
    /// Whether what the process writes there is written to the file.
    pub(super) is_shared_writable: bool,
    /// The file system that the file, or the device's node, is in, and its number there.
    pub(super) file: (DeviceNumber, u64),
}

impl<'a> Mapping<'a> {
    /// Reads a line of `/proc/PID/maps`. Pure.
    ///
    /// Source: proc_pid_maps(5); `show_vma_header_prefix` in the kernel's `fs/proc/task_mmu.c`: the device's numbers are hexadecimal.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let at = line.iter().position(|byte| *byte == b'/')?;
        let (head, path) = line.split_at_checked(at)?;
        let mut words = std::str::from_utf8(head).ok()?.split_ascii_whitespace().skip(1);
        let (access, _offset, device) = (words.next()?, words.next()?, words.next()?);
        let (major, minor) = device.split_once(':')?;
        let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
        let device = DeviceNumber { major: hexadecimal(major)?, minor: hexadecimal(minor)? };
        Some(Mapping {
            path: OsStr::from_bytes(path),
            is_shared_writable: access.contains('w') && access.contains('s'),
            file: (device, words.next()?.parse().ok()?),
        })
    }
}

/// A place that a process uses without having it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its working directory.
    Directory,
    /// Its root directory.
    Root,
    /// The program that it runs.
    Program,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Directory => "its working directory",
            Place::Root => "its root directory",
            Place::Program => "its program",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f5e6d7c8b9a0123456789abcdef0123456789abcdef0123456789abcdef0123";

    #[test]
    fn what_a_process_is_part_of_is_told_by_its_control_group() {
        let allocation = "1a2b3c4d-0001-0002-0003-aabbccddeeff";
        let container = Some(Owner::Container("4f5e6d7c8b9a".to_owned()));
        let task = Some(Owner::NomadTask { allocation: allocation.to_owned(), task: "web.a".to_owned() });
        for (text, want) in [
            (format!("0::/system.slice/docker-{ID}.scope\n"), container.clone()),
            (format!("12:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n"), container.clone()),
            (format!("0::/../{ID}\n"), container.clone()),
            (format!("0::/machine.slice/libpod-{ID}.scope/container\n"), container),
            (format!("0::/nomad.slice/share.slice/{allocation}.web.a.scope\n"), task),
            ("0::/system.slice/docker.service\n".to_owned(), Some(Owner::Unit("docker.service".to_owned()))),
            ("0::/user.slice/user@0.service/app.slice\n".to_owned(), Some(Owner::Unit("user@0.service".to_owned()))),
            ("0::/\n".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(Owner::parse(&text), want, "{text}");
        }
    }

    #[test]
    fn what_a_descriptor_tells_is_read() {
        let text = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t77\nino:\t12\n");
        assert_eq!(parse_fdinfo(&text("0100000")), Some((77, false)));
        assert_eq!(parse_fdinfo(&text("0100001")), Some((77, true)));
        assert_eq!(parse_fdinfo(&text("02100002")), Some((77, true)));
        assert_eq!(parse_fdinfo("pos:\t0\n"), None);
        for (access, is_shared_writable) in [("r--s", false), ("rw-p", false), ("rw-s", true), ("-w-s", true)] {
            let line = format!("7f0000000000-7f0000001000 {access} 00000000 08:1f 131 \t  /srv/a b");
            let file = (DeviceNumber { major: 8, minor: 31 }, 131);
            let want = Mapping { path: OsStr::new("/srv/a b"), is_shared_writable, file };
            assert_eq!(Mapping::parse(line.as_bytes()), Some(want));
        }
        assert_eq!(Mapping::parse(b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0"), None);
    }

    #[test]
    fn what_is_mounted_is_told_by_a_process_that_sees_all_of_it() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, root, line) in [
            (7, "/srv/jail", "31 25 8:1 /srv/jail / rw - ext4 /dev/sda1 rw\n"),
            (8, "/", "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 25 8:16 / /mnt/blog rw - xfs /dev/sdb rw\n"),
        ] {
            let own = proc.path().join(pid.to_string());
            fs::create_dir(&own).unwrap();
            std::os::unix::fs::symlink(root, own.join("root")).unwrap();
            fs::write(own.join("mountinfo"), line).unwrap();
        }
        let mounts = |pids: &[u32]| Proc::at(proc.path()).mounts(pids).unwrap().iter().count();
        assert_eq!((mounts(&[7, 8]), mounts(&[8]), mounts(&[7])), (2, 2, 1));
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let proc = Proc::at(Path::new("/proc"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let pid = std::process::id();
        let open: Vec<_> = proc.open_files(pid).filter(|open| open.path == file.path()).collect();
        assert!(open.len() == 1 && open[0].is_writable, "{open:?}");
        let table = proc.mounts(&[pid]).unwrap();
        assert!(table.iter().any(|mount| mount.id == open[0].mount));
        assert!(!proc.pids().contains(&pid) && !proc.process(pid).command.is_empty());
        assert!(proc.places(pid).any(|(place, path)| place == Place::Root && path == Path::new("/")));
        let program = std::env::current_exe().unwrap();
        let by = Instant::now() + Duration::from_secs(60);
        assert!(proc.mapped(pid, by, |mapped| mapped.path == program.as_os_str()).is_some());
        assert_eq!(proc.by_namespace(&[pid]).into_keys().next(), proc.own_namespace());
    }
}
