//! What the way to the API does on a network and with servers that misbehave.

use std::net::TcpListener;

use super::*;
use crate::cloud::Cloud;
use crate::cloud::canned::{Canned, TOKEN, Turn, cloud_at, cloud_with, reply};
use crate::id::{DropletId, VolumeId};

const ID: &str = "1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2";
const ACCOUNT: &str = r#"{"account":{"status":"active"}}"#;

fn volume_id() -> VolumeId {
    VolumeId::parse(ID).unwrap()
}

fn droplet() -> DropletId {
    DropletId::parse("3164444").unwrap()
}

fn ask(cloud: &Cloud) -> ApiError {
    cloud.get_account().unwrap_err()
}

fn lost(sent: Delivery) -> ApiErrorKind {
    ApiErrorKind::Transport { sent }
}

#[test]
fn calls_share_one_connection_and_say_who_they_are() {
    let server = Canned::start(vec![reply(200, "", ACCOUNT); 3]);
    let cloud = server.cloud();
    for _ in 0..3 {
        cloud.clone().get_account().unwrap();
    }
    assert_eq!((server.seen().len(), server.connections()), (3, 1));
    let seen = &server.seen()[2];
    assert_eq!(seen.line, "GET /v2/account HTTP/1.1");
    for part in [&format!("authorization: bearer {TOKEN}"), "user-agent: do-csi-plugin/", "accept: application/json"] {
        assert!(seen.headers.contains(part), "{part} missing in {}", seen.headers);
    }
}

#[test]
fn a_base_url_may_have_a_path() {
    let server = Canned::start([reply(200, "", ACCOUNT)]);
    cloud_at(&format!("{}/proxy/do/", server.url)).get_account().unwrap();
    assert_eq!(server.seen()[0].line, "GET /proxy/do/v2/account HTTP/1.1");
}

