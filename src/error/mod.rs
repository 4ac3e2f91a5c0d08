//! What can go wrong, one variant for each decision that a caller or an operator has to make.
//!
//! Owns the error type of the whole program and the printing of its chain of causes. It names no gRPC code:
//! `rpc/status.rs` maps variants to codes. `Display` says what was being done and to what, without the cause;
//! [`Chain`] prints the rest, once, at the edge.

pub mod api;
pub mod command;
mod thing;

use std::fmt::{self, Write};
use std::path::PathBuf;

use crate::error::api::ApiError;
use crate::error::command::CommandError;
use crate::id::{DropletId, VolumeId, VolumeName};
use crate::region::Region;
use crate::sync::semaphore::NoPermit;
use crate::sync::volume_lock::VolumeBusy;

pub use crate::error::thing::Thing;

/// The result of everything that can fail in this program.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what somebody has to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is missing or malformed.
    #[error("{field}: {why}")]
    Invalid {
        /// The field as CSI names it.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The request is well formed, but asks for something that DigitalOcean volumes cannot do.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// Something that the request names does not exist.
    #[error("{thing} does not exist{hint}", thing = .0, hint = .0.hint())]
    NotFound(Thing),
    /// A thing of that name exists, but not as asked.
    #[error("{thing} exists already, but with {have}; {want} was asked for")]
    Mismatch {
        /// What is there, with its name or path.
        thing: String,
        /// The property it has.
        have: String,
        /// The property asked for.
        want: String,
    },
    /// A thing of that name exists, and nothing shows that an earlier call made it.
    #[error("{thing} exists already and is not adopted: {why}; {cure}")]
    NotAdopted {
        /// What is there, with its name and id.
        thing: String,
        /// What speaks against it, as a sentence.
        why: String,
        /// What the operator can do.
        cure: String,
    },
    /// The thing is another owner's, or was not made by a CSI driver at all.
    #[error("{thing} is not {done}: {why}; {cure}")]
    NotOurs {
        /// The thing, with its name and id.
        thing: String,
        /// What was asked for, as a participle: "deleted".
        done: String,
        /// Whose it is, as a sentence.
        why: String,
        /// What the operator can do.
        cure: String,
    },
    /// Nothing is found of what is asked for, and the token is of another account.
    #[error(
        "{what} is not found, and the access token does not see droplet {own} either, on which this plugin runs: it is of \
         another account or team; give the plugin a token of this droplet's account"
    )]
    OtherAccount {
        /// What was looked for.
        what: String,
        /// The droplet that the plugin runs on.
        own: DropletId,
    },
    /// No size fits the asked range and the limits.
    #[error("size: {0}")]
    SizeOutOfRange(String),
    /// None of the asked regions is the one in which this plugin makes volumes.
    #[error("volumes are made in region {ours}, but {asked} was asked for")]
    RegionUnavailable {
        /// The regions of which one is required.
        asked: String,
        /// The plugin's region.
        ours: String,
    },
    /// The droplet holds as many volumes as it may.
    #[error("droplet {droplet} cannot take volume {volume}: it holds as many volumes as DigitalOcean allows")]
    AttachLimit {
        /// The full droplet.
        droplet: DropletId,
        /// The volume that found no room.
        volume: VolumeId,
    },
    /// The account may not have more of something, or not now.
    #[error("DigitalOcean account limit while {doing}")]
    AccountLimit {
        /// What was being done, as a present participle with its object.
        doing: String,
        /// DigitalOcean's answer.
        source: ApiError,
    },
    /// DigitalOcean takes one snapshot of a volume in a while, and the last one was a moment ago.
    #[error(
        "volume {volume} can have its next snapshot in {wait_s} s{bound}; DigitalOcean takes one in {interval_s} s"
    )]
    SnapshotTooSoon {
        /// The volume.
        volume: VolumeId,
        /// How long to wait, in seconds.
        wait_s: u64,
        /// How sure that is: empty, or " at the latest" when the last snapshot is gone already.
        bound: &'static str,
        /// The least time between two snapshots, in seconds.
        interval_s: u64,
        /// DigitalOcean's answer.
        source: ApiError,
    },
    /// The volume is attached to another droplet, which may be using it.
    #[error(
        "volume {name} ({volume}) is attached to droplet {holder}, not to droplet {wanted}; stop what uses it there, \
         or, when nothing does, run `doctl compute volume-action detach {volume} {droplet}`",
        droplet = .holder.id
    )]
    AttachedElsewhere {
        /// The volume's id.
        volume: VolumeId,
        /// The volume's name.
        name: VolumeName,
        /// The droplet that has it.
        holder: Holder,
        /// The droplet that asked for it.
        wanted: DropletId,
    },
    /// The volume and the droplet are in different regions, which neither of them can leave.
    #[error(
        "volume {name} ({volume}) is in region {region} and droplet {droplet} is in {droplet_region}; DigitalOcean \
         attaches a volume only to droplets of its region, and copies of it stay there too: run the task in {region}, \
         by a constraint of the job or by the volume's topology"
    )]
    OtherRegion {
        /// The volume's id.
        volume: VolumeId,
        /// The volume's name.
        name: VolumeName,
        /// The volume's region.
        region: Region,
        /// The droplet that asked for it.
        droplet: DropletId,
        /// The droplet's region.
        droplet_region: Region,
    },
    /// The volume cannot be deleted while a droplet has it.
    #[error("volume {volume} is attached to droplet {droplet} and is not deleted; unpublish it first")]
    StillAttached {
        /// The volume's id.
        volume: VolumeId,
        /// The droplet that has it.
        droplet: DropletId,
    },
    /// The disk is not certainly blank, so it is not formatted.
    #[error("volume {volume} on {device} is not formatted, because {found}; {cure}")]
    WillNotFormat {
        /// The volume's name.
        volume: VolumeName,
        /// The device node.
        device: PathBuf,
        /// What was seen on the disk.
        found: String,
        /// What the operator can do.
        cure: String,
    },
    /// The disk holds another file system than asked.
    #[error("volume {volume} on {device} holds {have}, but {want} was asked for; nothing was changed")]
    WrongFilesystem {
        /// The volume's name.
        volume: VolumeName,
        /// The device node.
        device: PathBuf,
        /// The file system on the disk.
        have: String,
        /// The file system asked for.
        want: String,
    },
    /// The file system is damaged in a way that needs a person.
    #[error("the file system of volume {volume} on {device} needs repair by hand ({found}); {cure}")]
    DamagedFilesystem {
        /// The volume's name.
        volume: VolumeName,
        /// The device node.
        device: PathBuf,
        /// What the check or the kernel said.
        found: String,
        /// The command to run.
        cure: String,
    },
    /// The device under the volume's name is certainly, or possibly, not this volume.
    #[error("the disk of volume {volume} cannot be used: {found}")]
    WrongDevice {
        /// The volume's name.
        volume: VolumeName,
        /// What does not fit.
        found: String,
    },
    /// The device did not appear, or did not become ready, in time.
    #[error("volume {volume} has no usable disk on this droplet after {waited_s} s: {found}")]
    DeviceMissing {
        /// The volume's name.
        volume: VolumeName,
        /// How long was waited, in seconds.
        waited_s: u64,
        /// What was looked for and what was seen.
        found: String,
    },
    /// Something else is at the path where the volume should go.
    #[error("{} is taken: {by}", path.display())]
    TargetTaken {
        /// The staging or target path.
        path: PathBuf,
        /// What is there.
        by: String,
    },
    /// The volume is mounted at the path, but not as asked.
    #[error("the volume at {} {how}; unpublish or unstage it there first", path.display())]
    MountedOtherwise {
        /// The staging or target path.
        path: PathBuf,
        /// What differs, as a phrase with a verb.
        how: String,
    },
    /// Something on this droplet uses a volume's disk, or a mount of it, that has to be free for what was asked.
    #[error("{doing} {found}; {cure}")]
    InUse {
        /// What cannot be done, and why it matters who uses it, as the beginning of a sentence that ends with a colon.
        doing: String,
        /// Who uses it, or where to look.
        found: String,
        /// What to do then.
        cure: &'static str,
    },
    /// A call came before the one that has to come first: the volume is not staged, or its key is missing.
    #[error("{0}")]
    NotStaged(String),
    /// The volume, or a snapshot, is used in a way that excludes what was asked: end that use, or ask for the same.
    #[error("{0}")]
    UsedOtherwise(String),
    /// A mount of the volume does not work, or it cannot be told whether it does: what uses it has to be ended.
    #[error("{0}")]
    MountBroken(String),
    /// Something on the volume's disk was begun and has to be completed first, or is set there and has to be taken away, in the
    /// way that the text names.
    #[error("{0}")]
    Unfinished(String),
    /// The volume's file system, or the encrypted volume that it is in, cannot grow as it is now.
    #[error("{0}")]
    CannotGrow(String),
    /// This droplet, or the way in which the plugin is run on it, lacks what the call needs; no volume is at fault.
    #[error("{0}")]
    HostUnfit(String),
    /// A program or the kernel reported success, and what it should have done is not there, or its output is not understood.
    #[error("{0}")]
    NotAsReported(String),
    /// Another call for the same volume is running.
    #[error(transparent)]
    VolumeBusy(#[from] VolumeBusy),
    /// A call that waited, while a later one was told that the volume is where this one would take it from.
    #[error("volume {0} is not detached: a call that came later has it there; ask again if it is to go all the same")]
    Overtaken(VolumeId),
    /// DigitalOcean went on with something else until the call's time was used up; asking again is right.
    #[error("gave up waiting after {waited_s} s while {doing}: {waited_for}")]
    TimedOut {
        /// What was being done, as a present participle with its object.
        doing: String,
        /// How long was waited, in seconds.
        waited_s: u64,
        /// What did not happen in that time.
        waited_for: String,
    },
    /// An attach did not get done in the call's time; Nomad repeats it after this and after no other failure to wait.
    #[error("{0}; nothing is lost, ask again")]
    NotYet(Box<Error>),
    /// The program does not yet know something it needs, and is finding it out.
    #[error("not ready: {0}")]
    NotReady(String),
    /// More calls came than can be queued.
    #[error("{0} calls are waiting already; try again later")]
    Overloaded(usize),
    /// The system gives no thread to work on a call, and none is there to wait for.
    #[error("cannot start a thread for the call; try again later")]
    NoThread(#[source] std::io::Error),
    /// Nobody waits any more for what the call would do next.
    #[error(
        "the caller has gone, or his time is over, so nothing new is begun; the same call again goes on from there"
    )]
    CallerGone,
    /// A page token that this program never gave out, or that is too old.
    #[error("starting_token {0:?} is not valid; list again from the start")]
    BadPageToken(String),
    /// DigitalOcean's API did not do what was asked.
    #[error("{doing}")]
    Api {
        /// What was being done, as a present participle with its object.
        doing: String,
        /// The API's answer, or why there was none.
        source: ApiError,
    },
    /// A command did not do what was asked.
    #[error("{doing}")]
    Command {
        /// What was being done, as a present participle with its object.
        doing: String,
        /// How the command ended.
        source: CommandError,
    },
    /// The operating system refused something.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done, as a present participle: "opening".
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// This program contradicts itself.
    #[error("bug in do-csi-plugin, please report: {0}")]
    Bug(String),
}

