//! The sandbox over HTTP, from outside: what it promises, and how it breaks its promises when told to.

mod misbehaviour;
mod stripe;
mod support;
