//! What is found about a disk's holders, on trees of sysfs and mount tables that are made for each test.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::host::holders::process::{Owner, Place};

const BUDGET: Duration = Duration::from_secs(60);

fn process(pid: u32, command: &str, owner: Option<Owner>) -> Process {
    Process { pid, command: command.to_owned(), owner }
}

fn holders(found: Vec<Holder>, sees_all: bool, is_cut_short: bool) -> String {
    Holders { found, sees_all, hides_some: false, is_cut_short, of_users: None, command: "`grep x`".to_owned() }
        .to_string()
}

#[test]
fn every_holder_is_named_with_what_ends_it() {
    let container = || Some(Owner::Container("4f5e6d7c8b9a".to_owned()));
    let (at, by) = (PathBuf::from("/host/srv"), process(7, "exporter", container()));
    for (holder, words) in [
        (
            Holder::Mounted { at: at.clone(), by: by.clone(), is_host: false },
            &["/host/srv", "process 7 (exporter) of container 4f5e6d7c8b9a", "`nsenter -t 7 -m umount /host/srv`"][..],
        ),
        (Holder::Mounted { at: at.clone(), by: by.clone(), is_host: true }, &["droplet's own", "process 7"]),
        (Holder::Below { at: at.clone(), fstype: "tmpfs".into() }, &["tmpfs is mounted below", "`umount /host/srv`"]),
        (Holder::Open { path: at.clone(), by: by.clone() }, &["process 7 (exporter)", "/host/srv open"]),
        (
            Holder::Place { place: Place::Directory, path: at.clone(), by },
            &["process 7", "working directory", "/host/srv"],
        ),
        (
            Holder::Node { path: at.clone(), by: process(7, "exporter", None) },
            &["process 7", "/host/srv open", "perhaps"],
        ),
        (
            Holder::Detached { path: at.clone(), by: process(7, "exporter", None) },
            &["/host/srv open", "taken away lazily"],
        ),
        (Holder::Device { name: "md0".into(), mapped: None }, &["md0", "mdadm --stop /dev/md0"]),
        (
            Holder::Device { name: "dm-3".into(), mapped: Some("vg-lv".into()) },
            &["dm-3 (vg-lv)", "dmsetup remove vg-lv"],
        ),
        (Holder::Loop { name: "loop7".into(), file: at.clone() }, &["loop7", "/host/srv", "losetup -d /dev/loop7"]),
        (Holder::Swap(at), &["/host/srv", "swapoff"]),
    ] {
        let text = holders(vec![holder], true, false);
        words.iter().for_each(|word| assert!(text.contains(word), "{word}: {text}"));
    }
}

#[test]
fn a_message_names_some_of_many_and_says_where_to_look_when_nothing_was_found() {
    let open = |pid| Holder::Open { path: "/f".into(), by: process(pid, "x", None) };
    let text = holders((1..=9).map(open).collect(), true, false);
    assert!(text.contains("process 4 ") && !text.contains("process 5 ") && text.ends_with(", and 5 more"), "{text}");
    assert!(!holders((1..=4).map(open).collect(), true, false).contains("more"));
    let node = Holder::Node { path: "/dev/sda".into(), by: process(7, "x", None) };
    let text = holders(vec![node], true, false);
    assert!(
        text.contains("process 7 (x) has /dev/sda open, perhaps") && text.contains("; besides, no mount"),
        "{text}"
    );
    for (sees_all, is_cut_short, words) in [
        (false, false, "only the processes of its own container"),
        (false, true, "only the processes of its own container"),
        (true, true, "too many processes"),
        (true, false, "frozen"),
    ] {
        let text = holders(Vec::new(), sees_all, is_cut_short);
        assert!(text.contains(words) && text.contains("`grep x`"), "{text}");
    }
}

