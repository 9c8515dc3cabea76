//! Decides when a follower may take its leader for dead before the leader's lease has passed: when the leader's port for
//! nodes refuses connections. A connection is held to that port; the kernel closes it at once when the process ends, and
//! from then on answers "nobody listens here". Silence is never taken for death: a stopped process, a full backlog and a cut
//! link refuse nothing, and are left to the election timeouts.
//!
//! What then happens is the library's leadership transfer, with the voters' own eyes in place of the leader's word:
//! - whoever saw the refusal asks the other voters for a pre-vote, the lower ids first, so that votes do not split;
//! - a voter that is itself being refused by the leader of that very vote answers by vote and log alone, as if the lease had
//!   passed; any other voter answers as ever, and the lease holds. So a link that only one node lost costs not even a term;
//! - with a majority's pre-votes the node campaigns. Its requests do not say that the leader agreed: each voter decides once
//!   more by what it sees itself.
//!
//! Why this is safe. Raft grants one vote per term to a log at least as long as the voter's, and an entry counts only in the
//! hands of a majority; both hold here unchanged, and neither speaks of time. The lease only keeps a live leader from being
//! disturbed. What else could have rested on it, does not: reads confirm with a majority in the leader's term each time and
//! never use a lease read; a new leadership takes its own base of time from what it has applied, so cluster time does not go
//! back, and what the old one stamps cannot be committed any more; a leader restored from disk follows first. A belief that
//! was wrong (a firewall that rejects, a listener that closed before its process) therefore costs an election at worst.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use billing_env::BoxIo;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::{TransferLeaderRequest, VoteRequest, VoteResponse};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tonic::Status;

use super::Inner;
use crate::raft::Peer;
use crate::raft::links::{Lane, body, payload};
use crate::raft::types::{LeaderId, TypeConfig, Vote};

/// A connection that takes longer says nothing about the process.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);
/// A connection is made anew after this long: one that a middle box forgot would never tell of an end.
const HELD_FOR: Duration = Duration::from_secs(10);
/// The first look after the one that failed; each further one waits twice as long ...
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// ... up to this.
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(320);
/// The next voter in the order of ids lets the one before it try first.
const STAGGER: Duration = Duration::from_millis(40);
/// A voter that answers later is not needed: the lease will have passed soon.
const PRE_VOTE_PATIENCE: Duration = Duration::from_millis(500);

/// What one node sees of its leader's process, and what it made of it. Clones are the same.
#[derive(Clone)]
pub(crate) struct Succession(Arc<Shared>);

struct Shared {
    /// The leadership whose port refused at the last look.
    refused_by: watch::Sender<Option<Vote>>,
    /// The last campaign that rested on a refusal.
    campaign: Mutex<Option<LeaderId>>,
}

impl Succession {
    pub fn new() -> Succession {
        Succession(Arc::new(Shared {
            refused_by: watch::Sender::new(None),
            campaign: Mutex::default(),
        }))
    }

    fn refused_by(&self) -> Option<Vote> {
        *self.0.refused_by.borrow()
    }

    fn saw(&self, refused_by: Option<Vote>) {
        self.0.refused_by.send_if_modified(|before| {
            let differs = *before != refused_by;
            *before = refused_by;
            differs
        });
    }

    fn campaigns_as(&self, candidate: Option<LeaderId>) {
        *self
            .0
            .campaign
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = candidate;
    }

    /// A request for a vote as it may leave this node: only a leader's word lets others pass over its lease, and this
    /// campaign may have nobody's.
    pub fn outgoing(&self, mut request: VoteRequest<TypeConfig>) -> VoteRequest<TypeConfig> {
        let campaign = *self
            .0
            .campaign
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if campaign == Some(request.vote.leader_id) {
            request.leadership_transfer = false;
        }
        request
    }

    /// A request for a vote as this node's consensus shall judge it: where the leader's port refuses this node too, the
    /// leader's lease is no reason to say no.
    pub fn incoming(&self, mut request: VoteRequest<TypeConfig>) -> VoteRequest<TypeConfig> {
        if self.refused_by().is_some_and(|gone| gone < request.vote) {
            request.leadership_transfer = true;
        }
        request
    }

