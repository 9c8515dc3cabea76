//! Who belongs to the cluster: nodes come, get their vote, are replaced and go, and what would harm it is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use billing_core::{
    AmountMinor, Command, Currency, CustomerId, InvoiceId, MembershipReason, Priority, Rejection,
    SubmitInvoice,
};
use billing_env::{Net, RealNet};
use billing_server::node::{CallError, Change, Changed, Node, NodeConfig, Role};
use billing_server::raft::Peer;

use crate::harness::*;
use crate::wires::{Marked, wired};

const PATIENCE: Duration = Duration::from_secs(20);

fn plain(_: &mut NodeConfig) {}

fn small(config: &mut NodeConfig) {
    config.snapshot_every = 100;
    config.log_kept = 10;
}

/// Starts an empty node that knows nobody, as `billingd join` does.
async fn launch(cluster: &mut Cluster, node: u64) -> Result<Peer> {
    let listener = RealNet.listen("127.0.0.1:0").await?;
    let peer = Peer {
        raft: listener.local_addr()?.to_string(),
        client: format!("127.0.0.1:{}", 7100 + node),
    };
    cluster.members.insert(node, peer.clone());
    let alone = BTreeMap::from([(node, peer.clone())]);
    cluster.launch(node, alone, listener, false).await?;
    Ok(peer)
}

