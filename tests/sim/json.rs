//! The JSON of replies, field by field as DigitalOcean's schema has it.
//!
//! Owns names and shapes. It decides nothing and is checked against the samples in `tests/fixtures/api`.

use serde_json::{Map, Value, json};

use super::clock::rfc3339;
use super::config::Switches;
use super::refusal::Refusal;
use super::state::{Action, ActionKind, ActionStatus, Droplet, DropletStatus, Snapshot, Volume};
use super::tags::Tagged;

/// Host of the links in paged replies. It is the real one, as it would be behind a proxy: a client that follows it
/// instead of taking the page number from it leaves the simulator and fails its test.
const LINK_BASE: &str = "https://api.digitalocean.com";

/// `{"id", "message", "request_id"}` (`shared/models/error.yml`).
pub fn error(refusal: &Refusal, request_id: &str) -> Value {
    json!({"id": refusal.id, "message": refusal.message, "request_id": request_id})
}

/// A volume (`volume_full.yml`).
pub fn volume(volume: &Volume, switches: &Switches) -> Value {
    let droplets: Vec<Value> = volume.listed_on.iter().map(|droplet| json!(droplet)).collect();
    json!({
        "id": volume.id,
        "name": volume.name,
        "region": region(&volume.region, true),
        "size_gigabytes": volume.listed_gigabytes,
        "description": volume.description,
        "filesystem_type": volume.filesystem_type,
        "filesystem_label": volume.filesystem_label,
        "created_at": rfc3339(volume.created_at),
        "droplet_ids": array(droplets, switches),
        "tags": tags(&volume.tags, switches),
    })
}

/// An action (`action.yml`, `volumeAction.yml`; `backend` and `null` as in rexray issue 1368).
pub fn action(action: &Action, switches: &Switches) -> Value {
    let kind = match action.kind {
        ActionKind::Attach => "attach_volume",
        ActionKind::Detach => "detach_volume",
        ActionKind::Resize if switches.resize_type_is_resize_volume => "resize_volume",
        ActionKind::Resize => "resize",
    };
    let status = match action.status {
        ActionStatus::InProgress => "in-progress",
        ActionStatus::Completed => "completed",
        ActionStatus::Errored => "errored",
    };
    json!({
        "id": action.id,
        "status": status,
        "type": kind,
        "started_at": rfc3339(action.started_at),
        "completed_at": action.completed_at.filter(|_| action.status != ActionStatus::InProgress).map(rfc3339),
        "resource_id": if switches.resource_id_is_zero { json!(0) } else { Value::Null },
        "resource_type": if switches.resource_type_is_volume { "volume" } else { "backend" },
        "region": region(&action.region, true),
        "region_slug": action.region,
    })
}

/// A snapshot (`snapshots.yml`).
pub fn snapshot(snapshot: &Snapshot, switches: &Switches) -> Value {
    json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "created_at": rfc3339(snapshot.created_at),
        "regions": [snapshot.region],
        "resource_id": snapshot.volume,
        "resource_type": "volume",
        "min_disk_size": snapshot.min_disk_size,
        "size_gigabytes": snapshot.size_gigabytes,
        "tags": tags(&snapshot.tags, switches),
    })
}

/// The account (`account.yml`; `volume_limit` is missing there and real, godo `account.go`).
pub fn account(volume_limit: usize) -> Value {
    json!({
        "droplet_limit": 25,
        "floating_ip_limit": 3,
        "reserved_ip_limit": 3,
        "volume_limit": volume_limit,
        "email": "sammy@example.com",
        "name": "Sammy the Shark",
        "uuid": "b6fr89dbf6d9156cace5f3c78dc9851d957381ef",
        "email_verified": true,
        "status": "active",
        "status_message": "",
        "team": {"uuid": "5df3e3004a17e242b7c20ca6c9fc25b701a47ece", "name": "My Team"},
    })
}

