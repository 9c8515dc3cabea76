//! Real `billingd` processes and a crowd: many sessions that must all stay alive, many waiters that must be served in order, many
//! leases that must all expire. Conditions, not timings. The binary is built before (`make test`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use billing_client::{AcquireOptions, Client, FencingToken, Session, SessionOptions};
use billing_demo::harness::{Cluster, ClusterOptions};
use billing_proto::v1::{self, lease_service_client::LeaseServiceClient};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;

const SESSIONS: usize = 2_000;
const WAITERS: usize = 1_000;
/// Each is known to stand in the queue before the next begins.
const WAVES: usize = 10;
/// Sessions that nobody keeps alive, and what each holds.
const DOOMED: usize = 20;
const LEASES_EACH: usize = 50;
/// Callers of the storm.
const STORM: usize = 64;

/// Of the sessions that are kept alive: beats come every few seconds, also while the queue is served.
const TTL: Duration = Duration::from_secs(30);
const DOOMED_TTL: Duration = Duration::from_secs(10);
/// For what must happen; an idle machine needs a tenth of it.
const PATIENCE: Duration = Duration::from_secs(240);
/// As long as a request may: whoever waits this long is answered that it is still held.
const WAIT: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const AT_ONCE: usize = 64;

struct Crowd {
    _folder: tempfile::TempDir,
    cluster: Cluster,
    client: Client,
}

impl Crowd {
    async fn start() -> Result<Crowd> {
        let folder = tempfile::tempdir()?;
        let mut options = ClusterOptions::new(folder.path().join("nodes"));
        "warn".clone_into(&mut options.log);
        let mut cluster = Cluster::start(options)?;
        let client = Client::builder()
            .endpoints(cluster.endpoints())
            .deadline(PATIENCE)
            .build()?;
        cluster.led(&client, PATIENCE).await?;
        Ok(Crowd {
            _folder: folder,
            cluster,
            client,
        })
    }

    async fn sessions(&self, name: &str, count: usize, ttl: Duration) -> Result<Vec<Session>> {
        let opened = stream::iter(0..count)
            .map(|number| {
                self.client
                    .open_session(SessionOptions::new(format!("{name}-{number}"), ttl))
            })
            .buffered(AT_ONCE)
            .try_collect();
        Ok(timeout(PATIENCE, opened)
            .await
            .context("the sessions were not opened in time")??)
    }

    /// Waits until the leader counts what `wanted` wants of its leases, waiters and sessions.
    async fn counts(&mut self, what: &str, wanted: impl Fn(u64, u64, u64) -> bool) -> Result<()> {
        let leader = self.cluster.led(&self.client, PATIENCE).await?;
        let endpoint = self.cluster.endpoint(leader);
        let mut last = (0, 0, 0);
        let counted = async {
            loop {
                let view = self.client.status_of(&endpoint).await?;
                last = (view.leases, view.waiters, view.sessions);
                if wanted(view.leases, view.waiters, view.sessions) {
                    return anyhow::Ok(());
                }
                sleep(LOOK_AGAIN).await;
            }
        };
        match timeout(PATIENCE, counted).await {
            Ok(counted) => counted,
            Err(_) => anyhow::bail!("{what}: {last:?} leases, waiters, sessions"),
        }
    }
}

