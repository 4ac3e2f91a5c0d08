//! The typed calls against replies as DigitalOcean documents them, and as it really sends them.

use std::num::NonZeroU32;

use super::*;
use crate::cloud::action::{Action, ActionStatus};
use crate::cloud::canned::{Canned, Turn, reply};
use crate::cloud::droplet::DropletStatus;
use crate::cloud::metadata::{Metadata, MetadataError};
use crate::cloud::page::Page;
use crate::cloud::tag::Tag;
use crate::cloud::volume::NewVolume;
use crate::error::api::ApiErrorKind;
use crate::id::{ActionId, DropletId, SnapshotId, VolumeId, VolumeName};
use crate::region::Region;
use crate::size::Gib;

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/api/", $name))
    };
}

const ID: &str = "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";

fn id() -> VolumeId {
    VolumeId::parse(ID).unwrap()
}

fn droplet(number: u64) -> DropletId {
    DropletId::new(number).unwrap()
}

fn fra1() -> Region {
    Region::parse("fra1").unwrap()
}

fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).unwrap()
}

fn ok(body: &str) -> Turn {
    reply(200, "", body)
}

#[test]
fn a_documented_volume_is_read_whole() {
    let server = Canned::start([ok(fixture!("volume.json"))]);
    let volume = server.cloud().get_volume(&id()).unwrap();
    assert_eq!((volume.id, volume.name, volume.size), (id(), name("pvc-6c7d"), Gib(10)));
    assert_eq!((volume.region, volume.tags), (Some(fra1()), vec!["nomad".to_owned()]));
    assert_eq!(volume.description, "Created by DigitalOcean CSI driver");
    assert_eq!(server.seen()[0].line, format!("GET /v2/volumes/{ID} HTTP/1.1"));
}

#[test]
fn a_reply_about_another_volume_is_not_believed() {
    let server = Canned::start([ok(fixture!("volume.json"))]);
    let other = VolumeId::parse("506f78a4-e098-11e5-ad9f-000f53306ae1").unwrap();
    let error = server.cloud().get_volume(&other).unwrap_err();
    assert_eq!(error.kind(), ApiErrorKind::BadReply, "{error}");
}

#[test]
fn lists_are_read_leniently_and_ids_strictly() {
    let server = Canned::start([ok(fixture!("client_volumes_lenient.json"))]);
    let listed = server.cloud().list_volumes(None, Page::first()).unwrap();
    let names: Vec<_> = listed.items.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["old-one", "redis_0", "held"]);
    assert_eq!(listed.items[0].id.as_str(), "506f78a4-e098-11e5-ad9f-000f53306ae1");
    assert_eq!(listed.items[0].created_at, "2016-03-02T17:00:49.123456Z");
    assert!(listed.items[1].droplets.is_empty() && listed.items[1].region.is_none());
    assert!(listed.items[2].is_attached_to(droplet(3_164_444)) && !listed.items[2].is_attached_to(droplet(7)));
    assert_eq!((listed.next, listed.total), (None, None));
}

#[test]
fn lists_that_are_null_or_absent_are_empty() {
    for body in
        [r#"{"volumes":null}"#, "{}", r#"{"volumes":[],"links":{},"meta":{"total":0}}"#, r#"{"links":{"pages":null}}"#]
    {
        let server = Canned::start([ok(body)]);
        let listed = server.cloud().list_volumes(None, Page::first()).unwrap();
        assert!(listed.items.is_empty() && listed.next.is_none(), "{body}");
    }
}

#[test]
fn the_next_page_is_a_number_and_never_a_host() {
    let server = Canned::start([ok(fixture!("volumes.json")), ok("{}")]);
    let cloud = server.cloud();
    let page = Page::new(NonZeroU32::new(2).unwrap(), 1);
    let listed = cloud.list_volumes(Some(&fra1()), page).unwrap();
    let next = listed.next.unwrap();
    assert_eq!((next.number().get(), next.per_page(), listed.total), (3, 1, Some(3)));
    cloud.list_volumes(Some(&fra1()), next).unwrap();
    let lines: Vec<_> = server.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines[0], "GET /v2/volumes?page=2&per_page=1&region=fra1 HTTP/1.1");
    assert_eq!(lines[1], "GET /v2/volumes?page=3&per_page=1&region=fra1 HTTP/1.1");
}

