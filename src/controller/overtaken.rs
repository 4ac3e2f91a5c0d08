//! Which calls that attach a volume have been overtaken by one that takes it away again.
//!
//! Owns the order in which they came. An attach gives its volume free while it waits, so a detach that came later may be
//! carried out first; then the attach must not be carried out any more, as nobody would ever take the volume away again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::controller::detach_backoff::Pair;
use crate::controller::recent::Recent;
use crate::id::{DropletId, VolumeId};

/// The calls that took volumes away lately.
#[derive(Debug, Default)]
pub(super) struct Unpublishes(Mutex<Order>);

#[derive(Debug, Default)]
struct Order {
    calls: u64,
    last: Recent<Pair, u64>,
}

/// A moment in that order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(u64);

impl Unpublishes {
    /// A call came that takes a volume away.
    pub(super) fn arrived(&self, pair: &Pair) {
        let mut order = self.lock();
        order.calls += 1;
        let number = order.calls;
        order.last.insert(pair.clone(), number);
    }

    /// This moment.
    pub(super) fn now(&self) -> Moment {
        Moment(self.lock().calls)
    }

    /// Whether a call came after that moment that takes the volume from the droplet.
    pub(super) fn is_overtaken(&self, volume: &VolumeId, droplet: DropletId, moment: Moment) -> bool {
        let order = self.lock();
        [Some(droplet), None]
            .into_iter()
            .any(|from| order.last.get(&(volume.clone(), from)).is_some_and(|number| *number > moment.0))
    }

    fn lock(&self) -> MutexGuard<'_, Order> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_call_for_the_same_volume_and_droplet_overtakes() {
        let volume = |last: char| VolumeId::parse(&format!("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e{last}")).unwrap();
        let [a, b] = [1, 2].map(|id| DropletId::new(id).unwrap());
        let calls = Unpublishes::default();
        calls.arrived(&(volume('1'), Some(a)));
        let begun = calls.now();
        assert!(!calls.is_overtaken(&volume('1'), a, begun));
        calls.arrived(&(volume('1'), Some(b)));
        calls.arrived(&(volume('2'), None));
        assert!(!calls.is_overtaken(&volume('1'), a, begun));
        assert!(calls.is_overtaken(&volume('1'), b, begun) && calls.is_overtaken(&volume('2'), a, begun));
        calls.arrived(&(volume('1'), Some(a)));
        assert!(calls.is_overtaken(&volume('1'), a, begun) && !calls.is_overtaken(&volume('1'), a, calls.now()));
    }
}
