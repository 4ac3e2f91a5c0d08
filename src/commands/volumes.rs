//! The table of volumes.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::cloud::action::{Action, ActionStatus};
use crate::commands::terminal::{coloured, has_colours, printable, table};
use crate::commands::world::{Actions, Known, NO_TOKEN, Source, World};
use crate::commands::{COULD_NOT_LOOK, print};
use crate::host::inventory::{VolumeHere, VolumeState};
use crate::host::mount_report::{Counts, Usage};
use crate::ops::diagnosis::Finding;

const HEAD: [&str; 9] = ["NAME", "SIZE", "DROPLET", "STATE", "FS", "USED", "USED BY", "LAST ACTION", "FINDINGS"];

/// Prints the volumes, once or again and again.
pub(super) fn run(source: &Source, is_json: bool, watch: Option<Duration>) -> Result<ExitCode, String> {
    loop {
        let mut world = source.read(Actions::OfAttached);
        // A node's own volumes are known without a token; who has none of either sees why nothing is shown.
        if source.cloud.is_none() {
            world.blind.push(format!("DigitalOcean's volumes: {NO_TOKEN}"));
        }
        let text = if is_json { format!("{:#}\n", as_json(&world)) } else { as_text(&world) };
        match watch {
            None => {
                print(&text);
                let is_unseen = !world.blind.is_empty() || !world.refusals.is_empty();
                let is_blind = world.volumes.is_empty() && world.only_here.is_empty() && is_unseen;
                return Ok(if is_blind { ExitCode::from(COULD_NOT_LOOK) } else { ExitCode::SUCCESS });
            }
            Some(pause) => {
                // From the top of an empty screen, where there is one.
                print(&if has_colours() { format!("\u{1b}[2J\u{1b}[H{text}") } else { text });
                thread::sleep(pause);
            }
        }
    }
}

fn as_text(world: &World) -> String {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(world.shown().map(|known| row_of(world, known)));
    rows.extend(world.only_here.iter().map(row_of_here));
    let mut text = table(&rows);
    for finding in world.findings() {
        text.push_str(&line_of(&finding));
    }
    for blind in &world.blind {
        text.push_str(&format!("\ncould not look at {}\n", printable(blind)));
    }
    text
}

/// A finding as two lines: what is so, and what ends it.
pub(super) fn line_of(finding: &Finding) -> String {
    let word = coloured(&format!("{} {}", finding.severity, finding.reason), finding.severity, has_colours());
    format!("\n{word}: {}\n    {}\n", printable(&finding.message), printable(&finding.cure))
}

fn row_of(world: &World, known: &Known) -> Vec<String> {
    let droplets: Vec<String> = known.volume.droplets.iter().map(ToString::to_string).collect();
    let state = match known.volume.droplets.as_slice() {
        [] => "-".to_owned(),
        [one] if world.own == Some(*one) => format!("{} (here)", known.holder.state()),
        [_, ..] => known.holder.state().to_owned(),
    };
    let here = known.here.as_ref();
    vec![
        known.volume.name.to_string(),
        known.volume.size.to_string(),
        or_dash(droplets.join(",")),
        state,
        here.map_or("-".to_owned(), file_system),
        here.and_then(used_percent).map_or("-".to_owned(), |percent| format!("{percent} %")),
        or_dash(users(world, known).join(",")),
        known.last.as_ref().map_or("-".to_owned(), |action| action_of(action, SystemTime::now())),
        or_dash(reasons(&known.findings)),
    ]
}

