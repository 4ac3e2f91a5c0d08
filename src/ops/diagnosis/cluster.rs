//! What does not agree between DigitalOcean's volumes and Nomad's claims.
//!
//! Owns the findings about registrations, claims and nodes. Pure. What the token of Nomad does not show is never
//! taken for absent: a volume may be claimed in a namespace that is not seen.

use std::collections::BTreeMap;

use crate::cloud::volume::Volume;
use crate::id::{DropletId, VolumeId};
use crate::nomad::{ClaimingAllocation, NomadNode, Plugin, Registered};
use crate::ops::diagnosis::attachment::detach_command;
use crate::ops::diagnosis::{Finding, Reason, Repair, Subject};
use crate::spelling::shell_word;

/// What was read of Nomad.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    /// The volumes that are registered.
    pub volumes: Vec<Registered>,
    /// Nomad's nodes.
    pub nodes: Vec<NomadNode>,
    /// Which droplet each of Nomad's nodes is, as far as a plugin has said so.
    pub droplets: BTreeMap<DropletId, String>,
    /// Whether every claim is seen, in whatever namespace.
    pub sees_all: bool,
}

impl Claims {
    /// The registrations of a volume.
    pub fn of<'a>(&'a self, id: &'a VolumeId) -> impl Iterator<Item = &'a Registered> {
        self.volumes.iter().filter(move |volume| VolumeId::parse(&volume.external_id).as_ref() == Ok(id))
    }

    /// The registrations with this driver, or with a plugin of which nothing is known any more.
    fn of_driver<'a>(&'a self, driver: &'a str) -> impl Iterator<Item = &'a Registered> {
        self.volumes.iter().filter(move |volume| volume.provider == driver || volume.provider.is_empty())
    }
}

impl ClaimingAllocation {
    /// Whether it may be using the volume. One that is not known may.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !matches!(self.client_status.as_str(), "complete" | "failed" | "lost")
    }
}

/// What does not agree. `volumes` are all of the account that the token shows, `driver` is the CSI name of this
/// plugin. Pure.
#[must_use]
pub fn diagnose_claims(volumes: &[Volume], claims: &Claims, driver: &str) -> Vec<Finding> {
    let of_cloud = volumes.iter().flat_map(|volume| diagnose_volume(volume, claims, driver));
    let unknown = claims.of_driver(driver).filter_map(|registered| diagnose_unknown(registered, volumes));
    of_cloud.chain(unknown).collect()
}

fn diagnose_volume(volume: &Volume, claims: &Claims, driver: &str) -> Vec<Finding> {
    let subject = Subject::volume(&volume.id, &volume.name);
    let registered: Vec<&Registered> = claims.of(&volume.id).collect();
    let mut findings = Vec::new();
    if let [first, second, ..] = registered.as_slice() {
        findings.push(registered_twice(&subject, first, second));
    }
    for one in &registered {
        if one.provider != driver && !one.provider.is_empty() {
            let message = format!(
                "{subject} is registered in Nomad as {:?} with plugin {:?}, which is driver {:?} and not {driver:?}",
                one.id, one.plugin_id, one.provider
            );
            let cure = format!(
                "stop its tasks, run `nomad volume deregister {}`, and register it with the right plugin_id",
                named(one)
            );
            findings.push(Finding::new(Reason::WrongPluginId, &subject, message, cure));
        }
        findings.extend(one.claims.iter().filter_map(|claim| diagnose_node(&subject, claim, claims)));
    }
    let live: Vec<&ClaimingAllocation> =
        registered.iter().flat_map(|one| &one.claims).filter(|claim| claim.is_live()).collect();
    match (volume.droplets.as_slice(), live.as_slice()) {
        ([], _) => findings.extend(live.iter().find(|claim| claim.client_status == "running").map(|claim| {
            let message = format!("allocation {} claims {subject} and runs, and no droplet has the volume", claim.id);
            let cure = format!("restart it, which attaches the volume: `nomad alloc stop {}`", shell_word(&claim.id));
            Finding::new(Reason::ClaimedWithoutAttachment, &subject, message, cure)
        })),
        ([droplet], []) if registered.iter().all(|one| one.claims.is_empty()) => {
            findings.extend(leaked(&subject, volume, *droplet, &registered, claims));
        }
        ([_, ..], _) => {}
    }
    findings
}

