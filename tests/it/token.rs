//! The access token: replaced while the plugin runs, half written, refused, and too weak.

use std::fs;
use std::thread;
use std::time::Duration;

use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::Fault;
use crate::sim::refusal::Refusal;
use crate::support::client::{Client, Outcome, Volume};
use crate::support::single_plugin::{SinglePlugin, TOKEN};

fn create(client: &Client, name: &str) -> Outcome<()> {
    client.create_volume(name, 1 << 30, &Volume::mounted("", "ext4").capability).map(drop)
}

#[test]
fn a_token_that_is_replaced_a_moment_after_it_was_revoked_fails_no_call() {
    let solo = SinglePlugin::new(PROGRAM);
    let file = solo.path("token");
    fs::write(&file, "dop_v1_revoked\n").unwrap();
    let plugin = solo.launch_without_token(&["--token-file", file.to_str().unwrap()]).start().unwrap();
    let writer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(1500));
        // As a writer that is no careful one: empty, half of it, then the whole.
        fs::write(&file, "").unwrap();
        thread::sleep(Duration::from_millis(200));
        fs::write(&file, &TOKEN[..9]).unwrap();
        thread::sleep(Duration::from_millis(400));
        fs::write(&file, TOKEN).unwrap();
    });
    create(&plugin.client, "late").unwrap();
    writer.join().unwrap();
    let log = plugin.log();
    assert!(!log.contains("dop_v1") && !log.contains(TOKEN), "{log}");
}

#[test]
fn a_refused_token_is_named_by_where_it_is_from() {
    let solo = SinglePlugin::new(PROGRAM);
    let file = solo.path("token");
    fs::write(&file, "dop_v1_revoked").unwrap();
    for origin in ["DIGITALOCEAN_ACCESS_TOKEN", "--token", file.to_str().unwrap()] {
        let mut launch = solo.launch_without_token(&[]);
        match origin {
            "DIGITALOCEAN_ACCESS_TOKEN" => drop(launch.command.env(origin, "dop_v1_revoked")),
            "--token" => launch.args.push("--token=dop_v1_revoked".to_owned()),
            path => launch.args.push(format!("--token-file={path}")),
        }
        let plugin = launch.start().unwrap();
        // Twice: the second call does not wait for another token any more, and says the same.
        for _ in 0..2 {
            let refusal = create(&plugin.client, "refused").unwrap_err();
            assert_eq!(refusal.code, RpcStatusCode::UNAUTHENTICATED, "{refusal}");
            assert!(
                refusal.message.contains("the access token is from ") && refusal.message.contains(origin),
                "{refusal}"
            );
            assert!(!refusal.message.contains("dop_v1"), "{refusal}");
        }
    }
}

#[test]
fn a_token_that_is_too_weak_is_told_the_scope_that_it_lacks() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    for (method, scope) in [("POST", "block_storage:create"), ("GET", "block_storage:read")] {
        solo.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on(method, "/v2/volumes").always());
        let outcome =
            if method == "POST" { create(&plugin.client, "weak") } else { plugin.client.list_volumes(0, "").map(drop) };
        let refusal = outcome.unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::PERMISSION_DENIED, "{refusal}");
        let words = format!("the access token from DIGITALOCEAN_ACCESS_TOKEN most likely lacks the scope {scope}");
        assert!(refusal.message.contains(&words), "{refusal}");
        solo.sim.faults().clear();
    }
}
