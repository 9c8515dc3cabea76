//! Decides what a pair is, a lease acquired and released, each caller with a session and an invoice of its own; and the three ways
//! of asking for it that are compared: a call each, tagged requests on one stream, a hundred leases in one call.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use billing_client::{AcquireOptions, Client, SessionOptions};
use billing_proto::v1::{
    self, acquire_leases_response, pipeline_request, pipeline_response, release_leases_response,
};
use serde::Serialize;

use crate::{
    Common, disk,
    load::{self, Amount, Caller, Seen, Share, Turn, Way},
    place::Place,
    report::{Report, number},
    stats::{Latencies, Median, Percentiles, median},
    wire::{self, Lane, Leases, Pipeline, Session},
};

/// Leases of one AcquireLeases.
const BATCH: usize = 100;
/// For our client's sessions, which are kept alive meanwhile.
const TTL: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many callers at once, one figure each
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256", value_name = "N,...", value_parser = callers)]
    callers: Vec<usize>,
    /// Connections that the callers share
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// Threads that make the load, one figure each
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_name = "N,...", value_parser = clap::value_parser!(u8).range(1..=16))]
    threads: Vec<u8>,
    /// Ways to ask, one figure each
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Kind::Unary, Kind::Pipeline, Kind::Batch], value_name = "WAY,...")]
    ways: Vec<Kind>,
}

fn callers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=10_000) => Ok(count),
        _ => Err("must be 1 to 10,000".to_owned()),
    }
}

/// How pairs are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A call each, through the Rust client
    Unary,
    /// A call each, through the generated stubs
    UnaryWire,
    /// Tagged requests on a stream, through the generated stubs
    Pipeline,
    /// AcquireLeases and ReleaseLeases of a hundred, through the generated stubs
    Batch,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Unary => "unary",
            Kind::UnaryWire => "unary, stubs",
            Kind::Pipeline => "Pipeline, stubs",
            Kind::Batch => "AcquireLeases(100), stubs",
        })
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Figure {
    way: Kind,
    callers: usize,
    threads: usize,
    pairs_per_second: Median,
    latency: Percentiles,
    leader_us_per_pair: Median,
    followers_us_per_pair: Median,
    server_us_per_pair: Median,
    client_us_per_pair: Median,
}

struct Cell {
    way: Kind,
    callers: usize,
    threads: usize,
    seen: Vec<Measured>,
}

/// One window, with the server's CPU told apart.
pub struct Measured {
    pub seen: Seen,
    pub leader: Duration,
    pub followers: Duration,
}

pub async fn run(common: &Common, args: &Args) -> Result<Report> {
    let mut place = Place::start(common).await?;
    let mut cells = cells(args);
    let length = Duration::from_secs(u64::from(common.seconds));
    let mut syncs = Vec::new();
    for round in 1..=common.rounds {
        eprintln!("round {round} of {}", common.rounds);
        syncs.push(disk::measure(place.folder(), length)?);
        for cell in &mut cells {
            let amount = Amount {
                callers: cell.callers,
                connections: usize::from(args.connections),
                threads: cell.threads,
                length,
            };
            cell.seen.push(measure(&mut place, cell.way, amount).await?);
        }
    }
    place.stop().await?;
    let figures = cells.iter().map(figure).collect::<Result<Vec<_>>>()?;
    let mut report = Report::default();
    show(
        &mut report,
        common,
        args,
        &figures,
        &disk::SyncFigures::of(&syncs),
    )?;
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

async fn measure(place: &mut Place, way: Kind, amount: Amount) -> Result<Measured> {
    match way {
        Kind::Unary => {
            let endpoints = place.cluster.endpoints();
            watched(place, &ByClient { endpoints }, amount).await
        }
        Kind::UnaryWire => {
            let leader = place.leader_endpoint().await?;
            watched(place, &ByCall { leader }, amount).await
        }
        Kind::Pipeline => {
            let leader = place.leader_endpoint().await?;
            watched(place, &ByStream { leader }, amount).await
        }
        Kind::Batch => {
            let leader = place.leader_endpoint().await?;
            watched(place, &ByHundred { leader }, amount).await
        }
    }
}

/// Runs the load under one leader, whose CPU is then told from the followers'.
pub async fn watched<W: Way>(place: &mut Place, way: &W, amount: Amount) -> Result<Measured> {
    let leader = place.leader().await?;
    let pids = place.pids()?;
    let seen = load::run(way, amount, &pids).await?;
    place.cluster.all_running()?;
    let leads_now = place.leader().await?;
    ensure!(
        leads_now == leader,
        "node {leader} led at the beginning of a measurement and node {leads_now} at its end: the machine is too busy"
    );
    let used = |chosen: fn(usize, usize) -> bool| {
        let ids = (1..).zip(&seen.watched);
        ids.filter(|(id, _)| chosen(*id, leader))
            .map(|(_, used)| *used)
            .sum()
    };
    Ok(Measured {
        leader: used(|id, leader| id == leader),
        followers: used(|id, leader| id != leader),
        seen,
    })
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
        server_us_per_pair: over(&|one| one.seen.each_costs(one.leader + one.followers)),
        client_us_per_pair: over(&|one| one.seen.each_costs(one.seen.ours)),
    })
}

