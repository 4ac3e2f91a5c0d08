//! What an operator can ask of the running program by a signal.
//!
//! Owns which signals are taken and what each asks for. It does nothing of it.

use nix::sys::signal::{SigSet, Signal};

/// The signals that are taken; all others do what the system does with them.
const TAKEN: [(Signal, Asked); 5] = [
    (Signal::SIGTERM, Asked::End),
    (Signal::SIGINT, Asked::End),
    (Signal::SIGHUP, Asked::Reload),
    (Signal::SIGUSR1, Asked::Report),
    (Signal::SIGUSR2, Asked::ToggleDebug),
];

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To take no more calls and end when the running ones have; a second time, to end at once.
    End,
    /// To read the token's file again and go back to the log level of the start.
    Reload,
    /// To write what runs, what waits, the rate limit and the memory into the log.
    Report,
    /// To log debug lines too, or no longer.
    ToggleDebug,
}

/// The signals of this process, taken one after the other by whoever waits for them.
#[derive(Debug, Clone, Copy)]
pub struct Signals(SigSet);

impl Signals {
    /// Blocks the signals that are taken; to be called before any thread starts, so that only those who wait get them.
    /// Programs that are run are not affected: the standard library gives children an empty mask.
    ///
    /// # Errors
    /// One line with the system's reason.
    pub fn block() -> Result<Signals, String> {
        let set: SigSet = TAKEN.iter().map(|(signal, _)| *signal).collect();
        set.thread_block().map_err(|err| format!("cannot block signals: {err}"))?;
        Ok(Signals(set))
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// One line with the system's reason.
    pub fn next(self) -> Result<(Signal, Asked), String> {
        let signal = self.0.wait().map_err(|err| format!("cannot wait for signals: {err}"))?;
        let asked = TAKEN.iter().find(|(taken, _)| *taken == signal).map_or(Asked::End, |(_, asked)| *asked);
        Ok((signal, asked))
    }
}
