//! Every system call of every node call made to fail once, one at a time, while a task uses the volume.
//!
//! Each call is recorded once for each usual state of a volume. Then it is made again and again, each time with another one of
//! its system calls answered by an error that the kernel gives when it is short of memory, has lost a disk, or is asked by
//! somebody without rights. Afterwards known files are whole, the task goes on, OK was said only where the mount table agrees,
//! and the same call without the fault succeeds. `FAULTS=K/N` plays every N-th fault, beginning with the K-th; `CASE=text`
//! plays only what has the text in its name, such as `CASE="Publish xfs"`; `IN=programs` plays those of the programs that the
//! plugin starts (mkfs, blkid and the like) instead of its own.
//!
//! What is the same fault is not played again and again, and how many were left out is said:
//! - A call asks the same of the kernel at several places: it looks at its disk again each time it opens it. The first time each
//!   error is played; of the later times the first, the last and three between, each with "no such file" and with one other error
//!   by turns, as to the code that is what differs: it is told, or it cannot tell.
//! - Reads of a disk that follow each other and have the same length and the same answer are one place. A look at a blank disk is
//!   four hundred of them, all of one loop that ends at the first error, whichever it is.
//! - Looks at other processes and other disks are one place, as one loop looks at them all; how many there are is the machine's
//!   own matter.
//! - The file systems share the errors that only say "cannot tell" between them: which of these it is does not depend on the file
//!   system. A raw disk has them all. `FAULTS=every` shares and leaves out nothing.

mod scene;
mod tools;
pub mod tracer;

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Outcome;
use crate::support::wait_for;
use scene::{Places, Scene, Seen, State, Verb};
use tools::Tools;
use tracer::{Event, OwnDisk, Tracer};

/// How long a task keeps its file open while it is asked to be unpublished: longer than a call needs to find that out.
const HOLDS_ON: Duration = Duration::from_millis(150);

/// A call slower than this is told of.
const SLOW: Duration = Duration::from_secs(3);

/// A call in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    verb: Verb,
    state: State,
    is_read_only: bool,
}

impl Case {
    fn name(self, fs: &str) -> String {
        let how = if self.is_read_only { " read-only" } else { "" };
        format!("{:?} {fs} {:?}{how}", self.verb, self.state)
    }

    /// Where the volume is after the call.
    fn after(self) -> Places {
        let before = Places { is_staged: self.state.is_staged(), is_published: self.state.is_published() };
        match self.verb {
            Verb::Stage => Places { is_staged: true, ..before },
            Verb::Unstage => Places { is_staged: false, ..before },
            Verb::Publish => Places { is_published: true, ..before },
            Verb::Unpublish => Places { is_published: false, ..before },
            Verb::Expand | Verb::Stats => before,
        }
    }

    /// Whether the call is about to make or take away the mount at the staging path, and the one at the target; one that it is
    /// not about to change stays as it is.
    fn changes(self) -> [bool; 2] {
        let after = self.after();
        [after.is_staged != self.state.is_staged(), after.is_published != self.state.is_published()]
    }

    fn is_refused_while_used(self) -> bool {
        self.verb == Verb::Unpublish && self.state == State::InUse
    }

    /// Whether it may not be said to be done as long as a mount that nobody sees goes on.
    fn is_refused_while_held(self) -> bool {
        self.state.is_held()
    }
}

/// All cases of a file system, in an order in which little has to be prepared between them.
fn cases(fs: &str) -> Vec<Case> {
    let case = |(verb, state)| Case { verb, state, is_read_only: false };
    let mut cases: Vec<Case> = [
        (Verb::Stage, State::Blank),
        (Verb::Stage, State::Attached),
        (Verb::Unstage, State::Attached),
        (Verb::Stage, State::Staged),
        (Verb::Unpublish, State::Staged),
        (Verb::Publish, State::Staged),
        (Verb::Unpublish, State::Published),
        (Verb::Unpublish, State::InUse),
        (Verb::Stage, State::InUse),
        (Verb::Publish, State::InUse),
        (Verb::Stats, State::InUse),
        (Verb::Expand, State::InUse),
        (Verb::Expand, State::Grown),
        (Verb::Unstage, State::InUse),
        (Verb::Unstage, State::Staged),
        (Verb::Unstage, State::Held),
        (Verb::Unstage, State::HeldSince),
        (Verb::Unpublish, State::PublishedSince),
        (Verb::Publish, State::PublishedSince),
    ]
    .into_iter()
    .map(case)
    .collect();
    // A raw disk is never formatted, and not mounted when it is staged; and what the kernel needs for growing ext is not given everywhere.
    let is_possible = |case: &Case| match (case.state, case.verb) {
        (State::Blank, _) => fs != "raw",
        (State::Grown, Verb::Expand) => fs != "ext4" || crate::harness::may_grow_ext(),
        _ => true,
    };
    cases.retain(is_possible);
    let reading = [(Verb::Publish, State::Staged), (Verb::Publish, State::InUse), (Verb::Unpublish, State::Published)];
    cases.extend(reading.map(|(verb, state)| Case { verb, state, is_read_only: true }));
    cases
}

