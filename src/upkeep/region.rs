//! The looks at the whole region, for the page and the metrics: which volumes are not well, whether the token and the account are, how
//! old the snapshots are.
//!
//! Owns their thread and its pace. What a look could not read stays as it was, and why is a finding.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::warn;

use crate::controller::Controller;
use crate::error::Chain;
use crate::ops::diagnosis::account::diagnose_failure;
use crate::ops::findings::Findings;
use crate::ops::scheduled_snapshots::ScheduledSnapshots;

/// When the first look is.
const FIRST_LOOK: Duration = Duration::from_secs(30);
/// The shortest and the longest pause between two looks.
const PAUSES: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(7200));
/// How many requests a look takes in an account of some hundred volumes, and how many of the token's 5,000 in an hour all looks may.
const REQUESTS: (u32, u32) = (8, 1000);

/// What was seen last, for the page and the metrics.
#[derive(Debug, Clone)]
pub struct RegionWatch {
    /// What is wrong.
    pub findings: Arc<Findings>,
    /// How old the snapshots are.
    pub snapshots: Arc<ScheduledSnapshots>,
}

impl RegionWatch {
    /// Starts to look now and again.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn start(self, controller: Arc<Controller>) -> io::Result<()> {
        let look = move || {
            thread::sleep(FIRST_LOOK);
            loop {
                let droplets = self.look_at_volumes(&controller);
                self.look_at_snapshots(&controller);
                thread::sleep(plan_pause(droplets));
            }
        };
        thread::Builder::new().name("region".to_owned()).spawn(look).map(drop)
    }

    /// Gives how many droplets there are, where that is known.
    fn look_at_volumes(&self, controller: &Controller) -> Option<usize> {
        let ctx = controller.context_of_call(Instant::now(), Arc::default());
        match controller.observe_region_health(&ctx) {
            Ok(seen) => {
                self.findings.replace_region(seen.of_volumes);
                self.findings.replace_account(seen.of_account);
                seen.droplets
            }
            Err(err) => {
                warn!("what is wrong in the region is as old as it was: {}", Chain(&err));
                self.findings.replace_account(diagnose_failure(&err, &controller.token_origin()).into_iter().collect());
                None
            }
        }
    }

    fn look_at_snapshots(&self, controller: &Controller) {
        let ctx = controller.context_of_call(Instant::now(), Arc::default());
        match controller.list_newest_scheduled(&ctx) {
            Ok(newest) => self.snapshots.replace(newest),
            Err(err) => warn!("how old the snapshots are is not known anew: {}", Chain(&err)),
        }
    }
}

/// The pause after a look. Each droplet may have a plugin that looks, all with one token, so it grows with their number. Pure.
fn plan_pause(droplets: Option<usize>) -> Duration {
    let (least, most) = PAUSES;
    let (each, all) = REQUESTS;
    let droplets = droplets.map_or(1, |droplets| u32::try_from(droplets).unwrap_or(u32::MAX));
    let seconds = u64::from(droplets) * u64::from(each) * 3600 / u64::from(all);
    Duration::from_secs(seconds).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_plugins_of_an_account_together_use_a_small_part_of_the_quota() {
        for (droplets, want) in
            [(None, 600), (Some(0), 600), (Some(20), 600), (Some(50), 1440), (Some(150), 4320), (Some(5000), 7200)]
        {
            assert_eq!(plan_pause(droplets), Duration::from_secs(want), "{droplets:?}");
        }
        assert!(3600.0 / plan_pause(Some(150)).as_secs_f64() * 150.0 * 8.0 <= 1000.0);
    }
}
