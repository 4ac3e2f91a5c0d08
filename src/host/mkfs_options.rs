//! The parameters that a file system can be made with.
//!
//! Owns their names, their limits and how each mkfs program is told. Pure. What is not understood is refused: a volume
//! must not come out other than its owner asked.

use crate::fs::FsKind;

/// The block size that every file system here gets unless another is asked for.
const BLOCK_SIZE: usize = 4096;

/// Why a parameter is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct BadOption {
    key: String,
    why: String,
}

/// Parameters for making a file system; what is not set is left to the mkfs program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FormatOptions {
    block_size: Option<usize>,
    inode_size: Option<usize>,
    inode_ratio: Option<usize>,
    reserved_percent: Option<usize>,
    reflink: Option<bool>,
    label: Option<String>,
}

impl FormatOptions {
    /// The names of all parameters.
    pub const NAMES: [&str; 6] = ["block-size", "inode-size", "inode-ratio", "reserved-percent", "reflink", "label"];

    /// Reads parameters by name:
    ///
    /// | name | value | for |
    /// |---|---|---|
    /// | `block-size` | 1024, 2048 or 4096 bytes | xfs, ext4, ext3 |
    /// | `inode-size` | 256 (not xfs), 512, 1024 or 2048 bytes | xfs, ext4, ext3 |
    /// | `inode-ratio` | bytes of disk for each inode, 1024 to 67108864 | ext4, ext3 |
    /// | `reserved-percent` | what only root may fill, 0 to 50 | ext4, ext3 |
    /// | `reflink` | `true` or `false` | xfs |
    /// | `label` | letters, digits, `.`, `_`, `-` | all |
    ///
    /// # Errors
    /// [`BadOption`] for a name or value that is not in the table, or a name that comes twice.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, BadOption> {
        let mut options = FormatOptions::default();
        for (key, value) in pairs {
            let parsed = match key {
                "block-size" => set(&mut options.block_size, one_of(value, &[1024, 2048, 4096])),
                "inode-size" => set(&mut options.inode_size, one_of(value, &[256, 512, 1024, 2048])),
                "inode-ratio" => set(&mut options.inode_ratio, between(value, 1024, 64 << 20)),
                "reserved-percent" => set(&mut options.reserved_percent, between(value, 0, 50)),
                "reflink" => set(&mut options.reflink, value.parse().map_err(|_| "must be true or false".to_owned())),
                "label" => set(&mut options.label, label(value)),
                _ => Err("is not a parameter for making a file system".to_owned()),
            };
            parsed.map_err(|why| BadOption { key: key.to_owned(), why })?;
        }
        Ok(options)
    }

    /// Checks that a file system has all the parameters that are set, with these values.
    ///
    /// # Errors
    /// [`BadOption`] for the first that it has not.
    pub fn check_for(&self, fs: FsKind) -> Result<(), BadOption> {
        let is_ext = matches!(fs, FsKind::Ext4 | FsKind::Ext3);
        let is_xfs = fs == FsKind::Xfs;
        let bad = |key: &str, why: String| Err(BadOption { key: key.to_owned(), why });
        let has = [
            ("block-size", self.block_size.is_some(), is_ext || is_xfs),
            ("inode-size", self.inode_size.is_some(), is_ext || is_xfs),
            ("inode-ratio", self.inode_ratio.is_some(), is_ext),
            ("reserved-percent", self.reserved_percent.is_some(), is_ext),
            ("reflink", self.reflink.is_some(), is_xfs),
        ];
        if let Some((key, ..)) = has.iter().find(|(_, is_set, is_known)| *is_set && !is_known) {
            return bad(key, format!("{fs} has no such parameter"));
        }
        let label_limit = match fs {
            FsKind::Xfs => 12,
            FsKind::Ext4 | FsKind::Ext3 => 16,
            FsKind::Btrfs => 255,
        };
        if self.label.as_ref().is_some_and(|label| label.len() > label_limit) {
            return bad("label", format!("must not be longer than {label_limit} characters for {fs}"));
        }
        // XFS with checksums needs 512 bytes at least, and two inodes must fit into a block.
        let inode_size = self.inode_size.unwrap_or(512);
        let inode_fits = if is_xfs {
            inode_size >= 512 && inode_size * 2 <= self.block_size()
        } else {
            inode_size <= self.block_size()
        };
        if !inode_fits {
            return bad("inode-size", format!("{inode_size} does not fit {fs} with blocks of {}", self.block_size()));
        }
        if self.inode_ratio.is_some_and(|ratio| ratio < self.block_size()) {
            return bad("inode-ratio", format!("must not be below the block size {}", self.block_size()));
        }
        Ok(())
    }

    /// The block size in bytes, asked for or not.
    pub(super) fn block_size(&self) -> usize {
        self.block_size.unwrap_or(BLOCK_SIZE)
    }

    /// The arguments for the mkfs program of a file system for which [`FormatOptions::check_for`] was satisfied.
    ///
    /// Source: mkfs.xfs(8), mke2fs(8), mkfs.btrfs(8).
    pub(super) fn arguments(&self, fs: FsKind) -> Vec<String> {
        let option = |flag: &str, value: Option<String>| value.map(|value| [flag.to_owned(), value]);
        let block = self.block_size();
        let sets = match fs {
            FsKind::Xfs => vec![
                option("-b", Some(format!("size={block}"))),
                option("-i", self.inode_size.map(|size| format!("size={size}"))),
                option("-m", self.reflink.map(|on| format!("reflink={}", u8::from(on)))),
            ],
            FsKind::Ext4 | FsKind::Ext3 => vec![
                option("-b", Some(block.to_string())),
                option("-I", self.inode_size.map(|size| size.to_string())),
                option("-i", self.inode_ratio.map(|ratio| ratio.to_string())),
                option("-m", self.reserved_percent.map(|percent| percent.to_string())),
            ],
            FsKind::Btrfs => Vec::new(),
        };
        let label = option("-L", self.label.clone());
        sets.into_iter().chain([label]).flatten().flatten().collect()
    }
}

