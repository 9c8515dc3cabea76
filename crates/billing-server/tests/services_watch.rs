//! WatchLeases over the wire: what a watcher hears, from where it goes on, and when it is told that it cannot.

mod common;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use billing_core::Rejection;
use billing_proto::v1;
use billing_proto::v1::lease_service_client::LeaseServiceClient;
use billing_server::server::ClientLimits;
use common::{Cluster, PATIENCE, acquire, lease, refused, release};
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use v1::watch_leases_response::Part;

type Parts = Streaming<v1::WatchLeasesResponse>;

async fn watch(
    cluster: &Cluster,
    at: usize,
    invoice: &str,
    from_index: u64,
) -> Result<Parts, Status> {
    let mut leases = cluster
        .leases(at)
        .map_err(|error| Status::internal(error.to_string()))?;
    let request = v1::WatchLeasesRequest {
        invoice_id: invoice.into(),
        from_index,
    };
    Ok(leases.watch_leases(request).await?.into_inner())
}

async fn part(parts: &mut Parts) -> Result<Part> {
    let message = tokio::time::timeout(PATIENCE, parts.message()).await;
    let message = message.context("no message")??;
    message
        .and_then(|message| message.part)
        .context("the watch ended")
}

/// Where a watch begins: its first message.
async fn begins(parts: &mut Parts) -> Result<u64> {
    match part(parts).await? {
        Part::Progress(progress) => Ok(progress.next_index),
        Part::Event(event) => bail!("an event before the beginning: {event:?}"),
    }
}

/// The next `count` events; progress between them is passed over.
async fn events(parts: &mut Parts, count: usize) -> Result<Vec<v1::LeaseEvent>> {
    let mut events = Vec::new();
    while events.len() < count {
        if let Part::Event(event) = part(parts).await? {
            events.push(event);
        }
    }
    Ok(events)
}

/// What happened to which invoice, in words.
fn told(events: &[v1::LeaseEvent]) -> Vec<String> {
    let tell = |event: &v1::LeaseEvent| {
        let kind = match event.kind() {
            v1::LeaseEventKind::Granted => "+",
            v1::LeaseEventKind::Ended => "-",
            v1::LeaseEventKind::Unspecified => "?",
        };
        format!("{kind}{} {} {}", event.invoice_id, event.holder, event.what)
    };
    events.iter().map(tell).collect()
}

async fn leased(cluster: &Cluster, at: usize, invoice: &str, holder: &str) -> Result<v1::Lease> {
    let mut leases = cluster.leases(at)?;
    lease(leases.acquire_lease(acquire(invoice, holder)).await?)
}

/// Leases and releases an invoice, and returns its token.
async fn pair(cluster: &Cluster, invoice: &str) -> Result<u64> {
    let held = leased(cluster, 0, invoice, "ana").await?;
    cluster.leases(0)?.release_lease(release(&held)).await?;
    Ok(held.token)
}

