//! A volume's description, in which is kept what DigitalOcean keeps nowhere else: the full CSI name, and the source.
//!
//! Owns the text, which is written once, when the volume is created, and read by every repetition of that call:
//!
//! ```text
//! Created by DigitalOcean CSI driver for "redis[0]" from snapshot 8eb4d51a-8f02-11f0-bdcd-0a58ac14d1e2: what the user says
//! ```
//!
//! The name is there when the volume's own is another, the source when the volume was not created empty.

use crate::id::{SnapshotId, VolumeId, VolumeName};
use crate::request::controller::Source;

/// What every description begins with; the official driver's whole text.
const BEGINNING: &str = "Created by DigitalOcean CSI driver";

/// Writes the description of a new volume.
#[must_use]
pub fn plan_description(csi: &str, name: &VolumeName, source: Option<&Source>, text: Option<&str>) -> String {
    let source = match source {
        None => String::new(),
        Some(Source::Snapshot(id)) => format!(" from snapshot {id}"),
        Some(Source::Volume(id)) => format!(" from volume {id}"),
    };
    let text = text.map(|text| format!(": {text}")).unwrap_or_default();
    format!("{BEGINNING}{}{source}{text}", for_name(csi, name))
}

/// Whether a volume of the right DigitalOcean name was made for this CSI name.
///
/// A volume whose name needed no mapping may have any description: people edit them, and Terraform writes others.
#[must_use]
pub fn is_made_for(csi: &str, name: &VolumeName, description: &str) -> bool {
    let rest = || description.strip_prefix(BEGINNING)?.strip_prefix(&for_name(csi, name));
    csi == name.as_str() || rest().is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', ':']))
}

/// What a volume was filled with when it was created, as far as its description tells.
#[must_use]
pub fn source_of(description: &str) -> Option<Source> {
    let rest = description.strip_prefix(BEGINNING)?;
    let rest = match rest.strip_prefix(" for \"") {
        Some(quoted) => after_quote(quoted)?,
        None => rest,
    };
    let (kind, rest) = rest.strip_prefix(" from ")?.split_once(' ')?;
    let id = rest.split(':').next()?;
    match kind {
        "snapshot" => SnapshotId::parse(id).ok().map(Source::Snapshot),
        "volume" => VolumeId::parse(id).ok().map(Source::Volume),
        _ => None,
    }
}

/// Empty when the name needed no mapping.
fn for_name(csi: &str, name: &VolumeName) -> String {
    if csi == name.as_str() { String::new() } else { format!(" for {csi:?}") }
}

/// What follows the end of a text that `{:?}` wrote, of which the opening quote is taken off.
fn after_quote(text: &str) -> Option<&str> {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' if !is_escaped => return text.get(at + 1..),
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::name::plan_name;
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
        assert_eq!(plan_description("blog", &name("blog"), None, None), "Created by DigitalOcean CSI driver");
        assert_eq!(source_of("Created by DigitalOcean CSI driver"), None);
        assert_eq!(source_of("made by hand from snapshot 1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2"), None);
    }

    #[test]
    fn a_mapped_volume_is_known_by_its_description() {
        let redis = name("redis[0]");
        for source in sources() {
            let described = plan_description("redis[0]", &redis, source.as_ref(), Some("a cache"));
            assert!(is_made_for("redis[0]", &redis, &described), "{described}");
            assert!(!is_made_for("redis[1]", &redis, &described), "{described}");
        }
        for foreign in ["Created by hand", "", "Created by DigitalOcean CSI driver"] {
            assert!(!is_made_for("redis[0]", &redis, foreign), "{foreign}");
        }
        assert!(is_made_for("blog", &name("blog"), "anything"));
    }

    proptest! {
        #[test]
        fn whatever_the_name_the_source_is_read_back(csi in r#"[ -~\u{a0}-\u{ffff}"\\]{1,40}"#, text in ".{0,40}") {
            for source in sources() {
                let described = plan_description(&csi, &name(&csi), source.as_ref(), Some(&text));
                prop_assert!(is_made_for(&csi, &name(&csi), &described), "{}", described);
                // A user's text follows a colon, so it cannot be taken for a source.
                prop_assert_eq!(source_of(&described), source, "{}", described);
            }
        }
    }

    #[test]
    fn the_longest_description_fits() {
        // 128 bytes of characters that `{:?}` writes at their longest.
        let csi = "\u{301}".repeat(64);
        let described = plan_description(&csi, &name(&csi), sources()[1].as_ref(), Some(&"x".repeat(400)));
        assert!(described.len() <= 1024, "{}", described.len());
    }
}
