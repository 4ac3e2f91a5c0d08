//! The calls that are being worked on now, and what each of them waits for.
//!
//! Owns the one table of them: SIGUSR1, the metrics and the page all read it. A call lives on one thread from its start to
//! its end, so what that thread waits for is what the call waits for. Nothing is decided from it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

static RUNNING: Mutex<BTreeMap<u64, RunningCall>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// The number of the call that this thread works on.
    static CURRENT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// A call that is being worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningCall {
    /// Its number, as in the log.
    pub number: u64,
    /// The RPC's name as in the CSI specification.
    pub method: &'static str,
    /// Which call it is, as in the log: the method, and what it is about.
    pub label: String,
    /// When it came, before it waited for a thread.
    pub came: Instant,
    /// What it waits for, and since when; nothing while it works.
    pub waits_for: Option<(String, Instant)>,
}

impl fmt::Display for RunningCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ms={} [{} {}]", self.came.elapsed().as_millis(), self.number, self.label)?;
        match &self.waits_for {
            Some((what, since)) => write!(f, " waiting_for=\"{what}\" waiting_ms={}", since.elapsed().as_millis()),
            None => Ok(()),
        }
    }
}

fn table() -> MutexGuard<'static, BTreeMap<u64, RunningCall>> {
    // Each change of the table is a single one, so a panic leaves it whole.
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calls that are being worked on, the oldest number first.
#[must_use]
pub fn running_calls() -> Vec<RunningCall> {
    table().values().cloned().collect()
}

/// Keeps a call in the table while it lives.
#[derive(Debug)]
pub struct Running(u64);

impl Running {
    /// Enters a call, which this thread works on from now; the number is the call's own.
    #[must_use]
    pub fn enter(number: u64, method: &'static str, label: String, came: Instant) -> Running {
        table().insert(number, RunningCall { number, method, label, came, waits_for: None });
        CURRENT.set(Some(number));
        Running(number)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CURRENT.set(None);
        table().remove(&self.0);
    }
}

/// Shows what the call of this thread waits for while it lives; then what it waited for before, within which this was.
#[derive(Debug)]
#[must_use = "the wait is over as soon as this is dropped"]
pub struct Wait {
    call: Option<u64>,
    before: Option<(String, Instant)>,
}

/// Says what the call of this thread begins to wait for. On a thread that works on no call it says nothing.
pub fn waiting_for(what: impl FnOnce() -> String) -> Wait {
    let call = CURRENT.get();
    let before = call.and_then(|number| {
        let what = what();
        let mut calls = table();
        calls.get_mut(&number).and_then(|call| call.waits_for.replace((what, Instant::now())))
    });
    Wait { call, before }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(number) = self.call
            && let Some(call) = table().get_mut(&number)
        {
            call.waits_for = self.before.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: u64) -> Option<RunningCall> {
        running_calls().into_iter().find(|call| call.number == number)
    }

    #[test]
    fn a_call_is_there_until_it_has_ended_with_the_innermost_thing_it_waits_for() {
        let number = u64::MAX;
        let waits_for = || of(number).unwrap().waits_for.map(|(what, _)| what);
        let running = Running::enter(number, "NodeStageVolume", "NodeStageVolume blog".to_owned(), Instant::now());
        assert_eq!(waits_for(), None);
        let outer = waiting_for(|| "the disk".to_owned());
        let inner = waiting_for(|| "mkfs".to_owned());
        assert_eq!(waits_for().as_deref(), Some("mkfs"));
        let line = of(number).unwrap().to_string();
        assert!(line.contains(&format!("[{number} NodeStageVolume blog] waiting_for=\"mkfs\"")), "{line}");
        std::thread::spawn(|| drop(waiting_for(|| panic!("this thread works on no call")))).join().unwrap();
        drop(inner);
        assert_eq!(waits_for().as_deref(), Some("the disk"));
        drop(outer);
        assert_eq!(waits_for(), None);
        drop(running);
        assert_eq!(of(number), None);
        drop(waiting_for(|| panic!("the call of this thread has ended")));
    }
}