/// Which faults are played.
#[derive(Debug, Clone)]
struct Choice {
    first: usize,
    every: usize,
    case: String,
    is_in_programs: bool,
    is_every: bool,
}

impl Choice {
    fn from_environment() -> Choice {
        let text = env::var("FAULTS").unwrap_or_else(|_| "1/1".to_owned());
        let is_every = text == "every";
        let text = if is_every { "1/1".to_owned() } else { text };
        let numbers = text.split_once('/').and_then(|(first, every)| Some((first.parse().ok()?, every.parse().ok()?)));
        let (first, every) =
            numbers.filter(|(_, every)| *every > 0).unwrap_or_else(|| panic!("FAULTS={text} is no K/N"));
        let is_in_programs = env::var("IN").is_ok_and(|place| place == "programs");
        Choice { first, every, case: env::var("CASE").unwrap_or_default(), is_in_programs, is_every }
    }

    fn has(&self, number: usize) -> bool {
        number % self.every == self.first % self.every
    }
}

/// What came of the faults.
#[derive(Debug, Default)]
struct Tally {
    /// Those that there are, without those left out.
    known: usize,
    /// Those that are left out, as they are the same as others.
    thinned: usize,
    /// Those that were played and have happened.
    played: usize,
    /// Those that were played and did not happen, as the call went another way than when it was recorded.
    missed: usize,
    violations: Vec<String>,
}

/// One fault.
#[derive(Debug, Clone)]
struct Fault {
    /// Which of the programs that the call runs; none: the plugin itself.
    run: Option<usize>,
    event: Event,
    errno: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { run, event: Event { nth, text, .. }, errno } = self;
        run.map_or(Ok(()), |run| write!(f, "in program {run} "))?;
        write!(f, "{errno} #{nth} {text}")
    }
}

/// Plays the faults of one file system.
struct Player {
    scene: Scene,
    tracer: Tracer,
    tools: Tools,
    choice: Choice,
    tally: Tally,
}

impl Player {
    fn play_all(&mut self) {
        for case in cases(self.scene.fs) {
            if case.name(self.scene.fs).contains(&self.choice.case) {
                self.play_case(case);
            }
        }
    }

    fn play_case(&mut self, case: Case) {
        let (started, before) = (Instant::now(), self.tally.played);
        self.scene.set_read_only(case.is_read_only);
        for fault in self.faults(case) {
            self.tally.known += 1;
            if self.choice.has(self.tally.known) {
                self.play(case, &fault);
            }
        }
        let name = case.name(self.scene.fs);
        println!("{name}: {} faults in {:.1} s", self.tally.played - before, started.elapsed().as_secs_f32());
    }

    /// Records the call and gives its faults.
    fn faults(&mut self, case: Case) -> Vec<Fault> {
        self.scene.prepare(case.state).unwrap();
        let (pid, is_in_programs) = (self.scene.rig.plugin().pid(), self.choice.is_in_programs);
        let disk = self.scene.own_disk();
        let call = || ask(&mut self.scene, case);
        let (answer, faults): (_, Vec<Fault>) = if is_in_programs {
            let (answer, runs) = self.tools.record(call);
            let mut faults = Vec::new();
            for (run, events) in runs.iter().enumerate() {
                let of_machine: Vec<&Event> = events.iter().filter(|event| event.is_of_machine()).collect();
                faults.extend(self.thin(Some(run), &of_machine, &disk));
            }
            (answer, faults)
        } else {
            let (answer, events) = self.tracer.record(pid, call);
            let played: Vec<&Event> = events_of(case, &events).collect();
            (answer, self.thin(None, &played, &disk))
        };
        let name = case.name(self.scene.fs);
        assert!(matches!(answer, Ok(Ok(()))), "{name} without any fault: {answer:?}");
        assert!(is_in_programs || !faults.is_empty(), "{name}: no system call was seen");
        faults
    }

