//! `billingd` as a library: one node of the cluster. The only crate that names openraft, and nothing of it shows outside.
//!
//! Inside: `raft` and `node` (consensus, proposer, reads). Outside: `services` (gRPC), `serve` (listener, limits, health),
//! `config` and `cli`, `process` (start, signals, end). Decides no rule about money: that is `billing-core`.

pub mod cli;
pub mod config;
pub mod exit;
pub mod telemetry;
