//! The commands for people: what `doctor` finds of what is played in a simulated cluster, what `doctor --fix` changes
//! and what it leaves alone, and what `volumes` shows. On a real kernel this is in `root_health.rs`.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::PROGRAM;
use crate::sim::state::ActionKind;
use crate::sim::{ActionFault, DropletStatus, Fault, Refusal};
use crate::support::controllers::{A, B, ControllerHarness};
use crate::support::fake_nomad::{FakeNomad, Registration};
use crate::support::wait_for;

/// Something that happens to a cloud.
type Play = Box<dyn Fn(&ControllerHarness)>;

const DRIVER: &str = "dobs.csi.digitalocean.com";
const OWNER: &str = "prod";
/// What repairs without asking what is of that cluster.
const FIX: [&str; 4] = ["doctor", "--fix", "--yes", "--do-tag=prod"];

fn cloud() -> ControllerHarness {
    ControllerHarness::with_actions(Duration::from_millis(20))
}

/// Runs a command as a person on a laptop does, who has a token.
fn run(fleet: &ControllerHarness, args: &[&str], nomad: Option<&str>) -> Output {
    let mut command = fleet.command(Path::new(PROGRAM), args);
    if let Some(address) = nomad {
        command.env("NOMAD_ADDR", address);
    }
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

/// The reasons that `doctor` gives, and its exit code.
fn doctor(fleet: &ControllerHarness, args: &[&str], nomad: Option<&FakeNomad>) -> (Vec<String>, Option<i32>) {
    let url = nomad.map(FakeNomad::url);
    let output = run(fleet, &[&["doctor", "--json"], args].concat(), url.as_deref());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|err| panic!("{err}: {}", text(&output)));
    let findings = json["findings"].as_array().unwrap();
    for finding in findings {
        assert!(!finding["cure"].as_str().unwrap().is_empty(), "{finding}");
    }
    let reasons = findings.iter().map(|finding| finding["reason"].as_str().unwrap().to_owned()).collect();
    (reasons, output.status.code())
}

/// A volume of the cluster `prod` on a droplet.
fn own_on(fleet: &ControllerHarness, name: &str, droplet: u64) -> String {
    let id = fleet.volume_on(name, droplet);
    fleet.sim.tag_volume(&id, OWNER).unwrap();
    id
}

fn fail_detaches(fleet: &ControllerHarness, id: &str) {
    for _ in 0..2 {
        fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach).times(1));
        fleet.sim.detach(id, A).unwrap();
        fleet.rest();
    }
}

