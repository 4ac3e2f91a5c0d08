//! The figures of the volumes as metrics.
//!
//! Owns the names of these metrics. Their labels are the volume's id, its name and who has it; a droplet has 15 volumes at
//! most, which bounds the series. Every name is there also where no volume is.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::host::io_counters::IoCounters;
use crate::ops::figures::{FigureReader, Figures};

/// Writes what was read last.
#[derive(Debug)]
pub struct FigureCollector(pub Arc<FigureReader>);

type Labels = [(&'static str, String); 3];
type Gauge = (&'static str, &'static str, fn(&Figures) -> Option<f64>);
type Counter = (&'static str, &'static str, fn(&IoCounters) -> f64);

/// Numbers of bytes are exact in a float up to eight petabytes.
#[expect(clippy::cast_precision_loss, reason = "no volume has so many bytes that it matters")]
fn number(value: u64) -> f64 {
    value as f64
}

fn seconds(ms: u64) -> f64 {
    number(ms) / 1000.0
}

fn flag(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}

const GAUGES: [Gauge; 9] = [
    ("volume_size_bytes", "Size of a volume's file system, or of the raw disk", |f| f.space().size.map(number)),
    ("volume_used_bytes", "Bytes that are taken in a volume's file system", |f| {
        f.space().bytes.map(|bytes| number(bytes.used))
    }),
    ("volume_available_bytes", "Bytes that an ordinary user can still write to a volume", |f| {
        f.space().bytes.map(|bytes| number(bytes.available))
    }),
    ("volume_inodes", "Files and directories that a volume can hold; absent without a limit", |f| {
        f.space().inodes.map(|inodes| number(inodes.total))
    }),
    ("volume_inodes_used", "Files and directories that a volume holds", |f| {
        f.space().inodes.map(|inodes| number(inodes.used))
    }),
    ("volume_read_only", "1 when nothing can be written to a volume", |f| Some(flag(f.is_read_only()))),
    ("volume_answers", "0 when the mount of a volume does not answer, or only with errors", |f| {
        Some(flag(f.answers()))
    }),
    ("volume_figures_age_seconds", "How old the size, bytes and inodes of a mounted volume are", |f| {
        f.age().map(|age| age.as_secs_f64())
    }),
    ("volume_io_in_progress", "Reads and writes of a volume's disk that have not ended", |f| {
        f.io.map(|io| number(io.in_flight))
    }),
];

const COUNTERS: [Counter; 7] = [
    ("volume_reads", "Reads of a volume's disk that ended since it was attached", |io| number(io.reads)),
    ("volume_read_bytes", "Bytes read from a volume's disk", |io| number(io.read_bytes)),
    ("volume_read_seconds", "Time that reads of a volume's disk took, added up", |io| seconds(io.read_ms)),
    ("volume_writes", "Writes to a volume's disk that ended since it was attached", |io| number(io.writes)),
    ("volume_written_bytes", "Bytes written to a volume's disk", |io| number(io.written_bytes)),
    ("volume_write_seconds", "Time that writes to a volume's disk took, added up", |io| seconds(io.write_ms)),
    ("volume_io_seconds", "Time in which a volume's disk had something to do", |io| seconds(io.busy_ms)),
];

/// What a series of a volume is told by.
fn labels(figures: &Figures) -> Labels {
    let id = figures.volume.id.clone().unwrap_or_default();
    [("volume", id), ("name", figures.name()), ("alloc", figures.users().join(","))]
}

impl Collector for FigureCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let volumes: Vec<(Figures, Labels)> =
            self.0.last().into_iter().map(|figures| (figures.clone(), labels(&figures))).collect();
        for (name, help, value) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (figures, labels) in &volumes {
                if let Some(value) = value(figures) {
                    ConstGauge::new(value).encode(family.encode_family(labels)?)?;
                }
            }
        }
        for (name, help, value) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (figures, labels) in &volumes {
                if let Some(io) = &figures.io {
                    ConstCounter::new(value(io)).encode(family.encode_family(labels)?)?;
                }
            }
        }
        encode_info(&mut encoder, &volumes)
    }
}

fn encode_info(encoder: &mut DescriptorEncoder<'_>, volumes: &[(Figures, Labels)]) -> fmt::Result {
    let help = "1 for each volume here, with its file system and the kernel's name of its disk";
    let mut family = encoder.encode_descriptor("volume_info", help, None, MetricType::Gauge)?;
    for (figures, [id, name, alloc]) in volumes {
        let disk = figures.volume.disk.as_ref().map(|disk| disk.node.display().to_string()).unwrap_or_default();
        let (filesystem, disk) = (("filesystem", figures.filesystem().to_owned()), ("disk", disk));
        let all = [id.clone(), name.clone(), alloc.clone(), filesystem, disk];
        ConstGauge::new(1_i64).encode(family.encode_family(&all)?)?;
    }
    Ok(())
}
