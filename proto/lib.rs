//! The wire: generated messages and services, and the one place where a typed rejection becomes a status and comes back.
//! Decides which gRPC code a refusal carries; never decides whether to refuse.

pub mod backup;
pub mod convert;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod rejection;
pub mod request;
pub mod restore;
pub mod status;
#[cfg(test)]
mod tests;

pub use status::Failure;

/// `billing.v1`: what clients speak.
pub mod v1 {
    #![allow(clippy::all, missing_docs)]
    tonic::include_proto!("billing.v1");
}

/// `raft.v1`: what nodes of one cluster speak among themselves.
pub mod raft {
    #![allow(clippy::all, missing_docs)]
    tonic::include_proto!("raft.v1");
}

/// Every message and service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));
