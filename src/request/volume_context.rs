//! What a volume carries with it in its volume context: whether and how it may be formatted, and who may use its files.
//!
//! A volume that is created through CSI gets them from the parameters it is created with, as Nomad takes over the volume
//! context that the answer has. Owns the values of these settings; which names are ours is `names.rs`'s. What is under one of
//! our prefixes and not understood is refused, and so is a name of ours without its prefix: a misspelt `noformat` must not end
//! in a formatted disk.

use std::collections::HashMap;
use std::fmt::{self, Display};

use crate::error::{Error, Result};
use crate::host::mkfs_options::{FormatOptions, set};
use crate::host::mount_options::SelinuxLabel;
use crate::request::capability::Access;
use crate::request::names::{Name, classify, nearest};
use crate::request::parameters::names_beside;

/// The field of a request that holds a volume's settings.
pub const CONTEXT: &str = "volume_context";

/// Who may do what with the root directory of a file system; what is not set stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RootSettings {
    /// The owner's number.
    pub owner: Option<u32>,
    /// The group's number.
    pub group: Option<u32>,
    /// The permission bits.
    pub mode: Option<u32>,
    /// Whether they are set also when the file system was used before.
    pub is_always: bool,
}

impl fmt::Display for RootSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = |id: Option<u32>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let mode = self.mode.map_or_else(|| "-".to_owned(), |mode| format!("{mode:04o}"));
        write!(f, "{}:{} {mode}", id(self.owner), id(self.group))
    }
}

/// A volume's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether the volume is never to be formatted.
    pub is_never_formatted: bool,
    /// How it is formatted when it is blank.
    pub format: FormatOptions,
    /// What its root directory is to be like.
    pub root: RootSettings,
    /// Whether the volume is encrypted.
    pub is_encrypted: bool,
    /// The SELinux label of everything on it.
    pub label: Option<SelinuxLabel>,
}

impl Settings {
    /// Reads a volume context, or parameters; `field` names which. Each setting is `<prefix>/<name>`, with the driver's name or
    /// one of the official driver's spellings of it as prefix:
    ///
    /// | name | value |
    /// |---|---|
    /// | `noformat` | true or false; the official driver took any value, even `false`, for true |
    /// | `owner`, `group` | a number |
    /// | `mode` | octal permission bits such as `0770` |
    /// | `owner-policy` | `fresh` or `always`: when the three above are set; the former, unless said |
    /// | `encrypted`, `luks-encrypted` | true or false; the former also without a prefix, as other drivers have it |
    /// | `selinux-label` | `user:role:type:level` |
    /// | what [`FormatOptions::parse`] names | a parameter for mkfs |
    ///
    /// Names of others are left out.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the key, also for one that is nearly ours, with the one that was probably meant.
    pub fn parse(field: &str, context: &HashMap<String, String>, driver_name: &str) -> Result<Settings> {
        let mut settings = Settings::default();
        let mut format = Vec::new();
        let (mut is_encrypted, mut is_always) = (None, None);
        // In a fixed order, so that the same context always gives the same answer.
        let mut pairs: Vec<_> = context.iter().collect();
        pairs.sort();
        for (key, value) in pairs {
            let bad = |why: &dyn Display| Error::invalid(format!("{field}[{key}]"), why);
            let name = match classify(key, driver_name, names_beside(field)) {
                Name::Setting(name) => name,
                Name::Misspelt { meant } => {
                    return Err(bad(&format!("would have no effect under this name; did you mean {meant:?}?")));
                }
                Name::Foreign | Name::Unknown { .. } => continue,
            };
            match name {
                // Said in two spellings, one "never" is enough.
                "noformat" => settings.is_never_formatted |= parse_bool(value).map_err(|why| bad(&why))?,
                "owner" => set(&mut settings.root.owner, parse_id(value)).map_err(|why| bad(&why))?,
                "group" => set(&mut settings.root.group, parse_id(value)).map_err(|why| bad(&why))?,
                "mode" => set(&mut settings.root.mode, parse_mode(value)).map_err(|why| bad(&why))?,
                "owner-policy" => set(&mut is_always, parse_policy(value)).map_err(|why| bad(&why))?,
                "encrypted" | "luks-encrypted" => {
                    set(&mut is_encrypted, parse_told_bool(value)).map_err(|why| bad(&why))?;
                }
                "selinux-label" => set(&mut settings.label, SelinuxLabel::parse(value)).map_err(|why| bad(&why))?,
                other if FormatOptions::NAMES.contains(&other) => format.push((other, value.as_str())),
                other => return Err(bad(&no_setting(other, driver_name, field))),
            }
        }
        settings.is_encrypted = is_encrypted.unwrap_or(false);
        if is_always.is_some() && settings.root == RootSettings::default() {
            return Err(Error::invalid(field, "have owner-policy, which says nothing without owner, group or mode"));
        }
        settings.root.is_always = is_always.unwrap_or(false);
        settings.format = FormatOptions::parse(format).map_err(|bad| Error::invalid(field, bad))?;
        Ok(settings)
    }

