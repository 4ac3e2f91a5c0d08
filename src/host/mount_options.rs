//! Mount flags as a CSI request carries them, taken apart into what the kernel knows itself and what the file system reads.
//!
//! Owns which flags are known, which contradict each other and which are refused. Pure. Flags may carry secrets, so
//! neither they nor the result are ever printed: an error names a flag only when it is one of the words below.

use std::fmt;

use nix::mount::MsFlags;

use crate::fs::FsKind;
use crate::host::mountinfo::Mount;
pub use crate::host::selinux_label::SelinuxLabel;

/// The kernel takes one page of options and its last byte must be zero. See mount(2).
const DATA_LIMIT: usize = 4000;

/// A part of a mount that can be one way or another, but not two ways at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    Writing,
    Setuid,
    Devices,
    Programs,
    Syncing,
    FolderSyncing,
    AccessTime,
    FolderAccessTime,
    LazyTime,
    Links,
    Locking,
    Silence,
}

/// Flags that the kernel itself understands: word, topic, and the bits that say it; none for what holds without a bit.
///
/// Source: mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS"; mount(2).
pub(super) const KNOWN: [(&str, Topic, MsFlags); 28] = [
    ("rw", Topic::Writing, MsFlags::empty()),
    ("ro", Topic::Writing, MsFlags::MS_RDONLY),
    ("suid", Topic::Setuid, MsFlags::empty()),
    ("nosuid", Topic::Setuid, MsFlags::MS_NOSUID),
    ("dev", Topic::Devices, MsFlags::empty()),
    ("nodev", Topic::Devices, MsFlags::MS_NODEV),
    ("exec", Topic::Programs, MsFlags::empty()),
    ("noexec", Topic::Programs, MsFlags::MS_NOEXEC),
    ("async", Topic::Syncing, MsFlags::empty()),
    ("sync", Topic::Syncing, MsFlags::MS_SYNCHRONOUS),
    ("dirsync", Topic::FolderSyncing, MsFlags::MS_DIRSYNC),
    ("atime", Topic::AccessTime, MsFlags::empty()),
    ("norelatime", Topic::AccessTime, MsFlags::empty()),
    ("nostrictatime", Topic::AccessTime, MsFlags::empty()),
    ("relatime", Topic::AccessTime, MsFlags::MS_RELATIME),
    ("noatime", Topic::AccessTime, MsFlags::MS_NOATIME),
    ("strictatime", Topic::AccessTime, MsFlags::MS_STRICTATIME),
    ("diratime", Topic::FolderAccessTime, MsFlags::empty()),
    ("nodiratime", Topic::FolderAccessTime, MsFlags::MS_NODIRATIME),
    ("nolazytime", Topic::LazyTime, MsFlags::empty()),
    ("lazytime", Topic::LazyTime, MsFlags::MS_LAZYTIME),
    ("symfollow", Topic::Links, MsFlags::empty()),
    ("nosymfollow", Topic::Links, NO_SYMLINKS),
    ("nomand", Topic::Locking, MsFlags::empty()),
    ("mand", Topic::Locking, MsFlags::MS_MANDLOCK),
    ("loud", Topic::Silence, MsFlags::empty()),
    ("silent", Topic::Silence, MsFlags::MS_SILENT),
    ("quiet", Topic::Silence, MsFlags::MS_SILENT),
];

/// `MS_NOSYMFOLLOW` of mount(2), since Linux 5.10, which the nix crate does not know.
const NO_SYMLINKS: MsFlags = MsFlags::from_bits_retain(256);

/// Words of fstab that say when to mount, not how; mount(8) keeps them from the kernel and so does this.
const WITHOUT_MEANING: [&str; 5] = ["defaults", "auto", "noauto", "nofail", "_netdev"];

