//! The log when its reader hangs, has gone, or has no room: the plugin goes on.

use std::fs::File;
use std::io::{PipeReader, Read, pipe};
use std::os::fd::AsFd;
use std::process::{Child, Stdio};
use std::time::Duration;

use do_csi_plugin::proto::csi::{CreateVolumeRequest, ProbeRequest};
use grpcio::CallOption;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;

use crate::PROGRAM;
use crate::support::client::Client;
use crate::support::plugin::{send, terminate};
use crate::support::single_plugin::{SinglePlugin, TOKEN, end_of, until};

/// The smallest room that a pipe can have.
const PIPE: i32 = 4096;

/// A plugin that logs everything to this.
fn start(solo: &SinglePlugin, log: impl Into<Stdio>) -> (Killed, Client) {
    let mut command = solo.command();
    command.args(solo.cloud_args()).arg(format!("--endpoint=unix://{}", solo.socket().display()));
    command.env("DIGITALOCEAN_ACCESS_TOKEN", TOKEN).env("RUST_LOG", "trace");
    let child = Killed(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    until("there is a socket", || solo.socket().exists());
    (child, Client::connect(&solo.socket()))
}

/// A process that does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Calls that are refused, with some hundred bytes in the log each; all of them have to be answered.
fn call_often(client: &Client, count: usize) {
    let option = || CallOption::default().timeout(Duration::from_secs(20));
    let wrong = CreateVolumeRequest { name: "x".repeat(100), ..Default::default() };
    for _ in 0..count {
        let refusal = client.controller.create_volume_opt(&wrong, option()).unwrap_err();
        assert!(refusal.to_string().contains("INVALID_ARGUMENT"), "{refusal}");
    }
    assert!(client.identity.probe_opt(&ProbeRequest::default(), option()).unwrap().ready.value);
}

fn unread_pipe(solo: &SinglePlugin) -> (PipeReader, Killed, Client) {
    let (reader, writer) = pipe().unwrap();
    fcntl(reader.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE)).unwrap();
    let (child, client) = start(solo, writer);
    (reader, child, client)
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_a_call_nor_the_end() {
    let solo = SinglePlugin::new(PROGRAM);
    let (_reader, mut child, client) = unread_pipe(&solo);
    call_often(&client, 100);
    send(child.0.id(), Signal::SIGTERM).unwrap();
    assert!(end_of(&mut child.0).expect("it ends").success());
}

#[test]
fn a_reader_that_comes_back_gets_the_number_of_what_it_missed_and_the_last_lines() {
    let solo = SinglePlugin::new(PROGRAM);
    let (mut reader, mut child, client) = unread_pipe(&solo);
    // Two times more than the queue has room for.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| call_often(&client, 300));
        }
    });
    let read = std::thread::spawn(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).map(|_| log).unwrap()
    });
    call_often(&client, 1);
    assert!(terminate(&mut child.0).unwrap().success());
    drop(child);
    let log = read.join().unwrap();
    let missed = log.lines().find(|line| line.contains("lines of the log before this one are lost"));
    assert!(missed.is_some_and(|line| line.contains(" WARN ")), "{}", log.lines().last().unwrap_or_default());
    assert!(log.lines().last().is_some_and(|line| line.contains("stopped;")), "{:?}", log.lines().last());
    assert!(log.lines().all(|line| line.starts_with("20")), "every line is whole");
}

#[test]
fn a_log_on_a_full_disk_and_one_whose_reader_has_gone_lose_their_lines_only() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (reader, gone) = pipe().unwrap();
    drop(reader);
    for log in [Stdio::from(full), Stdio::from(gone)] {
        let solo = SinglePlugin::new(PROGRAM);
        let (mut child, client) = start(&solo, log);
        call_often(&client, 10);
        assert!(terminate(&mut child.0).unwrap().success());
    }
}
