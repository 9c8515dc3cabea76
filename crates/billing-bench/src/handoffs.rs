//! Decides what a hand-off is: a lease released and granted to the next who waits. Many callers on one invoice, each queueing again
//! at once; and how evenly they are served.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::{
    Common, disk,
    floors::{self, Means},
    load::Amount,
    machine,
    place::{Measured, Place},
    report::{Report, number},
    stats::{Latencies, Median, Percentiles, fairness, median},
    ways::{self, Kind, Wish},
};

/// Longer than a whole queue takes.
const WAIT: Duration = Duration::from_secs(60);
/// The release that frees an invoice grants the next in the same apply.
const APPENDS_OF_A_HANDOFF: f64 = 1.0;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Callers who want the same invoice
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..=1_000))]
    waiting: u16,
    /// Connections that the callers share
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// Ways to ask, one figure each
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Kind::Unary, Kind::Pipeline], value_name = "WAY,...")]
    ways: Vec<Kind>,
}

#[derive(Debug, Serialize)]
struct Figure {
    way: Kind,
    handoffs_per_second: Median,
    /// The worst round's.
    fairness: f64,
    /// From asking to having given back.
    latency: Percentiles,
    server_us: Median,
    client_us: Median,
}

pub struct Handoffs {
    waiting: usize,
    connections: usize,
    seen: Vec<(Kind, Vec<Measured>)>,
}

impl Handoffs {
    pub fn new(args: &Args) -> Handoffs {
        Handoffs {
            waiting: usize::from(args.waiting),
            connections: usize::from(args.connections),
            seen: args.ways.iter().map(|way| (*way, Vec::new())).collect(),
        }
    }

    pub async fn round(&mut self, place: &mut Place, length: Duration) -> Result<()> {
        let wish = Wish {
            same: true,
            wait: WAIT,
        };
        for (way, seen) in &mut self.seen {
            let amount = Amount {
                callers: self.waiting,
                connections: self.connections,
                threads: 1,
                length,
            };
            seen.push(ways::measure(place, *way, wish, amount).await?);
        }
        Ok(())
    }

    pub fn report(&self, common: &Common, disk: &disk::SyncFigures) -> Result<Report> {
        let mut report = Report::default();
        report.line(format!(
            "hand-offs of one invoice among {} callers; medians (least to most) of {} rounds of {} s; CPU per hand-off",
            self.waiting, common.rounds, common.seconds
        ));
        let figures = self
            .seen
            .iter()
            .map(|(way, seen)| figure(*way, seen))
            .collect::<Result<Vec<_>>>()?;
        let rows: Vec<Vec<String>> = figures.iter().map(Figure::row).collect();
        report.table(
            &[
                "way",
                "hand-offs/s",
                "fairness",
                "p50 ms",
                "p99 ms",
                "server us",
                "client us",
            ],
            &rows,
        );
        let best = figures.iter().max_by(|a, b| {
            f64::total_cmp(&a.handoffs_per_second.middle, &b.handoffs_per_second.middle)
        });
        if let Some(best) = best {
            let means = Means {
                cores: machine::cores()? as f64,
                appends: disk.each_of_three.middle,
                in_sequence: APPENDS_OF_A_HANDOFF,
                at_once: 1.0,
                cpu_us: best.server_us.middle + best.client_us.middle,
            };
            let verdict = floors::HANDOFFS.judge(best.handoffs_per_second.middle, means);
            report.line(verdict.to_string());
            report.fact("floor", serde_json::to_value(&verdict)?);
        }
        report.fact("figures", serde_json::to_value(&figures)?);
        Ok(report)
    }
}

impl Figure {
    fn row(&self) -> Vec<String> {
        vec![
            self.way.to_string(),
            self.handoffs_per_second.to_string(),
            format!("{:.3}", self.fairness),
            format!("{:.2}", self.latency.p50_ms),
            format!("{:.2}", self.latency.p99_ms),
            number(self.server_us.middle),
            number(self.client_us.middle),
        ]
    }
}

fn figure(way: Kind, seen: &[Measured]) -> Result<Figure> {
    let over = |of: &dyn Fn(&Measured) -> f64| median(&seen.iter().map(of).collect::<Vec<_>>());
    Ok(Figure {
        way,
        handoffs_per_second: over(&|one| one.seen.per_second()),
        fairness: over(&|one| fairness(&one.seen.each)).least,
        latency: Latencies::merged(seen.iter().map(|one| &one.seen.latencies))?.figures(),
        server_us: over(&|one| one.seen.each_costs(one.server())),
        client_us: over(&|one| one.seen.each_costs(one.seen.ours)),
    })
}

pub async fn run(common: &Common, args: &Args) -> Result<Report> {
    let mut place = Place::start(common).await?;
    let mut handoffs = Handoffs::new(args);
    let mut syncs = Vec::new();
    for round in common.each_round() {
        syncs.push(disk::measure(place.folder(), common.length())?);
        handoffs.round(&mut place, common.length()).await?;
        eprintln!("round {round} of {} done", common.rounds);
    }
    place.stop().await?;
    let disk = disk::SyncFigures::of(&syncs);
    let mut report = Report::default();
    disk.show(&mut report)?;
    report.section("handoffs", handoffs.report(common, &disk)?);
    Ok(report)
}
