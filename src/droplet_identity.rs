//! Which droplet this is: its id and region, given by the operator or asked of the metadata service in the background.
//!
//! Owns the waiting for an answer that may come late, so that nothing else has to. Once known, the answer never
//! changes: orchestrators read a node's id once and keep it. Without an answer there is no placeholder either.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::activity::wait_for;
use crate::backoff::Backoff;
use crate::cloud::metadata::{Metadata, MetadataError};
use crate::error::{Error, Result};
use crate::id::DropletId;
use crate::region::Region;

/// Pauses between two questions to a metadata service that does not answer, and the longest one while a call waits for it.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
const PAUSE_OF_WAITERS: Duration = Duration::from_secs(1);
/// What the operator can do about it.
const CURE: &str = "On a droplet, let the plugin reach that address: a firewall, a network of its own or a proxy is in between; \
                    elsewhere, or when it cannot be reached, give --droplet-id and --region";
/// How long a call waits for an id or a region that is not known yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of this droplet.
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
    given: Given,
    state: Mutex<State>,
    /// That `state` has changed.
    changed: Condvar,
}

/// What the operator has said of this droplet, which goes before what the metadata service says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// The droplet's id.
    pub id: Option<DropletId>,
    /// The region of the droplet and of the volumes.
    pub region: Option<Region>,
}

impl Given {
    /// The facts, if nobody has to be asked.
    fn facts(&self) -> Option<Facts> {
        Some(Facts { id: self.id?, region: self.region.clone()? })
    }
}

#[derive(Debug, Default)]
struct State {
    facts: Option<Facts>,
    /// Why there is no answer yet, as it was told last.
    trouble: Option<String>,
    /// Calls that wait for the facts.
    waiting: usize,
    /// Whether the program ends, so that nobody is to wait any more.
    is_ending: bool,
}

impl DropletIdentity {
    /// Takes what the operator gave, and asks nobody.
    #[must_use]
    pub fn new(given: Given) -> Arc<DropletIdentity> {
        let state = State { facts: given.facts(), ..State::default() };
        Arc::new(DropletIdentity { given, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Starts to ask the metadata service, on a thread of its own, until it has answered. Does nothing when the operator has
    /// said everything.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn find_out(self: &Arc<Self>, metadata: Metadata) -> std::io::Result<()> {
        if self.facts().is_ok() {
            return Ok(());
        }
        let own = Arc::clone(self);
        thread::Builder::new().name("metadata".to_owned()).spawn(move || own.ask_until_answered(&metadata))?;
        Ok(())
    }

    /// The droplet's id and region, as far as they are known by now.
    ///
    /// # Errors
    /// [`Error::NotReady`] until the metadata service has answered.
    pub fn facts(&self) -> Result<Facts> {
        let state = self.state();
        state.facts.clone().ok_or_else(|| unknown("which droplet this is", &state))
    }

    /// The droplet's id, as far as it is known by now: the operator's, whether the region is known or not.
    #[must_use]
    pub fn id(&self) -> Option<DropletId> {
        self.given.id.or_else(|| self.state().facts.as_ref().map(|facts| facts.id))
    }

    /// The droplet's id. Waits a little for an answer of the metadata service, and not longer than until then.
    ///
    /// # Errors
    /// [`Error::NotReady`] when there is none by then, or the program ends.
    pub fn wait_for_id(&self, give_up: Instant) -> Result<DropletId> {
        match self.id() {
            Some(id) => Ok(id),
            None => self.wait_for_facts(give_up.min(after(PATIENCE))).map(|facts| facts.id),
        }
    }

    /// The droplet's id and region. Waits until then for an answer of the metadata service, which is asked more often
    /// meanwhile.
    ///
    /// # Errors
    /// [`Error::NotReady`] when there is none by then, or the program ends.
    pub fn wait_for_facts(&self, give_up: Instant) -> Result<Facts> {
        let state = self.wait_until(give_up);
        state.facts.clone().ok_or_else(|| unknown("which droplet this is", &state))
    }

    /// The region in which volumes are made: the operator's, or else the droplet's. Waits a little for the latter.
    ///
    /// # Errors
    /// [`Error::NotReady`] when neither is known.
    pub fn region(&self) -> Result<Region> {
        if let Some(region) = &self.given.region {
            return Ok(region.clone());
        }
        let state = self.wait_until(after(PATIENCE));
        state
            .facts
            .as_ref()
            .map(|facts| facts.region.clone())
            .ok_or_else(|| unknown("in which region the volumes are", &state))
    }

    /// Ends the waits of all calls, as the program ends.
    pub fn stop_waiting(&self) {
        self.state().is_ending = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, give_up: Instant) -> MutexGuard<'_, State> {
        let _waiting = wait_for("waiting for the metadata service", "it has not said which droplet this is");
        let mut state = self.state();
        state.waiting += 1;
        self.changed.notify_all();
        let patience = give_up.saturating_duration_since(Instant::now());
        let is_waiting = |state: &mut State| state.facts.is_none() && !state.is_ending;
        let (mut state, _) =
            self.changed.wait_timeout_while(state, patience, is_waiting).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
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
        loop {
            match observe_facts(&self.given, metadata) {
                Ok(facts) => {
                    info!(droplet = facts.id.get(), region:% = facts.region, seconds = started.elapsed().as_secs(); "this droplet is known");
                    self.state().facts = Some(facts);
                    self.changed.notify_all();
                    return;
                }
                Err(err) => {
                    let trouble = err.to_string();
                    let mut state = self.state();
                    if state.trouble.as_ref() != Some(&trouble) {
                        warn!("it is not known yet which droplet this is: {trouble}; asking on. {CURE}");
                        state.trouble = Some(trouble);
                    }
                    drop(state);
                    self.pause(pauses.next_pause());
                }
            }
        }
    }
}

fn unknown(what: &str, state: &State) -> Error {
    let trouble = state.trouble.as_deref().unwrap_or("the metadata service has not answered");
    Error::NotReady(format!("it is not known yet {what}: {trouble}. {CURE}"))
}

fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait).unwrap_or(now)
}

fn observe_facts(given: &Given, metadata: &Metadata) -> Result<Facts, MetadataError> {
    let id = given.id.map_or_else(|| metadata.droplet_id(), Ok)?;
    let region = given.region.clone().map_or_else(|| metadata.region(), Ok)?;
    Ok(Facts { id, region })
}
