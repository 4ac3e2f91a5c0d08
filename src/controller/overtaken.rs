//! Which of two calls for one volume and droplet came later: that one counts.
//!
//! Owns when they came, which is when their contexts began: how long a call waited for a thread, a pause or a lock does not
//! matter. An attach gives its volume free while it waits, so a detach that came later may be carried out first; then the attach
//! must not be carried out any more, as nobody would ever take the volume away again. And a detach that waited must not take
//! the volume from who has been told since that it is there.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::controller::detach_backoff::Pair;
use crate::controller::recent::Recent;
use crate::id::{DropletId, VolumeId};

/// The calls that took volumes away lately, and those that were told that a volume is there.
#[derive(Debug, Default)]
pub(super) struct Order(Mutex<Came>);

#[derive(Debug, Default)]
struct Came {
    unpublishes: Recent<Pair, Instant>,
    published: Recent<VolumeId, (DropletId, Instant)>,
}

impl Order {
    /// A call came then that takes a volume away.
    pub(super) fn unpublish_came(&self, pair: &Pair, came: Instant) {
        let unpublishes = &mut self.lock().unpublishes;
        if unpublishes.get(pair).is_none_or(|last| *last < came) {
            unpublishes.insert(pair.clone(), came);
        }
    }

    /// A call that came then is told that the volume is on the droplet.
    pub(super) fn published(&self, volume: &VolumeId, droplet: DropletId, came: Instant) {
        let published = &mut self.lock().published;
        if published.get(volume).is_none_or(|(_, last)| *last < came) {
            published.insert(volume.clone(), (droplet, came));
        }
    }

    /// Whether a call came after that moment that takes the volume from the droplet.
    pub(super) fn is_publish_overtaken(&self, volume: &VolumeId, droplet: DropletId, came: Instant) -> bool {
        let order = self.lock();
        [Some(droplet), None]
            .into_iter()
            .any(|from| order.unpublishes.get(&(volume.clone(), from)).is_some_and(|last| *last > came))
    }

    /// Whether a call that came after that moment has been told that the volume is where it is to be taken from.
    pub(super) fn is_unpublish_overtaken(&self, (volume, from): &Pair, came: Instant) -> bool {
        let order = self.lock();
        let published = order.published.get(volume);
        published.is_some_and(|(droplet, last)| *last > came && from.is_none_or(|from| from == *droplet))
    }

    fn lock(&self) -> MutexGuard<'_, Came> {
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
        let begun = Instant::now();
        let at = |second| begun + std::time::Duration::from_secs(second);
        let order = Order::default();
        let is_overtaken = |last, droplet, came| order.is_publish_overtaken(&volume(last), droplet, at(came));
        order.unpublish_came(&(volume('1'), Some(a)), at(1));
        assert!(!is_overtaken('1', a, 2));
        order.unpublish_came(&(volume('1'), Some(b)), at(3));
        order.unpublish_came(&(volume('2'), None), at(3));
        assert!(!is_overtaken('1', a, 2) && is_overtaken('1', b, 2) && is_overtaken('2', a, 2));
        order.unpublish_came(&(volume('1'), Some(a)), at(5));
        order.unpublish_came(&(volume('1'), Some(a)), at(4));
        assert!(is_overtaken('1', a, 4) && !is_overtaken('1', a, 6), "the one that came last counts");

        let is_overtaken = |last, from, came| order.is_unpublish_overtaken(&(volume(last), from), at(came));
        order.published(&volume('1'), a, at(7));
        order.published(&volume('1'), a, at(5));
        assert!(is_overtaken('1', Some(a), 6) && is_overtaken('1', None, 6));
        assert!(!is_overtaken('1', Some(b), 6) && !is_overtaken('1', Some(a), 8) && !is_overtaken('2', Some(a), 6));
    }
}
