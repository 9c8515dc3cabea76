//! The log is bounded: snapshots take its place, and a node that lags behind them gets one.

use anyhow::Result;
use billing_core::Command;
use billing_env::{Env, Net, RealNet};
use billing_server::node::{FailStop, Node, NodeConfig};

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

/// Flips a bit in the middle of a node's snapshots: of the newest one, or of all of them.
fn damage(folder: &std::path::Path, all: bool) -> Result<usize> {
    let mut files: Vec<_> = std::fs::read_dir(folder.join("snapshots"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "snap"));
    files.sort();
    let from = if all { 0 } else { files.len() - 1 };
    for path in &files[from..] {
        let mut bytes = std::fs::read(path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes)?;
    }
    Ok(files.len())
}

/// Some entries of their own.
async fn fill(node: &Node, from: u64, count: u64) -> Result<()> {
    for seq in from..from + count {
        let acquire = acquire(1, seq, &format!("inv-{seq}"), 0)?;
        leased(insist(node, Command::AcquireLease(acquire)).await)?;
    }
    Ok(())
}

fn all_kept(config: &mut NodeConfig) {
    config.snapshot_every = 1_000_000;
    config.log_kept = 1_000_000;
}

#[tokio::test]
async fn a_damaged_snapshot_is_made_up_for_while_the_log_reaches_the_one_before() -> Result<()> {
    let mut cluster = Cluster::start(all_kept).await?;
    let leader = cluster.leader().await?;
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    let hurt = cluster.follower().await?;
    for round in 0..2 {
        fill(cluster.node(leader), 1 + 20 * round, 20).await?;
        cluster.same_state().await?;
        let before = cluster.node(hurt).status().applied;
        let taken = cluster.node(hurt).take_snapshot().await?;
        assert!(Some(taken.index) >= before, "{taken:?}, applied {before:?}");
        assert!(taken.bytes > 0);
    }
    cluster.kill(hurt).await?;
    assert_eq!(damage(&cluster.folder(hurt), false)?, 2);
    cluster.restart(hurt).await?;
    let held = holder(cluster.node(hurt), "inv-40").await?;
    assert_eq!(held.as_deref(), Some("worker-1"));
    assert!(cluster.running[&hurt].ended().is_none());
    cluster.same_state().await
}

#[tokio::test]
async fn a_node_whose_snapshots_are_damaged_behind_its_log_ends_and_says_what_to_do() -> Result<()>
{
    let mut cluster = Cluster::start(small).await?;
    let leader = cluster.leader().await?;
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    let hurt = cluster.follower().await?;
    let mut seq = 1;
    while cluster.node(hurt).status().purged.is_none() {
        fill(cluster.node(leader), seq, 50).await?;
        seq += 50;
        assert!(
            seq < 5_000,
            "nothing is purged: {:?}",
            cluster.node(hurt).status()
        );
    }
    cluster.kill(hurt).await?;
    damage(&cluster.folder(hurt), true)?;
    let disk = billing_store::open(&cluster.folder(hurt), hurt, None)?;
    let listener = RealNet.listen("127.0.0.1:0").await?;
    let config = NodeConfig::new(hurt, cluster.members.clone());
    let fail_stop = FailStop::new(|_| {});
    let started = Node::start(config, Env::real(), disk, listener, fail_stop).await;
    let refused = started.err().map(|error| error.to_string());
    let refused = refused.unwrap_or_default();
    assert!(refused.contains("no whole snapshot reaches"), "{refused}");
    assert!(
        refused.contains("never reused"),
        "it says what to do: {refused}"
    );
    // The others go on.
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != hurt).collect();
    let leader = cluster.leader_among(&others).await?;
    fill(cluster.node(leader), seq, 1).await
}
