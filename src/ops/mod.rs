//! What an operator sees of the program: the log, the answers on `--debug-addr`, and what is wrong.
//!
//! Decides nothing about volumes.

mod api_check;
pub mod diagnosis;
pub mod endpoint;
pub mod figures;
pub mod findings;
pub mod health;
pub mod http;
mod log_line;
mod log_queue;
pub mod logging;
pub mod machine;
mod page;
pub mod scheduled_snapshots;
pub mod service_manager;
pub mod signals;
