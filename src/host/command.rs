//! Running a program: what is run, with which budget, and how it ended.
//!
//! Owns the only `Command::new` of this program, and the fate of a child that will not die. Which programs there are is
//! `tools.rs`'s. A key reaches a program on its standard input and in no other way. What an exit code means is not known here: whoever asked for the run matches [`Exit`] in full.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::activity::wait_for;
use crate::error::command::{CommandError, Exit};
use crate::host::capture::Capture;
use crate::host::confine::Confinement;
use crate::host::luks::passphrase::Key;
use crate::host::tools::CHILD_PATH;
pub use crate::host::tools::{Tool, Tools, find_tools};
use crate::metrics;
use crate::sync::caller::Caller;
use crate::sync::semaphore::Permit;
use crate::sync::volume_lock::VolumeGuard;

/// No program run here has more to say on standard output; what goes beyond is read and dropped.
const OUTPUT_LIMIT: usize = 1024 * 1024;
/// How much of the beginning and of the end of standard error an error message keeps. Some programs name the reason first
/// and then print how they are used, others come to it last.
const STDERR_HEAD: usize = 1024;
const STDERR_TAIL: usize = 1024;
/// How long a child that was asked to end may take to do so before it is killed: e2fsck finishes what it is writing.
const TERM_GRACE: Duration = Duration::from_secs(5);
/// How much of a call's time must be left for a program that changes a disk to be started at all.
const LEAST_TIME: Duration = Duration::from_secs(5);
/// How long a killed child may take to be gone before it counts as stuck in the kernel.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// How long a program may do nothing at all, neither compute nor read or write, before others need not wait for its slot:
/// one whose disk does not answer would hold it until its time is used up.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const IDLE_LOOK: Duration = Duration::from_millis(500);
/// The shortest and the longest pause between two looks at a running child; in between, a pause is an eighth of the time
/// the child has run, so that its end is noticed at most that much late.
const SHORTEST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A command to run: data only, nothing happens until a [`Runner`] takes it.
#[derive(Debug, Clone)]
pub struct Cmd {
    tool: Tool,
    args: Vec<OsString>,
    budget: Duration,
    guard: Option<VolumeGuard>,
    slot: Option<Permit>,
    input: Option<Key>,
}

impl Cmd {
    /// A command without arguments that may take as long as `budget`.
    #[must_use]
    pub fn new(tool: Tool, budget: Duration) -> Self {
        Cmd { tool, args: Vec::new(), budget, guard: None, slot: None, input: None }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Says that the command changes the guarded volume: should its process outlive every attempt to kill it, the
    /// volume stays locked until the process is gone.
    #[must_use]
    pub fn holding(mut self, guard: &VolumeGuard) -> Self {
        self.guard = Some(guard.clone());
        self
    }

    /// Says that the command runs in this slot, which it gives back as soon as it hangs: others can go on then.
    #[must_use]
    pub fn with_permit(mut self, slot: &Permit) -> Self {
        self.slot = Some(slot.clone());
        self
    }

    /// Gives the command a key to read from its standard input, to the last byte; otherwise there is nothing to read.
    #[must_use]
    pub fn reading(mut self, key: &Key) -> Self {
        self.input = Some(key.clone());
        self
    }

    /// The program.
    #[must_use]
    pub fn tool(&self) -> Tool {
        self.tool
    }
}

impl fmt::Display for Cmd {
    /// Prints the command so that it can be pasted into a shell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tool.name())?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", shell_quoted(arg)))
    }
}

/// Text as one word of a shell, which a person can paste: whoever has chosen a path or a name has not chosen what is run. Control
/// characters, which a terminal would obey, are written so that printf(1) makes them.
pub(crate) fn shell_quoted(word: impl AsRef<OsStr>) -> String {
    let text = word.as_ref().to_string_lossy();
    let is_plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c));
    if is_plain {
        return text.into_owned();
    }
    if text.chars().all(is_shown) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let octal = |c: char| -> String { c.to_string().bytes().map(|byte| format!("\\{byte:03o}")).collect() };
    let is_itself = |c: char| is_shown(c) && !r"'\%!".contains(c);
    let format: String = text.chars().map(|c| if is_itself(c) { c.to_string() } else { octal(c) }).collect();
    // printf takes a percent sign for itself, however it is written.
    format!("\"$(printf '{}')\"", format.replace("\\045", "%%"))
}

