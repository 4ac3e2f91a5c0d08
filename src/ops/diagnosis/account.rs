//! What is wrong with the token, the account and its limits.
//!
//! Owns the findings that follow from answers of DigitalOcean to questions which were asked to find out. Pure.

use std::time::{Duration, SystemTime};

use crate::cloud::droplet::Account;
use crate::cloud::http::ClockReading;
use crate::cloud::proxy::Proxy;
use crate::cloud::snapshot::Snapshot;
use crate::error::api::{ApiError, ApiErrorKind};
use crate::error::{Chain, Error};
use crate::ops::diagnosis::{Finding, Reason, Subject};

/// How much of a limit is used up when it is nearly reached, in percent.
const NEARLY: u64 = 90;
/// How long a snapshot through which a clone was made may be left: the plugin removes it after a quarter of an hour.
const TEMPORARY_FOR: Duration = Duration::from_secs(3600);
/// How far this machine's clock may be off: DigitalOcean tells whole seconds, and an answer takes some time.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
/// What ends an API that does not answer.
const UNREACHABLE: &str = "look at the network and the proxy of this machine, and at https://status.digitalocean.com";
/// The tag of such snapshots.
const TEMPORARY: &str = "do-csi-temporary";

/// What is wrong with the way to the API, by the refusal of a question; `scope` is what the question takes, `origin`
/// where the token is from. Pure.
#[must_use]
pub fn diagnose_refusal(err: &ApiError, scope: &str, origin: &str) -> Finding {
    let find = |reason, message: String, cure: String| Finding::new(reason, &Subject::Account, message, cure);
    match err.kind() {
        ApiErrorKind::Unauthorized | ApiErrorKind::NoToken => {
            let message = format!("DigitalOcean does not take the access token: {err}");
            let cure = format!(
                "make a token at https://cloud.digitalocean.com/account/api/tokens and put it into {origin}; in Nomad: \
                 `nomad var put -force nomad/jobs/do-csi-plugin token=TOKEN`"
            );
            find(Reason::TokenRejected, message, cure)
        }
        ApiErrorKind::Forbidden => {
            let message = format!("the access token from {origin} lacks the scope {scope}: {err}");
            let cure = "give the token that scope at https://cloud.digitalocean.com/account/api/tokens".to_owned();
            find(Reason::ScopeMissing, message, cure)
        }
        ApiErrorKind::RateLimit { wait } => {
            let wait = wait.map(|wait| format!(" for {} s", wait.as_secs())).unwrap_or_default();
            let message = format!("DigitalOcean refuses this token's requests{wait}, as there were too many: {err}");
            let cure =
                "find out what else uses the token and give it another one; the plugin asks on by itself".to_owned();
            find(Reason::RequestsUsedUp, message, cure)
        }
        ApiErrorKind::NotFound
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
        | ApiErrorKind::SnapshotRateLimit { .. }
        | ApiErrorKind::Server
        | ApiErrorKind::BadReply
        | ApiErrorKind::Transport { .. }
        | ApiErrorKind::Untrusted
        | ApiErrorKind::NoTimeLeft => {
            let message = format!("DigitalOcean's API cannot be used: {err}");
            find(Reason::ApiUnreachable, message, UNREACHABLE.to_owned())
        }
    }
}

/// What is wrong with the way to the API, by an error of which a look at the region has ended; `None`: nothing, as far as that error
/// tells. Pure.
#[must_use]
pub fn diagnose_failure(err: &Error, origin: &str) -> Option<Finding> {
    if let Error::Api { source, .. } = err {
        return Some(diagnose_refusal(source, "block_storage:read", origin));
    }
    matches!(err, Error::TimedOut { .. }).then(|| {
        let message = format!("DigitalOcean's API cannot be used: {}", Chain(err));
        Finding::new(Reason::ApiUnreachable, &Subject::Account, message, UNREACHABLE.to_owned())
    })
}

