//! What is wrong, as far as this process has looked: with the volumes on this droplet, and with those of the region.
//!
//! Owns the latest findings of both, for the page and as a metric. Who has looked puts them here; nothing is looked at when
//! somebody asks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::ops::diagnosis::{Finding, Reason};
use crate::ops::figures::FigureReader;

/// What is wrong.
#[derive(Debug)]
pub struct Findings {
    figures: Option<Arc<FigureReader>>,
    region: Mutex<Region>,
    /// What the last look at the region has met, whether it came to its end or not.
    account: Mutex<Vec<Finding>>,
    /// What the look at the mounts here could not end.
    left_mounts: Mutex<Vec<Finding>>,
}

/// What was found in the region, and when.
#[derive(Debug, Default)]
struct Region {
    found: Vec<Finding>,
    at: Option<Instant>,
}

impl Findings {
    /// Nothing but what is found on this droplet, with the node service.
    #[must_use]
    pub fn new(figures: Option<Arc<FigureReader>>) -> Findings {
        Findings { figures, region: Mutex::default(), account: Mutex::default(), left_mounts: Mutex::default() }
    }

    /// Takes what was found of mounts that were left behind, in place of what was found of them before.
    pub fn replace_left_mounts(&self, findings: Vec<Finding>) {
        *self.left_mounts() = findings;
    }

    /// Takes what was found in the region in place of what was found there before.
    pub fn replace_region(&self, findings: Vec<Finding>) {
        *self.region() = Region { found: findings, at: Some(Instant::now()) };
    }

    /// Takes what is wrong with the token and the account in place of what was wrong with them before.
    pub fn replace_account(&self, findings: Vec<Finding>) {
        *self.account() = findings;
    }

    /// All of them, the most severe first, each once.
    #[must_use]
    pub fn all(&self) -> Vec<Finding> {
        let here = self.figures.as_ref().map(|figures| figures.last()).unwrap_or_default();
        let here = here.into_iter().flat_map(|figures| figures.findings);
        let mut all: Vec<Finding> = self.region().found.clone();
        all.extend(here);
        all.extend(self.account().iter().cloned());
        all.extend(self.left_mounts().iter().cloned());
        all.sort_by(|one, other| other.severity.cmp(&one.severity).then_with(|| one.cmp(other)));
        all.dedup();
        all
    }

    fn account(&self) -> MutexGuard<'_, Vec<Finding>> {
        // As the others.
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left_mounts(&self) -> MutexGuard<'_, Vec<Finding>> {
        // As the other.
        self.left_mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn region(&self) -> MutexGuard<'_, Region> {
        // It is replaced as a whole.
        self.region.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The findings as a metric.
#[derive(Debug)]
pub struct FindingCollector(pub Arc<Findings>);

impl Collector for FindingCollector {
    /// Every reason is there, so that the first finding of one is an increase.
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let none = Reason::ALL.iter().map(|reason| ((*reason, reason.severity()), 0_i64));
        let mut counts: BTreeMap<_, i64> = none.collect();
        for finding in self.0.all() {
            let count = counts.entry((finding.reason, finding.severity)).or_default();
            *count = count.saturating_add(1);
        }
        let help = "What is wrong with the volumes here, and from a controller with those of the region, by reason and severity";
        let mut family = encoder.encode_descriptor("findings", help, None, MetricType::Gauge)?;
        for ((reason, severity), count) in counts {
            let labels = [("reason", reason.as_str().to_owned()), ("severity", severity.to_string())];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        let help = "How old the findings about the volumes of the region are; absent before the first look";
        let family = encoder.encode_descriptor("region_findings_age_seconds", help, None, MetricType::Gauge)?;
        let at = self.0.region().at;
        at.map_or(Ok(()), |at| ConstGauge::new(at.elapsed().as_secs_f64()).encode(family))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::diagnosis::Subject;

    #[test]
    fn the_latest_findings_are_shown_each_once_and_the_most_severe_first() {
        let find = |reason| Finding::new(reason, &Subject::Node, "so it is".to_owned(), "do this".to_owned());
        let findings = Findings::new(None);
        findings.replace_region(vec![find(Reason::ListedTwice)]);
        let (notice, critical) = (find(Reason::AttachedButUnused), find(Reason::DetachKeepsFailing));
        findings.replace_region(vec![notice.clone(), critical.clone(), critical.clone()]);
        assert_eq!(findings.all(), [critical.clone(), notice.clone()]);
        let account = find(Reason::TokenRejected);
        findings.replace_account(vec![account.clone()]);
        assert!(findings.all().contains(&account) && findings.all().contains(&notice));
        findings.replace_account(Vec::new());
        let left = find(Reason::MountLeftBehind);
        findings.replace_left_mounts(vec![left.clone()]);
        findings.replace_left_mounts(vec![left.clone()]);
        assert_eq!(findings.all(), [critical, left, notice]);
    }
}
