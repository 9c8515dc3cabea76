//! Watches: from where they begin, and that a broken stream costs no event and shows none twice.

use std::time::Duration;

use billing_client::{
    AcquireOptions, Failure, Rejection, SessionOptions, WatchOptions, Watched, v1,
};
use futures::{Stream, TryStreamExt};

use crate::fake::{Fake, Fault};

/// The next `count` events; progress between them is passed over.
async fn events(
    watch: &mut (impl Stream<Item = Result<Watched, Failure>> + Unpin),
    count: usize,
) -> anyhow::Result<Vec<v1::LeaseEvent>> {
    let mut events = Vec::new();
    while events.len() < count {
        match watch.try_next().await? {
            Some(Watched::Event(event)) => events.push(event),
            Some(Watched::Progress { .. }) => {}
            None => anyhow::bail!("the watch ended"),
        }
    }
    Ok(events)
}

async fn pairs(client: &billing_client::Client, count: usize) -> anyhow::Result<()> {
    let session = client
        .open_session(SessionOptions::new("ana", Duration::from_secs(60)))
        .await?;
    for nth in 0..count {
        let guard = session
            .acquire(&format!("inv-{nth}"), AcquireOptions::default())
            .await?;
        guard.release().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_elsewhere_without_a_gap_or_a_repeat() -> anyhow::Result<()> {
    let fake = Fake::start(2).await?;
    let client = fake.client()?;
    let breaks = [
        Fault::LoseReply,
        Fault::NotApplied,
        Fault::LoseReply,
        Fault::LoseReply,
    ];
    fake.cluster.fail_next("WatchLeases", breaks);
    let mut watch = Box::pin(client.watch_leases(WatchOptions::all()));
    let Some(Watched::Progress { next_index: from }) = watch.try_next().await? else {
        anyhow::bail!("a watch begins with where it begins");
    };
    pairs(&client, 6).await?;
    let heard = events(&mut watch, 12).await?;
    let expected: Vec<String> = (0..6)
        .flat_map(|nth| [format!("inv-{nth} acquired"), format!("inv-{nth} released")])
        .collect();
    let told: Vec<String> = heard
        .iter()
        .map(|event| format!("{} {}", event.invoice_id, event.what))
        .collect();
    assert_eq!(told, expected);
    assert!(fake.cluster.count("WatchLeases") >= 5, "it did break");
    // The same again, from where it began.
    let mut again = Box::pin(client.watch_leases(WatchOptions::all().from(from)));
    assert_eq!(events(&mut again, 12).await?, heard);
    let mut one = Box::pin(client.watch_leases(WatchOptions::invoice("inv-3").from(from)));
    assert_eq!(events(&mut one, 2).await?, heard[6..8]);
    Ok(())
}

#[tokio::test]
async fn a_watch_from_what_is_no_longer_kept_ends_with_the_reason() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake.client()?;
    fake.cluster
        .fail_next("WatchLeases", [Fault::Delay(Duration::ZERO)]);
    let mut watch = Box::pin(client.watch_leases(WatchOptions::all()));
    let ended = loop {
        match watch.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => anyhow::bail!("it ended without a word"),
            Err(failure) => break failure,
        }
    };
    assert!(
        matches!(
            ended.rejection(),
            Some(Rejection::IndexPurged { oldest: 1_000, .. })
        ),
        "{ended:?}"
    );
    assert_eq!(fake.cluster.count("WatchLeases"), 1, "not asked again");
    Ok(())
}

#[tokio::test]
async fn a_watch_that_nobody_answers_ends_at_the_deadline() -> anyhow::Result<()> {
    let fake = Fake::start(1).await?;
    let client = fake
        .builder()
        .deadline(Duration::from_millis(200))
        .build()?;
    fake.cluster
        .fail_always("WatchLeases", Some(Fault::NotApplied));
    let mut watch = Box::pin(client.watch_leases(WatchOptions::all()));
    let ended = watch.try_next().await;
    assert!(matches!(ended, Err(Failure::NotApplied(_))), "{ended:?}");
    Ok(())
}
