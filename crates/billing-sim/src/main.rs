//! `billing-sim`: runs one scenario under one seed and prints what came of it. One seed, one process.

use std::process::ExitCode;

use billing_sim::chance::Chance;
use billing_sim::scenarios::ALL;
use billing_sim::world::World;
use clap::Parser;

/// Runs one simulated scenario. Exit code 0: every property held.
#[derive(Parser)]
struct Args {
    /// Which scenario.
    #[arg(value_parser = ALL.map(|scenario| scenario.name))]
    scenario: String,
    /// Decides everything that is left to chance.
    #[arg(long)]
    seed: u64,
    /// Write each event to stderr as it happens.
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
    let repeat = format!(
        "repeat with: make sim-one SCENARIO={} SEED={}",
        args.scenario, args.seed
    );
    let line = repeat.clone();
    let usual = std::panic::take_hook();
    // A panic inside a host may abort the process on the way out: say first how to repeat it.
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("{line}");
        usual(info);
    }));
    let Some(scenario) = ALL.iter().find(|scenario| scenario.name == args.scenario) else {
        return ExitCode::from(2);
    };
    let setting = (scenario.setting)(&Chance::new(args.seed, "setting"));
    let mut world = match World::new(args.seed, setting) {
        Ok(world) => world,
        Err(error) => {
            eprintln!("the simulation cannot start: {error:#}");
            return ExitCode::from(2);
        }
    };
    if args.verbose {
        world.record.set_loud();
    }
    if let Err(error) = (scenario.run)(&mut world) {
        eprintln!(
            "scenario {} failed at {:?}: {error:#}\n{repeat}",
            scenario.name,
            world.elapsed()
        );
        return ExitCode::FAILURE;
    }
    println!(
        "scenario={} seed={} simulated_ms={} events={} trace={}",
        scenario.name,
        args.seed,
        world.elapsed().as_millis(),
        world.record.events(),
        world.record.hash()
    );
    ExitCode::SUCCESS
}
