//! What is wrong with a volume on the droplet that this runs on.
//!
//! Owns the findings about its disk, its file system and its mounts. Pure: `host/inventory.rs` has looked, or the
//! call that knows the volume's path.

use std::path::Path;
use std::time::Duration;

use crate::host::inventory::{DiskHere, VolumeHere, VolumeState};
use crate::host::mount_health::Health;
use crate::host::mount_report::{Condition, Counts, MountReport, Usage};
use crate::host::propagation::CURE as REACH_CURE;
use crate::ops::diagnosis::{Finding, Reason, Severity, Subject};
use crate::spelling::shell_word;

/// How full a file system is, in percent of what users may take, when it is nearly full.
pub const NEARLY_FULL: u64 = 90;
/// How much of its disk a file system covers at least when it has grown with it, in percent. What a file system needs
/// for itself is less than the rest.
const COVERED: u64 = 80;
/// How long a disk may be here unused: a task that was just placed comes within seconds.
const UNUSED_FOR: Duration = Duration::from_secs(300);

/// What ends recorded errors.
const CHECKED_NEXT: &str = "stop all that uses it on this droplet, and it is checked when it is staged next";
/// What ends a mount that is dead.
const TAKEN_AWAY: &str = "stop the task that uses it: the plugin takes the dead mount away when the task has ended, and the next task \
                          gets the volume anew";
/// How a volume grows.
const GROWS: &str = "delete what is not needed, or make the volume larger: raise capacity_min in its file and run \
                     `nomad volume create FILE` again, or `doctl compute volume-action resize VOLUME_ID --size GIB --region REGION` and \
                     stage it anew";

impl VolumeHere {
    /// What findings about it are about.
    #[must_use]
    pub fn subject(&self) -> Subject {
        let name = self.name.as_ref().map(ToString::to_string).unwrap_or_default();
        let id = self.id.clone().unwrap_or_default();
        match self.mounts.first().filter(|_| id.is_empty() && name.is_empty()) {
            Some(mount) => Subject::volume(&format!("at {}", mount.path.display()), &""),
            None => Subject::Volume { id, name },
        }
    }
}

/// What is seen of a volume's disk on this droplet, when a program would detach the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskSeen {
    /// It is not here: the volume is on another droplet, or this machine is none.
    NotHere,
    /// It is here, and nothing has it.
    Free,
    /// It is here, and something has it, or may have it.
    MayBeUsed,
}

impl DiskSeen {
    /// What is seen of the disk of a volume that is here (`None`: it is not), where DigitalOcean lists the volume here or does
    /// not. Where the two contradict each other, it may be used.
    #[must_use]
    pub fn of(here: Option<&VolumeHere>, is_listed_here: bool) -> DiskSeen {
        match (here.map(|volume| (&volume.state, volume.mounts.as_slice())), is_listed_here) {
            (None, false) => DiskSeen::NotHere,
            (Some((VolumeState::NotMounted { is_taken: false }, [])), true) => DiskSeen::Free,
            (
                None
                | Some((
                    VolumeState::NotMounted { .. }
                    | VolumeState::Answered(_)
                    | VolumeState::Silent(_)
                    | VolumeState::Unknown(_),
                    _,
                )),
                true | false,
            ) => DiskSeen::MayBeUsed,
        }
    }
}

/// A finding with what a program may do about it only where that cannot take a disk from who writes to it, and where the volume is
/// this plugin's to change: `refusal` says why it is not. A lost claim is no sign that the task has ended: only the droplet that has
/// the disk knows. Pure.
#[must_use]
pub fn with_safe_repair(finding: Finding, seen: DiskSeen, refusal: Option<&str>) -> Finding {
    if finding.repair.is_none() {
        return finding;
    }
    let before = match (finding.reason == Reason::AttachedWithoutClaim, seen, refusal) {
        (true | false, _, Some(why)) => format!("ask who owns it first: {why}; then"),
        (true, DiskSeen::Free, None) | (false, DiskSeen::NotHere, None) => return finding,
        (true | false, DiskSeen::MayBeUsed, None)
        | (true, DiskSeen::NotHere, None)
        // A droplet that is off runs nothing, and this one does.
        | (false, DiskSeen::Free, None) => {
            "see on that droplet that nothing uses the disk any more, as `do-csi-plugin doctor --fix` does there; then"
                .to_owned()
        }
    };
    Finding { repair: None, cure: format!("{before} {}", finding.cure), ..finding }
}

