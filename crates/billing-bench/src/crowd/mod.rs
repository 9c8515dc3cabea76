//! Decides how a crowd is made and judged: very many sessions that must all stay alive, while very many wait for one invoice, while
//! others acquire as fast as they can, and while very many leases expire at once. Order and losses are checked, not only shown.

mod keepers;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use billing_proto::v1::{pipeline_request, pipeline_response};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use self::keepers::{Keepers, PHASES, Phase, last_beats};
use crate::{
    Common, cpu,
    load::Amount,
    place::Place,
    report::{Report, number},
    stats::{Latencies, Percentiles},
    ways::{self, Kind, Wish, acquire_all},
    wire::{self, Lane, Leases, Pipeline, Session},
};

const INVOICE: &str = "crowd-one";
const TTL: Duration = Duration::from_secs(30);
/// Longer: on a busy machine it takes a while until the doomed hold all their leases.
const DOOMED_TTL: Duration = Duration::from_secs(60);
const WAIT: Duration = Duration::from_secs(300);
/// How long each phase without an end of its own lasts: every session beats at least once.
const PHASE_LENGTH: Duration = Duration::from_secs(15);
const CONNECTIONS: usize = 8;
/// Sessions opened, or filled, at once beside the keepers'.
const AT_ONCE: usize = 64;
/// Waiters join in so many waves; each is known to stand in the queue before the next begins.
const WAVES: usize = 10;
const LEASES_PER_DOOMED: u64 = 100;
const STORM_CALLERS: usize = 256;
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(60);
/// Cluster time is counted in whole milliseconds.
const EARLY_MAX: Duration = Duration::from_millis(2);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Sessions kept alive throughout
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    sessions: u32,
    /// Waiters on one invoice, each in a session of its own
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    waiters: u32,
    /// Leases that expire at once
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    expiring: u64,
}

