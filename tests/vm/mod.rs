//! What virtual droplets are tested with: cases, each played on machines that are booted once.
//!
//! Owns the order of cases, the machines between them, and what is kept of a case that fails. What a case works with is in
//! `yard.rs`; a case is a function in one of the other files and a line in [`CASES`]. Those that do not need a machine are
//! played on loop devices as well. What machines boot from is made by
//! the script `image`; `guest` is the first program in them.

mod automount;
mod encrypted;
mod encrypted_doubt;
mod harness;
mod identity;
mod power;
mod pulled;
mod raw;
mod resize;
mod selinux;
mod slow;
mod story;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::support::story::{StepResult, ensure};
use harness::VmHarness;

/// Something that is to be seen on virtual droplets.
struct Case {
    /// What it is asked for by.
    name: &'static str,
    /// What is so when it passes.
    says: &'static str,
    /// What it needs.
    needs: Needs,
    play: fn(&mut VmHarness) -> StepResult<()>,
}

/// What a case cannot be played without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Anything that can be a droplet, loop devices too.
    Droplets,
    /// A machine: its disks, its udev or its kernel.
    Machines,
}
use Needs::{Droplets, Machines};

/// What stands in for droplets.
#[derive(Debug, Clone, Copy)]
pub enum Stage<'a> {
    /// Namespaces with loop devices.
    Loops,
    /// Virtual machines that boot from what is in this directory.
    Machines(&'a Path),
}

/// How much memory the machines may take together, in MB: two of 512 MB each, what QEMU itself takes, and half as much again.
const MOST_MEMORY: u64 = 2000;

const CASES: &[Case] = &[
    Case { name: "story", needs: Droplets, says: "the story of the demo, between two machines", play: story::whole },
    Case { name: "late", needs: Droplets, says: "a disk that comes late is waited for", play: slow::late },
    Case {
        name: "half",
        needs: Droplets,
        says: "a disk that comes without a size first and then anew is waited for",
        play: slow::half,
    },
    Case { name: "resize", needs: Droplets, says: "a disk grows in use", play: resize::told },
    Case {
        name: "snapshot",
        needs: Droplets,
        says: "a snapshot and its source are used on one machine",
        play: resize::snapshot,
    },
    Case {
        name: "raw",
        needs: Droplets,
        says: "a raw disk moves, grows, and is protected for a reader",
        play: raw::moves,
    },
    Case {
        name: "killed",
        needs: Droplets,
        says: "volumes outlive a plugin that is killed, and its successor takes them down",
        play: raw::outlives_the_plugin,
    },
    Case { name: "names", needs: Machines, says: "a name of 1 to 64 characters finds its disk", play: identity::names },
    Case {
        name: "links",
        needs: Machines,
        says: "a link that is missing, wrong or swapped misleads nobody",
        play: identity::links,
    },
    Case {
        name: "strangers",
        needs: Machines,
        says: "what only looks like the volume is not touched",
        play: identity::strangers,
    },
    Case { name: "empty", needs: Machines, says: "a disk that has no size at first is waited for", play: slow::empty },
    Case {
        name: "rescan",
        needs: Machines,
        says: "a disk grows in use though the kernel is not told",
        play: resize::asked,
    },
    Case {
        name: "automount",
        needs: Machines,
        says: "the droplet image's automount rule delays a stage, no more",
        play: automount::wins,
    },
    Case {
        name: "pulled-mkfs",
        needs: Machines,
        says: "a disk pulled out under mkfs is formatted the next time",
        play: pulled::mkfs,
    },
    Case {
        name: "pulled-mount",
        needs: Machines,
        says: "a disk pulled out under a mount keeps its data",
        play: pulled::mount,
    },
    Case {
        name: "pulled-written",
        needs: Machines,
        says: "a disk pulled out while written keeps what was synced",
        play: pulled::written,
    },
    Case {
        name: "power-cut",
        needs: Machines,
        says: "what was synced before a power cut is on the next machine",
        play: power::cut,
    },
    Case {
        name: "encrypted",
        needs: Machines,
        says: "an encrypted volume moves, grows, and is closed on the machine it leaves",
        play: encrypted::life,
    },
    Case {
        name: "encrypted-pulled",
        needs: Machines,
        says: "an encrypted disk pulled out in use keeps what was synced, and its key is forgotten",
        play: encrypted::pulled,
    },
    Case {
        name: "encrypted-killed",
        needs: Machines,
        says: "a plugin killed while it encrypts a disk or opens it leaves nothing open and nothing half done",
        play: encrypted::killed,
    },
    Case {
        name: "encrypted-storm",
        needs: Machines,
        says: "encrypted volumes that come and go at once do not close each other",
        play: encrypted::storm,
    },
    Case {
        name: "encrypted-keys",
        needs: Machines,
        says: "a key that is wrong, late or missing is told from each other and harms nothing",
        play: encrypted_doubt::keys,
    },
    Case {
        name: "encrypted-damaged",
        needs: Machines,
        says: "a damaged head is told from a wrong key, and its copy helps",
        play: encrypted_doubt::damaged,
    },
    Case {
        name: "encrypted-planted",
        needs: Machines,
        says: "a header that was planted to write in clear is refused before anything is mounted",
        play: encrypted_doubt::planted,
    },
    Case {
        name: "encrypted-left",
        needs: Machines,
        says: "what was left open is closed, and what is somebody else's is not",
        play: encrypted_doubt::left_open,
    },
    Case {
        name: "encrypted-twice",
        needs: Machines,
        says: "an encrypted volume that is staged twice is closed with the last one",
        play: encrypted_doubt::twice,
    },
    Case {
        name: "encrypted-early",
        needs: Machines,
        says: "an encrypted volume that grows before there is a file system in it is finished",
        play: encrypted_doubt::grown_early,
    },
    Case {
        name: "selinux",
        needs: Machines,
        says: "a confined process reads a labelled volume",
        play: selinux::labelled,
    },
];

