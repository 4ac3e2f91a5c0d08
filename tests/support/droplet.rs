//! A droplet as far as mounts go: a mount namespace of its own, held open by a process that does nothing.
//!
//! Owns the namespace. Mounts made in it end with it, so a test that fails leaves none behind; the holder ends by itself
//! when its standard input closes, so it does not outlive the test even when that is killed.

use std::fs;
use std::io::{BufRead, BufReader, Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// One simulated machine's mount namespace.
#[derive(Debug)]
pub struct Droplet {
    holder: Child,
    stdin: Option<ChildStdin>,
}

impl Droplet {
    /// Makes the namespace; needs root.
    pub fn boot() -> Result<Droplet> {
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", "echo up && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = holder.stdin.take();
        let mut line = String::new();
        let stdout = holder.stdout.take().ok_or_else(|| Error::other("the holder has no output"))?;
        BufReader::new(stdout).read_line(&mut line)?;
        let droplet = Droplet { holder, stdin };
        if line == "up\n" { Ok(droplet) } else { Err(Error::other("no mount namespace could be made; is this root?")) }
    }

    /// A command that runs inside.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        // The kernel kills the program when the thread that started it is gone, whatever happens to the test.
        command
            .arg(format!("--mount={}", self.namespace()))
            .args(["--", "setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program);
        command
    }

    /// The file by which the namespace is entered.
    pub fn namespace(&self) -> String {
        format!("/proc/{}/ns/mnt", self.holder.id())
    }

    /// The path by which a file inside is reached from outside.
    pub fn path(&self, inside: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The line of the mount table for this mount point, topmost first; none: nothing is mounted there.
    pub fn mount_at(&self, inside: &Path) -> Option<String> {
        self.mounts().into_iter().rev().find(|line| line.split(' ').nth(4) == inside.to_str())
    }

    /// All lines of the mount table.
    pub fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id())).unwrap_or_default();
        table.lines().map(str::to_owned).collect()
    }
}

impl Drop for Droplet {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _status = self.holder.wait();
    }
}
