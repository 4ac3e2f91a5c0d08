//! What `doctor` looks at besides the volumes: the token's scopes, the account, the clock, the proxy, this node, Nomad.
//!
//! Owns the order of the looks, and the questions about scopes. A scope for a change is found out by asking for one that cannot be: of a volume that does not exist.

use std::time::{Duration, SystemTime};

use crate::cloud::page::Page;
use crate::cloud::tag::Tag;
use crate::cloud::volume::NewVolume;
use crate::cloud::{ApiResult, Cloud};
use crate::commands::world::{CloudAccess, NO_TOKEN, Source, World};
use crate::config::Config;
use crate::config::command::Lent;
use crate::error::Chain;
use crate::error::api::{ApiError, ApiErrorKind};
use crate::host::inventory::VolumeHere;
use crate::host::propagation::observe_nothing_reaches;
use crate::id::{DropletId, SnapshotId, VolumeId, VolumeName};
use crate::ops::diagnosis::account::{
    diagnose_account, diagnose_clock, diagnose_proxy, diagnose_refusal, diagnose_snapshots,
};
use crate::ops::diagnosis::cluster::diagnose_plugin;
use crate::ops::diagnosis::here::diagnose_reach;
use crate::ops::diagnosis::machine::diagnose_machine;
use crate::ops::diagnosis::{Finding, Reason};
use crate::ops::machine::observe_machine;
use crate::region::Region;
use crate::rpc::probe::probe;
use crate::size::Gib;

/// How long the questions about scopes may take together.
const BUDGET: Duration = Duration::from_secs(30);
/// An id that no volume and no snapshot has.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
/// A region that does not exist, and a volume's name for it.
const NOWHERE: (&str, &str) = ("none0", "do-csi-doctor");

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
    let mut checks = Vec::new();
    checks.extend(look_at_flags(&source.lent));
    match &source.cloud {
        Some(access) => checks.extend(look_at_cloud(&source.config, access, world)),
        None => {
            checks.push(Check {
                name: "token",
                outcome: Outcome::Skipped(format!("{NO_TOKEN}, so DigitalOcean is not asked")),
            });
        }
    }
    checks.push(Check { name: "region", outcome: look_at_region(source, world) });
    checks.push(look_at_machine(source, world));
    checks.push(look_at_nomad(source, world));
    checks
}

/// What was taken over of the running plugin, and what could not be.
fn look_at_flags(lent: &Lent) -> Option<Check> {
    let taken = format!("{}, as the running plugin has them", lent.taken_over.join(" "));
    let outcome = match (lent.taken_over.as_slice(), lent.left_out.as_slice()) {
        ([], []) => return None,
        ([_, ..], []) => Outcome::Well(taken),
        (_, left_out) => Outcome::Blind(format!("not as the running plugin has them: {}", left_out.join("; "))),
    };
    Some(Check { name: "flags", outcome })
}