/// A droplet that has a volume, as far as it could be found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The droplet's id.
    pub id: DropletId,
    /// The droplet's name, when the API told it.
    pub name: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} ({name})", self.id),
            None => self.id.fmt(f),
        }
    }
}

impl From<NoPermit> for Error {
    fn from(none: NoPermit) -> Error {
        let NoPermit { doing, waited_s, held_by } = none;
        Error::TimedOut { doing, waited_s, waited_for: held_by.to_owned() }
    }
}

impl Error {
    /// A missing or malformed field.
    pub fn invalid(field: impl Into<String>, why: impl fmt::Display) -> Error {
        Error::Invalid { field: field.into(), why: why.to_string() }
    }

    /// The id that DigitalOcean gave the request that failed, when it answered one.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(err) = cause {
            if let Some(api) = err.downcast_ref::<ApiError>() {
                return api.request_id();
            }
            cause = err.source();
        }
        None
    }

    /// Turns what a repeated attach may not meet again into [`Error::NotYet`], and leaves everything else as it is.
    #[must_use]
    pub fn or_not_yet(self) -> Error {
        if matches!(self, Error::TimedOut { .. } | Error::VolumeBusy(_) | Error::Overloaded(_) | Error::NoThread(_)) {
            Error::NotYet(Box::new(self))
        } else {
            self
        }
    }

    /// Gives an [`std::io::Error`] its context; meant for `map_err`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { doing, path, source }
    }

    /// Gives an [`nix::errno::Errno`] its context; meant for `map_err`.
    pub fn errno(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(nix::errno::Errno) -> Error {
        let path = path.into();
        move |errno| Error::Io { doing, path, source: errno.into() }
    }

    /// Gives an [`ApiError`] its context; meant for `map_err`.
    pub fn api(doing: impl Into<String>) -> impl FnOnce(ApiError) -> Error {
        move |source| Error::Api { doing: doing.into(), source }
    }
}

