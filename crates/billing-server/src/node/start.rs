//! Decides how a node comes up from whatever its disk holds, and how it goes down in order.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use billing_core::{Actor, Command};
use billing_env::{Clock, Env, Listener};
use billing_proto::raft::raft_service_server::RaftServiceServer;
use billing_store::Disk;
use openraft::async_runtime::WatchReceiver as _;
use openraft::{Config, SnapshotPolicy};
use tokio::sync::{Semaphore, watch};

use super::bounds::{BATCH_BYTES_MAX, CALL_TIMEOUT, ENTRIES_IN_FLIGHT_MAX};
use super::clock::LeaderClock;
use super::{
    EndReason, FailStop, Founding, Inner, Node, backup, divergence, forward, greet, meeting,
    membership, proposer, reads, silence, succession, until_true,
};
use crate::raft::Peer;
use crate::raft::folders::{FolderId, Folders, FoldersError};
use crate::raft::links::{Links, Me, PEER_MESSAGE_BYTES_MAX};
use crate::raft::listen::incoming;
use crate::raft::log::{APPEND_BYTES_MAX, LogStore};
use crate::raft::network::{Network, Silence};
use crate::raft::reached::Acknowledged;
use crate::raft::replica::Replica;
use crate::raft::service::PeerService;
use crate::raft::snapshot::Offload;
use crate::raft::state_machine::StateMachine;
use crate::raft::transfers::Transfers;
use crate::raft::types::Raft;

/// A snapshot may take this long for each piece, and this long plus a while by its size for being installed at the end.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(30);
/// What was queued before the node ends goes out within this, and is answered. What is still queued then is refused.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// How one node is set up. Whose disk it is, the disk itself says.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub node: u64,
    /// The founding members, this one among them; once founded, the replicated membership counts.
    pub members: BTreeMap<u64, Peer>,
    /// Given once, to every founding member.
    pub founding: Option<Founding>,
    pub heartbeat: Duration,
    pub election_timeout_min: Duration,
    pub election_timeout_max: Duration,
    /// Entries between two snapshots.
    pub snapshot_every: u64,
    /// Entries kept in the log although a snapshot holds them, for followers that lag a little.
    pub log_kept: u64,
    pub offload: Offload,
    /// How long a call waits for its answer.
    pub call_timeout: Duration,
}

