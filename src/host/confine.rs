//! How programs are started that read disks which somebody hostile may have written: without a network, with no more of root's
//! power than they need, and with bounds.
//!
//! Owns what each program may do. A thread of its own gives up what the program must not have and then starts it: a thread's
//! capabilities, its network and the promise to gain no privileges are what its child inherits, and no other thread loses any of
//! them. So there is no program in between, and a start costs a thread more. What the system does not let the plugin take away, as
//! in a container that has little itself, the program keeps.
//!
//! Source: capabilities(7), "Transformation of capabilities during execve()"; `PR_SET_NO_NEW_PRIVS` and `PR_CAPBSET_DROP` of
//! prctl(2), which are a thread's.

use std::fs::File;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_no_new_privs;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::host::tools::Tool;

const MIB: u64 = 1024 * 1024;
/// Memory, as addresses, of programs that read a few blocks, and of those that hold maps of a whole disk, or make a key.
const LITTLE_MEMORY: u64 = 512 * MIB;
const MUCH_MEMORY: u64 = 6 * 1024 * MIB;
/// Most files that are open at once.
const MOST_FILES: u64 = 256;
/// How many processors a program may use for all of its time, and what it has besides.
const PROCESSORS: u64 = 4;
const CPU_GRACE: Duration = Duration::from_secs(15);

/// A network that has nothing but itself, made when the first program is started; `None` within where the system gives none.
#[derive(Debug, Clone, Default)]
pub(super) struct Confinement {
    network: Arc<Mutex<Option<Option<File>>>>,
}

impl Confinement {
    /// Starts a program that may take this long, with what it needs and no more. Its memory, its files and its processor time are
    /// bounded a moment after it has begun.
    ///
    /// # Errors
    /// The system's, when it cannot be started.
    pub(super) fn spawn(&self, command: &mut Command, tool: Tool, budget: Duration) -> io::Result<Child> {
        let child = std::thread::scope(|scope| {
            let start = || {
                self.give_up(tool)?;
                command.spawn()
            };
            let thread = std::thread::Builder::new().name("start".to_owned()).spawn_scoped(scope, start)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts programs ended")))
        })?;
        bound(&child, tool, budget);
        Ok(child)
    }

    /// Takes from this thread what the program must not have.
    fn give_up(&self, tool: Tool) -> io::Result<()> {
        self.leave_network();
        for capability in CapabilitySet::all().difference(needed(tool)).iter() {
            // One that this kernel does not know, or that the plugin may not take away and so has hardly any itself.
            if let Err(err) = remove_capability_from_bounding_set(capability) {
                log::trace!("{} keeps a capability: {err}", tool.name());
            }
        }
        set_no_new_privs().map_err(io::Error::from)
    }

    fn leave_network(&self) {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = network.as_ref() {
            if let Some(made) = made
                && let Err(err) = setns(made, CloneFlags::CLONE_NEWNET)
            {
                log::debug!("a program keeps the network: {err}");
            }
            return;
        }
        let made = unshare(CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| File::open("/proc/thread-self/ns/net"));
        *network = Some(made.inspect_err(|err| log::info!("programs keep the plugin's network: {err}")).ok());
    }
}

/// What of root's power a program needs. Their disks and their directories are root's, so most need none to open them.
///
/// Source: ioctl(2) of block devices, file systems and the device mapper, which ask for `CAP_SYS_ADMIN`; `ext4_resize_begin` in the
/// kernel's `fs/ext4/resize.c`; cryptsetup makes nodes in `/dev/mapper` and locks its memory.
fn needed(tool: Tool) -> CapabilitySet {
    match tool {
        Tool::Blkid | Tool::E2fsck | Tool::Mke2fs => CapabilitySet::empty(),
        Tool::MkfsXfs | Tool::MkfsBtrfs | Tool::Blockdev | Tool::Fsfreeze | Tool::XfsGrowfs | Tool::Btrfs => {
            CapabilitySet::SYS_ADMIN
        }
        Tool::Resize2fs => CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_RESOURCE,
        // The root directory of a volume may be somebody else's.
        Tool::Sync => CapabilitySet::DAC_READ_SEARCH,
        Tool::Cryptsetup | Tool::Dmsetup => {
            CapabilitySet::SYS_ADMIN
                | CapabilitySet::IPC_LOCK
                | CapabilitySet::MKNOD
                | CapabilitySet::CHOWN
                | CapabilitySet::FOWNER
                | CapabilitySet::DAC_OVERRIDE
        }
    }
}

fn memory(tool: Tool) -> u64 {
    match tool {
        Tool::Blkid | Tool::Blockdev | Tool::Fsfreeze | Tool::Dmsetup | Tool::Sync => LITTLE_MEMORY,
        Tool::Cryptsetup
        | Tool::E2fsck
        | Tool::Mke2fs
        | Tool::MkfsXfs
        | Tool::MkfsBtrfs
        | Tool::XfsGrowfs
        | Tool::Resize2fs
        | Tool::Btrfs => MUCH_MEMORY,
    }
}

/// Bounds a program that has begun. One that has ended already needs none.
fn bound(child: &Child, tool: Tool, budget: Duration) {
    // Without a number the bounds would be this program's own.
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    let seconds = budget.saturating_add(CPU_GRACE).as_secs().saturating_mul(PROCESSORS);
    let bounds =
        [(Resource::Core, 0), (Resource::As, memory(tool)), (Resource::Nofile, MOST_FILES), (Resource::Cpu, seconds)];
    for (resource, most) in bounds {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        if let Err(err) = prlimit(Some(pid), resource, limit) {
            log::debug!("{} is not bounded: {err}", tool.name());
        }
    }
}