fn show(
    report: &mut Report,
    common: &Common,
    args: &Args,
    figures: &[Figure],
    disk: &disk::SyncFigures,
) -> Result<()> {
    report.line(format!(
        "acquire and release pairs: 3 durable nodes, {} connections; medians (least to most) of {} rounds of {} s",
        args.connections, common.rounds, common.seconds
    ));
    report.line(disk.to_string());
    let head = [
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
    ];
    let rows: Vec<Vec<String>> = figures
        .iter()
        .map(|figure| {
            vec![
                figure.way.to_string(),
                figure.callers.to_string(),
                figure.threads.to_string(),
                figure.pairs_per_second.to_string(),
                format!("{:.2}", figure.latency.p50_ms),
                format!("{:.2}", figure.latency.p99_ms),
                format!("{:.2}", figure.latency.p999_ms),
                number(figure.leader_us_per_pair.middle),
                number(figure.followers_us_per_pair.middle),
                number(figure.server_us_per_pair.middle),
                number(figure.client_us_per_pair.middle),
            ]
        })
        .collect();
    report.table(&head, &rows);
    report.fact("pairs", serde_json::to_value(figures)?);
    report.fact("disk", serde_json::to_value(disk)?);
    Ok(())
}

fn invoice(caller: usize) -> String {
    format!("bench-{caller}")
}

/// Through the Rust client.
#[derive(Clone)]
struct ByClient {
    endpoints: Vec<String>,
}

struct ClientCaller {
    session: billing_client::Session,
    invoice: String,
}

impl Way for ByClient {
    type Caller = ClientCaller;

    async fn open(&self, share: Share) -> Result<Vec<ClientCaller>> {
        let clients = (0..share.connections)
            .map(|_| Client::builder().endpoints(self.endpoints.clone()).build())
            .collect::<Result<Vec<_>, _>>()?;
        let mut callers = Vec::new();
        for caller in share.callers {
            let client = &clients[caller % clients.len()];
            let options = SessionOptions::new(format!("bench-{caller}"), TTL);
            callers.push(ClientCaller {
                session: client.open_session(options).await?,
                invoice: invoice(caller),
            });
        }
        Ok(callers)
    }
}

impl Caller for ClientCaller {
    async fn turn(&mut self) -> Result<Turn> {
        let lease = self
            .session
            .acquire(&self.invoice, AcquireOptions::default())
            .await?;
        lease.release().await?;
        Ok(Turn::Did(1))
    }
}

/// Connections to the leader for one thread's share.
async fn connections(leader: &str, share: &Share) -> Result<Vec<Leases>> {
    let mut connections = Vec::new();
    for _ in 0..share.connections {
        connections.push(wire::connect(leader).await?);
    }
    Ok(connections)
}

#[derive(Clone)]
struct ByCall {
    leader: String,
}

struct CallCaller {
    leases: Leases,
    session: Session,
    invoice: String,
}

impl Way for ByCall {
    type Caller = CallCaller;

    async fn open(&self, share: Share) -> Result<Vec<CallCaller>> {
        let connections = connections(&self.leader, &share).await?;
        let mut callers = Vec::new();
        for caller in share.callers {
            let mut leases = connections[caller % connections.len()].clone();
            let session = Session::open(&mut leases, &format!("bench-{caller}"), wire::TTL).await?;
            callers.push(CallCaller {
                leases,
                session,
                invoice: invoice(caller),
            });
        }
        Ok(callers)
    }
}

