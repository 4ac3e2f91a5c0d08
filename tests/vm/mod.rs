//! What virtual droplets are tested with: cases, each played on machines that are booted once.
//!
//! Owns the order of cases, the machines between them, and what is kept of a case that fails. What a case works with is in
//! `yard.rs`; a case is a function in one of the other files and a line in [`CASES`]. What machines boot from is made by
//! the script `image`; `guest` is the first program in them.

mod automount;
mod encrypted;
mod identity;
mod power;
mod pulled;
mod resize;
mod selinux;
mod slow;
mod story;
mod yard;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::support::story::Told;
use yard::Yard;

/// Something that is to be seen on virtual droplets.
struct Case {
    /// What it is asked for by.
    name: &'static str,
    /// What is so when it passes.
    says: &'static str,
    play: fn(&mut Yard) -> Told<()>,
}

const CASES: &[Case] = &[
    Case { name: "story", says: "the story of the demo, between two machines", play: story::whole },
    Case { name: "names", says: "a name of 1 to 64 characters finds its disk", play: identity::names },
    Case { name: "links", says: "a link that is missing, wrong or swapped misleads nobody", play: identity::links },
    Case { name: "strangers", says: "what only looks like the volume is not touched", play: identity::strangers },
    Case { name: "late", says: "a disk that comes late is waited for", play: slow::late },
    Case { name: "empty", says: "a disk that has no size at first is waited for", play: slow::empty },
    Case {
        name: "resize",
        says: "a disk grows in use, whether the kernel is told or has to ask",
        play: resize::online,
    },
    Case { name: "snapshot", says: "a snapshot and its source are used on one machine", play: resize::snapshot },
    Case {
        name: "automount",
        says: "the droplet image's automount rule delays a stage, no more",
        play: automount::wins,
    },
    Case { name: "pulled-mkfs", says: "a disk pulled out under mkfs is formatted the next time", play: pulled::mkfs },
    Case { name: "pulled-mount", says: "a disk pulled out under a mount keeps its data", play: pulled::mount },
    Case {
        name: "pulled-written",
        says: "a disk pulled out while written keeps what was synced",
        play: pulled::written,
    },
    Case { name: "power-cut", says: "what was synced before a power cut is on the next machine", play: power::cut },
    Case {
        name: "encrypted",
        says: "an encrypted volume moves, grows, and is closed on the machine it leaves",
        play: encrypted::life,
    },
    Case {
        name: "encrypted-pulled",
        says: "an encrypted disk pulled out in use keeps what was synced, and its key is forgotten",
        play: encrypted::pulled,
    },
    Case {
        name: "encrypted-killed",
        says: "a plugin killed while it encrypts a disk or opens it leaves nothing open and nothing half done",
        play: encrypted::killed,
    },
    Case { name: "selinux", says: "a confined process reads a labelled volume", play: selinux::labelled },
];

/// Plays all cases, or the one of this name, with machines that boot from the images in a folder. What is kept of cases
/// that fail goes to another folder.
///
/// # Errors
/// A case failed, or no machine could be had.
pub fn run(base: &Path, program: &Path, kept: &Path, only: Option<&str>) -> Result<(), Box<dyn Error>> {
    let cases: Vec<&Case> = CASES.iter().filter(|case| only.is_none_or(|name| name == case.name)).collect();
    if cases.is_empty() {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        return Err(format!("there is no such case; there are: {}", names.join(", ")).into());
    }
    let (started, mut failed) = (Instant::now(), Vec::new());
    let mut open = None;
    for case in cases.iter().copied() {
        let mut yard = match open.take() {
            Some(yard) => yard,
            None => Yard::open(base, program)?,
        };
        let began = Instant::now();
        let played = (case.play)(&mut yard).and_then(|()| yard.tidy());
        let took = began.elapsed().as_secs_f64();
        match played {
            Ok(()) => {
                println!("  ok   {took:6.1} s  {}: {}", case.name, case.says);
                open = Some(yard);
            }
            Err(why) => {
                let folder = keep(&yard, kept, case.name)?;
                println!("  FAILED {took:4.1} s  {}: {}\n{why}", case.name, case.says);
                println!("  the machines' serial lines and the plugins' logs are in {}", folder.display());
                println!("  alone: make test-droplets CASE={}", case.name);
                failed.push(case.name);
                // The next case gets machines that nothing is wrong with.
                drop(yard);
            }
        }
    }
    if let Some(yard) = open {
        yard.close()?;
    }
    println!(
        "\n{} passed, {} failed, in {:.0} s",
        cases.len() - failed.len(),
        failed.len(),
        started.elapsed().as_secs_f64()
    );
    if failed.is_empty() { Ok(()) } else { Err(failed.join(", ").into()) }
}

/// Copies what is of use of a failed case, and gives the folder.
fn keep(yard: &Yard, kept: &Path, case: &str) -> Told<PathBuf> {
    let folder = kept.join(case);
    fs::create_dir_all(&folder)?;
    for machine in yard.machines() {
        let guest = yard::guest(machine);
        fs::copy(guest.serial(), folder.join(format!("{}.serial", machine.name)))?;
        // A machine that does not answer any more has only its serial line.
        let log = guest.run("cat /var/lib/droplet/plugin.log; dmesg | tail -n 200; cat /proc/self/mountinfo");
        let log = log.unwrap_or_else(|error| error.to_string());
        fs::write(folder.join(format!("{}.log", machine.name)), log)?;
    }
    Ok(folder)
}
