//! What is on the disk of a volume that is to be encrypted, and making it an encrypted one.
//!
//! Owns the rule that a disk becomes an encrypted volume only when it is blank, by the same look as before a file system is
//! made, or when it certainly holds nothing but the beginning of one. Three marks prove that, wherever it was cut off:
//!
//! 1. A note where the data will begin, which is written to a disk that was just seen to be blank, before all else. Making
//!    the encrypted volume writes up to that place and not beyond.
//! 2. `do-csi-plugin:new` in the header of the encrypted volume, from its first moment until there is a file system in it
//!    that can be mounted. As long as it is there, nobody was ever given the volume.
//! 3. Inside, the places that are looked at before a file system is made are filled with zeros, the first of them, where
//!    the note lies, last: the inside of a new encrypted volume reads as noise, which nothing tells from data. When the
//!    note is gone the inside is zero, and the rule for any other disk holds for it. If the volume grows before there is a
//!    file system in it, other places are looked at: then they are filled once more.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::activity::{About, Change};
use crate::error::{Error, Result};
use crate::host::CLAIM_BUDGET;
use crate::host::command::Runner;
use crate::host::device::{Device, or_in_use};
use crate::host::luks::cryptsetup;
use crate::host::luks::layout::{DATA_AT, SUBSYSTEM_NEW};
use crate::host::luks::passphrase::Key;
use crate::host::probe::blkid::Luks;
use crate::host::probe::content::{Content, confirm_content, observe_content};
use crate::host::probe::{Disk, EDGE, first_non_zero, is_noise};
use crate::metrics::events::{EventKind, record_change};
use crate::sync::semaphore::Permit;
use crate::sync::volume_lock::VolumeGuard;

/// How much of a disk the two copies of the header take. Source: LUKS2 On-Disk Format Specification, 2.
const HEADERS: u64 = 32 * 1024;
/// What the header begins with. Source: as above.
const MAGIC: &[u8] = b"LUKS\xba\xbe";

const NOTE: &str =
    "do-csi-plugin: this disk was blank when making it an encrypted volume began, which has not finished\n";
/// How much of the disk the note takes: a block that is written as a whole, and that no file system inside leaves as it is.
const NOTE_LENGTH: u64 = 4096;
/// Zeros are written in pieces of this size.
const PIECE: u64 = 1024 * 1024;

/// What is on the disk of a volume that is to be encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LuksState {
    /// Nothing.
    Blank,
    /// The beginning of an encrypted volume, in which nothing was ever stored.
    Interrupted,
    /// An encrypted volume that nobody was ever given; inside may be nothing, or a file system or its beginning.
    Unused,
    /// An encrypted volume.
    Ready,
    /// An encrypted volume whose header is damaged.
    Damaged,
    /// An encrypted volume of the first format, which this plugin does not use.
    Luks1,
    /// An encrypted volume whose header asks for something that this plugin does not take, as a phrase.
    Refused(String),
    /// Something else.
    Other(Content),
}

/// Looks at what is on the disk of a volume that is to be encrypted. Writes nothing, but cryptsetup may restore one copy of
/// a header from the other.
///
/// # Errors
/// As [`observe_content`], and [`Error::Command`] when cryptsetup does not answer or is missing.
pub fn observe_luks_state(runner: &dyn Runner, disk: &Device) -> Result<LuksState> {
    let content = observe_content(runner, disk)?;
    let header = match &content {
        Content::Encrypted(luks) if luks.version == Some(1) => return Ok(LuksState::Luks1),
        // Its first copy may just have been restored from the second one, so what it says is read after that.
        Content::Encrypted(_) if cryptsetup::observe_is_whole(runner, disk)? => {
            let refused = cryptsetup::observe_why_not_header(runner, disk)?;
            observe_content(runner, disk)?
                .luks()
                .map_or(HeaderState::Broken, |luks| HeaderState::Whole { is_new: is_new(luks), refused })
        }
        Content::Encrypted(_) => HeaderState::Broken,
        Content::Unrecognised { .. } if first_non_zero(&Disk::open(disk)?.read_head(HEADERS)?).is_none() => {
            HeaderState::Missing
        }
        Content::AllZero => return Ok(LuksState::Blank),
        Content::Unrecognised { .. }
        | Content::Filesystem(_)
        | Content::Unfinished(_)
        | Content::OtherSignature { .. }
        | Content::Ambivalent { .. } => return Ok(LuksState::Other(content)),
    };
    let is_there = has_note(disk)?;
    let beyond = if is_there { observe_beyond(disk)? } else { Beyond::Data };
    Ok(plan_content(header, is_there.then_some(beyond), content))
}

