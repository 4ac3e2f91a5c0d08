//! Droplets that were busy for the whole time of a call.
//!
//! Owns what is remembered of them. Nomad sends a plugin one call at a time, so each call that waits for such a droplet until
//! its own end keeps all other volumes of the cluster waiting. After the first, a call waits for it for a short time only,
//! until one gets through.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::controller::recent::Recent;
use crate::id::DropletId;

/// The droplets, and when a call gave up on each last.
#[derive(Debug)]
pub(super) struct BusyDroplets {
    table: Mutex<Recent<DropletId, Instant>>,
    remembered: Duration,
}

impl BusyDroplets {
    /// Knows none yet; what is older than this says nothing of the present.
    pub(super) fn new(remembered: Duration) -> BusyDroplets {
        BusyDroplets { table: Mutex::default(), remembered }
    }

    /// A call gave up on it.
    pub(super) fn gave_up(&self, droplets: &[DropletId], now: Instant) {
        let mut table = self.lock();
        droplets.iter().for_each(|droplet| table.insert(*droplet, now));
    }

    /// A call got through to it.
    pub(super) fn got_through(&self, droplets: &[DropletId]) {
        let mut table = self.lock();
        droplets.iter().for_each(|droplet| table.remove(droplet));
    }

    /// Whether a call gave up on one of them, and none has got through since.
    pub(super) fn any(&self, droplets: &[DropletId], now: Instant) -> bool {
        let table = self.lock();
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < self.remembered;
        droplets.iter().any(|droplet| table.get(droplet).is_some_and(is_recent))
    }

    fn lock(&self) -> MutexGuard<'_, Recent<DropletId, Instant>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_droplet_is_remembered_until_a_call_gets_through_or_for_a_while() {
        let busy = BusyDroplets::new(Duration::from_secs(300));
        let [a, b, c] = [1, 2, 3].map(|id| DropletId::new(id).unwrap());
        let now = Instant::now();
        busy.gave_up(&[a, b], now);
        assert!(busy.any(&[a], now) && busy.any(&[c, b], now) && !busy.any(&[c], now) && !busy.any(&[], now));
        busy.got_through(&[b]);
        assert!(busy.any(&[a], now) && !busy.any(&[b], now));
        assert!(!busy.any(&[a], now + Duration::from_secs(300)));
    }
}