/// Flags that are refused, without or with a value, and why.
const REFUSED: [(&str, &str); 33] = [
    ("bind", ANOTHER_MOUNT),
    ("rbind", ANOTHER_MOUNT),
    ("move", ANOTHER_MOUNT),
    ("remount", ANOTHER_MOUNT),
    ("shared", PROPAGATION),
    ("rshared", PROPAGATION),
    ("private", PROPAGATION),
    ("rprivate", PROPAGATION),
    ("slave", PROPAGATION),
    ("rslave", PROPAGATION),
    ("unbindable", PROPAGATION),
    ("runbindable", PROPAGATION),
    ("loop", ANOTHER_DISK),
    ("offset", ANOTHER_DISK),
    ("sizelimit", ANOTHER_DISK),
    ("encryption", ANOTHER_DISK),
    ("device", ANOTHER_DISK),
    ("logdev", ANOTHER_DISK),
    ("rtdev", ANOTHER_DISK),
    ("journal_dev", ANOTHER_DISK),
    ("journal_path", ANOTHER_DISK),
    ("sb", ANOTHER_DISK),
    ("source", ANOTHER_DISK),
    ("subdir", ANOTHER_DISK),
    ("lowerdir", ANOTHER_DISK),
    ("upperdir", ANOTHER_DISK),
    ("workdir", ANOTHER_DISK),
    ("user", FOR_USERS),
    ("users", FOR_USERS),
    ("owner", FOR_USERS),
    ("group", FOR_USERS),
    ("helper", FOR_USERS),
    ("uhelper", FOR_USERS),
];

/// Options of ext and btrfs that are refused with this value only.
const PANICS: [&str; 2] = ["errors=panic", "fatal_errors=panic"];

const ANOTHER_MOUNT: &str = "would change another mount than the one that is made";
const PROPAGATION: &str = "sets propagation, which is the plugin's to decide";
const ANOTHER_DISK: &str = "names another disk, file or place than the volume";
const FOR_USERS: &str = "is meant for mount(8) in the hands of a user";

/// The flags that belong to one mount; the others belong to the file system and are common to all its mounts.
///
/// Source: `path_mount` in the kernel's `fs/namespace.c`, which moves these from the one to the other.
const OWN: MsFlags = MsFlags::MS_RDONLY
    .union(MsFlags::MS_NOSUID)
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC)
    .union(MsFlags::MS_NOATIME)
    .union(MsFlags::MS_NODIRATIME)
    .union(NO_SYMLINKS)
    .union(MsFlags::MS_RELATIME)
    .union(MsFlags::MS_STRICTATIME);

/// Options for SELinux, the only ones that may be quoted, as a label can hold a comma.
pub(super) const LABELS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// With this an xfs is mounted beside another one that has its UUID.
pub const NO_UUID: &str = "nouuid";

/// Mount flags that every volume gets unless its own say something about the same: only those that belong to a mount and not to
/// its file system, so each kind of file system takes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DefaultFlags(Vec<(Topic, MsFlags)>);

impl DefaultFlags {
    /// Reads words with commas between, such as `nosuid,nodev`.
    ///
    /// # Errors
    /// A phrase, for the first word that is none, or that is `ro`, with which no volume could ever be formatted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let takes = |bits: MsFlags| bits.intersects(OWN) && !bits.contains(MsFlags::MS_RDONLY);
        let words = text.split(',').map(|word| {
            let known = KNOWN.iter().find(|(have, _, bits)| *have == word && takes(*bits));
            known.map(|(_, topic, bits)| (*topic, *bits)).ok_or_else(|| {
                let all: Vec<_> = KNOWN.iter().filter(|(.., bits)| takes(*bits)).map(|(word, ..)| *word).collect();
                format!("{word:?} is not one of {}", all.join(", "))
            })
        });
        let words = words.collect::<Result<Vec<_>, _>>()?;
        // As in a request: no two that contradict each other.
        MountOptions::parse([text]).map_err(|bad| bad.to_string())?;
        Ok(DefaultFlags(words))
    }
}

/// Why a mount flag is refused. Prints the flag's place in the list and never the flag, unless it is a known word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mount flag number {position} {why}")]
pub struct BadFlag {
    position: usize,
    why: String,
}

/// The options of a mount, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct MountOptions {
    flags: MsFlags,
    data: Vec<String>,
    /// What was asked for by name, also where it holds without a bit.
    topics: Vec<Topic>,
    /// Of `flags`, those that nobody asked for: the plugin gives them to every volume.
    defaults: MsFlags,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions { flags: MsFlags::empty(), data: Vec::new(), topics: Vec::new(), defaults: MsFlags::empty() }
    }
}

impl fmt::Debug for MountOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MountOptions({} bits, {} for the file system)", self.flags.bits().count_ones(), self.data.len())
    }
}