/// What is wrong with this machine's clock. Pure.
#[must_use]
pub fn diagnose_clock(reading: &ClockReading) -> Option<Finding> {
    let (off, which) = match reading.ours.duration_since(reading.theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    (off > CLOCK_TOLERANCE).then(|| {
        let message = format!("this machine's clock is {} s {which} DigitalOcean's", off.as_secs());
        let cure = "set it, and have it kept right: `timedatectl set-ntp true`, then see `timedatectl status`; by a wrong clock \
                    certificates are not valid, and actions and snapshots are older or younger than they are";
        Finding::new(Reason::ClockWrong, &Subject::Node, message, cure.to_owned())
    })
}

/// What is wrong with the proxy, where DigitalOcean's API at `api` cannot be reached. Pure.
#[must_use]
pub fn diagnose_proxy(proxy: &Proxy, api: &str) -> Finding {
    let message = format!("DigitalOcean's API is asked through {proxy}, and that does not work");
    let cure = format!(
        "set that variable right, or unset it, in the plugin's job (`env`) or service; a host that needs no proxy goes into \
         NO_PROXY: the one of {api}"
    );
    Finding::new(Reason::ProxyInTheWay, &Subject::Node, message, cure)
}

/// What is wrong with the account, which has so many volumes. Pure.
#[must_use]
pub fn diagnose_account(account: &Account, volumes: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    if account.status != "active" {
        let message = format!("the account's status is {:?}: {}", account.status, account.status_message);
        let cure = "log in at https://cloud.digitalocean.com and do what it says there".to_owned();
        findings.push(Finding::new(Reason::AccountNotActive, &Subject::Account, message, cure));
    }
    if let Some(limit) = account.volume_limit {
        let cure = "delete volumes that nobody needs (`do-csi-plugin volumes` shows them), or ask DigitalOcean's support for more";
        let message = format!("the account has {volumes} of at most {limit} volumes");
        let find = |reason| Finding::new(reason, &Subject::Account, message, cure.to_owned());
        if volumes >= limit {
            findings.push(find(Reason::QuotaExhausted));
        } else if volumes.saturating_mul(100) >= limit.saturating_mul(NEARLY) {
            findings.push(find(Reason::QuotaNearlyExhausted));
        }
    }
    findings
}

/// The snapshots that clones were made through and that nobody has removed. Pure.
#[must_use]
pub fn diagnose_snapshots(snapshots: &[Snapshot], now: SystemTime) -> Vec<Finding> {
    let is_left = |snapshot: &&Snapshot| {
        let age = snapshot.taken_at().and_then(|taken| now.duration_since(taken).ok());
        snapshot.tags.iter().any(|tag| tag == TEMPORARY) && age.is_some_and(|age| age >= TEMPORARY_FOR)
    };
    let find = |snapshot: &Snapshot| {
        let message = format!("the temporary snapshot {} ({}) of a clone was left behind", snapshot.name, snapshot.id);
        let cure = format!(
            "a plugin with a controller removes it within a quarter of an hour of its start; if none does, run \
             `doctl compute snapshot delete {}`",
            snapshot.id
        );
        Finding::new(Reason::TemporarySnapshotLeft, &Subject::Account, message, cure)
    };
    snapshots.iter().filter(is_left).map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_when_it_is_off_by_more_than_an_answer_takes() {
        let theirs = SystemTime::UNIX_EPOCH + Duration::from_secs(1_785_578_400);
        for (off, is_ahead, words) in [
            (0, true, None),
            (30, true, None),
            (30, false, None),
            (31, true, Some("31 s ahead of")),
            (3600, false, Some("3600 s behind")),
        ] {
            let off = Duration::from_secs(off);
            let ours = if is_ahead { theirs + off } else { theirs - off };
            let found = diagnose_clock(&ClockReading { theirs, ours }).map(|finding| finding.message);
            assert_eq!(found.is_some(), words.is_some(), "{found:?}");
            assert!(words.is_none_or(|words| found.is_some_and(|message| message.contains(words))), "{words:?}");
        }
    }

    #[test]
    fn the_state_of_the_account_has_its_findings_or_none() {
        let account = |status: &str, volume_limit| Account {
            status: status.to_owned(),
            status_message: "look here".to_owned(),
            volume_limit,
        };
        let table = [
            (account("active", None), 1000, vec![]),
            (account("active", Some(10)), 8, vec![]),
            (account("active", Some(10)), 9, vec![Reason::QuotaNearlyExhausted]),
            (account("active", Some(10)), 10, vec![Reason::QuotaExhausted]),
            (account("active", Some(10)), 11, vec![Reason::QuotaExhausted]),
            (account("locked", Some(10)), 10, vec![Reason::AccountNotActive, Reason::QuotaExhausted]),
            (account("warning", None), 0, vec![Reason::AccountNotActive]),
        ];
        for (account, volumes, want) in table {
            let found = diagnose_account(&account, volumes);
            assert_eq!(found.iter().map(|finding| finding.reason).collect::<Vec<_>>(), want, "{account:?} {volumes}");
        }
    }
}