/// Whether a character is neither a control character nor one that turns the direction of writing.
fn is_shown(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text without control characters: each is shown by its bytes, as `\x1b`.
pub(crate) fn printable(text: &str) -> String {
    let bytes = |c: char| -> String { c.to_string().bytes().map(|byte| format!("\\x{byte:02x}")).collect() };
    text.chars().map(|c| if is_shown(c) { c.to_string() } else { bytes(c) }).collect()
}

/// What a command that ran has left.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended; to be matched in full.
    pub exit: Exit,
    /// The first 1 MiB of its standard output.
    pub stdout: Vec<u8>,
    /// The first and the last 1 KiB of its standard error.
    pub stderr: String,
}

impl Output {
    /// Turns an exit that the caller has no use for into an error that names the command line.
    #[must_use]
    pub fn into_error(self, cmd: &Cmd) -> CommandError {
        CommandError::Failed { command: cmd.to_string(), exit: self.exit, stderr: self.stderr }
    }

    /// Takes standard output when the exit code is zero.
    ///
    /// # Errors
    /// [`CommandError::Failed`] for every other exit.
    pub fn success(self, cmd: &Cmd) -> Result<Vec<u8>, CommandError> {
        match self.exit {
            Exit::Code(0) => Ok(self.stdout),
            Exit::Code(_) | Exit::Signal(_) | Exit::TimedOut | Exit::Stuck => Err(self.into_error(cmd)),
        }
    }
}

/// Something that runs commands.
///
/// There is one for production, [`SystemRunner`]; tests have another only for exits that no real program gives on demand.
pub trait Runner: fmt::Debug + Send + Sync {
    /// Runs a command to its end or to the end of its budget.
    ///
    /// # Errors
    /// [`CommandError::Missing`] or [`CommandError::NotRun`] when it did not start. Any way to end is `Ok`: the caller matches [`Output::exit`].
    fn run(&self, cmd: &Cmd) -> Result<Output, CommandError>;

    /// As much of a budget for waiting as there is before everything that is run must have ended; here: all of it.
    fn cap(&self, budget: Duration) -> Duration {
        budget
    }
}

/// Runs commands as another runner does, and lets none of them outlast a moment in time: the end of the call they serve. What its
/// caller waits for may end sooner.
#[derive(Debug)]
pub struct Until<'a> {
    runner: &'a dyn Runner,
    deadline: Instant,
    caller: Arc<Caller>,
    answer_by: Instant,
}

impl<'a> Until<'a> {
    /// Makes such a runner.
    #[must_use]
    pub fn new(runner: &'a dyn Runner, deadline: Instant) -> Self {
        Until { runner, deadline, caller: Arc::default(), answer_by: deadline }
    }

    /// The same for a caller who has to be answered by a moment in time. Waiting ends then, and so does a program that only looks;
    /// one that changes a disk may go on until the deadline, but is not started when he has gone.
    #[must_use]
    pub fn asked_by(self, caller: Arc<Caller>, answer_by: Instant) -> Self {
        Until { caller, answer_by: answer_by.min(self.deadline), ..self }
    }

    /// The same, whether somebody waits or not.
    #[must_use]
    pub fn for_nobody(self) -> Self {
        Until { caller: Arc::default(), ..self }
    }

    /// Whether somebody still waits for what is done.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.caller.is_gone()
    }

    fn left(&self, until: Instant, budget: Duration) -> Duration {
        self.runner.cap(budget).min(until.saturating_duration_since(Instant::now()))
    }
}

impl Runner for Until<'_> {
    fn run(&self, cmd: &Cmd) -> Result<Output, CommandError> {
        // A program that is ended half way may leave a disk worse than one that was never started.
        let changes = cmd.guard.is_some();
        if changes && (self.left(self.deadline, LEAST_TIME) < LEAST_TIME || !self.is_wanted()) {
            return Err(CommandError::NoTimeLeft { command: cmd.to_string() });
        }
        let until = if changes { self.deadline } else { self.answer_by };
        self.runner.run(&Cmd { budget: self.left(until, cmd.budget), ..cmd.clone() })
    }

    fn cap(&self, budget: Duration) -> Duration {
        self.left(self.answer_by, budget)
    }
}

