//! The Node service: reads each request, queues its work, builds the response.
//!
//! Owns nothing but the passage between the wire and `node/`. Capabilities and the node's info are answered on the spot.

use std::sync::Arc;

use grpcio::{RpcContext, UnarySink};

use crate::cloud::region::Region;
use crate::config::Config;
use crate::node::Node;
use crate::node::stats::{Condition, Usage};
use crate::own_droplet::OwnDroplet;
use crate::request::controller::REGION_KEY;
use crate::request::node::{ContextKeys, Expand, Publish, Stage, Stats, Unpublish, Unstage};
use crate::rpc::proto::csi::{self, node_service_capability, node_service_capability::rpc::Type, volume_usage::Unit};
use crate::rpc::proto::csi_grpc;
use crate::rpc::worker::{Call, Pool, answer_now};
use crate::size::Bytes;

/// What the node can do beyond publishing.
const CAPABILITIES: [Type; 5] = [
    Type::STAGE_UNSTAGE_VOLUME,
    Type::GET_VOLUME_STATS,
    Type::VOLUME_CONDITION,
    Type::EXPAND_VOLUME,
    Type::SINGLE_NODE_MULTI_WRITER,
];

/// Serves the Node service.
#[derive(Debug, Clone)]
pub struct NodeService {
    volume_limit: u32,
    own_droplet: Arc<OwnDroplet>,
    node: Arc<Node>,
    keys: Arc<ContextKeys>,
    pool: Pool,
}

impl NodeService {
    /// Makes the service; its work is done by the threads of `pool`. The volumes that are in use outside CSI at this moment
    /// are taken off the limit.
    #[must_use]
    pub fn new(config: &Config, own_droplet: Arc<OwnDroplet>, node: Arc<Node>, pool: Pool) -> Self {
        let keys = Arc::new(ContextKeys::new(&config.driver_name));
        let volume_limit = node.observe_limit(config.volume_limit);
        NodeService { volume_limit, own_droplet, node, keys, pool }
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
        answer_now(&ctx, sink, "NodeGetInfo", || {
            let facts = self.own_droplet.facts()?;
            Ok(csi::NodeGetInfoResponse {
                node_id: facts.id.to_string(),
                max_volumes_per_node: i64::from(self.volume_limit),
                accessible_topology: Some(topology(&facts.region)).into(),
                ..Default::default()
            })
        });
    }

    fn node_stage_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::NodeStageVolumeRequest,
        sink: UnarySink<csi::NodeStageVolumeResponse>,
    ) {
        let (node, keys) = (Arc::clone(&self.node), Arc::clone(&self.keys));
        self.pool.answer(&ctx, sink, Call::change("NodeStageVolume", &*wire.volume_id), move |_| {
            node.stage(&Stage::parse(wire, &keys)?)?;
            Ok(csi::NodeStageVolumeResponse::default())
        });
    }

    fn node_unstage_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::NodeUnstageVolumeRequest,
        sink: UnarySink<csi::NodeUnstageVolumeResponse>,
    ) {
        let node = Arc::clone(&self.node);
        self.pool.answer(&ctx, sink, Call::change("NodeUnstageVolume", &*wire.volume_id), move |_| {
            node.unstage(&Unstage::parse(wire)?)?;
            Ok(csi::NodeUnstageVolumeResponse::default())
        });
    }

    fn node_publish_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::NodePublishVolumeRequest,
        sink: UnarySink<csi::NodePublishVolumeResponse>,
    ) {
        let (node, keys) = (Arc::clone(&self.node), Arc::clone(&self.keys));
        self.pool.answer(&ctx, sink, Call::change("NodePublishVolume", &*wire.volume_id), move |_| {
            node.publish(&Publish::parse(wire, &keys)?)?;
            Ok(csi::NodePublishVolumeResponse::default())
        });
    }

    fn node_unpublish_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::NodeUnpublishVolumeRequest,
        sink: UnarySink<csi::NodeUnpublishVolumeResponse>,
    ) {
        let node = Arc::clone(&self.node);
        self.pool.answer(&ctx, sink, Call::change("NodeUnpublishVolume", &*wire.volume_id), move |_| {
            node.unpublish(&Unpublish::parse(wire)?)?;
            Ok(csi::NodeUnpublishVolumeResponse::default())
        });
    }

    fn node_get_volume_stats(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::NodeGetVolumeStatsRequest,
        sink: UnarySink<csi::NodeGetVolumeStatsResponse>,
    ) {
        let node = Arc::clone(&self.node);
        let call = Call::question("NodeGetVolumeStats", &*wire.volume_id);
        self.pool.answer(&ctx, sink, call, move |_| {
            let report = node.stats(&Stats::parse(wire)?)?;
            Ok(csi::NodeGetVolumeStatsResponse {
                usage: report.usage.iter().map(usage).collect(),
                volume_condition: Some(condition(report.condition)).into(),
                ..Default::default()
            })
        });
    }

    fn node_expand_volume(
        &mut self,
        ctx: RpcContext<'_>,
        wire: csi::NodeExpandVolumeRequest,
        sink: UnarySink<csi::NodeExpandVolumeResponse>,
    ) {
        let node = Arc::clone(&self.node);
        self.pool.answer(&ctx, sink, Call::change("NodeExpandVolume", &*wire.volume_id), move |_| {
            let size = node.expand(&Expand::parse(wire)?)?;
            Ok(csi::NodeExpandVolumeResponse { capacity_bytes: size.wire(), ..Default::default() })
        });
    }
}

/// The topology of everything in one region: exactly one segment, as Nomad before 1.9.4 compares for equality.
#[must_use]
pub fn topology(region: &Region) -> csi::Topology {
    csi::Topology { segments: [(REGION_KEY.to_owned(), region.to_string())].into(), ..Default::default() }
}

fn capability(kind: Type) -> csi::NodeServiceCapability {
    let rpc = node_service_capability::RPC { type_: kind.into(), ..Default::default() };
    csi::NodeServiceCapability { type_: Some(node_service_capability::Type::Rpc(rpc)), ..Default::default() }
}

fn condition(condition: Condition) -> csi::VolumeCondition {
    let (abnormal, message) = match condition {
        Condition::Normal => (false, "the volume works".to_owned()),
        Condition::Dead(health) => (true, format!("the volume is dead: {health}")),
        Condition::ReadOnlyByError => (true, "the volume became read-only because of errors, see dmesg".to_owned()),
    };
    csi::VolumeCondition { abnormal, message, ..Default::default() }
}

fn usage(usage: &Usage) -> csi::VolumeUsage {
    let (unit, counts) = match usage {
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
