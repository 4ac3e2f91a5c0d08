//! Every system call of every node call made to fail once, one at a time, while a task uses the volume.
//!
//! Each call is recorded once for each usual state of a volume. Then it is made again and again, each time with another one of
//! its system calls answered by an error that the kernel gives when it is short of memory, has lost a disk, or is asked by
//! somebody without rights. Afterwards known files are whole, the task goes on, OK was said only where the mount table agrees,
//! and the same call without the fault succeeds. `FAULTS=K/N` plays every N-th fault, beginning with the K-th; `CASE=text`
//! plays only what has the text in its name, such as `CASE="Publish xfs"`; `IN=programs` plays those of the programs that the
//! plugin starts (mkfs, blkid and the like) instead of its own.
//!
//! Of reads of a disk that follow each other and have the same length and the same answer, five are played: the first, the last and
//! three between. A look at a blank disk is four hundred of them, all of one loop that ends at the first error, whichever it is, and
//! knows nothing but whether all before were zeros: a fault in its middle is the same fault wherever that is.

mod scene;
mod tools;
pub mod tracer;

use std::env;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Outcome;
use crate::support::wait_for;
use scene::{Places, Scene, Seen, State, Verb};
use tools::Tools;
use tracer::{Event, Tracer};

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
        self.state == State::Held
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
    ]
    .into_iter()
    .map(case)
    .collect();
    // A raw disk is never formatted, and not mounted when it is staged; and what the kernel needs for growing ext is not given everywhere.
    let is_possible = |case: &Case| match (case.state, case.verb) {
        (State::Blank | State::Held, _) => fs != "raw",
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
}

impl Choice {
    fn from_environment() -> Choice {
        let text = env::var("FAULTS").unwrap_or_else(|_| "1/1".to_owned());
        let numbers = text.split_once('/').and_then(|(first, every)| Some((first.parse().ok()?, every.parse().ok()?)));
        let (first, every) =
            numbers.filter(|(_, every)| *every > 0).unwrap_or_else(|| panic!("FAULTS={text} is no K/N"));
        let is_in_programs = env::var("IN").is_ok_and(|place| place == "programs");
        Choice { first, every, case: env::var("CASE").unwrap_or_default(), is_in_programs }
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
        let call = || ask(&mut self.scene, case);
        let (answer, faults): (_, Vec<Fault>) = if is_in_programs {
            let (answer, runs) = self.tools.record(call);
            let mut faults = Vec::new();
            for (run, events) in runs.iter().enumerate() {
                let of_machine: Vec<&Event> = events.iter().filter(|event| event.is_of_machine()).collect();
                faults.extend(self.thin(Some(run), &of_machine));
            }
            (answer, faults)
        } else {
            let (answer, events) = self.tracer.record(pid, call);
            let played: Vec<&Event> = events_of(case, &events).collect();
            (answer, self.thin(None, &played))
        };
        let name = case.name(self.scene.fs);
        assert!(matches!(answer, Ok(Ok(()))), "{name} without any fault: {answer:?}");
        faults
    }

    /// The faults of those system calls that are not the same as others, and counts the rest.
    fn thin(&mut self, run: Option<usize>, events: &[&Event]) -> Vec<Fault> {
        let kept = thinned(events);
        let faults = |events: &[&Event]| events.iter().flat_map(|event| faults_of(run, event)).collect::<Vec<_>>();
        let played = faults(&kept);
        self.tally.thinned += faults(events).len() - played.len();
        played
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
        let again = self.scene.call(case.verb).map_err(|err| format!("the same without the fault fails: {err}"))?;
        again.map_err(|what| format!("the same without the fault: {what}"))?;
        let places = self.scene.check(case.after()).and_then(|()| self.scene.check_no_other_mount());
        places.map_err(|what| format!("the same without the fault is OK, but {what}"))?;
        self.scene.check_content().map_err(|what| format!("after the same without the fault {what}"))
    }
}

/// All ways in which a system call is made to fail.
fn faults_of(run: Option<usize>, event: &Event) -> impl Iterator<Item = Fault> {
    let errors = match (run, event.is_transfer()) {
        (None, false) => ["ENOMEM", "EIO", "EACCES", "ENOENT", "EINTR"].as_slice(),
        (None, true) => &["ENOMEM", "EIO", "EINTR"],
        // The plugin learns no more of an error in a program than that there was one.
        (Some(_), false) => &["EIO", "ENOENT"],
        (Some(_), true) => &["EIO"],
    };
    let is_played = |errno: &&&str| **errno != "ENOENT" || event.can_lie_of_absence();
    errors.iter().filter(is_played).map(move |errno| Fault { run, event: event.clone(), errno })
}

/// Those system calls of a recorded call that are made to fail.
fn events_of(case: Case, events: &[Event]) -> impl Iterator<Item = &Event> {
    let is_refused = case.is_refused_while_used() || case.is_refused_while_held();
    // How often it is tried again until what uses the volume has ended is a matter of time.
    let end = events.iter().position(Event::is_busy).filter(|_| is_refused).map_or(events.len(), |last| last + 1);
    events[..end].iter().filter(|event| event.is_played())
}

/// Of each run of reads of a disk that are the same but for their place: the first, the last, and three between.
fn thinned<'a>(events: &[&'a Event]) -> Vec<&'a Event> {
    let is_same =
        |one: &&Event, next: &&Event| one.read_of_disk().is_some() && one.read_of_disk() == next.read_of_disk();
    let kept = |run: &[&'a Event]| -> Vec<&'a Event> {
        let last = run.len() - 1;
        let mut places = [0, last / 4, last / 2, last * 3 / 4, last].to_vec();
        places.dedup();
        places.into_iter().map(|place| run[place]).collect()
    };
    events.chunk_by(is_same).flat_map(kept).collect()
}

#[test]
fn of_the_same_reads_the_first_the_last_and_some_between_are_played_and_all_others_are() {
    let read = |nth: usize, length: usize| Event {
        name: "pread64".to_owned(),
        nth,
        text: format!("pread64(9</dev/loop3>, \"\\0\\0\\0\\0\"..., {length}, {}) = {length}", nth * 4096),
    };
    let other = |text: &str| Event { name: "openat".to_owned(), nth: 1, text: text.to_owned() };
    let mut events: Vec<Event> = (1..=400).map(|nth| read(nth, 4096)).collect();
    events.push(read(401, 65536));
    events.push(other("openat(AT_FDCWD, \"/dev/loop3\", O_RDONLY) = 9</dev/loop3>"));
    events.extend((402..=403).map(|nth| read(nth, 4096)));
    events.extend([other("x"), other("x"), other("x")]);
    let found = thinned(&events.iter().collect::<Vec<_>>());
    let numbers: Vec<usize> = found.iter().filter(|event| event.name == "pread64").map(|event| event.nth).collect();
    assert_eq!(numbers, [1, 100, 200, 300, 400, 401, 402, 403]);
    assert_eq!(found.len(), numbers.len() + 4);
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
