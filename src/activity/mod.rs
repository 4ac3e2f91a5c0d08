//! What this process is doing: the calls that it works on, what each waits for, and the last changes that it made.
//!
//! Owns the number and the label of each call, and the one mechanism that tells of a call that takes long. One call lives on
//! one thread from start to end, so what that thread says, waits for and changes belongs to the call. It decides nothing, and
//! nothing here is a fact about a volume.

mod events;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{Level, error, log};

pub use events::{Change, tell_change};

/// Most bytes of one value: an id, a name or a path of usual length.
const MAX_VALUE: usize = 256;
/// Stack of the thread that tells of long calls, which only writes lines.
const STACK: usize = 256 << 10;
/// At which ages of a call it is told what it waits for, in hundredths of a call's budget: after 5, 15, 30 and 60 s by default.
const MARKS: [u32; 4] = [5, 15, 30, 60];
/// From which of these on it is a warning.
const WARNED_FROM: usize = 2;

/// A hundredth of a call's budget, in milliseconds.
static HUNDREDTH_MS: AtomicU64 = AtomicU64::new(1000);
/// Numbers the calls of this process, so that the lines of one call can be found among those of others.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
/// The calls that have come and have not ended.
static CALLS: Mutex<Calls> = Mutex::new(Calls { open: BTreeMap::new(), is_watched: false });

thread_local! {
    static CURRENT: RefCell<Option<Arc<Call>>> = const { RefCell::new(None) };
}

struct Calls {
    open: BTreeMap<u64, Arc<Call>>,
    /// Whether there is a thread that looks after them.
    is_watched: bool,
}

/// Takes in how long a call may take: what is told of a long one is told at parts of that. Until then it is 100 s.
pub fn set_call_budget(budget: Duration) {
    let hundredth = u64::try_from((budget / 100).as_millis()).unwrap_or(u64::MAX);
    HUNDREDTH_MS.store(hundredth.max(1), Ordering::Relaxed);
}

/// What a call, or a change, is about: keys of the log's vocabulary, each with its value.
///
/// `Display` is `volume=506f78a4-… droplet=3164444`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About(Vec<(&'static str, String)>);

impl About {
    /// The same with one more value, of which at most 256 bytes are kept; an empty one is left out.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> About {
        let mut value = value.to_string();
        let most = (0..=MAX_VALUE).rev().find(|end| value.is_char_boundary(*end)).unwrap_or_default();
        value.truncate(most);
        if !value.is_empty() {
            self.0.push((key, value));
        }
        self
    }

    /// The same with the allocation that a path of Nomad's belongs to, when it is such a path.
    ///
    /// Source: Nomad's `client/pluginmanager/csimanager/volume.go`, `targetForVolume`: `per-alloc/ALLOCATION/VOLUME/USAGE`.
    #[must_use]
    pub fn at(self, path: &str) -> About {
        let mut parts = path.split('/').skip_while(|part| *part != "per-alloc");
        let alloc = parts.nth(1).unwrap_or_default();
        self.with("alloc", alloc)
    }

    /// The keys and their values, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(key, value)| (*key, value.as_str()))
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(one, _)| *one == key).map(|(_, value)| value)
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            let shown: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            write!(f, "{blank}{key}={shown}")?;
        }
        Ok(())
    }
}

/// A call, from its coming to its end.
#[derive(Debug)]
pub struct Call {
    /// Its number; no other call of this process has it.
    pub number: u64,
    /// The RPC's name as in the CSI specification.
    pub rpc: &'static str,
    /// When it came, before it waited for a thread.
    pub came: Instant,
    about: Mutex<About>,
    progress: Mutex<Progress>,
}

/// What a call waits for, and how often that was told.
#[derive(Debug, Default)]
struct Progress {
    /// The wait, and those inside it.
    waits: Vec<Wait>,
    /// The one that ended last.
    last: Option<Wait>,
    marks_told: usize,
    is_begun: bool,
}

/// One thing that is waited for.
#[derive(Debug, Clone)]
struct Wait {
    doing: String,
    detail: String,
    since: Instant,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wait { doing, detail, since } = self;
        write!(f, "{doing}{}{detail} since {} s", if detail.is_empty() { "" } else { ": " }, since.elapsed().as_secs())
    }
}

/// For people: its age, which call it is, and what it waits for.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ms={} [{} {} {}]", self.came.elapsed().as_millis(), self.number, self.rpc, self.about())?;
        self.waits_for().map_or(Ok(()), |words| write!(f, " {words}"))
    }
}

impl Call {
    /// A call that has come now, or then.
    #[must_use]
    pub fn new(rpc: &'static str, about: About, came: Instant) -> Arc<Call> {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        Arc::new(Call { number, rpc, came, about: Mutex::new(about), progress: Mutex::default() })
    }

