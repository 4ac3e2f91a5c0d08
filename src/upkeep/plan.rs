//! Whether a volume that is attached to this droplet is detached for being used by nobody.
//!
//! Owns that one decision. Everything that speaks for a user, or that cannot be told, keeps the volume where it is.

use std::fmt;
use std::time::Duration;

use crate::controller::unused::{KEEP_TAG, Latest, Listed, Mark, ReleaseFacts};
use crate::node::unused::DiskUse;

/// What is known of one volume's disk.
#[derive(Debug, Clone)]
pub(super) struct Facts<'a> {
    /// How it is used on this droplet.
    pub(super) usage: &'a DiskUse,
    /// A call of this program for the volume runs, or has ended within the time.
    pub(super) is_called_for: bool,
    /// Since how long each look has shown that nobody uses it; `None`: this is the first.
    pub(super) unused_for: Option<Duration>,
    /// What DigitalOcean says; `None`: it has not been asked.
    pub(super) cloud: Option<&'a ReleaseFacts>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// It stays, for this reason.
    Keep(Reason),
    /// Nobody uses it, not yet for long enough.
    Wait,
    /// It is staged for nobody: unstage it, and look again.
    TakeDownStaging,
    /// Nothing on this droplet speaks for a user: ask DigitalOcean.
    ReadVolume,
    /// Detach it.
    Release,
}

/// Why a volume stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    Published,
    MountedByOthers,
    Taken,
    CalledFor,
    NotHere,
    AlsoElsewhere,
    KeepTag,
    NotOwners(String),
    ActionRuns,
    NotByAttach,
    AgeUnknown,
    TooYoung,
    DetachUnclear,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Published => f.write_str("it is shown to a task"),
            Reason::MountedByOthers => f.write_str("something other than this plugin has it mounted"),
            Reason::Taken => f.write_str("something has its disk"),
            Reason::CalledFor => f.write_str("a call was about it lately"),
            Reason::NotHere => f.write_str("DigitalOcean does not list it on this droplet"),
            Reason::AlsoElsewhere => f.write_str("DigitalOcean lists it on another droplet, too"),
            Reason::KeepTag => write!(f, "the tag {KEEP_TAG} is on it"),
            Reason::NotOwners(why) => f.write_str(why),
            Reason::ActionRuns => f.write_str("DigitalOcean is at work on it"),
            Reason::NotByAttach => f.write_str("its last action is no attach"),
            Reason::AgeUnknown => f.write_str("DigitalOcean does not say when it was attached"),
            Reason::TooYoung => f.write_str("DigitalOcean has done something to it lately"),
            Reason::DetachUnclear => f.write_str("it is not known yet what came of an earlier detach"),
        }
    }
}

/// Decides about one volume; `after` is how long nobody may have used it. Pure.
pub(super) fn plan_unused(facts: &Facts<'_>, after: Duration) -> Plan {
    let is_staged = match facts.usage {
        DiskUse::Foreign(_) => return Plan::Keep(Reason::MountedByOthers),
        DiskUse::Published(_) => return Plan::Keep(Reason::Published),
        DiskUse::Taken => return Plan::Keep(Reason::Taken),
        DiskUse::Staged(_) => true,
        DiskUse::Free => false,
    };
    if facts.is_called_for {
        return Plan::Keep(Reason::CalledFor);
    }
    if facts.unused_for.is_none_or(|unused_for| unused_for < after) {
        return Plan::Wait;
    }
    match (is_staged, facts.cloud) {
        (true, _) => Plan::TakeDownStaging,
        (false, None) => Plan::ReadVolume,
        (false, Some(cloud)) => plan_release(cloud, after).map_or(Plan::Release, Plan::Keep),
    }
}

