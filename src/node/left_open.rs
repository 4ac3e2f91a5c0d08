//! Encrypted volumes that a call which was killed has left open.
//!
//! Owns their closing when the program starts and whenever a volume is unstaged, so that the droplet forgets their keys and
//! lets go of their disks. Which volume one belongs to need not be known: whatever this plugin opens is to be closed by the
//! kernel once nothing uses it, and that is all that is asked for here. One that is staged again is `encrypted.rs`'s.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::warn;

use super::Node;
use crate::config::NODE_BUDGET;
use crate::error::{Chain, Result};
use crate::host::luks::apply_close;
use crate::host::mapper::{number_under, observe_all_open};
use crate::host::mount::observe_mounts;
use crate::host::run::{Runner, Until};
use crate::lock::VolumeKey;

impl Node {
    /// Closes what an earlier run of the program has left open, on a thread of its own.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn close_left_open(self: &Arc<Self>) -> std::io::Result<()> {
        let node = Arc::clone(self);
        let close = move || node.ensure_none_left_open(&Until::new(node.runner.as_ref(), Instant::now() + NODE_BUDGET));
        thread::Builder::new().name("left-open".to_owned()).spawn(close)?;
        Ok(())
    }

    /// Closes every encrypted volume that is open and nowhere mounted. What cannot be closed stays for the next time: it is
    /// nothing that a call should fail for.
    ///
    /// A second call finds none.
    pub(super) fn ensure_none_left_open(&self, runner: &dyn Runner) {
        if let Err(err) = self.apply_close_all(runner) {
            warn!("cannot close the encrypted volumes that a killed call has left open: {}", Chain(&err));
        }
    }

    fn apply_close_all(&self, runner: &dyn Runner) -> Result<()> {
        if observe_all_open(&self.places)?.is_empty() {
            return Ok(());
        }
        // Between its opening and its first use a volume looks as one that was left. Who opens one now comes by here later.
        let Ok(_turn) = self.turns.take("closing encrypted volumes", Duration::ZERO) else { return Ok(()) };
        for name in self.observe_left_open()? {
            warn!("closing what a call that was killed has left open mapper={name}");
            let guard = self.locks.hold(VolumeKey::Name(name.clone()), Duration::ZERO)?;
            apply_close(&guard, runner, &name)?;
        }
        Ok(())
    }

    /// The names of the devices that are open and nowhere mounted.
    fn observe_left_open(&self) -> Result<Vec<String>> {
        let mut left = observe_all_open(&self.places)?;
        for mount in observe_mounts()?.iter() {
            let used = number_under(&self.places, mount)?;
            left.retain(|(_, number)| Some(*number) != used);
        }
        Ok(left.into_iter().map(|(name, _)| name).collect())
    }
}
