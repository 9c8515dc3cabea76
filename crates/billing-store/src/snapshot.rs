//! Decides what a snapshot store promises: a snapshot is there whole and verified, or it is not there. What a snapshot says
//! is never looked at here.

use std::fmt;

use bytes::Bytes;

use crate::{Pending, StoreError};

/// Bytes in a chunk, as stored and as read back. Bounds what a transfer holds in memory.
pub const SNAPSHOT_CHUNK_BYTES: usize = 64 * 1024;
/// The newest two stay: one may be in the middle of being sent while the next is installed.
pub const SNAPSHOTS_KEPT: usize = 2;
pub const SNAPSHOT_META_BYTES_MAX: usize = 1024 * 1024;

/// Ordered by age: the higher index is the newer one, `serial` tells two of the same index apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// Index of the last log entry that the snapshot contains; 0 when there is none.
    pub index: u64,
    pub serial: u64,
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-{:010}", self.index, self.serial)
    }
}

/// Length and CRC32C of a snapshot's content: what the sender names and the receiver checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotSum {
    pub bytes: u64,
    pub crc32c: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub id: SnapshotId,
    /// The caller's own header.
    pub meta: Bytes,
    pub sum: SnapshotSum,
}

/// Snapshots of one node, the newest [`SNAPSHOTS_KEPT`] of them.
pub trait SnapshotStore: Send + Sync + 'static {
    /// Newest first. Their headers were verified when the store was opened; contents are verified as they are read.
    fn list(&self) -> Vec<SnapshotInfo>;

    /// The newest one.
    fn latest(&self) -> Option<SnapshotInfo> {
        self.list().into_iter().next()
    }

    /// Damaged files that the store found when opening, or while reading. They are set aside, and never listed.
    fn damaged(&self) -> Vec<StoreError>;

    /// Begins a snapshot, built here or received from a peer. It is not there before [`SnapshotWriter::finish`].
    fn create(&self, index: u64, meta: Bytes) -> Pending<'_, Box<dyn SnapshotWriter>>;

    /// Begins to read. [`StoreError::NoSnapshot`] when it is gone.
    fn read(&self, id: SnapshotId) -> Pending<'_, Box<dyn SnapshotReader>>;

    /// Reads all of it and compares every checksum. [`StoreError::SnapshotDamaged`] sets it aside.
    fn verify(&self, id: SnapshotId) -> Pending<'_, ()>;
}

/// Dropped before `finish`, it leaves nothing.
pub trait SnapshotWriter: Send {
    /// Pieces of any size, in order.
    fn write(&mut self, piece: Bytes) -> Pending<'_, ()>;

    /// Resolves when the snapshot is durable and listed; older ones beyond [`SNAPSHOTS_KEPT`] are removed then.
    /// When `expected` is given and differs, it fails with [`StoreError::SnapshotDamaged`] and nothing is kept.
    fn finish(self: Box<Self>, expected: Option<SnapshotSum>) -> Pending<'static, SnapshotInfo>;
}

pub trait SnapshotReader: Send {
    fn info(&self) -> &SnapshotInfo;

    /// The next piece, at most [`SNAPSHOT_CHUNK_BYTES`], verified; `None` after the last, when the whole sum matched too.
    /// [`StoreError::SnapshotDamaged`]: discard what was read, fetch it again.
    fn next(&mut self) -> Pending<'_, Option<Bytes>>;
}