impl MountOptions {
    /// Reads the `mount_flags` of a CSI request. One text may hold several flags with commas between.
    ///
    /// # Errors
    /// [`BadFlag`] for the first flag that is malformed, refused, or contradicts an earlier one.
    pub fn parse<'a>(flags: impl IntoIterator<Item = &'a str>) -> Result<Self, BadFlag> {
        let mut options = MountOptions::default();
        let mut seen: Vec<(Topic, &str, MsFlags)> = Vec::new();
        for (index, text) in flags.into_iter().enumerate() {
            let bad = |why: String| BadFlag { position: index + 1, why };
            for flag in split(text) {
                check_shape(flag).map_err(bad)?;
                let Some(&(word, topic, bits)) = KNOWN.iter().find(|(word, ..)| *word == flag) else {
                    options.data.extend(for_filesystem(flag).map_err(bad)?);
                    continue;
                };
                if let Some((_, other, _)) = seen.iter().find(|(have, _, old)| *have == topic && *old != bits) {
                    return Err(bad(format!("is {word:?}, which contradicts {other:?}")));
                }
                seen.push((topic, word, bits));
                options.flags |= bits;
            }
            if options.data().len() > DATA_LIMIT {
                return Err(bad("makes the options longer than the kernel takes".into()));
            }
        }
        options.topics = seen.into_iter().map(|(topic, ..)| topic).collect();
        Ok(options)
    }

    /// The same options, read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.flags |= MsFlags::MS_RDONLY;
        self
    }

    /// The same options, and one more word for the file system, unless it is there already.
    #[must_use]
    pub fn with_data(mut self, word: &'static str) -> Self {
        if !self.data.iter().any(|have| have == word) {
            self.data.push(word.to_owned());
        }
        self
    }

    /// The same options, and those that every volume gets, except where they say something about the same themselves.
    #[must_use]
    pub fn with_defaults(mut self, defaults: &DefaultFlags) -> Self {
        for (topic, bits) in &defaults.0 {
            if !self.topics.contains(topic) {
                self.flags |= *bits;
                self.defaults |= *bits;
            }
        }
        self
    }

    /// The same options, all of which count when a mount is compared with them, also those that nobody asked for.
    #[must_use]
    pub fn in_full(&self) -> Self {
        MountOptions { defaults: MsFlags::empty(), ..self.clone() }
    }

    /// The same options for a file system of this kind, and against what its own superblock may say: an error makes an ext
    /// read-only and does not stop the droplet, and what is flushed reaches the disk. Options that say something
    /// about that themselves stay.
    ///
    /// Source: `s_errors` and `EXT4_DEFM_NOBARRIER` in the kernel's `fs/ext4/ext4.h`; ext4(5).
    #[must_use]
    pub fn against_superblock(self, fs: FsKind) -> Self {
        let has = |keys: &[&str]| self.words().any(|word| keys.contains(&word.split('=').next().unwrap_or_default()));
        let (has_errors, has_barrier) = (has(&["errors"]), has(&["barrier", "nobarrier"]));
        match fs {
            FsKind::Xfs | FsKind::Btrfs => self,
            FsKind::Ext4 | FsKind::Ext3 => {
                let with_errors = if has_errors { self } else { self.with_data("errors=remount-ro") };
                if has_barrier { with_errors } else { with_errors.with_data("barrier=1") }
            }
        }
    }

    /// The same options, and an SELinux label for everything on the file system, unless they hold one already.
    #[must_use]
    pub fn with_label(mut self, label: &SelinuxLabel) -> Self {
        if !self.has_label() {
            self.data.push(format!("context=\"{}\"", label.as_str()));
        }
        self
    }

    /// Whether a read-only mount is asked for.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MsFlags::MS_RDONLY)
    }

    /// The flags for mount(2).
    pub(super) fn flags(&self) -> MsFlags {
        self.flags
    }

    /// The words for the file system. May hold secrets.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        self.data.iter().map(String::as_str)
    }

    /// A text of the kernel about these options, without the values that they have, which may be secrets.
    pub(super) fn without_values(&self, text: &str) -> String {
        let values = self.words().filter_map(|word| Some((word, word.split_once('=')?.1.trim_matches('"'))));
        values.filter(|(_, value)| !value.is_empty()).fold(text.to_owned(), |text, (word, value)| {
            let key = word.split('=').next().unwrap_or_default();
            text.replace(word, &format!("{key}=..."))
                .replace(&format!("'{value}'"), "...")
                .replace(&format!("\"{value}\""), "...")
        })
    }

    /// The text for the file system. May hold secrets.
    pub(super) fn data(&self) -> String {
        self.data.join(",")
    }

    /// The flags that belong to one mount and not to its file system, as mount(2) takes them; access times are kept as
    /// `relatime` does unless something else is asked for, which mount(2) takes for granted only at the first mount.
    pub(super) fn own_flags(&self) -> MsFlags {
        let own = self.flags & OWN;
        if own.intersects(MsFlags::MS_NOATIME | MsFlags::MS_STRICTATIME) { own } else { own | MsFlags::MS_RELATIME }
    }

    /// Whether these options hold an SELinux label.
    #[must_use]
    pub fn has_label(&self) -> bool {
        self.data.iter().any(|word| LABELS.iter().any(|key| word.starts_with(&format!("{key}="))))
    }

    /// The first way in which a mount that exists differs from these options, as a phrase; `None` when it fits.
    ///
    /// Compared are the kernel's own flags, and of what the file system reads that which every kernel prints as it was given:
    /// the SELinux label, `discard` where it can be told, and which subvolume of a btrfs it is. What the plugin gives to every volume
    /// is not compared: it may have been another when the volume was mounted.
    #[must_use]
    pub fn differs_from(&self, mount: &Mount) -> Option<String> {
        self.differs_at(mount).or_else(|| self.differs_below(mount))
    }

    /// As [`MountOptions::differs_from`], for the flags that belong to the one mount alone.
    #[must_use]
    pub fn differs_at(&self, mount: &Mount) -> Option<String> {
        if self.is_read_only() != mount.has_option("ro") {
            let (have, want) = if self.is_read_only() { ("writable", "read-only") } else { ("read-only", "writable") };
            return Some(format!("is mounted {have} and should be {want}"));
        }
        // The kernel has no word for "strictatime": it is what holds when neither of the two others does.
        let is_strict = !mount.has_option("relatime") && !mount.has_option("noatime");
        self.difference(OWN, |word| if word == "strictatime" { is_strict } else { mount.has_option(word) })
    }

    /// As [`MountOptions::differs_from`], for the flags that all mounts of a file system have in common.
    #[must_use]
    pub fn differs_below(&self, mount: &Mount) -> Option<String> {
        let shown = mount.super_options.join(",");
        let shown: Vec<&str> = split(&shown).collect();
        self.difference(!OWN, |word| shown.contains(&word))
            .or_else(|| self.label_difference(&shown))
            .or_else(|| self.discard_difference(&shown, &mount.fstype))
            .or_else(|| self.subvolume_difference(&shown))
    }

    fn label_difference(&self, shown: &[&str]) -> Option<String> {
        LABELS.iter().find_map(|key| match (self.value(key), value_in(shown.iter().copied(), key)) {
            (None, None) => None,
            (Some(asked), Some(have)) if is_same_label(asked, have) => None,
            (Some(_), Some(_)) => Some(format!("is mounted with another SELinux {key}")),
            (Some(_), None) => Some(format!("is mounted without the SELinux {key} asked for")),
            (None, Some(_)) => Some(format!("is mounted with an SELinux {key}, which was not asked for")),
        })
    }

    /// That `discard` is not shown says little: xfs and ext leave it out where the disk cannot do it, ext also where it is the
    /// file system's own default, and btrfs takes it for granted where the disk can. Only `nodiscard` says that it is off.
    ///
    /// Source: `__ext4_fill_super` and `_ext4_show_options` in the kernel's `fs/ext4/super.c`.
    fn discard_difference(&self, shown: &[&str], fstype: &str) -> Option<String> {
        let last = self.data.iter().rfind(|word| matches!(word.as_str(), "discard" | "nodiscard"));
        let is_asked = last.is_some_and(|word| word == "discard");
        match (is_asked, shown.contains(&"discard"), fstype) {
            (true, false, "ext4" | "ext3") if shown.contains(&"nodiscard") => {
                Some("is mounted without discard".to_owned())
            }
            (false, true, "ext4" | "ext3" | "xfs") => {
                Some("is mounted with discard, which was not asked for".to_owned())
            }
            (true | false, true | false, _) => None,
        }
    }

    /// Which subvolume is shown when none is asked for is the file system's own setting.
    fn subvolume_difference(&self, shown: &[&str]) -> Option<String> {
        let shows = |key: &str| value_in(shown.iter().copied(), key);
        let shown_number = shows("subvolid").and_then(subvolume_number);
        let name = self.value("subvol").filter(|name| shows("subvol").is_none_or(|have| have != format!("/{name}")));
        let is_shown = |number: &str| subvolume_number(number).is_some_and(|asked| shown_number == Some(asked));
        let number = self.value("subvolid").filter(|number| !is_shown(number));
        name.or(number).map(|_| "is mounted with another subvolume".to_owned())
    }

    fn value(&self, key: &str) -> Option<&str> {
        value_in(self.data.iter().map(String::as_str), key)
    }

    fn difference(&self, part: MsFlags, is_shown: impl Fn(&str) -> bool) -> Option<String> {
        // What the kernel takes for granted, does not show, or no longer knows.
        let is_hidden = |word: &str| matches!(word, "ro" | "relatime" | "silent" | "quiet" | "mand");
        let is_default =
            |topic: &Topic| KNOWN.iter().any(|(_, other, bits)| other == topic && bits.intersects(self.defaults));
        let compared =
            KNOWN.iter().filter(|(word, topic, bits)| bits.intersects(part) && !is_hidden(word) && !is_default(topic));
        compared.map(|(word, _, bits)| (word, self.flags.contains(*bits), is_shown(word))).find_map(
            |(word, asked, shown)| match (asked, shown) {
                (true, false) => Some(format!("is mounted without {word}")),
                (false, true) => Some(format!("is mounted with {word}, which was not asked for")),
                (true, true) | (false, false) => None,
            },
        )
    }
}

