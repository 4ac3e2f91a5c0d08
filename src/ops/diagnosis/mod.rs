//! What is wrong with a volume, a droplet, this node, the account or the cluster, and what ends it.
//!
//! Owns the findings: one type, one list of reasons, and the functions that make them of facts which somebody else
//! has read. Everything in it is pure. Whatever shows the state of something to a person or to a program shows these
//! findings: the health calls of CSI, metrics, the page, `volumes` and `doctor`. So there is one answer to one
//! question.
//!
//! | module | the facts are about |
//! |---|---|
//! | [`attachment`] | a volume and the droplets that have it, as DigitalOcean tells |
//! | [`account`] | the token, its scopes, the account and its limits |
//! | [`cluster`] | Nomad's registrations and claims, beside DigitalOcean's volumes |
//! | [`machine`] | the node that this runs on |
//! | [`here`] | a volume on the droplet that this runs on: its disk, its file system, its mounts |

pub mod account;
pub mod attachment;
pub mod cluster;
pub mod here;
pub mod machine;

use std::fmt;

use serde_json::{Value, json};

use crate::id::{DropletId, VolumeId};

/// How soon somebody has to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It is worth knowing, and nothing suffers from it.
    Notice,
    /// It will hurt if nobody does anything.
    Warning,
    /// A task suffers from it now, or none can start.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Notice => "notice",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        })
    }
}

/// What a finding does to the volume it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// None: the volume is well.
    None,
    /// It works, but not as it should.
    Degraded,
    /// It cannot be used where it is.
    Inaccessible,
}

/// Declares the reasons: each with what it means, how severe it is, and what it does to a volume.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident: $severity:ident, $effect:ident;)+) => {
        /// Why something is not well: a word that programs compare and people search for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),+];

            /// The word, in CamelCase as CSI has it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)+ }
            }

            /// How soon somebody has to look.
            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Reason::$name => Severity::$severity,)+ }
            }

            /// What it does to the volume it is about.
            #[must_use]
            pub fn effect(self) -> Effect {
                match self { $(Reason::$name => Effect::$effect,)+ }
            }
        }
    };
}

