//! Volumes that nobody uses on their droplet: detached by the plugin there, and brought back when somebody asks for one.
//!
//! Two droplets with a plugin each. The second one's controller is the one elsewhere in a cluster, which knows nothing of what the
//! first one is about to do. Requests of the first are stopped at gates in the simulated cloud, so that each moment of a release
//! can be met by every call that may come then.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use std::thread;
use std::time::{Duration, Instant};

use crate::PROGRAM;
use crate::sim::{ActionFault, ActionKind, Fault, Gate, Limits, NewVolume, Rules, SimConfig, Times};
use crate::support::client::{Client, Outcome, Volume};
use crate::support::cloud::{Cloud, Machine};
use crate::support::plugin::Plugin;
use crate::support::wait_for;

const OWNER: &str = "cluster";
const LIMIT: Duration = Duration::from_secs(30);
/// For longer than this no detach can be on its way.
const IN_FLIGHT: Duration = Duration::from_secs(60);
const TEXT: &str = "what was written before";

struct Cluster {
    cloud: Cloud,
    here: Option<Plugin>,
    elsewhere: Plugin,
}

/// A volume as Nomad knows it.
#[derive(Clone)]
struct Vol {
    csi: Volume,
    name: String,
}

impl Cluster {
    fn start() -> Cluster {
        let limits =
            Limits { attach: 100, requests_per_minute: 1_000_000, requests_per_hour: 1_000_000, ..Limits::default() };
        let rules = Rules { limits, times: Times::actions(Duration::from_millis(50)), ..Rules::default() };
        let cloud = Cloud::start(SimConfig { rules, ..SimConfig::default() }, &["here", "elsewhere"]).unwrap();
        let elsewhere = launch(&cloud.machines[1], &[]);
        let mut cluster = Cluster { cloud, here: None, elsewhere };
        cluster.here = Some(cluster.launch_here());
        cluster
    }

    fn launch_here(&self) -> Plugin {
        launch(self.machine(), &["--release-unused=1s"])
    }

    fn machine(&self) -> &Machine {
        &self.cloud.machines[0]
    }

    fn here(&self) -> &Plugin {
        self.here.as_ref().unwrap()
    }

    fn id(&self) -> u64 {
        self.machine().id
    }

    /// A formatted volume of this cluster, not attached.
    fn volume(&self, name: &str) -> Vol {
        let id = self.cloud.sim.add_volume(&NewVolume::new(name, 1, "fra1").formatted("xfs")).unwrap();
        self.cloud.sim.tag_volume(&id, OWNER).unwrap();
        Vol { csi: Volume::mounted(&id, ""), name: name.to_owned() }
    }

    fn staging(&self, vol: &Vol) -> PathBuf {
        self.machine().staging(&vol.name)
    }

    fn target(&self, vol: &Vol) -> PathBuf {
        self.machine().target("alloc", &vol.name)
    }

    /// As a controller elsewhere does it for this droplet.
    fn attach(&self, vol: &mut Vol) -> Outcome<()> {
        self.elsewhere.client.controller_publish(&mut vol.csi, &self.machine().node_id())
    }

    fn stage(&self, vol: &Vol) -> Outcome<()> {
        stage(self.machine(), self.here(), vol)
    }

    fn publish(&self, vol: &Vol) -> Outcome<()> {
        let target = self.target(vol);
        self.machine().droplet.make_folder(target.parent().unwrap()).unwrap();
        self.here().client.publish(&vol.csi, &self.staging(vol), &target, false)
    }

    /// A task has used the volume on this droplet, and nobody detached it at its end.
    fn leave(&self, name: &str) -> Vol {
        let mut vol = self.volume(name);
        self.attach(&mut vol).unwrap();
        self.stage(&vol).unwrap();
        self.publish(&vol).unwrap();
        let file = self.machine().droplet.path(&self.target(&vol).join("file"));
        fs::write(&file, TEXT).unwrap();
        self.here().client.unpublish(&vol.csi.id, &self.target(&vol)).unwrap();
        self.here().client.unstage(&vol.csi.id, &self.staging(&vol)).unwrap();
        vol
    }