/// Nobody knows what became of a change when the leader that made it was just being replaced; an operator looks and asks again.
async fn change(node: &Node, change: Change) -> Result<Result<Changed, Rejection>> {
    let asked = async {
        loop {
            match node.change(change.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(CallError::NotApplied { .. }) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .context("the change")?
}

async fn add(at: &Node, node: u64, peer: &Peer) -> Result<Result<Changed, Rejection>> {
    let peer = peer.clone();
    change(at, Change::AddLearner { node, peer }).await
}

fn promote(node: u64, replaces: Option<u64>, allow_even: bool) -> Change {
    Change::Promote {
        node,
        replaces,
        allow_even,
    }
}

fn remove(node: u64, allow_even: bool) -> Change {
    Change::Remove { node, allow_even }
}

/// Promotes it as soon as it has caught up.
async fn promoted(at: &Node, what: Change) -> Result<()> {
    let promoting = async {
        loop {
            match change(at, what.clone()).await? {
                Ok(_) => return Ok(()),
                Err(Rejection::MembershipRefused {
                    reason: MembershipReason::Lags,
                    ..
                }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(refused) => bail!("{refused}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, promoting)
        .await
        .context("it never caught up")?
}

/// Asks until it is done: a leader of a moment ago has not heard from everybody yet.
async fn transferred(at: &Node, to: Option<u64>) -> Result<u64> {
    let asked = async {
        loop {
            match change(at, Change::TransferLeader { to }).await? {
                Ok(Changed::Leads(leads)) => return Ok(leads),
                Err(Rejection::MembershipRefused {
                    reason: MembershipReason::Lags | MembershipReason::NoMajority,
                    ..
                }) => tokio::time::sleep(Duration::from_millis(20)).await,
                other => bail!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .context("nobody was ready to lead")?
}

#[track_caller]
fn refused(
    answer: Result<Result<Changed, Rejection>>,
    wanted: MembershipReason,
    words: &[&str],
) -> Result<()> {
    match answer? {
        Err(Rejection::MembershipRefused { reason, detail, .. }) => {
            assert_eq!(reason, wanted, "{detail}");
            for word in words {
                assert!(detail.contains(word), "`{word}` is not in: {detail}");
            }
            Ok(())
        }
        other => bail!("not refused for {wanted:?}: {other:?}"),
    }
}

fn voters(node: &Node) -> Vec<u64> {
    let members = node.status().members;
    members
        .iter()
        .filter(|member| member.voter)
        .map(|member| member.node)
        .collect()
}

/// A lease for each number, so that what was acknowledged can be looked for later.
async fn acquired(node: &Node, seqs: std::ops::Range<u64>) -> Result<()> {
    for seq in seqs {
        let acquire = acquire(1, seq, &format!("inv-{seq}"), 0)?;
        leased(insist(node, Command::AcquireLease(acquire)).await)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_grows_and_shrinks_and_every_node_agrees() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    let follower = cluster.follower().await?;
    insist(cluster.node(follower), open_session(1, 300_000)?).await??;
    acquired(cluster.node(follower), 1..20).await?;
    for node in [4, 5] {
        let peer = launch(&mut cluster, node).await?;
        // Any node answers.
        let added = add(cluster.node(follower), node, &peer).await??;
        assert!(
            matches!(added, Changed::Added { last_log } if last_log >= 20),
            "{added:?}"
        );
        // The same again is the same, not a second node.
        add(cluster.node(follower), node, &peer).await??;
        acquired(cluster.node(node), node * 100..node * 100 + 5).await?;
        promoted(cluster.node(follower), promote(node, None, node == 4)).await?;
    }
    assert_eq!(voters(cluster.node(5)), [1, 2, 3, 4, 5]);
    cluster.same_state().await?;
    let leader = cluster.leader().await?;
    let goes = if leader == 4 { 5 } else { 4 };
    refused(
        change(cluster.node(leader), remove(goes, false)).await,
        MembershipReason::EvenVoters,
        &["4 voters", "allow_even"],
    )?;
    change(cluster.node(leader), remove(goes, true)).await??;
    let told = tokio::time::timeout(PATIENCE, cluster.node(goes).removed()).await?;
    assert!(told.contains("billingd join"), "{told}");
    cluster.stop(goes).await?;
    for seq in (1..20).chain(400..405).chain(500..505) {
        let held = holder(cluster.node(follower), &format!("inv-{seq}")).await?;
        assert_eq!(held.as_deref(), Some("worker-1"), "inv-{seq}");
    }
    cluster.same_state().await
}

#[tokio::test]
async fn a_dead_node_is_replaced_by_a_new_id_and_never_comes_back() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    let leader = cluster.leader().await?;
    let dead = cluster.follower().await?;
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    cluster.kill(dead).await?;
    acquired(cluster.node(leader), 1..10).await?;
    let peer = launch(&mut cluster, 4).await?;
    add(cluster.node(leader), 4, &peer).await??;
    let replace = promote(4, Some(dead), false);
    promoted(cluster.node(leader), replace.clone()).await?;
    let left = voters(cluster.node(leader));
    assert!(
        left.len() == 3 && left.contains(&4) && !left.contains(&dead),
        "{left:?}"
    );
    // Asked again, as after a lost answer.
    change(cluster.node(4), replace).await??;
    // The dead one starts from its own folder: it would vote, and is told who it is.
    cluster.restart(dead).await?;
    let told = tokio::time::timeout(PATIENCE, cluster.node(dead).removed()).await?;
    assert!(told.contains(&format!("node {dead} was removed")), "{told}");
    assert_eq!(
        cluster.leader_among(&left).await?,
        leader,
        "its votes disturb nobody"
    );
    cluster.kill(dead).await?;
    let at_its_place = cluster.members[&dead].clone();
    refused(
        add(cluster.node(4), dead, &at_its_place).await,
        MembershipReason::IdUsed,
        &["removed", "never used twice", "such as 5"],
    )?;
    // With one more gone, the new one makes the majority.
    let other = left.iter().copied().find(|&id| id != leader && id != 4);
    cluster.kill(other.context("three voters")?).await?;
    acquired(cluster.node(leader), 10..20).await?;
    cluster.same_state().await
}

#[tokio::test]
async fn a_leader_that_is_removed_hands_over_first_and_answers() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    for node in [4, 5] {
        let peer = launch(&mut cluster, node).await?;
        add(cluster.node(1), node, &peer).await??;
        promoted(cluster.node(1), promote(node, None, true)).await?;
    }
    insist(cluster.node(1), open_session(1, 300_000)?).await??;
    for _ in 0..2 {
        let leader = cluster.leader().await?;
        let answer = change(cluster.node(leader), remove(leader, true)).await??;
        let Changed::Members(members) = answer else {
            bail!("{answer:?}");
        };
        assert!(
            members.iter().all(|member| member.node != leader),
            "{members:?}"
        );
        let told = tokio::time::timeout(PATIENCE, cluster.node(leader).removed()).await?;
        assert!(told.contains("delete its data folder"), "{told}");
        cluster.stop(leader).await?;
        let next = cluster.leader().await?;
        acquired(cluster.node(next), leader * 100..leader * 100 + 5).await?;
    }
    assert_eq!(voters(cluster.node(cluster.leader().await?)).len(), 3);
    cluster.same_state().await
}

#[tokio::test]
async fn what_would_harm_the_cluster_is_refused_with_the_reason() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    let leader = cluster.leader().await?;
    let follower = cluster.follower().await?;
    let node = cluster.node(leader).clone();
    insist(&node, open_session(1, 300_000)?).await??;
    let nowhere = Peer {
        raft: "127.0.0.1:9".to_owned(),
        client: "127.0.0.1:9".to_owned(),
    };
    refused(
        add(&node, follower, &nowhere).await,
        MembershipReason::IdUsed,
        &["member already", "such as 4"],
    )?;
    refused(
        change(&node, promote(9, None, false)).await,
        MembershipReason::NotAMember,
        &["never was a member", "1, 2, 3"],
    )?;
    refused(
        change(&node, promote(follower, None, false)).await,
        MembershipReason::WrongRole,
        &["vote already"],
    )?;
    // A learner that was added and does not run.
    add(&node, 4, &nowhere).await??;
    refused(
        change(&node, promote(4, None, true)).await,
        MembershipReason::Lags,
        &["not heard from lately"],
    )?;
    refused(
        change(&node, Change::TransferLeader { to: Some(4) }).await,
        MembershipReason::WrongRole,
        &["no vote"],
    )?;
    refused(
        change(&node, remove(follower, false)).await,
        MembershipReason::EvenVoters,
        &["2 voters", "no more failures than 1"],
    )?;
    cluster.kill(follower).await?;
    let other = cluster
        .ids()
        .into_iter()
        .find(|&id| id != leader)
        .context("one follower is left")?;
    let gone = format!("({leader}, {follower})");
    let gone_too = format!("({follower}, {leader})");
    // Until the leader has not heard the dead one for an election timeout, it cannot know.
    eventually("the dead node counts as not heard from", || {
        let node = node.clone();
        async move {
            matches!(
                node.change(Change::TransferLeader { to: Some(follower) })
                    .await,
                Ok(Err(Rejection::MembershipRefused {
                    reason: MembershipReason::Lags,
                    detail,
                    ..
                })) if detail.contains("not heard from lately")
            )
        }
    })
    .await?;
    let answer = change(&node, remove(other, true)).await;
    match &answer {
        Ok(Err(Rejection::MembershipRefused { reason, detail, .. })) => {
            assert_eq!(*reason, MembershipReason::NoMajority, "{detail}");
            assert!(
                detail.contains(&gone) || detail.contains(&gone_too),
                "{detail}"
            );
        }
        other => bail!("{other:?}"),
    }
    // Nothing of it was changed, and the cluster works.
    assert_eq!(voters(&node), [1, 2, 3]);
    acquired(&node, 1..5).await?;
    change(&node, remove(4, false)).await??;
    assert_eq!(node.status().members.len(), 3);
    Ok(())
}

#[tokio::test]
async fn an_id_stays_used_through_snapshots_and_restarts() -> Result<()> {
    let mut cluster = Cluster::start(small).await?;
    let leader = cluster.leader().await?;
    let node = cluster.node(leader);
    let nowhere = Peer {
        raft: "127.0.0.1:9".to_owned(),
        client: "127.0.0.1:9".to_owned(),
    };
    // More than one record of folders could name.
    for id in 10..50 {
        add(node, id, &nowhere).await??;
        change(node, remove(id, false)).await??;
    }
    insist(node, open_session(1, 300_000)?).await??;
    let mut seq = 0;
    while node.status().purged < node.status().snapshot.or(Some(1)).map(|at| at.min(100)) {
        seq += 1;
        acquired(node, seq..seq + 1).await?;
        assert!(seq < 5_000, "nothing is purged: {:?}", node.status());
    }
    cluster.same_state().await?;
    for id in cluster.ids() {
        cluster.kill(id).await?;
    }
    for id in [1, 2, 3] {
        cluster.restart(id).await?;
    }
    let leader = cluster.leader().await?;
    for id in [10, 30, 49] {
        refused(
            add(cluster.node(leader), id, &nowhere).await,
            MembershipReason::IdUsed,
            &["removed", "such as 50"],
        )?;
    }
    // One that comes by snapshot, and leads, remembers as well.
    let peer = launch(&mut cluster, 50).await?;
    add(cluster.node(leader), 50, &peer).await??;
    promoted(cluster.node(leader), promote(50, None, true)).await?;
    assert_eq!(transferred(cluster.node(leader), Some(50)).await?, 50);
    assert_eq!(cluster.leader().await?, 50);
    assert!(
        cluster.node(50).status().snapshot.is_some(),
        "it came by snapshot"
    );
    refused(
        add(cluster.node(50), 30, &nowhere).await,
        MembershipReason::IdUsed,
        &["such as 51"],
    )
}

#[tokio::test]
async fn the_leadership_goes_where_it_is_sent() -> Result<()> {
    let cluster = Cluster::start(plain).await?;
    let leader = cluster.leader().await?;
    let heir = cluster.follower().await?;
    // Asked at the node that is to lead: forwarded, and answered by the one that leads no more.
    let to = Some(heir);
    assert_eq!(transferred(cluster.node(heir), to).await?, heir);
    assert_eq!(cluster.leader().await?, heir);
    assert_eq!(transferred(cluster.node(leader), to).await?, heir);
    let moved = transferred(cluster.node(leader), None).await?;
    assert_ne!(moved, heir, "to whoever is ready");
    assert_eq!(cluster.leader().await?, moved);
    Ok(())
}

/// Invoices enough for a snapshot that takes its time on a slow way.
async fn submitted(node: &Node, count: u32) -> Result<()> {
    let invoices: Vec<Command> = (0..count)
        .map(|number| {
            Ok(Command::SubmitInvoice(SubmitInvoice {
                invoice: InvoiceId::new(&format!("due-{number}"))?,
                customer: CustomerId::new(&format!("customer-{number}"))?,
                amount: AmountMinor::new(1_000)?,
                currency: Currency::new("EUR")?,
                due_at: None,
                priority: Priority::default(),
            }))
        })
        .collect::<Result<_>>()?;
    let answers = invoices.into_iter().map(|submit| insist(node, submit));
    for answer in futures::future::join_all(answers).await {
        answer??;
    }
    Ok(())
}

/// Entries without a pause, several at once, until it is dropped.
async fn busy(node: &Node) -> Result<()> {
    async fn call(node: &Node, number: u8) -> Result<()> {
        loop {
            // Whatever the ledger says of a session that nobody opened: it is an entry.
            insist(node, keep_alive(number)).await?.ok();
        }
    }
    let callers = (200..216).map(|number| call(node, number));
    futures::future::try_join_all(callers).await?;
    Ok(())
}

/// Keeps the node busy until more of its log is purged than before.
async fn until_purged(node: &Node) -> Result<()> {
    let before = node.status().purged;
    tokio::select! {
        stopped = busy(node) => stopped,
        purged = eventually("the log is purged", || {
            std::future::ready(node.status().purged > before)
        }) => purged,
    }
}

#[tokio::test]
async fn a_newcomer_catches_up_over_a_slow_way_although_the_log_is_purged_all_the_time()
-> Result<()> {
    let (wires, nets) = wired(1..=3);
    let mut cluster = Cluster::start_through(nets, small).await?;
    let leader = cluster.leader().await?;
    let node = cluster.node(leader).clone();
    insist(&node, open_session(1, 300_000)?).await??;
    submitted(&node, 8_000).await?;
    until_purged(&node).await?;
    let peer = launch(&mut cluster, 4).await?;
    wires[&leader].slow_down(&peer.raft);
    add(&node, 4, &peer).await??;
    // While one snapshot travels, the log grows by more than what several others would leave of it.
    let joins: Result<()> = tokio::select! {
        stopped = busy(&node) => stopped,
        joined = promoted(&node, promote(4, None, true)) => joined,
    };
    joins?;
    wires[&leader].mend();
    // Nothing is held for anybody any more.
    until_purged(&node).await?;
    assert_eq!(cluster.leader().await?, leader);
    cluster.same_state().await
}

/// Whoever was heard from counts for longer than it takes to kill it.
fn remembering(config: &mut NodeConfig) {
    config.election_timeout_max = Duration::from_millis(3_000);
}

#[tokio::test]
async fn the_leadership_does_not_go_to_a_voter_that_was_just_killed() -> Result<()> {
    let mut cluster = Cluster::start(remembering).await?;
    let leader = cluster.leader().await?;
    let dead = cluster.follower().await?;
    insist(cluster.node(leader), open_session(1, 300_000)?).await??;
    cluster.same_state().await?;
    let node = cluster.node(leader).clone();
    let term = node.status().term;
    cluster.kill(dead).await?;
    let to = Change::TransferLeader { to: Some(dead) };
    refused(
        change(&node, to).await,
        MembershipReason::Lags,
        &["start it"],
    )?;
    acquired(&node, 1..5).await?;
    let status = node.status();
    assert_eq!((status.role, status.term), (Role::Leader, term));
    // To anybody: there is one who answers, whoever was heard from last.
    let other = cluster.others(leader);
    assert_eq!(transferred(&node, None).await?, other[0]);
    acquired(cluster.node(other[0]), 5..10).await
}

#[tokio::test]
async fn the_membership_counts_not_the_configured_peers() -> Result<()> {
    let mut cluster = Cluster::start(plain).await?;
    let peer = launch(&mut cluster, 4).await?;
    add(cluster.node(1), 4, &peer).await??;
    let leader = cluster.leader().await?;
    let goes = [1, 2, 3]
        .into_iter()
        .find(|&id| id != leader)
        .context("a follower")?;
    promoted(cluster.node(leader), promote(4, Some(goes), false)).await?;
    cluster.stop(goes).await?;
    let stays = [1, 2, 3]
        .into_iter()
        .find(|id| ![leader, goes].contains(id))
        .context("another follower")?;
    cluster.kill(stays).await?;
    // It starts with a list that names who went, not who came, and calls itself by an address that nobody knows.
    let at = cluster.members[&stays].clone();
    let mut stale = cluster.members.clone();
    stale.remove(&4);
    if let Some(own) = stale.get_mut(&stays) {
        own.raft = "127.0.0.1:9".to_owned();
    }
    let begun = std::time::Instant::now();
    let listener = loop {
        match RealNet.listen(&at.raft).await {
            Ok(listener) => break listener,
            Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    cluster.launch(stays, stale, listener, false).await?;
    let leader = cluster.leader().await?;
    assert_eq!(voters(cluster.node(stays)), voters(cluster.node(leader)));
    insist(cluster.node(stays), open_session(1, 300_000)?).await??;
    if leader != 4 {
        cluster.kill(leader).await?;
        let next = cluster.leader().await?;
        assert!(next == 4 || next == stays);
    }
    acquired(cluster.node(stays), 1..5).await?;
    assert!(cluster.running[&stays].ended().is_none());
    assert_ne!(cluster.node(4).status().role, Role::Learner);
    Ok(())
}

#[tokio::test]
async fn a_change_that_a_dead_leader_left_half_made_is_finished_by_the_next() -> Result<()> {
    let (wires, nets) = wired(1..=4);
    let mut cluster = Cluster::start_through(nets, plain).await?;
    let first = cluster.leader().await?;
    insist(cluster.node(first), open_session(1, 300_000)?).await??;
    let replaced = cluster.follower().await?;
    let peer = launch(&mut cluster, 4).await?;
    add(cluster.node(first), 4, &peer).await??;
    cluster.kill(replaced).await?;
    let leader = cluster.leader().await?;
    let other = cluster
        .ids()
        .into_iter()
        .find(|&id| ![leader, 4].contains(&id));
    let other = other.context("one voter is left")?;
    let node = cluster.node(leader).clone();
    eventually("the learner has caught up", || {
        let status = node.status();
        let learner = status.members.iter().find(|member| member.node == 4);
        std::future::ready(learner.is_some_and(|member| member.matched == status.last_log))
    })
    .await?;
    // Nobody can ask this leader for a vote while it lives, so it stays one.
    for id in [other, 4] {
        wires[&id].cut(&cluster.members[&leader].raft);
    }
    // An entry that names the learner's clients' address is one of the membership. The other voter gets the first one, which
    // is enough to commit it, and no further one; the learner gets none.
    wires[&leader].swallow(&cluster.members[&other].raft, &peer.client, Marked::Arrives);
    wires[&leader].swallow(&peer.raft, &peer.client, Marked::IsLost);
    let before = node.status().last_log.context("a log")?;
    let replace = promote(4, Some(replaced), false);
    let asked = node.clone();
    let changing = replace.clone();
    let stands = tokio::spawn(async move { asked.change(changing).await });
    eventually(
        "the first entry is applied and the second one stands alone",
        || {
            let status = node.status();
            std::future::ready(status.applied > Some(before) && status.last_log > status.applied)
        },
    )
    .await?;
    let status = node.status();
    assert_eq!(
        (status.applied, status.last_log),
        (Some(before + 1), Some(before + 2))
    );
    refused(
        change(&node, remove(4, false)).await,
        MembershipReason::InProgress,
        &["try again"],
    )?;
    eventually(
        "the other voter counts both sets, and knows no more",
        || {
            let known = (
                voters(cluster.node(other)),
                cluster.node(other).status().last_log,
            );
            std::future::ready(known == (vec![1, 2, 3, 4], Some(before + 1)))
        },
    )
    .await?;
    // Whoever holds on to a node keeps its folder.
    stands.abort();
    let _ = stands.await;
    drop(node);
    cluster.kill(leader).await?;
    cluster.restart(replaced).await?;
    // It is needed once more: of the voters before the change, two must agree on who leads.
    let next = cluster.leader_among(&[other, 4]).await?;
    assert_eq!(next, other, "nobody else has the change in its log");
    let left: Vec<u64> = (1..=4).filter(|&id| id != replaced).collect();
    eventually("the change is finished", || {
        let done = [other, 4]
            .iter()
            .all(|&id| voters(cluster.node(id)) == left);
        std::future::ready(done)
    })
    .await?;
    let told = tokio::time::timeout(PATIENCE, cluster.node(replaced).removed()).await?;
    assert!(
        told.contains(&format!("node {replaced} was removed")),
        "{told}"
    );
    cluster.kill(replaced).await?;
    acquired(cluster.node(4), 1..5).await?;
    // The one that began it finds its second entry made by somebody else, and follows.
    for id in [leader, other, 4] {
        wires[&id].mend();
    }
    cluster.restart(leader).await?;
    cluster.leader().await?;
    cluster.same_state().await?;
    assert_eq!(voters(cluster.node(leader)), left);
    // Asked again, as after a lost answer.
    change(cluster.node(leader), replace).await??;
    Ok(())
}
