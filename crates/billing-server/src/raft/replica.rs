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
/// Between those, every index that is a multiple of this is sampled: a node that started again, caught up or was given a
/// snapshot need not wait for the next published one to be compared.
const SAMPLE_EVERY: u64 = 16;
const SAMPLES_KEPT: usize = 64;
const _: () = assert!(HASH_EVERY.is_multiple_of(SAMPLE_EVERY));

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
    /// At multiples of [`HASH_EVERY`], oldest first; of this state only, so none from before a snapshot was installed.
    pub hashes: VecDeque<StateHash>,
    samples: VecDeque<StateHash>,
    noted: Option<u64>,
    hash_due: watch::Sender<u64>,
}

impl State {
    fn new() -> State {
        State {
            ledger: Ledger::new(billing_core::Config::default()),
            applied: None,
            membership: Membership::default(),
            ids_used: BTreeSet::new(),
            hashes: VecDeque::new(),
            samples: VecDeque::new(),
            noted: None,
            hash_due: watch::Sender::new(0),
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

    /// To be called after every change of `applied`, under the same lock.
    pub fn note_hash(&mut self) {
        let Some(index) = self.applied_index() else {
            return;
        };
        let installed = self
            .noted
            .map_or(index > 1, |noted| noted.checked_add(1) != Some(index));
        self.noted = Some(index);
        if installed {
            // What was published before says nothing about the state that came with the snapshot.
            self.hashes.clear();
            self.samples.clear();
        }
        let sampled = index > 0 && index.is_multiple_of(SAMPLE_EVERY);
        let published = sampled && index.is_multiple_of(HASH_EVERY);
        if sampled {
            let hash = StateHash {
                index,
                hash: self.ledger.state_hash_kept(),
            };
            keep(&mut self.samples, hash, SAMPLES_KEPT);
            if published {
                keep(&mut self.hashes, hash, HASHES_KEPT);
            }
        }
        if published || installed {
            self.hash_due.send_replace(index);
        }
    }

    /// Every hash that this state can be compared by, the one of this moment among them. An index may stand there twice.
    pub fn known_hashes(&self) -> Vec<StateHash> {
        let kept = self.hashes.iter().chain(&self.samples).copied();
        kept.chain(self.applied.map(|_| self.hash())).collect()
    }
}

fn keep(hashes: &mut VecDeque<StateHash>, hash: StateHash, at_most: usize) {
    hashes.push_back(hash);
    while hashes.len() > at_most {
        hashes.pop_front();
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

    /// Changes to the index at which this state should be compared with the others': a published one, or that of a snapshot.
    pub fn hash_due(&self) -> watch::Receiver<u64> {
        self.state().hash_due.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::raft::types::LeaderId;

    fn applied(state: &mut State, indexes: impl IntoIterator<Item = u64>) {
        for index in indexes {
            state.applied = Some(LogId::new(LeaderId::new(1, 1), index));
            state.note_hash();
        }
    }

    fn known(state: &State) -> Vec<u64> {
        let hashes = state.known_hashes();
        hashes.iter().map(|state| state.index).collect()
    }

    #[test]
    fn a_comparison_is_due_at_every_published_index() {
        let mut state = State::new();
        let due = state.hash_due.subscribe();
        applied(&mut state, 0..=HASH_EVERY + 5);
        assert_eq!(*due.borrow(), HASH_EVERY);
        let known = known(&state);
        assert!(known.contains(&HASH_EVERY), "published: {known:?}");
        assert!(known.contains(&(HASH_EVERY - 5 * SAMPLE_EVERY)), "sampled");
        assert!(known.contains(&(HASH_EVERY + 5)), "as it is now");
        assert!(known.len() <= HASHES_KEPT + SAMPLES_KEPT + 1);
    }

    #[test]
    fn an_installed_snapshot_is_due_and_what_was_known_before_is_forgotten() {
        let mut state = State::new();
        let mut due = state.hash_due.subscribe();
        applied(&mut state, 0..=100);
        assert!(due.has_changed().is_ok_and(|changed| !changed), "no jump");
        applied(&mut state, [5_003]);
        assert_eq!(*due.borrow_and_update(), 5_003);
        assert_eq!(known(&state), [5_003]);
        applied(&mut state, 5_004..=5_008);
        assert!(due.has_changed().is_ok_and(|changed| !changed));
        assert_eq!(known(&state), [5_008, 5_008], "sampled, and as it is now");
    }
}