reasons! {
    /// A droplet that is gone, off or archived has the volume.
    AttachedToDeadDroplet: Warning, Inaccessible;
    /// DigitalOcean lists the volume on several droplets.
    ListedTwice: Critical, Degraded;
    /// The latest detaches of the volume have failed.
    DetachKeepsFailing: Critical, Degraded;
    /// The latest attaches of the volume have failed.
    AttachKeepsFailing: Critical, Degraded;
    /// An attach, detach or resize is said to be running for much longer than one takes.
    ActionDoesNotEnd: Warning, Degraded;
    /// The volume lists a droplet that does not list the volume.
    RecordsDisagree: Notice, None;
    /// The kernel has made the file system read-only after an error.
    FileSystemReadOnlyByErrors: Critical, Degraded;
    /// The kernel has recorded errors in the file system, which can still be written.
    FileSystemErrorsRecorded: Warning, Degraded;
    /// The file system is nearly full.
    FileSystemNearlyFull: Warning, Degraded;
    /// Nothing can be written any more for want of space.
    FileSystemFull: Critical, Degraded;
    /// The file system can hardly take another file.
    InodesNearlyUsedUp: Warning, Degraded;
    /// The file system is much smaller than its disk.
    FileSystemNotGrown: Notice, None;
    /// The file system was shut down after errors.
    FileSystemShutDown: Critical, Inaccessible;
    /// It is mounted, and its disk is gone.
    MountedButDetached: Critical, Inaccessible;
    /// Its mount does not answer.
    MountDoesNotAnswer: Critical, Inaccessible;
    /// The kernel does not let the disk be used.
    DiskNotRunning: Critical, Inaccessible;
    /// Its disk is on the droplet, and nothing uses it.
    AttachedButUnused: Notice, None;
    /// What the plugin mounts is not seen by the droplet, nor by any task.
    MountsDoNotReachTheDroplet: Critical, Inaccessible;
    /// Two namespaces of Nomad have registered the volume.
    HeldByOtherNamespace: Warning, None;
    /// The volume is registered in Nomad twice.
    RegisteredTwice: Warning, None;
    /// It is registered in Nomad with another driver's plugin.
    WrongPluginId: Critical, None;
    /// An allocation runs and claims the volume, and no droplet has it.
    ClaimedWithoutAttachment: Critical, None;
    /// A node has the volume, and no allocation claims it.
    AttachedWithoutClaim: Warning, None;
    /// The node of a claim is down, or not known any more.
    ClaimOnLostNode: Warning, None;
    /// A registration in Nomad has a volume's name where its id belongs.
    ExternalIdIsAName: Critical, None;
    /// A registration in Nomad is of a volume that DigitalOcean does not show.
    ExternalIdUnknown: Warning, None;
    /// Nomad has no healthy controller, or nodes whose plugin is not healthy.
    PluginUnhealthy: Critical, None;
    /// DigitalOcean does not take the token.
    TokenRejected: Critical, None;
    /// The token lacks a scope.
    ScopeMissing: Warning, None;
    /// The token has no more requests for now.
    RequestsUsedUp: Warning, None;
    /// DigitalOcean's API cannot be reached, or does not answer as it should.
    ApiUnreachable: Critical, None;
    /// The way to DigitalOcean leads through a proxy, and it cannot be reached.
    ProxyInTheWay: Warning, None;
    /// This machine's clock is not DigitalOcean's.
    ClockWrong: Warning, None;
    /// The account is locked, or about to be.
    AccountNotActive: Warning, None;
    /// The account may have no more volumes.
    QuotaExhausted: Warning, None;
    /// The account may have hardly more volumes.
    QuotaNearlyExhausted: Notice, None;
    /// A snapshot through which a clone was made was left behind.
    TemporarySnapshotLeft: Notice, None;
    /// The process may not mount.
    NotPrivileged: Critical, None;
    /// The host's sysfs is not there.
    SysfsMissing: Critical, None;
    /// The host's devices are not there.
    DevicesMissing: Critical, None;
    /// A program that the plugin runs is missing.
    ToolMissing: Critical, None;
    /// The kernel cannot mount a file system.
    FileSystemNotInKernel: Notice, None;
    /// SELinux is enforced, and volumes get no label.
    SelinuxWithoutLabel: Warning, None;
    /// A rule mounts volumes when they are attached.
    AutomountRule: Notice, None;
    /// Encrypted volumes cannot be opened.
    DeviceMapperMissing: Notice, None;
    /// A mount that serves nobody could not be taken away.
    MountLeftBehind: Warning, None;
    /// A directory for a mount has none.
    DirectoryLeftBehind: Notice, None;
    /// The droplet takes no more volumes.
    DropletFull: Warning, None;
    /// The plugin that serves the socket does not answer.
    PluginDoesNotAnswer: Critical, None;
    /// The metadata service does not answer.
    MetadataUnreachable: Warning, None;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A volume, by its id and its name; what is not known is empty.
    Volume {
        /// Its id, DigitalOcean's or, where the orchestrator sends another one, that.
        id: String,
        /// Its name at DigitalOcean.
        name: String,
    },
    /// A droplet.
    Droplet(DropletId),
    /// The droplet that this runs on.
    Node,
    /// The account and its token.
    Account,
    /// Nomad, and the plugins as it sees them.
    Nomad,
}

impl Subject {
    /// A volume of which both are known.
    #[must_use]
    pub fn volume(id: &impl fmt::Display, name: &impl fmt::Display) -> Subject {
        Subject::Volume { id: id.to_string(), name: name.to_string() }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Volume { id, name } if name.is_empty() => write!(f, "volume {id}"),
            Subject::Volume { id, name } if id.is_empty() => write!(f, "volume {name}"),
            Subject::Volume { id, name } => write!(f, "volume {name} ({id})"),
            Subject::Droplet(id) => write!(f, "droplet {id}"),
            Subject::Node => f.write_str("this node"),
            Subject::Account => f.write_str("the account"),
            Subject::Nomad => f.write_str("Nomad"),
        }
    }
}

/// A cure that cannot lose data, so that a program may do it when it is asked to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Repair {
    /// Detach a volume from a droplet that cannot use it, or on which nothing uses it. Whoever does it looks again
    /// first.
    Detach {
        /// The volume.
        volume: VolumeId,
        /// The droplet that has it.
        droplet: DropletId,
    },
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Finding {
    /// How soon somebody has to look. The first field, so that findings sort by it.
    pub severity: Severity,
    /// What it is about.
    pub subject: Subject,
    /// Why.
    pub reason: Reason,
    /// What was found, in a sentence that names the volume, the disk or the droplet.
    pub message: String,
    /// What ends it, with the exact command.
    pub cure: String,
    /// The same as a change that may be made without a person's judgement; `None` where it takes one.
    pub repair: Option<Repair>,
}

