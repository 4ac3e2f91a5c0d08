//! Every error's CSI status code: the only file that names gRPC codes.
//!
//! Owns the mapping and nothing else. A new variant of [`Error`] does not compile until it is given a code here.
//! Source of the meanings: CSI specification, the error tables of each RPC.

use grpcio::{RpcStatus, RpcStatusCode};

use crate::error::api::{ApiError, ApiErrorKind};
use crate::error::command::CommandError;
use crate::error::{Chain, Error};

/// Makes the status for the caller: the code and the whole chain of causes as text.
#[must_use]
pub fn status(err: &Error) -> RpcStatus {
    RpcStatus::with_message(code(err), Chain(err).to_string())
}

/// The status of a call whose worker panicked; the panic itself is in the log.
#[must_use]
pub fn panicked() -> RpcStatus {
    status(&Error::Bug("the call panicked; see the plugin's log".to_owned()))
}

/// The code's name as the CSI specification has it: `FAILED_PRECONDITION`.
#[must_use]
pub fn name(err: &Error) -> String {
    name_of(code(err))
}

/// As [`name`], of a code that somebody else has answered with.
pub(super) fn name_of(code: RpcStatusCode) -> String {
    // The number stands before it: `9-FAILED_PRECONDITION`.
    let shown = format!("{code:?}");
    shown.split_once('-').map_or(shown.as_str(), |(_, name)| name).to_owned()
}

/// Whether an answer with this code did not come in time.
pub(super) fn is_late(code: RpcStatusCode) -> bool {
    code == RpcStatusCode::DEADLINE_EXCEEDED
}

fn code(err: &Error) -> RpcStatusCode {
    match err {
        // A droplet of another region is not FAILED_PRECONDITION, as it never becomes one of the volume's: Nomad would
        // repeat the attach for a day, and the job would not be placed anywhere else meanwhile.
        Error::Invalid { .. } | Error::Unsupported(_) | Error::OtherRegion { .. } => RpcStatusCode::INVALID_ARGUMENT,
        Error::NotFound(_) => RpcStatusCode::NOT_FOUND,
        Error::Mismatch { .. } | Error::NotAdopted { .. } | Error::MountedOtherwise { .. } => {
            RpcStatusCode::ALREADY_EXISTS
        }
        Error::SizeOutOfRange(_) => RpcStatusCode::OUT_OF_RANGE,
        Error::RegionUnavailable { .. }
        | Error::AttachLimit { .. }
        | Error::AccountLimit { .. }
        | Error::SnapshotTooSoon { .. } => RpcStatusCode::RESOURCE_EXHAUSTED,
        // Nomad tries an attach again after this code and no other, so one that waited in vain ends with it too.
        Error::NotYet(_)
        | Error::AttachedElsewhere { .. }
        | Error::StillAttached { .. }
        | Error::NotOurs { .. }
        | Error::WillNotFormat { .. }
        | Error::WrongFilesystem { .. }
        | Error::DamagedFilesystem { .. }
        | Error::WrongDevice { .. }
        | Error::TargetTaken { .. }
        | Error::InUse { .. }
        | Error::NotStaged(_)
        | Error::UsedOtherwise(_)
        | Error::MountBroken(_)
        | Error::Unfinished(_)
        | Error::CannotGrow(_)
        | Error::HostUnfit(_)
        | Error::NotAsReported(_) => RpcStatusCode::FAILED_PRECONDITION,
        Error::OtherAccount { .. } => RpcStatusCode::UNAUTHENTICATED,
        Error::VolumeBusy(_) | Error::Overtaken(_) | Error::BadPageToken(_) => RpcStatusCode::ABORTED,
        Error::TimedOut { .. }
        | Error::DeviceMissing { .. }
        | Error::NotReady(_)
        | Error::Overloaded(_)
        | Error::NoThread(_) => RpcStatusCode::UNAVAILABLE,
        Error::Api { source, .. } => code_of_api(source),
        Error::CallerGone => RpcStatusCode::DEADLINE_EXCEEDED,
        Error::Command { source, .. } if source.timed_out() => RpcStatusCode::DEADLINE_EXCEEDED,
        Error::Command { source: CommandError::Missing(_), .. } => RpcStatusCode::FAILED_PRECONDITION,
        Error::Command { .. } | Error::Io { .. } | Error::Bug(_) => RpcStatusCode::INTERNAL,
    }
}

fn code_of_api(err: &ApiError) -> RpcStatusCode {
    match err.kind() {
        ApiErrorKind::Unauthorized | ApiErrorKind::NoToken => RpcStatusCode::UNAUTHENTICATED,
        ApiErrorKind::Forbidden => RpcStatusCode::PERMISSION_DENIED,
        ApiErrorKind::NameTaken => RpcStatusCode::ALREADY_EXISTS,
        ApiErrorKind::InvalidSize => RpcStatusCode::OUT_OF_RANGE,
        ApiErrorKind::InvalidName | ApiErrorKind::NoStorageInRegion => RpcStatusCode::INVALID_ARGUMENT,
        ApiErrorKind::VolumeAttached | ApiErrorKind::AlreadyAttached | ApiErrorKind::AttachmentNotFound => {
            RpcStatusCode::FAILED_PRECONDITION
        }
        ApiErrorKind::AttachLimit | ApiErrorKind::CapacityLimit | ApiErrorKind::SnapshotRateLimit { .. } => {
            RpcStatusCode::RESOURCE_EXHAUSTED
        }
        ApiErrorKind::PendingEvent | ApiErrorKind::Conflict => RpcStatusCode::ABORTED,
        ApiErrorKind::RateLimit { .. }
        | ApiErrorKind::Server
        | ApiErrorKind::BadReply
        | ApiErrorKind::Transport { .. }
        | ApiErrorKind::Untrusted
        | ApiErrorKind::NoTimeLeft => RpcStatusCode::UNAVAILABLE,
        // What the request names and DigitalOcean does not have is an `Error::NotFound` by now. This is something that has
        // to be there, such as the account, and NOT_FOUND would tell an orchestrator that its volume is gone.
        ApiErrorKind::NotFound | ApiErrorKind::BadRequest | ApiErrorKind::Unprocessable => RpcStatusCode::INTERNAL,
    }
}
