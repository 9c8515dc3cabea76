//! Who follows a leader whose process is gone, and when nobody does. The followers' election timeouts are longer than any
//! test waits: whoever is elected here is elected because of what the nodes saw, not because time passed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::harness::*;
use anyhow::Result;
use billing_core::{Command, FencingToken};
use billing_env::{BoxFuture, BoxIo, Listener, Net, RealNet};
use billing_server::node::{Consistency, NodeConfig, Role};
use tokio::sync::watch;

/// In which nothing may happen: a hundred looks of a follower that is refused.
const QUIET: Duration = Duration::from_secs(3);

fn plain(_: &mut NodeConfig) {}

fn patient(config: &mut NodeConfig) {
    config.election_timeout_min = Duration::from_secs(120);
    config.election_timeout_max = Duration::from_secs(240);
}

/// Three nodes, one of which leads; the others would not elect another one for minutes.
async fn patient_cluster(nets: BTreeMap<u64, Arc<dyn Net>>) -> Result<Cluster> {
    // Founded with plain timeouts: founding members may tie, and try again when their time is up.
    let mut cluster = Cluster::start_through(nets, plain).await?;
    cluster.retune_followers(patient).await?;
    Ok(cluster)
}

/// The kernel's sockets, except that some addresses can be made to refuse: what stands is closed, what is new is refused.
struct Refusing(watch::Sender<BTreeSet<String>>);

impl Refusing {
    fn nobody() -> Arc<Refusing> {
        Arc::new(Refusing(watch::Sender::default()))
    }

    fn refuse(&self, address: &str) {
        self.0.send_modify(|refused| {
            refused.insert(address.to_owned());
        });
    }

    fn refuse_nobody(&self) {
        self.0.send_modify(BTreeSet::clear);
    }
}

impl Net for Refusing {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let address = address.to_owned();
        let mut refused = self.0.subscribe();
        Box::pin(async move {
            if refused.borrow().contains(&address) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let mut far = RealNet.connect(&address).await?;
            let (near, mut relay) = tokio::io::duplex(64 * 1024);
            tokio::spawn(async move {
                tokio::select! {
                    _ = refused.wait_for(|refused| refused.contains(&address)) => {}
                    _ = tokio::io::copy_bidirectional(&mut relay, &mut far) => {}
                }
            });
            Ok(Box::new(near) as BoxIo)
        })
    }

    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        RealNet.listen(address)
    }
}

async fn refusing() -> Result<(Cluster, BTreeMap<u64, Arc<Refusing>>)> {
    let nets: BTreeMap<u64, Arc<Refusing>> = (1..=3).map(|id| (id, Refusing::nobody())).collect();
    let ways_out = nets
        .iter()
        .map(|(&id, net)| (id, net.clone() as Arc<dyn Net>))
        .collect();
    Ok((patient_cluster(ways_out).await?, nets))
}

async fn grant(cluster: &Cluster, through: u64, seq: u64) -> Result<FencingToken> {
    let acquire = acquire(1, seq, &format!("inv-{seq}"), 0)?;
    let lease = leased(insist(cluster.node(through), Command::AcquireLease(acquire)).await)?;
    Ok(lease.token)
}

async fn token_last(cluster: &Cluster, node: u64) -> Result<FencingToken> {
    let read = cluster
        .node(node)
        .read(Consistency::Linearizable, |ledger| ledger.token_last())
        .await?;
    Ok(read.0)
}

#[tokio::test]
async fn a_killed_leader_is_succeeded_before_its_lease_has_passed() -> Result<()> {
    let mut cluster = patient_cluster(BTreeMap::new()).await?;
    let first = cluster.leader().await?;
    insist(cluster.node(first), open_session(1, 300_000)?).await??;
    let before = grant(&cluster, first, 1).await?;
    let term = cluster.node(first).status().term;
    cluster.kill(first).await?;
    let second = cluster.leader().await?;
    assert_ne!(first, second);
    let after = grant(&cluster, second, 2).await?;
    assert!(before < after, "tokens grow: {before} then {after}");
    assert_eq!(
        holder(cluster.node(second), "inv-1").await?.as_deref(),
        Some("worker-1"),
        "what was acknowledged stands"
    );
    // The one before it comes back as a follower, and the next fall is caught alike.
    cluster.restart(first).await?;
    assert_eq!(cluster.leader().await?, second, "nobody is disturbed");
    assert!(cluster.node(second).status().term > term);
    cluster.same_state().await?;
    cluster.kill(second).await?;
    let third = cluster.leader().await?;
    assert!(after < grant(&cluster, third, 3).await?);
    Ok(())
}