    /// What it is about, as far as that is known by now.
    #[must_use]
    pub fn about(&self) -> About {
        self.about.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a thread works on it, or it waits for one.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.progress().is_begun
    }

    /// What it waits for now, and since when, as a phrase: "attaching volume 506f… to droplet 3164444: DigitalOcean's action 5001
    /// is in-progress since 12 s". `None` while it does something itself.
    #[must_use]
    pub fn waits_for(&self) -> Option<String> {
        self.progress().in_words()
    }

    /// What it waits for, and since when that is so, without what is inside that wait.
    #[must_use]
    pub fn wait(&self) -> Option<(String, Instant)> {
        let progress = self.progress();
        let Wait { doing, detail, since } = progress.waits.first()?;
        let colon = if detail.is_empty() { "" } else { ": " };
        Some((format!("{doing}{colon}{detail}"), *since))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of the call when it is time to; gives the age at which it is to be told of next.
    fn tell_if_due(self: &Arc<Call>, hundredth: Duration) -> Option<Duration> {
        let age = self.came.elapsed();
        let mut progress = self.progress();
        let reached = MARKS.iter().filter(|mark| hundredth * **mark <= age).count();
        if reached > progress.marks_told {
            progress.marks_told = reached;
            let level = if reached > WARNED_FROM { Level::Warn } else { Level::Info };
            let words = progress.in_words();
            drop(progress);
            let _label = enter(Arc::clone(self));
            let seconds = age.as_secs();
            match words {
                Some(words) => log!(level, seconds; "still {words}"),
                None => log!(level, seconds; "still at work"),
            }
        }
        MARKS.get(reached).map(|mark| (hundredth * *mark).saturating_sub(age))
    }
}

impl Progress {
    fn begin(&mut self, doing: String, detail: String) {
        let now = Instant::now();
        // Waiting again for the same is waiting on.
        let before = self.last.take().filter(|last| last.doing == doing);
        self.waits.push(Wait { doing, detail, since: before.map_or(now, |last| last.since) });
    }

    fn in_words(&self) -> Option<String> {
        match self.waits.as_slice() {
            [] => None,
            [one] => Some(one.to_string()),
            [outer, .., inner] => Some(format!("{outer}; at the moment {inner}")),
        }
    }
}

/// Keeps a call among those that are open while it lives, and is the only way to have it told of.
#[derive(Debug)]
pub struct Open(Arc<Call>);

impl Open {
    /// Enters a call among those that are open. It waits for a thread until one begins it.
    #[must_use]
    pub fn new(call: Arc<Call>) -> Open {
        call.progress().begin("waiting for a thread of the plugin".to_owned(), "earlier calls have them".to_owned());
        let mut calls = calls();
        calls.open.insert(call.number, Arc::clone(&call));
        if !calls.is_watched {
            let started = thread::Builder::new().name("long-calls".to_owned()).stack_size(STACK).spawn(watch);
            match started {
                Ok(_) => calls.is_watched = true,
                Err(err) => error!("cannot start a thread, so nothing is told of calls that take long: {err}"),
            }
        }
        drop(calls);
        Open(call)
    }

