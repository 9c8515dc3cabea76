//! Many requests over one stream: who shares it, what its end proves, and what never has to wait.

use std::time::Duration;

use billing_client::{AcquireOptions, Failure, FencingToken, Rejection, SessionOptions, v1};
use futures::{FutureExt, future::join_all};

use crate::fake::{Fake, Fault, eventually, soon, word};

const TTL: Duration = Duration::from_secs(60);

#[tokio::test]
async fn all_requests_to_a_node_share_one_stream() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let session = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let ids: Vec<String> = (0..50).map(|nth| format!("inv-{nth}")).collect();
    let acquired = ids
        .iter()
        .map(|id| session.acquire(id, AcquireOptions::default()));
    let guards = join_all(acquired)
        .await
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    for guard in guards {
        assert!(guard.release().await?);
    }
    assert_eq!(fake.cluster.pipelines(), [0], "opened once");
    assert_eq!(fake.cluster.count("AcquireLease"), 50);
    Ok(())
}

#[tokio::test]
async fn a_client_may_hold_several_connections_to_a_node() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.builder().connections(3).build()?;
    for _ in 0..9 {
        client.get_lease("inv-7", false).await?;
    }
    assert_eq!(fake.cluster.pipelines(), [0, 0, 0]);
    Ok(())
}

#[tokio::test]
async fn a_node_without_pipeline_is_spoken_to_call_by_call() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    fake.cluster.make_old();
    let client = fake.client()?;
    // Not even a request that is never repeated notices.
    let refused = client.begin_charge("inv-7", FencingToken(1), None).await;
    assert!(matches!(refused, Err(Failure::Rejected(_))), "{refused:?}");
    let session = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let guard = session.acquire("inv-7", AcquireOptions::default()).await?;
    assert!(guard.release().await?);
    assert_eq!(fake.cluster.count("BeginCharge"), 1);
    assert!(fake.cluster.pipelines().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_stream_that_breaks_leaves_in_doubt_what_was_on_it_and_no_more() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.builder().attempt(TTL).deadline(TTL).build()?;
    client.get_lease("inv-7", false).await?;
    // Two are on the stream when it breaks under a third.
    fake.cluster.fail_next("BeginCharge", [Fault::Hang]);
    let begin = client.begin_charge("inv-7", FencingToken(1), None);
    let read = client.get_invoice("inv-7", false);
    tokio::pin!(begin, read);
    fake.cluster.fail_always("GetInvoice", Some(Fault::Hang));
    let both_asked = || async {
        eventually("both are on their way", || {
            Ok(fake.cluster.count("BeginCharge") == 1 && fake.cluster.count("GetInvoice") >= 1)
        })
        .await
    };
    tokio::select! {
        begun = &mut begin => panic!("{begun:?}"),
        read = &mut read => panic!("{read:?}"),
        asked = both_asked() => asked?,
    }
    fake.cluster.fail_always("GetInvoice", None);
    fake.cluster.fail_next("GetLease", [Fault::LoseReply]);
    let (lease, begun, read) = soon("the end of all three", async {
        tokio::join!(client.get_lease("inv-7", false), begin, read)
    })
    .await?;
    assert!(lease?.is_none(), "a read is repeated");
    assert_eq!(
        begun.as_ref().map_err(word).err(),
        Some("unknown"),
        "never repeated: {begun:?}"
    );
    assert_eq!(fake.cluster.count("BeginCharge"), 1);
    let read = read.map_err(|failure| failure.rejection().cloned());
    assert!(
        matches!(read, Err(Some(Rejection::NotFound { .. }))),
        "its repeat was answered: {read:?}"
    );
    assert!(fake.cluster.pipelines().len() >= 2, "another stream");
    Ok(())
}

#[tokio::test]
async fn the_leader_that_an_answer_names_gets_the_next_request_on_a_stream_of_its_own()
-> anyhow::Result<()> {
    let fake = Fake::start(3).await?;
    let client = fake.client()?;
    let session = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let before = fake.cluster.pipelines();
    let next = (before[0] + 1) % 3;
    fake.cluster.set_hint(Some(&fake.addresses[next]));
    let first = session.acquire("inv-1", AcquireOptions::default()).await?;
    let second = session.acquire("inv-2", AcquireOptions::default()).await?;
    assert_eq!(fake.cluster.pipelines(), [before[0], next]);
    let calls = fake.cluster.calls();
    assert_eq!(calls.last(), Some(&(next, "AcquireLease")));
    // The stream that nobody needs any more still carries what was given on it.
    assert!(first.release().await? && second.release().await?);
    Ok(())
}

#[tokio::test]
async fn a_beat_overtakes_whatever_else_waits_for_its_turn() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.builder().attempt(TTL).deadline(TTL).build()?;
    let short = Duration::from_secs(5);
    let session = client
        .open_session(SessionOptions::new("ana", short))
        .await?;
    // Far more than may be on their way, and none of them is answered.
    fake.cluster.fail_always("GetLease", Some(Fault::Hang));
    let reads: Vec<_> = (0..6_000)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get_lease("inv-7", false).await })
        })
        .collect();
    let beats = fake.cluster.count("KeepAlive");
    eventually("two beats", || {
        Ok(fake.cluster.count("KeepAlive") >= beats + 2)
    })
    .await?;
    assert!(session.is_valid());
    assert!(
        fake.cluster.count("GetLease") < 6_000,
        "the rest waits in this process"
    );
    assert_eq!(fake.cluster.pipelines(), [0]);
    reads.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