/// An attachment that nothing in Nomad explains. Only a volume that is registered counts: any other may be in use
/// outside of Nomad.
fn leaked(
    subject: &Subject,
    volume: &Volume,
    droplet: DropletId,
    registered: &[&Registered],
    claims: &Claims,
) -> Option<Finding> {
    let node = claims.droplets.get(&droplet)?;
    registered.first()?;
    let message =
        format!("{subject} is attached to droplet {droplet} (Nomad's node {node}), and no allocation claims it");
    let detach = detach_command(&volume.id, &droplet.to_string());
    if claims.sees_all {
        let cure = format!("run `{detach}`");
        let repair = Repair::Detach { volume: volume.id.clone(), droplet };
        return Some(Finding::new(Reason::AttachedWithoutClaim, subject, message, cure).with_repair(repair));
    }
    let cure = format!("look with a management token whether another namespace uses it; if none does, run `{detach}`");
    Some(Finding::new(Reason::AttachedWithoutClaim, subject, message, cure))
}

fn registered_twice(subject: &Subject, first: &Registered, second: &Registered) -> Finding {
    let other_namespace = first.namespace != second.namespace;
    let reason = if other_namespace { Reason::HeldByOtherNamespace } else { Reason::RegisteredTwice };
    let message = format!(
        "{subject} is registered in Nomad twice, as {:?} in namespace {:?} and as {:?} in namespace {:?}; Nomad does not know that they \
         are one, and may detach it for the one while the other uses it",
        first.id, first.namespace, second.id, second.namespace
    );
    let unused = if second.claims.is_empty() { second } else { first };
    let cure = format!("keep the one that is in use, and run `nomad volume deregister {}`", named(unused));
    Finding::new(reason, subject, message, cure)
}

fn diagnose_node(subject: &Subject, claim: &ClaimingAllocation, claims: &Claims) -> Option<Finding> {
    let node = claims.nodes.iter().find(|node| node.id == claim.node);
    let how = match node.map(|node| node.status.as_str()) {
        None if claims.nodes.is_empty() || claim.node.is_empty() => return None,
        None => "which Nomad does not know any more".to_owned(),
        Some("down") => "which is down".to_owned(),
        Some("disconnected") => "which is disconnected".to_owned(),
        Some(_) => return None,
    };
    let message = format!("allocation {} claims {subject} on node {}, {how}", claim.id, claim.node);
    let droplet = claims.droplets.iter().find(|(_, node)| **node == claim.node);
    let droplet = droplet.map_or_else(|| "DROPLET_ID".to_owned(), |(droplet, _)| droplet.to_string());
    // As nomad/README.md has it, which was played.
    let cure = format!(
        "bring the node back, or make certain that its droplet is off: `doctl compute droplet-action power-off {droplet}`; then create or \
         register the volume again from its file, which makes Nomad look at its claims: `nomad volume create FILE`"
    );
    Some(Finding::new(Reason::ClaimOnLostNode, subject, message, cure))
}

/// A registration whose volume DigitalOcean does not have.
fn diagnose_unknown(registered: &Registered, volumes: &[Volume]) -> Option<Finding> {
    let is_it = |volume: &&Volume| VolumeId::parse(&registered.external_id).as_ref() == Ok(&volume.id);
    if volumes.iter().any(|volume| is_it(&volume)) {
        return None;
    }
    let subject = Subject::Volume { id: registered.external_id.clone(), name: String::new() };
    let (id, external) = (&registered.id, &registered.external_id);
    let cure = |id: &str| {
        format!("run `nomad volume deregister {}` and register it with external_id = \"{id}\"", named(registered))
    };
    if let Some(named) = volumes.iter().find(|volume| volume.name.as_str() == external) {
        let message =
            format!("the external_id of {id:?} in Nomad is {external:?}, which is a volume's name and not its id");
        return Some(Finding::new(Reason::ExternalIdIsAName, &subject, message, cure(named.id.as_str())));
    }
    let message = format!(
        "the external_id of {id:?} in Nomad is {external:?}, and DigitalOcean shows no such volume to this token"
    );
    Some(Finding::new(Reason::ExternalIdUnknown, &subject, message, cure("ID")))
}

/// A registration as an argument of Nomad's commands.
fn named(registered: &Registered) -> String {
    format!("-namespace={} {}", shell_word(&registered.namespace), shell_word(&registered.id))
}

