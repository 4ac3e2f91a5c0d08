//! The Controller service: reads each request, queues its work, builds the response.
//!
//! Owns nothing but the passage between the wire and `controller/`. Capabilities are answered on the spot.

use std::sync::Arc;

use grpcio::{RpcContext, UnarySink};

use crate::activity::About;
use crate::config::Config;
use crate::controller::Controller;
use crate::controller::context::CallContext;
use crate::error::{Error, Result};
use crate::proto::csi;
use crate::proto::csi::controller_service_capability;
use crate::proto::csi::controller_service_capability::rpc::Type;
use crate::proto::csi_grpc;
use crate::request::attachment::{Publish, Unpublish};
use crate::request::publish_context::ContextKeys;
use crate::request::query::{Capacity, Page, Validate};
use crate::request::secrets::{Secrets, forget};
use crate::request::snapshot::{CreateSnapshot, ListSnapshots};
use crate::request::volume::CreateVolume;
use crate::request::volume_change::{Expand, Modify};
use crate::request::{required, snapshot_id, volume_id};
use crate::rpc::health::{listed_health, volume_health};
use crate::rpc::response::{examined, listed_snapshots, listed_volumes, room, snapshot, validated, volume};
use crate::rpc::worker::{Pool, RpcInfo, answer_now};

/// What the controller can do. Groups of snapshots are left out: DigitalOcean takes none at one moment of several volumes.
const CAPABILITIES: [Type; 17] = [
    Type::CREATE_DELETE_VOLUME,
    Type::PUBLISH_UNPUBLISH_VOLUME,
    Type::LIST_VOLUMES,
    Type::GET_CAPACITY,
    Type::CREATE_DELETE_SNAPSHOT,
    Type::LIST_SNAPSHOTS,
    Type::CLONE_VOLUME,
    Type::PUBLISH_READONLY,
    Type::EXPAND_VOLUME,
    Type::LIST_VOLUMES_PUBLISHED_NODES,
    Type::VOLUME_CONDITION,
    Type::GET_VOLUME,
    Type::SINGLE_NODE_MULTI_WRITER,
    Type::MODIFY_VOLUME,
    Type::GET_SNAPSHOT,
    Type::GET_VOLUME_HEALTH,
    Type::LIST_VOLUME_HEALTH,
];

/// Serves the Controller service.
#[derive(Debug, Clone)]
pub struct ControllerService {
    controller: Arc<Controller>,
    keys: Arc<ContextKeys>,
    default_page_size: Option<usize>,
    pools: Pools,
}

/// The threads that do the work of the calls, by what the calls wait for.
#[derive(Debug, Clone)]
pub struct Pools {
    /// Of the calls that change something, but for those that free a volume.
    pub change: Pool,
    /// Of the calls that free a volume: they must never queue behind calls that wait for it to become free.
    pub unpublish: Pool,
    /// Of the calls that only ask: they wait for no action, and must not queue behind calls that do.
    pub look: Pool,
    /// Of the calls that list volumes. A reply may have megabytes, so there are few of them at once.
    pub list: Pool,
}

impl ControllerService {
    /// Makes the service; its work is done by the threads of `pools`.
    #[must_use]
    pub fn new(config: &Config, controller: Arc<Controller>, pools: Pools) -> Self {
        let keys = Arc::new(ContextKeys::new(&config.driver_name));
        ControllerService { controller, keys, default_page_size: config.default_page_size, pools }
    }