#[test]
fn bodies_of_posts_and_deletes_arrive() {
    let server = Canned::start([reply(202, "", r#"{"action":{"id":7,"status":"in-progress"}}"#), reply(204, "", "")]);
    let cloud = server.cloud();
    cloud.attach(&volume_id(), droplet()).unwrap();
    cloud.untag_volume(&volume_id(), &crate::cloud::tag::Tag::parse("nomad").unwrap()).unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].line, format!("POST /v2/volumes/{ID}/actions HTTP/1.1"));
    assert_eq!(seen[0].body, r#"{"droplet_id":3164444,"type":"attach"}"#);
    assert_eq!(seen[1].line, "DELETE /v2/tags/nomad/resources HTTP/1.1");
    assert_eq!(seen[1].body, format!(r#"{{"resources":[{{"resource_id":"{ID}","resource_type":"volume"}}]}}"#));
}

#[test]
fn nobody_listening_means_that_nothing_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = cloud_at(&url).attach(&volume_id(), droplet()).unwrap_err();
    assert_eq!(error.kind(), lost(Delivery::NotSent), "{error}");
}

#[test]
fn a_name_that_does_not_resolve_means_that_nothing_was_sent() {
    let error = cloud_at("http://no-such-host.invalid").attach(&volume_id(), droplet()).unwrap_err();
    assert_eq!(error.kind(), lost(Delivery::NotSent), "{error}");
}

#[test]
fn a_server_that_does_not_speak_tls_means_that_nothing_was_sent() {
    let server = Canned::start([Turn::Drop]);
    let url = server.url.replace("http:", "https:");
    let error = cloud_at(&url).attach(&volume_id(), droplet()).unwrap_err();
    assert_eq!((error.kind(), server.seen().len()), (lost(Delivery::NotSent), 0), "{error}");
}

#[test]
fn a_server_that_does_not_accept_means_that_nothing_was_sent() {
    // A TLS handshake that nobody answers: the connect budget (1 s) covers it, and so does a nearer deadline.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let cloud = cloud_at(&format!("https://{}", listener.local_addr().unwrap()));
    for budget in [5000, 200] {
        let started = Instant::now();
        let within = cloud.until(started + Duration::from_millis(budget));
        let error = within.attach(&volume_id(), droplet()).unwrap_err();
        assert_eq!(error.kind(), lost(Delivery::NotSent), "{error}");
        assert!(started.elapsed() < Duration::from_millis(budget.min(1000) + 300), "{:?}", started.elapsed());
    }
}

#[test]
fn a_dropped_request_is_sent_once_and_may_have_had_an_effect() {
    let server = Canned::start([Turn::Drop]);
    let error = server.cloud().attach(&volume_id(), droplet()).unwrap_err();
    assert_eq!((error.kind(), server.seen().len()), (lost(Delivery::MaybeSent), 1), "{error}");
}

#[test]
fn a_dropped_request_on_a_kept_connection_is_sent_once_too() {
    let server = Canned::start([reply(200, "", ACCOUNT), Turn::Drop]);
    let cloud = server.cloud();
    cloud.get_account().unwrap();
    let error = cloud.attach(&volume_id(), droplet()).unwrap_err();
    assert_eq!((error.kind(), server.seen().len()), (lost(Delivery::MaybeSent), 2), "{error}");
}

#[test]
fn a_connection_closed_while_idle_is_replaced_unnoticed() {
    let Turn::Send(bytes) = reply(200, "", ACCOUNT) else { unreachable!() };
    let server = Canned::start([Turn::SendAndClose(bytes), reply(200, "", ACCOUNT)]);
    let cloud = server.cloud();
    cloud.get_account().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    cloud.get_account().unwrap();
    assert_eq!(server.connections(), 2);
}

#[test]
fn a_silent_server_is_left_after_the_budget() {
    let server = Canned::start([Turn::Hang(Duration::from_secs(5))]);
    let started = Instant::now();
    let error = server.cloud().detach(&volume_id(), droplet()).unwrap_err();
    assert_eq!(error.kind(), lost(Delivery::MaybeSent), "{error}");
    assert!((900..2000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[test]
fn no_call_outlives_its_deadline() {
    let server = Canned::start([Turn::Hang(Duration::from_secs(5)), reply(200, "", ACCOUNT)]);
    let cloud = server.cloud();
    let started = Instant::now();
    let error = ask(&cloud.until(started + Duration::from_millis(200)));
    assert_eq!(error.kind(), lost(Delivery::MaybeSent), "{error}");
    assert!(started.elapsed() < Duration::from_millis(700), "{:?}", started.elapsed());
    let error = ask(&cloud.until(Instant::now()));
    assert_eq!((error.kind(), server.seen().len()), (ApiErrorKind::NoTimeLeft, 1));
    cloud.get_account().unwrap();
}

#[test]
fn a_good_reply_that_breaks_off_may_have_had_an_effect() {
    let cut = b"HTTP/1.1 202 Accepted\r\ncontent-length: 500\r\n\r\n{\"action\":{\"id\":7".to_vec();
    let server = Canned::start([Turn::SendAndClose(cut)]);
    let error = server.cloud().attach(&volume_id(), droplet()).unwrap_err();
    assert_eq!(error.kind(), lost(Delivery::MaybeSent), "{error}");
    assert!(error.to_string().contains("202"), "{error}");
}

#[test]
fn a_refusal_that_breaks_off_is_still_a_refusal() {
    let cut = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 500\r\n\r\n<html>".to_vec();
    let server = Canned::start([Turn::SendAndClose(cut)]);
    let error = ask(&server.cloud());
    assert_eq!((error.kind(), error.body_tail()), (ApiErrorKind::Server, "<html>"), "{error}");
}

#[test]
fn a_web_page_is_no_reply() {
    let server = Canned::start([reply(200, "", "<html>hello</html>"), reply(200, "", ""), reply(200, "", "{}")]);
    let cloud = server.cloud();
    for _ in 0..3 {
        let error = ask(&cloud);
        assert_eq!((error.kind(), error.status()), (ApiErrorKind::BadReply, Some(200)), "{error}");
    }
}

#[test]
fn bytes_that_are_not_http_are_no_reply() {
    for bytes in [&b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..], b"\0\0\0\0", b"HTTP/1.1 abc\r\n\r\n", b""] {
        let server = Canned::start([Turn::SendAndClose(bytes.to_vec())]);
        let error = ask(&server.cloud());
        assert_eq!(error.kind(), lost(Delivery::MaybeSent), "{error}");
    }
}

#[test]
fn an_endless_reply_is_cut() {
    let ok = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    let bad = b"HTTP/1.1 500 Oops\r\n\r\n".to_vec();
    let head = b"HTTP/1.1 200 OK\r\nx-endless: ".to_vec();
    let server = Canned::start([Turn::Endless(ok), Turn::Endless(bad), Turn::Endless(head)]);
    let cloud = server.cloud();
    let error = ask(&cloud);
    assert_eq!(error.kind(), ApiErrorKind::BadReply, "{error}");
    assert!(error.to_string().contains("8 MiB"), "{error}");
    assert_eq!(ask(&cloud).kind(), ApiErrorKind::Server);
    assert_eq!(ask(&cloud).kind(), lost(Delivery::MaybeSent));
}

#[test]
fn a_redirect_is_not_followed_and_takes_the_token_nowhere() {
    let other = Canned::start([]);
    let server = Canned::start([reply(302, &format!("location: {}/v2/account\r\n", other.url), "")]);
    let error = ask(&server.cloud());
    assert_eq!((error.kind(), error.status()), (ApiErrorKind::BadReply, Some(302)), "{error}");
    assert_eq!(other.connections(), 0);
}

#[test]
fn a_burst_refusal_holds_back_later_calls_without_sending_them() {
    let body = r#"{"id":"too_many_requests","message":"API Rate limit exceeded."}"#;
    let headers = "ratelimit-limit: 5000\r\nratelimit-remaining: 0\r\nretry-after: 29\r\n";
    let server = Canned::start([reply(429, headers, body)]);
    let cloud = server.cloud();
    assert_eq!(ask(&cloud).kind(), ApiErrorKind::RateLimit { wait: Some(Duration::from_secs(29)) });
    let started = Instant::now();
    let error = cloud.attach(&volume_id(), droplet()).unwrap_err();
    assert!(
        matches!(error.kind(), ApiErrorKind::RateLimit { wait: Some(w) } if w > Duration::from_secs(25)),
        "{error}"
    );
    assert!(error.status().is_none(), "{error}");
    assert!(started.elapsed() < Duration::from_millis(200) && server.seen().len() == 1);
}

#[test]
fn a_short_stop_is_waited_out() {
    let server = Canned::start([reply(429, "retry-after: 1\r\n", "{}"), reply(200, "", ACCOUNT)]);
    let cloud = server.cloud();
    assert_eq!(ask(&cloud).kind(), ApiErrorKind::RateLimit { wait: Some(Duration::from_secs(1)) });
    let started = Instant::now();
    cloud.until(started + Duration::from_secs(20)).get_account().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
}

fn cloud_of(server: &Canned, rate_limit: &Arc<RateLimit>) -> Cloud {
    let token = Token::fixed(Secret::parse(TOKEN).unwrap(), "--token");
    Cloud::new(
        BaseUrl::parse(&server.url).unwrap(),
        Route::default(),
        token,
        Arc::clone(rate_limit),
        HttpBudgets::default(),
    )
}

#[test]
fn a_longer_stop_that_another_thread_was_told_is_waited_out_too() {
    let server = Canned::start([reply(200, "", ACCOUNT)]);
    let rate_limit = Arc::new(RateLimit::new(0.0));
    let refuse = |wait| {
        let place = rate_limit.wait(crate::cloud::rate_limit::Class::Look, Duration::from_secs(9));
        move || place.unwrap().refused(Some(Duration::from_millis(wait)))
    };
    let (first, second) = (refuse(200), refuse(500));
    let cloud = cloud_of(&server, &rate_limit);
    let started = Instant::now();
    first();
    let waiter = std::thread::spawn(move || cloud.get_account());
    std::thread::sleep(Duration::from_millis(50));
    second();
    waiter.join().unwrap().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(540), "{:?}", started.elapsed());
}

#[test]
fn requests_that_never_left_do_not_use_up_the_quota_and_the_network_is_named_first() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let cloud = cloud_at(&url);
    // Many more than a minute has.
    for _ in 0..400 {
        let error = cloud.attach(&volume_id(), droplet()).unwrap_err();
        assert_eq!(error.kind(), lost(Delivery::NotSent), "{error}");
        assert!(!error.to_string().contains("held back"), "{error}");
    }
    // Somebody else's 429 holds the next one back; both reasons are said.
    let rate_limit = Arc::new(RateLimit::new(0.001));
    let token = Token::fixed(Secret::parse(TOKEN).unwrap(), "--token");
    let base = BaseUrl::parse(&url).unwrap();
    let cloud = Cloud::new(base, Route::default(), token, rate_limit, HttpBudgets::default());
    ask(&cloud);
    let error = ask(&cloud);
    let text = error.to_string();
    assert_eq!(error.kind(), lost(Delivery::NotSent), "{text}");
    assert!(text.find("no connection").unwrap() < text.find("held back").unwrap(), "{text}");
}

#[test]
fn when_few_calls_are_left_lists_are_held_back_and_looks_and_attaches_are_not() {
    let headers = "ratelimit-limit: 5000\r\nratelimit-remaining: 110\r\n";
    let action = r#"{"action":{"id":7,"status":"in-progress"}}"#;
    let server = Canned::start([reply(202, headers, action), reply(202, "", action), reply(200, "", action)]);
    let cloud = server.cloud();
    cloud.attach(&volume_id(), droplet()).unwrap();
    let error = cloud.list_volumes(None, crate::cloud::page::Page::first()).unwrap_err();
    assert!(matches!(error.kind(), ApiErrorKind::RateLimit { .. }) && error.status().is_none(), "{error}");
    assert!(error.to_string().contains("own restraint"), "{error}");
    cloud.attach(&volume_id(), droplet()).unwrap();
    cloud.get_action(&volume_id(), crate::id::ActionId(7)).unwrap();
    assert_eq!(server.seen().len(), 3);
}

#[test]
fn as_many_connections_are_kept_as_there_are_callers() {
    let together = 64;
    let slow = |_| Turn::SendLate(Duration::from_millis(300), reply(200, "", ACCOUNT).bytes());
    let server = Canned::start((0..2 * together).map(slow));
    let rate_limit = Arc::new(RateLimit::new(0.0));
    // A higher limit, so that all go at once.
    let raised = RateHeaders { limit: Some(5_000_000), ..RateHeaders::default() };
    rate_limit.wait(crate::cloud::rate_limit::Class::Look, Duration::ZERO).unwrap().answered(&raised);
    let cloud = cloud_of(&server, &rate_limit);
    for _ in 0..2 {
        std::thread::scope(|scope| {
            for _ in 0..together {
                scope.spawn(|| cloud.get_account().unwrap());
            }
        });
    }
    assert_eq!((server.seen().len(), server.connections()), (2 * together, together));
}

#[test]
fn a_refusal_for_another_limit_stops_nobody() {
    let body = r#"{"message":"failed to create snapshot: this operation is rate-limited - one request per 10m0s"}"#;
    let server = Canned::start([reply(429, "ratelimit-remaining: 4816\r\n", body), reply(200, "", ACCOUNT)]);
    let cloud = server.cloud();
    let error = cloud.create_snapshot(&volume_id(), "snap-1", &[]).unwrap_err();
    assert_eq!(error.kind(), ApiErrorKind::SnapshotRateLimit { wait: Duration::from_secs(600) });
    let started = Instant::now();
    cloud.get_account().unwrap();
    assert!(started.elapsed() < Duration::from_millis(500));
}

#[test]
fn headers_about_the_rate_limit_are_read() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_785_578_000);
    let read = |lines: &[(&'static str, &str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.insert(*name, value.parse().unwrap());
        }
        rate_headers(&headers, now)
    };
    let all = read(&[
        ("ratelimit-limit", "5000"),
        ("ratelimit-remaining", "4816"),
        ("ratelimit-reset", "1785578400"),
        ("retry-after", "29"),
    ]);
    assert_eq!((all.limit, all.remaining), (Some(5000), Some(4816)));
    assert_eq!((all.reset_in, all.retry_after), (Some(Duration::from_secs(400)), Some(Duration::from_secs(29))));
    assert_eq!(read(&[("ratelimit-reset", "1402425459")]).reset_in, Some(Duration::ZERO));
    assert_eq!(read(&[]), RateHeaders::default());
    for junk in ["", "-1", "soon", "1e3", "99999999999999999999"] {
        let read = read(&[("ratelimit-limit", junk), ("ratelimit-reset", junk), ("retry-after", junk)]);
        assert_eq!(read, RateHeaders::default(), "{junk:?}");
    }
    assert_eq!(read(&[("ratelimit-reset", "18446744073709551615")]).reset_in, None);
}

#[test]
fn without_a_token_nothing_is_sent_and_a_new_one_is_used_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let server = Canned::start(vec![reply(200, "", ACCOUNT); 2]);
    let cloud = cloud_with(&server.url, Token::file(&path));
    let error = ask(&cloud);
    assert_eq!((error.kind(), server.connections()), (ApiErrorKind::NoToken, 0), "{error}");
    for token in ["first", "second"] {
        std::fs::write(&path, token).unwrap();
        cloud.get_account().unwrap();
        let sent = server.seen().pop().unwrap().headers;
        assert!(sent.contains(&format!("authorization: bearer {token}\r\n")), "{sent}");
    }
}

