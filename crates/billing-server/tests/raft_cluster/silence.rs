//! A leader that hears no majority while what it says arrives.

use std::time::Duration;

use crate::harness::*;
use crate::wires::{Marked, wired};
use anyhow::Result;
use billing_core::Command;
use billing_server::node::NodeConfig;

/// Into the leader's silence, which begins after an election timeout and a heartbeat and lasts for four timeouts, or until
/// others answer.
const CUT_TIMEOUTS: u32 = 2;

fn plain(_: &mut NodeConfig) {}

#[tokio::test]
async fn a_leader_that_hears_nobody_does_not_keep_the_others_from_electing_another() -> Result<()> {
    let (wires, nets) = wired(1..=3);
    let cluster = Cluster::start_through(nets, plain).await?;
    let first = cluster.leader().await?;
    insist(cluster.node(first), open_session(1, 300_000)?).await??;
    let others = cluster.others(first);
    for other in &others {
        wires[&first].lose_answers(&cluster.members[other].raft);
    }
    let second = cluster.leader_among(&others).await?;
    assert_ne!(first, second);
    let acquire = acquire(1, 1, "inv-1", 0)?;
    leased(insist(cluster.node(second), Command::AcquireLease(acquire)).await)?;
    wires[&first].mend();
    assert_eq!(cluster.leader().await?, second);
    cluster.same_state().await
}

#[tokio::test]
async fn it_calls_again_where_only_its_own_log_lets_anybody_lead() -> Result<()> {
    let (wires, nets) = wired(1..=3);
    let mut cluster = Cluster::start_through(nets, plain).await?;
    let leader = cluster.leader().await?;
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    let others = cluster.others(leader);
    let (dead, behind) = (others[0], others[1]);
    let at = |id: u64| cluster.members[&id].raft.clone();
    wires[&leader].swallow(&at(behind), "inv-only-here", Marked::IsLost);
    wires[&leader].cut(&at(dead));
    // Appended by the leader, and by nobody else.
    let acquire = acquire(1, 1, "inv-only-here", 0)?;
    let node = cluster.node(leader).clone();
    let asked = tokio::spawn(async move { insist(&node, Command::AcquireLease(acquire)).await });
    eventually("the entry is in one log only", || {
        let ahead = cluster.node(leader).status().last_log > cluster.node(behind).status().last_log;
        std::future::ready(ahead)
    })
    .await?;
    cluster.kill(dead).await?;
    let timeout = NodeConfig::new(leader, cluster.members.clone()).election_timeout_max;
    tokio::time::sleep(CUT_TIMEOUTS * timeout).await; // The cut itself.
    assert!(cluster.node(leader).status().last_log > cluster.node(behind).status().last_log);
    wires[&leader].mend();
    leased(asked.await?)?;
    let holder = holder(cluster.node(behind), "inv-only-here").await?;
    assert_eq!(holder.as_deref(), Some("worker-1"));
    Ok(())
}

#[test]
fn the_cut_reaches_into_the_silence() {
    let config = NodeConfig::new(1, Default::default());
    let begins = config.election_timeout_max + config.heartbeat;
    assert!(CUT_TIMEOUTS * config.election_timeout_max > begins + Duration::from_millis(300));
}
