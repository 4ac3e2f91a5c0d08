//! What to do about another droplet that has the volume.
//!
//! Owns the decision whether it may be taken from there, and the patience with which that is found out. A volume is taken
//! only from a droplet that cannot use it: one that was seen off, archived, or gone from its own record and from the list of
//! all droplets, twice and some time apart. And only a volume that is not another owner's.

use std::time::{Duration, Instant};

use crate::cloud::droplet::{Droplet, DropletStatus};
use crate::controller::context::Timeouts;
use crate::id::{DropletId, VolumeId};

/// What to do about another droplet that has the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TakeoverPlan {
    /// It cannot use the volume: take it away.
    Detach,
    /// It is off, archived or gone; look again in a while, as a reboot passes through `off`, and answers can be wrong.
    Recheck,
    /// It may be using the volume, or be about to let go: look again in a moment.
    AwaitRelease,
    /// It may be using the volume: leave it alone.
    Refuse,
    /// It does not have the volume, although it is listed.
    StaleListing,
}

/// What is known of the droplet that the volume is listed on.
#[derive(Debug, Clone, Copy)]
pub(super) struct HolderFacts<'a> {
    /// None: DigitalOcean does not know it any more.
    pub(super) status: Option<&'a DropletStatus>,
    /// For how long it has not been able to use the volume.
    pub(super) unusable_for: Option<Duration>,
    /// For how long it has been.
    pub(super) running_for: Option<Duration>,
    /// The volume was detached long enough ago, and the droplet's own record agrees.
    pub(super) is_contradicted: bool,
}

/// Whether a droplet in that state can use a volume. One that is not known may.
pub(super) fn can_use(status: Option<&DropletStatus>) -> bool {
    match status {
        Some(DropletStatus::New | DropletStatus::Active | DropletStatus::Other(_)) => true,
        Some(DropletStatus::Off | DropletStatus::Archive) | None => false,
    }
}

/// Decides about the droplet that the volume is listed on.
pub(super) fn plan_takeover(facts: HolderFacts<'_>, patience: Timeouts, takeover: bool) -> TakeoverPlan {
    let is_long = |time: Option<Duration>, enough| time.is_some_and(|time| time >= enough);
    if facts.is_contradicted {
        return TakeoverPlan::StaleListing;
    }
    if takeover {
        return TakeoverPlan::Detach;
    }
    match can_use(facts.status) {
        false if is_long(facts.unusable_for, patience.power_off_grace()) => TakeoverPlan::Detach,
        false => TakeoverPlan::Recheck,
        true if is_long(facts.running_for, patience.release_grace()) => TakeoverPlan::Refuse,
        true => TakeoverPlan::AwaitRelease,
    }
}

/// What one call has seen so far of the droplet that has the volume.
#[derive(Debug, Default)]
pub(super) struct HolderTracker {
    holder: Option<DropletId>,
    running_since: Option<Instant>,
    unusable_since: Option<Instant>,
    stale_since: Option<Instant>,
}

impl HolderTracker {
    /// Takes notice of a look at the droplet; `status` is `None` when the look did not tell, or when it does not matter.
    pub(super) fn note(
        &mut self,
        holder: DropletId,
        is_detached: bool,
        status: Option<Option<&DropletStatus>>,
        at: Instant,
    ) {
        if self.holder != Some(holder) {
            // Another droplet is another story.
            *self = HolderTracker { holder: Some(holder), ..HolderTracker::default() };
        }
        if is_detached {
            self.stale_since.get_or_insert(at);
        }
        let Some(status) = status else { return };
        let (now, ended) = if can_use(status) {
            (&mut self.running_since, &mut self.unusable_since)
        } else {
            (&mut self.unusable_since, &mut self.running_since)
        };
        now.get_or_insert(at);
        *ended = None;
    }

    /// For how long that droplet has been listed although the volume was detached.
    pub(super) fn stale_for(&self, holder: DropletId, at: Instant) -> Duration {
        self.stale_since.filter(|_| self.holder == Some(holder)).map_or(Duration::ZERO, |since| age(since, at))
    }

    /// For how long that droplet has not been able to use the volume, and for how long it has.
    pub(super) fn ages(&self, holder: DropletId, at: Instant) -> (Option<Duration>, Option<Duration>) {
        let of = |since: Option<Instant>| since.filter(|_| self.holder == Some(holder)).map(|since| age(since, at));
        (of(self.unusable_since), of(self.running_since))
    }

    /// Whether a second look at that droplet cannot tell anything yet.
    pub(super) fn is_too_early(&self, holder: DropletId, patience: Timeouts, at: Instant) -> bool {
        self.holder == Some(holder) && self.left(patience, at).is_some()
    }

    /// The pause until the next look: that look is not to come later than it can tell something.
    pub(super) fn pause(&self, pause: Duration, patience: Timeouts) -> Duration {
        self.left(patience, Instant::now()).map_or(pause, |left| left.min(pause))
    }