    fn await_released(&self, vol: &Vol) {
        let released = wait_for(LIMIT, || self.cloud.sim.attached_to(&vol.csi.id).is_none().then_some(()));
        assert!(released.is_some(), "{} stays attached: {}", vol.name, self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.machine().home().join("plugin.log")).unwrap_or_default()
    }

    /// Asserts that a task has the volume on this droplet, with what it wrote before.
    fn assert_used_here(&self, vol: &Vol, story: &str) {
        self.publish(vol).unwrap_or_else(|err| panic!("{story}: {err:?}: {}", self.log()));
        assert_eq!(self.cloud.sim.attached_to(&vol.csi.id), Some(self.id()), "{story}: {}", self.log());
        let file = self.machine().droplet.path(&self.target(vol).join("file"));
        assert_eq!(fs::read_to_string(&file).unwrap(), TEXT, "{story}");
        // The disk is the volume's, and not one that was on its way out, behind which the cloud has put a copy.
        let link = self.cloud.sim.device_dir(self.id()).join(format!("scsi-0DO_Volume_{}", vol.name));
        let node = fs::canonicalize(&link).unwrap_or_else(|err| panic!("{story}: {err}: {}", self.log()));
        let line = self.machine().droplet.mount_at(&self.target(vol)).unwrap();
        assert!(line.contains(&node.to_string_lossy().into_owned()), "{story}: {line}: {}", self.log());
        let backing = Path::new("/sys/class/block").join(node.file_name().unwrap()).join("loop/backing_file");
        let backing = fs::read_to_string(backing).unwrap();
        assert_eq!(Path::new(backing.trim()), self.cloud.sim.backing_file(&vol.csi.id), "{story}: {}", self.log());
    }

    /// The mark of a volume that this droplet may be about to let go of.
    fn mark(&self, vol: &Vol) -> PathBuf {
        self.cloud.sim.device_dir(self.id()).join(format!("do-csi-release-{}", vol.name))
    }

    fn is_marked(&self, vol: &Vol) -> bool {
        fs::symlink_metadata(self.mark(vol)).is_ok()
    }

    /// Makes the mark of a volume this old, if there is one, so that a test need not wait as long as a droplet does.
    fn age_mark(&self, vol: &Vol, age: Duration) {
        if !self.is_marked(vol) {
            return;
        }
        let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap());
        let (mark, aside) = (self.mark(vol), self.mark(vol).with_file_name("older"));
        symlink(format!("boot+{}", now.saturating_sub(age).as_millis()), &aside).unwrap();
        fs::rename(aside, mark).unwrap();
    }

    fn close(mut self) {
        drop(self.here.take());
        drop(self.elsewhere);
        self.cloud.close().unwrap();
    }
}

fn launch(machine: &Machine, args: &[&str]) -> Plugin {
    let mut launch = machine.launch(Path::new(PROGRAM));
    launch.args.extend(args.iter().map(|arg| (*arg).to_owned()).chain([format!("--do-tag={OWNER}")]));
    launch.command.env("RUST_LOG", "debug");
    launch.start().unwrap()
}

