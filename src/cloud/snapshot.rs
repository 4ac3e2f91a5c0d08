//! Snapshots of volumes: get, create, delete, list.
//!
//! Owns these calls and the type that a snapshot has in this program. Snapshots of droplets are not its business.

use std::time::SystemTime;

use serde_json::json;

use crate::cloud::page::{ApiPage, Page};
use crate::cloud::rate_limit::Class;
use crate::cloud::request::{ApiRequest, Method};
use crate::cloud::tag::Tag;
use crate::cloud::{ApiResult, Cloud, json as wire};
use crate::id::{BadId, SnapshotId, VolumeId};
use crate::region::Region;
use crate::size::Gib;

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: String,
    /// The volume it was taken of, which may be gone; `None` when DigitalOcean's text is no volume id.
    pub source: Option<VolumeId>,
    /// Where it can be restored.
    pub regions: Vec<Region>,
    /// The smallest volume it can be restored to, which is the source's size at the time.
    pub min_size: Gib,
    /// What is billed, in GiB with a fraction; 0 while the snapshot is young.
    pub billed_gib: f64,
    /// When it was taken, as DigitalOcean wrote it: RFC 3339, in some replies with fractions of a second.
    pub created_at: String,
    /// Its tags.
    pub tags: Vec<String>,
}

impl Snapshot {
    /// When it was taken; `None` when DigitalOcean's text is no time.
    #[must_use]
    pub fn taken_at(&self) -> Option<SystemTime> {
        self.created_at.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
    }
}

impl Cloud {
    /// Reads one snapshot.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::api::ApiErrorKind::NotFound) when there is none of that id.
    ///
    /// Source: API reference, "Retrieve an Existing Volume Snapshot".
    pub fn get_snapshot(&self, id: &SnapshotId) -> ApiResult<Snapshot> {
        self.get_snapshot_at(&format!("volumes/snapshots/{id}"), id)
    }

    /// Reads one snapshot by the path of snapshots of every kind.
    ///
    /// # Errors
    /// As [`Cloud::get_snapshot`].
    ///
    /// Source: API reference, "Retrieve an Existing Snapshot".
    pub fn get_snapshot_of_any_kind(&self, id: &SnapshotId) -> ApiResult<Snapshot> {
        self.get_snapshot_at(&format!("snapshots/{id}"), id)
    }

    fn get_snapshot_at(&self, path: &str, id: &SnapshotId) -> ApiResult<Snapshot> {
        let reply = self.send(&ApiRequest::new(Method::Get, path, Class::Essential))?;
        let wire::SnapshotReply { snapshot } = reply.json()?;
        let snapshot = Snapshot::try_from(snapshot).map_err(|bad| reply.unusable(&bad.to_string()))?;
        if snapshot.id == *id { Ok(snapshot) } else { Err(reply.unusable("it is about another snapshot")) }
    }

    /// Takes a snapshot of a volume as it is on DigitalOcean's disks at this moment.
    ///
    /// A second call makes a second snapshot or fails with `NameTaken`; which one, DigitalOcean does not say. A call whose
    /// reply was lost may have taken it: [`Cloud::list_snapshots_of`] tells.
    ///
    /// # Errors
    /// `NotFound` for the volume, `NameTaken` or `Conflict`, `SnapshotRateLimit` (one in ten minutes for each volume),
    /// `CapacityLimit`.
    ///
    /// Source: API reference, "Create Snapshot from a Volume".
    pub fn create_snapshot(&self, volume: &VolumeId, name: &str, tags: &[Tag]) -> ApiResult<Snapshot> {
        let mut body = json!({ "name": name });
        if let Some(fields) = body.as_object_mut().filter(|_| !tags.is_empty()) {
            fields.insert("tags".to_owned(), tags.iter().map(Tag::as_str).collect());
        }
        let path = format_args!("volumes/{volume}/snapshots");
        let reply = self.send(&ApiRequest::new(Method::Post, path, Class::Essential).json(&body))?;
        let wire::SnapshotReply { snapshot } = reply.json()?;
        Snapshot::try_from(snapshot).map_err(|bad| reply.unusable(&bad.to_string()))
    }

    /// Deletes a snapshot. This cannot be undone. A second call fails with `NotFound`.
    ///
    /// # Errors
    /// `NotFound`.
    ///
    /// Source: API reference, "Delete a Volume Snapshot".
    pub fn delete_snapshot(&self, id: &SnapshotId) -> ApiResult<()> {
        let path = format_args!("volumes/snapshots/{id}");
        self.send(&ApiRequest::new(Method::Delete, path, Class::Essential))?.nothing()
    }

    /// Lists one page of the account's volume snapshots, of all regions.
    ///
    /// Source: API reference, "List All Snapshots", filter by type.
    pub fn list_snapshots(&self, page: Page) -> ApiResult<ApiPage<Snapshot>> {
        let call = ApiRequest::new(Method::Get, "snapshots", Class::Deferrable).query("resource_type", "volume");
        self.snapshots(call, page)
    }

    /// Lists one page of the snapshots of one volume.
    ///
    /// # Errors
    /// `NotFound` when there is no such volume; its snapshots may well exist, see [`Cloud::list_snapshots`].
    ///
    /// Source: API reference, "List Snapshots for a Volume".
    pub fn list_snapshots_of(&self, volume: &VolumeId, page: Page) -> ApiResult<ApiPage<Snapshot>> {
        self.snapshots(
            ApiRequest::new(Method::Get, format_args!("volumes/{volume}/snapshots"), Class::Deferrable),
            page,
        )
    }

    fn snapshots(&self, call: ApiRequest, page: Page) -> ApiResult<ApiPage<Snapshot>> {
        let wire::SnapshotsReply { snapshots, paging } = self.send(&page.ask(call))?.json()?;
        Ok(ApiPage::new(snapshots.into_iter().map(|snapshot| snapshot.and_then(readable)), page, &paging))
    }
}

impl TryFrom<wire::Snapshot> for Snapshot {
    type Error = BadId;

    fn try_from(wire: wire::Snapshot) -> Result<Snapshot, BadId> {
        Ok(Snapshot {
            id: SnapshotId::parse(&wire.id)?,
            name: wire.name,
            source: VolumeId::parse(&wire.resource_id).ok(),
            regions: wire.regions.iter().filter_map(|slug| Region::parse(slug).ok()).collect(),
            min_size: Gib(wire.min_disk_size),
            billed_gib: wire.size_gigabytes,
            created_at: wire.created_at,
            tags: wire.tags,
        })
    }
}

fn readable(wire: wire::Snapshot) -> Option<Snapshot> {
    Snapshot::try_from(wire).inspect_err(|bad| log::warn!("left a snapshot out of the list: {bad}")).ok()
}
