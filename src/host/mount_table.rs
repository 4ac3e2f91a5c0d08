//! Reading the mount table of this process.
//!
//! Owns how the table is read so that no mount is missed, which depends on the kernel. `mountinfo.rs` owns its meaning.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};
use crate::host::KERNEL_RELEASE;
use crate::host::mountinfo::MountTable;

const TABLE: &str = "/proc/self/mountinfo";

/// The first kernel on which a reading never overlooks a mount.
const SAFE_SINCE: (u32, u32) = (5, 8);

/// How often the table is read at most where a reading may overlook a mount.
const READINGS: usize = 8;

/// Holds the table of a droplet with many mounts, so that a reading seldom has to make room.
const ROOM: usize = 16 * 1024;

/// How the mount table is read.
///
/// The kernel gives out a page of it at a time, and mounts come and go between two pages. Before Linux 5.8 it went on by
/// counting, so that an unmount of something already shown made it skip a mount. Since then it goes on where it was: at a
/// mark in its list, and since 6.8 by the mounts' numbers. So whatever is mounted all the time is shown.
///
/// Source: `m_start` in the kernel's `fs/namespace.c`; its commits 9f6c61f96f2d and 2eea9ce4310d.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Once.
    Once,
    /// Until nothing was mounted or unmounted meanwhile. Where that never happens, what any of several readings has shown
    /// counts: to be overlooked, a mount would have to be skipped by each of them. A mount that went meanwhile may be shown.
    UntilUndisturbed,
}

impl Reading {
    /// The one that the running kernel needs. Kept for the whole process, as the kernel stays the same while it runs.
    fn of_this_kernel() -> Reading {
        static READING: OnceLock<Reading> = OnceLock::new();
        *READING.get_or_init(|| plan_reading(&std::fs::read_to_string(KERNEL_RELEASE).unwrap_or_default()))
    }
}

/// Decides by the kernel's release, such as `5.15.0-91-generic`. What is not understood may be old. Pure.
fn plan_reading(release: &str) -> Reading {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= SAFE_SINCE => Reading::Once,
        (Some(_) | None, Some(_) | None) => Reading::UntilUndisturbed,
    }
}

/// Reads the mount table, whole. Each mount costs about 4 µs, most of them in the kernel.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, or is empty: this process sees at least the mount that it reads the table from.
pub fn observe_mounts() -> Result<MountTable> {
    observe_mounts_by(Reading::of_this_kernel())
}

/// As [`observe_mounts`], of the process whose table has this path.
///
/// # Errors
/// As [`observe_mounts`].
pub(super) fn observe_mounts_of(table: &'static str) -> Result<MountTable> {
    observe(table, Reading::of_this_kernel())
}

/// Reads the mount table in one way.
///
/// # Errors
/// As [`observe_mounts`].
pub fn observe_mounts_by(reading: Reading) -> Result<MountTable> {
    observe(TABLE, reading)
}

fn observe(path: &'static str, reading: Reading) -> Result<MountTable> {
    let read = || {
        let mut file = File::open(path)?;
        let mut text = Vec::with_capacity(ROOM);
        let mut read = || {
            text.clear();
            file.rewind()?;
            file.read_to_end(&mut text)?;
            let table = MountTable::parse(&text).map_err(std::io::Error::other)?;
            Ok((table, has_changed(&file)?))
        };
        match reading {
            Reading::Once => read().map(|(table, _)| table),
            Reading::UntilUndisturbed => read_until_undisturbed(read),
        }
    };
    let table = read().map_err(Error::io("reading", path))?;
    if table.iter().next().is_none() {
        return Err(Error::io("reading", path)(std::io::Error::other("it is empty")));
    }
    Ok(table)
}

/// Whether anything was mounted, unmounted or remounted since the table was opened, or since it was asked last.
///
/// Source: `mounts_poll` in the kernel's `fs/proc_namespace.c`.
fn has_changed(table: &File) -> std::io::Result<bool> {
    let mut asked = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
    Ok(poll(&mut asked, PollTimeout::ZERO)? > 0)
}

/// Reads until a reading was not disturbed, which it says itself; at last puts all readings together.
fn read_until_undisturbed(
    mut read: impl FnMut() -> std::io::Result<(MountTable, bool)>,
) -> std::io::Result<MountTable> {
    let mut together = MountTable::default();
    for _ in 0..READINGS {
        let (table, is_disturbed) = read()?;
        if !is_disturbed {
            return Ok(table);
        }
        together = table.with_missing_from(together);
    }
    Ok(together)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_kernel_decides_how_often_the_table_is_read() {
        for (release, want) in [
            ("6.18.44-fc-v657\n", Reading::Once),
            ("5.8.0", Reading::Once),
            ("5.10.0-28-amd64", Reading::Once),
            ("10.0", Reading::Once),
            ("5.8-rc1", Reading::Once),
            ("5.7.19", Reading::UntilUndisturbed),
            ("5.4.0-190-generic", Reading::UntilUndisturbed),
            ("4.18.0-553.el8_10.x86_64", Reading::UntilUndisturbed),
            ("", Reading::UntilUndisturbed),
            ("6", Reading::UntilUndisturbed),
            ("linux-6.8", Reading::UntilUndisturbed),
        ] {
            assert_eq!(plan_reading(release), want, "{release:?}");
        }
    }

    fn table(targets: &[(u64, &str)]) -> MountTable {
        let line = |(id, at): &(u64, &str)| format!("{id} 1 8:0 / {at} rw - xfs /dev/sda rw\n");
        MountTable::parse(targets.iter().map(line).collect::<String>().as_bytes()).unwrap()
    }

    #[test]
    fn an_undisturbed_reading_counts_alone_and_disturbed_ones_together() {
        let (whole, holed) = (table(&[(1, "/"), (2, "/kept")]), table(&[(1, "/"), (3, "/other")]));
        for disturbed in [0, 1, READINGS - 1, READINGS, READINGS + 1] {
            let mut readings = 0;
            let seen = read_until_undisturbed(|| {
                readings += 1;
                Ok((if readings == 1 { whole.clone() } else { holed.clone() }, readings <= disturbed))
            });
            let seen = seen.unwrap();
            let is_kept_seen = seen.at(Path::new("/kept")).is_some() || seen.iter().any(|mount| mount.id == 2);
            assert_eq!(readings, (disturbed + 1).min(READINGS), "{disturbed}");
            assert_eq!(is_kept_seen, disturbed == 0 || disturbed >= READINGS, "{disturbed}");
        }
        assert!(read_until_undisturbed(|| Err(std::io::Error::other("no"))).is_err());
    }
}
