//! Stories: every row of the ledger's table and every refusal in it, each as a promise (§3, §4, §5).

mod check;

mod batches;
mod begins;
mod claims;
mod invoices;
mod leases;
mod operators;
mod sessions;
mod settles;
mod waits;
