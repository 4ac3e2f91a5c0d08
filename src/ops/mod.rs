//! What an operator sees of the program: the log and the answer to health checks.
//!
//! Decides nothing about volumes.

pub mod health;
pub mod logging;
