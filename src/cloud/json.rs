//! DigitalOcean's objects as they stand in its replies.
//!
//! Owns the shapes and their leniency: fields may be missing, lists may be `null`, unknown fields are ignored. It knows
//! no rules; the modules beside it turn these into checked types.
//!
//! Source: API reference, "Block Storage", "Block Storage Actions", "Snapshots", "Droplets" and "Account"; where real
//! replies differ from it, the field says so.

use std::num::NonZeroU32;

use log::warn;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

/// A field that is missing, `null` or there; missing and `null` are its default.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An entry of a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry<T> {
    Good(T),
    Odd(IgnoredAny),
}

/// A list that is missing, `null` or there. Entries that are not of its kind are none, so that one of them does not hide all
/// the others.
fn readable_entries<'de, D, T>(deserializer: D) -> Result<Vec<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let entries: Vec<Entry<T>> = or_default(deserializer)?;
    let read = |entry| match entry {
        Entry::Good(item) => Some(item),
        Entry::Odd(IgnoredAny) => None,
    };
    let all: Vec<Option<T>> = entries.into_iter().map(read).collect();
    let odd = all.iter().filter(|entry| entry.is_none()).count();
    if odd > 0 {
        warn!("left entries out of a list of DigitalOcean, which cannot be read: {odd} of {}", all.len());
    }
    Ok(all)
}

#[derive(Debug, Deserialize)]
pub(super) struct VolumeReply {
    pub(super) volume: Volume,
}

#[derive(Debug, Deserialize)]
pub(super) struct VolumesReply {
    #[serde(default, deserialize_with = "readable_entries")]
    pub(super) volumes: Vec<Option<Volume>>,
    #[serde(flatten)]
    pub(super) paging: Paging,
}

/// A volume. `size_gigabytes` is required: a volume of unknown size cannot be compared with what is asked.
#[derive(Debug, Deserialize)]
pub(super) struct Volume {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) size_gigabytes: u64,
    /// `null` in some replies for a volume that is not attached; absent in old ones.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) droplet_ids: Vec<u64>,
    #[serde(default)]
    pub(super) region: Option<Region>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) description: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) filesystem_type: String,
    /// Kept as text: nothing is decided from it, and some replies have fractions of a second.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) created_at: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Region {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) slug: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct ActionReply {
    pub(super) action: Action,
}

#[derive(Debug, Deserialize)]
pub(super) struct ActionsReply {
    #[serde(default, deserialize_with = "readable_entries")]
    pub(super) actions: Vec<Option<Action>>,
    #[serde(flatten)]
    pub(super) paging: Paging,
}

/// An action. Its `resource_id` is `null` or 0 in real replies, so it tells nothing and is not read.
#[derive(Debug, Deserialize)]
pub(super) struct Action {
    pub(super) id: u64,
    pub(super) status: String,
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub(super) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) started_at: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct SnapshotReply {
    pub(super) snapshot: Snapshot,
}

#[derive(Debug, Deserialize)]
pub(super) struct SnapshotsReply {
    #[serde(default, deserialize_with = "readable_entries")]
    pub(super) snapshots: Vec<Option<Snapshot>>,
    #[serde(flatten)]
    pub(super) paging: Paging,
}

#[derive(Debug, Deserialize)]
pub(super) struct Snapshot {
    /// A UUID for a volume's snapshot, a number for a droplet's.
    pub(super) id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) resource_id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) regions: Vec<String>,
    pub(super) min_disk_size: u64,
    /// What is billed; a fraction, and 0 while the snapshot is young.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) size_gigabytes: f64,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) created_at: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct DropletReply {
    pub(super) droplet: Droplet,
}

#[derive(Debug, Deserialize)]
pub(super) struct DropletsReply {
    #[serde(default, deserialize_with = "readable_entries")]
    pub(super) droplets: Vec<Option<Droplet>>,
    #[serde(flatten)]
    pub(super) paging: Paging,
}

#[derive(Debug, Deserialize)]
pub(super) struct Droplet {
    pub(super) id: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) status: String,
    #[serde(default)]
    pub(super) region: Option<Region>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) volume_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AccountReply {
    pub(super) account: Account,
}

#[derive(Debug, Deserialize)]
pub(super) struct Account {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) status: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) status_message: String,
    /// Not in the reference, but in real replies; 0 means that there is no limit.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) volume_limit: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct TagReply {
    pub(super) tag: Tag,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tag {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) resources: Tagged,
}

/// What carries a tag, as far as the token may see it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Tagged {
    #[serde(default)]
    pub(super) volume_snapshots: Option<Counted>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Counted {
    #[serde(default)]
    pub(super) count: Option<u64>,
}

