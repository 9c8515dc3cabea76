//! The sandbox over HTTP, from outside: what it promises, and how it breaks its promises when told to.

mod charges;
mod misbehaviour;
mod stripe;
mod support;