#[test]
fn who_uses_a_mount_is_told_by_another_command() {
    for (sees_all, words) in
        [(true, "seen from here; on the droplet"), (false, "only the processes of its own container")]
    {
        let of_users = Some("`fuser -vm /dev/sda`".to_owned());
        let command = "`grep x`".to_owned();
        let text = Holders { found: Vec::new(), sees_all, hides_some: false, is_cut_short: false, of_users, command }
            .to_string();
        assert!(text.contains(words) && text.contains("`fuser -vm /dev/sda`"), "{text}");
    }
}

#[test]
fn the_users_of_a_file_system_and_those_of_a_raw_disk_are_shown_by_its_device() {
    for (line, want) in [
        ("9 1 8:0 / /m rw - xfs /dev/sda rw\n", "`fuser -vm /dev/sda`"),
        ("9 1 0:41 / /m rw - btrfs /dev/mapper/do-csi-x rw\n", "`fuser -vm /dev/mapper/do-csi-x`"),
        ("9 1 0:5 /sda /m rw - devtmpfs udev rw\n", "`fuser -v /dev/sda`"),
        ("9 1 0:5 /sda//deleted /m rw - devtmpfs udev rw\n", "`fuser -v /dev/sda`"),
    ] {
        let table = MountTable::parse(line.as_bytes()).unwrap();
        assert_eq!(command_for_users(table.iter().next().unwrap()), want);
    }
}

#[test]
fn a_disk_is_known_by_all_that_is_made_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let class = dir.path().join("class/block");
    fs::create_dir_all(&class).unwrap();
    let add = |path: &str, number: &str| {
        let directory = dir.path().join("devices").join(path);
        fs::create_dir_all(directory.join("holders")).unwrap();
        fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
        symlink(&directory, class.join(directory.file_name().unwrap())).unwrap();
        directory
    };
    let (disk, part, mapped) = (add("sda", "8:0"), add("sda/sda1", "8:1"), add("dm-3", "253:3"));
    fs::write(part.join("partition"), "1\n").unwrap();
    fs::create_dir(mapped.join("dm")).unwrap();
    fs::write(mapped.join("dm/name"), "vg-lv\n").unwrap();
    symlink(&mapped, part.join("holders/dm-3")).unwrap();
    add("sdb", "8:16");
    let sought = Sought::read(&disk, Path::new("/dev"), &class);
    assert_eq!(sought.numbers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["8:0", "8:1", "253:3"]);
    assert_eq!(sought.nodes, ["/dev/sda", "/dev/sda1", "/dev/dm-3", "/dev/mapper/vg-lv"].map(PathBuf::from));
    assert_eq!(made_of(&sought), [Holder::Device { name: "dm-3".into(), mapped: Some("vg-lv".into()) }]);
    assert!(sought.command().starts_with("`grep -lE ' 8:0 | 8:1 | 253:3 | /dev/sda | "), "{}", sought.command());
    let is_under = |line: &str| {
        let table = MountTable::parse(format!("9 1 {line}\n").as_bytes()).unwrap();
        sought.is_under(table.iter().next().unwrap())
    };
    for (line, want) in [
        ("8:0 / /m rw - xfs /dev/disk rw", true),
        ("253:3 / /m rw - ext4 /dev/mapper/vg-lv rw", true),
        ("0:40 / /m rw - btrfs /dev/sda1 rw", true),
        ("0:40 / /m rw - tmpfs /dev/sda1 rw", false),
        ("8:16 / /m rw - xfs /dev/sda rw", false),
    ] {
        assert_eq!(is_under(line), want, "{line}");
    }
    fs::create_dir(disk.join("loop")).unwrap();
    fs::write(disk.join("loop/backing_file"), "/srv/image\n").unwrap();
    let shown = |below: &str| loops(&Proc::at(dir.path()), &class, |file: &Path| file.starts_with(below)).len();
    assert_eq!((shown("/srv"), shown("/other")), (1, 0));
    assert_eq!(Sought::read(&dir.path().join("none"), Path::new("/dev"), &class).numbers, []);
}

