//! Which droplet this is: its id and region, asked of the metadata service once and in the background.
//!
//! Owns the waiting for an answer that may come late, so that nothing else has to. Once known, the answer never
//! changes: orchestrators read a node's id once and keep it. Without an answer there is no placeholder either.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::backoff::Backoff;
use crate::cloud::ApiResult;
use crate::cloud::metadata::Metadata;
use crate::error::{Chain, Error, Result};
use crate::id::DropletId;
use crate::region::Region;

/// Pauses between two questions to a metadata service that does not answer.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
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
    facts: Mutex<Option<Facts>>,
    known: Condvar,
}

impl DropletIdentity {
    /// Takes the region that the operator gave, and asks nobody.
    #[must_use]
    pub fn unknown(region_by_flag: Option<Region>) -> Arc<DropletIdentity> {
        Arc::new(DropletIdentity { region_by_flag, facts: Mutex::new(None), known: Condvar::new() })
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

    /// The droplet's id and region.
    ///
    /// # Errors
    /// [`Error::NotReady`] until the metadata service has answered.
    pub fn facts(&self) -> Result<Facts> {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut facts = facts.ok_or_else(|| {
            Error::NotReady("the droplet's id is not known yet, the metadata service has not answered".to_owned())
        })?;
        if let Some(region) = &self.region_by_flag {
            facts.region.clone_from(region);
        }
        Ok(facts)
    }

    /// The region in which volumes are made: the operator's, or else the droplet's. Waits a little for the latter.
    ///
    /// # Errors
    /// [`Error::NotReady`] when neither is known.
    pub fn region(&self) -> Result<Region> {
        if let Some(region) = &self.region_by_flag {
            return Ok(region.clone());
        }
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let (facts, _) = self
            .known
            .wait_timeout_while(facts, REGION_PATIENCE, |facts| facts.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        facts.as_ref().map(|facts| facts.region.clone()).ok_or_else(|| {
            Error::NotReady(
                "the region is not known yet, the metadata service has not answered; outside DigitalOcean give --region"
                    .to_owned(),
            )
        })
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
                    *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts);
                    self.known.notify_all();
                    return;
                }
                Err(err) => {
                    if !is_reported {
                        warn!("the metadata service does not answer, asking on until it does: {}", Chain(&err));
                        is_reported = true;
                    }
                    thread::sleep(pauses.next_pause());
                }
            }
        }
    }
}

fn observe_facts(metadata: &Metadata) -> ApiResult<Facts> {
    Ok(Facts { id: metadata.droplet_id()?, region: metadata.region()? })
}
