//! What `doctor` looks at besides the volumes: the token's scopes, the account, this node, Nomad.
//!
//! Owns the looks. A scope for a change is found out by asking for one that cannot be: of a volume that does not exist.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cloud::page::Page;
use crate::cloud::{ApiResult, Cloud};
use crate::commands::world::{CloudAccess, Source, World};
use crate::error::api::ApiErrorKind;
use crate::error::{Chain, Error};
use crate::fs::FsKind;
use crate::host::command::find_tools;
use crate::host::device::sysfs::check_is_sysfs;
use crate::host::mount_table::observe_mounts;
use crate::host::mountable::observe_missing_file_systems;
use crate::host::propagation::observe_nothing_reaches;
use crate::id::{DropletId, SnapshotId, VolumeId};
use crate::nomad::Plugin;
use crate::ops::diagnosis::account::{diagnose_account, diagnose_refusal, diagnose_snapshots};
use crate::ops::diagnosis::here::diagnose_reach;
use crate::ops::diagnosis::machine::{Machine, diagnose_machine};
use crate::ops::diagnosis::{Finding, Reason, Subject};
use crate::rpc::probe::probe;

/// How long the questions about scopes may take together.
const BUDGET: Duration = Duration::from_secs(30);
/// An id that no volume and no snapshot has.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
/// The capability that mounting takes. Source: capabilities(7), `CAP_SYS_ADMIN`.
const CAP_SYS_ADMIN: u64 = 21;
/// The rule of DigitalOcean's images.
const AUTOMOUNT_RULE: &str = "/etc/udev/rules.d/99-digitalocean-automount.rules";

/// What one look has brought.
#[derive(Debug)]
pub(super) struct Check {
    /// What was looked at.
    pub(super) name: &'static str,
    pub(super) outcome: Outcome,
}

/// How a look has ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// All is well, in a few words.
    Well(String),
    /// Something is wrong.
    Found(Vec<Finding>),
    /// There is nothing to look at, for this reason.
    Skipped(String),
    /// It could not be looked at.
    Blind(String),
}

impl Check {
    fn new(name: &'static str, findings: Vec<Finding>, well: impl Into<String>) -> Check {
        let outcome = if findings.is_empty() { Outcome::Well(well.into()) } else { Outcome::Found(findings) };
        Check { name, outcome }
    }
}

/// Looks at everything besides the volumes.
pub(super) fn look(source: &Source, world: &World) -> Vec<Check> {
    let mut checks = match &source.cloud {
        Some(access) => look_at_cloud(access, world),
        None => vec![Check { name: "token", outcome: Outcome::Skipped(NO_TOKEN.to_owned()) }],
    };
    checks.push(Check { name: "region", outcome: look_at_region(source, world) });
    checks.push(look_at_machine(source, world));
    checks.push(look_at_nomad(source, world));
    checks
}

const NO_TOKEN: &str = "none is given (DIGITALOCEAN_ACCESS_TOKEN, --token-file), so only this node is looked at";

fn look_at_cloud(access: &CloudAccess, world: &World) -> Vec<Check> {
    let cloud = access.within(BUDGET);
    let origin = &access.token_origin;
    let mut account = Vec::new();
    match cloud.get_account() {
        Ok(found) => account.extend(diagnose_account(&found, u64::try_from(world.volumes.len()).unwrap_or(u64::MAX))),
        Err(err) => account.push(diagnose_refusal(&err, "account:read", origin)),
    }
    let is_refused =
        account.iter().any(|finding| matches!(finding.reason, Reason::TokenRejected | Reason::ApiUnreachable));
    let token: Vec<Finding> = account.extract_if(.., |finding| is_of_token(finding.reason)).collect();
    let mut checks = vec![Check::new("token", token, format!("DigitalOcean takes the one from {origin}"))];
    // Each of the others would only say the same again.
    if is_refused {
        return checks;
    }
    checks.push(Check::new("account", account, format!("active, with {} volumes", world.volumes.len())));
    let mut scopes: Vec<Finding> = world.refusals.clone();
    scopes.extend(missing_scopes(&cloud).into_iter().map(|(scope, err)| diagnose_refusal(&err, scope, origin)));
    checks.push(Check::new("scopes", scopes, "all that can be asked about without a change"));
    let snapshots = match cloud.list_snapshots(Page::first()) {
        Ok(page) => {
            Check::new("snapshots", diagnose_snapshots(&page.items, SystemTime::now()), "no temporary one is left")
        }
        Err(err) => {
            let finding = diagnose_refusal(&err, "block_storage_snapshot:read and snapshot:read", origin);
            Check::new("snapshots", vec![finding], "")
        }
    };
    checks.push(snapshots);
    checks
}

