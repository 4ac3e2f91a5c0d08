//! Who waits for the answer of a call: until when, and whether still.
//!
//! Owns the two facts that matter to work done for somebody. Where they come from is not known here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How much of a caller's time is left for the answer to reach him.
const WAY_BACK: Duration = Duration::from_secs(1);

/// A caller. What is begun after he has gone is begun for nobody.
#[derive(Debug, Default)]
pub struct Caller {
    deadline: Option<Instant>,
    is_gone: AtomicBool,
}

impl Caller {
    /// A caller who waits until then, or as long as it takes.
    #[must_use]
    pub fn until(deadline: Option<Instant>) -> Caller {
        Caller { deadline, is_gone: AtomicBool::new(false) }
    }

    /// Takes in that he waits no more; for ever.
    pub fn leave(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }

    /// Whether he waits no more: his time is over, or he has hung up.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed) || self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// When a call that came then has to end so that he gets its answer: a second before his time is over, or half of his
    /// time if he has less than two.
    #[must_use]
    pub fn answer_by(&self, came: Instant) -> Option<Instant> {
        let time = self.deadline?.saturating_duration_since(came);
        came.checked_add(time.saturating_sub(WAY_BACK).max(time / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_leaves_in_time_to_arrive() {
        let came = Instant::now();
        let answer = |ms| Caller::until(Some(came + Duration::from_millis(ms))).answer_by(came).unwrap() - came;
        assert_eq!([0, 100, 2000, 10_000].map(|ms| answer(ms).as_millis()), [0, 50, 1000, 9000]);
        assert_eq!(Caller::default().answer_by(came), None);
    }

    #[test]
    fn a_caller_is_gone_when_his_time_is_over_or_he_hangs_up() {
        assert!(Caller::until(Some(Instant::now())).is_gone());
        for caller in [Caller::default(), Caller::until(Some(Instant::now() + Duration::from_secs(3600)))] {
            assert!(!caller.is_gone());
            caller.leave();
            assert!(caller.is_gone());
        }
    }
}
