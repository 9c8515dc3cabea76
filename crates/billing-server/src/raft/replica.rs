//! Decides nothing: holds this node's copy of the ledger, with what reads, waiters and the proposer need to know of it.
//! Only the state machine changes it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use billing_core::{ClusterTime, Ledger};
use tokio::sync::watch;

use super::types::{LogId, Membership};
use crate::node::{EndReason, FailStop, clock::LeaderClock, waiters::Waiters};

/// Every index that is a multiple of this has its state hash published.
pub const HASH_EVERY: u64 = 10_000;
/// Published hashes kept: nodes that lag a little can still be compared.
const HASHES_KEPT: usize = 8;

const APPLY_PANICKED: &str = "the ledger panicked while it applied an entry";

/// The state hash after the entry at `index` was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StateHash {
    pub index: u64,
    pub hash: [u8; 32],
}

/// The ledger and how far the log is applied to it.
pub struct State {
    pub ledger: Ledger,
    pub applied: Option<LogId>,
    pub membership: Membership,
    /// Every node id that was ever a member's: those that were removed are never used again.
    pub ids_used: BTreeSet<u64>,
    pub hashes: VecDeque<StateHash>,
}

impl State {
    fn new() -> State {
        State {
            ledger: Ledger::new(billing_core::Config::default()),
            applied: None,
            membership: Membership::default(),
            ids_used: BTreeSet::new(),
            hashes: VecDeque::new(),
        }
    }

    /// Of the state as it is now.
    pub fn hash(&self) -> StateHash {
        StateHash {
            index: self.applied_index().unwrap_or(0),
            hash: self.ledger.state_hash(),
        }
    }

    pub fn applied_index(&self) -> Option<u64> {
        self.applied.map(|applied| applied.index)
    }

    pub fn note_hash(&mut self) {
        let due = self
            .applied_index()
            .is_some_and(|index| index > 0 && index.is_multiple_of(HASH_EVERY));
        if due {
            let hash = self.hash();
            self.hashes.push_back(hash);
            while self.hashes.len() > HASHES_KEPT {
                self.hashes.pop_front();
            }
        }
    }
}

/// This node's copy of the replicated state.
pub struct Replica {
    state: RwLock<State>,
    applied: watch::Sender<Option<u64>>,
    pub waiters: Waiters,
    pub clock: LeaderClock,
    fail_stop: FailStop,
}

impl Replica {
    pub fn new(clock: LeaderClock, fail_stop: FailStop) -> Replica {
        Replica {
            state: RwLock::new(State::new()),
            applied: watch::Sender::new(None),
            waiters: Waiters::default(),
            clock,
            fail_stop,
        }
    }

    /// For reading. Applies wait meanwhile, so be short.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| {
            // A panic while applying: the ledger may be torn, and must not be shown to anybody.
            self.fail_stop
                .trip(EndReason::Bug(APPLY_PANICKED.to_owned()));
            poisoned.into_inner()
        })
    }

    /// For the state machine only.
    pub fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| {
            self.fail_stop
                .trip(EndReason::Bug(APPLY_PANICKED.to_owned()));
            poisoned.into_inner()
        })
    }

    pub fn now(&self) -> ClusterTime {
        self.state().ledger.now()
    }

    /// Tells those who wait for an index. To be called after the lock is released.
    pub fn publish_applied(&self, index: Option<u64>) {
        self.applied.send_if_modified(|applied| {
            let newer = index > *applied;
            if newer {
                *applied = index;
            }
            newer
        });
    }

    /// Resolves when the entry at `index` is applied here.
    pub async fn wait_applied(&self, index: u64) {
        let mut applied = self.applied.subscribe();
        // The sender lives in self, so this cannot fail while self is borrowed.
        let _ = applied
            .wait_for(|applied| applied.is_some_and(|applied| applied >= index))
            .await;
    }

    pub fn applied(&self) -> watch::Receiver<Option<u64>> {
        self.applied.subscribe()
    }
}
