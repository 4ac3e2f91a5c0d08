//! What a line of the log looks like, and which call it belongs to.
//!
//! Owns the format and the thread's label. One call lives on one thread from start to end, so a label set there marks
//! every line written on its behalf. It decides nothing about what is logged.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use env_logger::{Builder, Env};
use log::{Level, Record};

use crate::error::OneLine;

/// Most bytes of a line, without its time, level and label.
const MAX_LINE: usize = 16 << 10;

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

/// Starts the log on standard error; level info unless `RUST_LOG` says otherwise.
pub fn start() {
    Builder::from_env(Env::default().default_filter_or("info"))
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
        .init();
}

/// Whether the HTTP library shows the bytes of a request, in which the token is. They are in no log, whatever
/// `RUST_LOG` says.
fn is_dump(record: &Record<'_>) -> bool {
    record.level() == Level::Trace && record.target().starts_with("ureq")
}
