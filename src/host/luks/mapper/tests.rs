//! Open encrypted volumes, on trees of sysfs that are made for each test.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::under_mount::observe_mapping_under;

fn volume(name: &str) -> VolumeName {
    VolumeName::parse(name).unwrap()
}

/// A sysfs in which `dm-0` lies on `sda`, as Linux has it.
struct Tree {
    dir: tempfile::TempDir,
    places: DevicePlaces,
}

impl Tree {
    fn new(name: &str, uuid: &str) -> Tree {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = dir.path().join("sys");
        let places = DevicePlaces { sysfs, ..DevicePlaces::default() };
        let tree = Tree { dir, places };
        tree.disk("sda", "8:0", &["holders"]);
        tree.disk("dm-0", "253:0", &["slaves", "dm"]);
        tree.write("devices/dm-0/size", "2064384");
        tree.write("devices/dm-0/dm/name", name);
        tree.write("devices/dm-0/dm/uuid", uuid);
        tree.link("devices/sda/holders/dm-0", "../../dm-0");
        tree.link("devices/dm-0/slaves/sda", "../../sda");
        tree
    }

    fn ours() -> Tree {
        Tree::new("do-csi-blog", "CRYPT-LUKS2-8e30659226bb42e4ae290381499574f3-do-csi-blog")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.places.sysfs.join(path)
    }

    fn write(&self, path: &str, text: &str) {
        std::fs::write(self.path(path), format!("{text}\n")).unwrap();
    }

    fn link(&self, path: &str, to: &str) {
        std::fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        symlink(to, self.path(path)).unwrap();
    }

    fn disk(&self, name: &str, number: &str, directories: &[&str]) {
        std::fs::create_dir_all(self.path("devices").join(name)).unwrap();
        for directory in directories {
            std::fs::create_dir_all(self.path("devices").join(name).join(directory)).unwrap();
        }
        self.write(&format!("devices/{name}/dev"), number);
        self.link(&format!("class/block/{name}"), &format!("../../devices/{name}"));
        self.link(&format!("dev/block/{number}"), &format!("../../devices/{name}"));
    }

    /// What the kernel does when a disk is pulled whose device is still in use, and another comes in its place.
    fn replace_disk(&self) {
        std::fs::remove_dir_all(self.path("devices/sda")).unwrap();
        std::fs::create_dir_all(self.path("devices/sda/holders")).unwrap();
        self.write("devices/sda/dev", "8:0");
    }

    fn sda(&self) -> Device {
        let number = DeviceNumber { major: 8, minor: 0 };
        let sysfs = self.path("class/block/sda");
        Device { volume: volume("blog"), sysfs, ..Device::fake("/dev/sda", number, 1 << 30) }
    }
}

fn mount(device: &str, fs: &str) -> Mount {
    let line = format!("9 1 {device} / /s rw - {fs} rw\n");
    MountTable::parse(line.as_bytes()).unwrap().iter().next().unwrap().clone()
}

#[test]
fn a_device_counts_only_when_the_disk_names_it_and_it_names_the_disk() {
    let tree = Tree::ours();
    let DiskHolder::Open(open) = observe_holder_of(&tree.places, &tree.sda()).unwrap() else { panic!("it is open") };
    assert_eq!((open.path(), open.size()), (Path::new("/dev/dm-0"), Bytes(2_064_384 * 512)));
    assert_eq!(open.number(), DeviceNumber { major: 253, minor: 0 });
    assert!(open.is_called(Path::new("/dev/mapper/do-csi-blog")) && !open.is_called(Path::new("/dev/sda")));
    assert_eq!(observe_open_as(&tree.places, &tree.sda(), "do-csi-blog").unwrap(), Some(*open));
    assert_eq!(observe_open_as(&tree.places, &tree.sda(), "do-csi-other").unwrap(), None);

    // It lies on another disk too, or another device lies on the disk.
    tree.disk("sdb", "8:16", &["holders"]);
    tree.link("devices/dm-0/slaves/sdb", "../../sdb");
    assert_eq!(observe_holder_of(&tree.places, &tree.sda()).unwrap(), DiskHolder::Other("dm-0".into()));
    tree.link("devices/sda/holders/md0", "../../md0");
    assert_eq!(observe_holder_of(&tree.places, &tree.sda()).unwrap(), DiskHolder::Other("dm-0 and md0".into()));

    tree.replace_disk();
    assert_eq!(observe_holder_of(&tree.places, &tree.sda()).unwrap(), DiskHolder::Nothing);
}

