//! Decides how the consensus library is fed: its types, its log and vote on disk, its state machine, its messages between
//! nodes. The only module that names the library together with `node`; nothing of it shows outside of this crate.

pub(crate) mod codec;
pub(crate) mod folders;
pub(crate) mod links;
pub mod listen;
pub(crate) mod log;
pub(crate) mod network;
pub(crate) mod pieces;
pub(crate) mod reached;
pub(crate) mod replica;
pub(crate) mod restore;
pub(crate) mod runtime;
pub(crate) mod service;
pub(crate) mod snapshot;
pub(crate) mod state_machine;
pub(crate) mod transfers;
pub(crate) mod types;

pub use replica::{HASH_EVERY, StateHash};
pub use runtime::seed_this_thread;
pub use snapshot::Offload;
pub use types::Peer;
