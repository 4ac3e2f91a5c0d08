//! Writing what is in memory to the disk, by a program of its own.
//!
//! Owns the one command for it. A disk that does not answer holds who asks in the kernel, where no signal reaches it. A thread
//! of this program would so keep the program from ending; a program of its own is given up.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::command::{Cmd, Runner, Tool};

/// Writes everything that is in memory to the file system that is mounted at a path.
///
/// A second call has less to write.
///
/// # Errors
/// [`Error::Command`] when something could not be written, or was not within the budget.
/// Source: sync(1), `--file-system`; syncfs(2).
pub(crate) fn apply_flush_apart(runner: &dyn Runner, mounted_at: &Path, budget: Duration) -> Result<()> {
    let cmd = Cmd::new(Tool::Sync, budget).arg("--file-system").arg(mounted_at);
    let doing = || format!("writing what is in memory to the file system at {}", mounted_at.display());
    let out = runner.run(&cmd).map_err(|source| Error::Command { doing: doing(), source })?;
    out.success(&cmd).map(drop).map_err(|source| Error::Command { doing: doing(), source })
}
