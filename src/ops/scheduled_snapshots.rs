//! How old the newest snapshot is of each volume of which `do-csi-plugin snapshot` takes them, as a metric.
//!
//! Owns what was read last. The moment is told and not the age, so that it is right however old the reading is.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::id::VolumeId;

/// The newest such snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestScheduled {
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// When the snapshot was taken.
    pub taken_at: SystemTime,
}

/// What was read last.
#[derive(Debug, Default)]
pub struct ScheduledSnapshots(Mutex<Vec<NewestScheduled>>);

impl ScheduledSnapshots {
    /// Takes what was read in place of what was read before.
    pub fn replace(&self, newest: Vec<NewestScheduled>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = newest;
    }
}

/// The metric.
#[derive(Debug)]
pub struct ScheduledCollector(pub std::sync::Arc<ScheduledSnapshots>);

impl Collector for ScheduledCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help =
            "When the newest snapshot was taken that `do-csi-plugin snapshot` took of the volume, of a controller";
        let mut family =
            encoder.encode_descriptor("scheduled_snapshot_timestamp_seconds", help, None, MetricType::Gauge)?;
        let newest = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for one in newest {
            let labels = [("volume", one.volume.to_string()), ("name", one.name)];
            let at = one.taken_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            ConstGauge::new(at).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