#[test]
fn a_next_page_that_leads_nowhere_ends_the_list() {
    for link in
        ["?page=2", "?page=1", "?page=0", "?page=x", "?page=", "?", "", "?page=99999999999", "?xpage=9", "?per_page=9"]
    {
        let body = format!(r#"{{"volumes":[],"links":{{"pages":{{"next":"http://evil.example/v2/volumes{link}"}}}}}}"#);
        let server = Canned::start([ok(&body)]);
        let page = Page::new(NonZeroU32::new(2).unwrap(), 7);
        assert_eq!(server.cloud().list_volumes(None, page).unwrap().next, None, "{link}");
    }
}

#[test]
fn pages_are_as_long_as_allowed() {
    let lengths = [0, 1, 200, 201, u32::MAX].map(|n| Page::first().of(n).per_page());
    assert_eq!(lengths, [1, 1, 200, 200, 200]);
}

#[test]
fn only_the_very_name_and_region_is_found() {
    let entry = |name: &str, region: &str, last: char| {
        format!(
            r#"{{"id":"1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e{last}","name":"{name}","size_gigabytes":1,"region":{{"slug":"{region}"}}}}"#
        )
    };
    let all = [entry("blog-2", "fra1", '0'), entry("Blog", "fra1", '1'), entry("blog", "nyc1", '2')].join(",");
    let none = format!(r#"{{"volumes":[{all}]}}"#);
    let one = format!(r#"{{"volumes":[{all},{}]}}"#, entry("blog", "fra1", '3'));
    let odd = format!(r#"{{"volumes":[{all},{{"name":"blog"}}]}}"#);
    let server = Canned::start([ok(&none), ok(&one), ok(&odd)]);
    let cloud = server.cloud();
    assert_eq!(cloud.find_volume(&name("blog"), &fra1()).unwrap(), None);
    assert!(cloud.find_volume(&name("blog"), &fra1()).unwrap().unwrap().id.as_str().ends_with('3'));
    let unreadable = cloud.find_volume(&name("blog"), &fra1()).unwrap_err();
    assert_eq!(unreadable.kind(), ApiErrorKind::BadReply, "{unreadable}");
    assert_eq!(server.seen()[0].line, "GET /v2/volumes?name=blog&region=fra1&page=1&per_page=200 HTTP/1.1");
}

#[test]
fn any_name_can_be_looked_for_without_leaving_the_query() {
    let server = Canned::start([ok("{}")]);
    assert_eq!(server.cloud().find_volume(&name("a&b=c?#% ü"), &fra1()).unwrap(), None);
    assert_eq!(
        server.seen()[0].line,
        "GET /v2/volumes?name=a%26b%3Dc%3F%23%25%20%C3%BC&region=fra1&page=1&per_page=200 HTTP/1.1"
    );
}

#[test]
fn a_new_volume_is_asked_for_with_what_was_set_and_nothing_else() {
    let created = reply(201, "", fixture!("volume.json"));
    let server = Canned::start([created.clone(), created]);
    let cloud = server.cloud();
    let plain = NewVolume {
        name: name("blog"),
        size: Gib(16),
        region: fra1(),
        description: "for the blog".to_owned(),
        tags: Vec::new(),
        snapshot: None,
    };
    cloud.create_volume(&plain).unwrap();
    let snapshot = SnapshotId::parse("8eb4d51a-8f02-11f0-bdcd-0a58ac14d1e2").unwrap();
    let tags = vec![Tag::parse("nomad").unwrap()];
    cloud.create_volume(&NewVolume { tags, snapshot: Some(snapshot), ..plain }).unwrap();
    let bodies: Vec<_> = server.seen().into_iter().map(|seen| seen.body).collect();
    let sent = r#"{"description":"for the blog","name":"blog","region":"fra1","size_gigabytes":16"#;
    assert_eq!(bodies[0], format!("{sent}}}"));
    let more = r#","snapshot_id":"8eb4d51a-8f02-11f0-bdcd-0a58ac14d1e2","tags":["nomad"]}"#;
    assert_eq!(bodies[1], format!("{sent}{more}"));
}

#[test]
fn a_volume_is_deleted_by_an_empty_reply() {
    let gone = r#"{"id":"not_found","message":"The resource you requested could not be found."}"#;
    let server = Canned::start([reply(204, "", ""), reply(404, "", gone)]);
    let cloud = server.cloud();
    cloud.delete_volume(&id()).unwrap();
    assert_eq!(cloud.delete_volume(&id()).unwrap_err().kind(), ApiErrorKind::NotFound);
    assert_eq!(server.connections(), 1);
}

#[test]
fn actions_are_started_with_what_they_need() {
    let server = Canned::start(vec![reply(202, "", fixture!("action.json")); 3]);
    let cloud = server.cloud();
    let started = cloud.attach(&id(), droplet(7)).unwrap();
    let want = Action {
        id: ActionId(72_531_856),
        status: ActionStatus::InProgress,
        kind: "attach_volume".to_owned(),
        started_at: "2026-08-01T09:31:00Z".parse::<jiff::Timestamp>().ok().map(std::time::SystemTime::from),
    };
    assert!(want.started_at.is_some());
    assert_eq!(started, want);
    cloud.detach(&id(), droplet(7)).unwrap();
    cloud.resize(&id(), Gib(20), &fra1()).unwrap();
    let seen = server.seen();
    let bodies = [
        r#"{"droplet_id":7,"type":"attach"}"#,
        r#"{"droplet_id":7,"type":"detach"}"#,
        r#"{"region":"fra1","size_gigabytes":20,"type":"resize"}"#,
    ];
    for (seen, body) in seen.iter().zip(bodies) {
        assert_eq!(
            (seen.line.as_str(), seen.body.as_str()),
            (&*format!("POST /v2/volumes/{ID}/actions HTTP/1.1"), body)
        );
    }
}

#[test]
fn every_status_of_an_action_is_kept() {
    let status = |word: &str| {
        let server = Canned::start([ok(&format!(r#"{{"action":{{"id":9,"status":"{word}"}}}}"#))]);
        let status = server.cloud().get_action(&id(), ActionId(9)).unwrap().status;
        assert_eq!(server.seen()[0].line, format!("GET /v2/volumes/{ID}/actions/9 HTTP/1.1"));
        status
    };
    assert_eq!(status("in-progress"), ActionStatus::InProgress);
    assert_eq!(status("completed"), ActionStatus::Completed);
    assert_eq!(status("errored"), ActionStatus::Errored);
    assert_eq!(status("Completed?"), ActionStatus::Other("Completed?".to_owned()));
}

#[test]
fn an_action_that_is_not_the_one_asked_for_is_not_believed() {
    let server = Canned::start([ok(fixture!("action.json"))]);
    let error = server.cloud().get_action(&id(), ActionId(9)).unwrap_err();
    assert_eq!(error.kind(), ApiErrorKind::BadReply, "{error}");
}

#[test]
fn the_newest_actions_come_in_the_order_of_their_numbers() {
    let server = Canned::start([ok(fixture!("client_actions.json")), ok("{}")]);
    let cloud = server.cloud();
    let actions = cloud.newest_actions(&id()).unwrap();
    assert!(actions.is_sorted_by_key(|action| action.id.0) && actions.len() > 1);
    let latest = actions.into_iter().last().unwrap();
    assert_eq!((latest.id, latest.status), (ActionId(72_531_858), ActionStatus::Errored));
    assert_eq!(cloud.newest_actions(&id()).unwrap(), []);
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn the_newest_actions_are_found_in_either_order() {
    let page = |ids: &[u64]| {
        let actions: Vec<_> = ids.iter().map(|id| format!(r#"{{"id":{id},"status":"completed"}}"#)).collect();
        let links = r#"{"pages":{"next":"https://x/?page=2","last":"https://x/?page=3&per_page=20"}}"#;
        ok(&format!(r#"{{"actions":[{}],"links":{links}}}"#, actions.join(",")))
    };
    let newest_first = Canned::start([page(&[60, 59, 41])]);
    assert_eq!(newest_first.cloud().newest_actions(&id()).unwrap().last().unwrap().id, ActionId(60));
    // The last page is short, so the one before it is read with it; the first, which is far from it, does not count.
    let oldest_first = Canned::start([page(&[1, 2, 20]), page(&[41]), page(&[21, 22, 40])]);
    let ids: Vec<_> = oldest_first.cloud().newest_actions(&id()).unwrap().iter().map(|action| action.id.0).collect();
    assert_eq!(ids, [21, 22, 40, 41]);
    for (number, page) in [(1, 3), (2, 2)] {
        let line = format!("GET /v2/volumes/{ID}/actions?page={page}&per_page=20 HTTP/1.1");
        assert_eq!(oldest_first.seen()[number].line, line);
    }
    let full: Vec<u64> = (41..61).collect();
    let full = Canned::start([page(&[1, 2, 20]), page(&full)]);
    assert_eq!(full.cloud().newest_actions(&id()).unwrap().len(), 20);
}

#[test]
fn snapshots_are_read_and_those_of_droplets_left_out() {
    let server = Canned::start([ok(fixture!("snapshot.json")), ok(fixture!("client_snapshots.json")), ok("{}")]);
    let cloud = server.cloud();
    let young = cloud.get_snapshot(&SnapshotId::parse("8eb4d51a-8f02-11f0-bdcd-0a58ac14d1e2").unwrap()).unwrap();
    assert_eq!((young.name.as_str(), young.source, young.min_size), ("snap-1", Some(id()), Gib(10)));
    assert_eq!((young.billed_gib, young.regions), (0.0, vec![fra1()]));
    let listed = cloud.list_snapshots(Page::first().of(1)).unwrap();
    assert_eq!(listed.items.len(), 1);
    assert!((listed.items[0].billed_gib - 2.34).abs() < 1e-9);
    assert_eq!(listed.next.unwrap().number().get(), 2);
    cloud.list_snapshots_of(&id(), Page::first()).unwrap();
    let seen = server.seen();
    assert_eq!(seen[1].line, "GET /v2/snapshots?resource_type=volume&page=1&per_page=1 HTTP/1.1");
    assert_eq!(seen[2].line, format!("GET /v2/volumes/{ID}/snapshots?page=1&per_page=200 HTTP/1.1"));
}

#[test]
fn a_snapshot_is_taken_with_name_and_tags() {
    let server = Canned::start([reply(201, "", fixture!("snapshot.json")), reply(204, "", "")]);
    let cloud = server.cloud();
    let snapshot = cloud.create_snapshot(&id(), "snap-1", &[Tag::parse("nomad").unwrap()]).unwrap();
    cloud.delete_snapshot(&snapshot.id).unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].body, r#"{"name":"snap-1","tags":["nomad"]}"#);
    assert_eq!(seen[1].line, "DELETE /v2/volumes/snapshots/8eb4d51a-8f02-11f0-bdcd-0a58ac14d1e2 HTTP/1.1");
}

#[test]
fn a_droplet_is_read_with_every_status() {
    let server = Canned::start([ok(fixture!("client_droplet.json"))]);
    let read = server.cloud().get_droplet(droplet(3_164_444)).unwrap();
    assert_eq!(
        (read.name.as_str(), read.status, read.region.unwrap().as_str()),
        ("example.com", DropletStatus::Archive, "nyc3")
    );
    assert_eq!(read.volumes.len(), 1);
    for (word, status) in [
        ("new", DropletStatus::New),
        ("active", DropletStatus::Active),
        ("off", DropletStatus::Off),
        ("", DropletStatus::Other(String::new())),
        ("melting", DropletStatus::Other("melting".to_owned())),
    ] {
        let server = Canned::start([ok(&format!(r#"{{"droplet":{{"id":7,"status":"{word}"}}}}"#))]);
        assert_eq!(server.cloud().get_droplet(droplet(7)).unwrap().status, status);
    }
}

#[test]
fn an_account_without_a_limit_has_none() {
    let bodies = [fixture!("account.json"), r#"{"account":{"volume_limit":0}}"#, r#"{"account":{}}"#];
    let server = Canned::start(bodies.map(ok));
    let cloud = server.cloud();
    let limits = [(); 3].map(|()| cloud.get_account().unwrap().volume_limit);
    assert_eq!(limits, [Some(100), None, None]);
}

#[test]
fn tagged_snapshots_are_counted_where_the_reply_counts_them() {
    let without = |resources: &str| format!(r#"{{"tag":{{"name":"a","resources":{resources}}}}}"#);
    let unknown = ["null", "{}", r#"{"count":3}"#, r#"{"volume_snapshots":null}"#, r#"{"volume_snapshots":{}}"#];
    let none = without(r#"{"volume_snapshots":{"count":0}}"#);
    let bodies: Vec<String> = [fixture!("tag.json").to_owned(), none, r#"{"tag":{"name":"a"}}"#.to_owned()]
        .into_iter()
        .chain(unknown.map(without))
        .collect();
    let server = Canned::start(bodies.iter().map(|body| ok(body)));
    let (cloud, tag) = (server.cloud(), Tag::parse("do-csi-temporary").unwrap());
    let counts: Vec<_> = bodies.iter().map(|_| cloud.count_tagged_snapshots(&tag).unwrap()).collect();
    assert_eq!(counts, [Some(2), Some(0), None, None, None, None, None, None]);
    assert_eq!(server.seen()[0].line, "GET /v2/tags/do-csi-temporary HTTP/1.1");
}

#[test]
fn a_missing_tag_is_created_on_the_way() {
    let missing = r#"{"id":"not_found","message":"The resource you requested could not be found."}"#;
    let done = || reply(204, "", "");
    let server = Canned::start([done(), reply(404, "", missing), reply(201, "", "{}"), done()]);
    let (cloud, tag) = (server.cloud(), Tag::parse("k8s:abc").unwrap());
    cloud.tag_volume(&id(), &tag).unwrap();
    cloud.tag_volume(&id(), &tag).unwrap();
    let lines: Vec<_> = server.seen().into_iter().map(|seen| seen.line).collect();
    let put = "POST /v2/tags/k8s:abc/resources HTTP/1.1";
    assert_eq!(lines, [put, put, "POST /v2/tags HTTP/1.1", put]);
    assert_eq!(server.seen()[2].body, r#"{"name":"k8s:abc"}"#);
}

#[test]
fn replies_of_the_wrong_shape_are_refused_without_a_panic() {
    let bodies = [
        "null",
        "[]",
        "7",
        "{",
        r#"{"volume":null}"#,
        r#"{"volume":{}}"#,
        r#"{"volume":{"id":7}}"#,
        r#"{"volume":{"id":"x","name":"a","size_gigabytes":1}}"#,
        r#"{"volume":{"id":"1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2","name":"../a","size_gigabytes":1}}"#,
        r#"{"volume":{"id":"1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2","name":"a","size_gigabytes":-1}}"#,
        r#"{"volume":{"id":"1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2","name":"a","size_gigabytes":1,"droplet_ids":["x"]}}"#,
    ];
    let deep = "[".repeat(100_000);
    for body in bodies.into_iter().chain([deep.as_str()]) {
        let server = Canned::start([ok(body)]);
        let error = server.cloud().get_volume(&id()).unwrap_err();
        assert_eq!(error.kind(), ApiErrorKind::BadReply, "{body}");
        assert!(error.to_string().len() < 500, "{error}");
    }
}

#[test]
fn the_own_droplet_is_read_from_the_metadata_service() {
    let server = Canned::start([
        reply(200, "", "3164444\n"),
        reply(200, "", " fra1 "),
        reply(200, "", "<html>"),
        reply(404, "", ""),
    ]);
    let metadata = Metadata::new(BaseUrl::parse(&format!("{}/", server.url)).unwrap());
    assert_eq!(metadata.droplet_id().unwrap(), droplet(3_164_444));
    assert_eq!(metadata.region().unwrap(), fra1());
    assert!(matches!(metadata.droplet_id().unwrap_err(), MetadataError::Unusable { .. }));
    let refused = metadata.region().unwrap_err();
    assert!(matches!(refused, MetadataError::Refused { status: 404, .. }), "{refused}");
    let seen = server.seen();
    assert_eq!(
        (seen[0].line.as_str(), seen[1].line.as_str()),
        ("GET /metadata/v1/id HTTP/1.1", "GET /metadata/v1/region HTTP/1.1")
    );
    assert!(!seen[0].headers.contains("authorization"), "the token is for the API alone");
}

#[test]
fn what_time_it_is_is_believed_of_good_replies_alone() {
    let date = "date: Sat, 28 Nov 2026 03:00:00 GMT\r\n";
    let page = reply(503, "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n", "a gateway's");
    let server = Canned::start([page.clone(), reply(200, date, "{}"), page]);
    let cloud = server.cloud();
    let look = || cloud.list_volumes(None, Page::first()).is_ok();
    assert!(!look());
    assert_eq!(cloud.last_clock(), None);
    assert!(look());
    let told = cloud.last_clock().unwrap();
    assert!(!look());
    assert_eq!(cloud.last_clock(), Some(told));
}
