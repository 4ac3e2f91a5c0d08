//! Waiting for each other: locks in the order of arrival, locks of volumes, semaphores, shared readings, questions that may never
//! be answered; and who waits for a call.
//!
//! Knows nothing of volumes but their names.

pub mod caller;
pub mod fifo_lock;
pub mod looks;
pub mod recent_calls;
pub mod semaphore;
pub mod shared_read;
pub mod volume_lock;
