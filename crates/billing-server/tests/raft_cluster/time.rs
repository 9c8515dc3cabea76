//! Cluster time keeps pace with true time under load, and is never counted twice; a wall clock that is off is not stamped,
//! and moves nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use billing_core::Command;
use billing_env::{BootTime, BoxFuture, Clock, MonoTime, RealClock};
use billing_server::node::{Consistency, NodeConfig};

use crate::harness::*;

fn plain(_: &mut NodeConfig) {}

async fn load(cluster: &Cluster, leader: u64, lasts: Duration) -> Result<(Duration, Duration)> {
    let node = cluster.node(leader);
    // Read before the entry whose time is the first mark: true time may only be the longer one.
    let begun = Instant::now();
    insist(node, open_session(1, 300_000)?).await??;
    let before = node.status().cluster_time;
    let callers: Vec<_> = (0..64)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move {
                let mut done = 0u64;
                while begun.elapsed() < lasts {
                    if matches!(node.propose(actor(), keep_alive(1)).await, Ok(Ok(_))) {
                        done += 1;
                    }
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for caller in callers {
        done += caller.await?;
    }
    insist(node, keep_alive(1)).await??;
    let cluster_time = Duration::from_millis(before.ms_until(node.status().cluster_time));
    assert!(done > 100, "back to back: {done} commands");
    Ok((cluster_time, begun.elapsed()))
}

#[tokio::test]
async fn cluster_time_keeps_pace_under_load() -> Result<()> {
    let cluster = Cluster::start(plain).await?;
    let leader = cluster.leader().await?;
    let (cluster_time, true_time) = load(&cluster, leader, Duration::from_secs(4)).await?;
    let pace = cluster_time.as_secs_f64() / true_time.as_secs_f64();
    assert!((0.98..=1.001).contains(&pace), "pace {pace:.4}");
    Ok(())
}

#[tokio::test]
async fn leader_changes_never_count_time_twice() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    let first = cluster.leader().await?;
    let begun = Instant::now();
    insist(cluster.node(first), open_session(1, 300_000)?).await??;
    let before = cluster.node(first).status().cluster_time;
    for _ in 0..3 {
        let leader = cluster.leader().await?;
        insist(cluster.node(leader), keep_alive(1)).await??;
        cluster.stop(leader).await?;
        cluster.leader().await?;
        cluster.restart(leader).await?;
    }
    let leader = cluster.leader().await?;
    insist(cluster.node(leader), keep_alive(1)).await??;
    let true_time = begun.elapsed();
    let counted =
        Duration::from_millis(before.ms_until(cluster.node(leader).status().cluster_time));
    assert!(counted <= true_time, "counted {counted:?} in {true_time:?}");
    assert!(counted > Duration::ZERO, "time goes on with each leader");
    cluster.same_state().await
}

const HOUR_MS: u64 = 3_600_000;

/// A machine that somebody set an hour ahead.
#[derive(Default)]
struct HourAhead(RealClock);

impl Clock for HourAhead {
    fn monotonic(&self) -> MonoTime {
        self.0.monotonic()
    }
    fn boottime(&self) -> BootTime {
        self.0.boottime()
    }
    fn wall_ms(&self) -> u64 {
        self.0.wall_ms() + HOUR_MS
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }
}

/// Hands the leadership around until `wanted` has it.
async fn made_leader(cluster: &mut Cluster, wanted: u64) -> Result<()> {
    for _ in 0..10 {
        let leader = cluster.leader().await?;
        if leader == wanted {
            return Ok(());
        }
        cluster.stop(leader).await?;
        cluster.leader().await?;
        cluster.restart(leader).await?;
    }
    anyhow::bail!("node {wanted} was never elected")
}

#[tokio::test]
async fn a_leader_whose_wall_clock_is_off_stamps_the_majority_s() -> Result<()> {
    let ahead = 3;
    let (mut cluster, listeners) = Cluster::prepare(plain).await?;
    cluster.clocks.insert(ahead, Arc::new(HourAhead::default()));
    for (node, listener) in listeners {
        let members = cluster.members.clone();
        cluster.launch(node, members, listener, true).await?;
    }
    cluster.bootstrapped().await?;
    let leader = cluster.leader().await?;
    let begun = Instant::now();
    insist(cluster.node(leader), open_session(1, 60_000)?).await??;
    let acquired = acquire(1, 1, "inv-1", 0)?;
    let held = insist(cluster.node(leader), Command::AcquireLease(acquired)).await;
    let token = leased(held)?.token;
    let before = cluster.node(leader).status().cluster_time;
    made_leader(&mut cluster, ahead).await?;
    let node = cluster.node(ahead).clone();
    eventually("the node that is ahead knows it, and says so", || {
        std::future::ready(node.status().wall_correction_ms != 0)
    })
    .await?;
    let correction = node.status().wall_correction_ms;
    ensure!(
        (correction + HOUR_MS as i64).abs() < 5_000,
        "corrected by {correction} ms"
    );
    insist(&node, keep_alive(1)).await??;
    let true_ms = RealClock::new().wall_ms();
    let read = |ledger: &billing_core::Ledger| (ledger.wall(), ledger.now());
    let ((stamped, now), _) = node.read(Consistency::Stale, read).await?;
    ensure!(
        stamped.0.abs_diff(true_ms) < 30_000,
        "{stamped:?} was stamped at {true_ms}"
    );
    // An hour of wall clock is no time at all for whoever holds a lease of a minute.
    let counted = Duration::from_millis(before.ms_until(now));
    ensure!(counted <= begun.elapsed(), "{counted:?}");
    let inv = billing_core::InvoiceId::new("inv-1")?;
    let (lease, _) = node
        .read(Consistency::Linearizable, |ledger| ledger.lease(&inv))
        .await?;
    ensure!(lease.is_some_and(|lease| lease.token == token), "it stands");
    for id in [1, 2] {
        let correction = cluster.node(id).status().wall_correction_ms;
        ensure!(correction == 0, "node {id} is right: {correction}");
    }
    cluster.same_state().await
}
