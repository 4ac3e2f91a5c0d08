//! A CSI client that says exactly what Nomad says.
//!
//! Owns the requests' form. What a test asks for is in its own words: [`Volume`] holds what Nomad keeps of a volume
//! between its calls.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use do_csi_plugin::proto::csi;
use do_csi_plugin::proto::csi::volume_capability;
use do_csi_plugin::proto::csi_grpc::{ControllerClient, IdentityClient, NodeClient};
use grpcio::{CallOption, ChannelBuilder, EnvBuilder, Error, RpcStatus, RpcStatusCode};

fn health_of(id: &str, health: csi::VolumeHealth) -> Vec<(String, String)> {
    assert_eq!(health.volume_id, id);
    health.health_statuses.into_iter().map(|entry| (entry.reason, entry.message)).collect()
}

/// The deadline that Nomad gives its controller calls.
const DEADLINE: Duration = Duration::from_secs(120);

/// What a call gives: its answer, or the status it failed with.
pub type Outcome<T> = Result<T, Refusal>;

/// How a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub code: RpcStatusCode,
    /// The message.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refusal {}

impl From<Error> for Refusal {
    fn from(err: Error) -> Self {
        if let Error::RpcFailure(status) = err {
            return status.into();
        }
        Refusal { code: RpcStatusCode::UNKNOWN, message: err.to_string() }
    }
}

impl From<RpcStatus> for Refusal {
    fn from(status: RpcStatus) -> Self {
        Refusal { code: status.code(), message: status.message().to_owned() }
    }
}

/// What Nomad keeps of a volume.
#[derive(Debug, Clone)]
pub struct Volume {
    /// The volume's id at DigitalOcean.
    pub id: String,
    /// How it is used.
    pub capability: csi::VolumeCapability,
    /// What the controller said when it attached it.
    pub publish_context: HashMap<String, String>,
    /// What it was created or registered with.
    pub context: HashMap<String, String>,
    /// The secrets it was created or registered with.
    pub secrets: HashMap<String, String>,
}

impl Volume {
    /// A volume used by one node through a file system.
    pub fn mounted(id: &str, fs_type: &str) -> Volume {
        let mount = volume_capability::MountVolume { fs_type: fs_type.to_owned(), ..Default::default() };
        Volume::used_as(id, volume_capability::Access_type::Mount(mount))
    }

    /// A volume used by one node as a raw block device.
    pub fn block(id: &str) -> Volume {
        Volume::used_as(id, volume_capability::Access_type::Block(volume_capability::BlockVolume::default()))
    }

    fn used_as(id: &str, access: volume_capability::Access_type) -> Volume {
        let mode = volume_capability::access_mode::Mode::SINGLE_NODE_WRITER;
        let capability = capability(access, mode);
        Volume {
            id: id.to_owned(),
            capability,
            publish_context: HashMap::new(),
            context: HashMap::new(),
            secrets: HashMap::new(),
        }
    }
}

/// A capability from its two parts.
pub fn capability(
    access: volume_capability::Access_type,
    mode: volume_capability::access_mode::Mode,
) -> csi::VolumeCapability {
    let access_mode = volume_capability::AccessMode { mode: mode.into(), ..Default::default() };
    csi::VolumeCapability { access_type: Some(access), access_mode: Some(access_mode).into(), ..Default::default() }
}

/// A request for a volume with a file system, for one writer.
pub fn new_volume(name: &str, bytes: i64) -> csi::CreateVolumeRequest {
    let range = csi::CapacityRange { required_bytes: bytes, ..Default::default() };
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(range).into(),
        volume_capabilities: vec![Volume::mounted("", "ext4").capability],
        ..Default::default()
    }
}

/// The same, with the content of a snapshot.
pub fn restored(request: csi::CreateVolumeRequest, snapshot: &str) -> csi::CreateVolumeRequest {
    use csi::volume_content_source::{SnapshotSource, Type};

    let source = SnapshotSource { snapshot_id: snapshot.to_owned(), ..Default::default() };
    with_source(request, Type::Snapshot(source))
}

