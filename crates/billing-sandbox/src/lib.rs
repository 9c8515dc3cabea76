//! A payment provider to try things on. It decides what a PaymentIntent or a charge becomes, remembers idempotency keys as Stripe
//! documents it, and keeps books of every charge; on request it is slow, loses replies after doing the work, declines,
//! fails, or forgets and ignores keys.
//! It never knows a ledger, a lease or a token: it is the other side, and its books are the witness.

mod cards;
mod error;
mod faults;
mod form;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod journal;
mod keys;
mod objects;
mod provider;
mod routes;
mod service;
mod settings;

pub use faults::Faults;
pub use routes::{parse_range, parse_share};
pub use service::{Sandbox, StartError, Witness, serve_connection};
pub use settings::{
    AMOUNT_MAX, BODY_BYTES_MAX, CONNECTIONS_MAX, IN_FLIGHT_MAX, KEY_LENGTH_MAX, METADATA_PAIRS_MAX,
    Settings,
};
