//! The ledger of billingd: decides who holds the lease on an invoice, which charge attempt is open, and what an outcome
//! proves. Reads no clock, does no I/O, draws no random numbers: the same commands with the same stamps give the same state,
//! byte for byte, on every replica.

pub mod command;
pub mod currency;
pub mod ids;
pub mod limits;
pub mod rejection;
pub mod reply;

pub use command::*;
pub use currency::Currency;
pub use ids::*;
pub use rejection::{Bound, Rejection};
pub use reply::*;
