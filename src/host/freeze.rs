//! Ending the freeze of a file system.
//!
//! Owns the command for it. A backup tool that dies between `fsfreeze -f` and `fsfreeze -u` leaves a file system on
//! which every write waits without end. Its unmount succeeds, and the kernel keeps the frozen file system for the next
//! mount.

use std::path::Path;
use std::time::Duration;

use crate::error::command::Exit;
use crate::error::{Error, Result};
use crate::host::command::{Cmd, Runner, Tool};
use crate::sync::volume_lock::VolumeGuard;

/// It is one ioctl.
const BUDGET: Duration = Duration::from_secs(5);

/// Ends the freeze of a file system that is mounted at a path; says whether it was frozen.
///
/// A second call finds it not frozen and changes nothing.
///
/// # Errors
/// [`Error::Command`] when the program fails.
/// Source: `ioctl_fsthaw` in the kernel's `fs/ioctl.c`: "Invalid argument" is what it answers when nothing is frozen.
pub(crate) fn apply_thaw(guard: &VolumeGuard, runner: &dyn Runner, mounted_at: &Path) -> Result<bool> {
    let cmd = Cmd::new(Tool::Fsfreeze, BUDGET).arg("--unfreeze").arg(mounted_at).holding(guard);
    let doing = || format!("seeing that the file system at {} is not frozen", mounted_at.display());
    let out = runner.run(&cmd).map_err(|source| Error::Command { doing: doing(), source })?;
    match out.exit {
        Exit::Code(0) => Ok(true),
        Exit::Code(1) if out.stderr.contains("Invalid argument") => Ok(false),
        Exit::Code(_) | Exit::Signal(_) | Exit::TimedOut | Exit::Stuck => {
            Err(Error::Command { doing: doing(), source: out.into_error(&cmd) })
        }
    }
}
