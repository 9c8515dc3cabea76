//! Decides what a linearizable read waits for: the leader confirms with a majority that it still leads, once for all reads
//! that wait, and names the index that must be applied here first. Never trusts a lease in place of that round.

use std::sync::Arc;

use billing_core::sabotaged;
use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};

use super::Inner;
use super::bounds::READS_WAITING_MAX;
use super::error::CallError;
use crate::raft::links::{Lane, body, payload};

type Index = Result<u64, CallError>;

/// Reads that wait for a round.
#[derive(Clone)]
pub(crate) struct Reads(mpsc::Sender<oneshot::Sender<Index>>);

pub(crate) struct Rounds(mpsc::Receiver<oneshot::Sender<Index>>);

pub(crate) fn reads() -> (Reads, Rounds) {
    let (sender, receiver) = mpsc::channel(READS_WAITING_MAX); // Full: Overloaded, at once.
    (Reads(sender), Rounds(receiver))
}

impl Reads {
    /// The index that a read which begins now must see applied.
    pub async fn index(&self) -> Index {
        let (reply, index) = oneshot::channel();
        self.0.try_send(reply).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => CallError::Overloaded {
                bound: "linearizable reads waiting".to_owned(),
                max: READS_WAITING_MAX as u64,
            },
            mpsc::error::TrySendError::Closed(_) => CallError::not_applied("the node is stopping"),
        })?;
        index
            .await
            .unwrap_or_else(|_| Err(CallError::not_applied("the node is stopping")))
    }
}

pub(crate) async fn run(node: Arc<Inner>, mut rounds: Rounds) {
    while let Some(first) = rounds.0.recv().await {
        let mut waiting = vec![first];
        // Those that arrive during the round wait for the next one: this one may have been confirmed before they began.
        while let Ok(next) = rounds.0.try_recv() {
            waiting.push(next);
        }
        let index = tokio::select! {
            biased;
            index = round(&node) => index,
            () = node.env.clock.sleep(node.config.election_timeout_max) => {
                Err(CallError::not_applied("no majority confirmed the leader in time"))
            }
        };
        for reply in waiting {
            let _ = reply.send(index.clone());
        }
    }
}

async fn round(node: &Inner) -> Index {
    if node.leadership().is_some() {
        return confirm(node).await;
    }
    let Some((leader, address)) = node.leader_address() else {
        return Err(CallError::not_applied(node.why_no_leader()));
    };
    let failed = |status: tonic::Status| {
        CallError::not_applied(format!("the leader, node {leader}: {}", status.message()))
    };
    let mut link = node
        .links
        .to(leader, &address, Lane::Calls)
        .map_err(failed)?;
    let request = link.request(payload("read index", &()).map_err(failed)?);
    let response = link.client.read_index(request).await.map_err(failed)?;
    body::<Index>("index", response.get_ref()).map_err(failed)?
}

/// The leader's side: one round of heartbeats to a majority.
pub(crate) async fn confirm(node: &Inner) -> Index {
    if sabotaged!(ReadWithoutQuorum) {
        return Ok(node.replica.state().applied_index().unwrap_or(0));
    }
    let linearizer = node
        .raft
        .get_read_linearizer(ReadPolicy::ReadIndex)
        .await
        .map_err(|error| CallError::not_applied(error.to_string()))?;
    Ok(linearizer.read_log_id().index())
}
