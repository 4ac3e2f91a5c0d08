//! Whether the program lives, is ready for calls, and can do its work: three questions with three answers.
//!
//! Owns the words of the answers. Living depends on nothing outside, or an orchestrator would kill every plugin of a cluster
//! when DigitalOcean is away.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::cloud::Cloud;
use crate::droplet_identity::DropletIdentity;
use crate::error::Chain;
use crate::ops::api_check::ApiCheck;
use crate::ops::http::Answer;

/// How far the program has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The socket is not served yet.
    Starting,
    /// Calls are answered.
    Serving,
    /// No new calls are taken; running ones end.
    Stopping,
}

/// What the answers are made from.
#[derive(Debug)]
pub struct Health {
    stage: Mutex<Stage>,
    /// The droplet, if calls need to know it.
    droplet: Option<Arc<DropletIdentity>>,
    api: Option<ApiCheck>,
}

impl Health {
    /// Starting; with the API where the controller service is offered, and the droplet where calls need to know it.
    #[must_use]
    pub fn new(cloud: Option<Cloud>, droplet: Option<Arc<DropletIdentity>>) -> Health {
        Health { stage: Mutex::new(Stage::Starting), droplet, api: cloud.map(ApiCheck::new) }
    }

    /// Says how far the program has come.
    pub fn reach(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    /// The answer to `GET /livez`: as long as there is one, the program lives.
    #[must_use]
    pub fn livez(&self) -> Answer {
        Answer::text(200, "ok\n")
    }

    /// The answer to `GET /readyz`: whether calls are taken, and whether what they cannot do without is known.
    #[must_use]
    pub fn readyz(&self) -> Answer {
        match self.observe_ready() {
            Ok(()) => Answer::text(200, "ok\n"),
            Err(why) => Answer::text(503, format!("{why}\n")),
        }
    }

    /// The answer to `GET /health`: with a controller whether DigitalOcean's API takes the token, otherwise the same as ready.
    #[must_use]
    pub fn health(&self) -> Answer {
        let ready = || self.observe_ready().map(|()| "ok".to_owned());
        match self.api.as_ref().map_or_else(ready, ApiCheck::ask) {
            Ok(text) => Answer::text(200, format!("{text}\n")),
            Err(why) => Answer::text(500, format!("{why}\n")),
        }
    }

    /// The metric that says whether it is ready.
    #[must_use]
    pub fn collector(self: &Arc<Self>) -> Box<dyn Collector> {
        Box::new(Readiness(Arc::clone(self)))
    }

    /// Whether calls are taken and can be worked on; otherwise why not.
    pub(super) fn observe_ready(&self) -> Result<(), String> {
        let stage = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        match stage {
            Stage::Starting => Err("the program is starting".to_owned()),
            Stage::Stopping => Err("the program is ending".to_owned()),
            Stage::Serving => match &self.droplet {
                Some(droplet) => droplet.facts().map(|_| ()).map_err(|err| Chain(&err).to_string()),
                None => Ok(()),
            },
        }
    }
}

#[derive(Debug)]
struct Readiness(Arc<Health>);

impl Collector for Readiness {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 when calls are taken and can be worked on, as /readyz says";
        let is_ready = i64::from(self.0.observe_ready().is_ok());
        ConstGauge::new(is_ready).encode(encoder.encode_descriptor("ready", help, None, MetricType::Gauge)?)
    }
}
