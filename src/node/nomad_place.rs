//! Nomad's directories for the mounts of a plugin.
//!
//! Owns the reading of their paths. Nomad makes them, and the job chooses where they begin.

use std::path::{Path, PathBuf};

use crate::host::external_volumes::{is_usage, plan_prepared};

/// What one of Nomad's paths is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The volume is staged there, for all its users.
    Staging,
    /// It is shown there to the allocation with this id.
    Target {
        /// The allocation.
        allocation: String,
    },
    /// A mount is prepared there before it appears at one of the other paths. It serves nobody.
    Scratch,
}

/// One of Nomad's paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NomadPlace {
    /// The plugin's own directory, in which all its mounts are.
    pub(super) base: PathBuf,
    pub(super) purpose: Purpose,
}

impl NomadPlace {
    /// Reads `BASE/staging/[NAMESPACE/]VOLUME/USAGE` or `BASE/per-alloc/ALLOCATION/VOLUME/USAGE`, and the hidden place beside either;
    /// `None` for any other path. Pure.
    ///
    /// Source: `client/pluginmanager/csimanager/volume.go` and `UsageOptions.ToFS` in Nomad; the namespace is there since 1.8.0.
    pub(super) fn parse(path: &Path) -> Option<NomadPlace> {
        let name = path.file_name()?.to_string_lossy();
        let is_scratch = plan_prepared(&name).is_some();
        if !is_usage(&name) {
            return None;
        }
        let place = |levels: usize, purpose: Purpose| {
            let base = path.ancestors().nth(levels + 1)?.to_owned();
            Some(NomadPlace { base, purpose: if is_scratch { Purpose::Scratch } else { purpose } })
        };
        let above = |levels: usize| path.ancestors().nth(levels).filter(|above| above.parent().is_some());
        let is_called =
            |levels: usize, name: &str| above(levels).and_then(Path::file_name).is_some_and(|is| is == name);
        if is_called(3, "per-alloc") {
            let allocation = above(2)?.file_name()?.to_str()?.to_owned();
            return place(3, Purpose::Target { allocation });
        }
        let levels = [3, 2].into_iter().find(|levels| is_called(*levels, "staging"))?;
        place(levels, Purpose::Staging)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_paths_of_nomads_layout_are_read() {
        let staging = |base: &str| Some(NomadPlace { base: base.into(), purpose: Purpose::Staging });
        let target = |base: &str, allocation: &str| {
            Some(NomadPlace { base: base.into(), purpose: Purpose::Target { allocation: allocation.to_owned() } })
        };
        let usage = "rw-file-system-single-node-writer";
        for (directory, want) in [
            ("/csi/staging/blog", staging("/csi")),
            ("/local/csi/staging/default/blog", staging("/local/csi")),
            ("/csi/staging/staging", staging("/csi")),
            ("/csi/per-alloc/1-2/redis[0]", target("/csi", "1-2")),
            ("/srv/staging/client/csi/per-alloc/1/blog", target("/srv/staging/client/csi", "1")),
            ("/staging/blog", staging("/")),
            ("/csi/staging", None),
            ("/csi/per-alloc/1", None),
            ("/mnt/blog", None),
            ("/csi/staging/a/b/c", None),
        ] {
            assert_eq!(NomadPlace::parse(&Path::new(directory).join(usage)), want, "{directory}");
            let hidden = want.map(|place| NomadPlace { purpose: Purpose::Scratch, ..place });
            let beside = Path::new(directory).join(format!(".{usage}.do-csi"));
            assert_eq!(NomadPlace::parse(&beside), hidden, "{directory}");
            assert_eq!(NomadPlace::parse(&Path::new(directory).join("mount")), None, "{directory}");
        }
    }
}
