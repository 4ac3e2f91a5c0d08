//! The simulator seen from outside: through real sockets, against the samples, and with real loop devices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

const DROPLET: u64 = 3_164_444;
const VOLUME: &str = r#"{"name":"pvc-6c7d","size_gigabytes":10,"region":"fra1","description":"Created by DigitalOcean CSI driver","tags":["nomad"]}"#;

/// A reply as a client sees it.
#[derive(Debug)]
struct Seen {
    status: u16,
    head: String,
    text: String,
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// One request on a connection of its own; none if the connection ends without a whole reply.
fn send(sim: &Sim, token: &str, method: &str, path: &str, body: &str) -> Option<Seen> {
    let url = sim.api_url();
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).expect("the simulator listens");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).expect("the simulator reads requests");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    let (head, text) = reply.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let seen = Seen { status, head: head.to_owned(), text: text.to_owned() };
    let length = seen.header("content-length").map_or(Ok(0), str::parse).expect("a number");
    (text.len() == length).then_some(seen)
}

fn call(sim: &Sim, method: &str, path: &str, body: &str) -> Seen {
    send(sim, "dop_v1_simulated", method, path, body).unwrap_or_else(|| panic!("{method} {path} gets a reply"))
}

fn started() -> Sim {
    Sim::start(SimConfig::default()).expect("the simulator starts")
}

fn created(sim: &Sim) -> String {
    let reply = call(sim, "POST", "/v2/volumes", VOLUME);
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.json()["volume"]["id"].as_str().expect("a volume has an id").to_owned()
}

fn act(sim: &Sim, volume: &str, body: &Value) -> Seen {
    call(sim, "POST", &format!("/v2/volumes/{volume}/actions"), &body.to_string())
}

/// Polls an action until it is over and gives its status.
fn finished(sim: &Sim, posted: &Seen) -> String {
    assert_eq!(posted.status, 202, "{posted:?}");
    let path = format!("/v2/actions/{}", posted.json()["action"]["id"]);
    wait_for(|| {
        let status = call(sim, "GET", &path, "").json()["action"]["status"].clone();
        (status != "in-progress").then(|| status.as_str().expect("a status").to_owned())
    })
}

fn attached(sim: &Sim, volume: &str) {
    let posted = act(sim, volume, &json!({"type": "attach", "droplet_id": DROPLET}));
    assert_eq!(finished(sim, &posted), "completed");
}

fn detached(sim: &Sim, volume: &str) {
    let posted = act(sim, volume, &json!({"type": "detach", "droplet_id": DROPLET}));
    assert_eq!(finished(sim, &posted), "completed");
}

pub(super) fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < limit, "the condition never came true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_volume_lives_from_create_to_delete() {
    let sim = started();
    let volume = created(&sim);
    let path = format!("/v2/volumes/{volume}");
    attached(&sim, &volume);
    assert_eq!(call(&sim, "GET", &path, "").json()["volume"]["droplet_ids"], json!([DROPLET]));
    assert_eq!(
        call(&sim, "GET", &format!("/v2/droplets/{DROPLET}"), "").json()["droplet"]["volume_ids"],
        json!([volume])
    );
    assert_eq!(call(&sim, "DELETE", &path, "").status, 409);
    detached(&sim, &volume);
    let resize = act(&sim, &volume, &json!({"type": "resize", "size_gigabytes": 20, "region": "fra1"}));
    assert_eq!(finished(&sim, &resize), "completed");
    assert_eq!(sim.volume("pvc-6c7d").map(|volume| volume.size_gigabytes), Some(20));
    let deleted = call(&sim, "DELETE", &path, "");
    assert_eq!((deleted.status, deleted.text.as_str()), (204, ""));
    assert_eq!(call(&sim, "DELETE", &path, "").status, 404);
    assert_eq!(sim.calls().of("DELETE", "/v2/volumes/{id}"), 3);
    sim.close().expect("nothing went wrong");
}

#[test]
fn a_request_is_judged_in_the_documented_order() {
    let sim = started();
    let missing = "/v2/volumes/00000000-8f00-11f0-9a11-0a58ac14d1e2";
    let refused = send(&sim, "wrong", "GET", "/v2/nowhere", "").expect("a reply");
    assert_eq!((refused.status, &refused.json()["id"]), (401, &json!("unauthorized")));
    for (path, want) in
        [("/v2/nowhere", Refusal::NO_ROUTE), ("/v2/volumes/not-hex", Refusal::NO_ROUTE), (missing, Refusal::NOT_FOUND)]
    {
        let reply = call(&sim, "GET", path, "");
        assert_eq!((reply.status, &reply.json()["message"]), (404, &json!(want.message)), "{path}");
    }
    let reply = call(&sim, "POST", &format!("{missing}/actions"), "not json");
    assert_eq!(reply.status, 404, "the object comes before the validation");
    assert_eq!(call(&sim, "POST", "/v2/volumes", "not json").status, 400);
}

