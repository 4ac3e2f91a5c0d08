//! The metadata service that each droplet has at 169.254.169.254, served under a path of its own.
//!
//! Owns the metadata paths and texts. It needs no token and counts against no limit, like the real one.

use std::net::IpAddr;

use serde_json::json;

use super::clock::Moment;
use super::http::{Delivery, Reply};
use super::state::{Cloud, Droplet};

/// Which droplet asks for which metadata path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<'a> {
    /// None: whoever asks at the real service's own path: the droplet with the address that the request comes from, or else
    /// the first one.
    pub droplet: Option<u64>,
    /// The path from `/metadata/` on.
    pub path: &'a str,
}

/// Recognises a metadata request.
pub fn find(path: &str) -> Option<Asked<'_>> {
    if path.starts_with("/metadata/") {
        return Some(Asked { droplet: None, path });
    }
    let (digits, _) = path.strip_prefix("/droplets/")?.split_once('/')?;
    let droplet = digits.parse().ok()?;
    let path = &path["/droplets/".len() + digits.len()..];
    path.starts_with("/metadata/").then_some(Asked { droplet: Some(droplet), path })
}

/// The base URL of one droplet's metadata service, to which a client appends `/metadata/v1/id`.
pub fn base(api_url: &str, droplet: u64) -> String {
    format!("{api_url}droplets/{droplet}")
}

/// Answers one metadata request. A droplet that is gone has no service, and one that is down does not answer either.
pub fn answer(cloud: &Cloud, now: Moment, asked: &Asked<'_>, peer: Option<IpAddr>) -> Delivery {
    let droplet = match asked.droplet {
        Some(id) => cloud.droplet(id).ok().cloned(),
        None => {
            let droplets = cloud.droplets();
            let asking = droplets.iter().find(|droplet| droplet.address.is_some() && droplet.address == peer);
            asking.or(droplets.first()).cloned()
        }
    };
    let Some(droplet) = droplet.filter(|droplet| droplet.metadata_down_until <= now) else {
        return Delivery::Drop;
    };
    let reply = reply(&droplet, asked);
    if droplet.metadata_delay.is_zero() {
        Delivery::Send(reply)
    } else {
        Delivery::SendAfter(droplet.metadata_delay, reply)
    }
}

/// The paths of go-metadata's `all_json.go` and its index; no text ends in a newline.
fn reply(droplet: &Droplet, asked: &Asked<'_>) -> Reply {
    const INDEX: &str = "id\nhostname\nuser-data\nvendor-data\npublic-keys\nregion\ninterfaces/\ndns/\n\
                         floating_ip/\nreserved_ip/\ntags/\nfeatures/";
    let text = |text: &str| Reply::new(200, "text/plain; charset=utf-8", text);
    match asked.path {
        "/metadata/v1.json" => Reply::new(200, "application/json", everything(droplet).to_string()),
        "/metadata/v1/" => text(INDEX),
        "/metadata/v1/id" => text(&droplet.id.to_string()),
        "/metadata/v1/hostname" => text(&droplet.name),
        "/metadata/v1/region" => text(&droplet.region),
        "/metadata/v1/user-data" | "/metadata/v1/vendor-data" | "/metadata/v1/public-keys" => text(""),
        "/metadata/v1/interfaces/" => text("public/"),
        "/metadata/v1/dns/" => text("nameservers"),
        "/metadata/v1/floating_ip/" | "/metadata/v1/reserved_ip/" => text("ipv4/"),
        "/metadata/v1/tags/" => text(""),
        "/metadata/v1/features/" => text("dhcp_enabled"),
        "/metadata/v1"
        | "/metadata/v1/interfaces"
        | "/metadata/v1/dns"
        | "/metadata/v1/floating_ip"
        | "/metadata/v1/reserved_ip"
        | "/metadata/v1/tags"
        | "/metadata/v1/features" => {
            let prefix = asked.droplet.map_or(String::new(), |id| format!("/droplets/{id}"));
            Reply::new(301, "text/plain; charset=utf-8", "").with_header("location", format!("{prefix}{}/", asked.path))
        }
        _ => Reply::new(404, "text/plain; charset=utf-8", "not found"),
    }
}

fn everything(droplet: &Droplet) -> serde_json::Value {
    json!({
        "droplet_id": droplet.id,
        "hostname": droplet.name,
        "region": droplet.region,
        "vendor_data": "",
        "public_keys": [],
        "tags": [],
        "features": {"dhcp_enabled": true},
        "dns": {"nameservers": ["67.207.67.2"]},
        "interfaces": {
            "public": [{
                "mac": "04:01:2a:0f:2a:01",
                "type": "public",
                "ipv4": {
                    "ip_address": "192.0.2.10",
                    "netmask": "255.255.255.0",
                    "gateway": "192.0.2.1",
                },
            }],
            "private": [],
        },
        "floating_ip": {"ipv4": {"active": false}},
    })
}
