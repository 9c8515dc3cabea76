//! Decides how long nobody can acquire when the leader is killed, stopped or cut off, and whether a lease that was acknowledged
//! is still there afterwards. Measured where it hurts: at callers that acquire and release all the time.

mod callers;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use billing_client::Client;
use billing_demo::harness::{Cluster, ClusterOptions, Lan, Signal};
use clap::ValueEnum;
use serde::Serialize;

use crate::{
    Common, machine, place,
    report::Report,
    stats::{Median, median},
};
use callers::Callers;

const LED_WITHIN: Duration = Duration::from_secs(30);
/// After this a cluster does not recover any more, and the run says so.
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);
/// Answers must have come without a pause for this long before a gap counts as over: there may be a second one.
const CALM_FOR: Duration = Duration::from_secs(2);
/// What such a pause is.
const PAUSE: Duration = Duration::from_millis(250);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How far behind the leader a node may be at the next fall, in entries.
const BEHIND_MAX: u64 = 1_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What happens to the leader, one table row each; `link` needs network namespaces, hence root
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Kind::Kill, Kind::Stop, Kind::Link], value_name = "KIND,...")]
    kind: Vec<Kind>,
    /// Falls of each kind
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=200))]
    runs: u8,
    /// How many callers acquire and release meanwhile
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    callers: u16,
    /// Connections that the callers share
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// How long nothing happens to the leader under `busy`
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=3_600), value_name = "SECONDS")]
    busy_for: u16,
    /// One more flag for every node, such as --node-flag=--heartbeat=200ms
    #[arg(long = "node-flag", allow_hyphen_values = true, value_name = "FLAG")]
    node_flags: Vec<String>,
}

/// What happens to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// SIGKILL; started again afterwards
    Kill,
    /// SIGSTOP; SIGCONT afterwards
    Stop,
    /// Every packet to and from its machine is lost; plugged in again afterwards
    Link,
    /// Nothing, while every core is kept busy: it must stay the leader
    Busy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Kill => "kill -9",
            Kind::Stop => "SIGSTOP",
            Kind::Link => "link cut",
            Kind::Busy => "nothing (all cores busy)",
        })
    }
}

/// What one kind showed.
#[derive(Debug, Serialize)]
struct Figure {
    kind: Kind,
    runs: usize,
    gap_ms: Median,
    /// In the order of the runs.
    gaps_ms: Vec<f64>,
    /// The longest pause between two answers while nothing was broken, over all runs.
    calm_pause_ms: f64,
    leaders_changed: u64,
    acquired: u64,
    /// Calls of which nobody could tell, or that had not happened when their time was up.
    failed: u64,
    /// Acknowledged leases that were looked up after a fall. A single one that is gone ends the run with an error.
    leases_checked: u64,
}

pub async fn run(common: &Common, args: &Args) -> Result<Report> {
    let mut figures = Vec::new();
    // Last: from then on this thread lives in a network of its own.
    let (cut, others): (Vec<Kind>, Vec<Kind>) =
        args.kind.iter().partition(|kind| **kind == Kind::Link);
    for kind in others {
        figures.push(measure(common, args, kind, None).await?);
    }
    if !cut.is_empty() {
        let lan = Lan::plug_in(place::NODES)?;
        figures.push(measure(common, args, Kind::Link, Some(&lan)).await?);
    }
    let mut report = Report::default();
    report.line(format!(
        "no acquire succeeded for, in ms: {} callers over {} connections, {} nodes",
        args.callers,
        args.connections,
        place::NODES
    ));
    report.table(&HEAD, &figures.iter().map(Figure::row).collect::<Vec<_>>());
    for figure in &figures {
        let gaps: Vec<String> = figure
            .gaps_ms
            .iter()
            .map(|gap| format!("{gap:.0}"))
            .collect();
        report.line(format!("{}: {}", figure.kind, gaps.join(" ")));
    }
    report.line(
        "every acknowledged lease that was not released stood under its token after every fall",
    );
    report.fact("figures", serde_json::to_value(&figures)?);
    Ok(report)
}

const HEAD: [&str; 9] = [
    "leader",
    "runs",
    "median",
    "least",
    "worst",
    "pause before",
    "leases checked",
    "acquired",
    "failed",
];

impl Figure {
    fn row(&self) -> Vec<String> {
        vec![
            self.kind.to_string(),
            self.runs.to_string(),
            format!("{:.0}", self.gap_ms.middle),
            format!("{:.0}", self.gap_ms.least),
            format!("{:.0}", self.gap_ms.most),
            format!("{:.0}", self.calm_pause_ms),
            self.leases_checked.to_string(),
            self.acquired.to_string(),
            self.failed.to_string(),
        ]
    }
}

