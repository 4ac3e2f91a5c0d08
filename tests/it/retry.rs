//! Everything that can go wrong between the controller and DigitalOcean, at every request of every call that changes
//! something: the first try rides it out, or the next one is right, and the cloud ends as asked.

use std::path::Path;
use std::time::Duration;

use crate::PROGRAM;
use crate::sim::{
    Action, ActionFault, ActionKind, ActionStatus, DropletSpec, DropletStatus, Fault, NewVolume, Refusal, Rules,
    Snapshot, Times, Volume as SimVolume,
};
use crate::support::client::{Client, Outcome, Volume, cloned, new_volume, restored};
use crate::support::controllers::{A, ACTION, B, C, ControllerHarness, no_rate_limit};
use crate::support::wait_for;

/// A hanging connection is given up after so long, and all waits inside a call fit into so long.
const ARGS: [&str; 2] = ["--api-timeout=0.4", "--call-budget=8"];

/// The request that removes what a clone was made through.
const DELETE_SNAPSHOT: (&str, &str) = ("DELETE", "/v2/volumes/snapshots/{id}");

/// A refusal that DigitalOcean is not known to speak.
const UNKNOWN: Refusal = Refusal { status: 451, id: "unknown", message: "not for you" };

/// Behind the last request of any call.
const MOST_REQUESTS: u32 = 30;

/// A call that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Create,
    Delete,
    Publish,
    /// From a droplet that is off.
    PublishFromOff,
    /// From a droplet that was destroyed and has kept it.
    PublishFromGone,
    /// From a droplet that runs, which the plugin is allowed to do.
    PublishByTakeover,
    Unpublish,
    UnpublishAnywhere,
    Expand,
    Modify,
    Snapshot,
    DeleteSnapshot,
    Restore,
    Clone,
}

/// What is asked for by the calls that make or grow a volume.
const GIB: i64 = 1 << 30;

impl Change {
    /// Makes what the call needs, and gives the id of the volume or snapshot, if it is there before.
    fn prepare(self, fleet: &ControllerHarness, name: &str) -> String {
        match self {
            Change::Create => String::new(),
            Change::Delete | Change::Publish => fleet.volume(name),
            Change::Unpublish | Change::UnpublishAnywhere | Change::Expand => fleet.volume_on(name, A),
            Change::PublishByTakeover => fleet.volume_on(name, C),
            Change::PublishFromOff => {
                let id = fleet.volume_on(name, C);
                fleet.sim.set_droplet_status(C, DropletStatus::Off);
                id
            }
            Change::PublishFromGone => {
                fleet.sim.add_droplet(&DropletSpec::new(C, "node-c", "fra1")).expect("the droplet is made");
                let id = fleet.volume_on(name, C);
                fleet.sim.faults().add_action(ActionFault::errored().of(ActionKind::Detach));
                fleet.sim.destroy_droplet(C);
                fleet.rest();
                id
            }
            Change::Modify => {
                let tagged = NewVolume { tags: vec!["gone".to_owned()], ..NewVolume::new(name, 1, "fra1") };
                fleet.sim.add_volume(&tagged).expect("the volume is made")
            }
            Change::Snapshot => fleet.volume(name),
            Change::Clone => fleet.volume(&source_of(name)),
            Change::DeleteSnapshot | Change::Restore => {
                let source = fleet.volume(&source_of(name));
                fleet.sim.create_snapshot(&source, name).expect("the snapshot is taken")
            }
        }
    }

    /// Whether the id that the call is about is a volume's.
    fn is_about_a_volume(self) -> bool {
        !matches!(self, Change::Create | Change::DeleteSnapshot | Change::Restore)
    }

    fn make(self, client: &Client, name: &str, id: &str) -> Outcome<()> {
        let mut volume = Volume::mounted(id, "ext4");
        match self {
            Change::Create => client.create_volume(name, 1 << 30, &volume.capability).map(drop),
            Change::Delete => client.delete_volume(id),
            Change::Publish | Change::PublishFromOff | Change::PublishFromGone | Change::PublishByTakeover => {
                client.controller_publish(&mut volume, &A.to_string())
            }
            Change::Unpublish => client.controller_unpublish(id, &A.to_string()),
            Change::UnpublishAnywhere => client.controller_unpublish(id, ""),
            Change::Expand => client.expand(id, 3 * GIB).map(drop),
            Change::Modify => client.modify(id, &[("tags", "put,also"), ("remove-tags", "gone")]),
            Change::Snapshot => client.create_snapshot(name, id).map(drop),
            Change::DeleteSnapshot => client.delete_snapshot(id),
            Change::Restore => client.create(&restored(new_volume(name, 3 * GIB), id)).map(drop),
            Change::Clone => client.create(&cloned(new_volume(name, 3 * GIB), id)).map(drop),
        }
    }

