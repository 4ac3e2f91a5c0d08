//! The mount table of this process, as the kernel prints it.
//!
//! Owns the parser of `/proc/self/mountinfo` and the questions asked of it, all pure. It reads no file and changes no
//! mount; [`observe_mounts`](crate::host::mount_table::observe_mounts) reads the real table. Which device is under a mount is in
//! `under_mount.rs`.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::fs::FsKind;
use crate::host::device::number::DeviceNumber;

/// With what the kernel ends the root of a bind mount whose file was removed.
const REMOVED: &[u8] = b"//deleted";

/// One line of the table.
///
/// Source: proc_pid_mountinfo(5) and `show_mountinfo` in the kernel's `fs/proc_namespace.c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount's number, unique while it exists.
    pub id: u64,
    /// The number of the mount it sits on.
    pub parent: u64,
    /// The file system's `st_dev`; not a disk's number for btrfs, which has one for each subvolume.
    pub device: DeviceNumber,
    /// What of the file system is mounted: `/`, or the directory or file of a bind mount. For a bind mount of something
    /// deleted since it ends in `//deleted`.
    pub root: PathBuf,
    /// Where it is mounted, as this process sees it.
    pub target: PathBuf,
    /// Options of this mount alone: `rw`, `ro`, `noatime`, `nosuid`.
    pub options: Vec<String>,
    /// Tags of propagation: `shared:12`, `master:3`, `unbindable`; none for a private mount.
    pub propagation: Vec<String>,
    /// The file system's type as the kernel names it. Whoever mounts a FUSE file system adds a subtype of any bytes to it;
    /// what is no UTF-8 is replaced here, and a type that could not be read is empty. Neither is a type of ours.
    pub fstype: String,
    /// What was named as source when the file system was mounted.
    pub source: OsString,
    /// Options of the file system, common to all its mounts: `ro`, `nouuid`.
    pub super_options: Vec<String>,
}

/// Which mount this is, as long as anything works at it: another one at the same place has another number till then.
///
/// Source: `cleanup_mnt` in the kernel's `fs/namespace.c`, which frees the number with the last user of a mount.
pub(crate) type MountKey = (u64, PathBuf);

impl Mount {
    /// What tells this mount from others that come to its place.
    #[must_use]
    pub(crate) fn key(&self) -> MountKey {
        (self.id, self.target.clone())
    }

    /// Whether nothing can be written through this mount: by its own flag, or because the file system is read-only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.has_option("ro") || self.is_super_read_only()
    }

    /// Whether the file system itself is read-only, as asked or because the kernel gave up on a broken disk. Since Linux
    /// 6.14 ext4 says `emergency_ro` for the latter.
    #[must_use]
    pub fn is_super_read_only(&self) -> bool {
        self.super_options.iter().any(|option| option == "ro" || option == "emergency_ro")
    }

    /// Whether the file system became read-only without anyone asking: this mount of it was to be writable.
    #[must_use]
    pub fn is_read_only_by_error(&self) -> bool {
        self.is_super_read_only() && !self.has_option("ro")
    }

    /// Whether this mount (not the file system) has an option.
    #[must_use]
    pub fn has_option(&self, option: &str) -> bool {
        self.options.iter().any(|have| have == option)
    }

    /// The peer group of a shared mount: what is mounted in it, or taken away, is so in all mounts of the group.
    #[must_use]
    pub fn peer_group(&self) -> Option<&str> {
        self.propagation.iter().find_map(|tag| tag.strip_prefix("shared:"))
    }

    /// Whether this shows its file system from its root and not only a directory of it. btrfs has a root for each subvolume, and
    /// names the mounted one last among its options.
    ///
    /// Source: `btrfs_show_options` in the kernel's `fs/btrfs/super.c`.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let options = self.super_options.join(",");
        match options.split_once(",subvol=").filter(|_| self.fstype == "btrfs") {
            Some((_, subvolume)) => unescape(subvolume.as_bytes()) == self.root.as_os_str(),
            None => self.root == Path::new("/"),
        }
    }

    /// Whether this is a file from `/dev`, bound to some other place: what a published raw block volume is.
    #[must_use]
    pub fn is_node(&self) -> bool {
        self.fstype == "devtmpfs" && self.root != Path::new("/")
    }

    /// Whether this is the node of the disk that the kernel calls so. In a container `/dev` may be elsewhere; a disk's node is right
    /// below it, by the kernel's name of the disk.
    #[must_use]
    pub(crate) fn is_node_named(&self, name: impl AsRef<Path>) -> bool {
        self.is_node() && self.root == Path::new("/").join(name)
    }

    /// Whether this is a node that was removed since it was bound.
    #[must_use]
    pub(crate) fn is_removed_node(&self) -> bool {
        self.is_node() && self.root.as_os_str().as_bytes().ends_with(REMOVED)
    }

    /// Whether this is of a sort that this plugin makes: one of its file systems, or a device node. Any other mount is somebody
    /// else's, and is not even examined: it may never answer.
    #[must_use]
    pub(crate) fn is_of_our_making(&self) -> bool {
        FsKind::parse(&self.fstype).is_some() || self.is_node()
    }
}

