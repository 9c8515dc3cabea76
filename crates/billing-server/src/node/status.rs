//! Decides what a node says of itself. Local and possibly behind: nothing here is a linearizable read.

use billing_core::{ClusterTime, LedgerId};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use serde::{Deserialize, Serialize};

use super::Inner;
use super::membership::Receiving;
use crate::raft::StateHash;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    /// Does not vote: not yet a member, or not any more.
    Learner,
    Stopped,
}

/// Who leads, and where its clients' listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderHint {
    pub node: u64,
    pub client: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub node: u64,
    pub raft: String,
    pub client: String,
    pub voter: bool,
    /// How far its log is known to reach; absent on a node that does not lead.
    pub matched: Option<u64>,
}

/// How a node sees itself and its cluster. Indexes are absent while there is no such entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    pub node: u64,
    pub cluster: String,
    /// Absent before the bootstrap.
    pub ledger_id: Option<LedgerId>,
    pub role: Role,
    pub term: u64,
    pub leader: Option<LeaderHint>,
    pub last_log: Option<u64>,
    pub committed: Option<u64>,
    pub applied: Option<u64>,
    pub snapshot: Option<u64>,
    pub purged: Option<u64>,
    pub members: Vec<Member>,
    /// The snapshot that is on its way to this node.
    pub receiving: Option<Receiving>,
    /// Of the state as it is applied now; equal on every node at an equal index.
    pub state_hash: StateHash,
    /// Those at multiples of [`crate::raft::HASH_EVERY`], oldest first.
    pub hashes: Vec<StateHash>,
    pub cluster_time: ClusterTime,
    /// Not 0: this machine's wall clock disagrees with a majority's, and this much is added to it.
    pub wall_correction_ms: i64,
}

impl Inner {
    pub(crate) fn status(&self) -> NodeStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let members = members(&metrics.membership_config, |node| {
            if node == self.config.node {
                return metrics.heartbeat.as_ref().and(metrics.last_log_index);
            }
            let matched = metrics.replication.as_ref()?.get(&node)?;
            matched.as_ref().map(|id| id.index)
        });
        let (ledger_id, applied, state_hash, hashes, cluster_time) = {
            let state = self.replica.state();
            (
                state.ledger.ledger_id().cloned(),
                state.applied_index(),
                state.hash(),
                state.hashes.iter().copied().collect(),
                state.ledger.now(),
            )
        };
        NodeStatus {
            node: self.config.node,
            cluster: self.me.cluster.clone(),
            ledger_id,
            role: match metrics.state {
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner => Role::Learner,
                ServerState::Shutdown => Role::Stopped,
            },
            term: metrics.current_term,
            leader: self.leader_hint(),
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index),
            applied,
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
            members,
            receiving: self.membership.receiving(),
            state_hash,
            hashes,
            cluster_time,
            wall_correction_ms: self.replica.clock.wall_correction_ms(),
        }
    }
}

fn members(
    membership: &crate::raft::types::Membership,
    matched: impl Fn(u64) -> Option<u64>,
) -> Vec<Member> {
    let voters: Vec<u64> = membership.voter_ids().collect();
    membership
        .membership()
        .nodes()
        .map(|(&node, peer)| Member {
            node,
            raft: peer.raft.clone(),
            client: peer.client.clone(),
            voter: voters.contains(&node),
            matched: matched(node),
        })
        .collect()
}
