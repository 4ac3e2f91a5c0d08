//! Every text that an error's kind is decided from, as DigitalOcean sent it.

use super::*;

/// Status, id and message as seen; where, and what they mean.
const SEEN: &[(u16, &str, &str, &str, ApiErrorKind)] = &[
    (400, "bad_request", "error parsing request body", "openapi bad_request.yml", ApiErrorKind::BadRequest),
    (401, "unauthorized", "Unable to authenticate you.", "openapi unauthorized.yml", ApiErrorKind::Unauthorized),
    (
        403,
        "forbidden",
        "You do not have permission to perform this action.",
        "openapi forbidden.yml",
        ApiErrorKind::Forbidden,
    ),
    (
        403,
        "forbidden",
        "failed to create volume: volume/snapshot capacity limit exceeded",
        "csi-digitalocean pull 481",
        ApiErrorKind::CapacityLimit,
    ),
    (
        403,
        "forbidden",
        "error resizing volume: volume/snapshot capacity limit exceeded",
        "csi-digitalocean issue 476",
        ApiErrorKind::CapacityLimit,
    ),
    (
        429,
        "too_many_requests",
        "failed to create volume: volume/snapshot capacity limit exceeded",
        "csi-digitalocean pull 654",
        ApiErrorKind::CapacityLimit,
    ),
    (
        404,
        "not_found",
        "The resource you requested could not be found.",
        "openapi not_found.yml",
        ApiErrorKind::NotFound,
    ),
    (
        404,
        "not_found",
        "The resource you were accessing could not be found.",
        "doctl issue 1037",
        ApiErrorKind::NotFound,
    ),
    (409, "conflict", "failed to create volume", "ansible issue 39655", ApiErrorKind::NameTaken),
    (409, "already_exists", "already exists", "terraform issue 17964", ApiErrorKind::NameTaken),
    (
        409,
        "conflict",
        "The request could not be completed due to a conflict.",
        "openapi conflict.yml",
        ApiErrorKind::Conflict,
    ),
    (409, "conflict", "attached volume cannot be deleted", "doctl issue 358", ApiErrorKind::VolumeAttached),
    (
        409,
        "conflict",
        "A volume that's attached to a Droplet cannot be deleted. Please detach it first before deleting.",
        "terraform-provider-digitalocean issue 19",
        ApiErrorKind::VolumeAttached,
    ),
    (
        422,
        "unprocessable_entity",
        "This volume is already attached",
        "csi-digitalocean controller.go",
        ApiErrorKind::AlreadyAttached,
    ),
    (
        422,
        "unprocessable_entity",
        "Droplet already has a pending event.",
        "terraform resource_volume_attachment.go",
        ApiErrorKind::PendingEvent,
    ),
    (422, "unprocessable_entity", "Attachment not found", "doctl issue 207", ApiErrorKind::AttachmentNotFound),
    (
        422,
        "unprocessable_entity",
        "cannot attach more volumes to the Droplet",
        "csi-digitalocean pull 573",
        ApiErrorKind::AttachLimit,
    ),
    (
        422,
        "unprocessable_entity",
        "cannot attach more than 7 volumes to a single Droplet",
        "csi-digitalocean controller.go",
        ApiErrorKind::AttachLimit,
    ),
    (
        422,
        "unprocessable_entity",
        "failed to create volume: invalid size specified",
        "csi-digitalocean pull 654",
        ApiErrorKind::InvalidSize,
    ),
    (
        422,
        "unprocessable_entity",
        "failed to create volume: invalid volume name. names must be lowercase and alphanumeric",
        "terraform pull 386",
        ApiErrorKind::InvalidName,
    ),
    (
        422,
        "unprocessable_entity",
        "Storage is not supported for this region",
        "libstorage issue 429",
        ApiErrorKind::NoStorageInRegion,
    ),
    (
        422,
        "unprocessable_entity",
        "request payload validation failed",
        "openapi unprocessable_entity.yml",
        ApiErrorKind::Unprocessable,
    ),
    (
        429,
        "too_many_requests",
        "failed to create snapshot: this operation is rate-limited - one request per 10m0s",
        "velero issue 6164",
        ApiErrorKind::SnapshotRateLimit { wait: Duration::from_secs(600) },
    ),
    (
        429,
        "too_many_requests",
        "API Rate limit exceeded.",
        "openapi description.yml",
        ApiErrorKind::RateLimit { wait: None },
    ),
    (
        429,
        "too_many_requests",
        "Too many requests",
        "csi-digitalocean issue 404",
        ApiErrorKind::RateLimit { wait: None },
    ),
    (500, "server_error", "Unexpected server-side error", "openapi server_error.yml", ApiErrorKind::Server),
    (500, "", "Looks like something went wrong", "doctl issue 205", ApiErrorKind::Server),
];

