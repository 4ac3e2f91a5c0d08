//! A droplet as far as mounts, files and network go: namespaces of its own, held open by a process that does nothing. Or the
//! machine itself, when that is a real droplet; or a virtual machine.
//!
//! Owns the namespaces. Mounts made in them end with them, so a test that fails leaves none behind; the holder ends by
//! itself when its standard input closes, so it does not outlive the test even when that is killed.

use std::fs;
use std::io::{BufRead, BufReader, Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use nix::sys::statvfs::statvfs;

use super::guest::{Guest, quoted};

/// One machine's namespaces.
#[derive(Debug)]
pub struct Droplet {
    holder: Option<Holder>,
    guest: Option<Arc<Guest>>,
    has_network: bool,
}

#[derive(Debug)]
struct Holder {
    process: Child,
    stdin: Option<ChildStdin>,
}

impl Droplet {
    /// Makes a mount namespace; needs root.
    pub fn boot() -> Result<Droplet> {
        Droplet::boot_with(&["--mount"], false)
    }

    /// Makes a mount and a network namespace, the latter without any interface that is up; needs root.
    pub fn boot_with_network() -> Result<Droplet> {
        Droplet::boot_with(&["--mount", "--net"], true)
    }

    /// The machine that this runs on.
    pub fn here() -> Droplet {
        Droplet { holder: None, guest: None, has_network: false }
    }

    /// A virtual machine, booted or not.
    pub fn machine(guest: Arc<Guest>) -> Droplet {
        Droplet { holder: None, guest: Some(guest), has_network: true }
    }

    /// The virtual machine that it is; none: it is of this machine.
    pub fn guest(&self) -> Option<&Arc<Guest>> {
        self.guest.as_ref()
    }

    fn boot_with(namespaces: &[&str], has_network: bool) -> Result<Droplet> {
        // As systemd has it on a droplet, a mount made in one place is seen in all copies of that place, and so does
        // Docker need it; but none of them leaves the namespace.
        let script = "mount --make-rshared / && echo up && exec cat";
        let mut process = Command::new("unshare")
            .args(namespaces)
            .args(["--propagation", "private", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = process.stdin.take();
        let mut line = String::new();
        let stdout = process.stdout.take().ok_or_else(|| Error::other("the holder has no output"))?;
        BufReader::new(stdout).read_line(&mut line)?;
        let droplet = Droplet { holder: Some(Holder { process, stdin }), guest: None, has_network };
        if line == "up\n" { Ok(droplet) } else { Err(Error::other("no namespace could be made; is this root?")) }
    }

    /// A command that runs inside.
    ///
    /// # Panics
    /// It is a virtual machine, where no process of this one can be; so does [`Droplet::path`].
    pub fn command(&self, program: &Path) -> Command {
        assert!(self.guest.is_none(), "no command of this machine runs in a virtual one");
        // The kernel kills the program when the thread that started it is gone, whatever happens to the test.
        let tied = ["setpriv", "--pdeathsig", "KILL", "--"];
        let Some(pid) = self.pid() else {
            let mut command = Command::new(tied[0]);
            command.args(&tied[1..]).arg(program);
            return command;
        };
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount={}", self.namespace()));
        if self.has_network {
            command.arg(format!("--net=/proc/{pid}/ns/net"));
        }
        command.arg("--").args(tied).arg(program);
        command
    }

    /// The process that holds the namespaces; none: this machine.
    pub fn pid(&self) -> Option<u32> {
        self.holder.as_ref().map(|holder| holder.process.id())
    }

    /// The file by which the mount namespace is entered.
    pub fn namespace(&self) -> String {
        format!("{}/ns/mnt", self.proc())
    }

    /// The path by which a file inside is reached from outside.
    pub fn path(&self, inside: &Path) -> PathBuf {
        assert!(self.guest.is_none(), "no path of this machine leads into a virtual one");
        let root = PathBuf::from(format!("{}/root", self.proc()));
        root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Runs a script that must succeed, and gives what it prints.
    pub fn sh(&self, script: &str) -> Result<String> {
        if let Some(guest) = &self.guest {
            return guest.run(script);
        }
        let output = self.command(Path::new("sh")).args(["-c", &format!("exec 2>&1; {script}")]).output()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(printed) } else { Err(Error::other(format!("{script}: {printed}"))) }
    }

    /// Makes a directory and those above it.
    pub fn make_folder(&self, inside: &Path) -> Result<()> {
        match &self.guest {
            Some(guest) => guest.run(&format!("mkdir -p {}", word(inside))).map(drop),
            None => fs::create_dir_all(inside),
        }
    }

    /// Reads a file.
    pub fn read(&self, inside: &Path) -> Result<String> {
        match &self.guest {
            Some(guest) => guest.run(&format!("cat {}", word(inside))),
            None => fs::read_to_string(self.path(inside)),
        }
    }

    /// Writes a file, which is then on the disk only as far as the kernel finds it fit.
    pub fn write(&self, inside: &Path, text: &str) -> Result<()> {
        match &self.guest {
            Some(guest) => guest.run(&format!("printf %s {} >{}", quoted(text), word(inside))).map(drop),
            None => fs::write(self.path(inside), text),
        }
    }

    /// The size of the file system at a path, in bytes.
    pub fn file_system_size(&self, inside: &Path) -> Result<u64> {
        let Some(guest) = &self.guest else {
            let space = statvfs(&self.path(inside))?;
            return Ok(space.blocks() * space.fragment_size());
        };
        let printed = guest.run(&format!("echo $(($(stat --file-system --format='%b * %S' {})))", word(inside)))?;
        printed.trim().parse().map_err(Error::other)
    }

    /// The line of the mount table for this mount point, topmost first; none: nothing is mounted there.
    pub fn mount_at(&self, inside: &Path) -> Option<String> {
        self.mounts().into_iter().rev().find(|line| line.split(' ').nth(4) == inside.to_str())
    }

    /// All lines of the mount table.
    pub fn mounts(&self) -> Vec<String> {
        let table = match &self.guest {
            Some(guest) => guest.run("cat /proc/self/mountinfo"),
            // A type of a file system need not be UTF-8.
            None => {
                fs::read(format!("{}/mountinfo", self.proc())).map(|table| String::from_utf8_lossy(&table).into_owned())
            }
        };
        let table = table.unwrap_or_default();
        table.lines().map(str::to_owned).collect()
    }

    fn proc(&self) -> String {
        self.pid().map_or_else(|| "/proc/self".to_owned(), |pid| format!("/proc/{pid}"))
    }
}

impl Drop for Droplet {
    fn drop(&mut self) {
        if let Some(holder) = &mut self.holder {
            drop(holder.stdin.take());
            let _status = holder.process.wait();
        }
    }
}

fn word(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
