//! Volumes: get, find by name, create, delete, list.
//!
//! Owns these calls and the type that a volume has in this program. It does not decide whether a volume that was found
//! is the one that somebody wants.

use serde_json::json;

use crate::cloud::page::{ApiPage, Page};
use crate::cloud::rate_limit::Class;
use crate::cloud::request::{ApiRequest, Method};
use crate::cloud::snapshot::Snapshot;
use crate::cloud::tag::Tag;
use crate::cloud::{ApiResult, Cloud, json as wire};
use crate::id::{BadId, DropletId, SnapshotId, VolumeId, VolumeName};
use crate::region::Region;
use crate::size::Gib;

/// A volume as DigitalOcean describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name; one volume in a region has it.
    pub name: VolumeName,
    /// Its size.
    pub size: Gib,
    /// Where it is; some old replies do not say.
    pub region: Option<Region>,
    /// The droplets that have it: none or one, as far as anybody has seen. It can lag behind a finished action, and
    /// still names a droplet while a detach is on its way.
    pub droplets: Vec<DropletId>,
    /// Free text.
    pub description: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// The file system that DigitalOcean made on it at creation, empty for none: not what is on it now.
    pub filesystem: String,
    /// When it was created, as DigitalOcean wrote it.
    pub created_at: String,
}

/// A volume to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name. DigitalOcean takes `^[a-z][a-z0-9-]{0,63}$` and refuses the rest.
    pub name: VolumeName,
    /// Its size; from a snapshot, the snapshot's.
    pub size: Gib,
    /// Where it shall be; a snapshot has to be there too.
    pub region: Region,
    /// Free text of up to 1,024 bytes.
    pub description: String,
    /// Tags, created on the way when new.
    pub tags: Vec<Tag>,
    /// What to fill it with.
    pub snapshot: Option<SnapshotId>,
}

impl NewVolume {
    /// The same volume, filled with a snapshot's content and of its size. DigitalOcean gives it that size whatever is
    /// sent, says the reference, and does not say whether it takes a smaller one.
    #[must_use]
    pub fn copied_from(self, snapshot: &Snapshot) -> NewVolume {
        NewVolume { size: snapshot.min_size, snapshot: Some(snapshot.id.clone()), ..self }
    }
}

impl Cloud {
    /// Reads one volume.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::api::ApiErrorKind::NotFound) when there is none of that id.
    ///
    /// Source: API reference, "Retrieve an Existing Block Storage Volume".
    pub fn get_volume(&self, id: &VolumeId) -> ApiResult<Volume> {
        let reply = self.send(&ApiRequest::new(Method::Get, format_args!("volumes/{id}"), Class::Essential))?;
        let wire::VolumeReply { volume } = reply.json()?;
        let volume = Volume::try_from(volume).map_err(|bad| reply.unusable(&bad.to_string()))?;
        if volume.id == *id { Ok(volume) } else { Err(reply.unusable("it is about another volume")) }
    }

    /// Looks for the volume of a name in a region; at most one can have it.
    ///
    /// # Errors
    /// `BadReply` when it may be an entry of the list that cannot be read: no such volume is `None`.
    ///
    /// Source: API reference, "List All Block Storage Volumes", filter by name and region. That the filter matches whole
    /// names is not documented, so they are compared here.
    pub fn find_volume(&self, name: &VolumeName, region: &Region) -> ApiResult<Option<Volume>> {
        let call =
            ApiRequest::new(Method::Get, "volumes", Class::Essential).query("name", name).query("region", region);
        let reply = self.send(&Page::first().ask(call))?;
        let wire::VolumesReply { volumes, .. } = reply.json()?;
        let is_asked = |volume: &wire::Volume| {
            volume.name == name.as_str() && volume.region.as_ref().is_none_or(|there| there.slug == region.as_str())
        };
        let has_odd = volumes.iter().any(Option::is_none);
        match volumes.into_iter().flatten().find(is_asked) {
            Some(found) => Volume::try_from(found).map(Some).map_err(|bad| reply.unusable(&bad.to_string())),
            None if has_odd => Err(reply.unusable("an entry of the list cannot be read")),
            None => Ok(None),
        }
    }

