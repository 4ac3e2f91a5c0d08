//! What the account's token may do, where a test gives it less than everything.
//!
//! Owns the scopes that each endpoint asks for. Written from the reference a second time, so that an error in the program's own
//! table shows.
//!
//! Source: DigitalOcean's API reference, the `security` of each operation; "Tag a Resource" and `tags_array.yml` for tags.

use std::collections::BTreeSet;

use super::endpoint::Endpoint;

/// Scopes, in the words of DigitalOcean's control panel.
pub type Scopes = BTreeSet<&'static str>;

/// The scopes that a request asks for, all of them; `has_tags` says whether it is to create something with tags.
pub fn needed(endpoint: Endpoint, has_tags: bool) -> Vec<&'static str> {
    let mut needed = match endpoint {
        Endpoint::ListVolumes | Endpoint::GetVolume => vec!["block_storage:read"],
        Endpoint::CreateVolume => vec!["block_storage:create"],
        Endpoint::DeleteVolume | Endpoint::DeleteVolumeByName => vec!["block_storage:delete"],
        Endpoint::ActOnVolume | Endpoint::ActOnVolumeByName => vec!["block_storage_action:create"],
        Endpoint::ListVolumeActions | Endpoint::GetVolumeAction => vec!["block_storage_action:read"],
        Endpoint::GetVolumeSnapshot | Endpoint::ListVolumeSnapshots => vec!["block_storage_snapshot:read"],
        Endpoint::CreateSnapshot => vec!["block_storage_snapshot:create"],
        Endpoint::DeleteVolumeSnapshot | Endpoint::DeleteSnapshot => vec!["block_storage_snapshot:delete"],
        Endpoint::ListSnapshots | Endpoint::GetSnapshot => vec!["snapshot:read", "block_storage_snapshot:read"],
        Endpoint::GetAccount => vec!["account:read"],
        Endpoint::ListActions | Endpoint::GetAction => vec!["actions:read"],
        Endpoint::ListDroplets | Endpoint::GetDroplet => vec!["droplet:read"],
        Endpoint::CreateTag => vec!["tag:create"],
        Endpoint::ListTags | Endpoint::GetTag => vec!["tag:read"],
        Endpoint::TagResources => vec!["tag:create", "block_storage:update"],
        Endpoint::UntagResources => vec!["tag:delete", "block_storage:update"],
        Endpoint::ListRegions => vec!["regions:read"],
    };
    if has_tags {
        needed.push("tag:create");
    }
    needed
}
