//! `billing-worker`: reads flags and environment, starts one charge run, shows progress, turns signals into a stop and the
//! ending into an exit code.

mod args;
mod payers;
mod progress;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use billing_client::Client;
use billing_env::Env;
use billing_gate::Gate;
use billing_worker::{Ending, Run, Stopper, Tally};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::args::Args;

const DONE: u8 = 0;
const REFUSED_OR_LEFT: u8 = 1;
const FAILED: u8 = 2;

fn main() -> ExitCode {
    match start(&Args::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("billing-worker: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn start(args: &Args) -> anyhow::Result<u8> {
    let filter = EnvFilter::try_new(&args.log).context("--log is no filter")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_ansi(std::io::stderr().is_terminal())
        .with_writer(progress::stderr)
        .init();
    let gate = Gate::new(Env::real(), args.gate()?)?;
    let client = Client::builder()
        .endpoints(args.endpoints.iter().cloned())
        .build()?;
    let options = args.run_options()?;
    // One thread: it waits for the network almost all the time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let tally = Arc::new(Tally::default());
        let (stopper, stop) = Stopper::new();
        let signals = tokio::spawn(listen(stopper)?);
        let shown = tokio::spawn(progress::show(tally.clone()));
        let run = Run::new(client, Arc::new(gate), tally.clone(), options);
        let ending = run.run(stop).await;
        shown.abort();
        signals.abort();
        progress::clear();
        let totals = tally.totals();
        writeln!(std::io::stdout(), "{totals}")?;
        match ending? {
            Ending::Empty | Ending::Stopped if totals.refused == 0 => Ok(DONE),
            Ending::Empty | Ending::Stopped => Ok(REFUSED_OR_LEFT),
            Ending::Left { in_doubt: false } => {
                tracing::info!("the rest is not due yet");
                Ok(if totals.refused == 0 { DONE } else { REFUSED_OR_LEFT })
            }
            Ending::Left { in_doubt: true } => {
                tracing::warn!("some invoices stay in doubt, and their next try is later than --patience: billingctl charge list --in-doubt");
                Ok(REFUSED_OR_LEFT)
            }
            Ending::Refused(why) => {
                eprintln!("billing-worker: refused: {why}");
                Ok(REFUSED_OR_LEFT)
            }
        }
    })
}

/// The first signal stops the run, the second ends the process.
fn listen(stopper: Stopper) -> std::io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    Ok(async move {
        let mut heard = 0;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            heard += 1;
            if heard > 1 {
                eprintln!(
                    "billing-worker: ended at once; open attempts stay in doubt and are continued by others"
                );
                std::process::exit(FAILED.into());
            }
            tracing::info!(
                "stopping: finishing what is on the wire, giving back the rest; again to end at once"
            );
            stopper.stop();
        }
    })
}
