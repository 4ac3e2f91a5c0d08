//! What is known of a volume's attachment while it is being made or ended: the words that attach, detach and takeover share.

use crate::cloud::action::Action;
use crate::cloud::volume::Volume;
use crate::error::api::{ApiError, ApiErrorKind};
use crate::id::ActionId;

/// A volume where it should be, and the action that brought it there, as far as DigitalOcean tells.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) volume: Volume,
    pub(super) by: Option<ActionId>,
}

/// How one look at the volume, and what was done about it, ended.
#[derive(Debug)]
pub(super) enum AttachStep {
    /// The volume has been seen where it should be.
    Done(Seen),
    /// Something has changed: look again at once.
    Again,
    /// Nothing more can be done now, for this reason: look again after a pause, each longer than the last.
    Pause(String),
    /// The same, but look soon, as the state is about to change.
    PollHolder(String),
    /// Somebody else's action has to end first.
    Await(Action),
}

/// What is known after a detach was sent.
#[derive(Debug)]
pub(super) enum DetachOutcome {
    /// DigitalOcean says that it is done.
    Completed,
    /// DigitalOcean says that it failed.
    Errored,
    /// DigitalOcean does not say that it has ended, and it should have long ago.
    Overdue,
    /// DigitalOcean says that there is nothing to detach, or that something does not fit.
    Refused(ApiError),
    /// It is open whether it had an effect.
    Open(ApiError),
}

impl DetachOutcome {
    /// Whether DigitalOcean said that the volume is not attached to the droplet; no other refusal says so.
    pub(super) fn proves_nothing_attached(&self) -> bool {
        match self {
            DetachOutcome::Refused(err) => err.kind() == ApiErrorKind::AttachmentNotFound,
            DetachOutcome::Completed | DetachOutcome::Errored | DetachOutcome::Overdue | DetachOutcome::Open(_) => {
                false
            }
        }
    }

    pub(super) fn in_words(&self) -> String {
        match self {
            DetachOutcome::Refused(err) | DetachOutcome::Open(err) => err.to_string(),
            DetachOutcome::Completed => "DigitalOcean's detach action completed".to_owned(),
            DetachOutcome::Errored => "DigitalOcean's detach action errored".to_owned(),
            DetachOutcome::Overdue => "DigitalOcean's detach action does not end".to_owned(),
        }
    }
}

/// What to do while DigitalOcean says that the droplet is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnBusy {
    /// Keep the droplet's turn and try again.
    Wait,
    /// Return; whoever sent the detach has to think again.
    Return,
}
