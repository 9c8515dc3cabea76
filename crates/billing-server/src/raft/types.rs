//! Decides what the consensus library is made of here: node ids, peers, what an entry carries and what applying it answers.

use std::fmt;
use std::sync::Arc;

use billing_core::{Actor, Command, Rejection, Reply, Stamp};
use serde::{Deserialize, Serialize};

use super::runtime::Runtime;

/// Where a member of the cluster is reached. Part of the membership, hence replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// `host:port` of the listener for other nodes.
    pub raft: String,
    /// `host:port` of the listener for clients: what a leader hint names.
    pub client: String,
}

/// The commands of one entry, and the time at which they were proposed (§4).
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    pub stamp: Stamp,
    pub commands: Vec<(Actor, Command)>,
}

/// One Raft entry's payload. Shared, since the log, the replication to each follower and apply all hold it at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal(pub Arc<Batch>);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch of {} commands", self.0.commands.len())
    }
}

/// What the ledger said to each command of a batch, in order; empty for entries of the consensus itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome(pub Vec<Result<Reply, Rejection>>);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} results", self.0.len())
    }
}

openraft::declare_raft_types!(
    pub TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = Peer,
        AsyncRuntime = Runtime,
);

pub type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub type Membership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
