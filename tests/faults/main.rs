//! Faults of real processes that need more than a process: networks that can be cut, clocks that run wrong, disks of their own.
//! Decides what is run, says of each fault what it came to, and says clearly what this machine cannot show. A word chooses.
//!
//! Each fault lives on a thread of its own: namespaces belong to threads, and everything in them goes with the last process
//! there, so nothing is left behind, however this program ends. Clocks and elections are measured: the machine should not be
//! crowded.

mod clocks;
mod disks;
mod needs;
mod partitions;
mod snapshots;
mod witness;

use std::{process::ExitCode, thread, time::Instant};

use anyhow::{Context, Result, anyhow};
use futures::future::LocalBoxFuture;

use needs::Need;

/// One fault, and what must hold under it.
pub struct Fault {
    name: &'static str,
    needs: &'static [Need],
    run: fn() -> LocalBoxFuture<'static, Result<()>>,
}

fn run(fault: &Fault) -> Result<()> {
    let run = fault.run;
    let story = move || -> Result<()> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(run())
    };
    let story = thread::Builder::new()
        .name(fault.name.to_owned())
        .spawn(story)
        .context("no thread for it")?;
    story.join().map_err(|_| anyhow!("it panicked"))?
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let all = [
        partitions::FAULTS,
        clocks::FAULTS,
        disks::FAULTS,
        snapshots::FAULTS,
    ];
    let (mut ran, mut skipped, mut failed) = (0, 0, 0);
    for fault in all.into_iter().flatten() {
        if !wanted.is_empty() && !wanted.iter().any(|word| fault.name.contains(word.as_str())) {
            continue;
        }
        let lacks: Vec<String> = fault.needs.iter().filter_map(Need::lacking).collect();
        if !lacks.is_empty() {
            println!(
                "{}: skipped: needs {}, which this machine lacks",
                fault.name,
                lacks.join(" and ")
            );
            skipped += 1;
            continue;
        }
        println!("{} ...", fault.name);
        let begun = Instant::now();
        let result = run(fault);
        ran += 1;
        let took = begun.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("{}: ok, {took:.1} s", fault.name),
            Err(error) => {
                failed += 1;
                println!("{}: FAILED, {took:.1} s: {error:#}", fault.name);
            }
        }
    }
    println!("ran {ran}, skipped {skipped}, failed {failed}");
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
