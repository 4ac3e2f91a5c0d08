//! What of root's power this process keeps for itself, whatever it was started with.
//!
//! Owns the list. A privileged container has every capability, and Nomad's Docker driver can give a container that opens disks no
//! fewer: only a privileged one may open devices that come later. So the plugin gives up by itself what it never uses, before it
//! reads anything from anywhere: what loads modules, sets the clock, opens raw sockets, or reaches other users' processes.
//!
//! Source: capabilities(7); a thread's are inherited by the threads that it starts, so this is done before the first.

use std::io;

use nix::sys::prctl::set_no_new_privs;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
};

/// What the controller service may need: the token's file and the socket's directory may be another user's, and the port of
/// `--debug-addr` a low one.
const CONTROLLER: CapabilitySet =
    CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH).union(CapabilitySet::NET_BIND_SERVICE);

/// What the node service needs besides, with its programs: to mount and to ask disks and the device mapper (`SYS_ADMIN`), nodes in
/// `/dev/mapper` (`MKNOD`), a volume's owner and mode (`CHOWN`, `FOWNER`, `FSETID`), growing ext4 (`SYS_RESOURCE`), keys that are
/// not swapped out (`IPC_LOCK`), to see who uses a disk
/// (`SYS_PTRACE`), what the kernel says of it (`SYSLOG`), and to take all this away from programs (`SETPCAP`).
const NODE: CapabilitySet = CONTROLLER
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYSLOG)
    .union(CapabilitySet::SETPCAP);

/// Gives up every capability that a plugin with these services never uses, and the way to gain any by running a program. A
/// process that has few already keeps those. To be called before the first thread is started.
///
/// # Errors
/// The system's, when something stays as it was; the rest is given up all the same.
pub fn apply_least(has_node: bool) -> io::Result<()> {
    let kept = if has_node { NODE } else { CONTROLLER };
    // Those that this kernel does not know cannot be taken away, nor can any by who is not root.
    let bounding: Vec<_> =
        CapabilitySet::all().difference(kept).iter().map(remove_capability_from_bounding_set).collect();
    let given_up = capabilities(None).and_then(|have| {
        let least = |set: CapabilitySet| set.intersection(kept);
        let sets = CapabilitySets {
            effective: least(have.effective),
            permitted: least(have.permitted),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets)
    });
    let no_gain = set_no_new_privs().map_err(io::Error::from);
    let is_none_taken = bounding.iter().all(Result::is_err);
    let bounding = bounding.into_iter().find_map(Result::err).filter(|_| is_none_taken).map_or(Ok(()), Err);
    given_up.map_err(io::Error::from).and(no_gain).and(bounding.map_err(io::Error::from))
}
