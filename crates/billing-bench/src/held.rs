//! Decides what a held lease takes: resident memory of each node when fresh, when the audit log is full, with the leases held, and
//! when their sessions have been closed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde::Serialize;

use crate::{
    Common, cpu,
    place::Place,
    report::{Report, number},
    ways::acquire_all,
    wire::{self, Leases, Session},
};

/// A session's share; the ledger's bound is above it.
const LEASES_PER_SESSION: u64 = 5_000;
/// Leases of one call.
const ITEMS: u64 = 500;
/// Sessions that are filled at once.
const AT_ONCE: usize = 8;
/// Followers apply what the leader has acknowledged a heartbeat later.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leases held at once
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    pub leases: u64,
}

/// Resident memory of each node, in order of their ids.
#[derive(Debug, Serialize)]
struct Stage {
    what: &'static str,
    resident_bytes: Vec<u64>,
}

pub async fn run(common: &Common, args: &Args) -> Result<Report> {
    let mut place = Place::start(common).await?;
    let mut stages = Vec::new();
    stages.push(stage(&mut place, "fresh")?);
    // The audit log keeps the newest million records whatever is held: once it is full, what grows is the leases.
    let sessions = hold(&mut place, "earlier", args.leases).await?;
    close(&mut place, sessions).await?;
    applied(&mut place, 0).await?;
    stages.push(stage(&mut place, "as many acquired and ended before")?);
    let begun = Instant::now();
    let sessions = hold(&mut place, "held", args.leases).await?;
    let per_second = args.leases as f64 / begun.elapsed().as_secs_f64();
    applied(&mut place, args.leases).await?;
    stages.push(stage(&mut place, "held")?);
    close(&mut place, sessions).await?;
    applied(&mut place, 0).await?;
    stages.push(stage(&mut place, "sessions closed")?);
    let leader = place.leader().await?;
    place.stop().await?;
    show(args, leader, per_second, &stages)
}

fn show(args: &Args, leader: usize, per_second: f64, stages: &[Stage]) -> Result<Report> {
    let mut report = Report::default();
    report.line(format!(
        "resident memory of each node, MB (node {leader} leads); {} leases, acquired at {}/s by AcquireLeases({ITEMS})",
        number(args.leases as f64),
        number(per_second)
    ));
    let rows: Vec<Vec<String>> = stages
        .iter()
        .map(|stage| {
            let mb = stage
                .resident_bytes
                .iter()
                .map(|bytes| number(*bytes as f64 / 1e6));
            std::iter::once(stage.what.to_owned()).chain(mb).collect()
        })
        .collect();
    report.table(&["", "node 1", "node 2", "node 3"], &rows);
    let of = |what| stages.iter().find(|stage| stage.what == what);
    let (fresh, held) = of("fresh").zip(of("held")).context("a stage is missing")?;
    let per_lease: Vec<f64> = held
        .resident_bytes
        .iter()
        .zip(&fresh.resident_bytes)
        .map(|(held, fresh)| held.saturating_sub(*fresh) as f64 / args.leases as f64)
        .collect();
    report.line(format!(
        "bytes per held lease, with its record in the audit log and the log's tail: {}",
        per_lease
            .iter()
            .map(|bytes| number(*bytes))
            .collect::<Vec<_>>()
            .join(", ")
    ));
    report.fact("leases", args.leases);
    report.fact("leases_per_second", per_second);
    report.fact("stages", serde_json::to_value(stages)?);
    report.fact("bytes_per_lease", per_lease);
    Ok(report)
}

fn stage(place: &mut Place, what: &'static str) -> Result<Stage> {
    Ok(Stage {
        what,
        resident_bytes: place
            .pids()?
            .into_iter()
            .map(cpu::resident)
            .collect::<Result<_>>()?,
    })
}

/// Sessions that hold `leases` together.
async fn hold(place: &mut Place, name: &str, leases: u64) -> Result<Vec<Session>> {
    let leader = place.leader_endpoint().await?;
    let mut connections = Vec::new();
    for _ in 0..AT_ONCE {
        connections.push(wire::connect(&leader).await?);
    }
    let firsts: Vec<u64> = (0..leases)
        .step_by(usize::try_from(LEASES_PER_SESSION)?)
        .collect();
    let mut sessions = Vec::new();
    for some in firsts.chunks(AT_ONCE) {
        let filling = some.iter().zip(&connections).map(|(first, connection)| {
            let until = (first + LEASES_PER_SESSION).min(leases);
            fill(connection.clone(), name, *first, until)
        });
        sessions.extend(try_join_all(filling).await?);
    }
    Ok(sessions)
}

/// One session with the leases `first` to `until`.
async fn fill(mut leases: Leases, name: &str, first: u64, until: u64) -> Result<Session> {
    let mut session = Session::open(&mut leases, &format!("{name}-{first}"), wire::TTL).await?;
    let mut next = first;
    while next < until {
        let invoices: Vec<String> = (next..until.min(next + ITEMS))
            .map(|number| format!("{name}-{number}"))
            .collect();
        acquire_all(&mut leases, &mut session, &invoices).await?;
        next += ITEMS;
    }
    Ok(session)
}

async fn close(place: &mut Place, sessions: Vec<Session>) -> Result<()> {
    let mut leases = wire::connect(&place.leader_endpoint().await?).await?;
    for session in sessions {
        let closed = session.close(&mut leases).await?;
        ensure!(closed, "a session had ended before it was closed");
    }
    Ok(())
}

/// Waits until every node has `leases` leases.
async fn applied(place: &mut Place, leases: u64) -> Result<()> {
    let deadline = Instant::now() + CAUGHT_UP_WITHIN;
    loop {
        let views = place.cluster.views(&place.client).await;
        let counts: Vec<Option<u64>> = views
            .iter()
            .map(|view| view.as_ref().map(|view| view.leases))
            .collect();
        if counts.iter().all(|count| *count == Some(leases)) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{leases} leases should be held, the nodes count {counts:?}"
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
