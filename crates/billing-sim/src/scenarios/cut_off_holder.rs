//! A holder keeps its session alive; right after an answer it is cut off from the cluster, and acts for as long as it may believe
//! in its lease. A rival asks for the lease again and again, acts as soon as it is granted, and it must never be granted before
//! that. In a quiet cluster the last entry is old when the keep-alive comes; with slow disks its answer is late.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow};
use billing_client::{AcquireOptions, Client, SessionOptions};
use billing_core::{
    AcquireLease, Actor, CloseSession, Command, HolderId, InvoiceId, OpenSession, Reply, Requester,
    Seq, SessionId, TtlMs, WaitMs,
};
use billing_env::BootTime;
use billing_server::node::Node;
use tokio::sync::oneshot;

use super::steps::{end_well, pick};
use crate::chance::Chance;
use crate::machines::node::SYNC_TAKES;
use crate::machines::{DESK, node_name};
use crate::record::Record;
use crate::world::{Setting, World};

const ROUNDS: u64 = 3;
/// Long: the leader then ticks rarely.
const TTL: Duration = Duration::from_secs(20);
/// Nothing of the rival's must make it tick more often.
const RIVAL_TTL_MS: u64 = 300_000;
const ACT_EVERY: Duration = Duration::from_millis(10);
const ASK_EVERY: Duration = Duration::from_millis(30);
/// Before the end of the TTL the rival begins to ask.
const ASKED_BEFORE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
enum Cluster {
    Quiet,
    SlowDisks,
}

pub fn setting(_: &Chance) -> Setting {
    Setting::default()
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    for round in 0..ROUNDS {
        one_round(world, round)?;
    }
    end_well(world)
}

/// What the driver sees of a holder.
#[derive(Default)]
struct Belief {
    valid_until: Mutex<Option<BootTime>>,
    over: AtomicBool,
}

impl Belief {
    fn valid_until(&self) -> Option<BootTime> {
        *self
            .valid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn one_round(world: &mut World, round: u64) -> Result<()> {
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let leader = world.leader(&all)?;
    let lock = format!("cut-off-{round}");
    let cluster = pick(world, &[Cluster::Quiet, Cluster::SlowDisks])?;
    let belief = Arc::new(Belief::default());
    let (record, told, wanted) = (world.record.clone(), belief.clone(), lock.clone());
    drop(world.desk_begin(move |client| async move {
        hold(&client, &wanted, &record, &told).await;
    })?);
    world.until("the lease is held", |_| belief.valid_until().is_some())?;
    let phase = world.chance.between_ms(0, 3_000);
    world.pass(phase)?;
    if matches!(cluster, Cluster::SlowDisks) {
        for host in world.hosts.values() {
            let sync = world.chance.between_ms(700, 1_400);
            host.disk.set_sync_takes(sync);
        }
    }
    let before = belief.valid_until();
    world.until("a keep-alive is answered", |_| {
        belief.valid_until() > before
    })?;
    for &id in &all {
        world.network().partition(DESK, node_name(id));
    }
    world.note(format_args!(
        "round {round}: the holder of {lock} was answered and is cut off, {cluster:?}"
    ));
    for host in world.hosts.values() {
        host.disk.set_sync_takes(SYNC_TAKES);
    }
    world.pass(TTL - ASKED_BEFORE)?;
    let (record, mut number) = (world.record.clone(), [0xc0; 16]);
    number[0] = u8::try_from(round)?;
    let mut rival: oneshot::Receiver<Result<()>> = world.begin(leader, move |node| async move {
        want(&node, SessionId::new(number), &lock, &record).await
    })?;
    let mut granted = None;
    world.until(
        "the rival is granted the lease, and the holder stops",
        |_| {
            granted = granted.take().or_else(|| rival.try_recv().ok());
            granted.is_some() && belief.over.load(Ordering::Relaxed)
        },
    )?;
    granted.ok_or_else(|| anyhow!("no grant"))??;
    for &id in &all {
        world.network().repair(DESK, node_name(id));
    }
    world.pass(Duration::from_secs(1))
}

/// Acts as the holder for as long as its guard says that it is.
async fn hold(client: &Client, lock: &str, record: &Record, belief: &Belief) {
    let options = SessionOptions::new("holder", TTL);
    let Ok(session) = client.open_session(options).await else {
        return; // The driver waits in vain for a holder.
    };
    let Ok(guard) = session.acquire(lock, AcquireOptions::default()).await else {
        return;
    };
    while guard.is_valid() {
        record.act(lock, guard.token().0, "holder");
        *belief
            .valid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(session.valid_until());
        client.env().clock.sleep(ACT_EVERY).await;
    }
    record.note(format_args!(
        "the holder of {lock} stops: {:?}",
        guard.loss()
    ));
    belief.over.store(true, Ordering::Relaxed);
}

/// Asks for the lease until it is granted, and acts.
async fn want(node: &Node, session: SessionId, lock: &str, record: &Record) -> Result<()> {
    let actor = Actor::ledger;
    let open = Command::OpenSession(OpenSession {
        session,
        holder: HolderId::new("rival")?,
        ttl: TtlMs::new(RIVAL_TTL_MS)?,
    });
    while !matches!(node.propose(actor(), open.clone()).await, Ok(Ok(_))) {
        tokio::time::sleep(ASK_EVERY).await;
    }
    for seq in 1_u64.. {
        let acquire = Command::AcquireLease(AcquireLease {
            invoice: InvoiceId::new(lock)?,
            requester: Requester::Session {
                session,
                seq: Seq::new(seq)?,
                done_below: seq,
                ttl: None,
            },
            wait: WaitMs::new(0)?,
        });
        if let Ok(Ok(Reply::Leased(leased))) = node.propose(actor(), acquire).await {
            record.act(lock, leased.lease.token.0, "rival");
            record.note(format_args!("the rival is granted {lock}"));
            break;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    // Whatever comes of it: the session ends by itself, too.
    let _ = node
        .propose(actor(), Command::CloseSession(CloseSession { session }))
        .await;
    Ok(())
}
