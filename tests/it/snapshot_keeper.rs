//! `do-csi-plugin snapshot`, as a periodic job runs it: what it takes, what it keeps, what it deletes, and what it leaves alone.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::PROGRAM;
use crate::sim::{Fault, Refusal};
use crate::support::client::new_volume;
use crate::support::controllers::ControllerHarness;

const MARK: &str = "do-csi-scheduled";
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

fn cloud() -> ControllerHarness {
    ControllerHarness::with_actions(Duration::from_millis(20))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

/// Runs the command; gives its exit code and what it said.
fn snapshot(fleet: &ControllerHarness, args: &[&str]) -> (Option<i32>, String) {
    let mut command = fleet.command(Path::new(PROGRAM), &[&["snapshot"], args].concat());
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), text(&output))
}

/// A snapshot that is there, so old.
fn old(fleet: &ControllerHarness, volume: &str, name: &str, tags: &[&str], seconds: u64) -> String {
    let id = fleet.sim.create_tagged_snapshot(volume, name, tags).unwrap();
    fleet.sim.backdate_snapshot(&id, Duration::from_secs(seconds));
    fleet.sim.advance(Duration::from_secs(601));
    id
}

fn names(fleet: &ControllerHarness) -> Vec<String> {
    let mut names: Vec<String> = fleet.sim.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
    names.sort();
    names
}

#[test]
fn one_is_taken_with_the_mark_and_a_repetition_takes_no_second_one() {
    let fleet = cloud();
    let id = fleet.volume("blog");
    let (code, said) = snapshot(&fleet, &["--volume=blog", "--keep=daily=7,weekly=4"]);
    assert_eq!(code, Some(0), "{said}");
    let taken = fleet.sim.snapshots();
    assert_eq!(taken.len(), 1);
    assert!(taken[0].name.starts_with("blog-20") && taken[0].tags.iter().any(|tag| tag == MARK), "{taken:?}");
    assert_eq!(taken[0].volume, id);
    assert!(said.contains("taken ") && said.contains(&taken[0].id) && said.contains("daily, weekly"), "{said}");
    // Nomad tries a job again that was lost: DigitalOcean would refuse another one.
    let (code, said) = snapshot(&fleet, &["--volume", &id, "--keep", "daily=7"]);
    assert_eq!((code, fleet.sim.snapshots().len()), (Some(0), 1), "{said}");
    assert!(said.contains("less than ten minutes ago"), "{said}");
}

#[test]
fn a_volume_is_found_by_the_name_that_the_orchestrator_gave_it() {
    let fleet = cloud();
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &[]);
    let made = plugin.client.create(&new_volume("redis[0]", 1 << 30)).unwrap();
    let (code, said) = snapshot(&fleet, &["--volume=redis[0]", "--keep=daily=1"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fleet.sim.snapshots()[0].volume, made.volume_id);
    let (code, said) = snapshot(&fleet, &["--volume=redis[1]", "--keep=daily=1"]);
    assert_eq!(code, Some(2), "{said}");
}

#[test]
fn only_what_it_made_of_this_volume_and_does_not_need_is_deleted_and_it_says_so() {
    let fleet = cloud();
    let (blog, shop) = (fleet.volume("blog"), fleet.volume("shop"));
    for (volume, name, tags, age) in [
        (&blog, "by-hand", &[][..], 90 * DAY),
        (&blog, "tagged-by-hand", &["nightly"], 90 * DAY),
        (&blog, "by-the-plugin", &["do-csi"], 90 * DAY),
        (&blog, "kept-by-its-week", &[MARK], 8 * DAY),
        (&blog, "too-old", &[MARK], 40 * DAY),
        (&blog, "even-older", &[MARK], 400 * DAY),
        (&shop, "of-another-volume", &[MARK], 400 * DAY),
    ] {
        old(&fleet, volume, name, tags, age);
    }
    let rules = ["--volume=blog", "--keep=daily=1,weekly=2"];
    let before = names(&fleet);
    let (code, said) = snapshot(&fleet, &[&rules[..], &["--dry-run"]].concat());
    assert_eq!((code, names(&fleet)), (Some(0), before), "{said}");
    assert!(said.contains("would take") && said.contains("not needed too-old"), "{said}");
    let (code, said) = snapshot(&fleet, &rules);
    assert_eq!(code, Some(0), "{said}");
    let after = names(&fleet);
    let (taken, rest): (Vec<&String>, Vec<&String>) = after.iter().partition(|name| name.starts_with("blog-20"));
    assert_eq!(taken.len(), 1, "{after:?}");
    assert_eq!(rest, ["by-hand", "by-the-plugin", "kept-by-its-week", "of-another-volume", "tagged-by-hand"], "{said}");
    assert!(said.contains("deleted   too-old") && said.contains("deleted   even-older"), "{said}");
}

