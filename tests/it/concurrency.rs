//! Calls at the same time: for one volume one after another, for different volumes side by side.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use do_csi_plugin::config;
use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::sim::{ActionFault, ActionKind, DropletSpec, Fault, Limits, NewVolume, Rules, SimConfig};
use crate::support::client::{Client, Refusal, Volume};
use crate::support::controllers::{A, B, ControllerHarness, no_rate_limit};
use crate::support::plugin::Plugin;
use crate::support::single_plugin::{DROPLET, SinglePlugin, until};

/// Longer than any test waits.
const FOR_EVER: Duration = Duration::from_secs(3600);

type Answer<T> = thread::JoinHandle<Result<T, Refusal>>;

fn attach(client: &Client, id: &str) -> Answer<Volume> {
    attach_to(client, id, DROPLET)
}

fn attach_to(client: &Client, id: &str, droplet: u64) -> Answer<Volume> {
    let (client, mut volume) = (client.clone(), Volume::mounted(id, "ext4"));
    thread::spawn(move || client.controller_publish(&mut volume, &droplet.to_string()).map(|()| volume))
}

fn detach(client: &Client, id: &str) -> Answer<()> {
    let (client, id) = (client.clone(), id.to_owned());
    thread::spawn(move || client.controller_unpublish(&id, &DROPLET.to_string()))
}

fn create(client: &Client, name: &'static str) -> Answer<String> {
    let client = client.clone();
    let capability = Volume::mounted("", "ext4").capability;
    thread::spawn(move || client.create_volume(name, 1 << 30, &capability).map(|volume| volume.volume_id))
}

/// Stages a volume whose disk is not there, which is waited for with the volume locked.
fn stage_without_disk(client: &Client, id: &str, staging: PathBuf) -> Answer<()> {
    let (client, mut volume) = (client.clone(), Volume::mounted(id, "ext4"));
    volume.publish_context.insert("dobs.csi.digitalocean.com/volume-name".to_owned(), "blog".to_owned());
    thread::spawn(move || client.stage(&volume, &staging))
}

/// Waits until so many calls of a service are being worked on at once. Each has a thread, and they are numbered.
pub fn until_at_work(plugin: &Plugin, service: &str, calls: usize) {
    let name = format!("{service}-{}", calls - 1);
    let tasks = format!("/proc/{}/task", plugin.pid());
    until(&name, || {
        let names =
            fs::read_dir(&tasks).unwrap().filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.map(|found| found.trim().to_owned()).any(|found| found == name)
    });
}

#[test]
fn of_ten_calls_for_one_volume_one_works_eight_wait_and_one_is_aborted() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    let stage = || stage_without_disk(&plugin.client, "v", solo.path("staging"));
    let first = stage();
    until_at_work(&plugin, "node", 1);
    let others: Vec<_> = (0..9).map(|_| stage()).collect();
    until("one of the others ends", || others.iter().any(Answer::is_finished));
    assert!(!first.is_finished());
    let (ended, waiting): (Vec<_>, Vec<_>) = others.into_iter().partition(Answer::is_finished);
    assert_eq!((ended.len(), waiting.len()), (1, 8));
    for answer in ended {
        let refusal = answer.join().unwrap().unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::ABORTED, "{refusal}");
        assert!(refusal.message.contains("volume v"), "{refusal}");
    }
    // Another volume has nothing to do with it.
    plugin.client.unstage("another", &solo.path("another")).unwrap();
    assert!(!first.is_finished() && waiting.iter().all(|answer| !answer.is_finished()));
}

#[test]
fn attachments_of_one_volume_at_once_attach_it_once() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    let id = solo.sim.add_volume(&NewVolume::new("blog", 1, "fra1")).unwrap();
    solo.sim.faults().add_action(ActionFault::taking(FOR_EVER).of(ActionKind::Attach));
    let first = attach(&plugin.client, &id);
    until("the attachment has begun", || !solo.sim.actions().is_empty());
    let second = attach(&plugin.client, &id);
    until_at_work(&plugin, "controller", 2);
    assert!(!first.is_finished() && !second.is_finished());
    solo.sim.advance(FOR_EVER);
    let contexts = [first, second].map(|answer| answer.join().unwrap().unwrap().publish_context);
    assert_eq!(contexts[0], contexts[1]);
    // The one that waited found the work done.
    assert_eq!(solo.sim.actions().len(), 1);
    assert_eq!(solo.sim.attached_to(&id), Some(DROPLET));
}

#[test]
fn a_volume_that_is_being_attached_is_detached_afterwards_and_not_meanwhile() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    let id = solo.sim.add_volume(&NewVolume::new("blog", 1, "fra1")).unwrap();
    solo.sim.faults().add_action(ActionFault::taking(FOR_EVER).of(ActionKind::Attach));
    let attached = attach(&plugin.client, &id);
    until("the attachment has begun", || !solo.sim.actions().is_empty());
    let detached = detach(&plugin.client, &id);
    until_at_work(&plugin, "unpublish", 1);
    assert!(!attached.is_finished() && !detached.is_finished());
    solo.sim.advance(FOR_EVER);
    attached.join().unwrap().unwrap();
    detached.join().unwrap().unwrap();
    let kinds: Vec<_> = solo.sim.actions().iter().rev().map(|action| action.kind).collect();
    assert_eq!(kinds, [ActionKind::Attach, ActionKind::Detach]);
    assert_eq!(solo.sim.attached_to(&id), None);
}