/// What is wrong with a volume that is here. Pure.
#[must_use]
pub fn diagnose_here(volume: &VolumeHere) -> Vec<Finding> {
    let subject = volume.subject();
    let disk = volume.disk.as_ref();
    let mut findings: Vec<Finding> = disk.and_then(|disk| diagnose_disk(&subject, disk)).into_iter().collect();
    match &volume.state {
        VolumeState::NotMounted { is_taken: false } => {
            findings.extend(disk.and_then(|disk| diagnose_unused(&subject, disk)));
        }
        VolumeState::NotMounted { is_taken: true } => {}
        VolumeState::Answered(report) => {
            findings.extend(diagnose_mount(&subject, report));
            findings.extend(disk.and_then(|disk| diagnose_growth(&subject, disk, report)));
        }
        VolumeState::Silent(since) => {
            let place = volume.mounts.first().map(|mount| format!(" at {}", mount.path.display())).unwrap_or_default();
            let message = format!("the mount of {subject}{place} has not answered for {} s", since.as_secs());
            let cure = format!("see what `dmesg` says of its disk; {TAKEN_AWAY}");
            findings.push(Finding::new(Reason::MountDoesNotAnswer, &subject, message, cure));
        }
        VolumeState::Unknown(why) => {
            let message = format!("{subject} could not be looked at: {why}");
            let cure = "see what `dmesg` says of its disk, and look again".to_owned();
            let finding = Finding::new(Reason::MountDoesNotAnswer, &subject, message, cure);
            findings.push(Finding { severity: Severity::Warning, ..finding });
        }
    }
    findings
}

/// What is wrong when nothing that is mounted here reaches the droplet. Pure.
#[must_use]
pub fn diagnose_reach(nothing_reaches: bool) -> Option<Finding> {
    nothing_reaches.then(|| {
        let message =
            "no mount of this plugin's mount namespace is shared with the droplet, so no task would see a volume";
        let reason = Reason::MountsDoNotReachTheDroplet;
        Finding::new(reason, &Subject::Node, message.to_owned(), REACH_CURE.to_owned())
    })
}

/// What is wrong with a mount that serves nobody, or that nobody can say whether it does, and that could not be taken away. Pure.
#[must_use]
pub fn diagnose_left(path: &Path, why: &str) -> Finding {
    let shown = path.display();
    let message =
        format!("the mount at {shown} was looked at by the plugin, which could not end what is wrong with it: {why}");
    let cure = format!(
        "end what uses it (`fuser -vm {}`); the plugin looks again every 30 s",
        shell_word(&path.to_string_lossy())
    );
    Finding::new(Reason::MountLeftBehind, &Subject::Node, message, cure)
}

/// What is wrong with the volume at a mount, by what was read there. Pure.
#[must_use]
pub fn diagnose_mount(subject: &Subject, report: &MountReport) -> Vec<Finding> {
    let find = |reason, message: String, cure: &str| Finding::new(reason, subject, message, cure.to_owned());
    let broken = match &report.condition {
        Condition::Normal => None,
        Condition::Dead(health) => {
            let reason = match health {
                Health::ShutDown => Reason::FileSystemShutDown,
                Health::DiskGone | Health::NodeGone | Health::Alive => Reason::MountedButDetached,
            };
            Some(find(reason, format!("{subject} is mounted and dead: {health}"), TAKEN_AWAY))
        }
        Condition::ReadOnlyByError(errors) => {
            let recorded = errors.as_ref().map(|errors| format!(": it has {errors}")).unwrap_or_default();
            let message = format!("{subject} became read-only because of errors, see dmesg{recorded}");
            Some(find(Reason::FileSystemReadOnlyByErrors, message, CHECKED_NEXT))
        }
        Condition::WithErrors(errors) => {
            Some(find(Reason::FileSystemErrorsRecorded, format!("{subject} has {errors}"), CHECKED_NEXT))
        }
    };
    let full = report.usage.iter().filter_map(|usage| diagnose_usage(subject, usage));
    broken.into_iter().chain(full).collect()
}

