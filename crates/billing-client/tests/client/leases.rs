//! What is held, given back, taken back and lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use billing_client::{AcquireOptions, Failure, Loss, Rejection, SessionOptions, v1};
use billing_env::Env;

use crate::fake::{Fake, Fault, Laptop, eventually, soon};

const TTL: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn threads_of_one_process_exclude_each_other() -> anyhow::Result<()> {
    const THREADS: usize = 16;
    const ROUNDS: usize = 12;
    const INVOICES: usize = 3;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let fake = runtime.block_on(Fake::start(2))?;
    let session = runtime.block_on(async {
        let client = fake.builder().deadline(30 * SECOND).build()?;
        anyhow::Ok(
            client
                .open_session(SessionOptions::new("one process", TTL))
                .await?,
        )
    })?;
    let inside: Arc<[AtomicUsize; INVOICES]> = Arc::default();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (session, inside, handle) =
                (session.clone(), inside.clone(), runtime.handle().clone());
            std::thread::spawn(move || -> anyhow::Result<Vec<u64>> {
                let mut tokens = Vec::new();
                for round in 0..ROUNDS {
                    let nth = (thread + round) % INVOICES;
                    let id = format!("inv-{nth}");
                    let options = AcquireOptions::wait(60 * SECOND);
                    let guard = handle.block_on(session.acquire(&id, options))?;
                    anyhow::ensure!(
                        inside[nth].fetch_add(1, Ordering::SeqCst) == 0,
                        "two threads hold inv-{nth}"
                    );
                    std::thread::yield_now();
                    inside[nth].fetch_sub(1, Ordering::SeqCst);
                    tokens.push(guard.token().0);
                    handle.block_on(guard.release())?;
                }
                Ok(tokens)
            })
        })
        .collect();
    let mut tokens = Vec::new();
    for thread in threads {
        tokens.extend(
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??,
        );
    }
    let granted = tokens.len();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(
        (granted, tokens.len()),
        (THREADS * ROUNDS, THREADS * ROUNDS),
        "every grant has a token of its own"
    );
    Ok(())
}

#[tokio::test]
async fn an_acquire_whose_answer_is_lost_is_asked_again_and_gets_the_same_lease()
-> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let session = fake
        .client()?
        .open_session(SessionOptions::new("ana", TTL))
        .await?;
    let first = session.acquire("inv-1", AcquireOptions::default()).await?;
    for fault in [Fault::LoseReply, Fault::OutcomeUnknown, Fault::HangAfter] {
        fake.cluster.fail_next("AcquireLease", [fault.clone()]);
        let before = fake.cluster.read(|ledger| ledger.token_last());
        let guard = soon(
            "the repeat",
            session.acquire("inv-2", AcquireOptions::default()),
        )
        .await??;
        assert_eq!(guard.token().0, before.0 + 1, "{fault:?}: granted once");
        guard.release().await?;
    }
    assert!(first.is_valid());
    Ok(())
}

#[tokio::test]
async fn an_acquire_that_nobody_answered_holds_nothing_for_long() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake
        .builder()
        .attempt(Duration::from_millis(100))
        .deadline(Duration::from_millis(250))
        .build()?;
    let session = client.open_session(SessionOptions::new("ana", TTL)).await?;
    fake.cluster
        .fail_always("AcquireLease", Some(Fault::HangAfter));
    let lost = session.acquire("inv-7", AcquireOptions::default()).await;
    assert!(matches!(lost, Err(Failure::Unknown(_))), "{lost:?}");
    fake.cluster.fail_always("AcquireLease", None);
    // Its session lives on for 30 s: without the withdrawal, so would the lease.
    eventually("withdrawn by its seq", || {
        Ok(fake.cluster.lease("inv-7")?.is_none())
    })
    .await?;
    assert_eq!(fake.cluster.count("ReleaseLeases"), 1);
    soon(
        "the invoice is free",
        session.acquire("inv-7", AcquireOptions::default()),
    )
    .await??
    .release()
    .await?;
    Ok(())
}

