//! Volume capabilities: how a caller wants to use a volume, and which of these uses a DigitalOcean volume has.
//!
//! Owns the list of what is supported and the reasons why the rest is not. A DigitalOcean volume is attached to one
//! droplet at a time, so every mode that needs two nodes is refused here, before anything is created or attached.

use crate::error::{Error, Result};
use crate::fs::FsKind;
use crate::host::mount_options::MountOptions;
use crate::proto::csi::{VolumeCapability, volume_capability};

/// The access modes that can be had. Source: CSI specification, `VolumeCapability.AccessMode.Mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessMode {
    /// Read and write on one node.
    SingleNodeWriter,
    /// Read only on one node.
    SingleNodeReaderOnly,
    /// Read and write at a single path of one node.
    SingleNodeSingleWriter,
    /// Read and write at several paths of one node.
    SingleNodeMultiWriter,
}

/// How the volume is presented to the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// As a mounted file system.
    Mount {
        /// The requested file system; `None`: the one on the disk, or the default on a blank disk.
        fs: Option<FsKind>,
        /// The requested mount flags.
        flags: MountOptions,
    },
    /// As a raw block device.
    Block,
}

/// One way of using a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Who may use it, and how.
    pub mode: AccessMode,
    /// How the workload sees it.
    pub access: Access,
}

impl Capability {
    /// Reads a capability.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a part is missing or contradictory, [`Error::Unsupported`] when it is well formed but
    /// DigitalOcean's volumes cannot do it.
    pub fn parse(field: &str, wire: Option<VolumeCapability>) -> Result<Capability> {
        let wire = wire.ok_or_else(|| Error::invalid(field, "must be given"))?;
        let access = match wire.access_type {
            Some(volume_capability::Access_type::Mount(mount)) => parse_mount(field, mount)?,
            Some(volume_capability::Access_type::Block(_)) => Access::Block,
            None => return Err(Error::invalid(field, "names neither mount nor block as access type")),
        };
        let mode = wire.access_mode.into_option().ok_or_else(|| Error::invalid(field, "has no access mode"))?;
        Ok(Capability { mode: parse_mode(field, mode.mode.enum_value())?, access })
    }

    /// Whether the volume is only read.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        let by_flag = match &self.access {
            Access::Mount { flags, .. } => flags.is_read_only(),
            Access::Block => false,
        };
        by_flag || self.mode == AccessMode::SingleNodeReaderOnly
    }

    /// The same capability, with read-only among the mount flags when the mode says so, or the caller.
    #[must_use]
    pub fn settled(self, is_read_only: bool) -> Capability {
        let is_read_only = is_read_only || self.is_read_only();
        match self.access {
            Access::Mount { fs, flags } if is_read_only => {
                Capability { mode: self.mode, access: Access::Mount { fs, flags: flags.read_only() } }
            }
            access @ (Access::Mount { .. } | Access::Block) => Capability { mode: self.mode, access },
        }
    }

    /// Reads the capabilities of a request that must have at least one.
    ///
    /// # Errors
    /// As [`Capability::parse`], and [`Error::Invalid`] when there is none.
    pub fn parse_all(field: &str, wire: Vec<VolumeCapability>) -> Result<Vec<Capability>> {
        if wire.is_empty() {
            return Err(Error::invalid(field, "must name at least one capability"));
        }
        wire.into_iter().map(|capability| Capability::parse(field, Some(capability))).collect()
    }
}

fn parse_mount(field: &str, mount: volume_capability::MountVolume) -> Result<Access> {
    if !mount.volume_mount_group.is_empty() {
        return Err(Error::Unsupported(format!("{field}: volume_mount_group")));
    }
    let fs = match mount.fs_type.as_str() {
        "" => None,
        name => Some(FsKind::parse(name).ok_or_else(|| {
            Error::Unsupported(format!("{field}: file system {name:?}; there are xfs, ext4, ext3 and btrfs"))
        })?),
    };
    let flags = MountOptions::parse(mount.mount_flags.iter().map(String::as_str))
        .map_err(|why| Error::invalid(format!("{field}.mount_flags"), why))?;
    Ok(Access::Mount { fs, flags })
}

