//! Scripted faults: what goes wrong with which request or action, and how often.
//!
//! Owns the script and its bookkeeping. A fault reads as a sentence:
//! `sim.faults().add(Fault::lost_reply().on("POST", "/v2/volumes").times(2))`.
//! Faults that are lasting properties of the cloud (limits, texts, lags for everything) are in `config.rs`.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::endpoint;
use super::http::{Delivery, Reply, Request};
use super::lock;
use super::refusal::Refusal;
use super::state::{ActionKind, Twists};

/// What a bad gateway of the edge says; nothing of it is JSON.
const EDGE_PAGE: &str = "<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>\n";

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Course {
    /// It has no effect and is refused in the API's form.
    Refuse { refusal: Refusal, headers: Vec<(&'static str, String)> },
    /// It has no effect and this is delivered.
    Instead(Delivery),
    /// It has its effect, and the true reply is delivered so.
    Afterwards(Manner),
    /// It has its effect when the gate is opened.
    Held(Gate),
    /// It has its effect at once, and the true reply is delivered when the gate is opened.
    ReplyHeld(Gate),
}

/// A place where a request stops until a test lets it go on.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    is_reached: bool,
    is_open: bool,
}

impl PartialEq for Gate {
    fn eq(&self, other: &Gate) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Gate {}

impl Gate {
    /// Lets every request go on, those that stop here and those that come later.
    pub fn open(&self) {
        lock(&self.0.0).is_open = true;
        self.0.1.notify_all();
    }

    /// Waits until a request stops here; says whether one did in time.
    pub fn is_reached_within(&self, patience: Duration) -> bool {
        let state = lock(&self.0.0);
        let waited = self.0.1.wait_timeout_while(state, patience, |state| !state.is_reached);
        waited.expect("nobody panics while holding this lock").0.is_reached
    }

    fn pass(&self) {
        let mut state = lock(&self.0.0);
        state.is_reached = true;
        self.0.1.notify_all();
        drop(self.0.1.wait_while(state, |state| !state.is_open).expect("nobody panics while holding this lock"));
    }
}

/// How the true reply, after the effect, is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Manner {
    Late(Duration),
    CutShort,
    Lost,
    NeverSent,
    ReplacedBy(Reply),
}

/// One scripted departure from the normal course of requests. Without [`Fault::on`] it meets every request.
#[derive(Debug, Clone)]
pub struct Fault {
    course: Course,
    route: Option<(&'static str, &'static str)>,
    containing: Option<String>,
    path: Option<String>,
    skip: u32,
    left: u32,
}

impl Fault {
    /// The request is refused with this status, id and message, and has no effect.
    pub fn refused(refusal: Refusal) -> Fault {
        Fault::new(Course::Refuse { refusal, headers: Vec::new() })
    }

    /// The request has its effect only when the gate is opened.
    pub fn held(gate: &Gate) -> Fault {
        Fault::new(Course::Held(gate.clone()))
    }

    /// The request has its effect, and is answered only when the gate is opened.
    pub fn reply_held(gate: &Gate) -> Fault {
        Fault::new(Course::ReplyHeld(gate.clone()))
    }

    /// The request is answered with this status and body, and has no effect.
    pub fn answered(status: u16, content_type: &str, body: &str) -> Fault {
        Fault::new(Course::Instead(Delivery::Send(Reply::new(status, content_type, body))))
    }

    /// The edge answers 502 with an HTML page; the request has no effect.
    pub fn html_page() -> Fault {
        Fault::answered(502, "text/html", EDGE_PAGE)
    }

    /// A gateway that has lost its route answers 404 in its own words; the request has no effect.
    pub fn no_route_at_gateway() -> Fault {
        Fault::answered(404, "application/json", r#"{"message":"no Route matched with those values"}"#)
    }

    /// The API itself does not find what is there, as it has been seen to do (`droplet_kit` issue 94).
    pub fn not_found() -> Fault {
        Fault::refused(Refusal::NOT_FOUND)
    }

    /// The request has its effect, but the edge answers 504 with an HTML page.
    pub fn html_page_after_effect() -> Fault {
        let page = Reply::new(504, "text/html", EDGE_PAGE);
        Fault::new(Course::Afterwards(Manner::ReplacedBy(page)))
    }

    /// 500; the request has no effect.
    pub fn server_error() -> Fault {
        Fault::refused(Refusal::SERVER_ERROR)
    }

    /// 503; the request has no effect.
    pub fn unavailable() -> Fault {
        Fault::refused(Refusal::UNAVAILABLE)
    }

    /// 429 of the burst limit, with `retry-after` (`description.yml`).
    pub fn burst_limit(retry_after: Duration) -> Fault {
        let headers = vec![("ratelimit-remaining", "0".to_owned()), ("retry-after", retry_after.as_secs().to_string())];
        Fault::new(Course::Refuse { refusal: Refusal::RATE_LIMIT, headers })
    }

    /// 429 of the hourly limit: no `retry-after`, only the headers that say when a request is free again: in whole
    /// seconds, so long after the fault was scripted.
    pub fn hourly_limit(free_in: Duration) -> Fault {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let reset = (now + free_in).as_secs();
        let headers = vec![("ratelimit-remaining", "0".to_owned()), ("ratelimit-reset", reset.to_string())];
        Fault::new(Course::Refuse { refusal: Refusal::RATE_LIMIT, headers })
    }

    /// 429 of the ten-minute rule for snapshots.
    pub fn snapshot_too_soon() -> Fault {
        Fault::refused(Refusal::SNAPSHOT_TOO_SOON)
    }

    /// The account's quota is used up, in its 403 form.
    pub fn quota_used_up() -> Fault {
        Fault::refused(Refusal::CREATE_QUOTA)
    }

    /// The account's quota is used up, in its 429 form.
    pub fn quota_used_up_as_429() -> Fault {
        Fault::refused(Refusal::CREATE_QUOTA.as_too_many_requests())
    }

    /// The droplet is said to be busy, although no event of ours is pending.
    pub fn pending_event() -> Fault {
        Fault::refused(Refusal::PENDING_EVENT)
    }

    /// The connection is closed before the request has any effect.
    pub fn lost_request() -> Fault {
        Fault::new(Course::Instead(Delivery::Drop))
    }

    /// The request has its effect, then the connection is closed without a reply.
    pub fn lost_reply() -> Fault {
        Fault::new(Course::Afterwards(Manner::Lost))
    }

    /// The request has its effect, then half of the reply is sent and the connection closed.
    pub fn reply_cut_short() -> Fault {
        Fault::new(Course::Afterwards(Manner::CutShort))
    }

    /// The request has its effect at once; the reply comes this much later, in real time.
    pub fn late(by: Duration) -> Fault {
        Fault::new(Course::Afterwards(Manner::Late(by)))
    }

    /// The request has no effect and is never answered.
    pub fn hung() -> Fault {
        Fault::new(Course::Instead(Delivery::Hang))
    }

    /// The request has its effect and is never answered.
    pub fn hung_after_effect() -> Fault {
        Fault::new(Course::Afterwards(Manner::NeverSent))
    }

    /// Only requests to this route, such as `"POST"`, `"/v2/volumes/{id}/actions"`.
    ///
    /// # Panics
    /// There is no such route, so the fault could never happen.
    pub fn on(self, method: &'static str, pattern: &'static str) -> Fault {
        assert!(endpoint::exists(method, pattern), "no route {method} {pattern}");
        Fault { route: Some((method, pattern)), ..self }
    }

    /// Only requests whose body contains this text, to tell `"detach"` from `"resize"`.
    pub fn containing(self, text: &str) -> Fault {
        Fault { containing: Some(text.to_owned()), ..self }
    }

    /// Only requests about this volume, by its id in the path.
    pub fn about(self, id: &str) -> Fault {
        Fault { path: Some(id.to_owned()), ..self }
    }

    /// Spares the first `count` requests that match.
    pub fn after(self, count: u32) -> Fault {
        Fault { skip: count, ..self }
    }

    /// Happens `count` times instead of once.
    pub fn times(self, count: u32) -> Fault {
        Fault { left: count, ..self }
    }

    /// Happens until [`Faults::clear`].
    pub fn always(self) -> Fault {
        self.times(u32::MAX)
    }

    fn new(course: Course) -> Fault {
        Fault { course, route: None, containing: None, path: None, skip: 0, left: 1 }
    }

    fn meets(&self, pattern: Option<&str>, request: &Request) -> bool {
        let is_route = self.route.is_none_or(|(method, wanted)| request.method == method && pattern == Some(wanted));
        let is_path = self.path.as_ref().is_none_or(|part| request.path.contains(part));
        is_route
            && is_path
            && self.containing.as_ref().is_none_or(|text| String::from_utf8_lossy(&request.body).contains(text))
    }
}

/// One scripted departure from the normal course of actions.
#[derive(Debug, Clone)]
pub struct ActionFault {
    twists: Twists,
    kind: Option<ActionKind>,
    volume: Option<String>,
    left: u32,
}

impl ActionFault {
    /// The action ends as `errored` and changes nothing.
    pub fn errored() -> ActionFault {
        ActionFault::new(Twists { errored: true, ..Twists::default() })
    }

    /// The first `polls` requests for the action are answered with 404.
    pub fn unknown_at_first(polls: u32) -> ActionFault {
        ActionFault::new(Twists { hidden_polls: polls, ..Twists::default() })
    }

    /// The action takes this long.
    pub fn taking(time: Duration) -> ActionFault {
        ActionFault::new(Twists { time: Some(time), ..Twists::default() })
    }

    /// `droplet_ids` changes only this long after the action has completed.
    pub fn droplet_ids_late(by: Duration) -> ActionFault {
        ActionFault::new(Twists { ids_late: by, ..Twists::default() })
    }

    /// `droplet_ids` changes as soon as the action starts.
    pub fn droplet_ids_early() -> ActionFault {
        ActionFault::new(Twists { ids_early: true, ..Twists::default() })
    }

    /// `volume_ids` of the droplet changes only this long after the action has completed.
    pub fn droplet_record_late(by: Duration) -> ActionFault {
        ActionFault::new(Twists { record_late: by, ..Twists::default() })
    }

    /// `droplet_ids` and the droplet's `volume_ids` change only this long after the action has completed.
    pub fn records_late(by: Duration) -> ActionFault {
        ActionFault::new(Twists { ids_late: by, record_late: by, ..Twists::default() })
    }

    /// Lists of actions have the action only this long after it began, and `droplet_ids` changes so long after its end.
    pub fn unlisted(by: Duration) -> ActionFault {
        ActionFault::new(Twists { action_late: by, ids_late: by, ..Twists::default() })
    }

    /// Lists of actions have the action only this long after it began.
    pub fn unlisted_only(by: Duration) -> ActionFault {
        ActionFault::new(Twists { action_late: by, ..Twists::default() })
    }

    /// The new size of a volume is shown only this long after its resize has completed.
    pub fn size_late(by: Duration) -> ActionFault {
        ActionFault::new(Twists { size_late: by, ..Twists::default() })
    }

    /// The action has its effect in its usual time, and says for ever that it is in progress.
    pub fn stays_in_progress() -> ActionFault {
        ActionFault::new(Twists { stays_in_progress: true, ..Twists::default() })
    }

    /// The droplet sees the new device or capacity only this long after the action has completed.
    pub fn device_late(by: Duration) -> ActionFault {
        ActionFault::new(Twists { device_lag: Some(by), ..Twists::default() })
    }

    /// The device appears without any capacity and becomes whole after this time.
    pub fn half_attached(time: Duration) -> ActionFault {
        ActionFault::new(Twists { half_attached: Some(time), ..Twists::default() })
    }

    /// A detach leaves the link behind, pointing at a device that is free for the next attachment.
    pub fn stale_link() -> ActionFault {
        ActionFault::new(Twists { stale_link: true, ..Twists::default() })
    }

    /// Only actions of this kind.
    pub fn of(self, kind: ActionKind) -> ActionFault {
        ActionFault { kind: Some(kind), ..self }
    }

    /// Only actions on the volume of this id.
    pub fn on_volume(self, id: &str) -> ActionFault {
        ActionFault { volume: Some(id.to_owned()), ..self }
    }

    /// Happens to `count` actions instead of one.
    pub fn times(self, count: u32) -> ActionFault {
        ActionFault { left: count, ..self }
    }

    fn new(twists: Twists) -> ActionFault {
        ActionFault { twists, kind: None, volume: None, left: 1 }
    }
}

/// The script of a simulator.
#[derive(Debug, Default)]
pub struct Faults {
    requests: Mutex<Vec<Fault>>,
    actions: Mutex<Vec<ActionFault>>,
    met: Mutex<Vec<(String, &'static str)>>,
}

impl Faults {
    /// Adds a fault for requests. Of several that match, the one added first happens.
    pub fn add(&self, fault: Fault) {
        lock(&self.requests).push(fault);
    }

    /// Adds a fault for actions. Of several that match, the one added first happens.
    pub fn add_action(&self, fault: ActionFault) {
        lock(&self.actions).push(fault);
    }

    /// Forgets everything scripted.
    pub fn clear(&self) {
        lock(&self.requests).clear();
        lock(&self.actions).clear();
        lock(&self.met).clear();
    }

    /// Method and route of every request that a fault has met since the last [`Faults::clear`], in order.
    pub fn met(&self) -> Vec<(String, &'static str)> {
        lock(&self.met).clone()
    }

    /// How many scripted faults have yet to happen; 0 proves that a test met them all.
    pub fn outstanding(&self) -> usize {
        lock(&self.requests).len() + lock(&self.actions).len()
    }

    /// Uses up the fault that meets this request, if any.
    pub(super) fn take(&self, pattern: Option<&'static str>, request: &Request) -> Option<Fault> {
        let mut faults = lock(&self.requests);
        let fault = faults.iter_mut().filter(|fault| fault.meets(pattern, request)).find_map(|fault| {
            let is_due = fault.skip == 0;
            fault.skip = fault.skip.saturating_sub(1);
            is_due.then_some(fault)
        })?;
        let taken = fault.clone();
        use_up(&mut fault.left);
        faults.retain(|fault| fault.left > 0);
        lock(&self.met).push((request.method.clone(), pattern.unwrap_or("no route")));
        Some(taken)
    }

    /// Uses up the fault that meets an action about to start, if any.
    pub(super) fn take_twists(&self, kind: ActionKind, volume: &str) -> Twists {
        let mut faults = lock(&self.actions);
        let met = faults.iter_mut().find(|fault| {
            fault.kind.is_none_or(|wanted| wanted == kind)
                && fault.volume.as_ref().is_none_or(|wanted| wanted == volume)
        });
        let Some(fault) = met else { return Twists::default() };
        let twists = fault.twists.clone();
        use_up(&mut fault.left);
        faults.retain(|fault| fault.left > 0);
        twists
    }
}

/// `u32::MAX` stands for "always" and is never used up.
fn use_up(left: &mut u32) {
    if *left != u32::MAX {
        *left -= 1;
    }
}

/// Answers a request under an optional fault: `refuse` words a refusal, `answer` has the effect.
pub(super) fn deliver(
    fault: Option<Fault>,
    refuse: impl FnOnce(&Refusal) -> Reply,
    answer: impl FnOnce() -> Reply,
) -> Delivery {
    let Some(fault) = fault else { return Delivery::Send(answer()) };
    match fault.course {
        Course::Refuse { refusal, headers } => {
            let mut reply = refuse(&refusal);
            for (name, value) in headers {
                reply.headers.retain(|(present, _)| present != name);
                reply = reply.with_header(name, value);
            }
            Delivery::Send(reply)
        }
        Course::Instead(delivery) => delivery,
        Course::Held(gate) => {
            gate.pass();
            Delivery::Send(answer())
        }
        Course::ReplyHeld(gate) => {
            let reply = answer();
            gate.pass();
            Delivery::Send(reply)
        }
        Course::Afterwards(manner) => {
            let reply = answer();
            match manner {
                Manner::Late(by) => Delivery::SendAfter(by, reply),
                Manner::CutShort => Delivery::CutShort(reply),
                Manner::Lost => Delivery::Drop,
                Manner::NeverSent => Delivery::Hang,
                Manner::ReplacedBy(other) => Delivery::Send(other),
            }
        }
    }
}