#[test]
fn what_others_have_made_is_not_ours() {
    for (name, uuid) in [
        ("do-csi-other", "CRYPT-LUKS2-8e30659226bb42e4ae290381499574f3-do-csi-other"),
        ("vg-lv", "LVM-abc"),
        ("do-csi-blog", "LVM-abc"),
        ("do-csi-blog", "CRYPT-LUKS1-8e30659226bb42e4ae290381499574f3-do-csi-blog"),
        ("backup", "CRYPT-LUKS2-8e30659226bb42e4ae290381499574f3-backup"),
    ] {
        let tree = Tree::new(name, uuid);
        assert_eq!(
            observe_holder_of(&tree.places, &tree.sda()).unwrap(),
            DiskHolder::Other("dm-0".into()),
            "{name} {uuid}"
        );
    }
}

#[test]
fn what_a_killed_cryptsetup_has_left_is_known_by_its_uuid() {
    for (uuid, is_temporary) in [
        ("CRYPT-TEMP-temporary-cryptsetup-12-0", true),
        ("CRYPT-TEMP-other", false),
        ("CRYPT-PLAIN-temporary-cryptsetup-12-0", false),
    ] {
        let name = "temporary-cryptsetup-12-0";
        let tree = Tree::new(name, uuid);
        let want = if is_temporary { DiskHolder::Temporary(name.into()) } else { DiskHolder::Other("dm-0".into()) };
        assert_eq!(observe_holder_of(&tree.places, &tree.sda()).unwrap(), want, "{uuid}");
    }
}

#[test]
fn a_device_that_is_being_taken_away_is_neither_open_nor_gone() {
    let tree = Tree::ours();
    let under = observe_mapping_under(&tree.places, &mount("253:0", "xfs /dev/dm-0")).unwrap().unwrap();
    std::fs::remove_dir_all(tree.path("devices/dm-0/dm")).unwrap();
    assert_eq!(observe_holder_of(&tree.places, &tree.sda()).unwrap(), DiskHolder::Closing("dm-0".into()));
    assert!(observe_is_open(&tree.places, &under).unwrap());
    std::fs::remove_file(tree.path("devices/sda/holders/dm-0")).unwrap();
    std::fs::remove_file(tree.path("dev/block/253:0")).unwrap();
    assert_eq!(observe_holder_of(&tree.places, &tree.sda()).unwrap(), DiskHolder::Nothing);
    assert!(!observe_is_open(&tree.places, &under).unwrap());
    // Its number may be another device's by then.
    tree.disk("dm-1", "253:0", &["dm"]);
    tree.write("devices/dm-1/dm/name", "do-csi-other");
    tree.write("devices/dm-1/dm/uuid", "CRYPT-LUKS2-8e30659226bb42e4ae290381499574f3-do-csi-other");
    assert!(!observe_is_open(&tree.places, &under).unwrap());
}

#[test]
fn what_a_person_has_to_do_first_is_said() {
    let tree = Tree::ours();
    let DiskHolder::Open(open) = observe_holder_of(&tree.places, &tree.sda()).unwrap() else { panic!("it is open") };
    let manual_access = open.manual_access();
    assert!(manual_access.first.contains("cryptsetup open /dev/sda by-hand"), "{manual_access:?}");
    assert_eq!(manual_access.path, "/dev/mapper/by-hand");
    assert_eq!((tree.sda().manual_access().first.as_str(), tree.sda().manual_access().path.as_str()), ("", "/dev/sda"));
}

#[test]
fn all_that_is_open_is_seen_and_nothing_of_others() {
    let tree = Tree::ours();
    tree.disk("dm-1", "253:1", &["dm"]);
    tree.write("devices/dm-1/dm/name", "backup");
    tree.write("devices/dm-1/dm/uuid", "CRYPT-LUKS2-8e30659226bb42e4ae290381499574f3-backup");
    let number = DeviceNumber { major: 253, minor: 0 };
    assert_eq!(observe_all_open(&tree.places).unwrap(), [("do-csi-blog".to_owned(), number)]);
    std::fs::remove_dir_all(tree.path("class/block")).unwrap();
    assert_eq!(observe_all_open(&tree.places).unwrap(), []);
}