fn look_at_cloud(config: &Config, access: &CloudAccess, world: &World) -> Vec<Check> {
    let cloud = access.within(BUDGET);
    let origin = &access.token_origin;
    let volumes = world.is_listed.then(|| u64::try_from(world.volumes.len()).unwrap_or(u64::MAX));
    let mut account = Vec::new();
    match cloud.get_account() {
        Ok(found) => account.extend(diagnose_account(&found, volumes.unwrap_or_default())),
        Err(err) => account.push(diagnose_refusal(&err, "account:read", origin)),
    }
    let is_refused =
        account.iter().any(|finding| matches!(finding.reason, Reason::TokenRejected | Reason::ApiUnreachable));
    let token = account.extract_if(.., |finding| is_of_token(finding.reason));
    // Of one reason that two requests have met, each with an id of its own, one is enough.
    let same = |found: &Finding| world.refusals.iter().find(|known| known.reason == found.reason).cloned();
    let token: Vec<Finding> = token.map(|found| same(&found).unwrap_or(found)).collect();
    let is_unreachable = token.iter().any(|finding| finding.reason == Reason::ApiUnreachable);
    let mut checks = vec![Check::new("token", token, format!("DigitalOcean takes the one from {origin}"))];
    checks.push(look_at_proxy(config, is_unreachable));
    checks.extend(
        cloud
            .last_clock()
            .map(|reading| Check::new("clock", diagnose_clock(&reading).into_iter().collect(), "that of DigitalOcean")),
    );
    // Each of the others would only say the same again.
    if is_refused {
        return checks;
    }
    let how_many =
        volumes.map_or_else(|| "which does not tell its volumes".to_owned(), |all| format!("with {all} volumes"));
    checks.push(Check::new("account", account, format!("active, {how_many}")));
    let mut scopes: Vec<Finding> = world.refusals.clone();
    scopes.extend(
        missing_scopes(&cloud, config.tag.as_ref())
            .into_iter()
            .map(|(scope, err)| diagnose_refusal(&err, scope, origin)),
    );
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

fn look_at_proxy(config: &Config, is_unreachable: bool) -> Check {
    let name = "proxy";
    match &config.route.proxy {
        None => Check { name, outcome: Outcome::Well("none".to_owned()) },
        Some(proxy) if is_unreachable => Check::new(name, vec![diagnose_proxy(proxy, config.api_url.as_str())], ""),
        Some(proxy) => Check { name, outcome: Outcome::Well(proxy.to_string()) },
    }
}

fn is_of_token(reason: Reason) -> bool {
    matches!(reason, Reason::TokenRejected | Reason::ApiUnreachable | Reason::RequestsUsedUp | Reason::ScopeMissing)
}

/// The scopes that the token lacks, with the refusals. Nothing that is asked for here can be done: it is of a volume that does
/// not exist, or of no size in a region that does not. Tags are asked about where volumes get the owner's.
fn missing_scopes(cloud: &Cloud, owner: Option<&Tag>) -> Vec<(&'static str, ApiError)> {
    let (Ok(volume), Ok(snapshot), Some(droplet), Ok(region), Ok(name)) = (
        VolumeId::parse(NOBODY),
        SnapshotId::parse(NOBODY),
        DropletId::new(1),
        Region::parse(NOWHERE.0),
        VolumeName::parse(NOWHERE.1),
    ) else {
        return Vec::new();
    };
    let description = String::new();
    let nothing = NewVolume { name, size: Gib(0), region, description, tags: Vec::new(), snapshot: None };
    let mut questions: Vec<(&str, ApiResult<()>)> = vec![
        ("block_storage:create", cloud.create_volume(&nothing).map(drop)),
        ("block_storage_snapshot:create", cloud.create_snapshot(&volume, NOWHERE.1, &[]).map(drop)),
        ("block_storage_action:read", cloud.newest_actions(&volume).map(drop)),
        ("block_storage_action:create", cloud.detach(&volume, droplet).map(drop)),
        ("block_storage:delete", cloud.delete_volume(&volume)),
        ("block_storage_snapshot:delete", cloud.delete_snapshot(&snapshot)),
    ];
    if let Some(owner) = owner {
        // The owner's tag is what a volume would be given anyway; of a volume that does not exist it changes nothing.
        questions.push(("tag:create and block_storage:update", cloud.put_tag(&volume, owner)));
    }
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
    let silent = if has_plugin { probe(&source.config.socket).err() } else { None };
    let needs_metadata = source.config.droplet_id.is_none() || source.config.region.is_none();
    let metadata = world.metadata.clone().filter(|_| needs_metadata);
    let here: Vec<&VolumeHere> =
        world.only_here.iter().chain(world.volumes.iter().filter_map(|known| known.here.as_ref())).collect();
    let mut findings = diagnose_machine(&observe_machine(&source.config, &here, silent, metadata));
    match observe_nothing_reaches() {
        Ok(nothing_reaches) => findings.extend(diagnose_reach(nothing_reaches)),
        Err(err) => return Check { name, outcome: Outcome::Blind(Chain(&err).to_string()) },
    }
    Check::new(name, findings, "rights, /dev, /sys, programs, kernel, mounts")
}

fn look_at_nomad(source: &Source, world: &World) -> Check {
    let name = "Nomad";
    let Some(nomad) = &source.nomad else {
        let why = "NOMAD_ADDR is not set, so claims are not compared with attachments";
        return Check { name, outcome: Outcome::Skipped(why.to_owned()) };
    };
    let Some(claims) = &world.claims else {
        return Check { name, outcome: Outcome::Blind(world.silent_nomad.clone().unwrap_or_default()) };
    };
    let findings = world.plugins.iter().flat_map(diagnose_plugin).collect();
    let seen = if claims.sees_all { "every claim is seen" } else { "claims in some namespaces may not be seen" };
    Check::new(name, findings, format!("{}: {} volumes registered, {seen}", nomad.address(), claims.volumes.len()))
}