/// Whether an encrypted volume was begun on a disk that nobody was given yet. Nothing is written, and a disk that holds
/// anything else is only looked at in two places.
///
/// # Errors
/// As [`observe_content`].
pub fn observe_is_begun(runner: &dyn Runner, disk: &Device) -> Result<bool> {
    if has_note(disk)? {
        return Ok(true);
    }
    let magic = u64::try_from(MAGIC.len()).unwrap_or_default();
    if disk.size().0 < HEADERS || Disk::open(disk)?.read(0, magic)? != MAGIC {
        return Ok(false);
    }
    Ok(observe_content(runner, disk)?.luks().is_some_and(is_new))
}

/// The header of an encrypted volume.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HeaderState {
    /// It is whole, and either all that it asks for is taken, or `refused` says what is not.
    Whole { is_new: bool, refused: Option<String> },
    /// Something of it is there.
    Broken,
    /// Nothing is where it should be.
    Missing,
}

/// What was seen of a disk beyond the note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beyond {
    /// Nothing.
    Zero,
    /// What zeros inside an encrypted volume read as from outside.
    Noise,
    /// Something else.
    Data,
}

fn is_new(luks: &Luks) -> bool {
    luks.subsystem.as_deref() == Some(SUBSYSTEM_NEW)
}

/// What a disk holds that is neither blank nor something else entirely. `note` is what was seen beyond the note, if that is
/// there. Pure.
fn plan_content(header: HeaderState, note: Option<Beyond>, content: Content) -> LuksState {
    match (header, note) {
        // Zeros may be inside already, and read as noise from outside. It is made anew, header and all.
        (HeaderState::Whole { is_new: true, .. }, Some(Beyond::Zero | Beyond::Noise))
        | (HeaderState::Broken | HeaderState::Missing, Some(Beyond::Zero)) => LuksState::Interrupted,
        (HeaderState::Whole { is_new: true, refused: None }, None) => LuksState::Unused,
        (HeaderState::Whole { is_new: false, refused: None }, _) => LuksState::Ready,
        (HeaderState::Whole { is_new: true, refused: Some(why) }, None)
        | (HeaderState::Whole { is_new: false, refused: Some(why) }, _) => LuksState::Refused(why),
        // Behind the note is what no encrypted volume of ours has there: the disk's beginning is not its own.
        (HeaderState::Whole { is_new: true, .. }, Some(Beyond::Data))
        | (HeaderState::Broken, Some(Beyond::Noise | Beyond::Data) | None) => LuksState::Damaged,
        (HeaderState::Missing, Some(Beyond::Noise | Beyond::Data) | None) => LuksState::Other(content),
    }
}

fn note() -> Vec<u8> {
    let length = usize::try_from(NOTE_LENGTH).unwrap_or(NOTE.len());
    NOTE.bytes().cycle().take(length).collect()
}

fn has_note(disk: &Device) -> Result<bool> {
    if disk.size().0 < DATA_AT + NOTE_LENGTH {
        return Ok(false);
    }
    Ok(Disk::open(disk)?.read(DATA_AT, NOTE_LENGTH)? == note())
}

/// Looks at a disk beyond the note that it holds, wherever it is looked at.
fn observe_beyond(disk: &Device) -> Result<Beyond> {
    let (mut is_zero, mut is_noise_or_zero) = (true, true);
    Disk::open(disk)?.is_explained(|at, block| {
        if at >= DATA_AT + NOTE_LENGTH {
            is_zero = false;
            is_noise_or_zero = is_noise_or_zero && is_noise(block);
        }
        Ok(true)
    })?;
    Ok(match (is_zero, is_noise_or_zero) {
        (true, _) => Beyond::Zero,
        (false, true) => Beyond::Noise,
        (false, false) => Beyond::Data,
    })
}

