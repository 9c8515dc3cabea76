//! Promises of the client, against the real ledger behind a network that can be broken call by call.

mod calls;
mod fake;
mod leases;
mod pipeline;
mod sessions;
mod streams;
mod watches;

/// The other program of these tests speaks without.
const UNARY_ONLY: bool = false;
