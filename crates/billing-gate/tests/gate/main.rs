//! The gate between a real ledger and a real provider on loopback. Replies are lost, keys forgotten, gates paused and
//! restarted; the provider's books decide.

mod chaos;
mod charges;
mod doubt;
mod keys;
mod world;
