//! From the wire to types: every request is read once, here. No other module sees a wire type.
//!
//! Owns the checks of form: what is missing, malformed or contradictory. It never looks at the world, and does not know
//! whether a volume exists.

pub mod attachment;
pub mod capability;
pub mod names;
pub mod node;
pub mod parameters;
pub mod publish_context;
pub mod query;
pub mod secrets;
pub mod snapshot;
pub mod unknown;
pub mod volume;
pub mod volume_change;
pub mod volume_context;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result, Thing};
use crate::id::{DropletId, SnapshotId, VolumeId};

/// A text that must not be empty.
///
/// # Errors
/// [`Error::Invalid`] naming the field.
pub fn required(field: &str, text: String) -> Result<String> {
    if text.is_empty() { Err(Error::invalid(field, "must not be empty")) } else { Ok(text) }
}

/// A volume's id. An id that is no UUID belongs to no volume. That is an answer, not a malformed request.
///
/// # Errors
/// [`Error::Invalid`] when empty, [`Error::NotFound`] when it is no UUID.
pub fn volume_id(field: &str, text: String) -> Result<VolumeId> {
    let text = required(field, text)?;
    VolumeId::parse(&text).map_err(|_| Error::NotFound(Thing::Volume(text)))
}

/// A snapshot's id; as [`volume_id`].
///
/// # Errors
/// [`Error::Invalid`] when empty, [`Error::NotFound`] when it is no UUID.
pub fn snapshot_id(field: &str, text: String) -> Result<SnapshotId> {
    let text = required(field, text)?;
    SnapshotId::parse(&text).map_err(|_| Error::NotFound(Thing::Snapshot(text)))
}

/// A node id, which is a droplet's number.
///
/// # Errors
/// [`Error::Invalid`] when empty, [`Error::NotFound`] when it is no such number.
pub fn droplet_id(field: &str, text: String) -> Result<DropletId> {
    let text = required(field, text)?;
    DropletId::parse(&text).map_err(|_| Error::NotFound(Thing::Droplet(text)))
}

/// Longest path, and longest part of one, that the system takes. Source: `PATH_MAX` (with the final zero), `NAME_MAX`.
const MAX_PATH: usize = 4095;
const MAX_PART: usize = 255;

/// A path on this node: absolute, without `..`, not the root itself, and no longer than the system takes.
///
/// # Errors
/// [`Error::Invalid`] naming the field.
pub fn absolute_path(field: &str, text: String) -> Result<PathBuf> {
    let text = required(field, text)?;
    let path = Path::new(&text);
    let why = if !path.is_absolute() {
        "must be absolute"
    } else if path.components().any(|part| part == Component::ParentDir) {
        "must not contain `..`"
    } else if path.file_name().is_none() {
        "must not be the root"
    } else if text.contains('\0') {
        "must not contain a zero byte"
    } else if text.len() > MAX_PATH || path.iter().any(|part| part.len() > MAX_PART) {
        "is too long"
    } else {
        // Rebuilt from its components, so that `//` and `/./` compare equal to what the mount table shows.
        return Ok(path.components().collect());
    };
    Err(Error::invalid(field, format!("{why}, got {text:?}")))
}

