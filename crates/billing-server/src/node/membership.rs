//! Decides who belongs to the cluster: which change an operator may make, in which steps, and what is refused with which
//! advice. Only the leader decides; any node passes the question on. Never uses a node id twice, never takes a vote from a
//! set that could not elect anybody afterwards, never leaves a change half made.
//!
//! A change of voters is two entries of the log (joint, then the new set alone). Whoever leads finishes what a leader before
//! it began. A leader that is to go hands its leadership over first, and the next one removes it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use billing_core::{MembershipReason, Rejection};
use futures::future::join_all;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _, Precondition};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify, watch};

use super::bounds::{ENTRIES_IN_FLIGHT_MAX, MEMBERS_MAX, PROMOTE_LAG_MAX, VOTERS_MAX};
use super::error::CallError;
use super::status::Member;
use super::{Inner, forward, greet, proposer, until_true};
use crate::raft::Peer;
use crate::raft::types::{LeaderId, LogId};

/// Between two looks at a leadership or a membership that moves.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The log, without a vote.
    AddLearner { node: u64, peer: Peer },
    /// A vote for a learner, and in the same change none any more for the node that it replaces.
    Promote {
        node: u64,
        replaces: Option<u64>,
        allow_even: bool,
    },
    /// Out of the cluster, for ever.
    Remove { node: u64, allow_even: bool },
    /// `None`: the voter whose log reaches farthest.
    TransferLeader { to: Option<u64> },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Changed {
    /// Where the leader's log ended then.
    Added {
        last_log: u64,
    },
    Members(Vec<Member>),
    Leads(u64),
}

/// One node's word on a change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Word {
    Done(Changed),
    Refused(Rejection),
    Failed(CallError),
    /// Nothing was changed here, and another node leads or is about to.
    Elsewhere(String),
}

/// A snapshot on its way to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receiving {
    pub received: u64,
    pub bytes: u64,
}

/// What one node keeps of its own place in the cluster.
#[derive(Debug)]
pub(crate) struct Standing {
    /// Held while a change is made: one at a time.
    changing: Arc<Mutex<()>>,
    removed: watch::Sender<Option<String>>,
    receiving: watch::Sender<Option<Receiving>>,
    /// While this is up the proposer waits.
    handing_over: watch::Sender<bool>,
    /// Appends that reached this node, heartbeats among them.
    appends: AtomicU64,
    /// Somebody says that it is time to ask the others who this node is.
    pub look_around: Notify,
}

impl Default for Standing {
    fn default() -> Standing {
        Standing {
            changing: Arc::default(),
            removed: watch::Sender::new(None),
            receiving: watch::Sender::new(None),
            handing_over: watch::Sender::new(false),
            appends: AtomicU64::new(0),
            look_around: Notify::new(),
        }
    }
}

impl Standing {
    pub fn append_came(&self) {
        self.appends.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts up while a leader sends to this node.
    pub fn appends(&self) -> u64 {
        self.appends.load(Ordering::Relaxed)
    }

    pub fn receives(&self, receiving: Option<Receiving>) {
        self.receiving.send_replace(receiving);
    }

    pub fn receiving(&self) -> Option<Receiving> {
        *self.receiving.borrow()
    }

    /// Resolves when no leadership is being handed over.
    pub async fn settled(&self) {
        // The sender lives in self.
        let _ = self.handing_over.subscribe().wait_for(|over| !over).await;
    }

    /// The others say that this node is no member any more.
    pub fn was_removed(&self, why: &str) {
        let news = self.removed.send_if_modified(|removed| {
            let news = removed.is_none();
            removed.get_or_insert_with(|| why.to_owned());
            news
        });
        if news {
            tracing::error!(reason = why, "this node was removed from the cluster");
        }
    }

    /// Resolves with the reason when this node was removed.
    pub async fn removed(&self) -> String {
        let mut removed = self.removed.subscribe();
        match removed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // The sender lives in self.
            Err(_) => std::future::pending().await,
        }
    }
}

