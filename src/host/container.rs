//! What is on the disk of a volume that is to be encrypted, and making it an encrypted one.
//!
//! Owns the rule that a disk becomes an encrypted volume only when it is blank, by the same look as before a file system is
//! made, or when it certainly holds nothing but the beginning of one. Three marks prove that, wherever it was cut off:
//!
//! 1. A note where the data will begin, which is written to a disk that was just seen to be blank, before all else. Making
//!    the encrypted volume writes up to that place and not beyond.
//! 2. `do-csi-plugin:new` in the head of the encrypted volume, from its first moment until there is a file system in it
//!    that can be mounted. As long as it is there, nobody was ever given the volume.
//! 3. Inside, the places that are looked at before a file system is made are filled with zeros, the first of them, where
//!    the note lies, last: the inside of a new encrypted volume reads as noise, which nothing tells from data. When the
//!    note is gone the inside is zero, and the rule for any other disk holds for it. If the volume grows before there is a
//!    file system in it, other places are looked at: then they are filled once more.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::CLAIM_BUDGET;
use super::busy::or_in_use;
use super::content::{Content, Luks, confirm_content, observe_content};
use super::device::Device;
use super::key::Key;
use super::luks;
use super::probe::{Disk, EDGE, first_non_zero, is_noise};
use super::run::Runner;
use crate::error::{Error, Result};
use crate::lock::VolumeGuard;

/// Where the data of an encrypted volume begins on its disk; before it are the two copies of its head and its key slots.
pub(super) const DATA_AT: u64 = 16 * 1024 * 1024;
/// How much of a disk the two copies of the head take. Source: LUKS2 On-Disk Format Specification, 2.
const HEADS: u64 = 32 * 1024;
/// What the head begins with. Source: as above.
const MAGIC: &[u8] = b"LUKS\xba\xbe";
/// What an encrypted volume's head says of who made it: before, and after there is a file system in it.
pub(super) const SUBSYSTEM_NEW: &str = "do-csi-plugin:new";
pub(super) const SUBSYSTEM: &str = "do-csi-plugin";

const NOTE: &str =
    "do-csi-plugin: this disk was blank when making it an encrypted volume began, which has not finished\n";
/// How much of the disk the note takes: a block that is written as a whole, and that no file system inside leaves as it is.
const NOTE_LENGTH: u64 = 4096;
/// Zeros are written in pieces of this size.
const PIECE: u64 = 1024 * 1024;

/// What is on the disk of a volume that is to be encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Container {
    /// Nothing.
    Blank,
    /// The beginning of an encrypted volume, in which nothing was ever stored.
    Begun,
    /// An encrypted volume that nobody was ever given; inside may be nothing, or a file system or its beginning.
    New,
    /// An encrypted volume.
    Whole,
    /// An encrypted volume whose head is damaged.
    Damaged,
    /// An encrypted volume of the first format, which this plugin does not use.
    Old,
    /// Something else.
    Other(Content),
}

/// Looks at what is on the disk of a volume that is to be encrypted. Writes nothing, but cryptsetup may restore one copy of
/// a head from the other.
///
/// # Errors
/// As [`observe_content`], and [`Error::Command`] when cryptsetup does not answer or is missing.
pub fn observe_container(runner: &dyn Runner, disk: &Device) -> Result<Container> {
    let content = observe_content(runner, disk)?;
    let head = match &content {
        Content::Encrypted(luks) if luks.version == Some(1) => return Ok(Container::Old),
        // Its first copy may just have been restored from the second one, so what it says is read after that.
        Content::Encrypted(_) if luks::observe_is_whole(runner, disk)? => {
            observe_content(runner, disk)?.luks().map_or(Head::Broken, |luks| Head::Whole { is_new: is_new(luks) })
        }
        Content::Encrypted(_) => Head::Broken,
        Content::Unrecognised { .. } if first_non_zero(&Disk::open(disk)?.read_head(HEADS)?).is_none() => Head::Missing,
        Content::AllZero => return Ok(Container::Blank),
        Content::Unrecognised { .. }
        | Content::Filesystem(_)
        | Content::Unfinished(_)
        | Content::OtherSignature { .. }
        | Content::Ambivalent { .. } => return Ok(Container::Other(content)),
    };
    let is_there = has_note(disk)?;
    let beyond = if is_there { observe_beyond(disk)? } else { Beyond::Data };
    Ok(plan_content(head, is_there.then_some(beyond), content))
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
    if disk.size().0 < HEADS || Disk::open(disk)?.read(0, magic)? != MAGIC {
        return Ok(false);
    }
    Ok(observe_content(runner, disk)?.luks().is_some_and(is_new))
}

