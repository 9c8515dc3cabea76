//! Any node takes any call, the others go on without one, and nothing that was answered is forgotten.

use std::time::Duration;

use crate::harness::*;
use anyhow::{Result, bail};
use billing_core::{Command, ReleaseLease, Reply};
use billing_server::node::{CallError, Consistency};

fn plain(_: &mut billing_server::node::NodeConfig) {}

#[tokio::test]
async fn a_command_through_a_follower_is_seen_on_every_node() -> Result<()> {
    let cluster = Cluster::start(plain).await?;
    let follower = cluster.follower().await?;
    let node = cluster.node(follower);
    insist(node, open_session(1, 60_000)?).await??;
    leased(insist(node, Command::AcquireLease(acquire(1, 1, "inv-7", 0)?)).await)?;
    for id in cluster.ids() {
        let held = holder(cluster.node(id), "inv-7").await?;
        assert_eq!(held.as_deref(), Some("worker-1"), "read on node {id}");
    }
    cluster.same_state().await
}

#[tokio::test]
async fn the_others_go_on_when_the_leader_is_killed_and_it_catches_up() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    let first = cluster.leader().await?;
    insist(cluster.node(first), open_session(1, 300_000)?).await??;
    leased(
        insist(
            cluster.node(first),
            Command::AcquireLease(acquire(1, 1, "inv-1", 0)?),
        )
        .await,
    )?;
    cluster.kill(first).await?;
    let second = cluster.leader().await?;
    assert_ne!(first, second);
    let node = cluster.node(second);
    assert_eq!(
        holder(node, "inv-1").await?.as_deref(),
        Some("worker-1"),
        "nothing is forgotten"
    );
    leased(insist(node, Command::AcquireLease(acquire(1, 2, "inv-2", 0)?)).await)?;
    cluster.restart(first).await?;
    let held = holder(cluster.node(first), "inv-2").await?;
    assert_eq!(held.as_deref(), Some("worker-1"));
    cluster.same_state().await
}

#[tokio::test]
async fn a_restart_of_all_gives_the_same_state() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    let leader = cluster.leader().await?;
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    for seq in 1..=50 {
        let acquire = acquire(1, seq, &format!("inv-{seq}"), 0)?;
        leased(insist(cluster.node(leader), Command::AcquireLease(acquire)).await)?;
    }
    cluster.same_state().await?;
    let token = cluster
        .node(leader)
        .read(Consistency::Stale, |ledger| ledger.token_last())
        .await?
        .0;
    for id in cluster.ids() {
        cluster.kill(id).await?;
    }
    for id in 1..=3 {
        cluster.restart(id).await?;
    }
    cluster.bootstrapped().await?;
    for id in 1..=3 {
        assert_eq!(
            holder(cluster.node(id), "inv-50").await?.as_deref(),
            Some("worker-1")
        );
        let (after, _) = cluster
            .node(id)
            .read(Consistency::Linearizable, |ledger| ledger.token_last())
            .await?;
        assert_eq!(after, token, "no token is granted by a restart");
    }
    cluster.same_state().await
}

#[tokio::test]
async fn an_orderly_end_hands_the_leadership_over() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    let first = cluster.leader().await?;
    let term = cluster.node(first).status().term;
    cluster.stop(first).await?;
    let second = cluster.leader().await?;
    assert_ne!(first, second);
    assert_eq!(
        cluster.node(second).status().term,
        term + 1,
        "one election, asked for"
    );
    insist(cluster.node(second), open_session(1, 60_000)?).await??;
    cluster.restart(first).await?;
    cluster.same_state().await
}

#[tokio::test]
async fn who_waits_on_a_follower_hears_of_its_turn() -> Result<()> {
    let cluster = Cluster::start(plain).await?;
    let follower = cluster.follower().await?;
    let node = cluster.node(follower);
    insist(node, open_session(1, 60_000)?).await??;
    insist(node, open_session(2, 60_000)?).await??;
    let first = leased(insist(node, Command::AcquireLease(acquire(1, 1, "inv-7", 0)?)).await)?;
    let before = node.status().applied;
    let waiter = node.clone();
    let waiting = acquire(2, 1, "inv-7", 60_000)?;
    let second = tokio::spawn(async move { waiter.acquire_waiting(actor(), waiting).await });
    // It stands in the queue: its entry is the next that this node applies, but for a tick.
    node.applied().wait_for(|&index| index > before).await?;
    let leader = cluster.leader().await?;
    insist(
        cluster.node(leader),
        Command::ReleaseLease(ReleaseLease::ByToken {
            invoice: first.invoice.clone(),
            token: first.token,
        }),
    )
    .await??;
    let second = leased(second.await?)?;
    assert!(second.token > first.token);
    assert_eq!(second.holder.as_str(), "worker-2");
    Ok(())
}

