//! The Identity service: who this plugin is and which services it has.
//!
//! Answered on the spot and from memory, never behind a queue and never by asking DigitalOcean: orchestrators probe
//! every few seconds and take a slow answer for a dead plugin.

use std::sync::Arc;

use grpcio::{RpcContext, UnarySink};
use protobuf::well_known_types::wrappers::BoolValue;

use crate::config::Config;
use crate::proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse, plugin_capability,
};
use crate::proto::csi_grpc::Identity;
use crate::rpc::worker::answer_now;

/// Serves Identity from the settings alone.
#[derive(Debug, Clone)]
pub struct IdentityService {
    config: Arc<Config>,
}

impl IdentityService {
    /// Makes the service.
    #[must_use]
    pub fn new(config: Arc<Config>) -> Self {
        IdentityService { config }
    }
}

impl Identity for IdentityService {
    fn get_plugin_info(
        &mut self,
        ctx: RpcContext<'_>,
        _: GetPluginInfoRequest,
        sink: UnarySink<GetPluginInfoResponse>,
    ) {
        answer_now(&ctx, sink, "GetPluginInfo", || {
            Ok(GetPluginInfoResponse {
                name: self.config.driver_name.clone(),
                vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..Default::default()
            })
        });
    }

    fn get_plugin_capabilities(
        &mut self,
        ctx: RpcContext<'_>,
        _: GetPluginCapabilitiesRequest,
        sink: UnarySink<GetPluginCapabilitiesResponse>,
    ) {
        answer_now(&ctx, sink, "GetPluginCapabilities", || {
            Ok(GetPluginCapabilitiesResponse { capabilities: capabilities(&self.config), ..Default::default() })
        });
    }

    /// Ready means that calls are answered: what they need from outside is waited for inside the calls.
    fn probe(&mut self, ctx: RpcContext<'_>, _: ProbeRequest, sink: UnarySink<ProbeResponse>) {
        answer_now(&ctx, sink, "Probe", || {
            let ready = BoolValue { value: true, ..Default::default() };
            Ok(ProbeResponse { ready: Some(ready).into(), ..Default::default() })
        });
    }
}

fn capabilities(config: &Config) -> Vec<PluginCapability> {
    use plugin_capability::service::Type;

    let mut services = vec![Type::VOLUME_ACCESSIBILITY_CONSTRAINTS, Type::SNAPSHOT_ACCESSIBILITY_CONSTRAINTS];
    if config.mode.has_controller() {
        services.push(Type::CONTROLLER_SERVICE);
    }
    services.into_iter().map(service).chain([online_expansion()]).collect()
}

/// Volumes grow while they are in use.
fn online_expansion() -> PluginCapability {
    use plugin_capability::volume_expansion::Type;

    let expansion = plugin_capability::VolumeExpansion { type_: Type::ONLINE.into(), ..Default::default() };
    PluginCapability { type_: Some(plugin_capability::Type::VolumeExpansion(expansion)), ..Default::default() }
}

fn service(kind: plugin_capability::service::Type) -> PluginCapability {
    let service = plugin_capability::Service { type_: kind.into(), ..Default::default() };
    PluginCapability { type_: Some(plugin_capability::Type::Service(service)), ..Default::default() }
}
