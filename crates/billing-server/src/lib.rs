//! `billingd` as a library: one node of the cluster. The only crate that names openraft, and nothing of it shows outside.
//!
//! Inside: `raft` and `node` (consensus, proposer, reads). Outside: `services` (gRPC), `serve` (listener, limits, health),
//! `config` and `cli`, `process` (start, signals, end). Decides no rule about money: that is `billing-core`.

pub mod cli;
pub mod config;
pub mod exit;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod join;
pub mod node;
mod open_files;
pub mod process;
pub mod raft;
pub mod restore;
pub mod serve;
pub mod server;
pub mod services;
pub mod telemetry;

/// The format of everything that this version writes to disk or says to other nodes; an older binary refuses a newer one.
pub const FORMAT: u32 = raft::codec::FORMAT as u32;
