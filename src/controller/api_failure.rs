//! What a failed API call calls for.
//!
//! Owns the step from the kinds of errors that DigitalOcean has to the few things that a controller call can do about
//! one. Pure, and exhaustive: a new kind does not compile until it is judged here.

use crate::error::api::{ApiError, ApiErrorKind};

/// What to do about a failed API call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ApiFailure {
    /// Nothing was changed, and DigitalOcean takes the same call a little later.
    Retryable,
    /// It is open whether anything was changed, or will be: read the state before a change is sent again.
    OutcomeUnknown,
    /// The state is not what the call needs; which one it is, has to be read.
    StateConflict,
    /// Something that the call names does not exist; which one, has to be found out.
    NotFound,
    /// Refused in words that are not known; most likely something that the call names does not fit.
    Unrecognized,
    /// A limit of the droplet or the account is reached.
    LimitReached,
    /// The time of the CSI call is used up.
    OutOfTime,
    /// Refused for good: the same call cannot succeed.
    Permanent,
}

/// Judges a failed API call.
#[must_use]
pub(super) fn plan_failure(err: &ApiError) -> ApiFailure {
    match err.kind() {
        ApiErrorKind::PendingEvent | ApiErrorKind::RateLimit { .. } => ApiFailure::Retryable,
        ApiErrorKind::Server | ApiErrorKind::BadReply | ApiErrorKind::Transport { .. } => ApiFailure::OutcomeUnknown,
        ApiErrorKind::NameTaken
        | ApiErrorKind::VolumeAttached
        | ApiErrorKind::Conflict
        | ApiErrorKind::AlreadyAttached
        | ApiErrorKind::AttachmentNotFound => ApiFailure::StateConflict,
        ApiErrorKind::NotFound => ApiFailure::NotFound,
        ApiErrorKind::Unprocessable => ApiFailure::Unrecognized,
        ApiErrorKind::AttachLimit | ApiErrorKind::CapacityLimit | ApiErrorKind::SnapshotRateLimit { .. } => {
            ApiFailure::LimitReached
        }
        ApiErrorKind::NoTimeLeft => ApiFailure::OutOfTime,
        ApiErrorKind::Unauthorized
        | ApiErrorKind::Forbidden
        | ApiErrorKind::BadRequest
        | ApiErrorKind::InvalidSize
        | ApiErrorKind::InvalidName
        | ApiErrorKind::NoStorageInRegion
        | ApiErrorKind::Untrusted
        | ApiErrorKind::NoToken => ApiFailure::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::api::Delivery;

    #[test]
    fn what_may_have_had_an_effect_is_never_taken_for_a_refusal() {
        let transport = |sent| ApiErrorKind::Transport { sent };
        let table = [
            (ApiErrorKind::Server, ApiFailure::OutcomeUnknown),
            (ApiErrorKind::BadReply, ApiFailure::OutcomeUnknown),
            (transport(Delivery::MaybeSent), ApiFailure::OutcomeUnknown),
            (transport(Delivery::NotSent), ApiFailure::OutcomeUnknown),
            (ApiErrorKind::PendingEvent, ApiFailure::Retryable),
            (ApiErrorKind::RateLimit { wait: None }, ApiFailure::Retryable),
            (ApiErrorKind::Forbidden, ApiFailure::Permanent),
            (ApiErrorKind::NotFound, ApiFailure::NotFound),
            (ApiErrorKind::AttachLimit, ApiFailure::LimitReached),
        ];
        for (kind, want) in table {
            assert_eq!(plan_failure(&ApiError::without_reply(kind, "no")), want, "{kind:?}");
        }
    }
}