    fn left(&self, patience: Timeouts, at: Instant) -> Option<Duration> {
        let left = |since: Option<Instant>, wait: Duration| {
            let left = wait.checked_sub(age(since?, at));
            left.filter(|left| !left.is_zero())
        };
        left(self.running_since, patience.release_grace()).max(left(self.unusable_since, patience.power_off_grace()))
    }
}

fn age(since: Instant, at: Instant) -> Duration {
    at.saturating_duration_since(since)
}

/// Whether a droplet is gone, or does not say that it has the volume.
pub(super) fn lacks(droplet: Option<&Droplet>, id: &VolumeId) -> bool {
    droplet.is_none_or(|droplet| !droplet.volumes.contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_look_comes_later_than_it_can_tell_something() {
        let patience = Timeouts::of(Duration::from_secs(100));
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
        let table = [
            ((None, None), None),
            ((ago(0), None), Some(5)),
            ((ago(3), None), Some(2)),
            ((ago(5), None), None),
            ((None, ago(4)), Some(6)),
            ((None, ago(11)), None),
        ];
        for ((running_since, unusable_since), want) in table {
            let watch = HolderTracker { running_since, unusable_since, ..HolderTracker::default() };
            let rounded = |time: Duration| (time + Duration::from_millis(500)).as_secs();
            let left = watch.left(patience, Instant::now()).map(rounded);
            assert_eq!(left, want, "{watch:?}");
            let pause = rounded(watch.pause(Duration::from_secs(4), patience));
            assert_eq!(pause, want.unwrap_or(4).min(4), "{watch:?}");
        }
    }

    #[test]
    fn a_state_counts_from_when_it_was_seen_first_and_another_droplet_begins_anew() {
        let [a, b] = [1, 2].map(|id| DropletId::new(id).unwrap());
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        let mut tracker = HolderTracker::default();
        let (off, active) = (DropletStatus::Off, DropletStatus::Active);
        tracker.note(a, false, Some(Some(&off)), begun);
        tracker.note(a, true, Some(None), begun + second);
        assert_eq!(
            tracker.ages(a, begun + 3 * second),
            (Some(3 * second), None),
            "off, then gone: unusable throughout"
        );
        assert_eq!(tracker.stale_for(a, begun + 3 * second), 2 * second);
        assert_eq!(tracker.ages(b, begun + 3 * second), (None, None));
        tracker.note(a, false, None, begun + 4 * second);
        assert_eq!(
            tracker.ages(a, begun + 5 * second),
            (Some(5 * second), None),
            "a look that tells nothing ends nothing"
        );
        tracker.note(a, false, Some(Some(&active)), begun + 5 * second);
        assert_eq!(tracker.ages(a, begun + 6 * second), (None, Some(second)), "it runs again");
        tracker.note(b, false, Some(Some(&off)), begun + 6 * second);
        assert_eq!(tracker.ages(b, begun + 7 * second), (Some(second), None));
    }

    #[test]
    fn only_a_droplet_that_cannot_use_the_volume_loses_it() {
        let patience = Timeouts::of(Duration::from_secs(100));
        let (long, short) = (Some(patience.power_off_grace()), Some(Duration::ZERO));
        let (gone, active, new) = (None, Some(DropletStatus::Active), Some(DropletStatus::New));
        let (off, archive, odd) =
            (Some(DropletStatus::Off), Some(DropletStatus::Archive), Some(DropletStatus::Other("locked".into())));
        let table = [
            (&gone, None, None, false, TakeoverPlan::Recheck),
            (&gone, short, None, false, TakeoverPlan::Recheck),
            (&gone, long, None, false, TakeoverPlan::Detach),
            (&gone, None, None, true, TakeoverPlan::Detach),
            (&active, None, None, false, TakeoverPlan::AwaitRelease),
            (&active, None, short, false, TakeoverPlan::AwaitRelease),
            (&active, None, long, false, TakeoverPlan::Refuse),
            (&active, long, None, false, TakeoverPlan::AwaitRelease),
            (&new, long, long, false, TakeoverPlan::Refuse),
            (&odd, long, long, false, TakeoverPlan::Refuse),
            (&off, None, None, false, TakeoverPlan::Recheck),
            (&off, short, None, false, TakeoverPlan::Recheck),
            (&off, None, long, false, TakeoverPlan::Recheck),
            (&off, long, None, false, TakeoverPlan::Detach),
            (&archive, None, None, false, TakeoverPlan::Recheck),
            (&archive, long, None, false, TakeoverPlan::Detach),
            (&active, None, None, true, TakeoverPlan::Detach),
            (&off, None, None, true, TakeoverPlan::Detach),
        ];
        for (status, unusable_for, running_for, takeover, want) in table {
            let facts = HolderFacts { status: status.as_ref(), unusable_for, running_for, is_contradicted: false };
            assert_eq!(plan_takeover(facts, patience, takeover), want, "{facts:?} {takeover}");
            let contradicted = HolderFacts { is_contradicted: true, ..facts };
            assert_eq!(plan_takeover(contradicted, patience, takeover), TakeoverPlan::StaleListing, "{status:?}");
        }
    }
}
