//! The flags of the plugin that runs beside a command, so that a person need not give them again.
//!
//! Owns which of them are taken over: those that say where and whose everything is. The token itself never is, nor anything that
//! serves or logs. Who listens at the socket is asked of the kernel, and its arguments are in `/proc`, which everybody may read.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::sockopt::socket_peercred;

use crate::config::parse::double_dashes;

/// The flags that are taken over, all of which have a value.
const TAKEN: [&str; 15] = [
    "url",
    "region",
    "droplet-id",
    "metadata-url",
    "token-file",
    "do-tag",
    "only-tag",
    "driver-name",
    "selinux-label",
    "ca-file",
    "device-dir",
    "sys-dir",
    "api-timeout",
    "call-budget",
    "do-api-rate-limit",
];
/// Those that say whose everything is: without them nothing may be changed.
pub(super) const WHOSE: [&str; 2] = ["do-tag", "only-tag"];

/// A flag of the running plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunningFlag {
    /// Its name, without dashes.
    pub(super) name: &'static str,
    /// The whole argument: `--name=value`.
    pub(super) argument: OsString,
}

/// The flags of the process that serves this socket; none when nobody does.
///
/// # Errors
/// One line: a process serves it, and its flags cannot be read.
pub(super) fn observe_running_flags(socket: &Path) -> Result<Vec<RunningFlag>, String> {
    let Ok(stream) = UnixStream::connect(socket) else { return Ok(Vec::new()) };
    let unread =
        |why: String| format!("the flags of the plugin that serves {} cannot be read: {why}", socket.display());
    let peer = socket_peercred(&stream).map_err(|err| unread(err.to_string()))?;
    // A process in another PID namespace has the number 0 here.
    let path = format!("/proc/{}/cmdline", peer.pid);
    let line = fs::read(&path).map_err(|err| unread(format!("{path}: {err}")))?;
    Ok(parse_flags(&line))
}

/// The flags of a command line as `/proc` has it. A flag that is there twice counts as what it was last. Pure.
fn parse_flags(line: &[u8]) -> Vec<RunningFlag> {
    let words = line.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).to_owned());
    let mut words = double_dashes(words).skip(1);
    let mut found: Vec<RunningFlag> = Vec::new();
    while let Some(word) = words.next() {
        let Some(text) = word.to_str().and_then(|text| text.strip_prefix("--")) else { continue };
        let (name, is_whole) = text.split_once('=').map_or((text, false), |(name, _)| (name, true));
        let Some(name) = TAKEN.into_iter().find(|known| *known == name) else { continue };
        let argument = if is_whole {
            word
        } else {
            let Some(value) = words.next() else { continue };
            let mut argument = word;
            argument.push("=");
            argument.push(value);
            argument
        };
        found.retain(|flag| flag.name != name);
        found.push(RunningFlag { name, argument });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_that_say_where_and_whose_everything_is_are_taken_and_no_secret() {
        for (line, want) in [
            (&b""[..], vec![]),
            (b"do-csi-plugin\0", vec![]),
            (b"do-csi-plugin\0--do-tag=prod\0", vec!["--do-tag=prod"]),
            (b"do-csi-plugin\0-do-tag=prod\0--url\0http://x\0", vec!["--do-tag=prod", "--url=http://x"]),
            (b"do-csi-plugin\0--token=dop_v1_x\0--token\0dop_v1_y\0--debug-addr=:1\0--mode=node\0", vec![]),
            (b"do-csi-plugin\0--region=a\0--region=b\0", vec!["--region=b"]),
            (b"do-csi-plugin\0--only-tag=ours\0--call-budget=50\0", vec!["--only-tag=ours", "--call-budget=50"]),
            (b"do-csi-plugin\0--takeover=true\0--url", vec![]),
            (b"do-csi-plugin\0--do-tag=\xff\0", vec![]),
        ] {
            let found: Vec<String> =
                parse_flags(line).iter().map(|flag| flag.argument.to_string_lossy().into_owned()).collect();
            assert_eq!(found, want, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_socket_that_nobody_serves_has_no_flags() {
        assert_eq!(observe_running_flags(Path::new("/nowhere/csi.sock")), Ok(vec![]));
    }
}