fn diagnose_usage(subject: &Subject, usage: &Usage) -> Option<Finding> {
    let (counts, what, nearly) = match usage {
        Usage::Size(_) => return None,
        Usage::Bytes(counts) => (counts, "of its space", Reason::FileSystemNearlyFull),
        Usage::Inodes(counts) => (counts, "of its inodes, one for each file,", Reason::InodesNearlyUsedUp),
    };
    let percent = counts.percent_used()?;
    if percent < NEARLY_FULL {
        return None;
    }
    let left = match usage {
        Usage::Bytes(_) => format!("{} MiB", counts.available / (1 << 20)),
        Usage::Size(_) | Usage::Inodes(_) => counts.available.to_string(),
    };
    let message = format!("the file system of {subject} has used {percent} % {what} and has {left} left");
    let is_full = counts.available == 0;
    let reason = if is_full && nearly == Reason::FileSystemNearlyFull { Reason::FileSystemFull } else { nearly };
    let finding = Finding::new(reason, subject, message, GROWS.to_owned());
    Some(if is_full { Finding { severity: Severity::Critical, ..finding } } else { finding })
}

impl Counts {
    /// How much is used of what an ordinary user may take, in percent and rounded up as df(1) does; `None` where
    /// there is nothing.
    #[must_use]
    pub fn percent_used(&self) -> Option<u64> {
        let all = self.used.checked_add(self.available).filter(|all| *all > 0)?;
        Some(self.used.checked_mul(100)?.div_ceil(all))
    }
}

fn diagnose_disk(subject: &Subject, disk: &DiskHere) -> Option<Finding> {
    let state = disk.state.as_deref().filter(|state| *state != "running")?;
    let message =
        format!("the kernel says that the disk {} of {subject} is {state:?}, not running", disk.node.display());
    let cure = format!("see what `dmesg` says of it; {TAKEN_AWAY}");
    Some(Finding::new(Reason::DiskNotRunning, subject, message, cure))
}

fn diagnose_unused(subject: &Subject, disk: &DiskHere) -> Option<Finding> {
    if disk.age.is_some_and(|age| age < UNUSED_FOR) {
        return None;
    }
    let message = format!("{subject} is attached to this droplet as {}, and nothing uses it", disk.node.display());
    let cure = "if no task is about to use it, run `doctl compute volume-action detach VOLUME_ID DROPLET_ID`; with NOMAD_ADDR, \
                `do-csi-plugin doctor` sees whether one claims it"
        .to_owned();
    Some(Finding::new(Reason::AttachedButUnused, subject, message, cure))
}

