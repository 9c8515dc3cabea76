//! Decides what a charge costs the ledger alone: invoices claimed, a charge begun on each and settled as charged, with no provider in
//! between. Workers are sessions of the Rust client; the invoices were submitted before the watch began.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use billing_client::{ClaimedInvoice, Client, Outcome, SessionOptions, v1};
use futures::future::try_join_all;
use serde::Serialize;

use crate::{
    Common, disk,
    load::{Amount, Caller, Share, Turn, Way},
    place::{Measured, Place, watched},
    report::{Report, number},
    stats::{Latencies, Median, Percentiles, median},
    ways,
};

const TTL: Duration = Duration::from_secs(30);
/// Submitted before the first round, for each second of it; later rounds go by the one before.
const FIRST_PER_SECOND: f64 = 10_000.0;
/// Times what the round before has done, so that it does not run out.
const SPARE: f64 = 2.0;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Workers, each with a session of its own
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    workers: u16,
    /// Invoices that a worker claims at once and then charges side by side
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    claim: u16,
    /// Connections that the workers share
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
}

#[derive(Debug, Serialize)]
struct Figure {
    workers: usize,
    claim: u32,
    invoices_per_second: Median,
    submitted_per_second: Median,
    /// Of one claim with all its charges.
    latency: Percentiles,
    server_us: Median,
    client_us: Median,
}

pub struct Charges {
    workers: usize,
    claim: u32,
    connections: usize,
    submitted: u64,
    submit_rates: Vec<f64>,
    seen: Vec<Measured>,
}

impl Charges {
    pub fn new(args: &Args) -> Charges {
        Charges {
            workers: usize::from(args.workers),
            claim: u32::from(args.claim),
            connections: usize::from(args.connections),
            submitted: 0,
            submit_rates: Vec::new(),
            seen: Vec::new(),
        }
    }

    pub async fn round(&mut self, place: &mut Place, length: Duration) -> Result<()> {
        let expected = self
            .seen
            .last()
            .map_or(FIRST_PER_SECOND, |last| last.seen.per_second() * SPARE);
        let count = (expected * (length + Duration::from_secs(1)).as_secs_f64()) as u64;
        self.submit(&place.client, count).await?;
        let way = Workers {
            endpoints: place.cluster.endpoints(),
            claim: self.claim,
        };
        let amount = Amount {
            callers: self.workers,
            connections: self.connections,
            threads: 1,
            length,
        };
        self.seen.push(watched(place, &way, amount).await?);
        Ok(())
    }

    async fn submit(&mut self, client: &Client, count: u64) -> Result<()> {
        let numbers = self.submitted..self.submitted + count;
        let begun = std::time::Instant::now();
        let done = client.submit_invoices(numbers.map(invoice), |_| {}).await?;
        ensure!(
            done.submitted == count,
            "{count} invoices were submitted and {} are new",
            done.submitted
        );
        self.submit_rates
            .push(count as f64 / begun.elapsed().as_secs_f64());
        self.submitted += count;
        Ok(())
    }

    pub fn report(&self, common: &Common) -> Result<Report> {
        let over =
            |of: &dyn Fn(&Measured) -> f64| median(&self.seen.iter().map(of).collect::<Vec<_>>());
        let figure = Figure {
            workers: self.workers,
            claim: self.claim,
            invoices_per_second: over(&|one| one.seen.per_second()),
            submitted_per_second: median(&self.submit_rates),
            latency: Latencies::merged(self.seen.iter().map(|one| &one.seen.latencies))?.figures(),
            server_us: over(&|one| one.seen.each_costs(one.server())),
            client_us: over(&|one| one.seen.each_costs(one.seen.ours)),
        };
        let mut report = Report::default();
        report.line(format!(
            "charges, ledger only: {} workers claim {} invoices at once, begin and settle each; medians (least to most) of {} rounds of {} s",
            self.workers, self.claim, common.rounds, common.seconds
        ));
        report.line(format!(
            "claim + begin + settle: {} invoices/s; {} us of server CPU and {} us of client CPU for each",
            figure.invoices_per_second,
            number(figure.server_us.middle),
            number(figure.client_us.middle)
        ));
        report.line(format!(
            "a claim with all its charges: {}; submitted before: {} invoices/s by one client",
            figure.latency, figure.submitted_per_second
        ));
        report.fact("figure", serde_json::to_value(&figure)?);
        Ok(report)
    }
}

pub async fn run(common: &Common, args: &Args) -> Result<Report> {
    let mut place = Place::start(common).await?;
    let mut charges = Charges::new(args);
    let mut syncs = Vec::new();
    for round in common.each_round() {
        syncs.push(disk::measure(place.folder(), common.length())?);
        charges.round(&mut place, common.length()).await?;
        eprintln!("round {round} of {} done", common.rounds);
    }
    place.stop().await?;
    let mut report = Report::default();
    disk::SyncFigures::of(&syncs).show(&mut report)?;
    report.section("charges", charges.report(common)?);
    Ok(report)
}

fn invoice(number: u64) -> v1::Invoice {
    v1::Invoice {
        invoice_id: format!("charge-{number}"),
        customer_id: format!("customer-{}", number % 1_000),
        amount_minor: 1_999,
        currency: "EUR".to_owned(),
        due_at: None,
        priority: 0,
    }
}

#[derive(Clone)]
struct Workers {
    endpoints: Vec<String>,
    claim: u32,
}

struct Worker {
    session: billing_client::Session,
    claim: u32,
    references: Arc<str>,
    charged: u64,
}

impl Way for Workers {
    type Caller = Worker;

    async fn open(&self, share: Share) -> Result<Vec<Worker>> {
        let clients = ways::clients(&self.endpoints, false, &share)?;
        let mut workers = Vec::new();
        for worker in share.callers {
            let client = &clients[worker % clients.len()];
            let options = SessionOptions::new(format!("worker-{worker}"), TTL);
            let session = client.open_session(options).await?;
            workers.push(Worker {
                // The session's id is drawn anew for every round: no two charges have one reference.
                references: Arc::from(format!("ch-{}", session.id())),
                session,
                claim: self.claim,
                charged: 0,
            });
        }
        Ok(workers)
    }
}

impl Caller for Worker {
    async fn turn(&mut self) -> Result<Turn> {
        let claimed = self.session.claim(self.claim).await?;
        if claimed.invoices.is_empty() {
            return Ok(Turn::Over);
        }
        let count = claimed.invoices.len() as u64;
        let numbers = self.charged..;
        let charges = numbers.zip(claimed.invoices).map(|(number, claimed)| {
            charge(
                self.session.client(),
                claimed,
                format!("{}-{number}", self.references),
            )
        });
        try_join_all(charges).await?;
        self.charged += count;
        Ok(Turn::Did(count))
    }
}

async fn charge(client: &Client, claimed: ClaimedInvoice, reference: String) -> Result<()> {
    let ClaimedInvoice { guard, invoice } = claimed;
    let begun = client
        .begin_charge(&invoice.invoice_id, guard.token(), None)
        .await?;
    let outcome = Outcome::try_from(v1::settle_charge_request::Outcome::Charged(
        v1::settle_charge_request::Charged {
            reference,
            ..Default::default()
        },
    ))
    .context("a reference that the ledger would not take")?;
    let status = client
        .settle_charge(
            &invoice.invoice_id,
            guard.token(),
            &begun.attempt.idempotency_key,
            &outcome,
        )
        .await?;
    ensure!(
        status == v1::InvoiceStatus::Paid,
        "settled, and {} is {}",
        invoice.invoice_id,
        status.as_str_name()
    );
    guard.settled();
    Ok(())
}
