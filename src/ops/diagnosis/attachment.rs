//! What is wrong with where a volume is, as DigitalOcean tells.
//!
//! Owns the findings about the volume's droplets and its actions. Pure: the caller has read them, and what it did not
//! read it says so, which is never taken for well.

use std::time::{Duration, SystemTime};

use crate::cloud::action::{Action, ActionStatus};
use crate::cloud::droplet::{Droplet, DropletStatus};
use crate::cloud::volume::Volume;
use crate::id::{ActionId, DropletId, VolumeId};
use crate::ops::diagnosis::{Finding, Reason, Repair, Subject};

/// How long an action may take before it is said not to end. They take seconds.
pub const ACTION_OVERDUE: Duration = Duration::from_secs(60);
/// How many actions of one kind in a row have failed when they keep failing.
const KEEPS_FAILING: usize = 2;

/// What is known of a droplet that has a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Nothing: it was not asked for.
    NotAsked,
    /// DigitalOcean does not know it.
    Gone,
    /// It exists.
    Known {
        /// Its name.
        name: String,
        /// Whether it runs.
        status: DropletStatus,
        /// Whether its own record has the volume.
        lists_volume: bool,
    },
}

impl Holder {
    /// What a droplet's record says of a volume; none: DigitalOcean does not know the droplet.
    #[must_use]
    pub fn of(droplet: Option<&Droplet>, volume: &VolumeId) -> Holder {
        match droplet {
            None => Holder::Gone,
            Some(Droplet { name, status, volumes, .. }) => {
                Holder::Known { name: name.clone(), status: status.clone(), lists_volume: volumes.contains(volume) }
            }
        }
    }

    /// Its state in a word, for a table.
    #[must_use]
    pub fn state(&self) -> &str {
        match self {
            Holder::NotAsked => "not asked",
            Holder::Gone => "gone",
            Holder::Known { status: DropletStatus::New, .. } => "new",
            Holder::Known { status: DropletStatus::Active, .. } => "running",
            Holder::Known { status: DropletStatus::Off, .. } => "off",
            Holder::Known { status: DropletStatus::Archive, .. } => "archived",
            Holder::Known { status: DropletStatus::Other(word), .. } => word,
        }
    }

    /// How it is that it cannot use a volume, as the rest of a sentence; `None`: it can, or may.
    fn dead(&self) -> Option<&'static str> {
        match self {
            Holder::Gone => Some("which does not exist any more"),
            Holder::Known { status: DropletStatus::Off, .. } => Some("which is off"),
            Holder::Known { status: DropletStatus::Archive, .. } => Some("which is archived"),
            Holder::NotAsked
            | Holder::Known { status: DropletStatus::New | DropletStatus::Active | DropletStatus::Other(_), .. } => {
                None
            }
        }
    }
}

/// What the latest actions of a volume say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moves {
    /// Nothing: they were not asked for.
    NotAsked,
    /// Nothing is wrong with them.
    Well,
    /// The latest ones, so many of one kind, have failed.
    Failing {
        /// What they were to do: `detach` or `attach`.
        what: &'static str,
        /// How many in a row.
        times: usize,
        /// The latest one.
        action: ActionId,
    },
    /// The latest one is running for so long.
    Overdue {
        /// What it does, in DigitalOcean's words.
        what: String,
        /// For how long.
        age: Duration,
        /// Which it is.
        action: ActionId,
    },
}

impl Moves {
    /// Reads the actions of a volume, the oldest first. Pure.
    #[must_use]
    pub fn read(actions: &[Action], now: SystemTime) -> Moves {
        let Some(last) = actions.last() else { return Moves::Well };
        match &last.status {
            ActionStatus::Completed => Moves::Well,
            ActionStatus::InProgress | ActionStatus::Other(_) => {
                let age = last.started_at.and_then(|started| now.duration_since(started).ok());
                match age.filter(|age| *age >= ACTION_OVERDUE) {
                    Some(age) => Moves::Overdue { what: last.kind.clone(), age, action: last.id },
                    None => Moves::Well,
                }
            }
            ActionStatus::Errored => {
                let Some(what) = moves(last) else { return Moves::Well };
                let is_same = |action: &&Action| action.status == ActionStatus::Errored && moves(action) == Some(what);
                let times = actions.iter().rev().take_while(is_same).count();
                if times < KEEPS_FAILING {
                    return Moves::Well;
                }
                Moves::Failing { what, times, action: last.id }
            }
        }
    }
}

