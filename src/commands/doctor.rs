//! `doctor`: what is wrong, the worst first, and the command that ends it.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::commands::checks::{Check, Outcome, look};
use crate::commands::repair::repair;
use crate::commands::terminal::{coloured, has_colours, printable};
use crate::commands::volumes::line_of;
use crate::commands::world::{Actions, Known, NO_TOKEN, Source, World};
use crate::commands::{COULD_NOT_LOOK, print};
use crate::host::inventory::VolumeHere;
use crate::ops::diagnosis::here::diagnose_here;
use crate::ops::diagnosis::{Finding, Severity};

/// What is asked of it.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) volume: Option<String>,
    pub(super) is_json: bool,
    pub(super) fix: bool,
    pub(super) yes: bool,
}

/// Looks, prints, and repairs if that is asked for.
pub(super) fn run(source: &Source, wish: &Wish) -> Result<ExitCode, String> {
    let world = source.read(wish.volume.as_deref().map_or(Actions::OfAll, Actions::Of));
    let about = match &wish.volume {
        Some(called) => About::One(find(called, source, &world)?),
        None => About::All,
    };
    let checks = match &about {
        About::All => look(source, &world),
        About::One(_) => Vec::new(),
    };
    let findings = match &about {
        About::One(Found::Known(known)) => known.findings.clone(),
        About::One(Found::Here(here)) => diagnose_here(here),
        About::All => all(&world, &checks),
    };
    let blind = blind(&world, &checks);
    if wish.is_json {
        print(&format!("{:#}\n", as_json(&checks, &findings, &blind)));
    } else {
        print(&as_text(&world, &about, &checks, &findings, &blind));
    }
    if wish.fix {
        match source.lent.check_changes() {
            Ok(()) => repair(source, &world, &findings, wish.yes),
            Err(why) => print(&format!("\n{}\n", printable(&why))),
        }
    }
    Ok(plan_exit(&findings, !blind.is_empty()))
}

/// The looks without which nothing was looked at.
const LOOKS: [&str; 3] = ["token", "node", "Nomad"];

/// What it is about.
enum About<'a> {
    All,
    One(Found<'a>),
}

/// A volume that was found by what somebody calls it.
enum Found<'a> {
    /// DigitalOcean tells of it.
    Known(&'a Known),
    /// Only this node does.
    Here(&'a VolumeHere),
}

fn find<'a>(called: &str, source: &Source, world: &'a World) -> Result<Found<'a>, String> {
    let found = world.find(called).map(Found::Known).or_else(|| world.find_here(called).map(Found::Here));
    found.ok_or_else(|| {
        let refused = world.refusals.iter().map(|finding| finding.message.clone());
        let mut whys: Vec<String> = refused.chain(world.blind.iter().cloned()).collect();
        whys.extend(source.cloud.is_none().then(|| format!("DigitalOcean was not asked, as {NO_TOKEN}")));
        whys.extend(world.nearest(called).map(|name| format!("did you mean {name:?}?")));
        if whys.is_empty() {
            whys.push("`do-csi-plugin volumes` shows those that there are".to_owned());
        }
        format!(
            "no volume is called {called:?} by its id, its name or its id in Nomad: {}",
            printable(&whys.join("; "))
        )
    })
}

/// All findings, each once and the worst first.
fn all(world: &World, checks: &[Check]) -> Vec<Finding> {
    let mut all = world.findings();
    for check in checks {
        if let Outcome::Found(found) = &check.outcome {
            all.extend(found.iter().cloned());
        }
    }
    all.sort_by(|a, b| b.cmp(a));
    all.dedup();
    all
}

fn blind(world: &World, checks: &[Check]) -> Vec<String> {
    let of_checks = checks.iter().filter_map(|check| match &check.outcome {
        // Nomad's is among those of the world.
        Outcome::Blind(why) if !world.blind.contains(why) => Some(format!("{}: {why}", check.name)),
        Outcome::Blind(_) => None,
        Outcome::Well(_) | Outcome::Found(_) | Outcome::Skipped(_) => None,
    });
    let mut all: Vec<String> = world.blind.iter().cloned().chain(of_checks).collect();
    // On a machine that is no droplet, without a token and without Nomad.
    let skipped = checks.iter().filter(|check| matches!(check.outcome, Outcome::Skipped(_))).map(|check| check.name);
    if skipped.filter(|name| LOOKS.contains(name)).count() == LOOKS.len() {
        all.push(format!("anything: {NO_TOKEN}, and this is no droplet"));
    }
    all.dedup();
    all
}

/// The exit code: 1 for a finding that somebody has to look at, 2 when there is none and something could not be
/// looked at. Pure.
fn plan_exit(findings: &[Finding], is_blind: bool) -> ExitCode {
    let is_serious = findings.iter().any(|finding| finding.severity >= Severity::Warning);
    match (is_serious, is_blind) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(COULD_NOT_LOOK),
        (false, false) => ExitCode::SUCCESS,
    }
}