#[tokio::test]
async fn who_exits_after_a_lost_acquire_can_wait_until_nothing_is_held() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake
        .builder()
        .attempt(Duration::from_millis(100))
        .deadline(Duration::from_millis(250))
        .build()?;
    assert!(client.given_back(SECOND).await, "nothing was lost yet");
    let lose_one = async || {
        fake.cluster
            .fail_always("AcquireLease", Some(Fault::HangAfter));
        let options = AcquireOptions::default().ttl(TTL);
        let lost = client.acquire("inv-7", "ana", options).await;
        assert!(matches!(lost, Err(Failure::Unknown(_))), "{lost:?}");
    };
    lose_one().await;
    assert!(client.given_back(10 * SECOND).await);
    assert!(fake.cluster.lease("inv-7")?.is_none());
    // And is told when it was in vain.
    fake.cluster
        .fail_always("ReleaseLease", Some(Fault::LoseRequest));
    lose_one().await;
    assert!(!client.given_back(10 * SECOND).await);
    assert!(fake.cluster.lease("inv-7")?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_request_that_was_lost_on_the_way_is_refused_when_it_comes_late() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake
        .builder()
        .attempt(Duration::from_millis(100))
        .deadline(Duration::from_millis(150))
        .build()?;
    let session = client.open_session(SessionOptions::new("ana", TTL)).await?;
    // Arrives long after everybody has given up on it.
    fake.cluster.fail_next(
        "AcquireLease",
        [Fault::Delay(Duration::from_millis(900)), Fault::LoseRequest],
    );
    fake.cluster
        .fail_always("AcquireLease", Some(Fault::LoseRequest));
    let lost = session.acquire("inv-7", AcquireOptions::default()).await;
    assert!(matches!(lost, Err(Failure::Unknown(_))), "{lost:?}");
    eventually("withdrawn", || Ok(fake.cluster.count("ReleaseLeases") == 1)).await?;
    let late = billing_core::AcquireLease {
        invoice: billing_core::InvoiceId::new("inv-7")?,
        requester: billing_core::Requester::Session {
            session: session.id(),
            seq: billing_core::Seq::FIRST,
            done_below: 1,
            ttl: None,
        },
        wait: billing_core::WaitMs::new(0)?,
    };
    eventually("the withdrawal is in the ledger", || {
        let refused = fake
            .cluster
            .apply(billing_core::Command::AcquireLease(late.clone()));
        Ok(matches!(refused, Err(Rejection::LeaseEnded { .. })))
    })
    .await?;
    assert_eq!(fake.cluster.lease("inv-7")?, None);
    Ok(())
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_no_waiter_behind() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let ana = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let ben = client.open_session(SessionOptions::new("ben", TTL)).await?;
    let held = ana.acquire("inv-7", AcquireOptions::default()).await?;
    {
        let waiting = ben.acquire("inv-7", AcquireOptions::wait(60 * SECOND));
        tokio::pin!(waiting);
        let joined = eventually("ben stands in the queue", || {
            Ok(fake.cluster.waiters("inv-7")? == 1)
        });
        tokio::select! {
            granted = &mut waiting => anyhow::bail!("while ana holds it: {granted:?}"),
            joined = joined => joined?,
        }
    }
    eventually("withdrawn", || Ok(fake.cluster.waiters("inv-7")? == 0)).await?;
    held.release().await?;
    let cyn = client.open_session(SessionOptions::new("cyn", TTL)).await?;
    assert!(
        cyn.try_acquire("inv-7").await?.is_some(),
        "nobody got it whom nobody waits for"
    );
    Ok(())
}

#[tokio::test]
async fn a_waiter_whose_connection_breaks_asks_anew_and_is_served() -> anyhow::Result<()> {
    let fake = Fake::start(2).await?;
    let client = fake.client()?;
    let ana = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let ben = client.open_session(SessionOptions::new("ben", TTL)).await?;
    let held = ana.acquire("inv-7", AcquireOptions::default()).await?;
    fake.cluster.fail_next("AcquireLease", [Fault::LoseWaiter]);
    let waiting = tokio::spawn(async move {
        ben.acquire("inv-7", AcquireOptions::wait(60 * SECOND))
            .await
    });
    // The first request, its repeat (refused: withdrawn), and the one that waits.
    eventually("asked anew", || Ok(fake.cluster.count("AcquireLease") == 4)).await?;
    eventually("in the queue again", || {
        Ok(fake.cluster.waiters("inv-7")? == 1)
    })
    .await?;
    held.release().await?;
    let guard = soon("ben's turn", waiting).await???;
    assert_eq!(guard.holder(), "ben");
    Ok(())
}

