//! Decides how a call that got no answer is told apart: it did not happen, or nobody can tell (§6). A refusal by the ledger
//! is an answer and never stands here.

use serde::{Deserialize, Serialize};

use super::bounds::PROPOSALS_QUEUED_MAX;

/// A call without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CallError {
    /// Never handed to the consensus, on any node: safe to repeat, elsewhere or later.
    #[error("not applied: {reason}")]
    NotApplied { reason: String },
    /// It may have been applied, or may still be. No error of a proposal proves the contrary.
    #[error("unknown: {reason}")]
    Unknown { reason: String },
    /// A queue is full; nothing was done. Come back later.
    #[error("overloaded: more than {max} {bound}")]
    Overloaded { bound: String, max: u64 },
}

impl CallError {
    pub(crate) fn not_applied(reason: impl Into<String>) -> CallError {
        CallError::NotApplied {
            reason: reason.into(),
        }
    }

    pub(crate) fn unknown(reason: impl Into<String>) -> CallError {
        CallError::Unknown {
            reason: reason.into(),
        }
    }

    pub(crate) fn proposals_full() -> CallError {
        CallError::Overloaded {
            bound: "proposals queued".to_owned(),
            max: PROPOSALS_QUEUED_MAX as u64,
        }
    }

    pub(crate) fn copies_full() -> CallError {
        CallError::Overloaded {
            bound: "copies of the ledger on their way".to_owned(),
            max: super::backup::COPIES_MAX as u64,
        }
    }
}
