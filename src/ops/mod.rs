//! What an operator sees of the program: the log and the answer to health checks.
//!
//! Decides nothing about volumes.

pub mod health;
mod log_queue;
pub mod logging;
pub mod signals;