/// Many grants and ends, in few entries.
async fn pairs(cluster: &Cluster, count: usize) -> Result<()> {
    for first in (0..count).step_by(500) {
        let items = (first..count.min(first + 500))
            .map(|nth| acquire(&format!("many-{nth}"), "bob"))
            .collect();
        let granted = cluster
            .leases(0)?
            .acquire_leases(v1::AcquireLeasesRequest { items })
            .await?;
        let mut items = Vec::new();
        for item in granted.into_inner().items {
            match item.result {
                Some(v1::acquire_leases_response::item::Result::Granted(granted)) => {
                    items.push(release(&granted.lease.context("a lease")?));
                }
                other => bail!("not granted: {other:?}"),
            }
        }
        cluster
            .leases(0)?
            .release_leases(v1::ReleaseLeasesRequest { items })
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_node_tells_the_same_from_an_index_on() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    pair(&cluster, "inv-0").await?;
    let (leader, followers) = cluster.leader_and_followers().await?;
    let mut here = watch(&cluster, followers[0], "", 0).await?;
    let from = begins(&mut here).await?;
    let token = pair(&cluster, "inv-1").await?;
    let held = leased(&cluster, leader, "inv-2", "ben").await?;
    cluster
        .operators(0)?
        .force_release(v1::ForceReleaseRequest {
            invoice_id: "inv-2".into(),
            reason: "ben sleeps".into(),
        })
        .await?;
    let heard = events(&mut here, 4).await?;
    assert_eq!(
        told(&heard),
        [
            "+inv-1 ana acquired",
            "-inv-1 ana released",
            "+inv-2 ben acquired",
            "-inv-2 ben force-released"
        ],
        "and nothing of what was before"
    );
    assert!(heard.is_sorted_by(|one, next| one.index < next.index));
    assert!(from <= heard[0].index);
    let tokens: Vec<u64> = heard.iter().map(|event| event.token).collect();
    assert_eq!(tokens, [token, token, held.token, held.token]);
    for at in 0..3 {
        let mut there = watch(&cluster, at, "", from).await?;
        assert_eq!(begins(&mut there).await?, from);
        assert_eq!(events(&mut there, 4).await?, heard, "node {at}");
        let mut after = watch(&cluster, at, "", heard[1].index + 1).await?;
        assert_eq!(events(&mut after, 2).await?, heard[2..], "node {at}");
    }
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_list_and_a_watch_from_its_index_miss_nothing() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let before = leased(&cluster, 0, "inv-1", "ana").await?;
    let list = cluster
        .leases(0)?
        .list_leases(v1::ListLeasesRequest::default())
        .await?
        .into_inner();
    assert_eq!(list.leases.len(), 1);
    let free = cluster
        .leases(0)?
        .get_lease(v1::GetLeaseRequest {
            invoice_id: "inv-2".into(),
            stale_ok: false,
        })
        .await?
        .into_inner();
    assert_eq!(free.watch_index, list.watch_index, "nothing was in between");
    cluster.leases(0)?.release_lease(release(&before)).await?;
    leased(&cluster, 0, "inv-2", "ben").await?;
    let mut all = watch(&cluster, 0, "", list.watch_index).await?;
    assert_eq!(
        told(&events(&mut all, 2).await?),
        ["-inv-1 ana released", "+inv-2 ben acquired"]
    );
    let mut one = watch(&cluster, 0, "inv-2", free.watch_index).await?;
    assert_eq!(
        told(&events(&mut one, 1).await?),
        ["+inv-2 ben acquired"],
        "the other invoice's are left out"
    );
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn who_waits_for_one_invoice_hears_how_far_the_others_are() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let mut parts = watch(&cluster, 0, "inv-1", 0).await?;
    let from = begins(&mut parts).await?;
    pairs(&cluster, 600).await?;
    match part(&mut parts).await? {
        Part::Progress(progress) => assert!(progress.next_index >= from + 1_000),
        Part::Event(event) => bail!("not asked for: {event:?}"),
    }
    // And where nothing happens at all, after a while: the node is there and has a majority.
    match part(&mut parts).await? {
        Part::Progress(progress) => assert!(progress.next_index >= from + 1_200),
        Part::Event(event) => bail!("not asked for: {event:?}"),
    }
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn an_index_that_cannot_be_told_is_refused_with_the_reason() -> Result<()> {
    let limits = ClientLimits {
        watch_lag_max: 10,
        ..ClientLimits::default()
    };
    let cluster = Cluster::with_limits(1, limits).await?;
    pairs(&cluster, 20).await?;
    let mut now = watch(&cluster, 0, "", 0).await?;
    let next = begins(&mut now).await?;
    assert_eq!(
        refused(watch(&cluster, 0, "", 1).await, Code::OutOfRange),
        Rejection::IndexPurged {
            requested: 1,
            oldest: next - 10
        }
    );
    // The newest record's successor is everybody's next index; what lies above is of another ledger.
    watch(&cluster, 0, "", next).await?;
    common::out_of_bounds(watch(&cluster, 0, "", next + 1).await, "from_index");
    common::out_of_bounds(watch(&cluster, 0, "in voice", 0).await, "invoice_id");
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_told_that_it_fell_behind() -> Result<()> {
    let limits = ClientLimits {
        watch_lag_max: 1_000,
        ..ClientLimits::default()
    };
    let cluster = Cluster::with_limits(1, limits).await?;
    let channel = Endpoint::from_shared(format!("http://{}", cluster.addresses[0]))?
        .initial_stream_window_size(65_535)
        .connect_lazy();
    let mut slow = LeaseServiceClient::new(channel)
        .watch_leases(v1::WatchLeasesRequest::default())
        .await?
        .into_inner();
    begins(&mut slow).await?;
    // More than the stream's window and the bound hold together.
    pairs(&cluster, 5_000).await?;
    let mut last = 0;
    let ended = loop {
        match slow.message().await {
            Ok(Some(message)) => match message.part.context("a part")? {
                Part::Event(event) => {
                    ensure!(event.index > last, "in order");
                    last = event.index;
                }
                Part::Progress(_) => {}
            },
            Ok(None) => bail!("it ended without a word"),
            Err(status) => break status,
        }
    };
    match refused(Err::<(), _>(ended), Code::OutOfRange) {
        Rejection::IndexPurged { requested, oldest } => {
            ensure!(
                requested == last + 1 || requested > last,
                "{requested} after {last}"
            );
            ensure!(oldest > requested, "{oldest}");
        }
        other => bail!("{other:?}"),
    }
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn one_watcher_too_many_is_refused_until_another_goes() -> Result<()> {
    let limits = ClientLimits {
        watchers_max: 1,
        ..ClientLimits::default()
    };
    let cluster = Cluster::with_limits(1, limits).await?;
    let first = watch(&cluster, 0, "", 0).await?;
    let second = watch(&cluster, 0, "", 0).await;
    let status = second.err().context("refused")?;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("watchers"), "{status:?}");
    drop(first);
    common::until(|| async { Ok(watch(&cluster, 0, "", 0).await.is_ok()) }).await?;
    cluster.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_node_that_stops_sends_its_watchers_to_another() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let mut parts = watch(&cluster, 2, "", 0).await?;
    begins(&mut parts).await?;
    let token = pair(&cluster, "inv-1").await?;
    let seen = events(&mut parts, 1).await?;
    let stopping = cluster.nodes.remove(2);
    let stopped = tokio::spawn(stopping.finish(Duration::from_secs(10)));
    let ended = loop {
        match parts.message().await {
            Ok(Some(_)) => {}
            Ok(None) => bail!("it ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    stopped.await?;
    let mut on = watch(&cluster, 0, "", seen[0].index + 1).await?;
    let next = events(&mut on, 1).await?;
    assert_eq!(told(&next), ["-inv-1 ana released"]);
    assert_eq!(next[0].token, token);
    cluster.stop().await;
    Ok(())
}