fn is_of_token(reason: Reason) -> bool {
    matches!(reason, Reason::TokenRejected | Reason::ApiUnreachable | Reason::RequestsUsedUp | Reason::ScopeMissing)
}

/// The scopes that the token lacks, with the refusals. Nothing that is asked for here can be done.
fn missing_scopes(cloud: &Cloud) -> Vec<(&'static str, crate::error::api::ApiError)> {
    let (Ok(volume), Ok(snapshot), Some(droplet)) =
        (VolumeId::parse(NOBODY), SnapshotId::parse(NOBODY), DropletId::new(1))
    else {
        return Vec::new();
    };
    let questions: [(&str, ApiResult<()>); 4] = [
        ("block_storage_action:read", cloud.newest_actions(&volume).map(drop)),
        ("block_storage_action:create", cloud.detach(&volume, droplet).map(drop)),
        ("block_storage:delete", cloud.delete_volume(&volume)),
        ("block_storage_snapshot:delete", cloud.delete_snapshot(&snapshot)),
    ];
    let refused = |(scope, outcome): (&'static str, ApiResult<()>)| {
        outcome.err().filter(|err| err.kind() == ApiErrorKind::Forbidden).map(|err| (scope, err))
    };
    questions.into_iter().filter_map(refused).collect()
}

fn look_at_region(source: &Source, world: &World) -> Outcome {
    match (&world.region, &world.metadata) {
        (Some(region), _) if source.config.region.is_some() => Outcome::Well(format!("{region}, as it was given")),
        (Some(region), _) => Outcome::Well(format!("{region}, this droplet's")),
        (None, Some(why)) => Outcome::Skipped(format!("not known, so the volumes of all regions are shown: {why}")),
        (None, None) => Outcome::Skipped("not known, so the volumes of all regions are shown".to_owned()),
    }
}

/// Looks at the node, if this is one: a laptop with a token has nothing to mount.
fn look_at_machine(source: &Source, world: &World) -> Check {
    let name = "node";
    let is_here = !world.only_here.is_empty() || world.volumes.iter().any(|known| known.here.is_some());
    let has_plugin = source.config.socket.exists();
    if !has_plugin && !is_here && world.own.is_none() {
        let why = format!("this is no droplet, and no plugin serves {}", source.config.socket.display());
        return Check { name, outcome: Outcome::Skipped(why) };
    }
    let mut findings = diagnose_machine(&observe_machine(source, world, has_plugin));
    match observe_nothing_reaches() {
        Ok(nothing_reaches) => findings.extend(diagnose_reach(nothing_reaches)),
        Err(err) => return Check { name, outcome: Outcome::Blind(Chain(&err).to_string()) },
    }
    Check::new(name, findings, "rights, /dev, /sys, programs, kernel, mounts")
}

