//! What a LUKS header asks for, and what the kernel was really told. An attacker who can write to a detached disk, with
//! a stolen token or through a snapshot, can write its header too: nothing authenticates it.
//!
//! Owns the list of what is taken: what this plugin makes, and what cryptsetup makes without options. A header that asks for
//! anything else would, for example, have the kernel write in clear (`cipher_null`), decrypt the disk for good (a reencryption
//! that claims to be half done), or take every passphrase for right. All is pure; cryptsetup and dmsetup are run by
//! `cryptsetup.rs`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::host::device::number::DeviceNumber;

/// How data is encrypted, and the lengths of a key for it in bytes: AES-256 and AES-128, as XTS has two of them.
///
/// Source: `DEFAULT_LUKS1_CIPHER` and `DEFAULT_LUKS1_KEYBITS` in cryptsetup's `configure.ac`; `get_adjusted_key_size` in its
/// `src/utils_luks.c`.
pub(super) const CIPHER: &str = "aes-xts-plain64";
const KEY_LENGTHS: [u64; 2] = [64, 32];

/// The least that cryptsetup lets anybody choose for making a key from a passphrase. A slot that costs little cannot be planted,
/// as that takes the passphrase; a slot below this was made by no cryptsetup.
///
/// Source: `verify_pbkdf_params` in cryptsetup's `lib/utils_pbkdf.c`; `crypt_pbkdf_get_limits` in `lib/crypto_backend/pbkdf_check.c`.
const LEAST_ITERATIONS: u64 = 1000;
const LEAST_ARGON2_TIME: u64 = 4;
const LEAST_ARGON2_MEMORY: u64 = 32;

/// What may stand behind the table of a device: none changes what is written to the disk.
///
/// Source: the kernel's `Documentation/admin-guide/device-mapper/dm-crypt.rst`.
const HARMLESS_OPTIONS: [&str; 6] = [
    "allow_discards",
    "same_cpu_crypt",
    "submit_from_crypt_cpus",
    "no_read_workqueue",
    "no_write_workqueue",
    "high_priority",
];

/// Longest text of a header that is printed.
const LONGEST_TEXT: usize = 40;

/// The header, as far as it is judged. Source: LUKS2 On-Disk Format Specification, 3.
#[derive(Debug, Deserialize)]
struct Header {
    keyslots: BTreeMap<String, Keyslot>,
    tokens: BTreeMap<String, Token>,
    segments: BTreeMap<String, Segment>,
    digests: BTreeMap<String, Digest>,
    config: Config,
}

#[derive(Debug, Deserialize)]
struct Token {
    r#type: String,
}

#[derive(Debug, Deserialize)]
struct Keyslot {
    r#type: String,
    #[serde(default)]
    key_size: u64,
    area: Option<Area>,
    kdf: Option<Kdf>,
}

#[derive(Debug, Deserialize)]
struct Area {
    r#type: String,
    encryption: Option<String>,
    #[serde(default)]
    key_size: u64,
}

#[derive(Debug, Deserialize)]
struct Kdf {
    r#type: String,
    #[serde(default)]
    iterations: u64,
    #[serde(default)]
    time: u64,
    #[serde(default)]
    memory: u64,
}

/// A part of the disk with data. What is not known here is not taken: it could change what is written.
#[derive(Debug, Deserialize)]
struct Segment {
    r#type: String,
    offset: String,
    encryption: Option<String>,
    integrity: Option<IgnoredAny>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(flatten)]
    others: BTreeMap<String, IgnoredAny>,
}

const OTHER_SEGMENT_FIELDS: [&str; 3] = ["size", "iv_tweak", "sector_size"];

#[derive(Debug, Deserialize)]
struct Digest {
    r#type: String,
    #[serde(default)]
    iterations: u64,
}

#[derive(Debug, Deserialize)]
struct Config {
    json_size: String,
    keyslots_size: String,
    #[serde(default)]
    requirements: BTreeMap<String, Vec<String>>,
}

