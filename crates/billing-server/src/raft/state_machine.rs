//! Decides nothing about money: feeds committed entries to the ledger, in order, and hands out what it answers. Reads no
//! clock for the ledger: time came with the entry.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use billing_core::Ledger;
use billing_store::{LogDisk, SnapshotId, SnapshotStore};
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};

use super::pieces;
use super::replica::{Replica, State};
use super::snapshot::{self, Description, Offload, SnapshotError, SnapshotFile};
use super::transfers::Transfers;
use super::types::{Entry, LogId, Membership, Outcome, Peer, SnapshotMeta, TypeConfig};
use crate::node::FailStop;

type CommittedLeaderId = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
type SnapshotOf = Snapshot<CommittedLeaderId, u64, Peer, SnapshotFile>;

/// Applies the log to this node's [`Replica`].
#[derive(Clone)]
pub struct StateMachine {
    replica: Arc<Replica>,
    snapshots: Arc<dyn SnapshotStore>,
    log: Arc<dyn LogDisk>,
    /// Snapshots whose every byte this process has seen.
    known: Arc<tokio::sync::Mutex<BTreeSet<SnapshotId>>>,
    offload: Offload,
    transfers: Transfers,
    fail_stop: FailStop,
}

impl StateMachine {
    pub fn new(
        replica: Arc<Replica>,
        snapshots: Arc<dyn SnapshotStore>,
        log: Arc<dyn LogDisk>,
        offload: Offload,
        transfers: Transfers,
        fail_stop: FailStop,
    ) -> StateMachine {
        StateMachine {
            replica,
            snapshots,
            log,
            known: Arc::default(),
            offload,
            transfers,
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

    /// The state as it is now, on its way into a snapshot. Copy-on-write: applies go on, and the copy stays as it is.
    fn copy(&self) -> Builder {
        let state = self.replica.state();
        Builder {
            what: Description {
                meta: SnapshotMeta {
                    last_log_id: state.applied,
                    last_membership: state.membership.clone(),
                },
                ids_used: state.ids_used.clone(),
            },
            ledger: Some(state.ledger.clone()),
            machine: self.clone(),
        }
    }

    /// The newest snapshot that is whole, and that the log goes on from.
    async fn current(&self) -> Result<Option<SnapshotOf>, SnapshotError> {
        let newest = {
            let mut known = self.known.lock().await;
            let newest = snapshot::newest(&*self.snapshots, &mut known).await?;
            let listed = self.snapshots.list();
            known.retain(|id| listed.iter().any(|info| info.id == *id));
            newest
        };
        let reaches = newest
            .as_ref()
            .and_then(|(meta, _)| meta.last_log_id)
            .map(|last| last.index);
        let purged = self.log.state()?.purged.map(|purged| purged.index);
        if let Some(purged) = purged.filter(|purged| reaches.is_none_or(|index| index < *purged)) {
            // It was damaged. While the state is in memory that is no loss; at the start it is one.
            if self.replica.state().applied_index() < Some(purged) {
                return Err(SnapshotError::Gap { purged, reaches });
            }
            return self.copy().build().await.map(Some);
        }
        Ok(newest.map(|(meta, file)| Snapshot {
            meta,
            snapshot: file,
        }))
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
                    let batch = proposal.batch();
                    #[cfg(feature = "sabotage")]
                    billing_core::sabotage::replica_is(self.replica.clock.node);
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

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let newest = self.snapshots.latest().map_or(0, |info| info.id.index);
        let applied = self.replica.state().applied_index().unwrap_or(0);
        let entries = applied.saturating_sub(newest);
        if !force && self.transfers.hold(entries) {
            // The library asks again in due course.
            tracing::info!(
                entries,
                "no new snapshot while one is on its way to another node"
            );
            return None;
        }
        Some(self.copy())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.copy()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let ledger = snapshot::read(&*self.snapshots, snapshot.id, self.offload)
            .await
            .map_err(|error| self.failed(error))?;
        self.known.lock().await.insert(snapshot.id);
        let old = {
            let mut state = self.replica.state_mut();
            let old = std::mem::replace(&mut state.ledger, ledger);
            state.applied = meta.last_log_id;
            state.membership = meta.last_membership.clone();
            state.ids_used = (*snapshot.ids_used).clone();
            state.note_hash();
            old
        };
        pieces::discard(old, self.offload);
        // Whoever leads now counts from a state that this node jumped to, and answers may lie in the gap.
        self.replica.clock.discard();
        self.replica.waiters.skipped();
        self.replica
            .publish_applied(meta.last_log_id.map(|last| last.index));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        self.current().await.map_err(|error| self.failed(error))
    }
}

/// A copy of the ledger on its way to disk.
pub struct Builder {
    what: Description,
    /// Gone once it was written: whoever drops it last takes a while over it.
    ledger: Option<Ledger>,
    machine: StateMachine,
}

impl Builder {
    async fn build(&mut self) -> Result<SnapshotOf, SnapshotError> {
        let machine = &self.machine;
        let ledger = self.ledger.take().ok_or(SnapshotError::BuiltTwice)?;
        let file =
            snapshot::write(&*machine.snapshots, &self.what, ledger, machine.offload).await?;
        machine.known.lock().await.insert(file.id);
        tracing::info!(snapshot = %file.id, bytes = file.sum.bytes, "snapshot written");
        Ok(Snapshot {
            meta: self.what.meta.clone(),
            snapshot: file,
        })
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf, io::Error> {
        let built = self.build().await;
        built.map_err(|error| self.machine.failed(error))
    }
}
