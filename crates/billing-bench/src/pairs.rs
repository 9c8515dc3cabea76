//! Decides what is shown of acquire and release pairs: which ways, how many callers, how many threads that make the load; each
//! caller on an invoice of its own.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::{
    Common, disk,
    floors::{self, Means, Verdict},
    load::Amount,
    machine,
    place::{Measured, Place},
    report::{Report, number},
    stats::{Latencies, Median, Percentiles, median},
    ways::{self, Kind, Wish},
};

/// An acquire must be durable before its release is asked for.
const APPENDS_OF_A_PAIR: f64 = 2.0;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many callers at once, one figure each
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256", value_name = "N,...", value_parser = callers)]
    callers: Vec<usize>,
    /// Connections that the callers share
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// Threads that make the load: the first for every figure, the others where callers are most
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_name = "N,...", value_parser = clap::value_parser!(u8).range(1..=16))]
    threads: Vec<u8>,
    /// Ways to ask, one figure each
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Kind::Unary, Kind::Pipeline, Kind::Batch, Kind::UnaryStubs, Kind::PipelineStubs], value_name = "WAY,...")]
    ways: Vec<Kind>,
}

fn callers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=10_000) => Ok(count),
        _ => Err("must be 1 to 10,000".to_owned()),
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Figure {
    way: Kind,
    callers: usize,
    threads: usize,
    pairs_per_second: Median,
    /// Of one turn: a pair, or a hundred together.
    latency: Percentiles,
    leader_us_per_pair: Median,
    followers_us_per_pair: Median,
    server_us_per_pair: Median,
    client_us_per_pair: Median,
    pairs_per_entry: Median,
}

struct Cell {
    way: Kind,
    callers: usize,
    threads: usize,
    seen: Vec<Measured>,
}

/// Measures round by round, so that whatever else the machine does falls on every figure alike.
pub struct Pairs {
    connections: usize,
    cells: Vec<Cell>,
}

impl Pairs {
    pub fn new(args: &Args) -> Pairs {
        Pairs {
            connections: usize::from(args.connections),
            cells: cells(args),
        }
    }

    pub async fn round(&mut self, place: &mut Place, length: Duration) -> Result<()> {
        for cell in &mut self.cells {
            let amount = Amount {
                callers: cell.callers,
                connections: self.connections,
                threads: cell.threads,
                length,
            };
            let measured = ways::measure(place, cell.way, Wish::OWN, amount).await?;
            cell.seen.push(measured);
        }
        Ok(())
    }

    pub fn report(&self, common: &Common, disk: &disk::SyncFigures) -> Result<Report> {
        let figures = self.cells.iter().map(figure).collect::<Result<Vec<_>>>()?;
        let mut report = Report::default();
        report.line(format!(
            "acquire and release pairs: {} connections; medians (least to most) of {} rounds of {} s; CPU per pair",
            self.connections, common.rounds, common.seconds
        ));
        report.table(&HEAD, &figures.iter().map(Figure::row).collect::<Vec<_>>());
        let verdicts = verdicts(&figures, disk)?;
        for verdict in &verdicts {
            report.line(verdict.to_string());
        }
        report.fact("figures", serde_json::to_value(&figures)?);
        report.fact("floors", serde_json::to_value(&verdicts)?);
        Ok(report)
    }
}

const HEAD: [&str; 12] = [
    "way",
    "callers",
    "threads",
    "pairs/s",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "leader us",
    "followers us",
    "server us",
    "client us",
    "pairs/entry",
];

impl Figure {
    fn row(&self) -> Vec<String> {
        vec![
            self.way.to_string(),
            self.callers.to_string(),
            self.threads.to_string(),
            self.pairs_per_second.to_string(),
            format!("{:.2}", self.latency.p50_ms),
            format!("{:.2}", self.latency.p99_ms),
            format!("{:.2}", self.latency.p999_ms),
            number(self.leader_us_per_pair.middle),
            number(self.followers_us_per_pair.middle),
            number(self.server_us_per_pair.middle),
            number(self.client_us_per_pair.middle),
            number(self.pairs_per_entry.middle),
        ]
    }

