//! Decides what happens when a node can no longer be believed: it ends. One door, used by every failure of the disk, by
//! damage, and by a state that differs from a majority's. Nothing passes it twice, and nothing is retried behind it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use billing_store::StoreError;

use crate::raft::codec::CodecError;
use crate::raft::snapshot::SnapshotError;

/// Why a node ends by itself. The text is for the operator and says what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EndReason {
    /// The disk failed, is full, or is damaged.
    #[error("{0}")]
    Store(StoreError),
    /// The disk, or another node, holds what this binary cannot read.
    #[error("{0}")]
    Unreadable(String),
    /// Another node's word stands against this one's: an id twice, another cluster, another state.
    #[error("{0}")]
    Contradicted(String),
    /// Nothing outside of the process explains it.
    #[error("{0}")]
    Bug(String),
}

impl From<StoreError> for EndReason {
    fn from(error: StoreError) -> EndReason {
        EndReason::Store(error)
    }
}

impl From<CodecError> for EndReason {
    fn from(error: CodecError) -> EndReason {
        EndReason::Unreadable(error.to_string())
    }
}

impl From<SnapshotError> for EndReason {
    fn from(error: SnapshotError) -> EndReason {
        match error {
            SnapshotError::Store(error) => error.into(),
            SnapshotError::Codec(error) => error.into(),
            SnapshotError::Ledger(_) | SnapshotError::Gap { .. } => {
                EndReason::Unreadable(error.to_string())
            }
            SnapshotError::Thread | SnapshotError::BuiltTwice => EndReason::Bug(error.to_string()),
        }
    }
}

/// Ends this node; given from outside. The binary prints the reason and exits; a simulation crashes the host.
#[derive(Clone)]
pub struct FailStop {
    end: Arc<dyn Fn(&EndReason) + Send + Sync>,
    tripped: Arc<AtomicBool>,
}

impl FailStop {
    /// `end` is called once at most, from any thread.
    pub fn new(end: impl Fn(&EndReason) + Send + Sync + 'static) -> FailStop {
        FailStop {
            end: Arc::new(end),
            tripped: Arc::default(),
        }
    }

    /// Ends the node for `reason`. Returns only where ending takes a moment; the caller must then report nothing as done.
    pub fn trip(&self, reason: impl Into<EndReason>) {
        if !self.tripped.swap(true, Ordering::SeqCst) {
            let reason = reason.into();
            tracing::error!(%reason, "this node ends");
            (self.end)(&reason);
        }
    }

    pub fn is_tripped(&self) -> bool {
        self.tripped.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for FailStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FailStop(tripped: {})", self.is_tripped())
    }
}
