//! The system calls of a running plugin, seen from outside, and one of them made to fail.
//!
//! Owns strace, which is attached to the plugin's threads for one call. Only the threads that work on calls are watched, not
//! the programs that they start and not gRPC's own threads, so a count of system calls is that of one call.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::plugin::send;
use crate::support::single_plugin::bare;
use crate::support::wait_for;

/// What belongs to threads, memory, time and signals; closing, which the kernel does whatever it answers; and what can only
/// fail for a descriptor that is not open.
const OTHER_SUBJECTS: [&str; 35] = [
    "brk",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "exit",
    "exit_group",
    "fadvise64",
    "fcntl",
    "futex",
    "getpid",
    "getppid",
    "getrandom",
    "gettid",
    "kill",
    "lseek",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "prctl",
    "prlimit64",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "tgkill",
    "wait4",
    "waitid",
];

/// How long strace may take to attach, or to let go.
const LIMIT: Duration = Duration::from_secs(20);

/// One system call of a recorded call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Which of those of this name, counted from 1.
    pub nth: usize,
    /// How strace shows it.
    pub text: String,
}

impl Event {
    /// Whether it says something of a file, a descriptor, a mount or a program.
    pub fn is_played(&self) -> bool {
        // What is said to the log or to another thread is no state of anything.
        let is_said = ["write(2<", "writev(2<"].iter().any(|to_log| self.text.starts_with(to_log));
        !is_said && !self.text.contains("<anon_inode:[eventfd]>") && !OTHER_SUBJECTS.contains(&self.name.as_str())
    }

    /// Whether "no such file or directory" is an answer that the kernel could give, and that is not its answer already.
    pub fn can_lie_of_absence(&self) -> bool {
        let names_path = !matches!(self.name.as_str(), "read" | "pread64" | "write" | "pwrite64" | "memfd_create");
        names_path && self.text.contains('"') && !self.text.contains(" ENOENT ")
    }

    /// Whether a program asks for the disk by it, or for the kernel's state: most of what a program does is about itself. That
    /// it is started is the plugin's system call.
    pub fn is_of_machine(&self) -> bool {
        self.is_played()
            && self.name != "execve"
            && ["/dev/loop", "/sys/", "/proc/"].iter().any(|place| self.text.contains(place))
    }

    /// What strace has to be told for it to fail.
    pub fn injection(&self, errno: &str) -> [String; 2] {
        let Event { name, nth, text: _ } = self;
        [format!("--trace={name}"), format!("--inject={name}:error={errno}:when={nth}")]
    }

    /// Whether it is a read of a disk.
    pub fn is_read_of_disk(&self) -> bool {
        self.name == "pread64" && self.text.contains("</dev/loop")
    }

    /// What is asked and whether that works, without what differs only from process to process, from disk to disk, or from moment to
    /// moment. What names the volume's own disk is never the same as what names another one.
    pub fn what(&self, disk: &OwnDisk) -> String {
        let (asked, given) = self.text.rsplit_once(" = ").unwrap_or((&self.text, ""));
        if self.is_read_of_disk() {
            let asked = asked.rsplit_once(", ").map_or(asked, |(asked, _)| asked);
            return format!("{asked} = {given}");
        }
        let is_own = disk.is_named_in(&self.text);
        let is_of_process = self.text.split("/proc/").skip(1).any(|at| at.starts_with(|c: char| c.is_ascii_digit()));
        // What a link of another process leads to matters only if it is the disk.
        let is_link = is_of_process && self.name == "readlink" && !is_own;
        let asked = if is_link { asked.split(", ").next().unwrap_or(asked) } else { asked };
        let is_error = given.starts_with('-').then_some(given);
        format!("{} own: {is_own} = {}", without_numbers(asked), is_error.unwrap_or("OK"))
    }

    /// Whether it moves data, for which nobody asks about rights or presence any more.
    pub fn is_transfer(&self) -> bool {
        ["read", "pread64", "write", "pwrite64", "fsync", "fdatasync"].contains(&self.name.as_str())
    }

    /// Whether the kernel answered that something is in use.
    pub fn is_busy(&self) -> bool {
        self.text.contains(" EBUSY ")
    }
}

/// How system calls name the disk of the volume that is played with.
#[derive(Debug)]
pub struct OwnDisk {
    name: String,
    number: String,
}

impl OwnDisk {
    /// The disk of this name, such as `loop3`, and of this number, such as `7:3`.
    pub fn new(name: &str, number: &str) -> OwnDisk {
        OwnDisk { name: name.to_owned(), number: number.to_owned() }
    }