/// Whether two texts are one SELinux label. The kernel prints categories in its own order and puts neighbours together
/// (`c1.c3`), so where there are any the rest has to do.
fn is_same_label(one: &str, other: &str) -> bool {
    let parts = |label| {
        let mut parts = str::splitn(label, 4, ':');
        ([parts.next(), parts.next(), parts.next()], parts.next())
    };
    let ((one, one_level), (other, other_level)) = (parts(one), parts(other));
    let has_categories = |level: Option<&str>| level.is_some_and(|level| level.contains(':'));
    one == other && (one_level == other_level || (has_categories(one_level) && has_categories(other_level)))
}

/// A subvolume's number as the kernel reads it: in any base that C knows, and 0 means the first subvolume, 5.
///
/// Source: `fs_param_is_u64` in the kernel's `fs/fs_parser.c`, `btrfs_parse_param` in `fs/btrfs/super.c`.
fn subvolume_number(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let number = match (digits, text.strip_prefix('0')) {
        (Some(digits), _) => u64::from_str_radix(digits, 16),
        (None, Some(digits)) if !digits.is_empty() => u64::from_str_radix(digits, 8),
        (None, Some(_) | None) => text.parse(),
    };
    number.ok().map(|number| if number == 0 { 5 } else { number })
}

/// The value that the last word `key=value` gives, without quotes.
fn value_in<'a>(words: impl DoubleEndedIterator<Item = &'a str>, key: &str) -> Option<&'a str> {
    let mut values = words.filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    values.next_back().map(|value| value.trim_matches('"'))
}