#[tokio::test]
async fn who_goes_away_while_waiting_is_withdrawn() -> Result<()> {
    let cluster = Cluster::start(plain).await?;
    let leader = cluster.leader().await?;
    let node = cluster.node(leader);
    for number in 1..=3 {
        insist(node, open_session(number, 60_000)?).await??;
    }
    let first = leased(insist(node, Command::AcquireLease(acquire(1, 1, "inv-7", 0)?)).await)?;
    let before = node.status().applied;
    let waiter = node.clone();
    let waiting = acquire(2, 1, "inv-7", 60_000)?;
    let gone = tokio::spawn(async move { waiter.acquire_waiting(actor(), waiting).await });
    // It stands in the queue once the entry after `before` is applied: then a second one stands behind it.
    let mut applied = node.applied();
    applied.wait_for(|&index| index > before).await?;
    let waiter = node.clone();
    let behind = acquire(3, 1, "inv-7", 60_000)?;
    let third = tokio::spawn(async move { waiter.acquire_waiting(actor(), behind).await });
    gone.abort();
    assert!(gone.await.is_err(), "the caller went away");
    insist(
        node,
        Command::ReleaseLease(ReleaseLease::ByToken {
            invoice: first.invoice,
            token: first.token,
        }),
    )
    .await??;
    assert_eq!(leased(third.await?)?.holder.as_str(), "worker-3");
    Ok(())
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    let leader = cluster.leader().await?;
    for id in cluster.ids().into_iter().filter(|&id| id != leader) {
        cluster.kill(id).await?;
    }
    let node = cluster.node(leader);
    // Polled once each, without waiting: what is taken waits, what is refused says so at once.
    let mut taken = Vec::new();
    let mut refused = 0;
    for _ in 0..60_000 {
        let mut call = Box::pin(node.propose(actor(), keep_alive(1)));
        match futures::poll!(&mut call) {
            std::task::Poll::Pending => taken.push(call),
            std::task::Poll::Ready(Err(CallError::Overloaded { bound, max })) => {
                assert_eq!((bound.as_str(), max), ("proposals queued", 16_384));
                refused += 1;
            }
            std::task::Poll::Ready(other) => bail!("neither taken nor refused: {other:?}"),
        }
    }
    assert!(refused > 0, "60,000 commands were taken");
    assert!(taken.len() >= 16_384, "the queue holds what it says");
    Ok(())
}

fn impatient(config: &mut billing_server::node::NodeConfig) {
    config.call_timeout = Duration::from_millis(500);
}

#[tokio::test]
async fn without_a_majority_what_was_proposed_is_unknown_and_what_was_not_is_not_applied()
-> Result<()> {
    let mut cluster = Cluster::start(impatient).await?;
    let leader = cluster.leader().await?;
    for id in cluster.ids().into_iter().filter(|&id| id != leader) {
        cluster.kill(id).await?;
    }
    let node = cluster.node(leader);
    let answer = node.propose(actor(), open_session(1, 60_000)?).await;
    assert!(
        matches!(answer, Err(CallError::Unknown { .. })),
        "it was handed over, and nobody can tell: {answer:?}"
    );
    eventually("the leader notices that nobody answers", || async {
        let answer = node.propose(actor(), keep_alive(1)).await;
        matches!(answer, Err(CallError::NotApplied { .. }))
    })
    .await?;
    let read = node
        .read(Consistency::Linearizable, |ledger| ledger.now())
        .await;
    assert!(
        matches!(read, Err(CallError::NotApplied { .. })),
        "{read:?}"
    );
    assert!(
        node.read(Consistency::Stale, |ledger| ledger.now())
            .await
            .is_ok()
    );
    Ok(())
}

#[tokio::test]
async fn answers_of_many_commands_are_positional() -> Result<()> {
    let cluster = Cluster::start(plain).await?;
    let node = cluster.node(cluster.follower().await?);
    insist(node, open_session(1, 60_000)?).await??;
    let commands = (1..=300)
        .map(|seq| {
            Ok((
                actor(),
                Command::AcquireLease(acquire(1, seq, &format!("inv-{seq}"), 0)?),
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    for (nth, answer) in node.propose_many(commands).await.into_iter().enumerate() {
        match answer {
            Ok(Ok(Reply::Leased(leased))) => {
                assert_eq!(leased.lease.invoice.as_str(), format!("inv-{}", nth + 1));
            }
            other => bail!("command {nth}: {other:?}"),
        }
    }
    Ok(())
}
