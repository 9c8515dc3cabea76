//! Entry after entry under full load: ClusterTime keeps pace with true time. Were the base of time taken anew at each entry, or
//! the time between propose and apply lost, nothing would ever expire on a busy day.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use billing_core::{
    AcquireLease, Actor, Command, HolderId, InvoiceId, OpenSession, Requester, Seq, SessionId,
    TtlMs, WaitMs,
};
use billing_server::node::Node;

use super::steps::{broken, end_well};
use crate::chance::Chance;
use crate::world::{Setting, World};

const LASTS: Duration = Duration::from_secs(30);
/// Of true time; the declared drift of clocks is 1 %.
const PACE_MIN: f64 = 0.98;
const PACE_MAX: f64 = 1.02;
/// Who propose one thing after the other, without a pause.
const TICKERS: u64 = 12;
const LEASERS: u64 = 4;
const ENTRIES_MIN: u64 = 1_500;

pub fn setting(_: &Chance) -> Setting {
    Setting {
        callers: 1,
        ..Setting::default()
    }
}

pub fn run(world: &mut World) -> Result<()> {
    world.bootstrapped()?;
    let all: Vec<u64> = world.hosts.keys().copied().collect();
    let leader = world.leader(&all)?;
    let stop = Arc::new(AtomicBool::new(false));
    for _ in 0..TICKERS {
        let stop = stop.clone();
        drop(world.begin(leader, |node| async move { tick(&node, &stop).await })?);
    }
    for number in 0..LEASERS {
        let stop = stop.clone();
        drop(world.begin(leader, move |node| async move {
            // Commands are made of bounded constants: none of them is refused here.
            lease(&node, number, &stop).await.is_ok()
        })?);
    }
    world.pass(Duration::from_secs(1))?;
    let now = |world: &World| {
        let status = world.status(leader);
        let status = status.ok_or_else(|| anyhow!("the leader is gone"))?;
        anyhow::Ok((status.cluster_time.0, status.applied.unwrap_or(0)))
    };
    let (from, applied) = now(world)?;
    world.pass(LASTS)?;
    let (to, applied_then) = now(world)?;
    stop.store(true, Ordering::Relaxed);
    let entries = applied_then - applied;
    ensure!(entries > ENTRIES_MIN, "only {entries} entries: no load");
    let pace = (to - from) as f64 / LASTS.as_millis() as f64;
    world.note(format_args!("{entries} entries, pace {pace:.4}"));
    if !(PACE_MIN..=PACE_MAX).contains(&pace) {
        return Err(broken(
            "expiry_in_time",
            None,
            format!("ClusterTime ran at {pace:.4} of true time over {entries} entries"),
        ));
    }
    end_well(world)
}

async fn tick(node: &Node, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if node.propose(Actor::ledger(), Command::Tick).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Opens one session after the other, and takes leases under each: state changes, not only time.
async fn lease(node: &Node, number: u64, stop: &AtomicBool) -> Result<()> {
    for turn in 0_u64.. {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        id[8..].copy_from_slice(&turn.to_le_bytes());
        let session = SessionId::new(id);
        let open = Command::OpenSession(OpenSession {
            session,
            holder: HolderId::new("busy")?,
            ttl: TtlMs::new(1_000)?,
        });
        // Whether a call is answered is not what this is about.
        let _ = node.propose(Actor::ledger(), open).await;
        for seq in 1..=10 {
            let acquire = Command::AcquireLease(AcquireLease {
                invoice: InvoiceId::new(&format!("busy-{number}-{seq}"))?,
                requester: Requester::Session {
                    session,
                    seq: Seq::new(seq)?,
                    done_below: 0,
                    ttl: None,
                },
                wait: WaitMs::new(0)?,
            });
            let _ = node.propose(Actor::ledger(), acquire).await;
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }
    Ok(())
}
