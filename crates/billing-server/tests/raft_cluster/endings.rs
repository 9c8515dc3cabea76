//! A node that goes in order: what it was asked is done, and somebody else leads. The election timeouts are longer than any
//! test waits: whoever leads afterwards does so because it was handed over.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use billing_env::{BootTime, BoxFuture, Clock, MonoTime, RealClock};
use billing_server::node::{Answer, CallError, Consistency, Node, NodeConfig, Role};
use futures::FutureExt;
use futures::future::join_all;

use crate::harness::*;
use crate::wires::wired;

fn plain(_: &mut NodeConfig) {}

fn patient(config: &mut NodeConfig) {
    config.election_timeout_min = Duration::from_secs(120);
    config.election_timeout_max = Duration::from_secs(240);
    config.call_timeout = Duration::from_secs(60);
}

/// As patient, but for how long an heir may take.
fn patient_with_heirs(config: &mut NodeConfig) {
    patient(config);
    config.election_timeout_min = Duration::from_secs(8);
}

async fn leads(node: &Node) -> Result<()> {
    let node = node.clone();
    eventually("the heir leads", || {
        std::future::ready(node.status().role == Role::Leader)
    })
    .await
}

/// Begins to end a node in order; resolves when it has ended.
fn ended(cluster: &Cluster, node: u64) -> impl Future<Output = Result<()>> + use<> {
    let ending = cluster.node(node).clone();
    let (ended, gone) = tokio::sync::oneshot::channel();
    let begun = cluster.beside(node, async move {
        ending.shutdown().await;
        let _ = ended.send(());
    });
    async move {
        begun?;
        Ok(gone.await?)
    }
}

/// Waits until the leader knows that all logs are as long as its own: nothing but being heard from tells the others apart.
async fn equally_far(leader: &Node) -> Result<()> {
    eventually("all logs are equally long", || {
        let status = leader.status();
        let mut members = status.members.iter();
        std::future::ready(members.all(|member| member.matched == status.last_log))
    })
    .await
}

#[tokio::test]
async fn a_leader_that_goes_hands_over_to_somebody_who_is_alive() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    cluster.retune_followers(patient).await?;
    let leader = cluster.leader().await?;
    equally_far(cluster.node(leader)).await?;
    let others = cluster.others(leader);
    let (live, dead) = (others[0], others[1]);
    cluster.kill(dead).await?;
    // Only now, so that whoever answers was heard from later than the dead one.
    let read = cluster
        .node(leader)
        .read(Consistency::Linearizable, |ledger| ledger.now());
    read.await?;
    cluster.stop(leader).await?;
    // With the other one dead, nobody could have elected it but the leader that went.
    leads(cluster.node(live)).await?;
    cluster.restart(dead).await?;
    insist(cluster.node(dead), open_session(1, 300_000)?).await??;
    assert_eq!(cluster.leader().await?, live);
    Ok(())
}

#[tokio::test]
async fn an_heir_that_cannot_take_over_is_passed_over() -> Result<()> {
    let (wires, nets) = wired(1..=3);
    let mut cluster = Cluster::start_through(nets, plain).await?;
    cluster.retune(patient_with_heirs).await?;
    let leader = cluster.leader().await?;
    let others = cluster.others(leader);
    let (lost, able) = (others[0], others[1]);
    let at = |id: u64| cluster.members[&id].raft.clone();
    equally_far(cluster.node(leader)).await?;
    // The leader does not hear how far the able one has come, so the other one counts as farther and is asked first; by then
    // it cannot be reached.
    wires[&leader].lose_answers(&at(able));
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    let status = cluster.node(leader).status();
    eventually("the able one has it all", || {
        std::future::ready(cluster.node(able).status().last_log >= status.last_log)
    })
    .await?;
    wires[&leader].cut(&at(lost));
    // So nobody but the leader that goes can make it one.
    wires[&able].cut(&at(lost));
    ended(&cluster, leader).await?;
    leads(cluster.node(able)).await?;
    cluster.kill(leader).await?;
    wires[&able].mend();
    insist(cluster.node(able), keep_alive(1)).await??;
    assert_eq!(cluster.leader().await?, able);
    Ok(())
}