/// Runs commands on this machine: absolute path, empty environment but `LC_ALL=C`, a fixed `PATH` and what the program
/// always needs, nothing to read but a key, output read as it comes, own process group, no more power than `confine.rs` gives it,
/// and an end to waiting.
#[derive(Debug, Clone)]
pub struct SystemRunner {
    tools: Tools,
    confinement: Confinement,
    idle_limit: Duration,
}

impl SystemRunner {
    /// Makes a runner for the programs found at start.
    #[must_use]
    pub fn new(tools: Tools) -> Self {
        Tool::NEEDED.iter().for_each(|tool| metrics::expect_tool(tool.name()));
        SystemRunner { tools, confinement: Confinement::default(), idle_limit: IDLE_LIMIT }
    }

    fn try_run(&self, cmd: &Cmd, path: &Path) -> std::io::Result<Output> {
        let (mut stdout, for_stdout) = Capture::new(OUTPUT_LIMIT, 0)?;
        let (mut stderr, for_stderr) = Capture::new(STDERR_HEAD, STDERR_TAIL)?;
        // The standard library empties the child's signal mask and gives it the default SIGPIPE, so a mask that this
        // program sets for its own threads never reaches mkfs.
        let mut command = Command::new(path);
        command
            .args(&cmd.args)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", CHILD_PATH)
            .envs(cmd.tool.environment())
            .stdin(cmd.input.as_ref().map_or_else(|| Ok(Stdio::null()), readable)?)
            .stdout(for_stdout)
            .stderr(for_stderr)
            .current_dir("/")
            .process_group(0);
        let child = self.confinement.spawn(&mut command, cmd.tool, cmd.budget)?;
        let exit = wait_or_kill(child, cmd, self.idle_limit, &mut [&mut stdout, &mut stderr])?;
        stdout.ensure_read()?;
        stderr.ensure_read()?;
        Ok(Output { exit, stdout: stdout.head, stderr: stderr.text() })
    }
}

impl Runner for SystemRunner {
    fn run(&self, cmd: &Cmd) -> Result<Output, CommandError> {
        let started = Instant::now();
        let path = self.tools.path(cmd.tool)?;
        let _waiting = wait_for("running a program", format_args!("`{cmd}` has not ended"));
        let outcome =
            self.try_run(cmd, path).map_err(|source| CommandError::NotRun { command: cmd.to_string(), source });
        if let Ok(output) = &outcome {
            metrics::count_tool(cmd.tool.name(), exit_label(output.exit));
            log::debug!(command:% = cmd, exit:% = output.exit, ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX); "a program has ended");
        }
        outcome
    }
}

/// How a program ended, for counting.
fn exit_label(exit: Exit) -> Cow<'static, str> {
    match exit {
        Exit::Code(code) => code.to_string().into(),
        Exit::Signal(signal) => format!("signal {signal}").into(),
        Exit::TimedOut => "timed out".into(),
        Exit::Stuck => "stuck".into(),
    }
}

/// The end of a pipe from which a key can be read. The key is in it already: it is shorter than the shortest pipe.
///
/// Source: pipe(7), "Pipe capacity" and `PIPE_BUF`.
fn readable(key: &Key) -> std::io::Result<Stdio> {
    let (reader, mut writer) = std::io::pipe()?;
    writer.write_all(key.bytes())?;
    Ok(Stdio::from(reader))
}

/// Waits for a child, and ends it when its time is over. Whatever is not seen to have ended keeps its volume locked.
fn wait_or_kill(
    mut child: Child,
    cmd: &Cmd,
    idle_limit: Duration,
    outputs: &mut [&mut Capture],
) -> std::io::Result<Exit> {
    let outcome = wait_then_kill(&mut child, cmd, idle_limit, outputs);
    match &outcome {
        Ok(Exit::Code(_) | Exit::Signal(_) | Exit::TimedOut) => {}
        Ok(Exit::Stuck) => leave_to_reaper(child, cmd, "killed, but it does not die"),
        Err(_) => leave_to_reaper(child, cmd, "cannot tell whether it goes on"),
    }
    outcome
}