#[test]
fn a_copy_of_a_mount_is_known_by_its_peer_group() {
    let table =
        |tags: &str| MountTable::parse(format!("9 1 8:0 / /m rw {tags}- xfs /dev/sda rw\n").as_bytes()).unwrap();
    let other =
        |tags: &str| MountTable::parse(format!("10 1 8:0 / /m rw {tags}- xfs /dev/sda rw\n").as_bytes()).unwrap();
    for (tags, tags_of_other, want) in [
        ("shared:5 ", "shared:5 ", true),
        ("shared:5 ", "master:5 ", true),
        ("shared:5 ", "shared:7 master:5 ", true),
        ("shared:5 ", "shared:6 ", false),
        ("shared:5 ", "", false),
        ("", "", false),
        ("master:5 ", "master:5 ", false),
    ] {
        let (table, other) = (table(tags), other(tags_of_other));
        assert_eq!(is_copy(other.iter().next().unwrap(), table.iter().next().unwrap()), want, "{tags}{tags_of_other}");
    }
    let own = table("shared:5 ");
    assert!(!is_copy(own.iter().next().unwrap(), own.iter().next().unwrap()));
    // What else was bound from the same mount.
    for (line, want) in [
        ("8:0 / /opt/a/b/c rw shared:5 - xfs /dev/sda rw", true),
        ("8:0 / /opt/x/b/c rw shared:5 - xfs /dev/sda rw", false),
        ("8:0 /part /opt/a/b/c rw shared:5 - xfs /dev/sda rw", false),
    ] {
        let text = format!("9 1 8:0 / /local/a/b/c rw shared:5 - xfs /dev/sda rw\n10 1 {line}\n");
        let table = MountTable::parse(text.as_bytes()).unwrap();
        let [mount, other] = [0, 1].map(|at| table.iter().nth(at).unwrap());
        assert_eq!(is_copy(other, mount), want, "{line}");
    }
}

#[test]
fn a_command_to_paste_runs_nothing_that_somebody_else_has_chosen() {
    let (path, by) = (PathBuf::from("/srv/a'; rm x `id`"), process(7, "a\u{1b}[2J", None));
    for holder in [
        Holder::Mounted { at: path.clone(), by: by.clone(), is_host: false },
        Holder::Below { at: path.clone(), fstype: "tmpfs".into() },
        Holder::Loop { name: "loop7".into(), file: path.clone() },
        Holder::Open { path: "/srv/a\n2026 ERROR".into(), by },
        Holder::Swap(path),
    ] {
        let text = holder.to_string();
        assert!(!text.contains("/srv/a'; rm") && !text.chars().any(char::is_control), "{text}");
    }
}

