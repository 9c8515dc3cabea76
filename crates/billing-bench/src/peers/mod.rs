//! Decides how billingd stands beside etcd: the same callers on as many connections, the same disk, turn by turn in one run, so that
//! what the machine does meanwhile falls on both. Only the ratio of two figures of one run means anything.

mod etcd;
mod wire;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use self::etcd::{ByEtcd, Etcd};
use crate::{
    Common, disk,
    load::{self, Amount, Seen},
    place::{self, Place},
    report::{Report, number},
    stats::{Latencies, Median, Percentiles, fairness, median},
    ways::{self, Kind, Wish},
};

/// Longer than a whole queue takes.
const WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many callers at once, one figure each
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256", value_name = "N,...", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    callers: Vec<u16>,
    /// Callers who want the same invoice, for the hand-offs
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..=1_000))]
    waiting: u16,
    /// Connections that the callers share
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Who {
    Billingd(Kind),
    /// One lease a worker; a key put when absent, and deleted.
    EtcdKeys,
    /// Its lock service.
    EtcdLocks,
}

const WHO: [Who; 4] = [
    Who::Billingd(Kind::Unary),
    Who::Billingd(Kind::Pipeline),
    Who::EtcdKeys,
    Who::EtcdLocks,
];

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Who::Billingd(way) => write!(f, "billingd, {way}"),
            Who::EtcdKeys => f.write_str("etcd, txn + delete"),
            Who::EtcdLocks => f.write_str("etcd, v3lock"),
        }
    }
}

/// Pairs on invoices of their own, or hand-offs of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    who: Who,
    callers: usize,
    same: bool,
}

#[derive(Debug, Serialize)]
struct Figure {
    who: Who,
    callers: usize,
    per_second: Median,
    latency: Percentiles,
    /// All three processes together.
    server_us: Median,
    client_us: Median,
    /// The worst round's; of hand-offs.
    fairness: f64,
    /// Against etcd's better way with as many callers.
    times_etcd: f64,
}

pub async fn run(common: &Common, args: &Args) -> Result<Report> {
    let version = etcd::version()?;
    let mut place = Place::start(common).await?;
    let folder = place::folder(common)?;
    let mut peer = Etcd::start(&folder.path().join("etcd")).await?;
    let mut cells: Vec<(Cell, Vec<Seen>)> = cells(args)
        .into_iter()
        .map(|cell| (cell, Vec::new()))
        .collect();
    let mut syncs = Vec::new();
    for round in common.each_round() {
        syncs.push(disk::measure(place.folder(), common.length())?);
        for (cell, seen) in &mut cells {
            seen.push(measure(common, args, &mut place, &mut peer, *cell).await?);
        }
        eprintln!("round {round} of {} done", common.rounds);
    }
    place.stop().await?;
    peer.stop().await?;
    let mut report = Report::default();
    disk::SyncFigures::of(&syncs).show(&mut report)?;
    report.line(format!(
        "billingd beside {version}: 3 durable nodes each, default settings; {} connections; medians (least to most) of {} interleaved rounds of {} s",
        args.connections, common.rounds, common.seconds
    ));
    report.fact("etcd", version);
    let (own, one): (Vec<_>, Vec<_>) = cells.iter().partition(|(cell, _)| !cell.same);
    show(&mut report, "pairs", &own)?;
    show(&mut report, "hand-offs", &one)?;
    Ok(report)
}

fn cells(args: &Args) -> Vec<Cell> {
    let own = args.callers.iter().map(|callers| (*callers, false));
    own.chain([(args.waiting, true)])
        .flat_map(|(callers, same)| {
            WHO.into_iter()
                // A put that finds the key there has to be tried again and again; etcd's answer to that is its lock service.
                .filter(move |who| !same || *who != Who::EtcdKeys)
                .map(move |who| Cell {
                    who,
                    callers: usize::from(callers),
                    same,
                })
        })
        .collect()
}

async fn measure(
    common: &Common,
    args: &Args,
    place: &mut Place,
    peer: &mut Etcd,
    cell: Cell,
) -> Result<Seen> {
    let amount = Amount {
        callers: cell.callers,
        connections: usize::from(args.connections),
        threads: 1,
        length: common.length(),
    };
    let lock_service = match cell.who {
        Who::Billingd(way) => {
            let wish = if cell.same {
                Wish {
                    same: true,
                    wait: WAIT,
                }
            } else {
                Wish::OWN
            };
            return Ok(ways::measure(place, way, wish, amount).await?.seen);
        }
        Who::EtcdKeys => false,
        Who::EtcdLocks => true,
    };
    let leader = peer.leader().await?;
    let way = ByEtcd {
        endpoint: peer.endpoint(leader),
        lock_service,
        same: cell.same,
    };
    let seen = load::run(&way, amount, &peer.pids()).await?;
    let leads_now = peer.leader().await?;
    ensure!(
        leads_now == leader,
        "etcd member {leader} led at the beginning of a measurement and member {leads_now} at its end: the machine is too busy"
    );
    Ok(seen)
}

fn show(report: &mut Report, what: &str, cells: &[&(Cell, Vec<Seen>)]) -> Result<()> {
    let mut figures = cells
        .iter()
        .map(|(cell, seen)| figure(*cell, seen))
        .collect::<Result<Vec<_>>>()?;
    let etcd: Vec<(usize, f64)> = figures
        .iter()
        .filter(|figure| !matches!(figure.who, Who::Billingd(_)))
        .map(|figure| (figure.callers, figure.per_second.middle))
        .collect();
    for figure in &mut figures {
        let best = etcd
            .iter()
            .filter(|(callers, _)| *callers == figure.callers)
            .map(|(_, rate)| *rate)
            .fold(0.0, f64::max);
        figure.times_etcd = figure.per_second.middle / best;
    }
    let per_second = format!("{what}/s");
    let head = [
        "who",
        "callers",
        per_second.as_str(),
        "x etcd",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "server us",
        "client us",
        "fairness",
    ];
    let rows: Vec<Vec<String>> = figures
        .iter()
        .map(|figure| {
            vec![
                figure.who.to_string(),
                figure.callers.to_string(),
                figure.per_second.to_string(),
                format!("{:.2}", figure.times_etcd),
                format!("{:.2}", figure.latency.p50_ms),
                format!("{:.2}", figure.latency.p99_ms),
                format!("{:.2}", figure.latency.p999_ms),
                number(figure.server_us.middle),
                number(figure.client_us.middle),
                format!("{:.3}", figure.fairness),
            ]
        })
        .collect();
    report.line("");
    report.table(&head, &rows);
    report.fact(what, serde_json::to_value(&figures)?);
    Ok(())
}

fn figure(cell: Cell, seen: &[Seen]) -> Result<Figure> {
    let over = |of: &dyn Fn(&Seen) -> f64| median(&seen.iter().map(of).collect::<Vec<_>>());
    Ok(Figure {
        who: cell.who,
        callers: cell.callers,
        per_second: over(&Seen::per_second),
        latency: Latencies::merged(seen.iter().map(|one| &one.latencies))?.figures(),
        server_us: over(&|one| one.each_costs(one.watched.iter().sum())),
        client_us: over(&|one| one.each_costs(one.ours)),
        fairness: over(&|one| fairness(&one.each)).least,
        times_etcd: 0.0,
    })
}
