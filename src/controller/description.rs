//! A volume's description, in which is kept what DigitalOcean keeps nowhere else: that a CSI driver made the volume, the
//! full CSI name, the source, and the owner.
//!
//! Owns the text, which is written once, when the volume is created, and read by every repetition of that call. DigitalOcean
//! has no call that changes it. On one line:
//!
//! ```text
//! Created by DigitalOcean CSI driver for "redis[0]" from snapshot 8eb4d51a-8f02-11f0-bdcd-0a58ac14d1e2 owned by "prod":
//! what the user says
//! ```
//!
//! The name is there when the volume's own is another, the source when the volume was not created empty, the owner when the
//! plugin has one.
//!
//! How the name is quoted is fixed here. It was once left to `{:?}`, whose escapes change with the compiler's tables of
//! Unicode, so what is compared is never the quoted text but the name that is read back from it.

use std::str::Chars;

use crate::id::{SnapshotId, VolumeId, VolumeName};
use crate::request::volume::Source;

/// What every description begins with; the official driver's whole text.
const BEGINNING: &str = "Created by DigitalOcean CSI driver";
/// What stands between it and the full name.
const FOR: &str = " for ";
/// What stands before the owner.
const OWNED_BY: &str = " owned by ";

/// By whom a volume was made, or a snapshot taken, that a CSI driver has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    /// For which owner, where that is said.
    pub(super) owner: Option<String>,
}

/// Writes the description of a new volume.
#[must_use]
pub fn plan_description(
    csi: &str,
    name: &VolumeName,
    source: Option<&Source>,
    owner: Option<&str>,
    text: Option<&str>,
) -> String {
    let source = match source {
        None => String::new(),
        Some(Source::Snapshot(id)) => format!(" from snapshot {id}"),
        Some(Source::Volume(id)) => format!(" from volume {id}"),
    };
    let text = text.map(|text| format!(": {text}")).unwrap_or_default();
    let owner = owner.map(|owner| format!("{OWNED_BY}{}", quote(owner))).unwrap_or_default();
    format!("{BEGINNING}{}{source}{owner}{text}", for_name(csi, name))
}

/// By whom a volume was made; none: by no CSI driver.
#[must_use]
pub(super) fn made_by(description: &str) -> Option<Made> {
    let rest = description.strip_prefix(BEGINNING)?;
    if !(rest.is_empty() || rest.starts_with([' ', ':'])) {
        return None;
    }
    // Between the name and the owner there is nothing, or a source, which is a word and an id.
    let rest = after_name(rest).unwrap_or_default();
    let rest = rest.strip_prefix(" from ").map_or(rest, |source| after_words(source, 2));
    let owner = rest.strip_prefix(OWNED_BY).and_then(unquote).map(|(owner, _)| owner);
    Some(Made { owner })
}

/// What follows the full name, whether there is one or not.
fn after_name(rest: &str) -> Option<&str> {
    match rest.strip_prefix(FOR) {
        Some(quoted) => unquote(quoted).map(|(_, rest)| rest),
        None => Some(rest),
    }
}

/// What follows so many words, from the blank or the colon on that ends the last.
fn after_words(text: &str, words: usize) -> &str {
    let ends = text.match_indices([' ', ':']).map(|(at, _)| at);
    ends.take(words).nth(words.saturating_sub(1)).and_then(|at| text.get(at..)).unwrap_or_default()
}

/// Whether a volume of the right DigitalOcean name was made for this CSI name.
///
/// That a CSI driver made it at all is another question: `made_by`.
#[must_use]
pub fn is_made_for(csi: &str, name: &VolumeName, description: &str) -> bool {
    let is_named = || {
        let (named, rest) = unquote(description.strip_prefix(BEGINNING)?.strip_prefix(FOR)?)?;
        Some(named == csi && (rest.is_empty() || rest.starts_with([' ', ':'])))
    };
    csi == name.as_str() || is_named().unwrap_or(false)
}

/// What a volume was filled with when it was created, as far as its description tells.
#[must_use]
pub fn source_of(description: &str) -> Option<Source> {
    let rest = after_name(description.strip_prefix(BEGINNING)?)?;
    let (kind, rest) = rest.strip_prefix(" from ")?.split_once(' ')?;
    let id = rest.split([':', ' ']).next()?;
    match kind {
        "snapshot" => SnapshotId::parse(id).ok().map(Source::Snapshot),
        "volume" => VolumeId::parse(id).ok().map(Source::Volume),
        _ => None,
    }
}