#[test]
fn the_rate_limit_refuses_a_burst_and_says_for_how_long() {
    let sim = started();
    sim.change_rules(|rules| rules.limits.requests_per_minute = 2);
    let first = call(&sim, "GET", "/v2/account", "");
    assert_eq!(first.header("ratelimit-limit"), Some("5000"));
    assert_eq!(first.header("ratelimit-remaining"), Some("4999"));
    assert_eq!(call(&sim, "GET", "/v2/account", "").status, 200);
    let refused = call(&sim, "GET", "/v2/account", "");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("60")));
    assert_same_shape(&refused.json(), include_str!("../fixtures/api/error_rate_limit.json"));
    sim.advance(Duration::from_secs(60));
    assert_eq!(call(&sim, "GET", "/v2/account", "").status, 200);
}

#[test]
fn pages_link_to_their_neighbours_and_keep_the_filters() {
    let sim = started();
    for name in ["a", "b", "c", "d", "e"] {
        sim.add_volume(&NewVolume::new(name, 1, "fra1")).expect("a good volume");
    }
    let pages = |path: &str| {
        let body = call(&sim, "GET", path, "").json();
        let names: Vec<String> = body["volumes"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|volume| volume["name"].as_str().expect("a name").to_owned())
            .collect();
        (names.concat(), body["links"].clone(), body["meta"]["total"].clone())
    };
    let link = |page: u32| json!(format!("https://api.digitalocean.com/v2/volumes?page={page}&per_page=2&region=fra1"));
    assert_eq!(
        pages("/v2/volumes?region=fra1&page=2&per_page=2"),
        (
            "cd".to_owned(),
            json!({"pages": {"first": link(1), "prev": link(1), "next": link(3), "last": link(3)}}),
            json!(5)
        )
    );
    assert_eq!(
        pages("/v2/volumes?region=fra1&page=3&per_page=2").1,
        json!({"pages": {"first": link(1), "prev": link(2)}})
    );
    assert_eq!(pages("/v2/volumes?per_page=200"), ("abcde".to_owned(), json!({}), json!(5)));
    assert_eq!(pages("/v2/volumes?name=b&region=fra1").0, "b");
    assert_eq!(pages("/v2/volumes?region=nyc1").2, json!(0));
}

#[test]
fn a_lost_request_has_no_effect_and_a_lost_reply_has() {
    let sim = started();
    let post = |fault: Fault| {
        sim.faults().add(fault.on("POST", "/v2/volumes"));
        send(&sim, "dop_v1_simulated", "POST", "/v2/volumes", VOLUME).map(|reply| reply.status)
    };
    assert_eq!(post(Fault::lost_request()), None);
    assert_eq!(post(Fault::html_page()), Some(502));
    assert_eq!(post(Fault::quota_used_up()), Some(403));
    assert_eq!(sim.volumes(), []);
    assert_eq!(post(Fault::lost_reply()), None);
    assert_eq!(sim.volumes().len(), 1);
    assert_eq!(post(Fault::reply_cut_short()), None, "409 is cut short as well");
    assert_eq!(post(Fault::late(Duration::from_millis(1))), Some(409));
    assert_eq!(post(Fault::html_page_after_effect()), Some(504));
    assert_eq!(sim.faults().outstanding(), 0);
}

#[test]
fn a_fault_spares_other_requests_and_runs_out() {
    let sim = started();
    sim.faults().add(Fault::unavailable().on("GET", "/v2/account").after(1).times(2));
    let statuses: Vec<u16> = (0..4).map(|_| call(&sim, "GET", "/v2/account", "").status).collect();
    assert_eq!(statuses, [200, 503, 503, 200]);
    sim.faults().add(Fault::burst_limit(Duration::from_secs(29)));
    let limited = call(&sim, "GET", "/v2/droplets", "");
    assert_eq!((limited.status, limited.header("retry-after")), (429, Some("29")));
    assert_eq!(limited.header("ratelimit-remaining"), Some("0"));
    sim.faults().add(Fault::hourly_limit(Duration::from_secs(3600)));
    assert_eq!(call(&sim, "GET", "/v2/droplets", "").header("retry-after"), None);
}

#[test]
fn a_hung_request_ends_with_its_connection() {
    let sim = started();
    sim.faults().add(Fault::hung_after_effect());
    std::thread::scope(|scope| {
        let sim_seen = &sim;
        let client = scope.spawn(|| send(sim_seen, "dop_v1_simulated", "POST", "/v2/volumes", VOLUME));
        wait_for(|| sim.volume("pvc-6c7d"));
        assert!(!client.is_finished(), "no reply comes");
        sim.close_connections();
        assert!(client.join().expect("the client thread").is_none());
    });
}