/// All falls of one kind on one cluster, under one load.
async fn measure(common: &Common, args: &Args, kind: Kind, lan: Option<&Lan>) -> Result<Figure> {
    let folder = place::folder(common)?;
    let mut nodes = Nodes::start(folder.path(), args, lan).await?;
    let callers = Callers::start(
        nodes.cluster.endpoints(),
        usize::from(args.callers),
        usize::from(args.connections),
    )?;
    let mut figure = Figure {
        kind,
        runs: 0,
        gap_ms: median(&[]),
        gaps_ms: Vec::new(),
        calm_pause_ms: 0.0,
        leaders_changed: 0,
        acquired: 0,
        failed: 0,
        leases_checked: 0,
    };
    let runs = if kind == Kind::Busy { 1 } else { args.runs };
    for run in 1..=runs {
        let fall = nodes.fall(&callers, kind, args).await?;
        figure.leases_checked += callers.check(&nodes.client).await?;
        eprintln!(
            "{kind}, {run} of {runs}: {:.0} ms, node {} after node {}",
            ms(fall.gap),
            fall.after,
            fall.before
        );
        figure.runs += 1;
        figure.gaps_ms.push(ms(fall.gap));
        figure.calm_pause_ms = figure.calm_pause_ms.max(ms(fall.pause_before));
        figure.leaders_changed += fall.terms;
    }
    let done = callers.stop().await?;
    figure.acquired = done.acquired;
    figure.failed = done.failed;
    figure.gap_ms = median(&figure.gaps_ms);
    nodes.cluster.stop().await?;
    ensure!(
        kind != Kind::Busy || figure.leaders_changed == 0,
        "the leader was lost {} times although nothing happened to it",
        figure.leaders_changed
    );
    Ok(figure)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// What one fall showed.
struct Fall {
    before: usize,
    after: usize,
    gap: Duration,
    pause_before: Duration,
    terms: u64,
}

/// The nodes, and how they are broken and mended.
struct Nodes<'a> {
    cluster: Cluster,
    client: Client,
    lan: Option<&'a Lan>,
}

impl<'a> Nodes<'a> {
    async fn start(folder: &Path, args: &Args, lan: Option<&'a Lan>) -> Result<Nodes<'a>> {
        let mut options = ClusterOptions::new(folder.join("nodes"));
        "warn".clone_into(&mut options.log);
        options.flags.clone_from(&args.node_flags);
        if let Some(lan) = lan {
            options.homes = lan.homes();
            // Nobody else is on that network.
            options.flags.push("--insecure".to_owned());
        }
        let mut cluster = Cluster::start(options)?;
        // A node that does not answer is asked again soon.
        let client = Client::builder()
            .endpoints(cluster.endpoints())
            .attempt(Duration::from_millis(500))
            .build()?;
        cluster.led(&client, LED_WITHIN).await?;
        Ok(Nodes {
            cluster,
            client,
            lan,
        })
    }

    async fn fall(&mut self, callers: &Callers, kind: Kind, args: &Args) -> Result<Fall> {
        let (before, term) = self.settled().await?;
        let calm = Instant::now();
        self.calm(callers, calm, Duration::ZERO).await?;
        let broken = Instant::now();
        let at_least = match kind {
            Kind::Kill => {
                self.cluster.kill(before)?;
                Duration::ZERO
            }
            Kind::Stop => {
                self.cluster.signal(before, Signal::STOP)?;
                Duration::ZERO
            }
            Kind::Link => {
                self.lan.context("no network to cut")?.unplug(before)?;
                Duration::ZERO
            }
            Kind::Busy => Duration::from_secs(u64::from(args.busy_for)),
        };
        let busy = (kind == Kind::Busy).then(KeptBusy::start).transpose()?;
        let over = self.calm(callers, broken, at_least).await?;
        drop(busy);
        let gap = callers.longest_pause(broken, over);
        match kind {
            Kind::Kill => self.cluster.start_node(before, false)?,
            Kind::Stop => self.cluster.signal(before, Signal::CONT)?,
            Kind::Link => self.lan.context("no network to mend")?.plug(before)?,
            Kind::Busy => {}
        }
        let (after, term_after) = self.settled().await?;
        Ok(Fall {
            before,
            after,
            gap,
            pause_before: callers.longest_pause(calm, broken),
            terms: term_after - term,
        })
    }

    /// Waits until answers have come without a pause for a while, from `since` and `at_least` on; when that was.
    async fn calm(&self, callers: &Callers, since: Instant, at_least: Duration) -> Result<Instant> {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            callers.alive()?;
            let now = Instant::now();
            if now - since >= CALM_FOR + at_least
                && callers.longest_pause(now - CALM_FOR, now) < PAUSE
            {
                return Ok(now);
            }
            if now - since > RECOVERED_WITHIN + at_least {
                bail!("callers wait for answers since {:?}", now - since);
            }
        }
    }

    /// Waits until every node follows one leader, and has nearly what it has. Who leads, and in which term.
    async fn settled(&mut self) -> Result<(usize, u64)> {
        let since = Instant::now();
        loop {
            let views = self.cluster.views(&self.client).await;
            let views: Vec<_> = views.into_iter().flatten().collect();
            let furthest = views.iter().map(|view| view.applied_index).max();
            if let Some((first, furthest)) = views.first().zip(furthest)
                && first.leader_id != 0
                && views.len() == place::NODES
                && views.iter().all(|view| {
                    (view.leader_id, view.term) == (first.leader_id, first.term)
                        && view.applied_index + BEHIND_MAX >= furthest
                })
            {
                return Ok((usize::try_from(first.leader_id)?, first.term));
            }
            self.cluster.all_running()?;
            ensure!(
                since.elapsed() < RECOVERED_WITHIN,
                "the nodes do not agree on a leader"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// One busy thread a core, until dropped.
struct KeptBusy {
    over: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl KeptBusy {
    fn start() -> Result<KeptBusy> {
        let over = Arc::new(AtomicBool::new(false));
        let threads = (0..machine::cores()?)
            .map(|_| {
                let over = over.clone();
                thread::Builder::new()
                    .name("busy".to_owned())
                    .spawn(move || while !over.load(Ordering::Relaxed) {})
            })
            .collect::<Result<_, _>>()?;
        Ok(KeptBusy { over, threads })
    }
}

impl Drop for KeptBusy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}