    /// Creates a volume without a file system.
    ///
    /// A second call with the same name and region fails with `NameTaken`. A call whose reply was lost may have created
    /// the volume: [`Cloud::find_volume`] tells.
    ///
    /// # Errors
    /// `NameTaken` or `Conflict`, `InvalidName`, `InvalidSize`, `CapacityLimit`, `NoStorageInRegion`; `Unprocessable`
    /// for reasons that DigitalOcean words freely.
    ///
    /// Source: API reference, "Create a New Block Storage Volume". No `filesystem_type` is sent, because droplets
    /// mount volumes that were formatted at creation on their own.
    pub fn create_volume(&self, new: &NewVolume) -> ApiResult<Volume> {
        let mut body = json!({
            "name": new.name.as_str(),
            "size_gigabytes": new.size.0,
            "region": new.region.as_str(),
            "description": new.description,
        });
        if let Some(fields) = body.as_object_mut() {
            if !new.tags.is_empty() {
                fields.insert("tags".to_owned(), new.tags.iter().map(Tag::as_str).collect());
            }
            if let Some(snapshot) = &new.snapshot {
                fields.insert("snapshot_id".to_owned(), snapshot.as_str().into());
            }
        }
        let reply = self.send(&ApiRequest::new(Method::Post, "volumes", Class::Essential).json(&body))?;
        let wire::VolumeReply { volume } = reply.json()?;
        Volume::try_from(volume).map_err(|bad| reply.unusable(&bad.to_string()))
    }

    /// Deletes a volume with all its data. This cannot be undone.
    ///
    /// A second call fails with `NotFound`.
    ///
    /// # Errors
    /// `NotFound`; `VolumeAttached` while a droplet has it, and for a moment after.
    ///
    /// Source: API reference, "Delete a Block Storage Volume".
    pub fn delete_volume(&self, id: &VolumeId) -> ApiResult<()> {
        self.send(&ApiRequest::new(Method::Delete, format_args!("volumes/{id}"), Class::Essential))?.nothing()
    }

    /// Lists one page of the volumes of a region, or of all.
    ///
    /// Entries that are no volumes by this program's rules are left out with a warning, so that one of them does not hide
    /// all the others.
    ///
    /// Source: API reference, "List All Block Storage Volumes".
    pub fn list_volumes(&self, region: Option<&Region>, page: Page) -> ApiResult<ApiPage<Volume>> {
        let call = page.ask(ApiRequest::new(Method::Get, "volumes", Class::Deferrable));
        let call = match region {
            Some(region) => call.query("region", region),
            None => call,
        };
        self.volumes(&call, page)
    }

    /// The same of all regions, for a call that goes on only when it knows whether a volume is among them.
    ///
    /// Source: as [`Cloud::list_volumes`].
    pub fn list_volumes_to_find_one(&self, page: Page) -> ApiResult<ApiPage<Volume>> {
        self.volumes(&page.ask(ApiRequest::new(Method::Get, "volumes", Class::Essential)), page)
    }

    fn volumes(&self, call: &ApiRequest, page: Page) -> ApiResult<ApiPage<Volume>> {
        let wire::VolumesReply { volumes, paging } = self.send(call)?.json()?;
        Ok(ApiPage::new(volumes.into_iter().map(|volume| volume.and_then(readable)), page, &paging))
    }
}

impl Volume {
    /// The same volume without what a list does not show: of thousands, that is much memory.
    #[must_use]
    pub fn without_details(self) -> Volume {
        Volume { tags: Vec::new(), filesystem: String::new(), created_at: String::new(), ..self }
    }

    /// A volume for tests, on these droplets.
    #[cfg(test)]
    pub(crate) fn fake(droplets: &[u64]) -> Volume {
        Volume {
            id: VolumeId::parse("506f78a4-8f00-11f0-9a11-0a58ac14d1e2").expect("an id"),
            name: VolumeName::parse("blog").expect("a name"),
            size: Gib(1),
            region: None,
            droplets: droplets.iter().filter_map(|id| DropletId::new(*id)).collect(),
            description: String::new(),
            tags: Vec::new(),
            filesystem: String::new(),
            created_at: String::new(),
        }
    }

    /// Whether a droplet has it, as far as this reply knows.
    #[must_use]
    pub fn is_attached_to(&self, droplet: DropletId) -> bool {
        self.droplets.contains(&droplet)
    }
}

impl TryFrom<wire::Volume> for Volume {
    type Error = BadId;

    fn try_from(wire: wire::Volume) -> Result<Volume, BadId> {
        Ok(Volume {
            id: VolumeId::parse(&wire.id)?,
            name: VolumeName::parse(&wire.name)?,
            size: Gib(wire.size_gigabytes),
            region: wire.region.and_then(|region| Region::parse(&region.slug).ok()),
            droplets: wire.droplet_ids.into_iter().filter_map(DropletId::new).collect(),
            description: wire.description,
            tags: wire.tags,
            filesystem: wire.filesystem_type,
            created_at: wire.created_at,
        })
    }
}

fn readable(wire: wire::Volume) -> Option<Volume> {
    Volume::try_from(wire).inspect_err(|bad| log::warn!("left a volume out of the list: {bad}")).ok()
}