/// What a removed node is told.
pub(crate) fn removed(node: u64) -> String {
    format!(
        "node {node} was removed from the cluster, and its id is never used again: do not start it again; to use the machine, \
         delete its data folder and run `billingd join` under a new id"
    )
}

/// A leader's view at one moment; every rule judges by it alone.
struct Scene {
    me: u64,
    membership: Option<LogId>,
    joint: bool,
    voters: BTreeSet<u64>,
    nodes: BTreeMap<u64, Peer>,
    /// Every id that was ever a member's.
    used: BTreeSet<u64>,
    /// Those that answered within the longest election timeout, this node too, and how long ago.
    heard: BTreeMap<u64, Duration>,
    matched: BTreeMap<u64, u64>,
    last_log: u64,
}

/// What a change asks of the consensus.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is so already: a repeat.
    Nothing,
    Change(ChangeMembers<u64, Peer>),
    /// To the first of them that answers.
    HandOver {
        heirs: Vec<u64>,
    },
}

/// The node that a refusal is about, the reason, the advice.
#[derive(Debug, PartialEq, Eq)]
struct Refusal(u64, MembershipReason, String);

impl From<Refusal> for Rejection {
    fn from(Refusal(node, reason, detail): Refusal) -> Rejection {
        Rejection::MembershipRefused {
            node,
            reason,
            detail,
        }
    }
}

struct List<'a>(&'a BTreeSet<u64>);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, id) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            write!(f, "{comma}{id}")?;
        }
        Ok(())
    }
}

impl Scene {
    fn of(node: &Inner) -> Scene {
        let metrics = node.raft.metrics().borrow_watched().clone();
        let me = node.config.node;
        let lately = node.config.election_timeout_max;
        let membership = metrics.membership_config.membership();
        let mut heard: BTreeMap<u64, Duration> = metrics
            .heartbeat
            .iter()
            .flatten()
            .filter_map(|(&id, at)| Some((id, at.as_ref()?.elapsed())))
            .filter(|(_, ago)| *ago <= lately)
            .collect();
        heard.insert(me, Duration::ZERO);
        let mut used = node.replica.state().ids_used.clone();
        used.extend(membership.nodes().map(|(&id, _)| id));
        Scene {
            me,
            membership: *metrics.membership_config.log_id(),
            joint: membership.get_joint_config().len() > 1,
            voters: membership.voter_ids().collect(),
            nodes: membership
                .nodes()
                .map(|(&id, peer)| (id, peer.clone()))
                .collect(),
            used,
            heard,
            matched: metrics
                .replication
                .iter()
                .flatten()
                .filter_map(|(&id, matched)| Some((id, matched.as_ref()?.index)))
                .collect(),
            last_log: metrics.last_log_index.unwrap_or(0),
        }
    }

    fn judge(&self, change: &Change) -> Result<Step, Refusal> {
        if self.joint {
            return Err(Refusal(
                subject(change).unwrap_or(self.me),
                MembershipReason::InProgress,
                "another change of the voters has not ended: try again in a moment".to_owned(),
            ));
        }
        match change {
            Change::AddLearner { node, peer } => self.add(*node, peer),
            Change::Promote {
                node,
                replaces,
                allow_even,
            } => self.promote(*node, *replaces, *allow_even),
            Change::Remove { node, allow_even } => self.remove(*node, *allow_even),
            Change::TransferLeader { to } => self.transfer(*to),
        }
    }

