//! Decides what a pair is: one lease acquired and released, each caller on its own invoice, sessions opened beforehand.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use billing_client::{AcquireOptions, Client, Session, SessionOptions};
use billing_demo::harness::Cluster;

const TTL: Duration = Duration::from_secs(30);

/// `callers` at once over `connections` clients, for `length`. An error ends the measurement: a figure with failures in it
/// would measure something else.
pub async fn measure(
    cluster: &Cluster,
    callers: usize,
    connections: usize,
    length: Duration,
) -> Result<super::Samples> {
    let mut sessions = Vec::new();
    for number in 0..connections {
        let client = Client::builder().endpoints(cluster.endpoints()).build()?;
        let session = client
            .open_session(SessionOptions::new(format!("bench-{number}"), TTL))
            .await?;
        // The first call finds the leader; it is not what is measured.
        pair(&session, "bench-warm-up").await.ok();
        sessions.push(session);
    }
    let begun = Instant::now();
    let until = begun + length;
    let running: Vec<_> = (0..callers)
        .map(|caller| {
            let session = sessions[caller % connections].clone();
            tokio::spawn(async move {
                let invoice = format!("bench-{caller}");
                let mut latencies = Vec::new();
                while Instant::now() < until {
                    let before = Instant::now();
                    pair(&session, &invoice).await?;
                    latencies.push(before.elapsed());
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for caller in running {
        latencies.extend(caller.await.context("a caller panicked")??);
    }
    let took = begun.elapsed();
    for session in sessions {
        session.close().await?;
    }
    Ok(super::Samples::new(latencies, took))
}

async fn pair(session: &Session, invoice: &str) -> Result<()> {
    let lease = session.acquire(invoice, AcquireOptions::default()).await?;
    lease.release().await?;
    Ok(())
}
