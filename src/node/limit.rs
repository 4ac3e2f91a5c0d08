//! How many volumes an orchestrator may give this droplet.
//!
//! Owns the arithmetic. DigitalOcean's limit counts every volume, an orchestrator only its own, so the others are taken
//! off; they are counted once, at the start, as orchestrators read the number once.

use log::{info, warn};

use crate::error::Chain;
use crate::host::external_volumes::observe_foreign;
use crate::host::mount::observe_mounts;
use crate::node::Node;

impl Node {
    /// What is left of the droplet's limit by volumes that are in use outside CSI now; when that cannot be seen, all of it.
    #[must_use]
    pub fn observe_limit(&self, limit: u32) -> u32 {
        match observe_mounts().and_then(|mounts| observe_foreign(&self.places, &mounts)) {
            Ok(0) => limit,
            Ok(foreign) => {
                let left = plan_limit(limit, foreign);
                info!("volumes in use outside CSI: {foreign}, so this droplet takes {left} of {limit}");
                left
            }
            Err(err) => {
                warn!("cannot see which volumes are in use outside CSI, none are taken off the limit: {}", Chain(&err));
                limit
            }
        }
    }
}

/// Zero means "no limit" to CSI, so it is never arrived at by subtraction.
fn plan_limit(limit: u32, foreign: u32) -> u32 {
    if limit == 0 { 0 } else { limit.saturating_sub(foreign).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_volumes_are_taken_off_but_never_all_and_never_from_no_limit() {
        for (limit, foreign, want) in [(15, 0, 15), (15, 2, 13), (15, 15, 1), (15, 99, 1), (0, 3, 0)] {
            assert_eq!(plan_limit(limit, foreign), want, "{limit} - {foreign}");
        }
    }
}