fn diagnose_growth(subject: &Subject, disk: &DiskHere, report: &MountReport) -> Option<Finding> {
    let total = report.usage.iter().find_map(|usage| match usage {
        Usage::Bytes(counts) => Some(counts.total),
        Usage::Size(_) | Usage::Inodes(_) => None,
    })?;
    if total.saturating_mul(100) >= disk.size.saturating_mul(COVERED) {
        return None;
    }
    let mib = |bytes: u64| bytes / (1 << 20);
    let message = format!("the file system of {subject} has {} MiB on a disk of {} MiB", mib(total), mib(disk.size));
    let cure = "run `nomad volume create FILE` for it again, or stop all that uses it: it grows when it is staged next"
        .to_owned();
    Some(Finding::new(Reason::FileSystemNotGrown, subject, message, cure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ext_errors::RecordedErrors;
    use crate::host::inventory::MountHere;
    use crate::id::{DropletId, VolumeId, VolumeName};
    use crate::ops::diagnosis::Repair;

    const GIB: u64 = 1 << 30;

    fn disk() -> DiskHere {
        DiskHere {
            node: "/dev/sda".into(),
            sysfs: "/sys/block/sda".into(),
            size: 10 * GIB,
            is_read_only: false,
            state: Some("running".to_owned()),
            age: None,
            is_encrypted: false,
        }
    }

    fn volume(state: VolumeState) -> VolumeHere {
        VolumeHere {
            id: Some("506f78a4".to_owned()),
            name: VolumeName::parse("blog").ok(),
            disk: Some(disk()),
            fs: Some("ext4".to_owned()),
            mounts: vec![MountHere { path: "/csi/staging/blog".into(), is_read_only: false, user: None }],
            state,
        }
    }

    fn report(condition: Condition, used: u64, available: u64, inodes: (u64, u64)) -> VolumeState {
        let counts = |used, available| Counts { total: used + available, used, available };
        let usage = vec![Usage::Bytes(counts(used, available)), Usage::Inodes(counts(inodes.0, inodes.1))];
        VolumeState::Answered(MountReport { usage, condition })
    }

    #[test]
    fn each_state_of_a_volume_has_its_findings_or_none() {
        use Reason::{
            AttachedButUnused, DiskNotRunning, FileSystemErrorsRecorded, FileSystemFull, FileSystemNearlyFull,
            FileSystemNotGrown, FileSystemReadOnlyByErrors, FileSystemShutDown, InodesNearlyUsedUp, MountDoesNotAnswer,
            MountedButDetached,
        };
        let errors = || RecordedErrors { count: 1, first_at: None, first_in: "ext4_lookup:1".to_owned() };
        let well = |condition| report(condition, GIB, 8 * GIB, (1, 99));
        let dead = |health| VolumeState::Answered(MountReport { usage: vec![], condition: Condition::Dead(health) });
        let raw = || VolumeState::Answered(MountReport { usage: vec![Usage::Size(GIB)], condition: Condition::Normal });
        let table: [(VolumeState, &[Reason]); 17] = [
            (well(Condition::Normal), &[]),
            (raw(), &[]),
            (well(Condition::ReadOnlyByError(None)), &[FileSystemReadOnlyByErrors]),
            (well(Condition::ReadOnlyByError(Some(errors()))), &[FileSystemReadOnlyByErrors]),
            (well(Condition::WithErrors(errors())), &[FileSystemErrorsRecorded]),
            (dead(Health::DiskGone), &[MountedButDetached]),
            (dead(Health::NodeGone), &[MountedButDetached]),
            (dead(Health::ShutDown), &[FileSystemShutDown]),
            (report(Condition::Normal, 89 * GIB, 11 * GIB, (1, 99)), &[]),
            (report(Condition::Normal, 9 * GIB, GIB, (1, 99)), &[FileSystemNearlyFull]),
            (report(Condition::Normal, 9 * GIB, 0, (1, 99)), &[FileSystemFull]),
            (report(Condition::Normal, GIB, 8 * GIB, (95, 5)), &[InodesNearlyUsedUp]),
            (report(Condition::Normal, GIB, 4 * GIB, (1, 99)), &[FileSystemNotGrown]),
            (VolumeState::Silent(Duration::from_secs(9)), &[MountDoesNotAnswer]),
            (VolumeState::Unknown("an error".to_owned()), &[MountDoesNotAnswer]),
            (VolumeState::NotMounted { is_taken: true }, &[]),
            (VolumeState::NotMounted { is_taken: false }, &[AttachedButUnused]),
        ];
        for (state, want) in table {
            let shown = format!("{state:?}");
            let found = diagnose_here(&volume(state));
            assert_eq!(found.iter().map(|finding| finding.reason).collect::<Vec<_>>(), want, "{shown}");
            for finding in found {
                assert!(finding.message.contains("volume blog (506f78a4)") && !finding.cure.is_empty(), "{finding}");
                assert!(finding.repair.is_none(), "{shown}: a person looks at what is on this droplet");
            }
        }
        let blocked = DiskHere { state: Some("offline".to_owned()), ..disk() };
        let found = diagnose_here(&VolumeHere { disk: Some(blocked), ..volume(raw()) });
        assert_eq!(found.iter().map(|finding| finding.reason).collect::<Vec<_>>(), [DiskNotRunning]);
    }

    #[test]
    fn mounts_that_nobody_sees_are_a_finding() {
        assert_eq!(diagnose_reach(false), None);
        let finding = diagnose_reach(true).unwrap();
        assert!(finding.cure.contains("mount --make-rshared /"), "{finding}");
    }

    #[test]
    fn a_volume_that_was_just_attached_is_not_said_to_be_unused() {
        for (age, is_found) in [(None, true), (Some(10), false), (Some(299), false), (Some(300), true)] {
            let disk = DiskHere { age: age.map(Duration::from_secs), ..disk() };
            let volume = VolumeHere { disk: Some(disk), ..volume(VolumeState::NotMounted { is_taken: false }) };
            assert_eq!(!diagnose_here(&volume).is_empty(), is_found, "{age:?}");
        }
    }

    #[test]
    fn how_full_it_is_follows_from_what_users_may_take() {
        for (used, available, want) in
            [(0, 0, None), (0, 10, Some(0)), (1, 99, Some(1)), (1, 199, Some(1)), (5, 0, Some(100))]
        {
            assert_eq!(Counts { total: 1000, used, available }.percent_used(), want, "{used} {available}");
        }
    }

    #[test]
    fn a_volume_of_which_nothing_is_known_is_named_by_its_mount() {
        let state = VolumeState::NotMounted { is_taken: true };
        assert_eq!(volume(state.clone()).subject().to_string(), "volume blog (506f78a4)");
        let unknown = VolumeHere { id: None, name: None, ..volume(state) };
        assert_eq!(unknown.subject().to_string(), "volume at /csi/staging/blog");
    }

    #[test]
    fn only_a_disk_that_is_seen_free_is_detached_from_a_droplet_that_runs() {
        use Reason::{AttachedToDeadDroplet, AttachedWithoutClaim};
        let mount = MountHere { path: "/csi/staging/blog".into(), is_read_only: false, user: None };
        let here = |state, mounts| VolumeHere { mounts, ..volume(state) };
        let free = here(VolumeState::NotMounted { is_taken: false }, Vec::new());
        let used = [
            here(VolumeState::NotMounted { is_taken: true }, Vec::new()),
            here(VolumeState::NotMounted { is_taken: false }, vec![mount.clone()]),
            here(VolumeState::Silent(Duration::ZERO), vec![mount.clone()]),
            here(VolumeState::Unknown(String::new()), vec![mount]),
        ];
        for (here, is_listed_here, want) in [
            (None, false, DiskSeen::NotHere),
            (None, true, DiskSeen::MayBeUsed),
            (Some(&free), true, DiskSeen::Free),
            (Some(&free), false, DiskSeen::MayBeUsed),
        ] {
            assert_eq!(DiskSeen::of(here, is_listed_here), want, "{here:?} {is_listed_here}");
        }
        for used in &used {
            assert_eq!(DiskSeen::of(Some(used), true), DiskSeen::MayBeUsed, "{used:?}");
        }
        let (id, droplet) =
            (VolumeId::parse("506f78a4-8f00-11f0-9a11-0a58ac14d1e2").unwrap(), DropletId::new(7).unwrap());
        for (reason, seen, want) in [
            (AttachedWithoutClaim, DiskSeen::Free, true),
            (AttachedWithoutClaim, DiskSeen::NotHere, false),
            (AttachedWithoutClaim, DiskSeen::MayBeUsed, false),
            (AttachedToDeadDroplet, DiskSeen::NotHere, true),
            (AttachedToDeadDroplet, DiskSeen::Free, false),
            (AttachedToDeadDroplet, DiskSeen::MayBeUsed, false),
        ] {
            let repair = Repair::Detach { volume: id.clone(), droplet };
            let finding = Finding::new(reason, &Subject::Node, String::new(), "run it".to_owned()).with_repair(repair);
            let foreign = with_safe_repair(finding.clone(), seen, Some("it is another's"));
            assert!(foreign.repair.is_none() && foreign.cure.contains("it is another's"), "{foreign:?}");
            let got = with_safe_repair(finding, seen, None);
            assert_eq!((got.repair.is_some(), got.cure == "run it"), (want, want), "{reason} {seen:?}");
        }
    }
}
