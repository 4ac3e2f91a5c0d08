//! Whether this kernel can mount a file system, and with these options, before anything is written to a disk.
//!
//! Owns the questions to the kernel, which mount nothing, and the meaning of its answers. The kernel loads a file
//! system's module when it is asked for it. So `/proc/filesystems` cannot say that there is no module, and an image has
//! no directory of modules.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use rustix::mount::{FsOpenFlags, fsconfig_set_flag, fsconfig_set_string, fsopen};

use crate::error::{Error, Result};
use crate::fs::FsKind;
use crate::host::mount_options::{LABELS, MountOptions};
use crate::host::{KERNEL_RELEASE, mount_words};

/// The file systems that the kernel has loaded.
const FILESYSTEMS: &str = "/proc/filesystems";

/// An option that no file system has.
const NO_OPTION: &str = "do-csi-plugin-asks";

/// How many messages of the kernel about one option are read, and how long each may be.
const MOST_MESSAGES: usize = 8;
const MESSAGE_LENGTH: usize = 512;

/// The longest name of an option that is printed. What is longer is none, and may be a secret.
const LONGEST_NAME: usize = 32;

/// What the kernel says of mounting a file system with some options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mountable {
    /// It can be mounted, as far as that is known before there is a disk.
    Yes,
    /// The kernel has no such file system, and no module for it.
    NoFilesystem,
    /// The file system refuses this option.
    NotThisOption {
        /// The option's name.
        key: String,
        /// What the kernel says of it, without the option's value.
        said: String,
    },
    /// The kernel has the file system, or does not say otherwise; its options are read only when it is mounted.
    OptionsUnread,
}

/// Asks the kernel whether it can mount a file system with these options. Nothing is mounted and no disk is touched; the
/// kernel may load a module. `at` is the directory where the file system is going to be mounted.
///
/// Source: fsopen(2), fsconfig(2), `vfs_parse_fs_param` in the kernel's `fs/fs_context.c`; `do_new_mount` in its
/// `fs/namespace.c`, which looks for the file system before it looks for the disk.
#[must_use]
pub(crate) fn observe_mountable(fs: FsKind, options: &MountOptions, at: &Path) -> Mountable {
    match fsopen(fs.name(), FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => observe_options(&File::from(context), options),
        Err(rustix::io::Errno::NODEV) => Mountable::NoFilesystem,
        // Before Linux 5.2, or where a container's rules forbid this call. The other way to mount is asked for a disk
        // without a name, which there is not.
        Err(_) => match mount(Some(""), at, Some(fs.name()), MsFlags::MS_RDONLY, None::<&str>) {
            Err(Errno::ENODEV) => Mountable::NoFilesystem,
            Ok(()) | Err(_) => Mountable::OptionsUnread,
        },
    }
}

fn observe_options(context: &File, options: &MountOptions) -> Mountable {
    if options.words().next().is_none() {
        return Mountable::Yes;
    }
    // A file system that reads its options only when it is mounted takes any text now.
    if fsconfig_set_flag(context, NO_OPTION).is_ok() {
        return Mountable::OptionsUnread;
    }
    read_messages(context);
    for word in options.words() {
        let outcome = match word.split_once('=') {
            None => fsconfig_set_flag(context, word),
            Some((key, value)) => fsconfig_set_string(context, key, value.trim_matches('"')),
        };
        match outcome {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => {
                let said = options.without_values(&read_messages(context).join("; "));
                return Mountable::NotThisOption { key: key_of(word).to_owned(), said };
            }
            // Only what a mount would certainly answer too.
            Err(_) => return Mountable::OptionsUnread,
        }
    }
    Mountable::Yes
}

/// Reads what the kernel has to say since it was last asked. Each message begins with a letter for how grave it is.
fn read_messages(mut context: &File) -> Vec<String> {
    let mut messages = Vec::new();
    let mut buffer = [0; MESSAGE_LENGTH];
    while messages.len() < MOST_MESSAGES
        && let Ok(length) = context.read(&mut buffer)
        && let Some(message) = buffer.get(..length).and_then(|message| message.get(2..))
    {
        messages.push(String::from_utf8_lossy(message).trim().to_owned());
    }
    messages
}

/// Decides whether a file system may be mounted so; `is_to_be_made`: it is to be made first, on a disk that is blank. Pure.
///
/// # Errors
/// [`Error::HostUnfit`] when the kernel has no such file system, [`Error::Invalid`] for an option that the file system
/// refuses; before it is made also for one that it is not known to have, where the kernel does not tell.
pub(crate) fn plan_mountable(fs: FsKind, options: &MountOptions, found: &Mountable, is_to_be_made: bool) -> Result<()> {
    match found {
        Mountable::Yes => Ok(()),
        Mountable::NoFilesystem => Err(no_filesystem(fs)),
        Mountable::NotThisOption { key, said } => Err(not_this_option(fs, key, said)),
        Mountable::OptionsUnread if is_to_be_made => {
            let is_known = |key: &&str| mount_words::is_known(fs, key) || LABELS.contains(key);
            match options.words().map(key_of).find(|key| !is_known(key)) {
                Some(key) => Err(not_this_option(fs, key, "")),
                None => Ok(()),
            }
        }
        Mountable::OptionsUnread => Ok(()),
    }
}

fn key_of(word: &str) -> &str {
    word.split('=').next().unwrap_or_default()
}

