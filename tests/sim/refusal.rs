//! Every refusal the simulator can speak: status, error id and message, as real replies have them.
//!
//! Owns the texts only. When a refusal is due is decided in `volumes.rs`, `actions.rs`, `snapshots.rs` and `route.rs`.
//! Texts marked "text unknown" have no recorded reply behind them; a client must go by their status.

use std::fmt;

/// An error reply: `{"id": .., "message": ..}` under an HTTP status.
///
/// Source: `shared/models/error.yml` of digitalocean/openapi for the shape; each constant names its own evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status code.
    pub status: u16,
    /// The machine-readable `id`.
    pub id: &'static str,
    /// The human-readable `message`.
    pub message: &'static str,
}

const fn refusal(status: u16, id: &'static str, message: &'static str) -> Refusal {
    Refusal { status, id, message }
}

const fn unprocessable(message: &'static str) -> Refusal {
    refusal(422, "unprocessable_entity", message)
}

impl Refusal {
    /// No token or a wrong one (`shared/responses/unauthorized.yml`).
    pub const UNAUTHORIZED: Refusal = refusal(401, "unauthorized", "Unable to authenticate you.");
    /// A token without the scope (`shared/responses/forbidden.yml`).
    pub const FORBIDDEN: Refusal = refusal(403, "forbidden", "You do not have permission to perform this action.");
    /// The path matches no route (doctl issue 1037).
    pub const NO_ROUTE: Refusal = refusal(404, "not_found", "The resource you were accessing could not be found.");
    /// The route is known, the object is not (`shared/responses/not_found.yml`).
    pub const NOT_FOUND: Refusal = refusal(404, "not_found", "The resource you requested could not be found.");
    /// The body is not JSON (text unknown).
    pub const BAD_REQUEST: Refusal = refusal(400, "bad_request", "the request body could not be parsed");
    /// A known image that is no snapshot (`snapshots_get.yml`).
    pub const NOT_A_SNAPSHOT: Refusal = refusal(400, "bad_request", "the resource is not a snapshot");
    /// A field is missing or of the wrong kind (`shared/responses/unprocessable_entity.yml`).
    pub const INVALID_PAYLOAD: Refusal = unprocessable("request payload validation failed");
    /// Events are serial per droplet (csi-digitalocean `controller.go`, terraform `resource_volume_attachment.go`).
    pub const PENDING_EVENT: Refusal = unprocessable("Droplet already has a pending event.");
    /// Attach of a volume that some droplet has (csi-digitalocean `controller.go`, godo PR 1080).
    pub const ALREADY_ATTACHED: Refusal = unprocessable("This volume is already attached");
    /// Detach of what is not attached (csi-digitalocean `controller.go`, doctl issue 207).
    pub const ATTACHMENT_NOT_FOUND: Refusal = unprocessable("Attachment not found");
    /// The droplet is full (csi-digitalocean PR 573, since 2024-06).
    pub const ATTACH_LIMIT: Refusal = unprocessable("cannot attach more volumes to the Droplet");
    /// The droplet is full, as it was said before 2024-06.
    pub const ATTACH_LIMIT_LEGACY: Refusal = unprocessable("cannot attach more than 7 volumes to a single Droplet");
    /// Size below 1 GiB or above the maximum (csi-digitalocean PR 654).
    pub const INVALID_SIZE: Refusal = unprocessable("failed to create volume: invalid size specified");
    /// Name outside `^[a-z][a-z0-9-]{0,63}$` (terraform PR 386).
    pub const INVALID_NAME: Refusal =
        unprocessable("failed to create volume: invalid volume name. names must be lowercase and alphanumeric");
    /// Region without block storage (libstorage issue 429).
    pub const NO_STORAGE: Refusal = unprocessable("Storage is not supported for this region");
    /// A restore outside the regions of its snapshot (text unknown).
    pub const SNAPSHOT_REGION: Refusal =
        unprocessable("failed to create volume: snapshot is not available in this region");
    /// Create with a tag outside `[a-zA-Z0-9_:-]{1,255}` (text unknown).
    pub const INVALID_TAG: Refusal = unprocessable("failed to create volume: invalid tag name");
    /// Attach across regions (text unknown).
    pub const REGION_MISMATCH: Refusal = unprocessable("volume and Droplet must be in the same region");
    /// Attach to a droplet that is not there, when the reply is not 404 (text unknown).
    pub const UNKNOWN_DROPLET: Refusal = unprocessable("Droplet could not be found");
    /// Resize to the same size, a smaller one or beyond the maximum (text unknown).
    pub const INVALID_RESIZE: Refusal = unprocessable("error resizing volume: invalid size specified");
    /// More snapshots than a volume may have (text unknown).
    pub const SNAPSHOT_LIMIT: Refusal = unprocessable("failed to create snapshot: snapshot limit reached");
    /// Account quota on create (csi-digitalocean PR 481).
    pub const CREATE_QUOTA: Refusal =
        refusal(403, "forbidden", "failed to create volume: volume/snapshot capacity limit exceeded");
    /// Account quota on resize (csi-digitalocean issue 476).
    pub const RESIZE_QUOTA: Refusal =
        refusal(403, "forbidden", "error resizing volume: volume/snapshot capacity limit exceeded");
    /// Duplicate volume name, one of the two texts seen (ansible issue 39655).
    pub const DUPLICATE_NAME_CONFLICT: Refusal = refusal(409, "conflict", "failed to create volume");
    /// Duplicate volume name, the other text seen (terraform issue 17964).
    pub const DUPLICATE_NAME_EXISTS: Refusal = refusal(409, "already_exists", "already exists");
    /// Delete of an attached volume, the short text (doctl issue 358).
    pub const DELETE_ATTACHED: Refusal = refusal(409, "conflict", "attached volume cannot be deleted");
    /// Delete of an attached volume, the long text (terraform-provider-digitalocean issue 19).
    pub const DELETE_ATTACHED_LONG: Refusal = refusal(
        409,
        "conflict",
        "A volume that's attached to a Droplet cannot be deleted. \
         Please detach it first before deleting.",
    );
    /// Duplicate snapshot name: the status is known, the text is the schema's generic one.
    pub const DUPLICATE_SNAPSHOT: Refusal =
        refusal(409, "conflict", "The request could not be completed due to a conflict.");
    /// A second snapshot of one volume within ten minutes (velero issue 6164). No `retry-after` comes with it.
    pub const SNAPSHOT_TOO_SOON: Refusal = refusal(
        429,
        "too_many_requests",
        "failed to create snapshot: this operation is rate-limited - one request per 10m0s",
    );
    /// The request rate limit, burst or hourly (`description.yml`).
    pub const RATE_LIMIT: Refusal = refusal(429, "too_many_requests", "API Rate limit exceeded.");
    /// An internal failure (`shared/responses/server_error.yml`).
    pub const SERVER_ERROR: Refusal = refusal(500, "server_error", "Unexpected server-side error");
    /// Temporarily out of service (text unknown).
    pub const UNAVAILABLE: Refusal = refusal(503, "service_unavailable", "Service Unavailable");

    /// The quota refusal in its 429 form, which csi-digitalocean PR 654 saw.
    pub const fn as_too_many_requests(self) -> Refusal {
        refusal(429, "too_many_requests", self.message)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status, self.id, self.message)
    }
}

impl std::error::Error for Refusal {}
