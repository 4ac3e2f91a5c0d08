//! What `doctor --fix` does: detach volumes where that cannot lose data.
//!
//! Owns the second look before each change, and the look at its end. A volume is detached only when all that the finding follows
//! from was read again a while later and says the same: a droplet that reboots passes through `off`, and a task that was just placed
//! has a claim soon.

use std::io::{self, BufRead};
use std::thread;
use std::time::{Duration, Instant};

use crate::commands::print;
use crate::commands::terminal::printable;
use crate::commands::world::Source;
use crate::controller::context::Timeouts;
use crate::id::{DropletId, VolumeId};
use crate::ops::diagnosis::{Finding, Repair};
use crate::region::Region;

/// How often a volume is read while it is detached.
const LOOK: Duration = Duration::from_millis(500);

/// Does what the findings say can be done, after asking.
pub(super) fn repair(source: &Source, region: Option<&Region>, findings: &[Finding], yes: bool) {
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
        // Before each one: the detach of the one before may have taken minutes.
        let now = source.read_again(volume, region);
        let is_still_so = |is: &Finding| is.repair == finding.repair && is.reason == finding.reason;
        if !now.volumes.iter().flat_map(|known| &known.findings).any(is_still_so) {
            let why = match now.blind.as_slice() {
                [] => "it is not so any more".to_owned(),
                blind => format!("it could not be looked at again: {}", blind.join("; ")),
            };
            print(&format!("Not done, as {}: {}\n", printable(&why), in_words(finding)));
            continue;
        }
        match detach(source, volume, *droplet) {
            Ok(()) => print(&format!("Done: {}\n", in_words(finding))),
            Err(why) => print(&format!("Failed: {}: {}\n", in_words(finding), printable(&why))),
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

/// Detaches a volume and sees it free.
fn detach(source: &Source, volume: &VolumeId, droplet: DropletId) -> Result<(), String> {
    let access = source.cloud.as_ref().ok_or("there is no token")?;
    let budget = source.config.call_budget;
    let cloud = access.within(budget);
    cloud.detach(volume, droplet).map_err(|err| err.to_string())?;
    let end = Instant::now().checked_add(budget).unwrap_or_else(Instant::now);
    loop {
        let found = cloud.get_volume(volume).map_err(|err| err.to_string())?;
        if !found.is_attached_to(droplet) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(format!("it is still attached after {} s; look again later", budget.as_secs()));
        }
        thread::sleep(LOOK);
    }
}
