//! A node whose state is not the one that the log gives ends by itself, and only such a node.

use anyhow::{Context, Result, ensure};
use billing_server::node::NodeConfig;

use crate::forge::forge;
use crate::harness::*;

/// Snapshots early, and nothing purged: what a node missed it gets entry by entry, on top of the state that it has.
fn snapshots_early(config: &mut NodeConfig) {
    config.snapshot_every = 100;
    config.log_kept = 100_000;
}

/// Applies at least one entry for each of `commands` keep-alives, through a node that runs.
async fn go_on(cluster: &Cluster, commands: usize) -> Result<()> {
    let leader = cluster.leader().await?;
    for _ in 0..commands {
        insist(cluster.node(leader), keep_alive(1)).await??;
    }
    Ok(())
}

/// A cluster each of whose nodes has a snapshot.
async fn with_snapshots() -> Result<Cluster> {
    let cluster = Cluster::start(snapshots_early).await?;
    let leader = cluster.leader().await?;
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    go_on(&cluster, 110).await?;
    eventually("every node has a snapshot", || {
        let all = cluster
            .running
            .values()
            .all(|running| running.node.status().snapshot.is_some());
        std::future::ready(all)
    })
    .await?;
    Ok(cluster)
}

async fn ends_for_its_state(cluster: &Cluster, node: u64) -> Result<()> {
    let running = &cluster.running[&node];
    eventually("the node that differs ends", || {
        std::future::ready(running.ended().is_some())
    })
    .await?;
    let reason = running.ended().context("it ended")?;
    let begins = format!("the state of node {node} after index ");
    ensure!(reason.starts_with(&begins), "{reason}");
    ensure!(reason.contains("that of a majority (nodes "), "{reason}");
    ensure!(reason.ends_with(billing_store::REJOIN), "{reason}");
    Ok(())
}

fn nobody_else_ended(cluster: &Cluster, but: u64) -> Result<()> {
    for (id, running) in cluster.running.iter().filter(|(id, _)| **id != but) {
        ensure!(
            running.ended().is_none(),
            "node {id} ended: {:?}",
            running.ended()
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_node_that_started_with_another_state_ends_and_the_others_go_on() -> Result<()> {
    let mut cluster = with_snapshots().await?;
    let odd = cluster.follower().await?;
    cluster.stop(odd).await?;
    forge(&cluster.folder(odd), odd, "prov-x").await?;
    // It was away meanwhile: what it missed is applied to the wrong state.
    go_on(&cluster, 20).await?;
    cluster.restart(odd).await?;
    ends_for_its_state(&cluster, odd).await?;
    nobody_else_ended(&cluster, odd)?;
    cluster.kill(odd).await?;
    go_on(&cluster, 5).await?;
    cluster.same_state().await
}

#[tokio::test]
async fn two_that_differ_end_nobody_until_the_third_is_back() -> Result<()> {
    let mut cluster = with_snapshots().await?;
    let odd = cluster.follower().await?;
    cluster.stop(odd).await?;
    forge(&cluster.folder(odd), odd, "prov-x").await?;
    let leader = cluster.leader().await?;
    let away = cluster
        .ids()
        .into_iter()
        .find(|&id| id != leader)
        .context("a third node")?;
    cluster.kill(away).await?;
    cluster.restart(odd).await?;
    // Two of three are a majority of votes, and one opinion each. They go on, past several samples.
    go_on(&cluster, 50).await?;
    nobody_else_ended(&cluster, 0)?;
    cluster.restart(away).await?;
    ends_for_its_state(&cluster, odd).await?;
    nobody_else_ended(&cluster, odd)
}