    fn add(&self, node: u64, peer: &Peer) -> Result<Step, Refusal> {
        let used = |detail| Err(Refusal(node, MembershipReason::IdUsed, detail));
        let free = self.used.last().map_or(1, |last| last.saturating_add(1));
        if let Some(known) = self.nodes.get(&node) {
            if known == peer && !self.voters.contains(&node) {
                return Ok(Step::Nothing);
            }
            return used(format!(
                "it is a member already, at {} for clients and {} for nodes: a new node needs an id of its own, such as {free}",
                known.client, known.raft
            ));
        }
        if self.used.contains(&node) {
            return used(format!(
                "its id belonged to a node that was removed, and ids are never used twice: take one that never was, such as {free}"
            ));
        }
        let taken =
            |(_, known): &(&u64, &Peer)| known.raft == peer.raft || known.client == peer.client;
        if let Some((other, known)) = self.nodes.iter().find(taken) {
            // Others would reach that node under both ids.
            return Err(Refusal(
                node,
                MembershipReason::WrongRole,
                format!(
                    "node {other} is at {} for clients and {} for nodes: a new node needs addresses of its own",
                    known.client, known.raft
                ),
            ));
        }
        if self.nodes.len() >= MEMBERS_MAX {
            return Err(Refusal(
                node,
                MembershipReason::WrongRole,
                format!("the cluster has {MEMBERS_MAX} members, its bound: remove one first"),
            ));
        }
        Ok(Step::Change(ChangeMembers::AddNodes(BTreeMap::from([(
            node,
            peer.clone(),
        )]))))
    }

    fn promote(&self, node: u64, replaces: Option<u64>, allow_even: bool) -> Result<Step, Refusal> {
        self.is_member(node)?;
        if self.voters.contains(&node) {
            let replaced = replaces
                .is_some_and(|old| !self.nodes.contains_key(&old) && self.used.contains(&old));
            if replaced {
                return Ok(Step::Nothing);
            }
            let detail = "it has its vote already".to_owned();
            return Err(Refusal(node, MembershipReason::WrongRole, detail));
        }
        if let Some(old) = replaces {
            self.is_member(old)?;
            if !self.voters.contains(&old) {
                return Err(Refusal(
                    old,
                    MembershipReason::WrongRole,
                    format!(
                        "it has no vote that node {node} could take over: promote node {node} alone, and remove node {old}"
                    ),
                ));
            }
        }
        self.keeps_up(node)?;
        let mut wanted = self.voters.clone();
        wanted.insert(node);
        if let Some(old) = replaces {
            wanted.remove(&old);
        }
        if wanted.len() > VOTERS_MAX {
            return Err(Refusal(
                node,
                MembershipReason::WrongRole,
                format!("the cluster has {VOTERS_MAX} voters, its bound: replace one"),
            ));
        }
        self.sound(node, &wanted, allow_even)?;
        if replaces == Some(self.me) {
            return self.give_way(&wanted);
        }
        Ok(Step::Change(ChangeMembers::ReplaceAllVoters(wanted)))
    }

    fn remove(&self, node: u64, allow_even: bool) -> Result<Step, Refusal> {
        self.is_member(node)?;
        if !self.voters.contains(&node) {
            return Ok(Step::Change(ChangeMembers::RemoveNodes(BTreeSet::from([
                node,
            ]))));
        }
        let mut wanted = self.voters.clone();
        wanted.remove(&node);
        if wanted.is_empty() {
            return Err(Refusal(
                node,
                MembershipReason::NoMajority,
                "it is the only voter: without it there is no cluster".to_owned(),
            ));
        }
        self.sound(node, &wanted, allow_even)?;
        if node == self.me {
            return self.give_way(&wanted);
        }
        Ok(Step::Change(ChangeMembers::ReplaceAllVoters(wanted)))
    }

    fn transfer(&self, to: Option<u64>) -> Result<Step, Refusal> {
        let Some(to) = to else {
            return self.give_way(&self.voters);
        };
        if to == self.me {
            return Ok(Step::Nothing);
        }
        self.is_member(to)?;
        if !self.voters.contains(&to) {
            let detail = "it has no vote, so it cannot lead: promote it first".to_owned();
            return Err(Refusal(to, MembershipReason::WrongRole, detail));
        }
        self.keeps_up(to)?;
        Ok(Step::HandOver { heirs: vec![to] })
    }

