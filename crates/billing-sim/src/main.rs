//! `billing-sim`: runs scenarios under seeds, one seed a process, and says what came of it. Decides what a run, a sweep, a
//! comparison and a canary are for whoever types the commands; what happens in a run, the scenarios decide.

mod canary;
mod sweep;
mod timeline;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use billing_sim::chance::Chance;
use billing_sim::properties::Broken;
use billing_sim::scenarios;
use billing_sim::world::World;
use clap::{Parser, Subcommand};

const AFTER: &str = "\
Examples:
  billing-sim run swarm --seed 3053            one run; the last line names the hash of its trace
  billing-sim run swarm --seed 3053 -v         the same, every event as it happens
  billing-sim sweep --seeds 200 --first-seed 1 many runs, two at a time, with progress
  billing-sim twice --seeds 8                  each seed in two processes: the same trace, byte by byte?
  billing-sim kept --file tests/seeds.txt      every seed that ever failed
  billing-sim canary                           rules broken on purpose: is each noticed? (built with --features sabotage)

Exit codes: 0 everything held; 1 something was broken, and the output says how to repeat it; 2 the run could not be made.";

/// The simulation of billingd: real nodes, clients, workers and gates over a network, disks and clocks that a seed decides.
#[derive(Parser)]
#[command(name = "billing-sim", after_help = AFTER)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One scenario under one seed.
    Run(Run),
    /// A scenario under many seeds, each in a process of its own.
    Sweep(sweep::Sweep),
    /// Seeds in two processes each: whole traces are compared byte by byte.
    Twice(sweep::Twice),
    /// Every seed that is kept in a file, line by line: SCENARIO SEED.
    Kept(sweep::Kept),
    /// Rules that are broken on purpose, each to be caught by a named property.
    Canary(canary::Canary),
    /// The names of the scenarios.
    List,
}

#[derive(clap::Args)]
struct Run {
    /// Which scenario.
    #[arg(value_parser = scenarios::ALL.map(|scenario| scenario.name))]
    scenario: String,
    /// Decides everything that is left to chance.
    #[arg(long)]
    seed: u64,
    /// Write each event to stderr as it happens.
    #[arg(long, short)]
    verbose: bool,
    /// Write the whole trace there, one event a line.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Ask no property but this one.
    #[arg(long, value_name = "PROPERTY")]
    only: Option<String>,
    /// Break this rule on purpose. Only where it was built with --features sabotage.
    #[arg(long, value_name = "RULE")]
    sabotage: Option<String>,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(run) => return one(&run),
        Command::Sweep(sweep) => sweep.run(),
        Command::Twice(twice) => twice.run(),
        Command::Kept(kept) => kept.run(),
        Command::Canary(canary) => canary.run(),
        Command::List => {
            for scenario in &scenarios::ALL {
                println!("{}", scenario.name);
            }
            Ok(true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("billing-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// How a person repeats a run.
fn repeat_line(scenario: &str, seed: u64, sabotage: Option<&str>) -> String {
    match sabotage {
        None => format!("repeat with: make sim-one SCENARIO={scenario} SEED={seed}"),
        Some(rule) => {
            format!("repeat with: make sim-one SCENARIO={scenario} SEED={seed} SABOTAGE={rule}")
        }
    }
}

fn one(run: &Run) -> ExitCode {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
    let repeat = repeat_line(&run.scenario, run.seed, run.sabotage.as_deref());
    let line = repeat.clone();
    let usual = std::panic::take_hook();
    // A panic inside a host may abort the process on the way out: say first how to repeat it.
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("broken: assertion\n{line}");
        usual(info);
    }));
    let made = run
        .sabotage
        .as_deref()
        .map_or(Ok(()), canary::break_rule)
        .and_then(|()| {
            let scenario = scenarios::ALL
                .iter()
                .find(|scenario| scenario.name == run.scenario)
                .context("no such scenario")?;
            let setting = (scenario.setting)(&Chance::new(run.seed, "setting"));
            let mut world = World::new(run.seed, setting)?;
            if let Some(property) = &run.only {
                world.ask_only(property)?;
            }
            Ok((scenario, world))
        });
    let (scenario, mut world) = match made {
        Ok(made) => made,
        Err(error) => {
            eprintln!("billing-sim: the run cannot be made: {error:#}");
            return ExitCode::from(2);
        }
    };
    if run.verbose {
        world.record.set_loud();
    }
    let ended = (scenario.run)(&mut world);
    if let Some(path) = &run.trace {
        let written = timeline::write_trace(&world, path);
        if let Err(error) = written {
            eprintln!(
                "billing-sim: the trace cannot be written to {}: {error}",
                path.display()
            );
            return ExitCode::from(2);
        }
    }
    let result = match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let property = error
                .downcast_ref::<Broken>()
                .map_or("liveness", |broken| broken.property.as_str());
            eprintln!(
                "scenario {} failed at {:?}: {error:#}",
                scenario.name,
                world.elapsed()
            );
            if let Some(invoice) = error
                .downcast_ref::<Broken>()
                .and_then(|broken| broken.invoice.as_deref())
            {
                eprint!("{}", timeline::of(&world, invoice));
            }
            eprintln!("broken: {property}\n{repeat}");
            ExitCode::FAILURE
        }
    };
    println!(
        "scenario={} seed={} simulated_ms={} events={} trace={}",
        scenario.name,
        run.seed,
        world.elapsed().as_millis(),
        world.record.events(),
        world.record.hash()
    );
    result
}
