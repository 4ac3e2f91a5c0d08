//! The Node service: reads each request, queues its work, builds the response.
//!
//! Owns the passage between the wire and `node/`, and which threads work on which call. Capabilities are
//! answered on the spot, and the node's info too once it is known.

use std::sync::Arc;

use grpcio::{RpcContext, UnarySink};

use crate::activity::About;
use crate::config;
use crate::config::Config;
use crate::droplet_identity::{DropletIdentity, Facts};
use crate::error::Result;
use crate::host::mount_report::Usage;
use crate::node::{Arrival, Node};
use crate::ops::diagnosis::here::diagnose_mount;
use crate::ops::diagnosis::{Subject, plan_condition};
use crate::proto::csi;
use crate::proto::csi::node_service_capability;
use crate::proto::csi::node_service_capability::rpc::Type;
use crate::proto::csi::volume_usage::Unit;
use crate::proto::csi_grpc;
use crate::request::node::{Expand, Health, Publish, Stage, Stats, Unpublish, Unstage};
use crate::request::publish_context::ContextKeys;
use crate::request::secrets::{Secrets, forget};
use crate::rpc::health::{storage_health, volume_health};
use crate::rpc::response::{condition, topology};
use crate::rpc::worker::{Incoming, Pool, RpcInfo, answer_now, refuse};
use crate::size::Bytes;
use crate::sync::volume_lock::VolumeKey;

/// What the node can do beyond publishing.
const CAPABILITIES: [Type; 7] = [
    Type::STAGE_UNSTAGE_VOLUME,
    Type::GET_VOLUME_STATS,
    Type::VOLUME_CONDITION,
    Type::EXPAND_VOLUME,
    Type::SINGLE_NODE_MULTI_WRITER,
    Type::GET_VOLUME_HEALTH,
    Type::GET_STORAGE_HEALTH,
];

/// Serves the Node service.
#[derive(Debug, Clone)]
pub struct NodeService {
    volume_limit: u32,
    droplet_identity: Arc<DropletIdentity>,
    node: Arc<Node>,
    keys: Arc<ContextKeys>,
    pools: Pools,
}

/// The threads that do the work of the calls, by what the calls wait for.
#[derive(Debug, Clone)]
struct Pools {
    /// Of the calls that may wait for a disk to come or to grow.
    bring: Pool,
    /// Of the calls that take a volume away: they must never queue behind those that wait for a disk.
    take: Pool,
    /// Of the calls that only look: they would wait in the kernel for a disk that does not answer, and the call that takes
    /// such a volume away must not queue behind them.
    look: Pool,
    /// Of NodeGetInfo, as long as the droplet is not known.
    info: Pool,
}

impl NodeService {
    /// Makes the service, with threads of its own. The volumes that are in use outside CSI at this moment are taken off the
    /// limit.
    #[must_use]
    pub fn new(config: &Config, droplet_identity: Arc<DropletIdentity>, node: Arc<Node>) -> Self {
        let keys = Arc::new(ContextKeys::new(&config.driver_name));
        let volume_limit = node.observe_limit(config.volume_limit);
        let pool = |name| Pool::new(name, config::NODE_WORKERS, config::QUEUE_LENGTH);
        let info = Pool::new("node-info", config::INFO_WORKERS, config::QUEUE_LENGTH);
        let pools = Pools { bring: pool("node"), take: pool("node-take"), look: pool("node-look"), info };
        NodeService { volume_limit, droplet_identity, node, keys, pools }
    }

    /// The threads that do the work, for who wants to know what they do.
    #[must_use]
    pub fn pools(&self) -> [Pool; 4] {
        [&self.pools.bring, &self.pools.take, &self.pools.look, &self.pools.info].map(Pool::clone)
    }