    /// The consensus's answer to a pre-vote, or the one that it would give without the lease of a leader whose port refuses.
    pub fn pre_voted(
        &self,
        asked: &VoteRequest<TypeConfig>,
        answer: VoteResponse<TypeConfig>,
    ) -> VoteResponse<TypeConfig> {
        let gone = self.refused_by();
        if answer.vote_granted || gone != Some(answer.vote) {
            return answer;
        }
        let granted = asked.vote >= answer.vote && asked.last_log_id >= answer.last_log_id;
        VoteResponse::new(answer.vote, answer.last_log_id, granted)
    }
}

/// The leadership that this node, a voter, follows.
struct Followed {
    vote: Vote,
    leader: Peer,
    /// The voters that are left, this one among them.
    heirs: BTreeMap<u64, Peer>,
    /// Each needs a majority of its own; two while the membership changes.
    configs: Vec<BTreeSet<u64>>,
}

impl Followed {
    fn by(node: &Inner) -> Option<Followed> {
        let metrics = node.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let (vote, me) = (metrics.vote, node.config.node);
        let leader = vote.leader_id.node_id;
        let membership = metrics.membership_config.membership();
        let configs = membership.get_joint_config();
        let votes = |id: &u64| configs.iter().any(|config| config.contains(id));
        if !vote.committed || leader == me || !votes(&me) {
            return None;
        }
        let heirs = membership
            .nodes()
            .filter(|&(id, _)| votes(id) && *id != leader)
            .map(|(&id, peer)| (id, peer.clone()))
            .collect();
        Some(Followed {
            vote,
            leader: membership.get_node(&leader)?.clone(),
            heirs,
            configs: configs.clone(),
        })
    }

    fn majority(&self, granted: &BTreeSet<u64>) -> bool {
        self.configs
            .iter()
            .all(|config| config.intersection(granted).count() * 2 > config.len())
    }
}

