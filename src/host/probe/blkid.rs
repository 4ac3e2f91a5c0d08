//! What blkid prints.
//!
//! Owns the meaning of `blkid -p -o export`, and nothing else: running it and judging the disk are `probe/content.rs`'s.

use crate::fs::FsKind;

/// A file system on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Its kind.
    pub kind: FsKind,
    /// Its UUID in lower case.
    pub uuid: Option<String>,
    /// Its label.
    pub label: Option<String>,
}

/// The head of an encrypted volume, as far as blkid reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Luks {
    /// The version of its format: 1 or 2.
    pub version: Option<u32>,
    /// What its maker wrote into it; only version 2 has room for that.
    pub subsystem: Option<String>,
}

/// What blkid found on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) enum Signature {
    /// One of the file systems that this plugin knows.
    Filesystem(Filesystem),
    /// An encrypted volume.
    Encrypted(Luks),
    /// Something else, as a phrase.
    Other { what: String },
    /// More than one thing, as a phrase.
    Several { what: String },
}

/// Reads the output of a blkid that exited with code 0. Never fails: what is not understood is something else.
///
/// Source: blkid(8); `print_value` in util-linux's `misc-utils/blkid.c` puts a backslash before characters that a shell
/// would take apart.
pub(in crate::host) fn parse_export(text: &str) -> Signature {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(unescape);
    let (fs, table) = (value("TYPE"), value("PTTYPE"));
    match (fs, table) {
        (Some(fs), Some(table)) => Signature::Several { what: format!("{fs} and a partition table of type {table}") },
        (None, Some(table)) => Signature::Other { what: format!("a partition table of type {table}") },
        (None, None) => Signature::Other { what: "something that blkid knows but does not name".into() },
        (Some(fs), None) if fs == "crypto_LUKS" => Signature::Encrypted(Luks {
            version: value("VERSION").and_then(|text| text.parse().ok()),
            subsystem: value("SUBSYSTEM"),
        }),
        (Some(fs), None) => match FsKind::parse(&fs) {
            Some(kind) if value("USAGE").as_deref() == Some("filesystem") => {
                let uuid = value("UUID").map(|uuid| uuid.to_ascii_lowercase());
                Signature::Filesystem(Filesystem { kind, uuid, label: value("LABEL") })
            }
            Some(_) | None => Signature::Other { what: described(&fs) },
        },
    }
}

fn described(fs: &str) -> String {
    match fs {
        "LVM2_member" => "a part of an LVM volume group".into(),
        "linux_raid_member" => "a part of a RAID array".into(),
        "swap" => "swap space".into(),
        other => format!("a signature of type {other}"),
    }
}

fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    macro_rules! fixture {
        ($name:literal) => {
            parse_export(include_str!(concat!("../../../tests/fixtures/blkid/", $name, ".txt")))
        };
    }

    fn other(what: &str) -> Signature {
        Signature::Other { what: what.into() }
    }

    #[test]
    fn the_file_systems_we_know_are_known() {
        let known = [
            (fixture!("xfs"), FsKind::Xfs, "1da16e43-50cf-4125-8601-aec52c472f50", Some("data.1")),
            (fixture!("xfs-over-ext4"), FsKind::Xfs, "20fe8b79-c2d4-4dd6-8b9c-c2d85f8df677", None),
            (fixture!("ext4"), FsKind::Ext4, "1cb421ae-4f80-40f4-b087-32cbddd989f6", Some("my = data")),
            (fixture!("ext3"), FsKind::Ext3, "4ebdbcf7-6ef1-4367-870e-eb3640599e3b", None),
            (fixture!("btrfs"), FsKind::Btrfs, "9c802aec-f189-42bb-9b1c-5f3604fb4d7a", None),
        ];
        for (found, kind, uuid, label) in known {
            let want = Filesystem { kind, uuid: Some(uuid.into()), label: label.map(str::to_owned) };
            assert_eq!(found, Signature::Filesystem(want));
        }
    }

    #[test]
    fn an_encrypted_volume_tells_its_version_and_who_made_it() {
        let luks = |version, subsystem: Option<&str>| {
            Signature::Encrypted(Luks { version, subsystem: subsystem.map(str::to_owned) })
        };
        assert_eq!(fixture!("luks1"), luks(Some(1), None));
        assert_eq!(fixture!("luks2"), luks(Some(2), None));
        assert_eq!(fixture!("luks2-subsystem"), luks(Some(2), Some("do-csi-plugin:new")));
        assert_eq!(parse_export("TYPE=crypto_LUKS\nVERSION=x\n"), luks(None, None));
    }

    #[test]
    fn everything_else_is_something_else() {
        assert_eq!(fixture!("ext2"), other("a signature of type ext2"));
        assert_eq!(fixture!("swap"), other("swap space"));
        assert_eq!(fixture!("dos"), other("a partition table of type dos"));
        assert_eq!(fixture!("gpt"), other("a partition table of type gpt"));
        let both = Signature::Several { what: "xfs and a partition table of type dos".into() };
        assert_eq!(parse_export("TYPE=xfs\nUSAGE=filesystem\nPTTYPE=dos\n"), both);
        // A name that is right is not enough: blkid must call it a file system.
        assert_eq!(parse_export("TYPE=xfs\nUSAGE=raid\n"), other("a signature of type xfs"));
        assert_eq!(parse_export("LABEL=TYPE\\=xfs\n"), other("something that blkid knows but does not name"));
        assert_eq!(parse_export(""), other("something that blkid knows but does not name"));
    }

    proptest! {
        #[test]
        fn only_a_whole_line_that_says_so_is_a_file_system(text in "([A-Z]{1,6}=[a-z0-9\\\\ ]{0,9}\n){0,5}") {
            let says_so = text.lines().any(|l| FsKind::ALL.iter().any(|k| l == format!("TYPE={k}")));
            prop_assert!(says_so || !matches!(parse_export(&text), Signature::Filesystem(_)));
        }
    }

    #[test]
    fn fuzz_no_output_is_a_file_system_without_saying_so() {
        let seeds: [&[u8]; 6] = [
            include_bytes!("../../../tests/fixtures/blkid/ext4.txt"),
            include_bytes!("../../../tests/fixtures/blkid/xfs.txt"),
            include_bytes!("../../../tests/fixtures/blkid/btrfs.txt"),
            include_bytes!("../../../tests/fixtures/blkid/luks2-subsystem.txt"),
            include_bytes!("../../../tests/fixtures/blkid/gpt.txt"),
            include_bytes!("../../../tests/fixtures/blkid/xfs-over-ext4.txt"),
        ];
        let words: [&[u8]; 6] =
            [b"\nTYPE=", b"\nPTTYPE=dos", b"\nUSAGE=filesystem", b"crypto_LUKS", b"\\", b"\nAMBIVALENT="];
        crate::fuzz::fuzz("blkid", &seeds, &words, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let has = |start: &str| text.lines().any(|line| line.starts_with(start));
            match parse_export(&text) {
                Signature::Filesystem(_) => assert!(has("TYPE=") && has("USAGE=") && !has("PTTYPE="), "{text}"),
                Signature::Encrypted(_) => assert!(has("TYPE=") && !has("PTTYPE="), "{text}"),
                Signature::Other { .. } | Signature::Several { .. } => {}
            }
        });
    }
}