/// What of a header is not taken, as a phrase; `None` when all of it is. The text is what cryptsetup prints of the header that
/// it would use.
///
/// Source: cryptsetup-luksDump(8), `--dump-json-metadata`.
pub(super) fn why_not_header(json: &[u8]) -> Option<String> {
    let header: Header = match serde_json::from_slice(json) {
        Ok(header) => header,
        // The place alone: the text is the disk's.
        Err(err) => return Some(format!("it is none that this plugin can read (line {})", err.line())),
    };
    let segments = header.segments.iter().find_map(|(name, segment)| segment.why_not(name, &header.config));
    let slots = || {
        header.keyslots.iter().find_map(|(name, slot)| Some(format!("key slot {} {}", shown(name), slot.why_not()?)))
    };
    why_not_config(&header).or(segments).or_else(slots).or_else(|| header.digests.values().find_map(Digest::why_not))
}

fn why_not_config(header: &Header) -> Option<String> {
    if let Some(needed) = header.config.requirements.values().flatten().next() {
        return Some(format!("it requires {}, as while a reencryption runs", shown(needed)));
    }
    if let Some(token) = header.tokens.values().next() {
        return Some(format!("it has a token ({}), which could open it without its key", shown(&token.r#type)));
    }
    match header.segments.keys().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["0"] => None,
        names => Some(format!("its data are {} segments, and not one", names.len())),
    }
}

impl Segment {
    fn why_not(&self, name: &str, config: &Config) -> Option<String> {
        let why = |why: String| Some(format!("segment {} {why}", shown(name)));
        if self.r#type != "crypt" {
            return why(format!("is of type {}, which is not encrypted, or not by the kernel", shown(&self.r#type)));
        }
        match self.encryption.as_deref() {
            Some(CIPHER) => {}
            Some(other) => return why(format!("is encrypted by {}", shown(other))),
            None => return why("is not encrypted".to_owned()),
        }
        if self.integrity.is_some() {
            return why("has integrity".to_owned());
        }
        let others = self.others.keys().filter(|field| !OTHER_SEGMENT_FIELDS.contains(&field.as_str()));
        if let Some(odd) = self.flags.first().or(others.into_iter().next()) {
            return why(format!("has {}", shown(odd)));
        }
        let number = |text: &str| text.parse::<u64>().ok();
        let metadata = number(&config.json_size).zip(number(&config.keyslots_size)).and_then(|(json, slots)| {
            const BINARY: u64 = 4096;
            json.checked_add(BINARY)?.checked_mul(2)?.checked_add(slots)
        });
        match number(&self.offset).zip(metadata) {
            Some((offset, end)) if offset >= end => None,
            Some(_) | None => why(format!("begins at {}, in the header itself", shown(&self.offset))),
        }
    }
}

impl Keyslot {
    fn why_not(&self) -> Option<String> {
        if self.r#type != "luks2" {
            return Some(format!("is of type {}", shown(&self.r#type)));
        }
        let (Some(area), Some(kdf)) = (&self.area, &self.kdf) else {
            return Some("lacks its area or its kdf".to_owned());
        };
        if area.r#type != "raw" {
            return Some(format!("has an area of type {}", shown(&area.r#type)));
        }
        match area.encryption.as_deref() {
            // With it any passphrase, or none, would open the volume, with a volume key that whoever wrote it knows.
            Some(CIPHER) => {}
            other => return Some(format!("is encrypted by {}", shown(other.unwrap_or_default()))),
        }
        if let Some(size) = [self.key_size, area.key_size].into_iter().find(|size| !KEY_LENGTHS.contains(size)) {
            return Some(format!("has a key of {size} bytes"));
        }
        kdf.why_not()
    }
}

impl Kdf {
    fn why_not(&self) -> Option<String> {
        let (is_enough, cost) = match self.r#type.as_str() {
            "pbkdf2" => (self.iterations >= LEAST_ITERATIONS, format!("{} iterations", self.iterations)),
            "argon2i" | "argon2id" => (
                self.time >= LEAST_ARGON2_TIME && self.memory >= LEAST_ARGON2_MEMORY,
                format!("time {} and memory {} KiB", self.time, self.memory),
            ),
            other => return Some(format!("makes its key by {}", shown(other))),
        };
        (!is_enough).then(|| format!("makes its key at no cost ({} with {cost})", self.r#type))
    }
}

impl Digest {
    fn why_not(&self) -> Option<String> {
        if self.r#type != "pbkdf2" {
            return Some(format!("its digest is of type {}", shown(&self.r#type)));
        }
        (self.iterations < LEAST_ITERATIONS).then(|| format!("its digest has {} iterations", self.iterations))
    }
}

/// What of an open device is not what it must be, as a phrase; `None` when data that is written to it is encrypted on this disk.
/// The text is the kernel's own table of the device, without its key.
///
/// Source: dmsetup(8), "table": without `--showkeys` keys are printed as zeros; `crypt_status` in the kernel's
/// `drivers/md/dm-crypt.c`.
pub(super) fn why_not_table(table: &str, disk: DeviceNumber) -> Option<String> {
    let lines: Vec<&str> = table.lines().filter(|line| !line.trim().is_empty()).collect();
    let [line] = lines.as_slice() else { return Some(format!("it consists of {} parts, and not of one", lines.len())) };
    let mut words = line.split_ascii_whitespace();
    let mut next = || words.next().unwrap_or_default();
    let (start, length, target) = (next(), next(), next());
    if start != "0" || target != "crypt" {
        return Some(format!("it is of type {}", shown(target)));
    }
    let (cipher, key, iv_offset, below, offset) = (next(), next(), next(), next(), next());
    if cipher != CIPHER {
        return Some(format!("it is encrypted by {}", shown(cipher)));
    }
    match key_length(key) {
        Some(length) if KEY_LENGTHS.contains(&length) => {}
        Some(length) => return Some(format!("its key has {length} bytes")),
        None => return Some("its key cannot be told".to_owned()),
    }
    if below != disk.to_string() {
        return Some(format!("it lies on {}, and not on {disk}", shown(below)));
    }
    if offset.parse::<u64>().ok().is_none_or(|sectors| sectors == 0) {
        return Some(format!("its data begin at sector {}", shown(offset)));
    }
    let numbers = [Some(length), Some(iv_offset), words.next()];
    if let Some(odd) = numbers.into_iter().flatten().find(|word| word.parse::<u64>().is_err()) {
        return Some(format!("it has {}, where a number is", shown(odd)));
    }
    let is_harmless = |word: &&str| HARMLESS_OPTIONS.contains(word) || word.starts_with("sector_size:");
    words.find(|word| !is_harmless(word)).map(|word| format!("it has {}", shown(word)))
}

/// The length of a key in bytes: it is printed as so many pairs of digits, or as `:length:type:name` when it is in the kernel's
/// keyring.
fn key_length(key: &str) -> Option<u64> {
    match key.strip_prefix(':') {
        Some(in_keyring) => in_keyring.split(':').next()?.parse().ok(),
        None if key.bytes().all(|byte| byte.is_ascii_hexdigit()) => u64::try_from(key.len() / 2).ok(),
        None => None,
    }
}

/// A text that whoever wrote the disk has chosen: quoted, on one line, and not long.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(LONGEST_TEXT).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 16 };

    fn made() -> Value {
        serde_json::from_str(include_str!("../../../tests/fixtures/luks/made.json")).unwrap()
    }

    fn why(header: &Value) -> String {
        why_not_header(header.to_string().as_bytes()).unwrap_or_default()
    }

    #[test]
    fn what_this_plugin_and_cryptsetup_by_itself_make_is_taken() {
        assert_eq!(why(&made()), "");
        assert_eq!(why_not_header(include_bytes!("../../../tests/fixtures/luks/plain.json")), None);
        assert_eq!(why_not_header(include_bytes!("../../../tests/fixtures/luks/pbkdf2.json")), None);
    }

    #[test]
    fn everything_else_that_a_header_can_ask_is_refused_by_name() {
        let cases = [
            ("/segments/0/encryption", json!("cipher_null-ecb"), "cipher_null-ecb"),
            ("/segments/0/encryption", json!("aes-ecb"), "\"aes-ecb\""),
            ("/segments/0/encryption", json!("aes-cbc-plain"), "\"aes-cbc-plain\""),
            ("/segments/0/encryption", Value::Null, "not encrypted"),
            ("/segments/0/type", json!("linear"), "\"linear\""),
            ("/segments/0/type", json!("hw-opal"), "\"hw-opal\""),
            ("/segments/0/integrity", json!({"type": "hmac(sha256)"}), "integrity"),
            ("/segments/0/flags", json!(["in-reencryption"]), "in-reencryption"),
            ("/segments/0/opal_key_size", json!(32), "opal_key_size"),
            ("/segments/0/offset", json!("0"), "in the header itself"),
            ("/segments/0/offset", json!("4096"), "in the header itself"),
            ("/segments/0/offset", json!("-1"), "in the header itself"),
            ("/segments/1", json!({"type": "linear", "offset": "16777216"}), "2 segments"),
            ("/segments", json!({}), "0 segments"),
            ("/config/requirements", json!({"mandatory": ["online-reencrypt-v2"]}), "online-reencrypt-v2"),
            ("/config/json_size", json!("18446744073709551615"), "in the header itself"),
            ("/tokens/0", json!({"type": "luks2-keyring", "keyslots": ["0"]}), "luks2-keyring"),
            ("/keyslots/1", json!({"type": "reencrypt", "mode": "decrypt"}), "\"reencrypt\""),
            ("/keyslots/0/key_size", json!(16), "16 bytes"),
            ("/keyslots/0/key_size", json!(0), "0 bytes"),
            ("/keyslots/0/area/encryption", json!("cipher_null-ecb"), "cipher_null-ecb"),
            ("/keyslots/0/area/type", json!("journal"), "\"journal\""),
            ("/keyslots/0/area/key_size", json!(8), "8 bytes"),
            ("/keyslots/0/kdf/type", json!("none"), "\"none\""),
            ("/keyslots/0/kdf/time", json!(1), "no cost"),
            ("/keyslots/0/kdf/memory", json!(8), "no cost"),
            ("/keyslots/0/kdf", json!({"type": "pbkdf2", "iterations": 1}), "no cost"),
            ("/keyslots/0/kdf", Value::Null, "lacks"),
            ("/digests/0/type", json!("none"), "digest"),
            ("/digests/0/iterations", json!(1), "digest"),
            ("/keyslots", json!([]), "none that this plugin can read"),
        ];
        for (place, value, words) in cases {
            let mut header = made();
            let (parent, field) = place.rsplit_once('/').unwrap();
            let parent = if parent.is_empty() { &mut header } else { header.pointer_mut(parent).unwrap() };
            parent[field] = value;
            let told = why(&header);
            assert!(told.contains(words), "{place}: {told:?}");
        }
        for text in ["", "{}", "[1", "null"] {
            assert!(why_not_header(text.as_bytes()).is_some(), "{text}");
        }
        let mut long = made();
        long["segments"]["0"]["encryption"] = json!("x\n".repeat(1000));
        let told = why(&long);
        assert!(told.len() < 150 && !told.contains('\n'), "{told}");
    }

    #[test]
    fn only_a_table_that_encrypts_on_this_very_disk_is_taken() {
        let keyring = ":64:logon:cryptsetup:37d1b1d2-0000-0000-0000-000000000000-d0";
        let zeros = "0".repeat(128);
        for good in [
            format!("0 2064384 crypt aes-xts-plain64 {keyring} 0 8:16 32768 1 sector_size:4096\n"),
            format!("0 2064384 crypt aes-xts-plain64 {zeros} 0 8:16 32768"),
            format!(
                "0 2064384 crypt aes-xts-plain64 {} 0 8:16 4096 2 allow_discards no_read_workqueue\n",
                &zeros[..64]
            ),
        ] {
            assert_eq!(why_not_table(&good, DISK), None, "{good}");
        }
        for (bad, words) in [
            (String::new(), "0 parts"),
            ("0 2064384 linear 8:16 32768\n".to_owned(), "\"linear\""),
            ("0 2064384 crypt cipher_null-ecb - 0 8:16 32768\n".to_owned(), "cipher_null-ecb"),
            (format!("0 9 crypt aes-cbc-plain {zeros} 0 8:16 32768\n"), "aes-cbc-plain"),
            (format!("0 9 crypt aes-xts-plain64 {} 0 8:16 32768\n", &zeros[..32]), "16 bytes"),
            ("0 9 crypt aes-xts-plain64 - 0 8:16 32768\n".to_owned(), "cannot be told"),
            (format!("0 9 crypt aes-xts-plain64 {keyring} 0 8:32 32768\n"), "8:32"),
            (format!("0 9 crypt aes-xts-plain64 {keyring} 0 8:16 0\n"), "sector \"0\""),
            (format!("0 9 crypt aes-xts-plain64 {keyring} 0 8:16 32768 1 integrity:28:aead\n"), "integrity"),
            (format!("0 9 crypt aes-xts-plain64 {zeros} 0 8:16 32768\n9 9 linear 8:16 40000\n"), "2 parts"),
            (format!("9 9 crypt aes-xts-plain64 {zeros} 0 8:16 32768\n"), "type"),
            (format!("0 x crypt aes-xts-plain64 {zeros} 0 8:16 32768\n"), "\"x\""),
            (format!("0 9 crypt aes-xts-plain64 {zeros} x 8:16 32768\n"), "\"x\""),
            (format!("0 9 crypt aes-xts-plain64 {zeros} 0 8:16 32768 integrity:28:aead\n"), "integrity"),
        ] {
            let told = why_not_table(&bad, DISK).unwrap_or_default();
            assert!(told.contains(words), "{bad}: {told}");
        }
    }

    /// Judged a second time, by what must not be in a header, and not by what has to be.
    #[test]
    fn fuzz_no_header_is_taken_that_would_open_in_clear() {
        let made = include_bytes!("../../../tests/fixtures/luks/made.json").as_slice();
        let plain = include_bytes!("../../../tests/fixtures/luks/plain.json").as_slice();
        let pbkdf2 = include_bytes!("../../../tests/fixtures/luks/pbkdf2.json").as_slice();
        let words: [&[u8]; 12] = [
            b"\"cipher_null-ecb\"",
            b"\"linear\"",
            b"\"crypt\"",
            b"\"encryption\":",
            b"\"segments\":{",
            b"\"0\":",
            b"\"1\":",
            b"{}",
            b"null",
            b"\"tokens\":{\"0\":{\"type\":\"x\"}},",
            b"\"integrity\":{},",
            b"\"mandatory\":[\"x\"]",
        ];
        crate::fuzz::fuzz("luks-header", &[made, plain, pbkdf2], &words, |bytes| {
            if why_not_header(bytes).is_some() {
                return;
            }
            // Where a name is there twice, cryptsetup takes the last, and so does this reader.
            // Texts that are of no interest may be none.
            let Ok(header) = serde_json::from_slice::<Value>(bytes) else { return };
            let segments = header["segments"].as_object().unwrap();
            assert_eq!(segments.len(), 1);
            assert_eq!((&segments["0"]["type"], &segments["0"]["encryption"]), (&json!("crypt"), &json!(CIPHER)));
            assert!(segments["0"].get("integrity").is_none_or(Value::is_null));
            assert!(header.get("tokens").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty));
            for slot in header["keyslots"].as_object().unwrap().values() {
                assert_eq!((&slot["type"], &slot["area"]["encryption"]), (&json!("luks2"), &json!(CIPHER)));
            }
        });
    }

    #[test]
    fn fuzz_no_table_is_taken_that_does_not_encrypt_on_this_disk() {
        let good = format!("0 2064384 crypt aes-xts-plain64 {} 0 8:16 32768 1 allow_discards\n", "0".repeat(128));
        let keyring = "0 9 crypt aes-xts-plain64 :64:logon:cryptsetup:x-d0 0 8:16 32768 1 sector_size:4096\n";
        let words: [&[u8]; 8] =
            [b"cipher_null-ecb", b" linear ", b"\n", b" 8:32 ", b"-", b":0:logon:", b"integrity:28:aead", b"\x0b"];
        crate::fuzz::fuzz("dm-table", &[good.as_bytes(), keyring.as_bytes()], &words, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if why_not_table(&text, DISK).is_none() {
                let words: Vec<&str> = text.split_ascii_whitespace().collect();
                assert_eq!((words[0], words[2], words[3], words[6]), ("0", "crypt", CIPHER, "8:16"), "{text}");
                assert!(
                    !text.trim().contains('\n') && !words.iter().any(|word| word.starts_with("integrity")),
                    "{text}"
                );
            }
        });
    }
}