    /// The faults that are not the same as others; counts the rest.
    fn thin(&mut self, run: Option<usize>, events: &[&Event], disk: &OwnDisk) -> Vec<Fault> {
        let share = match self.scene.fs {
            "raw" => Share::All,
            "ext4" => Share::Odd,
            _ => Share::Even,
        };
        let every = events.iter().flat_map(|event| errors_of(run, event).map(move |errno| (*event, errno)));
        let every: Vec<(&Event, &'static str)> = every.collect();
        let played = if self.choice.is_every { every.clone() } else { thinned(run, events, disk, share) };
        self.tally.thinned += every.len() - played.len();
        played.into_iter().map(|(event, errno)| Fault { run, event: event.clone(), errno }).collect()
    }

    fn play(&mut self, case: Case, fault: &Fault) {
        let name = format!("{} {fault}", case.name(self.scene.fs));
        if let Err(what) = self.scene.prepare(case.state) {
            return self.violated(&format!("before {name}"), &what, "");
        }
        let pid = self.scene.rig.plugin().pid();
        let logged = self.scene.log_length();
        let before = self.scene.lines();
        let started = Instant::now();
        let Fault { run, event, errno } = fault;
        let call = || ask(&mut self.scene, case);
        let (answer, injected) = match run {
            None => self.tracer.inject(pid, event, errno, call),
            Some(run) => self.tools.inject(*run, event, errno, call),
        };
        if started.elapsed() > SLOW {
            println!("slow, {:.1} s: {name}: {answer:?}", started.elapsed().as_secs_f32());
        }
        match injected.len() {
            1 => self.tally.played += 1,
            _ => self.tally.missed += 1,
        }
        if let Err(what) = self.judge(case, &before, &answer) {
            let log = self.scene.rig.plugin().log();
            let new = log.get(logged..).unwrap_or_default();
            self.violated(&name, &format!("{what}; answered {answer:?}"), new);
        }
    }

    fn violated(&mut self, name: &str, what: &str, log: &str) {
        println!("VIOLATION {name}\n    {what}\n{log}");
        self.tally.violations.push(format!("{name}: {what}"));
        self.scene.recover();
    }

    fn judge(&mut self, case: Case, before: &[Option<String>; 2], answer: &Outcome<Seen>) -> Seen {
        if let Ok(truth) = answer {
            truth.clone()?;
            self.scene.check(case.after()).map_err(|what| format!("OK was said, but {what}"))?;
        }
        for ((changes, was), is) in case.changes().into_iter().zip(before).zip(self.scene.lines()) {
            if !changes && *was != is {
                return Err(format!("a mount was changed from {was:?} to {is:?}"));
            }
        }
        self.scene.check_content()?;
        let again =
            self.scene.call_in_time(case.verb).map_err(|err| format!("the same without the fault fails: {err}"))?;
        again.map_err(|what| format!("the same without the fault: {what}"))?;
        let places = self.scene.check(case.after()).and_then(|()| self.scene.check_no_other_mount());
        places.map_err(|what| format!("the same without the fault is OK, but {what}"))?;
        self.scene.check_content().map_err(|what| format!("after the same without the fault {what}"))
    }
}

/// All errors with which a system call is made to fail.
fn errors_of(run: Option<usize>, event: &Event) -> impl Iterator<Item = &'static str> {
    let errors = match (run, event.is_transfer()) {
        (None, false) => ["ENOMEM", "EIO", "EACCES", "EINTR", ABSENT].as_slice(),
        (None, true) => &["ENOMEM", "EIO", "EINTR"],
        // The plugin learns no more of an error in a program than that there was one.
        (Some(_), false) => &["EIO", ABSENT],
        (Some(_), true) => &["EIO"],
    };
    let can_lie = event.can_lie_of_absence();
    errors.iter().copied().filter(move |errno| *errno != ABSENT || can_lie)
}

/// The error that is a lie where something is there; all others only say that it cannot be told.
const ABSENT: &str = "ENOENT";