/// Keeps all that anything in this process logs, at every level.
struct Keeper(std::sync::Mutex<Vec<String>>);

/// A line, to which its keys and values are added.
struct Line(String);

impl<'kvs> log::kv::VisitSource<'kvs> for Line {
    fn visit_pair(&mut self, key: log::kv::Key<'kvs>, value: log::kv::Value<'kvs>) -> Result<(), log::kv::Error> {
        self.0.push_str(&format!(" {key}={value}"));
        Ok(())
    }
}

static KEEPER: Keeper = Keeper(std::sync::Mutex::new(Vec::new()));

impl log::Log for Keeper {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut line = Line(format!("{} {} {}", record.level(), record.target(), record.args()));
        record.key_values().visit(&mut line).unwrap();
        self.0.lock().unwrap().push(line.0);
    }

    fn flush(&self) {}
}

#[test]
fn no_log_line_at_any_level_has_the_token_and_debug_has_the_call() {
    log::set_logger(&KEEPER).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let server = Canned::start([reply(200, "ratelimit-remaining: 4816\r\n", ACCOUNT), Turn::Drop]);
    let cloud = server.cloud();
    cloud.get_account().unwrap();
    cloud.attach(&volume_id(), droplet()).unwrap_err();
    log::set_max_level(log::LevelFilter::Off);
    let lines = KEEPER.0.lock().unwrap().join("\n");
    assert!(!lines.contains(TOKEN), "{lines}");
    assert!(!format!("{cloud:?}").contains(TOKEN));
    // Other tests ask for the account at the same time, in the same log.
    let is_ours = |line: &str| line.contains("GET /v2/account status=200") && line.contains(" remaining=4816");
    let ours = lines.lines().find(|line| is_ours(line)).unwrap();
    assert!(ours.starts_with("DEBUG"), "{ours}");
    for line in lines.lines().filter(|line| line.contains("\"status\"") && line.contains("cloud")) {
        assert!(line.starts_with("TRACE"), "{line}");
    }
}

#[test]
fn the_date_of_a_reply_is_read_and_nothing_else_is_taken_for_one() {
    let read = |text| http_date(text).map(|at| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
    assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
    for odd in ["", "now", "1994-11-06T08:49:37Z"] {
        assert_eq!(read(odd), None, "{odd}");
    }
}