impl Finding {
    /// A finding as severe as its reason is in general, that a person has to cure.
    #[must_use]
    pub fn new(reason: Reason, subject: &Subject, message: String, cure: String) -> Finding {
        Finding { severity: reason.severity(), subject: subject.clone(), reason, message, cure, repair: None }
    }

    /// The same, with a cure that a program may do.
    #[must_use]
    pub fn with_repair(self, repair: Repair) -> Finding {
        Finding { repair: Some(repair), ..self }
    }

    /// As an object of JSON. What a program reads of it stays as it is: `severity`, `reason`, `volume`, `name`,
    /// `droplet`, `message`, `cure`, `safe_to_repair`.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut object = json!({
            "severity": self.severity.to_string(),
            "reason": self.reason.as_str(),
            "about": self.subject.to_string(),
            "message": self.message,
            "cure": self.cure,
            "safe_to_repair": self.repair.is_some(),
        });
        let mut add = |key: &str, value: Value| {
            if let Some(fields) = object.as_object_mut() {
                fields.insert(key.to_owned(), value);
            }
        };
        match &self.subject {
            Subject::Volume { id, name } => {
                add("volume", json!(id));
                add("name", json!(name));
            }
            Subject::Droplet(id) => add("droplet", json!(id.get())),
            Subject::Node | Subject::Account | Subject::Nomad => {}
        }
        object
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.cure)
    }
}

/// How a volume is, in the one sentence and the one bit that CSI before 1.13 has for it. `well` is what is said when no
/// finding touches the volume. Pure.
#[must_use]
pub fn plan_condition(findings: &[Finding], well: String) -> Condition {
    let mut messages = affecting(findings).map(ToString::to_string).peekable();
    if messages.peek().is_none() {
        return Condition { is_abnormal: false, message: well };
    }
    Condition { is_abnormal: true, message: messages.collect::<Vec<_>>().join("; ") }
}

/// The findings that touch the volume they are about.
pub fn affecting(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(|finding| finding.reason.effect() != Effect::None)
}

/// A volume's condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Whether somebody has to look at it.
    pub is_abnormal: bool,
    /// What is so, in words.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(reason: Reason) -> Finding {
        let subject = Subject::volume(&"506f78a4", &"blog");
        Finding::new(reason, &subject, format!("{reason} is so"), "do this".to_owned())
    }

    #[test]
    fn every_reason_is_a_word_in_camel_case_and_there_once() {
        let words: std::collections::BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for word in words {
            assert!(word.starts_with(|c: char| c.is_ascii_uppercase()), "{word}");
            assert!(word.chars().all(|c| c.is_ascii_alphanumeric()) && word.len() < 40, "{word}");
        }
    }

    #[test]
    fn what_makes_a_volume_inaccessible_is_never_a_mere_notice() {
        for reason in Reason::ALL {
            let touches_volume = reason.effect() != Effect::None;
            assert!(!touches_volume || reason.severity() > Severity::Notice, "{reason}");
        }
    }

    #[test]
    fn a_condition_is_abnormal_when_a_finding_touches_the_volume() {
        let well = || "the volume works".to_owned();
        for reason in Reason::ALL {
            let condition = plan_condition(&[finding(*reason)], well());
            assert_eq!(condition.is_abnormal, reason.effect() != Effect::None, "{reason}");
            let want = if condition.is_abnormal { format!("{reason} is so; do this") } else { well() };
            assert_eq!(condition.message, want);
        }
        let two = plan_condition(&[finding(Reason::ListedTwice), finding(Reason::MountedButDetached)], well());
        assert!(two.message.contains("ListedTwice") && two.message.contains("MountedButDetached"), "{two:?}");
        assert!(!plan_condition(&[], well()).is_abnormal);
    }

    #[test]
    fn a_finding_as_json_names_what_it_is_about() {
        let droplet = DropletId::new(7).unwrap();
        let volume = VolumeId::parse("506f78a4-8f00-11f0-9a11-0a58ac14d1e2").unwrap();
        let json = finding(Reason::AttachedToDeadDroplet).with_repair(Repair::Detach { volume, droplet }).json();
        for (key, want) in [
            ("severity", "warning"),
            ("reason", "AttachedToDeadDroplet"),
            ("volume", "506f78a4"),
            ("name", "blog"),
            ("about", "volume blog (506f78a4)"),
            ("message", "AttachedToDeadDroplet is so"),
            ("cure", "do this"),
        ] {
            assert_eq!(json[key], want, "{json}");
        }
        assert_eq!(json["safe_to_repair"], true);
        assert_eq!(Finding { subject: Subject::Droplet(droplet), ..finding(Reason::ListedTwice) }.json()["droplet"], 7);
    }
}
