//! What this program looks after by itself, between the calls: mounts that were left behind, attachments that nobody uses, and what is
//! wrong in the region.
//!
//! Owns the thread for the droplet and its pace. Nothing depends on it: a look that fails is made again.

mod plan;
mod region;
mod unused;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crossbeam::select;
use log::warn;

use crate::config::Allocations;
use crate::node::{MountsSeen, Node};
use crate::ops::findings::Findings;
pub use crate::upkeep::region::RegionWatch;
pub use crate::upkeep::unused::{BringBack, Unused, release_by_hand};

/// How often the mounts are looked at.
const MOUNTS_EVERY: Duration = Duration::from_secs(30);

/// The thread that looks, while it is wanted.
#[derive(Debug)]
pub struct Upkeep {
    /// Dropped when no new look is to begin.
    wanted: Sender<()>,
    /// Closed when the last look has ended.
    ended: Receiver<()>,
}

impl Upkeep {
    /// Starts to look after this droplet: at once, and then now and again. `allocations` is where Nomad has the directories of its
    /// allocations, where that is certain; `unused` detaches what nobody uses; what cannot be ended goes to `findings`.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn start(
        node: Arc<Node>,
        allocations: Option<Allocations>,
        unused: Option<Unused>,
        findings: Option<Arc<Findings>>,
    ) -> io::Result<Upkeep> {
        let (wanted, asked) = bounded(0);
        let (ending, ended) = bounded(0);
        let look = move || {
            look_until_unwanted(&node, allocations, unused, findings.as_deref(), &asked);
            drop::<Sender<()>>(ending);
        };
        thread::Builder::new().name("upkeep".to_owned()).spawn(look)?;
        Ok(Upkeep { wanted, ended })
    }

    /// Begins nothing new; what this gives tells when the last look has ended.
    #[must_use]
    pub fn stop(self) -> Receiver<()> {
        drop(self.wanted);
        self.ended
    }
}

/// Waits for the end of something that closes `ended`, but not beyond the deadline, and no longer than until `enough` is closed:
/// whatever is cut off is found by the next plugin.
pub fn await_end(ended: &Receiver<()>, deadline: Instant, enough: &Receiver<()>) {
    select! {
        recv(ended) -> _ => {}
        recv(enough) -> _ => {}
        default(deadline.saturating_duration_since(Instant::now())) => warn!("ending in the midst of a look for mounts that were left behind, or volumes that nobody uses"),
    }
}

fn look_until_unwanted(
    node: &Arc<Node>,
    allocations: Option<Allocations>,
    mut unused: Option<Unused>,
    findings: Option<&Findings>,
    asked: &Receiver<()>,
) {
    node.flush_all();
    let mut seen = MountsSeen::default();
    let every = unused.as_ref().map_or(MOUNTS_EVERY, |unused| unused.pace().min(MOUNTS_EVERY));
    let mut mounts_due = Instant::now();
    loop {
        if Instant::now() >= mounts_due {
            node.tidy_mounts(&mut seen, allocations.as_ref());
            if let Some(findings) = findings {
                findings.replace_left_mounts(node.left_mounts());
            }
            mounts_due = Instant::now() + MOUNTS_EVERY;
        }
        if let Some(unused) = &mut unused {
            unused.look(node);
        }
        match asked.recv_timeout(every) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
