//! The text of one setting into its value.
//!
//! Owns what a flag may say, and the line that tells what is wrong with it. Pure, but for the look-up of a host's name.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::cloud::tag::Tag;
use crate::cloud::token::{Secret, Token};
use crate::config::DRIVER_NAME;
use crate::size::{Gib, SizeLimits};

/// Reads a setting whose empty text means that it was not given.
pub(super) fn if_given<T, E: Display>(
    flag: &str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    parse(text).map(Some).map_err(|bad| format!("{flag}: {bad}"))
}

/// Reads a tag of the operator's. What begins as this driver's own marks do would be taken for one of them.
pub(super) fn parse_owner_tag(text: &str) -> Result<Tag, String> {
    let tag = Tag::parse(text).map_err(|bad| bad.to_string())?;
    let name = text.to_ascii_lowercase();
    let is_mark = name.strip_prefix("do-csi").is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '-']));
    if is_mark { Err(format!("{text:?} begins as the plugin's own marks do, take another tag")) } else { Ok(tag) }
}

/// Reads an endpoint: `unix:///abs`, `unix://rel`, `unix:path`, or a bare path.
pub(super) fn parse_endpoint(text: &str) -> Result<PathBuf, String> {
    let path = match text.split_once("://") {
        Some(("unix", path)) => path,
        Some((scheme, _)) => {
            return Err(format!("--endpoint: {scheme:?} is not served, only Unix sockets (unix:///path)"));
        }
        None => text.strip_prefix("unix:").unwrap_or(text),
    };
    let path = Path::new(path);
    match path.file_name() {
        Some(_) if !path.as_os_str().as_encoded_bytes().contains(&0) => Ok(path.to_owned()),
        Some(_) | None => Err(format!("--endpoint: {text:?} names no socket file")),
    }
}

pub(super) fn parse_socket_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| format!("--socket-mode: {text:?} is not an octal number from 0 to 0777"))
}

/// No name means the default, as in the official driver.
///
/// Source: CSI specification, GetPluginInfoResponse.name: domain name notation, at most 63 characters, letters or
/// digits at both ends.
pub(super) fn parse_driver_name(name: String) -> Result<String, String> {
    if name.is_empty() {
        return Ok(DRIVER_NAME.to_owned());
    }
    let is_edge = |c: char| c.is_ascii_alphanumeric();
    let fits = (1..=63).contains(&name.len())
        && name.starts_with(is_edge)
        && name.ends_with(is_edge)
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    if fits {
        Ok(name)
    } else {
        Err(format!("--driver-name: {name:?} is not a CSI driver name (letters, digits, '-', '.')"))
    }
}

pub(super) fn parse_debug_addr(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    // Go's net.Listen takes ":9810" for every address, which nobody should give by leaving something out; and it takes names
    // such as "localhost:9810".
    let full = if text.starts_with(':') { format!("127.0.0.1{text}") } else { text.to_owned() };
    let found: Vec<SocketAddr> = full.to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    // Of the addresses of a name it prefers the one of IPv4.
    let best = found.iter().find(|address| address.is_ipv4()).or(found.first());
    best.map(|address| Some(*address))
        .ok_or_else(|| format!("--debug-addr: {text:?} is not an address with a port, such as 127.0.0.1:9810"))
}

pub(super) fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| *rate >= 0.0 && rate.is_finite());
    rate.ok_or_else(|| format!("--do-api-rate-limit: {text:?} is not a number of requests a second, such as 5 or 0.5"))
}

/// Reads a whole number.
pub(super) fn parse_number<T>(flag: &str, text: &str, most: T) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    let number = text.parse().ok().filter(|number| *number <= most);
    number.ok_or_else(|| format!("{flag}: {text:?} is not a whole number from 0 to {most}"))
}

/// Reads a time that is neither nothing nor longer than any caller waits.
pub(super) fn parse_seconds(flag: &str, text: &str) -> Result<Duration, String> {
    let number: Option<f64> = text.parse().ok();
    let time = number.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| (Duration::from_millis(100)..=Duration::from_secs(600)).contains(time))
        .ok_or_else(|| format!("{flag}: {text:?} is not a number of seconds from 0.1 to 600, written without a unit"))
}

/// Reads a time such as `90s`, `2m` or `1h`, from a second to a day; `None` when there is none.
pub(super) fn parse_release_unused(text: &str, has_owner: bool) -> Result<Option<Duration>, String> {
    match if_given("--release-unused", text, parse_time)? {
        Some(_) if !has_owner => {
            Err("--release-unused needs --do-tag: only the owner's tag says which volumes are this cluster's"
                .to_owned())
        }
        after => Ok(after),
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let read = |(unit, seconds): (&str, u64)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(seconds);
    let seconds = units.into_iter().find_map(read).filter(|seconds| (1..=24 * 3600).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| format!("{text:?} is no time from 1s to 24h, such as 2m"))
}

pub(super) fn parse_max_size(text: &str) -> Result<Gib, String> {
    let least = SizeLimits::DIGITALOCEAN.min;
    text.parse().ok().map(Gib).filter(|size| *size >= least).ok_or_else(|| {
        format!("--max-volume-size: {text:?} is not a whole number of GiB, {} or more, written without a unit", least.0)
    })
}

pub(super) fn parse_bool(flag: &str, text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Ok(true),
        "false" | "f" | "0" => Ok(false),
        other => Err(format!("{flag}: {other:?} is neither true nor false")),
    }
}

/// Go's flag package takes one dash or two; clap takes `-endpoint` for a bundle of one-letter flags.
pub(super) fn double_dashes(args: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    args.into_iter().enumerate().map(|(position, arg)| match arg.to_str() {
        Some(text) if position > 0 && is_single_dash_flag(text) => format!("-{text}").into(),
        Some(_) | None => arg,
    })
}

fn is_single_dash_flag(text: &str) -> bool {
    text.strip_prefix('-').is_some_and(|name| name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// Reads where the token comes from.
pub(super) fn token_source(token: &str, origin: &'static str, file: Option<&Path>) -> Result<Option<Token>, String> {
    let token = token.trim();
    match file.filter(|path| !path.as_os_str().is_empty()) {
        Some(_) if !token.is_empty() => Err("--token and --token-file are both given; give one".to_owned()),
        Some(path) => Ok(Some(Token::file(path))),
        None if token.is_empty() => Ok(None),
        None => {
            let secret = Secret::parse(token).map_err(|bad| format!("--token: {bad}"))?;
            Ok(Some(Token::fixed(secret, origin)))
        }
    }
}
