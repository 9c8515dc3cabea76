//! The ledger of billingd: decides who holds the lease on an invoice, which charge attempt is open, and what an outcome
//! proves. Reads no clock, does no I/O, draws no random numbers: the same commands with the same stamps give the same state,
//! byte for byte, on every replica.

mod cow;
mod digest;
mod table;

pub mod command;
pub mod currency;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod ids;
pub mod ledger;
pub mod limits;
pub mod rejection;
pub mod reply;
pub mod sabotage;

pub use command::*;
pub use currency::Currency;
pub use ids::*;
pub use ledger::audit::{
    AuditRecord, BrokenChain, CHAIN_START, ChainHash, What, chain_hash, verify_chain,
};
pub use ledger::{BadSnapshot, Broken, Config, Ledger};
pub use rejection::{Bound, MembershipReason, Rejection};
pub use reply::*;