#[test]
fn actions_go_wrong_as_scripted() {
    let sim = started();
    let volume = created(&sim);
    let attach = json!({"type": "attach", "droplet_id": DROPLET.to_string()});
    sim.faults().add_action(ActionFault::errored().of(ActionKind::Attach));
    assert_eq!(finished(&sim, &act(&sim, &volume, &attach)), "errored");
    assert_eq!(sim.attached_to(&volume), None);

    sim.faults().add_action(ActionFault::unknown_at_first(2).on_volume(&volume));
    let posted = act(&sim, &volume, &attach);
    let path = format!("/v2/volumes/{volume}/actions/{}", posted.json()["action"]["id"]);
    let statuses: Vec<u16> = (0..3).map(|_| call(&sim, "GET", &path, "").status).collect();
    assert_eq!(statuses, [404, 404, 200]);
    assert_eq!(finished(&sim, &posted), "completed");
}

#[test]
fn switches_change_what_nobody_knows_for_certain() {
    let sim = started();
    sim.change_rules(|rules| {
        rules.switches = Switches {
            empty_arrays_are_null: true,
            resource_id_is_zero: true,
            resource_type_is_volume: true,
            resize_type_is_resize_volume: true,
            total_ignores_filters: true,
            large_page_is_refused: true,
            ..Switches::default()
        };
    });
    let volume = sim.add_volume(&NewVolume::new("a", 1, "fra1")).expect("a good volume");
    let shown = call(&sim, "GET", &format!("/v2/volumes/{volume}"), "").json();
    assert_eq!((&shown["volume"]["droplet_ids"], &shown["volume"]["tags"]), (&Value::Null, &Value::Null));
    let action = act(&sim, &volume, &json!({"type": "resize", "size_gigabytes": 2})).json();
    assert_eq!(action["action"]["resource_id"], 0);
    assert_eq!(action["action"]["resource_type"], "volume");
    assert_eq!(action["action"]["type"], "resize_volume");
    assert_eq!(call(&sim, "GET", "/v2/volumes?region=nyc1", "").json()["meta"]["total"], 1);
    assert_eq!(call(&sim, "GET", "/v2/volumes?per_page=201", "").status, 422);
}

#[test]
fn one_connection_carries_many_requests() {
    let sim = started();
    let url = sim.api_url();
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).expect("the simulator listens");
    let head = "authorization: Bearer dop_v1_simulated\r\n";
    let post = format!("POST /v2/volumes HTTP/1.1\r\n{head}content-length: {}\r\n\r\n{VOLUME}", VOLUME.len());
    let get = format!("GET /v2/account HTTP/1.1\r\n{head}connection: close\r\n\r\n");
    // In odd pieces, because nothing says that a request arrives whole or alone.
    for piece in (post + &get).as_bytes().chunks(97) {
        stream.write_all(piece).expect("the simulator reads requests");
    }
    let mut replies = String::new();
    stream.read_to_string(&mut replies).expect("two replies and the end");
    assert_eq!(replies.matches("HTTP/1.1 201 Created").count(), 1, "{replies}");
    assert_eq!(replies.matches("HTTP/1.1 200 OK").count(), 1, "{replies}");
}

#[test]
fn volumes_are_found_and_acted_on_by_name() {
    let sim = started();
    let volume = created(&sim);
    let by_name = |kind: &str| {
        let body = json!({"type": kind, "volume_name": "pvc-6c7d", "droplet_id": DROPLET, "region": "fra1"});
        call(&sim, "POST", "/v2/volumes/actions", &body.to_string())
    };
    assert_eq!(finished(&sim, &by_name("attach")), "completed");
    assert_eq!(sim.attached_to(&volume), Some(DROPLET));
    assert_eq!(finished(&sim, &by_name("detach")), "completed");
    assert_eq!(by_name("resize").status, 422);
    assert_eq!(call(&sim, "DELETE", "/v2/volumes?name=pvc-6c7d&region=nyc1", "").status, 404);
    assert_eq!(call(&sim, "DELETE", "/v2/volumes?name=pvc-6c7d&region=fra1", "").status, 204);
    assert_eq!(sim.volumes(), []);
}

#[test]
fn metadata_tells_who_the_droplet_is_and_can_be_down() {
    let sim = started();
    let path = |leaf: &str| format!("/droplets/{DROPLET}/metadata/{leaf}");
    assert_eq!(sim.metadata_url(DROPLET), format!("{}droplets/{DROPLET}", sim.api_url()));
    assert_eq!(send(&sim, "", "GET", &path("v1/id"), "").expect("a reply").text, "3164444");
    assert_eq!(call(&sim, "GET", &path("v1/region"), "").text, "fra1");
    assert_eq!(call(&sim, "GET", "/metadata/v1/hostname", "").text, "node-1");
    assert_eq!(call(&sim, "GET", &path("v1/dns"), "").status, 301);
    assert_eq!(call(&sim, "GET", &path("v1/nothing"), "").status, 404);
    sim.metadata_down(DROPLET, Duration::from_secs(60));
    assert!(send(&sim, "", "GET", &path("v1/id"), "").is_none());
    sim.advance(Duration::from_secs(60));
    assert_eq!(call(&sim, "GET", &path("v1/id"), "").status, 200);
}