/// The same, with the content of a volume.
pub fn cloned(request: csi::CreateVolumeRequest, volume: &str) -> csi::CreateVolumeRequest {
    use csi::volume_content_source::{Type, VolumeSource};

    with_source(request, Type::Volume(VolumeSource { volume_id: volume.to_owned(), ..Default::default() }))
}

fn with_source(
    request: csi::CreateVolumeRequest,
    source: csi::volume_content_source::Type,
) -> csi::CreateVolumeRequest {
    let source = csi::VolumeContentSource { type_: Some(source), ..Default::default() };
    csi::CreateVolumeRequest { volume_content_source: Some(source).into(), ..request }
}

/// A map from pairs.
pub fn text_map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The three services on one socket.
#[derive(Clone)]
pub struct Client {
    /// Identity.
    pub identity: IdentityClient,
    /// Controller.
    pub controller: ControllerClient,
    /// Node.
    pub node: NodeClient,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// Connects when the first call is made.
    pub fn connect(socket: &Path) -> Client {
        Client::connect_as(socket, None)
    }

    /// Connects with an `:authority` header of the caller's choice.
    pub fn connect_as(socket: &Path, authority: Option<&str>) -> Client {
        Client::at(&format!("unix:{}", socket.display()), authority)
    }

    /// Connects to an address that leads to the socket of a plugin on another machine.
    pub fn connect_through(address: SocketAddr) -> Client {
        Client::at(&format!("ipv4:{address}"), None)
    }

    fn at(target: &str, authority: Option<&str>) -> Client {
        let env = Arc::new(EnvBuilder::new().cq_count(1).build());
        let mut builder = ChannelBuilder::new(env)
            .initial_reconnect_backoff(Duration::from_millis(1))
            .max_reconnect_backoff(Duration::from_millis(5))
            .raw_cfg_int(c"grpc.enable_http_proxy".to_owned(), 0);
        if let Some(authority) = authority {
            builder = builder.default_authority(authority);
        }
        let channel = builder.connect(target);
        Client {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
        }
    }

    /// Asks whether the plugin is ready.
    pub fn probe(&self) -> Outcome<csi::ProbeResponse> {
        Ok(self.identity.probe_opt(&csi::ProbeRequest::default(), option())?)
    }

