//! A watch over real `billingd` processes, of which one after the other is killed: no event is lost, none comes twice. The
//! binary is built before (`make test`).

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use billing_client::{AcquireOptions, Client, SessionOptions, WatchOptions, Watched, v1};
use billing_demo::harness::{Cluster, ClusterOptions};
use futures::{Stream, TryStreamExt};

const LED_WITHIN: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);
const INVOICES: usize = 60;

async fn next<S>(watch: &mut S) -> Result<Watched>
where
    S: Stream<Item = Result<Watched, billing_client::Failure>> + Unpin,
{
    let item = tokio::time::timeout(PATIENCE, watch.try_next()).await;
    item.context("not a word")??.context("the watch ended")
}

#[tokio::test]
async fn a_watch_outlives_the_nodes_that_it_watched_through() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(ClusterOptions::new(folder.path().join("cluster")))?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    cluster.led(&client, LED_WITHIN).await?;
    let watcher = Client::builder().endpoints(cluster.endpoints()).build()?;
    let mut watch = Box::pin(watcher.watch_leases(WatchOptions::all()));
    let Watched::Progress { next_index } = next(&mut watch).await? else {
        bail!("a watch begins with where it begins");
    };
    let worker = tokio::spawn(async move {
        let session = client
            .open_session(SessionOptions::new("ana", Duration::from_secs(30)))
            .await?;
        for nth in 0..INVOICES {
            let guard = session
                .acquire(&format!("inv-{nth}"), AcquireOptions::default())
                .await?;
            guard.release().await?;
        }
        session.close().await?;
        anyhow::Ok(client)
    });
    let mut heard: Vec<v1::LeaseEvent> = Vec::new();
    let mut kills = vec![INVOICES / 2, INVOICES];
    while heard.len() < 2 * INVOICES {
        if let Watched::Event(event) = next(&mut watch).await? {
            ensure!(
                heard.last().is_none_or(|last| last.index < event.index),
                "{event:?} after {:?}",
                heard.last()
            );
            heard.push(event);
        }
        // The leader, which both of them talk to, twice.
        if kills.first().is_some_and(|&at| heard.len() >= at) {
            kills.remove(0);
            let leader = cluster.led(&watcher, LED_WITHIN).await?;
            cluster.kill(leader)?;
            cluster.start_node(leader, false)?;
        }
    }
    worker.await??;
    for (nth, pair) in heard.chunks(2).enumerate() {
        let told: Vec<_> = pair.iter().map(|event| event.what.as_str()).collect();
        ensure!(told == ["acquired", "released"], "{pair:?}");
        let invoice = format!("inv-{nth}");
        ensure!(
            pair.iter().all(|event| event.invoice_id == invoice),
            "{pair:?}"
        );
        ensure!(pair[0].token == pair[1].token, "{pair:?}");
    }
    // Whoever was not there hears the same.
    let mut again = Box::pin(watcher.watch_leases(WatchOptions::all().from(next_index)));
    let mut same = Vec::new();
    while same.len() < heard.len() {
        if let Watched::Event(event) = next(&mut again).await? {
            same.push(event);
        }
    }
    ensure!(same == heard, "a second watch hears something else");
    cluster.stop().await
}