/// Empty when the name needed no mapping.
fn for_name(csi: &str, name: &VolumeName) -> String {
    if csi == name.as_str() { String::new() } else { format!("{FOR}{}", quote(csi)) }
}

/// Puts a name in quotes. Quotes, backslashes and control characters are escaped; which ones are control characters,
/// Unicode has fixed for ever.
fn quote(name: &str) -> String {
    let escaped = name.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        '\t' => "\\t".to_owned(),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        c if c.is_control() => format!("\\u{{{:x}}}", u32::from(c)),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// Reads a quoted name at the beginning of a text, and gives what follows it too.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?.chars();
    let mut name = String::new();
    loop {
        match rest.next()? {
            '"' => return Some((name, rest.as_str())),
            '\\' => name.push(unescape(&mut rest)?),
            c => name.push(c),
        }
    }
}

/// Reads what follows a backslash: [`quote`]'s escapes, and all others that `{:?}` has or had.
fn unescape(rest: &mut Chars<'_>) -> Option<char> {
    match rest.next()? {
        't' => Some('\t'),
        'n' => Some('\n'),
        'r' => Some('\r'),
        '0' => Some('\0'),
        'u' => {
            let (digits, after) = rest.as_str().strip_prefix('{')?.split_once('}')?;
            *rest = after.chars();
            char::from_u32(u32::from_str_radix(digits, 16).ok()?)
        }
        same => Some(same),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::naming::plan_name;
    use proptest::prelude::*;

    const ID: &str = "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";

    fn name(csi: &str) -> VolumeName {
        VolumeName::parse(&plan_name(csi)).unwrap()
    }

    fn sources() -> [Option<Source>; 3] {
        let (snapshot, volume) = (SnapshotId::parse(ID).unwrap(), VolumeId::parse(ID).unwrap());
        [None, Some(Source::Snapshot(snapshot)), Some(Source::Volume(volume))]
    }

    #[test]
    fn a_plain_volume_is_described_as_the_official_driver_does() {
        assert_eq!(plan_description("blog", &name("blog"), None, None, None), "Created by DigitalOcean CSI driver");
        assert_eq!(source_of("Created by DigitalOcean CSI driver"), None);
        assert_eq!(source_of("made by hand from snapshot 1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2"), None);
    }

    #[test]
    fn a_mapped_volume_is_known_by_its_description() {
        let redis = name("redis[0]");
        for source in sources() {
            let described = plan_description("redis[0]", &redis, source.as_ref(), None, Some("a cache"));
            assert!(is_made_for("redis[0]", &redis, &described), "{described}");
            assert!(!is_made_for("redis[1]", &redis, &described), "{described}");
        }
        for foreign in ["Created by hand", "", "Created by DigitalOcean CSI driver"] {
            assert!(!is_made_for("redis[0]", &redis, foreign), "{foreign}");
        }
        assert!(is_made_for("blog", &name("blog"), "anything"));
    }

    #[test]
    fn what_a_csi_driver_made_is_told_from_all_else_and_its_owner_is_read() {
        let by = |owner: Option<&str>| Some(Made { owner: owner.map(str::to_owned) });
        let table = [
            ("", None),
            ("made by hand", None),
            ("Created by DigitalOcean CSI drivers of another kind", None),
            ("managed by Created by DigitalOcean CSI driver", None),
            ("Created by DigitalOcean CSI driver", by(None)),
            (r#"Created by DigitalOcean CSI driver owned by "k8s:a""#, by(Some("k8s:a"))),
            (r#"Created by DigitalOcean CSI driver owned by "a": owned by "b""#, by(Some("a"))),
            // What the user says comes behind a colon, and is no mark.
            (r#"Created by DigitalOcean CSI driver: owned by "b""#, by(None)),
            (r#"Created by DigitalOcean CSI driver for " owned by "b"" from volume x owned by "a""#, by(None)),
            (r#"Created by DigitalOcean CSI driver for "x\" owned by \"b" owned by "a""#, by(Some("a"))),
        ];
        for (description, want) in table {
            assert_eq!(made_by(description), want, "{description}");
        }
        let from = format!(r#"Created by DigitalOcean CSI driver from snapshot {ID} owned by "a": text"#);
        assert_eq!((made_by(&from), source_of(&from)), (by(Some("a")), sources()[1].clone()));
        let from = format!(r#"Created by DigitalOcean CSI driver from snapshot {ID}: owned by "a""#);
        assert_eq!((made_by(&from), source_of(&from)), (by(None), sources()[1].clone()));
    }

    #[test]
    fn the_text_never_changes() {
        let table = [
            ("redis[0]", r#" for "redis[0]""#),
            (r#"a"b\c"#, r#" for "a\"b\\c""#),
            ("a\tb\r\n\u{85}", r#" for "a\tb\r\n\u{85}""#),
            ("\u{dc}ber\u{301}\u{200d}\u{1f600}\u{e000}", " for \"\u{dc}ber\u{301}\u{200d}\u{1f600}\u{e000}\""),
        ];
        for (csi, quoted) in table {
            let described = plan_description(csi, &name(csi), None, None, None);
            assert_eq!(described, format!("Created by DigitalOcean CSI driver{quoted}"));
        }
    }

    #[test]
    fn a_name_is_known_in_every_way_of_writing_it() {
        let csi = "\u{dc}ber\u{301}'\"\\\n\t";
        for quoted in [
            r#""\u{dc}ber\u{301}'\"\\\n\t""#,
            r#""Über\u{301}\'\"\\\n\t""#,
            "\"Über\u{301}'\\\"\\\\\\u{a}\\u{9}\"",
            &format!("{csi:?}"),
            &quote(csi),
        ] {
            let described = format!("Created by DigitalOcean CSI driver for {quoted} from volume {ID}: text");
            assert!(is_made_for(csi, &name(csi), &described), "{described}");
            assert_eq!(source_of(&described), sources()[2], "{described}");
        }
        for broken in [r#""a"#, r#""a\"#, r#""\u{110000}""#, r#""\u{x}""#, r#""\u9""#, "a", r#""a"b"#] {
            let described = format!("Created by DigitalOcean CSI driver for {broken}");
            assert!(!is_made_for("A", &name("A"), &described), "{described}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_name_the_source_is_read_back(csi in r#"[\t\n\r -~\u{a0}-\u{10ffff}"\\]{1,40}"#, text in ".{0,40}") {
            for (source, owner) in sources().into_iter().flat_map(|one| [(one.clone(), None), (one, Some("k8s:a_b-1"))]) {
                let described = plan_description(&csi, &name(&csi), source.as_ref(), owner, Some(&text));
                prop_assert!(is_made_for(&csi, &name(&csi), &described), "{}", described);
                let of_old = described.replacen(&quote(&csi), &format!("{csi:?}"), 1);
                prop_assert!(is_made_for(&csi, &name(&csi), &of_old), "{}", of_old);
                // A user's text follows a colon, so it cannot be taken for a source.
                prop_assert_eq!(source_of(&described), source, "{}", described);
                let owner = owner.map(str::to_owned);
                prop_assert_eq!(made_by(&described), Some(Made { owner: owner.clone() }), "{}", described);
                prop_assert_eq!(made_by(&of_old), Some(Made { owner }), "{}", of_old);
            }
        }
    }

    #[test]
    fn the_longest_description_fits() {
        // 128 bytes of characters that are written at their longest.
        let csi = "\n".repeat(128);
        let owner = "x".repeat(255);
        let described =
            plan_description(&csi, &name(&csi), sources()[1].as_ref(), Some(&owner), Some(&"x".repeat(400)));
        assert!(described.len() <= 1024, "{}", described.len());
    }

    #[test]
    fn fuzz_a_description_names_an_owner_only_in_the_place_for_it() {
        let seeds: Vec<String> = sources()
            .into_iter()
            .map(|source| plan_description("redis[0]", &name("redis[0]"), source.as_ref(), Some("k8s:a"), Some("text")))
            .collect();
        let seeds: Vec<&[u8]> = seeds.iter().map(String::as_bytes).collect();
        crate::fuzz::fuzz(
            "descriptions",
            &seeds,
            &[b"\"", b"\\u{110000}", b" for ", b" from volume ", b": ", b"\\"],
            |bytes| {
                let text = String::from_utf8_lossy(bytes);
                let (made, source) = (made_by(&text), source_of(&text));
                assert!(text.starts_with(BEGINNING) || (made.is_none() && source.is_none()), "{text}");
                let _same = is_made_for("redis[0]", &name("redis[0]"), &text);
            },
        );
    }
}
