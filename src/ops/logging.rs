//! What a line of the log looks like, and which call it belongs to.
//!
//! Owns the format, the level and the thread's label. One call lives on one thread from start to end, so a label set there marks
//! every line written on its behalf. It decides nothing about what is logged.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use env_logger::{Builder, Env, Logger, Target};
use log::{Level, LevelFilter, Log, Metadata, Record, error};

use crate::error::OneLine;
use crate::ops::log_queue::LogQueue;

/// Most bytes of a line, without its time, level and label.
const MAX_LINE: usize = 16 << 10;
/// How long the end of the program waits for a reader to take the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

thread_local! {
    static LABEL: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Marks the lines that this thread logs while the value lives; dropping it takes the mark off.
#[derive(Debug)]
pub struct Label(());

impl Label {
    /// Sets the thread's label, such as `17 NodeStageVolume 506f78a4`.
    #[must_use]
    pub fn set(text: String) -> Label {
        LABEL.with(|label| label.replace(text));
        Label(())
    }
}

impl Drop for Label {
    fn drop(&mut self) {
        LABEL.with(|label| label.borrow_mut().clear());
    }
}

/// The log of a run. Dropping it waits until the last lines are written, for a moment if nobody reads them.
#[derive(Debug)]
pub struct RunningLog {
    queue: LogQueue,
    levels: Arc<Levels>,
}

/// The two levels that the log can have: that of the start, and debug.
#[derive(Debug)]
struct Levels {
    usual: Logger,
    debug: Logger,
    is_debug: AtomicBool,
}

/// Starts the log on standard error; level info unless `RUST_LOG` says otherwise. What gRPC logs, and panics, are lines like
/// any other. Nobody who logs ever waits for a reader.
///
/// # Errors
/// One line: the system gives no thread to write with, or there is a log already.
pub fn start() -> Result<RunningLog, String> {
    let queue = LogQueue::start(io::stderr()).map_err(|err| format!("cannot start a thread for the log: {err}"))?;
    let usual = Builder::from_env(Env::default().default_filter_or("info"));
    let mut debug = Builder::new();
    debug.parse_filters("debug");
    let levels = Arc::new(Levels {
        usual: logger(usual, &queue),
        debug: logger(debug, &queue),
        is_debug: AtomicBool::new(false),
    });
    log::set_boxed_logger(Box::new(Arc::clone(&levels))).map_err(|err| format!("cannot start the log: {err}"))?;
    // It takes its level from ours, and says at info what is of use to nobody.
    log::set_max_level(LevelFilter::Warn);
    grpcio::redirect_log();
    log::set_max_level(levels.usual.filter());
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
        log::set_max_level(self.now().filter());
    }

    fn now(&self) -> &Logger {
        if self.is_debug.load(Ordering::Relaxed) { &self.debug } else { &self.usual }
    }
}

impl Log for Levels {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.now().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.now().log(record);
    }

    fn flush(&self) {}
}

fn logger(mut builder: Builder, queue: &LogQueue) -> Logger {
    builder
        .format(|out, record| {
            if is_dump(record) {
                return Ok(());
            }
            let mut text = String::new();
            OneLine::new(&mut text, MAX_LINE).write_fmt(*record.args()).map_err(io::Error::other)?;
            LABEL.with(|label| {
                let label = label.borrow();
                let (open, close) = if label.is_empty() { ("", "") } else { (" [", "]") };
                writeln!(out, "{} {:5}{open}{label}{close} {text}", out.timestamp_millis(), record.level())
            })
        })
        .target(Target::Pipe(Box::new(queue.clone())))
        .build()
}

/// Whether the HTTP library shows the bytes of a request, in which the token is. They are in no log, whatever
/// `RUST_LOG` says.
fn is_dump(record: &Record<'_>) -> bool {
    record.level() == Level::Trace && record.target().starts_with("ureq")
}