#[tokio::test]
async fn who_gives_up_waiting_for_a_lease_leaves_its_queue() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let session = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let held = session.acquire("inv-7", AcquireOptions::default()).await?;
    let waits = session.acquire("inv-7", AcquireOptions::wait(TTL));
    tokio::pin!(waits);
    let queued = eventually("it stands in the queue", || {
        Ok(fake.cluster.waiters("inv-7")? == 1)
    });
    tokio::select! {
        granted = &mut waits => panic!("{granted:?}"),
        queued = queued => queued?,
    }
    // Hundreds of others wait too; a release is not behind them.
    let guard = soon(
        "another lease meanwhile",
        session.acquire("inv-8", AcquireOptions::default()),
    )
    .await??;
    assert!(soon("a release meanwhile", guard.release()).await??);
    drop(waits.now_or_never());
    drop(held);
    Ok(())
}

#[tokio::test]
async fn a_dropped_wait_is_withdrawn() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let session = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let _held = session.acquire("inv-7", AcquireOptions::default()).await?;
    // Without the session's own withdrawal: it fails for as long as this test looks.
    fake.cluster
        .fail_always("ReleaseLeases", Some(Fault::NotApplied));
    let waiting = {
        let session = session.clone();
        tokio::spawn(async move { session.acquire("inv-7", AcquireOptions::wait(TTL)).await })
    };
    eventually("it stands in the queue", || {
        Ok(fake.cluster.waiters("inv-7")? == 1)
    })
    .await?;
    waiting.abort();
    eventually("it left the queue", || {
        Ok(fake.cluster.waiters("inv-7")? == 0)
    })
    .await
}

#[tokio::test]
async fn the_last_client_takes_its_stream_along() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    client.get_lease("inv-7", false).await?;
    assert_eq!(fake.cluster.pipelines_ended(), 0);
    drop(client);
    eventually("ended", || Ok(fake.cluster.pipelines_ended() == 1)).await
}

#[tokio::test]
async fn a_request_beyond_every_bound_is_not_sent_and_breaks_nothing() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    client.get_lease("inv-7", false).await?;
    let huge = "x".repeat(5 << 20);
    let refused = client.get_lease(&huge, false).await;
    assert_eq!(refused.as_ref().map_err(word).err(), Some("not applied"));
    client.get_lease("inv-7", false).await?;
    assert_eq!(fake.cluster.pipelines(), [0]);
    Ok(())
}

#[tokio::test]
async fn a_batch_gives_a_guard_for_each_and_says_who_holds_the_others() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let ana = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let ben = client.open_session(SessionOptions::new("ben", TTL)).await?;
    let held = ben.acquire("inv-2", AcquireOptions::default()).await?;
    let ids = ["inv-1", "inv-2", "inv-3", "two words"];
    let mut results = ana
        .acquire_each(&ids[..3], AcquireOptions::default())
        .await?;
    assert_eq!(results.len(), 3);
    assert!(
        matches!(&results[1], Err(Failure::Rejected(Rejection::HeldByOther { holder, .. })) if holder.as_str() == "ben"),
        "{:?}",
        results[1]
    );
    let third = results.pop().transpose()?;
    assert_eq!(
        third.as_ref().map(|guard| guard.invoice_id()),
        Some("inv-3")
    );
    drop((results, third));
    eventually("dropped guards are given back", || {
        Ok(fake.cluster.lease("inv-1")?.is_none() && fake.cluster.lease("inv-3")?.is_none())
    })
    .await?;
    let none: [&str; 0] = [];
    assert!(
        ana.acquire_each(&none, AcquireOptions::default())
            .await?
            .is_empty()
    );
    let many = vec!["inv-1"; 1_001];
    let refused = ana.acquire_each(&many, AcquireOptions::default()).await;
    assert!(
        matches!(&refused, Err(Failure::Rejected(Rejection::InvalidArgument { field, .. })) if field == "items"),
        "{refused:?}"
    );
    drop(held);
    Ok(())
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_the_same_batch_when_repeated() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let item = |id: &str| v1::AcquireLeaseRequest {
        invoice_id: id.into(),
        holder: "ana".into(),
        ttl_ms: 30_000,
        ..Default::default()
    };
    // The first node's answer to one item breaks the stream with both.
    fake.cluster.fail_next("AcquireLeases", [Fault::HangAfter]);
    let client_quick = fake.builder().attempt(Duration::from_millis(200)).build()?;
    let granted = client_quick
        .acquire_leases(vec![item("inv-1"), item("inv-2")])
        .await?
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let leases: Vec<v1::Lease> = granted.into_iter().filter_map(|one| one.lease).collect();
    assert_eq!(leases.len(), 2, "the repeat got the same leases");
    let renewed = client
        .renew_leases(
            leases
                .iter()
                .map(|lease| v1::RenewLeaseRequest {
                    invoice_id: lease.invoice_id.clone(),
                    token: lease.token,
                    ttl_ms: 60_000,
                })
                .collect(),
        )
        .await?;
    assert!(
        renewed
            .iter()
            .all(|one| matches!(one, Ok(lease) if lease.expires_in_ms > 30_000)),
        "{renewed:?}"
    );
    let release = |lease: &v1::Lease| v1::ReleaseLeaseRequest {
        invoice_id: lease.invoice_id.clone(),
        token: lease.token,
        ..Default::default()
    };
    let released = client
        .release_leases(leases.iter().map(release).collect())
        .await?;
    assert!(
        released.iter().all(|one| matches!(one, Ok(true))),
        "{released:?}"
    );
    Ok(())
}