    /// Queues a call that works on the controller.
    fn answer<T, F>(&self, ctx: &RpcContext<'_>, sink: UnarySink<T>, call: RpcInfo, work: F)
    where
        T: Send + 'static,
        F: FnOnce(&Controller, CallContext) -> Result<T> + Send + 'static,
    {
        let pool = if call.is_mutating { &self.pools.change } else { &self.pools.look };
        self.answer_by(pool, ctx, sink, call, work);
    }

    fn answer_by<T, F>(&self, pool: &Pool, ctx: &RpcContext<'_>, sink: UnarySink<T>, call: RpcInfo, work: F)
    where
        T: Send + 'static,
        F: FnOnce(&Controller, CallContext) -> Result<T> + Send + 'static,
    {
        let controller = Arc::clone(&self.controller);
        pool.answer(ctx, sink, call, move |incoming| {
            work(&controller, controller.context_of_call(incoming.came, incoming.caller))
        });
    }
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
        mut wire: csi::CreateVolumeRequest,
        sink: UnarySink<csi::CreateVolumeResponse>,
    ) {
        let secrets = Secrets::take(&mut wire.secrets);
        let keys = Arc::clone(&self.keys);
        self.answer(&ctx, sink, RpcInfo::change("CreateVolume", of("name", &wire.name)), move |controller, ctx| {
            let want = CreateVolume::parse(wire, &secrets, &keys)?;
            let made = controller.create_volume(&ctx, &want)?;
            let answer = csi::Volume { volume_context: want.context, ..volume(&made) };
            Ok(csi::CreateVolumeResponse { volume: Some(answer).into(), ..Default::default() })
        });
    }

    fn delete_volume(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::DeleteVolumeRequest,
        sink: UnarySink<csi::DeleteVolumeResponse>,
    ) {
        forget(&mut wire.secrets);
        self.answer(
            &ctx,
            sink,
            RpcInfo::change("DeleteVolume", of("volume", &wire.volume_id)),
            move |controller, ctx| {
                controller.delete_volume(&ctx, &required("volume_id", wire.volume_id)?)?;
                Ok(csi::DeleteVolumeResponse::default())
            },
        );
    }

    fn controller_publish_volume(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::ControllerPublishVolumeRequest,
        sink: UnarySink<csi::ControllerPublishVolumeResponse>,
    ) {
        forget(&mut wire.secrets);
        let keys = Arc::clone(&self.keys);
        let call =
            RpcInfo::change("ControllerPublishVolume", of("volume", &wire.volume_id).with("droplet", &wire.node_id));
        self.answer(&ctx, sink, RpcInfo { refused: Error::or_not_yet, ..call }, move |controller, ctx| {
            let want = Publish::try_from(wire)?;
            let volume = controller.publish(&ctx, &want)?;
            let publish_context = keys.write(&volume.name, volume.size, want.mode.is_read_only);
            Ok(csi::ControllerPublishVolumeResponse { publish_context, ..Default::default() })
        });
    }

    fn controller_unpublish_volume(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::ControllerUnpublishVolumeRequest,
        sink: UnarySink<csi::ControllerUnpublishVolumeResponse>,
    ) {
        forget(&mut wire.secrets);
        let call =
            RpcInfo::change("ControllerUnpublishVolume", of("volume", &wire.volume_id).with("droplet", &wire.node_id));
        self.answer_by(&self.pools.unpublish, &ctx, sink, call, move |controller, ctx| {
            if let Some(request) = Unpublish::parse(wire)? {
                controller.unpublish(ctx, &request)?;
            }
            Ok(csi::ControllerUnpublishVolumeResponse::default())
        });
    }

    fn validate_volume_capabilities(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::ValidateVolumeCapabilitiesRequest,
        sink: UnarySink<csi::ValidateVolumeCapabilitiesResponse>,
    ) {
        let secrets = Secrets::take(&mut wire.secrets);
        let keys = Arc::clone(&self.keys);
        self.answer(
            &ctx,
            sink,
            RpcInfo::question("ValidateVolumeCapabilities", of("volume", &wire.volume_id)),
            move |controller, ctx| {
                let request = Validate::parse(&wire, &secrets, &keys)?;
                controller.find_volume(&ctx, &request.volume)?;
                Ok(validated(wire, request.refusal))
            },
        );
    }

    fn list_volumes(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::ListVolumesRequest,
        sink: UnarySink<csi::ListVolumesResponse>,
    ) {
        let default_page_size = self.default_page_size;
        let caller = self.controller.arrive_for_list();
        let call = RpcInfo { is_large: true, ..RpcInfo::question("ListVolumes", About::default()) };
        self.answer_by(&self.pools.list, &ctx, sink, call, move |controller, ctx| {
            let page = Page::parse(wire.max_entries, &wire.starting_token)?.or_size(default_page_size);
            Ok(listed_volumes(&*controller.list_volumes(&ctx, &page, &caller)?))
        });
    }

    fn controller_get_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::ControllerGetVolumeRequest,
        sink: UnarySink<csi::ControllerGetVolumeResponse>,
    ) {
        self.answer(
            &ctx,
            sink,
            RpcInfo::question("ControllerGetVolume", of("volume", &wire.volume_id)),
            move |controller, ctx| {
                Ok(examined(&controller.examine_volume(&ctx, &volume_id("volume_id", wire.volume_id)?)?))
            },
        );
    }

    fn controller_get_volume_health(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::ControllerGetVolumeHealthRequest,
        sink: UnarySink<csi::ControllerGetVolumeHealthResponse>,
    ) {
        forget(&mut wire.secrets);
        let call = RpcInfo::question("ControllerGetVolumeHealth", of("volume", &wire.volume_id));
        self.answer(&ctx, sink, call, move |controller, ctx| {
            let found = controller.examine_volume(&ctx, &volume_id("volume_id", wire.volume_id)?)?;
            let health = volume_health(found.volume.id.as_str(), &found.findings);
            Ok(csi::ControllerGetVolumeHealthResponse { volume_health: Some(health).into(), ..Default::default() })
        });
    }

