//! What `GET /metrics` says after real calls, requests and failures.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use crate::PROGRAM;
use crate::debug_server::{Debugged, send};
use crate::sim::{ActionFault, ActionKind, DropletStatus, Fault, Refusal};
use crate::support::client::{new_volume, publish, unpublish};
use crate::support::single_plugin::{DROPLET, SinglePlugin, TOKEN, until};
use crate::support::wait_for;

/// All series of a plugin with their values; the text has to be whole and of the promised format.
pub fn scrape(debugged: &Debugged) -> BTreeMap<String, f64> {
    scrape_at(&debugged.address)
}

/// As [`scrape`], of whatever answers on an address.
pub fn scrape_at(address: &str) -> BTreeMap<String, f64> {
    let reply = send(address, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
    let (head, text) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"), "{head}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line:?}")))
    });
    let series: Vec<(String, f64)> = series.collect();
    let by_name: BTreeMap<String, f64> = series.iter().cloned().collect();
    assert_eq!(by_name.len(), series.len(), "a series comes twice: {text}");
    by_name
}

#[test]
fn calls_requests_and_the_quota_are_counted_by_what_became_of_them() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::launch(|flag| solo.launch(&[flag]));
    let client = &debugged.plugin.client;
    let created = |series: &BTreeMap<String, f64>, code: &str| {
        let name = format!("do_csi_call_duration_seconds_count{{method=\"CreateVolume\",code=\"{code}\"}}");
        series.get(&name).copied().unwrap_or_default()
    };
    assert_eq!(created(&scrape(&debugged), "OK"), 0.0);
    client.create(&new_volume("blog", 1 << 30)).unwrap();
    let after = scrape(&debugged);
    assert_eq!(created(&after, "OK"), 1.0, "{after:#?}");
    let posts = "do_csi_api_requests_total{method=\"POST\",route=\"/v2/volumes\",status=\"201\"}";
    assert_eq!(after.get(posts), Some(&1.0), "{after:#?}");
    let limit = after["do_csi_api_quota_limit"];
    assert!(limit > 0.0 && after["do_csi_api_quota_remaining"] < limit, "{after:#?}");
    assert!(after.keys().all(|name| !name.contains("blog")), "no volume's name is a label of a counter: {after:#?}");

    client.create(&new_volume("", 1 << 30)).unwrap_err();
    solo.sim.faults().add(Fault::lost_reply().on("GET", "/v2/volumes").times(1));
    client.create(&new_volume("blog", 1 << 30)).unwrap();
    let after = scrape(&debugged);
    assert_eq!(created(&after, "INVALID_ARGUMENT"), 1.0, "{after:#?}");
    let lost = "do_csi_api_requests_total{method=\"GET\",route=\"/v2/volumes\",status=\"none\"}";
    assert_eq!(after.get(lost), Some(&1.0), "{after:#?}");
    assert_eq!(after["do_csi_oldest_call_age_seconds"], 0.0);
    assert!(!after.keys().any(|name| name.starts_with("do_csi_calls_running{")), "{after:#?}");
}

#[test]
fn a_call_that_hangs_is_seen_with_its_age_before_it_ends() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::launch(|flag| solo.launch(&[flag]));
    solo.sim.faults().add(Fault::hung().on("POST", "/v2/volumes").always());
    let hanging = "do_csi_calls_running{method=\"CreateVolume\"}";
    std::thread::scope(|scope| {
        let call = scope.spawn(|| debugged.plugin.client.create(&new_volume("blog", 1 << 30)));
        until("the call is seen", || scrape(&debugged).get(hanging) == Some(&1.0));
        until("it grows old", || scrape(&debugged)["do_csi_oldest_call_age_seconds"] > 0.5);
        // The one table of running calls says it in the log too, and what the call waits for.
        debugged.plugin.signal(Signal::SIGUSR1).unwrap();
        until("the report says so", || {
            let log = debugged.plugin.log();
            log.contains("CreateVolume name=blog] asking DigitalOcean: POST /v2/volumes since ")
        });
        solo.sim.faults().clear();
        // What hangs already would hang until the plugin gives the request up.
        solo.sim.close_connections();
        call.join().unwrap().unwrap();
    });
    until("it has ended", || !scrape(&debugged).contains_key(hanging));
}

#[test]
fn a_controller_finds_what_is_wrong_in_its_region() {
    let solo = SinglePlugin::new(PROGRAM);
    let flags = ["--mode=controller", "--region=fra1", "--call-budget=5"];
    let debugged = Debugged::launch(|flag| solo.launch(&[&[flag], &flags[..]].concat()));
    let client = &debugged.plugin.client;
    let id = client.create(&new_volume("blog", 1 << 30)).unwrap().volume_id;
    publish(client, &id, DROPLET).unwrap();
    // One that cannot be detached, as this controller has seen.
    let wedged = client.create(&new_volume("wedged", 1 << 30)).unwrap().volume_id;
    publish(client, &wedged, DROPLET).unwrap();
    solo.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach).times(100));
    unpublish(client, &wedged, DROPLET).unwrap_err();
    let taken = solo.sim.create_tagged_snapshot(&id, "nightly", &["do-csi-scheduled"]).unwrap();
    solo.sim.backdate_snapshot(&taken, Duration::from_secs(86_400));
    solo.sim.set_droplet_status(DROPLET, DropletStatus::Off);
    let dead = "do_csi_findings{reason=\"AttachedToDeadDroplet\",severity=\"warning\"}";
    assert_eq!(scrape(&debugged).get(dead), Some(&0.0));
    // It looks half a minute after its start.
    let is_found = || (scrape(&debugged).get(dead) == Some(&2.0)).then_some(());
    assert!(wait_for(Duration::from_secs(60), is_found).is_some(), "{}", debugged.plugin.log());
    assert!(scrape(&debugged)["do_csi_region_findings_age_seconds"] < 60.0);
    let newest = format!("do_csi_scheduled_snapshot_timestamp_seconds{{volume=\"{id}\",name=\"blog\"}}");
    let is_told = || scrape(&debugged).get(&newest).copied();
    let told = wait_for(Duration::from_secs(30), is_told).unwrap_or_else(|| panic!("{}", debugged.plugin.log()));
    let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - told;
    assert!((86_300.0..86_700.0).contains(&age), "{age}");
    let (_, page) = debugged.get("/");
    let command = format!("doctl compute volume-action detach {id} {DROPLET}");
    assert!(page.contains("AttachedToDeadDroplet") && page.contains(&command), "{page}");
    let keeps_failing = scrape(&debugged)["do_csi_findings{reason=\"DetachKeepsFailing\",severity=\"critical\"}"];
    assert!(keeps_failing == 1.0 && page.contains("DetachKeepsFailing"), "{page}");
    let reply = client.list_health(0, "").unwrap();
    assert!(format!("{reply:?}").contains("DetachKeepsFailing"), "{reply:?}");
}