#[test]
fn each_breakage_at_digitalocean_is_found_with_its_cure_and_exit_code_1() {
    let on_dead = |fleet: &ControllerHarness| {
        fleet.volume_on("blog", A);
        fleet.sim.set_droplet_status(A, DropletStatus::Off);
    };
    let wedged = |fleet: &ControllerHarness| fail_detaches(fleet, &fleet.volume_on("blog", A));
    let unwanted = |fleet: &ControllerHarness| {
        let id = fleet.volume("blog");
        for _ in 0..2 {
            fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Attach).times(1));
            fleet.sim.attach(&id, A).unwrap();
            fleet.rest();
        }
    };
    let refused = |refusal: Refusal, method: &'static str, route: &'static str| {
        move |fleet: &ControllerHarness| fleet.sim.faults().add(Fault::refused(refusal).on(method, route).always())
    };
    let full = |fleet: &ControllerHarness| {
        fleet.volume("blog");
        fleet.sim.change_rules(|rules| rules.limits.volumes = 1);
    };
    let left = |fleet: &ControllerHarness| {
        let id = fleet.volume("blog");
        let snapshot = fleet.sim.create_tagged_snapshot(&id, "do-csi-clone-1", &["do-csi-temporary"]).unwrap();
        fleet.sim.backdate_snapshot(&snapshot, Duration::from_secs(7200));
    };
    let behind = |fleet: &ControllerHarness| fleet.sim.advance(Duration::from_secs(3600));
    let table: [(&str, Play, i32); 12] = [
        ("AttachKeepsFailing", Box::new(unwanted), 1),
        ("AttachedToDeadDroplet", Box::new(on_dead), 1),
        ("DetachKeepsFailing", Box::new(wedged), 1),
        ("TokenRejected", Box::new(refused(Refusal::UNAUTHORIZED, "GET", "/v2/account")), 1),
        ("ScopeMissing", Box::new(refused(Refusal::FORBIDDEN, "GET", "/v2/droplets")), 1),
        ("ScopeMissing", Box::new(refused(Refusal::FORBIDDEN, "POST", "/v2/volumes/{id}/actions")), 1),
        ("ScopeMissing", Box::new(refused(Refusal::FORBIDDEN, "GET", "/v2/snapshots")), 1),
        ("ScopeMissing", Box::new(refused(Refusal::FORBIDDEN, "POST", "/v2/volumes")), 1),
        ("ScopeMissing", Box::new(refused(Refusal::FORBIDDEN, "POST", "/v2/volumes/{id}/snapshots")), 1),
        ("ClockWrong", Box::new(behind), 1),
        ("QuotaExhausted", Box::new(full), 1),
        ("TemporarySnapshotLeft", Box::new(left), 0),
    ];
    for (want, play, code) in table {
        let fleet = cloud();
        assert_eq!(doctor(&fleet, &[], None), (vec![], Some(0)), "before {want}");
        play(&fleet);
        assert_eq!(doctor(&fleet, &[], None), (vec![want.to_owned()], Some(code)));
        let shown = text(&run(&fleet, &["doctor"], None));
        assert!(shown.contains(want) && shown.contains("Begin with this: "), "{shown}");
        assert!(!shown.contains('\u{1b}'), "no colours where nobody sees them: {shown}");
    }
}

#[test]
fn the_scope_for_tags_is_asked_about_where_volumes_get_one_and_no_question_changes_anything() {
    let fleet = cloud();
    let route = ("POST", "/v2/tags/{tag}/resources");
    fleet.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on(route.0, route.1).always());
    assert_eq!(doctor(&fleet, &[], None), (vec![], Some(0)));
    assert_eq!(doctor(&fleet, &["--do-tag=prod"], None), (vec!["ScopeMissing".to_owned()], Some(1)));
    fleet.sim.faults().clear();
    assert_eq!(doctor(&fleet, &["--do-tag=prod"], None), (vec![], Some(0)));
    assert!(fleet.sim.volumes().is_empty() && fleet.sim.snapshots().is_empty() && fleet.sim.actions().is_empty());
}

#[test]
fn of_many_volumes_not_all_actions_are_read_and_that_is_said() {
    let fleet = cloud();
    for number in 0..51 {
        fleet.volume(&format!("vol-{number}"));
    }
    let reads = |args: &[&str]| {
        fleet.sim.reset_calls();
        let shown = text(&run(&fleet, args, None));
        (fleet.sim.calls().of("GET", "/v2/volumes/{id}/actions"), shown)
    };
    // One more is asked about, of which there is no volume: the question is about a scope.
    let (count, shown) = reads(&["doctor"]);
    assert!(count == 51 && shown.contains("could not look at the latest actions of 1 volumes"), "{count}: {shown}");
    let (count, shown) = reads(&["doctor", "vol-50"]);
    assert!(count == 1 && !shown.contains("could not look"), "{count}: {shown}");
}

#[test]
fn volumes_that_are_not_told_are_not_counted() {
    let fleet = cloud();
    fleet.volume("blog");
    let shown = || text(&run(&fleet, &["doctor"], None));
    assert!(shown().contains("active, with 1 volumes"), "{}", shown());
    fleet.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on("GET", "/v2/volumes").always());
    assert!(shown().contains("active, which does not tell its volumes"), "{}", shown());
}