/// Which of the errors that only say "cannot tell" are played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    All,
    Even,
    Odd,
}

impl Share {
    fn has(self, number: usize) -> bool {
        match self {
            Share::All => true,
            Share::Even => number.is_multiple_of(2),
            Share::Odd => !number.is_multiple_of(2),
        }
    }
}

/// Those system calls of a recorded call that are made to fail.
fn events_of(case: Case, events: &[Event]) -> impl Iterator<Item = &Event> {
    let is_refused = case.is_refused_while_used() || case.is_refused_while_held();
    // How often it is tried again until what uses the volume has ended is a matter of time.
    let end = events.iter().position(Event::is_busy).filter(|_| is_refused).map_or(events.len(), |last| last + 1);
    events[..end].iter().filter(|event| event.is_played())
}

/// The faults of those system calls that are not the same as others, in order. `disk` is the volume's own.
fn thinned<'a>(
    run: Option<usize>,
    events: &[&'a Event],
    disk: &OwnDisk,
    share: Share,
) -> Vec<(&'a Event, &'static str)> {
    let is_same = |one: &&Event, next: &&Event| one.is_read_of_disk() && one.what(disk) == next.what(disk);
    let mut places: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut first = 0;
    for (number, same) in events.chunk_by(is_same).enumerate() {
        let Some(event) = same.first() else { continue };
        let what = event.what(disk);
        // Each run of reads is a place of its own.
        let what = if event.is_read_of_disk() { format!("{what} {number}") } else { what };
        places.entry(what).or_default().extend(first..first + same.len());
        first += same.len();
    }
    let mut played = Vec::new();
    for same in places.values() {
        for (turn, place) in some_of(same).into_iter().enumerate() {
            let event = events[place];
            let (absent, unknown): (Vec<&str>, Vec<&str>) = errors_of(run, event).partition(|errno| *errno == ABSENT);
            let is_played = |number: usize| match turn {
                0 => share.has(number),
                later => number == later % unknown.len(),
            };
            let unknown = unknown.iter().enumerate().filter(|(number, _)| is_played(*number)).map(|(_, errno)| *errno);
            played.extend(unknown.chain(absent).map(|errno| (place, event, errno)));
        }
    }
    played.sort_by_key(|(place, ..)| *place);
    played.into_iter().map(|(_, event, errno)| (event, errno)).collect()
}

/// The first, the last, and three between.
fn some_of<T: Copy>(all: &[T]) -> Vec<T> {
    let last = all.len() - 1;
    let mut places = [0, last / 4, last / 2, last * 3 / 4, last].to_vec();
    places.dedup();
    places.into_iter().map(|place| all[place]).collect()
}

#[test]
fn what_is_the_same_fault_is_played_a_few_times_and_all_else_is_played() {
    let event = |name: &str, nth: usize, text: String| Event { name: name.to_owned(), nth, text };
    let read = |nth: usize, length: usize| {
        event("pread64", nth, format!("pread64(9</dev/loop3>, \"\\0\\0\"..., {length}, {}) = {length}", nth * 4096))
    };
    let link = |process: usize, to: &str| {
        event("readlink", process, format!("readlink(\"/proc/{process}/fd/3\", \"{to}\", 256) = {}", to.len()))
    };
    let look = |number: usize| event("statx", number, format!("statx(AT_FDCWD</>, \"/sys/dev/block/7:{number}\") = 0"));
    let disk = OwnDisk::new("loop3", "7:3");
    let found = |events: &[Event], share: Share| -> Vec<(usize, &'static str)> {
        let events: Vec<&Event> = events.iter().collect();
        thinned(None, &events, &disk, share).into_iter().map(|(event, errno)| (event.nth, errno)).collect()
    };
    let numbers = |events: &[Event]| {
        let mut numbers: Vec<usize> = found(events, Share::All).into_iter().map(|(nth, _)| nth).collect();
        numbers.dedup();
        numbers
    };
    // Reads of a run, of another length, and of a run after something else.
    let mut events: Vec<Event> = (1..=400).map(|nth| read(nth, 4096)).collect();
    events.push(read(401, 65536));
    events.push(event("openat", 1000, "openat(AT_FDCWD, \"/dev/loop3\", O_RDONLY) = 9</dev/loop3>".to_owned()));
    events.extend((402..=403).map(|nth| read(nth, 4096)));
    assert_eq!(numbers(&events), [1, 100, 200, 300, 400, 401, 1000, 402, 403]);
    // Other processes are one place, but who has the disk is another; other disks are one place, the own is another.
    let mut events: Vec<Event> = (100..300).map(|process| link(process, "pipe:[17]")).collect();
    events.push(link(7, "/dev/loop3"));
    events.push(link(8, "/srv/file"));
    events.extend((1..=40).map(look));
    assert_eq!(numbers(&events), [100, 150, 200, 250, 7, 8, 1, 3, 11, 21, 30, 40]);
    // The same place again has the lie and one other error, by turns; file systems share what is played the first time.
    let again = [look(3), look(3), look(3)];
    let all = [(3, "ENOMEM"), (3, "EIO"), (3, "EACCES"), (3, "EINTR"), (3, "ENOENT")];
    let later = [(3, "EIO"), (3, "ENOENT"), (3, "EACCES"), (3, "ENOENT")];
    assert_eq!(found(&again, Share::All), [all.as_slice(), &later].concat());
    assert_eq!(found(&again[..1], Share::Even), [(3, "ENOMEM"), (3, "EACCES"), (3, "ENOENT")]);
    assert_eq!(found(&again[..1], Share::Odd), [(3, "EIO"), (3, "EINTR"), (3, "ENOENT")]);
}