#[test]
fn a_controller_whose_token_is_not_taken_any_more_says_so() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::launch(|flag| solo.launch(&[flag, "--mode=controller", "--region=fra1"]));
    solo.sim.faults().add(Fault::refused(Refusal::UNAUTHORIZED).always());
    let rejected = "do_csi_findings{reason=\"TokenRejected\",severity=\"critical\"}";
    assert_eq!(scrape(&debugged).get(rejected), Some(&0.0));
    let is_found = || (scrape(&debugged).get(rejected) == Some(&1.0)).then_some(());
    assert!(wait_for(Duration::from_secs(60), is_found).is_some(), "{}", debugged.plugin.log());
    assert!(debugged.get("/").1.contains("TokenRejected"));
}

#[test]
fn a_controller_tells_of_a_scope_that_its_token_lacks_and_of_a_limit_that_is_reached() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::launch(|flag| solo.launch(&[flag, "--mode=controller", "--region=fra1"]));
    debugged.plugin.client.create(&new_volume("blog", 1 << 30)).unwrap();
    solo.sim.change_rules(|rules| rules.limits.volumes = 1);
    solo.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on("GET", "/v2/droplets").always());
    let count = |reason: &str| {
        let series = scrape(&debugged);
        series.iter().filter(|(name, _)| name.contains(&format!("\"{reason}\""))).map(|(_, count)| *count).sum::<f64>()
    };
    let is_found = || (count("ScopeMissing") == 1.0 && count("QuotaExhausted") == 1.0).then_some(());
    assert!(wait_for(Duration::from_secs(60), is_found).is_some(), "{}", debugged.plugin.log());
}

#[test]
fn what_happens_to_volumes_is_counted_and_on_the_page_and_no_answer_has_a_secret() {
    let solo = SinglePlugin::new(PROGRAM);
    let debugged = Debugged::launch(|flag| solo.launch(&[flag]));
    let client = &debugged.plugin.client;
    let page = || {
        let (status, page) = debugged.get("/");
        assert_eq!(status, 200);
        page
    };
    until("the droplet is known", || page().contains(&format!("Droplet {DROPLET} in ")));
    let action = |kind: &str, outcome: &str| format!("do_csi_actions_total{{kind=\"{kind}\",outcome=\"{outcome}\"}}");
    let event = |kind: &str| format!("do_csi_events_total{{event=\"{kind}\"}}");
    let before = scrape(&debugged);
    for series in [action("attach", "completed"), action("detach", "errored"), event("attached"), event("failed")] {
        assert_eq!(before.get(&series), Some(&0.0), "it is there before it happens: {series}");
    }
    assert!(page().contains("None has completed since the plugin was started."));

    let id = client.create(&new_volume("blog", 1 << 30)).unwrap().volume_id;
    publish(client, &id, DROPLET).unwrap();
    unpublish(client, &id, DROPLET).unwrap();
    publish(client, "no volume's id", DROPLET).unwrap_err();
    let after = scrape(&debugged);
    for series in [action("attach", "completed"), action("detach", "completed"), event("attached"), event("detached")] {
        assert_eq!(after.get(&series), Some(&1.0), "{series}: {after:#?}");
    }
    assert_eq!(after.get(&event("failed")), Some(&1.0), "{after:#?}");
    assert_eq!(after.get("do_csi_ready"), Some(&1.0));
    assert_eq!(after.get("do_csi_action_duration_seconds_count{kind=\"attach\"}"), Some(&1.0), "{after:#?}");
    assert_eq!(after.get("do_csi_findings{reason=\"AttachedToDeadDroplet\",severity=\"warning\"}"), Some(&0.0));

    let page = page();
    for part in [
        format!("volume {id} to droplet {DROPLET}, by action "),
        format!("volume {id} from droplet {DROPLET}, by action "),
        "How long attaches took (1)".to_owned(),
        "<svg ".to_owned(),
        "of 5000 requests are left".to_owned(),
        "no volume&#39;s id".to_owned(),
    ] {
        assert!(page.contains(&part), "{part}: {page}");
    }
    for path in ["/", "/metrics", "/health", "/readyz", "/livez", "/nothing"] {
        let answer = debugged.send(format!("GET {path} HTTP/1.1\r\nauthorization: Bearer x\r\n\r\n").as_bytes());
        assert!(!answer.contains(TOKEN) && !answer.contains("dop_v1"), "{path}: {answer}");
    }
}
