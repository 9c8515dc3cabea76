//! Decides what callers do while leaders fall: they acquire, keep a part and release the rest, and note when each acquire was
//! answered. Knows nothing of nodes; what was acknowledged must stand, whoever leads.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use billing_client::{AcquireOptions, Client, LeaseGuard, Session, SessionOptions};
use billing_proto::Failure;
use tokio::sync::{oneshot, watch};

/// Outlives any fall: what ends a lease here is a mistake, not time.
const TTL: Duration = Duration::from_secs(300);
/// Of so many leases a caller keeps one, until it was looked up ...
const KEPT_OF: u64 = 10;
/// ... and so many of them.
const KEPT_MAX: usize = 50;

/// Callers at work on a thread of their own.
pub struct Callers {
    seen: Arc<Seen>,
    over: watch::Sender<bool>,
    home: Option<oneshot::Receiver<Result<()>>>,
}

#[derive(Default)]
struct Seen(Mutex<Log>);

#[derive(Default)]
struct Log {
    /// When an acquire was answered with a lease; in order.
    granted: Vec<Instant>,
    acquired: u64,
    failed: u64,
    /// By caller: what was acknowledged, and not released since.
    kept: HashMap<usize, Vec<LeaseGuard>>,
    wrong: Option<String>,
}

/// What all callers did.
pub struct Done {
    pub acquired: u64,
    pub failed: u64,
}

impl Seen {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Callers {
    /// `callers` over `connections` clients, until stopped.
    pub fn start(endpoints: Vec<String>, callers: usize, connections: usize) -> Result<Callers> {
        let seen = Arc::new(Seen::default());
        let (over, stop) = watch::channel(false);
        let (bring, home) = oneshot::channel();
        let log = seen.clone();
        thread::Builder::new()
            .name("callers".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
                    runtime.block_on(carry(endpoints, callers, connections, &log, stop))
                });
                if let Err(error) = &ended {
                    log.log().wrong = Some(format!("{error:#}"));
                }
                // Nobody waits for it when the measurement has failed.
                let _ = bring.send(ended);
            })?;
        Ok(Callers {
            seen,
            over,
            home: Some(home),
        })
    }

    /// An error when a caller saw what must not be.
    pub fn alive(&self) -> Result<()> {
        match &self.seen.log().wrong {
            Some(wrong) => bail!("{wrong}"),
            None => Ok(()),
        }
    }

    /// The longest time without a grant that ended in `from..=until`, or had not ended then. It may have begun before.
    pub fn longest_pause(&self, from: Instant, until: Instant) -> Duration {
        let log = self.seen.log();
        let first = log.granted.partition_point(|at| *at < from);
        let mut last = match first.checked_sub(1) {
            Some(before) => log.granted[before],
            None => from,
        };
        let mut longest = Duration::ZERO;
        for at in log.granted[first..].iter().take_while(|at| **at <= until) {
            longest = longest.max(*at - last);
            last = *at;
        }
        longest.max(until - last.min(until))
    }

    /// Looks every kept lease up, and then releases it; how many there were. An error when one is gone.
    pub async fn check(&self, client: &Client) -> Result<u64> {
        let kept = std::mem::take(&mut self.seen.log().kept);
        let mut checked = 0;
        for lease in kept.into_values().flatten() {
            let found = client
                .get_lease(lease.invoice_id(), false)
                .await
                .with_context(|| format!("cannot look {} up", lease.invoice_id()))?;
            let token = found.map(|found| found.token);
            ensure!(
                token == Some(lease.token().0),
                "LOST: {} was acknowledged under token {} and now stands under {token:?}",
                lease.invoice_id(),
                lease.token()
            );
            lease
                .release()
                .await
                .context("a kept lease cannot be released")?;
            checked += 1;
        }
        Ok(checked)
    }

    pub async fn stop(mut self) -> Result<Done> {
        self.over.send_replace(true);
        if let Some(home) = self.home.take() {
            home.await.map_err(|_| anyhow!("the callers panicked"))??;
        }
        let log = self.seen.log();
        Ok(Done {
            acquired: log.acquired,
            failed: log.failed,
        })
    }
}

async fn carry(
    endpoints: Vec<String>,
    callers: usize,
    connections: usize,
    seen: &Arc<Seen>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let mut sessions = Vec::new();
    for number in 0..connections.min(callers) {
        let client = Client::builder().endpoints(endpoints.clone()).build()?;
        let options = SessionOptions::new(format!("failover-{number}"), TTL);
        sessions.push(client.open_session(options).await?);
    }
    let mut running = tokio::task::JoinSet::new();
    for number in 0..callers {
        let session = sessions[number % sessions.len()].clone();
        running.spawn(call(number, session, seen.clone()));
    }
    tokio::select! {
        // Callers never end by themselves, except by what must not be.
        ended = running.join_next() => match ended {
            Some(Ok(wrong)) => wrong?,
            Some(Err(error)) => return Err(error.into()),
            None => bail!("no callers"),
        },
        _ = stop.wait_for(|over| *over) => {}
    }
    running.shutdown().await;
    let kept = std::mem::take(&mut seen.log().kept);
    drop(kept);
    for session in sessions {
        session.close().await?;
    }
    Ok(())
}

async fn call(number: usize, session: Session, seen: Arc<Seen>) -> Result<()> {
    let mut last = None;
    for nth in 0_u64.. {
        let invoice = format!("failover-{number}-{nth}");
        let lease = match session.acquire(&invoice, AcquireOptions::default()).await {
            Ok(lease) => lease,
            // The invoice is new and nobody else's, so no is not an answer.
            Err(Failure::Rejected(rejection)) => bail!("{invoice} was refused: {rejection}"),
            Err(Failure::NotApplied(_) | Failure::Unknown(_)) => {
                seen.log().failed += 1;
                continue;
            }
        };
        let token = lease.token();
        ensure!(
            last.is_none_or(|last| last < token),
            "caller {number} was granted token {token} after {last:?}"
        );
        last = Some(token);
        let keep = {
            let mut log = seen.log();
            log.acquired += 1;
            log.granted.push(Instant::now());
            let kept = log.kept.entry(number).or_default();
            if nth % KEPT_OF == 0 && kept.len() < KEPT_MAX {
                kept.push(lease);
                None
            } else {
                Some(lease)
            }
        };
        if let Some(lease) = keep
            && lease.release().await.is_err()
        {
            seen.log().failed += 1;
        }
    }
    Ok(())
}
