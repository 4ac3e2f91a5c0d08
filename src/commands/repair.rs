//! What `doctor --fix` does: detach volumes where that cannot lose data.
//!
//! Owns the second look before each change. A volume is detached only when all that the finding follows from was read again a while
//! later and says the same: a droplet that reboots passes through `off`, and a task that was just placed has a claim soon. How it is
//! detached is the plugin's own way: from a droplet that cannot use it as a ControllerPublishVolume elsewhere does it, from this
//! droplet as `--release-unused` does it, with the disk held until it is known what has come of the detach.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::thread;

use crate::commands::print;
use crate::commands::terminal::printable;
use crate::commands::world::{Source, World};
use crate::controller::Controller;
use crate::controller::context::Timeouts;
use crate::controller::unused::ReleaseOutcome;
use crate::droplet_identity::{DropletIdentity, Given};
use crate::error::Chain;
use crate::host::command::{SystemRunner, find_tools};
use crate::id::{DropletId, VolumeId};
use crate::node::Node;
use crate::ops::diagnosis::{Finding, Repair};
use crate::upkeep::release_by_hand;

/// Does what the findings say can be done, after asking.
pub(super) fn repair(source: &Source, world: &World, findings: &[Finding], yes: bool) {
    let wanted: Vec<&Finding> = findings.iter().filter(|finding| finding.repair.is_some()).collect();
    if wanted.is_empty() {
        print("\nNothing of this can be repaired without a person's judgement.\n");
        return;
    }
    for finding in &wanted {
        print(&format!("\nTo be done: {}\n", in_words(finding)));
    }
    if !yes && !is_agreed() {
        print("Nothing was done.\n");
        return;
    }
    // As long as the plugin itself waits before it takes a volume from a droplet that is off.
    thread::sleep(Timeouts::of(source.config.call_budget).power_off_grace());
    for finding in wanted {
        let Some(Repair::Detach { volume, droplet }) = &finding.repair else { continue };
        match detach(source, world, finding, volume, *droplet) {
            Ok(()) => print(&format!("Done: {}\n", in_words(finding))),
            Err(why) => print(&format!("Not done, as {}: {}\n", printable(&why), in_words(finding))),
        }
    }
}

fn in_words(finding: &Finding) -> String {
    match &finding.repair {
        Some(Repair::Detach { droplet, .. }) => {
            format!("detach {} from droplet {droplet} ({})", printable(&finding.subject.to_string()), finding.reason)
        }
        None => finding.reason.to_string(),
    }
}

/// Asks the person at the terminal. Whoever does not say yes has said no.
fn is_agreed() -> bool {
    print("Do it? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Detaches a volume if all is as it was found, and sees it free.
fn detach(
    source: &Source,
    world: &World,
    finding: &Finding,
    volume: &VolumeId,
    droplet: DropletId,
) -> Result<(), String> {
    let access = source.cloud.as_ref().ok_or("there is no token")?;
    let identity = DropletIdentity::new(Given { id: world.own, region: world.region.clone() });
    let controller = Controller::new(&source.config, access.whole(), Arc::clone(&identity));
    let told = |err| Chain(&err).to_string();
    // Before each one: the detach of the one before may have taken minutes.
    let look = || look_again(source, world, finding, volume);
    if world.own == Some(droplet) {
        let known = world.volumes.iter().find(|known| known.volume.id == *volume);
        let name = known.map(|known| &known.volume.name).ok_or("its name is not known")?;
        let tools = find_tools().map_err(|missing| missing.to_string())?;
        let node = Node::new(&source.config, Box::new(SystemRunner::new(tools)));
        return release_by_hand(&controller, &node, (volume, name), look).map_err(told)?.map_or(Ok(()), Err);
    }
    look()?;
    let ctx = controller.context_of_own(source.config.call_budget);
    match controller.release_from_dead(&ctx, volume, droplet).map_err(told)? {
        ReleaseOutcome::Detached => Ok(()),
        ReleaseOutcome::Refused(why) => Err(why),
        ReleaseOutcome::Unclear(why) => Err(format!("it is not known yet what came of it, look again later: {why}")),
    }
}

/// Sees that the finding is still so, by what it follows from.
fn look_again(source: &Source, world: &World, finding: &Finding, volume: &VolumeId) -> Result<(), String> {
    let now = source.read_again(volume, world);
    let is_still_so = |is: &Finding| is.repair == finding.repair && is.reason == finding.reason;
    if now.volumes.iter().flat_map(|known| &known.findings).any(is_still_so) {
        return Ok(());
    }
    Err(match now.blind.as_slice() {
        [] => "it is not so any more".to_owned(),
        blind => format!("it could not be looked at again: {}", blind.join("; ")),
    })
}