/// The head of an encrypted volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// It is whole.
    Whole { is_new: bool },
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
fn plan_content(head: Head, note: Option<Beyond>, content: Content) -> Container {
    match (head, note) {
        (Head::Whole { is_new: false }, _) => Container::Whole,
        // Zeros may be inside already, and read as noise from outside.
        (Head::Whole { is_new: true }, Some(Beyond::Zero | Beyond::Noise))
        | (Head::Broken | Head::Missing, Some(Beyond::Zero)) => Container::Begun,
        (Head::Whole { is_new: true }, None) => Container::New,
        // Behind the note is what no encrypted volume of ours has there: the disk's beginning is not its own.
        (Head::Whole { is_new: true }, Some(Beyond::Data))
        | (Head::Broken, Some(Beyond::Noise | Beyond::Data) | None) => Container::Damaged,
        (Head::Missing, Some(Beyond::Noise | Beyond::Data) | None) => Container::Other(content),
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
/// [`Error::WillNotFormat`] when the disk holds anything else, [`Error::Precondition`] when it is in use or not as expected
/// afterwards, [`Error::Command`] when cryptsetup fails.
pub fn apply_container(guard: &VolumeGuard, runner: &dyn Runner, disk: &Device, key: &Key) -> Result<()> {
    let _pin = disk.open()?;
    let claim = disk.open_exclusively(runner.cap(CLAIM_BUDGET)).map_err(or_in_use(disk, "the encryption"))?;
    match observe_container(runner, disk)? {
        Container::Begun => {}
        Container::Blank => {
            let content = confirm_content(runner, disk)?;
            if content != Content::AllZero {
                return Err(will_not(disk, &Container::Other(content)));
            }
        }
        other @ (Container::New | Container::Whole | Container::Damaged | Container::Old | Container::Other(_)) => {
            return Err(will_not(disk, &other));
        }
    }
    leave_note(&claim).map_err(Error::io("preparing", disk.path()))?;
    // cryptsetup claims the disk as this does.
    drop(claim);
    luks::apply_format(guard, runner, disk, key)?;
    match observe_container(runner, disk)? {
        Container::Begun => {
            log::info!("made an encrypted volume device={} volume={}", disk.path().display(), disk.volume());
            Ok(())
        }
        other @ (Container::Blank
        | Container::New
        | Container::Whole
        | Container::Damaged
        | Container::Old
        | Container::Other(_)) => Err(Error::Precondition(format!(
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
/// [`Error::Io`], [`Error::Precondition`] when it is in use.
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

/// Whether a new encrypted volume, which is open, was made blank inside and has grown since: then its head is zero, and what
/// is looked at elsewhere lies at other places, which still read as noise. No file system leaves the head as zeros, and none
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
pub fn described(container: &Container) -> String {
    match container {
        Container::Blank => "nothing".to_owned(),
        Container::Begun => "the beginning of an encrypted volume".to_owned(),
        Container::New | Container::Whole => "an encrypted volume".to_owned(),
        Container::Damaged => "an encrypted volume (LUKS) whose head is damaged".to_owned(),
        Container::Old => "an encrypted volume of the first format (LUKS1)".to_owned(),
        Container::Other(content) => format!("{content}, which is not encrypted"),
    }
}

/// The refusal to make an encrypted volume, or to use what is there as one.
#[must_use]
pub fn will_not(disk: &Device, container: &Container) -> Error {
    let path = disk.path().display();
    let cure = match container {
        Container::Damaged => format!(
            "nothing was changed; if there is a copy of its head, `cryptsetup luksHeaderRestore {path}` puts it back, and \
             `cryptsetup repair {path}` may help; without its head nobody can ever read the volume"
        ),
        Container::Old => {
            format!("nothing was changed; `cryptsetup convert {path} --type luks2` makes one that can be used of it")
        }
        Container::Other(_) => format!(
            "nothing was changed; if it is not to be encrypted, take `encrypted` away from its parameters or context; to \
             encrypt what is on it, copy it to a new volume, or see `blkid -p {path}` for what that is"
        ),
        Container::Blank | Container::Begun | Container::New | Container::Whole => "nothing was changed".to_owned(),
    };
    Error::WillNotFormat {
        volume: disk.volume().clone(),
        device: disk.path().to_owned(),
        found: format!("it is to be an encrypted volume and holds {}", described(container)),
        cure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_certainly_holds_nothing_is_begun_anew() {
        use Container::{Begun, Damaged, New, Whole};
        let content = || Content::Unrecognised { at: 7, what: None };
        let other = || Container::Other(content());
        let notes = [Some(Beyond::Zero), Some(Beyond::Noise), Some(Beyond::Data), None];
        let table = [
            (Head::Whole { is_new: false }, [Whole, Whole, Whole, Whole]),
            (Head::Whole { is_new: true }, [Begun, Begun, Damaged, New]),
            (Head::Broken, [Begun, Damaged, Damaged, Damaged]),
            (Head::Missing, [Begun, other(), other(), other()]),
        ];
        for (head, wanted) in table {
            for (note, want) in notes.into_iter().zip(wanted) {
                assert_eq!(plan_content(head, note, content()), want, "{head:?} {note:?}");
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
        let device = Device::fake("/dev/sda", super::super::mountinfo::DeviceNumber { major: 8, minor: 0 }, 1 << 30);
        for (container, words) in [
            (Container::Damaged, "luksHeaderRestore /dev/sda"),
            (Container::Old, "convert /dev/sda --type luks2"),
            (Container::Other(Content::Unrecognised { at: 7, what: None }), "take `encrypted` away"),
        ] {
            let text = will_not(&device, &container).to_string();
            assert!(text.contains(words) && text.contains("nothing was changed"), "{text}");
        }
    }
}
