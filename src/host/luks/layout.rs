//! Where the parts of an encrypted volume are, and the words that its header carries.

/// Where the data of an encrypted volume begins on its disk; before it are the two copies of its header and its key slots.
pub(in crate::host) const DATA_AT: u64 = 16 * 1024 * 1024;

/// What an encrypted volume's header says of who made it: before, and after there is a file system in it.
pub(in crate::host) const SUBSYSTEM_NEW: &str = "do-csi-plugin:new";

pub(in crate::host) const SUBSYSTEM: &str = "do-csi-plugin";
