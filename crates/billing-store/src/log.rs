//! Decides what a log disk promises to the consensus above it. Entries are bytes under consecutive indexes; what they mean,
//! terms and leaders included, is never looked at here.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use bytes::Bytes;
use tokio::sync::watch;

use crate::{DiskFigures, StoreError};

/// One entry. Indexes are consecutive; the first of a new log may have any index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub index: u64,
    pub bytes: Bytes,
}

/// How far the log was purged. `marker` is the caller's encoding of the last purged log id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purged {
    pub index: u64,
    pub marker: Bytes,
}

/// What the disk holds, as the calls submitted so far leave it (not all of it need be durable yet).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogState {
    pub purged: Option<Purged>,
    /// Index of the last entry; the purged index when no entry is left; `None` in a new log.
    pub last: Option<u64>,
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
}

/// Called once, on the disk's own thread: do little, never block. `Ok` only after the bytes are on the medium.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Boxed, so that the trait serves behind `Arc<dyn LogDisk>`. A call takes effect in the order in which the futures got past
/// their bounded queue; a future that is dropped afterwards does not undo it.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Log, vote and purge point of one node. All writes are executed strictly in the order of submission.
///
/// After the first failed write or sync nothing is written, nothing is acknowledged and every call fails with
/// [`StoreError::Failed`]; [`LogDisk::failure`] tells the process to end. Nothing is ever retried.
pub trait LogDisk: Send + Sync + 'static {
    /// From memory.
    fn state(&self) -> Result<LogState, StoreError>;

    /// Appends entries behind the last one. Resolves when they are readable; calls `done` when they are durable, or with the
    /// error that kept them from it. When the call itself is refused both report it. In an empty log the first index is free.
    /// Waits while the queue is full; dropped while it waits, it appends nothing and `done` is dropped with it.
    fn append(&self, entries: Vec<Entry>, done: Done) -> Pending<'_, ()>;

    /// Resolves when the vote is durable, and the `high` file with it.
    fn save_vote(&self, vote: Bytes) -> Pending<'_, ()>;

    /// Never synced on its own: a hint that may be lost, or be older than the truth, but is never newer than the log.
    fn save_committed(&self, committed: Bytes) -> Pending<'_, ()>;

    /// Removes all entries behind `last_kept` (`None`: all there are). Resolves when that is durable.
    /// `last_kept` must not lie below the purge point.
    fn truncate_after(&self, last_kept: Option<u64>) -> Pending<'_, ()>;

    /// Forgets the entries up to `index`, inclusive; `index` may lie behind the last entry (a snapshot was installed), then the
    /// log is empty and goes on at `index + 1`. An index at or below the purge point changes nothing. Resolves when durable.
    fn purge_through(&self, index: u64, marker: Bytes) -> Pending<'_, ()>;

    /// The entries of `range` that the log contains, without a gap: missing ones can only be those purged at its beginning or
    /// not yet appended at its end. Recent ones come from memory.
    fn read(&self, range: Range<u64>) -> Pending<'_, Vec<Entry>>;

    /// Like [`LogDisk::read`], but may stop early once `bytes_max` is reached. At least one entry if there is one.
    fn read_some(&self, range: Range<u64>, bytes_max: usize) -> Pending<'_, Vec<Entry>>;

    /// For people: how it does, and how much it holds. Looks at a few files, seldom.
    fn figures(&self) -> DiskFigures;

    /// Turns `Some` once, at the first failure. The process must end then.
    fn failure(&self) -> watch::Receiver<Option<StoreError>>;

    /// Makes everything submitted durable, brings the `high` file up to date and stops. Later calls get [`StoreError::Closed`].
    fn close(&self) -> Pending<'_, ()>;
}
