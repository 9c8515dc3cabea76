//! Callers that acquire all the time and keep what they were granted, while something is broken. Whatever was acknowledged must
//! stand afterwards, under its token; decides nothing about what is broken.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use billing_client::{AcquireOptions, Client, Failure, LeaseGuard, Session, SessionOptions};
use billing_demo::harness::{Cluster, until};
use tokio::{sync::watch, task::JoinHandle};

/// For what must happen; an idle machine needs a tenth of it.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const NODES: usize = 3;
/// Nothing ends by time here.
const LONG: Duration = Duration::from_secs(300);
/// More are never granted in a story; each is looked up at the end.
const KEPT_MAX: usize = 20_000;
/// Between two grants of one caller: it is a witness, not a load.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Granted(Mutex<Vec<LeaseGuard>>);

impl Granted {
    fn leases(&self) -> MutexGuard<'_, Vec<LeaseGuard>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Witness {
    granted: Arc<Granted>,
    over: watch::Sender<bool>,
    callers: Vec<JoinHandle<Result<()>>>,
    session: Session,
}

impl Witness {
    pub async fn start(client: &Client, callers: usize) -> Result<Witness> {
        let session = client
            .open_session(SessionOptions::new("witness", LONG))
            .await?;
        let granted = Arc::new(Granted::default());
        let (over, _) = watch::channel(false);
        let call = |number| {
            tokio::spawn(call(
                number,
                session.clone(),
                granted.clone(),
                over.subscribe(),
            ))
        };
        let callers = (0..callers).map(call).collect();
        Ok(Witness {
            granted,
            over,
            callers,
            session,
        })
    }

    pub fn granted(&self) -> usize {
        self.granted.leases().len()
    }

    /// How long it takes until `count` more are granted.
    pub async fn goes_on(&self, count: usize) -> Result<Duration> {
        let begun = Instant::now();
        let goal = self.granted() + count;
        until("grants go on", PATIENCE, async || {
            if let Some(ended) = self.callers.iter().position(JoinHandle::is_finished) {
                bail!("caller {ended} stopped");
            }
            Ok(self.granted() >= goal)
        })
        .await?;
        Ok(begun.elapsed())
    }

    /// Everything that was granted stands under its token; how many there were.
    pub async fn check(self, client: &Client) -> Result<usize> {
        self.over.send_replace(true);
        for caller in self.callers {
            caller.await??;
        }
        let leases = std::mem::take(&mut *self.granted.leases());
        let mut tokens: Vec<_> = leases.iter().map(LeaseGuard::token).collect();
        tokens.sort_unstable();
        ensure!(
            tokens.windows(2).all(|pair| pair[0] < pair[1]),
            "a token was granted twice"
        );
        for lease in &leases {
            let found = client.get_lease(lease.invoice_id(), false).await?;
            let token = found.map(|found| found.token);
            ensure!(
                token == Some(lease.token().0),
                "LOST: {} was acknowledged under {} and stands under {token:?}",
                lease.invoice_id(),
                lease.token()
            );
        }
        let count = leases.len();
        for lease in leases {
            lease.settled();
        }
        self.session.close().await?;
        Ok(count)
    }
}

async fn call(
    number: usize,
    session: Session,
    granted: Arc<Granted>,
    over: watch::Receiver<bool>,
) -> Result<()> {
    let mut last = None;
    for nth in 0_u64.. {
        if *over.borrow() {
            break;
        }
        ensure!(
            granted.leases().len() < KEPT_MAX,
            "a witness for too long a story"
        );
        let invoice = format!("inv-{number}-{nth}");
        match session.acquire(&invoice, AcquireOptions::default()).await {
            Ok(lease) => {
                let token = lease.token();
                ensure!(
                    last.is_none_or(|last| last < token),
                    "token {token} was granted after {last:?}"
                );
                last = Some(token);
                granted.leases().push(lease);
            }
            // Nobody can tell, or it did not happen: the next invoice is another one.
            Err(Failure::Unknown(_) | Failure::NotApplied(_)) => {}
            Err(refused) => return Err(refused).context("a new invoice was refused"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Waits until all nodes follow one leader; who leads, and in which term.
pub async fn agreed(cluster: &mut Cluster, client: &Client) -> Result<(usize, u64)> {
    let mut found = (0, 0);
    until("all nodes follow one leader", PATIENCE, async || {
        cluster.all_running()?;
        let views = cluster.views(client).await;
        let mut told: Vec<_> = views
            .iter()
            .map(|view| view.as_ref().map(|view| (view.leader_id, view.term)))
            .collect();
        told.dedup();
        let &[Some((leader, term))] = told.as_slice() else {
            return Ok(false);
        };
        found = (usize::try_from(leader)?, term);
        Ok(leader != 0)
    })
    .await?;
    Ok(found)
}