    /// Queues a call that changes a volume, which is in line for it from this moment on.
    fn answer<T, F>(&self, pool: &Pool, ctx: &RpcContext<'_>, sink: UnarySink<T>, named: Named, work: F)
    where
        T: Send + 'static,
        F: FnOnce(&Node, Arrival) -> Result<T> + Send + 'static,
    {
        let Named { rpc, volume, about } = named;
        let (node, call) = (Arc::clone(&self.node), RpcInfo::change(rpc, about));
        match node.arrive(&volume) {
            Ok(arrival) => {
                pool.answer(ctx, sink, call.on(VolumeKey::Id(volume)), move |Incoming { caller, .. }| {
                    work(&node, arrival.for_caller(caller))
                })
            }
            Err(full) => refuse(ctx, sink, &call, full),
        }
    }
}

/// Which call it is, for which volume.
struct Named {
    rpc: &'static str,
    volume: String,
    about: About,
}

impl Named {
    /// A call for a volume at a path, which may name the allocation that wants it.
    fn new(rpc: &'static str, volume: &str, path: &str) -> Named {
        Named { rpc, volume: volume.to_owned(), about: About::default().with("volume", volume).at(path) }
    }
}

impl csi_grpc::Node for NodeService {
    fn node_get_capabilities(
        &mut self,
        ctx: RpcContext<'_>,
        _: csi::NodeGetCapabilitiesRequest,
        sink: UnarySink<csi::NodeGetCapabilitiesResponse>,
    ) {
        answer_now(&ctx, sink, "NodeGetCapabilities", || {
            let capabilities = CAPABILITIES.into_iter().map(capability).collect();
            Ok(csi::NodeGetCapabilitiesResponse { capabilities, ..Default::default() })
        });
    }

    fn node_get_info(
        &mut self,
        ctx: RpcContext<'_>,
        _: csi::NodeGetInfoRequest,
        sink: UnarySink<csi::NodeGetInfoResponse>,
    ) {
        let limit = self.volume_limit;
        if let Ok(facts) = self.droplet_identity.facts() {
            answer_now(&ctx, sink, "NodeGetInfo", || Ok(info(&facts, limit)));
            return;
        }
        let droplet_identity = Arc::clone(&self.droplet_identity);
        self.pools.info.answer(
            &ctx,
            sink,
            RpcInfo::question("NodeGetInfo", About::default()),
            move |Incoming { came, .. }| {
                let give_up = came.checked_add(config::INFO_PATIENCE).unwrap_or(came);
                Ok(info(&droplet_identity.wait_for_facts(give_up)?, limit))
            },
        );
    }

    fn node_stage_volume(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::NodeStageVolumeRequest,
        sink: UnarySink<csi::NodeStageVolumeResponse>,
    ) {
        let secrets = Secrets::take(&mut wire.secrets);
        let keys = Arc::clone(&self.keys);
        let call = Named::new("NodeStageVolume", &wire.volume_id, &wire.staging_target_path);
        self.answer(&self.pools.bring, &ctx, sink, call, move |node, arrival| {
            node.stage(&Stage::parse(wire, &secrets, &keys)?, arrival)?;
            Ok(csi::NodeStageVolumeResponse::default())
        });
    }

    fn node_unstage_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::NodeUnstageVolumeRequest,
        sink: UnarySink<csi::NodeUnstageVolumeResponse>,
    ) {
        let call = Named::new("NodeUnstageVolume", &wire.volume_id, &wire.staging_target_path);
        self.answer(&self.pools.take, &ctx, sink, call, move |node, arrival| {
            node.unstage(&Unstage::parse(wire)?, arrival)?;
            Ok(csi::NodeUnstageVolumeResponse::default())
        });
    }

    fn node_publish_volume(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::NodePublishVolumeRequest,
        sink: UnarySink<csi::NodePublishVolumeResponse>,
    ) {
        let secrets = Secrets::take(&mut wire.secrets);
        let keys = Arc::clone(&self.keys);
        let call = Named::new("NodePublishVolume", &wire.volume_id, &wire.target_path);
        self.answer(&self.pools.bring, &ctx, sink, call, move |node, arrival| {
            node.publish(&Publish::parse(wire, &secrets, &keys)?, arrival)?;
            Ok(csi::NodePublishVolumeResponse::default())
        });
    }

