//! Decides how long a new node takes to join a cluster of many invoices, and what it costs those who acquire meanwhile. The
//! leader's log is purged behind a snapshot first, so that nothing but a snapshot can bring the newcomer up. A call that
//! fails, or another leader, ends the measurement: the promise is that clients do not notice.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use billing_client::v1;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    Common, cpu, invoices,
    place::{NODES, Place},
    report::{Report, number},
    stats::{Latencies, Percentiles},
    wire::{self, Leases, Session},
};

/// Entries that a node may be behind the leader and count as caught up; the leader gives nobody a vote who is farther behind.
const BEHIND_MAX: u64 = 100;
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const SAY_AGAIN: Duration = Duration::from_secs(5);
/// For the log to grow longer than what is kept of it behind a snapshot, and for the snapshot.
const PURGED_WITHIN: Duration = Duration::from_secs(600);
/// A session that may end before its caller's next call is followed by another one.
const SESSION_FOR: Duration = Duration::from_secs(200);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Invoices in the ledger
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    invoices: u64,
    /// Callers that acquire and release meanwhile, each on an invoice of its own
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    callers: u16,
    /// Seconds after which the newcomer counts as one that never catches up
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=7_200), value_name = "SECONDS")]
    within: u64,
    /// One more flag for every node, such as --node-flag=--snapshot-every=50000
    #[arg(long = "node-flag", allow_hyphen_values = true, value_name = "FLAG")]
    node_flags: Vec<String>,
}

/// Of each node, in bytes.
#[derive(Debug, Serialize)]
struct Resident {
    before: Vec<u64>,
    /// The newcomer is the last one.
    after: Vec<u64>,
}

/// What the join showed.
#[derive(Debug, Serialize)]
struct Joined {
    snapshot_bytes: u64,
    /// From the start of its process until it had a state: the first snapshot is installed.
    installed_seconds: f64,
    /// Until it had applied what the leader had, but for a few entries.
    caught_up_seconds: f64,
    voter_seconds: f64,
}

/// What one side of the moment at which the newcomer started showed.
#[derive(Debug, Serialize)]
struct Side {
    acquires: Percentiles,
    gap_ms: f64,
    /// When it ended, since this side began.
    gap_at_seconds: f64,
    seconds: f64,
}

/// Acquires as they are answered.
struct Watch {
    latencies: Latencies,
    /// The longest time without one.
    gap: Duration,
    gap_ended: Instant,
    since: Instant,
    last: Instant,
}

struct Shared(Mutex<Watch>);

impl Watch {
    fn begin() -> Result<Watch> {
        let now = Instant::now();
        Ok(Watch {
            latencies: Latencies::new()?,
            gap: Duration::ZERO,
            gap_ended: now,
            since: now,
            last: now,
        })
    }

    fn granted(&mut self, took: Duration) {
        self.latencies.record(took);
        self.went_on(Instant::now());
    }

    fn went_on(&mut self, now: Instant) {
        if now - self.last > self.gap {
            self.gap = now - self.last;
            self.gap_ended = now;
        }
        self.last = now;
    }

    /// What was seen since the watch began. A gap that has not ended counts as well.
    fn end(mut self) -> Side {
        let now = Instant::now();
        self.went_on(now);
        Side {
            acquires: self.latencies.figures(),
            gap_ms: self.gap.as_secs_f64() * 1_000.0,
            gap_at_seconds: (self.gap_ended - self.since).as_secs_f64(),
            seconds: (now - self.since).as_secs_f64(),
        }
    }
}

impl Shared {
    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to watch anew; what there was to see until now.
    fn next(&self) -> Result<Side> {
        Ok(std::mem::replace(&mut *self.watch(), Watch::begin()?).end())
    }
}

/// Callers at work. They end by themselves only when a call fails.
struct Callers {
    shared: Arc<Shared>,
    running: JoinSet<Result<()>>,
}

impl Callers {
    async fn start(endpoint: &str, count: u16) -> Result<Callers> {
        let shared = Arc::new(Shared(Mutex::new(Watch::begin()?)));
        let mut running = JoinSet::new();
        for number in 0..count {
            let leases = wire::connect(endpoint).await?;
            running.spawn(call(leases, number, shared.clone()));
        }
        Ok(Callers { shared, running })
    }