impl Caller for CallCaller {
    async fn turn(&mut self) -> Result<Turn> {
        let request = self.session.acquire(&self.invoice, Duration::ZERO);
        let granted = self.leases.acquire_lease(request).await?.into_inner();
        let request = wire::release(&self.invoice, wire::token(granted)?);
        let released = self.leases.release_lease(request).await?.into_inner();
        ensure!(released.was_current, "the lease was not ours any more");
        Ok(Turn::Did(1))
    }
}

#[derive(Clone)]
struct ByStream {
    leader: String,
}

struct StreamCaller {
    lane: Lane,
    session: Session,
    invoice: String,
}

impl Way for ByStream {
    type Caller = StreamCaller;

    async fn open(&self, share: Share) -> Result<Vec<StreamCaller>> {
        let mut connections = connections(&self.leader, &share).await?;
        let lanes_each = share.callers.len().div_ceil(connections.len());
        let mut lanes = Vec::new();
        for leases in &mut connections {
            lanes.push(Pipeline::open(leases, lanes_each).await?);
        }
        let mut callers = Vec::new();
        for caller in share.callers {
            let at = caller % connections.len();
            let lane = lanes[at].pop().context("more callers than lanes")?;
            let holder = format!("bench-{caller}");
            callers.push(StreamCaller {
                lane,
                session: Session::open(&mut connections[at], &holder, wire::TTL).await?,
                invoice: invoice(caller),
            });
        }
        Ok(callers)
    }
}

impl Caller for StreamCaller {
    async fn turn(&mut self) -> Result<Turn> {
        use pipeline_request::Request;
        use pipeline_response::Result as Answer;
        let request = self.session.acquire(&self.invoice, Duration::ZERO);
        let granted = match self.lane.ask(Request::AcquireLease(request)).await? {
            Answer::AcquireLease(granted) => granted,
            other => bail!("an acquire was answered with {other:?}"),
        };
        let request = wire::release(&self.invoice, wire::token(granted)?);
        match self.lane.ask(Request::ReleaseLease(request)).await? {
            Answer::ReleaseLease(released) => {
                ensure!(released.was_current, "the lease was not ours any more");
            }
            other => bail!("a release was answered with {other:?}"),
        }
        Ok(Turn::Did(1))
    }
}

#[derive(Clone)]
struct ByHundred {
    leader: String,
}

struct HundredCaller {
    leases: Leases,
    session: Session,
    invoices: Vec<String>,
}

impl Way for ByHundred {
    type Caller = HundredCaller;

    async fn open(&self, share: Share) -> Result<Vec<HundredCaller>> {
        let connections = connections(&self.leader, &share).await?;
        let mut callers = Vec::new();
        for caller in share.callers {
            let mut leases = connections[caller % connections.len()].clone();
            let session = Session::open(&mut leases, &format!("bench-{caller}"), wire::TTL).await?;
            callers.push(HundredCaller {
                leases,
                session,
                invoices: (0..BATCH)
                    .map(|number| format!("bench-{caller}-{number}"))
                    .collect(),
            });
        }
        Ok(callers)
    }
}

impl Caller for HundredCaller {
    async fn turn(&mut self) -> Result<Turn> {
        use acquire_leases_response::item::Result as Acquired;
        use release_leases_response::item::Result as Released;
        let done_below = self.session.next_seq();
        let items = self
            .invoices
            .iter()
            .map(|invoice| {
                self.session
                    .acquire_beside(invoice, Duration::ZERO, done_below)
            })
            .collect();
        let request = v1::AcquireLeasesRequest { items };
        let acquired = self.leases.acquire_leases(request).await?.into_inner();
        let mut items = Vec::with_capacity(BATCH);
        for (invoice, item) in self.invoices.iter().zip(acquired.items) {
            match item.result.context("an item without a result")? {
                Acquired::Granted(granted) => {
                    items.push(wire::release(invoice, wire::token(granted)?));
                }
                Acquired::Error(error) => bail!("refused: {}", wire::refusal(&error)),
            }
        }
        let request = v1::ReleaseLeasesRequest { items };
        let released = self.leases.release_leases(request).await?.into_inner();
        let released = released.items.into_iter().filter(|item| {
            matches!(&item.result, Some(Released::Released(released)) if released.was_current)
        });
        ensure!(released.count() == BATCH, "a lease was not ours any more");
        Ok(Turn::Did(BATCH as u64))
    }
}
