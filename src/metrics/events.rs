//! The last things that happened to volumes, for a person who looks at the page.
//!
//! Owns their words and their number. Nothing is kept before metrics are started, and what is older than the last fifty is
//! in the log alone.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::activity::{About, Change, tell_change};
use crate::metrics;

/// How many are kept.
const MOST: usize = 50;
/// Longest text that is kept of one; errors of programs may have pages.
const MAX_TEXT: usize = 400;

static EVENTS: Mutex<VecDeque<Event>> = Mutex::new(VecDeque::new());

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A volume came to a droplet.
    Attached,
    /// A volume left a droplet.
    Detached,
    /// A volume was made larger.
    Resized,
    /// A file system was made on a volume.
    Formatted,
    /// A volume is taken from a droplet that no longer needs it.
    TakenOver,
    /// A volume that nobody used is detached from its droplet.
    Released,
    /// A call that was to change something has failed.
    Failed,
}

impl EventKind {
    /// All of them.
    pub const ALL: [EventKind; 7] = [
        EventKind::Attached,
        EventKind::Detached,
        EventKind::Resized,
        EventKind::Formatted,
        EventKind::TakenOver,
        EventKind::Released,
        EventKind::Failed,
    ];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Attached => "attached",
            EventKind::Detached => "detached",
            EventKind::Resized => "resized",
            EventKind::Formatted => "formatted",
            EventKind::TakenOver => "taken_over",
            EventKind::Released => "released",
            EventKind::Failed => "failed",
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// What.
    pub kind: EventKind,
    /// To which volume and where, or which call failed and why.
    pub text: String,
}

/// Keeps an event, and counts it.
pub fn record(kind: EventKind, text: impl fmt::Display) {
    if !metrics::is_started() {
        return;
    }
    metrics::count_event(kind);
    let text = text.to_string().chars().take(MAX_TEXT).collect();
    let mut events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if events.len() == MOST {
        events.pop_front();
    }
    events.push_back(Event { at: SystemTime::now(), kind, text });
}

/// Keeps an event and counts it, and tells the change that it is in the log.
pub fn record_change(kind: EventKind, text: impl fmt::Display, change: Change, told: impl fmt::Display, about: About) {
    record(kind, text);
    tell_change(change, told, about);
}

/// The last events, the newest first.
#[must_use]
pub fn last_events() -> Vec<Event> {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_kept_the_newest_first_and_none_of_them_whole_if_it_is_long() {
        metrics::start("test");
        let own = |event: &Event| event.text.starts_with("event of this test");
        record(EventKind::Failed, "event of this test, the first");
        // Other tests of this process have events too.
        for number in 0..MOST {
            record(EventKind::Attached, format_args!("event of this test {number} {}", "x".repeat(1000)));
        }
        let events = last_events();
        assert!(events.len() <= MOST);
        let newest = events.iter().find(|event| own(event)).unwrap();
        assert!(newest.text.starts_with(&format!("event of this test {} x", MOST - 1)), "{newest:?}");
        assert_eq!(newest.text.len(), MAX_TEXT);
        assert!(events.iter().all(|event| !event.text.ends_with("the first")));
    }
}