    /// An error when a call failed.
    fn alive(&mut self) -> Result<()> {
        match self.running.try_join_next() {
            None => Ok(()),
            Some(ended) => ended?.context("a call failed while it must not"),
        }
    }
}

/// Acquires and releases without a pause.
async fn call(mut leases: Leases, number: u16, shared: Arc<Shared>) -> Result<()> {
    let invoice = format!("lock-{number}");
    loop {
        let holder = format!("caller-{number}");
        let mut session = Session::open(&mut leases, &holder, wire::TTL).await?;
        let opened = Instant::now();
        while opened.elapsed() < SESSION_FOR {
            let request = session.acquire(&invoice, Duration::ZERO);
            let begun = Instant::now();
            let granted = leases.acquire_lease(request).await?.into_inner();
            shared.watch().granted(begun.elapsed());
            leases
                .release_lease(wire::release(&invoice, wire::token(granted)?))
                .await?;
        }
        session.close(&mut leases).await?;
    }
}

pub async fn run(common: &Common, args: &Args) -> Result<Report> {
    let flags: Vec<&str> = args.node_flags.iter().map(String::as_str).collect();
    let mut place = Place::with_flags(common, &flags).await?;
    invoices::submit(&place, args.invoices).await?;
    eprintln!("{} invoices are submitted", number(args.invoices as f64));
    let leader = place.leader().await?;
    let endpoint = place.cluster.endpoint(leader);
    let mut callers = Callers::start(&endpoint, args.callers).await?;
    let snapshot_bytes = purge(&mut place, &endpoint, &mut callers).await?;
    eprintln!(
        "the leader's log is purged behind a snapshot of {} MB",
        number(snapshot_bytes as f64 / 1e6)
    );
    let term = place.client.status_of(&endpoint).await?.term;
    callers.shared.next()?;
    tokio::time::sleep(common.length()).await; // What is measured: a while without.
    callers.alive()?;
    let before = resident(&mut place, NODES)?;
    let without = callers.shared.next()?;
    let mut joined = join(args, &mut place, &endpoint, &mut callers).await?;
    joined.snapshot_bytes = snapshot_bytes;
    let during = callers.shared.next()?;
    callers.alive()?;
    let after = resident(&mut place, NODES + 1)?;
    callers.running.shutdown().await;
    place.cluster.all_running()?;
    let leads = place.client.status_of(&endpoint).await?;
    ensure!(
        (leads.leader_id, leads.term) == (leads.node_id, term),
        "the leader changed while the node joined"
    );
    place.stop().await?;
    show(
        args,
        &joined,
        &without,
        &during,
        &Resident { before, after },
    )
}

