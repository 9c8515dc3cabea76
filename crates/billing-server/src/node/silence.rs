//! Decides when a leader that hears no majority stops holding the others back. Its link may be cut one way only: then it can do
//! nothing, but its heartbeats and entries still arrive, and keep everybody from electing a leader that can.
//!
//! It falls silent for long enough that the others elect somebody, if they can, and asks them meanwhile whether they can be
//! heard again: with that the silence ends, since they may not be able to elect anybody (the longest log is here, say, and one
//! of them is down). Should the answers stay away, it calls again now and then. Safety does not rest on any of this: a message
//! that is not sent is one that may be lost, and nothing is committed without a majority.

use std::sync::Arc;
use std::time::Duration;

use billing_env::MonoTime;
use futures::future::join_all;
use openraft::async_runtime::WatchReceiver as _;

use super::Inner;
use super::greet::{Greeting, greet};
use crate::raft::types::LeaderId;

/// In election timeouts: a follower waits for its leader's lease to pass, then for its own timeout, each one at most; a vote
/// that splits takes a third, and a slow machine has the fourth.
const SILENT_TIMEOUTS: u32 = 4;

pub(crate) async fn run(node: Arc<Inner>) {
    let patience = node.config.election_timeout_max;
    let mut metrics = node.raft.server_metrics();
    let mut began: Option<(LeaderId, MonoTime)> = None;
    loop {
        let Some(leadership) = node.leadership() else {
            if metrics.changed().await.is_err() {
                return;
            }
            continue;
        };
        let now = node.env.clock.monotonic();
        let since = match began {
            Some((known, since)) if known == leadership => since,
            _ => now,
        };
        began = Some((leadership, since));
        let left = patience.saturating_sub(unheard_for(&node, since));
        if !left.is_zero() {
            node.env.clock.sleep(left).await;
            continue;
        }
        // Answered now: this whole process was stopped for a while, or the others are slow. Neither is helped by silence.
        if !majority_answers(&node).await {
            be_silent(&node, leadership, since).await;
        }
        // Time for an answer to what is said from here on.
        node.env.clock.sleep(patience).await;
    }
}

/// How long no majority was heard. A leadership of which none was ever heard counts from where it began.
fn unheard_for(node: &Inner, since: MonoTime) -> Duration {
    let never = || node.env.clock.monotonic().since(since);
    node.heard_ago().unwrap_or_else(never)
}

async fn be_silent(node: &Inner, leadership: LeaderId, since: MonoTime) {
    tracing::warn!(
        unheard_for_ms = unheard_for(node, since).as_millis() as u64,
        "this node leads and hears no majority: it is silent for a while, so that the others can elect another leader"
    );
    node.silence.keep(true);
    tokio::select! {
        biased;
        () = lost(node, leadership) => {}
        () = heard_again(node) => {}
        () = node.env.clock.sleep(SILENT_TIMEOUTS * node.config.election_timeout_max) => {}
    }
    node.silence.keep(false);
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

async fn heard_again(node: &Inner) {
    loop {
        node.env.clock.sleep(node.config.heartbeat).await;
        if majority_answers(node).await {
            return;
        }
    }
}

/// Asks all voters, outside of the consensus: no answer keeps anybody from electing. In a heartbeat's time, as long as an
/// answer to one may take.
async fn majority_answers(node: &Inner) -> bool {
    let voters: Vec<u64> = {
        let metrics = node.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().collect()
    };
    let members = node.members();
    let others = voters.iter().filter(|&&id| id != node.config.node);
    let answers = others.filter_map(|&id| Some((id, members.get(&id)?)));
    let answers = join_all(answers.map(async |(id, peer)| {
        let greeting = Greeting::default();
        tokio::select! {
            biased;
            answer = greet(node, id, peer, &greeting) => answer.is_ok(),
            () = node.env.clock.sleep(node.config.heartbeat) => false,
        }
    }));
    let answered = answers.await.into_iter().filter(|answered| *answered);
    let myself = usize::from(voters.contains(&node.config.node));
    (answered.count() + myself) * 2 > voters.len()
}
