//! The story that the demo tells, on machines.

use std::time::Duration;

use super::harness::VmHarness;
use crate::support::story;
use crate::support::story::{Listener, StepResult, ensure};

/// Plays it between the two machines.
pub fn whole(yard: &mut VmHarness) -> StepResult<()> {
    let mut counter = Counter(0);
    story::tell(&yard.cloud, &yard.program(), &mut counter)?;
    ensure(counter.0 > 30, || format!("only {} steps", counter.0))
}

/// Somebody who only counts.
struct Counter(u32);

impl Listener for Counter {
    fn chapter(&mut self, _: &str) {}
    fn begins(&mut self, _: &str) {}
    fn ended(&mut self, _: &str, _: &str, _: Duration) {
        self.0 += 1;
    }
    fn is_cancelled(&self) -> bool {
        false
    }
}