fn wait_then_kill(
    child: &mut Child,
    cmd: &Cmd,
    idle_limit: Duration,
    outputs: &mut [&mut Capture],
) -> std::io::Result<Exit> {
    let mut watch = cmd.slot.as_ref().map(|slot| Watch::new(child, cmd, slot, idle_limit));
    if let Some(status) = wait_within(child, cmd.budget, outputs, watch.as_mut())? {
        return Ok(exit_of(status));
    }
    // Until it is waited for, a dead leader keeps its process id, so the group cannot be somebody else's.
    let group = i32::try_from(child.id()).map_err(std::io::Error::other)?;
    killpg(Pid::from_raw(group), Signal::SIGTERM)?;
    if wait_within(child, TERM_GRACE, outputs, None)?.is_some() {
        return Ok(Exit::TimedOut);
    }
    killpg(Pid::from_raw(group), Signal::SIGKILL)?;
    if wait_within(child, KILL_GRACE, outputs, None)?.is_some() {
        return Ok(Exit::TimedOut);
    }
    Ok(Exit::Stuck)
}

/// Looks at the child, less and less often, until it has ended or the budget is used up, and reads what it writes.
fn wait_within(
    child: &mut Child,
    budget: Duration,
    outputs: &mut [&mut Capture],
    mut watch: Option<&mut Watch<'_>>,
) -> std::io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        // What is written is in the pipe before the writer has ended, so nothing can come after this.
        let ended = child.try_wait()?;
        let mut was_any = false;
        for output in outputs.iter_mut() {
            was_any |= output.drain();
        }
        if ended.is_some() {
            return Ok(ended);
        }
        let elapsed = started.elapsed();
        let left = budget.saturating_sub(elapsed);
        if left.is_zero() {
            return Ok(None);
        }
        if let Some(watch) = &mut watch {
            watch.look();
        }
        // Who writes much must not wait long for room.
        let pause = if was_any { SHORTEST_PAUSE } else { (elapsed / 8).clamp(SHORTEST_PAUSE, LONGEST_PAUSE) };
        std::thread::sleep(pause.min(left));
    }
}

/// A look now and then whether a child does anything.
struct Watch<'a> {
    child: u32,
    cmd: &'a Cmd,
    slot: &'a Permit,
    idle_limit: Duration,
    looked: Instant,
    /// What it had done when it was last seen to do something, and when that was.
    done: Option<String>,
    since: Instant,
}

impl<'a> Watch<'a> {
    fn new(child: &Child, cmd: &'a Cmd, slot: &'a Permit, idle_limit: Duration) -> Self {
        let now = Instant::now();
        Watch { child: child.id(), cmd, slot, idle_limit, looked: now, done: None, since: now }
    }

    fn look(&mut self) {
        if self.looked.elapsed() < IDLE_LOOK.min(self.idle_limit / 4) {
            return;
        }
        self.looked = Instant::now();
        let done = observe_work(self.child);
        // What cannot be seen may well be at work.
        if done.is_none() || done != self.done {
            (self.done, self.since) = (done, self.looked);
        } else if self.since.elapsed() >= self.idle_limit {
            log::warn!(command:% = self.cmd; "a program does nothing, perhaps its disk does not answer; other volumes go on meanwhile");
            self.slot.give_back();
            // It is said once, as nothing but a change is ever seen again.
            self.idle_limit = Duration::MAX;
        }
    }
}

/// What a process has done so far: the processor's time that it used, and what it read and wrote.
///
/// Source: proc_pid_stat(5), `utime` and `stime`, which are the 12th and 13th field after the name; proc_pid_io(5).
fn observe_work(process: u32) -> Option<String> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{process}/{file}")).ok();
    let (stat, io) = (read("stat")?, read("io")?);
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut times = after_name.split_ascii_whitespace().skip(11);
    Some(format!("{} {} {io}", times.next()?, times.next()?))
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        // wait(2) reports nothing else for a child that is gone; were it to, the number must not look like success.
        (None, None) => Exit::Code(i32::MAX),
    }
}

