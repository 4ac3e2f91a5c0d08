//! The decision tables, in full: every kind of thing that can be seen, with every wish.

use super::*;
use crate::host::device::number::DeviceNumber;
use crate::host::probe::blkid::{Filesystem, Luks};

const ASKED: [Option<FsKind>; 5] =
    [None, Some(FsKind::Xfs), Some(FsKind::Ext4), Some(FsKind::Ext3), Some(FsKind::Btrfs)];

fn device() -> Device {
    Device::fake("/dev/sda", DeviceNumber { major: 8, minor: 0 }, 1 << 30)
}

fn contents() -> Vec<Content> {
    let whole = |kind| Content::Filesystem(Filesystem { kind, uuid: None, label: None });
    let mut all = vec![
        Content::AllZero,
        Content::Encrypted(Luks { version: Some(2), subsystem: None }),
        Content::OtherSignature { what: "LVM".into() },
        Content::Ambivalent { what: "xfs and a partition table".into() },
        Content::Unrecognised { at: 512, what: None },
    ];
    for kind in FsKind::ALL {
        // A new kind of content does not compile here, and so finds its way into the table.
        match whole(kind) {
            Content::AllZero
            | Content::Filesystem(_)
            | Content::Unfinished(_)
            | Content::Encrypted(_)
            | Content::OtherSignature { .. }
            | Content::Ambivalent { .. }
            | Content::Unrecognised { .. } => all.extend([whole(kind), Content::Unfinished(kind)]),
        }
    }
    all
}

/// The outcome in one word: what is mounted, what is formatted, or which refusal.
fn outcome(asked: Option<FsKind>, default: FsKind, formatting: Formatting, content: &Content) -> String {
    match plan_disk(&device(), asked, default, formatting, content) {
        Ok(DiskPlan::Mount(fs)) => format!("mount {fs}"),
        Ok(DiskPlan::FormatThenMount(fs)) => format!("format {fs}"),
        Err(Error::WrongFilesystem { have, want, .. }) => format!("{have} is not {want}"),
        Err(Error::WillNotFormat { found, cure, .. }) => {
            assert!(found.contains(&content.to_string()), "{found}");
            let words = [
                ("noformat", "never"),
                ("read-only", "read-only"),
                ("`encrypted = \"true\"`", "is encrypted"),
                ("wipefs /dev/sda", "left alone"),
            ];
            let why = words.iter().find(|(word, _)| cure.contains(word)).map(|(_, why)| *why);
            why.unwrap_or_else(|| panic!("{cure}")).to_owned()
        }
        Err(other) => panic!("{content:?}: {other}"),
    }
}

#[test]
fn the_decision_about_a_disk_in_full() {
    for content in contents() {
        for asked in ASKED {
            for default in FsKind::ALL {
                for formatting in [Formatting::Allowed, Formatting::Never, Formatting::ReadOnly] {
                    let format = |fs: FsKind| match formatting {
                        Formatting::Allowed => format!("format {fs}"),
                        Formatting::Never => "never".to_owned(),
                        Formatting::ReadOnly => "read-only".to_owned(),
                    };
                    let want = match (&content, asked) {
                        (Content::AllZero, Some(fs)) => format(fs),
                        (Content::AllZero, None) => format(default),
                        (Content::Filesystem(found), None) => format!("mount {}", found.kind),
                        (Content::Filesystem(found), Some(fs)) if fs == found.kind => format!("mount {fs}"),
                        (Content::Filesystem(found), Some(fs)) => format!("{} is not {fs}", found.kind),
                        (Content::Unfinished(kind), None) => format(*kind),
                        (Content::Unfinished(kind), Some(fs)) if fs == *kind => format(fs),
                        (Content::Encrypted(_), _) => "is encrypted".to_owned(),
                        _ => "left alone".to_owned(),
                    };
                    let got = outcome(asked, default, formatting, &content);
                    assert_eq!(got, want, "{content:?} {asked:?} {default} {formatting:?}");
                }
            }
        }
    }
}

#[test]
fn nothing_but_a_blank_disk_or_a_cut_off_format_is_ever_formatted() {
    for content in contents() {
        for asked in ASKED {
            let outcome = outcome(asked, FsKind::Ext4, Formatting::Allowed, &content);
            let may_be = matches!(content, Content::AllZero | Content::Unfinished(_));
            assert!(may_be || !outcome.starts_with("format"), "{content:?} {asked:?}: {outcome}");
        }
    }
}

