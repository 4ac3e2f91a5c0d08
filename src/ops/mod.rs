//! What an operator sees of the program: the log, and the answers on `--debug-addr`.
//!
//! Decides nothing about volumes.

mod api_check;
pub mod endpoint;
pub mod health;
pub mod http;
mod log_queue;
pub mod logging;
pub mod signals;
