//! `billing-bench`: acquire and release pairs on three durable nodes of this machine, beside the disk's own fdatasync rate.
//! Decides how a figure is made: rounds interleaved, medians printed. Claims nothing about other machines.

mod disk;
mod pairs;
mod stats;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use billing_client::Client;
use billing_demo::harness::{Cluster, ClusterOptions};
use clap::Parser;

use stats::{Samples, median};

const LED_WITHIN: Duration = Duration::from_secs(30);

/// Acquire and release pairs per second on three durable nodes, beside the disk's own fdatasync rate.
///
/// Starts three nodes on free ports and measures round by round: the disk alone, then each number of callers. One pair is
/// an AcquireLease and a ReleaseLease through the Rust client, unary, each caller on an invoice of its own. Prints medians
/// over the rounds, with the smallest and the largest; the machine is shared, so run it when it is quiet and compare ratios.
#[derive(Debug, Parser)]
#[command(name = "billing-bench", version)]
struct Args {
    /// How many callers at once, one figure each
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,16,64,256",
        value_name = "N,..."
    )]
    callers: Vec<usize>,
    /// Connections that the callers share
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: u8,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=60))]
    seconds: u8,
    /// Where the nodes' folders are made; its disk is what is measured
    #[arg(long, default_value = "target")]
    folder: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
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
    ensure!(
        args.callers
            .iter()
            .all(|callers| (1..=10_000).contains(callers)),
        "--callers must be 1 to 10,000"
    );
    std::fs::create_dir_all(&args.folder)?;
    let folder = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(&args.folder)?;
    let length = Duration::from_secs(u64::from(args.seconds));
    let mut options = ClusterOptions::new(folder.path().join("nodes"));
    "warn".clone_into(&mut options.log);
    let mut cluster = Cluster::start(options)?;
    let client = Client::builder().endpoints(cluster.endpoints()).build()?;
    cluster.led(&client, LED_WITHIN).await?;

    let mut syncs = Vec::new();
    let mut figures: Vec<Vec<Samples>> = args.callers.iter().map(|_| Vec::new()).collect();
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        syncs.push(disk::fdatasync_rate(folder.path(), length)?);
        for (callers, samples) in args.callers.iter().zip(&mut figures) {
            let connections = usize::from(args.connections).min(*callers);
            samples.push(pairs::measure(&cluster, *callers, connections, length).await?);
        }
    }
    cluster.stop().await?;

    let disk = median(&syncs);
    println!(
        "{} rounds of {} s, 3 nodes, {} connections; median (smallest to largest)",
        args.rounds, args.seconds, args.connections
    );
    println!(
        "fdatasync after 200 B, one at a time: {:.0}/s ({:.0} to {:.0})",
        disk.middle, disk.least, disk.most
    );
    println!(
        "{:>8} {:>10} {:>21} {:>9} {:>9} {:>9} {:>10}",
        "callers", "pairs/s", "", "p50 ms", "p99 ms", "p99.9 ms", "per sync"
    );
    for (callers, samples) in args.callers.iter().zip(&figures) {
        let rates: Vec<f64> = samples.iter().map(Samples::per_second).collect();
        let rate = median(&rates);
        let all = Samples::merged(samples);
        println!(
            "{callers:>8} {:>10.0} {:>21} {:>9.2} {:>9.2} {:>9.2} {:>10.2}",
            rate.middle,
            format!("({:.0} to {:.0})", rate.least, rate.most),
            all.percentile_ms(50.0),
            all.percentile_ms(99.0),
            all.percentile_ms(99.9),
            rate.middle / disk.middle
        );
    }
    Ok(())
}