/// Splits at commas that are not between double quotes.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.split(move |c| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    })
}

fn check_shape(flag: &str) -> Result<(), String> {
    if flag.is_empty() {
        return Err("is empty".into());
    }
    if !flag.chars().all(|c| c.is_ascii_graphic()) {
        return Err("holds a blank, a control character or a character that is not ASCII".into());
    }
    if flag.contains(['/', '\\', '\'']) {
        return Err("holds a path or an escape".into());
    }
    let key = flag.split('=').next().unwrap_or_default();
    let quotes = flag.matches('"').count();
    let is_label = LABELS.contains(&key) && quotes == 2 && flag.ends_with('"') && flag.contains("=\"");
    if quotes > 0 && !is_label { Err("holds quotes where none belong".into()) } else { Ok(()) }
}

/// What of a flag that the kernel does not know itself goes to the file system.
fn for_filesystem(flag: &str) -> Result<Option<String>, String> {
    let key = flag.split('=').next().unwrap_or_default();
    if let Some((word, why)) = REFUSED.iter().find(|(word, _)| *word == key) {
        return Err(format!("is {word:?}, which {why}"));
    }
    if key.is_empty() || key.starts_with(['-', '@', ':']) || key.starts_with("X-") {
        return Err("is not a mount option".into());
    }
    if let Some(word) = PANICS.iter().find(|word| **word == flag) {
        return Err(format!("is {word:?}, with which a damaged volume stops the whole machine"));
    }
    let is_for_others = WITHOUT_MEANING.contains(&flag) || key.starts_with("x-") || key == "comment";
    Ok((!is_for_others).then(|| flag.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(flags: &str) -> Result<MountOptions, BadFlag> {
        MountOptions::parse([flags])
    }

    #[test]
    fn known_flags_are_the_kernels_and_the_rest_is_the_file_systems() {
        let options =
            MountOptions::parse(["noatime,nodev", "discard", "logbsize=256k,ro", "defaults", "x-systemd.wait"])
                .unwrap();
        assert_eq!(options.flags(), MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_RDONLY);
        assert_eq!(options.data(), "discard,logbsize=256k");
        assert!(options.is_read_only());
        assert_eq!(MountOptions::parse([]).unwrap(), MountOptions::default());
        let usual = parse("rw,suid,dev,exec,async,atime,defaults,nofail,_netdev").unwrap();
        assert_eq!((usual.flags(), usual.data().as_str()), (MsFlags::empty(), ""));
        let again = parse("noatime,noatime,discard").unwrap().with_data("discard").with_data("nouuid");
        assert_eq!(again.data(), "discard,nouuid");
    }

    #[test]
    fn contradictions_are_refused_and_name_both_sides() {
        let pairs = [
            ("ro", "rw"),
            ("noatime", "relatime"),
            ("noatime", "strictatime"),
            ("atime", "noatime"),
            ("exec", "noexec"),
            ("sync", "async"),
            ("lazytime", "nolazytime"),
        ];
        for (a, b) in pairs {
            for (first, second) in [(a, b), (b, a)] {
                let refused = MountOptions::parse([first, second]).unwrap_err().to_string();
                assert_eq!(refused, format!("mount flag number 2 is {second:?}, which contradicts {first:?}"));
            }
        }
    }

    #[test]
    fn dangerous_and_malformed_flags_are_refused() {
        for (word, _) in REFUSED {
            assert!(parse(word).unwrap_err().to_string().contains(word), "{word}");
            assert!(parse(&format!("{word}=secret")).unwrap_err().to_string().contains(word), "{word}");
        }
        let long = "x".repeat(DATA_LIMIT + 1);
        for bad in [
            "",
            ",",
            "noatime,",
            " ro",
            "ro ",
            "subvol=/",
            "a/b",
            "a\nb",
            "a\0b",
            "ä",
            "=x",
            "-o",
            "X-mount.mkdir",
            "errors=panic",
            "fatal_errors=panic",
            "a\"b\"",
            "context=\"a",
            "context=a\"b",
            "discard=\"1\"",
            "a\\040b",
            "a'b",
            long.as_str(),
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_label_may_hold_commas() {
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        let quoted = format!("context=\"{label}\"");
        assert_eq!(parse(&format!("noatime,{quoted},discard")).unwrap().data(), format!("{quoted},discard"));
        let parsed = SelinuxLabel::parse(label).unwrap();
        assert_eq!(MountOptions::default().with_label(&parsed).data(), quoted);
        assert!(!MountOptions::default().has_label() && parse(&quoted).unwrap().has_label());
        // A label among the mount flags is closer to the volume than any other.
        assert_eq!(parse("context=\"a:b:c\"").unwrap().with_label(&parsed).data(), "context=\"a:b:c\"");
        assert_eq!(parse("fscontext=a:b:c").unwrap().with_label(&parsed).data(), "fscontext=a:b:c");
        assert!(SelinuxLabel::parse("system_u:object_r:container_file_t").is_ok());
        for bad in ["", "no_colon", "a:b", "::", "a:b:", "a:b:c\"", "a:b:c d", "a:b:/c", "a:b:c\\"] {
            assert!(SelinuxLabel::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mount_is_compared_flag_by_flag_in_both_directions() {
        let mount = |own: &str, below: &str| {
            let line = format!("9 1 8:0 / /m {own} - xfs /dev/sda {below}\n");
            crate::host::mountinfo::MountTable::parse(line.as_bytes()).unwrap().iter().next().unwrap().clone()
        };
        let own = ["nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow", "strictatime"];
        let below = ["sync", "dirsync", "lazytime"];
        for word in own.into_iter().chain(below) {
            let options = parse(word).unwrap();
            let fitting = match word {
                "strictatime" => mount("rw", "rw"),
                "noatime" => mount("rw,noatime", "rw"),
                word if own.contains(&word) => mount(&format!("rw,{word},relatime"), "rw"),
                word => mount("rw,relatime", word),
            };
            assert_eq!(options.differs_from(&fitting), None, "{word}");
            assert_eq!(options.differs_from(&mount("rw,relatime", "rw")), Some(format!("is mounted without {word}")));
            let more = MountOptions::default().differs_from(&fitting).unwrap();
            assert_eq!(more, format!("is mounted with {word}, which was not asked for"));
            assert_eq!(options.differs_at(&fitting), None);
            assert_eq!(MountOptions::default().differs_at(&fitting).is_some(), own.contains(&word), "{word}");
            assert_eq!(MountOptions::default().differs_below(&fitting).is_some(), below.contains(&word), "{word}");
        }
        for silent in ["", "relatime", "silent", "mand", "rw,exec,suid,symfollow", "discard,logbsize=256k"] {
            let options = MountOptions::parse(silent.split(',').filter(|flag| !flag.is_empty())).unwrap();
            assert_eq!(options.differs_from(&mount("rw,relatime", "rw,inode64")), None, "{silent}");
        }
        let (writable, read_only) = (MountOptions::default(), MountOptions::default().read_only());
        assert!(writable.differs_from(&mount("ro,relatime", "ro")).unwrap().contains("should be writable"));
        assert!(read_only.differs_from(&mount("rw,relatime", "ro")).unwrap().contains("should be read-only"));
        assert_eq!(read_only.differs_from(&mount("ro,relatime", "rw")), None);
    }

    #[test]
    fn what_the_file_system_reads_is_compared_where_it_is_shown_as_given() {
        let label = "context=\"a:b:c:s0:c1,c2\"";
        let cases = [
            ("", "xfs", "rw,seclabel", None),
            (label, "xfs", "rw,context=\"a:b:c:s0:c1,c2\",attr2", None),
            ("context=a:b:c", "ext4", "rw,context=\"a:b:c\"", None),
            ("context=a:b:c", "ext4", "rw,context=a:b:d", Some("another SELinux context")),
            (label, "xfs", "rw,context=\"a:b:c:s0:c2,c1\"", None),
            (label, "xfs", "rw,context=a:b:c:s0", Some("another SELinux context")),
            (label, "xfs", "rw,context=\"a:b:d:s0:c1,c2\"", Some("another SELinux context")),
            (label, "xfs", "rw,seclabel", Some("without the SELinux context")),
            ("", "xfs", "rw,context=a:b:c", Some("with an SELinux context")),
            ("discard", "ext4", "rw,discard", None),
            ("discard", "ext4", "rw,nodiscard", Some("without discard")),
            // The disk cannot discard, or the file system does it by default.
            ("discard", "ext4", "rw", None),
            ("discard", "ext3", "rw", None),
            ("discard,nodiscard", "ext4", "rw,discard", Some("with discard")),
            ("", "ext3", "rw,discard", Some("with discard")),
            ("", "xfs", "rw,discard", Some("with discard")),
            // The disk cannot discard, and xfs has said so and left it out; btrfs does it unasked.
            ("discard", "xfs", "rw", None),
            ("", "btrfs", "rw,discard=async,subvolid=5,subvol=/", None),
            ("", "btrfs", "rw,subvolid=256,subvol=/@", None),
            ("subvol=@", "btrfs", "rw,subvolid=256,subvol=/@", None),
            ("subvol=@home", "btrfs", "rw,subvolid=256,subvol=/@", Some("another subvolume")),
            ("subvolid=256", "btrfs", "rw,subvolid=256,subvol=/@", None),
            ("subvolid=0x100", "btrfs", "rw,subvolid=256,subvol=/@", None),
            ("subvolid=0400", "btrfs", "rw,subvolid=256,subvol=/@", None),
            ("subvolid=0", "btrfs", "rw,subvolid=5,subvol=/", None),
            ("subvolid=0x101", "btrfs", "rw,subvolid=256,subvol=/@", Some("another subvolume")),
            ("subvolid=0256", "btrfs", "rw,subvolid=256,subvol=/@", Some("another subvolume")),
            ("subvolid=what", "btrfs", "rw,subvolid=256,subvol=/@", Some("another subvolume")),
            ("subvolid=5", "btrfs", "rw", Some("another subvolume")),
            ("subvolid=257", "btrfs", "rw,subvolid=256,subvol=/@", Some("another subvolume")),
        ];
        for (flags, fstype, below, want) in cases {
            let line = format!("9 1 8:0 / /m rw,relatime - {fstype} /dev/sda {below}\n");
            let table = crate::host::mountinfo::MountTable::parse(line.as_bytes()).unwrap();
            let options = MountOptions::parse((!flags.is_empty()).then_some(flags)).unwrap();
            let got = options.differs_from(table.iter().next().unwrap());
            let fits = match (&got, want) {
                (None, None) => true,
                (Some(got), Some(want)) => got.contains(want) && !got.contains("a:b"),
                (Some(_), None) | (None, Some(_)) => false,
            };
            assert!(fits, "{flags} {fstype} {below}: {got:?}");
        }
    }

    #[test]
    fn every_volume_gets_the_defaults_except_where_its_own_flags_say_otherwise() {
        let defaults = DefaultFlags::parse("nosuid,nodev,noatime").unwrap();
        let all = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        let given = |flags: &str| parse(flags).unwrap().with_defaults(&defaults);
        assert_eq!(given("rw").flags(), all);
        assert_eq!(given("suid,discard").flags(), MsFlags::MS_NODEV | MsFlags::MS_NOATIME);
        assert_eq!(given("dev,strictatime").flags(), MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME);
        assert_eq!(parse("nosuid").unwrap().with_defaults(&DefaultFlags::default()).flags(), MsFlags::MS_NOSUID);
        let mount = |own: &str| {
            let line = format!("9 1 8:0 / /m {own} - xfs /dev/sda rw\n");
            crate::host::mountinfo::MountTable::parse(line.as_bytes()).unwrap().iter().next().unwrap().clone()
        };
        // What was mounted with other defaults is still the volume as asked; what was asked for is compared as ever.
        for own in ["rw,relatime", "rw,nosuid,nodev,noatime"] {
            assert_eq!(given("rw").differs_from(&mount(own)), None, "{own}");
            assert!(given("noexec").differs_from(&mount(own)).unwrap().contains("without noexec"), "{own}");
        }
        assert!(given("suid").differs_from(&mount("rw,nosuid")).unwrap().contains("with nosuid"));
        assert!(given("rw").in_full().differs_from(&mount("rw,nodev,noatime")).unwrap().contains("without nosuid"));
        for bad in ["", "ro", "rw", "suid", "sync", "discard", "nosuid,", "noatime,strictatime", "context=a:b:c"] {
            assert!(DefaultFlags::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_ext_is_never_mounted_as_its_superblock_alone_would_have_it() {
        let data = |flags: &str, fs| parse(flags).unwrap().against_superblock(fs).data();
        for fs in [FsKind::Ext4, FsKind::Ext3] {
            assert_eq!(data("rw", fs), "errors=remount-ro,barrier=1");
            assert_eq!(data("errors=continue,nobarrier", fs), "errors=continue,nobarrier");
            assert_eq!(data("barrier=0,data=journal", fs), "barrier=0,data=journal,errors=remount-ro");
        }
        for fs in [FsKind::Xfs, FsKind::Btrfs] {
            assert_eq!(data("discard", fs), "discard");
        }
    }

    #[test]
    fn nothing_that_is_printed_shows_a_flag() {
        let secret = "password=hunter2";
        assert!(!format!("{:?}", parse(secret).unwrap()).contains("hunter2"));
        for said in
            ["Unrecognized mount option \"password=hunter2\"", "Bad value 'hunter2'", "unknown \"hunter2\" there"]
        {
            let told = parse(secret).unwrap().without_values(said);
            assert!(!told.contains("hunter2") && told.contains("..."), "{told}");
        }
        for bad in ["device=hunter2", "hunter2/x", "hunter2=\"", "errors=panic,hunter2 "] {
            assert!(!parse(bad).unwrap_err().to_string().contains("hunter2"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_harmless(flags in proptest::collection::vec(
            prop_oneof!["[a-z]{1,8}(=[a-z0-9/]{0,5})?", "[ -~]{0,12}", proptest::sample::select(KNOWN.map(|(word, ..)| word).to_vec()).prop_map(str::to_owned)],
            0..6,
        )) {
            if let Ok(options) = MountOptions::parse(flags.iter().map(String::as_str)) {
                let data = options.data();
                prop_assert!(!data.contains(['/', '\\', ' ', '\0', '\n']));
                for flag in split(&data).filter(|flag| !flag.is_empty()) {
                    let key = flag.split('=').next().unwrap();
                    prop_assert!(KNOWN.iter().all(|(word, ..)| *word != flag));
                    prop_assert!(REFUSED.iter().all(|(word, _)| *word != key));
                }
            }
        }
    }
}