    /// Refuses what no file system of the asked kind has, a label that is given twice, and encryption without a file system.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the field that the settings are in.
    pub fn check_for(&self, field: &str, access: &Access) -> Result<()> {
        let Access::Mount { fs, flags } = access else { return self.check_for_raw(field) };
        if let Some(fs) = fs {
            self.format.check_for(*fs).map_err(|bad| Error::invalid(field, bad))?;
        }
        if self.label.is_some() && flags.has_label() {
            return Err(Error::invalid(field, "hold an SELinux label, and so do the mount_flags"));
        }
        Ok(())
    }

    fn check_for_raw(&self, field: &str) -> Result<()> {
        if self.is_encrypted {
            let why = "say that the volume is encrypted, which goes with a file system only; a raw block volume is given out \
                       as it is, and whoever uses it can encrypt it";
            return Err(Error::invalid(field, why));
        }
        Ok(())
    }
}

/// Why a name under one of our prefixes is refused.
fn no_setting(name: &str, driver_name: &str, field: &str) -> String {
    let beside = names_beside(field);
    match nearest(name, beside) {
        Some((meant, _)) if beside.contains(&meant) => format!("is written without a prefix: {meant:?}"),
        Some((meant, _)) => format!("is not a setting; did you mean \"{driver_name}/{meant}\"?"),
        None => "is not a setting of a volume".to_owned(),
    }
}

/// The settings among a new volume's parameters, which become its volume context.
pub(super) fn carried(parameters: &HashMap<String, String>, driver_name: &str) -> HashMap<String, String> {
    let is_ours = |key: &str| matches!(classify(key, driver_name, &[]), Name::Setting(_));
    let ours = parameters.iter().filter(|(key, _)| is_ours(key));
    ours.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The names in a volume context, or among parameters, that neither this driver nor an orchestrator is known to read; each
/// with the name that was perhaps meant.
pub(super) fn unknown_names<'a>(
    field: &str,
    entries: &'a HashMap<String, String>,
    driver_name: &str,
) -> Vec<(&'a str, Option<String>)> {
    let unknown = entries.keys().filter_map(|key| match classify(key, driver_name, names_beside(field)) {
        Name::Unknown { meant } => Some((key.as_str(), meant)),
        Name::Setting(_) | Name::Foreign | Name::Misspelt { .. } => None,
    });
    let mut unknown: Vec<_> = unknown.collect();
    unknown.sort();
    unknown
}

fn parse_bool(text: &str) -> Result<bool, &'static str> {
    match text.trim().to_ascii_lowercase().as_str() {
        // A key without value was enough for the official driver.
        "" | "true" | "t" | "1" | "yes" | "y" | "on" => Ok(true),
        "false" | "f" | "0" | "no" | "n" | "off" => Ok(false),
        _ => Err("is neither true nor false"),
    }
}

/// As [`parse_bool`], but nothing at all is no answer.
fn parse_told_bool(text: &str) -> Result<bool, &'static str> {
    if text.trim().is_empty() { Err("is empty; say true or false") } else { parse_bool(text) }
}

fn parse_id(text: &str) -> Result<u32, &'static str> {
    // The largest number stands for "none" in chown(2).
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.filter(|id| *id != u32::MAX).ok_or("must be a number (a droplet does not know the names in a container)")
}

