//! Promises of the client, against the real ledger behind a network that can be broken call by call.

mod calls;
mod fake;
mod leases;
mod sessions;
mod streams;
