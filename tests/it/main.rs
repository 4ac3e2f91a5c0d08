//! Every test that goes through the program's edges: its command line, its socket, real HTTP, the kernel.
//!
//! One test binary, so that the C++ core is linked once. Tests whose name begins with `root_` need root and run by
//! `make test-root`.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests may fail loudly, and share more support than each of them uses"
)]

#[path = "../pages/dist.rs"]
mod dist;
#[path = "../pages/flags.rs"]
mod flags_page;
#[path = "../pages/licenses.rs"]
mod licenses;
#[path = "../pages/sbom.rs"]
mod sbom;
#[path = "../sim/mod.rs"]
mod sim;
#[path = "../support/mod.rs"]
mod support;

mod allow_list;
mod bad_input;
mod busy;
mod callers;
mod chaos;
mod codes;
mod concurrency;
mod conflict;
mod controller;
mod crowd;
mod debug_server;
mod doctor;
mod flood;
mod gone;
mod harness;
mod health;
mod jobs;
mod layers;
mod listing;
mod log;
mod log_lines;
mod manual;
mod metrics;
mod monitoring;
mod network;
mod ownership;
mod pack;
mod program;
mod proto;
mod retry;
mod root_answers;
mod root_blank;
mod root_callers;
mod root_chaos;
mod root_checks;
mod root_demo;
mod root_doctor;
mod root_expand;
mod root_faults;
mod root_figures;
mod root_frozen;
mod root_fuzz_calls;
mod root_fuzz_disks;
mod root_grow;
mod root_health;
mod root_holders;
mod root_host;
mod root_hostile;
mod root_hung;
mod root_leftover;
mod root_limit;
mod root_luks;
mod root_luks_node;
mod root_metrics;
mod root_node;
mod root_paths;
mod root_propagation;
mod root_scale;
mod root_states;
mod root_stats;
mod root_unused;
mod root_whose;
mod root_written;
mod server;
mod snapshot_clone;
mod snapshot_keeper;
mod stale_reads;
mod terraform;
mod tidy;
mod token;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_do-csi-plugin");