/// Why a text is no mount table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no mount table, it begins with: {text}")]
pub struct BadMountTable {
    text: String,
}

/// All mounts that this process sees, in the kernel's order: of two at the same place, the later one is on top.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable {
    mounts: Vec<Mount>,
}

impl MountTable {
    /// Reads a whole table; nothing in the text need be UTF-8.
    ///
    /// One odd mount neither fails the table nor vanishes from it. The kernel begins each line with numbers and paths that it
    /// prints itself, so a line that begins so is a mount, of an unknown type if the rest is odd; any other line is the rest
    /// of the one before, in whose options a file system printed a line end.
    ///
    /// Linux 6.8 to 6.19 may show a mount twice when the table grows while it is read: the last line of a mount counts.
    ///
    /// # Errors
    /// [`BadMountTable`] when already the first line is none.
    /// Source: `show_mountinfo` in the kernel's `fs/proc_namespace.c`; commits 2eea9ce4310d and 4a403d7aa907.
    pub fn parse(text: &[u8]) -> Result<Self, BadMountTable> {
        let mut mounts: Vec<Mount> = Vec::new();
        for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            match (parse_line(line), mounts.last_mut()) {
                (Some(mount), _) => mounts.push(mount),
                (None, Some(before)) => before.super_options.extend(list(line)),
                (None, None) => return Err(BadMountTable { text: String::from_utf8_lossy(line).into_owned() }),
            }
        }
        Ok(MountTable { mounts: last_of_each(mounts) })
    }

    /// Adds the mounts that only an earlier reading of the same table has shown.
    ///
    /// A number that both have is one mount, as a number is free for another one only once its mount is gone: the later
    /// reading is right about it.
    #[must_use]
    pub fn with_missing_from(self, earlier: MountTable) -> Self {
        let known: HashSet<u64> = self.mounts.iter().map(|mount| mount.id).collect();
        let missing = earlier.mounts.into_iter().filter(|mount| !known.contains(&mount.id));
        MountTable { mounts: missing.chain(self.mounts).collect() }
    }

    /// The mount that is seen at exactly this path, which must be absolute and without links: the topmost of several.
    ///
    /// `None` if the path is only inside a mount, and for a mount that another one over a directory above hides.
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        self.holding(path).filter(|mount| mount.target == path)
    }

    /// The mount in which a path lies, which must be absolute and without links.
    #[must_use]
    pub fn holding(&self, path: &Path) -> Option<&Mount> {
        // As the kernel walks a path: from the root, always into the first mount on the way.
        let mut seen = None;
        for _ in &self.mounts {
            match self.first_on_way(seen, path) {
                Some(next) => seen = Some(next),
                None => break,
            }
        }
        seen
    }

    fn first_on_way<'a>(&'a self, from: Option<&Mount>, path: &Path) -> Option<&'a Mount> {
        let known: HashSet<u64> =
            if from.is_none() { self.mounts.iter().map(|mount| mount.id).collect() } else { HashSet::new() };
        let sits_on = |mount: &Mount| match from {
            Some(below) => mount.parent == below.id && mount.id != below.id,
            // The root's own parent is outside of the table, or itself.
            None => mount.parent == mount.id || !known.contains(&mount.parent),
        };
        let on_way = self.mounts.iter().filter(|mount| sits_on(mount) && path.starts_with(&mount.target));
        on_way.min_by_key(|mount| mount.target.components().count())
    }

    /// Every mount.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }
}