/// What is wrong with a plugin, by what Nomad says of it. Pure.
#[must_use]
pub fn diagnose_plugin(plugin: &Plugin) -> Option<Finding> {
    let find = |what: &str, healthy: u64, expected: u64| {
        let message = format!("Nomad's plugin {:?} has {healthy} of {expected} healthy {what}", plugin.id);
        let cure = format!(
            "look at it with `nomad plugin status -verbose {}` and at its log with `nomad alloc logs -stderr ALLOC_ID`",
            shell_word(&plugin.id)
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

    const ID: &str = "506f78a4-8f00-11f0-9a11-0a58ac14d1e2";
    const DRIVER: &str = "dobs.csi.digitalocean.com";

    fn claim(node: &str, status: &str) -> ClaimingAllocation {
        ClaimingAllocation { id: "7b1e".into(), node: node.into(), job: "blog".into(), client_status: status.into() }
    }

    fn registered(external_id: &str, namespace: &str, claims: Vec<ClaimingAllocation>) -> Registered {
        Registered {
            id: "blog".into(),
            namespace: namespace.into(),
            external_id: external_id.into(),
            plugin_id: "digitalocean".into(),
            provider: DRIVER.into(),
            claims,
        }
    }

    fn found(droplets: &[u64], volumes: Vec<Registered>, sees_all: bool) -> Vec<Finding> {
        let node = |id: &str, status: &str| NomadNode { id: id.into(), name: id.into(), status: status.into() };
        let claims = Claims {
            volumes,
            nodes: vec![node("n1", "ready"), node("n2", "down")],
            droplets: [(DropletId::new(7).unwrap(), "n1".to_owned())].into(),
            sees_all,
        };
        diagnose_claims(&[Volume::fake(droplets)], &claims, DRIVER)
    }

    #[test]
    fn what_does_not_agree_is_found_and_what_does_is_not() {
        use Reason::{
            AttachedWithoutClaim, ClaimOnLostNode, ClaimedWithoutAttachment, ExternalIdIsAName, ExternalIdUnknown,
            HeldByOtherNamespace, RegisteredTwice, WrongPluginId,
        };
        let one = |claims| vec![registered(ID, "default", claims)];
        let other_driver = Registered { provider: "other".into(), ..registered(ID, "default", vec![]) };
        let table: [(&[u64], Vec<Registered>, &[Reason]); 16] = [
            (&[], vec![], &[]),
            // Whoever has attached it knows why: it is nothing of Nomad's.
            (&[7], vec![], &[]),
            (&[], one(vec![]), &[]),
            (&[7], one(vec![claim("n1", "running")]), &[]),
            (&[7], one(vec![claim("n1", "pending")]), &[]),
            (&[7], one(vec![]), &[AttachedWithoutClaim]),
            // A claim that is past is one until Nomad has freed it.
            (&[7], one(vec![claim("n1", "complete")]), &[]),
            // A droplet that is no node of this Nomad's.
            (&[8], one(vec![]), &[]),
            (&[], one(vec![claim("n1", "running")]), &[ClaimedWithoutAttachment]),
            (&[], one(vec![claim("n1", "pending")]), &[]),
            (&[7], one(vec![claim("n2", "unknown")]), &[ClaimOnLostNode]),
            (&[7], one(vec![claim("n3", "lost")]), &[ClaimOnLostNode]),
            (&[], vec![registered(ID, "a", vec![]), registered(ID, "b", vec![])], &[HeldByOtherNamespace]),
            (&[], vec![registered(ID, "a", vec![]), registered(ID, "a", vec![])], &[RegisteredTwice]),
            (&[], vec![registered("blog", "a", vec![])], &[ExternalIdIsAName]),
            (&[], vec![registered("gone", "a", vec![])], &[ExternalIdUnknown]),
        ];
        for (droplets, volumes, want) in table {
            let shown = format!("{droplets:?} {volumes:?}");
            let reasons: Vec<Reason> = found(droplets, volumes, true).iter().map(|finding| finding.reason).collect();
            assert_eq!(reasons, want, "{shown}");
        }
        let odd = Registered { id: "my blog".into(), ..registered(ID, "a b", vec![]) };
        assert_eq!(named(&odd), "-namespace='a b' 'my blog'");
        let lost = found(&[7], one(vec![claim("n2", "unknown")]), true);
        let cure = lost.first().map(|finding| finding.cure.clone()).unwrap_or_default();
        assert!(cure.contains("power-off") && cure.contains("`nomad volume create FILE`"), "{cure}");
        assert_eq!(found(&[], vec![other_driver], true).first().map(|finding| finding.reason), Some(WrongPluginId));
    }

    #[test]
    fn a_leaked_attachment_may_be_detached_only_when_every_claim_is_seen() {
        for sees_all in [true, false] {
            let found = found(&[7], vec![registered(ID, "default", vec![])], sees_all);
            let [finding] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!(finding.repair.is_some(), sees_all);
            assert!(finding.cure.contains(&format!("doctl compute volume-action detach {ID} 7")), "{finding}");
        }
    }

    #[test]
    fn an_allocation_of_unknown_state_counts_as_one_that_uses_the_volume() {
        for (status, want) in [("running", true), ("pending", true), ("unknown", true), ("new word", true), ("", true)]
        {
            assert_eq!(claim("n1", status).is_live(), want, "{status}");
        }
        for status in ["complete", "failed", "lost"] {
            assert!(!claim("n1", status).is_live(), "{status}");
        }
    }

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