/// Makes the call. One that is refused as long as the task goes on is given time to find that out, then the task ends.
fn ask(scene: &mut Scene, case: Case) -> Outcome<Seen> {
    if case.is_refused_while_held() {
        return ask_while_held(scene);
    }
    if !case.is_refused_while_used() {
        return scene.call(case.verb);
    }
    let before = scene.lines();
    let call = scene.unpublish_apart();
    wait_for(HOLDS_ON, || call.is_finished().then_some(()));
    let kept = scene.check_content().and_then(|()| {
        let is_same = scene.lines() == before;
        is_same.then_some(()).ok_or_else(|| "a mount was taken away while a task uses it".to_owned())
    });
    scene.end_task();
    let answer = call.join().unwrap();
    if kept.is_err() { Ok(kept) } else { answer.map(Ok) }
}

/// Unstages while something that nobody sees has the volume mounted, and again if that fails; then that ends.
fn ask_while_held(scene: &mut Scene) -> Outcome<Seen> {
    let mut call = scene.unstage_apart();
    for is_last in [false, true] {
        if wait_for(HOLDS_ON, || call.is_finished().then_some(())).is_none() {
            break;
        }
        match call.join().unwrap() {
            Ok(()) => return Ok(Err("OK was said while another mount namespace has the volume mounted".to_owned())),
            Err(refusal) if is_last => return Err(refusal),
            Err(_) => call = scene.unstage_apart(),
        }
    }
    scene.end_holder();
    call.join().unwrap().map(Ok)
}

fn play(fs: &'static str, choice: &Choice) -> Tally {
    let scene = Scene::new(fs);
    let tools = Tools::new(&scene.rig);
    let mut player = Player { scene, tracer: Tracer::new(), tools, choice: choice.clone(), tally: Tally::default() };
    player.play_all();
    player.scene.close();
    player.tally
}

#[test]
#[ignore = "needs root: make test-faults"]
fn root_faults() {
    let (choice, started) = (Choice::from_environment(), Instant::now());
    let players = ["xfs", "ext4", "btrfs", "raw"].map(|fs| {
        let choice = choice.clone();
        thread::spawn(move || play(fs, &choice))
    });
    let tallies: Vec<Tally> = players.into_iter().map(|player| player.join().unwrap()).collect();
    let sum = |of: fn(&Tally) -> usize| tallies.iter().map(of).sum::<usize>();
    let violations: Vec<&String> = tallies.iter().flat_map(|tally| &tally.violations).collect();
    println!(
        "FAULTS={}/{}: {} faults known, {} more left out as they are the same, {} played, {} did not happen, {} violations, {} s",
        choice.first,
        choice.every,
        sum(|tally| tally.known),
        sum(|tally| tally.thinned),
        sum(|tally| tally.played),
        sum(|tally| tally.missed),
        violations.len(),
        started.elapsed().as_secs()
    );
    assert!(violations.is_empty(), "{violations:#?}");
}