/// Keeps the last one of several mounts with the same number.
fn last_of_each(mounts: Vec<Mount>) -> Vec<Mount> {
    let last: HashMap<u64, usize> = mounts.iter().enumerate().map(|(place, mount)| (mount.id, place)).collect();
    if last.len() == mounts.len() {
        return mounts;
    }
    let is_last = |(place, mount): &(usize, Mount)| last.get(&mount.id) == Some(place);
    mounts.into_iter().enumerate().filter(is_last).map(|(_, mount)| mount).collect()
}

/// Reads a line that begins as the kernel begins every mount's; `None` for any other line.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let parent = text(fields.next()?)?.parse().ok()?;
    let device = DeviceNumber::parse(text(fields.next()?)?)?;
    let root = PathBuf::from(unescape(fields.next()?));
    let target = PathBuf::from(unescape(fields.next()?));
    let options = list(fields.next()?);
    let propagation = fields.by_ref().take_while(|field| *field != b"-").map(lossy).collect();
    let fstype = fields.next().map(lossy).unwrap_or_default();
    let source = fields.next().map(unescape).unwrap_or_default();
    // A file system may print a blank into its options without escaping it: what is left belongs to them.
    let super_options = list(&fields.collect::<Vec<_>>().join(&b' '));
    Some(Mount { id, parent, device, root, target, options, propagation, fstype, source, super_options })
}

fn lossy(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok().filter(|text| !text.is_empty())
}

fn list(field: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(field).split(',').map(str::to_owned).collect()
}