/// What every list says about itself. A list on one page has `"links": {}`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Paging {
    #[serde(default, deserialize_with = "or_default")]
    links: Links,
    #[serde(default, deserialize_with = "or_default")]
    meta: Meta,
}

#[derive(Debug, Default, Deserialize)]
struct Links {
    #[serde(default, deserialize_with = "or_default")]
    pages: Pages,
}

#[derive(Debug, Default, Deserialize)]
struct Pages {
    #[serde(default)]
    next: Option<String>,
    #[serde(default)]
    last: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Meta {
    #[serde(default)]
    total: Option<u64>,
}

impl Paging {
    /// The number of the next page. Only the number is taken from the link: its host may be one that is not to be asked.
    pub(super) fn next(&self) -> Option<NonZeroU32> {
        self.links.pages.next.as_deref().and_then(page_number)
    }

    /// The number of the last page, when there is more than one.
    pub(super) fn last(&self) -> Option<NonZeroU32> {
        self.links.pages.last.as_deref().and_then(page_number)
    }

    /// How many entries there are, by the reply's own count.
    pub(super) fn total(&self) -> Option<u64> {
        self.meta.total
    }
}

fn page_number(link: &str) -> Option<NonZeroU32> {
    let (_, query) = link.split_once('?')?;
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    let value = query.split('&').find_map(|pair| pair.strip_prefix("page="))?;
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_entry_does_not_hide_the_others_of_its_list() {
        let good = r#"{"id":"1","name":"a","size_gigabytes":1}"#;
        let odd = r#"{"id":"2","name":"b","size_gigabytes":null}"#;
        let list = format!(r#"{{"volumes":[{odd},{good},7],"links":{{}},"meta":{{"total":3}}}}"#);
        let read: VolumesReply = serde_json::from_str(&list).unwrap();
        assert_eq!(read.volumes.iter().flatten().map(|volume| volume.id.as_str()).collect::<Vec<_>>(), ["1"]);
        assert_eq!((read.volumes.len(), read.paging.total()), (3, Some(3)));
        let actions = r#"{"actions":[{"id":1,"status":null},{"id":2,"status":"completed"}]}"#;
        let read: ActionsReply = serde_json::from_str(actions).unwrap();
        assert_eq!(read.actions.iter().flatten().map(|action| action.id).collect::<Vec<_>>(), [2]);
        let snapshots = r#"{"snapshots":[{"id":"1"},{"id":"2","min_disk_size":1}]}"#;
        let read: SnapshotsReply = serde_json::from_str(snapshots).unwrap();
        assert_eq!(read.snapshots.iter().flatten().count(), 1);
        for none in [r#"{"volumes":null}"#, "{}"] {
            assert!(serde_json::from_str::<VolumesReply>(none).unwrap().volumes.is_empty(), "{none}");
        }
        assert!(serde_json::from_str::<VolumesReply>(r#"{"volumes":7}"#).is_err());
    }

    #[test]
    fn fuzz_what_is_read_of_a_reply_is_what_it_says() {
        let seeds: [&[u8]; 6] = [
            include_bytes!("../../tests/fixtures/api/volumes.json"),
            include_bytes!("../../tests/fixtures/api/volume.json"),
            include_bytes!("../../tests/fixtures/api/action.json"),
            include_bytes!("../../tests/fixtures/api/snapshot.json"),
            include_bytes!("../../tests/fixtures/api/account.json"),
            include_bytes!("../../tests/fixtures/api/tag.json"),
        ];
        let words: [&[u8]; 10] = [
            b"null",
            b"\"droplet_ids\":",
            b"\"volumes\":[",
            b"[[[[[[[[",
            b"{}",
            b"\"size_gigabytes\":",
            b"?page=",
            b"\"",
            b"1e309",
            b"\\u0000",
        ];
        crate::fuzz::fuzz("api-replies", &seeds, &words, |bytes| {
            if let Ok(reply) = serde_json::from_slice::<VolumeReply>(bytes)
                && let Ok(volume) = crate::cloud::volume::Volume::try_from(reply.volume)
            {
                assert!(volume.droplets.iter().all(|droplet| droplet.get() > 0));
                let _size = volume.size.bytes();
            }
            if let Ok(reply) = serde_json::from_slice::<VolumesReply>(bytes) {
                let _volumes: Vec<_> =
                    reply.volumes.into_iter().flatten().map(crate::cloud::volume::Volume::try_from).collect();
            }
            if let Ok(reply) = serde_json::from_slice::<SnapshotReply>(bytes)
                && let Ok(snapshot) = crate::cloud::snapshot::Snapshot::try_from(reply.snapshot)
            {
                let _about = (snapshot.min_size.bytes(), snapshot.taken_at());
            }
            let _actions =
                (serde_json::from_slice::<ActionReply>(bytes), serde_json::from_slice::<ActionsReply>(bytes));
        });
    }
}
