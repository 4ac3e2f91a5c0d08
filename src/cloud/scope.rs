//! Which scope a token must have for a request.
//!
//! Owns that table, so that a refusal can name what is missing: DigitalOcean's own words do not.
//!
//! Source: DigitalOcean's API reference, the `security` of each operation. Tags on what exists also take the update of it, as the
//! text on scopes says.

use crate::cloud::request::{ApiRequest, Method};

/// The scope or scopes, in the words of DigitalOcean's control panel.
pub(super) fn needed_for(call: &ApiRequest) -> &'static str {
    let path = call.target().split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').skip(1).collect();
    match (call.method(), parts.as_slice()) {
        (Method::Get, ["volumes", _, "actions", ..]) => "block_storage_action:read",
        (Method::Post, ["volumes", .., "actions"]) => "block_storage_action:create",
        (Method::Get, ["volumes", _, "snapshots"] | ["volumes", "snapshots", _]) => "block_storage_snapshot:read",
        (Method::Post, ["volumes", _, "snapshots"]) => "block_storage_snapshot:create",
        (Method::Delete, ["volumes", "snapshots", _] | ["snapshots", _]) => "block_storage_snapshot:delete",
        (Method::Get, ["volumes", ..]) => "block_storage:read",
        (Method::Post, ["volumes"]) => "block_storage:create (and tag:create for its tags)",
        (Method::Delete, ["volumes", ..]) => "block_storage:delete",
        (Method::Get, ["snapshots", ..]) => "snapshot:read and block_storage_snapshot:read",
        (Method::Get, ["actions", ..]) => "actions:read",
        (Method::Get, ["droplets", ..]) => "droplet:read",
        (Method::Get, ["account"]) => "account:read",
        (Method::Get, ["tags", ..]) => "tag:read",
        (Method::Post, ["tags", _, "resources"]) => "tag:create and block_storage:update",
        (Method::Post, ["tags"]) => "tag:create",
        (Method::Delete, ["tags", ..]) => "tag:delete and block_storage:update",
        (Method::Get | Method::Post | Method::Delete, _) => "for this request",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::rate_limit::Class;

    #[test]
    fn each_request_of_this_program_has_its_scope() {
        for (method, path, want) in [
            (Method::Get, "account", "account:read"),
            (Method::Get, "volumes", "block_storage:read"),
            (Method::Get, "volumes?name=a&region=b", "block_storage:read"),
            (Method::Get, "volumes/ID", "block_storage:read"),
            (Method::Post, "volumes", "block_storage:create (and tag:create for its tags)"),
            (Method::Delete, "volumes/ID", "block_storage:delete"),
            (Method::Get, "volumes/ID/actions", "block_storage_action:read"),
            (Method::Get, "volumes/ID/actions/7", "block_storage_action:read"),
            (Method::Post, "volumes/ID/actions", "block_storage_action:create"),
            (Method::Get, "volumes/ID/snapshots?page=2", "block_storage_snapshot:read"),
            (Method::Post, "volumes/ID/snapshots", "block_storage_snapshot:create"),
            (Method::Get, "volumes/snapshots/ID", "block_storage_snapshot:read"),
            (Method::Delete, "volumes/snapshots/ID", "block_storage_snapshot:delete"),
            (Method::Get, "snapshots", "snapshot:read and block_storage_snapshot:read"),
            (Method::Get, "droplets/7", "droplet:read"),
            (Method::Post, "tags", "tag:create"),
            (Method::Get, "tags/x", "tag:read"),
            (Method::Post, "tags/x/resources", "tag:create and block_storage:update"),
            (Method::Delete, "tags/x/resources", "tag:delete and block_storage:update"),
        ] {
            assert_eq!(needed_for(&ApiRequest::new(method, path, Class::Essential)), want, "{method:?} {path}");
        }
    }
}