fn observe_machine(source: &Source, world: &World, has_plugin: bool) -> Machine {
    let config = &source.config;
    let volumes = world.only_here.len() + world.volumes.iter().filter(|known| known.here.is_some()).count();
    let metadata = world.metadata.clone().filter(|_| config.droplet_id.is_none() || config.region.is_none());
    Machine {
        may_mount: observe_may_mount(),
        sysfs: check_is_sysfs(&config.sys_dir).err().map(|err: Error| Chain(&err).to_string()),
        has_devices: observe_mounts()
            .ok()
            .map(|mounts| mounts.holding(Path::new("/dev")).is_some_and(|mount| mount.fstype == "devtmpfs")),
        missing_tool: find_tools().err().map(|missing| missing.to_string()),
        missing_file_systems: observe_missing_file_systems().into_iter().map(FsKind::name).collect(),
        is_selinux_enforced: fs::read_to_string(config.sys_dir.join("fs/selinux/enforce"))
            .is_ok_and(|text| text.trim() == "1"),
        has_label: config.selinux_label.is_some(),
        automount_rule: Some(PathBuf::from(AUTOMOUNT_RULE)).filter(|rule| rule.exists()),
        has_device_mapper: Path::new("/dev/mapper/control").exists(),
        volumes,
        silent_plugin: if has_plugin { probe(&config.socket).err() } else { None },
        metadata,
    }
}

/// Whether this process has the capability that mounting takes; `None`: the system does not tell.
fn observe_may_mount() -> Option<bool> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let set = u64::from_str_radix(set.trim(), 16).ok()?;
    Some(set & (1 << CAP_SYS_ADMIN) != 0)
}

fn look_at_nomad(source: &Source, world: &World) -> Check {
    let name = "Nomad";
    let Some(nomad) = &source.nomad else {
        let why = "NOMAD_ADDR is not set, so claims are not compared with attachments";
        return Check { name, outcome: Outcome::Skipped(why.to_owned()) };
    };
    let Some(claims) = &world.claims else {
        return Check { name, outcome: Outcome::Blind(world.blind.join("; ")) };
    };
    let findings = world.plugins.iter().flat_map(diagnose_plugin).collect();
    let seen = if claims.sees_all { "every claim is seen" } else { "claims in some namespaces may not be seen" };
    Check::new(name, findings, format!("{}: {} volumes registered, {seen}", nomad.address(), claims.volumes.len()))
}

/// What is wrong with a plugin, by what Nomad says of it. Pure.
fn diagnose_plugin(plugin: &Plugin) -> Option<Finding> {
    let find = |what: &str, healthy: u64, expected: u64| {
        let message = format!("Nomad's plugin {:?} has {healthy} of {expected} healthy {what}", plugin.id);
        let cure = format!(
            "look at it with `nomad plugin status -verbose {}` and at its log with `nomad alloc logs -stderr ALLOC_ID`",
            plugin.id
        );
        Finding::new(Reason::PluginUnhealthy, &Subject::Nomad, message, cure)
    };
    let controllers = (plugin.controllers_healthy, plugin.controllers_expected);
    let nodes = (plugin.nodes_healthy, plugin.nodes_expected);
    match (controllers, nodes) {
        ((0, expected), _) if expected > 0 => Some(find("controllers", 0, expected)),
        (_, (healthy, expected)) if healthy < expected => Some(find("nodes", healthy, expected)),
        ((_, _), (_, _)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_unhealthy_without_a_controller_or_with_a_node_that_does_not_answer() {
        let plugin = |controllers, nodes| Plugin {
            id: "digitalocean".to_owned(),
            controllers_healthy: controllers,
            controllers_expected: 2,
            nodes_healthy: nodes,
            nodes_expected: 3,
            ..Plugin::default()
        };
        for (controllers, nodes, is_found) in [(2, 3, false), (1, 3, false), (0, 3, true), (2, 2, true), (0, 0, true)] {
            assert_eq!(diagnose_plugin(&plugin(controllers, nodes)).is_some(), is_found, "{controllers} {nodes}");
        }
        assert_eq!(diagnose_plugin(&Plugin::default()), None);
    }
}
