//! What DigitalOcean answered when it did not do what was asked, or why there was no answer.
//!
//! Owns the reading of error bodies: an error's kind is decided once, from status, id and message, and every comparison
//! with DigitalOcean's wording is in this file. It does not decide what to do about an error: that is one table, in
//! `controller/api_failure.rs`.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

/// How much of a body is kept for the log, in bytes.
const TAIL_BYTES: usize = 512;

/// How much of a message is shown, in characters.
const MESSAGE_CHARS: usize = 300;

/// Whether a request may have reached DigitalOcean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It certainly did not: there was no connection to send it on.
    NotSent,
    /// It may have, and may have been carried out: the connection broke or went silent afterwards.
    MaybeSent,
}

/// What an error means to whoever made the call.
///
/// Source: the statuses and texts in the table test below; DigitalOcean documents only the ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiErrorKind {
    /// 401: the token is wrong, expired or revoked.
    Unauthorized,
    /// 403 for another reason than a limit: the token lacks a scope.
    Forbidden,
    /// 404 in DigitalOcean's own words: no such volume, snapshot, droplet, action or tag.
    NotFound,
    /// 400: the request was not understood.
    BadRequest,
    /// 409 on create: a volume of that name exists in the region, or a snapshot of that name exists.
    NameTaken,
    /// 409 on delete: a droplet has the volume, or had it a moment ago.
    VolumeAttached,
    /// 409 in words that say nothing more; on a create it most likely is [`ApiErrorKind::NameTaken`].
    Conflict,
    /// 422 on attach: the volume is attached, to whatever droplet.
    AlreadyAttached,
    /// 422 on attach, detach and resize: the droplet is busy with another event.
    PendingEvent,
    /// 422 on detach: the volume is not attached to that droplet, or not any more.
    AttachmentNotFound,
    /// 422 on attach: the droplet has as many volumes as it may.
    AttachLimit,
    /// 422 on create or resize: the size is below or above what DigitalOcean sells.
    InvalidSize,
    /// 422 on create: the name breaks DigitalOcean's rule.
    InvalidName,
    /// 422 on create: the region has no block storage.
    NoStorageInRegion,
    /// 422 in any other words.
    Unprocessable,
    /// 403 or 429: the account may not have more volumes, snapshots or bytes.
    CapacityLimit,
    /// 429, or this program's own restraint before it comes to that: too many calls with this token.
    RateLimit {
        /// How long to wait before the next call, when that is known.
        wait: Option<Duration>,
    },
    /// 429 on creating a snapshot: one per volume in a while, ten minutes at the time of writing.
    SnapshotRateLimit {
        /// The length of that while.
        wait: Duration,
    },
    /// 5xx: DigitalOcean, or a machine in front of it, failed.
    Server,
    /// The reply is not what this call returns: a web page, a broken document, too many bytes, a 4xx that is not from the API,
    /// a redirect, or a status that the API is not known to use.
    BadReply,
    /// There was no reply, or not the whole of it.
    Transport {
        /// Whether the request may have had an effect all the same.
        sent: Delivery,
    },
    /// The server's certificate is not believed, so nothing was sent; it will not be another one a moment later.
    Untrusted,
    /// The caller's time was used up before the request could be sent.
    NoTimeLeft,
    /// There is no token to send: its file cannot be read or holds none.
    NoToken,
}

/// One failed call: what it means, and what DigitalOcean said.
///
/// `Display` is one line with the status, DigitalOcean's message and the request id that its support asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    kind: ApiErrorKind,
    // Boxed because errors travel in every `Result`, and most results are fine.
    detail: Box<Detail>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Detail {
    status: Option<u16>,
    id: String,
    message: String,
    request_id: Option<String>,
    body_tail: String,
    /// What this program knows of the cause, for a person.
    cause: String,
}

/// What is known of a reply besides its body, as far as an error needs it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReplyFacts {
    pub(crate) request_id: Option<String>,
    /// From `retry-after`, else from `ratelimit-reset` when nothing remains.
    pub(crate) wait: Option<Duration>,
}

/// DigitalOcean's error body; every field may be missing.
///
/// Source: API reference, "Introduction", section on statuses and errors.
#[derive(Debug, Default, Deserialize)]
struct Body {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    request_id: Option<String>,
}