#[test]
fn a_mount_leads_to_the_device_and_the_disk_below() {
    let tree = Tree::ours();
    let (number, disk) = (DeviceNumber { major: 253, minor: 0 }, Some(DeviceNumber { major: 8, minor: 0 }));
    let name = || "do-csi-blog".to_owned();
    for (device, fs) in
        [("253:0", "xfs /dev/dm-0"), ("0:41", "btrfs /dev/dm-0"), ("0:41", "btrfs /dev/mapper/do-csi-blog")]
    {
        let under = observe_mapping_under(&tree.places, &mount(device, fs)).unwrap().unwrap();
        assert_eq!(under, LuksMapping { name: name(), number, disk }, "{device} {fs}");
        assert!(observe_is_open(&tree.places, &under).unwrap());
    }
    for (device, fs) in [
        ("8:0", "xfs /dev/sda"),
        ("0:41", "btrfs /dev/sda"),
        ("0:41", "btrfs /dev/mapper/other"),
        ("0:41", "btrfs /dev/disk/by-id/x"),
        ("0:5", "devtmpfs udev"),
    ] {
        assert_eq!(observe_mapping_under(&tree.places, &mount(device, fs)).unwrap(), None, "{device} {fs}");
    }
}

#[test]
fn a_disk_that_is_gone_is_not_taken_for_the_one_that_came_in_its_place() {
    let tree = Tree::ours();
    let number = DeviceNumber { major: 253, minor: 0 };
    assert_eq!(observe_lost(&tree.places, number).unwrap(), None);
    assert_eq!(observe_lost(&tree.places, DeviceNumber { major: 8, minor: 0 }).unwrap(), None);
    tree.replace_disk();
    assert_eq!(observe_lost(&tree.places, number).unwrap().as_deref(), Some("sda"));
    let under = observe_mapping_under(&tree.places, &mount("253:0", "xfs /dev/dm-0")).unwrap().unwrap();
    assert_eq!(under.disk, None);
    std::fs::remove_dir_all(tree.path("devices/sda")).unwrap();
    assert_eq!(observe_lost(&tree.places, number).unwrap().as_deref(), Some("sda"));
    drop(tree.dir);
}

#[test]
fn a_volume_is_opened_under_its_name_or_the_next_that_is_free() {
    let tree = Tree::ours();
    let names = observe_names(&tree.places, &volume("blog")).unwrap();
    assert_eq!(names, Names { free: "do-csi-blog.2".into(), taken: vec!["do-csi-blog".into()] });
    let names = observe_names(&tree.places, &volume("other")).unwrap();
    assert_eq!(names, Names { free: "do-csi-other".into(), taken: Vec::new() });
}

#[test]
fn every_volume_has_names_of_its_own_that_the_device_mapper_takes() {
    let long = "x".repeat(64);
    let odd = ["blog", "blog-2", "blog.2", "a b", "ü", &"x".repeat(65), &"x".repeat(255), &long];
    for name in odd {
        for number in [1, 2, 99] {
            let own = name_of(&volume(name), number);
            let fits = own.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-+.".contains(&byte));
            assert!(fits && own.len() < 128, "{own}");
            for other in odd {
                assert_eq!(is_name_of(&volume(other), &own), other == name, "{other} {own}");
            }
        }
    }
    for bad in ["do-csi-blog.", "do-csi-blog.x", "do-csi-blogs", "do-csi-", "blog"] {
        assert!(!is_name_of(&volume("blog"), bad), "{bad}");
    }
}

#[test]
fn an_open_volume_is_short_when_its_disk_has_grown_and_not_for_its_own_head() {
    let number = DeviceNumber { major: 253, minor: 0 };
    let disk = Device::fake("/dev/sda", number, 2 << 30);
    for (size, want) in
        [((2 << 30) - (16 << 20), false), ((2 << 30) - (136 << 20), false), ((1 << 30) - (16 << 20), true)]
    {
        assert_eq!(is_short(&Device::fake("/dev/dm-0", number, size), &disk), want, "{size}");
    }
}