#[tokio::test]
async fn a_killed_follower_costs_nothing() -> Result<()> {
    let mut cluster = patient_cluster(BTreeMap::new()).await?;
    let leader = cluster.leader().await?;
    let term = cluster.node(leader).status().term;
    let follower = cluster.follower().await?;
    cluster.kill(follower).await?;
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    cluster.restart(follower).await?;
    grant(&cluster, follower, 1).await?;
    assert_eq!(cluster.leader().await?, leader);
    assert_eq!(cluster.node(leader).status().term, term);
    Ok(())
}

#[tokio::test]
async fn a_leader_that_stalls_is_not_succeeded_and_goes_on() -> Result<()> {
    let cluster = patient_cluster(BTreeMap::new()).await?;
    let leader = cluster.leader().await?;
    let term = cluster.node(leader).status().term;
    let (go_on, stalled) = std::sync::mpsc::channel::<()>();
    // Its only thread: the sockets stay, and nobody serves them.
    cluster.beside(leader, async move {
        let _ = stalled.recv();
    })?;
    tokio::time::sleep(QUIET).await;
    for id in cluster.ids() {
        let status = cluster.node(id).status();
        assert_eq!(status.term, term, "node {id} has begun an election");
        assert_eq!(status.leader.map(|hint| hint.node), Some(leader));
    }
    drop(go_on);
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    assert_eq!(cluster.node(leader).status().term, term);
    Ok(())
}

#[tokio::test]
async fn a_refusal_that_only_one_follower_meets_costs_not_even_a_term() -> Result<()> {
    let (cluster, nets) = refusing().await?;
    let leader = cluster.leader().await?;
    let term = cluster.node(leader).status().term;
    let follower = cluster.follower().await?;
    nets[&follower].refuse(&cluster.members[&leader].raft);
    tokio::time::sleep(QUIET).await;
    for id in cluster.ids() {
        assert_eq!(cluster.node(id).status().term, term, "node {id}");
    }
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    grant(&cluster, leader, 1).await?;
    assert_eq!(cluster.leader().await?, leader);
    cluster.same_state().await
}

#[tokio::test]
async fn a_wrong_belief_of_all_followers_costs_an_election_and_nothing_else() -> Result<()> {
    let (cluster, nets) = refusing().await?;
    let first = cluster.leader().await?;
    insist(cluster.node(first), open_session(1, 300_000)?).await??;
    let mut granted = grant(&cluster, first, 1).await?;
    for (&id, net) in &nets {
        if id != first {
            net.refuse(&cluster.members[&first].raft);
        }
    }
    eventually("another node leads", || {
        let others = cluster.ids().into_iter().filter(|&id| id != first);
        let mut led = others.map(|id| cluster.node(id).status().role == Role::Leader);
        std::future::ready(led.any(|leads| leads))
    })
    .await?;
    // Until now the new leader could not reach the one before it.
    for net in nets.values() {
        net.refuse_nobody();
    }
    let second = cluster.leader().await?;
    assert_ne!(first, second, "it was believed to be gone");
    for seq in 2..=20 {
        // Through the one that led: it forwards now.
        let token = grant(&cluster, first, seq).await?;
        assert!(granted < token, "tokens grow: {granted} then {token}");
        granted = token;
    }
    assert_eq!(cluster.leader().await?, second);
    for id in cluster.ids() {
        assert_eq!(
            token_last(&cluster, id).await?,
            granted,
            "read on node {id}"
        );
        assert_eq!(
            holder(cluster.node(id), "inv-1").await?.as_deref(),
            Some("worker-1")
        );
    }
    cluster.same_state().await
}