/// Waits for the child on a thread of its own, which keeps the volume locked until then.
fn leave_to_reaper(mut child: Child, cmd: &Cmd, why: &str) {
    log::error!(command:% = cmd, pid = child.id(); "a program was {why}; its volume stays locked until it has ended");
    let (command, guard) = (cmd.to_string(), cmd.guard.clone());
    let reaper = std::thread::Builder::new().name("reaper".into()).spawn(move || {
        match child.wait() {
            // It may have been ended by our signal, so this is not told as an end of its own.
            Ok(status) => log::warn!(command, status:%; "a program that did not die has ended at last"),
            Err(error) => log::error!(command; "cannot tell whether a program has ended: {error}"),
        }
        drop(guard);
    });
    if reaper.is_err() {
        // Without a thread to wait, nobody will know when the process is gone: the volume stays locked until a restart.
        std::mem::forget(cmd.guard.clone());
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::SigSet;

    use super::*;
    use crate::sync::semaphore::Semaphore;

    /// A runner whose every tool is a shell.
    fn shell() -> SystemRunner {
        SystemRunner::new(Tools::fake(vec![(Tool::Blkid, "/bin/sh".into())]))
    }

    /// A slot of which there is no other, and what tells whether it was given back.
    fn only_slot() -> (Semaphore, Permit) {
        let tool_permits = Semaphore::new(1, "others run");
        let slot = tool_permits.take("testing", Duration::ZERO).unwrap();
        (tool_permits, slot)
    }

    fn script(text: &str) -> Cmd {
        Cmd::new(Tool::Blkid, Duration::from_secs(30)).arg("-c").arg(text)
    }

    fn run(text: &str) -> Output {
        shell().run(&script(text)).unwrap()
    }

    fn stdout(text: &str) -> String {
        String::from_utf8(run(text).stdout).unwrap()
    }

    #[test]
    fn a_child_sees_nothing_of_our_environment_and_has_nothing_to_read() {
        let seen = stdout("env | grep -v ^_= | sort; pwd; readlink /proc/self/fd/0; cat | wc -c");
        assert_eq!(seen, format!("LC_ALL=C\nPATH={CHILD_PATH}\nPWD=/\n/\n/dev/null\n0\n"));
    }

    #[test]
    fn a_child_has_no_network_none_of_roots_power_and_bounds() {
        // The bounds come a moment after the start.
        let bounded = "until [ $(ulimit -n) = 256 ]; do :; done; ulimit -c; ulimit -v";
        let seen = stdout(&format!("grep -E '^(NoNewPrivs|CapBnd|CapEff)' /proc/self/status; {bounded}"));
        assert_eq!(seen, "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n0\n524288\n");
        let networks = stdout("cut -d: -f1 -s /proc/net/dev | tr -d ' \n'; readlink /proc/self/ns/net");
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert!(networks.starts_with("lo") && !networks.contains(own.to_str().unwrap()), "{networks}");
        // All of them share one, and this program keeps what it had.
        let runner = shell();
        let network = || runner.run(&script("readlink /proc/self/ns/net")).unwrap().stdout;
        assert_eq!(network(), network());
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("NoNewPrivs:\t0"), "{status}");
    }

    #[test]
    fn a_key_is_read_to_its_last_byte_and_is_nowhere_else() {
        for text in ["x".to_owned(), "a b\n".to_owned(), "k".repeat(Key::MAX_LENGTH)] {
            let key = Key::new(&text).unwrap();
            let cmd = script("cat; tr '\\0' ' ' </proc/$$/cmdline >&2; cat /proc/$$/environ >&2").reading(&key);
            let out = shell().run(&cmd).unwrap();
            assert_eq!(out.stdout, text.as_bytes());
            assert!(text.len() < 2 || !out.stderr.contains(&text), "{}", out.stderr);
            assert!(text.len() < 2 || !format!("{cmd:?} {cmd}").contains(&text));
            // Who does not read it is no trouble.
            assert_eq!(shell().run(&script("exit 3").reading(&key)).unwrap().exit, Exit::Code(3));
        }
    }

    #[test]
    fn a_child_does_not_inherit_blocked_signals_or_our_process_group() {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTERM);
        blocked.add(Signal::SIGINT);
        blocked.thread_block().unwrap();
        let status = stdout("cat /proc/self/status");
        blocked.thread_unblock().unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
        assert_eq!(stdout("set -- $(cat /proc/$$/stat); [ $5 = $$ ] && echo leads").trim(), "leads");
    }

    #[test]
    fn every_end_is_told_apart() {
        assert_eq!(run("exit 0").exit, Exit::Code(0));
        assert_eq!(run("exit 8").exit, Exit::Code(8));
        assert_eq!(run("kill -SEGV $$").exit, Exit::Signal(11));
        let cmd = Cmd::new(Tool::Blkid, Duration::from_millis(50)).args(["-c", "sleep 1000"]);
        let out = shell().run(&cmd).unwrap();
        assert_eq!(out.exit, Exit::TimedOut);
        assert!(out.success(&cmd).unwrap_err().timed_out());
    }

    #[test]
    fn no_command_outlasts_the_call_it_serves() {
        let runner = shell();
        let call = Until::new(&runner, Instant::now() + Duration::from_millis(50));
        assert_eq!(call.run(&script("sleep 1000")).unwrap().exit, Exit::TimedOut);
        assert_eq!(call.cap(Duration::from_secs(30)), Duration::ZERO);
        let call = Until::new(&runner, Instant::now() + Duration::from_secs(100));
        assert_eq!(call.cap(Duration::from_secs(3)), Duration::from_secs(3));
        assert_eq!(call.run(&script("exit 7")).unwrap().exit, Exit::Code(7));
    }

    #[test]
    fn what_changes_a_disk_is_not_started_when_the_call_is_about_to_end() {
        let runner = shell();
        let guard = crate::sync::volume_lock::VolumeLocks::new();
        let guard = guard.hold(crate::sync::volume_lock::VolumeKey::Id("v".into()), Duration::ZERO).unwrap();
        let changing = script("exit 7").holding(&guard);
        let call = Until::new(&runner, Instant::now() + LEAST_TIME - Duration::from_millis(1));
        let refused = call.run(&changing).unwrap_err();
        assert!(matches!(refused, CommandError::NoTimeLeft { .. }) && refused.timed_out());
        assert_eq!(call.run(&script("exit 7")).unwrap().exit, Exit::Code(7));
        let call = Until::new(&runner, Instant::now() + LEAST_TIME + Duration::from_secs(60));
        assert_eq!(call.run(&changing).unwrap().exit, Exit::Code(7));
    }

    #[test]
    fn a_program_that_used_up_its_time_may_end_in_order_and_one_that_does_not_is_killed() {
        let budget = Duration::from_millis(300);
        let tidy = "trap 'echo tidied; exit 32' TERM; while :; do sleep 0.05; done";
        let out = shell().run(&Cmd::new(Tool::Blkid, budget).args(["-c", tidy])).unwrap();
        assert_eq!((out.exit, out.stdout.as_slice()), (Exit::TimedOut, b"tidied\n".as_slice()));
        let deaf = "trap '' TERM; while :; do sleep 0.05; done";
        let started = Instant::now();
        let out = shell().run(&Cmd::new(Tool::Blkid, budget).args(["-c", deaf])).unwrap();
        assert_eq!(out.exit, Exit::TimedOut);
        assert!(started.elapsed() >= budget + TERM_GRACE);
        assert!(!out.exit.to_string().contains("memory"), "{}", out.exit);
    }

    #[test]
    fn a_program_that_does_nothing_lets_others_go_on_and_one_that_works_does_not() {
        let runner = SystemRunner { idle_limit: Duration::from_secs(1), ..shell() };
        let is_free_while = &|script: &str| {
            let (tool_permits, slot) = only_slot();
            let cmd = Cmd::new(Tool::Blkid, Duration::from_secs(5)).args(["-c", script]).with_permit(&slot);
            std::thread::scope(|scope| {
                let run = scope.spawn(|| runner.run(&cmd).unwrap().exit);
                let next = tool_permits.take("testing", Duration::from_secs(3));
                let was_running = !run.is_finished();
                assert_eq!(run.join().unwrap(), Exit::TimedOut);
                next.is_ok() && was_running
            })
        };
        let scripts = ["exec sleep 1000", "while :; do :; done", "while :; do echo x >/dev/null; sleep 0.1; done"];
        let is_free = std::thread::scope(|scope| {
            let look = |script| scope.spawn(move || is_free_while(script));
            scripts.map(look).map(|thread| thread.join().unwrap())
        });
        assert_eq!(is_free, [true, false, false]);
    }

    #[test]
    fn a_timeout_ends_the_grandchildren_too() {
        let cmd = Cmd::new(Tool::Blkid, Duration::from_millis(300)).args(["-c", "sleep 1000 & echo $!; wait"]);
        let out = shell().run(&cmd).unwrap();
        let grandchild = format!("/proc/{}/cmdline", String::from_utf8(out.stdout).unwrap().trim());
        let deadline = Instant::now() + Duration::from_secs(10);
        // A dead process that nobody waited for yet has an empty command line.
        while std::fs::read(&grandchild).is_ok_and(|line| !line.is_empty()) {
            assert!(Instant::now() < deadline, "{grandchild} is alive");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_program_with_much_to_say_ends_as_it_would_and_its_first_and_last_words_are_kept() {
        let out = run("set -e; head -c 3000000 /dev/zero; for i in $(seq 1 40000); do echo line $i >&2; done; exit 3");
        assert_eq!((out.exit, out.stdout.len()), (Exit::Code(3), OUTPUT_LIMIT));
        assert!(out.stderr.starts_with("line 1\nline 2\n"), "{}", out.stderr);
        assert!(out.stderr.ends_with("line 39999\nline 40000\n"), "{}", out.stderr);
        assert!(
            out.stderr.contains("\n[...]\n") && out.stderr.len() < STDERR_HEAD + STDERR_TAIL + 20,
            "{}",
            out.stderr
        );
        // Nothing is missing where nothing was left out.
        for lines in [1, 100, 150, 200] {
            let out = run(&format!("for i in $(seq 1 {lines}); do echo line $i >&2; done"));
            let all: String = (1..=lines).map(|line| format!("line {line}\n")).collect();
            assert_eq!(out.stderr, all);
        }
    }

    #[test]
    fn a_process_that_is_left_behind_with_the_output_open_is_not_waited_for() {
        let started = Instant::now();
        let out = run("setsid sleep 60 & echo $!; echo said >&2");
        assert!(started.elapsed() < Duration::from_secs(30));
        assert_eq!((out.exit, out.stderr.as_str()), (Exit::Code(0), "said\n"));
        let left = String::from_utf8(out.stdout).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(left), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn an_error_holds_the_command_line_the_exit_and_the_end_of_stderr() {
        let cmd = script("echo 'no such disk' >&2; exit 4");
        let failed = shell().run(&cmd).unwrap().success(&cmd).unwrap_err();
        assert_eq!(
            failed.to_string(),
            r"`blkid -c 'echo '\''no such disk'\'' >&2; exit 4'` exited with code 4: no such disk"
        );
        assert!(!failed.timed_out());
        let killed = run("kill -KILL $$").success(&cmd).unwrap_err().to_string();
        assert!(killed.contains("out of memory: raise the memory of the plugin's task"), "{killed}");
        let other = run("kill -SEGV $$").success(&cmd).unwrap_err().to_string();
        assert!(other.ends_with("was ended by SIGSEGV"), "{other}");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_and_not_an_exit() {
        let missing = SystemRunner::new(Tools::fake(Vec::new()));
        assert!(matches!(missing.run(&script("")), Err(CommandError::Missing(_))));
    }

    #[test]
    fn a_command_is_printed_so_that_a_shell_reads_it_back() {
        let odd = [
            "plain",
            "",
            "two words",
            "it's",
            "$HOME",
            "a\\b",
            "*",
            "/dev/sda",
            "-L",
            "`id`; $x",
            "a\nb",
            "\u{1b}[2J'\\100%",
            "\u{202e}txt \u{fc}!",
        ];
        let cmd = odd.iter().fold(Cmd::new(Tool::Blkid, Duration::ZERO), |cmd, arg| cmd.arg(arg));
        let line = cmd.to_string();
        assert!(line.chars().all(is_shown), "{line:?}");
        let words = stdout(&format!("set -- {line}; shift; printf '%s|' \"$@\""));
        assert_eq!(words, odd.map(|arg| format!("{arg}|")).concat());
    }
}
