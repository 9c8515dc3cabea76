//! The wire.
pub mod v1 { tonic::include_proto!("billing.v1"); }
pub mod raft { tonic::include_proto!("raft.v1"); }
