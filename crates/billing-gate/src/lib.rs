//! The gate: the only component that knows a payment provider and holds its credential. It decides when a request may leave
//! for the provider and what the answer proves (§5).
//! It never knows Raft, CSV or terminals, and never decides whether an invoice may be charged: the ledger does.

mod client;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gate;
mod http;
mod outcome;
mod payers;
mod port;
mod profile;
mod secret;
mod stripe;

pub use client::bill_of;
pub use config::{GateConfig, GateError};
pub use gate::Gate;
pub use http::{ANSWER_BYTES_MAX, CONNECTIONS_MAX};
pub use outcome::Outcome;
pub use payers::{Payer, Payers};
pub use port::{Account, Attempt, Begun, Hold, LedgerPort};
pub use profile::{Api, Profile, ProfileError, SHIPPED};
pub use secret::{SecretError, SecretKey};
