//! How a program that was run has failed.

use std::fmt;

use nix::sys::signal::Signal;

/// A program that is not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is missing in {searched}; install the Debian package {package}")]
pub struct MissingTool {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
    pub(crate) searched: &'static str,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it, and it was not ours.
    Signal(i32),
    /// It used up its budget and was ended, with its whole process group: asked first, then killed.
    TimedOut,
    /// It used up its budget, was killed and is still there: it sleeps in the kernel. A thread of its own waits for its
    /// end and keeps the volume locked until then.
    Stuck,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            // Nobody but the kernel sends this one to a program of ours, and only when there is no memory left.
            Exit::Signal(number) if *number == Signal::SIGKILL as i32 => {
                f.write_str("was ended by SIGKILL, probably out of memory: raise the memory of the plugin's task")
            }
            Exit::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "was ended by {signal}"),
                Err(_) => write!(f, "was ended by signal {number}"),
            },
            Exit::TimedOut => f.write_str("used up its time and was ended"),
            Exit::Stuck => f.write_str("used up its time and does not die (it waits in the kernel, see dmesg)"),
        }
    }
}

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It ran, and ended otherwise than it should.
    #[error("`{command}` {exit}{}", after_colon(.stderr))]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        exit: Exit,
        /// The first and the last 1 KiB of its standard error.
        stderr: String,
    },
    /// It is not installed.
    #[error(transparent)]
    Missing(#[from] MissingTool),
    /// It could not be started, or its output could not be read.
    #[error("`{command}` could not be run")]
    NotRun {
        /// The command line.
        command: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It changes a disk, and was not started because the call it serves is about to end.
    #[error("`{command}` was not started, as too little of the call's time was left")]
    NoTimeLeft {
        /// The command line.
        command: String,
    },
}

impl CommandError {
    /// Whether the command used up its budget, or had none.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        match self {
            CommandError::Failed { exit: Exit::TimedOut | Exit::Stuck, .. } | CommandError::NoTimeLeft { .. } => true,
            CommandError::Failed { exit: Exit::Code(_) | Exit::Signal(_), .. }
            | CommandError::NotRun { .. }
            | CommandError::Missing(_) => false,
        }
    }
}

fn after_colon(stderr: &str) -> String {
    let text = stderr.trim();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
