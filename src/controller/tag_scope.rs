//! What this process has learned of the token's scopes for tags.
//!
//! Owns that memory. A token need not have them: then attaching a volume would ask in vain each time, with a warning each
//! time. What was learned holds for an hour, as a token can be replaced while the plugin runs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long a refusal is believed to be repeated.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Whether something was refused for want of a scope.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<Option<Instant>>);

impl Refused {
    /// Takes notice of a refusal.
    pub(super) fn enter(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether it is known to be refused.
    pub(super) fn is_known(&self) -> bool {
        self.is_known_at(Instant::now())
    }

    fn is_known_at(&self, now: Instant) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| now < since + REMEMBERED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_remembered_for_an_hour() {
        let refused = Refused::default();
        assert!(!refused.is_known());
        refused.enter();
        assert!(refused.is_known());
        assert!(!refused.is_known_at(Instant::now() + REMEMBERED));
    }
}
