//! The same promises where every request is a call of its own: what a client does at a node that knows no Pipeline.

#[path = "../client/calls.rs"]
mod calls;
#[path = "../client/fake/mod.rs"]
#[allow(dead_code, reason = "some of it is for the other program")]
mod fake;
#[path = "../client/leases.rs"]
mod leases;
#[path = "../client/sessions.rs"]
mod sessions;

const UNARY_ONLY: bool = true;
