//! Starts real processes, breaks them, and compares the ledger with the provider's own books. Decides whether a run was good.
//! Never talks to a provider for money, and knows nothing of consensus.

pub mod books;
pub mod harness;
pub mod probe;
pub mod run;
