//! Real `billingd` processes, one of which holds another state than the log gives: it ends by itself, with the documented exit
//! code and a message that says how to replace it, and the others go on. In release as in debug: what is damaged is the disk,
//! by this test, and nothing in the binary helps. The binary is built before (`make test`).

#[path = "../crates/billing-server/tests/raft_cluster/forge.rs"]
mod forge;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use billing_client::{AcquireOptions, Client, SessionOptions};
use billing_demo::harness::{Cluster, ClusterOptions, Signal};

const LED_WITHIN: Duration = Duration::from_secs(30);
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// Of `billingd --help`: another node contradicts this one.
const CONTRADICTED: i32 = 7;

async fn lease_and_release(client: &Client, invoice: &str) -> Result<()> {
    let session = client
        .open_session(SessionOptions::new("ana", Duration::from_secs(30)))
        .await?;
    let guard = session.acquire(invoice, AcquireOptions::default()).await?;
    guard.release().await?;
    session.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_node_with_another_state_ends_and_says_how_to_replace_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(ClusterOptions::new(folder.path().join("cluster")))?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    let leader = cluster.led(&client, LED_WITHIN).await?;
    lease_and_release(&client, "inv-1").await?;
    let odd = leader % 3 + 1;
    client
        .take_snapshot_of(&cluster.endpoint(odd), ENDS_WITHIN)
        .await?;
    cluster.signal(odd, Signal::TERM)?;
    let process = cluster.node(odd).context("it runs")?;
    let stopped = process.ended(ENDS_WITHIN).await?;
    ensure!(
        stopped.is_some_and(|status| status.success()),
        "{stopped:?}"
    );
    // Missed by the node, and applied on top of the wrong state when it is back.
    lease_and_release(&client, "inv-2").await?;
    forge::forge(&cluster.data(odd), odd as u64, "prov-x").await?;

    cluster.start_node(odd, false)?;
    let process = cluster.node(odd).context("it runs")?;
    let status = process.ended(ENDS_WITHIN).await?;
    let said = process.last_words(40);
    let code = status.and_then(|status| status.code());
    ensure!(code == Some(CONTRADICTED), "{status:?}:\n{said}");
    for words in [
        &format!("the state of node {odd} after index"),
        "that of a majority (nodes",
        billing_store::REJOIN,
    ] {
        ensure!(said.contains(words), "`{words}` is not in:\n{said}");
    }
    // Neither of the others ended, and they are a majority.
    let ended = cluster.ended()?.map(|(id, _)| id);
    ensure!(ended == Some(odd), "{ended:?} ended");
    lease_and_release(&client, "inv-3").await?;
    cluster.all_running()?;
    cluster.stop().await
}