#[test]
fn different_volumes_do_not_wait_for_each_other() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    let volume = |name: &str| solo.sim.add_volume(&NewVolume::new(name, 1, "fra1")).unwrap();
    let slow = volume("slow");
    let quick: Vec<String> = ["a", "b", "c", "d", "e", "f"].map(volume).into();
    let hang = ActionFault::taking(FOR_EVER).of(ActionKind::Attach).on_volume(&slow);
    solo.sim.faults().add_action(hang);
    // On another droplet: DigitalOcean itself does one thing at a time for each.
    let busy = DROPLET + 1;
    solo.sim.add_droplet(&DropletSpec::new(busy, "node-2", "fra1")).unwrap();
    let waiting = attach_to(&plugin.client, &slow, busy);
    until("the attachment has begun", || !solo.sim.actions().is_empty());
    let calls: Vec<_> = quick.iter().map(|id| attach(&plugin.client, id)).collect();
    for call in calls {
        call.join().unwrap().unwrap();
    }
    assert!(quick.iter().all(|id| solo.sim.attached_to(id) == Some(DROPLET)));
    assert!(!waiting.is_finished());
    solo.sim.advance(FOR_EVER);
    waiting.join().unwrap().unwrap();
}

#[test]
fn two_creations_of_one_name_at_once_make_one_volume() {
    let solo = SinglePlugin::new(PROGRAM);
    let plugin = solo.launch(&[]).start().unwrap();
    solo.sim.faults().add(Fault::late(Duration::from_millis(300)).on("POST", "/v2/volumes"));
    let calls = [create(&plugin.client, "twice"), create(&plugin.client, "twice")];
    let ids = calls.map(|call| call.join().unwrap().unwrap());
    assert_eq!(ids[0], ids[1]);
    assert_eq!(solo.sim.volumes().len(), 1);
}

#[test]
fn many_calls_for_many_volumes_end_as_if_they_had_come_alone() {
    let names = ["n0", "n1", "n2", "n3", "n4", "n5"];
    // Each on a droplet of its own: DigitalOcean itself does one thing at a time for each.
    let droplets = (DROPLET..).zip(names).map(|(id, name)| DropletSpec::new(id, name, "fra1")).collect();
    let solo = SinglePlugin::with(PROGRAM, SimConfig { droplets, ..SimConfig::default() });
    let plugin = solo.launch(&[]).start().unwrap();
    let live = |client: Client, name: &'static str, droplet: u64| {
        move || -> Result<(), Refusal> {
            let id = create(&client, name).join().unwrap()?;
            for _ in 0..2 {
                client.controller_publish(&mut Volume::mounted(&id, "ext4"), &droplet.to_string())?;
                client.controller_unpublish(&id, &droplet.to_string())?;
            }
            if name != "n0" { client.delete_volume(&id) } else { Ok(()) }
        }
    };
    let start = |(droplet, name)| thread::spawn(live(plugin.client.clone(), name, droplet));
    let lives: Vec<_> = (DROPLET..).zip(names).map(start).collect();
    for life in lives {
        life.join().unwrap().unwrap();
    }
    let left: Vec<_> = solo.sim.volumes().into_iter().map(|volume| (volume.name, volume.attached_to)).collect();
    assert_eq!(left, [("n0".to_owned(), None)]);
}

#[test]
fn a_flood_of_publishes_ends_in_its_time_and_lets_an_unpublish_pass() {
    let rules = Rules { limits: Limits { volumes: 0, ..no_rate_limit() }, ..Rules::default() };
    let fleet = ControllerHarness::with(rules);
    let plugin = fleet.controller(Path::new(PROGRAM), "one", &["--call-budget=5"]);
    // More than are worked on at once and can wait in the queue.
    let (workers, queue) = (config::CONTROLLER_WORKERS, config::QUEUE_LENGTH);
    let ids: Vec<String> = (0..workers + queue + 20).map(|number| fleet.volume(&format!("volume-{number}"))).collect();
    let other = fleet.volume_on("other", B);
    fleet.sim.hold_pending_event(A, FOR_EVER);
    let begun = Instant::now();
    let answers: Vec<Answer<Volume>> = ids.iter().map(|id| attach_to(&plugin.client, id, A)).collect();
    until_at_work(&plugin, "controller", workers);
    assert_eq!(plugin.client.controller_unpublish(&other, &B.to_string()), Ok(()));
    assert_eq!(fleet.sim.attached_to(&other), None);
    assert!(answers.iter().any(|answer| !answer.is_finished()), "the unpublish came after the flood");
    for answer in answers {
        let refusal = answer.join().unwrap().unwrap_err();
        assert_eq!(refusal.code, RpcStatusCode::FAILED_PRECONDITION, "{refusal}");
    }
    // Those that waited for a thread would take twice the time of a call if it counted from when they got one.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}