impl NodeConfig {
    /// The defaults of §7.
    pub fn new(node: u64, members: BTreeMap<u64, Peer>) -> NodeConfig {
        NodeConfig {
            node,
            members,
            founding: None,
            heartbeat: Duration::from_millis(225),
            election_timeout_min: Duration::from_millis(1_000),
            election_timeout_max: Duration::from_millis(1_300),
            snapshot_every: 50_000,
            log_kept: 10_000,
            offload: Offload::Thread,
            call_timeout: CALL_TIMEOUT,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("node {node} is not among its peers: add it to the list, or correct the node id")]
    NotAMember { node: u64 },
    #[error("the settings of the consensus do not fit together: {0}")]
    Settings(String),
    #[error(transparent)]
    Folder(#[from] FoldersError),
    #[error("the node cannot start from its data folder: {0}")]
    Consensus(String),
}

impl Node {
    /// Starts the node that `disk` belongs to. Serves the other nodes on `listener`, and returns as soon as calls are taken:
    /// until a leader is known they get `NotApplied`. `fail_stop` is how the process ends when it must.
    pub async fn start(
        config: NodeConfig,
        env: Env,
        disk: Disk,
        listener: Box<dyn Listener>,
        fail_stop: FailStop,
    ) -> Result<Node, StartError> {
        let own = config
            .members
            .get(&config.node)
            .ok_or(StartError::NotAMember { node: config.node })?;
        let cluster = String::from_utf8_lossy(&disk.identity.cluster).into_owned();
        let me = Arc::new(Me::new(cluster, config.node, own.raft.clone()));
        let settings = Arc::new(settings(&config, &me)?);
        let mut drawn = [0; 8];
        env.random.fill(&mut drawn);
        let folders = Folders::open(disk.log.clone(), FolderId(drawn)).await?;
        let links = Links::new(env.clone(), me.clone(), folders.clone());
        let clock = LeaderClock::new(config.node, env.clock.clone());
        let replica = Arc::new(Replica::new(clock, fail_stop.clone()));
        let succession = succession::Succession::new();
        let transfers = Transfers::default();
        let silence = Silence::default();
        let network = Network {
            succession: succession.clone(),
            links: links.clone(),
            me: config.node,
            snapshots: disk.snapshots.clone(),
            patience: config.election_timeout_min,
            transfers: transfers.clone(),
            acknowledged: Acknowledged::default(),
            silence: silence.clone(),
            fail_stop: fail_stop.clone(),
        };
        let log = LogStore::new(disk.log.clone(), folders.clone(), fail_stop.clone());
        let machine = StateMachine::new(
            replica.clone(),
            disk.snapshots.clone(),
            disk.log.clone(),
            config.offload,
            transfers,
            fail_stop.clone(),
        );
        let raft = Raft::build(config.node, settings, network, log, machine)
            .await
            .map_err(|error| StartError::Consensus(error.to_string()))?;
        let meeting = meeting::Meeting::due(config.node, &replica, &folders);
        // Before the consensus runs: it would stand for election as soon as it does.
        raft.runtime_config().elect(meeting.is_over());
        let (proposals, proposed) = proposer::queue();
        let (forwards, forwarded) = proposer::queue();
        let (reads, rounds) = reads::reads();
        let founding = config.founding.clone();
        let inner = Arc::new(Inner {
            config,
            env,
            me,
            raft,
            replica,
            folders,
            links,
            log: disk.log,
            snapshots: disk.snapshots,
            fail_stop,
            proposals,
            forwards,
            reads,
            succession,
            silence,
            entries_in_flight: Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX)),
            copies: Arc::new(Semaphore::new(backup::COPIES_MAX)),
            membership: membership::Standing::default(),
            meeting,
            closing: watch::Sender::new(false),
            leaving: std::sync::atomic::AtomicBool::new(false),
            deaf: watch::Sender::new(false),
            emptying: Mutex::default(),
            tasks: Mutex::default(),
        });
        inner.raft.run();
        know_myself(&inner).await?;
        inner.keep_until_empty([
            tokio::spawn(proposer::run(inner.clone(), proposed)),
            tokio::spawn(forward::run(inner.clone(), forwarded)),
        ]);
        for task in [
            tokio::spawn(reads::run(inner.clone(), rounds)),
            tokio::spawn(tick(inner.clone())),
            tokio::spawn(watch_disk(inner.clone())),
            tokio::spawn(watch_consensus(inner.clone())),
            tokio::spawn(greet::run(inner.clone())),
            tokio::spawn(membership::finish_changes(inner.clone())),
            tokio::spawn(succession::run(inner.clone())),
            tokio::spawn(silence::run(inner.clone())),
            tokio::spawn(divergence::run(inner.clone())),
            tokio::spawn(serve(inner.clone(), listener)),
            tokio::spawn(backup::restore(inner.clone())),
        ] {
            inner.keep_task(task);
        }
        if let Some(founding) = founding {
            inner.keep_task(tokio::spawn(greet::found(inner.clone(), founding)));
        }
        Ok(Node { inner })
    }

    /// Ends in order: takes nothing new, lets what was asked before go out and finish, hands the leadership over, and leaves
    /// everything durable. Calls that still wait hear that the node stops.
    pub async fn shutdown(self) {
        let inner = self.inner;
        inner.closing.send_replace(true);
        emptied(&inner).await;
        hand_over(&inner).await;
        inner.deaf.send_replace(true);
        if let Err(error) = inner.raft.shutdown().await {
            tracing::warn!(%error, "the consensus ended in disorder");
        }
        for task in inner.take_tasks() {
            task.abort();
        }
        if let Err(error) = inner.log.close().await {
            tracing::warn!(%error, "the log was not closed in order");
        }
    }
}

