//! The log is bounded: snapshots take its place, and a node that lags behind them gets one.

use anyhow::Result;
use billing_core::Command;
use billing_server::node::NodeConfig;

use crate::harness::*;

fn small(config: &mut NodeConfig) {
    config.snapshot_every = 100;
    config.log_kept = 10;
}

#[tokio::test]
async fn a_node_behind_the_log_gets_a_snapshot() -> Result<()> {
    let mut cluster = Cluster::start(small).await?;
    let lagging = cluster.follower().await?;
    cluster.same_state().await?;
    let left_at = cluster.node(lagging).status().last_log;
    cluster.kill(lagging).await?;
    let leader = cluster.leader().await?;
    let node = cluster.node(leader);
    insist(node, open_session(1, 300_000)?).await??;
    // One entry each, since each waits for its own answer.
    let mut seq = 0;
    while node.status().purged <= left_at.map(|index| index + 20) {
        seq += 1;
        leased(
            insist(
                node,
                Command::AcquireLease(acquire(1, seq, &format!("inv-{seq}"), 0)?),
            )
            .await,
        )?;
        assert!(seq < 5_000, "nothing is purged: {:?}", node.status());
    }
    assert!(node.status().snapshot.is_some());
    cluster.restart(lagging).await?;
    let held = holder(cluster.node(lagging), &format!("inv-{seq}")).await?;
    assert_eq!(held.as_deref(), Some("worker-1"));
    assert!(
        cluster.node(lagging).status().snapshot > left_at,
        "it came by snapshot: {:?}",
        cluster.node(lagging).status()
    );
    cluster.same_state().await?;
    // And it starts again from the snapshot that it was given.
    cluster.kill(lagging).await?;
    cluster.restart(lagging).await?;
    assert_eq!(
        holder(cluster.node(lagging), "inv-1").await?.as_deref(),
        Some("worker-1")
    );
    cluster.same_state().await
}