#[test]
fn a_wrong_proxy_is_named_with_its_variable() {
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("DIGITALOCEAN_ACCESS_TOKEN", "dop_v1_x").env("HTTP_PROXY", "http://127.0.0.1:1");
    // An address on this machine needs no proxy.
    command.args([
        "doctor",
        "--json",
        "--url=http://api.digitalocean.invalid",
        "--region=fra1",
        "--device-dir=/nowhere",
    ]);
    command.args(["--endpoint=/nowhere/csi.sock", "--metadata-url=http://127.0.0.1:1"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|err| panic!("{err}: {}", text(&output)));
    let findings = json["findings"].as_array().unwrap();
    let proxy = findings.iter().find(|one| one["reason"] == "ProxyInTheWay").unwrap_or_else(|| panic!("{json}"));
    assert!(proxy["message"].as_str().unwrap().contains("http://127.0.0.1:1 (HTTP_PROXY)"), "{proxy}");
    assert!(proxy["cure"].as_str().unwrap().contains("NO_PROXY"), "{proxy}");
    assert!(findings.iter().any(|one| one["reason"] == "ApiUnreachable"), "{json}");
}

#[test]
fn the_running_plugins_flags_need_not_be_given_again() {
    let fleet = cloud();
    let _plugin = fleet.controller(Path::new(PROGRAM), "running", &["--do-tag=prod"]);
    let socket = fleet.home.path().join("running.sock");
    // With the endpoint alone it is the plugin's API that is asked; the plugin's token is in its environment, and stays there.
    let ask = |more: &[&str], token: Option<&str>| {
        let mut command = Command::new(PROGRAM);
        command.env_clear().arg("doctor").arg(format!("--endpoint={}", socket.display())).args(more);
        command.args(["--metadata-url=http://127.0.0.1:1", "--device-dir=/nowhere"]);
        command.envs(token.map(|token| ("DIGITALOCEAN_ACCESS_TOKEN", token)));
        text(&command.stdin(Stdio::null()).output().unwrap())
    };
    let url = format!("--url={}", fleet.sim.api_url());
    let shown = ask(&[], Some("dop_v1_simulated"));
    assert!(shown.contains("as the running plugin has them") && shown.contains("--do-tag=prod"), "{shown}");
    assert!(shown.contains(&url) && shown.contains("DigitalOcean takes the one"), "{shown}");
    // What is given goes before.
    let shown = ask(&["--do-tag=other", "--url=http://127.0.0.1:1"], Some("dop_v1_simulated"));
    assert!(!shown.contains("prod") && shown.contains("ApiUnreachable"), "{shown}");
    let shown = ask(&[], None);
    assert!(shown.contains("no token is given"), "{shown}");
}

#[test]
fn what_the_running_plugin_may_touch_holds_for_the_commands_too_or_nothing_is_changed() {
    let fleet = cloud();
    let theirs = own_on(&fleet, "theirs", A);
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    let certificates = fleet.home.path().join("ca.pem");
    let cert = include_str!("../fixtures/tls/authority.pem");
    std::fs::write(&certificates, cert).unwrap();
    let ca = format!("--ca-file={}", certificates.display());
    let _plugin = fleet.controller(Path::new(PROGRAM), "running", &[&ca, "--do-tag=prod", "--only-tag=ours"]);
    let endpoint = format!("--endpoint={}", fleet.home.path().join("running.sock").display());
    let silent = format!("--endpoint={}", fleet.home.path().join("no.sock").display());
    let ask = |within: &[&str], args: &[&str]| {
        let given = fleet.command(Path::new(PROGRAM), &[]);
        let mut words = within.iter().chain([&PROGRAM]).chain(args);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(given.get_args().filter(|arg| *arg != silent.as_str())).arg(&endpoint);
        command.envs(given.get_envs().filter_map(|(name, value)| Some((name, value?))));
        text(&command.stdin(Stdio::null()).output().unwrap())
    };
    let (fix, keep) = (["doctor", "--fix", "--yes"], ["snapshot", "--volume=theirs", "--keep=daily=1"]);
    // A file that this process cannot read leaves out that flag, and no other.
    std::fs::remove_file(&certificates).unwrap();
    let shown = ask(&[], &fix);
    assert!(shown.contains("ca.pem") && shown.contains("(--only-tag)"), "{shown}");
    let shown = ask(&[], &keep);
    assert!(shown.contains("(--only-tag)"), "{shown}");
    // Nor is anything changed where the plugin's flags are not seen.
    let hidden = ["unshare", "--pid", "--fork", "--mount-proc"];
    if rustix::process::geteuid().is_root() {
        for args in [&fix[..], &keep] {
            let shown = ask(&hidden, args);
            assert!(shown.contains("nothing is changed, as it is not known"), "{shown}");
        }
    }
    fleet.rest();
    assert_eq!((fleet.sim.attached_to(&theirs), fleet.sim.snapshots().len()), (Some(A), 0));
}

#[test]
fn a_directory_without_its_mount_is_found_once_it_is_old_and_is_worse_with_files_in_it() {
    let fleet = cloud();
    let usage = "rw-file-system-single-node-writer";
    let directories =
        ["staging/default/blog", "per-alloc/7b1e/shop"].map(|place| fleet.home.path().join(place).join(usage));
    directories.iter().for_each(|directory| std::fs::create_dir_all(directory).unwrap());
    let found = || {
        let output = run(&fleet, &["doctor", "--json", "--droplet-id=3000001"], None);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let left = json["findings"].as_array().unwrap().iter().filter(|one| one["reason"] == "DirectoryLeftBehind");
        left.map(|one| (one["severity"].as_str().unwrap().to_owned(), one["cure"].as_str().unwrap().to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(found(), [], "a mount is made within the time of a call");
    std::fs::write(directories[1].join("data"), "of a task").unwrap();
    for directory in &directories {
        let status = Command::new("touch").args(["-d", "1 hour ago"]).arg(directory).status().unwrap();
        assert!(status.success());
    }
    let left = found();
    assert_eq!(
        left.iter().map(|(severity, _)| severity.as_str()).collect::<Vec<_>>(),
        ["warning", "notice"],
        "{left:?}"
    );
    assert!(
        left[0].1.contains("7b1e") && left[1].1.contains(&format!("rmdir {}", directories[0].display())),
        "{left:?}"
    );
}

#[test]
fn what_does_not_agree_with_nomad_is_found() {
    let fleet = cloud();
    let nomad = FakeNomad::start(A);
    let (held, free) = (fleet.volume_on("held", A), fleet.volume("free"));
    let one =
        |external_id, namespace, claims| Registration { id: "blog", namespace, external_id, provider: DRIVER, claims };
    let running: &[_] = &[("7b1e-1", "n1", "running")];
    let lost: &[_] = &[("7b1e-1", "n2", "unknown")];
    let table = [
        (vec![], vec![]),
        (vec![one(&held, "default", running)], vec![]),
        (vec![one(&held, "default", &[])], vec!["AttachedWithoutClaim"]),
        (vec![one(&held, "default", lost)], vec!["ClaimOnLostNode"]),
        (vec![one(&free, "default", running)], vec!["ClaimedWithoutAttachment"]),
        (vec![one("free", "default", &[])], vec!["ExternalIdIsAName"]),
        (vec![one("00000000-8f00-11f0-9a11-0a58ac14d1e2", "default", &[])], vec!["ExternalIdUnknown"]),
        (vec![one(&held, "a", running), one(&held, "b", &[])], vec!["HeldByOtherNamespace"]),
        (vec![Registration { provider: "other", ..one(&held, "default", running) }], vec!["WrongPluginId"]),
    ];
    for (volumes, want) in table {
        nomad.register(&volumes);
        let code = i32::from(!want.is_empty());
        let want: Vec<String> = want.into_iter().map(str::to_owned).collect();
        assert_eq!(doctor(&fleet, &[], Some(&nomad)), (want, Some(code)), "{volumes:?}");
    }
    // In a task Nomad sets the namespace of the task's job, and the volumes are in others, too.
    let mut command = fleet.command(Path::new(PROGRAM), &["doctor"]);
    command.envs([("NOMAD_ADDR", nomad.url().as_str()), ("NOMAD_NAMESPACE", "system"), ("NOMAD_ALLOC_ID", "7b1e")]);
    let shown = text(&command.stdin(Stdio::null()).output().unwrap());
    assert!(shown.contains("WrongPluginId") && shown.contains("every claim is seen"), "{shown}");
    // By the socket of a task's own API it is the same.
    let socket = fleet.home.path().join("api.sock");
    nomad.listen_on(&socket);
    let output = run(&fleet, &["doctor"], Some(&format!("unix://{}", socket.display())));
    assert!(text(&output).contains("WrongPluginId"), "{}", text(&output));
}

#[test]
fn what_cannot_be_looked_at_is_said_and_is_exit_code_2() {
    let fleet = cloud();
    let output = run(&fleet, &["doctor"], Some("http://127.0.0.1:1"));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("could not look at Nomad at http://127.0.0.1:1"), "{}", text(&output));
    let output = run(&fleet, &["doctor", "nobody"], None);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("no volume is called \"nobody\""), "{}", text(&output));
    for wrong in [&["doctor", "--nonsense"][..], &["volumes", "--watch=x"], &["doctor", "--yes"]] {
        let output = run(&fleet, wrong, None);
        assert_eq!((output.status.code(), text(&output).lines().count()), (Some(2), 1), "{}", text(&output));
    }
}

#[test]
fn what_a_person_gets_wrong_is_answered_with_what_is_right() {
    let fleet = cloud();
    let nomad = FakeNomad::start(A);
    fleet.volume("blog");
    let denied = ("/v1/volumes?type=csi&namespace=*", 403, serde_json::json!("Permission denied"));
    nomad.set(denied.0, denied.1, denied.2);
    let (right, silent) = (nomad.url(), "http://127.0.0.1:1");
    let table: [(&[&str], Option<&str>, &str); 11] = [
        (&["doctro"], None, "did you mean the command doctor?"),
        (&["volumes", "--watch", "5"], None, "--watch=5"),
        (&["volumes", "blog"], None, "do-csi-plugin doctor blog"),
        (&["doctor", "bolg"], None, "did you mean \"blog\"?"),
        (&["doctor", "--fix", "--json"], None, "--fix"),
        (
            &["snapshot", "--volume=bolg", "--keep=daily=1"],
            None,
            "a volume called \"bolg\" does not exist in this region",
        ),
        (&["doctor"], Some("127.0.0.1:4646"), "must begin with http://"),
        (&["doctor"], Some(silent), "see whether NOMAD_ADDR is right"),
        (&["doctor"], Some("unix:///nowhere/api.sock"), "see whether NOMAD_ADDR is right"),
        (&["doctor"], Some(&right.replace("http", "https")), "begins with http:// where Nomad does not speak TLS"),
        (&["doctor"], Some(&right), "NOMAD_TOKEN takes csi-list-volume"),
    ];
    for (args, address, want) in table {
        let output = run(&fleet, args, address);
        let shown = text(&output);
        assert!(shown.contains(want), "{args:?}: {shown}");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {shown}");
        assert!(shown.matches("could not look at").count() <= 1, "once is enough: {shown}");
    }
}

#[test]
fn without_a_token_or_with_a_wrong_one_nothing_is_said_to_be_well() {
    let fleet = cloud();
    fleet.volume("blog");
    let ask = |token: Option<&str>, args: &[&str]| {
        let mut command = fleet.command(Path::new(PROGRAM), args);
        command.env_remove("DIGITALOCEAN_ACCESS_TOKEN");
        command.envs(token.map(|token| ("DIGITALOCEAN_ACCESS_TOKEN", token)));
        let output = command.stdin(Stdio::null()).output().unwrap();
        (text(&output), output.status.code())
    };
    for args in [&["doctor"][..], &["doctor", "blog"], &["volumes"]] {
        let (shown, code) = ask(None, args);
        assert_eq!(code, Some(2), "{args:?}: {shown}");
        assert!(shown.contains("no token is given (DIGITALOCEAN_ACCESS_TOKEN, --token-file)"), "{args:?}: {shown}");
        assert!(!shown.contains("Nothing is wrong"), "{args:?}: {shown}");
    }
    for (args, want) in [(&["doctor"][..], 1), (&["doctor", "blog"], 2), (&["volumes"], 2)] {
        let (shown, code) = ask(Some("wrong"), args);
        assert_eq!(code, Some(want), "{args:?}: {shown}");
        let told = "the access token is from DIGITALOCEAN_ACCESS_TOKEN: it is wrong, expired or revoked";
        assert_eq!(shown.matches(told).count(), 1, "{args:?}: {shown}");
    }
}

#[test]
fn only_what_cannot_lose_data_is_repaired_and_only_when_it_is_agreed_to() {
    let fleet = cloud();
    let (dead, used, theirs) = (own_on(&fleet, "dead", A), own_on(&fleet, "used", B), fleet.volume_on("theirs", A));
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    let before = fleet.sim.actions().len();
    let asked = run(&fleet, &["doctor", "--fix", "--do-tag=prod"], None);
    assert!(text(&asked).contains("[y/N]") && text(&asked).contains("Nothing was done"), "{}", text(&asked));
    assert_eq!(fleet.sim.actions().len(), before);
    let fixed = run(&fleet, &FIX, None);
    assert!(text(&fixed).contains("Done: detach volume dead"), "{}", text(&fixed));
    fleet.rest();
    assert_eq!((fleet.sim.attached_to(&dead), fleet.sim.attached_to(&used)), (None, Some(B)));
    // Nothing says that this one is the plugin's.
    assert_eq!(fleet.sim.attached_to(&theirs), Some(A), "{}", text(&fixed));
    assert!(text(&run(&fleet, &["doctor"], None)).contains("nothing says that it is of this plugin"));
    // Somebody who registered it with the plugin's driver has said so.
    let nomad = FakeNomad::start(B);
    nomad.register(&[Registration {
        id: "theirs",
        namespace: "default",
        external_id: &theirs,
        provider: DRIVER,
        claims: &[],
    }]);
    run(&fleet, &FIX, Some(&nomad.url()));
    fleet.rest();
    assert_eq!(fleet.sim.attached_to(&theirs), None);
    assert_eq!(doctor(&fleet, &[], None), (vec![], Some(0)));
}

#[test]
fn before_a_repair_only_what_it_follows_from_is_read_again() {
    let fleet = cloud();
    let nomad = FakeNomad::start(A);
    let dead: Vec<String> = (0..3).map(|number| own_on(&fleet, &format!("dead-{number}"), A)).collect();
    let used: Vec<String> = (0..5).map(|number| fleet.volume_on(&format!("used-{number}"), B)).collect();
    let running: &[_] = &[("7b1e-1", "n1", "running")];
    let names: Vec<String> = (0..5).map(|number| format!("used-{number}")).collect();
    let registered = used.iter().zip(&names).map(|(id, name)| Registration {
        id: name,
        namespace: "default",
        external_id: id,
        provider: DRIVER,
        claims: running,
    });
    nomad.register(&registered.collect::<Vec<_>>());
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    let calls = |args: &[&str]| {
        fleet.sim.reset_calls();
        nomad.reset_calls();
        let shown = text(&run(&fleet, args, Some(&nomad.url())));
        fleet.rest();
        (shown, fleet.sim.calls(), nomad.calls())
    };
    let (_, look, look_at_nomad) = calls(&["doctor"]);
    let (shown, fix, fix_at_nomad) = calls(&FIX);
    for id in &dead {
        assert!(shown.contains("Done: detach volume dead") && fleet.sim.attached_to(id).is_none(), "{shown}");
    }
    for list in ["/v2/volumes", "/v2/droplets", "/v2/volumes/{id}/actions", "/v2/snapshots"] {
        assert_eq!(fix.of("GET", list), look.of("GET", list), "{list}: {fix}");
    }
    let of_droplet = fix.of("GET", "/v2/droplets/{droplet_id}");
    assert!((6..=9).contains(&of_droplet), "before each, and again when it is about to be sent: {fix}");
    let of_claims = |calls: &[String]| calls.iter().filter(|path| path.starts_with("/v1/volume/csi/")).count();
    assert_eq!(of_claims(&fix_at_nomad), of_claims(&look_at_nomad), "{fix_at_nomad:?}");
}

#[test]
fn what_cannot_be_looked_at_again_is_not_repaired_and_is_not_said_to_be_well() {
    let fleet = cloud();
    let id = own_on(&fleet, "blog", A);
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    fleet.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on("GET", "/v2/droplets/{droplet_id}").always());
    let shown = text(&run(&fleet, &FIX, None));
    assert!(shown.contains("could not be looked at again") && shown.contains(&format!("droplet {A}")), "{shown}");
    fleet.rest();
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
}

#[test]
fn a_droplet_that_the_list_alone_lacks_is_not_dead_and_keeps_its_volume() {
    let fleet = cloud();
    let id = own_on(&fleet, "used", A);
    let empty = r#"{"droplets":[],"links":{},"meta":{"total":0}}"#;
    fleet.sim.faults().add(Fault::answered(200, "application/json", empty).on("GET", "/v2/droplets").always());
    assert_eq!(doctor(&fleet, &[], None), (vec![], Some(0)));
    run(&fleet, &FIX, None);
    fleet.rest();
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
    // One that has no record of its own either is gone, and what it had is freed.
    fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach).times(1));
    fleet.sim.destroy_droplet(A);
    fleet.rest();
    assert_eq!(doctor(&fleet, &[], None), (vec!["AttachedToDeadDroplet".to_owned()], Some(1)));
    run(&fleet, &FIX, None);
    fleet.rest();
    assert_eq!(fleet.sim.attached_to(&id), None);
}

