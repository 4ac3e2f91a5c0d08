//! The program: reads the settings, runs, and turns the outcome into an exit code.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use do_csi_plugin::config::command::CommandLine;
use do_csi_plugin::config::{Config, Early};
use nix::poll::{PollFd, PollFlags, poll};

/// Exit code for settings that cannot work, as command line tools have it.
const WRONG_USE: u8 = 2;
/// How long standard error may have no room for the last line, in milliseconds.
const PATIENCE_MS: u16 = 1000;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let outcome = match CommandLine::parse(&args) {
        Ok(Some(command)) => do_csi_plugin::commands::run(command),
        Ok(None) => match Config::parse(args) {
            Ok(config) => do_csi_plugin::run(config).map(|()| ExitCode::SUCCESS),
            Err(early) => return end(early),
        },
        Err(early) => return end(early),
    };
    outcome.unwrap_or_else(|line| refuse(&line))
}

/// Ends before anything has begun.
fn end(early: Early) -> ExitCode {
    match early {
        Early::Answer(text) => answer(&text),
        Early::Probe(socket) => probe(&socket),
        Early::Refusal(line) => refuse(&line),
    }
}

fn answer(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn probe(socket: &Path) -> ExitCode {
    match do_csi_plugin::rpc::probe::probe(socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            tell(&line);
            ExitCode::FAILURE
        }
    }
}

fn refuse(line: &str) -> ExitCode {
    tell(line);
    ExitCode::from(WRONG_USE)
}

fn tell(line: &str) {
    let mut stderr = io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // Nobody is left to tell when standard error is closed too, or when nobody reads it.
    if poll(&mut room, PATIENCE_MS).is_ok_and(|ready| ready > 0) {
        let _told = writeln!(stderr, "do-csi-plugin: {line}");
    }
}