    /// Hands over to one of the heirs among `wanted`.
    fn give_way(&self, wanted: &BTreeSet<u64>) -> Result<Step, Refusal> {
        let heirs = self.heirs(wanted);
        if heirs.is_empty() {
            return Err(self.no_heir());
        }
        Ok(Step::HandOver { heirs })
    }

    fn no_heir(&self) -> Refusal {
        Refusal(
            self.me,
            MembershipReason::NoMajority,
            format!(
                "it leads, and no other voter is reached and close enough to lead in its place (voters: {}): start one, and try again",
                List(&self.voters)
            ),
        )
    }

    /// None of the heirs answered.
    fn no_answer(&self, change: &Change) -> Refusal {
        match change {
            Change::TransferLeader { to: Some(to) } => Refusal(
                *to,
                MembershipReason::Lags,
                "it was heard from lately and does not answer now: start it, or look at its log"
                    .to_owned(),
            ),
            Change::TransferLeader { to: None }
            | Change::AddLearner { .. }
            | Change::Promote { .. }
            | Change::Remove { .. } => self.no_heir(),
        }
    }

    /// Who of `wanted` could lead instead, which takes a vote of today: whose log reaches farthest comes first, and among equals,
    /// as in a cluster that is idle, who was heard from last.
    fn heirs(&self, wanted: &BTreeSet<u64>) -> Vec<u64> {
        let voters = wanted.intersection(&self.voters).copied();
        let others = voters.filter(|&id| id != self.me);
        let mut heirs: Vec<u64> = others.filter(|&id| self.keeps_up(id).is_ok()).collect();
        heirs.sort_by_key(|id| (Reverse(self.matched.get(id)), self.heard.get(id)));
        heirs
    }

    fn is_member(&self, node: u64) -> Result<(), Refusal> {
        if self.nodes.contains_key(&node) {
            return Ok(());
        }
        let members = self.nodes.keys().copied().collect();
        let why = if self.used.contains(&node) {
            "it was removed already"
        } else {
            "it never was a member"
        };
        let detail = format!("{why}; the members are {}", List(&members));
        Err(Refusal(node, MembershipReason::NotAMember, detail))
    }

    /// Refuses for a node that would hold the others up.
    fn keeps_up(&self, node: u64) -> Result<(), Refusal> {
        let detail = if !self.heard.contains_key(&node) {
            "it was not heard from lately: start it, or look at its log".to_owned()
        } else {
            match self.matched.get(&node) {
                Some(&matched) if self.last_log.saturating_sub(matched) <= PROMOTE_LAG_MAX => {
                    return Ok(());
                }
                Some(matched) => format!(
                    "its log reaches entry {matched} and the leader's {}, {} behind; within {PROMOTE_LAG_MAX} it is close enough: try again when it has caught up",
                    self.last_log,
                    self.last_log - matched
                ),
                None => format!(
                    "it has nothing of the log yet, and the leader's reaches entry {}: try again when it has caught up",
                    self.last_log
                ),
            }
        };
        Err(Refusal(node, MembershipReason::Lags, detail))
    }

    /// Refuses a set of voters that could not elect a leader as things stand, or that is worse than a smaller one.
    fn sound(&self, node: u64, wanted: &BTreeSet<u64>, allow_even: bool) -> Result<(), Refusal> {
        let count = wanted.len();
        if count.is_multiple_of(2) && count != self.voters.len() && !allow_even {
            return Err(Refusal(
                node,
                MembershipReason::EvenVoters,
                format!(
                    "{count} voters ({}) survive no more failures than {} would, and need one more for a majority: \
                     replace a voter in one change, or say that an even number is meant (allow_even)",
                    List(wanted),
                    count - 1
                ),
            ));
        }
        // A change needs the word of both: it hangs half made where either cannot give it.
        self.reached(node, "that would be left", wanted)?;
        self.reached(node, "of today", &self.voters)
    }

