//! What the log says: one line for each call and each change, the same keys in every form, and what a call waits for that takes
//! long.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use grpcio::RpcStatusCode;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::PROGRAM;
use crate::sim::{ActionFault, Fault, NewVolume};
use crate::support::client::{Client, Volume};
use crate::support::plugin::Plugin;
use crate::support::single_plugin::{DROPLET, SinglePlugin, until};

/// Long enough for a test to be over before it has passed.
const FOR_EVER: Duration = Duration::from_secs(3600);
/// A call's budget in which the first line about a long call comes after half a second.
const SHORT: &str = "--call-budget=10";

/// The calls of [`call_each`] that end well, and those that fail, with their codes.
const ENDS: [(&str, &str); 6] = [
    ("CreateVolume", "OK"),
    ("ControllerPublishVolume", "OK"),
    ("ControllerUnpublishVolume", "OK"),
    ("ControllerGetVolume", "NOT_FOUND"),
    ("DeleteVolume", "OK"),
    ("NodeUnpublishVolume", "INVALID_ARGUMENT"),
];

/// Makes a volume, uses and deletes it, with two calls that fail; gives the volume's id.
fn call_each(client: &Client) -> String {
    let capability = Volume::mounted("", "ext4").capability;
    let made = client.create_volume("one \"of\" mine", 1 << 30, &capability).unwrap();
    let mut volume = Volume::mounted(&made.volume_id, "ext4");
    client.controller_publish(&mut volume, &DROPLET.to_string()).unwrap();
    client.controller_unpublish(&made.volume_id, &DROPLET.to_string()).unwrap();
    let refusal = client.get_volume("by-name").unwrap_err();
    assert_eq!(refusal.code, RpcStatusCode::NOT_FOUND);
    assert!(refusal.message.contains("doctl compute volume list"), "{refusal}");
    client.delete_volume(&made.volume_id).unwrap();
    client.unpublish(&made.volume_id, Path::new("relative")).unwrap_err();
    made.volume_id
}

/// Makes the calls of [`call_each`] and gives the volume's id and what the plugin has logged.
fn log_of(args: &[&str]) -> (String, String) {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(args).start().unwrap();
    let id = call_each(&plugin.client);
    plugin.stop().unwrap();
    (id, fs::read_to_string(solo.path("plugin.log")).unwrap())
}

fn object(line: &str) -> BTreeMap<String, Value> {
    serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}"))
}

#[test]
fn each_call_is_one_line_with_its_code_in_every_form() {
    for format in ["text", "logfmt", "json"] {
        let (id, log) = log_of(&["--log-level=debug", &format!("--log-format={format}")]);
        for (call, code) in ENDS.into_iter().chain([("Probe", "OK")]) {
            let (named, ended) = match format {
                "text" => (format!(" {call}"), format!(" code={code} ms=")),
                "logfmt" => (format!(" call={call} "), format!(" code={code} ms=")),
                _ => (format!("\"call\":\"{call}\""), format!("\"code\":\"{code}\"")),
            };
            let of_call = log.lines().filter(|line| line.contains(&named) && line.contains(&ended));
            let times = if call == "Probe" { of_call.count().min(1) } else { of_call.count() };
            assert_eq!(times, 1, "{format} {call} {code}: {log}");
        }
        let shown = if format == "json" { format!("\"volume\":\"{id}\"") } else { format!(" volume={id}") };
        assert!(log.contains(&shown), "{format}: {log}");
        // The name is not that of a number of words.
        assert!(
            log.contains("name\":\"one \\\"of\\\" mine\"") || log.contains("name=\"one \\\"of\\\" mine\""),
            "{log}"
        );
        for line in log.lines() {
            let is_whole = match format {
                "text" => line.starts_with("20"),
                "logfmt" => line.starts_with("time=20") && line.contains(" level=") && line.contains(" msg="),
                _ => ["time", "level", "msg"].iter().all(|key| object(line).contains_key(*key)),
            };
            assert!(is_whole, "{format}: {line}");
        }
    }
}

#[test]
fn calls_that_only_ask_and_end_well_are_not_logged_at_info() {
    let (_, log) = log_of(&[]);
    for (call, code) in ENDS {
        let lines = log.lines().filter(|line| line.contains(call) && line.contains(" code=")).collect::<Vec<_>>();
        assert!(lines.len() == 1 && lines[0].contains(code), "{call}: {lines:?}");
    }
    assert!(!log.contains(" Probe"), "{log}");
}