/// A clock on which every wait takes longer, once somebody says so: what a node waits for must come, however slow the
/// machine is.
struct Stretched {
    real: RealClock,
    by: AtomicU32,
}

impl Stretched {
    fn not_yet() -> Arc<Stretched> {
        Arc::new(Stretched {
            real: RealClock::new(),
            by: AtomicU32::new(1),
        })
    }

    fn stretch(&self) {
        self.by.store(30, Ordering::Relaxed);
    }
}

impl Clock for Stretched {
    fn monotonic(&self) -> MonoTime {
        self.real.monotonic()
    }
    fn boottime(&self) -> BootTime {
        self.real.boottime()
    }
    fn wall_ms(&self) -> u64 {
        self.real.wall_ms()
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.real.sleep(duration * self.by.load(Ordering::Relaxed))
    }
}

type Call<'a> = Pin<Box<dyn Future<Output = Answer> + 'a>>;

/// A call that is queued when this returns. Nobody knows the session: the ledger says so, and nothing pends afterwards.
fn queued(node: &Node) -> Result<Call<'_>> {
    let mut call: Call = Box::pin(node.propose(actor(), keep_alive(1)));
    match call.as_mut().now_or_never() {
        None => Ok(call),
        Some(answer) => bail!("not queued: {answer:?}"),
    }
}

/// Places of the proposer, and of the forwarder.
const IN_FLIGHT: u64 = 8;
/// Three batches: more than those that wait for the next places already.
const QUEUED: usize = 2_500;

/// Fills all places in flight, queues more at one node, ends that node, and lets the others answer only then.
async fn all_is_answered(at_leader: bool) -> Result<()> {
    let (wires, nets) = wired(1..=3);
    let mut cluster = Cluster::start_through(nets, plain).await?;
    let clock = Stretched::not_yet();
    for id in cluster.ids() {
        cluster.clocks.insert(id, clock.clone());
    }
    cluster.retune(patient).await?;
    let leader = cluster.leader().await?;
    let followers = cluster.others(leader);
    let goes = if at_leader { leader } else { followers[0] };
    equally_far(cluster.node(leader)).await?;
    for follower in &followers {
        wires[&leader].cut(&cluster.members[follower].raft);
    }
    let node = cluster.node(goes).clone();
    let leading = cluster.node(leader).clone();
    let mut calls = Vec::new();
    for _ in 0..IN_FLIGHT {
        let before = leading.status().last_log;
        calls.push(queued(&node)?);
        // A batch of its own: it is in the log before the next one is asked for.
        eventually("the entry is in flight", || {
            std::future::ready(leading.status().last_log > before)
        })
        .await?;
    }
    for _ in 0..QUEUED {
        calls.push(queued(&node)?);
    }
    clock.stretch();
    let gone = ended(&cluster, goes);
    eventually("nothing new is taken", || {
        let mut call: Call = Box::pin(node.propose(actor(), keep_alive(1)));
        match call.as_mut().now_or_never() {
            Some(Err(CallError::NotApplied { .. })) => std::future::ready(true),
            _ => {
                // Taken, so it is to be answered like the others.
                calls.push(call);
                std::future::ready(false)
            }
        }
    })
    .await?;
    wires[&leader].mend();
    let answers = tokio::time::timeout(Duration::from_secs(30), join_all(calls)).await;
    for answer in answers.context("answers")? {
        ensure!(answer.is_ok(), "{answer:?}");
    }
    gone.await?;
    cluster.kill(goes).await?;
    cluster.leader().await?;
    cluster.same_state().await
}

#[tokio::test]
async fn what_was_queued_before_its_end_is_proposed_by_a_leader() -> Result<()> {
    all_is_answered(true).await
}

#[tokio::test]
async fn what_was_queued_before_its_end_is_forwarded_by_a_follower() -> Result<()> {
    all_is_answered(false).await
}