fn read(status: u16, body: &str) -> ApiError {
    ApiError::from_reply(status, body.as_bytes(), ReplyFacts::default())
}

#[test]
fn every_text_that_was_seen_has_its_kind() {
    for (status, id, message, origin, kind) in SEEN {
        let body = serde_json::json!({ "id": id, "message": message, "request_id": "4851a473" }).to_string();
        let error = read(*status, &body);
        assert_eq!(error.kind(), *kind, "{status} {message} ({origin})");
        let shouted = serde_json::json!({ "id": id, "message": message.to_uppercase() }).to_string();
        let expected =
            if message.contains("10m0s") { ApiErrorKind::SnapshotRateLimit { wait: SNAPSHOT_PERIOD } } else { *kind };
        assert_eq!(read(*status, &shouted).kind(), expected, "in capitals: {message}");
        assert_eq!(error.to_string(), format!("DigitalOcean answered {status}: {message} (request id 4851a473)"));
    }
}

#[test]
fn a_body_that_is_not_digitaloceans_is_a_failure_on_the_way_or_too_many_calls() {
    let html = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n</html>\r\n";
    let cases = [
        (301, ApiErrorKind::BadReply),
        // Not "gone", not "refused": this may be another server than the API.
        (400, ApiErrorKind::BadReply),
        (401, ApiErrorKind::BadReply),
        (403, ApiErrorKind::BadReply),
        (404, ApiErrorKind::BadReply),
        (409, ApiErrorKind::BadReply),
        (418, ApiErrorKind::BadReply),
        (999, ApiErrorKind::BadReply),
        (422, ApiErrorKind::BadReply),
        (429, ApiErrorKind::RateLimit { wait: None }),
        (500, ApiErrorKind::Server),
        (502, ApiErrorKind::Server),
        (504, ApiErrorKind::Server),
        (520, ApiErrorKind::Server),
    ];
    for body in
        [html, "", "null", "[]", "\"not_found\"", "{}", r#"{"id":null,"message":null}"#, r#"{"id":7}"#, "\u{0}\u{1}"]
    {
        for (status, kind) in cases {
            assert_eq!(read(status, body).kind(), kind, "{status} {body:?}");
        }
    }
}

#[test]
fn a_404_means_gone_only_in_digitaloceans_own_words() {
    let gone = "The resource you requested could not be found.";
    for (body, kind) in [
        (serde_json::json!({ "id": "not_found", "message": gone, "request_id": "4851a473" }), ApiErrorKind::NotFound),
        // Without a request id, as old replies are; and in other words than those that were seen.
        (serde_json::json!({ "id": "not_found", "message": gone }), ApiErrorKind::NotFound),
        (serde_json::json!({ "id": "NOT_FOUND", "message": "no such action" }), ApiErrorKind::NotFound),
        // Kong, AWS, Spring, Envoy, nginx' own JSON, and what is cut off or put into something else.
        (serde_json::json!({ "message": "no Route matched with those values" }), ApiErrorKind::BadReply),
        (serde_json::json!({ "message": "Not Found" }), ApiErrorKind::BadReply),
        (serde_json::json!({ "message": gone }), ApiErrorKind::BadReply),
        (serde_json::json!({ "id": "not_found" }), ApiErrorKind::BadReply),
        (serde_json::json!({ "id": "not_found", "message": "" }), ApiErrorKind::BadReply),
        (serde_json::json!({ "id": "not_found", "message": null }), ApiErrorKind::BadReply),
        (serde_json::json!({ "id": "", "message": gone }), ApiErrorKind::BadReply),
        (serde_json::json!({ "id": "route_not_found", "message": gone }), ApiErrorKind::BadReply),
        (serde_json::json!({ "id": 404, "message": gone }), ApiErrorKind::BadReply),
        (serde_json::json!({ "status": 404, "error": "Not Found", "path": "/v2/volumes/x" }), ApiErrorKind::BadReply),
        (serde_json::json!({ "error": { "id": "not_found", "message": gone } }), ApiErrorKind::BadReply),
        (serde_json::json!([{ "id": "not_found", "message": gone }]), ApiErrorKind::BadReply),
        (serde_json::json!("not_found"), ApiErrorKind::BadReply),
    ] {
        assert_eq!(read(404, &body.to_string()).kind(), kind, "{body}");
    }
    for body in [r#"{"id":"not_found","message":"The res"#, "404 page not found\n", "default backend - 404"] {
        assert_eq!(read(404, body).kind(), ApiErrorKind::BadReply, "{body}");
    }
}

#[test]
fn what_is_shown_is_one_bounded_line() {
    let error = read(502, "<html>\r\n<title>502 Bad Gateway</title>\r\n</html>");
    assert_eq!(
        error.to_string(),
        "DigitalOcean answered 502: no message, but: <html>  <title>502 Bad Gateway</title>  </html>"
    );
    let huge = serde_json::json!({ "id": "x\n".repeat(9999), "message": format!("a\n\u{1b}[2J{}", "ü".repeat(9999)) });
    let error = read(422, &huge.to_string());
    assert!(error.to_string().len() < 800 && !error.to_string().contains(char::is_control), "{error}");
    assert!(error.body_tail().len() <= 3 * TAIL_BYTES, "{}", error.body_tail().len());
    assert_eq!(read(503, "").to_string(), "DigitalOcean answered 503: no message");
}

#[test]
fn the_request_id_is_the_bodys_else_the_headers() {
    let facts = || ReplyFacts { request_id: Some("from-header".to_owned()), wait: None };
    let with = ApiError::from_reply(500, br#"{"message":"m","request_id":"from-body"}"#, facts());
    assert_eq!(with.to_string(), "DigitalOcean answered 500: m (request id from-body)");
    let without = ApiError::from_reply(500, br#"{"message":"m","request_id":""}"#, facts());
    assert_eq!(without.to_string(), "DigitalOcean answered 500: m (request id from-header)");
}

#[test]
fn the_wait_of_a_snapshot_is_read_from_its_text() {
    let waits = [
        ("10m0s", 600),
        ("1h0m0s", 3600),
        ("30s", 30),
        ("90s.", 90),
        ("a while", 600),
        ("", 600),
        ("99999999999999999999h", 600),
    ];
    for (text, secs) in waits {
        let body = serde_json::json!({ "message": format!("rate-limited - one request per {text}") }).to_string();
        assert_eq!(read(429, &body).wait(), Some(Duration::from_secs(secs)), "{text}");
    }
}

#[test]
fn a_rate_limit_carries_the_wait_of_its_headers() {
    let facts = ReplyFacts { request_id: None, wait: Some(Duration::from_secs(29)) };
    let body = br#"{"id":"too_many_requests","message":"API Rate limit exceeded."}"#;
    assert_eq!(ApiError::from_reply(429, body, facts).wait(), Some(Duration::from_secs(29)));
}

#[test]
fn fuzz_no_reply_is_shown_with_more_than_a_line_and_none_is_gone_in_other_words() {
    let seeds: Vec<Vec<u8>> = SEEN
        .iter()
        .map(|(_, id, message, ..)| serde_json::json!({ "id": id, "message": message }).to_string().into_bytes())
        .collect();
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    let words: [&[u8]; 6] = [b"not_found", b"\"id\":", b"\"message\":", b"one request per ", b"attached", b"null"];
    crate::fuzz::fuzz("api-errors", &seeds, &words, |bytes| {
        for status in [301, 400, 401, 403, 404, 409, 418, 422, 429, 500, 503, 999] {
            let error = ApiError::from_reply(status, bytes, ReplyFacts::default());
            let text = error.to_string();
            assert!(text.len() < 2000 && !text.contains(char::is_control), "{text:?}");
            let is_gone = error.kind() == ApiErrorKind::NotFound;
            assert!(!is_gone || String::from_utf8_lossy(bytes).to_lowercase().contains("not_found"), "{text}");
        }
    });
}