#[test]
fn each_change_is_one_line_with_who_asked_for_it() {
    let (id, log) = log_of(&["--log-format=json"]);
    let lines: Vec<_> = log.lines().map(object).filter(|line| line.contains_key("event")).collect();
    let text = |line: &BTreeMap<String, Value>, key: &str| line.get(key).and_then(Value::as_str).map(str::to_owned);
    let told: Vec<_> = lines.iter().map(|line| (text(line, "event").unwrap(), text(line, "call").unwrap())).collect();
    let want = [
        ("created", "CreateVolume"),
        ("attached", "ControllerPublishVolume"),
        ("detached", "ControllerUnpublishVolume"),
        ("deleted", "DeleteVolume"),
    ];
    assert_eq!(told, want.map(|(event, call)| (event.to_owned(), call.to_owned())));
    for line in &lines {
        assert_eq!(text(line, "volume").as_ref(), Some(&id), "{line:?}");
        // DigitalOcean's name for it, which is not quite the one that was asked for.
        assert!(text(line, "name").is_some(), "{line:?}");
        assert!(line["seq"].is_u64(), "{line:?}");
    }
    for line in &lines[1..3] {
        assert_eq!(text(line, "droplet"), Some(DROPLET.to_string()));
        assert!(text(line, "action").is_some(), "{line:?}");
    }
}

#[test]
fn debug_lines_are_switched_also_where_less_than_info_is_logged() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&["--log-level=warn"]).start().unwrap();
    // A machine whose mounts are private, as one without systemd, is told of by an error.
    let told = plugin.log();
    assert!(!told.contains(" INFO ") && !told.contains(" DEBUG "), "{told}");
    plugin.signal(Signal::SIGUSR2).unwrap();
    until("debug is on", || plugin.log().contains("debug lines are switched on=true"));
    plugin.client.probe().unwrap();
    until("a call is logged", || plugin.log().contains(" Probe] done code=OK"));
    plugin.signal(Signal::SIGUSR2).unwrap();
    let lines = || plugin.log().lines().count();
    until("debug is off", || {
        let before = lines();
        plugin.client.probe().unwrap();
        lines() == before
    });
}

/// Waits for a line about a call that takes long, and gives it.
fn told_of(plugin: &Plugin, words: &str) -> String {
    let find = || plugin.log().lines().find(|line| line.contains(words)).map(str::to_owned);
    until(&format!("{words:?} is told of"), || find().is_some());
    find().unwrap()
}

#[test]
fn a_slow_attach_says_what_it_waits_for_and_so_does_who_waits_for_it() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&["--call-budget=20"]).start().unwrap();
    let id = solo.sim.add_volume(&NewVolume::new("slow", 1, "fra1")).unwrap();
    solo.sim.faults().add_action(ActionFault::taking(FOR_EVER));
    let publish = || {
        let (client, id) = (plugin.client.clone(), id.clone());
        thread::spawn(move || client.controller_publish(&mut Volume::mounted(&id, "ext4"), &DROPLET.to_string()))
    };
    let first = publish();
    until("the attachment has begun", || !solo.sim.actions().is_empty());
    let action = solo.sim.actions()[0].id;
    let line = told_of(&plugin, &format!("still attaching volume {id} to droplet {DROPLET}: "));
    assert!(line.contains(&format!("DigitalOcean's action {action} is in-progress since ")), "{line}");
    assert!(line.contains("ControllerPublishVolume") && line.contains(&format!("volume={id} ")), "{line}");
    let second = publish();
    told_of(&plugin, &format!("still waiting for volume {id}: another call works on it since "));
    // The later it is, the more it matters.
    let warned = || plugin.log().lines().any(|line| line.contains(" WARN ") && line.contains("still attaching"));
    until("it is warned of", warned);
    solo.sim.advance(FOR_EVER);
    first.join().unwrap().unwrap();
    second.join().unwrap().unwrap();
    let lines = plugin.log().lines().filter(|line| line.contains("still attaching")).count();
    assert!(lines <= 4, "{lines} lines: {}", plugin.log());
}

#[test]
fn a_call_that_is_held_back_or_not_answered_says_so() {
    for (fault, words) in [
        (Fault::burst_limit(Duration::from_secs(3)), "still reading volume "),
        (Fault::hung(), "still asking DigitalOcean: GET /v2/"),
    ] {
        let solo = SinglePlugin::new(PROGRAM);
        let plugin = solo.launch(&[SHORT, "--api-timeout=4"]).start().unwrap();
        let id = solo.sim.add_volume(&NewVolume::new("one", 1, "fra1")).unwrap();
        solo.sim.faults().add(fault);
        let client = plugin.client.clone();
        let call = thread::spawn(move || client.get_volume(&id));
        let line = told_of(&plugin, words);
        assert!(line.contains(" ControllerGetVolume "), "{line}");
        call.join().unwrap().unwrap();
    }
}

#[test]
fn a_stage_whose_disk_does_not_come_says_so() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[SHORT]).start().unwrap();
    let client = plugin.client.clone();
    let mut volume = Volume::mounted("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2", "ext4");
    volume.publish_context = crate::support::client::text_map(&[("dobs.csi.digitalocean.com/volume-name", "late")]);
    let staging = solo.path("csi/per-alloc/4b9c/late/rw");
    // It goes on for 30 s, and the plugin ends before that.
    let call = thread::spawn(move || client.stage(&volume, &staging));
    let line =
        told_of(&plugin, "still waiting for the disk of volume late: it is not usable on this droplet yet since ");
    for part in [" NodeStageVolume ", "volume=1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2", " name=late", " alloc=4b9c"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    drop(plugin);
    call.join().unwrap().unwrap_err();
}
