//! Decides what a snapshot of many invoices does to the latency of an acquire: the same callers go on while one is taken and
//! while none is, turn by turn, and every acquire is counted on the side on which it fell.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;

use crate::{
    Common, invoices,
    place::{NODES, Place},
    report::{Report, number},
    stats::{Latencies, Percentiles},
    wire::{self, Leases, Session},
};

/// Above it, a snapshot costs the callers too much.
const RATIO_MAX: f64 = 2.0;
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(600);
/// Nobody takes one by itself meanwhile.
const NEVER: &str = "1000000000";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Invoices in the ledger
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    invoices: u64,
    /// Callers that acquire and release meanwhile, each on an invoice of its own
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    callers: u16,
    /// Let all three nodes take theirs at the same moment, instead of the leader alone
    #[arg(long)]
    everywhere: bool,
}

/// Odd while a snapshot is taken; each change is a new period.
type Period = AtomicU64;

fn in_snapshot(period: u64) -> bool {
    period % 2 == 1
}

#[derive(Default)]
struct Shared {
    period: Period,
    over: AtomicBool,
}

pub async fn run(common: &Common, args: &Args) -> Result<Report> {
    let mut place = Place::with_flags(common, &["--snapshot-every", NEVER]).await?;
    invoices::submit(&place, args.invoices).await?;
    let leader = place.leader().await?;
    let endpoint = place.cluster.endpoint(leader);
    let shared = Arc::new(Shared::default());
    let mut callers = Vec::new();
    for number in 0..args.callers {
        let leases = wire::connect(&endpoint).await?;
        callers.push(tokio::spawn(call(leases, number, shared.clone())));
    }
    let chosen: Vec<String> = (1..=NODES)
        .filter(|node| args.everywhere || *node == leader)
        .map(|node| place.cluster.endpoint(node))
        .collect();
    let mut took = Vec::new();
    let mut bytes = 0;
    for _ in common.each_round() {
        tokio::time::sleep(common.length()).await; // What is measured: a while without.
        let begun = Instant::now();
        shared.period.fetch_add(1, Ordering::SeqCst);
        let taken = join_all(
            chosen
                .iter()
                .map(|node| place.client.take_snapshot_of(node, SNAPSHOT_WITHIN)),
        )
        .await;
        shared.period.fetch_add(1, Ordering::SeqCst);
        took.push(begun.elapsed());
        for taken in taken {
            bytes = taken?.bytes;
        }
    }
    shared.over.store(true, Ordering::SeqCst);
    let mut without = Latencies::new()?;
    let mut during = Latencies::new()?;
    for caller in callers {
        let (quiet, busy) = caller.await??;
        without.add(&quiet)?;
        during.add(&busy)?;
    }
    place.cluster.all_running()?;
    ensure!(
        place.leader().await? == leader,
        "the leader changed: the machine is too busy"
    );
    place.stop().await?;
    ensure!(
        during.count() > 0,
        "no acquire fell into a snapshot: more invoices, or more callers"
    );
    show(
        args,
        chosen.len(),
        &took,
        bytes,
        without.figures(),
        during.figures(),
    )
}

/// Acquires and releases until it is over. What touched a snapshot counts as during it.
async fn call(
    mut leases: Leases,
    number: u16,
    shared: Arc<Shared>,
) -> Result<(Latencies, Latencies)> {
    let mut session = Session::open(&mut leases, &format!("caller-{number}"), wire::TTL).await?;
    let invoice = format!("lock-{number}");
    let (mut without, mut during) = (Latencies::new()?, Latencies::new()?);
    while !shared.over.load(Ordering::SeqCst) {
        let request = session.acquire(&invoice, Duration::ZERO);
        let before = shared.period.load(Ordering::SeqCst);
        let begun = Instant::now();
        let granted = leases.acquire_lease(request).await?.into_inner();
        let took = begun.elapsed();
        let after = shared.period.load(Ordering::SeqCst);
        if before != after || in_snapshot(before) {
            during.record(took);
        } else {
            without.record(took);
        }
        leases
            .release_lease(wire::release(&invoice, wire::token(granted)?))
            .await?;
    }
    Ok((without, during))
}

fn show(
    args: &Args,
    nodes: usize,
    took: &[Duration],
    bytes: u64,
    without: Percentiles,
    during: Percentiles,
) -> Result<Report> {
    let ratio = during.p99_ms / without.p99_ms;
    let longest = took.iter().max().context("no round was measured")?;
    let mut report = Report::default();
    report.line(format!(
        "acquires by {} callers, {} invoices in the ledger; {} snapshots of {} MB on {nodes} node(s), {:.1} s the longest",
        args.callers,
        number(args.invoices as f64),
        took.len(),
        number(bytes as f64 / 1e6),
        longest.as_secs_f64()
    ));
    let row = |what: &str, figures: &Percentiles| {
        vec![
            what.to_owned(),
            number(figures.count as f64),
            format!("{:.2}", figures.p50_ms),
            format!("{:.2}", figures.p99_ms),
            format!("{:.2}", figures.p999_ms),
            format!("{:.2}", figures.most_ms),
        ]
    };
    report.table(
        &["", "acquires", "p50 ms", "p99 ms", "p99.9 ms", "worst ms"],
        &[row("without", &without), row("during a snapshot", &during)],
    );
    let verdict = if ratio <= RATIO_MAX {
        "holds"
    } else {
        "MISSED"
    };
    report.line(format!(
        "p99 during a snapshot: {ratio:.2} times that without; at most {RATIO_MAX}: {verdict}"
    ));
    report.fact("without", serde_json::to_value(without)?);
    report.fact("during", serde_json::to_value(during)?);
    report.fact("p99_ratio", ratio);
    report.fact("snapshot_bytes", bytes);
    let seconds: Vec<f64> = took.iter().map(Duration::as_secs_f64).collect();
    report.fact("snapshot_seconds", seconds);
    Ok(report)
}
