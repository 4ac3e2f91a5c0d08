//! Encrypted volumes on this droplet: opened before they are mounted, closed after their last mount is gone.

pub(super) mod close;
pub(super) mod open;