impl ApiError {
    /// Reads the reply of a call that failed.
    pub(crate) fn from_reply(status: u16, body: &[u8], facts: ReplyFacts) -> ApiError {
        // Whatever is no JSON object with these fields has no id and no message; the status alone decides then.
        let parsed: Body = serde_json::from_slice(body).unwrap_or_default();
        let id = parsed.id.unwrap_or_default();
        let message = parsed.message.unwrap_or_default();
        let kind = kind_of(status, &id.to_lowercase(), &message.to_lowercase(), facts.wait);
        let kind = if is_foreign(status, &id, &message) { ApiErrorKind::BadReply } else { kind };
        let body_tail = tail(body);
        let message = if message.is_empty() { without_message(&body_tail) } else { one_line(&message) };
        let request_id = parsed.request_id.filter(|id| !id.is_empty()).or(facts.request_id).map(|id| one_line(&id));
        let id = one_line(&id);
        let detail = Detail { status: Some(status), id, message, request_id, body_tail, ..Detail::default() };
        ApiError { kind, detail: Box::new(detail) }
    }

    /// A reply with a good status whose body is not what the call returns.
    pub(crate) fn bad_reply(status: u16, why: &str, body: &[u8], request_id: Option<String>) -> ApiError {
        let message = format!("the reply is not usable: {}", one_line(why));
        let body_tail = tail(body);
        let detail = Detail { status: Some(status), message, request_id, body_tail, ..Detail::default() };
        ApiError { kind: ApiErrorKind::BadReply, detail: Box::new(detail) }
    }

    /// A call that got no reply at all.
    pub(crate) fn without_reply(kind: ApiErrorKind, why: &str) -> ApiError {
        ApiError { kind, detail: Box::new(Detail { message: one_line(why), ..Detail::default() }) }
    }

    /// The same error with what this program knows of the cause, which DigitalOcean's words do not say.
    pub(crate) fn caused_by(mut self, cause: &str) -> ApiError {
        self.detail.cause = one_line(cause);
        self
    }

    /// What the error means.
    #[must_use]
    pub fn kind(&self) -> ApiErrorKind {
        self.kind
    }

    /// Whether the request may be on its way yet, as DigitalOcean itself has not answered it.
    #[must_use]
    pub fn may_be_under_way(&self) -> bool {
        match self.kind {
            ApiErrorKind::Transport { sent } => sent == Delivery::MaybeSent,
            // A machine in front of it writes no id.
            ApiErrorKind::Server | ApiErrorKind::BadReply => self.detail.id.is_empty(),
            ApiErrorKind::Unauthorized
            | ApiErrorKind::Forbidden
            | ApiErrorKind::NotFound
            | ApiErrorKind::BadRequest
            | ApiErrorKind::NameTaken
            | ApiErrorKind::VolumeAttached
            | ApiErrorKind::Conflict
            | ApiErrorKind::AlreadyAttached
            | ApiErrorKind::PendingEvent
            | ApiErrorKind::AttachmentNotFound
            | ApiErrorKind::AttachLimit
            | ApiErrorKind::InvalidSize
            | ApiErrorKind::InvalidName
            | ApiErrorKind::NoStorageInRegion
            | ApiErrorKind::Unprocessable
            | ApiErrorKind::CapacityLimit
            | ApiErrorKind::RateLimit { .. }
            | ApiErrorKind::SnapshotRateLimit { .. }
            | ApiErrorKind::Untrusted
            | ApiErrorKind::NoTimeLeft
            | ApiErrorKind::NoToken => false,
        }
    }

    /// The HTTP status, when there was a reply.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.detail.status
    }

    /// The id of the request, for DigitalOcean's support, when there was a reply that had one.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.detail.request_id.as_deref()
    }

    /// DigitalOcean's message, or this program's words when there was none; one line, bounded.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.detail.message
    }

    /// The end of the reply's body, at most 512 bytes, for the log; empty when there was none.
    #[must_use]
    pub fn body_tail(&self) -> &str {
        &self.detail.body_tail
    }

    /// How long DigitalOcean asks to wait before the next call, when it does.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        if let ApiErrorKind::RateLimit { wait: Some(wait) } | ApiErrorKind::SnapshotRateLimit { wait } = self.kind {
            Some(wait)
        } else {
            None
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail.status {
            Some(status) => write!(f, "DigitalOcean answered {status}: {}", self.detail.message)?,
            None => f.write_str(&self.detail.message)?,
        }
        if let Some(id) = &self.detail.request_id {
            write!(f, " (request id {id})")?;
        }
        if self.detail.cause.is_empty() { Ok(()) } else { write!(f, "; {}", self.detail.cause) }
    }
}