    fn reached(&self, node: u64, which: &str, voters: &BTreeSet<u64>) -> Result<(), Refusal> {
        let reached = voters.iter().copied();
        let reached: BTreeSet<u64> = reached.filter(|id| self.heard.contains_key(id)).collect();
        let needed = voters.len() / 2 + 1;
        if reached.len() >= needed {
            return Ok(());
        }
        Err(Refusal(
            node,
            MembershipReason::NoMajority,
            format!(
                "of the voters {which} ({}) only {} of {needed} needed were heard from lately ({}): start the others, or replace them first",
                List(voters),
                reached.len(),
                List(&reached)
            ),
        ))
    }

    /// Counts as heard from who answers now, and nobody else. Whoever was heard from within an election timeout may be dead by
    /// now, and a change that counts on it would hang half made; a new leader may not have heard from anybody yet.
    async fn ask_around(&mut self, node: &Inner) {
        let others = self.nodes.iter().filter(|(id, _)| **id != self.me);
        let answers = join_all(others.map(|(&id, peer)| async move {
            let greeting = greet::Greeting::default();
            (id, greet::greet(node, id, peer, &greeting).await)
        }));
        for (id, answer) in answers.await {
            match answer {
                Ok(_) => {
                    self.heard.entry(id).or_insert(Duration::ZERO);
                }
                Err(status) => {
                    tracing::warn!(node = id, reason = status.message(), "it does not answer");
                    self.heard.remove(&id);
                }
            }
        }
    }
}

/// The voters that could lead when this node goes, the best one first.
pub(crate) fn heirs(node: &Inner) -> Vec<u64> {
    let scene = Scene::of(node);
    scene.heirs(&scene.voters)
}

fn subject(change: &Change) -> Option<u64> {
    match change {
        Change::AddLearner { node, .. }
        | Change::Promote { node, .. }
        | Change::Remove { node, .. } => Some(*node),
        Change::TransferLeader { to } => *to,
    }
}

impl Inner {
    /// Makes the change, here or at the leader, and at the next leader when the leadership moves before anything is changed.
    pub(crate) async fn change(
        self: &Arc<Self>,
        change: Change,
    ) -> Result<Result<Changed, Rejection>, CallError> {
        let begun = self.env.clock.monotonic();
        loop {
            if *self.closing.borrow() {
                return Err(CallError::not_applied("the node is stopping"));
            }
            let word = if self.leadership().is_some() {
                here(self, change.clone()).await
            } else {
                forward::change(self, &change).await
            };
            let why = match word {
                Word::Done(changed) => return Ok(Ok(changed)),
                Word::Refused(rejection) => return Ok(Err(rejection)),
                Word::Failed(error) => return Err(error),
                Word::Elsewhere(why) => why,
            };
            if self.env.clock.monotonic().since(begun) > self.config.call_timeout {
                return Err(CallError::not_applied(why));
            }
            self.env.clock.sleep(LOOK_AGAIN).await;
        }
    }
}

/// The leader's word. The change goes on when its caller does not wait for it any more.
pub(crate) async fn here(node: &Arc<Inner>, change: Change) -> Word {
    let Ok(turn) = node.membership.changing.clone().try_lock_owned() else {
        let refusal = Refusal(
            subject(&change).unwrap_or(node.config.node),
            MembershipReason::InProgress,
            "another change is being made: try again when it has ended".to_owned(),
        );
        return Word::Refused(refusal.into());
    };
    let changing = {
        let node = node.clone();
        tokio::spawn(async move {
            let word = make(&node, change).await;
            drop(turn);
            word
        })
    };
    tokio::select! {
        biased;
        word = changing => word.unwrap_or_else(|_| {
            Word::Failed(CallError::unknown("the node stopped in the middle of the change"))
        }),
        () = node.env.clock.sleep(node.config.call_timeout) => {
            Word::Failed(CallError::unknown("the change has not ended in time: look at the members"))
        }
    }
}

