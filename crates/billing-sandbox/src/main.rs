//! `billing-sandbox`: reads flags, starts the provider, says where it listens, ends on Ctrl-C or SIGTERM.

use std::fs;
use std::io::{IsTerminal, Write};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use billing_env::{Env, loopback_or_insecure};
use billing_sandbox::{Faults, Sandbox, Settings};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

const ABOUT: &str =
    "A payment provider to try things on: Stripe's HTTP subset that a charge needs, with books.";

const LONG: &str = "\
A payment provider to try things on. It speaks the part of Stripe's HTTP API that a charge needs (customers, payment \
methods, PaymentIntents, charges, Idempotency-Key), keeps books of every charge, and misbehaves as told. No money moves; \
everything is in memory and gone when it ends.";

const EXAMPLES: &str = "\
Examples:
  billing-sandbox                                   # listens on 127.0.0.1:7301, behaves well
  billing-sandbox --lose-reply-every 7              # every 7th POST does its work, and the caller never hears of it
  billing-sandbox --delay-ms 20..200 --seed 3053    # slow, and the same each time
  billing-sandbox --ignore-keys                     # a provider that protects nobody: the run that shows a double charge

  curl -u sk_test_sandbox: http://127.0.0.1:7301/v1/payment_intents -H 'Idempotency-Key: inv-1:create' \\
       -d amount=1500 -d currency=usd -d payment_method=pm_card_visa -d confirm=true -d 'metadata[invoice_id]=inv-1'
  curl http://127.0.0.1:7301/_config/books          # who was charged, per invoice
  curl http://127.0.0.1:7301/                       # everything it speaks

Cards that say no: 4000000000000002 (declined), ...9995 (insufficient funds), ...0341 (attaches, declines when charged);
4000002760003184 wants its customer; pm_usBankAccount takes --processing-ms. The names are those of Stripe's test cards.";

#[derive(Parser)]
#[command(name = "billing-sandbox", version, about = ABOUT, long_about = LONG, after_help = EXAMPLES)]
struct Args {
    /// Where to listen. Port 0 takes a free one and prints it.
    #[arg(
        long,
        env = "BILLING_SANDBOX_LISTEN",
        default_value = "127.0.0.1:7301",
        value_name = "HOST:PORT"
    )]
    listen: String,
    /// Listen beyond this machine although there is no TLS.
    #[arg(long)]
    insecure: bool,
    /// Write the real address (host:port) into this file once it listens.
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
    /// Append each charge, when made or changed, as a line of JSON to this file.
    #[arg(long, value_name = "FILE")]
    books: Option<PathBuf>,

    /// Wait this long before doing a request's work: 50, or a range like 20..200.
    #[arg(long, default_value = "0", value_name = "MS", value_parser = range, help_heading = "Faults")]
    delay_ms: RangeInclusive<u64>,
    /// Wait this long after the work and before the answer.
    #[arg(long, default_value = "0", value_name = "MS", value_parser = range, help_heading = "Faults")]
    reply_delay_ms: RangeInclusive<u64>,
    /// Lose the reply of every N-th POST after doing its work; 0 never.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Faults")]
    lose_reply_every: u64,
    /// Lose this share of the replies to POSTs.
    #[arg(long, default_value = "0", value_name = "0..1", value_parser = share, help_heading = "Faults")]
    lose_reply_share: f64,
    /// Answer this share of POSTs with 500, nothing done.
    #[arg(long, default_value = "0", value_name = "0..1", value_parser = share, help_heading = "Faults")]
    error_before_share: f64,
    /// Answer this share of POSTs with 500, the work done.
    #[arg(long, default_value = "0", value_name = "0..1", value_parser = share, help_heading = "Faults")]
    error_after_share: f64,
    /// Answer this share of POSTs with something that is not JSON, the work done.
    #[arg(long, default_value = "0", value_name = "0..1", value_parser = share, help_heading = "Faults")]
    garble_share: f64,
    /// Decline this share of confirmations and direct charges whatever the card.
    #[arg(long, default_value = "0", value_name = "0..1", value_parser = share, help_heading = "Faults")]
    decline_share: f64,
    /// Forget idempotency keys at this age.
    #[arg(long, default_value = "24h", value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Faults")]
    key_retention: Duration,
    /// Take no notice of idempotency keys.
    #[arg(long, help_heading = "Faults")]
    ignore_keys: bool,
    /// Do not remember declines under their key: the same request runs again.
    #[arg(long, help_heading = "Faults")]
    forget_declines: bool,
    /// Seeds ids and every fault by share.
    #[arg(long, value_name = "N", help_heading = "Faults")]
    seed: Option<u64>,

    /// How long a bank debit stays `processing`.
    #[arg(long, default_value_t = 2_000, value_name = "MS")]
    processing_ms: u64,
    /// How long a new PaymentIntent or charge is not found by search.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    search_lag_ms: u64,
    /// The smallest amount taken, in minor units (Stripe's own is 50 for usd).
    #[arg(long, default_value_t = 1, value_name = "AMOUNT")]
    amount_min: u64,
    /// What to log on stderr, as in RUST_LOG.
    #[arg(
        long,
        env = "BILLING_SANDBOX_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    log: String,
}

fn range(text: &str) -> Result<RangeInclusive<u64>, String> {
    billing_sandbox::parse_range(text)
}

fn share(text: &str) -> Result<f64, String> {
    billing_sandbox::parse_share(text)
}

fn settings(args: &Args) -> Settings {
    Settings {
        faults: Faults {
            delay_ms: args.delay_ms.clone(),
            reply_delay_ms: args.reply_delay_ms.clone(),
            lose_reply_every: args.lose_reply_every,
            lose_reply_share: args.lose_reply_share,
            error_before_share: args.error_before_share,
            error_after_share: args.error_after_share,
            garble_share: args.garble_share,
            decline_share: args.decline_share,
            ignore_keys: args.ignore_keys,
            forget_declines: args.forget_declines,
        },
        key_retention: args.key_retention,
        processing: Duration::from_millis(args.processing_ms),
        search_lag: Duration::from_millis(args.search_lag_ms),
        amount_min: args.amount_min,
        seed: args.seed.unwrap_or_else(|| Env::real().random.next_u64()),
        journal: args.books.clone(),
    }
}

fn main() -> ExitCode {
    match start(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("billing-sandbox: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start(args: Args) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).context("--log is no filter")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    loopback_or_insecure(&args.listen, args.insecure).map_err(anyhow::Error::msg)?;
    // One thread: the books are one lock, and a second thread would only wait for it.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let settings = settings(&args);
    tracing::info!(seed = settings.seed, faults = ?settings.faults, "behaviour");
    let sandbox = Sandbox::start(Env::real(), settings, &args.listen).await?;
    let address = sandbox.local_addr();
    writeln!(std::io::stdout(), "listening on http://{address}")?;
    if let Some(path) = &args.port_file {
        write_whole(path, &address.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let totals = sandbox.witness().books()["totals"].to_string();
    sandbox.stop().await;
    tracing::info!(%totals, "ended");
    Ok(())
}

/// Who waits for the file must never read half of it.
fn write_whole(path: &PathBuf, text: &str) -> std::io::Result<()> {
    let mut beside = path.clone().into_os_string();
    beside.push(".tmp");
    fs::write(&beside, text)?;
    fs::rename(&beside, path)
}