#[test]
fn a_leaked_attachment_is_detached_by_nobody_who_does_not_see_the_disk() {
    let fleet = cloud();
    let nomad = FakeNomad::start(A);
    let leaked = fleet.volume_on("leaked", A);
    nomad.register(&[Registration {
        id: "blog",
        namespace: "default",
        external_id: &leaked,
        provider: DRIVER,
        claims: &[],
    }]);
    // A task that has lost its claim may write to it: only the droplet knows. tests/it/root_health.rs looks there.
    let shown = text(&run(&fleet, &["doctor", "--fix", "--yes"], Some(&nomad.url())));
    assert!(shown.contains("AttachedWithoutClaim") && shown.contains("nothing uses the disk any more"), "{shown}");
    assert!(shown.contains("without a person's judgement"), "{shown}");
    fleet.rest();
    assert_eq!(fleet.sim.attached_to(&leaked), Some(A));
}

#[test]
fn a_volume_that_is_not_this_plugins_to_change_stays_on_a_droplet_that_is_off() {
    let fleet = cloud();
    let theirs = fleet.volume_on("theirs", A);
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    let shown = text(&run(&fleet, &["doctor", "--fix", "--yes", "--only-tag=ours"], None));
    fleet.rest();
    assert!(shown.contains("AttachedToDeadDroplet") && shown.contains("--only-tag"), "{shown}");
    assert_eq!(fleet.sim.attached_to(&theirs), Some(A));
}