    /// The number of volumes of the name, of all snapshots of the case, and the volume's droplet, size and tags.
    fn wanted(self) -> (usize, usize, Option<u64>, u64, &'static [&'static str]) {
        match self {
            Change::Create | Change::Unpublish | Change::UnpublishAnywhere => (1, 0, None, 1, &[]),
            Change::Delete | Change::DeleteSnapshot => (0, 0, None, 0, &[]),
            Change::Publish | Change::PublishFromOff | Change::PublishFromGone | Change::PublishByTakeover => {
                (1, 0, Some(A), 1, &[])
            }
            Change::Expand => (1, 0, Some(A), 3, &[]),
            Change::Modify => (1, 0, None, 1, &["also", "put"]),
            Change::Snapshot => (1, 1, None, 1, &[]),
            Change::Restore => (1, 1, None, 3, &[]),
            Change::Clone => (1, 0, None, 3, &[]),
        }
    }

    /// The kind of action that the call consists of, if it is one that moves a volume.
    fn kind_of_move(self) -> Option<ActionKind> {
        match self {
            Change::Publish | Change::PublishFromOff | Change::PublishFromGone | Change::PublishByTakeover => {
                Some(ActionKind::Attach)
            }
            Change::Unpublish | Change::UnpublishAnywhere => Some(ActionKind::Detach),
            Change::Create
            | Change::Delete
            | Change::Expand
            | Change::Modify
            | Change::Snapshot
            | Change::DeleteSnapshot
            | Change::Restore
            | Change::Clone => None,
        }
    }

    /// How often DigitalOcean has carried out, or is carrying out, what the call consists of: where the call needs it once,
    /// a second time takes the volume from somebody else. An action that failed does not count.
    fn moves(self, fleet: &ControllerHarness, volumes: &[SimVolume]) -> usize {
        let is_one = |action: &Action| {
            Some(action.kind) == self.kind_of_move()
                && action.status != ActionStatus::Errored
                && volumes.iter().any(|volume| volume.id == action.volume)
                && action.droplet != Some(C)
        };
        fleet.sim.actions().iter().filter(|action| is_one(action)).count()
    }

    fn moves_a_volume(self) -> bool {
        self.kind_of_move().is_some()
    }

    /// What is not as the call says it is; also some time after its answer, when nothing is on its way any more.
    fn mismatch(self, fleet: &ControllerHarness, name: &str, may_stay: bool) -> Option<String> {
        let source = source_of(name);
        let volumes = fleet.sim.volumes();
        let sources: Vec<String> = volumes
            .into_iter()
            .filter(|volume| [name, &source].contains(&volume.name.as_str()))
            .map(|it| it.id)
            .collect();
        let look = || {
            let volumes: Vec<_> = fleet.sim.volumes().into_iter().filter(|volume| volume.name == name).collect();
            let of_case = |snapshot: &&Snapshot| sources.contains(&snapshot.volume);
            let snapshots = fleet.sim.snapshots().iter().filter(of_case).count();
            let (size, tags) = volumes.first().map(|one| (one.size_gigabytes, one.tags.clone())).unwrap_or_default();
            let mut tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            tags.sort_unstable();
            // What a clone is made through may stay behind for a while, where the only thing that failed is its removal.
            let snapshots = if may_stay && self == Change::Clone { snapshots.saturating_sub(1) } else { snapshots };
            let have = (volumes.len(), snapshots, fleet.sim.attached_to(name), size, tags.as_slice());
            let want = self.wanted();
            if have != want {
                return Some(format!("volumes, snapshots, droplet, size, tags: {have:?}, should be {want:?}"));
            }
            let (done, most) = (self.moves(fleet, &volumes), usize::from(self.moves_a_volume()));
            (done != most).then(|| format!("carried out {done} times, should be {most}"))
        };
        let at_once = look();
        fleet.rest();
        at_once.or_else(look)
    }
}

