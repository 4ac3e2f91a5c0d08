//! What is wrong, in the messages of CSI 1.13.
//!
//! Owns the step from findings to the wire, for both services. It decides nothing: which findings there are is said in
//! `ops/diagnosis`.

use std::collections::{BTreeMap, BTreeSet};

use crate::controller::health::Abnormal;
use crate::controller::whole_list::ListPage;
use crate::ops::diagnosis::{Effect, Finding, Reason, affecting};
use crate::proto::csi;
use crate::proto::csi::node_get_storage_health_response::StorageBackendHealth;
use crate::proto::csi::volume_health::VolumeHealthEntry;
use crate::proto::csi::{StorageHealthErrorType, VolumeHealthErrorType};
use crate::rpc::response::token;

/// What is wrong with a volume, each reason once, as the specification demands.
pub(super) fn volume_health(id: &str, findings: &[Finding]) -> csi::VolumeHealth {
    let mut seen = BTreeSet::new();
    let is_first = |finding: &&Finding| seen.insert(finding.reason);
    let health_statuses = affecting(findings).filter(is_first).filter_map(entry).collect();
    csi::VolumeHealth { volume_id: id.to_owned(), health_statuses, ..Default::default() }
}

fn entry(finding: &Finding) -> Option<VolumeHealthEntry> {
    let status = match finding.reason.effect() {
        Effect::None => return None,
        Effect::Degraded => VolumeHealthErrorType::DEGRADED,
        Effect::Inaccessible => VolumeHealthErrorType::INACCESSIBLE,
    };
    Some(VolumeHealthEntry {
        status: status.into(),
        reason: finding.reason.to_string(),
        message: finding.to_string(),
        ..Default::default()
    })
}

/// A page of volumes that are not well.
pub(super) fn listed_health(page: &ListPage<Abnormal>) -> csi::ControllerListVolumeHealthResponse {
    let entry = |found: &Abnormal| volume_health(found.volume.as_str(), &found.findings);
    csi::ControllerListVolumeHealthResponse {
        entries: page.items.iter().map(entry).collect(),
        next_token: token(page.next.as_ref()),
        ..Default::default()
    }
}

/// What is wrong with the way from this droplet to all of its volumes: what is so of the droplet itself, and what the
/// disks of several volumes have in common, each reason once.
pub(super) fn storage_health(findings: &[Finding]) -> csi::NodeGetStorageHealthResponse {
    let mut by_reason: BTreeMap<Reason, Vec<String>> = BTreeMap::new();
    for finding in findings.iter().filter(|finding| status_of_storage(finding.reason).is_some()) {
        by_reason.entry(finding.reason).or_default().push(finding.to_string());
    }
    let backend_health = by_reason.into_iter().filter_map(|(reason, messages)| {
        Some(StorageBackendHealth {
            status: status_of_storage(reason)?.into(),
            reason: reason.to_string(),
            message: messages.join("; "),
            ..Default::default()
        })
    });
    csi::NodeGetStorageHealthResponse { backend_health: backend_health.collect(), ..Default::default() }
}

/// What a finding says of the way to all volumes; `None`: nothing.
fn status_of_storage(reason: Reason) -> Option<StorageHealthErrorType> {
    if reason == Reason::MountsDoNotReachTheDroplet {
        return Some(StorageHealthErrorType::STORAGE_UNREACHABLE);
    }
    let is_of_disks = matches!(reason, Reason::DiskNotRunning | Reason::MountDoesNotAnswer | Reason::MountLeftBehind);
    is_of_disks.then_some(StorageHealthErrorType::STORAGE_DEGRADED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::diagnosis::Subject;

    fn finding(reason: Reason, name: &str) -> Finding {
        Finding::new(reason, &Subject::volume(&"506f78a4", &name), format!("{name} is not well"), "do this".to_owned())
    }

    #[test]
    fn each_reason_is_told_once_with_its_status_and_cure() {
        let twice = [finding(Reason::ListedTwice, "blog"), finding(Reason::ListedTwice, "blog")];
        let all =
            [&twice[..], &[finding(Reason::MountedButDetached, "blog"), finding(Reason::RecordsDisagree, "blog")]];
        let health = volume_health("506f78a4", &all.concat());
        assert_eq!(health.volume_id, "506f78a4");
        let told: Vec<(VolumeHealthErrorType, &str)> =
            health.health_statuses.iter().map(|entry| (entry.status.unwrap(), entry.reason.as_str())).collect();
        let want = [
            (VolumeHealthErrorType::DEGRADED, "ListedTwice"),
            (VolumeHealthErrorType::INACCESSIBLE, "MountedButDetached"),
        ];
        assert_eq!(told, want);
        assert_eq!(health.health_statuses[0].message, "blog is not well; do this");
        assert!(volume_health("506f78a4", &[]).health_statuses.is_empty());
    }

    #[test]
    fn what_is_one_volumes_own_trouble_is_not_said_of_the_droplets_storage() {
        for reason in Reason::ALL {
            let health = storage_health(&[finding(*reason, "blog"), finding(*reason, "shop")]);
            let is_told = status_of_storage(*reason).is_some();
            assert_eq!(health.backend_health.len(), usize::from(is_told), "{reason}");
            for told in health.backend_health {
                assert!(told.message.contains("blog") && told.message.contains("shop"), "{told:?}");
                assert_eq!(told.reason, reason.as_str());
            }
        }
    }
}