#[test]
fn what_was_found_and_is_not_so_any_more_is_not_repaired() {
    let fleet = cloud();
    let id = own_on(&fleet, "blog", A);
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    let mut command = fleet.command(Path::new(PROGRAM), &[&FIX[..], &["--call-budget=30"]].concat());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    // It waits between its two looks; the droplet is on again before the second one.
    wait_for(Duration::from_secs(20), || (fleet.sim.calls().of("GET", "/v2/snapshots") > 0).then_some(())).unwrap();
    fleet.sim.set_droplet_status(A, DropletStatus::Active);
    let output = child.wait_with_output().unwrap();
    assert!(text(&output).contains("Not done, as it is not so any more"), "{}", text(&output));
    assert_eq!(fleet.sim.attached_to(&id), Some(A));
}

#[test]
fn one_volume_is_found_by_its_id_its_name_and_its_id_in_nomad() {
    let fleet = cloud();
    let nomad = FakeNomad::start(A);
    let id = fleet.volume_on("blog", A);
    fleet.volume_on("other", A);
    fleet.sim.set_droplet_status(A, DropletStatus::Off);
    let running: &[_] = &[("7b1e-1", "n1", "running")];
    nomad.register(&[Registration {
        id: "in-nomad",
        namespace: "default",
        external_id: &id,
        provider: DRIVER,
        claims: running,
    }]);
    for called in [id.as_str(), "blog", "in-nomad"] {
        let shown = text(&run(&fleet, &["doctor", called], Some(&nomad.url())));
        assert!(shown.contains("volume blog") && !shown.contains("volume other"), "{shown}");
        let end = format!("doctl compute volume-action detach {id} {A}");
        assert!(shown.contains(&end), "{shown}");
    }
}