    fn means(&self, cores: f64, disk: &disk::SyncFigures) -> Means {
        Means {
            cores,
            appends: disk.each_of_three.middle,
            in_sequence: APPENDS_OF_A_PAIR,
            at_once: self.callers as f64,
            cpu_us: self.server_us_per_pair.middle + self.client_us_per_pair.middle,
        }
    }
}

pub async fn run(common: &Common, args: &Args) -> Result<Report> {
    let mut place = Place::start(common).await?;
    let mut pairs = Pairs::new(args);
    let mut syncs = Vec::new();
    for round in common.each_round() {
        syncs.push(disk::measure(place.folder(), common.length())?);
        pairs.round(&mut place, common.length()).await?;
        eprintln!("round {round} of {} done", common.rounds);
    }
    place.stop().await?;
    let disk = disk::SyncFigures::of(&syncs);
    let mut report = Report::default();
    disk.show(&mut report)?;
    report.section("pairs", pairs.report(common, &disk)?);
    Ok(report)
}

/// Every way with every number of callers on the first number of threads; the other numbers of threads where callers are most.
fn cells(args: &Args) -> Vec<Cell> {
    let most = args.callers.iter().max().copied().unwrap_or(1);
    let mut cells = Vec::new();
    for way in &args.ways {
        for callers in &args.callers {
            for (position, threads) in args.threads.iter().enumerate() {
                if position == 0 || *callers == most {
                    cells.push(Cell {
                        way: *way,
                        callers: *callers,
                        threads: usize::from(*threads),
                        seen: Vec::new(),
                    });
                }
            }
        }
    }
    cells
}

fn figure(cell: &Cell) -> Result<Figure> {
    let over =
        |of: &dyn Fn(&Measured) -> f64| median(&cell.seen.iter().map(of).collect::<Vec<_>>());
    let latencies = Latencies::merged(cell.seen.iter().map(|one| &one.seen.latencies))?;
    Ok(Figure {
        way: cell.way,
        callers: cell.callers,
        threads: cell.threads,
        pairs_per_second: over(&|one| one.seen.per_second()),
        latency: latencies.figures(),
        leader_us_per_pair: over(&|one| one.seen.each_costs(one.leader)),
        followers_us_per_pair: over(&|one| one.seen.each_costs(one.followers)),
        server_us_per_pair: over(&|one| one.seen.each_costs(one.server())),
        client_us_per_pair: over(&|one| one.seen.each_costs(one.seen.ours)),
        pairs_per_entry: over(&|one| one.seen.done as f64 / one.entries.max(1) as f64),
    })
}

/// The best figure of each kind against its floor.
fn verdicts(figures: &[Figure], disk: &disk::SyncFigures) -> Result<Vec<Verdict>> {
    let cores = machine::cores()? as f64;
    let best = |fits: &dyn Fn(&Figure) -> bool| {
        figures
            .iter()
            .filter(|figure| fits(figure))
            .max_by(|a, b| f64::total_cmp(&a.pairs_per_second.middle, &b.pairs_per_second.middle))
    };
    let floors = [
        (
            floors::LONE,
            best(&|figure| figure.callers == 1 && !figure.way.is_batch()),
        ),
        (floors::UNARY, best(&|figure| figure.way == Kind::Unary)),
        (
            floors::PIPELINE,
            best(&|figure| figure.way == Kind::Pipeline),
        ),
    ];
    Ok(floors
        .into_iter()
        .filter_map(|(floor, figure)| figure.map(|figure| (floor, figure)))
        .map(|(floor, figure)| {
            floor.judge(figure.pairs_per_second.middle, figure.means(cores, disk))
        })
        .collect())
}