type RequestFault = (&'static str, Fault, bool);

/// What goes wrong with one request, and whether the same call has to get over it.
fn request_faults() -> Vec<RequestFault> {
    let ms = Duration::from_millis;
    vec![
        ("500", Fault::server_error(), true),
        ("503", Fault::unavailable(), true),
        ("a web page", Fault::html_page(), true),
        ("a web page after the effect", Fault::html_page_after_effect(), true),
        ("a good status with a web page", Fault::answered(200, "text/html", "<html></html>"), true),
        ("a good status with other JSON", Fault::answered(200, "application/json", "{\"volume\":7}"), true),
        ("a web page that says 404", Fault::answered(404, "text/html", "<html>not here</html>"), true),
        ("a web page that says 403", Fault::answered(403, "text/html", "<html>blocked</html>"), true),
        ("an unknown status", Fault::answered(418, "text/plain", "I am a teapot"), true),
        ("an unknown status of the API", Fault::refused(UNKNOWN), true),
        ("a status that no HTTP has", Fault::answered(999, "text/plain", "no"), true),
        ("a redirect", Fault::answered(302, "text/html", "<html>moved</html>"), true),
        ("lost request", Fault::lost_request(), true),
        ("lost reply", Fault::lost_reply(), true),
        ("reply cut short", Fault::reply_cut_short(), true),
        ("late reply", Fault::late(ms(200)), true),
        ("reply later than anybody waits", Fault::late(ms(600)), true),
        ("hung", Fault::hung(), true),
        ("hung after the effect", Fault::hung_after_effect(), true),
        ("burst limit", Fault::burst_limit(Duration::from_secs(1)), true),
        ("hourly limit", Fault::hourly_limit(Duration::from_secs(1)), true),
        ("pending event", Fault::pending_event(), true),
        ("said to be attached", Fault::refused(Refusal::ALREADY_ATTACHED), false),
        ("said not to be attached", Fault::refused(Refusal::ATTACHMENT_NOT_FOUND), false),
        ("said to be full", Fault::refused(Refusal::ATTACH_LIMIT), false),
        ("conflict", Fault::refused(Refusal::DUPLICATE_NAME_CONFLICT), false),
        ("quota", Fault::quota_used_up(), false),
        ("quota as 429", Fault::quota_used_up_as_429(), false),
        ("snapshot too soon", Fault::snapshot_too_soon(), false),
        ("bad token", Fault::refused(Refusal::UNAUTHORIZED), false),
        ("forbidden", Fault::refused(Refusal::FORBIDDEN), false),
    ]
}

/// What goes wrong with an action; the same call has to get over all of it.
fn action_faults() -> Vec<(&'static str, ActionFault)> {
    let ms = Duration::from_millis;
    vec![
        ("errored", ActionFault::errored()),
        ("errored three times", ActionFault::errored().times(3)),
        ("unknown at first", ActionFault::unknown_at_first(3)),
        ("slow", ActionFault::taking(ms(500))),
        ("never said to have ended", ActionFault::stays_in_progress()),
        ("droplet_ids late", ActionFault::droplet_ids_late(ms(300))),
        ("droplet_ids very late", ActionFault::droplet_ids_late(ms(1500))),
        ("droplet_ids early", ActionFault::droplet_ids_early()),
        ("size late", ActionFault::size_late(ms(300))),
        ("device late", ActionFault::device_late(ms(500))),
        ("half attached", ActionFault::half_attached(ms(500))),
        ("stale link", ActionFault::stale_link()),
    ]
}

/// The name of the volume that something is made from.
fn source_of(name: &str) -> String {
    format!("{name}-source")
}

/// One call after another on one cloud, each with something that goes wrong.
struct Trial {
    change: Change,
    fleet: ControllerHarness,
    plugin: crate::support::plugin::Plugin,
    bystander: String,
    cases: u32,
    complaints: Vec<String>,
}

impl Trial {
    fn start(change: Change, rules: Rules) -> Trial {
        let mut rules = rules;
        rules.limits = no_rate_limit();
        (rules.limits.attach, rules.limits.volumes) = (10_000, 0);
        let fleet = ControllerHarness::with(rules);
        let bystander = fleet.volume_on("bystander", B);
        let takeover = ["--takeover"].into_iter().filter(|_| change == Change::PublishByTakeover);
        let args: Vec<&str> = ARGS.into_iter().chain(takeover).collect();
        let plugin = fleet.controller(Path::new(PROGRAM), "one", &args);
        Trial { change, fleet, plugin, bystander, cases: 0, complaints: Vec::new() }
    }

    /// Makes the call, twice if need be; says whether everything that was to go wrong did.
    fn run(&mut self, what: &str, go_wrong: impl FnOnce(&ControllerHarness, &str), has_to_ride: bool) -> bool {
        self.cases += 1;
        let name = format!("case-{}", self.cases);
        let id = self.change.prepare(&self.fleet, &name);
        // A volume that this program created is shown when the call ends; one of somebody else may not be shown yet.
        let is_shown =
            || !self.change.is_about_a_volume() || self.plugin.client.validate(&Volume::mounted(&id, "ext4")).is_ok();
        wait_for(Duration::from_secs(10), || is_shown().then_some(())).expect("the volume is shown in the end");
        go_wrong(&self.fleet, &id);
        let first = self.change.make(&self.plugin.client, &name, &id);
        let is_met = self.fleet.sim.faults().outstanding() == 0;
        let may_stay = self.fleet.sim.faults().met() == [(DELETE_SNAPSHOT.0.to_owned(), DELETE_SNAPSHOT.1)];
        self.fleet.sim.faults().clear();
        let mut complain = |why: String| self.complaints.push(format!("{:?}, {what}: {why}", self.change));
        if let Err(refusal) = &first {
            if has_to_ride {
                complain(format!("the first try failed: {refusal}"));
            }
            if let Err(refusal) = self.change.make(&self.plugin.client, &name, &id) {
                complain(format!("the second try failed: {refusal}"));
            }
        }
        if let Some(mismatch) = self.change.mismatch(&self.fleet, &name, may_stay) {
            complain(mismatch);
        }
        if self.fleet.sim.attached_to(&self.bystander) != Some(B) {
            complain("another volume is not where it was".to_owned());
        }
        is_met
    }

    fn finish(self) -> (u32, Vec<String>) {
        (self.cases, self.complaints)
    }
}

fn at_every_request(change: Change, faults: &[RequestFault]) -> (u32, Vec<String>) {
    let rules = Rules { times: Times::actions(ACTION), ..Rules::default() };
    let mut trial = Trial::start(change, rules);
    for (what, fault, has_to_ride) in faults {
        for position in 0.. {
            let what = format!("{what} at request {}", position + 1);
            let fault = fault.clone();
            let is_met = trial.run(&what, |fleet, _| fleet.sim.faults().add(fault.after(position)), *has_to_ride);
            assert!(is_met || position > 0, "{what} never happened");
            assert!(position < MOST_REQUESTS, "{what}: the call has no end");
            if !is_met {
                break;
            }
        }
    }
    trial.finish()
}

/// Runs the trials side by side, since they mostly wait.
fn together<T: Sync>(inputs: &[T], trial: impl Fn(&T) -> (u32, Vec<String>) + Sync) {
    let (cases, complaints): (Vec<u32>, Vec<Vec<String>>) = std::thread::scope(|scope| {
        let threads: Vec<_> = inputs.iter().map(|input| scope.spawn(|| trial(input))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the trial runs to its end")).unzip()
    });
    let complaints = complaints.concat();
    println!("{} cases", cases.iter().sum::<u32>());
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

const CHANGES: [Change; 11] = [
    Change::Create,
    Change::Delete,
    Change::Publish,
    Change::Unpublish,
    Change::UnpublishAnywhere,
    Change::Expand,
    Change::Modify,
    Change::Snapshot,
    Change::DeleteSnapshot,
    Change::Restore,
    Change::Clone,
];

#[test]
fn whatever_happens_to_any_request_of_a_change_the_cloud_ends_as_asked() {
    let faults = request_faults();
    let inputs: Vec<_> = CHANGES.iter().flat_map(|change| faults.chunks(6).map(move |some| (*change, some))).collect();
    together(&inputs, |(change, some)| at_every_request(*change, some));
}

#[test]
fn whatever_happens_to_an_action_the_same_call_gets_over_it() {
    let changes = [
        Change::Publish,
        Change::PublishFromOff,
        Change::PublishFromGone,
        Change::PublishByTakeover,
        Change::Unpublish,
        Change::UnpublishAnywhere,
        Change::Expand,
        Change::Restore,
        Change::Clone,
    ];
    together(&changes, |change| {
        let mut trial = Trial::start(*change, Rules { times: Times::actions(ACTION), ..Rules::default() });
        for (what, fault) in action_faults() {
            let go_wrong = |fleet: &ControllerHarness, id: &str| {
                // A copy is another volume, of which the only action is the one that makes it larger.
                let is_copy = matches!(change, Change::Restore | Change::Clone);
                let fault = fault.clone();
                fleet.sim.faults().add_action(if is_copy { fault.of(ActionKind::Resize) } else { fault.on_volume(id) });
            };
            assert!(trial.run(what, go_wrong, true), "{change:?}, {what}: it never happened");
        }
        trial.finish()
    });
}

#[test]
fn a_volume_is_taken_from_another_droplet_whatever_happens_to_a_request() {
    let changes = [Change::PublishFromOff, Change::PublishFromGone, Change::PublishByTakeover];
    let names = ["500", "a web page that says 403", "lost reply", "hung after the effect", "pending event"];
    let faults: Vec<_> = request_faults().into_iter().filter(|(name, ..)| names.contains(name)).collect();
    assert_eq!(faults.len(), names.len());
    let inputs: Vec<_> = changes.iter().flat_map(|change| faults.chunks(2).map(move |some| (*change, some))).collect();
    together(&inputs, |(change, some)| at_every_request(*change, some));
}

#[test]
fn a_refusal_of_an_action_that_does_not_hold_is_ridden_out() {
    let table = [
        (Change::Publish, vec![Refusal::ALREADY_ATTACHED, Refusal::INVALID_PAYLOAD]),
        (Change::Unpublish, vec![Refusal::ATTACHMENT_NOT_FOUND, Refusal::INVALID_PAYLOAD]),
        (Change::UnpublishAnywhere, vec![Refusal::ATTACHMENT_NOT_FOUND, Refusal::INVALID_PAYLOAD]),
    ];
    together(&table, |(change, refusals)| {
        let mut trial = Trial::start(*change, Rules { times: Times::actions(ACTION), ..Rules::default() });
        for refusal in refusals {
            let fault = Fault::refused(*refusal).on("POST", "/v2/volumes/{id}/actions").times(2);
            let is_met = trial.run(refusal.message, |fleet, _| fleet.sim.faults().add(fault.clone()), true);
            assert!(is_met, "{change:?}, {refusal}: it never happened");
        }
        trial.finish()
    });
}

type Switch = fn(&mut Rules);

/// What nobody knows about DigitalOcean; the program has to be right either way.
fn switches() -> Vec<(&'static str, Switch)> {
    vec![
        ("attach to the same droplet again is accepted", |rules| rules.switches.attach_again_is_accepted = true),
        ("empty lists are null", |rules| rules.switches.empty_arrays_are_null = true),
        ("a duplicate already exists", |rules| rules.switches.duplicate_name_says_already_exists = true),
        ("new volumes are hidden", |rules| rules.times.create_visible_after = Duration::from_millis(300)),
        ("deleted volumes linger", |rules| rules.times.deleted_lingers = Duration::from_millis(300)),
        ("snapshots may share a name", |rules| rules.switches.duplicate_snapshot_names_are_accepted = true),
        ("resource ids are 0", |rules| rules.switches.resource_id_is_zero = true),
        ("resource types are volume", |rules| rules.switches.resource_type_is_volume = true),
        ("actions take no time", |rules| rules.times = Times::actions(Duration::ZERO)),
    ]
}

#[test]
fn under_every_habit_that_digitalocean_may_have_a_lost_reply_is_found_again() {
    let inputs: Vec<_> = CHANGES.iter().flat_map(|change| switches().into_iter().map(|it| (*change, it))).collect();
    together(&inputs, |(change, (what, switch))| {
        let mut rules = Rules { times: Times::actions(ACTION), ..Rules::default() };
        switch(&mut rules);
        let mut trial = Trial::start(*change, rules);
        for position in 0..3 {
            let go_wrong =
                |fleet: &ControllerHarness, _: &str| fleet.sim.faults().add(Fault::lost_reply().after(position));
            let is_met = trial.run(&format!("{what}, lost reply {position}"), go_wrong, true);
            assert!(is_met || position > 0, "{change:?}, {what}: it never happened");
        }
        trial.finish()
    });
}