/// Why DigitalOcean's facts keep a volume where it is; `None`: they do not.
fn plan_release(cloud: &ReleaseFacts, after: Duration) -> Option<Reason> {
    match cloud.listed {
        Listed::OnlyHere => {}
        Listed::AlsoElsewhere => return Some(Reason::AlsoElsewhere),
        Listed::NotHere => return Some(Reason::NotHere),
    }
    match &cloud.mark {
        Mark::Owners => {}
        Mark::Keep => return Some(Reason::KeepTag),
        Mark::NotOwners(why) => return Some(Reason::NotOwners(why.clone())),
    }
    match cloud.latest {
        Latest::Running => Some(Reason::ActionRuns),
        Latest::NoAttach => Some(Reason::NotByAttach),
        Latest::Attached(None) => Some(Reason::AgeUnknown),
        Latest::Attached(Some(age)) if age < after => Some(Reason::TooYoung),
        Latest::Attached(Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const AFTER: Duration = Duration::from_secs(120);
    const LONG: Option<Duration> = Some(AFTER);
    const SHORT: Option<Duration> = Some(Duration::from_secs(119));

    fn every_cloud() -> Vec<Option<ReleaseFacts>> {
        let mut all = vec![None];
        for listed in [Listed::OnlyHere, Listed::AlsoElsewhere, Listed::NotHere] {
            for mark in [Mark::Owners, Mark::Keep, Mark::NotOwners("another's".to_owned())] {
                for latest in [
                    Latest::Running,
                    Latest::NoAttach,
                    Latest::Attached(None),
                    Latest::Attached(SHORT),
                    Latest::Attached(LONG),
                ] {
                    all.push(Some(ReleaseFacts { listed, mark: mark.clone(), latest }));
                }
            }
        }
        all
    }

    /// The decision written once more, as a list of conditions, over every combination of facts.
    #[test]
    fn a_volume_is_detached_only_when_everything_speaks_for_it() {
        let path = PathBuf::from("/x");
        let uses = [
            (DiskUse::Foreign(path.clone()), Some(Reason::MountedByOthers)),
            (DiskUse::Published(path.clone()), Some(Reason::Published)),
            (DiskUse::Taken, Some(Reason::Taken)),
            (DiskUse::Staged(vec![path]), None),
            (DiskUse::Free, None),
        ];
        let mut released = 0;
        for (usage, used) in &uses {
            for is_called_for in [false, true] {
                for unused_for in [None, SHORT, LONG] {
                    for cloud in every_cloud() {
                        let facts = Facts { usage, is_called_for, unused_for, cloud: cloud.as_ref() };
                        let plan = plan_unused(&facts, AFTER);
                        let is_old = unused_for == LONG;
                        let want = match (used, usage, &cloud) {
                            (Some(reason), _, _) => Plan::Keep(reason.clone()),
                            (None, _, _) if is_called_for => Plan::Keep(Reason::CalledFor),
                            (None, _, _) if !is_old => Plan::Wait,
                            (None, DiskUse::Staged(_), _) => Plan::TakeDownStaging,
                            (None, _, None) => Plan::ReadVolume,
                            (None, _, Some(cloud)) => plan_release(cloud, AFTER).map_or(Plan::Release, Plan::Keep),
                        };
                        assert_eq!(plan, want, "{facts:?}");
                        released += usize::from(plan == Plan::Release);
                    }
                }
            }
        }
        assert_eq!(released, 1, "of all combinations one is released");
    }

    #[test]
    fn what_digitalocean_says_keeps_a_volume_for_a_reason_that_is_told() {
        let owners = |listed, latest| ReleaseFacts { listed, mark: Mark::Owners, latest };
        let marked = |mark| ReleaseFacts { listed: Listed::OnlyHere, mark, latest: Latest::Attached(LONG) };
        for (facts, want) in [
            (owners(Listed::OnlyHere, Latest::Attached(LONG)), None),
            (owners(Listed::OnlyHere, Latest::Attached(SHORT)), Some(Reason::TooYoung)),
            (owners(Listed::OnlyHere, Latest::Attached(None)), Some(Reason::AgeUnknown)),
            (owners(Listed::OnlyHere, Latest::NoAttach), Some(Reason::NotByAttach)),
            (owners(Listed::OnlyHere, Latest::Running), Some(Reason::ActionRuns)),
            (owners(Listed::NotHere, Latest::Attached(LONG)), Some(Reason::NotHere)),
            (owners(Listed::AlsoElsewhere, Latest::Attached(LONG)), Some(Reason::AlsoElsewhere)),
            (marked(Mark::Keep), Some(Reason::KeepTag)),
            (marked(Mark::NotOwners("x".to_owned())), Some(Reason::NotOwners("x".to_owned()))),
        ] {
            assert_eq!(plan_release(&facts, AFTER), want, "{facts:?}");
            assert!(want.is_none_or(|reason| !reason.to_string().is_empty()));
        }
    }
}