/// Waits until the leader's log begins later than the cluster did; bytes of the snapshot before it.
async fn purge(place: &mut Place, leader: &str, callers: &mut Callers) -> Result<u64> {
    let since = Instant::now();
    loop {
        // Written anew until the log before it is long enough to be purged.
        let taken = place
            .client
            .take_snapshot_of(leader, PURGED_WITHIN)
            .await
            .context("no snapshot could be taken")?;
        tokio::time::sleep(LOOK_AGAIN).await;
        callers.alive()?;
        let status = place.client.status_of(leader).await?;
        if status.first_log_index > 1 {
            return Ok(taken.bytes);
        }
        ensure!(
            since.elapsed() < PURGED_WITHIN,
            "the leader purged nothing of {} entries",
            status.last_log_index
        );
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Starts the newcomer, and waits until it votes.
async fn join(
    args: &Args,
    place: &mut Place,
    leader: &str,
    callers: &mut Callers,
) -> Result<Joined> {
    let begun = Instant::now();
    let newcomer = place.cluster.join(None, &["--voter", "--allow-even"])?;
    let endpoint = place.cluster.endpoint(newcomer);
    let newcomer = u64::try_from(newcomer)?;
    let (mut installed, mut caught_up) = (None, None);
    let mut said = begun;
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        callers.alive()?;
        place.cluster.all_running()?;
        // It first: what the leader has gone on by since counts against it.
        let here = place.client.status_of(&endpoint).await.unwrap_or_default();
        let leads = place.client.status_of(leader).await?;
        let took = begun.elapsed();
        if here.applied_index > 0 {
            installed.get_or_insert(took);
            if here.applied_index + BEHIND_MAX >= leads.applied_index {
                caught_up.get_or_insert(took);
            }
        }
        if said.elapsed() >= SAY_AGAIN {
            said = Instant::now();
            eprintln!(
                "{:.0} s: the newcomer has applied {} of {}, its snapshot reaches {}, the leader's {}, whose log begins at {}",
                took.as_secs_f64(),
                here.applied_index,
                leads.applied_index,
                here.snapshot_index,
                leads.snapshot_index,
                leads.first_log_index
            );
        }
        if votes(&leads, newcomer) {
            // The leader looked after it, so it was close enough a moment ago.
            let (installed, caught_up) = (installed.unwrap_or(took), caught_up.unwrap_or(took));
            eprintln!("{:.1} s: the newcomer votes", took.as_secs_f64());
            return Ok(Joined {
                snapshot_bytes: 0,
                installed_seconds: installed.as_secs_f64(),
                caught_up_seconds: caught_up.as_secs_f64(),
                voter_seconds: took.as_secs_f64(),
            });
        }
        if took > Duration::from_secs(args.within) {
            bail!(
                "the newcomer has no vote after {took:?}: it has applied {} of {} entries",
                here.applied_index,
                leads.applied_index
            );
        }
    }
}

fn votes(status: &v1::GetStatusResponse, node: u64) -> bool {
    let mut members = status.members.iter();
    members.any(|member| member.node_id == node && member.voter)
}

/// Resident memory of the first `nodes` nodes.
fn resident(place: &mut Place, nodes: usize) -> Result<Vec<u64>> {
    (1..=nodes)
        .map(|id| {
            let process = place.cluster.node(id);
            let pid = process.map(|process| process.pid());
            cpu::resident(pid.with_context(|| format!("node {id} does not run"))?)
        })
        .collect()
}

fn show(
    args: &Args,
    joined: &Joined,
    without: &Side,
    during: &Side,
    resident: &Resident,
) -> Result<Report> {
    let mut report = Report::default();
    report.line(format!(
        "a node joined {NODES} others by a snapshot of {} MB, {} invoices in the ledger: it had a state after {:.1} s, had caught up after \
         {:.1} s and voted after {:.1} s",
        number(joined.snapshot_bytes as f64 / 1e6),
        number(args.invoices as f64),
        joined.installed_seconds,
        joined.caught_up_seconds,
        joined.voter_seconds
    ));
    let row = |what: &str, side: &Side| {
        vec![
            what.to_owned(),
            number(side.acquires.count as f64),
            number(side.acquires.count as f64 / side.seconds),
            format!("{:.2}", side.acquires.p50_ms),
            format!("{:.2}", side.acquires.p99_ms),
            format!("{:.2}", side.acquires.p999_ms),
            format!("{:.2}", side.acquires.most_ms),
            format!("{:.2}", side.gap_ms),
            format!("{:.1}", side.gap_at_seconds),
        ]
    };
    report.table(
        &[
            "", "acquires", "/s", "p50 ms", "p99 ms", "p99.9 ms", "worst ms", "gap ms", "at s",
        ],
        &[row("before", without), row("during the join", during)],
    );
    report.line(format!(
        "{} callers, none of whose calls failed",
        args.callers
    ));
    let mb = |bytes: &[u64]| -> Vec<String> {
        bytes
            .iter()
            .map(|bytes| number(*bytes as f64 / 1e6))
            .collect()
    };
    report.line(format!(
        "resident memory of each node, MB: {} before, {} after, the newcomer last",
        mb(&resident.before).join(" "),
        mb(&resident.after).join(" ")
    ));
    report.fact("invoices", args.invoices);
    report.fact("joined", serde_json::to_value(joined)?);
    report.fact("before", serde_json::to_value(without)?);
    report.fact("during", serde_json::to_value(during)?);
    report.fact("resident_bytes", serde_json::to_value(resident)?);
    report.fact("failed", 0);
    Ok(report)
}
