//! How long a session is believed in, and how it ends.

use std::time::Duration;

use billing_client::{AcquireOptions, Failure, Loss, Rejection, SessionOptions};
use billing_core::{CloseSession, Command};

use crate::fake::{Fake, Fault, Laptop, eventually, soon};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_session_outlives_its_ttl_while_its_beats_arrive() -> anyhow::Result<()> {
    let fake = Fake::start(2).await?;
    let client = fake.client()?;
    let session = client
        .open_session(SessionOptions::new("ana", SECOND))
        .await?;
    let guard = session.acquire("inv-7", AcquireOptions::default()).await?;
    // One beat in two is lost, one way or another.
    let faults = [
        Fault::LoseReply,
        Fault::Delay(Duration::from_millis(50)),
        Fault::NotApplied,
        Fault::LoseRequest,
    ];
    fake.cluster.fail_next("KeepAlive", faults);
    client.env().clock.sleep(Duration::from_millis(2_500)).await;
    assert!(guard.is_valid() && session.is_valid());
    assert!(guard.remaining() > Duration::ZERO && guard.remaining() < SECOND);
    assert_eq!(
        fake.cluster.lease("inv-7")?.map(|lease| lease.token),
        Some(guard.token())
    );
    Ok(())
}

#[tokio::test]
async fn without_beats_the_guard_is_lost_before_the_cluster_gives_the_lease_to_another()
-> anyhow::Result<()> {
    for fault in [Fault::Hang, Fault::LoseRequest, Fault::NotApplied] {
        let fake = Fake::start(1).await?;
        let client = fake.client()?;
        let session = client
            .open_session(SessionOptions::new("ana", SECOND))
            .await?;
        let guard = session.acquire("inv-7", AcquireOptions::default()).await?;
        fake.cluster.fail_always("KeepAlive", Some(fault.clone()));
        let loss = soon("the loss", guard.lost()).await?;
        assert_eq!(loss, Loss::Expired, "{fault:?}");
        assert!(!guard.is_valid() && guard.remaining().is_zero() && !session.is_valid());
        let lease = fake.cluster.lease("inv-7")?;
        assert_eq!(
            lease.map(|lease| lease.token),
            Some(guard.token()),
            "{fault:?}: nobody else has it yet"
        );
        fake.cluster.fail_always("KeepAlive", None);
        eventually("the cluster's own deadline", || {
            Ok(fake.cluster.lease("inv-7")?.is_none())
        })
        .await?;
        assert!(!guard.is_valid(), "{fault:?}: never revived");
    }
    Ok(())
}

#[tokio::test]
async fn a_machine_that_slept_knows_at_once_and_opens_a_new_session() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let laptop = Laptop::new();
    let client = fake.builder().env(laptop.env()).build()?;
    let session = client
        .open_session(SessionOptions::new("ana", 60 * SECOND))
        .await?;
    let guard = session.acquire("inv-7", AcquireOptions::default()).await?;
    let lost = guard.lost();
    tokio::pin!(lost);
    assert!(guard.is_valid());
    // An hour with the lid closed. No timer has moved, no packet was sent.
    laptop.sleep_through(3_600 * SECOND);
    assert!(!guard.is_valid());
    assert_eq!(soon("the signal", lost).await?, Loss::Expired);
    let refused = session.acquire("inv-8", AcquireOptions::default()).await;
    assert!(
        matches!(refused, Err(Failure::NotApplied(_))),
        "{refused:?}"
    );
    assert_eq!(fake.cluster.lease("inv-8")?, None, "not even asked");

    let anew = client
        .open_session(SessionOptions::new("ana", 60 * SECOND))
        .await?;
    assert_ne!(anew.id(), session.id());
    assert!(
        anew.acquire("inv-8", AcquireOptions::default())
            .await?
            .is_valid()
    );
    Ok(())
}

#[tokio::test]
async fn a_session_that_the_cluster_ended_is_lost_with_its_reason() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let session = fake
        .client()?
        .open_session(SessionOptions::new("ana", SECOND))
        .await?;
    let guard = session.acquire("inv-7", AcquireOptions::default()).await?;
    fake.cluster
        .apply(Command::CloseSession(CloseSession {
            session: session.id(),
        }))
        .map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
    let ended = Loss::Ended(Rejection::SessionEnded {
        session: session.id(),
    });
    assert_eq!(soon("the next beat", guard.lost()).await?, ended);
    assert_eq!(session.lost().await, ended);
    let refused = session.acquire("inv-8", AcquireOptions::default()).await;
    assert!(
        matches!(
            refused,
            Err(Failure::Rejected(Rejection::SessionEnded { .. }))
        ),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn any_answer_may_tell_that_the_session_is_over() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let session = fake
        .client()?
        .open_session(SessionOptions::new("ana", 300 * SECOND))
        .await?;
    fake.cluster
        .apply(Command::CloseSession(CloseSession {
            session: session.id(),
        }))
        .map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
    assert!(session.is_valid(), "nobody has told it");
    assert!(
        session
            .acquire("inv-7", AcquireOptions::default())
            .await
            .is_err()
    );
    assert!(!session.is_valid());
    Ok(())
}

#[tokio::test]
async fn a_closed_session_gives_everything_back_at_once() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let session = fake
        .client()?
        .open_session(SessionOptions::new("ana", 300 * SECOND))
        .await?;
    let guard = session.acquire("inv-7", AcquireOptions::default()).await?;
    fake.cluster.fail_next("CloseSession", [Fault::LoseReply]);
    assert!(!session.close().await?, "its repeat found it closed");
    assert_eq!(guard.loss(), Some(Loss::GivenUp));
    assert_eq!(fake.cluster.lease("inv-7")?, None);
    drop((guard, session));
    Ok(())
}

#[tokio::test]
async fn the_last_handle_closes_the_session() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let session = fake
        .client()?
        .open_session(SessionOptions::new("ana", 300 * SECOND))
        .await?;
    let clone = session.clone();
    let guard = session.acquire("inv-7", AcquireOptions::default()).await?;
    drop((session, clone));
    assert!(guard.is_valid(), "a guard is a handle");
    assert_eq!(fake.cluster.count("CloseSession"), 0);
    drop(guard);
    eventually("closed", || Ok(fake.cluster.count("CloseSession") == 1)).await?;
    eventually("and free", || Ok(fake.cluster.lease("inv-7")?.is_none())).await
}

#[tokio::test]
async fn an_open_that_was_repeated_counts_what_is_left_of_it() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    let before = client.env().clock.boottime();
    fake.cluster
        .fail_next("OpenSession", [Fault::LoseReply, Fault::NotApplied]);
    let session = client
        .open_session(SessionOptions::new("ana", 10 * SECOND))
        .await?;
    assert_eq!(fake.cluster.count("OpenSession"), 3);
    assert!(session.valid_until() >= before + Duration::from_millis(9_700));
    assert!(session.valid_until() <= client.env().clock.boottime() + Duration::from_millis(9_700));
    Ok(())
}

#[tokio::test]
async fn bounds_of_a_session_are_the_clusters_and_named() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    for (holder, ttl, wanted) in [
        ("", SECOND, "holder"),
        ("ana", SECOND / 2, "ttl_ms"),
        ("ana", 301 * SECOND, "ttl_ms"),
    ] {
        match client.open_session(SessionOptions::new(holder, ttl)).await {
            Err(Failure::Rejected(Rejection::InvalidArgument { field, .. })) => {
                assert_eq!(field, wanted)
            }
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}