async fn make(node: &Arc<Inner>, change: Change) -> Word {
    let leadership = match proposer::ready_leadership(node).await {
        Ok(leadership) => leadership,
        Err(_) if node.leadership().is_none() => return Word::Elsewhere(node.why_no_leader()),
        Err(error) => return Word::Failed(error),
    };
    let mut scene = Scene::of(node);
    if matches!(change, Change::Promote { .. } | Change::Remove { .. }) {
        scene.ask_around(node).await;
    }
    let step = match scene.judge(&change) {
        Ok(step) => step,
        Err(refusal) => return Word::Refused(refusal.into()),
    };
    match step {
        Step::Nothing => Word::Done(done(node, &change)),
        Step::Change(members) => {
            tracing::info!(change = %members, "the membership changes");
            match apply(node, &scene, leadership, members).await {
                Ok(()) => {
                    farewell(node, &scene);
                    Word::Done(done(node, &change))
                }
                Err(word) => word,
            }
        }
        Step::HandOver { heirs } => {
            let Some(heir) = answering(node, &scene, &heirs).await else {
                return Word::Refused(scene.no_answer(&change).into());
            };
            match (hand_over(node, heir).await, change) {
                (Ok(leads), Change::TransferLeader { .. }) => Word::Done(Changed::Leads(leads)),
                (Ok(leads), _) => Word::Elsewhere(format!("node {leads} leads now")),
                (Err(error), _) => Word::Failed(error),
            }
        }
    }
}

/// The first of `heirs` that answers now. Whoever was heard from within an election timeout may be dead by now, and the library
/// never takes a transfer back: its leader neither writes nor sends heartbeats any more, until the others elect somebody.
async fn answering(node: &Inner, scene: &Scene, heirs: &[u64]) -> Option<u64> {
    for &heir in heirs {
        let peer = scene.nodes.get(&heir)?;
        match greet::greet(node, heir, peer, &greet::Greeting::default()).await {
            Ok(_) => return Some(heir),
            Err(status) => {
                tracing::warn!(
                    heir,
                    reason = status.message(),
                    "it cannot lead: it does not answer"
                );
            }
        }
    }
    None
}

fn done(node: &Inner, change: &Change) -> Changed {
    let status = node.status();
    match change {
        Change::AddLearner { .. } => Changed::Added {
            last_log: status.last_log.unwrap_or(0),
        },
        Change::Promote { .. } | Change::Remove { .. } => Changed::Members(status.members),
        Change::TransferLeader { .. } => Changed::Leads(node.config.node),
    }
}

/// Both entries of a change of voters, or the one of another change; applied here when it resolves.
async fn apply(
    node: &Inner,
    scene: &Scene,
    leadership: LeaderId,
    members: ChangeMembers<u64, Peer>,
) -> Result<(), Word> {
    // What was judged is what is changed, by the leadership that judged it.
    let conditions = [
        Precondition::LastMembershipLogId {
            last_membership_log_id: scene.membership,
        },
        Precondition::CommittedLeaderId {
            committed_leader_id: leadership,
        },
    ];
    let Err(error) = node
        .raft
        .change_membership_if(members, false, conditions)
        .await
    else {
        return Ok(());
    };
    let untouched = {
        let metrics = node.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        *metrics.membership_config.log_id() == scene.membership
    };
    Err(match error {
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::InProgress(_),
        )) if untouched => {
            Word::Elsewhere("the change before this one is not committed yet".into())
        }
        RaftError::APIError(
            ClientWriteError::ForwardToLeader(_) | ClientWriteError::PreconditionFailed(_),
        ) if untouched => Word::Elsewhere("the leadership moved".into()),
        error => Word::Failed(CallError::unknown(format!(
            "the change may have been made, or be made by the next leader ({error}): look at the members"
        ))),
    })
}

