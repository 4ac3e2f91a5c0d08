//! What the kernel says about a disk while something is tried with it.
//!
//! Owns the reading of the kernel's log. There a file system says why it cannot be mounted; the call itself only
//! returns a number. If the log may not be read, the result is empty.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::host::device::Device;

const LOG: &str = "/dev/kmsg";

/// Longest record. Source: `PRINTKRB_RECORD_MAX` and `CONSOLE_EXT_LOG_MAX` in the kernel's `kernel/printk`.
const RECORD: usize = 8192;
/// How many lines a message repeats, and how many records are looked through for them.
const MOST_LINES: usize = 3;
const MOST_RECORDS: usize = 1000;

/// The kernel's log from a moment on.
#[derive(Debug)]
pub(super) struct KernelLog(Option<File>);

impl KernelLog {
    /// Begins here: what was said before does not count.
    pub(super) fn observe_from_now() -> KernelLog {
        let open = || -> std::io::Result<File> {
            let mut log = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(LOG)?;
            log.seek(SeekFrom::End(0))?;
            Ok(log)
        };
        KernelLog(open().ok())
    }

    /// The last lines about a disk since the beginning.
    ///
    /// Source: the kernel's `Documentation/ABI/testing/dev-kmsg`: one read gives one record, EPIPE says that some were
    /// overwritten before they were read.
    pub(super) fn about(mut self, device: &Device) -> Vec<String> {
        let mut lines = Vec::new();
        let mut record = vec![0; RECORD];
        let Some(log) = &mut self.0 else { return lines };
        for _ in 0..MOST_RECORDS {
            match log.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                    lines.extend(line_about(&kernel_name(device), &text).map(str::to_owned));
                }
                Err(err) if err.raw_os_error() == Some(Errno::EPIPE as i32) => {}
                Err(_) => break,
            }
        }
        lines.dedup();
        lines.split_off(lines.len().saturating_sub(MOST_LINES))
    }
}

/// A disk's name in the kernel's messages.
fn kernel_name(device: &Device) -> String {
    match device.mapper_name() {
        Some(_) => format!("dm-{}", device.number().minor),
        None => device.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
    }
}

/// The message of a record, when it is about this disk.
fn line_about<'a>(name: &str, record: &'a str) -> Option<&'a str> {
    let (_, message) = record.lines().next()?.split_once(';')?;
    let names =
        [format!("({name})"), format!("(device {name})"), format!("(device {name} "), format!("(device {name}: ")];
    names.iter().any(|name| message.contains(name)).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_about_the_disk_are_taken() {
        let ours = [
            "4,2531,93870291,-;XFS (loop7): Superblock has unknown incompatible features (0x80000000) enabled.\n",
            "3,2533,93870291,-;EXT4-fs (loop7): couldn't mount because of unsupported optional features (4000000)\n",
            "3,2534,93870291,-;BTRFS error (device loop7): unrecognized mount option 'x'\n SUBSYSTEM=block\n",
            "3,2535,93870291,-;BTRFS error (device loop7 state E): open_ctree failed\n",
        ];
        for record in ours {
            let line = line_about("loop7", record).unwrap();
            assert!(record.contains(line) && !line.contains('\n') && !line.contains("93870291"), "{line}");
            assert_eq!(line_about("loop", record), None);
            assert_eq!(line_about("loop71", record), None);
        }
        for other in ["", "4,1,2,-;usb 1-1: new device", "no record", "4,1,2,-;XFS (loop77): Mounting V5 Filesystem"] {
            assert_eq!(line_about("loop7", other), None, "{other}");
        }
    }
}
