//! Which droplet this is: its id and region, asked of the metadata service once and in the background.
//!
//! Owns the waiting for an answer that may come late, so that nothing else has to. Once known, the answer never
//! changes: orchestrators read a node's id once and keep it. Without an answer there is no placeholder either.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::backoff::Backoff;
use crate::cloud::ApiResult;
use crate::cloud::metadata::Metadata;
use crate::error::{Chain, Error, Result};
use crate::id::DropletId;
use crate::region::Region;

/// Pauses between two questions to a metadata service that does not answer, and the longest one while a call waits for it.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
const PAUSE_OF_WAITERS: Duration = Duration::from_secs(1);
/// How long a call waits for a region that is not known yet.
const REGION_PATIENCE: Duration = Duration::from_secs(5);

/// What the metadata service says of the droplet that it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The droplet's id.
    pub id: DropletId,
    /// The slug of the droplet's region, such as `fra1`.
    pub region: Region,
}

/// The droplet that this process runs on, as far as it is known.
#[derive(Debug)]
pub struct DropletIdentity {
    region_by_flag: Option<Region>,
    state: Mutex<State>,
    /// That `state` has changed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    facts: Option<Facts>,
    /// Calls that wait for the facts.
    waiting: usize,
    /// Whether the program ends, so that nobody is to wait any more.
    is_ending: bool,
}

impl DropletIdentity {
    /// Takes the region that the operator gave, and asks nobody.
    #[must_use]
    pub fn unknown(region_by_flag: Option<Region>) -> Arc<DropletIdentity> {
        Arc::new(DropletIdentity { region_by_flag, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Starts to ask the metadata service, on a thread of its own, until it has answered.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn find_out(self: &Arc<Self>, metadata: Metadata) -> std::io::Result<()> {
        let own = Arc::clone(self);
        thread::Builder::new().name("metadata".to_owned()).spawn(move || own.ask_until_answered(&metadata))?;
        Ok(())
    }

    /// The droplet's id and region, as far as they are known by now.
    ///
    /// # Errors
    /// [`Error::NotReady`] until the metadata service has answered.
    pub fn facts(&self) -> Result<Facts> {
        self.state().facts.clone().map(|facts| self.with_given(facts)).ok_or_else(unknown_droplet)
    }

    /// The droplet's id and region. Waits until then for an answer of the metadata service, which is asked more often
    /// meanwhile.
    ///
    /// # Errors
    /// [`Error::NotReady`] when there is none by then, or the program ends.
    pub fn wait_for_facts(&self, give_up: Instant) -> Result<Facts> {
        self.wait_until(give_up).map(|facts| self.with_given(facts)).ok_or_else(unknown_droplet)
    }

    /// The region in which volumes are made: the operator's, or else the droplet's. Waits a little for the latter.
    ///
    /// # Errors
    /// [`Error::NotReady`] when neither is known.
    pub fn region(&self) -> Result<Region> {
        if let Some(region) = &self.region_by_flag {
            return Ok(region.clone());
        }
        let facts = self.wait_until(after(REGION_PATIENCE));
        facts.map(|facts| facts.region).ok_or_else(|| {
            Error::NotReady(
                "the region is not known yet, the metadata service has not answered; outside DigitalOcean give --region"
                    .to_owned(),
            )
        })
    }

    /// Ends the waits of all calls, as the program ends.
    pub fn stop_waiting(&self) {
        self.state().is_ending = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the operator has said goes before what the metadata service says.
    fn with_given(&self, facts: Facts) -> Facts {
        let region = self.region_by_flag.clone().unwrap_or(facts.region);
        Facts { region, ..facts }
    }

    fn wait_until(&self, give_up: Instant) -> Option<Facts> {
        let mut state = self.state();
        state.waiting += 1;
        self.changed.notify_all();
        let patience = give_up.saturating_duration_since(Instant::now());
        let is_waiting = |state: &mut State| state.facts.is_none() && !state.is_ending;
        let (mut state, _) =
            self.changed.wait_timeout_while(state, patience, is_waiting).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state.facts.clone()
    }

    /// Waits between two questions; not for long when a call waits or begins to.
    fn pause(&self, pause: Duration) {
        let state = self.state();
        if state.waiting > 0 {
            drop(state);
            thread::sleep(pause.min(PAUSE_OF_WAITERS));
            return;
        }
        // A call that comes is worth a question at once.
        drop(
            self.changed
                .wait_timeout_while(state, pause, |state| state.waiting == 0)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn ask_until_answered(&self, metadata: &Metadata) {
        let started = Instant::now();
        let mut pauses = PAUSES;
        let mut is_reported = false;
        loop {
            match observe_facts(metadata) {
                Ok(facts) => {
                    info!(
                        "this is droplet id={} region={} ms={}",
                        facts.id,
                        facts.region,
                        started.elapsed().as_millis()
                    );
                    self.state().facts = Some(facts);
                    self.changed.notify_all();
                    return;
                }
                Err(err) => {
                    if !is_reported {
                        warn!("the metadata service does not answer, asking on until it does: {}", Chain(&err));
                        is_reported = true;
                    }
                    self.pause(pauses.next_pause());
                }
            }
        }
    }
}

fn unknown_droplet() -> Error {
    Error::NotReady("the droplet's id is not known yet, the metadata service has not answered".to_owned())
}

fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait).unwrap_or(now)
}

fn observe_facts(metadata: &Metadata) -> ApiResult<Facts> {
    Ok(Facts { id: metadata.droplet_id()?, region: metadata.region()? })
}
