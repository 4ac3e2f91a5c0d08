//! What is logged, and in which form: the words of `--log-level` and `--log-format`.
//!
//! Owns the reading of both. Strict: a word that is not understood is refused, as a level that was meant for the whole program
//! and is taken for a part of it would silence everything. Pure.

use clap::ValueEnum;
use log::LevelFilter;

use crate::spelling::distance;

/// The words for levels, least first.
const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

/// The parts of the program that log: itself, and the libraries of gRPC and HTTP.
const PARTS: [&str; 6] = ["do_csi_plugin", "grpcio", "ureq", "ureq_proto", "rustls", "oxhttp"];

/// The form of a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people: time, level, call, a sentence, and keys with values.
    #[default]
    Text,
    /// Keys and values alone, as Loki reads them.
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// Up to which level each part of the program is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevels {
    /// For parts that are not named.
    all: LevelFilter,
    /// By the beginning of the path, the longest first.
    parts: Vec<(String, LevelFilter)>,
}

impl LogLevels {
    /// The same level for everything.
    #[must_use]
    pub fn all(level: LevelFilter) -> LogLevels {
        LogLevels { all: level, parts: Vec::new() }
    }

    /// Reads a level, parts with levels of their own, or both, separated by commas: `warn,do_csi_plugin::rpc=debug`. What is
    /// not named has level `info`.
    ///
    /// # Errors
    /// One line with the word that is not understood, and with the level that was probably meant.
    pub fn parse(text: &str) -> Result<LogLevels, String> {
        let mut levels = LogLevels::all(LevelFilter::Info);
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.split_once('=') {
                None => levels.all = level(word).ok_or_else(|| no_level(word))?,
                Some((part, word)) if is_part(part) => {
                    levels.parts.push((part.to_owned(), level(word).ok_or_else(|| no_level(word))?));
                }
                Some((part, _)) => {
                    return Err(format!("{part:?} is not a part of this program, which are {}", PARTS.join(", ")));
                }
            }
        }
        levels.parts.sort_by_key(|(part, _)| std::cmp::Reverse(part.len()));
        Ok(levels)
    }

    /// Up to which level a part is logged, by its path: `do_csi_plugin::rpc::worker`.
    #[must_use]
    pub fn of(&self, path: &str) -> LevelFilter {
        self.parts.iter().find(|(part, _)| path.starts_with(part.as_str())).map_or(self.all, |(_, level)| *level)
    }

    /// The highest level of all parts.
    #[must_use]
    pub fn highest(&self) -> LevelFilter {
        self.parts.iter().map(|(_, level)| *level).fold(self.all, |highest, level| highest.max(level))
    }
}

fn level(word: &str) -> Option<LevelFilter> {
    LEVELS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, level)| *level)
}

fn is_part(path: &str) -> bool {
    PARTS.iter().any(|part| path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
}

fn no_level(word: &str) -> String {
    let lower = word.to_lowercase();
    let near = LEVELS.iter().map(|(name, _)| (*name, distance(name, &lower))).min_by_key(|(_, far)| *far);
    let meant =
        near.filter(|(_, far)| *far <= 2).map(|(name, _)| format!("; did you mean {name}?")).unwrap_or_default();
    format!("{word:?} is not one of off, error, warn, info, debug and trace{meant}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_for_all_but_the_parts_that_have_their_own() {
        for (text, path, want) in [
            ("", "do_csi_plugin::rpc", LevelFilter::Info),
            ("debug", "do_csi_plugin::rpc", LevelFilter::Debug),
            ("WARN", "ureq::run", LevelFilter::Warn),
            ("do_csi_plugin::rpc=debug", "do_csi_plugin::rpc::worker", LevelFilter::Debug),
            ("do_csi_plugin::rpc=debug", "do_csi_plugin::node", LevelFilter::Info),
            ("error, do_csi_plugin=info,do_csi_plugin::rpc=trace ", "do_csi_plugin::rpc", LevelFilter::Trace),
            ("do_csi_plugin::rpc=trace,do_csi_plugin=info,error", "do_csi_plugin::host", LevelFilter::Info),
            ("trace,ureq_proto::util=off", "ureq_proto::util", LevelFilter::Off),
        ] {
            assert_eq!(LogLevels::parse(text).unwrap().of(path), want, "{text} {path}");
        }
        assert_eq!(LogLevels::parse("error,ureq=debug").unwrap().highest(), LevelFilter::Debug);
    }

    #[test]
    fn a_word_that_is_not_understood_is_refused_with_the_one_that_was_meant() {
        for (text, said) in [
            ("inof", "did you mean info?"),
            ("Debgu", "did you mean debug?"),
            ("verbose", "is not one of off, error"),
            ("do_csi_plugin", "is not one of"),
            ("do_csi_plugin=loud", "\"loud\" is not one of"),
            ("do-csi-plugin=debug", "is not a part of this program"),
            ("info/secret", "is not one of"),
        ] {
            let line = LogLevels::parse(text).unwrap_err();
            assert!(line.contains(said), "{text}: {line}");
        }
    }
}