#[test]
fn nothing_is_deleted_when_the_new_one_is_not_taken() {
    let fleet = cloud();
    let blog = fleet.volume("blog");
    old(&fleet, &blog, "too-old", &[MARK], 400 * DAY);
    old(&fleet, &blog, "newer", &[MARK], 40 * DAY);
    let before = names(&fleet);
    let route = ("POST", "/v2/volumes/{id}/snapshots");
    // Another one was taken a moment ago, by a person.
    fleet.sim.create_snapshot(&blog, "by-hand").unwrap();
    let (code, said) = snapshot(&fleet, &["--volume=blog", "--keep=daily=1"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not taken") && said.contains("DigitalOcean takes one in 600 s"), "{said}");
    fleet.sim.advance(Duration::from_secs(601));
    // A token that may put no tag on: without the mark nothing would ever delete it.
    fleet.sim.faults().add(Fault::refused(Refusal::FORBIDDEN).on(route.0, route.1).times(2));
    let (code, said) = snapshot(&fleet, &["--volume=blog", "--keep=daily=1"]);
    assert_eq!(code, Some(1), "{said}");
    let mut want = before.clone();
    want.push("by-hand".to_owned());
    want.sort();
    assert_eq!(names(&fleet), want);
}

#[test]
fn a_place_is_made_where_digitalocean_keeps_no_more_and_never_of_what_others_took() {
    let fleet = cloud();
    let blog = fleet.volume("blog");
    fleet.sim.change_rules(|rules| rules.limits.snapshots_per_volume = 25);
    for number in 0..23 {
        old(&fleet, &blog, &format!("by-hand-{number}"), &[], 90 * DAY);
    }
    old(&fleet, &blog, "ours", &[MARK], 2 * DAY);
    fleet.sim.create_snapshot(&blog, "by-hand-now").unwrap();
    let (code, said) = snapshot(&fleet, &["--volume=blog", "--keep=daily=2"]);
    assert_eq!((code, names(&fleet).len()), (Some(1), 25), "{said}");
    assert!(said.contains("1 of them are this command's"), "{said}");
    // There is no need of it, and what a person has just taken counts for the ten minutes.
    let (code, said) = snapshot(&fleet, &["--volume=blog", "--keep=daily=1"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(names(&fleet).contains(&"ours".to_owned()), "a backup was deleted for nothing: {said}");
    assert!(said.contains("by-hand-now is younger"), "{said}");
    fleet.sim.advance(Duration::from_secs(601));
    let (code, said) = snapshot(&fleet, &["--volume=blog", "--keep=daily=1"]);
    assert_eq!((code, names(&fleet).len()), (Some(0), 25), "{said}");
    assert!(said.contains("deleted   ours") && said.contains("to make room"), "{said}");
    assert_eq!(names(&fleet).iter().filter(|name| name.starts_with("by-hand")).count(), 24);
}

#[test]
fn what_cannot_be_begun_is_one_line_and_exit_code_2() {
    let fleet = cloud();
    fleet.volume("blog");
    for (args, words) in [
        (&["--volume=nobody", "--keep=daily=1"][..], "nobody"),
        (&["--volume=00000000-8f00-11f0-9a11-0a58ac14d1e2", "--keep=daily=1"], "00000000-8f00"),
        (&["--volume=blog"], "--keep"),
        (&["--keep=daily=1"], "--volume"),
        (&["--volume=blog", "--keep=yearly=1"], "hourly"),
        (&["--volume=blog", "--keep=daily=25"], "too many"),
    ] {
        let (code, said) = snapshot(&fleet, args);
        assert_eq!((code, said.lines().count()), (Some(2), 1), "{args:?}: {said}");
        assert!(said.contains(words), "{said}");
    }
    assert!(fleet.sim.snapshots().is_empty());
    fleet.sim.faults().add(Fault::refused(Refusal::UNAUTHORIZED).on("GET", "/v2/volumes").always());
    let (code, said) = snapshot(&fleet, &["--volume=blog", "--keep=daily=1"]);
    assert_eq!(code, Some(2), "{said}");
}

#[test]
fn a_lost_reply_leads_to_no_second_one() {
    let fleet = cloud();
    fleet.volume("blog");
    fleet.sim.faults().add(Fault::lost_reply().on("POST", "/v2/volumes/{id}/snapshots").times(1));
    let (code, said) = snapshot(&fleet, &["--volume=blog", "--keep=daily=1"]);
    assert_eq!((code, fleet.sim.snapshots().len()), (Some(0), 1), "{said}");
}
