//! Who may speak under which id, and who is told not to.

use anyhow::Result;
use billing_env::{Net, RealNet};
use billing_server::node::NodeConfig;

use crate::harness::*;

fn plain(_: &mut NodeConfig) {}

#[tokio::test]
async fn a_lost_disk_never_speaks_under_its_old_id() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    let lost = cluster.follower().await?;
    cluster.same_state().await?;
    cluster.kill(lost).await?;
    std::fs::remove_dir_all(cluster.folder(lost))?;
    let listener = RealNet.listen(&cluster.members[&lost].raft).await?;
    // As a unit file would that says --bootstrap for ever.
    cluster
        .launch(lost, cluster.members.clone(), listener, true)
        .await?;
    eventually("it is told to end", || {
        std::future::ready(cluster.running[&lost].ended().is_some())
    })
    .await?;
    let reason = cluster.running[&lost].ended().unwrap_or_default();
    assert!(reason.contains("data folder"), "{reason}");
    assert!(
        reason.contains("never reused"),
        "it says what to do: {reason}"
    );
    assert_eq!(
        cluster.node(lost).status().last_log,
        None,
        "nothing was founded anew"
    );
    cluster.kill(lost).await?;
    let leader = cluster.leader().await?;
    insist(cluster.node(leader), open_session(1, 60_000)?).await??;
    Ok(())
}

#[tokio::test]
async fn founding_members_must_agree_who_they_are() -> Result<()> {
    let (mut cluster, mut listeners) = Cluster::prepare(plain).await?;
    let mut other = cluster.members.clone();
    if let Some(third) = other.get_mut(&3) {
        third.client = "127.0.0.1:9999".to_owned();
    }
    for (id, members) in [
        (1, cluster.members.clone()),
        (2, cluster.members.clone()),
        (3, other),
    ] {
        if let Some(listener) = listeners.remove(&id) {
            cluster.launch(id, members, listener, true).await?;
        }
    }
    // Node 3 greets the others and is refused; the cluster is not founded by anybody, so nothing can be elected.
    let quiet = tokio::time::timeout(std::time::Duration::from_secs(3), cluster.leader()).await;
    assert!(
        quiet.is_err(),
        "it was founded with different lists of peers"
    );
    for id in cluster.ids() {
        assert_eq!(cluster.node(id).status().last_log, None, "node {id}");
    }
    Ok(())
}

#[tokio::test]
async fn two_nodes_with_one_id_are_told_so() -> Result<()> {
    let cluster = Cluster::start(plain).await?;
    let leader = cluster.leader().await?;
    let twin_of = cluster.follower().await?;
    // Another machine that was given the id of a node that runs: same list of peers, but an address of its own.
    let listener = RealNet.listen("127.0.0.1:0").await?;
    let mut members = cluster.members.clone();
    if let Some(peer) = members.get_mut(&twin_of) {
        peer.raft = listener.local_addr()?.to_string();
    }
    let elsewhere = Cluster::prepare(plain).await?;
    let (mut elsewhere, _) = elsewhere;
    elsewhere.launch(twin_of, members, listener, true).await?;
    eventually("the twin is told to end", || {
        std::future::ready(elsewhere.running[&twin_of].ended().is_some())
    })
    .await?;
    let reason = elsewhere.running[&twin_of].ended().unwrap_or_default();
    assert!(
        reason.contains("share an id") || reason.contains("data folder"),
        "{reason}"
    );
    assert!(cluster.running[&leader].ended().is_none());
    assert!(
        cluster.running[&twin_of].ended().is_none(),
        "the first one goes on"
    );
    Ok(())
}