/// Undoes the kernel's `mangle`: blank, tab, line end, backslash and `#` are printed as three octal digits.
pub(super) fn unescape(field: &[u8]) -> OsString {
    if !field.contains(&b'\\') {
        return OsString::from_vec(field.to_vec());
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            (other, _) => {
                bytes.push(*other);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    let all_octal = digits.iter().all(|digit| (b'0'..=b'7').contains(digit));
    all_octal.then(|| u8::from_str_radix(text(digits)?, 8).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::device::Device;

    const NODE: &[u8] = include_bytes!("../../tests/fixtures/mountinfo/node.txt");
    const DOBS: &str = "/opt/nomad/client/csi/node/dobs";

    fn node() -> MountTable {
        MountTable::parse(NODE).unwrap()
    }

    fn number(text: &str) -> DeviceNumber {
        DeviceNumber::parse(text).unwrap()
    }

    fn at<'a>(table: &'a MountTable, below: &str) -> &'a Mount {
        table.at(&Path::new(DOBS).join(below)).unwrap()
    }

    #[test]
    fn the_mounts_of_a_node_are_read() {
        let table = node();
        let staged = at(&table, "staging/vol/rw");
        assert_eq!((staged.device, staged.fstype.as_str()), (number("7:1"), "xfs"));
        assert_eq!(staged.propagation, ["shared:1"]);
        assert!(staged.has_option("noatime") && !staged.is_read_only());
        let published = at(&table, "per-alloc/1/vol");
        assert!(published.is_read_only() && !published.is_super_read_only());
        assert_eq!(published.propagation, ["master:1"]);
        let odd = at(&table, "per-alloc/2/a b\\c#d");
        assert_eq!(odd.root, Path::new("/sub//deleted"));
        assert_eq!(table.iter().filter(|mount| mount.target.starts_with(DOBS)).count(), 5);
    }

    #[test]
    fn a_disk_is_known_by_its_number_and_btrfs_by_its_source() {
        let table = node();
        let xfs = Device::fake("/dev/loop1", number("7:1"), 1);
        let targets: Vec<_> = table.of_device(&xfs).map(|mount| mount.target.strip_prefix(DOBS).unwrap()).collect();
        let want = ["staging/vol/rw", "per-alloc/1/vol", "per-alloc/2/a b\\c#d", "block/target"];
        assert_eq!(targets, want.map(Path::new));
        assert!(!at(&table, "block/target").is_of(&xfs) && at(&table, "block/target").is_node_of(&xfs));
        let in_container = Device::fake("/host/dev/loop1", number("7:1"), 1);
        assert!(at(&table, "block/target").is_node_of(&in_container));
        assert!(!at(&table, "block/target").is_node_of(&Device::fake("/dev/loop2", number("7:2"), 1)));
        let btrfs = Device::fake("/dev/loop3", number("7:3"), 1);
        assert_eq!(table.of_device(&btrfs).count(), 1);
        assert!(at(&table, "btrfs").is_of(&btrfs));
        // The same node named as a source by another file system says nothing.
        let other = Device::fake("/dev/loop1", number("7:9"), 1);
        assert_eq!(table.of_device(&other).filter(|mount| mount.is_of(&other)).count(), 0);
    }

    #[test]
    fn a_mount_is_whole_when_it_shows_its_file_system_or_subvolume_from_the_root() {
        let is_whole = |line: &str| {
            let line = format!("9 1 {line}\n");
            MountTable::parse(line.as_bytes()).unwrap().iter().next().unwrap().is_whole()
        };
        for (line, want) in [
            ("8:0 / /m rw - xfs /dev/sda rw", true),
            ("8:0 /directory /m rw - xfs /dev/sda rw", false),
            ("8:0 /a /m rw - ext4 /dev/sda rw,subvol=/a", false),
            ("0:40 / /m rw - btrfs /dev/sda rw,subvolid=5,subvol=/", true),
            ("0:40 /directory /m rw - btrfs /dev/sda rw,subvolid=5,subvol=/", false),
            ("0:40 /@ /m rw - btrfs /dev/sda rw,subvolid=256,subvol=/@", true),
            ("0:40 /@/directory /m rw - btrfs /dev/sda rw,subvolid=256,subvol=/@", false),
            ("0:40 /a\\040b,c /m rw - btrfs /dev/sda rw,subvolid=256,subvol=/a\\040b,c", true),
            ("0:40 /@ /m rw - btrfs /dev/sda rw", false),
        ] {
            assert_eq!(is_whole(line), want, "{line}");
        }
    }

    #[test]
    fn of_several_mounts_at_one_place_the_one_that_is_seen_is_found() {
        let table = node();
        let stack = Path::new("/opt/nomad/stack");
        assert_eq!(table.at(stack).unwrap().source, "over");
        assert_eq!(table.iter().filter(|mount| mount.target == stack).count(), 3);
        // It is in the table, but under the mount on top of the stack.
        assert!(table.iter().any(|mount| mount.target == stack.join("in")));
        assert_eq!(table.at(&stack.join("in")), None);
        assert_eq!(table.at(Path::new("/opt/nomad")), None);
        assert_eq!(table.at(Path::new("/")).unwrap().device, number("254:0"));
        assert_eq!(table.holding(Path::new("/opt/nomad")).unwrap().target, Path::new("/"));
        assert_eq!(table.holding(&stack.join("in/deeper")).unwrap().source, "over");
        assert_eq!(MountTable::default().at(Path::new("/")), None);
    }

    #[test]
    fn what_is_no_table_is_an_error() {
        for bad in ["x", "36 35 98:0 /", "36 35 98 / /m rw - ext3 s rw", "36 35 98:0 / /mnt"] {
            assert!(MountTable::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(MountTable::parse(b"").unwrap(), MountTable::default());
    }

    #[test]
    fn one_odd_line_neither_fails_the_table_nor_vanishes_from_it() {
        for (odd, fstype, options) in [
            (&b"9 1 0:50 / /odd rw - fuse.\xff\xfe s rw"[..], "fuse.\u{fffd}\u{fffd}", vec!["rw"]),
            (b"9 1 0:50 / /odd rw \xff:1 - odd s rw", "odd", vec!["rw"]),
            (b"9 1 0:50 / /odd rw - odd s rw,a=\xff", "odd", vec!["rw", "a=\u{fffd}"]),
            (b"9 1 0:50 / /odd rw - odd  rw", "odd", vec!["rw"]),
            (b"9 1 0:50 / /odd rw - odd s rw,a=one\ntwo,three", "odd", vec!["rw", "a=one", "two", "three"]),
            (b"9 1 0:50 / /odd rw - odd s rw,a=\n7 8 x", "odd", vec!["rw", "a=", "7 8 x"]),
            (b"9 1 0:50 / /odd rw shared:1 odd s rw", "", vec![""]),
            (b"9 1 0:50 / /odd rw", "", vec![""]),
        ] {
            let text = [NODE, odd, b"\n", b"10 1 8:0 / /after rw - xfs /dev/sda rw\n"].concat();
            let table = MountTable::parse(&text).unwrap();
            assert_eq!(table.iter().count(), node().iter().count() + 2, "{}", String::from_utf8_lossy(odd));
            let mount = table.iter().find(|mount| mount.target == Path::new("/odd")).unwrap();
            assert_eq!(
                (mount.fstype.as_str(), &mount.super_options),
                (fstype, &options.iter().map(|option| (*option).to_owned()).collect())
            );
        }
    }

    #[test]
    fn a_mount_that_is_shown_twice_counts_once_as_it_was_last() {
        let table = MountTable::parse(
            b"1 1 8:0 / / rw - xfs /dev/sda rw\n7 1 8:1 / /a rw - xfs /dev/sdb rw\n7 1 8:1 / /b ro - xfs /dev/sdb rw\n",
        );
        let targets: Vec<_> = table.unwrap().iter().map(|mount| mount.target.clone()).collect();
        assert_eq!(targets, [Path::new("/"), Path::new("/b")]);
    }

    #[test]
    fn an_earlier_reading_adds_what_a_later_one_has_overlooked() {
        let line = |id: u64, at: &str| format!("{id} 1 8:{id} / {at} rw - xfs /dev/sda rw\n");
        let table = |lines: &[(u64, &str)]| {
            let text = lines.iter().map(|(id, at)| line(*id, at)).collect::<String>();
            MountTable::parse(text.as_bytes()).unwrap()
        };
        let merged = table(&[(1, "/"), (3, "/new")]).with_missing_from(table(&[(1, "/"), (2, "/kept"), (3, "/gone")]));
        let mut at: Vec<_> = merged.iter().map(|mount| (mount.id, mount.target.to_str().unwrap())).collect();
        at.sort_unstable();
        assert_eq!(at, [(1, "/"), (2, "/kept"), (3, "/new")]);
    }

    fn escaped(path: &str) -> String {
        path.chars().fold(String::new(), |text, c| match c {
            ' ' | '\t' | '\n' | '\\' | '#' => format!("{text}\\{:03o}", u32::from(c)),
            other => format!("{text}{other}"),
        })
    }

    prop_compose! {
        fn mounts()(
            ids in (1_u64..u64::MAX, 1_u64..9999, 0_u64..300, 0_u64..99999),
            root in "/[ -~\\t\\n]{0,20}",
            target in "/[ -~\\t\\n]{0,20}",
            tags in proptest::collection::vec("(shared|master|propagate_from):[0-9]{1,4}", 0..4),
            source in "[ -~]{0,12}",
            options in proptest::collection::vec("[a-z=0-9]{1,8}", 1..5),
        ) -> Mount {
            Mount {
                id: ids.0, parent: ids.1, device: DeviceNumber { major: ids.2, minor: ids.3 },
                root: root.into(), target: target.into(), options: options.clone(), propagation: tags,
                fstype: "xfs".into(), source: source.into(), super_options: options,
            }
        }
    }

    fn printed(mount: &Mount) -> String {
        let tags = mount.propagation.iter().map(|tag| format!(" {tag}")).collect::<String>();
        let (root, target) = (mount.root.to_str().unwrap(), mount.target.to_str().unwrap());
        format!(
            "{} {} {} {} {} {}{tags} - {} {} {}\n",
            mount.id,
            mount.parent,
            mount.device,
            escaped(root),
            escaped(target),
            mount.options.join(","),
            mount.fstype,
            escaped(mount.source.to_str().unwrap()),
            mount.super_options.join(",")
        )
    }

    proptest! {
        #[test]
        fn what_the_kernel_prints_is_read_back(mounts in proptest::collection::vec(mounts(), 0..8)) {
            let text = mounts.iter().map(printed).collect::<String>();
            prop_assert_eq!(MountTable::parse(text.as_bytes()).unwrap(), MountTable { mounts });
        }

        #[test]
        fn no_bytes_and_no_cycle_of_mounts_stops_the_program(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            mounts in proptest::collection::vec(mounts(), 0..8),
            path in "/[a-z/ ]{0,20}",
        ) {
            drop(MountTable::parse(&bytes));
            drop(MountTable { mounts }.at(Path::new(&path)).cloned());
        }
    }

    #[test]
    fn fuzz_a_table_has_no_more_mounts_than_lines_and_questions_about_it_end() {
        let words: [&[u8]; 7] = [b" - ", b"\\040", b"\\134", b"\n", b" shared:1", b"0:0", b" / / "];
        crate::fuzz::fuzz("mountinfo", &[NODE], &words, |bytes| {
            let Ok(table) = MountTable::parse(bytes) else { return };
            assert!(table.iter().count() <= bytes.split(|byte| *byte == b'\n').count());
            for mount in table.iter() {
                assert!(table.at(&mount.target).is_none_or(|top| top.target == mount.target));
            }
        });
    }
}