#[tokio::test]
async fn what_is_held_by_another_is_refused_with_the_holder() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let ana = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let ben = client.open_session(SessionOptions::new("ben", TTL)).await?;
    let held = ana.acquire("inv-7", AcquireOptions::default()).await?;
    match ben.acquire("inv-7", AcquireOptions::default()).await {
        Err(Failure::Rejected(Rejection::HeldByOther {
            holder,
            expires_in_ms,
            ..
        })) => {
            assert_eq!(holder.as_str(), "ana");
            assert!(
                expires_in_ms > 20_000 && expires_in_ms <= 30_000,
                "{expires_in_ms}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(ben.try_acquire("inv-7").await?.is_none());
    assert!(
        ana.try_acquire("inv-7").await?.is_none(),
        "another thread of the same process is somebody else"
    );
    assert_eq!(
        client
            .get_lease("inv-7", false)
            .await?
            .map(|lease| lease.token),
        Some(held.token().0)
    );
    Ok(())
}

#[tokio::test]
async fn a_dropped_guard_gives_its_lease_back_and_a_settled_one_costs_no_call() -> anyhow::Result<()>
{
    let fake = Fake::start(1).await?;
    let session = fake
        .client()?
        .open_session(SessionOptions::new("ana", TTL))
        .await?;
    drop(session.acquire("inv-7", AcquireOptions::default()).await?);
    eventually("given back", || Ok(fake.cluster.lease("inv-7")?.is_none())).await?;
    assert_eq!(fake.cluster.count("ReleaseLeases"), 1);

    let settled = session.acquire("inv-8", AcquireOptions::default()).await?;
    settled.settled();
    // Chores are done in order: once the next one is done, one for inv-8 would have been.
    drop(session.acquire("inv-9", AcquireOptions::default()).await?);
    eventually("given back", || Ok(fake.cluster.lease("inv-9")?.is_none())).await?;
    assert_eq!(fake.cluster.count("ReleaseLeases"), 2);
    assert!(fake.cluster.lease("inv-8")?.is_some());
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_given_back_now_is_given_back_later() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake
        .builder()
        .attempt(Duration::from_millis(250))
        .deadline(Duration::from_millis(500))
        .build()?;
    let session = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let dropped = session.acquire("inv-1", AcquireOptions::default()).await?;
    let released = session.acquire("inv-2", AcquireOptions::default()).await?;
    fake.cluster
        .fail_always("ReleaseLeases", Some(Fault::NotApplied));
    fake.cluster
        .fail_always("ReleaseLease", Some(Fault::NotApplied));
    drop(dropped);
    let failed = released.release().await;
    assert!(matches!(failed, Err(Failure::NotApplied(_))), "{failed:?}");
    eventually("tried more than once", || {
        Ok(fake.cluster.count("ReleaseLeases") > 2)
    })
    .await?;
    assert!(fake.cluster.lease("inv-1")?.is_some() && fake.cluster.lease("inv-2")?.is_some());
    fake.cluster.fail_always("ReleaseLeases", None);
    eventually("both given back", || {
        Ok(fake.cluster.lease("inv-1")?.is_none() && fake.cluster.lease("inv-2")?.is_none())
    })
    .await
}

#[tokio::test]
async fn a_lease_of_its_own_ttl_ends_with_it_and_is_renewed_from_when_that_was_asked()
-> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let laptop = Laptop::new();
    let client = fake.builder().env(laptop.env()).build()?;
    let session = client
        .open_session(SessionOptions::new("ana", 300 * SECOND))
        .await?;
    let before = client.env().clock.boottime();
    let guard = session
        .acquire("inv-7", AcquireOptions::default().ttl(10 * SECOND))
        .await?;
    // 10 s minus twice 1 % minus 100 ms, from before it was asked for.
    assert!(guard.valid_until() >= before + Duration::from_millis(9_700));
    assert!(guard.remaining() <= Duration::from_millis(9_700));
    let renewed_at = client.env().clock.boottime();
    let until = guard.renew(20 * SECOND).await?;
    assert!(until >= renewed_at + Duration::from_millis(19_500) && until == guard.valid_until());
    fake.cluster
        .fail_next("RenewLease", [Fault::NotApplied, Fault::LoseReply]);
    guard.renew(20 * SECOND).await?;
    laptop.sleep_through(20 * SECOND);
    assert_eq!(
        guard.loss(),
        Some(Loss::Expired),
        "the stuck thread's lease"
    );
    assert!(session.is_valid(), "the process is well");
    assert_eq!(soon("the signal", guard.lost()).await?, Loss::Expired);
    let before = fake.cluster.count("RenewLease");
    assert!(guard.renew(20 * SECOND).await.is_err(), "lost is lost");
    assert_eq!(fake.cluster.count("RenewLease"), before, "not even asked");
    Ok(())
}

#[tokio::test]
async fn a_lease_granted_after_a_wait_is_renewed_before_it_is_handed_out() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let ana = client.open_session(SessionOptions::new("ana", TTL)).await?;
    let ben = client.open_session(SessionOptions::new("ben", TTL)).await?;
    let held = ana.acquire("inv-7", AcquireOptions::default()).await?;
    let waiting = tokio::spawn(async move {
        ben.acquire("inv-7", AcquireOptions::wait(60 * SECOND).ttl(2 * SECOND))
            .await
    });
    eventually("ben stands in the queue", || {
        Ok(fake.cluster.waiters("inv-7")? == 1)
    })
    .await?;
    client.env().clock.sleep(Duration::from_millis(1_200)).await;
    held.release().await?;
    let guard = soon("ben's turn", waiting).await???;
    // Counted from when it was asked for, less than 0.7 s would be left.
    assert!(
        guard.remaining() > Duration::from_millis(1_400),
        "{:?}",
        guard.remaining()
    );
    assert_eq!(fake.cluster.count("RenewLease"), 1);
    Ok(())
}