    fn node_unpublish_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::NodeUnpublishVolumeRequest,
        sink: UnarySink<csi::NodeUnpublishVolumeResponse>,
    ) {
        let call = Named::new("NodeUnpublishVolume", &wire.volume_id, &wire.target_path);
        self.answer(&self.pools.take, &ctx, sink, call, move |node, arrival| {
            node.unpublish(&Unpublish::parse(wire)?, arrival)?;
            Ok(csi::NodeUnpublishVolumeResponse::default())
        });
    }

    fn node_get_volume_stats(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::NodeGetVolumeStatsRequest,
        sink: UnarySink<csi::NodeGetVolumeStatsResponse>,
    ) {
        let Named { rpc, volume, about } = Named::new("NodeGetVolumeStats", &wire.volume_id, &wire.volume_path);
        let (node, call) = (Arc::clone(&self.node), RpcInfo::question(rpc, about));
        self.pools.look.answer(&ctx, sink, call.on(VolumeKey::Id(volume)), move |_| {
            let want = Stats::parse(wire)?;
            let report = node.stats(&want)?;
            let findings = diagnose_mount(&Subject::volume(&want.volume, &""), &report);
            Ok(csi::NodeGetVolumeStatsResponse {
                usage: report.usage.iter().map(usage).collect(),
                volume_condition: Some(condition(plan_condition(&findings, WELL.to_owned()))).into(),
                ..Default::default()
            })
        });
    }

    fn node_get_volume_health(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::NodeGetVolumeHealthRequest,
        sink: UnarySink<csi::NodeGetVolumeHealthResponse>,
    ) {
        let call = RpcInfo::question("NodeGetVolumeHealth", About::default().with("volume", &wire.volume_id));
        let node = Arc::clone(&self.node);
        self.pools.look.answer(&ctx, sink, call, move |_| {
            let want = Health::parse(wire)?;
            let health = volume_health(&want.volume, &node.volume_health(&want)?);
            Ok(csi::NodeGetVolumeHealthResponse { volume_health: Some(health).into(), ..Default::default() })
        });
    }

    fn node_get_storage_health(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::NodeGetStorageHealthRequest,
        sink: UnarySink<csi::NodeGetStorageHealthResponse>,
    ) {
        forget(&mut wire.secrets);
        let node = Arc::clone(&self.node);
        let call = RpcInfo::question("NodeGetStorageHealth", About::default());
        self.pools.look.answer(&ctx, sink, call, move |_| Ok(storage_health(&node.storage_health()?)));
    }

    fn node_expand_volume(
        &mut self,
        ctx: RpcContext<'_>,
        mut wire: csi::NodeExpandVolumeRequest,
        sink: UnarySink<csi::NodeExpandVolumeResponse>,
    ) {
        let secrets = Secrets::take(&mut wire.secrets);
        let call = Named::new("NodeExpandVolume", &wire.volume_id, &wire.volume_path);
        self.answer(&self.pools.bring, &ctx, sink, call, move |node, arrival| {
            let size = node.expand(&Expand::parse(wire, &secrets)?, arrival)?;
            Ok(csi::NodeExpandVolumeResponse { capacity_bytes: size.wire(), ..Default::default() })
        });
    }
}

fn info(facts: &Facts, volume_limit: u32) -> csi::NodeGetInfoResponse {
    csi::NodeGetInfoResponse {
        node_id: facts.id.to_string(),
        max_volumes_per_node: i64::from(volume_limit),
        accessible_topology: Some(topology(&facts.region)).into(),
        ..Default::default()
    }
}

fn capability(kind: Type) -> csi::NodeServiceCapability {
    let rpc = node_service_capability::RPC { type_: kind.into(), ..Default::default() };
    csi::NodeServiceCapability { type_: Some(node_service_capability::Type::Rpc(rpc)), ..Default::default() }
}

/// What is said of a volume with which nothing is wrong.
const WELL: &str = "the volume works";

fn usage(usage: &Usage) -> csi::VolumeUsage {
    let (unit, counts) = match usage {
        // What is not known stays unset, as CSI has it.
        Usage::Size(total) => {
            let (unit, total) = (Unit::BYTES.into(), Bytes(*total).wire());
            return csi::VolumeUsage { unit, total, ..Default::default() };
        }
        Usage::Bytes(counts) => (Unit::BYTES, counts),
        Usage::Inodes(counts) => (Unit::INODES, counts),
    };
    csi::VolumeUsage {
        unit: unit.into(),
        total: Bytes(counts.total).wire(),
        used: Bytes(counts.used).wire(),
        available: Bytes(counts.available).wire(),
        ..Default::default()
    }
}