/// The value under a key of a string map, when there is one and it is not empty.
#[must_use]
pub fn lookup<'a>(map: &'a HashMap<String, String>, key: &str) -> Option<&'a str> {
    map.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_must_be_absolute_and_lead_nowhere_else() {
        let ok = [("/csi/staging/vol[0]", "/csi/staging/vol[0]"), ("/a//b/./c/", "/a/b/c")];
        for (text, want) in ok {
            assert_eq!(absolute_path("p", text.into()).unwrap(), PathBuf::from(want), "{text}");
        }
        let (long_part, long_path) = (format!("/{}", "x".repeat(256)), "/x".repeat(2048));
        for bad in ["", "a/b", "./a", "/a/../b", "/..", "/", "//", "/a\0b", &long_part, &long_path] {
            let err = absolute_path("target_path", bad.into()).unwrap_err();
            assert!(matches!(&err, Error::Invalid { field, .. } if field == "target_path"), "{bad:?}: {err}");
        }
    }

    #[test]
    fn an_empty_id_is_invalid_and_a_strange_one_does_not_exist() {
        assert!(matches!(volume_id("volume_id", String::new()), Err(Error::Invalid { .. })));
        assert!(matches!(volume_id("volume_id", "fake-vol-id-1".into()), Err(Error::NotFound(Thing::Volume(_)))));
        assert!(matches!(droplet_id("node_id", "fake-node-id-1".into()), Err(Error::NotFound(Thing::Droplet(_)))));
    }

    /// Each request, as bytes that gRPC hands over: what is taken of it leads nowhere else.
    #[test]
    fn fuzz_no_request_leads_anywhere_but_where_it_says() {
        use protobuf::{EnumOrUnknown, Message};

        use crate::proto::csi::{self, volume_capability as capability};
        use crate::request::publish_context::ContextKeys;
        use crate::request::{attachment, node, query, snapshot, volume, volume_change};

        const ID: &str = "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";
        let keys = ContextKeys::new("our.name");
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mount = capability::MountVolume {
            fs_type: "ext4".into(),
            mount_flags: vec!["noatime".into(), "ro".into()],
            ..Default::default()
        };
        let mode = capability::AccessMode {
            mode: EnumOrUnknown::new(capability::access_mode::Mode::SINGLE_NODE_WRITER),
            ..Default::default()
        };
        let wanted = csi::VolumeCapability {
            access_type: Some(capability::Access_type::Mount(mount)),
            access_mode: Some(mode).into(),
            ..Default::default()
        };
        let range = csi::CapacityRange { required_bytes: 1 << 30, limit_bytes: 1 << 31, ..Default::default() };
        let publish = csi::NodePublishVolumeRequest {
            volume_id: ID.into(),
            publish_context: map(&[("our.name/volume-name", "blog"), ("our.name/size-gigabytes", "7")]),
            staging_target_path: "/csi/staging/blog".into(),
            target_path: "/csi/per-alloc/blog".into(),
            volume_capability: Some(wanted.clone()).into(),
            secrets: map(&[("encryption-passphrase", "sesame")]),
            volume_context: map(&[("our.name/noformat", "true"), ("our.name/mode", "0770")]),
            ..Default::default()
        };
        let create = csi::CreateVolumeRequest {
            name: "blog".into(),
            capacity_range: Some(range).into(),
            volume_capabilities: vec![wanted],
            parameters: map(&[("tags", "a,b"), ("description", "x"), ("our.name/owner", "70:70")]),
            ..Default::default()
        };
        let list = csi::ListSnapshotsRequest {
            max_entries: 7,
            starting_token: "40:300:a".into(),
            snapshot_id: ID.into(),
            ..Default::default()
        };
        let seeds = [publish.write_to_bytes(), create.write_to_bytes(), list.write_to_bytes()].map(Result::unwrap);
        let words: [&[u8]; 12] = [
            b"/../",
            b"/",
            b"\0",
            b"our.name/",
            b"true",
            b"xfs",
            ID.as_bytes(),
            b"loop",
            b"bind",
            b",",
            b"\x0a\x04",
            b"18446744073709551615",
        ];
        let is_straight = |path: &std::path::Path| {
            let text = path.to_str().unwrap();
            path.is_absolute() && text != "/" && !text.contains('\0') && !text.split('/').any(|part| part == "..")
        };
        let none = secrets::Secrets::take(&mut std::collections::HashMap::new());
        crate::fuzz::fuzz("requests", &seeds.each_ref().map(Vec::as_slice), &words, |bytes| {
            macro_rules! parse {
                ($request:ident, $parse:expr) => {
                    csi::$request::parse_from_bytes(bytes).ok().and_then(|wire| $parse(wire).ok())
                };
            }
            if let Some(stage) = parse!(NodeStageVolumeRequest, |wire| node::Stage::parse(wire, &none, &keys)) {
                assert!(is_straight(&stage.staging), "{stage:?}");
                let _size = stage.attached.size.map(|size| size.bytes());
            }
            if let Some(publish) = parse!(NodePublishVolumeRequest, |wire| node::Publish::parse(wire, &none, &keys)) {
                assert!(is_straight(&publish.target) && is_straight(&publish.stage.staging), "{publish:?}");
                assert!(!publish.target.starts_with(&publish.stage.staging), "{publish:?}");
            }
            if let Some(unstage) = parse!(NodeUnstageVolumeRequest, node::Unstage::parse) {
                assert!(is_straight(&unstage.staging));
            }
            if let Some(unpublish) = parse!(NodeUnpublishVolumeRequest, node::Unpublish::parse) {
                assert!(is_straight(&unpublish.target));
            }
            if let Some(create) = parse!(CreateVolumeRequest, |wire| volume::CreateVolume::parse(wire, &none, &keys)) {
                assert!(!create.name.is_empty() && !create.name.contains('\0'));
                let _size = crate::size::plan_size(&create.range, &crate::size::SizeLimits::DIGITALOCEAN);
            }
            let _others = (
                parse!(NodeGetVolumeStatsRequest, node::Stats::parse),
                parse!(NodeGetVolumeHealthRequest, node::Health::parse),
                parse!(NodeExpandVolumeRequest, |wire| node::Expand::parse(wire, &none)),
                parse!(ControllerPublishVolumeRequest, attachment::Publish::try_from),
                parse!(ControllerUnpublishVolumeRequest, attachment::Unpublish::parse),
                parse!(ControllerExpandVolumeRequest, volume_change::Expand::try_from),
                parse!(ControllerModifyVolumeRequest, volume_change::Modify::try_from),
                parse!(CreateSnapshotRequest, snapshot::CreateSnapshot::try_from),
                parse!(ListSnapshotsRequest, |wire| snapshot::ListSnapshots::parse(&wire)),
                parse!(GetCapacityRequest, query::Capacity::parse),
                parse!(ValidateVolumeCapabilitiesRequest, |wire| query::Validate::parse(&wire, &none, &keys)),
            );
        });
    }
}