/// Resolves when nothing is queued or in flight any more, or patience is over; from then on nothing leaves.
async fn emptied(node: &Inner) {
    let mut queues = node.take_emptying();
    let all = futures::future::join_all(&mut queues);
    tokio::select! {
        biased;
        _ = all => {}
        () = node.env.clock.sleep(CLOSE_PATIENCE) => {
            tracing::warn!("what was queued did not go out in time; what is left is refused");
        }
    }
    for queue in queues {
        queue.abort();
    }
}

/// Introduces this node from now on by the address under which the members know it, whatever it is configured with.
async fn know_myself(node: &Inner) -> Result<(), StartError> {
    // Answered once the consensus has read its membership back.
    let read = node.raft.is_initialized().await;
    read.map_err(|fatal| StartError::Consensus(fatal.to_string()))?;
    let metrics = node.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    if let Some(member) = membership.get_node(&node.config.node) {
        node.me.known_at(&member.raft);
    }
    Ok(())
}

fn settings(config: &NodeConfig, me: &Me) -> Result<Config, StartError> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: me.cluster.clone(),
        heartbeat_interval: ms(config.heartbeat),
        election_timeout_min: ms(config.election_timeout_min),
        election_timeout_max: ms(config.election_timeout_max),
        install_snapshot_timeout: ms(SNAPSHOT_TIMEOUT),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every),
        max_in_snapshot_log_to_keep: config.log_kept,
        // Purging costs a sync: not for every entry.
        purge_batch_size: 256,
        replication_lag_threshold: config.snapshot_every.saturating_add(config.log_kept),
        max_payload_entries: (APPEND_BYTES_MAX / BATCH_BYTES_MAX) as u64 * 4,
        enable_pre_vote: Some(true),
        // A restarted leader is elected again, or another is: its base of time and its state are of another life (§4).
        enable_leader_restore: Some(false),
        ..Config::default()
    }
    .validate()
    .map_err(|error| StartError::Settings(error.to_string()))
}

async fn serve(node: Arc<Inner>, listener: Box<dyn Listener>) {
    let mut deaf = node.deaf.subscribe();
    let service = RaftServiceServer::new(PeerService { node: node.clone() })
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(1)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming(listener, node.env.clock.clone()), async move {
            until_true(&mut deaf).await;
        })
        .await;
    if let Err(error) = served {
        node.fail_stop.trip(EndReason::Bug(format!(
            "the listener for other nodes failed: {error}"
        )));
    }
}

/// Moves time while something waits for it (§4): sessions, attempts, deadlines. Else no ticks, no writes.
async fn tick(node: Arc<Inner>) {
    let mut applied = node.replica.applied();
    let mut ready = node.replica.clock.ready();
    loop {
        // Before looking: what is applied from here on wakes the wait below.
        applied.mark_unchanged();
        let leads = node.leadership().is_some();
        let (needed, before) = {
            let state = node.replica.state();
            (state.ledger.tick_needed(), state.ledger.now())
        };
        let Some(every_ms) = needed.filter(|_| leads) else {
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                changed = ready.changed() => if changed.is_err() { return },
            }
            continue;
        };
        let needed = || node.replica.state().ledger.tick_needed();
        let Some(every_ms) = tick_due(&*node.env.clock, every_ms, needed).await else {
            continue;
        };
        // Entries that were applied meanwhile moved it already.
        let moved = before.ms_until(node.replica.now());
        if moved * 2 < every_ms
            && node.leadership().is_some()
            && let Err(error) = node.propose(Actor::ledger(), Command::Tick).await
        {
            tracing::debug!(%error, "no tick");
        }
    }
}

/// Sleeps until a tick is due. Looks again at what is needed meanwhile: somebody may have come with a shorter TTL. `None`:
/// none is needed any more.
async fn tick_due(
    clock: &dyn Clock,
    mut every_ms: u64,
    needed: impl Fn() -> Option<u64>,
) -> Option<u64> {
    let since = clock.monotonic();
    loop {
        let waited = clock.monotonic().since(since);
        let left = Duration::from_millis(every_ms).saturating_sub(waited);
        if left.is_zero() {
            return Some(every_ms);
        }
        let look = Duration::from_millis(billing_core::limits::TICK_MS_MIN);
        clock.sleep(left.min(look)).await;
        every_ms = needed()?;
    }
}