#[test]
fn replies_have_the_fields_of_the_samples() {
    let sim = started();
    sim.change_rules(|rules| rules.times = Times::actions(Duration::from_secs(5)));
    let created = call(&sim, "POST", "/v2/volumes", VOLUME).json();
    assert_same_shape(&created, include_str!("../fixtures/api/volume.json"));
    let id = created["volume"]["id"].as_str().expect("an id").to_owned();
    let attach = json!({"type": "attach", "droplet_id": DROPLET});
    let action = act(&sim, &id, &attach).json();
    assert_same_shape(&action, include_str!("../fixtures/api/action.json"));
    for name in ["a", "b"] {
        sim.add_volume(&NewVolume::new(name, 1, "fra1")).expect("a good volume");
    }
    let busy = act(&sim, &sim.volume("a").expect("it is there").id, &attach);
    assert_eq!(busy.status, 422);
    assert_same_shape(&busy.json(), include_str!("../fixtures/api/error.json"));
    let page = call(&sim, "GET", "/v2/volumes?region=fra1&page=2&per_page=1", "").json();
    assert_same_shape(&page, include_str!("../fixtures/api/volumes.json"));
    let snapshot = call(&sim, "POST", &format!("/v2/volumes/{id}/snapshots"), r#"{"name":"snap-1"}"#).json();
    assert_same_shape(&snapshot, include_str!("../fixtures/api/snapshot.json"));
    let account = call(&sim, "GET", "/v2/account", "").json();
    assert_same_shape(&account, include_str!("../fixtures/api/account.json"));
    let tag = call(&sim, "GET", "/v2/tags/nomad", "").json();
    assert_same_shape(&tag, include_str!("../fixtures/api/tag.json"));
    let metadata = call(&sim, "GET", "/metadata/v1.json", "").json();
    assert_same_shape(&metadata, include_str!("../fixtures/api/metadata.json"));
}

/// Same keys and same kinds of values, however deep.
fn assert_same_shape(emitted: &Value, fixture: &str) {
    let fixture = serde_json::from_str(fixture).expect("the fixture is JSON");
    compare("", emitted, &fixture);
}

fn compare(at: &str, emitted: &Value, sample: &Value) {
    match (emitted, sample) {
        (Value::Object(emitted), Value::Object(sample)) => {
            let keys =
                |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<std::collections::BTreeSet<_>>();
            assert_eq!(keys(emitted), keys(sample), "keys at {at:?}");
            for (key, value) in emitted {
                compare(&format!("{at}.{key}"), value, &sample[key]);
            }
        }
        (Value::Array(emitted), Value::Array(sample)) => {
            // An empty array says nothing about its elements.
            for (emitted, sample) in emitted.iter().zip(sample) {
                compare(&format!("{at}[]"), emitted, sample);
            }
        }
        (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Null, Value::Null) => {}
        (emitted, sample) => panic!("at {at:?}: {emitted} is not of the kind of {sample}"),
    }
}

#[test]
fn tags_and_regions_are_listed_as_clients_ask_for_them() {
    let config = SimConfig { regions_without_storage: vec!["ams2".to_owned()], ..SimConfig::default() };
    let sim = Sim::start(config).expect("the simulator starts");
    created(&sim);
    assert_eq!(call(&sim, "POST", "/v2/tags", r#"{"name":"unused"}"#).status, 201);
    let tags = call(&sim, "GET", "/v2/tags?per_page=1", "").json();
    assert_eq!((&tags["meta"]["total"], &tags["tags"][0]["name"]), (&json!(2), &json!("nomad")));
    let whole = call(&sim, "GET", "/v2/tags", "").json();
    let sample: Value = serde_json::from_str(include_str!("../fixtures/api/tag.json")).expect("a sample");
    assert_same_shape(&json!({"tag": whole["tags"][0]}), &sample.to_string());
    assert_eq!(whole["tags"][0]["resources"]["volumes"]["count"], 1);
    let regions = call(&sim, "GET", "/v2/regions", "").json();
    let stores = |index: usize| {
        let features = regions["regions"][index]["features"].as_array().expect("features");
        (regions["regions"][index]["slug"].clone(), features.contains(&json!("storage")))
    };
    assert_eq!((stores(0), stores(1)), ((json!("fra1"), true), (json!("ams2"), false)));
}