#[test]
fn volumes_are_shown_with_where_they_are_and_who_uses_them() {
    let fleet = cloud();
    let nomad = FakeNomad::start(A);
    let (held, dead) = (fleet.volume_on("held", A), fleet.volume_on("dead", B));
    fleet.volume("free");
    fleet.sim.set_droplet_status(B, DropletStatus::Off);
    let running: &[_] = &[("7b1e-1", "n1", "running")];
    nomad.register(&[Registration {
        id: "x",
        namespace: "default",
        external_id: &held,
        provider: DRIVER,
        claims: running,
    }]);
    let shown = text(&run(&fleet, &["volumes"], Some(&nomad.url())));
    let line =
        |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {shown}"));
    for (name, words) in [
        ("NAME", &["SIZE", "DROPLET", "FINDINGS"][..]),
        ("held", &["1 GiB", "running", "blog/7b1e", "attach done"]),
        ("dead", &["off", "AttachedToDeadDroplet"]),
        ("free", &["1 GiB"]),
    ] {
        words.iter().for_each(|word| assert!(line(name).contains(word), "{name} {word}: {shown}"));
    }
    let output = run(&fleet, &["volumes", "--json"], Some(&nomad.url()));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let volumes = json["volumes"].as_array().unwrap();
    let of = |id: &str| volumes.iter().find(|volume| volume["id"] == id).unwrap();
    assert_eq!((of(&held)["droplets"][0].as_u64(), of(&held)["used_by"][0].as_str()), (Some(A), Some("blog/7b1e")));
    assert_eq!(of(&dead)["findings"][0]["reason"], "AttachedToDeadDroplet");
    assert_eq!(volumes.len(), 3);
    // Without Nomad and with the token alone: the cloud's half.
    let shown = text(&run(&fleet, &["volumes"], None));
    assert!(shown.contains("AttachedToDeadDroplet"), "{shown}");
}

#[test]
fn the_commands_are_in_nobodys_way() {
    let fleet = cloud();
    for (args, words) in [(&["doctor", "--help"][..], "--fix"), (&["volumes", "--help"], "--watch")] {
        let output = run(&fleet, args, None);
        assert!(output.status.success() && text(&output).contains(words), "{}", text(&output));
    }
    // Any other word is refused as before, and none is the plugin.
    let output = Command::new(PROGRAM).arg("docto").env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