async fn watch_disk(node: Arc<Inner>) {
    let mut failure = node.log.failure();
    let failed = match failure.wait_for(Option::is_some).await {
        Ok(failed) => failed.clone(),
        Err(_) => return,
    };
    if let Some(error) = failed {
        node.fail_stop.trip(error);
    }
}

/// The consensus ends by itself only for a reason that ends the node.
async fn watch_consensus(node: Arc<Inner>) {
    let mut metrics = node.raft.metrics();
    loop {
        let running = metrics.borrow_watched().running_state.clone();
        if let Err(fatal) = running {
            if !*node.closing.borrow() {
                node.fail_stop.trip(EndReason::Bug(format!(
                    "the consensus ended: {fatal}: start the node again"
                )));
            }
            return;
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Lets another voter lead before this one goes, so that nobody has to wait for an election timeout. One heir after the
/// other: whoever was heard from lately may be dead by now.
async fn hand_over(node: &Inner) {
    if node.leadership().is_none() {
        return;
    }
    // The others may elect somebody by themselves an election timeout after they were told of a transfer: earlier than that,
    // the next one is asked.
    let patience = node.config.election_timeout_min / 2;
    for heir in membership::heirs(node) {
        if node.leadership().is_none() {
            return;
        }
        tracing::info!(heir, "handing the leadership over");
        if node.raft.trigger().transfer_leader(heir).await.is_err() {
            return;
        }
        // Having given it a vote is not enough: a port that refuses while the heir still counts its votes calls for another
        // campaign, and the two may tie.
        let mut metrics = node.raft.server_metrics();
        let taken_over = async {
            loop {
                let leads = metrics.borrow_watched().current_leader;
                if leads.is_some_and(|leads| leads != node.config.node)
                    || metrics.changed().await.is_err()
                {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = taken_over => return,
            () = node.env.clock.sleep(patience) => {
                tracing::warn!(heir, "the leadership was not handed over in time");
            }
        }
    }
}

impl From<StartError> for io::Error {
    fn from(error: StartError) -> Self {
        io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use billing_env::{BootTime, BoxFuture, MonoTime};

    use super::*;

    /// Time that only sleeping moves: nobody waits.
    #[derive(Default)]
    struct Slept(AtomicU64);

    impl Slept {
        fn ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed) / 1_000_000
        }
    }

    impl Clock for Slept {
        fn monotonic(&self) -> MonoTime {
            MonoTime(self.0.load(Ordering::Relaxed))
        }
        fn boottime(&self) -> BootTime {
            BootTime::default()
        }
        fn wall_ms(&self) -> u64 {
            0
        }
        fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
            let slept = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            self.0.fetch_add(slept, Ordering::Relaxed);
            Box::pin(std::future::ready(()))
        }
    }

    #[tokio::test]
    async fn a_tick_is_due_when_its_time_has_come() {
        let clock = Slept::default();
        assert_eq!(
            tick_due(&clock, 30_000, || Some(30_000)).await,
            Some(30_000)
        );
        assert_eq!(clock.ms(), 30_000);
    }

    #[tokio::test]
    async fn a_tick_is_due_earlier_when_somebody_came_with_a_shorter_ttl() {
        let clock = Slept::default();
        let needed = || Some(if clock.ms() < 5_000 { 30_000 } else { 100 });
        assert_eq!(tick_due(&clock, 30_000, needed).await, Some(100));
        assert_eq!(clock.ms(), 5_000, "the shorter one was over when it came");
    }

    #[tokio::test]
    async fn no_tick_is_due_once_nobody_needs_one() {
        let clock = Slept::default();
        let needed = || (clock.ms() < 5_000).then_some(30_000);
        assert_eq!(tick_due(&clock, 30_000, needed).await, None);
        assert_eq!(clock.ms(), 5_000);
    }
}
