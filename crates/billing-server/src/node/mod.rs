//! One node of the cluster: decides when a command is proposed, where it is forwarded, what a read waits for, and how a node
//! starts, founds and ends. Decides no rule about money: that is `billing_core`. Nothing of the consensus library shows.

pub(crate) mod backup;
pub mod bounds;
pub mod clock;
mod divergence;
pub mod error;
pub mod fail_stop;
pub(crate) mod forward;
pub mod greet;
pub(crate) mod meeting;
pub mod membership;
pub(crate) mod proposer;
pub(crate) mod reads;
mod silence;
mod start;
pub mod status;
pub(crate) mod succession;
pub mod waiters;
pub(crate) mod waiting;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billing_core::{Actor, Command, Ledger, Rejection};
use billing_env::Env;
use billing_store::{DiskFigures, LogDisk, SnapshotStore};
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

pub use backup::Taken;
pub use bounds::BATCH_BYTES_MAX;
pub use error::CallError;
pub use fail_stop::{EndReason, FailStop};
pub use greet::Founding;
pub use membership::{Change, Changed, Receiving};
pub use proposer::Answer;
pub use start::{NodeConfig, StartError};
pub use status::{LeaderHint, Member, NodeStatus, Role};

use crate::raft::Peer;
use crate::raft::folders::Folders;
use crate::raft::links::{Links, Me};
use crate::raft::replica::Replica;
use crate::raft::types::{LeaderId, Raft};

/// What a read may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Everything that was answered to anybody before the read began.
    Linearizable,
    /// What this node has applied, however old.
    Stale,
}

/// Everything of one node; shared by its tasks.
pub(crate) struct Inner {
    pub config: NodeConfig,
    pub env: Env,
    pub me: Arc<Me>,
    pub raft: Raft,
    pub replica: Arc<Replica>,
    pub folders: Folders,
    pub links: Links,
    pub log: Arc<dyn LogDisk>,
    pub snapshots: Arc<dyn SnapshotStore>,
    pub fail_stop: FailStop,
    pub proposals: proposer::Queue,
    pub forwards: proposer::Queue,
    pub reads: reads::Reads,
    pub entries_in_flight: Arc<Semaphore>,
    /// Places for copies of the ledger on their way out.
    pub copies: Arc<Semaphore>,
    pub succession: succession::Succession,
    pub membership: membership::Standing,
    pub meeting: meeting::Meeting,
    /// Nothing new is taken any more.
    pub closing: watch::Sender<bool>,
    /// Callers that wait are sent elsewhere, and keep what they wait for.
    pub leaving: AtomicBool,
    /// The listener ends.
    pub deaf: watch::Sender<bool>,
    pub silence: crate::raft::network::Silence,
    /// Those that end by themselves when the node ends, once what was queued is answered.
    emptying: Mutex<Vec<JoinHandle<()>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// A running node. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

impl Node {
    /// Proposes one command, here or at the leader, and waits until it is applied. `actor` is who it is recorded for.
    pub async fn propose(&self, actor: Actor, command: Command) -> Answer {
        self.inner.propose(actor, command).await
    }

    /// Queues one command, here or for the leader, for whoever waits for many answers and bounds their time itself.
    pub(crate) fn ask(&self, actor: Actor, command: Command) -> Result<proposer::Asked, CallError> {
        self.inner.ask(actor, command)
    }

    /// How long [`Node::propose`] waits for an answer.
    pub(crate) fn call_timeout(&self) -> Duration {
        self.inner.config.call_timeout
    }

    /// Proposes all of them at once, in this order; answers by position. They usually share an entry, but one may be applied
    /// and its neighbour not.
    pub async fn propose_many(&self, commands: Vec<(Actor, Command)>) -> Vec<Answer> {
        let asked: Vec<_> = commands
            .into_iter()
            .map(|(actor, command)| self.ask(actor, command))
            .collect();
        proposer::answers(asked, &self.inner.env, self.inner.config.call_timeout).await
    }

    /// Reads the ledger, and says at which index (0 before the first entry). `NotApplied` is the only failure: a read changes
    /// nothing. `read` holds up applies, so it should copy and go.
    pub async fn read<T>(
        &self,
        consistency: Consistency,
        read: impl FnOnce(&Ledger) -> T,
    ) -> Result<(T, u64), CallError> {
        if consistency == Consistency::Linearizable {
            let index = self.inner.reads.index().await?;
            let patience = self.inner.config.election_timeout_max;
            tokio::select! {
                biased;
                () = self.inner.replica.wait_applied(index) => {}
                () = self.inner.env.clock.sleep(patience) => {
                    return Err(CallError::not_applied(format!(
                        "this node has not applied index {index} in time"
                    )));
                }
            }
        }
        if self.inner.fail_stop.is_tripped() {
            return Err(CallError::not_applied("this node ends"));
        }
        let state = self.inner.replica.state();
        let index = state.applied_index().unwrap_or(0);
        Ok((read(&state.ledger), index))
    }

    /// Changes who belongs to the cluster, or who leads it. A refusal changed nothing.
    pub async fn change(&self, change: Change) -> Result<Result<Changed, Rejection>, CallError> {
        self.inner.change(change).await
    }

