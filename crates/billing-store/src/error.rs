//! Decides what can go wrong with a node's disk and what a person should do about it. Every message ends with the advice;
//! nothing here is retried, and nothing here is repaired in silence.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to do with a node whose disk lost something that it had acknowledged. Its old id has voted and acknowledged on the
/// strength of what is gone, so that id must never speak again.
pub const REJOIN: &str = "do not start this node again under its id: keep the folder for study, and let a new node take its place: \
    `billingd join --node-id NEW --data-dir EMPTY --cluster HOST:PORT --replaces THIS`, with an id that was never used; \
    node ids are never reused";

/// One damaged snapshot is no loss: it is derived from the log, and a peer has another.
pub const FETCH_AGAIN: &str =
    "nothing acknowledged is lost: fetch the snapshot again from a peer, or build it again";

/// Cheap to clone: one failure answers every caller that waits.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk holds less than it must, or something else. Final for this folder.
    #[error("{where_} is damaged: {what}; {advice}")]
    Damaged {
        what: String,
        where_: String,
        advice: &'static str,
    },

    /// A snapshot file fails its checks. The node itself is sound.
    #[error("snapshot {where_} is damaged: {what}; {}", FETCH_AGAIN)]
    SnapshotDamaged { what: String, where_: String },

    #[error(
        "{where_} was made by a newer billingd, format {found}, this one reads format {reads}: upgrade the binary"
    )]
    NewerFormat {
        where_: String,
        found: u32,
        reads: u32,
    },

    #[error(
        "folder {folder} belongs to cluster {found}, not to {expected}: point the node at its own folder"
    )]
    OtherCluster {
        folder: PathBuf,
        found: String,
        expected: String,
    },

    #[error(
        "folder {folder} belongs to node {found}, not to node {expected}: point the node at its own folder"
    )]
    OtherNode {
        folder: PathBuf,
        found: u64,
        expected: u64,
    },

    /// Opened where something must be. An empty folder under an id that has lived before is a lost disk.
    #[error(
        "folder {folder} holds no node: for a new node create it in so many words (bootstrap or join); if node {node} has run before, {}",
        REJOIN
    )]
    Empty { folder: PathBuf, node: u64 },

    #[error(
        "folder {folder} already holds node {node}: open it instead, or choose an empty folder"
    )]
    AlreadyMade { folder: PathBuf, node: u64 },

    #[error(
        "folder {folder} is not empty and was not made by billingd ({found}): choose an empty folder"
    )]
    NotOurs { folder: PathBuf, found: String },

    #[error(
        "folder {folder} is in use by another process: one folder serves one process; stop the other one first"
    )]
    Locked { folder: PathBuf },

    #[error(
        "no space left on the disk while {doing} {path}: free space or enlarge the disk, then start the node again; nothing acknowledged is lost"
    )]
    DiskFull { doing: &'static str, path: PathBuf },

    #[error(
        "{doing} {path} failed: {source}; what was not acknowledged may be lost, what was acknowledged is not: check the disk, then start the node again"
    )]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: Arc<io::Error>,
    },

    /// Every call after the first failure. A failed fsync is never tried again: the kernel may have dropped the pages.
    #[error("the disk failed earlier and is not used again by this process: {first}")]
    Failed { first: Arc<StoreError> },

    #[error("the store is closed")]
    Closed,

    /// The caller broke the contract; nothing changed, and the store goes on.
    #[error("refused: {why}")]
    Misuse { why: String },

    #[error("an entry has {bytes} bytes, the bound is {bytes_max}")]
    EntryTooLarge { bytes: usize, bytes_max: usize },

    #[error("no snapshot {id}")]
    NoSnapshot { id: String },
}

impl StoreError {
    /// Tells a full disk from the rest, since a person treats it differently.
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::StorageFull
            || source.kind() == io::ErrorKind::QuotaExceeded
        {
            return Self::DiskFull {
                doing,
                path: path.to_owned(),
            };
        }
        Self::Io {
            doing,
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }

    pub(crate) fn damaged(where_: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged {
            what: what.into(),
            where_: where_.into(),
            advice: REJOIN,
        }
    }

    pub(crate) fn misuse(why: impl Into<String>) -> Self {
        Self::Misuse { why: why.into() }
    }

    /// What later callers are told: the first failure, wrapped once.
    pub(crate) fn failed(first: &Self) -> Self {
        match first {
            Self::Failed { .. } | Self::Closed => first.clone(),
            other => Self::Failed {
                first: Arc::new(other.clone()),
            },
        }
    }

    /// True when the process must end: the disk can no longer be believed or used.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::DiskFull { .. }
            | Self::Io { .. }
            | Self::Failed { .. } => true,
            Self::SnapshotDamaged { .. }
            | Self::NewerFormat { .. }
            | Self::OtherCluster { .. }
            | Self::OtherNode { .. }
            | Self::Empty { .. }
            | Self::AlreadyMade { .. }
            | Self::NotOurs { .. }
            | Self::Locked { .. }
            | Self::Closed
            | Self::Misuse { .. }
            | Self::EntryTooLarge { .. }
            | Self::NoSnapshot { .. } => false,
        }
    }
}

/// For callers whose own traits speak `io::Error`.
impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::DiskFull { .. } => io::ErrorKind::StorageFull,
            StoreError::Damaged { .. } | StoreError::SnapshotDamaged { .. } => {
                io::ErrorKind::InvalidData
            }
            StoreError::Misuse { .. } | StoreError::EntryTooLarge { .. } => {
                io::ErrorKind::InvalidInput
            }
            StoreError::NoSnapshot { .. } | StoreError::Empty { .. } => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