/// Most bytes of a chain: gRPC sends it in a header, and a header longer than 8 KiB, escaped, fails the whole answer.
const MAX_CHAIN: usize = 2048;

/// Prints an error with all its causes, in one line: `opening /dev/sda: No such device`.
///
/// What a request or a tool said may be part of it, so it is kept to one line of at most 2 KiB, whatever that was.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = OneLine::new(f, MAX_CHAIN);
        write!(line, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(line, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Passes text on without its control characters, which could forge lines of a log, and only up to a number of bytes.
#[derive(Debug)]
pub struct OneLine<'a, W> {
    out: &'a mut W,
    room: usize,
}

impl<'a, W: Write> OneLine<'a, W> {
    /// Room for this many bytes.
    pub fn new(out: &'a mut W, room: usize) -> Self {
        OneLine { out, room }
    }
}

impl<W: Write> Write for OneLine<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| self.write_char(c))
    }

    fn write_char(&mut self, c: char) -> fmt::Result {
        match self.room.checked_sub(c.len_utf8()) {
            Some(room) => {
                self.room = room;
                self.out.write_char(if c.is_control() { ' ' } else { c })
            }
            // The first character without room is the end, even if a shorter one would still fit.
            None => {
                self.room = 0;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_every_cause_once() {
        let err = Error::io("opening", "/dev/sda")(std::io::Error::other("gone"));
        assert_eq!(Chain(&err).to_string(), "opening /dev/sda: gone");
    }

    #[test]
    fn a_chain_is_one_line_of_bounded_length_whatever_a_request_said() {
        let err = Error::invalid("field\n2026-01-01T00:00:00Z INFO", format!("\u{1b}[31m{}", "\u{fc}".repeat(5000)));
        let shown = Chain(&err).to_string();
        assert!(shown.starts_with("field 2026-01-01T00:00:00Z INFO:  [31m\u{fc}"), "{shown}");
        assert!(shown.len() <= MAX_CHAIN && shown.len() > MAX_CHAIN - 4 && !shown.chars().any(char::is_control));
    }

    #[test]
    fn a_foreign_attachment_names_both_droplets_and_the_cure() {
        let err = Error::AttachedElsewhere {
            volume: VolumeId::parse("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2").unwrap(),
            name: VolumeName::parse("blog").unwrap(),
            holder: Holder { id: DropletId::parse("7").unwrap(), name: Some("node-a".into()) },
            wanted: DropletId::parse("8").unwrap(),
        };
        let text = err.to_string();
        for part in ["blog", "1b2c3d4e", "droplet 7 (node-a)", "droplet 8", "volume-action detach 1b2c3d4e"] {
            assert!(text.contains(part), "{part} missing in {text}");
        }
    }
}
