//! Encrypted volumes on this droplet: opened before they are mounted, closed after their last mount is gone.

pub mod close;
pub mod open;