    /// Whether a text has the name or the number, as a whole word.
    fn is_named_in(&self, text: &str) -> bool {
        let ends = |text: &str| !text.starts_with(|c: char| c.is_ascii_digit());
        let begins = |text: &str| !text.ends_with(|c: char| c.is_ascii_alphanumeric());
        let is_word =
            |word: &str| text.match_indices(word).any(|(at, _)| begins(&text[..at]) && ends(&text[at + word.len()..]));
        is_word(&self.name) || is_word(&self.number)
    }
}

/// A text with a sign in the place of each number, also of those written in hexadecimal.
fn without_numbers(text: &str) -> String {
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let is_number = |c: char| c.is_ascii_digit();
        let (kept, end) = match rest.strip_prefix("0x") {
            Some(hex) => ("#", rest.len() - hex.trim_start_matches(|c: char| c.is_ascii_hexdigit()).len()),
            None if is_number(c) => ("#", rest.len() - rest.trim_start_matches(is_number).len()),
            None => (&rest[..c.len_utf8()], c.len_utf8()),
        };
        short.push_str(kept);
        rest = &rest[end..];
    }
    short
}

/// Attaches strace to a plugin.
#[derive(Debug)]
pub struct Tracer {
    dir: TempDir,
}

impl Tracer {
    /// One that is not attached yet.
    pub fn new() -> Tracer {
        Tracer { dir: TempDir::new().unwrap() }
    }

    /// Does something, and gives the system calls that the plugin made meanwhile.
    pub fn record<T>(&self, pid: u32, act: impl FnOnce() -> T) -> (T, Vec<Event>) {
        // A thread that only waits would otherwise be shown in the middle of what another one does.
        let attached = self.attach(pid, &[format!("--trace=!{}", OTHER_SUBJECTS.join(","))]);
        let outcome = act();
        (outcome, events(&attached.stop()))
    }

    /// Does something while one system call fails, and gives how strace has shown that it did, once for each time.
    pub fn inject<T>(&self, pid: u32, event: &Event, errno: &str, act: impl FnOnce() -> T) -> (T, Vec<String>) {
        let attached = self.attach(pid, &event.injection(errno));
        let outcome = act();
        let injected = attached.stop().into_iter().filter(|line| is_injected(line)).collect();
        (outcome, injected)
    }

    fn attach(&self, pid: u32, arguments: &[String]) -> Attached {
        let threads = workers(pid);
        assert!(!threads.is_empty(), "the plugin has no thread that works on calls of the node service");
        let log = self.dir.path().join("strace");
        drop(File::create(&log).unwrap());
        let mut command = bare("strace".as_ref());
        command.args(["--decode-fds=path", "--string-limit=16", "--output"]).arg(&log).args(arguments);
        command.args(threads.iter().map(|thread| format!("--attach={thread}")));
        let mut strace = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(strace.stderr.take().unwrap());
        for _ in &threads {
            let mut line = String::new();
            said.read_line(&mut line).unwrap();
            assert!(line.ends_with(" attached\n"), "strace says {line:?}");
        }
        Attached { strace, said, log }
    }
}

/// strace, attached.
#[derive(Debug)]
struct Attached {
    strace: Child,
    said: BufReader<ChildStderr>,
    log: PathBuf,
}

impl Attached {
    fn stop(mut self) -> Vec<String> {
        send(self.strace.id(), Signal::SIGINT).unwrap();
        let ended = wait_for(LIMIT, || self.strace.try_wait().unwrap());
        let mut said = String::new();
        self.said.read_to_string(&mut said).unwrap();
        assert!(ended.is_some(), "strace does not let go: {said}");
        let log = fs::read(&self.log).unwrap();
        String::from_utf8_lossy(&log).lines().map(without_thread).collect()
    }
}

/// The threads of the node service's pool.
fn workers(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let is_worker = |name: String| name.starts_with("node-");
    threads
        .filter(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(is_worker))
        .filter_map(|thread| thread.file_name().to_str()?.parse().ok())
        .collect()
}

/// Whether strace says of a system call that it has made it fail.
pub fn is_injected(line: &str) -> bool {
    line.ends_with("(INJECTED)")
}

/// A line without the thread's number, which is there when several are watched.
fn without_thread(line: &str) -> String {
    line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start().to_owned()
}

/// The system calls that strace has written down.
pub fn events(lines: &[String]) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for line in lines {
        assert!(!line.contains("<unfinished ...>"), "two threads at once: {line}");
        let Some((name, _)) = line.split_once('(') else { continue };
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            continue;
        }
        let nth = events.iter().filter(|event| event.name == name).count() + 1;
        events.push(Event { name: name.to_owned(), nth, text: line.clone() });
    }
    events
}
