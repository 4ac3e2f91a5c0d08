//! Whether a name in a volume's context or parameters is one of this driver's, nearly one, or somebody else's.
//!
//! Owns the comparison of names. Pure. A misspelt name of ours would have no effect, and a disk with a misspelt
//! `noformat` would be formatted. Such a name is refused, and the error has the name that was probably meant.

use crate::config::DRIVER_NAME;
use crate::spelling::distance;

/// The prefixes that the official driver's documentation and code use for `noformat`.
const OFFICIAL_PREFIXES: [&str; 3] = [DRIVER_NAME, "com.digitalocean.csi", "com.digitalocean.csi.dobs"];

/// A setting's name that counts without a prefix too, as other drivers have it.
const ENCRYPTED: &str = "encrypted";

/// The settings that are read with a prefix.
pub(super) const SETTINGS: [&str; 14] = [
    "noformat",
    "owner",
    "group",
    "mode",
    "owner-policy",
    ENCRYPTED,
    "luks-encrypted",
    "selinux-label",
    "block-size",
    "inode-size",
    "inode-ratio",
    "reserved-percent",
    "reflink",
    "label",
];

/// What other drivers call a setting of ours, as [`plain`] gives it.
const OTHER_NAMES: [(&str, &str); 2] = [("encrypt", ENCRYPTED), ("encryption", ENCRYPTED)];

/// The ends of the prefixes under which Kubernetes and its helpers add entries of their own. Nomad adds none.
///
/// Source: external-provisioner's `pkg/controller/controller.go` (`csi.storage.k8s.io/`, and `storage.kubernetes.io/` of
/// the volume attribute `csiProvisionerIdentity`); Nomad's `client/pluginmanager/csimanager/volume.go`.
const ORCHESTRATORS: [&str; 2] = ["k8s.io", "kubernetes.io"];

/// A parameter of Kubernetes' storage classes that reaches the driver, in any capitals. Source: as above, `prefixedFsTypeKey`.
const FS_TYPE: &str = "fstype";

/// A misspelt name of this length or longer, counted as [`plain`] gives it, can hardly be meant for somebody else.
const DISTINCTIVE: usize = 7;
/// From this length on a name may be wrong in two places.
const LONG: usize = 10;

/// What a key is to this driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// A setting, by its name without the prefix; also one that does not exist, as its prefix says that it is ours.
    Setting(&'a str),
    /// Something that is read elsewhere, or that an orchestrator has added.
    Foreign,
    /// Certainly meant for this driver, but not read under this name.
    Misspelt {
        /// The key that was probably meant.
        meant: String,
    },
    /// Not known.
    Unknown {
        /// The key that was perhaps meant.
        meant: Option<String>,
    },
}

/// Tells what a key is. `beside` are names that are read without a prefix in the same place.
pub(super) fn classify<'a>(key: &'a str, driver_name: &str, beside: &[&str]) -> Name<'a> {
    if key == ENCRYPTED {
        return Name::Setting(key);
    }
    if beside.contains(&key) || key.eq_ignore_ascii_case(FS_TYPE) {
        return Name::Foreign;
    }
    let full = |name: &str| if beside.contains(&name) { name.to_owned() } else { format!("{driver_name}/{name}") };
    let ours = || OFFICIAL_PREFIXES.into_iter().chain([driver_name]);
    if let Some((prefix, name)) = key.split_once('/') {
        if ours().any(|own| own == prefix) {
            return Name::Setting(name);
        }
        if ORCHESTRATORS.iter().any(|end| prefix == *end || prefix.ends_with(&format!(".{end}"))) {
            return Name::Foreign;
        }
        let is_near = |own: &str| plain(own).len() >= DISTINCTIVE && distance(&plain(own), &plain(prefix)) <= 2;
        let is_nearly_ours = ours().any(is_near);
        return match nearest(name, beside) {
            Some((meant, _)) if is_nearly_ours || plain(prefix).contains("digitalocean") => {
                Name::Misspelt { meant: full(meant) }
            }
            Some(_) | None => Name::Unknown { meant: None },
        };
    }
    let whole = plain(key);
    // As with a dot for the slash.
    let rest = ours().filter_map(|own| whole.strip_prefix(&plain(own))).find_map(|rest| nearest(rest, beside));
    if let Some((meant, _)) = rest {
        return Name::Misspelt { meant: full(meant) };
    }
    match nearest(key, beside) {
        Some((meant, 0)) => Name::Misspelt { meant: full(meant) },
        Some((meant, _)) if plain(meant).len() >= DISTINCTIVE => Name::Misspelt { meant: full(meant) },
        meant @ (Some(_) | None) => Name::Unknown { meant: meant.map(|(meant, _)| full(meant)) },
    }
}

