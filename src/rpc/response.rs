//! What the controller found and did, as CSI messages.
//!
//! Owns the step from this program's types to the wire, for the Controller service. It decides nothing.

use std::time::SystemTime;

use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::well_known_types::wrappers::Int64Value;

use crate::cloud::snapshot::Snapshot;
use crate::cloud::volume::Volume;
use crate::controller::capacity::Room;
use crate::controller::condition::{Examined, plan_listed_condition};
use crate::controller::description::source_of;
use crate::controller::whole_list::ListPage;
use crate::ops::diagnosis::Condition;
use crate::proto::csi;
use crate::region::Region;
use crate::request::query::ListStart;
use crate::request::volume::{REGION_KEY, Source};
use crate::size::Gib;

/// A volume; its size is the true one, whatever was asked.
pub(super) fn volume(volume: &Volume) -> csi::Volume {
    csi::Volume {
        volume_id: volume.id.to_string(),
        capacity_bytes: volume.size.bytes().wire(),
        accessible_topology: volume.region.iter().map(topology).collect(),
        content_source: source_of(&volume.description).map(source).into(),
        ..Default::default()
    }
}

/// The topology of everything in one region: exactly one segment, as Nomad before 1.9.4 compares for equality.
#[must_use]
pub(super) fn topology(region: &Region) -> csi::Topology {
    csi::Topology { segments: [(REGION_KEY.to_owned(), region.to_string())].into(), ..Default::default() }
}

fn source(from: Source) -> csi::VolumeContentSource {
    use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};

    let type_ = match from {
        Source::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_string(), ..Default::default() }),
        Source::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_string(), ..Default::default() }),
    };
    csi::VolumeContentSource { type_: Some(type_), ..Default::default() }
}

/// Everything that was asked, echoed, when all of it can be had; Nomad 0.11 compares it field by field.
pub(super) fn validated(
    wire: csi::ValidateVolumeCapabilitiesRequest,
    refusal: Option<String>,
) -> csi::ValidateVolumeCapabilitiesResponse {
    use csi::validate_volume_capabilities_response::Confirmed;

    match refusal {
        Some(message) => csi::ValidateVolumeCapabilitiesResponse { message, ..Default::default() },
        None => {
            let confirmed = Confirmed {
                volume_context: wire.volume_context,
                volume_capabilities: wire.volume_capabilities,
                parameters: wire.parameters,
                mutable_parameters: wire.mutable_parameters,
                ..Default::default()
            };
            csi::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed).into(), ..Default::default() }
        }
    }
}

/// A page of volumes.
pub(super) fn listed_volumes(page: &ListPage<Volume>) -> csi::ListVolumesResponse {
    use csi::list_volumes_response::{Entry, VolumeStatus};

    let entry = |found: &Volume| {
        let status = VolumeStatus {
            published_node_ids: node_ids(found),
            volume_condition: Some(condition(plan_listed_condition(found))).into(),
            ..Default::default()
        };
        Entry { volume: Some(volume(found)).into(), status: Some(status).into(), ..Default::default() }
    };
    csi::ListVolumesResponse {
        entries: page.items.iter().map(entry).collect(),
        next_token: token(page.next.as_ref()),
        ..Default::default()
    }
}

/// One volume with its condition.
pub(super) fn examined(found: &Examined) -> csi::ControllerGetVolumeResponse {
    let status = csi::controller_get_volume_response::VolumeStatus {
        published_node_ids: node_ids(&found.volume),
        volume_condition: Some(condition(found.condition())).into(),
        ..Default::default()
    };
    csi::ControllerGetVolumeResponse {
        volume: Some(volume(&found.volume)).into(),
        status: Some(status).into(),
        ..Default::default()
    }
}

fn node_ids(volume: &Volume) -> Vec<String> {
    volume.droplets.iter().map(ToString::to_string).collect()
}

/// A volume's condition, which callers before CSI 1.13 read.
pub(super) fn condition(seen: Condition) -> csi::VolumeCondition {
    csi::VolumeCondition { abnormal: seen.is_abnormal, message: seen.message, ..Default::default() }
}

/// The room for volumes.
pub(super) fn room(room: Room) -> csi::GetCapacityResponse {
    let bytes = |size: Gib| Some(Int64Value { value: size.bytes().wire(), ..Default::default() }).into();
    csi::GetCapacityResponse {
        available_capacity: room.available.bytes().wire(),
        maximum_volume_size: bytes(room.limits.max),
        minimum_volume_size: bytes(room.limits.min),
        ..Default::default()
    }
}

/// A snapshot. It is ready as soon as DigitalOcean shows it: there is no sign by which an unfinished one could be told.
pub(super) fn snapshot(found: &Snapshot) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: found.min_size.bytes().wire(),
        snapshot_id: found.id.to_string(),
        source_volume_id: found.source.as_ref().map(ToString::to_string).unwrap_or_default(),
        creation_time: found.taken_at().and_then(timestamp).into(),
        accessible_topology: found.regions.iter().map(topology).collect(),
        ready_to_use: true,
        ..Default::default()
    }
}

fn timestamp(at: SystemTime) -> Option<Timestamp> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(since.as_secs()).ok()?;
    Some(Timestamp { seconds, nanos: since.subsec_nanos().cast_signed(), ..Default::default() })
}

/// A page of snapshots.
pub(super) fn listed_snapshots(page: &ListPage<Snapshot>) -> csi::ListSnapshotsResponse {
    use csi::list_snapshots_response::Entry;

    let entry = |found: &Snapshot| Entry { snapshot: Some(snapshot(found)).into(), ..Default::default() };
    csi::ListSnapshotsResponse {
        entries: page.items.iter().map(entry).collect(),
        next_token: token(page.next.as_ref()),
        ..Default::default()
    }
}

/// The token of the next page; empty: there is none.
pub(super) fn token(next: Option<&ListStart>) -> String {
    next.map(ToString::to_string).unwrap_or_default()
}