/// Plays all cases that this stage has what they need for, or the one of this name. What is kept of cases that fail goes to a
/// directory. Between cases it looks whether it should stop.
///
/// # Errors
/// A case failed, no machine could be had, or it was interrupted.
pub fn run(
    stage: Stage<'_>,
    program: &Path,
    kept: &Path,
    only: Option<&str>,
    interrupted: &AtomicBool,
) -> Result<(), Box<dyn Error>> {
    let can = |case: &&Case| matches!(stage, Stage::Machines(_)) || case.needs == Droplets;
    let cases: Vec<&Case> = CASES.iter().filter(can).filter(|case| only.is_none_or(|name| name == case.name)).collect();
    if cases.is_empty() {
        let names: Vec<&str> = CASES.iter().filter(can).map(|case| case.name).collect();
        return Err(format!("there is no such case; there are: {}", names.join(", ")).into());
    }
    let (started, mut failed) = (Instant::now(), Vec::new());
    let (mut open, mut memory) = (None, 0);
    for case in cases.iter().copied() {
        if interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        let mut yard = match (open.take(), stage) {
            (Some(yard), _) => yard,
            (None, Stage::Loops) => VmHarness::on_loop_devices(program)?,
            (None, Stage::Machines(base)) => VmHarness::open(base, program)?,
        };
        let has_passed = play(case, &mut yard, kept)?;
        memory = memory.max(yard.peak_memory_mb());
        if has_passed {
            open = Some(yard);
        } else {
            failed.push(case.name);
            // The next case gets machines that nothing is wrong with.
            drop(yard);
        }
    }
    open.map_or(Ok(()), VmHarness::close)?;
    let took = started.elapsed().as_secs_f64();
    println!(
        "\n{} passed, {} failed, in {took:.0} s, with at most {memory} MB",
        cases.len() - failed.len(),
        failed.len()
    );
    ensure(memory < MOST_MEMORY, || format!("the machines may take {MOST_MEMORY} MB, and took {memory}"))?;
    if failed.is_empty() { Ok(()) } else { Err(failed.join(", ").into()) }
}

/// Plays a case and tells whether it passed.
fn play(case: &Case, yard: &mut VmHarness, kept: &Path) -> StepResult<bool> {
    let began = Instant::now();
    let played = (case.play)(yard).and_then(|()| yard.tidy());
    let took = began.elapsed().as_secs_f64();
    let Err(why) = played else {
        println!("  ok     {took:5.1} s  {}: {}", case.name, case.says);
        return Ok(true);
    };
    let directory = keep(yard, kept, case.name)?;
    println!("  FAILED {took:5.1} s  {}: {}\n{why}", case.name, case.says);
    println!("  the machines' serial lines and the plugins' logs are in {}", directory.display());
    let disks =
        if yard.machines().iter().any(|machine| machine.droplet.guest().is_some()) { "" } else { " DISKS=loop" };
    println!("  alone: make test-droplets CASE={}{disks}", case.name);
    Ok(false)
}

/// Copies what is of use of a failed case, and gives the directory.
fn keep(yard: &VmHarness, kept: &Path, case: &str) -> StepResult<PathBuf> {
    let directory = kept.join(case);
    fs::create_dir_all(&directory)?;
    for machine in yard.machines() {
        if let Some(guest) = machine.droplet.guest() {
            fs::copy(guest.serial(), directory.join(format!("{}.serial", machine.name)))?;
        }
        // A machine that does not answer any more has only its serial line.
        let log = machine.home().join("plugin.log");
        let said = machine.droplet.sh(&format!("cat {}; dmesg | tail -n 200; cat /proc/self/mountinfo", log.display()));
        fs::write(directory.join(format!("{}.log", machine.name)), said.unwrap_or_else(|error| error.to_string()))?;
    }
    Ok(directory)
}