    /// Begins the call on this thread; what the thread does belongs to it as long as the label lives.
    #[must_use]
    pub fn begin(&self) -> Label {
        let mut progress = self.0.progress();
        progress.waits.clear();
        progress.is_begun = true;
        drop(progress);
        enter(Arc::clone(&self.0))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        calls().open.remove(&self.0.number);
    }
}

fn calls() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calls that are open, oldest first.
#[must_use]
pub fn open_calls() -> Vec<Arc<Call>> {
    calls().open.values().cloned().collect()
}

/// Tells of calls that take long, as long as there are calls.
fn watch() {
    loop {
        let open = {
            let mut calls = calls();
            if calls.open.is_empty() {
                calls.is_watched = false;
                return;
            }
            calls.open.values().cloned().collect::<Vec<_>>()
        };
        let hundredth = Duration::from_millis(HUNDREDTH_MS.load(Ordering::Relaxed));
        let due = open.iter().filter_map(|call| call.tell_if_due(hundredth)).min();
        // A call that comes meanwhile is not told of earlier than after this.
        let longest = MARKS.first().map_or(hundredth, |mark| hundredth * *mark);
        thread::sleep(due.unwrap_or(longest).min(longest));
    }
}

/// Marks what this thread does as a call's while it lives.
#[derive(Debug)]
pub struct Label(());

/// Makes this thread work for a call.
#[must_use]
pub fn enter(call: Arc<Call>) -> Label {
    CURRENT.with(|current| current.replace(Some(call)));
    Label(())
}

impl Drop for Label {
    fn drop(&mut self) {
        CURRENT.with(|current| current.replace(None));
    }
}

/// The call that this thread works for.
#[must_use]
pub fn current_call() -> Option<Arc<Call>> {
    CURRENT.with(|current| current.borrow().clone())
}

/// Takes in the name of a volume. Where this thread's call is about that volume and its name was not known, lines that follow
/// have it; and changes of the volume that are told later.
pub fn learn_name(volume: &str, name: impl fmt::Display) {
    events::remember_name(volume, &name);
    if let Some(call) = current_call() {
        let mut about = call.about.lock().unwrap_or_else(PoisonError::into_inner);
        if about.get("volume") == Some(volume) && about.get("name").is_none() {
            *about = std::mem::take(&mut *about).with("name", name);
        }
    }
}

/// Says what this thread's call waits for, until the value is dropped: `doing` as a present participle with its object, `detail`
/// what has not happened yet. Nothing is logged at once; it is told when the call has taken long.
#[must_use]
pub fn wait_for(doing: impl Into<String>, detail: impl fmt::Display) -> Waiting {
    let call = current_call();
    if let Some(call) = &call {
        call.progress().begin(doing.into(), detail.to_string());
    }
    Waiting(call)
}

/// What a call waits for is this as long as it lives.
#[derive(Debug)]
pub struct Waiting(Option<Arc<Call>>);

impl Waiting {
    /// Says anew what has not happened yet.
    pub fn update(&self, detail: impl fmt::Display) {
        if let Some(call) = &self.0
            && let Some(wait) = call.progress().waits.last_mut()
        {
            wait.detail = detail.to_string();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(call) = &self.0 {
            let mut progress = call.progress();
            progress.last = progress.waits.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_learns_the_name_of_its_own_volume_once() {
        let call = call();
        let _label = enter(Arc::clone(&call));
        learn_name("w", "other");
        learn_name("v", "blog");
        learn_name("v", "later");
        assert_eq!(call.about().to_string(), "volume=v name=blog");
    }

    fn call() -> Arc<Call> {
        Call::new("NodeStageVolume", About::default().with("volume", "v"), Instant::now())
    }

    #[test]
    fn what_a_call_is_about_is_bounded_and_names_the_allocation_of_a_path() {
        let path = "/local/csi/per-alloc/4b9c/postgres/rw-file-system-single-node-writer";
        let about = About::default().with("volume", "x".repeat(500)).with("name", "").at(path);
        assert_eq!(about.get("volume").map(str::len), Some(MAX_VALUE));
        assert_eq!((about.get("name"), about.get("alloc")), (None, Some("4b9c")));
        assert_eq!(About::default().at("/var/lib/kubelet/pods/x").get("alloc"), None);
        assert_eq!(About::default().with("name", "a\nb").with("droplet", 7).to_string(), "name=a b droplet=7");
    }

    #[test]
    fn waits_are_told_with_what_is_inside_them_and_go_on_when_they_are_for_the_same() {
        let call = call();
        let _label = enter(Arc::clone(&call));
        assert_eq!(call.waits_for(), None);
        let outer = wait_for("attaching", "action 1 is new");
        outer.update("action 1 is in-progress");
        let inner = wait_for("asking DigitalOcean", "GET /v2/actions/1");
        let words = call.waits_for().unwrap();
        assert!(words.starts_with("attaching: action 1 is in-progress since 0 s; at the moment asking"), "{words}");
        drop(inner);
        let since = call.progress().waits.first().map(|wait| wait.since);
        drop(outer);
        let _again = wait_for("attaching", "");
        assert_eq!(call.progress().waits.first().map(|wait| wait.since), since);
    }

    #[test]
    fn a_call_is_told_of_once_at_each_mark() {
        let call = call();
        let unit = Duration::from_millis(1);
        let far = Duration::from_secs(3600);
        assert!(call.tell_if_due(far).is_some_and(|left| left > far));
        assert_eq!(call.progress().marks_told, 0);
        thread::sleep(unit * 100);
        assert_eq!(call.tell_if_due(unit), None);
        assert_eq!(call.progress().marks_told, MARKS.len());
    }

    #[test]
    fn a_call_is_open_until_it_ends_and_waits_for_a_thread_before_it_begins() {
        let open = Open::new(call());
        let number = open.0.number;
        let is_open = || open_calls().iter().any(|call| call.number == number);
        assert!(is_open() && open.0.waits_for().is_some_and(|words| words.contains("a thread")));
        let label = open.begin();
        assert_eq!((open.0.waits_for(), current_call().map(|call| call.number)), (None, Some(number)));
        drop(label);
        assert!(current_call().is_none());
        drop(open);
        assert!(!open_calls().iter().any(|call| call.number == number));
    }
}
