//! A CSI driver for DigitalOcean block storage volumes.
//!
//! # The flow
//! Every call is the same sentence, and the verb is the prefix of the function's name:
//!
//! ```text
//! gRPC bytes --parse--> request --observe--> facts --plan--> decision --apply--> world --reply--> response or status
//!             rpc/      request/   cloud/ host/    (pure)       cloud/ host/      rpc/
//! ```
//!
//! `observe_` reads the world and never changes it; `plan_` is pure and exhaustive; `apply_` changes one thing; `ensure_`
//! is the three together, can be repeated at any time, and ends only when the wished state has been *seen*.
//!
//! # The map, in reading order
//! - [`app`]: the order of start and stop
//! - [`upkeep`]: what the program looks after by itself: mounts that were left behind, attachments that nobody uses, the region
//! - [`ops`]: what an operator sees: the log, the answers on `--debug-addr`, what is wrong and what ends it
//! - [`commands`]: the commands `volumes` and `doctor` for people, and `snapshot` for a periodic job
//! - [`rpc`]: the gRPC server and what stands before it, its worker threads, status codes; the three CSI services, each a thin
//!   passage
//! - [`controller`]: volumes and attachments at DigitalOcean: create, delete, attach, detach, list
//! - [`node`]: volumes on this droplet: stage, publish, and back; statistics
//! - [`droplet_identity`]: which droplet this is
//! - [`request`]: wire messages into types, checked once
//! - [`config`]: flags, environment, budgets of time
//! - [`cloud`]: the typed calls of DigitalOcean's API, one request each
//! - [`nomad`]: what Nomad says of volumes, for the commands
//! - [`host`]: what Linux can do: devices, content of disks, mkfs, mounts; the only place that runs commands
//! - [`error`]: what can go wrong, one variant for each decision of a caller or an operator
//! - [`activity`]: the calls in work, what they wait for, and the last changes, for the log and for operators
//! - [`sync`], [`backoff`], [`spelling`], [`fs`], [`id`], [`region`], [`size`], [`proto`]: the words that everything else is
//!   written in
//! - [`metrics`]: what is counted of all this, for `GET /metrics`
//!
//! What is above uses what is below, never the other way round; a test reads the imports.
//!
//! # Invariants
//! - The node side never talks to DigitalOcean's API, and the controller side never touches a disk. Where volumes that nobody
//!   uses are detached (`upkeep`), the node side asks for them to be brought back, through [`node::Attach`].
//! - Nothing is kept on disk: every call starts from what DigitalOcean, the mount table and the disk say. Which id belongs to
//!   which volume's name is kept in `/dev`, and no longer than the mounts are.
//! - A disk is formatted only when it has been read and is blank; what is not known is never taken for blank.
//! - What cannot be read is never taken for absent (`host/presence.rs`), and no mount that is in use is torn away before two
//!   looks agree that it is dead (`host/mount_health.rs`).
//! - No error text is ever taken for success.
//! - Ending the program unmounts and detaches nothing; it writes what is in memory to the disks.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::wildcard_enum_match_arm,
        reason = "a test may fail loudly"
    )
)]

pub mod activity;
pub mod app;
pub mod backoff;
pub mod cloud;
pub mod commands;
pub mod config;
pub mod controller;
pub mod droplet_identity;
pub mod error;
pub mod fs;
pub mod host;
pub mod id;
pub mod metrics;
pub mod node;
pub mod nomad;
pub mod ops;
pub mod proto;
pub mod region;
pub mod request;
pub mod rpc;
pub mod size;
pub mod spelling;
pub mod sync;
pub mod upkeep;

pub use app::run;

#[cfg(test)]
#[path = "../tests/support/fuzz.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "the whole-program tests use it, too, and a test prints what it did"
)]
mod fuzz;