#[test]
fn who_writes_by_a_mapping_alone_is_seen_also_where_no_mounts_are() {
    let dir = tempfile::tempdir().unwrap();
    let (proc, all, node) = (dir.path().join("proc"), dir.path().join("all"), dir.path().join("node"));
    fs::create_dir_all(proc.join("7/ns")).unwrap();
    fs::create_dir_all(proc.join("7/fd")).unwrap();
    fs::create_dir(&all).unwrap();
    fs::write(&node, "").unwrap();
    symlink("mnt:[1]", proc.join("7/ns/mnt")).unwrap();
    // As a process sees it whose root was taken away lazily.
    fs::write(proc.join("7/mountinfo"), "").unwrap();
    let sought = Sought {
        numbers: vec![DeviceNumber { major: 8, minor: 0 }],
        nodes: vec![node.clone()],
        all,
        ..Sought::default()
    };
    let found = fs::metadata(&node).unwrap();
    let DeviceNumber { major, minor } = DeviceNumber::from_raw(found.dev());
    for (access, is_writer) in [("r--s", false), ("rw-p", false), ("rw-s", true)] {
        let line = format!("7f00-7f01 {access} 00000000 {major:02x}:{minor:02x} {} {}\n", found.ino(), node.display());
        fs::write(proc.join("7/maps"), line).unwrap();
        let holders = observe_writers_in(&proc, &sought, BUDGET).unwrap();
        assert_eq!(!holders.found().is_empty(), is_writer, "{access}: {holders:?}");
    }
    // A process that hangs while its memory is changed.
    fs::remove_file(proc.join("7/maps")).unwrap();
    nix::unistd::mkfifo(&proc.join("7/maps"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for _ in 0..2 {
        let holders = observe_writers_in(&proc, &sought, BUDGET).unwrap();
        assert!(holders.found().is_empty() && !holders.saw_all());
    }
    fs::write(proc.join("7/maps"), "").unwrap();
}

#[test]
fn nodes_are_looked_for_on_every_file_system_that_surely_answers() {
    for (line, want) in [
        ("8:1 / / rw - ext2 /dev/sda1 rw", true),
        ("7:1 / /snap ro - squashfs /dev/loop1 ro", true),
        ("0:40 / / rw - zfs rpool/root rw", true),
        ("0:5 / /dev rw - devtmpfs udev rw", true),
        ("0:50 / /n rw - nfs4 server:/x rw", false),
        ("0:51 / /f rw - fuse.sshfs x rw", false),
        ("8:1 / /f rw - fuseblk /dev/sda1 rw", false),
    ] {
        let table = MountTable::parse(format!("9 1 {line}\n").as_bytes()).unwrap();
        assert_eq!(surely_answers(table.iter().next().unwrap()), want, "{line}");
    }
}

#[test]
fn swap_space_is_read_from_its_list() {
    let text =
        b"Filename\t\t\t\tType\t\tSize\n/dev/dm-1                               partition\t1\n/srv/a\\040b file\t\t2\n";
    assert_eq!(parse_swaps(text), [PathBuf::from("/dev/dm-1"), PathBuf::from("/srv/a b")]);
    assert_eq!(parse_swaps(b""), Vec::<PathBuf>::new());
}

#[test]
fn nothing_found_is_no_answer_when_something_could_not_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (proc, all) = (dir.path().join("proc"), dir.path().join("all"));
    let sought = Sought { numbers: vec![DeviceNumber { major: 8, minor: 0 }], all: all.clone(), ..Sought::default() };
    fs::create_dir_all(proc.join("7/ns")).unwrap();
    fs::create_dir(&all).unwrap();
    symlink("mnt:[1]", proc.join("7/ns/mnt")).unwrap();
    fs::write(proc.join("7/mountinfo"), "9 1 8:16 / / rw - xfs /dev/sdb rw\n").unwrap();
    let looked = || observe_writers_in(&proc, &sought, BUDGET);
    // A process that is gone when its files are looked at has none.
    assert!(looked().unwrap().found().is_empty());
    fs::create_dir_all(proc.join("7/fd")).unwrap();
    assert!(looked().unwrap().found().is_empty());
    for unreadable in [proc.join("7/fd"), proc.join("7/mountinfo"), all.clone()] {
        let aside = dir.path().join("aside");
        fs::rename(&unreadable, &aside).unwrap();
        // A link to itself cannot be followed, whoever asks.
        symlink(&unreadable, &unreadable).unwrap();
        assert!(matches!(looked(), Err(Error::Io { .. })), "{}", unreadable.display());
        fs::remove_file(&unreadable).unwrap();
        fs::rename(&aside, &unreadable).unwrap();
        assert!(looked().is_ok(), "{}", unreadable.display());
    }
    assert!(matches!(observe_writers_in(&dir.path().join("none"), &sought, BUDGET), Err(Error::Io { .. })));
    let unknown = Sought { all, ..Sought::default() };
    // A look that was not seen to its end proves nothing.
    let hasty = observe_writers_in(&proc, &sought, Duration::ZERO).unwrap_err();
    assert!(crate::error::Chain(&hasty).to_string().contains("in time"), "{hasty}");
    assert!(matches!(observe_writers_in(&proc, &unknown, BUDGET), Err(Error::Io { .. })));
}
