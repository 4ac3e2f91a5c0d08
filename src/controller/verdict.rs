//! What a failed API call calls for.
//!
//! Owns the step from the kinds of errors that DigitalOcean has to the few things that a controller call can do about
//! one. Pure, and exhaustive: a new kind does not compile until it is judged here.

use crate::cloud::error::{ApiError, ApiErrorKind};

/// What to do about a failed API call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was changed, and DigitalOcean takes the same call a little later.
    Busy,
    /// It is open whether anything was changed, or will be: read the state before a change is sent again.
    Unclear,
    /// The state is not what the call needs; which one it is, has to be read.
    Conflict,
    /// Something that the call names does not exist; which one, has to be found out.
    Missing,
    /// Refused in words that are not known; most likely something that the call names does not fit.
    Odd,
    /// A limit of the droplet or the account is reached.
    Limit,
    /// The time of the CSI call is used up.
    OutOfTime,
    /// Refused for good: the same call cannot succeed.
    Refused,
}

/// Judges a failed API call.
#[must_use]
pub fn plan_verdict(err: &ApiError) -> Verdict {
    match err.kind() {
        ApiErrorKind::PendingEvent | ApiErrorKind::RateLimit { .. } => Verdict::Busy,
        ApiErrorKind::Server | ApiErrorKind::BadReply | ApiErrorKind::Transport { .. } | ApiErrorKind::Unknown => {
            Verdict::Unclear
        }
        ApiErrorKind::NameTaken
        | ApiErrorKind::VolumeAttached
        | ApiErrorKind::Conflict
        | ApiErrorKind::AlreadyAttached
        | ApiErrorKind::AttachmentNotFound => Verdict::Conflict,
        ApiErrorKind::NotFound => Verdict::Missing,
        ApiErrorKind::Unprocessable => Verdict::Odd,
        ApiErrorKind::AttachLimit | ApiErrorKind::CapacityLimit | ApiErrorKind::SnapshotRateLimit { .. } => {
            Verdict::Limit
        }
        ApiErrorKind::NoTimeLeft => Verdict::OutOfTime,
        ApiErrorKind::Unauthorized
        | ApiErrorKind::Forbidden
        | ApiErrorKind::BadRequest
        | ApiErrorKind::InvalidSize
        | ApiErrorKind::InvalidName
        | ApiErrorKind::NoStorageInRegion
        | ApiErrorKind::NoToken => Verdict::Refused,
    }
}