    fn controller_list_volume_health(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::ControllerListVolumeHealthRequest,
        sink: UnarySink<csi::ControllerListVolumeHealthResponse>,
    ) {
        forget(&mut wire.secrets);
        let call = RpcInfo { is_large: true, ..RpcInfo::question("ControllerListVolumeHealth", About::default()) };
        self.answer_by(&self.pools.list, &ctx, sink, call, move |controller, ctx| {
            let page = Page::parse(wire.max_entries, &wire.starting_token)?;
            Ok(listed_health(&controller.list_abnormal(&ctx, &page)?))
        });
    }

    fn get_capacity(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::GetCapacityRequest,
        sink: UnarySink<csi::GetCapacityResponse>,
    ) {
        self.answer(&ctx, sink, RpcInfo::question("GetCapacity", About::default()), move |controller, ctx| {
            Ok(room(controller.room(&ctx, &Capacity::parse(wire)?)?))
        });
    }

    fn controller_expand_volume(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::ControllerExpandVolumeRequest,
        sink: UnarySink<csi::ControllerExpandVolumeResponse>,
    ) {
        forget(&mut wire.secrets);
        self.answer(
            &ctx,
            sink,
            RpcInfo::change("ControllerExpandVolume", of("volume", &wire.volume_id)),
            move |controller, ctx| {
                let volume = controller.expand(&ctx, &Expand::try_from(wire)?)?;
                Ok(csi::ControllerExpandVolumeResponse {
                    capacity_bytes: volume.size.bytes().wire(),
                    // Also a raw block device: its disk has to be asked for its size again.
                    node_expansion_required: true,
                    ..Default::default()
                })
            },
        );
    }

    fn controller_modify_volume(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::ControllerModifyVolumeRequest,
        sink: UnarySink<csi::ControllerModifyVolumeResponse>,
    ) {
        forget(&mut wire.secrets);
        self.answer(
            &ctx,
            sink,
            RpcInfo::change("ControllerModifyVolume", of("volume", &wire.volume_id)),
            move |controller, ctx| {
                controller.modify(&ctx, &Modify::try_from(wire)?)?;
                Ok(csi::ControllerModifyVolumeResponse::default())
            },
        );
    }

    fn create_snapshot(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::CreateSnapshotRequest,
        sink: UnarySink<csi::CreateSnapshotResponse>,
    ) {
        forget(&mut wire.secrets);
        let about = of("name", &wire.name).with("volume", &wire.source_volume_id);
        self.answer(&ctx, sink, RpcInfo::change("CreateSnapshot", about), move |controller, ctx| {
            let taken = controller.create_snapshot(&ctx, &CreateSnapshot::try_from(wire)?)?;
            Ok(csi::CreateSnapshotResponse { snapshot: Some(snapshot(&taken)).into(), ..Default::default() })
        });
    }

    fn delete_snapshot(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::DeleteSnapshotRequest,
        sink: UnarySink<csi::DeleteSnapshotResponse>,
    ) {
        forget(&mut wire.secrets);
        self.answer(
            &ctx,
            sink,
            RpcInfo::change("DeleteSnapshot", of("snapshot", &wire.snapshot_id)),
            move |controller, ctx| {
                controller.delete_snapshot(&ctx, &required("snapshot_id", wire.snapshot_id)?)?;
                Ok(csi::DeleteSnapshotResponse::default())
            },
        );
    }

    fn list_snapshots(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::ListSnapshotsRequest,
        sink: UnarySink<csi::ListSnapshotsResponse>,
    ) {
        forget(&mut wire.secrets);
        self.answer(
            &ctx,
            sink,
            RpcInfo::question("ListSnapshots", of("volume", &wire.source_volume_id)),
            move |controller, ctx| {
                Ok(listed_snapshots(&controller.list_snapshots(&ctx, &ListSnapshots::parse(&wire)?)?))
            },
        );
    }

    fn get_snapshot(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::GetSnapshotRequest,
        sink: UnarySink<csi::GetSnapshotResponse>,
    ) {
        forget(&mut wire.secrets);
        self.answer(
            &ctx,
            sink,
            RpcInfo::question("GetSnapshot", of("snapshot", &wire.snapshot_id)),
            move |controller, ctx| {
                let found = controller.find_snapshot(&ctx, &snapshot_id("snapshot_id", wire.snapshot_id)?)?;
                Ok(csi::GetSnapshotResponse { snapshot: Some(snapshot(&found)).into(), ..Default::default() })
            },
        );
    }
}

/// What a call is about that names one thing.
fn of(key: &'static str, value: &str) -> About {
    About::default().with(key, value)
}

fn capability(kind: Type) -> csi::ControllerServiceCapability {
    let rpc = controller_service_capability::RPC { type_: kind.into(), ..Default::default() };
    csi::ControllerServiceCapability {
        type_: Some(controller_service_capability::Type::Rpc(rpc)),
        ..Default::default()
    }
}