/// Tells those who were removed to ask who they are; a node that hears it from nobody finds out by itself later.
fn farewell(node: &Arc<Inner>, before: &Scene) {
    let left = node.members();
    for (&id, peer) in &before.nodes {
        if !left.contains_key(&id) {
            let (node, peer) = (node.clone(), peer.clone());
            tokio::spawn(async move { greet::farewell(&node, id, &peer).await });
        }
    }
}

/// Up while a leadership is handed over, whatever becomes of it.
struct HandingOver<'a>(&'a Standing);

impl<'a> HandingOver<'a> {
    fn begin(standing: &'a Standing) -> HandingOver<'a> {
        standing.handing_over.send_replace(true);
        HandingOver(standing)
    }
}

impl Drop for HandingOver<'_> {
    fn drop(&mut self) {
        self.0.handing_over.send_replace(false);
    }
}

/// Returns who leads instead of this node.
async fn hand_over(node: &Inner, heir: u64) -> Result<u64, CallError> {
    let patience = node.config.election_timeout_max;
    // What is proposed during a transfer is refused by the library, and then nobody could tell what became of it: so the
    // proposer waits, with its queue, until this is over. One place in flight is its own while it waits.
    let _over = HandingOver::begin(&node.membership);
    let others = u32::try_from(ENTRIES_IN_FLIGHT_MAX - 1).unwrap_or(u32::MAX);
    let quiet = tokio::select! {
        biased;
        quiet = node.entries_in_flight.acquire_many(others) => quiet,
        () = node.env.clock.sleep(patience) => {
            return Err(CallError::not_applied("commands in flight did not finish in time"));
        }
    };
    if node.raft.trigger().transfer_leader(heir).await.is_err() {
        return Err(CallError::not_applied("the consensus stopped"));
    }
    let mut metrics = node.raft.server_metrics();
    let handed_over = async {
        loop {
            let leads = metrics.borrow_watched().current_leader;
            if let Some(leads) = leads.filter(|&leads| leads != node.config.node) {
                return Some(leads);
            }
            if metrics.changed().await.is_err() {
                return None;
            }
        }
    };
    let leads = tokio::select! {
        biased;
        leads = handed_over => leads,
        // The heir did not make it; an election then follows by itself.
        () = node.env.clock.sleep(2 * patience) => None,
    };
    drop(quiet);
    leads.ok_or_else(|| {
        CallError::unknown(format!(
            "node {heir} does not lead yet: look at who leads, and try again"
        ))
    })
}

/// Ends what a leader before this one left half made: the cluster must not stay between two sets of voters.
pub(crate) async fn finish_changes(node: Arc<Inner>) {
    let mut closing = node.closing.subscribe();
    let mut metrics = node.raft.server_metrics();
    loop {
        let joint = |node: &Inner| {
            let metrics = node.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            membership.get_joint_config().len() > 1
        };
        if node.leadership().is_some() && joint(&node) {
            // Taken: the change is just being made, by whoever will finish it too.
            let finished = match node.membership.changing.try_lock() {
                Ok(_turn) if joint(&node) => finish(&node).await,
                Ok(_) => true,
                Err(_) => false,
            };
            if !finished {
                node.env.clock.sleep(LOOK_AGAIN).await;
                continue;
            }
        }
        tokio::select! {
            biased;
            () = until_true(&mut closing) => return,
            changed = metrics.changed() => if changed.is_err() { return },
        }
    }
}

async fn finish(node: &Arc<Inner>) -> bool {
    let scene = Scene::of(node);
    // Adding nobody leads to the newer of the two sets.
    let nobody = ChangeMembers::AddVoterIds(BTreeSet::new());
    match node.raft.change_membership(nobody, false).await {
        Ok(_) => {
            tracing::info!("a change of the voters was finished");
            farewell(node, &scene);
            true
        }
        Err(error) => {
            tracing::debug!(%error, "a change of the voters waits to be finished");
            false
        }
    }
}

#[cfg(test)]
mod tests;
