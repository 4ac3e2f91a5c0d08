//! Owns the generated code of `protos/csi.proto`: the messages in [`csi`], and the service traits, their `create_`
//! functions and the clients in [`csi_grpc`]. The only file with lint allowances, all of them for code nobody edits.
//!
//! Does not own how the code comes to be, which is `build.rs`, nor what a message means to this driver, which is
//! `request/`. A message's `Debug` prints every field, `secrets` included: it is not for logs.

/// The messages and enums of `csi.v1`.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    unused_mut,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::cast_possible_truncation,
    clippy::panic,
    clippy::unwrap_used,
    reason = "rust-protobuf writes it in a style of its own; its panics guard reflection tables it writes itself"
)]
pub mod csi {
    include!(concat!(env!("OUT_DIR"), "/csi.rs"));
}

/// The services of `csi.v1`: a server implements the traits, a test calls through the clients.
#[allow(
    missing_docs,
    missing_debug_implementations,
    reason = "build.rs writes neither docs nor Debug, and clients hold a channel that has no Debug"
)]
pub mod csi_grpc {
    include!(concat!(env!("OUT_DIR"), "/csi_grpc.rs"));
}