impl std::error::Error for ApiError {}

/// Whether a refusal is not in DigitalOcean's own words, but most likely of something in front of the API, such as a web
/// page about a firewall. It says nothing about what was asked. A 429 means the same from whoever it comes.
fn is_foreign(status: u16, id: &str, message: &str) -> bool {
    (400..500).contains(&status) && status != 429 && id.is_empty() && message.is_empty()
}

/// Decides the kind. Id and message come in lower case.
fn kind_of(status: u16, id: &str, message: &str, wait: Option<Duration>) -> ApiErrorKind {
    match status {
        400 => ApiErrorKind::BadRequest,
        401 => ApiErrorKind::Unauthorized,
        403 if message.contains("capacity limit exceeded") => ApiErrorKind::CapacityLimit,
        403 => ApiErrorKind::Forbidden,
        // "Gone" is believed from DigitalOcean alone, whose error has both: a wrong base URL, or a gateway that has lost its
        // route, must not make volumes look deleted.
        404 if id == "not_found" && !message.is_empty() => ApiErrorKind::NotFound,
        404 => ApiErrorKind::BadReply,
        409 => kind_of_conflict(id, message),
        422 => kind_of_unprocessable(message),
        429 => kind_of_too_many(message, wait),
        500..=599 => ApiErrorKind::Server,
        _ => ApiErrorKind::BadReply,
    }
}

fn kind_of_conflict(id: &str, message: &str) -> ApiErrorKind {
    if message.contains("attached") {
        ApiErrorKind::VolumeAttached
    } else if id == "already_exists" || message.contains("already exists") || message.contains("failed to create") {
        ApiErrorKind::NameTaken
    } else {
        ApiErrorKind::Conflict
    }
}

fn kind_of_unprocessable(message: &str) -> ApiErrorKind {
    let texts = [
        ("already attached", ApiErrorKind::AlreadyAttached),
        ("pending event", ApiErrorKind::PendingEvent),
        ("attachment not found", ApiErrorKind::AttachmentNotFound),
        // "cannot attach more volumes to the Droplet" since 2024, "cannot attach more than 7 volumes ..." before.
        ("cannot attach more", ApiErrorKind::AttachLimit),
        ("invalid size", ApiErrorKind::InvalidSize),
        ("invalid volume name", ApiErrorKind::InvalidName),
        ("storage is not supported", ApiErrorKind::NoStorageInRegion),
    ];
    texts.into_iter().find(|(text, _)| message.contains(text)).map_or(ApiErrorKind::Unprocessable, |(_, kind)| kind)
}

fn kind_of_too_many(message: &str, wait: Option<Duration>) -> ApiErrorKind {
    if message.contains("capacity limit exceeded") {
        return ApiErrorKind::CapacityLimit;
    }
    match message.split_once("one request per ") {
        Some((_, period)) => ApiErrorKind::SnapshotRateLimit { wait: go_duration(period).unwrap_or(SNAPSHOT_PERIOD) },
        None => ApiErrorKind::RateLimit { wait },
    }
}

/// The period between two snapshots of one volume, for when the text about it cannot be read.
const SNAPSHOT_PERIOD: Duration = Duration::from_secs(600);

/// Reads the start of a text as Go prints a duration of whole seconds: `10m0s`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut total = 0_u64;
    let mut digits = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => break,
        };
        total = total.checked_add(digits.parse::<u64>().ok()?.checked_mul(unit)?)?;
        digits.clear();
    }
    (total > 0).then(|| Duration::from_secs(total))
}

fn without_message(body_tail: &str) -> String {
    if body_tail.is_empty() { "no message".to_owned() } else { format!("no message, but: {}", one_line(body_tail)) }
}

/// Makes foreign text fit for a log line: no control characters, bounded.
fn one_line(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MESSAGE_CHARS).collect::<String>().trim().to_owned()
}

fn tail(body: &[u8]) -> String {
    let start = body.len().saturating_sub(TAIL_BYTES);
    let end = body.get(start..).unwrap_or_default();
    String::from_utf8_lossy(end).trim().to_owned()
}

#[cfg(test)]
mod tests;