/// The setting, or the name among `beside`, that is most like a name, and in how many places they differ.
pub(super) fn nearest<'a>(name: &str, beside: &[&'a str]) -> Option<(&'a str, usize)> {
    let name = plain(name);
    let known = SETTINGS.iter().chain(beside).map(|known| (*known, distance(&name, &plain(known))));
    let other = OTHER_NAMES.iter().filter(|(other, _)| *other == name).map(|(_, known)| (*known, 0));
    let fits = |(known, far): &(&str, usize)| *far <= if plain(known).len() >= LONG { 2 } else { 1 };
    known.chain(other).filter(fits).min_by_key(|(_, far)| *far)
}

/// Whether two names are the same, apart from what people write differently.
pub(super) fn same_name(one: &str, other: &str) -> bool {
    plain(one) == plain(other)
}

/// A name without what people write differently: capitals, hyphens, underscores, dots, blanks.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn classified(key: &str) -> Name<'_> {
        classify(key, "our.name", &["tags", "description"])
    }

    #[test]
    fn a_name_of_ours_that_is_not_read_is_told_from_those_of_others() {
        let setting = ["our.name/mode", "dobs.csi.digitalocean.com/noformat", "com.digitalocean.csi/x", "encrypted"];
        for key in setting {
            let name = key.split_once('/').map_or(key, |(_, name)| name);
            assert_eq!(classified(key), Name::Setting(name), "{key}");
        }
        let foreign = [
            "tags",
            "description",
            "fstype",
            "fsType",
            "csi.storage.k8s.io/pod.name",
            "csi.storage.k8s.io/fstype",
            "csi.storage.k8s.io/serviceAccount.tokens",
            "storage.kubernetes.io/csiProvisionerIdentity",
        ];
        for key in foreign {
            assert_eq!(classified(key), Name::Foreign, "{key}");
        }
        let misspelt = [
            ("noformat", "our.name/noformat"),
            ("NoFormat", "our.name/noformat"),
            ("no-format", "our.name/noformat"),
            ("no_format", "our.name/noformat"),
            ("no format ", "our.name/noformat"),
            ("noformatt", "our.name/noformat"),
            ("nofromat", "our.name/noformat"),
            ("owner", "our.name/owner"),
            ("OWNER", "our.name/owner"),
            ("group", "our.name/group"),
            ("mode", "our.name/mode"),
            ("label", "our.name/label"),
            ("selinuxLabel", "our.name/selinux-label"),
            ("luksEncrypted", "our.name/luks-encrypted"),
            ("luks_encrypted", "our.name/luks-encrypted"),
            ("Encrypted", "our.name/encrypted"),
            ("encryption", "our.name/encrypted"),
            ("block_size", "our.name/block-size"),
            ("inodesize", "our.name/inode-size"),
            ("reserved-precent", "our.name/reserved-percent"),
            ("reflinks", "our.name/reflink"),
            ("our.name.noformat", "our.name/noformat"),
            ("our.name:noformat", "our.name/noformat"),
            ("dobs.csi.digitalocean.com.owner", "our.name/owner"),
            ("our.nam/noformat", "our.name/noformat"),
            ("Our.Name/noformat", "our.name/noformat"),
            ("csi.digitalocean.com/noformat", "our.name/noformat"),
            ("dobs.csi.digitalocean.con/owner", "our.name/owner"),
            ("Tags", "tags"),
            ("discription", "description"),
        ];
        for (key, meant) in misspelt {
            assert_eq!(classified(key), Name::Misspelt { meant: meant.to_owned() }, "{key}");
        }
        // Without "tags" among what is read, nobody can have meant it.
        assert_eq!(classify("tags", "our.name", &[]), Name::Unknown { meant: None });
    }

    #[test]
    fn common_words_and_settings_of_other_drivers_are_not_taken_for_ours() {
        for (key, meant) in
            [("labels", Some("our.name/label")), ("groups", Some("our.name/group")), ("tag", Some("tags"))]
        {
            assert_eq!(classified(key), Name::Unknown { meant: meant.map(str::to_owned) }, "{key}");
        }
        for key in ["", "/", "type", "size", "fsformat", "iopsPerGB", "other.name/noformat", "other.name/owner", "zone"]
        {
            assert_eq!(classified(key), Name::Unknown { meant: None }, "{key}");
        }
    }

    #[test]
    fn every_setting_is_nearest_to_itself() {
        for name in SETTINGS {
            assert_eq!(nearest(name, &[]), Some((name, 0)));
        }
    }

    proptest! {
        #[test]
        fn whoever_writes_a_setting_without_its_prefix_is_told(
            index in 0..SETTINGS.len(), sign in "[-_. ]?", place in 0_usize..16, is_loud in any::<bool>(),
        ) {
            let name = SETTINGS[index];
            let at = place.min(name.len());
            let written = format!("{}{sign}{}", &name[..at], &name[at..]);
            let written = if is_loud { written.to_uppercase() } else { written };
            if written != ENCRYPTED {
                let meant = format!("our.name/{name}");
                prop_assert_eq!(classified(&written), Name::Misspelt { meant });
            }
        }
    }
}
