//! Decides nothing about money: feeds committed entries to the ledger, in order, and hands out what it answers. Reads no
//! clock for the ledger: time came with the entry.

use std::io;
use std::sync::Arc;

use billing_store::SnapshotStore;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};

use super::replica::{Replica, State};
use super::snapshot::{self, Description, Offload, SnapshotError, SnapshotFile};
use super::types::{Entry, LogId, Membership, Outcome, Peer, SnapshotMeta, TypeConfig};
use crate::node::FailStop;

type CommittedLeaderId = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
type SnapshotOf = Snapshot<CommittedLeaderId, u64, Peer, SnapshotFile>;

/// Applies the log to this node's [`Replica`].
#[derive(Clone)]
pub struct StateMachine {
    replica: Arc<Replica>,
    snapshots: Arc<dyn SnapshotStore>,
    offload: Offload,
    fail_stop: FailStop,
}

impl StateMachine {
    pub fn new(
        replica: Arc<Replica>,
        snapshots: Arc<dyn SnapshotStore>,
        offload: Offload,
        fail_stop: FailStop,
    ) -> StateMachine {
        StateMachine {
            replica,
            snapshots,
            offload,
            fail_stop,
        }
    }

    fn failed(&self, error: SnapshotError) -> io::Error {
        let told = io::Error::other(error.to_string());
        if error.is_fatal() {
            self.fail_stop.trip(error);
        }
        told
    }

    /// One entry, under the lock; what must be told to others afterwards is returned.
    fn apply_one(&self, entry: Entry) -> (LogId, Outcome) {
        let log_id = entry.log_id;
        let mut answers = Vec::new();
        let outcome = {
            let mut state = self.replica.state_mut();
            let state: &mut State = &mut state;
            let results = match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Membership(membership) => {
                    state
                        .ids_used
                        .extend(membership.nodes().map(|(&node, _)| node));
                    state.membership = Membership::new(Some(log_id), membership);
                    Vec::new()
                }
                EntryPayload::Normal(proposal) => {
                    let batch = &proposal.0;
                    let applied = state.ledger.apply(batch.stamp, &batch.commands);
                    for alarm in &applied.alarms {
                        tracing::error!(
                            invoice = %alarm.invoice,
                            reference = %alarm.reference,
                            reason = ?alarm.reason,
                            "money moved in a way that needs a person"
                        );
                    }
                    answers = applied.answers;
                    applied.results
                }
            };
            state.applied = Some(log_id);
            state.note_hash();
            // The base of a leadership is the cluster time right after its first own entry (§4).
            self.replica
                .clock
                .own_entry_applied(log_id.leader_id, state.ledger.now());
            Outcome(results)
        };
        self.replica.waiters.answer(answers);
        (log_id, outcome)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        let state = self.replica.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let (log_id, outcome) = self.apply_one(entry);
            // Before the answer: a caller that reads after it was answered must find itself.
            self.replica.publish_applied(Some(log_id.index));
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let state = self.replica.state();
        Builder {
            what: Description {
                meta: SnapshotMeta {
                    last_log_id: state.applied,
                    last_membership: state.membership.clone(),
                },
                ids_used: state.ids_used.clone(),
            },
            // Copy-on-write: applies go on, and the copy stays as it is.
            ledger: state.ledger.clone(),
            machine: self.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let ledger = snapshot::read(&*self.snapshots, snapshot.id, self.offload)
            .await
            .map_err(|error| self.failed(error))?;
        {
            let mut state = self.replica.state_mut();
            state.ledger = ledger;
            state.applied = meta.last_log_id;
            state.membership = meta.last_membership.clone();
            state.ids_used = (*snapshot.ids_used).clone();
            state.note_hash();
        }
        // Whoever leads now counts from a state that this node jumped to, and answers may lie in the gap.
        self.replica.clock.discard();
        self.replica.waiters.skipped();
        self.replica
            .publish_applied(meta.last_log_id.map(|last| last.index));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        let newest = snapshot::newest(&*self.snapshots)
            .await
            .map_err(|error| self.failed(error))?;
        Ok(newest.map(|(meta, file)| Snapshot {
            meta,
            snapshot: file,
        }))
    }
}

/// A copy of the ledger on its way to disk.
pub struct Builder {
    what: Description,
    ledger: billing_core::Ledger,
    machine: StateMachine,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf, io::Error> {
        let file = snapshot::write(
            &*self.machine.snapshots,
            &self.what,
            self.ledger.clone(),
            self.machine.offload,
        )
        .await
        .map_err(|error| self.machine.failed(error))?;
        tracing::info!(snapshot = %file.id, bytes = file.sum.bytes, "snapshot written");
        Ok(Snapshot {
            meta: self.what.meta.clone(),
            snapshot: file,
        })
    }
}