    /// Resolves, with what to do, when the others say that this node is no member any more. It must end then.
    pub async fn removed(&self) -> String {
        self.inner.membership.removed().await
    }

    /// From here on a call that ends unanswered withdraws nothing: its caller was told to ask another node.
    pub fn leave(&self) {
        self.inner.leaving.store(true, Ordering::Relaxed);
    }

    /// How this node sees itself and the cluster, without asking anybody.
    pub fn status(&self) -> NodeStatus {
        self.inner.status()
    }

    /// Who leads, as far as this node knows.
    pub fn leader_hint(&self) -> Option<LeaderHint> {
        self.inner.leader_hint()
    }

    /// Where clients find the leader, while that is another node.
    pub fn leader_elsewhere(&self) -> Option<String> {
        if self.inner.leadership().is_some() {
            return None;
        }
        let (leader, peer) = self.inner.leader()?;
        (leader != self.inner.config.node).then_some(peer.client)
    }

    /// How this node's disk does.
    pub fn disk(&self) -> DiskFigures {
        self.inner.log.figures()
    }

    /// This machine's wall clock, uncorrected.
    pub fn own_wall(&self) -> billing_core::WallTime {
        billing_core::WallTime(self.inner.env.clock.wall_ms())
    }

    /// Changes with every entry that this node applies: the index, `None` before the first.
    pub fn applied(&self) -> watch::Receiver<Option<u64>> {
        self.inner.replica.applied()
    }
}

impl Inner {
    /// This node's leadership, if it leads as far as it knows.
    pub(crate) fn leadership(&self) -> Option<LeaderId> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let vote = metrics.vote;
        (vote.committed && vote.leader_id.node_id == self.config.node && metrics.state.is_leader())
            .then_some(vote.leader_id)
    }

    /// How long ago a majority was last heard; zero where this node alone is one, `None` before this leadership heard any.
    pub(crate) fn heard_ago(&self) -> Option<Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.membership_config.voter_ids().count() <= 1 {
            return Some(Duration::ZERO);
        }
        metrics.last_quorum_acked.map(|acked| acked.elapsed())
    }

    /// The members as the membership in force says; those configured, before there is one.
    pub(crate) fn members(&self) -> BTreeMap<u64, Peer> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let members: BTreeMap<u64, Peer> = metrics
            .membership_config
            .membership()
            .nodes()
            .map(|(&node, peer)| (node, peer.clone()))
            .collect();
        if members.is_empty() {
            self.config.members.clone()
        } else {
            members
        }
    }

    /// The configured members but this one.
    pub(crate) fn others(&self) -> BTreeMap<u64, Peer> {
        let mut others = self.config.members.clone();
        others.remove(&self.config.node);
        others
    }

    fn leader(&self) -> Option<(u64, Peer)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        let membership = metrics.membership_config.membership();
        // Every call asks this, so nothing is collected; those configured stand in before there is a membership.
        let peer = match membership.get_node(&leader) {
            Some(peer) => peer,
            None if membership.nodes().next().is_none() => self.config.members.get(&leader)?,
            None => return None,
        };
        Some((leader, peer.clone()))
    }

    pub(crate) fn leader_address(&self) -> Option<(u64, String)> {
        self.leader().map(|(leader, peer)| (leader, peer.raft))
    }

    pub(crate) fn leader_hint(&self) -> Option<LeaderHint> {
        self.leader().map(|(node, peer)| LeaderHint {
            node,
            client: peer.client,
        })
    }

    pub(crate) fn why_no_leader(&self) -> String {
        if let Some(why) = self.meeting.why_not_yet() {
            return why;
        }
        match self.leader() {
            Some((leader, _)) if leader != self.config.node => {
                format!(
                    "node {} does not lead, node {leader} does",
                    self.config.node
                )
            }
            _ => format!("node {} knows no leader", self.config.node),
        }
    }

    /// Queues a command for this node's proposer or for the leader's.
    pub(crate) fn ask(&self, actor: Actor, command: Command) -> Result<proposer::Asked, CallError> {
        if *self.closing.borrow() {
            return Err(CallError::not_applied("the node is stopping"));
        }
        if self.leadership().is_some() {
            self.proposals.ask(actor, command)
        } else if self.leader().is_some() {
            self.forwards.ask(actor, command)
        } else {
            Err(CallError::not_applied(self.why_no_leader()))
        }
    }

    pub(crate) async fn propose(&self, actor: Actor, command: Command) -> Answer {
        self.ask(actor, command)?
            .answer(&self.env, self.config.call_timeout)
            .await
    }

    fn keep_until_empty(&self, queues: impl IntoIterator<Item = JoinHandle<()>>) {
        self.emptying
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(queues);
    }

    fn take_emptying(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.emptying.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn keep_task(&self, task: JoinHandle<()>) {
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(task);
    }

    fn take_tasks(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Resolves when the flag is up, or nobody can raise it any more.
pub(crate) async fn until_true(flag: &mut watch::Receiver<bool>) {
    // An error means that the node is gone: the same as closing.
    let _ = flag.wait_for(|&up| up).await;
}