/// Makes a disk an encrypted volume, after one more look that it is blank, or holds only the beginning of one, and in
/// nobody's use, and sees that it has become one. Inside it is not blank yet: see [`apply_blank`].
///
/// # Errors
/// [`Error::WillNotFormat`] when the disk holds anything else, [`Error::InUse`] when it is in use, [`Error::NotAsReported`]
/// when it is not as expected afterwards, [`Error::Command`] when cryptsetup fails.
pub fn apply_luks_format(
    guard: &VolumeGuard,
    runner: &dyn Runner,
    turn: &Permit,
    disk: &Device,
    key: &Key,
) -> Result<()> {
    let _pin = disk.open()?;
    let claim = disk.open_exclusively(runner.cap(CLAIM_BUDGET)).map_err(or_in_use(disk, "the encryption"))?;
    match observe_luks_state(runner, disk)? {
        LuksState::Interrupted => {}
        LuksState::Blank => {
            let content = confirm_content(runner, disk)?;
            if content != Content::AllZero {
                return Err(will_not(disk, &LuksState::Other(content)));
            }
        }
        other @ (LuksState::Unused
        | LuksState::Ready
        | LuksState::Damaged
        | LuksState::Luks1
        | LuksState::Refused(_)
        | LuksState::Other(_)) => return Err(will_not(disk, &other)),
    }
    leave_note(&claim).map_err(Error::io("preparing", disk.path()))?;
    // cryptsetup claims the disk as this does.
    drop(claim);
    cryptsetup::apply_format(guard, runner, turn, disk, key)?;
    match observe_luks_state(runner, disk)? {
        LuksState::Interrupted => {
            record_change(
                EventKind::Formatted,
                format_args!("volume {} for encryption", disk.volume()),
                Change::Encrypted,
                "made an encrypted volume",
                About::default().with("name", disk.volume()).with("device", disk.path().display()),
            );
            Ok(())
        }
        other @ (LuksState::Blank
        | LuksState::Unused
        | LuksState::Ready
        | LuksState::Damaged
        | LuksState::Luks1
        | LuksState::Refused(_)
        | LuksState::Other(_)) => Err(Error::NotAsReported(format!(
            "cryptsetup reported success in making volume {} an encrypted one, but {} now holds {}",
            disk.volume(),
            disk.path().display(),
            described(&other)
        ))),
    }
}

fn leave_note(claim: &File) -> std::io::Result<()> {
    claim.write_all_at(&note(), DATA_AT)?;
    claim.sync_data()
}

/// Makes a new encrypted volume, which is open, blank inside: fills with zeros what is looked at before a file system is
/// made. Its first bytes come last, once all others are on the disk: they lie over the note.
///
/// # Errors
/// [`Error::Io`], [`Error::InUse`] when it is in use.
pub fn apply_blank(_guard: &VolumeGuard, runner: &dyn Runner, open: &Device) -> Result<()> {
    let claim = open.open_exclusively(runner.cap(CLAIM_BUDGET)).map_err(or_in_use(open, "the encryption"))?;
    let places: Vec<_> = Disk::open(open)?.places().collect();
    let zero = || {
        for place in places.iter().rev() {
            write_zeros(&claim, place.at.max(NOTE_LENGTH), place.end())?;
        }
        claim.sync_data()?;
        write_zeros(&claim, 0, NOTE_LENGTH)?;
        claim.sync_data()
    };
    zero().map_err(Error::io("clearing", open.path()))
}

/// Whether a new encrypted volume, which is open, was made blank inside and has grown since: then its beginning is zero, and what
/// is looked at elsewhere lies at other places, which still read as noise. No file system leaves its beginning as zeros, and none
/// is noise wherever it is looked at.
///
/// # Errors
/// As [`observe_content`].
pub fn observe_has_grown_blank(runner: &dyn Runner, open: &Device) -> Result<bool> {
    match observe_content(runner, open)? {
        Content::Unrecognised { what: None, .. } => {
            Disk::open(open)?.is_explained(|at, block| Ok(at >= EDGE && is_noise(block)))
        }
        Content::Unrecognised { what: Some(_), .. }
        | Content::AllZero
        | Content::Encrypted(_)
        | Content::Filesystem(_)
        | Content::Unfinished(_)
        | Content::OtherSignature { .. }
        | Content::Ambivalent { .. } => Ok(false),
    }
}

fn write_zeros(file: &File, from: u64, to: u64) -> std::io::Result<()> {
    let mut at = from;
    while at < to {
        let length = PIECE.min(to - at);
        file.write_all_at(&vec![0; usize::try_from(length).map_err(std::io::Error::other)?], at)?;
        at += length;
    }
    Ok(())
}

/// What a disk holds, as a phrase.
#[must_use]
pub fn described(state: &LuksState) -> String {
    match state {
        LuksState::Blank => "nothing".to_owned(),
        LuksState::Interrupted => "the beginning of an encrypted volume".to_owned(),
        LuksState::Unused | LuksState::Ready => "an encrypted volume".to_owned(),
        LuksState::Damaged => "an encrypted volume (LUKS) whose header is damaged".to_owned(),
        LuksState::Luks1 => "an encrypted volume of the first format (LUKS1)".to_owned(),
        LuksState::Refused(why) => {
            format!("an encrypted volume (LUKS) whose header asks for what this plugin does not take: {why}")
        }
        LuksState::Other(content) => format!("{content}, which is not encrypted"),
    }
}