/// What a process that has died leaves behind: sessions with leases, and nobody who keeps them alive.
async fn doomed(crowd: &mut Crowd) -> Result<()> {
    let leader = crowd.cluster.led(&crowd.client, PATIENCE).await?;
    let channel = Endpoint::from_shared(format!("http://{}", crowd.cluster.endpoint(leader)))?
        .connect()
        .await?;
    let mut leases = LeaseServiceClient::new(channel);
    for number in 0..DOOMED {
        let request = v1::OpenSessionRequest {
            session_id: Vec::new(),
            holder: format!("doomed-{number}"),
            ttl_ms: u64::try_from(DOOMED_TTL.as_millis())?,
        };
        let opened = leases.open_session(request).await?.into_inner();
        let session = opened.session.context("a session without an id")?;
        let items = (1..=LEASES_EACH)
            .map(|seq| v1::AcquireLeaseRequest {
                invoice_id: format!("doomed-{number}-{seq}"),
                session_id: session.session_id.clone(),
                seq: seq as u64,
                done_below: 1,
                ..Default::default()
            })
            .collect();
        let request = v1::AcquireLeasesRequest { items };
        let acquired = leases.acquire_leases(request).await?.into_inner();
        for item in acquired.items {
            ensure!(
                matches!(
                    item.result,
                    Some(v1::acquire_leases_response::item::Result::Granted(_))
                ),
                "a free invoice was not granted: {item:?}"
            );
        }
    }
    Ok(())
}

/// A grant of the contended invoice: which wave, and its token.
async fn waits(session: Session, wave: usize) -> Result<(FencingToken, usize)> {
    let guard = session.acquire("inv-1", AcquireOptions::wait(WAIT)).await?;
    let token = guard.token();
    ensure!(guard.release().await?, "the lease was ours and had ended");
    Ok((token, wave))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_served_in_order_and_nobody_is_lost() -> Result<()> {
    let mut crowd = Crowd::start().await?;
    let sessions = crowd.sessions("alive", SESSIONS, TTL).await?;

    // Others acquire all the while.
    let stop = Arc::new(AtomicBool::new(false));
    let storm: Vec<_> = sessions[WAITERS..]
        .iter()
        .take(STORM)
        .enumerate()
        .map(|(caller, session)| {
            let (session, stop) = (session.clone(), stop.clone());
            tokio::spawn(async move {
                let mut pairs = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let guard = session
                        .acquire(&format!("storm-{caller}"), AcquireOptions::default())
                        .await?;
                    guard.release().await?;
                    pairs += 1;
                }
                anyhow::Ok(pairs)
            })
        })
        .collect();

    let holder = crowd.sessions("holder", 1, TTL).await?;
    let held = holder[0]
        .acquire("inv-1", AcquireOptions::default())
        .await?;
    let mut waiting = Vec::new();
    for wave in 0..WAVES {
        let each = WAITERS / WAVES;
        for session in &sessions[wave * each..][..each] {
            waiting.push(tokio::spawn(waits(session.clone(), wave)));
        }
        let standing = waiting.len() as u64;
        crowd
            .counts("a wave joins the queue", |_, waiters, _| {
                waiters >= standing
            })
            .await?;
    }

    // Leases of sessions that nobody keeps alive any more: their process has died.
    doomed(&mut crowd).await?;
    let (freed, mut served) = (held.release().await?, Vec::new());
    ensure!(freed, "the holder's lease had ended");
    for waiter in waiting {
        let served_in_time = timeout(PATIENCE, waiter)
            .await
            .context("a waiter starves")?;
        served.push(served_in_time??);
    }
    // Tokens grow with every grant: in their order nobody comes before somebody of an earlier wave.
    served.sort_unstable();
    assert_eq!(served.len(), WAITERS);
    assert!(
        served.is_sorted_by_key(|(_, wave)| wave),
        "somebody was served before an earlier wave"
    );

    crowd
        .counts("the dead processes' leases expire", |leases, _, alive| {
            alive == (SESSIONS + 1) as u64 && leases <= STORM as u64
        })
        .await?;
    stop.store(true, Ordering::Relaxed);
    for caller in storm {
        ensure!(caller.await?? > 0, "a caller of the storm got nothing");
    }
    crowd
        .counts("everything is given back", |leases, waiters, _| {
            leases == 0 && waiters == 0
        })
        .await?;
    let lost = sessions.iter().filter(|session| !session.is_valid());
    assert_eq!(lost.count(), 0, "sessions were lost");
    crowd.cluster.stop().await
}
