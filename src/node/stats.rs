//! How full a volume is.
//!
//! Owns the reading of a file system's or device's size at a path. It changes nothing and takes no lock.

use std::fs::{self, File};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;

use nix::sys::statvfs::statvfs;

use super::Node;
use super::place;
use crate::error::{Error, Result, Thing};
use crate::host::mount::observe_mounts;
use crate::request::node::Stats;

/// A total and how it is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// All there is.
    pub total: u64,
    /// What is taken.
    pub used: u64,
    /// What an ordinary user can still take.
    pub available: u64,
}

/// The use of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Space, in bytes.
    Bytes(Counts),
    /// Files and folders.
    Inodes(Counts),
}

impl Node {
    /// Says how full the volume at a path is: bytes and inodes of a file system, the size of a raw block device.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no volume is at the path, [`Error::Io`] when it does not answer.
    pub fn stats(&self, want: &Stats) -> Result<Vec<Usage>> {
        let not_there = || Error::NotFound(Thing::VolumeAt(want.path.clone()));
        let found = match fs::metadata(&want.path) {
            Ok(found) => found,
            Err(err) if matches!(err.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Err(not_there()),
            Err(err) => return Err(Error::io("examining", &want.path)(err)),
        };
        let real = place::observe_real_path(&want.path)?.ok_or_else(not_there)?;
        if observe_mounts()?.at(&real).is_none() {
            return Err(not_there());
        }
        if found.file_type().is_block_device() {
            let size = File::open(&real).and_then(|mut file| file.seek(SeekFrom::End(0)));
            let total = size.map_err(Error::io("measuring", &real))?;
            return Ok(vec![Usage::Bytes(Counts { total, used: total, available: 0 })]);
        }
        let fs = statvfs(&real).map_err(Error::errno("measuring", &real))?;
        let bytes = |blocks: u64| blocks.saturating_mul(fs.fragment_size());
        Ok(vec![
            Usage::Bytes(Counts {
                total: bytes(fs.blocks()),
                used: bytes(fs.blocks().saturating_sub(fs.blocks_free())),
                available: bytes(fs.blocks_available()),
            }),
            Usage::Inodes(Counts {
                total: fs.files(),
                used: fs.files().saturating_sub(fs.files_free()),
                available: fs.files_available(),
            }),
        ])
    }
}