/// The refusal to make an encrypted volume, or to use what is there as one.
#[must_use]
pub fn will_not(disk: &Device, state: &LuksState) -> Error {
    let path = disk.path().display();
    let cure = match state {
        LuksState::Damaged => format!(
            "nothing was changed; if there is a copy of its header, `cryptsetup luksHeaderRestore {path}` puts it back, and \
             `cryptsetup repair {path}` may help; without its header nobody can ever read the volume"
        ),
        LuksState::Luks1 => {
            format!("nothing was changed; `cryptsetup convert {path} --type luks2` makes one that can be used of it")
        }
        LuksState::Refused(_) => format!(
            "it was not opened and nothing was changed; a header is not authenticated, so whoever could write to the disk while it was \
             detached can have made it, with a stolen token or by a snapshot: find out who, and see `cryptsetup luksDump {path}`; if \
             there is a copy of the right header, `cryptsetup luksHeaderRestore {path}` puts it back"
        ),
        LuksState::Other(_) => format!(
            "nothing was changed; if it is not to be encrypted, take `encrypted` away from its parameters or context; to \
             encrypt what is on it, copy it to a new volume, or see `blkid -p {path}` for what that is"
        ),
        LuksState::Blank | LuksState::Interrupted | LuksState::Unused | LuksState::Ready => {
            "nothing was changed".to_owned()
        }
    };
    Error::WillNotFormat {
        volume: disk.volume().clone(),
        device: disk.path().to_owned(),
        found: format!("it is to be an encrypted volume and holds {}", described(state)),
        cure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::luks::layout::SUBSYSTEM;

    #[test]
    fn only_what_certainly_holds_nothing_is_begun_anew() {
        use LuksState::{Damaged, Interrupted, Ready, Unused};
        let content = || Content::Unrecognised { at: 7, what: None };
        let other = || LuksState::Other(content());
        let (why, refused) = (|| Some("a cipher".to_owned()), || LuksState::Refused("a cipher".to_owned()));
        let whole = |is_new, refused| HeaderState::Whole { is_new, refused };
        let notes = [Some(Beyond::Zero), Some(Beyond::Noise), Some(Beyond::Data), None];
        let table = [
            (whole(false, None), [Ready, Ready, Ready, Ready]),
            (whole(true, None), [Interrupted, Interrupted, Damaged, Unused]),
            (whole(false, why()), [refused(), refused(), refused(), refused()]),
            (whole(true, why()), [Interrupted, Interrupted, Damaged, refused()]),
            (HeaderState::Broken, [Interrupted, Damaged, Damaged, Damaged]),
            (HeaderState::Missing, [Interrupted, other(), other(), other()]),
        ];
        for (header, wanted) in table {
            for (note, want) in notes.into_iter().zip(wanted) {
                assert_eq!(plan_content(header.clone(), note, content()), want, "{header:?} {note:?}");
            }
        }
    }

    #[test]
    fn the_mark_in_the_head_is_the_one_word_and_no_other() {
        for (text, want) in [(Some(SUBSYSTEM_NEW), true), (Some(SUBSYSTEM), false), (Some("new"), false), (None, false)]
        {
            assert_eq!(is_new(&Luks { version: Some(2), subsystem: text.map(str::to_owned) }), want, "{text:?}");
        }
        // LUKS2 has room for 48 bytes with the final zero.
        assert!(SUBSYSTEM_NEW.len() < 48);
    }

    #[test]
    fn every_refusal_says_what_is_there_and_what_to_do() {
        let device =
            Device::fake("/dev/sda", crate::host::device::number::DeviceNumber { major: 8, minor: 0 }, 1 << 30);
        for (state, words) in [
            (LuksState::Damaged, "luksHeaderRestore /dev/sda"),
            (LuksState::Luks1, "convert /dev/sda --type luks2"),
            (LuksState::Refused("by cipher_null".to_owned()), "luksDump /dev/sda"),
            (LuksState::Other(Content::Unrecognised { at: 7, what: None }), "take `encrypted` away"),
        ] {
            let text = will_not(&device, &state).to_string();
            assert!(text.contains(words) && text.contains("nothing was changed"), "{text}");
        }
    }
}