fn row_of_here(here: &VolumeHere) -> Vec<String> {
    let name = here.name.as_ref().map(ToString::to_string).or_else(|| here.id.clone());
    let size = here.disk.as_ref().map_or("-".to_owned(), |disk| format!("{} GiB", disk.size >> 30));
    let users: Vec<String> = here.mounts.iter().filter_map(|mount| mount.user.clone()).collect();
    let findings = crate::ops::diagnosis::here::diagnose_here(here);
    vec![
        name.unwrap_or_else(|| "?".to_owned()),
        size,
        "here".to_owned(),
        "-".to_owned(),
        file_system(here),
        used_percent(here).map_or("-".to_owned(), |percent| format!("{percent} %")),
        or_dash(users.join(",")),
        "-".to_owned(),
        or_dash(reasons(&findings)),
    ]
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn reasons(findings: &[Finding]) -> String {
    findings.iter().map(|finding| finding.reason.as_str()).collect::<Vec<_>>().join(",")
}

fn file_system(here: &VolumeHere) -> String {
    let name = here.fs.as_deref().unwrap_or(if here.mounts.is_empty() { "not mounted" } else { "raw" });
    let is_encrypted = here.disk.as_ref().is_some_and(|disk| disk.is_encrypted);
    if is_encrypted { format!("{name} (encrypted)") } else { name.to_owned() }
}

fn counts(here: &VolumeHere) -> Option<&Counts> {
    let VolumeState::Answered(report) = &here.state else { return None };
    report.usage.iter().find_map(|usage| match usage {
        Usage::Bytes(counts) => Some(counts),
        Usage::Size(_) | Usage::Inodes(_) => None,
    })
}

fn used_percent(here: &VolumeHere) -> Option<u64> {
    counts(here)?.percent_used()
}

/// Who uses a volume: the jobs of Nomad's claims, else the allocations in the paths of the mounts.
fn users(world: &World, known: &Known) -> Vec<String> {
    let claims = world.claims.iter().flat_map(|claims| claims.of(&known.volume.id)).flat_map(|volume| &volume.claims);
    let mut users: Vec<String> =
        claims.filter(|claim| claim.is_live()).map(|claim| format!("{}/{}", claim.job, short(&claim.id))).collect();
    if users.is_empty() {
        let mounts = known.here.iter().flat_map(|here| &here.mounts);
        users = mounts.filter_map(|mount| mount.user.as_deref()).map(|id| short(id).to_owned()).collect();
    }
    users.sort();
    users.dedup();
    users
}

/// The beginning of an allocation's id, as Nomad shows it.
fn short(id: &str) -> &str {
    id.split('-').next().unwrap_or(id)
}

fn action_of(action: &Action, now: SystemTime) -> String {
    let status = match &action.status {
        ActionStatus::InProgress => "running",
        ActionStatus::Completed => "done",
        ActionStatus::Errored => "failed",
        ActionStatus::Other(word) => word,
    };
    let age = action.started_at.and_then(|at| now.duration_since(at).ok()).map(|age| format!(" {} ago", ago(age)));
    format!("{} {status}{}", action.kind.trim_end_matches("_volume"), age.unwrap_or_default())
}

/// A time in the largest unit that fits.
fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

fn as_json(world: &World) -> Value {
    let of_known = |known: &Known| {
        let droplets: Vec<u64> = known.volume.droplets.iter().map(|droplet| droplet.get()).collect();
        let is_here = known.volume.droplets.iter().any(|droplet| Some(*droplet) == world.own);
        json!({
            "id": known.volume.id.as_str(),
            "name": known.volume.name.as_str(),
            "size_gib": known.volume.size.0,
            "region": known.volume.region.as_ref().map(crate::region::Region::as_str),
            "droplets": droplets,
            "droplet_state": if droplets.is_empty() { None } else { Some(known.holder.state()) },
            "is_on_this_droplet": is_here,
            "here": known.here.as_ref().map(here_as_json),
            "used_by": users(world, known),
            "last_action": known.last.as_ref().map(|action| action_of(action, SystemTime::now())),
            "findings": known.findings.iter().map(Finding::json).collect::<Vec<_>>(),
        })
    };
    let others = world.refusals.iter().chain(&world.unexplained);
    json!({
        "region": world.region.as_ref().map(crate::region::Region::as_str),
        "droplet": world.own.map(crate::id::DropletId::get),
        "volumes": world.shown().map(of_known).collect::<Vec<_>>(),
        "only_here": world.only_here.iter().map(here_as_json).collect::<Vec<_>>(),
        "findings": others.map(Finding::json).collect::<Vec<_>>(),
        "could_not_look_at": world.blind,
    })
}

fn here_as_json(here: &VolumeHere) -> Value {
    let findings = crate::ops::diagnosis::here::diagnose_here(here);
    let mounts = here.mounts.iter().map(|mount| {
        json!({ "path": mount.path.to_string_lossy(), "is_read_only": mount.is_read_only, "used_by": mount.user })
    });
    json!({
        "id": here.id,
        "name": here.name.as_ref().map(crate::id::VolumeName::as_str),
        "disk": here.disk.as_ref().map(|disk| disk.node.to_string_lossy()),
        "file_system": file_system(here),
        "used_bytes": counts(here).map(|counts| counts.used),
        "available_bytes": counts(here).map(|counts| counts.available),
        "used_percent": used_percent(here),
        "mounts": mounts.collect::<Vec<_>>(),
        "findings": findings.iter().map(Finding::json).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_its_largest_unit() {
        for (seconds, want) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d")] {
            assert_eq!(ago(Duration::from_secs(seconds)), want);
        }
    }
}
