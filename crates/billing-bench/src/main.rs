//! `billing-bench`: load on three durable nodes of this machine, beside what its disk can do in the same run.
//! Decides which measurement runs; each is a module with its own `Args` and a `run` that returns a [`report::Report`].
//! Claims nothing about other machines.

mod all;
mod charges;
mod cpu;
mod crowd;
mod disk;
mod failover;
mod floors;
mod handoffs;
mod held;
mod invoices;
mod join;
mod load;
mod machine;
mod pairs;
mod peers;
mod place;
mod report;
mod snapshot;
mod stats;
mod ways;
mod wire;

use std::{ops::RangeInclusive, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use report::Report;

/// As in billingd, so that the load generator takes no more of the cores than it must.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load on three durable nodes of this machine, beside what its disk can do in the same run.
///
/// Every measurement starts its own nodes on free ports, and prints medians over interleaved rounds. The machine is shared with
/// its own load generator: run it when nothing else runs, and compare only figures of one run.
#[derive(Debug, Parser)]
#[command(name = "billing-bench", version)]
struct Args {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Bench,
}

/// What every measurement can be told.
#[derive(Debug, clap::Args)]
struct Common {
    /// Where the nodes' folders are made; its disk is what is measured
    #[arg(long, global = true, default_value = "target", value_name = "FOLDER")]
    folder: PathBuf,
    /// Write the figures there too, as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often everything is measured; medians are printed
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: u8,
    /// Seconds of each measurement
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=60))]
    seconds: u8,
}

impl Common {
    fn length(&self) -> Duration {
        Duration::from_secs(u64::from(self.seconds))
    }

    fn each_round(&self) -> RangeInclusive<u8> {
        1..=self.rounds
    }
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Pairs, hand-offs, charges and held leases, one after the other in one run
    All(held::Args),
    /// Acquire and release pairs: unary, over the Pipeline, and a hundred at once
    Pairs(pairs::Args),
    /// Many callers on one invoice: how fast it goes from one to the next, and how evenly
    Handoffs(handoffs::Args),
    /// Invoices claimed, begun and settled, by the ledger alone
    Charges(charges::Args),
    /// Memory of each node while many leases are held
    Held(held::Args),
    /// Very many sessions, waiters and expiring leases: order, losses, memory
    Crowd(crowd::Args),
    /// The same load on etcd, turn by turn
    Peers(peers::Args),
    /// A leader killed, stopped or cut off: how long nobody can acquire
    Failover(failover::Args),
    /// Acquires while a snapshot of many invoices is taken
    Snapshot(snapshot::Args),
    /// A node that joins a cluster of many invoices by snapshot, while acquires go on
    Join(join::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    // One thread: children die with the thread that started them. Load has threads of its own.
    let ran = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(&args)));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("billing-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    let common = &args.common;
    std::fs::create_dir_all(&common.folder)
        .with_context(|| format!("cannot make {}", common.folder.display()))?;
    let before = machine::Load::now()?;
    let report = match &args.command {
        Bench::All(args) => all::run(common, args).await,
        Bench::Pairs(args) => pairs::run(common, args).await,
        Bench::Handoffs(args) => handoffs::run(common, args).await,
        Bench::Charges(args) => charges::run(common, args).await,
        Bench::Held(args) => held::run(common, args).await,
        Bench::Crowd(args) => crowd::run(common, args).await,
        Bench::Peers(args) => peers::run(common, args).await,
        Bench::Failover(args) => failover::run(common, args).await,
        Bench::Snapshot(args) => snapshot::run(common, args).await,
        Bench::Join(args) => join::run(common, args).await,
    }?;
    finish(common, &report, &before)
}

/// What a measurement does when it is told nothing.
fn defaults<A: clap::Args>() -> Result<A> {
    let command = A::augment_args(clap::Command::new("defaults"));
    let matches = command.try_get_matches_from(["defaults"])?;
    Ok(A::from_arg_matches(&matches)?)
}

fn finish(common: &Common, report: &Report, before: &machine::Load) -> Result<()> {
    let machine = machine::Machine::now()?;
    let after = machine::Load::now()?;
    println!("{machine}; load average {before} before, {after} after\n");
    print!("{}", report.text);
    if let Some(path) = &common.json {
        let whole = serde_json::json!({
            "machine": machine,
            "load_before": before,
            "load_after": after,
            "figures": report.json,
        });
        std::fs::write(path, serde_json::to_vec_pretty(&whole)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
