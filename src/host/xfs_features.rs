//! Features of XFS that the running kernel is too old for.
//!
//! Owns the table of features that mkfs.xfs turns on by itself and that older kernels do not mount. The image's mkfs.xfs is newer
//! than the kernel of many droplets, and a kernel never mounts a file system with a feature that it does not know. To leave all of
//! them out everywhere would need no table, but a file system without `bigtime` ends in 2038. A feature needs a row when mkfs.xfs
//! turns it on by itself and a kernel that is still in use does not mount it.

use std::fs;

use crate::error::{Error, Result};
use crate::host::command::{Cmd, Runner, Tool};
use crate::host::{KERNEL_RELEASE, PROBE_BUDGET};

/// A version, as far as it matters here.
type Version = (u32, u32);

/// A feature.
#[derive(Debug)]
struct Feature {
    /// The first Linux that mounts a file system that has it, and the first xfsprogs that know its name: they are released
    /// together, under one number.
    since: Version,
    /// How mkfs.xfs is told to leave it out.
    arguments: [&'static str; 2],
}

/// Source: the files `lts_*.conf` of xfsprogs' `mkfs`, which say what each kernel takes; kernelnewbies.org on Linux 5.10, 5.19
/// and 6.10.
const FEATURES: [Feature; 5] = [
    Feature { since: (5, 10), arguments: ["-m", "bigtime=0"] },
    Feature { since: (5, 10), arguments: ["-m", "inobtcount=0"] },
    Feature { since: (5, 19), arguments: ["-i", "nrext64=0"] },
    Feature { since: (6, 10), arguments: ["-i", "exchange=0"] },
    Feature { since: (6, 10), arguments: ["-n", "parent=0"] },
];

/// The arguments with which mkfs.xfs makes what this kernel mounts. Which version it is is asked only where it matters.
///
/// # Errors
/// [`Error::Io`] when the kernel's version cannot be read, [`Error::Command`] when mkfs.xfs does not answer,
/// [`Error::NotAsReported`] when its answer is not understood.
pub(super) fn observe_arguments(runner: &dyn Runner) -> Result<Vec<&'static str>> {
    let text = fs::read_to_string(KERNEL_RELEASE).map_err(Error::io("reading", KERNEL_RELEASE))?;
    // If the kernel's version is not understood, it may be any version. All kernels mount what the oldest one mounts.
    let kernel = parse(&text).unwrap_or_default();
    if missing(kernel).next().is_none() {
        return Ok(Vec::new());
    }
    let cmd = Cmd::new(Tool::MkfsXfs, PROBE_BUDGET).arg("-V");
    let out = runner.run(&cmd).and_then(|out| out.success(&cmd));
    let doing = || "asking mkfs.xfs for its version".to_owned();
    let printed = out.map_err(|source| Error::Command { doing: doing(), source })?;
    let lossy = String::from_utf8_lossy(&printed);
    let tool = lossy.split_whitespace().find_map(parse);
    let unknown = || {
        Error::NotAsReported(format!(
            "the version in what mkfs.xfs says of itself is not understood: {:?}",
            lossy.trim()
        ))
    };
    Ok(plan_arguments(kernel, tool.ok_or_else(unknown)?))
}

/// What to leave out for this kernel, as this version of mkfs.xfs understands it. Pure.
fn plan_arguments(kernel: Version, tool: Version) -> Vec<&'static str> {
    missing(kernel).filter(|feature| feature.since <= tool).flat_map(|feature| feature.arguments).collect()
}

fn missing(kernel: Version) -> impl Iterator<Item = &'static Feature> {
    FEATURES.iter().filter(move |feature| kernel < feature.since)
}

/// Reads "5.4.0-216-generic" or "6.1.0".
fn parse(text: &str) -> Option<Version> {
    let mut numbers = text.trim().split(['.', '-']).map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom};
    use std::process::Command;

    use super::*;
    use crate::host::command::{SystemRunner, find_tools};

    #[test]
    fn versions_are_read() {
        for (text, want) in [
            ("5.4.0-216-generic\n", Some((5, 4))),
            ("4.18.0-553.el8_10.x86_64", Some((4, 18))),
            ("6.1.0", Some((6, 1))),
            ("6.12-rc1", Some((6, 12))),
            ("mkfs.xfs", None),
            ("version", None),
            ("", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }

    #[test]
    fn an_old_kernel_gets_only_what_it_mounts_and_an_old_tool_only_what_it_knows() {
        let all = ["-m", "bigtime=0", "-m", "inobtcount=0", "-i", "nrext64=0", "-i", "exchange=0", "-n", "parent=0"];
        for (kernel, tool, want) in [
            ((5, 4), (6, 1), &all[..6]),
            ((4, 18), (6, 13), &all[..]),
            ((5, 9), (5, 10), &all[..4]),
            ((5, 4), (5, 3), &[]),
            ((5, 10), (6, 1), &all[4..6]),
            ((5, 18), (5, 18), &[]),
            ((5, 19), (6, 9), &[]),
            ((6, 9), (6, 10), &all[6..]),
            ((6, 10), (6, 15), &[]),
            // A kernel that does not tell which it is.
            (Version::default(), (6, 13), &all[..]),
        ] {
            assert_eq!(plan_arguments(kernel, tool), want, "{kernel:?} {tool:?}");
        }
    }

    /// The words of the superblock with the features that a kernel must know to write and to mount. Source: `struct xfs_dsb` in
    /// the kernel's `fs/xfs/libxfs/xfs_format.h`.
    fn features(file: &mut std::fs::File) -> (u32, u32) {
        let mut word = [0; 4];
        let mut at = |offset| {
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.read_exact(&mut word).unwrap();
            u32::from_be_bytes(word)
        };
        (at(212), at(216))
    }

    #[test]
    fn the_installed_mkfs_leaves_out_what_it_is_told() {
        const INOBTCOUNT: u32 = 1 << 3;
        const BIGTIME: u32 = 1 << 3;
        const NREXT64: u32 = 1 << 5;
        let runner = SystemRunner::new(find_tools().unwrap());
        let printed = runner.run(&Cmd::new(Tool::MkfsXfs, PROBE_BUDGET).arg("-V")).unwrap().stdout;
        let tool = String::from_utf8(printed).unwrap().split_whitespace().find_map(parse).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for (kernel, want) in [((5, 4), 0), (tool, BIGTIME)] {
            file.as_file().set_len(0).unwrap();
            file.as_file().set_len(320 << 20).unwrap();
            let made = Command::new("mkfs.xfs")
                .args(["-q", "-f"])
                .args(plan_arguments(kernel, tool))
                .arg(file.path())
                .status();
            assert!(made.unwrap().success());
            let (write, mount) = features(file.as_file_mut());
            assert_eq!((write & INOBTCOUNT, mount & BIGTIME), (want, want), "{kernel:?} {tool:?}");
            assert!(kernel == tool || mount & NREXT64 == 0, "{kernel:?} {tool:?}");
        }
        assert!(tool < (5, 15) || observe_arguments(&runner).is_ok());
    }
}
