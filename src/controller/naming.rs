//! CSI names into DigitalOcean names.
//!
//! Owns the mapping, of volumes' names and of snapshots'. A CSI name is any text of up to 128 bytes; DigitalOcean takes at
//! most 64 lower case letters, digits and dashes that begin with a letter. The mapping is the same on every plugin and for
//! ever, because it is how a repeated call finds what an earlier one made.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Most characters of a name. Source: API reference, "Create a New Block Storage Volume", `name`.
const MAX_NAME: usize = 64;
/// How many hexadecimal digits of the hash end a mapped name: 80 bits, so that two names meet never.
const HASH_DIGITS: usize = 20;

/// What the names of snapshots begin with that are taken only to make a clone.
const CLONE_PREFIX: &str = "do-csi-clone-";

/// The DigitalOcean name of a CSI name: the same where it is legal, otherwise a readable part of it and a hash of all.
#[must_use]
pub(super) fn plan_name(csi: &str) -> String {
    if is_legal(csi) && !looks_mapped(csi) {
        return csi.to_owned();
    }
    let mut readable = String::new();
    for c in csi.chars().flat_map(char::to_lowercase) {
        match c {
            'a'..='z' | '0'..='9' => readable.push(c),
            _ if readable.ends_with('-') => {}
            _ => readable.push('-'),
        }
    }
    let readable = readable.trim_matches('-');
    let prefix = if readable.starts_with(|c: char| c.is_ascii_lowercase()) { "" } else { "v-" };
    let room = MAX_NAME - HASH_DIGITS - 1 - prefix.len();
    let kept: String = readable.chars().take(room).collect();
    let kept = kept.trim_end_matches('-');
    let dash = if kept.is_empty() { "" } else { "-" };
    format!("{prefix}{kept}{dash}{}", hash(csi))
}

/// Whether DigitalOcean takes the name as it is. Source: `^[a-z][a-z0-9-]{0,63}$`.
fn is_legal(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether a legal name ends as a mapped one does. It is mapped too, so that nobody can ask for another name's result.
fn looks_mapped(name: &str) -> bool {
    let tail = name.rsplit('-').next().unwrap_or(name);
    tail.len() == HASH_DIGITS && tail.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn hash(text: &str) -> String {
    let mut digits = String::new();
    for byte in Sha256::digest(text.as_bytes()) {
        // Writing to a String cannot fail.
        let _written = write!(digits, "{byte:02x}");
    }
    digits.truncate(HASH_DIGITS);
    digits
}

/// The name of the snapshot through which a volume of this CSI name is cloned: always the same for one owner, so that it is
/// found again after a crash, and by nobody else's clone of that name.
#[must_use]
pub(super) fn plan_clone_name(csi: &str, owner: Option<&str>) -> String {
    // No CSI name has that character.
    let named = owner.map_or_else(|| csi.to_owned(), |owner| format!("{csi}\u{0}{owner}"));
    format!("{CLONE_PREFIX}{}", hash(&named))
}

/// Whether a snapshot's name is one of [`plan_clone_name`]. No CSI name leads to such a one: it is legal and looks mapped,
/// so it would be mapped itself.
#[must_use]
pub(super) fn is_clone_name(name: &str) -> bool {
    name.strip_prefix(CLONE_PREFIX).is_some_and(|tail| !tail.contains('-')) && looks_mapped(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_names_stay_and_others_become_legal() {
        let long = "x".repeat(128);
        let table = [
            ("pvc-6c7d1b0e-3c4e-4d5b-9a52-6d5f0a2b7c11", true),
            ("nomad-volume", true),
            ("a", true),
            ("redis[0]", false),
            ("Postgres", false),
            ("a.b/c", false),
            ("übergröße", false),
            ("日本", false),
            ("1st", false),
            ("-", false),
            ("snake_case", false),
            (long.as_str(), false),
        ];
        for (csi, is_kept) in table {
            let name = plan_name(csi);
            assert!(is_legal(&name), "{csi} became {name}");
            assert_eq!(name == csi, is_kept, "{csi} became {name}");
            assert_eq!(name, plan_name(csi));
        }
    }

    #[test]
    fn the_mapping_never_changes() {
        assert_eq!(plan_name("redis[0]"), "redis-0-ccf640c9d73b584b58b5");
    }

    #[test]
    fn names_that_read_alike_do_not_meet() {
        let names = ["a.b/c", "a-b-c", "a_b_c", "A.B/C", "a.b.c", "redis[0]", "redis(0)", "redis-0"];
        let mapped: std::collections::HashSet<String> = names.iter().map(|name| plan_name(name)).collect();
        assert_eq!(mapped.len(), names.len());
    }

    #[test]
    fn the_result_of_one_name_cannot_be_asked_for_by_another() {
        let taken = plan_name("redis[0]");
        assert_ne!(plan_name(&taken), taken);
    }

    #[test]
    fn no_snapshot_that_somebody_asked_for_has_a_clones_name() {
        let clone = plan_clone_name("redis[0]", None);
        assert_ne!(clone, plan_clone_name("redis[0]", Some("a")));
        assert_ne!(plan_clone_name("redis[0]", Some("b")), plan_clone_name("redis[0]", Some("a")));
        assert!(is_clone_name(&clone) && is_legal(&clone), "{clone}");
        for csi in ["redis[0]", &clone, "do-csi-clone-1", "do-csi-clone-", "do-csi-clone", "DO-CSI-CLONE-1"] {
            assert!(!is_clone_name(&plan_name(csi)), "{csi}");
        }
    }
}