/// Whether an action takes a volume from a droplet or gives it to one.
fn moves(action: &Action) -> Option<&'static str> {
    let is = |word: &str| action.kind.contains(word);
    if is("detach") { Some("detach") } else { is("attach").then_some("attach") }
}

/// Where a volume is, as far as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// The droplet that has it, where there is exactly one.
    pub holder: Holder,
    /// Its latest actions.
    pub moves: Moves,
}

/// What is wrong with where a volume is. Pure.
#[must_use]
pub fn diagnose_attachment(facts: &Attachment<'_>) -> Vec<Finding> {
    let subject = Subject::volume(&facts.volume.id, &facts.volume.name);
    let place = match facts.volume.droplets.as_slice() {
        [] => None,
        [droplet] => diagnose_holder(&subject, &facts.volume.id, *droplet, &facts.holder),
        [_, ..] => Some(listed_twice(&subject, facts.volume)),
    };
    place.into_iter().chain(diagnose_moves(&subject, facts)).collect()
}

fn listed_twice(subject: &Subject, volume: &Volume) -> Finding {
    let all: Vec<String> = volume.droplets.iter().map(ToString::to_string).collect();
    let cure = format!(
        "find out which of them uses it and detach it from the other: `{}`; if the list stays so, ask DigitalOcean's support",
        detach_command(&volume.id, "DROPLET_ID")
    );
    let message = format!("{subject} is attached to several droplets at once: {}", all.join(", "));
    Finding::new(Reason::ListedTwice, subject, message, cure)
}

fn diagnose_holder(subject: &Subject, volume: &VolumeId, droplet: DropletId, holder: &Holder) -> Option<Finding> {
    let named = match holder {
        Holder::Known { name, .. } => format!("droplet {droplet} ({name})"),
        Holder::NotAsked | Holder::Gone => format!("droplet {droplet}"),
    };
    let detach = detach_command(volume, &droplet.to_string());
    if let Some(how) = holder.dead() {
        let message = format!("{subject} is attached to {named}, {how}");
        let cure = format!("start a task that uses it, and the plugin takes it from there, or run `{detach}`");
        let repair = Repair::Detach { volume: volume.clone(), droplet };
        return Some(Finding::new(Reason::AttachedToDeadDroplet, subject, message, cure).with_repair(repair));
    }
    match holder {
        Holder::Known { lists_volume: false, .. } => {
            let message = format!("{subject} lists {named}, and the droplet does not list the volume");
            let cure = format!("look again in a minute; if it stays so, and nothing uses it there, run `{detach}`");
            Some(Finding::new(Reason::RecordsDisagree, subject, message, cure))
        }
        Holder::Known { lists_volume: true, .. } | Holder::NotAsked | Holder::Gone => None,
    }
}

fn diagnose_moves(subject: &Subject, facts: &Attachment<'_>) -> Option<Finding> {
    let id = &facts.volume.id;
    match &facts.moves {
        Moves::NotAsked | Moves::Well => None,
        // It is free by now, in whatever way.
        Moves::Failing { what: "detach", .. } if facts.volume.droplets.is_empty() => None,
        Moves::Failing { what, times, action } => {
            let reason = if *what == "detach" { Reason::DetachKeepsFailing } else { Reason::AttachKeepsFailing };
            let message =
                format!("the last {times} tries to {what} {subject} have failed; the latest is action {}", action.0);
            let cure = format!(
                "the plugin tries again by itself; if it goes on, ask DigitalOcean's support with the output of \
                 `doctl compute volume-action get {id} --action-id {}`",
                action.0
            );
            Some(Finding::new(reason, subject, message, cure))
        }
        Moves::Overdue { what, age, action } => {
            let message =
                format!("{what} of {subject} is said to be running for {} s (action {})", age.as_secs(), action.0);
            let cure = format!(
                "the plugin believes the volume and its droplet instead when both agree; if calls keep failing, ask \
                 DigitalOcean's support with the output of `doctl compute volume-action get {id} --action-id {}`",
                action.0
            );
            Some(Finding::new(Reason::ActionDoesNotEnd, subject, message, cure))
        }
    }
}

