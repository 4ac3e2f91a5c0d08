//! What a disk has read and written since it came, as the kernel counts it.

use std::path::Path;

use crate::error::Result;
use crate::host::device::sysfs::read_attribute;

/// The unit of the counted sectors, whatever the disk's own is. Source: `Documentation/block/stat.rst` of the kernel.
const SECTOR: u64 = 512;

/// What a disk has done since it was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Reads that ended.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Milliseconds that all reads took together.
    pub read_ms: u64,
    /// Writes that ended.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Milliseconds that all writes took together.
    pub write_ms: u64,
    /// Reads and writes that have not ended yet.
    pub in_flight: u64,
    /// Milliseconds in which the disk had something to do.
    pub busy_ms: u64,
}

/// Reads the counters of the disk with this directory in sysfs; `None` where the kernel has none. It asks the kernel's memory
/// alone, never the disk.
///
/// # Errors
/// [`crate::error::Error::Io`] when sysfs cannot be read.
pub(crate) fn observe_io(sysfs: &Path) -> Result<Option<IoCounters>> {
    Ok(read_attribute(&sysfs.join("stat"))?.and_then(|line| parse(&line)))
}

/// Reads the line; later kernels have more fields at its end.
fn parse(line: &str) -> Option<IoCounters> {
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let [reads, _, sectors_read, read_ms, writes, _, sectors_written, write_ms, in_flight, busy_ms, ..] = fields[..]
    else {
        return None;
    };
    Some(IoCounters {
        reads,
        read_bytes: sectors_read.saturating_mul(SECTOR),
        read_ms,
        writes,
        written_bytes: sectors_written.saturating_mul(SECTOR),
        write_ms,
        in_flight,
        busy_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_are_read_from_the_kernels_line_old_or_new() {
        let old = "     446      216    13384      382       57       25    65560      538        1      447      921";
        let want = IoCounters {
            reads: 446,
            read_bytes: 13384 * 512,
            read_ms: 382,
            writes: 57,
            written_bytes: 65560 * 512,
            write_ms: 538,
            in_flight: 1,
            busy_ms: 447,
        };
        assert_eq!(parse(old), Some(want));
        assert_eq!(parse(&format!("{old} 1 2 3 4 5 6")), Some(want));
        for odd in ["", "1 2 3", "1 2 3 4 5 6 7 8 9 x", "-1 2 3 4 5 6 7 8 9 10"] {
            assert_eq!(parse(odd), None, "{odd:?}");
        }
    }
}