/// Resident memory of each node, in order of their ids.
#[derive(Debug, Serialize)]
struct Memory {
    what: &'static str,
    resident_bytes: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct Queue {
    waiters: usize,
    served: usize,
    /// Granted before somebody of an earlier wave.
    out_of_order: usize,
    handoffs_per_second: f64,
    /// From the first release to the grant.
    wait: Percentiles,
}

#[derive(Debug, Serialize)]
struct Expiry {
    leases: u64,
    doomed_sessions: usize,
    /// From the earliest moment at which a lease could end to when it was gone.
    delay: Percentiles,
}

pub async fn run(common: &Common, args: &Args) -> Result<Report> {
    let mut place = Place::start(common).await?;
    let mut memory = Vec::new();
    remember(&mut memory, &mut place, "fresh")?;
    let endpoint = place.leader_endpoint().await?;

    eprintln!("opening {} sessions", args.sessions);
    let sessions = usize::try_from(args.sessions)?;
    let keepers = Keepers::start(&endpoint, sessions, TTL).await?;
    remember(&mut memory, &mut place, "all sessions open")?;
    eprintln!("nothing else");
    keepers.enter(Phase::Quiet);
    tokio::time::sleep(PHASE_LENGTH).await;

    eprintln!("{} waiters on one invoice", args.waiters);
    keepers.enter(Phase::Queue);
    let queue = queue(&mut place, &mut memory, usize::try_from(args.waiters)?).await?;

    eprintln!("acquire storm");
    keepers.enter(Phase::Storm);
    let amount = Amount {
        callers: STORM_CALLERS,
        connections: CONNECTIONS,
        threads: 1,
        length: PHASE_LENGTH,
    };
    let storm = ways::measure(&mut place, Kind::PipelineStubs, Wish::OWN, amount).await?;

    eprintln!("{} leases expire", args.expiring);
    let doomed = doom(&endpoint, args.expiring).await?;
    remember(&mut memory, &mut place, "doomed leases held")?;
    keepers.enter(Phase::Expiry);
    let expiry = expire(&mut place, doomed, args.expiring).await?;
    remember(&mut memory, &mut place, "after the mass expiry")?;

    let kept = keepers.stop().await?;
    place.cluster.all_running()?;
    place.stop().await?;
    let mut report = Report::default();
    report.line(format!(
        "{} sessions of TTL {} s kept alive throughout: {} lost",
        number(sessions as f64),
        TTL.as_secs(),
        kept.lost
    ));
    report.fact("sessions", sessions);
    report.fact("sessions_lost", kept.lost);
    show_beats(&mut report, &kept.beats)?;
    report.line(format!(
        "storm: {} pairs/s by {STORM_CALLERS} callers",
        number(storm.seen.per_second())
    ));
    report.line(format!(
        "{} waiters on one invoice: {} served, {} out of order, {} hand-offs/s; wait once it was free: {}",
        number(queue.waiters as f64),
        number(queue.served as f64),
        queue.out_of_order,
        number(queue.handoffs_per_second),
        queue.wait
    ));
    report.line(format!(
        "{} leases of {} sessions expire at once; delay: {}",
        number(expiry.leases as f64),
        number(expiry.doomed_sessions as f64),
        expiry.delay
    ));
    report.fact("queue", serde_json::to_value(&queue)?);
    report.fact("expiry", serde_json::to_value(&expiry)?);
    show_memory(&mut report, &memory)?;
    ensure!(
        kept.lost == 0,
        "{} sessions were lost:\n{}",
        kept.lost,
        report.text
    );
    ensure!(
        queue.served == queue.waiters && queue.out_of_order == 0,
        "the queue was not served in order:\n{}",
        report.text
    );
    Ok(report)
}

fn remember(memory: &mut Vec<Memory>, place: &mut Place, what: &'static str) -> Result<()> {
    let pids = place.pids()?.into_iter();
    memory.push(Memory {
        what,
        resident_bytes: pids.map(cpu::resident).collect::<Result<_>>()?,
    });
    Ok(())
}

fn show_beats(report: &mut Report, beats: &[Latencies]) -> Result<()> {
    let rows: Vec<Vec<String>> = PHASES
        .iter()
        .zip(beats)
        .map(|(phase, beats)| {
            let figures = beats.figures();
            let ms = [
                figures.p50_ms,
                figures.p99_ms,
                figures.p999_ms,
                figures.most_ms,
            ];
            [phase.name().to_owned(), number(figures.count as f64)]
                .into_iter()
                .chain(ms.map(|ms| format!("{ms:.1}")))
                .collect()
        })
        .collect();
    report.table(
        &[
            "keep-alives, from when they were due",
            "beats",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "worst ms",
        ],
        &rows,
    );
    let facts: Vec<_> = PHASES
        .iter()
        .zip(beats)
        .map(
            |(phase, beats)| serde_json::json!({"phase": phase.name(), "latency": beats.figures()}),
        )
        .collect();
    report.fact("keep_alives", facts);
    Ok(())
}

fn show_memory(report: &mut Report, memory: &[Memory]) -> Result<()> {
    let rows: Vec<Vec<String>> = memory
        .iter()
        .map(|memory| {
            let mb = memory
                .resident_bytes
                .iter()
                .map(|bytes| number(*bytes as f64 / 1e6));
            std::iter::once(memory.what.to_owned()).chain(mb).collect()
        })
        .collect();
    report.table(
        &["resident memory, MB", "node 1", "node 2", "node 3"],
        &rows,
    );
    report.fact("memory", serde_json::to_value(memory)?);
    Ok(())
}

/// Sessions by the same connection, some at once, in order.
async fn open_all(leases: &Leases, name: &str, count: usize) -> Result<Vec<Session>> {
    stream::iter(0..count)
        .map(|number| {
            let mut leases = leases.clone();
            let holder = format!("{name}-{number}");
            async move { Session::open(&mut leases, &holder, TTL * 10).await }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

/// One of the crowd before an invoice.
struct Waiter {
    lane: Lane,
    session: Session,
    wave: usize,
}

struct Served {
    wave: usize,
    token: u64,
    at: Instant,
}

impl Waiter {
    /// Waits its turn, and lets the next one in at once.
    async fn wait(mut self) -> Result<Served> {
        use pipeline_request::Request;
        use pipeline_response::Result as Answer;
        let request = self.session.acquire(INVOICE, WAIT);
        let token = match self.lane.ask(Request::AcquireLease(request)).await? {
            Answer::AcquireLease(granted) => wire::token(granted)?,
            other => anyhow::bail!("an acquire was answered with {other:?}"),
        };
        let at = Instant::now();
        let request = wire::release(INVOICE, token);
        self.lane.ask(Request::ReleaseLease(request)).await?;
        Ok(Served {
            wave: self.wave,
            token,
            at,
        })
    }
}

async fn queue(place: &mut Place, memory: &mut Vec<Memory>, count: usize) -> Result<Queue> {
    let endpoint = place.leader_endpoint().await?;
    let mut first = wire::connect(&endpoint).await?;
    let mut holder = Session::open(&mut first, "holder", TTL * 10).await?;
    let held = first
        .acquire_lease(holder.acquire(INVOICE, Duration::ZERO))
        .await?
        .into_inner();
    let held = wire::token(held)?;
    let mut lanes = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut leases = wire::connect(&endpoint).await?;
        lanes.push(Pipeline::open(&mut leases, count.div_ceil(CONNECTIONS)).await?);
    }
    let sessions = open_all(&first, "waiter", count).await?;
    let mut waiting = Vec::with_capacity(count);
    for (number, session) in sessions.into_iter().enumerate() {
        let waiter = Waiter {
            lane: lanes[number % CONNECTIONS]
                .pop()
                .context("more waiters than lanes")?,
            session,
            wave: number * WAVES / count,
        };
        let next_wave = (number + 1) * WAVES / count > waiter.wave;
        waiting.push(tokio::spawn(waiter.wait()));
        if next_wave {
            waiters_stand(place, &endpoint, waiting.len()).await?;
        }
    }
    remember(memory, place, "the queue stands")?;
    let freed = Instant::now();
    first.release_lease(wire::release(INVOICE, held)).await?;
    let mut served = Vec::with_capacity(count);
    for waiter in waiting {
        served.push(waiter.await.context("a waiter panicked")??);
    }
    served.sort_unstable_by_key(|served| served.token);
    let mut wait = Latencies::new()?;
    let mut last = Duration::ZERO;
    for served in &served {
        let waited = served.at.saturating_duration_since(freed);
        last = last.max(waited);
        wait.record(waited);
    }
    // Tokens grow with every grant: in their order, no wave may come after a later one.
    let mut latest = 0;
    let mut out_of_order = 0;
    for served in &served {
        out_of_order += usize::from(served.wave < latest);
        latest = latest.max(served.wave);
    }
    Ok(Queue {
        waiters: count,
        served: served.len(),
        out_of_order,
        handoffs_per_second: served.len() as f64 / last.as_secs_f64(),
        wait: wait.figures(),
    })
}

async fn waiters_stand(place: &Place, endpoint: &str, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let standing = place.client.status_of(endpoint).await?.waiters;
        if standing >= count as u64 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{count} asked to wait, {standing} stand in the queue"
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Sessions that hold `leases` together, of which nobody will take care.
struct Doomed {
    leases: Leases,
    sessions: Vec<Session>,
}

async fn doom(endpoint: &str, leases: u64) -> Result<Doomed> {
    let connection = wire::connect(endpoint).await?;
    let firsts = (0..leases).step_by(usize::try_from(LEASES_PER_DOOMED)?);
    let sessions = stream::iter(firsts)
        .map(|first| {
            let mut connection = connection.clone();
            let invoices: Vec<String> = (first..leases.min(first + LEASES_PER_DOOMED))
                .map(|number| format!("doomed-{number}"))
                .collect();
            async move {
                let holder = format!("doomed-{first}");
                let mut session = Session::open(&mut connection, &holder, DOOMED_TTL).await?;
                acquire_all(&mut connection, &mut session, &invoices).await?;
                anyhow::Ok(session)
            }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(Doomed {
        leases: connection,
        sessions,
    })
}

/// Keeps the doomed alive once more, all at once, and watches how their leases go.
async fn expire(place: &mut Place, mut doomed: Doomed, leases: u64) -> Result<Expiry> {
    let endpoint = place.leader_endpoint().await?;
    let held = place.client.status_of(&endpoint).await?.leases;
    ensure!(
        held >= leases,
        "{leases} leases should be held, the leader counts {held}: some expired before their time"
    );
    let sent = last_beats(&mut doomed.leases, &doomed.sessions).await?;
    let mut delay = Latencies::new()?;
    let mut deadlines = sent
        .into_iter()
        .flat_map(|sent| {
            std::iter::repeat_n(
                sent + DOOMED_TTL,
                usize::try_from(LEASES_PER_DOOMED).unwrap_or(0),
            )
        })
        .take(usize::try_from(leases)?);
    let mut gone = 0;
    let deadline = Instant::now() + DOOMED_TTL + PATIENCE;
    while gone < leases {
        let left = place.client.status_of(&endpoint).await?.leases;
        let seen = Instant::now();
        let gone_now = held.saturating_sub(left).clamp(gone, leases);
        for earliest in deadlines.by_ref().take(usize::try_from(gone_now - gone)?) {
            ensure!(
                seen + EARLY_MAX >= earliest,
                "a lease ended {:?} before its time",
                earliest - seen
            );
            delay.record(seen.saturating_duration_since(earliest));
        }
        gone = gone_now;
        ensure!(
            seen < deadline,
            "{} of {leases} leases did not expire",
            leases - gone
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(Expiry {
        leases,
        doomed_sessions: doomed.sessions.len(),
        delay: delay.figures(),
    })
}