fn as_text(world: &World, about: &About<'_>, checks: &[Check], findings: &[Finding], blind: &[String]) -> String {
    let has_colours = has_colours();
    let mut text = String::new();
    for check in checks {
        let (word, severity, detail) = match &check.outcome {
            Outcome::Well(detail) => ("ok  ", Severity::Notice, detail.clone()),
            Outcome::Found(found) => {
                let reasons: Vec<&str> = found.iter().map(|finding| finding.reason.as_str()).collect();
                ("FAIL", worst(found), reasons.join(", "))
            }
            Outcome::Skipped(why) => ("-   ", Severity::Notice, why.clone()),
            Outcome::Blind(why) => ("?   ", Severity::Warning, why.clone()),
        };
        text.push_str(&format!(
            "{} {:<10} {}\n",
            coloured(word, severity, has_colours),
            check.name,
            printable(&detail)
        ));
    }
    match about {
        About::One(Found::Known(known)) => text.push_str(&place(world, known)),
        About::One(Found::Here(here)) => {
            text.push_str(&format!("{}: on this droplet{}\n", printable(&here.subject().to_string()), mounts(here)));
        }
        About::All => text.push_str(&format!(
            "ok   {:<10} {} looked at\n",
            "volumes",
            world.shown().count() + world.only_here.len()
        )),
    }
    findings.iter().for_each(|finding| text.push_str(&line_of(finding)));
    blind.iter().for_each(|why| text.push_str(&format!("\ncould not look at {}\n", printable(why))));
    match findings.first() {
        None if !blind.is_empty() => {}
        None if checks.iter().any(|check| matches!(check.outcome, Outcome::Skipped(_))) => {
            text.push_str("\nNothing is wrong with what was looked at.\n");
        }
        None => text.push_str("\nNothing is wrong.\n"),
        Some(first) => {
            text.push_str(&format!("\nBegin with this: {}\n", printable(&first.cure)));
            let count = findings.iter().filter(|finding| finding.repair.is_some()).count();
            if count > 0 {
                text.push_str(&format!("`do-csi-plugin doctor --fix` does {count} of these, after asking.\n"));
            }
        }
    }
    text
}

fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Notice)
}

/// Where a volume is, in a line.
fn place(world: &World, known: &Known) -> String {
    let volume = &known.volume;
    let place = match volume.droplets.as_slice() {
        [] => "attached to no droplet".to_owned(),
        [one] if world.own == Some(*one) => format!("attached to this droplet, {one}"),
        [one] => format!("attached to droplet {one}, which is {}", known.holder.state()),
        [_, ..] => "attached to several droplets".to_owned(),
    };
    let mounts = known.here.as_ref().map(mounts).unwrap_or_default();
    format!("volume {} ({}): {}, {place}{mounts}\n", volume.name, volume.id, volume.size)
}

/// Where a volume is mounted on this droplet, each in a line of its own.
fn mounts(here: &VolumeHere) -> String {
    here.mounts.iter().map(|mount| format!("\n    mounted at {}", printable(&mount.path.to_string_lossy()))).collect()
}

fn as_json(checks: &[Check], findings: &[Finding], blind: &[String]) -> Value {
    let check = |check: &Check| {
        let (outcome, detail) = match &check.outcome {
            Outcome::Well(detail) => ("well", detail.clone()),
            Outcome::Found(found) => ("found", format!("{} findings", found.len())),
            Outcome::Skipped(why) => ("skipped", why.clone()),
            Outcome::Blind(why) => ("could not look", why.clone()),
        };
        json!({ "name": check.name, "outcome": outcome, "detail": detail })
    };
    json!({
        "checks": checks.iter().map(check).collect::<Vec<_>>(),
        "findings": findings.iter().map(Finding::json).collect::<Vec<_>>(),
        "could_not_look_at": blind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::diagnosis::{Reason, Subject};

    #[test]
    fn the_exit_code_tells_wrong_from_well_and_from_not_seen() {
        let finding = |reason| Finding::new(reason, &Subject::Node, String::new(), String::new());
        let (notice, warning) = (finding(Reason::AttachedButUnused), finding(Reason::AttachedToDeadDroplet));
        let shown = |code: ExitCode| format!("{code:?}");
        for (findings, is_blind, want) in [
            (vec![], false, ExitCode::SUCCESS),
            (vec![notice.clone()], false, ExitCode::SUCCESS),
            (vec![notice.clone()], true, ExitCode::from(2)),
            (vec![], true, ExitCode::from(2)),
            (vec![notice, warning.clone()], true, ExitCode::FAILURE),
            (vec![warning], false, ExitCode::FAILURE),
        ] {
            assert_eq!(shown(plan_exit(&findings, is_blind)), shown(want), "{findings:?} {is_blind}");
        }
    }
}
