//! The log of the running program: its level, its form, and which call a line belongs to.
//!
//! Owns the levels of the start and of debugging, and the passage from what the program says to the queue of lines. What a line
//! looks like is `log_line`'s. It decides nothing about what is logged.

use std::io;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record, error};

use crate::activity::current_call;
use crate::config::{LogFormat, LogLevels};
use crate::ops::log_line::write_line;
use crate::ops::log_queue::LogQueue;

/// How long the end of the program waits for a reader to take the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The log of a run. Dropping it waits until the last lines are written, for a moment if nobody reads them.
#[derive(Debug)]
pub struct RunningLog {
    queue: LogQueue,
    levels: Arc<Levels>,
}

/// The two levels that the log can have: that of the start, and debug.
#[derive(Debug)]
struct Levels {
    usual: LogLevels,
    debug: LogLevels,
    is_debug: AtomicBool,
    format: LogFormat,
    queue: LogQueue,
}

/// Starts the log on standard error. What gRPC logs, and panics, are lines like any other. Nobody who logs ever waits for a reader.
///
/// # Errors
/// One line: the system gives no thread to write with, or there is a log already.
pub fn start(usual: LogLevels, format: LogFormat) -> Result<RunningLog, String> {
    let queue = LogQueue::start(io::stderr()).map_err(|err| format!("cannot start a thread for the log: {err}"))?;
    let highest = usual.highest();
    let debug = LogLevels::all(LevelFilter::Debug);
    let levels = Arc::new(Levels { usual, debug, is_debug: AtomicBool::new(false), format, queue: queue.clone() });
    log::set_boxed_logger(Box::new(Arc::clone(&levels))).map_err(|err| format!("cannot start the log: {err}"))?;
    // It takes its level from ours, and says at info what is of use to nobody.
    log::set_max_level(LevelFilter::Warn);
    grpcio::redirect_log();
    log::set_max_level(highest);
    panic::set_hook(Box::new(|panic| error!("{panic}")));
    Ok(RunningLog { queue, levels })
}

impl RunningLog {
    /// Logs debug lines too, or no longer; says which.
    pub fn toggle_debug(&self) -> bool {
        let is_debug = !self.levels.is_debug.load(Ordering::Relaxed);
        self.levels.set(is_debug);
        is_debug
    }

    /// Goes back to the level of the start.
    pub fn reset_level(&self) {
        self.levels.set(false);
    }
}

impl Drop for RunningLog {
    fn drop(&mut self) {
        let _nobody_reads = !self.queue.drain(LAST_LINES);
    }
}

impl Levels {
    fn set(&self, is_debug: bool) {
        self.is_debug.store(is_debug, Ordering::Relaxed);
        log::set_max_level(self.now().highest());
    }

    fn now(&self) -> &LogLevels {
        if self.is_debug.load(Ordering::Relaxed) { &self.debug } else { &self.usual }
    }
}

impl Log for Levels {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        level_of(metadata).is_some_and(|level| level <= self.now().of(metadata.target()))
    }

    fn log(&self, record: &Record<'_>) {
        let Some(level) = level_of(record.metadata()).filter(|level| *level <= self.now().of(record.target())) else {
            return;
        };
        let record = record.to_builder().level(level).build();
        self.queue.put(write_line(self.format, &now(), &record, current_call().as_deref()));
    }

    fn flush(&self) {}
}

/// The moment, to the millisecond.
fn now() -> String {
    format!("{:.3}", Timestamp::now())
}

/// The level of a line. What the HTTP library says of its work is of less use than what this program says of the same, so it counts
/// as one level lower. That leaves out its lowest level, at which it shows the bytes of a request: the token is among them.
fn level_of(metadata: &Metadata<'_>) -> Option<Level> {
    let is_http = ["ureq", "rustls"].iter().any(|library| metadata.target().starts_with(library));
    match metadata.level() {
        level if !is_http => Some(level),
        Level::Error => Some(Level::Warn),
        Level::Warn => Some(Level::Info),
        Level::Info => Some(Level::Debug),
        Level::Debug => Some(Level::Trace),
        Level::Trace => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_http_library_counts_as_one_level_lower_and_its_bytes_are_never_logged() {
        let level = |target: &str, level| level_of(&Metadata::builder().target(target).level(level).build());
        assert_eq!(level("do_csi_plugin::cloud::http", Level::Trace), Some(Level::Trace));
        assert_eq!(level("ureq::run", Level::Warn), Some(Level::Info));
        assert_eq!(level("ureq_proto::util", Level::Debug), Some(Level::Trace));
        assert_eq!(level("ureq_proto::util", Level::Trace), None);
    }
}