/// Whether owner and mode are set also when the file system was used before.
fn parse_policy(text: &str) -> Result<bool, &'static str> {
    match text {
        "fresh" => Ok(false),
        "always" => Ok(true),
        _ => Err("must be fresh or always"),
    }
}

fn parse_mode(text: &str) -> Result<u32, &'static str> {
    let is_octal = (3..=5).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = is_octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    mode.filter(|mode| *mode <= 0o7777).ok_or("must be octal permission bits such as 0770")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Settings> {
        let context = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Settings::parse("volume_context", &context, "our.name")
    }

    #[test]
    fn noformat_is_read_in_every_spelling_and_as_a_boolean() {
        for prefix in ["our.name", "dobs.csi.digitalocean.com", "com.digitalocean.csi", "com.digitalocean.csi.dobs"] {
            let key = format!("{prefix}/noformat");
            for yes in ["true", "TRUE", "True", "t", "1", "yes", "on", "", " true "] {
                assert!(parse(&[(&key, yes)]).unwrap().is_never_formatted, "{key}={yes}");
            }
            for no in ["false", "FALSE", "f", "0", "no", "off"] {
                assert!(!parse(&[(&key, no)]).unwrap().is_never_formatted, "{key}={no}");
            }
            for bad in ["maybe", "2", "tru"] {
                let err = parse(&[(&key, bad)]).unwrap_err();
                assert!(matches!(&err, Error::Invalid { field, .. } if field.contains(&key)), "{err}");
            }
        }
        let both = [("com.digitalocean.csi/noformat", "true"), ("dobs.csi.digitalocean.com/noformat", "false")];
        assert!(parse(&both).unwrap().is_never_formatted);
        assert!(!parse(&[]).unwrap().is_never_formatted);
    }

    #[test]
    fn what_is_ours_must_be_understood_and_what_is_not_is_left_alone() {
        for bad in ["noformatt", "NOFORMAT", "no-format", "format", "", "block_size", "a/b"] {
            assert!(parse(&[(&format!("our.name/{bad}"), "true")]).is_err(), "{bad}");
        }
        let others = [
            ("storage.kubernetes.io/csiProvisionerIdentity", "1-dobs.csi.digitalocean.com"),
            ("csi.storage.k8s.io/pod.name", "blog"),
            ("other.name/noformat", "true"),
            ("colour", "blue"),
        ];
        assert_eq!(parse(&others).unwrap(), Settings::default());
        let context = others.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let unknown = unknown_names("volume_context", &context, "our.name");
        assert_eq!(unknown, [("colour", None), ("other.name/noformat", None)]);
    }

    #[test]
    fn a_setting_without_its_prefix_is_refused_with_the_name_that_was_meant() {
        for name in crate::request::names::SETTINGS.into_iter().filter(|name| *name != "encrypted") {
            let refused = parse(&[(name, "1")]).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("volume_context[{name}]: ")), "{refused}");
            assert!(refused.ends_with(&format!("did you mean \"our.name/{name}\"?")), "{refused}");
        }
        let near = parse(&[("our.name/noformatt", "true")]).unwrap_err().to_string();
        assert!(near.contains("did you mean \"our.name/noformat\""), "{near}");
        let parameters = [("our.name/tags".to_owned(), "a".to_owned())].into();
        let prefixed = Settings::parse("parameters", &parameters, "our.name").unwrap_err().to_string();
        assert!(prefixed.contains("without a prefix: \"tags\""), "{prefixed}");
    }

    #[test]
    fn every_name_that_is_known_is_read() {
        for name in crate::request::names::SETTINGS {
            let refused = parse(&[(&format!("our.name/{name}"), "?")]).unwrap_err().to_string();
            assert!(!refused.contains("no setting"), "{refused}");
        }
    }

    #[test]
    fn owner_group_and_mode_are_numbers() {
        let good = parse(&[("our.name/owner", "1000"), ("our.name/group", "0"), ("our.name/mode", "02770")]).unwrap();
        assert_eq!(good.root, RootSettings { owner: Some(1000), group: Some(0), mode: Some(0o2770), is_always: false });
        for (policy, is_always) in [("fresh", false), ("always", true)] {
            let read = parse(&[("our.name/mode", "0770"), ("our.name/owner-policy", policy)]).unwrap();
            assert_eq!(read.root, RootSettings { mode: Some(0o770), is_always, ..RootSettings::default() });
        }
        assert!(
            parse(&[("our.name/owner-policy", "always")]).unwrap_err().to_string().contains("says nothing without")
        );
        let bad = [
            ("owner", vec!["", "root", "-1", "+1", "4294967295", "4294967296", "1 "]),
            ("group", vec!["", "staff"]),
            ("owner-policy", vec!["", "never", "true"]),
            ("mode", vec!["", "7", "77", "0888", "u+x", "17777", "000777", "-777"]),
        ];
        for (name, values) in bad {
            for value in values {
                assert!(parse(&[(&format!("our.name/{name}"), value)]).is_err(), "{name}={value}");
            }
        }
    }

    #[test]
    fn parameters_of_mkfs_and_a_label_are_read() {
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        let good = parse(&[("our.name/block-size", "1024"), ("our.name/selinux-label", label)]).unwrap();
        assert_eq!(good.format, FormatOptions::parse([("block-size", "1024")]).unwrap());
        assert_eq!(good.label, Some(SelinuxLabel::parse(label).unwrap()));
        assert!(parse(&[("our.name/selinux-label", "x")]).is_err());
        assert!(parse(&[("our.name/block-size", "7")]).is_err());
        // The same setting under two prefixes is a contradiction, or at best a mistake.
        for (name, value) in
            [("label", "a"), ("owner", "1"), ("group", "1"), ("mode", "0770"), ("selinux-label", label)]
        {
            let keys = ["our.name", "com.digitalocean.csi"].map(|prefix| format!("{prefix}/{name}"));
            let err = parse(&[(&keys[0], value), (&keys[1], value)]).unwrap_err().to_string();
            assert!(err.contains("twice") && err.contains(name), "{err}");
        }
    }

    #[test]
    fn encryption_is_asked_for_in_every_spelling_and_once() {
        for key in ["encrypted", "our.name/encrypted", "our.name/luks-encrypted", "com.digitalocean.csi/encrypted"] {
            assert!(parse(&[(key, "true")]).unwrap().is_encrypted, "{key}");
            assert!(!parse(&[(key, "false")]).unwrap().is_encrypted, "{key}");
            for bad in ["", " ", "maybe", "luks2"] {
                assert!(parse(&[(key, bad)]).is_err(), "{key}={bad}");
            }
        }
        assert!(!parse(&[]).unwrap().is_encrypted);
        let twice = parse(&[("encrypted", "true"), ("our.name/luks-encrypted", "false")]).unwrap_err().to_string();
        assert!(twice.contains("twice"), "{twice}");
        let encrypted = parse(&[("encrypted", "true")]).unwrap();
        let raw = encrypted.check_for("parameters", &Access::Block).unwrap_err().to_string();
        assert!(raw.contains("parameters") && raw.contains("encrypted"), "{raw}");
        assert!(Settings::default().check_for("parameters", &Access::Block).is_ok());
    }

    #[test]
    fn a_new_volume_carries_those_of_its_parameters_that_are_settings() {
        let map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let ours = [("our.name/owner", "1000"), ("com.digitalocean.csi/noformat", "true"), ("encrypted", "true")];
        let all = [&ours[..], &[("tags", "a,b"), ("other/owner", "x")]].concat();
        assert_eq!(carried(&map(&all), "our.name"), map(&ours));
    }

    proptest! {
        #[test]
        fn no_context_is_ever_read_as_an_unlimited_right_to_format(name in "[ -~]{0,12}", value in "[ -~]{0,12}") {
            // Either it is understood in full, or it is refused; and what was refused formats nothing.
            if let Ok(settings) = parse(&[(&format!("our.name/{name}"), &value), ("our.name/noformat", "true")]) {
                prop_assert!(settings.is_never_formatted);
            }
        }
    }
}