/// A droplet (`droplet.yml`): what concerns volumes is real, the rest is there because it is required.
pub fn droplet(droplet: &Droplet, volume_ids: &[String]) -> Value {
    let status = match droplet.status {
        DropletStatus::New => "new",
        DropletStatus::Active => "active",
        DropletStatus::Off => "off",
        DropletStatus::Archive => "archive",
    };
    json!({
        "id": droplet.id,
        "name": droplet.name,
        "status": status,
        "locked": false,
        "volume_ids": volume_ids,
        "region": region(&droplet.region, true),
        "tags": [],
        "memory": 1024,
        "vcpus": 1,
        "disk": 25,
        "created_at": "2026-07-01T08:00:00Z",
        "features": [],
        "backup_ids": [],
        "next_backup_window": null,
        "snapshot_ids": [],
        "image": {"id": 7_555_620, "name": "12 x64", "distribution": "Debian", "slug": "debian-12-x64",
            "public": true, "regions": [droplet.region], "type": "base", "min_disk_size": 7},
        "size": {"slug": "s-1vcpu-1gb", "memory": 1024, "vcpus": 1, "disk": 25, "transfer": 1.0,
            "price_monthly": 6.0, "price_hourly": 0.00893, "regions": [droplet.region],
            "available": true, "description": "Basic"},
        "size_slug": "s-1vcpu-1gb",
        "networks": {"v4": [], "v6": []},
    })
}

/// A tag (`tags.yml`; its `imgages` is a slip of the schema, godo reads `images`).
pub fn tag(name: &str, tagged: Tagged) -> Value {
    let Tagged { volumes, volume_snapshots } = tagged;
    json!({"name": name, "resources": {
        "count": volumes + volume_snapshots,
        "droplets": {"count": 0},
        "images": {"count": 0},
        "volumes": {"count": volumes},
        "volume_snapshots": {"count": volume_snapshots},
        "databases": {"count": 0},
    }})
}

/// The reply to a tag name that is none, which has a shape of its own (`tags_create.yml`).
pub fn tag_error(name: &str) -> Value {
    json!({"error": format!("Tag {name} is invalid"), "messages": ["Name is invalid"], "root_causes": []})
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    /// From 1.
    pub page: usize,
    /// 1 to 200.
    pub per_page: usize,
}

/// One page of a list with `links` and `meta` (`shared/pages.yml`, `shared/meta.yml`).
///
/// `path` and `filters` are what the links repeat; `total` is what `meta.total` says.
pub fn page(key: &str, items: &[Value], paging: Paging, total: usize, path: &str, filters: &str) -> Value {
    let Paging { page, per_page } = paging;
    let last = items.len().div_ceil(per_page).max(1);
    let shown: Vec<&Value> = items.iter().skip((page - 1) * per_page).take(per_page).collect();
    let link = |page: usize| json!(format!("{LINK_BASE}{path}?page={page}&per_page={per_page}{filters}"));
    let mut pages = Map::new();
    if page > 1 {
        pages.insert("first".to_owned(), link(1));
        pages.insert("prev".to_owned(), link((page - 1).min(last)));
    }
    if page < last {
        pages.insert("next".to_owned(), link(page + 1));
        pages.insert("last".to_owned(), link(last));
    }
    let links = if pages.is_empty() { json!({}) } else { json!({"pages": pages}) };
    json!({key: shown, "links": links, "meta": {"total": total}})
}

/// A region (`region.yml`). Known slugs have their real names, others get a made-up one.
pub fn region(slug: &str, has_storage: bool) -> Value {
    let name = match slug {
        "fra1" => "Frankfurt 1",
        "nyc1" => "New York 1",
        "nyc3" => "New York 3",
        "ams3" => "Amsterdam 3",
        "sgp1" => "Singapore 1",
        other => other,
    };
    let features: Vec<&str> = ["private_networking", "backups", "ipv6", "metadata"]
        .into_iter()
        .chain(has_storage.then_some("storage"))
        .collect();
    json!({
        "name": name,
        "slug": slug,
        "sizes": ["s-1vcpu-1gb"],
        "features": features,
        "available": true,
    })
}

/// The tags, as far as the token may read them (`tags_array_read.yml`).
fn tags(tags: &[String], switches: &Switches) -> Value {
    let shown = tags.iter().filter(|_| switches.shows_tags()).map(|tag| json!(tag)).collect();
    array(shown, switches)
}

/// An array that is nullable in the schema.
fn array(items: Vec<Value>, switches: &Switches) -> Value {
    if items.is_empty() && switches.empty_arrays_are_null {
        return Value::Null;
    }
    Value::Array(items)
}
