//! Cluster time keeps pace with true time under load, and is never counted twice.

use std::time::{Duration, Instant};

use anyhow::Result;
use billing_server::node::NodeConfig;

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
