//! The Controller service: reads each request, queues its work, builds the response.
//!
//! Owns nothing but the passage between the wire and `controller/`. Capabilities are answered on the spot.

use std::sync::Arc;

use grpcio::{RpcContext, UnarySink};

use crate::cloud::volume::Volume;
use crate::config::Config;
use crate::controller::Controller;
use crate::controller::list::VolumePage;
use crate::error::Result;
use crate::request::controller::{CreateVolume, Page, Publish, Unpublish, Validate};
use crate::request::node::ContextKeys;
use crate::request::required;
use crate::rpc::node::topology;
use crate::rpc::proto::csi::{self, controller_service_capability, controller_service_capability::rpc::Type};
use crate::rpc::proto::csi_grpc;
use crate::rpc::worker::{Call, Pool, answer_now};

/// What the controller can do.
const CAPABILITIES: [Type; 4] = [
    Type::CREATE_DELETE_VOLUME,
    Type::PUBLISH_UNPUBLISH_VOLUME,
    Type::LIST_VOLUMES,
    Type::LIST_VOLUMES_PUBLISHED_NODES,
];

/// Serves the Controller service.
#[derive(Debug, Clone)]
pub struct ControllerService {
    controller: Arc<Controller>,
    keys: Arc<ContextKeys>,
    default_page_size: Option<usize>,
    pool: Pool,
}

impl ControllerService {
    /// Makes the service; its work is done by the threads of `pool`.
    #[must_use]
    pub fn new(config: &Config, controller: Arc<Controller>, pool: Pool) -> Self {
        let keys = Arc::new(ContextKeys::new(&config.driver_name));
        ControllerService { controller, keys, default_page_size: config.default_page_size, pool }
    }

    /// Queues a call that works on the controller.
    fn answer<T, F>(&self, ctx: &RpcContext<'_>, sink: UnarySink<T>, call: Call, work: F)
    where
        T: Send + 'static,
        F: FnOnce(&Controller) -> Result<T> + Send + 'static,
    {
        let controller = Arc::clone(&self.controller);
        self.pool.answer(ctx, sink, call, move || work(&controller));
    }
}

fn change(rpc: &'static str, about: String) -> Call {
    Call { rpc, about, is_mutating: true }
}

fn question(rpc: &'static str, about: String) -> Call {
    Call { rpc, about, is_mutating: false }
}

impl csi_grpc::Controller for ControllerService {
    fn controller_get_capabilities(
        &mut self,
        ctx: RpcContext<'_>,
        _: csi::ControllerGetCapabilitiesRequest,
        sink: UnarySink<csi::ControllerGetCapabilitiesResponse>,
    ) {
        answer_now(&ctx, sink, "ControllerGetCapabilities", || {
            let capabilities = CAPABILITIES.into_iter().map(capability).collect();
            Ok(csi::ControllerGetCapabilitiesResponse { capabilities, ..Default::default() })
        });
    }

    fn create_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::CreateVolumeRequest,
        sink: UnarySink<csi::CreateVolumeResponse>,
    ) {
        self.answer(&ctx, sink, change("CreateVolume", wire.name.clone()), move |controller| {
            let volume = controller.create_volume(&CreateVolume::try_from(wire)?)?;
            Ok(csi::CreateVolumeResponse { volume: Some(wire_volume(&volume)).into(), ..Default::default() })
        });
    }

    fn delete_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::DeleteVolumeRequest,
        sink: UnarySink<csi::DeleteVolumeResponse>,
    ) {
        self.answer(&ctx, sink, change("DeleteVolume", wire.volume_id.clone()), move |controller| {
            controller.delete_volume(&required("volume_id", wire.volume_id)?)?;
            Ok(csi::DeleteVolumeResponse::default())
        });
    }

    fn controller_publish_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::ControllerPublishVolumeRequest,
        sink: UnarySink<csi::ControllerPublishVolumeResponse>,
    ) {
        let keys = Arc::clone(&self.keys);
        self.answer(
            &ctx,
            sink,
            change("ControllerPublishVolume", about(&wire.volume_id, &wire.node_id)),
            move |controller| {
                let volume = controller.publish(&Publish::try_from(wire)?)?;
                let publish_context = keys.write(&volume.name, volume.size);
                Ok(csi::ControllerPublishVolumeResponse { publish_context, ..Default::default() })
            },
        );
    }

    fn controller_unpublish_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::ControllerUnpublishVolumeRequest,
        sink: UnarySink<csi::ControllerUnpublishVolumeResponse>,
    ) {
        self.answer(
            &ctx,
            sink,
            change("ControllerUnpublishVolume", about(&wire.volume_id, &wire.node_id)),
            move |controller| {
                if let Some(request) = Unpublish::parse(wire)? {
                    controller.unpublish(&request)?;
                }
                Ok(csi::ControllerUnpublishVolumeResponse::default())
            },
        );
    }

    fn validate_volume_capabilities(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::ValidateVolumeCapabilitiesRequest,
        sink: UnarySink<csi::ValidateVolumeCapabilitiesResponse>,
    ) {
        self.answer(&ctx, sink, question("ValidateVolumeCapabilities", wire.volume_id.clone()), move |controller| {
            let request = Validate::parse(&wire)?;
            controller.find_volume(&request.volume)?;
            Ok(validated(wire, request.refusal))
        });
    }

    fn list_volumes(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::ListVolumesRequest,
        sink: UnarySink<csi::ListVolumesResponse>,
    ) {
        let default_page_size = self.default_page_size;
        self.answer(&ctx, sink, question("ListVolumes", String::new()), move |controller| {
            let page = Page::parse(wire.max_entries, &wire.starting_token)?.or_size(default_page_size);
            Ok(listed(controller.list_volumes(&page)?))
        });
    }
}

fn about(volume: &str, node: &str) -> String {
    format!("{volume} droplet={node}")
}

fn capability(kind: Type) -> csi::ControllerServiceCapability {
    let rpc = controller_service_capability::RPC { type_: kind.into(), ..Default::default() };
    csi::ControllerServiceCapability {
        type_: Some(controller_service_capability::Type::Rpc(rpc)),
        ..Default::default()
    }
}

/// A volume as CSI shows it; its size is the true one, whatever was asked.
fn wire_volume(volume: &Volume) -> csi::Volume {
    csi::Volume {
        volume_id: volume.id.to_string(),
        capacity_bytes: volume.size.bytes().wire(),
        accessible_topology: volume.region.iter().map(topology).collect(),
        ..Default::default()
    }
}

/// Everything that was asked, echoed, when all of it can be had; Nomad 0.11 compares it field by field.
fn validated(
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

fn listed(page: VolumePage) -> csi::ListVolumesResponse {
    use csi::list_volumes_response::{Entry, VolumeStatus};

    let entry = |volume: &Volume| {
        let published_node_ids = volume.droplets.iter().map(ToString::to_string).collect();
        let status = VolumeStatus { published_node_ids, ..Default::default() };
        Entry { volume: Some(wire_volume(volume)).into(), status: Some(status).into(), ..Default::default() }
    };
    csi::ListVolumesResponse {
        entries: page.volumes.iter().map(entry).collect(),
        next_token: page.next.map(|offset| offset.to_string()).unwrap_or_default(),
        ..Default::default()
    }
}
