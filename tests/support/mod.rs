//! What tests and the demo need around the built program: machines, processes, a client, and the story they play.
//!
//! Owns nothing of the program under test; everything here goes through its command line, its socket and the kernel.

pub mod bench;
pub mod client;
pub mod cloud;
pub mod controllers;
pub mod crowd;
pub mod docker;
pub mod droplet;
pub mod encryption;
pub mod facts;
pub mod fake_nomad;
pub mod fuzz;
pub mod guest;
pub mod network;
pub mod nomad;
pub mod nomad_story;
pub mod overhead;
pub mod plugin;
pub mod proxy;
pub mod single_plugin;
pub mod storm;
pub mod story;

use std::time::{Duration, Instant};

/// Waits until something is so, looking often at first and then less; `None` when the time ran out.
pub fn wait_for<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(100);
    loop {
        if let Some(seen) = look() {
            return Some(seen);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// A figure of a process's memory, in kB, by its field in `/proc/PID/status`, such as `VmRSS:`.
pub fn status_kb(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