#[tokio::test]
async fn a_lease_that_somebody_forced_away_is_lost_at_its_renewal() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let session = fake
        .client()?
        .open_session(SessionOptions::new("ana", TTL))
        .await?;
    let guard = session
        .acquire("inv-7", AcquireOptions::default().ttl(10 * SECOND))
        .await?;
    fake.cluster
        .apply(billing_core::Command::ForceRelease(
            billing_core::ForceRelease {
                invoice: billing_core::InvoiceId::new("inv-7")?,
                reason: billing_core::Evidence::new("stuck")?,
            },
        ))
        .map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
    let refused = guard.renew(10 * SECOND).await;
    assert!(matches!(refused, Err(Failure::Rejected(_))), "{refused:?}");
    assert!(
        matches!(guard.loss(), Some(Loss::Ended(_))),
        "{:?}",
        guard.loss()
    );
    assert!(session.is_valid());
    Ok(())
}

#[tokio::test]
async fn a_plain_lease_needs_no_session_and_takes_back_what_was_not_answered() -> anyhow::Result<()>
{
    let fake = Fake::start(1).await?;
    let client = fake
        .builder()
        .attempt(Duration::from_millis(100))
        .deadline(Duration::from_millis(250))
        .build()?;
    let options = AcquireOptions::default().ttl(30 * SECOND);
    fake.cluster.fail_next("AcquireLease", [Fault::LoseReply]);
    let guard = client.acquire("inv-7", "script", options).await?;
    assert_eq!(
        (guard.holder(), guard.token().0),
        ("script", fake.cluster.read(|ledger| ledger.token_last()).0)
    );
    guard.renew(60 * SECOND).await?;
    assert!(guard.remaining() > 50 * SECOND);
    assert!(guard.release().await?, "it was current");

    drop(client.acquire("inv-8", "script", options).await?);
    eventually("given back", || Ok(fake.cluster.lease("inv-8")?.is_none())).await?;

    fake.cluster
        .fail_always("AcquireLease", Some(Fault::HangAfter));
    let lost = client.acquire("inv-9", "script", options).await;
    assert!(matches!(lost, Err(Failure::Unknown(_))), "{lost:?}");
    eventually("taken back", || Ok(fake.cluster.lease("inv-9")?.is_none())).await
}

#[tokio::test]
async fn a_claim_leases_what_is_due_and_a_lost_one_is_withdrawn_whole() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake
        .builder()
        .env(Env::real())
        .attempt(Duration::from_millis(100))
        .deadline(Duration::from_millis(250))
        .build()?;
    let invoices = (0..10).map(|nth| v1::Invoice {
        invoice_id: format!("inv-{nth}"),
        customer_id: "cus-1".into(),
        amount_minor: 100,
        currency: "EUR".into(),
        ..Default::default()
    });
    client.submit_invoices(invoices, |_| {}).await?;
    let session = client.open_session(SessionOptions::new("ana", TTL)).await?;

    fake.cluster.fail_next("ClaimInvoices", [Fault::LoseReply]);
    let claimed = session.claim(4).await?;
    let ids: Vec<&str> = claimed
        .invoices
        .iter()
        .map(|claimed| claimed.guard.invoice_id())
        .collect();
    assert_eq!(
        ids,
        ["inv-0", "inv-1", "inv-2", "inv-3"],
        "claimed once, in order of submission"
    );
    assert!(
        claimed
            .invoices
            .iter()
            .all(|claimed| claimed.guard.is_valid())
    );

    fake.cluster
        .fail_always("ClaimInvoices", Some(Fault::HangAfter));
    let lost = session.claim(6).await;
    assert!(matches!(lost, Err(Failure::Unknown(_))), "{lost:?}");
    fake.cluster.fail_always("ClaimInvoices", None);
    eventually("the six are free again", || {
        Ok((4..10)
            .map(|nth| fake.cluster.lease(&format!("inv-{nth}")))
            .collect::<Result<Vec<_>, _>>()?
            .iter()
            .all(Option::is_none))
    })
    .await?;
    assert_eq!(session.claim(10).await?.invoices.len(), 6);
    Ok(())
}
