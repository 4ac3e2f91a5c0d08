//! What `GET /metrics` says after real calls, requests and failures.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;

use crate::PROGRAM;
use crate::debug_server::Debugged;
use crate::sim::Fault;
use crate::support::client::new_volume;
use crate::support::single_plugin::{SinglePlugin, until};

/// All series of a plugin with their values; the text has to be whole and of the promised format.
pub fn scrape(debugged: &Debugged) -> BTreeMap<String, f64> {
    let reply = debugged.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
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
            log.contains("CreateVolume blog] waiting_for=\"DigitalOcean's answer to POST /v2/volumes")
        });
        solo.sim.faults().clear();
        // What hangs already would hang until the plugin gives the request up.
        solo.sim.close_connections();
        call.join().unwrap().unwrap();
    });
    until("it has ended", || !scrape(&debugged).contains_key(hanging));
}
