//! Leaders of a real cluster are killed in the middle of acquires: whatever was acknowledged stands under its token, and tokens
//! only grow. How long it takes is for the bench to say.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use billing_client::{AcquireOptions, Client, LeaseGuard, Session, SessionOptions};
use billing_demo::harness::{Cluster, ClusterOptions};
use billing_proto::Failure;
use tokio::sync::{mpsc, watch};

const LED_WITHIN: Duration = Duration::from_secs(30);
/// Nothing ends by time here.
const TTL: Duration = Duration::from_secs(300);
const FALLS: usize = 3;
const CALLERS: usize = 4;
/// Granted after each fall before the next one.
const GRANTS: usize = 100;
/// Acknowledged leases on their way to the witness; more: callers wait.
const ON_THEIR_WAY_MAX: usize = 64;

/// Acquires one new invoice after the other, and hands over what was acknowledged.
async fn call(
    number: usize,
    session: Session,
    granted: mpsc::Sender<LeaseGuard>,
    over: watch::Receiver<bool>,
) -> Result<()> {
    let mut last = None;
    for nth in 0_u64.. {
        if *over.borrow() {
            break;
        }
        let invoice = format!("inv-{number}-{nth}");
        let lease = match session.acquire(&invoice, AcquireOptions::default()).await {
            Ok(lease) => lease,
            // Nobody can tell, or it did not happen: the next invoice is another one.
            Err(Failure::Unknown(_) | Failure::NotApplied(_)) => continue,
            Err(refused) => return Err(refused).context("a new invoice was refused"),
        };
        ensure!(
            last.is_none_or(|last| last < lease.token()),
            "caller {number} got token {} after {last:?}",
            lease.token()
        );
        last = Some(lease.token());
        granted.send(lease).await?;
    }
    Ok(())
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_leaders_are_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(ClusterOptions::new(folder.path()))?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    cluster.led(&client, LED_WITHIN).await?;
    let session = client
        .open_session(SessionOptions::new("witness", TTL))
        .await?;
    let (grant, mut granted) = mpsc::channel(ON_THEIR_WAY_MAX);
    let (over, _) = watch::channel(false);
    let over = Arc::new(over);
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            tokio::spawn(call(
                number,
                session.clone(),
                grant.clone(),
                over.subscribe(),
            ))
        })
        .collect();
    drop(grant);

    let mut kept = Vec::new();
    for _ in 0..FALLS {
        let leader = cluster.led(&client, LED_WITHIN).await?;
        let highest_before = kept.iter().map(LeaseGuard::token).max();
        cluster.kill(leader)?;
        // Until a majority is back at work, and what was on its way at the fall is old.
        let mut after = Vec::new();
        while after.len() < GRANTS {
            after.push(granted.recv().await.context("the callers have ended")?);
        }
        let highest_after = after.iter().map(LeaseGuard::token).max();
        ensure!(
            highest_before < highest_after,
            "tokens do not grow: {highest_before:?}, and after a fall {highest_after:?}"
        );
        kept.extend(after);
        cluster.start_node(leader, false)?;
    }
    over.send_replace(true);
    while let Some(lease) = granted.recv().await {
        kept.push(lease);
    }
    for caller in callers {
        caller.await??;
    }

    let mut tokens: Vec<_> = kept.iter().map(LeaseGuard::token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), kept.len(), "a token was granted twice");
    for lease in &kept {
        let found = client.get_lease(lease.invoice_id(), false).await?;
        assert_eq!(
            found.map(|found| found.token),
            Some(lease.token().0),
            "{} was acknowledged",
            lease.invoice_id()
        );
    }
    // Everything ends with its session: a call for each lease would prove nothing more.
    for lease in kept {
        lease.settled();
    }
    ensure!(session.close().await?, "the session was alive");
    cluster.stop().await
}
