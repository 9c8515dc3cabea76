//! The money rule of billingd as a search in the small: one invoice, three workers, two attempts, and everything that may go wrong
//! around them, in every order. Decides which searches there are and what each must come to. Written from the design, so
//! that it can be wrong in other ways than the ledger: it calls none of our crates, and proves nothing about their code.
//!
//! `config` says what a search assumes and which rule it leaves out, `catalogue` lists the searches, `search` runs one.

pub mod catalogue;
pub mod config;
mod gate;
mod ledger;
pub mod model;
mod people;
mod provider;
pub mod python;
mod say;
pub mod search;
pub mod state;
mod tidy;