    /// Creates a volume of this size.
    pub fn create_volume(&self, name: &str, bytes: i64, capability: &csi::VolumeCapability) -> Outcome<csi::Volume> {
        let range = csi::CapacityRange { required_bytes: bytes, ..Default::default() };
        let request = csi::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(range).into(),
            volume_capabilities: vec![capability.clone()],
            accessibility_requirements: Some(csi::TopologyRequirement::default()).into(),
            ..Default::default()
        };
        let reply = self.controller.create_volume_opt(&request, option())?;
        Ok(reply.volume.unwrap_or_default())
    }

    /// Creates a volume as this request says.
    pub fn create(&self, request: &csi::CreateVolumeRequest) -> Outcome<csi::Volume> {
        Ok(self.controller.create_volume_opt(request, option())?.volume.unwrap_or_default())
    }

    /// Lists volumes.
    pub fn list_volumes(&self, max_entries: i32, token: &str) -> Outcome<csi::ListVolumesResponse> {
        let starting_token = token.to_owned();
        let request = csi::ListVolumesRequest { max_entries, starting_token, ..Default::default() };
        Ok(self.controller.list_volumes_opt(&request, option())?)
    }

    /// Reads a volume and its condition.
    pub fn get_volume(&self, id: &str) -> Outcome<csi::ControllerGetVolumeResponse> {
        let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        Ok(self.controller.controller_get_volume_opt(&request, option())?)
    }

    /// Reads what is wrong with a volume: the reasons, with their messages.
    pub fn volume_health(&self, id: &str) -> Outcome<Vec<(String, String)>> {
        let request = csi::ControllerGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
        let reply = self.controller.controller_get_volume_health_opt(&request, option())?;
        Ok(health_of(id, reply.volume_health.unwrap_or_default()))
    }

    /// Lists the volumes with which something is wrong.
    pub fn list_health(&self, max_entries: i32, token: &str) -> Outcome<csi::ControllerListVolumeHealthResponse> {
        let starting_token = token.to_owned();
        let request = csi::ControllerListVolumeHealthRequest { max_entries, starting_token, ..Default::default() };
        Ok(self.controller.controller_list_volume_health_opt(&request, option())?)
    }

    /// Reads what is wrong with a volume on the node: the reasons, with their messages.
    pub fn node_health(&self, id: &str) -> Outcome<Vec<(String, String)>> {
        let request = csi::NodeGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
        let reply = self.node.node_get_volume_health_opt(&request, option())?;
        Ok(health_of(id, reply.volume_health.unwrap_or_default()))
    }

    /// Makes a volume at least this large.
    pub fn expand(&self, id: &str, bytes: i64) -> Outcome<csi::ControllerExpandVolumeResponse> {
        let range = csi::CapacityRange { required_bytes: bytes, ..Default::default() };
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(range).into(),
            ..Default::default()
        };
        Ok(self.controller.controller_expand_volume_opt(&request, option())?)
    }

    /// Changes what can be changed of a volume.
    pub fn modify(&self, id: &str, parameters: &[(&str, &str)]) -> Outcome<()> {
        let request = csi::ControllerModifyVolumeRequest {
            volume_id: id.to_owned(),
            mutable_parameters: text_map(parameters),
            ..Default::default()
        };
        Ok(self.controller.controller_modify_volume_opt(&request, option()).map(drop)?)
    }

    /// Takes a snapshot.
    pub fn create_snapshot(&self, name: &str, source: &str) -> Outcome<csi::Snapshot> {
        let (name, source_volume_id) = (name.to_owned(), source.to_owned());
        let request = csi::CreateSnapshotRequest { name, source_volume_id, ..Default::default() };
        Ok(self.controller.create_snapshot_opt(&request, option())?.snapshot.unwrap_or_default())
    }

    /// Deletes a snapshot.
    pub fn delete_snapshot(&self, id: &str) -> Outcome<()> {
        let request = csi::DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        Ok(self.controller.delete_snapshot_opt(&request, option()).map(drop)?)
    }

    /// Lists snapshots.
    pub fn list_snapshots(&self, request: &csi::ListSnapshotsRequest) -> Outcome<csi::ListSnapshotsResponse> {
        Ok(self.controller.list_snapshots_opt(request, option())?)
    }

    /// Lets disk and file system of a volume follow after it has grown.
    pub fn node_expand(&self, id: &str, path: &Path, bytes: i64) -> Outcome<i64> {
        self.node_expand_with(id, path, bytes, &[])
    }

    /// The same, with secrets, which Nomad does not give.
    pub fn node_expand_with(&self, id: &str, path: &Path, bytes: i64, secrets: &[(&str, &str)]) -> Outcome<i64> {
        let range = csi::CapacityRange { required_bytes: bytes, ..Default::default() };
        let request = csi::NodeExpandVolumeRequest {
            volume_id: id.to_owned(),
            volume_path: text(path),
            capacity_range: Some(range).into(),
            secrets: text_map(secrets),
            ..Default::default()
        };
        Ok(self.node.node_expand_volume_opt(&request, option())?.capacity_bytes)
    }

    /// Deletes a volume.
    pub fn delete_volume(&self, id: &str) -> Outcome<()> {
        let request = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        Ok(self.controller.delete_volume_opt(&request, option()).map(drop)?)
    }

    /// Asks whether a volume can be used as it is going to be.
    pub fn validate(&self, volume: &Volume) -> Outcome<csi::ValidateVolumeCapabilitiesResponse> {
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: volume.id.clone(),
            volume_context: volume.context.clone(),
            volume_capabilities: vec![volume.capability.clone()],
            ..Default::default()
        };
        Ok(self.controller.validate_volume_capabilities_opt(&request, option())?)
    }

    /// Attaches a volume to a droplet and keeps the publish context.
    pub fn controller_publish(&self, volume: &mut Volume, droplet: &str) -> Outcome<()> {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: droplet.to_owned(),
            volume_capability: Some(volume.capability.clone()).into(),
            volume_context: volume.context.clone(),
            ..Default::default()
        };
        volume.publish_context = self.controller.controller_publish_volume_opt(&request, option())?.publish_context;
        Ok(())
    }

    /// Detaches a volume from a droplet.
    pub fn controller_unpublish(&self, volume: &str, droplet: &str) -> Outcome<()> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: volume.to_owned(),
            node_id: droplet.to_owned(),
            ..Default::default()
        };
        Ok(self.controller.controller_unpublish_volume_opt(&request, option()).map(drop)?)
    }

    /// Stages a volume.
    pub fn stage(&self, volume: &Volume, staging: &Path) -> Outcome<()> {
        self.stage_within(volume, staging, DEADLINE)
    }

    /// Stages a volume for a caller who waits no longer.
    pub fn stage_within(&self, volume: &Volume, staging: &Path, patience: Duration) -> Outcome<()> {
        let option = CallOption::default().timeout(patience);
        Ok(self.node.node_stage_volume_opt(&stage_request(volume, staging), option).map(drop)?)
    }

    /// Unstages a volume.
    pub fn unstage(&self, volume: &str, staging: &Path) -> Outcome<()> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: text(staging),
            ..Default::default()
        };
        Ok(self.node.node_unstage_volume_opt(&request, option()).map(drop)?)
    }

    /// Publishes a staged volume at a target.
    pub fn publish(&self, volume: &Volume, staging: &Path, target: &Path, readonly: bool) -> Outcome<()> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: volume.publish_context.clone(),
            staging_target_path: text(staging),
            target_path: text(target),
            volume_capability: Some(volume.capability.clone()).into(),
            readonly,
            volume_context: volume.context.clone(),
            secrets: volume.secrets.clone(),
            ..Default::default()
        };
        Ok(self.node.node_publish_volume_opt(&request, option()).map(drop)?)
    }

    /// Takes a volume away from a target.
    pub fn unpublish(&self, volume: &str, target: &Path) -> Outcome<()> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: text(target),
            ..Default::default()
        };
        Ok(self.node.node_unpublish_volume_opt(&request, option()).map(drop)?)
    }

    /// Asks for the node's id and region.
    pub fn node_info(&self) -> Outcome<csi::NodeGetInfoResponse> {
        Ok(self.node.node_get_info_opt(&csi::NodeGetInfoRequest::default(), option())?)
    }

    /// Asks how full a volume is.
    pub fn stats(&self, volume: &str, path: &Path) -> Outcome<csi::NodeGetVolumeStatsResponse> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: volume.to_owned(),
            volume_path: text(path),
            ..Default::default()
        };
        Ok(self.node.node_get_volume_stats_opt(&request, option())?)
    }
}

/// Attaches a volume with a file system to a droplet.
pub fn publish(client: &Client, id: &str, droplet: u64) -> Outcome<()> {
    client.controller_publish(&mut Volume::mounted(id, "ext4"), &droplet.to_string())
}

/// Detaches a volume from a droplet.
pub fn unpublish(client: &Client, id: &str, droplet: u64) -> Outcome<()> {
    client.controller_unpublish(id, &droplet.to_string())
}

/// The options of every call.
pub fn option() -> CallOption {
    CallOption::default().timeout(DEADLINE)
}

/// What is said when a volume is to be staged.
pub fn stage_request(volume: &Volume, staging: &Path) -> csi::NodeStageVolumeRequest {
    csi::NodeStageVolumeRequest {
        volume_id: volume.id.clone(),
        publish_context: volume.publish_context.clone(),
        staging_target_path: text(staging),
        volume_capability: Some(volume.capability.clone()).into(),
        volume_context: volume.context.clone(),
        secrets: volume.secrets.clone(),
        ..Default::default()
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