/// Watches the leader of the day, whoever it is.
pub(crate) async fn run(node: Arc<Inner>) {
    let mut closing = node.closing.subscribe();
    let mut metrics = node.raft.server_metrics();
    loop {
        let followed = Followed::by(&node);
        // False: the consensus has ended, and nothing moves any more.
        let moved_on = async {
            loop {
                if metrics.changed().await.is_err() {
                    return false;
                }
                // Whoever follows nobody looks again at every change.
                if followed
                    .as_ref()
                    .is_none_or(|followed| followed.vote != metrics.borrow_watched().vote)
                {
                    return true;
                }
            }
        };
        let watched = async {
            match &followed {
                Some(followed) => watch(&node, followed).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = super::until_true(&mut closing) => return,
            goes_on = moved_on => if !goes_on { return },
            () = watched => {}
        }
        node.succession.saw(None);
    }
}

/// Holds a connection to the leader, and campaigns for as long as its port refuses. Never ends by itself.
async fn watch(node: &Inner, followed: &Followed) {
    let mut pause = Duration::ZERO;
    let mut gone = false;
    loop {
        node.env.clock.sleep(pause).await;
        pause = (pause * 2).clamp(LOOK_AGAIN, LOOK_AGAIN_MAX);
        let connecting = node.env.net.connect(&followed.leader.raft);
        let connected = tokio::select! {
            biased;
            connected = connecting => connected,
            () = node.env.clock.sleep(CONNECT_PATIENCE) => Err(io::ErrorKind::TimedOut.into()),
        };
        match connected {
            Ok(io) => {
                node.succession.saw(None);
                gone = false;
                let since = node.env.clock.monotonic();
                tokio::select! {
                    biased;
                    () = ended(io) => {}
                    () = node.env.clock.sleep(HELD_FOR) => {}
                }
                // Its end calls for a look at once; a listener that closes every connection must not be asked in a loop.
                if node.env.clock.monotonic().since(since) > LOOK_AGAIN_MAX {
                    pause = Duration::ZERO;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                node.succession.saw(Some(followed.vote));
                if !gone {
                    gone = true;
                    tracing::info!(
                        leader = followed.vote.leader_id.node_id,
                        "the leader's port refuses: its process is gone"
                    );
                    node.env.clock.sleep(turn(node, followed)).await;
                }
                campaign(node, followed.vote).await;
            }
            // Nobody answered: that can be the network, and proves nothing.
            Err(_) => node.succession.saw(None),
        }
    }
}

/// Resolves when the other side closed the connection. What it says meanwhile is for somebody else.
async fn ended(mut io: BoxIo) {
    let mut ignored = [0; 256];
    while !matches!(io.read(&mut ignored).await, Ok(0) | Err(_)) {}
}

/// How long this node lets others go first.
fn turn(node: &Inner, followed: &Followed) -> Duration {
    let before = followed.heirs.range(..node.config.node).count();
    STAGGER * u32::try_from(before).unwrap_or(u32::MAX)
}

/// Asks the other voters, and stands for election where a majority would vote for this node. It may fail for a reason that
/// passes: another voter has not looked yet, or has a longer log and is about to campaign itself.
async fn campaign(node: &Inner, gone: Vote) {
    // As the members are now.
    let Some(followed) = Followed::by(node).filter(|followed| followed.vote == gone) else {
        return;
    };
    let state = node
        .raft
        .with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied()));
    let Ok((vote, last)) = state.await else {
        return;
    };
    if vote != gone {
        return;
    }
    let candidate = LeaderId {
        term: gone.leader_id.term + 1,
        node_id: node.config.node,
    };
    let request = VoteRequest::new(Vote::new(candidate.term, candidate.node_id), last);
    if !would_win(node, &followed, &request).await {
        return;
    }
    tracing::info!(term = candidate.term, "campaigning in its place");
    node.succession.campaigns_as(Some(candidate));
    // Does nothing where the vote has moved on meanwhile.
    let transfer = TransferLeaderRequest::new(gone, node.config.node, last);
    let refused = match node.raft.handle_transfer_leader(transfer).await {
        Ok(Ok(())) => return,
        Ok(Err(reason)) => reason.to_string(),
        Err(error) => error.to_string(),
    };
    // Should that leader live and hand over to this node later, that is a transfer by its word.
    node.succession.campaigns_as(None);
    tracing::debug!(reason = refused, "no campaign");
}

async fn would_win(node: &Inner, followed: &Followed, request: &VoteRequest<TypeConfig>) -> bool {
    let mut granted = BTreeSet::from([node.config.node]);
    let mut answers: FuturesUnordered<_> = followed
        .heirs
        .iter()
        .filter(|&(&id, _)| id != node.config.node)
        .map(|(&id, peer)| async move { (id, pre_vote(node, id, peer, request).await) })
        .collect();
    let patience = node.env.clock.sleep(PRE_VOTE_PATIENCE);
    tokio::pin!(patience);
    while !followed.majority(&granted) {
        let answer = tokio::select! {
            biased;
            answer = answers.next() => answer,
            () = &mut patience => None,
        };
        match answer {
            Some((id, Ok(answer))) if answer.vote_granted => {
                granted.insert(id);
            }
            Some((id, Ok(_))) => tracing::debug!(node = id, "no pre-vote"),
            Some((id, Err(status))) => {
                tracing::debug!(node = id, reason = status.message(), "no pre-vote");
            }
            None => return false,
        }
    }
    true
}

async fn pre_vote(
    node: &Inner,
    to: u64,
    peer: &Peer,
    request: &VoteRequest<TypeConfig>,
) -> Result<VoteResponse<TypeConfig>, Status> {
    let mut link = node.links.to(to, &peer.raft, Lane::Pulse)?;
    let request = link.request(payload("pre-vote", request)?);
    let response = link.client.pre_vote(request).await?;
    body("pre-vote", response.get_ref())
}
