//! Decides what a snapshot contains, how it gets to disk and back, and which one counts. Never touches the running ledger: it
//! is given a copy.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use billing_core::{BadSnapshot, Ledger};
use billing_store::{
    REJOIN, SNAPSHOT_CHUNK_BYTES, SnapshotId, SnapshotInfo, SnapshotStore, SnapshotSum, StoreError,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use super::pieces::{self, Pieces};
use super::types::{SnapshotMeta, Vote};

/// A snapshot that lies, whole and verified, in this node's store.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    pub id: SnapshotId,
    pub sum: SnapshotSum,
    /// Every node id that was ever a member's, up to this snapshot.
    pub ids_used: Arc<BTreeSet<u64>>,
}

impl SnapshotFile {
    pub fn new(info: &SnapshotInfo, ids_used: BTreeSet<u64>) -> SnapshotFile {
        SnapshotFile {
            id: info.id,
            sum: info.sum,
            ids_used: Arc::new(ids_used),
        }
    }
}

/// What stands beside the ledger in a snapshot: the consensus library's own word, and what it does not remember.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    pub meta: SnapshotMeta,
    /// Node ids are never used twice, so those that were removed are remembered as well.
    pub ids_used: BTreeSet<u64>,
}

impl Description {
    pub fn encode(&self) -> Result<Bytes, CodecError> {
        codec::encode("snapshot header", self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Description, CodecError> {
        codec::decode("snapshot header", bytes)
    }
}

/// The first message of a transfer: what comes, and on whose authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotHeader {
    pub vote: Vote,
    pub what: Description,
    pub bytes: u64,
    pub crc32c: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("a snapshot holds no ledger that this billingd can read: {0}")]
    Ledger(#[from] BadSnapshot),
    /// `reaches`: the newest snapshot that is whole.
    #[error(
        "the log begins after entry {purged}, and no whole snapshot reaches that far (the newest {}): {REJOIN}",
        reaches.map_or("is lost".to_owned(), |index| format!("ends at entry {index}"))
    )]
    Gap { purged: u64, reaches: Option<u64> },
    #[error("the thread that serialised a snapshot is gone")]
    Thread,
    #[error("a copy of the ledger was to be written twice")]
    BuiltTwice,
}

impl SnapshotError {
    /// True when the process must end. A damaged snapshot is not: it is set aside, and fetched or built again.
    pub fn is_fatal(&self) -> bool {
        match self {
            SnapshotError::Store(error) => error.is_fatal(),
            SnapshotError::Codec(_)
            | SnapshotError::Ledger(_)
            | SnapshotError::Gap { .. }
            | SnapshotError::BuiltTwice
            | SnapshotError::Thread => true,
        }
    }
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Store(error) => error.into(),
            other => io::Error::other(other),
        }
    }
}

/// Whether work that takes long leaves the runtime's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// To a thread of its own, so that heartbeats go on.
    Thread,
    /// Stays: a simulation has one thread, and repeats itself only on that.
    Inline,
}

/// Writes `ledger` as it is made. Resolves when the snapshot is durable.
pub async fn write(
    store: &dyn SnapshotStore,
    what: &Description,
    ledger: Ledger,
    offload: Offload,
) -> Result<SnapshotFile, SnapshotError> {
    let index = what.meta.last_log_id.map_or(0, |last| last.index);
    let mut writer = store.create(index, what.encode()?).await?;
    let mut pieces = Pieces::of(ledger, offload, SNAPSHOT_CHUNK_BYTES)?;
    while let Some(piece) = pieces.next().await? {
        writer.write(piece).await?;
    }
    let info = writer.finish(None).await?;
    Ok(SnapshotFile::new(&info, what.ids_used.clone()))
}

/// Reads a snapshot back; every byte was compared with its checksum when this resolves.
pub async fn read(
    store: &dyn SnapshotStore,
    id: SnapshotId,
    offload: Offload,
) -> Result<Ledger, SnapshotError> {
    pieces::gather(store.read(id).await?, offload).await
}

/// The newest snapshot that is there whole. Those in `known` were read or written by this process and are not read again;
/// damaged ones are set aside on the way, and named in the log.
pub async fn newest(
    store: &dyn SnapshotStore,
    known: &mut BTreeSet<SnapshotId>,
) -> Result<Option<(SnapshotMeta, SnapshotFile)>, SnapshotError> {
    for info in store.list() {
        if !known.contains(&info.id) {
            match store.verify(info.id).await {
                Ok(()) => {}
                Err(error @ StoreError::SnapshotDamaged { .. }) => {
                    tracing::error!(%error, snapshot = %info.id, "a damaged snapshot was set aside");
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            known.insert(info.id);
        }
        let what = Description::decode(&info.meta)?;
        return Ok(Some((what.meta, SnapshotFile::new(&info, what.ids_used))));
    }
    Ok(None)
}
