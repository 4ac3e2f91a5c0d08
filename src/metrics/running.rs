//! The calls that are being worked on, as the metrics and the page show them. The table of them is [`crate::activity`]'s.

use std::time::Instant;

use crate::activity::open_calls;

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

/// The calls that have a thread, the oldest number first.
#[must_use]
pub fn running_calls() -> Vec<RunningCall> {
    let begun = open_calls().into_iter().filter(|call| call.is_begun());
    let shown = begun.map(|call| RunningCall {
        number: call.number,
        method: call.rpc,
        label: format!("{} {}", call.rpc, call.about()).trim_end().to_owned(),
        came: call.came,
        waits_for: call.wait(),
    });
    shown.collect()
}