/// Takes over a setting that must not be given twice.
pub(crate) fn set<T, E: From<&'static str>>(place: &mut Option<T>, value: Result<T, E>) -> Result<(), E> {
    match place.replace(value?) {
        Some(_) => Err("is given twice".into()),
        None => Ok(()),
    }
}

fn number(text: &str) -> Option<usize> {
    let is_plain = (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

fn one_of(text: &str, allowed: &[usize]) -> Result<usize, String> {
    number(text).filter(|value| allowed.contains(value)).ok_or_else(|| format!("must be one of {allowed:?}"))
}

fn between(text: &str, least: usize, most: usize) -> Result<usize, String> {
    number(text).filter(|value| (least..=most).contains(value)).ok_or_else(|| format!("must be {least} to {most}"))
}

fn label(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && !text.starts_with('-')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if fits { Ok(text.to_owned()) } else { Err("must be letters, digits, '.', '_' or '-'".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn parse(pairs: Pairs<'_>) -> Result<FormatOptions, BadOption> {
        FormatOptions::parse(pairs.iter().copied())
    }

    fn arguments(fs: FsKind, pairs: Pairs<'_>) -> Result<String, BadOption> {
        let options = parse(pairs)?;
        options.check_for(fs).map(|()| options.arguments(fs).join(" "))
    }

    #[test]
    fn parameters_become_arguments() {
        let ext: &[_] =
            &[("block-size", "1024"), ("inode-size", "512"), ("inode-ratio", "8192"), ("reserved-percent", "0")];
        let cases: [(FsKind, Pairs<'_>, &str); 8] = [
            (FsKind::Xfs, &[], "-b size=4096"),
            (FsKind::Ext4, &[], "-b 4096"),
            (FsKind::Ext3, &[("label", "data_1")], "-b 4096 -L data_1"),
            (FsKind::Btrfs, &[], ""),
            (FsKind::Btrfs, &[("label", "data")], "-L data"),
            (FsKind::Ext4, ext, "-b 1024 -I 512 -i 8192 -m 0"),
            (FsKind::Xfs, &[("block-size", "2048"), ("inode-size", "1024")], "-b size=2048 -i size=1024"),
            (FsKind::Xfs, &[("reflink", "false"), ("label", "x")], "-b size=4096 -m reflink=0 -L x"),
        ];
        for (fs, pairs, want) in cases {
            assert_eq!(arguments(fs, pairs).unwrap(), want, "{fs}");
        }
    }

    #[test]
    fn what_is_not_understood_or_does_not_fit_is_refused() {
        let bad: [(FsKind, Pairs<'_>, &str); 21] = [
            (FsKind::Ext4, &[("blocksize", "4096")], "is not a parameter"),
            (FsKind::Ext4, &[("block-size", "4097")], "must be one of"),
            (FsKind::Ext4, &[("block-size", "8192")], "must be one of"),
            (FsKind::Ext4, &[("block-size", "+4096")], "must be one of"),
            (FsKind::Ext4, &[("block-size", "")], "must be one of"),
            (FsKind::Ext4, &[("block-size", "4096"), ("block-size", "4096")], "twice"),
            (FsKind::Ext4, &[("inode-ratio", "99999999999")], "must be 1024"),
            (FsKind::Ext4, &[("inode-ratio", "1024")], "below the block size"),
            (FsKind::Ext4, &[("block-size", "1024"), ("inode-size", "2048")], "does not fit"),
            (FsKind::Ext4, &[("reserved-percent", "51")], "must be 0 to 50"),
            (FsKind::Ext4, &[("reflink", "true")], "no such parameter"),
            (FsKind::Ext4, &[("label", "seventeen-letters")], "longer than 16"),
            (FsKind::Xfs, &[("label", "thirteen-char")], "longer than 12"),
            (FsKind::Xfs, &[("label", "")], "letters"),
            (FsKind::Xfs, &[("label", "-f")], "letters"),
            (FsKind::Xfs, &[("label", "a b")], "letters"),
            (FsKind::Xfs, &[("reflink", "1")], "true or false"),
            (FsKind::Xfs, &[("inode-size", "256")], "does not fit"),
            (FsKind::Xfs, &[("inode-size", "1024"), ("block-size", "1024")], "does not fit"),
            (FsKind::Xfs, &[("inode-ratio", "8192")], "no such parameter"),
            (FsKind::Btrfs, &[("block-size", "4096")], "no such parameter"),
        ];
        for (fs, pairs, words) in bad {
            let refused = arguments(fs, pairs).unwrap_err().to_string();
            assert!(
                refused.contains(words) && pairs.iter().any(|(key, _)| refused.starts_with(key)),
                "{fs} {pairs:?}: {refused}"
            );
        }
    }
}