fn stage(machine: &Machine, plugin: &Plugin, vol: &Vol) -> Outcome<()> {
    let staging = machine.staging(&vol.name);
    machine.droplet.make_folder(&staging).unwrap();
    plugin.client.stage(&vol.csi, &staging)
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_that_nobody_uses_is_detached_and_brought_back_when_it_is_staged() {
    let cluster = Cluster::start();
    let vol = cluster.leave("blog");
    cluster.await_released(&vol);
    // A controller elsewhere said "is here already" a moment before; the next call is this one.
    cluster.stage(&vol).unwrap();
    cluster.assert_used_here(&vol, "brought back");
    assert!(cluster.log().contains("detaching a volume that nobody has used"), "{}", cluster.log());
    assert!(!cluster.is_marked(&vol), "a mark is left");
    cluster.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_is_staged_for_nobody_is_unstaged_and_publishing_stages_it_anew() {
    let cluster = Cluster::start();
    let vol = cluster.leave("blog");
    cluster.stage(&vol).unwrap();
    assert!(cluster.machine().droplet.mount_at(&cluster.staging(&vol)).is_some());
    cluster.await_released(&vol);
    assert!(cluster.machine().droplet.mount_at(&cluster.staging(&vol)).is_none());
    // Nomad looked at the mount a moment before, and so does not stage again.
    cluster.assert_used_here(&vol, "published without a stage");
    cluster.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_whatever_speaks_for_a_user_keeps_a_volume_where_it_is() {
    let cluster = Cluster::start();
    let sim = &cluster.cloud.sim;
    let machine = cluster.machine();
    let used = cluster.leave("used");
    cluster.stage(&used).unwrap();
    cluster.publish(&used).unwrap();
    let by_hand = cluster.leave("by-hand");
    let node = |vol: &Vol| {
        fs::canonicalize(sim.device_dir(cluster.id()).join(format!("scsi-0DO_Volume_{}", vol.name))).unwrap()
    };
    machine.droplet.make_folder(Path::new("/mnt")).unwrap();
    let status = machine.droplet.command(Path::new("mount")).arg(node(&by_hand)).arg("/mnt").status().unwrap();
    assert!(status.success());
    let written = cluster.leave("written");
    let writer = OpenOptions::new().write(true).open(node(&written)).unwrap();
    let kept = cluster.leave("kept");
    sim.tag_volume(&kept.csi.id, "do-csi-keep").unwrap();
    let foreign = cluster.leave("foreign");
    sim.untag_volume(&foreign.csi.id, OWNER).unwrap();
    sim.reset_calls();
    // When these two have gone, one after the other, the others have been looked at for longer than it takes.
    for name in ["first", "second"] {
        let last = cluster.leave(name);
        cluster.await_released(&last);
    }
    for vol in [&used, &by_hand, &written, &kept, &foreign] {
        assert_eq!(sim.attached_to(&vol.csi.id), Some(cluster.id()), "{}: {}", vol.name, cluster.log());
    }
    for (vol, why) in [(&kept, "do-csi-keep"), (&foreign, "--do-tag")] {
        let name = format!(" name={}", vol.name);
        let is_it = |text: &str| text.contains("stays attached: ") && text.ends_with(&name) && text.contains(why);
        assert!(cluster.log().lines().any(is_it), "{}", cluster.log());
    }
    drop(writer);
    cluster.await_released(&written);
    assert!(machine.droplet.command(Path::new("umount")).arg("/mnt").status().unwrap().success());
    cluster.await_released(&by_hand);
    cluster.assert_used_here(&used, "used all the time");
    cluster.close();
}

/// The plugin was killed when it had sent a detach, which DigitalOcean carries out much later. Whoever comes meanwhile waits
/// until that cannot be any more, however long the volume is still listed here, and then has it for good.
#[test]
#[ignore = "needs root: make test-root"]
fn root_a_detach_that_comes_late_takes_the_disk_from_nobody() {
    let mut cluster = Cluster::start();
    let vol = cluster.leave("late");
    let gate = Gate::default();
    cluster.cloud.sim.faults().add(At::BeforeDetach.fault(&gate, &vol.csi.id));
    assert!(gate.is_reached_within(LIMIT), "no release begins: {}", cluster.log());
    cluster.here.take().unwrap().kill().unwrap();
    assert!(cluster.is_marked(&vol));
    let left = Duration::from_secs(15);
    cluster.age_mark(&vol, IN_FLIGHT - left);
    let began = Instant::now();
    cluster.here = Some(cluster.launch_here());
    thread::scope(|scope| {
        let stage = scope.spawn(|| cluster.stage(&vol));
        // Longer than any state at DigitalOcean is waited for.
        thread::sleep(Duration::from_secs(8));
        assert!(!stage.is_finished(), "it was staged while the detach was on its way: {}", cluster.log());
        gate.open();
        stage.join().unwrap().unwrap_or_else(|err| panic!("{err:?}: {}", cluster.log()));
    });
    assert!(began.elapsed() >= left - Duration::from_secs(1), "after {:?}: {}", began.elapsed(), cluster.log());
    cluster.assert_used_here(&vol, "after a detach that came late");
    assert!(!cluster.is_marked(&vol), "a mark is left");
    cluster.close();
}

/// The droplet is busy with another volume when the release wants its turn. A mark of that moment would be older than the detach,
/// and whoever finds it would trust the disk too early.
#[test]
#[ignore = "needs root: make test-root"]
fn root_the_mark_of_a_release_is_made_when_the_detach_is_sent_and_not_before_its_turn() {
    let cluster = Cluster::start();
    let mut other = cluster.volume("other");
    let vol = cluster.leave("queued");
    let (attach, detach) = (Gate::default(), Gate::default());
    cluster.cloud.sim.faults().add(At::AfterDetach.fault(&attach, &other.csi.id));
    cluster.cloud.sim.faults().add(At::BeforeDetach.fault(&detach, &vol.csi.id));
    let node = cluster.machine().node_id();
    thread::scope(|scope| {
        let publish = scope.spawn(|| cluster.here().client.controller_publish(&mut other.csi, &node));
        assert!(attach.is_reached_within(LIMIT), "{}", cluster.log());
        let is_decided = || cluster.log().contains("detaching a volume that nobody has used").then_some(());
        assert!(wait_for(LIMIT, is_decided).is_some(), "{}", cluster.log());
        let early = wait_for(Duration::from_secs(1), || cluster.is_marked(&vol).then_some(()));
        attach.open();
        assert!(early.is_none(), "it is marked before its turn: {}", cluster.log());
        publish.join().unwrap().unwrap_or_else(|err| panic!("{err:?}: {}", cluster.log()));
    });
    assert!(detach.is_reached_within(LIMIT), "{}", cluster.log());
    assert!(cluster.is_marked(&vol), "the detach is under way without a mark: {}", cluster.log());
    detach.open();
    cluster.await_released(&vol);
    cluster.close();
}

/// A request is lost on its way, which nobody can know: no second one is sent as long as the first may come.
#[test]
#[ignore = "needs root: make test-root"]
fn root_a_detach_without_an_answer_is_sent_again_only_when_it_cannot_come_any_more() {
    let mut cluster = Cluster::start();
    let vol = cluster.leave("lost");
    let route = ("POST", "/v2/volumes/{id}/actions");
    cluster.cloud.sim.reset_calls();
    cluster.cloud.sim.faults().add(Fault::lost_request().on(route.0, route.1).about(&vol.csi.id));
    let is_unclear = || cluster.log().contains("it is not known yet what came of an earlier detach").then_some(());
    assert!(wait_for(LIMIT, is_unclear).is_some(), "{}", cluster.log());
    assert_eq!(cluster.cloud.sim.calls().of(route.0, route.1), 1, "{}", cluster.log());
    assert_eq!(cluster.cloud.sim.attached_to(&vol.csi.id), Some(cluster.id()), "{}", cluster.log());
    // The plugin that sent it counts the time on its own clock, and has a publish wait as long; the next one knows the mark alone.
    cluster.here.take().unwrap().kill().unwrap();
    cluster.age_mark(&vol, IN_FLIGHT);
    cluster.here = Some(cluster.launch_here());
    cluster.await_released(&vol);
    assert_eq!(cluster.cloud.sim.calls().of(route.0, route.1), 2, "{}", cluster.log());
    assert!(wait_for(LIMIT, || (!cluster.is_marked(&vol)).then_some(())).is_some(), "a mark is left");
    cluster.stage(&vol).unwrap();
    cluster.assert_used_here(&vol, "after a lost request");
    cluster.close();
}

/// Where a release is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Find,
    Read,
    Actions,
    BeforeDetach,
    AfterDetach,
}

impl At {
    fn fault(self, gate: &Gate, id: &str) -> Fault {
        match self {
            At::Find => Fault::held(gate).on("GET", "/v2/volumes"),
            At::Read => Fault::held(gate).on("GET", "/v2/volumes/{id}").about(id),
            At::Actions => Fault::held(gate).on("GET", "/v2/volumes/{id}/actions").about(id),
            At::BeforeDetach => Fault::held(gate).on("POST", "/v2/volumes/{id}/actions").about(id),
            At::AfterDetach => Fault::reply_held(gate).on("POST", "/v2/volumes/{id}/actions").about(id),
        }
    }
}

/// What comes meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    /// A controller elsewhere publishes it here, and Nomad stages it.
    PublishElsewhereAndStage,
    /// This droplet's controller publishes it here, and Nomad stages it.
    PublishHereAndStage,
    /// It was published here just before, and Nomad stages it.
    Stage,
    /// It was staged as far as Nomad knows, and Nomad publishes it.
    NodePublish,
    /// A controller elsewhere publishes it to the other droplet.
    PublishToOther,
    /// The same, and a late stage comes here.
    PublishToOtherAndStage,
    /// The plugin is killed and started anew, and Nomad stages the volume.
    RestartAndStage,
    /// A controller elsewhere takes it away.
    Unpublish,
}

/// One moment of a release, met by everything that may come then. Whoever was told that the volume is here has it, whole,
/// and keeps it; whoever took it elsewhere keeps it; and nothing stays stuck.
fn play_all(at: At) {
    let mut cluster = Cluster::start();
    for meanwhile in [
        Meanwhile::PublishElsewhereAndStage,
        Meanwhile::PublishHereAndStage,
        Meanwhile::Stage,
        Meanwhile::NodePublish,
        Meanwhile::PublishToOther,
        Meanwhile::PublishToOtherAndStage,
        Meanwhile::RestartAndStage,
        Meanwhile::Unpublish,
    ] {
        play(&mut cluster, at, meanwhile);
    }
    cluster.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_release_that_looks_for_the_volume_is_safe_against_every_call() {
    play_all(At::Find);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_release_that_reads_the_volume_is_safe_against_every_call() {
    play_all(At::Read);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_release_that_reads_the_actions_is_safe_against_every_call() {
    play_all(At::Actions);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_release_that_is_about_to_detach_is_safe_against_every_call() {
    play_all(At::BeforeDetach);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_release_whose_detach_runs_is_safe_against_every_call() {
    play_all(At::AfterDetach);
}

fn play(cluster: &mut Cluster, at: At, meanwhile: Meanwhile) {
    let story = format!("{at:?} met by {meanwhile:?}");
    let started = Instant::now();
    let vol = cluster.leave(&format!("v{}", story.to_lowercase().replace(' ', "-")));
    let gate = Gate::default();
    let other = cluster.cloud.machines[1].id;
    // The detach takes a while, so that there is a time in which it runs and the disk is still there.
    let slow = ActionFault::taking(Duration::from_millis(700)).of(ActionKind::Detach).on_volume(&vol.csi.id);
    cluster.cloud.sim.faults().add_action(slow);
    cluster.cloud.sim.faults().add(at.fault(&gate, &vol.csi.id));
    assert!(gate.is_reached_within(LIMIT), "{story}: no release begins: {}", cluster.log());
    if meanwhile == Meanwhile::RestartAndStage {
        cluster.here.take().unwrap().kill().unwrap();
        gate.open();
        cluster.age_mark(&vol, IN_FLIGHT);
        cluster.here = Some(cluster.launch_here());
        cluster.stage(&vol).unwrap_or_else(|err| panic!("{story}: {err:?}: {}", cluster.log()));
        cluster.assert_used_here(&vol, &story);
    } else {
        meet(cluster, &gate, &vol, meanwhile, &story);
    }
    match meanwhile {
        Meanwhile::PublishToOther | Meanwhile::PublishToOtherAndStage => {
            assert_eq!(cluster.cloud.sim.attached_to(&vol.csi.id), Some(other), "{story}: {}", cluster.log());
            cluster.elsewhere.client.controller_unpublish(&vol.csi.id, &other.to_string()).unwrap();
        }
        Meanwhile::Unpublish => {
            assert_eq!(cluster.cloud.sim.attached_to(&vol.csi.id), None, "{story}: {}", cluster.log());
        }
        Meanwhile::PublishElsewhereAndStage
        | Meanwhile::PublishHereAndStage
        | Meanwhile::Stage
        | Meanwhile::NodePublish
        | Meanwhile::RestartAndStage => {
            cluster.here().client.unpublish(&vol.csi.id, &cluster.target(&vol)).unwrap();
            cluster.here().client.unstage(&vol.csi.id, &cluster.staging(&vol)).unwrap();
            cluster.elsewhere.client.controller_unpublish(&vol.csi.id, &cluster.machine().node_id()).unwrap();
        }
    }
    cluster.cloud.sim.faults().clear();
    println!("{story}: {} ms", started.elapsed().as_millis());
}

/// Makes the calls while the release stops at the gate, and opens it when they have come as far as they can.
fn meet(cluster: &Cluster, gate: &Gate, vol: &Vol, meanwhile: Meanwhile, story: &str) {
    let (elsewhere, here) = (&cluster.elsewhere.client, &cluster.here().client);
    let (node, other) = (cluster.machine().node_id(), cluster.cloud.machines[1].node_id());
    let attach = |client: &Client, droplet: &str| client.controller_publish(&mut vol.clone().csi, droplet);
    let calls = || match meanwhile {
        // It says that it is here already, or waits for the detach that runs.
        Meanwhile::PublishElsewhereAndStage => attach(elsewhere, &node).and_then(|()| cluster.stage(vol)),
        Meanwhile::PublishHereAndStage => attach(here, &node).and_then(|()| cluster.stage(vol)),
        Meanwhile::Stage => cluster.stage(vol),
        Meanwhile::NodePublish => cluster.publish(vol),
        Meanwhile::PublishToOther | Meanwhile::PublishToOtherAndStage => attach(elsewhere, &other),
        Meanwhile::Unpublish => elsewhere.controller_unpublish(&vol.csi.id, &node),
        Meanwhile::RestartAndStage => unreachable!("it is played elsewhere"),
    };
    let outcome = thread::scope(|scope| {
        let calls = scope.spawn(calls);
        gate_after(gate, || calls.is_finished());
        calls.join().unwrap()
    });
    outcome.unwrap_or_else(|err| panic!("{story}: {err:?}: {}", cluster.log()));
    match meanwhile {
        Meanwhile::PublishToOtherAndStage => {
            assert!(cluster.stage(vol).is_err(), "{story}: staged here what is elsewhere");
        }
        Meanwhile::PublishToOther | Meanwhile::Unpublish => {}
        Meanwhile::PublishElsewhereAndStage
        | Meanwhile::PublishHereAndStage
        | Meanwhile::Stage
        | Meanwhile::NodePublish
        | Meanwhile::RestartAndStage => cluster.assert_used_here(vol, story),
    }
}

/// Opens the gate when a call has ended, or has come so far that it waits for the release: half a second is no more than a
/// way to play the later order more often, and no outcome depends on it.
fn gate_after(gate: &Gate, is_done: impl Fn() -> bool) {
    wait_for(Duration::from_millis(500), || is_done().then_some(()));
    gate.open();
}