/// The command by which a person detaches a volume.
#[must_use]
pub fn detach_command(volume: &VolumeId, droplet: &str) -> String {
    format!("doctl compute volume-action detach {volume} {droplet}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(status: DropletStatus, lists_volume: bool) -> Holder {
        Holder::Known { name: "node-1".to_owned(), status, lists_volume }
    }

    #[test]
    fn each_state_of_the_droplets_has_its_finding_or_none() {
        use DropletStatus::{Active, Archive, New, Off};
        let other = || DropletStatus::Other("locked".into());
        let table = [
            (vec![], Holder::NotAsked, None),
            (vec![7], Holder::NotAsked, None),
            (vec![7], Holder::Gone, Some(Reason::AttachedToDeadDroplet)),
            (vec![7], known(Off, true), Some(Reason::AttachedToDeadDroplet)),
            (vec![7], known(Off, false), Some(Reason::AttachedToDeadDroplet)),
            (vec![7], known(Archive, true), Some(Reason::AttachedToDeadDroplet)),
            (vec![7], known(Active, true), None),
            (vec![7], known(Active, false), Some(Reason::RecordsDisagree)),
            (vec![7], known(New, true), None),
            (vec![7], known(New, false), Some(Reason::RecordsDisagree)),
            (vec![7], known(other(), true), None),
            (vec![7], known(other(), false), Some(Reason::RecordsDisagree)),
            (vec![7, 8], Holder::NotAsked, Some(Reason::ListedTwice)),
            (vec![7, 8], Holder::Gone, Some(Reason::ListedTwice)),
        ];
        for (droplets, holder, want) in table {
            let (shown, volume) = (format!("{droplets:?} {holder:?}"), Volume::fake(&droplets));
            let found = diagnose_attachment(&Attachment { volume: &volume, holder, moves: Moves::NotAsked });
            assert_eq!(found.iter().map(|finding| finding.reason).next(), want, "{shown}");
            for finding in &found {
                let is_dead = finding.reason == Reason::AttachedToDeadDroplet;
                assert_eq!(finding.repair.is_some(), is_dead, "{shown}: only what is dead cannot lose data");
                let command = "doctl compute volume-action detach 506f78a4-8f00-11f0-9a11-0a58ac14d1e2 ";
                assert!(
                    finding.message.contains("volume blog (506f78a4") && finding.cure.contains(command),
                    "{finding}"
                );
            }
        }
    }

    #[test]
    fn actions_that_fail_again_or_do_not_end_are_found() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let action = |kind: &str, status, age: u64| Action {
            id: ActionId(5),
            status,
            kind: kind.to_owned(),
            started_at: now.checked_sub(Duration::from_secs(age)),
        };
        let failed = |kind| action(kind, ActionStatus::Errored, 5);
        let done = |kind| action(kind, ActionStatus::Completed, 500);
        let running = |age| action("detach_volume", ActionStatus::InProgress, age);
        let failing = |what, times| Moves::Failing { what, times, action: ActionId(5) };
        let overdue = |age| Moves::Overdue {
            what: "detach_volume".to_owned(),
            age: Duration::from_secs(age),
            action: ActionId(5),
        };
        let odd = action("detach_volume", ActionStatus::Other("queued".to_owned()), 61);
        let table = [
            (vec![], Moves::Well, None),
            (vec![done("attach_volume")], Moves::Well, None),
            (vec![failed("detach_volume")], Moves::Well, None),
            (
                vec![failed("detach_volume"), failed("detach_volume")],
                failing("detach", 2),
                Some(Reason::DetachKeepsFailing),
            ),
            (vec![failed("detach_volume"), done("detach_volume")], Moves::Well, None),
            (vec![failed("detach_volume"), failed("attach_volume")], Moves::Well, None),
            (
                vec![done("attach_volume"), failed("attach_volume"), failed("attach_volume"), failed("attach_volume")],
                failing("attach", 3),
                Some(Reason::AttachKeepsFailing),
            ),
            (vec![failed("resize"), failed("resize")], Moves::Well, None),
            (vec![running(59)], Moves::Well, None),
            (vec![running(60)], overdue(60), Some(Reason::ActionDoesNotEnd)),
            (vec![running(3600), done("detach_volume")], Moves::Well, None),
            (vec![odd], overdue(61), Some(Reason::ActionDoesNotEnd)),
        ];
        let (volume, free) = (Volume::fake(&[7]), Volume::fake(&[]));
        for (actions, want, reason) in table {
            let moves = Moves::read(&actions, now);
            assert_eq!(moves, want, "{actions:?}");
            let found = diagnose_attachment(&Attachment { volume: &volume, holder: Holder::NotAsked, moves });
            assert_eq!(found.iter().map(|finding| finding.reason).next(), reason, "{actions:?}");
            assert!(found.iter().all(|finding| finding.repair.is_none() && finding.cure.contains("--action-id 5")));
        }
        let of_free = |what| {
            diagnose_attachment(&Attachment { volume: &free, holder: Holder::NotAsked, moves: failing(what, 2) }).len()
        };
        assert_eq!((of_free("detach"), of_free("attach")), (0, 1));
    }
}
