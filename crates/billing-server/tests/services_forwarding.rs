//! Three nodes: any of them answers any call, says who leads, and waits on behalf of whoever called it.

mod common;

use std::process::Command;

use anyhow::{Context, Result};
use billing_core::{InvoiceId, Ledger, Rejection};
use billing_proto::v1;
use billing_server::node::Consistency;
use common::{Cluster, acquire, lease, refused, release};
use tonic::Code;
use tonic::metadata::MetadataMap;

fn leader_named(metadata: &MetadataMap) -> Option<(u64, String)> {
    let id = metadata
        .get("billing-leader-id")?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    let address = metadata
        .get("billing-leader-address")?
        .to_str()
        .ok()?
        .to_owned();
    Some((id, address))
}

#[tokio::test]
async fn the_leader_says_how_far_each_log_reaches_and_a_follower_does_not_pretend() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let (leader, followers) = cluster.leader_and_followers().await?;
    let matched = |at: usize| {
        let operators = cluster.operators(at);
        async move {
            let status = operators?.get_status(v1::GetStatusRequest {}).await?;
            let status = status.into_inner();
            let reached: Vec<u64> = status.members.iter().map(|one| one.matched_index).collect();
            anyhow::Ok((status.last_log_index, reached))
        }
    };
    common::until(|| async {
        let (last, reached) = matched(leader).await?;
        Ok(last > 0 && reached == [last; 3])
    })
    .await?;
    assert_eq!(matched(followers[0]).await?.1, [0; 3]);
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn every_node_answers_and_every_answer_names_the_leader() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let (leader, followers) = cluster.leader_and_followers().await?;
    let expected = Some((leader as u64 + 1, cluster.addresses[leader].clone()));
    let (mut first, mut second) = (cluster.leases(followers[0])?, cluster.leases(followers[1])?);
    let granted = first.acquire_lease(acquire("inv-7", "ana")).await?;
    assert_eq!(leader_named(granted.metadata()), expected);
    let granted = lease(granted)?;

    let refusal = second.acquire_lease(acquire("inv-7", "ben")).await;
    let status = refusal.as_ref().err().context("granted twice")?;
    assert_eq!(
        leader_named(status.metadata()),
        expected,
        "errors name it too"
    );
    assert!(matches!(
        refused(refusal, Code::Aborted),
        Rejection::HeldByOther { .. }
    ));

    // Linearizable on a follower: what was answered anywhere is seen.
    let ask = v1::GetLeaseRequest {
        invoice_id: "inv-7".into(),
        stale_ok: false,
    };
    for at in 0..3 {
        let seen = cluster.leases(at)?.get_lease(ask.clone()).await?;
        assert_eq!(leader_named(seen.metadata()), expected);
        assert_eq!(
            seen.into_inner().lease.context("held")?.token,
            granted.token,
            "node {at}"
        );
    }
    let mut leading = cluster.leases(leader)?;
    assert!(
        leading
            .release_lease(release(&granted))
            .await?
            .get_ref()
            .was_current
    );
    for at in 0..3 {
        assert!(
            cluster
                .leases(at)?
                .get_lease(ask.clone())
                .await?
                .get_ref()
                .lease
                .is_none()
        );
    }
    let history = v1::ReadAuditLogRequest {
        from_index: 0,
        limit: 0,
    };
    let mut records = cluster
        .operators(followers[0])?
        .read_audit_log(history)
        .await?
        .into_inner();
    let mut actors = Vec::new();
    while let Some(record) = records.message().await? {
        actors.extend(record.record.map(|record| record.actor));
    }
    assert!(
        actors.contains(&"ana@127.0.0.1".to_owned()),
        "who asked a follower stands in the log: {actors:?}"
    );
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn who_waits_on_one_node_is_granted_by_a_release_on_another() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let (leader, followers) = cluster.leader_and_followers().await?;
    let held = lease(
        cluster
            .leases(leader)?
            .acquire_lease(acquire("inv-7", "ana"))
            .await?,
    )?;
    let mut waiting = cluster.leases(followers[0])?;
    let waits = tokio::spawn(async move {
        let wait = v1::AcquireLeaseRequest {
            wait_ms: 60_000,
            ..acquire("inv-7", "ben")
        };
        waiting.acquire_lease(wait).await
    });
    common::until(|| async { Ok(cluster.waiters("inv-7").await? == 1) }).await?;
    cluster
        .leases(followers[1])?
        .release_lease(release(&held))
        .await?;
    let granted = lease(tokio::time::timeout(common::PATIENCE, waits).await???)?;
    assert_eq!(granted.holder, "ben");
    assert!(granted.token > held.token);
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_cancelled_call_leaves_the_queue_and_is_never_granted() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let (_, followers) = cluster.leader_and_followers().await?;
    let held = lease(
        cluster
            .leases(followers[1])?
            .acquire_lease(acquire("inv-7", "ana"))
            .await?,
    )?;
    let mut waiting = cluster.leases(followers[0])?;
    let waits = tokio::spawn(async move {
        let wait = v1::AcquireLeaseRequest {
            wait_ms: 60_000,
            ..acquire("inv-7", "ben")
        };
        waiting.acquire_lease(wait).await
    });
    common::until(|| async { Ok(cluster.waiters("inv-7").await? == 1) }).await?;
    waits.abort();
    common::until(|| async { Ok(cluster.waiters("inv-7").await? == 0) }).await?;
    cluster
        .leases(followers[1])?
        .release_lease(release(&held))
        .await?;
    let ask = v1::GetLeaseRequest {
        invoice_id: "inv-7".into(),
        stale_ok: false,
    };
    assert!(
        cluster
            .leases(0)?
            .get_lease(ask)
            .await?
            .get_ref()
            .lease
            .is_none()
    );
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn who_waits_on_a_node_that_shuts_down_keeps_its_place() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let (leader, followers) = cluster.leader_and_followers().await?;
    let goes = followers[0];
    let held = lease(
        cluster
            .leases(leader)?
            .acquire_lease(acquire("inv-7", "ana"))
            .await?,
    )?;
    let wait = v1::AcquireLeaseRequest {
        request_id: vec![7; 16],
        wait_ms: 60_000,
        ..acquire("inv-7", "ben")
    };
    let (mut waiting, asked) = (cluster.leases(goes)?, wait.clone());
    let waits = tokio::spawn(async move { waiting.acquire_lease(asked).await });
    common::until(|| async { Ok(cluster.waiters("inv-7").await? == 1) }).await?;
    // It answers what it was asked and forwards what it has queued: a withdrawal would be applied by the end of this.
    cluster.nodes.remove(goes).finish(common::PATIENCE).await;
    let status = waits.await?.err().context("granted")?;
    assert_eq!(status.code(), Code::Unknown, "{status:?}");
    let id = InvoiceId::new("inv-7")?;
    let stays = cluster.nodes.first().context("two run")?.node();
    let look = |ledger: &Ledger| ledger.invoice_view(&id).map(|view| view.waiters);
    let (waiters, _) = stays.read(Consistency::Linearizable, look).await?;
    assert_eq!(waiters, Some(1), "it stands where it stood");
    // The same request at another node finds its place.
    let mut again = cluster.leases(followers[1])?;
    let waits = tokio::spawn(async move { again.acquire_lease(wait).await });
    cluster
        .leases(leader)?
        .release_lease(release(&held))
        .await?;
    let granted = lease(tokio::time::timeout(common::PATIENCE, waits).await???)?;
    assert_eq!(granted.holder, "ben");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_wait_that_runs_out_is_refused_with_the_holder() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let (_, followers) = cluster.leader_and_followers().await?;
    cluster
        .leases(0)?
        .acquire_lease(acquire("inv-7", "ana"))
        .await?;
    let wait = v1::AcquireLeaseRequest {
        wait_ms: 300,
        ..acquire("inv-7", "ben")
    };
    match refused(
        cluster.leases(followers[0])?.acquire_lease(wait).await,
        Code::Aborted,
    ) {
        Rejection::HeldByOther { holder, .. } => assert_eq!(holder.as_str(), "ana"),
        other => panic!("{other:?}"),
    }
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_leader_that_shuts_down_hands_over_and_the_others_go_on() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let (leader, _) = cluster.leader_and_followers().await?;
    let held = lease(
        cluster
            .leases(leader)?
            .acquire_lease(acquire("inv-7", "ana"))
            .await?,
    )?;
    let node = cluster.nodes.remove(leader);
    tokio::time::timeout(common::PATIENCE, node.finish(common::PATIENCE)).await?;
    let other = (leader + 1) % 3;
    common::until(|| async {
        let answer = cluster.leases(other)?.release_lease(release(&held)).await;
        Ok(answer.is_ok())
    })
    .await?;
    cluster.stop().await;
    Ok(())
}

/// A client without generated code. Says that it skips where Python or grpcio is missing.
#[tokio::test]
async fn python_learns_the_messages_from_the_server_and_uses_them_on_every_node() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/python_reflection.py"
    );
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(&python);
    command.arg(script).args(&cluster.addresses);
    let ran = tokio::task::spawn_blocking(move || command.output()).await?;
    match ran {
        Err(error) => eprintln!("SKIPPED: {python} cannot be run: {error}"),
        Ok(ran) if ran.status.code() == Some(77) => {
            eprintln!("SKIPPED: {}", String::from_utf8_lossy(&ran.stderr));
        }
        Ok(ran) => {
            let (said, failed) = (
                String::from_utf8_lossy(&ran.stdout),
                String::from_utf8_lossy(&ran.stderr),
            );
            assert!(ran.status.success(), "{said}{failed}");
            assert_eq!(said.lines().count(), 3, "one line per node: {said}");
        }
    }
    cluster.stop().await;
    Ok(())
}
