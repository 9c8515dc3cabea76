//! Decides what happens when a node can no longer be believed: it ends. One door, used by every failure of the disk, by
//! damage, and by a state that differs from a majority's. Nothing passes it twice, and nothing is retried behind it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends this node; given from outside. The binary prints the reason and exits; a simulation crashes the host.
#[derive(Clone)]
pub struct FailStop {
    end: Arc<dyn Fn(&str) + Send + Sync>,
    tripped: Arc<AtomicBool>,
}

impl FailStop {
    /// `end` is called once at most, from any thread, with a message for the operator that says what to do.
    pub fn new(end: impl Fn(&str) + Send + Sync + 'static) -> FailStop {
        FailStop {
            end: Arc::new(end),
            tripped: Arc::default(),
        }
    }

    /// Ends the node for `reason`. Returns only where ending takes a moment; the caller must then report nothing as done.
    pub fn trip(&self, reason: &dyn fmt::Display) {
        if !self.tripped.swap(true, Ordering::SeqCst) {
            let reason = reason.to_string();
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
