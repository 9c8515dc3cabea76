//! Measures how long nobody could get a lease: a plain client that acquires and releases, again and again.
//! Decides nothing; its leases are on ids that were never submitted, and go away with their release.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use billing_client::{AcquireOptions, Client};
use tokio::task::JoinHandle;

/// Between two tries: the measured gap is at most this much too long.
const PAUSE: Duration = Duration::from_millis(10);
/// A try that hangs on a dead leader is given up, and the next one asks elsewhere.
const TRY_FOR: Duration = Duration::from_millis(250);
const TTL: Duration = Duration::from_secs(1);

/// A running probe. Dropped: stopped.
pub struct Probe {
    successes: Arc<Mutex<Vec<(Instant, Instant)>>>,
    task: JoinHandle<()>,
}

impl Probe {
    /// Starts to acquire and release through `endpoints`, with patience of its own.
    pub fn start(endpoints: &[String]) -> Result<Probe> {
        let client = Client::builder()
            .endpoints(endpoints)
            .deadline(TRY_FOR)
            .attempt(TRY_FOR)
            .connect_timeout(TRY_FOR)
            .build()?;
        let successes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&successes);
        let options = AcquireOptions::default().ttl(TTL);
        let task = tokio::spawn(async move {
            for number in 0u64.. {
                let begun = Instant::now();
                let invoice = format!("failover-probe-{number}");
                if let Ok(lease) = client.acquire(&invoice, "failover-probe", options).await {
                    if let Ok(mut seen) = seen.lock() {
                        seen.push((begun, Instant::now()));
                    }
                    // Not released in time: its TTL ends it.
                    let _ = lease.release().await;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Ok(Probe { successes, task })
    }

    /// From `since` to the first lease that was asked for and granted after it; waits for one, at most `at_most`.
    pub async fn gap(&self, since: Instant, at_most: Duration) -> Result<Duration> {
        let deadline = Instant::now() + at_most;
        loop {
            let first = self.successes.lock().ok().and_then(|seen| {
                seen.iter()
                    .find(|(begun, _)| *begun >= since)
                    .map(|(_, granted)| *granted)
            });
            if let Some(granted) = first {
                return Ok(granted - since);
            }
            if Instant::now() >= deadline {
                bail!("no lease was granted for {at_most:?} after the leader was killed");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}
