//! A node's state for those outside: a snapshot on request, a copy of the ledger for a backup, and the first command of a
//! cluster that was put back. Decides when that command is proposed; the rules of a restore are the ledger's (§5).

use std::sync::Arc;
use std::time::Duration;

use billing_core::{Actor, Command, Evidence, Ledger};
use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::OwnedSemaphorePermit;

use super::{CallError, Inner, Node};
use crate::raft::pieces::Pieces;
use crate::raft::snapshot::SnapshotError;

/// Each holds a copy of the ledger: what is changed meanwhile stands in memory twice.
pub const COPIES_MAX: usize = 2;
/// Between two requests for the same snapshot.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Between two attempts to propose the restore.
const RESTORE_RETRY: Duration = Duration::from_millis(250);

/// The ledger as of one index. Applies go on.
pub(crate) struct Copy {
    pub ledger: Ledger,
    pub index: u64,
    pub node: u64,
    pub wall_ms: u64,
    /// Given back with the copy.
    pub place: OwnedSemaphorePermit,
}

/// A snapshot that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub index: u64,
    pub bytes: u64,
}

impl Node {
    /// Takes a copy of what is applied here. `Overloaded` while [`COPIES_MAX`] of them are on their way.
    pub(crate) fn copy(&self) -> Result<Copy, CallError> {
        let inner = &self.inner;
        let place = inner.copies.clone().try_acquire_owned();
        let place = place.map_err(|_| CallError::copies_full())?;
        if inner.fail_stop.is_tripped() {
            return Err(CallError::not_applied("this node ends"));
        }
        let state = inner.replica.state();
        if state.ledger.awaits_restore() {
            return Err(CallError::not_applied("the cluster is being restored"));
        }
        Ok(Copy {
            index: state.applied_index().unwrap_or(0),
            ledger: state.ledger.clone(),
            node: inner.config.node,
            wall_ms: inner.env.clock.wall_ms(),
            place,
        })
    }

    /// The ledger's bytes, `piece_bytes` at a time.
    pub(crate) fn pieces(
        &self,
        ledger: Ledger,
        piece_bytes: usize,
    ) -> Result<Pieces, SnapshotError> {
        Pieces::of(ledger, self.inner.config.offload, piece_bytes)
    }

    /// Makes a snapshot of what is applied by now, unless there is one; answers when it is durable.
    pub async fn take_snapshot(&self) -> Result<Taken, CallError> {
        let inner = &self.inner;
        let Some(wanted) = inner.replica.state().applied_index() else {
            return Err(CallError::not_applied(
                "there is nothing yet to take a snapshot of",
            ));
        };
        let mut metrics = inner.raft.metrics();
        let clock = &*inner.env.clock;
        let mut asked = None;
        loop {
            if let Some(newest) = inner
                .snapshots
                .latest()
                .filter(|info| info.id.index >= wanted)
            {
                return Ok(Taken {
                    index: newest.id.index,
                    bytes: newest.sum.bytes,
                });
            }
            // One that was begun earlier does not reach far enough: asked again when it is done. None is begun while one is on
            // its way to another node: asked again after a while. While one is made, asking changes nothing.
            let done = metrics.borrow_watched().snapshot.map(|last| last.index);
            let now = clock.monotonic();
            if asked.is_none_or(|(at, told)| told != done || now.since(at) >= ASK_AGAIN) {
                asked = Some((now, done));
                inner
                    .raft
                    .trigger()
                    .snapshot()
                    .await
                    .map_err(|error| CallError::not_applied(error.to_string()))?;
            }
            let gone = tokio::select! {
                biased;
                changed = metrics.changed() => changed.is_err(),
                () = clock.sleep(ASK_AGAIN) => false,
            };
            if gone || *inner.closing.borrow() {
                return Err(CallError::not_applied("the node is stopping"));
            }
        }
    }
}

/// Proposes the restore, as soon as this node leads a ledger that awaits it. Every node tries: whoever leads first does it, and
/// one who led a moment too short is followed by the next.
pub(crate) async fn restore(node: Arc<Inner>) {
    let mut applied = node.replica.applied();
    let mut ready = node.replica.clock.ready();
    let mut closing = node.closing.subscribe();
    loop {
        applied.mark_unchanged();
        if !node.replica.state().ledger.awaits_restore() {
            return;
        }
        if node.leadership().is_some() {
            match propose(&node).await {
                Ok(()) => continue,
                Err(why) => tracing::info!(why, "not restored yet"),
            }
        }
        tokio::select! {
            biased;
            () = super::until_true(&mut closing) => return,
            changed = applied.changed() => if changed.is_err() { return },
            changed = ready.changed() => if changed.is_err() { return },
            () = node.env.clock.sleep(RESTORE_RETRY) => {}
        }
    }
}

async fn propose(node: &Inner) -> Result<(), String> {
    let reason = {
        let state = node.replica.state();
        let index = state.applied_index().unwrap_or(0);
        Evidence::new(&format!(
            "cluster {}, put back at entry {index}",
            node.me.cluster
        ))
    };
    let reason = reason.map_err(|error| error.to_string())?;
    let restore = Command::Restore(billing_core::Restore { reason });
    match node.propose(Actor::ledger(), restore).await {
        Ok(Ok(_)) => {
            tracing::info!("restored: grants wait for the longest TTL, charges for AllowCharges");
            Ok(())
        }
        Ok(Err(refused)) => Err(refused.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