fn parse_mode(field: &str, mode: Result<volume_capability::access_mode::Mode, i32>) -> Result<AccessMode> {
    use volume_capability::access_mode::Mode;

    match mode {
        Ok(Mode::SINGLE_NODE_WRITER) => Ok(AccessMode::SingleNodeWriter),
        Ok(Mode::SINGLE_NODE_READER_ONLY) => Ok(AccessMode::SingleNodeReaderOnly),
        Ok(Mode::SINGLE_NODE_SINGLE_WRITER) => Ok(AccessMode::SingleNodeSingleWriter),
        Ok(Mode::SINGLE_NODE_MULTI_WRITER) => Ok(AccessMode::SingleNodeMultiWriter),
        Ok(mode @ (Mode::MULTI_NODE_READER_ONLY | Mode::MULTI_NODE_SINGLE_WRITER | Mode::MULTI_NODE_MULTI_WRITER)) => {
            Err(Error::Unsupported(format!("{mode:?}: a DigitalOcean volume is attached to one droplet at a time")))
        }
        Ok(Mode::UNKNOWN) => Err(Error::invalid(field, "has no access mode")),
        Err(number) => Err(Error::invalid(field, format!("has the unknown access mode {number}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use volume_capability::access_mode::Mode;

    fn wire(mode: Mode, fs_type: &str) -> VolumeCapability {
        let mount = volume_capability::MountVolume { fs_type: fs_type.into(), ..Default::default() };
        let access_mode = volume_capability::AccessMode { mode: mode.into(), ..Default::default() };
        VolumeCapability {
            access_type: Some(volume_capability::Access_type::Mount(mount)),
            access_mode: Some(access_mode).into(),
            ..Default::default()
        }
    }

    #[test]
    fn modes_of_one_node_are_had_and_modes_of_several_are_not() {
        let table = [
            (Mode::SINGLE_NODE_WRITER, Some(AccessMode::SingleNodeWriter)),
            (Mode::SINGLE_NODE_READER_ONLY, Some(AccessMode::SingleNodeReaderOnly)),
            (Mode::SINGLE_NODE_SINGLE_WRITER, Some(AccessMode::SingleNodeSingleWriter)),
            (Mode::SINGLE_NODE_MULTI_WRITER, Some(AccessMode::SingleNodeMultiWriter)),
            (Mode::MULTI_NODE_READER_ONLY, None),
            (Mode::MULTI_NODE_SINGLE_WRITER, None),
            (Mode::MULTI_NODE_MULTI_WRITER, None),
        ];
        for (mode, want) in table {
            match (Capability::parse("c", Some(wire(mode, ""))), want) {
                (Ok(got), Some(want)) => assert_eq!(got.mode, want),
                (Err(Error::Unsupported(why)), None) => assert!(why.contains("one droplet at a time")),
                (got, _) => panic!("{mode:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn what_is_missing_is_invalid_and_names_the_field() {
        let no_mode = VolumeCapability { access_mode: None.into(), ..wire(Mode::SINGLE_NODE_WRITER, "") };
        let no_type = VolumeCapability { access_type: None, ..wire(Mode::SINGLE_NODE_WRITER, "") };
        for bad in [None, Some(no_mode), Some(no_type), Some(wire(Mode::UNKNOWN, ""))] {
            let err = Capability::parse("volume_capability", bad).unwrap_err();
            assert!(matches!(&err, Error::Invalid { field, .. } if field == "volume_capability"), "{err}");
        }
        assert!(matches!(Capability::parse_all("volume_capabilities", Vec::new()), Err(Error::Invalid { .. })));
    }

    #[test]
    fn a_file_system_that_cannot_be_made_is_not_supported() {
        for (name, is_known) in [("", true), ("xfs", true), ("ext4", true), ("ntfs", false), ("XFS", false)] {
            let got = Capability::parse("c", Some(wire(Mode::SINGLE_NODE_WRITER, name)));
            assert_eq!(got.is_ok(), is_known, "{name}");
        }
    }
}
