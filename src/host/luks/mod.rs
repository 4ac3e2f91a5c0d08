//! Encrypted volumes as Linux sees them: cryptsetup, the header on the disk, the device mapper.

pub mod cryptsetup;
pub mod format;
mod header;
pub mod layout;
pub mod mapper;
pub mod passphrase;
