//! `billing-demo`: a charge run that loses its leader, and a cluster in the foreground.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use billing_demo::{
    harness::{Cluster, ClusterOptions},
    run::{self, RunOptions, Source},
};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// What a shell reports for a program that ended by Ctrl-C.
const INTERRUPTED: u8 = 130;
/// Long enough to see the others elect a leader.
const RESTART_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
#[command(
    name = "billing-demo",
    version,
    about = "Real nodes, real workers, a provider, and faults on purpose"
)]
struct Args {
    #[command(subcommand)]
    command: Demo,
}

#[derive(Debug, Subcommand)]
enum Demo {
    /// Charge invoices with four workers, kill the leader in the middle, stall a worker, compare the books.
    ///
    /// Starts three nodes and a payment provider on free ports of this machine. The last three lines on standard output are the
    /// result; everything else goes to standard error. Exit code 0 only when every invoice ended, each charged exactly as
    /// often as it was paid, and every fault took place; 1 when something did not hold; 2 when the run itself failed.
    ChargeRun {
        /// How many invoices to generate
        #[arg(long, default_value_t = 10_000, conflicts_with = "file", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
        invoices: u64,
        /// Invoices to charge instead: invoice_id,customer_id,amount_minor,currency,due_at,priority
        #[arg(long)]
        file: Option<PathBuf>,
        /// Worker processes
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=32))]
        workers: u8,
        /// Keep logs and data here; otherwise a temporary folder, kept only when something did not hold
        #[arg(long)]
        folder: Option<PathBuf>,
    },
    /// Three nodes in the foreground on ports 7101 to 7103 (nodes among themselves: 7201 to 7203). Ctrl-C ends all.
    Cluster {
        /// One folder a node; made, and the cluster founded, when it does not exist
        #[arg(long, default_value = "data")]
        data: PathBuf,
        /// Log filter, such as info or billing_server=debug
        #[arg(long, default_value = "info")]
        log: String,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    // One thread: children die with the thread that started them.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let done = runtime.block_on(async {
        match args.command {
            Demo::ChargeRun {
                invoices,
                file,
                workers,
                folder,
            } => {
                let source = file.map_or(Source::Generate(invoices), Source::File);
                charge_run(source, usize::from(workers), folder).await
            }
            Demo::Cluster { data, log } => cluster(data, log).await,
        }
    });
    done.unwrap_or_else(|error| failed(&error))
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("billing-demo: {error:#}");
    ExitCode::from(2)
}

/// Completes at the first Ctrl-C or SIGTERM.
async fn asked_to_end() -> Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        ended = tokio::signal::ctrl_c() => ended.context("cannot listen for Ctrl-C"),
        _ = terminated.recv() => Ok(()),
    }
}

async fn charge_run(source: Source, workers: usize, folder: Option<PathBuf>) -> Result<ExitCode> {
    if let Source::File(path) = &source {
        std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    let temporary = tempfile::Builder::new().prefix("billing-demo-").tempdir()?;
    let options = RunOptions {
        source,
        workers,
        folder: folder.unwrap_or_else(|| temporary.path().to_owned()),
    };
    let ran = tokio::select! {
        ran = run::run(&options) => ran,
        asked = asked_to_end() => {
            asked?;
            // Dropping the run kills and reaps every process.
            eprintln!("\ndemo: interrupted, all processes ended");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    let report = match ran {
        Ok(report) => report,
        Err(error) => {
            kept(temporary, &options.folder);
            return Err(error);
        }
    };
    let seconds = report.took.as_secs_f64();
    let rate = report.comparison.paid as f64 / seconds;
    eprintln!("demo: the run took {seconds:.1} s, faults included: {rate:.0} invoices/s");
    for finding in report.comparison.findings.iter().take(20) {
        eprintln!("demo: {finding}");
    }
    for line in report.lines() {
        println!("{line}");
    }
    if report.holds() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("demo: something does not hold");
    kept(temporary, &options.folder);
    Ok(ExitCode::from(1))
}

fn kept(temporary: tempfile::TempDir, folder: &std::path::Path) {
    if temporary.path() == folder {
        // Not removed any more.
        let _ = temporary.keep();
    }
    eprintln!("demo: logs and data are kept in {}", folder.display());
}

async fn cluster(data: PathBuf, log: String) -> Result<ExitCode> {
    let mut options = ClusterOptions::new(data);
    options.ports = vec![7101, 7102, 7103, 7201, 7202, 7203];
    options.to_terminal = true;
    options.log = log;
    let mut cluster = Cluster::start(options)?;
    let mut restart: Vec<(usize, Instant)> = Vec::new();
    eprintln!(
        "cluster: three nodes at {}; in another terminal: target/release/billingctl cluster status; Ctrl-C ends all",
        cluster.endpoints().join(", ")
    );
    let mut look = tokio::time::interval(Duration::from_millis(200));
    let asked = asked_to_end();
    tokio::pin!(asked);
    loop {
        tokio::select! {
            ended = &mut asked => {
                ended?;
                cluster.stop().await?;
                eprintln!("cluster: all nodes ended; the data stays in {}", cluster.folder().display());
                return Ok(ExitCode::SUCCESS);
            }
            _ = look.tick() => match cluster.ended()? {
                None => {}
                // Somebody tries what happens: the others go on, and the node comes back.
                Some((id, status)) if status.code().is_none() => {
                    eprintln!("cluster: node {id} was killed ({status}); it starts again in {RESTART_AFTER:?}");
                    restart.push((id, Instant::now() + RESTART_AFTER));
                }
                Some((id, status)) => {
                    cluster.stop().await?;
                    bail!("node {id} ended by itself ({status}) and says above why; the others were ended too");
                }
            },
        }
        for (id, at) in std::mem::take(&mut restart) {
            if at <= Instant::now() {
                cluster.start_node(id, false)?;
            } else {
                restart.push((id, at));
            }
        }
    }
}