/// The error for a file system that this kernel does not have.
pub(super) fn no_filesystem(fs: FsKind) -> Error {
    Error::HostUnfit(format!(
        "the kernel of this droplet ({}) cannot mount {fs}: it neither has it nor a module for it, so nothing was written; \
         install the kernel's modules (`modprobe {fs}` must work on the droplet), or ask for another fs_type",
        kernel_release()
    ))
}

fn not_this_option(fs: FsKind, key: &str, said: &str) -> Error {
    let field = if LABELS.contains(&key) { "the SELinux label" } else { "volume_capability.mount_flags" };
    let is_name = key.len() <= LONGEST_NAME
        && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-'));
    let name = if is_name { format!("{key:?}") } else { "a flag that looks like none".to_owned() };
    let meant = mount_words::nearest(fs, key).filter(|meant| *meant != key);
    let meant = meant.map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default();
    let said = if said.is_empty() || !is_name { String::new() } else { format!(", which says: {said}") };
    Error::invalid(
        field,
        format!("{name} is refused by {fs} of this droplet's kernel ({}){said}{meant}", kernel_release()),
    )
}

/// What this droplet can do with disks, for the log at the start, as a phrase. A file system that the kernel has not loaded
/// yet is loaded when it is needed, if there is a module: that is asked only then, because asking loads it.
#[must_use]
pub(crate) fn observe_abilities() -> String {
    abilities(&std::fs::read_to_string(FILESYSTEMS).unwrap_or_default(), &kernel_release())
}

/// The file systems that this kernel cannot mount. To find out loads their modules.
///
/// Source: fsopen(2), ENODEV. Where the call is not allowed nothing is known, and none is named.
#[must_use]
pub(crate) fn observe_missing_file_systems() -> Vec<FsKind> {
    let is_missing =
        |fs: &FsKind| matches!(fsopen(fs.name(), FsOpenFlags::FSOPEN_CLOEXEC), Err(rustix::io::Errno::NODEV));
    FsKind::ALL.into_iter().filter(is_missing).collect()
}

fn abilities(table: &str, release: &str) -> String {
    let is_there = |fs: &FsKind| table.lines().any(|line| line.split('\t').next_back() == Some(fs.name()));
    let names = |wanted: bool| {
        let names: Vec<_> = FsKind::ALL.iter().filter(|fs| is_there(fs) == wanted).map(|fs| fs.name()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(",") }
    };
    format!("kernel={release} file_systems_loaded={} loaded_when_needed={}", names(true), names(false))
}

/// The running kernel's version.
pub(super) fn kernel_release() -> String {
    std::fs::read_to_string(KERNEL_RELEASE).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(flags: &str) -> MountOptions {
        MountOptions::parse((!flags.is_empty()).then_some(flags)).unwrap()
    }

    fn plan(fs: FsKind, flags: &str, found: &Mountable, is_to_be_made: bool) -> String {
        match plan_mountable(fs, &options(flags), found, is_to_be_made) {
            Ok(()) => "ok".to_owned(),
            Err(err) => err.to_string(),
        }
    }

    #[test]
    fn every_answer_of_the_kernel_has_a_meaning() {
        let unread = Mountable::OptionsUnread;
        for is_to_be_made in [false, true] {
            assert_eq!(plan(FsKind::Xfs, "noatime,discard", &Mountable::Yes, is_to_be_made), "ok");
            let none = plan(FsKind::Btrfs, "", &Mountable::NoFilesystem, is_to_be_made);
            assert!(none.contains("cannot mount btrfs") && none.contains("modprobe btrfs"), "{none}");
            let said = "xfs: Unknown parameter 'noatim'".to_owned();
            let found = Mountable::NotThisOption { key: "noatim".to_owned(), said };
            let refused = plan(FsKind::Xfs, "noatim", &found, is_to_be_made);
            assert!(refused.contains("mount_flags: \"noatim\" is refused by xfs"), "{refused}");
            assert!(refused.contains("Unknown parameter") && refused.contains("did you mean \"noatime\""), "{refused}");
            assert_eq!(plan(FsKind::Ext4, "commit=5,data=ordered,context=a:b:c", &unread, is_to_be_made), "ok");
        }
        // What is mounted anyhow tells itself, and a list may lack what somebody has added to an old kernel.
        assert_eq!(plan(FsKind::Ext4, "noatim", &unread, false), "ok");
        let refused = plan(FsKind::Ext4, "commit=5,noatim", &unread, true);
        assert!(refused.contains("\"noatim\"") && !refused.contains("says"), "{refused}");
        let label = Mountable::NotThisOption { key: "context".to_owned(), said: String::new() };
        assert!(plan(FsKind::Ext4, "context=a:b:c", &label, true).starts_with("the SELinux label: "));
    }

    #[test]
    fn the_log_tells_what_the_kernel_has_at_the_start() {
        let told = abilities("nodev\tsysfs\n\text3\n\text4\n\tfuseblk\nnodev\txfs2\n", "6.1.0");
        assert_eq!(told, "kernel=6.1.0 file_systems_loaded=ext4,ext3 loaded_when_needed=xfs,btrfs");
    }

    #[test]
    fn what_looks_like_a_secret_is_not_printed() {
        for key in ["Hunter2", "hunter2!", &"x".repeat(LONGEST_NAME + 1)] {
            let found = Mountable::NotThisOption { key: key.to_owned(), said: format!("Unknown parameter '{key}'") };
            let refused = plan(FsKind::Ext4, "", &found, true);
            assert!(!refused.contains(key), "{refused}");
        }
    }
}
