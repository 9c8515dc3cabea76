//! Decides when a leader that hears no majority stops holding the others back. Its link may be cut one way only: then it can do
//! nothing, but its heartbeats and entries still arrive, and keep everybody from electing a leader that can.
//!
//! It falls silent for long enough that the others elect somebody, if they can. Then it calls again: where they cannot (the
//! longest log is here, say, and one of them is down), a leader that stayed silent would be missed for good. Safety does not
//! rest on any of this: a message that is not sent is one that may be lost, and nothing is committed without a majority.

use std::sync::Arc;

use openraft::async_runtime::WatchReceiver as _;

use super::Inner;
use crate::raft::types::LeaderId;

/// In election timeouts: a follower waits for its leader's lease to pass, then for its own timeout, each one at most; a vote
/// that splits takes a third.
const SILENT_TIMEOUTS: u32 = 3;

pub(crate) async fn run(node: Arc<Inner>) {
    let patience = node.config.election_timeout_max;
    let mut metrics = node.raft.server_metrics();
    loop {
        let Some(leadership) = node.leadership() else {
            if metrics.changed().await.is_err() {
                return;
            }
            continue;
        };
        let left = patience.saturating_sub(node.silent_for());
        if !left.is_zero() {
            node.env.clock.sleep(left).await;
            continue;
        }
        // After a stop of the whole process nobody can have answered: what goes out now may be answered at once.
        node.env.clock.sleep(node.config.heartbeat).await;
        if node.leadership() != Some(leadership) || node.silent_for() <= patience {
            continue;
        }
        tracing::warn!(
            silent_for_ms = node.silent_for().as_millis() as u64,
            "this node leads and hears no majority: it says nothing for a while, so that the others can elect another leader"
        );
        node.silence.keep(true);
        tokio::select! {
            biased;
            () = lost(&node, leadership) => {}
            () = node.env.clock.sleep(SILENT_TIMEOUTS * patience) => {}
        }
        node.silence.keep(false);
        // Time for an answer.
        node.env.clock.sleep(patience).await;
    }
}

/// Resolves when this is not the node's leadership any more.
async fn lost(node: &Inner, leadership: LeaderId) {
    let mut metrics = node.raft.server_metrics();
    while node.leadership() == Some(leadership) {
        if metrics.changed().await.is_err() {
            return;
        }
    }
}
