//! Detaches that got no reply, and that DigitalOcean may carry out yet.
//!
//! Owns for how long that has to be reckoned with. A request that was given up may wait somewhere on its way; carried out after
//! the volume has been attached to the same droplet again, it takes the disk from a running task.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::controller::recent::Recent;
use crate::id::{DropletId, VolumeId};

type Lost = Recent<(VolumeId, DropletId), (Instant, u32)>;

/// When detaches were lost, and how many of each kind.
#[derive(Debug)]
pub(super) struct LostDetaches {
    in_flight: Duration,
    table: Mutex<Lost>,
}

impl LostDetaches {
    /// None so far; each may be in flight for so long.
    pub(super) fn new(in_flight: Duration) -> LostDetaches {
        LostDetaches { in_flight, table: Mutex::default() }
    }

    /// One got no reply.
    pub(super) fn lost(&self, volume: &VolumeId, droplet: DropletId, now: Instant) {
        let pair = (volume.clone(), droplet);
        let count = self.count(&pair, now);
        self.lock().insert(pair, (now, count.saturating_add(1)));
    }

    /// The one that was lost last has been seen to be carried out.
    pub(super) fn found(&self, volume: &VolumeId, droplet: DropletId, now: Instant) {
        let pair = (volume.clone(), droplet);
        match self.count(&pair, now) {
            0 | 1 => self.lock().remove(&pair),
            count => self.lock().insert(pair, (now, count - 1)),
        }
    }

    /// Whether one may be carried out yet.
    pub(super) fn may_start(&self, volume: &VolumeId, droplet: DropletId, now: Instant) -> bool {
        self.count(&(volume.clone(), droplet), now) > 0
    }

    fn count(&self, pair: &(VolumeId, DropletId), now: Instant) -> u32 {
        let last = self.lock().get(pair).copied();
        last.filter(|(at, _)| now.saturating_duration_since(*at) < self.in_flight).map_or(0, |(_, count)| count)
    }

    fn lock(&self) -> MutexGuard<'_, Lost> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_detach_counts_until_it_is_found_or_old_and_of_several_each() {
        let volume = VolumeId::parse("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2").unwrap();
        let [a, b] = [1, 2].map(|id| DropletId::new(id).unwrap());
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let lost = LostDetaches::new(Duration::from_secs(60));
        assert!(!lost.may_start(&volume, a, at(0)));
        lost.lost(&volume, a, at(0));
        assert!(lost.may_start(&volume, a, at(59)) && !lost.may_start(&volume, b, at(1)));
        assert!(!lost.may_start(&volume, a, at(60)));
        lost.lost(&volume, a, at(70));
        lost.found(&volume, a, at(71));
        assert!(!lost.may_start(&volume, a, at(72)), "the first was too old to count");
        lost.lost(&volume, a, at(80));
        lost.lost(&volume, a, at(81));
        lost.found(&volume, a, at(82));
        assert!(lost.may_start(&volume, a, at(83)), "one of two");
        lost.found(&volume, a, at(84));
        assert!(!lost.may_start(&volume, a, at(85)));
    }
}