#[test]
fn the_decision_about_a_place_in_full() {
    let place = Path::new("/csi/staging/vol");
    let table = [
        (MountPointState::Free, Ok(MountPointPlan::Mount)),
        (MountPointState::AsRequested, Ok(MountPointPlan::Keep)),
        (MountPointState::Dead(Health::DiskGone), Ok(MountPointPlan::ClearThenMount(Health::DiskGone))),
        (MountPointState::Dead(Health::ShutDown), Ok(MountPointPlan::ClearThenMount(Health::ShutDown))),
        (MountPointState::Dead(Health::NodeGone), Ok(MountPointPlan::ClearThenMount(Health::NodeGone))),
        (MountPointState::Mismatched("is mounted without noexec".into()), Err("is mounted without noexec")),
        (MountPointState::ReadOnlyAfterError, Err("the kernel has seen errors")),
        (MountPointState::Foreign { what: "/dev/sdb (xfs) is mounted there".into() }, Err("taken: /dev/sdb (xfs)")),
    ];
    for (at, want) in table {
        let mounted = plan_mounted(place, &at);
        assert_eq!(mounted.is_ok(), at == MountPointState::AsRequested, "{mounted:?}");
        match (plan_mount_point(place, &at), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{at:?}"),
            (Err(err), Err(words)) => {
                let text = err.to_string();
                assert!(text.contains(words) && text.contains("/csi/staging/vol"), "{at:?}: {text}");
            }
            (got, want) => panic!("{at:?}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn the_decision_about_a_second_mount_in_full() {
    let at = || PathBuf::from("/other");
    for asked in ASKED {
        for is_read_only in [false, true] {
            let plan = |superblock: &Superblock| plan_mount(&device(), asked, is_read_only, superblock);
            assert_eq!(plan(&Superblock::Unmounted).unwrap(), MountPlan::First);
            for kind in FsKind::ALL {
                let fstype = || kind.name().to_owned();
                let writable = plan(&Superblock::Writable { at: at(), fstype: fstype() });
                let read_only = plan(&Superblock::ReadOnly { at: at(), fstype: fstype() });
                if asked.is_some_and(|fs| fs != kind) {
                    assert!(matches!(writable, Err(Error::WrongFilesystem { .. })));
                    assert!(matches!(read_only, Err(Error::WrongFilesystem { .. })));
                } else if is_read_only {
                    assert_eq!(writable.unwrap(), MountPlan::AgainReadOnly { at: at() });
                    assert_eq!(read_only.unwrap(), MountPlan::Again(kind));
                } else {
                    assert_eq!(writable.unwrap(), MountPlan::Again(kind));
                    assert_eq!(read_only.unwrap(), MountPlan::AgainWritable(kind));
                }
            }
            let foreign = Superblock::Writable { at: at(), fstype: "ext2".into() };
            let dead = |health| Superblock::Dead { at: at(), health };
            let refused = [foreign, Superblock::Broken { at: at() }, dead(Health::DiskGone), dead(Health::ShutDown)];
            for superblock in refused {
                let text = plan(&superblock).unwrap_err().to_string();
                assert!(text.contains("/other"), "{superblock:?}: {text}");
            }
        }
    }
}

#[test]
fn one_writer_has_one_place_and_the_others_have_several() {
    let volume = VolumeName::parse("blog").unwrap();
    let modes = [
        (AccessMode::SingleNodeWriter, true),
        (AccessMode::SingleNodeReaderOnly, true),
        (AccessMode::SingleNodeMultiWriter, true),
        (AccessMode::SingleNodeSingleWriter, false),
    ];
    for (mode, allows_several) in modes {
        assert!(plan_target(&volume, mode, None).is_ok(), "{mode:?}");
        let second = plan_target(&volume, mode, Some(Path::new("/first")));
        assert_eq!(second.is_ok(), allows_several, "{mode:?}");
        assert!(second.err().is_none_or(|err| err.to_string().contains("/first")));
    }
}

#[test]
fn a_disk_takes_writes_from_all_its_raw_users_or_from_none() {
    let volume = VolumeName::parse("blog").unwrap();
    let elsewhere = Some(Path::new("/other"));
    let table = [
        (false, false, None, Some(ProtectionPlan::Keep)),
        (false, false, elsewhere, Some(ProtectionPlan::Keep)),
        (false, true, None, Some(ProtectionPlan::Unprotect)),
        (false, true, elsewhere, None),
        (true, false, None, Some(ProtectionPlan::Protect)),
        (true, false, elsewhere, None),
        (true, true, None, Some(ProtectionPlan::Keep)),
        (true, true, elsewhere, Some(ProtectionPlan::Keep)),
    ];
    for (is_read_only, is_protected, other, want) in table {
        let got = plan_protection(&volume, is_read_only, is_protected, other);
        assert_eq!(got.ok(), want, "{is_read_only} {is_protected} {other:?}");
    }
}

#[test]
fn a_volume_is_raw_or_has_a_file_system_but_not_both() {
    let volume = VolumeName::parse("blog").unwrap();
    for is_raw in [false, true] {
        assert!(plan_exclusive_use(&volume, is_raw, None).is_ok());
        let refused = plan_exclusive_use(&volume, is_raw, Some(Path::new("/other"))).unwrap_err().to_string();
        assert!(refused.contains("/other"), "{refused}");
    }
}
