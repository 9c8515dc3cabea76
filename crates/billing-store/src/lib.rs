//! What a node keeps on its disk: the Raft log, the vote, the `high` file, snapshots, and whose folder it is (§7).
//!
//! Knows bytes and indexes. Never knows what an entry means, who leads, or what an invoice is; nothing outside of this crate
//! names sled. There is one trait for the log, [`LogDisk`], and one for snapshots, [`SnapshotStore`]; a [`Disk`] is the pair.

/// Whether the rule that stands here is to be broken: never, but in a build that knows billing-core's switches.
#[cfg(not(feature = "sabotage"))]
macro_rules! sabotaged {
    ($which:ident) => {
        false
    };
}
#[cfg(feature = "sabotage")]
macro_rules! sabotaged {
    ($which:ident) => {
        billing_core::sabotaged!($which)
    };
}

mod codec;
mod error;
mod figures;
mod files;
mod folder;
mod front;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod high;
mod journal;
mod load;
mod log;
mod medium;
#[cfg(feature = "sim")]
pub mod sim;
mod sled_disk;
mod snapshot;
mod snapshots;
mod writer;

use std::sync::Arc;

use bytes::Bytes;

pub use codec::{ENTRY_BYTES_MAX, MARKER_BYTES_MAX, VOTE_BYTES_MAX};
pub use error::{FETCH_AGAIN, REJOIN, StoreError};
pub use figures::DiskFigures;
#[cfg(feature = "sim")]
pub use folder::create_with_journal;
pub use folder::{create, inspect, open};
pub use log::{Done, Entry, LogDisk, LogState, Pending, Purged};
pub use snapshot::{
    SNAPSHOT_CHUNK_BYTES, SNAPSHOT_META_BYTES_MAX, SNAPSHOTS_KEPT, SnapshotId, SnapshotInfo,
    SnapshotReader, SnapshotStore, SnapshotSum, SnapshotWriter,
};

/// Whose folder it is. Written once, when the folder is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Names the cluster; 1..=[`CLUSTER_BYTES_MAX`] bytes.
    pub cluster: Bytes,
    /// Never used twice in a cluster's life.
    pub node: u64,
    /// Wall clock at creation, for people.
    pub created_unix_ms: u64,
}

pub const CLUSTER_BYTES_MAX: usize = 256;

/// A node's disk, opened. Clones share it. Its futures need a tokio runtime, of either kind. The folder is free again once the
/// last clone (and every snapshot reader and writer) is gone; dropping the log waits for what was queued.
#[derive(Clone)]
pub struct Disk {
    pub log: Arc<dyn LogDisk>,
    pub snapshots: Arc<dyn SnapshotStore>,
    pub identity: Identity,
}
