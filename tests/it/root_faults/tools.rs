//! The system calls of the programs that the plugin starts, and one of them made to fail.
//!
//! Owns the scripts that take the place of the programs on one droplet, and of its other users nobody sees them. Each starts
//! the real one: by itself, or under strace when a call is recorded or a fault is played.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use do_csi_plugin::host::command::Tool;

use super::tracer::{Event, events, is_injected};
use crate::harness::NodeHarness;

/// Where the plugin looks for programs.
const PLACES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The programs of one droplet.
#[derive(Debug)]
pub struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// Puts the scripts into place.
    pub fn new(rig: &NodeHarness) -> Tools {
        let dir = rig.machine().home().join("tools");
        fs::create_dir_all(dir.join("runs")).unwrap();
        for tool in Tool::NEEDED {
            let name = tool.name();
            let real = PLACES.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file()).unwrap();
            fs::copy(&real, dir.join(name)).unwrap();
            let script = dir.join(format!("{name}.sh"));
            fs::write(&script, script_for(&dir, name)).unwrap();
            fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
            rig.run("mount", &["--bind", &script.to_string_lossy(), &real.to_string_lossy()]);
        }
        Tools { dir }
    }

    /// Does something, and gives the system calls by which each program that was run meanwhile asked for the machine's
    /// state, in the order of the runs.
    pub fn record<T>(&self, act: impl FnOnce() -> T) -> (T, Vec<Vec<Event>>) {
        let outcome = self.armed("any", "", act);
        let runs = (0..self.runs()).map(|run| events(&self.log(run))).collect();
        (outcome, runs)
    }

    /// Does something while one system call fails in one run, and gives how strace has shown that it did.
    pub fn inject<T>(&self, run: usize, event: &Event, errno: &str, act: impl FnOnce() -> T) -> (T, Vec<String>) {
        let outcome = self.armed(&run.to_string(), &event.injection(errno).join(" "), act);
        (outcome, self.log(run).into_iter().filter(|line| is_injected(line)).collect())
    }

    fn armed<T>(&self, run: &str, arguments: &str, act: impl FnOnce() -> T) -> T {
        let runs = self.dir.join("runs");
        fs::remove_dir_all(&runs).unwrap();
        fs::create_dir(&runs).unwrap();
        fs::write(self.dir.join("armed"), format!("{run} {arguments}\n")).unwrap();
        let outcome = act();
        fs::remove_file(self.dir.join("armed")).unwrap();
        outcome
    }

    fn runs(&self) -> usize {
        fs::read_dir(self.dir.join("runs")).unwrap().count()
    }

    fn log(&self, run: usize) -> Vec<String> {
        let log = fs::read(self.dir.join("runs").join(run.to_string())).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().map(str::to_owned).collect()
    }
}

fn script_for(dir: &Path, name: &str) -> String {
    format!(
        "#!/bin/sh\ncd {dir} || exit 99\n[ -e armed ] || exec ./{name} \"$@\"\nread -r run arguments <armed\n\
         number=$(ls runs | wc -l)\n: >\"runs/$number\"\n\
         case $run in any | \"$number\") ;; *) exec ./{name} \"$@\" ;; esac\n\
         exec strace --decode-fds=path --string-limit=16 --output=\"runs/$number\" $arguments ./{name} \"$@\"\n",
        dir = dir.display()
    )
}
